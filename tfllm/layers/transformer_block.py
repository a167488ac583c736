"""One Transformer block: attention and feed-forward, each with norm and residual."""

import functools

import keras

from tfllm.layers.attention import MultiHeadAttention
from tfllm.layers.dropout import Dropout
from tfllm.layers.feed_forward import FeedForward


def norm_layer(kind: str, epsilon: float, **kwargs) -> keras.layers.Layer:
    """Returns a `layer_norm` or an `rms_norm` over the last axis."""
    if kind == "layer_norm":
        return keras.layers.LayerNormalization(epsilon=epsilon, **kwargs)
    if kind == "rms_norm":
        return keras.layers.RMSNormalization(epsilon=epsilon, **kwargs)
    raise ValueError(f"norm must be 'layer_norm' or 'rms_norm'. Received: {kind!r}")


class TransformerBlock(keras.layers.Layer):
    """`x = x + attention(norm(x)); x = x + feed_forward(norm(x))`, or norm after.

    Args:
        hidden_size: Size of the vectors.
        num_heads: Number of attention heads.
        intermediate_size: Inner size of the feed-forward network.
        num_kv_heads: See `MultiHeadAttention`.
        head_size: See `MultiHeadAttention`.
        attention_bias: Biases of query, key and value.
        output_bias: Bias of the attention's output; None for `attention_bias`.
        qk_norm: See `MultiHeadAttention`.
        attention_scale: See `scale` of `MultiHeadAttention`.
        activation: See `FeedForward`.
        feed_forward_bias: Biases of the feed-forward network.
        norm: `layer_norm` or `rms_norm`.
        norm_first: Norm before each part (GPT, Llama) or after its residual (BERT).
        norm_epsilon: Of every norm.
        cross_attention: Adds attention to a `context` between the two parts.
        dropout: On what is added to the residual.
        attention_dropout: On the attention shares.
        initializer: Of the kernels.
        output_initializer: Of the kernels whose product is added to the residual; None
            for `initializer`.
    """

    def __init__(
        self,
        hidden_size,
        num_heads,
        intermediate_size,
        num_kv_heads=None,
        head_size=None,
        attention_bias=True,
        output_bias=None,
        qk_norm=False,
        attention_scale=None,
        activation="gelu",
        feed_forward_bias=True,
        norm="layer_norm",
        norm_first=False,
        norm_epsilon=1e-6,
        cross_attention=False,
        dropout=0.0,
        attention_dropout=0.0,
        initializer="glorot_uniform",
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.arguments = {
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "intermediate_size": intermediate_size,
            "num_kv_heads": num_kv_heads,
            "head_size": head_size,
            "attention_bias": attention_bias,
            "output_bias": output_bias,
            "qk_norm": qk_norm,
            "attention_scale": attention_scale,
            "activation": activation,
            "feed_forward_bias": feed_forward_bias,
            "norm": norm,
            "norm_first": norm_first,
            "norm_epsilon": norm_epsilon,
            "cross_attention": cross_attention,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "initializer": keras.initializers.serialize(
                keras.initializers.get(initializer)
            ),
            "output_initializer": keras.initializers.serialize(
                keras.initializers.get(output_initializer)
            ),
        }
        self.norm_first = norm_first
        self.cross_attention = cross_attention
        policy = self.dtype_policy

        def attention(name):
            return MultiHeadAttention(
                hidden_size,
                num_heads,
                num_kv_heads=num_kv_heads,
                head_size=head_size,
                use_bias=attention_bias,
                output_bias=output_bias,
                qk_norm=qk_norm,
                norm_epsilon=norm_epsilon,
                scale=attention_scale,
                dropout=attention_dropout,
                initializer=initializer,
                output_initializer=output_initializer,
                dtype=policy,
                name=name,
            )

        def parts(name):
            return (
                norm_layer(norm, norm_epsilon, dtype=policy, name=f"{name}_norm"),
                Dropout(dropout, dtype=policy, name=f"{name}_dropout"),
            )

        self.attention = attention("attention")
        self.attention_norm, self.attention_dropout = parts("attention")
        if cross_attention:
            self.cross = attention("cross_attention")
            self.cross_norm, self.cross_dropout = parts("cross_attention")
        self.feed_forward = FeedForward(
            hidden_size,
            intermediate_size,
            activation=activation,
            use_bias=feed_forward_bias,
            initializer=initializer,
            output_initializer=output_initializer,
            dtype=policy,
            name="feed_forward",
        )
        self.feed_forward_norm, self.feed_forward_dropout = parts("feed_forward")

    def build(self, hidden_shape):
        """Makes the weights."""
        names = ["attention", "feed_forward"] + ["cross"] * self.cross_attention
        for name in names:
            for part in (name, f"{name}_norm", f"{name}_dropout"):
                getattr(self, part).build(hidden_shape)

    def call(
        self,
        hidden,
        bias=None,
        rotary=None,
        context=None,
        context_bias=None,
        training=False,
        cache=None,
    ):
        """Returns `[batch, length, hidden_size]`.

        Args:
            hidden: `[batch, length, hidden_size]`.
            bias: What `AttentionBias` returned.
            rotary: What `RotaryPositions` returned.
            context: `[batch, keys, hidden_size]`, with `cross_attention`, or what
                `cross.keep` made of it.
            context_bias: `[batch, 1, 1, keys]`.
            training: Whether dropout is on.
            cache: See `MultiHeadAttention`; for the self-attention.
        """
        options = {"bias": bias, "rotary": rotary}
        if cache is not None:
            options["cache"] = cache
        hidden = self._part("attention", hidden, training, **options)
        if self.cross_attention:
            options = {"bias": context_bias, "context": context}
            hidden = self._part("cross", hidden, training, **options)
        return self._part("feed_forward", hidden, training)

    def context_shares(self, hidden, bias, rotary, context, context_bias):
        """Where tokens look in the context; arguments as in `call`.

        Returns:
            float32 `[batch, num_heads, length, keys]`.
        """
        hidden = self._part("attention", hidden, False, bias=bias, rotary=rotary)
        query = self.cross_norm(hidden) if self.norm_first else hidden
        key, _ = self.cross.project_key_value(context)
        return self.cross.shares(self.cross.project_query(query), key, context_bias)

    def residual(self, name, hidden, function, training=False):
        """What a part, `attention`, `cross` or `feed_forward`, makes of hidden states.

        Args:
            name: Of the part: its norm and dropout are taken.
            hidden: `[…, hidden_size]`.
            function: What the part does.
            training: Whether dropout is on.
        """
        norm, dropout = getattr(self, f"{name}_norm"), getattr(self, f"{name}_dropout")
        new = function(norm(hidden) if self.norm_first else hidden)
        hidden = hidden + dropout(new, training=training)
        return hidden if self.norm_first else norm(hidden)

    def _part(self, name, hidden, training, **options):
        function = functools.partial(getattr(self, name), training=training, **options)
        return self.residual(name, hidden, function, training)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), **self.arguments}
