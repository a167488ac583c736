"""Cleaning of raw text, as normalizer steps that a tokenizer carries with it.

A `Cleaning` becomes the normalizer of `tokenizer.json`. Whatever reads that file (the
fast engine, the graph that serves, the `tokenizers` library of someone else) cleans a
text in the very same way; nothing has to be remembered beside it.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tfllm.core.errors import UserError, did_you_mean
from tfllm.text.scripts import UNSPACED

UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# C0 and C1 but for tab and the line ends, and the byte order mark.
CONTROL = r"[\x{0}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}-\x{9F}\x{FEFF}]"
HTML_TAG = r"</?[A-Za-z!][^<>]*>"
ENTITIES = {
    "&nbsp;": " ",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&#39;": "'",
    "&apos;": "'",
    "&amp;": "&",  # last, so that "&amp;lt;" becomes "&lt;"
}
# A stop word of an alphabet is a whole run of word characters; a Chinese one is taken
# out wherever it stands.
WHOLE_WORD = (r"(?<!\w)(?:", r")(?!\w)")
ANYWHERE = ("(?:", ")")


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What is done to a text before it is cut into tokens; every step is optional.

    Args:
        unicode: Unicode normalisation form, `NFC`, `NFD`, `NFKC`, `NFKD` or None.
        control: Whether to drop control characters (tab and line ends stay) and byte
            order marks.
        html: Whether tags become a space and the common entities their character.
        full_width: Whether full-width letters, digits and signs become their ASCII
            forms (NFKC does that too, and much more).
        lowercase: Whether to fold capitals.
        stop_words: `"en"`, `"zh"`, or words of one's own to take out; None for none.
    """

    unicode: str | None = "NFKC"
    control: bool = True
    html: bool = False
    full_width: bool = False
    lowercase: bool = False
    stop_words: str | Sequence[str] | None = None

    def __post_init__(self):
        if self.unicode is not None and self.unicode not in UNICODE_FORMS:
            raise UserError(
                f"unknown Unicode form '{self.unicode}'",
                fix=did_you_mean(str(self.unicode), UNICODE_FORMS)
                or f"It is one of {', '.join(UNICODE_FORMS)}, or none.",
            )
        if self.stop_words is not None and not isinstance(self.stop_words, str):
            object.__setattr__(self, "stop_words", tuple(self.stop_words))
        self._words()

    def to_dict(self) -> dict:
        """The settings, as JSON can hold them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, settings: dict) -> "Cleaning":
        """The reverse of `to_dict`; a `UserError` names an unknown key."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in settings:
            if key not in names:
                raise UserError(
                    f"unknown cleaning step '{key}'", fix=did_you_mean(key, names)
                )
        return cls(**settings)

    def steps(self) -> list[dict]:
        """The steps as normalizers of a `tokenizer.json`, in order."""
        steps = []
        if self.html:
            steps += [replacement(HTML_TAG, " ", regex=True)]
            steps += [replacement(entity, char) for entity, char in ENTITIES.items()]
        if self.control:
            steps += [replacement(CONTROL, "", regex=True)]
        if self.full_width and self.unicode not in ("NFKC", "NFKD"):
            wide = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)}
            wide["\u3000"] = " "
            steps += [replacement(char, narrow) for char, narrow in wide.items()]
        if self.unicode:
            steps += [{"type": self.unicode}]
        unspaced = re.compile(f"[{UNSPACED}]").search
        other = [word for word in self._words() if unspaced(word)]
        latin = [word for word in self._words() if not unspaced(word)]
        if latin:
            forms = {
                f for w in latin for f in (w, w.lower(), w.capitalize(), w.upper())
            }
            steps += [_taken_out(forms, WHOLE_WORD)]
        if other:
            steps += [_taken_out(other, ANYWHERE)]
        if self.lowercase:
            steps += [{"type": "Lowercase"}]
        return steps

    def clean(self, text: str) -> str:
        """The cleaned text, by itself."""
        return _normalizer(json.dumps(self.steps())).normalize_str(text)

    def _words(self) -> tuple[str, ...]:
        if not self.stop_words:
            return ()
        if not isinstance(self.stop_words, str):
            if bad := [w for w in self.stop_words if not w or not _is_word(w)]:
                raise UserError(f"'{bad[0]}' is no stop word", fix="Give whole words.")
            return self.stop_words
        lists = stop_words()
        if self.stop_words not in lists:
            raise UserError(
                f"no stop words for '{self.stop_words}'",
                fix=f"It is one of {', '.join(lists)}, or a list of words.",
            )
        return tuple(lists[self.stop_words])


def replacement(pattern: str, content: str, regex: bool = False) -> dict:
    """A `Replace` normalizer."""
    kind = "Regex" if regex else "String"
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def alternatives(pattern: str, frame: tuple[str, str]) -> list[str] | None:
    """The words of a pattern that `Cleaning` made with that frame, else None."""
    start, end = frame
    if not (pattern.startswith(start) and pattern.endswith(end)):
        return None
    words = pattern[len(start) : len(pattern) - len(end)].split("|")
    return words if all(map(_is_word, words)) else None


@functools.cache
def stop_words() -> dict[str, list[str]]:
    """The lists of function words that come with the package, by language."""
    file = Path(__file__).with_name("stop_words.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _is_word(word: str) -> bool:
    return word.replace("_", "a").isalnum()


def _taken_out(words, frame: tuple[str, str]) -> dict:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return replacement(frame[0] + "|".join(longest_first) + frame[1], "", regex=True)


@functools.lru_cache(maxsize=16)
def _normalizer(steps: str):
    from tokenizers import normalizers

    # The library makes a normalizer from JSON only as a part of a tokenizer.
    return normalizers.Sequence(
        [normalizer_from_json(step) for step in json.loads(steps)]
    )


def normalizer_from_json(step: dict):
    """The normalizer of the `tokenizers` library that a JSON object describes."""
    from tokenizers import Tokenizer

    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    definition = {"version": "1.0", "added_tokens": [], "normalizer": step}
    definition |= {"pre_tokenizer": None, "post_processor": None, "decoder": None}
    return Tokenizer.from_str(json.dumps(definition | {"model": model})).normalizer
