"""Learns a tokenizer from text files and says how good it is.

    python tools/train_tokenizer.py --kind bpe --vocabulary_size 8000 \\
        --train_file corpus/*.txt --output_dir tokenizers/mine
"""

import argparse
import glob
import time
from collections import Counter, defaultdict
from pathlib import Path

from tfllm.core.console import note, table
from tfllm.core.errors import UserError, run_main
from tfllm.text import Cleaning, Tokenizer
from tfllm.text.training import KINDS, Stream

SCRIPTS = {
    "Chinese": lambda c: "\u4e00" <= c <= "\u9fff",
    "Japanese": lambda c: "\u3040" <= c <= "\u30ff",
    "Korean": lambda c: "\uac00" <= c <= "\ud7a3",
    "Cyrillic": lambda c: "\u0400" <= c <= "\u04ff",
    "Arabic": lambda c: "\u0600" <= c <= "\u06ff",
    "English and other Latin": lambda c: c.isalpha() and c < "\u0250",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--train_file", nargs="+", required=True, help="text, a text a line; .gz; globs"
    )
    add(
        "--test_file", nargs="+", help="what is measured; the training text when absent"
    )
    add("--kind", default="bpe", choices=KINDS)
    add("--vocabulary_size", type=int, default=16_000)
    add("--min_frequency", type=int, default=2)
    add("--lowercase", action="store_true", default=None)
    add("--clean", action="store_true", help="NFKC, no control characters")
    add("--dictionary", help="for words: a dictionary in jieba's format")
    add("--pattern", default="digits", help="for bpe: digits, gpt2, llama3 or qwen2")
    add("--output_dir", required=True)
    flags = parser.parse_args()
    files = paths(flags.train_file)
    size = sum(file.stat().st_size for file in files)
    started = time.perf_counter()
    tokenizer = Tokenizer.train(
        files,
        flags.kind,
        flags.vocabulary_size,
        min_frequency=flags.min_frequency,
        cleaning=Cleaning() if flags.clean else None,
        lowercase=flags.lowercase,
        dictionary=flags.dictionary,
        pattern=flags.pattern,
        progress=True,
    )
    seconds = time.perf_counter() - started
    saved = tokenizer.save(flags.output_dir)
    note(
        f"{tokenizer.vocabulary_size:,} tokens from {size / 1e6:,.1f} MB "
        f"in {seconds:,.1f} s: {saved}"
    )
    report(tokenizer, Stream(paths(flags.test_file or flags.train_file)))
    note(f"Use it: --tokenizer {flags.output_dir}")
    return 0


def paths(patterns: list[str]) -> list[Path]:
    """The files that patterns name."""
    files = [Path(name) for p in patterns for name in (sorted(glob.glob(p)) or [p])]  # noqa: PTH207
    for file in files:
        if not file.is_file():
            raise UserError("there is no such file", file)
    return files


def language(text: str) -> str:
    """The script of most letters."""
    counts = {name: sum(map(test, text)) for name, test in SCRIPTS.items()}
    best = max(counts, key=counts.get)
    return best if counts[best] else "no letters"


def report(tokenizer: Tokenizer, texts: Stream) -> None:
    """Compression, unknown rate, and the most split words, per language."""
    totals = defaultdict(Counter)
    splits = defaultdict(dict)
    batch = []

    def measure():
        for text, ids in zip(batch, tokenizer.encode(batch), strict=True):
            total = totals[language(text)]
            unknown = ids.count(tokenizer.unk_id) if tokenizer.unk_id is not None else 0
            total.update(
                texts=1, bytes=len(text.encode()), characters=len(text),
                tokens=len(ids), unknown=unknown,
            )  # fmt: skip
            for word in text.split()[:200]:
                if len(word) < 40:
                    splits[language(text)][word] = None
        batch.clear()

    for text in texts.read(50_000_000):
        batch.append(text)
        if len(batch) == 2000:
            measure()
    measure()
    columns = ["language", "texts", "bytes a token", "characters a token", "unknown %"]
    table(
        "Compression",
        columns,
        [
            [
                name, t["texts"], t["bytes"] / max(1, t["tokens"]),
                t["characters"] / max(1, t["tokens"]),
                100 * t["unknown"] / max(1, t["tokens"]),
            ]
            for name, t in sorted(totals.items(), key=lambda kv: -kv[1]["bytes"])
        ],
    )  # fmt: skip
    rows = []
    for name, words in splits.items():
        words = list(words)[:50_000]
        ids = tokenizer.encode(words)
        worst = sorted(zip(words, ids, strict=True), key=lambda wi: -len(wi[1]))[:3]
        rows += [
            [name, word, " ".join(tokenizer.tokens[i] for i in row)]
            for word, row in worst
        ]
    table("Most split words", ["language", "word", "tokens"], rows)
    longest = sorted(tokenizer.tokens, key=lambda t: -len(t))[:10]
    note("Longest tokens: " + "  ".join(longest))


if __name__ == "__main__":
    raise SystemExit(run_main(main))
