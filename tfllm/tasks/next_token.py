"""What all tasks share whose model ends in the losses of next tokens."""

import dataclasses
import math
import time
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.core.console import progress
from tfllm.data.batching import BatchPlan
from tfllm.evaluation.intervals import measured
from tfllm.layers.next_token_loss import NextTokenLoss
from tfllm.tasks.task import Batch, Sums

EVALUATION_TOKENS = 8192  # of a batch


class NextToken:
    """A dataclass of this kind has `tokenizer`, `max_length`, and the model's shape.

    Attributes:
        name: Of the task.
        shape: The name of the field that holds the model's shape.
    """

    monitor = "loss"
    maximize = False

    def transform(self, batch: Batch, step: int, part: int) -> Batch:
        """What is done to each batch."""
        return batch

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Tokens to be guessed."""
        return {"loss": ops.sum(batch["target_weights"])}

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Their cross-entropies."""
        return {"loss": ops.sum(outputs * batch["target_weights"])}

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Nothing beside the loss."""
        return {}

    def scores(self, model: keras.Model, columns: Any) -> np.ndarray:
        """What the model thinks of held-out rows.

        Returns:
            float64 `[K, N]`: what `row_sums` gives, in the order of the columns.
        """
        plan = BatchPlan(
            columns.lengths,
            tokens_per_batch=max(EVALUATION_TOKENS, self.max_length),
            max_length=self.max_length,
            shuffle=False,
        )
        found = None
        with progress("measuring", plan.steps_per_epoch) as advance:
            for step in range(plan.steps_per_epoch):
                (micro,) = plan.step(step)
                batch = columns.gather(micro, self.pad_values())
                batch = self.transform(batch, step, 0)
                sums = self.row_sums(self.losses(model, batch), batch)
                if found is None:
                    found = np.zeros((len(sums), len(columns)))
                found[:, micro.indices] = sums[:, micro.rows]
                advance()
        return found

    def losses(self, model: keras.Model, batch: Batch) -> np.ndarray:
        """The model's losses `[rows, length]` on a batch."""
        return model.predict_on_batch({t.name: batch[t.name] for t in model.inputs})

    def row_sums(self, losses: np.ndarray, batch: Batch) -> np.ndarray:
        """Sums of losses and numbers of targets, `[2, rows]`."""
        weights = np.asarray(batch["target_weights"], np.float64)
        return np.stack([(losses * weights).sum(1), weights.sum(1)])

    def metrics(self, columns: Any, losses, counts) -> dict[str, float]:
        """Numbers by name from rows of what `scores` returns."""
        loss = losses.sum() / max(1.0, counts.sum())
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 100.0))}
        if size := getattr(columns, "bytes_a_token", None):
            metrics["bits_per_byte"] = loss / math.log(2) / size
        return metrics

    def measure(self, model: keras.Model, columns: Any) -> dict:
        """The block of one split in results.json."""
        started, scores = time.perf_counter(), self.scores(model, columns)

        def metrics(*rows):
            return self.metrics(columns, *rows)

        return measured(metrics, scores, len(columns), started)

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights."""
        settings = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.name.endswith(("tokenizer", self.shape))
        }
        shape = getattr(self, self.shape).to_dict()
        return {"task": self.name} | settings | {self.shape: shape}


def with_losses(inputs: dict, hidden, embedding, dtype, label_smoothing=0.0):
    """Losses of next tokens: all logits at once are never needed.

    Args:
        inputs: A model's inputs by name; int32 `targets` and float32 `target_weights`
            `[rows, length]` are added.
        hidden: `[rows, length, size]`, after the last norm.
        embedding: See `NextTokenLoss`.
        dtype: Name of a Keras dtype policy.
        label_smoothing: See `NextTokenLoss`.

    Returns:
        float32 `[rows, length]`, in nats.
    """
    for name, kind in (("targets", "int32"), ("target_weights", "float32")):
        inputs[name] = keras.Input((None,), dtype=kind, name=name)
    loss = NextTokenLoss(embedding, label_smoothing, dtype=dtype, name="loss")
    return loss(hidden, inputs["targets"], inputs["target_weights"])
