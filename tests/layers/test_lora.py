"""Low-rank adapters."""

import keras
import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.layers.lora import add_adapters, merged
from tfllm.models.classifier import ClassifierConfig, build_classifier
from tfllm.models.encoder import EncoderConfig
from tfllm.models.weights import set_weights, weights_of

SHAPE = EncoderConfig(40, 8, 2, 2, 16, max_length=16, num_segments=0).to_dict()
IDS = np.random.default_rng(0).integers(1, 40, (3, 7)).astype("int32")
BATCH = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}


def make(lora=None):
    keras.utils.set_random_seed(4)
    options = {"encoder": SHAPE, "lora": lora, "pooling": "cls"}
    config = ClassifierConfig("encoder", 40, 3, **options)
    return build_classifier(config)


def adapters(**options):
    return {"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": ["*"]} | options


def logits(model, training=False):
    return keras.ops.convert_to_numpy(model(BATCH, training=training))


def test_the_model_starts_as_it_was_and_only_adapters_and_head_are_trained():
    plain, adapted = make(), make(adapters())
    known = weights_of(plain)
    fresh = {p: w for p, w in weights_of(adapted).items() if p not in known}
    assert {path.rpartition("/")[2] for path in fresh} == {"lora_a", "lora_b"}
    assert len(fresh) == 2 * 2 * 6
    set_weights(adapted, known | fresh)
    np.testing.assert_array_equal(logits(plain), logits(adapted))
    trained = {v.path for v in adapted.trainable_variables}
    assert trained == set(fresh) | {
        f"{layer}/{name}"
        for layer in ("pooler", "logits")
        for name in ("kernel", "bias")
    }


def test_merged_weights_give_the_same_answer():
    adapted, plain = make(adapters()), make()
    random = np.random.default_rng(1)
    for variable in adapted.weights:
        if variable.path.endswith("lora_b"):
            variable.assign(random.normal(size=variable.shape))
    values = weights_of(adapted)
    assert np.abs(logits(plain) - logits(adapted)).max() > 1e-3
    set_weights(plain, merged(values, 6.0 / 2))
    np.testing.assert_allclose(logits(plain), logits(adapted), atol=1e-5)


def test_dropout_is_before_the_adapters_and_in_training_alone():
    config = adapters(dropout=0.5)
    adapted = make(config)
    for variable in adapted.weights:
        if variable.path.endswith("lora_b"):
            variable.assign(keras.ops.ones(variable.shape))
    keras.utils.set_random_seed(0)
    np.testing.assert_array_equal(logits(adapted), logits(adapted))
    assert np.abs(logits(adapted, True) - logits(adapted, True)).max() > 1e-4


def test_targets_are_names_of_layers():
    model = make(adapters(targets=["query", "val*"]))
    names = {v.path.split("/")[-2] for v in model.weights if "lora" in v.path}
    assert names == {"query", "value"}
    with pytest.raises(UserError, match=r"matches no layer.*query"):
        add_adapters(make(), 2, targets=["qurey"])
