"""Command: run folder -> SavedModel version that TensorFlow Serving takes and `segment` runs from.

    saved_models/NAME/VERSION/               the SavedModel, with the signatures of `femur_tf.signatures`
    saved_models/NAME/VERSION/assets.extra/  model.keras, config.json, recipe.json, model_card.md, warm-up requests

A version is written under a temporary name and renamed, so that a server that polls
the folder never sees half of one.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from femur_tf import command, config, files, lineage, quality, quiet, served, study
from femur_tf.errors import DataError, WriteError, typed

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle
    from femur_tf.signatures import Endpoint

CARD = "model_card.md"


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """Export a trained run as the next version of a saved model.

    Example: python -m femur_tf.export work/ --run default --to saved_models/femur
    """

    work: command.Work
    to: Path
    """Folder of the saved model; the version is a number below it."""
    run: str = "default"
    """Name of the run."""
    card: Path | None = None
    """Markdown file to use as the model card, in place of the one made from the settings."""


def write_saved_model(bundle: Bundle, folder: Path, metadata: str = "{}") -> list[Endpoint]:
    """Write the SavedModel with its named signatures.

    `tf.saved_model.save` of a Keras model loads in Python and fails in the C++ runtime, so `ExportArchive` is used.

    Args:
      bundle: the model.
      folder: where to.
      metadata: the JSON that the signature `metadata` answers.

    Returns:
      The signatures.
    """
    import keras
    import tensorflow as tf

    from femur_tf import signatures

    found = signatures.endpoints(bundle.model, bundle.settings.data.patch, metadata)
    archive = keras.export.ExportArchive()
    archive.track(bundle.model)
    for endpoint in found:
        archive.add_endpoint(endpoint.name, endpoint.function, list(endpoint.inputs))
    try:
        archive.write_out(str(folder), verbose=False)
    except tf.errors.OpError as error:
        what = "Free space, or write elsewhere."
        raise WriteError(f"{folder}: expected room for a saved model. Received: {error.message}. {what}") from error
    return found


def _planes(rule: config.PatchConfig) -> str:
    """Return the steps of each scale with its planes, for a reader."""
    towers = [(rule.steps[scale], config.PLANES[plane]) for scale, plane in rule.towers]
    chosen = {steps: ", ".join(name for other, name in towers if other == steps) for steps, _ in towers}
    return "; ".join(f"steps {steps} voxels: {names}" for steps, names in chosen.items())


def model_card(bundle: Bundle, name: str) -> str:
    """Return a model card in Markdown, made from the settings and the validation numbers."""
    chosen = bundle.chosen
    patch = bundle.settings.data.patch
    lines = [
        f"# Model card: {name}",
        "",
        "Segments the proximal femur in MR volumes with a per-voxel triplanar network (femur_tf).",
        "",
        "Intended use: research. Not for diagnosis.",
        "",
        f"- working spacing: {' x '.join(f'{s:g}' for s in patch.spacing_mm)} mm (right, anterior, superior)",
        f"- patches: {patch.size} x {patch.size} samples; {_planes(patch)}",
    ]
    if chosen:
        lines += [
            f"- validation cases: {len(chosen.cases)}",
            f"- validation: voxel AUC {chosen.auc:.4f}, mean Dice {chosen.dice:.3f}",
            f"- mean Dice of the cut-off alone: {chosen.raw_dice:.3f}",
            f"- cut-off: {chosen.recipe.cutoff:.4f}",
        ]
    settings = json.dumps(config.to_dict(bundle.settings), indent=2)
    return "\n".join([*lines, "", "## Settings", "", "```json", settings, "```", ""])


def _write_version(bundle: Bundle, folder: Path, name: str, card: str) -> None:
    """Write a version: its model, what is needed beside it, the SavedModel and its warm-up requests.

    No name of a case goes along, as it may be a patient's.

    Args:
      bundle: the model.
      folder: where to.
      name: of the saved model.
      card: the model card.
    """
    from femur_tf import bundle as bundles

    extra = folder / bundles.EXTRA
    extra.mkdir(parents=True)
    # Loaded without its optimizer, whose state is twice the weights.
    bundles.network(bundle.folder, bundle.settings).save(extra / bundles.MODEL)
    for file in (bundles.CONFIG, *([bundles.COHORT] if bundle.cohort else [])):
        shutil.copyfile(bundle.folder / file, extra / file)
    chosen = bundle.chosen and dataclasses.replace(
        bundle.chosen, cases=tuple(lineage.pseudonym(case) for case in bundle.chosen.cases)
    )
    files.write_json(extra / bundles.RECIPE, config.to_dict(chosen))
    (extra / CARD).write_text(card, encoding="utf-8")
    metadata = served.metadata(dataclasses.replace(bundle, folder=extra, chosen=chosen), name, card)
    endpoints = write_saved_model(bundle, folder, served.to_json(metadata))
    served.write_warm_up(extra / served.WARM_UP, name, [(e.name, e.example) for e in endpoints])


def export(bundle: Bundle, to: Path, *, card: str | None = None) -> Path:
    """Write a bundle as the next version of a saved model.

    Args:
      bundle: the model; a recipe must have been chosen.
      to: folder of the saved model.
      card: the model card; made from the settings by default.

    Returns:
      The version's folder.

    Raises:
      DataError: the bundle has no recipe, or another process exports to the folder.
    """
    from femur_tf import bundle as bundles

    recipe = bundle.recipe
    quality.require_cohort(str(bundle.folder), bundle.cohort)
    command.say(f"Cut-off {recipe.cutoff:.4f}, {len(recipe.steps)} steps")
    place = to.resolve() if to.name in ("", "..") else to
    card = model_card(bundle, place.name) if card is None else card
    with files.locked(place / "versions", "Wait for it to end."):  # two at once would take the same number
        found = bundles.versions(to)
        version = to / str(int(found[-1].name) + 1 if found else 1)
        with files.whole(version) as temporary:
            _write_version(bundle, temporary, place.name, card)
    return version


def _read_card(path: Path) -> str:
    """Return the text of a model card.

    Raises:
      DataError: it is not text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text in UTF-8. Received: {error}. Save it as UTF-8.") from error


def main(arguments: ExportArguments) -> None:
    """Export, and say how to use it."""
    files.require_place(arguments.to / "VERSION")
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    card = _read_card(arguments.card) if arguments.card else None
    bundle = bundles.load(study.run_path(arguments.work, arguments.run))
    version = export(bundle, arguments.to, card=card)
    written = {path: path.stat().st_size for path in sorted(version.rglob("*")) if path.is_file()}
    rows = [(str(path.relative_to(version)), size // 1000) for path, size in written.items()]
    command.table(f"{version} ({sum(written.values()) / 1e6:.1f} MB)", ("file", "kB"), rows)
    command.say(f"Next: {typed('femur_tf.segment', 'IMAGE', 'MASK', '--model', arguments.to)}")


if __name__ == "__main__":
    command.run(main, ExportArguments)
