"""The one record spec: what an example is, how shards are named, what the manifest says.

An example holds `patch` (uint8 bytes, (S + 1) x (S + 1) x C: one sample more than the
network reads at the upper end of each axis, so that a mirrored patch can be taken
from it), `label` (0 or 1), `centre` (3 voxels of the working grid) and `case`. In
index mode `patch` is left out and cut from the working grid when a batch is made;
both modes give the same bytes.

    records/manifest.json                     what `Manifest` holds
    records/cases/NAME.json                   the part of one case, written when its shards are complete
    records/shards/NAME-00003-of-00004.tfrecord
    records/grids/NAME.npy                    working grid (uint8), index mode only
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from femur_tf import command, config, files, quiet, tfrecords
from femur_tf.errors import DataError, typed

if TYPE_CHECKING:
    import tensorflow as tf

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MINED = "mined"
"""Below the records, the folder of the mined sets (`mined_records`)."""
Mode = Literal["patches", "index"]
KINDS = ("bone", "near", "far")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A file of the records: path below the records folder, size and digest."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file and what it holds."""

    file: FileEntry
    case: str
    examples: dict[str, int]
    """Number of examples of each kind: bone, near, far."""

    @property
    def count(self) -> int:
        """Number of examples."""
        return sum(self.examples.values())


@dataclasses.dataclass(frozen=True)
class CaseRecords:
    """The records of one case."""

    case: str
    part: Literal["train", "validation", "test"]
    shards: tuple[Shard, ...]
    fingerprint: str
    """Of all that the shards were made from; other settings or other input make another one."""
    grids: tuple[FileEntry, ...] = ()
    """The working grid and its varied copies, in index mode; `grids/NAME.npy`, where the examples' `case` is NAME."""

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the case."""
        return (*(shard.file for shard in self.shards), *self.grids)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds: the rule that made the records, and every file of them."""

    data: config.DataConfig
    mode: Mode
    cases: tuple[CaseRecords, ...]
    format_version: int = FORMAT_VERSION

    def shards(self, part: str) -> list[Shard]:
        """Return the shards of one part of the split."""
        return [shard for case in self.cases if case.part == part for shard in case.shards]

    def count(self, part: str) -> int:
        """Return the number of examples of one part of the split."""
        return sum(shard.count for shard in self.shards(part))


def shard_name(case: str, index: int, total: int) -> str:
    """Return a shard's path below the records folder, such as `shards/hip_01-00003-of-00016.tfrecord`."""
    return f"shards/{case}-{index:05d}-of-{total:05d}.tfrecord"


def file_entry(records: Path, name: str) -> FileEntry:
    """Describe the file `name` below the folder `records`."""
    path = records / name
    return FileEntry(name, path.stat().st_size, files.sha256(path))


def manifest_path(records: Path) -> Path:
    """Return where the manifest of the folder `records` lies."""
    return records / MANIFEST


def folders(records: Path) -> list[Path]:
    """Return the folder `records`, and those of its finished mined sets, which have a manifest of their own."""
    return [records, *sorted(path.parent for path in records.glob(f"{MINED}/*/{MANIFEST}"))]


def digest(records: Path) -> str:
    """Return a digest of the manifest of the folder `records`, and so of all that is written there."""
    return files.sha256(manifest_path(records))[:16]


def read_manifest(records: Path) -> Manifest:
    """Read the manifest of the folder `records`.

    Raises:
      DataError: there is none (the records are not, or not completely, written), it is not a manifest, or it has
        another format version.
    """
    path = manifest_path(records)
    if not path.exists():
        raise DataError(
            f"{path}: expected records, found none or an unfinished set. "
            f"Run first: {typed('data_prep.write_records', records.parent)}"
        )
    advice = f"Write the records again: {typed('data_prep.write_records', records.parent, '--overwrite')}"
    return config.from_dict(Manifest, files.read_versioned(path, FORMAT_VERSION, advice), str(path))


def encode(patch: np.ndarray | None, label: int, centre: Sequence[int], case: bytes) -> bytes:
    """Return one serialized example.

    Args:
      patch: (S + 1, S + 1, C) uint8; None in index mode.
      label: 1 where the centre is bone, else 0.
      centre: x, y, z of the working grid.
      case: name of the case, UTF-8.
    """
    import tensorflow as tf

    # Filled in place: features made one by one and handed to Example are copied, at three times the cost.
    example = tf.train.Example()
    features = example.features.feature
    features["label"].int64_list.value.append(label)
    features["centre"].int64_list.value.extend(centre)
    features["case"].bytes_list.value.append(case)
    if patch is not None:
        features["patch"].bytes_list.value.append(patch.tobytes())
    # The order of features else differs from process to process, and with it the digest of a shard.
    serialized: bytes = example.SerializeToString(deterministic=True)
    return serialized


def parse(serialized: tf.Tensor, patch: config.PatchConfig, mode: Mode) -> dict[str, tf.Tensor]:
    """Parse a whole batch of serialized examples; works inside a graph.

    Args:
      serialized: (N,) string.
      patch: the patch rule of the records.
      mode: of the records.

    Returns:
      `label` (N,) int64, `centre` (N, 3) int64, `case` (N,) string and, in patch mode, `patch`
      (N, S + 1, S + 1, C) uint8.
    """
    import tensorflow as tf

    spec: dict[str, Any] = {
        "label": tf.io.FixedLenFeature([], tf.int64),
        "centre": tf.io.FixedLenFeature([3], tf.int64),
        "case": tf.io.FixedLenFeature([], tf.string),
    }
    if mode == "patches":
        spec["patch"] = tf.io.FixedLenFeature([], tf.string)
    example: dict[str, tf.Tensor] = tf.io.parse_example(serialized, spec)
    if mode == "patches":
        shape = (patch.size + 1, patch.size + 1, patch.channels)
        flat = tf.io.decode_raw(example["patch"], tf.uint8, fixed_length=None)  # (N, bytes)
        example["patch"] = tf.reshape(flat, (-1, *shape))
    return example


def check_size(records: Path, entry: FileEntry) -> str | None:
    """Return what is wrong with a file's presence or size, or None."""
    path = records / entry.name
    if not path.exists():
        return f"{path}: expected a file of {entry.bytes} bytes. Received: no file"
    size = path.stat().st_size
    return None if size == entry.bytes else f"{path}: expected {entry.bytes} bytes. Received: {size} bytes"


def _check_file(records: Path, entry: FileEntry) -> str | None:
    """Return what is wrong with a file's presence, size or digest, or None."""
    problem = check_size(records, entry)
    if problem is None and files.sha256(records / entry.name) != entry.sha256:
        return f"{records / entry.name}: expected sha256 {entry.sha256[:12]}... Received: another content of that size"
    return problem


def advice(records: Path) -> str:
    """Return what to do about damaged records."""
    return f"Find all that is damaged: {typed('femur_tf.records', 'check', records.parent)}"


def require_whole(records: Path, manifest: Manifest) -> None:
    """Raise unless every file is there and of its size; contents, which take time to read, are for `check`.

    Raises:
      DataError: of the first file that is missing or of another size.
    """
    sizes = (check_size(records, entry) for case in manifest.cases for entry in case.files)
    problem = next(filter(None, sizes), None)
    if problem:
        raise DataError(f"{problem}. {advice(records)}")


def _check_examples(records: Path, manifest: Manifest, shard: Shard) -> str | None:
    """Return what is wrong with the examples of a sound shard, or None."""
    import tensorflow as tf

    path = records / shard.file.name
    count, bone = 0, 0
    for batch in tf.data.TFRecordDataset([str(path)]).batch(2048):
        try:
            example = parse(batch, manifest.data.patch, manifest.mode)
        except tf.errors.InvalidArgumentError as error:
            return f"{path}: expected examples of the record spec. Received: {error.message.splitlines()[0]}"
        count += len(batch)
        bone += int(tf.reduce_sum(example["label"]))
    if (count, bone) != (shard.count, shard.examples["bone"]):
        expected = f"{shard.count} examples, {shard.examples['bone']} of them bone"
        return f"{path}: expected {expected}. Received: {count} and {bone}"
    return None


def check(records: Path) -> list[str]:
    """Check every file of the folder `records` against its manifest.

    Returns:
      One message for each bad file: which, what was expected, what was received and, for a damaged shard, the byte
      at which its first bad record starts. Empty when all is well.

    Raises:
      DataError: there is no manifest to check against.
    """
    manifest = read_manifest(records)
    quiet.start_tensorflow()
    problems = []
    for case in command.track(manifest.cases, f"check {records.name}"):
        for shard in case.shards:
            problem = _check_file(records, shard.file)
            if problem and (records / shard.file.name).exists():
                problem += f"; {tfrecords.first_bad_byte(records / shard.file.name)}"
            problems.append(problem or _check_examples(records, manifest, shard))
        problems += [_check_file(records, grid) for grid in case.grids]
    return [problem for problem in problems if problem]


@dataclasses.dataclass(frozen=True)
class CheckArguments:
    """Check the records of a study, and its mined sets, against their manifests: presence, size, digest, every example.

    Example: python -m femur_tf.records check work/
    """

    work: command.Work


def main(arguments: CheckArguments) -> int:
    """Check, print one table, and return 2 where something is bad."""
    problems = []
    for folder in folders(arguments.work / "records"):
        problems += check(folder)
        rows = [
            (case.case, case.part, len(case.shards), *(sum(s.examples[kind] for s in case.shards) for kind in KINDS))
            for case in read_manifest(folder).cases
        ]
        command.table(f"Records in {folder}", ("case", "part", "shards", *KINDS), rows)
    for problem in problems:
        command.fail(problem)
    command.say(f"{len(problems)} bad file(s)." if problems else "All files are as the manifest says.")
    return 2 if problems else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        del sys.argv[1]
    command.run(main, CheckArguments, "check")
