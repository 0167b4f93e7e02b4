"""Command: check a cohort, split it, choose the working grid, forecast the records, write `plan.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from data_prep import cohort, fitted, plan_report, split
from data_prep.forecast import check_disk, forecast
from data_prep.suspicions import suspicions
from femur_tf import command, config, files, machine, study
from femur_tf.errors import DataError, typed
from femur_tf.image_errors import listed
from femur_tf.patch_config import Triple


@dataclasses.dataclass(frozen=True)
class PlanArguments:
    """Check a cohort of scans and femur masks, split it by case and plan its records.

    Example: python -m data_prep.plan work/ --images scans/ --masks masks/ --test 17,19,20,22

    An image and its mask have the same file name (NIfTI, NRRD, MetaImage, or a folder of DICOM files). Nothing is
    written unless every case can be used; a suspicious case is named and kept. A plan made again with more cases
    keeps the part of every case that the earlier one holds.
    """

    work: command.Work
    images: Path
    """Folder of the scans."""
    masks: Path
    """Folder of the femur masks, each on the grid of its scan."""
    test: str | None = None
    """Test cases, separated by commas, each by its whole name or the number it ends with."""
    validation: int | None = None
    """Number of validation cases of a first plan, or with --new-split; by default a sixth of those that are not for the
    test, from 2 to 12; 1 of fewer than six. 0 trains on all that are not for the test. Later plans keep the share."""
    spacing: str | None = None
    """Working spacing X,Y,Z in mm along right, anterior, superior; by default the cohort's median."""
    label: str | None = None
    """The mask values that are femur, separated by commas, where masks hold several, such as 1,2 for a left and a right
    one; by default the one value that is not 0."""
    preset: Literal["paper", "default"] = "default"
    """Whose patch scales to plan."""
    scales_mm: str | None = None
    """Distances between patch samples, in mm, separated by commas, 0 for every voxel; in place of the preset's."""
    copies: int | None = None
    """Volumes that a training case is drawn from: the scan, and copies of it in other poses and intensities; by default
    12 of whole hips, up to 192 of small volumes."""
    per_case: int = config.SamplingConfig.per_case
    """Examples drawn from each case."""
    n4: bool = False
    """Correct the bias field of every scan first (N4), as segment then does too; about 10 to 20 s a hip case."""
    processes: int = dataclasses.field(default_factory=lambda: min(4, machine.cores()))
    """Cases checked side by side."""
    new_split: bool = False
    """Draw the split anew, whatever an earlier plan holds."""
    overwrite: bool = False
    """Replace an earlier plan."""


def numbers(text: str, flag: str, count: int | None = None) -> tuple[float, ...]:
    """Return the numbers that a flag lists, separated by commas.

    Args:
      text: what the user wrote.
      flag: named in the error.
      count: how many are expected; None for one or more.

    Raises:
      DataError: other than numbers, or not `count` of them.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or count not in (None, len(found)):
        expected = f"{count} numbers" if count else "numbers"
        raise DataError(f"{flag}: expected {expected} separated by commas, without spaces. Received: {text!r}.")
    return found


def labels(text: str | None) -> tuple[int, ...] | None:
    """Return the mask values that `--label` lists; None where the user wrote none.

    Raises:
      DataError: other than whole numbers besides 0.
    """
    if text is None:
        return None
    found = numbers(text, "--label")
    if not all(one.is_integer() and one for one in found):
        raise DataError(f"--label: expected whole numbers besides 0, separated by commas. Received: {text!r}.")
    return tuple(sorted({int(one) for one in found}))


def check(pairs: Sequence[cohort.Pair], *, label: tuple[int, ...] | None, processes: int) -> tuple[cohort.Facts, ...]:
    """Measure every case of a cohort.

    Args:
      pairs: the cases.
      label: the mask values that are femur; None: the one value besides 0.
      processes: cases read side by side; threads, because most of the time goes into decompression.

    Raises:
      DataError: some cases cannot be used; the message lists every problem of every case.
    """
    with ThreadPoolExecutor(processes) as pool:
        measured = list(
            command.track(pool.map(lambda files: cohort.measure(files, label), pairs), "cases", total=len(pairs))
        )
    facts = tuple(found for found in measured if isinstance(found, cohort.Facts))
    problems = [problem for found in measured if isinstance(found, tuple) for problem in found]
    problems += (*cohort.duplicates(facts), *cohort.names_of_copies([pair.name for pair in pairs]))
    if problems:
        lines = "\n".join(f"  {problem.name}: {problem.message}" for problem in problems)
        raise DataError(f"Expected {len(pairs)} usable cases. Received {len(problems)} problems:\n{lines}")
    return facts


def data_settings(
    arguments: PlanArguments, facts: Sequence[cohort.Facts], parts: Mapping[str, study.Part]
) -> config.DataConfig:
    """Return what the records will hold: the patch rule on the working grid, the grey values, and the sampling.

    Test cases decide none of it.

    Args:
      arguments: the user's.
      facts: of every case.
      parts: of every case.

    Raises:
      DataError: a flag out of range.
    """
    known = [case for case in facts if parts[case.name] != "test"]
    spacing_mm = cohort.median_spacing(known)
    if arguments.spacing is not None:
        x, y, z = numbers(arguments.spacing, "--spacing", 3)
        spacing_mm = (x, y, z)
    try:
        rule, copies = _patch_rule(arguments, known, spacing_mm), arguments.copies
        if copies is None:
            training = [case for case in known if parts[case.name] == "train"]
            copies = fitted.copies(training, spacing_mm, arguments.per_case)
        return config.DataConfig(
            patch=rule,
            normalisation=config.NormalisationConfig(upper_medians=fitted.upper_medians(known), n4=arguments.n4),
            sampling=config.SamplingConfig(per_case=arguments.per_case, near_volume=fitted.NEAR_VOLUME),
            variation=dataclasses.replace(fitted.VARIATION, copies=copies),
            sided=fitted.one_sided(known),
        )
    except ValueError as error:
        raise DataError(str(error)) from error


def _patch_rule(arguments: PlanArguments, facts: Sequence[cohort.Facts], spacing_mm: Triple) -> config.PatchConfig:
    """Return the patch rule: the scales asked for, or those of the preset that have more of the volumes to see.

    Raises:
      DataError, ValueError: a flag out of range.
    """
    if arguments.scales_mm is not None:
        rule = config.PatchConfig(spacing_mm=spacing_mm, scales_mm=numbers(arguments.scales_mm, "--scales-mm"))
        if len(set(rule.steps)) < len(rule.steps):
            raise DataError(f"--scales-mm: expected scales of other samples each. Received: {arguments.scales_mm}")
        return rule
    rule = config.PatchConfig(spacing_mm=spacing_mm, scales_mm=config.PRESETS[arguments.preset].scales_mm)
    kept = fitted.scales_with_more_to_see(facts, rule)
    left_out = ", ".join(f"{scale:g} mm" for scale in rule.scales_mm if scale not in kept)
    if left_out:
        command.say(
            f"Scales left out: {left_out}; the others show as much: their patches span half of a volume or more along "
            "every axis, or have the same samples. "
            f"To have them: --scales-mm {','.join(f'{scale:g}' for scale in rule.scales_mm)}"
        )
    return dataclasses.replace(rule, scales_mm=kept)


def parts_of(
    arguments: PlanArguments, names: Sequence[str], before: study.Plan | None, seed: int
) -> dict[str, study.Part]:
    """Return the part of each case: as an earlier plan has it, or drawn for the first time.

    Raises:
      DataError: as `split.named`, `split.first_split` and `split.later_split` do.
    """
    test = None
    if arguments.test is not None:
        test = split.named([text.strip() for text in arguments.test.split(",") if text.strip()], names)
    earlier = {} if before is None else {case.name: case.part for case in before.cases}
    if arguments.new_split or not earlier:
        parts = split.first_split(names, test=test or frozenset(), validation=arguments.validation, seed=seed)
    else:
        parts = split.later_split(names, earlier, test=test, seed=seed)
        count = list(parts.values()).count("validation")
        if arguments.validation not in (None, count):
            command.warn(
                f"--validation {arguments.validation}: the earlier plan's split is kept, with {count} validation cases "
                "now. Pass --new-split to draw it anew."
            )
    for name in sorted(earlier.keys() & parts.keys()):
        if earlier[name] != parts[name]:
            command.warn(f"{name} moves from {earlier[name]} to {parts[name]}: runs made before used it otherwise.")
    return parts


def _earlier(arguments: PlanArguments) -> study.Plan | None:
    """Return the earlier plan, if any.

    Raises:
      DataError: it cannot be read, and the split is not drawn anew.
    """
    if not study.plan_path(arguments.work).exists():
        return None
    try:
        return study.read_plan(arguments.work)
    except DataError as error:
        if arguments.new_split:
            return None
        raise DataError(f"{error} Pass --new-split to draw the split anew, without the earlier plan.") from error


def main(arguments: PlanArguments) -> None:
    """Check, plan, write `plan.json` and print one table."""
    path = study.plan_path(arguments.work)
    files.require_place(path)
    files.refuse_existing(path, overwrite=arguments.overwrite)
    if arguments.images.resolve() == arguments.masks.resolve():
        raise DataError(f"--masks: expected another folder than that of the scans. Received: {arguments.masks}")
    if arguments.processes < 1:
        raise DataError(f"--processes: expected at least 1. Received: {arguments.processes}")
    label = labels(arguments.label)
    pairing = cohort.pair(arguments.images, arguments.masks)
    for what, names in (("image without a mask", pairing.images_alone), ("mask without an image", pairing.masks_alone)):
        if names:
            command.warn(f"{what}, left out: {listed(names)}")
    before = _earlier(arguments)
    parts = parts_of(arguments, [case.name for case in pairing.pairs], before, config.SamplingConfig.seed)
    facts = check(pairing.pairs, label=label, processes=arguments.processes)
    data = data_settings(arguments, facts, parts)
    cases = tuple(
        study.Case(case.name, str(case.image.absolute()), str(case.mask.absolute()), parts[case.name])
        for case in pairing.pairs
    )
    plan = study.Plan(cases, data, label)
    if before is not None:
        plan_report.warn_of_changes(before, plan)
    expected = forecast(plan, facts)
    free_bytes = check_disk(arguments.work, expected)
    files.write_json(path, config.to_dict(plan))
    plan_report.show_cases(plan, facts, suspicions(facts, data, {case.name: plan.volumes(case) for case in cases}))
    plan_report.show_plan(plan, facts, expected, free_bytes)
    command.say(f"Next: {typed('data_prep.write_records', arguments.work)}")


if __name__ == "__main__":
    command.run(main, PlanArguments)
