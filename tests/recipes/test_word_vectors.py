"""Vectors of words from raw text to a classifier, an export and a search."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.recipes.kills import steps_written
from tests.tasks.stories import TOPICS, stories
from tfllm.cli.main import main as tfllm
from tfllm.models.word_vectors import read_word_vectors, word_vectors


@pytest.fixture(scope="module")
def work(work):
    (work / "text.txt").write_text("\n".join(stories(1500)))  # one document
    rows = [f"{a}\t{b}\t9" for a, b in (w[:2] for w in TOPICS.values())]
    rows += ["wave\tcoal\t1", "fish\tbell\t1", "cow\tash\t1"]
    (work / "alike.tsv").write_text("\n".join(rows))
    return work


SMALL = ["--train_file", "text.txt", "--size", 12, "--batch_size", 256]


@pytest.mark.parametrize("model", ["skip_gram", "cbow", "glove"])
def test_words_of_one_topic_come_together(model, work, recipe, capsys):
    path = work / "runs" / model
    options = ["--model", model, "--output_dir", path, "--export_name", model]
    options += ["--question_file", "alike.tsv", "--subsample", 0]
    options += ["--epochs", 100 if model == "glove" else 8]  # of few different pairs
    if model == "cbow":
        options += ["--compare", work / "runs/skip_gram/vectors.txt"]
    rate = 0.05 if model == "glove" else 0.1
    assert recipe("word_vectors", *SMALL, *options, "--learning_rate", rate) == 0
    results = json.loads((path / "eval/results.json").read_text())
    assert results["test"]["metrics"]["spearman_alike"] > 0.7
    assert ("baseline" in results) == (model == "cbow")
    vectors = dict(word_vectors(path / "vectors.txt"))
    assert {"wave", "the"} <= set(vectors) and "." not in vectors
    rows = [json.loads(line) for line in open(path / "eval/predictions.jsonl")]
    row = next(row for row in rows if row["text"] == "the")
    unit = vectors["the"] / np.linalg.norm(vectors["the"])
    np.testing.assert_allclose(row["embedding"], unit, atol=1e-5)
    predictions = str(path / "eval/predictions.jsonl")
    model = str(work / "saved_models" / model)
    assert tfllm(["check", model, "--predictions", predictions]) == 0
    topics = [" ".join(words) for words in TOPICS.values()]
    (work / "topics.txt").write_text("\n".join(topics))
    capsys.readouterr()
    assert tfllm(["search", str(path), "topics.txt", "smoke and coal"]) == 0
    assert TOPICS["fire"][0] in capsys.readouterr().out.splitlines()[0]


def test_classifiers_take_the_vectors(work, toy, recipe):
    path, texts = work / "runs" / "toy", work / "toy.txt"
    lines = open(toy.train).read().splitlines()[1:]
    texts.write_text("\n\n".join(line.split("\t")[0] for line in lines))
    options = ["--train_file", texts, "--size", 8, "--no_export", "--epochs", 1]
    options += ["--min_frequency", 2]
    assert recipe("word_vectors", *options, "--output_dir", path) == 0
    matrix = read_word_vectors(path / "vectors.txt", ["room", "nowhere"])
    assert matrix.shape == (2, 8) and np.isnan(matrix[1]).all()
    status = recipe(
        *("text_classification", "--train_file", toy.train, "--test_file", toy.test),
        *("--model", "textcnn", "--word_vectors", path / "vectors.txt", "--no_export"),
        *("--max_steps", 2, "--tokenizer", "words", "--output_dir", work / "runs/x"),
        *("--precision", "float32", "--jit_compile", "false"),
    )
    assert status == 0


def test_chinese_is_cut_into_words(work, recipe):
    known = "喜欢 北京 天气 今天 下雨 老师 学校 音乐 电影 朋友 工作 时间 问题 城市 历史"
    known = (
        f"{known} 医院 银行 飞机 火车 苹果 香蕉 咖啡 牛奶 足球 篮球 妈妈 爸爸".split()
    )
    draw = random.Random(0)
    texts = ["".join(draw.choices(known, k=7)) for _ in range(300)]
    (work / "zh.txt").write_text("\n".join(texts))
    path = work / "runs" / "zh"
    options = ["--train_file", "zh.txt", "--output_dir", path, "--no_export"]
    assert recipe("word_vectors", *options, "--size", 4, "--epochs", 1) == 0
    words = [word for word, _ in word_vectors(path / "vectors.txt")]
    assert "北京" in words and len({*known} & {*words}) > 0.8 * len(known)


def test_dry_run_and_bad_input(work, recipe, capsys):
    path = work / "runs" / "dry"
    assert recipe("word_vectors", *SMALL, "--output_dir", path, "--dry_run") == 0
    assert "words a second" in capsys.readouterr().out and not path.exists()
    (work / "bad.tsv").write_text("a b\n")
    (work / "dots.txt").write_text(". . .\n\n. .\n\n...\n")
    for arguments, words in (
        ([*SMALL, "--question_file", "bad.tsv"], "bad.tsv:1"),
        ([*SMALL, "--model", "skipgram"], "skip_gram"),
        (["--train_file", "no.txt"], "no.txt"),
        ([*SMALL, "--compare", "no.vec"], "--compare needs --question_file"),
        (
            [*SMALL, "--compare", "no.vec", "--question_file", "alike.tsv"],
            "no.vec: there is no such file",
        ),
    ):
        assert recipe("word_vectors", *arguments, "--output_dir", path) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line and not path.exists()


def test_a_killed_run_is_the_same_run(work, recipe, root):
    arguments = [*SMALL, "--save_minutes", 0, "--epochs", 2, "--no_export"]
    whole, killed = work / "runs/whole", work / "runs/killed"
    assert recipe("word_vectors", *arguments, "--output_dir", whole) == 0
    command = [sys.executable, root / "recipes/word_vectors.py", *arguments]
    command = [str(word) for word in [*command, "--output_dir", killed]]
    environment = os.environ | {"PYTHONPATH": str(root)}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, **silent)
    while process.poll() is None and not steps_written(killed):
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    final = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert final.returncode == 0, final.stderr
    assert "goes on from" in final.stdout
    vectors = [(path / "vectors.txt").read_bytes() for path in (whole, killed)]
    assert vectors[0] == vectors[1]
