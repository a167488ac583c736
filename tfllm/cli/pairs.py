"""The recipes that make one text of another: translation and summaries."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from tfllm.cli.augment import changed_rows
from tfllm.cli.begin import encode_splits
from tfllm.cli.finish import finish, show, train
from tfllm.config import fill, flag, parse, refuse
from tfllm.core.console import note, table
from tfllm.core.errors import UserError
from tfllm.core.quiet import load_tensorflow
from tfllm.data.augmentation import AugmentFlags
from tfllm.data.doctor import examine
from tfllm.data.parallel import ParallelFlags, load_parallel, read_parallel
from tfllm.evaluation.baseline import predictions_of
from tfllm.evaluation.report import results_table
from tfllm.evaluation.text import METRICS, TOKENIZERS
from tfllm.text import Tokenizer
from tfllm.text.flags import TextFlags, language_of, length_limit, tokenizer_for
from tfllm.training.flags import RunFlags, TrainingFlags
from tfllm.training.run import open_run

RATES = {"tiny": 3e-3, "mini": 1.5e-3, "small": 1e-3, "base": 7e-4}
PRETRAINED_RATE = 3e-4
OWN = ("hidden_size", "num_layers", "num_heads", "position")
LONGEST, ENOUGH = 256, 0.998  # tokens of a side; of rows that are not cut below it
EXAMPLES = 1_200_000  # to learn from, in so many epochs, from 10 to 60
SHORT, PENALTY = 32, 2.0  # summaries of at most so many tokens repeat none
LEADS = 4  # of so many epochs one is spent on first sentences
FEW = 20_000  # pairs that teach no pieces of words, and are soon known by heart
WHOLE = {"tokenizer": "words", "vocabulary_size": 30_000, "epochs": 24}
EVALUATIONS = 15  # of a run, where no flag says how many
DEFAULTS = {
    "tokenizer": "bpe",
    "vocabulary_size": 8000,
    "special_tokens": ["<pad>", "<unk>", "<s>", "</s>"],
    "tokens_per_batch": 4096,
    "optimizer": "adamw",
    "schedule": "inverse_sqrt",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "ema_decay": 0.998,
    "label_smoothing": 0.1,
    "pointer": False,
    "lead_epochs": 0,
}


@dataclass
class PairFlags:
    """The model, and how it answers."""

    architecture: str = flag(
        "transformer", "kind of model", choices=["transformer", "lstm"]
    )
    attention: str = flag(
        "multiplicative", "of the lstm", choices=["multiplicative", "additive"]
    )
    size: str = flag("tiny", "of the model", choices=[*RATES])
    hidden_size: int | None = flag(None, "instead of the size's own", minimum=8)
    num_layers: int | None = flag(None, "instead of the size's own", minimum=1)
    num_heads: int | None = flag(None, "instead of the size's own", minimum=1)
    position: str | None = flag(
        None,
        "how places are told (sinusoidal)",
        choices=["sinusoidal", "learned", "rotary", "relative"],
    )
    post_norm: bool = flag(False, "norms behind the parts of a block, not before")
    model: str | None = flag(
        None, "go on from a T5 checkpoint or a run of one's own instead"
    )
    pointer: bool | None = flag(None, "copies tokens of the source, too (summaries do)")
    lead_epochs: int | None = flag(
        None,
        "epochs at the start whose targets are the first sentences of the texts, of "
        "which copying is learned (a quarter for summaries from scratch, none with "
        "--max_steps)",
        minimum=0,
    )
    separate_vocabularies: bool = flag(
        False, "tokens of its own for each side, not one vocabulary for both"
    )
    max_target_length: int | None = flag(
        None, "longest target in tokens; what holds nearly all when absent", minimum=2
    )
    subword_dropout: float = flag(
        0.0,
        "chance that a merge of a bpe tokenizer is left out in training rows",
        minimum=0.0,
        maximum=0.9,
    )
    copies: int = flag(
        4, "with --subword_dropout: times each training row is cut", minimum=2
    )
    beams: int | None = flag(None, "of beam search; 1 for none", minimum=1)
    length_penalty: float = flag(1.0, "of beam search: more favours longer answers")
    frequency_penalty: float | None = flag(
        None,
        "taken off a token's logit for each time that the answer has it (summaries of "
        "few tokens: 2)",
        minimum=0.0,
    )
    bleu_tokenizer: str | None = flag(
        None, "sacreBLEU's; by language when absent", choices=TOKENIZERS
    )
    compare: str | None = flag(
        None, "a finished run on the same test rows, for a paired test"
    )
    unicode: str = flag(
        "NFC", "Unicode normalisation", choices=["none", "NFC", "NFD", "NFKC", "NFKD"]
    )


@dataclass
class Config(
    *(RunFlags, TrainingFlags, PairFlags, AugmentFlags),
    *(TextFlags, ParallelFlags),
):
    """All flags of these recipes."""


def train_pairs(argv, about: str, recipe: str, sample: str, defaults: dict) -> int:
    """Trains, measures and exports an encoder-decoder.

    Args:
        argv: Command line.
        about: The recipe's docstring.
        recipe: `translation` or `summarization`, which is also the task.
        sample: Sample data that stand in when no file is given.
        defaults: What the flags leave open, beside `DEFAULTS`.

    Returns:
        The exit status.
    """
    config = parse(Config, argv, about)
    refuse(config, "l2", "adversarial")
    shape = "architecture", "attention", "size", "post_norm", "separate_vocabularies"
    refuse(config, *shape, *OWN, "pointer", beside="model")
    refuse(config, "pointer", "lead_epochs", beside="separate_vocabularies")
    summaries = recipe == "summarization"
    if not summaries:
        refuse(config, "lead_epochs")
    name = config.model or f"{config.architecture}-{config.size}"
    run, config = open_run(recipe, config, name)
    if run.finished:
        return show(run)

    # 1. Read the pairs; broken ones stop here.
    splits = load_parallel(config, sample)
    files = [file for records in splits.values() for file in records.files]
    if run.resumed:
        run.check_data(files)
    rows, tested = splits["train"].rows, splits["test"].rows
    sources, targets = ([row[side] for row in rows] for side in ("text", "target"))
    other = None
    if config.compare:
        other = predictions_of(config.compare, tested, ("text", "target"))

    load_tensorflow()
    from tfllm.models.encoder_decoder import shape_of
    from tfllm.tasks.sequence_to_sequence import TASKS, write_report
    from tfllm.tasks.start import start_from
    from tfllm.training.trainer_tf import Trainer

    # 2. Vocabularies, lengths, and what else the flags left open.
    start = start_from(config, [], "encoder_decoder") if config.model else None
    copies = config.copies if config.subword_dropout else 1
    epochs = min(60, max(10, EXAMPLES // max(1, len(rows)))) // copies
    chinese = language_of(targets) == "zh"
    chosen = DEFAULTS | {"epochs": epochs, "learning_rate": RATES[config.size]}
    chosen |= {"bleu_tokenizer": "zh" if chinese else "13a"} | defaults
    few = summaries and len(rows) < FEW and not chinese
    if few and config.tokenizer in (None, "words"):
        chosen |= WHOLE | {"epochs": min(epochs, WHOLE["epochs"])}
    if start or config.separate_vocabularies:
        chosen["pointer"] = False
    elif summaries and not (config.max_steps or run.resumed):
        chosen["lead_epochs"] = (config.epochs or chosen["epochs"]) // LEADS
    if start:  # a vocabulary that config.yaml named would be refused at a resume
        chosen |= {"learning_rate": PRETRAINED_RATE, "epochs": max(1, epochs // 5)}
        chosen |= {"tokenizer": None, "vocabulary_size": None}
    if config.batch_size:
        del chosen["tokens_per_batch"]
    both = _tokenizers(config, run, start, sources, targets, chosen)
    most = start.config.max_length if start else LONGEST
    sides = zip(("max_length", "max_target_length"), both, (sources, targets),
                strict=True)  # fmt: skip
    for name, tokenizer, texts in sides:
        texts = [{"text": text} for text in texts]
        tokenizer = tokenizer or both[0]
        chosen[name] = length_limit(tokenizer, texts, most, True, ENOUGH)
    config = fill(config, chosen)
    short = summaries and config.max_target_length <= SHORT
    config = fill(config, {"frequency_penalty": short * PENALTY})
    if config.lead_epochs >= config.epochs:
        raise UserError(
            f"--lead_epochs {config.lead_epochs} leaves none of {config.epochs} epochs "
            "for the summaries",
            fix="More --epochs, or fewer of these",
        )
    note(
        f"{both[1] or both[0]}, max_length {config.max_length}, "
        f"max_target_length {config.max_target_length}"
    )

    # 3. Text to ids, and what the doctor says of it.
    if start:
        shape = replace(start.config, dropout=config.dropout)
    else:
        shape = shape_of(
            *(config.size, (both[1] or both[0]).vocabulary_size),
            source_vocabulary_size=both[1] and both[0].vocabulary_size,
            **{name: getattr(config, name) for name in OWN},
            architecture=config.architecture,
            attention=config.attention,
            norm_first=not config.post_norm,
            max_length=max(config.max_length, config.max_target_length),
            pointer=config.pointer,
            dropout=config.dropout,
        )
    task = TASKS[recipe](
        *(both[0], shape, config.max_length, config.max_target_length, both[1]),
        label_smoothing=config.label_smoothing,
        tokenize=config.bleu_tokenizer,
        beams=config.beams,
        length_penalty=config.length_penalty,
        frequency_penalty=config.frequency_penalty,
    )
    drawn = config.subword_dropout, copies, config.seed, config.lead_epochs > 0
    changed = changed_rows(config, run, rows)
    columns, lengths = encode_splits(task, splits, changed, drawn)
    report = examine(splits, lengths=lengths, max_length=task.max_length)
    report.print()
    size = config.tokens_per_batch or config.batch_size * columns["train"].lengths.max()
    steps = columns["train"].lengths.sum() * config.epochs // size
    steps = config.max_steps or int(steps) // config.gradient_accumulation_steps
    config = fill(config, {"eval_steps": max(1, steps // EVALUATIONS)})

    # 4. Train, or tell what training would take.
    def leave(path):
        if both[1]:
            both[1].save(path / "target_tokenizer")

    data = columns["train"], columns.get("validation")
    trainer = Trainer(task, config, run, *data, *([start.fill] if start else []))
    best = train(trainer, files, report, leave)
    if not best:
        return 0

    # 5. Measure the best weights on pairs that they have not seen.
    results = write_report(
        *(run.path / "eval", best.task, best.model),
        *(columns["test"], columns.get("validation")),
        leaked=sorted(report.leaked),
        other=other,
    )
    trainer.summarise(results)
    return finish(run, trainer.config, best, results, files)


def _tokenizers(config, run, start, sources, targets, chosen) -> tuple:
    """The tokenizer of sources, and that of targets or None where it is the same."""
    if start or run.resumed:
        folder = Path(start.name) if start else run.path
        load = functools.partial(Tokenizer.load, folder / "target_tokenizer")
        other = load() if (folder / "target_tokenizer").exists() else None
        return start.tokenizer if start else Tokenizer.load(folder / "tokenizer"), other
    if not config.separate_vocabularies:
        return tokenizer_for(config, [*sources, *targets], **chosen), None
    return tuple(tokenizer_for(config, side, **chosen) for side in (sources, targets))


def evaluate_pairs(run, options) -> int:
    """`tfllm eval` of a run of these recipes."""
    from tfllm.tasks.sequence_to_sequence import write_report

    columns = {k: getattr(options, k) for k in ("text_column", "target_column")}
    records = read_parallel(options.test_file, **columns)
    note(f"test: {records.description}")
    test, _ = run.task.columns(records.rows)
    if options.output:
        results = write_report(options.output, run.task, run.model, test)
    else:
        split, kind = run.task.split(run.model, test.rows), METRICS[run.task.name]
        results = {"test": split.measure(kind, run.task.tokenize)}
    table("Results", *results_table(results))
    return 0
