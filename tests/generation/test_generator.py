import functools
import itertools
import json

import numpy as np
import pytest

from tests.generation.conftest import WORDS, next_logits
from tfllm.core.errors import UserError
from tfllm.generation.generator import Generator
from tfllm.generation.text_stream import TextStream
from tfllm.text import Tokenizer
from tfllm.text.chat import ChatTemplate

PROMPTS = [
    "Once upon a time", "Tom", "", "The dog was very", "One day, a girl named Sue",
    "Lily and Ben liked to play in the park. They saw a big tree and",
]  # fmt: skip


@pytest.fixture(scope="module")
def published(shared):
    path = shared / "models/stories260K/expected_greedy.json"
    return json.loads(path.read_text())


def test_the_published_text(stories, published):
    ids, text = published["greedy_token_ids"], published["text"]
    (answer,) = stories.generate([""], max_new_tokens=200)
    assert answer.text == text
    assert ids == [1, *answer.token_ids]
    assert answer.finish_reason == "length"
    assert "".join(stories.stream("", max_new_tokens=200)) == text
    assert "".join(stories.stream("", max_new_tokens=200, every=7)) == text


def test_xla_makes_the_published_text(shared, published):
    generator = Generator.load(shared / "models/stories260K", xla=True)
    (answer,) = generator.generate([""], max_new_tokens=200)
    assert answer.text == published["text"]


def test_a_hundred_prompts_alone_and_together(stories):
    random = np.random.default_rng(0)
    words = (
        "the a dog cat Tom Lily park big sad was ran saw and to play . She He".split()
    )
    texts = [" ".join(random.choice(words, i % 40)) for i in range(100)]
    together = stories.generate(texts, max_new_tokens=24)
    alone = [stories.generate([text], max_new_tokens=24)[0] for text in texts]
    assert [a.text for a in together] == [a.text for a in alone]
    assert len({a.prompt_tokens for a in together}) > 30


def test_the_seed_decides_not_the_batch(stories):
    knobs = {
        "temperature": [1.0, 0.7, 0.0, 1.3, 1.0, 0.9],
        "top_k": [0, 5, 0, 300, 0, 40],
        "top_p": [0.9, 1.0, 1.0, 0.95, 1.0, 0.8],
        "repetition_penalty": [1.0, 1.2, 1.0, 1.0, 1.1, 1.0],
        "seed": [1, 2, 3, 4, 5, 2**40],
        "max_new_tokens": [20, 5, 30, 25, 1, 10],
    }
    together = stories.generate(PROMPTS, **knobs)
    for i, text in enumerate(PROMPTS):
        row = {name: values[i] for name, values in knobs.items()}
        (alone,) = stories.generate([text], **row)
        assert alone == together[i]
        assert "".join(stories.stream(text, **row)) == alone.text
        assert len(alone.token_ids) <= row["max_new_tokens"]
    other = stories.generate(PROMPTS, **knobs | {"seed": 77})
    same = [a.text == b.text for a, b in zip(together, other, strict=True)]
    assert same[2]
    assert not all(same)


def test_nothing_is_traced_anew(stories):
    stories.generate(["Tom"], max_new_tokens=4)
    stories.generate(["Tom"], max_new_tokens=4, temperature=0.5)
    traces = stories.engine.traces
    for count, length, space in ((1, 1, 3), (5, 30, 9), (2, 120, 20), (7, 3, 1)):
        texts = ["the dog " * length] * count
        stories.generate(texts, max_new_tokens=space)
        stories.generate(texts, max_new_tokens=space, temperature=0.9, seed=count)
    assert stories.engine.traces == traces


def test_stop_strings(stories):
    whole = stories.generate(PROMPTS, max_new_tokens=60)
    stops = ["park", ". She", "zzz"]
    cut = stories.generate(PROMPTS, max_new_tokens=60, stop=stops)
    met = 0
    for text, long, short in zip(PROMPTS, whole, cut, strict=True):
        at = min([long.text.find(s) for s in stops if s in long.text], default=None)
        assert short.text == long.text[:at]
        reason = long.finish_reason if at is None else "stop_string"
        assert short.finish_reason == reason
        tokens = len(short.token_ids)
        assert short.token_ids == long.token_ids[:tokens]
        streamed = stories.stream(text, max_new_tokens=60, stop=stops)
        assert "".join(streamed) == short.text
        met += at is not None
    assert met >= 2


def test_banned_forced_and_penalised_tokens(stories):
    (plain,) = stories.generate(["Once upon"], max_new_tokens=20)
    banned = sorted(set(plain.token_ids))[:5]
    (other,) = stories.generate(["Once upon"], max_new_tokens=20, banned_tokens=banned)
    assert not set(banned) & set(other.token_ids)
    forced = stories.tokenizer.encode(["the big dog"])[0]
    first, second = stories.generate(
        ["Once upon", "Tom"], max_new_tokens=20, forced_tokens=[forced, []]
    )
    assert first.token_ids[: len(forced)] == forced
    assert second == stories.generate(["Tom"], max_new_tokens=20)[0]
    counts = []
    for penalty in (0.0, 2.0):
        (answer,) = stories.generate(
            ["Once upon"], max_new_tokens=100, frequency_penalty=penalty
        )
        counts.append(max(map(answer.token_ids.count, answer.token_ids)))
    assert counts[1] < counts[0]


def test_scores_and_log_probabilities(letters):
    model, config, tokenizer = letters()
    generator = Generator(model, config, tokenizer)
    texts = ["abc", "hello world", "q", ""]
    for text, score in zip(texts, generator.score(texts), strict=True):
        (ids,) = tokenizer.encode([text])
        assert score.tokens == max(0, len(ids) - 1)
        expected = [log_softmax(next_logits(model, ids[:i]))[ids[i]]
                    for i in range(1, len(ids))]  # fmt: skip
        np.testing.assert_allclose(score.log_probabilities, expected, atol=1e-4)
        assert score.log_probability == pytest.approx(sum(expected), abs=1e-4)
    prompt = tokenizer.encode(["abc"])[0]
    (answer,) = generator.generate(["abc"], max_new_tokens=9, log_probabilities=True)
    assert answer.finish_reason == "length" or len(answer.token_ids) < 9
    for i, token in enumerate(answer.token_ids):
        values = log_softmax(next_logits(model, prompt + answer.token_ids[:i]))
        assert token == values.argmax()
        assert answer.log_probabilities[i] == pytest.approx(values[token], abs=1e-4)


def log_softmax(logits):
    logits = logits - logits.max()
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_beam_search_finds_what_trying_all_finds(letters, penalty):
    for random in range(3):
        model, config, _ = letters(6, random=random, initializer_range=0.9)
        tokenizer = Tokenizer.train(["a b c"], "characters", 6)
        config.vocabulary_size = max(6, tokenizer.vocabulary_size)
        end, steps = 3, 3
        generator = Generator(model, config, tokenizer, stop_tokens=[end])
        prompt = generator.prefix + tokenizer.encode(["ab"])[0]

        @functools.cache
        def shares(ids, model=model, prompt=prompt):
            return log_softmax(next_logits(model, [*prompt, *ids]))

        found = {}
        for length in range(1, steps + 1):
            for ids in itertools.product(range(6), repeat=length):
                if end not in ids[:-1] and (ids[-1] == end or length == steps):
                    total = sum(shares(ids[:i])[ids[i]] for i in range(length))
                    found[ids] = total / length**penalty
        best = max(found, key=found.get)
        (answer,) = generator.generate(
            ["ab"], max_new_tokens=steps, beams=36, length_penalty=penalty
        )
        assert tuple(answer.token_ids) == best
        assert answer.score == pytest.approx(found[best], abs=1e-4)
        together = generator.generate(
            ["b", "ab", "cab"], max_new_tokens=steps, beams=36, length_penalty=penalty
        )
        assert together[1].token_ids == answer.token_ids


def test_a_prompt_that_is_too_long(letters):
    generator = Generator(*letters())
    text = "".join(WORDS) * 4
    with pytest.raises(
        UserError, match="text 2: a prompt has 104 tokens, the model reads 64"
    ):
        generator.generate(["ab", text])
    (answer,) = generator.generate([text], max_new_tokens=10, truncate=True)
    assert answer.truncated == 50
    (same,) = generator.generate([text[50:]], max_new_tokens=10)
    assert answer.token_ids == same.token_ids
    # There is room for fewer tokens than were asked for.
    (answer,) = generator.generate([text[:60]], max_new_tokens=10, banned_tokens=[0])
    assert len(answer.token_ids) <= 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_p", 1.5), ("top_k", 2.5), ("seed", "x"),
     ("max_new_tokens", -3), ("repetition_penalty", 0), ("min_p", float("nan")),
     ("temperature", [1, 2])],
)  # fmt: skip
def test_settings_out_of_range(letters, name, value):
    with pytest.raises(UserError, match=name):
        Generator(*letters()).generate(["a", "b", "c"], **{name: value})


def test_nothing_to_do(letters):
    generator = Generator(*letters())
    assert generator.generate([]) == []
    assert generator.score([]) == []
    (answer,) = generator.generate(["ab"], max_new_tokens=0)
    assert (answer.text, answer.token_ids) == ("", [])
    assert list(generator.stream("ab", max_new_tokens=0)) == []


def test_text_comes_in_whole_characters():
    tokenizer = Tokenizer.train(["好 é 🙂 abc"] * 3, "bpe", 262)
    text = "abc 好🙂é"
    (ids,) = tokenizer.encode([text])
    assert len(ids) > len(text)
    stream = TextStream(tokenizer)
    pieces = [stream.push([i]) for i in ids] + [stream.push([], last=True)]
    assert "".join(pieces) == text == tokenizer.decode([ids])[0]
    assert "\ufffd" not in "".join(pieces)
    assert {"好", "🙂", "é"} <= set(pieces)
    # What never becomes a character is given in the end.
    stream = TextStream(tokenizer)
    (broken,) = tokenizer.encode(["好"])
    assert stream.push(broken[:1]) == ""
    assert stream.push([], last=True) == tokenizer.decode([broken[:1]])[0] == "\ufffd"


def test_part_of_a_stop_string_is_held_back():
    tokenizer = Tokenizer.train(["abcdefgh"], "characters", 20)
    (ids,) = tokenizer.encode(["abcdabcefgh"])
    stream = TextStream(tokenizer, stops=["abce", "zz"])
    pieces = [stream.push([i]) for i in ids]
    assert "".join(pieces) == "abcd"
    assert pieces[:4] == ["", "", "", "abcd"]
    assert stream.stopped


@pytest.mark.slow
def test_smollm2(shared):
    """32 greedy ids of three prompts, and an answer to a question."""
    folder = shared / "models/smollm2_135m_instruct_q4_1"
    path = folder / "expected_fp32_dequantised.json"
    rows = json.loads(path.read_text())["generations"]
    generator = Generator.load("smollm2-135m-instruct", stop_tokens=[])
    prompts = [row["prompt"] for row in rows]
    answers = generator.generate(prompts, max_new_tokens=32, parse_special=True)
    for row, answer in zip(rows, answers, strict=True):
        expected = row["greedy_ids"]
        assert answer.token_ids[: len(expected)] == expected
    generator.stop_tokens = [generator.tokenizer.eos_id]
    template = ChatTemplate.load(generator.source, generator.tokenizer)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    pieces = generator.stream(template.render(asked), parse_special=True)
    assert "".join(pieces) == "The capital of France is Paris."
