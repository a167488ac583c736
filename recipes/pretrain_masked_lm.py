"""Pretrains a BERT encoder on raw text: masked words, and next sentence.

    python recipes/pretrain_masked_lm.py
    python recipes/pretrain_masked_lm.py --train_file texts/ --size small
    python recipes/pretrain_masked_lm.py --train_file 'wiki/*.jsonl.gz' --dry_run
    python recipes/pretrain_masked_lm.py --train_file reviews/ --model RUN

Text is a folder, paths or globs of plain text (an empty line ends a document) or of
JSON lines {"text": …}, Chinese or English. Without any it takes a month of the People's
Daily. The run is what recipes/text_classification.py --model RUN goes on from. With
--model an encoder that there is already learns your domain's language (Gururangan et
al., 2020).
"""

import sys
from dataclasses import dataclass, replace

from tfllm.cli.finish import finish, show, train
from tfllm.config import fill, parse, refuse
from tfllm.core.console import note
from tfllm.core.errors import UserError, run_main
from tfllm.core.quiet import load_tensorflow
from tfllm.data.corpus import CorpusFlags, describe, encode_corpus, load_documents
from tfllm.data.sentence_pairs import PAIRED, MaskingFlags, make_pairs
from tfllm.models.flags import EncoderFlags
from tfllm.text import Tokenizer
from tfllm.text.flags import TextFlags, tokenizer_for
from tfllm.training.flags import RunFlags, TrainingFlags
from tfllm.training.run import open_run

SAMPLE = 50_000_000  # characters that the vocabulary is learned from
WORDS = 50_000  # that the segmenter knows
EVALUATIONS = 10  # of a run, where no flag says how many


@dataclass
class Config(
    *(RunFlags, TrainingFlags, EncoderFlags, MaskingFlags),
    *(TextFlags, CorpusFlags),
):
    """All flags of this recipe."""


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    refuse(config, "l2")
    refuse(config, "size", "position", "norm_first", beside="model")
    run, config = open_run("pretrain_masked_lm", config, config.model or config.size)
    if run.finished:
        return show(run)

    # 1. Find the text. It is read once, document by document, when it is encoded.
    documents = load_documents(config, "peoples_daily")
    sources = [file for part in documents.values() for file in part.sources()]
    files = list({file["path"]: file for file in sources}.values())
    if run.resumed:
        run.check_data(files)

    # 2. The vocabulary, and the choices that the flags left open.
    load_tensorflow()
    from tfllm.models.encoder import sized_encoder
    from tfllm.tasks.masked_lm import MaskedLM, training_defaults, write_report
    from tfllm.tasks.start import start_from
    from tfllm.training.trainer_tf import Trainer

    start, defaults = None, training_defaults(config.size, bool(config.model))
    if config.model:
        if config.objective == "replaced_tokens":
            raise UserError("--objective replaced_tokens does not go with --model")
        start = start_from(config, [])
        tokenizer = start.tokenizer
        longest = start.length(config.max_length, defaults["max_length"])
        defaults["max_length"] = longest
    elif run.resumed:
        tokenizer = Tokenizer.load(run.path / "tokenizer")
    else:
        texts = documents["train"].sample(SAMPLE)
        tokenizer = tokenizer_for(config, texts, **defaults)
    segmenter = None
    if config.whole_words == "words":
        texts = documents["train"].sample(SAMPLE)
        segmenter = Tokenizer.train(
            texts, "words", WORDS, dictionary=config.word_dictionary
        )
    config = fill(config, defaults)
    note(f"{tokenizer}, max_length {config.max_length}")

    # 3. Text to ids on the disk, and ids to pairs.
    options = {"max_length": config.max_length, "seed": config.seed}
    options["objective"] = config.objective
    corpora, columns = {}, {}
    for name, part in documents.items():
        corpora[name] = encode_corpus(part, tokenizer, segmenter)
        copies = config.copies if name == "train" else 1
        columns[name] = make_pairs(corpora[name], tokenizer, copies=copies, **options)
    report = describe(corpora, tokenizer)
    rows = config.batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or len(columns["train"]) * config.epochs // rows
    config = fill(config, {"eval_steps": max(1, steps // EVALUATIONS)})

    # 4. Train, or tell what training would take.
    rates = {"dropout": config.dropout, "attention_dropout": config.dropout}
    rates["pooler"] = config.objective in PAIRED
    size = tokenizer.vocabulary_size, config.max_length
    shape = {"position": config.position, "norm_first": config.norm_first}
    encoder = start.config if start else sized_encoder(config.size, *size, **shape)
    task = MaskedLM(
        *(tokenizer, replace(encoder, **rates), config.max_length),
        objective=config.objective,
        mask_rate=config.mask_rate,
        whole_words=config.whole_words != "none",
        label_smoothing=config.label_smoothing,
        seed=config.seed,
    )
    data = columns["train"], columns["validation"]
    trainer = Trainer(task, config, run, *data, *([start.fill] if start else []))
    best = train(trainer, files, report)
    if not best:
        return 0

    # 5. Measure the best weights on text that they have not seen.
    held_out = columns["test"], columns["validation"]
    results = write_report(run.path / "eval", best.task, best.model, *held_out)
    trainer.summarise(results)
    return finish(run, trainer.config, best, results, files)


if __name__ == "__main__":
    sys.exit(run_main(main))
