"""Labelled text files to records; the format is told by content, not by name.

To add a format: a function that returns rows or `None` if the file is of another kind,
and its place in `_FORMATS`.
"""

import csv
import glob
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfllm.core.errors import UserError, did_you_mean
from tfllm.core.files import sha256
from tfllm.data.decode import decode
from tfllm.data.order import shuffled

_NAMES = {  # of columns, the surest first
    "text": "text text_a sentence1 #1_string question1 premise question sentence "
    "review content comment utterance tweet message query body document headline "
    "title v2",
    "text_pair": "text_pair text_b sentence2 #2_string question2 hypothesis passage "
    "answer sentence",
    "label": "gold_label label labels class category intent sentiment target quality "
    "is_duplicate score similarity polarity stars rating tag tags y v1",
}
_TRIPLETS = {"text": "anchor query", "text_pair": "positive"}
_NEGATIVE = re.compile(r"(hard_)?neg(ative)?s?(_?\d+)?", re.IGNORECASE)
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval"),
}
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold halves of characters


@dataclass
class Records:
    """What was read.

    Attributes:
        rows: dicts with `text`, perhaps `text_pair`, `label` (str; list of str for
            several labels; float where JSON has fractions), `file`, `line` (from 1; the
            number of the item in a JSON array); and `negatives`, where asked for.
        format: As the recipe prints it.
        encoding: As Python names it.
        columns: role (`text`, `text_pair`, `label`) → the name or number of the column.
        bad: (file, line, reason) of rows that were left out.
        unlabelled: Rows left out whose `gold_label` is `-`: no label (SNLI).
        files: `path`, `sha256` of its bytes and number of `rows` of each file.
    """

    rows: list[dict]
    format: str = "rows"
    encoding: str = "utf-8"
    columns: dict = field(default_factory=dict)
    bad: list[tuple[str, int, str]] = field(default_factory=list)
    unlabelled: int = 0
    files: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def description(self) -> str:
        """One line: how many rows, what was detected."""
        columns = ", ".join(f"{role}={name}" for role, name in self.columns.items())
        found = [f"{len(self.rows):,} rows", self.format, self.encoding, columns]
        found += [f"{len(self.bad)} bad rows left out"] * bool(self.bad)
        found += [f"{self.unlabelled} without a label left out"] * bool(self.unlabelled)
        return ", ".join(filter(None, found))

    @property
    def where(self) -> str | None:
        """Its files, for messages."""
        return ", ".join(file["path"] for file in self.files) or None

    def take(self, limit: int | None) -> "Records":
        """At most `limit` rows, drawn at random but always the same, in file order."""
        if limit is None or limit >= len(self):
            return self
        chosen = sorted(shuffled(len(self), seed=0)[:limit])
        return replace(self, rows=[self.rows[i] for i in chosen])


@dataclass
class RawFile:
    """One file and what the caller asked for; `read` makes them."""

    path: Path
    text: str
    columns: dict  # role → column asked for, or None
    part: str | None
    split: str | None
    labels: bool
    negatives: bool = False
    bad: list = field(default_factory=list)
    unlabelled: int = 0
    found: dict = field(default_factory=dict)  # role → column used

    def __post_init__(self):
        self.lines = self.text.split("\n")  # str.splitlines would cut at U+2028 too

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Lines that are not blank, with their numbers."""
        return ((n, line) for n, line in enumerate(self.lines, 1) if line.strip())

    def error(self, what: str, fix: str | None = None, line: int | None = None):
        """A `UserError` about this file."""
        return UserError(what, f"{self.path}:{line}" if line else self.path, fix)


def read(
    paths,
    *,
    parse: Callable[["RawFile"], tuple[list[dict], str]] | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    labels: bool = True,
    negatives: bool = False,
    encoding: str | None = None,
) -> Records:
    """Reads files of labelled text.

    Args:
        paths: A path, a glob, or a list of these; `.gz` as is. `FILE#PART` takes one
            part of a JSON file that holds several (`PART+PART` takes both).
        parse: Gives the rows of a file and the name of its form, and adds to its `bad`;
            for data that are not labelled text.
        text_column, pair_column, label_column: A name in the header or a number from 1;
            detected when absent.
        split: `train`, `validation` or `test`: which part of a file with several
            parts is meant when the path does not say.
        labels: `False` for texts alone: a label is optional, plain lines are accepted.
        negatives: Looks for columns `negative`, `negative_2` … of texts unlike `text`.
        encoding: Instead of what the content shows.

    Raises:
        UserError: A file is missing, unreadable, of no known form, or has more than a
            few bad rows.
    """
    columns = {"text": text_column, "text_pair": pair_column, "label": label_column}
    whole, formats, encodings = Records([]), [], []
    for path, part in expand(paths):
        text, name, raw = decode(path, encoding)
        file = RawFile(path, text, columns, part, split, labels, negatives)
        if not text.strip():
            raise file.error("the file is empty")
        rows, form = (parse or _parse)(file)
        whole.rows += rows
        whole.bad += [(str(path), line, reason) for line, reason in file.bad]
        whole.unlabelled += file.unlabelled
        whole.columns |= file.found
        record = {"path": str(path), "sha256": sha256(raw), "rows": len(rows)}
        whole.files.append(record)
        formats.append(form)
        encodings.append(name)
    whole.format = ", ".join(dict.fromkeys(formats))
    whole.encoding = ", ".join(dict.fromkeys(encodings))
    check_bad_rows(whole, named=parse is None)
    return whole


def check_bad_rows(records: Records, named: bool = True) -> None:
    """Raises a `UserError` where more than 5 rows and more than 1 % are bad.

    Args:
        records: What was read.
        named: Whether there are flags that name the columns.
    """
    bad = records.bad
    total = len(records.rows) + len(bad)
    if (bad and not records.rows) or len(bad) > max(5, 0.01 * total):
        first = "; ".join(f"{file}:{line}: {why}" for file, line, why in bad[:3])
        what = f"{len(bad):,} of {total:,} rows cannot be used ({records.format})"
        flags = ", or name the columns (--text_column, --label_column)"
        fix = f"Mend these lines{flags * (named and bool(records.columns))}."
        raise UserError(f"{what}: {first}", fix=fix)


def expand(paths) -> list[tuple[Path, str | None]]:
    """Paths, globs and `FILE#PART` as (path, part), in order, without repeats.

    Raises:
        UserError: Nothing is there.
    """
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    found: dict = {}
    for name in map(str, names):
        base, _, part = name.rpartition("#")
        if Path(name).exists() or not base:
            base, part = name, ""
        matches = [base] if Path(base).exists() else sorted(glob.glob(base))  # noqa: PTH207
        if not matches:
            near = Path(base).parent
            others = [p.name for p in near.iterdir()] if near.is_dir() else []
            fix = did_you_mean(Path(base).name, others) or "Check the path."
            raise UserError("there is no such file", name, fix)
        for match in matches:
            path = Path(match)
            for inside in ("seq.in", "seq.in.gz"):
                path = path / inside if (path / inside).exists() else path
            found[path, part or None] = None
    if not found:
        raise UserError("no file was named")
    return list(found)


def _parse(file: RawFile) -> tuple[list[dict], str]:
    for parse in _FORMATS:
        parsed = parse(file)
        if parsed is not None:
            raw_rows, form = parsed
            return list(_checked(file, raw_rows)), form
    first = next(line for _, line in file.numbered())
    fix = "Give text and label as TSV, CSV or JSON lines with a header."
    raise file.error(f"the format is not known: '{first[:60]}'", fix)


def _checked(file: RawFile, raw_rows) -> Iterator[dict]:
    """Drops rows without text or label into `file.bad`; adds file and line."""
    where = str(file.path)
    names = _class_names(file)
    raw_rows = list(raw_rows)
    labels = [row[3] for row in raw_rows]
    ids = names and all(re.fullmatch(r"\s*\d{1,9}\s*", str(x)) for x in labels)
    numbers = any(isinstance(label, float) for label in labels)
    for line, text, pair, label, *others in raw_rows:
        if label == "-" and str(file.found.get("label")).lower() == "gold_label":
            label = None
            if file.labels:
                file.unlabelled += 1
                continue
        texts = [text] if pair is None else [text, pair]
        others = [o for one in others for o in (one if type(one) is list else [one])]
        others = [one for one in others if one]
        texts += others
        reason = None
        if not all(isinstance(one, str) for one in texts):
            reason = "the text is not a string"
        elif not all(one.strip() for one in texts):
            reason = "the text is empty"
        elif any(map(SURROGATE.search, texts)):
            reason = "the text is not Unicode (half a surrogate pair)"
        elif file.labels and (label is None or str(label).strip() == ""):
            reason = "the label is empty"
        elif ids and int(label) >= len(names):
            reason = f"label {label}, but class.txt has {len(names)} names"
        if reason:
            file.bad.append((line, reason))
            continue
        row = {"text": text.strip()}
        if pair is not None:
            row["text_pair"] = pair.strip()
        if others:
            row["negatives"] = [one.strip() for one in others]
        if isinstance(label, list):
            row["label"] = [str(one).strip() for one in label]
        elif numbers and isinstance(label, float | int):
            row["label"] = float(label)
        elif label is not None:
            row["label"] = names[int(label)] if ids else str(label).strip()
        yield row | {"file": where, "line": line}


def _class_names(file: RawFile) -> list[str] | None:
    """Names of the classes 0, 1, … where a `class.txt` lies beside the file."""
    path = file.path.parent / "class.txt"
    if not path.exists() or path == file.path:
        return None
    return [name.strip() for name in decode(path)[0].split("\n") if name.strip()]


# Each format: RawFile → (iterable of (line, text, pair, label), its name), or None.


def _json(file: RawFile):
    found = json_items(file)
    return found and (_json_columns(file, found[0]), found[1])


def json_items(file: RawFile, keys=()) -> tuple[list[tuple[int, Any]], str] | None:
    """Items of JSON lines, an array, or an object of several arrays.

    Args:
        file: The file.
        keys: An object with one of them is an item, even if it holds arrays alone.

    Returns:
        Items with their lines or, in an array, numbers; and what the form is called.
        None if the file is not JSON.
    """
    if file.text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        whole = json.loads(file.text)
    except (ValueError, RecursionError) as error:
        return _json_lines(file, error)
    form = "JSON"
    arrays = isinstance(whole, dict) and not set(keys) & whole.keys()
    if arrays and all(isinstance(v, list) for v in whole.values()):
        part = _choose_part(file, whole)
        form = f"JSON, part {part}"
        whole = [item for name in part.split("+") for item in whole[name]]
    elif isinstance(whole, dict):
        whole, form = [whole], "JSON lines"
    return list(enumerate(whole, 1)), form


def _json_lines(file: RawFile, error: Exception):
    items, bad = [], []
    for number, line in file.numbered():
        try:
            items.append((number, json.loads(line)))
        except (ValueError, RecursionError) as wrong:
            bad.append((number, f"not JSON ({wrong})"))
    if len(items) < len(bad):
        # Plain text may begin with a bracket too.
        first = file.text.lstrip().partition("\n")[0]
        if "\t" in first or not re.match(r'[\[{]\s*["\[{]', first):
            return None
        raise file.error(f"damaged JSON ({error})", line=getattr(error, "lineno", 1))
    file.bad += bad
    return items, "JSON lines"


def _choose_part(file: RawFile, parts: dict) -> str:
    if file.part:
        for name in file.part.split("+"):
            if name not in parts:
                fix = did_you_mean(name, parts) or f"It has {', '.join(parts)}."
                raise file.error(f"there is no part '{name}'", fix)
        return file.part
    if len(parts) == 1:
        return next(iter(parts))
    names = _SPLITS.get(file.split, (file.split,))
    named = [name for name in parts if name.lower() in names]
    if not named:
        fix = f"Write FILE#PART, PART being one of {', '.join(parts)}."
        raise file.error("the file has several parts", fix)
    return named[0]


def _json_columns(file: RawFile, items: list):
    kind, what = dict, "a JSON object"
    if sum(isinstance(item, list) for _, item in items) > 0.5 * len(items):
        kind, what = list, "[text, label]"  # as CLINC150 has them
    good = []
    for number, item in items:
        if isinstance(item, kind) and (kind is dict or len(item) == 2):
            good.append((number, item))
        else:
            file.bad.append((number, f"not {what}"))
    if kind is list:
        places = {"text": "1", "text_pair": None, "label": "2"}
        file.columns = {k: file.columns[k] or place for k, place in places.items()}
        return _assigned(file, ["1", "2"], good)
    keys = list(dict.fromkeys(key for _, item in good[:1000] for key in item))
    return _assigned(file, keys, [(n, [item.get(k) for k in keys]) for n, item in good])


def _assigned(file: RawFile, names: list[str], rows: list[tuple[int, list]]):
    """Rows of cells as (line, text, pair, label, *negatives)."""
    roles = _roles(file, names, [cells for _, cells in rows[:2000]])
    others = [
        column
        for column, name in enumerate(names)
        if file.negatives and _NEGATIVE.fullmatch(name) and column not in roles.values()
    ]
    file.found |= {"negatives": ", ".join(names[c] for c in others)} if others else {}
    for number, cells in rows:
        found = (cells[roles[role]] if role in roles else None for role in file.columns)
        text, pair, label = found
        text = "" if text is None else text
        pair = "" if pair is None and "text_pair" in roles else pair
        yield number, text, pair, label, *(cells[column] for column in others)


def _parallel(file: RawFile):
    """`seq.in`, a text a line, with a file `label` of as many lines beside it."""
    if file.path.name not in ("seq.in", "seq.in.gz"):
        return None
    labels = beside(file, "label")
    if labels is None:
        if file.labels:
            raise file.error("there is no file 'label' beside it")
        return None
    texts = file.text.rstrip("\n").split("\n")
    file.found |= {"text": file.path.name, "label": "label"}
    rows = (
        (n, t, None, c) for n, (t, c) in enumerate(zip(texts, labels, strict=True), 1)
    )
    return rows, "parallel files"


def beside(file: RawFile, name: str) -> list[str] | None:
    """The lines of a file beside this one, as many as it has itself; None without."""
    paths = [file.path.with_name(one) for one in (name, f"{name}.gz")]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        return None
    own, others = (
        text.rstrip("\n").split("\n") for text in (file.text, decode(found)[0])
    )
    if len(own) != len(others):
        raise file.error(f"{len(own):,} lines but {len(others):,} in {found.name}")
    return others


def _table(file: RawFile):
    """TSV or CSV, with or without a header."""
    head = [line for _, line in file.numbered()][:2000]
    for delimiter in "\t,;|":
        split = [_split(line, delimiter) for line in head]
        headed = _has_header(file, split)
        if (headed and len(split[0]) > 1) or (
            delimiter == "\t" and sum("\t" in line for line in head) > 0.5 * len(head)
        ):
            break
        width, often = Counter(map(len, split)).most_common(1)[0]
        # Texts alone have commas of their own.
        wanted = file.labels or file.negatives or file.columns.get("text")
        rare = delimiter != "\t" and width > 1 and 1 < len(head) < 1.05 * often
        if wanted and rare:
            break
    else:
        if file.labels or not headed:  # a header and one column of texts is fine
            return None
    rows = _rows(file, delimiter)
    common = Counter(len(row) for _, row in rows).most_common(1)[0][0]
    names = [cell.strip() for cell in rows[0][1]] if headed else []
    if headed:
        rows = rows[1:]
        if not rows:
            raise file.error("there is a header and nothing below it")
    width = len(names) or common
    good = []
    for number, row in rows:
        if len(row) == width:
            good.append((number, row))
        else:
            file.bad.append((number, f"{len(row)} fields instead of {width}"))
    form = "TSV" if delimiter == "\t" else "CSV"
    names = names or [str(i + 1) for i in range(width)]
    form += f" {'with' if headed else 'without'} header"
    return _assigned(file, names, good), form


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _rows(file: RawFile, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line, cells); quotes are taken as such only where all are well-formed."""
    tab = delimiter == "\t"
    plain = [
        (number, line.split("\t") if tab else _split(line, delimiter))
        for number, line in file.numbered()
    ]
    rows, before, limit = [], 0, csv.field_size_limit(2**31 - 1)
    try:
        lines = (line + "\n" for line in file.lines)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((before + 1, cells))
            before = reader.line_num
    except csv.Error:  # a quote that is no quote: a line is a row
        return plain
    finally:
        csv.field_size_limit(limit)
    # Two quotes that begin cells far apart would swallow the lines between them.
    regular = Counter(len(cells) for _, cells in plain).most_common(1)[0][1]
    if tab and len(rows) < len(plain) and regular > 0.98 * len(plain):
        return plain
    return rows


def _named_roles(names: list, triplets: bool = False) -> dict[str, int]:
    """Role → column, by the names that people give to columns."""
    plain = [str(name).strip().lower().replace(" ", "_") for name in names]
    roles: dict[str, int] = {}
    for role, known in _NAMES.items():
        known += " " + _TRIPLETS.get(role, "") if triplets else ""
        found = [plain.index(name) for name in known.split() if name in plain]
        found = [column for column in found if column not in roles.values()]
        if found:
            roles[role] = found[0]
    return roles


def _has_header(file: RawFile, rows: list[list[str]]) -> bool:
    """Whether the first row names columns."""
    first, rest = [cell.strip() for cell in rows[0]], rows[1:]
    rest = [row for row in rest if len(row) == len(first)]
    if any(name in first for name in file.columns.values()):
        return True
    known = _named_roles(first, file.negatives)
    if "text" in known and ("label" in known or not file.labels):
        return True
    if not rest or any(re.fullmatch(r"-?[\d.]*", cell) for cell in first):
        return False
    if known:
        return all(row[c].strip() != first[c] for c in known.values() for row in rest)
    # Names nobody thought of: the first label is unlike all others, which come again.
    label = _guess_roles(rest, {}).get("label") if len(rest) > 3 else None
    if label is None:
        return False
    seen = Counter(row[label].strip() for row in rest)
    return first[label] not in seen and min(seen.values()) > 1


def _roles(file: RawFile, names: list[str], sample: list[list]) -> dict[str, int]:
    """Role → column: as asked for, else by name, else by content."""
    roles: dict[str, int] = {}
    for role, name in file.columns.items():
        if name is None:
            continue
        if name in names:
            roles[role] = names.index(name)
        elif str(name).isdigit() and 1 <= int(name) <= len(names):
            roles[role] = int(name) - 1
        else:
            fix = did_you_mean(name, names) or f"It has {', '.join(names)}."
            raise file.error(f"there is no column '{name}'", fix)
    named = _named_roles(names, file.negatives)
    if "text" in roles and named.get("text") != roles["text"]:
        named.pop("text_pair", None)  # of another text
    taken = set(roles.values())
    roles |= {k: v for k, v in named.items() if k not in roles and v not in taken}
    if not file.negatives or "text" not in roles:
        roles = _guess_roles(sample, roles)
    for role in ("text", "label") if file.labels else ("text",):
        if role not in roles:
            what = f"there is no {role} column among {', '.join(names)}"
            raise file.error(what, f"Name it with --{role}_column.")
    file.found |= {role: names[roles[role]] for role in file.columns if role in roles}
    return roles


def _guess_roles(sample: list[list], known: dict[str, int]) -> dict[str, int]:
    """Adds what is not known by content: labels come again, texts are long.

    A second text is looked for only where the first one is not known either: beside a
    known one, any long column would look like it.
    """
    distinct, size, words, labels, roles = {}, {}, {}, [], dict(known)
    for column, cells in enumerate(zip(*sample, strict=True)):
        if column in known.values():
            continue
        cells = ["" if cell is None else str(cell).strip() for cell in cells]
        distinct[column], size[column] = len(set(cells)), sum(map(len, cells))
        numeric = sum(bool(re.fullmatch(r"[-\d.:/]*", cell)) for cell in cells)
        if numeric < 0.5 * len(cells):
            words[column] = size[column] * distinct[column]
        if sum(map(bool, cells)) > 0.9 * len(cells):
            labels.append(column)
    texts = sorted(words, key=words.get, reverse=True)
    if "text" not in known and texts:
        roles["text"] = texts[0]
    labels = [column for column in labels if column != roles.get("text")]
    labels = [column for column in labels if distinct[column] > 1] or labels
    if "label" not in known and labels:
        roles["label"] = min(
            labels, key=lambda column: (distinct[column], size[column])
        )
    others = [column for column in texts if column not in roles.values()]
    if "text" not in known and others:
        other, rows = others[0], len(sample)
        if distinct[other] > 0.3 * rows and size[other] >= 5 * rows:
            roles["text"], roles["text_pair"] = sorted((roles["text"], other))
    return roles


def _prefixed(file: RawFile):
    """`LABEL text`, `COARSE:fine text` (TREC), `__label__a text` (fastText)."""
    rows = [(n, *line.strip().partition(" ")[::2]) for n, line in file.numbered()]
    firsts = [first for _, first, _ in rows]
    shape = re.compile(r"[A-Z]+(:\w+)?|\d{1,3}|__label__.+")
    shaped = sum(bool(shape.fullmatch(first)) for first in firsts)
    if not file.labels or shaped < 0.95 * len(rows):
        return None
    if len(set(firsts)) > max(2, len(rows) / 2):
        return None
    file.found |= {"text": "rest of the line", "label": "first word"}
    rows = [
        (n, text, None, first.removeprefix("__label__").split(":")[0])
        for n, first, text in rows
    ]
    return rows, "LABEL text"


def _lines(file: RawFile):
    """Texts alone, one a line."""
    if file.labels:
        return None
    return ((n, line, None, None) for n, line in file.numbered()), "lines"


_FORMATS = (_json, _parallel, _table, _prefixed, _lines)
