"""SentencePiece's unigram model."""

import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text.graph.lattice_tf import Lattice
from tfllm.text.graph.tables_tf import StringTable
from tfllm.text.graph.words_tf import Model, whole_tokens
from tfllm.text.tokenizer import Tokenizer


class Unigram(Model):
    """The most probable path; where no piece goes across a space, word by word."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        definition, model = tokenizer.definition, tokenizer.definition["model"]
        if defs.pre_tokenizers(definition):
            raise UserError("unigram with a pre-tokenizer is not in the graph")
        if model.get("byte_fallback"):
            raise UserError("unigram with bytes is not in the graph")
        pieces = {t: (i, s) for i, (t, s) in enumerate(model["vocab"]) if t}
        lowest = min(score for _, score in model["vocab"])
        self.cut = Lattice(pieces, model["unk_id"], lowest - 10.0)
        self.by_word = defs.MARK in pieces
        self.by_word &= all(defs.MARK not in t[1:] for t in pieces)
        words = [t for t in pieces if t[0] == defs.MARK] if self.by_word else []
        words = whole_tokens(tokenizer, words)
        self.words = StringTable({t: pieces[t][0] for t in words})

    def split(self, chars):
        """Words begin with a mark; else each text is one."""
        starts = chars.edges
        if self.by_word:
            starts |= tf.equal(chars.values, ord(defs.MARK))
        return chars, starts
