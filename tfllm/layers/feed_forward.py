"""The position-wise network of a Transformer block."""

import keras
from keras import ops

from tfllm.layers.dropout import Dropout

GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}


def activate(name: str, inputs):
    """Applies `gelu` (exact), `gelu_tanh` (GPT-2's approximation), `relu`, ….

    Raises:
        ValueError: Keras knows no activation of that name.
    """
    if name == "gelu":
        return ops.gelu(inputs, approximate=False)
    if name == "gelu_tanh":
        return ops.gelu(inputs, approximate=True)
    return keras.activations.get(name)(inputs)


class FeedForward(keras.layers.Layer):
    """Two dense layers, or three when gated (Shazeer, 2020).

    Args:
        hidden_size: Size of the vectors that come in and go out.
        intermediate_size: Size in between.
        activation: `gelu`, `gelu_tanh`, `relu`, `silu`, …, or gated: `swiglu`,
            `geglu`, `geglu_tanh`.
        use_bias: Biases of all dense layers.
        dropout: On the vectors in between.
        initializer: Of the kernels.
        output_initializer: Of the last kernel; None for `initializer`.
    """

    def __init__(
        self,
        hidden_size,
        intermediate_size,
        activation="gelu",
        use_bias=True,
        dropout=0.0,
        initializer="glorot_uniform",
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.activation = activation
        self.use_bias = use_bias
        self.dropout = dropout
        self.initializer = keras.initializers.get(initializer)
        self.output_initializer = keras.initializers.get(output_initializer)

        def dense(name, size, initializer=self.initializer):
            return keras.layers.Dense(
                size,
                use_bias=use_bias,
                kernel_initializer=initializer.clone(),
                dtype=self.dtype_policy,
                name=name,
            )

        self.up = dense("up", intermediate_size)
        self.gate = dense("gate", intermediate_size) if activation in GATED else None
        last = self.output_initializer or self.initializer
        self.down = dense("down", hidden_size, last)
        self.inner_dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, hidden_shape):
        """Makes the weights."""
        self.up.build(hidden_shape)
        if self.gate is not None:
            self.gate.build(hidden_shape)
        inner = (*hidden_shape[:-1], self.intermediate_size)
        self.inner_dropout.build(inner)
        self.down.build(inner)

    def call(self, hidden, training=False):
        """Returns `[…, hidden_size]`."""
        inner = self.up(hidden)
        if self.gate is None:
            inner = activate(self.activation, inner)
        else:
            inner = activate(GATED[self.activation], self.gate(hidden)) * inner
        return self.down(self.inner_dropout(inner, training=training))

    def compute_output_shape(self, hidden_shape):
        """The last axis becomes `hidden_size`."""
        return (*hidden_shape[:-1], self.hidden_size)

    def get_config(self):
        """Returns the constructor's arguments."""
        names = "hidden_size intermediate_size activation use_bias dropout"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
            "initializer": keras.initializers.serialize(self.initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
