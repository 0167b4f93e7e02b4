"""gRPC: TensorFlow Serving's main interface, with the package grpcio."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path

import numpy as np

from femur_tf import messages, retries
from femur_tf.errors import DataError
from femur_tf.messages import Target
from femur_tf.retries import ServerError

RECONNECT_MS = (200, 2000)
"""Shortest and longest wait of a gRPC channel before it connects again; its own goes up to two minutes."""
UNTRUSTED = re.compile("TSI_PROTOCOL_FAILURE|CERTIFICATE_VERIFY_FAILED|Hostname Verification")
"""What gRPC says of a handshake that will fail again; its status is UNAVAILABLE, as of a server that restarts."""
ROOTS = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
"""The variable that gives gRPC other certificates than its own."""


def machine_certificates() -> bytes | None:
    """Return the certificates that the machine trusts, PEM; None: gRPC's own, where there are none or a file is set.

    gRPC brings a list of its own, which lacks what a hospital has added to a machine's.
    """
    if os.environ.get(ROOTS):
        return None
    known = ssl.get_default_verify_paths()
    files = [Path(known.cafile)] if known.cafile else []
    if known.capath:
        files += sorted(Path(known.capath).glob("*.[0-9]"))  # named by their hashes, as OpenSSL looks for them
    return b"\n".join(path.read_bytes() for path in files if path.is_file()) or None


class Grpc:
    """The gRPC interface of a server; needs the extra `serving`.

    Args:
      address: HOST:PORT.
      tls: whether to encrypt the connection.
      authority: certificates to trust, PEM; None: those that the machine trusts.
      token: sent as a bearer token.
      limit_bytes: of a message.

    Raises:
      DataError: grpcio is not installed.
    """

    volume_signature = "segment"
    bytes_per_voxel = 2.0
    """Of the larger message, the answer: float16."""

    def __init__(
        self, address: str, *, tls: bool, authority: bytes | None, token: str | None, limit_bytes: int
    ) -> None:
        try:
            import grpc
        except ImportError as error:
            raise DataError(
                "gRPC: expected the package grpcio. Received: it is not installed. "
                "Install it (pip install 'femur_tf[serving]'), or pass --rest."
            ) from error
        self._grpc, self.address = grpc, address
        self._token = (("authorization", f"Bearer {token}"),) if token else ()
        options = [
            ("grpc.max_receive_message_length", limit_bytes),  # 4 MB by default
            ("grpc.max_send_message_length", limit_bytes),
            ("grpc.enable_http_proxy", 0),  # it would be asked even for this machine; REST takes no notice of one
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS[0]),
            ("grpc.min_reconnect_backoff_ms", RECONNECT_MS[0]),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MS[1]),
        ]
        if tls:
            trusted = grpc.ssl_channel_credentials(root_certificates=authority or machine_certificates())
            self._channel = grpc.secure_channel(address, trusted, options)
        else:
            self._channel = grpc.insecure_channel(address, options)

    def predict(
        self, target: Target, signature: str, inputs: dict[str, np.ndarray], left_s: float
    ) -> dict[str, np.ndarray]:
        """Run a signature."""
        request = messages.predict_request(target, signature, inputs)
        found = self._call(messages.PREDICT, request, left_s)
        with retries.reading("outputs", where=self.address):
            return messages.predict_response(found)

    def metadata(self, target: Target, left_s: float) -> tuple[frozenset[str], int | None]:
        """Return the signatures' names and the version."""
        found = self._call(messages.METADATA, messages.metadata_request(target), left_s)
        with retries.reading("the model's metadata", where=self.address):
            return messages.metadata_response(found)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, method: str, request: bytes, left_s: float) -> bytes:
        """Call a method with serialized messages."""
        try:
            answer: bytes = self._channel.unary_unary(method)(request, timeout=left_s, metadata=self._token)
        except self._grpc.RpcError as error:
            text = error.details() or ""
            if UNTRUSTED.search(text):
                raise retries.untrusted(text, where=self.address) from error
            raise ServerError(error.code().name, text, where=self.address) from error
        return answer
