"""The flags that choose a classifier and its shape."""

from dataclasses import dataclass

from tfllm.config import flag

MODELS = ["fasttext", "textcnn", "lstm", "transformer"]
TAGGERS = ["lstm", "transformer"]
# Flags that are fields of ClassifierConfig too; the last ones are those of training.
SHAPE = ["embedding_size", "hidden_size", "num_layers", "num_heads", "ngrams"]
SHAPE += ["pooling", "token_dropout", "max_length", "dropout", "l2"]
EMBEDDERS = ["bag", "transformer"]
READER_SHAPE = ["hidden_size", "num_layers", "num_heads", "max_length", "dropout"]
TAGGER_SHAPE = [name for name in SHAPE if name not in ("pooling", "l2")] + ["crf"]

# How most models train when no flag says otherwise.
ADAMW = {
    "optimizer": "adamw",
    "schedule": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "ema_decay": 0.0,
    "label_smoothing": 0.0,
}


@dataclass
class StateFlags:
    """The shape of what makes hidden states; what is absent takes the model's own."""

    hidden_size: int | None = flag(None, "size of a hidden state", minimum=1)
    num_layers: int | None = flag(None, "LSTM layers or blocks", minimum=1)
    num_heads: int | None = flag(None, "attention heads", minimum=1)


@dataclass
class VectorFlags(StateFlags):
    """The same, with vectors of tokens below."""

    embedding_size: int | None = flag(None, "size of a token's vector", minimum=1)
    token_dropout: float | None = flag(
        None, "share of tokens left out in training", minimum=0.0, maximum=0.9
    )


@dataclass
class ClassifierFlags(VectorFlags):
    """Which model, and its shape; what is absent takes the model's default."""

    model: str = flag(
        "fasttext", f"{', '.join(MODELS)}, or a checkpoint, a preset or a run"
    )
    ngrams: int | None = flag(None, "longest n-gram of fasttext", minimum=1, maximum=6)
    pooling: str | None = flag(
        None,
        "one vector a text from those of its tokens (lstm, transformer, encoders)",
        choices=["cls", "mean", "max", "attention"],
    )
    problem: str = flag(
        "auto",
        "what the labels are; auto: lists are several, fractions are numbers",
        choices=["auto", "single_label", "multi_label", "regression"],
    )
    loss: str | None = flag(
        None,
        "what is minimised",
        choices=["cross_entropy", "squared_hinge", "squared_error"],
    )
    word_vectors: str | None = flag(None, "file in word2vec's text form")
    mixup: float = flag(
        0.0,
        "mix the token vectors of two texts, and their losses (Zhang et al., 2018), by "
        "shares from Beta(mixup, mixup); such as 0.2",
        minimum=0.0,
    )
    baseline: bool = flag(False, "measure TF-IDF and a linear SVM beside the model")
    compare: str | None = flag(
        None, "a run on the same test rows: the report compares, with a paired test"
    )


@dataclass
class EncoderFlags:
    """Which encoder is pretrained."""

    size: str = flag(
        "tiny",
        "of the encoder (Turc et al., 2019)",
        choices=["tiny", "mini", "small", "base"],
    )
    position: str = flag(
        "rotary",
        "how places are told; BERT's are learned, which takes far more text",
        choices=["learned", "sinusoidal", "rotary"],
    )
    norm_first: bool = flag(True, "norms after each part, where BERT has them")
    model: str | None = flag(
        None, "go on from a preset, a directory or a run of one's own instead"
    )


@dataclass
class TaggerFlags(VectorFlags):
    """Which tagger, and its shape; what is absent takes the model's default."""

    model: str = flag(
        "lstm", f"{', '.join(TAGGERS)}, or a checkpoint, a preset or a run"
    )
    ngrams: int | None = flag(
        None,
        "longest n-gram whose vectors stand beside a token's (lstm); 1: none",
        minimum=1,
        maximum=6,
    )
    crf: bool = flag(True, "choose each tag by itself, without learned transitions")
    scheme: str | None = flag(
        None, "tags that the model learns", choices=["bio", "bioes"]
    )


@dataclass
class ReaderFlags(StateFlags):
    """Which reader, how it reads, and how its answers are compared."""

    model: str = flag(
        "transformer", "transformer, or a checkpoint, a preset or a run of an encoder"
    )
    stride: int = flag(
        128, "tokens from the begin of a window of the context to the next", minimum=1
    )
    max_windows: int = flag(64, "windows that are read of a context", minimum=1)
    max_question_length: int = flag(
        64, "tokens that are read of a question, half a window at most", minimum=1
    )
    max_answer_length: int = flag(64, "tokens of an answer at most", minimum=1)
    n_best: int = flag(3, "answers told of each question", minimum=1, maximum=20)
    style: str = flag(
        "auto",
        "how answers are compared: as SQuAD's script does, or CMRC's (Chinese)",
        choices=["auto", "squad", "cmrc"],
    )

    def reading(self) -> dict:
        """Those that are fields of the task, by name."""
        names = ("stride", "max_windows", "max_question_length")
        names += ("max_answer_length", "n_best", "style")
        return {name: getattr(self, name) for name in names}


@dataclass
class EmbedderFlags:
    """Which model of sentences, and what it learns."""

    model: str = flag(
        "bag",
        "bag (a mean of token vectors), transformer, a checkpoint, a preset, a run",
    )
    hidden_size: int | None = flag(None, "size of a vector, from scratch", minimum=1)
    num_layers: int | None = flag(None, "blocks of a transformer", minimum=1)
    num_heads: int | None = flag(None, "its attention heads", minimum=1)
    pooling: str = flag("mean", "one vector a text", choices=["mean", "cls", "max"])
    loss: str | None = flag(
        None,
        "ranking: own text among all of the batch; triplet: nearer by a margin than "
        "any other; cosine: as near as a score says; by the data when absent",
        choices=["ranking", "triplet", "cosine"],
    )
    temperature: float = flag(0.05, "of the ranking loss", minimum=0.001)
    symmetric: bool = flag(True, "do not rank the first texts for each second one too")
    margin: float = flag(0.3, "of the triplet loss", minimum=0.0, maximum=1.0)
    hard_negatives: int = flag(1, "of a row at most, where the data have", minimum=0)
    copies: int = flag(
        1, "times an epoch takes each labelled text, with other partners", minimum=1
    )
    word_vectors: str | None = flag(
        None, "file in word2vec's text form: the token vectors of a bag"
    )
