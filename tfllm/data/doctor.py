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
from tfllm.text.flags import LETTER, language_of

_GARBLED = re.compile(
    "\ufffd|[\ue000-\uf8ff]|锟斤拷|烫烫烫|[\x00-\x08\x0e-\x1f]"
    "|[ÃÂ][\x80-\xbf]|â€|[äåæçèé][\x80-\xbf\u0152-\u2122]{2}"
)
MOST_TEXTS = 500_000  # among which near-duplicates are looked for
_TITLES = {  # of findings that are sets of rows, the gravest first
    "leakage": "rows that stand in train",
    "contradictions": "rows whose text has several labels",
    "unseen_label": "rows with a label unseen in train",
    "wrong_language": "rows in another script",
    "copies": "targets that are their source",
    "length_ratio": "rows with a side too long",
    "bad_rows": "bad rows left out",
    "garbled": "garbled rows",
    "duplicates": "duplicate rows",
    "near_leakage": "rows nearly in train",
    "near_duplicates": "near-duplicate rows",
}
_LABEL_FACTS = {  # of several labels a text, and of numbers
    "labels_a_row": "labels a row",
    "rows_without": "rows without a label",
    "label_mean": "label, mean",
    "label_deviation": "label, standard deviation",
    "label_range": "label, range",
}
_OTHERS = ("label_typo", "truncation", "imbalance")


@dataclass
class Report:
    """What the doctor found.

    Attributes:
        splits: name → facts of the split: `rows`, `labels` (counts), `length` (unit,
            percentiles, histogram, truncation), `files`, …, and the number of rows of
            each kind of finding.
        findings: dicts of `kind`, `split`, `count`, `text` and up to three `examples`,
            the gravest first.
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

    def add(self, kind: str, split: str, rows: Sequence, words: str, examples=None):
        """Counts rows of a split that have something, and warns if there are any.

        The examples are places of the rows where none are given.
        """
        self.splits[split][kind] = len(rows)
        if rows:
            examples = [_place(r) for r in rows[:3]] if examples is None else examples
            noun = "row" if len(rows) == 1 else "rows"
            text = f"{split}: {len(rows):,} {noun} {words}"
            self.warn(kind, split, len(rows), text, examples)

    def warn(self, kind: str, split: str, count: int, text: str, examples=()) -> None:
        """Adds a finding."""
        finding = {"kind": kind, "split": split, "count": int(count), "text": text}
        self.findings.append(finding | {"examples": list(examples)[:3]})

    def print(self) -> None:
        """A table and the warnings, on the console."""
        facts = list(self.splits.values())
        rows = [
            [title, *(one.get(key, "") for one in facts)]
            for key, title in {"rows": "rows", **_TITLES}.items()
        ]
        labels, lengths = ([one[key] for one in facts] for key in ("labels", "length"))
        if any(labels):
            rows.append(["labels", *(len(counts) or "" for counts in labels)])
            shares = [max(f["labels"].values(), default=0) / f["rows"] for f in facts]
            if max(shares) <= 1:  # spans are counted, not rows
                rows.append(["largest label", *(f"{share:.1%}" for share in shares)])
        for key, title in _LABEL_FACTS.items():
            if any(key in one for one in facts):
                rows.append([title, *(one.get(key, "") for one in facts)])
        for percentile in ("50", "95", "100"):
            title = f"{lengths[0]['unit']} a row, {percentile}th percentile"
            rows.append([title, *(length[percentile] for length in lengths)])
        if self.max_length:
            cut = [f"{length['truncated_share']:.2%}" for length in lengths]
            rows.append([f"{lengths[0]['unit']} cut off at {self.max_length}", *cut])
        console.table("Data", ["", *self.splits], rows)
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
        places = np.arange(len(shown)) + width / 2
        for number, (split, facts) in enumerate(self.splits.items()):
            rows, length = facts["rows"], facts["length"]
            shares = [facts["labels"].get(label, 0) / rows for label in shown]
            left.barh(places + number * width, shares, width, label=split)
            counts = np.array(length["counts"]) / rows
            right.stairs(counts, length["edges"], label=split)
            if histogram := facts.get("label_histogram"):
                shares = np.array(histogram["counts"]) / rows
                left.stairs(shares, histogram["edges"], label=split)
        if shown:
            left.set_yticks(np.arange(len(shown)) + 0.4, names, fontfamily=font)
            left.invert_yaxis()
        title = f"Share of labels ({len(shown)} of {len(total)})"
        left.set_title(title if shown else "Labels", loc="left")
        if not font:
            left.set_ylabel("number of the label, by frequency (no font has its name)")
        right.set_title("Length of texts", loc="left")
        right.set(xlabel=length["unit"], ylabel="share of rows")
        if self.max_length:
            right.axvline(self.max_length, color="black", linestyle=":", label="cut")
        right.legend()
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
        where = records.where
        check_bad_rows(records)
        if not records.rows:
            raise UserError(f"the {name} split is empty", where)
        if name == train:
            _check_labels(records, name, where)
    report = Report({name: {} for name in splits}, max_length=max_length)
    keys = {name: [text_key(row) for row in r.rows] for name, r in splits.items()}
    groups = {name: [group_key(row) for row in r.rows] for name, r in splits.items()}
    thing = "context" if "context" in splits[train].rows[0] else "text"
    for name, records in splits.items():
        _describe(report, name, records, None if lengths is None else lengths[name])
        _duplicates(report, name, records, keys[name])
        garbled = [row for row in records.rows if _GARBLED.search(row["text"])]
        words = "with garbled text (a wrong encoding on the way?)"
        report.add("garbled", name, garbled, words)
        if "target" in records.rows[0]:
            _pairs(report, name, records.rows)
        if name != train:
            known = set(groups[train])
            report.leaks[name] = {i for i, k in enumerate(groups[name]) if k in known}
            leaked = [records.rows[i] for i in sorted(report.leaks[name])]
            share = f"({len(leaked) / len(records):.1%}) with a {thing} of {train}"
            report.add("leakage", name, leaked, share)
    _near(report, splits, groups)
    _labels(report, splits, train)
    gravest = [*_TITLES, *_OTHERS]
    report.findings.sort(key=lambda finding: gravest.index(finding["kind"]))
    return report


def text_key(row: dict) -> str:
    """A text as it is compared: case, width and amount of white space do not count."""
    text = row["text"]
    if pair := row.get("text_pair") or row.get("context"):
        text += "\0" + pair
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def group_key(row: dict) -> str:
    """What must not stand in two splits: a question's context, else the text."""
    return text_key({"text": row["context"]} if "context" in row else row)


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
    texts = {group_key(row) for other in others for row in other.rows}
    return replace(train, rows=[r for r in train.rows if group_key(r) not in texts])


def _label_key(row: dict) -> tuple:
    return tuple(_labels_of(row))


def _labels_of(row: dict) -> Sequence:
    label = row.get("label")
    return label if isinstance(label, list) else () if label is None else (label,)


def _check_labels(records: Records, name: str, where: str | None) -> None:
    counts = Counter(chain.from_iterable(map(_labels_of, records.rows)))
    if "entities" in records.rows[0]:
        return  # spans of one type are fine
    if not counts:
        if any(isinstance(row.get("label"), list) for row in records.rows):
            what = f"no row of the {name} split has a label, all lists are empty"
            raise UserError(what, where, "Training needs a label here and there.")
        return
    if len(counts) == 1:
        what = f"all rows of the {name} split have the label '{next(iter(counts))}'"
        fix = "Training needs two classes or more, or numbers that differ."
        raise UserError(what, where, fix)
    numbers = all(isinstance(label, float) for label in counts)
    if not numbers and len(counts) > 0.5 * len(records.rows) > 10:
        what = f"{len(counts):,} different labels in {len(records.rows):,} rows"
        column = records.columns.get("label", "the label column")
        raise UserError(what, where, f"Is '{column}' right? Else give --label_column.")


def _place(row: dict, text: bool = True) -> str:
    """`file:line 'the text'`, short."""
    short = row["text"] if len(row["text"]) <= 30 else row["text"][:29] + "…"
    place = f"{Path(row['file']).name}:{row.get('line')}" if row.get("file") else ""
    return " ".join(filter(None, [place, f"'{short}'" if text else ""]))


def _describe(report: Report, name: str, records: Records, lengths) -> None:
    facts = report.splits[name]
    labels = Counter(chain.from_iterable(map(_labels_of, records.rows)))
    classes = {} if any(isinstance(x, float) for x in labels) else labels
    facts["rows"], facts["labels"] = len(records), dict(Counter(classes).most_common())
    facts |= _label_facts([row.get("label") for row in records.rows])
    facts |= {"format": records.format, "encoding": records.encoding}
    facts |= {"columns": records.columns, "files": records.files}
    facts["unlabelled"] = records.unlabelled
    bad = [f"{Path(file).name}:{line}: {why}" for file, line, why in records.bad]
    report.add("bad_rows", name, records.bad, "left out as bad", bad)
    unit = "characters" if lengths is None else "tokens"
    if lengths is None:
        lengths = [len(r["text"]) + len(r.get("text_pair", "")) for r in records.rows]
    lengths = np.asarray(lengths, np.int64)
    places = (0, 5, 25, 50, 75, 95, 99, 100)
    marks = np.percentile(lengths, places, method="nearest").tolist()
    first = next(iter(report.splits.values())).get("length")
    if first:  # the same bins for all, so that they can be compared
        edges = first["edges"]
    else:
        top = int(np.percentile(lengths, 99.5)) + 1
        edges = np.unique(np.linspace(0, top, 51).astype(int)).tolist()
    # A long tail would flatten everything else: the last bin holds it.
    counts, _ = np.histogram(np.minimum(lengths, edges[-1]), edges)
    facts["length"] = {"unit": unit, "mean": round(float(lengths.mean()), 2)}
    facts["length"] |= dict(zip(map(str, places), marks, strict=True))
    facts["length"] |= {"edges": edges, "counts": counts.tolist()}
    if report.max_length:
        lost = np.maximum(lengths - report.max_length, 0)
        share = float(lost.sum() / max(lengths.sum(), 1))
        rows = int((lost > 0).sum())
        facts["length"] |= {"truncated_share": share, "truncated_rows": rows}
        if share > 0.05 and not first:
            text = f"{name}: {share:.1%} of all {unit} are cut off, in {rows:,} rows; "
            text += f"99 % of the rows would fit into --max_length {marks[6]}"
            longest = _place(records.rows[int(lengths.argmax())])
            report.warn("truncation", name, rows, text, [longest])


def _label_facts(labels: list) -> dict:
    """What to know of several labels a text, and of numbers."""
    if any(isinstance(label, list) for label in labels):
        counts = [len(label) for label in labels]
        mean = round(float(np.mean(counts)), 3)
        return {"labels_a_row": mean, "rows_without": counts.count(0)}
    if not all(isinstance(label, float) for label in labels):
        return {}
    low, high = min(labels), max(labels)
    counts, edges = np.histogram(labels, 30)
    return {
        "label_mean": float(np.mean(labels)),
        "label_deviation": float(np.std(labels)),
        "label_range": f"{low:g} to {high:g}",
        "label_histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def _duplicates(report: Report, name: str, records: Records, keys: list[str]) -> None:
    groups = defaultdict(list)
    for key, row in zip(keys, records.rows, strict=True):
        groups[key].append(row)
    again = [row for rows in groups.values() for row in rows[1:]]
    share = f"({len(again) / len(keys):.1%}) with the text of an earlier row"
    report.add("duplicates", name, again, share)
    torn = [rows for rows in groups.values() if len(set(map(_label_key, rows))) > 1]
    examples = [f"{_place(b, False)} and {_place(a)}" for a, b, *_ in torn[:3]]
    words = "whose text has several labels"
    report.add("contradictions", name, [*chain(*torn)], words, examples)


def _pairs(report: Report, name: str, rows: list[dict]) -> None:
    """What is odd about sources and their targets."""
    words = [[set(row[side].split()) for side in ("text", "target")] for row in rows]
    copied = [len(a & b) >= max(1, 0.9 * len(b)) for a, b in words]
    copies = [row for row, same in zip(rows, copied, strict=True) if same]
    report.add("copies", name, copies, "whose target repeats its source")
    sides = [[row[side] for row in rows] for side in ("text", "target")]
    usual = [language_of(texts) for texts in sides]
    other = [
        row
        for row, *texts in zip(rows, *sides, strict=True)
        if any(
            len(LETTER.findall(text)) > 4 and language_of([text]) != usual[i]
            for i, text in enumerate(texts)
        )
    ]
    report.add("wrong_language", name, other, "with a side in another script")
    ratios = np.log([len(b) / len(a) for a, b in zip(*sides, strict=True)])
    off = np.abs(ratios - np.median(ratios))
    far = (off > max(np.log(3), 5 * np.median(off))) & (
        np.array([max(map(len, pair)) for pair in zip(*sides, strict=True)]) > 20
    )
    report.add(
        *("length_ratio", name, [rows[i] for i in np.flatnonzero(far)]),
        "where one side is far longer than it usually is beside the other",
    )


def _near(report: Report, splits: dict, keys: dict) -> None:
    """Near-duplicates over all splits at once, the training split's texts first."""
    first: dict[str, tuple[str, int]] = {}
    for name, texts in keys.items():
        for index, key in enumerate(texts):
            first.setdefault(key, (name, index))
    train, places = next(iter(splits)), list(first.values())
    if len(first) > MOST_TEXTS:
        text = f"near-duplicates were not looked for among {len(first):,} texts"
        report.warn("near_duplicates", train, 0, text)
        return
    found: dict = {("near_duplicates", name): {} for name in splits}
    found |= {("near_leakage", name): {} for name in splits if name != train}
    for one, other in near_duplicates(list(first)).tolist():
        (a, i), (b, j) = places[one], places[other]
        kind = "near_duplicates" if a == b else "near_leakage"
        if a in (b, train):
            found[kind, b].setdefault(j, splits[a].rows[i])
    for (kind, name), twins in found.items():
        rows = [splits[name].rows[j] for j in twins]
        examples = [
            f"{_place(row)} ~ {_place(twin, False)}"
            for row, twin in zip(rows[:3], twins.values(), strict=False)
        ]
        inside = kind == "near_duplicates"
        words = f"nearly like {'an earlier one' if inside else f'one of {train}'}"
        report.add(kind, name, rows, words, examples)


def _labels(report: Report, splits: dict, train: str) -> None:
    counts = report.splits[train]["labels"]
    if not counts:
        return
    largest, smallest = max(counts, key=counts.get), min(counts, key=counts.get)
    spans = "entities" in splits[train].rows[0]  # whose types are counted, not rows
    if counts[largest] > 10 * counts[smallest] and not spans:
        text = f"{train}: label '{largest}' has {counts[largest]:,} rows, '{smallest}' "
        text += f"has {counts[smallest]:,}; look at f1_macro beside accuracy"
        report.warn("imbalance", train, counts[largest], text)
    everywhere = Counter()
    for facts in report.splits.values():
        everywhere.update(facts["labels"])
    for wrong, right in _typos(everywhere):
        rows = [r for s in splits.values() for r in s.rows if wrong in _labels_of(r)]
        text = f"label '{wrong}' of {len(rows):,} looks like a typo of '{right}'"
        report.warn("label_typo", train, len(rows), text, map(_place, rows[:3]))
    for name, records in splits.items():
        if name != train:
            rows = [r for r in records.rows if not set(_labels_of(r)) <= counts.keys()]
            new = sorted({x for row in rows for x in _labels_of(row)} - counts.keys())
            listed = ", ".join(f"'{x}'" for x in new[:5]) + (" …" if new[5:] else "")
            words = f"with a label unseen in {train}: {listed}"
            report.add("unseen_label", name, rows, words)


def _typos(counts: Counter) -> list[tuple[str, str]]:
    """(wrong, right): alike but for case and spaces; or rare, a letter or two off."""
    found, plain = {}, {}
    for label, _ in counts.most_common():
        key = re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label).casefold())
        if plain.setdefault(key, label) != label:
            found[label] = plain[key]
    for label, count in counts.items():
        if len(label) >= 4 and label not in found and not re.search(r"\d", label):
            common = [other for other, n in counts.items() if n >= 10 * count]
            for near in difflib.get_close_matches(label, common, n=1, cutoff=0.85):
                found[label] = near
    return list(found.items())
