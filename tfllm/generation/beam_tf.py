"""Beam search: the likeliest answers, found by keeping several on the way."""

from typing import NamedTuple

import tensorflow as tf

from tfllm.generation.sampling_tf import LOW


class Beams(NamedTuple):
    """Beam search with a pool of finished answers (Wu et al., 2016; Vaswani et al.).

    An answer's score is its log-probability over `length ** length_penalty`. A row ends
    when no answer that is still open could enter its pool.

    Attributes:
        width: Open answers, and finished ones that are kept.
        length_penalty: 0 for plain log-probabilities; more favours longer answers.
    """

    width: int
    length_penalty: float = 1.0

    def begin(self, rows, slots) -> tuple:
        """What is kept of `rows` prompts.

        Returns:
            Log-probabilities of open answers `[rows, width]`; scores of finished ones
            `[rows, width]`, and their tokens `[slots, rows, width]`.
        """
        alone = tf.one_hot(tf.zeros([rows], tf.int32), self.width, 0.0, LOW)
        finished = tf.fill([rows, self.width], LOW)
        return alone, finished, tf.fill([slots, rows, self.width], -1)

    def choose(self, logits, slot, made, history, done, kept, limits, ends):
        """One step.

        Args:
            logits: float32 `[rows * width, vocabulary]`.
            slot: int32 scalar, where the new tokens stand in `history`.
            made: int32 scalar, tokens made before.
            history: int32 `[slots, rows * width]`.
            done: bool `[rows * width]`.
            kept: From `begin`, or from here.
            limits: int32 `[rows * width]`, most tokens of an answer.
            ends: int32 `[n]`, tokens that end an answer.

        Returns:
            Which open answer each goes on from and with which token, int32 `[rows *
            width]` each; the new `done` and `kept`.
        """
        width, size = self.width, logits.shape[1]
        open_, finished, answers = kept
        rows, slots = tf.shape(open_)[0], tf.shape(history)[0]
        # Twice as many: were all of `width` to end, as many would go on.
        values, index = likeliest(logits, open_, width)
        beam, tokens = index // size, index % size
        parents = beam + tf.range(rows)[:, None] * width
        over = tf.reduce_any(tokens[:, :, None] == ends, 2)
        limit = tf.cast(limits[::width], tf.float32)[:, None]
        new = tf.cast(made + 1, tf.float32)
        last = new >= limit

        # Into the pool goes what ends here.
        penalty = self.length_penalty
        # Only one of the best `width` may end: a beam of one is the greedy way then.
        fits = (over | last) & ~done[::width][:, None] & (tf.range(2 * width) < width)
        closed = tf.where(fits, values / new**penalty, LOW)
        both = tf.concat([finished, closed], 1)
        finished, best = tf.math.top_k(both, width)
        texts = tf.reshape(tf.gather(history, tf.reshape(parents, [-1]), axis=1),
                           [slots, rows, 2 * width])  # fmt: skip
        here = tf.range(slots) == slot
        texts = tf.where(here[:, None, None], tokens, texts)
        pool = tf.concat([answers, texts], 2)
        answers = tf.gather(pool, tf.repeat(best[None], slots, 0), batch_dims=2)

        # The best that do not end go on.
        values, places = tf.math.top_k(tf.where(over, LOW, values), width)
        parents, tokens = (
            tf.reshape(tf.gather(x, places, batch_dims=1), [-1])
            for x in (parents, tokens)
        )
        # Log-probabilities only fall; the most that one could score is as long as can
        # be, or as short.
        bound = values[:, :1] / tf.maximum(limit**penalty, new**penalty)
        ended = tf.repeat((last | (bound <= finished[:, -1:]))[:, 0], width)
        return parents, tokens, done | ended, (values, finished, answers)


def likeliest(logits, before, width: int):
    """The best ways to go on, twice as many as there are beams.

    The best ten stand in the ten parts of the vocabulary with the greatest
    maxima: `top_k` over these takes half the time of one over all.

    Args:
        logits: float32 `[rows * width, vocabulary]`.
        before: float32 `[rows, width]`, log-probabilities so far.
        width: Number of beams.

    Returns:
        Their log-probabilities, and their places in `[width * vocabulary]`, `[rows,
        2 * width]` each.
    """
    rows, size, count = tf.shape(before)[0], logits.shape[1], 2 * width
    part = next(n for n in range(min(128, size // 2), 0, -1) if size % n == 0)
    if part < 16 < size // 8:
        part = 64
        logits = tf.pad(logits, [[0, 0], [0, -size % part]], constant_values=LOW)
    parts = tf.reshape(logits, [rows, -1, part])  # of all beams, one after another
    best = tf.reshape(tf.reduce_max(parts, 2), [rows, width, -1])
    most = tf.reduce_max(best, 2)
    total = tf.exp(logits - tf.reshape(most, [-1, 1]))
    before -= most + tf.math.log(tf.reshape(tf.reduce_sum(total, 1), [rows, width]))
    each = tf.shape(best)[2]
    _, at = tf.math.top_k(tf.reshape(best + before[:, :, None], [rows, -1]), count)
    beam, first = at // each, at % each * part
    found = tf.gather(parts, at, batch_dims=1)
    found += tf.gather(before, beam, batch_dims=1)[:, :, None]
    values, index = tf.math.top_k(tf.reshape(found, [rows, -1]), count)
    places = beam * size + first
    return values, tf.gather(places, index // part, batch_dims=1) + index % part
