"""Where fine-tuning starts: a checkpoint, a preset, or a run of one's own."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfllm.core.console import note
from tfllm.core.errors import UserError, did_you_mean
from tfllm.text import Tokenizer


@dataclass
class Start:
    """An encoder to go on from.

    Attributes:
        config: Its `EncoderConfig`.
        tokenizer: Its tokenizer.
        fill: Pours its weights into a model whose layers have the same names; what
            has no counterpart (a new head, adapters) keeps what it had.
    """

    config: Any
    tokenizer: Tokenizer
    fill: Callable[[Any], None]


def start_from(name: str, architectures: list[str]) -> Start:
    """Opens what `--model` names.

    Args:
        name: A run directory, or what `models.pretrained.open_checkpoint` takes.
        architectures: Names that would have been known too, for the error.

    Raises:
        UserError: There is nothing of that name, or it is not an encoder.
    """
    from tfllm.models.encoder import EncoderConfig
    from tfllm.models.pretrained import open_checkpoint, presets

    if (Path(name) / "config.yaml").exists():
        return _from_run(Path(name))
    if not Path(name).exists() and "/" not in name and name not in presets.NAMES:
        known = [*architectures, *presets.NAMES]
        raise UserError(
            f"unknown model '{name}'",
            fix=did_you_mean(name, known)
            or f"Name a directory, or one of {', '.join(known)}",
        )
    checkpoint = open_checkpoint(name)
    if not isinstance(checkpoint.config, EncoderConfig):
        raise UserError(
            f"a {checkpoint.family} model writes text; labels want an encoder", name
        )

    def fill(model):
        told = checkpoint.fill(model, heads=False)
        _tell(name, tuple(told["fresh"]))

    return Start(checkpoint.config, checkpoint.tokenizer(), fill)


def _from_run(path: Path) -> Start:
    from safetensors import safe_open

    from tfllm.models.encoder import EncoderConfig

    best = path / "checkpoints" / "best"
    try:
        settings = json.loads((best / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("the run has no best checkpoint yet", path) from None
    shape = settings.get("encoder") or settings.get("model", {}).get("encoder")
    if shape is None:
        raise UserError("the run did not train an encoder", path)

    def fill(model):
        fresh = []
        with safe_open(best / "model.safetensors", framework="np") as file:
            names = set(file.keys())
            for variable in model.weights:
                if variable.path not in names:
                    fresh.append(variable.path)
                    continue
                array = file.get_tensor(variable.path)
                if array.shape == tuple(variable.shape):
                    variable.assign(array)
                elif variable.path.startswith("logits/"):
                    fresh.append(variable.path)
                else:
                    raise UserError(
                        f"{variable.path} is {array.shape} there and "
                        f"{tuple(variable.shape)} here",
                        path,
                    )
        missing = [name for name in fresh if name.startswith(("block_", "token_"))]
        if any(not name.endswith(("lora_a", "lora_b")) for name in missing):
            raise UserError(f"the run lacks {', '.join(missing)}", path)
        _tell(str(path), tuple(fresh))

    return Start(EncoderConfig(**shape), Tokenizer.load(path / "tokenizer"), fill)


@functools.cache  # a model is made several times: tell it once
def _tell(name: str, fresh: tuple[str, ...]) -> None:
    adapters = [path for path in fresh if path.endswith(("lora_a", "lora_b"))]
    layers = sorted({path.split("/")[0] for path in fresh if path not in adapters})
    new = ", ".join(layers + [f"{len(adapters) // 2} adapters"] * bool(adapters))
    note(f"weights from {name}; new: {new or 'nothing'}")
