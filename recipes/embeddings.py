"""Trains a model of sentences: texts that belong together get vectors that are near.

    python recipes/embeddings.py
    python recipes/embeddings.py --model minilm-l6 --train_file pairs.tsv
    python recipes/embeddings.py --model minilm-l6 --train_file intents.tsv

Pairs of texts (columns of texts that are unlike the first, `negative` …, as well, or a
label that says which pairs belong together), labelled texts (two of one label are a
pair), or pairs with a score. Without a file it takes docstrings and their first lines.
`tfllm search RUN FILE "question"` finds texts.
"""

import functools
import sys
from dataclasses import dataclass

from tfllm.cli.augment import changed_rows
from tfllm.cli.begin import tokenizer_of
from tfllm.cli.finish import finish, show, train
from tfllm.config import fill, parse, refuse
from tfllm.core.console import note
from tfllm.core.errors import UserError, run_main
from tfllm.core.quiet import load_tensorflow
from tfllm.data.augmentation import AugmentFlags
from tfllm.data.doctor import examine
from tfllm.data.similar import read_similar, settle
from tfllm.data.splits import DataFlags, load_splits
from tfllm.models.flags import EMBEDDERS, EmbedderFlags
from tfllm.text.flags import TextFlags, language_of, length_limit, tokenizer_for
from tfllm.training.flags import FineTuningFlags, RunFlags, TrainingFlags
from tfllm.training.run import open_run


@dataclass
class Config(
    *(RunFlags, FineTuningFlags, TrainingFlags, EmbedderFlags, AugmentFlags),
    *(TextFlags, DataFlags),
):
    """All flags of this recipe."""


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    refuse(config, "l2", "label_smoothing", "packing", "adversarial")
    if config.validation_share == 0 and not config.validation_file:
        raise UserError("--validation_share 0: weights are chosen by such rows")
    run, config = open_run("embeddings", config, config.model)
    if run.finished:
        return show(run)

    # 1. Read the data and look it over; broken data stop here, before anything is made.
    splits = load_splits(config, "docstrings", config.seed, reader=read_similar)
    files = [file for records in splits.values() for file in records.files]
    if run.resumed:
        run.check_data(files)
    asked = {"cosine": "scores", "ranking": None, "triplet": None}
    kind, splits = settle(splits, asked.get(config.loss))
    config = fill(config, {"loss": "cosine" if kind == "scores" else "ranking"})
    if kind == "scores" and config.loss != "cosine":
        fix = "Leave it out, or take the scores out of the data"
        raise UserError(f"--loss {config.loss} has no use for scores", fix=fix)
    if kind != "scores" and config.batch_size == 1:
        raise UserError("--batch_size 1: texts are compared with others of the batch")
    rows = splits["train"].rows
    texts = [row[name] for row in rows for name in ("text", "text_pair") if name in row]
    note(f"{kind} of texts, {config.loss} loss")

    load_tensorflow()
    from tfllm.models.classifier import set_word_vectors
    from tfllm.models.embedder import training_defaults
    from tfllm.models.word_vectors import read_word_vectors
    from tfllm.tasks.embeddings import task_for, write_report
    from tfllm.tasks.start import start_from
    from tfllm.training.trainer_tf import Trainer

    # 2. Choose what the flags left open; config.yaml will hold every choice.
    start = start_from(config, EMBEDDERS)
    words = "characters" if language_of(texts) == "zh" else "words"
    options = {"tokenizer": words, "lowercase": True}
    new = functools.partial(tokenizer_for, config, texts, **options)
    tokenizer = tokenizer_of(start, run, new)
    most = min(128, start.config.max_length) if start else 128
    plain = [{"text": text} for text in texts]
    defaults = training_defaults(bool(start), bool(config.lora_rank))
    defaults["max_length"] = length_limit(tokenizer, plain, most, bool(start))
    vectors = None
    if config.word_vectors:
        vectors = read_word_vectors(config.word_vectors, tokenizer.tokens)
        defaults["hidden_size"] = vectors.shape[1]
    config = fill(config, defaults)
    if start:
        start.length(config.max_length, most)
    note(f"{tokenizer}, max_length {config.max_length}")

    # 3. Text to ids, and what the doctor says of it.
    task = task_for(rows, kind, tokenizer, config, start and start.config)
    columns, drawn = {}, {"negatives": config.hard_negatives, "seed": config.seed}
    changed = changed_rows(config, run, rows)
    for name, records in splits.items():
        more, copies = (changed, config.copies) if name == "train" else ([], 1)
        seen = [*records.rows, *more]
        columns[name] = task.columns(seen, kind, name, copies=copies, **drawn)
    report = examine(splits)
    report.print()

    # 4. Train, or tell what training would take.
    def prepare(model):
        if vectors is not None:
            set_word_vectors(model, vectors)
        if start and not config.from_scratch:
            start.fill(model)

    data = columns["train"], columns["validation"]
    trainer = Trainer(task, config, run, *data, prepare)
    best = train(trainer, files, report)
    if not best:
        return 0

    # 5. Measure the best weights, and the first ones, on text that they have not seen.
    held_out = columns["test"], columns["validation"]
    results, found = write_report(
        run.path / "eval", best.task, best.model, trainer.untrained(), *held_out
    )
    trainer.summarise(results, (found, columns["test"].texts))
    return finish(run, trainer.config, best, results, files)


if __name__ == "__main__":
    sys.exit(run_main(main))
