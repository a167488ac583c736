"""SQuAD's and CMRC's files; what is wrong in them; contexts are held out whole."""

import gzip
import json

import pytest

from tfllm.core.errors import UserError
from tfllm.data.doctor import drop_leaked, examine
from tfllm.data.questions import documentation, parse
from tfllm.data.readers import Records, read
from tfllm.data.splits import hold_out

CONTEXT = " e\u0301té：李小明😀 lives in Rome.\u3000"
ROME = {"text": "Rome", "answer_start": CONTEXT.index("Rome")}


def squad(*questions, context=CONTEXT):
    return {"version": "x", "data": [{"title": "t", "paragraphs": [
        {"context": context, "qas": list(questions)}]}]}  # fmt: skip


def asked(answers=(ROME,), **more):
    return {"id": "q1", "question": " Where? ", "answers": list(answers)} | more


def written(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return read(path, parse=parse)


def test_squad_both_versions(tmp_path):
    path = tmp_path / "a.json.gz"
    open_one = asked([], id="q2", is_impossible=True, plausible_answers=[ROME])
    path.write_bytes(gzip.compress(json.dumps(squad(asked(), open_one)).encode()))
    records = read(path, parse=parse)
    first, second = records.rows
    assert first == {"text": "Where?", "context": CONTEXT, "id": "q1", "line": 1,
                     "answers": [(ROME["answer_start"], "Rome")],
                     "file": str(path)}  # fmt: skip
    assert second["answers"] == [] and second["line"] == 2
    assert "1 without an answer" in records.description


def test_other_forms_of_the_same(tmp_path):
    flat = {"question": "Where?", "context": CONTEXT}
    flat["answers"] = {"text": ["Rome"], "answer_start": [ROME["answer_start"]]}
    lines = "\n".join(json.dumps(one) for one in (flat, flat))
    (tmp_path / "a.jsonl").write_text(lines)
    records = read(tmp_path / "a.jsonl", parse=parse)
    assert [row["line"] for row in records.rows] == [1, 2]
    question = {"query_id": "q", "query_text": "谁？", "answers": ["李小明", "小明兄"]}
    cmrc = [{"context_id": "c", "context_text": CONTEXT, "qas": [question]}]
    (row,) = written(tmp_path / "b.json", cmrc).rows
    assert row["answers"] == [(CONTEXT.index("李"), "李小明"), (-1, "小明兄")]
    assert row["id"] == "q" and row["text"] == "谁？"
    assert records.rows[0]["answers"] == [(ROME["answer_start"], "Rome")]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (asked([{"text": "Oslo", "answer_start": 3}]), "'Oslo' does not stand"),
        (asked([ROME | {"answer_start": "3"}]), "no number of a character"),
        (asked([ROME | {"answer_start": -5}]), "no number of a character"),
        (asked([{"text": "\ud800", "answer_start": -1}]), "an answer is not Unicode"),
        (asked({"text": ["a", "b"], "answer_start": [0]}.items()), "without text"),
        (asked(is_impossible="false"), "neither true nor false"),
        (asked([{"text": " ", "answer_start": 0}]), "an answer without text"),
        (asked([5]), "an answer without text"),
        (asked(question=""), "there is no question"),
        (asked(question="\ud800?"), "not Unicode"),
        ({"id": "q1", "question": "Where?"}, "there are no answers"),
    ],
)
def test_bad_questions_are_told_by_file_and_id(question, words, tmp_path):
    good = [asked(id=f"g{i}") for i in range(9)]
    records = written(tmp_path / "a.json", squad(*good, question))
    assert len(records) == 9
    ((file, line, why),) = records.bad
    assert file.endswith("a.json") and line == 10 and words in why
    assert why.startswith("question 'q1': ")
    with pytest.raises(UserError, match="10 of 19 rows cannot be used"):
        written(tmp_path / "b.json", squad(*good, *[question] * 10))


def test_answers_are_found_near_where_they_should_stand(tmp_path):
    context = "Rome, Rome and Rome"
    near = [{"text": "Rome", "answer_start": start} for start in (1, 5, 12, 18)]
    (row,) = written(tmp_path / "a.json", squad(asked(near), context=context)).rows
    assert [start for start, _ in row["answers"]] == [0, 6, 15, 15]
    flat = {"question": "?", "context": context}
    flat["answers"] = {"text": "Rome", "answer_start": 6}
    (row,) = written(tmp_path / "b.json", [flat]).rows
    assert row["answers"] == [(6, "Rome")]
    flat["answers"] = {"text": ["Rome", "and"], "answer_start": [6]}
    with pytest.raises(UserError, match="as many answers as places"):
        written(tmp_path / "b.json", [flat])


@pytest.mark.parametrize("content", ["a\tb\n", "[1, 2]", '{"data": []}', "{}"])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read(tmp_path / "a.json", parse=parse)


def rows(contexts=20, each=5):
    return [
        {"text": f"which {i}?", "context": f"context {n} of\n{n * 7}", "answers": []}
        for n in range(contexts)
        for i in range(each)
    ]


def test_a_context_is_on_one_side_alone():
    rest, held = hold_out(Records(rows()), share=0.2)
    sides = [{row["context"] for row in part.rows} for part in (rest, held)]
    assert sides[1] and not sides[0] & sides[1]
    assert len(rest) + len(held) == 100 and len(held) % 5 == 0
    report = examine({"train": rest, "test": held})
    assert not report.leaked and not report.findings
    leak = held.rows[:2] + rest.rows[:1]
    assert examine({"train": rest, "test": leak}).leaked == {2}
    kept = drop_leaked(Records(rows()), [held])
    assert {row["context"] for row in kept.rows} == sides[0]


def test_questions_on_documentation():
    more = "Do one thing at a time. Then more.\n\nMore.\n\nNot this."
    first = [("one", more), ("", "What a module is for."), ("_no", "A private thing.")]
    first += [("two", "two(x) -> a number"), ("three", "Return a thing,\nthe third")]
    modules = [first, [("four", "Return another thing, four.")]]
    found = list(documentation(modules, 10, 500))
    asked = "What does one do? What is three for? What happens when four is called?"
    assert " ".join(row["text"] for row in found) == asked
    answers = ["Do one thing at a time", "Return a thing,\nthe third"]
    for row, answer in zip(found, [*answers, modules[1][0][1]], strict=True):
        assert row["answers"] == [(row["context"].index(answer), answer)]
    assert "Not this" not in str(found) and "private" not in str(found)
    assert len(list(documentation(modules, 1, 500))) == 1


def test_real_files(shared):
    for name, count in (("xquad/xquad.zh", 1190), ("cmrc2018/cmrc2018_dev", 3219)):
        records = read(shared / f"{name}.json.gz", parse=parse)
        assert len(records) + len(records.bad) == count
        for row in records.rows:
            for start, text in row["answers"]:
                assert start < 0 or row["context"].startswith(text, start)
