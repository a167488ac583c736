"""Gradients of a block against a loop and autodiff, counts, a run in two parts."""

import numpy as np
import pytest

from tfllm.tasks import word_vectors as module
from tfllm.tasks.word_vectors import CHUNK, Words, WordVectors

WINDOW, SIZE = 3, 5


@pytest.fixture(scope="module")
def block():
    """Vectors of two chunks, reaches and documents."""
    draw = np.random.default_rng(0)
    count = 2 * CHUNK
    first, second, noise = draw.normal(size=(3, count, SIZE)).astype(np.float32)
    reach = draw.integers(1, WINDOW + 1, count)
    documents = np.sort(draw.integers(0, 6, count))
    return first, second, noise, reach, documents


def near(reach, documents, i, j):
    """Whether word j is told from its neighbour i."""
    return 0 < abs(i - j) <= reach[j] and documents[i] == documents[j]


def skip_gram_loss(tf, first, second, noise, reach, documents, negatives):
    losses, pairs = [], 0
    for i in range(len(reach)):
        chunk = slice(i // CHUNK * CHUNK, (i // CHUNK + 1) * CHUNK)
        for j in range(len(reach)):
            if near(reach, documents, i, j):
                pairs += 1
                losses.append(
                    -tf.math.log_sigmoid(tf.tensordot(first[i], second[j], 1))
                )
                others = -tf.math.log_sigmoid(-tf.linalg.matvec(noise[chunk], first[i]))
                losses.append(negatives * tf.reduce_mean(others))
    return tf.add_n(losses), pairs


def cbow_loss(tf, first, second, noise, reach, documents, negatives):
    losses = []
    for j in range(len(reach)):
        chunk = slice(j // CHUNK * CHUNK, (j // CHUNK + 1) * CHUNK)
        around = [i for i in range(len(reach)) if near(reach, documents, i, j)]
        if around:
            mean = tf.reduce_mean(tf.gather(first, around), 0)
            others = -tf.math.log_sigmoid(-tf.linalg.matvec(noise[chunk], mean))
            own = -tf.math.log_sigmoid(tf.tensordot(mean, second[j], 1))
            losses.append(own + negatives * tf.reduce_mean(others))
    return tf.add_n(losses), len(losses)


@pytest.mark.parametrize("method", ["skip_gram", "cbow"])
def test_gradients_are_those_of_autodiff(block, method):
    tf = pytest.importorskip("tensorflow")
    sources = [tf.constant(x) for x in block[:3]]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        plain = {"skip_gram": skip_gram_loss, "cbow": cbow_loss}[method]
        expected, pairs = plain(tf, *sources, *block[3:], 5)
    gradients = tape.gradient(expected, sources)
    learn = getattr(module, f"{method}_gradients")
    loss, count, *found = learn(*block, WINDOW, 5)
    assert loss == pytest.approx(float(expected), rel=1e-5) and count == pairs
    for own, other in zip(found, gradients, strict=True):
        np.testing.assert_allclose(own, tf.convert_to_tensor(other), atol=2e-5)


def test_gradients_of_glove_are_differences():
    draw = np.random.default_rng(1)
    tables = {name: draw.normal(size=(6, 4)) for name in ("inside", "outside")}
    words, others = np.array([0, 1, 2, 2]), np.array([3, 3, 0, 5])
    counts = np.array([0.5, 40.0, 3.0, 9.0])
    loss, gradients = module.glove_gradients(tables, words, others, counts)
    first, second = tables["inside"][words], tables["outside"][others]
    off = (first[:, :3] * second[:, :3]).sum(1) + first[:, 3] + second[:, 3]
    off -= np.log(counts)
    assert loss == pytest.approx(
        0.5 * np.sum(np.minimum(1, (counts / 10) ** 0.75) * off**2)
    )
    for name, (rows, grad) in gradients.items():
        rows, grad = module.summed(rows, grad)
        for row, own in zip(rows, grad, strict=True):
            for k in range(4):
                moved = {key: one.copy() for key, one in tables.items()}
                moved[name][row, k] += 1e-6
                higher, _ = module.glove_gradients(moved, words, others, counts)
                assert (higher - loss) / 1e-6 == pytest.approx(own[k], abs=1e-3)


def test_pairs_are_counted_as_a_loop_counts_them(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 7)
    draw = np.random.default_rng(2)
    words = Words(draw.integers(0, 9, 40), np.sort(draw.integers(0, 4, 40)))
    expected = {}
    for i in range(40):
        for j in range(40):
            if 0 < abs(i - j) <= 4 and words.documents[i] == words.documents[j]:
                key = int(words.ids[i]), int(words.ids[j])
                expected[key] = expected.get(key, 0) + 1 / abs(i - j)
    a, b, counts = module.count_pairs(words, 4, 9)
    found = dict(zip(zip(a.tolist(), b.tolist(), strict=True), counts, strict=True))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["skip_gram", "cbow", "glove"])
def test_words_of_one_kind_come_together(method):
    """Two kinds of words that never meet; a run in two parts is the same run."""
    draw = np.random.default_rng(3)
    kinds = np.repeat(draw.integers(0, 2, 600), 10)
    ids = (kinds * 20 + draw.integers(0, 20, len(kinds))).astype(np.int32)
    words = Words(ids, np.repeat(np.arange(600), 10).astype(np.int32))
    options = {"size": 8, "window": 4, "block": 512, "subsample": 0.0}
    rate = 0.05 if method == "glove" else 0.1

    def tables_after(steps, tables=None, begin=0):
        task = WordVectors(40, words, method, **options)
        tables = tables or task.tables()
        losses = [
            task.step(tables, i, rate)["loss"] for i in range(begin, begin + steps)
        ]
        return task, tables, losses

    task, tables, losses = tables_after(160)
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:10])
    unit = task.vectors(tables)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    within = (cosines[:20, :20].sum() - 20) / 380
    assert within > cosines[:20, 20:].mean() + 0.3
    _, half, _ = tables_after(71)
    _, half, _ = tables_after(89, half, 71)
    assert all(half[name].tobytes() == tables[name].tobytes() for name in tables)


def test_frequent_words_are_left_out_and_drawn_less():
    ids = np.repeat([0, 1], [990, 10]).astype(np.int32)
    task = WordVectors(2, Words(ids, ids * 0), subsample=0.01)
    assert task.kept == pytest.approx([(0.01 / 0.99) ** 0.5 + 0.01 / 0.99, 1.0])
    shares = 990**0.75, 10**0.75
    assert task.noise == pytest.approx([shares[0] / sum(shares), 1.0])
