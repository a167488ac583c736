"""The Transformer encoder, one builder for the BERT family.

BERT's shape is the default; RoBERTa counts positions from 2, ALBERT shares one block
and has narrow embeddings, DistilBERT has neither segments nor pooler. Layer names do
not depend on what stands above, so the weights of an encoder and of a classifier that
holds it have the same paths.
"""

from dataclasses import asdict, dataclass

import keras
from keras import ops

from tfllm.core.errors import UserError
from tfllm.layers.attention import AttentionBias
from tfllm.layers.dropout import Dropout
from tfllm.layers.feed_forward import activate
from tfllm.layers.output_bias import OutputBias
from tfllm.layers.positions import (
    PositionEmbedding,
    RotaryPositions,
    SinusoidalPositions,
)
from tfllm.layers.token_embedding import TokenEmbedding
from tfllm.layers.transformer_block import TransformerBlock, norm_layer

# The sizes of Turc et al. (2019), to be handed to `EncoderConfig`.
SIZES = {
    name: {
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": hidden_size // 64,
        "intermediate_size": 4 * hidden_size,
    }
    for name, hidden_size, num_layers in (
        ("tiny", 128, 2),
        ("mini", 256, 4),
        ("small", 512, 4),
        ("base", 768, 12),
    )
}


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
        num_segments: Number of segments; 0 for an encoder without segments, 1 for one
            vector that is added everywhere (RoBERTa); neither takes `segment_ids`.
        position: `learned`, `sinusoidal`, `rotary` or None.
        position_offset: First learned position (RoBERTa: 2).
        embedding_size: Size of the embeddings, projected to `hidden_size` (ALBERT);
            None for `hidden_size` without a projection.
        embedding_norm: Norm on the embeddings.
        share_layers: All blocks are one (ALBERT).
        num_kv_heads: Key and value heads; None for `num_heads`.
        activation: Of the feed-forward networks.
        norm: `layer_norm` or `rms_norm`.
        norm_first: Norm before each part, and once at the end.
        norm_epsilon: Of every norm.
        dropout: On embeddings and residual branches.
        attention_dropout: On attention shares.
        pooler: A dense layer on the first token's vector (BERT).
        initializer_range: Standard deviation of the first weights.
        pooler_activation: `tanh`, or `relu` (DistilBERT's classifiers).
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
    pooler_activation: str = "tanh"

    def to_dict(self) -> dict:
        """Returns what `EncoderConfig(**…)` takes."""
        return asdict(self)


def sized_encoder(size: str, vocabulary_size: int, max_length: int, **options):
    """The `EncoderConfig` of one of `SIZES`, to be pretrained from scratch.

    BERT's 0.02 is for 768: narrower layers begin with weights as large in sum.
    """
    shape = SIZES[size]
    spread = 0.02 * (768 / shape["hidden_size"]) ** 0.5
    options |= shape | {"max_length": max_length, "initializer_range": spread}
    return EncoderConfig(vocabulary_size, **options)


def fitting_heads(
    hidden_size: int, given: int | None, most: int, even: bool = False
) -> int:
    """The number of attention heads of a hidden size.

    Args:
        hidden_size: What the heads share evenly.
        given: What the user asks for; None takes as many as fit.
        most: Of the latter.
        even: Whether rotary positions turn the halves of a head.

    Raises:
        UserError: What was asked for does not fit, or nothing does.
    """
    step = 2 if even else 1
    fit = [n for n in range(1, most + 1) if hidden_size % (n * step) == 0]
    if not fit:
        what = f"a hidden size of {hidden_size} is odd: rotary positions halve it"
        raise UserError(what, fix="Give an even one")
    if given and hidden_size % (given * step):
        what = f"--num_heads {given} does not suit a hidden size of {hidden_size}"
        what += ": each head wants an even size" * even
        raise UserError(what, fix=f"Use {fit[-1]}, or leave it out")
    return given or fit[-1]


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
    hidden = TokenEmbedding(
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
        hidden += SinusoidalPositions(size, name="sinusoidal_positions", **common)(
            hidden, positions
        )
    if config.num_segments:
        segments = inputs.get("segment_ids")
        if segments is None:
            segments = ops.zeros_like(inputs["token_ids"])
        hidden += keras.layers.Embedding(
            config.num_segments,
            size,
            embeddings_initializer=initializer(),
            name="segment_embedding",
            **common,
        )(segments)
    if config.embedding_norm:
        hidden = norm_layer(
            config.norm, config.norm_epsilon, name="embedding_norm", **common
        )(hidden)
    hidden = Dropout(config.dropout, name="embedding_dropout", **common)(hidden)
    if config.embedding_size:
        hidden = keras.layers.Dense(
            config.hidden_size,
            kernel_initializer=initializer(),
            name="embedding_projection",
            **common,
        )(hidden)
    rotary = None
    if config.position == "rotary":
        rotary = RotaryPositions(
            config.hidden_size // config.num_heads, name="rotary_positions", **common
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
    return dense(
        config,
        config.hidden_size,
        "pooler",
        activation=config.pooler_activation,
        dtype=dtype,
    )(hidden[:, 0])


def masked_lm_features(config: EncoderConfig, hidden, dtype=None):
    """BERT's transform before the vocabulary.

    Args:
        config: Shape of the encoder.
        hidden: `[…, hidden_size]`, all places or only the masked ones.
        dtype: Name of a Keras dtype policy.

    Returns:
        `[…, embedding_size]`, to be multiplied with the token embedding.
    """
    size = config.embedding_size or config.hidden_size
    hidden = dense(config, size, "masked_lm_dense", dtype=dtype)(hidden)
    return norm_layer(
        config.norm, config.norm_epsilon, dtype=dtype, name="masked_lm_norm"
    )(activate(config.activation, hidden))


def encoder(
    config: EncoderConfig,
    dtype=None,
    packed=False,
    masked_lm=False,
    next_sentence=False,
    num_labels=0,
) -> keras.Model:
    """Builds an encoder.

    Args:
        config: Its shape.
        dtype: Name of a Keras dtype policy; None for the global one.
        packed: Takes `sequence_ids` and `positions` too.
        masked_lm: Adds BERT's head for masked words.
        next_sentence: Adds BERT's head for the next sentence, or ALBERT's for the
            order of two.
        num_labels: Adds a classifier of that many labels.

    Returns:
        A model from int32 `token_ids`, `padding_mask` (and, with two segments or more,
        `segment_ids`) `[batch, length]` to a dict: `hidden` `[batch, length,
        hidden_size]`, `pooled` `[batch, hidden_size]` with `config.pooler`, and the
        heads' float32 logits: `masked_lm` `[batch, length, vocabulary_size]`,
        `next_sentence` `[batch, 2]`, `logits` `[batch, num_labels]` from the pooler or,
        without one, `[batch, length, num_labels]`.
    """
    inputs = token_inputs(config.num_segments > 1, packed)
    hidden = encode(config, inputs, dtype)
    outputs = {"hidden": hidden}
    if config.pooler:
        outputs["pooled"] = pool(config, hidden, dtype)
    if masked_lm:
        embedding = keras.Model(inputs, hidden).get_layer("token_embedding")
        features = masked_lm_features(config, hidden, dtype)
        outputs["masked_lm"] = OutputBias(name="masked_lm_bias")(
            embedding(features, reverse=True)
        )
    if next_sentence:
        outputs["next_sentence"] = dense(config, 2, "next_sentence", dtype="float32")(
            outputs["pooled"]
        )
    if num_labels:
        features = outputs.get("pooled", hidden)
        features = Dropout(config.dropout, dtype=dtype, name="head_dropout")(features)
        outputs["logits"] = dense(config, num_labels, "logits", dtype="float32")(
            features
        )
    return keras.Model(inputs, outputs, name="encoder")


def dense(config, size, name, **options):
    """A dense layer whose kernel begins as the encoder's do."""
    return keras.layers.Dense(
        size,
        kernel_initializer=keras.initializers.TruncatedNormal(
            stddev=config.initializer_range
        ),
        name=name,
        **options,
    )
