"""Decoding of a Llama shape: ours, keras-hub's, Hugging Face's, in turns.

    python tools/benchmarks/decoding.py [--rounds 5] [--hf_python PATH]

6 layers, 288 wide, 32,000 tokens; greedy, a prompt of 8 tokens and 248 new ones, 1, 8
and 32 streams. Every system lives in a process of its own and they take turns; medians
over the rounds. keras-hub and Hugging Face run as they come, by `generate`. The latter
takes part when `torch` and `transformers` are installed for --hf_python. Prints a table
and writes runs/benchmarks/decoding.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# The checkout, also when it is not installed; and the benchmark beside this one.
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tools/benchmarks"))
LAYERS, SIZE, HEADS, INNER, VOCABULARY = 6, 288, 6, 768, 32_000
PROMPT, NEW = 8, 248
SYSTEMS = ["ours float32", "ours float32 xla", "keras-hub float32",
           "keras-hub float32 xla", "hf float32", "hf bfloat16"]  # fmt: skip


def prompts(streams: int):
    import numpy as np

    shape = (streams, PROMPT)
    return np.random.default_rng(streams).integers(5, VOCABULARY, shape).astype("int32")


def ours(precision: str, xla: bool):
    import numpy as np

    from tfllm.generation.engine_tf import Engine
    from tfllm.generation.network_tf import Network
    from tfllm.models.decoder import DecoderConfig, decoder

    config = DecoderConfig(VOCABULARY, SIZE, LAYERS, HEADS, intermediate_size=INNER)
    engine = Engine(Network(config, decoder(config), xla), xla)

    def run(streams: int) -> None:
        rows, slots, space = engine.rounded(streams, PROMPT, NEW)
        tokens = np.full((rows, slots), -1, "int32")
        tokens[:streams, -PROMPT:] = prompts(streams)
        limits = np.where(np.arange(rows) < streams, NEW, 0).astype("int32")
        state = engine.start(tokens, space)
        state = engine.advance(state, {"max_new_tokens": limits}, [-2], space)
        made = state.history.numpy()[slots:, :streams]
        assert (made >= 0).sum() == streams * NEW

    return run


def hub(precision: str, xla: bool):
    import keras
    import keras_hub
    import numpy as np

    keras.config.set_dtype_policy(precision)
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=LAYERS,
        num_query_heads=HEADS,
        num_key_value_heads=HEADS,
        hidden_dim=SIZE,
        intermediate_dim=INNER,
        tie_word_embeddings=True,
    )
    model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy", jit_compile=xla)

    def run(streams: int) -> None:
        tokens = np.pad(prompts(streams), ((0, 0), (0, NEW)))
        mask = np.zeros_like(tokens)
        mask[:, :PROMPT] = 1
        inputs = {"token_ids": tokens, "padding_mask": mask}
        model.generate(inputs, stop_token_ids=None)

    return run


def hf(precision: str, xla: bool):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    model = LlamaForCausalLM(config).eval().to(kind)

    def run(streams: int) -> None:
        tokens = torch.tensor(prompts(streams)).long()
        made = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        )
        assert made.shape[1] == PROMPT + NEW

    return run


def work(name: str, streams: list[int]) -> None:
    """One system: answers each line of standard input with its seconds"""
    system, dtype, *xla = name.split()
    run = {"ours": ours, "keras-hub": hub, "hf": hf}[system](dtype, bool(xla))
    for count in streams:
        run(count)
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = []
        for count in streams:
            started = time.perf_counter()
            run(count)
            seconds.append(time.perf_counter() - started)
        print(json.dumps(seconds), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--hf_python", default=sys.executable)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS)
    parser.add_argument("--best", action="store_true", help="minima, not medians")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="runs/benchmarks/decoding.json")
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.streams)
        return 0
    from training_step import race

    answers = race(__file__, options.systems, options.rounds, "go", options)
    seconds = {
        name: [list(times) for times in zip(*map(json.loads, lines), strict=True)]
        for name, lines in answers.items()
    }
    middle = min if options.best else statistics.median
    middles = {
        name: [middle(times) for times in rows] for name, rows in seconds.items()
    }
    peers = [rows for name, rows in middles.items() if not name.startswith("ours")]
    titles = [f"{n} stream{'s' * (n > 1)}" for n in options.streams]
    print(f"| tokens/s | {' | '.join(titles)} | against the best other |")
    print("|---|" + "--:|" * (len(titles) + 1))
    for name, rows in middles.items():
        pairs = list(zip(options.streams, rows, strict=True))
        rates = [f"{count * NEW / time_:,.0f}" for count, time_ in pairs]
        ratios = [
            f"{min(peer[i] for peer in peers) / rows[i]:.2f}"
            for i in range(len(rows) if peers else 0)
        ]
        print(f"| {name} | {' | '.join(rates)} | {' '.join(ratios)} |")
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": platform.processor(), "cores": os.cpu_count()}
    about |= {"load": os.getloadavg(), "streams": options.streams}
    output.write_text(json.dumps(about | {"seconds": seconds}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
