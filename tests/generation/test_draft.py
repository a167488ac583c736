"""A draft changes how fast an answer comes, and nothing else."""

import numpy as np
import pytest

from tests.generation.conftest import WORDS
from tfllm.core.errors import UserError
from tfllm.generation.generator import Generator

TEXTS = ["abc", "", "the quick brown fox", "q"]
SETTINGS = {
    "greedy": {},
    "drawn": {"temperature": 0.8, "seed": [1, 2, 3, 2**40]},
    "every": {
        "temperature": [0.0, 1.0, 1.3, 0.7], "top_k": [0, 5, 0, 9], "top_p": 0.9,
        "min_p": 0.01, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "seed": 7,
        "banned_tokens": [9], "forced_tokens": [[], [6, 7, 8], [11], []],
    },
}  # fmt: skip


def shaken(made, amount):
    """A generator whose model knows nearly what the other one knows."""
    (model, *rest), random = made, np.random.default_rng(0)
    for weight in model.weights:
        noise = random.normal(size=weight.shape) * float(np.std(weight)) * amount
        weight.assign(weight + noise)
    return Generator(model, *rest)


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_without_it(letters, name):
    generator, knobs = Generator(*letters()), SETTINGS[name]
    knobs = knobs | {"max_new_tokens": [30, 7, 41, 0], "log_probabilities": True}
    plain = generator.generate(TEXTS, **knobs)
    other = Generator(*letters(hidden_size=16, num_layers=1, random=3))
    for draft in (generator, shaken(letters(), 0.1), other):
        made = generator.generate(TEXTS, draft=draft, draft_tokens=5, **knobs)
        for one, two in zip(plain, made, strict=True):
            values = [x.__dict__.pop("log_probabilities") for x in (one, two)]
            assert one == two
            np.testing.assert_allclose(*values, atol=1e-4)
            one.log_probabilities = values[0]


def test_guesses_stand(letters):
    """As many tokens a turn as the draft is right about."""
    generator = Generator(*letters(), stop_tokens=[])
    settings = {"max_new_tokens": 32, "temperature": 0.7, "seed": 5}
    text = "".join(generator.stream("abc", **settings))
    counts = []
    for draft in (generator, shaken(letters(), 0.05), shaken(letters(), 1.0)):
        pieces = list(generator.stream("abc", draft=draft, **settings))
        assert "".join(pieces) == text
        counts.append(len(pieces))
    assert counts[0] == 32 / 4 < counts[1] < counts[2]


def test_to_the_last_slot_and_to_a_stop(letters):
    generator = Generator(*letters())
    draft = shaken(letters(), 0.1)
    knobs = {"max_new_tokens": 99, "temperature": 1.0, "banned_tokens": [0, 3]}
    prompt = "".join(WORDS)
    (whole,) = generator.generate([prompt], **knobs)
    assert whole.finish_reason == "length"
    assert generator.generate([prompt], draft=draft, **knobs) == [whole]
    knobs["stop"] = [whole.text[11:13]]
    assert generator.generate([prompt], draft=draft, **knobs) == generator.generate(
        [prompt], **knobs
    )


def test_compiled(letters):
    generator, draft = (Generator(*letters(random=n), xla=True) for n in (0, 1))
    knobs = {"max_new_tokens": 20, "temperature": [0.0, 1.0, 1.0, 0.5]}
    plain = generator.generate(TEXTS, **knobs)
    for guessing in (draft, generator):
        assert generator.generate(TEXTS, draft=guessing, **knobs) == plain


def test_drafts_that_do_not_fit(letters):
    generator = Generator(*letters())
    with pytest.raises(UserError, match="another vocabulary"):
        generator.generate(["a"], draft=Generator(*letters(50)))
    with pytest.raises(UserError, match="2 or more"):
        generator.generate(["a"], draft=generator, draft_tokens=1)
    with pytest.raises(UserError, match="drafts"):
        generator.generate(["a"], draft=generator, beams=2)
    with pytest.raises(UserError, match="XLA"):
        generator.generate(["a"], draft=Generator(*letters(), xla=True))
