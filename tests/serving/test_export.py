"""What an export writes, and that it answers as the model did."""

import json
import shlex

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.serving import check, protos
from tfllm.serving.c_api import Process

TEXTS = ["hello", "你好 world", "", "a" * 50, "good film", "坏电影"]


@pytest.fixture(scope="module")
def ex(tf):
    from tfllm.serving import export

    return export


def export_tiny(ex, tiny, folder, **changes):
    options = {
        "variables": tiny.model.variables,
        "name": "tiny",
        "samples": {"serving_default": {"text": TEXTS}},
        "directory": folder,
    }
    return ex.export([ex.text_signature(tiny.answer)], **(options | changes))


def test_answers_equal_the_model(ex, tf, tiny, exported):
    direct = tiny.answer(tf.constant(TEXTS))
    with Process(exported.parent) as process:
        answer = process.run("serving_default", {"text": TEXTS})
        rows = [ex.example(text=text) for text in TEXTS]
        classes = process.run("classify", {"inputs": rows})
    np.testing.assert_allclose(answer["scores"], direct["scores"], atol=1e-6)
    assert answer["label"].tolist() == [v.decode() for v in direct["label"].numpy()]
    assert answer["labels"].tolist() == [tiny.names] * len(TEXTS)
    assert set(classes) == {"classes", "scores"}
    assert classes["classes"].tolist() == answer["labels"].tolist()
    np.testing.assert_allclose(classes["scores"], direct["scores"], atol=1e-6)


def test_what_lies_there(exported, tiny):
    files = {str(p.relative_to(exported.parent)) for p in exported.parent.rglob("*.*")}
    assert {"README.md", "1/batching_params.pbtxt", "1/saved_model.pb"} <= files
    assert not [f for f in files if "tmp" in f]
    assert exported.stat().st_mode & 0o777 == 0o755
    weights = sum(v.numpy().nbytes for v in tiny.model.variables)
    stored = (exported / "variables/variables.data-00000-of-00001").stat().st_size
    assert weights <= stored < weights + 4096  # once
    record = json.loads((exported / check.RECORD).read_text())
    assert record["task"] == "classification" and record["labels"] == tiny.names
    assert record["about"] == {"accuracy": 0.9}
    assert record["parameter_bytes"] == weights
    sample = record["samples"]["serving_default"]
    assert sample["inputs"]["text"] == TEXTS and len(sample["outputs"]["score"]) == 6


def test_readme_lines(exported):
    page = (exported.parent / "README.md").read_text()
    assert "docker run" in page and "tensorflow/serving:2.20.0" in page
    assert "--enable_batching" in page
    curls = [shlex.split(line) for line in page.splitlines() if line[:7] == "curl -d"]
    bodies = {words[3].rpartition(":")[2]: json.loads(words[2]) for words in curls}
    assert bodies == {
        "predict": {"instances": [{"text": "hello"}]},
        "classify": {"signature_name": "classify", "examples": [{"text": "hello"}]},
    }
    answers = [json.loads(x.split("```")[0]) for x in page.split("```json\n")[1:]]
    assert answers[0]["predictions"][0]["label"] == answers[1]["results"][0][0][0] or (
        answers[1]["results"][0][0][1] <= answers[0]["predictions"][0]["score"]
    )
    assert len(answers[1]["results"][0]) == 3


def test_batching_parameters(ex, tf, exported):
    text = (exported / "batching_params.pbtxt").read_text()
    assert "max_execution_batch_size { value: 32 }" in text
    ragged = tf.function(
        lambda x: {"y": tf.strings.unicode_decode(x, "UTF-8").to_tensor()}
    )
    concrete = ragged.get_concrete_function(tf.TensorSpec([None], tf.string))
    assert "splitting" not in ex._batching({"s": concrete}, 32)


def test_warm_up_records(ex, tf, exported):
    """Decoded here; the next test uses TensorFlow Serving's own messages."""
    path = exported / "assets.extra/tf_serving_warmup_requests"
    logs = [bytes(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    seen = []
    for log in logs:
        log = protos.message("PredictionLog").FromString(log)
        ((field, body),) = log.ListFields()
        spec = body.request.model_spec
        assert spec.name == "tiny"
        if field.name == "predict_log":
            (entry,) = body.request.inputs
            assert entry.key == "text"
            texts = tensor_array(entry.value)
        else:
            rows = body.request.input.example_list.examples
            messages = [tf.train.Example.FromString(row) for row in rows]
            texts = np.array(
                [m.features.feature["text"].bytes_list.value[0] for m in messages]
            )
        assert texts.tolist() == [t.encode() for t in TEXTS[: len(texts)]]
        seen.append((field.number, spec.signature_name, len(texts)))
    kinds = {(2, "classify"), (6, "serving_default")}
    assert sorted(seen) == sorted((*kind, n) for kind in kinds for n in (1, 6))


def tensor_array(message):
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow.python.framework.tensor_util import MakeNdarray

    return MakeNdarray(TensorProto.FromString(message))


def test_warm_up_in_the_servers_words(ex, tf):
    messages = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    tensor = tf.make_tensor_proto([b"a\0b", b"\xff"])
    log = messages.PredictionLog.FromString(
        ex.prediction_log("m", "s", {"text": tensor}, ["label"])
    )
    request = log.predict_log.request
    assert (request.model_spec.name, request.model_spec.signature_name) == ("m", "s")
    assert request.inputs["text"] == tensor and not log.predict_log.HasField("response")
    rows = [ex.example(text="a"), ex.example(text="")]
    for outputs, kind in [
        (["classes", "scores"], "classify"),
        (["outputs"], "regress"),
    ]:
        log = messages.PredictionLog.FromString(
            ex.prediction_log(
                "m", kind, {"inputs": tf.make_tensor_proto(rows)}, outputs
            )
        )
        request = getattr(log, f"{kind}_log").request
        examples = request.input.example_list.examples
        assert [e.SerializeToString(deterministic=True) for e in examples] == rows


def test_versions_increase(ex, tiny, tmp_path):
    (tmp_path / "tiny" / "9").mkdir(parents=True)
    (tmp_path / "tiny" / "9" / "file").touch()
    assert export_tiny(ex, tiny, tmp_path) == tmp_path / "tiny" / "10"
    assert export_tiny(ex, tiny, tmp_path) == tmp_path / "tiny" / "11"
    assert "Version 11" in (tmp_path / "tiny" / "README.md").read_text()


def test_a_number_taken_meanwhile(ex, tiny, tmp_path, monkeypatch):
    whole = check.check

    def meanwhile(*arguments, **options):
        (tmp_path / "tiny" / "1" / "variables").mkdir(parents=True)
        return whole(*arguments, **options)

    monkeypatch.setattr(check, "check", meanwhile)
    assert export_tiny(ex, tiny, tmp_path) == tmp_path / "tiny" / "2"


def test_training_answers_must_agree(ex, tf, tiny, tmp_path):
    scores = tiny.answer(tf.constant(TEXTS))["score"].numpy()
    right = {"serving_default": {"score": (scores + 5e-5).tolist()}}
    export_tiny(ex, tiny, tmp_path / "right", expected=right)
    wrong = {"serving_default": {"score": (scores + 5e-3).tolist()}}
    with pytest.raises(UserError, match=r"score is not what was recorded.*6 of 6"):
        export_tiny(ex, tiny, tmp_path / "wrong", expected=wrong)
    assert list((tmp_path / "wrong").iterdir()) == []  # nothing is left
    with pytest.raises(UserError, match="unsound"):
        export_tiny(ex, tiny, tmp_path / "right", expected=wrong)
    left = sorted(p.name for p in (tmp_path / "right/tiny").iterdir())
    assert left == ["1", "README.md"]


def test_pairs_and_regression(ex, tf, tiny, tmp_path):
    def similarity(text, text_pair):
        return {"score": tf.cast(tf.strings.length(text + text_pair), tf.float32)}

    version = ex.export(
        [
            ex.text_signature(similarity, pair=True),
            ex.regress_signature(similarity, True),
        ],
        variables=[],
        name="pair",
        samples={"serving_default": {"text": ["a", "bb"], "text_pair": ["", "b\0"]}},
        directory=tmp_path,
    )
    with Process(version) as process:
        rows = [ex.example(text="abc", text_pair="de"), ex.example(text="abc")]
        out = process.run("regress", {"inputs": rows})["outputs"]
    assert out.tolist() == [5, 3]  # a missing feature is an empty text
    page = (version.parent / "README.md").read_text()
    assert '"examples": [{"text": "a", "text_pair": ""}]' in page
    assert '{"predictions": [1.0]}' in page and '{"results": [1.0]}' in page


def test_tables_are_tracked(ex, tf, tmp_path):
    def table():
        words = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2]))
        return tf.lookup.StaticHashTable(words, 0)

    module = tf.Module()
    module.table = table()
    version = ex.export(
        [ex.text_signature(lambda text: {"id": module.table.lookup(text)})],
        variables=[],
        trackables=[module],
        name="ids",
        samples={"serving_default": {"text": ["a", "?"]}},
        directory=tmp_path,
    )
    with Process(version) as process:
        found = process.run("serving_default", {"text": ["b", "c"]})["id"]
    assert found.tolist() == [2, 0]


def test_misuse_is_told(ex, tf, tiny, tmp_path):
    with pytest.raises(ValueError, match=r"variables.*or.*trackables"):
        export_tiny(ex, tiny, tmp_path, variables=[])
    with pytest.raises(ValueError, match="needs samples for text"):
        export_tiny(ex, tiny, tmp_path, samples={})
    with pytest.raises(ValueError, match="no output proba"):
        expected = {"serving_default": {"proba": [1]}}
        export_tiny(ex, tiny, tmp_path, expected=expected)
    with pytest.raises(UserError, match="no name for a model"):
        export_tiny(ex, tiny, tmp_path, name="../up")
    scalar = ex.Signature("s", lambda x: {"y": x}, {"x": tf.TensorSpec([], tf.float32)})
    with pytest.raises(ValueError, match=r"'x' is not \[N, …\]"):
        ex.export([scalar], variables=[], name="s", samples={}, directory=tmp_path)
    mean = ex.text_signature(lambda text: {"n": tf.size(text)})
    with pytest.raises(ValueError, match="'n' is a scalar"):
        ex.export([mean], variables=[], name="s", samples={}, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
