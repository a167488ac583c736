"""Fine-tuning: from a checkpoint, from a run, in full and by adapters."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from tfllm.cli.main import main as tfllm
from tfllm.tasks.runs import load_run

FAST = ["--precision", "float32", "--jit_compile", "false", "--learning_rate", 0.01]


def files(toy):
    return [
        *("--train_file", toy.train, "--validation_file", toy.validation),
        *("--test_file", toy.test),
    ]


@pytest.fixture(scope="module")
def tuned(work, toy, tiny_bert, recipe):
    """A finished run from the checkpoint, all weights trained."""
    path = work / "runs/tuned"
    options = ["--epochs", 8, "--batch_size", 8, "--model", tiny_bert]
    options += ["--output_dir", path, "--no_export"]
    assert recipe("text_classification", *files(toy), *FAST, *options) == 0
    return path


@pytest.fixture(scope="module")
def renamed(work, toy):
    """The same texts under other names of the labels, in the other order."""
    for name in ("train", "validation", "test"):
        text = open(getattr(toy, name), encoding="utf-8").read()
        text = text.replace("\tgood", "\tapples").replace("\tbad", "\tpears")
        (work / f"{name}.tsv").write_text(text, encoding="utf-8")
    return SimpleNamespace(
        **{name: work / f"{name}.tsv" for name in ("train", "validation", "test")}
    )


@pytest.fixture(scope="module")
def adapted(work, renamed, tuned, recipe):
    """A run with adapters on that one, and a head of its own."""
    path = work / "runs/adapted"
    options = ["--lora_rank", 4, "--lora_dropout", 0.1, "--epochs", 4]
    options += ["--model", tuned, "--output_dir", path, "--export_name", "adapted"]
    assert recipe("text_classification", *files(renamed), *FAST, *options) == 0
    return path


def test_a_checkpoint_is_fine_tuned(tuned):
    results = json.loads((tuned / "eval/results.json").read_text())
    assert results["test"]["metrics"]["accuracy"] > 0.85


def test_adapters_learn_and_the_rest_stays(adapted, tuned):
    results = json.loads((adapted / "eval/results.json").read_text())
    assert results["test"]["metrics"]["accuracy"] > 0.85
    before, after = (
        load_file(run / "checkpoints/best/model.safetensors")
        for run in (tuned, adapted)
    )
    for path in before:
        kept = path.split("/")[0] not in ("pooler", "logits")
        assert np.array_equal(before[path], after[path]) == kept, path
    assert np.abs(after["block_1/attention/query/lora_b"]).max() > 0


def test_the_export_has_the_adapters_merged(adapted, work):
    model = load_run(adapted).model
    assert not [v for v in model.weights if "lora" in v.path]
    predictions = adapted / "eval/predictions.jsonl"
    command = ["check", str(work / "saved_models/adapted")]
    assert tfllm([*command, "--predictions", str(predictions)]) == 0


def test_adapters_lie_alone(adapted):
    folder = adapted / "checkpoints/best"
    alone = load_file(folder / "adapters.safetensors")
    whole = load_file(folder / "model.safetensors")
    names = {path.rpartition("/")[2] for path in alone}
    assert {"lora_a", "lora_b"} <= names
    assert {path.split("/")[0] for path in alone} == {*("block_0", "block_1", "logits")}
    for path, array in alone.items():
        np.testing.assert_array_equal(array, whole[path])
    assert sum(a.size for a in alone.values()) < sum(a.size for a in whole.values()) / 2


def test_a_run_is_a_start_for_another(adapted, work, renamed, recipe):
    path = work / "runs/next"
    options = ["--max_steps", 1, "--learning_rate", 0.0, "--ema_decay", 0.0]
    status = recipe(
        *("text_classification", *files(renamed), *FAST[:4], *options, "--no_export"),
        *("--output_dir", path),
        *("--model", adapted, "--dropout", 0.0),
    )
    assert status == 0
    rates = [load_run(run).task.model.encoder["dropout"] for run in (adapted, path)]
    assert rates == [0.1, 0.0]  # as the checkpoint has it, and as asked for
    first, second = load_run(adapted).model, load_run(path).model
    for one, two in zip(first.weights, second.weights, strict=True):
        assert one.path == two.path
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_two_runs_are_compared(tuned, work, toy, recipe):
    path = work / "runs/scratch"
    options = ["--model", "textcnn", "--epochs", 1, "--compare", tuned, "--no_export"]
    status = recipe(
        *("text_classification", *files(toy), *FAST, *options, "--output_dir", path)
    )
    assert status == 0
    results = json.loads((path / "eval/results.json").read_text())
    measured = json.loads((tuned / "eval/results.json").read_text())
    assert results["baseline"]["name"] == "tuned"
    for metric, value in measured["test"]["metrics"].items():
        if metric in results["baseline"]["metrics"]:
            assert results["baseline"]["metrics"][metric] == pytest.approx(value)
    assert "Against tuned" in (path / "eval/report.md").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "minilm-l7"], "Did you mean 'minilm-l6'"),
        (["--model", "TINY", "--tokenizer", "words"], "does not go with --model"),
        (["--model", "TINY", "--lora_rank", 2, "--lora_targets", "qurey"], "no layer"),
        (["--model", "lstm", "--lora_rank", 2], "--lora_rank"),
        (["--model", "lstm", "--compare", "nowhere"], "cannot compare"),
    ],
)
def test_bad_flags(options, message, work, toy, tiny_bert, recipe, capsys):
    options = [tiny_bert if option == "TINY" else option for option in options]
    path = work / "runs/bad"
    status = recipe("text_classification", *files(toy), *options, "--output_dir", path)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not path.exists()
