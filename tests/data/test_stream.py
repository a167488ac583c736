"""Running text as one stream, and rows of it."""

import json

import numpy as np
import pytest

from tests.tasks.stories import stories
from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.data.corpus import CorpusFlags, Documents, load_documents, pieces
from tfllm.data.stream import BlockColumns, describe, encode_stream
from tfllm.text import Tokenizer

SPECIAL = ["<pad>", "<unk>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(stories(50), "characters", 80, special_tokens=SPECIAL)


@pytest.fixture
def stream(tokenizer):
    return encode_stream(Documents(texts=stories(7, 1)), tokenizer)


def rows_of(columns, length):
    """Every row as (token_ids, targets), from batches."""
    plan = BatchPlan(columns.lengths, batch_size=4, max_length=length, shuffle=False)
    found = {}
    for step in range(plan.steps_per_epoch):
        (micro,) = plan.step(step)
        batch = columns.gather(micro, {"token_ids": 0})
        np.testing.assert_array_equal(batch["padding_mask"], batch["target_weights"])
        sizes = batch["padding_mask"].sum(1)
        for index, row in zip(micro.indices, micro.rows, strict=True):
            pair = (batch[name][row, : sizes[row]] for name in ("token_ids", "targets"))
            found[int(index)] = tuple(pair)
    return [found[i] for i in range(len(columns))]


def test_documents_stand_between_end_tokens(stream, tokenizer):
    texts = stories(7, 1)
    whole = "".join(f"<|endoftext|>{text}" for text in texts) + "<|endoftext|>"
    ids = stream.token_ids
    assert tokenizer.decode([ids], skip_special_tokens=False) == [whole]
    assert stream.documents == 7 and stream.unknown == 0
    assert stream.bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("length", [16, 37, 10_000])
def test_every_token_is_guessed_once(stream, length):
    rows = rows_of(BlockColumns(stream, length), length)
    inputs, targets = (np.concatenate(part) for part in zip(*rows, strict=True))
    np.testing.assert_array_equal(inputs, stream.token_ids[:-1])
    np.testing.assert_array_equal(targets, stream.token_ids[1:])


def test_copies_are_cut_at_other_places(stream):
    columns = BlockColumns(stream, 32, copies=3, seed=5)
    assert set(columns.lengths) == {32}
    first = np.flatnonzero(np.diff(columns.starts) < 0) + 1
    begins = columns.starts[[0, *first]]
    assert len(set(begins)) == 3 and max(begins) < 32
    # Less than two rows of each are left out.
    assert len(columns) >= 3 * ((len(stream.token_ids) - 1) // 32 - 1)


def test_prompts_and_what_followed(stream, tokenizer):
    found = BlockColumns(stream, 32).examples(tokenizer, 3, 8)
    text = "".join(tokenizer.decode([stream.token_ids]))
    assert len(found) == 3
    assert all(row["text"] + row["target"] in text for row in found)


def test_few_files_give_their_ends(tmp_path):
    lines = [f"line {i:04}\n\n" for i in range(1000)]
    (tmp_path / "a.py").write_text("".join(lines))
    flags = CorpusFlags(train_file=[str(tmp_path)], validation_share=0.1)
    parts = {k: list(d) for k, d in load_documents(flags, "x", whole=True).items()}
    order = ("train", "test", "validation")
    assert "".join("".join(parts[name]) for name in order) == "".join(lines)
    assert [len(parts[name][0]) for name in order] == [8800, 1100, 1100]


def test_many_files_fall_on_one_side_each(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"file {i}\n\nwith two parts\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a row"}) + "\n")
    (tmp_path / "settings.json").write_text('{"text_size":\n 3}\n')
    flags = CorpusFlags(train_file=[str(tmp_path)], validation_share=0.2)
    parts = {k: list(d) for k, d in load_documents(flags, "x", whole=True).items()}
    found = sorted(text for part in parts.values() for text in part)
    assert len(found) == 42 and "a row" in found and '{"text_size":\n 3}\n' in found
    assert min(map(len, parts.values())) > 1


def test_pieces_join_to_the_text():
    text = "word " * 30_000 + "\n" + "x" * 120_000
    cut = pieces(text)
    assert "".join(cut) == text and max(map(len, cut)) <= 50_000
    assert pieces("") == [""]


def test_what_is_missing_is_told(tokenizer):
    with pytest.raises(UserError, match="no text"):
        encode_stream(Documents(texts=[]), tokenizer)
    plain = Tokenizer.train(["some"], "characters", 30, special_tokens=["p", "u"])
    with pytest.raises(UserError, match="ends a text"):
        encode_stream(Documents(texts=["some"]), plain)


def test_the_report_tells_the_unknown(tokenizer, capsys):
    streams = {"train": encode_stream(Documents(texts=["ΩΩΩ a"]), tokenizer)}
    report = describe(streams)["train"]
    assert report["tokens"] == 6 and report["bytes_a_token"] == 8 / 6
    assert report["unknown_share"] == 3 / 6
    assert "does not know 50.0%" in capsys.readouterr().out
