"""Dropout whose random state has a stable path."""

import keras


class Dropout(keras.layers.Layer):
    """Zeroes a share of its input while training and scales up the rest.

    Keras' own layer makes its seed when it is constructed, under a name that counts
    up with every layer of the process. The seed is a variable and belongs in the
    checkpoint, so here it is made in `build`, under the layer's own path.

    Args:
        rate: Share that is dropped, from 0 to below 1.
        shared_axes: Axes along which one draw is shared; `(-1,)` on
            `[batch, length, size]` drops whole vectors (word dropout).
    """

    def __init__(self, rate: float, shared_axes: tuple[int, ...] = (), **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be at least 0 and below 1. Received: {rate=}")
        self.rate = rate
        self.shared_axes = tuple(shared_axes)

    def build(self, input_shape):
        """Makes the random state, only if there is something to draw."""
        if self.rate:
            self.seed_generator = keras.random.SeedGenerator(name="seed")
        self._rank = len(input_shape)

    def call(self, inputs, training=False):
        """Returns a tensor of the shape of `inputs`."""
        if not training or not self.rate:
            return inputs
        shape = None
        if self.shared_axes:
            shared = {axis % self._rank for axis in self.shared_axes}
            shape = tuple(1 if axis in shared else None for axis in range(self._rank))
        return keras.random.dropout(
            inputs, self.rate, noise_shape=shape, seed=self.seed_generator
        )

    def compute_output_shape(self, input_shape):
        """The shape does not change."""
        return input_shape

    def get_config(self):
        """Returns the constructor's arguments."""
        config = super().get_config()
        return {**config, "rate": self.rate, "shared_axes": list(self.shared_axes)}
