"""Tables over all code points, asked of the `tokenizers` library itself.

The library carries its own version of Unicode, and some of its parts an older one
still. Asking it, rather than Python's `unicodedata`, is what makes the graph equal.
"""

import functools
import json

import numpy as np

from tfllm.text.cleaning import normalizer_from_json

NUM_CODES = 0x110000
# Planes 4 to 13 hold no characters: what is true of their first code is true of all.
_EMPTY = (0x40000, 0xE0000)


def _codes() -> np.ndarray:
    codes = np.arange(NUM_CODES)
    surrogate = (codes >= 0xD800) & (codes < 0xE000)
    empty = (codes > _EMPTY[0]) & (codes < _EMPTY[1])
    return codes[~surrogate & ~empty]


@functools.cache
def _all_characters() -> str:
    return "".join(map(chr, _codes().tolist()))


@functools.lru_cache(maxsize=64)
def in_class(pattern: str) -> np.ndarray:
    """Which code points a one-character Oniguruma pattern matches: bool [0x110000]."""
    from tokenizers import Regex, pre_tokenizers

    # "removed" and inverted: only what matches is left, in runs.
    split = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True)
    found, codes = np.zeros(NUM_CODES, bool), _codes()
    for _, (start, end) in split.pre_tokenize_str(_all_characters()):
        found[codes[start:end]] = True
    return _filled(found)


@functools.cache
def bert_classes() -> np.ndarray:
    """0 inside a word, 1 white space, 2 punctuation, by BERT's pre-tokenizer."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    classes, codes = np.ones(NUM_CODES, np.int32), _codes()
    for _, (start, end) in split(_all_characters()):
        # A single one is punctuation, or a letter that stands between such.
        alone = end == start + 1
        single = alone and len(split(f"a{chr(codes[start])}a")) > 1
        classes[codes[start:end]] = 2 if single else 0
    return _filled(classes)


@functools.cache
def stripped() -> list[int]:
    """The code points that `Strip` takes away."""
    from tokenizers import normalizers

    strip = normalizers.Strip().normalize_str
    codes = np.flatnonzero(in_class(r"[\s\p{Z}\p{Cc}\p{Cf}]")).tolist()
    return [code for code in codes if strip(chr(code)) == ""]


@functools.lru_cache(maxsize=32)
def mapped(steps: str) -> dict[int, tuple[int, ...]]:
    """What normalizer steps (JSON) make of each code point, where they change it.

    Right for steps that look at one character at a time.
    """
    step = {"type": "Sequence", "normalizers": json.loads(steps)}
    normalize = normalizer_from_json(step).normalize_str
    changed: dict[int, tuple[int, ...]] = {}

    def ask(chars: str):
        parts = normalize("\ue000".join(chars)).split("\ue000")
        if len(chars) == 1:
            parts = [normalize(chars)]
        elif len(parts) != len(chars):  # the separator itself is touched: ask smaller
            half = len(chars) // 2
            ask(chars[:half])
            ask(chars[half:])
            return
        for char, part in zip(chars, parts, strict=True):
            if part != char:
                changed[ord(char)] = tuple(map(ord, part))

    if normalize("\ue000") == "\ue000":
        ask(_all_characters())
    else:  # private characters are dropped: a letter parts as well, but for itself
        separated = normalize("|".join(_all_characters())).split("|")
        if len(separated) != len(_all_characters()) + 2 - 1:
            # "|" itself is among the characters and makes one more part.
            separated = None
        chars = _all_characters()
        bar = chars.index("|")
        if separated is None:
            for char in chars:
                ask(char)
        else:
            parts = [*separated[:bar], "|", *separated[bar + 2 :]]
            for char, part in zip(chars, parts, strict=True):
                if part != char:
                    changed[ord(char)] = tuple(map(ord, part))
    first = _EMPTY[0]
    if first in changed:
        if changed[first]:
            raise ValueError("unassigned characters become others")
        changed.update(dict.fromkeys(range(first, _EMPTY[1]), ()))
    return changed


def _filled(table: np.ndarray) -> np.ndarray:
    table[_EMPTY[0] : _EMPTY[1]] = table[_EMPTY[0]]
    return table
