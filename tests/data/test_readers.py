"""Readers: every form, every encoding, every kind of damage, the real data sets."""

import gzip
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfllm.core.errors import UserError
from tfllm.data.readers import Records, read

ROWS = [
    ("a good film", "pos"),
    ("a bad, bad film", "neg"),
    ('a "fine" film', "pos"),
    ("no film at all", "neg"),
    ("ein schöner Film", "pos"),
    ("这个宾馆比较陈旧了", "neg"),
]
CHINESE = [("这个宾馆比较陈旧了，房间也一般", "差"), ("服务很好，我们都喜欢", "好")] * 4


def csv_cell(text):
    return '"' + text.replace('"', '""') + '"'


FORMS = {
    "TSV with header": "text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in ROWS),
    "TSV without header": "".join(f"{t}\t{c}\r\n" for t, c in ROWS),
    "label first": "\n".join(f"{c}\t{t}" for t, c in ROWS),
    "unknown names": "Urteil\tRezension\n" + "\n".join(f"{c}\t{t}" for t, c in ROWS),
    "half-known names": "Label\tRezension\n" + "\n".join(f"{c}\t{t}" for t, c in ROWS),
    "with a constant column": "".join(f"task one\t{t}\t{c}\n" for t, c in ROWS),
    "with an id column": "".join(f"{i}\t{t}\t{c}\n" for i, (t, c) in enumerate(ROWS)),
    "CSV with header": "Sentiment,Review\n"
    + "".join(f"{c},{csv_cell(t)}\n" for t, c in ROWS),
    "CSV without header": "".join(f"{csv_cell(c)},{csv_cell(t)}\n" for t, c in ROWS),
    "CSV with semicolons": "id;sentence;label\n"
    + "".join(f"{i};{csv_cell(t)};{c}\n" for i, (t, c) in enumerate(ROWS)),
    "TSV with quotes": "label\tsentence\n"
    + "".join(f"{c}\t{csv_cell(t)}\n" for t, c in ROWS),
    "JSON lines": "".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in ROWS),
    "JSON lines, unknown names": "\n\n".join(
        json.dumps({"id": f"x{i}", "Urteil": c, "Text der Rezension": t})
        for i, (t, c) in enumerate(ROWS)
    ),
    "JSON array": json.dumps(
        [{"content": t, "category": c} for t, c in ROWS], ensure_ascii=False, indent=1
    ),
    "JSON pairs": json.dumps([list(row) for row in ROWS]),
    "one part": json.dumps({"data": [list(row) for row in ROWS]}),
    "LABEL text": "".join(f"{c.upper()}:x {t}\n" for t, c in ROWS),
    "fastText": "".join(f"__label__{c} {t}\n" for t, c in ROWS),
}


def write(tmp_path, content, name="data.txt"):
    path = tmp_path / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_told_apart_by_content(tmp_path, form):
    records = read(write(tmp_path, FORMS[form]))
    got = [(row["text"], row["label"].lower()) for row in records.rows]
    assert got == ROWS, records.description
    assert not records.bad
    assert all("text_pair" not in row for row in records.rows)
    line = records.rows[1]["line"]
    assert 2 <= line <= 3
    assert records.rows[0]["file"].endswith("data.txt")
    assert {"text", "label"} <= records.columns.keys()
    assert "6 rows" in records.description


@given(st.sampled_from(sorted(FORMS)), st.data())
@settings(max_examples=300, deadline=None)
def test_no_damage_makes_a_traceback(tmp_path_factory, form, data):
    """Bytes lost, doubled and put in: rows come back, or one line says why not."""
    content = bytearray(FORMS[form].encode() * data.draw(st.sampled_from([1, 4])))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 12))
        noise = st.sampled_from(
            [b"", b'"', b"\t", b"\n", b"\0", b"{", b"\xff", b"[" * 9]
        )
        content[place : place + cut] = data.draw(noise)
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        records = read(path, labels=data.draw(st.booleans()))
    except UserError as error:
        assert "damaged" in str(error)
        return
    assert records.rows
    assert all(row["text"].strip() for row in records.rows)


def test_pairs_and_named_columns(tmp_path):
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    rows = 'no,\t1\t2\t"I think so," he said\tHe "thinks" so\n0\t3\t4\ta man\t"a dog"\n'
    records = read(write(tmp_path, "\ufeff" + head + rows))
    assert records.encoding == "utf-8-sig"
    assert records.rows[0]["text"] == '"I think so," he said'
    assert records.rows[1]["text_pair"] == '"a dog"'
    assert records.rows[0]["line"] == 2
    glue = "index\tquestion\tsentence\tlabel\n0\twho?\tme\tentailment\n"
    records = read(write(tmp_path, glue))
    assert records.columns == {
        "text": "question",
        "text_pair": "sentence",
        "label": "label",
    }
    table = "a\tb\tc\nx y\t1\tfirst text\nz\t2\tsecond text\n"
    path = write(tmp_path, table)
    records = read(path, text_column="c", label_column="2")
    assert records.rows[0] | {"file": ""} == {
        "text": "first text",
        "label": "1",
        "file": "",
        "line": 2,
    }
    with pytest.raises(UserError, match=r"no column 'd'.*It has a, b, c"):
        read(path, text_column="c", label_column="d")
    records = read(path, text_column="c", pair_column="a", labels=False)
    assert records.rows[1]["text_pair"] == "z"
    guessed = "".join(f"first of {i}\tsecond of {i}\t{i % 2}\n" for i in range(8))
    assert read(write(tmp_path, guessed)).columns["text_pair"] == "2"


def test_what_is_known_guides_what_is_guessed(tmp_path):
    rows = "".join(f"{i % 2}\ta text {i}\thttp://example.org/{i}\n" for i in range(8))
    path = write(tmp_path, "y\ttext\turl\n" + rows)
    assert read(path).columns == {"text": "text", "label": "y"}  # the URL is no pair
    two = "class_of_it\tc\n" + "".join(f"{i % 2}\ta text {i}\n" for i in range(8))
    assert read(write(tmp_path, two), text_column="c").columns["label"] == "class_of_it"


def test_one_files_columns_say_nothing_of_the_next(tmp_path):
    first = write(tmp_path, json.dumps([["a b", "x"], ["c d", "y"]] * 3), "a.json")
    second = write(tmp_path, "label\ttext\nx\te f\ny\tg h\n", "b.tsv")
    rows = read([first, second]).rows
    assert [row["text"] for row in rows[-2:]] == ["e f", "g h"]


def test_quotes_over_several_lines_and_line_numbers(tmp_path):
    text = 'text,label\n"one\ntwo",a\nthree,b\n"a ""b"" c",a\n'
    records = read(write(tmp_path, text))
    assert [row["text"] for row in records.rows] == ["one\ntwo", "three", 'a "b" c']
    assert [row["line"] for row in records.rows] == [2, 4, 5]
    separator = "a\u2028b\x0bc\x85d\tx\ne\ty\n"  # no line ends to us
    assert read(write(tmp_path, separator)).rows[1]["line"] == 2


def test_labels_of_every_kind(tmp_path):
    lines = '{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n'
    assert [r["label"] for r in read(write(tmp_path, lines)).rows] == [["x", "y"], []]
    lines = '{"text": "a", "score": 2}\n{"text": "b", "score": 2.5}\n'
    assert [r["label"] for r in read(write(tmp_path, lines)).rows] == [2.0, 2.5]
    lines = '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
    assert [r["label"] for r in read(write(tmp_path, lines)).rows] == ["0", "1"]
    trec = "NUM:dist How far ?\nNUM:date When ?\nHUM:ind Who ?\n" * 3
    path = write(tmp_path, trec)
    assert [r["label"] for r in read(path).rows][:3] == ["NUM", "NUM", "HUM"]


def test_a_dash_is_no_gold_label(tmp_path):
    head = "gold_label\tsentence1\tsentence2\n"
    rows = [
        f"{'-' if i % 9 == 0 else 'yes' if i % 2 else 'no'}\ta {i}\tb {i}\n"
        for i in range(90)
    ]
    path = write(tmp_path, head + "".join(rows))
    records = read(path)
    assert (len(records), records.unlabelled, records.bad) == (80, 10, [])
    assert {row["label"] for row in records.rows} == {"yes", "no"}
    assert "10 without a label left out" in records.description
    assert "label" not in read(path, labels=False).rows[0]
    path = write(tmp_path, "text\tlabel\n" + "bad\t-\ngood\t+\n" * 4)
    assert {row["label"] for row in read(path).rows} == {"-", "+"}  # here it is one


def test_class_names_lie_beside(tmp_path):
    write(tmp_path, "sport\nnews\n", "class.txt")
    rows = "".join(f"text {i}\t{i % 2}\n" for i in range(10))
    records = read(write(tmp_path, rows))
    assert [row["label"] for row in records.rows][:2] == ["sport", "news"]
    records = read(write(tmp_path, rows + "text\t2\n"))
    assert records.bad[0][1:] == (11, "label 2, but class.txt has 2 names")


def test_parts_of_one_file(tmp_path):
    parts = {"oos_val": [["x", "oos"]], "val": [["a", "b"]], "train": [["c", "d"]]}
    path = write(tmp_path, json.dumps(parts))
    assert read(path, split="train").rows[0]["text"] == "c"
    assert read(path, split="validation").rows[0]["label"] == "b"
    records = read(f"{path}#val+oos_val", split="train")
    assert [row["label"] for row in records.rows] == ["b", "oos"]
    with pytest.raises(UserError, match=r"several parts.*FILE#PART.*oos_val, val"):
        read(path)
    with pytest.raises(UserError, match=r"no part 'vall'.*'val'"):
        read(f"{path}#vall")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-16-be"]
)
def test_chinese_encodings(tmp_path, encoding):
    content = "".join(f"{t}\t{c}\n" for t, c in CHINESE).encode(encoding)
    for name, data in (("a.tsv", content), ("a.gz", gzip.compress(content))):
        records = read(write(tmp_path, data, name))
        assert records.encoding == encoding
        assert [(row["text"], row["label"]) for row in records.rows] == CHINESE


def test_european_encodings(tmp_path):
    rows = "Das war schön\tja\nQuel café déjà vu\tnein\nüber alles\tja\n"
    assert (
        read(write(tmp_path, rows.encode("latin-1"))).rows[1]["text"][-7:] == "déjà vu"
    )
    records = read(write(tmp_path, (rows + "“quoted”\tja\n").encode("cp1252")))
    assert (records.encoding, records.rows[3]["text"]) == ("cp1252", "“quoted”")
    cyrillic = "это было очень хорошо\tда\n".encode("cp1251")
    with pytest.raises(UserError, match=r"cp1251, not UTF-8.*iconv -f CP1251"):
        read(write(tmp_path, cyrillic))
    assert read(write(tmp_path, cyrillic), encoding="cp1251").rows[0]["label"] == "да"


REFUSED = {
    "missing": (None, "no such file"),
    "empty": (b"", "the file is empty"),
    "blank": (b"\n \n", "the file is empty"),
    "zip": (b"PK\x03\x04abc", "ZIP archive or an Excel workbook"),
    "binary": (b"\x00\x01\x02\xffabc" * 9, "encoding cannot be told"),
    "damaged gzip": (gzip.compress(b"a\tb\n" * 9)[:-9], "damaged gzip"),
    "big5": ("這間酒店的環境和服務態度不錯\t好\n".encode("big5") * 3, "big5.*iconv"),
    "shift_jis": ("これはとても良い映画です\t良\n".encode("shift_jis"), "shift_jis"),
    "euc_kr": ("이 영화는 정말 좋았습니다\t네\n".encode("euc_kr"), "euc_kr"),
    "plain text": (b"Some words\nand other ones\n", "format is not known: 'Some"),
    "broken JSON": (b'[{"text": "a",\n "label": }]', r"data.txt:2: damaged JSON"),
    "header alone": (b"text\tlabel\n", "nothing below it"),
    "no label": (b"index\tsentence\n" + b"0\ta b c\n" * 3, None),
    "fields": (b"text\tlabel\n" + b"a\tb\tc\n" * 9, r"9 of 9.*txt:2: 3 fields"),
    "empty texts": (b"text\tlabel\n" + b" \tb\n" * 9 + b"a\tb\n", "9 of 10.*is empty"),
    "empty labels": (b"text\tlabel\n" + b"a\t\n" * 9, "the label is empty"),
    "bad JSON lines": (
        b'{"text": "a", "label": "b"}\n' * 9 + b'{"text": "a"\n' * 7,
        r"7 of 16 rows.*txt:10: not JSON",
    ),
    "deep JSON": (b'{"text": ' + b"[" * 100_000, "damaged JSON"),
    "surrogates": (b'{"text": "\\ud800", "label": "b"}\n' * 6, "not Unicode"),
    "no text key": (b'{"a": 1, "label": 2}\n', "no text column among a, label"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_damage_is_told_in_one_line(tmp_path, case):
    content, message = REFUSED[case]
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    if message is None:  # the id becomes the label: the doctor's matter
        assert read(path).columns == {"text": "sentence", "label": "index"}
        return
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "data.txt" in str(caught.value)


def test_a_few_bad_rows_are_counted_and_left_out(tmp_path):
    lines = ["text\tlabel", *(f"text {i}\tx{i % 2}" for i in range(95))]
    lines[10:10] = ["too\tmany\tfields", "\tx1", "text\t "]
    records = read(write(tmp_path, "\n".join(lines)))
    assert len(records) == 95
    assert [(line, why) for _, line, why in records.bad] == [
        (11, "3 fields instead of 2"),
        (12, "the text is empty"),
        (13, "the label is empty"),
    ]
    assert "3 bad rows" in records.description


def test_lists_globs_samples_and_hashes(tmp_path):
    for name in "ab":
        write(tmp_path, "".join(f"{name} {i}\t{i % 2}\n" for i in range(50)), name)
    records = read(str(tmp_path / "*"))
    assert len(records) == 100
    assert [f["rows"] for f in records.files] == [50, 50]
    assert records.files[0]["sha256"] != records.files[1]["sha256"]
    assert read([tmp_path / "b", tmp_path / "a"]).rows[0]["text"] == "b 0"
    some = records.take(10)
    assert some.rows == read(str(tmp_path / "*")).take(10).rows
    assert len(some) == 10
    assert {row["text"][0] for row in some.rows} == {"a", "b"}  # not just the first
    with pytest.raises(UserError, match=r"no such file.*Did you mean 'a'"):
        write(tmp_path, "", "aa").unlink()
        read(tmp_path / "a_")
    with pytest.raises(UserError, match="this is a folder"):
        read(tmp_path)
    assert read(write(tmp_path, "x y\nz\n"), labels=False).rows[1]["text"] == "z"
    commas = "Hello, world\nA second one, too\nMoney back, please\n"
    rows = read(write(tmp_path, commas), labels=False).rows
    assert [row["text"] for row in rows] == commas.split("\n")[:3]
    headed = read(write(tmp_path, "sentence\nx y\nz\n"), labels=False)
    assert [row["text"] for row in headed.rows] == ["x y", "z"]
    assert len(Records([])) == 0


REAL = {
    "chnsenticorp/train.tsv.gz": (9600, "TSV with header", "utf-8", 2),
    "chnsenticorp/test.tsv.gz": (1200, "TSV with header", "utf-8", 2),
    "thucnews_titles/dev.txt.gz": (10000, "TSV without header", "utf-8", 10),
    "csl_zh_papers/cls_ctg/train.tsv.gz": (8000, "TSV without header", "utf-8", 13),
    "csl_zh_papers/cls_ctg/dev.tsv": (1000, "TSV without header", "utf-8", 13),
    "sst2_sentences/*.tsv*": (9613, "TSV without header", "utf-8", 2),
    "trec/TREC.train.all.gz": (5452, "LABEL text", "latin-1", 6),
    "trec/TREC.test.all": (500, "LABEL text", "utf-8", 6),
    "sms_spam/*.gz": (5574, "TSV without header", "utf-8", 2),
    "clinc150/data_full.json.gz": (15000, "JSON, part train", "utf-8", 150),
    "clinc150/data_full.json.gz#test": (4500, "JSON, part test", "utf-8", 150),
    "atis/train/seq.in.gz": (4478, "parallel files", "utf-8", 21),
    "atis/test": (893, "parallel files", "utf-8", 20),
    "mrpc/msr_paraphrase_train.txt.gz": (4076, "TSV with header", "utf-8-sig", 2),
    "mrpc/msr_paraphrase_test.txt.gz": (1725, "TSV with header", "utf-8-sig", 2),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data(shared, name):
    rows, form, encoding, classes = REAL[name]
    records = read(str(shared / name), split="train")
    assert (len(records), records.format, records.encoding) == (rows, form, encoding)
    counts = Counter(row["label"] for row in records.rows)
    assert len(counts) == classes, counts
    assert not records.bad
    assert all(row["text"] for row in records.rows)
    assert ("text_pair" in records.columns) == name.startswith("mrpc")
    if name.startswith("thucnews"):
        assert counts["finance"] == 1000
    if name.startswith("sms"):
        assert counts == {"ham": 4827, "spam": 747}
