"""Which rows a run trains on, chooses by and is measured on."""

import pytest

from tfllm.core.errors import UserError
from tfllm.data import splits
from tfllm.data.doctor import examine
from tfllm.data.readers import Records
from tfllm.data.splits import DataFlags, hold_out, load_splits


@pytest.fixture
def files(tmp_path):
    rows = [f"text number {i % 900}\tlabel {i % 2}\n" for i in range(1000)]
    (tmp_path / "train.tsv").write_text("".join(rows))
    (tmp_path / "test.tsv").write_text("".join([*rows[:50], "another one\tlabel 1\n"]))
    return tmp_path


def flags(**given):
    return DataFlags(
        **{k: v if isinstance(v, bool | int) else [str(v)] for k, v in given.items()}
    )


def test_what_is_missing_is_held_out_without_leaks(files):
    made = load_splits(flags(train_file=files / "train.tsv"), "none")
    sizes = {name: len(records) for name, records in made.items()}
    assert list(sizes) == ["train", "validation", "test"]
    assert sum(sizes.values()) == 1000
    assert 100 <= sizes["test"] <= 101
    assert 90 <= sizes["validation"] <= 91
    report = examine(made)
    assert not report.leaked
    assert not report.leaks["validation"]
    again = load_splits(flags(train_file=files / "train.tsv"), "none")
    assert again["test"].rows == made["test"].rows
    other = load_splits(flags(train_file=files / "train.tsv"), "none", seed=1)
    assert other["test"].rows != made["test"].rows


def test_rows_are_dropped_only_when_asked(files):
    given = {"train_file": files / "train.tsv", "test_file": files / "test.tsv"}
    made = load_splits(flags(**given), "none")
    assert len(made["test"]) == 51
    assert len(examine(made).leaked) > 40
    made = load_splits(flags(**given, drop_leaked=True, drop_duplicates=True), "none")
    report = examine(made)
    assert not report.leaked
    assert report.splits["train"]["duplicates"] == 0
    assert len(made["test"]) == 51
    made = load_splits(
        flags(**given, max_train_samples=30, max_eval_samples=20), "none"
    )
    assert [len(records) for records in made.values()] == [30, 20, 20]
    with pytest.raises(UserError, match="no --train_file"):
        load_splits(flags(test_file=files / "test.tsv"), "none")


def test_validation_rows_are_held_out_where_they_are_wanted(files):
    given = {"train_file": files / "train.tsv", "test_file": files / "test.tsv"}
    made = load_splits(flags(**given), "none", validate=False)
    assert list(made) == ["train", "test"]
    assert len(made["train"]) == 1000
    made = load_splits(flags(**given, drop_leaked=True), "none", validate=False)
    assert len(made["train"]) < 1000
    some = DataFlags([str(files / "train.tsv")], validation_share=0.2)
    made = load_splits(some, "none", validate=False)
    assert 175 <= len(made["validation"]) <= 185
    none = DataFlags([str(files / "train.tsv")], validation_share=0.0)
    assert list(load_splits(none, "none")) == ["train", "test"]


def test_samples_stand_in(monkeypatch):
    rows = [{"text": f"text {i}", "label": str(i % 2)} for i in range(30)]
    parts = {"train": rows[:20], "validation": rows[20:25], "test": rows[25:]}
    monkeypatch.setattr(splits.samples, "load", lambda name: parts)
    made = load_splits(DataFlags(), "made")
    assert made["test"].rows == rows[25:]
    assert made["train"].files[0]["path"] == "made/train"
    assert len(made["train"].files[0]["sha256"]) == 64


def test_taking_and_holding_out():
    records = Records([{"text": str(i)} for i in range(10)], bad=[("f", 1, "x")])
    some = [row["text"] for row in records.take(3).rows]
    assert some == sorted(some) != ["0", "1", "2"]
    assert records.take(3).rows == records.take(3).rows
    assert records.take(None) is records.take(10) is records
    rest, held = hold_out(records)
    assert (len(rest), len(held)) == (9, 1)
    assert (rest.bad, held.bad) == (records.bad, [])
