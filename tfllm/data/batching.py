"""Which examples stand where in which step: a pure function of lengths, seed, epoch.

What depends on the lengths alone is decided once: the padded lengths, how many rows a
step has, how many steps an epoch has. An epoch only chooses which example takes which
place. So every epoch has the same number of steps, any step can be asked for without
replay, and a resumed run goes on at the exact batch.

* Bucketing: few padded lengths, chosen by dynamic programming to pad least; what is
  left over in a bucket moves up into the next, so only an epoch's last step is partial.
* Packing: best-fit decreasing over the histogram of lengths rather than over examples
  (Krell et al. 2021, arXiv 2107.02027). It gives the multiset of packs as tuples of
  lengths; an epoch deals its shuffled examples of each length into them.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from tfllm.data.order import shuffled


class Micro(NamedTuple):
    """A micro-batch: example `indices[k]` stands in row `rows[k]` from `starts[k]`.

    Attributes:
        indices: int64 [n], examples.
        rows: int64 [n], ascending.
        starts: int64 [n], positions.
        num_rows: Rows, among them those that stay empty.
        length: Positions in a row.
        slots: The most texts a row can hold when packing; 0 when not packing.
    """

    indices: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    num_rows: int
    length: int
    slots: int = 0


class BatchPlan:
    """Deals examples into steps, and steps into `parts` micro-batches of equal shape.

    A step's rows do not depend on `parts` (replicas times accumulation): they are cut
    evenly, and rows that are missing stay empty.

    Args:
        lengths: Tokens of each example, int [n].
        batch_size: Rows a step, all parts together.
        tokens_per_batch: Positions a step instead: short examples make larger batches.
        max_length: Longer examples are cut to it; no row is longer.
        seed: Of the shuffle.
        shuffle: Whether each epoch has its own order.
        bucketing: Whether examples of like length share a batch.
        packing: Whether several examples share a row of `max_length`; a batch's rows
            are then packs, and `bucketing` says nothing.
        parts: Micro-batches a step.
        pad_to_multiple: Padded lengths are multiples of it (or `max_length`).
        max_buckets: The most different shapes.
        early_epochs: In so many epochs at the start, examples n + i take the places of
            examples i.

    Attributes:
        steps_per_epoch: The same in every epoch.
        shapes: The different (rows, length) of micro-batches, shortest first.
        padding_share: The exact share of an epoch's positions that hold no token.
    """

    def __init__(
        self,
        lengths,
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        max_length: int,
        seed: int = 0,
        shuffle: bool = True,
        bucketing: bool = True,
        packing: bool = False,
        parts: int = 1,
        pad_to_multiple: int = 8,
        max_buckets: int = 8,
        early_epochs: int = 0,
    ):
        if (batch_size is None) == (tokens_per_batch is None):
            raise ValueError("give either batch_size or tokens_per_batch")
        size = tokens_per_batch if batch_size is None else batch_size
        if min(size, parts, max_length, max_buckets, pad_to_multiple) < 1:
            raise ValueError("sizes must be at least 1")
        lengths = np.asarray(lengths, np.int64)
        if not len(lengths):
            raise ValueError("there are no examples to batch")
        self.parts, self.seed, self.shuffle = parts, seed, shuffle
        self._early = early_epochs
        self._size, self.packing = len(lengths), packing
        tokens = int(np.minimum(lengths, max_length).sum())
        # An empty text still takes a place, so that it has a row or a slot of its own.
        lengths = np.clip(lengths, 1, max_length)
        if packing:
            units, ceilings = self._pack(lengths, max_length)
        else:
            limit = max_buckets if bucketing else 1
            ceilings = choose_lengths(lengths, limit, pad_to_multiple, max_length)
            bucket = np.searchsorted(ceilings, lengths)
            self._group = bucket.astype(np.min_scalar_type(len(ceilings)))
            units = np.bincount(bucket, minlength=len(ceilings))
        rows = [batch_size or max(1, tokens_per_batch // size) for size in ceilings]
        self._cut(units, ceilings, rows)
        self.steps_per_epoch = len(self._step_shape)
        self.padding_share = 1 - tokens / (self._step_shape.prod(1).sum() * parts)
        shapes = {tuple(map(int, shape)) for shape in self._step_shape}
        self.shapes = sorted(shapes, key=lambda shape: shape[1])
        self._epochs: dict[int, tuple] = {}

    def _cut(self, units, ceilings, rows) -> None:
        """Cuts the row of units (examples or packs, by bucket) into steps.

        The units of a bucket that fill no step are the head of the next bucket's.
        """
        cuts, shapes, place, end = [0], [], 0, 0
        for count, length, step_rows in zip(units, ceilings, rows, strict=True):
            end += int(count)
            shape = (-(-step_rows // self.parts), int(length))
            while end - place >= step_rows:
                place += step_rows
                cuts.append(place)
                shapes.append(shape)
        self._last_is_partial = place < end
        if self._last_is_partial:
            cuts.append(end)
            shapes.append(shape)
        self._cuts, self._step_shape = np.array(cuts), np.array(shapes)

    def _pack(self, lengths, length) -> tuple[list[int], list[int]]:
        """Decides the packs. Returns the number of packs and their length, as lists."""
        values, inverse, counts = np.unique(
            lengths, return_inverse=True, return_counts=True
        )
        histogram = dict(zip(values.tolist(), counts.tolist(), strict=True))
        patterns = pack_histogram(histogram, length)
        self.slots = max(len(pattern) for pattern, _ in patterns)
        per_pack = np.concatenate([np.full(n, len(p)) for p, n in patterns])
        self._pack_offsets = np.concatenate([[0], np.cumsum(per_pack)])
        item_lengths = np.concatenate([np.tile(p, n) for p, n in patterns])
        before = np.cumsum(item_lengths) - item_lengths
        self._item_starts = before - np.repeat(
            before[self._pack_offsets[:-1]], per_pack
        )
        self._group = inverse.astype(np.min_scalar_type(len(values)))
        # The examples sorted by length fill the places sorted by length.
        self._places = np.argsort(item_lengths, kind="stable")
        return [len(per_pack)], [length]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Examples in the order of places, order of packs, order of steps; O(n)."""
        if epoch in self._epochs:
            return self._epochs[epoch]
        if self.shuffle:
            order = shuffled(self._size, self.seed, 3 * epoch)
        else:
            order = np.arange(self._size)
        order = order[np.argsort(self._group[order], kind="stable")]
        if epoch < self._early:
            order += self._size
        packs = steps = None
        if self.packing:
            dealt = np.empty_like(order)
            dealt[self._places] = order
            order, num_packs = dealt, len(self._pack_offsets) - 1
            packs = np.arange(num_packs)
            if self.shuffle:
                packs = shuffled(num_packs, self.seed, 3 * epoch + 1)
        steps = np.arange(self.steps_per_epoch)
        full = self.steps_per_epoch - self._last_is_partial
        if self.shuffle and full:
            steps[:full] = shuffled(full, self.seed, 3 * epoch + 2)
        # Two epochs are kept: a prefetching thread may be ahead of a slower one.
        kept = {k: v for k, v in self._epochs.items() if abs(k - epoch) == 1}
        self._epochs = kept | {epoch: (order, packs, steps)}
        return order, packs, steps

    def step(self, step: int) -> list[Micro]:
        """The micro-batches, one a part, of a global step (from 0, over all epochs)."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order, packs, steps = self._epoch(epoch)
        number = steps[number]
        begin, end = self._cuts[number], self._cuts[number + 1]
        num_rows, length = map(int, self._step_shape[number])
        edges = begin + np.arange(self.parts + 1) * (end - begin) // self.parts
        return [
            self._micro(order, packs, *edges[part : part + 2], num_rows, length)
            for part in range(self.parts)
        ]

    def _micro(self, order, packs, begin, end, num_rows, length) -> Micro:
        rows = np.arange(end - begin)
        if not self.packing:
            return Micro(order[begin:end], rows, rows * 0, num_rows, length)
        chosen = packs[begin:end]
        firsts = self._pack_offsets[chosen]
        counts = self._pack_offsets[chosen + 1] - firsts
        ends = np.cumsum(counts)
        items = np.repeat(firsts - ends + counts, counts) + np.arange(counts.sum())
        rows, starts = np.repeat(rows, counts), self._item_starts[items]
        return Micro(order[items], rows, starts, num_rows, length, self.slots)


def choose_lengths(
    lengths: np.ndarray, max_buckets: int, multiple: int, max_length: int
) -> list[int]:
    """The padded lengths, ascending, at most `max_buckets`, that pad least.

    Dynamic programming over the histogram of lengths rounded up to `multiple`; exact.

    Args:
        lengths: int [n], each in [1, max_length].
        max_buckets: The most lengths.
        multiple: Lengths are multiples of it, or `max_length`.
        max_length: The greatest length allowed.
    """
    while max_length > 512 * multiple:  # the table below has a cell for each two sizes
        multiple *= 2
    rounded = np.minimum(-(-lengths // multiple) * multiple, max_length)
    sizes, counts = np.unique(rounded, return_counts=True)
    if len(sizes) <= max_buckets:
        return sizes.tolist()
    if max_buckets == 1:
        return [int(sizes[-1])]
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[i]: positions for the shortest i sizes with the buckets so far; one more
    # bucket for sizes i..j-1 costs (below[j] - below[i]) * sizes[j-1].
    cost = np.where(np.arange(len(below)) == 0, 0, np.inf)
    choices = []
    for _ in range(max_buckets):
        options = cost[:, None] + (below - below[:, None]) * np.r_[0, sizes]
        options[np.tril_indices(len(below))] = np.inf
        options[0, 0] = 0
        choices.append(options.argmin(0))
        cost = options.min(0)
    ends, j = [], len(sizes)
    for choice in reversed(choices):
        if j:
            ends.append(int(sizes[j - 1]))
            j = choice[j]
    return ends[::-1]


def pack_histogram(
    histogram: dict[int, int], length: int
) -> list[tuple[tuple[int, ...], int]]:
    """Packs items into bins of `length`, best fit, longest first, by their counts.

    Args:
        histogram: item length (1 to `length`) → how many.
        length: The size of a bin.

    Returns:
        (lengths in a bin, how many such bins); the time grows with the number of
        different lengths, not of items.
    """
    open_bins: dict[int, list] = defaultdict(list)  # room → [(pattern, count)]
    for item in sorted(histogram, reverse=True):
        left = histogram[item]
        while left:
            room = min((r for r in open_bins if r >= item), default=None)
            if room is None:
                pattern, room = (), length
                copies = min(length // item, left)
                used = left // copies
            else:
                pattern, bins = open_bins[room].pop()
                # As many copies a bin as fit, or as there are to spread.
                copies = min(room // item, max(1, left // bins))
                used = min(bins, left // copies)
                if used < bins:
                    open_bins[room].append((pattern, bins - used))
                if not open_bins[room]:
                    del open_bins[room]
            open_bins[room - copies * item].append((pattern + (item,) * copies, used))
            left -= used * copies
    return [entry for room in sorted(open_bins) for entry in open_bins[room]]
