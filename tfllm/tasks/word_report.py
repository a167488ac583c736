"""What learned vectors of words know, and a model of texts made of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tfllm.evaluation.intervals import bootstrap
from tfllm.evaluation.report import (
    markdown_cell,
    markdown_table,
    results_table,
    write_evaluation,
)
from tfllm.evaluation.retrieval import nearest
from tfllm.evaluation.word_vectors import (
    question_arrays,
    question_metric,
    unit_vectors,
)
from tfllm.models.word_vectors import frequent_vectors
from tfllm.text import Tokenizer

NEIGHBOURS, SHOWN, ROWS = 5, 30, 300
AMONG = 30_000  # most frequent words among which neighbours and answers are looked for


def bag_of_words(tokenizer: Tokenizer, vectors: np.ndarray, max_length: int) -> tuple:
    """A model of texts as the mean of their words' vectors.

    Args:
        tokenizer: Cuts texts.
        vectors: `[vocabulary_size, size]`; zeros for what does not count.
        max_length: Longest text in tokens.

    Returns:
        Its weights by path, and the settings of `tasks.embeddings.Embeddings`.
    """
    from tfllm.models.embedder import EmbedderConfig, scratch_encoder
    from tfllm.tasks.embeddings import Embeddings

    sizes = len(vectors), max_length
    shape = scratch_encoder("bag", *sizes, hidden_size=vectors.shape[1])
    shape = replace(shape, dropout=0.0, attention_dropout=0.0)
    task = Embeddings(tokenizer, EmbedderConfig(shape.to_dict()), max_length)
    weights = {"token_embedding/embeddings": vectors.astype(np.float32)}
    return weights, task.to_config()


def write_report(
    directory: str | Path,
    run,
    words: Sequence[str],
    vectors: np.ndarray,
    losses: Mapping[str, tuple[int, float]],
    questions: Mapping[str, tuple],
    other: str | None = None,
) -> dict:
    """Answers questions of words and writes the `eval/` folder.

    Args:
        directory: The folder.
        run: The run opened again, a bag of words.
        words: The known words, the most frequent first.
        vectors: Theirs `[words, size]`.
        losses: `test` and `validation` → number of words and mean loss of that text.
        questions: File → what `evaluation.word_vectors.read_questions` gave.
        other: A file of other vectors, to compare with.

    Returns:
        What results.json holds.
    """
    started = time.perf_counter()
    named = {}
    for file, (kind, rows) in questions.items():
        name = _name(file, kind)
        again = sum(other.split("#")[0] == name for other in named)
        named[name + f"#{again + 1}" * bool(again)] = kind, rows
    words, vectors = words[:AMONG], vectors[:AMONG]
    found = question_arrays(words, vectors, named)
    blocks = {
        split: {"samples": count, "metrics": {"loss": float(loss)}, "intervals": {}}
        for split, (count, loss) in losses.items()
    }
    blocks["test"] |= _measured(found, blocks["test"])
    results = {"task": "word_vectors", "test": blocks["test"]}
    if other is not None and named:
        theirs, matrix = frequent_vectors(other, AMONG)
        block = {"samples": len(theirs), "metrics": {}, "intervals": {}}
        block |= _measured(question_arrays(theirs, matrix, named), block)
        results["baseline"] = {"name": Path(other).name} | block
    results["validation"] = blocks["validation"]
    results["test"]["seconds"] = time.perf_counter() - started
    rows = _neighbours(run, words, vectors)
    answered = [
        f"{name}: {part.shape[-1]:,} of {len(named[name][1]):,} questions have words "
        "that are known."
        for name, part in found.items()
    ]
    cells = [[markdown_cell(row["text"]), " ".join(row["nearest"])] for row in rows]
    parts = [
        "# Evaluation",
        f"{len(words):,} words, the most frequent ones. loss is that of training on "
        "text held out, a pair.",
        markdown_table(*results_table(results)),
        *answered,
        "## Nearest words",
        markdown_table(["word", "nearest"], cells[:SHOWN]),
    ]
    return write_evaluation(directory, results, rows, "\n\n".join(parts) + "\n", {})


def _name(file: str, kind: str) -> str:
    measure = {"analogy": "accuracy", "similarity": "spearman"}[kind]
    return f"{measure}_{Path(Path(file).name.removesuffix('.gz')).stem}"


def _measured(found: Mapping[str, np.ndarray], block: dict) -> dict:
    """A block with the questions' metrics and intervals."""
    metrics, intervals = dict(block["metrics"]), dict(block["intervals"])
    for name, part in found.items():
        metrics[name] = question_metric(part)
        if part.shape[-1]:
            low, high = bootstrap(lambda rows: question_metric(rows.T), [part.T])
            intervals[name] = [low, high]
    return {"metrics": metrics, "intervals": intervals}


def _neighbours(run, words: Sequence[str], vectors: np.ndarray) -> list[dict]:
    """Rows of predictions.jsonl: words, their neighbours, their vectors as texts."""
    chosen = np.unique(np.geomspace(1, len(words), ROWS).astype(int)) - 1
    texts, unit = [words[i] for i in chosen], unit_vectors(vectors)
    numbers, cosines = nearest(unit[chosen], unit, min(len(words), NEIGHBOURS + 1))
    rows = run.task.vectors(run.model, texts)
    for row, own, near, scores in zip(rows, chosen, numbers, cosines, strict=True):
        others = [k for k in range(len(near)) if near[k] != own][:NEIGHBOURS]
        row["nearest"] = [words[near[k]] for k in others]
        row["prediction"] = row["nearest"][0] if others else ""
        row["score"] = float(scores[others[0]]) if others else 0.0
    return rows
