"""Texts that tokenizers stumble over."""
# ruff: noqa: E501 (tables)

import gzip
import itertools
import random
import unicodedata
from pathlib import Path

PARTS = [
    "\x00", "\u200b", "\u200d", "\u200e", "\ufeff", "👨‍👩‍👧", "🇩🇪", "👍🏽", "é", "e\u0301",
    "مرحبا", "नमस्ते", "สวัสดี", "한국어", "\u1112\u1161\u11ab", "ＡＢＣ１", "　", "中国人民",
    "今天天气", "hello", "World", "don't", "it’s", "'s", "'ll", "'RE", "'ſ", " ", "  ",
    "\n", "\t", "\r\n", "\n\n ", "\u00a0", "\u2028", "\u3000", "123", "4567", "１２", "½",
    "Ⅷ", "ﬁ", "ß", "İ", "ſ", "<pad>", "[CLS]", "<s>", "</s>", "<|endoftext|>", "▁", "##a",
    "_", "-", "…", "—", "“", "”", "。", "，", "!", "?!", ".", "'", "’", "\ufffd", "\ufffe",
    "\uffff", "\U0010ffff", "\ud7a3", "\u0378", "ー", "カタカナ", "ひらがな", "々", "〇",
    "\u0301", "\u0323", "か\u3099", "\u0f71\u0f72", "𝐀", "𠀀", "\u302e", "&amp;", "<b>",
    "</p>", "&lt;b", "the", "我们", "\t x", "\n!a",
]  # fmt: skip
PLANES = [
    (0x20, 0x7F), (0, 0x20), (0x7F, 0xA0), (0xA0, 0x250), (0x250, 0x600), (0x600, 0x700),
    (0x900, 0xE80), (0x1100, 0x1200), (0x2000, 0x2100), (0x2100, 0x3100),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xF8FF), (0xF900, 0x10000),
    (0x10000, 0x20000), (0x20000, 0x30000), (0x30000, 0xE0000), (0xE0000, 0x110000),
]  # fmt: skip
HARD = [
    "", " ", "\n", "\x00", "a" * 10_000, "中" * 10_000, "a\u0301" * 3_000,
    "xyz" * 3_334, " " * 10_000, "".join(map(chr, range(0xA0))),
]  # fmt: skip


def fuzzed(count: int, seed: int, words=()) -> list[str]:
    """Random mixtures of all planes, of what is special somewhere, and of words."""
    draw = random.Random(seed)
    words = list(words) or ["plain"]

    def part() -> str:
        kind = draw.random()
        if kind < 0.35:
            return draw.choice(PARTS)
        if kind < 0.6:
            return draw.choice(words)
        if kind < 0.8:
            low, high = draw.choice(PLANES)
            return "".join(chr(draw.randrange(low, high)) for _ in range(3))
        if kind < 0.95:
            letters = "abcdefghijklmnopqrstuvwxyz'ABC 0123.,"
            return "".join(draw.choices(letters, k=draw.randint(1, 10)))
        return draw.choice(["a", "中", "=", "\n", " ", "ab"]) * draw.randint(1, 30)

    return ["".join(part() for _ in range(draw.randint(0, 12))) for _ in range(count)]


def marks(text: str) -> bool:
    """Whether it has marks that a Unicode form reorders: those have no clear place."""
    return any(unicodedata.combining(c) for c in unicodedata.normalize("NFKD", text))


def lines(path: Path, count: int | None = None) -> list[str]:
    """Lines of a file, gzip or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n") for line in itertools.islice(file, count)]
