"""The cheaper ways through a layer come to the same figures."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfllm.layers.dropout import Dropout
from tfllm.layers.recompute import recompute
from tfllm.layers.transformer_block import TransformerBlock
from tfllm.models.encoder import EncoderConfig, encoder
from tfllm.training.distribution_tf import make_strategy
from tfllm.training.speed_tf import speed_up


def make(dtype, fast, **options):
    keras.utils.set_random_seed(2)
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_length": 9}
    shape |= {"intermediate_size": 32, "num_segments": 0, "dropout": 0.0}
    config = EncoderConfig(31, **shape | {"attention_dropout": 0.0} | options)
    model = encoder(config, dtype)
    for number, variable in enumerate(model.trainable_variables):
        noise = keras.random.normal(variable.shape, stddev=0.2, seed=number)
        variable.assign_add(noise)  # biases and norms too
    if fast:
        speed_up(model)
    return model


def batch():
    random = np.random.default_rng(0)
    ids = tf.constant(random.integers(1, 31, (5, 9)), tf.int32)
    mask = tf.constant((np.arange(9) < random.integers(3, 10, (5, 1))) * 1, tf.int32)
    return {"token_ids": ids, "padding_mask": mask}


def gradients(model, strategy=None):
    @tf.function
    def run(data):
        with tf.GradientTape() as tape:
            outputs = model(data, training=True)
            hidden = tf.cast(outputs["hidden"], "float32")
            pooled = tf.cast(outputs["pooled"], "float32")
            loss = tf.reduce_sum(hidden**3) / 50 + tf.reduce_sum(pooled)
        trained = [v.value for v in model.trainable_variables]
        found = tape.gradient(loss, trained)
        return hidden, [tf.convert_to_tensor(g) for g in found]

    if strategy:
        results = strategy.run(run, args=(batch(),))
        return tf.nest.map_structure(
            lambda x: strategy.experimental_local_results(x)[0], results
        )
    return run(batch())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "rotary", "num_kv_heads": 2, "norm_first": True},
        {"activation": "geglu", "norm": "rms_norm"},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_same_outputs_and_gradients(dtype, options):
    plain, fast = make(dtype, False, **options), make(dtype, True, **options)
    (hidden, expected), (ours, found) = gradients(plain), gradients(fast)
    tolerance = 1e-4 if dtype == "float32" else 0.06
    np.testing.assert_allclose(ours, hidden, atol=tolerance, rtol=tolerance)
    for a, b, v in zip(found, expected, plain.trainable_variables, strict=True):
        if v.path.endswith("key/bias"):
            continue  # exactly 0 in theory, rounding in practice
        scale = np.abs(b).max() + 1e-3
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance, err_msg=v.path)
    # Evaluation takes the plain way.
    a, b = (model(batch(), training=False)["hidden"] for model in (plain, fast))
    np.testing.assert_array_equal(a, b)


def test_with_recomputed_blocks_and_dropout():
    runs = []
    for again in (False, True):
        model = make("float32", True, dropout=0.3, attention_dropout=0.2)
        for layer in model._flatten_layers():
            if again and isinstance(layer, TransformerBlock):
                recompute(layer)
        runs.append(gradients(model))
    for a, b in zip(*map(tf.nest.flatten, runs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_inside_a_strategy():
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("TensorFlow started before two devices could be made")
    strategy = make_strategy("mirrored")
    with strategy.scope():
        model = make("float32", True)
    one, two = gradients(make("float32", False)), gradients(model, strategy)
    for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_draws_anew(rate):
    inputs = keras.Input((1000,))
    model = keras.Model(inputs, Dropout(rate, name="dropout")(inputs))
    speed_up(model)
    ones = tf.ones([200, 1000])
    with tf.GradientTape() as tape:
        tape.watch(ones)
        first = model(ones, training=True)
    second = model(ones, training=True).numpy()
    np.testing.assert_array_equal(tape.gradient(first, ones), first)
    first = first.numpy()
    assert first.mean() == pytest.approx(1, abs=0.01)
    assert (first == 0).mean() == pytest.approx(rate, abs=0.005)
    both = ((first == 0) & (second == 0)).mean()
    assert both == pytest.approx(rate**2, abs=0.005)
    # Neighbours are independent, although four share a random word.
    pairs = ((first[:, :-1] == 0) & (first[:, 1:] == 0)).mean()
    assert pairs == pytest.approx(rate**2, abs=0.005)
