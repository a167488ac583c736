"""Reads word vectors in word2vec's text form, plain or gzip."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError


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
    path = Path(path)
    wanted: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        wanted.setdefault(token, []).append(index)
    matrix, found = None, 0
    if not path.is_file():
        raise UserError("there is no such file of word vectors", path)
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(
        path, "rt", encoding="utf-8", errors="replace", newline="\n"
    ) as lines:
        for number, line in enumerate(lines, 1):
            word, *values = line.rstrip().split(" ")
            if number == 1 and len(values) == 1:
                continue  # word2vec's header
            if matrix is None:
                matrix = np.full((len(tokens), len(values)), np.nan, "float32")
            if word not in wanted:
                continue
            try:
                row = np.asarray(values, "float32")
            except ValueError:
                row = np.empty(0)
            if len(row) != matrix.shape[1]:
                raise UserError(
                    f"'{word}' should be followed by {matrix.shape[1]} numbers",
                    f"{path}:{number}",
                )
            matrix[wanted.pop(word)] = row
            found += 1
    if not found:
        raise UserError(
            "none of the vocabulary's words has a vector here",
            path,
            fix="Is it word2vec's text form, in the language of the data?",
        )
    return matrix
