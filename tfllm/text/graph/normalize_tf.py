"""The normalizer of a definition, as functions from characters to characters."""

import json

import numpy as np
import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text import probe
from tfllm.text.cleaning import ANYWHERE, HTML_TAG, WHOLE_WORD, alternatives
from tfllm.text.graph.arrays_tf import (
    Rows,
    counted,
    in_turn,
    indices,
    lengths_of,
    marked,
    next_true,
    outside,
    repeated,
    rows_of,
    shifted,
)
from tfllm.text.graph.tables_tf import CodeTable, IntTable, StringTable, Trie


def normalizer(definition: dict) -> list:
    """The steps, those on single characters joined where they can be."""
    functions, simple = [], []

    def flush():
        if simple:
            functions.append(CharSteps(list(simple)))
            simple.clear()

    for step in defs.normalizers(definition):
        pattern, content = step.get("pattern", {}), step.get("content")
        regex = pattern.get("Regex", "")
        if regex in (defs.APOSTROPHE, defs.WORD_ENDS):
            continue  # `Words` does it
        if step["type"] == "BertNormalizer":
            # Spaces around Chinese characters are left to `WordPiece`.
            quiet = step | dict.fromkeys(probe.BERT_STEPS, False)
            strip = step["strip_accents"]
            simple.append(quiet | {"clean_text": step["clean_text"]})
            if step["lowercase"] if strip is None else strip:
                simple.extend([{"type": "NFD"}, quiet | {"strip_accents": True}])
            simple.append(quiet | {"lowercase": step["lowercase"]})
            continue
        one_class = regex.startswith("[") and regex.find("]") == len(regex) - 1 > 0
        if (
            one_class
            or len(pattern.get("String", "")) == 1
            or step["type"] in ("Lowercase", "StripAccents", "Nmt", *defs.FORMS)
        ):
            simple.append(step)
            continue
        flush()
        whole = alternatives(regex, WHOLE_WORD)
        anywhere = alternatives(regex, ANYWHERE)
        if step["type"] == "Strip":
            functions.append(Strip(step))
        elif step["type"] == "Prepend" and len(step["prepend"]) == 1:
            functions.append(Prepend(step["prepend"]))
        elif regex == " {2,}" and len(content) == 1:
            functions.append(Squeeze(content))
        elif regex == HTML_TAG and len(content) == 1:
            functions.append(Tags(content))
        elif "String" in pattern and len(content) == 1:
            functions.append(Literals([pattern["String"]], content))
        elif whole and not content:
            functions.append(WholeWords(whole))
        elif anywhere and not content:
            functions.append(Literals(anywhere, content))
        else:
            raise UserError(f"normalizer {json.dumps(step)} is not in the graph")
    flush()
    return functions


# -- single characters ---------------------------------------------------------------


class CharMap(tf.Module):
    """Replaces each code point by none, one or several others.

    Args:
        steps: Normalizers that look at one character at a time.
        active: Code points for which that does not hold: bool `[0x110000]`.
    """

    def __init__(self, steps: list[dict], active: np.ndarray | int = 0):
        super().__init__()
        # In one number: how many (below 32), whether active, and above what to add
        # to the code or, for several, where they stand.
        flat, table = [], np.ones(probe.NUM_CODES, np.int32)
        for code, to in probe.mapped(json.dumps(steps)).items():
            shift = len(flat) if len(to) > 1 else to[0] - code if to else 0
            table[code] = shift * 64 + len(to)
            flat.extend(to if len(to) > 1 else ())
        self.table = CodeTable(table + active * np.int32(32))
        self.flat = tf.constant(flat or [0], tf.int32)

    def __call__(self, chars: Rows, record: tf.Tensor | None = None) -> Rows:
        """The texts after that."""
        record = self.table(chars.values) if record is None else record
        shift = tf.bitwise.right_shift(record, 6)
        lengths = tf.bitwise.bitwise_and(record, 31)

        def expanded():
            index, place, splits = repeated(lengths)
            offset, several = tf.gather(shift, index), tf.gather(lengths, index) > 1
            flat = tf.gather(self.flat, tf.where(several, offset + place, 0))
            taken = chars.take(index, tf.gather(splits, chars.splits))
            return taken._replace(values=tf.where(several, flat, taken.values + offset))

        same = tf.reduce_all(tf.equal(lengths, 1))
        return tf.cond(
            same, lambda: chars._replace(values=chars.values + shift), expanded
        )


class CharSteps(tf.Module):
    """Normalizers that are one table, unless characters combine with others.

    Unicode forms reorder and join characters only around combining ones. Where a
    batch has none, each character can be taken by itself.
    """

    def __init__(self, steps: list[dict]):
        super().__init__()
        self.steps, active = [], np.zeros(probe.NUM_CODES, bool)
        at = 0
        for i, step in enumerate(steps):
            if step["type"] in defs.FORMS:
                self.steps += [CharMap(steps[at:i])] if i > at else []
                self.steps.append(UnicodeForm(step["type"]))
                active |= probe.combining(json.dumps(steps[:i]), step["type"])
                at = i + 1
        self.steps += [CharMap(steps[at:])] if len(steps) > at else []
        self.table = CharMap(steps, active)

    def __call__(self, chars: Rows) -> Rows:
        """The texts after that."""
        record = self.table.table(chars.values)

        def slowly():
            result = chars
            for step in self.steps:
                result = step(result)
            return result

        combining = tf.reduce_any(tf.bitwise.bitwise_and(record, 32) > 0)
        return tf.cond(combining, slowly, lambda: self.table(chars, record))


class UnicodeForm(tf.Module):
    """NFC, NFD, NFKC or NFKD (Unicode Standard Annex 15)."""

    def __init__(self, form: str):
        super().__init__()
        self.decompose = CharMap([{"type": form.replace("C", "D")}])
        self.classes = CodeTable(probe.combining_classes())
        self.pairs = None
        if form in ("NFC", "NFKC"):
            pairs = probe.compositions()
            keys = [first * 2**32 + second for first, second in pairs]
            self.pairs = IntTable(keys, list(pairs.values()))
            second = np.zeros(probe.NUM_CODES, np.int32)
            second[[second for _, second in pairs]] = 1
            self.second = CodeTable(second)

    def __call__(self, chars: Rows) -> Rows:
        """The texts after that."""
        chars = self.decompose(chars)
        classes, edge = self.classes(chars.values), chars.edges
        run = tf.cast(counted(tf.equal(classes, 0) | edge), tf.int64)
        order = tf.argsort(run * 256 + tf.cast(classes, tf.int64))
        # The library leaves the spans where they are, so that they stay in order.
        chars = chars._replace(values=tf.gather(chars.values, order))
        classes = tf.gather(classes, order)
        return chars if self.pairs is None else self._compose(chars, classes, edge)

    def _compose(self, chars: Rows, classes, edge) -> Rows:
        """Joins marks to the letter before, in all runs of such at once."""
        second = self.second(chars.values) > 0
        start = indices(edge | (tf.equal(classes, 0) & ~second))
        length = tf.concat([start[1:], [chars.size]], 0) - start

        def step(t, start, length, starter, above, codes, gone):
            at = start + t
            code, kind = tf.gather(codes, at), tf.gather(classes, at)
            left = tf.gather(codes, tf.maximum(starter, 0))
            key = tf.cast(left, tf.int64) * 2**32 + tf.cast(code, tf.int64)
            joined = tf.where((starter >= 0) & (above < kind), self.pairs(key), -1)
            joins = indices(joined >= 0)
            codes = tf.tensor_scatter_nd_update(
                codes, tf.gather(starter, joins)[:, None], tf.gather(joined, joins)
            )
            lost = tf.gather(at, joins)[:, None]
            gone = tf.tensor_scatter_nd_update(gone, lost, tf.ones_like(joins) > 0)
            new = (joined < 0) & tf.equal(kind, 0)
            starter = tf.where(new, at, starter)
            above = tf.where(new, -1, tf.where(joined < 0, kind, above))
            more = indices(length > t + 1)
            parts = (tf.gather(v, more) for v in (start, length, starter, above))
            return t + 1, *parts, codes, gone

        nobody = tf.fill(tf.shape(start), -1)
        flat = tf.TensorShape([None])
        *_, codes, gone = tf.while_loop(
            lambda t, start, *_: tf.size(start) > 0,
            step,
            (0, start, length, nobody, nobody, chars.values, tf.zeros_like(edge)),
            shape_invariants=(tf.TensorShape([]), *[flat] * 6),
        )
        return chars._replace(values=codes).keep(~gone)


# -- several characters --------------------------------------------------------------


def replaced(chars: Rows, at, length, content: str) -> Rows:
    """The texts with spans replaced by one character, in the place of the last one."""
    kept = outside(at, length, chars.size)
    if not content:
        return chars.keep(kept)
    last = at + length - 1
    codes = tf.tensor_scatter_nd_update(
        chars.values, last[:, None], tf.fill(tf.shape(at), ord(content))
    )
    return chars._replace(values=codes).keep(kept | marked(last, chars.size))


class Literals(tf.Module):
    """Replaces strings, the longest first, by one character or none."""

    def __init__(self, strings: list[str], content: str):
        super().__init__()
        self.trie, self.content = Trie(dict.fromkeys(strings, 1)), content

    def __call__(self, chars: Rows) -> Rows:
        """The texts after that."""
        _, longest = self.trie(chars.values, chars.splits)
        return replaced(chars, *in_turn(longest), self.content)


class Tags(tf.Module):
    """Replaces HTML tags, `HTML_TAG`, by a character."""

    def __init__(self, content: str):
        super().__init__()
        self.content = content

    def __call__(self, chars: Rows) -> Rows:
        """The texts after that."""
        codes, last = chars.values, shifted(chars.edges, -1, True)
        opening, closing = tf.equal(codes, ord("<")), tf.equal(codes, ord(">"))
        lower = tf.bitwise.bitwise_or(codes, 32)
        name = (lower >= ord("a")) & (lower <= ord("z")) | tf.equal(codes, ord("!"))
        slash = tf.equal(codes, ord("/")) & shifted(name, -1, False)
        begins = opening & (shifted(name | slash, -1, False))
        stop = next_true(opening | closing | last)  # the next of these, at or behind
        stop = shifted(stop, -1, 0)
        is_tag = begins & ~last & tf.gather(closing, stop)
        at = indices(is_tag)
        return replaced(chars, at, tf.gather(stop, at) + 1 - at, self.content)


class WholeWords(tf.Module):
    """Drops words that stand alone, as `(?<!\\w)(?:...)(?!\\w)` finds them."""

    def __init__(self, words: list[str]):
        super().__init__()
        self.inner = CodeTable(probe.in_class(r"\w"))
        self.words = StringTable(dict.fromkeys(words, 1))

    def __call__(self, chars: Rows) -> Rows:
        """The texts after that."""
        inner = self.inner(chars.values) > 0
        start = chars.edges | ~(inner & shifted(inner, 1, False))
        splits = tf.concat([indices(start), [chars.size]], 0)
        found = indices(self.words(chars.values, splits) > 0)
        at, length = tf.gather(splits, found), tf.gather(lengths_of(splits), found)
        return replaced(chars, at, length, "")


class Strip(tf.Module):
    """Drops white space at the ends of texts."""

    def __init__(self, step: dict):
        super().__init__()
        blank = np.zeros(probe.NUM_CODES, np.int32)
        blank[list(probe.stripped())] = 1
        self.blank = CodeTable(blank)
        self.left, self.right = step["strip_left"], step["strip_right"]

    def __call__(self, chars: Rows) -> Rows:
        """The texts after that."""

        def stripped():
            solid = tf.equal(self.blank(chars.values), 0)
            before = tf.concat([[0], counted(solid)], 0)
            at_splits = tf.gather(before, chars.splits)
            row, kept = rows_of(chars.splits), tf.fill([chars.size], True)
            if self.left:
                kept &= before[1:] > tf.gather(at_splits, row)
            if self.right:
                kept &= before[:-1] < tf.gather(at_splits, row + 1)
            return chars.keep(kept)

        # Mostly there is none: to look at the ends alone is enough to know.
        ends = tf.concat([chars.splits, tf.maximum(chars.splits - 1, 0)], 0)
        ends = tf.gather(tf.concat([chars.values, [0]], 0), ends)
        return tf.cond(tf.reduce_any(self.blank(ends) > 0), stripped, lambda: chars)


class Squeeze(tf.Module):
    """Two or more spaces become one character."""

    def __init__(self, content: str):
        super().__init__()
        self.content = ord(content)

    def __call__(self, chars: Rows) -> Rows:
        """The texts after that."""
        space = tf.equal(chars.values, 0x20)
        again = space & shifted(space, 1, False) & ~chars.edges

        def squeezed():
            follows = shifted(again, -1, False)
            codes = tf.where(follows | again, self.content, chars.values)
            return chars._replace(values=codes).keep(~follows)

        return tf.cond(tf.reduce_any(again), squeezed, lambda: chars)


class Prepend(tf.Module):
    """Puts a character before every text that is not empty."""

    def __init__(self, char: str):
        super().__init__()
        self.code = ord(char)

    def __call__(self, chars: Rows) -> Rows:
        """The texts after that."""
        index, _, splits = repeated(1 + tf.cast(chars.edges, tf.int32))
        taken = chars.take(index, tf.gather(splits, chars.splits))
        return taken._replace(values=tf.where(taken.edges, self.code, taken.values))
