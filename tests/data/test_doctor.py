"""The doctor finds what was put there, and the known faults of real data."""

import json
import random
import time

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.data import doctor
from tfllm.data.doctor import (
    drop_duplicates,
    drop_leaked,
    examine,
    text_key,
)
from tfllm.data.near import near_duplicates
from tfllm.data.readers import Records, read

WORDS = (
    "amber basil cedar delta ember fable gamma hazel indigo jumbo karma lemon mango "
    "noble ocean pearl quartz river stone tulip ultra velvet willow xenon yacht zebra"
)
WORDS = WORDS.split()


def rows(number, seed=0, labels=("good", "bad"), file="train.tsv"):
    rng = random.Random(seed)
    return [
        {
            "text": " ".join(rng.choices(WORDS, k=12)),
            "label": labels[i % len(labels)],
            "file": f"/data/{file}",
            "line": i + 2,
        }
        for i in range(number)
    ]


def found(report, kind):
    return [f for f in report.findings if f["kind"] == kind]


def test_clean_data_have_no_findings():
    report = examine({"train": rows(60), "test": rows(20, 1, file="test.tsv")})
    assert report.warnings == []
    facts = report.splits["train"]
    assert facts["labels"] == {"good": 30, "bad": 30}
    assert facts["length"]["unit"] == "characters"
    assert report.leaked == set()


def test_each_fault_is_found_with_its_place(tmp_path, capsys, monkeypatch):
    train, test = rows(100), rows(40, 1, file="test.tsv")
    train[10] |= {"text": "  " + train[3]["text"].upper() + " ", "label": "good"}
    train[12]["text"] = train[4]["text"]
    train[30]["label"], train[31]["label"] = "Good ", "goood"
    train[40]["text"] = "broken \ufffd text of ours"
    train[41]["text"] = "Das war schÃ¶n, und zwar sehr"
    train[50]["text"] = train[6]["text"] + "s"
    test[5]["text"] = train[8]["text"].title()
    test[6]["text"] = train[9]["text"] + "x"
    test[7]["label"] = "unheard of"
    records = Records(train, bad=[("/data/train.tsv", 77, "the text is empty")])
    lengths = {"train": np.full(100, 12), "test": np.full(40, 12)}
    lengths["train"][0] = 400
    report = examine({"train": records, "test": test}, lengths=lengths, max_length=64)

    (torn,) = found(report, "contradictions")
    assert torn["count"] == 2
    assert "train.tsv:5" in torn["examples"][0]
    assert "train.tsv:12" in torn["examples"][0]
    (again,) = found(report, "duplicates")
    assert again["count"] == 2
    assert report.splits["train"]["contradictions"] == 2
    typos = {f["text"] for f in found(report, "label_typo")}
    assert "label 'Good ' of 1 looks like a typo of 'good'" in typos
    assert any("'goood'" in text for text in typos)
    assert found(report, "garbled")[0]["count"] == 2
    assert report.leaked == {5}
    assert "train.tsv:52" in found(report, "near_duplicates")[0]["examples"][0]
    near = found(report, "near_leakage")
    assert near[0]["count"] == 1
    assert near[0]["examples"][0].endswith("train.tsv:11")
    (unseen,) = found(report, "unseen_label")
    assert "'unheard of'" in unseen["text"]
    assert "test.tsv:9" in unseen["examples"][0]
    (cut,) = found(report, "truncation")
    assert cut["count"] == 1
    assert report.splits["train"]["length"]["truncated_share"] == pytest.approx(
        336 / (99 * 12 + 400)
    )
    assert found(report, "bad_rows")[0]["examples"] == [
        "train.tsv:77: the text is empty"
    ]
    assert found(report, "imbalance")
    monkeypatch.setattr(doctor, "MOST_TEXTS", 90)
    warnings = examine({"train": records}).warnings
    assert any("not looked for among 98" in line for line in warnings)
    assert report.findings[0]["kind"] == "leakage"  # the gravest first

    stored = json.loads(json.dumps(report.to_dict(), ensure_ascii=False))
    assert stored["leaked_rows"] == {"test": [5]}
    assert all(len(f["examples"]) <= 3 for f in stored["findings"])
    report.print()
    shown = capsys.readouterr().out
    assert "rows that stand in train" in shown
    assert "warning: test: 1 row (2.5%) with a text of train" in " ".join(shown.split())
    report.save(tmp_path)
    assert json.loads((tmp_path / "data_report.json").read_text("utf-8")) == stored
    assert (tmp_path / "data_report.png").stat().st_size > 10_000


def test_chinese_labels_can_be_drawn_without_a_font(tmp_path):
    report = examine({"train": rows(20, labels=("好$评", "差评"))}, max_length=16)
    report.plot(tmp_path / "data.png")
    assert (tmp_path / "data.png").exists()


def test_several_labels_numbers_and_none():
    report = examine({"train": [r | {"label": [r["label"], "any"]} for r in rows(30)]})
    assert report.splits["train"]["labels"]["any"] == 30
    numbers = [r | {"label": i / 7} for i, r in enumerate(rows(30))]
    assert examine({"train": numbers}).splits["train"]["labels"] == {}
    bare = [{"text": r["text"]} for r in rows(30)]
    report = examine({"train": bare, "test": bare[:2]})
    assert len(report.leaked) == 2
    report.print()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": []}, "the train split is empty"),
        ({"train": rows(9), "test": []}, "the test split is empty"),
        (
            {"train": rows(9, labels=["x"])},
            "all rows .* have the label 'x'.*two classes",
        ),
        ({"train": rows(9, labels=[[]])}, "no row of the train split has a label"),
        (
            {"train": rows(30, labels=[*map(str, range(30))])},
            "30 different labels in 30 rows.*--label_column",
        ),
        (
            {"train": Records(rows(30), bad=[("f", i, "3 fields") for i in range(9)])},
            "9 of 39 rows cannot be used.*f:0: 3 fields",
        ),
    ],
)
def test_data_nobody_can_train_on_are_refused(splits, message):
    with pytest.raises(UserError, match=message):
        examine(splits)


def test_helpers_drop_only_when_asked():
    train = rows(20)
    train[5]["text"] = train[1]["text"] + " "  # label bad as well
    train[7] |= {"text": train[2]["text"].upper()}  # another label
    kept = drop_duplicates(Records(train, format="TSV"))
    assert kept.format == "TSV"
    assert [r["line"] - 2 for r in kept.rows] == [
        i for i in range(20) if i not in (2, 5, 7)
    ]
    assert len(train) == 20
    left = drop_leaked(Records(train), [Records([{"text": train[0]["text"]}])])
    assert len(left) == 19
    assert text_key({"text": "ＡＢ  c", "text_pair": "d"}) == "ab c\0d"


def test_near_duplicates_are_true_and_complete():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=20)) for _ in range(3000)]
    twins = [text[:-2] + "!" for text in texts[:300]]
    pairs = near_duplicates(texts + twins + ["short"])
    assert {(i, 3000 + i) for i in range(300)} <= {tuple(p) for p in pairs.tolist()}

    def similarity(a, b):
        a, b = ({t[i : i + 4] for i in range(len(t) - 3)} for t in (a, b))
        return len(a & b) / len(a | b)

    everything = texts + twins
    assert all(similarity(everything[a], everything[b]) > 0.79 for a, b in pairs)
    assert (
        near_duplicates([]).shape == near_duplicates(["one text only"]).shape == (0, 2)
    )


def test_chnsenticorp_has_331_leaked_test_rows(shared):
    names = {"train": "train", "validation": "dev", "test": "test"}
    splits = {
        key: read(shared / "chnsenticorp" / f"{name}.tsv.gz")
        for key, name in names.items()
    }
    started = time.perf_counter()
    report = examine(splits, max_length=256)
    assert time.perf_counter() - started < 10
    assert len(report.leaked) == 331
    assert report.splits["train"]["duplicates"] == 1351
    kept = drop_leaked(splits["train"], [splits["test"]])
    assert not examine({"train": kept, "test": splits["test"]}).leaked
