"""Text classification: a text, or a pair of texts, gets one of K labels."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.data.batching import BatchPlan
from tfllm.data.cache import cached_columns
from tfllm.data.columns import Columns, Ragged
from tfllm.evaluation import figures
from tfllm.evaluation.classification import (
    classification_metrics,
    count_pairs,
    encode,
)
from tfllm.evaluation.report import Split
from tfllm.models.classifier import ClassifierConfig, build_classifier
from tfllm.tasks.task import Batch, Sums, Verdict
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
    monitor = "accuracy"
    maximize = True

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
            The columns `token_ids`, for pairs `segment_ids`, and `label` int32 (-1 for
            a label that training does not know); and the lengths int64 [N] that the
            texts had before truncation.
        """

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
            known = {label: i for i, label in enumerate(self.labels)}
            labels = [known.get(row.get("label"), -1) for row in rows]
            return Columns(
                {"token_ids": Ragged.from_lists(ids)}
                | ragged
                | {"label": np.asarray(labels), "full_length": np.asarray(lengths)}
            )

        key = {
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
            "special_tokens": self.special_tokens,
            "pairs": self.pairs,
            "labels": self.labels,
            "rows": [[r["text"], r.get("text_pair"), r.get("label")] for r in rows],
        }
        columns = cached_columns(key, build)
        kept = {name: c for name, c in columns.items() if name != "full_length"}
        return Columns(kept), np.asarray(columns["full_length"])

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
        """Cross-entropy with label smoothing, or the squared hinge loss."""
        outputs = ops.cast(outputs, "float32")
        target = ops.one_hot(batch["label"], len(self.labels), dtype="float32")
        if self.loss == "squared_hinge":
            short = ops.maximum(0.0, 1.0 - (2.0 * target - 1.0) * outputs)
            losses = ops.sum(ops.square(short), axis=-1)
        else:
            smooth = self.label_smoothing
            target = target * (1.0 - smooth) + smooth / len(self.labels)
            losses = -ops.sum(target * ops.log_softmax(outputs), axis=-1)
        return {"loss": ops.sum(losses * batch["weight"])}

    @property
    def score_scale(self) -> float:
        """Logits times this go through the softmax; margins end near -1 and 1."""
        return MARGIN_SCALE if self.loss == "squared_hinge" else 1.0

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Training accuracy."""
        hit = ops.cast(ops.argmax(outputs, -1), "int32") == batch["label"]
        weight = batch["weight"]
        return {
            "accuracy": (ops.sum(ops.cast(hit, "float32") * weight), ops.sum(weight))
        }

    def predict(self, model: keras.Model, columns: Columns, rows: int = 64):
        """Probabilities float32 `[N, K]` in the order of the columns."""
        plan = BatchPlan(
            columns.lengths,
            batch_size=rows,
            max_length=self.max_length,
            shuffle=False,
        )
        scores = np.zeros((len(columns), len(self.labels)), np.float32)
        names = [tensor.name for tensor in model.inputs]
        for step in range(plan.steps_per_epoch):
            (micro,) = plan.step(step)
            batch = columns.gather(micro, self.pad_values())
            logits = model.predict_on_batch({name: batch[name] for name in names})
            scores[micro.indices] = _softmax(self.score_scale * logits)[micro.rows]
        return scores

    def split(self, model: keras.Model, rows: Sequence[dict]) -> Split:
        """What the model says about records, for reports."""
        started = time.perf_counter()
        scores = self.predict(model, self.columns(rows)[0])
        return Split(
            texts=[row["text"] for row in rows],
            labels=[row.get("label") for row in rows],
            predictions=[self.labels[i] for i in scores.argmax(-1)],
            scores=scores,
            text_pairs=[row.get("text_pair") for row in rows] if self.pairs else None,
            seconds=time.perf_counter() - started,
        )

    def validate(self, model: keras.Model, columns: Columns) -> Verdict:
        """Accuracy, macro F1 and loss on held-out columns, and their pictures."""
        scores = self.predict(model, columns)
        labels = np.asarray(columns["label"])
        known = labels >= 0
        predictions = scores.argmax(-1)
        # A label that training never saw counts as an error.
        names = [*self.labels, *([] if known.all() else ["(unknown)"])]
        told = [names[label] for label in labels]
        measured = classification_metrics(
            told, [names[p] for p in predictions], class_names=self.labels
        )
        truth = np.maximum(scores[known, labels[known]], 1e-12)
        metrics = {name: float(measured[name]) for name in ("accuracy", "f1_macro")}
        metrics["loss"] = float(-np.log(truth).mean())

        def pictures():
            known_names, (a, b) = encode(
                self.labels, told, [names[p] for p in predictions]
            )
            matrix = count_pairs(a, b, len(known_names))
            drawn = {"confusion": figures.confusion_figure(matrix, known_names)}
            if known.any():
                drawn["precision_recall"] = figures.precision_recall_figure(
                    labels[known], scores[known], self.labels
                )
            return {name: figures.pixels(figure) for name, figure in drawn.items()}

        def texts():
            lines = ["| text | label | prediction | score |", "|---|---|---|---|"]
            for i in range(min(SAMPLES, len(columns))):
                ids = [int(token) for token in columns["token_ids"].row(i)]
                text = self.tokenizer.decode([ids])[0][:200]
                cells = [text, told[i], names[predictions[i]], f"{scores[i].max():.3f}"]
                cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
                lines.append(f"| {' | '.join(cells)} |")
            return {"samples": "\n".join(lines)}

        return Verdict(metrics, pictures, texts)

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights."""
        return {
            "task": self.name,
            "labels": self.labels,
            "special_tokens": self.special_tokens,
            "label_smoothing": self.label_smoothing,
            "loss": self.loss,
            "model": dataclasses.asdict(self.model),
        }

    @classmethod
    def from_config(cls, config: dict, tokenizer: Tokenizer) -> "TextClassification":
        """The task of a checkpoint's config.json."""
        settings = {name: value for name, value in config.items() if name != "task"}
        settings["model"] = ClassifierConfig(**settings["model"])
        return cls(tokenizer, **settings)


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float32)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
