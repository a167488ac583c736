"""The flags that choose how text becomes tokens."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from tfllm.config import flag
from tfllm.text.cleaning import Cleaning
from tfllm.text.scripts import CJK, HANGUL
from tfllm.text.tokenizer import KINDS, Tokenizer
from tfllm.text.training import SPECIAL

ASIAN = re.compile(f"[{CJK}{HANGUL}]")
LETTER = re.compile(r"\w")


@dataclass
class TextFlags:
    """How text is cleaned and cut into tokens."""

    tokenizer: str | None = flag(
        None,
        f"{', '.join(KINDS)}, bytes, or a file or directory; by language when absent",
    )
    vocabulary_size: int | None = flag(None, "largest number of tokens", minimum=10)
    max_length: int | None = flag(
        None, "longest text in tokens; what holds nearly all when absent", minimum=1
    )
    unicode: str = flag(
        "NFKC", "Unicode normalisation", choices=["none", "NFC", "NFD", "NFKC", "NFKD"]
    )
    lowercase: bool = flag(False, "fold capitals")
    clean_html: bool = flag(False, "take out HTML tags and entities")
    stop_words: str | None = flag(None, "leave these out", choices=["en", "zh"])
    word_dictionary: str | None = flag(
        None, "file of words in jieba's form, by which `words` cuts Chinese"
    )


def language_of(texts: Iterable[str]) -> str:
    """`zh` where most letters of the first 2,000 texts are Chinese, else `en`.

    Japanese and Korean count as `zh`: what is meant is writing without many spaces.
    """
    sample = "".join(text[:500] for text in islice(texts, 2000))
    asian, letters = len(ASIAN.findall(sample)), len(LETTER.findall(sample))
    return "zh" if 2 * asian > letters else "en"


def tokenizer_for(flags: TextFlags, texts: Sequence[str], **defaults) -> Tokenizer:
    """Loads the tokenizer that the flags name, or trains one on `texts`.

    Args:
        flags: What the user chose.
        texts: The training texts.
        **defaults: `tokenizer`, `vocabulary_size`, `lowercase`, `min_frequency` for
            what the flags leave open; `special_tokens`.
    """
    kind = flags.tokenizer or defaults["tokenizer"]
    size = flags.vocabulary_size or defaults.get("vocabulary_size", 30_000)
    special = defaults.get("special_tokens")
    if kind == "bytes":  # byte-level BPE that merges nothing
        kind, size = "bpe", 256 + len(special or SPECIAL)
    if kind not in KINDS:
        return Tokenizer.load(kind)
    cleaning = Cleaning(
        unicode=None if flags.unicode == "none" else flags.unicode,
        html=flags.clean_html,
        lowercase=flags.lowercase or defaults.get("lowercase", False),
        stop_words=flags.stop_words,
    )
    options = {"dictionary": flags.word_dictionary} if kind == "words" else {}
    return Tokenizer.train(
        texts,
        kind,
        size,
        min_frequency=defaults.get("min_frequency", 1),
        special_tokens=special,
        cleaning=cleaning,
        progress=True,
        **options,
    )


def length_limit(
    tokenizer: Tokenizer,
    rows: Sequence[dict],
    most: int = 256,
    special_tokens: bool = False,
    share: float = 0.98,
) -> int:
    """Tokens that hold a share of the training texts (with their pair), at most `most`.

    A multiple of 8: batches are padded to one anyway.
    """
    sample = [row["text"] + (row.get("text_pair") or "") for row in rows[:20_000]]
    lengths = sorted(map(len, tokenizer.encode(sample)))
    longest = lengths[int(share * (len(lengths) - 1))] if lengths else 1
    longest += 3 if special_tokens else 0
    return min(most, -(-max(longest, 8) // 8) * 8)
