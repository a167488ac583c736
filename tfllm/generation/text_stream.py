"""Text as its tokens come: never half a character, never part of a stop string."""

import codecs
from collections.abc import Iterable, Sequence

from tfllm.text import Tokenizer


class TextStream:
    """Turns the tokens of an answer to text, a few at a time.

    All that it gave, joined, is what `Tokenizer.decode` makes of prompt and answer,
    less the prompt's part.

    Args:
        tokenizer: What made the prompt.
        prompt: Ids before the answer: they tell whether it begins with a space.
        stops: Strings that end the answer; they and what follows are not given.

    Attributes:
        stopped: Whether a stop string was met.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Iterable[int] = (),
        stops: Sequence[str] = (),
    ):
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._glued, self._begun, self._held = True, False, ""
        self.stopped = False
        for token in prompt:
            self._decoder.decode(self._bytes(token))
        self._decoder.reset()

    def push(self, ids: Iterable[int], last: bool = False) -> str:
        """The text that is certain after these tokens.

        Args:
            ids: The next tokens.
            last: Whether they are the last ones: what was held back is then given.
        """
        if self.stopped:
            return ""
        parts = [self._decoder.decode(self._bytes(token)) for token in ids]
        text = self._held + "".join(parts)
        text += self._decoder.decode(b"", final=True) if last else ""
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = 0 if last else self._open(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _open(self, text: str) -> int:
        """Length of the end of a text with which a stop string could begin."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0

    def _bytes(self, token: int) -> bytes:
        tokenizer, pieces = self._tokenizer, self._tokenizer.pieces
        known = 0 <= token < tokenizer.vocabulary_size
        if not known or token in tokenizer.special_ids:
            return b""
        tight = self._glued or pieces.glue_left[token]
        self._glued = pieces.glue_right[token]
        text = pieces.texts[token] if tight else b" " + pieces.texts[token]
        if text and not self._begun:
            self._begun = True
            return text.removeprefix(b" ") if pieces.strip_start else text
        return text
