"""The three splits of a run, from files, or from sample data when there are none."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tfllm.config import flag
from tfllm.core.console import note
from tfllm.core.errors import UserError
from tfllm.core.files import sha256
from tfllm.data import samples
from tfllm.data.doctor import drop_duplicates, drop_leaked, group_key
from tfllm.data.labels import problem_of, settle_labels
from tfllm.data.readers import Records, read

# A split that has no file is held out from the training rows: this share of them, but
# enough to choose a model by.
SHARE, FEWEST, MOST_SHARE = 0.03, 200, 0.1


@dataclass
class SplitFlags:
    """Where rows come from."""

    train_file: list[str] = flag([], "training data: paths or globs, .gz as is")
    validation_file: list[str] = flag(
        [], "without it a part of the training rows is held out"
    )
    test_file: list[str] = flag(
        [], "without it a part of the training rows is held out"
    )
    max_train_samples: int | None = flag(None, "use so many training rows", minimum=1)
    max_eval_samples: int | None = flag(
        None, "use so many validation and test rows", minimum=1
    )
    validation_share: float | None = flag(
        None,
        "held out of the training rows when there is no validation file; 0: nothing",
        minimum=0.0,
        maximum=0.5,
    )
    drop_duplicates: bool = flag(False, "drop repeated training rows")
    drop_leaked: bool = flag(
        False, "drop training rows that stand in validation or test"
    )


@dataclass
class DataFlags(SplitFlags):
    """Where labelled text comes from."""

    text_column: str | None = flag(None, "name or number; detected when absent")
    pair_column: str | None = flag(None, "of the second text; detected when absent")
    label_column: str | None = flag(None, "name or number; detected when absent")


def load_splits(
    flags: SplitFlags,
    sample: str,
    seed: int = 0,
    validate: bool = True,
    problem: str | None = None,
    parse: Callable | None = None,
    reader: Callable = read,
) -> dict[str, Records]:
    """Reads `train`, `validation` and `test`, and says what was found.

    Args:
        flags: Files, columns and limits.
        sample: Name of the sample data that stand in when no file is given.
        seed: Of what is held out.
        validate: Whether validation rows are held out when neither a file nor
            `validation_share` speaks of them; otherwise there is no such split.
        problem: Brings the labels to one kind (`labels.settle_labels`); several labels
            a text always have validation rows, which thresholds are tuned on.
        parse: See `readers.read`.
        reader: Reads the files of a split, as `readers.read` does.

    Raises:
        UserError: For files that cannot be read (see `readers.read`).
    """
    if not flags.train_file:
        if flags.validation_file or flags.test_file:
            raise UserError("there is no --train_file for these files")
        note(f"No --train_file: the sample data '{sample}' are used.")
        splits = {k: Records(rows, sample) for k, rows in samples.load(sample).items()}
        for name, records in splits.items():
            content = repr(
                [
                    (r["text"], r.get("label", r.get("target", r.get("answers"))))
                    for r in records.rows
                ]
            )
            file = {"path": f"{sample}/{name}", "sha256": sha256(content)}
            records.files = [file | {"rows": len(records)}]
    else:
        splits = {}
        for name in ("train", "validation", "test"):
            if paths := getattr(flags, f"{name}_file"):
                columns = ("text_column", "pair_column", "label_column")
                options = {k: getattr(flags, k) for k in columns if hasattr(flags, k)}
                splits[name] = reader(paths, split=name, parse=parse, **options)
                note(f"{name}: {splits[name].description}")
    if problem:
        splits = settle_labels(splits, problem)
        validate = validate or problem_of(splits["train"].rows) == "multi_label"
    if flags.drop_duplicates:
        splits["train"] = drop_duplicates(splits["train"])
    for name in ("test", "validation"):
        if name in splits:
            continue
        share = flags.validation_share if name == "validation" else None
        if name == "validation" and not (validate if share is None else share):
            note("validation: none; --validation_share 0.1 would hold out a tenth")
            continue
        splits["train"], splits[name] = hold_out(
            splits["train"], f"{seed} {name}", share
        )
        note(f"{name}: {len(splits[name]):,} rows held out from the training rows")
        if not len(splits["train"]):
            what = "nothing is left to train on: too few different texts or contexts"
            fix = "Give more of them, or a --validation_file and a --test_file"
            raise UserError(what, splits["train"].where, fix)
    if flags.drop_leaked:
        others = [splits[name] for name in ("validation", "test") if name in splits]
        splits["train"] = drop_leaked(splits["train"], others)
    limits = {"train": flags.max_train_samples}
    return {
        name: splits[name].take(limits.get(name, flags.max_eval_samples))
        for name in ("train", "validation", "test")
        if name in splits
    }


def hold_out(
    records: Records, seed: object = 0, share: float | None = None
) -> tuple[Records, Records]:
    """Splits rows in two by a hash of their text: (the rest, what is held out).

    Without a `share` it is `SHARE`, but enough rows to choose a model by. A text and
    its repetitions, and all questions of one context, fall on the same side, whatever
    their order, so that nothing that is held out can be learned by heart.
    """
    size = len(records)
    enough = min(max(SHARE * size, FEWEST), MOST_SHARE * size)
    wanted = int(enough if share is None else share * size)
    hashes = [sha256(f"{seed}\0{group_key(row)}") for row in records.rows]
    last = sorted(hashes)[max(wanted, 1) - 1] if hashes else ""
    chosen = [value <= last for value in hashes]
    parts = (
        [row for row, held in zip(records.rows, chosen, strict=True) if held == side]
        for side in (False, True)
    )
    rest, held = (replace(records, rows=rows, bad=[]) for rows in parts)
    return replace(rest, bad=records.bad), held
