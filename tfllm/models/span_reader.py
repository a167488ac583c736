"""Readers: how likely an answer starts, and how likely it ends, at each token."""

from dataclasses import dataclass, replace

import keras
from keras import ops

from tfllm.layers.dropout import Dropout
from tfllm.layers.lora import add_adapters
from tfllm.models.classifier import (
    COMMON,
    LORA_RATE,
    ClassifierConfig,
    known,
    transformer_shape,
)
from tfllm.models.encoder import EncoderConfig, encode, token_inputs

# How `recipes/question_answering.py` trains when no flag says otherwise.
TRAINING = {
    "transformer": {"max_length": 256, "learning_rate": 1e-3, "epochs": 10},
    "encoder": {"max_length": 384, "learning_rate": 1e-4, "epochs": 3},
}


@dataclass
class ReaderConfig(ClassifierConfig):
    """Shape of a reader: that of a `ClassifierConfig` of pairs."""

    rotary = True


def build_span_reader(config: ReaderConfig, dtype=None) -> keras.Model:
    """Builds a reader.

    From scratch it is told which tokens of the context stand in the question too (Chen
    et al., 2017): a few thousand questions do not teach that.

    Args:
        config: Its shape; `architecture` is `transformer` or `encoder`.
        dtype: Name of a Keras dtype policy; None for the global one.

    Returns:
        A model from int32 `token_ids`, `padding_mask` (and, with two segments or more,
        `segment_ids`) `[batch, length]` to float32 logits `[batch, length, 2]`.
    """
    if config.architecture == "encoder":
        shape = EncoderConfig(**config.encoder)
        inputs = token_inputs(shape.num_segments > 1)
        hidden = encode(shape, inputs, dtype)
    else:
        shape = transformer_shape(config, position="rotary")
        inputs = token_inputs(segments=True)
        ids, segments = inputs["token_ids"], inputs["segment_ids"]
        asked = (segments == 0) & (inputs["padding_mask"] > 0)
        same = (ids[:, :, None] == ids[:, None, :]) & asked[:, None, :]
        known_too = ops.cast(ops.any(same, axis=-1), "int32") * segments
        told = inputs | {"segment_ids": segments + known_too}
        hidden = encode(replace(shape, num_segments=3), told, dtype)
    hidden = Dropout(config.dropout, dtype=dtype, name="head_dropout")(hidden)
    logits = keras.layers.Dense(2, dtype="float32", name="logits")(hidden)
    model = keras.Model(inputs, logits, name="span_reader")
    if config.lora:
        add_adapters(model, **config.lora, head=("logits",))
    return model


def training_defaults(architecture: str, language: str, lora: bool = False) -> dict:
    """Returns the flags that suit an architecture and a language, by flag name."""
    text = {"tokenizer": "wordpiece", "vocabulary_size": 8000, "lowercase": True}
    if language == "zh":
        text = {"tokenizer": "characters", "vocabulary_size": 10_000}
    found = COMMON | {"batch_size": 16} | text | known(TRAINING, architecture)
    return found | {"learning_rate": LORA_RATE} if lora else found
