"""What a network costs at segmentation, counted from its settings alone: no TensorFlow, no network built.

The unit is multiply-adds a voxel of dense evaluation (`femur_tf.dense`): a tower of a
coarse scale is evaluated once a cell, one of the finest scale at every voxel.
"""

from __future__ import annotations

import itertools
import math

from femur_tf.config import ModelConfig, PatchConfig
from femur_tf.errors import DataError


def map_sizes(network: ModelConfig, size: int) -> list[int]:
    """Return the side of the map after each block, for patches of `size` samples.

    Raises:
      DataError: a block leaves less than 1 x 1.
    """
    sides = []
    side = size
    for number in range(1, len(network.filters) + 1):
        side = (side - network.kernel + 1) // network.pool
        if side < 1:
            raise DataError(
                f"Expected a network that leaves at least 1x1 before Flatten. Received: block {number} of "
                f"filters={network.filters}, kernel={network.kernel}, pool={network.pool} leaves {side}x{side} "
                f"of a {size}x{size} patch. Use fewer blocks, a smaller kernel or a smaller pool."
            )
        sides.append(side)
    return sides


def centre_start(network: ModelConfig, size: int) -> int:
    """Return the first row, and column, of the window that `network.centre` takes of the first convolution's maps.

    Raises:
      DataError: the window is larger than the maps.
    """
    taps = network.kernel - 1
    start = size // 2 - taps // 2 - network.centre // 2
    if start < 0 or start + network.centre > size - taps:
        raise DataError(
            f"Expected a centre within the maps of the first convolution, {size - taps} x {size - taps}, about the "
            f"patch's. Received: model.centre={network.centre}. Use a smaller one."
        )
    return start


def _convolutions(network: ModelConfig) -> list[int]:
    """Return the size of each convolution's kernel in one tower: what it costs at each place."""
    inputs = (1, *network.filters)
    return [network.kernel**2 * i * o for i, o in zip(inputs, network.filters, strict=False)]


def _dense(network: ModelConfig, size: int) -> tuple[int, int]:
    """Return the cost of one tower's share of the first Dense layer, and of all later layers at one voxel."""
    units = (*network.dense, 1)
    pooled = map_sizes(network, size)[-1] ** 2 * network.filters[-1]
    first = (pooled + network.centre**2 * network.filters[0]) * units[0]
    return first, sum(i * o for i, o in itertools.pairwise(units))


def macs_per_voxel(network: ModelConfig, rule: PatchConfig) -> float:
    """Return the multiply-adds a voxel of dense evaluation.

    Args:
      network: with late fusion; early fusion has no dense form.
      rule: the patch rule.

    Raises:
      DataError: a block leaves less than 1 x 1, or the fusion is early.
    """
    if network.fusion != "late":
        raise DataError(f"Expected a network of late fusion. Received: fusion={network.fusion!r}.")
    first, rest = _dense(network, rule.size)
    cells = sum(1 / math.prod(rule.steps[scale]) for scale, _ in rule.towers)
    return (sum(_convolutions(network)) + first) * cells + rest


def macs_per_patch(network: ModelConfig, rule: PatchConfig) -> int:
    """Return the multiply-adds of one patch, as training evaluates it.

    Raises:
      DataError: a block leaves less than 1 x 1.
    """
    first, rest = _dense(network, rule.size)
    sides = [rule.size, *map_sizes(network, rule.size)]
    places = [(side - network.kernel + 1) ** 2 for side in sides[:-1]]
    convolved = sum(count * kernel for count, kernel in zip(places, _convolutions(network), strict=True))
    return rule.channels * (convolved + first) + rest
