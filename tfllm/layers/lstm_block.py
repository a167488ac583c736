"""Stacked LSTM layers over right-padded rows."""

import keras
from keras import ops

from tfllm.layers.dropout import Dropout


class LSTMBlock(keras.layers.Layer):
    """LSTM layers, both ways and stacked, with dropout and residuals between them.

    Forward layers run on into the padding, which cannot change what comes before it;
    only backward layers need the mask. On two cores this is faster than one loop
    for both directions, with the input products taken out of the loop or not, and
    than XLA.

    Args:
        hidden_size: Size of one direction.
        num_layers: Number of layers.
        bidirectional: Also reads from the end; the outputs are concatenated.
        residual: Adds the input of every layer whose sizes agree.
        dropout: On the input of every layer but the first.
    """

    def __init__(
        self,
        hidden_size,
        num_layers=1,
        bidirectional=True,
        residual=True,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.residual = residual
        self.dropout = dropout
        self.output_size = hidden_size * (2 if bidirectional else 1)

        def lstm(name, backwards):
            return keras.layers.LSTM(
                hidden_size,
                return_sequences=True,
                go_backwards=backwards,
                dtype=self.dtype_policy,
                name=name,
            )

        layers = range(num_layers)
        self.forward = [lstm(f"forward_{i}", False) for i in layers]
        self.backward = [lstm(f"backward_{i}", True) for i in layers if bidirectional]
        self.between = [
            Dropout(dropout, dtype=self.dtype_policy, name=f"dropout_{i}")
            for i in layers[1:]
        ]

    @property
    def variables(self):
        """All variables but the cells' seeds.

        Keras gives every cell a seed whose path counts up with the process, for a
        dropout of its own that is never on here; checkpoints are keyed by path.
        """
        own = (v.path.rsplit("/", 1)[0] for v in super().variables)
        pairs = zip(super().variables, own, strict=True)
        return [v for v, scope in pairs if "seed_generator" not in scope]

    def build(self, hidden_shape):
        """Makes the weights."""
        outer = (*hidden_shape[:-1], self.output_size)
        for i in range(self.num_layers):
            shape = outer if i else hidden_shape
            for layer in self.forward[i : i + 1] + self.backward[i : i + 1]:
                layer.build(shape)
            if i:
                self.between[i - 1].build(outer)

    def call(self, hidden, padding_mask, training=False):
        """Returns `[batch, length, output_size]`, zeros at padding.

        Args:
            hidden: `[batch, length, size]`.
            padding_mask: int `[batch, length]`, ones, then zeros.
            training: Whether dropout is on.
        """
        real = ops.cast(padding_mask, "bool")
        mask = ops.cast(padding_mask, hidden.dtype)[..., None]
        for i, forward in enumerate(self.forward):
            source = self.between[i - 1](hidden, training=training) if i else hidden
            output = forward(source)
            if self.bidirectional:
                back = self.backward[i](source, mask=real)
                output = ops.concatenate([output, ops.flip(back, axis=1)], axis=-1)
            output = ops.cast(output, hidden.dtype) * mask
            if self.residual and hidden.shape[-1] == self.output_size:
                output = output + hidden
            hidden = output
        return hidden * mask

    def get_config(self):
        """Returns the constructor's arguments."""
        names = "hidden_size num_layers bidirectional residual dropout"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
        }
