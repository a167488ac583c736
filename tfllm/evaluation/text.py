"""Texts against reference texts: BLEU, chrF, ROUGE, exact match; and their report.

BLEU and chrF are sacreBLEU's (Post, 2018), with its signatures; ROUGE is Google's
`rouge-score` without stemming, F1, whose tokens are words and, where a language is
written without spaces, single characters. A number is a function of sums over rows, so
rows can be drawn anew without scoring them again.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError
from tfllm.evaluation.intervals import compare_rows, row_intervals
from tfllm.evaluation.report import (
    comparison,
    markdown_cell,
    markdown_table,
    results_table,
    write_evaluation,
)

METRICS = {
    "translation": ("bleu", "chrf", "exact_match"),
    "summarization": ("rougeL", "rouge1", "rouge2", "exact_match"),
}
TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # sacreBLEU's
_TOKENS = re.compile(r"[^\W\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff]+|\w")
_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")
EXTREMES, EXCERPT = 10, 300  # rows shown at each end, and of how many characters


@dataclass(frozen=True)
class TextScores:
    """Scores of predictions, as functions of how often each row was drawn.

    Attributes:
        stats: What each row adds `[N, K]`, by metric.
        finish: The metric from the rows' sum `[K]`.
        signatures: How it was computed.
    """

    stats: Mapping[str, np.ndarray]
    finish: Mapping[str, Callable]
    signatures: Mapping[str, str]

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric `[S]` of rows drawn so often, `[S, N]`."""
        return {
            name: np.array([self.finish[name](sums) for sums in counts @ stats])
            for name, stats in self.stats.items()
        }

    def of_rows(self) -> np.ndarray:
        """A number for each row, by which rows are ordered: chrF, or the first."""
        name = "chrf" if "chrf" in self.stats else next(iter(self.stats))
        return np.array([self.finish[name](row) for row in self.stats[name]])


def text_scores(
    metrics: Sequence[str],
    references: Sequence[str],
    predictions: Sequence[str],
    tokenize: str = "13a",
) -> TextScores:
    """Scores predictions against one reference each.

    Args:
        metrics: Of `bleu`, `chrf`, `rouge1`, `rouge2`, `rougeL`, `exact_match`.
        references: Texts `[N]`.
        predictions: Texts `[N]`.
        tokenize: How sacreBLEU cuts texts for BLEU: one of `TOKENIZERS`; `zh` for
            Chinese, `none` where the texts are cut at spaces already.

    Raises:
        UserError: The library that scores is not installed.
    """
    stats, finish, signatures = {}, {}, {}
    try:
        for name in metrics:
            if name in ("bleu", "chrf"):
                from sacrebleu.metrics import BLEU, CHRF

                bleu = name == "bleu"
                metric = BLEU(tokenize=tokenize, force=True) if bleu else CHRF()
                rows = metric._extract_corpus_statistics(predictions, [references])
                finish[name] = functools.partial(_finish, metric)
                signatures[name] = metric.get_signature().format()
            elif name.startswith("rouge"):
                from rouge_score.rouge_scorer import RougeScorer

                scorer = RougeScorer([name], tokenizer=_Tokens())
                pairs = zip(references, predictions, strict=True)
                found = (scorer.score(*pair)[name].fmeasure for pair in pairs)
                rows = [[value, 1.0] for value in found]
                finish[name] = _mean
                signatures[name] = "rouge-score, F1, no stemming, words or characters"
            else:
                pairs = zip(references, predictions, strict=True)
                rows = [[a.strip() == b.strip(), 1.0] for a, b in pairs]
                finish[name] = _mean
            stats[name] = np.asarray(rows, np.float64)
    except ImportError as error:
        fix = "pip install sacrebleu rouge-score"
        raise UserError(f"scoring texts needs {error.name}", fix=fix) from None
    return TextScores(stats, finish, signatures)


def _finish(metric, sums) -> float:
    return metric._compute_score_from_stats(sums.tolist()).score


def _mean(sums) -> float:
    return sums[0] / max(sums[1], 1.0)


class _Tokens:
    def tokenize(self, text: str) -> list[str]:
        return _TOKENS.findall(text.lower())


def lead_sentence(text: str) -> str:
    """The first sentence of a text."""
    return next((s.strip() for s in _ENDS.split(text.strip()) if s.strip()), "")


@dataclass(frozen=True)
class TextSplit:
    """What a model made of the sources of one split.

    Attributes:
        texts: Sources `[N]`.
        targets: References `[N]`.
        predictions: Texts `[N]`.
        scores: How sure the model is, `[N]`, or None.
        seconds: Wall time.
    """

    texts: Sequence[str]
    targets: Sequence[str]
    predictions: Sequence[str]
    scores: Sequence[float] | None = None
    seconds: float | None = None

    def measure(self, metrics: Sequence[str], tokenize: str) -> dict:
        """The block of a split in results.json."""
        found = text_scores(metrics, self.targets, self.predictions, tokenize)
        numbers, intervals = row_intervals(found, len(self.texts), samples=500)
        block = {"samples": len(self.texts), "metrics": numbers, "intervals": intervals}
        block |= {"seconds": self.seconds, "signatures": dict(found.signatures)}
        return {key: value for key, value in block.items() if value is not None}


def write_text_report(
    directory: str | Path,
    *,
    task: str,
    test: TextSplit,
    validation: TextSplit | None = None,
    tokenize: str = "13a",
    leaked: Sequence[int] = (),
    more: Mapping[str, dict] | None = None,
    other: tuple[str, Sequence[str]] | None = None,
    pictures: Mapping[str, object] | None = None,
    about: str = "",
) -> dict:
    """Writes the whole `eval/` folder of a model that makes texts, or nothing of it.

    Args:
        directory: See `report.write_evaluation`.
        task: A key of `METRICS`; beside summaries stands what their source's first
            sentence scores.
        test: The test rows.
        validation: The validation rows; only their numbers are reported.
        tokenize: See `text_scores`.
        leaked: Places of the test rows whose source stands in the training data too.
        more: By split, a block with other metrics of the model: its loss.
        other: Name and predictions of a run that is compared.
        pictures: File name → figure.
        about: A line for the report: how predictions were made.

    Returns:
        What results.json holds.
    """
    metrics = METRICS[task]
    results = {"task": task, "test": test.measure(metrics, tokenize)}
    kept = sorted({*range(len(test.texts))} - {*leaked})
    if leaked and kept:
        columns = ("texts", "targets", "predictions")
        fresh = {name: [getattr(test, name)[i] for i in kept] for name in columns}
        fresh = replace(test, scores=None, seconds=None, **fresh)
        results["test_without_leaked"] = fresh.measure(metrics, tokenize)
    ours = text_scores(metrics, test.targets, test.predictions, tokenize)
    rivals = {"other_run": other} if other else {}
    if task == "summarization":
        rivals["baseline"] = "lead sentence", [*map(lead_sentence, test.texts)]
    for key, (name, predictions) in rivals.items():
        rival = replace(test, predictions=predictions, scores=None, seconds=None)
        theirs = text_scores(metrics, test.targets, predictions, tokenize)
        compared = compare_rows(theirs, ours, len(test.texts))
        block = rival.measure(metrics, tokenize)
        results[key] = {"name": name, **block, "compared": compared}
    if validation is not None:
        results["validation"] = validation.measure(metrics, tokenize)
    for split, block in (more or {}).items():
        for part in ("metrics", "intervals"):
            results[split][part] |= block[part]
    rows = [
        {"text": text, "target": target, "prediction": prediction}
        for text, target, prediction in zip(
            test.texts, test.targets, test.predictions, strict=True
        )
    ]
    quality = ours.of_rows()
    for i, row in enumerate(rows):
        if test.scores is not None:
            row["score"] = float(f"{test.scores[i]:.6g}")
        row["quality"] = float(f"{quality[i]:.6g}")
    report = _report(results, rows, quality, about, pictures or {})
    return write_evaluation(directory, results, rows, report, pictures or {})


def _report(results, rows, quality, about: str, pictures) -> str:
    block = results["test"]
    signatures = [f"{name}: `{text}`" for name, text in block["signatures"].items()]
    parts = [
        "# Evaluation",
        f"{block['samples']:,} test rows. {about}".strip(),
        markdown_table(*results_table(results)),
        "Intervals are bootstrap percentiles over the test rows. BLEU and chrF run "
        "from 0 to 100, the rest from 0 to 1. " + "; ".join(signatures) + ".",
    ]
    for key in ("baseline", "other_run"):
        if key in results:
            parts += comparison(results[key])
    for file in pictures:
        title = file.removesuffix(".png").replace("_", " ").capitalize()
        parts += [f"## {title}", f"![{title}]({file})"]
    order = np.argsort(quality, kind="stable")
    for title, chosen in (
        ("Worst rows", order[:EXTREMES]),
        ("Best rows", order[::-1][:EXTREMES]),
        ("The first rows", range(min(EXTREMES, len(rows)))),
    ):
        parts += [f"## {title}", examples_table([rows[i] for i in chosen])]
    return "\n\n".join(parts) + "\n"


def examples_table(rows: Sequence[Mapping]) -> str:
    """Markdown: sources, references, predictions."""
    names = ["quality"] * ("quality" in rows[0]) if rows else []
    cells = [
        [f"{row[name]:.3g}" for name in names]
        + [markdown_cell(row[n], EXCERPT) for n in ("text", "target", "prediction")]
        for row in rows
    ]
    return markdown_table([*names, "source", "reference", "prediction"], cells)
