"""BERT's WordPiece."""

import json

import numpy as np
import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text import probe
from tfllm.text.graph.arrays_tf import (
    chain,
    indices,
    lengths_of,
    marked,
    placed,
    rows_of,
    shifted,
    tiles,
)
from tfllm.text.graph.tables_tf import CodeTable, StringTable, Trie
from tfllm.text.graph.words_tf import Model
from tfllm.text.tokenizer import Tokenizer


class WordPiece(Model):
    """BERT's words, and the longest pieces from left to right in unknown ones."""

    SPACE, INNER, ALONE = range(3)

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        definition, model = tokenizer.definition, tokenizer.definition["model"]
        if [s["type"] for s in defs.pre_tokenizers(definition)] != ["BertPreTokenizer"]:
            raise UserError("wordpiece needs BERT's pre-tokenizer to be in the graph")
        classes = probe.bert_classes()
        kinds = np.select(
            [classes == 1, classes == 2], [self.SPACE, self.ALONE], self.INNER
        )
        for step in defs.normalizers(definition):
            if step["type"] == "BertNormalizer" and step["handle_chinese_chars"]:
                quiet = step | dict.fromkeys(probe.BERT_STEPS, False)
                quiet["handle_chinese_chars"] = True
                kinds[list(probe.mapped(json.dumps([quiet])))] = self.ALONE
        self.kinds, self.unk_id = CodeTable(kinds), model["vocab"][model["unk_token"]]
        self.longest = model.get("max_input_chars_per_word", 100)
        prefix = model.get("continuing_subword_prefix", "##")
        vocab = {t: i for t, i in model["vocab"].items() if t}
        self.words = StringTable(
            {t: i for t, i in vocab.items() if len(t) <= self.longest}
        )
        inner = {t[len(prefix) :]: i for t, i in vocab.items() if t.startswith(prefix)}
        inner.pop("", None)
        self.trie = Trie(vocab, inner)

    def split(self, chars):
        """Words of BERT: spaces dropped, signs and Chinese characters alone."""
        kinds = self.kinds(chars.values)
        inner, solid = tf.equal(kinds, self.INNER), tf.not_equal(kinds, self.SPACE)
        starts = ~(inner & shifted(inner, 1, False)) | chars.edges
        kept = indices(solid)
        return chars.keep(solid), tf.gather(starts, kept)

    def hopeless(self, codes, splits):
        """Those that are too long."""
        return lengths_of(splits) > self.longest

    def cut(self, codes, splits):
        """The longest piece, and so on; a word where none fits is unknown."""
        size, word = tf.size(codes), rows_of(splits)
        start = marked(splits, size)
        found, longest = self.trie(codes, splits, tf.cast(~start, tf.int32))
        jump = tf.where(longest > 0, tf.range(size) + longest, size)
        at = chain(splits[:-1], splits[1:], jump)
        length = tf.gather(longest, at)
        stuck = marked(tf.gather(word, tf.boolean_mask(at, tf.equal(length, 0))), size)
        stuck = tf.gather(stuck, tf.gather(word, at))
        piece = tf.gather_nd(found, tf.stack([at, tf.maximum(length - 1, 0)], 1))
        piece = tf.where(stuck, self.unk_id, piece)
        kept = indices(~stuck | tf.gather(start, at))
        return tiles(placed(tf.gather(at, kept), tf.gather(piece, kept), size))
