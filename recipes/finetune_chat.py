"""Teaches a language model to answer: instructions and dialogues.

    python recipes/finetune_chat.py
    python recipes/finetune_chat.py --train_file alpaca.json --max_length 1024
    python recipes/finetune_chat.py --model runs/pretrain_causal_lm/RUN --lora_rank 0

Alpaca, ShareGPT and `messages` rows as JSON or JSON lines; without a file it takes
questions and answers about code and computers. The model's own chat template is used,
else ChatML, and saved with the run: `tfllm chat RUN` and the export speak it too.
"""

import sys
from dataclasses import dataclass

from tfllm.cli.begin import ChatFlags, begin_chat
from tfllm.cli.finish import finish, show, train
from tfllm.config import flag, parse, refuse
from tfllm.core.errors import run_main
from tfllm.data.chats import encode_chats, parse_chats, tell_cuts
from tfllm.data.splits import SplitFlags, load_splits
from tfllm.training.flags import FineTuningFlags, RunFlags, TrainingFlags
from tfllm.training.run import open_run


@dataclass
class LossFlags:
    """Which tokens are learned, and how they lie."""

    loss_on: str = flag(
        "answers", "what is learned", choices=["answers", "last", "all"]
    )
    packing: bool = flag(True, "a conversation a row, instead of several")


@dataclass
class Config(
    LossFlags, ChatFlags, RunFlags, TrainingFlags, FineTuningFlags, SplitFlags
):
    """All flags of this recipe."""


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    refuse(config, "l2", "label_smoothing", "unfreeze_epochs")
    run, config = open_run("finetune_chat", config, config.model)
    if run.finished:
        return show(run)

    # 1. Read the conversations; broken ones stop here.
    splits = load_splits(config, "chatterbot", config.seed, parse=parse_chats)
    files = [file for records in splits.values() for file in records.files]
    if run.resumed:
        run.check_data(files)

    # 2. The model and its way to write a conversation down.
    start, template, config, common = begin_chat(config, 3e-4, 5e-5, 2)
    from tfllm.tasks.causal_lm import write_report
    from tfllm.tasks.chat import Chat
    from tfllm.training.trainer_tf import Trainer

    # 3. Conversations to ids, and what truncation takes of them.
    columns, counts = {}, {}
    for name, records in splits.items():
        columns[name], counts[name] = encode_chats(
            *(records.rows, template, start.tokenizer, config.max_length),
            config.loss_on,
        )
    tell_cuts(counts, config.max_length)

    # 4. Train, or tell what training would take.
    task = Chat(**common, loss_on=config.loss_on)
    data = columns["train"], columns["validation"]
    trainer = Trainer(task, config, run, *data, start.fill)
    best = train(trainer, files, counts, lambda path: template.save(path / "tokenizer"))
    if not best:
        return 0

    # 5. Measure the best weights, and those before training, on held-out rows.
    before = task.build_model("float32")
    start.fill(before)
    held_out = columns["test"], columns["validation"]
    results = write_report(
        run.path / "eval", best.task, best.model, *held_out, start=before
    )
    trainer.summarise(results)
    return finish(run, trainer.config, best, results, files)


if __name__ == "__main__":
    sys.exit(run_main(main))
