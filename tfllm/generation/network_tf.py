"""A decoder laid out for decoding: few ops a step, whatever the family.

The mathematics is that of `models.decoder.run`; tests hold the two equal. What differs:

- Query, key and value are one product, and so are gate and up; the scales of the norms
  before them and of the attention scores are inside these matrices.
- The halves that rotary positions turn lie beside each other, so that a turn is one
  product of complex numbers.
- The token table is kept as `[hidden, vocabulary]`, whose product with a few rows is
  two to four times as fast as with the other order; a look-up takes columns.
- Keys and values are written into place (`put`), never copied. A cache is one tensor
  `[batch * heads * capacity, head size]` and seen as `[batch * heads, capacity, size]`.
  For XLA it has that shape: were it seen otherwise, XLA would update one cache for the
  product and one for the next step, and copy both.
- A batch's prompts end in the same slot of the cache (padding stands before them), so
  that a step writes one slot and distances between slots are those between tokens.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfllm.layers.attention import BLOCKED
from tfllm.layers.feed_forward import GATED, activate
from tfllm.layers.positions import rotary_frequencies
from tfllm.models.decoder import DecoderConfig, layers_of


class Network(tf.Module):
    """The weights of a decoder in the order in which decoding wants them.

    Args:
        config: Its shape.
        model: What `decoder(config)` built; adapters are merged.
        xla: Avoids the ops that XLA has not.
    """

    reach = 1  # tokens that a turn of the loop may make; more with a draft

    def __init__(self, config: DecoderConfig, model: keras.Model, xla: bool = False):
        super().__init__()
        self._config, self._xla = config, xla
        self._kv = config.num_kv_heads or config.num_heads
        self._size = config.head_size or config.hidden_size // config.num_heads
        self.weights = {
            name: tf.Variable(value, trainable=False, name=name.replace("/", "_"))
            for name, value in _packed(config, model)
        }

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return self._config.vocabulary_size

    @property
    def caches(self) -> int:
        """Number of tensors of a cache: keys and values of each layer."""
        return 2 * self._config.num_layers

    def refresh(self, model: keras.Model) -> None:
        """Takes the weights of a model anew, as training goes on."""
        for name, value in _packed(self._config, model):
            self.weights[name].assign(value)

    def empty(self, rows, capacity) -> "Cache":
        """An empty cache for so many rows and slots."""
        if self._xla:
            shape = [rows * self._kv, capacity, self._size]
            return tuple(tf.zeros(shape) for _ in range(self.caches))
        shape = [rows * self._kv * capacity, self._size]
        # Not zeros: equal constants share one buffer, and it is written into.
        return tuple(
            tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True)
            for _ in range(self.caches)
        )

    def run(self, tokens, start, padding, capacity, caches, single: bool = False):
        """Reads tokens and keeps their keys and values.

        Args:
            tokens: int32 `[batch, length]`; what is negative is padding.
            start: int32 scalar, the slot of the first ones.
            padding: int32 `[batch]`, how many slots of each row are empty at its start.
            capacity: int32 scalar, slots of the cache.
            caches: From `empty`, or from the step before.
            single: Whether `length` is 1.

        Returns:
            Hidden states `[batch * length, hidden_size]`, and the caches.
        """
        config, weights = self._config, self.weights
        rows, length = tf.shape(tokens)[0], 1 if single else tf.shape(tokens)[1]
        kv, size, heads = self._kv, self._size, config.num_heads
        flat = tf.maximum(tf.reshape(tokens, [-1]), 0)
        # Columns of the table, number by number: a transposition would cost more.
        columns = flat[:, None] + tf.range(config.hidden_size) * config.vocabulary_size
        hidden = tf.gather(tf.reshape(weights["table"], [-1]), columns)
        slots, places = tf.range(capacity), start + tf.range(length)
        positions = tf.maximum(places - padding[:, None], 0)
        turn = None
        if config.position == "learned":
            last = config.max_length - 1
            where = tf.reshape(tf.minimum(positions, last), [-1])
            hidden += tf.gather(weights["positions"], where)
        else:
            step = rotary_frequencies(size, config.rope_base, config.rope_scaling)
            angles = tf.cast(tf.reshape(positions, [-1, 1, 1]), tf.float32) * step
            turn = tf.complex(tf.cos(angles), tf.sin(angles))
        distance = places[:, None] - slots
        seen = (distance >= 0) & (slots >= padding[:, None, None])
        near = None if config.window is None else seen & (distance < config.window)
        shape = [rows, 1, 1, capacity] if single else [rows, 1, length, 1, capacity]
        bias, near = (
            m if m is None else tf.reshape(tf.where(m, 0.0, BLOCKED), shape)
            for m in (seen, near)
        )
        first = tf.reshape(tf.range(rows * kv) * capacity, [rows, 1, kv])
        lines = tf.reshape(first + places[:, None], [-1])
        together, grouped = heads + kv, heads // kv

        def put(cache, new):
            if not self._xla:
                return tf.raw_ops.InplaceUpdate(
                    x=cache, i=lines, v=tf.reshape(new, [-1, size])
                )
            new = tf.transpose(tf.reshape(new, [rows, length, kv, size]), [0, 2, 1, 3])
            new = tf.reshape(new, [rows * kv, length, size])
            return ops.slice_update(cache, (0, start, 0), new)

        def norm(x):
            if config.norm == "layer_norm":
                x -= tf.reduce_mean(x, -1, keepdims=True)
            square = tf.reduce_mean(tf.square(x), -1, keepdims=True)
            return x * tf.math.rsqrt(square + config.norm_epsilon)

        def rotate(x):
            pairs = tf.reshape(x, [-1, together, size // 2, 2])
            if not self._xla:
                pairs = tf.bitcast(tf.bitcast(pairs, tf.complex64) * turn, tf.float32)
                return tf.reshape(pairs, [-1, together, size])
            cos, sin = tf.math.real(turn), tf.math.imag(turn)
            a, b = pairs[..., 0], pairs[..., 1]
            pairs = tf.stack([a * cos - b * sin, a * sin + b * cos], -1)
            return tf.reshape(pairs, [-1, together, size])

        def dense(name, x):
            x = tf.matmul(x, weights[f"{name}/kernel"])
            bias = weights.get(f"{name}/bias")
            return x if bias is None else x + bias

        alone = single and grouped == 1
        product = batch_product if alone else tf.raw_ops.BatchMatMulV2

        def attend(query, keys, values, bias):
            if not self._xla:
                shape = [rows * kv, capacity, size]
                keys, values = tf.reshape(keys, shape), tf.reshape(values, shape)
            lines, spread = [rows * kv, grouped, -1], [rows, kv, grouped, capacity]
            if not single:
                query = tf.reshape(query, [rows, length, kv, grouped, size])
                query = tf.transpose(query, [0, 2, 1, 3, 4])
                lines = [rows * kv, length * grouped, -1]
                spread = [rows, kv, length, grouped, capacity]
            query = tf.reshape(query, lines)
            scores = product(x=query, y=keys, adj_y=True)
            share = softmax if single else tf.nn.softmax
            shares = share(tf.reshape(scores, spread) + bias)
            mixed = product(x=tf.reshape(shares, lines), y=values)
            if single:
                return mixed
            mixed = tf.reshape(mixed, [rows, kv, length, grouped, size])
            return tf.transpose(mixed, [0, 2, 1, 3, 4])

        kept = []
        for i in range(config.num_layers):
            block = f"block_{i}"
            both = dense(f"{block}/qkv", norm(hidden))
            both, value = tf.split(both, [together * size, kv * size], -1)
            if config.qk_norm:
                scale = weights[f"{block}/qk_norm"]
                both = norm(tf.reshape(both, [-1, together, size])) * scale
            if turn is not None:
                both = rotate(both)
            both = tf.reshape(both, [-1, together, size])
            query, key = tf.split(both, [heads, kv], 1)
            keys, values = put(caches[2 * i], key), put(caches[2 * i + 1], value)
            kept += [keys, values]
            windowed = near is not None and i >= config.window_from
            mixed = attend(query, keys, values, near if windowed else bias)
            hidden += dense(f"{block}/out", tf.reshape(mixed, [-1, heads * size]))
            inner = dense(f"{block}/up", norm(hidden))
            if config.activation in GATED:
                gate, inner = tf.split(inner, 2, -1)
                inner *= activate(GATED[config.activation], gate)
            else:
                inner = activate(config.activation, inner)
            hidden += dense(f"{block}/down", inner)
        hidden = norm(hidden) * weights["final/scale"]
        if config.norm == "layer_norm":
            hidden += weights["final/bias"]
        return hidden, tuple(kept)

    def logits(self, hidden):
        """float32 `[rows, vocabulary_size]` from hidden states `[rows, hidden_size]`"""
        name = "table" if self._config.tie_embeddings else "head"
        return tf.matmul(hidden, self.weights[name])


Cache = tuple[tf.Tensor, ...]


def batch_product(x, y, adj_y: bool = False):
    """`BatchMatMulV2` for matrices `x` of one row, by an op that oneDNN does not take.

    Its own takes two to five times as long then; with more rows a seventh (LOG.md).
    """
    return tf.raw_ops.BatchMatMulV3(x=x, y=y, adj_y=adj_y, Tout=x.dtype)


def softmax(x):
    """Over the last axis, in plain ops: oneDNN's takes 50 microseconds to begin.

    For many rows, as prompts have, oneDNN's is the faster one.
    """
    x = tf.exp(x - tf.reduce_max(x, -1, keepdims=True))
    return x / tf.reduce_sum(x, -1, keepdims=True)


def _packed(config: DecoderConfig, model: keras.Model):
    """The weights by name, one after another."""
    layers = layers_of(model)
    size = config.head_size or config.hidden_size // config.num_heads
    rotary = config.position == "rotary"

    def array(value):
        return np.asarray(ops.convert_to_numpy(value), "float32")

    def kernel(dense):
        plain = array(dense.kernel)
        if hasattr(dense, "lora_a"):
            plain += dense.lora_scale * (array(dense.lora_a) @ array(dense.lora_b))
        return plain

    def bias(dense):
        return (
            np.zeros(dense.units, "float32")
            if dense.bias is None
            else array(dense.bias)
        )

    def scale_and_shift(norm):
        if config.norm == "layer_norm":
            return array(norm.gamma), array(norm.beta)
        return array(norm.scale), None

    def side_by_side(matrix):
        """The two halves of each head, which rotary positions turn, in turns."""
        if not rotary:
            return matrix
        halves = matrix.reshape(*matrix.shape[:-1], -1, 2, size // 2)
        return np.swapaxes(halves, -1, -2).reshape(matrix.shape)

    def joined(name, norm, parts):
        """Dense layers on the same normed input as one: `(layer, change)`."""
        scale, shift = scale_and_shift(norm)
        kernels = [change(kernel(dense)) for dense, change in parts]
        whole = np.concatenate(kernels, 1)
        yield f"{name}/kernel", whole * scale[:, None]
        if shift is not None or any(dense.bias is not None for dense, _ in parts):
            biases = np.concatenate([change(bias(dense)) for dense, change in parts])
            yield f"{name}/bias", biases if shift is None else biases + shift @ whole

    embedding = layers["token_embedding"]
    yield "table", array(embedding.embeddings).T
    if not config.tie_embeddings:
        yield "head", array(embedding.reverse_embeddings)
    if not rotary:
        yield "positions", array(layers["position_embedding"].embeddings)
    for i in range(config.num_layers):
        block, name = layers[f"block_{i}"], f"block_{i}"
        attention, forward = block.attention, block.feed_forward
        # A norm of the query would undo the scale: it goes into that norm then.
        factor = 1.0 if config.qk_norm else size**-0.5
        yield from joined(
            f"{name}/qkv",
            block.attention_norm,
            [
                (attention.query, lambda x, f=factor: side_by_side(x) * f),
                (attention.key, side_by_side),
                (attention.value, lambda x: x),
            ],
        )
        if config.qk_norm:
            query, key = (
                side_by_side(array(norm.scale))
                for norm in (attention.query_norm, attention.key_norm)
            )
            heads = [query * size**-0.5] * config.num_heads
            yield f"{name}/qk_norm", np.stack(heads + [key] * attention.num_kv_heads)
        parts = [layer for layer in (forward.gate, forward.up) if layer is not None]
        yield from joined(
            f"{name}/up", block.feed_forward_norm, [(p, lambda x: x) for p in parts]
        )
        for part, dense in (("out", attention.output_dense), ("down", forward.down)):
            yield f"{name}/{part}/kernel", kernel(dense)
            if dense.bias is not None:
                yield f"{name}/{part}/bias", bias(dense)
    scale, shift = scale_and_shift(layers["final_norm"])
    yield "final/scale", scale
    if shift is not None:
        yield "final/bias", shift
