"""Pretraining, chats and preferences from files to exports, as a user runs them."""

import io
import json

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from safetensors.numpy import load_file

from tests.recipes.kills import assert_kills_change_nothing
from tests.tasks.stories import stories
from tfllm.cli.main import main as tfllm
from tfllm.serving.c_api import Process

FAST = ["--precision", "float32", "--jit_compile", "false"]
SHAPE = ["--hidden_size", 32, "--num_layers", 2, "--num_heads", 2, "--max_length", 96]
TEXT = ["--train_file", "texts", "--tokenizer", "bytes", "--validation_share", 0.1]
TALKS = ["--train_file", "chats.json", "--validation_share", 0.2]
PAIRS = ["--train_file", "pairs.jsonl", "--validation_share", 0.2]


@pytest.fixture(scope="module")
def work(work):
    (work / "texts").mkdir()
    for seed, name in enumerate(("a.txt", "b.py")):
        (work / "texts" / name).write_text("\n\n".join(stories(40, seed)) + "\n")
    chats = [
        {"instruction": f"say {i}", "input": "", "output": f"it is {i}"}
        for i in range(30)
    ]
    chats += [
        {
            "conversations": [
                {"from": "human", "value": f"and {i}"},
                {"from": "gpt", "value": "yes"},
                {"from": "human", "value": "more"},
                {"from": "gpt", "value": f"no {i}"},
            ]
        }
        for i in range(20)
    ]
    (work / "chats.json").write_text(json.dumps(chats))
    pairs = [
        {"prompt": f"say {i}", "chosen": f"it is {i}", "rejected": "no " * (1 + i % 4)}
        for i in range(60)
    ]
    (work / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    return work


@pytest.fixture(scope="module")
def pretrained(work, recipe):
    """A finished run."""
    status = recipe(
        *("pretrain_causal_lm", *TEXT, *SHAPE, *FAST, "--max_steps", 60),
        *("--copies", 9, "--learning_rate", 0.01, "--eval_steps", 30),
        *("--output_dir", "runs/base", "--no_export"),
    )
    assert status == 0
    return work / "runs" / "base"


@pytest.fixture(scope="module")
def chat(work, pretrained, recipe):
    """A chat run on it, with adapters and an export."""
    status = recipe(
        *("finetune_chat", "--model", pretrained, *TALKS, *FAST, "--lora_rank", 4),
        *("--learning_rate", 0.02, "--epochs", 6, "--eval_steps", 27),
        *("--output_dir", "runs/chat", "--export_name", "chat"),
    )
    assert status == 0
    return work / "runs" / "chat"


def rows_of(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def test_run_directories_hold_all_that_is_promised(pretrained, chat):
    for run, task in ((pretrained, "causal_lm"), (chat, "chat")):
        for name in (
            *("config.yaml", "command.txt", "environment.json", "data_report.json"),
            *("tokenizer/tokenizer.json", "checkpoints/best/model.safetensors"),
            *("metrics.jsonl", "eval/results.json", "eval/predictions.jsonl"),
            *("eval/report.md", "MODEL_CARD.md"),
        ):
            assert (run / name).stat().st_size > 0, name
        results = json.loads((run / "eval/results.json").read_text())
        assert results["task"] == task
        for split in ("test", "validation"):
            for name, value in results[split]["metrics"].items():
                low, high = results[split]["intervals"][name]
                assert low <= value <= high
        row = rows_of(run / "eval/predictions.jsonl")[0]
        assert {"text", "target", "prediction", "score"} <= set(row)
    metrics = json.loads((pretrained / "eval/results.json").read_text())["test"]
    assert set(metrics["metrics"]) == {"loss", "perplexity", "bits_per_byte"}
    assert metrics["metrics"]["bits_per_byte"] < 8


def test_tensorboard_shows_what_the_model_writes(pretrained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    texts = []
    for file in pretrained.glob("tensorboard/events*"):
        events = EventAccumulator(str(file), {"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            if tag.startswith("samples"):
                texts += [e.tensor_proto.string_val[0] for e in events.Tensors(tag)]
    assert texts and b"went on" in texts[-1]


def test_the_export_answers_as_the_run(chat, work, capsys):
    assert tfllm(["check", "saved_models/chat"]) == 0
    capsys.readouterr()
    options = ["--chat", "--max_new_tokens", "12"]
    assert tfllm(["generate", str(chat), "say 7", *options]) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    knobs = {"text": ["say 7"], "max_new_tokens": [12], "temperature": [0.0]}
    knobs |= {"top_k": [0], "top_p": [1.0], "repetition_penalty": [1.0], "seed": [0]}
    with Process(work / "saved_models" / "chat") as process:
        assert process.run("generate", knobs)["text"][0] == text
        assert "tensorflow" not in process.modules


def test_a_chat_is_learned_and_held(chat, monkeypatch, capsys):
    results = json.loads((chat / "eval/results.json").read_text())
    before, after = (results[k]["metrics"]["loss"] for k in ("baseline", "test"))
    assert after < 0.7 * before
    lines = (chat / "eval/predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scorer = RougeScorer(["rougeL"])
    found = [scorer.score(r["target"], r["prediction"])["rougeL"][2] for r in rows]
    answered = np.mean(found), results["test"]["metrics"]["rougeL"]
    assert answered[1] == pytest.approx(answered[0], abs=1e-6) and answered[0] > 0.5
    assert "<|im_start|>" in (chat / "tokenizer/chat_template.jinja").read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO("say 3\n/exit\n"))
    assert tfllm(["chat", str(chat), "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip()
    assert tfllm(["predict", str(chat), "--text", "x"]) == 2


def test_adapters_lie_alone_and_merge(chat):
    from tfllm.models.weights import set_weights
    from tfllm.tasks.chat import Chat
    from tfllm.tasks.runs import load_run

    folder, merged = chat / "checkpoints/best", load_run(chat)
    alone = load_file(folder / "adapters.safetensors")
    assert {path.rpartition("/")[2] for path in alone} == {"lora_a", "lora_b"}
    assert not [v for v in merged.model.weights if "lora" in v.path]
    config = json.loads((folder / "config.json").read_text())
    task = Chat.from_config(config, merged.task.tokenizer)
    model = task.build_model()
    set_weights(model, load_file(folder / "model.safetensors"))
    ids = np.array([task.tokenizer.encode(["say it is three"])[0]], np.int32)
    batch = {"token_ids": ids[:, :-1], "targets": ids[:, 1:]}
    batch["padding_mask"] = np.ones_like(batch["targets"])
    batch["target_weights"] = np.ones(batch["targets"].shape, np.float32)
    batch = task.transform(batch, 0, 0)
    np.testing.assert_allclose(
        task.losses(model, batch), task.losses(merged.model, batch), atol=1e-4
    )


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_preferences_are_learned(objective, chat, work, recipe):
    path = work / "runs" / objective
    status = recipe(
        *("preference_tuning", "--model", chat, *PAIRS, *FAST, "--output_dir", path),
        *("--objective", objective, "--learning_rate", 0.003, "--epochs", 3),
        "--no_export",
    )
    assert status == 0
    test = json.loads((path / "eval/results.json").read_text())["test"]
    assert test["metrics"]["reward_accuracy"] > 0.6
    judged = [r for r in rows_of(path / "metrics.jsonl") if "validation_loss" in r]
    assert len(judged) >= 5
    for row in judged:
        for name in ("reward_accuracy", "reward_margin"):
            low, value, high = (
                row[f"validation_{name}{end}"] for end in ("_low", "", "_high")
            )
            assert low <= value <= high
    assert judged[-1]["validation_reward_margin"] > 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pretrain_causal_lm", [*TEXT, *SHAPE, "--architecture", "gpt"]),
        ("finetune_chat", ["--model", "runs/base", *TALKS]),
        ("preference_tuning", ["--model", "runs/base", *PAIRS]),
    ],
)
def test_dry_runs_write_nothing(name, arguments, pretrained, work, recipe, capsys):
    path = work / "runs" / "dry"
    options = [*arguments, *FAST, "--dry_run", "--output_dir", path]
    assert recipe(name, *options) == 0
    assert "Dry run" in capsys.readouterr().out
    assert not path.exists()


def test_pretraining_goes_on_from_a_run(pretrained, work, recipe):
    path = work / "runs" / "further"
    status = recipe(
        *("pretrain_causal_lm", *TEXT[:2], "--model", pretrained, *FAST, "--copies", 2),
        *("--max_steps", 1, "--learning_rate", 0, "--no_export", "--output_dir", path),
    )
    assert status == 0
    first, second = (
        load_file(run / "checkpoints/best/model.safetensors")
        for run in (pretrained, path)
    )
    assert all(np.array_equal(first[name], second[name]) for name in first | second)


def test_bad_input_is_told(pretrained, work, recipe, tiny_bert, capsys):
    (work / "broken.jsonl").write_text('{"instruction": "Q"}\n')
    (work / "labels.tsv").write_text("text\tlabel\na\tb\n")
    model = ["--model", pretrained]
    for name, arguments, words in (
        ("finetune_chat", [*model, "--train_file", "broken.jsonl"], "broken.jsonl:1"),
        ("finetune_chat", [*model, "--train_file", "labels.tsv"], "labels.tsv"),
        ("finetune_chat", [*model, *TALKS, "--max_length", 8], "--max_length"),
        ("finetune_chat", ["--model", tiny_bert, *TALKS], "wants a decoder"),
        ("finetune_chat", ["--model", "smollm2-135m", *TALKS], "Did you mean"),
        ("finetune_chat", [*model, *TALKS, "--label_smoothing", 0.1], "not for this"),
        ("preference_tuning", [*model, *TALKS], "chosen and rejected"),
        ("pretrain_causal_lm", ["--train_file", "txts"], "Did you mean 'texts'"),
        ("pretrain_causal_lm", [*TEXT, *model], "does not go with --model"),
    ):
        status = recipe(name, *arguments, *FAST, "--output_dir", work / "runs" / "bad")
        assert status == 2, arguments
        error = capsys.readouterr().err
        assert words in error and error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert not (work / "runs" / "bad").exists()


KILLED = ["--batch_size", 4, "--gradient_accumulation_steps", 2, "--dropout", 0.1]


def test_killed_pretraining_equals_uninterrupted(work, recipe, root):
    arguments = [*TEXT, *SHAPE, *FAST, *KILLED, "--max_steps", 40, "--copies", 3]
    arguments += ["--eval_steps", 20]
    name, folder = "pretrain_causal_lm", work / "runs/kills"
    assert_kills_change_nothing(recipe, root, name, arguments, folder)


@pytest.mark.slow
def test_a_killed_run_that_went_on_from_another_goes_on(pretrained, work, recipe, root):
    arguments = ["--train_file", "texts", "--validation_share", 0.1, *FAST, *KILLED]
    arguments += ["--model", pretrained, "--max_steps", 40, "--eval_steps", 20]
    name, folder = "pretrain_causal_lm", work / "runs/kills_on"
    assert_kills_change_nothing(recipe, root, name, arguments, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"), [("finetune_chat", TALKS), ("preference_tuning", PAIRS)]
)
def test_killed_tuning_equals_uninterrupted(name, data, pretrained, work, recipe, root):
    arguments = [*data, *FAST, *KILLED, "--model", pretrained, "--lora_rank", 2]
    arguments += ["--lora_dropout", 0.1, "--epochs", 8, "--eval_steps", 10]
    folder, apart = work / "runs" / name, name == "preference_tuning"
    assert_kills_change_nothing(
        recipe, root, name, arguments, folder, own_process=apart
    )
