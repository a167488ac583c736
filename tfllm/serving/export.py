"""Writes `saved_models/<name>/<version>/`: text in, answer out, checked, then renamed.

A plain `tf.Module` tracks the raw variables of a model, never the model itself: a Keras
model inside a SavedModel loads in Python and fails in TensorFlow Serving, and Keras'
own exporter writes every weight twice.
"""

import dataclasses
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

import tfllm
from tfllm.core import files
from tfllm.core.errors import UserError
from tfllm.serving import c_api, check, protos
from tfllm.serving.readme import CLASSIFY, IMAGE, REGRESS, readme


@dataclasses.dataclass(frozen=True)
class Signature:
    """One way to ask the model.

    Args:
        name: `serving_default`, `classify`, …
        function: `function(**tensors) -> {output: tensor}`, built of TensorFlow ops.
        inputs: name → `tf.TensorSpec`; the first dimension is the batch, `None`.
    """

    name: str
    function: Callable[..., Mapping[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]


def text_signature(
    function: Callable, pair: bool = False, name: str = c_api.DEFAULT_SIGNATURE
) -> Signature:
    """A signature over `text` (and `text_pair`), both strings `[N]`."""
    specs = {name: tf.TensorSpec([None], tf.string) for name in _texts(pair)}
    return Signature(name, function, specs)


def classify_signature(function: Callable, pair: bool = False) -> Signature:
    """`classify` of TensorFlow Serving over a function of texts.

    Args:
        function: `function(text=[N], …) -> {"labels": [N, K], "scores": [N, K], …}`.
        pair: Whether it also takes `text_pair`.

    Returns:
        `inputs`, serialised `tf.Example`s with the byte features `text` (and
        `text_pair`) → `classes`, `scores`.
    """
    outputs = {"classes": "labels", "scores": "scores"}
    return _example_signature("classify", function, pair, outputs)


def regress_signature(function: Callable, pair: bool = False) -> Signature:
    """`regress` of TensorFlow Serving: like `classify`; `score [N]` → `outputs`."""
    return _example_signature("regress", function, pair, {"outputs": "score"})


def _example_signature(name, function, pair: bool, outputs: dict) -> Signature:
    feature = tf.io.FixedLenFeature([], tf.string, default_value="")
    features = dict.fromkeys(_texts(pair), feature)

    def ask(inputs):
        answer = function(**tf.io.parse_example(inputs, features))
        return {output: answer[key] for output, key in outputs.items()}

    return Signature(name, ask, {"inputs": tf.TensorSpec([None], tf.string)})


def _texts(pair: bool) -> list[str]:
    return ["text", "text_pair"] if pair else ["text"]


def example(**features: str | bytes) -> bytes:
    """A serialised `tf.Example` with a byte feature per argument."""
    values = {
        name: tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[tf.compat.as_bytes(value)])
        )
        for name, value in features.items()
    }
    message = tf.train.Example(features=tf.train.Features(feature=values))
    return message.SerializeToString(deterministic=True)


def export(
    signatures: Iterable[Signature],
    *,
    variables: Iterable,
    name: str,
    samples: Mapping[str, Mapping[str, list]],
    expected: Mapping[str, Mapping[str, list]] | None = None,
    trackables: Iterable = (),
    directory: str | Path = "saved_models",
    about: Mapping | None = None,
    image: str = IMAGE,
    max_batch_size: int = 32,
    allow_xla: bool = False,
) -> Path:
    """Exports a model as the next version, if the check finds it sound.

    Args:
        signatures: What the model can be asked.
        variables: All Keras or TensorFlow variables that they read.
        name: Name of the model, a folder of `directory`.
        samples: signature → input → values, one per row. Those of `classify` and
            `regress` are made from `serving_default`'s where absent.
        expected: Answers that training gave to the samples, signature → output →
            values; the export must give the same. Others are computed here.
        trackables: Modules and tables that the functions use (a tokenizer's graph).
        directory: What TensorFlow Serving is pointed at.
        about: `task`, `labels`, the run's figures; kept in `assets.extra/tfllm.json`.
        image: Docker image that the README names.
        max_batch_size: Rows that a server with batching computes at once.
        allow_xla: Accepts graphs that need a server with XLA switched on.

    Returns:
        The new version's folder.

    Raises:
        UserError: The name is unfit, or the check found the export unsound; nothing
            is left in `directory`.
        ValueError: A signature, its samples or its variables do not fit together.
    """
    signatures, about = list(signatures), dict(about or {})
    if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        fix = "Use a-z, 0-9, - or _."
        raise UserError(f"{name!r} is no name for a model", fix=fix)
    if names := [s.name for s in signatures if "." in s.name] or not signatures:
        raise ValueError(f"Signatures with usable names are needed. Received: {names}")
    raw = [v if isinstance(v, tf.Variable) else v.value for v in variables]
    raw = list({id(v): v for v in raw}.values())
    module = tf.Module()
    module.variables_, module.trackables = raw, list(trackables)
    functions = {s.name: _trace(s) for s in signatures}
    record = {
        "tfllm": tfllm.__version__,
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "name": name,
        "task": about.pop("task", None),
        "labels": about.pop("labels", None),
        "parameter_bytes": sum(v.dtype.size * v.shape.num_elements() for v in raw),
        "samples": _records(functions, samples, expected or {}),
        "about": about,
    }
    base = Path(directory) / name
    known = base.exists()
    base.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=base, prefix=".new-"))
    try:
        _write(new, record, module, functions, max_batch_size)
        report = check.check(new, allow_xla=allow_xla, timing_seconds=0.3)
        report.directory = base
        report.print()
        if not report.sound:
            lines = "; ".join(report.problems)
            raise UserError(f"the export is unsound and was removed: {lines}", base)
        os.chmod(new, 0o755)  # mkdtemp's 0700 would keep a server in a container out
        record["version"], final = _take_number(new, base)
        page = readme(record, functions, report.figures, report.warnings, image)
        files.atomic_write(base / "README.md", page)
        return final
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if not known and not any(base.iterdir()):
            base.rmdir()


def _write(folder: Path, record: dict, module, functions, max_batch_size: int) -> None:
    """Everything that a version's folder holds."""
    try:
        tf.saved_model.save(module, str(folder), signatures=functions)
    except AssertionError as error:
        hint = "A signature reads a variable or table that was not given in "
        raise ValueError(f"{hint}`variables` or `trackables`. {error}") from error
    (folder / "assets.extra").mkdir()
    text = json.dumps(record, default=c_api.to_json, indent=1)
    (folder / check.RECORD).write_text(text + "\n", encoding="utf-8")
    warm_up = folder / "assets.extra/tf_serving_warmup_requests"
    _write_warm_up(warm_up, record["name"], functions, record["samples"])
    batching = _batching(functions, max_batch_size)
    (folder / "batching_params.pbtxt").write_text(batching)


def _take_number(new: Path, base: Path) -> tuple[int, Path]:
    """Renames a finished version to the number after the highest one."""
    while True:
        numbers = [int(path.name) for path in base.iterdir() if path.name.isdigit()]
        final = base / str(max(numbers, default=0) + 1)
        try:
            os.replace(new, final)
        except OSError:
            if not final.exists():
                raise
            continue  # another export took the number meanwhile
        return int(final.name), final


def _trace(signature: Signature):
    """A concrete function whose inputs and outputs are batch-first."""
    where = f"signature {signature.name!r}"
    for name, spec in signature.inputs.items():
        if spec.shape.rank in (None, 0) or spec.shape[0] is not None:
            raise ValueError(f"{where}: input {name!r} is not [N, …]. Received: {spec}")
    function = tf.function(lambda **tensors: dict(signature.function(**tensors)))
    specs = {
        name: tf.TensorSpec(spec.shape, spec.dtype, name)
        for name, spec in signature.inputs.items()
    }
    concrete = function.get_concrete_function(**specs)
    for name, tensor in concrete.structured_outputs.items():
        if tensor.shape.rank == 0:
            raise ValueError(f"{where}: output {name!r} is a scalar, not [N, …]")
    return concrete


def _records(functions: dict, samples: Mapping, expected: Mapping) -> dict:
    """signature → {"inputs": …, "outputs": …}, values as JSON holds them."""
    records = {}
    for name, function in functions.items():
        inputs = samples.get(name)
        specs = function.structured_input_signature[1]
        if inputs is None and set(specs) == {"inputs"}:
            texts = samples.get(c_api.DEFAULT_SIGNATURE, {})
            rows = zip(*texts.values(), strict=True)
            rows = [example(**dict(zip(texts, row, strict=True))) for row in rows]
            inputs = {"inputs": rows}
        if not inputs or set(inputs) != set(specs) or not all(inputs.values()):
            raise ValueError(f"signature {name!r} needs samples for {', '.join(specs)}")
        tensors = {k: _tensor(v, specs[k]) for k, v in inputs.items()}
        made = function(**tensors)
        outputs = {k: _plain(k, v.numpy()) for k, v in made.items()}
        given = expected.get(name, {})
        if unknown := set(given) - set(outputs):
            raise ValueError(f"signature {name!r} has no output {', '.join(unknown)}")
        # NumPy's own strings lose a NUL at their end.
        outputs |= {
            k: np.asarray(v, object if made[k].dtype == tf.string else None).tolist()
            for k, v in given.items()
        }
        inputs = {k: np.asarray(v, dtype=object).tolist() for k, v in inputs.items()}
        records[name] = {"inputs": inputs, "outputs": outputs}
    return records


def _tensor(values: list, spec: tf.TensorSpec) -> tf.Tensor:
    if spec.dtype == tf.string:
        array = np.array(values, dtype=object)
        array.flat = [c_api.to_bytes(text) for text in array.flat]
        values = array.tolist()
    return tf.constant(values, spec.dtype)


def _plain(name: str, array: np.ndarray) -> list:
    if array.dtype != object or name.endswith("_bytes"):
        return array.tolist()
    decoded = [value.decode("utf-8", "surrogateescape") for value in array.flat]
    return np.array(decoded, dtype=object).reshape(array.shape).tolist()


def _batching(functions: dict, max_batch_size: int) -> str:
    """BatchingParameters; a server with `--enable_per_model_batching_parameters` reads
    them from the version's folder."""
    outputs = [o for f in functions.values() for o in f.structured_outputs.values()]
    lines = {"batch_timeout_micros": 2000, "max_enqueued_batches": 128}
    if all(o.shape.rank and o.shape[1:].is_fully_defined() for o in outputs):
        # A request of up to 1024 rows is cut into parts.
        lines |= {"max_batch_size": 1024, "max_execution_batch_size": max_batch_size,
                  "enable_large_batch_splitting": "true"}  # fmt: skip
    else:  # parts padded to different widths could not be joined again
        lines |= {"max_batch_size": 4 * max_batch_size}
    return "".join(f"{key} {{ value: {value} }}\n" for key, value in lines.items())


def _write_warm_up(path: Path, name: str, functions: dict, records: dict) -> None:
    """A PredictionLog per signature, with one row and with all."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, record in records.items():
            specs = functions[signature].structured_input_signature[1]
            rows = len(next(iter(record["inputs"].values())))
            for count in sorted({1, min(rows, 32)}):
                inputs = {
                    key: tf.make_tensor_proto(
                        _tensor(values[:count], specs[key]).numpy()
                    )
                    for key, values in record["inputs"].items()
                }
                log = prediction_log(name, signature, inputs, record["outputs"])
                writer.write(log)


def prediction_log(
    name: str, signature: str, inputs: Mapping, outputs: Iterable
) -> bytes:
    """A serialised `tensorflow.serving.PredictionLog`, with which a server warms up.

    Args:
        name: The model.
        signature: The signature to ask.
        inputs: input → `TensorProto`.
        outputs: The outputs' names, which tell classification and regression.
    """
    request = {"model_spec": {"name": name, "signature_name": signature}}
    kinds = {frozenset(CLASSIFY): "classify_log", frozenset(REGRESS): "regress_log"}
    kind = kinds.get(frozenset(outputs))
    if kind and set(inputs) == {"inputs"}:
        examples = {"examples": inputs["inputs"].string_val}
        request["input"] = {"example_list": examples}
    else:
        kind = "predict_log"
        request["inputs"] = [
            {"key": key, "value": tensor.SerializeToString()}
            for key, tensor in inputs.items()
        ]
    log = protos.message("PredictionLog")(**{kind: {"request": request}})
    return log.SerializeToString()
