"""What a block holds: by hand on one axis, then against the patches at its voxels."""

import numpy as np
import pytest

from femur_tf import blocks
from femur_tf.config import BlockConfig, PatchConfig
from femur_tf.patches import Cutter
from tests import networks

RULE = PatchConfig(size=4, spacing_mm=(1.0, 1.0, 1.0), scales_mm=(0.0, 3.0))
BLOCK = BlockConfig(apart=(2, 3, 4), samples=(3, 2, 2))


def test_voxels_lie_apart_from_the_corner_on():
    x, y, z = blocks.voxels(BLOCK, np.array([5, 0, 1]))
    assert (x.tolist(), y.tolist(), z.tolist()) == ([5, 7, 9], [0, 3], [1, 5])
    assert (BLOCK.extent, BLOCK.count) == ((5, 4, 5), 12)


@pytest.mark.parametrize(
    ("step", "phase", "expected"),
    [(1, 0, [0, 2, 4]), (2, 1, [0, 1, 2]), (3, 0, [0, 0, 1]), (3, 1, [0, 1, 1]), (3, 2, [0, 1, 2]), (4, 0, [0, 0, 1])],
)
def test_offsets_are_cells_from_the_first_voxels_cell(step, phase, expected):
    assert blocks.offsets(BLOCK, 0, step, phase).tolist() == expected
    assert max(expected) <= BLOCK.cells(0, step)


def test_labels_beyond_the_volume_are_outside():
    mask = np.zeros((8, 3, 6), bool)
    mask[7] = True
    found = blocks.labels(mask, BLOCK, np.array([5, 0, 1]))
    assert found[:, 0, 0].tolist() == [0, 1, blocks.OUTSIDE]
    assert (found[:, 1] == blocks.OUTSIDE).all()


@pytest.mark.parametrize("corner", [(0, 0, 0), (1, 2, 3), (5, 3, 2), (8, 8, 8)])
def test_a_block_holds_the_patches_of_its_voxels(corner):
    """The guard of the design, for blocks: what was written equals what inference reads at the same voxel."""
    grid = networks.volume((9, 9, 9))
    cutter, corner = Cutter.of(grid, RULE), np.array(corner)
    planes = blocks.cut(cutter, BLOCK, corner)
    assert [part.shape for part in planes] == blocks.shapes(RULE, BLOCK)
    places = blocks.voxels(BLOCK, corner)
    for tower, (scale, plane) in enumerate(RULE.towers):
        across, rows, columns = blocks.PLANE_AXES[plane]
        for index in np.ndindex(*BLOCK.samples):
            voxel = [places[axis][index[axis]] for axis in range(3)]
            if any(v >= 9 for v in voxel):
                continue
            a, b = (
                blocks.offsets(BLOCK, axis, RULE.steps[scale][axis], corner[axis])[index[axis]]
                for axis in (rows, columns)
            )
            patch = planes[tower][index[across], a : a + 5, b : b + 5]
            np.testing.assert_array_equal(patch, cutter.cut([voxel], extra=True)[0, :, :, tower])


def test_a_corner_outside_is_refused():
    with pytest.raises(IndexError, match=r"Expected a corner inside the volume .* Received: \[9, 0, 0\]"):
        blocks.cut(Cutter.of(networks.volume((9, 9, 9)), RULE), BLOCK, np.array([9, 0, 0]))


@pytest.mark.parametrize("bad", [{"per_case": 0}, {"apart": (0, 1, 1)}, {"samples": (1, 1, 65)}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"BlockConfig.{next(iter(bad))}: expected"):
        BlockConfig(**bad)
