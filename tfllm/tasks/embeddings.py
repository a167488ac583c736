"""A text gets a vector of length 1, near those of texts that belong to it."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.core.errors import UserError
from tfllm.data.columns import Columns, Ragged
from tfllm.data.similar import SimilarColumns
from tfllm.evaluation.classification import regression_metrics
from tfllm.evaluation.intervals import measured
from tfllm.evaluation.report import (
    markdown_cell,
    markdown_table,
    results_table,
    write_evaluation,
)
from tfllm.evaluation.retrieval import (
    collection,
    nearest,
    ranks,
    retrieval_metrics,
    retrieval_rows,
)
from tfllm.models.embedder import EmbedderConfig, embedder, scratch_encoder
from tfllm.models.encoder import EncoderConfig
from tfllm.tasks.task import Batch, Sums, Verdict, answers_of
from tfllm.text import Tokenizer

LOSSES = ("ranking", "triplet", "cosine")
SAMPLES, SHOWN, PREDICTIONS = 8, 20, 5000
FAR = -1e9  # the score of what is not compared


@dataclass
class Embeddings:
    """Vectors of sentences.

    Args:
        tokenizer: Turns text to ids, in training and in the export.
        model: Shape of the model.
        max_length: Longest text in tokens.
        special_tokens: Whether ids carry the tokenizer's special tokens.
        loss: `ranking`: the cross-entropy of the own text among all of the batch
            (Henderson et al., 2017); `triplet`: the nearest other text has to be
            `margin` farther than the own one (Hermans et al., 2017); `cosine`: the
            squared difference from a score.
        temperature: Cosines are divided by it (ranking).
        symmetric: Ranks anchors for each text too, half of the loss (ranking).
        margin: Difference of cosines (triplet).
        low, high: Scores that stand for a cosine of 0 and of 1 (cosine).
    """

    tokenizer: Tokenizer
    model: EmbedderConfig
    max_length: int = 128
    special_tokens: bool = False
    loss: str = "ranking"
    temperature: float = 0.05
    symmetric: bool = False
    margin: float = 0.3
    low: float = 0.0
    high: float = 1.0

    name = "embeddings"
    maximize = True

    @property
    def monitor(self) -> str:
        """Scored pairs are ranked, others looked for."""
        return "spearman" if self.loss == "cosine" else "ndcg_at_10"

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.model.encoder["hidden_size"]

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Token ids of texts."""
        options = {"add_special_tokens": self.special_tokens}
        ids = self.tokenizer.encode(texts, max_length=self.max_length, **options)
        return Ragged.from_lists(ids)

    def columns(self, rows: Sequence[dict], kind: str, split="rows", **options):
        """The rows of a split as `SimilarColumns`."""
        try:
            return SimilarColumns(rows, kind, self.encode, **options)
        except UserError as error:
            raise UserError(error.what, split, error.fix) from None

    def build_model(self, dtype: str | None = None) -> keras.Model:
        """The model; unit vectors `[batch, size]`, float32."""
        return embedder(self.model, dtype)

    def pad_values(self) -> dict[str, int]:
        """Fills rows that are too short."""
        return {"token_ids": self.tokenizer.pad_id}

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Rows of a batch."""
        return {"loss": ops.sum(batch["weight"])}

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """The loss of each row, summed."""
        own, cosines, other = self._compare(outputs, batch)
        if self.loss == "cosine":
            wanted = (batch["score"] - self.low) / (self.high - self.low)
            losses = ops.square(own - wanted)
        elif self.loss == "triplet":
            hardest = ops.max(ops.where(other, cosines, -2.0), axis=1)
            losses = ops.relu(self.margin + hardest - own)
        else:
            losses = self._ranking(own, cosines, other)
            if self.symmetric:
                square = ops.shape(own)[0]
                back = [ops.transpose(x[:, :square]) for x in (cosines, other)]
                losses = (losses + self._ranking(own, *back)) / 2
        return {"loss": ops.sum(losses * batch["weight"])}

    def _ranking(self, own, cosines, other):
        scores = ops.where(other, cosines / self.temperature, FAR)
        own = own[:, None] / self.temperature
        whole = ops.concatenate([own, scores], axis=1)
        return ops.logsumexp(whole, axis=1) - own[:, 0]

    def _compare(self, outputs, batch):
        """Cosines of pairs `[rows]`, of anchors and all other texts `[rows, others]`.

        The third is bool `[rows, others]`: what really is another text. A row's own
        texts are none, nor those of rows that share a text or the label with it.
        """
        places, label = batch["places"], batch["label"]
        rows, slots = ops.shape(places)[0], places.shape[1] or ops.shape(places)[1]
        vectors = ops.reshape(ops.cast(outputs, "float32"), (slots, rows, self.size))
        anchors, rest = vectors[0], ops.reshape(vectors[1:], (-1, self.size))
        own = ops.sum(anchors * vectors[1], axis=-1)
        cosines = ops.matmul(anchors, ops.transpose(rest))
        first, second = places[:, :1], places[:, 1:2]
        pairs = [
            (a, ops.transpose(b)) for a in (first, second) for b in (first, second)
        ]
        pairs.append((label[:, None], ops.where(label < 0, -2, label)[None]))
        same = ops.any(ops.stack([a == b for a, b in pairs]), axis=0)
        unlike = ops.reshape(ops.transpose(places)[2:], (1, -1))
        same = ops.concatenate([same, (unlike == first) | (unlike == second)], axis=1)
        there = ops.reshape(ops.transpose(places)[1:], (1, -1)) >= 0
        there = ops.logical_and(there, first >= 0)
        return own, cosines, ops.logical_and(there, ops.logical_not(same))

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """How often the own text is the nearest one of the batch."""
        if self.loss == "cosine":
            return {}
        own, cosines, other = self._compare(outputs, batch)
        hit = own > ops.max(ops.where(other, cosines, -2.0), axis=1)
        weight = batch["weight"]
        return {
            "accuracy": (ops.sum(ops.cast(hit, "float32") * weight), ops.sum(weight))
        }

    def embed(self, model: keras.Model, texts: Sequence[str] | Ragged) -> np.ndarray:
        """Vectors of texts, or of their token ids, float32 `[N, size]`."""
        ids = texts if isinstance(texts, Ragged) else self.encode(texts)
        vectors = np.zeros((len(ids.offsets) - 1, self.size), np.float32)
        if len(vectors):
            columns = Columns({"token_ids": ids})
            parts = answers_of(model, columns, self.max_length, self.pad_values())
            for micro, answer in parts:
                vectors[micro.indices] = np.asarray(answer)[micro.rows]
        if not np.isfinite(vectors).all():
            raise UserError("Some vectors are not finite numbers: the model diverged.")
        return vectors

    def vectors(self, model: keras.Model, texts: Sequence[str]) -> list[dict]:
        """`text` and `embedding` of each text."""
        found = self.embed(model, texts)
        return [
            {"text": text, "embedding": _digits(vector)}
            for text, vector in zip(texts, found, strict=True)
        ]

    def measure(self, model: keras.Model, columns: SimilarColumns):
        """How well texts are found, or scores are met.

        Returns:
            The block of a split in results.json, and the vectors of all texts.
        """
        started = time.perf_counter()
        vectors = self.embed(model, columns.token_ids)
        function, arrays = self._judge(vectors, columns)
        return measured(function, arrays, len(arrays[0]), started), vectors

    def _judge(self, vectors: np.ndarray, columns: SimilarColumns):
        """A function of arrays that gives metrics, and the arrays."""
        if columns.kind == "scores":
            first, second = (vectors[columns.places[:, slot]] for slot in (0, 1))
            cosines, wanted = np.sum(first * second, -1), columns.scores
            wanted = (wanted - self.low) / (self.high - self.low)
            return _correlations, [wanted, cosines]
        found = ranks(*self._search(vectors, columns)[1])
        return retrieval_metrics, [retrieval_rows(found)]

    def _search(self, vectors: np.ndarray, columns: SimilarColumns):
        """Numbers of queries and documents, and what `retrieval.ranks` takes."""
        queries, documents, wanted, own = collection(
            columns.relevant, columns.documents
        )
        return (queries, documents), (vectors[queries], vectors[documents], wanted, own)

    def validate(self, model: keras.Model, columns: SimilarColumns) -> Verdict:
        """Metrics on held-out texts."""
        vectors = self.embed(model, columns.token_ids)
        function, arrays = self._judge(vectors, columns)

        def texts():
            rows = self.rows(vectors, columns, SAMPLES)
            return {"samples": answers_table(list(rows))}

        return Verdict(function(*arrays), texts=texts)

    def rows(self, vectors: np.ndarray, columns: SimilarColumns, most: int):
        """Rows of predictions.jsonl, at most so many, evenly chosen."""
        texts = columns.texts
        if columns.kind == "scores":
            for i in _even(len(columns), most):
                a, b = columns.places[i]
                cosine = float(vectors[a] @ vectors[b])
                row = {"text": texts[a], "text_pair": texts[b]}
                row |= {"label": float(columns.scores[i]), "prediction": cosine}
                yield row | {"score": cosine, "embedding": _digits(vectors[a])}
            return
        (queries, documents), (asked, among, wanted, own) = self._search(
            vectors, columns
        )
        chosen = _even(len(queries), most)
        found, scores = nearest(asked[chosen], among, 2)
        places = ranks(
            asked[chosen], among, [wanted[i] for i in chosen], own[list(chosen)]
        )
        for k, i in enumerate(chosen):
            at = int(found[k, 0] == own[i] and found.shape[1] > 1)
            yield {
                "text": texts[queries[i]],
                "target": texts[documents[wanted[i][0]]],
                "prediction": texts[documents[found[k, at]]],
                "score": float(f"{scores[k, at]:.6g}"),
                "rank": int(places[k][0]),
                "embedding": _digits(vectors[queries[i]]),
            }

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights."""
        settings = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name not in ("tokenizer", "model")
        }
        return {"task": self.name} | settings | {"model": self.model.to_dict()}

    @classmethod
    def from_config(cls, config: dict, tokenizer: Tokenizer) -> "Embeddings":
        """The task of a checkpoint's config.json."""
        settings = {name: value for name, value in config.items() if name != "task"}
        settings["model"] = EmbedderConfig(**settings["model"])
        return cls(tokenizer, **settings)


def open_embedder(name: str):
    """A model of sentences by the name of a run, a directory or a preset.

    Returns:
        The task and its model, float32.

    Raises:
        UserError: There is none of that name, or it gives no vectors.
    """
    from tfllm.models.pretrained import open_checkpoint
    from tfllm.tasks.runs import load_run

    if (Path(name) / "config.yaml").exists():
        run = load_run(name)
        if not isinstance(run.task, Embeddings):
            raise UserError(f"a run of {run.task.name} gives no vectors of texts", name)
        return run.task, run.model
    checkpoint = open_checkpoint(name)
    if not hasattr(checkpoint.config, "num_segments"):
        raise UserError("search wants an encoder", name)
    config = EmbedderConfig(checkpoint.config.to_dict())
    most = min(256, checkpoint.config.max_length)
    task = Embeddings(checkpoint.tokenizer(), config, most, special_tokens=True)
    model = task.build_model("float32")
    checkpoint.fill(model, heads=False)
    return task, model


def task_for(
    rows: Sequence[dict],
    kind: str,
    tokenizer: Tokenizer,
    flags,
    encoder: EncoderConfig | None = None,
) -> Embeddings:
    """The task that training rows speak of.

    Args:
        rows: Training records, see `data.similar`.
        kind: What they are.
        tokenizer: Their tokenizer.
        flags: `models.flags.EmbedderFlags` and those of fine-tuning, all settled.
        encoder: Shape of the model to go on from; None begins from scratch.
    """
    shape = {n: getattr(flags, n) for n in ("hidden_size", "num_layers", "num_heads")}
    size = tokenizer.vocabulary_size, flags.max_length
    start = encoder or scratch_encoder(flags.model, *size, **shape)
    rates = {"dropout": flags.dropout, "attention_dropout": flags.dropout}
    model = start.to_dict() | rates
    scores = [row["label"] for row in rows] if kind == "scores" else [0.0, 1.0]
    names = ("max_length", "loss", "temperature", "symmetric", "margin")
    return Embeddings(
        tokenizer,
        EmbedderConfig(model, flags.pooling, flags.adapters()),
        special_tokens=encoder is not None,
        low=min(scores),
        high=max(scores),
        **{name: getattr(flags, name) for name in names},
    )


def write_report(
    directory: str | Path,
    task: Embeddings,
    model: keras.Model,
    untuned: keras.Model,
    test: SimilarColumns,
    validation: SimilarColumns,
) -> tuple[dict, np.ndarray]:
    """Measures a model, and what it was before training, and writes `eval/`.

    Returns:
        What results.json holds, and the vectors of the test texts.
    """
    block, vectors = task.measure(model, test)
    before, _ = task.measure(untuned, test)
    results = {"task": task.name, "test": block}
    results["baseline"] = {"name": "untuned"} | before
    results["validation"] = task.measure(model, validation)[0]
    rows = list(task.rows(vectors, test, PREDICTIONS))
    told = (
        "Correlations of cosines with the scores; mse is the mean squared difference."
        if test.kind == "scores"
        else f"Each query is looked for among {len(test.documents):,} texts by cosine; "
        "recall_at_k is the share of its texts, of k at most, among the first k."
    )
    parts = [
        "# Evaluation",
        f"{block['samples']:,} test rows. {told} untuned is the model before training.",
        markdown_table(*results_table(results)),
        "Intervals are bootstrap percentiles over the test rows.",
        "## Answers",
        answers_table(rows[:SHOWN]),
    ]
    report = "\n\n".join(parts) + "\n"
    return write_evaluation(directory, results, rows, report, {}), vectors


def answers_table(rows) -> str:
    """Markdown: queries and what was found."""
    head = ["text", "target", "prediction", "score", "rank"]
    head = ["text", "text_pair", "label", "score"] if "label" in rows[0] else head
    cells = [
        [
            f"{row[name]:.4f}"
            if isinstance(row[name], float)
            else markdown_cell(str(row[name]), 120)
            for name in head
        ]
        for row in rows
    ]
    return markdown_table(head, cells)


def _correlations(wanted: np.ndarray, cosines: np.ndarray) -> dict[str, float]:
    found = regression_metrics(wanted, cosines)
    order = ("spearman", "pearson", "mse")
    return {name: float(np.nan_to_num(found[name])) for name in order}


def _even(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(most, count), dtype=int).tolist()


def _digits(vector: np.ndarray) -> list[float]:
    return [float(f"{x:.6g}") for x in vector]
