"""Which scans a command draws masks of, and what it writes for each; nothing is overwritten or lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from femur_tf import command, dicom_series, files, image_io, image_names
from femur_tf.errors import DataError
from femur_tf.image_errors import listed
from femur_tf.origin import Origin, told


class Wanted(Protocol):
    """What the arguments of such a command say of input and output."""

    @property
    def image(self) -> Path:
        """An image file, a DICOM folder, or a folder of any of these."""

    @property
    def mask(self) -> Path:
        """The mask to write, or the folder of masks."""

    @property
    def probability(self) -> Path | None:
        """The probability map to write, or the folder of maps."""

    @property
    def sides(self) -> bool:
        """Label the patient's left femur 1 and the right one 2."""

    @property
    def overwrite(self) -> bool:
        """Replace what exists."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One scan to segment, and what to write."""

    name: str
    image: Path
    mask: Path
    probability: Path | None
    keep: bool = False
    """Nothing that is there already may be replaced."""


def _jobs(arguments: Wanted) -> tuple[list[Job], bool]:
    """Return the scans to segment, and whether they come from a folder of scans.

    Raises:
      DataError: no such file or folder, or a folder without scans.
    """
    source, keep = arguments.image, not arguments.overwrite
    if not source.exists():
        raise DataError(f"{source}: expected a scan or a folder of scans. Received: no such file or folder.")
    if not source.is_dir() or dicom_series.is_series(source):
        return [Job(image_names.case_name(source), source, arguments.mask, arguments.probability, keep)], False
    found = image_names.list_images(source)
    if not found:
        raise DataError(f"{source}: expected scans in the folder. Received: none that can be read.")
    maps = arguments.probability
    return [
        Job(name, path, arguments.mask / f"{name}.nii.gz", maps / f"{name}.nii.gz" if maps else None, keep)
        for name, path in found.items()
    ], True


def _outputs(job: Job) -> Iterator[Path]:
    """Yield the files a job writes."""
    yield job.mask
    if job.probability:
        yield job.probability


def _check_outputs(todo: list[Job], source: Path, report: Path | None, *, overwrite: bool) -> None:
    """Raise before any work where a file could not be written, or would replace one that must stay.

    Raises:
      DataError: an unknown suffix, a scan in the place of an output, two outputs in one place, a place where no file
        can be made, or a file that exists without `overwrite`.
    """
    images = [path for job in todo for path in _outputs(job)]
    for path in images:
        image_names.check_suffix(path)
    taken = {source.resolve(), *(job.image.resolve() for job in todo)}
    for path in [*images, *([report] if report else [])]:
        if path.resolve() in taken:
            raise DataError(f"{path}: expected a place of its own for each output. Received: a scan's or a mask's.")
        taken.add(path.resolve())
        files.require_place(path)
    for path in images:
        files.refuse_existing(path, overwrite=overwrite)


def require_kept(job: Job) -> None:
    """Raise where writing what a job has made would replace what another hand has written since the command began.

    Raises:
      DataError: such a file.
    """
    for path in _outputs(job) if job.keep else ():
        if path.exists():
            raise DataError(
                f"{path}: expected no such file, as when the command began. Received: one that was written meanwhile. "
                "It is kept. Let one command at a time write to a folder of masks."
            )


def warn_of_others(passed: Sequence[Job], origin: Origin) -> None:
    """Warn of masks that are passed over and that another model made, another version of it, or of another scan."""
    notes = {job.name: image_io.read_made_by(job.mask) for job in passed}
    others = [name for name, note in notes.items() if told(note) and not origin.made(note)]
    if others:
        command.warn(
            f"{passed[0].mask.parent}: expected masks of {origin.text}. Received: masks of another model or version, "
            f"which are passed over: {listed(others, 10)}. Pass --overwrite to replace them, or choose another folder."
        )
    silent = [name for name, note in notes.items() if not told(note)]
    if silent:
        command.say(
            f"{passed[0].mask.parent}: {len(silent)} of the masks passed over do not say which model made them, as "
            f"after an edit, or from another program or an early version: {listed(silent, 3)}"
        )
    elsewhere = [
        job.name for job in passed if image_io.read_made_of(job.mask) not in ("", image_io.scan_note(job.image))
    ]
    if elsewhere:
        command.warn(
            f"{passed[0].mask.parent}: expected masks of these scans. Received: masks that were made from scans "
            f"elsewhere, which are passed over: {listed(elsewhere, 10)}. If these are other scans of the same names, "
            "choose another folder; after a move of the scans nothing is wrong."
        )


def _check_folders(arguments: Wanted) -> None:
    """Raise where the outputs of a folder of scans have no folder of their own."""
    for folder in (arguments.mask, arguments.probability):
        if folder is None:
            continue
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: expected a folder to write to, for a folder of scans. Received: a file.")
        if folder.resolve() == arguments.image.resolve():
            raise DataError(f"{folder}: expected another folder than that of the scans. Received: the same.")
    if arguments.probability and arguments.probability.resolve() == arguments.mask.resolve():
        raise DataError(f"{arguments.mask}: expected a folder for the masks alone. Received: --probability names it.")


def _settle_lone_maps(wanted: list[Job]) -> None:
    """Remove the map of a scan without a mask where it is of this scan, and raise where it is another's.

    Ours get their names together: between the two a command was killed, or the mask was removed since.

    Raises:
      DataError: maps that are not known to be of their scans.
    """
    maps = {job.probability: job.image for job in wanted if job.probability and job.probability.exists()}
    lone = [path for path, scan in maps.items() if image_io.read_made_of(path) != image_io.scan_note(scan)]
    if lone:
        names = listed([path.name for path in lone], 3)
        raise DataError(
            f"{lone[0].parent}: expected maps of scans with masks alone. Received: {names}, without a mask. Move maps "
            "of other scans, or of another program, away, or pass --overwrite, which replaces every mask and map."
        )
    for path in maps:
        files.remove(path)


@dataclasses.dataclass(frozen=True)
class Todo:
    """What a command has to do."""

    jobs: list[Job]
    passed: list[Job]
    """Scans of a folder that have a mask, and are passed over."""
    is_folder: bool
    """The scans come from a folder of scans."""


def todo(arguments: Wanted, report: Path | None = None) -> Todo:
    """Return the scans to segment; of a folder, those with a mask are passed over.

    Args:
      arguments: what to read and write.
      report: a file that is written, too.

    Raises:
      DataError: nothing to segment, a file that could not be written, or one that would be replaced without
        `overwrite`.
    """
    found, is_folder = _jobs(arguments)
    if not is_folder and arguments.image.is_dir() and image_names.image_suffix(arguments.mask) is None:
        command.say(f"{arguments.image}: holds DICOM files itself, so that it is one scan, not a folder of scans.")
    if is_folder:
        _check_folders(arguments)
    goes_on = is_folder and not arguments.overwrite
    done = {job for job in found if job.mask.exists()} if goes_on else set()
    if done:
        command.say(f"{len(done)} of {len(found)} scans have a mask and are passed over; --overwrite replaces them.")
    wanted = [job for job in found if job not in done]
    if goes_on:
        _settle_lone_maps(wanted)
    _check_outputs(wanted, arguments.image, report, overwrite=arguments.overwrite)
    return Todo(wanted, [job for job in found if job in done], is_folder)
