"""Answers from files to an export, as a user runs it."""

import json
import random

import numpy as np
import pytest

from tests.recipes.kills import assert_kills_change_nothing
from tfllm.cli.main import main as tfllm
from tfllm.serving.c_api import Process
from tfllm.tasks.runs import load_run

FAST = ["--precision", "float32", "--jit_compile", "false", "--learning_rate", 0.01]
SMALL = ["--hidden_size", 32, "--num_layers", 1, "--num_heads", 2, "--dropout", 0]
SMALL += ["--max_length", 48, "--stride", 24, "--tokenizer", "characters"]
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
VALUES = [
    "李小明",
    "cafe\u0301",
    FAMILY,
    "❤\ufe0f",
    "Ｆｕｌｌ　ｗ",
    "naïve",
    "½ ﬁne",
    "Ω",
]
VALUES += ["a\u00a0b", "नमस्ते", "e\u0301\u0323", "New\u2003York", "上海大学", "7,5 kg"]


def entries(count, seed, per_context=3, filler=0):
    """SQuAD's JSON: what belongs to a name; names are letters that nothing else has."""
    pick, paragraphs, number = random.Random(seed), [], 0
    while number < count:
        names = pick.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", per_context)
        context, places = "", []
        for name in names:
            context += "." * pick.randint(0, 2 * filler // per_context) + f"{name}:"
            value = pick.choice(VALUES)
            places.append((len(context), value))
            context += value + "\u3000;"
        context += "." * (filler - len(context))
        questions = []
        for name, (start, text) in list(zip(names, places, strict=True)):
            if number < count:
                answer = {"text": text, "answer_start": start}
                one = {"id": f"q{number}", "question": f"{name}?", "answers": [answer]}
                questions.append(one)
                number += 1
        paragraphs.append({"context": context, "qas": questions})
    return {"version": "1", "data": [{"title": "t", "paragraphs": paragraphs}]}


def open_ones(data):
    """SQuAD 2.0: every third question is of a name that is not there."""
    paragraphs = data["data"][0]["paragraphs"]
    for number, one in enumerate(one for p in paragraphs for one in p["qas"]):
        if number % 3 == 0:
            one |= {"question": "#?", "answers": [], "is_impossible": True}
    return data


@pytest.fixture(scope="module")
def work(work):
    made = {"train": entries(50, 0, 1, filler=90), "test": entries(30, 1)}
    made |= {f"{name}2": open_ones(entries(60, seed)) for seed, name in
             enumerate(("train", "dev", "test"))}  # fmt: skip
    for name, content in made.items():
        (work / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return work


def predictions(run):
    return [json.loads(line) for line in open(run / "eval/predictions.jsonl")]


def files(**names):
    return [x for name, file in names.items() for x in (f"--{name}_file", file)]


OWN = files(train="train.json", validation="train.json", test="train.json")
OPEN = files(train="train2.json", validation="dev2.json", test="test2.json")


@pytest.fixture(scope="module")
def run(work, recipe):
    """A finished run that knows its fifty questions by heart, with its export."""
    path = work / "runs/known"
    options = ["--epochs", 14, "--patience", 99, "--ema_decay", 0.9]
    options += ["--output_dir", path, "--export_name", "known", "--batch_size", 8]
    assert recipe("question_answering", *OWN, *FAST, *SMALL, *options) == 0
    return path


@pytest.fixture(scope="module")
def unsure(work, recipe):
    """A run whose questions need not have an answer."""
    path = work / "runs/unsure"
    options = ["--epochs", 4, "--output_dir", path, "--export_name", "unsure"]
    assert recipe("question_answering", *OPEN, *FAST, *SMALL, *options) == 0
    return path


def test_changed_questions_are_trained_on(work, recipe, capsys):
    options = [*OWN, *FAST, *SMALL, "--augment", "swap", "delete", "--max_steps", 2]
    options += ["--no_export", "--output_dir", work / "runs/changed"]
    assert recipe("question_answering", *options) == 0
    assert "changed copies of training texts" in capsys.readouterr().out


def test_nothing_is_lost_on_the_way(run):
    results = json.loads((run / "eval/results.json").read_text())
    assert results["task"] == "question_answering" and results["style"] == "squad"
    assert results["test"]["samples"] == 50
    assert results["test"]["metrics"] == {"f1": 1, "exact_match": 1}
    for row in predictions(run):
        assert [row["prediction"]] == row["label"]  # not only after normalisation
        assert row["context"][row["start"] : row["end"]] == row["prediction"]
        assert 0 < row["score"] <= 1
        assert row["candidates"][0]["text"] == row["prediction"]
        scores = [one["score"] for one in row["candidates"]]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert "test questions" in (run / "eval/report.md").read_text()
    logged = [json.loads(line) for line in open(run / "metrics.jsonl")]
    assert any("validation_exact_match" in row for row in logged)
    assert any("windows_right" in row for row in logged)


def test_open_questions_have_a_threshold(unsure):
    metrics = json.loads((unsure / "eval/results.json").read_text())["test"]["metrics"]
    assert metrics["no_answer_accuracy"] > 0 and "answerable_f1" in metrics
    config = json.loads((unsure / "checkpoints/best/config.json").read_text())
    assert config["impossible"] and config["threshold"] != 0
    rows = predictions(unsure)
    silent = [row for row in rows if not row["prediction"]]
    assert silent and all((row["start"], row["end"]) == (-1, -1) for row in silent)


def served(model, rows):
    with Process(model) as process:
        asked = {key: [row[key] for row in rows] for key in ("question", "context")}
        answer = process.run("serving_default", asked)
        assert "tensorflow" not in process.modules
    return answer


def test_the_export_answers_as_python_on_long_and_odd_texts(run, unsure, work):
    texts = [
        "",
        " ",
        "A:李小明",
        "a\0:b",
        "e\u0301\u0301 ;A:x\u3000",
        "." * 3000 + "B:Ω;",
    ]
    for path, name in ((run, "known"), (unsure, "unsure")):
        opened = load_run(path)
        rows = [{"text": q, "context": c} for q in ("A?", "", "B" * 90) for c in texts]
        wanted = opened.task.answer(opened.model, rows)
        answer = served(work / "saved_models" / name, wanted)
        for i, row in enumerate(wanted):
            got = [answer[key][i] for key in ("answer", "start", "end")]
            assert got == [row["prediction"], row["start"], row["end"]], row
            assert answer["cut"][i] == row.get("tokens_cut", 0)
        scores = [row["score"] for row in wanted]
        np.testing.assert_allclose(answer["score"], scores, atol=1e-4)


def test_every_answer_is_compared_on_request(run, work, capsys):
    model, file = work / "saved_models/known", run / "eval/predictions.jsonl"
    assert tfllm(["check", str(model), "--predictions", str(file)]) == 0
    assert "50 of 50" in capsys.readouterr().out
    rows = predictions(run)
    rows[3]["end"] += 1
    (work / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tfllm(["check", str(model), "--predictions", "other.jsonl"]) == 2
    assert "1 answers are not those" in capsys.readouterr().out


def test_long_contexts_are_answered_from_the_right_window(run):
    opened = load_run(run)
    known = predictions(run)
    rows, wanted = [], []
    for number, row in enumerate(known[:8]):
        at = 600 * number
        context = "." * at + row["context"] + "." * (5000 - at)
        rows.append({"text": row["question"], "context": context})
        wanted.append((row["prediction"], row["start"] + at))
    opened.task.max_windows = 500
    told = opened.task.answer(opened.model, rows)
    found = [(row["prediction"], row["start"]) for row in told]
    right = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert right >= 6, (found, wanted)


def test_commands_on_a_run(run, work, capsys):
    row = predictions(run)[0]
    ask = ["predict", str(run), "--question", row["question"], row["question"]]
    assert tfllm([*ask, "--context", row["context"]]) == 0
    lines = [json.loads(x) for x in capsys.readouterr().out.strip().splitlines()]
    assert [one["prediction"] for one in lines] == [row["prediction"]] * 2
    assert tfllm(ask) == 2
    assert "--context" in capsys.readouterr().err
    options = ["--test_file", "test.json", "--output", "again"]
    assert tfllm(["eval", str(run), *options]) == 0
    assert "exact_match" in capsys.readouterr().out
    assert (work / "again/report.md").exists()
    assert tfllm(["explain", str(run), "A"]) == 2


def test_a_checkpoint_is_tuned_in_full_and_by_adapters(work, tiny_bert, recipe):
    options = ["--epochs", 1, "--max_length", 48, "--no_export", "--output_dir"]
    tuned, adapted = work / "runs/tuned", work / "runs/adapted"
    common = ["question_answering", *OPEN, *FAST]
    assert recipe(*common, "--model", tiny_bert, *options, tuned) == 0
    lora = ["--model", tuned, "--lora_rank", 4]
    assert recipe(*common, *lora, *options, adapted) == 0
    before, after = (load_run(path).model.get_weights() for path in (tuned, adapted))
    assert len(before) == len(after)


def test_paragraphs_are_held_out_and_a_dry_run_writes_nothing(work, recipe, capsys):
    target = work / "runs/dry"
    options = ["--train_file", "train.json", "--output_dir", target, "--dry_run"]
    assert recipe("question_answering", *options, *FAST, *SMALL) == 0
    told = capsys.readouterr().out
    assert "minutes an epoch" in told and "rows held out" in told
    assert not target.exists()


def broken(content):
    content = json.loads(json.dumps(content))
    for paragraph in content["data"][0]["paragraphs"]:
        for one in paragraph["qas"]:
            one["answers"][0]["text"] += " not there"
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (broken(entries(20, 0)), "question 'q0': '"),
        ({"data": []}, "there are no questions"),
        ('{"data": [', "damaged JSON"),
        ("text\tlabel\n", "not JSON"),
        ("", "empty"),
    ],
)
def test_broken_data_stop_a_run(content, words, work, recipe, capsys):
    text = content if isinstance(content, str) else json.dumps(content)
    (work / "bad.json").write_text(text)
    options = [*files(train="bad.json", test="test.json"), "--output_dir", "b"]
    assert recipe("question_answering", *options) == 2
    errors = capsys.readouterr().err
    assert words in errors and "bad.json" in errors and "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (work / "b").exists()


def test_a_killed_run_goes_on_to_the_same_end(work, root, recipe):
    arguments = [*OPEN, *FAST, *SMALL, "--epochs", 3, "--eval_steps", 3]
    assert_kills_change_nothing(recipe, root, "question_answering", arguments, work)


@pytest.mark.slow
def test_the_default_run(work, recipe):
    assert recipe("question_answering", "--output_dir", work / "runs/default") == 0
    results = json.loads((work / "runs/default/eval/results.json").read_text())
    assert results["test"]["metrics"]["f1"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xquad/xquad.en", "xquad/xquad.zh"])
def test_fifty_real_questions_are_learned_by_heart(name, work, recipe, shared):
    path = work / f"runs/{name.split('.')[1]}"
    parts = dict.fromkeys(("train", "validation", "test"), shared / f"{name}.json.gz")
    limits = ["--max_train_samples", 50, "--max_eval_samples", 50, "--epochs", 40]
    options = ["--model", "minilm-l6", *limits, "--learning_rate", 5e-4]
    options += ["--patience", 10, "--output_dir", path, "--no_export"]
    assert recipe("question_answering", *files(**parts), *options) == 0
    metrics = json.loads((path / "eval/results.json").read_text())["test"]["metrics"]
    assert metrics["exact_match"] == 1
