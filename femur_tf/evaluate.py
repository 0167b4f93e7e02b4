"""Command: choose the recipe on validation cases; score any part of the study against its reference masks."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from femur_tf import calibration, command, config, files, lineage, metrics, postprocess, quiet, recipe, report, study
from femur_tf.errors import DataError

if TYPE_CHECKING:
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
    """Peak resident memory while a map is computed, in MB (10^6 bytes)."""

    @property
    def prediction(self) -> config.PredictConfig:
        """How maps are computed."""
        return config.PredictConfig(max_memory=self.max_memory)


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


def _defined(values: Any) -> Any:
    """Return values, and what they hold, with None, JSON's null, for undefined scores: JSON has no NaN."""
    if isinstance(values, dict):
        return {name: _defined(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_defined(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _save(folder: Path, part: str, scores: list[CaseScore], summary: dict[str, object]) -> None:
    """Write the scores as CSV and JSON."""
    names = [field.name for field in dataclasses.fields(CaseScore)]
    with files.whole(folder / f"{part}.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(dataclasses.astuple(s) for s in scores)
    rows = [_defined(dataclasses.asdict(s)) for s in scores]
    files.write_json(folder / f"{part}.json", {**_defined(summary), "cases": rows})


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
    if arguments.recipe_from and (asked or arguments.part == "test"):
        other = asked[0] if asked else "--part test"
        raise DataError(f"Expected --recipe-from alone, which chooses nothing. Received: {other} as well.")
    if arguments.max_memory < 1:
        raise DataError(f"--max-memory: expected at least 1 MB. Received: {arguments.max_memory}")
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


def _load(arguments: EvaluateArguments) -> Bundle:
    """Return the run, not calibrated; TensorFlow is loaded.

    Raises:
      DataError: there is no trained run of that name.
    """
    run = study.run_path(arguments.work, arguments.run)
    if not (run / "model.keras").exists():
        raise DataError(f"{run}: expected a trained run. Run first: python -m femur_tf.train {arguments.work}")
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


def _chosen(
    bundle: Bundle, maps: list[CaseMap], raw: metrics.VoxelCounts, arguments: EvaluateArguments
) -> ChosenRecipe:
    """Return the recipe: chosen on validation cases, for test cases the one saved before."""
    from femur_tf import choosing

    if arguments.part == "test" and bundle.chosen:
        return bundle.chosen
    least = SPECIFICITY if arguments.specificity is None else arguments.specificity
    return choosing.choose(bundle, maps, raw, method=arguments.cutoff or "dice", specificity=least)


def evaluate(arguments: EvaluateArguments) -> list[CaseScore]:
    """Score one part of a study; on validation cases choose the recipe first.

    Returns:
      One score a case, in the plan's order.

    Raises:
      DataError: no plan, no run, no case of that part; a choice asked for on test cases; no recipe chosen yet; a run
        that has seen the cases.
    """
    _check_choice(arguments)
    plan = study.read_plan(arguments.work)
    cases = study.needed(arguments.work, plan, arguments.part)
    bundle = _load(arguments)
    from femur_tf import case_maps, choosing

    if arguments.part == "test":
        _ = bundle.recipe  # raises where none has been chosen
    choosers = bundle.chosen.cases if bundle.chosen else ()
    lineage.require_unseen(bundle.folder, [case.name for case in cases], arguments.part, choosers)
    maps = [case_maps.read(bundle, plan, case, arguments.prediction) for case in cases]
    raw = case_maps.raw_counts(maps)
    chosen = _chosen(bundle, maps, raw, arguments)
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
        choosing.save_cohort(bundle, plan, chosen, arguments.prediction)
    return scores


def show(title: str, scores: list[CaseScore]) -> None:
    """Print one table: a row a case, and the mean."""
    header = ("case", "Dice", "PPV", "sens.", "spec.", "ASSD mm", "HD95 mm", "cm3", "reference cm3")
    rows: list[list[object]] = [list(dataclasses.astuple(s)) for s in scores]
    command.table(title, header, [*rows, _mean_row(scores)])


def main(arguments: EvaluateArguments) -> None:
    """Evaluate, and print one table; or take over a recipe."""
    if arguments.recipe_from:
        adopt(arguments)
        return
    show(f"Run {arguments.run}, {arguments.part} cases", evaluate(arguments))
    command.say(f"Report: {arguments.work / 'reports' / arguments.run / (arguments.part + '.html')}")


if __name__ == "__main__":
    command.run(main, EvaluateArguments)
