"""Taggers: a tag for each word of a text, and perhaps a class for the whole of it."""

from dataclasses import dataclass, field

import keras
from keras import ops

from tfllm.evaluation.spans import allowed
from tfllm.layers.crf import CRF
from tfllm.layers.dropout import Dropout
from tfllm.layers.lora import add_adapters
from tfllm.layers.ngrams import NgramEmbedding
from tfllm.models import classic
from tfllm.models.classifier import (
    COMMON,
    LORA_RATE,
    SHAPES,
    ClassifierConfig,
    known,
    transformer_shape,
)
from tfllm.models.encoder import EncoderConfig, encode, token_inputs

# How `recipes/token_classification.py` trains when no flag says otherwise.
USUAL = COMMON | {"max_length": 512, "batch_size": 16, "patience": 5}
TRAINING = {
    "lstm": {"learning_rate": 2e-3, "batch_size": 8, "epochs": 10, "ema_decay": 0.998},
    "transformer": {"learning_rate": 1e-3, "epochs": 20},
    "encoder": {"learning_rate": 2e-4, "epochs": 10},
}


@dataclass
class TaggerConfig(ClassifierConfig):
    """Shape of a tagger: that of a `ClassifierConfig`, and what follows.

    Its `num_outputs` are classes of the whole text (intents), or 0; `ngrams` is the
    longest n-gram whose vectors stand beside a token's (lstm).

    Args:
        tags: Their names, see `evaluation.spans.tag_names`.
        crf: Whether transitions between tags are learned.
        ngram_dropout: Share of n-grams left out while training: of another text's many
            were never seen.
    """

    tags: list[str] = field(default_factory=list)
    crf: bool = True
    ngram_dropout: float = 0.5

    shapes = SHAPES | {
        "lstm": SHAPES["lstm"]
        | {"hidden_size": 192, "token_dropout": 0.3}
        | {"ngrams": 1, "ngram_buckets": 2**16},
        "transformer": SHAPES["transformer"] | {"num_layers": 4},
    }
    rotary = True


def build_tagger(config: TaggerConfig, dtype=None) -> keras.Model:
    """Builds a tagger.

    Args:
        config: Its shape; `architecture` is `lstm`, `transformer` or `encoder`.
        dtype: Name of a Keras dtype policy; None for the global one.

    Returns:
        A model from int32 `token_ids`, `padding_mask` `[batch, length]` and `places`
        `[batch, words]`, the place of each word's first token (-1: padding), to what
        `layers.crf.CRF` returns for the words, and `intent`, logits `[batch,
        num_outputs]`, where there are any.
    """
    inputs = token_inputs()
    hidden = known(_STATES, config.architecture)(config, inputs, dtype)
    places = inputs["places"] = keras.Input((None,), dtype="int32", name="places")
    words = ops.take_along_axis(hidden, ops.maximum(places, 0)[..., None], axis=1)
    words = Dropout(config.dropout, dtype=dtype, name="head_dropout")(words)
    emissions = keras.layers.Dense(len(config.tags), dtype="float32", name="logits")(
        words
    )
    crf = CRF(*allowed(config.tags), config.crf, dtype="float32", name="logits_crf")
    outputs = crf(emissions, ops.cast(places >= 0, "int32"))
    if config.num_outputs:
        features = classic.pooled(config, hidden, inputs["padding_mask"], dtype)
        features = Dropout(config.dropout, dtype=dtype, name="intent_dropout")(features)
        outputs["intent"] = keras.layers.Dense(
            config.num_outputs, dtype="float32", name="logits_intent"
        )(features)
    model = keras.Model(inputs, outputs, name="tagger")
    if config.lora:
        head = [layer.name for layer in model.layers if "logits" in layer.name]
        add_adapters(model, **config.lora, head=("pooling", *head))
    return model


def _lstm(config, inputs, dtype):
    vectors = classic.embed(config, inputs, dtype)
    if config.ngrams > 1:
        orders = range(2, config.ngrams + 1)
        ngrams = NgramEmbedding(
            orders,
            config.ngram_buckets,
            config.embedding_size // 2,
            config.ngram_dropout,
            dtype=dtype,
            name="ngram_embedding",
        )(inputs["token_ids"], inputs["padding_mask"])
        vectors = ops.concatenate([vectors, ngrams], axis=-1)
    vectors = Dropout(config.dropout, dtype=dtype, name="dropout")(vectors)
    return classic.lstm_states(config, inputs, vectors, dtype)


def _transformer(config, inputs, dtype):
    # What matters is who stands next to whom, not where in the text.
    return encode(transformer_shape(config, position="rotary"), inputs, dtype)


def _encoder(config, inputs, dtype):
    return encode(EncoderConfig(**config.encoder), inputs, dtype)


_STATES = {"lstm": _lstm, "transformer": _transformer, "encoder": _encoder}


def training_defaults(architecture: str, language: str, lora: bool = False) -> dict:
    """Returns the flags that suit an architecture and a language, by flag name.

    Chinese is read by characters and the pairs that they make, anything else by pieces
    of words: most names of a test text were never seen whole.
    """
    text = {"tokenizer": "wordpiece", "vocabulary_size": 8000, "ngrams": 1}
    if language == "zh":
        text = {"tokenizer": "characters", "vocabulary_size": 10_000, "ngrams": 2}
    found = USUAL | {"scheme": "bioes"} | text | known(TRAINING, architecture)
    return found | {"learning_rate": LORA_RATE} if lora else found
