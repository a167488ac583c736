"""Tokenised columns on disk, memory-mapped, named by the hash of what made them.

An entry is a folder `columns/KEY/` of the cache folder (`$TFLLM_CACHE`, else
~/.cache/tfllm) with a `.npy` an array and their checksums. It is written beside and
renamed. When all entries together pass the limit, those used longest ago go; deleting
the folder by hand is always safe.
"""

import json
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfllm.core import console
from tfllm.core.files import atomic_directory, cache_directory, sha256
from tfllm.data.columns import Columns, Ragged

LIMIT_BYTES = 20 * 2**30
_VERSION = 2  # of the layout on disk


def cached_columns(key_parts: dict, build: Callable[[], Columns]) -> Columns:
    """The columns that `build` makes, from the disk if they were made before.

    Args:
        key_parts: All that the result depends on, as JSON: hashes of the files and of
            the tokenizer, lengths, options.
        build: Makes the columns; called when there is no sound entry.

    Returns:
        Memory-mapped columns; those of `build` where the disk takes no more.
    """
    key = sha256(json.dumps([_VERSION, key_parts], sort_keys=True, default=str))
    folder = cache_directory() / "columns" / key[:32]
    columns = _load(folder)
    if columns is not None:
        return columns
    columns = build()
    try:
        _save(columns, folder)
        trim(keep=folder)
    except OSError as error:
        console.warn(f"the token cache was not written ({error})")
        return columns
    return _load(folder) or columns


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


def _save(columns: Columns, folder: Path) -> None:
    with atomic_directory(folder) as new:
        checksums = {}
        for name, column in columns.items():
            ragged = isinstance(column, Ragged)
            for part, array in (
                column._asdict() if ragged else {"dense": column}
            ).items():
                file = new / f"{name}.{part}.npy"
                np.save(file, np.asarray(array), allow_pickle=False)
                checksums[file.name] = _checksum(file)
        (new / "entry.json").write_text(json.dumps(checksums), encoding="utf-8")


def _load(folder: Path) -> Columns | None:
    """The entry, or `None` where it is missing or damaged."""
    try:
        checksums = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        found = defaultdict(dict)
        for file, checksum in checksums.items():
            if _checksum(folder / file) != checksum:
                raise ValueError(f"{file} was changed")
            name, part, _ = file.rsplit(".", 2)
            found[name][part] = _open(folder / file)
        os.utime(folder / "entry.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        console.warn(f"a damaged entry of the token cache is made anew ({error})")
        return None
    return Columns(
        {
            name: parts["dense"] if "dense" in parts else Ragged(**parts)
            for name, parts in found.items()
        }
    )


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty array cannot be mapped
        return np.load(path, allow_pickle=False)


def _checksum(path: Path) -> int:
    """CRC-32, about a second for 2 GB: it guards against accidents, not attackers."""
    return zlib.crc32(np.memmap(path, np.uint8, "r"))
