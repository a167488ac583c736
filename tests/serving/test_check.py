"""Broken exports are refused, each with a line that says why."""

import json
import shutil
import subprocess
import sys

import pytest

from tfllm.serving import check


@pytest.fixture
def copy(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "tiny" / "1")
    return tmp_path / "tiny" / "1"


def problems(directory, **options):
    return " | ".join(check.check(directory, timing_seconds=0.01, **options).problems)


def change_record(directory, change):
    path = directory / check.RECORD
    record = json.loads(path.read_text())
    change(record["samples"]["serving_default"]["outputs"], record)
    path.write_text(json.dumps(record))


def save(tf, function, directory, variables=()):
    module = tf.Module()
    module.variables_ = list(variables)
    spec = tf.TensorSpec([None], tf.string, name="text")
    tf.saved_model.save(
        module, directory, tf.function(function, input_signature=[spec])
    )


def test_a_sound_export(exported, capsys):
    assert check.main([str(exported.parent)]) == 0
    printed = capsys.readouterr().out
    assert "sound: it can be served" in printed and "rows per second" in printed
    figures = check.check(exported, timing_seconds=0.01).figures
    assert 1 <= figures["weights_to_parameters"] < 1.02
    measured = {(row["signature"], row["rows"]) for row in figures["latency"]}
    assert measured == {
        (s, n) for s in ("classify", "serving_default") for n in (1, 32)
    }
    assert all(0 < row["p50_ms"] <= row["p95_ms"] < 1000 for row in figures["latency"])


def test_the_command_does_not_import_tensorflow(exported, root):
    code = (
        "import sys; from tfllm.serving import check;"
        f"status = check.main([{str(exported)!r}]);"
        "assert not {'tensorflow', 'keras'} & set(sys.modules); sys.exit(status)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_nothing_there(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 2
    assert "no saved_model.pb" in capsys.readouterr().out
    (tmp_path / "saved_model.pb").write_bytes(b"no protocol buffer")
    assert "broken" in problems(tmp_path)


def test_wrong_answers(copy):
    def change(outputs, record):
        outputs["label"][1] = "mistaken"
        outputs["score"][2] += 0.01

    change_record(copy, change)
    assert "label is not what was recorded" in (found := problems(copy))
    assert "instead of 'mistaken' in row 1 (1 of 6 rows differ)" in found
    assert "score is not what was recorded" in found


def test_the_order_of_equal_classes_is_free(copy):
    def change(outputs, record):
        outputs["labels"] = [row[::-1] for row in outputs["labels"]]
        outputs["scores"] = [row[::-1] for row in outputs["scores"]]

    change_record(copy, change)
    assert not problems(copy)

    def names_only(outputs, record):
        outputs["labels"] = [row[::-1] for row in outputs["labels"]]

    change_record(copy, names_only)
    assert "scores is not what was recorded" in problems(copy)


def test_records_that_do_not_fit(copy):
    change_record(copy, lambda outputs, record: outputs.update(extra=[1]))
    assert "output 'extra' was recorded and is gone" in problems(copy)
    change_record(copy, lambda outputs, record: record["samples"].pop("classify"))
    assert "classify: no recorded sample" in problems(copy)
    (copy / check.RECORD).write_text("{}")
    assert "is broken" in problems(copy)


def test_missing_variables(copy):
    data = copy / "variables/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    assert "does not load" in problems(copy)
    shutil.rmtree(copy / "variables")
    assert "variables/ is missing, and 3 variables need it" in problems(copy)


def test_an_op_that_the_server_lacks(copy):
    path = copy / "saved_model.pb"
    path.write_bytes(path.read_bytes().replace(b"BiasAdd", b"BiasAdx"))
    assert "TensorFlow Serving 2.20 has no op BiasAdx" in problems(copy)


def test_weights_stored_twice(copy):
    def change(outputs, record):
        record["parameter_bytes"] //= 2

    change_record(copy, change)
    assert "weights are stored 2.0 times" in problems(copy)


def test_keras_models_in_a_saved_model(tf, tiny, tmp_path):
    tf.saved_model.save(tiny.model, tmp_path / "1")
    assert "Could not find variable" in problems(tmp_path)


def test_python_in_the_graph(tf, tmp_path):
    save(
        tf,
        lambda text: {"y": tf.numpy_function(lambda t: t, [text], tf.string)},
        tmp_path,
    )
    assert "calls back into Python" in (found := problems(tmp_path))
    assert "PyFunc" in found


def test_xla_in_the_graph(tf, tmp_path):
    import keras

    def slices(text):
        lengths = tf.cast(tf.strings.length(text), tf.float32)
        start = tf.minimum(tf.size(text), 0)
        return {"y": keras.ops.slice_update(lengths, (start,), lengths[:1] * 2)}

    save(tf, slices, tmp_path / "op")
    assert "needs XLA" in (found := problems(tmp_path / "op"))
    assert "XlaDynamicUpdateSlice (1×)" in found
    compiled = tf.function(lambda x: tf.nn.relu(x) * 2, jit_compile=True)
    save(
        tf,
        lambda text: {"y": compiled(tf.cast(tf.strings.length(text), tf.float32))},
        tmp_path / "jit",
    )
    assert "jit_compile=True" in problems(tmp_path / "jit")
    report = check.check(tmp_path / "jit", allow_xla=True, timing_seconds=0.01)
    assert report.sound and any("needs XLA" in w for w in report.warnings)


def test_rows_that_lean_on_each_other(tf, tmp_path):
    save(
        tf,
        lambda text: {"share": tf.strings.length(text) / tf.reduce_max(
            tf.strings.length(text))},
        tmp_path / "max",
    )  # fmt: skip
    found = problems(tmp_path / "max")
    assert "odd texts in the same batch change share" in found
    assert "empty as input gives NaN in share" in found
    save(tf, lambda text: {"all": tf.strings.length(text)[:1]}, tmp_path / "one")
    assert "all has shape (1,) for 2 rows" in problems(tmp_path / "one")
    save(
        tf,
        lambda text: {"place": tf.range(tf.size(text)) + tf.strings.length(text)},
        tmp_path / "place",
    )
    assert "row 1 alone changes place" in problems(tmp_path / "place")


def test_scalar_inputs(tf, tmp_path):
    spec = tf.TensorSpec([], tf.string, name="text")
    function = tf.function(lambda text: {"y": text[None]}, input_signature=[spec])
    tf.saved_model.save(tf.Module(), tmp_path, function)
    assert "serving_default: text is not [N, …]" in problems(tmp_path)


def test_refusals_are_warnings(tf, tmp_path):
    def strict(text):
        points = tf.strings.unicode_decode(text, "UTF-8", errors="strict")
        return {"n": points.row_lengths(), "points": points.to_tensor()}

    save(tf, strict, tmp_path)
    report = check.check(tmp_path, timing_seconds=0.01)
    assert report.sound  # `points` is padded to the longest row: not a difference
    refusal = "refuses invalid UTF-8 as input (INVALID_ARGUMENT)"
    assert any(refusal in warning for warning in report.warnings)


def test_odd_numbers(tf, tmp_path):
    function = tf.function(
        lambda text, n, x: {
            "root": tf.sqrt(x),
            "tail": tf.repeat(text[:, None], tf.minimum(tf.reduce_max(n), 3), axis=1),
        }
    )
    concrete = function.get_concrete_function(
        text=tf.TensorSpec([None], tf.string),
        n=tf.TensorSpec([None], tf.int32),
        x=tf.TensorSpec([None], tf.float32),
    )
    tf.saved_model.save(tf.Module(), tmp_path, signatures=concrete)
    report = check.check(tmp_path, timing_seconds=0.01)
    assert "serving_default: x = -1.0 gives NaN in root" in report.problems
    assert any("refuses n = -1 (" in warning for warning in report.warnings)


def test_a_stuck_graph(tf, tmp_path):
    def forever(text):
        long = tf.strings.length(text) > 1000
        n = tf.while_loop(lambda i: tf.reduce_any(long), lambda i: i + 1, [0])[0]
        return {"n": tf.zeros_like(long, tf.int32) + n}

    save(tf, forever, tmp_path)
    found = problems(tmp_path, timeout=5)
    assert "PROCESS_ENDED: 100,000 letters as input: no answer in 5 s" in found


def test_server_ops_are_the_ones_given(shared):
    path = shared.parent / "serving" / "tf_serving_2_20_ops.json"
    given = json.loads(path.read_text())
    core, text = check._server_ops()
    assert core == set(given["tf_2.20_core_ops"])
    assert text == set(given["tf_text_ops_in_serving"])
