"""A tiny classifier, exported in ways good and bad."""

from types import SimpleNamespace

import pytest

LONG = "a label that no small string holds ❤"
TEXTS = ["hello", "你好 world", "", "a" * 50, "good film", "坏电影"]


@pytest.fixture(scope="session")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="session")
def tiny(tf):
    """A functional Keras model over code points, and its answer to texts."""
    import keras

    keras.utils.set_random_seed(1)
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    x = keras.layers.Embedding(997, 64, embeddings_initializer="uniform")(ids)
    real = keras.ops.cast(mask, "float32")[:, :, None]
    x = keras.ops.sum(x * real, 1) / (keras.ops.sum(real, 1) + 1)
    model = keras.Model([ids, mask], keras.layers.Dense(3)(x))
    names = ["bad", "good", LONG]

    def answer(text, text_pair=None):
        joined = text if text_pair is None else text + " " + text_pair
        points = tf.strings.unicode_decode(joined, "UTF-8")[:, :128] % 997
        mask = tf.ones_like(points).to_tensor()
        scores = tf.nn.softmax(20 * model([points.to_tensor(), mask]))
        labels = tf.constant(names)
        return {
            "label": tf.gather(labels, tf.argmax(scores, -1)),
            "score": tf.reduce_max(scores, -1),
            "labels": tf.tile(labels[None], [tf.shape(text)[0], 1]),
            "scores": scores,
        }

    return SimpleNamespace(model=model, names=names, answer=answer)


@pytest.fixture(scope="session")
def echo(tf, tmp_path_factory):
    """A SavedModel that returns its inputs of every type."""
    spec = {
        "text": tf.TensorSpec([None], tf.string),
        "i": tf.TensorSpec([None], tf.int32),
        "j": tf.TensorSpec([None], tf.int64),
        "x": tf.TensorSpec([None, 2], tf.float32),
        "flag": tf.TensorSpec([None], tf.bool),
    }
    function = tf.function(
        lambda text, i, j, x, flag: {
            "length": tf.strings.length(text),
            "same_bytes": text,
            "same": tf.identity(text),
            "twice": tf.stack([text, text], axis=1),
            "i": -i,
            "j": j * 2,
            "x": x / 2,
            "flag": tf.logical_not(flag),
        }
    )
    module = tf.Module()
    module.weight = tf.Variable([1.0, 2.0])
    directory = tmp_path_factory.mktemp("echo")
    signature = function.get_concrete_function(**spec)
    second = tf.function(lambda x: {"y": x @ module.weight[:, None]})
    tf.saved_model.save(
        module,
        directory / "3",
        signatures={
            "serving_default": signature,
            "product": second.get_concrete_function(spec["x"]),
        },
    )
    return directory


@pytest.fixture(scope="session")
def exported(tiny, tmp_path_factory):
    """`saved_models/tiny/1` with the signatures of a classifier."""
    from tfllm.serving import export

    return export.export(
        [export.text_signature(tiny.answer), export.classify_signature(tiny.answer)],
        variables=tiny.model.variables,
        name="tiny",
        samples={"serving_default": {"text": TEXTS}},
        directory=tmp_path_factory.mktemp("exported") / "saved_models",
        about={"task": "classification", "labels": tiny.names, "accuracy": 0.9},
    )
