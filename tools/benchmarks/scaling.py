"""How cost grows: tokens/s with more data and more layers, memory with longer texts.

    python tools/benchmarks/scaling.py [--only data layers memory]

A Transformer that predicts masked words (256 wide, 8,192 words unless said), over
made-up texts whose lengths are spread like those of real reviews. Each figure comes
from a process of its own: from encoded texts to updated weights, whole epochs, batches
of 4,096 tokens by length. Memory is the process' largest resident set less what it had
before the model was made. Prints tables, writes runs/benchmarks/scaling.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)
BASE = {"rows": 256, "layers": 2, "size": 128, "words": 8192, "tokens": 4096}
DATA = [BASE | {"rows": 256 * times} for times in (1, 4, 16, 64)]
LAYERS = [BASE | {"rows": 512, "layers": layers} for layers in (2, 4, 6, 8)]
MEMORY = [
    BASE
    | {"rows": 32, "layers": 4, "size": 256, "words": 21128, "length": length}
    | {"tokens": 8 * length, "chunked": chunked, "recomputed": recomputed}
    for length in (128, 256, 512, 1024)
    for chunked, recomputed in ((False, False), (True, False), (True, True))
]


def measure(
    rows, layers, size, words, tokens, length=None, chunked=False, recomputed=False
) -> dict:
    """Trains one epoch, after a step of each shape; returns the figures."""
    import keras
    import numpy as np
    from keras import ops

    from tfllm.data.batching import BatchPlan
    from tfllm.data.columns import Columns, Ragged
    from tfllm.data.pipeline_tf import dataset
    from tfllm.layers.chunked_loss import chunked_cross_entropy
    from tfllm.layers.recompute import recompute
    from tfllm.layers.transformer_block import TransformerBlock
    from tfllm.models.encoder import EncoderConfig, encode, token_inputs
    from tfllm.training.optimizers import make_optimizer
    from tfllm.training.speed_tf import speed_up
    from tfllm.training.step_tf import TrainingModel

    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(4.3, 0.8, rows)), 8, 256).astype(int)
    if length:
        lengths[:] = length
    texts = [random.integers(5, words, n).astype("int32") for n in lengths]
    columns = Columns({"token_ids": Ragged.from_lists(texts)})
    before = peak_memory()
    most = length or 256
    config = EncoderConfig(
        words, size, layers, size // 64, 4 * size, max_length=most, num_segments=0
    )
    inputs = token_inputs()
    hidden = encode(config, inputs)
    core = keras.Model(inputs, hidden)
    embedding = core.get_layer("token_embedding").embeddings
    speed_up(core)
    if recomputed:
        for layer in core._flatten_layers():
            if isinstance(layer, TransformerBlock):
                recompute(layer)

    class Task:
        def loss_counts(self, batch):
            return {"loss": ops.sum(ops.cast(batch["padding_mask"], "float32"))}

        def loss_sums(self, outputs, batch):
            if chunked:
                losses = chunked_cross_entropy(outputs, embedding, batch["token_ids"])
            else:
                logits = ops.matmul(outputs, ops.transpose(embedding))
                losses = ops.sparse_categorical_crossentropy(
                    batch["token_ids"], logits, from_logits=True
                )
            return {
                "loss": ops.sum(losses * ops.cast(batch["padding_mask"], "float32"))
            }

        def metric_sums(self, outputs, batch):
            return {}

    optimizer = make_optimizer(
        *("adamw", core.trainable_variables), learning_rate=1e-4, total_steps=10**6
    )
    model = TrainingModel(core, Task(), optimizer, clip_norm=1.0)
    started = time.perf_counter()
    plan = BatchPlan(lengths, tokens_per_batch=tokens, max_length=most)
    planned = time.perf_counter() - started

    def train(start, steps):
        data = dataset(columns, plan, start_step=start, stop_step=start + steps)
        model.fit(data, steps_per_epoch=steps, verbose=0, shuffle=False)

    train(0, min(4, plan.steps_per_epoch))
    started = time.perf_counter()
    train(0, plan.steps_per_epoch)
    seconds = planned + time.perf_counter() - started
    return {
        "rows": rows,
        "layers": layers,
        "length": length,
        "chunked": chunked,
        "recomputed": recomputed,
        "steps": plan.steps_per_epoch,
        "tokens_per_second": round(int(lengths.sum()) / seconds),
        "memory_mb": round(peak_memory() - before),
    }


def peak_memory() -> float:
    """Largest resident set of this process, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"data": DATA, "layers": LAYERS, "memory": MEMORY}
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(**json.loads(options.worker))))
        return 0
    found = {}
    for part in options.only:
        print(f"\n{part}")
        for i, setting in enumerate(parts[part]):
            command = [sys.executable, __file__, "--worker", json.dumps(setting)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            row = json.loads(done.stdout.splitlines()[-1])
            found.setdefault(part, []).append(row)
            if not i:
                print(f"| {' | '.join(row)} |\n|{'--:|' * len(row)}")
            print(f"| {' | '.join(map(str, row.values()))} |", flush=True)
    path = Path("runs/benchmarks/scaling.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
