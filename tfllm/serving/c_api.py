"""Runs a SavedModel through TensorFlow's C API, without importing TensorFlow.

The loader is the one inside TensorFlow Serving (`LoadSavedModel`, tag `serve`), and XLA
is switched off as it is there, so what fails in a server fails here; a reload in Python
would hide it. Needs numpy and the two libraries of the `tensorflow` wheel.

    python -m tfllm.serving.c_api saved_models/NAME/1

reads a request a line and writes an answer a line:

    {"signature": "serving_default", "inputs": {"text": ["good", "bad"]}}
    {"outputs": {"label": ["pos", "neg"], "score": [0.9, 0.8]}, "seconds": 0.002}

An input string that is not UTF-8 goes in as `{"b64": "…"}`; in answers its bytes are
lone surrogates (PEP 383). A request that fails is answered `{"error": "…"}`.
"""

import base64
import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from tfllm.serving import protos

DEFAULT_SIGNATURE = "serving_default"
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8",
    7: "string", 9: "int64", 10: "bool", 17: "uint16", 19: "float16", 22: "uint32",
    23: "uint64",
}  # fmt: skip
_STRING, _TSTRING_BYTES = 7, 24
_CODES = [
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
    "UNAUTHENTICATED",
]  # fmt: skip
GONE = "PROCESS_ENDED"


class ModelError(RuntimeError):
    """The model could not be loaded, or did not answer a request.

    Args:
        message: One line.
        code: TensorFlow's status code by name, `INVALID_ARGUMENT` and so on, or
            `PROCESS_ENDED` when the process that was asked is gone.
    """

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT"):
        self.code = code
        super().__init__(f"{code}: {message}")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A signature's input or output; `shape` is None when the rank is unknown."""

    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class SignatureInfo:
    """The named inputs and outputs of a signature."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


def version_directory(path: str | Path) -> Path:
    """The folder that holds `saved_model.pb`: `path`, or its newest version."""
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return path
    versions = [p for p in path.glob("*/saved_model.pb") if p.parent.name.isdigit()]
    if not versions:
        raise ModelError(f"no saved_model.pb in {path}", "NOT_FOUND")
    return max(versions, key=lambda p: int(p.parent.name)).parent


def read_meta_graph(directory: str | Path):
    """The MetaGraphDef with tag `serve` of a SavedModel."""
    path = version_directory(directory) / "saved_model.pb"
    try:
        graphs = protos.message("SavedModel").FromString(path.read_bytes()).meta_graphs
    except DecodeError as error:
        raise ModelError(f"{path} is broken: {error}", "DATA_LOSS") from None
    for graph in graphs:
        if "serve" in graph.meta_info_def.tags:
            return graph
    raise ModelError(f"{path} has no graph with the tag 'serve'", "NOT_FOUND")


def read_signatures(meta_graph) -> dict[str, SignatureInfo]:
    """The signatures of a MetaGraphDef, with raw tensor names."""
    return {
        name: SignatureInfo(_tensors(found.inputs), _tensors(found.outputs))
        for name, found in sorted(meta_graph.signature_def.items())
        if name != "__saved_model_init_op"
    }


def _tensors(infos) -> dict[str, TensorInfo]:
    tensors = {}
    for name, info in sorted(infos.items()):
        dims = tuple(None if d.size < 0 else d.size for d in info.tensor_shape.dim)
        shape = None if info.tensor_shape.unknown_rank else dims
        dtype = _DTYPES.get(info.dtype, f"type {info.dtype}")
        tensors[name] = TensorInfo(info.name, dtype, shape)
    return tensors


class SavedModel(contextlib.AbstractContextManager):
    """A SavedModel in a session of its own.

    Args:
        directory: A version folder, or a folder of versions (the newest is taken).
        xla: Leaves XLA on, as a server with `--xla_cpu_compilation_enabled` does.

    Raises:
        ModelError: It does not load.

    Attributes:
        signatures: name → `SignatureInfo`.
        load_seconds: What loading took.
        notes: What could not be done as a server does it.
    """

    def __init__(self, directory: str | Path, xla: bool = False):
        self.directory = version_directory(directory)
        meta_graph = read_meta_graph(self.directory)
        self.signatures = read_signatures(meta_graph)
        self.notes: list[str] = []
        self._tf = tf = _library()
        if not xla and "tensorflow" in sys.modules:
            # The switch is one for the whole process, and the caller may need XLA.
            self.notes.append("XLA stays on: this process uses TensorFlow itself")
        elif not xla:
            try:
                tf._ZN10tensorflow21DisableXlaCompilationEv()
            except AttributeError:
                self.notes.append("this TensorFlow cannot switch XLA off: it stays on")
        started = time.perf_counter()
        ops = {node.op for node in protos.nodes(meta_graph)}
        if any(op.startswith(("Sentencepiece", "TFText>")) for op in ops):
            self._load_text_ops()
        self._graph, options = tf.TF_NewGraph(), tf.TF_NewSessionOptions()
        with _status() as status:
            self._session = tf.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(self.directory),
                (c_char_p * 1)(b"serve"), 1, self._graph, None, status,
            )  # fmt: skip
        tf.TF_DeleteSessionOptions(options)
        self._operations: dict[str, _Output] = {}
        self.load_seconds = time.perf_counter() - started

    def run(self, signature: str, inputs: dict) -> dict[str, np.ndarray]:
        """Answers one request.

        Args:
            signature: Name of the signature.
            inputs: A value for every input: nested lists or an array.

        Returns:
            output → array. Strings are `str` in object arrays (bytes that are not
            UTF-8 as lone surrogates); outputs named `*_bytes` are `bytes`.

        Raises:
            ModelError: The request does not fit, or the graph refused it.
        """
        if (info := self.signatures.get(signature)) is None:
            known = ", ".join(self.signatures)
            raise ModelError(f"no signature {signature!r} (it has {known})")
        arrays = check_inputs(info, inputs)
        tf, feeds = self._tf, []
        results = (c_void_p * len(info.outputs))()
        try:
            for name, array in arrays.items():
                feeds.append(_to_tensor(tf, array, info.inputs[name].dtype))
            with _status() as status:
                tf.TF_SessionRun(
                    self._session, None,
                    self._outputs(info.inputs), (c_void_p * len(feeds))(*feeds),
                    len(feeds), self._outputs(info.outputs), results, len(results),
                    None, 0, None, status,
                )  # fmt: skip
            return {
                name: _from_tensor(tf, tensor, raw=name.endswith("_bytes"))
                for name, tensor in zip(info.outputs, results, strict=True)
            }
        finally:
            # Outputs may share an input's buffer: inputs' strings are freed last.
            for tensor in filter(None, results):
                tf.TF_DeleteTensor(tensor)
            for tensor in feeds:
                _free(tf, tensor)

    def close(self) -> None:
        """Frees the session and its variables."""
        if session := self.__dict__.pop("_session", None):
            with _status() as status:
                self._tf.TF_CloseSession(session, status)
            with _status() as status:
                self._tf.TF_DeleteSession(session, status)
            self._tf.TF_DeleteGraph(self._graph)

    def __exit__(self, *_):
        self.close()

    def _outputs(self, tensors: dict[str, TensorInfo]):
        for tensor in (info.tensor for info in tensors.values()):
            if tensor not in self._operations:
                name, _, index = tensor.partition(":")
                operation = self._tf.TF_GraphOperationByName(self._graph, name.encode())
                if not operation:
                    raise ModelError(f"the graph has no {tensor}", "NOT_FOUND")
                self._operations[tensor] = _Output(operation, int(index or 0))
        found = [self._operations[info.tensor] for info in tensors.values()]
        return (_Output * len(found))(*found)

    def _load_text_ops(self) -> None:
        """The server has tensorflow-text's ops built in; here they are plug-ins."""
        spec = importlib.util.find_spec("tensorflow_text")
        if spec is None:
            self.notes.append("tensorflow-text is not installed: its ops are missing")
            return
        for library in Path(spec.origin).parent.rglob("python/ops/*.so"):
            with _status() as status:
                self._tf.TF_LoadLibrary(os.fsencode(library), status)


def check_inputs(info: SignatureInfo, inputs: dict) -> dict[str, np.ndarray]:
    """Turns a request's inputs into arrays of the signature's types and ranks."""
    if not isinstance(inputs, dict):
        raise ModelError(f"inputs are a {type(inputs).__name__}, not a dict")
    if unlike := set(inputs) ^ set(info.inputs):
        names = ", ".join(sorted(map(str, unlike)))
        raise ModelError(f"missing or unknown inputs: {names}")
    return {name: _array(name, inputs[name], info.inputs[name]) for name in info.inputs}


def _array(name: str, value, info: TensorInfo) -> np.ndarray:
    try:
        if info.dtype == "string":
            array = np.array(from_json(value), dtype=object)
            array.flat = [to_bytes(text) for text in array.flat]
        else:
            given, wanted = np.asarray(value), np.dtype(info.dtype)
            kinds = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[wanted.kind]
            if given.size and given.dtype.kind not in kinds:
                raise TypeError(f"{given.dtype} where {wanted} belongs")
            with np.errstate(over="ignore"):
                array = np.ascontiguousarray(given.astype(wanted)).reshape(given.shape)
            if wanted.kind in "iu" and not np.array_equal(array, given):
                raise OverflowError(f"out of range for {wanted}")
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise ModelError(f"input {name!r}: {error}") from None
    if info.shape is not None and (
        array.ndim != len(info.shape)
        or any(w not in (None, g) for g, w in zip(array.shape, info.shape, strict=True))
    ):
        wanted = [("N" if d is None else d) for d in info.shape]
        raise ModelError(f"input {name!r} has shape {array.shape}, not {wanted}")
    return array


def from_json(value):
    """Puts bytes in the place of every `{"b64": …}` in nested lists."""
    if isinstance(value, list | tuple):
        return [from_json(v) for v in value]
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    return value


def to_json(value):
    """The `default` of `json.dumps` for arrays, and for bytes as `{"b64": …}`."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a request")


def to_bytes(text: str | bytes) -> bytes:
    """The bytes that a string stands for, lone surrogates for ill-formed ones."""
    if not isinstance(text, str | bytes):
        raise TypeError(f"{type(text).__name__} where a string belongs")
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


class _Output(ctypes.Structure):
    _fields_ = (("operation", c_void_p), ("index", c_int))


@functools.cache
def _library() -> ctypes.CDLL:
    """TensorFlow's libraries with the prototypes of the calls used here."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        raise ModelError("tensorflow is not installed", "UNAVAILABLE")
    folder = Path(spec.origin).parent
    suffix = ".2.dylib" if sys.platform == "darwin" else ".so.2"
    try:
        for name in ("framework", "cc"):
            path = folder / f"libtensorflow_{name}{suffix}"
            tf = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ModelError(f"cannot load {path}: {error}", "UNAVAILABLE") from None
    outputs, tensors = POINTER(_Output), POINTER(c_void_p)
    prototypes = {
        "NewStatus": (c_void_p,), "DeleteStatus": (None, c_void_p),
        "GetCode": (c_int, c_void_p), "Message": (c_char_p, c_void_p),
        "NewGraph": (c_void_p,), "DeleteGraph": (None, c_void_p),
        "NewSessionOptions": (c_void_p,), "DeleteSessionOptions": (None, c_void_p),
        "LoadLibrary": (c_void_p, c_char_p, c_void_p),
        "LoadSessionFromSavedModel": (
            c_void_p, c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int,
            c_void_p, c_void_p, c_void_p,
        ),
        "CloseSession": (None, c_void_p, c_void_p),
        "DeleteSession": (None, c_void_p, c_void_p),
        "GraphOperationByName": (c_void_p, c_void_p, c_char_p),
        "SessionRun": (
            None, c_void_p, c_void_p, outputs, tensors, c_int, outputs, tensors, c_int,
            c_void_p, c_int, c_void_p, c_void_p,
        ),
        "AllocateTensor": (c_void_p, c_int, POINTER(c_int64), c_int, c_size_t),
        "DeleteTensor": (None, c_void_p), "TensorType": (c_int, c_void_p),
        "NumDims": (c_int, c_void_p), "Dim": (c_int64, c_void_p, c_int),
        "TensorByteSize": (c_size_t, c_void_p), "TensorData": (c_void_p, c_void_p),
        "StringCopy": (None, c_void_p, c_char_p, c_size_t),
        "StringDealloc": (None, c_void_p), "StringGetSize": (c_size_t, c_void_p),
        "StringGetDataPointer": (c_void_p, c_void_p),
    }  # fmt: skip
    for name, (result, *arguments) in prototypes.items():
        function = getattr(tf, f"TF_{name}")
        function.restype, function.argtypes = result, arguments
    return tf


@contextlib.contextmanager
def _status():
    """A TF_Status whose error is raised on the way out."""
    tf = _library()
    status = tf.TF_NewStatus()
    try:
        yield status
        if code := tf.TF_GetCode(status):
            message = tf.TF_Message(status).decode("utf-8", "replace")
            # The first line says it; what follows is the graph's own traceback.
            raise ModelError(" ".join(message.split("\n\t")[0].split()), _CODES[code])
    finally:
        tf.TF_DeleteStatus(status)


def _to_tensor(tf, array: np.ndarray, dtype: str) -> int:
    shape = (c_int64 * max(array.ndim, 1))(*array.shape)
    number = next(number for number, name in _DTYPES.items() if name == dtype)
    size = _TSTRING_BYTES * array.size if number == _STRING else array.nbytes
    tensor = tf.TF_AllocateTensor(number, shape, array.ndim, size)
    data = tf.TF_TensorData(tensor)
    if number == _STRING:
        if size:
            ctypes.memset(data, 0, size)  # TF_StringInit: 24 zero bytes
        for position, value in enumerate(array.flat):
            tf.TF_StringCopy(data + _TSTRING_BYTES * position, value, len(value))
    elif size:
        ctypes.memmove(data, array.ctypes.data, size)
    return tensor


def _from_tensor(tf, tensor: int, raw: bool) -> np.ndarray:
    shape = [tf.TF_Dim(tensor, i) for i in range(tf.TF_NumDims(tensor))]
    number, size = tf.TF_TensorType(tensor), tf.TF_TensorByteSize(tensor)
    data = tf.TF_TensorData(tensor)
    if number not in _DTYPES:
        raise ModelError(f"an output has type {number}, unknown here", "UNIMPLEMENTED")
    if number != _STRING:
        buffer = ctypes.string_at(data, size) if size else b""
        return np.frombuffer(buffer, _DTYPES[number]).reshape(shape).copy()
    texts = []
    for at in range(data or 0, (data or 0) + size, _TSTRING_BYTES):
        length = tf.TF_StringGetSize(at)
        value = ctypes.string_at(tf.TF_StringGetDataPointer(at), length)
        texts.append(value if raw else value.decode("utf-8", "surrogateescape"))
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(shape)


def _free(tf, tensor: int) -> None:
    if tf.TF_TensorType(tensor) == _STRING:
        data, size = tf.TF_TensorData(tensor), tf.TF_TensorByteSize(tensor)
        for position in range(0, size, _TSTRING_BYTES):
            tf.TF_StringDealloc(data + position)
    tf.TF_DeleteTensor(tensor)


class Process(contextlib.AbstractContextManager):
    """A SavedModel in a process of its own, with the methods of `SavedModel`.

    Args:
        directory: A version folder, or a folder of versions (the newest is taken).
        xla: Leaves XLA on.
        timeout: Seconds for loading and for each answer; the process is then killed.

    Raises:
        ModelError: It does not load.
    """

    def __init__(
        self, directory: str | Path, *, xla: bool = False, timeout: float = 300
    ):
        self.timeout = timeout
        directory = version_directory(directory)
        self.signatures = read_signatures(read_meta_graph(directory))
        paths = [str(Path(__file__).resolve().parents[2]), os.getenv("PYTHONPATH")]
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment["CUDA_VISIBLE_DEVICES"] = "-1"  # a GPU may be in use by training
        command = [sys.executable, "-m", "tfllm.serving.c_api", str(directory)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            command + ["--xla"] * xla,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        try:
            hello = self._answer()
        except BaseException:
            self.close()
            raise
        self.load_seconds, self.notes = hello["load_seconds"], hello["notes"]
        self.modules = hello["modules"]
        self.seconds = 0.0

    def run(self, signature: str, inputs: dict) -> dict[str, np.ndarray]:
        """As `SavedModel.run`; `seconds` is then what the model took."""
        request = {"signature": signature, "inputs": inputs}
        answer = self.request(json.dumps(request, default=to_json))
        self.seconds = answer["seconds"]
        outputs = {}
        for name, values in answer["outputs"].items():
            dtype = self.signatures[signature].outputs[name].dtype
            if dtype == "string" and name.endswith("_bytes"):
                values = from_json(values)
            outputs[name] = np.array(values, object if dtype == "string" else dtype)
        return outputs

    def request(self, line: str | bytes) -> dict:
        """Sends one line as it is and returns the decoded answer."""
        line = line.encode() if isinstance(line, str) else line
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __exit__(self, *_):
        self.close()

    def _answer(self) -> dict:
        timer = threading.Timer(self.timeout, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if not line.endswith(b"\n"):
            status = self._process.wait()
            if late:
                raise ModelError(f"no answer in {self.timeout:g} s", GONE)
            self._errors.seek(0)
            said = self._errors.read().decode("utf-8", "replace")[-300:]
            raise ModelError(" ".join(f"status {status}: {said}".split()), GONE)
        answer = json.loads(line)
        if "error" in answer:
            code, _, message = answer["error"].partition(": ")
            raise ModelError(message, code)
        return answer


def main(arguments: list[str] | None = None) -> int:
    """Serves a SavedModel on standard input and output, a JSON object a line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    paths = [a for a in arguments if a != "--xla"]
    if not 1 <= len(paths) <= 2:
        print("usage: c_api DIRECTORY [SIGNATURE] [--xla]", file=sys.stderr)
        return 2
    default = paths[1] if len(paths) == 2 else DEFAULT_SIGNATURE

    def write(answer: dict) -> None:
        print(json.dumps(answer, default=to_json), flush=True)

    try:
        model = SavedModel(paths[0], xla="--xla" in arguments)
    except ModelError as error:
        write({"error": str(error)})
        return 2
    if len(paths) == 1:
        modules = sorted({name.partition(".")[0] for name in sys.modules})
        seconds, notes = model.load_seconds, model.notes
        write({"load_seconds": seconds, "notes": notes, "modules": modules})
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ModelError("a request is an object with signature and inputs")
            started = time.perf_counter()
            outputs = model.run(
                request.get("signature", default), request.get("inputs")
            )
            seconds = time.perf_counter() - started
            write({"outputs": outputs, "seconds": seconds})
        except ModelError as error:
            write({"error": str(error)})
        except Exception as error:  # whatever a request holds, the next one is served
            write({"error": f"INVALID_ARGUMENT: {type(error).__name__}: {error}"})
    model.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
