"""Tagging from files to an export, as a user runs it."""

import json
import random

import numpy as np
import pytest

from tests.recipes.kills import assert_kills_change_nothing
from tfllm.cli.main import main as tfllm
from tfllm.serving.c_api import Process
from tfllm.tasks.runs import load_run

FAST = ["--precision", "float32", "--jit_compile", "false", "--learning_rate", 0.02]
SMALL = ["--hidden_size", 16, "--embedding_size", 16, "--ngrams", 2]
NAMES = ["Ann", "Bob Miller", "Carla", "Dan van Dyk", "Eve", "李小明"]
PLACES = ["Rome", "New York", "Oslo", "Rio", "上海"]
OTHERS = ["went", "to", "saw", "and", "the", "red", "house", "with", ",", "."]
ODD = ["", " ", "Ann went to New York", "Ａｎｎ saw　Rome", "😀Ann, 👨‍👩‍👧Bob Miller!"]
ODD += [
    "cafe\u0301 Rome e\u0301",
    "  Eve\tand\nEve ",
    "李小明去了上海。",
    "a\0Rome",
    "Oslo " * 400,
]


def sentences(count, seed):
    """Words, tags and an intent: whether a name or a place comes first."""
    pick = random.Random(seed)
    for _ in range(count):
        words, tags = [], []
        kinds = pick.sample(["P", "L"], 2)
        for kind in kinds:
            for word in pick.choices(OTHERS, k=pick.randint(0, 4)):
                words.append(word), tags.append("O")
            for n, word in enumerate(
                pick.choice(NAMES if kind == "P" else PLACES).split()
            ):
                words.append(word), tags.append(f"{'IB'[n == 0]}-{kind}")
        yield words, tags, kinds[0]


def conll(path, rows):
    texts = ("\n".join(map(" ".join, zip(w, t, strict=True))) for w, t, _ in rows)
    path.write_text("\n\n".join(texts) + "\n")


def parallel(folder, rows):
    folder.mkdir()
    names = {"seq.in": 0, "seq.out": 1}
    for name, place in names.items():
        lines = (" ".join(row[place]) for row in rows)
        (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "label").write_text("\n".join(row[2] for row in rows) + "\n")


@pytest.fixture(scope="module")
def work(work):
    for seed, (name, count) in enumerate({"train": 160, "dev": 40, "test": 60}.items()):
        rows = list(sentences(count, seed))
        conll(work / f"{name}.txt", rows)
        parallel(work / name, rows)
    return work


def files(form=".txt"):
    names = {"train_file": "train", "validation_file": "dev", "test_file": "test"}
    return [x for flag, name in names.items() for x in (f"--{flag}", f"{name}{form}")]


@pytest.fixture(scope="module")
def run(work, recipe):
    """A finished run with its export."""
    path = work / "runs/names"
    options = ["--epochs", 6, "--ema_decay", 0.9, "--max_length", 64]
    options += ["--output_dir", path, "--export_name", "names"]
    assert recipe("token_classification", *files(), *FAST, *SMALL, *options) == 0
    return path


@pytest.fixture(scope="module")
def joint(work, recipe):
    path = work / "runs/joint"
    options = ["--epochs", 6, "--ema_decay", 0.9, "--output_dir", path]
    options += ["--export_name", "joint", "--scheme", "bio"]
    assert recipe("token_classification", *files(""), *FAST, *SMALL, *options) == 0
    return path


def test_changed_copies_are_trained_on(work, recipe, capsys):
    options = [*files(), *FAST, *SMALL, "--augment", "swap", "delete"]
    options += ["--max_steps", 2, "--no_export", "--output_dir", work / "runs/changed"]
    assert recipe("token_classification", *options) == 0
    assert "changed copies of training texts" in capsys.readouterr().out


def test_run_directory_holds_all_that_is_promised(run):
    results = json.loads((run / "eval/results.json").read_text())
    assert results["task"] == "token_classification"
    assert results["test"]["samples"] == 60
    assert results["test"]["metrics"]["entity_f1"] > 0.8
    low, high = results["test"]["intervals"]["entity_f1"]
    assert low <= results["test"]["metrics"]["entity_f1"] <= high
    assert {row["label"] for row in results["per_class"]} == {"L", "P"}
    assert "<mark" in (run / "eval/entities.html").read_text()
    assert "Entity F1" in (run / "eval/report.md").read_text()
    rows = [json.loads(line) for line in open(run / "eval/predictions.jsonl")]
    for row in rows:
        for one in (*row["label"], *row["prediction"]):
            assert row["text"][one["start"] : one["end"]] == one["text"]
        assert 0 <= row["score"] <= 1
    logged = [json.loads(line) for line in open(run / "metrics.jsonl")]
    assert any("validation_entity_f1" in row for row in logged)
    assert (run / "MODEL_CARD.md").exists() and list(run.glob("tensorboard/events*"))


def served_as_in_python(run, model, texts):
    opened = load_run(run)
    wanted = opened.task.find(opened.model, texts)
    with Process(model) as process:
        answer = process.run("serving_default", {"text": texts})
        assert "tensorflow" not in process.modules
    for i, row in enumerate(wanted):
        found = row["prediction"]
        assert answer["count"][i] == len(found)
        names = {"tokens": "text", "tags": "type", "starts": "start", "ends": "end"}
        for output, key in names.items():
            got = list(answer[output][i][: len(found)])
            assert got == [one[key] for one in found], row["text"]
        scores = [one["score"] for one in found]
        np.testing.assert_allclose(answer["scores"][i][: len(found)], scores, atol=1e-4)
        assert answer["cut"][i] == row.get("tokens_cut", 0)
        if "intent_prediction" in row:
            assert answer["intent"][i] == row["intent_prediction"]
    return wanted


def test_the_export_answers_as_python_on_odd_texts(run, joint, work):
    wanted = served_as_in_python(run, work / "saved_models/names", ODD)
    assert wanted[-1]["tokens_cut"] > 0
    rome = next(one for one in wanted[3]["prediction"] if one["text"] == "Rome")
    assert (rome["start"], rome["end"], rome["type"]) == (8, 12, "L")
    served_as_in_python(joint, work / "saved_models/joint", ODD)


def test_every_answer_is_compared_on_request(run, joint, work, capsys):
    for path, name in ((run, "names"), (joint, "joint")):
        model, file = work / "saved_models" / name, path / "eval/predictions.jsonl"
        assert tfllm(["check", str(model), "--predictions", str(file)]) == 0
        assert "60 of 60" in capsys.readouterr().out
    rows = [json.loads(line) for line in open(file)]
    rows[3]["prediction"][0]["end"] += 1
    rows[4]["intent_prediction"] = "Z"
    (work / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tfllm(["check", str(model), "--predictions", "other.jsonl"]) == 2
    assert "2 answers are not those" in capsys.readouterr().out


def test_two_heads_have_losses_and_metrics_of_their_own(joint):
    metrics = json.loads((joint / "eval/results.json").read_text())["test"]["metrics"]
    assert metrics["entity_f1"] > 0.8 and metrics["accuracy"] > 0.7
    assert metrics["sentence_accuracy"] <= metrics["accuracy"]
    logged = [json.loads(line) for line in open(joint / "metrics.jsonl")]
    assert any({"tags", "intent", "tag_accuracy", "accuracy"} <= set(x) for x in logged)
    assert any("validation_f1_and_accuracy" in row for row in logged)


def test_commands_on_a_run(run, joint, work, capsys):
    assert tfllm(["predict", str(run), "--text", "Ann saw Rome", "the house"]) == 0
    lines = [json.loads(x) for x in capsys.readouterr().out.strip().splitlines()]
    assert [one["text"] for one in lines[0]["prediction"]] == ["Ann", "Rome"]
    assert tfllm(["predict", str(joint), "--text", "Rome with Ann"]) == 0
    assert json.loads(capsys.readouterr().out)["intent_prediction"] == "L"
    assert tfllm(["eval", str(run), "--test_file", "dev.txt", "--output", "again"]) == 0
    assert "entity_f1" in capsys.readouterr().out
    assert (work / "again/entities.html").exists()
    assert tfllm(["explain", str(run), "Ann"]) == 2


@pytest.mark.parametrize(
    "options", [["transformer", "--num_layers", 1], ["lstm", "--no_crf"]]
)
def test_other_models_run(options, work, recipe):
    target = work / "runs" / options[0]
    model, *options = options
    status = recipe(
        *("token_classification", *files(), *FAST, "--hidden_size", 16),
        *("--model", model, *options, "--max_train_samples", 40, "--epochs", 1),
        *("--output_dir", target, "--max_eval_samples", 20, "--no_export"),
    )
    assert status == 0


def test_a_checkpoint_is_tuned_in_full_and_by_adapters(work, tiny_bert, recipe):
    options = ["--epochs", 2, "--batch_size", 8, "--no_export", "--output_dir"]
    tuned, adapted = work / "runs/tuned", work / "runs/adapted"
    common = ["token_classification", *files(""), *FAST]
    assert recipe(*common, "--model", tiny_bert, *options, tuned) == 0
    lora = ["--model", tuned, "--lora_rank", 4]
    assert recipe(*common, *lora, *options, adapted) == 0
    before, after = (load_run(path).model.get_weights() for path in (tuned, adapted))
    assert len(before) == len(after)
    assert recipe(*common, *lora, "--tokenizer", "words", *options, "no") == 2


def test_dry_run_writes_nothing(work, recipe, capsys):
    target = work / "runs/dry"
    options = ["--output_dir", target, "--dry_run"]
    assert recipe("token_classification", *files(), *FAST, *SMALL, *options) == 0
    assert "minutes an epoch" in capsys.readouterr().out
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a O\nb\nc O\nd B-X", "bad.txt:2"),
        (
            "".join(f"a{i} O\nb O\n\n" for i in range(20)),
            "no row of train has an entity",
        ),
        ("text\tlabel\n" * 3, "nothing is left to train on"),
        ("", "empty"),
    ],
)
def test_broken_data_stop_a_run(content, words, work, recipe, capsys):
    (work / "bad.txt").write_text(content)
    options = [
        "--train_file",
        "bad.txt",
        "--test_file",
        "test.txt",
        "--output_dir",
        "b",
    ]
    assert recipe("token_classification", *options) == 2
    errors = capsys.readouterr().err
    assert words in errors and "Traceback" not in errors
    assert not (work / "b").exists()


def test_test_rows_without_entities_stop_a_run_before_training(work, recipe, capsys):
    (work / "plain.txt").write_text("a O\nb O\n\n" * 9)
    options = [*files(), "--test_file", "plain.txt", "--output_dir", "b"]
    assert recipe("token_classification", *options) == 2
    assert "plain.txt: no row of test has an entity" in capsys.readouterr().err
    assert not (work / "b").exists()


def test_a_killed_run_goes_on_to_the_same_end(work, root, recipe):
    arguments = [*files(""), *FAST, *SMALL, "--epochs", 3, "--eval_steps", 4]
    assert_kills_change_nothing(recipe, root, "token_classification", arguments, work)


@pytest.mark.slow
def test_the_default_run(work, recipe):
    assert recipe("token_classification", "--output_dir", work / "runs/default") == 0
    results = json.loads((work / "runs/default/eval/results.json").read_text())
    assert results["test"]["metrics"]["entity_f1"] > 0.8
