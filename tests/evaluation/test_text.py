"""Scores of texts equal their libraries', intervals and tests say what they should."""

import json

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from tfllm.evaluation.text import (
    TextSplit,
    lead_sentence,
    text_scores,
    write_text_report,
)

TARGETS = ["the cat sat on the mat today", "a dog barks at the moon", "he goes home"]
MADE = ["the cat sat on a mat today", "a dog barks at the moon", "she went away"]
ALL = ["bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"]


def whole(scores, size):
    return {name: float(v[0]) for name, v in scores(np.ones((1, size))).items()}


def test_scores_are_those_of_the_libraries():
    scores = text_scores(ALL, TARGETS, MADE)
    found = whole(scores, 3)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(MADE, [TARGETS]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(MADE, [TARGETS]).score)
    scorer = RougeScorer(["rouge2"])
    pairs = zip(TARGETS, MADE, strict=True)
    each = [scorer.score(*pair)["rouge2"].fmeasure for pair in pairs]
    assert found["rouge2"] == pytest.approx(np.mean(each))
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert scores.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    assert scores.of_rows().argsort().tolist() == [2, 0, 1]
    # A row that is drawn twice counts twice.
    twice = text_scores(ALL, TARGETS + TARGETS[:1], MADE + MADE[:1])
    drawn = scores(np.array([[2, 1, 1]]))
    assert whole(twice, 4) == {n: pytest.approx(float(v[0])) for n, v in drawn.items()}


def test_chinese_is_scored_by_characters():
    scores = text_scores(["bleu", "rouge1"], ["今天天气很好"], ["今天天气不好"], "zh")
    found = whole(scores, 1)
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert "tok:zh" in scores.signatures["bleu"] and found["bleu"] > 20


def test_lead_sentences():
    assert lead_sentence(" One. Two. ") == "One."
    assert lead_sentence("今天好。明天也好。") == "今天好。"
    assert lead_sentence("") == ""


def test_the_report(tmp_path):
    texts = [
        "the cat sat on the mat today. More.",
        "A dog. It barks.",
        "He goes. Home.",
    ]
    split = TextSplit(texts, TARGETS, MADE, [0.9, 0.8, 0.1], 1.0)
    results = write_text_report(
        tmp_path / "eval",
        task="summarization",
        test=split,
        validation=split,
        leaked=[1],
        other=("before", TARGETS),
    )
    assert results["baseline"]["name"] == "lead sentence"
    assert results["other_run"]["metrics"]["rougeL"] == pytest.approx(1)
    compared = results["other_run"]["compared"]["rougeL"]
    assert compared["difference"] < 0
    assert results["test_without_leaked"]["samples"] == 2
    low, high = results["test"]["intervals"]["rougeL"]
    assert low <= results["test"]["metrics"]["rougeL"] <= high
    rows = (tmp_path / "eval/predictions.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["target"] == TARGETS[0]
    report = (tmp_path / "eval/report.md").read_text()
    assert "Against lead sentence" in report and "Against before" in report
