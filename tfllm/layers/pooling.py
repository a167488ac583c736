"""From one vector a token to one vector a text."""

import keras
from keras import ops

from tfllm.layers.attention import BLOCKED


class MaskedPooling(keras.layers.Layer):
    """Pools over the real tokens; a row without any gives zeros.

    Args:
        mode: `mean`, `sum`, `sqrt` (sum over the root of the count), `max`, `cls`
            (the first token) or `last` (the last real one).
    """

    MODES = ("mean", "sum", "sqrt", "max", "cls", "last")

    def __init__(self, mode="mean", **kwargs):
        super().__init__(**kwargs)
        if mode not in self.MODES:
            raise ValueError(f"mode must be one of {self.MODES}. Received: {mode=}")
        self.mode = mode

    def call(self, hidden, padding_mask):
        """Returns `[batch, size]`.

        Args:
            hidden: `[batch, length, size]`.
            padding_mask: int `[batch, length]`, 1 at real tokens.
        """
        mask = ops.cast(padding_mask, hidden.dtype)[..., None]
        if self.mode == "cls":
            return hidden[:, 0] * mask[:, 0]
        if self.mode == "max":
            top = ops.max(hidden * mask + (1 - mask) * BLOCKED, axis=1)
            return top * ops.max(mask, axis=1)
        if self.mode == "last":
            places = ops.arange(ops.shape(padding_mask)[1], dtype="int32")
            last = ops.max(places * ops.cast(padding_mask, "int32"), axis=1)
            mask = mask * ops.cast(places == last[:, None], hidden.dtype)[..., None]
        # Summed in float32: bfloat16 loses the small terms of a long text.
        total = ops.sum(ops.cast(hidden * mask, "float32"), axis=1)
        if self.mode in ("mean", "sqrt"):
            count = ops.sum(ops.cast(padding_mask, "float32"), axis=1, keepdims=True)
            count = ops.maximum(count, 1.0)
            total = total / (ops.sqrt(count) if self.mode == "sqrt" else count)
        return ops.cast(total, hidden.dtype)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), "mode": self.mode}


class AttentionPooling(keras.layers.Layer):
    """A learned weighted mean (Yang et al., 2016): shares from `v · tanh(W x + b)`.

    Args:
        size: Size of the inner vectors; None for the size of the input.
    """

    def __init__(self, size=None, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def build(self, hidden_shape):
        """Makes the weights."""
        inner = self.size or hidden_shape[-1]
        self.inner = keras.layers.Dense(
            inner, activation="tanh", dtype=self.dtype_policy, name="inner"
        )
        self.inner.build(hidden_shape)
        self.query = self.add_weight(
            name="query", shape=(inner, 1), initializer="glorot_uniform"
        )

    def call(self, hidden, padding_mask):
        """Returns `[batch, size of the input]`; see `MaskedPooling`."""
        scores = ops.cast(ops.matmul(self.inner(hidden), self.query), "float32")
        mask = ops.cast(padding_mask, "float32")[..., None]
        shares = ops.softmax(scores + (1 - mask) * BLOCKED, axis=1) * mask
        return ops.sum(hidden * ops.cast(shares, hidden.dtype), axis=1)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), "size": self.size}
