"""Batches as a `tf.data.Dataset`: the plan in NumPy says what, tf.data carries it."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfllm.data.batching import BatchPlan, Micro
from tfllm.data.columns import Columns
from tfllm.data.pipeline import Transform, make_batch


def dataset(
    columns: Columns,
    plan: BatchPlan,
    *,
    start_step: int = 0,
    stop_step: int | None = None,
    pad_values: Mapping[str, float] | None = None,
    transform: Transform | None = None,
) -> tf.data.Dataset:
    """A dataset of micro-batches in order: step 0 part 0, step 0 part 1, …

    Deterministic, prefetched, and started at any step at once.

    Args:
        columns: The examples.
        plan: Which examples stand where in which step.
        start_step: The first global step.
        stop_step: The step after the last; `None` goes on for ever.
        pad_values: See `Columns.gather`.
        transform: See `pipeline.batches`; a batch's shapes may depend on the plan's
            shape that it has, on nothing else.

    Returns:
        A dataset of dicts as `Columns.gather` or `transform` makes them. A dimension
        that is equal in all of the plan's shapes is static, the others are `None`; its
        cardinality is known when `stop_step` is.
    """
    parts = plan.parts

    def make(micro: Micro, step: int, part: int) -> dict[str, np.ndarray]:
        return make_batch(columns, micro, step, part, pad_values, transform)

    # An empty batch of each shape tells what all batches look like.
    first, none = plan.step(start_step)[0], np.zeros(0, np.int64)
    empty = first._replace(indices=none, rows=none, starts=none)
    samples = [
        make(empty._replace(num_rows=rows, length=length), start_step, 0)
        for rows, length in plan.shapes
    ]
    names = sorted(samples[0])
    dtypes = [samples[0][name].dtype for name in names]
    shapes = []
    for name in names:
        sizes = map(set, zip(*(batch[name].shape for batch in samples), strict=True))
        shapes.append([size.pop() if len(size) == 1 else None for size in sizes])

    def assemble(number: int) -> list[np.ndarray]:
        step, part = divmod(int(number), parts)
        batch = make(plan.step(step)[part], step, part)
        return [batch[name] for name in names]

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        # Stateful, so that no optimiser folds or reorders the calls.
        values = tf.numpy_function(assemble, [number], dtypes)
        for value, shape in zip(values, shapes, strict=True):
            value.set_shape(shape)
        return dict(zip(names, values, strict=True))

    stop = np.iinfo(np.int64).max if stop_step is None else stop_step * parts
    numbers = tf.data.Dataset.range(start_step * parts, stop)
    options = tf.data.Options()
    options.deterministic = True
    # Nothing here is tuned, and an iterator's end waits for the tuning thread, whose
    # sleep doubles each time: up to as long as the iterator was in use.
    options.autotune.enabled = False
    # The plan already says which worker gets what.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return numbers.map(load).prefetch(2 * parts + 2).with_options(options)
