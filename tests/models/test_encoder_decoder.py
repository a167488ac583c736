"""Encoder-decoders: padding and the future change nothing, layers serialise."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.layer_checks import check_layer
from tfllm.layers.attention import AttentionBias
from tfllm.layers.next_token_loss import NextTokenLoss
from tfllm.layers.pointer import Pointer, pointed_logits, pointed_losses
from tfllm.layers.positions import distance_buckets
from tfllm.layers.recurrent_block import RecurrentBlock
from tfllm.layers.token_embedding import TokenEmbedding
from tfllm.models.decoder import layers_of
from tfllm.models.encoder_decoder import (
    T5,
    encode,
    encoder_decoder,
    keep,
    run_pairs,
    shape_of,
)

RNG = np.random.default_rng(2)
SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
KINDS = {
    "transformer": {"source_vocabulary_size": 30},
    "after": {"norm_first": False, "position": "learned", "max_length": 20},
    "t5": {**T5, "activation": "geglu_tanh", "scale_logits": True},
    "lstm": {"architecture": "lstm", "attention": "additive"},
    "pointer": {"pointer": True},
    "lstm pointer": {"architecture": "lstm", "pointer": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_future_change_nothing(kind):
    keras.utils.set_random_seed(0)
    config = shape_of("tiny", 40, **SMALL | KINDS[kind])
    model = encoder_decoder(config)
    arrays = {"source_ids": RNG.integers(3, 30, (2, 5))}
    arrays["token_ids"] = RNG.integers(3, 40, (2, 4))
    arrays |= {"source_mask": np.ones((2, 5)), "padding_mask": np.ones((2, 4))}
    arrays = {name: array.astype("int32") for name, array in arrays.items()}
    plain = ops.convert_to_numpy(model(arrays))
    assert plain.shape == (2, 4, 40) and plain.std() > 0.01
    padded = {name: np.pad(array, [[0, 0], [0, 3]]) for name, array in arrays.items()}
    found = ops.convert_to_numpy(model(padded))[:, :4]
    np.testing.assert_allclose(found, plain, atol=1e-4)
    changed = arrays | {"token_ids": arrays["token_ids"].copy()}
    changed["token_ids"][:, -1] += 1 - 2 * (changed["token_ids"][:, -1] > 20)
    found = ops.convert_to_numpy(model(changed))
    np.testing.assert_allclose(found[:, :-1], plain[:, :-1], atol=1e-4)
    assert abs(found[:, -1] - plain[:, -1]).max() > 1e-3
    shares, _ = run_pairs(config, layers_of(model), arrays, shares=1)
    assert shares.shape[2:] == (4, 5)
    np.testing.assert_allclose(ops.sum(shares, -1), 1.0, atol=1e-5)
    source = arrays["source_ids"], arrays["source_mask"]
    context = encode(config, layers_of(model), *source)
    assert len(keep(config, layers_of(model), context)) == config.decoder_layers


def test_a_pointer_adds_up_what_the_source_holds():
    source, mask = np.array([[5, 7, 5, 0]], "int32"), np.array([[1, 1, 1, 0]], "int32")
    arrays = (RNG.normal(size=(1, n, 8)).astype("float32") for n in (2, 4))
    table = RNG.normal(size=(9, 8)).astype("float32")
    hidden, context, last, vectors = *arrays, table[[[3, 7]]], table[source]
    layer = Pointer(8)
    ways = layer(hidden, last, context, mask, vectors)
    kept = layer(hidden, last, layer.keep(context, vectors), mask)
    np.testing.assert_array_equal(ways, kept)
    again = Pointer.from_config(layer.get_config() | {"dtype": "mixed_bfloat16"})
    low = again(hidden, last, context, mask, vectors)
    again.set_weights(layer.get_weights())
    low = again(hidden, last, context, mask, vectors)
    assert low.dtype == "float32"
    shares = np.exp(ways)
    np.testing.assert_allclose(np.exp(low), shares, atol=0.02)
    np.testing.assert_allclose(shares.sum(-1), 1.0, atol=1e-6)
    assert not shares[..., 4].any()  # padding
    assert shares[0, 1, 1:].argmax() == 2  # behind the 7 that was told last
    logits = RNG.normal(size=(1, 2, 9)).astype("float32")
    found = np.exp(pointed_logits(logits, ways, source))
    plain = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = plain * shares[..., :1]
    wanted[..., 5] += shares[..., 1] + shares[..., 3]
    wanted[..., 7] += shares[..., 2]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # The loss of a given token is what these probabilities make of it.
    targets = np.array([[5, 3]], "int32")
    losses = ops.sparse_categorical_crossentropy(targets, logits, True)
    told = pointed_losses(losses, ways, source, targets)
    picked = -np.log(wanted[0, [0, 1], [5, 3]])
    np.testing.assert_allclose(told[0], picked, rtol=1e-5)
    with pytest.raises(ValueError, match="same"):
        encoder_decoder(shape_of("tiny", 40, pointer=True, source_vocabulary_size=9))


def test_layers():
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], "int32")
    context_bias = ops.convert_to_numpy(AttentionBias()(mask))
    arrays = {
        "hidden": RNG.normal(size=(2, 4, 8)).astype("float32"),
        "padding_mask": mask,
        "context": RNG.normal(size=(2, 4, 8)).astype("float32"),
        "context_bias": context_bias,
    }
    for attention in ("multiplicative", "additive"):
        layer = RecurrentBlock(8, attention, name="x")
        check_layer(layer, arrays, padding=False)
    with pytest.raises(ValueError, match="multiplicative"):
        RecurrentBlock(8, "cosine")
    layer = AttentionBias(relative_buckets=8, num_heads=2, relative_distance=9)
    (bias,) = ops.convert_to_numpy(layer(mask[:1]))
    table = ops.convert_to_numpy(layer.embeddings)
    assert bias.shape == (2, 4, 4)
    np.testing.assert_allclose(bias[:, 2, 1], table[1])  # a key one place before
    np.testing.assert_allclose(bias[:, 1, 2], table[5])
    buckets = distance_buckets(32, 128, False)
    assert buckets[:129].max() == 0 and buckets[-1] == 31
    assert buckets[128 : 128 + 17].tolist() == [*range(17)]


@pytest.mark.parametrize("size", [12, 5000])
def test_label_smoothing_is_that_of_the_definition(size):
    embedding = TokenEmbedding(size, 6)
    embedding(np.zeros((1, 1), "int32"))
    hidden = RNG.normal(size=(2, 3, 6)).astype("float32")
    targets = RNG.integers(0, size, (2, 3)).astype("int32")
    weights = np.ones((2, 3), "float32")
    layer = NextTokenLoss(embedding, label_smoothing=0.2)
    found = ops.convert_to_numpy(layer(hidden, targets, weights, training=True))
    logits = ops.convert_to_numpy(embedding(hidden, reverse=True)).astype("float64")
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    right = np.take_along_axis(logs, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, -0.8 * right - 0.2 * logs.mean(-1), atol=1e-4)
    plain = ops.convert_to_numpy(layer(hidden, targets, weights))
    np.testing.assert_allclose(plain, -right, atol=1e-4)
