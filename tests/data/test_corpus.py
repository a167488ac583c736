"""Documents, sentences, the corpus on disk, and pairs of segments."""

import gzip
import json

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.data import corpus as corpora
from tfllm.data.batching import BatchPlan
from tfllm.data.cache import ArrayWriter, cached_arrays
from tfllm.data.corpus import (
    CorpusFlags,
    Documents,
    encode_corpus,
    find_files,
    load_documents,
    read_documents,
    sentences,
)
from tfllm.data.pipeline import batches
from tfllm.data.samples import articles
from tfllm.data.sentence_pairs import make_pairs
from tfllm.data.stream import encode_stream
from tfllm.text import Tokenizer

WORDS = [f"w{letter}{other}" for letter in "abcdefghij" for other in "klmnop"]


def made_up(documents=60, seed=0):
    """Documents of 1 to 12 sentences of 3 to 9 words."""
    draw = np.random.default_rng(seed)
    return [
        " ".join(
            " ".join(draw.choice(WORDS, draw.integers(3, 10))).capitalize() + "."
            for _ in range(draw.integers(1, 13))
        )
        for _ in range(documents)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(made_up(), "wordpiece", 200)


@pytest.fixture
def corpus(tokenizer):
    return encode_corpus(Documents(texts=made_up()), tokenizer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Mr. Smith went to Washington. He met Dr. A. B. Jones at 3.5 p.m. today!",
            [
                "Mr. Smith went to Washington.",
                "He met Dr. A. B. Jones at 3.5 p.m. today!",
            ],
        ),
        (
            'The U.S. grew 2.5% in Jan. 1998. "Is it?" asked Mary. (See Fig. 3.)',
            [
                "The U.S. grew 2.5% in Jan. 1998.",
                '"Is it?" asked Mary.',
                "(See Fig. 3.)",
            ],
        ),
        (
            "Wait... what? I don't know... He left.",
            ["Wait... what?", "I don't know...", "He left."],
        ),
        (
            "It is at www.example.com, version 1.2.3 or so.",
            ["It is at www.example.com, version 1.2.3 or so."],
        ),
        (
            "他说：“今天天气很好。”然后走了。真的吗？！是的……他走了。",
            ["他说：“今天天气很好。”", "然后走了。", "真的吗？！", "是的……他走了。"],
        ),
        (
            '价格是3.5元。Tom说:"Hello." 他走了!',
            ["价格是3.5元。", 'Tom说:"Hello."', "他走了!"],
        ),
        (
            "a line that was\nwrapped. And\ngoes on\nHeadline\n第二行",
            ["a line that was wrapped.", "And goes on", "Headline", "第二行"],
        ),
        ("  \n。\n", ["。"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    found = sentences(text)
    assert found == expected
    assert "".join("".join(found).split()) == "".join(text.split())


def test_documents_of_text_gzip_and_json(tmp_path):
    plain = "One. Two.\nThree.\n\n \n\n第二篇。\n"
    (tmp_path / "a.txt").write_text(plain, encoding="utf-8")
    (tmp_path / "sub").mkdir()
    with gzip.open(tmp_path / "sub" / "b.txt.gz", "wb") as file:
        file.write("我们的国家。\n\n他们在这里学习和工作。\n\n".encode("gb18030") * 20)
    rows = [json.dumps({"text": f"Row {i}.\n\nMore."}) for i in range(200)]
    rows.insert(3, "not json")
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    (tmp_path / "notes.md").write_text("not taken")
    files = find_files([str(tmp_path)])
    assert [file.name for file in files] == ["a.txt", "c.jsonl", "b.txt.gz"]
    assert list(read_documents(files[0])) == ["One. Two.\nThree.", "第二篇。"]
    assert list(read_documents(files[2]))[39] == "他们在这里学习和工作。"
    found = list(read_documents(files[1]))
    assert len(found) == 200 and found[0] == "Row 0.\n\nMore."
    assert find_files([str(tmp_path / "*.jsonl"), str(files[1])]) == [files[1]]


def test_one_document_cannot_be_split(tmp_path, tokenizer):
    (tmp_path / "one.txt").write_text("One line.\nAnd another one.\n")
    flags = CorpusFlags([str(tmp_path / "one.txt")])
    found = load_documents(flags, "")
    assert sum(len(list(part)) for part in found.values()) == 1
    empty = next(part for part in found.values() if not list(part))
    for encode in (encode_corpus, encode_stream):
        with pytest.raises(UserError, match="no text left") as told:
            encode(empty, tokenizer)
        assert "an empty line after each" in str(told.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "a"}\n' + b"{broken\n" * 9, "are no documents"),
        (b'{"txt": "a"}\n' * 9, "there is no 'text'"),
        (b'[{"text": "a"},\n{"text": "b"}]', "there is no document"),
        (b"\x1f\x8b\x08 damaged", "cannot read the file"),
        (b"   \n\n", "there is no text"),
    ],
)
def test_bad_files_are_told(tmp_path, tokenizer, content, words):
    (tmp_path / "bad.jsonl").write_bytes(content)
    documents = Documents(find_files([str(tmp_path / "bad.jsonl")]))
    with pytest.raises(UserError, match=words):
        encode_corpus(documents, tokenizer)
    with pytest.raises(UserError, match="no such file"):
        find_files([str(tmp_path / "bat.jsonl")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text in the folder"):
        find_files([str(tmp_path / "empty")])


def test_held_out_documents_are_apart_and_stay_where_they_are(tmp_path):
    texts = made_up(400, seed=1)
    (tmp_path / "a.txt").write_text("\n\n".join(texts + texts[:50]))
    flags = CorpusFlags(train_file=[str(tmp_path / "a.txt")], validation_share=0.2)
    found = {name: set(part) for name, part in load_documents(flags, "").items()}
    assert sum(map(len, found.values())) == len({t.strip() for t in texts})
    assert not found["train"] & (found["validation"] | found["test"])
    assert 50 < len(found["validation"]) < 110 and 50 < len(found["test"]) < 110
    # More text moves no document to another side.
    more = made_up(100, seed=2)
    (tmp_path / "a.txt").write_text("\n\n".join(more + texts))
    again = {name: set(part) for name, part in load_documents(flags, "").items()}
    for name, part in found.items():
        assert {text.strip() for text in part} <= {text.strip() for text in again[name]}
    flags.max_eval_samples = 5
    assert len(list(load_documents(flags, "")["test"])) == 5


def test_a_corpus_is_read_once_and_mapped(tmp_path, tokenizer, monkeypatch):
    texts = made_up(700)
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    most = 0

    def counted(text, cut=sentences):
        nonlocal most
        most += 1
        return cut(text)

    monkeypatch.setattr(corpora, "sentences", counted)
    first = encode_corpus(Documents([tmp_path / "a.txt"]), tokenizer)
    assert most == first.size == 700
    second = encode_corpus(Documents([tmp_path / "a.txt"]), tokenizer)
    assert most == 700
    assert isinstance(second.token_ids, np.memmap)
    assert second.token_ids.dtype == np.uint16
    # Blocks were put together without a seam.
    flat = [sentence for text in texts for sentence in sentences(text)]
    assert len(second.sentences) == len(flat) + 1
    expected = [token for row in tokenizer.encode(flat) for token in row]
    assert second.token_ids.tolist() == expected
    assert second.documents[-1] == len(flat)
    (tmp_path / "a.txt").write_text("\n\n".join(texts[:-1]))
    assert encode_corpus(Documents([tmp_path / "a.txt"]), tokenizer).size == 699


def test_arrays_grow_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TFLLM_CACHE", str(tmp_path))

    def write(writer: ArrayWriter):
        for number in range(1000):
            writer.append("a", np.full((3, 2), number, np.int16))
        writer.append("none", np.zeros(0))

    found = cached_arrays({"x": 1}, write)
    assert found["a"].shape == (3000, 2) and found["a"][-1].tolist() == [999, 999]
    assert np.load(next(tmp_path.rglob("a.npy"))).dtype == np.int16
    assert len(found["none"]) == 0

    def full(writer):
        writer.append("a", np.zeros(3))
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        cached_arrays({"x": 2}, full)
    assert len(list((tmp_path / "columns").iterdir())) == 1


def test_pairs_are_balanced_and_only_their_content_tells(tokenizer):
    corpus = encode_corpus(Documents(texts=made_up(800, seed=3)), tokenizer)
    pairs = make_pairs(corpus, tokenizer, max_length=64, copies=2)
    labels, spans = np.asarray(pairs.labels), np.asarray(pairs.spans)
    right, wrong = spans[labels == 0], spans[labels == 1]
    assert abs(len(right) - len(wrong)) <= 0.02 * len(right)
    assert (right[:, 1] == right[:, 2]).all()
    owner = corpus.sentences[corpus.documents]
    first, second = (np.searchsorted(owner, wrong[:, i], side="right") for i in (0, 2))
    assert (first != second).all()
    # Neither the lengths nor a cut tell which pairs are right.
    for part in (slice(0, 2), slice(2, 4)):
        sizes = [np.diff(side[:, part])[:, 0] for side in (right, wrong)]
        assert abs(sizes[0].mean() - sizes[1].mean()) < 0.8
    assert abs((pairs.lengths[labels == 0] == 64).mean()
               - (pairs.lengths[labels == 1] == 64).mean()) < 0.03  # fmt: skip
    assert pairs.lengths.max() <= 64
    # Segments begin and end where sentences do.
    assert np.isin(right, corpus.sentences).all()
    again = make_pairs(corpus, tokenizer, max_length=64, copies=2)
    assert np.array_equal(again.spans, spans)
    other = make_pairs(corpus, tokenizer, max_length=64, copies=2, seed=1)
    assert not np.array_equal(other.spans, spans)


def test_sentence_order_and_plain_rows(corpus, tokenizer):
    pairs = make_pairs(corpus, tokenizer, max_length=64, objective="sentence_order")
    labels, spans = np.asarray(pairs.labels), np.asarray(pairs.spans)
    swapped = spans[labels == 1]
    assert (swapped[:, 3] == swapped[:, 0]).all()
    assert abs(len(swapped) - (labels == 0).sum()) <= 1
    rows = make_pairs(corpus, tokenizer, max_length=16, objective="none")
    assert (np.asarray(rows.labels) == -1).all()
    # Every token stands in one row; sentences that are too long are cut.
    spans = np.asarray(rows.spans)
    places = np.concatenate([np.arange(a, b) for a, b, *_ in spans])
    assert np.array_equal(np.sort(places), np.arange(len(corpus.token_ids)))
    assert rows.lengths.max() <= 16
    with pytest.raises(UserError, match="too short"):
        make_pairs(corpus, tokenizer, max_length=9)
    one = encode_corpus(Documents(texts=["A b. C d."]), tokenizer)
    with pytest.raises(UserError, match="two documents"):
        make_pairs(one, tokenizer, max_length=64)


def test_a_gathered_row_is_what_the_tokenizer_makes_of_a_pair(corpus, tokenizer):
    pairs = make_pairs(corpus, tokenizer, max_length=48)
    plan = BatchPlan(pairs.lengths, batch_size=7, max_length=48, seed=1)
    (micro,) = plan.step(3)
    batch = pairs.gather(micro)
    assert batch["token_ids"].dtype == batch["segment_ids"].dtype == np.int32
    for index, row in zip(micro.indices, micro.rows, strict=True):
        a, b, c, d = np.asarray(pairs.spans)[index]
        parts = corpus.token_ids[a:b].tolist(), corpus.token_ids[c:d].tolist()
        ids = [tokenizer.cls_id, *parts[0], tokenizer.sep_id]
        segments = [0] * len(ids)
        if parts[1]:
            ids += [*parts[1], tokenizer.sep_id]
            segments += [1] * (len(parts[1]) + 1)
        size = pairs.lengths[index]
        assert batch["token_ids"][row, :size].tolist() == ids
        assert batch["segment_ids"][row, :size].tolist() == segments
        assert batch["padding_mask"][row].sum() == size
        assert (batch["token_ids"][row, size:] == tokenizer.pad_id).all()
        label = pairs.labels[index]
        assert batch["next_sentence_weight"][row] == (label >= 0)
        assert batch["next_sentence"][row] == max(label, 0)


def test_the_transform_sees_step_and_part_in_both_pipelines(corpus, tokenizer):
    from tfllm.data.pipeline_tf import dataset

    pairs = make_pairs(corpus, tokenizer, max_length=48)
    plan = BatchPlan(pairs.lengths, batch_size=8, max_length=48, parts=2)
    seen = []

    def transform(batch, step, part):
        seen.append((step, part))
        places = np.full((len(batch["token_ids"]), batch["token_ids"].shape[1] // 4), 7)
        return {"token_ids": batch["token_ids"], "places": places.astype(np.int32)}

    plain = list(batches(pairs, plan, 3, 5, transform=transform))
    assert seen == [(3, 0), (3, 1), (4, 0), (4, 1)]
    made = dataset(pairs, plan, start_step=3, stop_step=5, transform=transform)
    assert set(made.element_spec) == {"token_ids", "places"}
    assert made.element_spec["places"].shape.as_list() == [4, None]
    for one, other in zip(plain, made.as_numpy_iterator(), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert seen[-4:] == [(3, 0), (3, 1), (4, 0), (4, 1)]


def test_articles_begin_with_a_headline():
    lines = ["标题/n", "副题/n  （/w  一/m  ）/w", "正文/n  ，/w  一段/m  。/w", "",
             "又/d  一段/m  。/w", "新/a  标题/n", "正文/n  。/w"]  # fmt: skip
    assert list(articles(lines)) == [
        "标题\n副题（一）\n正文，一段。\n又一段。",
        "新标题\n正文。",
    ]
