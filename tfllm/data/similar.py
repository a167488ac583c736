"""Texts that should lie near each other, as rows for a model of sentences.

Three kinds of data: `pairs` of texts that belong together, perhaps with texts that do
not; `labels`, where two texts of one label are a pair; `scores`, pairs with a number
that says how alike they are.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tfllm.core.console import note
from tfllm.core.errors import UserError
from tfllm.data.batching import Micro
from tfllm.data.columns import Ragged, spans
from tfllm.data.labels import guess_problem, labels_as
from tfllm.data.order import shuffled
from tfllm.data.readers import Records, read

KINDS = ("pairs", "labels", "scores")
# Labels of a pair whose texts mean the same; with others the second text is a hard
# negative of the pairs that have the same first one.
SAME = {"1", "1.0", "true", "yes", "entailment", "paraphrase", "duplicate", "positive"}


def read_similar(paths, **options) -> Records:
    """`readers.read` of texts whose labels are optional, with `negatives`.

    Two columns of texts that hardly ever come again are pairs, whatever their names.
    """
    records = read(paths, labels=False, negatives=True, **options)
    labels = {str(row.get("label")) for row in records.rows}
    alone = not any("text_pair" in row for row in records.rows)
    if alone and len(labels) > max(10, 0.5 * len(records)):
        note(f"two columns of different texts are read as pairs ({paths[0]})")
        names = ["text", "label"]  # in the order in which they stand
        if str(records.columns.get("label")) < str(records.columns.get("text")):
            names.reverse()
        rows = []
        for row in records.rows:
            first, second = (str(row.pop(name)) for name in names)
            rows.append({"text": first, "text_pair": second} | row)
        records = replace(records, rows=rows)
    return records


def settle(splits: dict[str, Records], kind: str | None = None):
    """Tells what kind of data the splits are, and brings their labels to it.

    Args:
        splits: name → records, `train` among them.
        kind: One of `KINDS`; by what the training rows have when absent.

    Returns:
        The kind and the splits.

    Raises:
        UserError: There are neither pairs nor labels, or no two texts belong together.
    """
    splits = {
        name: replace(part, rows=[*map(_with_target, part.rows)])
        for name, part in splits.items()
    }
    # Of a handful of rows all may have been held out.
    rows = splits["train"].rows or [r for part in splits.values() for r in part.rows]
    paired = [row for row in rows if row.get("text_pair")]
    without = [row for row in rows if "label" not in row]
    labelled = not without
    if paired and 0 < len(without) < len(rows):
        where = f"{without[0].get('file')}:{without[0].get('line')}"
        what = f"{len(without):,} of {len(rows):,} pairs have no label, the first here"
        raise UserError(what, where, "Give all of them one, or none")
    if kind is None:
        scored = paired and labelled
        labels = [row["label"] for row in rows] if scored else []
        scored = scored and guess_problem(labels) == "regression"
        if labels and not scored and _graded(labels):
            what = "labels of pairs are numbers, but not 0 and 1"
            fix = "--loss cosine takes them as scores, the higher the more alike"
            raise UserError(what, splits["train"].where, fix)
        kind = "scores" if scored else "pairs" if paired else "labels"
    wants = {
        "pairs": "text_pair" * (not paired),
        "labels": "label" * (not labelled),
        "scores": "label and text_pair" * (not (paired and labelled)),
    }[kind]
    if wants and kind == "labels":
        wants = "neither a second text nor a label"
    if wants:
        what = wants if " a " in wants else f"no {wants}"
        fix = "Name the columns with --pair_column or --label_column"
        raise UserError(f"the training rows have {what}", splits["train"].where, fix)
    for name, part in splits.items():
        if labelled and not all("label" in row for row in part.rows):
            raise UserError(f"rows of {name} have no label, those of train have one")
    if labelled:
        problem = "regression" if kind == "scores" else "single_label"
        splits = {name: labels_as(problem, part) for name, part in splits.items()}
    if kind == "pairs":
        splits = {
            name: replace(part, rows=[*map(_without_label, part.rows)])
            for name, part in splits.items()
        }
        if not any("text_pair" in r for part in splits.values() for r in part.rows):
            found = sorted({row["label"] for row in rows})[:5]
            raise UserError(
                f"no pair belongs together: the labels are {', '.join(found)}",
                fix=f"Such pairs are labelled one of {', '.join(sorted(SAME))}, or not "
                "at all; numbers are taken as scores with --loss cosine",
            )
        rows = splits["train"].rows
        anchors = {row["text"] for row in rows if "text_pair" in row}
        alone = sum(row["text"] not in anchors for row in rows)
        if alone:
            note(
                f"{alone:,} of {len(rows):,} training rows teach nothing: their texts "
                "belong to no other, and no pair that does has the same first text"
            )
    return kind, splits


def _graded(labels: Sequence) -> bool:
    """Whether labels are numbers of more kinds than yes and no."""
    try:
        return not {float(label) for label in labels} <= {0.0, 1.0}
    except ValueError:
        return False


def _with_target(row: dict) -> dict:
    """A text and its target (a summary, a translation) are a pair."""
    if "target" not in row:
        return row
    return {"text": row["target"], "text_pair": row["text"]}


def _without_label(row: dict) -> dict:
    """The second text of a pair whose label says so is a negative one."""
    plain = {k: v for k, v in row.items() if k != "label"}
    if str(row.get("label", 1)).lower() not in SAME and "text_pair" in plain:
        others = [*plain.get("negatives", ()), plain.pop("text_pair")]
        plain["negatives"] = others
    return plain


class SimilarColumns:
    """Rows of texts to compare: an anchor, its like, and perhaps some unlike it.

    Args:
        rows: Records of one kind, as `settle` returns them.
        kind: One of `KINDS`.
        encode: Gives token ids of texts, with what `columns.Columns` holds.
        negatives: Hard negatives of a row at most.
        copies: Times a text of `labels` is an anchor, each time with another partner.
        seed: Of the partners.

    Attributes:
        texts: The different texts.
        documents: Numbers of those among which a query's texts are looked for.
        places: int64 `[N, 2 + negatives]`, numbers of a row's texts; -1: no such one.
        labels: int64 `[N]`, the class of an anchor, or -1.
        scores: float32 `[N]`, how alike a pair is, as the data say.
        relevant: For each different query its number and those of the texts to find.

    Raises:
        UserError: No two texts belong together.
    """

    def __init__(self, rows, kind, encode, negatives=0, copies=1, seed=0):
        number: dict[str, int] = {}

        def place(text: str) -> int:
            return number.setdefault(text, len(number))

        self.kind, self.rows = kind, rows
        scores, labels = np.zeros(len(rows)), np.full(len(rows), -1)
        if kind == "labels":
            names: dict[str, int] = {}
            # A text that is repeated would be its own partner.
            pairs = dict.fromkeys((row["text"], row["label"]) for row in rows)
            own = np.array([place(text) for text, _ in pairs])
            of = np.array([names.setdefault(x, len(names)) for _, x in pairs])
            parts = [_partners(of, copy, seed) for copy in range(copies)]
            first, second = np.concatenate(parts, 1)
            places, labels = np.stack([own[first], own[second]], 1), of[first]
            classes = defaultdict(set)
            for text, label in zip(own.tolist(), of.tolist(), strict=True):
                classes[label].add(text)
            groups = zip(own.tolist(), of.tolist(), strict=True)
            found = defaultdict(set)
            for text, label in groups:  # a text may have several
                found[text] |= classes[label] - {text}
            self.relevant = dict(found)
            self.documents = set(own.tolist())
        else:
            lines, unlike, like = [], defaultdict(list), defaultdict(set)
            for row in rows:
                anchor = place(row["text"])
                unlike[anchor] += [place(text) for text in row.get("negatives", ())]
                # That a text is like itself can be neither learned nor found.
                if "text_pair" in row and (
                    kind == "scores" or row["text_pair"] != row["text"]
                ):
                    lines.append([anchor, place(row["text_pair"])])
                    like[anchor].add(lines[-1][1])
            self.documents = set().union(*like.values(), *unlike.values())
            if kind == "scores":
                scores, negatives = np.array([row["label"] for row in rows]), 0
            most = min(negatives, max(map(len, unlike.values()), default=0))
            for line in lines:
                others = [o for o in unlike[line[0]] if o not in like[line[0]]]
                others = list(dict.fromkeys(others))[:most]
                line += others + [-1] * (most - len(others))
            places = np.array(lines, np.int64).reshape(len(lines), 2 + most)
            labels, self.relevant = np.full(len(lines), -1), dict(like)
        self.relevant = {
            query: found for query, found in self.relevant.items() if found
        }
        if not len(places) or not (self.relevant or kind == "scores"):
            raise UserError(
                "no two different texts belong together",
                fix="Are the columns right, and are there rows enough?",
            )
        self.texts, self.places, self.labels = list(number), places, labels
        self.scores = scores.astype(np.float32)
        self.token_ids: Ragged = encode(self.texts)
        sizes = np.append(self.token_ids.lengths, 0)
        self.lengths = np.maximum(1, sizes[places].max(1))

    def __len__(self) -> int:
        return len(self.places)

    def gather(
        self, micro: Micro, pad_values: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """One micro-batch; its texts stand below each other, first all anchors.

        Returns:
            `token_ids` and `padding_mask` int32 `[slots * rows, length]`; `places`
            int32 `[rows, slots]` (-1: no text), `label` int32, `score` and `weight`
            float32 `[rows]`.
        """
        rows, slots = micro.num_rows, self.places.shape[1]
        places = np.full((rows, slots), -1, np.int32)
        places[micro.rows] = self.places[micro.indices]
        flat = places.T.reshape(-1)
        ids = dense_rows(self.token_ids, flat, micro.length, pad_values)
        batch = {"places": places, "label": np.full(rows, -1, np.int32)}
        batch["label"][micro.rows] = self.labels[micro.indices]
        batch["score"], batch["weight"] = np.zeros((2, rows), np.float32)
        batch["weight"][micro.rows] = 1
        if self.kind == "scores":
            batch["score"][micro.rows] = self.scores[micro.indices]
        return ids | batch


def dense_rows(
    column: Ragged, places: Sequence[int], length: int, pad_values=None
) -> dict[str, np.ndarray]:
    """`token_ids` and `padding_mask` int32 `[rows, length]`; a row is empty at -1."""
    places = np.asarray(places)
    real = np.flatnonzero(places >= 0)
    begins = column.offsets[places[real]]
    counts = np.minimum(column.offsets[places[real] + 1] - begins, length)
    targets = spans(real * length, counts)
    ids = np.full(len(places) * length, (pad_values or {}).get("token_ids", 0), "int32")
    mask = np.zeros_like(ids)
    ids[targets], mask[targets] = column.values[spans(begins, counts)], 1
    shape = (len(places), length)
    return {"token_ids": ids.reshape(shape), "padding_mask": mask.reshape(shape)}


def _partners(labels: np.ndarray, copy: int, seed: int) -> np.ndarray:
    """Rows and, for each, another row of its label, int64 `[2, N]`; none is alone.

    Each class is a circle in random order, where a row's partner is the next one.
    """
    order = shuffled(len(labels), seed, copy)
    order = order[np.argsort(labels[order], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    following = np.arange(1, len(order) + 1)
    following[ends - 1] = starts
    alone = np.repeat(ends - starts == 1, ends - starts)
    return np.stack([order, order[following]])[:, ~alone]
