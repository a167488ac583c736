"""Metrics against scikit-learn and hand counts."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from tfllm.core.errors import UserError
from tfllm.evaluation import classification as c


def random_case(seed, rows=400, classes=7):
    rng = np.random.default_rng(seed)
    names = [f"class {i}" for i in range(classes)]
    scores = rng.dirichlet(np.full(classes, 0.4), rows).astype(np.float32)
    labels = [names[rng.choice(classes, p=p / p.sum())] for p in scores.astype(float)]
    return names, labels, [names[i] for i in scores.argmax(1)], scores


@pytest.mark.parametrize(
    ("seed", "rows", "classes"), [(0, 400, 7), (1, 50, 2), (2, 9, 8)]
)
def test_equal_to_scikit_learn(seed, rows, classes):
    names, labels, predictions, scores = random_case(seed, rows, classes)
    ours = c.classification_metrics(labels, predictions, scores, class_names=names)
    macro = {"average": "macro", "zero_division": 0}
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions))
    theirs = sk.precision_score(labels, predictions, **macro)
    assert ours["precision"] == pytest.approx(theirs)
    assert ours["recall"] == pytest.approx(
        sk.recall_score(labels, predictions, **macro)
    )
    assert ours["f1_macro"] == pytest.approx(sk.f1_score(labels, predictions, **macro))
    assert ours["f1_micro"] == pytest.approx(
        sk.f1_score(labels, predictions, average="micro")
    )
    theirs = sk.matthews_corrcoef(labels, predictions)
    assert ours["matthews"] == pytest.approx(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float32 rows that sum to 1 +- 1e-7
        theirs = sk.log_loss(labels, scores, labels=names)
    assert ours["loss"] == pytest.approx(theirs, rel=1e-5)


def test_per_class_equals_scikit_learn_and_class_absent_in_test():
    names = ["a", "b", "c", "never seen in the test"]
    labels, predictions = list("aaabbc"), list("aabbba")
    _, ids = c.encode(names, labels, predictions)
    rows = c.per_class(c.count_pairs(*ids, len(names)), names)
    theirs = sk.precision_recall_fscore_support(
        labels, predictions, labels=names, zero_division=0
    )
    for i, key in enumerate(("precision", "recall", "f1", "support")):
        assert [row[key] for row in rows] == pytest.approx(list(theirs[i]))
    assert [row["predicted"] for row in rows] == [3, 3, 0, 0]
    # The absent class is no part of the mean.
    found = c.classification_metrics(labels, predictions, class_names=names)
    assert found["f1_macro"] == pytest.approx(np.mean(theirs[2][:3]))


def test_one_sample():
    right = c.classification_metrics(
        ["a"], ["a"], np.array([[0.75, 0.25]]), class_names=["a", "b"]
    )
    assert right["accuracy"] == right["f1_macro"] == 1
    assert right["matthews"] == 0  # undefined: one class alone
    assert right["loss"] == pytest.approx(-np.log(0.75))
    assert right["calibration_error"] == pytest.approx(0.25)
    assert c.classification_metrics(["a"], ["b"], class_names="ab")["accuracy"] == 0


def test_label_unseen_in_training_is_an_error_with_a_name():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    labels, predictions = ["a", "b", "zebra"], ["a", "b", "a"]
    found = c.classification_metrics(
        labels, predictions, scores, class_names=["a", "b"]
    )
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)  # a, b right; zebra never
    assert np.isfinite(found["loss"])
    names, (ids, _) = c.encode(["a", "b"], labels, predictions)
    assert names == ["a", "b", "zebra"]
    assert ids.tolist() == [0, 1, 2]


def test_ids_and_names_give_the_same():
    names, labels, predictions, scores = random_case(3)
    by_id = [[names.index(x) for x in column] for column in (labels, predictions)]
    one = c.classification_metrics(labels, predictions, scores, class_names=names)
    for columns in (by_id, [np.array(x, np.int32) for x in by_id]):
        assert c.classification_metrics(*columns, scores, class_names=names) == one
    with pytest.raises(ValueError, match="class ids"):
        c.classification_metrics([0, 9], [0, 1], class_names=["a", "b"])


@pytest.mark.parametrize(
    ("scores", "error", "words"),
    [
        ([[np.nan, 1], [0.5, 0.5]], UserError, "1 of 2 rows"),
        ([[0.5, 0.5]], ValueError, r"\[2, 2\]"),
        ([[0.9, 0.9], [0.5, 0.5]], ValueError, "sums to 1"),
        ([[1.5, -0.5], [0.5, 0.5]], ValueError, "probabilities"),
    ],
)
def test_bad_scores(scores, error, words):
    with pytest.raises(error, match=words):
        c.classification_metrics(["a", "b"], ["a", "b"], scores, class_names=["a", "b"])


def test_bad_columns():
    with pytest.raises(UserError, match="no rows"):
        c.classification_metrics([], [], class_names=["a"])
    with pytest.raises(ValueError, match="differ in length: 2, 1"):
        c.classification_metrics(["a", "a"], ["a"], class_names=["a"])
    with pytest.raises(ValueError, match="one of class_names"):
        c.classification_metrics(["a"], ["x"], np.ones((1, 1)), class_names=["a"])


def test_calibration_by_hand():
    # Bins of 1/15: 0.62 lies in the tenth, 0.95 and 0.99 in the last.
    confidence = np.array([0.62, 0.62, 0.95, 0.99])
    found = c.calibration(confidence, np.array([1, 0, 1, 1]))
    assert found.counts.tolist() == [2, 2]
    assert found.accuracy.tolist() == [0.5, 1]
    assert found.error == pytest.approx(0.5 * 0.12 + 0.5 * 0.03)
    # A confidence on an edge belongs to the bin below it; 0 and 1 are inside.
    edges = c.calibration(np.array([0, 1 / 3, 1]), np.ones(3), bins=3)
    assert edges.counts.tolist() == [2, 1]


def test_calibrated_scores_have_a_small_error():
    confidence = np.random.default_rng(0).random(100_000)
    correct = np.random.default_rng(1).random(100_000) < confidence
    assert c.calibration(confidence, correct).error < 0.01


def test_top_confusions():
    matrix = np.array([[5, 2, 0], [4, 1, 0], [0, 0, 3]])
    found = c.top_confusions(matrix, ["a", "b", "c"])
    assert [(x["label"], x["prediction"], x["count"]) for x in found] == [
        ("b", "a", 4),
        ("a", "b", 2),
    ]
    assert found[0]["share"] == pytest.approx(0.8)


def test_multilabel_equals_scikit_learn():
    rng = np.random.default_rng(0)
    names, truth, scores = list("wxyz"), rng.random((90, 4)) < 0.4, rng.random((90, 4))
    cuts = np.array([0.3, 0.5, 0.6, 0.8])
    chosen = scores >= cuts
    ours = c.multilabel_metrics(truth, scores, cuts, class_names=names)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(truth, chosen))
    for kind in ("macro", "micro"):
        theirs = sk.f1_score(truth, chosen, average=kind)
        assert ours[f"f1_{kind}"] == pytest.approx(theirs)
    listed = [[n for n, x in zip(names, row, strict=True) if x] for row in truth]
    assert c.multilabel_metrics(listed, scores, cuts, class_names=names) == ours
    listed[0] = ["unknown"]
    missed = c.multilabel_metrics(listed, scores, cuts, class_names=names)
    assert missed["f1_macro"] < ours["f1_macro"]


def test_tuned_thresholds_are_the_best():
    rng = np.random.default_rng(0)
    labels = rng.random((300, 3)) < [0.1, 0.5, 0]
    scores = np.round(np.clip(labels * 0.2 + rng.random((300, 3)), 0, 1.2), 2)
    tuned = c.tune_thresholds(labels, scores)
    assert tuned[2] == 0.5  # no positive row to learn from
    for k in range(2):
        tried = np.unique(scores[:, k])
        best = max(sk.f1_score(labels[:, k], scores[:, k] >= t) for t in tried)
        found = sk.f1_score(labels[:, k], scores[:, k] >= tuned[k])
        assert found == pytest.approx(best)


def test_regression_equals_scipy():
    from scipy import stats

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 80) / 5  # many ties
    scores = labels + rng.normal(size=80)
    found = c.regression_metrics(labels, scores)
    assert found["pearson"] == pytest.approx(stats.pearsonr(labels, scores).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(labels, scores).statistic)
    assert found["mse"] == pytest.approx(sk.mean_squared_error(labels, scores))
    assert np.isnan(c.regression_metrics([1, 1], [0, 2])["pearson"])
    with pytest.raises(UserError):
        c.regression_metrics([1, 2], [1, np.nan])


def test_imports_nothing_heavy():
    code = (
        "import sys, tfllm.evaluation.report, tfllm.evaluation.baseline\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'matplotlib', 'scipy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
