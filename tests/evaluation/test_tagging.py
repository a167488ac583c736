"""Strict entity scores and the report of a tagger."""

import json

import numpy as np
import pytest

from tfllm.evaluation.spans import Span
from tfllm.evaluation.tagging import (
    TaggedSplit,
    measure,
    span_counts,
    span_metrics,
    write_tagging_report,
)

TEXT = "Ann <b> saw New York"
WORDS = [(0, 3), (4, 7), (8, 11), (12, 15), (16, 20)]
ANN, YORK = Span(0, 3, "PER"), Span(12, 20, "LOC")


def split(labels, predictions, **more):
    rows = len(labels)
    return TaggedSplit(
        texts=[TEXT] * rows,
        labels=labels,
        predictions=predictions,
        span_scores=[[0.5] * len(found) for found in predictions],
        scores=[0.25] * rows,
        **{"cut": [0] * rows} | more,
    )


def test_type_and_both_ends_must_be_right():
    wrong = [YORK._replace(type="ORG"), YORK._replace(end=15), YORK._replace(start=16)]
    block = measure(split([[ANN, YORK]] * 4, [[ANN, YORK], *([ANN, x] for x in wrong)]))
    assert block["metrics"] == {"entity_f1": 5 / 8, "precision": 5 / 8, "recall": 5 / 8}
    low, high = block["intervals"]["entity_f1"]
    assert low <= 5 / 8 <= high and block["samples"] == 4
    # What begins or ends inside a word of the file is found, and wrong.
    parts = [Span(0, 2, "PER"), Span(2, 3, "LOC"), YORK]
    metrics = measure(split([[ANN, YORK]], [parts]))["metrics"]
    assert metrics["precision"] == pytest.approx(1 / 3) and metrics["recall"] == 1 / 2


def test_own_counts_are_seqevals_figures():
    rng = np.random.default_rng(0)

    def spans():
        cuts = sorted(rng.choice(6, 4, replace=False))
        found = [(cuts[0], cuts[1]), (cuts[2], cuts[3])][: rng.integers(3)]
        kinds = rng.choice(["A", "B"], len(found))
        return [
            Span(WORDS[s][0], WORDS[e - 1][1], str(k))
            for (s, e), k in zip(found, kinds, strict=True)
        ]

    given = split([spans() for _ in range(300)], [spans() for _ in range(300)])
    own = span_metrics(*span_counts(given.spans()))
    assert measure(given)["metrics"] == pytest.approx(own)


def test_the_report_has_colours_mistakes_and_what_was_cut(tmp_path, capsys):
    test = split(
        [[ANN, YORK], [ANN]],
        [[ANN, YORK], [YORK]],
        intents=["x", "y"],
        intent_predictions=["x", "x"],
        cut=[0, 7],
        seconds=1.0,
    )
    results = write_tagging_report(
        tmp_path / "eval", task="tags", test=test, validation=test, leaked=[1]
    )
    metrics = results["test"]["metrics"]
    assert metrics["accuracy"] == metrics["sentence_accuracy"] == 0.5
    assert results["test_without_leaked"]["metrics"]["entity_f1"] == 1
    assert [row["label"] for row in results["per_class"]] == ["LOC", "PER"]
    report = (tmp_path / "eval/report.md").read_text()
    assert "7 tokens of 1 texts were not read" in report and "LOC New York" in report
    page = (tmp_path / "eval/entities.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count("<mark") > 5
    rows = [json.loads(line) for line in open(tmp_path / "eval/predictions.jsonl")]
    assert rows[0]["prediction"][1] == {
        **{"type": "LOC", "text": "New York", "start": 12, "end": 20, "score": 0.5}
    }
    assert rows[1]["tokens_cut"] == 7 and rows[1]["intent_prediction"] == "x"
    assert measure(split([[]], [[ANN]]))["metrics"]["entity_f1"] == 0
    assert "no row to be measured has an entity" in capsys.readouterr().out
