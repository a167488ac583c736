"""Pre-tokenisation before byte-pair encoding."""

import json

import numpy as np
import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text import probe
from tfllm.text.graph.arrays_tf import Rows, latest, next_true, shifted
from tfllm.text.graph.tables_tf import CodeTable


class PreTokenizer(tf.Module):
    """Where words begin, by the regular expressions of GPT-2, Llama-3 and others.

    Each alternative of those is told from the classes of a character and of its
    neighbours, so all words of all texts are found at once.
    """

    LETTER, NUMBER, OTHER, SPACE, LINE_END = range(5)

    def __init__(self, definition: dict):
        super().__init__()
        self.digits, self.rule = None, None
        for step in defs.pre_tokenizers(definition):
            if step["type"] == "Digits":
                self.digits = step["individual_digits"]
            elif step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
                self.rule = "gpt2" if step.get("use_regex", True) else self.rule
            elif step["type"] == "Split" and step["behavior"] == "Isolated":
                pattern = step["pattern"].get("Regex")
                self.rule = defs.SPLIT_RULES.get(pattern)
                if self.rule is None:
                    raise UserError(f"the pattern {pattern} is not in the graph")
            else:
                raise UserError(f"pre-tokenizer {json.dumps(step)} is not in the graph")
        classes = np.full(probe.NUM_CODES, self.OTHER, np.int32)
        classes[probe.in_class(r"\p{L}")] = self.LETTER
        classes[probe.in_class(r"\p{N}")] = self.NUMBER
        classes[probe.in_class(r"\s")] = self.SPACE
        if self.rule not in (None, "gpt2"):
            classes[[10, 13]] = self.LINE_END
        self.classes = CodeTable(classes)

    def __call__(self, chars: Rows) -> tf.Tensor:
        """Where words start: bool `[T]`."""
        codes, edge = chars.values, chars.edges
        if self.rule is None and self.digits is None:
            return edge
        kinds = self.classes(codes)
        number = tf.equal(kinds, self.NUMBER)
        if self.digits is not None:  # each part is then a text of its own
            edge |= number if self.digits else number & ~shifted(number, 1, False)
            edge |= ~number & shifted(number, 1, False)
        return edge if self.rule is None else self.starts(codes, kinds, edge)

    def starts(self, codes, kinds, edge):
        """Where matches start; an edge is where a text starts."""
        last = shifted(edge, -1, True)
        before = tf.where(edge, -1, shifted(kinds, 1, -1))
        after = tf.where(last, -1, shifted(kinds, -1, -1))
        blank = kinds >= self.SPACE
        space_before = ~edge & tf.equal(shifted(codes, 1, 0), 0x20)
        # The last blank of a run stands with what follows, or alone.
        run_last = blank & (after < self.SPACE) & ~last
        if self.rule == "gpt2":
            start = ~blank & tf.not_equal(kinds, before) & ~space_before
            start |= (blank & (before < self.SPACE)) | run_last
        else:
            start = self.llama_starts(kinds, edge, before, space_before, run_last)
        return self.contractions(codes, edge, start)

    def llama_starts(self, kinds, edge, before, space_before, run_last):
        """Llama-3's rule, contractions aside."""
        size = tf.size(kinds)
        place = tf.range(size)
        letter, other = tf.equal(kinds, self.LETTER), tf.equal(kinds, self.OTHER)
        number, blank = tf.equal(kinds, self.NUMBER), kinds >= self.SPACE
        line_end = tf.equal(kinds, self.LINE_END)
        new_kind = tf.not_equal(kinds, before)
        # One blank, or one other character at the start of a match, goes with letters.
        single = other & new_kind & ~space_before
        taken = ~edge & (tf.equal(before, self.SPACE) | shifted(single, 1, False))
        start = letter & new_kind & ~taken
        start |= single
        if self.rule == "llama3":
            run = number & new_kind
            start |= number & tf.equal((place - latest(run, place)) % 3, 0)
        else:
            start |= number
        # Line ends right after other characters go with those.
        first_end = line_end & tf.not_equal(before, self.LINE_END)
        eaten = tf.cast(first_end & tf.equal(before, self.OTHER), tf.int32)
        eaten = line_end & (latest(first_end, eaten) > 0)
        start |= blank & ~eaten & ((before < self.SPACE) | shifted(eaten, 1, False))
        # A run of blanks is cut after its last line end, and before its last one.
        run_end = next_true(~blank | edge)
        final = next_true(line_end) >= run_end
        start |= tf.equal(kinds, self.SPACE) & tf.equal(before, self.LINE_END) & final
        return start | (run_last & tf.equal(kinds, self.SPACE))

    def contractions(self, codes, edge, start):
        """Cuts 's, 't, 're, 've, 'm, 'll and 'd off where a match starts with one."""
        if self.rule != "gpt2":  # (?i:...): ſ folds to s
            upper = (codes >= ord("A")) & (codes <= ord("Z"))
            codes = tf.where(upper, codes + 32, codes)
            codes = tf.where(tf.equal(codes, 0x17F), ord("s"), codes)
        near, far = shifted(codes, -1, 0), shifted(codes, -2, 0)
        near = tf.where(shifted(edge, -1, True), 0, near)
        far = tf.where(shifted(edge, -1, True) | shifted(edge, -2, True), 0, far)

        def is_one(values, letters):
            return tf.reduce_any(tf.equal(values[:, None], [*map(ord, letters)]), 1)

        quote = start & tf.equal(codes, ord("'"))
        short = quote & is_one(near, "stmd")
        long = quote & tf.equal(far, ord("e")) & is_one(near, "rv")
        long |= quote & tf.equal(far, ord("l")) & tf.equal(near, ord("l"))
        inside = shifted(short | long, 1, False) | shifted(long, 2, False)
        behind = shifted(short, 2, False) | shifted(long, 3, False)
        return (start & ~inside) | behind | edge
