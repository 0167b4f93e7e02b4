"""The parts of a search's page that are inferred from its trials: importance, panels, what the model believes next."""

from __future__ import annotations

import numpy as np

from femur_tf import command
from femur_tf.report import Page
from tuning import importance, report_belief, report_curves, report_pictures, report_space
from tuning.report_found import BETTER, Found
from tuning.report_space import show

PROPOSALS = 4
"""Trials that the model would make next, in its table."""
NO_RANGES = (
    "The ranges of the hyper-parameters are not known: oracle.json, which a search writes with its first trial, is "
    "missing, damaged, or of another space than the trials."
)


def add_importance(page: Page, found: Found) -> None:
    """Add the importance of each hyper-parameter, with a word on how far to trust it."""
    page.add_heading("Which hyper-parameters matter")
    scores, count = found.scores, len(found.axes)
    if not found.axes:
        page.add_text(f"Not measured. {NO_RANGES}")
        return
    if not importance.can_measure(scores):
        page.add_text(
            f"Not measured: it takes {importance.MIN_TRIALS} finished trials of unequal scores, and is worth little "
            f"below {importance.TRIALS_PER_PARAMETER} a hyper-parameter. There are {len(scores)}."
        )
        return
    splits = command.track(range(importance.SPLITS), "importance")
    within = scores.clip(*report_curves.score_limits(scores, found.search.direction))
    measured = importance.measure(found.points, within, splits=splits)
    names = [axis.name for axis in found.axes]
    top = [f"{names[i]} {measured.mean[i]:.3g} +- {measured.sd[i]:.2g}" for i in np.argsort(-measured.mean)]
    page.add_picture(
        report_pictures.importance_png(measured, names, found.search.objective),
        f"Error that a random forest makes on trials it has not seen, added when the values of one hyper-parameter are "
        f"exchanged among them; mean and standard deviation over {importance.SPLITS} splits: {', '.join(top)}.",
    )
    verdict = "better than guessing" if measured.learned else "no better than guessing, so these bars say nothing"
    page.add_text(
        f"The forest's own error is {measured.error:.3g}, that of the plain mean {measured.mean_error:.3g}: {verdict}."
    )
    if len(scores) < importance.TRIALS_PER_PARAMETER * count:
        page.add_text(
            f"{len(scores)} trials for {count} hyper-parameters, under {importance.TRIALS_PER_PARAMETER} each: "
            "take the order for a hint at most."
        )


def add_panels(page: Page, found: Found) -> None:
    """Add one panel a hyper-parameter: scores against values."""
    page.add_heading("Score against each hyper-parameter")
    if not found.finished:
        page.add_text("No trial has finished yet.")
        return
    if not found.axes and all(row.cost is None for row in found.finished):
        page.add_text(f"None. {NO_RANGES} What the trials cost is not known, either.")
        return
    best, search = found.ranked[0], found.search
    png = report_pictures.panels_png(
        found.axes, found.finished, best, objective=search.objective, direction=search.direction
    )
    values = ", ".join(f"{name} {show(value)}" for name, value in best.values.items())
    page.add_picture(
        png,
        f"{search.objective} of {len(found.finished)} trials, {BETTER[search.direction]}; later trials are darker, a "
        f"triangle at the edge lies beyond it. The star is the best trial, {best.number}: {show(best.score)} with "
        f"{values}.",
    )


def add_belief(page: Page, found: Found) -> None:
    """Add what a Gaussian process believes of trials not made: proposals, and a line along each hyper-parameter."""
    page.add_heading("What the model believes next")
    rows, search = found.rows, found.search
    if not found.axes:
        page.add_text(f"Nothing. {NO_RANGES}")
        return
    if not report_belief.can_fit(rows):
        page.add_text(
            f"Nothing yet: a model takes {report_belief.MIN_TRIALS} finished trials of unequal scores. "
            f"There are {len(found.finished)}."
        )
        return
    belief = report_belief.fit(found.axes, rows, search)
    page.add_text(_describe(belief, found))
    _add_proposals(page, belief, found)
    best = found.ranked[0]
    used = [axis for axis in found.axes if report_space.is_used(axis, best.values)]
    lines = [report_belief.along(belief, axis, best.values, found.space) for axis in used]
    ends = [f"{line.axis.name} {show(line.values[_best_index(line, belief.sign)])}" for line in lines]
    page.add_picture(
        report_pictures.belief_png(lines, best, objective=search.objective),
        f"{search.objective} predicted along each hyper-parameter, the others as in the best trial, {best.number} (the "
        f"star); bands are 1 and 2 standard deviations. Best predicted on each line: {', '.join(ends)}.",
    )


def _describe(belief: report_belief.Belief, found: Found) -> str:
    """Return what the model is, how well it does, and whether the search asks it."""
    error, mean_error = report_belief.left_out_errors(belief)
    learned = error < importance.LEARNED * mean_error
    verdict = "it has learned something" if learned else "it has learned nothing yet"
    text = (
        f"A Gaussian process (Matern 2.5) on {len(belief.points)} trials, the one that a Bayesian search asks; failed "
        f"trials count as the worst. Its length is {belief.length:.2g} of a range; a trial made again would differ by "
        f"{belief.noise:.2g}. A trial left out is predicted within {error:.3g} on average, by the mean of the others "
        f"within {mean_error:.3g}: {verdict}."
    )
    initial = found.settings.get("initial")
    if initial is None:
        return f"{text} This search, {found.search.algorithm}, does not ask it."
    if len(found.finished) < initial:
        return f"{text} The search asks it from {initial} finished trials on, and draws at random before."
    return text


def _add_proposals(page: Page, belief: report_belief.Belief, found: Found) -> None:
    """Add a table of the next trials by the model, and the one of the best predicted score."""
    if found.space is None:
        page.add_text("No trials are proposed: the records or the space of the search are missing, or are others now.")
        return
    beta = found.settings.get("beta", report_belief.BETA)
    following, sure = (
        report_belief.propose(belief, found.space, found.rows, found.search, betas=betas)
        for betas in ([beta] * PROPOSALS, [0.0])
    )
    chosen = [(f"next, {number}", one) for number, one in enumerate(following, 1)]
    if sure:  # none where the space is used up
        chosen.append(("best predicted", min([*following, *sure], key=lambda one: belief.sign * one.mean)))
    names = list(dict.fromkeys(axis.name for axis in found.axes))
    body = [
        (label, show(p.mean), show(p.sd), show(p.cost), *(show(p.values.get(name)) for name in names))
        for label, p in chosen
    ]
    page.add_table(
        ("trial", f"predicted {found.search.objective}", "sd", "multiply-adds a voxel", *names), body, mean=False
    )
    page.add_text(
        f"Next are points of the space, within the limit on cost, whose prediction, bettered by {beta:g} standard "
        "deviations, is best; each takes those above it, and trials that run, as under way. The best predicted is the "
        "best of these and of what would be next if the prediction alone counted."
    )


def _best_index(line: report_belief.Line, sign: int) -> int:
    """Return where on a line the best score is predicted."""
    return int((sign * line.mean).argmin())
