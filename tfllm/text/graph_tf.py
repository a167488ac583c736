"""The in-graph engine: the same ids from TensorFlow's own ops, for the server.

How it works. All texts of a batch lie one after another in flat arrays of code points
(`Chars`), and every step works on the whole of them at once. What looks sequential is
made parallel:

- a normalizer that looks at one character at a time is a table over code points;
- where words begin follows from the classes of a character and its neighbours;
- whole words are looked up as strings, and only the unknown ones are cut further;
- all pieces that start at a position, of any length, are found at once (`Trie`);
- which of them are used is a chain of jumps, followed by pointer doubling (`chain`).

There is no state that a request can change, and no character with a meaning of its
own is ever put into a text.
"""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text import probe
from tfllm.text.cleaning import ANYWHERE, HTML_TAG, WHOLE_WORD, alternatives
from tfllm.text.tokenizer import TRUNCATIONS, Tokenizer

INT_MAX = 2**31 - 1


@dataclasses.dataclass
class Chars:
    """Characters of all texts in a row.

    Attributes:
        codes: Code points, int32 `[T]`.
        splits: Where each text starts and the last one ends, int32 `[N + 1]`.
        start, end: The span of the original text behind each, int32 `[T]`, counted
            from the start of the batch; None when nobody asked for offsets.
        first: `splits` of the original texts.
    """

    codes: tf.Tensor
    splits: tf.Tensor
    start: tf.Tensor | None = None
    end: tf.Tensor | None = None
    first: tf.Tensor | None = None

    @property
    def size(self) -> tf.Tensor:
        """T, a scalar."""
        return tf.size(self.codes)

    def keep(self, mask: tf.Tensor) -> "Chars":
        """Only the characters where the mask holds."""
        index = indices(mask)
        return self.take(index, rank_in(index, self.splits))

    def take(self, index: tf.Tensor, splits: tf.Tensor) -> "Chars":
        """The characters at `index`, of texts with these splits."""
        spans = (None, None)
        if self.start is not None:
            spans = tf.gather(self.start, index), tf.gather(self.end, index)
        return Chars(tf.gather(self.codes, index), splits, *spans, self.first)


def fields(record) -> list:
    """The values of a dataclass, as they are."""
    return [getattr(record, field.name) for field in dataclasses.fields(record)]


# -- small things on flat arrays -----------------------------------------------------


def indices(mask: tf.Tensor) -> tf.Tensor:
    """Where the mask holds: int32 `[M]`."""
    return tf.cast(tf.reshape(tf.where(mask), [-1]), tf.int32)


def rank_in(index: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """How many entries of a sorted index are below each value.

    Much cheaper than a running count over all positions when the values are few.
    """
    return tf.raw_ops.LowerBound(
        sorted_inputs=index[None], values=values[None], out_type=tf.int32
    )[0]


def counts_before(mask: tf.Tensor) -> tf.Tensor:
    """How many hold before each index: int32 `[T + 1]`."""
    return tf.concat([[0], tf.cumsum(tf.cast(mask, tf.int32))], 0)


def shifted(values: tf.Tensor, by: int, fill) -> tf.Tensor:
    """`result[i] = values[i - by]`, `fill` where there is none."""
    edge = tf.fill([tf.minimum(abs(by), tf.size(values))], tf.cast(fill, values.dtype))
    if by > 0:
        return tf.concat([edge, values[:-by]], 0)
    return tf.concat([values[-by:], edge], 0)


def marked(positions: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """bool `[size]`, true at the positions (those equal to `size` are left out)."""
    counts = tf.math.unsorted_segment_sum(tf.ones_like(positions), positions, size + 1)
    return counts[:size] > 0


def segment_ids(splits: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Which row each of `size` values is in, from row splits."""
    ends = splits[1:]
    ended = tf.math.unsorted_segment_sum(tf.ones_like(ends), ends, size + 1)
    return tf.cumsum(ended)[:size]


def next_true(mask: tf.Tensor) -> tf.Tensor:
    """The first index >= i where the mask holds, else the size: int32 `[T]`."""
    size = tf.size(mask)
    at = tf.concat([indices(mask), [size]], 0)
    return tf.gather(at, counts_before(mask)[:-1])


def latest(mask, values):
    """`values` at the last index <= i where the mask holds; 0 before the first."""
    at = tf.reshape(tf.where(mask), [-1])
    known = tf.concat([[0], tf.gather(values, at)], 0)
    return tf.gather(known, tf.cumsum(tf.cast(mask, tf.int32)))


def chain(first: tf.Tensor, end: tf.Tensor, jump: tf.Tensor) -> tf.Tensor:
    """Everything reached by jumps; in no order, int32 `[M]`.

    Args:
        first, end: Where each chain starts, and what it stops at or beyond: `[W]`.
        jump: int32 `[T]`, from each index to the next one.
    """
    steps = tf.TensorArray(
        tf.int32, 0, dynamic_size=True, infer_shape=False, element_shape=[None]
    )

    def step(t, at, end, steps):
        steps = steps.write(t, at)
        at = tf.gather(jump, at)
        more = indices(at < end)
        return t + 1, tf.gather(at, more), tf.gather(end, more), steps

    flat = tf.TensorShape([None])
    *_, steps = tf.while_loop(
        lambda t, at, *_: (tf.size(at) > 0) | tf.equal(t, 0),
        step,
        (0, first, end, steps),
        shape_invariants=(tf.TensorShape([]), flat, flat, None),
    )
    return steps.concat()


# -- tables --------------------------------------------------------------------------


class CodeTable(tf.Module):
    """A table over all code points in two levels: blocks of 128 are stored once."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        blocks: dict[bytes, int] = {}
        rows = values.astype(np.int32).reshape(-1, 128)
        index = [blocks.setdefault(row.tobytes(), len(blocks) * 128) for row in rows]
        self.blocks = tf.constant(np.frombuffer(b"".join(blocks), np.int32))
        self.index = tf.constant(index, tf.int32)

    def __call__(self, codes: tf.Tensor) -> tf.Tensor:
        """The values of code points."""
        block = tf.gather(self.index, tf.bitwise.right_shift(codes, 7))
        return tf.gather(self.blocks, block + tf.bitwise.bitwise_and(codes, 127))


class StringTable(tf.Module):
    """Strings to ids, -1 when there is none."""

    def __init__(self, ids: dict[str, int]):
        super().__init__()
        keys = [key.encode() for key in ids] or [b"\xff"]
        values = tf.constant(list(ids.values()) or [-1], tf.int32)
        initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(keys), values)
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    def __call__(self, codes: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
        """The ids of the words `codes[splits[i]:splits[i + 1]]`."""
        words = tf.raw_ops.UnicodeEncode(
            input_values=codes, input_splits=splits, output_encoding="UTF-8"
        )
        return self.table.lookup(words)


class IntTable(tf.Module):
    """int64 keys to int32, -1 when there is none."""

    def __init__(self, keys, values):
        super().__init__()
        keys, values = tf.constant(keys, tf.int64), tf.constant(values, tf.int32)
        initializer = tf.lookup.KeyValueTensorInitializer(keys, values)
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    def __call__(self, keys: tf.Tensor) -> tf.Tensor:
        """The values of keys."""
        return self.table.lookup(keys)


class Trie(tf.Module):
    """Finds, at every position, all the strings of a set that start there.

    A trie is walked at all depths at once: a hash of the first l characters guesses
    the node at depth l, and the guess is right if the node's parent is the node found
    at depth l - 1 and its last character is the one in the text. So the answer is
    exact, whatever the hash.

    Args:
        values: String (as a tuple of code points) to value, for each root.
    """

    SHORT = 4

    def __init__(self, *values: dict[tuple[int, ...], int]):
        super().__init__()
        roots = len(values)
        self.depth = max((len(key) for root in values for key in root), default=1)
        random = np.random.RandomState(2)
        powers = random.randint(-(2**63), 2**63 - 1, self.depth, np.int64) | 1
        self.seeds = random.randint(-(2**63), 2**63 - 1, roots, np.int64)
        nodes = {}  # (root, prefix) -> node; node r is the root r
        parents, chars, node_values = [-1] * roots, [-1] * roots, [-1] * roots
        for root, keys in enumerate(values):
            for key, value in keys.items():
                parent = root
                for length in range(1, len(key) + 1):
                    node = nodes.setdefault((root, key[:length]), len(parents))
                    if node == len(parents):
                        parents.append(parent)
                        chars.append(key[length - 1])
                        node_values.append(-1)
                    parent = node
                node_values[parent] = value
        hashes = np.empty(len(nodes), np.int64)
        with np.errstate(over="ignore"):
            for i, (root, prefix) in enumerate(nodes):
                terms = (np.array(prefix, np.int64) + 1) * powers[: len(prefix)]
                hashes[i] = self.seeds[root] + terms.sum(dtype=np.int64)
        if len(np.unique(hashes)) != len(hashes):  # never seen; 64 bits are many
            raise ValueError("two nodes with one hash")
        self.table = IntTable(hashes, list(nodes.values()))
        self.powers = tf.constant(powers)
        self.seeds = tf.constant(self.seeds)
        # Parent and last character in one number: one comparison checks both.
        links = np.array(parents, np.int64) * 2**22 + np.array(chars, np.int64)
        self.links = tf.constant(links)
        self.values = tf.constant(node_values, tf.int32)

    def __call__(self, codes, positions, ends, roots=None) -> tf.Tensor:
        """The values found: int32 `[P, depth]`, column l - 1 for length l, else -1.

        Args:
            codes: int32 `[T]`.
            positions: int32 `[P]`.
            ends: int32 `[P]`, what is at or after it does not belong to the word.
            roots: int32 `[P]`, which set is asked for; the first when None.
        """
        root = tf.zeros_like(positions) if roots is None else roots
        hashed = tf.gather(self.seeds, root)
        # Few strings are long: most positions are done after the first columns.
        depth = min(self.depth, self.SHORT)
        found, alive, hashed, node = self.columns(
            codes, positions, ends, root, hashed, 0, depth
        )
        if depth == self.depth:
            return found
        index = indices(alive)
        rest, *_ = self.columns(
            codes, *(tf.gather(v, index) for v in (positions, ends, node, hashed)),
            depth, self.depth,
        )  # fmt: skip
        shape = tf.stack([tf.size(positions), self.depth - depth])
        rest = tf.scatter_nd(index[:, None], rest + 1, shape) - 1
        return tf.concat([found, rest], 1)

    def columns(self, codes, positions, ends, node, hashed, start, stop):
        """Columns `start` to `stop` of the above, from the nodes at depth `start`."""
        window = positions[:, None] + tf.range(start, stop)[None]
        inside = window < ends[:, None]
        last = tf.maximum(tf.size(codes) - 1, 0)
        padded = tf.cond(
            tf.size(codes) > 0, lambda: codes, lambda: tf.zeros([1], tf.int32)
        )
        chars = tf.cast(tf.gather(padded, tf.minimum(window, last)), tf.int64)
        sums = (chars + 1) * self.powers[start:stop]
        shift = 1
        while shift < stop - start:  # a running sum; tf.cumsum is much slower
            sums += tf.pad(sums[:, :-shift], [[0, 0], [shift, 0]])
            shift *= 2
        hashed = sums + hashed[:, None]
        nodes = self.table(hashed)
        above = tf.cast(tf.concat([node[:, None], nodes[:, :-1]], 1), tf.int64)
        known = tf.maximum(nodes, 0)
        right = tf.equal(tf.gather(self.links, known), above * 2**22 + chars)
        wrong = tf.cast(~(right & inside & (nodes >= 0)), tf.int8)
        wrong = tf.pad(wrong, [[0, 0], [0, 1]], constant_values=1)
        length = tf.argmax(wrong, 1, output_type=tf.int32)  # the first that is wrong
        whole = tf.range(stop - start) < length[:, None]
        found = tf.where(whole, tf.gather(self.values, known), -1)
        return found, tf.equal(length, stop - start), hashed[:, -1], nodes[:, -1]


def code_tuple(text: str) -> tuple[int, ...]:
    """A string as a key of a `Trie`."""
    return tuple(map(ord, text))


# -- normalizers ---------------------------------------------------------------------


class CharMap(tf.Module):
    """Replaces each code point by none, one or several others."""

    def __init__(self, changed: dict[int, tuple[int, ...]]):
        super().__init__()
        self.single = all(len(to) == 1 for to in changed.values())
        # A record: how many, and what to add to the code or where the codes stand.
        records, flat, index = {(1, 0): 0}, [], np.zeros(probe.NUM_CODES, np.int32)
        for code, to in changed.items():
            if len(to) > 1:
                record = (len(to), len(flat))
                flat.extend(to)
            else:
                record = (len(to), to[0] - code if to else 0)
            index[code] = records.setdefault(record, len(records))
        self.record = CodeTable(index)
        self.lengths = tf.constant([length for length, _ in records], tf.int32)
        self.shifts = tf.constant([shift for _, shift in records], tf.int32)
        self.flat = tf.constant(flat or [0], tf.int32)

    def __call__(self, chars: Chars) -> Chars:
        """The texts with them replaced."""
        record = self.record(chars.codes)
        shift = tf.gather(self.shifts, record)
        if self.single:
            return dataclasses.replace(chars, codes=chars.codes + shift)
        lengths = tf.gather(self.lengths, record)

        def one_to_one():
            return chars.codes + shift, tf.range(chars.size), chars.splits

        def expanded():
            # One op yields index and place in it: value = index * 32 + place.
            at = tf.range(chars.size) * 32
            spread = tf.raw_ops.RaggedRange(
                starts=at, limits=at + lengths, deltas=1, Tsplits=tf.int32
            )
            index = tf.bitwise.right_shift(spread.rt_dense_values, 5)
            place = tf.bitwise.bitwise_and(spread.rt_dense_values, 31)
            offset, several = tf.gather(shift, index), tf.gather(lengths, index) > 1
            flat = tf.gather(self.flat, tf.where(several, offset + place, 0))
            codes = tf.where(several, flat, tf.gather(chars.codes, index) + offset)
            return codes, index, tf.gather(spread.rt_nested_splits, chars.splits)

        same = tf.reduce_all(tf.equal(lengths, 1))
        codes, index, splits = tf.cond(same, one_to_one, expanded)
        return dataclasses.replace(chars.take(index, splits), codes=codes)


def normalizer(definition: dict, bert: bool) -> list:
    """The normalizer of a definition as a list of functions from Chars to Chars."""
    functions, simple = [], []

    def flush():
        if simple:
            functions.append(CharSteps(list(simple)))
            simple.clear()

    for step in defs.normalizers(definition):
        pattern, content = step.get("pattern", {}), step.get("content")
        regex = pattern.get("Regex", "")
        if regex in (defs.APOSTROPHE, defs.WORD_ENDS):
            continue  # the pre-tokenizer of words does it
        if step["type"] == "BertNormalizer" and bert:
            # Spaces around Chinese characters are left to the pre-tokenizer.
            off = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
            off = step | dict.fromkeys(off, False)
            strip = step["strip_accents"]
            simple.append(off | {"clean_text": step["clean_text"]})
            if step["lowercase"] if strip is None else strip:
                simple.extend([{"type": "NFD"}, off | {"strip_accents": True}])
            simple.append(off | {"lowercase": step["lowercase"]})
            continue
        one = len(pattern.get("String", "")) == 1 or is_one_class(regex)
        if one or step["type"] in ("Lowercase", "StripAccents", "Nmt", *defs.FORMS):
            simple.append(step)
            continue
        flush()
        whole = alternatives(regex, WHOLE_WORD)
        anywhere = alternatives(regex, ANYWHERE)
        if step["type"] == "Strip":
            functions.append(Strip(step))
        elif step["type"] == "Prepend":
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


class Literals(tf.Module):
    """Replaces strings, the longest first, by one character or none."""

    def __init__(self, strings: list[str], content: str):
        super().__init__()
        self.trie = Trie({code_tuple(string): 1 for string in strings})
        self.content = ord(content) if content else None

    def __call__(self, chars: Chars) -> Chars:
        """The texts without them."""
        size = chars.size
        row = segment_ids(chars.splits, size)
        ends = tf.gather(chars.splits, row + 1)
        found = self.trie(chars.codes, tf.range(size), ends)
        lengths = tf.range(1, self.trie.depth + 1)
        longest = tf.reduce_max(tf.where(found < 0, 0, lengths), 1)
        return replaced(chars, *found_in_turn(longest), self.content)


class Tags(tf.Module):
    """Replaces HTML tags, `HTML_TAG`, by a character."""

    def __init__(self, content: str):
        super().__init__()
        self.content = ord(content)

    def __call__(self, chars: Chars) -> Chars:
        """The texts without them."""
        codes, last = chars.codes, shifted(marked(chars.splits, chars.size), -1, True)
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
        self.inner = CodeTable(probe.in_class(r"\w").astype(np.int32))
        self.words = StringTable(dict.fromkeys(words, 1))

    def __call__(self, chars: Chars) -> Chars:
        """The texts without them."""
        inner = self.inner(chars.codes) > 0
        edge = marked(chars.splits, chars.size)
        start = edge | ~(inner & shifted(inner, 1, False))
        index = indices(start)
        splits = tf.concat([index, [chars.size]], 0)
        found = indices(self.words(chars.codes, splits) > 0)
        at = tf.gather(index, found)
        return replaced(chars, at, tf.gather(splits, found + 1) - at, None)


def found_in_turn(longest: tf.Tensor):
    """Matches from left to right, none over another: first indices and lengths.

    Args:
        longest: int32 `[T]`, the length of the match that starts there, or 0.
    """
    size = tf.size(longest)
    # From each match to the next one behind it.
    following = tf.concat([next_true(longest > 0), [size]], 0)
    jump = tf.gather(following, tf.range(size) + longest)
    first = tf.boolean_mask(following[:1], following[:1] < size)
    at = chain(first, tf.fill(tf.shape(first), size), jump)
    return at, tf.gather(longest, at)


def replaced(chars: Chars, at, length, content: int | None) -> Chars:
    """The texts with spans replaced by one character, in the place of the last one."""
    size = chars.size
    change = tf.concat([tf.ones_like(at), -tf.ones_like(at)], 0)
    ends = tf.concat([at, at + length], 0)
    outside = tf.equal(
        tf.cumsum(tf.math.unsorted_segment_sum(change, ends, size + 1))[:size], 0
    )
    if content is None:
        return chars.keep(outside)
    last = at + length - 1
    codes = tf.tensor_scatter_nd_update(
        chars.codes, last[:, None], tf.fill(tf.shape(at), content)
    )
    return dataclasses.replace(chars, codes=codes).keep(outside | marked(last, size))


class CharSteps(tf.Module):
    """Normalizers that are one table, unless characters combine with others.

    Unicode forms reorder and join characters only around combining ones. Where a
    batch has none, each character can be taken by itself.
    """

    def __init__(self, steps: list[dict]):
        super().__init__()
        self.table = CharMap(probe.mapped(json.dumps(steps)))
        self.active, self.steps = None, []
        active = np.zeros(probe.NUM_CODES, np.int32)
        forms = [i for i, step in enumerate(steps) if step["type"] in defs.FORMS]
        at = 0
        for i in [*forms, len(steps)] if forms else []:
            if steps[at:i]:
                self.steps.append(CharMap(probe.mapped(json.dumps(steps[at:i]))))
            if i < len(steps):
                self.steps.append(UnicodeForm(steps[i]["type"]))
                active |= probe.combining(json.dumps(steps[:i]), steps[i]["type"])
            at = i + 1
        if active.any():
            self.active = CodeTable(active)

    def __call__(self, chars: Chars) -> Chars:
        """The texts after all steps."""
        if self.active is None:
            return self.table(chars)

        def values(chars):
            return [v for v in fields(chars) if v is not None]

        def slowly():
            result = chars
            for step in self.steps:
                result = step(result)
            return values(result)

        combining = tf.reduce_any(self.active(chars.codes) > 0)
        return Chars(*tf.cond(combining, slowly, lambda: values(self.table(chars))))


class UnicodeForm(tf.Module):
    """NFC, NFD, NFKC or NFKD (Unicode Standard Annex 15)."""

    def __init__(self, form: str):
        super().__init__()
        decomposed = form.replace("C", "D")
        self.decompose = CharMap(probe.mapped(json.dumps([{"type": decomposed}])))
        self.classes = CodeTable(probe.combining_classes())
        self.pairs = None
        if form in ("NFC", "NFKC"):
            pairs = probe.compositions()
            keys = [first * 2**32 + second for first, second in pairs]
            self.pairs = IntTable(keys, list(pairs.values()))
            second = np.zeros(probe.NUM_CODES, np.int32)
            second[[second for _, second in pairs]] = 1
            self.second = CodeTable(second)

    def __call__(self, chars: Chars) -> Chars:
        """The texts in this form."""
        chars = self.decompose(chars)
        classes, edge = self.classes(chars.codes), marked(chars.splits, chars.size)
        run = tf.cumsum(tf.cast(tf.equal(classes, 0) | edge, tf.int32))
        order = tf.argsort(tf.cast(run, tf.int64) * 256 + tf.cast(classes, tf.int64))
        # The library leaves the spans where they are, so that they stay in order.
        chars = dataclasses.replace(chars, codes=tf.gather(chars.codes, order))
        classes = tf.gather(classes, order)
        return chars if self.pairs is None else self.compose(chars, classes, edge)

    def compose(self, chars: Chars, classes, edge) -> Chars:
        """Joins marks to the letter before, in all runs of such at once."""
        second = self.second(chars.codes) > 0
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
            (0, start, length, nobody, nobody, chars.codes, tf.zeros_like(edge)),
            shape_invariants=(tf.TensorShape([]), *[flat] * 6),
        )
        return dataclasses.replace(chars, codes=codes).keep(~gone)


class Strip(tf.Module):
    """Drops white space at the ends of texts."""

    def __init__(self, step: dict):
        super().__init__()
        blank = np.zeros(probe.NUM_CODES, np.int32)
        blank[list(probe.stripped())] = 1
        self.blank = CodeTable(blank)
        self.left, self.right = step["strip_left"], step["strip_right"]

    def __call__(self, chars: Chars) -> Chars:
        """The texts without it."""
        before = counts_before(tf.equal(self.blank(chars.codes), 0))
        row = segment_ids(chars.splits, chars.size)
        kept = tf.fill([chars.size], True)
        if self.left:
            kept &= before[1:] > tf.gather(before, tf.gather(chars.splits, row))
        if self.right:
            kept &= before[:-1] < tf.gather(before, tf.gather(chars.splits, row + 1))
        return chars.keep(kept)


class Squeeze(tf.Module):
    """Two or more spaces become one character."""

    def __init__(self, content: str):
        super().__init__()
        self.content = ord(content)

    def __call__(self, chars: Chars) -> Chars:
        """The texts with single spaces."""
        space, edge = tf.equal(chars.codes, 0x20), marked(chars.splits, chars.size)
        again = space & shifted(space, 1, False) & ~edge
        follows = shifted(again, -1, False)
        codes = tf.where(follows | again, self.content, chars.codes)
        return dataclasses.replace(chars, codes=codes).keep(~follows)


class Prepend(tf.Module):
    """Puts characters before every text that is not empty."""

    def __init__(self, text: str):
        super().__init__()
        self.codes = tf.constant(code_tuple(text), tf.int32)

    def __call__(self, chars: Chars) -> Chars:
        """The texts with them."""
        size, extra = chars.size, tf.size(self.codes)
        first = marked(chars.splits, size)
        lengths = 1 + tf.cast(first, tf.int32) * extra
        ends = tf.cumsum(lengths)
        index = segment_ids(tf.concat([[0], ends], 0), tf.reduce_sum(lengths))
        place = tf.range(tf.size(index)) - tf.gather(ends - lengths, index)
        place = tf.where(tf.gather(first, index), place, extra)
        before = tf.concat([[0], ends], 0)
        codes = tf.gather(chars.codes, index)
        new = tf.gather(self.codes, tf.minimum(place, extra - 1))
        codes = tf.where(place < extra, new, codes)
        splits = tf.gather(before, chars.splits)
        return dataclasses.replace(chars.take(index, splits), codes=codes)


def is_one_class(pattern: str) -> bool:
    """Whether a regular expression is `[...]`, that is, matches one character."""
    return pattern.startswith("[") and pattern.find("]") == len(pattern) - 1 > 0


# -- from characters to tokens -------------------------------------------------------


@dataclasses.dataclass
class Tokens:
    """Token ids of all texts in a row.

    Attributes:
        ids: int32 `[M]`.
        splits: int32 `[N + 1]`.
        start, end, first: As in `Chars`, or None.
    """

    ids: tf.Tensor
    splits: tf.Tensor
    start: tf.Tensor | None = None
    end: tf.Tensor | None = None
    first: tf.Tensor | None = None


def tokens_at(chars: Chars, index: tf.Tensor, ends: tf.Tensor, ids) -> Tokens:
    """Tokens from the indices of their first and last characters, and their ids."""
    splits = rank_in(index, chars.splits)
    if chars.start is None:
        return Tokens(ids, splits)
    return Tokens(
        ids, splits, tf.gather(chars.start, index), tf.gather(chars.end, ends)
    )


class Characters(tf.Module):
    """A token a character."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        table = np.full(probe.NUM_CODES, tokenizer.unk_id, np.int32)
        for token, token_id in tokenizer.definition["model"]["vocab"].items():
            if len(token) == 1:
                table[ord(token)] = token_id
        self.table = CodeTable(table)

    def __call__(self, chars: Chars) -> Tokens:
        """Their tokens."""
        return Tokens(self.table(chars.codes), chars.splits, chars.start, chars.end)


class Words(tf.Module):
    """Whole words; scripts without spaces by the most probable path."""

    SPACE, SPACED, UNSPACED, OTHER, APOSTROPHE = range(5)

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        model = tokenizer.definition["model"]
        classes = np.full(probe.NUM_CODES, self.OTHER, np.int32)
        classes[probe.in_class(r"\s")] = self.SPACE
        classes[probe.in_class(defs.SPACED)] = self.SPACED
        classes[probe.in_class(f"[{defs.UNSPACED}]")] = self.UNSPACED
        classes[[ord("'"), 0x2019]] = self.APOSTROPHE
        self.classes = CodeTable(classes)
        self.unk_id = tokenizer.unk_id
        special, ids = tokenizer.special_ids, tokenizer.definition_ids
        kept = {t: i for t, i in ids.items() if i not in special}
        self.lattice = None
        if model["type"] == "Unigram":
            scores = {t: s for t, s in model["vocab"] if kept.get(t) is not None}
            unspaced = {t for t in kept if classes[ord(t[0])] == self.UNSPACED}
            lowest = min(score for _, score in model["vocab"])
            self.lattice = Lattice(
                {t: (kept[t], scores[t]) for t in kept if t in unspaced},
                self.unk_id,
                lowest - 10.0,
            )
            marked_words = {
                t[1:-1]: i
                for t, i in kept.items()
                if t[0] == t[-1] == defs.MARK and len(t) > 2
            }
            single = {
                t: i
                for t, i in kept.items()
                if len(t) == 1 and classes[ord(t)] in (self.OTHER, self.APOSTROPHE)
            }
            kept = single | {
                t: i
                for t, i in marked_words.items()
                if classes[ord(t[0])] == self.SPACED
            }
        self.words = StringTable(kept)

    def __call__(self, chars: Chars) -> Tokens:
        """Their tokens."""
        kinds = self.classes(chars.codes)
        # An apostrophe between two letters is a letter (of the same text).
        row_start = marked(chars.splits, chars.size)
        spaced = tf.equal(kinds, self.SPACED)
        between = shifted(spaced, 1, False) & shifted(spaced, -1, False)
        between &= ~(row_start | shifted(row_start, -1, True))
        inner = tf.equal(kinds, self.APOSTROPHE) & between
        codes = tf.where(inner, ord(defs.LETTER_APOSTROPHE), chars.codes)
        kinds = tf.where(inner, self.SPACED, kinds)
        chars = dataclasses.replace(chars, codes=codes)
        solid = tf.not_equal(kinds, self.SPACE)
        before = tf.where(row_start, -1, shifted(kinds, 1, -1))
        run = tf.equal(kinds, before) & tf.equal(kinds, self.SPACED)
        starts = tf.boolean_mask(solid & ~run, solid)
        if self.lattice is not None:
            row_start = tf.boolean_mask(~tf.equal(kinds, before), solid)
        chars = chars.keep(solid)
        if self.lattice is None:
            return self.looked_up(chars, starts)
        kinds = tf.boolean_mask(kinds, solid)
        unspaced = tf.equal(kinds, self.UNSPACED)
        starts, paths = self.lattice(chars, starts, unspaced, row_start)
        return self.looked_up(chars, starts, paths)

    def looked_up(self, chars: Chars, starts, paths=None) -> Tokens:
        """Ids of words; `paths [T]` holds ids that are known already, else -1."""
        index = indices(starts)
        splits = tf.concat([index, [chars.size]], 0)
        ids = self.words(chars.codes, splits)
        ids = tf.where(ids < 0, self.unk_id, ids)
        if paths is not None:
            known = tf.gather(paths, index)
            ids = tf.where(known < 0, ids, known)
        return tokens_at(chars, index, splits[1:] - 1, ids)


class Lattice(tf.Module):
    """The most probable path through scored pieces (Viterbi), as `Unigram` finds it.

    Scores are such that sums of them are exact (`definition.complete`), so the order
    of adding does not matter. Among equal paths the longer last piece wins.

    Args:
        pieces: Piece to (id, score).
        unk_id: What a character without a piece becomes; several in a row are one.
        unk_score: The score of such a character.
    """

    def __init__(self, pieces: dict[str, tuple[int, float]], unk_id, unk_score):
        super().__init__()
        ordered = sorted(pieces)
        self.trie = Trie({code_tuple(p): i for i, p in enumerate(ordered)})
        self.ids = tf.constant([*(pieces[p][0] for p in ordered), unk_id], tf.int32)
        scores = [*(pieces[p][1] for p in ordered), unk_score]
        self.scores = tf.constant(scores, tf.float64)
        self.unknown = len(ordered)
        self.unk_id = unk_id

    def __call__(self, chars: Chars, starts, inside, run_start):
        """Cuts the runs of characters that are `inside`.

        Args:
            chars: The characters `[T]`.
            starts: bool `[T]`, tokens known so far; those inside are made anew.
            inside: bool `[T]`, what is to be cut.
            run_start: bool `[T]`, where a path starts.

        Returns:
            The new starts, and int32 `[T]`: the id of the token that starts there, or
            -1 where it is not inside.
        """
        index = indices(inside)
        size = tf.size(index)

        def cut():
            codes = tf.gather(chars.codes, index)
            first = tf.gather(run_start, index) | tf.not_equal(
                index, shifted(index, 1, -2) + 1
            )
            token, piece = self.paths(codes, first)
            at = index[:, None]
            paths = tf.fill([chars.size], -1)
            paths = tf.tensor_scatter_nd_update(paths, at, tf.where(token, piece, -1))
            return tf.tensor_scatter_nd_update(starts, at, token), paths

        return tf.cond(size > 0, cut, lambda: (starts, tf.fill([chars.size], -1)))

    def paths(self, codes, first):
        """Where tokens start in runs of codes, and their ids: bool, int32 `[P]`."""
        size, depth = tf.size(codes), self.trie.depth
        every = tf.range(size)
        run_end = tf.concat([next_true(first)[1:], [size]], 0)
        found = self.trie(codes, every, run_end)
        alone = tf.where(found[:, :1] < 0, self.unknown, found[:, :1])
        found = tf.concat([alone, found[:, 1:]], 1)
        never = tf.constant(-np.inf, tf.float64)
        score = tf.gather(self.scores, tf.maximum(found, 0))
        score = tf.where(found < 0, never, score)
        # Nothing spans a cut: between cuts the paths are found side by side.
        lengths = tf.range(1, depth + 1)
        longest = tf.reduce_max(tf.where(found < 0, 0, lengths), 1)
        back = every[:, None] - tf.range(1, depth)[None]
        spans = tf.gather(longest, tf.maximum(back, 0)) > tf.range(1, depth)
        crossed = tf.reduce_any(spans & (back >= 0), 1)
        segment = indices(~crossed)
        length = tf.concat([segment[1:], [size]], 0) - segment

        def step(t, segment, length, best, chosen, ends):
            # best[:, j]: the score of the best path to j characters further on.
            sums = best[:, :1] + tf.gather(score, segment + t)
            best = tf.pad(best[:, 1:], [[0, 0], [0, 1]], constant_values=-np.inf)
            chosen = tf.pad(chosen[:, 1:], [[0, 0], [0, 1]])
            better = sums > best  # not >=: of equal paths the longer last piece wins
            best = tf.where(better, sums, best)
            chosen = tf.where(better, lengths, chosen)
            ends = ends.write(t, tf.stack([segment + t, chosen[:, 0]], 1))
            more = indices(length > t + 1)
            parts = (tf.gather(v, more) for v in (segment, length, best, chosen))
            return t + 1, *parts, ends

        count = tf.size(segment)
        best = tf.fill([count, depth], never)
        best = tf.concat([tf.zeros([count, 1], tf.float64), best[:, 1:]], 1)
        flat, table = tf.TensorShape([None]), tf.TensorShape([None, None])
        ends = tf.TensorArray(
            tf.int32, 0, dynamic_size=True, infer_shape=False, element_shape=[None, 2]
        )
        *_, ends = tf.while_loop(
            lambda t, segment, *_: tf.size(segment) > 0,
            step,
            (0, segment, length, best, tf.zeros([count, depth], tf.int32), ends),
            shape_invariants=(tf.TensorShape([]), flat, flat, table, table, None),
        )
        pairs = ends.concat()
        chosen = tf.scatter_nd(pairs[:, :1], pairs[:, 1], [size])
        # Backwards from the ends of the segments: mirrored, so that a jump goes up.
        jump = tf.reverse(size - 1 - (every - chosen), [0])
        last = segment + length - 1
        ends = size - 1 - chain(size - 1 - last, size - segment, jump)
        length = tf.gather(chosen, ends)
        begins = ends - length + 1
        ids = tf.gather_nd(found, tf.stack([begins, length - 1], 1))
        ids = tf.gather(self.ids, ids)
        piece = tf.scatter_nd(begins[:, None], ids + 1, [size]) - 1
        token = piece >= 0
        # Several unknown characters in a row are one token.
        unknown = tf.equal(piece, self.unk_id) & token
        again = unknown & shifted(unknown, 1, False) & ~first
        return token & ~again, piece


class Unigram(tf.Module):
    """SentencePiece's unigram model over whole texts.

    Where no piece goes across a space, a word that is one piece is looked up.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        definition, model = tokenizer.definition, tokenizer.definition["model"]
        if defs.pre_tokenizers(definition):
            raise UserError("unigram with a pre-tokenizer is not in the graph")
        if model.get("byte_fallback"):
            raise UserError("unigram with bytes is not in the graph")
        pieces = {t: (i, s) for i, (t, s) in enumerate(model["vocab"]) if t}
        lowest = min(score for _, score in model["vocab"])
        self.lattice = Lattice(pieces, model["unk_id"], lowest - 10.0)
        self.words = None
        if defs.MARK in pieces and all(defs.MARK not in t[1:] for t in pieces):
            single = [t for t in _single(tokenizer, pieces) if t[0] == defs.MARK]
            self.words = StringTable({t: pieces[t][0] for t in single})

    def __call__(self, chars: Chars) -> Tokens:
        """Their tokens."""
        size, starts = chars.size, marked(chars.splits, chars.size)
        if self.words is None:
            starts, ids = self.lattice(chars, starts, tf.fill([size], True), starts)
        else:
            starts |= tf.equal(chars.codes, ord(defs.MARK))
            index = indices(starts)
            found = self.words(chars.codes, tf.concat([index, [size]], 0))
            word = tf.cumsum(tf.cast(starts, tf.int32)) - 1
            inside = tf.gather(found < 0, word)
            known = tf.scatter_nd(index[:, None], found, [size])
            starts, ids = self.lattice(chars, starts, inside, starts)
            ids = tf.where(inside, ids, known)
        index = indices(starts)
        ends = tf.concat([index[1:], [size]], 0) - 1
        return tokens_at(chars, index, ends, tf.gather(ids, index))


class WordPiece(tf.Module):
    """BERT's words, and the longest pieces from left to right in unknown ones."""

    SPACE, INNER, ALONE = range(3)

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        definition = tokenizer.definition
        model = definition["model"]
        classes = np.select(
            [probe.bert_classes() == 1, probe.bert_classes() == 2],
            [self.SPACE, self.ALONE],
            self.INNER,
        )
        for step in defs.normalizers(definition):
            if step["type"] == "BertNormalizer" and step["handle_chinese_chars"]:
                quiet = dict.fromkeys(
                    ("clean_text", "strip_accents", "lowercase"), False
                )
                classes[list(probe.mapped(json.dumps([step | quiet])))] = self.ALONE
        if [s["type"] for s in defs.pre_tokenizers(definition)] != ["BertPreTokenizer"]:
            raise UserError(
                "wordpiece without BERT's pre-tokenizer is not in the graph"
            )
        self.classes = CodeTable(classes)
        self.unk_id = model["vocab"][model["unk_token"]]
        self.longest = model.get("max_input_chars_per_word", 100)
        prefix = model.get("continuing_subword_prefix", "##")
        self.words = StringTable(model["vocab"])
        inner = {
            code_tuple(t[len(prefix) :]): i
            for t, i in model["vocab"].items()
            if t.startswith(prefix) and len(t) > len(prefix)
        }
        outer = {code_tuple(t): i for t, i in model["vocab"].items() if t}
        self.trie = Trie(outer, inner)

    def __call__(self, chars: Chars) -> Tokens:
        """Their tokens."""
        kinds = self.classes(chars.codes)
        inner = tf.equal(kinds, self.INNER)
        row_start = marked(chars.splits, chars.size)
        continued = inner & shifted(inner, 1, False) & ~row_start
        solid = tf.not_equal(kinds, self.SPACE)
        kept = indices(solid)
        chars = chars.take(kept, rank_in(kept, chars.splits))
        starts = tf.gather(~continued, kept)
        size = chars.size
        index = indices(starts)
        splits = tf.concat([index, [size]], 0)
        lengths = splits[1:] - splits[:-1]
        ids = tf.where(
            lengths > self.longest, self.unk_id, self.words(chars.codes, splits)
        )
        todo = ids < 0

        def whole():
            return tokens_at(chars, index, splits[1:] - 1, ids)

        def cut():
            words = indices(todo)
            first, end = tf.gather(index, words), tf.gather(splits, words + 1)
            spread = tf.raw_ops.RaggedRange(
                starts=first, limits=end, deltas=1, Tsplits=tf.int32
            )
            at, own = spread.rt_dense_values, spread.rt_nested_splits
            count = tf.size(at)
            number = segment_ids(own, count)
            start = tf.equal(at, tf.gather(first, number))
            found = self.trie(
                chars.codes, at, tf.gather(end, number), tf.cast(~start, tf.int32)
            )
            lengths = tf.range(1, self.trie.depth + 1)
            longest = tf.reduce_max(tf.where(found < 0, 0, lengths), 1)
            jump = tf.where(longest > 0, tf.range(count) + longest, count)
            reached = chain(own[:-1], own[1:], jump)
            # A word with a part that no piece fits is unknown as a whole.
            fit = tf.gather(longest, reached)
            part = tf.gather(number, reached)
            stuck = marked(tf.boolean_mask(part, tf.equal(fit, 0)), tf.size(words))
            stuck = tf.gather(stuck, part)
            piece = tf.gather_nd(found, tf.stack([reached, tf.maximum(fit - 1, 0)], 1))
            piece = tf.where(stuck, self.unk_id, piece)
            begin = tf.gather(at, reached)
            kept = indices(~stuck | tf.gather(start, reached))
            begin, piece = tf.gather(begin, kept), tf.gather(piece, kept)
            done = indices(~todo)
            begin = tf.concat([tf.gather(index, done), begin], 0)[:, None]
            piece = tf.concat([tf.gather(ids, done), piece], 0)
            pieces = tf.scatter_nd(begin, piece + 1, [size])
            begin = indices(pieces > 0)
            ends = tf.concat([begin[1:], [size]], 0) - 1
            return tokens_at(chars, begin, ends, tf.gather(pieces, begin) - 1)

        return either(tf.reduce_any(todo), cut, whole)


class BytePair(tf.Module):
    """Byte-pair encoding, of bytes (GPT-2) or of characters (SentencePiece).

    A word that is a token is looked up; in the others the pair that was learned first
    is merged in all words at once, until there is none.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        definition, model = tokenizer.definition, tokenizer.definition["model"]
        vocab = model["vocab"]
        for part in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(part):
                raise UserError(f"BPE with a {part} is not in the graph")
        self.byte_level = defs.is_byte_level(definition)
        self.fused = bool(model.get("fuse_unk"))
        self.split = PreTokenizer(definition)
        unk = vocab.get(model.get("unk_token"), -1)
        if self.byte_level:
            to_byte = defs.byte_characters()
            by_byte = {byte: char for char, byte in to_byte.items()}
            text = {
                t: bytes(map(to_byte.get, t)) for t in vocab if to_byte.keys() >= {*t}
            }
            symbols = [vocab.get(by_byte[byte], -1) for byte in range(256)]
        else:
            text = {t: t.encode() for t in vocab}
            symbols = [vocab.get(f"<0x{byte:02X}>", -1) for byte in range(256)]
            chars = np.full(probe.NUM_CODES, -1, np.int32)
            for token, token_id in vocab.items():
                if len(token) == 1:
                    chars[ord(token)] = token_id
            self.chars = CodeTable(chars)
            if not model.get("byte_fallback"):
                symbols = [unk] * 256
        self.whole_unknown = not self.byte_level and not model.get("byte_fallback")
        self.unk_id = unk
        self.symbols = tf.constant(symbols, tf.int32)
        self.complete = min(symbols) >= 0
        # Where no token goes across the start of a word, words can be cut there.
        parts = defs.pre_tokenizers(definition)
        self.by_word = not parts and all(
            defs.MARK not in t.lstrip(defs.MARK) for t in vocab
        )
        merges, ranks = [], {}
        for merge in model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            pair = vocab[left], vocab[right]
            ranks[pair] = len(merges)
            merges.append((*pair, vocab[left + right]))
        table = np.array(merges or [(0, 0, 0)], np.int64)
        self.merged = tf.constant(table[:, 2], tf.int32)
        keys = [left * 2**32 + right for left, right in ranks]
        self.ranks = IntTable(keys or [-1], list(ranks.values()) or [-1])
        # A merge may be done at all places at once if what it makes takes part only
        # in later merges; of another one only the first place is merged.
        order = np.arange(len(table))
        earliest = np.full(max(vocab.values()) + 1, len(table))
        np.minimum.at(earliest, table[:, 0], order)
        np.minimum.at(earliest, table[:, 1], order)
        at_once = earliest[table[:, 2]] > order
        self.at_once = None if at_once.all() else tf.constant(at_once)
        whole = text if model.get("ignore_merges") else _single(tokenizer, text)
        known = {}
        for token in whole:
            try:
                known[text[token].decode()] = vocab[token]
            except UnicodeDecodeError:
                continue  # half a character is no whole word
        self.words = StringTable(known)

    def __call__(self, chars: Chars) -> Tokens:
        """Their tokens."""
        chars, starts = self.split(chars)
        size = chars.size
        if self.by_word:
            mark = tf.equal(chars.codes, ord(defs.MARK))
            starts |= mark & ~shifted(mark, 1, False)
        index = indices(starts)
        splits = tf.concat([index, [size]], 0)
        ids = self.words(chars.codes, splits)
        todo = ids < 0

        def whole():
            return tokens_at(chars, index, splits[1:] - 1, ids)

        def cut():
            words = indices(todo)
            spread = tf.raw_ops.RaggedRange(
                starts=tf.gather(index, words), limits=tf.gather(splits, words + 1),
                deltas=1, Tsplits=tf.int32,
            )  # fmt: skip
            at = spread.rt_dense_values
            number = segment_ids(spread.rt_nested_splits, tf.size(at))
            begins, symbols = self.start(tf.gather(chars.codes, at))
            at = tf.gather(at, begins)
            symbols, first, last = self.merge(symbols, tf.gather(number, begins))
            first, last = tf.gather(at, first), tf.gather(at, last)
            # Whole words and the parts of the others, in the order of the text.
            done = indices(~todo)
            whole_first = tf.gather(index, done)
            place = tf.concat(
                [
                    tf.range(tf.size(done)) + rank_in(first, whole_first),
                    tf.range(tf.size(first)) + rank_in(whole_first, first),
                ],
                0,
            )[:, None]
            count = [tf.size(place)]
            symbols = tf.concat([tf.gather(ids, done), symbols], 0)
            first = tf.concat([whole_first, first], 0)
            last = tf.concat([tf.gather(splits[1:] - 1, done), last], 0)
            tokens = tf.scatter_nd(place, symbols, count)
            first = tf.scatter_nd(place, first, count)
            if chars.start is None:
                return Tokens(tokens, rank_in(first, chars.splits))
            return tokens_at(chars, first, tf.scatter_nd(place, last, count), tokens)

        return either(tf.reduce_any(todo), cut, whole)

    def start(self, codes):
        """The first symbols of characters, and which character each is of."""
        every = tf.range(tf.size(codes))
        known = None if self.byte_level else self.chars(codes)
        steps = [tf.cast(codes >= low, tf.int32) for low in (0x80, 0x800, 0x10000)]
        lengths = 1 + steps[0] + steps[1] + steps[2]
        if known is not None:
            one = (
                known >= 0 if not self.whole_unknown else tf.fill(tf.shape(codes), True)
            )
            lengths = tf.where(one, 1, lengths)
        at = every * 4
        spread = tf.raw_ops.RaggedRange(
            starts=at, limits=at + lengths, deltas=1, Tsplits=tf.int32
        ).rt_dense_values
        index = tf.bitwise.right_shift(spread, 2)
        place = tf.bitwise.bitwise_and(spread, 3)
        length, code = tf.gather(lengths, index), tf.gather(codes, index)
        low = tf.bitwise.right_shift(code, 6 * (length - 1 - place))
        # The first byte holds the length in its upper bits, the others 10xxxxxx.
        lead = tf.gather(tf.constant([0, 0, 0xC0, 0xE0, 0xF0]), length)
        byte = tf.where(
            tf.equal(place, 0), lead + low, 0x80 + tf.bitwise.bitwise_and(low, 0x3F)
        )
        symbol = tf.gather(self.symbols, tf.minimum(byte, 255))
        if known is not None:
            known = tf.gather(known, index)
            symbol = tf.where(known < 0, symbol, known)
        if self.complete:
            return index, symbol
        present = tf.reshape(tf.where(symbol >= 0), [-1])  # no token: left out
        return tf.gather(index, present), tf.gather(symbol, present)

    def merge(self, symbols, words):
        """Merges until nothing can be: symbols, and first and last index of each."""
        every = tf.range(tf.size(symbols))

        def step(symbols, words, first, last, _):
            left, right = symbols[:-1], symbols[1:]
            key = tf.cast(left, tf.int64) * 2**32 + tf.cast(right, tf.int64)
            rank = tf.where(tf.equal(words[:-1], words[1:]), self.ranks(key), -1)
            rank = tf.where(rank < 0, INT_MAX, rank)
            best = tf.math.segment_min(rank, words[:-1])
            chosen = tf.equal(rank, tf.gather(best, words[:-1])) & (rank < INT_MAX)
            safe_rank = tf.where(chosen, rank, 0)
            again = chosen & shifted(chosen, 1, False)
            again &= tf.equal(words[:-1], shifted(words[:-1], 1, -1))
            place = tf.range(tf.size(rank))

            def every_second():  # of a run as in "aaaa", from the left
                origin = latest(chosen & ~again, place)
                return chosen & tf.equal((place - origin) % 2, 0)

            chosen = tf.cond(tf.reduce_any(again), every_second, lambda: chosen)
            if self.at_once is not None:
                only_first = chosen & ~tf.gather(self.at_once, safe_rank)
                at = tf.where(only_first, place, INT_MAX)
                earliest = tf.math.segment_min(at, words[:-1])
                first_place = tf.equal(place, tf.gather(earliest, words[:-1]))
                chosen &= ~only_first | first_place
            merged = tf.where(chosen, tf.gather(self.merged, safe_rank), left)
            gone = tf.concat([[False], chosen], 0)
            kept = ~gone[: tf.size(symbols)]
            symbols = tf.concat([merged, symbols[tf.size(merged) :]], 0)
            ends = tf.concat(
                [tf.where(chosen, last[1:], last[:-1]), last[tf.size(rank) :]], 0
            )
            kept = tf.reshape(tf.where(kept), [-1])
            return (
                tf.gather(symbols, kept),
                tf.gather(words, kept),
                tf.gather(first, kept),
                tf.gather(ends, kept),
                tf.reduce_any(chosen),
            )

        flat = tf.TensorShape([None])
        symbols, _, first, last, _ = tf.while_loop(
            lambda *state: state[-1],
            step,
            (symbols, words, every, every, tf.constant(True)),
            shape_invariants=(flat, flat, flat, flat, tf.TensorShape([])),
        )
        return symbols, first, last


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

    def __call__(self, chars: Chars):
        """The characters, and where words start: bool `[T]`."""
        size, codes = chars.size, chars.codes
        edge = marked(chars.splits, size)
        if self.rule is None and self.digits is None:
            return chars, edge
        kinds = self.classes(codes)
        number = tf.equal(kinds, self.NUMBER)
        if self.digits is not None:  # each part is then a text of its own
            edge |= number if self.digits else number & ~shifted(number, 1, False)
            edge |= ~number & shifted(number, 1, False)
        if self.rule is None:
            return chars, edge
        return chars, self.starts(codes, kinds, edge)

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


def either(condition, then, otherwise) -> Tokens:
    """`tf.cond` over functions that return `Tokens`."""

    def values(function):
        found = function()
        return [value for value in fields(found) if value is not None]

    parts = tf.cond(condition, lambda: values(then), lambda: values(otherwise))
    return Tokens(*parts)


def _single(tokenizer: Tokenizer, tokens) -> list[str]:
    """The tokens that are encoded as themselves when they are a word."""
    cut = tokenizer.fast.model.tokenize
    return [token for token in tokens if token and len(cut(token)) == 1]


# -- the tokenizer -------------------------------------------------------------------


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
        self._tokenizer = SimpleNamespace(it=tokenizer)
        self._functions = SimpleNamespace(cache={})
        with tf.init_scope():
            self.normalizer = normalizer(tokenizer.definition, bert=True)
            models = {"characters": Characters, "words": Words}
            models |= {"wordpiece": WordPiece, "bpe": BytePair, "unigram": Unigram}
            self.model = models[tokenizer.kind](tokenizer)
            added = tokenizer.definition["added_tokens"]
            if any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in added):
                raise UserError(
                    "tokens that take spaces with them are not in the graph"
                )
            if not all(t["special"] for t in added):
                raise UserError(
                    "added tokens that are not special are not in the graph"
                )
            self.special = Trie({code_tuple(t["content"]): t["id"] for t in added})
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
        tokenizer = self._tokenizer.it
        template = tokenizer.single
        if add_special_tokens:
            max_length = tokenizer.budget(template, max_length)

        def run(texts):
            tokens = self._tokens(texts, parse_special=parse_special)
            tokens = self._cut(tokens, max_length)
            if not add_special_tokens:
                return ragged(tokens.ids, tokens.splits)
            return self._joined(template, [tokens])[0]

        key = ("encode", add_special_tokens, max_length, parse_special)
        return self._run(key, run, strings(texts))

    def encode_pairs(self, first, second, max_length=None, truncation="longest_first"):
        """Pairs of texts (string `[N]` each) to ids and segment ids, both ragged.

        Args as in `Tokenizer.encode_pairs`.
        """
        tokenizer = self._tokenizer.it
        if truncation not in TRUNCATIONS:
            raise UserError(f"unknown truncation '{truncation}'")
        budget = tokenizer.budget(tokenizer.pair, max_length)

        def run(first, second):
            a, b = self._tokens(first), self._tokens(second)
            if budget is not None:
                size_a, size_b = (
                    a.splits[1:] - a.splits[:-1],
                    b.splits[1:] - b.splits[:-1],
                )
                size_a, size_b = pair_lengths(size_a, size_b, budget, truncation)
                a, b = self._cut(a, size_a), self._cut(b, size_b)
            return self._joined(tokenizer.pair, [a, b])

        key = ("pairs", max_length, truncation)
        return self._run(key, run, strings(first), strings(second))

    def encode_with_offsets(self, texts):
        """Ids, starts, ends (in code points of the text): int32 ragged `[N, None]`."""

        def run(texts):
            tokens = self._tokens(texts, offsets=True)
            row = segment_ids(tokens.splits, tf.size(tokens.ids))
            base = tf.gather(tokens.first, row)
            return tuple(
                ragged(values, tokens.splits)
                for values in (tokens.ids, tokens.start - base, tokens.end - base)
            )

        return self._run(("offsets",), run, strings(texts))

    def decode(self, ids, skip_special_tokens=True):
        """Ids (int `[N, T]`, ragged or dense) to texts, string `[N]`."""

        def run(ids, splits):
            ids = tf.cast(ids, tf.int32)
            count, rows = tf.shape(self.skipped)[0], tf.size(splits) - 1
            known = (ids >= 0) & (ids < count)
            if skip_special_tokens:
                known &= ~tf.gather(self.skipped, tf.where(known, ids, 0))
            row = tf.boolean_mask(segment_ids(splits, tf.size(ids)), known)
            ids = tf.boolean_mask(ids, known)
            glue = tf.gather(self.glue, ids, axis=1)
            same_row = tf.equal(row, shifted(row, 1, -1))
            tight = glue[0] | shifted(glue[1], 1, True) | ~same_row
            parts = tf.gather(self.pieces, ids)
            parts = tf.where(tight, parts, tf.strings.join([" ", parts]))
            texts = tf.strings.unsorted_segment_join(parts, row, rows)
            if self._tokenizer.it.pieces.strip_start:
                texts = tf.strings.regex_replace(texts, "^ ", "", replace_global=False)
            return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")

        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids)
        splits = tf.cast(ids.row_splits, tf.int32)
        return self._run(("decode", skip_special_tokens), run, ids.values, splits)

    # -- inside -----------------------------------------------------------------------

    def _run(self, key, function, *arguments):
        """Inside a function its ops; else a function of our own, traced only once."""
        if not tf.executing_eagerly():
            return function(*arguments)
        if key not in self._functions.cache:
            signature = [tf.TensorSpec([None], a.dtype) for a in arguments]
            made = tf.function(function, autograph=False)
            self._functions.cache[key] = made.get_concrete_function(*signature)
        return self._functions.cache[key](*arguments)

    def _tokens(self, texts, offsets=False, parse_special=False) -> Tokens:
        decoded = tf.raw_ops.UnicodeDecode(
            input=texts, input_encoding="UTF-8", errors="replace",
            replacement_char=0xFFFD, Tsplits=tf.int32,
        )  # fmt: skip
        chars = Chars(decoded.char_values, decoded.row_splits)
        if offsets:
            start = tf.range(chars.size)
            chars = Chars(chars.codes, chars.splits, start, start + 1, chars.splits)
        if parse_special:
            return self._parsed(chars)
        for step in self.normalizer:
            chars = step(chars)
        tokens = self.model(chars)
        tokens.first = chars.first
        return tokens

    def _parsed(self, chars: Chars) -> Tokens:
        """Tokens of texts in which special tokens are written out."""
        size = chars.size
        every = tf.range(size)
        row = segment_ids(chars.splits, size)
        found = self.special(chars.codes, every, tf.gather(chars.splits, row + 1))
        lengths = tf.range(1, self.special.depth + 1)
        longest = tf.reduce_max(tf.where(found < 0, 0, lengths), 1)
        at, length = found_in_turn(longest)
        ids = tf.gather_nd(found, tf.stack([at, length - 1], 1))
        # What lies between is a text of its own: rows are cut at special tokens.
        change = tf.math.unsorted_segment_sum(
            tf.concat([tf.ones_like(at), -tf.ones_like(at)], 0),
            tf.concat([at, at + length], 0),
            size + 1,
        )
        outside = tf.equal(tf.cumsum(change)[:size], 0)
        cuts = tf.concat([chars.splits * 2, at * 2 + 1], 0)
        order = tf.argsort(cuts, stable=True)
        rows = tf.size(chars.splits)
        is_special = order >= rows
        kept = chars.keep(outside)
        kept.splits = rank_in(indices(outside), tf.sort(cuts) // 2)
        for step in self.normalizer:
            kept = step(kept)
        tokens = self.model(kept)
        number = counts_before(is_special)
        position = tokens.splits + number[:-1]
        final = tf.boolean_mask(position, ~is_special)
        special_at = tf.boolean_mask(position, is_special)
        shift = tf.gather(number[1:], segment_ids(tokens.splits, tf.size(tokens.ids)))
        token_at = tf.range(tf.size(tokens.ids)) + shift
        merged = tf.scatter_nd(
            tf.concat([token_at, special_at], 0)[:, None],
            tf.concat([tokens.ids, ids], 0),
            [tf.size(tokens.ids) + tf.size(ids)],
        )
        return Tokens(merged, final)

    def _cut(self, tokens: Tokens, lengths) -> Tokens:
        """At most so many tokens of each text (a number, or int32 `[N]`)."""
        if lengths is None:
            return tokens
        row = segment_ids(tokens.splits, tf.size(tokens.ids))
        place = tf.range(tf.size(tokens.ids)) - tf.gather(tokens.splits, row)
        limit = lengths if isinstance(lengths, int) else tf.gather(lengths, row)
        kept = place < limit
        index = indices(kept)
        return Tokens(tf.gather(tokens.ids, index), rank_in(index, tokens.splits))

    def _joined(self, template: "defs.Template", texts: list[Tokens]):
        """Texts put into a template: ids and segment ids, ragged."""
        rows = tf.size(texts[0].splits) - 1
        sizes = {
            name: tokens.splits[1:] - tokens.splits[:-1]
            for name, tokens in zip("AB", texts, strict=False)
        }
        total = tf.fill([rows], template.added) + sum(sizes.values())
        splits = tf.concat([[0], tf.cumsum(total)], 0)
        place, index, ids, segments = splits[:-1], [], [], []
        for item, segment in template.items:
            if isinstance(item, int):
                index.append(place)
                ids.append(tf.fill([rows], item))
                place += 1
            else:
                tokens = texts["AB".index(item)]
                count = tf.size(tokens.ids)
                shift = tf.gather(
                    place - tokens.splits[:-1], segment_ids(tokens.splits, count)
                )
                index.append(tf.range(count) + shift)
                ids.append(tokens.ids)
                place += sizes[item]
            segments.append(tf.fill(tf.shape(index[-1]), segment))
        index = tf.concat(index, 0)[:, None]
        both = tf.stack([tf.concat(ids, 0), tf.concat(segments, 0)], 1)
        both = tf.scatter_nd(index, both, tf.stack([splits[-1], 2]))
        return ragged(both[:, 0], splits), ragged(both[:, 1], splits)


def pair_lengths(a, b, budget: int, truncation: str):
    """`tokenizer.pair_lengths` for tensors of lengths."""
    if truncation == "only_first":
        return tf.maximum(0, tf.minimum(a, budget - b)), tf.minimum(b, budget)
    if truncation == "only_second":
        return tf.minimum(a, budget), tf.maximum(0, tf.minimum(b, budget - a))
    short = tf.minimum(tf.minimum(a, b), budget // 2)
    long = tf.minimum(tf.maximum(a, b), budget - short)
    return tf.where(a > b, long, short), tf.where(a > b, short, long)


def strings(texts) -> tf.Tensor:
    """Texts as a tensor `[N]`, even if there are none."""
    return tf.convert_to_tensor(texts, tf.string)


def ragged(values: tf.Tensor, splits: tf.Tensor) -> tf.RaggedTensor:
    """A ragged tensor from int32 splits that are known to be right."""
    splits = tf.cast(splits, tf.int64)
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False)
