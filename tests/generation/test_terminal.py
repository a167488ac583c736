"""`tfllm chat` as a person meets it: in a terminal."""

import json
import os
import pty
import subprocess
import sys

import pytest


def talk(model, folder, lines, *flags):
    """What the terminal shows before each line is typed, and in the end."""
    person, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tfllm", "chat", str(model), *flags],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder,
    )
    os.close(terminal)
    shown = []
    for line in [*lines, "/exit"]:
        shown.append(b"")
        while not shown[-1].endswith(b"\n> "):
            shown[-1] += os.read(person, 4096)
        os.write(person, line.encode() + b"\n")
    assert process.wait(60) == 0
    os.close(person)
    return [text.decode().replace("\r\n", "\n") for text in shown]


def saved(path):
    return json.loads(path.read_text(encoding="utf-8"))["messages"]


def test_commands(shared, tmp_path):
    lines = ["Hello", "/save a.json", "/system Be good", "/save b.json", "Tom", "/who",
             "/save c.json", "/reset", "/save d.json"]  # fmt: skip
    flags = ["--max_new_tokens", "8", "--draft", shared / "models/stories260K"]
    shown = talk(shared / "models/stories260K", tmp_path, lines, *map(str, flags))
    assert "/reset forgets" in shown[0]
    assert "saved: a.json" in shown[2]
    assert "/reset forgets" in shown[6]
    first, second, third, last = (saved(tmp_path / f"{n}.json") for n in "abcd")
    assert [m["role"] for m in first] == ["user", "assistant"]
    assert first[1]["content"].strip() in shown[1]
    assert second == last == [{"role": "system", "content": "Be good"}]
    assert [m["role"] for m in third] == ["system", "user", "assistant"]


@pytest.mark.slow
def test_smollm2(tmp_path):
    question = "What is the capital of France?"
    lines = [question, "And of Germany?", "/save talk.json", "/reset", "/save new.json"]
    flags = ["--temperature", "0"]
    shown = talk("smollm2-135m-instruct", tmp_path, lines, *flags)
    assert "The capital of France is Paris." in shown[1]
    assert "Berlin" in shown[2]
    assert "a new conversation" in shown[4]
    roles = [m["role"] for m in saved(tmp_path / "talk.json")]
    assert roles == ["user", "assistant"] * 2
    assert saved(tmp_path / "new.json") == []
