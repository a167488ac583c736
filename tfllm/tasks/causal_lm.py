"""Decoders learn the next token of running text; chats and preferences build on it."""

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

from tfllm.data.batching import BatchPlan
from tfllm.evaluation.intervals import measured
from tfllm.evaluation.report import (
    markdown_cell,
    markdown_table,
    results_table,
    write_evaluation,
)
from tfllm.generation.generator import Generator
from tfllm.layers.lora import add_adapters
from tfllm.layers.next_token_loss import NextTokenLoss
from tfllm.models.decoder import DecoderConfig, make_layers, run
from tfllm.models.encoder import token_inputs
from tfllm.tasks.task import Batch, Sums, Verdict
from tfllm.text import Tokenizer

EVALUATION_TOKENS = 8192  # of a batch
SAMPLES, SHOWN, PREDICTIONS = 6, 20, 96  # answers in TensorBoard, report, file
TOGETHER = 16  # answers made at a time
LONGEST_ANSWER = 64  # tokens


@dataclass
class CausalLM:
    """A decoder that is trained on the token after each token.

    Args:
        tokenizer: Its tokenizer.
        decoder: Its shape.
        max_length: Longest row in training, in tokens.
        lora: What `layers.lora.add_adapters` takes, or None to train all weights.
    """

    tokenizer: Tokenizer
    decoder: DecoderConfig
    max_length: int
    lora: dict | None = None

    name = "causal_lm"
    monitor = "loss"
    maximize = False
    packs = False
    """Whether rows may hold several texts, which do not see each other."""
    bounded = ()
    """Metrics whose interval is logged at each evaluation."""
    rendered = False
    """Whether a prompt may hold special tokens, as one of a chat template does."""
    about = "Text that training has not seen; perplexity and loss are those of a token."

    def __post_init__(self):
        self._generator = None

    def build_model(self, dtype: str | None = None) -> keras.Model:
        """A decoder that ends in its losses: all logits at once are never needed.

        Returns:
            A model from int32 `token_ids`, `padding_mask`, `targets` and float32
            `target_weights` (and, for packed rows, `sequence_ids`, `positions`), all
            `[rows, length]`, to the losses of the targets in nats, float32 `[rows,
            length]`. Its layers are those of `models.decoder.decoder`.
        """
        inputs = token_inputs(packed=self.packs)
        layers = make_layers(self.decoder, dtype)
        hidden = run(self.decoder, layers, **inputs)
        for name, kind in (("targets", "int32"), ("target_weights", "float32")):
            inputs[name] = keras.Input((None,), dtype=kind, name=name)
        losses = NextTokenLoss(layers["token_embedding"], dtype=dtype, name="loss")(
            hidden, inputs["targets"], inputs["target_weights"]
        )
        model = keras.Model(inputs, losses, name=self.name)
        if self.lora:
            add_adapters(model, head=(), **self.lora)
        return model

    def pad_values(self) -> dict[str, int]:
        """Fills rows that are too short."""
        return {"token_ids": self.tokenizer.pad_id or 0}

    def transform(self, batch: Batch, step: int, part: int) -> Batch:
        """A row with one text says so."""
        if self.packs and "sequence_ids" not in batch:
            mask = batch["padding_mask"]
            places = np.arange(mask.shape[1], dtype=np.int32)
            batch |= {"sequence_ids": mask, "positions": places * mask}
        return batch

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Tokens to be guessed."""
        return {"loss": ops.sum(batch["target_weights"])}

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Their cross-entropies."""
        return {"loss": ops.sum(outputs * batch["target_weights"])}

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Nothing beside the loss."""
        return {}

    def scores(self, model: keras.Model, columns: Any) -> np.ndarray:
        """What the model thinks of held-out rows.

        Returns:
            float64 `[K, N]`: what `row_sums` gives, in the order of the columns.
        """
        plan = BatchPlan(
            columns.lengths,
            tokens_per_batch=max(EVALUATION_TOKENS, self.max_length),
            max_length=self.max_length,
            shuffle=False,
        )
        found = None
        for step in range(plan.steps_per_epoch):
            (micro,) = plan.step(step)
            batch = self.transform(columns.gather(micro, self.pad_values()), step, 0)
            sums = self.row_sums(self.losses(model, batch), batch)
            if found is None:
                found = np.zeros((len(sums), len(columns)))
            found[:, micro.indices] = sums[:, micro.rows]
        return found

    def losses(self, model: keras.Model, batch: Batch) -> np.ndarray:
        """The model's losses `[rows, length]` on a batch."""
        return model.predict_on_batch({t.name: batch[t.name] for t in model.inputs})

    def row_sums(self, losses: np.ndarray, batch: Batch) -> np.ndarray:
        """Sums of losses and numbers of targets, `[2, rows]`."""
        weights = np.asarray(batch["target_weights"], np.float64)
        return np.stack([(losses * weights).sum(1), weights.sum(1)])

    def metrics(self, columns: Any, losses, counts) -> dict[str, float]:
        """Numbers by name from rows of what `scores` returns."""
        loss = losses.sum() / max(1.0, counts.sum())
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 100.0))}
        if size := getattr(columns, "bytes_a_token", None):
            metrics["bits_per_byte"] = loss / math.log(2) / size
        return metrics

    def measure(self, model: keras.Model, columns: Any) -> dict:
        """The block of one split in results.json."""
        started, scores = time.perf_counter(), self.scores(model, columns)

        def metrics(*rows):
            return self.metrics(columns, *rows)

        return measured(metrics, scores, len(columns), started)

    def validate(self, model: keras.Model, columns: Any) -> Verdict:
        """Metrics on held-out rows, and what the model writes."""
        block = self.measure(model, columns)
        metrics, intervals = block["metrics"], block["intervals"]
        for name in self.bounded:
            bounds = zip(("low", "high"), intervals[name], strict=True)
            metrics |= {f"{name}_{end}": bound for end, bound in bounds}

        def texts():
            rows = self.answers(model, columns, SAMPLES, temperature=0.8, seed=0)
            return {"samples": answers_table(rows)}

        return Verdict(metrics, texts=texts)

    def answers(self, model, columns: Any, count: int, **settings) -> list[dict]:
        """How the model goes on with prompts of held-out rows.

        Returns:
            Dicts of `text`, the prompt; `target`, what followed; `prediction`; `score`,
            the geometric mean of its tokens' probabilities.
        """
        prompt = max(1, self.max_length // 4)
        rows = columns.examples(self.tokenizer, count, min(prompt, 32))
        if self._generator is None:
            self._generator = Generator(model, self.decoder, self.tokenizer)
        else:
            self._generator.refresh(model)
        made = []
        for start in range(0, len(rows), TOGETHER):
            made += self._generator.generate(
                [row["text"] for row in rows[start : start + TOGETHER]],
                max_new_tokens=min(LONGEST_ANSWER, self.max_length // 2),
                log_probabilities=True,
                truncate=True,
                parse_special=self.rendered,
                **settings,
            )
        for row, answer in zip(rows, made, strict=True):
            row["prediction"] = answer.text
            mean = np.mean(answer.log_probabilities or [0.0])
            row["score"] = float(f"{math.exp(mean):.6g}")
        return rows

    def to_config(self) -> dict:
        """Everything but the tokenizer and the weights."""
        settings = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("tokenizer", "decoder")
        }
        return {"task": self.name} | settings | {"decoder": self.decoder.to_dict()}

    @classmethod
    def from_config(cls, config: dict, tokenizer: Tokenizer) -> "CausalLM":
        """The task of a checkpoint's config.json."""
        settings = {name: value for name, value in config.items() if name != "task"}
        settings["decoder"] = DecoderConfig(**settings["decoder"])
        return cls(tokenizer, **settings)


def write_report(
    directory: str | Path,
    task: CausalLM,
    model: keras.Model,
    test: Any,
    validation: Any,
    start: keras.Model | None = None,
) -> dict:
    """Measures a model on held-out rows and writes the `eval/` folder.

    Args:
        directory: The folder.
        task: Knows the metrics.
        model: The trained model.
        test, validation: Columns.
        start: The model before training, for comparison.

    Returns:
        What results.json holds.
    """
    results = {"task": task.name, "test": task.measure(model, test)}
    if start is not None:
        results["baseline"] = {"name": "before training"} | task.measure(start, test)
    results["validation"] = task.measure(model, validation)
    rows = task.answers(model, test, PREDICTIONS)
    parts = [
        "# Evaluation",
        f"{len(test):,} rows. {task.about}",
        markdown_table(*results_table(results)),
        "Intervals are bootstrap percentiles over the rows.",
        "## What the model writes (the likeliest token each time)",
        answers_table(rows[:SHOWN]),
    ]
    return write_evaluation(directory, results, rows, "\n\n".join(parts) + "\n", {})


def answers_table(rows: Sequence[dict]) -> str:
    """Markdown: prompts, how they went on, and how the model goes on."""
    names = ("text", "target", "prediction")
    cells = [[markdown_cell(row[name], 300) for name in names] for row in rows]
    return markdown_table(["prompt", "went on", "the model"], cells)
