"""A SavedModel in TensorFlow's C library, as a server loads and runs it, without Python's TensorFlow.

`Runtime` opens the C++ runtime that the tensorflow wheel carries (ctypes on its C API), loads a version and runs its
signatures. This module imports NumPy alone: what it needs of `saved_model.pb` it reads from the message's bytes, so
that a process that serves with it never starts Python's TensorFlow.

As a command it answers a file of requests, for tests that ask from a process of their own:

    python tests/saved_model_runtime.py VERSION_FOLDER REQUESTS ANSWERS

Both files are pickles: a list of (signature, inputs); a list of outputs or (code, message).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.machinery
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

INVALID_ARGUMENT, FAILED_PRECONDITION = 3, 9
"""Status codes, the same as those of gRPC."""
STRING = 7
DTYPES = {
    1: np.dtype(np.float32),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    STRING: np.dtype(object),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    19: np.dtype(np.float16),
}
"""TF_DataType -> dtype; a string tensor is an array of `bytes` objects."""
STRING_BYTES = 24
"""Of a TF_TString."""
POINTERS = (
    "NewStatus", "NewGraph", "NewBuffer", "NewSessionOptions", "GraphOperationByName", "LoadSessionFromSavedModel",
    "AllocateTensor", "TensorData", "StringGetDataPointer",
)  # fmt: skip
"""Functions of the C API that return a pointer."""
COUNTS = {"Dim": ctypes.c_int64, "StringGetSize": ctypes.c_size_t, "Message": ctypes.c_char_p}


class RuntimeFailure(Exception):
    """What the runtime refused: TensorFlow's status code, which is also gRPC's, and its message."""

    def __init__(self, code: int, message: str):
        super().__init__(f"status {code}: {message}")
        self.code, self.message = code, message


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output of a signature."""

    name: str
    """In the graph: OPERATION:NUMBER."""
    dtype: np.dtype
    """object stands for string."""
    shape: tuple[int | None, ...] | None
    """None for a length that is free; None alone for a free number of axes."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a signature, by their names."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number that starts at a byte of a message, and where the next thing starts."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a serialized protocol-buffer message: (number, value), a nested message as its bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value: int | bytes
            value, at = _varint(message, at)
        else:
            length, at = {1: (8, at), 5: (4, at)}.get(key & 7) or _varint(message, at)
            value, at = message[at : at + length], at + length
        yield key >> 3, value


def _values(message: bytes, number: int) -> list:
    """Return the values of one field."""
    return [value for found, value in fields(message) if found == number]


def _map(message: bytes, number: int) -> dict[str, bytes]:
    """Return a map field from texts to messages."""
    entries = (dict(fields(entry)) for entry in _values(message, number))
    return {entry[1].decode(): entry.get(2, b"") for entry in entries}


def _tensor(info: bytes) -> Tensor:
    """Return what a TensorInfo says."""
    known = dict(fields(info))
    shape = known.get(3, b"")
    sizes = [dict(fields(dim)).get(1, 0) for dim in _values(shape, 2)]
    free = dict(fields(shape)).get(3, 0)
    return Tensor(known[1].decode(), DTYPES[known[2]], None if free else tuple(n if n < 2**63 else None for n in sizes))


def read_signatures(version_folder: Path) -> dict[str, Signature]:
    """Return the signatures that `saved_model.pb` lists, but for its init operation."""
    (graph,) = _values((version_folder / "saved_model.pb").read_bytes(), 2)
    return {
        name: Signature(*({key: _tensor(info) for key, info in _map(definition, side).items()} for side in (1, 2)))
        for name, definition in _map(graph, 5).items()
        if not name.startswith("__")
    }


def tensorflow_folder() -> Path:
    """Return the folder of the installed tensorflow wheel, without importing it."""
    spec = importlib.machinery.PathFinder.find_spec("tensorflow")
    assert spec
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def use_protos_alone() -> None:
    """Let `tensorflow_serving`'s modules find tensorflow's message classes, without tensorflow's code.

    Puts an empty package in the place of tensorflow: for a process of its own only, before anything imports it.
    """
    assert "tensorflow" not in sys.modules
    package = types.ModuleType("tensorflow")
    package.__path__ = [str(tensorflow_folder())]
    sys.modules["tensorflow"] = package


@functools.cache
def _library(folder: Path) -> ctypes.CDLL:
    """Return TensorFlow's C library, its functions typed."""
    library = ctypes.CDLL(str(next(folder.glob("libtensorflow_cc.so*"))))
    for name in POINTERS:
        getattr(library, f"TF_{name}").restype = ctypes.c_void_p
    for name, kind in COUNTS.items():
        getattr(library, f"TF_{name}").restype = kind
    return library


class _Output(ctypes.Structure):
    """TF_Output: an operation and the number of its output."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class Runtime:
    """A loaded version. `run` may be called from several threads at once."""

    def __init__(self, version_folder: Path, library_folder: Path | None = None):
        """Load the version.

        Args:
          version_folder: holds `saved_model.pb`.
          library_folder: holds `libtensorflow_cc.so`; the installed tensorflow wheel's by default.

        Raises:
          RuntimeFailure: the runtime cannot load it.
        """
        self._c = _library(library_folder or tensorflow_folder())
        self.signatures = read_signatures(version_folder)
        self._graph = ctypes.c_void_p(self._c.TF_NewGraph())
        tags, status = (ctypes.c_char_p * 1)(b"serve"), self._status()
        options = ctypes.c_void_p(self._c.TF_NewSessionOptions())
        self._session = ctypes.c_void_p(
            self._c.TF_LoadSessionFromSavedModel(
                options, None, str(version_folder).encode(), tags, 1, self._graph, None, status
            )
        )
        self._c.TF_DeleteSessionOptions(options)
        self._check(status)

    def close(self) -> None:
        """Free the model. Requests that run must have ended."""
        status = self._status()
        self._c.TF_CloseSession(self._session, status)
        self._c.TF_DeleteSession(self._session, status)
        self._c.TF_DeleteGraph(self._graph)
        self._check(status)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
          signature: its name.
          inputs: an array for each input, of the dtype wanted; a string tensor as an array of `bytes` objects.

        Returns:
          An array for each output.

        Raises:
          RuntimeFailure: no such signature, other inputs than it has, or what the runtime says.
        """
        if signature not in self.signatures:
            raise RuntimeFailure(FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.')
        wanted = self.signatures[signature]
        if set(inputs) != set(wanted.inputs):
            names = f"expected {sorted(wanted.inputs)}. Received: {sorted(inputs)}"
            raise RuntimeFailure(INVALID_ARGUMENT, f"inputs of {signature}: {names}")
        given = [self._to_tensor(np.asarray(inputs[name]), spec.dtype) for name, spec in wanted.inputs.items()]
        try:
            # An output may be an input's own memory: it is read before that is freed.
            found = [self._from_tensor(tensor) for tensor in self._session_run(wanted, given)]
        finally:
            for tensor in given:
                self._delete(tensor)
        return dict(zip(wanted.outputs, found, strict=True))

    def _session_run(self, signature: Signature, given: list[ctypes.c_void_p]) -> list[ctypes.c_void_p]:
        """Call TF_SessionRun."""
        feeds, fetches = (self._ends(side) for side in (signature.inputs, signature.outputs))
        results, status = (ctypes.c_void_p * len(fetches))(), self._status()
        tensors = (ctypes.c_void_p * len(given))(*given)
        self._c.TF_SessionRun(
            self._session, None, feeds, tensors, len(feeds), fetches, results, len(fetches), None, 0, None, status
        )
        self._check(status)
        return [ctypes.c_void_p(result) for result in results]

    def _ends(self, side: Mapping[str, Tensor]) -> ctypes.Array[_Output]:
        """Return where tensors enter or leave the graph."""
        places = [tensor.name.rpartition(":") for tensor in side.values()]
        pairs = [(self._c.TF_GraphOperationByName(self._graph, name.encode()), int(n)) for name, _, n in places]
        return (_Output * len(pairs))(*pairs)

    def _to_tensor(self, array: np.ndarray, dtype: np.dtype) -> ctypes.c_void_p:
        """Return a TF_Tensor with a copy of the array."""
        if array.dtype != dtype and not (dtype.hasobject and array.dtype.kind == "S"):
            raise RuntimeFailure(INVALID_ARGUMENT, f"expected {dtype} values. Received: {array.dtype}")
        code = next(code for code, known in DTYPES.items() if known == dtype)
        size = array.size * (STRING_BYTES if code == STRING else dtype.itemsize)
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = ctypes.c_void_p(self._c.TF_AllocateTensor(code, shape, array.ndim, ctypes.c_size_t(size)))
        place = self._c.TF_TensorData(tensor)
        if code == STRING:
            for number, text in enumerate(array.ravel().tolist()):
                string = ctypes.c_void_p(place + number * STRING_BYTES)
                self._c.TF_StringInit(string)
                self._c.TF_StringCopy(string, text, ctypes.c_size_t(len(text)))
        elif size:
            ctypes.memmove(place, np.ascontiguousarray(array).ctypes.data, size)
        return tensor

    def _from_tensor(self, tensor: ctypes.c_void_p) -> np.ndarray:
        """Return a TF_Tensor's values, and free it."""
        code = self._c.TF_TensorType(tensor)
        shape = tuple(self._c.TF_Dim(tensor, axis) for axis in range(self._c.TF_NumDims(tensor)))
        place = self._c.TF_TensorData(tensor)
        result = np.empty(shape, DTYPES[code])
        if code == STRING:
            starts = (place + number * STRING_BYTES for number in range(result.size))
            result.ravel()[:] = [self._text(ctypes.c_void_p(start)) for start in starts]
        elif result.size:
            ctypes.memmove(result.ctypes.data, place, result.nbytes)
        self._c.TF_DeleteTensor(tensor)
        return result

    def _text(self, string: ctypes.c_void_p) -> bytes:
        """Return the bytes of a TF_TString."""
        return ctypes.string_at(self._c.TF_StringGetDataPointer(string), self._c.TF_StringGetSize(string))

    def _delete(self, tensor: ctypes.c_void_p) -> None:
        """Free an input; its strings hold memory of their own."""
        if self._c.TF_TensorType(tensor) == STRING:
            place, count = self._c.TF_TensorData(tensor), int(self._c.TF_TensorElementCount(tensor))
            for number in range(count):
                self._c.TF_StringDealloc(ctypes.c_void_p(place + number * STRING_BYTES))
        self._c.TF_DeleteTensor(tensor)

    def _status(self) -> ctypes.c_void_p:
        """Return a new TF_Status."""
        return ctypes.c_void_p(self._c.TF_NewStatus())

    def _check(self, status: ctypes.c_void_p) -> None:
        """Free a status; raise what it says unless that is OK."""
        code, message = self._c.TF_GetCode(status), self._c.TF_Message(status).decode()
        self._c.TF_DeleteStatus(status)
        if code:
            raise RuntimeFailure(code, message)


def answer(runtime: Runtime, signature: str, inputs: Mapping[str, np.ndarray]) -> object:
    """Return the outputs of a signature, or the code and message of its refusal."""
    try:
        return runtime.run(signature, inputs)
    except RuntimeFailure as failure:
        return failure.code, failure.message


def main(version_folder: str, requests: str, answers: str) -> None:
    """Answer a file of requests."""
    runtime = Runtime(Path(version_folder))
    found = [answer(runtime, *request) for request in pickle.loads(Path(requests).read_bytes())]
    assert "tensorflow" not in sys.modules
    Path(answers).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
