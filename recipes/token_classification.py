"""Trains a tagger of names, slots or words, measures it, exports it for serving.

    python recipes/token_classification.py
    python recipes/token_classification.py --train_file train.txt --test_file test.txt
    python recipes/token_classification.py --model minilm-l6 --train_file atis/train

Data are CoNLL columns (BIO, IOB1, BIOES, BMES), a folder with seq.in and seq.out (and
`label`, for intents beside the slots), or JSON lines with `tokens` and `tags`. The
model reads plain text and answers with spans of its characters. Without a file it
takes names in Chinese news.
"""

import functools
import sys
from dataclasses import dataclass

from tfllm.cli.augment import changed_rows
from tfllm.cli.begin import encode_splits, tokenizer_of
from tfllm.cli.finish import finish, judge, show, train
from tfllm.config import fill, parse, refuse
from tfllm.core.console import note
from tfllm.core.errors import run_main
from tfllm.core.quiet import load_tensorflow
from tfllm.data.augmentation import AugmentFlags
from tfllm.data.doctor import examine
from tfllm.data.splits import SplitFlags, load_splits
from tfllm.data.tagged import entity_types
from tfllm.data.tagged import parse as tagged
from tfllm.evaluation.tagging import write_tagging_report
from tfllm.models.flags import TAGGER_SHAPE, TAGGERS, TaggerFlags
from tfllm.text.flags import TextFlags, language_of, tokenizer_for
from tfllm.training.flags import FineTuningFlags, RunFlags, TrainingFlags
from tfllm.training.run import open_run


@dataclass
class Config(
    *(RunFlags, FineTuningFlags, TrainingFlags, TaggerFlags, AugmentFlags),
    *(TextFlags, SplitFlags),
):
    """All flags of this recipe."""


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    refuse(config, "label_smoothing", "l2", "packing")
    run, config = open_run("token_classification", config, config.model)
    if run.finished:
        return show(run)

    # 1. Read the data and look it over; broken data stop here, before anything is made.
    splits = load_splits(config, "peoples_daily_names", config.seed, parse=tagged)
    files = [file for records in splits.values() for file in records.files]
    if run.resumed:
        run.check_data(files)
    rows = splits["train"].rows
    types = entity_types(splits["train"])
    for name in ("validation", "test"):
        if getattr(config, f"{name}_file"):
            entity_types(splits[name], name)
    texts = [row["text"] for row in rows]
    language = language_of(texts)

    # TensorFlow takes seconds to import: what is wrong so far was told before.
    load_tensorflow()
    from tfllm.models.tagger import training_defaults
    from tfllm.tasks.start import start_from
    from tfllm.tasks.token_classification import task_for
    from tfllm.training.trainer_tf import Trainer

    # 2. Choose what the flags left open; config.yaml will hold every choice.
    start = start_from(config, TAGGERS)
    architecture = "encoder" if start else config.model
    defaults = training_defaults(architecture, language, bool(config.lora_rank))
    if start:
        longest = start.length(config.max_length, defaults["max_length"])
        defaults["max_length"] = longest
    new = functools.partial(tokenizer_for, config, texts, **defaults)
    tokenizer = tokenizer_of(start, run, new)
    config = fill(config, defaults)
    note(f"{tokenizer}, max_length {config.max_length}")

    # 3. Text to ids, and what the doctor says of it.
    shape = {"architecture": architecture}
    shape |= {name: getattr(config, name) for name in TAGGER_SHAPE}
    if start:
        shape |= {"encoder": start.shape(config.dropout), "lora": config.adapters()}
    options = {"special_tokens": bool(start)}
    task = task_for(rows, types, tokenizer, config.scheme, shape, **options)
    columns, lengths = encode_splits(task, splits, changed_rows(config, run, rows))
    report = examine(splits, lengths=lengths, max_length=config.max_length)
    report.print()

    # 4. Train, or tell what training would take.
    def prepare(model):
        if start and not config.from_scratch:
            start.fill(model, task.labels)

    data = columns["train"], columns.get("validation")
    trainer = Trainer(task, config, run, *data, prepare)
    best = train(trainer, files, report)
    if not best:
        return 0

    # 5. Measure the best weights on text that they have not seen.
    results = write_tagging_report(
        run.path / "eval", task=task.name, leaked=report.leaked, **judge(best, splits)
    )
    trainer.summarise(results)
    return finish(run, trainer.config, best, results, files)


if __name__ == "__main__":
    sys.exit(run_main(main))
