"""Trying again: how long, how often, after what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from femur_tf.retries import Clock, Patience, ServerError, persist, reading

PATIENCE = Patience(deadline_s=10, first_s=1, most_s=4)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now_s, self.waits = 0.0, []

    def sleep(self, seconds):
        self.now_s += seconds
        self.waits.append(seconds)

    @property
    def clock(self):
        return Clock(lambda: self.now_s, self.sleep)


class Fixed:
    """In the place of a generator: always the upper end, or the lower."""

    def __init__(self, share):
        self.share = share

    def uniform(self, low, high):
        return low + self.share * (high - low)


def failing(times, code="UNAVAILABLE"):
    """Return an attempt that fails so many times, then returns the seconds it was given."""
    left = [times]

    def attempt(seconds):
        left[0] -= 1
        if left[0] >= 0:
            raise ServerError(code, "busy")
        return seconds

    return attempt


def test_the_wait_doubles_to_its_limit_and_each_try_gets_what_is_left():
    time = Time()
    # 1 + 2 + 4 = 7 s of 10 are gone when the fourth try begins.
    assert persist(failing(3), PATIENCE, Fixed(1.0), clock=time.clock) == 3
    assert time.waits == [1, 2, 4]


def test_jitter_takes_up_to_half():
    time = Time()
    persist(failing(4), PATIENCE, Fixed(0.0), clock=time.clock)
    assert time.waits == [0.5, 1, 2, 2]


def test_the_deadline_is_over_all_tries():
    """1 + 2 + 4 s are waited; 4 more would end past 10 s."""
    time = Time()
    with pytest.raises(ServerError, match="Received: UNAVAILABLE: busy"):
        persist(failing(99), PATIENCE, Fixed(1.0), clock=time.clock)
    assert time.waits == [1, 2, 4]


def test_each_wait_is_told():
    told = []
    persist(failing(1), PATIENCE, Fixed(1.0), clock=Time().clock, notice=told.append)
    assert told == ["UNAVAILABLE: busy. Try 2 follows in 1.0 s."]


@given(st.integers(1, 2000), st.integers(0, 99))
def test_a_wait_lies_between_half_and_all_of_its_limit(failures, seed):
    full_s = min(4.0, 2.0 ** min(failures - 1, 10))
    assert full_s / 2 <= PATIENCE.wait_s(failures, np.random.default_rng(seed)) <= full_s


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("INVALID_ARGUMENT", "Look at the server's log"),
        ("NOT_FOUND", "Check --name"),
        ("DEADLINE_EXCEEDED", "Pass a longer --deadline-s"),
        ("RESOURCE_EXHAUSTED", "Pass a lower --max-message-mb"),
        ("UNAUTHENTICATED", "Check --token-file"),
    ],
)
def test_other_failures_are_final_and_say_what_to_do(code, advice):
    time = Time()
    with pytest.raises(ServerError, match=f"server: expected an answer. Received: {code}: busy. {advice}"):
        persist(failing(1, code), PATIENCE, Fixed(1.0), clock=time.clock)
    assert not time.waits


def test_what_knows_the_cause_better_than_the_status_gives_its_own_advice():
    assert str(ServerError("UNAUTHENTICATED", "TLS", advice="Check --tls-ca.")).endswith("TLS. Check --tls-ca.")


def test_what_reading_an_answer_raises_is_an_error_of_the_server():
    with (
        pytest.raises(ServerError, match=r"gpu1: expected numbers\. Received: UNKNOWN: another form \(KeyError\('b64'"),
        reading("numbers", where="gpu1"),
    ):
        {}["b64"]


def test_an_error_without_a_text_says_so():
    assert "UNAVAILABLE: no reason." in str(ServerError("UNAVAILABLE", " \n"))


def test_real_time_passes():
    assert persist(failing(1), Patience(5, first_s=0.01), Fixed(0.0)) < 5
