"""Texts changed a little, so that an epoch does not see the same ones again.

Wei and Zou (2019): words change places, are left out, or give way to similar ones. What
a text becomes is a pure function of the seed, the epoch and its row.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfllm.config import flag
from tfllm.core.errors import UserError
from tfllm.text.scripts import CJK

KINDS = ("swap", "delete", "replace")
SHARE = 0.1  # of the words, but one at least
# A Chinese character by itself: who wants words cuts the text before.
_PIECE = re.compile(rf"[{CJK}]|[^\s{CJK}]+|\s+")


@dataclass
class AugmentFlags:
    """Changed copies of the training texts."""

    augment: list[str] = flag(
        [],
        "train on changed copies of the texts too: swap words, delete some, replace "
        "some by similar ones",
        choices=KINDS,
    )
    augment_copies: int = flag(1, "changed copies of each text", minimum=1)
    similar_words: str | None = flag(
        None, "file of word vectors by which words are replaced"
    )

    def with_changed(self, rows: Sequence[dict], seed: int, similar=None) -> list[dict]:
        """Rows and their changed copies; of a pair the first text is changed.

        Raises:
            UserError: Words are to be replaced and nothing says by which.
        """
        found = list(rows)
        if "replace" in self.augment and similar is None:
            raise UserError("--augment replace needs --similar_words FILE")
        texts = [row["text"] for row in rows] if self.augment else []
        for copy in range(self.augment_copies * bool(texts)):
            changed = augmented(texts, self.augment, seed, copy, similar=similar)
            pairs = zip(rows, changed, strict=True)
            found += [row | {"text": text} for row, text in pairs if text.strip()]
        return found


def augment(
    text: str,
    kinds: Sequence[str],
    draw: np.random.Generator,
    similar: Mapping[str, Sequence[str]] | None = None,
    share: float = SHARE,
    cut: Callable[[str], list[str]] = _PIECE.findall,
) -> str:
    """A text in which one of `kinds`, drawn at random, was done.

    Args:
        text: The text.
        kinds: Of `KINDS`.
        draw: Random numbers.
        similar: Words that may stand for a word, for `replace`.
        share: Of the words that change, at least one.
        cut: Cuts a text into pieces which, joined, are the text again.
    """
    pieces = cut(text)
    places = [i for i, piece in enumerate(pieces) if not piece.isspace()]
    if len(places) < 2:
        return text
    kind = kinds[draw.integers(len(kinds))]
    if kind == "replace":
        known = similar or {}
        places = [i for i in places if pieces[i].lower() in known]
    count = min(max(1, round(share * len(places))), len(places))
    if kind == "swap":
        for _ in range(count):
            a, b = draw.choice(places, 2, replace=False)
            pieces[a], pieces[b] = pieces[b], pieces[a]
        return "".join(pieces)
    for place in draw.choice(places, count, replace=False) if places else ():
        others = similar[pieces[place].lower()] if kind == "replace" else ("",)
        pieces[place] = others[draw.integers(len(others))]
    changed = "".join(pieces)
    return re.sub(r"\s{2,}", " ", changed).strip() if kind == "delete" else changed


def augmented(
    texts: Sequence[str], kinds: Sequence[str], seed: int, epoch: int, **options
) -> list[str]:
    """All texts of an epoch changed; see `augment`."""
    return [
        augment(text, kinds, np.random.default_rng([seed, epoch, row]), **options)
        for row, text in enumerate(texts)
    ]


def similar_words(
    words: Sequence[str], vectors: np.ndarray, count: int = 5, least: float = 0.5
) -> dict[str, list[str]]:
    """For each word those whose cosine is at least `least`, the nearest first.

    Args:
        words: Words, such as those of `models.word_vectors.frequent_vectors`.
        vectors: Theirs `[words, size]`.
        count: Similar words of a word at most.
        least: Smallest cosine.
    """
    from tfllm.evaluation.retrieval import nearest
    from tfllm.evaluation.word_vectors import unit_vectors

    unit = unit_vectors(vectors)
    numbers, cosines = nearest(unit, unit, min(len(words), count + 1))
    found = {}
    for own, (near, scores) in enumerate(zip(numbers, cosines, strict=True)):
        pairs = zip(near.tolist(), scores, strict=True)
        others = [words[k] for k, score in pairs if k != own and score >= least]
        if others:
            found[words[own]] = others[:count]
    return found
