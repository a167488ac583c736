"""Batches as a `tf.data.Dataset`: the plan in NumPy says what, tf.data carries it."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfllm.data.batching import BatchPlan
from tfllm.data.columns import Columns


def dataset(
    columns: Columns,
    plan: BatchPlan,
    *,
    start_step: int = 0,
    stop_step: int | None = None,
    pad_values: Mapping[str, float] | None = None,
) -> tf.data.Dataset:
    """A dataset of micro-batches in order: step 0 part 0, step 0 part 1, …

    Deterministic, prefetched, and started at any step at once.

    Args:
        columns: The examples.
        plan: Which examples stand where in which step.
        start_step: The first global step.
        stop_step: The step after the last; `None` goes on for ever.
        pad_values: See `Columns.gather`.

    Returns:
        A dataset of dicts as `Columns.gather` makes them. A dimension that is equal in
        all of the plan's shapes is static, the others are `None`; its cardinality is
        known when `stop_step` is.
    """
    parts = plan.parts
    sample = columns.gather(plan.step(start_step)[0], pad_values)
    names = sorted(sample)

    def assemble(number: int) -> list[np.ndarray]:
        step, part = divmod(int(number), parts)
        batch = columns.gather(plan.step(step)[part], pad_values)
        return [batch[name] for name in names]

    row_counts, lengths = (set(sizes) for sizes in zip(*plan.shapes, strict=True))
    rows = row_counts.pop() if len(row_counts) == 1 else None
    length = lengths.pop() if len(lengths) == 1 else None
    wide = {"padding_mask", "sequence_ids", "positions", *columns.ragged}
    wide |= {f"{name}_mask" for name in columns.ragged}

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        dtypes = [sample[name].dtype for name in names]
        # Stateful, so that no optimiser folds or reorders the calls.
        values = tf.numpy_function(assemble, [number], dtypes)
        for name, value in zip(names, values, strict=True):
            inner = sample[name].shape[1:]
            value.set_shape([rows, *((length, *inner[1:]) if name in wide else inner)])
        return dict(zip(names, values, strict=True))

    stop = np.iinfo(np.int64).max if stop_step is None else stop_step * parts
    numbers = tf.data.Dataset.range(start_step * parts, stop)
    options = tf.data.Options()
    options.deterministic = True
    # The plan already says which worker gets what.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return numbers.map(load).prefetch(2 * parts + 2).with_options(options)
