"""Both ways to a server: what arrives, what is tried again, what an error says."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conformance import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, Models, Options, serving
from saved_model_runtime import RuntimeFailure, Signature, Tensor

from femur_tf import messages, wire, wire_grpc, wire_rest
from femur_tf.errors import DataError
from femur_tf.messages import Target
from femur_tf.retries import ServerError
from femur_tf.wire import Connection, ServerConfig

VOLUME = np.dtype(np.uint8)
TEXT, HALF = np.dtype(object), np.dtype(np.float16)
SIGNATURES = {
    "segment": Signature(
        {"volume": Tensor("v:0", VOLUME, (None,) * 4)},
        {"probability": Tensor("p:0", np.dtype(np.float16), (None,) * 4)},
    ),
    "segment_bytes": Signature(
        {"volume_bytes": Tensor("b:0", TEXT, (None,)), "shape": Tensor("s:0", np.dtype(np.int64), (None, 3))},
        {"probability_bytes": Tensor("r:0", TEXT, (None,))},
    ),
    "metadata": Signature({"request": Tensor("q:0", TEXT, (None,))}, {"metadata_json": Tensor("m:0", TEXT, (None,))}),
}
BOTH = pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])
UNTRUSTED = r"expected a trusted server\. Received: UNAUTHENTICATED: TLS: (?i:.*certificate).*Check --tls-ca"
"""A busy machine may take longer to shake hands than the test's deadline."""
GRID = np.arange(60, dtype=np.uint8).reshape(3, 4, 5) * 4


class Fake:
    """In the place of a loaded version: probability is brightness; a volume that starts with 255 is refused."""

    def __init__(self, folder: Path):
        self.version, self.signatures = folder.name, dict(SIGNATURES)

    def run(self, signature, inputs):
        if signature == "metadata":
            return {"metadata_json": np.array([f'{{"version": {self.version}}}'.encode()], object)}
        if signature == "segment":
            volume = inputs["volume"]
        else:
            volume = np.frombuffer(inputs["volume_bytes"][0], np.uint8).reshape(1, *inputs["shape"][0])
        if volume.flat[0] == 255:
            raise RuntimeFailure(INVALID_ARGUMENT, "too bright")
        found = brightness(volume)
        bytes_of = np.array([found.tobytes()], object)
        return {"probability": found} if signature == "segment" else {"probability_bytes": bytes_of}


def brightness(grid):
    return (grid / np.float32(255)).astype(np.float16)


@pytest.fixture
def models(tmp_path):
    """The version 1 of a fake model."""
    (tmp_path / "femur" / "1").mkdir(parents=True)
    return lambda **options: Models(tmp_path / "femur", Options(**options), Fake)


@contextlib.contextmanager
def connected(models, *, rest, **settings):
    """Give a connection to a server in this process, which ends with the block."""
    with serving(models) as ports:
        config = ServerConfig(f"localhost:{ports[rest]}", rest=rest, name="femur", **settings)
        with contextlib.closing(Connection(wire.connect(config), config, np.random.default_rng(0))) as connection:
            yield connection


@BOTH
def test_a_map_comes_back_bit_for_bit(models, rest):
    with connected(models(), rest=rest) as connection:
        found = connection.probability(GRID.transpose(2, 0, 1))  # not in C order
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, brightness(GRID.transpose(2, 0, 1)))


@BOTH
def test_a_large_map_passes(models, rest, rng):
    """gRPC takes 4 MB by default."""
    grid = rng.integers(0, 255, (150, 150, 100), np.uint8)
    with connected(models(content=True), rest=rest) as connection:
        np.testing.assert_array_equal(connection.probability(grid), brightness(grid))


@BOTH
def test_a_connection_stays_with_the_version_that_it_met(models, rest, tmp_path):
    served = models()
    with connected(served, rest=rest) as connection:
        assert connection.describe() == '{"version": 1}'
        assert connection.place.endswith(": model femur version 1")
        (tmp_path / "femur" / "2").mkdir()
        connection.probability(GRID)
        assert {version for _, version in served.requests} == {1}
        shutil.rmtree(tmp_path / "femur" / "1")
        with pytest.raises(ServerError, match=r"Servable not found for request: Specific\(femur, 1\). Check --name"):
            connection.probability(GRID)


@BOTH
@pytest.mark.parametrize(("settings", "version"), [({}, 3), ({"version": 1}, 1), ({"label": "stable"}, 1)])
def test_a_version_is_chosen_by_number_or_label(models, rest, tmp_path, settings, version):
    (tmp_path / "femur" / "3").mkdir()
    with connected(models(labels={"stable": 1}), rest=rest, **settings) as connection:
        assert connection.describe() == f'{{"version": {version}}}'


@BOTH
def test_a_busy_server_is_asked_again(models, rest, capsys):
    with connected(models(busy=2), rest=rest) as connection:
        np.testing.assert_array_equal(connection.probability(GRID), brightness(GRID))
    told = capsys.readouterr().err
    assert told.count("warning:") == 2
    assert "The batch scheduling queue is full. Try 3 follows in" in told


@pytest.mark.slow
@BOTH
def test_a_server_that_starts_late_is_waited_for(models, rest, capsys):
    with serving(models()) as ports:
        pass
    config = ServerConfig(f"localhost:{ports[rest]}", rest=rest, name="femur", deadline_s=60)
    connection = Connection(wire.connect(config), config, np.random.default_rng(0))
    found = []
    waiting = threading.Thread(target=lambda: found.append(connection.probability(GRID)))
    waiting.start()
    time.sleep(0.3)
    with serving_on(models(), ports):
        waiting.join(60)
    connection.close()
    np.testing.assert_array_equal(found[0], brightness(GRID))
    assert "UNAVAILABLE" in capsys.readouterr().err


@contextlib.contextmanager
def serving_on(models, ports):
    """Serve on ports that another server had."""
    import conformance
    import conformance_rest

    server, _ = conformance.serve_grpc(models, ports[0])
    http, _ = conformance_rest.serve_rest(models, ports[1])
    try:
        yield
    finally:
        server.stop(None).wait()
        http.shutdown()
        http.server_close()


@BOTH
def test_a_token_is_sent(models, rest, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    with connected(models(token="secret"), rest=rest, token_file=tmp_path / "token") as connection:
        assert connection.probability(GRID).shape == GRID.shape
    (tmp_path / "token").write_text("guess\n")
    with (
        connected(models(token="secret"), rest=rest, token_file=tmp_path / "token") as connection,
        pytest.raises(ServerError, match=r"UNAUTHENTICATED.*Expected a token. Check --token-file"),
    ):
        connection.probability(GRID)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two pairs of a key and a certificate for localhost, each signed by itself."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make certificates")
    folder, pairs = tmp_path_factory.mktemp("tls"), []
    for name in ("one", "other"):
        pairs.append((folder / f"{name}.key", folder / f"{name}.pem"))
        words = (
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        )
        files = ["-keyout", str(pairs[-1][0]), "-out", str(pairs[-1][1])]
        subprocess.run([*words.split(), *files], check=True, capture_output=True)
    return pairs


@pytest.mark.slow
@BOTH
def test_an_encrypted_server_is_trusted_by_its_certificate(models, rest, certificates):
    pair, (_, unknown) = certificates
    with connected(models(tls=pair), rest=rest, tls_ca=pair[1]) as connection:
        np.testing.assert_array_equal(connection.probability(GRID), brightness(GRID))
    for untrusted in ({"tls_ca": unknown}, {"tls": True}):
        with (
            connected(models(tls=pair), rest=rest, deadline_s=20, **untrusted) as connection,
            pytest.raises(ServerError, match=UNTRUSTED),
        ):
            connection.probability(GRID)


@pytest.mark.slow
@BOTH
def test_a_certificate_that_the_machine_trusts_is_trusted(models, rest, certificates, monkeypatch):
    pair, _ = certificates
    monkeypatch.setenv("SSL_CERT_FILE", str(pair[1]))
    monkeypatch.delenv(wire_grpc.ROOTS, raising=False)
    with connected(models(tls=pair), rest=rest, tls=True) as connection:
        np.testing.assert_array_equal(connection.probability(GRID), brightness(GRID))


@pytest.mark.slow
@BOTH
def test_text_around_a_certificate_may_be_in_any_encoding(models, rest, certificates, tmp_path):
    pair, _ = certificates
    (tmp_path / "ca.pem").write_bytes("# Köln\n".encode("latin-1") + pair[1].read_bytes())
    with connected(models(tls=pair), rest=rest, tls_ca=tmp_path / "ca.pem") as connection:
        np.testing.assert_array_equal(connection.probability(GRID), brightness(GRID))


def test_certificates_of_the_machine_are_its_file_and_those_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(wire_grpc.ROOTS, raising=False)
    (tmp_path / "cert.pem").write_text("one")
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "0a1b2c3d.0").write_text("two")
    (tmp_path / "certs" / "0a1b2c3d.r0").write_text("a list of those taken back")
    (tmp_path / "certs" / "dead.0").symlink_to(tmp_path / "gone.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "certs"))
    assert wire_grpc.machine_certificates() == b"one\ntwo"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert wire_grpc.machine_certificates() is None


def test_certificates_that_were_chosen_for_grpc_are_left_to_it(monkeypatch):
    monkeypatch.setenv(wire_grpc.ROOTS, "roots.pem")
    assert wire_grpc.machine_certificates() is None


@pytest.mark.slow
@BOTH
def test_a_server_without_tls_is_not_waited_for(models, rest):
    with connected(models(), rest=rest, deadline_s=20, tls=True) as connection, pytest.raises(ServerError) as caught:
        connection.probability(GRID)
    assert "A server without TLS takes neither" in str(caught.value)


@BOTH
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "tibia"}, r"NOT_FOUND.*Servable not found for request: Latest\(tibia\)\. Check --name"),
        ({"name": "a femur"}, r"NOT_FOUND.*Latest\(a(%20| )femur\)"),  # TensorFlow Serving reads paths as they come
        ({"version": 9}, r"NOT_FOUND.*Specific\(femur, 9\)"),
        ({"label": "canary"}, "INVALID_ARGUMENT.*Unrecognized servable version label: canary"),
    ],
)
def test_a_model_that_is_not_there_is_refused_at_once(models, rest, settings, words, capsys):
    with serving(models()) as ports:
        config = ServerConfig(f"localhost:{ports[rest]}", rest=rest, **({"name": "femur"} | settings))
        connection = Connection(wire.connect(config), config, np.random.default_rng(0))
        with pytest.raises(ServerError, match=f"localhost:{ports[rest]}: expected an answer. Received: {words}"):
            connection.describe()
        connection.close()
    assert "warning" not in capsys.readouterr().err


@BOTH
def test_what_the_model_refuses_is_not_sent_again(models, rest, capsys):
    with (
        connected(models(), rest=rest) as connection,
        pytest.raises(ServerError, match=r"INVALID_ARGUMENT.*too bright") as caught,
    ):
        connection.probability(np.full((2, 2, 2), 255, np.uint8))
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "warning" not in capsys.readouterr().err


@BOTH
def test_a_slow_server_meets_the_deadline(models, rest):
    with (
        connected(models(delay_s=1.5), rest=rest, deadline_s=0.3) as connection,
        pytest.raises(ServerError, match=r"DEADLINE_EXCEEDED.*Pass a longer --deadline-s"),
    ):
        connection.probability(GRID)


@BOTH
def test_a_server_that_never_gives_a_first_answer_is_not_blamed_on_the_deadline(models, rest, monkeypatch):
    monkeypatch.setattr(wire, "FIRST_DEADLINE_S", 0.3)
    words = r"expected a first answer\. Received: DEADLINE_EXCEEDED: none in 0\.3 s\. Check that the server runs"
    served = models()
    monkeypatch.setattr(served, "find", lambda *_: time.sleep(1.5))
    with connected(served, rest=rest) as connection, pytest.raises(ServerError, match=words):
        connection.describe()


def test_a_first_answer_of_a_proxy_is_shown(monkeypatch):
    monkeypatch.setattr(wire_rest.Rest, "_exchange", lambda *_: (504, b"late"))
    with pytest.raises(ServerError, match=r"expected an answer\. Received: DEADLINE_EXCEEDED: HTTP 504, late"):
        rest_to(1).describe()


@BOTH
def test_a_message_that_is_too_large_says_how_to_send_less(models, rest):
    grid = np.full((90, 90, 90), 200, np.uint8)
    with (
        connected(models(max_receive_bytes=500_000), rest=rest) as connection,
        pytest.raises(ServerError, match=r"RESOURCE_EXHAUSTED.*Pass a lower --max-message-mb"),
    ):
        connection.probability(grid)
    # The answer: 1.4 MB and more.
    with connected(models(), rest=rest, max_message_mb=1) as connection:
        assert connection.most_voxels < grid.size
        assert connection.message_mb(connection.most_voxels) == 1
        with pytest.raises(ServerError, match="RESOURCE_EXHAUSTED"):
            connection.probability(grid)


@BOTH
def test_nobody_there_is_an_error_after_the_deadline(rest):
    with serving_nowhere() as port:
        config = ServerConfig(f"localhost:{port}", rest=rest, deadline_s=1.5)
        connection = Connection(wire.connect(config), config, np.random.default_rng(0))
        with pytest.raises(ServerError, match=r"UNAVAILABLE.*Check that the server runs|DEADLINE_EXCEEDED"):
            connection.describe()
        connection.close()


@contextlib.contextmanager
def serving_nowhere():
    """Give a port that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        yield taken.getsockname()[1]


@BOTH
def test_a_model_without_a_signature_for_volumes_is_refused(models, rest):
    served = models()
    with connected(served, rest=rest) as connection:
        _, fake = served.find("femur", None, None)
        del fake.signatures["segment"], fake.signatures["segment_bytes"]
        words = r"expected the signatures metadata, segment(_bytes)?\. Received: metadata\. Export the model again"
        with pytest.raises(DataError, match=words):
            connection.describe()


@BOTH
def test_an_answer_of_another_size_is_refused(models, rest, monkeypatch):
    with connected(models(), rest=rest) as connection:
        monkeypatch.setattr("test_wire.brightness", lambda grid: np.zeros((1, 2, 2), np.float16))
        found = r"uint8 \(8,\)" if rest else r"float16 \(1, 2, 2\)"
        with pytest.raises(DataError, match=rf"femur: expected float16 \(1, 3, 4, 5\)\. Received: {found}\. Look at"):
            connection.probability(GRID)


def test_an_answer_with_other_axes_is_refused(models, monkeypatch):
    """It has as many voxels. Bytes, over REST, have no shape."""
    with connected(models(), rest=False) as connection:
        monkeypatch.setattr("test_wire.brightness", lambda grid: np.zeros((1, 5, 4, 3), np.float16))
        with pytest.raises(DataError, match=r"expected float16 \(1, 3, 4, 5\)\. Received: float16 \(1, 5, 4, 3\)"):
            connection.probability(GRID)


@BOTH
@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(np.nan, 0.5, "nan to nan"), (-20, 20, "-20.0 to 20.0"), (0, 1.5, "0.0 to 1.5"), (-0.5, 1, "-0.5 to 1.0")],
)
def test_what_is_no_probability_is_refused(models, rest, monkeypatch, low, high, words):
    made = np.where(GRID == 0, low, high).astype(np.float16)[None]
    with connected(models(content=True), rest=rest) as connection:
        monkeypatch.setattr("test_wire.brightness", lambda grid: made)
        with pytest.raises(DataError, match=rf"expected probabilities from 0 to 1\. Received: {words}\. Look at"):
            connection.probability(GRID)


@BOTH
def test_zero_and_one_are_probabilities(models, rest, monkeypatch):
    made = (GRID > 0).astype(np.float16)
    with connected(models(), rest=rest) as connection:
        monkeypatch.setattr("test_wire.brightness", lambda grid: made[None])
        np.testing.assert_array_equal(connection.probability(GRID), made)


@BOTH
def test_a_server_whose_memory_is_full_says_how_to_ask_for_less(models, rest, monkeypatch, capsys):
    def full(grid):
        raise RuntimeFailure(RESOURCE_EXHAUSTED, "OOM when allocating tensor")

    words = r"OOM when allocating tensor\. Pass a lower --max-message-mb.*, also a lower --concurrency\."
    with connected(models(), rest=rest, deadline_s=0.6) as connection:
        monkeypatch.setattr("test_wire.brightness", full)
        with pytest.raises(ServerError, match=words):
            connection.probability(GRID)
    # Over REST it is called 429, as a queue that is full may be at other servers.
    assert ("Try 2 follows" in capsys.readouterr().err) == rest


@pytest.mark.parametrize("garbled", [messages.METADATA, messages.PREDICT])
def test_an_answer_that_is_no_message_is_refused(models, monkeypatch, garbled):
    real = wire_grpc.Grpc._call
    monkeypatch.setattr(
        wire_grpc.Grpc, "_call", lambda self, method, *rest: b"\xff" if method == garbled else real(self, method, *rest)
    )
    words = r"localhost:\d+: expected (outputs|the model's metadata)\. Received: UNKNOWN: another form \(DataError"
    with connected(models(), rest=False) as connection, pytest.raises(ServerError, match=words):
        connection.describe()


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
@BOTH
def test_a_proxy_of_the_machine_is_not_asked(models, rest, monkeypatch, variable):
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving_nowhere() as port:
        monkeypatch.setenv(variable, f"http://localhost:{port}")
        with connected(models(), rest=rest, deadline_s=20) as connection:
            np.testing.assert_array_equal(connection.probability(GRID), brightness(GRID))


@BOTH
def test_a_closed_connection_stops_trying(rest):
    with serving_nowhere() as port:
        config = ServerConfig(f"localhost:{port}", rest=rest, deadline_s=60)
        connection = Connection(wire.connect(config), config, np.random.default_rng(0))
        threading.Timer(0.5, connection.close).start()
        begin = time.perf_counter()
        with pytest.raises(ServerError, match="CANCELLED"):
            connection.probability(GRID)
        assert time.perf_counter() - begin < 20


@BOTH
def test_a_closed_connection_waits_for_no_answer(models, rest, capsys):
    with connected(models(delay_s=3), rest=rest, deadline_s=60) as connection:
        threading.Timer(0.5, connection.close).start()
        begin = time.perf_counter()
        with pytest.raises(ServerError, match="CANCELLED"):
            connection.probability(GRID)
        assert time.perf_counter() - begin < 2.5
    assert "follows" not in capsys.readouterr().err


@pytest.mark.slow
@BOTH
def test_a_closed_encrypted_connection_waits_for_no_answer(models, rest, certificates):
    pair, _ = certificates
    with connected(models(delay_s=4, tls=pair), rest=rest, deadline_s=60, tls_ca=pair[1]) as connection:
        threading.Timer(1, connection.close).start()
        begin = time.perf_counter()
        with pytest.raises(ServerError, match="CANCELLED"):
            connection.probability(GRID)
        assert time.perf_counter() - begin < 3.5


def test_a_connection_that_opens_while_it_is_closed_is_cut_off():
    with answering(lambda link: link.recv(1)) as port:
        rest = wire.connect(ServerConfig(f"localhost:{port}", rest=True))
        rest.close()
        with pytest.raises(ServerError, match="the connection was closed"):
            rest.metadata(Target("femur"), 5.0)


@contextlib.contextmanager
def answering(answer):
    """Give the port of a server of one process that does as it is told with each connection."""

    def serve():
        with contextlib.suppress(OSError):  # it ends when the block does
            while True:
                link, _ = listening.accept()
                with link, contextlib.suppress(OSError):  # the client may go first
                    answer(link)

    with socket.create_server(("localhost", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def rest_to(port, **settings):
    """Return a connection over REST to a server in this process."""
    config = ServerConfig(f"localhost:{port}", rest=True, name="femur", **settings)
    return Connection(wire.connect(config), config, np.random.default_rng(0))


def take(link):
    """Read a request to its end: a server that closes before it resets the connection."""
    with link.makefile("rb") as stream:
        stream.readline()
        stream.read(int(http.client.parse_headers(stream).get("Content-Length", 0)))


def reply(body, *, status="200 OK", length=None, headers=""):
    """Return an answer, as bytes."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {length or len(body)}\r\n{headers}\r\n".encode() + body


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"])
def test_an_answer_that_is_cut_short_is_asked_for_again(headers, capsys):
    whole = b'{"outputs": [{"b64": "ADw="}]}'
    answers = iter([reply(whole[:9], length=len(whole), headers=headers), reply(whole, headers=headers)])

    def answer(link):
        take(link)
        link.sendall(next(answers))

    with answering(answer) as port:
        assert rest_to(port).probability(np.zeros((1, 1, 1), np.uint8)).tolist() == [[[1.0]]]
    assert "UNAVAILABLE: IncompleteRead(9 bytes read, 21 more expected). Try 2 follows" in capsys.readouterr().err


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"])
def test_a_slow_trickle_meets_the_deadline(headers):
    def answer(link):
        take(link)
        link.sendall(reply(b"", length=1000, headers=headers))
        for _ in range(30):
            link.sendall(b" ")
            time.sleep(0.1)

    with answering(answer) as port:
        begin = time.perf_counter()
        with pytest.raises(ServerError, match="DEADLINE_EXCEEDED: no answer in time"):
            rest_to(port, deadline_s=0.5).probability(np.zeros((1, 1, 1), np.uint8))
        assert time.perf_counter() - begin < 2


def test_a_refusal_of_a_body_that_is_not_read_to_its_end_is_read():
    """What the sockets hold is less than the body."""

    def answer(link):
        link.recv(1000)
        link.sendall(reply(b"<html>Too large</html>", status="413 Content Too Large"))

    with answering(answer) as port, pytest.raises(ServerError, match="RESOURCE_EXHAUSTED: HTTP 413, <html>Too large"):
        rest_to(port, deadline_s=5).probability(np.zeros((400, 200, 200), np.uint8))


def test_a_redirect_names_the_other_place():
    def answer(link):
        take(link)
        link.sendall(reply(b"", status="301 Moved", headers="Location: https://gpu1:8443/v1\r\n"))

    words = r"HTTP 301, a redirect to https://gpu1:8443/v1\. Pass the host and port of that place as --server"
    with answering(answer) as port, pytest.raises(ServerError, match=words):
        rest_to(port, deadline_s=5).describe()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "expected JSON. Received: UNKNOWN: <html>"),
        (200, b'{"outputs": [{"b65": "AA=="}]}', "expected outputs with numbers, texts or base64"),
        (200, b'{"outputs": [{"b64": "?"}]}', "expected outputs with numbers, texts or base64"),
        (200, b'{"outputs": [null]}', "expected outputs with numbers, texts or base64.*neither numbers nor texts"),
        (200, b'{"outputs": 1.0}', r"expected float16 \(1, 1, 1, 1\)\. Received: float64 \(1,\)"),
        (200, b'{"outputs": [{"b64": ""}]}', r"expected float16 \(1, 1, 1, 1\)\. Received: uint8 \(0,\)"),
        (200, b'{"outputs": [{"b64": "AAAA"}]}', r"expected float16 \(1, 1, 1, 1\)\. Received: uint8 \(3,\)"),
        (200, b"[1]", r"expected outputs with numbers, texts or base64\. Received: UNKNOWN: another form"),
        (500, b'{"error": "broken"}', "UNKNOWN: HTTP 500, broken"),
        (413, b"<html>Entity too large</html>", "RESOURCE_EXHAUSTED: HTTP 413, <html>Entity too large</html>"),
        (408, b"late", r"DEADLINE_EXCEEDED: HTTP 408, late\. The server, or a proxy before it, has its own limit"),
        (504, b"", r"DEADLINE_EXCEEDED: HTTP 504, no reason\. The server, .*--rest_api_timeout_in_ms\)"),
        (502, b"<html>Bad Gateway</html>", "UNAVAILABLE: HTTP 502, <html>Bad Gateway</html>"),
    ],
)
def test_what_other_servers_and_proxies_say_is_shown(monkeypatch, status, body, words):
    config = ServerConfig("localhost:1", rest=True, deadline_s=0.1)
    monkeypatch.setattr(wire_rest.Rest, "_exchange", lambda *_: (status, body))
    connection = Connection(wire.connect(config), config, np.random.default_rng(0))
    with pytest.raises(DataError, match=words):
        connection.probability(np.zeros((1, 1, 1), np.uint8))


@pytest.mark.parametrize(
    "error", [ssl.SSLCertVerificationError(1, "self-signed certificate"), ssl.SSLError(1, "wrong version number")]
)
def test_a_server_that_is_not_trusted_is_no_matter_of_the_token(monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(http.client.HTTPSConnection, "connect", refuse)
    rest = wire.connect(ServerConfig("localhost:1", rest=True, tls=True))
    words = r"expected a trusted server\. Received: UNAUTHENTICATED: TLS: .*Check --tls-ca"
    with pytest.raises(ServerError, match=words) as caught:
        rest.metadata(Target("femur"), 1.0)
    assert "--token-file" not in str(caught.value)


def test_metadata_of_another_form_is_refused(monkeypatch):
    rest = wire.connect(ServerConfig("localhost:1", rest=True))
    monkeypatch.setattr(wire_rest.Rest, "_exchange", lambda *_: (200, b'{"metadata": {}}'))
    with pytest.raises(
        ServerError, match=r"expected the model's metadata\. Received: UNKNOWN: another form \(KeyError"
    ):
        rest.metadata(Target("femur"), 1.0)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (Target("femur"), "/v1/models/femur"),
        (Target("femur", 2), "/v1/models/femur/versions/2"),
        (Target("femur", None, "stable"), "/v1/models/femur/labels/stable"),
        (Target("a femur"), "/v1/models/a%20femur"),  # as it stands, the request could not be sent
        (Target("a/b:c", None, "of today"), "/v1/models/a%2Fb%3Ac/labels/of%20today"),
    ],
)
def test_paths(target, path):
    assert wire_rest.model_path(target) == path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server": "localhost"}, r"--server: expected HOST:PORT\. Received: localhost"),
        ({"server": ":8500"}, "--server: expected HOST:PORT"),
        ({"server": "a:http"}, "--server: expected HOST:PORT"),
        ({"server": "a:65536"}, "--server: expected HOST:PORT"),
        ({"server": "a b:8501", "rest": True}, "--server: expected HOST:PORT"),
        ({"server": "a\n:8501", "rest": True}, "--server: expected HOST:PORT"),
        ({"server": "http://a:8501"}, r"--server: expected HOST:PORT, without http://\. Received: http://a:8501"),
        ({"server": "a:8501/v1"}, "--server: expected HOST:PORT, without http://"),
        ({"max_message_mb": 0}, "--max-message-mb: expected at least 1 MB"),
        ({"max_message_mb": 2148}, r"--max-message-mb: expected at most 2147 MB over gRPC\. Received: 2148"),
        ({"deadline_s": 0.0}, "--deadline-s: expected a time above 0 s"),
        ({"deadline_s": float("nan")}, "--deadline-s: expected a time above 0 s"),
        ({"deadline_s": float("inf")}, "--deadline-s: expected a time above 0 s and of at most 1000000 s"),
        ({"deadline_s": 1e10}, "--deadline-s: expected a time above 0 s and of at most 1000000 s"),
        ({"version": 1, "label": "stable"}, "--label: expected a version or a label"),
        ({"token_file": Path("token")}, "--token-file: expected --tls or --tls-ca with it"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(DataError, match=words):
        wire.connect(dataclasses.replace(ServerConfig("server:8500"), **changes))


@pytest.mark.parametrize("server", ["localhost:1", "127.0.0.1:1", "[::1]:1"])
def test_a_token_may_go_to_this_machine_in_the_clear(server, tmp_path):
    (tmp_path / "token").write_text("secret")
    wire.connect(ServerConfig(server, token_file=tmp_path / "token")).close()


@pytest.mark.parametrize("text", ["", "two words", "two\nlines", "grün", "a\x00b"])
def test_a_file_without_a_token_is_refused(text, tmp_path):
    (tmp_path / "token").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="token: expected a token, one line of ASCII without blanks"):
        wire.read_token(tmp_path / "token")


@BOTH
def test_certificates_that_are_none_are_refused(rest, tmp_path):
    for text in ("no certificate", ""):
        (tmp_path / "ca.pem").write_text(text)
        with pytest.raises(DataError, match=r"ca\.pem: expected certificates in PEM form"):
            wire.connect(ServerConfig("server:1", rest=rest, tls_ca=tmp_path / "ca.pem"))
    with pytest.raises(FileNotFoundError):
        wire.connect(ServerConfig("server:1", rest=rest, tls_ca=tmp_path / "none.pem"))


def test_without_grpcio_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(DataError, match=r"pip install 'femur_tf\[serving\]'\), or pass --rest"):
        wire.connect(ServerConfig("localhost:1"))
    wire.connect(ServerConfig("localhost:1", rest=True))
