"""femur_tf.postprocess: from probability map to mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage import measure, morphology

from femur_tf import metrics, postprocess
from femur_tf.config import RecipeConfig, Step

UNIT = (1.0, 1.0, 1.0)
COARSE = (0.9, 5.2, 0.9)  # a coronal stack, slices along y
MASKS = hnp.arrays(np.bool_, (6, 5, 6))
REMOVING = [Step("opening", 1.0), Step("opening", 2.0), Step("small_clusters", 30), Step("largest", 2)]
FILLING = [Step("fill_holes", 12), Step("fill_planes", 3)]


def _plane(*rows):
    """Rows of '#' and '.', x down and z across -> (X, 1, Z) bool."""
    return np.array([[c == "#" for c in row] for row in rows])[:, None, :]


def _ids(step):
    return f"{step.name}-{step.value:g}"


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        # a plus of radius 1 is centred on two voxels of the middle row: the spike goes, corners too
        (Step("opening", 1.0), ("###...", "######", "###..."), (".##...", "####..", ".##...")),
        (Step("opening", 0.8), ("#.#", "...", "#.#"), ("#.#", "...", "#.#")),  # below the spacing: nothing
        (Step("small_clusters", 4 * 0.9 * 0.9 * 5.2), ("####.#", "......", "###..."), ("####..", "......", "......")),
        (Step("small_clusters", 2 * 0.9 * 0.9 * 5.2), ("#...", ".#..", "...#"), ("#...", ".#..", "....")),  # diagonal
        (Step("largest", 2), ("###.#", ".....", "##...", "....."), ("###..", ".....", "##...", ".....")),
        (Step("largest", 1), ("##.##",), ("##...",)),  # of equal ones the first
        (Step("largest", 5), ("#.#",), ("#.#",)),
        (Step("largest", 2), ("##########.#",), ("##########.#",)),
        (Step("largest", 2), ("###########.#",), ("###########..",)),  # under a tenth of the largest: an island
        (Step("largest", 0), ("#.#",), ("...",)),
        (Step("fill_planes", 0.81), ("###.", "#.#.", "###."), ("###.", "###.", "###.")),
        (Step("fill_planes", 0.80), ("###", "#.#", "###"), ("###", "#.#", "###")),  # larger than the limit
        (Step("fill_planes", 9.0), ("##", "#.", "##"), ("##", "#.", "##")),  # open at the border
        (Step("fill_planes", 9.0), (".#.", "#.#", ".#."), (".#.", "###", ".#.")),  # background does not leak diagonally
        (Step("fill_holes", 9e9), ("###", "#.#", "###"), ("###", "#.#", "###")),  # open towards the next slice
    ],
    ids=lambda value: _ids(value) if isinstance(value, Step) else "",
)
def test_steps_by_hand(step, before, after):
    np.testing.assert_array_equal(postprocess.apply_step(_plane(*before), step, spacing_mm=COARSE), _plane(*after))


@pytest.mark.parametrize(("max_mm3", "filled"), [(1.0, True), (0.99, False), (0.0, False)])
def test_a_cavity_of_just_the_limit_is_filled(max_mm3, filled):
    shell = np.ones((3, 3, 3), bool)
    shell[1, 1, 1] = False
    assert postprocess.fill_holes(shell, max_mm3, UNIT)[1, 1, 1] == filled


def test_the_ball_has_no_extent_along_a_coarse_axis():
    sheet = np.zeros((7, 3, 7), bool)
    sheet[1:6, 1, 1:6] = True  # one slice thick: a ball of 2 mm is flat on 5.2 mm
    opened = postprocess.opening(sheet, 2.0, COARSE)
    assert opened[3, 1, 3]
    assert not opened[1, 1, 1]  # its corners are cut


def test_apply_by_hand():
    probability = np.zeros((5, 1, 6), np.float32)
    probability[1:4, 0, 1:4] = 0.5  # at the cut-off: kept
    probability[2, 0, 2] = 0.1  # a hole
    probability[4, 0, 5] = 0.9  # a speck
    recipe = RecipeConfig(0.5, (Step("small_clusters", 3), Step("fill_planes", 1)))
    expected = np.zeros((5, 1, 6), bool)
    expected[1:4, 0, 1:4] = True
    np.testing.assert_array_equal(postprocess.apply(probability, recipe, spacing_mm=(1.0, 2.0, 1.0)), expected)


def test_steps_run_in_their_order():
    ring = _plane("###..", "#.#..", "###.#", "....#").astype(np.float32)
    fill, small = Step("fill_planes", 1), Step("small_clusters", 18)
    first = postprocess.apply(ring, RecipeConfig(0.5, (fill, small)), spacing_mm=(1.0, 2.0, 1.0))
    second = postprocess.apply(ring, RecipeConfig(0.5, (small, fill)), spacing_mm=(1.0, 2.0, 1.0))
    assert first.sum() == 9  # filled to 18 mm3, which stays
    assert second.sum() == 0  # 16 mm3 goes


def dice_of_stages(probability, recipe, reference):
    """Return the Dice after the cut-off and after each step."""
    return [metrics.dice(mask, reference) for mask in postprocess.stages(probability, recipe, spacing_mm=UNIT)]


def test_stages_by_hand():
    probability = _plane("##.#").astype(np.float32)
    recipe = RecipeConfig(0.5, (Step("largest", 1), Step("fill_holes", 10)))
    assert dice_of_stages(probability, recipe, _plane("##..")) == [0.8, 1.0, 1.0]


def test_the_last_stage_is_the_mask_and_the_first_the_cutoff_alone(blobs):
    probability = blobs.astype(np.float32)
    recipe = RecipeConfig(0.5, (Step("opening", 1.0), Step("largest", 1)))
    masks = list(postprocess.stages(probability, recipe, spacing_mm=UNIT))
    np.testing.assert_array_equal(masks[0], blobs)
    np.testing.assert_array_equal(masks[-1], postprocess.apply(probability, recipe, spacing_mm=UNIT))
    bare = RecipeConfig(0.5, ())
    np.testing.assert_array_equal(postprocess.apply(probability, bare, spacing_mm=UNIT), blobs)


def _affine(*columns, origin=(0.0, 0.0, 0.0)):
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(columns)
    affine[:3, 3] = origin
    return affine


TO_RIGHT = _affine((50, 0, 0), (0, 1, 0), (0, 0, 1))
TO_LEFT = _affine((-50, 0, 0), (0, 1, 0), (0, 0, 1), origin=(1000, 0, 0))
ACROSS_Z = _affine((0, 0, -1), (0, -1, 0), (50, 0, 0))


@pytest.mark.parametrize(
    ("affine", "voxels", "expected"),
    [
        (TO_RIGHT, "##..##", "110022"),  # RAS: low x is the patient's left
        (TO_LEFT, "##..##", "220011"),
        (TO_RIGHT, "######", "111222"),  # one component astride: split in the middle
        (TO_RIGHT, "#.....", "100000"),  # narrow: one femur, at x = 0
        (TO_LEFT, ".##...", "022000"),  # one femur at x = 900 to 950: the right one
        (_affine((50, 0, 0), (0, 1, 0), (0, 0, 1), origin=(-300, 0, 0)), ".##...", "011000"),
        (TO_RIGHT, "......", "000000"),
    ],
)
def test_sides_by_hand(affine, voxels, expected):
    mask = np.array([c == "#" for c in voxels])[:, None, None]
    labels = postprocess.sides(mask, affine)
    assert labels.dtype == np.uint8
    assert "".join(map(str, labels[:, 0, 0])) == expected


@pytest.mark.parametrize(
    ("affine", "voxels", "x_mm"),
    [(TO_RIGHT, "##..##", None), (TO_RIGHT, "......", None), (TO_RIGHT, "#.....", 0.0), (TO_LEFT, ".##...", 925.0)],
)
def test_where_a_lone_femur_lies(affine, voxels, x_mm):
    assert postprocess.lone_mm(np.array([c == "#" for c in voxels])[:, None, None], affine) == x_mm


def test_sides_follow_the_affine_not_the_axis_order():
    mask = np.array([True, True, False, False, True])[None, None, :]
    assert postprocess.sides(mask, ACROSS_Z).ravel().tolist() == [1, 1, 0, 0, 2]


@settings(max_examples=40, deadline=None)
@given(MASKS, st.sampled_from(REMOVING), st.sampled_from([UNIT, COARSE]))
def test_steps_that_remove_only_remove(mask, step, spacing_mm):
    result = postprocess.apply_step(mask, step, spacing_mm=spacing_mm)
    assert not np.any(result & ~mask)


@settings(max_examples=40, deadline=None)
@given(MASKS, st.sampled_from(FILLING), st.sampled_from([UNIT, COARSE]))
def test_steps_that_fill_only_fill(mask, step, spacing_mm):
    result = postprocess.apply_step(mask, step, spacing_mm=spacing_mm)
    assert not np.any(mask & ~result)


@settings(max_examples=80, deadline=None)
@given(MASKS, st.sampled_from(REMOVING + FILLING), st.sampled_from([UNIT, COARSE]))
def test_each_step_twice_is_once(mask, step, spacing_mm):
    once = postprocess.apply_step(mask, step, spacing_mm=spacing_mm)
    np.testing.assert_array_equal(postprocess.apply_step(once, step, spacing_mm=spacing_mm), once)


@settings(max_examples=40, deadline=None)
@given(MASKS, st.sampled_from(REMOVING + FILLING))
def test_empty_space_around_the_mask_changes_nothing(mask, step):
    padded = postprocess.apply_step(np.pad(mask, 2), step, spacing_mm=COARSE)
    np.testing.assert_array_equal(padded[2:-2, 2:-2, 2:-2], postprocess.apply_step(mask, step, spacing_mm=COARSE))


@settings(max_examples=40, deadline=None)
@given(MASKS)
def test_every_bone_voxel_has_a_side(mask):
    labels = postprocess.sides(mask, TO_RIGHT)
    np.testing.assert_array_equal(labels > 0, mask)
    assert labels.max() <= 2


def _ball(radius_mm, spacing_mm):
    reach = [int(radius_mm / s) for s in spacing_mm]
    offsets = np.stack(np.mgrid[tuple(slice(-r, r + 1) for r in reach)], axis=-1) * spacing_mm
    return np.linalg.norm(offsets, axis=-1) <= radius_mm


@pytest.fixture(scope="module")
def blobs():
    return ndimage.gaussian_filter(np.random.default_rng(2).random((24, 10, 24)), (1.2, 0.6, 1.2)) > 0.51


@pytest.mark.parametrize("radius_mm", [0.9, 1.0, 2.0, 3.0, 5.3])
def test_opening_equals_that_of_a_structuring_element(blobs, radius_mm):
    expected = ndimage.binary_opening(blobs, _ball(radius_mm, COARSE))
    np.testing.assert_array_equal(postprocess.opening(blobs, radius_mm, COARSE), expected)


def test_small_clusters_equal_scikit_images(blobs):
    expected = morphology.remove_small_objects(blobs, max_size=9, connectivity=3)
    np.testing.assert_array_equal(postprocess.small_clusters(blobs, 10.0, UNIT), expected)


def test_the_largest_is_the_largest(blobs):
    labels = measure.label(blobs, connectivity=3)
    expected = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    np.testing.assert_array_equal(postprocess.largest(blobs, 1), expected)


def test_filling_without_limit_equals_scipys(blobs):
    solid = ~blobs
    np.testing.assert_array_equal(postprocess.fill_holes(solid, 1e9, UNIT), ndimage.binary_fill_holes(solid))
    slices = np.stack([ndimage.binary_fill_holes(solid[:, j]) for j in range(solid.shape[1])], axis=1)
    np.testing.assert_array_equal(postprocess.fill_planes(solid, 1e9, COARSE), slices)


@pytest.mark.parametrize("step", REMOVING + FILLING, ids=_ids)
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 3, 5)])
def test_empty_masks_stay_empty(step, shape):
    assert not postprocess.apply_step(np.zeros(shape, bool), step, spacing_mm=UNIT).any()


@pytest.mark.parametrize(
    "step", [Step("opening", 0.0), Step("small_clusters", 0), Step("largest", 1), *FILLING], ids=_ids
)
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 3, 5)])
def test_full_masks_stay_full(step, shape):
    assert postprocess.apply_step(np.ones(shape, bool), step, spacing_mm=UNIT).all()


def test_a_ball_that_fits_nowhere_leaves_nothing():
    assert not postprocess.opening(np.ones((3, 3, 3), bool), 5.0, UNIT).any()


def test_every_step_of_the_config_is_known():
    for name in ("opening", "small_clusters", "largest", "fill_holes", "fill_planes"):
        result = postprocess.apply_step(np.ones((5, 5, 5), bool), Step(name, 1), spacing_mm=UNIT)
        assert result.dtype == bool


def test_the_input_is_left_as_it_was(blobs):
    before = blobs.copy()
    for step in REMOVING + FILLING:
        postprocess.apply_step(blobs, step, spacing_mm=UNIT)
    np.testing.assert_array_equal(blobs, before)


def test_an_empty_result_scores_as_metrics_say():
    full = np.ones((2, 2, 2), bool)
    scores = dice_of_stages(full.astype(np.float32), RecipeConfig(0.5, (Step("largest", 0),)), full)
    assert scores == [1.0, metrics.dice(np.zeros(1, bool), np.ones(1, bool))]
