"""Trains a reader that answers questions from a context, measures it, exports it.

    python recipes/question_answering.py
    python recipes/question_answering.py --model minilm-l6 --train_file train-v1.1.json
    python recipes/question_answering.py --model CHINESE_ENCODER --train_file cmrc.json

Data are SQuAD 1.1 or 2.0 and CMRC 2018 JSON; an answer is a part of its context, or,
where the data have questions without one, none. Long contexts are read in windows.
Without a file it takes questions on Python's own docstrings. A model from scratch finds
the name that a question has and what stands behind it: it does not understand. For
questions in other words than the context's start from an encoder, and have thousands.
"""

import functools
import sys
from dataclasses import dataclass, replace

from tfllm.cli.augment import changed_rows
from tfllm.cli.begin import encode_splits, tokenizer_of
from tfllm.cli.finish import finish, judge, show, train
from tfllm.config import fill, parse, refuse
from tfllm.core.console import note
from tfllm.core.errors import run_main
from tfllm.core.quiet import load_tensorflow
from tfllm.data.augmentation import AugmentFlags
from tfllm.data.doctor import examine
from tfllm.data.questions import parse as questions
from tfllm.data.splits import SplitFlags, load_splits
from tfllm.evaluation.answers import write_answers_report
from tfllm.models.flags import READER_SHAPE, ReaderFlags
from tfllm.text.flags import TextFlags, language_of, tokenizer_for
from tfllm.training.flags import FineTuningFlags, RunFlags, TrainingFlags
from tfllm.training.run import open_run


@dataclass
class Config(
    *(RunFlags, FineTuningFlags, TrainingFlags, ReaderFlags, AugmentFlags),
    *(TextFlags, SplitFlags),
):
    """All flags of this recipe."""


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    refuse(config, "label_smoothing", "l2", "packing")
    run, config = open_run("question_answering", config, config.model)
    if run.finished:
        return show(run)

    # 1. Read the data; broken data stop here, before anything is made.
    sample = "docstring_questions"
    splits = load_splits(config, sample, config.seed, parse=questions)
    files = [file for records in splits.values() for file in records.files]
    if run.resumed:
        run.check_data(files)
    rows = splits["train"].rows
    texts = list(dict.fromkeys(row["context"] for row in rows))
    language = language_of(texts)

    # TensorFlow takes seconds to import: what is wrong so far was told before.
    load_tensorflow()
    from tfllm.models.span_reader import training_defaults
    from tfllm.tasks.question_answering import task_for
    from tfllm.tasks.start import start_from
    from tfllm.training.trainer_tf import Trainer

    # 2. Choose what the flags left open; config.yaml will hold every choice.
    start = start_from(config, ["transformer"])
    architecture = "encoder" if start else config.model
    defaults = training_defaults(architecture, language, bool(config.lora_rank))
    if start:
        longest = start.length(config.max_length, defaults["max_length"])
        defaults["max_length"] = longest
    asked = [row["text"] for row in rows]
    new = functools.partial(tokenizer_for, config, texts + asked, **defaults)
    tokenizer = tokenizer_of(start, run, new)
    config = fill(config, defaults)
    if config.style == "auto":
        config = replace(config, style="cmrc" if language == "zh" else "squad")
    note(f"{tokenizer}, windows of {config.max_length}")

    # 3. Text to ids, and what the doctor says of it.
    shape = {"architecture": architecture}
    shape |= {name: getattr(config, name) for name in READER_SHAPE}
    if start:
        shape |= {"encoder": start.shape(config.dropout), "lora": config.adapters()}
    task = task_for(rows, tokenizer, shape, **config.reading())
    columns, lengths = encode_splits(task, splits, changed_rows(config, run, rows))
    report = examine(splits, lengths=lengths)
    report.print()

    # 4. Train, or tell what training would take.
    def prepare(model):
        if start and not config.from_scratch:
            start.fill(model, [task.name])

    data = columns["train"], columns.get("validation")
    trainer = Trainer(task, config, run, *data, prepare)
    best = train(trainer, files, report)
    if not best:
        return 0

    # 5. Measure the best weights on contexts that they have not seen.
    results = write_answers_report(
        run.path / "eval", task=task.name, leaked=report.leaked, **judge(best, splits)
    )
    trainer.summarise(results)
    return finish(run, trainer.config, best, results, files)


if __name__ == "__main__":
    sys.exit(run_main(main))
