"""A patch network trained on blocks: at all voxels of a block at once, by its dense form.

`BlockNetwork` gives, for a batch of blocks, the probability that the patch network
gives for each voxel's patch, and its gradient is that of these patches together: the
variables are the patch network's own. In training two things differ: a sample that is
dropped is dropped for all patches of the block that read it, and batch normalisation
takes the statistics of the block's maps, in which a sample counts once.

Samples lie `apart` voxels apart. A tower whose cells are so many times smaller than
that strides its first poolings, as a patch does, as long as their windows divide it;
what is left is computed at every cell and thinned out at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from femur_tf import dense
from femur_tf.block_dataset import Batch
from femur_tf.config import BlockConfig, PatchConfig
from femur_tf.dense_steps import taps_apart
from femur_tf.patch_config import PLANE_AXES


class BlockNetwork(keras.Model):
    """The patch network on blocks.

    Args:
      network: a Sequential on the patches of `rule`, with a dense form.
      rule: the patch rule.
      block: what a block is.

    Raises:
      NotDenseError: a layer has no dense form, or none that can be trained.
    """

    def __init__(self, network: keras.Sequential, rule: PatchConfig, block: BlockConfig) -> None:
        """Collect the dense form."""
        super().__init__(name="blocks")
        self.network, self.rule, self.block = network, rule, block
        self.form, self.parameters = dense.live(network, rule)

    def call(self, inputs: Any) -> Any:
        """Evaluate a batch.

        Args:
          inputs: a `block_dataset.Batch` of B blocks.

        Returns:
          (B * voxels, 1) float32 probabilities, block by block, x slowest.
        """
        batch = Batch(*inputs)
        sums = 0.0
        for tower, parameters in enumerate(self.parameters()):
            sums = sums + self._tower(tower, batch, parameters)
        return ops.reshape(self.form.head(sums), (-1, 1))

    def _tower(self, tower: int, batch: Batch, parameters: Sequence[Any]) -> Any:
        """Return a tower's share of the first Dense layer, (B, x, y, z, units)."""
        scale, plane = self.rule.towers[tower]
        axes, samples = PLANE_AXES[plane], self.block.samples
        across, rows, columns = batch.planes[tower].shape[1:]
        ways = [self._way(self.rule.steps[scale][axis], axis) for axis in axes[1:]]
        strided = (ways[0][0], ways[1][0])
        short = [self.form.short(length, way) for length, way in zip((rows, columns), strided, strict=True)]
        images = ops.reshape(batch.planes[tower], (-1, rows, columns))
        # What pooling may leave out at the end; a mirror image, to look like the rest to batch normalisation.
        images = ops.pad(images, ((0, 0), (0, short[0]), (0, short[1])), mode="symmetric")
        maps = self.form.evaluate(images, parameters, strided)
        for place, (axis, (_, apart)) in enumerate(zip(axes[1:], ways, strict=True), start=1):
            if apart is not None:
                index = [slice(None)] * 4
                index[place] = slice(0, apart * (samples[axis] - 1) + 1, apart)
                maps = maps[tuple(index)]
            else:
                maps = _taken(maps, ops.repeat(batch.offsets[scale][axis], across, axis=0), place)
        maps = ops.reshape(maps, (-1, *(samples[axis] for axis in axes), self.form.units))
        return ops.transpose(maps, (0, *(1 + axes.index(axis) for axis in range(3)), 4))

    def _way(self, step: int, axis: int) -> tuple[int, int | None]:
        """Return how many poolings are strided along an axis, and how far apart the samples wanted then lie.

        None where that is not the same for all samples: a cell is no divisor of their distance.
        """
        apart = self.block.apart[axis]
        if apart % step:
            return 0, None
        apart //= step
        windows = self.form.windows
        strided = max(n for n in range(len(windows) + 1) if apart % taps_apart(windows[:n], 0) == 0)
        return strided, apart // taps_apart(windows[:strided], 0)


def _taken(maps: Any, index: Any, axis: int) -> Any:
    """Return some rows (axis 1) or columns (axis 2) of maps (N, A, B, C), of each plane its own (N, n)."""
    shape = [-1, 1, 1, 1]
    shape[axis] = index.shape[1]
    wide = list(maps.shape)
    wide[0], wide[axis] = ops.shape(maps)[0], index.shape[1]
    return ops.take_along_axis(maps, ops.broadcast_to(ops.reshape(index, shape), wide), axis=axis)
