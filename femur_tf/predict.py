"""Model + working grid -> probability map.

A `Predictor` evaluates its network densely, block by block within a memory limit;
where the network has no dense form it streams patches. `evaluator.by_patches` is the
reference that both must equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
from scipy import ndimage

from femur_tf import command, cover, memory
from femur_tf.config import PatchConfig, PredictConfig
from femur_tf.cover import Box
from femur_tf.dense import DenseNetwork, convert
from femur_tf.dense_steps import NotDenseError, Precision
from femur_tf.errors import DataError
from femur_tf.evaluator import Evaluator, Probe, by_patches, whole
from femur_tf.patch_config import PLANE_AXES

DEFAULT = PredictConfig()
BODY_GREY = 26
"""A tenth of the grey range."""
BODY_SHARE = 0.02
HALO = 14
"""Voxels around a box that its costliest convolution, the third, is evaluated on, along an axis of a plane that is read
at every voxel; what `--fast` weighs boxes by."""
FAST_STEP_MM = 10.0
"""A first pass leaves out voxels along an axis only where its samples stay at most this far apart; a femoral neck is
about 30 mm wide."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}
"""Largest difference in probability between dense and patch-wise evaluation that `verify` accepts."""


def _first_pass(evaluator: Evaluator, result: np.ndarray, threshold: float) -> list[Box]:
    """Fill the map with the probabilities of a strided pass; return the boxes that it leaves in doubt."""
    rule, stride = evaluator.network.rule, evaluator.network.stride
    every = [stride if stride * spacing <= FAST_STEP_MM else 1 for spacing in rule.spacing_mm]
    if max(every) == 1 or not evaluator.network.fine_towers:
        return [whole(result.shape)]
    for box in evaluator.plan.split(whole(result.shape), every):
        found = evaluator.probability(box, every)
        where = tuple(slice(start, stop) for start, stop in box)
        for axis, step in enumerate(every):
            found = np.repeat(found, step, axis=axis)
        result[where] = found[tuple(slice(0, stop - start) for start, stop in box)]
    samples = result[tuple(slice(None, None, step) for step in every)]
    doubt = ndimage.binary_dilation(samples >= threshold, np.ones((3, 3, 3), bool))
    planes = [PLANE_AXES[rule.towers[tower].plane] for tower in evaluator.network.fine_towers]
    halo = [HALO if any(axis in axes[1:] for axes in planes) else 0 for axis in range(3)]
    boxes = cover.cover(doubt, every=every, halo=halo)
    return [_in_voxels(box, every, result.shape) for box in boxes]


def _in_voxels(box: Box, every: Sequence[int], shape: Sequence[int]) -> Box:
    """Return a box of samples, so many voxels apart, in voxels."""
    x, y, z = ((a * step, min(n, b * step)) for (a, b), step, n in zip(box, every, shape, strict=True))
    return x, y, z


def body_box(grid: np.ndarray) -> Box:
    """Return the box between the first and the last plane, along each axis, that shows body.

    A plane shows body where at least `BODY_SHARE` of its voxels are at or above `BODY_GREY`.

    Args:
      grid: (X, Y, Z) uint8 working grid.

    Returns:
      [start, stop) in voxels; the whole volume where no plane shows body.
    """
    bright = grid >= BODY_GREY
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        shown = np.flatnonzero(bright.mean(axis=others) >= BODY_SHARE)
        box.append((int(shown[0]), int(shown[-1]) + 1) if shown.size else (0, grid.shape[axis]))
    x, y, z = box
    return x, y, z


def _aligned(box: Box, steps: Sequence[int], shape: Sequence[int]) -> Box:
    """Return the smallest box around `box` that starts and ends on multiples of `steps`, within the volume."""
    x, y, z = (
        (start // step * step, min(n, -(-stop // step) * step))
        for (start, stop), step, n in zip(box, steps, shape, strict=True)
    )
    return x, y, z


def dense_map(
    network: DenseNetwork,
    grid: np.ndarray,
    options: PredictConfig = DEFAULT,
    probe: Probe | None = None,
    *,
    held_bytes: int = 0,
) -> np.ndarray:
    """Return the probability map of a network with a dense form.

    Args:
      network: the dense form.
      grid: (X, Y, Z) uint8 working grid.
      options: memory limit; coarse to fine or not.
      probe: keeps unrounded probabilities.
      held_bytes: as of `memory.plan_blocks`.

    Returns:
      (X, Y, Z) float16 in [0, 1].

    Raises:
      DataError: the memory limit is below what the smallest block needs.
    """
    plan = memory.plan_blocks(network, grid.shape, options.max_memory, held_bytes=held_bytes)
    evaluator = Evaluator(network, grid, plan)
    result = np.zeros(grid.shape, np.float16)
    boxes = [_aligned(body_box(grid), plan.steps, grid.shape) if options.body_only else whole(grid.shape)]
    if options.fast:
        boxes = [
            _aligned(box, plan.steps, grid.shape) for box in _first_pass(evaluator, result, options.fast_threshold)
        ]
    with command.progress(percent=True) as display:
        task = display.add_task("network", total=float(sum(np.prod([b - a for a, b in box]) for box in boxes)))
        for box in boxes:
            for voxels in evaluator.fill(result, box, probe):
                display.advance(task, voxels)
    return result


def _chosen(options: PredictConfig, verify: int) -> list[str]:
    """Return the flags of all that is not as it is by default."""
    names = [f.name for f in dataclasses.fields(options) if getattr(options, f.name) != getattr(DEFAULT, f.name)]
    return [f"--{name.replace('_', '-')}" for name in [*(["verify"] if verify else []), *names]]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A network that gives probability maps; its dense form is made once, for all volumes."""

    model: keras.Sequential
    """On the patches of `rule`; its weights are not changed from the first map on."""
    rule: PatchConfig
    """The patch rule the model was trained with."""
    _forms: dict[Precision, DenseNetwork] = dataclasses.field(default_factory=dict, init=False)
    """The dense forms made so far."""

    def __post_init__(self) -> None:
        """Refuse a network of logits, whose map would be taken for one of probabilities."""
        last = self.model.layers[-1]
        if getattr(last, "activation", None) is not keras.activations.sigmoid:
            raise ValueError(f"model: expected a last layer with a sigmoid. Received: layer {last.name!r} without one.")

    def dense(self, precision: Precision) -> DenseNetwork:
        """Return the dense form; made again for each volume, its graphs would be traced again.

        Raises:
          NotDenseError: there is none.
        """
        if precision not in self._forms:
            self._forms[precision] = convert(self.model, self.rule, precision)
        return self._forms[precision]

    def probability_map(
        self, grid: np.ndarray, options: PredictConfig = DEFAULT, *, verify: int = 0, held_bytes: int = 0
    ) -> np.ndarray:
        """Return the probability of bone at every voxel of a working grid.

        Args:
          grid: (X, Y, Z) uint8 working grid.
          options: precision, memory limit, coarse to fine or not; without effect where there is no dense form.
          verify: number of random voxels to evaluate as patches too, at least 0.
          held_bytes: as of `memory.plan_blocks`.

        Returns:
          (X, Y, Z) float16 in [0, 1].

        Raises:
          DataError: the memory limit is too low, or a voxel differs from its patch by more than `TOLERANCE`.
        """
        try:
            network = self.dense(options.precision)
        except NotDenseError as error:
            flags = ", ".join(_chosen(options, verify))
            vain = f" Without effect then: {flags}." if flags else ""
            command.warn(f"{error} Going on patch by patch, which takes about a hundred times as long.{vain}")
            return by_patches(self.model, grid, self.rule).reshape(grid.shape).astype(np.float16)
        probe = Probe.draw(grid.shape, verify, np.random.default_rng()) if verify else None
        result = dense_map(network, grid, options, probe, held_bytes=held_bytes)
        if probe:
            self._verify(grid, probe, options.precision)
        return result

    def _verify(self, grid: np.ndarray, probe: Probe, precision: Precision) -> None:
        """Say how far the map is from patches, and raise where that is too far."""
        difference, count = probe.largest_difference(self.model, grid, self.rule), int(probe.seen.sum())
        command.say(f"Largest difference from patches at {count} random voxels: {difference:.2g} ({precision})")
        if not difference <= TOLERANCE[precision]:  # NaN, too
            raise DataError(
                f"--verify: expected a difference of at most {TOLERANCE[precision]:g} in {precision}. "
                f"Received: {difference:.3g}. Use --precision float32, and report it if it persists."
            )
