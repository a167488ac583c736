"""Small made-up data, and recipes called as functions."""

import importlib.util
import os
import random
from types import SimpleNamespace

import pytest

from tfllm.core.errors import run_main

WORDS = {
    "good": ["lovely", "great", "warm", "kind", "bright", "tasty"],
    "bad": ["awful", "rude", "cold", "stale", "dark", "noisy"],
    "": ["the", "room", "food", "staff", "was", "and", "very", "with", "our", "table"],
}


def sentences(count, seed):
    """Texts whose label shows in one or two of their words."""
    pick = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        words = pick.choices(WORDS[""], k=pick.randint(2, 14))
        words.insert(pick.randint(0, len(words)), pick.choice(WORDS[label]))
        rows.append((" ".join([*words, str(pick.randint(0, 10**6))]), label))
    return rows


def write_tsv(path, rows):
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Paths of train, validation and test files."""
    folder = tmp_path_factory.mktemp("toy")
    return SimpleNamespace(
        folder=folder,
        **{
            name: write_tsv(folder / f"{name}.tsv", sentences(count, seed))
            for seed, (name, count) in enumerate(
                {"train": 240, "validation": 60, "test": 80}.items()
            )
        },
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """An empty folder, in which the tests of a module run; most fill it."""
    folder = tmp_path_factory.mktemp("work")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="session")
def recipe(root):
    """Calls `recipes/NAME.py` as a function; returns the exit status."""

    def call(name, *arguments):
        path = root / "recipes" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"recipe_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return run_main(lambda: module.main([str(a) for a in arguments]))

    return call


@pytest.fixture(scope="session")
def tiny_bert(toy):
    """A Hugging Face directory with a random BERT, small enough for tests."""
    import keras

    from tfllm.models.encoder import EncoderConfig, encoder
    from tfllm.models.pretrained import save_hf
    from tfllm.text import Tokenizer

    texts = [text for text, _ in sentences(200, 7)]
    tokenizer = Tokenizer.train(texts, "wordpiece", 200, lowercase=True)
    keras.utils.set_random_seed(0)
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_length": 64}
    shape |= {"intermediate_size": 32, "initializer_range": 0.3}
    config = EncoderConfig(tokenizer.vocabulary_size, **shape)
    folder = toy.folder / "tiny_bert"
    save_hf(encoder(config), config, "bert", folder, tokenizer)
    return folder
