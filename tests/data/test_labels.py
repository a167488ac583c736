"""What labels are is told by the data, or by the user."""

import pytest

from tfllm.core.errors import UserError
from tfllm.data.labels import class_names, guess_problem, labels_as, problem_of
from tfllm.data.readers import Records


def records(*labels):
    rows = [{"text": f"t{i}", "label": x} for i, x in enumerate(labels)]
    return Records([row | {"file": "a.tsv", "line": i} for i, row in enumerate(rows)])


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["good", "bad"] * 20, "single_label"),
        (["0", "1", "2"] * 20, "single_label"),
        ([float(i % 5) for i in range(60)], "single_label"),
        (list(map(str, range(77))) * 3, "single_label"),  # ids of classes
        (list(map(str, range(1, 151))) * 2, "single_label"),
        ([str(3 * i) for i in range(40)] * 3, "regression"),
        (["0", "0.5", "1"] * 20, "regression"),
        (["-1e-3", "2"] * 20, "regression"),
        (["2.5"] * 99 + ["n/a"], "regression"),
        (["2.5", "n/a"] * 20, "single_label"),
        (["nan", "1_000", "inf"] * 20, "single_label"),
        ([["a"], [], ["a", "b"]], "multi_label"),
        (["a", ["a", "b"]], "multi_label"),
        ([], "single_label"),
    ],
)
def test_the_problem_is_guessed(labels, problem):
    assert guess_problem(labels) == problem


def test_labels_are_brought_to_one_kind():
    def made(problem, *labels):
        found = labels_as(problem, records(*labels))
        assert problem_of(found.rows) == problem
        return [row["label"] for row in found.rows], class_names(found.rows)

    assert made("regression", "1.5", 2.0, "-3") == ([1.5, 2.0, -3.0], [])
    assert made("single_label", "a", ["b"], 2.0) == (["a", "b", "2"], ["2", "a", "b"])
    several = made("multi_label", ["b", "a", "b"], [], "c; a|b, ", 1.0)
    assert several == ([["a", "b"], [], ["a", "b", "c"], ["1"]], ["1", "a", "b", "c"])


def test_long_numbers_stay_different_classes():
    for problem in ("single_label", "multi_label"):
        found = labels_as(problem, records(1000001.0, 1000002.0, 0.12345678)).rows
        assert class_names(found) == ["0.12345678", "1000001", "1000002"]


def test_rows_with_another_kind_of_label_are_bad_rows():
    found = labels_as("regression", records(*["1.5"] * 50, "n/a"))
    assert len(found) == 50
    assert found.bad == [("a.tsv", 50, "the label 'n/a' is not a number")]
    with pytest.raises(UserError, match=r"a.tsv:0: the label 'x' is not a number"):
        labels_as("regression", records(*"xyzxyz", "1.5"))
    with pytest.raises(UserError, match="2 labels instead of one"):
        labels_as("single_label", records(*[["a", "b"]] * 9))
