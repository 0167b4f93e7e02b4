"""The parts of a search's page that say what was found: summary, best-so-far curves, best and failed trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from femur_tf.report import Page
from tuning import report_curves, report_pictures, trials
from tuning.report_curves import Group
from tuning.report_found import BETTER, Found, outside_share, parameter_names
from tuning.report_space import show
from tuning.trials import TrialRow

BEST = 10
"""Trials in the table of the best."""
REASON_CHARACTERS = 400
"""Of a reason why a trial failed; the rest is in trials.csv."""


def add_summary(page: Page, found: Found) -> None:
    """Add what was searched for, how, and how far it has come."""
    search, rows = found.search, found.rows
    statuses = Counter(row.status for row in rows)
    training_s, outside_s = (sum(getattr(row, f"{part}_seconds") for row in rows) for part in ("training", "outside"))
    share = outside_share(rows)
    each = [f"{search.minutes:g} minutes"] if search.minutes is not None else []
    each += [f"{search.epochs} epochs"] if search.epochs is not None else []
    lines = [
        ("algorithm", search.algorithm),
        ("objective", f"{search.objective}, {BETTER[search.direction]}"),
        ("seed", search.seed),
        ("limit on cost, multiply-adds a voxel", show(search.max_cost)),
        ("training of a trial", ", ".join(each)),
        ("started", search.started),
        ("trials asked for", search.trials),
        ("trials made", ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"),
        ("stopped early", sum(row.stopped_early for row in rows)),
        ("training, wall minutes", f"{training_s / 60:.1f}"),
        ("outside training, wall minutes", f"{outside_s / 60:.1f}"),
        ("share of time outside training", "not known yet" if math.isnan(share) else f"{share:.1%}"),
    ]
    if found.ranked:
        best = found.ranked[0]
        lines.append(("best score", f"{show(best.score)}, trial {best.number}"))
    page.add_table(("search", found.name), lines, mean=False)
    page.add_text(
        "Wall minutes are those of the clock. The minutes that a trial is given are, on a CPU, CPU minutes over the "
        "number of cores: where other work shares them, a trial takes longer."
    )
    if statuses[trials.COMPLETED] < search.trials:
        page.add_text(
            f"{statuses[trials.COMPLETED]} of {search.trials} trials are COMPLETED: this search is not whole."
        )


def add_progress(page: Page, searches: Sequence[Found]) -> None:
    """Add the best-so-far curves of one search, or of several to compare, which share their objective."""
    search = searches[0].search
    groups = report_curves.group([report_curves.curve(f.name, f.search, f.rows) for f in searches])
    page.add_heading("Best so far")
    if not any(found.finished for found in searches):
        page.add_text("No trial has finished yet.")
        return
    caption = f"Best {search.objective} so far ({BETTER[search.direction]}), after each trial and over time: "
    ends = [f"{item.label} {_spread(item.best[:, -1])} after {item.trials} trials" for item in groups if item.trials]
    if any(len(item.curves) > 1 for item in groups):
        caption += "a thin line is one search, a thick one the mean, a band goes from the worst to the best search. "
    page.add_picture(
        report_pictures.progress_png(groups, search.objective, search.direction), caption + "; ".join(ends) + "."
    )
    if len(searches) > 1:
        _add_comparison(page, groups)


def add_best(page: Page, found: Found) -> None:
    """Add the ten best trials, with their cost and values."""
    page.add_heading(f"The {BEST} best trials")
    names = parameter_names(found)
    header = ("trial", found.search.objective, "multiply-adds a voxel", "training, wall minutes", "epochs", *names)
    body = [
        (row.number, show(row.score), show(row.cost), f"{row.training_seconds / 60:.1f}",
         f"{row.epochs}{', stopped early' if row.stopped_early else ''}", *(show(row.values.get(n)) for n in names))
        for row in found.ranked[:BEST]
    ]  # fmt: skip
    page.add_table(header, body, mean=False)
    page.add_text("An empty cell: the trial does not use this hyper-parameter. All trials are in trials.csv.")


def add_failures(page: Page, found: Found) -> None:
    """Add the trials that failed, each with its reason."""
    failed = [row for row in found.rows if row.status not in (trials.COMPLETED, trials.RUNNING)]
    page.add_heading("Trials that failed")
    if not failed:
        page.add_text("None.")
        return
    body = [(f"{row.number}: {_short(row.reason)}", row.status, _values(row)) for row in failed]
    page.add_table(("trial and reason", "status", "values"), body, mean=False)


def _add_comparison(page: Page, groups: Sequence[Group]) -> None:
    """Add a table of the best scores of each algorithm after a quarter, half and all of the trials that all made."""
    shared = min(item.trials for item in groups)
    places = sorted({max(round(shared * part), 1) for part in (0.25, 0.5, 1)}) if shared else []
    after = [f"after {place} trials" for place in places]
    header = ("searches", "number", *after, "trials of all", "wall minutes of all")
    body = [
        (item.label, len(item.curves), *(_spread(item.best[:, place - 1]) for place in places), item.trials,
         f"{item.minutes:.1f}")
        for item in groups
    ]  # fmt: skip
    page.add_table(header, body, mean=False)
    page.add_text("Best score so far: the mean over searches, and from the smallest to the largest.")


def _spread(best: np.ndarray) -> str:
    """Return the best scores (searches,) of a group as text."""
    if not np.isfinite(best).all():
        return "none yet"
    text = show(float(best.mean()))
    return text if len(best) == 1 else f"{text} ({show(float(best.min()))} to {show(float(best.max()))})"


def _short(reason: str | None) -> str:
    """Return a reason, shortened where it is long."""
    text = " ".join((reason or "not given").split())
    return text if len(text) <= REASON_CHARACTERS else text[:REASON_CHARACTERS] + " ..."


def _values(row: TrialRow) -> str:
    """Return the values of a trial in one cell."""
    return ", ".join(f"{name} {show(value)}" for name, value in row.values.items())
