"""The doctor looks over labelled data before anything is trained on them.

It counts, warns and shows examples; it changes nothing and stops only where training
would make no sense at all.
"""

import difflib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from tfllm.core import console
from tfllm.core.errors import UserError
from tfllm.core.files import atomic_write
from tfllm.data.near import near_duplicates
from tfllm.data.readers import Records, check_bad_rows

_GARBLED = re.compile(
    "\ufffd|[\ue000-\uf8ff]|锟斤拷|烫烫烫|[\x00-\x08\x0e-\x1f]"
    "|[ÃÂ][\x80-\xbf]|â€|[äåæçèé][\x80-\xbf\u0152-\u2122]{2}"
)
_SCRIPTS = [  # first code point, last, name
    (0x41, 0x24F, "Latin"),
    (0x370, 0x3FF, "Greek"),
    (0x400, 0x52F, "Cyrillic"),
    (0x590, 0x5FF, "Hebrew"),
    (0x600, 0x6FF, "Arabic"),
    (0x900, 0x97F, "Devanagari"),
    (0xE00, 0xE7F, "Thai"),
    (0x3040, 0x30FF, "kana"),
    (0x3400, 0x9FFF, "Chinese"),
    (0xAC00, 0xD7A3, "Hangul"),
]
MOST_TEXTS = 500_000  # among which near-duplicates are looked for
_GRAVEST_FIRST = [
    *("leakage", "contradictions", "unseen_label", "label_typo", "bad_rows", "garbled"),
    *("truncation", "duplicates", "imbalance", "near_leakage", "near_duplicates"),
    "other_script",
]


@dataclass
class Report:
    """What the doctor found.

    Attributes:
        splits: name → facts of the split: `rows`, `bad_rows`, `labels` (counts),
            `duplicates`, `contradictions`, `leaked`, `near_duplicates`, `near_leaked`,
            `garbled`, `length` (unit, percentiles, histogram, truncation), `files`, …
        findings: dicts of `kind`, `split`, `count`, `text` and up to three `examples`.
        leaks: split → indices of its rows that stand in the training split.
    """

    splits: dict[str, dict]
    findings: list[dict] = field(default_factory=list)
    leaks: dict[str, set[int]] = field(default_factory=dict)
    max_length: int | None = None

    @property
    def leaked(self) -> set[int]:
        """Indices of the test rows that stand in the training split."""
        return self.leaks.get("test", set())

    @property
    def warnings(self) -> list[str]:
        """One line a finding, with examples."""
        lines = []
        for finding in self.findings:
            examples = "; ".join(finding["examples"])
            lines.append(finding["text"] + (f" ({examples})" if examples else ""))
        return lines

    def to_dict(self) -> dict:
        """As JSON, for `data_report.json`."""
        leaked = {name: sorted(indices) for name, indices in self.leaks.items()}
        return {
            "splits": self.splits,
            "findings": self.findings,
            "leaked_rows": leaked,
            "max_length": self.max_length,
        }

    def print(self) -> None:
        """A table and the warnings, on the console."""
        names = list(self.splits)
        rows = []
        for key, label in (
            ("rows", "rows"),
            ("bad_rows", "bad rows left out"),
            ("duplicates", "duplicate rows"),
            ("contradictions", "rows whose text has several labels"),
            ("leaked", "rows that stand in train"),
            ("near_duplicates", "near-duplicate rows"),
            ("near_leaked", "rows nearly in train"),
            ("garbled", "garbled rows"),
        ):
            rows.append([label, *(self.splits[name].get(key, "") for name in names)])
        labels = [self.splits[name]["labels"] for name in names]
        if any(labels):
            rows.append(["labels", *(len(counts) or "" for counts in labels)])
            shares = [max(c.values()) / sum(c.values()) if c else 0 for c in labels]
            rows.append(["largest label", *(f"{share:.1%}" for share in shares)])
        lengths = [self.splits[name]["length"] for name in names]
        for percentile in ("50", "95", "100"):
            title = f"{lengths[0]['unit']} a row, {percentile}th percentile"
            rows.append([title, *(length[percentile] for length in lengths)])
        if self.max_length:
            cut = [f"{length['truncated_share']:.2%}" for length in lengths]
            rows.append([f"{lengths[0]['unit']} cut off at {self.max_length}", *cut])
        console.table("Data", ["", *names], rows)
        for line in self.warnings:
            console.warn(line)

    def save(self, directory: str | Path) -> None:
        """Writes `data_report.json` and `data_report.png` into a folder."""
        report = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, default=str)
        atomic_write(Path(directory) / "data_report.json", report)
        self.plot(Path(directory) / "data_report.png")

    def plot(self, path: str | Path) -> None:
        """Draws label balance and lengths into an image file."""
        from matplotlib.figure import Figure

        from tfllm.evaluation.figures import drawable

        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        total = Counter()
        for facts in self.splits.values():
            total.update(facts["labels"])
        shown = [label for label, _ in total.most_common(20)]
        names, font = drawable(shown)
        width = 0.8 / len(self.splits)
        for number, (split, facts) in enumerate(self.splits.items()):
            rows = max(sum(facts["labels"].values()), 1)
            shares = [facts["labels"].get(label, 0) / rows for label in shown]
            places = np.arange(len(shown)) + number * width
            left.barh(places, shares, width, label=split)
            length = facts["length"]
            right.stairs(
                np.array(length["counts"]) / facts["rows"], length["edges"], label=split
            )
        places = np.arange(len(shown)) + 0.4 - width / 2
        left.set_yticks(places, names, fontfamily=font)
        left.invert_yaxis()
        more = f", the {len(shown)} largest of {len(total)}" if len(total) > 20 else ""
        left.set_title(f"Share of labels{more}", loc="left")
        if not font:
            left.set_ylabel("number of the label, by frequency (no font has its name)")
        right.set_title("Length of texts", loc="left")
        right.set_xlabel(next(iter(self.splits.values()))["length"]["unit"])
        right.set_ylabel("share of rows")
        if self.max_length and self.max_length < right.get_xlim()[1]:
            right.axvline(self.max_length, color="black", linestyle=":", lw=1)
            right.text(self.max_length, right.get_ylim()[1], " max_length", va="top")
        right.legend(frameon=False, loc="center right")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=120)


def examine(
    splits: Mapping[str, Records | list[dict]],
    *,
    lengths: Mapping[str, np.ndarray] | None = None,
    max_length: int | None = None,
) -> Report:
    """Looks over the splits; the first one is what is trained on.

    Args:
        splits: name (`train`, `validation`, `test`) → records.
        lengths: name → tokens of each row, int [n]; characters count when absent.
        max_length: Where training will cut texts.

    Raises:
        UserError: A split is empty, a training set has one single class or a label of
            its own for most rows, or there are more than a few bad rows.
    """
    splits = {k: v if isinstance(v, Records) else Records(v) for k, v in splits.items()}
    train = next(iter(splits))
    for name, records in splits.items():
        where = ", ".join(file["path"] for file in records.files) or None
        check_bad_rows(records)
        if not records.rows:
            raise UserError(f"the {name} split is empty", where)
        if name == train:
            _check_labels(records, name, where)
    report = Report({name: {} for name in splits}, max_length=max_length)
    keys = {name: [text_key(row) for row in r.rows] for name, r in splits.items()}
    for name, records in splits.items():
        _describe(report, name, records, None if lengths is None else lengths[name])
        _duplicates(report, name, records, keys[name])
        _garbled(report, name, records)
        if name != train:
            _leaks(report, train, name, records, keys)
    _near(report, splits, keys)
    _labels(report, splits, train)
    _other_script(report, splits)
    report.findings.sort(key=lambda finding: _GRAVEST_FIRST.index(finding["kind"]))
    return report


def text_key(row: dict) -> str:
    """A text as it is compared: case, width and amount of white space do not count."""
    text = row["text"]
    if row.get("text_pair"):
        text += "\0" + row["text_pair"]
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def drop_duplicates(records: Records) -> Records:
    """Leaves the first of each text with its label; of texts with two labels, none."""
    labels = defaultdict(set)
    keys = [text_key(row) for row in records.rows]
    for key, row in zip(keys, records.rows, strict=True):
        labels[key].add(_label_key(row))
    seen: set[str] = set()
    rows = []
    for key, row in zip(keys, records.rows, strict=True):
        if key not in seen and len(labels[key]) == 1:
            rows.append(row)
        seen.add(key)
    return replace(records, rows=rows)


def drop_leaked(train: Records, others: Iterable[Records]) -> Records:
    """Leaves the training rows whose text stands in none of the other splits."""
    texts = {text_key(row) for other in others for row in other.rows}
    return replace(train, rows=[r for r in train.rows if text_key(r) not in texts])


def _label_key(row: dict) -> tuple:
    return tuple(_labels_of(row))


def _labels_of(row: dict) -> Sequence:
    label = row.get("label")
    return label if isinstance(label, list) else () if label is None else (label,)


def _check_labels(records: Records, name: str, where: str | None) -> None:
    counts = Counter(chain.from_iterable(map(_labels_of, records.rows)))
    if not counts:
        return
    if len(counts) == 1:
        what = f"all rows of the {name} split have the label '{next(iter(counts))}'"
        raise UserError(what, where, "Training needs two classes or more.")
    numbers = all(isinstance(label, float) for label in counts)
    if not numbers and len(counts) > 0.5 * len(records.rows) > 10:
        what = f"{len(counts):,} different labels in {len(records.rows):,} rows"
        column = records.columns.get("label", "the label column")
        raise UserError(what, where, f"Is '{column}' right? Else give --label_column.")


def _add(report, kind, split, count, text, examples=()) -> None:
    finding = {"kind": kind, "split": split, "count": int(count), "text": text}
    report.findings.append(finding | {"examples": list(examples)[:3]})


def _place(row: dict, text: bool = True) -> str:
    """`file:line 'the text'`, short."""
    short = row["text"] if len(row["text"]) <= 30 else row["text"][:29] + "…"
    place = f"{Path(row['file']).name}:{row.get('line')}" if row.get("file") else ""
    return " ".join(filter(None, [place, f"'{short}'" if text else ""]))


def _describe(report, name, records, lengths) -> None:
    facts = report.splits[name]
    labels = Counter(chain.from_iterable(map(_labels_of, records.rows)))
    classes = {} if any(isinstance(x, float) for x in labels) else labels
    facts["rows"], facts["bad_rows"] = len(records.rows), len(records.bad)
    facts |= {"format": records.format, "encoding": records.encoding}
    facts |= {"columns": records.columns, "files": records.files}
    facts["labels"] = dict(Counter(classes).most_common())
    unit = "characters" if lengths is None else "tokens"
    if lengths is None:
        lengths = [len(r["text"]) + len(r.get("text_pair", "")) for r in records.rows]
    lengths = np.asarray(lengths, np.int64)
    places = (0, 5, 25, 50, 75, 95, 99, 100)
    marks = np.percentile(lengths, places, method="nearest")
    first = next(iter(report.splits.values())).get("length")
    if first:  # the same bins for all, so that they can be compared
        edges = np.array(first["edges"])
    else:
        top = int(np.percentile(lengths, 99.5)) + 1
        edges = np.arange(0, top + 1, -(-top // 50))  # whole numbers, at most 51 bins
        edges = np.append(edges, edges[-1] + -(-top // 50))
    # A long tail would flatten everything else: the last bin holds it.
    counts, _ = np.histogram(np.minimum(lengths, edges[-1]), edges)
    facts["length"] = {"unit": unit, "mean": round(float(lengths.mean()), 2)}
    facts["length"] |= {str(p): int(m) for p, m in zip(places, marks, strict=True)}
    facts["length"] |= {"edges": edges.tolist(), "counts": counts.tolist()}
    if report.max_length:
        lost = np.maximum(lengths - report.max_length, 0)
        share = float(lost.sum() / max(lengths.sum(), 1))
        rows = int((lost > 0).sum())
        facts["length"] |= {"truncated_share": share, "truncated_rows": rows}
        if share > 0.05 and name == next(iter(report.splits)):
            text = f"{name}: {share:.1%} of all {unit} are cut off, in {rows:,} rows; "
            text += f"99 % of the rows would fit into --max_length {marks[6]}"
            longest = records.rows[int(lengths.argmax())]
            _add(report, "truncation", name, rows, text, [_place(longest)])
    if records.bad:
        examples = [f"{Path(f).name}:{line}: {why}" for f, line, why in records.bad]
        text = f"{name}: {_rows(records.bad, 'bad row')} left out"
        _add(report, "bad_rows", name, len(records.bad), text, examples)


def _duplicates(report, name, records, keys) -> None:
    groups = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    extra, torn = [], []
    for indices in groups.values():
        if len(indices) > 1:
            labels = {_label_key(records.rows[i]) for i in indices}
            if len(labels) > 1:
                torn.append(indices)
            extra += indices[1:]
    facts = report.splits[name]
    facts["duplicates"], facts["contradictions"] = len(extra), sum(map(len, torn))
    if extra:
        share = len(extra) / len(keys)
        text = f"{name}: {_rows(extra)} ({share:.1%}) with the text of an earlier row"
        examples = [_place(records.rows[i]) for i in extra[:3]]
        _add(report, "duplicates", name, len(extra), text, examples)
    if torn:
        text = f"{name}: {_rows(torn, 'text')} with several labels"
        pairs = [[records.rows[i] for i in indices[:2]] for indices in torn[:3]]
        examples = [f"{_place(b, False)} and {_place(a)}" for a, b in pairs]
        _add(report, "contradictions", name, len(torn), text, examples)


def _rows(found, noun: str = "row") -> str:
    return f"{len(found):,} {noun}{'' if len(found) == 1 else 's'}"


def _leaks(report, train, name, records, keys) -> None:
    known = set(keys[train])
    leaked = [i for i, key in enumerate(keys[name]) if key in known]
    report.leaks[name] = set(leaked)
    report.splits[name]["leaked"] = len(leaked)
    if leaked:
        share = len(leaked) / len(keys[name])
        text = f"{name}: {_rows(leaked)} ({share:.1%}) with a text of {train}"
        examples = [_place(records.rows[i]) for i in leaked[:3]]
        _add(report, "leakage", name, len(leaked), text, examples)


def _near(report, splits, keys) -> None:
    """Near-duplicates over all splits at once, the training split's texts first."""
    first: dict[str, tuple[str, int]] = {}
    for name, texts in keys.items():
        for index, key in enumerate(texts):
            first.setdefault(key, (name, index))
    train, places = next(iter(splits)), list(first.values())
    if len(first) > MOST_TEXTS:
        text = f"near-duplicates were not looked for among {len(first):,} texts"
        _add(report, "near_duplicates", train, 0, text)
        return
    inside, across = defaultdict(dict), defaultdict(dict)
    for one, other in near_duplicates(list(first)).tolist():
        (a, i), (b, j) = places[one], places[other]
        if a == b:
            inside[a].setdefault(j, i)
        elif a == train:
            across[b].setdefault(j, i)
    for name, records in splits.items():
        facts = report.splits[name]
        facts["near_duplicates"] = len(inside[name])
        if name != train:
            facts["near_leaked"] = len(across[name])
        for found, kind, other, words in (
            (inside[name], "near_duplicates", name, "nearly like an earlier one"),
            (across[name], "near_leakage", train, f"nearly like one of {train}"),
        ):
            if found:
                text = f"{name}: {_rows(found)} {words}"
                rows = splits[other].rows
                examples = [
                    f"{_place(records.rows[j])} ~ {_place(rows[i], False)}"
                    for j, i in list(found.items())[:3]
                ]
                _add(report, kind, name, len(found), text, examples)


def _labels(report, splits, train) -> None:
    counts = report.splits[train]["labels"]
    if not counts:
        return
    largest, smallest = max(counts, key=counts.get), min(counts, key=counts.get)
    if counts[largest] > 10 * counts[smallest]:
        text = f"{train}: label '{largest}' has {counts[largest]:,} rows, '{smallest}' "
        text += f"has {counts[smallest]:,}; look at f1_macro beside accuracy"
        _add(report, "imbalance", train, counts[largest], text)
    everywhere = Counter()
    for facts in report.splits.values():
        everywhere.update(facts["labels"])
    for wrong, right in _typos(everywhere):
        rows = [r for s in splits.values() for r in s.rows if wrong in _labels_of(r)]
        text = f"label '{wrong}' ({_rows(rows)}) looks like a typo of '{right}'"
        _add(report, "label_typo", train, len(rows), text, map(_place, rows[:3]))
    for name, records in splits.items():
        rows = [r for r in records.rows if not set(_labels_of(r)) <= counts.keys()]
        if rows:
            new = sorted({x for r in rows for x in _labels_of(r)} - counts.keys())
            listed = ", ".join(f"'{x}'" for x in new[:5]) + (" …" if new[5:] else "")
            text = f"{name}: {_rows(rows)} with a label unseen in {train}: {listed}"
            _add(report, "unseen_label", name, len(rows), text, map(_place, rows[:3]))


def _typos(counts: Counter) -> list[tuple[str, str]]:
    """(wrong, right): alike but for case and spaces; or rare, a letter or two off."""
    found, plain = {}, {}
    for label, _ in counts.most_common():
        key = re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label).casefold())
        if plain.setdefault(key, label) != label:
            found[label] = plain[key]
    for label, count in counts.items():
        if len(label) < 4 or label in found or any(c.isdigit() for c in label):
            continue
        common = [other for other, n in counts.items() if n >= 10 * count]
        for near in difflib.get_close_matches(label, common, n=1, cutoff=0.8):
            steps = difflib.SequenceMatcher(None, label, near).get_opcodes()
            edits = sum(max(s[2] - s[1], s[4] - s[3]) for s in steps if s[0] != "equal")
            if edits <= (1 if len(label) < 8 else 2):
                found[label] = near
    return list(found.items())


def _garbled(report, name, records) -> None:
    rows = [row for row in records.rows if _GARBLED.search(row["text"])]
    report.splits[name]["garbled"] = len(rows)
    if rows:
        text = f"{name}: {_rows(rows)} with garbled text (a wrong encoding on the way?)"
        _add(report, "garbled", name, len(rows), text, map(_place, rows[:3]))


def _other_script(report, splits) -> None:
    """Warns of rows without one letter of the script in which nearly all rows are."""
    starts = np.array([first for first, _, _ in _SCRIPTS])
    ends = np.array([last for _, last, _ in _SCRIPTS])
    main = None
    for name, records in splits.items():
        texts = [row["text"][:500] for row in records.rows]
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "replace"), np.uint32)
        owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        script = np.searchsorted(starts, codes, side="right") - 1
        # 0x5B-0x60, 0x7B-0xBF: signs among the Latin letters.
        signs = (codes < 0xC0) & ((codes | 32) - 97 > 25)
        letter = (script >= 0) & (codes <= ends[script]) & ~signs
        size = (len(texts), len(_SCRIPTS))
        flat = owner[letter] * len(_SCRIPTS) + script[letter]
        table = np.bincount(flat, minlength=size[0] * size[1]).reshape(size)
        if main is None:  # decided on the training split
            main = int((table > 0).sum(0).argmax())
            if (table[:, main] > 0).mean() < 0.95:
                return
        others = np.flatnonzero((table[:, main] == 0) & (table.sum(1) >= 10))
        if len(others):
            text = f"{name}: {_rows(others)} without one {_SCRIPTS[main][2]} letter"
            examples = [_place(records.rows[i]) for i in others[:3]]
            _add(report, "other_script", name, len(others), text, examples)
