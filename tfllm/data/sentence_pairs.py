"""Pairs of text segments, for BERT's next sentence and ALBERT's sentence order.

Sentences of a document are packed into rows; a row is cut in two at the end of a
sentence. Where the second part is to be another document's, it is the second part of
another row, one of equal length if there is any. So every part is used once, and
neither a part's length nor its place in a document gives the answer away, as it would
if only the wrong ones were drawn at random (Devlin et al., 2019, appendix A.2).

Pairs are places in the corpus: nothing is copied until a batch is made.
"""

import random
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tfllm.config import flag
from tfllm.core.errors import UserError
from tfllm.data.batching import Micro
from tfllm.data.cache import ArrayWriter, cached_arrays
from tfllm.data.columns import spans as places_of
from tfllm.data.corpus import Corpus
from tfllm.text import Tokenizer

PAIRED = ("next_sentence", "sentence_order")  # these judge two segments
OBJECTIVES = (*PAIRED, "replaced_tokens", "none")
SHORT = 0.1  # share of rows that are to be shorter, so that such are known too
CUT = (0.35, 0.65)  # a row is cut at the end of the sentence that is nearest to here
TRIES = 8  # for a second part that is another document's


@dataclass
class MaskingFlags:
    """What is learned from the text, and from how much of it."""

    objective: str = flag(
        "next_sentence",
        "what is learned beside masked words; replaced_tokens "
        "(ELECTRA) learns most from little text",
        choices=OBJECTIVES,
    )
    mask_rate: float = flag(
        0.15, "share of the tokens that are hidden", minimum=0.01, maximum=0.9
    )
    whole_words: str = flag(
        "pieces",
        "what is hidden together: none (each token alone), the pieces of a word, or "
        "words as a segmenter finds them (Chinese)",
        choices=["none", "pieces", "words"],
    )
    copies: int | None = flag(
        None, "times an epoch goes through the text, each with other pairs", minimum=1
    )


class PairColumns:
    """Rows of one or two segments, gathered from a corpus; see `Columns`.

    Args:
        corpus: Encoded text.
        spans: int64 `[n, 4]`: begin and end of the first and of the second segment,
            which may be empty.
        labels: int8 `[n]`: 0 for the right pair, 1 for the wrong one, -1 for none.
        tokenizer: Gives the tokens around the segments.
    """

    def __init__(self, corpus: Corpus, spans, labels, tokenizer: Tokenizer):
        self.corpus, self.spans, self.labels = corpus, spans, labels
        items, segments = zip(*tokenizer.pair.items, strict=True)
        first, second = items.index("A"), items.index("B")
        self._head, self._tail = items[:first], items[second + 1 :]
        self._middle = items[first + 1 : second]
        self._segment, self._pad = segments[second], tokenizer.pad_id
        sizes = spans[:, 1::2] - spans[:, ::2]
        added = len(self._head) + len(self._tail)
        self.lengths = sizes.sum(1) + added + len(self._middle) * (sizes[:, 1] > 0)

    def __len__(self) -> int:
        return len(self.spans)

    def gather(
        self, micro: Micro, pad_values: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """One micro-batch.

        Returns:
            int32 `[rows, length]`: `token_ids`, `segment_ids`, `padding_mask`, and
            `word_starts` where the corpus knows words; `[rows]`: `next_sentence` int32,
            `next_sentence_weight` and `weight` float32.
        """
        rows, length = micro.num_rows, micro.length
        chosen = self.spans[micro.indices]
        size_a, size_b = (chosen[:, 1::2] - chosen[:, ::2]).T
        pair = size_b > 0
        names = ["token_ids", "segment_ids", "padding_mask"]
        sources = {"token_ids": self.corpus.token_ids}
        if self.corpus.word_starts is not None:
            sources["word_starts"] = self.corpus.word_starts
            names.append("word_starts")
        flat = {name: np.zeros(rows * length, np.int32) for name in names}
        flat["token_ids"][:] = self._pad
        begin_a = micro.rows * length + len(self._head)
        begin_b = begin_a + size_a + len(self._middle) * pair
        segments = (begin_a, chosen[:, 0], size_a), (begin_b, chosen[:, 2], size_b)
        for begin, source, size in segments:
            targets, origins = places_of(begin, size), places_of(source, size)
            for name, values in sources.items():
                flat[name][targets] = values[origins]
        added = [(begin_a - len(self._head), self._head)]
        added += [
            ((begin_a + size_a)[pair], self._middle),
            (begin_b + size_b, self._tail),
        ]
        for begin, ids in added:
            for place, token_id in enumerate(ids):
                flat["token_ids"][begin + place] = token_id
        end = begin_b + size_b + len(self._tail)
        first = micro.rows * length
        flat["padding_mask"][places_of(first, end - first)] = 1
        second = places_of(begin_b, (end - begin_b) * pair)
        flat["segment_ids"][second] = self._segment
        batch = {name: values.reshape(rows, length) for name, values in flat.items()}
        labels = self.labels[micro.indices]
        batch["next_sentence"] = np.zeros(rows, np.int32)
        batch["next_sentence"][micro.rows] = np.maximum(labels, 0)
        batch["next_sentence_weight"] = np.zeros(rows, np.float32)
        batch["next_sentence_weight"][micro.rows] = labels >= 0
        batch["weight"] = np.zeros(rows, np.float32)
        batch["weight"][micro.rows] = 1
        return batch


def make_pairs(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    objective: str = "next_sentence",
    seed: int = 0,
    copies: int = 1,
) -> PairColumns:
    """Cuts a corpus into rows, the same for the same arguments, kept on the disk.

    Args:
        corpus: Encoded text.
        tokenizer: That of the corpus; it has tokens to put around a pair.
        max_length: Longest row in tokens.
        objective: `next_sentence`: half of the second segments are another document's;
            `sentence_order`: half of the pairs are swapped; `none` and
            `replaced_tokens`: one segment a row.
        seed: Of all choices.
        copies: Goes through the corpus so often, each time with other cuts and pairs.

    Raises:
        UserError: `max_length` leaves no room, or there is a single document.
    """
    budget = tokenizer.budget(tokenizer.pair, max_length)
    if budget < 8:
        raise UserError(f"--max_length {max_length} is too short for a pair")
    if objective not in PAIRED:  # all with one segment share their rows
        objective = "none"
    if objective == "next_sentence" and corpus.size < 2:
        raise UserError(
            "the next sentence needs two documents at least, and there is one",
            fix="Put an empty line between documents, or use --objective none",
        )
    # Sentences that no half of a row holds are cut on.
    longest = budget if objective == "none" else budget // 2

    def write(writer: ArrayWriter) -> None:
        offsets, documents = _pieces(corpus, longest)
        for copy in range(copies):
            rows = _rows(offsets, documents, budget, objective, f"{seed} {copy}")
            spans, labels = _labelled(*rows, objective, (seed, copy))
            writer.append("spans", spans)
            writer.append("labels", labels)

    key = {"objective": objective, "seed": seed, "copies": copies, "budget": budget}
    found = cached_arrays({"pairs": 2} | key | corpus.key, write)
    return PairColumns(corpus, found["spans"], found["labels"], tokenizer)


def _pieces(corpus: Corpus, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of sentences cut to `longest`, and the pieces that documents begin at."""
    begins, lengths = corpus.sentences[:-1], np.diff(corpus.sentences)
    counts = -(-lengths // longest)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    number = np.arange(firsts[-1]) - np.repeat(firsts[:-1], counts)
    within = np.repeat(lengths, counts) * number // np.repeat(counts, counts)
    offsets = np.concatenate(
        [np.repeat(begins, counts) + within, corpus.sentences[-1:]]
    )
    return offsets, firsts[corpus.documents]


def _rows(offsets, documents, budget: int, objective: str, seed: str):
    """Whole pieces packed into rows of at most `budget`, and cut in two.

    Returns:
        spans int64 `[n, 4]`, and the document of each row.
    """
    pick, spans, owners = random.Random(seed), array("q"), array("q")
    for number in range(len(documents) - 1):
        place, end = int(documents[number]), int(documents[number + 1])
        # The first row of a document may have any length: other cuts in every copy.
        target = pick.randint(budget // 4, budget)
        while place < end:
            limit = int(offsets[place]) + target
            stop = max(place + 1, bisect_right(offsets, limit, place, end + 1) - 1)
            cut = stop
            if objective != "none" and stop - place > 1:
                begin, size = int(offsets[place]), int(offsets[stop] - offsets[place])
                aim = begin + size * pick.uniform(*CUT)
                cut = bisect_right(offsets, aim, place + 1, stop)
                near = cut > place + 1 and aim - offsets[cut - 1] < offsets[cut] - aim
                cut = min(cut - near, stop - 1)
            a, b, c = (int(offsets[i]) for i in (place, cut, stop))
            spans.extend((a, b, b, c))
            owners.append(number)
            place = stop
            short = pick.random() < SHORT
            target = pick.randint(budget // 4, budget) if short else budget
    return np.array(spans, np.int64).reshape(-1, 4), np.array(owners, np.int64)


def _labelled(spans, owners, objective: str, seed) -> tuple[np.ndarray, np.ndarray]:
    """Half of the pairs become wrong ones. Returns spans and labels int8."""
    draw = np.random.default_rng(seed)
    labels = np.where(spans[:, 3] > spans[:, 2], 0, -1).astype(np.int8)
    pairs = np.flatnonzero(labels == 0)
    wrong = draw.permutation(pairs)[: len(pairs) // 2]
    if objective == "sentence_order":
        spans[wrong] = spans[wrong][:, [2, 3, 0, 1]]
        labels[wrong] = 1
    elif objective == "next_sentence" and len(wrong):
        room = spans[:, 3] - spans[:, 0]
        # Neighbours in the order of the second part's length give each other theirs.
        sizes = (spans[:, 3] - spans[:, 2])[wrong]
        wrong = wrong[np.argsort(sizes, kind="stable")]
        other, left = wrong.copy(), np.arange(len(wrong))
        for shift in range(1, TRIES + 1):
            left = left[owners[wrong[left]] == owners[other[left]]]
            other[left] = wrong[(left + shift) % len(wrong)]
        found = owners[wrong] != owners[other]
        wrong, other = wrong[found], other[found]
        taken = spans[other, 2:]
        # Never longer than the row was.
        most = np.maximum(room.max() - (spans[wrong, 1] - spans[wrong, 0]), 1)
        taken[:, 1] = np.minimum(taken[:, 1], taken[:, 0] + most)
        spans[wrong, 2:] = taken
        labels[wrong] = 1
    return spans, labels
