"""A worker of a search with several: it asks a chief for trials and trains them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from keras_tuner.errors import FatalError
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_client import OracleClient

from femur_tf import command
from femur_tf.errors import DataError
from tuning import chief, trials
from tuning.connection import Connection, channel_to
from tuning.oracles import Durable
from tuning.trainer import Surroundings, Trainer
from tuning.watch import Halted

BEAT_S = 5.0
UNHEARD_S = chief.SILENT_S / 2
"""After so long without an answer nothing more is written before the chief was asked: the trial may be another's."""
IDLE_S = 1.0
"""Pause before a worker asks again, when the oracle waits for others."""
ENDED, LOST = "the chief ends the search", "the chief has left"


class Reassigned(FatalError):
    """The trial was given to another worker, because this one was not heard."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("the trial was given to another worker")


@contextlib.contextmanager
def _surviving() -> Iterator[None]:
    """End the search here where the chief cannot be asked; keras-tuner would take it for a failure of the trial.

    Raises:
      Halted: in place of an error of the call.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise Halted(LOST) from error


class _Fields(NamedTuple):
    """Of a call."""

    method: str
    timeout: float
    metadata: tuple[tuple[str, str], ...]
    credentials: None = None
    wait_for_ready: bool = True
    compression: None = None


class _Details(_Fields, grpc.ClientCallDetails):
    """Of a call, as gRPC's interceptors take them."""


class _Named(grpc.UnaryUnaryClientInterceptor):
    """Adds the worker's name and search to each call, and a deadline that is ours."""

    def __init__(self, name: str, search: str, wait_s: float) -> None:
        """Keep what is added."""
        self.told, self.wait_s = ((chief.TUNER, name), (chief.SEARCH, search)), wait_s

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Call with name and deadline."""
        own = _Details(details.method, self.wait_s, self.told)
        return continuation(own, request)


class Client(OracleClient):
    """keras-tuner's client, with a name that the chief hears."""

    def __init__(self, oracle: Durable, address: str, name: str, wait_s: float) -> None:
        """Connect to a chief.

        Args:
          oracle: like the chief's; its settings are read, its trials are not.
          address: HOST:PORT of the chief.
          name: this worker's.
          wait_s: how long to wait for an answer.
        """
        super().__init__(oracle)
        self.name = name
        named = _Named(name, trials.identity(oracle.folder, oracle.settings), wait_s)
        channel = grpc.intercept_channel(channel_to(address), named)
        self.stub = protos.get_service_grpc().OracleStub(channel)

    def create_trial(self, tuner_id: str) -> Any:
        """Return a trial; wait a little where there is none yet."""
        trial = super().create_trial(tuner_id)
        if trial.status == "IDLE":
            time.sleep(IDLE_S)
        return trial

    def get_trial(self, trial_id: str) -> Any:
        """Return a trial that has been trained.

        Raises:
          Halted: the chief cannot be asked.
          Reassigned: another worker trains it now.
        """
        with _surviving():
            trial = super().get_trial(trial_id)
        if trial.status == trials.INVALID:
            raise Reassigned
        return trial

    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Any:
        """Tell the score of a trial.

        Raises:
          Halted: the chief cannot be told.
        """
        with _surviving():
            return super().update_trial(trial_id, metrics, step)

    def status(self, trial_id: str) -> str:
        """Return what to do about a trial: RUNNING, STOPPED or INVALID."""
        return str(super().get_trial(trial_id).status)


class Pulse:
    """Tells the chief that a trial goes on, and keeps what it answers."""

    def __init__(self, client: Client) -> None:
        """Start to tell, as soon as there is a trial."""
        self.client = client
        self.trial_id: str | None = None
        self.answer = "RUNNING"
        self.heard = time.monotonic()
        """When the call was made that the chief answered last."""
        threading.Thread(target=self._keep, daemon=True).start()

    def begin(self, trial_id: str) -> None:
        """A trial begins."""
        self.trial_id, self.answer, self.heard = trial_id, "RUNNING", time.monotonic()

    def end(self) -> None:
        """No trial is under way."""
        self.trial_id = None

    def _beat(self, trial_id: str) -> None:
        """Ask once."""
        asked = time.monotonic()
        try:
            answer = self.client.status(trial_id)
        except grpc.RpcError:
            answer = LOST
        if self.trial_id == trial_id:
            self.answer, self.heard = answer, asked

    def _keep(self) -> None:
        """Ask every few seconds."""
        while True:
            time.sleep(BEAT_S)
            trial_id = self.trial_id
            if trial_id is not None:
                self._beat(trial_id)

    def halt(self) -> str | None:
        """Return why to end within the trial, or None; wait for the chief where it was not heard for long.

        Raises:
          Reassigned: another worker trains it now.
        """
        trial_id = self.trial_id
        if trial_id is not None and time.monotonic() - self.heard > UNHEARD_S:
            self._beat(trial_id)  # this process slept, or the chief is out of reach
        if self.answer == trials.INVALID:
            raise Reassigned
        return {"STOPPED": ENDED, LOST: LOST}.get(self.answer)


def work(
    oracle: Durable, study: Path, start: float, connection: Connection, hours: Callable[[], str | None]
) -> str | None:
    """Train what the chief hands out, until it hands out nothing more.

    Args:
      oracle: like the chief's, without trials.
      study: the study's folder.
      start: when this process began, of `time.monotonic`.
      connection: to the chief.
      hours: gives a reason to end within a trial that is this worker's own, or None.

    Returns:
      Why this worker ended before the search, or None.

    Raises:
      DataError: the chief leads another search.
    """
    connection.export()
    client = Client(oracle, connection.address, connection.name, connection.wait_s)
    pulse = Pulse(client)
    around = Surroundings(halt=lambda: hours() or pulse.halt(), begun=pulse.begin, ended=pulse.end)
    trainer = Trainer(oracle, study, start, around)
    trainer.oracle = client
    while True:
        try:
            trainer.search()
        except Reassigned as error:
            pulse.end()
            command.warn(f"{connection.name}: {error}.")
        except Halted as halted:
            return str(halted)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                raise DataError(
                    f"--chief {connection.address}: expected the chief of {oracle.folder}. Received: "
                    f"{error.details()}. Pass that one's --name or --algorithm, or the address of this one's chief."
                ) from error
            return LOST
        else:
            return None
