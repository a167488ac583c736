"""SmolLM2-135M taught to chat and to prefer: held-out losses, reward accuracy.

    python tools/benchmarks/tuning.py --data DIR [--parts chat preference]

DIR holds llamafactory_demos/. `chat`: 300 of its English instructions with adapters;
the loss of held-out answers before and after. `preference`: DPO on its English and
Chinese pairs, 100 of each language held out. Flags that are none of these go to the
recipe. What is finished is read, not run again. Prints the results and writes
runs/benchmarks/tuning.json.
"""

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from tfllm.core.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent.parent
HELD_OUT = 100  # pairs of each language
LANGUAGES = ("en", "zh")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--parts", nargs="+", default=["chat", "preference"])
    options, flags = parser.parse_known_args()
    folder, found = options.data / "llamafactory_demos", {}
    for part in options.parts:
        run = options.output / f"smollm2-{part}"
        if part == "chat":
            files = ["--train_file", folder / "alpaca_en_demo.json.gz"]
            files += ["--max_train_samples", 300, "--epochs", 2]
            recipe = "finetune_chat"
        else:
            files = split_pairs(folder, options.output / "pairs")
            recipe = "preference_tuning"
        if not (run / "eval/results.json").exists():
            command = [sys.executable, ROOT / f"recipes/{recipe}.py", *files]
            command += ["--output_dir", run, "--no_export", *flags]
            subprocess.run([*map(str, command)], check=True)
        results = json.loads((run / "eval/results.json").read_text("utf-8"))
        names = ("baseline", "test", "validation")
        found[part] = {name: results[name] for name in names if name in results}
        print(part, json.dumps(found[part], indent=1), flush=True)
    atomic_write(options.output / "tuning.json", json.dumps(found, indent=1))
    return 0


def split_pairs(folder: Path, output: Path) -> list:
    """Writes the pairs in two parts, by a hash of each, and returns the flags."""
    parts = {"train": [], "test": []}
    for language in LANGUAGES:
        raw = (folder / f"dpo_{language}_demo.json.gz").read_bytes()
        rows = json.loads(gzip.decompress(raw))
        rows.sort(key=lambda row: hashlib.sha256(json.dumps(row).encode()).digest())
        parts["test"] += rows[:HELD_OUT]
        parts["train"] += rows[HELD_OUT:]
    flags = []
    for name, rows in parts.items():
        path = output / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(rows, ensure_ascii=False))
        flags += [f"--{name}_file", path]
    return flags


if __name__ == "__main__":
    sys.exit(main())
