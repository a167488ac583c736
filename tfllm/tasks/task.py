"""What the training room may know of a task."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from tfllm.core.console import progress
from tfllm.data.batching import BatchPlan, Micro
from tfllm.data.columns import Columns

# A batch is a dict of arrays as `data.columns.Columns.gather` makes them.
Batch = dict[str, Any]
Sums = dict[str, tuple[Any, Any]]


class Verdict(NamedTuple):
    """How a model does on held-out data.

    Attributes:
        metrics: Numbers by name.
        pictures: Draws pictures `[height, width, 3]` by name, for TensorBoard.
        texts: Gives Markdown by name, for TensorBoard.
    """

    metrics: dict[str, float]
    pictures: Callable[[], dict[str, np.ndarray]] = dict
    texts: Callable[[], dict[str, str]] = dict


def own_settings(cls: type, config: dict) -> dict:
    """What a checkpoint's config.json says of the fields of a task's dataclass."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in config.items() if name in names}


class Task(Protocol):
    """A job, seen from training.

    Losses and metrics are told as sums and counts, never as means: only a sum over
    real targets divided by their number, over micro-batches and replicas together, is
    the loss of the whole batch.
    """

    name: str
    monitor: str
    """The validation metric that decides which weights are the best ones."""
    maximize: bool
    """Whether a higher `monitor` is better."""

    def build_model(self, dtype: str | None = None) -> Any:
        """A functional `keras.Model` whose inputs are keys of a batch."""

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """For each loss, the number of real targets in a batch (a scalar)."""

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """For each loss, its sum over the real targets of a batch (a scalar)."""

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Cheap training metrics as (sum, count)."""

    max_length: int
    """Longest example in tokens; a batch is never longer."""

    def validate(self, model: Any, columns: Any) -> "Verdict":
        """How a model does on held-out columns, `monitor` among the metrics."""

    def pad_values(self) -> dict[str, int]:
        """What fills the ragged columns of a batch; 0 where a name is absent."""

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights, as JSON."""


def answers_of(
    model: Any,
    columns: Columns,
    max_length: int,
    pad_values: Mapping[str, int],
    rows: int = 64,
) -> Iterator[tuple[Micro, Any]]:
    """Goes through columns once: what stands in a batch, and the model's answer."""
    names = [tensor.name for tensor in model.inputs]
    plan = BatchPlan(
        columns.lengths, batch_size=rows, max_length=max_length, shuffle=False
    )
    with progress("measuring", plan.steps_per_epoch) as advance:
        for step in range(plan.steps_per_epoch):
            (micro,) = plan.step(step)
            batch = columns.gather(micro, pad_values)
            yield micro, model.predict_on_batch({name: batch[name] for name in names})
            advance()
