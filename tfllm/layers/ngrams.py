"""Hashed n-grams of token ids: a bag of features without a vocabulary of its own."""

import keras
from keras import ops

from tfllm.layers.dropout import Dropout

# Two rolling hashes modulo primes below 2**15.5, so that every product stays below
# 2**31: int32 is the widest integer that JAX has by default. Together they tell
# 2.1e9 n-grams apart before they are folded into the buckets.
PRIMES = (46_337, 46_327)
MULTIPLIERS = (31_337, 7_919)


def hash_ngrams(token_ids, padding_mask, orders, buckets):
    """Hashes the n-grams that end at each place.

    An n-gram may begin one place before the first token, where a mark of the text's
    start stands; so a bigram also says "this token comes first".

    Args:
        token_ids: int32 `[batch, length]`.
        padding_mask: int `[batch, length]`, ones, then zeros.
        orders: Lengths of the n-grams, such as `(1, 2, 3)`.
        buckets: Number of hash values.

    Returns:
        Hashes int32 in `[0, buckets)` and mask int32, both
        `[batch, length, len(orders)]`; the mask is 0 where the n-gram would begin
        earlier than the mark.
    """
    ids = ops.cast(token_ids, "int32")
    real = ops.cast(padding_mask, "int32")
    start = ops.zeros_like(ids[:, :1])
    # Token ids move up by one: 0 is the mark of the start.
    ids = ops.concatenate([start, ids + 1], axis=1)
    real = ops.concatenate([start + 1, real], axis=1)
    parts = [ids % prime for prime in PRIMES]
    hashes, masks = [], []
    rolling, seen = [part * 0 for part in parts], real
    for order in range(1, max(orders) + 1):
        shift = order - 1  # the order-th token counted from the end of the n-gram
        if shift:
            parts = [ops.pad(part, ((0, 0), (1, 0)))[:, :-1] for part in parts]
            seen = ops.pad(seen, ((0, 0), (1, 0)))[:, :-1]
        # + order: an n-gram is not the (n+1)-gram that begins with id 0.
        rolling = [
            (value * factor + part + order) % prime
            for value, factor, part, prime in zip(
                rolling, MULTIPLIERS, parts, PRIMES, strict=True
            )
        ]
        if order in orders:
            whole = (rolling[0] + PRIMES[0] * rolling[1]) % buckets
            hashes.append(whole[:, 1:])
            masks.append(real[:, 1:] * seen[:, 1:])
    return ops.stack(hashes, axis=-1), ops.stack(masks, axis=-1)


class NgramBag(keras.layers.Layer):
    """The pooled embeddings of a text's hashed n-grams (Joulin et al., 2016).

    Args:
        orders: Lengths of the n-grams.
        buckets: Rows of the table; two n-grams in one bucket share a vector.
        size: Size of a vector.
        pooling: `mean`, `sqrt` (sum over the root of the count) or `sum`.
        dropout: Share of n-grams left out while training.
        initializer: Of the table.
    """

    def __init__(
        self,
        orders,
        buckets,
        size,
        pooling="sqrt",
        dropout=0.0,
        initializer="uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if pooling not in ("mean", "sqrt", "sum"):
            raise ValueError(f"pooling must be mean, sqrt or sum. Received: {pooling}")
        self.orders = tuple(orders)
        self.buckets = buckets
        self.size = size
        self.pooling = pooling
        self.dropout = dropout
        self.initializer = keras.initializers.get(initializer)
        self.ngram_dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, token_ids_shape):
        """Makes the table."""
        self.ngram_dropout.build((*token_ids_shape, len(self.orders)))
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.buckets, self.size),
            initializer=self.initializer,
        )

    def call(self, token_ids, padding_mask, training=False):
        """Returns `[batch, size]`; arguments as of `hash_ngrams`."""
        hashes, mask = hash_ngrams(token_ids, padding_mask, self.orders, self.buckets)
        weights = ops.cast(mask, self.compute_dtype)
        vectors = ops.take(self.embeddings, hashes, axis=0)
        kept = self.ngram_dropout(weights, training=training)
        total = ops.einsum("bln,blnd->bd", kept, vectors)
        if self.pooling == "sum":
            return total
        count = ops.sum(ops.cast(mask, "float32"), axis=(1, 2))[:, None]
        count = ops.maximum(count, 1.0)
        count = ops.sqrt(count) if self.pooling == "sqrt" else count
        return total / ops.cast(count, total.dtype)

    def get_config(self):
        """Returns the constructor's arguments."""
        names = "buckets size pooling dropout"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
            "orders": list(self.orders),
            "initializer": keras.initializers.serialize(self.initializer),
        }
