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
    """The weighted sum of the vectors of a text's hashed n-grams (Joulin et al., 2016).

    The n-grams' weights have the norm 1 in each text, so that long and short texts move
    the vectors alike. Equal weights make it fastText's bag; `fill_ngram_weights` of
    `models.classifier` fills in inverse document frequencies.

    Args:
        orders: Lengths of the n-grams.
        buckets: Rows of the table; two n-grams in one bucket share a vector.
        size: Size of a vector.
        dropout: Share of n-grams left out while training.
        initializer: Of the table.
        use_bias: Whether a bias is added.
    """

    def __init__(
        self,
        orders,
        buckets,
        size,
        dropout=0.0,
        initializer="uniform",
        use_bias=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.orders, self.buckets, self.size = tuple(orders), buckets, size
        self.dropout, self.use_bias = dropout, use_bias
        self.initializer = keras.initializers.get(initializer)
        self.ngram_dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, *_):
        """Makes the table and the weights of the n-grams."""
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.buckets, self.size),
            initializer=self.initializer,
        )
        self.ngram_weights = self.add_weight(
            name="ngram_weights",
            shape=(self.buckets,),
            initializer="ones",
            trainable=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.size,), initializer="zeros"
            )

    def call(self, token_ids, padding_mask, training=False):
        """Returns `[batch, size]`; arguments as of `hash_ngrams`."""
        hashes, mask = hash_ngrams(token_ids, padding_mask, self.orders, self.buckets)
        size = hashes.shape[-1] * ops.shape(hashes)[1]
        hashes = ops.reshape(hashes, (-1, size))
        mask = ops.reshape(mask, (-1, size))
        # Sorted, so that what a text says twice stands side by side and counts once:
        # otherwise the commas of a long text would drown the rest.
        hashes = ops.sort(ops.where(mask > 0, hashes, self.buckets), axis=-1)
        real = ops.cast(hashes < self.buckets, "float32")
        again = ops.cast(hashes[:, 1:] == hashes[:, :-1], "float32")
        real = real * (1.0 - ops.pad(again, ((0, 0), (1, 0))))
        hashes = ops.minimum(hashes, self.buckets - 1)
        weights = ops.take(ops.cast(self.ngram_weights, "float32"), hashes, axis=0)
        weights = weights * real
        norm = ops.sqrt(ops.sum(ops.square(weights), axis=-1, keepdims=True))
        weights = ops.cast(weights / ops.maximum(norm, 1e-6), self.compute_dtype)
        weights = self.ngram_dropout(weights, training=training)
        vectors = ops.take(self.embeddings, hashes, axis=0)
        total = ops.einsum("bn,bnd->bd", weights, vectors)
        return total + self.bias if self.use_bias else total

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "orders": self.orders,
            "buckets": self.buckets,
            "size": self.size,
            "dropout": self.dropout,
            "initializer": keras.initializers.serialize(self.initializer),
            "use_bias": self.use_bias,
        }


class NgramEmbedding(keras.layers.Layer):
    """Vectors of the hashed n-grams that end at each token, and that begin there.

    What a character means is often told by the pair that it makes with a neighbour.
    An n-gram that was never seen has the vector 0, and so has one that is left out:
    training meets what many n-grams of another text will be.

    Args:
        orders: Lengths of the n-grams, 2 or more.
        buckets: Rows of the table; two n-grams in one bucket share a vector.
        size: Size of a vector.
        dropout: Share of n-grams left out while training.
    """

    def __init__(self, orders, buckets, size, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.orders, self.buckets, self.size = tuple(orders), buckets, size
        self.dropout = dropout
        self.ngram_dropout = Dropout(
            dropout, shared_axes=(-1,), dtype=self.dtype_policy, name="dropout"
        )

    def build(self, *_):
        """Makes the table."""
        self.embeddings = self.add_weight(
            name="embeddings", shape=(self.buckets, self.size), initializer="zeros"
        )
        self.ngram_dropout.build((None, None, len(self.orders), self.size))

    def call(self, token_ids, padding_mask, training=False):
        """Returns `[batch, length, 2 * len(orders) * size]`, zeros where none is."""
        hashes, mask = hash_ngrams(token_ids, padding_mask, self.orders, self.buckets)
        vectors = ops.take(self.embeddings, hashes, axis=0)
        vectors = vectors * ops.cast(mask, vectors.dtype)[..., None]
        vectors = self.ngram_dropout(vectors, training=training)
        parts = []
        for number, order in enumerate(self.orders):
            ends = vectors[:, :, number]
            begins = ops.pad(ends, ((0, 0), (0, order - 1), (0, 0)))[:, order - 1 :]
            parts += [ends, begins]
        return ops.concatenate(parts, axis=-1)

    def get_config(self):
        """Returns the constructor's arguments."""
        names = ("orders", "buckets", "size", "dropout")
        return super().get_config() | {name: getattr(self, name) for name in names}
