"""Pairs of source and target: parallel files, TSV, CSV, JSON; and their batches.

A row has `text`, the source, and `target`. Two files of plain lines are a source and
its translation; all other files hold both sides.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.config import flag
from tfllm.core.errors import UserError, did_you_mean
from tfllm.core.files import sha256
from tfllm.data.batching import Micro
from tfllm.data.columns import Columns, Ragged
from tfllm.data.decode import decode
from tfllm.data.readers import (
    RawFile,
    Records,
    check_bad_rows,
    expand,
    json_items,
    read,
)
from tfllm.data.splits import SplitFlags, load_splits
from tfllm.text import Tokenizer

NAMES = {  # of columns, the surest first
    "text": "source src text input article document content body long_description "
    "description question original en english",
    "target": "target tgt translation summary abstract highlights headline title "
    "short_description answer output reference response de german zh chinese fr",
}
TO_LEARN = "Name the columns: --text_column, --target_column"


@dataclass
class ParallelFlags(SplitFlags):
    """Where pairs come from."""

    text_column: str | None = flag(
        None, "of sources, a name or number; detected when absent"
    )
    target_column: str | None = flag(None, "of targets; detected when absent")
    reverse: bool = flag(False, "learn the way back, from target to source")


def load_parallel(flags: ParallelFlags, sample: str) -> dict[str, Records]:
    """The splits of a run; see `splits.load_splits`.

    Args:
        flags: Files, columns, limits.
        sample: Name of the sample data that stand in when no file is given.
    """
    reader = partial(read_parallel, target_column=flags.target_column)
    splits = load_splits(flags, sample, flags.seed, reader=reader)
    if not flags.reverse:
        return splits
    return {name: turned(records) for name, records in splits.items()}


def turned(records: Records) -> Records:
    """The same pairs the other way round."""
    rows = [r | {"text": r["target"], "target": r["text"]} for r in records.rows]
    return replace(records, rows=rows)


def read_parallel(
    paths,
    *,
    text_column: str | None = None,
    target_column: str | None = None,
    split: str | None = None,
    parse=None,
) -> Records:
    """Reads pairs; see `readers.read`.

    Args:
        paths: `a.en a.de`, a source and its translation, a line a text; files that
            hold both sides; or some of each (what a model translated back, say).
        text_column, target_column: Names or numbers from 1; detected when absent.
        split: See `readers.read`.
        parse: Not used.

    Raises:
        UserError: As there; two files have different numbers of lines.
    """
    columns = {"text": text_column, "target": target_column}
    found = [f"{path}#{part}" if part else path for path, part in expand(paths)]
    parts = []
    while found:
        path = found.pop(0)
        if found and not _holds_both(decode(expand(path)[0][0])[0]):
            parts.append(_two_files(Path(path), Path(found.pop(0))))
        else:
            parse = partial(_parse, columns=columns)
            parts.append(read(path, parse=parse, split=split))
    whole, *rest = parts
    for part in rest:
        for name in ("rows", "bad", "files"):
            getattr(whole, name).extend(getattr(part, name))
        forms = dict.fromkeys([*whole.format.split(" + "), part.format])
        whole.format = " + ".join(forms)
    return whole


def _two_files(*paths: Path) -> Records:
    """A source and its translation."""
    whole, sides = Records([], "parallel files"), []
    whole.columns = {"text": paths[0].name, "target": paths[1].name}
    for path in paths:
        text, whole.encoding, raw = decode(path)
        sides.append(text.rstrip("\n").split("\n") if text.strip() else [])
        record = {"path": str(path), "sha256": sha256(raw), "rows": len(sides[-1])}
        whole.files.append(record)
    if len(sides[0]) != len(sides[1]):
        counts = f"{len(sides[0]):,} lines, {paths[1].name} {len(sides[1]):,}"
        what = f"{paths[0].name} has {counts}"
        raise UserError(what, paths[0], "A line of one is that line of the other")
    for line, texts in enumerate(zip(*sides, strict=True), 1):
        _add(whole.rows, whole.bad, str(paths[0]), line, *texts)
    check_bad_rows(whole)
    return whole


def _holds_both(text: str) -> bool:
    """Whether a file has both sides in each line."""
    lines = [line for line in text[:200_000].split("\n") if line.strip()][:1000]
    if text.lstrip()[:1] in ("{", "[") and re.match(r'\s*[\[{]\s*["\[{]', text):
        return True
    names = _named([cell.strip('" ') for cell in re.split("[,;\t]", lines[0])])
    return len(names) == 2 or sum("\t" in line for line in lines) > 0.5 * len(lines)


def _named(cells: Sequence[Any]) -> dict[str, int]:
    plain, roles = [str(c).strip().lower().replace(" ", "_") for c in cells], {}
    for role, known in NAMES.items():
        found = [plain.index(name) for name in known.split() if name in plain]
        found = [column for column in found if column not in roles.values()]
        roles |= {role: found[0]} if found else {}
    return roles


def _parse(file: RawFile, columns: Mapping[str, str | None]) -> tuple[list[dict], str]:
    """Rows of a file that holds both sides."""
    found = json_items(file)
    if found is not None:
        items, form = found
        items = [(n, _inner(item)) for n, item in items]
        names = list(dict.fromkeys(k for _, item in items[:1000] for k in item or ()))
        cells = [(n, [item.get(k) for k in names] if item else []) for n, item in items]
    else:
        tabbed = sum("\t" in line for line in file.lines) > 0.5 * len(file.lines)
        cells = [
            (n, line.split("\t") if tabbed else next(csv.reader([line])))
            for n, line in file.numbered()
        ]
        form, names = "TSV" if tabbed else "CSV", [x.strip() for x in cells[0][1]]
        asked = {name for name in columns.values() if name}
        if len(_named(names)) == 2 or asked & {*names}:
            cells = cells[1:]
        else:
            names = [str(i + 1) for i in range(len(names))]
        if len(names) < 2:
            fix = "Give a source and a target: two files, or source<TAB>target"
            raise file.error("there is one text a line", fix)
    roles = _roles(file, names, columns)
    file.found |= {role: names[column] for role, column in roles.items()}
    rows, bad = [], []
    for number, row in cells:
        if len(row) != len(names):
            bad.append((number, f"{len(row)} fields instead of {len(names)}"))
            continue
        _add(rows, bad, str(file.path), number, *(row[c] for c in roles.values()))
    file.bad += [entry[-2:] for entry in bad]
    return rows, f"{form}, pairs"


def _inner(item: Any) -> dict | None:
    """A JSON object; of `{"translation": {"en": …, "de": …}}` what is inside."""
    item = item if isinstance(item, dict) else None
    inner = (item or {}).get("translation")
    return inner if isinstance(inner, dict) else item


def _roles(file: RawFile, names: list, columns: Mapping) -> dict[str, int]:
    roles = {}
    for role, name in columns.items():
        if name in names:
            roles[role] = names.index(name)
        elif name is not None and name.isdigit() and 1 <= int(name) <= len(names):
            roles[role] = int(name) - 1
        elif name is not None:
            fix = did_you_mean(name, names) or f"It has {', '.join(names)}."
            raise file.error(f"there is no column '{name}'", fix)
    named = {k: v for k, v in _named(names).items() if v not in roles.values()}
    roles = named | roles
    if len(roles) < 2 and len(names) == 2:  # what is left
        rest = [column for column in (0, 1) if column not in roles.values()]
        roles |= {r: rest.pop(0) for r in ("text", "target") if r not in roles}
    if len(roles) < 2 and not any(map(str.isdigit, names)):
        raise file.error(f"no source and target among {', '.join(names)}", TO_LEARN)
    return {role: roles.get(role, place) for place, role in enumerate(NAMES)}


def _add(rows: list, bad: list, path: str, line: int, text: Any, target: Any) -> None:
    for name, side in (("source", text), ("target", target)):
        if not isinstance(side, str) or not side.strip():
            bad.append((path, line, f"the {name} is empty"))
            return
    row = {"text": text.strip(), "target": target.strip()}
    rows.append(row | {"file": path, "line": line})


# -- pairs to ids ------------------------------------------------------------------


def start_token(tokenizer: Tokenizer) -> int:
    """What stands before an answer: the token that begins texts, else padding (T5)"""
    found = (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id)
    return next((token for token in found if token is not None), 0)


def ended(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, an end token behind each.

    Raises:
        UserError: The tokenizer has no end token.
    """
    if tokenizer.eos_id is None:
        raise UserError("the tokenizer has no token that ends a text")
    return [[*row, tokenizer.eos_id] for row in tokenizer.encode(texts)]


def cut(rows: Sequence[list[int]], most: int) -> list[list[int]]:
    """The same rows, at most so long; the end token stays."""
    return [r if len(r) <= most else r[: most - 1] + r[-1:] for r in rows]


class ParallelColumns:
    """Encoded pairs, batched by the lengths of both sides; see `Columns`.

    A bucket of `length` has sources up to `length * a` and targets up to `length * b`,
    the larger of `a` and `b` being 1; their ratio is chosen so that least is padded.

    Args:
        rows: `text` and `target` each.
        sources: Ids of each source.
        targets: Ids of each target, its end included.
        start: The token before a target.
        most: The longest source and target, in tokens.
        early: Ids of other targets of the same rows, as examples that follow.
    """

    def __init__(self, rows, sources, targets, start: int, most, early=()):
        self.rows, self.most, self.max_length = rows, most, max(most)
        targets = [*targets, *early]
        self.sides = (
            Columns({"source_ids": Ragged.from_lists(sources)}),
            Columns(
                {
                    "token_ids": Ragged.from_lists([start, *t[:-1]] for t in targets),
                    "targets": Ragged.from_lists(targets),
                }
            ),
        )
        longest = self.sides[1].lengths.reshape(-1, len(rows)).max(0)
        sizes = np.stack([self.sides[0].lengths, longest])
        ratios = np.quantile(sizes[0] / sizes[1], [0.02, 0.1, 0.25, 0.5, 0.75, 0.9])
        ratios = [*ratios, most[0] / most[1], 1.0]
        best = min(ratios, key=lambda ratio: self._keys(sizes, ratio)[1])
        self.lengths = self._keys(sizes, best)[0]
        self.shares = min(1.0, best), min(1.0, 1 / best)

    def __len__(self) -> int:
        return len(self.rows)

    def _keys(self, sizes, ratio: float) -> tuple[np.ndarray, int]:
        """The bucket of each row, and the places that all take together."""
        shares = min(1.0, ratio), min(1.0, 1 / ratio)
        keys = [np.ceil(n / s - 1e-6) for n, s in zip(sizes, shares, strict=True)]
        lengths = np.minimum(np.maximum(*keys), self.max_length).astype(np.int64)
        used = np.unique(-(-lengths // 8) * 8, return_counts=True)
        widths = ([self._width(n, side, shares) for side in (0, 1)] for n in used[0])
        places = sum(sum(w) * n for w, n in zip(widths, used[1], strict=True))
        return lengths, int(places)

    def _width(self, length: int, side: int, shares) -> int:
        """Places of a source (0) or target (1) in a bucket."""
        most = self.most[side]
        if length >= self.max_length:
            return most
        return min(most, -(-int(np.ceil(length * shares[side] - 1e-6)) // 8) * 8)

    def gather(
        self, micro: Micro, pad_values: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """One micro-batch.

        Returns:
            int32 `source_ids` and `source_mask` `[rows, source length]`; int32
            `token_ids`, `padding_mask`, `targets` and float32 `target_weights` `[rows,
            length]`; `weight` float32 `[rows]`.
        """
        places = micro.indices % len(self), micro.indices
        source, batch = (
            side.gather(
                micro._replace(
                    indices=places[i],
                    length=self._width(micro.length, i, self.shares),
                ),
                pad_values,
            )
            for i, side in enumerate(self.sides)
        )
        batch["source_ids"] = source["source_ids"]
        batch["source_mask"] = source["padding_mask"]
        batch["target_weights"] = batch["padding_mask"].astype(np.float32)
        return batch
