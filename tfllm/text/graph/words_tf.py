"""From characters to tokens: what all kinds share, characters, and words."""

import numpy as np
import tensorflow as tf

from tfllm.text import definition as defs
from tfllm.text import probe
from tfllm.text.graph.arrays_tf import (
    Rows,
    indices,
    ranges,
    shifted,
    woven,
)
from tfllm.text.graph.lattice_tf import Lattice
from tfllm.text.graph.tables_tf import CodeTable, StringTable
from tfllm.text.tokenizer import Tokenizer


class Model(tf.Module):
    """Words that are tokens are looked up; only the others are cut into pieces."""

    words: StringTable
    unk_id: int

    def split(self, chars: Rows):
        """The characters that count, and where words start: bool `[T]`."""
        raise NotImplementedError

    # Of codes and splits: which words are unknown if they are no token, bool `[W]`.
    hopeless = None

    def cut(self, codes, splits):
        """Cuts words, which lie between the splits, into pieces; None: no word is.

        Returns:
            The index of the first and of the last character of each piece, and its
            id, in the order of the text.
        """
        raise NotImplementedError

    def __call__(self, chars: Rows) -> Rows:
        """Their tokens."""
        chars, starts = self.split(chars)
        splits = tf.concat([indices(starts), [chars.size]], 0)
        first, end = splits[:-1], splits[1:]
        ids = self.words(chars.values, splits)
        if self.cut is None:
            return chars.spans(first, end - 1, tf.where(ids < 0, self.unk_id, ids))
        if self.hopeless is not None:
            hopeless = self.hopeless(chars.values, splits)
            ids = tf.where((ids < 0) & hopeless, self.unk_id, ids)
        todo = ids < 0

        def pieces():
            words, done = indices(todo), indices(~todo)
            at, own = ranges(tf.gather(first, words), tf.gather(end, words))
            begins, lasts, pieces = self.cut(tf.gather(chars.values, at), own)
            known = [tf.gather(column, done) for column in (first, end - 1, ids)]
            cut = tf.gather(at, begins), tf.gather(at, lasts), pieces
            return chars.spans(*woven(known, cut))

        return tf.cond(
            tf.reduce_any(todo), pieces, lambda: chars.spans(first, end - 1, ids)
        )


def whole_tokens(tokenizer: Tokenizer, tokens) -> list[str]:
    """The tokens that are encoded as themselves when they are a word."""
    cut = tokenizer.fast.model.tokenize
    return [token for token in tokens if token and len(cut(token)) == 1]


class Characters(tf.Module):
    """A token a character."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        vocab = tokenizer.definition["model"]["vocab"]
        self.table = CodeTable(probe.of_characters(vocab, tokenizer.unk_id))

    def __call__(self, chars: Rows) -> Rows:
        """Their tokens."""
        return chars._replace(values=self.table(chars.values))


class Words(Model):
    """Whole words; scripts without spaces by the most probable path."""

    SPACE, SPACED, UNSPACED, OTHER, APOSTROPHE = range(5)

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        model = tokenizer.definition["model"]
        kinds = np.full(probe.NUM_CODES, self.OTHER, np.int32)
        kinds[probe.in_class(r"\s")] = self.SPACE
        kinds[probe.in_class(defs.SPACED)] = self.SPACED
        kinds[probe.in_class(f"[{defs.UNSPACED}]")] = self.UNSPACED
        kinds[[ord("'"), 0x2019]] = self.APOSTROPHE
        self.kinds, self.unk_id = CodeTable(kinds), tokenizer.unk_id
        special = tokenizer.special_ids
        words = {t: i for t, i in tokenizer.ids.items() if t and i not in special}
        self.cut = None
        if model["type"] == "Unigram":
            scores = dict(model["vocab"])
            pieces, spaced = {}, {}
            for token, token_id in words.items():
                kind, plain = kinds[ord(token[0])], token.strip(defs.MARK)
                if kind == self.UNSPACED:
                    pieces[token] = token_id, scores[token]
                elif len(token) == 1:
                    if kind in (self.OTHER, self.APOSTROPHE):
                        spaced[token] = token_id
                elif plain and token == f"{defs.MARK}{plain}{defs.MARK}":
                    spaced[plain] = token_id
            lowest = min(scores.values())
            self.cut = Lattice(pieces, self.unk_id, lowest - 10.0)
            words = spaced
        self.words = StringTable(words)

    def split(self, chars):
        """Spaces dropped; an apostrophe between two letters of a text is a letter."""
        kinds, edge = self.kinds(chars.values), chars.edges
        spaced = tf.equal(kinds, self.SPACED)
        between = shifted(spaced, 1, False) & shifted(spaced, -1, False)
        between &= ~(edge | shifted(edge, -1, True))
        inner = tf.equal(kinds, self.APOSTROPHE) & between
        codes = tf.where(inner, ord(defs.LETTER_APOSTROPHE), chars.values)
        kinds = tf.where(inner, self.SPACED, kinds)
        runs = tf.equal(kinds, self.SPACED)
        if self.cut is not None:
            runs |= tf.equal(kinds, self.UNSPACED)
        again = runs & tf.equal(kinds, shifted(kinds, 1, -1)) & ~edge
        solid = tf.not_equal(kinds, self.SPACE)
        chars = chars._replace(values=codes).keep(solid)
        return chars, tf.boolean_mask(~again, solid)

    def hopeless(self, codes, splits):
        """Only runs of unspaced characters are cut."""
        first = self.kinds(tf.gather(codes, splits[:-1]))
        return tf.not_equal(first, self.UNSPACED)
