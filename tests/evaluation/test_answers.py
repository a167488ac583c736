"""Exact match and F1 as the official scripts count them; thresholds; the report."""

import json

import numpy as np
import pytest

from tfllm.evaluation.answers import (
    AnswerSplit,
    answer_scores,
    measure,
    normalise,
    tune_threshold,
    write_answers_report,
)


@pytest.mark.parametrize(
    ("style", "text", "plain"),
    [
        ("squad", "  The Denver-Broncos! ", "denverbroncos"),
        ("squad", "an Apple a day\u00a0the", "apple day"),
        ("squad", "Theatre “x”", "theatre “x”"),  # ASCII punctuation alone
        ("squad", "a.the", "athe"),
        ("cmrc", " 《红楼梦》，A-b ", "红楼梦ab"),
        ("cmrc", "是……(1)。", "是……(1)"),  # what the script's list misses
        ("cmrc", "the 书", "the 书"),
    ],
)
def test_normalisation(style, text, plain):
    assert normalise(text, style) == plain


@pytest.mark.parametrize(
    ("style", "accepted", "text", "exact", "f1"),
    [
        ("squad", ["Denver Broncos"], "the denver broncos.", 1, 1),
        ("squad", ["in Santa Clara", "Levi's Stadium"], "Santa Clara, California",
         0, 2 / 3),
        ("squad", ["to be or to be"], "be be be", 0, 2 * 2 / 8),  # words are counted
        ("squad", ["yes"], "", 0, 0),
        ("squad", [], "", 1, 1),
        ("squad", [], "yes", 0, 0),
        ("squad", ["a the"], "", 1, 1),  # nothing is left of it: no answer
        ("cmrc", ["1963年"], "在1963年", 0, 2 * 2 / 5),  # a number is one unit
        ("cmrc", ["北京大学"], "大学北京", 0, 2 * 2 / 8),  # a run, not a bag
        ("cmrc", ["李小明。"], "“李小明”", 1, 1),
        ("cmrc", ["Windows 95系统"], "windows 95", 0, 2 * 2 / 6),
        ("cmrc", ["甲", "乙丙"], "乙", 0, 2 / 3),  # the reference that suits best
        ("cmrc", ["甲"], "乙", 0, 0),
    ],
)  # fmt: skip
def test_scores(style, accepted, text, exact, f1):
    assert answer_scores(accepted, text, style) == (exact, pytest.approx(f1))


def test_thresholds_are_the_best_there_are():
    pick = np.random.default_rng(0)
    for size in (1, 2, 30):
        margins = pick.normal(size=size).round(1)
        answered, silent = pick.random(size), pick.integers(0, 2, size).astype(float)

        def total(threshold, rows=(margins, answered, silent)):
            return np.where(rows[0] > threshold, rows[2], rows[1]).sum()

        best = max(map(total, [-9.0, 9.0, *margins, *(margins + 1e-6)]))
        found = tune_threshold(margins, answered, silent)
        assert total(found) == pytest.approx(best)


def split(**more):
    texts = ["Rome", "", "in Oslo"]
    told = [{"text": t, "start": -1 if not t else 3, "end": 0, "score": 0.5}
            for t in texts]  # fmt: skip
    return AnswerSplit(
        **{
            "questions": ["a|b?", "b?", "c?"],
            "contexts": ["at Rome", "at x", "in Oslo"],
            "answers": [["Rome"], [], ["Oslo", "Oslo"]],
            "candidates": [told, [], told],
            "predictions": told,
            "style": "squad",
            "ids": ["1", None, "3"],
            "cut": [0, 7, 0],
        }
        | more
    )


def test_report_and_intervals(tmp_path):
    results = write_answers_report(tmp_path / "eval", task="x", test=split(),
                                   validation=split(), leaked=[0])  # fmt: skip
    metrics = results["test"]["metrics"]
    assert metrics["exact_match"] == pytest.approx(2 / 3)
    assert metrics["f1"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert metrics["answerable_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["no_answer_accuracy"] == 1
    low, high = results["test"]["intervals"]["f1"]
    assert low <= metrics["f1"] <= high
    assert results["test"]["tokens_cut"] == 7
    assert results["test_without_leaked"]["samples"] == 2
    rows = [json.loads(line) for line in open(tmp_path / "eval/predictions.jsonl")]
    assert rows[2]["label"] == ["Oslo"] and rows[2]["prediction"] == "in Oslo"
    assert rows[1]["start"] == -1 and rows[1]["tokens_cut"] == 7 and "id" not in rows[1]
    assert "| 0.67 | c? | Oslo | in Oslo |" in (tmp_path / "eval/report.md").read_text()


def test_intervals_are_of_the_rows_that_a_metric_speaks_of():
    told = {"text": "in Oslo", "start": 0, "end": 7, "score": 0.5}
    nothing = {"text": "", "start": -1, "end": -1, "score": 0.5}
    rows = {"questions": ["c?"] * 9, "contexts": ["in Oslo"] * 9, "cut": [0] * 9}
    rows |= {"candidates": [[told]] * 9, "ids": [None] * 9}
    rows |= {"answers": [["Oslo"]] * 8 + [[]], "predictions": [told] * 8 + [nothing]}
    block = measure(split(**rows))
    assert block["intervals"]["answerable_exact_match"] == [0, 0]
    assert block["intervals"]["no_answer_accuracy"] == [1, 1]
    rows |= {"answers": [[]] * 9}
    metrics = measure(split(**rows))["metrics"]
    assert set(metrics) == {"f1", "exact_match", "no_answer_accuracy"}


def test_without_open_questions_nothing_is_told_of_them():
    kept = split().take([0, 2])
    assert set(measure(kept)["metrics"]) == {"f1", "exact_match"}
