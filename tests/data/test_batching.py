"""Order, plan and columns: every example once, seek equals replay, static shapes."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfllm.data.batching import BatchPlan, choose_lengths, pack_histogram
from tfllm.data.columns import Columns, Ragged
from tfllm.data.order import shuffled, shuffled_index
from tfllm.data.pipeline import batches

ORDER_0_0 = [7, 5, 9, 2, 1, 3, 0, 8, 4, 6]
ORDER_DIGEST = "6eece052e17fe758"
LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=150)


@given(st.integers(1, 3000), st.integers(-(2**40), 2**70), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_order_is_a_permutation_that_can_be_sought(n, seed, epoch):
    order = shuffled(n, seed, epoch)
    assert sorted(order) == list(range(n))
    assert shuffled_index(n // 2, n, seed, epoch) == order[n // 2]
    assert (shuffled_index(np.arange(n)[::-3], n, seed, epoch) == order[::-3]).all()


def test_order_never_changes_between_versions():
    assert shuffled(10, 0, 0).tolist() == ORDER_0_0
    assert shuffled(10, 0, 1).tolist() != ORDER_0_0
    digest = hashlib.sha256(shuffled(100_000, 7, 3).tobytes()).hexdigest()
    assert digest[:16] == ORDER_DIGEST
    with pytest.raises(IndexError):
        shuffled_index(10, 10, 0)


@pytest.mark.parametrize("n", [5, 12, 100])
def test_order_is_even(n):
    """Chi-square of (place, value) over epochs, within six standard deviations."""
    epochs = 4000
    table = np.zeros((n, n))
    pairs = np.zeros((n, n))
    for epoch in range(epochs):
        order = shuffled(n, 1, epoch)
        table[np.arange(n), order] += 1
        pairs[order[:-1], order[1:]] += 1
    freedom = (n - 1) ** 2
    chi = ((table - epochs / n) ** 2 / (epochs / n)).sum()
    assert abs(chi - freedom) < 6 * (2 * freedom) ** 0.5
    off = pairs[~np.eye(n, dtype=bool)]  # who follows whom
    chi = ((off - off.mean()) ** 2 / off.mean()).sum()
    assert abs(chi - len(off)) < 6 * (2 * len(off)) ** 0.5


def plans():
    return st.fixed_dictionaries(
        {
            "size": st.one_of(
                st.builds(lambda n: {"batch_size": n}, st.integers(1, 20)),
                st.builds(lambda n: {"tokens_per_batch": n}, st.integers(1, 400)),
            ),
            "max_length": st.integers(1, 64),
            "seed": st.integers(0, 5),
            "shuffle": st.booleans(),
            "bucketing": st.booleans(),
            "packing": st.booleans(),
            "parts": st.integers(1, 4),
            "pad_to_multiple": st.sampled_from([1, 4, 8]),
            "max_buckets": st.integers(1, 5),
        }
    )


@given(LENGTHS, plans())
@settings(max_examples=150, deadline=None)
def test_every_example_once_an_epoch_in_few_static_shapes(lengths, options):
    size = options.pop("size")
    plan = BatchPlan(lengths, **size, **options)
    max_length, parts = options["max_length"], options["parts"]
    assert len(plan.shapes) <= (1 if options["packing"] else options["max_buckets"])
    for epoch in (0, 1):
        seen, real, positions = [], 0, 0
        for number in range(plan.steps_per_epoch):
            micros = plan.step(epoch * plan.steps_per_epoch + number)
            assert len(micros) == parts
            assert len({(m.num_rows, m.length) for m in micros}) == 1
            used = [len(np.unique(m.rows)) for m in micros]
            assert max(used) - min(used) <= 1  # cut evenly
            if number < plan.steps_per_epoch - 1:
                full = size.get("batch_size") or max(
                    1, size["tokens_per_batch"] // micros[0].length
                )
                assert sum(used) == full  # only the last one is partial
            for micro in micros:
                assert (micro.num_rows, micro.length) in plan.shapes
                assert micro.length <= max_length
                seen += micro.indices.tolist()
                cut = np.minimum(np.array(lengths)[micro.indices], max_length)
                assert (micro.starts + cut <= micro.length).all()
                real += cut.sum()
                positions += micro.num_rows * micro.length
        assert sorted(seen) == list(range(len(lengths)))
        assert plan.padding_share == pytest.approx(1 - real / positions)


@pytest.mark.parametrize("packing", [False, True])
def test_early_epochs_take_the_examples_behind(packing):
    options = {"batch_size": 4, "max_length": 12, "packing": packing}
    plan = BatchPlan([3, 9, 5, 12, 1, 7, 7], early_epochs=2, **options)
    usual = BatchPlan([3, 9, 5, 12, 1, 7, 7], **options)
    for step in range(4 * plan.steps_per_epoch):
        (found,), (wanted,) = plan.step(step), usual.step(step)
        early = 7 * (step // plan.steps_per_epoch < 2)
        assert found.indices.tolist() == (wanted.indices + early).tolist()
        assert found.rows.tolist() == wanted.rows.tolist()


@given(LENGTHS, plans())
@settings(max_examples=60, deadline=None)
def test_packed_texts_do_not_overlap_and_seek_equals_replay(lengths, options):
    options["packing"] = True
    size = options.pop("size")
    plan = BatchPlan(lengths, **size, **options)
    replay = [plan.step(i) for i in range(3 * plan.steps_per_epoch)]
    for number in (len(replay) - 1, len(replay) // 2, 0):
        sought = BatchPlan(lengths, **size, **options).step(number)
        for a, b in zip(sought, replay[number], strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    for micro in (m for step in replay for m in step):
        taken = set()
        for index, row, start in zip(*micro[:3], strict=True):
            for place in range(start, start + min(lengths[index], micro.length)):
                assert (row, place) not in taken
                taken.add((row, place))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_buckets_pad_least(lengths, max_buckets):
    from itertools import combinations

    lengths = np.minimum(lengths, 45)
    chosen = np.array(choose_lengths(lengths, max_buckets, 8, 45))
    assert len(chosen) <= max_buckets

    def padded(ceilings):
        return np.array(ceilings)[np.searchsorted(ceilings, lengths)].sum()

    sizes = sorted({min(-(-n // 8) * 8, 45) for n in lengths.tolist()})
    best = min(
        padded((*inner, sizes[-1]))
        for k in range(min(max_buckets, len(sizes)))
        for inner in combinations(sizes[:-1], k)
    )
    assert padded(chosen) == best


@given(st.dictionaries(st.integers(1, 32), st.integers(1, 300), min_size=1))
@settings(max_examples=80, deadline=None)
def test_packing_keeps_every_item_and_is_tight(histogram):
    packs = pack_histogram(histogram, 32)
    counts = dict.fromkeys(histogram, 0)
    for pattern, number in packs:
        assert number > 0
        assert sum(pattern) <= 32
        for item in pattern:
            counts[item] += number
    assert counts == histogram
    items = sorted((k for k, n in histogram.items() for _ in range(n)), reverse=True)
    bins = []  # plain first-fit decreasing
    for item in items:
        place = next((i for i, room in enumerate(bins) if room >= item), None)
        if place is None:
            bins.append(32 - item)
        else:
            bins[place] -= item
    assert sum(n for _, n in packs) <= len(bins) * 1.03 + 1


def columns(lengths):
    ids = Ragged.from_lists([[i % 90 + 1] * n for i, n in enumerate(lengths)])
    return Columns({"token_ids": ids, "label": np.arange(len(lengths))})


def naive(columns, micro, pad):
    ids = np.full((micro.num_rows, micro.length), pad)
    mask = np.zeros_like(ids)
    for index, row, start in zip(*micro[:3], strict=True):
        text = columns["token_ids"].row(index)[: micro.length - start]
        ids[row, start : start + len(text)] = text
        mask[row, start : start + len(text)] = 1
    return ids, mask


@given(LENGTHS, plans())
@settings(max_examples=60, deadline=None)
def test_gather_equals_the_plain_loop(lengths, options):
    plan = BatchPlan(lengths, **options.pop("size"), **options)
    data = columns(lengths)
    for micro in plan.step(plan.steps_per_epoch - 1):
        batch = data.gather(micro, {"token_ids": 99})
        ids, mask = naive(data, micro, 99)
        assert (batch["token_ids"] == ids).all()
        assert (batch["padding_mask"] == mask).all()
        assert batch["token_ids"].dtype == batch["padding_mask"].dtype == np.int32
        assert batch["weight"].dtype == np.float32
        assert batch["weight"].sum() == len(np.unique(micro.rows))
        if not options["packing"]:
            assert (batch["label"][micro.rows] == micro.indices).all()
            continue
        assert batch["label"].shape == (micro.num_rows, plan.slots)
        for index, row, start in zip(*micro[:3], strict=True):
            (slot,) = np.flatnonzero(
                (batch["label"][row] == index) & (batch["slot_weight"][row] == 1)
            )
            assert batch["slot_starts"][row, slot] == start
            here = batch["sequence_ids"][row] == slot + 1
            count = min(lengths[index], micro.length)
            assert here.sum() == count
            assert batch["positions"][row][here].tolist() == list(range(count))
        assert ((batch["sequence_ids"] > 0) == mask).all()


def test_gather_with_several_ragged_columns():
    data = Columns(
        {
            "token_ids": Ragged.from_lists([[1, 2, 3], [4], []]),
            "segment_ids": Ragged.from_lists([[0, 0, 1], [1], []]),
            "target_ids": Ragged.from_lists([[9], [8, 7, 6, 5], [4]]),
            "score": np.array([0.5, 1, 2]),
            "tags": np.eye(3, dtype=bool),
        }
    )
    assert data.lengths.tolist() == [3, 4, 1]
    plan = BatchPlan(
        data.lengths, batch_size=4, max_length=8, shuffle=False, pad_to_multiple=4
    )
    (micro,) = plan.step(0)
    batch = data.gather(micro, {"target_ids": -100})
    assert batch["segment_ids"].tolist()[0] == [0, 0, 1, 0]
    assert batch["padding_mask"].sum(1).tolist() == [3, 1, 0, 0]
    assert batch["target_ids"].tolist()[2] == [4, -100, -100, -100]
    assert batch["target_ids_mask"].sum(1).tolist() == [1, 4, 1, 0]
    # The keys are the same for rows whose lengths happen to agree.
    (micro,) = BatchPlan([3, 4, 1], batch_size=1, max_length=3, shuffle=False).step(0)
    one = data.gather(micro._replace(indices=np.array([0]), length=1))
    assert one["target_ids_mask"].tolist() == one["padding_mask"].tolist() == [[1]]
    assert one.keys() == batch.keys()
    assert batch["score"].dtype == np.float32
    assert batch["score"].tolist() == [0.5, 1, 2, 0]
    assert batch["tags"].tolist()[1] == [0, 1, 0]
    assert batch["weight"].tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="different lengths"):
        Columns({"a": np.zeros(2), "b": np.zeros(3)})


def test_mixing_is_kept_and_wrong_sizes_are_refused():
    lengths = np.arange(1, 129).repeat(8)
    plan = BatchPlan(lengths, batch_size=16, max_length=128)
    first, second = (
        [
            frozenset(plan.step(e * plan.steps_per_epoch + i)[0].indices)
            for i in range(64)
        ]
        for e in range(2)
    )
    assert not set(first) & set(second)  # no batch comes twice
    sizes = [plan.step(i)[0].length for i in range(plan.steps_per_epoch)]
    assert sizes != sorted(sizes)
    assert (
        plan.padding_share
        < 0.15
        < BatchPlan(
            lengths, batch_size=16, max_length=128, bucketing=False
        ).padding_share
    )
    for wrong in ({}, {"batch_size": 1, "tokens_per_batch": 1}, {"batch_size": 0}):
        with pytest.raises(ValueError):
            BatchPlan(lengths, max_length=8, **wrong)
    with pytest.raises(ValueError, match="no examples"):
        BatchPlan([], max_length=8, batch_size=1)


PROGRAM = """
import hashlib, sys
import numpy as np
from tfllm.data import batching, columns, pipeline
rng = np.random.default_rng(0)
lengths = rng.integers(0, 100, 500)
ids = columns.Ragged(rng.integers(1, 9, lengths.sum()), np.r_[0, lengths.cumsum()])
digest = hashlib.sha256()
for packing in (False, True):
    plan = batching.BatchPlan(
        lengths, batch_size=8, max_length=64, parts=2, packing=packing, seed=3)
    data = columns.Columns({"token_ids": ids})
    for batch in pipeline.batches(data, plan, 5, 5 + plan.steps_per_epoch):
        digest.update(b"".join(batch[k].tobytes() for k in sorted(batch)))
assert not {"tensorflow", "keras"} & set(sys.modules)
print(digest.hexdigest())
"""


def test_other_processes_make_the_same_batches():
    made = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    }
    assert len(made) == 1


def test_dataset_equals_the_generator_and_resumes_anywhere():
    import tensorflow as tf

    from tfllm.data.pipeline_tf import dataset

    lengths = np.random.default_rng(0).integers(0, 60, 90)
    data = columns(lengths)
    for options in (
        {"batch_size": 8, "max_buckets": 3, "parts": 2},
        {"tokens_per_batch": 256, "packing": True},
    ):
        plan = BatchPlan(lengths, max_length=48, **options)
        stop = 2 * plan.steps_per_epoch
        made = dataset(
            data, plan, start_step=3, stop_step=stop, pad_values={"token_ids": 5}
        )
        assert int(made.cardinality()) == (stop - 3) * plan.parts
        expected = list(batches(data, plan, 3, stop, {"token_ids": 5}))
        got = list(made)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert sorted(a) == sorted(b)
            for name in b:
                assert a[name].dtype.as_numpy_dtype == b[name].dtype
                np.testing.assert_array_equal(a[name], b[name])
        rows = plan.shapes[0][0]
        length = plan.shapes[0][1] if len(plan.shapes) == 1 else None
        assert made.element_spec["token_ids"] == tf.TensorSpec([rows, length], tf.int32)
        inner = [rows, plan.slots] if plan.packing else [rows]
        assert made.element_spec["label"].shape.as_list() == inner
    endless = iter(dataset(data, plan, start_step=10**6))
    np.testing.assert_array_equal(
        next(endless)["token_ids"], next(batches(data, plan, 10**6))["token_ids"]
    )
