"""Vectors of tokens, which adversarial training can push and mixup mixes."""

import keras
from keras import ops


class TokenEmbedding(keras.layers.ReversibleEmbedding):
    """Keras' embedding, tied by `reverse=True`, and room for a perturbation.

    Attributes:
        offset: Added to the vectors `[batch, length, size]` in calls while it is set;
            None adds nothing. It is no weight and is not saved.
    """

    offset = None

    def call(self, inputs, reverse=False):
        """Returns the vectors of token ids `[batch, length]`, or logits."""
        outputs = super().call(inputs, reverse=reverse)
        if reverse or self.offset is None:
            return outputs
        return outputs + ops.cast(self.offset, outputs.dtype)
