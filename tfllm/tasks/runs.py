"""A finished run, opened again: its task, its model, its tokenizer."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tfllm.core.errors import UserError

DECODERS = {"causal_lm": "CausalLM", "chat": "Chat", "preference": "Preference"}
PAIRS = ("translation", "summarization")


class Run(NamedTuple):
    """A run that was opened.

    Attributes:
        path: The run directory.
        task: Its task, with tokenizer.
        model: The best model, float32.
    """

    path: Path
    task: Any
    model: Any


def load_run(path: str | Path) -> Run:
    """Opens `checkpoints/best` of a run directory, adapters merged into their kernels.

    Raises:
        UserError: If there is no run, or one that has no best checkpoint yet.
    """
    path = Path(path)
    best = path / "checkpoints" / "best"
    if not (path / "config.yaml").exists():
        raise UserError("there is no run", path, "Name a directory under runs/")
    if not (best / "config.json").exists():
        raise UserError(
            "the run has no best checkpoint yet",
            path,
            "Let it go on: the same recipe with --output_dir (this directory)",
        )
    from tfllm.models.weights import load_weights
    from tfllm.text import Tokenizer

    config = json.loads((best / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.load(path / "tokenizer")
    adapters = (config.get("model") or config).pop("lora", None)
    more = [path / "target_tokenizer"] if config["task"] in PAIRS else []
    more = [Tokenizer.load(p) if p.exists() else None for p in more]
    task = _task_class(config["task"], best).from_config(config, tokenizer, *more)
    model = task.build_model("float32")
    load_weights(model, best / "model.safetensors", adapters)
    return Run(path, task, model)


def _task_class(name: str, where: Path):
    if name in ("text_classification", "multi_label_classification", "text_regression"):
        from tfllm.tasks import text_classification as module

        kinds = (module.MultiLabelClassification, module.TextRegression)
        return next((k for k in kinds if k.name == name), module.TextClassification)
    if name == "token_classification":
        from tfllm.tasks.token_classification import TokenClassification

        return TokenClassification
    if name == "question_answering":
        from tfllm.tasks.question_answering import QuestionAnswering

        return QuestionAnswering
    if name == "embeddings":
        from tfllm.tasks.embeddings import Embeddings

        return Embeddings
    if name == "masked_lm":
        from tfllm.tasks.masked_lm import MaskedLM

        return MaskedLM
    if name in DECODERS:
        return getattr(import_module(f"tfllm.tasks.{name}"), DECODERS[name])
    if name in PAIRS:
        from tfllm.tasks.sequence_to_sequence import TASKS

        return TASKS[name]
    raise UserError(f"unknown task '{name}'", where, "Update tfllm")
