import keras
import numpy as np
import pytest
from keras import ops

from tests.layer_checks import check_layer
from tfllm.layers.attention import AttentionBias, MultiHeadAttention
from tfllm.layers.convolution import ConvolutionBank
from tfllm.layers.dropout import Dropout
from tfllm.layers.feed_forward import FeedForward
from tfllm.layers.lstm_block import LSTMBlock
from tfllm.layers.ngrams import NgramBag, hash_ngrams
from tfllm.layers.pooling import AttentionPooling, MaskedPooling
from tfllm.layers.positions import (
    PositionEmbedding,
    RotaryPositions,
    SinusoidalPositions,
    apply_rotary,
    rotary_frequencies,
)
from tfllm.layers.transformer_block import TransformerBlock

RNG = np.random.default_rng(1)
HIDDEN = RNG.normal(size=(3, 6, 8)).astype("float32")
MASK = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [1] + [0] * 5], "int32")
IDS = RNG.integers(1, 50, (3, 6)).astype("int32")
MASKED = {"hidden": HIDDEN, "padding_mask": MASK}


def bias(mask=MASK, **options):
    return ops.convert_to_numpy(AttentionBias(**options)(mask))


@pytest.mark.parametrize(
    "layer",
    [
        MaskedPooling("mean", name="x"),
        MaskedPooling("sum", name="x"),
        MaskedPooling("sqrt", name="x"),
        MaskedPooling("max", name="x"),
        MaskedPooling("cls", name="x"),
        MaskedPooling("last", name="x"),
    ],
)
def test_masked_pooling(layer):
    output = check_layer(layer, MASKED, trains=False)
    expected = {
        "mean": HIDDEN[1, :3].mean(0),
        "sum": HIDDEN[1, :3].sum(0),
        "sqrt": HIDDEN[1, :3].sum(0) / 3**0.5,
        "max": HIDDEN[1, :3].max(0),
        "cls": HIDDEN[1, 0],
        "last": HIDDEN[1, 2],
    }
    np.testing.assert_allclose(output[1], expected[layer.mode], atol=1e-5)
    nothing = ops.convert_to_numpy(layer(HIDDEN, np.zeros_like(MASK)))
    assert (nothing == 0).all()


@pytest.mark.parametrize(
    "layer",
    [
        AttentionPooling(name="x"),
        AttentionPooling(5, name="x"),
        ConvolutionBank(4, (1, 2, 3, 5), name="x", regularizer="l2"),
        LSTMBlock(4, 2, name="x"),
        LSTMBlock(8, 2, bidirectional=False, dropout=0.1, name="x"),
    ],
)
def test_masked_layers(layer):
    check_layer(layer, MASKED)


def test_lstm_reads_backwards_from_the_last_real_token():
    layer = LSTMBlock(4, residual=False)
    whole = ops.convert_to_numpy(layer(HIDDEN, MASK))
    alone = ops.convert_to_numpy(layer(HIDDEN[1:2, :3], MASK[1:2, :3]))
    np.testing.assert_allclose(whole[1:2, :3], alone, atol=1e-6)
    assert (whole[1, 3:] == 0).all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "swiglu", "geglu"])
def test_feed_forward(activation):
    layer = FeedForward(8, 12, activation, use_bias=activation != "swiglu", name="x")
    check_layer(layer, {"hidden": HIDDEN}, padding=False)


def test_positions():
    check_layer(
        PositionEmbedding(10, 8, offset=2, name="x"), {"inputs": HIDDEN}, padding=False
    )
    learned = PositionEmbedding(10, 8)
    counted = ops.convert_to_numpy(learned(HIDDEN))
    given = ops.convert_to_numpy(learned(HIDDEN, np.array([[0, 1, 2, 0, 1, 2]])))
    np.testing.assert_array_equal(given[0, 3:], counted[0, :3])

    fixed = check_layer(
        SinusoidalPositions(8, name="x"),
        {"inputs": HIDDEN},
        trains=False,
        padding=False,
    )
    assert fixed[0, 3, 0] == pytest.approx(np.sin(3), abs=1e-6)
    assert fixed[0, 3, 5] == pytest.approx(np.cos(3 * 10_000**-0.25), abs=1e-6)


def test_rotary_scores_depend_on_the_distance_only():
    check_layer(
        RotaryPositions(8, name="x"), {"inputs": HIDDEN}, trains=False, padding=False
    )
    layer = RotaryPositions(8)
    query, key = RNG.normal(size=(2, 1, 6, 1, 8)).astype("float32")

    def scores(shift):
        rotary = layer(HIDDEN[:1], np.arange(6, dtype="int32")[None] + shift)
        turned = (apply_rotary(ops.convert_to_tensor(x), rotary) for x in (query, key))
        q, k = (ops.convert_to_numpy(x)[0, :, 0] for x in turned)
        return q @ k.T

    np.testing.assert_allclose(scores(0), scores(300), atol=1e-3)
    np.testing.assert_allclose(
        np.diag(scores(0)), np.einsum("blhd,blhd->l", query, key), atol=1e-4
    )


def test_rotary_scaling():
    plain = rotary_frequencies(64, 500_000.0)
    linear = rotary_frequencies(64, 500_000.0, {"rope_type": "linear", "factor": 4.0})
    np.testing.assert_allclose(linear, plain / 4)
    llama = rotary_frequencies(
        64,
        500_000.0,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    assert llama[0] == plain[0]
    assert llama[-1] == pytest.approx(plain[-1] / 8)
    with pytest.raises(ValueError, match="rope_type"):
        rotary_frequencies(64, scaling={"rope_type": "other"})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_kv_heads": 2, "use_bias": False},
        {"num_kv_heads": 1, "qk_norm": True, "output_bias": False},
        {"head_size": 4},
    ],
)
def test_attention(options):
    layer = MultiHeadAttention(8, 4, name="x", **options)
    rotary = np.repeat(RotaryPositions(layer.head_size)(HIDDEN), 3, axis=0)
    arrays = {"hidden": HIDDEN, "bias": bias(), "rotary": rotary}
    # A key's bias moves no softmax, so its gradient is zero up to rounding.
    check_layer(layer, arrays, padding=False, trains=not layer.use_bias)
    query, value = (ops.convert_to_numpy(x.kernel) for x in (layer.query, layer.value))
    size = value.shape[1]
    assert not np.allclose(query[:, :size], value), "kernels must be drawn apart"


def test_attention_equals_its_definition():
    layer = MultiHeadAttention(8, 4, num_kv_heads=2)
    output = ops.convert_to_numpy(layer(HIDDEN, bias(causal=True)))
    dense = [layer.query, layer.key, layer.value, layer.output_dense]
    kernels = [ops.convert_to_numpy(d.kernel) for d in dense]
    q, k, v = (HIDDEN @ kernel for kernel in kernels[:3])
    heads = []
    for head in range(4):
        mine, kv = slice(2 * head, 2 * head + 2), head // 2
        theirs = slice(2 * kv, 2 * kv + 2)
        scores = q[0, :, mine] @ k[0, :, theirs].T / 2**0.5
        scores[np.triu_indices(6, 1)] = -np.inf
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(shares @ v[0, :, theirs])
    expected = np.concatenate(heads, -1) @ kernels[3]
    np.testing.assert_allclose(output[0], expected, atol=1e-5)


def test_attention_bias():
    check_layer(
        AttentionBias(causal=True, name="x"),
        {"padding_mask": MASK},
        trains=False,
        padding=False,
    )
    ones = np.ones((1, 6), "int32")
    allowed = bias(ones, causal=True, window=2)[0, 0] == 0
    np.testing.assert_array_equal(
        allowed, np.tril(np.ones((6, 6))) - np.tril(np.ones((6, 6)), -2) > 0
    )
    near = bias(ones, window=2)[0, 0] == 0
    np.testing.assert_array_equal(near, allowed | allowed.T)
    packed = AttentionBias()(ones, np.array([[0, 0, 0, 1, 1, 2]], "int32"))
    packed = ops.convert_to_numpy(packed)[0, 0] == 0
    assert packed.sum() == 9 + 4 + 1
    assert packed[4, 3]
    assert not packed[3, 2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_first": True, "norm": "rms_norm", "activation": "swiglu"},
        {"norm_first": True, "cross_attention": True},
    ],
)
def test_transformer_block(options):
    layer = TransformerBlock(8, 2, 16, attention_bias=False, name="x", **options)
    arrays = {"hidden": HIDDEN, "bias": bias()}
    if "cross_attention" in options:
        arrays |= {"context": HIDDEN[:, :4] * 2, "context_bias": bias()[..., :4]}
    check_layer(layer, arrays, padding=False)


def test_a_packed_row_gives_what_its_texts_give_alone():
    block = TransformerBlock(8, 2, 16)
    rotary = RotaryPositions(4)
    packed_ids = np.array([[0, 0, 0, 0, 1, 1]], "int32")
    places = np.array([[0, 1, 2, 3, 0, 1]], "int32")
    ones = np.ones((1, 6), "int32")

    def run(hidden, mask, ids=None, positions=None):
        allowed = AttentionBias(causal=True)(mask, ids)
        return block(hidden, bias=allowed, rotary=rotary(hidden, positions))

    packed = ops.convert_to_numpy(run(HIDDEN[:1], ones, packed_ids, places))
    for part in (slice(0, 4), slice(4, 6)):
        alone = ops.convert_to_numpy(run(HIDDEN[:1, part], ones[:, part]))
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


def test_hashes_are_the_same_everywhere_and_stay_in_range():
    ids = np.array([[7, 250_000, 3, 7, 3], [3, 7, 0, 0, 0]], "int32")
    mask = np.array([[1] * 5, [1, 1, 0, 0, 0]], "int32")
    hashes, real = hash_ngrams(ids, mask, (1, 2, 3), 2**20)
    hashes, real = ops.convert_to_numpy(hashes), ops.convert_to_numpy(real)
    assert hashes.min() >= 0
    assert hashes.max() < 2**20
    np.testing.assert_array_equal(real[1], [[1, 1, 0], [1, 1, 1]] + [[0] * 3] * 3)
    # The same unigram anywhere; a bigram differs from its reverse and from (^, x).
    assert hashes[0, 0, 0] == hashes[0, 3, 0] == hashes[1, 1, 0]
    assert hashes[0, 3, 1] == hashes[1, 1, 1]
    assert len({*hashes[0, :, 1], *hashes[1, :2, 1]}) == 6

    def exact(values):
        rolling = [0, 0]
        primes, factors = (46_337, 46_327), (31_337, 7_919)
        for order, value in enumerate(values, 1):
            for i in range(2):
                part = rolling[i] * factors[i] + value % primes[i] + order
                assert part < 2**31
                rolling[i] = part % primes[i]
        return (rolling[0] + primes[0] * rolling[1]) % 2**20

    assert hashes[0, 2, 2] == exact([3 + 1, 250_001, 7 + 1])
    assert hashes[0, 1, 2] == exact([250_001, 7 + 1, 0])


def test_hashes_spread_evenly():
    ids = np.arange(200)[:, None] * np.ones(200, int)
    ids = np.stack([ids, ids.T], -1).reshape(-1, 2).astype("int32")
    hashes = hash_ngrams(ids, np.ones_like(ids), (2,), 2**18)[0]
    distinct = len(np.unique(ops.convert_to_numpy(hashes)[:, 1]))
    assert distinct > 0.98 * 2**18 * (1 - np.exp(-40_000 / 2**18))


@pytest.mark.parametrize("use_bias", [False, True])
def test_ngram_bag(use_bias):
    layer = NgramBag((1, 2, 3), 512, 8, use_bias=use_bias, name="x")
    check_layer(layer, {"token_ids": IDS, "padding_mask": MASK})


def test_ngram_bag_is_tfidf_of_what_occurs():
    """Each n-gram once, its weight over the norm of all weights; zeros say nothing."""
    layer = NgramBag((1, 2), 4096, 3, initializer="normal")
    ids, mask = np.array([[5, 7, 5, 7, 9, 0]]), np.array([[1, 1, 1, 1, 1, 0]])
    layer(ids, mask)
    random = np.random.default_rng(0)
    weights = random.uniform(0.5, 2, 4096).astype("float32")
    hashes, seen = hash_ngrams(ids, mask, (1, 2), 4096)
    found = set(ops.convert_to_numpy(hashes)[ops.convert_to_numpy(seen) > 0].tolist())
    assert len(found) == 3 + 4  # of the bigrams, one with the mark of the start
    weights[min(found)] = 0
    layer.ngram_weights.assign(weights)
    picked = np.array(sorted(found))
    share = weights[picked] / np.linalg.norm(weights[picked])
    expected = share @ ops.convert_to_numpy(layer.embeddings)[picked]
    np.testing.assert_allclose(layer(ids, mask)[0], expected, rtol=1e-5)


def test_dropout_keeps_the_mean_and_drops_whole_vectors():
    keras.utils.set_random_seed(0)
    layer = Dropout(0.5, shared_axes=(-1,))
    ones = np.ones((200, 10, 4), "float32")
    dropped = ops.convert_to_numpy(layer(ones, training=True))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert (dropped == dropped[..., :1]).all()
    assert dropped.mean() == pytest.approx(1, abs=0.1)
    assert not np.allclose(dropped, layer(ones, training=True))
    np.testing.assert_array_equal(layer(ones), ones)
    with pytest.raises(ValueError, match="rate"):
        Dropout(1.0)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="mode"):
        MaskedPooling("median")
    with pytest.raises(ValueError, match="num_kv_heads"):
        MultiHeadAttention(8, 4, num_kv_heads=3)
    with pytest.raises(ValueError, match="norm must be"):
        TransformerBlock(8, 2, 16, norm="batch")
    with pytest.raises(ValueError, match="pooling"):
        NgramBag((1,), 8, 8, pooling="max")
