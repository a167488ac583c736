"""The in-graph engine: the same ids from TensorFlow's own ops, for the server.

How it works. All texts of a batch lie one after another in flat arrays of code points
(`Rows`), and every step works on the whole of them at once. What looks sequential is
made parallel:

- a normalizer that looks at one character at a time is a table over code points;
- where words begin follows from the classes of a character and its neighbours;
- whole words are looked up as strings, and only the unknown ones are cut further;
- all pieces that start at a position, of any length, are found at once (`Trie`);
- which of them are used is a chain of jumps, of all words side by side (`chain`).

There is no state that a request can change, and no character with a meaning of its
own is ever put into a text.
"""

from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text.graph.arrays_tf import (
    Rows,
    in_turn,
    indices,
    lengths_of,
    outside,
    placed,
    rank_in,
    rows_of,
    shifted,
)
from tfllm.text.graph.bpe_tf import BytePair
from tfllm.text.graph.normalize_tf import normalizer
from tfllm.text.graph.tables_tf import Trie
from tfllm.text.graph.unigram_tf import Unigram
from tfllm.text.graph.wordpiece_tf import WordPiece
from tfllm.text.graph.words_tf import Characters, Words
from tfllm.text.tokenizer import Tokenizer, check_truncation

MODELS = {"characters": Characters, "words": Words, "wordpiece": WordPiece}
MODELS |= {"bpe": BytePair, "unigram": Unigram}


class GraphTokenizer(tf.Module):
    """A `Tokenizer` as TensorFlow ops; equal ids for every text.

    Texts are bytes; what is not UTF-8 in them is read as U+FFFD, as Python's
    `decode(errors="replace")` does.

    Args:
        tokenizer: The definition.

    Raises:
        UserError: The definition holds a part that has no equal in the graph.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(name="tokenizer")
        # In a namespace: `tf.Module` would track what is in plain attributes.
        self._python = SimpleNamespace(tokenizer=tokenizer, functions={})
        with tf.init_scope():
            self.normalizer = normalizer(tokenizer.definition)
            self.model = MODELS[tokenizer.kind](tokenizer)
            added = tokenizer.definition["added_tokens"]
            for token in added:
                if (
                    any(token[flag] for flag in ("lstrip", "rstrip", "single_word"))
                    or not token["special"]
                ):
                    raise UserError(f"an added token like {token} is not in the graph")
            self.special = Trie({t["content"]: t["id"] for t in added})
            pieces = tokenizer.pieces
            self.pieces = tf.constant(pieces.texts)
            self.glue = tf.constant([pieces.glue_left, pieces.glue_right])
            skipped = np.zeros(tokenizer.vocabulary_size, bool)
            skipped[list(tokenizer.special_ids)] = True
            self.skipped = tf.constant(skipped)

    def encode(
        self, texts, add_special_tokens=False, max_length=None, parse_special=False
    ):
        """Texts (string `[N]`) to ids: int32 ragged `[N, None]`.

        Args as in `Tokenizer.encode`.
        """
        tokenizer = self._python.tokenizer
        template = tokenizer.single
        if add_special_tokens:
            max_length = tokenizer.budget(template, max_length)

        def run(texts):
            tokens = self._tokens(texts, parse_special=parse_special)
            if max_length is not None:
                tokens = _cut(tokens, tf.fill([tf.size(texts)], max_length))
            if not add_special_tokens:
                return ragged(tokens.values, tokens.splits)
            return joined(template, [tokens])[0]

        key = ("encode", add_special_tokens, max_length, parse_special)
        return self._run(key, run, tf.convert_to_tensor(texts, tf.string))

    def encode_pairs(self, first, second, max_length=None, truncation="longest_first"):
        """Pairs of texts (string `[N]` each) to ids and segment ids, both ragged.

        Args as in `Tokenizer.encode_pairs`.
        """
        check_truncation(truncation)
        template = self._python.tokenizer.pair
        budget = self._python.tokenizer.budget(template, max_length)

        def run(*texts):
            a, b = map(self._tokens, texts)
            if budget is not None:
                sizes = lengths_of(a.splits), lengths_of(b.splits)
                size_a, size_b = pair_lengths(*sizes, budget, truncation)
                a, b = _cut(a, size_a), _cut(b, size_b)
            return joined(template, [a, b])

        texts = (tf.convert_to_tensor(part, tf.string) for part in (first, second))
        return self._run(("pairs", max_length, truncation), run, *texts)

    def encode_with_offsets(self, texts):
        """Ids, starts, ends (in code points of the text): int32 ragged `[N, None]`."""

        def run(texts):
            ids, splits, start, end, first = self._tokens(texts, offsets=True)
            base = tf.gather(first, rows_of(splits))
            return tuple(ragged(v, splits) for v in (ids, start - base, end - base))

        return self._run(("offsets",), run, tf.convert_to_tensor(texts, tf.string))

    def decode(self, ids, skip_special_tokens=True, unknown=None):
        """Ids (int `[N, T]`, ragged or dense) to texts, string `[N]`.

        Args:
            ids: Ids.
            skip_special_tokens: See `Tokenizer.decode`.
            unknown: Strings, one for each id in all rows, one row after another.
        """

        def run(ids, splits, *unknown):
            ids = tf.cast(ids, tf.int32)
            count, rows = tf.shape(self.skipped)[0], tf.size(splits) - 1
            known = (ids >= 0) & (ids < count)
            if skip_special_tokens:
                skipped = tf.gather(self.skipped, tf.where(known, ids, 0))
                if unknown:
                    skipped &= ids != self._python.tokenizer.unk_id
                known &= ~skipped
            row = tf.boolean_mask(rows_of(splits), known)
            ids = tf.boolean_mask(ids, known)
            glue = tf.gather(self.glue, ids, axis=1)
            same_row = tf.equal(row, shifted(row, 1, -1))
            tight = glue[0] | shifted(glue[1], 1, True) | ~same_row
            parts = tf.gather(self.pieces, ids)
            if unknown:
                copied = ids == self._python.tokenizer.unk_id
                parts = tf.where(copied, tf.boolean_mask(*unknown, known), parts)
            parts = tf.where(tight, parts, tf.strings.join([" ", parts]))
            texts = tf.strings.unsorted_segment_join(parts, row, rows)
            if self._python.tokenizer.pieces.strip_start:
                texts = tf.strings.regex_replace(texts, "^ ", "", replace_global=False)
            return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")

        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids)
        splits = tf.cast(ids.row_splits, tf.int32)
        given = unknown is not None
        more = (tf.convert_to_tensor(unknown, tf.string),) if given else ()
        key = ("decode", skip_special_tokens, given)
        return self._run(key, run, ids.values, splits, *more)

    def _run(self, key, function, *arguments):
        """Inside a function its ops; else a function of our own, traced only once."""
        if not tf.executing_eagerly():
            return function(*arguments)
        functions = self._python.functions
        if key not in functions:
            signature = [tf.TensorSpec([None], a.dtype) for a in arguments]
            made = tf.function(function, autograph=False)
            functions[key] = made.get_concrete_function(*signature)
        return functions[key](*arguments)

    def _tokens(self, texts, offsets=False, parse_special=False) -> Rows:
        chars = _decoded(texts)
        if offsets:
            every = tf.range(chars.size)
            chars = Rows(*chars[:2], every, every + 1, chars.splits)
        return self._parsed(chars) if parse_special else self._plain(chars)

    def _plain(self, chars: Rows) -> Rows:
        for step in self.normalizer:
            chars = step(chars)
        return self.model(chars)

    def _parsed(self, chars: Rows) -> Rows:
        """Tokens of texts in which special tokens are written out."""
        found, longest = self.special(chars.values, chars.splits)
        at, length = in_turn(longest)
        ids = tf.gather_nd(found, tf.stack([at, length - 1], 1))
        # What lies between is a text of its own: rows are cut at special tokens, too.
        # `text_at` and `special_at` are the numbers of those cuts among all.
        texts, count = tf.size(chars.splits), tf.size(at)
        text_at = tf.range(texts) + rank_in(at, chars.splits)
        special_at = tf.range(count) + rank_in(chars.splits, at + 1)
        cuts = placed(
            tf.concat([text_at, special_at], 0),
            tf.concat([chars.splits, at], 0), texts + count,
        )  # fmt: skip
        kept = indices(outside(at, length, chars.size))
        tokens = self._plain(chars.take(kept, rank_in(kept, cuts)))
        shift = rank_in(special_at, rows_of(tokens.splits) + 1)
        place = tf.gather(tokens.splits, special_at) + tf.range(count)
        values = placed(
            tf.concat([tf.range(tokens.size) + shift, place], 0),
            tf.concat([tokens.values, ids], 0), tokens.size + count,
        )  # fmt: skip
        splits = tf.gather(tokens.splits, text_at) + rank_in(at, chars.splits)
        return Rows(values, splits)


def _decoded(texts: tf.Tensor) -> Rows:
    """The code points of texts; where all are ASCII their bytes, which is faster."""
    # Every character of ASCII is one byte, and of no other text is that so.
    sizes = tf.strings.length(texts)
    joined = tf.strings.reduce_join(texts)
    codes = tf.cast(tf.io.decode_raw(joined, tf.uint8), tf.int32)

    def ascii():
        return Rows(codes, tf.concat([[0], tf.cumsum(sizes)], 0))

    def unicode():
        found = tf.raw_ops.UnicodeDecode(
            input=texts, input_encoding="UTF-8", errors="replace",
            replacement_char=0xFFFD, Tsplits=tf.int32,
        )  # fmt: skip
        return Rows(found.char_values, found.row_splits)

    return tf.cond(tf.reduce_all(codes < 0x80), ascii, unicode)


def _cut(tokens: Rows, lengths: tf.Tensor) -> Rows:
    """At most so many tokens (int32 `[N]`) of each text."""
    row = rows_of(tokens.splits)
    limit = tf.gather(tokens.splits[:-1] + lengths, row)
    return tokens.keep(tf.range(tokens.size) < limit)


def joined(template: "defs.Template", texts: list[Rows]):
    """Texts put into a template: ids and segment ids, ragged."""
    rows = tf.size(texts[0].splits) - 1
    sizes = [lengths_of(tokens.splits) for tokens in texts]
    splits = tf.concat([[0], tf.cumsum(template.added + tf.add_n(sizes))], 0)
    place, index, ids, segments = splits[:-1], [], [], []
    for item, segment in template.items:
        if isinstance(item, int):
            index.append(place)
            ids.append(tf.fill([rows], item))
            place += 1
        else:
            tokens = texts["AB".index(item)]
            shift = tf.gather(place - tokens.splits[:-1], rows_of(tokens.splits))
            index.append(tf.range(tokens.size) + shift)
            ids.append(tokens.values)
            place += sizes["AB".index(item)]
        segments.append(tf.fill(tf.shape(index[-1]), segment))
    index = tf.concat(index, 0)
    columns = (tf.concat(column, 0) for column in (ids, segments))
    return tuple(ragged(placed(index, c, splits[-1]), splits) for c in columns)


def pair_lengths(a, b, budget: int, truncation: str):
    """`tokenizer.pair_lengths` for tensors of lengths."""
    if truncation == "only_first":
        return tf.maximum(0, tf.minimum(a, budget - b)), tf.minimum(b, budget)
    if truncation == "only_second":
        return tf.minimum(a, budget), tf.maximum(0, tf.minimum(b, budget - a))
    short = tf.minimum(tf.minimum(a, b), budget // 2)
    long = tf.minimum(tf.maximum(a, b), budget - short)
    return tf.where(a > b, long, short), tf.where(a > b, short, long)


def ragged(values: tf.Tensor, splits: tf.Tensor) -> tf.RaggedTensor:
    """A ragged tensor from int32 splits that are known to be right."""
    splits = tf.cast(splits, tf.int64)
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False)
