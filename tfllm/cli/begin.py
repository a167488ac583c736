"""What the beginnings of recipes share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tfllm.config import fill, flag
from tfllm.core.console import note
from tfllm.core.quiet import load_tensorflow
from tfllm.data.chats import template_for
from tfllm.text import Tokenizer

RANK = 16  # of the adapters of a model that others trained
MAX_LENGTH = 512
DEFAULTS = {
    "epochs": 1,
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "ema_decay": 0.0,
    "label_smoothing": 0.0,
    "dropout": 0.0,
}


@dataclass
class ChatFlags:
    """Which model goes on, and how much of it."""

    model: str = flag(
        "smollm2-135m-instruct", "a preset, a directory or a run of one's own"
    )
    max_length: int | None = flag(None, "longest conversation in tokens", minimum=8)
    lora_rank: int | None = flag(
        None,
        f"of low-rank adapters, 0 to train all weights; {RANK} but for a run's model",
        minimum=0,
    )


def tokenizer_of(start, run, make) -> Tokenizer:
    """That of the model to go on from, or of a run that goes on, else a new one."""
    if start:
        return start.tokenizer
    return Tokenizer.load(run.path / "tokenizer") if run.resumed else make()


def encode_splits(task, splits: dict, changed: Sequence[dict] = (), how=()):
    """The columns that a task makes of each split's rows, and the rows' lengths.

    Args:
        task: The task.
        splits: `Records` by name.
        changed: Rows that are trained on too; the lengths know nothing of them.
        how: Further arguments of `task.columns` for training rows.
    """
    columns, lengths = {}, {}
    for name, records in splits.items():
        rows, more = records.rows, ()
        if name == "train":
            rows, more = [*rows, *changed], how
        columns[name], sizes = task.columns(rows, *more)
        lengths[name] = sizes[: len(records.rows)]
    return columns, lengths


def begin_chat(config, adapter_rate: float, full_rate: float, batch_size: int):
    """Opens the decoder that `--model` names and settles what the flags left open.

    Args:
        config: Flags, `ChatFlags` and `FineTuningFlags` among them.
        adapter_rate: Learning rate of adapters.
        full_rate: Learning rate of all weights.
        batch_size: Rows of a batch, where no flag says how many.

    Returns:
        The `Start`, its chat template, the configuration, and what the tasks
        `CausalLM` builds on all take.
    """
    load_tensorflow()
    from tfllm.tasks.start import start_from

    start = start_from(config, [], "decoder")
    config = fill(config, {"lora_rank": 0 if start.is_run else RANK})
    longest = start.length(config.max_length, MAX_LENGTH)
    defaults = DEFAULTS | {"max_length": longest, "batch_size": batch_size}
    rate = adapter_rate if config.lora_rank else full_rate
    config = fill(config, defaults | {"learning_rate": rate})
    note(f"{start.tokenizer}, max_length {config.max_length}")
    rates = {"dropout": config.dropout, "attention_dropout": config.dropout}
    common = {
        "tokenizer": start.tokenizer,
        "decoder": replace(start.config, **rates),
        "max_length": config.max_length,
        "lora": config.adapters(),
    }
    return start, template_for(start.source, start.tokenizer), config, common
