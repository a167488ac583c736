"""A recurrent decoder block: an LSTM that looks at a context."""

import keras
from keras import ops

from tfllm.layers.dropout import Dropout
from tfllm.layers.lstm_block import LSTMBlock


class RecurrentBlock(keras.layers.Layer):
    """`y = lstm(x); x = x + tanh(W [attention(y, context); y])` (Luong et al., 2015).

    The scores are Luong's products, or Bahdanau's additive ones (2015) in the same
    place, behind the cell: what was looked at is told to the next block and not to the
    next step, so that training reads a whole text at once.

    Args:
        hidden_size: Size of the vectors.
        attention: `multiplicative` or `additive`.
        dropout: On what is added to the residual.
    """

    def __init__(self, hidden_size, attention="multiplicative", dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        if attention not in ("multiplicative", "additive"):
            raise ValueError(
                "attention must be 'multiplicative' or 'additive'. "
                f"Received: {attention=}"
            )
        self.hidden_size, self.attention, self.rate = hidden_size, attention, dropout
        policy = self.dtype_policy

        def dense(name, size, **options):
            return keras.layers.Dense(size, dtype=policy, name=name, **options)

        self.lstm = LSTMBlock(
            hidden_size, bidirectional=False, residual=False, dtype=policy, name="lstm"
        )
        self.key = dense("key", hidden_size, use_bias=False)
        self.mix = dense("mix", hidden_size, activation="tanh")
        self.additive = attention == "additive"
        if self.additive:
            self.query = dense("query", hidden_size)
            self.score = dense("score", 1, use_bias=False)
        self.dropout = Dropout(dropout, dtype=policy, name="dropout")

    def build(self, hidden_shape):
        """Makes the weights."""
        shape = (*hidden_shape[:-1], self.hidden_size)
        scores = (self.query, self.score) if self.additive else ()
        for part in (self.lstm, self.key, self.dropout, *scores):
            part.build(shape)
        self.mix.build((*shape[:-1], 2 * self.hidden_size))

    def keep(self, context):
        """What of a context does not depend on the query; `call` takes it too."""
        return self.key(context), ops.cast(context, self.compute_dtype)

    def shares(self, output, key, bias):
        """What part of each vector of the context is looked at.

        Args:
            output: The LSTM's, `[batch, length, hidden_size]`.
            key: From `keep`.
            bias: `[batch, 1, 1, keys]`.

        Returns:
            float32 `[batch, length, keys]`.
        """
        if self.additive:
            both = self.query(output)[:, :, None] + key[:, None]
            scores = self.score(ops.tanh(both))[..., 0]
        else:
            scores = ops.matmul(output, ops.transpose(key, (0, 2, 1)))
            scores *= self.hidden_size**-0.5
        bias = ops.cast(bias[:, 0], "float32")
        return ops.softmax(ops.cast(scores, "float32") + bias, axis=-1)

    def call(
        self,
        hidden,
        padding_mask,
        context,
        context_bias,
        training=False,
        cache=None,
    ):
        """Returns `[batch, length, hidden_size]`.

        Args:
            hidden: `[batch, length, hidden_size]`.
            padding_mask: int `[batch, length]`.
            context: `[batch, keys, hidden_size]`, or what `keep` made of it.
            context_bias: `[batch, 1, 1, keys]`.
            training: Whether dropout is on.
            cache: Called with the LSTM's cell and its inputs, gives its outputs: a
                decoding loop keeps the state between its steps.
        """
        if cache is None:
            output = self.lstm(hidden, padding_mask)
        else:
            output = cache(self.lstm.forward[0].cell, hidden)
        key, value = context if isinstance(context, tuple) else self.keep(context)
        shares = self.shares(output, key, context_bias)
        seen = ops.matmul(ops.cast(shares, value.dtype), value)
        new = self.mix(ops.concatenate([seen, output], axis=-1))
        return hidden + self.dropout(new, training=training)

    def context_shares(self, hidden, padding_mask, context, context_bias):
        """Where tokens look in the context; arguments as in `call`.

        Returns:
            float32 `[batch, 1, length, keys]`.
        """
        output, (key, _) = self.lstm(hidden, padding_mask), self.keep(context)
        return self.shares(output, key, context_bias)[:, None]

    def get_config(self):
        """Returns the constructor's arguments."""
        names = ("hidden_size", "attention")
        config = {name: getattr(self, name) for name in names}
        return super().get_config() | config | {"dropout": self.rate}
