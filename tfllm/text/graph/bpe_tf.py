"""Byte-pair encoding."""

import numpy as np
import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text import probe
from tfllm.text.graph.arrays_tf import (
    fused,
    growing,
    indices,
    latest,
    placed,
    repeated,
    rows_of,
    shifted,
    tiles,
)
from tfllm.text.graph.split_tf import PreTokenizer
from tfllm.text.graph.tables_tf import CodeTable, IntTable, StringTable
from tfllm.text.graph.words_tf import Model, whole_tokens
from tfllm.text.tokenizer import Tokenizer

INT_MAX = 2**31 - 1


class BytePair(Model):
    """Byte-pair encoding, of bytes (GPT-2) or of characters (SentencePiece).

    In words that are no token the pair that was learned first is merged, in all words
    at once, until there is none.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        definition, model = tokenizer.definition, tokenizer.definition["model"]
        vocab = model["vocab"]
        for part in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(part):
                raise UserError(f"BPE with a {part} is not in the graph")
        self.pre_tokenizer = PreTokenizer(definition)
        fallback, unk = bool(model.get("byte_fallback")), model.get("unk_token")
        self.chars = None
        if defs.is_byte_level(definition):
            to_byte = defs.byte_characters()
            text = {
                t: bytes(map(to_byte.get, t)) for t in vocab if to_byte.keys() >= {*t}
            }
            symbols = {byte: vocab.get(char, -1) for char, byte in to_byte.items()}
        else:
            text = {t: t.encode() for t in vocab}
            symbols = {b: vocab.get(f"<0x{b:02X}>", -1) for b in range(256)}
            # Without bytes to fall back to, the unknown token.
            default = -1 if fallback else vocab.get(unk, -1)
            self.chars = CodeTable(probe.of_characters(vocab, default))
        self.always_one = self.chars is not None and not fallback
        self.unk_id = vocab.get(unk, -1)
        self.fused = self.always_one and model.get("fuse_unk") and self.unk_id >= 0
        self.symbols = tf.constant([symbols[byte] for byte in range(256)], tf.int32)
        # Where no token goes across the start of a word, words can be cut there.
        self.by_word = defs.MARK in vocab and not defs.pre_tokenizers(definition)
        self.by_word &= all(defs.MARK not in t.lstrip(defs.MARK) for t in vocab)
        merges, ranks, bounds = [], {}, {}
        of_byte = set(symbols.values())

        def end(token, at):  # the symbol that a token begins (0) or ends with (-1)
            whole = vocab[token] in of_byte
            return vocab[token] if whole else vocab.get(token[at], -1)

        for merge in model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            pair = vocab[left], vocab[right]
            ranks[pair] = len(merges)
            bounds.setdefault((end(left, -1), end(right, 0)), len(merges))
            merges.append((*pair, vocab[left + right]))
        table = np.array(merges or [(0, 0, 0)], np.int64)
        self.merged = tf.constant(table[:, 2], tf.int32)
        self.ranks, self.bounds = (
            IntTable([a * 2**32 + b for a, b in t] or [-1], [*t.values()] or [-1])
            for t in (ranks, bounds)
        )
        # A merge may be done at all places at once if what it makes takes part only
        # in later merges; of another one only the first place is merged.
        order = np.arange(len(table))
        earliest = np.full(max(vocab.values()) + 1, len(table))
        np.minimum.at(earliest, table[:, 0], order)
        np.minimum.at(earliest, table[:, 1], order)
        at_once = earliest[table[:, 2]] > order
        self.at_once = None if at_once.all() else tf.constant(at_once)
        known = {}
        whole = text if model.get("ignore_merges") else whole_tokens(tokenizer, text)
        for token in whole:
            try:
                known[text[token].decode()] = vocab[token]
            except UnicodeDecodeError:
                continue  # half a character is no whole word
        self.words = StringTable(known)

    def split(self, chars):
        """By the rule of the definition."""
        starts = self.pre_tokenizer(chars)
        if self.by_word:
            mark = tf.equal(chars.values, ord(defs.MARK))
            starts |= mark & ~shifted(mark, 1, False)
        return chars, starts

    def cut(self, codes, splits):
        """By merging, from bytes or characters."""
        at, symbols = self._start(codes)
        symbols = self._merge(symbols, tf.gather(rows_of(splits), at))
        if self.fused:
            symbols = fused(symbols, self.unk_id, splits)
        first, last, symbols = tiles(symbols)
        return tf.gather(at, first), tf.gather(at, last), symbols

    def _start(self, codes):
        """The first symbols of characters, and before them which character each is."""
        known = None if self.chars is None else self.chars(codes)
        if self.always_one:
            index, symbol = tf.range(tf.size(codes)), known
        else:
            more = [tf.cast(codes >= low, tf.int32) for low in (0x80, 0x800, 0x10000)]
            lengths = 1 + tf.add_n(more)
            if known is not None:
                lengths = tf.where(known >= 0, 1, lengths)
            index, place, _ = repeated(lengths)
            length, code = tf.gather(lengths, index), tf.gather(codes, index)
            low = tf.bitwise.right_shift(code, 6 * (length - 1 - place))
            # The first byte holds the length in its upper bits, others 10xxxxxx.
            lead = tf.gather(tf.constant([0, 0, 0xC0, 0xE0, 0xF0]), length)
            inner = 0x80 + tf.bitwise.bitwise_and(low, 0x3F)
            byte = tf.where(tf.equal(place, 0), lead + low, inner)
            symbol = tf.gather(self.symbols, tf.minimum(byte, 255))
            if known is not None:
                known = tf.gather(known, index)
                symbol = tf.where(known < 0, symbol, known)
        present = indices(symbol >= 0)  # no token: left out
        return tf.gather(index, present), tf.gather(symbol, present)

    def _merge(self, symbols, words):
        """Merges until nothing can be: the new symbols at their first places, or -1.

        In each round every word merges its best pair, and all pairs besides whose turn
        is sure to come: no merge across the joints next to such a pair, whatever the
        symbols there have grown to by then, has so low a rank (`bounds`).
        """
        size = tf.size(symbols)

        def joints(table, symbols, words):
            """The rank of each symbol with the next one in the word."""
            wide = tf.cast(symbols, tf.int64)
            rank = table(wide[:-1] * 2**32 + wide[1:])
            known = tf.equal(words[:-1], words[1:]) & (rank >= 0)
            return tf.concat([tf.where(known, rank, INT_MAX), [INT_MAX]], 0)[
                : tf.size(symbols)
            ]

        def step(t, symbols, words, first, bound, done):
            rank = joints(self.ranks, symbols, words)
            best = tf.gather(tf.math.segment_min(rank, words), words)
            unfinished, place = best < INT_MAX, tf.range(tf.size(rank))
            chosen = tf.equal(rank, best) & unfinished
            again = chosen & shifted(chosen, 1, False)

            def every_second():  # of a run as in "aaaa", from the left
                origin = latest(chosen & ~again, place)
                return chosen & tf.equal((place - origin) % 2, 0)

            chosen = tf.cond(tf.reduce_any(again), every_second, lambda: chosen)
            if self.at_once is not None:
                only_first = chosen & ~tf.gather(
                    self.at_once, tf.where(chosen, rank, 0)
                )
                at = tf.where(only_first, place, INT_MAX)
                earliest = tf.gather(tf.math.segment_min(at, words), words)
                chosen &= ~only_first | tf.equal(place, earliest)
            before, behind = shifted(bound, 1, INT_MAX), shifted(bound, -1, INT_MAX)
            chosen |= (rank < before) & (rank < behind)
            made = tf.gather(self.merged, tf.where(chosen, rank, 0))
            symbols = tf.where(chosen, made, symbols)
            bound = tf.where(chosen, behind, bound)
            # Words in which nothing was left to merge are put aside.
            ready = indices(~unfinished)
            parts = [tf.gather(part, ready) for part in (first, symbols)]
            done = done.write(t, tf.stack(parts, 1))
            kept = indices(unfinished & ~shifted(chosen, 1, False))
            state = (tf.gather(part, kept) for part in (symbols, words, first, bound))
            return t + 1, *state, done

        flat, bound = tf.TensorShape([None]), joints(self.bounds, symbols, words)
        *_, done = tf.while_loop(
            lambda t, symbols, *_: (tf.size(symbols) > 0) | tf.equal(t, 0),
            step,
            (0, symbols, words, tf.range(size), bound, growing([None, 2])),
            shape_invariants=(tf.TensorShape([]), *[flat] * 4, None),
        )
        done = done.concat()
        return placed(done[:, 0], done[:, 1], size)
