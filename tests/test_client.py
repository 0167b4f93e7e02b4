"""The client: the masks of `segment`, whatever the way, the size and the accidents."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import subprocess
import sys
import threading
import time
import types
import weakref
from pathlib import Path

import bright
import nibabel
import numpy as np
import pytest
import tiny
from conformance import Models, Options, Process, serving

from femur_tf import bundle, client, config, export, image_io, phantom, quality, segment, served, wire
from femur_tf.client import ClientArguments
from femur_tf.errors import DataError, WriteError
from femur_tf.segment import SegmentArguments
from femur_tf.wire import ServerConfig

ROOT = Path(__file__).parents[1]
BOTH = pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])
HALF_STEP = 0.0005
"""The largest step of float16 below 1: `segment` and the served graph add in another order, before both round."""
LONG = (140, 20, 12)
"""Long enough, along x, for tiles of the test network: its halo is 60 voxels wide."""
SMALL_MEGABYTE = 62_000
"""In the place of a MB: room for 22,800 voxels over gRPC, 17,100 over REST, of the 33,600."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model."""
    folder = tmp_path_factory.mktemp("saved_models") / "femur"
    export.export(bundle.load(bright.save_run(tmp_path_factory.mktemp("run"))), folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model):
    return bundle.load(model)


@pytest.fixture(autouse=True)
def loads_once(monkeypatch, model, loaded):
    """Load the model of this module once for all tests."""
    real = bundle.load
    monkeypatch.setattr(bundle, "load", lambda folder: loaded if folder == model else real(folder))


@pytest.fixture(scope="module")
def server(model):
    """The model, served in this process: its gRPC and its REST port, and what was asked."""
    models = Models(model, Options())
    with serving(models) as ports:
        yield ports, models.requests


def run(image, mask, server, *, rest=False, settings=None, **options):
    """Run the command on a server of this process."""
    wanted = ServerConfig(f"localhost:{server[0][rest]}", rest=rest, name="femur", **(settings or {}))
    return client.main(ClientArguments(image, mask, wanted, **options))


def expected(image, mask, model, **options):
    """Run `segment` in the same way."""
    assert segment.main(SegmentArguments(image, mask, model, **options)) == 0
    return mask


def save_scans(folder, names):
    for name in names:
        bright.save(folder / f"{name}.nii.gz", tiny.scan(name))
    return folder


def same(one, other, atol=0.0):
    """Compare two images voxel by voxel and by their place; return how many voxels are above 0."""
    one, other = (image_io.read_image(path).volume for path in (one, other))
    np.testing.assert_array_equal(one.affine, other.affine)
    assert one.data.dtype == other.data.dtype
    np.testing.assert_allclose(one.data, other.data, rtol=0, atol=atol)
    return int((one.data > 0).sum())


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 2.0), (1.2, 0.9, 2.4)])
def test_mask_and_map_equal_those_of_segment(tmp_path, server, model, rest, spacing_mm):
    affine = np.diag([*spacing_mm, 1.0])[[1, 0, 2, 3]]  # the first axis runs to anterior
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"), affine)
    assert run(scan, tmp_path / "a.nii.gz", server, rest=rest, probability=tmp_path / "pa.nii.gz") == 0
    expected(scan, tmp_path / "b.nii.gz", model, probability=tmp_path / "pb.nii.gz")
    assert same(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz") > 100
    same(tmp_path / "pa.nii.gz", tmp_path / "pb.nii.gz", HALF_STEP)


@pytest.mark.slow
def test_a_report_is_that_of_segment_and_strict_tells(tmp_path, model, server):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    empty = bright.save(tmp_path / "empty.nii.gz", tiny.scan("a") * 0)
    told = {}
    for name in ("client", "segment"):
        (tmp_path / name).mkdir()
        report = tmp_path / name / "report.json"
        if name == "client":
            run(scan, tmp_path / name / "mask.nii.gz", server, report=report)
        else:
            expected(scan, tmp_path / name / "mask.nii.gz", model, report=report)
        told[name] = json.loads(report.read_text(encoding="utf-8"))["mask.nii.gz"]
        made_by = told[name].pop("made_by")
        assert (made_by["model"], made_by["version"]) == ("femur", "1")
        assert made_by["digest"] == bundle.load(model).origin.digest
    assert told["client"]["measures"] == pytest.approx(told["segment"]["measures"], abs=HALF_STEP)
    texts = [image_io.read_made_by(tmp_path / name / "mask.nii.gz") for name in told]
    assert texts[0] == texts[1] != ""
    with pytest.raises(DataError, match=r"--strict: .*expected a model that knows what is usual"):
        run(empty, tmp_path / "mask.nii.gz", server, strict=True)


@pytest.mark.slow
def test_strict_is_an_exit_status_of_the_client_too(tmp_path, server, loaded, monkeypatch):
    values = config.to_dict(served.metadata(loaded, "femur", "# Card"))
    cohort = {"cases": 12, "limits": {}, "quantiles": {name: [] for name in quality.DISTANCES}, "format_version": 1}
    empty = bright.save(tmp_path / "empty.nii.gz", tiny.scan("a") * 0)
    with answering(monkeypatch, json.dumps(values | {"cohort": cohort})):
        assert run(empty, tmp_path / "mask.nii.gz", server, strict=True) == 3
        assert run(empty, tmp_path / "again.nii.gz", server) == 0


@pytest.mark.slow
@BOTH
def test_a_scan_in_tiles_gets_the_map_of_the_whole(tmp_path, server, model, rest, monkeypatch, rng):
    data = (rng.normal(100, 20, LONG) + 120 * tiny.ball(LONG)).astype(np.int16)
    scan, requests = bright.save(tmp_path / "scan.nii.gz", data), server[1]
    run(scan, tmp_path / "b.nii.gz", server, rest=rest, probability=tmp_path / "pb.nii.gz")
    requests.clear()
    monkeypatch.setattr(wire, "MEGABYTE", SMALL_MEGABYTE)
    limit = {"max_message_mb": 1}
    run(scan, tmp_path / "a.nii.gz", server, rest=rest, settings=limit, probability=tmp_path / "pa.nii.gz")
    assert [name for name, _ in requests].count("segment_bytes" if rest else "segment") > 2
    same(tmp_path / "pa.nii.gz", tmp_path / "pb.nii.gz")
    assert same(tmp_path / "a.nii.gz", expected(scan, tmp_path / "c.nii.gz", model)) > 1000


def test_sides_are_labelled_as_segment_does(tmp_path, server, model):
    data = np.full((170, 20, 12), 100, np.int16)
    data[10:30, 4:16, 2:10] = data[140:160, 4:16, 2:10] = 250
    scan = bright.save(tmp_path / "scan.nii.gz", data)
    run(scan, tmp_path / "a.nii.gz", server, sides=True)
    same(tmp_path / "a.nii.gz", expected(scan, tmp_path / "b.nii.gz", model, sides=True))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_folder_goes_on_past_a_broken_scan_and_keeps_masks(tmp_path, server, model, concurrency, capsys):
    save_scans(tmp_path / "scans", "acde")
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"no image")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "c.nii.gz").write_bytes(b"corrected by hand")
    assert run(tmp_path / "scans", tmp_path / "masks", server, concurrency=concurrency) == 2
    assert (tmp_path / "masks" / "c.nii.gz").read_bytes() == b"corrected by hand"
    shown = capsys.readouterr()
    assert re.search(r"b: .*b\.nii\.gz: expected", shown.err)
    assert "1 of 5 scans have a mask and are passed over" in shown.out
    assert re.findall(r"^│ (\w) +│", shown.out, re.MULTILINE) == ["a", "d", "e"]
    (tmp_path / "scans" / "b.nii.gz").unlink()
    (tmp_path / "scans" / "c.nii.gz").unlink()
    expected(tmp_path / "scans", tmp_path / "wanted", model)
    for name in "ade":
        same(tmp_path / "masks" / f"{name}.nii.gz", tmp_path / "wanted" / f"{name}.nii.gz")


@pytest.mark.slow
@BOTH
def test_a_server_killed_and_started_again_loses_no_case(tmp_path, model, rest, capsys):
    scans = save_scans(tmp_path / "scans", "abcdef")
    with Process(model, "--delay-s", "0.7") as process:
        ports = process.grpc_port, process.rest_port
        masks, status = tmp_path / "masks", []
        work = threading.Thread(target=lambda: status.append(run(scans, masks, (ports,), rest=rest, concurrency=2)))
        work.start()
        wait_for(lambda: list((tmp_path / "masks").glob("[a-f].nii.gz")))
        time.sleep(0.2)  # into the next request, which takes at least 0.7 s
        process.kill()
        process.start()
        work.join(120)
    assert status == [0]
    assert "UNAVAILABLE" in capsys.readouterr().err
    expected(scans, tmp_path / "wanted", model)
    for name in "abcdef":
        same(tmp_path / "masks" / f"{name}.nii.gz", tmp_path / "wanted" / f"{name}.nii.gz")


def wait_for(condition, limit_s=120):
    """Wait until a condition holds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.slow
@BOTH
def test_no_tensorflow_is_imported(tmp_path, server, rest):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    words = [sys.executable, "-X", "importtime", "-m", "femur_tf.client", str(scan), str(tmp_path / "mask.nii.gz")]
    flags = ["--server", f"localhost:{server[0][rest]}", "--name", "femur", *(["--rest"] if rest else [])]
    line = [*words, *flags]  # in UTF-8: libraries may have set another locale in this process
    done = subprocess.run(line, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    modules = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "femur_tf.wire" in modules
    assert not {name.split(".")[0] for name in modules} & {"tensorflow", "keras", "tensorflow_serving"}
    assert ("grpc" in modules) != rest


def test_a_real_server_gives_the_masks_of_segment(tmp_path):
    """FEMUR_TF_SERVER=HOST:PORT serves the saved model in the folder FEMUR_TF_SERVED, over gRPC."""
    address = os.environ.get("FEMUR_TF_SERVER")
    if not address:
        pytest.skip("needs a TensorFlow Serving server: set FEMUR_TF_SERVER, and FEMUR_TF_SERVED to its saved model")
    model = Path(os.environ.get("FEMUR_TF_SERVED", ROOT / "saved_models" / "femur_t1_coronal"))
    made = phantom.make(np.random.default_rng(1))
    scan = bright.save(tmp_path / "scan.nii.gz", made.image.data, made.image.affine)
    wanted = ServerConfig(address, name=model.name)
    assert client.main(ClientArguments(scan, tmp_path / "a.nii.gz", wanted)) == 0
    same(tmp_path / "a.nii.gz", expected(scan, tmp_path / "b.nii.gz", model))


@contextlib.contextmanager
def answering(monkeypatch, text):
    """Let every server say this of its model."""
    monkeypatch.setattr(wire.Connection, "describe", lambda self: text)
    yield


def test_what_the_model_says_is_read(loaded):
    text = served.to_json(served.metadata(loaded, "femur", "# Card"))
    found = client.read_model(text, "here")
    assert found.config.data.patch == bright.SETTINGS.data.patch
    assert found.digest == loaded.origin.digest
    assert client.read_recipe(found, "here") == bright.RECIPE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 1}, r"here: expected format_version 2\. Received: 1\. Use the femur_tf that exported"),
        ({"steps": [2, 4, 2]}, r"here: expected halo .* of its patch rule\. Received"),
        ({"halo": [[1, 1], [1, 1], [1, 1]]}, r"here: expected halo .* of its patch rule\. Received"),
        ({"padding": "zero"}, r"here: expected halo .* of its patch rule\. Received"),
        ({"config": {}}, "here"),
        ({"recipe": {}}, r"here, metadata, recipe: expected the fields of RecipeConfig"),
    ],
)
def test_a_mismatch_is_refused(loaded, changes, words):
    values = config.to_dict(served.metadata(loaded, "femur", "# Card")) | changes
    if changes == {"config": {}}:
        values["config"] = {"patch": {"size": "wide"}}
    with pytest.raises(DataError, match=words):
        client.read_recipe(client.read_model(json.dumps(values), "here"), "here")


def test_a_mismatch_stops_before_any_scan_is_read(tmp_path, server, monkeypatch):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    with answering(monkeypatch, "<html>"), pytest.raises(DataError, match=r"model femur: expected JSON\. Received"):
        run(scan, tmp_path / "mask.nii.gz", server)
    assert not (tmp_path / "mask.nii.gz").exists()


def test_a_model_that_is_not_served_is_refused(tmp_path, server):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    with pytest.raises(DataError, match="Servable not found for request"):
        run(scan, tmp_path / "mask.nii.gz", server, settings={"version": 9})


def test_a_message_limit_below_the_smallest_tile_names_what_is_needed(tmp_path, server, monkeypatch):
    scan = bright.save(tmp_path / "scan.nii.gz", np.zeros(LONG, np.int16))
    monkeypatch.setattr(wire, "MEGABYTE", 20_000)
    with pytest.raises(DataError, match=r"--max-message-mb: expected at least \d MB for a volume of 140 x 20 x 12"):
        run(scan, tmp_path / "mask.nii.gz", server, settings={"max_message_mb": 1})


def test_a_failure_of_the_server_is_one_scans_failure(tmp_path, server, monkeypatch, capsys):
    save_scans(tmp_path / "scans", "abc")
    real, calls = wire.Connection.probability, []

    def fails_once(self, grid):
        calls.append(grid)
        if len(calls) == 2:
            raise wire.ServerError("INTERNAL", "broken")
        return real(self, grid)

    monkeypatch.setattr(wire.Connection, "probability", fails_once)
    assert run(tmp_path / "scans", tmp_path / "masks", server) == 2
    assert len(list((tmp_path / "masks").glob("[abc].nii.gz"))) == 2
    assert "INTERNAL: broken" in capsys.readouterr().err


@pytest.mark.parametrize("code", client.GONE)
def test_a_server_that_is_gone_ends_a_run_after_one_scan(tmp_path, server, monkeypatch, code):
    save_scans(tmp_path / "scans", "abcdef")
    real, asked = wire.Connection.describe, []

    def gone(self, *_):
        raise wire.ServerError(code, "gone")

    def describe(self):
        asked.append(self)
        return real(self) if len(asked) == 1 else gone(self)

    monkeypatch.setattr(wire.Connection, "describe", describe)
    monkeypatch.setattr(wire.Connection, "probability", gone)
    with pytest.raises(DataError, match=f"{code}: gone"):
        run(tmp_path / "scans", tmp_path / "masks", server, report=tmp_path / "report.json")
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(rows) == ["masks/a.nii.gz"] and "gone" in rows["masks/a.nii.gz"]["error"]
    assert len(asked) == 2


def test_an_interrupted_run_ends_without_waiting_for_a_server(tmp_path, server):
    """Whoever stops listening to results, as an interrupt does, closes the connection."""
    save_scans(tmp_path / "scans", "ab")
    settings = ServerConfig(f"localhost:{server[0][0]}", name="femur")
    arguments = ClientArguments(tmp_path / "scans", tmp_path / "masks", settings)
    with client.connected(settings) as (connection, model):
        todo = client.jobs.todo(arguments).jobs
        results = client.Client(connection, model, arguments).segment_all(todo)
        assert next(results)[1].result().name == "a"
        results.close()
        with pytest.raises(DataError, match="CANCELLED"):
            connection.probability(np.zeros((2, 2, 2), np.uint8))


@pytest.mark.parametrize("error", [WriteError("the disk is full"), KeyboardInterrupt()], ids=["disk", "interrupt"])
def test_what_was_done_before_an_early_end_is_told(tmp_path, server, monkeypatch, capsys, error):
    save_scans(tmp_path / "scans", "abc")
    real = client.Client.segment

    def ends(self, job):
        if job.name == "b":
            raise error
        return real(self, job)

    monkeypatch.setattr(client.Client, "segment", ends)
    with pytest.raises(type(error)):
        run(tmp_path / "scans", tmp_path / "masks", server)
    assert re.findall(r"^│ (\w) +│", capsys.readouterr().out, re.MULTILINE) == ["a"]


class Scan:
    """Something that is in memory as long as something refers to it."""


def test_scans_that_failed_do_not_stay_in_memory(tmp_path, loaded, monkeypatch):
    model = served.metadata(loaded, "femur", "# Card")
    arguments = ClientArguments(tmp_path, tmp_path, ServerConfig("localhost:1"))
    held = []

    def fails(self, job):
        scan = Scan()
        held.append(weakref.ref(scan))
        raise DataError("broken")

    monkeypatch.setattr(client.Client, "segment", fails)
    connection = types.SimpleNamespace(place="here", version="1", close=lambda: None)
    for _, future in client.Client(connection, model, arguments).segment_all(["job"] * 6):
        assert future.exception()
    gc.collect()
    assert len(held) == 6
    assert sum(scan() is not None for scan in held) <= 1  # the last one, which is still looked at


def test_nothing_to_do_asks_no_server(tmp_path, capsys):
    save_scans(tmp_path / "scans", "a")
    save_scans(tmp_path / "masks", "a")
    nowhere = ServerConfig("localhost:1", deadline_s=0.1)
    assert client.main(ClientArguments(tmp_path / "scans", tmp_path / "masks", nowhere)) == 0
    assert "1 of 1 scans have a mask" in capsys.readouterr().out


def test_outputs_are_checked_before_the_server_is_asked(tmp_path):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    nowhere = ServerConfig("localhost:1", deadline_s=0.1)
    for mask, words in (("mask.png", "expected a name that ends in"), ("scan.nii.gz", "a place of its own")):
        with pytest.raises(DataError, match=words):
            client.main(ClientArguments(scan, tmp_path / mask, nowhere))
    with pytest.raises(DataError, match="--concurrency: expected at least 1 scan"):
        client.main(ClientArguments(scan, tmp_path / "mask.nii.gz", nowhere, concurrency=0))


@pytest.mark.slow
@BOTH
def test_phantoms_get_the_masks_of_segment(tmp_path, server, model, rest):
    for seed in range(2):
        made = phantom.make(np.random.default_rng(seed), shape=(72, 72, 14), spacing_mm=(3.6, 3.6, 10.4))
        bright.save(tmp_path / "scans" / f"p{seed}.nii.gz", made.image.data, made.image.affine)
    assert run(tmp_path / "scans", tmp_path / "masks", server, rest=rest, concurrency=2) == 0
    expected(tmp_path / "scans", tmp_path / "wanted", model)
    for seed in range(2):
        same(tmp_path / "masks" / f"p{seed}.nii.gz", tmp_path / "wanted" / f"p{seed}.nii.gz")


def test_a_scan_of_one_voxel(tmp_path, server):
    nibabel.save(nibabel.Nifti1Image(np.ones((1, 1, 1), np.int16), np.diag([1, 1, 2, 1])), tmp_path / "scan.nii.gz")
    assert run(tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz", server) == 0
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == (1, 1, 1)
