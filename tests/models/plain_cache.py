"""The plainest cache of keys and values."""

from keras import ops


class Cache:
    """Keys and values of one block, `[rows, heads, capacity, size]` each."""

    def __init__(self, capacity, config, rows=2):
        heads = config.num_kv_heads or config.num_heads
        size = config.head_size or config.hidden_size // config.num_heads
        self.key, self.value = ops.zeros((2, rows, heads, capacity, size))
        self.at = 0

    def __call__(self, key, value):
        start = (0, 0, self.at, 0)
        key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (key, value))
        self.key = ops.slice_update(self.key, start, key)
        self.value = ops.slice_update(self.value, start, value)
        self.at += key.shape[2]
        return self.key, self.value
