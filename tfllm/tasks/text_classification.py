"""A text, or a pair of texts, gets one of K labels, any number of them, or a number.

`TextClassification` is the first job; `MultiLabelClassification` and `TextRegression`
say in which few points theirs differ.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.core.errors import UserError
from tfllm.data.cache import cached_columns
from tfllm.data.columns import Columns, Ragged
from tfllm.data.labels import class_names, problem_of
from tfllm.evaluation import figures
from tfllm.evaluation.classification import (
    classification_metrics,
    count_pairs,
    encode,
    multilabel_metrics,
    regression_metrics,
    tune_thresholds,
)
from tfllm.evaluation.report import Split, markdown_cell, markdown_table, show_label
from tfllm.models.classifier import ClassifierConfig, build_classifier
from tfllm.tasks.task import Batch, Sums, Verdict, answers_of
from tfllm.text import Tokenizer

SAMPLES = 8  # predictions shown in TensorBoard
MARGIN_SCALE = 2.0  # turns the margins of a hinge loss into calibrated scores


@dataclass
class TextClassification:
    """One label a text.

    Args:
        tokenizer: Turns text to ids, in training and in the export.
        labels: Names of the classes in the order of the logits.
        model: Shape of the model.
        special_tokens: Whether ids carry the tokenizer's special tokens.
        label_smoothing: Share of the target spread over all classes (Szegedy et al.,
            2016).
        loss: `cross_entropy`, or `squared_hinge` of each class against all others (a
            linear support vector machine's; the logits are margins then).
    """

    tokenizer: Tokenizer
    labels: list[str]
    model: ClassifierConfig
    special_tokens: bool = False
    label_smoothing: float = 0.0
    loss: str = "cross_entropy"

    name = "text_classification"
    problem = "single_label"
    monitor = "accuracy"
    maximize = True
    losses = ("cross_entropy", "squared_hinge")

    def __post_init__(self):
        if self.loss not in self.losses:
            raise UserError(
                f"--loss {self.loss} does not go with {self.problem}",
                fix=f"Use {' or '.join(self.losses)}, or leave it out",
            )

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return self.model.max_length

    @property
    def pairs(self) -> bool:
        """Whether there are two texts."""
        return self.model.pairs

    def columns(self, rows: Sequence[dict]) -> tuple[Columns, np.ndarray]:
        """Encodes records.

        Returns:
            The columns `token_ids`, for pairs `segment_ids`, and `label` (see
            `targets`); and the lengths int64 [N] that the texts had before truncation.

        Raises:
            UserError: A text has no second one, and the model labels pairs.
        """
        # A file has second texts in all rows or in none.
        alone = [row for row in rows if row.get("text_pair") is None]
        if self.pairs and alone:
            what, file = "a model of pairs wants a second text", alone[0].get("file")
            fix = "Name its column with --pair_column" if file else None
            raise UserError(what, file, fix)

        def build() -> Columns:
            texts = [row["text"] for row in rows]
            if self.pairs:
                pairs = [row.get("text_pair") or "" for row in rows]
                plain = self.tokenizer.encode(texts), self.tokenizer.encode(pairs)
                lengths = [len(a) + len(b) for a, b in zip(*plain, strict=True)]
                ids, segments = self.tokenizer.encode_pairs(
                    texts, pairs, max_length=self.max_length
                )
                ragged = {"segment_ids": Ragged.from_lists(segments)}
            else:
                options = {"add_special_tokens": self.special_tokens}
                lengths = [len(row) for row in self.tokenizer.encode(texts, **options)]
                ids = self.tokenizer.encode(
                    texts, max_length=self.max_length, **options
                )
                ragged = {}
            labels = self.targets([row.get("label") for row in rows])
            return Columns(
                {"token_ids": Ragged.from_lists(ids)}
                | ragged
                | {"label": labels, "full_length": np.asarray(lengths)}
            )

        key = {
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
            "special_tokens": self.special_tokens,
            "pairs": self.pairs,
            "problem": self.problem,
            "labels": self.labels,
            "rows": [[r["text"], r.get("text_pair"), r.get("label")] for r in rows],
        }
        columns = cached_columns(key, build)
        kept = {name: c for name, c in columns.items() if name != "full_length"}
        return Columns(kept), np.asarray(columns["full_length"])

    def targets(self, labels: Sequence) -> np.ndarray:
        """Numbers for labels: class ids `[N]`, -1 for what training does not know."""
        known = {label: i for i, label in enumerate(self.labels)}
        return np.array([known.get(label, -1) for label in labels])

    def build_model(self, dtype: str | None = None) -> keras.Model:
        """The classifier; logits `[batch, K]`, float32."""
        return build_classifier(self.model, dtype)

    def pad_values(self) -> dict[str, int]:
        """Fills rows that are too short."""
        return {"token_ids": self.tokenizer.pad_id}

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Rows of a batch."""
        return {"loss": ops.sum(batch["weight"])}

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """The loss of each row, summed."""
        losses = self.row_losses(ops.cast(outputs, "float32"), batch["label"])
        return {"loss": ops.sum(losses * batch["weight"])}

    def row_losses(self, outputs: Any, labels: Any) -> Any:
        """Cross-entropy with label smoothing, or the squared hinge loss; `[N]`."""
        target = ops.one_hot(labels, len(self.labels), dtype="float32")
        if self.loss == "squared_hinge":
            return _squared_hinge(outputs, target)
        smooth = self.label_smoothing
        target = target * (1.0 - smooth) + smooth / len(self.labels)
        return -ops.sum(target * ops.log_softmax(outputs), axis=-1)

    @property
    def score_scale(self) -> float:
        """Logits times this become probabilities; margins end near -1 and 1."""
        return MARGIN_SCALE if self.loss == "squared_hinge" else 1.0

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Training accuracy."""
        hit = ops.cast(ops.argmax(outputs, -1), "int32") == batch["label"]
        weight = batch["weight"]
        return {
            "accuracy": (ops.sum(ops.cast(hit, "float32") * weight), ops.sum(weight))
        }

    def predict(self, model: keras.Model, columns: Columns, rows: int = 64):
        """What `scores` makes of the logits, `[N, K]` in the order of the columns."""
        scores = np.zeros((len(columns), self.model.num_outputs), np.float32)
        options = self.max_length, self.pad_values(), rows
        for micro, logits in answers_of(model, columns, *options):
            logits = np.asarray(logits, np.float32)
            scores[micro.indices] = self.scores(logits)[micro.rows]
        return scores

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities `[N, K]`."""
        return _softmax(self.score_scale * logits)

    def answers(self, scores: np.ndarray) -> list:
        """What the scores say, `[N]`."""
        return [self.labels[i] for i in scores.argmax(-1)]

    def split(self, model: keras.Model, rows: Sequence[dict]) -> Split:
        """What the model says about records, for reports."""
        started = time.perf_counter()
        scores = self.predict(model, self.columns(rows)[0])
        return Split(
            texts=[row["text"] for row in rows],
            labels=[row.get("label") for row in rows],
            predictions=self.answers(scores),
            scores=scores if self.labels else None,
            text_pairs=[row.get("text_pair") for row in rows] if self.pairs else None,
            seconds=time.perf_counter() - started,
            problem=self.problem,
            thresholds=getattr(self, "thresholds", None),
        )

    def validate(self, model: keras.Model, columns: Columns) -> Verdict:
        """Metrics and loss on held-out columns, and their pictures."""
        scores = self.predict(model, columns)
        metrics, told, draw = self.judge(scores, np.asarray(columns["label"]))

        def pictures():
            return {name: figures.pixels(figure) for name, figure in draw().items()}

        def texts():
            answers, rows = self.answers(scores), []
            for i in range(min(SAMPLES, len(columns))):
                ids = [int(token) for token in columns["token_ids"].row(i)]
                (text,) = self.tokenizer.decode([ids])
                cells = (text, show_label(told[i]), show_label(answers[i]))
                cells = [markdown_cell(cell, 200) for cell in cells]
                rows.append([*cells, f"{scores[i].max():.3f}"])
            head = ["text", "label", "prediction", "score"]
            return {"samples": markdown_table(head, rows)}

        return Verdict(metrics, pictures, texts)

    def judge(self, scores: np.ndarray, labels: np.ndarray):
        """Measures scores of rows with these targets.

        Returns:
            Metrics, `monitor` and `loss` among them; the labels in words `[N]`; and a
            function that draws figures by name.
        """
        known = labels >= 0
        # A label that training never saw counts as an error.
        names = [*self.labels, *([] if known.all() else ["(unknown)"])]
        told = [names[label] for label in labels]
        answers = self.answers(scores)
        measured = classification_metrics(told, answers, class_names=self.labels)
        truth = np.maximum(scores[known, labels[known]], 1e-12)
        metrics = {name: float(measured[name]) for name in ("accuracy", "f1_macro")}
        metrics["loss"] = float(-np.log(truth).mean())

        def draw():
            known_names, ids = encode(self.labels, told, answers)
            matrix = count_pairs(*ids, len(known_names))
            drawn = {"confusion": figures.confusion_figure(matrix, known_names)}
            if known.any():
                drawn["precision_recall"] = figures.precision_recall_figure(
                    labels[known], scores[known], self.labels
                )
            return drawn

        return metrics, told, draw

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights."""
        settings = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name not in ("tokenizer", "model")
        }
        model = dataclasses.asdict(self.model)
        return {"task": self.name} | settings | {"model": model}

    @classmethod
    def from_config(cls, config: dict, tokenizer: Tokenizer) -> "TextClassification":
        """The task of a checkpoint's config.json."""
        settings = {name: value for name, value in config.items() if name != "task"}
        settings["model"] = ClassifierConfig(**settings["model"])
        return cls(tokenizer, **settings)


@dataclass
class MultiLabelClassification(TextClassification):
    """Any number of labels a text.

    Args:
        thresholds: A class is predicted where its probability is at least this `[K]`;
            each validation tunes them anew for F1, and the best checkpoint keeps those
            of its own. 0.5 before the first one.
    """

    thresholds: list[float] = field(default_factory=list)

    name = "multi_label_classification"
    problem = "multi_label"
    monitor = "f1_micro"

    def __post_init__(self):
        super().__post_init__()
        self.thresholds = self.thresholds or [0.5] * len(self.labels)

    def targets(self, labels: Sequence) -> np.ndarray:
        """0 or 1 for each class, and for labels that training does not know."""
        sets = [set(label or ()) for label in labels]
        rows = [[name in row for name in self.labels] for row in sets]
        other = [not row <= set(self.labels) for row in sets]
        return np.column_stack([np.array(rows, np.int32), other]).astype(np.int32)

    def row_losses(self, outputs: Any, labels: Any) -> Any:
        """Binary cross-entropy or squared hinge loss, summed over the classes."""
        target = ops.cast(labels[:, :-1], "float32")
        if self.loss == "squared_hinge":
            return _squared_hinge(outputs, target)
        target = target * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return ops.sum(ops.softplus(outputs) - target * outputs, axis=-1)

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Share of right decisions at a probability of one half."""
        hit = (outputs > 0) == (batch["label"][:, :-1] > 0)
        rows = ops.mean(ops.cast(hit, "float32"), axis=-1)
        weight = batch["weight"]
        return {"decisions_right": (ops.sum(rows * weight), ops.sum(weight))}

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """A probability a class `[N, K]`, each by itself."""
        return 1 / (1 + np.exp(-np.clip(self.score_scale * logits, -60, 60)))

    def answers(self, scores: np.ndarray) -> list[list[str]]:
        """The classes at or above their thresholds, in order."""
        chosen = scores >= np.asarray(self.thresholds, np.float32)
        return [[self.labels[k] for k in np.flatnonzero(row)] for row in chosen]

    def judge(self, scores: np.ndarray, labels: np.ndarray):
        """Tunes the thresholds on these rows, then measures."""
        truth = labels[:, :-1]
        self.thresholds = tune_thresholds(truth, scores).tolist()
        names = [*self.labels, "(unknown)"]
        metrics = multilabel_metrics(
            labels, scores, np.float32(self.thresholds), class_names=names
        )
        wanted = (self.monitor, "f1_macro", "precision", "recall")
        metrics = {name: metrics[name] for name in wanted}
        likely = np.where(truth, scores, 1 - scores)
        metrics["loss"] = float(-np.log(np.maximum(likely, 1e-12)).sum(-1).mean())
        told = [[names[k] for k in np.flatnonzero(row)] for row in labels]

        def draw():
            curves = figures.precision_recall_figure(truth, scores, self.labels)
            return {"precision_recall": curves}

        return metrics, told, draw


@dataclass
class TextRegression(TextClassification):
    """A number for a text.

    Args:
        loss: `squared_error` of standardised numbers.
        mean, deviation: Of the numbers in training; the model's output times the one
            plus the other is the answer.
    """

    loss: str = "squared_error"
    mean: float = 0.0
    deviation: float = 1.0

    name = "text_regression"
    problem = "regression"
    monitor = "pearson"
    losses = ("squared_error",)

    def targets(self, labels: Sequence) -> np.ndarray:
        """The numbers as they are."""
        return np.array([label or 0.0 for label in labels], np.float32)

    def row_losses(self, outputs: Any, labels: Any) -> Any:
        """Squared error, in units of the numbers' variance."""
        return ops.square(outputs[:, 0] - (labels - self.mean) / self.deviation)

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Mean absolute error, in units of the numbers."""
        off = outputs[:, 0] * self.deviation + self.mean - batch["label"]
        weight = batch["weight"]
        return {"absolute_error": (ops.sum(ops.abs(off) * weight), ops.sum(weight))}

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """The answers `[N, 1]`."""
        return logits * np.float32(self.deviation) + np.float32(self.mean)

    def answers(self, scores: np.ndarray) -> list[float]:
        """The numbers."""
        return scores[:, 0].tolist()

    def judge(self, scores: np.ndarray, labels: np.ndarray):
        """Correlations (0 with a constant) and squared errors."""
        metrics = regression_metrics(labels, scores[:, 0])
        metrics = {name: float(np.nan_to_num(v)) for name, v in metrics.items()}
        metrics["loss"] = metrics["mse"] / self.deviation**2

        def draw():
            return {"scatter": figures.scatter_figure(labels, scores[:, 0])}

        return metrics, labels.tolist(), draw


def task_for(rows: Sequence[dict], tokenizer: Tokenizer, model: dict, **options):
    """The task that the labels of training rows speak of (`data.labels`).

    Args:
        rows: Training records.
        tokenizer: Their tokenizer.
        model: Fields of the `ClassifierConfig` but those that the rows decide.
        **options: Other fields of the task.
    """
    labels = class_names(rows)
    config = ClassifierConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        num_outputs=len(labels) or 1,
        pairs=any(row.get("text_pair") for row in rows),
        **model,
    )
    kinds = (TextClassification, MultiLabelClassification, TextRegression)
    kind = next(one for one in kinds if one.problem == problem_of(rows))
    if kind is TextRegression:
        numbers = np.array([row["label"] for row in rows])
        options["mean"] = float(numbers.mean())
        options["deviation"] = float(numbers.std()) or 1.0
    return kind(tokenizer, labels, config, **options)


def _squared_hinge(margins, target):
    short = ops.maximum(0.0, 1.0 - (2.0 * target - 1.0) * margins)
    return ops.sum(ops.square(short), axis=-1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
