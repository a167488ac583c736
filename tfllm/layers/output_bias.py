"""The bias of a vocabulary's logits."""

import keras
from keras import ops


class OutputBias(keras.layers.Layer):
    """Adds a bias to logits that a tied embedding made; the answer is float32.

    A layer of its own, so that the bias can be handed to `chunked_cross_entropy`.
    """

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})

    def build(self, input_shape):
        """Makes the bias."""
        self.bias = self.add_weight(
            name="bias", shape=input_shape[-1:], initializer="zeros"
        )

    def call(self, logits):
        """Returns `[…, vocabulary_size]`."""
        return logits + ops.cast(self.bias, logits.dtype)

    def compute_output_shape(self, input_shape):
        """The shape does not change."""
        return input_shape
