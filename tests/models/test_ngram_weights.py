"""Inverse document frequencies of hashed n-grams, against scikit-learn."""

import numpy as np
from keras import ops
from sklearn.feature_extraction.text import TfidfVectorizer

from tfllm.data.columns import Ragged
from tfllm.layers.ngrams import hash_ngrams
from tfllm.models.classifier import (
    ClassifierConfig,
    build_classifier,
    fill_ngram_weights,
)


def test_weights_are_sklearns_idf_to_the_power():
    random = np.random.default_rng(0)
    rows = [list(random.integers(1, 40, random.integers(1, 12))) for _ in range(300)]
    config = ClassifierConfig("fasttext", vocabulary_size=40, num_outputs=3, ngrams=1)
    assert config.ngram_buckets == 2**20
    model = build_classifier(config)
    fill_ngram_weights(model, Ragged.from_lists(rows), power=2)
    texts = [" ".join(f"w{i}" for i in row) for row in rows]
    vectorizer = TfidfVectorizer(token_pattern=r"w\d+").fit(texts)
    found = ops.convert_to_numpy(model.get_layer("ngrams").ngram_weights)
    assert (found > 0).sum() == len(vectorizer.vocabulary_)
    ids = np.array([[int(w[1:])] for w in vectorizer.get_feature_names_out()])
    hashes = hash_ngrams(ids, np.ones_like(ids), (1,), 2**20)[0]
    places = ops.convert_to_numpy(hashes).ravel()
    np.testing.assert_allclose(found[places], vectorizer.idf_**2, rtol=1e-5)


def test_two_classes_get_log_count_ratios():
    random = np.random.default_rng(1)
    rows = [sorted(set(random.integers(1, 30, 6).tolist())) for _ in range(200)]
    labels = np.array([int(7 in row) for row in rows])
    config = ClassifierConfig("fasttext", vocabulary_size=40, num_outputs=2, ngrams=1)
    model = build_classifier(config)
    fill_ngram_weights(model, Ragged.from_lists(rows), labels=labels)
    found = ops.convert_to_numpy(model.get_layer("ngrams").ngram_weights)
    present = np.array([[word in row for word in range(1, 30)] for row in rows])
    p, q = present[labels == 0].sum(0) + 1, present[labels == 1].sum(0) + 1
    expected = np.abs(np.log(p / p.sum()) - np.log(q / q.sum()))
    ids = np.arange(1, 30)[:, None]
    hashes = hash_ngrams(ids, np.ones_like(ids), (1,), 2**20)[0]
    places = ops.convert_to_numpy(hashes).ravel()
    np.testing.assert_allclose(found[places], expected, rtol=1e-5)
    assert (found > 0).sum() <= 29


def test_many_classes_get_a_smaller_table():
    config = ClassifierConfig("fasttext", vocabulary_size=40, num_outputs=150)
    assert config.ngram_buckets * 150 <= 2**24 < config.ngram_buckets * 300
