"""One tokenizer of each kind, and those of others, shared by the tests here."""

import functools

import pytest

from tfllm.text import Cleaning, Tokenizer

from .texts import fuzzed

SENTENCES = [
    "The quick brown fox doesn't jump over the lazy dog, it's sleeping.",
    "今天天气很好，我们去公园散步，天气真好。",
    "def f(x):\n    return x ** 2  # 1234567",
    "Straße, café, naïve; hello world and the other words of a text",
    "我们在公园里看见很多人，公园很大。",
]
TEXTS = SENTENCES * 3 + fuzzed(300, 0)
KINDS = ("characters", "words", "wordpiece", "bpe", "unigram")
FOREIGN = {
    "gpt2": "tokenizers/gpt2_vocab.json.gz",
    "bert_base_uncased": "models/all_minilm_l6_v2",
    "bert_base_chinese": "tokenizers/bert_base_chinese_vocab.txt",
    "chinese_sp": "tokenizers/chinese_sp.model",
    "smollm2": "models/smollm2_135m_instruct_q4_1",
    "llama2c": "models/stories260K/tok512.bin",
}


@functools.cache
def trained(kind: str) -> Tokenizer:
    """A small tokenizer; a kind may have a variant after a slash."""
    kind, _, variant = kind.partition("/")
    options = {}
    if variant in ("gpt2", "llama3", "qwen2"):
        options["pattern"] = variant
    elif variant == "plain":
        return Tokenizer.train(TEXTS[:1], kind, 500, lowercase=True)
    elif variant == "clean":
        options["cleaning"] = Cleaning(html=True, lowercase=True, stop_words="en")
    elif variant:
        options["cleaning"] = Cleaning(unicode=variant, control=False)
    return Tokenizer.train(TEXTS, kind, 2000, **options)


@functools.cache
def graph(kind: str):
    """The in-graph engine of `trained(kind)`."""
    return trained(kind).graph()


@functools.cache
def _foreign(shared, name: str):
    lowercase = {"lowercase": True} if name == "bert_base_chinese" else {}
    tokenizer = Tokenizer.load(shared / FOREIGN[name], **lowercase)
    return tokenizer, tokenizer.graph()


@pytest.fixture
def foreign(shared):
    """Name to (tokenizer, graph) of a vocabulary by others."""
    return functools.partial(_foreign, shared)
