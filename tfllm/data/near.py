"""Near-duplicates among many texts: MinHash in bands, vectorised over all texts."""

import numpy as np

SHINGLE = 4  # characters
HEAD = 512  # characters of a text that are looked at
_BANDS, _BAND_ROWS = 10, 3


def near_duplicates(texts: list[str], threshold: float = 0.8) -> np.ndarray:
    """Pairs of texts that share most of their character 4-grams.

    MinHash signatures (Broder 1997) are compared in bands, each text with the first of
    those it shares a band with, and candidates by their true Jaccard similarity. So
    nothing wrong is found; of pairs at the threshold one in 1,000 is missed, and more
    where hundreds of texts come from one template. Texts under 8 characters are left
    out; of longer ones the first 512 characters count.

    Args:
        texts: n different texts.
        threshold: The least Jaccard similarity of the 4-grams.

    Returns:
        int64 [pairs, 2], (earlier, later) indices, sorted.
    """
    chosen = np.array([i for i, t in enumerate(texts) if len(t) >= 8], np.int64)
    if len(chosen) < 2:
        return np.zeros((0, 2), np.int64)
    shingles, starts = _shingles([texts[i][:HEAD] for i in chosen])
    rng = np.random.default_rng(1)
    drawn = rng.integers(2**32, size=(_BANDS, _BAND_ROWS, 2), dtype=np.uint32)
    pairs, mixed = [], np.empty_like(shingles)
    for band in drawn:
        key = np.zeros(len(chosen), np.uint64)
        for factor, salt in band:
            np.multiply(shingles, factor | np.uint32(1), out=mixed)
            mixed ^= salt
            least = np.minimum.reduceat(mixed, starts)
            key = key * np.uint64(0x9E3779B97F4A7C15) + least
        order = np.argsort(key, kind="stable")
        _, first, group = np.unique(key[order], return_index=True, return_inverse=True)
        heads = order[first][group]
        pairs.append(np.stack([heads, order], 1)[heads != order])
    pairs = np.unique(np.concatenate(pairs), axis=0)
    sets: dict[int, set] = {}
    bounds = np.append(starts, len(shingles))

    def grams(index: int) -> set:
        if index not in sets:
            sets[index] = set(shingles[bounds[index] : bounds[index + 1]].tolist())
        return sets[index]

    kept = []
    for one, other in pairs.tolist():
        a, b = grams(one), grams(other)
        if min(len(a), len(b)) >= threshold * max(len(a), len(b)):
            shared = len(a & b)
            if shared >= threshold * (len(a) + len(b) - shared):
                kept.append((one, other))
    return chosen[np.array(kept, np.int64).reshape(-1, 2)]


def _shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes uint32 [total] of all 4-grams, and where each text's begin, int64 [n]."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "replace"), np.uint32)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    hashes = codes * np.uint32(0)
    for shift in range(SHINGLE):
        hashes *= np.uint32(0x01000193)
        hashes[: len(codes) - shift] ^= codes[shift:] * np.uint32(0x9E3779B1)
    hashes ^= hashes >> np.uint32(16)
    ends = np.cumsum(lengths)
    keep = np.ones(len(codes), bool)  # all but the last three places of each text
    for back in range(1, SHINGLE):
        keep[ends - back] = False
    counts = lengths - SHINGLE + 1
    return hashes[keep], np.cumsum(counts) - counts
