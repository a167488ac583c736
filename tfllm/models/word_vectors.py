"""Word vectors in word2vec's text form, read (plain or gzip) and written."""

import gzip
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError
from tfllm.core.files import atomic_write

_HEADER = re.compile(r"\d+[ \t]+\d+")
_BLANKS = re.compile(r"[ \t]+")


def read_word_vectors(path, tokens: Sequence[str]) -> np.ndarray:
    """Returns the vectors of `tokens`, in their order.

    A line is `word value value …`; a first line `count size` (word2vec) may be there
    or not (GloVe). The file is read once and only the wanted rows are kept.

    Args:
        path: A text file, gzip or not.
        tokens: Words by id.

    Returns:
        float32 `[len(tokens), size]`; NaN rows for words that the file lacks (see
        `classifier.set_word_vectors`).

    Raises:
        UserError: A line has another number of values, or none of the words occurs.
    """
    wanted: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        wanted.setdefault(token, []).append(index)
    matrix = None
    for word, row in word_vectors(path, wanted):
        if matrix is None:
            matrix = np.full((len(tokens), len(row)), np.nan, "float32")
        matrix[wanted.pop(word)] = row
    if matrix is None:
        raise UserError(
            "none of the vocabulary's words has a vector here",
            path,
            fix="Is it word2vec's text form, in the language of the data?",
        )
    return matrix


def word_vectors(path, wanted=None) -> Iterator[tuple[str, np.ndarray]]:
    """The words of a file and their vectors, float32 `[size]`; the first of equal ones.

    A word may hold spaces, as GloVe's largest file has them: what counts are the last
    `size` cells of a line, a number that the header tells or the first line shows.

    Args:
        path: A text file, gzip or not.
        wanted: Only these words; all when absent.

    Raises:
        UserError: There is no such file, a line has another number of values, or one
            of them is not finite.
    """
    path, size, seen = Path(path), None, set()
    if not path.is_file():
        raise UserError("there is no such file of word vectors", path)
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(
        path, "rt", encoding="utf-8-sig", errors="replace", newline="\n"
    ) as lines:
        for number, line in enumerate(lines, 1):
            line = line.strip(" \t\r\n")
            if not line:
                continue
            if number == 1 and _HEADER.fullmatch(line):  # word2vec's
                size = int(line.split()[1])
                continue
            size = size or _numbers_behind(line)
            word, *values = line.rsplit(" ", size)
            if len(values) != size or "" in values or word[-1:] == " ":
                # Tabs, or more than one space.
                cells = _BLANKS.split(line)
                word = " ".join(cells[:-size]) or cells[0]
                values = cells[1:][-size:]
            if word in seen or (wanted is not None and word not in wanted):
                continue
            seen.add(word)
            try:
                row = np.asarray(values, "float32")
            except ValueError:
                row = np.empty(0)
            if len(row) != size or not size:
                raise UserError(
                    f"'{word}' should be followed by {size} numbers", f"{path}:{number}"
                )
            if not np.isfinite(row).all():
                what = f"the vector of '{word}' has a number that is not finite"
                raise UserError(what, f"{path}:{number}")
            yield word, row


def _numbers_behind(line: str) -> int:
    """How many numbers end a line, at least one; the first cell is a word."""
    count, cells = 0, _BLANKS.split(line)[1:]
    while cells and _is_number(cells.pop()):
        count += 1
    return max(count, 1)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def frequent_vectors(path, most: int = 30_000) -> tuple[list[str], np.ndarray]:
    """The first words of a file, and their vectors float32 `[words, size]`."""
    found = dict(islice(word_vectors(path), most))
    if not found:
        raise UserError("there are no word vectors in the file", path)
    return [*found], np.stack([*found.values()])


def write_word_vectors(path, words: Sequence[str], matrix: np.ndarray) -> None:
    """Writes vectors `[words, size]`; the first line tells how many and how long."""
    lines = [f"{len(words)} {matrix.shape[1]}"]
    for word, row in zip(words, matrix, strict=True):
        lines.append(" ".join([word, *(f"{value:.6g}" for value in row)]))
    atomic_write(path, "\n".join(lines) + "\n")
