"""Hidden words for a masked language model: 80 % mask, 10 % random, 10 % as they are.

A batch's masks are drawn from a generator that is made from (seed, step, part), so they
differ in every epoch and yet a resumed run draws the same ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfllm.text import Tokenizer

MASKED, RANDOM = 0.8, 0.1  # Devlin et al., 2019, section 3.1


class Hidden(NamedTuple):
    """A batch whose words were hidden.

    Attributes:
        token_ids: int32 `[rows, length]`, with masks and random tokens.
        places: int32 `[rows, P]`, ascending; 0 where there is none.
        targets: int32 `[rows, P]`, what stood there.
        weights: float32 `[rows, P]`, 1 for a place, 0 for none.
    """

    token_ids: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class Masking:
    """Hides words.

    Args:
        tokenizer: Has a mask token.
        rate: Share of the tokens that are hidden, special ones not counted; a row that
            has any hides one at least.
        whole_words: Hides all pieces of a word, or none.
    """

    def __init__(self, tokenizer: Tokenizer, rate: float, whole_words: bool):
        self.rate, self.whole_words = rate, whole_words
        self.mask_id = tokenizer.mask_id
        size = tokenizer.vocabulary_size
        self.special = np.zeros(size, bool)
        self.special[list(tokenizer.special_ids)] = True
        self.ordinary = np.flatnonzero(~self.special)
        inside = [token.startswith("##") for token in tokenizer.tokens]
        self.inside = np.array(inside) & (tokenizer.kind == "wordpiece")

    def places(self, length: int) -> int:
        """P, the places of a row of `length`."""
        return max(1, math.ceil(self.rate * length))

    def hide(
        self,
        token_ids: np.ndarray,
        padding_mask: np.ndarray,
        key: Sequence[int],
        word_starts: np.ndarray | None = None,
    ) -> Hidden:
        """Hides words, as a pure function of the arguments.

        Args:
            token_ids: int32 `[rows, length]`.
            padding_mask: int32 `[rows, length]`, 1 for a token.
            key: Integers that no other batch has.
            word_starts: bool `[rows, length]`, where words begin; by the vocabulary's
                `##` when absent.
        """
        draw = np.random.default_rng(list(key))
        rows, length = token_ids.shape
        count = self.places(length)
        can = (padding_mask > 0) & ~self.special[token_ids]
        if not self.whole_words:
            starts = np.ones_like(can)
        elif word_starts is None:
            starts = ~self.inside[token_ids]
        else:
            starts = word_starts.astype(bool)
        places, weights = np.zeros((rows, count), np.int32), np.zeros((rows, count))
        for row in range(rows):
            chosen = self._choose(np.flatnonzero(can[row]), starts[row], draw)
            places[row, : len(chosen)] = chosen
            weights[row, : len(chosen)] = 1
        targets = np.take_along_axis(token_ids, places, 1) * (weights > 0)
        lot = draw.random((rows, count))
        others = self.ordinary[draw.integers(len(self.ordinary), size=(rows, count))]
        new = np.where(lot < MASKED, self.mask_id, targets)
        new = np.where((lot >= MASKED) & (lot < MASKED + RANDOM), others, new)
        at_row, at = np.nonzero(weights)
        hidden = token_ids.copy()
        hidden[at_row, places[at_row, at]] = new[at_row, at]
        return Hidden(
            hidden, places, targets.astype(np.int32), weights.astype(np.float32)
        )

    def _choose(self, can: np.ndarray, starts: np.ndarray, draw) -> np.ndarray:
        """Places of one row: words in random order while they fit."""
        if not len(can):
            return can
        begins = np.flatnonzero(starts[can] | (np.diff(can, prepend=-2) != 1))
        ends = np.append(begins[1:], len(can))
        wanted, taken = max(1, round(self.rate * len(can))), []
        order = draw.permutation(len(begins)).tolist()
        left = wanted
        for word in order:
            size = int(ends[word] - begins[word])
            if size <= left:
                taken.append(can[begins[word] : ends[word]])
                left -= size
            if not left:
                break
        if not taken:  # every word is longer than what may be hidden
            taken.append(can[begins[order[0]] :][:wanted])
        return np.sort(np.concatenate(taken))
