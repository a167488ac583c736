"""Tables over all code points, asked of the `tokenizers` library itself.

The library carries its own version of Unicode, and some of its parts an older one
still. Asking it, rather than Python's `unicodedata`, is what makes the graph equal.
"""

import functools
import json
import unicodedata

import numpy as np

from tfllm.text.cleaning import normalizer_from_json

NUM_CODES = 0x110000
# Planes 4 to 13 hold no characters: what is true of their first code is true of all.
_EMPTY = (0x40000, 0xE0000)
# What a `BertNormalizer` does, each of it or not.
BERT_STEPS = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")


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
    # Asked for all at once, parted by a character that the steps leave alone.
    separator = "\ue000" if normalize("\ue000") == "\ue000" else "|"

    def ask(chars: str):
        parts = normalize(separator.join(chars)).split(separator)
        if len(parts) != len(chars) and len(chars) > 1:
            half = len(chars) // 2  # the separator itself is among them: ask smaller
            ask(chars[:half])
            ask(chars[half:])
            return
        if len(chars) == 1:
            parts = [normalize(chars)]
        for char, part in zip(chars, parts, strict=True):
            if part != char:
                changed[ord(char)] = tuple(map(ord, part))

    everything = _all_characters()
    for at in range(0, len(everything), 4096):
        ask(everything[at : at + 4096])
    first = _EMPTY[0]
    if first in changed:
        if changed[first]:
            raise ValueError("unassigned characters become others")
        changed.update(dict.fromkeys(range(first, _EMPTY[1]), ()))
    return changed


@functools.cache
def compositions() -> dict[tuple[int, int], int]:
    """Pairs of code points that NFC makes one."""
    from tokenizers import normalizers

    compose = normalizers.NFC().normalize_str
    pairs = {}
    for code in mapped('[{"type": "NFD"}]'):
        if 0xAC00 <= code < 0xD7A4:  # Hangul: by arithmetic, two letters or three
            lead, rest = divmod(code - 0xAC00, 588)
            vowel, tail = divmod(rest, 28)
            first = (0x1100 + lead, 0x1161 + vowel), (code - tail, 0x11A7 + tail)
            pairs[first[tail > 0]] = code
            continue
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            pair = int(parts[0], 16), int(parts[1], 16)
            if compose(chr(pair[0]) + chr(pair[1])) == chr(code):
                pairs[pair] = code
    return pairs


@functools.cache
def combining_classes() -> np.ndarray:
    """Canonical combining class of each code point."""
    from tokenizers import normalizers

    order = normalizers.NFD().normalize_str
    classes = np.zeros(NUM_CODES, np.int32)
    for code in _codes().tolist():
        char = chr(code)
        # The library may be older than Python's tables: does it reorder this one?
        if kind := unicodedata.combining(char):
            low, high = ("\u0334", "\u0345") if kind > 1 else ("\u0345", "\u0345")
            moved = order(f"a{char}{low}") if kind > 1 else order(f"a{high}{char}")
            classes[code] = kind if moved != f"a{char}{low}" or kind == 1 else 0
    return classes


@functools.lru_cache(maxsize=16)
def combining(steps: str, form: str) -> np.ndarray:
    """Which code points, after steps, may act on others in a Unicode form: bool."""
    acting = combining_classes() > 0
    if form in ("NFC", "NFKC"):
        acting[[second for _, second in compositions()]] = True
    for code, to in mapped(json.dumps([{"type": form.replace("C", "D")}])).items():
        acting[code] |= bool(to) and bool(acting[to[0]])
    result = acting.copy()
    if json.loads(steps):
        for code, to in mapped(steps).items():
            result[code] = any(acting[c] for c in to)
    return result


def of_characters(vocabulary: dict[str, int], default: int) -> np.ndarray:
    """The ids of those tokens that are one character, else the default: int32."""
    table = np.full(NUM_CODES, default, np.int32)
    for token, token_id in vocabulary.items():
        if len(token) == 1:
            table[ord(token)] = token_id
    return table


def _filled(table: np.ndarray) -> np.ndarray:
    table[_EMPTY[0] : _EMPTY[1]] = table[_EMPTY[0]]
    return table
