"""Command: segment the femur in a scan, a DICOM folder or a folder of scans."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from femur_tf import command, config, files, image_io, postprocess, quiet, study, volume
from femur_tf.errors import DataError

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle

SPACING_RATIO = 1.5
"""A scan whose spacing differs from the model's by more, along any axis, is warned about."""


@dataclasses.dataclass(frozen=True)
class SegmentArguments:
    """Segment the proximal femur in MR scans.

    Example: python -m femur_tf.segment scan.nii.gz mask.nii.gz --model saved_models/femur

    The mask lies on the scan's own grid. Of a folder of scans every one is segmented; those whose mask exists are
    passed over, so that an interrupted run goes on. Research use, not diagnosis.
    """

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """A NIfTI, NRRD or MetaImage file, a DICOM folder, or a folder of any of these."""
    mask: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MASK")]
    """The file to write (its suffix chooses the format), or the folder to write NAME.nii.gz files to."""
    model: Path
    """A saved model (saved_models/NAME) or a run folder (work/runs/NAME)."""
    probability: Path | None = None
    """Also write the probability map, float32: a file, or a folder for a folder of scans."""
    sides: bool = False
    """Label the patient's left femur 1 and the right one 2, instead of both 1."""
    overwrite: bool = False
    """Replace masks that exist."""
    verify: int = 0
    """Random voxels to evaluate patch by patch too; the largest difference is printed, a large one is an error."""
    prediction: tyro.conf.OmitArgPrefixes[config.PredictConfig] = dataclasses.field(
        default_factory=config.PredictConfig
    )


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


def jobs(arguments: SegmentArguments) -> tuple[list[Job], bool]:
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


def _check_folders(arguments: SegmentArguments) -> None:
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


def _announce_resampling(job: Job, image: image_io.Image, spacing_mm: tuple[float, float, float]) -> None:
    """Say what is resampled; warn where the scan's spacing is far from the model's."""
    own = volume.canonical(image.volume).spacing_mm
    if volume.spacings_agree(own, spacing_mm):
        return
    text = " x ".join(f"{s:.3g}" for s in own) + " mm is resampled to " + " x ".join(f"{s:.3g}" for s in spacing_mm)
    ratios = [max(a / b, b / a) for a, b in zip(own, spacing_mm, strict=True)]
    if max(ratios) > SPACING_RATIO:
        command.warn(f"{job.image}: spacing {text} mm, far from what the model was trained on. Check the mask.")
    else:
        command.say(f"{job.name}: spacing {text} mm")


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
    return Prepared(image, study.prepare(image.volume, data))


def segment(job: Job, scan: Prepared, bundle: Bundle, arguments: SegmentArguments) -> Result:
    """Segment one scan and write its mask.

    Args:
      job: what to write.
      scan: the scan.
      bundle: the model.
      arguments: sides, verification and prediction options.

    Raises:
      DataError: the model has no recipe, a file could not be written, or verification failed.
    """
    from femur_tf import bundle as bundles

    start = time.perf_counter()
    recipe, image = bundle.recipe, scan.image
    _announce_resampling(job, image, bundle.settings.data.patch.spacing_mm)
    found = bundles.working_map(bundle, scan.working, arguments.prediction, verify=arguments.verify)
    network_s = time.perf_counter() - start
    own = bundles.to_own_grid(found, image.volume)
    mask = postprocess.apply(own, recipe, spacing_mm=image.volume.spacing_mm)
    labels = postprocess.sides(mask, image.volume.affine) if arguments.sides else mask
    if job.probability:
        image_io.write_image(job.probability, own, like=image)
    image_io.write_image(job.mask, labels, like=image)
    cm3 = float(mask.sum() * np.prod(image.volume.spacing_mm)) / 1000
    total_s = time.perf_counter() - start
    return Result(job.name, cm3, postprocess.count_parts(mask), network_s, total_s, job.mask)


def _ahead(todo: Sequence[Job], data: config.DataConfig) -> Iterator[tuple[Job, concurrent.futures.Future[Prepared]]]:
    """Yield each job with its scan, while the scan after it is being read and prepared."""
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        scans = [reader.submit(prepare, job, data) for job in todo[:1]]
        for index, job in enumerate(todo):
            if index + 1 < len(todo):
                scans.append(reader.submit(prepare, todo[index + 1], data))
            yield job, scans.pop(0)


def _outputs(job: Job) -> Iterator[Path]:
    """Yield the files a job writes."""
    yield job.mask
    if job.probability:
        yield job.probability


def main(arguments: SegmentArguments) -> int:
    """Segment, and print one table; 2 where a scan of a folder could not be segmented."""
    todo, is_folder = jobs(arguments)
    if is_folder:
        _check_folders(arguments)
    if is_folder and not arguments.overwrite:
        done = [job for job in todo if job.mask.exists()]
        if done:
            command.say(f"{len(done)} of {len(todo)} scans have a mask and are passed over; --overwrite replaces them.")
        todo = [job for job in todo if job not in done]
    # A folder's map without its mask is what an interrupted run left: the mask is written last.
    _check_outputs(todo, arguments.image, overwrite=arguments.overwrite or is_folder)
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    bundle = bundles.load(arguments.model)
    results, failed = [], 0
    for number, (job, scan) in enumerate(_ahead(todo, bundle.settings.data), start=1):
        command.say(f"{job.name} ({number} of {len(todo)})")
        try:
            prepared = scan.result()
        except DataError as error:
            if not is_folder:
                raise
            command.fail(str(error))
            failed += 1
            continue
        results.append(segment(job, prepared, bundle, arguments))
    rows = [(r.name, f"{r.volume_cm3:.1f}", r.parts, f"{r.network_s:.1f}", f"{r.total_s:.1f}", r.mask) for r in results]
    command.table("Femur masks", ("scan", "cm3", "parts", "network s", "all s", "file"), rows)
    return 2 if failed else 0


if __name__ == "__main__":
    command.run(main, SegmentArguments)
