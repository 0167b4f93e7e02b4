"""Command: segment the femur in a scan, a DICOM folder or a folder of scans."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from femur_tf import command, config, jobs, machine, mask_report, quality, quiet, scans
from femur_tf.errors import DataError, WriteError
from femur_tf.jobs import Job, Todo
from femur_tf.scans import Prepared, Result

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle


@dataclasses.dataclass(frozen=True)
class SegmentArguments:
    """Segment the proximal femur in MR scans.

    Example: python -m femur_tf.segment scan.nii.gz mask.nii.gz

    The mask lies on the scan's own grid. Of a folder of scans every one is segmented; those whose mask exists are
    passed over, so that an interrupted run goes on. Research use, not diagnosis.
    """

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """A NIfTI, NRRD or MetaImage file, a DICOM folder, an enhanced DICOM file, or a folder of any of these."""
    mask: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MASK")]
    """The file to write (its suffix chooses the format), or the folder to write NAME.nii.gz files to."""
    model: Path | None = None
    """A saved model (saved_models/NAME) or a run folder (work/runs/NAME); by default the one that comes with us."""
    probability: Path | None = None
    """Also write the probability map, float32: a file, or a folder for a folder of scans."""
    sides: bool = False
    """Label the patient's left femur 1 and the right one 2, instead of both 1."""
    overwrite: bool = False
    """Replace masks that exist."""
    report: Path | None = None
    """Also write what is known of each mask (volume, doubt, reasons to look at it) to a JSON file."""
    strict: bool = False
    """Exit with status 3 where there is a reason to look at a mask; of masks passed over, the --report tells."""
    verify: int = 0
    """Random voxels to evaluate patch by patch too; the largest difference is printed, a large one is an error."""
    prediction: tyro.conf.OmitArgPrefixes[config.PredictConfig] = dataclasses.field(
        default_factory=config.PredictConfig
    )


def segment(job: Job, scan: Prepared, bundle: Bundle, arguments: SegmentArguments, *, another: bool = False) -> Result:
    """Segment one scan and write its mask.

    Args:
      job: what to write.
      scan: the scan.
      bundle: the model.
      arguments: sides, verification and prediction options.
      another: one more scan is read meanwhile.

    Raises:
      DataError: the model has no recipe, a file could not be written, or verification failed.
    """
    from femur_tf import bundle as bundles

    start = time.perf_counter()
    scans.announce_resampling(job, scan, bundle.settings.data.patch.spacing_mm)
    taken = scans.room(scan.image.volume, bundle.settings.data)
    beside = taken.held + taken.beside(another=another)
    found = bundles.working_map(bundle, scan.working, arguments.prediction, verify=arguments.verify, held_bytes=beside)
    return scans.finish(job, scan, found.data, finishing(bundle, arguments), start=start)


def finishing(bundle: Bundle, arguments: SegmentArguments) -> scans.Finishing:
    """Return how a model's maps become masks.

    Raises:
      DataError: the model has no recipe.
    """
    options = config.to_dict(arguments.prediction)
    del options["max_memory"]  # changes no map
    origin = dataclasses.replace(bundle.origin, options=options)
    return scans.Finishing(bundle.recipe, origin, arguments.sides, bundle.cohort, arguments.report)


def main(arguments: SegmentArguments) -> int:
    """Segment, and print one table; 2 where a scan of a folder could not be segmented, 3 with --strict for a doubt."""
    if arguments.verify < 0:
        raise DataError(f"--verify: expected at least 0 voxels. Received: {arguments.verify}. Pass 0 to verify none.")
    todo = jobs.todo(arguments, arguments.report)
    earlier = mask_report.flagged(arguments.report, todo.passed, strict=arguments.strict)
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    bundle = bundles.load(arguments.model or bundles.shipped())
    origin = bundle.origin  # raises where no recipe has been chosen
    command.say(f"Model: {origin.text}")
    jobs.warn_of_others(todo.passed, origin)
    quality.require_cohort(str(bundle.folder), bundle.cohort, strict=arguments.strict)
    machine.base_bytes()  # before the first scan is read
    results: list[Result] = []
    try:
        failed = _segment_all(todo, bundle, arguments, results)
    finally:
        scans.show(results)  # where the run ends early, too
    return scans.status(results, failed=failed, strict=arguments.strict, earlier=earlier)


def _left(start: float, done: int, of: int) -> str:
    """Return the time that is left, as after a number, where scans are done; start is of `time.monotonic`."""
    if not done:
        return ""
    left_s = (time.monotonic() - start) / done * (of - done)
    return f", {dt.timedelta(seconds=round(left_s))} left"


def _segment_all(todo: Todo, bundle: Bundle, arguments: SegmentArguments, results: list[Result]) -> int:
    """Segment the scans one by one, add each to the results, and return how many of a folder's failed."""
    failed = 0
    coming = scans.ahead(todo.jobs, bundle.settings.data, arguments.prediction.max_memory)
    start = time.monotonic()
    for number, (job, scan) in enumerate(coming, start=1):
        command.say(f"{job.name} ({number} of {len(todo.jobs)}{_left(start, number - 1, len(todo.jobs))})")
        try:
            results.append(segment(job, scan.result(), bundle, arguments, another=number < len(todo.jobs)))
        except DataError as error:
            if not todo.is_folder or isinstance(error, WriteError):  # the next scan would fare no better
                raise
            command.fail(f"{job.name}: {error}")
            mask_report.add_failure(arguments.report, job, error)
            failed += 1
    return failed


if __name__ == "__main__":
    command.run(main, SegmentArguments)
