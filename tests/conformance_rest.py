"""The REST side of the conformance server: TensorFlow Serving's paths, JSON and base64."""

from __future__ import annotations

import base64
import http.server
import json
import re
import ssl
import threading
from typing import Any

import numpy as np
from saved_model_runtime import INVALID_ARGUMENT, Runtime, RuntimeFailure, Signature, Tensor

PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?(?P<what>:predict|/metadata|)"
)
STATUS = {3: 400, 4: 504, 5: 404, 8: 429, 9: 400, 14: 503, 16: 401}
"""Status code -> HTTP status, as the real server has them; others are 500."""
TYPES = {"float32": 1, "int32": 3, "uint8": 4, "object": 7, "int64": 9, "bool": 10, "float16": 19}
NAMES = {1: "DT_FLOAT", 3: "DT_INT32", 4: "DT_UINT8", 7: "DT_STRING", 9: "DT_INT64", 10: "DT_BOOL", 19: "DT_HALF"}


def to_input(values: Any, kind: np.dtype) -> np.ndarray:
    """Return JSON values as an array: base64 and texts where bytes are wanted."""
    try:
        if not kind.hasobject:
            return np.array(values, kind)
        texts = [base64.b64decode(v["b64"], validate=True) if isinstance(v, dict) else v.encode() for v in values]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RuntimeFailure(INVALID_ARGUMENT, f"JSON Value: not of type {kind}: {error!r}"[:200]) from error
    return np.array(texts, object)


def to_output(name: str, array: np.ndarray) -> Any:
    """Return an array as JSON values: bytes as base64 where the output's name ends in `_bytes`, else as text."""
    if not array.dtype.hasobject:
        return array.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(data).decode()} for data in array.ravel().tolist()]
    return [data.decode() for data in array.ravel().tolist()]


def inputs_of(body: dict, signature: Signature) -> dict[str, np.ndarray]:
    """Return the inputs of a request, in rows (`instances`) or columns (`inputs`)."""
    if ("instances" in body) == ("inputs" in body):
        raise RuntimeFailure(INVALID_ARGUMENT, "Request JSON: expected either instances or inputs")
    names = list(signature.inputs)
    if "inputs" in body:
        columns = body["inputs"]
        if not isinstance(columns, dict) or set(columns) == {"b64"}:
            columns = {names[0]: columns}
    else:
        rows = body["instances"]
        plain = rows and (not isinstance(rows[0], dict) or set(rows[0]) == {"b64"})
        columns = {names[0]: rows} if plain else {name: [row[name] for row in rows] for name in names}
    unknown = set(columns) ^ set(names)
    if unknown:
        raise RuntimeFailure(INVALID_ARGUMENT, f"input tensor alias not found or missing: {sorted(unknown)}")
    return {name: to_input(columns[name], signature.inputs[name].dtype) for name in names}


def outputs_of(found: dict[str, np.ndarray], *, rows: bool) -> dict[str, Any]:
    """Return the JSON of the outputs; a single one is not named."""
    values = {name: to_output(name, array) for name, array in found.items()}
    single = next(iter(values.values())) if len(values) == 1 else None
    if not rows:
        return {"outputs": values if single is None else single}
    if single is not None:
        return {"predictions": single}
    return {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}


def describe_tensor(tensor: Tensor) -> dict[str, Any]:
    """Return the JSON of an input or output."""
    sizes = [{"size": str(-1 if n is None else n), "name": ""} for n in tensor.shape or ()]
    return {"dtype": NAMES[TYPES[tensor.dtype.name]], "tensor_shape": {"dim": sizes}, "name": tensor.name}


def describe(name: str, version: int, runtime: Runtime) -> dict[str, Any]:
    """Return the JSON of a model's metadata."""
    definitions = {
        signature: {
            "method_name": "tensorflow/serving/predict",
            "inputs": {alias: describe_tensor(tensor) for alias, tensor in sides.inputs.items()},
            "outputs": {alias: describe_tensor(tensor) for alias, tensor in sides.outputs.items()},
        }
        for signature, sides in runtime.signatures.items()
    }
    spec = {"name": name, "signature_name": "", "version": str(version)}
    return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": definitions}}}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests."""

    models: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Status and metadata."""
        self._answer(None)

    def do_POST(self) -> None:
        """Predictions."""
        length, limit = int(self.headers["Content-Length"]), self.models.options.max_receive_bytes
        if limit >= 0 and length > limit:
            self.close_connection = True
            self._send(413, {"error": f"Request of {length} bytes, at most {limit} are taken"})
            return
        self._answer(self.rfile.read(length))

    def _answer(self, body: bytes | None) -> None:
        try:
            self.models.check_token(self.headers["Authorization"])
            self._send(200, self._route(body))
        except RuntimeFailure as failure:
            self._send(STATUS.get(failure.code, 500), {"error": failure.message})

    def _route(self, body: bytes | None) -> dict[str, Any]:
        parts = PATH.fullmatch(self.path)
        if not parts or (body is not None) != (parts["what"] == ":predict"):
            raise RuntimeFailure(5, f"Malformed request: {self.command} {self.path}")
        version = int(parts["version"]) if parts["version"] else None
        number, runtime = self.models.find(parts["name"], version, parts["label"])
        if parts["what"] == "/metadata":
            return describe(parts["name"], number, runtime)
        if body is None:
            fine = {"error_code": "OK", "error_message": ""}
            states = [{"version": str(n), "state": "AVAILABLE", "status": fine} for n in self.models.versions]
            return {"model_version_status": states}
        return self._predict(body, number, runtime)

    def _predict(self, body: bytes, number: int, runtime: Runtime) -> dict[str, Any]:
        try:
            values = json.loads(body)
        except ValueError as error:
            raise RuntimeFailure(INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
        name = values.get("signature_name") or "serving_default"
        if name not in runtime.signatures:
            raise RuntimeFailure(INVALID_ARGUMENT, f'Serving signature name: "{name}" not found in signature def')
        inputs = inputs_of(values, runtime.signatures[name])
        return outputs_of(self.models.run(number, runtime, name, inputs), rows="instances" in values)

    def _send(self, status: int, values: dict[str, Any]) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of clients that go away."""

    def handle_error(self, *_: object) -> None:
        """A broken connection is the client's to report."""


def serve_rest(models: Any, port: int = 0) -> tuple[Server, int]:
    """Start the REST side; return the server and its port."""
    server = Server(("localhost", port), type("Bound", (Handler,), {"models": models}))
    if models.options.tls:
        key, certificate = models.options.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, server.server_port
