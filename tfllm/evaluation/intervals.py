"""How sure a number is: bootstrap intervals, and a test of two systems.

Resampling rows with replacement draws the counts of every distinct (label, prediction)
pair from a multinomial distribution, so metrics of counts are resampled a pair, not a
row, at a time: 1,000 samples of 10,000 rows take milliseconds and are exactly the
ordinary bootstrap (Efron and Tibshirani 1993, chapter 13).
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from tfllm.evaluation.classification import (
    average_metrics,
    check_scores,
    count_metrics,
    encode,
    log_losses,
    multilabel_indicators,
    regression_metrics,
)

DRAWS = 50  # of many rows, resampled at once


def bootstrap(
    metric_fn: Callable, arrays: Sequence, samples=1000, seed=0, level=0.95
) -> tuple:
    """The percentile interval of any metric.

    Args:
        metric_fn: Called with the resampled arrays, returns a number or an array.
        arrays: Arrays whose first dimension is the rows, resampled together.
        samples: Number of resamples.
        seed: Of the random rows.
        level: Share of the resamples inside the interval.

    Returns:
        `(low, high)`, each of the form that `metric_fn` returns.
    """
    arrays = [np.asarray(array) for array in arrays]
    rng, rows = np.random.default_rng(seed), len(arrays[0])
    draws = (rng.integers(rows, size=rows) for _ in range(samples))
    values = [metric_fn(*(array[draw] for array in arrays)) for draw in draws]
    return _interval(np.array(values), level)


def measured(metrics_fn: Callable, arrays: Sequence, samples: int, started: float):
    """The block of a split in results.json.

    Args:
        metrics_fn: Called with the arrays, returns numbers by name.
        arrays: See `bootstrap`.
        samples: What is told as the number of rows.
        started: When measuring began, by `time.perf_counter`.
    """
    metrics = metrics_fn(*arrays)
    low, high = bootstrap(lambda *drawn: [*metrics_fn(*drawn).values()], arrays)
    return {
        "samples": samples,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "intervals": {
            name: [float(low[i]), float(high[i])] for i, name in enumerate(metrics)
        },
        "seconds": time.perf_counter() - started,
    }


def classification_intervals(
    labels: Sequence,
    predictions: Sequence,
    scores: np.ndarray | None = None,
    *,
    class_names: Sequence[str],
    samples=1000,
    seed=0,
    level=0.95,
) -> dict[str, tuple[float, float]]:
    """Intervals of what `classification_metrics` returns, from the same arguments.

    The calibration error has none: sampling noise adds to it, so resampling shifts
    the whole interval upwards, often beyond the value itself.
    """
    names, ids = encode(class_names, labels, predictions)
    cells, counts = np.unique(np.stack(ids), axis=1, return_counts=True)
    values = _cell_metrics(_resample(counts, samples, seed), *cells, len(names))
    intervals = {name: _interval(value, level) for name, value in values.items()}
    if scores is not None:
        scores = check_scores(scores, len(labels), len(class_names))
        losses = log_losses(ids[0], scores)
        intervals["loss"] = bootstrap(np.mean, [losses], samples, seed, level)
    return intervals


def compare(
    labels: Sequence,
    first: Sequence,
    second: Sequence,
    *,
    class_names: Sequence[str],
    samples=2000,
    seed=0,
    level=0.95,
) -> dict[str, dict]:
    """Compares two systems' predictions of the same rows by a paired bootstrap.

    Returns:
        For each metric of counts: `difference` (second minus first), its `interval`,
        and `p_value`: how often the resampled difference lies as far from the one
        observed as that lies from 0 (two-sided; Riezler and Maxwell 2005).
    """
    names, ids = encode(class_names, labels, first, second)
    cells, counts = np.unique(np.stack(ids), axis=1, return_counts=True)

    def differences(counts) -> dict[str, np.ndarray]:
        one, two = (
            _cell_metrics(counts, cells[0], answers, len(names))
            for answers in cells[1:]
        )
        return {name: two[name] - one[name] for name in one}

    observed = differences(counts)
    return _verdicts(observed, differences(_resample(counts, samples, seed)), level)


def _verdicts(observed: dict, drawn: dict, level: float) -> dict[str, dict]:
    result = {}
    for name, value in observed.items():
        far = np.abs(drawn[name] - value) >= abs(value) - 1e-12
        result[name] = {
            "difference": float(value),
            "interval": _interval(drawn[name], level),
            "p_value": float((far.sum() + 1) / (len(far) + 1)),
        }
    return result


def row_metrics(
    problem: str, labels: Sequence, predictions: Sequence, class_names: Sequence[str]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Metrics of several labels a text, or of numbers, over rows drawn anew.

    Args:
        problem: `multi_label` or `regression`.
        labels: Sets of names `[N]`, or numbers `[N]`.
        predictions: The same of a model.
        class_names: The classes it knows.

    Returns:
        A function of how often each row was drawn, `[S, N]`, that gives every metric
        as `[S]`. A correlation with a constant is 0.
    """
    if problem == "regression":
        columns = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)

        def measure(counts) -> dict[str, np.ndarray]:
            rows = np.arange(len(labels))
            drawn = (np.repeat(rows, count) for count in counts.astype(int))
            found = [regression_metrics(*(c[i] for c in columns)) for i in drawn]
            return {n: np.nan_to_num([one[n] for one in found]) for n in found[0]}

        return measure
    _, (truth, chosen) = multilabel_indicators(class_names, labels, predictions)
    exact = (truth == chosen).all(1)

    def measure(counts) -> dict[str, np.ndarray]:
        sums = (counts @ column for column in (truth, chosen, truth * chosen))
        found = average_metrics(*sums)
        order = ("f1_micro", "f1_macro", "precision", "recall")
        accuracy = counts @ exact / counts.sum(-1)
        return {name: found[name] for name in order} | {"accuracy": accuracy}

    return measure


def row_intervals(
    measure: Callable, size: int, samples=1000, seed=0, level=0.95
) -> tuple[dict[str, float], dict[str, tuple]]:
    """The metrics of `row_metrics`' function and their percentile intervals."""
    observed = {name: float(v[0]) for name, v in measure(np.ones((1, size))).items()}
    drawn = _draw_rows(measure, size, samples, seed)
    return observed, {name: _interval(value, level) for name, value in drawn.items()}


def compare_rows(
    first: Callable, second: Callable, size: int, samples=1000, seed=0, level=0.95
) -> dict[str, dict]:
    """`compare` of two functions of `row_metrics` over the same rows."""

    def differences(counts) -> dict[str, np.ndarray]:
        one, two = first(counts), second(counts)
        return {name: two[name] - one[name] for name in one}

    observed = {k: v[0] for k, v in differences(np.ones((1, size))).items()}
    return _verdicts(observed, _draw_rows(differences, size, samples, seed), level)


def _draw_rows(measure: Callable, size: int, samples: int, seed: int) -> dict:
    rng, parts = np.random.default_rng(seed), []
    for begin in range(0, samples, DRAWS):
        part = min(DRAWS, samples - begin)
        share = np.full(size, 1 / size)
        parts.append(measure(rng.multinomial(size, share, part).astype(float)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _cell_metrics(counts, labels, predictions, size: int) -> dict[str, np.ndarray]:
    """Metrics of `counts [..., M]` rows in M cells of one label and prediction each."""
    eye = np.eye(size)
    hits = eye[labels] * (labels == predictions)[:, None]
    return count_metrics(counts @ eye[labels], counts @ eye[predictions], counts @ hits)


def _resample(counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    total = counts.sum()
    return np.random.default_rng(seed).multinomial(total, counts / total, size=samples)


def _interval(values: np.ndarray, level: float) -> tuple:
    outside = (1 - level) / 2
    # A sample may have no row of the kind that a metric speaks of.
    low, high = np.nanquantile(values, [outside, 1 - outside], axis=0)
    return (low.tolist(), high.tolist())
