"""Words of a text get tags that write spans, and the text perhaps one intent.

The model reads plain text, in training as in the server: what it tags are the words
that the tokenizer makes of a text, by their first token, and its answers are spans of
characters. The words of a file only say where its entities are, and by them answers
are judged.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tfllm.core.console import warn
from tfllm.data.cache import cached_columns
from tfllm.data.columns import Columns, Ragged
from tfllm.data.tagged import parse
from tfllm.evaluation.report import markdown_cell, markdown_table
from tfllm.evaluation.spans import (
    Span,
    covered,
    over,
    read_tags,
    tag_names,
    write_tags,
)
from tfllm.evaluation.tagging import (
    TaggedSplit,
    prediction_rows,
    span_counts,
    span_metrics,
)
from tfllm.layers.crf import log_likelihood
from tfllm.models.tagger import TaggerConfig, build_tagger
from tfllm.tasks.task import Batch, Sums, Verdict, answers_of, own_settings
from tfllm.text import Tokenizer
from tfllm.text.flags import ASIAN

SAMPLES = 8  # predictions shown in TensorBoard


class Reading(NamedTuple):
    """What the model reads of a text.

    Attributes:
        ids: Token ids, special ones included.
        places: The place of each word's first token among them.
        words: `(start, end)` of each word in characters.
        cut: Tokens behind the longest that the model reads.
    """

    ids: list[int]
    places: list[int]
    words: list[tuple[int, int]]
    cut: int


@dataclass
class TokenClassification:
    """Spans, and an intent where training had any.

    Args:
        tokenizer: Turns text to ids, in training and in the export.
        types: The types of spans.
        intents: Names of the intents in the order of their logits.
        model: Shape of the model.
        special_tokens: Whether ids carry the tokenizer's special tokens.
    """

    tokenizer: Tokenizer
    types: list[str]
    intents: list[str]
    model: TaggerConfig
    special_tokens: bool = False

    name = "token_classification"
    maximize = True
    parse = staticmethod(parse)

    @property
    def monitor(self) -> str:
        """Entity F1, or the mean of it and of the intents' accuracy."""
        return "f1_and_accuracy" if self.intents else "entity_f1"

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return self.model.max_length

    @property
    def labels(self) -> list[str]:
        """All that the heads give names to."""
        return [*self.model.tags, *self.intents]

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Cuts texts into tokens and words."""
        template, rows = self.tokenizer.single, []
        budget, prefix = self.max_length, 0
        if self.special_tokens:
            budget = self.tokenizer.budget(template, budget)
            prefix = len(self.tokenizer.prefix)
        begins = begins_word(self.tokenizer)
        encoded = zip(texts, *self.tokenizer.encode_with_offsets(texts), strict=True)
        for text, ids, offsets in encoded:
            kept, places, words, last = ids[:budget], [], [], -1
            for place, (token, (start, end)) in enumerate(
                zip(kept, offsets, strict=False)
            ):
                if places and start <= last and not begins[token]:
                    words[-1] = (words[-1][0], max(end, words[-1][1]))
                else:
                    places.append(prefix + place)
                    words.append((start, end))
                last = end
            # Some tokens hold the space before their word.
            words = [(s + (e - s > 1 and text[s].isspace()), e) for s, e in words]
            full = template.filled(kept)[0] if self.special_tokens else kept
            rows.append(Reading(full, places, words, len(ids) - len(kept)))
        return rows

    def columns(self, rows: Sequence[dict]) -> tuple[Columns, np.ndarray]:
        """Encodes records.

        Returns:
            The columns `token_ids`, `places` and `tags`, with intents `intent`; and the
            lengths int64 [N] that the texts had before truncation.
        """
        ids_of = {tag: number for number, tag in enumerate(self.model.tags)}
        scheme = "bioes" if any(tag.startswith("E-") for tag in ids_of) else "bio"

        def build() -> Columns:
            texts, tags, lost = self.read([row["text"] for row in rows]), [], []
            for text, row in zip(texts, rows, strict=True):
                entities = row.get("entities", ())
                spans = covered(entities, text.words)
                names = write_tags(spans, len(text.words), scheme)
                tags.append([ids_of.get(name, 0) for name in names])
                lost.append(len({*entities} - {*over(spans, text.words)}))
            lengths = [len(text.ids) + text.cut for text in texts]
            intents = [row.get("intent") for row in rows]
            return Columns(
                {
                    "token_ids": Ragged.from_lists(text.ids for text in texts),
                    "places": Ragged.from_lists(text.places for text in texts),
                    "tags": Ragged.from_lists(tags),
                    "intent": np.array([self._intents.get(x, -1) for x in intents]),
                    "full_length": np.asarray(lengths),
                    "lost": np.asarray(lost),
                }
            )

        key = {
            "task": self.name,
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
            "special_tokens": self.special_tokens,
            "labels": self.labels,
            "rows": [[r["text"], r.get("entities"), r.get("intent")] for r in rows],
        }
        columns = dict(cached_columns(key, build).items())
        lengths, lost = (np.asarray(columns.pop(k)) for k in ("full_length", "lost"))
        total = sum(len(row.get("entities", ())) for row in rows)
        if lost.sum() > 0.01 * total:
            told = f"{lost.sum():,} of {total:,} entities do not begin and end where "
            warn(told + "words of this tokenizer do, or stand behind --max_length")
        return Columns(columns), lengths

    @property
    def _intents(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.intents)}

    def build_model(self, dtype: str | None = None) -> keras.Model:
        """The tagger, see `models.tagger.build_tagger`."""
        return build_tagger(self.model, dtype)

    def pad_values(self) -> dict[str, int]:
        """Fills rows that are too short."""
        return {"token_ids": self.tokenizer.pad_id, "places": -1}

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Words of a batch, and texts with an intent that is known."""
        counts = {"tags": ops.sum(ops.cast(batch["places"] >= 0, "float32"))}
        if self.intents:
            counts["intent"] = ops.sum(_told(batch))
        return counts

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Minus the log-likelihood of the tags, and of the intents."""
        real = ops.cast(batch["places"] >= 0, "float32")
        emissions, tags = outputs["emissions"], ops.cast(batch["tags"], "int32")
        if self.model.crf:
            likely = log_likelihood(emissions, outputs["transitions"], real, tags)
        else:
            likely = -real * ops.sparse_categorical_crossentropy(tags, emissions, True)
        sums = {"tags": -ops.sum(likely)}
        if self.intents:
            intent = ops.maximum(batch["intent"], 0)
            losses = ops.sparse_categorical_crossentropy(
                intent, outputs["intent"], True
            )
            sums["intent"] = ops.sum(losses * _told(batch))
        return sums

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Training accuracy of tags, and of intents."""
        real = batch["places"] >= 0
        hit = (outputs["tags"] == batch["tags"]) & real
        sums = {"tag_accuracy": [ops.sum(ops.cast(x, "float32")) for x in (hit, real)]}
        if self.intents:
            best = ops.cast(ops.argmax(outputs["intent"], axis=-1), "int32")
            hit = ops.cast(best == batch["intent"], "float32")
            sums["accuracy"] = ops.sum(hit * _told(batch)), ops.sum(_told(batch))
        return {name: tuple(pair) for name, pair in sums.items()}

    def predict(self, model: keras.Model, columns: Columns) -> list[dict]:
        """Of each row its `spans` of words, their `chances`, its `score`, its `intent`
        (a number, with the probability `intent_score`)."""
        found, lengths = [None] * len(columns), columns["places"].lengths
        pads = self.pad_values()
        for micro, answers in answers_of(model, columns, self.max_length, pads):
            for index, row in zip(micro.indices, micro.rows, strict=True):
                one = {k: v[row] for k, v in answers.items() if k != "transitions"}
                tags = one["tags"][: lengths[index]]
                spans = read_tags([self.model.tags[tag] for tag in tags])
                first = np.array([span.start for span in spans], np.int64)
                last = np.array([span.end - 1 for span in spans], np.int64)
                logs = one["before"][first] - one["along"][first]
                logs = logs + one["along"][last] + one["after"][last]
                told = {"spans": spans, "chances": np.exp(logs).tolist()}
                if self.intents:
                    shares = np.exp(one["intent"] - one["intent"].max())
                    told["intent"] = int(shares.argmax())
                    told["intent_score"] = float(shares.max() / shares.sum())
                found[index] = told | {"score": float(one["score"])}
        return found

    def split(self, model: keras.Model, rows: Sequence[dict]) -> TaggedSplit:
        """What the model says about records, for reports."""
        started = time.perf_counter()
        texts = [row["text"] for row in rows]
        readings = self.read(texts)
        found = self.predict(model, self.columns(rows)[0])
        pairs = zip(found, readings, strict=True)
        named = all("intent" in row for row in rows)
        return TaggedSplit(
            texts=texts,
            labels=[[Span(*one) for one in row.get("entities", ())] for row in rows],
            predictions=[over(one["spans"], text.words) for one, text in pairs],
            span_scores=[one["chances"] for one in found],
            scores=[one["score"] for one in found],
            intents=[row["intent"] for row in rows] if self.intents and named else None,
            intent_predictions=[self.intents[one["intent"]] for one in found]
            if self.intents
            else None,
            cut=[text.cut for text in readings],
            seconds=time.perf_counter() - started,
        )

    def find(self, model: keras.Model, texts: Sequence[str]) -> list[dict]:
        """What is in texts, as rows of predictions.jsonl have it."""
        rows = prediction_rows(self.split(model, [{"text": text} for text in texts]))
        return [{k: v for k, v in row.items() if k != "label"} for row in rows]

    def validate(self, model: keras.Model, columns: Columns) -> Verdict:
        """Metrics on held-out columns, by the words that the model reads."""
        found, names = self.predict(model, columns), self.model.tags
        true = [
            read_tags([names[tag] for tag in columns["tags"].row(i)])
            for i in range(len(columns))
        ]
        spans = [one["spans"] for one in found]
        pairs = zip(map(set, true), map(set, spans), strict=True)
        intents = None
        if self.intents:
            told = np.array([one["intent"] for one in found])
            intents = told == np.asarray(columns["intent"])
        metrics = span_metrics(*span_counts(pairs), intents)
        if self.intents:
            both = metrics["entity_f1"] + metrics["accuracy"]
            metrics[self.monitor] = both / 2

        def texts():
            rows = []
            for i in range(min(SAMPLES, len(columns))):
                ids = columns["token_ids"].row(i).tolist()
                places = [*columns["places"].row(i).tolist(), len(ids)]
                cells = self.tokenizer.decode([ids])
                for side in (true[i], spans[i]):
                    parts = [ids[places[s] : places[e]] for s, e, _ in side]
                    words = self.tokenizer.decode(parts)
                    pairs = zip(side, words, strict=True)
                    cells.append("; ".join(f"{s.type}: {word}" for s, word in pairs))
                rows.append([markdown_cell(cell, 200) for cell in cells])
            return {"samples": markdown_table(["text", "in the file", "found"], rows)}

        return Verdict(metrics, texts=texts)

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights."""
        own = ("types", "intents", "special_tokens")
        settings = {name: getattr(self, name) for name in own}
        model = dataclasses.asdict(self.model)
        return {"task": self.name, "labels": self.labels, **settings, "model": model}

    @classmethod
    def from_config(cls, config: dict, tokenizer: Tokenizer) -> "TokenClassification":
        """The task of a checkpoint's config.json."""
        settings = own_settings(cls, config)
        settings["model"] = TaggerConfig(**settings["model"])
        return cls(tokenizer, **settings)


def task_for(
    rows: Sequence[dict],
    types: list[str],
    tokenizer: Tokenizer,
    scheme: str,
    model: dict,
    **more,
):
    """The task that training rows speak of.

    Args:
        rows: Training records, see `data.tagged`.
        types: Those of their entities.
        tokenizer: Their tokenizer.
        scheme: Tags that the model learns, `bio` or `bioes`.
        model: Fields of the `TaggerConfig` but those that the rows decide.
        **more: Other fields of the task.
    """
    intents = sorted({row["intent"] for row in rows if "intent" in row})
    config = TaggerConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        num_outputs=len(intents) if len(intents) > 1 else 0,
        tags=tag_names(types, scheme),
        **model,
    )
    intents = intents if config.num_outputs else []
    return TokenClassification(tokenizer, types, intents, config, **more)


def begins_word(tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens begin a word even where they touch the token before: bool `[V]`."""
    if tokenizer.kind in ("characters", "words"):
        return np.ones(tokenizer.vocabulary_size, bool)
    if tokenizer.kind == "wordpiece":
        return np.array([not token.startswith("##") for token in tokenizer.tokens])
    texts = [piece.decode("utf-8", "replace")[:1] for piece in tokenizer.pieces.texts]
    return np.array(
        [not (x.isalnum() or x == "\ufffd") or bool(ASIAN.match(x)) for x in texts]
    )


def _told(batch: Batch) -> Any:
    """1 for rows whose intent is known."""
    return batch["weight"] * ops.cast(batch["intent"] >= 0, "float32")
