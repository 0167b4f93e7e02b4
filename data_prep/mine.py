"""Hard examples: what a trained run gets wrong on its training cases becomes more examples.

The run's map of a training case is compared with the case's mask
(`data_prep.hard_examples`), and examples are drawn from the errors by stated shares.
Validation and test cases are not touched.

    records/mined/NAME/manifest.json   a manifest like that of the records, of the same plan
    records/mined/NAME/mined.json      what chose the examples: run, model, settings, counts
    records/mined/NAME/cases/          the part of one case, written when its shards are complete
    records/mined/NAME/shards/

`femur_tf.mined_records` reads both manifests as one, and so does
`femur_tf.train --mined NAME`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from data_prep import forecast, made_from, sampling, write_records
from data_prep.hard_examples import ERRORS, MiningConfig, counted, groups
from femur_tf import command, config, files, lineage, mined_records, quiet, records, study
from femur_tf.errors import DataError, typed
from femur_tf.image_errors import listed
from femur_tf.patches import Cutter

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle

FEW = 0.02
"""Examples of a mined set below this share of the records' have no weight beside them."""


@dataclasses.dataclass(frozen=True)
class MineArguments:
    """Evaluate a run on its training cases, and write examples drawn from its errors.

    Example: python -m data_prep.mine work/ --run default

    Then: python -m femur_tf.train work/ --run mined --start default --mined default

    A run that was interrupted goes on where it stopped.
    """

    work: command.Work
    run: str = "default"
    """Name of the run whose errors are mined; it needs a recipe."""
    name: str | None = None
    """Name of the mined set; by default the run's."""
    overwrite: bool = False
    """Replace a mined set of that name."""
    mining: tyro.conf.OmitArgPrefixes[MiningConfig] = dataclasses.field(default_factory=MiningConfig)
    prediction: tyro.conf.OmitArgPrefixes[config.PredictConfig] = dataclasses.field(
        default_factory=config.PredictConfig
    )


@dataclasses.dataclass(frozen=True)
class Mined:
    """What `mined.json` holds: what chose the examples."""

    run: str
    model_digest: str
    """`Bundle.digest` of the run."""
    cutoff: float
    mining: MiningConfig
    prediction: config.PredictConfig
    found: dict[str, dict[str, int]]
    """For each case how many voxels of each kind of error its maps hold."""
    drawn: dict[str, dict[str, int]]
    """For each case how many of them became examples."""
    format_version: int = 1


@dataclasses.dataclass(frozen=True)
class Found:
    """The mined part of one case, as noted when it is complete."""

    records: records.CaseRecords
    found: dict[str, int]
    drawn: dict[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Miner:
    """A run that is mined, and for which study."""

    work: Path
    plan: study.Plan
    bundle: Bundle
    name: str
    mode: records.Mode
    mining: MiningConfig
    prediction: config.PredictConfig

    @property
    def folder(self) -> Path:
        """The folder of the mined set."""
        return mined_records.folder(study.records_path(self.work), self.name)

    def fingerprint(self, case: study.Case) -> str:
        """Return a digest of all that a case's mined records are made from."""
        settings = [config.to_dict(self.mining), config.to_dict(self.prediction.of_map), self.bundle.recipe.cutoff]
        values = [made_from.fingerprint(self.plan, case, self.mode), self.bundle.digest, settings]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _of_copy(
    miner: Miner, copy: write_records.Copy, affine: np.ndarray, wanted: Mapping[str, int]
) -> tuple[sampling.Draw, np.ndarray]:
    """Evaluate one volume and draw from its errors; return the draw, and each voxel's kind of error."""
    from femur_tf import bundle as bundles
    from femur_tf.volume import Volume

    spacing_mm = miner.plan.data.patch.spacing_mm
    map_ = bundles.working_map(miner.bundle, Volume(copy.grid, affine), miner.prediction)
    cutoff, margin_mm = miner.bundle.recipe.cutoff, miner.mining.margin_mm
    group = groups(map_.data, copy.mask, cutoff, spacing_mm=spacing_mm, margin_mm=margin_mm)
    rng = write_records.case_rng(miner.plan.data.sampling.seed, f"{copy.name} mined {miner.name}")
    flat = sampling.draw_groups(group, wanted, rng)
    kind = sampling.kinds(copy.mask, spacing_mm=spacing_mm, config=miner.plan.data.sampling)
    return sampling.draw_of(flat, kind), group


def _summed(parts: list[dict[str, int]]) -> dict[str, int]:
    """Add counts."""
    return {name: sum(part[name] for part in parts) for name in ERRORS}


def _volumes(miner: Miner, loaded: study.LoadedCase) -> Iterator[tuple[dict[str, int], write_records.Copy]]:
    """Yield the volumes of a case that are evaluated, each after the examples that it is to give of each error."""
    number = min(miner.mining.copies, miner.plan.volumes(loaded.case))
    shares = sampling.shared_out(miner.mining.wanted, number)
    # The shares come first: `zip` would make one copy more before it found them at their end.
    yield from zip(shares, write_records.copies(miner.plan, loaded), strict=False)


def mine_case(miner: Miner, case: study.Case) -> Found:
    """Evaluate a training case and write the shards of its mined examples.

    Args:
      miner: the run.
      case: one case of the plan.

    Returns:
      What the manifest says of the case, and the counts of its errors.
    """
    made_from = miner.fingerprint(case)  # before anything is read: what changes meanwhile is then noticed
    loaded = study.load_case(miner.plan, case)
    examples: list[bytes] = []
    kinds, found, drawn = [], [], []
    for wanted, copy in _volumes(miner, loaded):
        draw, group = _of_copy(miner, copy, loaded.working.affine, wanted)
        cutter = Cutter.of(copy.grid, miner.plan.data.patch) if miner.mode == "patches" else None
        examples += write_records.encode_all(draw, cutter, copy.name)
        kinds.append(draw.kind)
        found.append(counted(group))
        drawn.append(counted(group[tuple(draw.centres.T)]))
    order = write_records.case_rng(miner.plan.data.sampling.seed, f"{case.name} order").permutation(len(examples))
    shards = write_records.write_shards(
        miner.folder, case.name, [examples[i] for i in order], np.concatenate(kinds)[order]
    )
    entry = records.CaseRecords(case.name, case.part, shards, made_from)
    return Found(entry, _summed(found), _summed(drawn))


def _check(arguments: MineArguments, plan: study.Plan, bundle: Bundle) -> None:
    """Raise where the run cannot be mined for the records of this study.

    Raises:
      DataError: another working grid than the plan's.
    """
    grids = [(data.patch.spacing_mm, data.normalisation) for data in (bundle.settings.data, plan.data)]
    if grids[0] != grids[1]:
        raise DataError(
            f"{study.run_path(arguments.work, arguments.run)}: expected a run on the plan's working grid {grids[1]}. "
            f"Received: {grids[0]}. Train one on the records of this study."
        )


def _require_grids(miner: Miner, manifest: records.Manifest, cases: Sequence[study.Case]) -> None:
    """Raise where the grids that indices point into are not those that the copies would be made as now.

    Raises:
      DataError: scans or masks have changed since the records were written, or another version wrote them.
    """
    if miner.mode != "index" or miner.mining.copies == 1:
        return
    written = {one.case: one.fingerprint for one in manifest.cases}
    other = [case.name for case in cases if made_from.fingerprint(miner.plan, case, miner.mode) != written[case.name]]
    if other:
        raise DataError(
            f"{study.records_path(miner.work)}: expected records of the scans and masks as they are. Received: records "
            f"of others, or of an earlier version: {listed(other)}. Write them again, or mine the scans alone "
            "(--copies 1)."
        )


def _finished(miner: Miner, case: study.Case) -> Found | None:
    """Return a case's mined part where it is complete and made from the same input, else None."""
    path = miner.folder / "cases" / f"{case.name}.json"
    if not path.exists():
        return None
    found = config.load(Found, path)
    return found if made_from.is_finished(path, miner.folder, found.records, miner.fingerprint(case)) else None


def mine(arguments: MineArguments) -> Mined:
    """Mine every training case of a study.

    Raises:
      DataError: no plan, no records or records of another split; no run or no recipe; a run on another working grid; a
        mined set of that name made from something else.
    """
    folder = study.records_path(arguments.work)
    manifest = records.read_manifest(folder)
    lineage.require_split(folder, manifest)
    plan = dataclasses.replace(study.read_plan(arguments.work), data=manifest.data)
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    bundle = bundles.load(study.run_path(arguments.work, arguments.run))
    _check(arguments, plan, bundle)
    _ = bundle.recipe  # raises where none has been chosen
    name = arguments.name or arguments.run
    miner = Miner(arguments.work, plan, bundle, name, manifest.mode, arguments.mining, arguments.prediction)
    cases = plan.part("train")
    _require_grids(miner, manifest, cases)
    examples = arguments.mining.per_case * len(cases)
    size_bytes = examples * forecast.example_bytes(plan.data.patch, manifest.mode)
    forecast.require_disk(arguments.work, size_bytes, f"{examples:,} examples", "mine fewer (--per-case)")
    if arguments.overwrite:
        files.clear(miner.folder)
    found = {}
    for number, case in enumerate(cases, start=1):
        command.say(f"{case.name} ({number} of {len(cases)})")
        one = _finished(miner, case) or mine_case(miner, case)
        files.write_json(miner.folder / "cases" / f"{case.name}.json", config.to_dict(one))
        found[case.name] = one
    result = Mined(
        arguments.run,
        bundle.digest,
        bundle.recipe.cutoff,
        arguments.mining,
        arguments.prediction,
        {case: one.found for case, one in found.items()},
        {case: one.drawn for case, one in found.items()},
    )
    files.write_json(miner.folder / "mined.json", config.to_dict(result))
    mined = records.Manifest(plan.data, manifest.mode, tuple(one.records for one in found.values()))
    files.write_json(records.manifest_path(miner.folder), config.to_dict(mined))
    return result


def _warn_of_few(mined: Mined, manifest: records.Manifest) -> None:
    """Warn where the errors are so few that training with them changes next to nothing."""
    drawn, there = sum(sum(one.values()) for one in mined.drawn.values()), manifest.count("train")
    if drawn < FEW * there:
        command.warn(
            f"{drawn:,} examples beside {there:,} of the records change next to nothing. The run makes few errors "
            "further from the surface than --margin-mm: pass a shorter one, or do without."
        )


def main(arguments: MineArguments) -> None:
    """Mine, and print one table."""
    folder = study.records_path(arguments.work)  # mined sets lie in it
    records.read_manifest(folder)  # raises where there is none, before anything is made
    files.require_place(mined_records.folder(folder, arguments.name or arguments.run) / "mined.json")
    with files.locked(folder, "Wait for it to end, or end it."):
        mined = mine(arguments)
    rows = [
        (case, *(f"{mined.drawn[case][error]:,} of {count:,}" for error, count in found.items()))
        for case, found in mined.found.items()
    ]
    header = ("case", *(f"{error.replace('_', ' ')}s" if error != "doubtful" else error for error in ERRORS))
    command.table(f"Examples drawn from the errors of run {arguments.run}", header, rows)
    _warn_of_few(mined, records.read_manifest(folder))
    name = arguments.name or arguments.run
    words = ["--run", f"{name}-mined", "--start", arguments.run, "--mined", name]
    settings = study.run_path(arguments.work, arguments.run) / "config.json"
    if config.load(config.RunConfig, settings).model != config.PRESETS["default"].model:
        words += ["--config", str(settings)]  # weights fit the network that they were trained in
    command.say(f"Next: {typed('femur_tf.train', arguments.work, *words)}")


if __name__ == "__main__":
    command.run(main, MineArguments, goes_on=True)
