"""Tokens a second on real text of mixed lengths, with and without length buckets.

    python tools/benchmarks/bucketing.py --train_file FILE [--model lstm] [--rounds 3]

Runs the recipe alternately with and without --no_bucketing for some steps and takes the
median of the logged rates, real tokens only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_file", required=True)
    parser.add_argument(
        "--models", nargs="+", default=["textcnn", "lstm", "transformer"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options, flags = parser.parse_known_args()
    print("| model | tokens/s, buckets | tokens/s, none | ratio | padding |")
    print("|---|--:|--:|--:|--:|")
    for model in options.models:
        rates, padding = {True: [], False: []}, {}
        for _ in range(options.rounds):
            for bucketing in (True, False):
                rows = run(options, model, bucketing, flags)
                rates[bucketing].append(statistics.median(r[0] for r in rows))
                padding[bucketing] = statistics.mean(r[1] for r in rows)
        with_them, without = (statistics.median(rates[b]) for b in (True, False))
        print(
            f"| {model} | {with_them:,.0f} | {without:,.0f} | "
            f"{with_them / without:.2f} | {padding[True]:.0%}, {padding[False]:.0%} |",
            flush=True,
        )
    return 0


def run(options, model: str, bucketing: bool, flags: list[str]) -> list[tuple]:
    """(tokens/s, padding share) of every logged row but the first ones."""
    command = [sys.executable, str(ROOT / "recipes/text_classification.py")]
    command += ["--train_file", options.train_file, "--model", model, "--no_export"]
    command += ["--max_steps", str(options.steps), "--precision", "float32"]
    command += ["--jit_compile", "false", "--max_eval_samples", "50", *flags]
    command += [] if bucketing else ["--no_bucketing"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--output_dir", f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        lines = Path(folder, "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if "tokens_per_second" in row and row["step"] > 10]
    return [(row["tokens_per_second"], row["padding_share"]) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
