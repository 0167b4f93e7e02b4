"""REST: TensorFlow Serving's HTTP interface, with Python's standard library alone.

Volumes and maps travel as bytes in base64, which JSON can hold; numbers written out
take thirty times the room and time.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np

from femur_tf import retries
from femur_tf.messages import SIGNATURES, Target
from femur_tf.retries import UNAVAILABLE, ServerError

STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    412: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: UNAVAILABLE,
    501: "UNIMPLEMENTED",
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: "DEADLINE_EXCEEDED",
}
"""HTTP status -> gRPC's name; others are UNKNOWN."""
_OWN_LIMIT = (
    "The server, or a proxy before it, has its own limit: raise it (TensorFlow Serving: --rest_api_timeout_in_ms)."
)
ADVICE = {408: _OWN_LIMIT, 429: retries.ADVICE["RESOURCE_EXHAUSTED"], 504: _OWN_LIMIT}
"""HTTP status -> what to do, where its name suggests something else. TensorFlow Serving says 429 where its memory is
full, which may pass, 504 where its own limit is met."""
_PIECE = 1 << 20
_SHOWN = 300
"""Characters of an answer that an error shows."""
_REDIRECTS = range(300, 400)
"""HTTP statuses that name another place."""


def model_path(target: Target) -> str:
    """Return the path of a model's resources on a server; in names, what a path cannot hold is percent-encoded."""
    model = f"/v1/models/{urllib.parse.quote(target.name, safe='')}"
    if target.version is not None:
        return f"{model}/versions/{target.version}"
    if target.label is not None:
        return f"{model}/labels/{urllib.parse.quote(target.label, safe='')}"
    return model


def encode(array: np.ndarray) -> Any:
    """Return an array as JSON values; bytes as `{"b64": ...}`."""
    if not array.dtype.hasobject:
        return array.tolist()
    return [{"b64": base64.b64encode(data).decode()} for data in array.ravel().tolist()]


def decode(values: Any) -> np.ndarray:
    """Return an output as an array: numbers as they are, texts and `{"b64": ...}` as objects with `bytes` in them.

    Raises:
      ValueError: neither numbers, nor texts, nor base64.
    """
    if not isinstance(values, list) or not values or not isinstance(values[0], (str, dict)):
        array = np.array(values)
        if array.dtype.hasobject:
            raise ValueError(f"neither numbers nor texts: {str(values)[:_SHOWN]}")
        return array
    texts = [v.encode() if isinstance(v, str) else base64.b64decode(v["b64"], validate=True) for v in values]
    return np.array(texts, object)


def _seconds_until(end: float) -> float:
    """Return the seconds until a moment on `time.monotonic`.

    Raises:
      TimeoutError: it has passed.
    """
    left_s = end - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


class Rest:
    """The HTTP interface of a server.

    Args:
      address: HOST:PORT.
      tls: certificates to trust; None for a connection that is not encrypted.
      token: sent as a bearer token.
      limit_bytes: of an answer.
    """

    volume_signature = "segment_bytes"
    bytes_per_voxel = 2 * 4 / 3
    """Of the larger message, the answer: float16 in base64."""

    def __init__(self, address: str, *, tls: ssl.SSLContext | None, token: str | None, limit_bytes: int) -> None:
        self.address, self._tls, self._limit_bytes = address, tls, limit_bytes
        self._headers = {"Content-Type": "application/json"}
        self._lock, self._links, self._closed = threading.Lock(), set[socket.socket](), False
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def predict(
        self, target: Target, signature: str, inputs: dict[str, np.ndarray], left_s: float
    ) -> dict[str, np.ndarray]:
        """Run a signature whose outputs' names are not looked at: a single one is called ""."""
        body = {"signature_name": signature, "inputs": {name: encode(array) for name, array in inputs.items()}}
        values = self._json("POST", model_path(target) + ":predict", json.dumps(body).encode(), left_s)
        with retries.reading("outputs with numbers, texts or base64", where=self.address):
            outputs = values["outputs"]
            if isinstance(outputs, dict) and set(outputs) != {"b64"}:
                return {name: decode(value) for name, value in outputs.items()}
            return {"": decode(outputs if isinstance(outputs, list) else [outputs])}

    def metadata(self, target: Target, left_s: float) -> tuple[frozenset[str], int | None]:
        """Return the signatures' names and the version."""
        values = self._json("GET", model_path(target) + "/metadata", None, left_s)
        with retries.reading("the model's metadata", where=self.address):
            found = values["metadata"][SIGNATURES][SIGNATURES]
            version = values.get("model_spec", {}).get("version")
            return frozenset(found), int(version) if version else None

    def close(self) -> None:
        """Cut off what waits for an answer; nothing stays open between requests."""
        with self._lock:
            self._closed = True
            for link in self._links:
                with contextlib.suppress(OSError):  # the server was faster
                    # The method of an encrypted socket drops its encryption first, while another thread may send.
                    socket.socket.shutdown(link, socket.SHUT_RDWR)

    def _json(self, method: str, path: str, body: bytes | None, left_s: float) -> Any:
        """Make a request and return the JSON that it answers."""
        status, data = self._exchange(method, path, body, left_s)
        try:
            values = json.loads(data)
        except ValueError:
            values = {"error": data[:_SHOWN].decode("utf-8", "replace")} if status != http.HTTPStatus.OK else None
        if status != http.HTTPStatus.OK:
            text = str(values.get("error", values) if isinstance(values, dict) else values)[:_SHOWN] or "no reason"
            code, advice = STATUS.get(status, "UNKNOWN"), ADVICE.get(status)
            raise ServerError(code, f"HTTP {status}, {text}", where=self.address, advice=advice)
        if values is None:
            raise ServerError("UNKNOWN", data[:_SHOWN].decode("utf-8", "replace"), where=self.address, expected="JSON")
        return values

    def _exchange(self, method: str, path: str, body: bytes | None, left_s: float) -> tuple[int, bytes]:
        """Send a request and return the status and the body of the answer."""
        end = time.monotonic() + left_s
        try:
            with self._opened(end) as (connection, link):
                link.settimeout(_seconds_until(end))
                # A server that takes no more, as of a body that is too large, may have answered why.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body, self._headers)
                link.settimeout(_seconds_until(end))
                response = connection.getresponse()
                if response.status in _REDIRECTS:
                    raise self._redirected(response)
                return response.status, self._read(response, link, end)
        except TimeoutError as error:
            text = "no answer in time"
            raise ServerError("DEADLINE_EXCEEDED", text, where=self.address) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:  # the server went away
            raise ServerError(UNAVAILABLE, str(error), where=self.address) from error
        except ssl.SSLError as error:
            raise retries.untrusted(str(error), where=self.address) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(UNAVAILABLE, str(error) or type(error).__name__, where=self.address) from error

    @contextlib.contextmanager
    def _opened(self, end: float) -> Iterator[tuple[http.client.HTTPConnection, socket.socket]]:
        """Give an open connection, which `close` cuts off, and its socket: with the answer a connection may lose it."""
        with contextlib.closing(self._connect(_seconds_until(end))) as connection:
            connection.connect()
            link = connection.sock
            with self._lock:
                if self._closed:
                    raise ConnectionAbortedError("the connection was closed")
                self._links.add(link)
            try:
                yield connection, link
            finally:
                with self._lock:
                    self._links.discard(link)

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """Return a connection that is not open yet."""
        if self._tls:
            return http.client.HTTPSConnection(self.address, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(self.address, timeout=timeout_s)

    def _redirected(self, response: http.client.HTTPResponse) -> ServerError:
        """Return the error of an answer that sends a client elsewhere, where scan and token may not be meant to go."""
        text = f"HTTP {response.status}, a redirect to {response.getheader('Location', 'no place')}"
        advice = "Pass the host and port of that place as --server, and --tls where it begins with https."
        return ServerError("UNKNOWN", text[:_SHOWN], where=self.address, advice=advice)

    def _read(self, response: http.client.HTTPResponse, link: socket.socket, end: float) -> bytes:
        """Return the body of an answer that ends in time and keeps to the limit."""
        pieces: list[bytes] = []
        size = 0
        while not response.isclosed():
            link.settimeout(_seconds_until(end))
            piece = response.read1(_PIECE)  # what has come: `read` would wait for more past the end
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
            if size > self._limit_bytes:
                text = f"an answer of more than {self._limit_bytes} bytes"
                raise ServerError("RESOURCE_EXHAUSTED", text, where=self.address)
        body = b"".join(pieces)
        if response.length:  # reading says nothing of an answer that was cut short
            raise http.client.IncompleteRead(body, response.length)
        return body
