"""Drawn centres -> patches -> sharded TFRecords with a manifest.

One pure function per case (`write_case`) does the work, in several processes; what
it returns is kept beside the shards, so that a run that was killed goes on with the
first unfinished case. The manifest is written last: records without one are
unfinished.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from data_prep import made_from, sampling, variation
from data_prep.forecast import example_bytes, require_disk
from femur_tf import command, config, files, machine, quiet, records, study, tfrecords
from femur_tf.errors import DataError, typed
from femur_tf.patches import Cutter

SHARD_EXAMPLES = 9_000
"""Examples a shard, about: at 6.5 kB an example a shard is 60 MB."""


@dataclasses.dataclass(frozen=True)
class WriteArguments:
    """Write the planned examples of each case as TFRecord shards.

    Example: python -m data_prep.write_records work/

    A run that was interrupted goes on where it stopped.
    """

    work: command.Work
    index_only: bool = False
    """Write centres only; patches are cut while training. Saves the disk, costs time in training."""
    processes: int = dataclasses.field(default_factory=machine.cores)
    """Cases written side by side."""
    overwrite: bool = False
    """Replace records made from another plan."""


def case_rng(seed: int, case: str) -> np.random.Generator:
    """Return the case's own random numbers: adding a case changes no other one's draw."""
    return np.random.default_rng([seed, *hashlib.sha256(case.encode()).digest()[:8]])


@dataclasses.dataclass(frozen=True, eq=False)
class Copy:
    """A volume that examples are drawn from."""

    name: str
    """Of the case; a varied copy's has a tilde and its number."""
    grid: np.ndarray
    """(X, Y, Z) uint8."""
    mask: np.ndarray
    """(X, Y, Z) bool."""
    rng: np.random.Generator


def copies(plan: study.Plan, loaded: study.LoadedCase) -> Iterator[Copy]:
    """Yield the volumes that a case's examples are drawn from: the scan, then varied copies of a training case."""
    name, settings = loaded.case.name, plan.data.variation
    rng = case_rng(plan.data.sampling.seed, name)
    grid, mask = loaded.working.data, loaded.working_mask
    yield Copy(name, grid, mask, rng)
    for number in range(1, plan.volumes(loaded.case)):
        own = case_rng(plan.data.sampling.seed, f"{name}~{number}")
        varied, moved = variation.vary(grid, mask, loaded.working.spacing_mm, settings, own)
        yield Copy(f"{name}~{number}", varied, moved, own)


def draw_copy(
    plan: study.Plan, copy: Copy, wanted: Mapping[str, int], mode: records.Mode
) -> tuple[list[bytes], np.ndarray]:
    """Draw so many examples of each kind from one volume; return them serialized, with the kind of each."""
    spacing_mm, settings = plan.data.patch.spacing_mm, plan.data.sampling
    draw = sampling.draw_centres(copy.mask, wanted, spacing_mm=spacing_mm, config=settings, rng=copy.rng)
    cutter = Cutter.of(copy.grid, plan.data.patch) if mode == "patches" else None
    return encode_all(draw, cutter, copy.name), draw.kind


def encode_all(draw: sampling.Draw, cutter: Cutter | None, name: str) -> list[bytes]:
    """Return the examples of a draw, serialized.

    Args:
      draw: the centres.
      cutter: of the volume they lie in; None in index mode.
      name: of that volume.
    """
    patches = cutter.cut(draw.centres, extra=True) if cutter else [None] * len(draw.label)
    rows = zip(patches, draw.label.tolist(), draw.centres.tolist(), strict=True)
    return [records.encode(patch, label, centre, name.encode()) for patch, label, centre in rows]


def write_grid(folder: Path, copy: Copy) -> records.FileEntry:
    """Write a volume for index mode."""
    name = f"grids/{copy.name}.npy"
    (folder / "grids").mkdir(parents=True, exist_ok=True)
    with files.whole(folder / name) as temporary:
        np.save(temporary, copy.grid)
    return records.file_entry(folder, name)


def write_case(work: Path, plan: study.Plan, case: study.Case, mode: records.Mode) -> records.CaseRecords:
    """Draw a case's examples, from the scan and its varied copies, and write its shards.

    Args:
      work: the study's work folder.
      plan: its plan.
      case: one case of the plan.
      mode: "patches", or "index" to leave the patches out and keep the working grids.

    Returns:
      What the manifest says of the case.
    """
    quiet.start_tensorflow()
    made_of = made_from.fingerprint(plan, case, mode)  # before anything is read: what changes meanwhile is then noticed
    folder = study.records_path(work)
    shares = sampling.shared_out(sampling.asked(plan.data.sampling), plan.volumes(case))
    loaded = study.load_case(plan, case)
    if mode == "index":
        what = f"{len(shares)} grids of {case.name}"
        require_disk(folder.parent, len(shares) * loaded.working.data.size, what, "plan fewer of them (--copies)")
    examples: list[bytes] = []
    kinds, grids = [], []
    for copy, wanted in zip(copies(plan, loaded), shares, strict=True):
        drawn, kind = draw_copy(plan, copy, wanted, mode)
        examples += drawn
        kinds.append(kind)
        grids += [write_grid(folder, copy)] if mode == "index" else []
    order = case_rng(plan.data.sampling.seed, f"{case.name} order").permutation(len(examples))
    shards = write_shards(folder, case.name, [examples[i] for i in order], np.concatenate(kinds)[order])
    written = records.CaseRecords(case.name, case.part, shards, made_of, tuple(grids))
    files.write_json(_case_path(work, case), config.to_dict(written))
    return written


def write_shards(folder: Path, case: str, examples: list[bytes], kinds: np.ndarray) -> tuple[records.Shard, ...]:
    """Write examples, in their order, to shards.

    Args:
      folder: of the records.
      case: name of the case.
      examples: serialized.
      kinds: (N,) positions in `KINDS`.
    """
    total = max(1, round(len(examples) / SHARD_EXAMPLES))
    shards = []
    for index, part in enumerate(np.array_split(np.arange(len(examples)), total)):
        name = records.shard_name(case, index, total)
        tfrecords.write(folder / name, [examples[i] for i in part])
        counts = {kind: int((kinds[part] == number).sum()) for number, kind in enumerate(records.KINDS)}
        shards.append(records.Shard(records.file_entry(folder, name), case, counts))
    return tuple(shards)


def _case_path(work: Path, case: study.Case) -> Path:
    """Return where the finished part of a case is noted."""
    return study.records_path(work) / "cases" / f"{case.name}.json"


def _finished(work: Path, plan: study.Plan, case: study.Case, mode: records.Mode) -> records.CaseRecords | None:
    """Return a case's records where they are complete and made from the same input, else None."""
    path = _case_path(work, case)
    if not path.exists():
        return None
    found = config.load(records.CaseRecords, path)
    made_of = made_from.fingerprint(plan, case, mode)
    return found if made_from.is_finished(path, study.records_path(work), found, made_of) else None


def write(
    work: Path, *, mode: records.Mode = "patches", processes: int = 1, overwrite: bool = False
) -> records.Manifest:
    """Write the records of every train and validation case of the plan, and the manifest.

    Test cases get none: nothing may be chosen on them.

    Args:
      work: the study's work folder.
      mode: "patches" or "index".
      processes: cases written side by side.
      overwrite: write again what another plan has made.

    Raises:
      DataError: no plan, no cases to train with, records of another plan, another process that writes, not enough
        disk, or not enough memory for so many processes.
    """
    plan = study.read_plan(work)
    study.needed(work, plan, "train")
    with files.locked(study.records_path(work), "Wait for it to end, or end it."):
        return _write(work, plan, mode=mode, processes=processes, overwrite=overwrite)


def _write(work: Path, plan: study.Plan, *, mode: records.Mode, processes: int, overwrite: bool) -> records.Manifest:
    """Do what `write` does, with the records to itself."""
    folder = study.records_path(work)
    cases = [case for case in plan.cases if case.part != "test"]
    if overwrite:
        for case in cases:
            for path in (case.image, case.mask):
                study.require_there(Path(path))  # before anything is removed
        files.clear(folder)
    done = {case.name: _finished(work, plan, case, mode) for case in cases}
    todo = [case for case in cases if done[case.name] is None]
    examples = plan.data.sampling.per_case * len(todo)
    fewer = "plan fewer examples (--per-case)" + (", or pass --index-only" if mode == "patches" else "")
    require_disk(work, examples * example_bytes(plan.data.patch, mode), f"{examples:,} examples", fewer)
    files.remove(records.manifest_path(folder))
    for left in [*folder.rglob(".partial-*")]:
        files.remove(left)  # of a killed command: no other one works here
    # Spawned, not forked: TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(processes, len(todo)))  # of nothing to do, one
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=machine.end_with_parent) as pool:
        futures = [pool.submit(write_case, work, plan, case, mode) for case in todo]
        try:
            for future in command.track(concurrent.futures.as_completed(futures), "cases", total=len(futures)):
                written = future.result()
                done[written.case] = written
        except BrokenProcessPool as error:
            raise DataError(
                f"{folder}: expected every process to write its cases. Received: one was ended from outside, most "
                f"often for want of memory. Pass fewer --processes than {workers}; cases that are written are kept."
            ) from error
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()  # a case takes minutes, and the pool has handed out more than are begun
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error those handed out are still written
    manifest = records.Manifest(plan.data, mode, tuple(entry for entry in done.values() if entry))
    files.write_json(records.manifest_path(folder), config.to_dict(manifest))
    return manifest


def main(arguments: WriteArguments) -> None:
    """Write the records and print one table."""
    if arguments.processes < 1:
        raise DataError(f"--processes: expected at least 1. Received: {arguments.processes}")
    mode: records.Mode = "index" if arguments.index_only else "patches"
    manifest = write(arguments.work, mode=mode, processes=arguments.processes, overwrite=arguments.overwrite)
    rows = []
    for case in manifest.cases:
        kinds = [sum(shard.examples[kind] for shard in case.shards) for kind in records.KINDS]
        megabytes = sum(shard.file.bytes for shard in case.shards) / 1e6
        rows.append((case.case, case.part, len(case.shards), *kinds, f"{megabytes:.0f}"))
    header = ("case", "part", "shards", *records.KINDS, "MB")
    command.table(f"Records in {study.records_path(arguments.work)} ({mode})", header, rows)
    command.say(f"Next: {typed('femur_tf.train', arguments.work)}")


if __name__ == "__main__":
    command.run(main, WriteArguments, goes_on=True)
