"""Tables that are looked up in the graph: of code points, of strings, of prefixes."""

import numpy as np
import tensorflow as tf

from tfllm.text.graph.arrays_tf import indices, rows_of


class CodeTable(tf.Module):
    """A table over all code points in two levels: blocks of 128 are stored once."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        blocks: dict[bytes, int] = {}
        rows = values.astype(np.int32).reshape(-1, 128)
        index = [blocks.setdefault(row.tobytes(), len(blocks) * 128) for row in rows]
        self.blocks = tf.constant(np.frombuffer(b"".join(blocks), np.int32))
        self.index = tf.constant(index, tf.int32)

    def __call__(self, codes: tf.Tensor) -> tf.Tensor:
        """The values of all."""
        block = tf.gather(self.index, tf.bitwise.right_shift(codes, 7))
        return tf.gather(self.blocks, block + tf.bitwise.bitwise_and(codes, 127))


class IntTable(tf.Module):
    """Keys to int32, -1 when there is none."""

    def __init__(self, keys, values, dtype=tf.int64):
        super().__init__()
        initializer = tf.lookup.KeyValueTensorInitializer(
            tf.constant(keys, dtype), tf.constant(values, tf.int32)
        )
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    def __call__(self, keys: tf.Tensor) -> tf.Tensor:
        """The values of all."""
        return self.table.lookup(keys)


class StringTable(IntTable):
    """Strings to ids, -1 when there is none."""

    def __init__(self, ids: dict[str, int]):
        keys = [key.encode() for key in ids] or [b"\xff"]
        super().__init__(keys, list(ids.values()) or [-1], tf.string)

    def __call__(self, codes: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
        """The ids of the words `codes[splits[i]:splits[i + 1]]`."""
        words = tf.raw_ops.UnicodeEncode(
            input_values=codes, input_splits=splits, output_encoding="UTF-8"
        )
        return self.table.lookup(words)


class Trie(tf.Module):
    """Finds, at every position, all the strings of a set that start there.

    A trie is walked at all depths at once: a hash of the first l characters guesses
    the node at depth l, and the guess is right if the node's parent is the node found
    at depth l - 1 and its last character is the one in the text. So the answer is
    exact, whatever the hash.

    Args:
        values: String to value, for each root.
    """

    SHORT = 4

    def __init__(self, *values: dict[str, int]):
        super().__init__()
        roots = len(values)
        self.depth = max((len(key) for root in values for key in root), default=1)
        random = np.random.RandomState(2)
        powers = random.randint(-(2**63), 2**63 - 1, self.depth, np.int64) | 1
        seeds = random.randint(-(2**63), 2**63 - 1, roots, np.int64)
        # (root, prefix) -> node; node r is the root r
        nodes = {(root, ""): root for root in range(roots)}
        links, hashes, found = [-1] * roots, list(seeds), [-1] * roots
        for root, keys in enumerate(values):
            for key, value in keys.items():
                parent = root
                for at, char in enumerate(key):
                    node = nodes.setdefault((root, key[: at + 1]), len(links))
                    if node == len(links):
                        # Parent and character in one number: compared at once.
                        links.append(parent * 2**22 + ord(char))
                        with np.errstate(over="ignore"):
                            term = np.int64(ord(char) + 1) * powers[at]
                            hashes.append(hashes[parent] + term)
                        found.append(-1)
                    parent = node
                found[parent] = value
        if len(set(hashes)) != len(hashes):  # never seen; 64 bits are many
            raise ValueError("two nodes with one hash")
        known = list(range(roots, len(links)))
        self.table = IntTable(hashes[roots:] or [0], known or [-1])
        self.powers, self.seeds = tf.constant(powers), tf.constant(seeds)
        self.links = tf.constant(links, tf.int64)
        self.values = tf.constant(found, tf.int32)
        self.lengths = tf.range(1, self.depth + 1)

    def __call__(self, codes, splits, roots=None):
        """The values found, and the length of the longest string, 0 for none.

        Args:
            codes: int32 `[T]`.
            splits: Where words start and the last one ends; no string spans them.
            roots: int32 `[T]`, which set is asked for; the first when None.

        Returns:
            int32 `[T, depth]`, column l - 1 for length l, else -1; int32 `[T]`.
        """
        position = tf.range(tf.size(codes))
        root = tf.zeros_like(codes) if roots is None else roots
        state = position, tf.gather(splits, rows_of(splits) + 1), root
        state = *state, tf.gather(self.seeds, root)
        # Few strings are long: most positions are done after the first columns.
        depth = min(self.depth, self.SHORT)
        found, alive, *state = self._columns(codes, *state, 0, depth)
        if depth < self.depth:
            index = indices(alive)
            state = (tf.gather(part, index) for part in state)
            rest, *_ = self._columns(codes, *state, depth, self.depth)
            shape = tf.stack([tf.size(codes), self.depth - depth])
            rest = tf.scatter_nd(index[:, None], rest + 1, shape) - 1
            found = tf.concat([found, rest], 1)
        return found, tf.reduce_max(tf.where(found < 0, 0, self.lengths), 1)

    def _columns(self, codes, positions, ends, node, hashed, start, stop):
        """Columns `start` to `stop` of the above, from the nodes at depth `start`."""
        window = positions[:, None] + tf.range(start, stop)[None]
        inside = window < ends[:, None]
        padded = tf.concat([codes, tf.zeros([stop], tf.int32)], 0)
        chars = tf.cast(tf.gather(padded, window), tf.int64)
        sums = (chars + 1) * self.powers[start:stop]
        shift = 1
        while shift < stop - start:  # a running sum; tf.cumsum is much slower
            sums += tf.pad(sums[:, :-shift], [[0, 0], [shift, 0]])
            shift *= 2
        hashed = sums + hashed[:, None]
        nodes = self.table(hashed)
        above = tf.cast(tf.concat([node[:, None], nodes[:, :-1]], 1), tf.int64)
        known = tf.maximum(nodes, 0)
        right = tf.equal(tf.gather(self.links, known), above * 2**22 + chars)
        wrong = tf.cast(~(right & inside & (nodes >= 0)), tf.int8)
        wrong = tf.pad(wrong, [[0, 0], [0, 1]], constant_values=1)
        length = tf.argmax(wrong, 1, output_type=tf.int32)  # the first that is wrong
        whole = tf.range(stop - start) < length[:, None]
        found = tf.where(whole, tf.gather(self.values, known), -1)
        alive = tf.equal(length, stop - start)
        return found, alive, positions, ends, nodes[:, -1], hashed[:, -1]
