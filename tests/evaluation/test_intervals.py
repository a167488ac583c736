"""Intervals and paired tests: the fast way against the plain one, and known answers."""

import time

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tfllm.evaluation import intervals
from tfllm.evaluation.classification import classification_metrics
from tfllm.evaluation.intervals import classification_intervals, compare


def case(rows, classes=3, right=0.8, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    noise = rng.integers(0, classes, rows)
    return labels, np.where(rng.random(rows) < right, labels, noise)


NAMES = ["x", "y", "z"]


def test_counts_resampled_equal_rows_resampled():
    labels, predictions = case(300)
    fast = classification_intervals(
        labels, predictions, class_names=NAMES, samples=4000
    )
    for name in ("accuracy", "f1_macro", "matthews", "precision"):
        slow = intervals.bootstrap(
            lambda y, p, name=name: classification_metrics(y, p, class_names=NAMES)[
                name
            ],
            [labels, predictions],
            samples=1500,
        )
        assert fast[name] == pytest.approx(slow, abs=0.012)


def test_width_is_that_of_the_normal_approximation():
    labels, predictions = case(2000)
    accuracy = (labels == predictions).mean()
    low, high = classification_intervals(labels, predictions, class_names=NAMES)[
        "accuracy"
    ]
    assert low < accuracy < high
    expected = 2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 2000)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_covers_the_truth_about_95_times_of_100():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        correct = (rng.random(300) < 0.8).astype(int)
        low, high = classification_intervals(
            np.ones(300, int), correct, class_names=NAMES, samples=300, seed=trial
        )["accuracy"]
        hits += low <= 0.8 <= high
    assert 180 <= hits <= 199


def test_ten_thousand_rows_take_less_than_a_second():
    labels, predictions = case(10_000, classes=20)
    scores = np.full((10_000, 20), 0.01)
    scores[np.arange(10_000), predictions] = 0.81
    names = [str(i) for i in range(20)]
    started = time.process_time()
    found = classification_intervals(labels, predictions, scores, class_names=names)
    assert time.process_time() - started < 2  # 0.2 s alone; two cores are shared
    assert set(found) >= {"accuracy", "f1_macro", "matthews", "loss"}
    assert "calibration_error" not in found


def test_seeded():
    labels, predictions = case(100)
    options = {"class_names": NAMES}
    one = classification_intervals(labels, predictions, seed=1, **options)
    assert one == classification_intervals(labels, predictions, seed=1, **options)
    assert one != classification_intervals(labels, predictions, seed=2, **options)


def test_one_row_and_all_right():
    for labels in ([0], [0, 1, 2]):
        found = classification_intervals(labels, labels, class_names=NAMES)
        assert found["accuracy"] == (1, 1)


def test_bootstrap_of_arrays():
    values = np.random.default_rng(0).normal(5, 2, (400, 2))
    low, high = intervals.bootstrap(lambda x: x.mean(0), [values])
    for k in range(2):
        half = 1.96 * values[:, k].std() / 20
        assert high[k] - low[k] == pytest.approx(2 * half, rel=0.1)


def test_compare_same_systems():
    labels, predictions = case(200)
    found = compare(labels, predictions, predictions, class_names=NAMES, samples=200)
    assert found["accuracy"]["difference"] == 0
    assert found["accuracy"]["p_value"] == 1
    assert found["f1_macro"]["interval"] == (0, 0)


def test_compare_finds_a_difference_and_its_sign():
    labels, good = case(500, right=0.9)
    _, bad = case(500, right=0.6)  # the same labels: the same seed draws them first
    found = compare(labels, bad, good, class_names=NAMES, samples=2000)
    change = (good == labels).mean() - (bad == labels).mean()
    for name in ("accuracy", "f1_macro", "matthews"):
        low, high = found[name]["interval"]
        assert 0 < low < found[name]["difference"] < high
        assert found[name]["p_value"] < 0.01
    assert found["accuracy"]["difference"] == pytest.approx(change)
    back = compare(labels, good, bad, class_names=NAMES, samples=200)
    assert back["accuracy"]["difference"] == pytest.approx(-change)


def test_p_value_agrees_with_swapping_rows_one_by_one():
    labels, first = case(120, right=0.7, seed=3)
    second = first.copy()
    rng = np.random.default_rng(0)
    changed = rng.permutation(120)[:40]
    second[changed] = np.where(rng.random(40) < 0.65, labels[changed], 0)
    found = compare(labels, first, second, class_names=NAMES)["f1_macro"]

    def difference(one, two):
        return np.subtract(*(f1_score(labels, p, average="macro") for p in (two, one)))

    observed, extreme = difference(first, second), 0
    for _ in range(800):
        swap = rng.random(120) < 0.5
        mixed = np.where(swap, second, first), np.where(swap, first, second)
        extreme += abs(difference(*mixed)) >= abs(observed) - 1e-12
    assert found["difference"] == pytest.approx(observed)
    assert found["p_value"] == pytest.approx((extreme + 1) / 801, abs=0.05)


def test_p_values_are_uniform_when_nothing_differs():
    below = 0
    for seed in range(100):
        labels, first = case(150, right=0.7, seed=seed)
        rng = np.random.default_rng(1000 + seed)
        noise = rng.integers(0, 3, 150)
        second = np.where(rng.random(150) < 0.7, labels, noise)
        found = compare(
            labels, first, second, class_names=NAMES, samples=200, seed=seed
        )
        below += found["f1_macro"]["p_value"] < 0.1
    assert below <= 20


def test_row_metrics_equal_those_of_the_rows_themselves():
    """Drawing a row twice is the same as writing it twice."""
    from tfllm.evaluation.classification import multilabel_metrics, regression_metrics
    from tfllm.evaluation.intervals import row_intervals, row_metrics

    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    truth, chosen = rng.random((2, 40, 3)) < 0.4
    told, answers = (
        [[n for n, x in zip(names, row, strict=True) if x] for row in rows]
        for rows in (truth, chosen)
    )
    rows = rng.integers(40, size=40)
    counts = np.bincount(rows, minlength=40)[None].astype(float)
    found = row_metrics("multi_label", told, answers, names)(counts)
    wanted = multilabel_metrics(
        truth[rows], chosen[rows].astype(float), class_names=names
    )
    assert {k: v[0] for k, v in found.items()} == pytest.approx(wanted)
    numbers, guesses = rng.normal(size=(2, 40))
    measure = row_metrics("regression", numbers, guesses, [])
    wanted = regression_metrics(numbers[rows], guesses[rows])
    assert {k: v[0] for k, v in measure(counts).items()} == pytest.approx(wanted)
    observed, bounds = row_intervals(measure, 40, samples=200)
    assert observed == pytest.approx(regression_metrics(numbers, guesses))
    assert all(low < observed[name] < high for name, (low, high) in bounds.items())
    constant = row_metrics("regression", numbers, np.ones(40), [])
    assert constant(np.ones((1, 40)))["pearson"] == 0


def test_two_systems_are_compared_on_the_same_drawn_rows():
    from tfllm.evaluation.intervals import compare_rows, row_metrics

    rng = np.random.default_rng(0)
    numbers = rng.normal(size=60)
    good, bad = (
        row_metrics("regression", numbers, numbers + noise * rng.normal(size=60), [])
        for noise in (0.1, 2.0)
    )
    found = compare_rows(bad, good, 60, samples=300)["pearson"]
    assert found["difference"] > 0.2 and found["p_value"] < 0.01
    same = compare_rows(good, good, 60, samples=300)["pearson"]
    assert same["difference"] == 0 and same["p_value"] == 1
