"""Answers of encoder-decoders: with a cache as without, with beams, alone, together."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.generation.conftest import WORDS
from tfllm.data.parallel import ended
from tfllm.generation.translator import Translator
from tfllm.models.encoder_decoder import (
    T5,
    EncoderDecoderConfig,
    encoder_decoder,
    shape_of,
)
from tfllm.text import Tokenizer

TEXTS = ["a b c", "z", "q r s t u v w x y z a b", "", "m m m n"]
SHAPE = {"hidden_size": 32, "num_layers": 2, "intermediate_size": 48}
KINDS = {
    "transformer": {},
    "after": {"norm_first": False, "position": "learned", "num_decoder_layers": 3},
    "rotary": {"position": "rotary", "norm": "rms_norm", "activation": "swiglu"},
    "t5": {**T5, "activation": "geglu_tanh", "head_size": 6, "tie_embeddings": False},
    "lstm": {"architecture": "lstm", "tie_embeddings": False},
    "pointer": {"pointer": True},
    "additive": {
        "architecture": "lstm",
        "attention": "additive",
        "tie_embeddings": False,
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    return Tokenizer.train([" ".join(WORDS)], "words", 40, special_tokens=special)


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=[pytest.mark.slow] * (k == "rotary")) for k in KINDS],
)
def translator(request, tokenizer):
    keras.utils.set_random_seed(3)
    shape = SHAPE | KINDS[request.param] | {"max_length": 40}
    if request.param == "transformer":  # tokens of its own on each side
        shape["source_vocabulary_size"] = 50
    config = EncoderDecoderConfig(tokenizer.vocabulary_size, **shape)
    model = encoder_decoder(config)
    for weight in model.weights:  # more than what the last token was is to be heard
        if weight.path.endswith("kernel"):
            weight.assign(4 * weight)
        if weight.path == "pointer/gate/bias":  # tokens are made, too
            weight.assign(weight + 2)
    made = Translator(model, config, tokenizer)
    made.model = model
    return made


def whole(translator, text, answer):
    """Logits of a model that reads everything at once, without a cache."""
    source = ended(translator.source_tokenizer, [text])
    arrays = {"source_ids": source, "token_ids": [translator.prefix + answer]}
    arrays = {name: np.array(ids, "int32") for name, ids in arrays.items()}
    arrays["source_mask"] = np.ones_like(arrays["source_ids"])
    arrays["padding_mask"] = np.ones_like(arrays["token_ids"])
    return ops.convert_to_numpy(translator.model(arrays))[0].astype("float64")


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_greedy_answers_are_those_of_the_whole_model(translator):
    answers = translator.generate(TEXTS, max_new_tokens=12, log_probabilities=True)
    assert len({tuple(a.token_ids) for a in answers}) > 1
    for text, answer in zip(TEXTS, answers, strict=True):
        logs = log_softmax(whole(translator, text, answer.token_ids[:-1]))
        assert logs.argmax(-1).tolist() == answer.token_ids
        np.testing.assert_allclose(logs.max(-1), answer.log_probabilities, atol=2e-4)
        (alone,) = translator.generate([text], max_new_tokens=12)
        assert alone.token_ids == answer.token_ids


def test_a_single_beam_is_greedy_and_more_find_no_worse(translator):
    from tfllm.generation.beam_tf import Beams

    greedy = translator.generate(TEXTS, max_new_tokens=10)
    lists = {"banned": (), "forced": ()}
    settings = {"max_new_tokens": 10, "seed": 0}
    job = translator._job(translator.engine, TEXTS, settings, lists, False)
    beams = Beams(1, 0.0)  # nothing longer can be better
    state = translator.engine.start(job.tokens, 10, beams=beams, source=job.source)
    state = translator.engine.advance(
        state, job.values, translator.stop_tokens, 10, beams=beams
    )
    rows = state.beams[2].numpy()[1:, :, 0].T
    assert [row[row >= 0].tolist() for row in rows] == [a.token_ids for a in greedy]
    knobs = {"max_new_tokens": 10, "beams": 3, "length_penalty": 0.6}
    found = translator.generate(TEXTS, **knobs)
    assert translator.generate(TEXTS[2:3], **knobs)[0].token_ids == found[2].token_ids
    for text, answer in zip(TEXTS, found, strict=True):
        ids = answer.token_ids
        logs = log_softmax(whole(translator, text, ids[:-1]))
        total = logs[np.arange(len(ids)), ids].sum()
        assert answer.score == pytest.approx(total / len(ids) ** 0.6, abs=1e-3)


def test_scores_of_given_targets(translator):
    targets = ["a b", "", "c d e f g", "z", "b b b"]
    scores = translator.score(TEXTS, targets)
    end = translator.tokenizer.eos_id
    for text, target, score in zip(TEXTS, targets, scores, strict=True):
        (ids,) = translator.tokenizer.encode([target])
        logs = log_softmax(whole(translator, text, ids))
        ids = [*ids, end]
        expected = logs[np.arange(len(ids)), ids].sum()
        assert score.log_probability == pytest.approx(expected, abs=1e-3)
        assert score.tokens == len(ids)


def test_the_seed_decides_and_streams_are_the_same_text(translator):
    knobs = {"temperature": 1.0, "max_new_tokens": 9, "top_k": 5}
    seeds = list(range(len(TEXTS)))
    together = translator.generate(TEXTS, seed=seeds, **knobs)
    for text, seed, answer in zip(TEXTS, seeds, together, strict=True):
        assert translator.generate([text], seed=seed, **knobs)[0] == answer
        (plain,) = translator.tokenizer.decode([answer.token_ids])
        assert "".join(translator.stream(text, seed=seed, **knobs)) == plain


def test_long_sources_lose_their_end(tokenizer):
    config = shape_of("tiny", tokenizer.vocabulary_size, num_layers=1, max_length=20)
    made = Translator(encoder_decoder(config), config, tokenizer, max_source=4)
    long, short = made.generate(["a b c d e f", "a b c"], max_new_tokens=5)
    assert long.text == short.text
    assert (long.truncated, short.truncated) == (3, 0)


def test_unknown_words_come_from_the_source(tokenizer):
    config = shape_of("tiny", tokenizer.vocabulary_size, num_layers=1, hidden_size=16)
    made = Translator(encoder_decoder(config), config, tokenizer)
    unknown = tokenizer.unk_id
    (answer,) = made.generate(
        ["a b Überraschung c"], max_new_tokens=3, forced_tokens=[unknown, 5, unknown]
    )
    (word,) = tokenizer.decode([[5]])
    assert answer.text == f"Überraschung {word} Überraschung"
    graph = tokenizer.graph()
    text = graph.decode([answer.token_ids], unknown=["Ü", "", "x"]).numpy()[0].decode()
    assert text == f"Ü {word} x"
