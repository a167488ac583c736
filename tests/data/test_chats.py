"""Conversations of every form, and which of their tokens are learned."""

import json
import re

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.data.chats import (
    conversation,
    encode_answers,
    encode_chats,
    mismatched,
    parse_chats,
    parse_pairs,
    template_for,
)
from tfllm.data.readers import read
from tfllm.text import Tokenizer
from tfllm.text.chat import ChatTemplate

SPECIAL = ["<pad>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER, ANSWER = (
    {"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "A"))
)
FORMS = {
    "alpaca": ({"instruction": "Q", "input": "", "output": "A"}, "user:Q assistant:A"),
    "input": (
        {"instruction": "Q", "input": "x", "output": "A"},
        "user:Q\nx assistant:A",
    ),
    "history": (
        {"instruction": "Q", "output": "A", "history": [["a", "b"]], "system": "S"},
        "system:S user:a assistant:b user:Q assistant:A",
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "A"},
            ],
            "tools": '[{"name": "t"}]',
        },
        'system:Tools: [{"name": "t"}] user:Q assistant:{} tool:3 assistant:A',
    ),
    "messages": (
        {"messages": [{"role": "system", "content": "S"}, USER, ANSWER]},
        "system:S user:Q assistant:A",
    ),
    "tool_calls": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
            ]
        },
        'user:Q assistant:[{"id": 1}]',
    ),
    "prompt": ({"prompt": "Q", "response": "A"}, "user:Q assistant:A"),
}
PAIRS = {
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "A"},
        "rejected": {"from": "gpt", "value": "B"},
    },
    "plain": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "whole": {
        "chosen": [USER, ANSWER],
        "rejected": [USER, {"role": "assistant", "content": "B"}],
    },
    "alpaca": {"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"},
}


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["What is it? It is a stone.", "user assistant system tool"]
    return Tokenizer.train(texts, "bpe", 270, special_tokens=SPECIAL)


def said(row):
    return " ".join(f"{m['role']}:{m['content']}" for m in row["messages"])


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, lines, tmp_path):
    item, expected = FORMS[form]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(item) + "\n" if lines else json.dumps([item]))
    (row,) = read(path, parse=parse_chats).rows
    assert said(row) == expected
    assert (row["file"], row["line"]) == (str(path), 1)


@pytest.mark.parametrize("form", PAIRS)
def test_forms_of_pairs(form, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIRS[form]) + "\n")
    (row,) = read(path, parse=parse_pairs).rows
    assert (said(row), row["chosen"], row["rejected"]) == ("user:Q", "A", "B")


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ({"instruction": "Q"}, "no answer"),
        ({"text": "a", "label": "b"}, "no messages"),
        ({"messages": [ANSWER]}, "does not begin with a user"),
        ({"messages": [USER, {"role": "king", "content": "A"}]}, "no role 'king'"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "says is no text"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "is empty"),
        ([1, 2], "not a JSON object"),
    ],
)
def test_broken_rows_are_told_with_their_place(item, why, tmp_path):
    path = tmp_path / "broken.jsonl"
    rows = [FORMS["alpaca"][0]] * 3
    path.write_text("\n".join(map(json.dumps, [*rows, item])) + "\n")
    found = read(path, parse=parse_chats)
    assert len(found) == 3 and found.bad[0][:2] == (str(path), 4)
    assert why in found.bad[0][2]
    path.write_text(json.dumps(item) + "\n")
    with pytest.raises(UserError, match=re.escape(f"{path}:1") + f".*{why}"):
        read(path, parse=parse_chats)


def test_what_is_no_json_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("just a text\n")
    with pytest.raises(UserError, match='"messages"'):
        read(tmp_path / "a.txt", parse=parse_chats)
    (tmp_path / "a.jsonl").write_text('{"prompt": "Q", "chosen": "A", "rejected": "A"}')
    with pytest.raises(UserError, match="are the same"):
        read(tmp_path / "a.jsonl", parse=parse_pairs)


def decoded(tokenizer, ids):
    return tokenizer.decode([ids], skip_special_tokens=False)[0]


@pytest.mark.parametrize("loss_on", ["answers", "last", "all"])
def test_what_is_learned_is_what_the_template_says(loss_on, tokenizer):
    template = template_for("nowhere", tokenizer)
    messages = [
        {"role": "system", "content": "Be short. <|im_end|>"},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "\nA stone."},
        {"role": "user", "content": "Und jetzt? 是"},
        {"role": "assistant", "content": "是 a stone."},
    ]
    columns, counts = encode_chats(
        [{"messages": messages}], template, tokenizer, 500, loss_on
    )
    whole = template.render(messages, add_generation_prompt=False)
    ids = columns["token_ids"].row(0)
    targets = columns["targets"].row(0)
    np.testing.assert_array_equal(ids[1:], targets[:-1])
    assert decoded(tokenizer, [ids[0], *targets]) == whole
    learned = columns["target_weights"].row(0) > 0
    answers = ["\nA stone.<|im_end|>\n", "是 a stone.<|im_end|>\n"]
    expected = {"answers": "".join(answers), "last": answers[1]}
    expected = expected.get(loss_on, whole.removeprefix("<|im_start|>"))
    assert decoded(tokenizer, targets[learned]) == expected
    # What stands before an answer is what generation would be given.
    prompt, target = columns.prompts[0]
    start = tokenizer.encode([prompt], parse_special=True)[0]
    assert ids[: len(start)].tolist() == start and target == "是 a stone."
    assert counts == {"rows": 1, "whole_answer_cut": 0, "part_cut": 0, "tokens_cut": 0}


def test_truncation_is_counted(tokenizer):
    template = template_for("nowhere", tokenizer)
    rows = [conversation("a" * n, "b" * m) for n, m in ((5, 5), (5, 200), (300, 5))]
    columns, counts = encode_chats(rows, template, tokenizer, 100)
    assert len(columns) == 2 and columns.rows == [0, 1]
    assert columns.lengths.max() == 100
    assert (counts["rows"], counts["whole_answer_cut"], counts["part_cut"]) == (3, 1, 1)
    assert counts["tokens_cut"] > 200
    with pytest.raises(UserError, match="max_length"):
        encode_chats(rows[2:], template, tokenizer, 100)


def test_a_model_without_the_token_ends_answers_with_its_own():
    plain = Tokenizer.train(["a"], "bpe", 270, special_tokens=SPECIAL[:3])
    template = template_for("nowhere", plain)
    assert template.render([USER, ANSWER], False).endswith("A<|endoftext|>\n")


def test_a_template_that_refuses_names_the_row(tokenizer):
    template = ChatTemplate("{{ raise_exception('no') }}", tokenizer)
    row = conversation("a", "b") | {"file": "data.json", "line": 7}
    with pytest.raises(UserError, match=r"data\.json:7"):
        encode_chats([row], template, tokenizer, 100)


def test_pairs_share_their_question(tokenizer):
    template = template_for("nowhere", tokenizer)
    rows = [conversation(f"question {i}", f"answer {i}") for i in range(5)]
    pairs = mismatched(rows)
    assert len(pairs) == 5 and all(p["chosen"] != p["rejected"] for p in pairs)
    pairs[2]["rejected"] = "b" * 300
    pairs[3]["messages"][0]["content"] = "c" * 300
    columns, counts = encode_answers(pairs, template, tokenizer, 100)
    assert len(columns) == 4 and counts["whole_answer_cut"] == 1
    columns.reference[:] = np.arange(8).reshape(2, 4)
    plan = BatchPlan(columns.lengths, batch_size=3, max_length=100, seed=1)
    for step in range(plan.steps_per_epoch):
        (micro,) = plan.step(step)
        batch = columns.gather(micro)
        rows, size = micro.num_rows, len(micro.indices)
        assert batch["token_ids"].shape == (2 * rows, micro.length)
        np.testing.assert_array_equal(
            batch["reference"].reshape(2, -1)[:, :size],
            columns.reference[:, micro.indices],
        )
        for place, index in enumerate(micro.indices):
            for side, name in enumerate(("chosen", "rejected")):
                row = side * rows + place
                kept = [p for i, p in enumerate(pairs) if i != 3][index]
                learned = batch["targets"][row][batch["target_weights"][row] > 0]
                assert (kept[name] + "<|im_end|>\n").startswith(
                    decoded(tokenizer, learned)
                )
