"""BERT's pretraining: hidden words, and whether a second text belongs to the first."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.data.corpus import Corpus
from tfllm.data.masking import Masking
from tfllm.data.pipeline import batches
from tfllm.data.sentence_pairs import PairColumns
from tfllm.evaluation.intervals import bootstrap
from tfllm.evaluation.report import (
    markdown_cell,
    markdown_table,
    results_table,
    write_evaluation,
)
from tfllm.layers.output_bias import OutputBias
from tfllm.models.encoder import (
    EncoderConfig,
    encode,
    masked_lm_features,
    pool,
    token_inputs,
)
from tfllm.tasks.task import Batch, Sums, Verdict
from tfllm.text import Tokenizer

TRAINING, JUDGING = 0, 1  # streams of random masks
BEST = 5  # answers for a hidden place
SAMPLES, SHOWN, PREDICTIONS = 8, 30, 200  # sentences in TensorBoard, report, file
EVALUATION_ROWS = 64


@dataclass
class MaskedLM:
    """Words are hidden and guessed; of two segments it is told if they go together.

    Args:
        tokenizer: Has mask, opening and separating tokens.
        encoder: Its shape, with a pooler where there is a second objective.
        objective: `next_sentence`, `sentence_order` or `none`.
        mask_rate: Share of the tokens that are hidden.
        whole_words: Whether all pieces of a word are hidden together.
        label_smoothing: Share of a hidden word's target spread over the vocabulary.
        seed: Of the masks.

    Raises:
        UserError: The tokenizer lacks a token.
    """

    tokenizer: Tokenizer
    encoder: EncoderConfig
    objective: str = "next_sentence"
    mask_rate: float = 0.15
    whole_words: bool = True
    label_smoothing: float = 0.0
    seed: int = 0

    name = "masked_lm"
    monitor = "loss"
    maximize = False

    def __post_init__(self):
        added = self.tokenizer.pair.added
        if None in (self.tokenizer.mask_id, self.tokenizer.pad_id) or added < 3:
            raise UserError(
                "the tokenizer has no tokens for padding, masks or pairs",
                fix="Leave out --tokenizer, or name one that was made for BERT",
            )
        self.masking = Masking(self.tokenizer, self.mask_rate, self.whole_words)

    @property
    def max_length(self) -> int:
        """Longest row in tokens."""
        return self.encoder.max_length

    @property
    def pairs(self) -> bool:
        """Whether there is a second objective."""
        return self.objective != "none"

    def build_model(self, dtype: str | None = None) -> keras.Model:
        """Encoder and heads, with BERT's names of layers.

        Returns:
            A model from int32 `token_ids`, `padding_mask`, `segment_ids` `[rows,
            length]` and `mask_places` `[rows, P]` to float32 logits: `masked_lm`
            `[rows, P, vocabulary]`, and, with a second objective, `next_sentence`
            `[rows, 2]`.
        """
        config = self.encoder
        inputs = token_inputs(config.num_segments > 1)
        hidden = encode(config, inputs, dtype)
        embedding = keras.Model(inputs, hidden).get_layer("token_embedding")
        inputs["mask_places"] = keras.Input((None,), dtype="int32", name="mask_places")
        picked = ops.take_along_axis(hidden, inputs["mask_places"][..., None], axis=1)
        features = masked_lm_features(config, picked, dtype)
        logits = embedding(features, reverse=True)
        outputs = {"masked_lm": OutputBias(name="masked_lm_bias")(logits)}
        if self.pairs:
            outputs["next_sentence"] = keras.layers.Dense(
                2,
                kernel_initializer=keras.initializers.TruncatedNormal(
                    stddev=config.initializer_range
                ),
                name="next_sentence",
                dtype="float32",
            )(pool(config, hidden, dtype))
        return keras.Model(inputs, outputs, name="masked_lm")

    def pad_values(self) -> dict[str, int]:
        """What `PairColumns` does not know already: nothing."""
        return {}

    def transform(self, batch: Batch, step: int, part: int, stream=TRAINING) -> Batch:
        """Hides words: others in every step, the same ones in the same step."""
        batch = dict(batch)
        hidden = self.masking.hide(
            batch["token_ids"],
            batch["padding_mask"],
            (self.seed, stream, step, part),
            batch.pop("word_starts", None),
        )
        batch["token_ids"], batch["mask_places"] = hidden.token_ids, hidden.places
        batch["mask_targets"], batch["mask_weights"] = hidden.targets, hidden.weights
        return batch

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Hidden places, and pairs."""
        counts = {"masked_lm": ops.sum(batch["mask_weights"])}
        if self.pairs:
            counts["next_sentence"] = ops.sum(batch["next_sentence_weight"])
        return counts

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Cross-entropies."""
        smooth = self.label_smoothing
        losses = _cross_entropy(outputs["masked_lm"], batch["mask_targets"], smooth)
        sums = {"masked_lm": ops.sum(losses * batch["mask_weights"])}
        if self.pairs:
            losses = _cross_entropy(outputs["next_sentence"], batch["next_sentence"])
            sums["next_sentence"] = ops.sum(losses * batch["next_sentence_weight"])
        return sums

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Accuracies of training."""
        counts = self.loss_counts(batch)
        weight = batch["mask_weights"]
        hits = _hits(outputs["masked_lm"], batch["mask_targets"]) * weight
        sums = {"accuracy": (ops.sum(hits), counts["masked_lm"])}
        if self.pairs:
            hits = _hits(outputs["next_sentence"], batch["next_sentence"])
            hits = ops.sum(hits * batch["next_sentence_weight"])
            sums[f"{self.objective}_accuracy"] = hits, counts["next_sentence"]
        return sums

    def scores(self, model: keras.Model, columns: PairColumns) -> dict[str, np.ndarray]:
        """What the model does on held-out rows, each with the same masks every time.

        Returns:
            float64 `[N]`, sums of a row: `places`, `losses` and `hits` of hidden words;
            `pairs`, `pair_losses` and `pair_hits`.
        """
        plan = BatchPlan(
            columns.lengths,
            batch_size=EVALUATION_ROWS,
            max_length=self.max_length,
            shuffle=False,
        )
        # Rows of a batch are known by the batch's own weights; their order is free.
        steps = batches(
            columns,
            plan,
            stop_step=plan.steps_per_epoch,
            transform=lambda *args: self.transform(*args, stream=JUDGING),
        )
        found, names = [], [tensor.name for tensor in model.inputs]
        for batch in steps:
            outputs = model.predict_on_batch({name: batch[name] for name in names})
            weight = batch["mask_weights"]
            losses, hits = _judged(outputs["masked_lm"], batch["mask_targets"])
            rows = [weight.sum(1), (losses * weight).sum(1), (hits * weight).sum(1)]
            if self.pairs:
                weight = batch["next_sentence_weight"]
                losses, hits = _judged(outputs["next_sentence"], batch["next_sentence"])
                rows += [weight, losses * weight, hits * weight]
            found.append(np.array(rows, np.float64)[:, batch["weight"] > 0])
        keys = ("places", "losses", "hits", "pairs", "pair_losses", "pair_hits")
        return dict(zip(keys, np.concatenate(found, axis=1), strict=False))

    def metrics(
        self, places, losses, hits, pairs=None, pair_losses=None, pair_hits=None
    ):
        """Numbers by name from what `scores` returns."""
        loss = losses.sum() / max(1.0, places.sum())
        metrics = {
            "perplexity": math.exp(min(loss, 100.0)),
            "accuracy": hits.sum() / max(1.0, places.sum()),
        }
        if pairs is not None:
            count = max(1.0, pairs.sum())
            metrics[f"{self.objective}_accuracy"] = pair_hits.sum() / count
            loss += pair_losses.sum() / count
        return {"loss": loss} | metrics

    def measure(self, model: keras.Model, columns: PairColumns) -> dict:
        """The block of one split in results.json."""
        started = time.perf_counter()
        scores = list(self.scores(model, columns).values())
        metrics = self.metrics(*scores)
        low, high = bootstrap(
            lambda *arrays: list(self.metrics(*arrays).values()), scores
        )
        return {
            "samples": len(columns),
            "metrics": {name: float(value) for name, value in metrics.items()},
            "intervals": {
                name: [float(low[i]), float(high[i])] for i, name in enumerate(metrics)
            },
            "seconds": time.perf_counter() - started,
        }

    def validate(self, model: keras.Model, columns: PairColumns) -> Verdict:
        """Loss, perplexity and accuracies on held-out text, and filled-in sentences."""
        scores = self.scores(model, columns)
        metrics = {k: float(v) for k, v in self.metrics(*scores.values()).items()}

        def texts():
            rows = self.cloze(columns.corpus, SAMPLES)
            filled = self.fill(model, [row["text"] for row in rows])
            return {"samples": cloze_table(rows, filled)}

        return Verdict(metrics, texts=texts)

    def cloze(self, corpus: Corpus, count: int) -> list[dict]:
        """Sentences of a corpus with a word hidden, evenly chosen.

        Returns:
            Dicts of `text`, where mask tokens stand, and `target`, the sentence.
        """
        lengths = np.diff(corpus.sentences)
        most = self.max_length - self.tokenizer.single.added
        fit = np.flatnonzero((lengths >= 8) & (lengths <= min(most, 64)))
        rows = []
        for number in fit[
            np.linspace(0, len(fit) - 1, min(4 * count, len(fit)), dtype=int)
        ]:
            ids = corpus.token_ids[
                corpus.sentences[number] : corpus.sentences[number + 1]
            ]
            ids = ids.astype(np.int32)
            inside = self.masking.inside[ids]
            alone = ~inside & ~np.append(inside[1:], False)
            special = self.masking.special[ids]
            places = np.flatnonzero(alone & ~special)
            if special.any() or not len(places):
                continue
            hidden = ids.copy()
            hidden[places[[len(places) // 3, 2 * len(places) // 3]]] = (
                self.masking.mask_id
            )
            (text,) = self.tokenizer.decode([hidden], skip_special_tokens=False)
            rows.append({"text": text, "target": self.tokenizer.decode([ids])[0]})
        return rows[:: max(1, len(rows) // count)][:count]

    def fill(self, model: keras.Model, texts: Sequence[str]) -> list[dict]:
        """Fills the mask tokens of texts in.

        Returns:
            A dict a text: `text` as given; `prediction`, the text filled in; `score`,
            the mean probability of what was filled in; `tokens` and `scores`: for each
            place the likeliest tokens and their probabilities.
        """
        tokenizer, answers = self.tokenizer, []
        names = [tensor.name for tensor in model.inputs]
        mask = tokenizer.tokens[tokenizer.mask_id]
        for start in range(0, len(texts), EVALUATION_ROWS):
            part = list(texts[start : start + EVALUATION_ROWS])
            rows = tokenizer.encode(part, True, self.max_length, parse_special=True)
            batch = _dense(rows, tokenizer)
            found = [np.flatnonzero(np.array(row) == tokenizer.mask_id) for row in rows]
            width = max(1, *map(len, found))
            batch["mask_places"] = np.zeros((len(rows), width), np.int32)
            for row, places in enumerate(found):
                batch["mask_places"][row, : len(places)] = places
            outputs = model.predict_on_batch({name: batch[name] for name in names})
            shares = _softmax(outputs["masked_lm"])
            shares[..., list(tokenizer.special_ids)] = 0.0
            best = np.argsort(-shares, axis=-1, kind="stable")[..., :BEST]
            for row, text in enumerate(part):
                ids = best[row, : len(found[row])]
                tokens = [[tokenizer.tokens[i] for i in place] for place in ids]
                scores = np.take_along_axis(shares[row, : len(ids)], ids, -1)
                pieces = text.split(mask)
                words = [place[0].removeprefix("##") for place in tokens]
                words += [mask] * (len(pieces) - 1 - len(words)) + [""]
                filled = "".join(a + b for a, b in zip(pieces, words, strict=True))
                answers.append(
                    {
                        "text": text,
                        "prediction": filled,
                        "score": float(scores[:, 0].mean()) if len(ids) else 0.0,
                        "tokens": tokens,
                        "scores": scores.tolist(),
                    }
                )
        return answers

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights."""
        settings = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("tokenizer", "encoder")
        }
        return {"task": self.name} | settings | {"encoder": self.encoder.to_dict()}

    @classmethod
    def from_config(cls, config: dict, tokenizer: Tokenizer) -> "MaskedLM":
        """The task of a checkpoint's config.json."""
        settings = {name: value for name, value in config.items() if name != "task"}
        settings["encoder"] = EncoderConfig(**settings["encoder"])
        return cls(tokenizer, **settings)


def _cross_entropy(logits, targets, smooth: float = 0.0):
    logits = ops.cast(logits, "float32")
    total = ops.logsumexp(logits, axis=-1)
    picked = ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if smooth:
        picked = (1.0 - smooth) * picked + smooth * ops.mean(logits, axis=-1)
    return total - picked


def _hits(logits, targets):
    return ops.cast(ops.cast(ops.argmax(logits, -1), "int32") == targets, "float32")


def _judged(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and hits."""
    logits = np.asarray(logits, np.float32)
    highest = logits.max(-1)
    total = np.log(np.exp(logits - highest[..., None]).sum(-1)) + highest
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return total - picked, logits.argmax(-1) == targets


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _dense(rows: list[list[int]], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    length = max(1, *map(len, rows))
    ids = np.full((len(rows), length), tokenizer.pad_id, np.int32)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}


def write_report(
    directory: str | Path,
    task: MaskedLM,
    model: keras.Model,
    test: PairColumns,
    validation: PairColumns,
) -> dict:
    """Measures a model on held-out text and writes the `eval/` folder.

    Returns:
        What results.json holds.
    """
    results = {"task": task.name, "test": task.measure(model, test)}
    results["validation"] = task.measure(model, validation)
    rows = task.cloze(test.corpus, PREDICTIONS)
    answers = task.fill(model, [row["text"] for row in rows])
    lines = [row | answer for row, answer in zip(rows, answers, strict=True)]
    told = {
        "next_sentence": "Half of the pairs are a text and what follows it, half are "
        "of two documents.",
        "sentence_order": "Half of the pairs are swapped.",
    }
    parts = [
        "# Evaluation",
        f"{len(test):,} rows of held-out text; {task.mask_rate:.0%} of the tokens are "
        "hidden, the same ones at every evaluation. perplexity and accuracy are those "
        "of hidden tokens; loss is in nats, of all objectives together. "
        + told.get(task.objective, ""),
        markdown_table(*results_table(results)),
        "Intervals are bootstrap percentiles over the rows.",
        "## Sentences with two words hidden",
        cloze_table(rows[:SHOWN], answers[:SHOWN]),
    ]
    report = "\n\n".join(parts) + "\n"
    return write_evaluation(directory, results, lines, report, {})


def cloze_table(rows: Sequence[dict], answers: Sequence[dict]) -> str:
    """Markdown: what `cloze` hid and `fill` answered."""
    cells = []
    for row, answer in zip(rows, answers, strict=True):
        places = (
            " ".join(f"{t} {s:.2f}" for t, s in zip(tokens[:3], scores, strict=False))
            for tokens, scores in zip(answer["tokens"], answer["scores"], strict=True)
        )
        texts = row["text"], row["target"], answer["prediction"], "; ".join(places)
        cells.append([markdown_cell(text, 120) for text in texts])
    return markdown_table(["text", "original", "filled in", "likeliest"], cells)
