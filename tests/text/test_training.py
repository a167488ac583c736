"""Learning vocabularies, and cleaning."""

import gzip
import re
import subprocess
import sys
from collections import Counter

import pytest

from tfllm.core.errors import UserError
from tfllm.text import Cleaning, Tokenizer

from .conftest import KINDS, TEXTS, trained
from .texts import fuzzed, lines


@pytest.mark.parametrize("kind", KINDS)
def test_trained_the_same_twice_and_from_files(kind, tmp_path):
    texts = [t.replace("\n", " ").replace("\r", " ") for t in TEXTS]
    first = Tokenizer.train(texts, kind, 900)
    assert first.vocabulary_size <= 900
    assert (first.pad_id, first.unk_id) == (0, 1)
    file = tmp_path / "text.txt.gz"
    file.write_bytes(gzip.compress("\n".join(texts).encode()))
    second = Tokenizer.train(file, kind, 900)
    if kind != "characters":  # a line of a file ends with its end
        assert second.encode(texts) == first.encode(texts)
    script = (
        "import sys, pathlib; from tfllm.text import Tokenizer\n"
        "made = Tokenizer.train(pathlib.Path(sys.argv[1]), sys.argv[2], 900)\n"
        "print(made.fingerprint)"
    )
    command = [sys.executable, "-c", script, str(file), kind]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == second.fingerprint


def test_lossless():
    texts = fuzzed(500, 3)
    tokenizer = trained("bpe")
    assert tokenizer.decode(tokenizer.encode(texts)) == texts
    seen = "".join(sorted({char for text in texts for char in text}))
    characters = Tokenizer.train([seen], "characters", 10_000)
    assert characters.decode(characters.encode(texts)) == texts


def test_words_are_words():
    texts = ["Don’t stop! It's 5 o'clock, isn't it?"] * 2 + ["A snake_case word."]
    tokenizer = Tokenizer.train(texts, "words", 100, lowercase=True)
    [ids] = tokenizer.encode(texts[:1])
    assert [tokenizer.tokens[i] for i in ids] == [
        "don't", "stop", "!", "it's", "5", "o'clock", ",", "isn't", "it", "?",
    ]  # fmt: skip
    assert tokenizer.token_to_id("don't") == ids[0]
    assert tokenizer.token_to_id("snake_case") is not None
    assert tokenizer.encode(["unheard"]) == [[tokenizer.unk_id]]
    assert tokenizer.decode([ids]) == ["don't stop! it's 5 o'clock, isn't it?"]


def test_chinese_by_a_given_dictionary(tmp_path):
    file = tmp_path / "dict.txt"
    file.write_text(
        "结婚 2055 v\n和 555815 c\n尚未 1500 d\n和尚 500 n\n的 3188252 uj\n"
    )
    tokenizer = Tokenizer.train(
        ["结婚的和尚未结婚的"] * 3, "words", 50, dictionary=file
    )
    [ids] = tokenizer.encode(["结婚的和尚未结婚的"])
    words = [tokenizer.tokens[i] for i in ids]
    assert words == ["结婚", "的", "和", "尚未", "结婚", "的"]
    assert tokenizer.graph().encode(["结婚的和尚未结婚的"]).to_list() == [ids]
    assert tokenizer.decode([ids]) == ["结婚的和尚未结婚的"]
    # One unknown word, even if known ones are inside; unknown characters are one.
    assert tokenizer.encode(["kitten 龘靐"]) == [[tokenizer.unk_id] * 2]
    file.write_text("结婚 many\n")
    with pytest.raises(UserError, match=r"dict\.txt:1"):
        Tokenizer.train(["结婚"], "words", 50, dictionary=file)


def test_chinese_paths_are_the_most_probable(shared, tmp_path):
    """A dictionary file of 20,000 words, on real lines: both engines, and by hand."""
    texts = lines(shared / "chnsenticorp/dev.tsv.gz", 400)
    runs = [run for text in texts for run in re.findall("[\u4e00-\u9fff]+", text)]
    counts = Counter(
        run[at : at + n] for run in runs for n in (1, 2, 3) for at in range(len(run))
    )
    file = tmp_path / "dict.txt"
    words = [f"{word} {n} x" for word, n in counts.most_common(20_000)]
    file.write_text("\n".join(words) + "\n")
    tokenizer = Tokenizer.train(texts, "words", 12_000, dictionary=file)
    ids = tokenizer.encode(texts)
    assert tokenizer.graph().encode(texts).to_list() == ids
    scores = dict(tokenizer.definition["model"]["vocab"])
    for run, row in zip(runs, tokenizer.encode(runs), strict=True):
        if tokenizer.unk_id in row:
            continue
        tokens = [tokenizer.tokens[i] for i in row]
        assert "".join(tokens) == run
        best = [0.0]
        for end in range(1, len(run) + 1):
            ways = range(max(0, end - 6), end)
            paths = [best[at] + scores.get(run[at:end], -1e9) for at in ways]
            best.append(max(paths))
        assert sum(scores[token] for token in tokens) == best[-1]
    longer = sum(len(tokenizer.tokens[i]) > 1 for row in ids for i in row)
    assert longer > 1000


def test_chinese_dictionary_is_learned():
    texts = ["今天天气很好", "天气预报说天气不好", "我喜欢好天气", "天气如何"] * 5
    tokenizer = Tokenizer.train(texts, "words", 60)
    assert tokenizer.token_to_id("天气") is not None
    [ids] = tokenizer.encode(["天气好"])
    assert tokenizer.tokens[ids[0]] == "天气"


def test_cleaning():
    text = "<p>Ｈｅｌｌｏ&nbsp;the\x07 café &amp; ﬁne</p> 因为我们"
    cleaning = Cleaning(html=True, lowercase=True, stop_words=["the", "因为"])
    assert cleaning.clean(text) == " hello  café & fine  我们"
    assert Cleaning(unicode=None, full_width=True).clean("Ａ１！　") == "A1! "
    assert Cleaning(unicode=None, stop_words="en").clean("the other thing") == "  thing"
    assert Cleaning.from_dict(cleaning.to_dict()) == cleaning
    for settings in ({"unicode": "NFX"}, {"stop_words": "xx"}, {"stop_words": ["a b"]}):
        with pytest.raises(UserError):
            Cleaning(**settings)
    with pytest.raises(UserError, match="html"):
        Cleaning.from_dict({"htlm": True})


def test_cleaning_is_equal_in_the_graph():
    bits = ["<b>", "</b >", "<br/>", "< b>", "<", ">", "<!-- x -->", "&amp;lt;", "&lt;"]
    bits += [
        "the",
        "The",
        "THE",
        "then",
        "we",
        "我们",
        "的",
        "目的",
        "<a\n",
        "é",
        "\n",
        "Ａ",
    ]
    texts = fuzzed(2000, 4, bits)
    characters = ["".join(map(chr, range(0x20, 0x3200))), "我们的目因为"]
    for settings in (
        {"html": True, "stop_words": "en"},
        {"unicode": None, "full_width": True, "stop_words": "zh"},
    ):
        cleaning = Cleaning(**settings)
        made = Tokenizer.train(characters, "characters", 20_000, cleaning=cleaning)
        ids = made.encode(texts)
        assert made.graph().encode(texts).to_list() == ids
        plain = Tokenizer(made.definition | {"normalizer": None})
        assert plain.encode([cleaning.clean(text) for text in texts]) == ids


def test_mistakes():
    for texts, kind, size in (
        (["a"], "word", 50),
        ([""], "words", 50),
        (["a"], "words", 5),
    ):
        with pytest.raises(UserError):
            Tokenizer.train(texts, kind, size)
    with pytest.raises(UserError, match="wordpiece"):
        Tokenizer.train(["a"], "wordpeice", 50)
    with pytest.raises(TypeError):
        trained("words").encode("a text")
    with pytest.raises(TypeError):
        Tokenizer.train("a text", "words", 50)
    with pytest.raises(UserError, match="no room"):
        trained("words").encode(["a"], add_special_tokens=True, max_length=1)
    with pytest.raises(UserError, match="not in the vocabulary"):
        Tokenizer(trained("words").definition, {"mask": "nothing"})


def test_halves_of_surrogate_pairs():
    assert trained("bpe").decode(trained("bpe").encode(["a\ud800b"])) == ["a\ufffdb"]


def test_without_tensorflow():
    script = (
        "import sys; from tfllm.text import Tokenizer\n"
        "Tokenizer.train(['a b', '中文'], 'words', 20).encode(['a'])\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
