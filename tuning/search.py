"""Command: search for the network and the training settings that suit a study best."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Literal

import psutil

from femur_tf import command, files, quiet, records, study
from femur_tf.errors import DataError
from tuning import board, keeping, launch, supervise, trials
from tuning.trials import Algorithm, Objective, Search

if TYPE_CHECKING:
    from tuning.oracles import Durable

ASK_S = 1.0
PLACE = ("work", "workers", "role", "chief", "overwrite")
"""Arguments that say what a process is in a search."""


@dataclasses.dataclass(frozen=True)
class SearchArguments:
    """Search hyper-parameters with keras-tuner, or go on with a search that was interrupted.

    Example: python -m tuning.search work/ --trials 40 --workers 2

    The product is work/tuning/best_config.json: python -m femur_tf.train work/ --config work/tuning/best_config.json
    """

    work: command.Work
    trials: int = 20
    """Trials in all; a search goes on until it has so many."""
    minutes: float | None = None
    """Training time of a trial: minutes on the GPU, or CPU minutes over the number of cores; by default 2."""
    epochs: int | None = None
    """Epochs of a trial, in place of minutes."""
    epoch_examples: int | None = None
    """Examples an epoch; by default so many that a trial of minutes has about five epochs."""
    objective: Objective = "val_auc"
    """Score of a trial: AUC or log-loss of validation examples, or the mean Dice of whole validation scans."""
    algorithm: Algorithm = "bayesian"
    """How trials are chosen."""
    max_cost: float | None = None
    """Multiply-adds a voxel that a network may need at segmentation; by default 250,000, or the cost of the preset
    `default` on these records, if that is more."""
    from_default: bool = True
    """Begin with the hand-made preset `default`, if its cost allows."""
    seed: int = 2017
    """Of the search; a trial's own seed is this plus its number."""
    name: str | None = None
    """Name of the search; by default the algorithm's."""
    workers: int = 1
    """Processes on this machine that train at the same time; they share its cores."""
    role: Literal["local", "chief", "worker"] = "local"
    """`chief` and `worker` are for several machines that see the same work folder."""
    chief: str | None = None
    """HOST:PORT where the chief listens, for the roles `chief` and `worker`."""
    wait_minutes: float = 10.0
    """How long a chief waits for a worker, and a worker for its chief."""
    keep_best: int = 3
    """Finished trials that keep their model and checkpoint."""
    max_disk: float | None = None
    """Start no further trial when the search's folder holds so many GB (10^9 bytes)."""
    max_hours: float | None = None
    """End after so many hours on the wall, within a trial if need be; with the role `worker`, this worker alone."""
    overwrite: bool = False
    """Start the search anew where one of that name exists."""

    @property
    def wanted(self) -> launch.Wanted:
        """What the search is asked to do."""
        return launch.Wanted(
            work=self.work,
            name=self.name or self.algorithm,
            algorithm=self.algorithm,
            objective=self.objective,
            trials=self.trials,
            minutes=self.minutes,
            epochs=self.epochs,
            epoch_examples=self.epoch_examples,
            seed=self.seed,
            max_cost=self.max_cost,
            from_default=self.from_default,
        )


def process_start() -> float:
    """Return when this process began, of `time.monotonic`."""
    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())


def limits(arguments: SearchArguments) -> launch.Limits:
    """Return when the search ends before its last trial."""
    return launch.Limits(arguments.wanted.folder, arguments.max_hours, arguments.max_disk, process_start())


def tidy(arguments: SearchArguments, oracle: Durable) -> None:
    """Remove models that are not kept, and write the best config."""
    keeping.prune(oracle.folder, arguments.keep_best, oracle.may_go_on())
    keeping.write_best(oracle.folder, arguments.work)


def make_oracle(arguments: SearchArguments, search: Search) -> Durable:
    """Return the oracle of a search, without trials; TensorFlow is loaded."""
    quiet.start_tensorflow()
    import keras_tuner.src.config
    import tensorflow as tf

    from tuning import oracles
    from tuning.search_space import Space

    # Each trial is a network of its own; TensorFlow would advise against making so many.
    tf.get_logger().setLevel("ERROR")
    keras_tuner.src.config.DEBUG = False  # a trial that fails is shown by its reason, not by its traceback
    data = records.read_manifest(study.records_path(arguments.work)).data
    space = Space(data, search.max_cost)
    fault = space.fault(space.default())
    if search.from_default and fault:
        command.warn(f"The preset default is not the first trial: {fault}.")
    return oracles.make(search, space, arguments.wanted.folder)


def take_up(oracle: Durable) -> None:
    """Read the trials of earlier starts, and say what was damaged."""
    oracle.reload()
    for message in oracle.damaged:
        command.warn(f"{message} It is made again from what is left.")


def alone(arguments: SearchArguments, search: Search) -> str | None:
    """Search in this process.

    Returns:
      Why the search ended before its last trial, or None.
    """
    oracle = make_oracle(arguments, search)
    from tuning.trainer import Surroundings, Trainer
    from tuning.watch import Halted

    limit = limits(arguments)
    oracle.refusal = limit.reason
    around = Surroundings(halt=limit.hours, ended=lambda: tidy(arguments, oracle))
    trainer = Trainer(oracle, arguments.work, process_start(), around)
    take_up(oracle)
    for tuner_id in list(oracle.ongoing_trials):
        oracle.forget(tuner_id)
    with board.Board(oracle.folder).shown():
        try:
            trainer.search()
        except Halted as halted:
            return str(halted)
    return oracle.stopped


def lead(arguments: SearchArguments, search: Search) -> str | None:
    """Be the chief: hand out trials to workers.

    Returns:
      Why the search ended before its last trial, or None.
    """
    oracle = make_oracle(arguments, search)
    from tuning import chief
    from tuning.connection import Connection

    limit = limits(arguments)
    oracle.refusal = limit.reason
    take_up(oracle)
    address = Connection.of(arguments.chief or "", 0).address
    servicer = chief.Servicer(oracle, limit.hours, lambda: tidy(arguments, oracle))
    if supervise.is_supervised():
        return chief.serve(servicer, address, 60 * arguments.wait_minutes)
    with board.Board(oracle.folder).shown():
        return chief.serve(servicer, address, 60 * arguments.wait_minutes)


def join(arguments: SearchArguments) -> int:
    """Be a worker: train what a chief hands out.

    Raises:
      DataError: no chief answers, there is no search, or it is one of other records or of another space.
    """
    from tuning.connection import Connection

    folder = arguments.wanted.folder
    connection = Connection.of(arguments.chief or "", 60 * arguments.wait_minutes)
    end = time.monotonic() + connection.wait_s
    while not connection.is_up(ASK_S):
        if launch.is_finished(folder):
            command.say(f"{folder}: this search is finished. There is nothing left to do for {connection.name}.")
            return 0
        if time.monotonic() > end:
            raise DataError(
                f"--chief {connection.address}: expected a chief, none answered in {arguments.wait_minutes:g} minutes. "
                "Start it first: --role chief"
            )
    search = trials.read_search(folder)
    launch.require_same(search, arguments.work)
    oracle = make_oracle(arguments, search)
    from tuning import worker

    hours = limits(arguments).hours
    stopped = worker.work(oracle, arguments.work, process_start(), connection, hours)
    if stopped is None:
        command.say(f"{connection.name}: the chief has no further trial.")
        return 0
    command.fail(f"{connection.name}: {stopped}.")
    return launch.STOPPED_STATUS if stopped in (worker.ENDED, hours()) else launch.FAILED_STATUS


def together(arguments: SearchArguments) -> str | None:
    """Search with several processes on this machine.

    Returns:
      Why the search ended before its last trial, or None.
    """
    limit = limits(arguments)
    team = supervise.Team(limit, flags(arguments), arguments.workers)
    with team.started(), board.Board(limit.folder).shown():
        return team.run()


def flags(arguments: SearchArguments) -> tuple[str, ...]:
    """Return the flags that hand the arguments on to another process, without those of its place in the search."""
    found = [str(arguments.work)]
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        flag = field.name.replace("_", "-")
        if field.name in PLACE or value is None:
            continue
        found += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return tuple(found)


def check(arguments: SearchArguments) -> None:
    """Raise where arguments are out of range, or do not go together."""
    for name, least in (("workers", 1), ("keep_best", 0), ("wait_minutes", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise DataError(f"--{name.replace('_', '-')}: expected at least {least}. Received: {value}")
    for name in ("max_disk", "max_hours"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise DataError(f"--{name.replace('_', '-')}: expected more than 0. Received: {value}")
    if (arguments.role != "local") != (arguments.chief is not None):
        raise DataError("Expected --chief HOST:PORT with --role chief or worker, and with them alone.")


def main(arguments: SearchArguments) -> int:
    """Search, print one table, and return 0 where all trials are COMPLETED."""
    check(arguments)
    folder = arguments.wanted.folder
    if supervise.is_supervised():
        supervise.end_with_supervisor()
    if arguments.role == "worker":
        return join(arguments)
    if supervise.is_supervised():
        stopped = lead(arguments, trials.read_search(folder))
        files.write_json(supervise.ended_path(folder), {"stopped": stopped})
        return 0 if stopped is None else launch.STOPPED_STATUS
    launch.settings(arguments.wanted)
    with files.locked(folder, "Wait for it, or choose another --name."):
        search = launch.prepare(arguments.wanted, overwrite=arguments.overwrite)
        if arguments.role == "chief":
            stopped = lead(arguments, search)
        else:
            stopped = alone(arguments, search) if arguments.workers == 1 else together(arguments)
        return launch.finish(folder, arguments.work, stopped)


if __name__ == "__main__":
    command.run(main, SearchArguments, goes_on=True)
