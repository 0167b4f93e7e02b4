"""Command: the whole line on phantoms, from scans to a mask and a page, by the commands that a user types.

FOLDER/cohort/images, masks    phantom scans and their true masks
FOLDER/work                    the study: plan, records, run, reports
FOLDER/saved_models/femur      the exported model
FOLDER/new                     a scan that is in no study: scan, true mask, the mask found
FOLDER/report.html             the page
"""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from femur_tf import case_scores, command, files, image_io, phantom, report
from femur_tf.errors import DataError, typed

SHAPE = (112, 112, 32)
SPACING_MM = (2.3, 2.3, 4.8)
"""Of a phantom scan: the field of view of the usual phantom on fewer voxels."""
TEST_CASES, VALIDATION_CASES = 2, 2
PER_CASE = 8_000
"""Examples of each case: 50 MB of records."""
SETTINGS = ("model.filters=[12,32,48]", "model.dropout_dense=0.25", "train.batch=128")
"""Of the training: a smaller network and shorter steps than the default, so that two minutes are enough."""
SEED = 2017
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
"""TensorFlow's remarks on the machine would bury the commands' own lines; its errors come as exceptions."""
MARK = ".femur_tf_demo"
"""A file in the folder of a demo, without which `--overwrite` removes nothing."""
COLUMNS = ("dice", "ppv", "sensitivity", "surface_mm", "hausdorff95_mm")
"""The scores shown, of those that `evaluate` gives."""
HEADER = ("case", "Dice", "PPV", "sensitivity", "ASSD mm", "HD95 mm")


@dataclasses.dataclass(frozen=True)
class DemoArguments:
    """Run the whole line on phantoms: cohort, plan, records, training, evaluation, export, a new scan's mask, a page.

    Example: python -m femur_tf.demo

    Takes some minutes and about 500 MB of disk. Each command is shown before it runs.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("demo")
    """Where everything is written."""
    cases: int = 10
    """Phantom cases of the cohort: two for validation, two for the test, the rest for training."""
    minutes: float = 1.75
    """Training time, as --minutes of femur_tf.train."""
    overwrite: bool = False
    """Replace the folder of an earlier demo."""


def write_phantom(seed: Sequence[int], image: Path, mask: Path, *, shape: tuple[int, int, int] = SHAPE) -> None:
    """Write a phantom scan and its true mask.

    Args:
      seed: each case has its own.
      image: the file to write the scan to.
      mask: the file to write the mask to.
      shape: of the scan, in voxels.
    """
    case = phantom.make(np.random.default_rng(seed), shape=shape, spacing_mm=SPACING_MM)
    grid = image_io.Image(case.image, image)
    image_io.write_image(image, case.image.data, like=grid)
    image_io.write_image(mask, case.mask, like=grid)


def names(count: int) -> list[str]:
    """Return the names of the cohort's cases, in order; the last ones are the test cases."""
    return [f"phantom_{index + 1:02d}" for index in range(count)]


def commands(folder: Path, cases: Sequence[str], minutes: float) -> list[list[str]]:
    """Return the commands that take a cohort of phantoms to the mask of a new scan, each as its words."""
    work, model, new = (str(folder / name) for name in ("work", "saved_models/femur", "new"))
    cohort = ["--images", str(folder / "cohort/images"), "--masks", str(folder / "cohort/masks")]
    split = ["--test", ",".join(cases[-TEST_CASES:]), "--validation", str(VALIDATION_CASES)]
    return [
        ["data_prep.plan", work, *cohort, *split, "--per-case", str(PER_CASE), "--copies", "1"],
        ["data_prep.write_records", work],
        ["femur_tf.records", "check", work],
        [
            "femur_tf.train",
            work,
            "--minutes",
            f"{minutes:g}",
            *(part for setting in SETTINGS for part in ("--set", setting)),
        ],
        ["femur_tf.evaluate", work],
        ["femur_tf.evaluate", work, "--part", "test"],
        ["femur_tf.export", work, "--to", model],
        ["femur_tf.segment", f"{new}/scan.nii.gz", f"{new}/femur.nii.gz", "--model", model, "--sides"],
    ]


def run_command(words: Sequence[str]) -> None:
    """Show a command and run it, in a process of its own.

    Raises:
      DataError: its exit status is not 0; the message names the command.
    """
    text = typed(*words)
    command.say(f"\n$ {text}")
    status = subprocess.run([sys.executable, "-m", *words], check=False, env={**QUIET, **os.environ}).returncode
    if status:
        raise DataError(f"{text}: expected exit status 0. Received: {status}. Its own message is above.")


def _prepare(arguments: DemoArguments) -> None:
    """Make an empty folder for the demo.

    Raises:
      DataError: too few cases, no training time, or a folder that may not be replaced.
    """
    least = TEST_CASES + VALIDATION_CASES + 1
    if arguments.cases < least:
        raise DataError(f"--cases: expected at least {least}. Received: {arguments.cases}.")
    if not arguments.minutes > 0:
        raise DataError(f"--minutes: expected a time above 0. Received: {arguments.minutes}.")
    files.refuse_existing(arguments.folder, overwrite=arguments.overwrite)
    if arguments.folder.exists() and not (arguments.folder / MARK).exists():
        raise DataError(
            f"{arguments.folder}: expected the folder of an earlier demo. Received: another folder, which is kept. "
            "Choose another name."
        )
    files.remove(arguments.folder)
    files.write_text(arguments.folder / MARK, "Made by python -m femur_tf.demo, which may replace this folder.\n")


def _write_cohort(folder: Path, cases: Sequence[str]) -> None:
    """Write the scans and masks of the cohort, and the new scan with its true mask."""
    for index, name in enumerate(command.track(cases, "phantoms")):
        image, mask = (folder / "cohort" / kind / f"{name}.nii.gz" for kind in ("images", "masks"))
        write_phantom((SEED, index), image, mask)
    write_phantom((SEED, len(cases)), folder / "new" / "scan.nii.gz", folder / "new" / "reference.nii.gz")
    command.say(f"{len(cases)} phantom scans in {folder / 'cohort'}, one more in {folder / 'new'}.")


def _test_rows(folder: Path) -> list[list[object]]:
    """Return the table's rows of the test cases, as `evaluate` wrote them."""
    with (folder / "work/reports/default/test.csv").open(newline="") as stream:
        return [[f"{row['case']} (test)", *(float(row[name]) for name in COLUMNS)] for row in csv.DictReader(stream)]


def _read_new(folder: Path) -> tuple[image_io.Image, np.ndarray, np.ndarray]:
    """Return the new scan, the mask found and its true mask."""
    image = image_io.read_image(folder / "new/scan.nii.gz")
    mask = image_io.read_image(folder / "new/femur.nii.gz").volume.data > 0  # 1 left, 2 right
    return image, mask, image_io.read_mask(folder / "new/reference.nii.gz", like=image, label=None)


def own_data_commands() -> list[str]:
    """Return the commands for a user's own scans and masks."""
    return [
        "python -m data_prep.plan work/ --images scans/ --masks masks/ --test NAME,NAME",
        "python -m data_prep.write_records work/",
        "python -m femur_tf.train work/ --minutes 30",
        "python -m femur_tf.evaluate work/",
        "python -m femur_tf.evaluate work/ --part test",
        "python -m femur_tf.export work/ --to saved_models/femur",
        "python -m femur_tf.segment scan.nii.gz femur.nii.gz --model saved_models/femur",
    ]


def _write_page(folder: Path, todo: Sequence[Sequence[str]]) -> list[list[object]]:
    """Write the page and return the rows of the cases that training never saw."""
    page = report.Page("femur_tf: the whole line on phantoms")
    page.add_text(
        "Synthetic scans of hips; the true masks are known. Below: the cases that neither training nor the choice of "
        "the cut-off saw. Scores on phantoms say nothing about patients."
    )
    image, mask, reference = _read_new(folder)
    score = case_scores.score("new scan", mask, reference, image.volume.spacing_mm)
    rows = [*_test_rows(folder), ["new scan", *(getattr(score, name) for name in COLUMNS)]]
    page.add_table(HEADER, rows)
    page.add_case("The new scan", image.volume, mask, reference)
    page.add_text("The test cases are shown in work/reports/default/test.html, beside their ROC curve.")
    page.add_heading("What was run")
    page.add_commands([typed(*words) for words in todo])
    page.add_heading("With scans and masks of your own")
    page.add_commands(own_data_commands())
    page.write(folder / "report.html")
    return rows


def main(arguments: DemoArguments) -> None:
    """Run the demo; print one table, where the page lies, and the commands for one's own data."""
    start_s = time.monotonic()
    folder, cases = arguments.folder, names(arguments.cases)
    _prepare(arguments)
    _write_cohort(folder, cases)
    todo = commands(folder, cases, arguments.minutes)
    for words in todo:
        run_command(words)
    rows = _write_page(folder, todo)
    command.say("")
    command.table("Cases that training never saw", HEADER, rows)
    mean = float(np.mean([row[1] for row in rows]))
    command.say(f"Mean Dice {mean:.3f}. {(time.monotonic() - start_s) / 60:.1f} minutes in all.")
    command.say(f"Page with pictures: {folder / 'report.html'}")
    command.say("With scans and masks of your own:")
    for line in own_data_commands():
        command.say(f"  {line}")


if __name__ == "__main__":
    command.run(main, DemoArguments)
