"""Learns vectors of words from raw text: skip-gram, CBOW or GloVe.

    python recipes/word_vectors.py
    python recipes/word_vectors.py --train_file text/ --model glove --size 200
    python recipes/word_vectors.py --train_file text/ --question_file wordsim353.tsv

English and Chinese, whose words are cut by a learned dictionary. Without a file it
takes a month of a Chinese newspaper. vectors.txt of the run has word2vec's text form,
which `--word_vectors` of other recipes reads; the run itself embeds texts as the mean
of their words (`tfllm search RUN FILE "…"`), and so does its export.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tfllm.cli.finish import finish, show
from tfllm.config import fill, flag, parse, to_yaml
from tfllm.core.console import note
from tfllm.core.errors import UserError, run_main
from tfllm.core.quiet import load_tensorflow
from tfllm.data.corpus import CorpusFlags, load_documents
from tfllm.data.stream import describe, encode_stream
from tfllm.evaluation.word_vectors import read_questions
from tfllm.models.word_vectors import write_word_vectors
from tfllm.tasks.word_vectors import METHODS, Words, WordVectors, word_mask
from tfllm.text import Tokenizer
from tfllm.text.flags import TextFlags, tokenizer_for
from tfllm.training.blocks import dry_run, save_best, train_blocks
from tfllm.training.flags import RunFlags
from tfllm.training.run import open_run

SAMPLE = 50_000_000  # characters that the vocabulary is learned from
# By method. AdaGrad over blocks wants more than word2vec's 0.025 for single words.
RATES = {"skip_gram": 0.2, "cbow": 0.5, "glove": 0.05}
EPOCHS = {"skip_gram": 5, "cbow": 5, "glove": 15}


@dataclass
class VectorFlags:
    """What is learned, and how."""

    model: str = flag("skip_gram", "method", choices=METHODS)
    size: int = flag(100, "numbers of a vector", minimum=1)
    window: int = flag(5, "farthest words that are seen", minimum=1, maximum=32)
    negatives: int = flag(5, "negative samples of a pair", minimum=1)
    subsample: float = flag(
        1e-3, "share of the text above which words are left out; 0: none", minimum=0.0
    )
    min_frequency: int = flag(5, "rarer words are left out", minimum=1)
    batch_size: int | None = flag(None, "words of a step (pairs of glove)", minimum=32)
    epochs: int | None = flag(None, "times the text is seen", minimum=1)
    max_steps: int | None = flag(None, "stop after so many steps", minimum=1)
    learning_rate: float | None = flag(None, "at the beginning", minimum=0.0)
    question_file: list[str] = flag(
        [], "analogies (four words) or similarities (two and a number) to test with"
    )
    compare: str | None = flag(
        None, "other vectors in word2vec's text form, tested with the same questions"
    )
    seed: int = flag(0, "of all that is drawn", minimum=0)
    save_minutes: float = flag(5.0, "a checkpoint every so many minutes", minimum=0.0)
    keep_checkpoints: int = flag(1, "last checkpoints kept beside the best", minimum=1)
    log_steps: int = flag(100, "log every so many steps", minimum=1)


@dataclass
class Config(RunFlags, VectorFlags, TextFlags, CorpusFlags):
    """All flags of this recipe."""

    strategy = "one"
    precision = "float32"


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    if config.compare and not config.question_file:
        raise UserError("--compare needs --question_file: by it vectors are compared")
    if config.compare and not Path(config.compare).is_file():
        raise UserError("there is no such file of word vectors", config.compare)
    run, config = open_run("word_vectors", config, config.model)
    if run.finished:
        return show(run)
    questions = {file: read_questions(file) for file in config.question_file}

    # 1. The text, its words, and ids of them on the disk.
    documents = load_documents(config, "peoples_daily", whole=True)
    sources = [file for part in documents.values() for file in part.sources()]
    files = list({file["path"]: file for file in sources}.values())
    if run.resumed:
        run.check_data(files)
        tokenizer = Tokenizer.load(run.path / "tokenizer")
    else:
        defaults = {"tokenizer": "words", "lowercase": True, "vocabulary_size": 100_000}
        defaults["min_frequency"] = config.min_frequency
        texts = documents["train"].sample(SAMPLE)
        tokenizer = tokenizer_for(config, texts, **defaults)
    streams = {k: encode_stream(part, tokenizer) for k, part in documents.items()}
    report = describe(streams)
    words = {k: Words.of(stream, tokenizer) for k, stream in streams.items()}
    defaults = {"epochs": EPOCHS[config.model], "learning_rate": RATES[config.model]}
    defaults["batch_size"] = 8192 if config.model == "glove" else 2048
    config = fill(config, defaults | {"max_length": 256})
    note(f"{tokenizer}, {len(words['train']):,} words")

    # 2. Train, or tell what training would take.
    names = ("size", "window", "negatives", "subsample", "seed")
    options = {name: getattr(config, name) for name in names}
    task = WordVectors(
        tokenizer.vocabulary_size, words["train"], config.model,
        block=config.batch_size, **options,
    )  # fmt: skip
    if config.dry_run:
        return dry_run(task, config)
    if not run.resumed:
        note(to_yaml(config))
        run.write_start(config, files, report)
        tokenizer.save(run.path / "tokenizer")
    tables = train_blocks(task, config, run, asdict(config))
    vectors, mask = task.vectors(tables), word_mask(tokenizer)
    order = [i for i in (-task.counts).argsort(kind="stable") if mask[i]]
    known = [tokenizer.tokens[i] for i in order]
    write_word_vectors(run.path / "vectors.txt", known, vectors[order])

    # 3. Measure them, and let them speak for texts.
    load_tensorflow()
    from tfllm.tasks.runs import load_run
    from tfllm.tasks.word_report import bag_of_words, write_report
    from tfllm.training.tensorboard_tf import TensorBoard

    bag = bag_of_words(tokenizer, vectors * mask[:, None], config.max_length)
    save_best(run, *bag)
    best = load_run(run.path)
    held_out = {name: words[name] for name in ("test", "validation")}
    losses = {k: (len(part), task.loss(tables, part)) for k, part in held_out.items()}
    found = known, vectors[order]
    results = write_report(
        run.path / "eval", best, *found, losses, questions, config.compare
    )
    board = TensorBoard(run.path / "tensorboard")
    board.projector(vectors[order], known)
    board.close()
    return finish(run, config, best, results, files)


if __name__ == "__main__":
    sys.exit(run_main(main))
