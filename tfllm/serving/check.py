"""Finds out, before a server does, whether a SavedModel can be served.

1. Its ops are ones that TensorFlow Serving has, none of them Python or XLA.
2. It loads in a process without TensorFlow (see `c_api`) and gives the answers that
   were recorded when it was exported: whole, row by row, and in another order.
3. Empty, ill-formed and enormous texts get an answer or an error, never a crash, and
   leave the other rows of their batch alone.
4. On request it gives the answers of a run's `predictions.jsonl`, every one of them.
5. Every weight is stored once. Sizes and latency are measured.

This module must not import TensorFlow.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tfllm.core import console
from tfllm.core.errors import UserError
from tfllm.serving import c_api, protos

RECORD = "assets.extra/tfllm.json"
TOLERANCE = 1e-4
CROWD = 8  # odd rows asked at once
ANSWERS = (
    "embedding",
    "prediction",
    "label",
    "answer",
    "text",
    "score",
)  # outputs that are a prediction
# What stands beside it → its name in predictions.jsonl.
OTHERS = {"intent": "intent_prediction", "start": "start", "end": "end"}
# Outputs of a tagger → what they are in an entity of predictions.jsonl, and their pad.
PARTS = {
    "tokens": ("text", ""),
    "tags": ("type", ""),
    "starts": ("start", 0),
    "ends": ("end", 0),
    "scores": ("score", 0.0),
}
_PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
_HOSTILE = {
    "empty": "",
    "white space": " \t\r\n\u3000",
    "NUL": "\0",
    "a NUL inside": "good\0 film",
    "invalid UTF-8": b"\xff\xfe\x80",
    "half a character": "好".encode()[:2] + b" ok",
    "a byte order mark": "\ufeff",
    "the last code point": "\U0010ffff",
    "100,000 letters": "x" * 100_000,
    "100,000 words": "very good " * 50_000,
    "100,000 Chinese characters": "好" * 100_000,
}
_ODD = {
    "int32": (0, -1, 2**31 - 1),
    "int64": (0, -1, 2**63 - 1),
    "float32": (0.0, -1.0, 1e30),
}


@dataclasses.dataclass
class CheckReport:
    """What the check found; `problems` make an export unsound, `warnings` do not.

    `figures` has sizes in bytes, `load_seconds`, and under `latency` a row per
    signature and batch size with milliseconds `p50`, `p95` and `rows_per_second`.
    """

    directory: Path
    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    figures: dict = dataclasses.field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether TensorFlow Serving can be pointed at it."""
        return not self.problems

    def print(self) -> None:
        """Shows the tables, then every problem on a line of its own."""
        figures = dict(self.figures)
        latency = figures.pop("latency", [])
        rows = [(k.replace("_", " "), v) for k, v in figures.items()]
        console.table(f"Check of {self.directory}", ["figure", "value"], rows)
        if latency:
            rows = [tuple(row.values()) for row in latency]
            console.table("Latency", [k.replace("_", " ") for k in latency[0]], rows)
        for warning in self.warnings:
            console.warn(warning)
        for problem in self.problems:
            console.note(f"problem: {problem}")
        console.note("sound: it can be served" if self.sound else "unsound")


def check(
    directory: str | Path,
    *,
    allow_xla: bool = False,
    predictions: str | Path | None = None,
    timing_seconds: float = 0.5,
    timeout: float = 120,
) -> CheckReport:
    """Checks a version folder (or the newest of a model's folder).

    Args:
        directory: Holds `saved_model.pb`.
        allow_xla: Accepts what needs a server with `--xla_cpu_compilation_enabled`.
        predictions: A run's `eval/predictions.jsonl`: `serving_default` must give the
            same answers, with scores to 1e-4.
        timing_seconds: How long to measure each signature at each batch size.
        timeout: Seconds that loading, or one answer, may take.

    Returns:
        The report; nothing is raised for what is wrong with the model.
    """
    report = CheckReport(Path(directory))
    try:
        directory = report.directory = c_api.version_directory(directory)
        _check_graph(c_api.read_meta_graph(directory), report, allow_xla)
        record = _read_record(report)
        if report.sound:
            with c_api.Process(directory, xla=allow_xla, timeout=timeout) as process:
                _check_answers(process, record, report, timing_seconds)
                if predictions and report.sound:
                    _check_predictions(process, predictions, report)
    except c_api.ModelError as error:
        report.problems.append(f"does not load: {error}")
    return report


@functools.cache
def _server_ops() -> tuple[frozenset[str], frozenset[str]]:
    text = Path(__file__).with_name("server_ops.json").read_text()
    ops = json.loads(text)
    return frozenset(ops["core"].split()), frozenset(ops["text"].split())


def _check_graph(meta_graph, report: CheckReport, allow_xla: bool) -> None:
    nodes = protos.nodes(meta_graph)
    functions = meta_graph.graph_def.library.function
    ops = Counter(node.op for node in nodes)
    used = set(ops) - {function.signature.name for function in functions}
    core, text = _server_ops()

    def named(found) -> str:
        return ", ".join(f"{op} ({ops[op]}×)" for op in sorted(found))

    if python := used & _PYTHON_OPS:
        report.problems.append(
            f"calls back into Python, which a server has not: {named(python)}"
        )
    if missing := used - core - text - _PYTHON_OPS:
        report.problems.append(f"TensorFlow Serving 2.20 has no op {named(missing)}")
    if used & text:
        report.warnings.append(
            f"needs TensorFlow Serving 2.20.0 or later: {named(used & text)}"
        )
    xla = {op for op in used & core if op.startswith("Xla")}
    compiled = sum(
        item.attr["_XlaMustCompile"].b
        for item in (*nodes, *functions)
        if "_XlaMustCompile" in item.attr
    )
    wants = [f"op {named(xla)}"] if xla else []
    wants += [f"functions with jit_compile=True ({compiled}×)"] if compiled else []
    if wants:
        (report.warnings if allow_xla else report.problems).append(
            f"needs XLA, which is off in TensorFlow Serving: {' and '.join(wants)}"
        )
    variables = list((report.directory / "variables").glob("variables.data-*"))
    if ops["VarHandleOp"] and not variables:
        report.problems.append(
            f"variables/ is missing, and {ops['VarHandleOp']} variables need it"
        )
    report.figures |= {
        "graph_bytes": (report.directory / "saved_model.pb").stat().st_size,
        "weight_bytes": sum(path.stat().st_size for path in variables),
        "nodes": len(nodes),
    }


def _read_record(report: CheckReport) -> dict:
    try:
        text = (report.directory / RECORD).read_text(encoding="utf-8")
        record = json.loads(text)
        parameters = record["parameter_bytes"]
        for sample in record["samples"].values():
            sample["inputs"].values(), sample["outputs"].values()
    except FileNotFoundError:
        report.warnings.append(f"no {RECORD}: no recorded answers to compare with")
        return {"samples": {}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        report.problems.append(f"{RECORD} is broken: {type(error).__name__} {error}")
        return {"samples": {}}
    stored = report.figures["weight_bytes"]
    report.figures |= {
        "parameter_bytes": parameters,
        "weights_to_parameters": stored / max(parameters, 1),
    }
    if stored > 1.02 * parameters + 65536:  # small tables may be variables too
        report.problems.append(
            f"weights are stored {stored / max(parameters, 1):.1f} times"
        )
    return record


def _check_answers(
    process: c_api.Process, record: dict, report: CheckReport, timing_seconds: float
) -> None:
    report.figures["load_seconds"] = process.load_seconds
    report.warnings += process.notes
    if {"tensorflow", "keras"} & set(process.modules):
        report.problems.append("the process that asked had imported TensorFlow")
    if not process.signatures:
        report.problems.append("it has no signature")
    words, signatures = "asking for answers of all kinds", process.signatures
    with console.progress(words, len(signatures)) as advance:
        for name, info in signatures.items():
            sample = record["samples"].get(name)
            asked = _Asked(process, name, info, sample, report)
            if sample is None and record["samples"]:
                asked.problem("no recorded sample")
            inputs = info.inputs.items()
            if rigid := [k for k, v in inputs if (v.shape or (0,))[0] is not None]:
                asked.problem(
                    f"{', '.join(rigid)} is not [N, …]: a server with batching cannot "
                    "join requests"
                )
                continue
            try:
                asked.check_rows()
                asked.check_hostile()
                asked.measure(timing_seconds)
            except c_api.ModelError as error:
                asked.problem(str(error))
                if error.code == c_api.GONE:
                    return
            advance()


def _check_predictions(process, path: str | Path, report: CheckReport) -> None:
    """Asks for every row of `predictions.jsonl`, 64 at a time."""
    try:
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        inputs = process.signatures["serving_default"].inputs
        asked = {name: [row[name] for row in rows] for name in inputs}
        wanted = [row.get("embedding", row["prediction"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"no predictions of this model: {type(error).__name__} {error}", path
        ) from None
    parts = []
    with console.progress("asking for the run's predictions", len(rows)) as advance:
        for i in range(0, len(rows), 64):
            some = {k: v[i : i + 64] for k, v in asked.items()}
            parts.append(process.run("serving_default", some))
            advance(64)
    for part in parts:
        if set(PARTS) <= set(part):
            part["prediction"] = _entities(part)
    got = {
        key: np.concatenate([np.asarray(part[key]) for part in parts])
        for key in {*ANSWERS, *OTHERS} & set(parts[0])
    }
    answers = next(got[key] for key in ANSWERS if key in got)
    pairs = enumerate(zip(answers, wanted, strict=True))
    other = [i for i, (a, b) in pairs if not _same(a, b)]
    for key in OTHERS.keys() & got.keys():
        pairs = enumerate(zip(got[key], rows, strict=True))
        other += [i for i, (a, row) in pairs if a != row[OTHERS[key]]]
    scores = np.array([row["score"] for row in rows], dtype=float)
    off = np.abs(got.get("score", scores) - scores) / np.maximum(1, np.abs(scores))
    distance = float(np.max(off))
    report.figures["predictions_equal"] = f"{len(rows) - len(other):,} of {len(rows):,}"
    report.figures["scores_differ_by"] = distance
    if other or not distance <= TOLERANCE:
        where = f", first in row {other[0] + 1}" if other else ""
        report.problems.append(
            f"{len(other)} answers are not those of {path}{where}; scores differ by "
            f"{distance:.2g}"
        )


def _entities(part: dict) -> np.ndarray:
    """Of each row the entities, as predictions.jsonl has them, without scores."""
    lists = np.empty(len(part["count"]), object)
    names = [name for name in PARTS if name != "scores"]
    for i, count in enumerate(part["count"]):
        columns = (part[name][i][:count] for name in names)
        keys = [PARTS[name][0] for name in names]
        lists[i] = [
            dict(zip(keys, one, strict=True)) for one in zip(*columns, strict=True)
        ]
    return lists


def _same(answer, wanted) -> bool:
    """Texts are equal, numbers nearly; lists of labels end in empty ones."""
    if isinstance(wanted, list) and any(isinstance(one, dict) for one in wanted):
        wanted = [{k: v for k, v in one.items() if k != "score"} for one in wanted]
        return answer == wanted
    if isinstance(wanted, float) or (wanted and isinstance(wanted[0], float)):
        close = np.isclose(answer, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        return bool(np.all(close))
    if isinstance(wanted, list):
        return [label for label in answer if label] == wanted
    return answer == wanted


class _Asked:
    """One signature, asked in many ways."""

    def __init__(self, process, name: str, info, sample: dict | None, report):
        self.process, self.name, self.info, self.report = process, name, info, report
        self.inputs = sample["inputs"] if sample else _made_up(info)
        recorded = sample["outputs"] if sample else {}
        self.recorded = {k: c_api.from_json(v) for k, v in recorded.items()}

    def problem(self, text: str) -> None:
        self.report.problems.append(f"{self.name}: {text}")

    def ask(self, inputs: dict) -> dict[str, np.ndarray]:
        return _by_label(self.process.run(self.name, inputs))

    def check_rows(self) -> None:
        """The recorded answers; each row alone, and all in another order."""
        whole = self.ask(self.inputs)
        for key, values in _by_label(self.recorded).items():
            if key not in whole:
                self.problem(f"output {key!r} was recorded and is gone")
            elif difference := _difference(values, whole[key]):
                self.problem(f"{key} is not what was recorded: {difference}")
        count = len(next(iter(self.inputs.values())))
        for key, value in whole.items():
            if value.ndim == 0 or len(value) != count:
                self.problem(
                    f"{key} has shape {value.shape} for {count} rows: a server with "
                    "batching cannot split it"
                )
                return
        orders = {f"row {i} alone": [i] for i in range(min(count, 8))}
        orders["rows in reverse order"] = list(range(count))[::-1]
        for words, order in orders.items():
            part = self.ask({k: [v[i] for i in order] for k, v in self.inputs.items()})
            for key, value in part.items():
                if difference := _difference(whole[key][order], value):
                    self.problem(f"{words} changes {key}: {difference}")
                    return

    def check_hostile(self) -> None:
        """Odd texts and numbers: no crash, no NaN, no change of other rows."""
        first = {key: values[:1] for key, values in self.inputs.items()}
        kinds = {key: tensor.dtype for key, tensor in self.info.inputs.items()}
        texts = [key for key, kind in kinds.items() if kind == "string"]
        odd = {f"{w} as input": dict.fromkeys(texts, v) for w, v in _HOSTILE.items()}
        odd = (odd if texts else {}) | {
            f"{key} = {value}": {key: value}
            for key, kind in kinds.items()
            for value in _ODD.get(kind, ())
        }
        alone, refused, rows = self.ask(first), [], [first]
        for words, change in odd.items():
            row = first | {
                key: np.full(np.shape(first[key]), value, dtype=object).tolist()
                for key, value in change.items()
            }
            try:
                answer = self.ask(row)
            except c_api.ModelError as error:
                if error.code == c_api.GONE:
                    message = f"{words}: {str(error).partition(': ')[2]}"
                    raise c_api.ModelError(message, error.code) from None
                refused.append(f"{words} ({error.code})")
                continue
            rows.append(row)
            floats = [k for k, v in answer.items() if v.dtype.kind == "f"]
            if bad := [k for k in floats if np.isnan(answer[k]).any()]:
                self.problem(f"{words} gives NaN in {bad[0]}")
        if refused and set(texts) != {"inputs"}:  # `inputs` are tf.Examples
            self.report.warnings.append(f"{self.name}: refuses {', '.join(refused)}")
        # A batch is computed at the length of its longest row: equals go together.
        others = sorted(rows[1:], key=lambda row: len(str(row)))
        for start in range(0, len(others), CROWD - 1):
            crowd = [first, *others[start : start + CROWD - 1]]
            joined = {key: [row[key][0] for row in crowd] for key in first}
            for key, value in self.ask(joined).items():
                if difference := _difference(alone[key], value[:1]):
                    what = f"odd texts in the same batch change {key}"
                    self.problem(f"{what}: {difference}")
                    return

    def measure(self, seconds: float) -> None:
        """Latency of one row and of 32, at least five times each."""
        for rows in (1, 32):
            times, started, batch = [], time.perf_counter(), {}
            for number in itertools.count():
                for key, values in self.inputs.items():
                    picked = range(number * rows, (number + 1) * rows)
                    batch[key] = [values[i % len(values)] for i in picked]
                self.process.run(self.name, batch)
                times.append(self.process.seconds)
                spent = time.perf_counter() - started
                if spent > (seconds if number > 3 else 10 * seconds + 1):
                    break
            times = times[1:] or times  # the first one builds what the others reuse
            p50, p95 = np.percentile(times, [50, 95]) * 1000
            row = {"signature": self.name, "rows": rows, "p50_ms": p50, "p95_ms": p95}
            row["rows_per_second"] = rows / np.mean(times)
            self.report.figures.setdefault("latency", []).append(row)


def _by_label(outputs: dict) -> dict:
    """Puts each row's classes in the order of their names: in the order of their
    scores, two that are all but equal change places at a rounding."""
    for names in {"labels", "classes"} & set(outputs):
        labels = np.array(outputs[names], dtype=object)
        scores = np.array(outputs.get("scores", ()))
        if labels.ndim == 2 and labels.shape == scores.shape:
            order = np.argsort(labels, axis=1, kind="stable")
            both = {names: labels, "scores": scores}
            outputs |= {k: np.take_along_axis(v, order, 1) for k, v in both.items()}
    return outputs


def _made_up(info: c_api.SignatureInfo) -> dict:
    """Inputs for a signature that nothing was recorded for: two rows of ones."""
    made = {}
    for name, tensor in info.inputs.items():
        shape = [2, *(size or 1 for size in tensor.shape[1:])]
        value = "a text" if tensor.dtype == "string" else tensor.dtype == "bool" or 1
        made[name] = np.full(shape, value, dtype=object).tolist()
    return made


def _difference(expected, got: np.ndarray) -> str | None:
    """Where two answers differ, in words; trailing padding does not count."""
    expected = np.array(expected, dtype=got.dtype)
    if expected.ndim != got.ndim or expected.shape[:1] != got.shape[:1]:
        return f"shape {got.shape} instead of {expected.shape}"
    common = tuple(map(slice, np.minimum(expected.shape, got.shape)))
    for array in (expected, got):
        rest = array.copy()
        rest[common] = rest.flat[-1] if rest.size else 0
        if len(set(rest.ravel().tolist())) > 1:
            return f"shape {got.shape} instead of {expected.shape}"
    expected, got = expected[common], got[common]
    if got.dtype.kind == "f":
        equal = np.isclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
    else:
        equal = got == expected
    if np.all(equal):
        return None
    place = np.unravel_index(np.argmin(equal), equal.shape)
    rows = np.unique(np.nonzero(~equal)[0]).size
    values = f"{_short(got[place])} instead of {_short(expected[place])}"
    return f"{values} in row {place[0]} ({rows} of {len(got)} rows differ)"


def _short(value) -> str:
    text = f"{value:.6g}" if isinstance(value, np.floating) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def main(argv: list[str] | None = None) -> int:
    """`tfllm check DIR`: exit status 0 if sound, 2 if not."""
    parser = argparse.ArgumentParser("tfllm check", description=__doc__.split("\n")[0])
    parser.add_argument("directory", help="saved_models/NAME/VERSION, or …/NAME")
    parser.add_argument(
        "--allow_xla",
        action="store_true",
        help="accept what needs a server with --xla_cpu_compilation_enabled",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="a run's eval/predictions.jsonl: every answer must be the same",
    )
    arguments = parser.parse_args(argv)
    report = check(
        arguments.directory,
        allow_xla=arguments.allow_xla,
        predictions=arguments.predictions,
    )
    report.print()
    return 0 if report.sound else 2


if __name__ == "__main__":
    raise SystemExit(main())
