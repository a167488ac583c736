"""The `eval/` folder of a run: results.json, predictions.jsonl, report.md, pictures."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfllm.core.console import format_cell
from tfllm.core.files import atomic_directory
from tfllm.evaluation import figures
from tfllm.evaluation.classification import (
    calibration,
    classification_metrics,
    count_pairs,
    encode,
    per_class,
    top_confusions,
)
from tfllm.evaluation.intervals import classification_intervals, compare

MISTAKES, EXCERPT, LENGTH_SLICES = 20, 160, 5


@dataclass(frozen=True)
class Split:
    """What a classifier said about the rows of one split.

    Attributes:
        texts: Texts `[N]`.
        labels: True labels `[N]`, names.
        predictions: Predicted labels `[N]`, names.
        scores: Probabilities `[N, K]` in the order of the class names, or None.
        text_pairs: Second texts `[N]`, for pairs.
        seconds: Wall time of the prediction.
    """

    texts: Sequence[str]
    labels: Sequence[str]
    predictions: Sequence[str]
    scores: np.ndarray | None = None
    text_pairs: Sequence[str] | None = None
    seconds: float | None = None

    def take(self, rows: Sequence[int]) -> "Split":
        """The split with these rows alone, without its seconds."""
        columns = ("texts", "labels", "predictions", "text_pairs")
        picked = {
            name: None
            if getattr(self, name) is None
            else [getattr(self, name)[i] for i in rows]
            for name in columns
        }
        scores = None if self.scores is None else np.asarray(self.scores)[rows]
        return replace(self, **picked, scores=scores, seconds=None)


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
    """Writes the whole `eval/` folder of a classifier, or nothing of it.

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
    results = {"task": task, "test": measure(test, **options)}
    names, (labels, predictions) = encode(class_names, test.labels, test.predictions)
    leaked = set(leaked)
    kept = [i for i in range(len(labels)) if i not in leaked]
    if leaked and kept:
        results["test_without_leaked"] = measure(test.take(kept), **options)
    if baseline is not None:
        other = Split(test.texts, test.labels, baseline[1])
        results["baseline"] = {"name": baseline[0], **measure(other, **options)}
        if "test_without_leaked" in results:
            rest = measure(other.take(kept), **options)
            results["baseline"]["without_leaked"] = rest["metrics"]
        results["baseline"]["compared"] = compare(
            test.labels, baseline[1], test.predictions, **options
        )
    if validation is not None:
        results["validation"] = measure(validation, **options)
    matrix = count_pairs(labels, predictions, len(names))
    slices = length_slices(test, class_names)
    if leaked and kept:
        parts = {"in the training data": sorted(leaked), "new": kept}
        found = [
            slice_row(name, test.take(p), class_names) for name, p in parts.items()
        ]
        results["slices"] = {"length": slices, "leakage": found}
    else:
        results["slices"] = {"length": slices}
    results["per_class"] = per_class(matrix, names)
    results = _plain(results)
    with atomic_directory(directory) as folder:
        drawn = (
            _draw(folder, test, matrix, names, slices, class_names) if pictures else []
        )
        (folder / "results.json").write_text(
            json.dumps(results, ensure_ascii=False, indent=2, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        with open(folder / "predictions.jsonl", "w", encoding="utf-8") as file:
            file.writelines(_prediction_lines(test, class_names))
        report = _report(results, test, matrix, names, class_names, drawn)
        (folder / "report.md").write_text(report, encoding="utf-8")
    return results


def measure(split: Split, *, class_names: Sequence[str], seed: int = 0) -> dict:
    """The block of one split in results.json: samples, metrics, intervals, seconds.

    `unseen_labels` counts the rows whose label the model does not know, if there are.
    """
    columns = (split.labels, split.predictions, split.scores)
    known = set(class_names)
    unseen = Counter(label for label in split.labels if label not in known)
    block = {
        "samples": len(split.labels),
        "metrics": classification_metrics(*columns, class_names=class_names),
        "intervals": classification_intervals(
            *columns, class_names=class_names, seed=seed
        ),
        "seconds": split.seconds,
        "unseen_labels": dict(sorted(unseen.items())),
    }
    return {k: v for k, v in block.items() if v is not None and v != {}}


def results_table(results: Mapping) -> tuple[list[str], list[list]]:
    """Columns and rows of the results, for the console and for the report."""
    blocks = {
        "test": results["test"],
        "test without leaked": results.get("test_without_leaked"),
        results.get("baseline", {}).get("name", ""): results.get("baseline"),
        "validation": results.get("validation"),
    }
    blocks = {name: block for name, block in blocks.items() if block}
    columns = ["metric", *blocks]
    columns.insert(2, "95 % interval")
    rows = []
    for metric in results["test"]["metrics"]:
        values = [_number(b["metrics"].get(metric)) for b in blocks.values()]
        values.insert(1, _range(results["test"]["intervals"].get(metric)))
        rows.append([metric, *values])
    counts = [format_cell(block["samples"]) for block in blocks.values()]
    return columns, [*rows, ["rows", counts[0], "", *counts[1:]]]


def length_slices(split: Split, class_names: Sequence[str]) -> list[dict]:
    """Accuracy of up to five slices of equal size by length of text, in code points."""
    pairs = split.text_pairs or [""] * len(split.texts)
    lengths = np.array(
        [len(a) + len(b) for a, b in zip(split.texts, pairs, strict=True)]
    )
    ends = np.unique(
        np.quantile(lengths, np.linspace(0, 1, LENGTH_SLICES + 1)[1:], method="higher")
    )
    places = np.searchsorted(ends, lengths)
    rows = []
    for place in range(len(ends)):
        inside = np.flatnonzero(places == place)
        low, high = lengths[inside].min(), lengths[inside].max()
        name = f"{low}–{high}" if low < high else str(low)
        rows.append(slice_row(name, split.take(inside), class_names))
    return rows


def slice_row(name: str, split: Split, class_names: Sequence[str]) -> dict:
    """Name, size, accuracy and its interval of some rows."""
    block = measure(replace(split, scores=None), class_names=class_names)
    return {
        "slice": name,
        "samples": block["samples"],
        "accuracy": block["metrics"]["accuracy"],
        "interval": block["intervals"]["accuracy"],
    }


def _prediction_lines(split: Split, class_names: Sequence[str]) -> Iterable[str]:
    scores = None if split.scores is None else np.asarray(split.scores).tolist()
    places = {name: i for i, name in enumerate(class_names)}
    for i, text in enumerate(split.texts):
        row = {"text": text}
        if split.text_pairs is not None:
            row["text_pair"] = split.text_pairs[i]
        row |= {"label": split.labels[i], "prediction": split.predictions[i]}
        if scores is not None:
            # Six digits are what float32 carries.
            digits = [float(f"{p:.6g}") for p in scores[i]]
            row["score"] = digits[places[split.predictions[i]]]
            row["scores"] = dict(zip(class_names, digits, strict=True))
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _draw(folder, test, matrix, names, slices, class_names) -> list[tuple[str, str]]:
    """Draws the pictures; returns their titles and file names."""
    drawn = {"Confusion matrix": figures.confusion_figure(matrix, names)}
    if test.scores is not None:
        _, (labels, predictions) = encode(class_names, test.labels, test.predictions)
        scores = np.asarray(test.scores)
        values = scores[np.arange(len(labels)), predictions], labels == predictions
        drawn["Reliability"] = figures.reliability_figure(
            calibration(*values), calibration(*values, equal_mass=True)
        )
        drawn["Precision and recall"] = figures.precision_recall_figure(
            labels, scores, class_names
        )
    if len(slices) > 1:
        drawn["Accuracy by length"] = figures.slices_figure(slices, "Characters")
    files = []
    for title, figure in drawn.items():
        files.append((title, title.lower().replace(" ", "_") + ".png"))
        (folder / files[-1][1]).write_bytes(figures.png(figure))
    return files


def _report(results, test, matrix, names, class_names, drawn) -> str:
    block = results["test"]
    accuracy, bounds = block["metrics"]["accuracy"], block["intervals"]["accuracy"]
    lines = [
        "# Evaluation",
        "",
        f"{block['samples']:,} test rows, {len(class_names):,} classes. Accuracy "
        f"**{_number(accuracy)}** (95 % interval {_range(bounds)}).",
        "",
        *_table(*results_table(results)),
        "",
        "Intervals are bootstrap percentiles over the test rows: how much luck lies in "
        "the choice of these rows, not how much another training seed would change. "
        "precision, recall and f1_macro are means over the classes; loss is in nats.",
    ]
    if "test_without_leaked" in results:
        lost = block["samples"] - results["test_without_leaked"]["samples"]
        lines += [
            "",
            f"Test rows whose text stands in the training data too: {lost:,}. Trust "
            "the column without them; the other compares with published numbers.",
        ]
        if "baseline" in results:
            floor = results["baseline"]["without_leaked"]["accuracy"]
            name = _text(results["baseline"]["name"])
            lines[-1] += f" {name} without them: accuracy {_number(floor)}."
    if "unseen_labels" in block:
        counts = ", ".join(
            f"{_text(k)} ({n:,})" for k, n in block["unseen_labels"].items()
        )
        rows = sum(block["unseen_labels"].values())
        lines += [
            "",
            f"Labels that training never saw, in {rows:,} rows that count as errors: "
            f"{counts}.",
        ]
    if "baseline" in results:
        lines += ["", *_comparison(results["baseline"])]
    for title, file in drawn:
        lines += ["", f"## {title}", "", f"![{title}]({file})"]
    confusions = top_confusions(matrix, names)
    if confusions:
        rows = [
            [_text(c["label"]), _text(c["prediction"]), c["count"], f"{c['share']:.1%}"]
            for c in confusions
        ]
        head = ["label", "prediction", "rows", "share of the label"]
        lines += ["", "## Most frequent confusions", "", *_table(head, rows)]
    lines += ["", "## Classes", "", *_classes(results["per_class"])]
    for name, slices in results["slices"].items():
        rows = [
            [s["slice"], s["samples"], _number(s["accuracy"]), _range(s["interval"])]
            for s in slices
        ]
        title = {
            "length": "Slices by length (characters)",
            "leakage": "Slices by leakage",
        }
        head = ["slice", "rows", "accuracy", "95 % interval"]
        lines += ["", f"## {title[name]}", "", *_table(head, rows)]
    return "\n".join([*lines, "", *_mistakes(test, class_names)]) + "\n"


def _comparison(baseline: Mapping) -> list[str]:
    head = ["metric", "difference", "95 % interval", "p (randomisation)"]
    rows = [
        [
            metric,
            f"{c['difference']:+.4f}",
            _range(c["interval"]),
            f"{c['p_value']:.2g}",
        ]
        for metric, c in baseline["compared"].items()
    ]
    change = baseline["compared"]["accuracy"]
    verdict = "better" if change["difference"] > 0 else "worse"
    if change["mcnemar"] >= 0.05:
        verdict = "neither better nor worse beyond what chance explains"
    return [
        f"## Against {_text(baseline['name'])}",
        "",
        f"In accuracy the model is {verdict} (McNemar p = {change['mcnemar']:.2g}).",
        "",
        *_table(head, rows),
    ]


def _classes(rows: Sequence[Mapping]) -> list[str]:
    head = ["#", "label", "precision", "recall", "F1", "rows", "predicted"]
    cells = []
    for i, row in enumerate(rows):
        ratios = (_number(row[k]) for k in ("precision", "recall", "f1"))
        label = _text(row["label"])
        cells.append([i, label, *ratios, row["support"], row["predicted"]])
    lines = _table(head, cells)
    if figures.drawable([row["label"] for row in rows])[1]:
        note = "No installed font draws all labels: the pictures show the numbers here."
        lines = [note, "", *lines]
    if len(rows) > figures.MOST_CLASSES:
        lines = [
            "<details><summary>All classes</summary>",
            "",
            *lines,
            "",
            "</details>",
        ]
    return lines


def _mistakes(test: Split, class_names: Sequence[str]) -> list[str]:
    wrong = [i for i, x in enumerate(test.labels) if x != test.predictions[i]]
    if not wrong:
        return ["No mistakes."]
    title, head = "Mistakes", ["label", "prediction", "text"]
    if test.scores is not None:
        places = {name: i for i, name in enumerate(class_names)}
        score = {i: test.scores[i][places[test.predictions[i]]] for i in wrong}
        wrong.sort(key=lambda i: -score[i])
        title, head = "Most confident mistakes", ["score", *head]
    rows = []
    for i in wrong[:MISTAKES]:
        text = _text(test.texts[i], EXCERPT)
        if test.text_pairs is not None:
            text += " ⟷ " + _text(test.text_pairs[i], EXCERPT)
        row = [_text(test.labels[i]), _text(test.predictions[i]), text]
        rows.append([f"{score[i]:.3f}", *row] if test.scores is not None else row)
    shown = f"{len(rows):,} of {len(wrong):,} wrong rows."
    return [f"## {title}", "", shown, "", *_table(head, rows)]


def _table(columns: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _text(text: str, longest: int = 80) -> str:
    """A text as it can stand in a Markdown table: one line, nothing that formats."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "\\|`*_[]~$" else c for c in line)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _range(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f} – {bounds[1]:.4f}"


def _plain(value):
    """Plain JSON values; a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
