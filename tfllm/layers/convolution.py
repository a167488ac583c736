"""Convolutions of several widths side by side (Kim, 2014)."""

import keras
from keras import ops

from tfllm.layers.pooling import MaskedPooling


class ConvolutionBank(keras.layers.Layer):
    """For each width `filters` convolutions, an activation, the maximum over time.

    Padding is zeroed before and masked after, so windows hang over the ends of the
    text as if zeros stood there, however long the row is.

    Args:
        filters: Number of filters of each width.
        widths: Numbers of tokens that a filter sees.
        activation: A Keras activation.
        regularizer: Of the kernels.
    """

    def __init__(self, filters, widths, activation="relu", regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.widths = tuple(widths)
        self.activation = activation
        self.regularizer = keras.regularizers.get(regularizer)
        self.convolutions = [
            keras.layers.Conv1D(
                filters,
                width,
                padding="same",
                activation=activation,
                kernel_regularizer=self.regularizer,
                dtype=self.dtype_policy,
                name=f"width_{width}",
            )
            for width in self.widths
        ]
        self.pooling = MaskedPooling("max", dtype=self.dtype_policy, name="pooling")

    def build(self, hidden_shape):
        """Makes the kernels."""
        for convolution in self.convolutions:
            convolution.build(hidden_shape)

    def call(self, hidden, padding_mask):
        """Returns `[batch, filters * len(widths)]`; see `MaskedPooling`."""
        hidden = hidden * ops.cast(padding_mask, hidden.dtype)[..., None]
        pooled = [self.pooling(c(hidden), padding_mask) for c in self.convolutions]
        return ops.concatenate(pooled, axis=-1)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "widths": list(self.widths),
            "activation": self.activation,
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }
