"""Generation as a graph: text in, text out, the whole loop inside."""

import tensorflow as tf

from tfllm.generation import loop_tf as loop
from tfllm.generation.generator import Generator
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
        prompts, lengths = self._prompts(self._ids(text, False))
        state = self._start(prompts, 1, scored=True)
        return {
            "log_probability": tf.reduce_sum(state.scores, 0)[: tf.size(text)],
            "tokens": tf.maximum(lengths - 1, 0)[: tf.size(text)],
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

    def _start(self, prompts, space, scored=False):
        def run(prompts):
            return loop.start(self.network, prompts, space, scored)

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
        prompts, _ = self._prompts(self._ids(text, parse_special))
        first, xla = tf.shape(prompts)[1], self._engine.xla
        space = self._max_new if xla else tf.maximum(tf.reduce_max(limit), 1)
        if xla:
            more = tf.shape(prompts)[0] - count
            settings = {k: tf.pad(v, [[0, more]]) for k, v in settings.items()}

        def run(prompts, settings):
            state = loop.start(self.network, prompts, space)
            state = loop.advance(self.network, state, settings, self._ends, space)
            return state.history

        if xla:
            run = tf.function(run, jit_compile=True, autograph=False)
        history = tf.transpose(run(prompts, settings))[:count]
        made = history[:, first:]
        ended = tf.reduce_any(made[:, :, None] == tf.constant(self._ends), [1, 2])
        return {
            "text": self._text(history, first),
            "tokens": made,
            "finish_reason": tf.where(ended, "stop", "length"),
        }

    def _text(self, history, first):
        """What the tokens from slot `first` on add to the text of those before."""

        def decoded(tokens):
            kept = tf.ragged.boolean_mask(tokens, tokens >= 0)
            return self.tokenizer.decode(kept)

        before = tf.strings.length(decoded(history[:, :first]))
        whole = decoded(history)
        return tf.strings.substr(whole, before, tf.strings.length(whole))


TYPES = {
    "max_new_tokens": tf.int32,
    "temperature": tf.float32,
    "top_k": tf.int32,
    "top_p": tf.float32,
    "repetition_penalty": tf.float32,
    "seed": tf.int64,
}
