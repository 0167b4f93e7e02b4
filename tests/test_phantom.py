"""femur_tf.phantom: a synthetic hip MR and its true mask."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from femur_tf import metrics, phantom, postprocess, solids

COARSE = {"shape": (72, 72, 14), "spacing_mm": (3.6, 3.6, 10.4)}  # the same field of view, an eighth of the voxels
NEAR_MM = 1e-3  # float32 at some 100 mm
SEEDS = st.integers(0, 10_000)


def _points(*points):
    """Points (x, y, z) -> (3, N) float32."""
    return np.array(points, np.float32).T


@pytest.fixture(scope="module")
def case():
    return phantom.make(np.random.default_rng(2017))


@pytest.mark.parametrize(
    ("solid", "point", "distance_mm"),
    [
        (solids.Ellipsoid((1, 2, 3), (5, 5, 5)), (1, 2, 11), 3),
        (solids.Ellipsoid((0, 0, 0), (5, 5, 5)), (0, 3, 0), -2),
        (solids.Ellipsoid((0, 0, 0), (2, 4, 8)), (0, 4, 0), 0),
        (solids.Ellipsoid((0, 0, 0), (2, 4, 8)), (0, 0, -8), 0),
        (solids.Cone((0, 0, 0), (10, 0, 0), 2, 2), (5, 6, 0), 4),  # beside the middle
        (solids.Cone((0, 0, 0), (10, 0, 0), 2, 2), (13, 4, 0), 3),  # beyond the end: 5 away
        (solids.Cone((0, 0, 0), (10, 0, 0), 2, 4), (5, 0, 0), -3),  # half way, half the change
    ],
)
def test_distances_by_hand(solid, point, distance_mm):
    assert solid.distance_mm(_points(point))[0] == pytest.approx(distance_mm, abs=NEAR_MM)


def test_a_union_is_filleted_where_its_solids_meet():
    pair = (solids.Ellipsoid((0, 0, 0), (4, 4, 4)), solids.Ellipsoid((8, 0, 0), (4, 4, 4)))
    between, away = solids.union(pair, _points((4, 0, 0), (-6, 0, 0)), blend_mm=2)
    assert between == pytest.approx(-0.5, abs=NEAR_MM)  # blend_mm / 4 deep
    assert away == pytest.approx(2, abs=NEAR_MM)


def test_the_grid_is_an_oblique_coronal_stack(case):
    assert nib.aff2axcodes(case.image.affine) == ("L", "I", "P")
    np.testing.assert_allclose(nib.affines.voxel_sizes(case.image.affine), (1.8, 1.8, 5.2))
    assert np.count_nonzero(np.abs(case.image.affine[:3, :3]) > 0.01) == 9
    assert case.image.data.shape == case.mask.shape == (144, 144, 28)
    assert case.image.data.dtype == np.int16
    assert case.mask.dtype == bool


def test_there_are_two_femurs_cut_by_the_field_of_view(case):
    clusters, count = ndimage.label(case.mask)
    assert count == 2
    for label in (1, 2):
        femur = clusters == label
        cm3 = femur.sum() * 1.8 * 1.8 * 5.2 / 1000
        assert 60 < cm3 < 180
        assert femur[:, -1].any()  # the shaft, downwards
        assert not femur[:, 0].any()
        assert not femur[[0, -1]].any()
        assert not femur[:, :, [0, -1]].any()
    labels = postprocess.sides(case.mask, case.image.affine)
    assert labels[:72].max() == 2  # axis code L: low index is the patient's right
    assert set(np.unique(labels[:72])) == {0, 2}


def test_the_mask_is_geometry_at_the_voxel_centres():
    rng = np.random.default_rng(4)
    case = phantom.make(rng, **COARSE)
    anatomy = phantom.draw_anatomy(np.random.default_rng(4))
    index = np.argwhere(case.mask | ndimage.binary_dilation(case.mask))
    points = (index @ case.image.affine[:3, :3].T + case.image.affine[:3, 3]).T.astype(np.float32)
    distance = np.minimum(*[phantom.femur_distance_mm(hip, points) for hip in anatomy.hips])
    clear = np.abs(distance) > NEAR_MM
    np.testing.assert_array_equal(case.mask[tuple(index.T)][clear], (distance <= 0)[clear])


def test_the_centre_of_the_head_is_bone_and_the_socket_is_not():
    anatomy = phantom.draw_anatomy(np.random.default_rng(9))
    for hip in anatomy.hips:
        x, y, z = hip.frame.origin
        roof = z + hip.head_mm + hip.joint_mm + 5
        points = _points((x, y, z), (x, y, roof))
        assert (phantom.femur_distance_mm(hip, points) < 0).tolist() == [True, False]
        assert (phantom.pelvis_distance_mm(hip, points) < 0).tolist() == [False, True]


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(SEEDS)
def test_the_same_seed_gives_the_same_case(seed):
    first, second = (phantom.make(np.random.default_rng(seed), **COARSE) for _ in range(2))
    np.testing.assert_array_equal(first.image.data, second.image.data)
    np.testing.assert_array_equal(first.image.affine, second.image.affine)
    np.testing.assert_array_equal(first.mask, second.mask)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_femur_and_pelvis_never_touch(seed):
    anatomy = phantom.draw_anatomy(np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    for hip in anatomy.hips:
        points = (np.array(hip.frame.origin)[:, None] + rng.uniform(-60, 60, (3, 4000))).astype(np.float32)
        gap = np.maximum(phantom.femur_distance_mm(hip, points), phantom.pelvis_distance_mm(hip, points))
        assert gap.min() > 0


@settings(max_examples=6, deadline=None)
@given(SEEDS)
def test_every_case_holds_both_femurs(seed):
    case = phantom.make(np.random.default_rng(seed), **COARSE)
    counts = np.bincount(postprocess.sides(case.mask, case.image.affine).ravel(), minlength=3)
    assert counts[1:].min() > 400
    assert 0.5 < counts[1] / counts[2] < 2


def test_anatomy_changes_from_case_to_case():
    rng = np.random.default_rng(1)
    first, second = phantom.make(rng, **COARSE), phantom.make(rng, **COARSE)
    assert metrics.dice(first.mask, second.mask) < 0.95
    assert not np.allclose(first.image.affine, second.image.affine)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_intensity_alone_cannot_find_the_femur(seed):
    case = phantom.make(np.random.default_rng(seed), **COARSE)
    data = case.image.data
    windows = [(low, high) for low in range(0, 700, 100) for high in range(low + 100, 1000, 100)]
    assert max(metrics.dice((data >= low) & (data < high), case.mask) for low, high in windows) < 0.3


def test_marrow_of_femur_and_pelvis_and_fat_are_of_like_brightness(case):
    anatomy = phantom.draw_anatomy(np.random.default_rng(2017))
    index = np.indices(case.mask.shape).reshape(3, -1)
    points = (case.image.affine[:3, :3] @ index + case.image.affine[:3, 3:]).astype(np.float32)
    data = case.image.data.ravel()
    femur = np.minimum(*[phantom.femur_distance_mm(hip, points) for hip in anatomy.hips])
    pelvis = np.minimum(*[phantom.pelvis_distance_mm(hip, points) for hip in anatomy.hips])
    marrow, other = np.median(data[femur < -8]), np.median(data[pelvis < -6])
    assert 0.75 < marrow / other < 1.33
    bright = data > 0.8 * min(marrow, other)
    assert bright[(femur > 5) & (pelvis > 5)].sum() > 2 * case.mask.sum()  # fat


def test_noise_is_rician_in_air(case):
    air = case.image.data[:3, :20, 20:]
    assert air.min() >= 0
    assert 5 < air.mean() < 30
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.1)  # Rayleigh


@pytest.mark.parametrize(
    "size", [{"shape": (0, 10, 10)}, {"spacing_mm": (1.0, 1.0, 0.0)}, {"spacing_mm": (1.0, -1.0, 1.0)}]
)
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"expected sizes of at least 1 and spacings above 0\. Received: shape="):
        phantom.make(np.random.default_rng(0), **size)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 3)])
def test_tiny_volumes_are_made(shape):
    assert phantom.make(np.random.default_rng(0), shape=shape).image.data.shape == shape
