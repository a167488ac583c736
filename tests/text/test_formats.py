"""Vocabularies of others: ids of the reference libraries, and every kind of file."""

import gzip
import json
import struct

import pytest

from tfllm.core.errors import UserError
from tfllm.text import Tokenizer
from tfllm.text.cleaning import replacement
from tfllm.text.formats import spm_definition

from .conftest import trained
from .texts import fuzzed


@pytest.mark.parametrize(
    "name", ["gpt2", "bert_base_uncased", "bert_base_chinese", "chinese_sp"]
)
def test_expected_ids(shared, foreign, name):
    rows = json.loads((shared / "tokenizers/expected_ids.json").read_text())
    assert len(rows) == 30
    tokenizer, graph = foreign(name)
    texts, expected = [row["text"] for row in rows], [row[name] for row in rows]
    # The reference reads special tokens written out in a text, but not GPT-2's.
    parse = name != "gpt2"
    assert tokenizer.encode(texts, parse_special=parse) == expected
    assert graph.encode(texts, parse_special=parse).to_list() == expected


def test_smollm2(shared, foreign):
    folder = shared / "models/smollm2_135m_instruct_q4_1"
    import tokenizers

    text = gzip.decompress((folder / "tokenizer.json.gz").read_bytes()).decode()
    theirs = tokenizers.Tokenizer.from_str(text)
    tokenizer, graph = foreign("smollm2")
    texts = [*fuzzed(500, 1), "<|im_start|>user\nHi 123<|im_end|>\n<|im_start|>"]
    expected = [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)]
    assert tokenizer.encode(texts, parse_special=True) == expected
    assert graph.encode(texts, parse_special=True).to_list() == expected


def test_llama2c_tokens(shared, foreign):
    tokenizer, _ = foreign("llama2c")
    ids = tokenizer.encode(["Once upon a time"], add_special_tokens=True)
    assert ids[0][0] == tokenizer.bos_id == 1
    assert tokenizer.decode(ids) == ["Once upon a time"]
    # Bytes stand in for what is not in the vocabulary.
    assert tokenizer.decode(tokenizer.encode(["é 中\n"])) == ["é 中\n"]


def test_special_tokens_in_a_text_are_text(foreign):
    for name in ("bert_base_uncased", "smollm2", "gpt2", "chinese_sp"):
        tokenizer, graph = foreign(name)
        special = [tokenizer.tokens[i] for i in sorted(tokenizer.special_ids)]
        texts = special + [f"a {token}b" for token in special]
        ids = tokenizer.encode(texts)
        assert not tokenizer.special_ids.difference({tokenizer.unk_id}) & {
            i for row in ids for i in row
        }
        assert graph.encode(texts).to_list() == ids


def test_bert_case_rule(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    file = tmp_path / "my_vocab.txt"
    file.write_text("\n".join(pieces) + "\n")
    assert Tokenizer.load(file).encode(["AB"]) == [[5, 6]]  # no capitals: folds
    file.write_text("\n".join([*pieces, "A"]) + "\n")
    assert Tokenizer.load(file).encode(["A"]) == [[7]]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert Tokenizer.load(tmp_path).encode(["AB"]) == [[5, 6]]
    assert Tokenizer.load(file, lowercase=False).encode(["A"]) == [[7]]


def test_gpt2_files_and_gzip(tmp_path):
    model = trained("bpe/gpt2").definition["model"]
    vocab = json.dumps(model["vocab"])
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])])
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt.gz").write_bytes(gzip.compress(merges.encode()))
    texts = fuzzed(200, 2)
    expected = trained("bpe/gpt2").encode(texts)
    assert Tokenizer.load(tmp_path).encode(texts) == expected
    (tmp_path / "merges.txt.gz").unlink()
    with pytest.raises(UserError, match=r"no merges\.txt"):
        Tokenizer.load(tmp_path)


def test_gguf(tmp_path):
    tokenizer = trained("bpe")
    model = tokenizer.definition["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [3 if i in tokenizer.special_ids else 1 for i in range(len(tokens))]

    def text(value):
        data = value.encode()
        return struct.pack("<Q", len(data)) + data

    def array(kind, values):
        form = {8: text, 5: lambda v: struct.pack("<i", v)}[kind]
        return struct.pack("<IQ", kind, len(values)) + b"".join(map(form, values))

    entries = {
        "general.architecture": (8, text("llama")),
        "tokenizer.ggml.model": (8, text("gpt2")),
        "tokenizer.ggml.pre": (8, text("smollm")),
        "tokenizer.ggml.tokens": (9, array(8, tokens)),
        "tokenizer.ggml.token_type": (9, array(5, kinds)),
        "tokenizer.ggml.merges": (9, array(8, list(map(" ".join, model["merges"])))),
        "tokenizer.ggml.eos_token_id": (4, struct.pack("<I", tokenizer.eos_id)),
    }
    body = b"".join(
        text(key) + struct.pack("<I", kind) + value
        for key, (kind, value) in entries.items()
    )
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body)
    loaded, texts = Tokenizer.load(file), fuzzed(200, 3)
    assert loaded.encode(texts) == tokenizer.encode(texts)
    assert loaded.eos_id == tokenizer.eos_id
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 5) + body[:40])
    with pytest.raises(UserError, match="GGUF"):
        Tokenizer.load(file)


def test_sentencepiece_bpe_without_bytes():
    """Several unknown characters in a row are one token."""
    names = ["<unk>", "<pad>", "▁", "a", "b", "ab", "▁a", "▁ab"]
    pieces = [(name, -float(i), 2 if i == 0 else 1) for i, name in enumerate(names)]
    steps = [{"type": "Prepend", "prepend": "▁"}, replacement(" ", "▁")]
    tokenizer = Tokenizer(spm_definition(pieces, steps, bpe=True))
    texts = ["龘龘ab 龘 a龘龘b", "ab ab", "龘 龘龘", "", "b龘"]
    ids = tokenizer.encode(texts)
    assert ids[4] == [2, 4, 0]
    assert ids[0] == [2, 0, 5, 2, 0, 6, 0, 4]
    assert tokenizer.graph().encode(texts).to_list() == ids


def test_sentencepiece_lines(shared, foreign):
    spm = pytest.importorskip("sentencepiece")
    theirs = spm.SentencePieceProcessor(
        model_file=str(shared / "tokenizers/chinese_sp.model")
    )
    from .texts import lines

    texts = lines(shared / "chnsenticorp/dev.tsv.gz", 500)
    texts += lines(shared / "multi30k/val.en.gz", 500)
    tokenizer, graph = foreign("chinese_sp")
    ids = tokenizer.encode(texts)
    assert ids == theirs.encode(texts)
    assert graph.encode(texts).to_list() == ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not JSON"),
        ("tokenizer.json", b"[1]", "no tokenizer|can read"),
        ("tokenizer.model", b"\x0a\xff\xff", "can read"),
        ("tok.bin", b"\0\0\0\0abc", r"llama2\.c"),
        ("vocab.txt.gz", b"\x1f\x8b\x08bad", "cannot read"),
        ("notes.md", b"", "no tokenizer"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path if name == "notes.md" else tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path / "missing")


def test_pad_must_differ_from_end(tmp_path, foreign):
    tokenizer, _ = foreign("gpt2")
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="also the end token"):
        Tokenizer.load(tmp_path, pad_token="<|endoftext|>")
    added = Tokenizer.load(tmp_path, pad_token="<pad>")
    assert added.pad_id == 50257
    assert added.vocabulary_size == 50258
    added.save(tmp_path)
    assert Tokenizer.load(tmp_path).pad_id == 50257
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["pad_token"] = config["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="pad_token"):
        Tokenizer.load(tmp_path)
