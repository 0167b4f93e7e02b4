"""A plain 2-D U-Net (Ronneberger et al. 2015) on the same study, for the same training minutes as our network.

Three neighbouring coronal slices in, the middle one's mask out (`benchmarks.crops`); Dice plus cross-entropy; Adam,
whose rate falls by a cosine. The working grid, the split, the clock, the choice of cut-off and recipe on validation
cases, and the scores on the scan's own grid are those of `femur_tf`.

    WORK/unet/NAME/settings.json  what it was trained with
    WORK/unet/NAME/checkpoint/    model with optimizer state: a killed run goes on at its last epoch
    WORK/unet/NAME/history.csv    one row an epoch
    WORK/unet/NAME/model.keras    the epoch with the lowest validation loss
    WORK/unet/NAME/recipe.json    cut-off and steps, with the validation numbers that chose them
"""

from __future__ import annotations

import dataclasses
import json

from femur_tf import command, files, quiet, study


@dataclasses.dataclass(frozen=True)
class UnetArguments:
    """Train a plain 2-D U-Net on a study, choose its recipe, and print one JSON line.

    Example: python -m benchmarks.unet work/ --minutes 20

    Run again with --test, once, when all is chosen: it only measures then.
    """

    work: command.Work
    minutes: float = 20.0
    """Training time: minutes on the GPU, or CPU minutes over the number of cores."""
    run: str = "default"
    """Name of the run, below WORK/unet."""
    seed: int = 2017
    test: bool = False
    """Measure the test cases too, with the recipe that the validation cases chose."""
    overwrite: bool = False
    """Train anew where there is a run of that name."""


def main(arguments: UnetArguments) -> None:
    """Train, choose, measure, and print one JSON line."""
    plan = study.read_plan(arguments.work)
    parts: tuple[study.Part, ...] = ("train", "validation", "test") if arguments.test else ("train", "validation")
    for part in parts:
        study.needed(arguments.work, plan, part)  # told before the training
    folder = files.child(arguments.work / "unet", arguments.run)
    quiet.start_tensorflow()
    import keras

    from benchmarks import unet_training as unet
    from femur_tf import bundle as bundles

    with files.locked(folder, "Wait for it, or choose another --run."):
        state = unet.train(folder, plan, minutes=arguments.minutes, seed=arguments.seed, overwrite=arguments.overwrite)
    network = keras.saving.load_model(folder / bundles.MODEL, compile=False)
    line = {"minutes": state.seconds / 60, "parameters": network.count_params(), "epochs": state.epoch}
    for part in parts[1:]:
        line |= unet.measure(network, plan, part, folder)
    command.say(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in line.items()}))


if __name__ == "__main__":
    command.run(main, UnetArguments, goes_on=True)
