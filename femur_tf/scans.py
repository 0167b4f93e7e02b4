"""Scans in, masks out: what every command that draws masks does around its network.

Reading and preparing, ahead of the network, within the memory that may be taken; from
the map on the working grid to the mask on the scan's own; one table at the end.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from femur_tf import command, config, image_io, jobs, machine, mask_report, postprocess, quality, study, volume
from femur_tf.errors import DataError
from femur_tf.jobs import Job
from femur_tf.origin import Origin

SPACING_RATIO = 1.5
"""A scan whose spacing differs from the model's by more, along any axis, is warned about."""
SURE_MM = 40.0
"""Femoral heads lie about 90 mm to either side of the middle: a lone femur nearer than this may have been moved."""
PREPARING_BYTES = 12
"""Taken for a voxel of the larger one of the scan's own grid and the working grid, while one becomes the other."""
CORRECTING_BYTES = 20
"""Taken for a voxel of the scan's own grid, while its bias field is corrected."""
FINISHING_BYTES = 21
"""Taken for a voxel of the scan's own grid, while a map becomes a mask there."""
RETURNING_BYTES = 17
"""Taken beside it for a voxel of a working grid that is another one. All four measured (tests/test_scans.py)."""


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


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A scan in memory."""

    image: image_io.Image
    working: volume.Volume
    """uint8, on the model's working grid."""


@dataclasses.dataclass(frozen=True)
class Room:
    """The memory that a scan takes, bytes."""

    held: int
    """From when it is prepared until its mask is written."""
    before: int
    """For a while, before the network."""
    after: int
    """For a while, after it."""

    def beside(self, *, another: bool) -> int:
        """Return what the next scan takes meanwhile, taken to be as large; nothing where there is none."""
        return self.held + self.before if another else 0


def room(image: volume.Volume, data: config.DataConfig) -> Room:
    """Return the memory that a scan takes beside the network.

    Raises:
      ValueError: no working grid can be made of it.
    """
    upright, wanted_mm = volume.canonical(image), data.patch.spacing_mm
    own, working = image.data.size, math.prod(volume.working_shape(upright.shape, upright.spacing_mm, wanted_mm))
    resampled = not volume.spacings_agree(upright.spacing_mm, wanted_mm)
    return Room(
        held=image.data.nbytes + working,
        before=max(
            CORRECTING_BYTES * own if data.normalisation.n4 else 0,
            PREPARING_BYTES * max(own, working) if resampled else 0,
        ),
        after=FINISHING_BYTES * own + (RETURNING_BYTES if resampled else 2) * working,  # the map has 2
    )


def _require_room(image: volume.Volume, data: config.DataConfig, max_memory_mb: int, *, another: bool) -> None:
    """Raise where a scan takes more memory than it may, before or after the network, which fits its own to the limit.

    Raises:
      DataError: the least limit is named.
    """
    try:
        taken = room(image, data)
    except ValueError:
        return  # `study.prepare` refuses such a scan, and names it
    after = taken.after + taken.beside(another=another)
    least = machine.base_bytes() + taken.held + max(taken.before, after)
    if least > machine.within(max_memory_mb * 10**6):
        of = f"a scan of {' x '.join(map(str, image.shape))}"
        raise machine.too_little(math.ceil(least / 10**6), max_memory_mb, of)


def prepare(job: Job, data: config.DataConfig, max_memory_mb: int | None = None, *, another: bool = False) -> Prepared:
    """Read a scan and bring it to the working grid.

    Args:
      job: what to read.
      data: the model's.
      max_memory_mb: resident memory that the process may reach; None: any.
      another: one more scan is read meanwhile, and taken to be as large.

    Raises:
      DataError: the scan cannot be used, or the limit is too low for it.
    """
    try:
        image = image_io.read_image(job.image)
        if max_memory_mb is not None:
            _require_room(image.volume, data, max_memory_mb, another=another)
        return Prepared(image, study.prepare(image.volume, data, path=job.image))
    except (MemoryError, OSError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise DataError(f"{job.image}: expected a scan that can be read and held. Received: {reason}.") from error


def ahead(
    todo: Sequence[Job], data: config.DataConfig, max_memory_mb: int
) -> Iterator[tuple[Job, concurrent.futures.Future[Prepared]]]:
    """Yield each job with its scan, while the scan after it is being read and prepared.

    A scan that cannot be used raises a `DataError` where its future is asked for the result.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        another = len(todo) > 1
        scans = [reader.submit(prepare, job, data, max_memory_mb, another=another) for job in todo[:1]]
        for index, job in enumerate(todo):
            if index + 1 < len(todo):
                scans.append(reader.submit(prepare, todo[index + 1], data, max_memory_mb, another=another))
            yield job, scans.pop(0)


def announce_resampling(job: Job, scan: Prepared, spacing_mm: tuple[float, float, float]) -> None:
    """Say what is resampled; warn where the scan's spacing is far from the model's, `spacing_mm`."""
    own = volume.canonical(scan.image.volume).spacing_mm
    if volume.spacings_agree(own, spacing_mm):
        return
    text = " x ".join(f"{s:.3g}" for s in own) + " mm is resampled to " + " x ".join(f"{s:.3g}" for s in spacing_mm)
    if any(_far_above(a, b) or _far_above(b, a) for a, b in zip(own, spacing_mm, strict=True)):
        command.warn(f"{job.image}: spacing {text} mm, far from what the model was trained on. Check the mask.")
    else:
        command.say(f"{job.name}: spacing {text} mm")


def _far_above(one_mm: float, other_mm: float) -> bool:
    """Tell whether a spacing is so much coarser than another that a mask is in doubt."""
    return one_mm > SPACING_RATIO * other_mm


def _coarse(scan: Prepared) -> tuple[str, ...]:
    """Return a reason for each axis along which a scan shows far less than the model was trained on."""
    own, wanted_mm = volume.canonical(scan.image.volume).spacing_mm, scan.working.spacing_mm
    return tuple(
        f"voxels towards {axis}: {own_mm:.3g} mm, the model's are {model_mm:.3g} mm"
        for axis, own_mm, model_mm in zip(("right", "anterior", "superior"), own, wanted_mm, strict=True)
        if _far_above(own_mm, model_mm)
    )


def _tell_side(job: Job, mask: np.ndarray, affine: np.ndarray) -> None:
    """Say how the side of a lone femur is known: by where the scan lies, which a stack that was moved does not tell."""
    x_mm = postprocess.lone_mm(mask, affine)
    if x_mm is None:
        return
    text = (
        f"{job.name}: one femur, taken for the {'right' if x_mm > 0 else 'left'} one, as it lies at x = {x_mm:+.0f} mm"
    )
    if abs(x_mm) < SURE_MM:
        command.warn(f"{text}, near the middle. Check the side.")
    else:
        command.say(f"{text}.")


@dataclasses.dataclass(frozen=True)
class Finishing:
    """How the maps of a run become masks, and what is said of them."""

    recipe: config.RecipeConfig
    origin: Origin
    """Which model makes the maps."""
    sides: bool = False
    """Label left and right."""
    cohort: quality.Cohort | None = None
    """What is usual, for the quality flag; None: an empty mask alone is unusual."""
    report: Path | None = None
    """A file to note in what is known of each mask."""


def finish(job: Job, scan: Prepared, probability: np.ndarray, how: Finishing, *, start: float) -> Result:
    """Make a scan's mask of its map, and write it, last of all: a scan with a mask is one that is finished.

    Why to look at the mask is said at once: what comes after may fail.

    Args:
      job: what to write.
      scan: the scan.
      probability: (X, Y, Z) float16 in [0, 1], on the working grid.
      how: how it becomes a mask.
      start: of the network, on `time.perf_counter`.

    Raises:
      DataError: a file could not be written, or would replace one that must stay.
    """
    network_s = time.perf_counter() - start
    image = scan.image
    own = volume.from_working(volume.Volume(probability, scan.working.affine), image.volume)
    mask = postprocess.apply(own, how.recipe, spacing_mm=image.volume.spacing_mm)
    judged = quality.assess(volume.Volume(own, image.volume.affine), mask, scan.working, how.recipe.cutoff, how.cohort)
    judged = dataclasses.replace(judged, reasons=judged.reasons + _coarse(scan))
    sides = postprocess.sides(mask, image.volume.affine)
    if how.sides:
        _tell_side(job, mask, image.volume.affine)
    parts = postprocess.count_parts(mask)
    jobs.require_kept(job)
    if how.report:
        voxel_mm3 = float(np.prod(image.volume.spacing_mm))
        left_mm3, right_mm3 = (int((sides == one).sum()) * voxel_mm3 for one in (postprocess.LEFT, postprocess.RIGHT))
        volumes = left_mm3, right_mm3
        mask_report.add(how.report, job, sides_mm3=volumes, parts=parts, quality=judged, origin=how.origin)
    made_by = how.origin.text
    # Both are whole before the map, then the mask, has its name.
    with image_io.written(job.mask, sides if how.sides else mask, like=image, made_by=made_by):
        if job.probability:
            image_io.write_image(job.probability, own, like=image, made_by=made_by)
    if judged.flagged:
        command.warn(f"{job.name}: look at this mask. {'; '.join(judged.reasons)}")
    cm3 = float(mask.sum() * np.prod(image.volume.spacing_mm)) / 1000
    total_s = time.perf_counter() - start
    return Result(job.name, cm3, parts, network_s, total_s, job.mask, judged)


def show(results: Sequence[Result]) -> None:
    """Print the table at the end; nothing where no scan was segmented."""
    if not results:
        return
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
    if len(results) > 1:
        command.say(f"{len(results)} masks, {sum(r.quality.flagged for r in results)} of them to look at.")


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
