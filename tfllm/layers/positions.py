"""Where a token stands: learned, sinusoidal and rotary positions.

Each layer takes the hidden states (for their length) and, optionally, explicit
`positions`, which packed rows need because several texts share a row.
"""

import math

import keras
import numpy as np
from keras import ops


def _positions(inputs, positions):
    """Explicit positions, or `[1, length]` counted from 0."""
    if positions is None:
        return ops.arange(ops.shape(inputs)[1], dtype="int32")[None, :]
    return positions


class PositionEmbedding(keras.layers.Layer):
    """Learned positions (BERT, GPT-2), to be added to the token embeddings.

    Args:
        max_length: Number of positions.
        hidden_size: Size of a vector.
        offset: Added to every position; RoBERTa starts counting at 2.
        initializer: Of the table, which has `max_length + offset` rows.
    """

    def __init__(
        self, max_length, hidden_size, offset=0, initializer="uniform", **kwargs
    ):
        super().__init__(**kwargs)
        self.max_length = max_length
        self.hidden_size = hidden_size
        self.offset = offset
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape):
        """Makes the table."""
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.max_length + self.offset, self.hidden_size),
            initializer=self.initializer,
        )

    def call(self, inputs, positions=None):
        """Returns vectors `[batch or 1, length, hidden_size]`.

        Args:
            inputs: `[batch, length, …]`, only its length counts.
            positions: int32 `[batch, length]`, or None to count from 0.
        """
        rows = _positions(inputs, positions) + self.offset
        return ops.take(self.embeddings, rows, axis=0)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "hidden_size": self.hidden_size,
            "offset": self.offset,
            "initializer": keras.initializers.serialize(self.initializer),
        }


class SinusoidalPositions(keras.layers.Layer):
    """Fixed sines and cosines of the position (Vaswani et al., 2017).

    Args:
        hidden_size: Size of a vector, even: sines first, then cosines.
        base: Longest wavelength over 2 pi.
    """

    def __init__(self, hidden_size, base=10_000.0, **kwargs):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.base = base

    def call(self, inputs, positions=None):
        """Returns vectors `[batch or 1, length, hidden_size]`."""
        steps = np.arange(0, self.hidden_size, 2) / self.hidden_size
        angles = _angles(_positions(inputs, positions), self.base**-steps)
        both = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
        return ops.cast(both, self.compute_dtype)

    def get_config(self):
        """Returns the constructor's arguments."""
        config = super().get_config()
        return {**config, "hidden_size": self.hidden_size, "base": self.base}


class RotaryPositions(keras.layers.Layer):
    """Cosines and sines for rotary attention (Su et al., 2021), once for all blocks.

    Args:
        head_size: Size of an attention head, even.
        base: `rope_theta`.
        scaling: None, `{"rope_type": "linear", "factor": f}`, or Llama 3's
            `{"rope_type": "llama3", "factor", "low_freq_factor",
            "high_freq_factor", "original_max_position_embeddings"}`.
    """

    def __init__(self, head_size, base=10_000.0, scaling=None, **kwargs):
        super().__init__(**kwargs)
        self.head_size = head_size
        self.base = base
        self.scaling = scaling
        self.frequencies = rotary_frequencies(head_size, base, scaling)

    def call(self, inputs, positions=None):
        """Returns `[batch or 1, length, head_size]`: cosines, then sines."""
        angles = _angles(_positions(inputs, positions), self.frequencies)
        both = ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)
        return ops.cast(both, self.compute_dtype)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "head_size": self.head_size,
            "base": self.base,
            "scaling": self.scaling,
        }


def _angles(positions, frequencies):
    """Angles in float32: bfloat16 cannot tell position 257 from 258."""
    frequencies = ops.convert_to_tensor(frequencies, dtype="float32")
    return ops.cast(positions, "float32")[..., None] * frequencies


def rotary_frequencies(head_size, base=10_000.0, scaling=None) -> np.ndarray:
    """Returns the float32 `[head_size / 2]` angles of one step."""
    frequencies = base ** -(np.arange(0, head_size, 2) / head_size)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "linear":
        frequencies /= scaling["factor"]
    elif kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        wavelengths = 2 * math.pi / frequencies
        turns = scaling["original_max_position_embeddings"] / wavelengths
        keep = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (keep + (1 - keep) / scaling["factor"])
    elif kind != "default":
        raise ValueError(
            "rope_type must be 'default', 'linear' or 'llama3'. "
            f"Received: scaling={scaling}"
        )
    return frequencies.astype("float32")


def apply_rotary(heads, rotary):
    """Turns the two halves of each head by its position's angles.

    Args:
        heads: `[batch, length, heads, head_size]`.
        rotary: What `RotaryPositions` returned.
    """
    cos, sin = ops.split(ops.cast(rotary, heads.dtype)[:, :, None, :], 2, axis=-1)
    first, second = ops.split(heads, 2, axis=-1)
    return ops.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )


def distance_buckets(count: int, most: int, both_ways: bool) -> np.ndarray:
    """T5's ranges of distance: small ones alone, larger ones by their logarithm.

    Args:
        count: Number of ranges.
        most: From this distance on all are one.
        both_ways: Whether what stands behind a token has half of the ranges.

    Returns:
        int32 `[2 * most + 1]`: the range of each distance from `-most` (a key that far
        behind the query) to `most` (before it).
    """
    distance = np.arange(-most, most + 1)
    half = count // 2 if both_ways else count
    near = abs(distance) if both_ways else np.maximum(distance, 0)
    alone = half // 2
    ratio = np.maximum(near, 1).astype("float32") / alone
    far = alone + (np.log(ratio) / math.log(most / alone) * (half - alone)).astype(int)
    buckets = np.where(near < alone, near, np.minimum(far, half - 1))
    return (buckets + half * (distance < 0) * both_ways).astype("int32")
