"""Trying again: back-off with jitter, until a deadline over all tries."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from femur_tf.errors import DataError

T = TypeVar("T")
UNAVAILABLE = "UNAVAILABLE"
"""The one status after which the same request may succeed: the server restarts, or has too much to do."""
ADVICE = {
    UNAVAILABLE: "Check that the server runs, that --server names its gRPC port, or its REST port with --rest, and "
    "whether it takes encrypted connections alone (--tls).",
    "DEADLINE_EXCEEDED": "Pass a longer --deadline-s.",
    "RESOURCE_EXHAUSTED": "Pass a lower --max-message-mb, so that volumes are sent in tiles; where the server's memory "
    "was full, also a lower --concurrency.",
    "NOT_FOUND": "Check --name, --version and --label.",
    "UNAUTHENTICATED": "Check --token-file.",
    "PERMISSION_DENIED": "Check --token-file.",
}
NO_LABEL = "servable version label"
"""In TensorFlow Serving's answer to a label that it does not know, whose status is that of a bad request."""
OTHERWISE = "Look at the server's log; the model may have been exported by another version of femur_tf."


class ServerError(DataError):
    """What a server, or the way to it, answered instead of a result.

    Args:
      code: gRPC's name of the status, for REST too.
      text: what was said.
      where: the server.
      expected: what was asked for.
      advice: what to do, where the cause is known better than by its status; None: what the status suggests.
    """

    def __init__(
        self, code: str, text: str, *, where: str = "server", expected: str = "an answer", advice: str | None = None
    ) -> None:
        shown = "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))  # it ends up in a log
        text = shown.rstrip(".") or "no reason"
        usual = ADVICE["NOT_FOUND"] if NO_LABEL in text else ADVICE.get(code, OTHERWISE)
        super().__init__(f"{where}: expected {expected}. Received: {code}: {text}. {advice or usual}")
        self.code, self.text, self.advice = code, text, advice


def untrusted(text: str, *, where: str) -> ServerError:
    """Return the error of a handshake that failed: the server, or the way it is asked, is not to be trusted.

    Args:
      text: what was said.
      where: the server.
    """
    # The status is also that of a missing token, whose advice would mislead.
    return ServerError(
        "UNAUTHENTICATED",
        f"TLS: {text}",
        where=where,
        expected="a trusted server",
        advice="Check --tls-ca, and that --server is a name in the server's certificate. "
        "A server without TLS takes neither --tls nor --tls-ca.",
    )


@contextlib.contextmanager
def reading(expected: str, *, where: str) -> Iterator[None]:
    """Turn what an answer of another form raises while it is read into an error of the server.

    Args:
      expected: what the answer should hold.
      where: the server.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServerError("UNKNOWN", f"another form ({error!r})", where=where, expected=expected) from error


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long and how often a request is tried."""

    deadline_s: float = 600.0
    """Seconds for all tries together."""
    first_s: float = 0.25
    """The wait after the first failure; it doubles with each."""
    most_s: float = 10.0
    """The longest wait."""

    def wait_s(self, failures: int, rng: np.random.Generator) -> float:
        """Return the seconds to wait after so many failures, 1 or more: from half to all of the current wait.

        Jitter keeps clients that failed together from coming back together.
        """
        return min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30)) * float(rng.uniform(0.5, 1.0))


@dataclasses.dataclass(frozen=True)
class Clock:
    """Where time comes from."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


def persist(
    attempt: Callable[[float], T],
    patience: Patience,
    rng: np.random.Generator,
    *,
    clock: Clock | None = None,
    notice: Callable[[str], None] | None = None,
) -> T:
    """Try until it works, or fails for good, or the deadline comes.

    Args:
      attempt: makes one try; gets the seconds that are left.
      patience: the deadline and the waits.
      rng: draws the jitter.
      clock: for tests.
      notice: is told of each wait.

    Returns:
      What `attempt` returned.

    Raises:
      ServerError: not UNAVAILABLE, or UNAVAILABLE with no time left to try again.
    """
    clock = clock or Clock()
    end, failures = clock.now() + patience.deadline_s, 0
    while True:
        try:
            return attempt(end - clock.now())
        except ServerError as error:
            failures += 1
            wait_s = patience.wait_s(failures, rng)
            if error.code != UNAVAILABLE or clock.now() + wait_s >= end:
                raise
            if notice:
                notice(f"{error.code}: {error.text}. Try {failures + 1} follows in {wait_s:.1f} s.")
            clock.sleep(wait_s)
