"""Bad input: one line that says what, where and how to mend it; status 2; no trace."""

import gzip
import json

import pytest

from .conftest import sentences, write_tsv

ROWS = sentences(60, 9)


def many_bad_rows(folder):
    lines = ["text\tlabel"] + [f"{text}\t{label}" for text, label in ROWS]
    lines[5:20] = ["only text"] * 15
    (folder / "bad.tsv").write_text("\n".join(lines))
    return ["--train_file", "bad.tsv"]


def binary(folder):
    (folder / "bad.tsv").write_bytes(bytes(range(256)) * 50)
    return ["--train_file", "bad.tsv"]


def cut_gzip(folder):
    packed = gzip.compress("\n".join(f"{t}\t{x}" for t, x in ROWS).encode())
    (folder / "bad.tsv.gz").write_bytes(packed[: len(packed) // 2])
    return ["--train_file", "bad.tsv.gz"]


def one_class(folder):
    write_tsv(folder / "one.tsv", [(text, "good") for text, _ in ROWS])
    return ["--train_file", "one.tsv"]


def no_labels(folder):
    lines = [json.dumps({"text": text, "label": []}) for text, _ in ROWS]
    (folder / "none.jsonl").write_text("\n".join(lines))
    return ["--train_file", "none.jsonl"]


def empty(folder):
    (folder / "empty.tsv").write_text("")
    return ["--train_file", "empty.tsv"]


def header_only(folder):
    (folder / "head.tsv").write_text("text\tlabel\n")
    return ["--train_file", "head.tsv"]


def empty_test(folder):
    write_tsv(folder / "test.tsv", [])
    return ["--train_file", good(folder), "--test_file", "test.tsv"]


def good(folder):
    write_tsv(folder / "good.tsv", ROWS)
    return "good.tsv"


def no_such_column(folder):
    return ["--train_file", good(folder), "--label_column", "lable"]


def bad_json(folder):
    lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
    lines[3:12] = ['{"text": "cut'] * 9
    (folder / "bad.jsonl").write_text("\n".join(lines))
    return ["--train_file", "bad.jsonl"]


def yaml_key(folder):
    (folder / "c.yaml").write_text(f"train_file: {good(folder)}\nlearning_rte: 1\n")
    return ["--config", "c.yaml"]


def other_folder(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("precious")
    return ["--train_file", good(folder), "--output_dir", "mine"]


def no_vectors(folder):
    return ["--train_file", good(folder), "--model", "lstm", "--word_vectors", "no.vec"]


def no_tokenizer(folder):
    return ["--train_file", good(folder), "--tokenizer", "no/tokenizer.json"]


def many_heads(folder):
    shape = ["--model", "transformer", "--hidden_size", 30, "--num_heads", 4]
    return ["--train_file", good(folder), *shape]


CASES = {
    "missing file": (lambda _: ["--train_file", "no.tsv"], ["no.tsv"]),
    "empty file": (empty, ["empty.tsv", "empty"]),
    "header only": (header_only, ["head.tsv"]),
    "empty test split": (empty_test, ["test"]),
    "binary": (binary, ["bad.tsv"]),
    "cut gzip": (cut_gzip, ["bad.tsv.gz"]),
    "many bad rows": (many_bad_rows, ["bad.tsv:6"]),
    "bad json": (bad_json, ["bad.jsonl:4"]),
    "one class": (one_class, ["one.tsv", "good"]),
    "no labels": (no_labels, ["none.jsonl", "label"]),
    "no such column": (no_such_column, ["good.tsv", "label"]),
    "test without train": (lambda f: ["--test_file", good(f)], ["--train_file"]),
    "unknown flag": (lambda _: ["--epoch", "3"], ["--epochs"]),
    "bad number": (lambda _: ["--epochs", "many"], ["--epochs", "many"]),
    "negative rate": (lambda _: ["--learning_rate", "-1"], ["--learning_rate"]),
    "unknown model": (lambda _: ["--model", "textcn"], ["textcnn"]),
    "unknown yaml key": (yaml_key, ["c.yaml", "learning_rate"]),
    "folder of something else": (other_folder, ["mine", "--output_dir"]),
    "no run to go on with": (lambda _: ["--resume", "runs/no"], ["runs/no"]),
    "no word vectors": (no_vectors, ["no.vec"]),
    "heads that do not fit": (many_heads, ["--num_heads 4", "Use 3"]),
    "no tokenizer": (no_tokenizer, ["no/tokenizer.json"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, tmp_path, monkeypatch, recipe, capsys):
    monkeypatch.chdir(tmp_path)
    make, words = CASES[case]
    arguments = make(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert recipe("text_classification", "--epochs", 1, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words), lines[0]
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


def test_a_run_that_began_with_other_flags_or_data(tmp_path, toy, recipe, capsys):
    run = tmp_path / "run"
    base = ["--train_file", good(tmp_path)]
    base[1] = str(tmp_path / base[1])
    base += ["--model", "fasttext", "--max_steps", 2, "--no_export", "--hidden_size", 4]
    assert recipe("text_classification", *base, "--output_dir", run) == 0
    # As if it had been killed before it was evaluated.
    (run / "eval" / "results.json").unlink()
    capsys.readouterr()
    other = [*base, "--output_dir", run, "--learning_rate", 0.5]
    assert recipe("text_classification", *other) == 2
    assert "--learning_rate" in capsys.readouterr().err
    never = [*base, "--output_dir", run, "--resume", "never"]
    assert recipe("text_classification", *never) == 2
    assert "already holds a run" in capsys.readouterr().err
    write_tsv(tmp_path / "good.tsv", sentences(60, 10))
    assert recipe("text_classification", *base, "--output_dir", run) == 2
    assert "has changed" in capsys.readouterr().err
