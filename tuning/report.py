"""Command: one HTML page about a search, that needs no server, and its trials as CSV.

    work/reports/tuning-NAME/report.html
    work/reports/tuning-NAME/trials.csv

It reads what the search left on disk (`tuning.trials`), so it works while a search
runs and after it was stopped. No TensorFlow.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from femur_tf import command, files
from femur_tf.errors import DataError
from femur_tf.report import Page
from tuning import report_findings, report_found, report_page
from tuning.report_found import Found
from tuning.report_space import show
from tuning.trials import TrialRow

PAGE, TABLE = "report.html", "trials.csv"
PREFIX = "hp_"
"""Before the name of a hyper-parameter, as a column of the CSV file."""
SHOWN = 5
"""Of the best trials, in the table at the end."""


@dataclasses.dataclass(frozen=True)
class ReportArguments:
    """Write one HTML page about a hyper-parameter search, and its trials as CSV.

    Example: python -m tuning.report work/ --name bayesian1 --compare bayesian2 random1 random2

    The page is one file in work/reports/tuning-NAME/. It may be made while the search runs, and replaces an earlier
    one.
    """

    work: command.Work
    name: str | None = None
    """Name of the search; not needed where the study has only one."""
    compare: tuple[str, ...] = ()
    """Other searches of the same objective and records, in the same best-so-far picture; searches that differ in their
    seed alone as mean and band."""


def search_names(work: Path) -> list[str]:
    """Return the names of the searches of a study."""
    return sorted(path.parent.name for path in (work / "tuning").glob("*/search.json"))


def read_searches(arguments: ReportArguments) -> list[Found]:
    """Read the search and those to compare it with, each once.

    Raises:
      DataError: no such search, none named where there are several, or one with another objective or other records.
    """
    known = search_names(arguments.work)
    if arguments.name is None and len(known) != 1:
        raise DataError(
            f"{arguments.work / 'tuning'}: expected one search, or --name. Received: {', '.join(known) or 'no search'}."
        )
    names = dict.fromkeys([arguments.name or known[0], *arguments.compare])
    found = [report_found.read(arguments.work, name) for name in names]
    for other in found[1:]:
        _require_comparable(found[0], other)
    return found


def _require_comparable(found: Found, other: Found) -> None:
    """Raise where the scores of two searches do not measure the same.

    Raises:
      DataError: they have another objective, or other records; an early search does not tell its records.
    """
    wanted, received = found.search, other.search
    if wanted.objective != received.objective:
        raise DataError(
            f"--compare {other.name}: expected the objective of {found.name}, {wanted.objective}. "
            f"Received: {received.objective}. Leave it out."
        )
    if wanted.records != received.records and "" not in (wanted.records, received.records):
        raise DataError(
            f"--compare {other.name}: expected the records of {found.name}. Received: others. Leave it out."
        )


def write_page(path: Path, searches: Sequence[Found]) -> None:
    """Write the page of the first search; the others are in its best-so-far picture.

    Args:
      path: of the page.
      searches: of one objective, on the same records.
    """
    found = searches[0]
    page = Page(f"Search {found.name}")
    page.add_text(f"As found on disk at {time.strftime('%Y-%m-%d %H:%M')}.")
    report_page.add_summary(page, found)
    report_page.add_progress(page, searches)
    report_page.add_best(page, found)
    report_findings.add_importance(page, found)
    report_findings.add_panels(page, found)
    report_findings.add_belief(page, found)
    report_page.add_failures(page, found)
    page.write(path)


def write_table(path: Path, found: Found) -> None:
    """Write all trials as CSV: what is known of each, then its hyper-parameters; an unused one is empty."""
    fields = [field.name for field in dataclasses.fields(TrialRow) if field.name != "values"]
    names = report_found.parameter_names(found)
    with files.whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*fields, *(PREFIX + name for name in names)])
        for row in found.rows:
            writer.writerow([*(getattr(row, name) for name in fields), *(row.values.get(name) for name in names)])


def report(arguments: ReportArguments) -> Found:
    """Write the page and the table of a search, and say so where they replace earlier ones.

    Returns:
      The search.

    Raises:
      DataError: as `read_searches` does.
    """
    searches = read_searches(arguments)
    folder = report_folder(arguments.work, searches[0].name)
    if (folder / PAGE).exists():
        command.say(f"Replacing the earlier page in {folder}.")
    write_page(folder / PAGE, searches)
    write_table(folder / TABLE, searches[0])
    return searches[0]


def report_folder(work: Path, name: str) -> Path:
    """Return where the page of the search `name` lies."""
    return work / "reports" / f"tuning-{name}"


def main(arguments: ReportArguments) -> None:
    """Write the page; print the best trials and where it lies."""
    found = report(arguments)
    rows = [
        (row.number, show(row.score), show(row.cost), f"{row.training_seconds / 60:.1f}")
        for row in found.ranked[:SHOWN]
    ]
    title = f"Search {found.name}: {len(found.finished)} of {found.search.trials} trials finished; the best"
    command.table(title, ("trial", found.search.objective, "multiply-adds a voxel", "training, wall minutes"), rows)
    folder = report_folder(arguments.work, found.name)
    command.say(f"Page: {folder / PAGE}")
    command.say(f"All trials: {folder / TABLE}")


if __name__ == "__main__":
    command.run(main, ReportArguments)
