"""Several devices and several machines, on TensorFlow's own engine."""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfllm.core.console import warn
from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan, Micro

# What a collective operation ends with when a worker is gone or stops answering.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.FailedPreconditionError,
)


@functools.cache  # two in one process would mix up their collective operations
def make_strategy(name: str) -> tf.distribute.Strategy | None:
    """The strategy of `--strategy`; `None` for one device.

    Raises:
        UserError: If TensorFlow was used before a multi-worker strategy could be made.
    """
    if name == "one":
        return None
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices("CPU")
        if len(devices) == 1:
            warn("--strategy mirrored finds a single device")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    else:
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except RuntimeError as error:
            raise UserError(f"the workers cannot be joined: {error}") from None
    # Every step has a part for each replica: no need to ask all workers, at every
    # batch, whether there is one.
    strategy.extended.experimental_enable_get_next_as_optional = False
    return strategy


def chiefs_values(strategy: tf.distribute.Strategy, values: Sequence[float]) -> list:
    """The first replica's `values`, on every worker."""

    def share(mine):
        context = tf.distribute.get_replica_context()
        chief = tf.equal(context.replica_id_in_sync_group, 0)
        return context.all_reduce("SUM", tf.where(chief, mine, tf.zeros_like(mine)))

    run = tf.function(lambda mine: strategy.run(share, args=(mine,)))
    told = run(tf.constant(np.asarray(values, np.float64)))
    return strategy.experimental_local_results(told)[0].numpy().tolist()


class PartOfPlan:
    """The micro-batches of one of several workers, as a plan.

    Args:
        plan: The whole plan; `parts` is a multiple of `workers`.
        workers: Number of workers.
        worker: Which one, from 0.
    """

    def __init__(self, plan: BatchPlan, workers: int, worker: int):
        self._plan, self._cut = plan, slice(worker, None, workers)
        self.parts, self.shapes = plan.parts // workers, plan.shapes

    def step(self, step: int) -> list[Micro]:
        """This worker's micro-batches of a global step."""
        return self._plan.step(step)[self._cut]
