"""Chat templates: a conversation becomes the one text that a model was trained on.

A template is Jinja, the model's own where it has one, else ChatML. It comes with the
model, so it runs in a sandbox.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfllm.core.errors import UserError
from tfllm.text.formats import gguf_metadata
from tfllm.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROLES = ("system", "user", "assistant", "tool")
BREAK = "\u200b"  # a zero-width space


class ChatTemplate:
    """Renders conversations.

    A special token that is written out in a message gets a zero-width space behind its
    first character, so that nobody can end a turn from within.

    Args:
        source: The Jinja template.
        tokenizer: Tells the special tokens.

    Example:
        >>> ChatTemplate().render([{"role": "user", "content": "Hi"}])
        '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
    """

    def __init__(self, source: str = CHATML, tokenizer: Tokenizer | None = None):
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        self.source = source
        self._template = environment.from_string(source)
        self._tokens, self.patterns = {}, []
        if tokenizer is not None:
            roles = tokenizer.roles.items()
            self._tokens = {f"{role}_token": token or "" for role, token in roles}
            special = [tokenizer.tokens_raw[i] for i in tokenizer.special_ids]
            self.patterns = _patterns(special)

    @classmethod
    def load(cls, source: str | Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """The template of `find`, or ChatML."""
        return cls.find(source, tokenizer) or cls(CHATML, tokenizer)

    @classmethod
    def find(cls, source: str | Path, tokenizer: Tokenizer) -> "ChatTemplate | None":
        """The template beside a tokenizer or model, if there is one.

        Args:
            source: A directory with `chat_template.jinja` or `tokenizer_config.json`,
                or a GGUF file.
            tokenizer: The model's.
        """
        source, found = Path(source), None
        if source.suffix == ".gguf":
            found = gguf_metadata(source.read_bytes()).get("tokenizer.chat_template")
        elif (file := source / "chat_template.jinja").is_file():
            found = file.read_text(encoding="utf-8")
        elif (file := source / "tokenizer_config.json").is_file():
            found = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(found, list):  # several by name
            found = {item["name"]: item["template"] for item in found}.get("default")
        return cls(found, tokenizer) if found else None

    def save(self, directory: str | Path) -> None:
        """Writes `chat_template.jinja`, where `load` and others find it."""
        path = Path(directory) / "chat_template.jinja"
        path.write_text(self.source, encoding="utf-8")

    def render(
        self, messages: Sequence[Mapping], add_generation_prompt: bool = True, **more
    ) -> str:
        """A conversation as text; encode it with `parse_special=True`.

        Args:
            messages: Dicts with `role` and `content`.
            add_generation_prompt: Whether the beginning of an answer follows.
            **more: Further variables of the template, as `tools`.

        Raises:
            UserError: The template refuses the conversation.
        """
        import jinja2

        messages = [
            {**m, "content": self.defused(str(m.get("content") or ""))}
            for m in messages
        ]
        values = {
            "add_generation_prompt": add_generation_prompt,
            **self._tokens,
            **more,
        }
        try:
            return self._template.render(messages=messages, **values)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses this: {error}") from None

    def defused(self, text: str) -> str:
        """A text without special tokens."""
        for pattern in self.patterns:
            text = re.sub(pattern, rf"\1{BREAK}\2", text)
        return text

    def turn(self, system: str | None = None) -> tuple[str, str]:
        """What stands before and after the words of a user's first turn."""
        messages = [{"role": "system", "content": system}] if system else []
        mark = "\ue000turn\ue001"
        text = self.render([*messages, {"role": "user", "content": mark}])
        if text.count(mark) != 1:
            raise UserError("the chat template does not show a user's words just once")
        before, _, after = text.partition(mark)
        return before, after

    def answers(self, messages: Sequence[Mapping], **more) -> list[tuple[str, bool]]:
        """A conversation in parts: `(text, whether the assistant says it)`.

        Joined they are what `render` gives without a prompt; training learns the parts
        that the assistant says, which include what ends a turn.
        """
        whole, at, parts = self.render(messages, False, **more), 0, []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:i], True, **more)
            after = self.render(messages[: i + 1], False, **more)
            if not (whole.startswith(after) and after.startswith(before)):
                raise UserError("the chat template changes what it rendered before")
            parts += [(whole[at : len(before)], False)]
            parts += [(whole[len(before) : len(after)], True)]
            at = len(after)
        return [part for part in [*parts, (whole[at:], False)] if part[0]]


def _patterns(tokens: Sequence[str]) -> list[str]:
    """Regular expressions, RE2's too, of `(first character)(rest)` of the tokens."""
    rests: dict[str, list[str]] = {}
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) > 1:
            rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return [f"({re.escape(first)})({'|'.join(rest)})" for first, rest in rests.items()]


def _to_json(value, ensure_ascii=False, indent=None, **_):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(reason):
    raise UserError(f"the chat template refuses this: {reason}")
