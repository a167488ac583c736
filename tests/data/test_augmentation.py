"""Changed texts: what each way promises, and that a seed gives the same again."""

import re
from collections import Counter

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.data.augmentation import (
    AugmentFlags,
    augment,
    changed_copies,
    similar_words,
    word_cutter,
)
from tfllm.data.tagged import chinese_gap, tagged_row
from tfllm.evaluation.spans import Span

TEXTS = ["the quick brown fox jumps over a dog", "今天天气很好。", "one", "", "a  b"]


def draws(text, kind, count=30, **options):
    return [
        augment(text, kind, np.random.default_rng(i), **options) for i in range(count)
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


def rows_of(texts):
    return [{"text": text, "label": "x"} for text in texts]


def copies_of(texts, *settings, **options):
    return [
        row["text"] for _, row in changed_copies(rows_of(texts), *settings, **options)
    ]


def test_what_did_not_change_is_no_copy():
    assert changed_copies(rows_of(["one", "", " "]), ["swap", "delete"], 0) == []
    assert changed_copies(rows_of(TEXTS), ["replace"], 0, similar={}) == []


def test_seed_copy_and_row_decide():
    kinds = ["swap", "delete"]
    first = copies_of(TEXTS * 4, kinds, 0)
    assert first == copies_of(TEXTS * 4, kinds, 0)
    alone = copies_of(TEXTS[:2], kinds, 0)  # others do not matter
    assert alone == first[: len(alone)]
    more = copies_of(TEXTS * 4, kinds, 0, 2)
    assert more[: len(first)] == first and more[len(first) :] != first
    assert first != copies_of(TEXTS * 4, kinds, 1)
    pairs = changed_copies(rows_of(TEXTS), kinds, 0)
    assert all(a["text"] != b["text"] and b["label"] == "x" for a, b in pairs)


def test_texts_go_there_and_back():
    def translate(texts, copy):
        return [f"{text} {copy}" for text in texts]

    found = copies_of(TEXTS[:3], ["translate"], 0, 2, translate=translate)
    assert found == [f"{text} {copy}" for copy in (0, 1) for text in TEXTS[:3]]
    some = copies_of(TEXTS * 9, ["translate", "swap"], 0, translate=translate)
    assert 5 < sum(text.endswith(" 0") for text in some) < 40


@pytest.mark.parametrize("kind", ["swap", "delete", "replace"])
def test_spans_of_tagged_records_move_along(kind):
    words = "yesterday Ann Lee met some friends in New York on foot".split()
    spans = [Span(1, 3, "PER"), Span(7, 9, "LOC")]
    row = tagged_row(words, spans, lambda before, after: " ")
    similar = {"yesterday": ["one morning"], "friends": ["pals"], "york": ["x"]}
    rows = [row] * 40
    found = changed_copies(rows, [kind], 0, similar=similar, share=0.3)
    assert len({new["text"] for _, new in found}) > 1
    for _, new in found:
        text = new["text"]
        parts = [(text[s.start : s.end], s.type) for s in new["entities"]]
        assert parts == [("Ann Lee", "PER"), ("New York", "LOC")]
        if kind != "replace":
            left = [text[a:b] for a, b in new["words"]]
            assert text == " ".join(left) and set(left) <= set(words)
            assert len(left) == len(words) if kind == "swap" else len(left) < len(words)


def test_chinese_is_cut_into_its_words():
    words = {"喜欢": 9, "北京": 9, "天气": 9}
    cut = word_cutter(["我们喜欢北京的天气"], words)
    pieces = cut("我们喜欢北京的 weather！")
    assert "".join(pieces) == "我们喜欢北京的 weather！"
    assert pieces == ["我", "们", "喜欢", "北京", "的", " ", "weather", "！"]
    text = augment("天气北京喜欢", "swap", np.random.default_rng(0), cut=cut)
    assert text != "天气北京喜欢" and sorted(cut(text)) == sorted(words)


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"augment": ["replace"]}, "needs --similar_words"),
        ({"augment": ["translate"]}, "needs --translators"),
        ({"augment": ["translate"], "translators": ["a"]}, "wants two runs"),
        ({"similar_words": "x"}, "is for --augment replace"),
        ({"augment_copies": 2}, "is for --augment"),
    ],
)
def test_flags_of_changes_need_each_other(flags, words):
    with pytest.raises(UserError, match=words):
        AugmentFlags(**flags)


def test_tagged_records_are_not_translated():
    row = tagged_row(["Ann", "ran"], [Span(0, 1, "PER")], chinese_gap)
    with pytest.raises(UserError, match="does not go with tags"):
        changed_copies([row], ["translate"], 0, translate=lambda texts, copy: texts)


@pytest.mark.parametrize("kind", ["swap", "delete"])
def test_latin_words_in_chinese_stay_apart(kind):
    words = ["小李", "用", "iPad", "和", "Mac", "给", "Ann"]
    spans = [Span(0, 1, "PER"), Span(4, 5, "THING"), Span(6, 7, "PER")]
    row = tagged_row(words, spans, chinese_gap)
    assert row["text"] == "小李用iPad和Mac给Ann"
    found = changed_copies([row] * 60, [kind], 0, share=0.4)
    for _, new in found:
        text = new["text"]
        parts = [text[span.start : span.end] for span in new["entities"]]
        assert parts == ["小李", "Mac", "Ann"]
        assert "iPadMac" not in text and "MacAnn" not in text
        assert {text[a:b] for a, b in new["words"]} <= set(words)
    assert any("iPad Mac" in new["text"] for _, new in found)
    plain = [{"text": row["text"]}] * 60
    cut = re.compile("[a-zA-Z]+|.").findall
    texts = {new["text"] for _, new in changed_copies(plain, [kind], 0, cut=cut)}
    assert len(texts) > 3 and not any("iPadMac" in text for text in texts)


def test_letters_a_line_come_back_as_they_were():
    row = tagged_row([*"我用iPad听歌"], [Span(2, 6, "THING")], lambda a, b: "")
    (_, new), *_ = changed_copies([row] * 9, ["swap"], 0)
    assert "iPad" in new["text"] and len(new["text"]) == len(row["text"])


def test_marks_and_capitals_do_not_hide_a_word():
    similar = {"fox": ["wolf"], "Berlin": ["Paris"]}
    text = "(The Fox, Berlin)"
    assert set(draws(text, "replace", similar=similar)) == {
        "(The wolf, Berlin)",
        "(The Fox, Paris)",
    }


def test_no_space_is_left_at_an_end():
    found = draws("a b c d e f", "delete", 200, share=0.4)
    assert all(text == text.strip() and "  " not in text for text in found)


def test_similar_words_are_near():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.8, 0.3]], np.float32)
    found = similar_words(["a", "b", "c", "d"], vectors, count=1)
    assert found == {"a": ["b"], "b": ["a"], "d": ["b"]}
