"""Several labels a text, and numbers: from files to an export."""

import json
import random

import numpy as np
import pytest

from tfllm.cli.main import main as tfllm
from tfllm.evaluation.classification import tune_thresholds
from tfllm.serving.c_api import Process
from tfllm.tasks.runs import load_run

FAST = ["--precision", "float32", "--jit_compile", "false", "--tokenizer", "words"]
TOPICS = {
    "food": ["tasty", "soup", "dinner"],
    "room": ["bed", "window", "view"],
    "staff": ["polite", "waiter", "helpful"],
    "price": ["cheap", "costly", "bill"],
}
GRADES = {"awful": -2.0, "poor": -1.0, "fair": 0.5, "good": 1.25, "superb": 2.25}


def topics(count, seed):
    """Texts of none to three topics, one of them rare."""
    pick = random.Random(seed)
    rows = []
    for _ in range(count):
        labels = [t for t in TOPICS if pick.random() < (0.1 if t == "price" else 0.4)]
        words = pick.choices(["the", "was", "and", "we", "had", "very"], k=6)
        words += [pick.choice(TOPICS[label]) for label in labels]
        pick.shuffle(words)
        text = " ".join([*words, str(pick.randint(0, 10**6))])
        rows.append({"text": text, "labels": pick.sample(labels, len(labels))})
    return rows


def grades(count, seed):
    """Texts whose number is the sum of their words', times ten, plus a hundred."""
    pick = random.Random(seed)
    rows = []
    for _ in range(count):
        found = pick.choices(list(GRADES), k=pick.randint(1, 3))
        words = pick.choices(["the", "was", "and", "we", "had", "very"], k=4)
        number = 100 + 10 * sum(GRADES[word] for word in found) / len(found)
        text = " ".join(pick.sample(words + found, len(words + found)))
        rows.append((f"{text} {pick.randint(0, 10**6)}", f"{number:.2f}"))
    return rows


def flags(folder, ending):
    return [
        word
        for name in ("train", "validation", "test")
        for word in (f"--{name}_file", folder / f"{name}.{ending}")
    ]


@pytest.fixture(scope="module")
def work(work):
    sizes = {"train": 400, "validation": 120, "test": 100}
    for seed, (name, size) in enumerate(sizes.items()):
        lines = [json.dumps(row) for row in topics(size, seed)]
        (work / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        lines = ["text\tscore", *("\t".join(row) for row in grades(size, seed))]
        (work / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return work


def arguments(model):
    more = {"fasttext": ["--epochs", 8], "textcnn": ["--epochs", 6]}
    more["textcnn"] += ["--learning_rate", 0.005, "--embedding_size", 32]
    return [*FAST, "--model", model, *more[model], "--ema_decay", 0, "--baseline"]


@pytest.fixture(scope="module", params=["fasttext", "textcnn"])
def several(request, work, recipe):
    """A finished run with several labels a text, and its export."""
    model = request.param
    path, name = work / f"runs/several-{model}", f"several-{model}"
    options = [*arguments(model), "--output_dir", path, "--export_name", name]
    options += ["--label_smoothing", 0.05] * (model == "textcnn")
    assert recipe("text_classification", *flags(work, "jsonl"), *options) == 0
    return path, work / "saved_models" / name


@pytest.fixture(scope="module", params=["fasttext", "textcnn"])
def numbers(request, work, recipe):
    """A finished run with numbers, and its export."""
    model = request.param
    path, name = work / f"runs/numbers-{model}", f"numbers-{model}"
    options = [*arguments(model), "--output_dir", path, "--export_name", name]
    assert recipe("text_classification", *flags(work, "tsv"), *options) == 0
    return path, work / "saved_models" / name


def read(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def results(path):
    return json.loads((path / "eval/results.json").read_text())


def test_several_labels_are_learned_and_reported(several):
    path, _ = several
    found = results(path)
    metrics, intervals = found["test"]["metrics"], found["test"]["intervals"]
    assert list(metrics)[:4] == ["f1_micro", "f1_macro", "precision", "recall"]
    assert metrics["f1_micro"] > 0.9
    assert all(low <= metrics[k] <= high for k, (low, high) in intervals.items())
    assert found["baseline"]["metrics"]["f1_micro"] > 0.8
    assert found["task"] == "multi_label_classification"
    report = (path / "eval/report.md").read_text()
    assert "| threshold |" in report and "TF-IDF" in report
    assert (path / "eval/precision_and_recall.png").exists()
    data = json.loads((path / "data_report.json").read_text())["splits"]["train"]
    assert data["rows_without"] > 0 and 1 < data["labels_a_row"] < 2


def test_thresholds_are_tuned_on_validation_rows_alone(several, work):
    path, _ = several
    run = load_run(path)
    saved = json.loads((path / "checkpoints/best/config.json").read_text())
    assert run.task.thresholds == saved["thresholds"]
    names, tuned = run.task.labels, {}
    for name in ("validation", "test"):
        rows = [
            {"text": row["text"], "label": sorted(row["labels"])}
            for row in read(work / f"{name}.jsonl")
        ]
        truth = np.array([[label in r["label"] for label in names] for r in rows])
        split = run.task.split(run.model, rows)
        tuned[name] = tune_thresholds(truth, split.scores)
        assert split.predictions == [
            [
                n
                for n, s, t in zip(names, row, run.task.thresholds, strict=True)
                if s >= t
            ]
            for row in split.scores
        ]
    np.testing.assert_allclose(run.task.thresholds, tuned["validation"], atol=1e-5)
    assert np.abs(tuned["test"] - tuned["validation"]).max() > 1e-3
    logged = [r for r in read(path / "metrics.jsonl") if "validation_f1_micro" in r]
    best = max(row["validation_f1_micro"] for row in logged)
    assert results(path)["validation"]["metrics"]["f1_micro"] == pytest.approx(best)


def test_the_export_gives_the_labels_of_predictions_jsonl(several, capsys):
    path, model = several
    rows = read(path / "eval/predictions.jsonl")
    assert any(len(row["prediction"]) > 1 for row in rows)
    with Process(model) as process:
        texts = {"text": [row["text"] for row in rows]}
        answer = process.run("serving_default", texts)
        assert set(process.signatures) == {"serving_default", "classify"}
    assert [[x for x in row if x] for row in answer["prediction"]] == [
        row["prediction"] for row in rows
    ]
    for labels, scores, row in zip(
        answer["labels"], answer["scores"], rows, strict=True
    ):
        for label, score in zip(labels, scores, strict=True):
            assert score == pytest.approx(row["scores"][label], abs=1e-4)
    file = path / "eval/predictions.jsonl"
    assert tfllm(["check", str(model), "--predictions", str(file)]) == 0
    assert "100 of 100" in capsys.readouterr().out


def test_commands_on_a_run_with_several_labels(several, work, capsys):
    path, _ = several
    text = "the soup was tasty and the waiter polite"
    assert tfllm(["predict", str(path), "--text", text]) == 0
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert json.loads(line)["prediction"] == ["food", "staff"]
    assert tfllm(["eval", str(path), "--test_file", str(work / "test.jsonl")]) == 0
    shown = f"{results(path)['test']['metrics']['f1_micro']:.4f}"
    assert shown in capsys.readouterr().out
    assert tfllm(["explain", str(path), text]) == 0
    assert (
        tfllm(["doctor", *(str(work / f"{n}.jsonl") for n in ("train", "test"))]) == 0
    )
    assert "labels a row" in capsys.readouterr().out
    assert tfllm(["export", str(path), "--name", "again"]) == 0


def test_numbers_are_learned_and_reported(numbers):
    path, _ = numbers
    found = results(path)
    metrics, intervals = found["test"]["metrics"], found["test"]["intervals"]
    assert list(metrics) == ["pearson", "spearman", "mse"]
    assert metrics["pearson"] > 0.9
    # The spread of the labels is about 11: their variance is the error of the mean.
    assert metrics["mse"] < 40
    assert all(low <= metrics[k] <= high for k, (low, high) in intervals.items())
    assert found["task"] == "text_regression"
    assert "pearson" in found["baseline"]["compared"]
    assert (path / "eval/scatter.png").exists()
    assert "Largest errors" in (path / "eval/report.md").read_text()
    data = json.loads((path / "data_report.json").read_text())["splits"]["train"]
    assert 95 < data["label_mean"] < 110 and data["label_deviation"] > 5


def test_the_export_gives_the_numbers_of_predictions_jsonl(numbers, capsys):
    path, model = numbers
    rows = read(path / "eval/predictions.jsonl")
    assert all(row["prediction"] == row["score"] for row in rows)
    wanted = [row["score"] for row in rows]
    with Process(model) as process:
        texts = {"text": [row["text"] for row in rows]}
        answer = process.run("serving_default", texts)
        assert set(answer) == {"score"}
        assert set(process.signatures) == {"serving_default", "regress"}
        from tfllm.serving.export import example

        examples = [example(text=row["text"]) for row in rows]
        regressed = process.run("regress", {"inputs": examples})
    np.testing.assert_allclose(answer["score"], wanted, rtol=1e-4)
    np.testing.assert_allclose(regressed["outputs"], wanted, rtol=1e-4)
    file = path / "eval/predictions.jsonl"
    assert tfllm(["check", str(model), "--predictions", str(file)]) == 0
    assert "100 of 100" in capsys.readouterr().out
    rows[3]["prediction"] += 1
    other = path.parent / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tfllm(["check", str(model), "--predictions", str(other)]) == 2
    assert "1 answers are not those" in capsys.readouterr().out


def test_commands_on_a_run_with_numbers(numbers, work, capsys):
    path, _ = numbers
    texts = ["it was superb", "it was awful"]
    assert tfllm(["predict", str(path), "--text", *texts]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    high, low = (json.loads(line)["prediction"] for line in lines)
    assert high > 105 > 95 > low
    assert tfllm(["eval", str(path), "--test_file", str(work / "test.tsv")]) == 0
    assert "pearson" in capsys.readouterr().out
    assert tfllm(["explain", str(path), "x"]) == 2
    assert "one label a text can be explained" in capsys.readouterr().err
    assert tfllm(["doctor", *(str(work / f"{n}.tsv") for n in ("train", "test"))]) == 0
    assert "label, range" in capsys.readouterr().out
    assert tfllm(["export", str(path), "--name", "again"]) == 0


def test_an_encoder_is_fine_tuned_on_scored_pairs(work, tiny_bert, recipe):
    pick, rows = random.Random(0), []
    for _ in range(200):
        first = pick.choices(["red", "green", "blue", "black", "white"], k=4)
        second = [w if pick.random() < 0.5 else "none" for w in first]
        score = sum(a == b for a, b in zip(first, second, strict=True)) / 4
        row = {"sentence1": " ".join(first), "sentence2": " ".join(second)}
        rows.append(row | {"score": score})
    (work / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    status = recipe(
        *("text_classification", "--train_file", "pairs.jsonl", *FAST[:4]),
        *("--model", tiny_bert, "--epochs", 2, "--learning_rate", 0.01),
        *("--output_dir", "runs/pairs", "--export_name", "pairs"),
    )
    assert status == 0
    rows = read("runs/pairs/eval/predictions.jsonl")
    inputs = {key: [row[key] for row in rows] for key in ("text", "text_pair")}
    with Process(work / "saved_models/pairs") as process:
        answer = process.run("serving_default", inputs)
    wanted = [row["prediction"] for row in rows]
    np.testing.assert_allclose(answer["score"], wanted, atol=1e-4)


def test_an_encoder_is_fine_tuned_on_several_labels(work, tiny_bert, recipe):
    status = recipe(
        *("text_classification", *flags(work, "jsonl"), *FAST[:4]),
        *("--model", tiny_bert, "--epochs", 1, "--lora_rank", 2),
        *("--output_dir", "runs/lora", "--export_name", "lora"),
    )
    assert status == 0
    predictions = "runs/lora/eval/predictions.jsonl"
    assert tfllm(["check", "saved_models/lora", "--predictions", predictions]) == 0


def test_the_problem_can_be_chosen(work, recipe, capsys):
    """Whole numbers as numbers; names between commas as several labels."""
    rows = [f"{text}\t{round(float(x) / 10)}" for text, x in grades(120, 5)]
    (work / "whole.tsv").write_text("text\tscore\n" + "\n".join(rows) + "\n")
    rows = [f"{r['text']}\t{'|'.join(r['labels']) or '|'}" for r in topics(120, 6)]
    (work / "bars.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    for file, chosen, metric in (
        ("whole.tsv", "auto", "accuracy"),
        ("whole.tsv", "regression", "pearson"),
        ("bars.tsv", "multi_label", "f1_micro"),
    ):
        path = work / "runs" / f"{file}-{chosen}"
        status = recipe(
            *("text_classification", "--train_file", file, "--problem", chosen, *FAST),
            *("--epochs", 1, "--output_dir", path, "--no_export"),
        )
        assert status == 0
        assert next(iter(results(path)["test"]["metrics"])) == metric


def refused(work, recipe, capsys, *words):
    before = set(work.rglob("*"))
    assert recipe("text_classification", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert set(work.rglob("*")) == before
    return line


def test_what_does_not_fit_is_told(work, recipe, capsys):
    ask = [work, recipe, capsys, "--train_file"]
    line = refused(*ask, "train.jsonl", "--problem", "regression")
    assert "train.jsonl:1" in line and "is not a number" in line
    line = refused(*ask, "train.jsonl", "--problem", "single_label")
    assert "labels instead of one" in line
    line = refused(*ask, "train.tsv", "--loss", "cross_entropy")
    assert "--loss cross_entropy" in line and "squared_error" in line
    line = refused(*ask, "train.jsonl", "--loss", "squared_error")
    assert "multi_label" in line and "cross_entropy" in line
    (work / "same.tsv").write_text("text\tscore\n" + "a b\t1.5\nc d\t1.5\n" * 20)
    assert "same.tsv" in refused(*ask, "same.tsv")
