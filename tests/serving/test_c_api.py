"""The C API loader, here and in a process of its own."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from tfllm.serving import check
from tfllm.serving.c_api import ModelError, Process, SavedModel, main

REQUEST = {
    "text": [
        "",
        "short",
        "long ❤ " * 2000,
        b"\xff\x00\xfe",
        "a\0b",
        "x" * 22,
        "y" * 23,
    ],
    "i": [0, -1, 2**31 - 1, -(2**31) + 1, 4, 5, 6],
    "j": [0, -1, 2**40, 3, 4, 5, 6],
    "x": [[0.5, 1]] * 7,
    "flag": [True, False] * 3 + [True],
}
ONE = {name: values[:1] for name, values in REQUEST.items()}


@pytest.fixture(scope="module")
def process(echo):
    with Process(echo) as running:
        yield running


@pytest.fixture(scope="module")
def here(echo):
    with SavedModel(echo) as model:
        yield model


@pytest.mark.parametrize("where", ["here", "process"])
def test_types_come_back(where, request):
    model = request.getfixturevalue(where)
    out = model.run("serving_default", REQUEST)
    raw = [t if isinstance(t, bytes) else t.encode() for t in REQUEST["text"]]
    assert out["same_bytes"].tolist() == raw
    texts = [t.decode("utf-8", "surrogateescape") for t in raw]
    assert out["same"].tolist() == texts
    assert out["twice"].tolist() == [[t, t] for t in texts]
    assert out["length"].tolist() == [len(t) for t in raw]
    assert out["i"].tolist() == [-i for i in REQUEST["i"]]
    assert out["j"].tolist() == [2 * j for j in REQUEST["j"]]
    assert out["x"].dtype == np.float32 and out["x"].tolist() == [[0.25, 0.5]] * 7
    assert out["flag"].dtype == bool and out["flag"].tolist() == [False, True] * 3 + [
        False
    ]
    # What came out goes in again, byte for byte.
    again = model.run("serving_default", {**REQUEST, "text": out["same"]})
    assert again["same_bytes"].tolist() == raw
    assert model.run("product", {"x": np.eye(2)})["y"].ravel().tolist() == [1, 2]
    # XLA is switched off for a whole process: never for one that uses TensorFlow.
    expected = ["XLA stays on"] if where == "here" else []
    assert [note.split(":")[0] for note in model.notes] == expected
    assert model.load_seconds > 0


def test_signatures_have_raw_names(process, here):
    assert process.signatures == here.signatures
    info = here.signatures["serving_default"]
    assert info.inputs["x"].shape == (None, 2) and info.inputs["x"].dtype == "float32"
    assert info.inputs["text"].tensor == "serving_default_text:0"
    assert info.outputs["twice"].shape == (None, 2)
    assert set(here.signatures) == {"serving_default", "product"}


def test_the_process_never_imports_tensorflow(process):
    assert "numpy" in process.modules
    assert not {"tensorflow", "keras"} & set(process.modules)


BAD = [
    ({"x": [[1.0]]}, "shape"),
    ({"i": [2**31]}, "out of range"),
    ({"i": [1.5]}, "float64 where int32"),
    ({"text": "bare"}, "shape"),
    ({"text": [3]}, "int where a string"),
    ({"text": [["a"]]}, "shape"),
    ({"text": ["\ud800"]}, "surrogates"),
    ({"text": [{"b64": "%"}]}, "base64"),
    ({"flag": ["yes"]}, "where bool"),
    ({"nothing": [1]}, "unknown inputs: nothing"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_requests_are_errors(process, here, change, message):
    for model in (process, here):
        with pytest.raises(ModelError, match=message) as caught:
            model.run("serving_default", {**ONE, **change})
        assert caught.value.code == "INVALID_ARGUMENT"
    assert process.run("serving_default", ONE)["i"].tolist() == [0]


def test_bad_lines_are_answered(process):
    lines = ["", "{", "[]", "null", '{"inputs":3}', "[" * 10**5, b"\xff\xfe", "1e999",
             '{"signature":[]}', '{"signature":"none","inputs":{}}']  # fmt: skip
    for line in lines:
        with pytest.raises(ModelError, match="INVALID_ARGUMENT"):
            process.request(line)
    assert process.run("serving_default", ONE)["i"].tolist() == [0]


def test_graph_errors_are_clear(here):
    with pytest.raises(ModelError, match="no signature 'other'"):
        here.run("other", {})
    empty = here.run("serving_default", {k: v[:0] for k, v in ONE.items() if k != "x"}
                     | {"x": np.zeros((0, 2))})  # fmt: skip
    assert empty["twice"].shape == (0, 2)


def test_what_does_not_load(tmp_path, echo):
    with pytest.raises(ModelError, match="NOT_FOUND"):
        Process(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="DATA_LOSS"):
        SavedModel(tmp_path)
    whole = (echo / "3" / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(whole)
    # The loader takes it without its variables; running it does not.
    missing = pytest.raises(ModelError, match=r"FAILED_PRECONDITION.*variable")
    with Process(tmp_path) as process, missing:
        process.run("product", {"x": [[1, 1]]})


def test_a_stuck_process_is_killed(echo):
    with Process(echo) as process:
        process.timeout = 0.2
        with pytest.raises(ModelError, match=r"PROCESS_ENDED.*no answer in 0.2 s"):
            process._answer()  # nothing was asked, so nothing comes


def test_pipe_with_a_signature(echo, root):
    done = subprocess.run(
        [sys.executable, "-m", "tfllm.serving.c_api", str(echo / "3"), "product"],
        input=json.dumps({"inputs": {"x": [[1, 1]]}}) + "\n",
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert json.loads(done.stdout)["outputs"] == {"y": [[3.0]]}


def test_memory_stays(here):
    resource = pytest.importorskip("resource")
    for _ in range(200):
        here.run("serving_default", REQUEST)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1500):  # 14 kB of text in and three times that out, each
        here.run("serving_default", REQUEST)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_the_loop_over_lines(echo, monkeypatch, capsys):
    lines = [
        {"signature": "product", "inputs": {"x": [[2, 1]]}},
        {"signature": "product", "inputs": {}},
        ["no object"],
        {"inputs": {**ONE, "text": [{"b64": "/wA="}]}},
    ]
    sent = "\n".join(map(json.dumps, lines)) + "\n{"
    stdin = io.TextIOWrapper(io.BytesIO(sent.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main([str(echo)]) == 0
    hello, *answers = map(json.loads, capsys.readouterr().out.splitlines())
    assert hello["load_seconds"] > 0
    assert answers[0]["outputs"] == {"y": [[4.0]]} and answers[0]["seconds"] > 0
    assert ["error" in answer for answer in answers] == [False, True, True, False, True]
    assert answers[3]["outputs"]["same_bytes"] == [{"b64": "/wA="}]
    assert main([str(echo / "none")]) == 2
    assert json.loads(capsys.readouterr().out)["error"].startswith("NOT_FOUND")
    assert main([]) == 2


def test_tensorflow_text_ops_are_found(tf, tmp_path):
    text_ops = pytest.importorskip("tensorflow_text")
    tokens = tf.function(
        lambda text: {
            "tokens": text_ops.WhitespaceTokenizer().tokenize(text).to_tensor()
        }
    ).get_concrete_function(text=tf.TensorSpec([None], tf.string))
    tf.saved_model.save(tf.Module(), tmp_path, signatures=tokens)
    with Process(tmp_path) as process:
        found = process.run("serving_default", {"text": ["one two", "three"]})
    assert found["tokens"].tolist() == [["one", "two"], ["three", ""]]
    report = check.check(tmp_path, timing_seconds=0.01)
    assert any("2.20.0 or later: TFText>" in warning for warning in report.warnings)
