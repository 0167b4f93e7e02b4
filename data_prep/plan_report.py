"""What `data_prep.plan` prints: the table of the cases, what is suspicious, what is decided, what changed."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence

from data_prep import cohort, sampling
from data_prep.forecast import Forecast, gigabytes
from data_prep.suspicions import Suspicion
from femur_tf import command, config, study


def warn_of_changes(earlier: study.Plan, plan: study.Plan) -> None:
    """Name the settings that the earlier plan had otherwise: flags that are not repeated, edits of its file."""
    old, new = ({"data": values["data"], "label": values["label"]} for values in map(config.to_dict, (earlier, plan)))
    for name in sorted(config.differences(old, new)):
        was, now = (functools.reduce(operator.getitem, name.split("."), values) for values in (old, new))
        command.warn(f"{name}: {was} in the earlier plan, {now} now. Repeat its flag or edit the plan to keep it.")


def show_cases(plan: study.Plan, facts: Sequence[cohort.Facts], doubts: Mapping[str, Sequence[Suspicion]]) -> None:
    """Print the table of the cases, and under it why a case is suspicious."""
    rows = []
    for planned, case in zip(plan.cases, facts, strict=True):
        voxels, spacing = "x".join(map(str, case.shape)), cohort.millimetres(case.spacing_mm).removesuffix(" mm")
        kinds = ", ".join(doubt.kind for doubt in doubts[case.name])
        rows.append((case.name, planned.part, voxels, spacing, f"{case.femur_mm3 / 1000:.1f}", kinds))
    header = ("case", "part", "voxels", "spacing mm", "femur cm3", "look at")
    command.table("Cohort (axes: right, anterior, superior)", header, rows)
    for name, found in doubts.items():
        if found:
            command.say(f"{name}: {'; '.join(doubt.message for doubt in found)}")


def show_plan(plan: study.Plan, facts: Sequence[cohort.Facts], expected: Forecast, free_bytes: int) -> None:
    """Print what the plan decides and what the records will take."""
    patch, wanted = plan.data.patch, sampling.asked(plan.data.sampling)
    parts = ", ".join(f"{len(plan.part(part))} {part}" for part in ("train", "validation", "test"))
    resampled = sum(cohort.resampled(case, patch.spacing_mm) for case in facts)
    if plan.data.sided:
        command.say(
            "The femur lies in the same half of every scan: patches are not mirrored, so that it is told from the one "
            'on the other side. Where there is none, write "sided": false into plan.json.'
        )
    steps = ", ".join(f"{x}x{y}x{z}" for x, y, z in patch.steps)
    command.say(f"Cases: {len(facts)} ({parts}); {resampled} will be resampled.")
    command.say(f"Working spacing: {cohort.millimetres(patch.spacing_mm)}.")
    command.say(f"Patches: {patch.size}x{patch.size}, {patch.channels} channels; a sample every {steps} voxels.")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in wanted.items())
    command.say(
        f"Examples: {expected.examples:,}; {plan.data.sampling.per_case:,} a case ({kinds}), none of test cases."
    )
    varied = plan.data.variation.copies - 1
    command.say(f"A training case is its scan and {varied} varied {'copy' if varied == 1 else 'copies'} of it.")
    command.say(
        f"Records: {gigabytes(expected.patch_bytes)} on disk, about {max(1, round(expected.seconds / 60))} min "
        f"(estimate); index-only {gigabytes(expected.index_bytes)}. Free: {gigabytes(free_bytes)}."
    )
