"""Command: what it costs to segment through a server, and whether anything is lost on the way.

The server is the conformance server of tests/: TensorFlow's C library behind gRPC, in a
process of its own on this machine, so that both share its processor. One JSON line:

    overhead         time of client and server over that of `femur_tf.segment` in one process, less 1, for the first
                     real scan, from reading it to its written mask; the fastest of --repeats each, taken in turn
    bytes_per_voxel  sent for a voxel of the working grid, over gRPC (REST: rest_bytes_per_voxel)
    lost, wrong      of --requests requests by --clients clients at once, those without an answer, with another map
    rss_mb           resident memory of the server before, in the middle of and after these
    masks_equal      whether the masks of all cases equal those of `femur_tf.segment`; maps_ulp: the largest
                     difference of a probability, in steps of float16 below 1
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from femur_tf import (
    client,
    command,
    image_io,
    image_names,
    jobs,
    messages,
    phantom,
    quiet,
    scans,
    segment,
    wire,
    wire_rest,
)
from femur_tf.errors import DataError, typed

MILLION = 1e6
SMALL = (40, 40, 16)
"""Voxels of the volumes that many clients send at once."""
STEP = 2.0**-11
"""Of float16 just below 1."""
DIFFERENT = 5
"""Volumes that take turns, so that an answer to another request is seen."""


@dataclasses.dataclass(frozen=True)
class ServingArguments:
    """Measure serving; one JSON line.

    Example: python -m benchmarks.serving --model saved_models/femur_t1_coronal --data hip_mri
    """

    model: Path
    """A saved model: saved_models/NAME."""
    data: Path | None = None
    """A folder with images/; the first of them are the real scans."""
    real: int = 2
    """Real scans."""
    phantoms: int = 4
    """Phantoms."""
    repeats: int = 2
    """How often the first scan is timed each way."""
    clients: int = 8
    """Clients at once."""
    requests: int = 100
    """Requests of all of them."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """What each measurement needs."""

    bundle: Any
    server: Any
    settings: wire.ServerConfig
    folder: Path

    def job(self, scan: Path, name: str) -> jobs.Job:
        """Return what to write for a scan."""
        return jobs.Job(name, scan, self.folder / f"{name}.nii.gz", self.folder / f"{name}_map.nii.gz")

    def in_process(self, scan: Path) -> jobs.Job:
        """Segment a scan as `femur_tf.segment` does."""
        job = self.job(scan, f"{image_names.case_name(scan)}_segment")
        arguments = segment.SegmentArguments(scan, job.mask, self.bundle.folder)
        segment.segment(job, scans.prepare(job, self.bundle.settings.data), self.bundle, arguments)
        return job

    def served(self, scan: Path) -> jobs.Job:
        """Segment a scan as `femur_tf.client` does, its first contact with the server included."""
        job = self.job(scan, f"{image_names.case_name(scan)}_client")
        with client.connected(self.settings) as (connection, model):
            arguments = client.ClientArguments(scan, job.mask, self.settings)
            client.Client(connection, model, arguments).segment(job)
        return job


def write_scans(arguments: ServingArguments, folder: Path) -> list[Path]:
    """Write the phantoms; return the real scans, then the phantoms."""
    found = []
    if arguments.data:
        found = list(image_names.list_images(arguments.data / "images").values())[: arguments.real]
    for number in range(arguments.phantoms):
        made = phantom.make(np.random.default_rng([6, number]))
        found.append(folder / f"phantom_{number}.nii")
        image_io.write_image(found[-1], made.image.data, like=image_io.Image(made.image, found[-1]))
    return found


def seconds(function: Callable[[Path], object], scan: Path) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function(scan)
    return time.perf_counter() - start


def time_overhead(bench: Bench, scan: Path, repeats: int) -> dict[str, Any]:
    """Time the first scan both ways, in turn; both have seen its shape before."""
    times = [(seconds(bench.in_process, scan), seconds(bench.served, scan)) for _ in range(repeats)]
    alone_s, served_s = (min(column) for column in zip(*times, strict=True))
    shape = image_io.read_image(scan).volume.shape
    return {
        "overhead": round(served_s / alone_s - 1, 4),
        "shape": "x".join(map(str, shape)),
        "segment_s": round(alone_s, 2),
        "client_s": round(served_s, 2),
    }


def bytes_sent(shape: tuple[int, ...]) -> dict[str, float]:
    """Return the size of a request for a volume, a voxel."""
    grid, target = np.zeros((1, *shape), np.uint8), messages.Target("femur_t1_coronal", 1)
    text = json.dumps(wire_rest.encode(np.array([grid.tobytes()], object)))
    return {
        "bytes_per_voxel": round(len(messages.predict_request(target, "segment", {"volume": grid})) / grid.size, 4),
        "rest_bytes_per_voxel": round(len(text) / grid.size, 4),
    }


def compare(bench: Bench, cases: list[Path]) -> dict[str, Any]:
    """Segment all cases both ways and compare what was written."""
    unequal, ulp = [], 0.0
    for scan in cases:
        one, other = bench.in_process(scan), bench.served(scan)
        written = (one.probability, other.probability)
        maps = [image_io.read_image(path).volume.data for path in written if path is not None]
        ulp = max(ulp, float(np.abs(maps[0] - maps[1]).max()) / STEP)
        mine, theirs = (image_io.read_image(path).volume.data for path in (one.mask, other.mask))
        if not np.array_equal(mine, theirs):
            unequal.append(f"{image_names.case_name(scan)}: {int((mine != theirs).sum())} voxels")
    return {"masks_equal": not unequal, "unequal": unequal, "cases": len(cases), "maps_ulp": round(ulp, 2)}


class Load:
    """Many clients at once, each with a connection of its own.

    Args:
      bench: the server.
      requests: how many requests are made by all of them.
    """

    def __init__(self, bench: Bench, requests: int) -> None:
        import psutil

        rng = np.random.default_rng(6)
        self._bench, self._requests = bench, requests
        self._grids = [rng.integers(0, 256, SMALL, np.uint8) for _ in range(DIFFERENT)]
        self._process = psutil.Process(bench.server.process.pid)
        self._lock, self._done, self._rss = threading.Lock(), 0, [0.0]
        self._expected: list[np.ndarray] = []

    def measure(self, clients: int) -> dict[str, Any]:
        """Ask once for each volume, then all at once."""
        with self._connected() as connection:
            self._expected = [connection.probability(grid) for grid in self._grids]
        self._rss = [self._rss_mb()]
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            start = time.perf_counter()
            found = [
                result
                for part in pool.map(self._ask, np.array_split(range(self._requests), clients))
                for result in part
            ]
            took_s = time.perf_counter() - start
        self._rss.append(self._rss_mb())
        lost, wrong = found.count("lost"), found.count("wrong")
        rate = round(self._requests / took_s, 2)
        return {"lost": lost, "wrong": wrong, "requests_per_s": rate, "rss_mb": [round(mb, 1) for mb in self._rss]}

    @contextlib.contextmanager
    def _connected(self) -> Any:
        """Give a connection."""
        with client.connected(self._bench.settings) as (connection, _):
            yield connection

    def _ask(self, numbers: np.ndarray) -> list[str]:
        """Make some of the requests over one connection; say of each how it went."""
        results = []
        with self._connected() as connection:
            for number in numbers:
                which = int(number) % DIFFERENT
                try:
                    answer = connection.probability(self._grids[which])
                except (ValueError, OSError):
                    results.append("lost")
                    continue
                results.append("right" if np.array_equal(answer, self._expected[which]) else "wrong")
                self._count()
        return results

    def _count(self) -> None:
        """Note the server's memory in the middle."""
        with self._lock:
            self._done += 1
            if self._done == self._requests // 2:
                self._rss.append(self._rss_mb())

    def _rss_mb(self) -> float:
        """Return the server's resident memory."""
        return float(self._process.memory_info().rss / MILLION)


def measure(arguments: ServingArguments) -> dict[str, Any]:
    """Measure all; what is written is removed at the end.

    Raises:
      DataError: the model is not one that a server reads.
    """
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles
    from tests.conformance import Process

    model = arguments.model.resolve()
    if not bundles.versions(model):
        raise DataError(
            f"{model}: expected a saved model, with a folder for each version. Received: none in it. "
            f"A run becomes one by {typed('femur_tf.export', 'WORK', '--run', 'NAME', '--to', 'DIR')}"
        )
    with tempfile.TemporaryDirectory() as name, Process(model) as server:
        settings = wire.ServerConfig(f"localhost:{server.grpc_port}", name=model.name, deadline_s=3600)
        bench = Bench(bundles.load(model), server, settings, Path(name))
        result = Load(bench, arguments.requests).measure(arguments.clients)
        cases = write_scans(arguments, Path(name))
        if cases:
            result |= compare(bench, cases) | time_overhead(bench, cases[0], arguments.repeats)
            result |= bytes_sent(scans.prepare(bench.job(cases[0], "first"), bench.bundle.settings.data).working.shape)
    return result


def main(arguments: ServingArguments) -> None:
    """Print the figures; what the commands say goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(arguments)
    print(json.dumps(result))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command.run(main, ServingArguments)
