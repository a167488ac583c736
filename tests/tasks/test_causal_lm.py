"""Losses of decoders against their definitions, packed and not."""

import dataclasses

import numpy as np
import pytest

from tests.tasks.stories import stories
from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.data.chats import conversation, encode_answers, encode_chats, template_for
from tfllm.data.corpus import Documents
from tfllm.data.stream import BlockColumns, encode_stream
from tfllm.layers.next_token_loss import LARGE
from tfllm.models.decoder import decoder, shape_of
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tasks.chat import Chat
from tfllm.tasks.preference import Preference, read_references, save_references
from tfllm.text import Tokenizer

LENGTH = 64
SPECIAL = ["<pad>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(stories(20), "characters", 80, special_tokens=SPECIAL)


def task_of(kind, tokenizer, style="llama", size=None, **options):
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_length": LENGTH}
    shape = shape_of(style, "tiny", size or tokenizer.vocabulary_size, **sizes)
    shape = dataclasses.replace(shape, initializer_range=0.3)
    return kind(tokenizer, shape, LENGTH, **options)


def chats(count=12):
    return [
        conversation(f"say {i}", f"number {i} " * (1 + i % 4)) for i in range(count)
    ]


def pairs(count=6):
    rows = [conversation(f"say {i}", "x") for i in range(count)]
    sides = [{"chosen": f"yes {i}", "rejected": f"no no {i}"} for i in range(count)]
    return [
        {"messages": row["messages"][:-1], **side}
        for row, side in zip(rows, sides, strict=True)
    ]


def log_probabilities(task, model, batch):
    """Of the targets, `[rows, length]`, from the logits of a plain decoder."""
    plain = decoder(task.decoder)
    values = {variable.path: variable.numpy() for variable in model.weights}
    for variable in plain.weights:
        variable.assign(values[variable.path])
    inputs = {name: batch[name] for name in ("token_ids", "padding_mask")}
    logits = np.asarray(plain(inputs), np.float64)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]


def first_batch(task, columns):
    plan = BatchPlan(columns.lengths, batch_size=4, max_length=LENGTH)
    return task.transform(columns.gather(plan.step(0)[0], task.pad_values()), 0, 0)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
@pytest.mark.parametrize("size", [None, LARGE])
def test_the_loss_is_that_of_the_definition(style, size, tokenizer):
    task = task_of(Chat, tokenizer, style, size)
    model = task.build_model()
    columns, _ = encode_chats(
        chats(), template_for("", tokenizer), tokenizer, LENGTH, "answers"
    )
    batch = first_batch(task, columns)
    truth = -log_probabilities(task, model, batch) * batch["target_weights"]
    outputs = task.losses(model, batch)
    sums, counts = task.loss_sums(outputs, batch), task.loss_counts(batch)
    assert float(sums["loss"]) == pytest.approx(truth.sum(), rel=1e-5)
    assert float(counts["loss"]) == batch["target_weights"].sum() > 0
    found = task.row_sums(outputs, batch)
    np.testing.assert_allclose(found[0], truth.sum(1), rtol=1e-4)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_packing_changes_no_loss(style, tokenizer):
    task = task_of(Chat, tokenizer, style)
    model = task.build_model()
    template = template_for("", tokenizer)
    rows = [conversation("a", "b" * n) for n in (1, 2, 3)]
    columns, _ = encode_chats(rows * 2, template, tokenizer, 256, "all")
    task = dataclasses.replace(task, max_length=256)
    alone, _ = task.scores(model, columns)
    plan = BatchPlan(columns.lengths, batch_size=2, max_length=192, packing=True)
    seen = 0
    for step in range(plan.steps_per_epoch):
        (micro,) = plan.step(step)
        batch = task.transform(columns.gather(micro, task.pad_values()), step, 0)
        losses = task.losses(model, batch) * batch["target_weights"]
        for index, row, start in zip(*micro[:3], strict=True):
            size = columns.lengths[index]
            packed = losses[row, start : start + size].sum()
            assert packed == pytest.approx(alone[index], rel=1e-4)
            seen += 1
        assert len(micro.indices) > micro.num_rows  # some rows do hold several
    assert seen == 6


def test_bits_a_byte_and_perplexity(tokenizer):
    task = task_of(CausalLM, tokenizer)
    model = task.build_model()
    stream = encode_stream(Documents(texts=stories(3)), tokenizer)
    columns = BlockColumns(stream, LENGTH)
    metrics = task.metrics(columns, *task.scores(model, columns))
    nats = metrics["loss"] * (len(stream.token_ids) - 1)
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    assert metrics["bits_per_byte"] == pytest.approx(nats / np.log(2) / stream.bytes)
    (micro,) = BatchPlan(columns.lengths, batch_size=4, max_length=LENGTH).step(0)
    batch = columns.gather(micro, task.pad_values())
    truth = -log_probabilities(task, model, batch) * batch["target_weights"]
    found = task.scores(model, columns)[0][micro.indices]
    np.testing.assert_allclose(found, truth.sum(1)[micro.rows], 1e-4)


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_preferences_are_those_of_the_formulas(objective, tokenizer):
    beta = 0.3
    task = task_of(Preference, tokenizer, objective=objective, beta=beta)
    model = task.build_model()
    columns, _ = encode_answers(pairs(), template_for("", tokenizer), tokenizer, LENGTH)
    columns.reference[:] = np.random.default_rng(0).normal(-30, 5, (2, len(columns)))
    plan = BatchPlan(columns.lengths, batch_size=8, max_length=LENGTH)
    (micro,) = plan.step(0)
    batch = columns.gather(micro, task.pad_values())
    logs, weights = log_probabilities(task, model, batch), batch["target_weights"]
    rows, size = micro.num_rows, len(micro.indices)  # two rows hold no pair
    logs = (logs * weights).sum(1).reshape(2, rows)[:, :size]
    counts = weights.sum(1).reshape(2, rows)[:, :size]
    reference = columns.reference[:, micro.indices]
    if objective == "dpo":
        rewards = beta * (logs - reference)
        expected = {"preference": -np.log(1 / (1 + np.exp(rewards[1] - rewards[0])))}
    else:
        mean = logs / counts
        rewards = beta * mean
        odds = np.log(np.exp(mean) / (1 - np.exp(mean)))
        ratio = -np.log(1 / (1 + np.exp(odds[1] - odds[0])))
        expected = {"preference": beta * ratio, "answer": -logs[0]}
    outputs = task.losses(model, batch)
    sums, totals = task.loss_sums(outputs, batch), task.loss_counts(batch)
    assert set(sums) == set(totals) == set(expected)
    for name, truth in expected.items():
        assert float(sums[name]) == pytest.approx(truth.sum(), rel=1e-4)
    assert float(totals["preference"]) == size
    margins = rewards[0] - rewards[1]
    found = {k: float(a / b) for k, (a, b) in task.metric_sums(outputs, batch).items()}
    assert found["reward_margin"] == pytest.approx(margins.mean(), rel=1e-3)
    assert found["reward_accuracy"] == pytest.approx((margins > 0).mean())
    metrics = task.metrics(columns, *task.scores(model, columns))
    assert metrics["reward_margin"] == pytest.approx(margins.mean(), rel=1e-3)
    loss = expected["preference"].mean()
    if objective == "orpo":
        loss += expected["answer"].sum() / counts[0].sum()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)


def test_before_training_nothing_is_preferred(tokenizer, tmp_path):
    task = task_of(Preference, tokenizer)
    model = task.build_model()
    template = template_for("", tokenizer)
    columns = {"train": encode_answers(pairs(), template, tokenizer, LENGTH)[0]}
    assert not read_references(tmp_path / "references.npz", columns)
    task.refer(model, columns)
    metrics = task.measure(model, columns["train"])["metrics"]
    assert metrics["reward_accuracy"] == 0.5
    assert metrics["loss"] == pytest.approx(np.log(2))
    save_references(tmp_path / "references.npz", columns)
    before = columns["train"].reference.copy()
    columns["train"].reference[:] = 0
    assert read_references(tmp_path / "references.npz", columns)
    np.testing.assert_array_equal(columns["train"].reference, before)
    with pytest.raises(UserError, match="dpo, orpo"):
        task_of(Preference, tokenizer, objective="ppo")


def test_frozen_tables_get_no_gradient_and_adapters_do(tokenizer):
    import tensorflow as tf

    lora = {"rank": 2, "alpha": None, "dropout": 0.0, "targets": ["*"]}
    task = task_of(Chat, tokenizer, size=LARGE, lora=lora)
    model = task.build_model()
    assert all("lora" in variable.path for variable in model.trainable_variables)
    columns, _ = encode_chats(chats(), template_for("", tokenizer), tokenizer, LENGTH)
    batch = first_batch(task, columns)
    with tf.GradientTape() as tape:
        outputs = model({t.name: batch[t.name] for t in model.inputs}, training=True)
        loss = task.loss_sums(outputs, batch)["loss"]
    grads = tape.gradient(loss, [v.value for v in model.trainable_variables])
    largest = {
        v.path: float(tf.reduce_max(tf.abs(grad)))
        for v, grad in zip(model.trainable_variables, grads, strict=True)
    }
    assert all((size > 0) == path.endswith("lora_b") for path, size in largest.items())
    again = Chat.from_config(task.to_config(), tokenizer)
    assert again.to_config() == task.to_config()
