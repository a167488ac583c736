"""Tokens that are drawn are those of the same text."""

import pytest

from tfllm.core.errors import UserError
from tfllm.text import Tokenizer
from tfllm.text.sampling import sample

TEXTS = ["the lower and the lowest newer widest", "Übel! 12 天气 low", ""]


def test_bpe_dropout():
    tokenizer = Tokenizer.train(TEXTS * 9, "bpe", 330)
    assert sample(tokenizer, TEXTS, 0.0) == tokenizer.encode(TEXTS)
    drawn = sample(tokenizer, TEXTS, 0.5, seed="a")
    assert drawn == sample(tokenizer, TEXTS, 0.5, seed="a")
    assert drawn[:2] != sample(tokenizer, TEXTS, 0.5, seed="b")[:2]
    assert tokenizer.decode(drawn) == TEXTS
    assert len(drawn[0]) > len(tokenizer.encode(TEXTS)[0])
    with pytest.raises(UserError, match="bpe"):
        sample(Tokenizer.train(TEXTS, "characters", 99), TEXTS, 0.1)
