"""How well the texts that belong to a query are found among many, by cosine."""

from collections.abc import Mapping, Set

import numpy as np

DEPTHS = (1, 5, 10)
BLOCK = 256  # queries compared at once


def ranks(
    queries: np.ndarray, documents: np.ndarray, relevant: list[list[int]], own=None
) -> list[np.ndarray]:
    """The places, from 1, where the relevant documents of each query stand.

    Of equally near documents the first in order stands first.

    Args:
        queries: Unit vectors `[Q, size]`.
        documents: Unit vectors `[D, size]`.
        relevant: For each query, numbers of documents.
        own: For each query the number of the document that is itself and is left out,
            or -1; None where queries are no documents.

    Returns:
        For each query int64, ascending.
    """
    found = []
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ documents.T
        if own is not None:
            rows = np.arange(len(scores))
            here = np.asarray(own[start : start + BLOCK])
            scores[rows[here >= 0], here[here >= 0]] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        places = np.empty_like(order)
        np.put_along_axis(places, order, np.arange(1, order.shape[1] + 1)[None], 1)
        for row, wanted in zip(places, relevant[start : start + BLOCK], strict=True):
            found.append(np.sort(row[wanted]))
    return found


def retrieval_rows(found: list[np.ndarray]) -> np.ndarray:
    """The metrics of each query `[Q, len(retrieval_names())]`.

    `ndcg_at_10` (Järvelin and Kekäläinen, 2002) counts a text found at place r as
    `1 / log2(1 + r)`, over what the best order would give; `mrr` is one over the first
    place; `recall_at_k` is the share of the relevant texts, of k at most, among the
    first k.
    """
    gains = 1 / np.log2(1 + np.arange(1, DEPTHS[-1] + 1))
    rows = []
    for places in found:
        best = gains[: len(places)].sum()
        hits = places[places <= DEPTHS[-1]]
        row = [gains[hits - 1].sum() / best, 1 / places[0]]
        rows.append(row + [np.sum(hits <= k) / min(k, len(places)) for k in DEPTHS])
    return np.array(rows)


def retrieval_metrics(rows: np.ndarray) -> dict[str, float]:
    """Means over queries, by name."""
    names = ["ndcg_at_10", "mrr", *(f"recall_at_{depth}" for depth in DEPTHS)]
    return dict(zip(names, map(float, rows.mean(0)), strict=True))


def nearest(queries: np.ndarray, documents: np.ndarray, count: int = 1):
    """The nearest documents: numbers and cosines `[Q, count]`, the nearest first."""
    parts = []
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ documents.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        parts.append((order, np.take_along_axis(scores, order, 1)))
    numbers, scores = zip(*parts, strict=True)
    return np.concatenate(numbers), np.concatenate(scores)


def collection(relevant: Mapping[int, Set[int]], documents) -> tuple:
    """Queries, documents and what belongs together, as `ranks` takes them.

    Args:
        relevant: Number of a query's text → numbers of the texts that belong to it.
        documents: Numbers of the texts to search.

    Returns:
        Numbers of the queries `[Q]` and of the documents `[D]`, `relevant` and `own`.
    """
    documents = np.unique(np.asarray(list(documents), np.int64))
    queries = np.array(sorted(relevant), np.int64)
    wanted = [
        np.searchsorted(documents, sorted(relevant[query])).tolist()
        for query in queries.tolist()
    ]
    at = np.minimum(np.searchsorted(documents, queries), len(documents) - 1)
    own = np.where(documents[at] == queries, at, -1)
    return queries, documents, wanted, own
