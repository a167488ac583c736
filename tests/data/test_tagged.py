"""Tagged words: every form of file and of tags, and what is wrong with them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfllm.core.errors import UserError
from tfllm.data.readers import read
from tfllm.data.tagged import newspaper_names, parse
from tfllm.evaluation.spans import Span, allowed, read_tags, tag_names, write_tags

WORDS = [["Ada", "Lovelace", "met", "Charles", "Babbage", "in", "London", "."]]
WORDS += [["London", "Paris", "and", "Rome"], ["nothing", "here"]]
TAGS = {  # the first text has two names side by side
    "BIO": ["B-P I-P O B-P I-P O B-L O", "B-L B-L O B-L", "O O"],
    "IOB1": ["I-P I-P O I-P I-P O I-L O", "I-L B-L O I-L", "O O"],
    "BIOES": ["B-P E-P O B-P E-P O S-L O", "S-L S-L O S-L", "O O"],
    "BMES": ["B-P E-P O B-P E-P O S-L O", "S-L S-L O S-L", "O O"],
    "BILOU": ["B-P L-P O B-P L-P O U-L O", "U-L U-L O U-L", "O O"],
}
FOUND = [
    [("P", "Ada Lovelace"), ("P", "Charles Babbage"), ("L", "London")],
    [("L", "London"), ("L", "Paris"), ("L", "Rome")],
    [],
]


def columns(tags, line="{} {}", between="\n\n"):
    rows = zip(WORDS, tags, strict=True)
    return between.join(
        "\n".join(line.format(*pair) for pair in zip(words, row.split(), strict=True))
        for words, row in rows
    )


def told(records):
    return [
        [(kind, row["text"][start:end]) for start, end, kind in row["entities"]]
        for row in records.rows
    ]


@pytest.mark.parametrize("name", TAGS)
def test_tags_of_every_form_become_the_same_spans(tmp_path, name):
    path = tmp_path / "a.txt"
    path.write_text(columns(TAGS[name]))
    records = read(path, parse=parse)
    assert told(records) == FOUND
    assert records.rows[0]["text"] == "Ada Lovelace met Charles Babbage in London ."
    assert records.rows[1]["line"] == 10
    # Without a word of three tags BMES and BIOES are the same letters.
    assert (
        records.format.split()[-1] in (name, "BMES", "BIOES")[: 3 if "E" in name else 1]
    )


FORMS = {
    "tabs": columns(TAGS["BIO"], "{}\t{}", "\n\n\n"),
    "Windows": columns(TAGS["BIO"]).replace("\n", "\r\n"),
    "CoNLL-2003": "-DOCSTART- -X- O O\n\n" + columns(TAGS["IOB1"], "{} NN I-NP {}"),
    "comments": "# text one\n" + columns(TAGS["BIO"], "{}\tX\t{}", "\n\n# another\n"),
    "WikiAnn": columns(TAGS["BIO"], "en:{}\t{}"),
    "JSON lines": "\n".join(
        json.dumps({"tokens": words, "ner_tags": tags.split()})
        for words, tags in zip(WORDS, TAGS["BIO"], strict=True)
    ),
    "JSON": json.dumps(
        [
            {"words": words, "tags": tags.split()}
            for words, tags in zip(WORDS, TAGS["BMES"], strict=True)
        ]
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_every_form(tmp_path, form):
    path = tmp_path / "a.txt"
    path.write_bytes(FORMS[form].encode())
    assert told(read(path, parse=parse)) == FOUND


def test_parallel_files_with_intents(tmp_path):
    lines = {"seq.in": map(" ".join, WORDS), "seq.out": TAGS["BIO"], "label": "xyx"}
    for name, content in lines.items():
        (tmp_path / name).write_text("\n".join(content) + "\n")
    records = read(tmp_path, parse=parse)
    assert told(records) == FOUND
    assert [row["intent"] for row in records.rows] == ["x", "y", "x"]
    (tmp_path / "label").unlink()
    assert "intent" not in read(tmp_path, parse=parse).rows[0]
    (tmp_path / "seq.out").write_text("\n".join([*TAGS["BIO"][:2], "O O O"]))
    with pytest.raises(UserError, match=r"seq.in:3: 2 words but 3 tags"):
        read(tmp_path, parse=parse)


def test_chinese_has_no_spaces_but_between_latin_words(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("浙 B-O\n大 I-O\n2 O\n0 O\n\n李 B-P\n  O\n明 O\n　 O\n")
    rows = read(path, parse=parse).rows
    assert [row["text"] for row in rows] == ["浙大20", "李 明　"]
    assert rows[0]["entities"] == [(0, 2, "O")]
    (row,) = newspaper_names(
        ["新华社/nt  李/nr  小明/nr  用/v  Windows/nx  95/m  去/v"]
    )
    assert row["text"] == "新华社李小明用Windows 95去"
    assert row["entities"] == [(0, 3, "ORG"), (3, 6, "PER")]


def test_a_tag_a_word_is_a_span_a_word(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the DT\ncat NN\n\nit PRP\nsat VB\n")
    assert told(read(path, parse=parse))[0] == [("DT", "the"), ("NN", "cat")]


def test_types_without_letters_are_spans_as_long_as_they_go(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("John PER\nSmith PER\nwent O\nto O\nOslo LOC\n")
    records = read(path, parse=parse)
    assert told(records)[0] == [("PER", "John Smith"), ("LOC", "Oslo")]
    assert records.format.endswith("IO")


def test_intents_of_any_kind_are_names(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"tokens": ["a"], "tags": ["B-X"]}
    lines = [json.dumps(row | {"intent": intent}) for intent in [0, "x"] * 5]
    path.write_text("\n".join([*lines, json.dumps(row | {"intent": ["x"]})]))
    records = read(path, parse=parse)
    assert [row["intent"] for row in records.rows[:2]] == ["0", "x"]
    assert [bad[1:] for bad in records.bad] == [(11, "the intent is no text")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a O\nb O\nc\nd O", "a.txt:3: 1 columns instead of 2: 'c'"),
        ("a X O\nb X O\n\nc X Y O\nd X O", "a.txt:4: 4 columns instead of 3"),
        ("a\tO\n\tO\nb\tO", "a.txt:2: an empty word or tag"),
        ("just\nwords", "not a word and its tag"),
        ('{"text": "a", "label": "b"}', "no list 'tags'"),
        ('{"tokens": ["a"], "tags": ["O", "O"]}', "a.txt:1: 1 tokens but 2 tags"),
        ('{"tokens": ["a"], "tags": [3]}', "a.txt:1: the tags are numbers"),
        ('{"tokens": ["a", "b"], "tags": [3, "O"]}', "a token or tag is no text"),
        ('{"tokens": ["a"], "tags": ["O"]}\n' + "[1]\n" * 6, "no JSON object"),
        ('{"tokens": ["a"], "tags": ["B-\\ud800"]}', "half a surrogate"),
        ("a B-X\nb O\n\nc O\nd 0", "a.txt:4: the tag '0' of word 2 is none of"),
        ("-DOCSTART- O\n\n-DOCSTART- O", "not a word and its tag"),
        ('{"tokens": ["\\ud800"], "tags": ["O"]}', "half a surrogate"),
        ("", "empty"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path, content, words):
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        read(path, parse=parse)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from("AB"))),
    st.sampled_from(["bio", "bioes"]),
)
def test_spans_are_written_and_read(parts, scheme):
    spans, place = [], 0
    for gap, width, kind in parts:
        spans.append(Span(place + gap, place + gap + width, kind))
        place += gap + width
    tags = write_tags(spans, place + 1, scheme)
    assert read_tags(tags) == spans
    names = tag_names("AB", scheme)
    moves, starts = allowed(names)
    ids = [names.index(tag) for tag in tags]
    assert starts[ids[0]] and all(moves[a, b] for a, b in pairwise(ids))


def test_real_data(shared):
    resume = read(shared / "ner_zh_resume" / "train.char.bmes.gz", parse=parse)
    assert len(resume) == 3821 and resume.format.endswith("BMES")
    atis = read(shared / "atis" / "test", parse=parse)
    assert len(atis) == 893 and atis.rows[0]["intent"].startswith("atis_")
    wiki = read(shared / "ner_en_wikiann" / "test.tsv.gz", parse=parse)
    assert {kind for row in wiki.rows for kind in row["label"]} == {"PER", "ORG", "LOC"}
    for row in resume.rows + atis.rows + wiki.rows[:1000]:
        assert all(row["text"][start:end].strip() for start, end in row["words"])
