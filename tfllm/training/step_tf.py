"""The one training step, behind `fit`.

What it does where Keras' own step is wrong (each found by running it):

- The loss is the sum over real targets divided by their number, over micro-batches and
  replicas together; each of several losses has its own count; L2 is added once.
- The order is: accumulate, all-reduce, check finite, clip by global norm, apply. Keras
  clips on each replica before the sum, and averages the means of micro-batches.
- A step whose gradient is not finite is skipped on all replicas alike, and counted.
- Schedules see optimizer steps, not micro-batches.
- Each replica draws its own dropout masks; Keras' draw the same ones everywhere.

The outer model is made outside the strategy's scope and owns `fit`; the core model and
the optimizer live inside it. Only the public `make_train_function` is overridden.
"""

import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfllm.core.errors import UserError

MIXES = 4096  # shares that mixup draws from
FLOAT16_GROWTH_STEPS = 2000  # good steps before the loss scale is doubled
SEED_STRIDE = 1_000_003  # between the random keys of two replicas


class TrainingModel(keras.Model):
    """Trains a core model through `fit`.

    Args:
        core: Functional model that maps a dict of inputs to outputs; built, with the
            optimizer, inside `strategy.scope()`.
        task: Gives `loss_counts`, `loss_sums` and `metric_sums` (see `tasks.task`).
        optimizer: A built Keras optimizer.
        micro_batches: Micro-batches that make one optimizer step on each device.
        clip_norm: Largest global norm of the gradient; 0 switches clipping off.
        rates: A factor of the learning rate for each trainable variable.
        starts: For each trainable variable the first optimizer step that moves it.
        ema_decay: Decay of the moving average of the weights; 0 keeps none.
        adversarial: Each micro-batch counts half as it is and half with its token
            vectors pushed where the loss grows most (Miyato et al., 2017), each text's
            by this many times the mean length of its tokens' vectors.
        mixup: Each text's token vectors are mixed with those of another one of its
            micro-batch, and so are the two losses (Zhang et al., 2018; Guo et al.,
            2019); the share is drawn from Beta(mixup, mixup). 0 mixes nothing.
        seed: Of these shares.
        jit_compile: Compile the step (under a strategy: its local part) with XLA.
    """

    def __init__(
        self,
        core: keras.Model,
        task,
        optimizer: keras.optimizers.Optimizer,
        *,
        micro_batches: int = 1,
        clip_norm: float = 0.0,
        rates: Sequence[float] | None = None,
        starts: Sequence[int] | None = None,
        ema_decay: float = 0.0,
        adversarial: float = 0.0,
        mixup: float = 0.0,
        seed: int = 0,
        jit_compile: bool = False,
        strategy: tf.distribute.Strategy | None = None,
    ):
        super().__init__()
        self.core, self.task, self.strategy = core, task, strategy
        self.micro_batches, self.clip_norm = micro_batches, clip_norm
        self.ema_decay, self.use_xla = ema_decay, jit_compile
        self.adversarial, self.mixup, self.seed = adversarial, mixup, seed
        vectors = any(layer.name == "token_embedding" for layer in core.layers)
        if (adversarial or mixup) and not vectors:
            raise UserError(
                "--adversarial and --mixup change the vectors of tokens, and this "
                "model has none",
                fix="Leave them out, or take another --model",
            )
        self.data_seconds = 0.0  # time spent waiting for batches
        self.stop = False  # this process asks all others to stop after the next step
        self.built = True
        self.compile(optimizer=optimizer, loss=None)
        self._strategy = strategy or tf.distribute.get_strategy()
        self._input_names = [tensor.name for tensor in core.inputs]
        self._trained = core.trainable_variables
        self._rates = list(rates or [1.0] * len(self._trained))
        self._starts = list(starts or [0] * len(self._trained))
        self._decayed = [
            bool(optimizer.weight_decay) and optimizer._use_weight_decay(variable)
            for variable in self._trained
        ]
        half = any(
            getattr(layer, "compute_dtype", None) == "float16"
            for layer in core._flatten_layers()
        )
        with self._strategy.scope():
            # Equal on all replicas, and so in the checkpoint once.
            shared = {
                "trainable": False,
                "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
            }
            self.loss_scale = tf.Variable(2.0**15, **shared) if half else None
            self.good_steps = tf.Variable(0, **shared) if half else None
            self.ema = [
                tf.Variable(variable.value, **shared) if ema_decay else None
                for variable in self._trained
            ]

    @property
    def extra_variables(self) -> dict[str, tf.Variable]:
        """What a checkpoint needs beside the core model and the optimizer."""
        named = {f"ema/{i}": v for i, v in enumerate(self.ema) if v is not None}
        if self.loss_scale is not None:
            named |= {"loss_scale": self.loss_scale, "good_steps": self.good_steps}
        return named

    @property
    def random_variables(self) -> list[keras.Variable]:
        """States of the core model's random generators."""
        weights = {id(variable) for variable in self.core.weights}
        return [v for v in self.core.variables if id(v) not in weights]

    def part_random_states(self) -> None:
        """Gives each replica its own random key, from that of the first one.

        To be called once the variables have their values, new or restored. A checkpoint
        holds the first replica's keys; all count alike.
        """

        def move():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for variable in self.random_variables:
                offset = tf.stack([replica * SEED_STRIDE, 0])
                variable.value.assign_add(tf.cast(offset, variable.value.dtype))

        if self.strategy is not None and self.random_variables:
            tf.function(lambda: self.strategy.run(move))()

    def call(self, inputs, training=None):
        """The core model's outputs."""
        return self.core(inputs, training=training)

    def make_train_function(self, force=False):
        """Builds the step that `fit` calls with its iterator."""
        if self.train_function is not None and not force:
            return
        alone = type(self._strategy) is type(tf.distribute.get_strategy())
        gradients = self._gradients
        if self.use_xla and not alone:
            gradients = tf.function(gradients, jit_compile=True)

        def step(batches, stop):
            logs, finite, scale, grads = self._strategy.run(
                self._replica_step, args=(batches, stop, gradients)
            )
            first = lambda x: self._strategy.experimental_local_results(x)[0]  # noqa: E731
            logs = {name: first(value) for name, value in logs.items()}
            logs["learning_rate"] = self.optimizer._get_current_learning_rate()
            tf.cond(
                first(finite), lambda: self._apply(grads, scale), lambda: self._skip()
            )
            return logs

        compiled = None

        def train_function(iterator):
            nonlocal compiled
            started = time.perf_counter()
            batches = [next(iterator) for _ in range(self.micro_batches)]
            self.data_seconds += time.perf_counter() - started
            if compiled is None:
                signature = None
                if alone:  # one trace for all lengths
                    signature = [[_any_shape(batch) for batch in batches]]
                    signature += [tf.TensorSpec([], "float32")]
                compiled = tf.function(
                    step,
                    input_signature=signature,
                    jit_compile=self.use_xla and alone,
                    reduce_retracing=signature is None,
                )
            return compiled(batches, tf.constant(float(self.stop)))

        self.train_function = train_function

    def _get_metrics_result_or_logs(self, logs):
        return logs  # those of the last step; `training.logs` averages over steps

    @property
    def _embedding(self):
        return self.core.get_layer("token_embedding")

    def _share(self, micro_batch: int):
        """How much of itself a text keeps: a function of seed and step."""
        draws = np.random.default_rng(self.seed).beta(self.mixup, self.mixup, MIXES)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        step = tf.cast(self.optimizer.iterations.value, "int32")
        place = step * self.micro_batches + micro_batch
        place = place * self._strategy.num_replicas_in_sync + replica
        key = tf.stack([self.seed, place])
        chosen = tf.random.stateless_uniform([], key, 0, MIXES, "int32")
        return tf.constant(draws, "float32")[chosen]

    def _gradients(self, batch, totals, scale, share):
        """Gradients of one micro-batch's share of the loss, on one replica."""
        if not self.adversarial:
            return self._pass(batch, totals, scale, share=share)
        vectors = tf.cast(self._embedding(batch["token_ids"]), "float32")
        grads, metrics, slope = self._pass(batch, totals, scale, tf.zeros_like(vectors))
        real = tf.cast(batch["padding_mask"], "float32")
        count = tf.maximum(tf.reduce_sum(real, 1), 1.0)
        length = tf.reduce_sum(tf.norm(vectors, axis=-1) * real, 1) / count
        length = self.adversarial * length[:, None, None]
        # Made large first: the square of a tiny slope would be nothing.
        slope /= tf.reduce_max(tf.abs(slope), [1, 2], keepdims=True) + 1e-30
        norm = tf.sqrt(tf.reduce_sum(tf.square(slope), [1, 2], keepdims=True))
        pushed, *_ = self._pass(batch, totals, scale, length * slope / (norm + 1e-6))
        return [(a + b) / 2 for a, b in zip(grads, pushed, strict=True)], metrics

    def _pass(self, batch, totals, scale, offset=None, share=None):
        """Forward and back, once, of texts mixed where there is a `share`.

        Returns:
            Gradients, metrics and, with an `offset` of the token vectors, its gradient.
        """
        parts = self._strategy.num_replicas_in_sync * self.micro_batches
        sources = [variable.value for variable in self._trained]
        with tf.GradientTape() as tape:
            inputs, added = {name: batch[name] for name in self._input_names}, offset
            if offset is not None:
                tape.watch(offset)
                sources.append(offset)
            if share is not None:
                other = {name: tensor[::-1] for name, tensor in batch.items()}
                vectors = self._embedding(batch["token_ids"])
                added = (1 - share) * tf.cast(vectors[::-1] - vectors, "float32")
                if "padding_mask" in inputs:  # as long as the longer one
                    masks = batch["padding_mask"], other["padding_mask"]
                    inputs["padding_mask"] = tf.maximum(*masks)
            outputs = self._pushed(inputs, added)
            sums = self.task.loss_sums(outputs, batch)
            if share is not None:
                others = self.task.loss_sums(outputs, other)
                sums = {n: share * sums[n] + (1 - share) * others[n] for n in sums}
            loss = tf.add_n([sums[name] / totals[name] for name in sums])
            if self.core.losses:  # L2, once in the sum over all parts
                loss += tf.add_n(self.core.losses) / parts
            scaled = loss if scale is None else loss * scale
        grads = tape.gradient(scaled, sources)
        grads = [
            tf.zeros_like(source) if grad is None else tf.convert_to_tensor(grad)
            for grad, source in zip(grads, sources, strict=True)
        ]
        metrics = self.task.metric_sums(outputs, batch)
        if len(sums) > 1:
            counts = self.task.loss_counts(batch)
            metrics |= {name: (sums[name], counts[name]) for name in sums}
        metrics |= {"loss": (loss, tf.ones([]))}
        if offset is None:
            return grads, metrics
        return grads[:-1], metrics, grads[-1]

    def _pushed(self, inputs, offset):
        """Outputs in training, token vectors pushed by an `offset` if there is one."""
        if offset is None:
            return self.core(inputs, training=True)
        self._embedding.offset = offset
        try:
            return self.core(inputs, training=True)
        finally:
            self._embedding.offset = None

    def _replica_step(self, batches, stop, gradients):
        """Everything before the update, on one replica."""
        context = tf.distribute.get_replica_context()
        counts = [self.task.loss_counts(batch) for batch in batches]
        totals = {
            name: tf.add_n([tf.cast(c[name], "float32") for c in counts])
            for name in counts[0]
        }
        totals = context.all_reduce("SUM", totals)
        # A batch without a single target gives a loss of 0, not NaN.
        totals = {name: tf.maximum(total, 1e-9) for name, total in totals.items()}
        grads = metrics = None
        for number, batch in enumerate(batches):
            share = self._share(number) if self.mixup else None
            new_grads, new = gradients(batch, totals, self.loss_scale, share)
            flat = {n: tf.stack([tf.cast(x, "float32") for x in new[n]]) for n in new}
            if grads is None:
                grads, metrics = new_grads, flat
            else:
                grads = [a + b for a, b in zip(grads, new_grads, strict=True)]
                metrics = {name: metrics[name] + flat[name] for name in flat}
        masks = [batch["padding_mask"] for batch in batches if "padding_mask" in batch]
        metrics["tokens"] = tf.stack(
            [
                tf.add_n([tf.reduce_sum(tf.cast(m, "float32")) for m in masks]),
                tf.add_n([tf.cast(tf.size(m), "float32") for m in masks]),
            ]
        )
        metrics["stop"] = tf.stack([stop, 1.0])
        grads = context.all_reduce("SUM", grads)
        metrics = context.all_reduce("SUM", metrics)
        if self.loss_scale is not None:
            grads = [grad / self.loss_scale for grad in grads]
        norm = tf.linalg.global_norm(grads)
        finite = tf.math.is_finite(norm)
        scale = tf.ones([])
        if self.clip_norm:
            scale = tf.minimum(1.0, self.clip_norm / (norm + 1e-6))
        logs = {name: value[0] / value[1] for name, value in metrics.items()}
        logs |= {"loss": metrics["loss"][0], "tokens": metrics["tokens"][0]}
        logs |= {"positions": metrics["tokens"][1], "grad_norm": norm}
        logs["bad_step"] = 1.0 - tf.cast(finite, "float32")
        return logs, finite, scale, grads

    def _apply(self, grads, scale):
        """One optimizer step, in cross-replica context (`optimizer.apply` fails)."""
        optimizer = self.optimizer
        rate = optimizer._get_current_learning_rate()
        step = tf.cast(optimizer.iterations.value, "float32")
        adam = type(optimizer) is keras.optimizers.AdamW and not optimizer.amsgrad
        decay = tf.minimum(self.ema_decay, (1.0 + step) / (10.0 + step))

        def update(variable, grad, scale, decayed, factor):
            own = rate * factor
            if decayed:
                variable.assign(variable * (1.0 - optimizer.weight_decay * own))
            if adam:  # in one pass instead of a dozen
                place = optimizer._get_variable_index(variable)
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle,
                    m=optimizer._momentums[place].value.handle,
                    v=optimizer._velocities[place].value.handle,
                    beta1_power=tf.pow(optimizer.beta_1, step + 1.0),
                    beta2_power=tf.pow(optimizer.beta_2, step + 1.0),
                    lr=own,
                    beta1=optimizer.beta_1,
                    beta2=optimizer.beta_2,
                    epsilon=optimizer.epsilon,
                    grad=grad * scale,
                )
            else:
                optimizer.update_step(grad * scale, variable, own)

        def average(ema, variable):
            ema.assign(ema * decay + variable * (1.0 - decay))

        with self._strategy.scope():
            extended = self._strategy.extended
            for variable, grad, decayed, factor, start, ema in zip(
                *(self._trained, grads, self._decayed, self._rates, self._starts),
                *(self.ema,),
                strict=True,
            ):
                value = variable.value
                if start:
                    factor = tf.where(step < start, 0.0, factor)
                arguments = (grad, scale, decayed, factor)
                extended.update(value, update, args=arguments, group=False)
                if ema is not None:
                    extended.update(ema, average, args=(value,), group=False)
            optimizer.iterations.assign_add(1)
            if self.loss_scale is not None:
                grow = self.good_steps + 1 >= FLOAT16_GROWTH_STEPS
                self.loss_scale.assign(self.loss_scale * tf.where(grow, 2.0, 1.0))
                self.good_steps.assign(tf.where(grow, 0, self.good_steps + 1))
        return 0

    def _skip(self):
        """A step that was not finite changes nothing but the loss scale."""
        with self._strategy.scope():
            if self.loss_scale is not None:
                self.loss_scale.assign(tf.maximum(self.loss_scale / 2.0, 1.0))
                self.good_steps.assign(0)
        return 0


def _any_shape(batch):
    """The signature of a batch: every dimension free."""
    return {
        name: tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)
        for name, tensor in batch.items()
    }
