import numpy as np
import pytest
import tensorflow as tf

from tests.models.test_decoder import IDS, VARIANTS, logits_of, small
from tfllm.generation.network_tf import Network
from tfllm.layers.lora import add_adapters
from tfllm.models.decoder import decoder


def shaken(config, **adapters):
    """A model none of whose weights has its first value."""
    model, random = decoder(config), np.random.default_rng(0)
    if adapters:
        add_adapters(model, **adapters)
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(weight + random.normal(size=weight.shape) * 0.1)
    return model


def through_a_cache(network, xla=False):
    @tf.function(autograph=False, jit_compile=xla)
    def run(ids):
        capacity, padding = 15, tf.constant([2, 2])
        caches, found = network.empty(2, capacity), []
        # Two chunks of several tokens, then one at a time, behind two empty slots.
        for begin, end in ((0, 3), (3, 6), (6, 7), (7, 8), (8, 9)):
            slot, single = tf.constant(begin + 2), end == begin + 1
            hidden, caches = network.run(
                ids[:, begin:end], slot, padding, capacity, caches, single
            )
            found.append(tf.reshape(network.logits(hidden), [2, end - begin, -1]))
        return tf.concat(found, 1)

    return run(IDS).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_what_the_model_computes(variant):
    config = small(**VARIANTS[variant])
    model = shaken(config)
    found = through_a_cache(Network(config, model))
    np.testing.assert_allclose(found, logits_of(model), atol=5e-5)


@pytest.mark.parametrize("variant", ["qwen3", "late window"])
def test_with_xla_too(variant):
    config = small(**VARIANTS[variant])
    model = shaken(config)
    found = through_a_cache(Network(config, model, xla=True), xla=True)
    np.testing.assert_allclose(found, logits_of(model), atol=5e-5)


def test_adapters_are_merged_and_weights_taken_anew():
    config = small()
    model = shaken(config, rank=2)
    network = Network(config, decoder(config))
    before = through_a_cache(network)
    network = Network(config, model)
    np.testing.assert_allclose(through_a_cache(network), logits_of(model), atol=5e-5)
    other = shaken(config)
    network.refresh(other)
    np.testing.assert_allclose(through_a_cache(network), logits_of(other), atol=5e-5)
    assert np.abs(before - logits_of(other)).max() > 0.1
