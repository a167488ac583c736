"""Batches as NumPy dicts, without TensorFlow; and how long a loop waits for them."""

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

import numpy as np

from tfllm.data.batching import BatchPlan
from tfllm.data.columns import Columns


def batches(
    columns: Columns,
    plan: BatchPlan,
    start_step: int = 0,
    stop_step: int | None = None,
    pad_values: Mapping[str, float] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields micro-batches in order: step 0 part 0, step 0 part 1, …

    Args:
        columns: The examples.
        plan: Which examples stand where in which step.
        start_step: The first global step; reached without replay.
        stop_step: The step after the last; `None` goes on for ever.
        pad_values: See `Columns.gather`.
    """
    steps = count(start_step) if stop_step is None else range(start_step, stop_step)
    for step in steps:
        for micro in plan.step(step):
            yield columns.gather(micro, pad_values)


class Waiting:
    """Iterates over `iterable` and measures the time its consumer waits for it.

    Attributes:
        seconds: Time spent inside `next` since the last `share()`.
    """

    def __init__(self, iterable: Iterable):
        self._iterable = iterable
        self.seconds, self._since = 0.0, time.perf_counter()

    def __iter__(self) -> Iterator:
        iterator = iter(self._iterable)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - asked
            yield item

    def share(self) -> float:
        """The share (0 to 1) of the time since the last call that was waiting."""
        now = time.perf_counter()
        share = self.seconds / max(now - self._since, 1e-9)
        self.seconds, self._since = 0.0, now
        return min(share, 1.0)
