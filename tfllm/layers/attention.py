"""Multi-head attention, and the bias that says who may look at whom."""

import keras
from keras import ops

from tfllm.layers.dropout import Dropout
from tfllm.layers.positions import apply_rotary, distance_buckets

# Low enough that exp() gives exactly 0 beside any real score, and still finite in
# float16: a row without a single key stays free of NaN.
BLOCKED = -3e4


class AttentionBias(keras.layers.Layer):
    """What is added to the attention scores: 0 where allowed, -3e4 where not.

    Made once and handed to every block.

    Args:
        causal: A token sees itself and what stands before it.
        window: A token sees at most the `window` nearest tokens of each direction it
            may look to, itself included (Mistral).
        relative_buckets: Adds a learned number for each of so many ranges of distance
            and each head (T5; Raffel et al., 2020).
        relative_distance: From here on all distances are one.
        num_heads: With `relative_buckets`.
    """

    def __init__(
        self,
        causal=False,
        window=None,
        relative_buckets=None,
        relative_distance=128,
        num_heads=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.causal = causal
        self.window = window
        self.relative_buckets = relative_buckets
        self.relative_distance = relative_distance
        self.num_heads = num_heads

    def build(self, mask_shape):
        """Makes the table, if there is one."""
        if self.relative_buckets:
            shape = self.relative_buckets, self.num_heads
            self.embeddings = self.add_weight(name="embeddings", shape=shape)

    def call(self, padding_mask, sequence_ids=None, places=None):
        """Returns `[batch, 1 or num_heads, length or 1, length]`.

        Args:
            padding_mask: int `[batch, length]`, 1 at real tokens.
            sequence_ids: int `[batch, length]` in packed rows: only tokens with the
                same number see each other.
            places: int32 `[queries]`, where the tokens that look stand among those of
                `padding_mask`, when these are a cache; None when they are the same.
        """
        allowed = ops.cast(padding_mask, "bool")[:, None, None, :]
        if self.causal or self.window or self.relative_buckets:
            keys = ops.arange(ops.shape(padding_mask)[1], dtype="int32")
            queries = keys if places is None else places
            distance = queries[:, None] - keys[None, :]
            if self.causal:
                allowed = ops.logical_and(allowed, distance >= 0)
            if self.window:
                allowed = ops.logical_and(allowed, ops.abs(distance) < self.window)
        if sequence_ids is not None:
            same = sequence_ids[:, :, None] == sequence_ids[:, None, :]
            allowed = ops.logical_and(allowed, same[:, None])
        bias = (1 - ops.cast(allowed, self.compute_dtype)) * BLOCKED
        return bias + self._relative(distance) if self.relative_buckets else bias

    def _relative(self, distance):
        """`[num_heads, queries, keys]`"""
        table = distance_buckets(
            self.relative_buckets, self.relative_distance, not self.causal
        )
        most = self.relative_distance
        index = ops.clip(distance, 0 if self.causal else -most, most) + most
        numbers = ops.take(self.embeddings, ops.take(table, index), axis=0)
        return ops.transpose(numbers, (2, 0, 1))

    def get_config(self):
        """Returns the constructor's arguments."""
        names = "causal window relative_buckets relative_distance num_heads"
        return super().get_config() | {n: getattr(self, n) for n in names.split()}


class MultiHeadAttention(keras.layers.Layer):
    """Scaled dot-product attention with several heads (Vaswani et al., 2017).

    Args:
        hidden_size: Size of the vectors that come in and go out.
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads, a divisor of `num_heads`
            (grouped- or single-query attention); None for `num_heads`.
        head_size: None for `hidden_size / num_heads`.
        use_bias: Biases of query, key and value.
        output_bias: Bias of the output; None for `use_bias`.
        qk_norm: RMS norm on each query and key head (Qwen 3).
        norm_epsilon: Of that norm.
        scale: Factor of the scores (T5: 1); None for `head_size ** -0.5`.
        dropout: On the attention shares.
        initializer: Of the kernels.
        output_initializer: Of the output's kernel; None for `initializer`.
    """

    def __init__(
        self,
        hidden_size,
        num_heads,
        num_kv_heads=None,
        head_size=None,
        use_bias=True,
        output_bias=None,
        qk_norm=False,
        norm_epsilon=1e-6,
        scale=None,
        dropout=0.0,
        initializer="glorot_uniform",
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        if num_heads % self.num_kv_heads or (not head_size and hidden_size % num_heads):
            raise ValueError(
                "num_kv_heads must divide num_heads, and num_heads the hidden_size. "
                f"Received: {hidden_size=}, {num_heads=}, {num_kv_heads=}"
            )
        self.head_size = head_size or hidden_size // num_heads
        self.use_bias = use_bias
        self.output_bias = use_bias if output_bias is None else output_bias
        self.qk_norm = qk_norm
        self.norm_epsilon = norm_epsilon
        self.scale = scale
        self.dropout = dropout
        self.initializer = keras.initializers.get(initializer)
        self.output_initializer = keras.initializers.get(output_initializer)

        def dense(name, size, bias, initializer=self.initializer):
            return keras.layers.Dense(
                size,
                use_bias=bias,
                kernel_initializer=initializer.clone(),
                dtype=self.dtype_policy,
                name=name,
            )

        self.query = dense("query", num_heads * self.head_size, use_bias)
        self.key = dense("key", self.num_kv_heads * self.head_size, use_bias)
        self.value = dense("value", self.num_kv_heads * self.head_size, use_bias)
        self.output_dense = dense(
            "output",
            hidden_size,
            self.output_bias,
            self.output_initializer or self.initializer,
        )
        if qk_norm:
            self.query_norm, self.key_norm = (
                keras.layers.RMSNormalization(
                    epsilon=norm_epsilon, dtype=self.dtype_policy, name=name
                )
                for name in ("query_norm", "key_norm")
            )
        self.share_dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, hidden_shape):
        """Makes the weights; keys and values come from vectors of the same size."""
        self.query.build(hidden_shape)
        self.key.build(hidden_shape)
        self.value.build(hidden_shape)
        self.output_dense.build((None, None, self.num_heads * self.head_size))
        if self.qk_norm:
            self.query_norm.build((None, None, None, self.head_size))
            self.key_norm.build((None, None, None, self.head_size))
        self.share_dropout.build((None, None, None, None))

    def project_query(self, hidden, rotary=None):
        """Returns `[batch, length, num_heads, head_size]`."""
        query = self._heads(self.query(hidden), self.num_heads)
        query = self.query_norm(query) if self.qk_norm else query
        return query if rotary is None else apply_rotary(query, rotary)

    def project_key_value(self, hidden, rotary=None):
        """Returns key and value, each `[batch, length, num_kv_heads, head_size]`."""
        key = self._heads(self.key(hidden), self.num_kv_heads)
        key = self.key_norm(key) if self.qk_norm else key
        key = key if rotary is None else apply_rotary(key, rotary)
        return key, self._heads(self.value(hidden), self.num_kv_heads)

    def keep(self, context):
        """Keys and values of a context as a cache has them, for `call`."""
        return tuple(
            ops.transpose(heads, (0, 2, 1, 3))
            for heads in self.project_key_value(context)
        )

    def shares(self, query, key, bias=None, kept=False):
        """What part of each key goes into each query's answer.

        Query heads that share a key head are laid side by side along the length, so
        that no key or value is copied.

        Args:
            query: From `project_query`.
            key: From `project_key_value`, or from `keep` or a cache.
            bias: See `call`.
            kept: Whether the heads stand before the length, as in a cache.

        Returns:
            float32 `[batch, num_heads, query length, keys]`.
        """
        length = ops.shape(query)[1]
        scale = self.head_size**-0.5 if self.scale is None else self.scale
        query = self._side_by_side(query * scale, length)
        scores = ops.matmul(
            query, ops.transpose(key, (0, 1, 3, 2) if kept else (0, 2, 3, 1))
        )
        if self.num_heads > self.num_kv_heads:
            keys = ops.shape(key)[2 if kept else 1]
            scores = ops.reshape(scores, (-1, self.num_heads, length, keys))
        # bfloat16 has 8 bits: at a score of 10 a share would be 4 % wrong.
        scores = ops.cast(scores, "float32")
        if bias is not None:
            scores = scores + ops.cast(bias, "float32")
        return ops.softmax(scores, axis=-1)

    def attend(self, query, key, value, bias=None, training=False, kept=False):
        """Returns `[batch, query length, hidden_size]`; see `shares`."""
        groups, length = self.num_heads // self.num_kv_heads, ops.shape(query)[1]
        shares = ops.cast(self.shares(query, key, bias, kept), value.dtype)
        shares = self.share_dropout(shares, training=training)
        if groups > 1:
            keys = ops.shape(key)[2 if kept else 1]
            shape = (-1, self.num_kv_heads, groups * length, keys)
            shares = ops.reshape(shares, shape)
        value = value if kept else ops.transpose(value, (0, 2, 1, 3))
        mixed = ops.matmul(shares, value)
        if groups > 1:
            shape = (-1, self.num_heads, length, self.head_size)
            mixed = ops.reshape(mixed, shape)
        mixed = ops.transpose(mixed, (0, 2, 1, 3))
        return self.output_dense(
            ops.reshape(mixed, (-1, length, self.num_heads * self.head_size))
        )

    def call(
        self,
        hidden,
        bias=None,
        rotary=None,
        context=None,
        training=False,
        cache=None,
    ):
        """Returns `[batch, length, hidden_size]`.

        Args:
            hidden: `[batch, length, hidden_size]`.
            bias: What `AttentionBias` returned, `[batch, 1, length or 1, keys]`.
            rotary: What `RotaryPositions` returned, for self-attention.
            context: `[batch, keys, hidden_size]` to look at instead of `hidden`, or
                what `keep` made of it.
            training: Whether dropout is on.
            cache: A function that keeps the new keys and values `[batch, length,
                num_kv_heads, head_size]` and returns all there are, `[batch,
                num_kv_heads, keys, head_size]`; `bias` covers these. For decoding: how
                they are kept is the caller's business.
        """
        query = self.project_query(hidden, rotary)
        kept = isinstance(context, tuple)
        if kept:
            key, value = context
        else:
            source = hidden if context is None else context
            key, value = self.project_key_value(source, rotary)
        if cache is not None:
            (key, value), kept = cache(key, value), True
        return self.attend(query, key, value, bias, training=training, kept=kept)

    def _side_by_side(self, query, length):
        groups = self.num_heads // self.num_kv_heads
        if groups == 1:
            return ops.transpose(query, (0, 2, 1, 3))
        shape = (-1, length, self.num_kv_heads, groups, self.head_size)
        query = ops.transpose(ops.reshape(query, shape), (0, 2, 3, 1, 4))
        return ops.reshape(query, (-1, self.num_kv_heads, groups * length, shape[-1]))

    def _heads(self, hidden, num_heads):
        shape = (-1, ops.shape(hidden)[1], num_heads, self.head_size)
        return ops.reshape(hidden, shape)

    def get_config(self):
        """Returns the constructor's arguments."""
        names = "hidden_size num_heads num_kv_heads head_size use_bias output_bias"
        names += " qk_norm norm_epsilon scale dropout"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
            "initializer": keras.initializers.serialize(self.initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
