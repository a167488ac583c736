"""`--search` of a recipe: killed, resumed, and its best settings used."""

import json
import os
import signal
import subprocess
import sys
import time

import yaml

FAST = ["--precision", "float32", "--jit_compile", "false", "--tokenizer", "words"]


def test_a_killed_search_goes_on(tmp_path, toy, recipe, root, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "search"
    arguments = ["--train_file", toy.train, "--validation_file", toy.validation]
    arguments += ["--test_file", toy.test, *FAST, "--model", "textcnn"]
    arguments += ["--embedding_size", 8, "--epochs", 3, "--batch_size", 32]
    arguments += ["--search", 3, "--output_dir", folder]
    command = [sys.executable, root / "recipes/text_classification.py", *arguments]
    process = subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (folder / "trial-001/checkpoints").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = folder / "trial-000"
    assert json.loads(first.with_suffix(".json").read_text())["status"] == "done"
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*") if p.is_file()}
    assert recipe("text_classification", *arguments) == 0
    assert before == {p: p.stat().st_mtime_ns for p in first.rglob("*") if p.is_file()}
    found = {}
    for number in range(3):
        path = folder / f"trial-{number:03d}"
        record = json.loads(path.with_suffix(".json").read_text())
        rows = [json.loads(line) for line in open(path / "metrics.jsonl")]
        scores = [r["validation_accuracy"] for r in rows if "validation_accuracy" in r]
        assert record["curve"] == scores and len(scores) == 3
        assert set(record["settings"]) == {"learning_rate", "dropout"}
        config = yaml.safe_load((path / "config.yaml").read_text())
        assert config["dropout"] == record["settings"]["dropout"]
        assert (path / "eval/results.json").exists()
        found[path.name] = max(scores)
    assert "best" in capsys.readouterr().out
    best = yaml.safe_load((folder / "best.yaml").read_text())
    record = json.loads((folder / f"{max(found, key=found.get)}.json").read_text())
    assert best["learning_rate"] == record["settings"]["learning_rate"]
    options = ["--config", folder / "best.yaml", "--output_dir", "again", "--no_export"]
    assert recipe("text_classification", *options) == 0
    results = json.loads((tmp_path / "again/eval/results.json").read_text())
    assert results["validation"]["metrics"]["accuracy"] == max(found.values())


def test_bad_data_end_a_search_at_once(tmp_path, recipe, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--search", 5, "--train_file", "no.tsv", "--output_dir", "search"]
    assert recipe("text_classification", *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no.tsv" in line
    assert not list(tmp_path.iterdir())
