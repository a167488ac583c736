"""How well answers fit: exact match and F1, and the `eval/` folder of a run.

Two ways to compare, each as the data's official script does it: `squad` (Rajpurkar et
al., 2016, 2018) drops case, punctuation and English articles and counts common words;
`cmrc` (Cui et al., 2019) compares Chinese characters and words of other scripts by
their longest common run.
"""

import re
import string
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError
from tfllm.evaluation.intervals import measured
from tfllm.evaluation.report import (
    EXCERPT,
    MISTAKES,
    markdown_cell,
    markdown_table,
    measured_splits,
    results_table,
    write_evaluation,
)

STYLES = ("squad", "cmrc")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The script's list; "……" in it is two characters, and so drops none.
_MARKS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# Where the script asks NLTK's tokenizer, words may hold points and commas too.
_UNITS = re.compile(
    r"[\u4e00-\u9fa5]|[^\W\u4e00-\u9fa5]+(?:[.,'][^\W\u4e00-\u9fa5]+)*|\S"
)


@dataclass(frozen=True)
class AnswerSplit:
    """What a model answered to the questions of one split.

    Attributes:
        questions, contexts: `[N]`.
        answers: The accepted texts of each question; none: there is no answer.
        candidates: Of each question the likeliest answers, dicts of `text`, `start`,
            `end` (characters of the context) and `score`, the best first.
        predictions: The same of what was answered; no answer is `""` at -1.
        style: `squad` or `cmrc`.
        ids: Names of the questions.
        cut: Tokens of each context behind the last window.
        seconds: Wall time of the prediction.
    """

    questions: Sequence[str]
    contexts: Sequence[str]
    answers: Sequence[Sequence[str]]
    candidates: Sequence[Sequence[dict]]
    predictions: Sequence[dict]
    style: str
    ids: Sequence[str | None] = ()
    cut: Sequence[int] = ()
    seconds: float | None = None

    def take(self, rows: Sequence[int]) -> "AnswerSplit":
        """The split with these rows alone, without its seconds."""
        columns = {k: v for k, v in vars(self).items() if k not in ("style", "seconds")}
        taken = {name: [column[i] for i in rows] for name, column in columns.items()}
        return replace(self, **taken, seconds=None)

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Exact match and F1 of each row, float64 `[N]`."""
        pairs = zip(self.answers, self.predictions, strict=True)
        told = [answer_scores(a, p["text"], self.style) for a, p in pairs]
        return tuple(np.array(told, np.float64).reshape(-1, 2).T)


def normalise(text: str, style: str) -> str:
    """A text as exact match compares it."""
    if style == "cmrc":
        return text.lower().strip().translate(_MARKS)
    text = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.split())


def answer_scores(accepted: Sequence[str], text: str, style: str) -> tuple:
    """Exact match and F1 of an answer, each with the accepted text that suits best.

    No accepted text, or none but punctuation, is met by an empty answer alone.
    """
    known = [one for one in accepted if normalise(one, style)] or [""]
    exact = max(normalise(one, style) == normalise(text, style) for one in known)
    return float(exact), max(_f1(one, text, style) for one in known)


def _f1(true: str, text: str, style: str) -> float:
    if style == "cmrc":
        a, b = (_UNITS.findall(normalise(one, style)) for one in (true, text))
        common = _longest_run(a, b)
    else:
        a, b = (normalise(one, style).split() for one in (true, text))
        common = sum((Counter(a) & Counter(b)).values())
    if not (a and b):
        return float(a == b)
    return 2 * common / (len(a) + len(b))


def _longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common part without a gap."""
    before, best = [0] * (len(b) + 1), 0
    for one in a:
        row = [0]
        for place, other in enumerate(b):
            row.append(before[place] + 1 if one == other else 0)
        best, before = max(best, *row), row
    return best


def tune_threshold(margins: np.ndarray, answered: np.ndarray, silent: np.ndarray):
    """From which margin on "no answer" is better, by the sum of scores.

    Args:
        margins: How much likelier no answer is than the best one, `[N]`.
        answered, silent: A question's score with its best answer, and without, `[N]`.
    """
    order = np.argsort(margins, kind="stable")
    margins = np.asarray(margins, np.float64)[order]
    told = np.concatenate([[0], np.cumsum(answered[order])])
    rest = np.concatenate([[0], np.cumsum(silent[order][::-1])])[::-1]
    edges = np.concatenate([[margins[0] - 1], margins, [margins[-1] + 1]])
    total = told + rest
    total[1:-1][margins[1:] == margins[:-1]] = -1  # equal ones cannot be told apart
    best = int(total.argmax())
    return float(edges[best : best + 2].mean())


def answer_metrics(exact, f1, answerable) -> dict[str, float]:
    """`f1` and `exact_match` from rows `[N]`; apart too where some have no answer."""
    metrics = _apart(exact, f1, answerable)
    names = [name for name, value in metrics.items() if not np.isnan(value)]
    return {
        name: metrics[name] for name in (names[:2] if np.all(answerable) else names)
    }


def _apart(exact, f1, answerable) -> dict[str, float]:
    """All metrics; those of rows that are not there are not a number."""

    def mean(scores, chosen):
        rows = np.sum(chosen)
        return float(np.sum(scores * chosen) / rows) if rows else np.nan

    return {
        "f1": float(np.mean(f1)),
        "exact_match": float(np.mean(exact)),
        "answerable_f1": mean(f1, answerable),
        "answerable_exact_match": mean(exact, answerable),
        "no_answer_accuracy": mean(exact, 1 - answerable),
    }


def measure(split: AnswerSplit) -> dict:
    """The block of one split in results.json; `tokens_cut` were not read."""
    if not split.questions:
        raise UserError("there are no questions to be measured")
    answerable = np.array([bool(one) for one in split.answers], float)
    arrays = [*split.scores(), answerable]
    names = answer_metrics(*arrays)

    def metrics(*columns):  # a sample may have answerable rows alone
        found = _apart(*columns)
        return {name: found[name] for name in names}

    size, started = len(split.questions), time.perf_counter()
    block = measured(metrics, arrays, size, started)
    block |= {"seconds": split.seconds, "tokens_cut": int(sum(split.cut))}
    return {name: value for name, value in block.items() if value not in (None, 0)}


def write_answers_report(
    directory: str | Path,
    *,
    task: str,
    test: AnswerSplit,
    validation: AnswerSplit | None = None,
    leaked: Iterable[int] = (),
) -> dict:
    """Writes the whole `eval/` folder of answers, or nothing of it.

    Args:
        directory: The folder; one that is there is replaced when the new one is whole.
        task: Written into results.json.
        test: The test rows.
        validation: The validation rows; only their numbers are reported.
        leaked: Places of the test rows whose context stands in the training data too.

    Returns:
        What results.json holds.
    """
    results = {"task": task, "style": test.style}
    results |= measured_splits(measure, test, validation, leaked)
    report = _report(results, test)
    return write_evaluation(directory, results, prediction_rows(test), report, {})


def prediction_rows(split: AnswerSplit) -> Iterable[dict]:
    """Rows of predictions.jsonl; `label` lists the accepted texts."""
    for i, question in enumerate(split.questions):
        row = {"id": split.ids[i]} if split.ids and split.ids[i] else {}
        row |= {"question": question, "context": split.contexts[i]}
        row["label"] = list(dict.fromkeys(split.answers[i]))
        told = _rounded(split.predictions[i])
        row |= {"prediction": told.pop("text")} | told
        row["candidates"] = [_rounded(one) for one in split.candidates[i]]
        if split.cut and split.cut[i]:
            row["tokens_cut"] = int(split.cut[i])
        yield row


def _rounded(answer: dict) -> dict:
    return answer | {"score": float(f"{answer['score']:.6g}")}


def _report(results: dict, test: AnswerSplit) -> str:
    block, (exact, f1) = results["test"], test.scores()
    low, high = block["intervals"]["f1"]
    parts = [
        "# Evaluation",
        f"{block['samples']:,} test questions. F1 **{block['metrics']['f1']:.4f}** "
        f"(95 % interval {low:.4f} – {high:.4f}).",
        markdown_table(*results_table(results)),
        f"Texts are compared as the script of {test.style.upper()} does. Intervals are "
        "bootstrap percentiles over the questions.",
    ]
    if cut := block.get("tokens_cut"):
        parts.append(f"**{cut:,} tokens were not read**: see --max_windows.")
    rows = []
    wrong = [int(i) for i in np.argsort(f1, kind="stable") if not exact[i]]
    for i in wrong[:MISTAKES]:
        told, context = test.predictions[i], test.contexts[i]
        begin = max(0, told["start"] - EXCERPT // 2)
        cells = [test.questions[i], " / ".join(dict.fromkeys(test.answers[i])) or "–"]
        cells += [told["text"] or "–", context[begin : begin + EXCERPT]]
        cells = [markdown_cell(cell, EXCERPT) for cell in cells]
        rows.append([f"{f1[i]:.2f}", *cells, f"{told['score']:.3f}"])
    if rows:
        head = ["F1", "question", "accepted", "answered", "around it", "score"]
        parts += ["## Mistakes", f"{len(rows):,} of {len(wrong):,} that do not match."]
        parts.append(markdown_table(head, rows))
    return "\n\n".join(parts) + "\n"
