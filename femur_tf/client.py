"""Command: segment scans with a model that is served elsewhere.

The scan is read and brought to the working grid here, the network runs on the server,
and the mask is made here from the map that comes back: the same steps as in
`femur_tf.segment`, and the same mask. No TensorFlow is needed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from femur_tf import command, config, jobs, mask_report, quality, scans, served, tiles, wire
from femur_tf.errors import DataError, WriteError
from femur_tf.jobs import Job
from femur_tf.origin import Origin
from femur_tf.retries import UNAVAILABLE, ServerError

GONE = (UNAVAILABLE, "DEADLINE_EXCEEDED")
"""What a server that has gone answers; after one scan of a folder the server is asked whether it is there."""


@dataclasses.dataclass(frozen=True)
class ClientArguments:
    """Segment the proximal femur in MR scans with a model on a server.

    Example: python -m femur_tf.client scan.nii.gz mask.nii.gz --server localhost:8500

    The mask is that of femur_tf.segment, on the scan's own grid. Of a folder of scans every one is segmented;
    those whose mask exists are passed over, so that an interrupted run goes on. Research use, not diagnosis.
    """

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """A NIfTI, NRRD or MetaImage file, a DICOM folder, an enhanced DICOM file, or a folder of any of these."""
    mask: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MASK")]
    """The file to write (its suffix chooses the format), or the folder to write NAME.nii.gz files to."""
    connection: tyro.conf.OmitArgPrefixes[wire.ServerConfig]
    probability: Path | None = None
    """Also write the probability map, float32: a file, or a folder for a folder of scans."""
    sides: bool = False
    """Label the patient's left femur 1 and the right one 2, instead of both 1."""
    overwrite: bool = False
    """Replace masks that exist."""
    report: Path | None = None
    """Also write what is known of each mask (volume, doubt, reasons to look at it) to a JSON file."""
    strict: bool = False
    """Exit with status 3 where there is a reason to look at a mask; of masks passed over, the --report tells."""
    concurrency: int = 1
    """Scans of a folder that the server has at once; one more is being prepared."""


def read_model(text: str, source: str) -> served.Metadata:
    """Read what the signature `metadata` says.

    Args:
      text: its JSON.
      source: the server and the model, for errors.

    Raises:
      DataError: not JSON, another format version, settings that this version of femur_tf does not know or means
        otherwise, or no recipe.
    """
    found = served.from_json(text, source)
    rule = found.config.patch
    if (found.halo, found.steps, found.padding) != (served.halo(rule), rule.common_step, rule.padding):
        raise DataError(
            f"{source}: expected halo {served.halo(rule)}, steps {rule.common_step}, padding {rule.padding} "
            f"of its patch rule. Received: {found.halo}, {found.steps}, {found.padding}. Use its own femur_tf."
        )
    return found


def read_recipe(model: served.Metadata, source: str) -> config.RecipeConfig:
    """Return how a map of the model becomes a mask, of all that `recipe.json` says.

    Raises:
      DataError: there is none.
    """
    return config.from_dict(config.RecipeConfig, model.recipe.get("recipe"), f"{source}, metadata, recipe")


def read_cohort(model: served.Metadata, source: str) -> quality.Cohort | None:
    """Return what is usual, for the quality flag; None where the model does not say."""
    if model.cohort is None:
        return None
    return config.from_dict(quality.Cohort, model.cohort, f"{source}, metadata, cohort")


def probability_map(
    connection: wire.Connection,
    grid: np.ndarray,
    rule: config.PatchConfig,
    advance: Callable[[float], None] = lambda _: None,
) -> np.ndarray:
    """Return the probability map of a working grid, asked for in tiles where it is too large for a message.

    Args:
      connection: the model.
      grid: (X, Y, Z) uint8 working grid.
      rule: the model's patch rule.
      advance: is told the share of the map that each tile was.

    Returns:
      (X, Y, Z) float16 in [0, 1].

    Raises:
      DataError: no tile is small enough, or the server fails.
    """
    try:
        parts = tiles.split(grid.shape, rule, connection.most_voxels)
    except tiles.TooSmallError as error:
        least = connection.message_mb(error.least)
        raise DataError(
            f"--max-message-mb: expected at least {least} MB for a volume of {' x '.join(map(str, grid.shape))} "
            "voxels, with the surroundings that exactness needs. Received: less."
        ) from error
    result = np.empty(grid.shape, np.float16)
    for tile in parts:
        result[tile.target] = connection.probability(grid[tile.source])[tile.inner]
        advance(1 / len(parts))
    return result


class Client:
    """Segments scans one by one, from several threads.

    Args:
      connection: the model.
      model: what it says of itself.
      arguments: the command's.
      advance: is told the share of a scan that is done.
    """

    def __init__(
        self,
        connection: wire.Connection,
        model: served.Metadata,
        arguments: ClientArguments,
        advance: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._connection, self._data, self._advance = connection, model.config.data, advance
        self._concurrency = arguments.concurrency
        recipe, cohort = read_recipe(model, connection.place), read_cohort(model, connection.place)
        origin = Origin(model.name, connection.version, model.digest)
        self.finishing = scans.Finishing(recipe, origin, arguments.sides, cohort, arguments.report)
        self._in_flight = threading.Semaphore(arguments.concurrency)

    def segment(self, job: Job) -> scans.Result:
        """Segment one scan and write its mask.

        Raises:
          DataError: the scan cannot be used, the server fails, or a file cannot be written.
        """
        scan = scans.prepare(job, self._data)
        rule = self._data.patch
        scans.announce_resampling(job, scan, rule.spacing_mm)
        with self._in_flight:
            start = time.perf_counter()
            found = probability_map(self._connection, scan.working.data, rule, self._advance)
        return scans.finish(job, scan, found, self.finishing, start=start)

    def segment_all(self, todo: Sequence[Job]) -> Iterator[tuple[Job, concurrent.futures.Future[scans.Result]]]:
        """Yield each scan with its result, in their order; one scan more than are in flight is being prepared.

        Where the caller stops early, what has not begun is left out and what waits for the server is cut off.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self._concurrency + 1)
        done = False
        try:
            waiting = collections.deque((job, pool.submit(self.segment, job)) for job in todo)
            while waiting:
                job, future = waiting.popleft()  # one that has failed keeps its scan in memory
                concurrent.futures.wait([future])
                yield job, future
            done = True
        finally:
            if not done:
                self._connection.close()
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def connected(settings: wire.ServerConfig) -> Iterator[tuple[wire.Connection, served.Metadata]]:
    """Give the connection to a served model and what the model says of itself.

    Raises:
      DataError: the settings, the server or the model cannot be used.
    """
    with contextlib.closing(wire.Connection(wire.connect(settings), settings, np.random.default_rng())) as connection:
        yield connection, read_model(connection.describe(), connection.place)


def _segment(todo: jobs.Todo, arguments: ClientArguments, results: list[scans.Result]) -> int:
    """Segment, add to the results, and return how many scans of a folder have failed."""
    failed = 0
    with connected(arguments.connection) as (connection, model), command.progress(percent=True) as display:
        command.say(connection.place)
        quality.require_cohort(connection.place, read_cohort(model, connection.place), strict=arguments.strict)
        task = display.add_task("scans", total=float(len(todo.jobs)))
        client = Client(connection, model, arguments, lambda share: display.advance(task, share))
        command.say(f"Model: {client.finishing.origin.text}")
        jobs.warn_of_others(todo.passed, client.finishing.origin)
        for job, future in client.segment_all(todo.jobs):
            try:
                results.append(future.result())
            except (DataError, OSError) as error:
                if not todo.is_folder or isinstance(error, WriteError):
                    raise
                command.fail(f"{job.name}: {error}")
                mask_report.add_failure(arguments.report, job, error)
                failed += 1
                if isinstance(error, ServerError) and error.code in GONE:
                    connection.describe()  # raises where the server is gone for good: each scan would wait as long
    return failed


def main(arguments: ClientArguments) -> int:
    """Segment, and print one table; 2 where a scan of a folder could not be segmented, 3 with --strict for a doubt."""
    if arguments.concurrency < 1:
        raise DataError(f"--concurrency: expected at least 1 scan. Received: {arguments.concurrency}")
    todo = jobs.todo(arguments, arguments.report)
    earlier = mask_report.flagged(arguments.report, todo.passed, strict=arguments.strict)
    results: list[scans.Result] = []
    try:
        failed = _segment(todo, arguments, results) if todo.jobs else 0
    finally:  # what was done is told, too, where an interrupt or a full disk ends the rest
        scans.show(results)
    return scans.status(results, failed=failed, strict=arguments.strict, earlier=earlier)


if __name__ == "__main__":
    command.run(main, ClientArguments)
