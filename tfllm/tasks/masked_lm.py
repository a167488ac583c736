"""Pretraining of encoders: hidden words, and a second objective.

BERT's is whether a second text belongs to the first, ALBERT's in which order two stand,
and ELECTRA's which words are not those of the text but a small generator's guesses.
"""

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
from tfllm.data.sentence_pairs import PAIRED, PairColumns
from tfllm.evaluation.intervals import measured
from tfllm.evaluation.report import (
    markdown_cell,
    markdown_table,
    results_table,
    write_evaluation,
)
from tfllm.layers.fill_places import FillPlaces
from tfllm.layers.output_bias import OutputBias
from tfllm.models.encoder import (
    EncoderConfig,
    dense,
    encode,
    masked_lm_features,
    pool,
    token_inputs,
)
from tfllm.models.flags import ADAMW
from tfllm.tasks.task import Batch, Sums, Verdict
from tfllm.text import Tokenizer

TRAINING, JUDGING = 0, 1  # streams of random masks
BEST = 5  # answers for a hidden place
SAMPLES, SHOWN, PREDICTIONS = 8, 30, 200  # sentences in TensorBoard, report, file
EVALUATION_ROWS = 64
# How `recipes/pretrain_masked_lm.py` trains when no flag says otherwise.
RATES = {"tiny": 1e-3, "mini": 1e-3, "small": 7e-4, "base": 3e-4}
TEXT = {"tokenizer": "wordpiece", "vocabulary_size": 16_000, "min_frequency": 2}
USUAL = ADAMW | {"max_length": 256, "epochs": 1, "batch_size": 16, "dropout": 0.0}


@dataclass
class MaskedLM:
    """Words are hidden and guessed; of two segments it is told if they go together.

    Args:
        tokenizer: Has mask, opening and separating tokens.
        encoder: Its shape, with a pooler where there is a second objective.
        max_length: Longest row in tokens; the encoder's longest when absent.
        objective: `next_sentence`, `sentence_order`, `replaced_tokens` or `none`.
        mask_rate: Share of the tokens that are hidden.
        whole_words: Whether all pieces of a word are hidden together.
        label_smoothing: Share of a hidden word's target spread over the vocabulary.
        seed: Of the masks.

    Raises:
        UserError: The tokenizer lacks a token.
    """

    tokenizer: Tokenizer
    encoder: EncoderConfig
    max_length: int | None = None
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
        self.max_length = self.max_length or self.encoder.max_length
        self.masking = Masking(self.tokenizer, self.mask_rate, self.whole_words)

    @property
    def pairs(self) -> bool:
        """Whether rows have two segments that are judged."""
        return self.objective in PAIRED

    def build_model(self, dtype: str | None = None) -> keras.Model:
        """Encoder and heads, with BERT's names of layers.

        Returns:
            A model from int32 `token_ids`, `padding_mask`, `segment_ids` `[rows,
            length]` and `mask_places` `[rows, P]` to float32 logits: `masked_lm`
            `[rows, P, vocabulary]`, and, for pairs, `next_sentence` `[rows, 2]`. With
            `replaced_tokens` the masked words are the generator's; the model takes
            `draws` too, float32 `[rows, P]` in [0, 1), and returns its guesses
            `sampled` int32 `[rows, P]` and `replaced` `[rows, length]`, the logits of
            the encoder for what is not the text's.
        """
        config = self.encoder
        if self.objective == "replaced_tokens":
            with keras.name_scope("generator"):
                generator = self._masked_lm(_smaller(config), dtype)[0]
            inputs = {tensor.name: tensor for tensor in generator.inputs}
            outputs = {"masked_lm": generator(inputs)}
            inputs["draws"] = keras.Input((None,), dtype="float32", name="draws")
            ids, outputs["sampled"] = FillPlaces(name="fill_places", dtype="float32")(
                outputs["masked_lm"],
                inputs["draws"],
                inputs["token_ids"],
                inputs["mask_places"],
            )
            hidden = encode(config, inputs | {"token_ids": ids}, dtype)
            logits = dense(config, 1, "replaced", dtype="float32")(hidden)
            outputs["replaced"] = logits[..., 0]
            return keras.Model(inputs, outputs, name="masked_lm")
        model, hidden = self._masked_lm(config, dtype)
        outputs = {"masked_lm": model.output}
        if self.pairs:
            pooled = pool(config, hidden, dtype)
            head = dense(config, 2, "next_sentence", dtype="float32")
            outputs["next_sentence"] = head(pooled)
        return keras.Model(model.input, outputs, name="masked_lm")

    def _masked_lm(self, config, dtype):
        inputs = token_inputs(config.num_segments > 1)
        hidden = encode(config, inputs, dtype)
        embedding = keras.Model(inputs, hidden).get_layer("token_embedding")
        inputs["mask_places"] = keras.Input((None,), dtype="int32", name="mask_places")
        picked = ops.take_along_axis(hidden, inputs["mask_places"][..., None], axis=1)
        features = masked_lm_features(config, picked, dtype)
        logits = embedding(features, reverse=True)
        logits = OutputBias(name="masked_lm_bias")(logits)
        return keras.Model(inputs, logits, name="generator"), hidden

    def pad_values(self) -> dict[str, int]:
        """What `PairColumns` does not know already: nothing."""
        return {}

    def transform(self, batch: Batch, step: int, part: int, stream=TRAINING) -> Batch:
        """Hides words: others in every step, the same ones in the same step."""
        batch, key = dict(batch), (self.seed, stream, step, part)
        hidden = self.masking.hide(
            batch["token_ids"],
            batch["padding_mask"],
            key,
            batch.pop("word_starts", None),
        )
        batch["token_ids"], batch["mask_places"] = hidden.token_ids, hidden.places
        batch["mask_targets"], batch["mask_weights"] = hidden.targets, hidden.weights
        if self.objective == "replaced_tokens":
            draws = np.random.default_rng([*key, 1]).random(hidden.places.shape)
            batch["draws"] = draws.astype(np.float32)
        return batch

    def _weights(self, batch: Batch) -> dict[str, Any]:
        weights = {"masked_lm": batch["mask_weights"]}
        if self.pairs:
            weights["next_sentence"] = batch["next_sentence_weight"]
        elif self.objective == "replaced_tokens":
            weights["replaced_tokens"] = ops.cast(batch["padding_mask"], "float32")
        return weights

    def _judge(self, outputs: Any, batch: Batch, smooth: float = 0.0) -> dict:
        """Loss and hit of every target, by objective; shaped as their weights."""
        targets = batch["mask_targets"]
        found = {"masked_lm": _cross_entropy(outputs["masked_lm"], targets, smooth)}
        if self.pairs:
            found["next_sentence"] = _cross_entropy(
                outputs["next_sentence"], batch["next_sentence"]
            )
        elif self.objective == "replaced_tokens":
            logits = ops.cast(outputs["replaced"], "float32")
            wrong = ops.cast(outputs["sampled"] != targets, "float32")
            wrong *= batch["mask_weights"]  # places without a weight are all at 0
            places = ops.one_hot(batch["mask_places"], ops.shape(logits)[1])
            label = ops.sum(places * wrong[..., None], axis=1)
            hits = ops.cast((logits > 0) == (label > 0), "float32")
            found["replaced_tokens"] = ops.softplus(logits) - label * logits, hits
        return found

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Hidden places, and pairs or tokens."""
        return {name: ops.sum(w) for name, w in self._weights(batch).items()}

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Cross-entropies."""
        weights = self._weights(batch)
        judged = self._judge(outputs, batch, self.label_smoothing)
        return {name: ops.sum(judged[name][0] * weights[name]) for name in judged}

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Accuracies of training."""
        weights, judged = self._weights(batch), self._judge(outputs, batch)
        return {
            self._accuracy(name): (
                ops.sum(hits * weights[name]),
                ops.sum(weights[name]),
            )
            for name, (_, hits) in judged.items()
        }

    def _accuracy(self, name: str) -> str:
        return "accuracy" if name == "masked_lm" else f"{self.objective}_accuracy"

    def scores(self, model: keras.Model, columns: PairColumns) -> dict[str, np.ndarray]:
        """What the model does on held-out rows, each with the same masks every time.

        Returns:
            For each objective float64 `[3, N]`: of each row the number of targets, and
            the sums of their losses and of their hits.
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
        found, names = {}, [tensor.name for tensor in model.inputs]
        for batch in steps:
            outputs = model.predict_on_batch({name: batch[name] for name in names})
            judged, real = self._judge(outputs, batch), batch["weight"] > 0
            for name, weights in self._weights(batch).items():
                weights = np.asarray(weights, np.float64)
                losses, hits = (np.asarray(part) * weights for part in judged[name])
                rows = [part.reshape(len(real), -1).sum(1) for part in (losses, hits)]
                rows = [weights.reshape(len(real), -1).sum(1), *rows]
                found.setdefault(name, []).append(np.array(rows)[:, real])
        return {name: np.concatenate(parts, 1) for name, parts in found.items()}

    def metrics(self, scores: dict[str, np.ndarray]) -> dict[str, float]:
        """Numbers by name from what `scores` returns."""
        loss, metrics = 0.0, {}
        for name, rows in scores.items():
            count, losses, hits = rows.sum(1)
            mean = losses / max(1.0, count)
            if name == "masked_lm":
                metrics["perplexity"] = math.exp(min(mean, 100.0))
            metrics[self._accuracy(name)] = hits / max(1.0, count)
            loss += mean
        return {"loss": float(loss)} | {k: float(v) for k, v in metrics.items()}

    def measure(self, model: keras.Model, columns: PairColumns) -> dict:
        """The block of one split in results.json."""
        started = time.perf_counter()
        scores = self.scores(model, columns)

        def metrics(*rows):
            return self.metrics({k: r.T for k, r in zip(scores, rows, strict=True)})

        arrays = [rows.T for rows in scores.values()]
        return measured(metrics, arrays, len(columns), started)

    def validate(self, model: keras.Model, columns: PairColumns) -> Verdict:
        """Loss, perplexity and accuracies on held-out text, and filled-in sentences."""
        metrics = self.metrics(self.scores(model, columns))

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
            batch["draws"] = np.zeros((len(rows), width), np.float32)
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
    """Losses and hits."""
    logits = ops.cast(logits, "float32")
    picked = ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if smooth:
        picked = (1.0 - smooth) * picked + smooth * ops.mean(logits, axis=-1)
    hits = ops.cast(ops.argmax(logits, -1), "int32") == targets
    return ops.logsumexp(logits, axis=-1) - picked, ops.cast(hits, "float32")


def _smaller(config: EncoderConfig) -> EncoderConfig:
    """The generator's shape: a fourth as wide (Clark et al., 2020, section 3.2)."""
    heads = max(1, config.num_heads // 4)
    size = config.hidden_size * heads // config.num_heads
    return dataclasses.replace(
        config, hidden_size=size, num_heads=heads, intermediate_size=4 * size
    )


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


def training_defaults(size: str, pretrained: bool = False) -> dict:
    """Returns the flags that suit an encoder, by flag name.

    Args:
        size: Of the encoder, one of `models.encoder.SIZES`.
        pretrained: Whether it was trained before: it brings its tokenizer along.
    """
    if not pretrained:
        return USUAL | TEXT | {"learning_rate": RATES[size], "copies": 16}
    none = dict.fromkeys(TEXT)
    return USUAL | none | {"learning_rate": RATES["base"], "copies": 4}


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
        "replaced_tokens": "A small generator guesses these; replaced_tokens_accuracy "
        "is how well the encoder tells which words of a text are guesses.",
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
