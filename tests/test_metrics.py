"""femur_tf.metrics: overlap, surface distances, ROC and cut-offs."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from femur_tf import metrics

ROUNDING = 1e-12  # sums of a few thousand float64
MASKS = hnp.arrays(np.bool_, (4, 3, 3))


def _mask(text):
    """'##..' -> (4, 1, 1) bool."""
    return np.array([c == "#" for c in text])[:, None, None]


def _counts(probability, label):
    counts = metrics.VoxelCounts()
    counts.add(np.asarray(probability, np.float16), np.asarray(label, bool))
    return counts


NAN = math.nan


@pytest.mark.parametrize(
    ("mask", "reference", "dice", "ppv", "sensitivity", "specificity"),
    [
        ("##..", "##..", 1, 1, 1, 1),
        ("##..", ".##.", 1 / 2, 1 / 2, 1 / 2, 1 / 2),
        ("###.", "#...", 1 / 2, 1 / 3, 1, 1 / 3),
        ("#...", "...#", 0, 0, 0, 2 / 3),
        ("....", "....", NAN, NAN, NAN, 1),  # nothing to find and nothing found: no overlap to measure
        ("....", "##..", 0, NAN, 0, 1),  # nothing found: no voxel whose share could be right
        ("##..", "....", 0, 0, NAN, 1 / 2),  # nothing to find
        ("####", "####", 1, 1, 1, NAN),  # no background
    ],
)
def test_overlap_by_hand(mask, reference, dice, ppv, sensitivity, specificity):
    pair = _mask(mask), _mask(reference)
    found = [f(*pair) for f in (metrics.dice, metrics.ppv, metrics.sensitivity, metrics.specificity)]
    np.testing.assert_allclose(found, [dice, ppv, sensitivity, specificity])


def test_confusion_by_hand():
    assert metrics.confusion(_mask("###.."), _mask("#..#.")) == metrics.Confusion(1, 2, 1, 1)


@pytest.mark.parametrize(
    ("mask", "reference", "mean_mm", "hausdorff95_mm"),
    [
        ("#....", "#....", 0, 0),
        ("#....", "...#.", 6, 6),  # 3 voxels of 2 mm
        ("##...", "#....", 2 / 3, 1.9),  # forth 0 and 2, 95 % of the way: 1.9; back 0
        ("#....", "##...", 2 / 3, 1.9),
        ("#...#", "#....", 8 / 3, 7.6),  # a stray island 8 mm away
    ],
)
def test_surface_distances_by_hand(mask, reference, mean_mm, hausdorff95_mm):
    found = metrics.surface_distances(_mask(mask), _mask(reference), spacing_mm=(2.0, 1.0, 1.0))
    np.testing.assert_allclose([found.mean_mm, found.hausdorff95_mm], [mean_mm, hausdorff95_mm])


def test_the_inside_of_a_solid_is_no_surface():
    cube = np.zeros((5, 5, 5), bool)
    cube[1:4, 1:4, 1:4] = True
    expected = cube.copy()
    expected[2, 2, 2] = False
    np.testing.assert_array_equal(metrics.surface(cube), expected)


def test_beyond_the_volume_is_outside():
    full = np.ones((3, 3, 3), bool)
    assert metrics.surface(full).sum() == 26


@pytest.mark.parametrize(
    ("voxels", "box"),
    [
        ([(1, 2, 3)], (slice(1, 2), slice(2, 3), slice(3, 4))),
        ([(0, 4, 1), (3, 0, 1)], (slice(0, 4), slice(0, 5), slice(1, 2))),
        ([], (slice(0, 0), slice(0, 0), slice(0, 0))),
    ],
)
def test_bounding_box_by_hand(voxels, box):
    mask = np.zeros((4, 5, 6), bool)
    for voxel in voxels:
        mask[voxel] = True
    assert metrics.bounding_box(mask) == box


def test_roc_by_hand():
    # from the top: bone .9, background .5, bone .5 (a tie), background .25
    found = metrics.roc(np.array([0.25, 0.5, 0.5, 0.875]), np.array([False, False, True, True]))
    np.testing.assert_array_equal(found.thresholds, [np.inf, 0.875, 0.5, 0.25])
    np.testing.assert_array_equal(found.true_positive_rate, [0, 0.5, 1, 1])
    np.testing.assert_array_equal(found.false_positive_rate, [0, 0, 0.5, 1])


def test_cutoffs_by_hand():
    #                 1 bone   1 bone 1 bg   2 bg (a quarter of the background is above .5)
    counts = _counts([0.875, 0.5, 0.5, 0.25, 0.125, 0.0], [1, 1, 0, 0, 0, 0])
    assert metrics.auc(counts) == pytest.approx((4 + 3.5) / 8)  # pairs ranked right, a tie is half
    assert metrics.youden(counts) == 0.5  # sensitivity 1, specificity 3/4
    assert metrics.best_dice(counts) == 0.5  # 2 * 2 / (3 + 2)
    assert metrics.at_specificity(counts, 1.0) == 0.875
    assert metrics.at_specificity(counts, 0.75) == 0.5
    assert metrics.at_specificity(counts, 0.74) == 0.5
    assert metrics.at_specificity(counts, 0.0) == 0.0


def test_a_voxel_at_the_cutoff_is_bone():
    counts = _counts([0.75, 0.25], [1, 0])
    assert metrics.best_dice(counts) == 0.75  # not a value between: mask = probability >= cutoff


@settings(max_examples=50, deadline=None)
@given(MASKS, MASKS)
def test_dice_is_symmetric_and_ppv_mirrors_sensitivity(mask, reference):
    np.testing.assert_equal(metrics.dice(mask, reference), metrics.dice(reference, mask))
    np.testing.assert_equal(metrics.ppv(mask, reference), metrics.sensitivity(reference, mask))


@settings(max_examples=50, deadline=None)
@given(MASKS, MASKS)
def test_every_voxel_is_counted_once(mask, reference):
    assert sum(dataclasses.astuple(metrics.confusion(mask, reference))) == mask.size


@settings(max_examples=50, deadline=None)
@given(MASKS, MASKS, st.permutations(range(3)))
def test_surface_distances_follow_the_axes_and_are_symmetric(mask, reference, order):
    spacing = (0.9, 2.0, 5.2)
    straight = metrics.surface_distances(mask, reference, spacing_mm=spacing)
    turned = metrics.surface_distances(
        reference.transpose(order), mask.transpose(order), spacing_mm=tuple(spacing[a] for a in order)
    )
    np.testing.assert_allclose(dataclasses.astuple(straight), dataclasses.astuple(turned), rtol=ROUNDING)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float16, 12, elements=st.floats(0, 1, width=16)), hnp.arrays(np.bool_, 12))
def test_counts_add_up_over_volumes(probability, label):
    whole, parts = _counts(probability, label), metrics.VoxelCounts()
    for start in (0, 5):
        stop = 5 if start == 0 else 12
        parts.add(probability[start:stop], label[start:stop])
    np.testing.assert_array_equal(whole.positives, parts.positives)
    np.testing.assert_array_equal(whole.negatives, parts.negatives)
    assert whole.positives.sum() == label.sum()
    assert whole.negatives.sum() == (~label).sum()


def test_surface_distances_equal_those_of_distance_maps():
    rng = np.random.default_rng(3)
    spacing = (0.9, 1.3, 5.2)
    mask, reference = (ndimage.gaussian_filter(rng.random((30, 30, 12)), 2) > 0.5 for _ in range(2))
    a, b = metrics.surface(mask), metrics.surface(reference)
    forth = ndimage.distance_transform_edt(~b, sampling=spacing)[a]
    back = ndimage.distance_transform_edt(~a, sampling=spacing)[b]
    found = metrics.surface_distances(mask, reference, spacing_mm=spacing)
    assert found.mean_mm == pytest.approx((forth.sum() + back.sum()) / (forth.size + back.size), rel=ROUNDING)
    assert found.hausdorff95_mm == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)), rel=ROUNDING)


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(5)
    label = rng.random(20_000) < 0.1
    return np.clip(0.3 * label + rng.normal(0.4, 0.2, label.size), 0, 1).astype(np.float16), label


def test_the_curve_equals_scikit_learns(noisy):
    found = metrics.roc(*noisy)
    fpr, tpr, thresholds = sklearn_metrics.roc_curve(noisy[1], noisy[0].astype(np.float64), drop_intermediate=False)
    np.testing.assert_allclose(found.false_positive_rate, fpr, rtol=ROUNDING)
    np.testing.assert_allclose(found.true_positive_rate, tpr, rtol=ROUNDING)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    assert metrics.auc(_counts(*noisy)) == pytest.approx(sklearn_metrics.roc_auc_score(noisy[1], noisy[0]))


def test_cutoffs_equal_those_of_trying_them_all(noisy):
    probability, label = noisy
    counts = _counts(*noisy)
    tried = np.unique(probability)[::-1]
    dice = [metrics.dice(probability >= t, label) for t in tried]
    sensitivity = np.array([metrics.sensitivity(probability >= t, label) for t in tried])
    specificity = np.array([metrics.specificity(probability >= t, label) for t in tried])
    assert metrics.best_dice(counts) == tried[np.argmax(dice)]
    assert metrics.youden(counts) == tried[np.argmax(sensitivity + specificity)]
    assert metrics.at_specificity(counts, 0.95) == tried[specificity >= 0.95].min()


@pytest.mark.parametrize(
    "function", [metrics.confusion, metrics.dice, metrics.ppv, metrics.sensitivity, metrics.specificity]
)
def test_unequal_shapes_are_refused(function):
    with pytest.raises(
        ValueError, match=r"expected arrays of one shape\. Received: shapes \(2, 1, 1\) and \(3, 1, 1\)"
    ):
        function(_mask("##"), _mask("###"))


def test_masks_that_are_not_bool_are_refused():
    with pytest.raises(ValueError, match=r"expected bool masks\. Received: dtypes uint8 and bool"):
        metrics.dice(np.ones(3, np.uint8), np.ones(3, bool))
    with pytest.raises(ValueError, match="expected bool masks"):
        metrics.surface_distances(_mask("##"), _mask("##").astype(int), spacing_mm=(1, 1, 1))


@pytest.mark.parametrize(("value", "shown"), [(1.5, "max=1.5"), (-0.25, "min=-0.25"), (np.nan, "min=nan")])
def test_values_that_are_no_probability_are_refused(value, shown):
    with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\]\. Received: .*" + shown):
        _counts([0.5, value], [0, 1])


def test_counting_takes_float16_only():
    with pytest.raises(ValueError, match=r"expected float16 probabilities\. Received: dtype=float32"):
        metrics.VoxelCounts().add(np.zeros(2, np.float32), np.zeros(2, bool))


@pytest.mark.parametrize("label", [[0, 0], [1, 1]])
def test_cutoffs_need_both_classes(label):
    counts = _counts([0.5, 0.25], label)
    for choose in (metrics.youden, metrics.best_dice, lambda c: metrics.at_specificity(c, 0.9)):
        with pytest.raises(ValueError, match="expected voxels of bone and of background"):
            choose(counts)


def test_a_specificity_out_of_reach_is_refused():
    with pytest.raises(ValueError, match=r"expected a specificity of at most 0\.500000\. Received: specificity=0\.9"):
        metrics.at_specificity(_counts([1.0, 1.0, 0.0], [1, 0, 0]), 0.9)


@pytest.mark.parametrize(("mask", "reference"), [("..", "#."), ("#.", ".."), ("..", "..")])
def test_empty_masks_have_no_surface_distance(mask, reference):
    found = metrics.surface_distances(_mask(mask), _mask(reference), spacing_mm=(1, 1, 1))
    assert math.isnan(found.mean_mm)
    assert math.isnan(found.hausdorff95_mm)


def test_without_a_class_its_rate_and_the_area_are_nan():
    counts = _counts([0.5, 0.25], [1, 1])
    found = metrics.curve(counts)
    assert np.isnan(found.false_positive_rate).all()
    np.testing.assert_array_equal(found.true_positive_rate, [0, 0.5, 1])
    assert math.isnan(metrics.auc(counts))


def test_nothing_counted_is_nan():
    assert math.isnan(metrics.auc(metrics.VoxelCounts()))


def test_the_ends_of_the_scale_are_counted():
    counts = _counts([0.0, -0.0, 1.0], [0, 0, 1])
    assert counts.negatives[0] == 2
    assert counts.positives[-1] == 1
    assert metrics.FLOAT16_VALUES[[0, -1]].tolist() == [0, 1]
