"""How the next token is chosen from the logits, each row by its own settings.

A row's choice depends on its own logits, settings and random number only: thresholds
are found row by row, and every draw goes through the vocabulary in its own order. The
random number comes from the row's seed and the number of tokens it has made, so that
the same seed gives the same text whatever else is in the batch.

Settings are tensors `[batch]` by name; what is absent costs nothing.
"""

import numpy as np
import tensorflow as tf

LOW = -1e9
SHORT = 256  # as many of the likeliest tokens settle a threshold nearly always
_MIX = [np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)]
_MIX.append(np.uint64(0x94D049BB133111EB))


def uniforms(seeds, number):
    """One random number in (0, 1) a row: SplitMix64 of its seed and a counter.

    Args:
        seeds: int64 `[batch]`.
        number: int32 scalar, how many tokens were made.
    """
    right, golden = tf.bitwise.right_shift, _MIX[0]

    def mixed(z):
        for shift, factor in ((30, _MIX[1]), (27, _MIX[2])):
            z = tf.bitwise.bitwise_xor(z, right(z, np.uint64(shift))) * factor
        return tf.bitwise.bitwise_xor(z, right(z, np.uint64(31)))

    seeds = mixed(tf.cast(seeds, tf.uint64) + golden)
    bits = right(mixed(seeds + tf.cast(number, tf.uint64) * golden), np.uint64(41))
    # The middle of one of 2^23 intervals: exact in float32, and never 0 or 1.
    return (tf.cast(bits, tf.float32) + 0.5) * 2.0**-23


def penalised(logits, history, first, settings):
    """Logits less those of tokens that stood before.

    Args:
        logits: float32 `[batch, vocabulary]`.
        history: int32 `[slots, batch]`, negative where there is no token.
        first: int32 scalar, the slot of a prompt's last token.
        settings: May have `repetition_penalty` (Keskar et al., 2019: positive logits of
            tokens in prompt or answer are divided by it, others multiplied) and
            `frequency_penalty` (taken off once for each time in the answer).
    """
    names = {"repetition_penalty": 1.0, "frequency_penalty": 0.0}
    names = {name: off for name, off in names.items() if name in settings}
    if not names:
        return logits
    rows, size = tf.shape(logits)[0], logits.shape[1]

    def counts(history):
        index = tf.maximum(history, 0) + tf.range(rows) * size
        index = tf.reshape(index, [-1, 1])
        ones = tf.reshape(tf.cast(history >= 0, tf.float32), [-1])
        return tf.reshape(tf.scatter_nd(index, ones, [rows * size]), [rows, size])

    def change():
        changed = logits
        if "repetition_penalty" in names:
            factor = settings["repetition_penalty"][:, None]
            factor = tf.where(factor > 0, factor, 1.0)
            less = tf.where(changed > 0, changed / factor, changed * factor)
            changed = tf.where(counts(history) > 0, less, changed)
        if "frequency_penalty" in names:
            made = tf.range(tf.shape(history)[0])[:, None] > first
            times = counts(tf.where(made, history, -1))
            changed -= settings["frequency_penalty"][:, None] * times
        return changed

    wanted = [tf.reduce_any(settings[name] != off) for name, off in names.items()]
    return tf.cond(tf.reduce_any(tf.stack(wanted)), change, lambda: logits)


def chosen(logits, number, settings):
    """Token ids, int32 `[batch]`: the likeliest, or drawn where `temperature` > 0.

    Args:
        logits: float32 `[batch, vocabulary]`, penalties and bans applied.
        number: int32 scalar, how many tokens were made.
        settings: May have `temperature`, `top_k` (0 for all), `top_p`, `min_p`, `seed`.
    """
    best = tf.argmax(logits, -1, output_type=tf.int32)
    if "temperature" not in settings:
        return best
    warm = settings["temperature"] >= 1e-5

    def draw():
        kept = filtered(logits, settings)
        sums = tf.cumsum(kept, axis=1)
        goal = uniforms(settings["seed"], number)[:, None] * sums[:, -1:]
        drawn = tf.reduce_sum(tf.cast(sums < goal, tf.int32), 1)
        return tf.where(warm, drawn, best)

    return tf.cond(tf.reduce_any(warm), draw, lambda: best)


def filtered(logits, settings):
    """Shares from which to draw, float32 `[batch, vocabulary]`, the highest 1.

    In this order: temperature; the `top_k` highest; of these the fewest highest whose
    sum reaches `top_p`; those of at least `min_p` times the highest. Tokens as likely
    as the last one that is kept are kept, too.
    """
    temperature = tf.maximum(settings["temperature"], 1e-5)[:, None]
    scores = logits / temperature
    shares = tf.exp(scores - tf.reduce_max(scores, 1, keepdims=True))
    floor = 0.0
    if "min_p" in settings:
        floor = tf.clip_by_value(settings["min_p"], 0.0, 1.0)[:, None]
    if "top_k" in settings or "top_p" in settings:
        floor = tf.maximum(floor, _threshold(shares, settings))
    return tf.where(shares >= floor, shares, 0.0)


def _threshold(shares, settings):
    """The lowest share that `top_k` and `top_p` keep, `[batch, 1]`."""
    size = shares.shape[1]
    ones = tf.ones_like(shares[:, 0])
    top_k = settings.get("top_k", tf.cast(0 * ones, tf.int32))[:, None]
    top_k = tf.where(top_k > 0, tf.minimum(top_k, size), size)
    top_p = tf.clip_by_value(settings.get("top_p", ones), 0.0, 1.0)[:, None]
    every = tf.reduce_sum(shares, 1, keepdims=True)
    idle = (top_k == size) & (top_p >= 1.0)

    def among(count):
        """The thresholds, and whether so many of the highest settle them."""
        values = tf.math.top_k(shares, count).values
        ranks = tf.range(count)
        taken = tf.where(ranks < top_k, values, 0.0)
        sums = tf.cumsum(taken, axis=1)
        total = tf.where(top_k == size, every, sums[:, -1:])
        # Without the first: it is kept even where top_p is 0.
        kept = (ranks < top_k) & ((sums - taken < top_p * total) | (ranks == 0))
        lowest = tf.reduce_min(tf.where(kept, taken, 1.0), 1, keepdims=True)
        cut = (top_k < size) & (top_k <= count)
        enough = cut | ((top_k == size) & (sums[:, -1:] >= top_p * total))
        return tf.where(idle, 0.0, lowest), tf.reduce_all(enough | idle)

    def search():
        found, enough = among(min(SHORT, size))
        if size <= SHORT:
            return found
        return tf.cond(enough, lambda: found, lambda: among(size)[0])

    return tf.cond(tf.reduce_all(idle), lambda: tf.zeros_like(every), search)
