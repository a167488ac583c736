"""Encoder and decoder, one builder: the Transformer, T5, and LSTMs with attention.

The plain Transformer (Vaswani et al., 2017), norm before each part, is the default. As
with `models.decoder`, what the model does stands in functions, `encode` and `run`, that
take symbolic or real tensors: a decoding loop encodes the source once, keeps what each
block makes of it (`keep`), and runs the rest with a cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import keras

from tfllm.layers.attention import AttentionBias
from tfllm.layers.dropout import Dropout
from tfllm.layers.lstm_block import LSTMBlock
from tfllm.layers.pointer import Pointer, pointed_logits
from tfllm.layers.positions import (
    PositionEmbedding,
    RotaryPositions,
    SinusoidalPositions,
)
from tfllm.layers.recurrent_block import RecurrentBlock
from tfllm.layers.token_embedding import TokenEmbedding
from tfllm.layers.transformer_block import TransformerBlock, norm_layer
from tfllm.models.decoder import to_logits
from tfllm.models.encoder import token_inputs

SIZES = {
    "tiny": {"hidden_size": 128, "num_layers": 4, "intermediate_size": 256},
    "mini": {"hidden_size": 256, "num_layers": 3, "intermediate_size": 1024},
    "small": {"hidden_size": 384, "num_layers": 4, "intermediate_size": 1536},
    "base": {"hidden_size": 512, "num_layers": 6, "intermediate_size": 2048},
}
HEADS = {"tiny": 4, "mini": 4, "small": 6, "base": 8}
POSITIONS = ("sinusoidal", "learned", "rotary", "relative")
T5 = {
    "position": "relative",
    "norm": "rms_norm",
    "use_bias": False,
    "scale_attention": False,
    "scale_embeddings": False,
}


@dataclass
class EncoderDecoderConfig:
    """Shape of an encoder with a decoder.

    Args:
        vocabulary_size: Number of the decoder's tokens.
        source_vocabulary_size: Number of the encoder's, with embeddings of its own;
            None where both read the same tokens.
        architecture: `transformer` or `lstm`, whose encoder reads both ways.
        attention: Scores of the LSTM's, `multiplicative` or `additive`.
        hidden_size: Size of the vectors.
        num_layers: Number of the encoder's blocks.
        num_decoder_layers: Number of the decoder's; None for `num_layers`.
        num_heads: Number of attention heads.
        head_size: None for `hidden_size / num_heads`.
        intermediate_size: Inner size of the feed-forward networks.
        max_length: Number of learned positions; else the length that the model was
            made for.
        position: `sinusoidal`, `learned`, `rotary` or `relative` (T5).
        relative_buckets: Number of ranges of distance.
        relative_distance: From here on all distances are one.
        norm: `layer_norm` or `rms_norm`.
        norm_first: Norm before each part and once at the end, or behind each part.
        norm_epsilon: Of every norm.
        activation: Of the feed-forward networks.
        use_bias: Biases of attention and feed-forward networks.
        scale_attention: Scores are divided by the root of `head_size` (not in T5).
        scale_embeddings: Embeddings are multiplied by the root of `hidden_size`.
        scale_logits: Logits are divided by it (T5 before 1.1).
        tie_embeddings: The output matrix is the decoder's token embedding.
        pointer: Tokens of the source may be copied, see `layers.pointer`; both sides
            read the same tokens then.
        dropout: On embeddings and residual branches.
        attention_dropout: On attention shares.
    """

    vocabulary_size: int
    source_vocabulary_size: int | None = None
    architecture: str = "transformer"
    attention: str = "multiplicative"
    hidden_size: int = 256
    num_layers: int = 3
    num_decoder_layers: int | None = None
    num_heads: int = 4
    head_size: int | None = None
    intermediate_size: int = 1024
    max_length: int = 512
    position: str = "sinusoidal"
    relative_buckets: int = 32
    relative_distance: int = 128
    norm: str = "layer_norm"
    norm_first: bool = True
    norm_epsilon: float = 1e-6
    activation: str = "relu"
    use_bias: bool = True
    scale_attention: bool = True
    scale_embeddings: bool = True
    scale_logits: bool = False
    tie_embeddings: bool = True
    pointer: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.0

    def to_dict(self) -> dict:
        """Returns what `EncoderDecoderConfig(**…)` takes."""
        return asdict(self)

    @property
    def decoder_layers(self) -> int:
        """Number of the decoder's blocks."""
        return self.num_decoder_layers or self.num_layers

    @property
    def recurrent(self) -> bool:
        """Whether it is made of LSTMs."""
        return self.architecture == "lstm"


def shape_of(size: str, vocabulary_size: int, **changes) -> EncoderDecoderConfig:
    """The shape of a model that is trained from scratch.

    Args:
        size: One of `SIZES`.
        vocabulary_size: Number of tokens.
        **changes: Other fields; None leaves one as it is.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    shape = SIZES[size] | {"num_heads": HEADS[size]} | given
    if shape.get("architecture") == "lstm":  # as deep as LSTMs are trained easily
        shape["num_layers"] = given.get("num_layers", 2)
    return EncoderDecoderConfig(vocabulary_size, **shape)


def make_layers(config: EncoderDecoderConfig, dtype=None) -> dict:
    """The layers by name, not built."""
    made, size = {}, config.hidden_size

    def add(kind, *args, name, **options):
        made[name] = kind(*args, name=name, dtype=dtype, **options)

    if config.architecture not in ("transformer", "lstm"):
        raise ValueError(f"Unknown architecture. Received: {config.architecture!r}")
    if config.position not in POSITIONS:
        raise ValueError(
            f"position must be one of {', '.join(POSITIONS)}. "
            f"Received: position={config.position!r}"
        )
    if config.pointer and config.source_vocabulary_size:
        raise ValueError("A pointer copies tokens: both sides must read the same ones.")
    # Scaled up or not, an embedding begins with a length like that of a position.
    stddev = size**-0.5 if config.scale_embeddings else 1.0
    sides = {"token_embedding": config.vocabulary_size}
    if config.source_vocabulary_size:
        sides["source_embedding"] = config.source_vocabulary_size
    for name, count in sides.items():
        add(
            *(TokenEmbedding, count, size),
            tie_weights=config.tie_embeddings or name == "source_embedding",
            embeddings_initializer=keras.initializers.RandomNormal(stddev=stddev),
            name=name,
        )
    add(AttentionBias, name="context_bias")
    for side, causal in (("encoder", False), ("decoder", True)):
        add(Dropout, config.dropout, name=f"{side}_dropout")
        if config.recurrent:
            continue
        if config.position == "learned":
            add(PositionEmbedding, config.max_length, size, name=f"{side}_positions")
        relative = {}
        if config.position == "relative":
            names = ("relative_buckets", "relative_distance", "num_heads")
            relative = {name: getattr(config, name) for name in names}
        add(AttentionBias, causal=causal, name=f"{side}_bias", **relative)
        layers = config.decoder_layers if causal else config.num_layers
        for i in range(layers):
            add(
                TransformerBlock,
                size,
                config.num_heads,
                config.intermediate_size,
                head_size=config.head_size,
                attention_bias=config.use_bias,
                attention_scale=None if config.scale_attention else 1.0,
                activation=config.activation,
                feed_forward_bias=config.use_bias,
                norm=config.norm,
                norm_first=config.norm_first,
                norm_epsilon=config.norm_epsilon,
                cross_attention=causal,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                name=f"{side}_block_{i}",
            )
        if config.norm_first:
            name, kind = f"{side}_norm", (config.norm, config.norm_epsilon)
            made[name] = norm_layer(*kind, dtype=dtype, name=name)
    if config.recurrent:
        rate, layers = config.dropout, config.num_layers
        add(LSTMBlock, size // 2, layers, dropout=rate, name="encoder_lstm")
        for i in range(config.decoder_layers):
            add(RecurrentBlock, size, config.attention, rate, name=f"decoder_block_{i}")
    elif config.position == "sinusoidal":
        add(SinusoidalPositions, size, name="positions")
    elif config.position == "rotary":
        add(RotaryPositions, config.head_size or size // config.num_heads,
            name="positions")  # fmt: skip
    if config.pointer:
        add(
            Pointer, size, size**0.5 if config.scale_embeddings else 1.0, name="pointer"
        )
    return made


def encode(config: EncoderDecoderConfig, layers: Mapping, source_ids, source_mask):
    """What the encoder makes of sources, `[batch, source length, hidden_size]`.

    Args:
        config: Its shape.
        layers: From `make_layers`, or `layers_of` a built model.
        source_ids: int32 `[batch, source length]`.
        source_mask: int32 `[batch, source length]`, 1 at real tokens.
    """
    embedding = layers.get("source_embedding") or layers["token_embedding"]
    hidden, rotary = embed(config, layers, "encoder", embedding, source_ids)
    if config.recurrent:
        return layers["encoder_lstm"](hidden, source_mask)
    bias = layers["encoder_bias"](source_mask)
    for i in range(config.num_layers):
        hidden = layers[f"encoder_block_{i}"](hidden, bias=bias, rotary=rotary)
    return layers["encoder_norm"](hidden) if config.norm_first else hidden


def keep(config: EncoderDecoderConfig, layers: Mapping, context) -> list[tuple]:
    """What each block of the decoder needs of an encoded source, for `run`."""
    blocks = [layers[f"decoder_block_{i}"] for i in range(config.decoder_layers)]
    return [(b if config.recurrent else b.cross).keep(context) for b in blocks]


def run(
    config: EncoderDecoderConfig,
    layers: Mapping,
    token_ids,
    padding_mask,
    context,
    source_mask,
    positions=None,
    places=None,
    caches: Sequence[Callable] | None = None,
    shares: int | None = None,
):
    """What the decoder does, on symbolic or real tensors.

    Args:
        config: Its shape.
        layers: See `encode`.
        token_ids: int32 `[batch, length]`, the token before each token to be told.
        padding_mask: int32 `[batch, length]`, 1 at real tokens; with `caches` of the
            Transformer `[batch, keys]`, over all that they return.
        context: From `encode`, or from `keep`.
        source_mask: int32 `[batch, source length]`.
        positions: int32 `[batch, length]`, None to count from 0.
        places: int32 `[length]`, with `caches`: where the tokens stand among the keys.
        caches: One a block, see `MultiHeadAttention` and `RecurrentBlock`.
        shares: The number of a block whose attention is wanted instead.

    Returns:
        Hidden states `[batch, length, hidden_size]`, to be multiplied with the output
        matrix; or attention shares `[batch, heads, length, source length]`.
    """
    embedding = layers["token_embedding"]
    hidden, rotary = embed(config, layers, "decoder", embedding, token_ids, positions)
    context_bias = layers["context_bias"](source_mask)
    if not config.recurrent:
        bias = layers["decoder_bias"](padding_mask, None, places)
    for i in range(config.decoder_layers):
        block, options = layers[f"decoder_block_{i}"], {"context_bias": context_bias}
        options["context"] = context[i] if isinstance(context, list) else context
        if config.recurrent:
            options["padding_mask"] = padding_mask
        else:
            options |= {"bias": bias, "rotary": rotary}
        if i == shares:
            return block.context_shares(hidden, **options)
        if caches is not None:
            options["cache"] = caches[i]
        hidden = block(hidden, **options)
    if "decoder_norm" in layers:
        hidden = layers["decoder_norm"](hidden)
    return hidden * config.hidden_size**-0.5 if config.scale_logits else hidden


def embed(config, layers, side: str, embedding, token_ids, positions=None):
    """Vectors of a side's tokens and, with rotary positions, what turns them."""
    hidden, rotary = embedding(token_ids), None
    if config.scale_embeddings:
        hidden *= config.hidden_size**0.5
    if not config.recurrent:
        if config.position == "learned":
            hidden += layers[f"{side}_positions"](hidden, positions)
        elif config.position == "sinusoidal":
            hidden += layers["positions"](hidden, positions)
        elif config.position == "rotary":
            rotary = layers["positions"](hidden, positions)
    return layers[f"{side}_dropout"](hidden), rotary


def pair_inputs() -> dict[str, keras.KerasTensor]:
    """int32 inputs by name: those of `token_inputs`, and `source_ids`, `source_mask`"""
    names = ("source_ids", "source_mask")
    sources = {n: keras.Input((None,), dtype="int32", name=n) for n in names}
    return sources | token_inputs()


def run_pairs(
    config: EncoderDecoderConfig, layers: Mapping, inputs: Mapping, **options
):
    """`encode` and `run` on what `pair_inputs` names.

    Returns:
        What `run` returns, and what a `Pointer` says of it, or None.
    """
    source = inputs["source_ids"], inputs["source_mask"]
    context = encode(config, layers, *source)
    target = inputs["token_ids"], inputs["padding_mask"]
    found = run(config, layers, *target, context, source[1], **options)
    if "pointer" not in layers or "shares" in options:
        return found, None
    embedding = layers["token_embedding"]
    vectors, last = (embedding(side[0]) for side in (source, target))
    return found, layers["pointer"](found, last, context, source[1], vectors)


def encoder_decoder(config: EncoderDecoderConfig, dtype=None) -> keras.Model:
    """Builds an encoder with a decoder.

    Args:
        config: Its shape.
        dtype: Name of a Keras dtype policy; None for the global one.

    Returns:
        A model from int32 `source_ids`, `source_mask` `[batch, source length]`,
        `token_ids`, `padding_mask` `[batch, length]` to float32 logits `[batch, length,
        vocabulary_size]` of each next token.
    """
    inputs, layers = pair_inputs(), make_layers(config, dtype)
    hidden, ways = run_pairs(config, layers, inputs)
    logits = to_logits(layers, hidden)
    if ways is not None:
        logits = pointed_logits(logits, ways, inputs["source_ids"])
    return keras.Model(inputs, logits, name="encoder_decoder")
