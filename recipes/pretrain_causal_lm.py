"""Pretrains a GPT or Llama on raw text or code: the next token of each token.

    python recipes/pretrain_causal_lm.py
    python recipes/pretrain_causal_lm.py --train_file src/ --size mini --tokenizer bytes
    python recipes/pretrain_causal_lm.py --train_file play.txt --tokenizer characters

Text is folders, paths or globs of plain text or code (a file is a document, as it
stands) or of JSON lines {"text": …}. Without any it takes the source of Python's own
standard library. `tfllm generate RUN "def "` writes; recipes/finetune_chat.py goes on.
"""

import sys
from dataclasses import dataclass

from tfllm.cli.finish import finish, show, train
from tfllm.config import fill, flag, parse, refuse
from tfllm.core.console import note
from tfllm.core.errors import run_main
from tfllm.core.quiet import load_tensorflow
from tfllm.data.corpus import CorpusFlags, load_documents
from tfllm.data.samples import LIBRARY
from tfllm.data.stream import BlockColumns, describe, encode_stream
from tfllm.text import Tokenizer
from tfllm.text.flags import TextFlags, tokenizer_for
from tfllm.training.flags import RunFlags, TrainingFlags
from tfllm.training.run import open_run

SAMPLE = 20_000_000  # characters that the vocabulary is learned from
RATES = {"tiny": 3e-3, "mini": 2e-3, "small": 1e-3, "base": 6e-4}
STYLES = {"gpt": "gpt2", "llama": "llama"}
# No token stands before a text, one behind it; those of chats are there for later.
SPECIAL = ["<pad>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEFAULTS = {
    "tokenizer": "bpe",
    "vocabulary_size": 4096,
    "special_tokens": SPECIAL,
    "max_length": 256,
    "epochs": 1,
    "batch_size": 16,
    "optimizer": "muon",
    "schedule": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.1,
    "ema_decay": 0.0,
    "label_smoothing": 0.0,
    "dropout": 0.0,
}
EVALUATIONS = 5  # of a run, where no flag says how many


@dataclass
class ModelFlags:
    """The model, and how its text is read."""

    architecture: str = flag("llama", "kind of decoder", choices=[*STYLES])
    size: str = flag(
        "tiny", "of the decoder", choices=["tiny", "mini", "small", "base"]
    )
    hidden_size: int | None = flag(None, "instead of the size's own", minimum=8)
    num_layers: int | None = flag(None, "instead of the size's own", minimum=1)
    num_heads: int | None = flag(None, "instead of the size's own", minimum=1)
    model: str | None = flag(
        None, "go on from a preset, a directory or a run of one's own instead"
    )
    copies: int = flag(
        1, "times an epoch goes through the text, each cut at other places", minimum=1
    )
    unicode: str = flag(
        "none", "Unicode normalisation", choices=["none", "NFC", "NFD", "NFKC", "NFKD"]
    )


@dataclass
class Config(RunFlags, TrainingFlags, ModelFlags, TextFlags, CorpusFlags):
    """All flags of this recipe."""


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    config = parse(Config, argv, __doc__)
    own = ("hidden_size", "num_layers", "num_heads")
    refuse(config, "l2", "label_smoothing")
    refuse(config, "architecture", "size", *own, beside="model")
    name = config.model or f"{config.architecture}-{config.size}"
    run, config = open_run("pretrain_causal_lm", config, name)
    if run.finished:
        return show(run)

    # 1. Find the text. It is read once, document by document, when it is encoded.
    documents = load_documents(config, LIBRARY, whole=True)
    sources = [file for part in documents.values() for file in part.sources()]
    files = list({file["path"]: file for file in sources}.values())
    if run.resumed:
        run.check_data(files)

    # 2. The vocabulary, and the choices that the flags left open.
    start, defaults = None, DEFAULTS | {"learning_rate": RATES[config.size]}
    if config.model:
        load_tensorflow()
        from tfllm.tasks.start import start_from

        start = start_from(config, [], "decoder")
        tokenizer = start.tokenizer
        longest = start.length(config.max_length, defaults["max_length"])
        defaults |= {"max_length": longest, "learning_rate": RATES["base"] / 10}
        defaults |= {"tokenizer": None, "vocabulary_size": None}  # it brings them along
        defaults["optimizer"] = "adamw"  # as it was trained with, as a rule
    elif run.resumed:
        tokenizer = Tokenizer.load(run.path / "tokenizer")
    else:
        texts = documents["train"].sample(SAMPLE)
        tokenizer = tokenizer_for(config, texts, **defaults)
    config = fill(config, defaults)
    note(f"{tokenizer}, max_length {config.max_length}")

    # 3. Text to ids on the disk, and ids to rows.
    streams = {k: encode_stream(part, tokenizer) for k, part in documents.items()}
    report = describe(streams)
    columns = {
        name: BlockColumns(stream, config.max_length, copies, config.seed)
        for (name, stream), copies in zip(
            streams.items(), (config.copies, 1, 1), strict=True
        )
    }
    rows = config.batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or len(columns["train"]) * config.epochs // rows
    config = fill(config, {"eval_steps": max(1, steps // EVALUATIONS)})

    load_tensorflow()
    from tfllm.models.decoder import shape_of
    from tfllm.tasks.causal_lm import CausalLM, write_report
    from tfllm.training.trainer_tf import Trainer

    # 4. Train, or tell what training would take.
    shape = start.config if start else shape_of(
        *(STYLES[config.architecture], config.size, tokenizer.vocabulary_size),
        **{name: getattr(config, name) for name in own},
        max_length=config.max_length,
        dropout=config.dropout,
        attention_dropout=config.dropout,
    )  # fmt: skip
    task = CausalLM(tokenizer, shape, config.max_length)
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
