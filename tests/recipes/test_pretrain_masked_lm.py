"""Pretraining from files to an export, as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.recipes.kills import assert_kills_change_nothing
from tests.tasks.stories import stories
from tfllm.cli.main import main as tfllm
from tfllm.serving.c_api import Process
from tfllm.text import Tokenizer

FAST = ["--precision", "float32", "--jit_compile", "false", "--max_length", 48]


@pytest.fixture(scope="module")
def work(work):
    (work / "texts").mkdir()
    for seed, name in enumerate(("a.txt", "b.txt")):
        (work / "texts" / name).write_text("\n\n".join(stories(60, seed)))
    return work


@pytest.fixture(scope="module")
def run(work, recipe):
    """A finished run with its export."""
    status = recipe(
        *("pretrain_masked_lm", "--train_file", "texts", *FAST),
        *("--validation_share", 0.15, "--copies", 1, "--max_steps", 24),
        *("--eval_steps", 12, "--output_dir", "runs/toy", "--export_name", "toy"),
    )
    assert status == 0
    return work / "runs" / "toy"


def test_run_directory_holds_all_that_is_promised(run):
    for name in (
        *("config.yaml", "command.txt", "environment.json", "data_report.json"),
        *("tokenizer/tokenizer.json", "checkpoints/best/model.safetensors"),
        *("metrics.jsonl", "eval/results.json", "eval/predictions.jsonl"),
        *("eval/report.md", "MODEL_CARD.md"),
    ):
        assert (run / name).stat().st_size > 0, name
    results = json.loads((run / "eval/results.json").read_text())
    assert results["task"] == "masked_lm"
    for split in ("test", "validation"):
        metrics = results[split]["metrics"]
        assert set(metrics) == {
            *("loss", "perplexity", "accuracy", "next_sentence_accuracy"),
        }
        for name, value in metrics.items():
            low, high = results[split]["intervals"][name]
            assert low <= value <= high
    rows = [json.loads(line) for line in open(run / "metrics.jsonl")]
    assert any("next_sentence" in row and "masked_lm" in row for row in rows)


def test_tensorboard_shows_filled_in_sentences(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    texts = []
    for file in run.glob("tensorboard/events*"):
        events = EventAccumulator(str(file), {"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            if tag.startswith("samples"):
                texts += [e.tensor_proto.string_val[0] for e in events.Tensors(tag)]
    assert texts and b"[MASK" in texts[-1].replace(b"\\", b"")


def test_the_export_answers_as_predictions_jsonl(run, work, capsys):
    path = run / "eval/predictions.jsonl"
    assert tfllm(["check", "saved_models/toy", "--predictions", str(path)]) == 0
    rows = [json.loads(line) for line in open(path)]
    assert f"{len(rows)} of {len(rows)}" in capsys.readouterr().out
    texts = [row["text"] for row in rows[:20]]
    texts += ["no mask at all", "", "[MASK]", "wave [MASK] " * 60]
    with Process(work / "saved_models" / "toy") as process:
        answer = process.run("serving_default", {"text": texts})
        assert "tensorflow" not in process.modules
    for i, row in enumerate(rows[:20]):
        assert answer["text"][i] == row["prediction"]
        assert answer["count"][i] == len(row["tokens"]) == 2
        np.testing.assert_allclose(answer["scores"][i][:2], row["scores"], atol=1e-4)
        assert answer["tokens"][i][0].tolist() == row["tokens"][0]
    assert answer["text"][20] == "no mask at all" and answer["count"][20] == 0
    assert answer["text"][21] == "" and answer["score"][21] == 0
    assert "[MASK]" not in answer["text"][22]
    # What the model does not read any more stays as it is.
    assert answer["count"][23] < 60
    assert answer["text"][23].count("[MASK]") == 60 - answer["count"][23]


def test_commands_on_a_run(run, work, capsys):
    text = "The [MASK] was near the harbour."
    assert tfllm(["predict", str(run), "--text", text]) == 0
    row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert row["prediction"] == text.replace("[MASK]", row["tokens"][0][0])
    Path("rows.tsv").write_text("text\tlabel\na\tx\nb\ty\n")
    for command in (["eval", "--test_file", "rows.tsv"], ["explain", "x"]):
        assert tfllm([command[0], str(run), *command[1:]]) == 2
        assert "masked_lm" in capsys.readouterr().err


def test_the_run_opens_and_its_encoder_goes_on(run):
    from tfllm.models.encoder import EncoderConfig, encoder
    from tfllm.models.weights import weights_of
    from tfllm.tasks.runs import load_run

    opened = load_run(run)
    best = load_file(run / "checkpoints/best/model.safetensors")
    config = json.loads((run / "checkpoints/best/config.json").read_text())
    # The names of BERT's layers, heads too: a checkpoint for others has them all.
    whole = encoder(
        EncoderConfig(**config["encoder"]), masked_lm=True, next_sentence=True
    )
    assert set(weights_of(whole)) == set(best) == set(weights_of(opened.model))
    for variable in whole.weights:
        variable.assign(best[variable.path])
    ids = opened.task.tokenizer.encode(["The boat was near."], True)
    batch = {"token_ids": np.array(ids), "padding_mask": np.ones_like(ids)}
    batch["segment_ids"] = np.zeros_like(ids)
    everywhere = np.asarray(whole(batch)["masked_lm"])
    places = np.array([[1, 3]])
    there = np.asarray(opened.model(batch | {"mask_places": places})["masked_lm"])
    np.testing.assert_allclose(there[0], everywhere[0, [1, 3]], atol=1e-5)


def test_fine_tuning_goes_on_from_the_run(run, work, toy, recipe, capsys):
    status = recipe(
        *("text_classification", "--model", run, "--train_file", toy.train),
        *("--test_file", toy.test, "--validation_file", toy.validation, *FAST),
        *("--max_steps", 2, "--no_export", "--output_dir", "runs/tuned"),
    )
    assert status == 0
    assert f"weights from {run}; new: logits" in capsys.readouterr().out


def test_pretraining_goes_on(run, tiny_bert, work, recipe, capsys):
    """Steps too small to change a weight leave what the start had, heads too."""
    arguments = ["--train_file", "texts", *FAST, "--copies", 1, "--max_steps", 2]
    arguments += ["--learning_rate", 1e-20, "--no_export"]
    begun = load_file(run / "checkpoints/best/model.safetensors")
    for start, out in ((run, "runs/on"), (tiny_bert, "runs/on_bert")):
        options = ["--model", start, "--output_dir", out]
        assert recipe("pretrain_masked_lm", *arguments, *options) == 0
        told = " ".join(capsys.readouterr().out.split())
        found = load_file(Path(out) / "checkpoints/best/model.safetensors")
        if start == run:
            assert f"weights from {run}; new: nothing" in told
            for path, value in begun.items():
                np.testing.assert_array_equal(found[path], value, path)
        else:
            assert "new: masked_lm_bias, masked_lm_dense" in told
            table = load_file(tiny_bert / "model.safetensors")
            name = next(n for n in table if n.endswith("word_embeddings.weight"))
            theirs = found["token_embedding/embeddings"]
            np.testing.assert_array_equal(theirs, table[name])
    arguments += ["--model", run, "--output_dir", "runs/bad"]
    for flags in (["--objective", "replaced_tokens"], ["--no_norm_first"]):
        assert recipe("pretrain_masked_lm", *arguments, *flags) == 2
        assert f"{' '.join(flags)} does not go with --model" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["sentence_order", "none"])
def test_other_objectives(objective, work, recipe):
    status = recipe(
        *("pretrain_masked_lm", "--train_file", "texts", *FAST, "--no_export"),
        *("--objective", objective, "--whole_words", "words", "--max_steps", 2),
        *("--copies", 1, "--output_dir", f"runs/{objective}"),
    )
    assert status == 0
    results = json.loads(open(f"runs/{objective}/eval/results.json").read())
    found = set(results["test"]["metrics"]) - {"loss", "perplexity", "accuracy"}
    assert found == ({f"{objective}_accuracy"} if objective != "none" else set())


def test_bad_input_is_told(work, recipe, capsys):
    (work / "one.txt").write_text("A single document. It has two sentences.\n")
    plain = Tokenizer.train(["some text"], "characters", 30, special_tokens=["p", "u"])
    plain.save("plain")
    held_out = ["--validation_file", "texts/a.txt", "--test_file", "texts/b.txt"]
    for arguments, words in (
        (["--train_file", "one.txt", *held_out], "two documents"),
        (["--train_file", "txts"], "Did you mean 'texts'"),
        (["--test_file", "one.txt"], "no --train_file"),
        (["--train_file", "texts", "--l2", 0.1], "--l2 is not for this"),
        (["--train_file", "texts", "--tokenizer", "plain"], "masks or pairs"),
    ):
        options = [*FAST, "--output_dir", "runs/bad", "--validation_share", 0.3]
        assert recipe("pretrain_masked_lm", *arguments, *options) == 2, arguments
        assert words in capsys.readouterr().err
        assert not (work / "runs" / "bad").exists()


def test_killed_and_resumed_equals_uninterrupted(work, recipe, root):
    arguments = ["--train_file", "texts", *FAST, "--copies", 1, "--max_steps", 40]
    arguments += ["--batch_size", 8]
    arguments += ["--gradient_accumulation_steps", 2, "--eval_steps", 20]
    name, folder = "pretrain_masked_lm", work / "runs/kills"
    assert_kills_change_nothing(recipe, root, name, arguments, folder)


@pytest.mark.slow
def test_a_killed_run_that_went_on_from_another_goes_on(run, work, recipe, root):
    arguments = ["--train_file", "texts", *FAST, "--copies", 1, "--max_steps", 40]
    arguments += ["--batch_size", 8, "--eval_steps", 20, "--model", run]
    name, folder = "pretrain_masked_lm", work / "runs/kills_on"
    assert_kills_change_nothing(recipe, root, name, arguments, folder)
