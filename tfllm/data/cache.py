"""Tokenised columns on disk, memory-mapped, named by the hash of what made them.

That is the text, the options, and the code: after an upgrade entries are made anew.

An entry is a folder `columns/KEY/` of the cache folder (`$TFLLM_CACHE`, else
~/.cache/tfllm) with a `.npy` an array and their checksums. It is written beside and
renamed. When all entries together pass the limit, those used longest ago go; deleting
the folder by hand is always safe.
"""

import functools
import json
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tfllm.core import console
from tfllm.core.errors import UserError
from tfllm.core.files import atomic_directory, cache_directory, sha256
from tfllm.data.columns import Columns, Ragged

LIMIT_BYTES = 20 * 2**30
_PACKAGE = Path(__file__).resolve().parent.parent
_MAKERS = ("text", "data", "tasks")  # the rooms whose code decides what entries hold


def cached_columns(key_parts: dict, build: Callable[[], Columns]) -> Columns:
    """The columns that `build` makes, from the disk if they were made before.

    Args:
        key_parts: All that the result depends on, as JSON: hashes of the files and of
            the tokenizer, lengths, options.
        build: Makes the columns; called when there is no sound entry.

    Returns:
        Memory-mapped columns; those of `build` where the disk takes no more.
    """
    folder = _folder(key_parts)
    columns = _columns(_load(folder))
    if columns is not None:
        return columns
    columns = build()
    try:
        _save(folder, lambda writer: _append_columns(writer, columns))
    except OSError as error:
        console.warn(f"the token cache was not written ({error})")
        return columns
    return _columns(_load(folder)) or columns


def cached_arrays(
    key_parts: dict, write: Callable[["ArrayWriter"], None]
) -> dict[str, np.ndarray]:
    """Memory-mapped arrays that `write` makes block by block: larger than memory.

    Args:
        key_parts: All that the result depends on, as JSON.
        write: Called with an `ArrayWriter` when there is no sound entry.

    Raises:
        UserError: The disk takes no more; nothing is left of the entry.
    """
    folder = _folder(key_parts)
    arrays = _load(folder)
    if arrays is None:
        try:
            _save(folder, write)
        except OSError as error:
            what = f"the token cache cannot be written ({error.strerror})"
            fix = "Free some space, or name another folder in TFLLM_CACHE"
            raise UserError(what, folder.parent, fix) from None
        arrays = _load(folder)
    return arrays


class ArrayWriter:
    """Writes `.npy` files of a folder a block of rows at a time.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path):
        self._folder, self._open = folder, {}

    def append(self, name: str, block: np.ndarray) -> None:
        """Adds rows to the array `name`; the first block decides its dtype."""
        if name not in self._open:
            file = (self._folder / f"{name}.npy").open("wb+")  # closed by `close`
            self._open[name] = [file, block.dtype, 0, block.shape[1:]]
            self._header(name)
        entry = self._open[name]
        np.ascontiguousarray(block, entry[1]).tofile(entry[0])
        entry[2] += len(block)

    def close(self) -> dict[str, int]:
        """Completes the files; returns their checksums by file name."""
        for name, (file, *_) in self._open.items():
            file.seek(0)
            self._header(name)  # now with the true number of rows
            file.close()
        names = [f"{name}.npy" for name in self._open]
        return {name: _checksum(self._folder / name) for name in names}

    def _header(self, name: str) -> None:
        file, dtype, rows, inner = self._open[name]
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (rows, *inner)}
        # NumPy leaves room for the first dimension to grow.
        np.lib.format.write_array_header_1_0(file, header)


def trim(limit_bytes: int = LIMIT_BYTES, keep: Path | None = None) -> None:
    """Removes the entries used longest ago until the rest is below the limit.

    Processes that have an entry open keep what they mapped.
    """
    entries = []
    for folder in (cache_directory() / "columns").glob("*"):
        try:
            size = sum(file.stat().st_size for file in folder.iterdir())
            entries.append(((folder / "entry.json").stat().st_mtime, size, folder))
        except OSError:
            continue  # being written or removed by another process
    total = sum(size for _, size, _ in entries)
    for _, size, folder in sorted(entries):
        if total > limit_bytes and folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


@functools.cache
def _code() -> str:
    """Hash of the code that makes entries: another version would read other columns."""
    files = (path for room in _MAKERS for path in (_PACKAGE / room).rglob("*.py"))
    return sha256(b"".join(path.read_bytes() for path in sorted(files)))


def _folder(key_parts: dict) -> Path:
    key = sha256(json.dumps([_code(), key_parts], sort_keys=True, default=str))
    return cache_directory() / "columns" / key[:32]


def _save(folder: Path, write: Callable[[ArrayWriter], None]) -> None:
    with atomic_directory(folder) as new:
        writer = ArrayWriter(new)
        write(writer)
        (new / "entry.json").write_text(json.dumps(writer.close()), encoding="utf-8")
    trim(keep=folder)


def _append_columns(writer: ArrayWriter, columns: Columns) -> None:
    for name, column in columns.items():
        parts = {"dense": column}
        if isinstance(column, Ragged):
            parts = column._asdict()
        for part, array in parts.items():
            writer.append(f"{name}.{part}", np.asarray(array))


def _columns(arrays: Mapping[str, np.ndarray] | None) -> Columns | None:
    if arrays is None:
        return None
    found = defaultdict(dict)
    for file, array in arrays.items():
        name, part = file.rsplit(".", 1)
        found[name][part] = array
    return Columns(
        {
            name: parts["dense"] if "dense" in parts else Ragged(**parts)
            for name, parts in found.items()
        }
    )


def _load(folder: Path) -> dict[str, np.ndarray] | None:
    """The entry, or `None` where it is missing or damaged."""
    try:
        checksums = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        found = {}
        for file, checksum in checksums.items():
            if _checksum(folder / file) != checksum:
                raise ValueError(f"{file} was changed")
            found[file.removesuffix(".npy")] = _open(folder / file)
        os.utime(folder / "entry.json")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        console.warn(f"a damaged entry of the token cache is made anew ({error})")
        return None


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty array cannot be mapped
        return np.load(path, allow_pickle=False)


def _checksum(path: Path) -> int:
    """CRC-32, about a second for 2 GB: it guards against accidents, not attackers."""
    return zlib.crc32(np.memmap(path, np.uint8, "r"))
