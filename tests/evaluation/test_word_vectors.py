"""Analogies and similarities of words."""

import gzip
import warnings

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.evaluation.word_vectors import (
    answer_analogies,
    question_arrays,
    question_metric,
    read_questions,
    similarities,
)

WORDS = ["king", "man", "woman", "queen", "apple"]
VECTORS = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1], [-1, 0, 0]], "float32")


def test_the_answer_is_the_nearest_other_word():
    rows = [
        ("man", "king", "woman", "queen"),
        ("man", "king", "woman", "apple"),
        ("man", "king", "woman", "prince"),
    ]
    assert answer_analogies(WORDS, VECTORS, rows).tolist() == [True, False]
    assert len(answer_analogies(WORDS, VECTORS, rows[2:])) == 0
    capitals = [tuple(word.capitalize() for word in row) for row in rows]
    assert answer_analogies(WORDS, VECTORS, capitals).tolist() == [True, False]


def test_similarities_are_ranked():
    rows = [("king", "man", 8.0), ("man", "apple", 1.0), ("king", "queen", 6.0)]
    found = similarities(WORDS, VECTORS, [*rows, ("king", "pear", 3.0)])
    assert found[0] == pytest.approx([0.5**0.5, -1, 0.5])
    assert question_metric(found) == 1.0
    assert question_metric(found[:, :2]) == 0.0  # of two pairs nothing can be said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert question_metric(np.ones((2, 4))) == 0.0


def test_files_are_told_apart(tmp_path):
    (tmp_path / "a.txt").write_text(": one\nman king woman queen\n")
    with gzip.open(tmp_path / "b.tsv.gz", "wt") as file:
        file.write("# head\nking\tman\t7.5\nman\tapple\t1\n")
    files = {k: read_questions(tmp_path / k) for k in ("a.txt", "b.tsv.gz")}
    assert files["a.txt"] == ("analogy", [("man", "king", "woman", "queen")])
    assert files["b.tsv.gz"][1][0] == ("king", "man", 7.5)
    found = question_arrays(WORDS, VECTORS, files)
    assert found["a.txt"].tolist() == [1.0] and found["b.tsv.gz"].shape == (2, 2)
    for content, words in (
        ("a b\n", "bad.txt:1"),
        ("a b c\n", "bad.txt:1"),
        ("a b 1\na b c d\n", "bad.txt:2"),
        ("# x\n", "no questions"),
    ):
        (tmp_path / "bad.txt").write_text(content)
        with pytest.raises(UserError) as error:
            read_questions(tmp_path / "bad.txt")
        assert words in str(error.value)


def test_real_files(shared):
    kind, rows = read_questions(shared / "word_similarity/questions-words.txt.gz")
    assert kind == "analogy" and len(rows) == 19544
    kind, rows = read_questions(shared / "word_similarity/wordsim353.tsv")
    assert kind == "similarity" and len(rows) == 353
    kind, rows = read_questions(shared / "word_similarity/simlex999.txt")
    assert kind == "similarity" and len(rows) == 999
