"""The cohort: pairs, measures of a tiny case by hand, what is refused."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_prep.cohort import (
    Facts,
    Pair,
    Problem,
    duplicates,
    measure,
    median_spacing,
    millimetres,
    names_of_copies,
    pair,
    resampled,
    working_shape,
)

SHAPE = (12, 10, 8)
RAS = np.diag([1.0, 2.0, 3.0, 1.0])


def _save(path: Path, data: np.ndarray, affine: np.ndarray = RAS) -> Path:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


def _image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, SHAPE).astype(np.int16)


def _mask() -> np.ndarray:
    """Two femurs: 12 voxels at small x (the patient's left), 8 at large x, and an island of 1."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 3:6, 2:4] = 1
    mask[8:10, 3:5, 2:4] = 1
    mask[5, 5, 5] = 1
    return mask


def _measure(folder: Path, image: np.ndarray, mask: np.ndarray, **options: object) -> Facts | tuple[Problem, ...]:
    affine = np.asarray(options.get("affine", RAS))
    files = Pair("hip", _save(folder / "image.nii.gz", image, affine), _save(folder / "mask.nii.gz", mask, affine))
    return measure(files, None)


def _facts(name: str = "hip", **changes: object) -> Facts:
    values: dict[str, object] = {
        "name": name,
        "shape": (12, 10, 8),
        "spacing_mm": (1.0, 2.0, 3.0),
        "axis_codes": "RAS",
        "image_digest": name,
        "mask_digest": name,
        "parts": (12, 8),
        "femurs_mm3": (72.0, 48.0),
        "borders": (),
        "half": "both",
        "medians": 2.0,
    }
    return Facts(**(values | changes))  # type: ignore[arg-type]


def test_images_and_masks_pair_by_name_whatever_the_format(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii", "lonely.nii"):
        _save(tmp_path / "images" / name, _image())
    for name in ("a.nii.gz", "b.nii", "stray.nii"):
        _save(tmp_path / "masks" / name, _mask())
    found = pair(tmp_path / "images", tmp_path / "masks")
    assert [case.name for case in found.pairs] == ["a", "b"]
    assert found.pairs[0].mask == tmp_path / "masks" / "a.nii.gz"
    assert (found.images_alone, found.masks_alone) == (("lonely",), ("stray",))


def test_a_tiny_case_is_measured_in_mm(tmp_path: Path) -> None:
    facts = _measure(tmp_path, _image(), _mask())
    assert isinstance(facts, Facts)
    assert (facts.shape, facts.spacing_mm, facts.axis_codes) == (SHAPE, (1.0, 2.0, 3.0), "RAS")
    assert facts.parts == (12, 8, 1)  # voxels
    assert facts.femurs_mm3 == (72.0, 48.0)  # 6 mm3 a voxel, left to right; the island is no femur
    assert facts.femur_mm3 == 21 * 6
    assert facts.borders == ()


@pytest.mark.parametrize(
    ("planes", "half"),
    [
        ((0, 5), "left"),
        ((2, 3), "left"),
        ((0, 6), "both"),
        ((5, 6), "both"),
        ((6, 11), "right"),
        ((5, 11), "both"),
        ((6, 6), "right"),
    ],
)
def test_a_half_holds_all_but_islands(tmp_path: Path, planes: tuple[int, int], half: str) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[planes[0] : planes[1] + 1, 3:8, 2:6] = 1
    mask[11 - planes[0], 0, 0] = 1  # an island
    facts = _measure(tmp_path, _image(), mask)
    assert isinstance(facts, Facts) and facts.half == half


def test_parts_that_touch_at_a_corner_are_one(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2, 2, 2] = mask[3, 3, 3] = 1
    facts = _measure(tmp_path, _image(), mask)
    assert isinstance(facts, Facts) and facts.parts == (2,)


@pytest.mark.parametrize(
    ("place", "expected"),
    [((0, 5, 5), ("left",)), ((11, 0, 5), ("right", "posterior")), ((5, 9, 7), ("anterior", "upper")), ((5, 5, 0), ())],
)
def test_borders_are_the_patients_and_the_shaft_may_leave_below(
    tmp_path: Path, place: tuple[int, int, int], expected: tuple[str, ...]
) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[place] = 1
    facts = _measure(tmp_path, _image(), mask)
    assert isinstance(facts, Facts) and facts.borders == expected


@pytest.mark.parametrize("codes", ["LPS", "LIP", "SAR", "PIR"])
def test_another_axis_order_of_the_same_scan_measures_the_same(tmp_path: Path, codes: str) -> None:
    upright = _measure(tmp_path, _image(), _mask())
    assert isinstance(upright, Facts)
    target = nibabel.orientations.axcodes2ornt(codes)
    to = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(RAS), target)
    affine = RAS @ nibabel.orientations.inv_ornt_aff(to, SHAPE)
    turned = [nibabel.orientations.apply_orientation(data, to) for data in (_image(), _mask())]
    found = _measure(tmp_path, *turned, affine=affine)
    assert isinstance(found, Facts) and found.axis_codes == codes
    assert found.image_digest == upright.image_digest and found.mask_digest == upright.mask_digest
    assert (found.shape, found.femurs_mm3) == (upright.shape, upright.femurs_mm3)


def test_the_working_spacing_is_the_median_to_a_micrometre() -> None:
    spacings = [(0.9111, 5.2, 1.0), (0.9114, 4.0, 1.0), (2.0, 5.2, 1.0)]
    assert median_spacing([_facts(spacing_mm=spacing) for spacing in spacings]) == (0.911, 5.2, 1.0)


@pytest.mark.parametrize(
    ("spacing_mm", "shape"),
    [
        ((1.0, 2.0, 3.0), (12, 10, 8)),
        ((1.005, 2.0, 3.0), (12, 10, 8)),  # within 1 %: untouched
        ((2.0, 2.0, 3.0), (6, 10, 8)),
        ((1.0, 1.0, 100.0), (12, 20, 1)),  # one voxel at least
    ],
)
def test_the_working_shape_keeps_the_field_of_view(
    spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    assert working_shape(_facts(), spacing_mm) == shape
    assert resampled(_facts(), spacing_mm) == (shape != (12, 10, 8))


def test_lengths_are_written_short() -> None:
    assert millimetres((0.9114583, 5.2, 10.0)) == "0.911 x 5.2 x 10 mm"


def test_the_same_voxels_under_two_names_are_a_problem_of_the_later_one() -> None:
    found = duplicates([_facts("a"), _facts("b", image_digest="a"), _facts("c")])
    assert [(problem.name, "the voxels of a" in problem.message) for problem in found] == [("b", True)]


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_the_digest_is_of_values_and_not_of_the_file(tmp_path: Path, dtype: type) -> None:
    first, second = _measure(tmp_path, _image(), _mask()), _measure(tmp_path, _image().astype(dtype), _mask())
    assert isinstance(first, Facts) and isinstance(second, Facts)
    assert first.image_digest == second.image_digest


def _with(data: np.ndarray, value: float) -> np.ndarray:
    changed = data.astype(np.float32)
    changed[4, 4, 4] = value
    return changed


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (_image(), np.zeros(SHAPE, np.uint8), ["an empty mask"]),
        (np.full(SHAPE, 7, np.int16), _mask(), ["a constant, every voxel is 7"]),
        (np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.uint8), ["a constant", "an empty mask"]),
        (_with(_image(), np.nan), _mask(), ["image.nii.gz"]),
        (_image(), _with(_mask(), 2), ["--label"]),  # another value: which one is the femur?
        (_image(), _mask()[:-1], ["mask.nii.gz"]),  # another grid
    ],
)
def test_an_unusable_case_gives_every_problem(
    tmp_path: Path, image: np.ndarray, mask: np.ndarray, words: list[str]
) -> None:
    found = _measure(tmp_path, image, mask)
    assert isinstance(found, tuple) and [problem.name for problem in found] == ["hip"] * len(words)
    assert all(word in problem.message for word, problem in zip(words, found, strict=True))


def test_a_mask_with_another_affine_is_a_problem(tmp_path: Path) -> None:
    moved = RAS.copy()
    moved[0, 3] = 5.0
    image, mask = _save(tmp_path / "i.nii", _image()), _save(tmp_path / "m.nii", _mask(), moved)
    found = measure(Pair("hip", image, mask), None)
    assert isinstance(found, tuple) and "m.nii" in found[0].message


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    found = measure(Pair("hip", tmp_path / "none.nii", tmp_path / "none.nii"), None)
    assert isinstance(found, tuple) and "none.nii" in found[0].message


def test_a_channel_at_the_end_of_the_images_names_is_named(tmp_path: Path) -> None:
    _save(tmp_path / "images" / "hip_01_0000.nii", _image())
    _save(tmp_path / "masks" / "hip_01.nii", _mask())
    with pytest.raises(ValueError, match=r"its image: leave out the channel at the end, such as _0000"):
        pair(tmp_path / "images", tmp_path / "masks")


def test_folders_without_a_common_name_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "images" / "a.nii", _image())
    _save(tmp_path / "masks" / "a_mask.nii", _mask())
    with pytest.raises(ValueError, match=r"same file names. Received: 1 images \(a\), 1 masks \(a_mask\)"):
        pair(tmp_path / "images", tmp_path / "masks")


def test_a_femur_of_one_voxel_and_a_full_mask_are_measured(tmp_path: Path) -> None:
    one = np.zeros(SHAPE, np.uint8)
    one[5, 5, 5] = 1
    smallest, fullest = _measure(tmp_path, _image(), one), _measure(tmp_path, _image(), np.ones(SHAPE, np.uint8))
    assert isinstance(smallest, Facts) and smallest.femurs_mm3 == (6.0,)
    assert isinstance(fullest, Facts) and len(fullest.borders) == 5


def test_a_case_named_as_a_copy_of_another_is_a_problem() -> None:
    found = names_of_copies(["hip", "hip~1", "hip~b", "leg~1", "arm~2~3", "arm~2"])
    assert [problem.name for problem in found] == ["hip~1", "arm~2~3"]
    assert "a varied copy of hip. Rename it" in found[0].message
