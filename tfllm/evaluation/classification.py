"""Metrics of classifiers and regressors, from plain labels, predictions and scores.

Everything that depends on counts alone is computed from three vectors a class (rows
that have it, rows predicted so, rows where both agree), over any leading dimensions:
the bootstrap of `intervals` then costs one call instead of a thousand.
Conventions are scikit-learn's: a ratio with nothing below is 0, and averages over
classes ("macro") run over the classes that occur as a label or as a prediction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tfllm.core.errors import UserError

BINS = 15  # of confidence


def encode(
    class_names: Sequence[str], *columns: Sequence
) -> tuple[list[str], list[np.ndarray]]:
    """Turns columns of labels into class ids.

    Args:
        class_names: The classes the model knows, in the order of its outputs.
        columns: Sequences `[N]` of names, or of integer ids into `class_names`.

    Returns:
        The names, with labels that the model does not know appended in sorted order,
        and one int64 array `[N]` a column.

    Raises:
        ValueError: columns of unequal length, or an id outside `class_names`.
        UserError: no rows at all.
    """
    if len({len(column) for column in columns}) > 1:
        sizes = ", ".join(str(len(column)) for column in columns)
        raise ValueError(f"labels and predictions differ in length: {sizes}")
    if not len(columns[0]):
        raise UserError("There are no rows to evaluate.", fix="Check the test file.")
    names, told = list(class_names), []
    for column in columns:
        ids = np.asarray(column)
        if ids.dtype.kind in "iu":
            if ids.min() < 0 or ids.max() >= len(names):
                raise ValueError(f"class ids must lie in [0, {len(names)})")
            column = [names[i] for i in ids]
        told.append(column)
    names += sorted(set().union(*told) - set(names))
    index = {name: i for i, name in enumerate(names)}
    return names, [np.array([index[x] for x in column], np.int64) for column in told]


def count_pairs(labels: np.ndarray, predictions: np.ndarray, size: int) -> np.ndarray:
    """The confusion matrix `[size, size]` of two arrays of class ids."""
    pairs = np.bincount(labels * size + predictions, minlength=size * size)
    return pairs.reshape(size, size)


def count_metrics(actual, predicted, correct) -> dict[str, np.ndarray]:
    """Single-label metrics from counts a class, each `[..., K]`; every value `[...]`.

    `matthews` is the multi-class form (Gorodkin 2004), the same as Matthews' for two.
    """
    actual, predicted, correct = _floats(actual, predicted, correct)
    total, hits = actual.sum(-1), correct.sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (actual**2).sum(-1))
    excess = hits * total - (actual * predicted).sum(-1)
    return {
        "accuracy": _ratio(hits, total),
        **average_metrics(actual, predicted, correct),
        "matthews": _ratio(excess, np.sqrt(np.maximum(spread, 0))),
    }


def average_metrics(actual, predicted, correct) -> dict[str, np.ndarray]:
    """Macro precision, recall and F1, and micro F1, from counts a class `[..., K]`."""
    actual, predicted, correct = _floats(actual, predicted, correct)
    either = actual + predicted
    classes = np.maximum((either > 0).sum(-1), 1)
    return {
        "precision": _ratio(correct, predicted).sum(-1) / classes,
        "recall": _ratio(correct, actual).sum(-1) / classes,
        "f1_macro": _ratio(2 * correct, either).sum(-1) / classes,
        "f1_micro": _ratio(2 * correct.sum(-1), either.sum(-1)),
    }


def classification_metrics(
    labels: Sequence,
    predictions: Sequence,
    scores: np.ndarray | None = None,
    *,
    class_names: Sequence[str],
) -> dict[str, float]:
    """All metrics of a single-label classifier.

    Args:
        labels: True labels `[N]`, names or ids. A name outside `class_names` (a label
            that training never saw) counts as an error.
        predictions: Predicted labels `[N]`, names or ids.
        scores: Probabilities `[N, K]` in the order of `class_names`, or None.
        class_names: The K classes of the model.

    Returns:
        `accuracy`, `precision`, `recall`, `f1_macro`, `f1_micro`, `matthews`; with
        scores also `loss` (nats) and `calibration_error`.

    Raises:
        UserError: no rows, or scores that are not numbers.
        ValueError: shapes that do not fit.
    """
    names, (labels, predictions) = encode(class_names, labels, predictions)
    matrix = count_pairs(labels, predictions, len(names))
    counts = count_metrics(matrix.sum(1), matrix.sum(0), matrix.diagonal())
    metrics = {name: float(value) for name, value in counts.items()}
    if scores is not None:
        scores = check_scores(scores, len(labels), len(class_names))
        if predictions.max() >= len(class_names):
            raise ValueError("a prediction with scores must be one of class_names")
        metrics["loss"] = float(log_losses(labels, scores).mean())
        confidence = scores[np.arange(len(labels)), predictions]
        found = calibration(confidence, labels == predictions)
        metrics["calibration_error"] = found.error
    return metrics


def per_class(matrix: np.ndarray, names: Sequence[str]) -> list[dict]:
    """A row a class: `label precision recall f1 support predicted`, from counts."""
    return class_rows(names, matrix.sum(1), matrix.sum(0), matrix.diagonal())


def class_rows(names: Sequence[str], actual, predicted, correct) -> list[dict]:
    """The same from counts a class `[K]`."""
    columns = {
        "label": names,
        "precision": _ratio(correct, predicted).tolist(),
        "recall": _ratio(correct, actual).tolist(),
        "f1": _ratio(2 * correct, actual + predicted).tolist(),
        "support": actual.tolist(),
        "predicted": predicted.tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def top_confusions(matrix: np.ndarray, names: Sequence[str], limit=10) -> list[dict]:
    """The commonest errors: `label prediction count share` (of the label's rows)."""
    errors = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    return [
        {
            "label": names[i],
            "prediction": names[j],
            "count": int(errors[i, j]),
            "share": float(errors[i, j] / matrix[i].sum()),
        }
        for i, j in np.transpose(np.unravel_index(order, errors.shape))
        if errors[i, j]
    ]


def check_scores(scores, num_rows: int, num_classes: int) -> np.ndarray:
    """Returns the probabilities `[N, K]`, or says what is wrong with them."""
    scores = np.asarray(scores)
    if scores.shape != (num_rows, num_classes):
        raise ValueError(
            f"scores must be [{num_rows}, {num_classes}]. Received: {scores.shape}"
        )
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(1).sum())
        raise UserError(
            f"The scores of {bad:,} of {num_rows:,} rows are not finite numbers",
            fix="The model diverged: lower the learning rate or clip the gradient.",
        )
    if scores.min() < 0 or np.abs(scores.sum(1, dtype=np.float64) - 1).max() > 1e-3:
        raise ValueError("scores must be probabilities: each row sums to 1")
    return scores


def log_losses(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """-ln p(label) of each row `[N]`, in nats.

    Probabilities are clipped at float32's precision, 1.2e-7 (as scikit-learn does with
    float32); a label that the model does not know has probability 0 before that.
    """
    known = labels < scores.shape[1]
    likely = np.zeros(len(labels))
    likely[known] = scores[known, labels[known]]
    return -np.log(np.clip(likely, np.finfo(np.float32).eps, 1))


@dataclass(frozen=True)
class Calibration:
    """Rows, mean confidence and accuracy of each bin that holds rows; and the error."""

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> Calibration:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017).

    The mean distance of accuracy from confidence over bins of equal width, (0, 1/15],
    (1/15, 2/15], …

    Args:
        confidence: Probability of the predicted class `[N]`.
        correct: Whether the prediction is right `[N]`.
        bins: Number of bins.
    """
    confidence = np.asarray(confidence, np.float64)
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence, side="left")
    counts = np.bincount(place, minlength=bins)
    used = counts > 0
    means = [
        np.bincount(place, values, bins)[used] / counts[used]
        for values in (confidence, correct)
    ]
    gaps = np.abs(means[0] - means[1])
    error = float((gaps * counts[used]).sum() / len(confidence))
    return Calibration(counts[used], *means, error)


def multilabel_metrics(
    labels: Sequence[Iterable[str]] | np.ndarray,
    scores: np.ndarray,
    thresholds: float | np.ndarray = 0.5,
    *,
    class_names: Sequence[str],
) -> dict[str, float]:
    """Metrics of a multi-label classifier; `accuracy` counts wholly right rows.

    Args:
        labels: The labels of each row, or a 0/1 matrix `[N, K]`.
        scores: A probability a class `[N, K]`, not normalised over classes.
        thresholds: A class is predicted at or above it: one for all, or `[K]`.
        class_names: The K classes; other labels count as missed everywhere.
    """
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise UserError("Some scores are not finite numbers: the model diverged.")
    names = list(class_names)
    truth = labels
    if not isinstance(labels, np.ndarray):
        sets = [set(row) for row in labels]
        names += sorted(set().union(*sets) - set(names))
        truth = np.array([[n in row for n in names] for row in sets], bool)
    truth = truth.astype(bool).reshape(len(scores), len(names))
    chosen = np.zeros_like(truth)
    chosen[:, : scores.shape[1]] = scores >= thresholds
    metrics = {
        "accuracy": (truth == chosen).all(1).mean(),
        **average_metrics(truth.sum(0), chosen.sum(0), (truth & chosen).sum(0)),
    }
    return {name: float(value) for name, value in metrics.items()}


def tune_thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The threshold of each class `[K]` with the best F1 on validation rows.

    Args:
        labels: 0/1 values `[N, K]`.
        scores: Probabilities `[N, K]`.

    Returns:
        Halfway between two of the class's own scores, so that rounding changes no
        answer on these rows; 0.5 for a class without a positive row.
    """
    from sklearn.metrics import precision_recall_curve

    thresholds = np.full(scores.shape[1], 0.5)
    for k in np.flatnonzero(np.asarray(labels).any(0)):
        precision, recall, cuts = precision_recall_curve(labels[:, k], scores[:, k])
        f1 = _ratio(2 * precision * recall, precision + recall)
        best = f1[:-1].argmax()  # the last point has no threshold
        thresholds[k] = (cuts[best] + (cuts[best - 1] if best else 0.0)) / 2
    return thresholds


def multilabel_indicators(
    class_names: Sequence[str], *columns: Sequence[Iterable[str]]
) -> tuple[list[str], list[np.ndarray]]:
    """Sets of labels as 0/1 values.

    Returns:
        The names, labels that the model does not know appended in sorted order, and a
        float64 array `[N, names]` a column.
    """
    told = [[set(row) for row in column] for column in columns]
    names = list(class_names)
    names += sorted(set().union(*(row for rows in told for row in rows)) - set(names))
    return names, [
        np.array([[name in row for name in names] for row in rows], np.float64)
        for rows in told
    ]


def regression_metrics(labels: Sequence[float], scores: Sequence[float]) -> dict:
    """`pearson`, `spearman` (ties share their mean rank) and `mse`.

    A correlation is NaN when either side is constant or has a single row.
    """
    from scipy.stats import rankdata

    labels, scores = _floats(labels, scores)
    if not np.isfinite(scores).all():
        raise UserError("Some scores are not finite numbers: the model diverged.")
    return {
        "pearson": _correlation(labels, scores),
        "spearman": _correlation(rankdata(labels), rankdata(scores)),
        "mse": float(np.mean((labels - scores) ** 2)),
    }


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 0 else float("nan")


def _floats(*arrays) -> list[np.ndarray]:
    return [np.asarray(array, np.float64) for array in arrays]


def _ratio(above, below) -> np.ndarray:
    above, below = _floats(above, below)
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)
