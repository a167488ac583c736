"""Builders of taggers, and the vectors of pairs of tokens."""

import numpy as np
import pytest

from tests.layer_checks import check_layer
from tfllm.core.errors import UserError
from tfllm.evaluation.spans import tag_names
from tfllm.layers.ngrams import NgramEmbedding
from tfllm.models.tagger import TaggerConfig, build_tagger, training_defaults

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], "int32")
IDS = np.array([[5, 6, 7, 6], [6, 7, 0, 0]], "int32")
PLACES = np.array([[0, 2, 3, -1], [1, -1, -1, -1]], "int32")
BATCH = {"token_ids": IDS, "padding_mask": MASK, "places": PLACES}


def test_vectors_of_pairs_stand_at_both_of_their_tokens():
    layer = NgramEmbedding((2,), 64, 3, name="pairs")
    check_layer(layer, {"token_ids": IDS, "padding_mask": MASK})
    layer.embeddings.assign(np.random.default_rng(0).normal(size=(64, 3)))
    found = np.array(layer(IDS, MASK))
    ends, begins = found[..., :3], found[..., 3:]
    np.testing.assert_array_equal(begins[0, :3], ends[0, 1:])
    np.testing.assert_array_equal(ends[0, 2], ends[1, 1])  # 6 and 7 in both
    assert not begins[0, 3].any() and not begins[1, 1].any()


def test_a_pair_is_left_out_as_a_whole():
    layer = NgramEmbedding((2,), 64, 3, dropout=0.5)
    layer.build(IDS.shape)
    assert not np.any(layer.embeddings)  # what was never seen says nothing
    layer.embeddings.assign(np.ones((64, 3)))
    found = layer(np.tile(IDS[:1], (50, 1)), np.ones((50, 4)), training=True)
    ends, begins = np.split(np.array(found), 2, axis=-1)
    assert set(np.unique(ends.sum(-1))) == {0.0, 6.0}  # gone, or scaled up
    np.testing.assert_array_equal(begins[:, :3], ends[:, 1:])


@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_taggers_tag_words_and_texts(architecture):
    tags = tag_names(["A", "B"], "bioes")
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_layers": 1, "num_heads": 2}
    sizes |= {"ngram_buckets": 32, "ngrams": 2, "intermediate_size": 32}
    config = TaggerConfig(architecture, 20, 3, tags=tags, **sizes)
    assert TaggerConfig(**config.to_dict()) == config
    model = build_tagger(config, "float32")
    found = model.predict_on_batch(BATCH)
    assert found["emissions"].shape == (2, 4, 9) and found["intent"].shape == (2, 3)
    assert not found["tags"][PLACES < 0].any()
    # Only the words' own tokens are tagged, and other rows do not matter.
    alone = {name: array[1:, :2] for name, array in BATCH.items()}
    again = model.predict_on_batch(alone)
    np.testing.assert_allclose(
        again["emissions"][0, 0], found["emissions"][1, 0], atol=1e-5
    )
    low = build_tagger(config, "mixed_bfloat16")(BATCH)
    assert all(
        str(low[name].dtype).count("float32") for name in ("emissions", "intent")
    )


def test_defaults_and_errors():
    chinese, english = (training_defaults("lstm", one) for one in ("zh", "en"))
    assert chinese["tokenizer"] == "characters" and chinese["ngrams"] == 2
    assert english["tokenizer"] == "wordpiece"
    assert training_defaults("encoder", "en", lora=True)["learning_rate"] == 1e-3
    with pytest.raises(UserError, match=r"unknown model 'lstn'.*lstm"):
        TaggerConfig("lstn", 20, 0)
