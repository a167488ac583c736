"""Losses by definition, what counts as another text, and published cosines."""

import json

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.data.readers import Records
from tfllm.data.similar import SimilarColumns, read_similar, settle
from tfllm.models.embedder import EmbedderConfig, scratch_encoder
from tfllm.tasks.embeddings import Embeddings, open_embedder
from tfllm.text import Tokenizer

ROWS = [
    {"text": "a red cat", "text_pair": "the cat is red", "negatives": ["a red car"]},
    {"text": "a red cat", "text_pair": "cats can be red"},
    {"text": "blue sea", "text_pair": "the sea is blue", "negatives": ["blue", "see"]},
    {"text": "old house", "text_pair": "the cat is red"},
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for row in ROWS for text in (row["text"], row["text_pair"])]
    return Tokenizer.train(texts, "words", 50)


def task_of(tokenizer, **options):
    shape = scratch_encoder("bag", tokenizer.vocabulary_size, 8, hidden_size=6)
    return Embeddings(tokenizer, EmbedderConfig(shape.to_dict()), 8, **options)


def batch_of(columns, rows=5):
    plan = BatchPlan(columns.lengths, batch_size=rows, max_length=8, shuffle=False)
    (micro,) = plan.step(0)
    return columns.gather(micro._replace(num_rows=rows))


def log_sum(scores):
    return np.log(np.sum(np.exp(scores)))


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_ranking_loss_is_that_of_the_definition(tokenizer, symmetric):
    task = task_of(tokenizer, symmetric=symmetric, temperature=0.2)
    columns = task.columns(ROWS, "pairs", negatives=2)
    batch = batch_of(columns)
    assert batch["places"].shape == (5, 4)
    vectors = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second, *unlike = vectors.reshape(4, 5, 6)
    texts = [[columns.texts[i] if i >= 0 else None for i in r] for r in batch["places"]]
    total = 0.0
    for i in range(4):
        own = first[i] @ second[i] / 0.2
        scores, back = [own], [own]
        for j in range(4):
            if set(texts[i][:2]).isdisjoint(texts[j][:2]):
                scores.append(first[i] @ second[j] / 0.2)
                back.append(second[i] @ first[j] / 0.2)
            for slot, part in enumerate(unlike):
                if texts[j][2 + slot] not in (None, *texts[i][:2]):
                    scores.append(first[i] @ part[j] / 0.2)
        loss = log_sum(scores) - own
        total += (loss + log_sum(back) - own) / 2 if symmetric else loss
    sums = task.loss_sums(vectors, batch)
    assert float(sums["loss"]) == pytest.approx(total, rel=1e-5)
    assert float(task.loss_counts(batch)["loss"]) == 4


def test_triplet_and_cosine_losses(tokenizer):
    lines = ("red", "blue", 1.0), ("cat", "sea", 4.0), ("the", "is", 5.0)
    rows = [{"text": a, "text_pair": b, "label": x} for a, b, x in lines]
    vectors = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors[:3] @ vectors[3:].T
    task = task_of(tokenizer, loss="cosine", low=1.0, high=5.0)
    batch = batch_of(task.columns(rows, "scores"), 3)
    expected = np.sum((np.diag(cosines) - [0, 0.75, 1]) ** 2)
    assert float(task.loss_sums(vectors, batch)["loss"]) == pytest.approx(expected)
    task = task_of(tokenizer, loss="triplet", margin=0.4)
    batch = batch_of(task.columns(rows, "pairs"), 3)
    hardest = np.where(np.eye(3), -2, cosines).max(1)
    expected = np.maximum(0, 0.4 + hardest - np.diag(cosines)).sum()
    assert float(task.loss_sums(vectors, batch)["loss"]) == pytest.approx(expected)
    hits, count = task.metric_sums(vectors, batch)["accuracy"]
    assert float(hits) == np.sum(np.diag(cosines) > hardest) and float(count) == 3


def test_texts_of_one_label_are_no_negatives(tokenizer):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(6)]
    task = task_of(tokenizer)
    columns = task.columns([*rows, {"text": "alone", "label": "c"}], "labels")
    assert len(columns) == 6  # the last one has no partner
    names = {f"t{i}": "ab"[i % 2] for i in range(6)}
    for first, second in columns.places:
        a, b = columns.texts[first], columns.texts[second]
        assert a != b and names[a] == names[b]
    assert sorted(columns.places[:, 0]) == sorted(columns.places[:, 1])
    vectors = np.tile(np.eye(6, dtype=np.float32)[:1], (12, 1))  # all the same
    losses = task.loss_sums(vectors, batch_of(columns, 6))["loss"]
    assert float(losses) / 6 == pytest.approx(np.log(4))  # itself and the other three
    more = [{"text": f"t{i}", "label": "a"} for i in range(20)]
    again = task.columns(more, "labels", copies=3, seed=1)
    assert len(again) == 60 and len(np.unique(again.places, axis=0)) > 50
    assert columns.relevant[0] == {2, 4}


def test_what_the_rows_are_is_told(tmp_path):
    def kind(lines, **options):
        (tmp_path / "x.tsv").write_text(lines)
        records = read_similar([str(tmp_path / "x.tsv")])
        kind, splits = settle({"train": records}, **options)
        return kind, splits["train"].rows

    found, rows = kind("text\ttext_pair\tlabel\na b\tc d\t1\na b\te f\t0\ng\th\t1\n")
    assert found == "pairs" and [row.get("text_pair") for row in rows] == [
        *("c d", None, "h")
    ]
    assert rows[1]["negatives"] == ["e f"]
    assert kind("sentence1\tsentence2\tscore\na\tb\t1.5\nc\td\t3.2\n")[0] == "scores"
    assert kind("text\tlabel\na\tx\nb\tx\n")[0] == "labels"
    head = "anchor\tpositive\tnegative_1\tnegative_2\n"
    found, rows = kind(head + "a\tb\tc\td\n")
    assert found == "pairs" and rows[0]["negatives"] == ["c", "d"]
    lines = "".join(f"question {i}\tanswer number {i}\n" for i in range(30))
    found, rows = kind(lines)
    assert found == "pairs" and rows[3]["text_pair"] == "answer number 3"
    for lines, options, words in (
        ("text\na\nb\n", {}, "neither a second text nor a label"),
        ("text\ttext_pair\tlabel\na\tb\tno\nc\td\tnot\n", {}, "no pair belongs"),
        ("text\tlabel\na\tx\nb\tx\n", {"kind": "scores"}, "no label and text_pair"),
    ):
        with pytest.raises(UserError, match=words):
            kind(lines, **options)


def test_a_text_is_neither_its_own_partner_nor_of_one_label_alone(tokenizer):
    rows = [("a", "x"), ("a", "x"), ("b", "x"), ("a", "y"), ("c", "y")]
    rows = [{"text": text, "label": label} for text, label in rows]
    columns = task_of(tokenizer).columns(rows, "labels")
    assert (columns.places[:, 0] != columns.places[:, 1]).all()
    texts = columns.texts
    found = {texts[k]: {texts[i] for i in v} for k, v in columns.relevant.items()}
    assert found == {"a": {"b", "c"}, "b": {"a"}, "c": {"a"}}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["1", "2", "3"], "but not 0 and 1"),
        (["0.5", "0.1", None], "x.tsv:3: 1 of 3 pairs have no label"),
    ],
)
def test_labels_of_pairs_that_say_neither_yes_nor_score(labels, words):
    rows = [
        {"text": f"t{i}", "text_pair": f"p{i}", "file": "x.tsv", "line": i + 1}
        | ({"label": label} if label else {})
        for i, label in enumerate(labels)
    ]
    with pytest.raises(UserError, match=words):
        settle({"train": Records(rows)})


def test_pairs_that_teach_nothing_are_told(capsys):
    rows = [("a", "b", "1"), ("a", "c", "0"), ("d", "e", "0")]
    rows = [{"text": a, "text_pair": b, "label": x} for a, b, x in rows]
    settle({"train": Records(rows)})
    assert "1 of 3 training rows teach nothing" in capsys.readouterr().out


def test_negatives_of_an_anchor_are_those_of_all_its_rows(tokenizer):
    columns = SimilarColumns(ROWS, "pairs", task_of(tokenizer).encode, negatives=1)
    texts = [[columns.texts[i] for i in row if i >= 0] for row in columns.places]
    assert texts[0] == ["a red cat", "the cat is red", "a red car"]
    assert texts[1] == ["a red cat", "cats can be red", "a red car"]
    assert len(texts[3]) == 2
    found = {columns.texts[i] for i in columns.relevant[0]}
    assert (
        found == {"the cat is red", "cats can be red"} and len(columns.documents) == 6
    )


def test_heads_suit_the_hidden_size(tokenizer):
    for size, heads in ((128, 4), (36, 3), (50, 1)):
        shape = scratch_encoder("transformer", 60, 8, hidden_size=size, num_heads=None)
        assert shape.num_heads == heads
        task = Embeddings(tokenizer, EmbedderConfig(shape.to_dict()), 8)
        assert task.build_model().output_shape == (None, size)
    with pytest.raises(UserError, match=r"--num_heads 4 .* Use 3, or leave it out"):
        scratch_encoder("transformer", 60, 8, hidden_size=36, num_heads=4)
    with pytest.raises(UserError, match="odd"):
        scratch_encoder("transformer", 60, 8, hidden_size=35)
    assert scratch_encoder("bag", 60, 8, hidden_size=35).num_heads == 1


def test_a_text_without_tokens_gives_zeros(tokenizer):
    task = task_of(tokenizer)
    vectors = task.embed(task.build_model(), ["the red sea", ""])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0], abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_records_are_read_back_from_their_config(tokenizer, pooling):
    task = task_of(tokenizer, loss="triplet")
    task.model.pooling = pooling
    again = Embeddings.from_config(json.loads(json.dumps(task.to_config())), tokenizer)
    assert again == task
    assert task.build_model().output_shape == (None, 6)


def test_published_cosines(shared, tmp_path):
    """Of all-MiniLM-L6-v2, in Python and from the export through TensorFlow's C API."""
    try:
        task, model = open_embedder("minilm-l6")
    except UserError as error:
        pytest.skip(str(error))
    from tfllm.serving.c_api import Process
    from tfllm.serving.export import export, text_signature
    from tfllm.tasks.embeddings_tf import ServedEmbedder

    path = shared / "models/all_minilm_l6_v2/expected_fp32.json"
    expected = json.loads(path.read_text())
    texts = [one["text"] for one in expected["sentences"]]
    served = ServedEmbedder(task, model)
    version = export(
        [text_signature(served)],
        variables=model.variables,
        trackables=[served],
        name="minilm",
        samples={"serving_default": {"text": texts}},
        directory=tmp_path,
    )
    with Process(version) as process:
        answers = process.run("serving_default", {"text": texts})["embedding"]
    for vectors in (task.embed(model, texts), np.asarray(answers)):
        np.testing.assert_allclose(vectors @ vectors.T, expected["cosine"], atol=2e-5)
        heads = [one["embedding_first16"] for one in expected["sentences"]]
        np.testing.assert_allclose(vectors[:, :16], heads, atol=2e-5)


def test_rows_that_say_nothing(tokenizer):
    with pytest.raises(UserError, match="test: no two different texts"):
        task_of(tokenizer).columns([{"text": "a", "label": "x"}] * 2, "labels", "test")
    with pytest.raises(UserError, match="no two different texts"):
        task_of(tokenizer).columns([{"text": "a", "text_pair": "a"}], "pairs")
    rows = [{"text": "a", "label": "x"}, {"text": "b"}]
    with pytest.raises(UserError, match="neither"):
        settle({"train": Records(rows)})
