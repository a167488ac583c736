"""What a decoder copies from its source: the pointer-generator (See et al., 2017)."""

import keras
from keras import ops

LOW = -1e9


class Pointer(keras.layers.Layer):
    """Whether a token is copied from the source, and from where.

    A gate says how likely the next token comes from the vocabulary; the rest is shared
    out among the places of the source by attention of its own. Where several places
    hold the same token, their shares add up.

    From its first step on the attention looks behind places that hold the token that
    was told last: to go on copying need not be learned, which takes more text than few
    summaries are (what Olsson et al., 2022, call an induction head).

    Args:
        size: Of queries and keys.
        scale: What vectors of tokens are multiplied by.
    """

    def __init__(self, size, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.size, self.scale = size, scale
        options = {"dtype": self.dtype_policy}
        self.query = keras.layers.Dense(size, name="query", **options)
        self.key = keras.layers.Dense(size, use_bias=False, name="key", **options)
        self.gate = keras.layers.Dense(1, name="gate", **options)

    def build(self, hidden_shape, last_shape, context_shape, *_):
        """Makes the weights."""
        for layer in (self.query, self.gate):
            layer.build(hidden_shape)
        self.key.build(context_shape)
        self.follow = self.add_weight(name="follow", shape=(), initializer="ones")

    def keep(self, context, source):
        """What `call` needs of a source; arguments as there."""
        source = ops.cast(source, self.compute_dtype) * self.scale
        first = ops.zeros_like(source[:, :1])
        return self.key(context) + ops.concatenate([first, source[:, :-1]], axis=1)

    def call(self, hidden, last, context, source_mask, source=None):
        """Returns log-probabilities, float32 `[batch, length, 1 + source length]`.

        The first is that of the vocabulary, the others those of the places.

        Args:
            hidden: `[batch, length, size]`, what logits are made of.
            last: `[batch, length, size]`, vectors of the tokens told last.
            context: `[batch, source length, size]`, from the encoder; without `source`
                from `keep`.
            source_mask: int32 `[batch, source length]`, 1 at real tokens.
            source: `[batch, source length, size]`, vectors of the source's tokens.
        """
        key = context if source is None else self.keep(context, source)
        follow = ops.cast(self.follow * self.scale, self.compute_dtype)
        query = self.query(hidden) + follow * ops.cast(last, self.compute_dtype)
        scores = ops.einsum("btd,bsd->bts", query, key)
        scores = ops.cast(scores, "float32") * self.size**-0.5
        scores = ops.where(ops.expand_dims(source_mask > 0, 1), scores, LOW)
        gate = ops.cast(self.gate(hidden), "float32")
        copied = ops.log_sigmoid(-gate) + ops.log_softmax(scores, axis=-1)
        return ops.concatenate([ops.log_sigmoid(gate), copied], axis=-1)

    def get_config(self):
        """Returns the constructor's arguments."""
        return super().get_config() | {"size": self.size, "scale": self.scale}


def pointed_losses(losses, ways, source_ids, targets):
    """The losses of given tokens that may be copied.

    Args:
        losses: float32 `[batch, length]`, in nats, were they not.
        ways: From `Pointer`.
        source_ids: int32 `[batch, source length]`.
        targets: int32 `[batch, length]`.

    Returns:
        float32 `[batch, length]`, in nats.
    """
    same = source_ids[:, None, :] == targets[:, :, None]
    copied = ops.logsumexp(ops.where(same, ways[..., 1:], LOW), axis=-1)
    return -ops.logaddexp(ways[..., 0] - losses, copied)


def pointed_logits(logits, ways, source_ids):
    """Log-probabilities of all tokens that may be copied, `[batch, length, vocabulary]`

    Args:
        logits: float32 `[batch, length, vocabulary]`.
        ways: From `Pointer`.
        source_ids: int32 `[batch, source length]`.
    """
    made = ops.softmax(logits) * ops.exp(ways[..., :1])
    tokens = ops.one_hot(source_ids, logits.shape[-1], dtype="float32")
    return ops.log(made + ops.matmul(ops.exp(ways[..., 1:]), tokens) + 1e-30)
