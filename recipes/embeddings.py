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
from dataclasses import dataclass, replace

from tfllm.cli.begin import tokenizer_of
from tfllm.cli.finish import finish, show, train
from tfllm.config import fill, flag, parse, refuse
from tfllm.core.console import note
from tfllm.core.errors import run_main
from tfllm.core.quiet import load_tensorflow
from tfllm.data.doctor import examine
from tfllm.data.similar import read_similar, settle
from tfllm.data.splits import DataFlags, load_splits
from tfllm.text.flags import TextFlags, language_of, length_limit, tokenizer_for
from tfllm.training.flags import FineTuningFlags, RunFlags, TrainingFlags
from tfllm.training.run import open_run

MODELS = ["bag", "transformer"]
DEFAULTS = {
    "batch_size": 64,
    "optimizer": "adamw",
    "schedule": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "ema_decay": 0.0,
    "label_smoothing": 0.0,
}
# From scratch much is to learn; a model that others trained is only turned.
SCRATCH = {"learning_rate": 3e-3, "epochs": 10, "dropout": 0.0, "symmetric": True}
FINE = {"learning_rate": 3e-5, "epochs": 2, "dropout": 0.1, "symmetric": True}
ADAPTER_RATE = 5e-4


@dataclass
class ModelFlags:
    """Which model, and what is learned."""

    model: str = flag(
        "bag",
        "bag (a mean of token vectors), transformer, a checkpoint, a preset, a run",
    )
    hidden_size: int | None = flag(None, "size of a vector, from scratch", minimum=1)
    num_layers: int | None = flag(None, "blocks of a transformer", minimum=1)
    num_heads: int | None = flag(None, "its attention heads", minimum=1)
    pooling: str = flag("mean", "one vector a text", choices=["mean", "cls", "max"])
    loss: str | None = flag(
        None,
        "ranking: own text among all of the batch; triplet: nearer by a margin than "
        "any other; cosine: as near as a score says; by the data when absent",
        choices=["ranking", "triplet", "cosine"],
    )
    temperature: float = flag(0.05, "of the ranking loss", minimum=0.001)
    symmetric: bool = flag(True, "do not rank the first texts for each second one too")
    margin: float = flag(0.3, "of the triplet loss", minimum=0.0, maximum=1.0)
    hard_negatives: int = flag(1, "of a row at most, where the data have", minimum=0)
    copies: int = flag(
        1, "times an epoch takes each labelled text, with other partners", minimum=1
    )
    word_vectors: str | None = flag(
        None, "file in word2vec's text form: the token vectors of a bag"
    )


@dataclass
class Config(
    RunFlags, FineTuningFlags, TrainingFlags, ModelFlags, TextFlags, DataFlags
):
    """All flags of this recipe."""


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    refuse(config, "l2", "label_smoothing", "packing", "adversarial")
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
    rows = splits["train"].rows
    texts = [row[name] for row in rows for name in ("text", "text_pair") if name in row]
    note(f"{kind} of texts, {config.loss} loss")

    load_tensorflow()
    from tfllm.models.classifier import set_word_vectors
    from tfllm.models.embedder import EmbedderConfig, scratch_encoder
    from tfllm.models.word_vectors import read_word_vectors
    from tfllm.tasks.embeddings import Embeddings, write_report
    from tfllm.tasks.start import start_from
    from tfllm.training.trainer_tf import Trainer

    # 2. Choose what the flags left open; config.yaml will hold every choice.
    start = start_from(config, MODELS)
    words = "characters" if language_of(texts) == "zh" else "words"
    options = {"tokenizer": words, "lowercase": True}
    new = functools.partial(tokenizer_for, config, texts, **options)
    tokenizer = tokenizer_of(start, run, new)
    most = min(128, start.config.max_length) if start else 128
    plain = [{"text": text} for text in texts]
    defaults = DEFAULTS | (FINE if start else SCRATCH)
    defaults["max_length"] = length_limit(tokenizer, plain, most, bool(start))
    if config.lora_rank:
        defaults["learning_rate"] = ADAPTER_RATE
    vectors = None
    if config.word_vectors:
        vectors = read_word_vectors(config.word_vectors, tokenizer.tokens)
        defaults["hidden_size"] = vectors.shape[1]
    config = fill(config, defaults)
    if start:
        start.length(config.max_length, most)
    note(f"{tokenizer}, max_length {config.max_length}")

    # 3. Text to ids, and what the doctor says of it.
    rates = {"dropout": config.dropout, "attention_dropout": config.dropout}
    own = {k: getattr(config, k) for k in ("hidden_size", "num_layers", "num_heads")}
    shape = start.config if start else scratch_encoder(
        config.model, tokenizer.vocabulary_size, config.max_length, **own
    )  # fmt: skip
    shape = replace(shape, **rates).to_dict()
    labels = [row["label"] for row in rows] if kind == "scores" else [0.0, 1.0]
    task = Embeddings(
        tokenizer,
        EmbedderConfig(shape, config.pooling, config.adapters()),
        config.max_length,
        special_tokens=bool(start),
        low=min(labels),
        high=max(labels),
        **{
            k: getattr(config, k)
            for k in ("loss", "temperature", "symmetric", "margin")
        },
    )
    options = {"negatives": config.hard_negatives, "seed": config.seed}
    columns = {
        name: task.columns(
            records.rows,
            kind,
            copies=config.copies if name == "train" else 1,
            **options,
        )
        for name, records in splits.items()
    }
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
