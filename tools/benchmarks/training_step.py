"""One training step of a BERT shape: ours, keras-hub's, Hugging Face's, in turns.

    python tools/benchmarks/training_step.py [--rounds 7] [--hf_python PATH]

4 layers, 256 wide, 64 texts of 64 tokens, AdamW, dropout 0.1, two classes. Every system
lives in a process of its own and they take turns, a few steps each, so that what else
the machine does meets all alike; medians over the rounds. keras-hub runs as it comes:
`compile`, `fit`. Hugging Face takes part when `torch` and `transformers` are installed
for --hf_python. Prints a table and writes runs/benchmarks/training_step.json.
"""

import argparse
import statistics
import sys

from turns import race, serve, timed, write

LAYERS, SIZE, HEADS, INNER, VOCABULARY = 4, 256, 4, 1024, 21128
ROWS, LENGTH, DROPOUT, RATE = 64, 64, 0.1, 1e-4
OURS = ["ours float32", "ours float32 xla", "ours bfloat16", "ours bfloat16 xla"]
HUB = ["keras-hub float32", "keras-hub bfloat16"]
HF = ["hf float32", "hf bfloat16"]


def data():
    import numpy as np

    random = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    batch = {"token_ids": random.integers(5, VOCABULARY, shape).astype("int32")}
    batch |= {"padding_mask": np.ones(shape, "int32")}
    batch |= {"segment_ids": np.zeros(shape, "int32")}
    return batch, random.integers(0, 2, ROWS).astype("int32")


def ours(precision: str, xla: bool):
    import keras
    import tensorflow as tf

    from tfllm.models.encoder import EncoderConfig, encode, pool, token_inputs

    config = EncoderConfig(VOCABULARY, SIZE, LAYERS, HEADS, INNER, dropout=DROPOUT)
    inputs = token_inputs(segments=True)
    pooled = pool(config, encode(config, inputs, precision), precision)
    logits = keras.layers.Dense(2, dtype="float32", name="out")(pooled)
    core = keras.Model(inputs, logits)

    class Task:
        def loss_counts(self, batch):
            return {"loss": tf.reduce_sum(batch["weight"])}

        def loss_sums(self, outputs, batch):
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                batch["label"], outputs
            )
            return {"loss": tf.reduce_sum(losses * batch["weight"])}

        def metric_sums(self, outputs, batch):
            return {}

    batch, labels = data()
    batch |= {"label": labels, "weight": labels * 0.0 + 1}
    batch = {name: tf.constant(value) for name, value in batch.items()}
    batch["weight"] = tf.cast(batch["weight"], "float32")
    return our_steps(core, Task(), batch, xla)


def our_steps(core, task, batch: dict, xla: bool):
    """A function that takes so many of our training steps on one batch."""
    import tensorflow as tf

    from tfllm.training.optimizers import make_optimizer
    from tfllm.training.speed_tf import speed_up
    from tfllm.training.step_tf import TrainingModel

    speed_up(core)
    optimizer = make_optimizer(
        "adamw",
        core.trainable_variables,
        learning_rate=RATE,
        total_steps=10**6,
        weight_decay=0.01,
    )
    model = TrainingModel(core, task, optimizer, clip_norm=1.0, jit_compile=xla)
    return fitted(model, tf.data.Dataset.from_tensors(batch).repeat())


def hub(precision: str):
    import keras
    import keras_hub
    import tensorflow as tf

    keras.config.set_dtype_policy(precision)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=SIZE,
        intermediate_dim=INNER,
        dropout=DROPOUT,
        max_sequence_length=512,
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(RATE, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return fitted(model, tf.data.Dataset.from_tensors(data()).repeat())


def fitted(model, dataset):
    import tensorflow as tf

    # The end of `fit` waits for tf.data's tuning thread, whose sleep doubles: a turn
    # of 0.8 seconds would read 1.3. It is not what is measured here.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)

    def run(steps: int) -> None:
        model.fit(dataset, steps_per_epoch=steps, verbose=0)

    return run


def hf(precision: str):
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
    )
    model = BertForSequenceClassification(config).train()
    batch, labels = data()
    names = {"token_ids": "input_ids", "padding_mask": "attention_mask"}
    names |= {"segment_ids": "token_type_ids"}
    batch = {names[name]: torch.tensor(value).long() for name, value in batch.items()}
    labels = torch.tensor(labels).long()

    def loss():
        return model(**batch, labels=labels).loss

    return hf_steps(model, precision != "float32", loss)


def hf_steps(model, low: bool, loss):
    """A function that takes so many steps in PyTorch, products in bfloat16 if `low`."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)

    def run(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                value = loss()
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


def work(name: str, steps: int) -> None:
    """One system, in its own process."""
    system, dtype, *xla = name.split()
    precision = dtype if dtype == "float32" else "mixed_bfloat16"
    make = {"ours": lambda p: ours(p, bool(xla)), "keras-hub": hub, "hf": hf}[system]
    run = make(precision)
    serve(timed({"seconds": lambda: run(steps)}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--hf_python", default=sys.executable)
    parser.add_argument("--systems", nargs="+", default=OURS + HUB + HF)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="runs/benchmarks/training_step.json")
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.steps)
        return 0
    seconds = {
        name: [turn["seconds"] / options.steps for turn in turns]
        for name, turns in race(__file__, options.systems, options).items()
    }
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best_hub = min((medians[n] for n in HUB if n in medians), default=None)
    print("| system | ms a step | tokens/s | against the best keras-hub |")
    print("|---|--:|--:|--:|")
    for name, median in medians.items():
        ratio = f"{best_hub / median:.2f}" if best_hub else ""
        rate = ROWS * LENGTH / median
        print(f"| {name} | {1000 * median:.0f} | {rate:,.0f} | {ratio} |")
    write(options.output, options, seconds_a_step=seconds, medians=medians)
    return 0


if __name__ == "__main__":
    sys.exit(main())
