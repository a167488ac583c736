"""Exports what writes: `serving_default`, `generate` and `score`, and `chat`.

Of an encoder-decoder `score` tells how likely its own answer to a text is, and
`score_pair` how likely a given one.
"""

from pathlib import Path

import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.generation.beam_tf import Beams
from tfllm.generation.generator import Generator
from tfllm.generation.served_tf import TYPES, ServedGenerator, ServedTranslator
from tfllm.generation.translator import Translator
from tfllm.serving.export import Signature, export
from tfllm.text.chat import ChatTemplate

SAMPLES = ("", "Once upon a time", "What is the capital of France?", "def add(a, b):")
XLA = (
    "this export was made with --xla: the server needs "
    "--xla_cpu_compilation_enabled=true; each new power of two of rows and prompt "
    "length compiles for seconds at its first request"
)


TEXT = tf.TensorSpec([None], tf.string)


def export_generator(
    generator: Generator,
    name: str,
    directory: str | Path = "saved_models",
    *,
    chat: ChatTemplate | None = None,
    system: str | None = None,
    max_prompt: int | None = None,
    max_new_tokens: int = 256,
    defaults: dict | None = None,
    samples=SAMPLES,
    about: dict | None = None,
) -> Path:
    """Exports a decoder as the next version of `directory/name`.

    The recorded answers are those of the `Generator` in Python: an export that answers
    otherwise is refused.

    Args:
        generator: What is exported; with `xla=True` the server must have XLA on.
        name: Name of the model.
        directory: What TensorFlow Serving is pointed at.
        chat: Makes `text` a user's turn, and adds the signature `chat`.
        system: What the system says first, with `chat`.
        max_prompt: Tokens of a prompt that are read, at most; a longer one loses its
            beginning. None for what the model reads beside an answer, at most 1,024.
        max_new_tokens: Most tokens that may be asked for.
        defaults: Settings of `serving_default` and `chat`.
        samples: Texts whose answers are recorded, where their prompts are not cut.
        about: Told in the README.

    Raises:
        UserError: Prompt and answer are longer than the model reads, or the check
            failed.
    """
    length = generator.config.max_length
    max_new_tokens = min(max_new_tokens, length // 2)
    max_prompt = max_prompt or min(1024, length - max_new_tokens)
    if max_prompt + max_new_tokens > length:
        raise UserError(
            f"a prompt of {max_prompt} tokens and an answer of {max_new_tokens} are "
            f"more than the {length} that the model reads"
        )
    defaults = {"max_new_tokens": min(64, max_new_tokens)} | (defaults or {})
    served = ServedGenerator(
        generator, max_prompt, max_new_tokens, defaults, chat, system
    )
    texts, signatures = list(samples), _signatures(served)
    asked = texts
    if chat:
        signatures.append(Signature("chat", served.chat, {"prompt": TEXT}))
        first = [{"role": "system", "content": system}] if system else []
        asked = [chat.render([*first, {"role": "user", "content": t}]) for t in texts]
    special = chat is not None
    rows = generator.tokenizer.encode(asked, parse_special=special)
    room = max_prompt - len(generator.prefix)
    fit = [i for i, row in enumerate(rows) if len(row) <= room]
    texts, asked = ([part[i] for i in fit] for part in (texts, asked))
    if not fit:
        what = f"no sample text fits into a prompt of {max_prompt} tokens"
        raise UserError(what, fix="Export it with --plain")
    drawn = _drawn(len(texts), max_new_tokens)
    plain = generator.generate(asked, parse_special=special, **defaults)
    made = generator.generate(asked, parse_special=special, **drawn)
    scores = generator.score(texts)
    expected = {
        "serving_default": {"text": [a.text for a in plain]},
        "generate": {
            "text": [a.text for a in made],
            "finish_reason": [a.finish_reason for a in made],
        },
        "score": {
            "log_probability": [s.log_probability for s in scores],
            "tokens": [s.tokens for s in scores],
        },
    }
    inputs = {"serving_default": {"text": texts}, "generate": {"text": texts, **drawn}}
    inputs["score"] = {"text": texts}
    if chat:
        inputs["chat"] = {"prompt": asked}
        expected["chat"] = expected["serving_default"]
    facts = {
        "prompt": f"at most {max_prompt:,} tokens; a longer one loses its beginning",
        "answer": f"at most {max_new_tokens:,} tokens, {defaults} where not asked",
        "settings": "out of range they are taken as the nearest ones in it",
        "needs": XLA if generator.engine.xla else None,
    }
    return export(
        signatures,
        variables=generator.engine.network.variables,
        trackables=[served.tokenizer],
        name=name,
        directory=directory,
        samples=inputs,
        expected=expected,
        about={"task": "chat" if chat else "generation", **facts, **(about or {})},
        max_batch_size=8,
        allow_xla=generator.engine.xla,
    )


def export_translator(
    translator: Translator,
    name: str,
    directory: str | Path = "saved_models",
    *,
    max_new_tokens: int,
    beams: Beams | None = None,
    frequency_penalty: float = 0.0,
    samples: list[str],
    about: dict | None = None,
) -> Path:
    """Exports an encoder-decoder as the next version of `directory/name`.

    As with `export_generator`, recorded answers are those of Python.

    Args:
        translator: What is exported.
        name: Name of the model.
        directory: What TensorFlow Serving is pointed at.
        max_new_tokens: Most tokens of an answer.
        beams: How `serving_default` searches; None for the likeliest token each time.
        frequency_penalty: Of its answers.
        samples: Texts whose answers are recorded.
        about: Told in the README.
    """
    served = ServedTranslator(translator, max_new_tokens, beams, frequency_penalty)
    signatures = _signatures(served)
    pair = {"text": TEXT, "target": TEXT}
    signatures.append(Signature("score_pair", served.score_pair, pair))
    drawn = _drawn(len(samples), max_new_tokens)
    search = {"max_new_tokens": max_new_tokens, "frequency_penalty": frequency_penalty}
    if beams:
        search |= {"beams": beams.width, "length_penalty": beams.length_penalty}
    plain = [answer.text for answer in translator.generate(samples, **search)]
    made = translator.generate(samples, **drawn)
    targets = plain[1:] + plain[:1]
    scores = translator.score(samples, targets)
    return export(
        signatures,
        variables=translator.engine.network.variables,
        trackables=[served.tokenizer, served.sources],
        name=name,
        directory=directory,
        samples={
            "serving_default": {"text": samples},
            "generate": {"text": samples, **drawn},
            "score": {"text": samples},
            "score_pair": {"text": samples, "target": targets},
        },
        expected={
            "serving_default": {"text": plain},
            "generate": {
                "text": [a.text for a in made],
                "finish_reason": [a.finish_reason for a in made],
            },
            "score_pair": {
                "log_probability": [s.log_probability for s in scores],
                "tokens": [s.tokens for s in scores],
            },
        },
        about={
            "source": f"at most {translator.max_source:,} tokens; of a longer one the "
            "beginning is read",
            "answer": f"at most {max_new_tokens:,} tokens, "
            + (f"beam search of width {beams.width}" if beams else "greedy"),
            **(about or {}),
        },
        max_batch_size=8,
    )


def _signatures(served: ServedGenerator) -> list[Signature]:
    """Those that all have."""
    knobs = {key: tf.TensorSpec([None], kind) for key, kind in TYPES.items()}
    return [
        Signature("serving_default", served.text, {"text": TEXT}),
        Signature("generate", served.generate, {"text": TEXT, **knobs}),
        Signature("score", served.score, {"text": TEXT}),
    ]


def _drawn(count: int, max_new_tokens: int) -> dict[str, list]:
    """Settings of recorded answers, the first of which are not drawn."""
    return {
        "max_new_tokens": [min(24, max_new_tokens)] * count,
        "temperature": [0.0, 0.8, 1.0, 0.7][:count],
        "top_k": [0, 40, 0, 300][:count],
        "top_p": [1.0, 1.0, 0.9, 0.95][:count],
        "repetition_penalty": [1.0, 1.0, 1.1, 1.3][:count],
        "seed": list(range(count)),
    }
