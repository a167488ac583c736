"""Ragged ids as a batch."""

import tensorflow as tf


def dense_ids(ids: tf.RaggedTensor, pad: int) -> tf.Tensor:
    """`[N, length]` with at least one column, so that an empty text has a row."""
    dense = ids.to_tensor(pad)
    missing = tf.maximum(0, 1 - tf.shape(dense)[1])
    return tf.pad(dense, [[0, 0], [0, missing]], constant_values=pad)
