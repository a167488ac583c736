"""The training step of GPT-2 124M with Keras on JAX: tokens/s and share of the peak.

    KERAS_BACKEND=jax python tools/benchmarks/gpt2_jax.py [--rows 32] [--peak 989]

For an accelerator; needs keras, jax and numpy, no TensorFlow. 12 layers, 768 wide,
texts of 1,024 tokens, bfloat16, AdamW, clipping, the loss in chunks: the same
`TrainingModel` that the tests hold against TensorFlow's. The share of the peak counts
6 FLOPs a parameter and token and the attention's 12 x layers x width x length
(Chowdhery et al., 2022, appendix B). `--small` tries it out on a CPU.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32, help="of a step")
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s in bfloat16")
    parser.add_argument("--small", action="store_true", help="a shape for a CPU")
    options = parser.parse_args()
    import jax
    import keras
    import numpy as np
    from keras import ops

    from tfllm.layers.chunked_loss import chunked_cross_entropy
    from tfllm.models.decoder import (
        STYLES,
        DecoderConfig,
        decoder,
        hidden_model,
        output_matrix,
    )
    from tfllm.training.optimizers import make_optimizer
    from tfllm.training.step_jax import TrainingModel

    words, size, layers, heads, length = 50_304, 768, 12, 12, 1024
    if options.small:
        words, size, layers, heads, length = 1000, 64, 2, 2, 64
    config = DecoderConfig(
        *(words, size, layers, heads),
        intermediate_size=4 * size,
        max_length=length,
        **STYLES["gpt2"],
    )
    keras.utils.set_random_seed(0)
    core = hidden_model(decoder(config, "mixed_bfloat16"))

    class Task:
        def loss_counts(self, batch):
            return {"loss": ops.sum(ops.cast(batch["padding_mask"], "float32"))}

        def loss_sums(self, outputs, batch):
            losses = chunked_cross_entropy(
                *(outputs, output_matrix(core), batch["target"]),
                chunk_size=options.rows * 256,
            )
            return {"loss": ops.sum(losses)}

        def metric_sums(self, outputs, batch):
            return {}

    optimizer = make_optimizer(
        *("adamw", core.trainable_variables),
        learning_rate=6e-4,
        total_steps=10**5,
        warmup_ratio=0.01,
        weight_decay=0.1,
    )
    model = TrainingModel(core, Task(), optimizer, clip_norm=1.0)
    random = np.random.default_rng(0)
    ids = random.integers(0, words, (options.rows, length + 1)).astype("int32")
    batch = {"token_ids": ids[:, :-1], "target": ids[:, 1:]}
    batch["padding_mask"] = np.ones_like(ids[:, 1:])
    batch = jax.device_put(batch)

    def stream():
        while True:
            yield ((batch,),)

    def run():
        started = time.perf_counter()
        history = model.fit(
            stream(), steps_per_epoch=options.steps, verbose=0, shuffle=False
        )
        jax.block_until_ready(model.core.trainable_variables[0].value)
        return time.perf_counter() - started, float(history.history["loss"][-1])

    compiled, first = run()
    times, losses = zip(*(run() for _ in range(options.rounds)), strict=True)
    seconds = statistics.median(times) / options.steps
    parameters = sum(int(np.prod(v.shape)) for v in core.trainable_variables)
    rate = options.rows * length / seconds
    flops = 6 * parameters + 12 * layers * size * length
    found = {
        "device": jax.devices()[0].device_kind,
        "parameters": parameters,
        "rows": options.rows,
        "milliseconds_a_step": 1000 * seconds,
        "tokens_per_second": round(rate),
        "share_of_peak": rate * flops / options.peak / 1e12,
        "first_round_seconds": compiled,
        "losses": [first, *losses],
    }
    path = Path("runs/benchmarks/gpt2_jax.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
