"""Scans in, masks out: what every command that draws masks does around its network.

Which scans there are and what is written for each; that nothing is overwritten or
lost; reading and preparing, ahead of the network; from the map on the working grid to
the mask on the scan's own; one table at the end.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from femur_tf import command, config, files, image_io, mask_report, postprocess, quality, study, volume
from femur_tf.errors import DataError

SPACING_RATIO = 1.5
"""A scan whose spacing differs from the model's by more, along any axis, is warned about."""


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


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of the table at the end."""

    name: str
    volume_cm3: float
    parts: int
    network_s: float
    """Seconds of the probability map."""
    total_s: float
    """Seconds of the scan after it was read and prepared."""
    mask: Path
    quality: quality.Quality


def jobs(arguments: Wanted) -> tuple[list[Job], bool]:
    """Return the scans to segment, and whether they come from a folder of scans.

    Raises:
      DataError: no such file or folder, or a folder without scans.
    """
    source = arguments.image
    if not source.exists():
        raise DataError(f"{source}: expected a scan or a folder of scans. Received: no such file or folder.")
    if not source.is_dir() or image_io.is_dicom_folder(source):
        return [Job(image_io.case_name(source), source, arguments.mask, arguments.probability)], False
    found = image_io.list_images(source)
    if not found:
        raise DataError(f"{source}: expected scans in the folder. Received: none that can be read.")
    maps = arguments.probability
    return [
        Job(name, path, arguments.mask / f"{name}.nii.gz", maps / f"{name}.nii.gz" if maps else None)
        for name, path in found.items()
    ], True


def _outputs(job: Job) -> Iterator[Path]:
    """Yield the files a job writes."""
    yield job.mask
    if job.probability:
        yield job.probability


def _check_outputs(todo: list[Job], source: Path, *, overwrite: bool) -> None:
    """Raise before any work where a file could not be written, or would replace one that must stay.

    Raises:
      DataError: an unknown suffix, a scan in the place of an output, two outputs in one place, or a file that exists
        without `overwrite`.
    """
    taken = {source.resolve(), *(job.image.resolve() for job in todo)}
    for job in todo:
        for path in _outputs(job):
            image_io.check_suffix(path)
            if path.resolve() in taken:
                raise DataError(f"{path}: expected a place of its own for each output. Received: a scan's or a mask's.")
            taken.add(path.resolve())
            files.refuse_existing(path, overwrite=overwrite)


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


@dataclasses.dataclass(frozen=True)
class Todo:
    """What a command has to do."""

    jobs: list[Job]
    passed: list[str]
    """Scans of a folder that have a mask, and are passed over."""
    is_folder: bool
    """The scans come from a folder of scans."""


def todo(arguments: Wanted) -> Todo:
    """Return the scans to segment; of a folder, those with a mask are passed over.

    Raises:
      DataError: nothing to segment, a file that could not be written, or one that would be replaced without
        `overwrite`.
    """
    found, is_folder = jobs(arguments)
    done: list[Job] = []
    if is_folder:
        _check_folders(arguments)
    if is_folder and not arguments.overwrite:
        done = [job for job in found if job.mask.exists()]
        if done:
            command.say(
                f"{len(done)} of {len(found)} scans have a mask and are passed over; --overwrite replaces them."
            )
        found = [job for job in found if job not in done]
    # A folder's map without its mask is what an interrupted run left: the mask is written last.
    _check_outputs(found, arguments.image, overwrite=arguments.overwrite or is_folder)
    return Todo(found, [job.name for job in done], is_folder)


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A scan in memory."""

    image: image_io.Image
    working: volume.Volume
    """uint8, on the model's working grid."""


def prepare(job: Job, data: config.DataConfig) -> Prepared:
    """Read a scan and bring it to the working grid.

    Raises:
      DataError: the scan cannot be used.
    """
    image = image_io.read_image(job.image)
    return Prepared(image, study.prepare(image.volume, data, path=job.image))


def ahead(todo: Sequence[Job], data: config.DataConfig) -> Iterator[tuple[Job, concurrent.futures.Future[Prepared]]]:
    """Yield each job with its scan, while the scan after it is being read and prepared.

    A scan that cannot be used raises a `DataError` where its future is asked for the result.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        scans = [reader.submit(prepare, job, data) for job in todo[:1]]
        for index, job in enumerate(todo):
            if index + 1 < len(todo):
                scans.append(reader.submit(prepare, todo[index + 1], data))
            yield job, scans.pop(0)


def announce_resampling(job: Job, scan: Prepared, spacing_mm: tuple[float, float, float]) -> None:
    """Say what is resampled; warn where the scan's spacing is far from the model's, `spacing_mm`."""
    own = volume.canonical(scan.image.volume).spacing_mm
    if volume.spacings_agree(own, spacing_mm):
        return
    text = " x ".join(f"{s:.3g}" for s in own) + " mm is resampled to " + " x ".join(f"{s:.3g}" for s in spacing_mm)
    ratios = [max(a / b, b / a) for a, b in zip(own, spacing_mm, strict=True)]
    if max(ratios) > SPACING_RATIO:
        command.warn(f"{job.image}: spacing {text} mm, far from what the model was trained on. Check the mask.")
    else:
        command.say(f"{job.name}: spacing {text} mm")


def finish(
    job: Job,
    scan: Prepared,
    probability: np.ndarray,
    recipe: config.RecipeConfig,
    *,
    sides: bool,
    start: float,
    cohort: quality.Cohort | None = None,
    report: Path | None = None,
) -> Result:
    """Make a scan's mask of its map, and write it, last of all: a scan with a mask is one that is finished.

    Args:
      job: what to write.
      scan: the scan.
      probability: (X, Y, Z) float16 in [0, 1], on the working grid.
      recipe: how the map becomes a mask.
      sides: label left and right.
      start: of the network, on `time.perf_counter`.
      cohort: what is usual, for the quality flag; None: an empty mask alone is unusual.
      report: a file to note in what is known of the mask.

    Raises:
      DataError: a file could not be written.
    """
    network_s = time.perf_counter() - start
    image = scan.image
    own = volume.from_working(volume.Volume(probability, scan.working.affine), image.volume)
    mask = postprocess.apply(own, recipe, spacing_mm=image.volume.spacing_mm)
    judged = quality.assess(volume.Volume(own, image.volume.affine), mask, scan.working, recipe.cutoff, cohort)
    labels = postprocess.sides(mask, image.volume.affine) if sides else mask
    if job.probability:
        image_io.write_image(job.probability, own, like=image)
    parts = postprocess.count_parts(mask)
    if report:
        mask_report.add(report, job.name, mask=job.mask, parts=parts, quality=judged)
    image_io.write_image(job.mask, labels, like=image)
    cm3 = float(mask.sum() * np.prod(image.volume.spacing_mm)) / 1000
    total_s = time.perf_counter() - start
    return Result(job.name, cm3, parts, network_s, total_s, job.mask, judged)


def show(results: Sequence[Result]) -> None:
    """Print the table at the end, and why to look at a mask twice."""
    rows = [
        (
            r.name,
            f"{r.volume_cm3:.1f}",
            r.parts,
            len(r.quality.reasons) or "",
            f"{r.network_s:.1f}",
            f"{r.total_s:.1f}",
            r.mask,
        )
        for r in results
    ]
    command.table("Femur masks", ("scan", "cm3", "parts", "reasons to look", "network s", "all s", "file"), rows)
    for result in results:
        if result.quality.flagged:
            command.warn(f"{result.name}: look at this mask. {'; '.join(result.quality.reasons)}")


def status(results: Sequence[Result], *, failed: int, strict: bool, earlier: Sequence[str] = ()) -> int:
    """Return the exit status: 2 where a scan failed, 3 where `strict` and a mask is flagged, else 0.

    Args:
      results: of this run.
      failed: how many scans failed.
      strict: whether a flag matters.
      earlier: scans that were passed over and whose masks are flagged.
    """
    if failed:
        return 2
    return 3 if strict and (earlier or any(result.quality.flagged for result in results)) else 0
