"""All models on all data sets with the recipe's defaults: accuracy, minutes, seeds.

    python tools/benchmarks/classification.py --data DIR [--sets trec] [--models lstm]
    python tools/benchmarks/classification.py --data DIR --models minilm-l6 \\
        --sets trec sst2_sentences clinc150 mrpc [--lora_rank 8 --name lora]

DIR holds chnsenticorp/, thucnews_titles/, trec/, … Flags that are none of these go to
the recipe. A run that is finished already is read, not run again, so a stopped
benchmark goes on. Prints a table and writes runs/benchmarks/classification.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SETS = {
    "chnsenticorp": ("train.tsv.gz", "dev.tsv.gz", "test.tsv.gz"),
    "thucnews_titles": ("dev.txt.gz", None, "test.txt.gz"),
    "trec": ("TREC.train.all.gz", None, "TREC.test.all"),
    "sst2_sentences": ("train.tsv.gz", "dev.tsv", "test.tsv.gz"),
    "clinc150": ("data_full.json.gz",) * 3,
    "mrpc": ("msr_paraphrase_train.txt.gz", None, "msr_paraphrase_test.txt.gz"),
}
MODELS = ["fasttext", "textcnn", "lstm", "transformer"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS)[:3])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--name", default="", help="tells runs with other flags apart")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    options, flags = parser.parse_known_args()
    found = {}
    for name in options.sets:
        for model in options.models:
            runs = [
                measure(options, name, model, seed, flags) for seed in options.seeds
            ]
            found[f"{name}/{model}"] = runs
            print(row(name, model, runs), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "classification.json"
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print("\n| data | model | validation | test | test without leaked | minutes |")
    print("|---|---|--:|--:|--:|--:|")
    for key, runs in found.items():
        print(row(*key.split("/"), runs))
    return 0


def measure(options, name: str, model: str, seed: int, flags: list) -> dict:
    """Runs the recipe, or reads what it left."""
    label = "-".join(filter(None, [name, Path(model).name, options.name, str(seed)]))
    run = options.output / label
    folder = options.data / name
    train, validation, test = SETS[name]
    command = [sys.executable, str(ROOT / "recipes/text_classification.py")]
    command += ["--train_file", folder / train, "--test_file", folder / test]
    command += ["--validation_file", folder / validation] if validation else []
    command += ["--model", model, "--seed", seed, "--output_dir", run, "--no_export"]
    timed = run / "minutes.txt"
    if not timed.exists():
        started = time.perf_counter()
        command = [str(part) for part in [*command, *flags]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{done.stderr}")
        timed.write_text(str((time.perf_counter() - started) / 60))
    results = json.loads((run / "eval/results.json").read_text(encoding="utf-8"))
    results.setdefault("test_without_leaked", results["test"])
    figures = {
        split: results[split]["metrics"]["accuracy"]
        for split in ("validation", "test", "test_without_leaked")
        if split in results
    }
    if len(results.get("per_class", [])) == 2:
        figures["f1"] = results["per_class"][-1]["f1"]
    return figures | {"minutes": float(timed.read_text())}


def row(name: str, model: str, runs: list[dict]) -> str:
    """Means over the seeds, and the spread of the test accuracy."""
    mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
    spread = statistics.stdev(run["test"] for run in runs) if len(runs) > 1 else 0.0
    validation = f"{mean['validation']:.2%}" if "validation" in mean else "–"
    return (
        f"| {name} | {model} | {validation} | {mean['test']:.2%} "
        f"± {100 * spread:.2f} | {mean['test_without_leaked']:.2%} "
        f"| {mean['minutes']:.1f} |" + (f" F1 {mean['f1']:.2%}" if "f1" in mean else "")
    )


if __name__ == "__main__":
    sys.exit(main())
