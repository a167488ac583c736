"""Changed texts: what each way promises, and that a seed gives the same again."""

from collections import Counter

import numpy as np
import pytest

from tfllm.data.augmentation import augment, augmented, similar_words

TEXTS = ["the quick brown fox jumps over a dog", "今天天气很好。", "one", "", "a  b"]


def draws(text, kind, count=30, **options):
    return [
        augment(text, [kind], np.random.default_rng(i), **options) for i in range(count)
    ]


@pytest.mark.parametrize("text", TEXTS[:2])
def test_swapped_texts_have_the_same_pieces(text):
    found = draws(text, "swap")
    assert all(Counter(one) == Counter(text) for one in found) and len(set(found)) > 5


@pytest.mark.parametrize("text", TEXTS[:2])
def test_a_piece_is_left_out(text):
    found = set(draws(text, "delete"))
    assert len(found) > 3
    if " " in text:
        words = text.split()
        rest = [words[:i] + words[i + 1 :] for i in range(len(words))]
        assert found <= {" ".join(one) for one in rest}
    else:
        assert all(len(one) == len(text) - 1 for one in found)


def test_words_give_way_to_similar_ones():
    similar = {"fox": ["wolf", "hound"], "dog": ["puppy"]}
    found = set(draws(TEXTS[0], "replace", similar=similar))
    assert found == {
        *(TEXTS[0].replace("fox", other) for other in similar["fox"]),
        TEXTS[0].replace("dog", "puppy"),
    }
    assert set(draws(TEXTS[0], "replace")) == {TEXTS[0]}


def test_short_texts_stay():
    assert augmented(["one", "", " "], ["swap", "delete"], 0, 0) == ["one", "", " "]


def test_seed_epoch_and_row_decide():
    kinds = ["swap", "delete"]
    first = augmented(TEXTS * 4, kinds, 0, 1)
    assert first == augmented(TEXTS * 4, kinds, 0, 1)
    assert first[:2] == augmented(TEXTS[:2], kinds, 0, 1)  # others do not matter
    assert first != augmented(TEXTS * 4, kinds, 0, 2)
    assert first != augmented(TEXTS * 4, kinds, 1, 1)


def test_similar_words_are_near():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.8, 0.3]], np.float32)
    found = similar_words(["a", "b", "c", "d"], vectors, count=1)
    assert found == {"a": ["b"], "b": ["a"], "d": ["b"]}
