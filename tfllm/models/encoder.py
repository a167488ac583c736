"""The Transformer encoder, one builder for the BERT family.

BERT's shape is the default. Layer names do not depend on what stands above, so the
weights of an encoder and of a classifier that holds it have the same paths.
"""

from dataclasses import asdict, dataclass

import keras

from tfllm.layers.attention import AttentionBias
from tfllm.layers.dropout import Dropout
from tfllm.layers.positions import (
    PositionEmbedding,
    RotaryPositions,
    SinusoidalPositions,
)
from tfllm.layers.transformer_block import TransformerBlock, norm_layer


@dataclass
class EncoderConfig:
    """Shape of an encoder.

    Args:
        vocabulary_size: Number of tokens.
        hidden_size: Size of the vectors.
        num_layers: Number of blocks.
        num_heads: Number of attention heads.
        intermediate_size: Inner size of the feed-forward networks.
        max_length: Number of learned positions.
        num_segments: Number of segments; 0 for an encoder without `segment_ids`.
        position: `learned`, `sinusoidal`, `rotary` or None.
        position_offset: First learned position (RoBERTa: 2).
        embedding_size: Size of the embeddings when smaller (ALBERT); None for
            `hidden_size`.
        embedding_norm: Norm on the embeddings.
        share_layers: All blocks are one (ALBERT).
        num_kv_heads: Key and value heads; None for `num_heads`.
        activation: Of the feed-forward networks.
        norm: `layer_norm` or `rms_norm`.
        norm_first: Norm before each part, and once at the end.
        norm_epsilon: Of every norm.
        dropout: On embeddings and residual branches.
        attention_dropout: On attention shares.
        pooler: A dense tanh layer on the first token's vector (BERT).
        initializer_range: Standard deviation of the first weights.
    """

    vocabulary_size: int
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 1024
    max_length: int = 512
    num_segments: int = 2
    position: str | None = "learned"
    position_offset: int = 0
    embedding_size: int | None = None
    embedding_norm: bool = True
    share_layers: bool = False
    num_kv_heads: int | None = None
    activation: str = "gelu"
    norm: str = "layer_norm"
    norm_first: bool = False
    norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    pooler: bool = True
    initializer_range: float = 0.02

    def to_dict(self) -> dict:
        """Returns what `EncoderConfig(**…)` takes."""
        return asdict(self)


def token_inputs(segments: bool = False, packed: bool = False) -> dict:
    """Returns int32 inputs `[batch, length]` by name.

    Args:
        segments: Adds `segment_ids`.
        packed: Adds `sequence_ids` and `positions`, for several texts in a row.
    """
    names = ["token_ids", "padding_mask"] + ["segment_ids"] * segments
    names += ["sequence_ids", "positions"] * packed
    return {name: keras.Input((None,), dtype="int32", name=name) for name in names}


def encode(config: EncoderConfig, inputs: dict, dtype=None):
    """Lays an encoder on `inputs` (see `token_inputs`).

    Returns:
        Hidden states `[batch, length, hidden_size]`.
    """
    positions = inputs.get("positions")
    common = {"dtype": dtype}

    def initializer():
        return keras.initializers.TruncatedNormal(stddev=config.initializer_range)

    size = config.embedding_size or config.hidden_size
    hidden = keras.layers.ReversibleEmbedding(
        config.vocabulary_size,
        size,
        embeddings_initializer=initializer(),
        name="token_embedding",
        **common,
    )(inputs["token_ids"])
    if config.position == "learned":
        hidden += PositionEmbedding(
            config.max_length,
            size,
            offset=config.position_offset,
            initializer=initializer(),
            name="position_embedding",
            **common,
        )(hidden, positions)
    elif config.position == "sinusoidal":
        hidden += SinusoidalPositions(size, name="positions", **common)(
            hidden, positions
        )
    if config.num_segments:
        hidden += keras.layers.Embedding(
            config.num_segments,
            size,
            embeddings_initializer=initializer(),
            name="segment_embedding",
            **common,
        )(inputs["segment_ids"])
    if config.embedding_norm:
        hidden = norm_layer(
            config.norm, config.norm_epsilon, name="embedding_norm", **common
        )(hidden)
    hidden = Dropout(config.dropout, name="embedding_dropout", **common)(hidden)
    if size != config.hidden_size:
        hidden = keras.layers.Dense(
            config.hidden_size,
            kernel_initializer=initializer(),
            name="embedding_projection",
            **common,
        )(hidden)
    rotary = None
    if config.position == "rotary":
        rotary = RotaryPositions(
            config.hidden_size // config.num_heads, name="positions", **common
        )(hidden, positions)
    bias = AttentionBias(name="attention_bias", **common)(
        inputs["padding_mask"], inputs.get("sequence_ids")
    )
    blocks = [
        TransformerBlock(
            config.hidden_size,
            config.num_heads,
            config.intermediate_size,
            num_kv_heads=config.num_kv_heads,
            activation=config.activation,
            norm=config.norm,
            norm_first=config.norm_first,
            norm_epsilon=config.norm_epsilon,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            initializer=initializer(),
            name=f"block_{i}",
            **common,
        )
        for i in range(1 if config.share_layers else config.num_layers)
    ]
    for i in range(config.num_layers):
        hidden = blocks[i % len(blocks)](hidden, bias=bias, rotary=rotary)
    if config.norm_first:
        hidden = norm_layer(
            config.norm, config.norm_epsilon, name="final_norm", **common
        )(hidden)
    return hidden


def pool(config: EncoderConfig, hidden, dtype=None):
    """BERT's pooler: `[batch, hidden_size]` from the first token's vector."""
    return keras.layers.Dense(
        config.hidden_size,
        activation="tanh",
        kernel_initializer=keras.initializers.TruncatedNormal(
            stddev=config.initializer_range
        ),
        dtype=dtype,
        name="pooler",
    )(hidden[:, 0])


def encoder(config: EncoderConfig, dtype=None, packed=False) -> keras.Model:
    """Builds an encoder.

    Args:
        config: Its shape.
        dtype: Name of a Keras dtype policy; None for the global one.
        packed: Takes `sequence_ids` and `positions` too.

    Returns:
        A model from int32 `token_ids`, `padding_mask` (and `segment_ids`)
        `[batch, length]` to a dict: `hidden` `[batch, length, hidden_size]` and, with
        `config.pooler`, `pooled` `[batch, hidden_size]`.
    """
    inputs = token_inputs(bool(config.num_segments), packed)
    outputs = {"hidden": encode(config, inputs, dtype)}
    if config.pooler:
        outputs["pooled"] = pool(config, outputs["hidden"], dtype)
    return keras.Model(inputs, outputs, name="encoder")
