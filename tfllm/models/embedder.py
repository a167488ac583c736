"""One unit vector a text: an encoder, a pooling, a norm."""

from dataclasses import asdict, dataclass

import keras
from keras import ops

from tfllm.layers.lora import add_adapters
from tfllm.layers.pooling import MaskedPooling
from tfllm.models.encoder import EncoderConfig, encode, fitting_heads, token_inputs
from tfllm.models.flags import ADAMW

# Encoders to begin with from scratch. A bag has no blocks: the mean of token vectors.
SHAPES = {
    "bag": {"hidden_size": 256, "num_layers": 0, "num_heads": 1},
    "transformer": {"hidden_size": 128, "num_layers": 2, "num_heads": 4},
}

USUAL = ADAMW | {"batch_size": 64}
# From scratch much is to learn; a model that others trained is only turned.
SCRATCH = {"learning_rate": 3e-3, "epochs": 10, "dropout": 0.0}
FINE = {"learning_rate": 3e-5, "epochs": 2, "dropout": 0.1}
LORA_RATE = 5e-4


@dataclass
class EmbedderConfig:
    """Shape of a model of sentences.

    Args:
        encoder: The fields of its `EncoderConfig`.
        pooling: `mean`, `cls` (the first token) or `max`.
        lora: `rank`, `alpha`, `dropout` and `targets` of `add_adapters`; None trains
            everything.
    """

    encoder: dict
    pooling: str = "mean"
    lora: dict | None = None

    def to_dict(self) -> dict:
        """Returns what `EmbedderConfig(**…)` takes."""
        return asdict(self)


def scratch_encoder(model: str, vocabulary_size: int, max_length: int, **options):
    """The `EncoderConfig` of one of `SHAPES`; `options` that are not None win.

    Raises:
        UserError: The heads do not suit the hidden size.
    """
    shape = SHAPES[model] | {k: v for k, v in options.items() if v is not None}
    bag = shape["num_layers"] == 0
    if not bag:
        sizes = shape["hidden_size"], options.get("num_heads"), shape["num_heads"]
        shape["num_heads"] = fitting_heads(*sizes, even=True)
    return EncoderConfig(
        vocabulary_size,
        intermediate_size=4 * shape["hidden_size"],
        max_length=max_length,
        num_segments=0,
        position=None if bag else "rotary",
        embedding_norm=False,
        norm_first=not bag,
        pooler=False,
        initializer_range=shape["hidden_size"] ** -0.5 / 2,
        **shape,
    )


def training_defaults(pretrained: bool, lora: bool = False) -> dict:
    """Returns the flags that suit a model that was or was not trained before."""
    found = USUAL | (FINE if pretrained else SCRATCH)
    return found | {"learning_rate": LORA_RATE} if lora else found


def embedder(config: EmbedderConfig, dtype=None) -> keras.Model:
    """Builds a model of sentences.

    Args:
        config: Its shape.
        dtype: Name of a Keras dtype policy; None for the global one.

    Returns:
        A model from int32 `token_ids` and `padding_mask` `[batch, length]` to float32
        vectors `[batch, hidden_size]` of length 1; a text without tokens gives zeros.
    """
    inputs = token_inputs()
    hidden = encode(EncoderConfig(**config.encoder), inputs, dtype)
    pooled = MaskedPooling(config.pooling, dtype=dtype, name="pooling")(
        hidden, inputs["padding_mask"]
    )
    pooled = ops.cast(pooled, "float32")
    length = ops.sqrt(ops.sum(ops.square(pooled), axis=-1, keepdims=True) + 1e-24)
    model = keras.Model(inputs, pooled / length, name="embedder")
    if config.lora:
        add_adapters(model, **config.lora, head=())
    return model
