"""The training step of `step_tf` for `KERAS_BACKEND=jax`, behind `fit`.

The same mathematics in the same order: the sum over real targets divided by their
number over all micro-batches, L2 once; accumulate, check finite, clip by global norm,
apply. One device; bfloat16 or float32 (a loss scale is for float16 alone, which the
accelerators that JAX is used on do not need).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import jax
import jax.numpy as jnp
import keras
from keras import ops


class TrainingModel(keras.Model):
    """Trains a core model through `fit` over `stacked` batches.

    Args:
        core: Functional model that maps a dict of inputs to outputs.
        task: Gives `loss_counts`, `loss_sums` and `metric_sums` (see `tasks.task`).
        optimizer: A Keras optimizer that is built with the core's variables.
        clip_norm: Largest global norm of the gradient; 0 switches clipping off.
        rates: A factor of the learning rate for each trainable variable.
        ema_decay: Decay of the moving average of the weights; 0 keeps none.
    """

    def __init__(
        self,
        core: keras.Model,
        task,
        optimizer: keras.optimizers.Optimizer,
        *,
        clip_norm: float = 0.0,
        rates: Sequence[float] | None = None,
        ema_decay: float = 0.0,
    ):
        super().__init__()
        self.core, self.task, self.clip_norm = core, task, clip_norm
        self.ema_decay = ema_decay
        self.built = True
        self.ema = [
            self.add_weight(
                shape=variable.shape,
                initializer=lambda shape, dtype, v=variable: ops.copy(v.value),
                trainable=False,
                name=f"ema_{i}",
            )
            for i, variable in enumerate(core.trainable_variables if ema_decay else ())
        ]
        self.compile(optimizer=optimizer, loss=None)
        self._input_names = [tensor.name for tensor in core.inputs]
        self._rates = list(rates or [1.0] * len(core.trainable_variables))

    def call(self, inputs, training=None):
        """The core model's outputs."""
        return self.core(inputs, training=training)

    def train_step(self, state, data):
        """One optimizer step: (logs, state), pure."""
        trained, fixed, moments, metric_state = state
        (batches,) = data
        places = {id(v): i for i, v in enumerate(self.non_trainable_variables)}
        inner = [places[id(v)] for v in self.core.non_trainable_variables]
        counts = [self.task.loss_counts(batch) for batch in batches]
        totals = {
            # A batch without a single target gives a loss of 0, not NaN.
            name: jnp.maximum(sum(jnp.float32(c[name]) for c in counts), 1e-9)
            for name in counts[0]
        }
        own = [fixed[i] for i in inner]
        sums, grads = {}, None
        for batch in batches:
            (_, (own, found)), new = jax.value_and_grad(self._loss, has_aux=True)(
                trained, own, batch, totals, len(batches)
            )
            grads = new if grads is None else jax.tree.map(jnp.add, grads, new)
            for name, pair in found.items():
                pair = jnp.stack([jnp.float32(x) for x in pair])
                sums[name] = sums.get(name, 0.0) + pair
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in map(jnp.float32, grads)))
        finite = jnp.isfinite(norm)
        if self.clip_norm:
            scale = jnp.minimum(1.0, self.clip_norm / (norm + 1e-6))
            grads = [grad * scale.astype(grad.dtype) for grad in grads]
        step = moments[self._place_of_steps()]
        rate = self.optimizer._learning_rate
        if callable(rate):
            rate = rate(step)
        applied, after = self.optimizer.stateless_apply(moments, grads, trained)
        applied = [
            new if factor == 1.0 else old + (new - old) * factor
            for new, old, factor in zip(applied, trained, self._rates, strict=True)
        ]

        def choose(new, old):
            return [jnp.where(finite, a, b) for a, b in zip(new, old, strict=True)]

        applied, after = choose(applied, trained), choose(after, moments)
        fixed = list(fixed)
        for i, value in zip(inner, own, strict=True):
            fixed[i] = value
        decay = jnp.minimum(self.ema_decay, (1.0 + step) / (10.0 + step))
        for average, value in zip(self.ema, applied, strict=bool(self.ema)):
            i = places[id(average)]
            moved = fixed[i] * decay + value * (1.0 - decay)
            fixed[i] = jnp.where(finite, moved, fixed[i])
        tokens, positions = sums.pop("tokens")
        logs = {name: pair[0] / pair[1] for name, pair in sums.items()}
        logs |= {"loss": sums["loss"][0], "learning_rate": rate, "grad_norm": norm}
        logs |= {"tokens": tokens, "positions": positions}
        logs["bad_step"] = 1.0 - finite.astype("float32")
        return logs, (applied, fixed, after, metric_state)

    def _loss(self, trained, fixed, batch, totals, parts):
        """A micro-batch's share of the loss, the new state and the metrics' sums."""
        core = self.core
        inputs = {name: batch[name] for name in self._input_names}
        state = zip(core.trainable_variables, trained, strict=True)
        state = [*state, *zip(core.non_trainable_variables, fixed, strict=True)]
        # As `stateless_call`, but around the loss too: it may read weights, as one over
        # a tied embedding does.
        with keras.StatelessScope(state, collect_losses=True) as scope:
            outputs = core(inputs, training=True)
            sums = self.task.loss_sums(outputs, batch)
            losses = sum(core.losses) / parts
        fixed = [scope.get_current_value(v) for v in core.non_trainable_variables]
        loss = sum(sums[name] / totals[name] for name in sums) + losses
        metrics = self.task.metric_sums(outputs, batch)
        if len(sums) > 1:
            counts = self.task.loss_counts(batch)
            metrics |= {name: (sums[name], counts[name]) for name in sums}
        mask = batch["padding_mask"]
        metrics |= {"tokens": (jnp.sum(mask), mask.size), "loss": (loss, 1.0)}
        return loss, (fixed, metrics)

    def _place_of_steps(self) -> int:
        variables = self.optimizer.variables
        return next(
            i for i, v in enumerate(variables) if v is self.optimizer.iterations
        )

    def _get_metrics_result_or_logs(self, logs):
        return logs  # those of the last step, as in `step_tf`


def stacked(batches: Iterable[dict], micro_batches: int = 1) -> Iterator[tuple]:
    """Puts the micro-batches of one optimizer step together, as `fit` wants them.

    Args:
        batches: Dicts of arrays, such as `data.pipeline.batches` gives.
        micro_batches: How many make one step.
    """
    batches = iter(batches)
    while group := tuple(islice(batches, micro_batches)):
        yield (group,)
