"""Speed of the tokenizers beside keras-nlp, tensorflow-text and `tokenizers`.

    python tools/benchmarks/tokenization.py [--text FILE ...] [--best] [--json out.json]

Every figure is the median of five, or with `--best` (for a machine that others use at
the same time) the best of five; engines are measured in turn. `batch 1` is milliseconds
for one sentence of 30 words; the others are MB of UTF-8 a second. What keras-nlp
remembers of the last batch (its BPE has a cache) does not count: every batch is other
text.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# In place of this folder, where this file would hide the library of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[2])

import tensorflow as tf  # noqa: E402

from tfllm.core.console import table  # noqa: E402
from tfllm.text import Tokenizer  # noqa: E402
from tfllm.text.training import KINDS, Stream  # noqa: E402

BATCH, SIZE = 256, 8000


def seconds_of(function, middle, times: int = 5) -> float:
    """Seconds of a call, the `middle` (median or minimum) of several."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return middle(seconds)


def in_turn(engines: dict, inputs: list, sizes: list, middle) -> dict:
    """Seconds a byte of each engine, measured in turn on the same inputs."""
    for encode in engines.values():
        encode(inputs[0])
    seconds = {name: [[] for _ in range(5)] for name in engines}
    for at, (batch, size) in enumerate(zip(inputs, sizes, strict=True)):
        for name, encode in engines.items():
            started = time.perf_counter()
            encode(batch)
            seconds[name][at % 5].append((time.perf_counter() - started) / size)
    means = {
        name: [sum(g) / len(g) for g in groups] for name, groups in seconds.items()
    }
    return {name: middle(groups) for name, groups in means.items()}


def peers(tokenizer: Tokenizer) -> dict:
    """The in-graph tokenizers of others that have the same vocabulary."""
    import keras_hub
    import tensorflow_text

    layers = keras_hub.tokenizers
    tokens, found = tokenizer.tokens, {}
    if tokenizer.kind == "wordpiece":
        layer = layers.WordPieceTokenizer(
            tokens, lowercase=True, strip_accents=True, split_on_cjk=True
        )
        found["keras-nlp"] = layer.tokenize
        fast = tensorflow_text.FastWordpieceTokenizer(
            tokens, token_out_type=tf.int32, unknown_token="[UNK]"
        )
        found["FastWordpiece (no BERT rules)"] = fast.tokenize
    elif tokenizer.kind == "bpe":
        model = tokenizer.definition["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        found["keras-nlp"] = layers.BytePairTokenizer(model["vocab"], merges).tokenize
    elif tokenizer.kind == "characters":
        found["keras-nlp"] = layers.UnicodeCodepointTokenizer().tokenize
    return found


def sentencepiece_peer(texts):
    """keras-nlp's SentencePiece with a vocabulary of its own, if it can be learned."""
    import io

    import keras_hub

    try:
        import sentencepiece
    except ImportError:
        return {}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=SIZE,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    layer = keras_hub.tokenizers.SentencePieceTokenizer(model.getvalue())
    return {"keras-nlp": layer.tokenize}


def default_texts() -> list[str]:
    """English that every Python has: the help of its standard library."""
    import pydoc_data.topics

    return [
        line
        for topic in pydoc_data.topics.topics.values()
        for line in topic.split("\n")
        if len(line.split()) > 5
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="*", type=Path, help="files, a text a line")
    parser.add_argument("--best", action="store_true", help="minima, not medians")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    middle = min if flags.best else statistics.median
    texts = list(Stream(flags.text)) if flags.text else default_texts()
    texts = [text for text in texts if text.strip()]
    if len(texts) < 2000:
        parser.error(f"{len(texts):,} texts are too few for batches of 256: give 2,000")
    size = sum(len(text.encode()) for text in texts)
    words = itertools.islice(itertools.cycle(" ".join(texts[:50]).split()), 30)
    sentence, rows = " ".join(words), []
    for kind in flags.kinds:

        def speed(function):
            return size / 1e6 / seconds_of(function, middle)

        training = speed(lambda: Tokenizer.train(texts, kind, SIZE))  # noqa: B023
        tokenizer = Tokenizer.train(texts, kind, SIZE)
        fast = speed(lambda: tokenizer.encode(texts))  # noqa: B023
        engine = tokenizer.fast
        theirs = speed(lambda: engine.encode_batch(texts))  # noqa: B023
        engines = {"tfllm": tokenizer.graph().encode}
        others = sentencepiece_peer(texts) if kind == "unigram" else peers(tokenizer)
        spec = [tf.TensorSpec([None], tf.string)]
        engines |= {n: tf.function(f, input_signature=spec) for n, f in others.items()}
        parts = [texts[i : i + BATCH] for i in range(0, len(texts) - BATCH, BATCH)]
        sizes = [sum(len(t.encode()) for t in part) for part in parts[:40]]
        many = in_turn(
            engines, [tf.constant(part) for part in parts[:40]], sizes, middle
        )
        one = in_turn(engines, [tf.constant([sentence])] * 200, [1] * 200, middle)
        for name in engines:
            first = [training, fast, theirs] if name == "tfllm" else [""] * 3
            rows.append([kind, name, *first, 1e-6 / many[name], 1e3 * one[name]])
    columns = ["kind", "engine", "train MB/s", "encode MB/s", "tokenizers MB/s",
               "graph, batch 256 MB/s", "graph, batch 1 ms"]  # fmt: skip
    table(f"{len(texts):,} texts, {size / 1e6:.1f} MB", columns, rows)
    if flags.json:
        flags.json.write_text(
            json.dumps([dict(zip(columns, r, strict=True)) for r in rows])
        )


if __name__ == "__main__":
    main()
