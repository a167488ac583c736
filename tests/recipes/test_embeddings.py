"""Sentence embeddings as a user trains, searches and serves them."""

import json
import random

import numpy as np
import pytest

from tests.recipes.kills import assert_kills_change_nothing
from tests.tasks.stories import PLAIN
from tfllm.cli.main import main as tfllm
from tfllm.serving.c_api import Process
from tfllm.tasks.runs import load_run

# Twenty things, each of which is told of in words of two kinds.
TOPICS = {f"thing {i}": [f"{kind}{i}" for kind in "abcdef"] for i in range(20)}
FAST = ["--precision", "float32", "--jit_compile", "false"]


def pairs(count, seed):
    """Two texts about one thing in other words, and one about another thing."""
    pick, rows = random.Random(seed), []
    for number in range(count):
        topic, other = pick.sample(list(TOPICS), 2)
        words = TOPICS[topic]
        first, second = (
            " ".join(pick.choices(PLAIN, k=3) + pick.choices(half, k=2))
            for half in (words[:3], words[3:])
        )
        unlike = " ".join(pick.choices(PLAIN, k=3) + pick.choices(TOPICS[other], k=2))
        # A number of its own tells a text apart and says nothing of its topic.
        row = {
            "text": f"{first} {1000 * seed + number}",
            "text_pair": second,
            "negative": unlike,
        }
        rows.append(row | {"topic": topic})
    return rows


@pytest.fixture(scope="module")
def work(work):
    names = ("text", "text_pair", "negative")
    for seed, (name, count) in enumerate({"train": 300, "test": 60}.items()):
        rows = pairs(count, seed)
        lines = ["\t".join(names), *("\t".join(r[n] for n in names) for r in rows)]
        (work / f"{name}.tsv").write_text("\n".join(lines) + "\n")
        lines = ["text\tlabel", *(f"{r['text']}\t{r['topic']}" for r in rows)]
        (work / f"{name}_labels.tsv").write_text("\n".join(lines) + "\n")
    return work


@pytest.fixture(scope="module")
def run(work, recipe):
    """A finished run with its export."""
    path = work / "runs" / "pairs"
    status = recipe(
        *("embeddings", "--train_file", "train.tsv", "--test_file", "test.tsv", *FAST),
        *("--output_dir", path, "--export_name", "pairs", "--hidden_size", 16),
        *("--epochs", 12, "--batch_size", 16, "--learning_rate", 0.02),
    )
    assert status == 0
    return path


def test_changed_copies_are_trained_on(work, recipe, capsys):
    options = [
        "--train_file",
        "train.tsv",
        *FAST,
        "--hidden_size",
        8,
        "--augment",
        "swap",
        "delete",
    ]
    options += ["--max_steps", 2, "--no_export", "--output_dir", work / "runs/changed"]
    assert recipe("embeddings", *options) == 0
    assert "changed copies of training texts" in capsys.readouterr().out


def test_training_helps_and_is_reported(run):
    results = json.loads((run / "eval/results.json").read_text())
    before, after = (results[x]["metrics"] for x in ("baseline", "test"))
    assert results["baseline"]["name"] == "untuned"
    # A topic's halves share no word: an untuned model can only guess.
    low, _ = results["test"]["intervals"]["ndcg_at_10"]
    assert low > before["ndcg_at_10"] + 0.25
    low, high = results["test"]["intervals"]["mrr"]
    assert low <= after["mrr"] <= high
    assert "untuned" in (run / "eval/report.md").read_text()
    tokens = (run / "tensorboard/tokens.tsv").read_text().splitlines()
    vectors = np.loadtxt(run / "tensorboard/vectors.tsv")
    assert vectors.shape == (len(tokens), 16)  # of texts, not of tokens
    assert any(" " in token for token in tokens)


def test_the_export_gives_the_same_vectors(run, work, capsys):
    rows = [json.loads(line) for line in open(run / "eval/predictions.jsonl")]
    assert {"text", "target", "prediction", "score", "rank"} <= set(rows[0])
    with Process(work / "saved_models" / "pairs") as process:
        answer = process.run("serving_default", {"text": [r["text"] for r in rows]})
        assert "tensorflow" not in process.modules
    wanted = np.array([row["embedding"] for row in rows])
    np.testing.assert_allclose(answer["embedding"], wanted, atol=1e-5)
    model, path = work / "saved_models/pairs", run / "eval/predictions.jsonl"
    assert tfllm(["check", str(model), "--predictions", str(path)]) == 0
    assert "60 of 60" in capsys.readouterr().out
    rows[5]["embedding"][0] += 0.01
    (work / "other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert tfllm(["check", str(model), "--predictions", "other.jsonl"]) == 2


def test_search_and_predict(run, work, capsys, monkeypatch):
    texts = [" ".join(words[:4]) for words in TOPICS.values()]
    (work / "texts.txt").write_text("\n".join(texts) + "\n")
    command = ["search", str(run), "texts.txt", "the a0 and e0", "--top_k", "2"]
    assert tfllm(command) == 0
    first = capsys.readouterr().out.strip().splitlines()
    assert len(first) == 2 and first[0].split("\t")[1:] == ["texts.txt:1", texts[0]]
    run_ = load_run(run)
    kept, asked = type(run_.task).embed, []

    def embed(self, model, texts):
        asked.append(list(texts))
        return kept(self, model, texts)

    monkeypatch.setattr(type(run_.task), "embed", embed)
    assert tfllm(command) == 0
    assert capsys.readouterr().out.strip().splitlines() == first
    assert asked == [["the a0 and e0"]]  # the file's vectors were kept
    (work / "texts.txt").write_text("\n".join([*texts, "salt and fish"]) + "\n")
    assert tfllm(command) == 0 and len(asked) == 3
    capsys.readouterr()
    for odd, words in (([""], "knows no word"), (["a", "--top_k", "0"], "at least 1")):
        assert tfllm(["search", str(run), "texts.txt", *odd]) == 2
        assert words in capsys.readouterr().err
    assert tfllm(["predict", str(run), "--text", "a boat"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("loss", ["ranking", "triplet"])
def test_labels_and_adapters_on_a_checkpoint(loss, work, tiny_bert, recipe):
    path = work / "runs" / loss
    status = recipe(
        *("embeddings", "--train_file", "train_labels.tsv", *FAST, "--loss", loss),
        *("--test_file", "test_labels.tsv", "--model", tiny_bert, "--lora_rank", 2),
        *("--output_dir", path, "--max_steps", 12, "--pooling", "cls"),
        *("--copies", 2, "--export_name", loss, "--batch_size", 16),
    )
    assert status == 0
    results = json.loads((path / "eval/results.json").read_text())
    assert set(results["test"]["metrics"]) == set(results["baseline"]["metrics"])
    assert results["test"]["metrics"] != results["baseline"]["metrics"]


def test_scores(work, recipe):
    lines = []
    for i, row in enumerate(pairs(200, 5)):
        second = row["text_pair"] if i % 2 else row["negative"]
        lines.append(f"{row['text']}\t{second}\t{i % 2 * 3.5}")
    (work / "scores.tsv").write_text("\n".join(["a\tb\tscore", *lines]))
    path = work / "runs" / "scores"
    status = recipe(
        *("embeddings", "--train_file", "scores.tsv", *FAST, "--output_dir", path),
        *("--text_column", "a", "--pair_column", "b", "--epochs", 4, "--no_export"),
        *("--loss", "cosine", "--learning_rate", 0.02, "--hidden_size", 16),
    )
    assert status == 0
    results = json.loads((path / "eval/results.json").read_text())
    before, after = (results[k]["metrics"] for k in ("baseline", "test"))
    assert after["spearman"] > before["spearman"] + 0.1


def test_dry_run_writes_nothing(work, recipe, capsys):
    path = work / "runs" / "dry"
    options = ["--train_file", "train.tsv", *FAST, "--output_dir", path, "--dry_run"]
    assert recipe("embeddings", *options, "--model", "transformer") == 0
    assert "minutes an epoch" in capsys.readouterr().out and not path.exists()


def test_bad_data_are_told_in_one_line(work, recipe, capsys):
    (work / "alone.tsv").write_text("text\n" + "".join(f"{i}\n" for i in range(9)))
    for name, labels in (("no", ["0", "no"]), ("scored", ["0.1", "0.75"])):
        lines = [f"a{i}\tb{i}\t{labels[i % 2]}" for i in range(40)]
        content = "\n".join(["text\ttext_pair\tlabel", *lines])
        (work / f"{name}.tsv").write_text(content)
    before = sorted(work.rglob("*"))
    for arguments, words in (
        (["--train_file", "alone.tsv"], "neither a second text nor a label"),
        (["--train_file", "no.tsv"], "no pair belongs together"),
        (["--train_file", "nowhere.tsv"], "nowhere.tsv"),
        (["--train_file", "train.tsv", "--model", "bog"], "Did you mean 'bag'"),
        (["--train_file", "train.tsv", "--loss", "cosine"], "no label"),
        (["--train_file", "train.tsv", "--validation_share", 0], "chosen by such rows"),
        (["--train_file", "train.tsv", "--batch_size", 1], "others of the batch"),
        (["--train_file", "scored.tsv", "--loss", "ranking"], "no use for scores"),
    ):
        assert recipe("embeddings", *arguments, *FAST) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
    assert sorted(work.rglob("*")) == before


def test_a_killed_run_is_the_same_run(work, recipe, root):
    options = ["--train_file", work / "train.tsv", *FAST, "--hidden_size", 8]
    options += ["--epochs", 3, "--batch_size", 8, "--eval_steps", 30]
    assert_kills_change_nothing(recipe, root, "embeddings", options, work / "kills")


@pytest.mark.slow
def test_fine_tuning_finds_more_intents(shared, work, recipe):
    path, data = work / "runs" / "clinc", shared / "clinc150/data_full.json.gz"
    status = recipe(
        *("embeddings", "--model", "minilm-l6", "--output_dir", path, "--no_export"),
        *("--train_file", f"{data}#train", "--test_file", f"{data}#test"),
        *("--validation_file", f"{data}#val", "--epochs", 1),
    )
    assert status == 0
    results = json.loads((path / "eval/results.json").read_text())
    before, after = (results[k]["metrics"] for k in ("baseline", "test"))
    assert after["ndcg_at_10"] > before["ndcg_at_10"] + 0.02
