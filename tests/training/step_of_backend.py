"""Fifteen training steps under the backend at hand; writes what came out.

KERAS_BACKEND=jax python step_of_backend.py OUT.npz '{"optimizer": "adamw", …}'
"""

import json
import sys

import keras
import numpy as np
import tiny_trainer

from tfllm.data.batching import BatchPlan
from tfllm.data.pipeline import batches
from tfllm.training.optimizers import layer_rates, make_optimizer

STEPS = 15


class Task(tiny_trainer.TinyTask):
    """Its loss reads a weight, as one over a tied embedding does."""

    def loss_sums(self, outputs, batch):
        sums = super().loss_sums(outputs, batch)
        square = keras.ops.mean(keras.ops.square(self.embedding.value))
        return {"loss": sums["loss"] + self.loss_counts(batch)["loss"] * square}


def main(path, optimizer, micro_batches=1, poison=None, **options):
    task = Task()
    core = task.build_model()
    task.embedding = core.get_layer("embedding").embeddings
    random = np.random.default_rng(5)
    core.set_weights([random.normal(0, 0.3, w.shape) for w in core.get_weights()])
    variables = core.trainable_variables
    built = make_optimizer(
        *(optimizer, variables),
        learning_rate=0.1 if optimizer == "sgd" else 0.01,
        total_steps=STEPS,
        warmup_ratio=0.2,
        weight_decay=0.1,
    )
    options["rates"] = layer_rates(variables, options.pop("layer_decay", 1.0))
    columns = tiny_trainer.columns(400, poison)
    plan = BatchPlan(columns.lengths, batch_size=16, max_length=12, parts=micro_batches)
    stream = batches(columns, plan, 0, STEPS)
    if keras.backend.backend() == "jax":
        from tfllm.training.step_jax import TrainingModel, stacked

        model = TrainingModel(core, task, built, **options)
        data = stacked(stream, micro_batches)
    else:
        import tensorflow as tf

        from tfllm.training.step_tf import TrainingModel

        options["micro_batches"] = micro_batches
        model = TrainingModel(core, task, built, **options)
        first = columns.gather(plan.step(0)[0])
        data = tf.data.Dataset.from_generator(
            lambda: stream,
            output_signature={
                name: tf.TensorSpec([None] * value.ndim, value.dtype)
                for name, value in first.items()
            },
        )
    rows = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rows.append(dict(logs))
    )
    model.fit(data, steps_per_epoch=STEPS, verbose=0, callbacks=[record], shuffle=False)
    names = ("loss", "grad_norm", "learning_rate", "tokens", "positions", "bad_step")
    logs = {name: [float(row[name]) for row in rows] for name in names}
    weights = np.concatenate([w.ravel() for w in core.get_weights()])
    ema = [np.ravel(keras.ops.convert_to_numpy(v)) for v in model.ema if v is not None]
    ema = np.concatenate(ema) if ema else np.zeros(0)
    np.savez(path, weights=weights, ema=ema, **logs)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
