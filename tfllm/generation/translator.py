"""`Translator`: text from text, by an encoder-decoder in the one decoding loop."""

from collections.abc import Sequence

import numpy as np

from tfllm.data.parallel import cut, ended, start_token
from tfllm.generation.generator import Generation, Generator, Score, aligned
from tfllm.models.encoder_decoder import EncoderDecoderConfig
from tfllm.text import Tokenizer


class Translator(Generator):
    """Answers and scores texts; see `Generator` for the settings of `generate`.

    It reads the model's weights where they are: training goes on under it.

    Args:
        model: What `encoder_decoder(config)` built, or a model with its layers.
        config: Its shape.
        tokenizer: Of answers.
        source_tokenizer: Of what is read; None for the same.
        max_source: Tokens of a source that are read; None for the model's own length.
    """

    def __init__(
        self,
        model,
        config: EncoderDecoderConfig,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer | None = None,
        *,
        max_source: int | None = None,
    ):
        super().__init__(model, config, tokenizer)
        self.source_tokenizer = source_tokenizer or tokenizer
        self.max_source = max_source or config.max_length
        self.prefix = [start_token(tokenizer)]

    @property
    def copies(self) -> bool:
        """Whether an unknown token in an answer becomes the word that it looks at.

        Byte-level BPE, the recipes' default, has none. Luong et al. (2015), Addressing
        the rare word problem in neural machine translation.
        """
        sides = self.tokenizer, self.source_tokenizer
        known = all(t.unk_id is not None for t in sides)
        return known and self.tokenizer.kind != "bpe"

    def generate(self, texts: Sequence[str], **settings) -> list[Generation]:
        """See `Generator.generate`; streams leave unknown tokens out."""
        answers = super().generate(texts, **settings)
        unknown = self.tokenizer.unk_id
        rows = [i for i, a in enumerate(answers) if unknown in a.token_ids]
        rows = [i for i in rows if answers[i].finish_reason != "stop_string"]
        if not rows or not self.copies:
            return answers
        texts, chosen = [texts[i] for i in rows], [answers[i] for i in rows]
        longest = max(len(answer.token_ids) for answer in chosen)
        ids = np.zeros((len(rows), longest), "int32")
        for row, answer in zip(ids, chosen, strict=True):
            row[: len(answer.token_ids)] = answer.token_ids
        _, _, source = self._prompts(texts, np.zeros(len(texts)), True, False)
        places = self.engine.network.origins(
            *source, ids, self.prefix[0], self.source_tokenizer.unk_id
        )
        _, offsets = self.source_tokenizer.encode_with_offsets(texts)
        for text, ends, row, answer in zip(
            texts, offsets, places.numpy(), chosen, strict=True
        ):
            words = [text[slice(*ends[p])] if p < len(ends) else "" for p in row]
            made = answer.token_ids
            (answer.text,) = self.tokenizer.decode([made], unknown=[words])
        return answers

    def _network(self, model, xla: bool):
        from tfllm.generation.pair_network_tf import PairNetwork

        return PairNetwork(self.config, model)

    def refresh(self, model) -> None:
        """Takes another model of the same shape."""
        from tfllm.generation.engine_tf import Engine

        self.engine = Engine(self._network(model, False))

    def score(self, texts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        """How likely targets are, their ends included, as answers to texts."""
        if not texts:
            return []
        job = self._job(self.engine, texts, {"max_new_tokens": 0}, {}, True)
        rows = self.tokenizer.encode(targets)
        rows = [[*self.prefix, *row, self.tokenizer.eos_id] for row in rows]
        slots = self.engine.rounded(len(rows), max(map(len, rows)), 0)[1]
        tokens = aligned(rows, len(rows), slots)
        return self._scores(job._replace(prompts=rows, tokens=tokens, slots=slots))

    def _prompts(self, texts, limits, truncate, parse_special) -> tuple:
        rows = ended(self.source_tokenizer, texts)
        over = [max(0, len(row) - self.max_source) for row in rows]
        rows = cut(rows, self.max_source)
        # As the export does: the last token is made and not read.
        np.minimum(limits, self.config.max_length, out=limits)
        longest = max(map(len, rows), default=1)
        ids = np.zeros((2, len(rows), longest), "int32")
        for i, row in enumerate(rows):
            ids[:, i, : len(row)] = row, [1] * len(row)
        return [self.prefix] * len(rows), over, (ids[0], ids[1])
