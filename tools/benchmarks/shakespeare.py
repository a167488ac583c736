"""Characters of tiny-shakespeare: loss against time, beside nanoGPT's CPU setting.

    python tools/benchmarks/shakespeare.py --data DIR [--hf_python PATH] [--parts short]

DIR holds tinyshakespeare/input.txt.gz; its last tenth is held out, as nanoGPT does.
`nanogpt` trains the shape and the schedule of nanoGPT's CPU setting (4 blocks, 128
wide, 12 rows of 64 characters, 2,000 steps) in PyTorch, with `transformers`' GPT-2, and
runs where --hf_python has both. `short` is our recipe with as many steps as two cores
take in no longer than that, `long` a larger model for some ten minutes. Losses are nats
a character of all held-out text, with the last weights: the one evaluation is at the
end. (Nothing is cut off the training text to choose by: its end begins the play that is
held out.) Prints a line a part; other flags go to the recipe.
"""

import argparse
import gzip
import json
import math
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMMON = ["--tokenizer", "characters", "--copies", "400", "--no_export"]
COMMON += ["--precision", "mixed_bfloat16", "--jit_compile", "false"]
COMMON += ["--num_layers", "4", "--num_heads", "4"]
PARTS = {
    "short": (1050, ["--hidden_size", "128", "--max_length", "128"]),
    "long": (2200, ["--hidden_size", "256", "--max_length", "256", "--dropout", "0.1"]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--hf_python", help="a Python with torch and transformers")
    parser.add_argument("--parts", nargs="+", default=["nanogpt", *PARTS])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    folder = options.output / "shakespeare-text"
    if options.child:
        print(json.dumps(nanogpt(folder)))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    whole = options.data / "tinyshakespeare" / "input.txt.gz"
    text = gzip.decompress(whole.read_bytes()).decode()
    cut = int(0.9 * len(text))
    (folder / "train.txt").write_text(text[:cut], encoding="utf-8")
    (folder / "held_out.txt").write_text(text[cut:], encoding="utf-8")
    for part in options.parts:
        if part == "nanogpt":
            command = [options.hf_python or sys.executable, __file__, "--child"]
            command += ["--data", options.data, "--output", options.output]
            out = subprocess.run(
                [*map(str, command)], check=True, stdout=subprocess.PIPE
            )
            found = json.loads(out.stdout.splitlines()[-1])
        else:
            found = ours(folder, options.output / f"shakespeare-{part}", part, flags)
        told = ", ".join(f"{name} {value:,.4g}" for name, value in found.items())
        print(f"{part}: {told}", flush=True)
    return 0


def ours(folder: Path, run: Path, part: str, flags: list[str]) -> dict:
    """Runs the recipe; what a killed run had done counts."""
    command = [sys.executable, ROOT / "recipes/pretrain_causal_lm.py"]
    command += ["--train_file", folder / "train.txt", "--output_dir", run]
    command += ["--test_file", folder / "held_out.txt"]
    command += ["--validation_file", folder / "held_out.txt"]
    steps, shape = PARTS[part]
    command += [*COMMON, "--max_steps", steps, "--eval_steps", steps, *shape, *flags]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    results = json.loads((run / "eval/results.json").read_text())
    last = max(run.glob("checkpoints/step-*"))
    state = json.loads((last / "state.json").read_text())
    return {
        "training seconds": state["seconds"],
        "steps": state["step"],
        "loss": results["test"]["metrics"]["loss"],
    }


def nanogpt(folder: Path) -> dict:
    """config/train_shakespeare_char.py with the CPU flags of nanoGPT's README."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    block, rows, steps, warm = 64, 12, 2000, 100
    texts = [(folder / f"{name}.txt").read_text() for name in ("train", "held_out")]
    ids = {letter: i for i, letter in enumerate(sorted(set(texts[0] + texts[1])))}
    train, held = (torch.tensor([ids[letter] for letter in text]) for text in texts)
    torch.manual_seed(1337)
    shape = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": block}
    dropped = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(ids), **shape, **dropped))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}]
    groups += [{"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.99))

    def loss_of(chunk):
        logits = model(chunk[:, :-1]).logits.flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, chunk[:, 1:].flatten())

    started = time.perf_counter()
    for step in range(steps):
        done = max(0.0, (step - warm) / (steps - warm))
        rate = 1e-4 + 0.5 * (1 + math.cos(math.pi * done)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = min(rate, 1e-3 * (step + 1) / warm)
        starts = torch.randint(len(train) - block - 1, (rows,))
        loss = loss_of(torch.stack([train[i : i + block + 1] for i in starts]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        places = np.arange(0, len(held) - block - 1, block)
        chunks = torch.stack([held[i : i + block + 1] for i in places])
        losses = [loss_of(part).item() * len(part) for part in chunks.split(64)]
    return {
        "training seconds": seconds,
        "steps": steps,
        "loss": sum(losses) / len(chunks),
    }


if __name__ == "__main__":
    sys.exit(main())
