"""The export answers through the C API what Python answers."""

import json

import pytest

from tfllm.cli.main import main
from tfllm.core.errors import UserError
from tfllm.generation.generator import Generator
from tfllm.serving.c_api import Process
from tfllm.serving.decoder_export import export_generator
from tfllm.text.chat import ChatTemplate


@pytest.fixture(scope="module")
def exported(stories, tmp_path_factory):
    return export_generator(
        stories,
        "stories",
        tmp_path_factory.mktemp("saved_models"),
        max_prompt=64,
        max_new_tokens=200,
        samples=["", "Once upon a time", "Tom saw"],
    )


def test_the_published_text_from_the_export(stories, exported, shared):
    path = shared / "models/stories260K/expected_greedy.json"
    published = json.loads(path.read_text())
    texts = ["", "Once upon a time", "Tom and Lily " * 60]
    knobs = {
        "max_new_tokens": [200, 30, 20],
        "temperature": [0.0, 1.0, 0.0],
        "top_k": [0, 50, 0],
        "top_p": [1.0, 0.9, 1.0],
        "repetition_penalty": [1.0, 1.1, 1.0],
        "seed": [0, 7, 0],
    }
    with Process(exported) as process:
        assert "tensorflow" not in process.modules
        found = process.run("generate", {"text": texts, **knobs})
        assert found["text"][0] == published["text"]
        ids = published["greedy_token_ids"]
        assert found["tokens"][0].tolist() == ids[1:]
        alone = {name: values[1:2] for name, values in knobs.items()}
        (answer,) = stories.generate(texts[1:2], **{k: v[0] for k, v in alone.items()})
        assert found["text"][1] == answer.text
        made = found["tokens"][1]
        assert made[made >= 0].tolist() == answer.token_ids
        # Of a prompt that is too long, the end is read.
        (ids,) = stories.tokenizer.encode(texts[2:])
        prompt = stories.tokenizer.decode([ids[-63:]])[0]
        (answer,) = stories.generate([prompt], max_new_tokens=20)
        assert found["text"][2].strip() == answer.text.strip()
        scores = process.run("score", {"text": texts[:2]})
        python = stories.score(texts[:2])
        assert scores["tokens"].tolist() == [s.tokens for s in python]
        expected = pytest.approx([s.log_probability for s in python], abs=1e-4)
        assert scores["log_probability"].tolist() == expected
    page = (exported.parent / "README.md").read_text()
    assert "a longer one loses its beginning" in page


def test_a_prompt_and_answer_must_fit(stories, tmp_path):
    with pytest.raises(UserError, match="512"):
        export_generator(stories, "x", tmp_path, max_prompt=500, max_new_tokens=100)


def test_text_alone_on_standard_output(shared, capsys):
    folder = str(shared / "models/stories260K")
    arguments = ["generate", folder, "", "--temperature", "0"]
    assert main([*arguments, "--max_new_tokens", "200"]) == 0
    published = json.loads(
        (shared / "models/stories260K/expected_greedy.json").read_text()
    )
    assert capsys.readouterr().out == published["text"] + "\n"
    assert main([*arguments[:3], "Tom", "--beams", "2", "--max_new_tokens", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.slow
def test_an_xla_export_says_what_it_needs(shared, tmp_path):
    generator = Generator.load(shared / "models/stories260K", xla=True)
    path = export_generator(
        generator, "fast", tmp_path, max_prompt=17, max_new_tokens=16,
        samples=["Once", "Tom"],
    )  # fmt: skip
    assert "--xla_cpu_compilation_enabled" in (path.parent / "README.md").read_text()
    plain = Generator.load(shared / "models/stories260K")
    with Process(path, xla=True) as process:
        found = process.run("serving_default", {"text": ["Lily"]})["text"]
    assert found[0] == plain.generate(["Lily"], max_new_tokens=16)[0].text


@pytest.mark.slow
def test_a_chat_model(tmp_path):
    """SmolLM2 as an export."""
    generator = Generator.load("smollm2-135m-instruct")
    template = ChatTemplate.find(generator.source, generator.tokenizer)
    question = "What is the capital of France?"
    path = export_generator(
        generator, "smollm2", tmp_path, chat=template, max_prompt=128,
        max_new_tokens=32, defaults={"max_new_tokens": 24}, samples=[question, "Hi"],
    )  # fmt: skip
    prompt = template.render([{"role": "user", "content": question}])
    with Process(path) as process:
        answer = process.run("serving_default", {"text": [question]})["text"]
        assert answer.tolist() == ["The capital of France is Paris."]
        again = process.run("chat", {"prompt": [prompt]})["text"]
        assert again.tolist() == answer.tolist()
