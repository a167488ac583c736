import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from tests.layer_checks import check_layer
from tests.models.plain_cache import Cache
from tfllm.layers.attention import AttentionBias, MultiHeadAttention
from tfllm.layers.chunked_loss import chunked_cross_entropy
from tfllm.layers.output_bias import OutputBias
from tfllm.layers.transformer_block import TransformerBlock
from tfllm.models.decoder import (
    STYLES,
    DecoderConfig,
    decoder,
    hidden_model,
    layers_of,
    output_matrix,
    run,
    to_logits,
)
from tfllm.models.encoder import SIZES, EncoderConfig, encoder

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 50, (2, 9)).astype("int32")
ONES = np.ones_like(IDS)
VARIANTS = {
    **{name: {"window": None, **style} for name, style in STYLES.items()},
    "grouped": {"num_kv_heads": 2, "head_size": 12},
    "single": {"num_kv_heads": 1, "tie_embeddings": False},
    "window": {"window": 4},
    "late window": {"window": 3, "window_from": 1},
}


def small(**options):
    sizes = {"hidden_size": 32, "num_layers": 2, "intermediate_size": 48}
    return DecoderConfig(
        50, **sizes | {"max_length": 16, "initializer_range": 0.3} | options
    )


def logits_of(model, ids=IDS, mask=None, **more):
    mask = np.ones_like(ids) if mask is None else mask
    return ops.convert_to_numpy(model({"token_ids": ids, "padding_mask": mask, **more}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_sees_what_stands_before_it(variant):
    config = small(**VARIANTS[variant])
    model = decoder(config)
    logits = logits_of(model)
    assert logits.dtype == "float32"
    assert logits.std() > 0.1
    other = IDS.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 50
    changed = np.abs(logits_of(model, other) - logits).max(axis=(0, 2)) > 1e-5
    np.testing.assert_array_equal(changed, np.arange(9) >= 5)
    mask = (np.arange(12) < 9).astype("int32")[None].repeat(2, 0)
    padded = logits_of(model, np.pad(IDS, ((0, 0), (0, 3))), mask)
    np.testing.assert_allclose(padded[:, :9], logits, atol=1e-4)
    first = IDS.copy()
    first[:, 0] = (first[:, 0] + 1) % 50
    seen = np.abs(logits_of(model, first) - logits).max(axis=(0, 2)) > 1e-5
    reach = 2 * (4 - 1) if variant == "window" else 8
    np.testing.assert_array_equal(seen, np.arange(9) <= reach)
    again = decoder(DecoderConfig(**config.to_dict()))
    assert [v.path for v in again.variables] == [v.path for v in model.variables]


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_a_cache_the_logits_are_the_same(variant):
    config = small(**VARIANTS[variant])
    model = decoder(config)
    layers, capacity = layers_of(model), 11
    caches = [Cache(capacity, config) for _ in range(config.num_layers)]
    found = []
    for begin, end in ((0, 4), (4, 5), (5, 7), (7, 9)):
        places = np.arange(begin, end, dtype="int32")
        mask = (np.arange(capacity) < end).astype("int32")[None].repeat(2, 0)
        hidden = run(
            config,
            layers,
            IDS[:, begin:end],
            mask,
            positions=places[None].repeat(2, 0),
            places=places,
            caches=caches,
        )
        found.append(ops.convert_to_numpy(to_logits(layers, hidden)))
    np.testing.assert_allclose(np.concatenate(found, 1), logits_of(model), atol=2e-5)


def test_packed_texts_do_not_see_each_other():
    model = decoder(small(), packed=True)
    sequence_ids = np.array([[0] * 4 + [1] * 5] * 2, "int32")
    positions = np.array([[*range(4), *range(5)]] * 2, "int32")
    packed = logits_of(model, sequence_ids=sequence_ids, positions=positions)
    for part in (slice(0, 4), slice(4, 9)):
        alone = logits_of(
            model,
            IDS[:, part],
            sequence_ids=sequence_ids[:, part],
            positions=positions[:, part],
        )
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_chunked_loss_is_the_loss_of_the_logits(tied):
    model = decoder(small(tie_embeddings=tied))
    inputs = {"token_ids": IDS, "padding_mask": ONES}
    hidden = hidden_model(model)(inputs)
    chunked = chunked_cross_entropy(hidden, output_matrix(model), IDS, chunk_size=4)
    plain = keras.losses.sparse_categorical_crossentropy(
        IDS, logits_of(model), from_logits=True
    )
    np.testing.assert_allclose(chunked, plain, atol=1e-4)


def test_it_learns_in_mixed_precision_and_what_joins_the_residual_starts_small():
    keras.utils.set_random_seed(0)
    model = decoder(small(dropout=0.1, **STYLES["gpt2"]), "mixed_bfloat16")
    block = model.get_layer("block_0")
    small_, plain = (
        float(ops.std(dense.kernel))
        for dense in (block.feed_forward.down, block.feed_forward.up)
    )
    assert small_ / plain == pytest.approx(0.5, rel=0.15)
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    inputs = {"token_ids": IDS[:, :-1], "padding_mask": ONES[:, :-1]}
    losses = [float(model.train_on_batch(inputs, IDS[:, 1:])) for _ in range(40)]
    assert losses[-1] < losses[0] / 2


def test_unknown_positions_are_an_error():
    with pytest.raises(ValueError, match="position"):
        decoder(small(position="sinusoidal"))


def test_layers_with_what_decoders_need():
    hidden = RNG.normal(size=(3, 6, 8)).astype("float32")
    check_layer(OutputBias(name="x", dtype=None), {"logits": hidden}, padding=False)
    options = {"output_initializer": "zeros", "norm_first": True}
    block = TransformerBlock(8, 2, 16, name="x", **options)
    np.testing.assert_array_equal(block(hidden), hidden)
    again = TransformerBlock.from_config(block.get_config())
    np.testing.assert_array_equal(again(hidden), hidden)
    # What a decoding step asks for: one query at place 4 of a cache of 6.
    bias = AttentionBias(causal=True, window=3)
    row = bias(np.ones((1, 6), "int32"), places=np.array([4], "int32"))
    np.testing.assert_array_equal(row[0, 0, 0] == 0, [0, 0, 1, 1, 1, 0])
    attention = MultiHeadAttention(8, 2, name="x")
    kept = []

    def cache(*new):
        kept.append(new)
        return [ops.transpose(x, (0, 2, 1, 3)) for x in new]

    whole = attention(hidden, cache=cache)
    np.testing.assert_allclose(whole, attention(hidden), atol=1e-6)
    assert [x.shape for x in kept[0]] == [(3, 6, 2, 4)] * 2
    again = attention(hidden, context=attention.keep(hidden))
    np.testing.assert_allclose(again, whole, atol=1e-6)


def test_named_sizes_and_heads_of_the_encoder():
    assert list(SIZES) == ["tiny", "mini", "small", "base"]
    config = EncoderConfig(60, **SIZES["tiny"], max_length=12)
    model = encoder(config, masked_lm=True, next_sentence=True, num_labels=3)
    inputs = {"token_ids": IDS, "padding_mask": ONES, "segment_ids": ONES}
    shapes = {name: x.shape for name, x in model(inputs).items()}
    assert shapes == {
        "hidden": (2, 9, 128),
        "pooled": (2, 128),
        "masked_lm": (2, 9, 60),
        "next_sentence": (2, 2),
        "logits": (2, 3),
    }
    tags = encoder(EncoderConfig(60, pooler=False, num_segments=1), num_labels=3)
    inputs.pop("segment_ids")
    assert tags(inputs)["logits"].shape == (2, 9, 3)


ON_JAX = """
import sys; sys.modules["tensorflow"] = None
import numpy as np, keras
from tfllm.models.decoder import DecoderConfig, decoder
from tfllm.models.pretrained import open_checkpoint, save_hf
keras.utils.set_random_seed(0)
config = DecoderConfig(50, 32, 2, 4, 2, window=4)
model = decoder(config)
ids = np.arange(18, dtype="int32").reshape(2, 9)
inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
save_hf(model, config, "mistral", sys.argv[1])
np.save(sys.argv[1] + "/logits.npy", model(inputs))
again = open_checkpoint(sys.argv[1]).build()
np.testing.assert_array_equal(again(inputs), model(inputs))
"""


def test_jax_gives_the_same_without_tensorflow(tmp_path, root):
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", ON_JAX, str(tmp_path / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    from tfllm.models.pretrained import open_checkpoint

    model = open_checkpoint(tmp_path / "model").build()
    logits = logits_of(model, np.arange(18, dtype="int32").reshape(2, 9))
    np.testing.assert_allclose(
        logits, np.load(tmp_path / "model/logits.npy"), atol=1e-5
    )
