"""The `eval/` folder of a run: results.json, predictions.jsonl, report.md, pictures."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfllm.core.console import format_cell
from tfllm.core.errors import UserError
from tfllm.core.files import atomic_directory
from tfllm.evaluation import figures
from tfllm.evaluation.classification import (
    calibration,
    class_rows,
    classification_metrics,
    count_pairs,
    encode,
    multilabel_indicators,
    per_class,
    top_confusions,
)
from tfllm.evaluation.intervals import (
    classification_intervals,
    compare,
    compare_rows,
    row_intervals,
    row_metrics,
)

MISTAKES, EXCERPT = 20, 160
_MEANINGS = {
    "single_label": "precision, recall and f1_macro are means over the classes; loss "
    "is in nats.",
    "multi_label": "precision, recall and f1_macro are means over the classes; "
    "accuracy counts rows whose labels are all right.",
    "regression": "pearson and spearman are correlations (0 with a constant), mse is "
    "the mean squared error.",
}


@dataclass(frozen=True)
class Split:
    """What a model said about the rows of one split.

    Attributes:
        texts: Texts `[N]`.
        labels: True labels `[N]`: names, lists of names, or numbers.
        predictions: Predicted labels `[N]`, of the same kind.
        scores: Probabilities `[N, K]` in the order of the class names, or None.
        text_pairs: Second texts `[N]`, for pairs.
        seconds: Wall time of the prediction.
        problem: `single_label`, `multi_label` or `regression`.
        thresholds: Of `multi_label`: `[K]`, where a class begins to be predicted.
    """

    texts: Sequence[str]
    labels: Sequence
    predictions: Sequence
    scores: np.ndarray | None = None
    text_pairs: Sequence[str] | None = None
    seconds: float | None = None
    problem: str = "single_label"
    thresholds: Sequence[float] | None = None

    def take(self, rows: Sequence[int]) -> "Split":
        """The split with these rows alone, without its seconds."""
        columns = ("texts", "labels", "predictions", "scores", "text_pairs")
        taken = {
            name: None if column is None else [column[i] for i in rows]
            for name in columns
            for column in [getattr(self, name)]
        }
        return replace(self, **taken, seconds=None)


def measured_splits(
    measure: Callable,
    test,
    validation=None,
    leaked: Iterable[int] = (),
    worth: Callable[[list[int]], bool] = bool,
) -> dict:
    """The blocks of results.json: `test`, `test_without_leaked`, `validation`.

    Args:
        measure: Makes a split's block.
        test: Has `predictions` and `take`, as `Split` does.
        validation: Another one, or None.
        leaked: Places of the test rows that stand in the training data too.
        worth: Whether rows at these places can be measured.
    """
    results, leaked = {"test": measure(test)}, set(leaked)
    kept = [i for i in range(len(test.predictions)) if i not in leaked]
    if leaked and worth(kept):
        results["test_without_leaked"] = measure(test.take(kept))
    if validation is not None:
        results["validation"] = measure(validation)
    return results


def write_classification_report(
    directory: str | Path,
    *,
    task: str,
    class_names: Sequence[str],
    test: Split,
    validation: Split | None = None,
    leaked: Iterable[int] = (),
    baseline: tuple[str, Sequence[str]] | None = None,
    pictures: bool = True,
    seed: int = 0,
) -> dict:
    """Writes the whole `eval/` folder of labels or numbers, or nothing of it.

    Args:
        directory: The folder; one that is there is replaced when the new one is whole.
        task: Written into results.json.
        class_names: The K classes in the order of the model's outputs.
        test: The test rows.
        validation: The validation rows; only their numbers are reported.
        leaked: Places of the test rows whose text stands in the training data too.
        baseline: Name and predictions `[N]` of another system on the test rows, such as
            `tfidf_svm`; the report prints it beside the model, with a paired test.
        pictures: Whether to draw the PNGs (about a second).
        seed: Of the bootstrap.

    Returns:
        What results.json holds.

    Raises:
        UserError: no rows, or scores that are not finite.
        ValueError: columns that do not fit together.
    """
    options = {"class_names": class_names, "seed": seed}
    leaked, part = set(leaked), functools.partial(measure, **options)
    results = {"task": task} | measured_splits(part, test, validation, leaked)
    if baseline is not None:
        name, predictions = baseline
        other = Split(test.texts, test.labels, predictions, problem=test.problem)
        found = measured_splits(part, other, leaked=leaked)
        block = {"name": name, **found["test"]}
        if "test_without_leaked" in found:
            block["without_leaked"] = found["test_without_leaked"]["metrics"]
        block["compared"] = _compared(test, predictions, **options)
        results["baseline"] = block
    look = {"single_label": _look, "multi_label": _look_multi, "regression": _look_off}
    drawn, sections, results["per_class"] = look[test.problem](test, class_names)
    if not results["per_class"]:
        del results["per_class"]
    drawn = {file: draw() for file, draw in drawn.items() if pictures}
    report = _report(results, test, sections, class_names, drawn)
    rows = prediction_rows(test, class_names)
    return write_evaluation(directory, results, rows, report, drawn)


def write_evaluation(
    directory: str | Path,
    results: Mapping,
    rows: Iterable[Mapping],
    report: str,
    pictures: Mapping[str, object],
    pages: Mapping[str, str] | None = None,
) -> dict:
    """Writes results.json, predictions.jsonl, report.md and pictures, or nothing.

    Args:
        directory: The folder; one that is there is replaced when the new one is whole.
        results: For results.json.
        rows: For predictions.jsonl, a row a text.
        report: Markdown.
        pictures: file name → figure.
        pages: file name → text of more files.

    Returns:
        `results` as read back.
    """
    text = json.dumps(results, ensure_ascii=False, indent=2, allow_nan=False)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_directory(directory) as folder:
        for file, figure in pictures.items():
            (folder / file).write_bytes(figures.png(figure))
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        with open(folder / "predictions.jsonl", "w", encoding="utf-8") as file:
            file.writelines(lines)
        for file, page in {"report.md": report, **(pages or {})}.items():
            (folder / file).write_text(page, encoding="utf-8")
    return json.loads(text)


def measure(split: Split, *, class_names: Sequence[str], seed: int = 0) -> dict:
    """The block of one split in results.json: samples, metrics, intervals, seconds.

    `unseen_labels` counts the rows whose label the model does not know, if there are.
    """
    columns = (split.labels, split.predictions, split.scores)
    known = set(class_names)
    names = [name for label in split.labels for name in _names_of(label)]
    unseen = Counter(name for name in names if name not in known)
    if split.problem == "single_label":
        metrics = classification_metrics(*columns, class_names=class_names)
        options = {"class_names": class_names, "seed": seed}
        intervals = classification_intervals(*columns, **options)
    else:
        if split.scores is not None and not np.isfinite(split.scores).all():
            raise UserError("Some scores are not finite numbers: the model diverged.")
        rows = row_metrics(split.problem, *columns[:2], class_names)
        metrics, intervals = row_intervals(rows, len(split.labels), seed=seed)
    block = {
        "samples": len(split.labels),
        "metrics": metrics,
        "intervals": intervals,
        "seconds": split.seconds,
        "unseen_labels": dict(sorted(unseen.items())),
    }
    return {k: v for k, v in block.items() if v is not None and v != {}}


def results_table(results: Mapping) -> tuple[list[str], list[list]]:
    """Columns and rows of the results, for the console and for the report."""
    blocks = {
        block.get("name", key.replace("_", " ")): block
        for key in (
            *("test", "test_without_leaked"),
            *("baseline", "other_run", "validation"),
        )
        if (block := results.get(key))
    }
    columns = ["metric", *blocks]
    columns.insert(2, "95 % interval")
    rows = []
    for metric in results["test"]["metrics"]:
        values = [_number(b["metrics"].get(metric)) for b in blocks.values()]
        values.insert(1, _range(results["test"]["intervals"].get(metric)))
        rows.append([metric, *values])
    counts = [format_cell(block["samples"]) for block in blocks.values()]
    return columns, [*rows, ["rows", counts[0], "", *counts[1:]]]


def prediction_rows(split: Split, class_names: Sequence[str]) -> Iterable[dict]:
    """Rows of predictions.jsonl, numbers with the six digits that float32 carries."""
    for i, text in enumerate(split.texts):
        row = {"text": text}
        if split.text_pairs is not None:
            row["text_pair"] = split.text_pairs[i]
        row |= {"label": split.labels[i], "prediction": split.predictions[i]}
        if split.problem == "regression":
            row["prediction"] = row["score"] = float(f"{row['prediction']:.6g}")
        elif split.scores is not None:
            digits = [float(f"{p:.6g}") for p in split.scores[i]]
            scores = dict(zip(class_names, digits, strict=True))
            several = split.problem == "multi_label"
            score = max(digits) if several else scores[row["prediction"]]
            row |= {"score": score, "scores": scores}
        yield row


def _compared(test: Split, other: Sequence, class_names, seed: int) -> dict:
    if test.problem == "single_label":
        options = {"class_names": class_names, "seed": seed}
        return compare(test.labels, other, test.predictions, **options)
    both = (
        row_metrics(test.problem, test.labels, predictions, class_names)
        for predictions in (other, test.predictions)
    )
    return compare_rows(*both, len(test.labels), seed=seed)


def _look(test: Split, class_names) -> tuple[dict, list[str], list[dict]]:
    """Functions that draw, by file name; parts of the report; a row a class."""
    names, (labels, predictions) = encode(class_names, test.labels, test.predictions)
    matrix = count_pairs(labels, predictions, len(names))
    drawn = {"confusion_matrix.png": lambda: figures.confusion_figure(matrix, names)}
    if test.scores is not None:
        scores = np.asarray(test.scores)
        confidence = scores[np.arange(len(labels)), predictions]
        found = calibration(confidence, labels == predictions)
        drawn["reliability.png"] = lambda: figures.reliability_figure(found)
        drawn["precision_and_recall.png"] = lambda: figures.precision_recall_figure(
            labels, scores, class_names
        )
    rows, sections = per_class(matrix, names), []
    if confusions := top_confusions(matrix, names):
        head = ["label", "prediction", "rows", "share of the label"]
        cells = [
            [
                markdown_cell(c["label"]),
                markdown_cell(c["prediction"]),
                c["count"],
                f"{c['share']:.1%}",
            ]
            for c in confusions
        ]
        sections += ["## Most frequent confusions", markdown_table(head, cells)]
    return drawn, sections + class_table(rows), rows


def _look_multi(test: Split, class_names) -> tuple[dict, list[str], list[dict]]:
    names, (truth, chosen) = multilabel_indicators(
        class_names, test.labels, test.predictions
    )
    sums = truth.sum(0), chosen.sum(0), (truth * chosen).sum(0)
    rows = class_rows(names, *(total.astype(int) for total in sums))
    for row, threshold in zip(rows, test.thresholds or (), strict=False):
        row["threshold"] = threshold
    drawn, size = {}, len(class_names)
    if test.scores is not None and truth[:, :size].any():
        drawn["precision_and_recall.png"] = lambda: figures.precision_recall_figure(
            truth[:, :size], np.asarray(test.scores), class_names
        )
    return drawn, class_table(rows), rows


def _look_off(test: Split, class_names) -> tuple[dict, list[str], list[dict]]:
    """By how much numbers are off."""
    off = np.asarray(test.predictions, float) - np.asarray(test.labels, float)
    shares = (5, 25, 50, 75, 95)
    marks = [f"{mark:.4g}" for mark in np.percentile(off, shares)]
    rows = [["prediction less label", *marks]]
    rows.append(["size", *(f"{m:.4g}" for m in np.percentile(abs(off), shares))])
    table = markdown_table(["error", *(f"{p} %" for p in shares)], rows)
    drawn = {
        "scatter.png": lambda: figures.scatter_figure(test.labels, test.predictions)
    }
    return drawn, ["## Errors, percentiles", table], []


def class_table(rows: list[dict], title: str = "Classes") -> list[str]:
    """A heading, and a table with a row a class."""
    head = ["#", "label", "precision", "recall", "F1", "rows", "predicted"]
    tuned = any("threshold" in row for row in rows)
    cells = []
    for i, row in enumerate(rows):
        ratios = (_number(row[key]) for key in ("precision", "recall", "f1"))
        counts = row["support"], row["predicted"]
        cells.append([i, markdown_cell(row["label"]), *ratios, *counts])
        cells[-1] += [_number(row.get("threshold"))] * tuned
    return [f"## {title}", markdown_table(head + ["threshold"] * tuned, cells)]


def _report(results, test: Split, sections, class_names, drawn) -> str:
    block = results["test"]
    first = next(iter(block["metrics"]))  # of metrics, the one that says most
    value, bounds = block["metrics"][first], block["intervals"][first]
    classes = f", {len(class_names):,} classes" * bool(class_names)
    parts = [
        "# Evaluation",
        f"{block['samples']:,} test rows{classes}. {first.capitalize()} "
        f"**{_number(value)}** (95 % interval {_range(bounds)}).",
        markdown_table(*results_table(results)),
        "Intervals are bootstrap percentiles over the test rows: how much luck lies in "
        "the choice of these rows, not how much another training seed would change. "
        + _MEANINGS[test.problem],
    ]
    if "test_without_leaked" in results:
        lost = block["samples"] - results["test_without_leaked"]["samples"]
        line = f"Test rows whose text stands in the training data too: {lost:,}. Trust "
        line += "the column without them; the other compares with published numbers."
        if "baseline" in results:
            floor = results["baseline"]["without_leaked"][first]
            name = markdown_cell(results["baseline"]["name"])
            line += f" {name} without them: {first} {_number(floor)}."
        parts.append(line)
    if unseen := block.get("unseen_labels"):
        counts = ", ".join(
            f"{markdown_cell(label)} ({n:,})" for label, n in unseen.items()
        )
        rows = sum(unseen.values())
        line = f"Labels that training never saw, in {rows:,} rows that count as errors"
        parts.append(f"{line}: {counts}.")
    if "baseline" in results:
        parts += comparison(results["baseline"])
    for file in drawn:
        title = file.removesuffix(".png").replace("_", " ").capitalize()
        parts += [f"## {title}", f"![{title}]({file})"]
    return "\n\n".join([*parts, *sections, *_mistakes(test, class_names)]) + "\n"


def comparison(baseline: Mapping) -> list[str]:
    """Parts of a report: how a model does beside a block with `name`, `compared`."""
    head = ["metric", "difference", "95 % interval", "p (paired bootstrap)"]
    rows = [
        [name, f"{c['difference']:+.4f}", _range(c["interval"]), f"{c['p_value']:.2g}"]
        for name, c in baseline["compared"].items()
    ]
    first, change = next(iter(baseline["compared"].items()))
    verdict = "better" if change["difference"] > 0 else "worse"
    if change["p_value"] >= 0.05:
        verdict = "neither better nor worse beyond what chance explains"
    return [
        f"## Against {markdown_cell(baseline['name'])}",
        f"In {first} the model is {verdict} (p = {change['p_value']:.2g}).",
        markdown_table(head, rows),
    ]


def _mistakes(test: Split, class_names: Sequence[str]) -> list[str]:
    wrong = [i for i, x in enumerate(test.labels) if x != test.predictions[i]]
    if not wrong:
        return ["No mistakes."]
    title, head, how = "Mistakes", ["label", "prediction", "text"], {}
    pairs = {i: (test.labels[i], test.predictions[i]) for i in wrong}
    if test.problem == "multi_label":
        how = {i: len({*a} ^ {*b}) for i, (a, b) in pairs.items()}
        title, head = "Rows with the most wrong labels", ["wrong", *head]
    elif test.problem == "regression":
        how = {i: float(f"{abs(a - b):.4g}") for i, (a, b) in pairs.items()}
        title, head = "Largest errors", ["error", *head]
    elif test.scores is not None:
        places = {name: i for i, name in enumerate(class_names)}
        how = {i: test.scores[i][places[test.predictions[i]]] for i in wrong}
        title, head = "Most confident mistakes", ["score", *head]
    wrong.sort(key=lambda i: -how.get(i, 0))
    rows = []
    for i in wrong[:MISTAKES]:
        text = markdown_cell(test.texts[i], EXCERPT)
        if test.text_pairs is not None:
            text += " ⟷ " + markdown_cell(test.text_pairs[i], EXCERPT)
        row = [*(markdown_cell(show_label(label)) for label in pairs[i]), text]
        number = how.get(i, 0)
        shown = f"{number:.3f}" if test.problem == "single_label" else number
        rows.append([shown, *row] if how else row)
    shown = f"{len(rows):,} of {len(wrong):,} wrong rows."
    return [f"## {title}", shown, markdown_table(head, rows)]


def show_label(label: str | Sequence[str] | float) -> str:
    """A name, names, or a number in words."""
    if isinstance(label, str):
        return label
    return f"{label:.4g}" if isinstance(label, float) else ", ".join(label) or "–"


def _names_of(label) -> Sequence[str]:
    return [label] if isinstance(label, str) else [] if type(label) is float else label


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def markdown_cell(text: str, longest: int = 80) -> str:
    """A text as it can stand in a Markdown table: one line, nothing that formats."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "\\|`*_[]~$" else c for c in line)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _range(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f} – {bounds[1]:.4f}"
