"""Chief and workers in one process: who has which trial, and what becomes of those that fall silent."""

import contextlib
import dataclasses
import threading
import time
from types import SimpleNamespace

import grpc
import pytest
import searches

from femur_tf.errors import DataError
from tuning import chief, oracles, trials, worker
from tuning.chief import Servicer
from tuning.connection import Connection
from tuning.supervise import free_port
from tuning.trials import COMPLETED
from tuning.watch import Halted
from tuning.worker import Client, Pulse, Reassigned

# keras-tuner 1.4.8 asks for the thread in a way that Python 3.10 deprecated; theirs to change.
pytestmark = pytest.mark.filterwarnings("ignore:(currentThread|getName)")
SPACE = searches.space()
WAIT_S = 10.0
SHORT_S = 1.0
"""A silence that ends a worker, for the tests of silence alone: elsewhere a slow machine must not make one."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Let time pass quickly."""
    monkeypatch.setattr(chief, "TURN_S", 0.02)
    monkeypatch.setattr(chief, "SILENT_S", WAIT_S)
    monkeypatch.setattr(chief, "LEAVING_S", 0.3)
    monkeypatch.setattr(chief, "GRACE_S", 0.1)
    monkeypatch.setattr(worker, "IDLE_S", 0.02)
    for name in ("IP", "PORT"):
        monkeypatch.setenv(f"KERASTUNER_ORACLE_{name}", "0")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker-0")


def make(folder, **changes):
    """Return an oracle of a random search."""
    search = dataclasses.replace(searches.SEARCH, **{"algorithm": "random", "trials": 4, **changes})
    oracle = oracles.make(search, SPACE, folder)
    oracle.reload()
    return oracle


class Served:
    """A chief in a thread."""

    def __init__(self, oracle, halt=lambda: None, wait_s=WAIT_S):
        self.oracle, self.address, self.ends = oracle, f"127.0.0.1:{free_port()}", []
        self.servicer = Servicer(oracle, halt, lambda: self.ends.append(time.monotonic()))
        self.outcome = "still running"
        self.thread = threading.Thread(target=self._run, args=(wait_s,))

    def _run(self, wait_s):
        self.outcome = chief.serve(self.servicer, self.address, wait_s)

    def client(self, name):
        """Return a worker's client."""
        return Client(self.oracle, self.address, name, WAIT_S)


@contextlib.contextmanager
def served(oracle, **options):
    """Serve an oracle until it has nothing left."""
    found = Served(oracle, **options)
    found.thread.start()
    # A client that comes before the port is open tries again after a second.
    here = Connection.of(found.address, WAIT_S)
    while found.thread.is_alive() and not here.is_up(0.1):
        pass
    try:
        yield found
    finally:
        found.thread.join(WAIT_S)
    assert not found.thread.is_alive()


def finish(client, trial):
    """End a trial as a tuner does."""
    client.update_trial(trial.trial_id, {"val_auc": 0.5})
    trial.status = COMPLETED
    client.end_trial(trial)


def until_stopped(client, name):
    """Run trials until there are no more, and return their ids."""
    found = []
    while (trial := client.create_trial(name)).status != "STOPPED":
        if trial.status == "RUNNING":
            found.append(trial.trial_id)
            finish(client, trial)
    return found


def test_two_workers_share_the_trials(tmp_path):
    oracle = make(tmp_path)
    with served(oracle) as here:
        one, two = here.client("a"), here.client("b")
        first, second = one.create_trial("a"), two.create_trial("b")
        assert {first.trial_id, second.trial_id} == {"0", "1"}
        finish(one, first)
        finish(two, second)
        assert until_stopped(one, "a") == ["2", "3"]
        assert until_stopped(two, "b") == []
    assert here.outcome is None
    assert len(here.ends) == 4
    assert {t.status for t in oracle.trials.values()} == {COMPLETED}


def test_a_worker_that_returns_under_its_name_has_its_trial(tmp_path):
    with served(make(tmp_path)) as here:
        before = here.client("a").create_trial("a")
        again = here.client("a").create_trial("a")
        assert again.trial_id == before.trial_id
        assert again.hyperparameters.values == before.hyperparameters.values
        finish(here.client("a"), again)
        until_stopped(here.client("a"), "a")


@pytest.mark.slow
def test_the_trial_of_a_silent_worker_goes_to_another_and_stays_there(tmp_path, monkeypatch):
    monkeypatch.setattr(chief, "SILENT_S", SHORT_S)
    oracle = make(tmp_path, trials=1)
    with served(oracle) as here:
        silent, other = here.client("silent"), here.client("other")
        trial = silent.create_trial("silent")
        assert silent.status(trial.trial_id) == "RUNNING"
        while trial.trial_id not in oracle._retry_queue:
            time.sleep(0.02)
        given = other.create_trial("other")
        assert given.trial_id == trial.trial_id
        assert silent.status(trial.trial_id) == "INVALID"
        finish(silent, trial)  # too late: it is left out
        assert oracle.trials["0"].status == "RUNNING"
        finish(other, given)
        until_stopped(other, "other")
    assert here.outcome is None
    assert len(here.ends) == 1


@pytest.mark.slow
def test_a_worker_that_beats_keeps_its_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "BEAT_S", 0.1)
    monkeypatch.setattr(chief, "SILENT_S", SHORT_S)
    oracle = make(tmp_path, trials=1)
    with served(oracle) as here:
        client = here.client("a")
        pulse = Pulse(client)
        trial = client.create_trial("a")
        pulse.begin(trial.trial_id)
        time.sleep(1.5 * SHORT_S)
        assert pulse.halt() is None
        assert [t.trial_id for t in oracle.ongoing_trials.values()] == [trial.trial_id]
        pulse.end()
        finish(client, trial)
        until_stopped(client, "a")


def test_a_worker_whose_trial_was_given_away_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "UNHEARD_S", 0.0)
    oracle = make(tmp_path, trials=1)
    with served(oracle) as here:
        client = here.client("a")
        trial = client.create_trial("a")
        pulse = Pulse(client)
        pulse.begin(trial.trial_id)
        with here.servicer.guard:
            oracle.forget("a")
        with pytest.raises(Reassigned):
            pulse.halt()
        pulse.end()
        until_stopped(here.client("b"), "b")


def test_when_the_hours_are_used_workers_are_told_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "UNHEARD_S", 0.0)
    hours = []
    oracle = make(tmp_path)
    with served(oracle, halt=lambda: hours[0] if hours else None) as here:
        client = here.client("a")
        trial = client.create_trial("a")
        pulse = Pulse(client)
        pulse.begin(trial.trial_id)
        assert pulse.halt() is None
        hours.append("the hours are used")
        assert pulse.halt() == worker.ENDED
        pulse.end()
    assert here.outcome == "the hours are used"
    assert list(make(tmp_path).ongoing_trials) == ["a"]  # it goes on there


def test_a_chief_without_workers_ends_with_a_message(tmp_path):
    with served(make(tmp_path), wait_s=0.2) as here:
        pass
    assert here.outcome == "no worker has called for 0.00333333 minutes. Start one with --role worker"


def test_a_chief_that_is_started_again_knows_its_workers(tmp_path):
    before = make(tmp_path)
    trial = before.create_trial("a")
    oracle = make(tmp_path)
    with served(oracle) as here:
        client = here.client("a")
        assert client.status(trial.trial_id) == "RUNNING"
        finish(client, trial)
        assert until_stopped(client, "a") == ["1", "2", "3"]
    assert {t.status for t in oracle.trials.values()} == {COMPLETED}


def test_a_chief_that_slept_does_not_think_its_workers_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(chief, "SILENT_S", SHORT_S)
    oracle = make(tmp_path)
    servicer = Servicer(oracle, lambda: None, lambda: None)
    oracle.create_trial("a")
    servicer.silent_s["a"] = 0.0
    servicer.pass_time(0.9)
    assert "a" in oracle.ongoing_trials
    servicer.pass_time(0.2)
    assert oracle.ongoing_trials == {}


def test_an_error_of_the_oracle_ends_the_chief(tmp_path, monkeypatch):
    oracle = make(tmp_path)
    servicer = Servicer(oracle, lambda: None, lambda: None)
    monkeypatch.setattr(oracle, "create_trial", lambda tuner_id: 1 / 0)
    with pytest.raises(ZeroDivisionError), servicer._call(Context("a", oracle)):
        oracle.create_trial("a")
    with pytest.raises(ZeroDivisionError):
        chief._turn(servicer, 0.0, 1.0)


class Context:
    """Of a call."""

    def __init__(self, name, oracle):
        self.told = ((chief.TUNER, name), (chief.SEARCH, trials.identity(oracle.folder, oracle.settings)))

    def invocation_metadata(self):
        """Return who calls."""
        return self.told


def test_a_worker_of_another_search_is_sent_away_and_changes_nothing(tmp_path):
    oracle, other = make(tmp_path / "a"), make(tmp_path / "b")
    with served(oracle) as here:
        stranger = worker.Client(other, here.address, "stranger", WAIT_S)
        with pytest.raises(grpc.RpcError, match="one that leads the search a, begun"):
            stranger.create_trial("stranger")
        assert (oracle.trials, here.servicer.silent_s, here.servicer.broken) == ({}, {}, None)
        assert until_stopped(here.client("own"), "own") == ["0", "1", "2", "3"]


def test_a_worker_says_whose_chief_it_met(tmp_path, monkeypatch):
    class Away(grpc.RpcError):
        """As of a chief that leads another search."""

        def code(self):
            return grpc.StatusCode.FAILED_PRECONDITION

        def details(self):
            return "one that leads the search a"

    class Calls:
        """In the place of the trainer."""

        def __init__(self, *arguments):
            """Take what a trainer takes."""

        def search(self):
            raise Away

    monkeypatch.setattr(worker, "Trainer", Calls)
    with pytest.raises(DataError, match=r"expected the chief of .*b\. Received: one that leads the search a\. Pass"):
        worker.work(make(tmp_path / "b"), tmp_path, 0.0, Connection("127.0.0.1", 9, "worker-0", 0.1), lambda: None)


class Gone:
    """In the place of a stub: the chief was killed, or is too slow."""

    def __getattr__(self, name):
        def call(*_, **__):
            raise grpc.RpcError

        return call


@pytest.mark.parametrize("call", [lambda c: c.get_trial("0"), lambda c: c.update_trial("0", {"val_auc": 0.5})])
def test_a_chief_that_is_gone_when_a_trial_is_trained_is_no_failure_of_the_trial(tmp_path, call):
    client = Client(make(tmp_path), "127.0.0.1:9", "a", WAIT_S)
    client.stub = Gone()
    with pytest.raises(Halted, match=worker.LOST):  # which keras-tuner lets through
        call(client)
    with pytest.raises(grpc.RpcError):
        client.status("0")


def test_a_trained_trial_that_is_another_workers_is_left_to_it(tmp_path):
    oracle = make(tmp_path, trials=1)
    with served(oracle) as here:
        client = here.client("a")
        trial = client.create_trial("a")
        assert client.get_trial(trial.trial_id).status == "RUNNING"
        with here.servicer.guard:
            oracle.forget("a")
        with pytest.raises(Reassigned, match="was given to another worker"):
            client.get_trial(trial.trial_id)
        until_stopped(here.client("b"), "b")


class Answers:
    """In the place of a client: gives one answer after the other."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def status(self, trial_id):
        return self.answers.pop(0)


def test_a_worker_asks_before_it_writes_where_the_chief_was_silent(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(worker.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))  # no beat comes
    pulse = Pulse(Answers("RUNNING", trials.INVALID))
    pulse.begin("0")
    for step in range(12):  # each soon after the other: the process does not sleep
        now[0] = 5.0 * step
        assert pulse.halt() is None
    assert len(pulse.client.answers) == 1  # asked once, after 35 s
    now[0] = 35.0 + worker.UNHEARD_S + 1
    with pytest.raises(Reassigned):
        pulse.halt()


def test_a_worker_keeps_its_own_hours(tmp_path, monkeypatch):
    class Halts:
        """In the place of the trainer."""

        def __init__(self, oracle, study, start, around):
            self.around = around

        def search(self):
            raise Halted(self.around.halt())

    monkeypatch.setattr(worker, "Trainer", Halts)
    connection = Connection("127.0.0.1", 9, "worker-0", 0.1)
    assert worker.work(make(tmp_path), tmp_path, 0.0, connection, lambda: "the hours are used") == "the hours are used"


def test_a_trial_that_a_chief_does_not_have_is_not_to_be_trained(tmp_path):
    oracle = make(tmp_path, trials=1)
    with served(oracle) as here:
        client = here.client("a")
        assert client.status("07") == "INVALID"
        client.update_trial("07", {"val_auc": 0.5})
        assert until_stopped(client, "a") == ["0"]
    assert here.outcome is None


def test_an_address_in_use_or_unknown_is_refused(tmp_path):
    oracle = make(tmp_path, trials=1)
    with served(oracle) as here:
        client = here.client("a")
        trial = client.create_trial("a")
        for address in (here.address, "no.such.host.invalid:1"):
            with pytest.raises(DataError, match="expected an address to listen on"):
                chief.serve(Servicer(make(tmp_path / "b"), lambda: None, lambda: None), address, 1.0)
        finish(client, trial)
        until_stopped(client, "a")


@pytest.mark.parametrize(
    ("address", "host", "port"), [("10.0.0.1:5000", "10.0.0.1", 5000), ("[::1]:5", "[::1]", 5), ("node:80", "node", 80)]
)
def test_a_connection_is_read(monkeypatch, address, host, port):
    monkeypatch.delenv("KERASTUNER_TUNER_ID")
    found = Connection.of(address, 1.0)
    assert (found.host, found.port, found.address) == (host, port, address)
    assert found.name.startswith("worker-")
    assert "chief" not in found.name


@pytest.mark.parametrize("address", ["", "here", "here:", ":5", "here:five"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(DataError, match="--chief: expected HOST:PORT"):
        Connection.of(address, 1.0)


def test_a_chief_that_is_not_there_is_not_up():
    assert not Connection("127.0.0.1", free_port(), "a", 1.0).is_up(0.2)


def test_a_halt_is_no_error_of_the_trial():
    from keras_tuner.errors import FatalError

    assert issubclass(Halted, FatalError)
    assert issubclass(Reassigned, FatalError)
