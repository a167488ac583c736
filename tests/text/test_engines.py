"""The fast engine, the graph and the `tokenizers` library give equal answers."""

import json

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from hypothesis import strategies as st

from tfllm.text.tokenizer import TRUNCATIONS

from .conftest import FOREIGN, KINDS, TEXTS, graph, trained
from .texts import HARD, fuzzed, lines, marks

VARIANTS = [
    *KINDS, "words/plain", "words/clean", "bpe/gpt2", "bpe/llama3", "bpe/qwen2",
    "characters/NFC", "characters/NFD", "characters/NFKC", "characters/NFKD",
]  # fmt: skip
WORDS = " ".join(TEXTS[:15]).split()


def assert_equal(tokenizer, in_graph, texts, batch=1000, **options):
    for at in range(0, len(texts), batch):
        part = texts[at : at + batch]
        expected = tokenizer.encode(part, **options)
        given = in_graph.encode(part, **options).to_list()
        wrong = [
            (t, e, g) for t, e, g in zip(part, expected, given, strict=True) if e != g
        ]
        assert not wrong, f"{len(wrong)} of {len(part)}, the first: {wrong[0]}"


def offsets_of(in_graph, texts):
    ids, starts, ends = in_graph.encode_with_offsets(texts)
    pairs = zip(starts.to_list(), ends.to_list(), strict=True)
    return ids.to_list(), [list(zip(*row, strict=True)) for row in pairs]


@pytest.mark.parametrize("kind", VARIANTS)
def test_fuzz(kind):
    tokenizer, in_graph = trained(kind), graph(kind)
    texts = fuzzed(2000, 1, WORDS)
    assert_equal(tokenizer, in_graph, texts + HARD)
    assert_equal(tokenizer, in_graph, texts[:500], parse_special=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", VARIANTS)
def test_fuzz_long(kind):
    """200,000 strings."""
    assert_equal(trained(kind), graph(kind), fuzzed(200_000, 2, WORDS), 2000)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_fuzz_long_foreign(foreign, name):
    assert_equal(*foreign(name), fuzzed(200_000, 3, WORDS), 2000)


@pytest.mark.parametrize("name", FOREIGN)
def test_fuzz_foreign(foreign, name):
    assert_equal(*foreign(name), fuzzed(1000, 4, WORDS) + HARD[:5])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FOREIGN, *KINDS])
def test_real_text(shared, foreign, name):
    """Every line of the English, Chinese and code text."""
    tokenizer, in_graph = (
        foreign(name) if name in FOREIGN else (trained(name), graph(name))
    )
    patterns = ("*.txt*", "*.tsv*", "*.en*", "*.de*", "*.java*", "*.jsonl*", "*.csv*")
    files = {file for p in patterns for file in shared.glob(f"*/{p}")}
    count = 0
    for file in sorted(f for f in files if "tokenizers" not in f.parts):
        texts = lines(file)
        count += len(texts)
        assert_equal(tokenizer, in_graph, texts, 2000)
    assert count > 200_000


def test_ties_fall_alike(foreign):
    """Cuts with equal scores, after a text whose score has had time to be rounded."""
    texts = [part * i + "=" * k for part in ("ab", "hello.") for i in range(1, 30)
             for k in (5, 9, 17, 23)]  # fmt: skip
    assert_equal(*foreign("chinese_sp"), texts)


def test_merges_in_any_order():
    """Merges whose products come in earlier ones, and runs, as sequential BPE does."""
    import random

    from tfllm.text import Tokenizer
    from tfllm.text.training import bpe_model, byte_level

    draw = random.Random(5)
    for _ in range(12):
        tokens, merges = list("abcd"), []
        for _ in range(25):
            pair = draw.choice(tokens), draw.choice(tokens)
            if "".join(pair) not in tokens and len("".join(pair)) < 7:
                merges.append(list(pair))
                tokens.append("".join(pair))
        draw.shuffle(merges)
        vocab = {token: i + 1 for i, token in enumerate(tokens)} | {"<pad>": 0}
        tokenizer = Tokenizer(byte_level(bpe_model(vocab, merges), [], "gpt2"))
        texts = [
            "".join(draw.choices("abcd", k=draw.randint(1, 40))) for _ in range(400)
        ]
        texts += ["a" * n for n in range(1, 20)]
        assert_equal(tokenizer, tokenizer.graph(), texts)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.lists(st.text(max_size=60), max_size=5))
@pytest.mark.parametrize("kind", [*KINDS, "bpe/llama3", "characters/NFKC"])
def test_any_text(kind, texts):
    tokenizer, in_graph = trained(kind), graph(kind)
    ids = tokenizer.encode(texts)
    assert in_graph.encode(texts).to_list() == ids
    decoded = [text.decode() for text in in_graph.decode(ragged(ids)).numpy()]
    assert decoded == tokenizer.decode(ids)
    if kind.startswith("bpe"):
        assert decoded == texts


def ragged(rows):
    values = np.array([i for row in rows for i in row], np.int32)
    return tf.RaggedTensor.from_row_lengths(values, [len(row) for row in rows])


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.lists(st.binary(max_size=40), max_size=5))
@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes(kind, texts):
    """Bytes that are no UTF-8 are read as Python reads them with `replace`."""
    read = [text.decode("utf-8", errors="replace") for text in texts]
    given = graph(kind).encode(tf.constant(texts, tf.string, shape=[len(texts)]))
    assert given.to_list() == trained(kind).encode(read) == trained(kind).encode(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_one_opens_in_tokenizers(kind, tmp_path):
    tokenizer = trained(kind)
    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    texts = fuzzed(1000, 5, WORDS)
    for special in (False, True):
        encodings = theirs.encode_batch(texts, add_special_tokens=special)
        assert [e.ids for e in encodings] == tokenizer.encode(texts, special)
    reopened = type(tokenizer).load(tmp_path)
    assert reopened.fingerprint == tokenizer.fingerprint
    assert reopened.kind == kind


@pytest.mark.parametrize("kind", [*KINDS, "words/plain", "bpe/llama3"])
def test_offsets(kind):
    tokenizer, in_graph = trained(kind), graph(kind)
    texts = [t for t in fuzzed(3000, 6, WORDS) if not marks(t)] + HARD[:8]
    assert offsets_of(in_graph, texts) == tokenizer.encode_with_offsets(texts)
    [ids], [offsets] = tokenizer.encode_with_offsets(["中国 don’t  Hello"])
    assert len(ids) == len(offsets)
    assert offsets[-1][1] == 15
    assert all(start <= end for start, end in offsets)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_and_lengths(kind):
    tokenizer, in_graph = trained(kind), graph(kind)
    first, second = fuzzed(60, 7, WORDS), fuzzed(60, 8, WORDS)
    for length in (None, 3, 4, 9, 20) if kind == "characters" else (None, 7):
        for truncation in TRUNCATIONS if kind == "characters" else TRUNCATIONS[:1]:
            expected = tokenizer.encode_pairs(first, second, length, truncation)
            ids, segments = in_graph.encode_pairs(first, second, length, truncation)
            assert (ids.to_list(), segments.to_list()) == expected
            assert length is None or max(map(len, expected[0])) <= length
        expected = tokenizer.encode(first, True, length)
        assert in_graph.encode(first, True, length).to_list() == expected


def test_truncation_is_that_of_tokenizers():
    tokenizer = trained("wordpiece")
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.definition))
    theirs.encode_special_tokens = True
    first, second = fuzzed(100, 9, WORDS), fuzzed(100, 10, WORDS)
    for length in (5, 8, 13, 40):
        theirs.enable_truncation(length, strategy="longest_first")
        pairs = theirs.encode_batch(list(zip(first, second, strict=True)))
        ids, segments = tokenizer.encode_pairs(first, second, length)
        assert ids == [e.ids for e in pairs]
        assert segments == [e.type_ids for e in pairs]


def test_traced_once_and_without_state():
    in_graph = trained("wordpiece").graph()
    for size in (1, 2, 7):
        in_graph.encode(["hello"] * size)
    assert len(in_graph._python.functions) == 1
    assert not in_graph.variables


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays(kind):
    """1,000,000 different words leave memory where it was."""
    import gc
    import random

    in_graph, draw = graph(kind), random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def words(count):
        for _ in range(count // 10_000):
            yield [
                " ".join("".join(draw.choices(letters, k=8)) for _ in range(100))
                for _ in range(100)
            ]

    for batch in words(200_000):
        in_graph.encode(batch)
    gc.collect()
    before = resident()
    for batch in words(1_000_000):
        in_graph.encode(batch)
    gc.collect()
    assert resident() - before < 30e6
