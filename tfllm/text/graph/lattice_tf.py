"""Viterbi in the graph, for all words at once."""

import numpy as np
import tensorflow as tf

from tfllm.text.graph.arrays_tf import (
    chain,
    fused,
    growing,
    indices,
    outside,
    placed,
    tiles,
)
from tfllm.text.graph.tables_tf import Trie


class Lattice(tf.Module):
    """The most probable path through scored pieces (Viterbi), as `Unigram` finds it.

    Scores are such that sums of them are exact (`definition.complete`), so the order
    of adding does not matter. Among equal paths the longer last piece wins.

    Args:
        pieces: Piece to (id, score).
        unk_id: What a character without a piece becomes; several in a row are one.
        unk_score: The score of such a character.
    """

    def __init__(self, pieces: dict[str, tuple[int, float]], unk_id, unk_score):
        super().__init__()
        ordered = sorted(pieces)
        self.trie = Trie({piece: i for i, piece in enumerate(ordered)})
        self.ids = tf.constant([*(pieces[p][0] for p in ordered), unk_id], tf.int32)
        scores = [*(pieces[p][1] for p in ordered), unk_score]
        self.scores = tf.constant(scores, tf.float64)
        self.unknown, self.unk_id = len(ordered), unk_id

    def __call__(self, codes, splits):
        """Cuts words: the first and last index of each piece, and its id."""
        size, depth = tf.size(codes), self.trie.depth
        every = tf.range(size)
        found, longest = self.trie(codes, splits)
        alone = tf.where(found[:, :1] < 0, self.unknown, found[:, :1])
        found, longest = tf.concat([alone, found[:, 1:]], 1), tf.maximum(longest, 1)
        never = tf.constant(-np.inf, tf.float64)
        score = tf.gather(self.scores, tf.maximum(found, 0))
        score = tf.where(found < 0, never, score)
        # Nothing spans a cut: between cuts the paths are found side by side.
        segment = indices(outside(every + 1, longest - 1, size))
        length = tf.concat([segment[1:], [size]], 0) - segment

        def step(t, segment, length, best, chosen, ends):
            # best[:, j]: the score of the best path to j characters further on.
            sums = best[:, :1] + tf.gather(score, segment + t)
            best = tf.pad(best[:, 1:], [[0, 0], [0, 1]], constant_values=-np.inf)
            chosen = tf.pad(chosen[:, 1:], [[0, 0], [0, 1]])
            better = sums > best  # not >=: of equal paths the longer last piece wins
            best = tf.where(better, sums, best)
            chosen = tf.where(better, self.trie.lengths, chosen)
            ends = ends.write(t, tf.stack([segment + t, chosen[:, 0]], 1))
            more = indices(length > t + 1)
            parts = (tf.gather(v, more) for v in (segment, length, best, chosen))
            return t + 1, *parts, ends

        count = tf.size(segment)
        best = tf.fill([count, depth], never)
        best = tf.concat([tf.zeros([count, 1], tf.float64), best[:, 1:]], 1)
        flat, table = tf.TensorShape([None]), tf.TensorShape([None, None])
        chosen = tf.zeros([count, depth], tf.int32)
        *_, ends = tf.while_loop(
            lambda t, segment, *_: tf.size(segment) > 0,
            step,
            (0, segment, length, best, chosen, growing([None, 2])),
            shape_invariants=(tf.TensorShape([]), flat, flat, table, table, None),
        )
        pairs = ends.concat()
        chosen = placed(pairs[:, 0], pairs[:, 1], size)
        # Backwards from the ends of the segments: mirrored, so that a jump goes up.
        jump = tf.reverse(size - 1 - (every - chosen), [0])
        last = segment + length - 1
        ends = size - 1 - chain(size - 1 - last, size - segment, jump)
        length = tf.gather(chosen, ends)
        begins = ends - length + 1
        piece = tf.gather_nd(found, tf.stack([begins, length - 1], 1))
        piece = placed(begins, tf.gather(self.ids, piece), size)
        return tiles(fused(piece, self.unk_id, splits))
