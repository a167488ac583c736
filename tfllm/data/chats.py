"""Conversations: Alpaca, ShareGPT and `messages` files, and pairs of answers.

Each row is told by its own keys. A row of what is read has `messages`, dicts of `role`
and `content`, and `text`, all that is said, by which rows are compared and held out.
Pairs have `chosen` and `rejected` beside it, the answers to these messages.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfllm.core.console import table, warn
from tfllm.core.errors import UserError
from tfllm.data.batching import Micro
from tfllm.data.columns import Columns, Ragged
from tfllm.data.order import shuffled
from tfllm.data.readers import RawFile, json_items
from tfllm.text import Tokenizer
from tfllm.text.chat import CHATML, ChatTemplate

TALKS = ("messages", "conversations", "conversation")
ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "bot", "chatgpt", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "function_response"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}
KEYS = {*TALKS, "instruction", "prompt", "question"}
LONGER = "Give a longer --max_length"
FORMS = (
    'A row has "messages" or "conversations", or "instruction" and "output"; a pair '
    '"chosen" and "rejected" too'
)


def conversation(question: str, answer: str, system: str | None = None) -> dict:
    """A row with one question and its answer."""
    said = {"system": system, "user": question, "assistant": answer}
    return _row([{"role": k, "content": v} for k, v in said.items() if v])


def parse_chats(file: RawFile) -> tuple[list[dict], str]:
    """What `readers.read` takes for conversations."""
    return _parsed(file, pairs=False)


def parse_pairs(file: RawFile) -> tuple[list[dict], str]:
    """What `readers.read` takes for chosen and rejected answers."""
    return _parsed(file, pairs=True)


def mismatched(rows: Sequence[dict], seed: int = 0) -> list[dict]:
    """Pairs made of conversations: an answer, and the one to another question."""
    order, found = shuffled(len(rows), seed), []
    for here, there in zip(order, np.roll(order, 1), strict=True):
        chosen, rejected = (rows[i]["messages"][-1]["content"] for i in (here, there))
        if chosen != rejected:
            pair = {"chosen": chosen, "rejected": rejected}
            found.append(_row(rows[here]["messages"][:-1], pair))
    return found


def _row(messages: list[dict], more: Mapping[str, str] | None = None) -> dict:
    said = [message["content"] for message in messages]
    more = dict(more or {})
    return {"text": "\n".join([*said, *more.values()]), "messages": messages, **more}


def _parsed(file: RawFile, pairs: bool) -> tuple[list[dict], str]:
    found = json_items(file, {*KEYS, "chosen"})
    if found is None:
        raise file.error("conversations are JSON or JSON lines", FORMS)
    rows = []
    for number, item in found[0]:
        try:
            row = _pair(item) if pairs else _row(_checked(_messages(item)))
        except ValueError as error:
            file.bad.append((number, str(error)))
            continue
        rows.append(row | {"file": str(file.path), "line": number})
    return rows, f"{found[1]}, {'pairs' if pairs else 'conversations'}"


def _messages(item: Any) -> list[dict]:
    """The messages of an item, whichever form it has."""
    if not isinstance(item, dict):
        raise ValueError("not a JSON object")
    found = []
    if talk := next((item[key] for key in TALKS if item.get(key)), None):
        if not isinstance(talk, list):
            raise ValueError("the messages are no list")
        found = [_message(one) for one in talk]
    elif isinstance(item.get("prompt"), list):
        found = [_message(one) for one in item["prompt"]]
    else:
        names = ("instruction", "prompt", "question")
        asked = next((item[name] for name in names if item.get(name)), None)
        if asked is None:
            raise ValueError("there are no messages and no instruction")
        for question, answer in item.get("history") or []:
            found += [_said("user", question), _said("assistant", answer)]
        more = item.get("input") or item.get("query")
        found.append(_said("user", f"{asked}\n{more}" if more else asked))
        names = ("output", "response", "answer", "completion")
        if answer := next((item[name] for name in names if item.get(name)), None):
            found.append(_said("assistant", answer))
    return _with_system(found, item.get("system"), item.get("tools"))


def _with_system(messages: list[dict], system, tools) -> list[dict]:
    """Puts what the system says, and the tools there are, first."""
    if messages and messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    if tools and tools not in ("[]", "{}"):
        if not isinstance(tools, str):
            tools = json.dumps(tools, ensure_ascii=False)
        system = f"{system}\n\n" if system else ""
        system += f"Tools: {tools}"
    return [_said("system", system), *messages] if system else messages


def _message(one: Any) -> dict:
    if not isinstance(one, dict):
        raise ValueError("a message is no JSON object")
    role = one.get("role", one.get("from"))
    content = one.get("content", one.get("value"))
    if calls := one.get("tool_calls") or one.get("function_call"):
        calls = json.dumps(calls, ensure_ascii=False)
        content = f"{content}\n{calls}" if content else calls
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise ValueError(f"there is no role '{role}'")
    return _said(ROLES[role.lower()], content)


def _said(role: str, content: Any) -> dict:
    if isinstance(content, list):  # parts, as some interfaces have them
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str) or not content.strip():
        empty = isinstance(content, str)
        raise ValueError(f"what the {role} says is {'empty' if empty else 'no text'}")
    return {"role": role, "content": content}


def _checked(messages: list[dict], answered: bool = True) -> list[dict]:
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if not roles or roles[0] != "user":
        raise ValueError("the conversation does not begin with a user")
    if answered and "assistant" not in roles:
        raise ValueError("there is no answer")
    return messages


def _pair(item: Any) -> dict:
    """Messages up to a user's, and two answers."""
    if not isinstance(item, dict) or not {"chosen", "rejected"} <= item.keys():
        raise ValueError("there is no chosen and rejected answer")
    sides = {}
    for name in ("chosen", "rejected"):
        side = item[name]
        whole = [_message(one) for one in side] if isinstance(side, list) else []
        last = side if isinstance(side, dict | str) else (side or [""])[-1]
        said = _message(last) if isinstance(last, dict) else _said("assistant", last)
        sides[name] = said["content"]
    if any(item.get(key) for key in KEYS):
        messages = _messages(item)
    else:  # both sides repeat the question
        messages = _with_system(whole[:-1], item.get("system"), item.get("tools"))
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if sides["chosen"] == sides["rejected"]:
        raise ValueError("the chosen and the rejected answer are the same")
    return _row(_checked(messages, answered=False), sides)


# -- conversations to ids ----------------------------------------------------------


class ChatColumns(Columns):
    """Encoded conversations: `token_ids`, `targets` and `target_weights`.

    Args:
        columns: The columns.
        prompts: Of each row the rendered conversation up to its last answer, and that.
        rows: Which of the encoded conversations each row is.
    """

    def __init__(self, columns: Mapping, prompts: Sequence, rows: Sequence[int]):
        super().__init__(columns)
        self.prompts, self.rows = prompts, rows

    def examples(self, tokenizer: Tokenizer, count: int, prompt: int) -> list[dict]:
        """Rows as `text`, the conversation before the last answer, and `target`."""
        return [{"text": text, "target": said} for text, said in self.prompts[:count]]


def template_for(source, tokenizer: Tokenizer) -> ChatTemplate:
    """The model's own template, or ChatML with what ends a text where it has no such.

    A model stops at a token: where `<|im_end|>` is none, the end token stands for it.
    """
    found = ChatTemplate.find(source, tokenizer)
    if found is None:
        end = "<|im_end|>"
        if end not in tokenizer.ids and tokenizer.roles["eos"]:
            end = tokenizer.roles["eos"]
        found = ChatTemplate(CHATML.replace("<|im_end|>", end), tokenizer)
    return found


def encode_chats(
    rows: Sequence[Mapping],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    max_length: int,
    loss_on: str = "answers",
) -> tuple[ChatColumns, dict[str, int]]:
    """Renders conversations and encodes them as generation will see them.

    Answers are encoded by themselves, as the prompt before one is in generation.

    Args:
        rows: With `messages`.
        template: Renders them.
        tokenizer: Gives the ids.
        max_length: Tokens of a row; a longer one loses its end.
        loss_on: All `answers`, the `last` one, or `all` that is said.

    Returns:
        Columns of the rows that keep a target; and how many rows there are, lose
        their whole answer (all of their targets) or a part of it to truncation.

    Raises:
        UserError: The template refuses a row, or none keeps a target.
    """
    texts, sizes, learned = [], [], []
    for row in rows:
        try:
            parts = template.answers(row["messages"])
        except UserError as error:
            where = f"{row['file']}:{row['line']}" if "file" in row else None
            raise UserError(error.what, where, error.fix) from None
        texts += [text for text, _ in parts]
        sizes.append(len(parts))
        last = max((i for i, (_, said) in enumerate(parts) if said), default=0)
        learned += [
            loss_on == "all" or (said and (loss_on == "answers" or i == last))
            for i, (_, said) in enumerate(parts)
        ]
    encoded = iter(tokenizer.encode(texts, parse_special=True))
    parts, ids, weights, prompts = iter(zip(texts, learned, strict=True)), [], [], []
    counts = {"rows": len(rows), "whole_answer_cut": 0, "part_cut": 0, "tokens_cut": 0}
    for size in sizes:
        tokens, wanted = list(tokenizer.prefix), [0.0] * len(tokenizer.prefix)
        for _ in range(size):
            (_, said), part = next(parts), next(encoded)
            tokens += part
            wanted += [float(said)] * len(part)
        # The first token has nothing before it that could tell it.
        kept = wanted[1 : max_length + 1]
        lost = sum(wanted[1:]) - sum(kept)
        counts["tokens_cut"] += max(0, len(tokens) - max_length - 1)
        counts["part_cut"] += bool(lost and sum(kept))
        counts["whole_answer_cut"] += not sum(kept)
        ids.append(tokens[: max_length + 1])
        weights.append(kept)
    for row in rows:
        last = max(i for i, m in enumerate(row["messages"]) if m["role"] == "assistant")
        answer = row["messages"][last]["content"]
        prompts.append((template.render(row["messages"][:last]), answer))
    kept = [i for i, wanted in enumerate(weights) if sum(wanted)]
    if not kept:
        raise UserError(
            f"no row keeps a part of an answer in {max_length} tokens", fix=LONGER
        )
    columns = {
        "token_ids": Ragged.from_lists(ids[i][:-1] for i in kept),
        "targets": Ragged.from_lists(ids[i][1:] for i in kept),
        "target_weights": Ragged.from_lists((weights[i] for i in kept), np.float32),
    }
    return ChatColumns(columns, [prompts[i] for i in kept], kept), counts


class PairedColumns:
    """Chosen and rejected answers to the same conversations; see `Columns`.

    Attributes:
        reference: float32 `[2, n]`, the answers' log-probabilities before training.
    """

    def __init__(self, chosen: ChatColumns, rejected: ChatColumns):
        self.sides = chosen, rejected
        self.lengths = np.maximum(chosen.lengths, rejected.lengths)
        self.reference = np.zeros((2, len(chosen)), np.float32)

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(
        self, micro: Micro, pad_values: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """One micro-batch: first the rows with chosen answers, then the rejected ones.

        Returns:
            What `Columns.gather` returns, with twice the rows, and `reference` float32
            `[2 * rows]`.
        """
        sides = [side.gather(micro, pad_values) for side in self.sides]
        batch = {name: np.concatenate([s[name] for s in sides]) for name in sides[0]}
        reference = np.zeros((2, micro.num_rows), np.float32)
        reference[:, micro.rows] = self.reference[:, micro.indices]
        return batch | {"reference": reference.reshape(-1)}

    def examples(self, tokenizer: Tokenizer, count: int, prompt: int) -> list[dict]:
        """See `ChatColumns.examples`; `target` is the chosen answer."""
        return self.sides[0].examples(tokenizer, count, prompt)


def encode_answers(
    rows: Sequence[Mapping], template: ChatTemplate, tokenizer: Tokenizer, max_length
) -> tuple[PairedColumns, dict[str, int]]:
    """Encodes pairs; see `encode_chats`. The two answers alone are targets."""

    def side(name):
        said = ({"role": "assistant", "content": row[name]} for row in rows)
        talks = [
            {**row, "messages": [*row["messages"], answer]}
            for row, answer in zip(rows, said, strict=True)
        ]
        return encode_chats(talks, template, tokenizer, max_length, "last")

    (chosen, counts), (rejected, other) = side("chosen"), side("rejected")
    counts = {k: max(n, other[k]) for k, n in counts.items()}
    both = sorted({*chosen.rows} & {*rejected.rows})
    if len(both) < len(rows):
        if not both:
            raise UserError("no pair keeps both answers", fix=LONGER)
        rows = [rows[i] for i in both]
        chosen, rejected = (side(name)[0] for name in ("chosen", "rejected"))
        counts["whole_answer_cut"] = counts["rows"] - len(rows)
    return PairedColumns(chosen, rejected), counts


def tell_cuts(counts: Mapping[str, Mapping[str, int]], max_length: int) -> None:
    """Shows what truncation takes, by split, and warns where it is much."""
    names = {
        "rows": "rows",
        "whole_answer_cut": "lose their whole answer: left out",
        "part_cut": "lose a part of an answer",
        "tokens_cut": "tokens that are cut off",
    }
    rows = [[told, *(c[key] for c in counts.values())] for key, told in names.items()]
    table(f"Truncation at {max_length} tokens", ["", *counts], rows)
    train = next(iter(counts.values()))
    lost = train["whole_answer_cut"] + train["part_cut"]
    if lost > 0.1 * train["rows"]:
        share = lost / train["rows"]
        warn(f"{share:.0%} of the training rows are cut: a longer --max_length?")
