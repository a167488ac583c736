"""Where fine-tuning starts: a checkpoint, a preset, or a run of one's own."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfllm.core.console import note
from tfllm.core.errors import UserError, did_you_mean
from tfllm.layers import lora
from tfllm.text import Tokenizer

HEAD = "logits"  # what the paths of a head's weights begin with
WANTED = {
    "encoder": "an encoder",
    "decoder": "a decoder",
    "encoder_decoder": "an encoder with a decoder",
}


@dataclass
class Start:
    """A model to go on from.

    Attributes:
        name: What `--model` said.
        config: Its `EncoderConfig` or `DecoderConfig`.
        tokenizer: Its tokenizer.
        source: Where that lies, and perhaps a chat template.
        labels: Names of its classes, if it is a classifier.
        pour: Fills a model whose layers have the same names; returns the paths of the
            weights that have no counterpart and keep what they had.
    """

    name: str
    config: Any
    tokenizer: Tokenizer
    source: Path
    labels: list[str] | None
    pour: Callable[[Any], list[str]]

    @property
    def is_run(self) -> bool:
        """Whether it is a run of one's own."""
        return (Path(self.name) / "config.yaml").exists()

    def length(self, wanted: int | None, default: int) -> int:
        """Longest row: what was asked for, if the model can read it, or a default."""
        most = self.config.max_length
        if wanted and wanted > most:
            raise UserError(f"--max_length {wanted} is more than the model's {most}")
        return wanted or min(default, most)

    def shape(self, dropout: float | None) -> dict:
        """Its configuration; all of it drops out as asked, or as it did before."""
        rates = {} if dropout is None else {"dropout": dropout}
        rates |= {f"attention_{name}": rate for name, rate in rates.items()}
        return self.config.to_dict() | rates

    def fill(self, model, labels: list[str] | None = None) -> None:
        """Pours the weights in; the head only where it speaks of the same labels."""
        head = [v for v in model.weights if v.path.startswith(HEAD)]
        before = [v.numpy() for v in head]
        fresh = self.pour(model)
        if labels != self.labels:
            for variable, value in zip(head, before, strict=True):
                variable.assign(value)
            fresh = sorted({*fresh, *(v.path for v in head)})
        _tell(self.name, tuple(fresh))


def start_from(config, architectures: list[str], kind="encoder") -> Start | None:
    """Opens what `--model` names; None if it names an architecture.

    Args:
        config: Flags; `model` is one of `architectures`, a run directory, or what
            `models.pretrained.open_checkpoint` takes.
        architectures: What begins from scratch.
        kind: What is wanted, a key of `WANTED`.

    Raises:
        UserError: There is nothing of that name, it is of another kind, or flags choose
            what it brings along, or what only fine-tuning has.
    """
    name = config.model
    if name in architectures:
        for flag in ("lora_rank", "unfreeze_epochs", "from_scratch"):
            if getattr(config, flag, None):
                raise UserError(
                    f"--{flag} is for a model that was trained before",
                    fix="Name a checkpoint, a preset or a run with --model",
                )
        return None
    adapted = getattr(config, "lora_rank", 0) or getattr(config, "unfreeze_epochs", 0)
    if getattr(config, "from_scratch", False) and adapted:
        raise UserError("--from_scratch leaves nothing to adapt or to unfreeze")
    from tfllm.models.pretrained import open_checkpoint, presets
    from tfllm.models.pretrained.configs import KINDS

    for flag in ("tokenizer", "vocabulary_size", "word_vectors"):
        if getattr(config, flag, None):
            raise UserError(f"--{flag} does not go with --model {name}, which has one")
    if (Path(name) / "config.yaml").exists():
        return _from_run(Path(name), kind)
    if not Path(name).exists() and "/" not in name and name not in presets.NAMES:
        known = [*architectures, *presets.NAMES]
        raise UserError(
            f"unknown model '{name}'",
            fix=did_you_mean(name, known)
            or f"Name a directory, or one of {', '.join(known)}",
        )
    checkpoint = open_checkpoint(name)
    if not isinstance(checkpoint.config, KINDS[kind]):
        does = "reads and writes"
        if not isinstance(checkpoint.config, KINDS["encoder_decoder"]):
            reads = isinstance(checkpoint.config, KINDS["encoder"])
            does = "reads" if reads else "writes"
        raise UserError(
            f"a {checkpoint.family} model {does} text; this wants {WANTED[kind]}", name
        )

    def pour(model):
        return checkpoint.fill(model, heads=False)["fresh"]

    tokenizer = checkpoint.tokenizer()
    rest = checkpoint.source, checkpoint.labels, pour
    return Start(name, checkpoint.config, tokenizer, *rest)


def _from_run(path: Path, kind: str) -> Start:
    from tfllm.models.pretrained.configs import KINDS
    from tfllm.models.weights import read_weights

    best = path / "checkpoints" / "best"
    try:
        settings = json.loads((best / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("the run has no best checkpoint yet", path) from None
    inner = settings.get("model", {})
    shape, adapters = (settings.get(n) or inner.get(n) for n in (kind, "lora"))
    if shape is None:
        raise UserError(f"the run did not train {WANTED[kind]}", path)

    def pour(model):
        values = read_weights(best / "model.safetensors", adapters)
        fresh = []
        for variable in model.weights:
            array = values.get(variable.path)
            fits = array is not None and array.shape == tuple(variable.shape)
            if fits:
                variable.assign(array)
            elif array is None or variable.path.startswith(HEAD):
                fresh.append(variable.path)
            else:
                raise UserError(
                    f"{variable.path} is {array.shape} there and "
                    f"{tuple(variable.shape)} here",
                    path,
                )
        missing = [n for n in fresh if "block_" in n or n.startswith("token_")]
        if any(not name.endswith(lora.NAMES) for name in missing):
            raise UserError(f"the run lacks {', '.join(missing)}", path)
        return fresh

    source, labels = path / "tokenizer", settings.get("labels")
    return Start(
        str(path), KINDS[kind](**shape), Tokenizer.load(source), source, labels, pour
    )


@functools.cache  # a model is made several times: tell it once
def _tell(name: str, fresh: tuple[str, ...]) -> None:
    adapters = [path for path in fresh if path.endswith(lora.NAMES)]
    layers = sorted({path.split("/")[0] for path in fresh if path not in adapters})
    new = ", ".join(layers + [f"{len(adapters) // 2} adapters"] * bool(adapters))
    note(f"weights from {name}; new: {new or 'nothing'}")
