"""Decoders learn the next token of running text; chats and preferences build on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfllm.evaluation.intervals import row_intervals
from tfllm.evaluation.report import (
    markdown_cell,
    markdown_table,
    results_table,
    write_evaluation,
)
from tfllm.evaluation.text import text_scores
from tfllm.generation.generator import Generator
from tfllm.layers.lora import add_adapters
from tfllm.models.decoder import DecoderConfig, make_layers, run
from tfllm.models.encoder import token_inputs
from tfllm.tasks.next_token import NextToken, with_losses
from tfllm.tasks.task import Batch, Verdict
from tfllm.text import Tokenizer

SAMPLES, SHOWN, PREDICTIONS = 6, 20, 96  # answers in TensorBoard, report, file
TOGETHER = 16  # answers made at a time
SHORT_ANSWER, LONGEST_ANSWER = 64, 256  # tokens: of a sample, and of one that is scored


@dataclass
class CausalLM(NextToken):
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

    name, shape = "causal_lm", "decoder"
    packs = False
    """Whether rows may hold several texts, which do not see each other."""
    bounded = ()
    """Metrics whose interval is logged at each evaluation."""
    rendered = False
    """Whether a prompt may hold special tokens, as one of a chat template does."""
    about = "Text that training has not seen; perplexity and loss are those of a token."
    answer_metrics = ()
    """Metrics by which answers are scored against what followed."""

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
        losses = with_losses(inputs, hidden, layers["token_embedding"], dtype)
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

    def answers(
        self, model, columns: Any, count: int, longest=SHORT_ANSWER, **settings
    ) -> list[dict]:
        """How the model goes on with prompts of held-out rows, by `longest` tokens.

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
                max_new_tokens=min(longest, self.max_length // 2),
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
    scored = task.answer_metrics
    longest = LONGEST_ANSWER if scored else SHORT_ANSWER
    rows = task.answers(model, test, PREDICTIONS, longest)
    about = f"{len(test):,} rows. {task.about}"
    if scored:
        columns = ([row[name] for row in rows] for name in ("target", "prediction"))
        found = row_intervals(text_scores(scored, *columns), len(rows), samples=500)
        for part, numbers in zip(("metrics", "intervals"), found, strict=True):
            results["test"][part] |= numbers
        about += (
            f" {', '.join(scored)}: the likeliest answers, of at most {longest} "
            f"tokens, to the first {len(rows)} rows."
        )
    parts = [
        "# Evaluation",
        about,
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
