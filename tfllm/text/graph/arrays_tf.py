"""All texts of a batch in one flat array, and small things on such arrays."""

from typing import NamedTuple

import tensorflow as tf


class Rows(NamedTuple):
    """Characters or tokens of all texts in a row.

    Attributes:
        values: Code points or token ids, int32 `[T]`.
        splits: Where each text starts and the last one ends, int32 `[N + 1]`.
        start, end: The span of the original text behind each, int32 `[T]`, counted
            from the start of the batch; None when nobody asked for offsets.
        first: `splits` of the original texts.
    """

    values: tf.Tensor
    splits: tf.Tensor
    start: tf.Tensor | None = None
    end: tf.Tensor | None = None
    first: tf.Tensor | None = None

    @property
    def size(self) -> tf.Tensor:
        """T, a scalar."""
        return tf.size(self.values)

    @property
    def edges(self) -> tf.Tensor:
        """Where texts start: bool `[T]`."""
        return marked(self.splits, self.size)

    def keep(self, mask: tf.Tensor) -> "Rows":
        """Only those where the mask holds."""
        index = indices(mask)
        return self.take(index, rank_in(index, self.splits))

    def take(self, index: tf.Tensor, splits: tf.Tensor) -> "Rows":
        """Those at `index`, of texts with these splits."""
        return self.spans(index, index, tf.gather(self.values, index), splits)

    def spans(self, first, last, values, splits=None) -> "Rows":
        """New values, each from the first to the last of some neighbours."""
        splits = rank_in(first, self.splits) if splits is None else splits
        if self.start is None:
            return Rows(values, splits)
        start, end = tf.gather(self.start, first), tf.gather(self.end, last)
        return Rows(values, splits, start, end, self.first)


def indices(mask: tf.Tensor) -> tf.Tensor:
    """Where the mask holds: int32 `[M]`."""
    return tf.cast(tf.reshape(tf.where(mask), [-1]), tf.int32)


def rank_in(index: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """How many entries of a sorted index are below each value."""
    return tf.raw_ops.LowerBound(
        sorted_inputs=index[None], values=values[None], out_type=tf.int32
    )[0]


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


def placed(positions: tf.Tensor, values: tf.Tensor, size, fill: int = -1) -> tf.Tensor:
    """int32 `[size]`: the values at the positions (all different), else `fill`."""
    # A sum of one value each: `tf.scatter_nd` takes several times as long.
    return tf.math.unsorted_segment_sum(values - fill, positions, size) + fill


def lengths_of(splits: tf.Tensor) -> tf.Tensor:
    """The length of each row."""
    return splits[1:] - splits[:-1]


def rows_of(splits: tf.Tensor) -> tf.Tensor:
    """Which row each value is in, from row splits (the first one is 0)."""
    # One op counts through each row, with the row's number in the upper half; a
    # running sum, `tf.cumsum`, is several times as slow.
    row = tf.cast(tf.range(tf.size(splits) - 1), tf.int64) * 2**32
    length = tf.cast(lengths_of(splits), tf.int64)
    values = tf.raw_ops.RaggedRange(
        starts=row, limits=row + length, deltas=tf.constant(1, tf.int64),
        Tsplits=tf.int32,
    ).rt_dense_values  # fmt: skip
    return tf.cast(tf.bitwise.right_shift(values, 32), tf.int32)


def counted(mask: tf.Tensor) -> tf.Tensor:
    """How many hold at or before each index: int32 `[T]`."""
    return rows_of(tf.concat([[0], indices(mask), [tf.size(mask)]], 0))


def next_true(mask: tf.Tensor) -> tf.Tensor:
    """The first index >= i where the mask holds, else the size: int32 `[T]`."""
    at = tf.concat([indices(mask), [tf.size(mask)]], 0)
    return tf.gather(at, counted(mask) - tf.cast(mask, tf.int32))


def latest(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`values` at the last index <= i where the mask holds; 0 before the first."""
    known = tf.concat([[0], tf.boolean_mask(values, mask)], 0)
    return tf.gather(known, counted(mask))


def ranges(first: tf.Tensor, end: tf.Tensor):
    """The numbers from each first to its end, in a row, and their row splits."""
    found = tf.raw_ops.RaggedRange(starts=first, limits=end, deltas=1, Tsplits=tf.int32)
    return found.rt_dense_values, found.rt_nested_splits


def repeated(lengths: tf.Tensor):
    """Index i `lengths[i]` (< 32) times: the indices, places 0, 1, …, row splits."""
    at = tf.range(tf.size(lengths)) * 32
    values, splits = ranges(at, at + lengths)
    index = tf.bitwise.right_shift(values, 5)
    return index, tf.bitwise.bitwise_and(values, 31), splits


def outside(at: tf.Tensor, length: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """bool `[size]`, false in the spans (sorted, none over another)."""
    inside, _ = ranges(at, at + length)
    return ~marked(inside, size)


def chain(first: tf.Tensor, end: tf.Tensor, jump: tf.Tensor) -> tf.Tensor:
    """Everything reached by jumps, a step of all chains after another: int32 `[M]`.

    Args:
        first, end: Where each chain starts, and what it stops at or beyond: `[W]`.
        jump: int32 `[T]`, from each index to the next one.
    """

    def step(t, at, end, steps):
        steps = steps.write(t, at)
        at = tf.gather(jump, at)
        more = indices(at < end)
        return t + 1, tf.gather(at, more), tf.gather(end, more), steps

    flat = tf.TensorShape([None])
    *_, steps = tf.while_loop(
        lambda t, at, *_: (tf.size(at) > 0) | tf.equal(t, 0),
        step,
        (0, first, end, growing([None])),
        shape_invariants=(tf.TensorShape([]), flat, flat, None),
    )
    return steps.concat()


def growing(shape: list) -> tf.TensorArray:
    """A list of int32 tensors, for a loop to write."""
    return tf.TensorArray(
        tf.int32, 0, dynamic_size=True, infer_shape=False, element_shape=shape
    )


def in_turn(longest: tf.Tensor):
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


def woven(a: tuple, b: tuple) -> list[tf.Tensor]:
    """Two lists of columns as one, in the order of their first columns (sorted)."""
    place_a = tf.range(tf.size(a[0])) + rank_in(b[0], a[0])
    place_b = tf.range(tf.size(b[0])) + rank_in(a[0], b[0])
    place = tf.concat([place_a, place_b], 0)
    columns = (tf.concat(pair, 0) for pair in zip(a, b, strict=True))
    return [placed(place, column, tf.size(place), 0) for column in columns]


def tiles(ids: tf.Tensor):
    """Pieces that lie one after another: their first and last indices, and ids.

    Args:
        ids: int32 `[T]`, the id of the piece that starts there, else -1.
    """
    first = indices(ids >= 0)
    last = tf.concat([first[1:], [tf.size(ids)]], 0) - 1
    return first, last, tf.gather(ids, first)


def fused(ids: tf.Tensor, unk_id: int, splits: tf.Tensor) -> tf.Tensor:
    """The ids of `tiles`, with several unknown characters in a row as one."""
    unknown = tf.equal(ids, unk_id)
    again = unknown & shifted(unknown, 1, False) & ~marked(splits, tf.size(ids))
    return tf.where(again, -1, ids)
