"""Whether records were made with what a run's settings say, and which of their channels it reads."""

from __future__ import annotations

import dataclasses

from femur_tf import config
from femur_tf.errors import DataError
from femur_tf.patch_config import PatchConfig


def require_data(wanted: config.DataConfig, held: config.DataConfig, source: str) -> None:
    """Raise unless a run's data are what the records were made with; it may read a part of their scales and planes.

    Raises:
      DataError: other patches than the records hold, other grey values, centres or copies.
    """
    channels_of(wanted.patch, held.patch, source)
    asked, there = (config.to_dict(one) for one in (dataclasses.replace(wanted, patch=held.patch), held))
    if differing := config.differences(asked, there):
        names = ", ".join(sorted(f"data.{name}" for name in differing))
        raise DataError(
            f"{source}: expected records made with the run's data settings. Received: another {names}. "
            "Leave them as they are in the records, or change plan.json and write the records again."
        )


def channels_of(rule: PatchConfig, held: PatchConfig, source: str) -> list[int]:
    """Return which channels of the records' patches are those of `rule`.

    Raises:
      DataError: size, spacing or padding differ, or a plane of a scale is not in the records.
    """
    wanted, there = ([(r.scales_mm[scale], plane) for scale, plane in r.towers] for r in (rule, held))
    alike = (rule.size, rule.spacing_mm, rule.padding) == (held.size, held.spacing_mm, held.padding)
    if not alike or not set(wanted) <= set(there):
        raise DataError(
            f"{source}: expected records with the patches of {rule}. Received: {held}. "
            "Make a plan with these settings and write its records in another work folder."
        )
    return [there.index(tower) for tower in wanted]
