"""A whole training run small enough for tests; as a program, one worker of several.

python tiny_trainer.py OUTPUT_DIR '{"max_steps": 50, …}'
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfllm.core.errors import run_main
from tfllm.data.columns import Columns, Ragged
from tfllm.tasks.task import Verdict
from tfllm.training.flags import RunFlags, TrainingFlags
from tfllm.training.run import open_run

VOCABULARY, LENGTH = 23, 12
DEFAULTS = {
    "batch_size": 8,
    "epochs": 1,
    "learning_rate": 0.3,
    "schedule": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "optimizer": "sgd",
    "clip_norm": 0.05,
    "ema_decay": 0.0,
    "precision": "float32",
    "jit_compile": "false",
}


@dataclass
class Config(RunFlags, TrainingFlags):
    """Flags of the run."""


class TinyTask:
    """Predicts a function of every token; counts are uneven."""

    name, monitor, maximize, max_length = "tiny", "loss", False, LENGTH

    def __init__(self, dropout=0.0, packs=False):
        self.dropout, self.packs = dropout, packs

    def build_model(self, dtype=None):
        import keras

        from tfllm.layers.dropout import Dropout

        ids = keras.Input((None,), dtype="int32", name="token_ids")
        x = keras.layers.Embedding(VOCABULARY, 8, name="embedding", dtype=dtype)(ids)
        for i in range(2):
            x = keras.layers.Dense(16, "gelu", name=f"block_{i}", dtype=dtype)(x)
            x = Dropout(self.dropout, name=f"dropout_{i}", dtype=dtype)(x)
        x = keras.layers.Dense(VOCABULARY, name="out", dtype=dtype)(x)
        return keras.Model({"token_ids": ids}, keras.ops.cast(x, "float32"))

    def loss_counts(self, batch):
        from keras import ops

        return {"loss": ops.sum(ops.cast(batch["padding_mask"], "float32"))}

    def loss_sums(self, outputs, batch):
        from keras import ops

        losses = ops.sparse_categorical_crossentropy(
            batch["token_ids"] * 7 % VOCABULARY, outputs, from_logits=True
        )
        mask = ops.cast(batch["padding_mask"], "float32")
        if not self.packs:  # NaN stands where a row is to overflow
            mask = mask * batch["poison"][:, None]
        return {"loss": ops.sum(losses * mask)}

    def metric_sums(self, outputs, batch):
        return {}

    def validate(self, model, columns):
        ids = np.arange(VOCABULARY, dtype="int32")[None]
        logits = np.asarray(model({"token_ids": ids}), "float64")[0]
        log_z = np.log(np.exp(logits).sum(-1))
        truth = logits[np.arange(VOCABULARY), ids[0] * 7 % VOCABULARY]
        return Verdict({"loss": float((log_z - truth).mean())})

    def pad_values(self):
        return {}

    def to_config(self):
        return {"task": "tiny"}


def columns(rows=400, poison=None, seed=0):
    """Rows of 1 to 12 tokens; row number `poison` makes its step overflow."""
    random = np.random.default_rng(seed)
    texts = [
        random.integers(1, VOCABULARY, random.integers(1, LENGTH + 1))
        for _ in range(rows)
    ]
    weights = np.ones(rows, np.float32)
    if poison is not None:
        weights[poison] = np.nan
    return Columns({"token_ids": Ragged.from_lists(texts), "poison": weights})


def train(directory, dropout=0.0, poison=None, rows=400, packs=False, **flags):
    """Trains; returns the trainer. With a `TF_CONFIG` this is one of its workers."""
    config = Config(**DEFAULTS | {"output_dir": str(directory)} | flags)
    run, config = open_run("tiny", config, "tiny")
    from tfllm.training.trainer_tf import Trainer

    data = columns(rows, poison), columns(8, seed=1)
    trainer = Trainer(TinyTask(dropout, packs), config, run, *data)
    if not run.resumed:
        trainer.settle()
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_start(config, [])
    trainer.fit()
    return trainer


def last_arrays(directory) -> dict:
    """Everything in the last checkpoint, by name."""
    from safetensors.numpy import load_file

    last = max(Path(directory).glob("checkpoints/step-*"))
    return load_file(last / "model.safetensors") | load_file(
        last / "training.safetensors"
    )


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(run_main(lambda: train(sys.argv[1], **json.loads(sys.argv[2])) and 0))
