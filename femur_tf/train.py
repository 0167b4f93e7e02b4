"""Command: train the network on the records of a study."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from femur_tf import command, config, files, quiet, records, study
from femur_tf.errors import DataError, typed


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    """Train the network on the records of a study, or go on with a run that was interrupted.

    Example: python -m femur_tf.train work/ --preset default --minutes 30

    One setting: python -m femur_tf.train work/ --run wide --set model.filters=[24,48,96] --set train.batch=128
    """

    work: command.Work
    preset: Literal["paper", "default"] = "default"
    """Network and training settings to start from (docs/train.md lists them)."""
    config: Path | None = None
    """JSON file with `model` and `train` settings, in place of a preset."""
    run: str | None = None
    """Name of the run; by default the preset's."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting to change, as NAME=VALUE with the value in JSON; once for each."""
    epochs: int | None = None
    """Passes over the records; by default the preset's."""
    minutes: float | None = None
    """Training time to use instead of epochs: minutes on the GPU, or CPU minutes over the number of cores."""
    mined: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A mined set (data_prep.mine) whose examples are read beside the records; once for each."""
    start: str | None = None
    """A run of this study whose weights to start from."""
    mixed_precision: bool = False
    """Compute in float16 on a GPU, in bfloat16 on a CPU: faster where the processor has it (avx512_bf16, amx_bf16)."""
    overwrite: bool = False
    """Start the run anew where one of that name exists."""


def _change(values: dict[str, Any], assignment: str) -> None:
    """Apply one NAME=VALUE to nested settings, in place."""
    name, found, text = assignment.partition("=")
    *parents, last = name.split(".")
    target: Any = values
    for parent in parents:
        target = target.get(parent, {}) if isinstance(target, dict) else {}
    if not found or not isinstance(target, dict) or last not in target:
        names = _names(values)
        if not found and name in names:
            raise DataError(f"--set: expected NAME=VALUE. Received: {assignment!r}, without =VALUE.")
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        example = f"Perhaps you meant {' or '.join(near)}." if near else "Names: see docs/train.md."
        raise DataError(f"--set: expected NAME=VALUE with the name of a setting. Received: {assignment!r}. {example}")
    try:
        target[last] = json.loads(text)
    except ValueError as error:
        if isinstance(target[last], list | tuple) or text[:1] in ("[", "{"):
            raise DataError(f"--set {name}: expected JSON such as [24,48,96]. Received: {text}") from error
        target[last] = text


def _names(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings."""
    inner = [(f"{prefix}{name}", value) for name, value in values.items()]
    return [n for name, value in inner for n in (_names(value, f"{name}.") if isinstance(value, dict) else [name])]


def _start(arguments: TrainArguments, data: config.DataConfig) -> dict[str, Any]:
    """Return the settings of the config file or of the preset, as nested dictionaries."""
    if arguments.config:
        values = files.read_json(arguments.config)
        found = config.from_dict(config.RunConfig, values, str(arguments.config))
        # Which patches to read is the file's; how they came about is known of the records alone.
        data = dataclasses.replace(data, patch=found.data.patch if "data" in values else data.patch)
        return config.to_dict(dataclasses.replace(found, data=data))
    preset = config.PRESETS[arguments.preset]
    patch = preset.patch(data.patch)
    if patch.scales_mm != preset.scales_mm:
        command.say(
            f"Scales: those of the records, {_listed(patch.scales_mm)} mm; "
            f"the preset's, {_listed(preset.scales_mm)} mm, are not all among them."
        )
    return config.to_dict(config.RunConfig(dataclasses.replace(data, patch=patch), preset.model, preset.train))


def _listed(scales_mm: Sequence[float]) -> str:
    """Return scales as a person reads them."""
    return ", ".join(f"{scale:g}" for scale in scales_mm)


def settings(arguments: TrainArguments, data: config.DataConfig) -> config.RunConfig:
    """Return the settings of the run that the arguments ask for.

    Args:
      arguments: the command's.
      data: what the records were made with.

    Raises:
      DataError: an unknown setting, a value out of range, or a config file that cannot be read.
    """
    if arguments.epochs is not None and arguments.minutes is not None:
        raise DataError("Expected --epochs or --minutes. Received: both. Leave one out.")
    values = _start(arguments, data)
    for assignment in arguments.set:
        _change(values, assignment)
    if arguments.epochs is not None:
        values["train"] |= {"epochs": arguments.epochs, "minutes": None}
    if arguments.minutes is not None:
        values["train"]["minutes"] = arguments.minutes
    if arguments.mined:
        values["train"]["mined"] = list(arguments.mined)
    if arguments.start is not None:
        values["train"]["start"] = arguments.start
    if arguments.mixed_precision:
        values["train"]["mixed_precision"] = True
    flags = {"set": arguments.set or None, "epochs": arguments.epochs, "minutes": arguments.minutes}
    source = ", ".join(f"--{name}" for name, value in flags.items() if value is not None) or "settings"
    return config.from_dict(config.RunConfig, values, source)


def main(arguments: TrainArguments) -> None:
    """Train, and print one table."""
    folder = study.records_path(arguments.work)
    manifest = records.read_manifest(folder)
    chosen = settings(arguments, manifest.data)
    run = study.run_path(arguments.work, arguments.run or arguments.preset)
    quiet.start_tensorflow()
    from femur_tf import training

    with files.locked(run, "Wait for it, or choose another --run."):
        state = training.train(folder, run, chosen, overwrite=arguments.overwrite)
    names = [name for name in ("loss", "val_loss", "val_auc", "val_dice") if name in state.history[-1]]
    rows = [(int(row["epoch"]), f"{row['seconds'] / 60:.1f}", *(row[name] for name in names)) for row in state.history]
    command.table(f"Run {run}", ("epoch", "minutes", *names), rows)
    recipe = () if manifest.count("validation") else ("--recipe-from", "RUN_WITH_VALIDATION_CASES")
    command.say(f"Next: {typed('femur_tf.evaluate', arguments.work, '--run', run.name, *recipe)}")


if __name__ == "__main__":
    command.run(main, TrainArguments, goes_on=True)
