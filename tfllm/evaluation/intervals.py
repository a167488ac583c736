"""How sure a number is: bootstrap intervals, and tests of two systems.

Resampling rows with replacement draws the counts of every distinct (label, prediction)
pair from a multinomial distribution, so metrics of counts are resampled a pair, not a
row, at a time: 1,000 samples of 10,000 rows take milliseconds and are exactly the
ordinary bootstrap (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tfllm.evaluation.classification import (
    check_scores,
    count_metrics,
    encode,
    log_losses,
)

CHUNK = 4_000_000  # numbers held at once: 32 MB


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


def bootstrap_mean(values: np.ndarray, samples=1000, seed=0, level=0.95) -> tuple:
    """The percentile interval of the mean of one number a row `[N]`."""
    values = np.asarray(values, np.float64)
    rng, rows = np.random.default_rng(seed), len(values)
    means = [
        values[rng.integers(rows, size=(part, rows))].mean(1)
        for part in _parts(samples, rows)
    ]
    return _interval(np.concatenate(means), level)


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

    The calibration errors have none: sampling noise adds to them, so resampling shifts
    the whole interval upwards, often beyond the value itself.
    """
    names, (labels, predictions) = encode(class_names, labels, predictions)
    cells, counts = np.unique(
        np.stack([labels, predictions]), axis=1, return_counts=True
    )
    rng = np.random.default_rng(seed)
    draws = [
        _cell_metrics(drawn, *cells, len(names))
        for drawn in _resample(rng, counts, samples)
    ]
    values = {name: np.concatenate([d[name] for d in draws]) for name in draws[0]}
    intervals = {name: _interval(value, level) for name, value in values.items()}
    if scores is not None:
        scores = check_scores(scores, len(labels), len(class_names))
        losses = log_losses(labels, scores)
        intervals["loss"] = bootstrap_mean(losses, samples, seed, level)
    return intervals


def compare(
    labels: Sequence,
    first: Sequence,
    second: Sequence,
    *,
    class_names: Sequence[str],
    samples=5000,
    seed=0,
    level=0.95,
) -> dict[str, dict]:
    """Compares two systems' predictions of the same rows.

    Returns:
        For each metric of counts: `difference` (second minus first), `interval` (paired
        bootstrap) and `p_value` (approximate randomisation, Noreen 1989: how often
        systems that swap their answers at random differ as much); for `accuracy` also
        `mcnemar`, the exact McNemar p-value.
    """
    names, (labels, first, second) = encode(class_names, labels, first, second)
    cells = np.stack([labels, first, second])
    (label, a, b), counts = np.unique(cells, axis=1, return_counts=True)
    size, rng = len(names), np.random.default_rng(seed)

    def differences(drawn, swapped=None):
        if swapped is None:  # the answers of each system as they are
            left, right = (label, a), (label, b)
        else:  # the swapped rows stand in a second copy of every cell
            drawn = np.concatenate([drawn - swapped, swapped], axis=-1)
            twice = np.tile(label, 2)
            left, right = (twice, np.append(a, b)), (twice, np.append(b, a))
        one = _cell_metrics(drawn, *left, size)
        two = _cell_metrics(drawn, *right, size)
        return {name: two[name] - one[name] for name in one}

    observed = differences(counts)
    paired = [differences(drawn) for drawn in _resample(rng, counts, samples)]
    shuffled = [
        differences(
            np.tile(counts, (part, 1)),
            rng.binomial(counts * (a != b), 0.5, size=(part, len(counts))),
        )
        for part in _parts(samples, 2 * len(counts))
    ]
    result = {}
    for name, value in observed.items():
        null = np.abs(np.concatenate([d[name] for d in shuffled]))
        extreme = (null >= abs(value) - 1e-12).sum()
        result[name] = {
            "difference": float(value),
            "interval": _interval(np.concatenate([d[name] for d in paired]), level),
            "p_value": float((extreme + 1) / (samples + 1)),
        }
    result["accuracy"]["mcnemar"] = mcnemar(first == labels, second == labels)
    return result


def compare_means(
    first: np.ndarray, second: np.ndarray, samples=5000, seed=0, level=0.95
) -> dict:
    """As `compare`, for one number a row `[N]` of each system (a loss, a score)."""
    gaps = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    rng, null = np.random.default_rng(seed), []
    for part in _parts(samples, len(gaps)):
        signs = rng.integers(0, 2, (part, len(gaps)), dtype=np.int8) * 2 - 1
        null.append(np.abs(signs @ gaps) / len(gaps))
    extreme = (np.concatenate(null) >= abs(gaps.mean()) - 1e-12).sum()
    return {
        "difference": float(gaps.mean()),
        "interval": bootstrap_mean(gaps, samples, seed, level),
        "p_value": float((extreme + 1) / (samples + 1)),
    }


def mcnemar(first_correct: np.ndarray, second_correct: np.ndarray) -> float:
    """The exact two-sided p-value of McNemar's test (1947) on rows `[N]` of booleans.

    Only rows that one system alone gets right count: a fair coin should share them out.
    """
    from scipy.stats import binomtest

    first, second = np.asarray(first_correct, bool), np.asarray(second_correct, bool)
    only = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0


def _cell_metrics(counts, labels, predictions, size: int) -> dict[str, np.ndarray]:
    """Metrics of `counts [..., M]` rows in M cells of one label and prediction each."""
    eye = np.eye(size)
    hits = eye[labels] * (labels == predictions)[:, None]
    return count_metrics(counts @ eye[labels], counts @ eye[predictions], counts @ hits)


def _resample(rng, counts: np.ndarray, samples: int) -> Iterator[np.ndarray]:
    total = counts.sum()
    for part in _parts(samples, len(counts)):
        yield rng.multinomial(total, counts / total, size=part)


def _parts(samples: int, width: int) -> list[int]:
    size = max(1, min(samples, CHUNK // max(width, 1)))
    return [min(size, samples - start) for start in range(0, samples, size)]


def _interval(values: np.ndarray, level: float) -> tuple:
    outside = (1 - level) / 2
    low, high = np.quantile(values, [outside, 1 - outside], axis=0)
    return (low.tolist(), high.tolist()) if np.ndim(low) else (float(low), float(high))
