"""The `eval/` folder of a run: results.json, predictions.jsonl, report.md, pictures."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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

MISTAKES, EXCERPT = 20, 160


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
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        columns["seconds"] = None
        return replace(
            self,
            **{
                name: None if column is None else [column[i] for i in rows]
                for name, column in columns.items()
            },
        )


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
    leaked = set(leaked)
    kept = [i for i in range(len(test.labels)) if i not in leaked]
    apart = bool(leaked and kept)
    if apart:
        results["test_without_leaked"] = measure(test.take(kept), **options)
    if baseline is not None:
        name, predictions = baseline
        other = Split(test.texts, test.labels, predictions)
        block = {"name": name, **measure(other, **options)}
        if apart:
            block["without_leaked"] = measure(other.take(kept), **options)["metrics"]
        pair = predictions, test.predictions
        block["compared"] = compare(test.labels, *pair, **options)
        results["baseline"] = block
    if validation is not None:
        results["validation"] = measure(validation, **options)
    names, ids = encode(class_names, test.labels, test.predictions)
    matrix = count_pairs(*ids, len(names))
    results["per_class"] = per_class(matrix, names)
    drawn = _draw(test, matrix, names, ids, class_names) if pictures else {}
    report = _report(results, test, matrix, names, class_names, drawn)
    rows = _prediction_rows(test, class_names)
    return write_evaluation(directory, results, rows, report, drawn)


def write_evaluation(
    directory: str | Path,
    results: Mapping,
    rows: Iterable[Mapping],
    report: str,
    pictures: Mapping[str, object],
) -> dict:
    """Writes results.json, predictions.jsonl, report.md and pictures, or nothing.

    Args:
        directory: The folder; one that is there is replaced when the new one is whole.
        results: For results.json.
        rows: For predictions.jsonl, a row a text.
        report: Markdown.
        pictures: file name → figure.

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
        (folder / "report.md").write_text(report, encoding="utf-8")
    return json.loads(text)


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
        block.get("name", key.replace("_", " ")): block
        for key in ("test", "test_without_leaked", "baseline", "validation")
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


def _prediction_rows(split: Split, class_names: Sequence[str]) -> Iterable[dict]:
    for i, text in enumerate(split.texts):
        row = {"text": text}
        if split.text_pairs is not None:
            row["text_pair"] = split.text_pairs[i]
        row |= {"label": split.labels[i], "prediction": split.predictions[i]}
        if split.scores is not None:
            # Six digits are what float32 carries.
            digits = [float(f"{p:.6g}") for p in split.scores[i]]
            scores = dict(zip(class_names, digits, strict=True))
            row |= {"score": scores[row["prediction"]], "scores": scores}
        yield row


def _draw(test: Split, matrix, names, ids, class_names) -> dict[str, object]:
    """File name → figure."""
    drawn = {"confusion_matrix.png": figures.confusion_figure(matrix, names)}
    if test.scores is not None:
        (labels, predictions), scores = ids, np.asarray(test.scores)
        confidence = scores[np.arange(len(labels)), predictions]
        found = calibration(confidence, labels == predictions)
        drawn["reliability.png"] = figures.reliability_figure(found)
        drawn["precision_and_recall.png"] = figures.precision_recall_figure(
            labels, scores, class_names
        )
    return drawn


def _report(results, test, matrix, names, class_names, drawn) -> str:
    block = results["test"]
    accuracy, bounds = block["metrics"]["accuracy"], block["intervals"]["accuracy"]
    parts = [
        "# Evaluation",
        f"{block['samples']:,} test rows, {len(class_names):,} classes. Accuracy "
        f"**{_number(accuracy)}** (95 % interval {_range(bounds)}).",
        markdown_table(*results_table(results)),
        "Intervals are bootstrap percentiles over the test rows: how much luck lies in "
        "the choice of these rows, not how much another training seed would change. "
        "precision, recall and f1_macro are means over the classes; loss is in nats.",
    ]
    if "test_without_leaked" in results:
        lost = block["samples"] - results["test_without_leaked"]["samples"]
        line = f"Test rows whose text stands in the training data too: {lost:,}. Trust "
        line += "the column without them; the other compares with published numbers."
        if "baseline" in results:
            floor = results["baseline"]["without_leaked"]["accuracy"]
            name = markdown_cell(results["baseline"]["name"])
            line += f" {name} without them: accuracy {_number(floor)}."
        parts.append(line)
    if unseen := block.get("unseen_labels"):
        counts = ", ".join(
            f"{markdown_cell(label)} ({n:,})" for label, n in unseen.items()
        )
        rows = sum(unseen.values())
        line = f"Labels that training never saw, in {rows:,} rows that count as errors"
        parts.append(f"{line}: {counts}.")
    if "baseline" in results:
        parts += _comparison(results["baseline"])
    for file in drawn:
        title = file.removesuffix(".png").replace("_", " ").capitalize()
        parts += [f"## {title}", f"![{title}]({file})"]
    if confusions := top_confusions(matrix, names):
        head = ["label", "prediction", "rows", "share of the label"]
        rows = [
            [
                markdown_cell(c["label"]),
                markdown_cell(c["prediction"]),
                c["count"],
                f"{c['share']:.1%}",
            ]
            for c in confusions
        ]
        parts += ["## Most frequent confusions", markdown_table(head, rows)]
    head = ["#", "label", "precision", "recall", "F1", "rows", "predicted"]
    rows = []
    for i, row in enumerate(results["per_class"]):
        ratios = (_number(row[key]) for key in ("precision", "recall", "f1"))
        rows.append(
            [i, markdown_cell(row["label"]), *ratios, row["support"], row["predicted"]]
        )
    parts += ["## Classes", markdown_table(head, rows), *_mistakes(test, class_names)]
    return "\n\n".join(parts) + "\n"


def _comparison(baseline: Mapping) -> list[str]:
    head = ["metric", "difference", "95 % interval", "p (paired bootstrap)"]
    rows = [
        [name, f"{c['difference']:+.4f}", _range(c["interval"]), f"{c['p_value']:.2g}"]
        for name, c in baseline["compared"].items()
    ]
    change = baseline["compared"]["accuracy"]
    verdict = "better" if change["difference"] > 0 else "worse"
    if change["p_value"] >= 0.05:
        verdict = "neither better nor worse beyond what chance explains"
    return [
        f"## Against {markdown_cell(baseline['name'])}",
        f"In accuracy the model is {verdict} (p = {change['p_value']:.2g}).",
        markdown_table(head, rows),
    ]


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
        text = markdown_cell(test.texts[i], EXCERPT)
        if test.text_pairs is not None:
            text += " ⟷ " + markdown_cell(test.text_pairs[i], EXCERPT)
        row = [markdown_cell(test.labels[i]), markdown_cell(test.predictions[i]), text]
        rows.append([f"{score[i]:.3f}", *row] if test.scores is not None else row)
    shown = f"{len(rows):,} of {len(wrong):,} wrong rows."
    return [f"## {title}", shown, markdown_table(head, rows)]


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
