"""Small decoders, and a reference that knows no cache."""

import keras
import numpy as np
import pytest
from keras import ops

from tfllm.generation.generator import Generator
from tfllm.models.decoder import DecoderConfig, decoder
from tfllm.text import Tokenizer

WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()


@pytest.fixture(scope="session")
def stories(shared):
    """The generator of stories260K."""
    return Generator.load(shared / "models/stories260K")


@pytest.fixture(scope="session")
def letters():
    """A tokenizer of single letters, and how to make a generator with it."""
    tokenizer = Tokenizer.train(
        [" ".join(WORDS)], "characters", 40, special_tokens=["<bos>", "<eos>"]
    )

    def make(size=None, **options):
        keras.utils.set_random_seed(options.pop("random", 0))
        sizes = {"hidden_size": 32, "num_layers": 2, "intermediate_size": 48}
        shape = {**sizes, "initializer_range": 0.5, "max_length": 64}
        size = size or tokenizer.vocabulary_size
        config = DecoderConfig(size, **shape | options)
        return decoder(config), config, tokenizer

    return make


def next_logits(model, ids):
    """What a model says after ids, in one go and without a cache."""
    ids = np.array([ids], "int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return ops.convert_to_numpy(model(inputs))[0, -1]
