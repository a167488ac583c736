"""An epoch over real texts of mixed lengths: ours against keras-hub, in turns.

    python tools/benchmarks/training_epoch.py --data DIR [--rows 9600] [--rounds 3]

DIR holds ChnSentiCorp's train.tsv.gz and test.tsv.gz. The same BERT shape (4 layers,
256 wide), batch of 32 texts, `max_length` 256, AdamW, from texts to updates. keras-hub
runs as it comes: its preprocessor in tf.data pads to 256. Ours cuts batches by length.
A round is an epoch of each; after it the accuracy on the test texts. Prints a table and
writes runs/benchmarks/training_epoch.json.
"""

import argparse
import itertools
import statistics
import sys
import time

import training_step as shape
from turns import race, serve, write

ROWS, LENGTH, RATE = 32, 256, 3e-4
SYSTEMS = [*shape.OURS[::2], *shape.HUB]


def rows(options, name: str, most: int | None):
    from tfllm.data.readers import read

    return read([f"{options.data}/{name}.tsv.gz"]).rows[:most]


def ours(precision: str, options):
    import keras
    from keras import ops

    from tfllm.data.batching import BatchPlan
    from tfllm.data.pipeline_tf import dataset
    from tfllm.models.classifier import ClassifierConfig
    from tfllm.models.encoder import EncoderConfig, encode, pool, token_inputs
    from tfllm.tasks.text_classification import TextClassification
    from tfllm.text import Tokenizer
    from tfllm.training.optimizers import make_optimizer
    from tfllm.training.speed_tf import speed_up
    from tfllm.training.step_tf import TrainingModel

    train, test = rows(options, "train", options.rows), rows(options, "test", None)
    texts = [row["text"] for row in train]
    tokenizer = Tokenizer.train(texts, "characters", shape.VOCABULARY)
    config = EncoderConfig(
        tokenizer.vocabulary_size,
        shape.SIZE,
        shape.LAYERS,
        shape.HEADS,
        shape.INNER,
        num_segments=0,
    )

    class Task(TextClassification):
        def build_model(self, dtype=None):
            inputs = token_inputs()
            pooled = pool(config, encode(config, inputs, dtype), dtype)
            return keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(pooled))

    kind = ClassifierConfig("transformer", tokenizer.vocabulary_size, 2, LENGTH)
    task = Task(tokenizer, sorted({row["label"] for row in train}), kind)
    columns, held = task.columns(train)[0], task.columns(test)[0]
    plan = BatchPlan(columns.lengths, batch_size=ROWS, max_length=LENGTH)
    core = task.build_model(precision)
    speed_up(core)
    optimizer = make_optimizer(
        "adamw",
        core.trainable_variables,
        learning_rate=RATE,
        total_steps=options.rounds * plan.steps_per_epoch,
        weight_decay=0.01,
        warmup_ratio=0.1,
    )
    model = TrainingModel(core, task, optimizer, clip_norm=1.0)

    def epoch(number: int) -> None:
        steps = plan.steps_per_epoch
        start, stop = number * steps, (number + 1) * steps
        pads = task.pad_values()
        batches = dataset(
            columns, plan, start_step=start, stop_step=stop, pad_values=pads
        )
        model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False)

    def accuracy() -> float:
        scores = task.predict(core, held)
        hits = ops.convert_to_numpy(scores).argmax(-1) == held["label"]
        return float(hits.mean())

    return epoch, accuracy


def hub(precision: str, options):
    import keras
    import keras_hub
    import numpy as np
    import tensorflow as tf

    from tfllm.training.optimizers import Schedule

    keras.config.set_dtype_policy(precision)
    train, test = rows(options, "train", options.rows), rows(options, "test", None)
    characters = sorted({c for row in train for c in row["text"]} - {" ", "\n"})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *characters, *(f"##{c}" for c in characters)]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=pieces)
    preprocess = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=LENGTH
    )
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(pieces),
        num_layers=shape.LAYERS,
        num_heads=shape.HEADS,
        hidden_dim=shape.SIZE,
        intermediate_dim=shape.INNER,
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=preprocess
    )
    steps = -(-len(train) // ROWS)
    total = options.rounds * steps
    model.compile(
        optimizer=keras.optimizers.AdamW(
            Schedule(RATE, total, total // 10), weight_decay=0.01, global_clipnorm=1.0
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    names = sorted({row["label"] for row in train})

    def columns(part):
        labels = np.array([names.index(row["label"]) for row in part])
        return [row["text"] for row in part], labels

    texts = tf.data.Dataset.from_tensor_slices(columns(train))
    texts = texts.shuffle(len(train), seed=0).batch(ROWS)

    def epoch(number: int) -> None:
        model.fit(texts, verbose=0)

    def accuracy() -> float:
        held = tf.data.Dataset.from_tensor_slices(columns(test)).batch(64)
        return model.evaluate(held, verbose=0, return_dict=True)["accuracy"]

    return epoch, accuracy


def work(name: str, options) -> None:
    """One system, in its own process."""
    system, dtype, *_ = name.split()
    precision = dtype if dtype == "float32" else "mixed_bfloat16"
    epoch, accuracy = {"ours": ours, "keras-hub": hub}[system](precision, options)
    numbers = itertools.count()

    def turn() -> tuple[float, float]:
        started = time.perf_counter()
        epoch(next(numbers))
        return time.perf_counter() - started, accuracy()

    serve(turn)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=9600, help="texts of an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="runs/benchmarks/training_epoch.json")
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options)
        return 0
    told = race(__file__, options.systems, options)
    medians = {n: statistics.median(a[0] for a in t) for n, t in told.items()}
    best_hub = min((medians[n] for n in shape.HUB if n in medians), default=None)
    print("| system | seconds an epoch | against the best keras-hub | accuracy |")
    print("|---|--:|--:|--:|")
    for name, median in medians.items():
        ratio = f"{best_hub / median:.2f}" if best_hub else ""
        print(f"| {name} | {median:.1f} | {ratio} | {told[name][-1][1]:.4f} |")
    write(options.output, options, medians=medians, rounds=told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
