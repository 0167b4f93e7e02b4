"""The chief of a search with several workers: keras-tuner's servicer around an oracle, and who is alive.

A worker tells its name with each call, and asks for its trial every few seconds while it
trains (`GetTrial`): that is its heartbeat, and the status in the answer tells it to go
on (RUNNING), to end here (STOPPED), or that its trial was given to another (INVALID). The
trial of a worker that is silent for too long goes to the next that asks. Silence is
counted in turns of the chief's own loop: a machine that slept wakes up without dead
workers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from keras_tuner.engine.trial import Trial
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer

from femur_tf.errors import DataError
from tuning import trials
from tuning.noted import Noted
from tuning.oracles import Durable

TUNER = "tuner"
"""Key of the worker's name in a call's metadata."""
SEARCH = "search"
"""Key of what tells the worker's search from others (`trials.identity`), likewise."""
SILENT_S = 60.0
"""After so long without a word a worker counts as gone."""
LEAVING_S = 15.0
"""How long a chief whose search has ended waits for a word of workers that it still knows."""
TURN_S = 0.5
GRACE_S = 2.0


class Servicer(OracleServicer):
    """keras-tuner's servicer, one call at a time, that keeps track of who calls."""

    def __init__(self, oracle: Durable, halt: Callable[[], str | None], ended: Callable[[], None]) -> None:
        """Serve an oracle.

        Args:
          oracle: whose trials are handed out.
          halt: gives a reason to end within trials, or None.
          ended: called when a trial has ended.
        """
        super().__init__(oracle)
        self.halt, self.ended = halt, ended
        self.guard = threading.RLock()
        self.silent_s = dict.fromkeys(oracle.ongoing_trials, 0.0)
        """Of each worker known: how long ago it was heard."""
        self.broken: BaseException | None = None

    @contextlib.contextmanager
    def _call(self, context: Any) -> Iterator[str]:
        """Give the caller's name while nobody else is served; keep an error for the chief's loop.

        A worker of another search is told so, which ends its call.
        """
        told = dict(context.invocation_metadata())
        if told.get(SEARCH) != trials.identity(self.oracle.folder, self.oracle.settings):
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"one that leads the search {self.oracle.folder.name}, begun {self.oracle.settings.started}",
            )
        with self.guard, Noted(self._break):
            name = told.get(TUNER, "")
            self.silent_s[name] = 0.0
            yield name

    def _break(self, error: BaseException) -> None:
        """Keep an error that ends the search."""
        self.broken = error

    def _owns(self, name: str, trial_id: str) -> bool:
        """Return whether a trial is the one that a worker was given."""
        trial = self.oracle.ongoing_trials.get(name)
        return trial is not None and trial.trial_id == trial_id

    def _unknown(self, trial_id: str) -> Trial:
        """Return what is said of a trial that this search does not have."""
        return Trial(self.oracle.hyperparameters.copy(), trial_id, trials.INVALID)

    def GetSpace(self, request: Any, context: Any) -> Any:
        """Return the search space."""
        with self._call(context):
            return super().GetSpace(request, context)

    def CreateTrial(self, request: Any, context: Any) -> Any:
        """Return the caller's trial, or a new one; its status is STOPPED when there is none."""
        with self._call(context) as name:
            response = super().CreateTrial(request, context)
            if request.tuner_id not in self.oracle.tuner_ids and request.tuner_id not in self.oracle.ongoing_trials:
                self.silent_s.pop(name, None)
            return response

    def UpdateTrial(self, request: Any, context: Any) -> Any:
        """Keep a score; one of a trial that was given to another is left out."""
        with self._call(context) as name:
            if self._owns(name, request.trial_id):
                return super().UpdateTrial(request, context)
            trial = self.oracle.trials.get(request.trial_id) or self._unknown(request.trial_id)
            return protos.get_service().UpdateTrialResponse(trial=trial.to_proto())

    def EndTrial(self, request: Any, context: Any) -> Any:
        """Note the end of a trial; of one that was given to another it is left out."""
        with self._call(context) as name:
            if not self._owns(name, request.trial.trial_id):
                return protos.get_service().EndTrialResponse()
            response = super().EndTrial(request, context)
            self.ended()
            return response

    def GetTrial(self, request: Any, context: Any) -> Any:
        """Return a trial, with a status that tells the caller what to do."""
        with self._call(context) as name:
            if request.trial_id not in self.oracle.trials:
                unknown = self._unknown(request.trial_id).to_proto()
                return protos.get_service().GetTrialResponse(trial=unknown)
            response = super().GetTrial(request, context)
            statuses = protos.get_proto().TrialStatus
            if not self._owns(name, request.trial_id):
                response.trial.status = statuses.INVALID
            elif self.halt() is not None:
                response.trial.status = statuses.STOPPED
            return response

    def is_over(self) -> bool:
        """Return whether no trial will start any more, and none is under way."""
        oracle = self.oracle
        if oracle.ongoing_trials:
            return False
        all_drawn = len(oracle.trials) >= oracle.max_trials and not oracle._retry_queue
        return oracle.stopped is not None or self.stop_triggered or all_drawn

    def pass_time(self, seconds: float) -> None:
        """Count silence, and take the trials of silent workers back."""
        for name in list(self.silent_s):
            self.silent_s[name] += seconds
            if self.silent_s[name] > (LEAVING_S if self.is_over() else SILENT_S):
                del self.silent_s[name]
                self.oracle.forget(name)


def _start(servicer: Servicer, address: str) -> grpc.Server:
    """Start to serve.

    Raises:
      DataError: the address cannot be listened on.
    """
    # One thread: keras-tuner's lock goes by the thread's name. No sharing of the port: another chief would get calls.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)])
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise DataError(f"--chief {address}: expected an address to listen on. Received: {error}") from error
    if not port:
        raise DataError(f"--chief {address}: expected an address to listen on. Received: one that cannot be bound.")
    server.start()
    return server


def _turn(servicer: Servicer, alone_s: float, wait_s: float) -> str | None:
    """Return why the chief ends now, an empty text where its search is over, None where it goes on."""
    if servicer.broken is not None:
        raise servicer.broken
    halted = servicer.halt()
    if halted is not None and servicer.oracle.stopped is None:
        servicer.oracle.stopped = halted
    if servicer.is_over() and not servicer.silent_s:
        return ""
    if alone_s > (LEAVING_S if halted else wait_s):
        return halted or f"no worker has called for {wait_s / 60:g} minutes. Start one with --role worker"
    return None


def serve(servicer: Servicer, address: str, wait_s: float) -> str | None:
    """Hand out trials until all have ended.

    Args:
      servicer: around the oracle.
      address: HOST:PORT to listen on.
      wait_s: how long to wait for a word of any worker.

    Returns:
      Why the search ended before its last trial, or None.

    Raises:
      DataError: the address cannot be listened on.
    """
    server = _start(servicer, address)
    alone_s, before = 0.0, time.monotonic()
    try:
        while True:
            time.sleep(TURN_S)
            # A turn that took long was asleep with the rest of the machine.
            passed, before = min(time.monotonic() - before, 2 * TURN_S), time.monotonic()
            with servicer.guard:
                heard = any(silent <= passed for silent in servicer.silent_s.values())
                servicer.pass_time(passed)
                alone_s = 0.0 if heard else alone_s + passed
                reason = _turn(servicer, alone_s, wait_s)
            if reason is not None:
                return reason or servicer.oracle.stopped
    finally:
        server.stop(GRACE_S).wait()
