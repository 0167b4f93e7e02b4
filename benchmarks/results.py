"""The shipped model on the test cases: the figures of its card and of docs/results.md, again.

Example: python -m benchmarks.results DATA, or: make results DATA=DIR

DATA holds `images/NAME.nii.gz` and `masks/NAME.nii.gz`. A table, and one JSON line. --pictures DIR draws what the
source does: a case (Figure 2), the ROC (Figure 3) and the measures as bars (Figure 4); and the reliability of the
probabilities before and after calibration. Pictures of cases show the scans: they are for your eyes. --beside MODEL
tells how far the masks of another model agree with these: what two models agree on, the reference need not.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from benchmarks import scoring
from data_prep import cohort, split
from femur_tf import calibration, case_scores, command, files, lineage, metrics, postprocess, quiet, study, volume

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle

TEST = "17,19,20,22"
"""The test cases of the fixed split of the shared hip scans, by the number their names end with."""


@dataclasses.dataclass(frozen=True)
class ResultsArguments:
    """Score a model on the test cases.

    Example: python -m benchmarks.results DATA
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Folder with images/ and masks/."""
    model: Path | None = None
    """A saved model or a run; by default the one that is shipped."""
    cases: str = TEST
    """The numbers that the cases' names end with, separated by commas."""
    pictures: Path | None = None
    """Folder to write pictures to; those of an earlier run are replaced."""
    beside: Path | None = None
    """Another saved model or run, whose masks are compared with this one's."""


def chosen(data: Path, numbers: str) -> list[study.Case]:
    """Return the cases of a folder whose names end with one of the numbers.

    Raises:
      DataError: no case, or more than one, ends with one of them.
    """
    pairs = {pair.name: pair for pair in cohort.pair(data / "images", data / "masks").pairs}
    wanted = sorted(split.named(numbers.split(","), list(pairs)))
    return [study.Case(name, str(pairs[name].image), str(pairs[name].mask), "test") for name in wanted]


def unseen(model: Path, cases: list[study.Case]) -> Bundle:
    """Return a model.

    Raises:
      DataError: it has seen one of the cases.
    """
    from femur_tf import bundle as bundles

    bundle = bundles.load(model)
    choosers = bundle.chosen.cases if bundle.chosen else ()
    lineage.require_unseen(bundle.folder, [case.name for case in cases], "test", choosers)
    return bundle


def draw(
    folder: Path,
    bundle: Bundle,
    scores: list[case_scores.CaseScore],
    counts: metrics.VoxelCounts,
    cases: dict[str, bytes],
) -> None:
    """Write the pictures.

    Args:
      folder: where to.
      bundle: the model.
      scores: of the cases.
      counts: their voxels by calibrated probability.
      cases: the picture of each.
    """
    from femur_tf import pictures, reliability_picture

    fitted = bundle.calibration
    before = calibration.mapped(counts, calibration.inverse(fitted))
    tables = {"before": calibration.reliability(before), "after calibration": calibration.reliability(counts)}
    measures = {name: [getattr(s, name) for s in scores] for name in ("dice", "ppv", "sensitivity", "specificity")}
    drawn = {
        "roc": pictures.roc_png(metrics.curve(counts), metrics.auc(counts), bundle.recipe.cutoff),
        "bars": pictures.bars_png(measures),
        "reliability": reliability_picture.reliability_png(tables),
    } | {f"case_{name}": picture for name, picture in cases.items()}
    for name, picture in drawn.items():
        with files.whole(folder / f"{name}.png") as temporary:
            temporary.write_bytes(picture)
    command.say(f"{len(drawn)} pictures: {folder}")


def segmented(bundle: Bundle, loaded: study.LoadedCase) -> tuple[np.ndarray, np.ndarray]:
    """Return a case's probability map, float32, and its mask, on its own grid."""
    from femur_tf import bundle as bundles

    image = loaded.image.volume
    own = volume.from_working(bundles.working_map(bundle, study.prepare(image, bundle.settings.data)), image)
    return own, postprocess.apply(own, bundle.recipe, spacing_mm=image.spacing_mm)


def main(arguments: ResultsArguments) -> None:
    """Segment and score each case; print a table and one JSON line."""
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    asked = chosen(arguments.data, arguments.cases)
    bundle = unseen(arguments.model or bundles.shipped(), asked)
    other = unseen(arguments.beside, asked) if arguments.beside else None
    plan = study.Plan(tuple(asked), bundle.settings.data)
    scores, counts, cases, beside = [], metrics.VoxelCounts(), {}, {}
    for case in command.track(plan.cases, "cases"):
        loaded = study.load_case(plan, case)
        spacing_mm = loaded.image.volume.spacing_mm
        own, mask = segmented(bundle, loaded)
        counts.add(own.astype(np.float16), loaded.reference)
        if other:
            beside[case.name] = metrics.dice(mask, segmented(other, loaded)[1])
        scores.append(case_scores.score(case.name, mask, loaded.reference, spacing_mm))
        if arguments.pictures:
            from femur_tf import pictures

            cases[case.name] = pictures.overlay_png(loaded.image.volume, mask, loaded.reference)
    case_scores.show(f"{bundle.folder}, test cases", scores)
    line = {"auc": metrics.auc(counts), **scoring.means(scores), "cases": {s.case: s.dice for s in scores}}
    if other:
        line["beside"] = beside
    command.say(json.dumps(line))
    if arguments.pictures:
        draw(arguments.pictures, bundle, scores, counts, cases)


if __name__ == "__main__":
    command.run(main, ResultsArguments)
