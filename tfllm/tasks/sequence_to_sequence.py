"""From one text to another: translation and summaries, by an encoder-decoder."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import ops

from tfllm.core.console import progress
from tfllm.data.parallel import ParallelColumns, cut, ended, start_token
from tfllm.evaluation import figures
from tfllm.evaluation.text import (
    METRICS,
    TextSplit,
    examples_table,
    lead_sentence,
    text_scores,
    write_text_report,
)
from tfllm.generation.generator import Generation
from tfllm.generation.translator import Translator
from tfllm.layers.pointer import pointed_losses
from tfllm.models.decoder import layers_of
from tfllm.models.encoder_decoder import (
    EncoderDecoderConfig,
    make_layers,
    pair_inputs,
    run_pairs,
)
from tfllm.tasks.next_token import NextToken, with_losses
from tfllm.tasks.task import Verdict
from tfllm.text import Tokenizer
from tfllm.text.sampling import sample

VALIDATED = 256  # rows that are answered at each evaluation, greedily
TOGETHER = 64  # answers made at a time
SAMPLES, DRAWN = 6, 4  # in TensorBoard, and pictures in the report


@dataclass
class SequenceToSequence(NextToken):
    """An encoder-decoder that is trained on the next token of each target.

    Args:
        tokenizer: Of sources, and of targets where `target_tokenizer` is None.
        encoder_decoder: The model's shape.
        max_source: Longest source in tokens; a longer one loses its end.
        max_target: Longest target in training, and longest answer.
        target_tokenizer: Of targets.
        label_smoothing: See `NextTokenLoss`.
        tokenize: How sacreBLEU cuts texts.
        beams: Of beam search; 1 takes the likeliest token each time.
        length_penalty: See `generation.beam_tf.Beams`.
        frequency_penalty: See `Generator.generate`.
    """

    tokenizer: Tokenizer
    encoder_decoder: EncoderDecoderConfig
    max_source: int
    max_target: int
    target_tokenizer: Tokenizer | None = None
    label_smoothing: float = 0.0
    tokenize: str = "13a"
    beams: int = 4
    length_penalty: float = 1.0
    frequency_penalty: float = 0.0

    shape = "encoder_decoder"
    maximize = True

    def __post_init__(self):
        self._translator = self._model = None

    @property
    def max_length(self) -> int:
        """Longest side."""
        return max(self.max_source, self.max_target)

    @property
    def answers_in(self) -> Tokenizer:
        """The tokenizer of targets."""
        return self.target_tokenizer or self.tokenizer

    def build_model(self, dtype: str | None = None) -> keras.Model:
        """An encoder-decoder that ends in its losses.

        Returns:
            A model from what `pair_inputs` names and what `with_losses` adds to the
            losses of the targets in nats, float32 `[rows, length]`.
        """
        inputs, layers = pair_inputs(), make_layers(self.encoder_decoder, dtype)
        hidden, ways = run_pairs(self.encoder_decoder, layers, inputs)
        embedding, smoothing = layers["token_embedding"], self.label_smoothing
        losses = with_losses(inputs, hidden, embedding, dtype, smoothing)
        if ways is not None:
            pair = inputs["source_ids"], inputs["targets"]
            losses = pointed_losses(losses, ways, *pair)
        return keras.Model(inputs, losses, name=self.name)

    def pad_values(self) -> dict[str, int]:
        """Fills rows that are too short."""
        sides = {"source_ids": self.tokenizer, "token_ids": self.answers_in}
        return {name: side.pad_id or 0 for name, side in sides.items()}

    def columns(
        self,
        rows: Sequence[Mapping],
        dropout: float = 0.0,
        copies: int = 1,
        seed=0,
        leads: bool = False,
    ) -> tuple[ParallelColumns, np.ndarray]:
        """Encodes rows of `text` and `target`.

        Args:
            rows: Dicts.
            dropout: See `text.sampling`.
            copies: How often each row stands in the columns: once as it is, else with
                dropout.
            seed: Of the dropout.
            leads: Whether the first sentences of the texts follow as targets, too.

        Returns:
            Columns, and the longer side of each row in tokens before it is cut.
        """
        sides = [
            (self.tokenizer, self.max_source, "text", [row["text"] for row in rows]),
            (self.answers_in, self.max_target, "target", [r["target"] for r in rows]),
        ]
        if leads:
            first = [lead_sentence(text) for text in sides[0][-1]]
            sides.append((self.answers_in, self.max_target, "lead", first))
        ids, sizes = [], []
        for tokenizer, most, name, texts in sides:
            end = [tokenizer.eos_id]
            found = ended(tokenizer, texts)
            sizes.append([len(row) for row in found])
            for copy in range(1, copies):
                drawn = sample(tokenizer, texts, dropout, f"{seed} {copy} {name}")
                found += [row + end for row in drawn]
            ids.append(cut(found, most))
        most = self.max_source, self.max_target
        start, rows = start_token(self.answers_in), [*rows] * copies
        columns = ParallelColumns(rows, *ids[:2], start, most, *ids[2:])
        return columns, np.max(sizes[:2], axis=0)

    def translator(self, model: keras.Model) -> Translator:
        """What answers with a model."""
        if self._model is not model:
            self._model = model
            self._translator = Translator(
                *(model, self.encoder_decoder, self.answers_in, self.tokenizer),
                max_source=self.max_source,
            )
        return self._translator

    def answers(
        self, model: keras.Model, texts: Sequence[str], **settings
    ) -> list[Generation]:
        """Answers to texts, by beam search unless `settings` say otherwise."""
        own = {
            "max_new_tokens": self.max_target,
            "beams": self.beams,
            "length_penalty": self.length_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        settings = own | settings
        translator, made = self.translator(model), [None] * len(texts)
        if settings["beams"] == 1:
            settings["log_probabilities"] = True
        # Texts of one length stand together: a batch goes on to its longest answer.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with progress("answering", len(order)) as advance:
            for begin in range(0, len(order), TOGETHER):
                part = order[begin : begin + TOGETHER]
                found = translator.generate([texts[i] for i in part], **settings)
                for i, answer in zip(part, found, strict=True):
                    made[i] = answer
                advance(len(part))
        return made

    def find(self, model: keras.Model, texts: Sequence[str]) -> list[dict]:
        """Answers to texts, as predictions.jsonl has them."""
        made = self.answers(model, texts)
        return [
            {"text": text, "prediction": answer.text, "score": self.sureness(answer)}
            for text, answer in zip(texts, made, strict=True)
        ]

    def split(
        self, model: keras.Model, rows: Sequence[Mapping], **settings
    ) -> TextSplit:
        """Answers to rows, beside what they should be."""
        started = time.perf_counter()
        texts = [row["text"] for row in rows]
        made = self.answers(model, texts, **settings)
        return TextSplit(
            texts,
            [row["target"] for row in rows],
            [answer.text for answer in made],
            [self.sureness(answer) for answer in made],
            time.perf_counter() - started,
        )

    def sureness(self, answer: Generation) -> float:
        """The geometric mean of the probabilities of an answer's tokens."""
        size = max(1, len(answer.token_ids))
        if answer.score is None:
            return math.exp(sum(answer.log_probabilities) / size)
        return math.exp(answer.score * size ** (self.length_penalty - 1))

    def validate(self, model: keras.Model, columns: ParallelColumns) -> Verdict:
        """Loss, and what greedy answers score."""
        rows = columns.rows[:VALIDATED]
        found = self.split(model, rows, beams=1)
        scores = text_scores(
            METRICS[self.name], found.targets, found.predictions, self.tokenize
        )
        metrics = {n: float(v[0]) for n, v in scores(np.ones((1, len(rows)))).items()}

        def texts():
            shown = zip(rows[:SAMPLES], found.predictions, strict=False)
            table = [{**row, "prediction": made} for row, made in shown]
            return {"samples": examples_table(table)}

        def pictures():
            drawn = self.attentions(model, found, 2)
            return {name: figures.pixels(figure) for name, figure in drawn.items()}

        return Verdict(
            metrics | self.metrics(columns, *self.scores(model, columns)),
            pictures,
            texts,
        )

    def attentions(self, model: keras.Model, found: TextSplit, count: int) -> dict:
        """`attention` of the first rows that have an answer, by name."""
        pairs = zip(found.texts, found.predictions, strict=True)
        chosen = [pair for pair in pairs if pair[1].strip()][:count]
        drawn = (self.attention(model, *pair) for pair in chosen)
        return {f"attention_{i}": figure for i, figure in enumerate(drawn, 1)}

    def attention(self, model: keras.Model, text: str, answer: str):
        """Draws where the last block looks in the source, the mean of its heads."""
        (source,) = cut(ended(self.tokenizer, [text]), self.max_source)
        (made,) = cut(ended(self.answers_in, [answer]), self.max_target)
        ids = {"source_ids": source, "token_ids": [start_token(self.answers_in), *made]}
        arrays = {name: np.array([row], "int32") for name, row in ids.items()}
        arrays["token_ids"] = arrays["token_ids"][:, :-1]
        for mask, of in (("source_mask", "source_ids"), ("padding_mask", "token_ids")):
            arrays[mask] = np.ones_like(arrays[of])
        config = self.encoder_decoder
        last = config.decoder_layers - 1
        shares, _ = run_pairs(config, layers_of(model), arrays, shares=last)
        shares = ops.convert_to_numpy(shares)[0].mean(0)
        names = (
            [side.tokens[i] for i in row]
            for side, row in ((self.tokenizer, source), (self.answers_in, made))
        )
        return figures.attention_figure(shares, *names)

    @classmethod
    def from_config(
        cls, config: dict, tokenizer: Tokenizer, target_tokenizer: Tokenizer | None
    ) -> "SequenceToSequence":
        """The task of a checkpoint's config.json."""
        settings = {name: value for name, value in config.items() if name != "task"}
        shape = EncoderDecoderConfig(**settings.pop("encoder_decoder"))
        return cls(tokenizer, shape, target_tokenizer=target_tokenizer, **settings)


class Translation(SequenceToSequence):
    """Judged by BLEU."""

    name, monitor = "translation", "bleu"


class Summarization(SequenceToSequence):
    """Judged by ROUGE."""

    name, monitor = "summarization", "rougeL"


TASKS = {kind.name: kind for kind in (Translation, Summarization)}


def write_report(
    directory: str | Path,
    task: SequenceToSequence,
    model: keras.Model,
    test: ParallelColumns,
    validation: ParallelColumns | None = None,
    **options,
) -> dict:
    """Measures a model on held-out rows and writes the `eval/` folder.

    Args:
        directory: The folder.
        task: Knows how answers are made.
        model: The trained model.
        test, validation: Columns.
        **options: `leaked` and `other` of `write_text_report`.

    Returns:
        What results.json holds.
    """
    parts = {"test": test} | ({"validation": validation} if validation else {})
    splits = {name: task.split(model, part.rows) for name, part in parts.items()}
    drawn = task.attentions(model, splits["test"], DRAWN)
    how = f"Beam search of width {task.beams}" if task.beams > 1 else "Greedy answers"
    return write_text_report(
        directory,
        task=task.name,
        **splits,
        tokenize=task.tokenize,
        more={name: task.measure(model, part) for name, part in parts.items()},
        pictures={f"{name}.png": figure for name, figure in drawn.items()},
        about=f"{how}, at most {task.max_target} tokens.",
        **options,
    )
