"""Pairs: every form they come in, what is odd about them, and their batches."""

import gzip
import json

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.data.doctor import examine
from tfllm.data.parallel import ParallelColumns, read_parallel, turned
from tfllm.data.readers import Records

PAIRS = [
    ("a house", "ein Haus"),
    ('the "cat"', "die Katze"),
    ("one, two", "eins, zwei"),
]


def pairs_of(records):
    return [(row["text"], row["target"]) for row in records.rows]


def test_two_files(tmp_path):
    for i, side in enumerate(("en", "de")):
        text = "\n".join(pair[i] for pair in PAIRS) + "\n"
        (tmp_path / f"a.{side}.gz").write_bytes(gzip.compress(text.encode()))
    paths = [tmp_path / "a.en.gz", tmp_path / "a.de.gz"]
    records = read_parallel(paths)
    assert pairs_of(records) == PAIRS
    assert records.rows[1]["line"] == 2 and len(records.files) == 2
    assert pairs_of(turned(records)) == [(b, a) for a, b in PAIRS]
    (tmp_path / "b.de").write_text("ein Haus\n")
    (tmp_path / "back.jsonl").write_text('{"text": "Hund", "prediction": "dog"}\n')
    columns = {"text_column": "prediction", "target_column": "text"}
    records = read_parallel([*paths, tmp_path / "back.jsonl"], **columns)
    assert pairs_of(records) == [*PAIRS, ("dog", "Hund")]
    assert len(records.files) == 3
    with pytest.raises(UserError, match=r"a\.en\.gz has 3 lines, b\.de 1"):
        read_parallel([paths[0], tmp_path / "b.de"])


@pytest.mark.parametrize("form", ["tsv", "headed", "csv", "jsonl", "translation"])
def test_one_file(tmp_path, form):
    path = tmp_path / "pairs"
    lines = {
        "tsv": ["\t".join(pair) for pair in PAIRS],
        "headed": ["id\ttarget\tsource", *(f"1\t{b}\t{a}" for a, b in PAIRS)],
        "csv": ["en,de", *(f'"{a}","{b}"'.replace('""', '"') for a, b in PAIRS[::2])],
        "jsonl": [json.dumps({"summary": b, "id": 1, "text": a}) for a, b in PAIRS],
        "translation": [
            json.dumps({"translation": {"en": a, "de": b}}) for a, b in PAIRS
        ],
    }[form]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = PAIRS[::2] if form == "csv" else PAIRS
    assert pairs_of(read_parallel(path)) == expected
    columns = {"text_column": "2", "target_column": "1"}
    if form in ("tsv", "headed"):
        assert pairs_of(read_parallel(path, **columns))[0][0] == "ein Haus"


def test_the_doctor_looks_at_both_sides():
    rows = [{"text": f"number {i} of many", "target": f"Nummer {i}"} for i in range(50)]
    rows += [{"text": "left as it was", "target": "left as it was"}]
    rows += [{"text": "a short one", "target": "sehr " * 40 + "lang"}]
    rows += [{"text": "in another script", "target": "这是一个中文的句子"}]
    report = examine({"train": Records(rows), "test": Records(rows[:1])})
    facts = report.splits["train"]
    assert facts["copies"] == facts["length_ratio"] == facts["wrong_language"] == 1
    assert report.leaked == {0}


def test_batches_are_cut_by_both_lengths():
    random = np.random.default_rng(0)
    sources = [[5] * n for n in random.integers(20, 200, 300)]
    targets = [[7] * (len(s) // 12 + 1) for s in sources]
    columns = ParallelColumns([{}] * 300, sources, targets, 2, (200, 24))
    plan = BatchPlan(columns.lengths, tokens_per_batch=1000, max_length=200)
    places, seen = 0, 0
    for step in range(plan.steps_per_epoch):
        (micro,) = plan.step(step)
        batch = columns.gather(micro, {"token_ids": 0})
        places += batch["source_ids"].size + batch["token_ids"].size
        for index, row in zip(micro.indices, micro.rows, strict=True):
            assert batch["source_mask"][row].sum() == len(sources[index])
            assert batch["padding_mask"][row].sum() == len(targets[index])
            assert batch["token_ids"][row, 0] == 2
            seen += 1
    assert seen == 300
    assert places < 1.5 * sum(map(len, sources + targets))


def test_early_epochs_have_other_targets():
    sources = [[5 + i] * n for i, n in enumerate((3, 9, 4, 6))]
    targets = [[7, 7], [8], [9, 9, 9], [6]]
    early = [source[: n + 1] for n, source in enumerate(sources)]
    columns = ParallelColumns([{}] * 4, sources, targets, 2, (9, 5), early)
    assert len(columns) == len(columns.lengths) == 4
    plan = BatchPlan(columns.lengths, batch_size=2, max_length=9, early_epochs=1)
    for step in range(2 * plan.steps_per_epoch):
        (micro,) = plan.step(step)
        batch = columns.gather(micro, {"token_ids": 0})
        wanted = early if step < plan.steps_per_epoch else targets
        for index, row in zip(micro.indices % 4, micro.rows, strict=True):
            size = len(wanted[index])
            assert batch["padding_mask"][row].sum() == size
            assert batch["targets"][row, :size].tolist() == wanted[index]
            size = len(sources[index])
            assert batch["source_ids"][row, :size].tolist() == sources[index]
