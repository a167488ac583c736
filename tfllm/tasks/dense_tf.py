"""Ragged ids as a batch, and parts of texts."""

import tensorflow as tf


def dense_ids(ids: tf.RaggedTensor, pad: int) -> tf.Tensor:
    """`[N, length]` with at least one column, so that an empty text has a row."""
    dense = ids.to_tensor(pad)
    missing = tf.maximum(0, 1 - tf.shape(dense)[1])
    return tf.pad(dense, [[0, 0], [0, missing]], constant_values=pad)


def substrings(text, row, start, end):
    """What stands in texts from one code point to another, string `[M]`."""
    chars = tf.strings.unicode_decode(text, "UTF-8")
    base = tf.gather(tf.cast(chars.row_splits, tf.int32), row)
    at = tf.ragged.range(base + start, base + end)
    return tf.strings.unicode_encode(
        at.with_values(tf.gather(chars.values, at.values)), "UTF-8"
    )
