"""An encoder-decoder, ours and Hugging Face's: training steps and answers, in turns.

    python tools/benchmarks/translation.py --hf_python PATH [--size tiny] [--rounds 7]

The recipes' shape (tiny: 4 + 4 blocks, 128 wide, 8,000 tokens, embeddings shared) with
random weights, and Marian's of `transformers` of the same sizes. Training: 128 pairs of
32 + 32 tokens, AdamW, dropout 0.1, label smoothing 0.1. Answers: 32 and 1 sources of 16
tokens, 24 new tokens, greedily and with five beams. Every system lives in a process of
its own and they take turns; medians over the rounds. Prints a table and writes
runs/benchmarks/translation.json.
"""

import argparse
import statistics
import sys

from training_step import HF, OURS, hf_steps, our_steps
from turns import race, serve, timed, write

VOCABULARY, DROPOUT, SMOOTHING = 8000, 0.1, 0.1
PAIRS, LENGTH, STEPS = 128, 32, 4
ROWS, SOURCE, NEW, BEAMS = 32, 16, 24, 5
# Width, blocks a side, inner width, heads, as `models.encoder_decoder` has them.
SHAPES = {"tiny": (128, 4, 256, 4), "mini": (256, 3, 1024, 4)}


def tokens(*shape):
    import numpy as np

    return np.random.default_rng(0).integers(5, VOCABULARY, shape).astype("int32")


def ours(dtype: str, xla: bool, size: str) -> dict:
    import numpy as np
    import tensorflow as tf

    from tfllm.generation.beam_tf import Beams
    from tfllm.generation.engine_tf import Engine
    from tfllm.generation.pair_network_tf import PairNetwork
    from tfllm.models.encoder_decoder import shape_of
    from tfllm.tasks.sequence_to_sequence import Translation

    shape = shape_of(size, VOCABULARY, dropout=DROPOUT)
    sizes = shape.hidden_size, shape.num_layers, shape.intermediate_size
    assert (*sizes, shape.num_heads) == SHAPES[size]
    task = Translation(None, shape, LENGTH, LENGTH, label_smoothing=SMOOTHING)
    core = task.build_model("mixed_bfloat16" if dtype == "bfloat16" else dtype)
    ids, ones = tokens(3, PAIRS, LENGTH), np.ones((PAIRS, LENGTH), "int32")
    batch = dict(zip(("source_ids", "token_ids", "targets"), ids, strict=True))
    batch |= {"source_mask": ones, "padding_mask": ones}
    batch["target_weights"] = ones.astype("float32")
    batch = {name: tf.constant(value) for name, value in batch.items()}
    run = our_steps(core, task, batch, xla)
    cases = {"train": lambda: run(STEPS)}
    if dtype == "float32" and not xla:  # as the server answers
        engine = Engine(PairNetwork(shape, core))

        def answer(rows: int, width: int) -> None:
            beams = Beams(width) if width > 1 else None
            source = tokens(rows, SOURCE), np.ones((rows, SOURCE), "int32")
            begin = np.ones((rows, 1), "int32")
            state = engine.start(begin, NEW, False, beams, source)
            limits = {"max_new_tokens": np.full(rows, NEW, "int32")}
            state = engine.advance(state, limits, [-2], NEW, False, beams)
            made = state.beams[2][1:, :, 0] if beams else state.history[1:]
            assert (made.numpy() >= 0).sum() == rows * NEW

        cases |= answers(answer)
    return cases


def answers(answer) -> dict:
    """Cases by name, from a function of rows and beams."""
    return {
        f"{rows} rows, {width} beams": lambda r=rows, w=width: answer(r, w)
        for rows in (ROWS, 1)
        for width in (1, BEAMS)
    }


def hf(dtype: str, xla: bool, size: str) -> dict:
    import torch
    from transformers import MarianConfig, MarianMTModel

    width, blocks, inner, heads = SHAPES[size]
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=width,
        encoder_layers=blocks,
        decoder_layers=blocks,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        activation_function="relu",
        dropout=DROPOUT,
        scale_embedding=True,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        forced_eos_token_id=None,
        decoder_start_token_id=1,
    )
    low, model = dtype == "bfloat16", MarianMTModel(config).train()
    source, before, after = torch.tensor(tokens(3, PAIRS, LENGTH)).long()
    ones = torch.ones_like(source)

    def loss():
        logits = model(source, ones, decoder_input_ids=before).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), after.flatten(), label_smoothing=SMOOTHING
        )

    run = hf_steps(model, low, loss)
    kind = torch.bfloat16 if low else torch.float32
    reader = MarianMTModel(config).eval().to(kind)

    def answer(rows: int, width: int) -> None:
        ids = torch.tensor(tokens(rows, SOURCE)).long()
        made = reader.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            do_sample=False,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
        )
        assert made.shape == (rows, NEW + 1)

    return {"train": lambda: run(STEPS)} | answers(answer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hf_python", default=sys.executable)
    parser.add_argument("--systems", nargs="+", default=OURS + HF)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="runs/benchmarks/translation.json")
    options = parser.parse_args()
    if options.worker:
        system, dtype, *xla = options.worker.split()
        cases = {"ours": ours, "hf": hf}[system](dtype, bool(xla), options.size)
        serve(timed(cases))
        return 0
    told = race(__file__, options.systems, options)
    medians = {
        name: {case: statistics.median(row[case] for row in rows) for case in rows[0]}
        for name, rows in told.items()
    }
    work_of = {"train": PAIRS * 2 * LENGTH * STEPS}
    work_of |= {case: int(case.split()[0]) for case in answers(None)}
    print("tokens/s of training, sentences/s of answers")
    print(f"| | {' | '.join(work_of)} |\n|---|{'--:|' * len(work_of)}")
    for name, row in medians.items():
        rates = [work_of[case] / row[case] if case in row else None for case in work_of]
        shown = ["" if r is None else f"{r:,.{r < 100:d}f}" for r in rates]
        print(f"| {name} | {' | '.join(shown)} |")
    ratios = []
    for case in work_of:
        best = [
            min((row[case] for name, row in medians.items()
                 if name.startswith(who) and case in row), default=0.0)
            for who in ("hf", "ours")
        ]  # fmt: skip
        ratios.append(f"{best[0] / best[1]:.2f}" if all(best) else "")
    print(f"| our best, times Hugging Face's best | {' | '.join(ratios)} |")
    write(options.output, options, medians=medians, rounds=told)
    return 0 if medians else 1


if __name__ == "__main__":
    sys.exit(main())
