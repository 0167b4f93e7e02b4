"""Dense evaluation against patch-wise evaluation, and against what the processor can do.

Example: python -m benchmarks.dense --model work/runs/default --work work/

One JSON line. The unit of time is the fastest of three NumPy float32 products of
4096 x 4096 matrices on all cores, taken just before and just after each timed
figure (their mean). Keys are explained in docs/performance.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from femur_tf import command, config, lineage, quiet, study
from femur_tf.errors import DataError

SIDE = 4096
SHAPE = (384, 47, 384)
"""Canonical order of a 384 x 384 x 47 coronal stack."""
SPACING_MM = (0.911, 5.2, 0.911)
"""Of such a stack."""
PROBES = 20_000
REFERENCE_PATCHES = 12_288
BATCHES = (256, 1024, 4096)
MILLION = 1e6
BLOCKS = ((384, 47, 384), (384, 8, 384), (192, 47, 192), (96, 47, 96), (48, 48, 48))
"""Voxels of the blocks that are compared; the first is the whole volume."""


@dataclasses.dataclass(frozen=True)
class DenseArguments:
    """Measure dense evaluation; one JSON line.

    Example: python -m benchmarks.dense --model work/runs/default --work work/
    """

    model: Path | None = None
    """A run or saved model; without one, the untrained `default` network."""
    work: Path | None = None
    """A study of --model: times a case of it, and measures what --fast and bfloat16 change on its validation cases."""
    scale_s: float = 60.0
    """Least seconds for each volume of `scale_spread`."""


def unit_s() -> float:
    """Return the seconds of the fastest of three products."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((SIDE, SIDE), np.float32) for _ in range(2))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


@dataclasses.dataclass(frozen=True)
class Timed:
    """What a function returned, its seconds, and the unit around it."""

    result: Any
    seconds: float
    unit: float

    @property
    def units(self) -> float:
        """Seconds in units."""
        return self.seconds / self.unit


def timed(function: Callable[[], Any]) -> Timed:
    """Call a function between two measurements of the unit."""
    before = unit_s()
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    return Timed(result, seconds, (before + unit_s()) / 2)


def patch_rate(model: Any, grid: np.ndarray, rule: config.PatchConfig) -> tuple[float, float]:
    """Return the voxels a second of `model.predict` at its best batch size, on ready-cut patches and with cutting."""
    from femur_tf.patches import Cutter

    rng = np.random.default_rng(0)
    centres = np.stack([rng.integers(n, size=REFERENCE_PATCHES) for n in grid.shape], axis=1)
    cutter = Cutter.of(grid, rule)
    start = time.perf_counter()
    patches = cutter.cut(centres)
    cutting = time.perf_counter() - start
    model.predict(patches[:256], verbose=0)
    rates = []
    for batch in BATCHES:
        start = time.perf_counter()
        model.predict(patches, batch_size=batch, verbose=0)
        rates.append((time.perf_counter() - start) / len(patches))
    best = min(rates)
    return 1 / best, 1 / (best + cutting / len(patches))


def largest_difference(model: Any, network: Any, grid: np.ndarray) -> float:
    """Return the largest difference from patches, at random voxels, an eighth of them on the border."""
    from femur_tf import evaluator, predict

    rng = np.random.default_rng(1)
    probe = evaluator.Probe.draw(grid.shape, PROBES, rng)
    border = probe.centres[: PROBES // 8]
    axis = rng.integers(3, size=len(border))
    border[np.arange(len(border)), axis] = np.where(rng.random(len(border)) < 0.5, 0, np.array(grid.shape)[axis] - 1)
    predict.dense_map(network, grid, probe=probe)
    return float(probe.largest_difference(model, grid, network.rule))


def scale_spread(network: Any, least_s: float) -> tuple[float, dict[str, float]]:
    """Return the spread of units a million voxels over three sizes, and each of them."""
    from femur_tf import evaluator, memory

    found = {}
    for shape in ((256, 64, 256), (512, 64, 512), (512, 256, 512)):
        grid = np.random.default_rng(2).integers(0, 255, shape, np.uint8)
        plan = memory.plan_blocks(network, shape, config.PredictConfig().max_memory)

        def run(grid: np.ndarray = grid, plan: memory.BlockPlan = plan) -> int:
            start, voxels = time.perf_counter(), 0
            result = np.empty(grid.shape, np.float16)
            while time.perf_counter() - start < least_s:
                work = evaluator.Evaluator(network, grid, plan)  # anew: it keeps the sums of coarse scales
                for block in plan.split(evaluator.whole(grid.shape)):
                    voxels += sum(work.fill(result, block, None))
                    if time.perf_counter() - start >= least_s and not plan.holds_coarse:
                        break
            return voxels

        measured = timed(run)
        found["x".join(map(str, shape))] = measured.units / measured.result * MILLION
    return max(found.values()) / min(found.values()) - 1, found


def units_by_block(network: Any, grid: np.ndarray) -> dict[str, float]:
    """Return the units that a volume takes in blocks of several shapes."""
    from femur_tf import evaluator, memory

    plan, found = memory.plan_blocks(network, grid.shape, config.PredictConfig().max_memory), {}
    for shape in BLOCKS:
        blocks = dataclasses.replace(plan, shape=shape)

        def run(blocks: memory.BlockPlan = blocks) -> None:
            work = evaluator.Evaluator(network, grid, blocks)
            list(work.fill(np.empty(grid.shape, np.float16), evaluator.whole(grid.shape), None))

        found["x".join(map(str, shape))] = timed(run).units
    return found


def _peak(shape: tuple[int, int, int], max_memory: int, out: Any) -> None:
    """Evaluate a volume in a process of its own and send its peak resident memory, in MB."""
    quiet.start_tensorflow()
    from femur_tf import dense, model, predict

    preset = config.PRESETS["default"]
    rule = preset.patch(config.PatchConfig(spacing_mm=SPACING_MM, scales_mm=preset.scales_mm))
    network = dense.convert(model.build(preset.model, rule), rule)
    grid = np.random.default_rng(3).integers(0, 255, shape, np.uint8)
    predict.dense_map(network, grid, config.PredictConfig(max_memory=max_memory))
    # Not getrusage: its maximum survives fork and exec, so that it would be that of the process that measures.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    out.send(int(status["VmHWM"].split()[0]) * 1024 / MILLION)


def peak_mb(shape: tuple[int, int, int], max_memory: int) -> float:
    """Return the peak resident memory of evaluating a volume under a limit, in MB (10^6 bytes).

    Raises:
      DataError: the process that evaluates it ended before it was done, as where memory is short.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(shape, max_memory, sender))
    process.start()
    sender.close()  # the process has its own: where that one ends, so does the pipe
    try:
        peak = float(receiver.recv())
    except EOFError as error:
        process.join()
        raise DataError(
            f"peak_mb: expected a process that evaluates {' x '.join(map(str, shape))} voxels within {max_memory} MB. "
            f"Received: one that ended with status {process.exitcode}. What it said stands above; free memory."
        ) from error
    process.join()
    return peak


def dice_changes(bundle: Any, work: Path) -> dict[str, float]:
    """Return the largest change of a validation case's Dice by --fast and by bfloat16, after the recipe.

    Raises:
      DataError: there are no such cases, or the model was trained on them.
    """
    from femur_tf import bundle as bundles
    from femur_tf import metrics, postprocess, volume

    plan = dataclasses.replace(study.read_plan(work), data=bundle.settings.data)
    ways = {
        "exact": config.PredictConfig(),
        "fast": config.PredictConfig(fast=True),
        "bf16": config.PredictConfig(precision="bfloat16"),
        "fast_bf16": config.PredictConfig(precision="bfloat16", fast=True),
    }
    changes = dict.fromkeys(ways, 0.0)
    cases = study.needed(work, plan, "validation")
    lineage.require_unseen(bundle.folder, [case.name for case in cases], "validation")
    for case in cases:
        loaded = study.load_case(plan, case)
        spacing_mm = loaded.image.volume.spacing_mm
        scores = {}
        for name, options in ways.items():
            own = volume.from_working(bundles.working_map(bundle, loaded.working, options), loaded.image.volume)
            mask = postprocess.apply(own, bundle.recipe, spacing_mm=spacing_mm)
            scores[name] = metrics.dice(mask, loaded.reference)
            changes[name] = max(changes[name], abs(scores[name] - scores["exact"]))
    return changes


def _setting(arguments: DenseArguments) -> tuple[Any, Any, np.ndarray]:
    """Return the bundle (None without --model), the Keras model, and the volume to time."""
    from femur_tf import bundle as bundles
    from femur_tf import model

    if arguments.model is None:
        preset = config.PRESETS["default"]
        rule = preset.patch(config.PatchConfig(spacing_mm=SPACING_MM, scales_mm=preset.scales_mm))
        grid = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
        return rule, model.build(preset.model, rule), grid
    bundle = bundles.load(arguments.model)
    grid = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    if arguments.work:
        plan = dataclasses.replace(study.read_plan(arguments.work), data=bundle.settings.data)
        grid = study.load_case(plan, study.needed(arguments.work, plan, "train")[0]).working.data
    return bundle, bundle.model, grid


def main(arguments: DenseArguments) -> None:
    """Measure, and print one JSON line."""
    if arguments.work and arguments.model is None:
        raise DataError("--work: expected --model with it. Received: none. Name a run of the study, or leave it out.")
    quiet.start_tensorflow()
    from femur_tf import dense, predict

    bundle, model, grid = _setting(arguments)
    rule = bundle if isinstance(bundle, config.PatchConfig) else bundle.settings.data.patch
    exact = {name: dense.convert(model, rule, name) for name in ("float32", "bfloat16")}
    ways = {
        "f32": (exact["float32"], config.PredictConfig()),
        "bf16": (exact["bfloat16"], config.PredictConfig(precision="bfloat16")),
        "fast_f32": (exact["float32"], config.PredictConfig(fast=True)),
        "fast_bf16": (exact["bfloat16"], config.PredictConfig(precision="bfloat16", fast=True)),
    }
    macs = exact["float32"].macs_per_voxel
    line: dict[str, Any] = {"shape": list(grid.shape), "macs_per_voxel": macs}
    for name, (network, options) in ways.items():
        predict.dense_map(network, grid[:96, :, :96], options)  # graphs are traced here
        measured = timed(functools.partial(predict.dense_map, network, grid, options))
        line[f"{name}_units"] = measured.units
        line[f"{name}_s"] = measured.seconds
        line[f"{name}_voxels_per_s"] = grid.size / measured.seconds
        line[f"{name}_gemm_fraction"] = macs * grid.size / measured.seconds / (SIDE**3 / measured.unit)
    ready, cutting = patch_rate(model, grid, rule)
    line["ratio"] = line["f32_voxels_per_s"] / ready
    line["path_ratio"] = line["f32_voxels_per_s"] / cutting
    line["max_abs_diff"] = largest_difference(model, exact["float32"], grid)
    line["gemm_fraction_f32"], line["gemm_fraction_bf16"] = line["f32_gemm_fraction"], line["bf16_gemm_fraction"]
    line["exact_units"] = min(line["f32_units"], line["bf16_units"])
    line["fast_units"] = min(line["fast_f32_units"], line["fast_bf16_units"])
    if arguments.work:
        changes = dice_changes(bundle, arguments.work)
        line["fast_dice_change"] = max(changes["fast"], changes["fast_bf16"])
        line["bf16_dice_change"] = changes["bf16"]
    line["units_by_block"] = units_by_block(exact["float32"], grid)
    line["scale_spread"], line["units_per_million_voxels"] = scale_spread(exact["float32"], arguments.scale_s)
    line["peak_mb"] = peak_mb((512, 60, 512), config.PredictConfig().max_memory)
    line["peak_mb_at_1200"] = peak_mb((512, 60, 512), 1200)
    command.say(json.dumps({name: round(v, 7) if isinstance(v, float) else v for name, v in line.items()}))


if __name__ == "__main__":
    command.run(main, DenseArguments)
