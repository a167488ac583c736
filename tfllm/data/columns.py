"""Examples as columns: ragged token ids and dense labels, gathered into batches."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from tfllm.data.batching import Micro


class Ragged(NamedTuple):
    """Rows of different lengths: row `i` is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: [total] or [total, …], may be memory-mapped.
        offsets: int64 [n + 1], from 0 to total.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence], dtype=np.int32) -> "Ragged":
        """From a list of lists of numbers."""
        rows = list(rows)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.fromiter(chain.from_iterable(rows), dtype, int(offsets[-1]))
        return cls(flat, offsets)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]."""
        return np.diff(self.offsets)

    def row(self, index: int) -> np.ndarray:
        """One row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]


class Columns:
    """Equal-length columns of `n` examples.

    The first ragged column is the main one: `padding_mask` and positions follow it.

    Args:
        columns: name → `Ragged` or array [n, …].
    """

    def __init__(self, columns: Mapping[str, Ragged | np.ndarray]):
        self.ragged = {k: v for k, v in columns.items() if isinstance(v, Ragged)}
        self.dense = {
            k: np.asanyarray(v) for k, v in columns.items() if k not in self.ragged
        }
        sizes = {k: len(v.offsets) - 1 for k, v in self.ragged.items()}
        sizes |= {k: len(v) for k, v in self.dense.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"columns of different lengths: {sizes}")
        self._size = next(iter(sizes.values()))
        # Decided for all rows at once: a batch's keys must not depend on its rows.
        main = next(iter(self.ragged.values()), None)
        self._masked = {
            name
            for name, column in self.ragged.items()
            if column is main or not np.array_equal(column.offsets, main.offsets)
        }

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, name: str) -> Ragged | np.ndarray:
        return self.ragged[name] if name in self.ragged else self.dense[name]

    def items(self) -> Iterable[tuple[str, Ragged | np.ndarray]]:
        """Name and column, ragged ones first."""
        return chain(self.ragged.items(), self.dense.items())

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: the longest of an example's ragged columns, or 1."""
        parts = [column.lengths for column in self.ragged.values()]
        return np.maximum.reduce(parts) if parts else np.ones(len(self), np.int64)

    def gather(
        self, micro: Micro, pad_values: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """One dense micro-batch, without a loop over examples.

        Args:
            micro: Which examples go where.
            pad_values: What fills a column's empty places; 0 where not given.

        Returns:
            Integers as int32, floats as float32:
            * each ragged column [rows, length], cut to `length`, and `padding_mask`
              int32 [rows, length] (1 = real); `NAME_mask` for a ragged column whose
              lengths differ from the main one's;
            * not packed: each dense column [rows, …] and `weight` float32 [rows], 0 for
              a row that holds no example;
            * packed: `sequence_ids` (1, 2, … along a row, 0 = padding) and `positions`
              (from 0 in each text), int32 [rows, length], and `weight`; where there are
              dense columns, these as [rows, slots, …] beside `slot_starts` int32 and
              `slot_weight` float32 [rows, slots]: slot k is the row's k-th text.
        """
        pad_values, batch = pad_values or {}, {}
        rows, length = micro.num_rows, micro.length
        room = length - micro.starts
        main = None
        for name, column in self.ragged.items():
            begins = column.offsets[micro.indices]
            counts = np.minimum(column.offsets[micro.indices + 1] - begins, room)
            targets = spans(micro.rows * length + micro.starts, counts)
            if name in self._masked:
                mask = np.zeros(rows * length, np.int32)
                mask[targets] = 1
                key = "padding_mask" if main is None else f"{name}_mask"
                batch[key] = mask.reshape(rows, length)
            main = main or (counts, targets)
            values = column.values[spans(begins, counts)]
            inner = values.shape[1:]
            filled = _filled((rows * length, *inner), pad_values.get(name, 0), values)
            filled[targets] = values
            batch[name] = filled.reshape(rows, length, *inner)
        batch["weight"] = np.zeros(rows, np.float32)
        batch["weight"][micro.rows] = 1
        if micro.slots == 0:
            where, shape = (micro.rows,), (rows,)
        else:
            # Texts of a row stand side by side in `micro`, so a text's number in its
            # row is its distance from the row's first.
            firsts = np.searchsorted(micro.rows, micro.rows)
            numbers = np.arange(len(micro.rows)) - firsts
            where, shape = (micro.rows, numbers), (rows, micro.slots)
            if main is not None:
                batch |= _packed(*main, numbers, rows, length)
            if self.dense:
                batch["slot_starts"] = np.zeros(shape, np.int32)
                batch["slot_starts"][where] = micro.starts
                batch["slot_weight"] = np.zeros(shape, np.float32)
                batch["slot_weight"][where] = 1
        for name, column in self.dense.items():
            full = (*shape, *column.shape[1:])
            batch[name] = _filled(full, pad_values.get(name, 0), column)
            batch[name][where] = column[micro.indices]
        return batch


def _packed(counts, targets, numbers, rows, length) -> dict[str, np.ndarray]:
    ids, positions = np.zeros((2, rows * length), np.int32)
    ids[targets] = np.repeat(numbers + 1, counts)
    positions[targets] = spans(np.zeros_like(counts), counts)
    shape = (rows, length)
    return {"sequence_ids": ids.reshape(shape), "positions": positions.reshape(shape)}


def spans(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64 [sum of counts]: `start, start + 1, …` for each start in turn."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + counts, counts) + np.arange(total)


def _filled(shape: tuple, value: float, like: np.ndarray) -> np.ndarray:
    """Floats as float32, all other numbers as int32."""
    floats = np.issubdtype(like.dtype, np.floating)
    return np.full(shape, value, np.float32 if floats else np.int32)
