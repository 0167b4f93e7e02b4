"""Command: how fast patches are cut, written and read, and how long a training step waits for them.

One scale, 33 x 33 x 3 bytes a patch, of a volume of noise that is made here. Rates
are items a second on the wall, start-up excluded; `*_cpu_us` is what one item costs in
CPU time, over all processes and threads, which other work on the machine hardly changes.

    cut_per_s              patches cut by one process, as training reads them (32 x 32)
    write_per_s            records cut, encoded, written and hashed by the processes together
    read_per_s             records read from the disk's cache through the whole tf.data pipeline, shuffled, to a batch
    input_wait_fraction    share of a training step of the `default` network, augmentation included, that waits
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from data_prep import sampling, write_records
from femur_tf import command, config, records, tfrecords
from femur_tf.errors import DataError
from femur_tf.patches import Cutter

RULE = config.PatchConfig(scales_mm=(0.0,))
SHAPE = (256, 256, 128)
"""Voxels of the volume: more than a second-level cache holds."""
CASE = "noise"
WARM_UP_STEPS = 10
START_LIMIT_S = 300


@dataclasses.dataclass(frozen=True)
class PipelineArguments:
    """Measure cutting, writing, reading and the wait for input; print one JSON line.

    Example: python -m benchmarks.pipeline
    """

    shards: int = 8
    """Files written and read."""
    examples: int = 9000
    """Records in each."""
    steps: int = 60
    """Training steps timed, after a warm-up."""
    processes: int = 2
    """Processes that write."""


@dataclasses.dataclass
class Timer:
    """Time spent inside a `with` block."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    """Of all threads of this process."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Add the time that the block takes."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu

    def rates(self, name: str, count: int) -> dict[str, float]:
        """Return items a second and CPU microseconds an item."""
        return {f"{name}_per_s": round(count / self.wall_s), f"{name}_cpu_us": round(1e6 * self.cpu_s / count, 1)}


def volume() -> np.ndarray:
    """Return the volume, always the same."""
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def draw(number: int, count: int) -> sampling.Draw:
    """Return the examples of one shard: random centres and labels."""
    rng = np.random.default_rng([1, number])
    label = rng.integers(0, 2, count)
    return sampling.Draw(rng.integers(0, SHAPE, (count, 3)), label, label.astype(np.uint8))


def time_cutting(arguments: PipelineArguments) -> dict[str, float]:
    """Measure cutting, as many patches at a time as a shard holds."""
    cutter, draws = Cutter.of(volume(), RULE), [draw(n, arguments.examples) for n in range(arguments.shards)]
    cutter.cut(draws[0].centres)
    timer = Timer()
    with timer.running():
        for examples in draws:
            cutter.cut(examples.centres)
    return timer.rates("cut", arguments.shards * arguments.examples)


class _Worker:
    """What a writing process keeps: made before the clock starts."""

    cutter: Cutter


def _warm_up(started: multiprocessing.synchronize.Barrier) -> None:
    """Do once, in each process, what only the first record costs, and wait for the other processes."""
    _Worker.cutter = Cutter.of(volume(), RULE)
    with tempfile.TemporaryDirectory() as folder:
        tfrecords.write(Path(folder) / "first", write_records.encode_all(draw(0, 50), _Worker.cutter, CASE))
    started.wait(START_LIMIT_S)


def _write(folder: Path, number: int, arguments: PipelineArguments) -> tuple[records.Shard, float]:
    """Write one shard as data_prep.write_records does; return it with the CPU seconds taken."""
    examples = draw(number, arguments.examples)
    begin = time.process_time()
    name = records.shard_name(CASE, number, arguments.shards)
    tfrecords.write(folder / name, write_records.encode_all(examples, _Worker.cutter, CASE))
    entry = records.file_entry(folder, name)
    bone = int(examples.label.sum())
    shard = records.Shard(entry, CASE, {"bone": bone, "near": arguments.examples - bone, "far": 0})
    return shard, time.process_time() - begin


def time_writing(folder: Path, arguments: PipelineArguments) -> tuple[records.Manifest, dict[str, float]]:
    """Measure writing all shards, in several processes that are warm."""
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(arguments.processes + 1)
    timer = Timer()
    with ProcessPoolExecutor(arguments.processes, context, _warm_up, (started,)) as pool:
        for _ in range(arguments.processes):
            pool.submit(time.sleep, 0)  # a process starts when there is something to do
        started.wait(START_LIMIT_S)
        with timer.running():
            written = [pool.submit(_write, folder, number, arguments) for number in range(arguments.shards)]
            found = [job.result() for job in written]
    timer.cpu_s += sum(cpu_s for _, cpu_s in found)
    case = records.CaseRecords(CASE, "train", tuple(shard for shard, _ in found), fingerprint="")
    manifest = records.Manifest(config.DataConfig(patch=RULE), "patches", (case,))
    return manifest, timer.rates("write", manifest.count("train"))


def time_reading(folder: Path, manifest: records.Manifest, epochs: int = 2) -> dict[str, float]:
    """Measure reading whole epochs, the filling of the shuffle buffer included, after one that is not counted."""
    from femur_tf import dataset

    batch = config.TrainConfig.batch
    plain = config.AugmentConfig(flip=False, intensity_scale=0, intensity_shift=0, rotation_degrees=0)
    batches = iter(dataset.batches(folder, manifest, "train", batch=batch, training=plain, epochs=range(1 + epochs)))
    for _ in range(-(-manifest.count("train") // batch)):
        next(batches)
    timer, count = Timer(), 0
    with timer.running():
        for patch, _ in batches:
            count += len(patch)
    return timer.rates("read", count)


def time_waiting(folder: Path, manifest: records.Manifest, steps: int) -> dict[str, float]:
    """Measure the share of a training step spent waiting for its batch."""
    from femur_tf import dataset, training

    preset = config.PRESETS["default"]
    network = training.compiled(config.RunConfig(manifest.data, preset.model, preset.train))
    batch, augment = preset.train.batch, preset.train.augment
    epochs = range(1 + (WARM_UP_STEPS + steps) * batch // manifest.count("train"))
    batches = iter(dataset.batches(folder, manifest, "train", batch=batch, training=augment, epochs=epochs))
    for example in itertools.islice(batches, WARM_UP_STEPS):
        network.train_on_batch(*example)
    waiting, step = Timer(), Timer()
    for _ in range(steps):
        with step.running():
            with waiting.running():
                example = next(batches)
            network.train_on_batch(*example)
    return {"input_wait_fraction": round(waiting.wall_s / step.wall_s, 4), "step_s": round(step.wall_s / steps, 4)}


def measure(arguments: PipelineArguments) -> dict[str, float]:
    """Measure all; the files are removed at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = time_cutting(arguments)
        manifest, written = time_writing(folder, arguments)
        result |= written | time_reading(folder, manifest) | time_waiting(folder, manifest, arguments.steps)
    return result


def main(arguments: PipelineArguments) -> None:
    """Print the figures."""
    for name, value in dataclasses.asdict(arguments).items():
        if value < 1:
            raise DataError(f"--{name}: expected at least 1. Received: {value}.")
    print(json.dumps(measure(arguments)))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command.run(main, PipelineArguments)
