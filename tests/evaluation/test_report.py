"""The eval folder: forms, content, pictures; whole or not at all."""

import io
import json

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.evaluation import figures
from tfllm.evaluation.baseline import tfidf_svm
from tfllm.evaluation.classification import calibration, classification_metrics
from tfllm.evaluation.report import Split, results_table, write_classification_report

NAMES = ["bad", "good", "so|so"]


def split(rows=60, seed=0, pairs=False, names=NAMES):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(len(names), 0.5), rows).astype(np.float32)
    labels = [
        names[rng.choice(len(names), p=p / p.sum())] for p in scores.astype(float)
    ]
    return Split(
        texts=[f"text {i} " + "long " * (i % 9) for i in range(rows)],
        labels=labels,
        predictions=[names[i] for i in scores.argmax(1)],
        scores=scores,
        text_pairs=[f"pair {i}" for i in range(rows)] if pairs else None,
        seconds=1.5,
    )


def write(folder, test, **options):
    options = {"task": "classification", "class_names": NAMES, "test": test} | options
    return write_classification_report(folder / "eval", **options)


def test_results_have_the_form_that_tools_read(tmp_path):
    test = split()
    returned = write(tmp_path, test, validation=split(30, 1), leaked={0, 5, 7})
    stored = json.loads((tmp_path / "eval/results.json").read_text("utf-8"))
    assert stored == returned
    assert stored["task"] == "classification"
    block = stored["test"]
    assert block["samples"] == 60 and block["seconds"] == 1.5
    expected = classification_metrics(
        test.labels, test.predictions, test.scores, class_names=NAMES
    )
    assert block["metrics"] == pytest.approx(expected)
    for name, (low, high) in block["intervals"].items():
        assert low <= block["metrics"][name] <= high
    assert stored["validation"]["samples"] == 30
    rest = test.take([i for i in range(60) if i not in {0, 5, 7}])
    found = stored["test_without_leaked"]
    assert found["samples"] == 57
    accuracy = classification_metrics(rest.labels, rest.predictions, class_names=NAMES)
    assert found["metrics"]["accuracy"] == accuracy["accuracy"]
    assert [row["label"] for row in stored["per_class"]] == NAMES


def test_predictions_in_order_with_every_field(tmp_path):
    test = split(pairs=True)
    write(tmp_path, test, pictures=False)
    lines = (tmp_path / "eval/predictions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == test.texts
    for i, row in enumerate(rows):
        assert " ".join(row) == "text text_pair label prediction score scores"
        assert row["text_pair"] == test.text_pairs[i]
        assert list(row["scores"]) == NAMES
        values = list(row["scores"].values())
        assert values == pytest.approx(test.scores[i].tolist(), rel=1e-5)
        assert row["score"] == max(values) == row["scores"][row["prediction"]]


def test_odd_texts_stay_one_row_each(tmp_path):
    odd = [
        "a\nb",
        "tab\t\u2028x",
        "| pipe `*_ <b>",
        "中文 \U0001f600",
        "",
        "\x00\ud83d",
    ]
    odd[-1] = "\x00nul"
    test = Split(odd, ["bad"] * 6, ["good"] * 6, np.tile([0.2, 0.7, 0.1], (6, 1)))
    write(tmp_path, test, pictures=False)
    lines = (tmp_path / "eval/predictions.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["text"] for line in lines if line] == odd
    report = (tmp_path / "eval/report.md").read_text("utf-8")
    table = report.split("## Most confident mistakes")[1]
    rows = [line for line in table.splitlines() if line.startswith("| 0.700")]
    assert len(rows) == 6
    assert r"\| pipe \`\*\_ &lt;b>" in report
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)


def test_report_says_what_matters(tmp_path):
    test = split()
    labels = [*test.labels[:-1], "zebra"]
    test = Split(test.texts, labels, test.predictions, test.scores)
    other = ["bad"] * 60
    write(tmp_path, test, leaked=[1], baseline=("TF-IDF + SVM", other), pictures=False)
    report = (tmp_path / "eval/report.md").read_text("utf-8")
    for words in (
        "zebra (1)",
        "Test rows whose text stands in the training data too: 1.",
        "Against TF-IDF + SVM",
        "TF-IDF + SVM without them: accuracy",
        "so\\|so",
        "Most frequent confusions",
        "p (paired bootstrap)",
    ):
        assert words in report
    stored = json.loads((tmp_path / "eval/results.json").read_text("utf-8"))
    assert stored["test"]["unseen_labels"] == {"zebra": 1}
    compared = stored["baseline"]["compared"]["accuracy"]
    mine = stored["test"]["metrics"]["accuracy"]
    theirs = stored["baseline"]["metrics"]["accuracy"]
    assert compared["difference"] == pytest.approx(mine - theirs)


def test_most_confident_mistakes_come_first(tmp_path):
    write(tmp_path, split(200), pictures=False)
    report = (tmp_path / "eval/report.md").read_text("utf-8")
    rows = report.split("## Most confident mistakes")[1].splitlines()
    scores = [float(row.split("|")[1]) for row in rows if row.startswith("| 0.")]
    assert len(scores) == 20
    assert scores == sorted(scores, reverse=True)


def test_pictures_are_there_and_the_report_names_them(tmp_path):
    write(tmp_path, split())
    report = (tmp_path / "eval/report.md").read_text("utf-8")
    files = {path.name for path in (tmp_path / "eval").glob("*.png")}
    assert files == {
        "confusion_matrix.png",
        "precision_and_recall.png",
        "reliability.png",
    }
    assert all(f"]({name})" in report for name in files)


def test_without_scores_and_with_one_row(tmp_path):
    one = Split(["x"], ["bad"], ["good"])
    results = write(tmp_path, one, leaked=[0])
    assert "loss" not in results["test"]["metrics"]
    assert "test_without_leaked" not in results  # nothing would be left
    row = json.loads((tmp_path / "eval/predictions.jsonl").read_text("utf-8"))
    assert row == {"text": "x", "label": "bad", "prediction": "good"}


def test_a_failure_leaves_the_old_folder(tmp_path):
    write(tmp_path, split(), pictures=False)
    before = (tmp_path / "eval/results.json").read_bytes()
    broken = split()
    broken.scores[3, 1] = np.nan
    with pytest.raises(UserError, match="1 of 60 rows"):
        write(tmp_path, broken)
    assert (tmp_path / "eval/results.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["eval"]


def test_table_for_the_console(tmp_path):
    results = write(tmp_path, split(), validation=split(30, 1), pictures=False)
    columns, rows = results_table(results)
    assert columns == ["metric", "test", "95 % interval", "validation"]
    assert all(len(row) == 4 for row in rows)
    assert rows[-1] == ["rows", "60", "", "30"]


def size_of(data: bytes):
    from matplotlib.image import imread

    return imread(io.BytesIO(data)).shape


@pytest.mark.parametrize("classes", [2, 40, 150])
def test_figures_of_few_and_many_classes(classes):
    rng = np.random.default_rng(0)
    names = [
        f"{'a rather long name for class' if i % 7 else 'k'} {i}"
        for i in range(classes)
    ]
    matrix = rng.poisson(0.1, (classes, classes)) + np.eye(classes, dtype=int) * 20
    figure = figures.confusion_figure(matrix, names)
    shown = figure.axes[0].get_xticklabels()
    assert len(shown) == (31 if classes == 150 else classes)
    numbers = [int(text.get_text().replace(",", "")) for text in figure.axes[0].texts]
    assert sum(numbers) == matrix.sum()  # nothing is lost in "all others"
    data = figures.png(figure)
    assert data == figures.png(figures.confusion_figure(matrix, names))
    assert max(size_of(data)) < 2200
    scores = rng.dirichlet(np.ones(classes), 300)
    labels = rng.integers(0, classes - 1, 300)  # the last class is absent
    curves = figures.precision_recall_figure(labels, scores, names)
    assert len(curves.axes[0].get_legend().get_texts()) == min(classes - 1, 10)
    assert figures.png(curves)


def test_pixels_for_tensorboard():
    image = figures.pixels(figures.confusion_figure(np.eye(2, dtype=int), ["a", "b"]))
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert image.min() < 100 and image.max() == 255


def test_reliability_of_one_bin():
    one = calibration(np.array([1.0]), np.array([True]))
    assert figures.png(figures.reliability_figure(one))


def test_labels_without_a_font_become_numbers():
    assert figures.drawable(["a", "\U000f0000"]) == (["0", "1"], None)  # private use
    names, font = figures.drawable(["costs $5", "x" * 30])
    assert font == "DejaVu Sans"
    assert names == [r"costs \$5", "x" * 23 + "…"]


def test_no_figure_touches_pyplot():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from tfllm.evaluation import figures as f\n"
        "f.png(f.confusion_figure(np.eye(3, dtype=int), ['a', 'b', '中']))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("language", "texts", "test"),
    [
        (
            "en",
            ["a good film", "good fun", "a bad film", "bad taste"],
            ["good taste", "bad fun"],
        ),
        (
            "zh-CN",
            ["房间很好", "好电影", "房间很差", "差电影"],
            ["很好看", "差极了"],
        ),
    ],
)
def test_baseline_learns_english_and_chinese(language, texts, test):
    assert tfidf_svm(texts * 5, ["+", "+", "-", "-"] * 5, test, language) == [*"+-"]


def rows_of(path, separator, label_first):
    """The texts and the labels of a file."""
    import gzip

    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    lines = [line for line in data.decode("utf-8", "replace").split("\n") if line]
    lines = [line for line in lines if line != "label\ttext_a"]
    if label_first:
        return tuple(
            zip(*(line.split(separator, 1)[::-1] for line in lines), strict=True)
        )
    return tuple(zip(*(line.rsplit(separator, 1) for line in lines), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "test", "form", "language", "expected"),
    [
        ("chnsenticorp/train.tsv.gz", "chnsenticorp/test.tsv.gz", "\t1", "zh", 92.92),
        (
            "thucnews_titles/dev.txt.gz",
            "thucnews_titles/test.txt.gz",
            "\t",
            "zh",
            87.75,
        ),
        ("trec/TREC.train.all.gz", "trec/TREC.test.all", " 1", "en", 90.8),
    ],
)
def test_floor_of_real_data(shared, train, test, form, language, expected):
    texts, labels = rows_of(shared / train, form[0], len(form) > 1)
    test_texts, test_labels = rows_of(shared / test, form[0], len(form) > 1)
    found = tfidf_svm(texts, labels, test_texts, language)
    accuracy = 100 * np.mean(np.array(found) == np.array(test_labels))
    assert accuracy == pytest.approx(expected, abs=1)
