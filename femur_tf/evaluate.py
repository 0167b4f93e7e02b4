"""Command: choose the recipe on validation cases; score any part of the study against its reference masks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from femur_tf import (
    calibration,
    case_scores,
    command,
    config,
    files,
    lineage,
    machine,
    metrics,
    postprocess,
    quiet,
    recipe,
    report,
    study,
)
from femur_tf.case_scores import CaseScore
from femur_tf.errors import DataError, typed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from femur_tf.bundle import Bundle, ChosenRecipe
    from femur_tf.case_maps import CaseMap


SPECIFICITY = 0.99


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """Choose cut-off and recipe on the validation cases, or score a run on the test cases.

    Example: python -m femur_tf.evaluate work/ --run default && python -m femur_tf.evaluate work/ --part test

    Every score is against the untouched reference mask, on its own grid. A run that was trained on all cases takes
    the recipe of one that was not: python -m femur_tf.evaluate all/ --recipe-from work/runs/default
    """

    work: command.Work
    run: str = "default"
    """Name of the run."""
    part: Literal["validation", "test"] = "validation"
    """`validation` chooses and saves the recipe; `test` only measures, with the recipe saved before."""
    cutoff: recipe.Method | None = None
    """How the ROC gives the cut-off: largest Dice (the default), Youden's index, or --specificity."""
    specificity: float | None = None
    """Least specificity over all voxels, with --cutoff specificity; by default 0.99."""
    cohort: bool = True
    """On validation, also measure what is usual among training and validation cases, for the quality flag."""
    recipe_from: Path | None = None
    """A run of the same settings, made with validation cases, whose cut-off, steps and calibration are taken over; in a
    study without validation cases."""
    max_memory: int = config.PredictConfig.max_memory
    """Peak resident memory while a map is computed, in MB (10^6 bytes); less where the machine has less."""

    @property
    def prediction(self) -> config.PredictConfig:
        """How maps are computed."""
        return config.PredictConfig(max_memory=self.max_memory)


def _reliability(raw: metrics.VoxelCounts, calibrated: metrics.VoxelCounts) -> dict[str, dict[str, object]]:
    """Return how probabilities compare with the share of bone, before and after calibration."""
    result: dict[str, dict[str, object]] = {}
    for name, counts in (("before", raw), ("after", calibrated)):
        table, doubtful = (calibration.reliability(c) for c in (counts, calibration.doubtful(counts)))
        result[name] = {
            "expected_error": calibration.expected_error(table),
            "expected_error_of_doubtful": calibration.expected_error(doubtful),
            "brier": calibration.brier(counts),
            "table": [list(row) for row in zip(*(v.tolist() for v in dataclasses.astuple(table)), strict=True)],
        }
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """What the cases of a part gave. Of a case's volumes nothing is kept: a part may have any number of cases."""

    scores: list[CaseScore] = dataclasses.field(default_factory=list)
    after: list[list[float]] = dataclasses.field(default_factory=list)
    """Of each case its Dice after the cut-off and after each step."""
    raw: metrics.VoxelCounts = dataclasses.field(default_factory=metrics.VoxelCounts)
    """Their voxels by the probability before calibration."""
    calibrated: metrics.VoxelCounts = dataclasses.field(default_factory=metrics.VoxelCounts)
    """And after it."""
    pictures: report.Page = dataclasses.field(default_factory=report.Page)

    def add(self, one: CaseMap, chosen: ChosenRecipe) -> None:
        """Score a case with a recipe and its calibration."""
        recipe.count_voxels([one.sample(calibration.NONE)], self.raw)
        sample = one.sample(chosen.calibration)
        recipe.count_voxels([sample], self.calibrated)
        after = []
        for mask in postprocess.stages(sample.probability, chosen.recipe, spacing_mm=sample.spacing_mm):
            after.append(metrics.dice(mask, sample.reference))
        self.after.append(after)
        name = one.loaded.case.name
        self.scores.append(case_scores.score(name, mask, sample.reference, sample.spacing_mm))
        self.pictures.add_case(name, one.loaded.image.volume, mask, sample.reference)


def _show_steps(after: list[list[float]], chosen: config.RecipeConfig) -> None:
    """Print the mean Dice after the cut-off and after each step."""
    steps = [("cut-off", f"{chosen.cutoff:.4f}"), *((step.name, f"{step.value:g}") for step in chosen.steps)]
    rows = [(*step, float(mean)) for step, mean in zip(steps, np.mean(after, axis=0), strict=True)]
    command.table("Recipe: mean Dice after each step", ("step", "value", "Dice"), rows)


def _check_choice(arguments: EvaluateArguments) -> None:
    """Raise where a choice is asked for on test cases, or one that another flag makes void."""
    asked = [f"--{name}" for name in ("cutoff", "specificity") if getattr(arguments, name) is not None]
    if arguments.part == "test" and asked:
        raise DataError(
            f"Expected no choice on test cases. Received: {' and '.join(asked)} with --part test. Choose on validation "
            f"cases: {typed('femur_tf.evaluate', arguments.work, '--run', arguments.run, asked[0], '...')}"
        )
    if arguments.recipe_from and (asked or arguments.part == "test"):
        other = asked[0] if asked else "--part test"
        raise DataError(f"Expected --recipe-from alone, which chooses nothing. Received: {other} as well.")
    if arguments.max_memory < 1:
        raise DataError(f"--max-memory: expected at least 1 MB. Received: {arguments.max_memory}")
    if arguments.specificity is not None and arguments.cutoff != "specificity":
        raise DataError("Expected --cutoff specificity with --specificity. Received: --specificity without it.")
    if arguments.specificity is not None and not 0 < arguments.specificity < 1:
        raise DataError(f"--specificity: expected a share in (0, 1), such as 0.99. Received: {arguments.specificity}")


def _write_page(path: Path, title: str, judged: Judged, cutoff: float) -> None:
    """Write the report: the table, the ROC with the cut-off on it, a picture of each case."""
    page = report.Page(title)
    rows = [dataclasses.astuple(one) for one in judged.scores]
    page.add_table([field.name for field in dataclasses.fields(CaseScore)], rows)
    page.add_roc(metrics.curve(judged.calibrated), metrics.auc(judged.calibrated), cutoff)
    page.extend(judged.pictures)
    page.write(path)


def _load(arguments: EvaluateArguments) -> Bundle:
    """Return the run, not calibrated; TensorFlow is loaded.

    Raises:
      DataError: there is no trained run of that name.
    """
    run = study.run_path(arguments.work, arguments.run)
    if not (run / "model.keras").exists():
        there = files.names_beside(run, "model.keras")
        words = () if arguments.run in config.PRESETS else ("--run", arguments.run)
        raise DataError(
            f"{run}: expected a trained run. Received: no such one; there are: {there}. "
            f"Run first: {typed('femur_tf.train', arguments.work, *words)}"
        )
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    return bundles.load(run, calibrated=False)


def adopt(arguments: EvaluateArguments) -> None:
    """Take over another run's recipe, in a study without validation cases.

    Raises:
      DataError: no plan, no run; a study with validation cases; the other run has other settings or no recipe.
    """
    _check_choice(arguments)
    plan = study.read_plan(arguments.work)
    if names := [case.name for case in plan.part("validation")]:
        raise DataError(
            f"{study.plan_path(arguments.work)}: expected no validation cases with --recipe-from. "
            f"Received: {', '.join(names)}. Leave it out: the recipe is chosen on them."
        )
    bundle = _load(arguments)
    from femur_tf import bundle as bundles
    from femur_tf import choosing

    chosen = choosing.adopt(bundle, bundles.load(arguments.recipe_from or bundle.folder, calibrated=False))
    if arguments.cohort:
        choosing.save_cohort(bundle, plan, chosen, arguments.prediction)


def _choose(
    bundle: Bundle, plan: study.Plan, cases: Sequence[study.Case], arguments: EvaluateArguments
) -> ChosenRecipe:
    """Choose the recipe on validation cases."""
    from femur_tf import case_maps, choosing

    def maps() -> Iterator[CaseMap]:
        return (case_maps.read(bundle, plan, case, arguments.prediction) for case in cases)

    least = SPECIFICITY if arguments.specificity is None else arguments.specificity
    names = [case.name for case in cases]
    return choosing.choose(bundle, names, maps, method=arguments.cutoff or "dice", specificity=least)


def evaluate(arguments: EvaluateArguments) -> list[CaseScore]:
    """Score one part of a study; on validation cases choose the recipe first.

    Returns:
      One score a case, in the plan's order.

    Raises:
      DataError: no plan, no run, no case of that part; a choice asked for on test cases; no recipe chosen yet; a run
        that has seen the cases.
    """
    _check_choice(arguments)
    folder = arguments.work / "reports" / arguments.run
    files.require_place(folder / f"{arguments.part}.html")
    plan = study.read_plan(arguments.work)
    cases = study.needed(arguments.work, plan, arguments.part)
    bundle = _load(arguments)
    from femur_tf import case_maps, choosing

    if arguments.part == "test":
        _ = bundle.recipe  # raises where none has been chosen
    choosers = bundle.chosen.cases if bundle.chosen else ()
    lineage.require_unseen(bundle.folder, [case.name for case in cases], arguments.part, choosers)
    machine.base_bytes()  # before the first scan is read
    chosen, judged = bundle.chosen, Judged()
    if arguments.part == "validation" or chosen is None:
        chosen = _choose(bundle, plan, cases, arguments)
    for case in cases:
        judged.add(case_maps.read(bundle, plan, case, arguments.prediction), chosen)
    _show_steps(judged.after, chosen.recipe)
    summary = {
        "run": arguments.run,
        "part": arguments.part,
        "auc": metrics.auc(judged.calibrated),
        "recipe": config.to_dict(chosen.recipe),
        "calibration": config.to_dict(chosen.calibration),
        "reliability": _reliability(judged.raw, judged.calibrated),
    }
    case_scores.save(folder, arguments.part, judged.scores, summary)
    title = f"{arguments.run}: {arguments.part} cases"
    _write_page(folder / f"{arguments.part}.html", title, judged, chosen.recipe.cutoff)
    if arguments.part == "validation" and arguments.cohort:
        choosing.save_cohort(bundle, plan, chosen, arguments.prediction)
    return judged.scores


def main(arguments: EvaluateArguments) -> None:
    """Evaluate, and print one table; or take over a recipe."""
    if arguments.recipe_from:
        adopt(arguments)
        return
    case_scores.show(f"Run {arguments.run}, {arguments.part} cases", evaluate(arguments))
    command.say(f"Report: {arguments.work / 'reports' / arguments.run / (arguments.part + '.html')}")


if __name__ == "__main__":
    command.run(main, EvaluateArguments)
