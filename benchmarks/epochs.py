"""Which epoch of a training is best: the masks of every one, beside what its validation patches say.

Example: python -m benchmarks.epochs work/ --run epochs --minutes 20

Trains `default` as `femur_tf.train` does and keeps the network of each epoch (WORK/runs/NAME/each/); then each is
evaluated densely on the validation cases, with a calibration and a recipe of its own. A table and one JSON line; a
killed run goes on where it stopped. Test cases are not read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks import derived, scoring
from femur_tf import command, config, files, quiet, records, study
from femur_tf import train as command_train


@dataclasses.dataclass(frozen=True)
class EpochsArguments:
    """Train `default`, and score the masks of each epoch on the validation cases.

    Example: python -m benchmarks.epochs work/ --run epochs --minutes 20
    """

    work: command.Work
    run: str = "epochs"
    """Name of the run."""
    minutes: float = 20.0
    """Of training: minutes on the GPU, or CPU minutes over the number of cores."""


def folder_of(run: Path, epoch: int) -> Path:
    """Return the folder of an epoch's network, which `bundle.load` reads."""
    return run / "each" / f"epoch-{epoch:04d}"


def train(arguments: EpochsArguments) -> list[dict[str, float]]:
    """Train, or go on, with the network of each epoch kept; return the history.

    Raises:
      DataError: as `training.train` does, or another process is training the run.
    """
    import keras

    from femur_tf import bundle as bundles
    from femur_tf import training

    folder, run = study.records_path(arguments.work), study.run_path(arguments.work, arguments.run)
    asked = command_train.TrainArguments(arguments.work, preset=derived.PRESET, minutes=arguments.minutes)
    settings = command_train.settings(asked, records.read_manifest(folder).data)

    def keep(epoch: int, _logs: dict[str, float]) -> None:
        with files.whole(folder_of(run, epoch + 1)) as temporary:
            temporary.mkdir()
            keeping.model.save(temporary / bundles.MODEL)
            files.write_json(temporary / bundles.CONFIG, config.to_dict(settings))

    keeping = keras.callbacks.LambdaCallback(on_epoch_end=keep)
    with files.locked(run, "Wait for it, or choose another --run."):
        return training.train(folder, run, settings, callbacks=[keeping]).history


def scored(arguments: EpochsArguments, history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return each epoch's row of the history, with what `scoring.of_maps` says of its maps under `volumes`.

    Raises:
      DataError: the study has no validation cases.
    """
    from femur_tf import bundle as bundles
    from femur_tf import case_maps

    plan, run = study.read_plan(arguments.work), study.run_path(arguments.work, arguments.run)
    cases = study.needed(arguments.work, plan, "validation")
    options = config.PredictConfig(max_memory=derived.MEMORY_MB)
    result = []
    for row in history:
        bundle = bundles.load(folder_of(run, int(row["epoch"])), calibrated=False)
        maps = [case_maps.read(bundle, plan, case, options) for case in cases]
        result.append({**row, "volumes": scoring.of_maps(maps)})
    return result


def main(arguments: EpochsArguments) -> None:
    """Print a table and one JSON line."""
    study.needed(arguments.work, study.read_plan(arguments.work), "validation")  # told before the training
    quiet.start_tensorflow()
    found = scored(arguments, train(arguments))
    lines = [
        (
            int(row["epoch"]),
            f"{row['seconds'] / 60:.1f}",
            *(f"{row[name]:.4f}" for name in ("val_log_loss", "val_auc")),
            *(f"{row['volumes'][name]:.4f}" for name in ("auc", "cutoff_dice", "dice")),
        )
        for row in found
    ]
    header = ("epoch", "minutes", "log-loss, patches", "AUC, patches", "AUC, voxels", "Dice, cut-off", "Dice, recipe")
    command.table(f"Run {arguments.run}, validation cases", header, lines)
    command.say(json.dumps(found))


if __name__ == "__main__":
    command.run(main, EpochsArguments)
