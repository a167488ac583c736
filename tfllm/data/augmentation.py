"""Texts changed a little, so that training sees more than the ones that there are.

Wei and Zou (2019): words change places, are left out, or give way to similar ones.
Sennrich et al. (2016): a text goes into another language and back. What a text becomes
is a pure function of the seed, the copy and its row.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfllm.config import flag
from tfllm.core.errors import UserError
from tfllm.text import Tokenizer
from tfllm.text.scripts import CJK

KINDS = ("swap", "delete", "replace", "translate")
SHARE = 0.1  # of the words, but one at least
WORDS = 50_000  # that a segmenter of Chinese knows
# A Chinese character by itself: who wants words cuts the text before.
_PIECE = re.compile(rf"[{CJK}]|[^\s{CJK}]+|\s+")
_EDGES = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)


@dataclass
class AugmentFlags:
    """Changed copies of the training texts."""

    augment: list[str] = flag(
        [],
        "train on changed copies of the texts too: swap words, delete some, replace "
        "some by similar ones, translate there and back",
        choices=KINDS,
    )
    augment_copies: int = flag(1, "changed copies of each text", minimum=1)
    similar_words: str | None = flag(
        None, "file of word vectors by which words are replaced"
    )
    translators: list[str] = flag(
        [], "two runs of recipes/translation.py for translate: there, and back"
    )

    def __post_init__(self):
        needs = {"replace": "similar_words", "translate": "translators"}
        for kind, name in needs.items():
            given = getattr(self, name)
            if kind in self.augment and not given:
                raise UserError(f"--augment {kind} needs --{name}")
            if given and kind not in self.augment:
                raise UserError(f"--{name} is for --augment {kind}")
        if self.augment_copies > 1 and not self.augment:
            raise UserError("--augment_copies is for --augment")
        if self.translators and len(self.translators) != 2:
            raise UserError(
                f"--translators wants two runs, there and back, not "
                f"{len(self.translators)}",
                fix="The way back is recipes/translation.py with --reverse",
            )


def changed_copies(
    rows: Sequence[dict],
    kinds: Sequence[str],
    seed: int,
    copies: int = 1,
    *,
    translate: Callable[[list[str], int], list[str]] | None = None,
    **options,
) -> list[tuple[dict, dict]]:
    """Records, each with a changed copy; those that came out as they were are left out.

    The field `text` changes: of a pair the first text, of a question and its context
    the question. Of tagged records only words without a tag do, and the spans move;
    they cannot be translated.

    Args:
        rows: Records.
        kinds: Of `KINDS`; each copy of a record draws one.
        seed: Of what is drawn.
        copies: Of each record.
        translate: Texts and the number of their copy to texts there and back.
        **options: `similar`, `share` and `cut` of `augment`.

    Raises:
        UserError: Tagged records are to be translated.
    """
    if "translate" in kinds and "words" in rows[0]:
        raise UserError("--augment translate does not go with tags: they would be lost")
    found = []
    for copy in range(copies):
        draws = [np.random.default_rng([seed, copy, i]) for i in range(len(rows))]
        chosen = [kinds[draw.integers(len(kinds))] for draw in draws]
        away = [i for i, kind in enumerate(chosen) if kind == "translate"]
        back = translate([rows[i]["text"] for i in away], copy) if away else []
        back = dict(zip(away, back, strict=True))
        for i, (row, kind, draw) in enumerate(zip(rows, chosen, draws, strict=True)):
            if i in back:
                changed = row | {"text": back[i]}
            elif "words" in row:
                changed = augment_tagged(row, kind, draw, **options)
            else:
                changed = row | {"text": augment(row["text"], kind, draw, **options)}
            if changed["text"].strip() and changed["text"] != row["text"]:
                found.append((row, changed))
    return found


def augment(
    text: str,
    kind: str,
    draw: np.random.Generator,
    similar: Mapping[str, Sequence[str]] | None = None,
    share: float = SHARE,
    cut: Callable[[str], list[str]] = _PIECE.findall,
) -> str:
    """A text of which some words changed.

    Args:
        text: The text.
        kind: `swap`, `delete` or `replace`.
        draw: Random numbers.
        similar: Words that may stand for a word, for `replace`.
        share: Of the words that change, at least one.
        cut: Cuts a text into pieces which, joined, are the text again.
    """
    pieces = cut(text)
    free = [i for i, piece in enumerate(pieces) if not piece.isspace()]
    return "".join(change(pieces, free, kind, draw, similar, share))


def augment_tagged(
    row: dict, kind: str, draw: np.random.Generator, similar=None, share=SHARE
) -> dict:
    """A record of `data.tagged` of which some words without a tag changed.

    Its own words are the pieces; for the arguments see `augment`.
    """
    text, words, spans = row["text"], row["words"], row["entities"]
    bounds = [0, *(place for word in words for place in word), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]  # gap, word, gap, …
    free = [
        2 * i + 1
        for i, (start, end) in enumerate(words)
        if not any(span.start < end and start < span.end for span in spans)
    ]
    pieces = change(pieces, free, kind, draw, similar, share)
    new = [0, *np.cumsum([len(piece) for piece in pieces]).tolist()]
    moved = {old: new[i] for i, old in enumerate(bounds) if i % 2}
    ended = {old: new[i] for i, old in enumerate(bounds) if i % 2 == 0}
    return row | {
        "text": "".join(pieces),
        "words": [
            (a, b) for a, b in zip(new[1:-1:2], new[2:-1:2], strict=True) if a < b
        ],
        "entities": [
            span._replace(start=moved[span.start], end=ended[span.end])
            for span in spans
        ],
    }


def change(
    pieces: Sequence[str],
    free: Sequence[int],
    kind: str,
    draw: np.random.Generator,
    similar: Mapping[str, Sequence[str]] | None = None,
    share: float = SHARE,
) -> list[str]:
    """Pieces of a text of which some changed; as many, some of them empty.

    Args:
        pieces: Words and what stands between them.
        free: Places of the words that may change.
        kind, draw, similar, share: See `augment`.
    """
    before, pieces = pieces, list(pieces)
    if kind == "replace":
        others = {i: _similar(pieces[i], similar or {}) for i in free}
        free = [i for i in free if others[i]]
    if len(free) < (1 if kind == "replace" else 2):
        return pieces
    count = min(max(1, round(share * len(free))), len(free))
    if kind == "swap":
        for _ in range(count):
            a, b = draw.choice(free, 2, replace=False)
            pieces[a], pieces[b] = pieces[b], pieces[a]
        return _apart(before, pieces)
    for place in draw.choice(free, count, replace=False):
        if kind == "replace":
            pieces[place] = others[place][draw.integers(len(others[place]))]
            continue
        pieces[place] = ""
        beside = [i for i in (place - 1, place + 1) if 0 <= i < len(pieces)]
        if gap := [i for i in beside if pieces[i].isspace()]:
            pieces[gap[0]] = ""
    return _apart(before, pieces)


def _similar(piece: str, known: Mapping[str, Sequence[str]]) -> list[str]:
    """What may stand for a piece; marks around a word stay."""
    start, word, end = _EDGES.fullmatch(piece).groups()
    found = known.get(word) or known.get(word.lower(), ())
    return [start + other + end for other in found]


def _apart(before: Sequence[str], pieces: list[str]) -> list[str]:
    """Keeps Latin words that have come together apart, and no gap at an end."""
    left = [i for i, piece in enumerate(pieces) if piece]
    for a, b in itertools.pairwise(left):
        junction = pieces[a][-1] + pieces[b][0]
        same = pieces[a : b + 1] == list(before[a : b + 1])
        if junction.isascii() and junction.isalnum() and not same:
            if b - 1 > a:  # an empty gap, or what a word has left
                pieces[b - 1] = " "
            else:
                pieces[b] = " " + pieces[b]
    for end, place in ((0, left[:1]), (-1, left[-1:])):
        if place and pieces[place[0]].isspace() and not before[end].isspace():
            pieces[place[0]] = ""
    return pieces


def word_cutter(texts: Sequence[str], dictionary=None) -> Callable[[str], list[str]]:
    """Cuts text as `augment` wants it, Chinese into words.

    Args:
        texts: What the words are learned from.
        dictionary: Of Chinese words, see `text.training.train`.
    """
    segmenter = Tokenizer.train(texts, "words", WORDS, dictionary=dictionary)

    def cut(text: str) -> list[str]:
        pieces, end = [], 0
        for start, stop in segmenter.encode_with_offsets([text])[1][0]:
            pieces += [text[end:start], text[start:stop]]
            end = stop
        return [piece for piece in [*pieces, text[end:]] if piece]

    return cut


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
