"""Which voxels become examples: kinds by hand, shares, repeatability, shortage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from data_prep.sampling import BONE, FAR, NEAR, asked, draw_centres, kinds, shared_out
from femur_tf.config import SamplingConfig
from femur_tf.records import KINDS


def _mask(shape: tuple[int, int, int], *places: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def _ball(shape: tuple[int, int, int] = (24, 20, 16), radius: float = 4.0) -> np.ndarray:
    grid = np.stack(np.indices(shape), axis=-1)
    return np.linalg.norm(grid - np.array(shape) // 2, axis=-1) <= radius


ANY = 1e6
"""A `near_volume` that leaves distance alone to decide."""


@pytest.mark.parametrize(
    ("near_mm", "expected"),
    [
        (1.9, [FAR, FAR, FAR, BONE, FAR, FAR, FAR]),  # the neighbours lie 2 mm away
        (2.0, [FAR, FAR, NEAR, BONE, NEAR, FAR, FAR]),  # the limit itself is near
        (5.9, [FAR, NEAR, NEAR, BONE, NEAR, NEAR, FAR]),
        (6.0, [NEAR, NEAR, NEAR, BONE, NEAR, NEAR, NEAR]),
    ],
)
def test_a_line_of_voxels_has_kinds_by_distance_in_mm(near_mm: float, expected: list[int]) -> None:
    mask = _mask((7, 1, 1), (3, 0, 0))
    config = SamplingConfig(near_mm=near_mm, near_volume=ANY)
    assert kinds(mask, spacing_mm=(2.0, 1.0, 1.0), config=config)[:, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("near_volume", "expected"),
    [
        (0.5, [FAR, FAR, NEAR, BONE, BONE, NEAR, FAR, FAR, FAR]),  # one voxel wanted; both of its distance are taken
        (1.0, [FAR, FAR, NEAR, BONE, BONE, NEAR, FAR, FAR, FAR]),
        (1.1, [FAR, NEAR, NEAR, BONE, BONE, NEAR, NEAR, FAR, FAR]),  # three wanted, two a distance
        (2.5, [NEAR, NEAR, NEAR, BONE, BONE, NEAR, NEAR, NEAR, FAR]),
        (9.0, [NEAR, NEAR, NEAR, BONE, BONE, NEAR, NEAR, NEAR, FAR]),  # the distance ends it
    ],
)
def test_near_holds_so_many_times_the_voxels_of_the_femur(near_volume: float, expected: list[int]) -> None:
    mask = _mask((9, 1, 1), (3, 0, 0), (4, 0, 0))
    config = SamplingConfig(near_mm=6.0, near_volume=near_volume)
    assert kinds(mask, spacing_mm=(2.0, 1.0, 1.0), config=config)[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_near_reaches_as_far_as_the_femur_is_large(scale: float) -> None:
    """The same shape at another size has the same kinds."""
    config = SamplingConfig(near_mm=100.0, near_volume=1.5)
    kind = kinds(_ball(), spacing_mm=(scale,) * 3, config=config)
    assert np.array_equal(kind, kinds(_ball(), spacing_mm=(1.0,) * 3, config=config))
    assert np.count_nonzero(kind == NEAR) == pytest.approx(1.5 * np.count_nonzero(kind == BONE), rel=0.25)


@pytest.mark.parametrize(
    ("per_case", "bone", "near", "expected"),
    [
        (100, 0.35, 0.35, (35, 35, 30)),
        (10, 0.5, 0.5, (5, 5, 0)),
        (3, 0.5, 0.5, (2, 1, 0)),  # halves: rounded so that the sum stays
        (1, 0.5, 0.5, (0, 1, 0)),
        (10, 0.5, 0.0, (5, 0, 5)),
    ],
)
def test_counts_follow_the_shares_and_add_up(
    per_case: int, bone: float, near: float, expected: tuple[int, int, int]
) -> None:
    assert tuple(asked(SamplingConfig(per_case=per_case, share_bone=bone, share_near=near)).values()) == expected


@given(wanted=st.dictionaries(st.sampled_from(KINDS), st.integers(0, 10_000), min_size=1), volumes=st.integers(1, 200))
def test_what_is_shared_out_adds_up_and_is_even(wanted: dict[str, int], volumes: int) -> None:
    shares = shared_out(wanted, volumes)
    assert len(shares) == volumes
    for name, count in wanted.items():
        counts = [share[name] for share in shares]
        assert sum(counts) == count
        assert max(counts) - min(counts) <= 1


def test_a_draw_has_the_asked_counts() -> None:
    config = SamplingConfig(per_case=200, near_mm=3.0)
    draw = draw_centres(_ball(), asked(config), spacing_mm=(1.0, 1.0, 1.0), config=config, rng=np.random.default_rng(1))
    assert np.bincount(draw.kind, minlength=3).tolist() == [70, 70, 60]
    assert (draw.centres.dtype, draw.label.dtype, draw.kind.dtype) == (np.int64, np.int64, np.uint8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), per_case=st.integers(1, 4000))
def test_no_voxel_is_drawn_twice_and_each_has_its_own_label_and_kind(seed: int, per_case: int) -> None:
    mask, config = _ball(), SamplingConfig(per_case=per_case, near_mm=3.0)
    rng = np.random.default_rng(seed)
    draw = draw_centres(mask, asked(config), spacing_mm=(1.0, 1.5, 2.0), config=config, rng=rng)
    places = tuple(draw.centres.T)
    assert len(np.unique(draw.centres, axis=0)) == len(draw.centres)
    assert np.array_equal(draw.label, mask[places].astype(np.int64))
    assert np.array_equal(draw.kind, kinds(mask, spacing_mm=(1.0, 1.5, 2.0), config=config)[places])
    there = np.bincount(kinds(mask, spacing_mm=(1.0, 1.5, 2.0), config=config).ravel(), minlength=len(KINDS))
    assert (
        np.bincount(draw.kind, minlength=len(KINDS)).tolist()
        == np.minimum(list(asked(config).values()), there).tolist()
    )


def test_the_same_seed_gives_the_same_draw_and_another_seed_another() -> None:
    def centres(seed: int) -> np.ndarray:
        config = SamplingConfig(per_case=100)
        return draw_centres(
            _ball(), asked(config), spacing_mm=(1.0,) * 3, config=config, rng=np.random.default_rng(seed)
        ).centres

    assert np.array_equal(centres(5), centres(5))
    assert not np.array_equal(centres(5), centres(6))


def test_kinds_are_mixed_along_the_draw() -> None:
    config = SamplingConfig(per_case=200, near_mm=3.0)
    draw = draw_centres(_ball(), asked(config), spacing_mm=(1.0,) * 3, config=config, rng=np.random.default_rng(1))
    assert set(draw.kind[:40].tolist()) == {BONE, NEAR, FAR}


def test_each_voxel_of_a_kind_is_equally_likely() -> None:
    mask = _mask((10, 1, 1), *[(x, 0, 0) for x in range(10)])
    config = SamplingConfig(per_case=5, share_bone=0.99, share_near=0.0)
    rng, seen = np.random.default_rng(3), np.zeros(10)
    for _ in range(400):
        seen[draw_centres(mask, asked(config), spacing_mm=(1.0,) * 3, config=config, rng=rng).centres[:, 0]] += 1
    assert seen.min() > 150 and seen.max() < 250  # 200 expected, standard deviation 10


def test_near_equals_the_distance_to_the_closest_bone_voxel_of_all() -> None:
    rng, spacing_mm = np.random.default_rng(7), (0.9, 1.1, 5.2)
    mask = rng.random((12, 11, 6)) < 0.01
    distance_mm = cdist(np.argwhere(~mask) * spacing_mm, np.argwhere(mask) * spacing_mm).min(axis=1)
    config = SamplingConfig(near_mm=4.0, near_volume=ANY)
    assert np.array_equal(kinds(mask, spacing_mm=spacing_mm, config=config)[~mask] == NEAR, distance_mm <= 4.0)


@pytest.mark.parametrize("mask", [np.zeros((2, 2), bool), np.zeros((2, 2, 2), np.uint8)])
def test_another_dtype_or_shape_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a bool mask"):
        draw_centres(mask, {}, spacing_mm=(1.0,) * 3, config=SamplingConfig(), rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        (np.zeros((2, 2, 2), bool), [0, 0, 3]),  # empty: all is far
        (np.ones((2, 2, 2), bool), [4, 0, 0]),  # full: all is bone
        (_mask((3, 1, 1), (0, 0, 0)), [1, 2, 0]),  # tiny: all there is
        (_mask((1, 1, 1), (0, 0, 0)), [1, 0, 0]),
    ],
)
def test_a_kind_with_too_few_voxels_gives_all_it_has(mask: np.ndarray, counts: list[int]) -> None:
    config = SamplingConfig(per_case=10, share_bone=0.4, share_near=0.3)
    draw = draw_centres(mask, asked(config), spacing_mm=(1.0,) * 3, config=config, rng=np.random.default_rng(0))
    assert np.bincount(draw.kind, minlength=len(KINDS)).tolist() == counts
