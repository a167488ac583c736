"""Batches as NumPy dicts, without TensorFlow."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count

import numpy as np

from tfllm.data.batching import BatchPlan, Micro
from tfllm.data.columns import Columns

# What a task does to a gathered batch: (batch, global step, part) → batch. It must be
# a pure function, so that a resumed run sees the same.
Transform = Callable[[dict[str, np.ndarray], int, int], dict[str, np.ndarray]]


def batches(
    columns: Columns,
    plan: BatchPlan,
    start_step: int = 0,
    stop_step: int | None = None,
    pad_values: Mapping[str, float] | None = None,
    transform: Transform | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields micro-batches in order: step 0 part 0, step 0 part 1, …

    Args:
        columns: The examples.
        plan: Which examples stand where in which step.
        start_step: The first global step; reached without replay.
        stop_step: The step after the last; `None` goes on for ever.
        pad_values: See `Columns.gather`.
        transform: Changes each batch, such as by masking words anew at each step.
    """
    steps = count(start_step) if stop_step is None else range(start_step, stop_step)
    for step in steps:
        for part, micro in enumerate(plan.step(step)):
            yield make_batch(columns, micro, step, part, pad_values, transform)


def make_batch(
    columns: Columns,
    micro: Micro,
    step: int,
    part: int,
    pad_values: Mapping[str, float] | None = None,
    transform: Transform | None = None,
) -> dict[str, np.ndarray]:
    """The batch of one `micro`, part `part` of `step`; see `batches`."""
    batch = columns.gather(micro, pad_values)
    return transform(batch, step, part) if transform else batch
