"""The ways to go on that beam search looks at."""

import numpy as np
import pytest
import tensorflow as tf

from tfllm.generation.beam_tf import likeliest


@pytest.mark.parametrize("vocabulary", [4, 26, 1009, 8000])  # 1009 has no parts
@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_likeliest_are_those_of_top_k(vocabulary, width):
    draw = np.random.default_rng(vocabulary)
    logits = draw.normal(size=(3 * width, vocabulary)).astype("float32") * 3
    before = draw.normal(size=(3, width)).astype("float32")
    scores = before[:, :, None] + tf.reshape(
        tf.nn.log_softmax(logits), [3, width, vocabulary]
    )
    expected = tf.math.top_k(tf.reshape(scores, [3, -1]), 2 * width)
    values, places = likeliest(tf.constant(logits), tf.constant(before), width)
    np.testing.assert_array_equal(places, expected.indices)
    np.testing.assert_allclose(values, expected.values, atol=2e-5)
