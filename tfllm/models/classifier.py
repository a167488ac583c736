"""Text classifiers from one flat config: classic ones, or a head on an encoder."""

from dataclasses import asdict, dataclass, fields

import keras

from tfllm.core.errors import UserError, did_you_mean
from tfllm.layers.lora import add_adapters
from tfllm.layers.ngrams import NgramBag, hash_ngrams
from tfllm.models import classic
from tfllm.models.encoder import (
    EncoderConfig,
    encode,
    fitting_heads,
    pool,
    token_inputs,
)
from tfllm.models.flags import ADAMW

# What a field of `ClassifierConfig` is when it is left at None.
SHAPES = {
    "fasttext": {"ngrams": 3, "dropout": 0.0, "token_dropout": 0.0},
    "textcnn": {
        "embedding_size": 128,
        "filters": 128,
        "widths": (2, 3, 4),
        "dropout": 0.5,
        "token_dropout": 0.0,
    },
    "lstm": {
        "embedding_size": 128,
        "hidden_size": 128,
        "num_layers": 1,
        "pooling": "attention",
        "dropout": 0.5,
        "token_dropout": 0.1,
    },
    "transformer": {
        "hidden_size": 128,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 512,
        "pooling": "mean",
        "dropout": 0.1,
        "token_dropout": 0.1,
    },
    "encoder": {"pooling": "mean", "dropout": 0.1},
}
MOST_BUCKETS, MOST_TABLE = 2**20, 2**24  # rows and numbers of the n-gram table
# How `recipes/text_classification.py` trains when no flag says otherwise.
COMMON = ADAMW | {
    "loss": "cross_entropy",
    "ema_decay": 0.99,
    "l2": 0.0,
    "adversarial": 0.0,
    "clip_norm": 1.0,
    "length_limit": 256,
    "batch_size": 32,
    "epochs": 10,
    "patience": 3,
}
TRAINING = {
    # The objective of a linear support vector machine. Adam's steps are as large for
    # an n-gram seen twice as for a frequent one, and learn the training rows by heart.
    "fasttext": {
        "optimizer": "sgd",
        "loss": "squared_hinge",
        "learning_rate": 0.3,
        "weight_decay": 1e-3,
        "warmup_ratio": 0.05,
        "ema_decay": 0.0,
        "length_limit": 1024,
        "epochs": 20,
        # Convex: it only gets better as the learning rate falls.
        "patience": None,
    },
    "textcnn": {"learning_rate": 1e-3, "epochs": 8},
    "lstm": {"learning_rate": 2e-3, "epochs": 6},
    "transformer": {"learning_rate": 1e-3, "epochs": 8},
    "encoder": {
        "learning_rate": 1e-4,
        "adversarial": 0.1,
        "epochs": 4,
    },
}
LORA_RATE = 1e-3  # adapters start from nothing and want larger steps


@dataclass
class ClassifierConfig:
    """Shape of a text classifier; what is None takes the architecture's default.

    Args:
        architecture: `fasttext`, `textcnn`, `lstm`, `transformer`, or `encoder`.
        vocabulary_size: Number of tokens.
        num_outputs: Number of classes, or 1 for a regression.
        max_length: Longest text in tokens.
        pairs: Two texts, told apart by `segment_ids`.
        embedding_size: Size of the token vectors (textcnn, lstm).
        hidden_size: Size of a direction (lstm), of the vectors (others); fasttext
            without it is a linear model.
        num_layers: Number of LSTM layers or Transformer blocks.
        num_heads: Attention heads of the Transformer; what is None is the most that
            suit its hidden size, 4 at most.
        intermediate_size: Inner size of its feed-forward networks.
        filters: Convolutions of each width.
        widths: Numbers of tokens that a convolution sees.
        ngrams: Longest n-gram of fasttext; the shorter ones count too.
        ngram_buckets: Rows of its table; by the number of classes when absent.
        pooling: `attention`, or a mode of `MaskedPooling` (lstm, transformer,
            encoder); `cls` for the last two adds BERT's pooler.
        dropout: On the features (and inside LSTM and Transformer).
        token_dropout: Share of tokens (n-grams) left out while training.
        l2: L2 penalty on the kernels of convolutions and of the last layer.
        encoder: Of `encoder`: the fields of its `EncoderConfig`.
        lora: Of `encoder`: `rank`, `alpha`, `dropout` and `targets` of `add_adapters`;
            None trains everything.

    Raises:
        UserError: The architecture is unknown, or the heads do not suit its size.
    """

    architecture: str
    vocabulary_size: int
    num_outputs: int
    max_length: int = 256
    pairs: bool = False
    embedding_size: int | None = None
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    intermediate_size: int | None = None
    filters: int | None = None
    widths: tuple[int, ...] | None = None
    ngrams: int | None = None
    ngram_buckets: int | None = None
    pooling: str | None = None
    dropout: float | None = None
    token_dropout: float | None = None
    l2: float = 0.0
    encoder: dict | None = None
    lora: dict | None = None

    shapes = SHAPES
    rotary = False  # positions of the Transformer

    def __post_init__(self):
        heads = self.num_heads
        for field in fields(self):
            if getattr(self, field.name) is None:
                default = known(self.shapes, self.architecture).get(field.name)
                setattr(self, field.name, default)
        if self.architecture == "transformer":
            # Settled here, for a checkpoint to hold what was chosen.
            sizes = self.hidden_size, heads, self.num_heads
            self.num_heads = fitting_heads(*sizes, even=self.rotary)
        if self.architecture == "fasttext" and self.ngram_buckets is None:
            self.hidden_size = self.hidden_size or (16 if self.pairs else None)
            most = MOST_TABLE // (self.hidden_size or self.num_outputs)
            self.ngram_buckets = min(MOST_BUCKETS, 1 << (most.bit_length() - 1))

    def to_dict(self) -> dict:
        """Returns what `ClassifierConfig(**…)` takes."""
        return asdict(self)


def build_classifier(config: ClassifierConfig, dtype=None) -> keras.Model:
    """Builds a classifier.

    Args:
        config: Its shape.
        dtype: Name of a Keras dtype policy; None for the global one.

    Returns:
        A model from int32 `token_ids`, `padding_mask` (and `segment_ids` for pairs)
        `[batch, length]` to float32 logits `[batch, num_outputs]`.
    """
    builders = {
        "fasttext": classic.fasttext,
        "textcnn": classic.textcnn,
        "lstm": classic.lstm,
        "transformer": transformer,
        "encoder": encoder_classifier,
    }
    return known(builders, config.architecture)(config, dtype)


def transformer(config: ClassifierConfig, dtype=None) -> keras.Model:
    """A small pre-norm encoder and a pooling of its hidden states."""
    inputs, shape = token_inputs(config.pairs), transformer_shape(config)
    hidden = encode(shape, inputs, dtype)
    if config.pooling == "cls":
        features = pool(shape, hidden, dtype)
    else:
        features = classic.pooled(config, hidden, inputs["padding_mask"], dtype)
    return classic.classifier_head(config, inputs, features, dtype)


def transformer_shape(config, **options) -> EncoderConfig:
    """The encoder of a `transformer`; `options` are other fields."""
    return EncoderConfig(
        config.vocabulary_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_length=config.max_length,
        num_segments=2 if config.pairs else 0,
        embedding_norm=False,
        norm_first=True,
        norm_epsilon=1e-6,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        **options,
    )


def encoder_classifier(config: ClassifierConfig, dtype=None) -> keras.Model:
    """An encoder of any shape, to be filled from a checkpoint, and a head."""
    shape = EncoderConfig(**config.encoder)
    inputs = token_inputs(config.pairs and shape.num_segments > 1)
    hidden = encode(shape, inputs, dtype)
    if config.pooling == "cls":
        features = pool(shape, hidden, dtype)
    else:
        features = classic.pooled(config, hidden, inputs["padding_mask"], dtype)
    model = classic.classifier_head(config, inputs, features, dtype)
    if config.lora:
        add_adapters(model, **config.lora, head=("pooler", "pooling", "logits"))
    return model


def training_defaults(
    architecture: str, language: str, lora: bool = False, problem: str = "single_label"
) -> dict:
    """Returns the flags that suit an architecture and a language, by flag name.

    Chinese is read by characters: with thousands of rows, not millions, words are too
    rare. Both were found by trying (tools/benchmarks/LOG.md).
    """
    text = {"tokenizer": "characters", "ngrams": 3, "idf_power": 1.5}
    if language != "zh":
        text = {"tokenizer": "words", "lowercase": True, "ngrams": 2, "idf_power": 1.0}
    if architecture == "encoder":  # brings its tokenizer along
        text = {"idf_power": None}
    found = COMMON | text | known(TRAINING, architecture)
    found |= {"learning_rate": LORA_RATE} if lora else {}
    return found | {"loss": "squared_error"} if problem == "regression" else found


def search_space(model: str, lora: bool = False) -> dict[str, dict]:
    """What `--search` tries: flag → options of keras-tuner's `Choice` or `Float`.

    Args:
        model: What `--model` says: an architecture, or an encoder to start from.
        lora: Whether adapters alone are trained.
    """
    architecture = model if model in SHAPES else "encoder"
    usual = training_defaults(architecture, "en", lora) | SHAPES[architecture]
    rate, epochs = usual["learning_rate"], usual["epochs"]
    spread = {"min_value": rate / 5, "max_value": rate * 5, "sampling": "log"}
    several = {
        "batch_size": (16, 32, 64),
        "epochs": (max(1, epochs // 2), epochs, 2 * epochs),
        "num_layers": (1, 2, 3, 4),
        "ngrams": (1, 2, 3, 4),
    }
    space = {"learning_rate": spread | {"default": rate}}
    for name, values in several.items():
        if name in COMMON | SHAPES[architecture]:
            space[name] = {"values": list(values), "default": usual[name]}
    # fastText's features are its n-grams.
    name = "token_dropout" if architecture == "fasttext" else "dropout"
    dropped = {"min_value": 0.0, "max_value": 0.6, "default": usual[name]}
    return space | {name: dropped}


def fill_ngram_weights(
    model: keras.Model, rows, power: float = 1.5, labels=None
) -> None:
    """Fills an n-gram bag's weights from the training texts; else does nothing.

    A weight is the inverse document frequency `(1 + log((1 + N) / (1 + n))) ** power`;
    with labels of two classes it is the size of the log-count ratio, how much likelier
    an n-gram is in one class than in the other (Wang & Manning, 2012, whose signs the
    learned votes take over). It is 0 for a bucket that no training text has: what was
    never seen says nothing.

    Args:
        model: A classifier.
        rows: Token ids of each training text, a `data.columns.Ragged`.
        power: 1 is TF-IDF's weight, best on words; 1.5 was best on Chinese characters.
        labels: int `[N]`, 0 or 1; None for more classes, where ratios do not help.
    """
    import numpy as np

    bags = [layer for layer in model.layers if isinstance(layer, NgramBag)]
    for bag in bags:
        counts, size = np.zeros((2, bag.buckets), np.int64), len(rows.lengths)
        for begin in range(0, size, 256):
            end = min(begin + 256, size)
            part = [rows.row(i) for i in range(begin, end)]
            length = max(1, max(map(len, part)))
            ids, mask = np.zeros((2, len(part), length), np.int32)
            for number, row in enumerate(part):
                ids[number, : len(row)] = row
                mask[number, : len(row)] = 1
            hashes, seen = hash_ngrams(ids, mask, bag.orders, bag.buckets)
            hashes = keras.ops.convert_to_numpy(hashes).reshape(len(part), -1)
            seen = keras.ops.convert_to_numpy(seen).reshape(len(part), -1)
            for number, (text, real) in enumerate(zip(hashes, seen, strict=True)):
                side = 0 if labels is None else labels[begin + number]
                counts[side, np.unique(text[real > 0])] += 1
        found = counts.sum(0)
        if labels is None:
            weights = (1 + np.log((1 + size) / (1 + found))) ** power
        else:
            totals = np.where(found, counts + 1, 0).sum(1, keepdims=True)
            first, second = np.log((counts + 1) / totals)
            weights = np.abs(first - second)
        bag.ngram_weights.assign(np.where(found, weights, 0).astype("float32"))


def vector_size_field(architecture: str) -> str:
    """Returns the config's field that is the size of a token's vector.

    Raises:
        UserError: The architecture looks up n-grams, not tokens.
    """
    if architecture == "fasttext":
        raise UserError(
            "fasttext has no token embedding that word vectors could fill",
            fix="Use --model textcnn, lstm or transformer",
        )
    return "hidden_size" if architecture == "transformer" else "embedding_size"


def set_word_vectors(model: keras.Model, matrix) -> None:
    """Fills the token embedding of a classifier or an encoder.

    Args:
        model: A model with a layer `token_embedding`.
        matrix: `[vocabulary_size, embedding_size]`; rows with a NaN keep what the
            model has (tokens without a vector).

    Raises:
        UserError: The model has no such layer, or its shape is another one.
    """
    import numpy as np

    names = [layer.name for layer in model.layers]
    if "token_embedding" not in names:
        raise UserError(
            f"'{model.name}' has no token embedding that word vectors could fill",
            fix="Use textcnn, lstm or transformer",
        )
    embedding = model.get_layer("token_embedding")
    own = keras.ops.convert_to_numpy(embedding.embeddings)
    if matrix.shape != own.shape:
        raise UserError(
            f"the word vectors are {matrix.shape[0]} x {matrix.shape[1]}, the model's "
            f"embedding is {own.shape[0]} x {own.shape[1]}",
            fix=f"Set embedding_size to {matrix.shape[1]}",
        )
    missing = np.isnan(matrix).any(axis=1, keepdims=True)
    embedding.embeddings.assign(np.where(missing, own, matrix))


def known(by_architecture: dict, architecture: str):
    """Returns the entry, or raises a `UserError` that names those there are."""
    if architecture not in by_architecture:
        raise UserError(
            f"unknown model '{architecture}'; known are " + ", ".join(by_architecture),
            fix=did_you_mean(architecture, by_architecture) or None,
        )
    return by_architecture[architecture]
