"""Command: choose the recipe on validation cases; score any part of the study against its reference masks."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from femur_tf import calibration, command, config, files, metrics, postprocess, quiet, recipe, report, study
from femur_tf.errors import DataError

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle, ChosenRecipe
    from femur_tf.case_maps import CaseMap


SPECIFICITY = 0.99


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """Choose cut-off and recipe on the validation cases, or score a run on the test cases.

    Example: python -m femur_tf.evaluate work/ --run default && python -m femur_tf.evaluate work/ --part test

    Every score is against the untouched reference mask, on its own grid.
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


@dataclasses.dataclass(frozen=True)
class CaseScore:
    """One row of the table."""

    case: str
    dice: float
    ppv: float
    sensitivity: float
    specificity: float
    surface_mm: float
    """Average symmetric surface distance."""
    hausdorff95_mm: float
    volume_cm3: float
    reference_cm3: float


def score(name: str, mask: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> CaseScore:
    """Score one mask.

    Args:
      name: of the case.
      mask: (X, Y, Z) bool.
      reference: the same shape.
      spacing_mm: of both.
    """
    distances = metrics.surface_distances(mask, reference, spacing_mm=spacing_mm)
    cm3 = float(np.prod(spacing_mm)) / 1000
    return CaseScore(
        name,
        metrics.dice(mask, reference),
        metrics.ppv(mask, reference),
        metrics.sensitivity(mask, reference),
        metrics.specificity(mask, reference),
        distances.mean_mm,
        distances.hausdorff95_mm,
        mask.sum() * cm3,
        reference.sum() * cm3,
    )


def _mean_row(scores: list[CaseScore]) -> list[str]:
    """Return the table's last row: mean and standard deviation of each column, over the cases that have a value."""
    columns = np.array([dataclasses.astuple(s)[1:] for s in scores], float)
    known = [column[np.isfinite(column)] for column in columns.T]
    return ["mean +- sd", *(f"{k.mean():.3f} +- {k.std():.3f}" if k.size else "nan" for k in known)]


def _defined(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with None, JSON's null, for undefined scores: JSON has no NaN."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def _save(folder: Path, part: str, scores: list[CaseScore], summary: dict[str, object]) -> None:
    """Write the scores as CSV and JSON."""
    names = [field.name for field in dataclasses.fields(CaseScore)]
    with files.whole(folder / f"{part}.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(dataclasses.astuple(s) for s in scores)
    rows = [_defined(dataclasses.asdict(s)) for s in scores]
    files.write_json(folder / f"{part}.json", {**_defined(summary), "cases": rows})


def _choose(
    bundle: Bundle, maps: list[CaseMap], raw: metrics.VoxelCounts, arguments: EvaluateArguments
) -> ChosenRecipe:
    """Fit the calibration, choose the recipe for calibrated probabilities, and save both in the run folder.

    Args:
      bundle: the model, not calibrated.
      maps: of the validation cases.
      raw: their `case_maps.raw_counts`.
      arguments: the command's.

    Raises:
      DataError: the validation cases do not allow the choice asked for.
    """
    from femur_tf import bundle as bundles

    names = tuple(one.loaded.case.name for one in maps)
    method = arguments.cutoff or "dice"
    least = SPECIFICITY if arguments.specificity is None else arguments.specificity
    try:
        fitted = calibration.fit(raw)
        choice = recipe.choose([one.sample(fitted) for one in maps], method=method, specificity=least)
    except ValueError as error:
        raise DataError(f"{bundle.folder}: cut-off on {', '.join(names)}: {error}") from error
    chosen = bundles.ChosenRecipe(choice.recipe, method, names, choice.auc, choice.raw_dice, choice.dice, fitted)
    files.write_json(bundle.folder / bundles.RECIPE, config.to_dict(chosen))
    command.say(f"Recipe saved: {bundle.folder / bundles.RECIPE}")
    return chosen


def _save_cohort(bundle: Bundle, plan: study.Plan, chosen: ChosenRecipe) -> None:
    """Measure what is usual among training and validation cases, for the quality flag."""
    from femur_tf import bundle as bundles
    from femur_tf import case_maps

    found = case_maps.cohort(bundle, plan, chosen.recipe, chosen.calibration)
    if found is None:
        command.warn("The quality flag needs two training or validation cases or more: it is left out.")
        return
    files.write_json(bundle.folder / bundles.COHORT, config.to_dict(found))
    command.say(f"Cohort of {found.cases} cases saved: {bundle.folder / bundles.COHORT}")


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


def _show_steps(samples: list[recipe.Sample], chosen: config.RecipeConfig) -> None:
    """Print the mean Dice after each step."""
    effects = [postprocess.step_effects(s.probability, chosen, s.reference, s.spacing_mm) for s in samples]
    raw = recipe.mean_dice(samples, dataclasses.replace(chosen, steps=()))
    rows: list[tuple[object, ...]] = [("cut-off", f"{chosen.cutoff:.4f}", raw)]
    for index, step in enumerate(chosen.steps):
        rows.append((step.name, f"{step.value:g}", float(np.mean([effect[index][2] for effect in effects]))))
    command.table("Recipe: mean Dice after each step", ("step", "value", "Dice"), rows)


def _check_choice(arguments: EvaluateArguments) -> None:
    """Raise where a choice is asked for on test cases, or one that another flag makes void."""
    asked = [f"--{name}" for name in ("cutoff", "specificity") if getattr(arguments, name) is not None]
    if arguments.part == "test" and asked:
        raise DataError(
            f"Expected no choice on test cases. Received: {' and '.join(asked)} with --part test. Choose on validation "
            f"cases: python -m femur_tf.evaluate {arguments.work} --run {arguments.run} {asked[0]} ..."
        )
    if arguments.specificity is not None and arguments.cutoff != "specificity":
        raise DataError("Expected --cutoff specificity with --specificity. Received: --specificity without it.")


def _write_page(
    path: Path,
    title: str,
    scores: list[CaseScore],
    cases: Iterable[tuple[study.LoadedCase, np.ndarray]],
    roc: tuple[metrics.VoxelCounts, float],
) -> None:
    """Write the report: the table, the ROC with the cut-off on it, a picture of each case."""
    counts, cutoff = roc
    page = report.Page(title)
    page.add_table([field.name for field in dataclasses.fields(CaseScore)], [dataclasses.astuple(s) for s in scores])
    page.add_roc(metrics.curve(counts), metrics.auc(counts), cutoff)
    for loaded, mask in cases:
        page.add_case(loaded.case.name, loaded.image.volume, mask, loaded.reference)
    page.write(path)


def evaluate(arguments: EvaluateArguments) -> list[CaseScore]:
    """Score one part of a study; on validation cases choose the recipe first.

    Returns:
      One score a case, in the plan's order.

    Raises:
      DataError: no plan, no run, no case of that part; a choice asked for on test cases; no recipe chosen yet.
    """
    _check_choice(arguments)
    plan = study.read_plan(arguments.work)
    cases = plan.part(arguments.part)
    if not cases:
        raise DataError(f"{study.plan_path(arguments.work)}: expected {arguments.part} cases. Received: none.")
    run = study.run_path(arguments.work, arguments.run)
    if not (run / "model.keras").exists():
        raise DataError(f"{run}: expected a trained run. Run first: python -m femur_tf.train {arguments.work}")
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles
    from femur_tf import case_maps

    bundle = bundles.load(run, calibrated=False)
    if arguments.part == "test":
        _ = bundle.recipe  # raises where none has been chosen
    maps = [case_maps.read(bundle, plan, case) for case in cases]
    raw = case_maps.raw_counts(maps)
    chosen = bundle.chosen if arguments.part == "test" and bundle.chosen else _choose(bundle, maps, raw, arguments)
    samples = [one.sample(chosen.calibration) for one in maps]
    masks = [postprocess.apply(s.probability, chosen.recipe, spacing_mm=s.spacing_mm) for s in samples]
    scores = [
        score(case.name, mask, s.reference, s.spacing_mm) for case, mask, s in zip(cases, masks, samples, strict=True)
    ]
    _show_steps(samples, chosen.recipe)
    counts = recipe.count_voxels(samples)
    folder = arguments.work / "reports" / arguments.run
    summary = {
        "run": arguments.run,
        "part": arguments.part,
        "auc": metrics.auc(counts),
        "recipe": config.to_dict(chosen.recipe),
        "calibration": config.to_dict(chosen.calibration),
        "reliability": _reliability(raw, counts),
    }
    _save(folder, arguments.part, scores, summary)
    pictured = zip([one.loaded for one in maps], masks, strict=True)
    title = f"{arguments.run}: {arguments.part} cases"
    _write_page(folder / f"{arguments.part}.html", title, scores, pictured, (counts, chosen.recipe.cutoff))
    if arguments.part == "validation" and arguments.cohort:
        _save_cohort(bundle, plan, chosen)
    return scores


def show(title: str, scores: list[CaseScore]) -> None:
    """Print one table: a row a case, and the mean."""
    header = ("case", "Dice", "PPV", "sens.", "spec.", "ASSD mm", "HD95 mm", "cm3", "reference cm3")
    rows: list[list[object]] = [list(dataclasses.astuple(s)) for s in scores]
    command.table(title, header, [*rows, _mean_row(scores)])


def main(arguments: EvaluateArguments) -> None:
    """Evaluate, and print one table."""
    show(f"Run {arguments.run}, {arguments.part} cases", evaluate(arguments))
    command.say(f"Report: {arguments.work / 'reports' / arguments.run / (arguments.part + '.html')}")


if __name__ == "__main__":
    command.run(main, EvaluateArguments)
