"""The decoder of an encoder-decoder as the decoding loop wants it.

Unlike `network_tf.Network` it reads the model's own weights where they are. A step of a
Transformer takes vectors `[batch, size]` through them, without an axis for the one
token: a dense layer is one op then, not ten. All else is `models.encoder_decoder.run`
with a cache. What the blocks make of the source is computed once (`read`) and stands
behind the cache, where beam search leaves it alone. LSTMs keep their states there.
"""

import keras
import tensorflow as tf

from tfllm.generation.network_tf import Cache, batch_product, softmax
from tfllm.layers.positions import apply_rotary
from tfllm.models.decoder import layers_of, to_logits
from tfllm.models.encoder_decoder import (
    EncoderDecoderConfig,
    embed,
    encode,
    keep,
    run,
    run_pairs,
)


class PairNetwork:
    """A model's layers and the loop's cache.

    Args:
        config: Its shape.
        model: Built from it; its weights are read where they are.
    """

    reach = 1  # see `Network`

    def __init__(self, config: EncoderDecoderConfig, model: keras.Model):
        # In plain attributes: a module that tracks a Keras model cannot be exported.
        self._config, self.variables = config, model.variables
        self._layers = layers_of(model)
        self._size = config.head_size or config.hidden_size // config.num_heads

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return self._config.vocabulary_size

    @property
    def caches(self) -> int:
        """Number of tensors of a cache: keys and values of each layer, or states."""
        return 2 * self._config.decoder_layers

    def read(self, source_ids, source_mask) -> Cache:
        """What the decoder will look at.

        Args:
            source_ids: int32 `[batch, source length]`.
            source_mask: int32 `[batch, source length]`.
        """
        context = encode(self._config, self._layers, source_ids, source_mask)
        kept = keep(self._config, self._layers, context)
        found = source_mask, *(tensor for pair in kept for tensor in pair)
        if self._config.pointer:
            source = self._layers["token_embedding"](source_ids)
            found += source_ids, self._layers["pointer"].keep(context, source)
        return found

    def empty(self, rows, capacity) -> Cache:
        """An empty cache for so many rows and slots."""
        if self._config.recurrent:
            shape = [rows, self._config.hidden_size]
        else:
            shape = [rows * self._config.num_heads * capacity, self._size]
        # Not zeros: equal constants share one buffer, and it is written into.
        return tuple(
            tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True)
            for _ in range(self.caches)
        )

    def run(self, tokens, start, padding, capacity, caches, single: bool = False):
        """See `Network.run`; what is for `logits` may hold more than hidden states."""
        config, heads, size = self._config, self._config.num_heads, self._size
        rows, length = tf.shape(tokens)[0], 1 if single else tf.shape(tokens)[1]
        places, kept = start + tf.range(length), list(caches)
        first = tf.reshape(tf.range(rows * heads) * capacity, [rows, 1, heads])
        lines = tf.reshape(first + places[:, None], [-1])
        real, seen = tokens >= 0, tf.stack([rows, heads, capacity, size])

        def attention(i):
            def cache(*new):
                for at, tensor in zip((2 * i, 2 * i + 1), new, strict=True):
                    kept[at] = tf.raw_ops.InplaceUpdate(
                        x=caches[at], i=lines, v=tf.reshape(tensor, [-1, size])
                    )
                return [tf.reshape(x, seen) for x in kept[2 * i : 2 * i + 2]]

            return cache

        def recurrence(i):
            def cache(cell, inputs):
                def step(state, now):
                    _, new = cell(now[0], list(state))
                    pairs = zip(new, state, strict=True)
                    return tuple(tf.where(now[1][:, None], n, s) for n, s in pairs)

                state = caches[2 * i], caches[2 * i + 1]
                if single:
                    state = step(state, (inputs[:, 0], real[:, 0]))
                    outputs = state[0][:, None]
                else:
                    turned = tf.transpose(inputs, [1, 0, 2]), tf.transpose(real)
                    states = tf.scan(step, turned, state)
                    outputs = tf.transpose(states[0], [1, 0, 2])
                    state = states[0][-1], states[1][-1]
                kept[2 * i : 2 * i + 2] = state
                return outputs

            return cache

        mask = real
        if not config.recurrent:
            mask = tf.range(capacity) >= padding[:, None]
        positions = tf.maximum(places - padding[:, None], 0)
        if config.position == "learned":
            positions = tf.minimum(positions, config.max_length - 1)
        source_mask, *context = caches[self.caches :]
        layers = range(config.decoder_layers)
        if single and not config.recurrent:
            masks = tf.cast(mask, tf.int32), source_mask
            puts = [attention(i) for i in layers]
            hidden = self._step(tokens, positions, places, masks, puts, context)
            return self._told(hidden, tokens, source_mask, context), tuple(kept)
        hidden = run(
            config,
            self._layers,
            tf.maximum(tokens, 0),
            tf.cast(mask, tf.int32),
            [(context[2 * i], context[2 * i + 1]) for i in layers],
            source_mask,
            positions=positions,
            places=places,
            caches=[(recurrence if config.recurrent else attention)(i) for i in layers],
        )
        hidden = tf.reshape(hidden, [-1, config.hidden_size])
        return self._told(hidden, tokens, source_mask, context), tuple(kept)

    def _told(self, hidden, tokens, source_mask, context):
        """What `logits` takes: hidden states, and with a pointer what it says."""
        if not self._config.pointer:
            return hidden
        *_, source_ids, key = context
        last = self._layers["token_embedding"](tf.maximum(tokens, 0))
        each = tf.reshape(hidden, tf.shape(last))
        ways = self._layers["pointer"](each, last, key, source_mask)
        ways = tf.reshape(ways, [-1, tf.shape(ways)[2]])
        return hidden, ways, tf.repeat(source_ids, tf.shape(tokens)[1], 0)

    def _step(self, tokens, positions, places, masks, puts, context):
        """`models.encoder_decoder.run` for one token a row, `[rows, hidden_size]`."""
        config, layers = self._config, self._layers
        heads, size = config.num_heads, self._size
        hidden, rotary = embed(
            *(config, layers, "decoder", layers["token_embedding"]),
            *(tf.maximum(tokens, 0), positions),
        )
        hidden = tf.reshape(hidden, [-1, config.hidden_size])
        bias = layers["decoder_bias"](masks[0], None, places)
        context_bias = layers["context_bias"](masks[1])

        def split(x):
            x = tf.reshape(x, [-1, 1, heads, size])
            return x if rotary is None else apply_rotary(x, rotary)

        def attend(attention, query, keys, values, bias):
            if attention.scale is None:
                query *= size**-0.5
            query = tf.reshape(query, [-1, heads, 1, size])
            scores = batch_product(query, keys, adj_y=True) + bias
            mixed = batch_product(softmax(scores), values)
            return attention.output_dense(tf.reshape(mixed, [-1, heads * size]))

        for i in range(config.decoder_layers):
            block = layers[f"decoder_block_{i}"]

            def look_back(x, own=block.attention, put=puts[i]):
                key, value = put(split(own.key(x)), own.value(x))
                return attend(own, split(own.query(x)), key, value, bias)

            def look_over(x, cross=block.cross, kept=context[2 * i : 2 * i + 2]):
                return attend(cross, cross.query(x), *kept, context_bias)

            hidden = block.residual("attention", hidden, look_back)
            hidden = block.residual("cross", hidden, look_over)
            hidden = block.residual("feed_forward", hidden, block.feed_forward)
        if config.norm_first:
            hidden = layers["decoder_norm"](hidden)
        return hidden * config.hidden_size**-0.5 if config.scale_logits else hidden

    def origins(self, source_ids, source_mask, answers, start: int, unknown: int):
        """The place in the source where each token of an answer looked.

        Args:
            source_ids, source_mask: See `read`.
            answers: int32 `[batch, length]`.
            start: The token before an answer.
            unknown: A token that is taken before all others of the source.

        Returns:
            int32 `[batch, length]`: where the last block's heads look most, together;
            not at the end.
        """
        before = tf.pad(answers[:, :-1], [[0, 0], [1, 0]], constant_values=start)
        inputs = {"source_ids": source_ids, "source_mask": source_mask}
        inputs |= {"token_ids": before, "padding_mask": tf.ones_like(before)}
        last = self._config.decoder_layers - 1
        shares, _ = run_pairs(self._config, self._layers, inputs, shares=last)
        inside = source_mask * tf.pad(source_mask[:, 1:], [[0, 0], [0, 1]])
        first = tf.cast(inside * tf.cast(source_ids == unknown, tf.int32), tf.float32)
        inside = tf.cast(inside, tf.float32)[:, None]
        scores = tf.reduce_mean(shares, 1) * inside + first[:, None]
        return tf.argmax(scores, -1, output_type=tf.int32)

    def logits(self, told):
        """float32 `[rows, vocabulary_size]` from what `run` gave for `[rows]` tokens"""
        if not self._config.pointer:
            return to_logits(self._layers, told)
        hidden, ways, tokens = told
        ways = tf.exp(ways)
        made = tf.nn.softmax(to_logits(self._layers, hidden)) * ways[:, :1]
        rows = tf.repeat(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(tokens)[1], 1)
        # Adds up what several places say of one token, as `pointed_logits` does.
        places = tf.stack([rows, tokens], 2)
        made = tf.tensor_scatter_nd_add(made, places, ways[:, 1:])
        return tf.math.log(made + 1e-30)
