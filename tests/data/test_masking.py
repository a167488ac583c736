"""Hidden words: how many, which, and that the same key hides the same ones."""

import numpy as np
import pytest

from tfllm.data.batching import BatchPlan
from tfllm.data.corpus import Documents, encode_corpus
from tfllm.data.masking import Masking
from tfllm.data.sentence_pairs import make_pairs
from tfllm.text import Tokenizer

TEXTS = ["unbelievable stories about unbelievable people", "the people and stories"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 5, "wordpiece", 40)


def rows(tokenizer, count=200, length=96, seed=0):
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, tokenizer.vocabulary_size, (count, length)).astype(np.int32)
    lengths = draw.integers(2, length + 1, count)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids[:, 0] = tokenizer.cls_id
    ids[np.arange(count), lengths - 1] = tokenizer.sep_id
    return np.where(mask > 0, ids, tokenizer.pad_id).astype(np.int32), mask


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_statistics(tokenizer, whole, rate):
    masking = Masking(tokenizer, rate, whole)
    ids, mask = rows(tokenizer, 800)
    found = masking.hide(ids, mask, (1, 2))
    assert found.places.shape == (800, masking.places(96))
    real = found.weights > 0
    ordinary = (mask > 0) & ~masking.special[ids]
    counts, wanted = real.sum(1), ordinary.sum(1) * rate
    assert (counts <= np.maximum(np.round(wanted), 1)).all()
    assert ((counts > 0) == ordinary.any(1)).all()
    assert counts.sum() > (0.93 if whole else 0.99) * wanted.sum()
    before = np.take_along_axis(ids, found.places, 1)[real]
    after = np.take_along_axis(found.token_ids, found.places, 1)[real]
    assert (before == found.targets[real]).all()
    assert not masking.special[before].any()
    masked = (after == tokenizer.mask_id).mean()
    kept = (after == before).mean()
    assert abs(masked - 0.8) < 0.02 and abs(kept - 0.1 - 0.1 / 36) < 0.02
    other = after[(after != tokenizer.mask_id) & (after != before)]
    assert len(set(other.tolist())) > 25 and not masking.special[other].any()
    # What is not hidden is not touched; no place is hidden twice.
    flags = np.zeros_like(ids)
    at = np.nonzero(real)
    np.add.at(flags, (at[0], found.places[at]), 1)
    assert flags.max() == 1
    assert (found.token_ids == ids)[flags == 0].all()
    # Places are hidden evenly along a row.
    share = flags[mask.sum(1) > 60].mean(0)
    assert share[1:21].mean() == pytest.approx(share[39:59].mean(), rel=0.15)


def test_a_pure_function_of_its_key(tokenizer):
    masking = Masking(tokenizer, 0.15, True)
    ids, mask = rows(tokenizer)
    first = masking.hide(ids, mask, (0, 5, 1))
    again = Masking(tokenizer, 0.15, True).hide(ids, mask, (0, 5, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for key in ((0, 6, 1), (0, 5, 0), (1, 5, 1)):
        assert not np.array_equal(masking.hide(ids, mask, key).places, first.places)


def hidden_flags(found, shape):
    flags = np.zeros(shape, bool)
    at = np.nonzero(found.weights)
    flags[at[0], found.places[at]] = True
    return flags


def test_pieces_of_a_word_go_together(tokenizer):
    ids = tokenizer.encode([" ".join(TEXTS)] * 400, add_special_tokens=True)
    ids = np.array(ids, np.int32)
    inside = np.array([t.startswith("##") for t in tokenizer.tokens])[ids]
    assert inside.any()
    masking = Masking(tokenizer, 0.3, True)
    flags = hidden_flags(masking.hide(ids, np.ones_like(ids), (3,)), ids.shape)
    assert flags[:, 1:][inside[:, 1:]].any()
    assert (flags[:, 1:] == flags[:, :-1])[inside[:, 1:]].all()
    plain = Masking(tokenizer, 0.3, False).hide(ids, np.ones_like(ids), (3,))
    flags = hidden_flags(plain, ids.shape)
    assert not (flags[:, 1:] == flags[:, :-1])[inside[:, 1:]].all()


def test_chinese_words_of_a_segmenter_go_together():
    dictionary = {"中国": 9.0, "人民": 9.0, "改革开放": 9.0, "发展": 9.0, "的": 20.0}
    texts = ["中国人民的改革开放。", "人民的发展，中国的发展。"] * 20
    tokenizer = Tokenizer.train(texts, "wordpiece", 60)
    segmenter = Tokenizer.train(texts, "words", 60, dictionary=dictionary)
    corpus = encode_corpus(Documents(texts=texts), tokenizer, segmenter)
    row = slice(*corpus.sentences[:2])
    tokens = [tokenizer.tokens[i] for i in corpus.token_ids[row]]
    assert "".join(tokens) == "中国人民的改革开放。"
    assert corpus.word_starts[row].tolist() == [c in "中人的改。" for c in tokens]
    pairs = make_pairs(corpus, tokenizer, max_length=32, objective="none")
    (micro,) = BatchPlan(pairs.lengths, batch_size=32, max_length=32).step(0)
    batch = pairs.gather(micro)
    masking = Masking(tokenizer, 0.4, True)
    seen = set()
    for step in range(40):
        found = masking.hide(
            batch["token_ids"], batch["padding_mask"], (step,), batch["word_starts"]
        )
        flags = hidden_flags(found, batch["token_ids"].shape)
        inside = (batch["word_starts"] == 0) & (batch["padding_mask"] > 0)
        inside &= ~masking.special[batch["token_ids"]]
        assert (flags[:, 1:] == flags[:, :-1])[inside[:, 1:]].all()
        seen.update(batch["token_ids"][flags].tolist())
    assert len(seen) == len(set(corpus.token_ids.tolist()))


def test_rows_without_words_hide_nothing(tokenizer):
    ids = np.full((3, 8), tokenizer.pad_id, np.int32)
    found = Masking(tokenizer, 0.15, True).hide(ids, np.zeros_like(ids), (0,))
    assert found.weights.sum() == 0 and np.array_equal(found.token_ids, ids)
    # A single word that is longer than what may be hidden: some of it is.
    word = np.array([tokenizer.encode(["unbelievable"])[0]], np.int32)
    found = Masking(tokenizer, 0.15, True).hide(word, np.ones_like(word), (0,))
    assert found.weights.sum() == 1
