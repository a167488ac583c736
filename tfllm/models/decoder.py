"""The Transformer decoder, one builder for the GPT-2 and Llama families.

Llama's shape is the default; `STYLES` holds what the others have different. The model
is a plain functional graph, and what it does stands in one function, `run`, that also
takes the built model's layers and real tensors: that is how a decoding loop runs it
with a cache, one function a block that keeps new keys and values and returns all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import keras
from keras import ops

from tfllm.layers.attention import AttentionBias
from tfllm.layers.dropout import Dropout
from tfllm.layers.next_token_loss import output_matrix as matrix_of
from tfllm.layers.positions import PositionEmbedding, RotaryPositions
from tfllm.layers.token_embedding import TokenEmbedding
from tfllm.layers.transformer_block import TransformerBlock, norm_layer
from tfllm.models.encoder import token_inputs

STYLES = {
    "gpt2": {
        "position": "learned",
        "norm": "layer_norm",
        "activation": "gelu_tanh",
        "attention_bias": True,
        "output_bias": True,
        "feed_forward_bias": True,
    },
    "llama": {},
    "mistral": {"window": 4096},
    "qwen2": {"attention_bias": True, "norm_epsilon": 1e-6},
    "qwen3": {"qk_norm": True, "norm_epsilon": 1e-6},
}
SIZES = {  # hidden size, blocks, heads
    "tiny": (128, 4, 4),
    "mini": (256, 6, 4),
    "small": (384, 6, 6),
    "base": (768, 12, 12),
}


@dataclass
class DecoderConfig:
    """Shape of a decoder.

    Args:
        vocabulary_size: Number of tokens.
        hidden_size: Size of the vectors.
        num_layers: Number of blocks.
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads (grouped- or single-query
            attention); None for `num_heads`.
        head_size: None for `hidden_size / num_heads`.
        intermediate_size: Inner size of the feed-forward networks.
        max_length: Number of learned positions; with rotary ones the length that the
            model was made for.
        position: `rotary` or `learned`.
        rope_base: See `RotaryPositions`.
        rope_scaling: See `RotaryPositions`.
        norm: `rms_norm` or `layer_norm`, before each part and once at the end.
        norm_epsilon: Of every norm.
        activation: Of the feed-forward networks.
        attention_bias: Biases of query, key and value (GPT-2, Qwen 2).
        output_bias: Bias of the attention's output.
        feed_forward_bias: Biases of the feed-forward networks.
        qk_norm: RMS norm on each query and key head (Qwen 3).
        window: A token sees that many tokens, itself included (Mistral).
        window_from: First block that has the window (Qwen).
        tie_embeddings: The output matrix is the token embedding.
        dropout: On embeddings and residual branches.
        attention_dropout: On attention shares.
        initializer_range: Standard deviation of the first weights; what is added to
            the residual starts smaller by `sqrt(2 * num_layers)` (GPT-2).
    """

    vocabulary_size: int
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_size: int | None = None
    intermediate_size: int = 1024
    max_length: int = 1024
    position: str = "rotary"
    rope_base: float = 10_000.0
    rope_scaling: dict | None = None
    norm: str = "rms_norm"
    norm_epsilon: float = 1e-5
    activation: str = "swiglu"
    attention_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    window_from: int = 0
    tie_embeddings: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    def to_dict(self) -> dict:
        """Returns what `DecoderConfig(**…)` takes."""
        return asdict(self)


def shape_of(style: str, size: str, vocabulary_size: int, **changes) -> DecoderConfig:
    """The shape of a decoder that is trained from scratch.

    Args:
        style: One of `STYLES`.
        size: One of `SIZES`.
        vocabulary_size: Number of tokens.
        **changes: Other fields; None leaves one as it is.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    names = ("hidden_size", "num_layers", "num_heads")
    shape = dict(zip(names, SIZES[size], strict=True)) | given
    hidden = shape["hidden_size"]
    # Two matrices of 4 times the width, or as many weights in three (Shazeer, 2020).
    gated = "activation" not in STYLES[style]
    inner = -(-8 * hidden // 192) * 64 if gated else 4 * hidden
    # GPT-2's 0.02 is for 768: narrower layers begin with weights as large in sum.
    scale = {"initializer_range": 0.02 * (768 / hidden) ** 0.5}
    shape = {"intermediate_size": inner} | scale | STYLES[style] | shape
    return DecoderConfig(vocabulary_size, **shape)


def make_layers(config: DecoderConfig, dtype=None) -> dict[str, keras.layers.Layer]:
    """The layers of a decoder by name, not built."""
    made = {}

    def add(kind, *args, name, **options):
        made[name] = kind(*args, name=name, dtype=dtype, **options)

    def initializer(scale=1.0):
        stddev = config.initializer_range * scale
        return keras.initializers.TruncatedNormal(stddev=stddev)

    add(
        TokenEmbedding,
        config.vocabulary_size,
        config.hidden_size,
        tie_weights=config.tie_embeddings,
        embeddings_initializer=initializer(),
        name="token_embedding",
    )
    if config.position == "learned":
        add(
            PositionEmbedding,
            config.max_length,
            config.hidden_size,
            initializer=initializer(),
            name="position_embedding",
        )
    elif config.position == "rotary":
        size = config.head_size or config.hidden_size // config.num_heads
        scaling = config.rope_scaling
        add(RotaryPositions, size, config.rope_base, scaling, name="rotary_positions")
    else:
        raise ValueError(
            "position must be 'rotary' or 'learned'. "
            f"Received: position={config.position!r}"
        )
    add(Dropout, config.dropout, name="embedding_dropout")
    if config.window is None or config.window_from:
        add(AttentionBias, causal=True, name="attention_bias")
    if config.window is not None and config.window_from < config.num_layers:
        add(AttentionBias, causal=True, window=config.window, name="window_bias")
    for i in range(config.num_layers):
        add(
            TransformerBlock,
            config.hidden_size,
            config.num_heads,
            config.intermediate_size,
            num_kv_heads=config.num_kv_heads,
            head_size=config.head_size,
            attention_bias=config.attention_bias,
            output_bias=config.output_bias,
            qk_norm=config.qk_norm,
            activation=config.activation,
            feed_forward_bias=config.feed_forward_bias,
            norm=config.norm,
            norm_first=True,
            norm_epsilon=config.norm_epsilon,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            initializer=initializer(),
            output_initializer=initializer((2 * config.num_layers) ** -0.5),
            name=f"block_{i}",
        )
    final = norm_layer(config.norm, config.norm_epsilon, dtype=dtype, name="final_norm")
    return made | {"final_norm": final}


def run(
    config: DecoderConfig,
    layers: Mapping[str, keras.layers.Layer],
    token_ids,
    padding_mask,
    sequence_ids=None,
    positions=None,
    places=None,
    caches: Sequence[Callable] | None = None,
):
    """What a decoder does, on symbolic or real tensors.

    Args:
        config: Its shape.
        layers: From `make_layers`, or `layers_of` a built model.
        token_ids: int32 `[batch, length]`.
        padding_mask: int32 `[batch, length]`, 1 at real tokens; with `caches`
            `[batch, keys]`, over all that they return.
        sequence_ids: int32 `[batch, length]` for packed rows.
        positions: int32 `[batch, length]`, None to count from 0.
        places: int32 `[length]`, with `caches`: where the tokens stand among the keys.
        caches: One a block, see `MultiHeadAttention`.

    Returns:
        Hidden states `[batch, length, hidden_size]` after the last norm.
    """
    hidden = layers["token_embedding"](token_ids)
    rotary = None
    if config.position == "learned":
        hidden += layers["position_embedding"](hidden, positions)
    else:
        rotary = layers["rotary_positions"](hidden, positions)
    hidden = layers["embedding_dropout"](hidden)
    biases = {
        name: layers[name](padding_mask, sequence_ids, places)
        for name in ("attention_bias", "window_bias")
        if name in layers
    }
    for i in range(config.num_layers):
        windowed = config.window is not None and i >= config.window_from
        options = {} if caches is None else {"cache": caches[i]}
        hidden = layers[f"block_{i}"](
            hidden,
            bias=biases["window_bias" if windowed else "attention_bias"],
            rotary=rotary,
            **options,
        )
    return layers["final_norm"](hidden)


def to_logits(layers: Mapping[str, keras.layers.Layer], hidden):
    """float32 `[…, vocabulary_size]` from what `run` returned."""
    return ops.cast(layers["token_embedding"](hidden, reverse=True), "float32")


def decoder(config: DecoderConfig, dtype=None, packed=False) -> keras.Model:
    """Builds a decoder.

    Args:
        config: Its shape.
        dtype: Name of a Keras dtype policy; None for the global one.
        packed: Takes `sequence_ids` and `positions` too.

    Returns:
        A model from int32 `token_ids`, `padding_mask` `[batch, length]` to float32
        logits `[batch, length, vocabulary_size]` of each next token.
    """
    inputs = token_inputs(packed=packed)
    layers = make_layers(config, dtype)
    hidden = run(config, layers, **inputs)
    return keras.Model(inputs, to_logits(layers, hidden), name="decoder")


def layers_of(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers of a built model by name, for `run` and `to_logits`."""
    return {layer.name: layer for layer in model.layers}


def hidden_model(model: keras.Model) -> keras.Model:
    """A decoder without its last product: the same layers, to the hidden states.

    With `output_matrix`, what `chunked_cross_entropy` wants.
    """
    return keras.Model(model.input, model.get_layer("final_norm").output, name="hidden")


def output_matrix(model: keras.Model):
    """The matrix that turns hidden states to logits, `[vocabulary, hidden_size]`."""
    return matrix_of(model.get_layer("token_embedding"))
