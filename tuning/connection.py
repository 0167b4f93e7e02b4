"""Where a search's chief is, and who calls it; without TensorFlow."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import grpc

from femur_tf.errors import DataError


def channel_to(address: str) -> grpc.Channel:
    """Return a channel to a chief at HOST:PORT, which lies in the same network: never through an HTTP proxy."""
    return grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])


class Connection(NamedTuple):
    """Where the chief is, and who this worker is."""

    host: str
    port: int
    name: str
    wait_s: float

    @classmethod
    def of(cls, address: str, wait_s: float) -> Connection:
        """Return the connection to a chief at HOST:PORT.

        The name is that of `KERASTUNER_TUNER_ID`, or made from machine and process.

        Raises:
          DataError: no such address.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise DataError(f"--chief: expected HOST:PORT. Received: {address!r}")
        # keras-tuner takes a name with "chief" in it for the chief's.
        own = f"worker-{socket.gethostname()}-{os.getpid()}".replace("chief", "host")
        return cls(host, int(port), os.environ.get("KERASTUNER_TUNER_ID", own), wait_s)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    def export(self) -> None:
        """Set the environment that keras-tuner reads."""
        os.environ["KERASTUNER_ORACLE_IP"] = self.host
        os.environ["KERASTUNER_ORACLE_PORT"] = str(self.port)
        os.environ["KERASTUNER_TUNER_ID"] = self.name

    def is_up(self, seconds: float) -> bool:
        """Return whether the chief answers within some seconds."""
        with channel_to(self.address) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=seconds)
            except grpc.FutureTimeoutError:
                return False
        return True
