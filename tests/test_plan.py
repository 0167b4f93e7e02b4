"""The plan command: what it writes, prints, keeps and refuses, on tiny cohorts."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pytest
import tyro

from data_prep import forecast as forecasts
from data_prep.cohort import Facts, Pair
from data_prep.fitted import copies, one_sided, scales_with_more_to_see, upper_medians
from data_prep.forecast import Forecast, check_disk, forecast
from data_prep.plan import PlanArguments, check, main, numbers
from femur_tf import config, files, study
from femur_tf.config import PRESETS, PatchConfig
from femur_tf.errors import DataError
from femur_tf.patch_config import Triple

SHAPE = (20, 16, 12)
"""The promise of every command; the best of three, because a busy machine is no slow program."""


def _add(
    folder: Path,
    name: str,
    *,
    seed: int,
    spacing_mm: float = 1.0,
    mask_value: int = 1,
    shape: tuple[int, int, int] = SHAPE,
) -> None:
    affine = np.diag([spacing_mm, 1.0, 2.0, 1.0])
    mask = np.zeros(shape, np.uint8)
    mask[3:7, 5:10, 3:9] = mask[13:17, 5:10, 3:9] = mask_value
    mask[3, 5, 3 + seed % 6] = 0  # so that no two masks are the same
    mask[13, 5 + seed // 6 % 5, 3] = 0
    image = np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)
    for kind, data in (("images", image), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(data, affine), folder / kind / f"{name}.nii")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for seed in range(1, 7):
        _add(tmp_path, f"hip_{seed:02d}", seed=seed)
    return tmp_path


def _arguments(folder: Path, **changes: object) -> PlanArguments:
    values = {"images": folder / "images", "masks": folder / "masks", "per_case": 100, "test": "2,5"} | changes
    return PlanArguments(folder / "work", **values)  # type: ignore[arg-type]


def _plan(folder: Path, **changes: object) -> study.Plan:
    main(_arguments(folder, **changes))
    return study.read_plan(folder / "work")


def test_a_plan_names_each_case_with_its_files_and_part(cohort: Path) -> None:
    plan = _plan(cohort)
    assert [case.name for case in plan.cases] == [f"hip_{n:02d}" for n in range(1, 7)]
    assert [case.name for case in plan.part("test")] == ["hip_02", "hip_05"]
    assert (len(plan.part("validation")), len(plan.part("train"))) == (1, 3)
    assert plan.cases[0].image == str(cohort / "images" / "hip_01.nii")
    assert plan.data.patch.spacing_mm == (1.0, 1.0, 2.0)
    assert plan.data.sampling.per_case == 100


def test_flags_reach_the_plan(cohort: Path) -> None:
    plan = _plan(cohort, spacing="2,1.5,2", scales_mm="0,4,8", validation=1, label="1")
    assert (plan.data.patch.spacing_mm, plan.data.patch.scales_mm) == ((2.0, 1.5, 2.0), (0.0, 4.0, 8.0))
    assert (len(plan.part("validation")), plan.label) == (1, (1,))


@pytest.mark.parametrize("n4", [False, True])
def test_the_bias_field_is_corrected_on_demand_alone(cohort: Path, n4: bool) -> None:
    flags = ["--n4"] * n4
    folders = ["--images", str(cohort / "images"), "--masks", str(cohort / "masks")]
    arguments = tyro.cli(PlanArguments, args=[str(cohort / "work"), *folders, *flags])
    main(arguments)
    assert study.read_plan(cohort / "work").data.normalisation.n4 is n4


def test_the_preset_chooses_the_scales(cohort: Path) -> None:
    assert _plan(cohort, preset="paper").data.patch.scales_mm == PRESETS["paper"].scales_mm


def test_a_plan_of_larger_volumes_has_the_scales_of_its_preset(tmp_path: Path) -> None:
    for seed in range(1, 7):
        _add(tmp_path, f"hip_{seed:02d}", seed=seed, shape=(66, 16, 12))
    assert _plan(tmp_path).data.patch.scales_mm == PRESETS["default"].scales_mm


def test_test_cases_do_not_decide_the_spacing(cohort: Path) -> None:
    for seed in range(7, 17):
        _add(cohort, f"hip_{seed:02d}", seed=seed, spacing_mm=0.5)
    plan = _plan(cohort, test=",".join(str(number) for number in range(7, 17)))
    assert plan.data.patch.spacing_mm == (1.0, 1.0, 2.0)


def test_a_scale_that_shows_no_more_of_small_volumes_is_left_out(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _plan(cohort)
    shown = " ".join(capsys.readouterr().out.split())
    assert plan.data.patch.scales_mm == (0.0,)
    assert "Scales left out: 3.6 mm; the others show as much: their patches span half of a volume" in shown
    assert "To have them: --scales-mm 0,3.6" in shown
    assert _plan(cohort, scales_mm="0,3.6", overwrite=True).data.patch.scales_mm == (0.0, 3.6)


def _facts(shape: tuple[int, int, int]) -> Facts:
    return Facts("hip_01", shape, (1.0, 1.0, 1.0), "RAS", "", "", (), (), (), "both", 2.0)


@pytest.mark.parametrize(
    ("halves", "sided"),
    [
        (["left", "left"], True),
        (["right"], True),
        (["left", "right"], False),
        (["left", "both"], False),
        (["both", "both"], False),
    ],
)
def test_a_cohort_is_sided_where_all_cases_are_so(halves: list[Literal["left", "right", "both"]], sided: bool) -> None:
    assert one_sided([dataclasses.replace(_facts((9, 9, 9)), half=half) for half in halves]) is sided


@pytest.mark.parametrize(
    ("medians", "expected"), [([1.53, 1.98], 2.0), ([1.5], 1.5), ([1.501, 1.2], 1.6), ([2.0, math.inf], None)]
)
def test_the_limit_of_grey_values_changes_no_case(medians: list[float], expected: float | None) -> None:
    facts = [dataclasses.replace(_facts((9, 9, 9)), medians=one) for one in medians]
    assert upper_medians(facts) == expected


def test_a_femur_on_one_side_of_every_scan_is_not_mirrored(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not _plan(cohort).data.sided
    assert "mirrored" not in capsys.readouterr().out
    for path in (cohort / "masks").iterdir():
        nifti = nibabel.load(path)
        mask = np.asarray(nifti.dataobj).copy()
        # x runs towards the patient's right or left, as the affine says.
        away = slice(None, mask.shape[0] // 2 + 1) if nifti.affine[0, 0] < 0 else slice(mask.shape[0] // 2, None)
        mask[away] = 0
        nibabel.save(nibabel.Nifti1Image(mask, nifti.affine), path)
    assert _plan(cohort, overwrite=True).data.sided
    assert "The femur lies in the same half of every scan: patches are not mirrored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shapes", "scales_mm"),
    [
        ([(64, 64, 64)], (0.0,)),  # patches of 32 voxels span half
        ([(64, 65, 64)], (0.0, 3.6)),
        ([(65, 64, 64)], (0.0, 3.6)),
        ([(256, 256, 256)], (0.0, 3.6)),  # of 32 x 4 voxels as well
        ([(256, 256, 257)], (0.0, 3.6, 7.2)),
        ([(30, 30, 30), (64, 64, 64), (400, 400, 400)], (0.0,)),  # the median counts
    ],
)
def test_scales_with_more_to_see(shapes: list[tuple[int, int, int]], scales_mm: tuple[float, ...]) -> None:
    rule = PatchConfig(spacing_mm=(1.0, 1.0, 1.0), scales_mm=(0.0, 3.6, 7.2))
    assert scales_with_more_to_see([_facts(shape) for shape in shapes], rule) == scales_mm


@pytest.mark.parametrize(
    ("spacing_mm", "scales_mm"),
    [
        ((2.5, 2.5, 2.5), (3.6, 7.2)),  # 3.6 mm is every voxel, too
        ((2.5, 5.0, 2.5), (3.6, 7.2)),
        ((5.0, 5.0, 5.0), (7.2,)),
        ((2.0, 5.0, 2.0), (0.0, 3.6, 7.2)),
    ],
)
def test_of_scales_that_are_the_same_samples_one_is_kept(spacing_mm: Triple, scales_mm: tuple[float, ...]) -> None:
    rule = PatchConfig(spacing_mm=spacing_mm, scales_mm=(0.0, 3.6, 7.2))
    facts = dataclasses.replace(_facts((900, 900, 900)), spacing_mm=spacing_mm)
    assert scales_with_more_to_see([facts], rule) == scales_mm


@pytest.mark.parametrize(
    ("shape", "cases", "number"),
    [
        ((384, 47, 384), 9, 12),  # hips: the least number
        ((64, 90, 64), 6, 192),
        ((100, 100, 100), 10, 50),
        ((35, 51, 35), 500, 16),
        ((35, 51, 35), 0, 192),
    ],
)
def test_small_volumes_are_copied_more_often(shape: tuple[int, int, int], cases: int, number: int) -> None:
    assert copies([_facts(shape)] * cases, (1.0, 1.0, 1.0), 48_000) == number


def test_the_number_of_copies_follows_from_the_training_cases(cohort: Path) -> None:
    assert _plan(cohort, per_case=1000).data.variation.copies == 192
    assert _plan(cohort, per_case=100, overwrite=True).data.variation.copies == 100  # an example of each
    assert _plan(cohort, copies=3, overwrite=True).data.variation.copies == 3


def test_the_table_names_every_case_and_what_to_look_at(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _add(cohort, "hip_07", seed=7, spacing_mm=2.0)
    _plan(cohort)
    shown = capsys.readouterr().out
    assert all(f"hip_{n:02d}" in shown for n in range(1, 8))
    assert "hip_07: 2 x 1 x 2 mm is far along x from the median 1 x 1 x 2 mm: will be resampled to" in shown
    assert "Cases: 7 (4 train, 1 validation, 2 test); 1 will be resampled." in shown
    assert "A training case is its scan and 99 varied copies of it." in shown
    assert "Next: python -m data_prep.write_records" in shown


def test_a_plan_made_again_with_more_cases_keeps_every_part(cohort: Path) -> None:
    first = {case.name: case.part for case in _plan(cohort).cases}
    for seed in range(7, 13):
        _add(cohort, f"hip_{seed:02d}", seed=seed)
    later = {case.name: case.part for case in _plan(cohort, overwrite=True, test=None).cases}
    assert len(later) == 12 and {name: later[name] for name in first} == first


def test_a_case_that_moves_and_a_number_that_is_not_met_are_told(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _plan(cohort, validation=1)
    moved = study.read_plan(cohort / "work").part("train")[0].name
    _plan(cohort, test=f"2,5,{moved}", validation=2, overwrite=True)
    told = capsys.readouterr().err
    assert f"{moved} moves from train to test" in told
    assert "--validation 2: the earlier plan's split is kept, with 1 validation cases now" in told


def test_a_new_split_forgets_the_earlier_plan(cohort: Path) -> None:
    _plan(cohort)
    assert len(_plan(cohort, test="1", validation=4, overwrite=True, new_split=True).part("validation")) == 4


def test_a_new_split_tells_which_cases_move(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _plan(cohort, test="2")
    _plan(cohort, test="5", overwrite=True, new_split=True)
    told = capsys.readouterr().err
    assert "hip_02 moves from test to" in told
    assert " to test: runs made before used it otherwise" in told


def test_what_the_earlier_plan_had_otherwise_is_told(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(cohort, copies=2)
    sampling = dataclasses.replace(plan.data.sampling, near_mm=20.0)
    edited = dataclasses.replace(plan, data=dataclasses.replace(plan.data, sampling=sampling))
    files.write_json(study.plan_path(cohort / "work"), config.to_dict(edited))
    capsys.readouterr()
    _plan(cohort, copies=3, overwrite=True)
    told = capsys.readouterr().err
    assert "data.sampling.near_mm: 20.0 in the earlier plan, 12.0 now. Repeat its flag" in told
    assert "data.variation.copies: 2 in the earlier plan, 3 now" in told
    _plan(cohort, copies=3, overwrite=True)
    assert "in the earlier plan" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processes": 0}, r"--processes: expected at least 1\. Received: 0"),
        ({"scales_mm": "0,0"}, r"--scales-mm: expected scales of other samples each\. Received: 0,0"),
        ({"test": "1,2,3,4,5,6"}, r"6 of them for the test.*name fewer with --test, or pass --validation 0"),
    ],
)
def test_what_makes_no_plan_is_refused(cohort: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        _plan(cohort, **changes)


def test_one_folder_for_scans_and_masks_is_refused(cohort: Path) -> None:
    with pytest.raises(DataError, match="--masks: expected another folder than that of the scans"):
        _plan(cohort, masks=cohort / "images")


def test_a_file_in_place_of_the_study_is_refused_before_cases_are_read(cohort: Path) -> None:
    (cohort / "work").write_text("")
    with pytest.raises(DataError, match=r"plan\.json: expected a place for a file\. Received: .*work, a file"):
        _plan(cohort)


def test_a_test_case_may_be_named_by_its_file(cohort: Path) -> None:
    assert [case.name for case in _plan(cohort, test="hip_02.nii.gz").part("test")] == ["hip_02"]


def test_fewer_examples_than_copies_are_refused(cohort: Path) -> None:
    with pytest.raises(
        DataError, match=r"per_case: expected an example of each of the 12 copies\. Received: per_case=11"
    ):
        _plan(cohort, per_case=11)


def test_the_same_folders_give_the_same_plan(cohort: Path) -> None:
    assert _plan(cohort) == _plan(cohort, overwrite=True, new_split=True)


def test_lonely_files_are_named_and_left_out(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cohort / "masks" / "hip_06.nii").rename(cohort / "masks" / "other.nii")
    assert len(_plan(cohort).cases) == 5
    told = capsys.readouterr().err
    assert "image without a mask, left out: hip_06" in told and "mask without an image, left out: other" in told


def test_the_forecast_is_examples_times_bytes(cohort: Path) -> None:
    plan = _plan(cohort, copies=12)
    facts = check(
        [Pair(case.name, Path(case.image), Path(case.mask)) for case in plan.cases],
        label=None,
        processes=1,
    )
    expected = forecast(plan, facts)
    assert expected.examples == 400  # of four train and validation cases
    assert expected.patch_bytes == 400 * (33 * 33 * 3 + 90)
    # Grids of one validation case, and of three training cases with eleven copies each.
    assert expected.index_bytes == 400 * 90 + (1 + 3 * 12) * 20 * 16 * 12
    copied = 3 * 11 * 20 * 16 * 12
    assert expected.seconds == pytest.approx(400 / forecasts.RECORDS_PER_S + copied / forecasts.VARIED_PER_S, rel=1e-9)


def test_patches_that_do_not_fit_the_disk_are_told_and_index_only_that_does_not_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_disk(tmp_path / "new" / "work", Forecast(1, 1, 1, 1.0)) > 1
    assert check_disk(tmp_path, Forecast(1, 10**18, 1, 1.0)) > 1
    assert "Pass --index-only to data_prep.write_records" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"expected 1e\+09 GB of free disk for the records, index-only"):
        check_disk(tmp_path, Forecast(1, 10**18, 10**18, 1.0))


def test_all_problems_come_in_one_message_and_nothing_is_written(cohort: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([1.0, 1, 2, 1])), cohort / "masks/hip_01.nii")
    (cohort / "images/hip_03.nii").write_bytes(b"no image")
    (cohort / "images/hip_06.nii").write_bytes((cohort / "images/hip_04.nii").read_bytes())
    with pytest.raises(DataError, match="3 problems") as caught:
        _plan(cohort)
    assert [name in str(caught.value) for name in ("hip_01: ", "hip_03: ", "hip_06: ")] == [True] * 3
    assert not (cohort / "work").exists()


def test_other_mask_values_are_refused_with_the_flag_to_use(cohort: Path) -> None:
    _add(cohort, "hip_01", seed=1, mask_value=3)
    assert len(_plan(cohort).cases) == 6  # one value other than 0 is the femur, whatever it is
    mask = nibabel.load(cohort / "masks/hip_01.nii")
    data = np.asarray(mask.dataobj).copy()
    data[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(data, mask.affine), cohort / "masks/hip_01.nii")
    with pytest.raises(DataError, match=r"hip_01: .*--label"):
        _plan(cohort, overwrite=True)


def test_several_mask_values_are_one_femur(cohort: Path) -> None:
    one = _plan(cohort)
    for path in (cohort / "masks").iterdir():
        mask = nibabel.load(path)
        data = np.asarray(mask.dataobj).copy()
        data[10:] *= 2  # left and right
        nibabel.save(nibabel.Nifti1Image(data, mask.affine), path)
    plan = _plan(cohort, label="2,1", overwrite=True)
    assert plan.label == (1, 2)
    first = study.load_case(plan, plan.cases[0])
    assert first.reference[:10].any() and first.reference[10:].any()
    assert dataclasses.replace(plan, label=None) == one


@pytest.mark.parametrize("label", ["1.5", "0,1", "left"])
def test_labels_that_are_none_are_refused(cohort: Path, label: str) -> None:
    with pytest.raises(DataError, match=r"--label: expected .*numbers.* separated by commas.* Received: "):
        _plan(cohort, label=label)


def test_a_plan_of_earlier_with_one_label_is_read(cohort: Path) -> None:
    plan = _plan(cohort, label="1")
    path = study.plan_path(cohort / "work")
    files.write_json(path, files.read_json(path) | {"label": 1})
    assert study.read_plan(cohort / "work") == plan


def test_an_existing_plan_is_kept_without_overwrite(cohort: Path) -> None:
    before = _plan(cohort)
    with pytest.raises(DataError, match="--overwrite"):
        _plan(cohort, validation=1)
    assert study.read_plan(cohort / "work") == before


def test_an_earlier_plan_that_cannot_be_read_is_told_with_the_way_out(cohort: Path) -> None:
    files.write_text(study.plan_path(cohort / "work"), "{")
    with pytest.raises(DataError, match=r"expected JSON.*--new-split"):
        _plan(cohort, overwrite=True)
    assert len(_plan(cohort, overwrite=True, new_split=True).cases) == 6


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"spacing": "1,2"}, "--spacing: expected 3 numbers .* Received: '1,2'"),
        ({"spacing": "0,1,1"}, "spacing_mm: expected three lengths"),
        ({"scales_mm": "a"}, "--scales-mm: expected numbers"),
        ({"scales_mm": "-1"}, "scales_mm: expected distances"),
        ({"per_case": 0}, "per_case: expected at least 1"),
        ({"test": "77"}, "'77' is none of"),
        ({"validation": 4}, "at least one train case"),
        ({"validation": -1}, "0 validation cases or more"),
    ],
)
def test_a_flag_out_of_range_is_refused(cohort: Path, flags: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        _plan(cohort, **flags)
    assert not (cohort / "work").exists()


def test_numbers_are_read_with_their_commas() -> None:
    assert numbers("0,3.6", "--scales-mm") == (0.0, 3.6)
    with pytest.raises(DataError, match="Received: ''"):
        numbers("", "--scales-mm")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "data_prep.plan", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_bad_cohort_ends_with_status_2_and_no_traceback(cohort: Path) -> None:
    (cohort / "images/hip_03.nii").write_bytes(b"no image")
    done = _run(str(cohort / "work"), "--images", str(cohort / "images"), "--masks", str(cohort / "masks"))
    assert done.returncode == 2
    assert "hip_03" in done.stderr and "Traceback" not in done.stderr
