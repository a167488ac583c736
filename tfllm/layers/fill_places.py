"""Guesses in the place of hidden words, as ELECTRA's encoder reads them."""

import keras
from keras import ops


class FillPlaces(keras.layers.Layer):
    """Draws a token for each place and writes it there (Clark et al., 2020)."""

    def call(self, logits, draws, token_ids, places):
        """Draws by inverting the cumulative distribution: one number a place.

        Args:
            logits: `[rows, P, vocabulary_size]`.
            draws: float32 `[rows, P]` in [0, 1).
            token_ids: int32 `[rows, length]`.
            places: int32 `[rows, P]`; place 0, the opening token's, stays as it is.

        Returns:
            The text filled in, int32 `[rows, length]`, and the draws, `[rows, P]`.
        """
        shares = ops.cumsum(ops.softmax(ops.cast(logits, "float32")), axis=-1)
        below = shares < (draws * shares[..., -1])[..., None]
        sampled = ops.sum(ops.cast(below, "int32"), axis=-1)
        sampled = ops.minimum(sampled, ops.shape(logits)[-1] - 1)
        here = ops.one_hot(places, ops.shape(token_ids)[1], dtype="int32")
        here *= ops.cast(places > 0, "int32")[..., None]
        written = ops.sum(here * sampled[..., None], axis=1)
        free = 1 - ops.sum(here, axis=1)
        return token_ids * free + written, sampled
