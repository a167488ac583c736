"""Retrieval metrics against hand-made cases and scikit-learn."""

import numpy as np
import pytest

from tfllm.evaluation.retrieval import (
    collection,
    nearest,
    ranks,
    retrieval_metrics,
    retrieval_rows,
)


def test_metrics_of_places_worked_out_by_hand():
    rows = retrieval_rows([np.array([1, 4]), np.array([2]), np.array([11, 30])])
    best = 1 + 1 / np.log2(3)
    assert rows[0] == pytest.approx([(1 + 1 / np.log2(5)) / best, 1, 1, 1, 1])
    assert rows[1] == pytest.approx([1 / np.log2(3), 0.5, 0, 1, 1])
    assert rows[2] == pytest.approx([0, 1 / 11, 0, 0, 0])
    means = retrieval_metrics(rows)
    assert means["mrr"] == pytest.approx((1 + 0.5 + 1 / 11) / 3)
    assert means["recall_at_1"] == pytest.approx(1 / 3)


def test_ndcg_is_that_of_scikit_learn():
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    draw = np.random.default_rng(0)
    unit = draw.normal(size=(340, 8)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    queries, documents = unit[:300], unit[300:]  # more than one block
    relevant = [sorted(draw.choice(40, 3, replace=False)) for _ in queries]
    truth = np.zeros((300, 40))
    for row, wanted in zip(truth, relevant, strict=True):
        row[wanted] = 1
    rows = retrieval_rows(ranks(queries, documents, relevant))
    expected = ndcg_score(truth, queries @ documents.T, k=10)
    assert rows[:, 0].mean() == pytest.approx(expected, abs=1e-6)


def test_a_query_does_not_find_itself_and_of_equals_the_first_is_first():
    texts = np.eye(3, dtype=np.float32)[[0, 0, 1, 0]]
    found = ranks(texts, texts, [[1], [0], [3], [1]], own=np.arange(4))
    assert [places.tolist() for places in found] == [[1], [1], [3], [2]]
    numbers, cosines = nearest(texts[:1], texts, 2)
    assert numbers.tolist() == [[0, 1]] and cosines.tolist() == [[1.0, 1.0]]


def test_a_collection_numbers_its_documents():
    queries, documents, wanted, own = collection({4: {9, 2}, 7: {4}}, {9, 2, 4})
    assert queries.tolist() == [4, 7] and documents.tolist() == [2, 4, 9]
    assert wanted == [[0, 2], [1]] and own.tolist() == [1, -1]
