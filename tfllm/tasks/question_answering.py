"""The part of a context that answers a question, or that there is none.

A context that is too long is read in windows, each beside the question. In a window the
model says how likely the answer starts and ends at each token; the first place of all
stands for "not here". The likeliest part of any window is the answer, unless there may
be none and "not here" is likelier by a margin that was tuned on validation.
"""

import dataclasses
import math
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.core.console import warn
from tfllm.core.errors import UserError
from tfllm.data.cache import cached_columns
from tfllm.data.columns import Columns, Ragged
from tfllm.data.questions import parse
from tfllm.evaluation.answers import (
    AnswerSplit,
    answer_metrics,
    answer_scores,
    prediction_rows,
    tune_threshold,
)
from tfllm.evaluation.report import markdown_cell, markdown_table
from tfllm.models.span_reader import ReaderConfig, build_span_reader
from tfllm.tasks.task import Batch, Sums, Verdict, answers_of, own_settings
from tfllm.text import Tokenizer

SAMPLES = 8  # predictions shown in TensorBoard
NEVER = -1e9  # the logarithm of no chance at all
LEAST = -690.0  # that of the least probability that a float holds, nearly
MARGIN = 1e4  # the largest margin of "no answer" that is told


class Windows(Columns):
    """Windows of records, a row each.

    Columns: `token_ids`, `segment_ids`; `row`, the number of the record; `first`, which
    token of its context is the window's first; `begin` and `count`, where these stand
    in the window and how many they are; `start` and `end`, the places of the answer's
    first and last token, 0 where it is not here, -1 where nothing can be learned.

    Args:
        columns: These.
        rows: The records.
    """

    def __init__(self, columns: dict, rows: Sequence[dict]):
        super().__init__(columns)
        self.rows = rows


@dataclass
class QuestionAnswering:
    """Answers that are parts of a context.

    Args:
        tokenizer: Turns text to ids, in training and in the export.
        model: Shape of the model.
        style: How answers are compared, see `evaluation.answers`.
        impossible: Whether a question may have no answer.
        stride: Tokens from one window's begin to that of the next at most, see `step`.
        max_question_length: Tokens that are read of a question.
        max_answer_length: Tokens of an answer at most.
        max_windows: Windows that are read of a context.
        n_best: Answers that are told of each question.
        threshold: By which margin "no answer" must be likelier; each validation tunes
            it anew for F1, and the best checkpoint keeps its own.
    """

    tokenizer: Tokenizer
    model: ReaderConfig
    style: str = "squad"
    impossible: bool = False
    stride: int = 128
    max_question_length: int = 64
    max_answer_length: int = 64
    max_windows: int = 64
    n_best: int = 3
    threshold: float = 0.0

    name = "question_answering"
    monitor = "f1"
    maximize = True
    parse = staticmethod(parse)

    def __post_init__(self):
        # At least half of a window is for the context.
        half = self.tokenizer.budget(self.tokenizer.pair, self.max_length) // 2
        if half < 1:
            raise UserError(f"--max_length {self.max_length} leaves no room for a text")
        self.max_question_length = min(self.max_question_length, half)

    @property
    def max_length(self) -> int:
        """Longest window in tokens."""
        return self.model.max_length

    @property
    def lead(self) -> int:
        """Tokens that stand before a context, those of the question left out."""
        items = [item for item, _ in self.tokenizer.pair.items]
        return items.index("B") - 1

    def step(self, room, least=min, most=max):
        """Tokens from one window's begin to the next one's.

        Where a window has little room they overlap by the longest answer or, if that
        is long, by half, so that hardly an answer is cut by all of them.

        Args:
            room: Tokens of the context that a window holds.
            least, most: Of two, for numbers or for tensors.
        """
        return least(
            self.stride, most(most(1, room // 2), room - self.max_answer_length)
        )

    def columns(self, rows: Sequence[dict]) -> tuple[Windows, np.ndarray]:
        """Encodes records.

        Returns:
            Their windows; and the lengths int64 [N] of question and context together.
        """
        key = {"task": self.name, "tokenizer": self.tokenizer.fingerprint}
        names = ("max_length", "stride", "max_question_length", "max_windows")
        names += ("max_answer_length",)
        key |= {name: getattr(self, name) for name in names}
        key["rows"] = [[row["text"], row["context"], row["answers"]] for row in rows]
        columns = cached_columns(key, lambda: self._windows(rows))
        windows = Windows(dict(columns.items()), rows)
        lengths = np.zeros(len(rows), np.int64)
        ends = (np.asarray(windows[name]) for name in ("first", "begin", "count"))
        np.maximum.at(lengths, np.asarray(windows["row"]), sum(ends))
        lost = len(set(np.asarray(windows["row"])[np.asarray(windows["start"]) < 0]))
        if lost > 0.01 * len(rows):
            told = f"{lost:,} of {len(rows):,} questions teach nothing: their answers "
            told += "are no words of the context, too long, or stand behind "
            warn(told + "--max_windows")
        return windows, lengths

    def _windows(self, rows: Sequence[dict]) -> Columns:
        budget = self.tokenizer.budget(self.tokenizer.pair, self.max_length)
        questions = self.tokenizer.encode([row["text"] for row in rows])
        contexts, template = self._contexts(rows), self.tokenizer.pair
        ids, segments, numbers = [], [], []
        for row, asked in enumerate(questions):
            asked = asked[: self.max_question_length]
            context, offsets = contexts[rows[row]["context"]]
            room, begin = budget - len(asked), self.lead + len(asked)
            step = self.step(room)
            windows = 1 + max(0, math.ceil((len(context) - room) / step))
            answer = answer_tokens(rows[row]["answers"], offsets)
            starts = range(0, step * min(windows, self.max_windows), step)
            if answer and not any(
                at <= answer[0] and answer[1] < at + room for at in starts
            ):
                answer = (-1, -1)
            for first in starts:
                part = context[first : first + room]
                places = answer or (0, 0)
                if answer and answer[0] >= 0:
                    here = first <= answer[0] and answer[1] < first + len(part)
                    places = [(begin + at - first) * here for at in answer]
                full, sides = template.filled(asked, part)
                ids.append(full)
                segments.append(sides)
                numbers.append((row, first, begin, len(part), *places))
        names = ("row", "first", "begin", "count", "start", "end")
        dense = np.array(numbers, np.int32).reshape(-1, len(names)).T
        ragged = {"token_ids": ids, "segment_ids": segments}
        ragged = {name: Ragged.from_lists(lists) for name, lists in ragged.items()}
        return Columns(ragged | dict(zip(names, dense, strict=True)))

    def _contexts(self, rows: Sequence[dict]) -> dict[str, tuple]:
        """Ids and offsets int `[tokens, 2]` of each context."""
        texts = list(dict.fromkeys(row["context"] for row in rows))
        encoded = zip(*self.tokenizer.encode_with_offsets(texts), strict=True)
        return {
            text: (ids, np.array(offsets, np.int64).reshape(-1, 2))
            for text, (ids, offsets) in zip(texts, encoded, strict=True)
        }

    def build_model(self, dtype: str | None = None) -> keras.Model:
        """The reader, see `models.span_reader.build_span_reader`."""
        return build_span_reader(self.model, dtype)

    def pad_values(self) -> dict[str, int]:
        """Fills rows that are too short."""
        return {"token_ids": self.tokenizer.pad_id, "start": -1, "end": -1}

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Windows of a batch from which something is learned."""
        return {"loss": ops.sum(_told(batch))}

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Mean cross-entropy of start and end, over all places that are possible."""
        shares, _ = log_shares(outputs, batch["begin"], batch["count"])
        places = ops.stack([batch["start"], batch["end"]], axis=-1)
        places = ops.maximum(places, 0)[:, None]
        likely = ops.sum(ops.take_along_axis(shares, places, axis=1), axis=(1, 2))
        return {"loss": -0.5 * ops.sum(likely * _told(batch))}

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Share of the windows of which start and end are both right."""
        shares, _ = log_shares(outputs, batch["begin"], batch["count"])
        places = ops.stack([batch["start"], batch["end"]], axis=-1)
        hit = ops.cast(ops.argmax(shares, axis=1), "int32") == places
        hit = ops.cast(ops.all(hit, axis=-1), "float32") * _told(batch)
        return {"windows_right": (ops.sum(hit), ops.sum(_told(batch)))}

    def predict(self, model: keras.Model, windows: Windows) -> tuple:
        """The `n_best` answers of each record, dicts as predictions.jsonl has them, the
        best first; and the logarithm of how likely there is none, `[N]`."""
        contexts, rows = self._contexts(windows.rows), windows.rows
        found, none = [{} for _ in rows], np.full(len(rows), MARGIN)
        options = self.max_length, self.pad_values()
        for micro, logits in answers_of(model, windows, *options):
            begin, count = np.zeros((2, micro.num_rows), np.int32)
            begin[micro.rows] = windows["begin"][micro.indices]
            count[micro.rows] = windows["count"][micro.indices]
            limits = self.max_answer_length, self.n_best
            told = best_spans(np.asarray(logits), begin, count, *limits)
            nowhere, *told = map(ops.convert_to_numpy, told)
            for index, at in zip(micro.indices, micro.rows, strict=True):
                row = int(windows["row"][index])
                shift = int(windows["first"][index]) - begin[at]
                text = rows[row]["context"]
                offsets = contexts[text][1]
                none[row] = min(none[row], nowhere[at])
                for share, first, last in zip(*(one[at] for one in told), strict=True):
                    if share > NEVER / 2:
                        ends = offsets[first + shift, 0], offsets[last + shift, 1]
                        span = trimmed(text, *map(int, ends))
                        found[row][span] = max(share, found[row].get(span, NEVER))
        best = []
        for row, spans in zip(rows, found, strict=True):
            order = sorted(spans, key=spans.get, reverse=True)[: self.n_best]
            best.append([answer_at(row["context"], *s, spans[s]) for s in order])
        return best, none

    def decide(self, best: list, none: np.ndarray) -> list[dict]:
        """What is answered: the best part, or nothing."""
        silent = self.impossible & (_margins(best, none) > self.threshold)
        return [
            # White space alone is no answer.
            parts[0]
            if parts and parts[0]["text"] and not nothing
            else answer_at("", -1, -1, nowhere)
            for parts, nowhere, nothing in zip(best, none, silent, strict=True)
        ]

    def split(self, model: keras.Model, rows: Sequence[dict]) -> AnswerSplit:
        """What the model says about records, for reports."""
        started = time.perf_counter()
        windows, lengths = self.columns(rows)
        best, none = self.predict(model, windows)
        contexts = self._contexts(rows)
        full = [len(contexts[row["context"]][0]) for row in rows]
        begins = np.zeros(len(rows), np.int64)
        begins[np.asarray(windows["row"])] = windows["begin"]
        return AnswerSplit(
            questions=[row["text"] for row in rows],
            contexts=[row["context"] for row in rows],
            answers=[[text for _, text in row["answers"]] for row in rows],
            candidates=best,
            predictions=self.decide(best, none),
            style=self.style,
            ids=[row.get("id") for row in rows],
            cut=np.maximum(0, full + begins - lengths).tolist(),
            seconds=time.perf_counter() - started,
        )

    def answer(self, model: keras.Model, rows: Sequence[dict]) -> list[dict]:
        """What is answered to records, as rows of predictions.jsonl have it."""
        rows = [{"answers": []} | row for row in rows]
        told = prediction_rows(self.split(model, rows))
        return [{k: v for k, v in row.items() if k != "label"} for row in told]

    def validate(self, model: keras.Model, windows: Windows) -> Verdict:
        """Metrics on held-out windows; tunes the threshold."""
        best, none = self.predict(model, windows)
        accepted = [[text for _, text in row["answers"]] for row in windows.rows]
        answerable = np.array([bool(one) for one in accepted], float)
        if self.impossible:
            texts = [parts[0]["text"] if parts else "" for parts in best]
            pairs = zip(accepted, texts, strict=True)
            scores = np.array([answer_scores(*pair, self.style)[1] for pair in pairs])
            margins = _margins(best, none)
            self.threshold = tune_threshold(margins, scores, 1 - answerable)
        told = self.decide(best, none)
        scores = [
            answer_scores(texts, one["text"], self.style)
            for texts, one in zip(accepted, told, strict=True)
        ]
        metrics = answer_metrics(*np.array(scores).T, answerable)

        def texts():
            rows = []
            for i in range(min(SAMPLES, len(told))):
                cells = windows.rows[i]["text"], " / ".join(accepted[i])
                cells = [markdown_cell(x, 200) for x in (*cells, told[i]["text"])]
                rows.append([*cells, f"{told[i]['score']:.3f}"])
            head = ["question", "accepted", "answered", "score"]
            return {"samples": markdown_table(head, rows)}

        return Verdict(metrics, texts=texts)

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights."""
        settings = {k: v for k, v in vars(self).items() if k != "tokenizer"}
        model = dataclasses.asdict(self.model)
        # The head's only label: from it a run that goes on knows that it fits.
        return {"task": self.name, "labels": [self.name], **settings, "model": model}

    @classmethod
    def from_config(cls, config: dict, tokenizer: Tokenizer) -> "QuestionAnswering":
        """The task of a checkpoint's config.json."""
        settings = own_settings(cls, config)
        settings["model"] = ReaderConfig(**settings["model"])
        return cls(tokenizer, **settings)


def task_for(
    rows: Sequence[dict], tokenizer: Tokenizer, model: dict, **options
) -> QuestionAnswering:
    """The task that training rows speak of.

    Args:
        rows: Training records, see `data.questions`.
        tokenizer: Their tokenizer.
        model: Fields of the `ReaderConfig` but those that the task decides.
        **options: Other fields of the task.

    Raises:
        UserError: No question has an answer.
    """
    if not any(row["answers"] for row in rows):
        raise UserError("no question of the training data has an answer")
    size = tokenizer.vocabulary_size
    config = ReaderConfig(vocabulary_size=size, num_outputs=2, pairs=True, **model)
    impossible = not all(row["answers"] for row in rows)
    return QuestionAnswering(tokenizer, config, impossible=impossible, **options)


def answer_tokens(answers: Sequence[tuple], offsets: np.ndarray) -> tuple | None:
    """The first and last token of the first answer that stands in the context.

    Args:
        answers: `(start, text)` of each, in characters.
        offsets: `(start, end)` of each token, `[tokens, 2]`.

    Returns:
        Their numbers; -1 where no token is; None where there is no answer.
    """
    for start, text in answers:
        if start >= 0:
            # Some tokens hold what others hold too: ends may go back, not far.
            first = np.searchsorted(
                np.maximum.accumulate(offsets[:, 1]), start, "right"
            )
            last = np.searchsorted(offsets[:, 0], start + len(text), "left") - 1
            return (int(first), int(last)) if first <= last else (-1, -1)
    return (-1, -1) if answers else None


def log_shares(logits: Any, begin: Any, count: Any) -> tuple:
    """Log-probabilities over a window's context and its first place.

    Args:
        logits: `[W, L, 2]`, of starts and of ends.
        begin, count: Where the context stands in each window, int32 `[W]`.

    Returns:
        float32 `[W, L, 2]`; and where the context is, bool `[W, L]`.
    """
    places = ops.arange(ops.shape(logits)[1], dtype="int32")
    begin, count = begin[:, None], count[:, None]
    context = (places >= begin) & (places < begin + count)
    possible = (context | (places == 0))[..., None]
    logits = ops.where(possible, ops.cast(logits, "float32"), NEVER)
    return ops.log_softmax(logits, axis=1), context


def best_spans(logits: Any, begin: Any, count: Any, longest: int, best: int) -> tuple:
    """The likeliest parts of each window, of all that are possible.

    Args:
        logits, begin, count: See `log_shares`.
        longest: Tokens of a part at most.
        best: How many are told.

    Returns:
        Log-probability that there is none, `[W]`, and those of the parts, `[W, best]`;
        places of their first and last tokens, int32 `[W, best]`.
    """
    shares, context = log_shares(logits, begin, count)
    nowhere = shares[:, 0, 0] + shares[:, 0, 1]
    shares = ops.where(context[..., None], shares, NEVER)
    length = ops.shape(logits)[1]
    ends = ops.pad(shares[..., 1], [[0, 0], [0, longest]], constant_values=NEVER)
    sums = [shares[..., 0] + ends[:, more : more + length] for more in range(longest)]
    sums = ops.reshape(ops.stack(sums, axis=-1), (-1, length * longest))
    sums = ops.pad(sums, [[0, 0], [0, best]], constant_values=NEVER)  # there may be few
    found, at = ops.top_k(sums, best)
    at = ops.cast(at, "int32")
    first = at // longest
    return nowhere, found, first, first + at % longest


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A part with the marks that belong to its last letter, without spaces around."""
    while end < len(text) and is_mark(text[end]):
        end += 1
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def is_mark(character: str) -> bool:
    """Whether it belongs to the letter before it (accents that are written apart)."""
    return unicodedata.category(character)[0] == "M"


def answer_at(context: str, start: int, end: int, share: float) -> dict:
    """An answer as JSON holds it, from the logarithm of its probability."""
    text = context[max(start, 0) : max(end, 0)]
    return {"text": text, "start": start, "end": end, "score": float(np.exp(share))}


def _margins(best: list, none: np.ndarray) -> np.ndarray:
    """How much likelier no answer is than the best, as a difference of logarithms."""
    least = math.exp(LEAST)
    shares = [math.log(max(one[0]["score"], least)) if one else -MARGIN for one in best]
    return np.clip(none - np.array(shares), -MARGIN, MARGIN)


def _told(batch: Batch) -> Any:
    """1 for windows from which something is learned."""
    return batch["weight"] * ops.cast(batch["start"] >= 0, "float32")
