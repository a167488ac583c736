"""Generation as a graph: text in, text out, the whole loop inside."""

import tensorflow as tf

from tfllm.generation import loop_tf as loop
from tfllm.generation.beam_tf import Beams
from tfllm.generation.generator import Generator
from tfllm.generation.translator import Translator
from tfllm.text.chat import BREAK, ChatTemplate

NONE = -2  # a token that never occurs


class ServedGenerator(tf.Module):
    """Tokenizer, decoder and decoding loop in one.

    Args:
        generator: What generates.
        max_prompt: Tokens of a prompt that are read; a longer one loses its beginning.
        max_new_tokens: Most tokens that an answer may be asked to have.
        defaults: Settings of `text` and `chat`: `max_new_tokens`, `temperature`, ….
        chat: Makes `text` a user's turn, with this template.
        system: What the system says before it.
    """

    def __init__(
        self,
        generator: Generator,
        max_prompt: int,
        max_new_tokens: int,
        defaults: dict,
        chat: ChatTemplate | None = None,
        system: str | None = None,
    ):
        super().__init__()
        self._engine, self._chat = generator.engine, chat
        self._turn = chat.turn(system) if chat else ("", "")
        self.network = generator.engine.network
        self.tokenizer = generator.tokenizer.graph()
        self._max_prompt, self._max_new = max_prompt, max_new_tokens
        self._defaults = {"max_new_tokens": min(128, max_new_tokens), "seed": 0}
        self._defaults |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
        self._defaults |= {"repetition_penalty": 1.0} | defaults
        self._prefix = generator.prefix
        self._first = generator.first_token
        self._ends = generator.stop_tokens or [NONE]

    def text(self, text) -> dict:
        """An answer for each of `text` `[N]`, a user's words with a chat template."""
        return {"text": self._answers(*self._asked(text))["text"]}

    def chat(self, prompt) -> dict:
        """An answer for each conversation that was rendered already, `prompt` `[N]`"""
        return {"text": self._answers(prompt, True)["text"]}

    def generate(self, text, **settings) -> dict:
        """As `text`, by settings `[N]` each.

        Settings out of range are taken as the nearest ones in it.
        """
        return self._answers(*self._asked(text), settings)

    def score(self, text) -> dict:
        """Log-probabilities of texts `[N]`, and the number of tokens they sum up."""
        return self._scored(*self._prompts(self._ids(text, False)), tf.size(text))

    def _scored(self, prompts, lengths, count, context=()) -> dict:
        state = self._start(prompts, 1, scored=True, context=context)
        return {
            "log_probability": tf.reduce_sum(state.scores, 0)[:count],
            "tokens": tf.maximum(lengths - 1, 0)[:count],
        }

    def _asked(self, text):
        """Prompts, and whether special tokens written in them are such."""
        if self._chat is None:
            return text, False
        for pattern in self._chat.patterns:
            text = tf.strings.regex_replace(text, pattern, rf"\1{BREAK}\2")
        before, after = self._turn
        return tf.strings.join([before, text, after]), True

    def _ids(self, text, parse_special) -> tf.RaggedTensor:
        return self.tokenizer.encode(text, parse_special=parse_special)

    def _prompts(self, ids):
        """int32 `[N, slots]` with their ends aligned, and lengths `[N]`."""
        room = self._max_prompt - len(self._prefix)
        row = ids.value_rowids()
        before = tf.gather(ids.row_limits(), row) - tf.range(
            tf.size(ids.values, tf.int64), dtype=tf.int64
        )  # 1 at the last token of a text
        kept = before <= room
        row, before = tf.boolean_mask(row, kept), tf.boolean_mask(before, kept)
        values = tf.boolean_mask(ids.values, kept)
        sizes = tf.cast(tf.minimum(ids.row_lengths(), room), tf.int32)
        lengths = sizes + len(self._prefix)
        slots = loop.padded_length(tf.reduce_max(tf.maximum(lengths, 1), 0))
        rows = tf.size(lengths)
        if self._engine.xla:  # powers of two, so that few sizes are compiled
            rows, slots = self._power(rows), self._power(slots - 1) + 1
        index = tf.stack([tf.cast(row, tf.int32), slots - tf.cast(before, tf.int32)], 1)
        prompts = tf.tensor_scatter_nd_update(tf.fill([rows, slots], -1), index, values)
        if self._prefix:
            place = (
                slots - sizes[:, None] - len(self._prefix) + tf.range(len(self._prefix))
            )
            every = tf.repeat(tf.range(tf.size(sizes))[:, None], len(self._prefix), 1)
            prompts = tf.tensor_scatter_nd_update(
                prompts,
                tf.stack([every, place], 2),
                tf.repeat(tf.constant([self._prefix]), tf.size(sizes), 0),
            )
        last = prompts[:, -1:]
        last = tf.where(last < 0, self._first, last)
        return tf.concat([prompts[:, :-1], last], 1), lengths

    @staticmethod
    def _power(number):
        powers = 2 ** tf.range(20)
        return tf.reduce_min(tf.where(powers >= number, powers, 2**20))

    def _start(self, prompts, space, scored=False, context=()):
        def run(prompts):
            return loop.start(self.network, prompts, space, scored, context)

        if not self._engine.xla:
            return run(prompts)
        return tf.function(run, jit_compile=True, autograph=False)(prompts)

    def _answers(self, text, parse_special, given: dict | None = None) -> dict:
        count = tf.size(text)
        settings = {
            name: tf.fill([count], tf.cast(value, TYPES[name]))
            for name, value in self._defaults.items()
        } | (given or {})
        limit = tf.clip_by_value(settings["max_new_tokens"], 0, self._max_new)
        settings["max_new_tokens"] = limit
        prompts, context = self._read(text, parse_special)
        first, xla = tf.shape(prompts)[1], self._engine.xla
        space = self._max_new if xla else tf.maximum(tf.reduce_max(limit), 1)
        if xla:
            more = tf.shape(prompts)[0] - count
            settings = {k: tf.pad(v, [[0, more]]) for k, v in settings.items()}

        def run(prompts, settings):
            state = loop.start(self.network, prompts, space, context=context)
            state = loop.advance(self.network, state, settings, self._ends, space)
            return state.history

        if xla:
            run = tf.function(run, jit_compile=True, autograph=False)
        history = tf.transpose(run(prompts, settings))[:count]
        made = history[:, first:]
        ended = tf.reduce_any(made[:, :, None] == tf.constant(self._ends), [1, 2])
        return {
            "text": self._text(history, first, text),
            "tokens": made,
            "finish_reason": tf.where(ended, "stop", "length"),
        }

    def _read(self, text, parse_special):
        """Prompts, and what a `PairNetwork` makes of sources."""
        return self._prompts(self._ids(text, parse_special))[0], ()

    def _text(self, history, first, asked):
        """What the tokens from slot `first` on add to the text of those before."""

        def decoded(tokens):
            kept = tf.ragged.boolean_mask(tokens, tokens >= 0)
            return self.tokenizer.decode(kept)

        before = tf.strings.length(decoded(history[:, :first]))
        whole = decoded(history)
        return tf.strings.substr(whole, before, tf.strings.length(whole))


class ServedTranslator(ServedGenerator):
    """Both tokenizers, encoder-decoder and decoding loop in one.

    Args:
        translator: What answers.
        max_new_tokens: Most tokens of an answer.
        beams: How `text` is answered; None takes the likeliest token each time.
        frequency_penalty: Of these answers.
    """

    def __init__(
        self,
        translator: Translator,
        max_new_tokens: int,
        beams: Beams | None = None,
        frequency_penalty: float = 0.0,
    ):
        defaults = {"max_new_tokens": max_new_tokens}
        super().__init__(translator, max_new_tokens + 2, max_new_tokens, defaults)
        self.sources = self.tokenizer
        if translator.source_tokenizer is not translator.tokenizer:
            self.sources = translator.source_tokenizer.graph()
        self._max_source, self._beams = translator.max_source, beams
        self._penalty = frequency_penalty
        self._source_end = translator.source_tokenizer.eos_id
        self._end = translator.tokenizer.eos_id
        self._unknown = translator.source_tokenizer.unk_id
        self._copies = translator.copies

    def text(self, text) -> dict:
        """An answer for each of `text` `[N]`."""
        return {"text": self._decoded(self._best(text), text)}

    def score(self, text) -> dict:
        """How likely the answers to texts `[N]` are, and their number of tokens."""
        return self._given(text, self._best(text))

    def score_pair(self, text, target) -> dict:
        """How likely targets `[N]` are as answers to texts, their ends included."""
        ids = self.tokenizer.encode(target, max_length=self._max_new - 1)
        return self._given(text, self._ended(ids, self._end))

    def _best(self, text) -> tf.RaggedTensor:
        """Tokens of the answers, ends included."""
        prompts, context = self._read(text, False)
        limits = tf.fill([tf.size(text)], self._max_new)
        space, beams = self._max_new, self._beams
        if beams is not None:
            limits = tf.repeat(limits, beams.width, 0)
        settings = {"max_new_tokens": limits}
        if self._penalty:
            settings["frequency_penalty"] = tf.fill(tf.shape(limits), self._penalty)
        state = loop.start(self.network, prompts, space, False, context, beams)
        state = loop.advance(
            *(self.network, state, settings, self._ends, space), beams=beams
        )
        made = state.history if beams is None else state.beams[2][:, :, 0]
        made = tf.transpose(made)[:, 1:]
        return tf.ragged.boolean_mask(made, made >= 0)

    def _given(self, text, ids) -> dict:
        _, context = self._read(text, False)
        return self._scored(*self._prompts(ids), tf.size(text), context)

    def _text(self, history, first, asked):
        made = history[:, first:]
        return self._decoded(tf.ragged.boolean_mask(made, made >= 0), asked)

    def _decoded(self, ids, text):
        """Texts of answers; what is unknown in them comes from the source."""
        if not self._copies:
            return self.tokenizer.decode(ids)
        places = self.network.origins(
            *(*self._source(text), ids.to_tensor(0), self._prefix[0], self._unknown)
        )
        _, *ends = self.sources.encode_with_offsets(text)
        begin, end = (
            tf.gather(tf.pad(x.to_tensor(), [[0, 0], [0, 1]]), places, batch_dims=1)
            for x in ends
        )
        whole = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")
        whole = tf.repeat(whole[:, None], tf.shape(places)[1], 1)
        words = tf.strings.substr(whole, begin, end - begin, unit="UTF8_CHAR")
        words = tf.RaggedTensor.from_tensor(words, ids.row_lengths())
        return self.tokenizer.decode(ids, unknown=words.values)

    def _source(self, text):
        """int32 ids and mask, `[N, length]` each."""
        ids = self.sources.encode(text, max_length=self._max_source - 1)
        ids = self._ended(ids, self._source_end)
        return ids.to_tensor(0), tf.sequence_mask(ids.row_lengths(), dtype=tf.int32)

    def _read(self, text, parse_special):
        prompts = tf.fill([tf.size(text), 1], self._prefix[0])
        return prompts, self.network.read(*self._source(text))

    @staticmethod
    def _ended(ids, end):
        ends = tf.RaggedTensor.from_tensor(tf.fill([ids.nrows(), 1], end))
        return tf.concat([ids, ends], 1)


TYPES = {
    "max_new_tokens": tf.int32,
    "temperature": tf.float32,
    "top_k": tf.int32,
    "top_p": tf.float32,
    "repetition_penalty": tf.float32,
    "seed": tf.int64,
}
