"""How well spans are found: strict entity scores, and the `eval/` folder of a tagger.

Spans are judged by their characters and by seqeval's strict rules: type and both ends
must be right.
"""

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfllm.core.console import warn
from tfllm.evaluation.classification import class_rows
from tfllm.evaluation.intervals import measured
from tfllm.evaluation.report import (
    MISTAKES,
    class_table,
    markdown_cell,
    markdown_table,
    measured_splits,
    results_table,
    write_evaluation,
)
from tfllm.evaluation.spans import Span, write_tags

SHOWN = 300  # texts on the coloured page
_STYLE = """<!doctype html><meta charset="utf-8"><title>Entities</title><style>
body {font: 16px/1.7 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em}
p {white-space: pre-wrap; margin: .2em 0} p.file {color: #777}
mark {border-radius: .3em; padding: .1em .2em} mark small {opacity: .6}
</style>"""


@dataclass(frozen=True)
class TaggedSplit:
    """What a model found in the texts of one split.

    Attributes:
        texts: `[N]`.
        labels: Of each text the true spans, in characters.
        predictions: Of each text the spans that were found.
        span_scores: Of each text a probability for each of these.
        scores: Probability of all that was found in a text, `[N]`.
        intents: True classes of the texts `[N]`, if there are any.
        intent_predictions: Those that were found.
        cut: Tokens of each text behind the longest that the model reads `[N]`.
        seconds: Wall time of the prediction.
    """

    texts: Sequence[str]
    labels: Sequence[Sequence[Span]]
    predictions: Sequence[Sequence[Span]]
    span_scores: Sequence[Sequence[float]]
    scores: Sequence[float]
    intents: Sequence[str] | None = None
    intent_predictions: Sequence[str] | None = None
    cut: Sequence[int] = ()
    seconds: float | None = None

    def take(self, rows: Sequence[int]) -> "TaggedSplit":
        """The split with these rows alone, without its seconds."""
        columns = {
            k: v for k, v in vars(self).items() if k != "seconds" and v is not None
        }
        taken = {name: [column[i] for i in rows] for name, column in columns.items()}
        return replace(self, **taken, seconds=None)

    def spans(self) -> list[tuple[set[Span], set[Span]]]:
        """Of each text the true spans and those that were found."""
        pairs = zip(self.labels, self.predictions, strict=True)
        return [(set(true), set(found)) for true, found in pairs]


def span_counts(pairs: Iterable[tuple[set, set]]) -> np.ndarray:
    """True, found, and rightly found spans of each text, `[3, N]`."""
    counts = [(len(true), len(found), len(true & found)) for true, found in pairs]
    return np.array(counts, np.int64).reshape(-1, 3).T


def span_metrics(actual, predicted, correct, intents=None) -> dict[str, float]:
    """`entity_f1`, `precision` and `recall` from counts of each text `[N]`.

    With `intents`, whether each was right, also `accuracy`, and `sentence_accuracy`:
    the share of texts with all of it right.
    """
    actual_sum, predicted_sum, hits = (np.sum(x) for x in (actual, predicted, correct))
    metrics = {
        "entity_f1": 2 * hits / max(actual_sum + predicted_sum, 1),
        "precision": hits / max(predicted_sum, 1),
        "recall": hits / max(actual_sum, 1),
    }
    if intents is not None:
        whole = (actual == correct) & (predicted == correct) & intents
        metrics |= {"accuracy": np.mean(intents), "sentence_accuracy": np.mean(whole)}
    return {name: float(value) for name, value in metrics.items()}


def measure(split: TaggedSplit) -> dict:
    """The block of one split in results.json; entity scores are seqeval's.

    `tokens_cut` counts the tokens that the model did not read, if there are.
    """
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    pairs = split.spans()
    counts = span_counts(pairs)
    if not counts[0].any():
        warn("no row to be measured has an entity: entity F1 says nothing")
    tags = [[_tags(row[side], row[0] | row[1]) for row in pairs] for side in (0, 1)]
    arrays = list(counts)
    if split.intents is not None:
        arrays.append(np.array(split.intents) == np.array(split.intent_predictions))
    block = measured(span_metrics, arrays, len(split.texts), 0.0)
    judged = precision_recall_fscore_support(
        *tags, average="micro", scheme=IOB2, zero_division=0
    )
    names = ("precision", "recall", "entity_f1")
    block["metrics"] |= dict(zip(names, map(float, judged), strict=False))
    block["seconds"] = split.seconds
    block["tokens_cut"] = int(sum(split.cut))
    return {name: value for name, value in block.items() if value not in (None, 0)}


def _tags(spans: set[Span], all_spans: set[Span]) -> list[str]:
    """Tags of the parts into which all ends cut a text, as seqeval wants them."""
    edges = sorted({edge for span in all_spans for edge in span[:2]})
    parts = [Span(*map(edges.index, span[:2]), span.type) for span in sorted(spans)]
    return write_tags(parts, len(edges))


def write_tagging_report(
    directory: str | Path,
    *,
    task: str,
    test: TaggedSplit,
    validation: TaggedSplit | None = None,
    leaked: Iterable[int] = (),
) -> dict:
    """Writes the whole `eval/` folder of a tagger, or nothing of it.

    Args:
        directory: The folder; one that is there is replaced when the new one is whole.
        task: Written into results.json.
        test: The test rows.
        validation: The validation rows; only their numbers are reported.
        leaked: Places of the test rows whose text stands in the training data too.

    Returns:
        What results.json holds.
    """

    def worth(kept):
        return any(test.labels[i] for i in kept)

    results = {"task": task}
    results |= measured_splits(measure, test, validation, leaked, worth)
    pairs = test.spans()
    sides = [Counter(s.type for row in pairs for s in row[side]) for side in (0, 1)]
    hits = Counter(span.type for true, found in pairs for span in true & found)
    names = sorted(sides[0] | sides[1])
    columns = ([counts[name] for name in names] for counts in (*sides, hits))
    results["per_class"] = class_rows(names, *map(np.array, columns))
    page = coloured_page(test, names)
    return write_evaluation(
        directory,
        results,
        prediction_rows(test),
        _report(results, test, pairs),
        {},
        {"entities.html": page},
    )


def entity(text: str, span: Span, score: float | None = None) -> dict:
    """A span as JSON holds it: `type`, `text`, `start`, `end`, and perhaps `score`."""
    told = {"type": span.type, "text": text[span.start : span.end]}
    told |= {"start": span.start, "end": span.end}
    return told if score is None else told | {"score": float(f"{score:.6g}")}


def prediction_rows(split: TaggedSplit) -> Iterable[dict]:
    """Rows of predictions.jsonl; `label` and `prediction` are lists of entities."""
    for i, text in enumerate(split.texts):
        found = zip(split.predictions[i], split.span_scores[i], strict=True)
        row = {"text": text, "label": [entity(text, span) for span in split.labels[i]]}
        row["prediction"] = [entity(text, *one) for one in found]
        row["score"] = float(f"{split.scores[i]:.6g}")
        if split.intent_predictions is not None:
            row["intent_prediction"] = split.intent_predictions[i]
            row |= {"intent": split.intents[i]} if split.intents is not None else {}
        if split.cut[i]:
            row["tokens_cut"] = split.cut[i]
        yield row


def _report(results: dict, test: TaggedSplit, pairs) -> str:
    block = results["test"]
    low, high = block["intervals"]["entity_f1"]
    parts = [
        "# Evaluation",
        f"{block['samples']:,} test rows, {sum(map(len, test.labels)):,} entities. "
        f"Entity F1 **{block['metrics']['entity_f1']:.4f}** (95 % interval {low:.4f} – "
        f"{high:.4f}). [The texts in colour](entities.html).",
        markdown_table(*results_table(results)),
        "An entity counts where its type and both ends are right (seqeval, strict). "
        "Intervals are bootstrap percentiles over the test rows."
        + " accuracy is that of intents; sentence_accuracy is the share of texts with "
        "all of it right." * (test.intents is not None),
        _told_cut(test.cut),
        *class_table(results["per_class"], "Types"),
    ]
    wrong, rows = [i for i, (true, found) in enumerate(pairs) if true != found], []
    for i in wrong[:MISTAKES]:
        text = test.texts[i]
        sides = (set(test.labels[i]), set(test.predictions[i]))
        cells = (
            "; ".join(f"{s.type} {text[s.start : s.end]}" for s in sorted(one - other))
            for one, other in (sides, sides[::-1])
        )
        rows.append([markdown_cell(cell, 160) for cell in (text, *cells)])
    if rows:
        parts += ["## Mistakes", f"{len(rows):,} of {len(wrong):,} texts with one."]
        parts.append(markdown_table(["text", "in the file alone", "found alone"], rows))
    return "\n\n".join(filter(None, parts)) + "\n"


def _told_cut(cut: Sequence[int]) -> str:
    rows = sum(map(bool, cut))
    if not rows:
        return "Every text was read to its end."
    return (
        f"**{sum(cut):,} tokens of {rows:,} texts were not read**: they stand behind "
        "--max_length, and nothing is found there. An export tells how many: `cut`."
    )


def coloured_page(split: TaggedSplit, types: Sequence[str]) -> str:
    """HTML of texts with what was found in colour, those with a mistake first."""
    hues = {kind: 360 * i // len(types) for i, kind in enumerate(types)}
    rows = sorted(
        range(len(split.texts)),
        key=lambda i: list(split.labels[i]) == list(split.predictions[i]),
    )
    parts = [_STYLE, f"<p>{''.join(_mark(kind, '', hues) + ' ' for kind in types)}</p>"]
    for i in rows[:SHOWN]:
        text, found, true = split.texts[i], split.predictions[i], split.labels[i]
        parts.append(f"<hr><p>{_coloured(text, found, hues)}</p>")
        if list(true) != list(found):
            parts.append(f'<p class="file">file: {_coloured(text, true, hues)}</p>')
    return "\n".join(parts) + "\n"


def _coloured(text: str, spans: Sequence[Span], hues: dict) -> str:
    parts, last = [], 0
    for start, end, kind in spans:
        parts.append(html.escape(text[last:start]))
        parts.append(_mark(kind, text[start:end], hues))
        last = end
    return "".join(parts) + html.escape(text[last:])


def _mark(kind: str, text: str, hues: dict) -> str:
    told = html.escape(text) + f" <small>{html.escape(kind)}</small>"
    return f'<mark style="background:hsl({hues[kind]} 80% 85%)">{told}</mark>'
