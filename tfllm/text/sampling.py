"""BPE dropout: a text cut into other tokens each time (Provilkov et al., 2020).

A merge is left out with some chance wherever it could be made, so that a model sees
words in parts, too, and learns what the parts mean. Drawn from a seed: the same seed
gives the same tokens.
"""

import itertools
import random
from collections.abc import Sequence

from tfllm.core.errors import UserError
from tfllm.text.tokenizer import Tokenizer


def sample(
    tokenizer: Tokenizer, texts: Sequence[str], rate: float, seed: object = 0
) -> list[list[int]]:
    """Ids of texts with merges left out.

    Args:
        tokenizer: Of kind `bpe`.
        texts: Strings.
        rate: The chance that a merge is left out; with 0 it is `Tokenizer.encode`.
        seed: Anything that can be written down.

    Raises:
        UserError: The tokenizer is of another kind.
    """
    if tokenizer.kind != "bpe":
        what = f"a {tokenizer.kind} tokenizer makes no merges that could be left out"
        raise UserError(what, fix="Take --tokenizer bpe")
    engine, draw = tokenizer.fast, random.Random(str(seed)).random
    merges = tokenizer.definition["model"]["merges"]
    pairs = (m.split(" ") if isinstance(m, str) else m for m in merges)
    ranks = {tuple(pair): rank for rank, pair in enumerate(pairs)}
    rows = []
    for text in texts:
        if engine.normalizer is not None:
            text = engine.normalizer.normalize_str(text)
        words = [(text, None)]
        if engine.pre_tokenizer is not None:
            words = engine.pre_tokenizer.pre_tokenize_str(text)
        parts = (part for word, _ in words for part in _cut(word, ranks, rate, draw))
        rows.append([tokenizer.ids.get(part, tokenizer.unk_id) for part in parts])
    return rows


def _cut(word: str, ranks: dict, rate: float, draw) -> list[str]:
    parts = list(word)
    while len(parts) > 1:
        pairs = enumerate(itertools.pairwise(parts))
        found = [(ranks[p], i) for i, p in pairs if p in ranks and draw() >= rate]
        if not found:
            break
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
