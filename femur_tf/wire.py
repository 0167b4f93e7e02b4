"""A served model as a client sees it: what it is, and the map of a volume.

`Connection` asks a server, over gRPC or REST, again where that may help, until a
deadline. It stays with the version that it met first, so that a map and the recipe
that makes it a mask come from one model.
"""

from __future__ import annotations

import dataclasses
import math
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import numpy as np

from femur_tf import command, retries
from femur_tf.errors import DataError
from femur_tf.messages import Target
from femur_tf.retries import Patience, ServerError
from femur_tf.wire_grpc import Grpc
from femur_tf.wire_rest import Rest

T = TypeVar("T")
MEGABYTE = 10**6
ROOM_BYTES = 16_384
"""Of a message, for all that is not voxels."""
LARGEST_MB = 2147
"""gRPC counts a message's bytes in 31 bits."""
FIRST_DEADLINE_S = 60.0
"""For the first answer of a server, if that is less: a wrong address should not be tried for long."""
LONGEST_S = 1_000_000
"""Of a deadline: a socket cannot count any number of seconds."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Transport(Protocol):
    """A way to a server. Methods raise `ServerError`; `left_s` is the time they have."""

    volume_signature: str
    """The signature that takes a volume."""
    bytes_per_voxel: float
    """Of the largest message that a volume makes."""

    def predict(
        self, target: Target, signature: str, inputs: dict[str, np.ndarray], left_s: float
    ) -> dict[str, np.ndarray]:
        """Run a signature."""

    def metadata(self, target: Target, left_s: float) -> tuple[frozenset[str], int | None]:
        """Return the names of the model's signatures and its version, None where the server does not say."""

    def close(self) -> None:
        """End the connection."""


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Where a model is served, and how to reach it."""

    server: str
    """HOST:PORT."""
    rest: bool = False
    """Use REST, on the server's REST port, instead of gRPC."""
    name: str = "femur_t1_coronal"
    """The model's name on the server."""
    version: int | None = None
    """Its version; the newest by default."""
    label: str | None = None
    """A label in place of a version, such as stable or canary."""
    tls: bool = False
    """Encrypt the connection, and trust the certificates that the machine trusts."""
    tls_ca: Path | None = None
    """Encrypt the connection, and trust the certificates in this PEM file."""
    token_file: Path | None = None
    """A file with a token, sent with each request as `authorization: Bearer TOKEN`."""
    max_message_mb: int = 256
    """Largest message, in MB (10^6 bytes): a volume that makes a larger one is sent in tiles."""
    deadline_s: float = 600.0
    """Seconds that a request may take, with all tries."""

    def check(self) -> None:
        """Raise a `DataError` where a value is out of range, or two exclude each other."""
        _require("/" not in self.server, "server", "HOST:PORT, without http://", self.server)
        host, colon, port = self.server.rpartition(":")
        named = bool(colon and host) and host.isprintable() and " " not in host
        _require(named and port.isdecimal() and int(port) < 2**16, "server", "HOST:PORT", self.server)
        _require(self.max_message_mb >= 1, "max-message-mb", "at least 1 MB", self.max_message_mb)
        held = self.rest or self.max_message_mb <= LARGEST_MB
        _require(held, "max-message-mb", f"at most {LARGEST_MB} MB over gRPC", self.max_message_mb)
        within = 0 < self.deadline_s <= LONGEST_S
        _require(within, "deadline-s", f"a time above 0 s and of at most {LONGEST_S} s", self.deadline_s)
        both = self.version is not None and self.label is not None
        _require(not both, "label", "a version or a label", f"--version {self.version} --label {self.label}")
        open_token = self.token_file and not self.encrypted and host not in LOCAL
        _require(not open_token, "token-file", "--tls or --tls-ca with it", "a connection that anyone can read")

    @property
    def encrypted(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None

    @property
    def target(self) -> Target:
        """The model to ask for."""
        return Target(self.name, self.version, self.label)


def _require(fine: bool, flag: str, expected: str, received: object) -> None:
    """Raise an error about a flag unless `fine`."""
    if not fine:
        raise DataError(f"--{flag}: expected {expected}. Received: {received}")


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
      FileNotFoundError: no such file.
      DataError: not one line of visible ASCII.
    """
    text = path.read_bytes().strip().decode("ascii", "replace")
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise DataError(f"{path}: expected a token, one line of ASCII without blanks. Received: something else.")
    return text


def connect(config: ServerConfig) -> Transport:
    """Return the way to a server; nothing is sent yet.

    Raises:
      DataError: flags that exclude each other, certificates or a token that cannot be read, or grpcio is missing.
      FileNotFoundError: no such file of certificates or token.
    """
    config.check()
    token = read_token(config.token_file) if config.token_file else None
    limit_bytes = config.max_message_mb * MEGABYTE
    authority = config.tls_ca.read_bytes() if config.tls_ca else None
    context = _tls_context(config.tls_ca, authority) if config.encrypted else None
    if config.rest:
        return Rest(config.server, tls=context, token=token, limit_bytes=limit_bytes)
    return Grpc(config.server, tls=config.encrypted, authority=authority, token=token, limit_bytes=limit_bytes)


def _tls_context(path: Path | None, authority: bytes | None) -> ssl.SSLContext:
    """Return what is trusted; of gRPC it is a check of the certificates alone."""
    # Comments around certificates may be in any encoding. An empty text would mean the certificates of the machine.
    text = None if authority is None else "\n" + authority.decode("ascii", "ignore")
    try:
        return ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise DataError(f"{path}: expected certificates in PEM form. Received: {error}") from error


def _from_bytes(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the map in an answer of `segment_bytes`, (1, X, Y, Z) float16; where it is none, what it is."""
    if not data.dtype.hasobject or data.shape != (1,):
        return data
    found = np.frombuffer(data[0], np.uint8)
    return found.view("<f2").reshape(1, *shape) if found.size == 2 * math.prod(shape) else found


class Connection:
    """A served model. Its methods may be called from several threads.

    Args:
      transport: the way to the server.
      config: which model, how long to try.
      rng: draws the jitter of the waits.
    """

    def __init__(self, transport: Transport, config: ServerConfig, rng: np.random.Generator) -> None:
        self._transport, self._config, self._rng = transport, config, rng
        self._target = config.target
        self._closed = threading.Event()
        self.most_voxels = int((config.max_message_mb * MEGABYTE - ROOM_BYTES) / transport.bytes_per_voxel)
        """Of a volume that one message may hold."""

    @property
    def place(self) -> str:
        """The server and the model on it, for messages."""
        version = f" version {self.version}" if self.version else ""
        return f"{self._config.server}: model {self._config.name}{version}"

    @property
    def version(self) -> str:
        """The model's version; "" where the server does not say."""
        return "" if self._target.version is None else str(self._target.version)

    def message_mb(self, voxels: int) -> int:
        """Return the least `max_message_mb` for volumes of so many voxels."""
        return math.ceil((voxels * self._transport.bytes_per_voxel + ROOM_BYTES) / MEGABYTE)

    def close(self) -> None:
        """End the connection; what waits for an answer, or to try again, fails."""
        self._closed.set()
        self._transport.close()

    def describe(self) -> str:
        """Return what the model says of itself, its signature `metadata`; later requests go to the same version.

        Returns:
          JSON, as `served.from_json` reads it.

        Raises:
          ServerError: the server does not answer, or has no such model.
          DataError: the model lacks a signature that is needed.
        """
        first_s = min(FIRST_DEADLINE_S, self._config.deadline_s)
        try:
            names, version = self._try(lambda left_s: self._transport.metadata(self._target, left_s), first_s)
        except ServerError as error:
            if error.code != "DEADLINE_EXCEEDED" or error.advice or first_s == self._config.deadline_s:
                raise
            # A longer --deadline-s, the usual advice, would not make this longer.
            text, advice = f"none in {first_s:g} s", retries.ADVICE[retries.UNAVAILABLE]
            raise ServerError(error.code, text, where=self.place, expected="a first answer", advice=advice) from error
        if version is not None:
            self._target = Target(self._config.name, version)
        wanted = {"metadata", self._transport.volume_signature}
        if not wanted <= names:
            raise DataError(
                f"{self.place}: expected the signatures {', '.join(sorted(wanted))}. Received: "
                f"{', '.join(sorted(names)) or 'none'}. Export the model again: python -m femur_tf.export"
            )
        found = self._single("metadata", {"request": np.array([b""], object)})
        if found.shape != (1,) or not found.dtype.hasobject:
            raise DataError(f"{self.place}: expected a text from metadata. Received: {found.dtype} {found.shape}")
        return bytes(found[0]).decode("utf-8", "replace")

    def probability(self, grid: np.ndarray) -> np.ndarray:
        """Return the probability map of a working grid, or of a tile of one.

        Args:
          grid: (X, Y, Z) uint8, at most `most_voxels` voxels.

        Returns:
          (X, Y, Z) float16 in [0, 1].

        Raises:
          ServerError: the server does not answer, or refuses.
          DataError: it answers something else than a map.
        """
        grid = np.ascontiguousarray(grid)
        if self._transport.volume_signature == "segment":
            found = self._single("segment", {"volume": grid[None]})
        else:
            shape = np.array([grid.shape], np.int64)
            data = self._single("segment_bytes", {"volume_bytes": np.array([grid.tobytes()], object), "shape": shape})
            found = _from_bytes(data, grid.shape)
        wanted = (1, *grid.shape)
        if found.dtype != np.float16 or found.shape != wanted:
            self._refuse_map(f"float16 {wanted}", f"{found.dtype} {found.shape}")
        low, high = found.min(), found.max()  # NaN where there is one
        if not 0 <= low <= high <= 1:
            self._refuse_map("probabilities from 0 to 1", f"{low} to {high}")
        return found[0]

    def _refuse_map(self, expected: str, received: str) -> NoReturn:
        """Raise the error of an answer that is no map."""
        raise DataError(f"{self.place}: expected {expected}. Received: {received}. {retries.OTHERWISE}")

    def _single(self, signature: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Run a signature and return its one output."""
        found = self._try(lambda left_s: self._transport.predict(self._target, signature, inputs, left_s))
        if len(found) != 1:
            raise DataError(f"{self.place}: expected one output of {signature}. Received: {sorted(found)}")
        (output,) = found.values()
        return output

    def _try(self, attempt: Callable[[float], T], deadline_s: float | None = None) -> T:
        """Try a request until it works, fails for good, or has no time left."""
        patience = Patience(deadline_s or self._config.deadline_s)

        def checked(left_s: float) -> T:
            try:
                if not self._closed.is_set():
                    return attempt(left_s)
            except ServerError:
                if not self._closed.is_set():
                    raise
            raise ServerError("CANCELLED", "the connection was closed", where=self.place)

        return retries.persist(
            checked,
            patience,
            self._rng,
            clock=retries.Clock(sleep=self._closed.wait),
            notice=lambda text: command.warn(f"{self.place}: {text}"),
        )
