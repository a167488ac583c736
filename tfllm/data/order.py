"""A shuffle that is a pure function: position, seed and epoch give the index.

A small Feistel cipher over the fewest bits that hold `n`, walked until it falls below
`n` (cycle walking; Black and Rogaway 2002), which is the construction of TensorFlow's
`random_index_shuffle`. Nothing is stored and any place can be asked for alone, so a
resumed run finds its next example without replaying those before it.
"""

import numpy as np

_ROUNDS = 8
_MASK64 = (1 << 64) - 1


def shuffled(n: int, seed: int, epoch: int = 0) -> np.ndarray:
    """A permutation of `range(n)`: int64 [n], equal on every machine and version."""
    return shuffled_index(np.arange(n), n, seed, epoch)


def shuffled_index(index, n: int, seed: int, epoch: int = 0):
    """Element `index` of `shuffled(n, seed, epoch)`, without computing the others.

    Args:
        index: An integer or an integer array of any shape, each in `[0, n)`.
        n: How many are shuffled.
        seed: Any integer.
        epoch: Any integer; each epoch has another order.

    Returns:
        An `int` for an integer, else int64 of the shape of `index`.
    """
    places = np.atleast_1d(np.asarray(index, np.int64)).astype(np.uint64)
    if places.size and int(places.max()) >= n:
        raise IndexError(f"index outside [0, {n}): {index!r}")
    bits = max(2, (n - 1).bit_length())
    keys = _round_keys(seed, epoch)
    result = _encrypt(places.ravel(), bits, keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        walked = _encrypt(result[outside], bits, keys)
        result[outside] = walked
        outside = outside[walked >= n]
    result = result.astype(np.int64).reshape(places.shape)
    return int(result[0]) if np.ndim(index) == 0 else result


def _encrypt(values: np.ndarray, bits: int, keys: list[int]) -> np.ndarray:
    """A bijection of the `bits`-bit numbers: halves mixed into each other in turn."""
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    low, high = values & np.uint64(low_mask), values >> np.uint64(low_bits)
    for number, key in enumerate(keys):
        if number % 2:
            high = (high ^ _mix(low, key)) & np.uint64(high_mask)
        else:
            low = (low ^ _mix(high, key)) & np.uint64(low_mask)
    return (high << np.uint64(low_bits)) | low


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    values = (values ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
    return (values ^ (values >> np.uint64(32))) * np.uint64(0x94D049BB133111EB) >> (
        np.uint64(24)
    )


def _round_keys(seed: int, epoch: int) -> list[int]:
    """Keys from splitmix64 (Steele et al. 2014) over the seed, then over the epoch."""
    state, keys = 0, []
    for word in (seed, epoch):
        state = _splitmix(state ^ (word & _MASK64))
    for _ in range(_ROUNDS):
        state = (state + 0x9E3779B97F4A7C15) & _MASK64
        keys.append(_splitmix(state))
    return keys


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
