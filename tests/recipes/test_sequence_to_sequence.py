"""Translation and summaries from files to exports, as a user runs them."""

import itertools
import json
import random

import numpy as np
import pytest

from tests.recipes.kills import assert_kills_change_nothing
from tfllm.cli.main import main as tfllm
from tfllm.models.encoder_decoder import T5, encoder_decoder, shape_of
from tfllm.models.pretrained import save_hf
from tfllm.serving.c_api import Process
from tfllm.text import Tokenizer

FAST = ["--precision", "float32", "--jit_compile", "false", "--dropout", 0.0]
SHAPE = ["--hidden_size", 32, "--num_layers", 1, "--num_heads", 2]
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}
FILES = ["--train_file", "train.en", "train.de", "--test_file", "test.en", "test.de"]
FILES += ["--validation_share", 0.1, "--tokenizer", "words"]
FILES += ["--vocabulary_size", 10]


def pairs(count, seed):
    pick = random.Random(seed)
    rows = [pick.choices([*WORDS], k=pick.randint(1, 5)) for _ in range(count)]
    return [(" ".join(r), " ".join(WORDS[w] for w in reversed(r))) for r in rows]


@pytest.fixture(scope="module")
def work(work):
    for name, count, seed in (("train", 900, 0), ("test", 30, 1)):
        rows = pairs(count, seed)
        # Words that are rare: they are copied.
        ends = itertools.product("aeiouklmnprst", repeat=2)
        rare = [f"{('kam', 'mop')[seed]}{a}{b}" for a, b in ends][: count // 10]
        rows += [(f"one {word}", f"{word} eins") for word in rare]
        for i, side in enumerate(("en", "de")):
            lines = [pair[i] for pair in rows]
            (work / f"{name}.{side}").write_text("\n".join(lines) + "\n")
    rows = [
        {"article": f"It is {a}. There is more to say of it.", "summary": a, "id": i}
        for i, (a, _) in enumerate(pairs(120, 2))
    ]
    (work / "news.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return work


@pytest.fixture(scope="module")
def translation(work, recipe):
    """A finished run with its export."""
    status = recipe(
        *("translation", *FILES, *FAST, *SHAPE, "--separate_vocabularies"),
        *("--epochs", 14, "--tokens_per_batch", 512, "--learning_rate", 0.01),
        *("--eval_steps", 60, "--beams", 2, "--keep_checkpoints", 3),
        *("--output_dir", "runs/numbers", "--export_name", "numbers"),
    )
    assert status == 0
    return work / "runs" / "numbers"


def test_the_run_directory_holds_all_that_is_promised(translation):
    for name in (
        *("config.yaml", "data_report.json", "tokenizer/tokenizer.json"),
        *("target_tokenizer/tokenizer.json", "eval/predictions.jsonl"),
        *("eval/report.md", "eval/attention_1.png", "MODEL_CARD.md"),
    ):
        assert (translation / name).stat().st_size > 0, name
    results = json.loads((translation / "eval/results.json").read_text())
    test = results["test"]
    assert results["task"] == "translation"
    names = {"bleu", "chrf", "exact_match", "loss", "perplexity"}
    assert set(test["metrics"]) == names
    for name, value in test["metrics"].items():
        low, high = test["intervals"][name]
        assert low <= value <= high
    assert "tok:13a" in test["signatures"]["bleu"]
    assert test["metrics"]["bleu"] > 60
    predictions = (translation / "eval/predictions.jsonl").read_text()
    assert '"prediction": "mop' in predictions  # unknown words are copied
    row = json.loads(
        (translation / "eval/predictions.jsonl").read_text().split("\n")[0]
    )
    assert {"text", "target", "prediction", "score"} <= set(row)
    report = (translation / "eval/report.md").read_text()
    assert "Worst rows" in report and "Best rows" in report


def test_the_export_answers_as_the_run(translation, work, capsys):
    predictions = translation / "eval/predictions.jsonl"
    command = ["check", "saved_models/numbers", "--predictions", str(predictions)]
    assert tfllm(command) == 0
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    texts = [row["text"] for row in rows]
    with Process(work / "saved_models" / "numbers") as process:
        assert "tensorflow" not in process.modules
        found = process.run("serving_default", {"text": texts})["text"]
        assert found.tolist() == [row["prediction"] for row in rows]
        score = process.run("score", {"text": texts})
        target = {"text": texts, "target": found.tolist()}
        again = process.run("score_pair", target)
    sure = np.exp(score["log_probability"] / score["tokens"])
    np.testing.assert_allclose(sure, [row["score"] for row in rows], rtol=1e-3)
    np.testing.assert_allclose(
        score["log_probability"], again["log_probability"], atol=1e-3
    )
    capsys.readouterr()
    assert tfllm(["predict", str(translation), "--text", texts[0]]) == 0
    assert json.loads(capsys.readouterr().out)["prediction"] == rows[0]["prediction"]


def test_texts_that_went_there_and_back_are_trained_on(
    translation, work, recipe, capsys
):
    rows = [f"{text}\t{len(text.split()) % 2}" for text, _ in pairs(60, 3)]
    (work / "odd.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    options = ["--train_file", "odd.tsv", "--model", "textcnn", "--tokenizer", "words"]
    options += [*FAST, "--augment", "translate", "--max_steps", 2, "--no_export"]
    options += ["--augment_copies", 2, "--output_dir", "runs/odd"]
    assert recipe("text_classification", *options) == 2
    assert "--translators" in capsys.readouterr().err
    options += ["--translators", translation]
    assert recipe("text_classification", *options, "runs/nothing") == 2
    assert "there is no run" in capsys.readouterr().err
    assert not (work / "runs/odd").exists()
    assert recipe("text_classification", *options, translation) == 0
    told = capsys.readouterr().out
    assert "changed copies of training texts" in told and "eins" in told
    changed = [*FILES, *FAST, *SHAPE, "--augment", "delete", "--max_steps", 2]
    changed += ["--no_export", "--output_dir", "runs/changed"]
    assert recipe("translation", *changed) == 0
    assert "changed copies of training texts" in capsys.readouterr().out


def test_checkpoints_are_averaged_and_measured(translation, work, capsys):
    assert tfllm(["average", str(translation), "--last", "2"]) == 0
    averaged = f"{translation}-average"
    command = ["eval", averaged, "--test_file", "test.en", "test.de", "--output", "e"]
    assert tfllm(command) == 0
    assert json.loads((work / "e/results.json").read_text())["test"]["samples"] == 33
    assert tfllm(["average", str(translation), "--last", "9"]) == 2
    assert "--keep_checkpoints" in capsys.readouterr().err


def test_a_dry_run_writes_nothing_and_knows_the_other_run(
    translation, work, recipe, capsys
):
    options = ["--dry_run", "--output_dir", "runs/dry", "--compare", "runs/numbers"]
    assert recipe("translation", *FILES, *FAST, *SHAPE, *options) == 0
    assert "Dry run" in capsys.readouterr().out
    assert not (work / "runs/dry").exists()


def test_summaries_stand_beside_the_lead_sentence(work, recipe):
    status = recipe(
        *("summarization", "--train_file", "news.jsonl", *FAST, *SHAPE, "--max_steps"),
        *(6, "--vocabulary_size", 300, "--beams", 1, "--architecture", "lstm"),
        *("--attention", "additive", "--batch_size", 16, "--no_export"),
        *("--output_dir", "runs/news"),
    )
    assert status == 0
    results = json.loads((work / "runs/news/eval/results.json").read_text())
    assert results["baseline"]["name"] == "lead sentence"
    assert results["baseline"]["metrics"]["rougeL"] > 0
    assert next(iter(results["test"]["metrics"])) == "rougeL"


def test_first_sentences_come_before_summaries(work, recipe, capsys):
    options = ["summarization", "--train_file", "news.jsonl", *FAST, *SHAPE]
    options += ["--vocabulary_size", 300, "--beams", 2, "--batch_size", 16]
    options += ["--export_name", "leads", "--epochs", 12, "--eval_steps", 12]
    options += ["--output_dir"]
    assert recipe(*options, "runs/leads") == 0
    run = work / "runs/leads"
    config = (run / "config.yaml").read_text()
    assert "lead_epochs: 3" in config and "frequency_penalty: 2.0" in config
    assert "tokenizer: words" in config
    check = ["check", "saved_models/leads", "--predictions"]
    assert tfllm([*check, str(run / "eval/predictions.jsonl")]) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert all(np.isfinite(losses)) and losses[-1] < losses[0]
    assert recipe(*options, "runs/no", "--lead_epochs", 12) == 2
    assert "leaves none of 12 epochs" in capsys.readouterr().err
    command = "translation", *FILES, *FAST, *SHAPE, "--lead_epochs", 1
    assert recipe(*command, "--output_dir", "runs/no") == 2
    assert "--lead_epochs is not for this recipe" in capsys.readouterr().err
    assert not (work / "runs/no").exists()


def test_a_t5_goes_on_with_sampled_words(work, recipe):
    config = shape_of("tiny", 300, **T5, hidden_size=16, num_layers=1, num_heads=2)
    texts = [text for pair in pairs(50, 3) for text in pair]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer.train(texts, "bpe", 300, special_tokens=special)
    config.vocabulary_size = tokenizer.vocabulary_size
    save_hf(encoder_decoder(config), config, "t5", work / "t5", tokenizer)
    status = recipe(
        *("translation", *FILES[:8], *FAST, "--model", "t5", "--max_steps", 2),
        *("--no_export", "--output_dir", "runs/t5", "--beams", 1, "--eval_steps", 1),
        *("--max_eval_samples", 8, "--subword_dropout", 0.2, "--copies", 2),
    )
    assert status == 0
    saved = json.loads((work / "runs/t5/checkpoints/best/config.json").read_text())
    assert saved["encoder_decoder"]["position"] == "relative"


def test_broken_data_is_told(work, recipe, capsys):
    (work / "short.de").write_text("eins\nzwei\n")
    (work / "one.txt").write_text("eins\nzwei\n")
    (work / "gaps.tsv").write_text("\n".join(["a\tb"] * 9 + ["a\t"] * 9) + "\n")
    (work / "names.jsonl").write_text('{"a": "x", "b": "y", "c": "z"}\n' * 5)
    for files, words in (
        (["train.en", "short.de"], "train.en has 990 lines, short.de 2"),
        (["one.txt"], "two files"),
        (["gaps.tsv"], "gaps.tsv:10"),
        (["names.jsonl"], "--target_column"),
        (["train.en", "train.du"], "Did you mean"),
    ):
        command = ["--train_file", *files, "--output_dir", "runs/bad"]
        assert recipe("translation", *command) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
        assert not (work / "runs/bad").exists()


def test_killed_equals_uninterrupted(work, recipe, root):
    arguments = [*FILES, *FAST[:4], *SHAPE, "--dropout", 0.1, "--max_steps", 24]
    arguments += ["--tokens_per_batch", 256, "--eval_steps", 8, "--max_eval_samples", 8]
    arguments += ["--beams", 1]
    folder = work / "runs/kills"
    assert_kills_change_nothing(recipe, root, "translation", arguments, folder)
