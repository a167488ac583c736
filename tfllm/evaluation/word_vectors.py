"""What vectors know of words: analogies, and how alike two words are."""

import gzip
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError

BLOCK = 512  # analogies answered at once


def read_questions(path: str | Path) -> tuple[str, list[tuple]]:
    """Analogies or similarities, told apart by their rows.

    A row is four words (`Athens Greece Baghdad Iraq`; `: name` begins a section) or two
    words and a number; `#` begins a comment. Compressed with gzip or not.

    Returns:
        `analogy` or `similarity`, and the rows.

    Raises:
        UserError: There is no such file, or a row is neither.
    """
    path, rows, kind = Path(path), [], None
    if not path.is_file():
        raise UserError("there is no such file of questions", path)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith((":", "#")):
                continue
            cells = re.split(r"[\t ,;]+", line.strip())
            form = {4: "analogy", 3: "similarity"}.get(len(cells))
            kind = kind or form
            try:
                row = (*cells[:2], float(cells[2])) if form == "similarity" else cells
            except ValueError:
                form = None
            if form is None or form != kind:
                raise UserError(
                    "neither four words nor two words and a number",
                    f"{path}:{number}",
                )
            rows.append(tuple(row))
    if not rows:
        raise UserError("there are no questions in the file", path)
    return kind, rows


def answer_analogies(
    words: Sequence[str], vectors: np.ndarray, rows: Sequence[tuple]
) -> np.ndarray:
    """Whether d is the word nearest to b - a + c, the three themselves left out.

    3CosAdd (Mikolov et al., 2013). Questions with a word that is not there, as it is
    or in small letters, are skipped.

    Args:
        words: The words among which answers are.
        vectors: Their vectors `[words, size]`.
        rows: Questions of four words.

    Returns:
        bool `[answered]`.
    """
    known = np.array(_known(words, rows, 4), np.int64).reshape(-1, 4)
    unit, right = unit_vectors(vectors), []
    for begin in range(0, len(known), BLOCK):
        part = known[begin : begin + BLOCK]
        a, b, c = (unit[part[:, k]] for k in range(3))
        scores = (b - a + c) @ unit.T
        np.put_along_axis(scores, part[:, :3], -np.inf, 1)
        right.append(scores.argmax(1) == part[:, 3])
    return np.concatenate(right) if right else np.zeros(0, bool)


def similarities(
    words: Sequence[str], vectors: np.ndarray, rows: Sequence[tuple]
) -> np.ndarray:
    """Cosines of the pairs that are known, and what people said, float64 `[2, n]`."""
    known, unit = _known(words, rows, 2), unit_vectors(vectors)
    cosines = [float(unit[a] @ unit[b]) for a, b, _ in known]
    return np.array([cosines, [score for *_, score in known]])


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; those of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def question_arrays(
    words: Sequence[str], vectors: np.ndarray, files: Mapping[str, tuple]
) -> dict[str, np.ndarray]:
    """For each file of questions the right answers, or cosines and scores."""
    solve = {"analogy": answer_analogies, "similarity": similarities}
    return {
        name: np.asarray(solve[kind](words, vectors, rows), np.float64)
        for name, (kind, rows) in files.items()
    }


def question_metric(found: np.ndarray) -> float:
    """Share of right answers, or Spearman's correlation; 0 without an answer."""
    from scipy.stats import spearmanr

    if found.ndim == 1:
        return float(found.mean()) if len(found) else 0.0
    if found.shape[1] < 3:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal scores: what is not defined is 0
        return float(np.nan_to_num(spearmanr(*found)[0]))


def _known(words: Sequence[str], rows: Sequence[tuple], count: int) -> list[list]:
    """Rows whose first `count` words are there, with these words' places."""
    places = {word: place for place, word in reversed([*enumerate(words)])}

    def place(word):
        return places.get(word, places.get(word.lower()))

    found = [[*map(place, row[:count]), *row[count:]] for row in rows]
    return [row for row in found if None not in row]
