"""A server that answers as TensorFlow Serving does: gRPC and REST, running an exported model in TensorFlow's C library.

No server binary can be had from a package index, so clients are tested on this one. Its
messages are the real ones, from tensorflow-serving-api; its errors have the codes of the
real server. A process of its own, it imports no Python TensorFlow:

    python tests/conformance.py saved_models/femur

prints `ready GRPC_PORT REST_PORT` and serves until it is killed. Flags make it fail as
servers fail: too slow, busy, only small messages, only with a token or encrypted.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hmac
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import saved_model_runtime
from saved_model_runtime import DTYPES, STRING, Runtime, RuntimeFailure

if __name__ == "__main__":
    saved_model_runtime.use_protos_alone()

import grpc
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

NOT_FOUND, RESOURCE_EXHAUSTED, INVALID_ARGUMENT, UNAVAILABLE, UNAUTHENTICATED = 5, 8, 3, 14, 16
FIELDS = {1: "float_val", 3: "int_val", 4: "int_val", STRING: "string_val", 9: "int64_val", 19: "half_val"}
START_LIMIT_S = 60.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How a server is, and how it fails."""

    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    token: str | None = None
    max_receive_bytes: int = -1
    """Of a request; -1: no limit, as the real server has none."""
    delay_s: float = 0.0
    """Before a volume is evaluated."""
    busy: int = 0
    """So many requests for volumes are refused as UNAVAILABLE first."""
    content: bool = False
    """Answer with `tensor_content`, which the real server does with `--enable_serialization_as_tensor_content`."""
    tls: tuple[Path, Path] | None = None
    """Key and certificate, PEM."""


class Models:
    """The versions of one model, each loaded when it is first asked for.

    Args:
      folder: saved_models/NAME.
      options: labels and failures.
      load: makes a Runtime of a version's folder.
    """

    def __init__(self, folder: Path, options: Options, load: Callable[[Path], Runtime] = Runtime):
        self.name, self.options = folder.name, options
        self._folder, self._load, self._lock = folder, load, threading.Lock()
        self._loaded: dict[int, Runtime] = {}
        self._busy = options.busy
        self.requests: list[tuple[str, int]] = []
        """Signature and version of all requests that were run."""

    @property
    def versions(self) -> list[int]:
        """The versions in the folder."""
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def check_token(self, header: str | None) -> None:
        """Raise unless the token is right."""
        if self.options.token and not hmac.compare_digest(header or "", f"Bearer {self.options.token}"):
            raise RuntimeFailure(UNAUTHENTICATED, "Expected a token.")

    def find(self, name: str, version: int | None, label: str | None) -> tuple[int, Runtime]:
        """Return a version; the newest where neither number nor label is given."""
        which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        if label:
            if name == self.name and label not in self.options.labels:
                raise RuntimeFailure(INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
            version = self.options.labels.get(label)
        known = self.versions if name == self.name else []
        if not known or (version is not None and version not in known):
            raise RuntimeFailure(NOT_FOUND, f"Servable not found for request: {which}")
        number = known[-1] if version is None else version
        with self._lock:
            if number not in self._loaded:
                self._loaded[number] = self._load(self._folder / str(number))
            return number, self._loaded[number]

    def run(self, version: int, runtime: Runtime, signature: str, inputs: dict[str, np.ndarray]) -> dict:
        """Run a signature, after the delays and failures that were asked for."""
        if "volume" in "".join(inputs):
            with self._lock:
                self._busy -= 1
                busy = self._busy >= 0
            if busy:
                raise RuntimeFailure(UNAVAILABLE, "The batch scheduling queue is full")
            time.sleep(self.options.delay_s)
        found = runtime.run(signature, inputs)
        self.requests.append((signature, version))
        return found


def to_array(tensor: tensor_pb2.TensorProto) -> np.ndarray:
    """Return a tensor message as an array."""
    if tensor.dtype not in DTYPES:
        raise RuntimeFailure(INVALID_ARGUMENT, f"Unsupported type {tensor.dtype}")
    shape, kind = [dim.size for dim in tensor.tensor_shape.dim], DTYPES[tensor.dtype]
    if tensor.tensor_content:
        values = np.frombuffer(tensor.tensor_content, kind)
    else:
        values = np.array(list(getattr(tensor, FIELDS[tensor.dtype])), kind)
    if values.size != np.prod(shape):
        raise RuntimeFailure(INVALID_ARGUMENT, "Expected as many values as the shape says")
    return values.reshape(shape)


def packed(values: np.ndarray) -> bytes:
    """Return numbers below 2^14 as a packed field has them: one byte below 128, else two."""
    assert values.max(initial=0) < 1 << 14
    two = values >= 128
    ends = np.cumsum(1 + two)
    result = np.empty(ends[-1] if ends.size else 0, np.uint8)
    result[ends - 1 - two] = np.where(two, values & 127 | 128, values)
    result[(ends - 1)[two]] = values[two] >> 7
    return result.tobytes()


def to_tensor(array: np.ndarray, *, content: bool) -> tensor_pb2.TensorProto:
    """Return an array as a tensor message."""
    code = next(code for code, dtype in DTYPES.items() if dtype == array.dtype)
    tensor = tensor_pb2.TensorProto(dtype=code)
    for length in array.shape:
        tensor.tensor_shape.dim.add(size=length)
    if content and code != STRING:
        tensor.tensor_content = array.tobytes()
    elif array.dtype == np.float16:
        # Millions of numbers, one by one, take Python seconds: write the field's bytes and let the message read them.
        data = packed(array.ravel().view(np.uint16))
        size, prefix = len(data), bytearray(b"\x6a")  # field 13, a run of bytes
        while True:
            prefix.append(size & 127 | (128 if size > 127 else 0))
            size >>= 7
            if not size:
                break
        tensor.MergeFromString(bytes(prefix) + data)
    else:
        getattr(tensor, FIELDS[code]).extend(array.ravel().tolist())
    return tensor


def signature_map(runtime: Runtime) -> get_model_metadata_pb2.SignatureDefMap:
    """Return the signatures as the real server describes them."""
    found = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in runtime.signatures.items():
        definition = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
        for side, tensors in ((definition.inputs, signature.inputs), (definition.outputs, signature.outputs)):
            for key, tensor in tensors.items():
                side[key].name = tensor.name
                side[key].dtype = next(code for code, dtype in DTYPES.items() if dtype == tensor.dtype)
                for length in tensor.shape or ():
                    side[key].tensor_shape.dim.add(size=-1 if length is None else length)
        found.signature_def[name].CopyFrom(definition)
    return found


class Service(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """The gRPC methods."""

    def __init__(self, models: Models):
        self.models = models

    @contextlib.contextmanager
    def _refusing(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Check the token; answer a refusal with its code."""
        codes = {code.value[0]: code for code in grpc.StatusCode}
        try:
            self.models.check_token(dict(context.invocation_metadata()).get("authorization"))
            yield
        except RuntimeFailure as failure:
            context.abort(codes[failure.code], failure.message)

    def _find(self, spec) -> tuple[int, Runtime]:
        version = spec.version.value if spec.WhichOneof("version_choice") == "version" else None
        return self.models.find(spec.name, version, spec.version_label or None)

    def Predict(self, request, context):
        """Run a signature."""
        with self._refusing(context):
            version, runtime = self._find(request.model_spec)
            signature = request.model_spec.signature_name or "serving_default"
            inputs = {name: to_array(tensor) for name, tensor in request.inputs.items()}
            outputs = self.models.run(version, runtime, signature, inputs)
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name, answer.model_spec.signature_name = request.model_spec.name, signature
        answer.model_spec.version.value = version
        for name, array in outputs.items():
            answer.outputs[name].CopyFrom(to_tensor(array, content=self.models.options.content))
        return answer

    def GetModelMetadata(self, request, context):
        """Describe the signatures."""
        with self._refusing(context):
            version, runtime = self._find(request.model_spec)
            if list(request.metadata_field) != ["signature_def"]:
                raise RuntimeFailure(INVALID_ARGUMENT, "Metadata field is not supported")
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name = request.model_spec.name
        answer.model_spec.version.value = version
        answer.metadata["signature_def"].Pack(signature_map(runtime))
        return answer

    def GetModelStatus(self, request, context):
        """List the versions."""
        with self._refusing(context):
            self._find(request.model_spec)
        answer = get_model_status_pb2.GetModelStatusResponse()
        for version in self.models.versions:
            state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            answer.model_version_status.add(version=version, state=state)
        return answer


def serve_grpc(models: Models, port: int = 0) -> tuple[grpc.Server, int]:
    """Start the gRPC side; return the server and its port."""
    limit = models.options.max_receive_bytes
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(16),
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    service = Service(models)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    address = f"localhost:{port}"
    if models.options.tls:
        pair = tuple(path.read_bytes() for path in models.options.tls)
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    server.start()
    return server, port


@contextlib.contextmanager
def serving(models: Models) -> Iterator[tuple[int, int]]:
    """Serve in this process; give the gRPC and the REST port."""
    import conformance_rest

    server, grpc_port = serve_grpc(models)
    http, rest_port = conformance_rest.serve_rest(models)
    try:
        yield grpc_port, rest_port
    finally:
        server.stop(None).wait()
        http.shutdown()
        http.server_close()


class Process:
    """A server in a process of its own, which may be killed and started again on its ports.

    Args:
      folder: saved_models/NAME.
      flags: of this command.
    """

    def __init__(self, folder: Path, *flags: str):
        self._words = [sys.executable, __file__, str(folder), *flags]
        self.grpc_port = self.rest_port = 0
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it serves."""
        ports = ["--grpc-port", str(self.grpc_port), "--rest-port", str(self.rest_port)]
        self.process = subprocess.Popen([*self._words, *ports], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        words = self.process.stdout.readline().split()
        assert words[:1] == ["ready"], "the server did not start"
        self.grpc_port, self.rest_port = map(int, words[1:])

    def kill(self) -> None:
        """Kill the process (signal 9), whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def parse(words: list[str]) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description="Serve a saved model for tests.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--rest-port", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--content", action="store_true")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace) -> None:
    """Serve until killed."""
    import conformance_rest

    models = Models(arguments.folder.resolve(), Options(delay_s=arguments.delay_s, content=arguments.content))
    models.find(models.name, None, None)  # as the real server, which loads before it listens
    server, grpc_port = serve_grpc(models, arguments.grpc_port)
    _, rest_port = conformance_rest.serve_rest(models, arguments.rest_port)
    assert "tensorflow.python" not in sys.modules
    sys.stdout.write(f"ready {grpc_port} {rest_port}\n")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
