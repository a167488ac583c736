"""Tunes a language model on pairs of answers, a chosen and a rejected one.

    python recipes/preference_tuning.py
    python recipes/preference_tuning.py --train_file pairs.json
    python recipes/preference_tuning.py --model RUN --objective orpo

Pairs are JSON or JSON lines: a conversation (`messages`, ShareGPT's `conversations`,
`prompt` or `instruction`) with `chosen` and `rejected`. Without a file it takes
questions with their own answer and that to another question.
"""

import sys
from dataclasses import dataclass

from tfllm.cli.begin import ChatFlags, begin_chat
from tfllm.cli.finish import finish, show, train
from tfllm.config import fill, flag, parse, refuse
from tfllm.core.console import note
from tfllm.core.errors import run_main
from tfllm.data.chats import (
    encode_answers,
    mismatched,
    parse_pairs,
    tell_cuts,
)
from tfllm.data.splits import SplitFlags, load_splits
from tfllm.training.flags import FineTuningFlags, RunFlags, TrainingFlags
from tfllm.training.run import open_run

EVALUATIONS = 5  # of a run, where no flag says how many


@dataclass
class PreferenceFlags:
    """How answers are compared."""

    objective: str = flag("dpo", "how answers are compared", choices=["dpo", "orpo"])
    beta: float = flag(
        0.1, "scale of the rewards (DPO), weight of the comparison (ORPO)", minimum=0.0
    )


@dataclass
class Config(
    PreferenceFlags, ChatFlags, RunFlags, TrainingFlags, FineTuningFlags, SplitFlags
):
    """All flags of this recipe."""


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    refuse(config, "l2", "label_smoothing", "unfreeze_epochs")
    run, config = open_run("preference_tuning", config, config.model)
    if run.finished:
        return show(run)

    # 1. Read the pairs; broken ones stop here.
    splits = load_splits(config, "chatterbot", config.seed, parse=parse_pairs)
    files = [file for records in splits.values() for file in records.files]
    if run.resumed:
        run.check_data(files)
    rows = {name: records.rows for name, records in splits.items()}
    if not config.train_file:
        rows = {name: mismatched(part) for name, part in rows.items()}

    # 2. The model and its way to write a conversation down.
    start, template, config, common = begin_chat(config, 5e-5, 5e-6, 1)
    from tfllm.tasks.causal_lm import write_report
    from tfllm.tasks.preference import Preference, read_references, save_references
    from tfllm.training.trainer_tf import Trainer

    # 3. Pairs to ids, what truncation takes, and what the model thinks of them so far.
    columns, counts = {}, {}
    for name, part in rows.items():
        columns[name], counts[name] = encode_answers(
            part, template, start.tokenizer, config.max_length
        )
    tell_cuts(counts, config.max_length)
    batch = config.batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or len(columns["train"]) * config.epochs // batch
    config = fill(config, {"eval_steps": max(1, steps // EVALUATIONS)})
    task = Preference(**common, objective=config.objective, beta=config.beta)
    references = run.path / "references.npz"
    wanted = config.objective == "dpo" and not config.dry_run
    if wanted and not read_references(references, columns):
        note("the answers' likelihoods before training are computed")
        model = task.build_model("float32")
        start.fill(model)
        task.refer(model, columns)
        del model

    # 4. Train, or tell what training would take.
    def leave(path):
        template.save(path / "tokenizer")
        if wanted:
            save_references(references, columns)

    data = columns["train"], columns["validation"]
    trainer = Trainer(task, config, run, *data, start.fill)
    best = train(trainer, files, counts, leave)
    if not best:
        return 0

    # 5. Measure the best weights on pairs that they have not seen.
    held_out = columns["test"], columns["validation"]
    results = write_report(run.path / "eval", best.task, best.model, *held_out)
    trainer.summarise(results)
    return finish(run, trainer.config, best, results, files)


if __name__ == "__main__":
    sys.exit(run_main(main))
