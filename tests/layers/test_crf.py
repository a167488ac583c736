"""The linear-chain CRF against all paths written out."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import logsumexp

from tfllm.layers.crf import CRF, log_likelihood, log_partition, viterbi

RNG = np.random.default_rng(3)
LENGTHS, TAGS = [5, 1, 3, 4, 0], 3
MASK = (np.arange(5) < np.array(LENGTHS)[:, None]).astype("float32")


def scores(scale=3.0):
    emissions = RNG.normal(size=(5, 5, TAGS)) * scale
    transitions = RNG.normal(size=(TAGS, TAGS)) * scale
    return emissions.astype("float32"), transitions.astype("float32")


def paths(emissions, transitions, length):
    """Every path of a row with its score."""
    for path in itertools.product(range(TAGS), repeat=length):
        score = sum(emissions[t, tag] for t, tag in enumerate(path))
        yield path, score + sum(transitions[a, b] for a, b in itertools.pairwise(path))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_sums_and_best_path_are_those_of_all_paths(scale):
    emissions, transitions = scores(scale)
    total = ops.convert_to_numpy(log_partition(emissions, transitions, MASK))
    best = ops.convert_to_numpy(viterbi(emissions, transitions, MASK))
    gold = RNG.integers(0, TAGS, (5, 5))
    likely = log_likelihood(emissions, transitions, MASK, gold)
    likely = ops.convert_to_numpy(likely)
    for row, length in enumerate(LENGTHS[:-1]):
        every = dict(paths(emissions[row], transitions, length))
        expected = logsumexp(list(every.values()))
        assert total[row] == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert tuple(best[row, :length]) == max(every, key=every.get)
        assert (best[row, length:] == 0).all()
        wanted = every[tuple(gold[row, :length])] - expected
        assert likely[row] == pytest.approx(wanted, rel=1e-4, abs=1e-3)
    assert likely[-1] == 0


def layer(learned=True):
    moves = np.ones((TAGS, TAGS), bool)
    moves[0, 2] = False
    crf = CRF(moves, [True, True, False], learned, name="crf")
    crf(*map(ops.convert_to_tensor, (scores()[0], MASK)))
    for weight in crf.weights:
        weight.assign(RNG.normal(size=weight.shape))
    return crf


@pytest.mark.parametrize("learned", [True, False])
def test_the_layer_leaves_out_what_must_not_be_and_tells_chances(learned):
    crf, (emissions, _) = layer(learned), scores(1.0)
    found = {k: ops.convert_to_numpy(v) for k, v in crf(emissions, MASK).items()}
    for row, length in enumerate(LENGTHS[:-1]):
        every = dict(paths(found["emissions"][row], found["transitions"], length))
        total = logsumexp(list(every.values()))
        best = tuple(found["tags"][row, :length])
        assert best == max(every, key=every.get) and best[0] != 2
        assert (0, 2) not in itertools.pairwise(best)
        assert found["score"][row] == pytest.approx(np.exp(every[best] - total), 1e-3)
        for first, last in itertools.combinations_with_replacement(range(length), 2):
            part = slice(first, last + 1)
            same = [score for path, score in every.items() if path[part] == best[part]]
            inner = found["along"][row, last] - found["along"][row, first]
            log = found["before"][row, first] + inner + found["after"][row, last]
            assert log == pytest.approx(logsumexp(same) - total, abs=1e-3)
    assert found["score"][-1] == 1
    copy = CRF.from_config(crf.get_config())
    copy(emissions, MASK)
    assert [w.path for w in copy.weights] == [w.path for w in crf.weights]


def test_gradients_are_those_of_differences():
    tf = pytest.importorskip("tensorflow")
    emissions, transitions = (tf.constant(x) for x in scores(1.0))
    gold = RNG.integers(0, TAGS, (5, 5))

    def loss(emissions, transitions):
        likely = log_likelihood(emissions, transitions, tf.constant(MASK), gold)
        return -tf.reduce_sum(likely)

    def slopes(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            value = loss(*values)
        return tape.gradient(value, values)

    values = [emissions, transitions]
    given, numeric = tf.test.compute_gradient(loss, values, delta=1e-2)
    for one, other in zip(given, numeric, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)
    compiled = tf.function(slopes, jit_compile=True)(*values)
    for one, other in zip(given, compiled, strict=True):
        np.testing.assert_allclose(one.ravel(), np.ravel(other), atol=1e-4)
    assert not given[0].reshape(5, 5, TAGS)[-1].any()


def test_more_padding_and_other_lengths_change_nothing():
    emissions = keras.Input((None, TAGS))
    mask = keras.Input((None,), dtype="int32")
    model = keras.Model([emissions, mask], layer()(emissions, mask))
    values, real = scores(1.0)[0], MASK.astype("int32")
    short = model.predict_on_batch([values, real])
    wide = np.pad(values, ((0, 0), (0, 3), (0, 0)), constant_values=9)
    long = model.predict_on_batch([wide, np.pad(real, ((0, 0), (0, 3)))])
    for name in ("tags", "before", "along", "after"):
        np.testing.assert_allclose(
            short[name] * MASK, long[name][:, :5] * MASK, atol=1e-4, err_msg=name
        )
    np.testing.assert_allclose(short["score"], long["score"], atol=1e-5)
    one = model.predict_on_batch([values[:, :1], real[:, :1]])
    assert one["tags"].shape == (5, 1)
