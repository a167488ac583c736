"""Spans and the tags that write them: BIO, IOB1, BIOES, BMES, BILOU.

A span is `(start, end, type)`; of words, of tokens or of characters, `end` behind the
last one. Whatever the form of tags in a file, tfllm has spans inside.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SCHEMES = {"bio": "BI", "bioes": "BIES"}
NAMELESS = "SPAN"  # the type of tags without one: B, I, O
TAG = re.compile(r"(?:([BIOEMSLU])[-_](.+)|([BIOEMSLU]))")


class Span(NamedTuple):
    """A part of a text with a type."""

    start: int
    end: int
    type: str


def are_tags(tags: Sequence[str]) -> bool:
    """Whether these are tags of spans, not one name a word (as parts of speech)."""
    return "O" in tags and all(map(TAG.fullmatch, tags))


def scheme_of(rows: Sequence[Sequence[str]]) -> str:
    """The usual name of the tags' form."""
    letters = {tag[0] for row in rows for tag in row}
    for name, own in (("BMES", "M"), ("BILOU", "LU"), ("BIOES", "ES")):
        if letters & set(own):
            return name
    begun = {
        tag[0]
        for row in rows
        for before, tag in zip(["O", *row], row, strict=False)
        if before[1:] != tag[1:]
    }
    return "IOB1" if "I" in begun and "B" not in begun else "BIO"


def read_tags(tags: Sequence[str]) -> list[Span]:
    """The spans of words that tags of any form write.

    A tag that goes on with what was not begun begins it, which is what IOB1 means.
    """
    spans, start, kind = [], None, None
    for place, tag in enumerate([*tags, "O"]):
        found = TAG.fullmatch(tag)
        letter, name = found[1] or found[3], found[2] or NAMELESS
        goes_on = start is not None and letter in "IMEL" and name == kind
        if start is not None and not goes_on:
            spans.append(Span(start, place, kind))
            start = None
        if letter != "O" and not goes_on:
            start, kind = place, name
        if letter in "ESLU":
            spans.append(Span(start, place + 1, kind))
            start = None
    return spans


def write_tags(spans: Sequence[Span], size: int, scheme: str = "bio") -> list[str]:
    """Tags of words for spans that lie side by side."""
    tags, whole = ["O"] * size, scheme == "bioes"
    for start, end, kind in spans:
        letters = ["B"] + ["I"] * (end - start - 1)
        if whole:
            letters[-1] = "E" if end - start > 1 else "S"
        tags[start:end] = [f"{letter}-{kind}" for letter in letters]
    return tags


def tag_names(types: Sequence[str], scheme: str) -> list[str]:
    """All tags of a form, `O` first."""
    return ["O"] + [f"{letter}-{kind}" for kind in types for letter in SCHEMES[scheme]]


def allowed(tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which tag may follow which, `[K, K]`, and which may be first, `[K]`."""
    letters, kinds = np.array([t[0] for t in tags]), np.array([t[2:] for t in tags])
    inside = np.isin(letters, ["I", "E"])
    opened = np.isin(letters, ["B", "I"])
    same = kinds[:, None] == kinds
    must_go_on = opened & ("E" in letters)
    moves = np.where(inside, opened[:, None] & same, ~must_go_on[:, None])
    return moves, ~inside


def covered(spans: Sequence[Span], pieces: Sequence[tuple[int, int]]) -> list[Span]:
    """Spans of characters as spans of the pieces (words, tokens) that begin in them.

    Args:
        spans: In order, side by side.
        pieces: `(start, end)` in characters, in order.
    """
    starts = np.array([start for start, _ in pieces], np.int64)
    found = (
        Span(*np.searchsorted(starts, [start, end]).tolist(), kind)
        for start, end, kind in spans
    )
    return [span for span in found if span.start < span.end]


def over(spans: Sequence[Span], pieces: Sequence[tuple[int, int]]) -> list[Span]:
    """Spans of pieces as spans of characters."""
    return [Span(pieces[s][0], pieces[e - 1][1], kind) for s, e, kind in spans]
