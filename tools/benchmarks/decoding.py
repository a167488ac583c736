"""Decoding, greedy: ours, keras-hub's and Hugging Face's in turns; and what it costs.

    python tools/benchmarks/decoding.py [--mode shape] [--hf_python PATH]
    python tools/benchmarks/decoding.py --mode smollm2
    python tools/benchmarks/decoding.py --mode context

`shape`: 6 layers, 288 wide, 32,000 tokens; a prompt of 8 tokens and 248 new ones, 1, 8
and 32 streams. keras-hub and Hugging Face run as they come, by `generate`; the latter
takes part when `torch` and `transformers` are installed for --hf_python. `smollm2`:
SmolLM2-135M, milliseconds to the first token of prompts of 32 and 512, and tokens/s.
`context`: its milliseconds a token behind so many others. Every system lives in a
process of its own and they take turns; medians over the rounds, and the largest
resident set of the process. Prints a table, writes runs/benchmarks/decoding_MODE.json.
"""

import argparse
import resource
import statistics
import sys
import time

from turns import race, serve, write

LAYERS, SIZE, HEADS, INNER, VOCABULARY = 6, 288, 6, 768, 32_000
PROMPT, TIMED = 8, 32
OURS = ["ours float32", "ours float32 xla"]
SYSTEMS = {
    "shape": [*OURS, "keras-hub float32", "keras-hub float32 xla",
              "keras-hub bfloat16", "keras-hub bfloat16 xla",
              "hf float32", "hf bfloat16"],
    "smollm2": OURS,
    "context": OURS,
}  # fmt: skip


def prompts(streams: int, length: int = PROMPT):
    import numpy as np

    shape = (streams, length)
    return np.random.default_rng(streams).integers(5, VOCABULARY, shape).astype("int32")


def ours(precision: str, xla: bool, options) -> dict:
    import numpy as np

    from tfllm.generation.engine_tf import Engine
    from tfllm.generation.generator import Generator
    from tfllm.generation.network_tf import Network
    from tfllm.models.decoder import DecoderConfig, decoder

    if options.mode == "shape":
        config = DecoderConfig(VOCABULARY, SIZE, LAYERS, HEADS, intermediate_size=INNER)
        engine = Engine(Network(config, decoder(config), xla), xla)
    else:
        engine = Generator.load("smollm2-135m-instruct", xla=xla).engine

    def run(streams: int, length: int, *parts: int) -> list[float]:
        """Seconds of prompts and the first part of their answers, and of the others."""
        new, seconds = sum(parts), [time.perf_counter()]
        rows, slots, space = engine.rounded(streams, length, new)
        tokens = np.full((rows, slots), -1, "int32")
        tokens[:streams, -length:] = prompts(streams, length)
        limits = np.where(np.arange(rows) < streams, new, 0).astype("int32")
        state = engine.start(tokens, space)
        for count in parts:
            state = engine.advance(state, {"max_new_tokens": limits}, [-2], count)
            made = state.history.numpy()[slots:, :streams]
            seconds.append(time.perf_counter())
        assert (made >= 0).sum() == streams * new
        return np.diff(seconds).tolist()

    if options.mode == "context":
        return {
            f"{length:,}": lambda n=length: (
                run(1, n - TIMED, 1, TIMED - 1)[1] / (TIMED - 1)
            )
            for length in options.contexts
        }
    cases = streamed(options, lambda n: run(n, PROMPT, options.new_tokens))
    if options.mode == "smollm2":
        cases |= {f"first of {n}": lambda n=n: run(1, n, 1)[0] for n in (32, 512)}
    return cases


def streamed(options, run) -> dict:
    """Cases by name, each to be called for the seconds of a token."""

    def seconds(streams: int) -> float:
        started = time.perf_counter()
        run(streams)
        return (time.perf_counter() - started) / streams / options.new_tokens

    return {f"{n} at once": lambda n=n: seconds(n) for n in options.streams}


def hub(precision: str, xla: bool, options) -> dict:
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
        tokens = np.pad(prompts(streams), ((0, 0), (0, options.new_tokens)))
        mask = np.zeros_like(tokens)
        mask[:, :PROMPT] = 1
        inputs = {"token_ids": tokens, "padding_mask": mask}
        model.generate(inputs, stop_token_ids=None)

    return streamed(options, run)


def hf(precision: str, xla: bool, options) -> dict:
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
            max_new_tokens=options.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        assert made.shape[1] == PROMPT + options.new_tokens

    return streamed(options, run)


def work(name: str, options) -> None:
    """One system, in its own process: seconds and MiB by name."""
    system, dtype, *xla = name.split()
    cases = {"ours": ours, "keras-hub": hub, "hf": hf}[system](
        dtype, bool(xla), options
    )
    for case in cases.values():  # traces and compiles
        case()

    def turn() -> dict:
        told = {name: case() for name, case in cases.items()}
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return told | {"MiB": most}

    serve(turn)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=SYSTEMS, default="shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--new_tokens", type=int, default=248)
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[128, 256, 512, 1024, 2048]
    )
    parser.add_argument("--hf_python", default=sys.executable)
    parser.add_argument("--systems", nargs="+")
    parser.add_argument("--best", action="store_true", help="minima, not medians")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--output")
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options)
        return 0
    systems = options.systems or SYSTEMS[options.mode]
    told = race(__file__, systems, options)
    middle = min if options.best else statistics.median
    middles = {
        name: {case: middle(row[case] for row in rows) for case in rows[0]}
        for name, rows in told.items()
    }
    cases = list(next(iter(middles.values()), {}))
    rates = {case for case in cases if case.endswith("at once")}
    print("tokens/s where some are made at once, else milliseconds")
    print(f"| | {' | '.join(cases)} |\n|---|{'--:|' * len(cases)}")
    for name, row in middles.items():
        shown = {c: 1 / v if c in rates else v * 1000 for c, v in row.items()}
        shown["MiB"] = row["MiB"]
        print(
            f"| {name} | {' | '.join(f'{v:,.{v < 100:d}f}' for v in shown.values())} |"
        )
    for kind in ("", "float32"):  # against the best there is, and like with like
        peers = [row for name, row in middles.items()
                 if not name.startswith("ours") and kind in name]  # fmt: skip
        for name in (name for name in OURS if peers and name in middles):
            best = {c: min(peer[c] for peer in peers) for c in cases if c in rates}
            ratios = " | ".join(f"{best[c] / middles[name][c]:.2f}" for c in best)
            print(f"| {name}, times the best other {kind} | {ratios} | |")
    path = options.output or f"runs/benchmarks/decoding_{options.mode}.json"
    write(path, options, medians=middles, rounds=told)
    return 0 if middles else 1


if __name__ == "__main__":
    sys.exit(main())
