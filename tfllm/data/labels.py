"""What the labels of a data set are: names, sets of names, or numbers."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tfllm.core.console import note
from tfllm.data.readers import Records, check_bad_rows

PROBLEMS = ("single_label", "multi_label", "regression")
FEW = 20  # so many different whole numbers are names of classes
_TOLD = {
    "multi_label": "several labels a text",
    "regression": "numbers; --problem single_label would take them as names",
}


def settle_labels(splits: dict[str, Records], problem: str) -> dict[str, Records]:
    """Brings the labels of all splits to one kind.

    Args:
        splits: name → records, `train` among them.
        problem: One of `PROBLEMS`, or `auto`: see `guess_problem`.

    Returns:
        Records whose labels are all str, all sorted lists of str, or all float.

    Raises:
        UserError: More than a few rows of a split have no such label.
    """
    if problem == "auto":
        problem = guess_problem([row["label"] for row in splits["train"].rows])
        if problem in _TOLD:
            note(f"labels: {_TOLD[problem]}")
    return {name: labels_as(problem, records) for name, records in splits.items()}


def guess_problem(labels: Sequence) -> str:
    """Which of `PROBLEMS` the labels speak of.

    Lists are several labels. Numbers are numbers when one has a fraction, or when there
    are more than 20 different ones that do not count the classes from 0 or 1.
    """
    if any(isinstance(label, list) for label in labels):
        return "multi_label"
    numbers = [x for x in map(_number, labels) if x is not None]
    if len(numbers) < 0.95 * len(labels) or not numbers:
        return "single_label"
    values = set(numbers)
    counted = [set(range(first, first + len(values))) for first in (0, 1)]
    few = len(values) <= FEW or values in counted
    whole = all(value.is_integer() for value in values)
    return "single_label" if few and whole else "regression"


def labels_as(problem: str, records: Records) -> Records:
    """Records with labels of one kind; rows that have none of it are bad rows.

    Raises:
        UserError: There are more than a few of these.
    """
    rows, bad = [], list(records.bad)
    for row in records.rows:
        try:
            rows.append(row | {"label": _LABELS[problem](row["label"])})
        except ValueError as error:
            bad.append((row.get("file", ""), row.get("line", 0), str(error)))
    records = replace(records, rows=rows, bad=bad)
    check_bad_rows(records)
    return records


def problem_of(rows: Sequence[dict]) -> str:
    """Which of `PROBLEMS` rows are of that `settle_labels` returned."""
    label = rows[0]["label"] if rows else ""
    kinds = {list: "multi_label", float: "regression"}
    return kinds.get(type(label), "single_label")


def class_names(rows: Iterable[dict]) -> list[str]:
    """The classes in order; none for numbers."""
    labels = [row["label"] for row in rows]
    named = [[x] if isinstance(x, str) else x for x in labels if type(x) is not float]
    return sorted({name for names in named for name in names})


def _number(label) -> float | None:
    """Numbers and texts that are one; True, NaN and 1_000 are none."""
    try:
        value = float(label) if isinstance(label, str | int | float) else math.nan
    except ValueError:
        return None
    finite = math.isfinite(value) and "_" not in str(label)
    return value if finite and not isinstance(label, bool) else None


def _regression(label) -> float:
    value = _number(label)
    if value is None:
        raise ValueError(f"the label {label!r} is not a number")
    return value


def _single_label(label) -> str:
    if isinstance(label, list):
        if len(label) != 1:
            raise ValueError(f"{len(label)} labels instead of one")
        label = label[0]
    return _class_name(label) if isinstance(label, float) else label


def _class_name(number: float) -> str:
    """All digits: two numbers are never one class."""
    return str(int(number)) if number.is_integer() else repr(number)


def _multi_label(label) -> list[str]:
    """In a table the names stand between commas, semicolons or bars."""
    if isinstance(label, str):
        label = re.split(r"[,;|]", label)
    elif isinstance(label, float):
        label = [_class_name(label)]
    return sorted({name.strip() for name in label} - {""})


_LABELS = {
    "single_label": _single_label,
    "multi_label": _multi_label,
    "regression": _regression,
}
