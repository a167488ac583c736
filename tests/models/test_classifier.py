import gzip

import keras
import numpy as np
import pytest
from keras import ops

from tfllm.core.errors import UserError
from tfllm.models.classifier import (
    ClassifierConfig,
    build_classifier,
    set_word_vectors,
    training_defaults,
)
from tfllm.models.encoder import EncoderConfig, encoder
from tfllm.models.span_reader import ReaderConfig, build_span_reader
from tfllm.models.tagger import TaggerConfig, build_tagger
from tfllm.models.word_vectors import read_word_vectors, word_vectors

ARCHITECTURES = ("fasttext", "textcnn", "lstm", "transformer")
RNG = np.random.default_rng(0)


def small(architecture, **options):
    sizes = {"hidden_size": 16, "embedding_size": 16, "num_layers": 2, "num_heads": 2}
    sizes |= {"intermediate_size": 32, "filters": 8, "ngram_buckets": 512}
    return ClassifierConfig(architecture, 60, 3, max_length=16, **sizes | options)


def batch(rows=4, length=7, segments=False):
    mask = (np.arange(length) < RNG.integers(2, length + 1, (rows, 1))).astype("int32")
    ids = RNG.integers(1, 60, (rows, length)).astype("int32") * mask
    arrays = {"token_ids": ids, "padding_mask": mask}
    if segments:
        arrays["segment_ids"] = mask * (np.arange(length) > 1).astype("int32")
    return arrays


def run(model, arrays):
    return ops.convert_to_numpy(model(arrays))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_never_changes_the_answer(architecture, pairs):
    model = build_classifier(small(architecture, pairs=pairs))
    arrays = batch(segments=pairs)
    logits = run(model, arrays)
    assert logits.shape == (4, 3)
    assert logits.std() > 0
    longer = {k: np.pad(v, ((0, 2), (0, 5))) for k, v in arrays.items()}
    longer["token_ids"][:, 7:] = 9  # what stands at padding does not count either
    padded = run(model, longer)
    assert np.isfinite(padded).all(), "a row of padding alone"
    np.testing.assert_allclose(padded[:4], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_paths_are_unique_and_stay(architecture):
    first, second = (build_classifier(small(architecture)) for _ in range(2))
    paths = [v.path for v in first.variables]
    assert paths == [v.path for v in second.variables]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_float32_under_mixed_precision(architecture, policy):
    exact = build_classifier(small(architecture))
    mixed = build_classifier(small(architecture), dtype=policy)
    assert keras.config.dtype_policy().name == "float32"
    mixed.set_weights(exact.get_weights())
    arrays = batch(2)
    arrays = {k: np.pad(v, ((0, 1), (0, 2))) for k, v in arrays.items()}
    logits = mixed(arrays)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    np.testing.assert_allclose(run(mixed, arrays), run(exact, arrays), atol=0.05)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_learns_an_order_or_a_word(architecture):
    keras.utils.set_random_seed(1)
    config = small(architecture, dropout=0.0, token_dropout=0.0, num_layers=1)
    model = build_classifier(config)
    arrays = batch(96, 8)
    labels = (arrays["token_ids"] > 45).sum(1).clip(0, 2)
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(arrays, labels, epochs=25, batch_size=32, verbose=0)
    assert history.history["accuracy"][-1] > 0.85


def test_config():
    config = ClassifierConfig("textcnn", 100, 2, dropout=0.2)
    assert config.dropout == 0.2
    assert config.widths == (2, 3, 4)
    assert ClassifierConfig(**config.to_dict()) == config
    with pytest.raises(UserError, match="Did you mean 'textcnn'"):
        ClassifierConfig("textcn", 100, 2)
    for architecture in ARCHITECTURES:
        assert training_defaults(architecture, "zh")["learning_rate"] > 0
    regularized = build_classifier(small("textcnn", l2=0.1))
    run(regularized, batch())
    assert sum(float(loss) for loss in regularized.losses) > 0


@pytest.mark.parametrize(
    ("kind", "hidden_size", "heads"),
    [
        *(
            (ClassifierConfig, size, heads)
            for size, heads in ((36, 4), (30, 3), (53, 1))
        ),
        *((TaggerConfig, size, heads) for size, heads in ((36, 3), (300, 3), (50, 1))),
        *((ReaderConfig, size, heads) for size, heads in ((128, 4), (36, 3), (20, 2))),
    ],
)
def test_heads_suit_the_hidden_size(kind, hidden_size, heads):
    shape = {"hidden_size": hidden_size, "num_layers": 1, "intermediate_size": 8}
    more = {"tags": ["O", "B-x"]} if kind is TaggerConfig else {}
    config = kind("transformer", 60, 2, **shape, **more)
    assert config.num_heads == heads
    assert kind(**config.to_dict()) == config
    builders = build_classifier, build_tagger, build_span_reader
    kinds = ClassifierConfig, TaggerConfig, ReaderConfig
    builders[kinds.index(kind)](config)


def test_heads_that_do_not_suit_are_refused():
    with pytest.raises(UserError, match=r"--num_heads 4 .* size of 50. Use 2, or"):
        ClassifierConfig("transformer", 60, 2, hidden_size=50, num_heads=4)
    with pytest.raises(UserError, match=r"--num_heads 4 .* even size. Use 3, or"):
        TaggerConfig("transformer", 60, 2, hidden_size=36, num_heads=4)
    with pytest.raises(UserError, match="size of 53 is odd"):
        ReaderConfig("transformer", 60, 2, hidden_size=53)
    assert ClassifierConfig("lstm", 60, 2, hidden_size=53, num_heads=4).num_heads == 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "sinusoidal", "norm_first": True, "num_segments": 0},
        {"position": "rotary", "norm": "rms_norm", "num_kv_heads": 1},
        {"position_offset": 2, "embedding_size": 8, "share_layers": True},
        {"position": None, "pooler": False, "embedding_norm": False},
    ],
)
def test_encoder(options):
    config = EncoderConfig(60, 16, 3, 2, 32, max_length=16, **options)
    assert EncoderConfig(**config.to_dict()) == config
    model = encoder(config)
    arrays = batch(segments=config.num_segments > 0)
    output = model(arrays)
    assert output["hidden"].shape == (4, 7, 16)
    assert ("pooled" in output) == config.pooler
    paths = [v.path for v in model.variables]
    assert len(set(paths)) == len(paths)
    blocks = {path.split("/")[0] for path in paths if path.startswith("block_")}
    assert len(blocks) == (1 if config.share_layers else 3)
    mask = arrays["padding_mask"].astype(bool)
    longer = {k: np.pad(v, ((0, 1), (0, 5))) for k, v in arrays.items()}
    padded = ops.convert_to_numpy(model(longer)["hidden"])[:4, :7]
    np.testing.assert_allclose(
        padded[mask], ops.convert_to_numpy(output["hidden"])[mask], atol=1e-5
    )


def test_packed_encoder_equals_single_rows():
    config = EncoderConfig(60, 16, 2, 2, 32, max_length=16, num_segments=0)
    single, packed = encoder(config), encoder(config, packed=True)
    packed.set_weights(single.get_weights())
    ids = RNG.integers(1, 60, (1, 9)).astype("int32")
    ones = np.ones_like(ids)
    row = {"token_ids": ids, "padding_mask": ones}
    row["sequence_ids"] = np.array([[0] * 4 + [1] * 5], "int32")
    row["positions"] = np.array([[*range(4), *range(5)]], "int32")
    together = ops.convert_to_numpy(packed(row)["hidden"])
    for part in (slice(0, 4), slice(4, 9)):
        alone = {"token_ids": ids[:, part], "padding_mask": ones[:, part]}
        alone = ops.convert_to_numpy(single(alone)["hidden"])
        np.testing.assert_allclose(together[:, part], alone, atol=1e-5)


def test_an_encoder_and_its_classifier_share_paths():
    model = build_classifier(small("transformer", pairs=True))
    config = EncoderConfig(60, 16, 2, 2, 32, max_length=16, embedding_norm=False)
    paths = {v.path for v in model.trainable_variables}
    config.norm_first, config.pooler = True, False
    assert {v.path for v in encoder(config).trainable_variables} < paths


def test_word_vectors(tmp_path):
    text = "3 2\n中国 1 2\nthe 3.5 -1\nother 0 0\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "b.gz", "wt", encoding="utf-8") as file:
        file.write(text.split("\n", 1)[1])
    for name in ("a.txt", "b.gz"):
        matrix = read_word_vectors(tmp_path / name, ["[PAD]", "the", "中国"])
        np.testing.assert_array_equal(matrix[1:], [[3.5, -1], [1, 2]])
        assert np.isnan(matrix[0]).all()

    model = build_classifier(ClassifierConfig("lstm", 3, 2, embedding_size=2))
    set_word_vectors(model, matrix)
    table = ops.convert_to_numpy(model.get_layer("token_embedding").embeddings)
    np.testing.assert_array_equal(table[1:], matrix[1:])
    assert np.isfinite(table[0]).all()

    with pytest.raises(UserError, match="none of the vocabulary"):
        read_word_vectors(tmp_path / "a.txt", ["x"])
    (tmp_path / "bad.txt").write_text("a 1 2\nb 1\n")
    for content in (
        "\ufeffthe 1 2\n\nnew york 3 4\n\n",
        "2 2\nthe  1 2\nnew york\t3\t4\n",
    ):
        (tmp_path / "odd.txt").write_text(content)
        found = dict(word_vectors(tmp_path / "odd.txt"))
        assert found["the"].tolist() == [1, 2] and found["new york"].tolist() == [3, 4]
    for content, words in (("a 1 2\nb 1 inf\n", "odd.txt:2"), ("2 5\na 1 2", "5 num")):
        (tmp_path / "odd.txt").write_text(content)
        with pytest.raises(UserError, match=words):
            dict(word_vectors(tmp_path / "odd.txt"))
    with pytest.raises(UserError, match=r"bad.txt:2.*2 numbers"):
        read_word_vectors(tmp_path / "bad.txt", ["b"])
    with pytest.raises(UserError, match="embedding_size to 5"):
        set_word_vectors(model, np.zeros((3, 5)))
    with pytest.raises(UserError, match="no token embedding"):
        set_word_vectors(build_classifier(small("fasttext")), matrix)
