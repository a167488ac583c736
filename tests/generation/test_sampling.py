import numpy as np
import pytest
import tensorflow as tf

from tfllm.generation import sampling_tf
from tfllm.generation.sampling_tf import chosen, filtered, penalised, uniforms

RANDOM = np.random.default_rng(0)


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Shares of one row, told from their sorted order."""
    scores = logits.astype("float64") / temperature
    shares = np.exp(scores - scores.max())
    order = np.argsort(-shares, kind="stable")
    keep = np.ones(len(shares), bool)
    if top_k:
        keep[order[top_k:]] = False
    sums = np.cumsum(shares[order] * keep[order])
    before = sums - shares[order] * keep[order]
    late = before >= top_p * sums[-1]
    late[0] = False
    keep[order[late]] = False
    keep &= shares >= min_p
    shares = np.where(keep, shares, 0)
    return shares / shares.sum()


SETTINGS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_k": 400},
    {"top_p": 0.6},
    {"top_p": 0.0},
    {"top_k": 20, "top_p": 0.8},
    {"temperature": 3.0, "top_p": 0.95},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 300, "top_p": 0.9, "min_p": 0.05},
]


def columns(rows, **more):
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    names = {
        name: [row.get(name, value) for row in rows] for name, value in off.items()
    }
    types = {"top_k": "int32"}
    return {
        name: tf.constant(np.array(values, types.get(name, "float32")))
        for name, values in (names | more).items()
    }


@pytest.mark.parametrize("size", [37, 1000])
def test_what_is_kept_is_what_the_definition_says(size):
    logits = RANDOM.normal(size=(len(SETTINGS), size), scale=2).astype("float32")
    kept = filtered(tf.constant(logits), columns(SETTINGS)).numpy()
    kept = kept / kept.sum(1, keepdims=True)
    for row, values, settings in zip(kept, logits, SETTINGS, strict=True):
        expected = reference(values, **settings)
        np.testing.assert_array_equal(row > 0, expected > 0, err_msg=str(settings))
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_a_row_alone_keeps_the_same():
    logits = RANDOM.normal(size=(len(SETTINGS), 1000)).astype("float32")
    whole = filtered(tf.constant(logits), columns(SETTINGS)).numpy()
    for i, settings in enumerate(SETTINGS):
        alone = filtered(tf.constant(logits[i : i + 1]), columns([settings])).numpy()
        np.testing.assert_array_equal(alone[0], whole[i])


def test_draws_follow_the_shares():
    count, logits = 40_000, RANDOM.normal(size=12).astype("float32")
    row = {"temperature": 0.9, "top_k": 7}
    settings = columns([row] * count, seed=np.arange(count))
    settings["seed"] = tf.range(count, dtype=tf.int64)
    drawn = chosen(tf.tile(logits[None], [count, 1]), 3, settings).numpy()
    shares, expected = (
        np.bincount(drawn, minlength=12) / count,
        reference(logits, **row),
    )
    # Five standard errors; what has no share is never drawn.
    assert np.all(np.abs(shares - expected) < 5 * np.sqrt(expected / count) + 1e-12)


def test_no_temperature_is_the_likeliest():
    logits = RANDOM.normal(size=(2, 30)).astype("float32")
    settings = columns([{"temperature": 0.0}, {"temperature": 1.0}])
    settings["seed"] = tf.constant([5, 5], tf.int64)
    first = [int(chosen(logits, n, settings)[0]) for n in range(20)]
    assert set(first) == {int(logits[0].argmax())}
    assert len({int(chosen(logits, n, settings)[1]) for n in range(20)}) > 3


def test_random_numbers_are_those_of_splitmix64():
    mask = (1 << 64) - 1

    def mixed(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    seeds = [0, 1, -1, 2**63 - 1]
    for number in (0, 1, 300):
        found = uniforms(tf.constant(seeds, tf.int64), number).numpy()
        for seed, value in zip(seeds, found, strict=True):
            state = mixed((seed + golden) & mask)
            bits = mixed((state + number * golden) & mask) >> 41
            assert value == (bits + 0.5) / 2**23
    many = uniforms(tf.range(100_000, dtype=tf.int64), 0).numpy()
    assert many.min() > 0
    assert many.max() < 1
    counts = np.histogram(many, 100, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-squared, 99 degrees


def test_penalties():
    logits = tf.constant([[2.0, -1.0, 0.5, 3.0], [1.0, 1.0, 1.0, 1.0]])
    # Slot 1 is the last of the prompts; the second row's begins there.
    history = tf.constant([[0, -1], [1, 2], [3, 0], [3, 0], [-1, -1]])
    settings = {"repetition_penalty": tf.constant([2.0, 1.0])}
    settings["frequency_penalty"] = tf.constant([0.0, 0.25])
    found = penalised(logits, history, 1, settings).numpy()
    np.testing.assert_allclose(found, [[1, -2, 0.5, 1.5], [0.5, 1, 1, 1]])
    settings = {"repetition_penalty": tf.constant([1.0, 1.0])}
    np.testing.assert_array_equal(penalised(logits, history, 1, settings), logits)


def test_most_rows_are_settled_by_a_few_tokens(monkeypatch):
    """The way over the whole vocabulary gives the same."""
    logits = tf.constant(RANDOM.normal(size=(len(SETTINGS), 600)).astype("float32"))
    short = filtered(logits, columns(SETTINGS)).numpy()
    monkeypatch.setattr(sampling_tf, "SHORT", 10_000)
    np.testing.assert_array_equal(filtered(logits, columns(SETTINGS)), short)
