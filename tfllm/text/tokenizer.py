"""`Tokenizer`: one definition, a fast engine for data, a graph for the server.

The definition is a Hugging Face `tokenizer.json`. The fast engine is the `tokenizers`
library, which reads that file as it is. The graph (`graph_tf.py`) carries out the same
definition with TensorFlow's own ops. What is not in `tokenizer.json` is decided here,
once for both: which tokens open, separate and end a text, how a pair is cut to a
length, and how ids become text again.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfllm.core.errors import UserError
from tfllm.core.files import atomic_write, sha256
from tfllm.text import definition as defs

KINDS = ("characters", "words", "wordpiece", "bpe", "unigram")
TRUNCATIONS = ("longest_first", "only_first", "only_second")


class Tokenizer:
    """Text to token ids and back.

    Make one with `Tokenizer.train`, or read one with `Tokenizer.load`.

    Args:
        definition: The content of a `tokenizer.json`.
        roles: Which token is `pad`, `unk`, `cls`, `sep`, `bos`, `eos` and `mask`; what
            is missing is told from the usual names.

    Raises:
        UserError: The pad token is the end token, or a role names no token.

    Example:
        >>> tokenizer = Tokenizer.train(["a cat", "a dog"], "words", 100)
        >>> tokenizer.decode(tokenizer.encode(["a cat"]))
        ['a cat']
    """

    def __init__(self, definition: dict, roles: dict[str, str | None] | None = None):
        self.definition = defs.complete(definition)
        self.kind = defs.kind_of(self.definition)
        self.ids = defs.vocabulary(self.definition)
        self.tokens_raw = [""] * (max(self.ids.values(), default=-1) + 1)
        for token, token_id in self.ids.items():
            self.tokens_raw[token_id] = token
        self.roles = defs.guess_roles(self.definition, self.ids) | (roles or {})
        for role, token in self.roles.items():
            if token is not None and token not in self.ids:
                raise UserError(f"the {role} token '{token}' is not in the vocabulary")
        if self.pad_id is not None and self.pad_id in (self.eos_id, self.sep_id):
            raise UserError(
                f"the pad token '{self.roles['pad']}' is also the end token: a model "
                "could not tell the end of a text from padding",
                fix="Give another one, as pad_token='<pad>'.",
            )
        self.single, self.pair = defs.templates(self.definition)
        self._text = json.dumps(self.definition, ensure_ascii=False)

    # -- making, reading and writing --------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], kind: str, vocabulary_size: int, **options):
        """Learns a vocabulary; see `tfllm.text.training.train` for the options.

        Args:
            texts: Strings, or paths of text files (a text a line).
            kind: `characters`, `words`, `wordpiece`, `bpe` or `unigram`.
            vocabulary_size: The largest number of tokens, special ones included.
            **options: `min_frequency`, `cleaning`, `lowercase`, `special_tokens`,
                `progress`, `dictionary`.
        """
        from tfllm.text.training import train

        return train(texts, kind, vocabulary_size, **options)

    @classmethod
    def load(cls, path: str | Path, *, pad_token: str | None = None, **options):
        """Reads a tokenizer of tfllm or of others; see `tfllm.text.formats.load`.

        Args:
            path: A directory, or one of the files listed there.
            pad_token: The token for padding; added at the end if it is a new one.
            **options: `lowercase`, for a BERT vocabulary that does not tell.
        """
        from tfllm.text.formats import load

        return load(path, pad_token=pad_token, **options)

    def save(self, directory: str | Path) -> Path:
        """Writes `tokenizer.json` and `tokenizer_config.json` (the roles)."""
        directory = Path(directory)
        roles = {f"{role}_token": token for role, token in self.roles.items() if token}
        roles = {"tokenizer_class": "PreTrainedTokenizerFast"} | roles
        text = json.dumps(self.definition, ensure_ascii=False, indent=1)
        atomic_write(directory / "tokenizer_config.json", json.dumps(roles, indent=1))
        atomic_write(directory / "tokenizer.json", text)
        return directory / "tokenizer.json"

    # -- the vocabulary ---------------------------------------------------------------

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.tokens_raw)

    @functools.cached_property
    def tokens(self) -> list[str]:
        """The tokens by id, as a person writes them (`cat`, `##s`, `Ġthe`, `▁the`)."""
        if self.kind != "words":
            return list(self.tokens_raw)
        return [defs.plain_word(token) for token in self.tokens_raw]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the definition and the roles: equal ones encode equally."""
        content = [self.definition, self.roles]
        return sha256(json.dumps(content, sort_keys=True, ensure_ascii=False))

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        added = self.definition["added_tokens"]
        ids = {token["id"] for token in added if token["special"]}
        roles = {self.ids[token] for token in self.roles.values() if token}
        return frozenset(ids | roles)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token (as `tokens` writes it, or raw), or None."""
        found = self.ids.get(token)
        if found is None and self.kind == "words":
            return self._plain_ids.get(token)
        return found

    @functools.cached_property
    def _plain_ids(self) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(self.tokens)}

    @functools.cached_property
    def prefix(self) -> list[int]:
        """Ids that the template puts before a text."""
        items = [item for item, _ in self.single.items]
        return items[: items.index("A")]

    pad_id = property(lambda self: self.ids.get(self.roles["pad"]))
    unk_id = property(lambda self: self.ids.get(self.roles["unk"]))
    cls_id = property(lambda self: self.ids.get(self.roles["cls"]))
    sep_id = property(lambda self: self.ids.get(self.roles["sep"]))
    bos_id = property(lambda self: self.ids.get(self.roles["bos"]))
    eos_id = property(lambda self: self.ids.get(self.roles["eos"]))
    mask_id = property(lambda self: self.ids.get(self.roles["mask"]))

    # -- text to ids ------------------------------------------------------------------

    @functools.cached_property
    def fast(self):
        """The `tokenizers.Tokenizer`; a special token in a text is plain text to it."""
        engine = self._engine()
        engine.encode_special_tokens = True
        return engine

    @functools.cached_property
    def _parsing(self):
        return self._engine()

    def _engine(self, text: str | None = None):
        import tokenizers

        engine = tokenizers.Tokenizer.from_str(text or self._text)
        model = self.definition["model"]
        if text is None and model["type"] == "Unigram":
            # Reading JSON, the library gets last digits wrong: sums were not exact.
            vocab = [tuple(piece) for piece in model["vocab"]]
            rest = model.get("unk_id"), bool(model.get("byte_fallback"))
            engine.model = tokenizers.models.Unigram(vocab, *rest)
        return engine

    def encode(
        self,
        texts: Sequence[str],
        add_special_tokens: bool = False,
        max_length: int | None = None,
        parse_special: bool = False,
    ) -> list[list[int]]:
        """Turns texts into token ids, in parallel.

        Args:
            texts: Strings.
            add_special_tokens: Whether to add those that open and end a text.
            max_length: Cuts a row after so many ids, the added ones included.
            parse_special: Whether special tokens written out in a text become their
                ids. Only for text that you rendered; in a user's text they are text.

        Returns:
            A list of ids for each text.
        """
        rows = [e.ids for e in self._encode(texts, parse_special, fast=True)]
        if not add_special_tokens:
            return rows if max_length is None else [row[:max_length] for row in rows]
        budget = self.budget(self.single, max_length)
        return [self.single.filled(row[:budget])[0] for row in rows]

    def encode_pairs(
        self,
        first: Sequence[str],
        second: Sequence[str],
        max_length: int | None = None,
        truncation: str = "longest_first",
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Turns pairs of texts into ids with their separators.

        Args:
            first, second: Strings, equally many.
            max_length: The longest row, added tokens included.
            truncation: What is cut: `longest_first`, `only_first` or `only_second`.

        Returns:
            Two lists of rows: token ids, and segment ids (0 first, 1 second text).
        """
        check_truncation(truncation)
        firsts, seconds = self.encode(first), self.encode(second)
        if len(firsts) != len(seconds):
            raise ValueError(f"{len(firsts)} first texts, {len(seconds)} second ones")
        budget = self.budget(self.pair, max_length)
        rows = []
        for a, b in zip(firsts, seconds, strict=True):
            if budget is not None:
                len_a, len_b = pair_lengths(len(a), len(b), budget, truncation)
                a, b = a[:len_a], b[:len_b]
            rows.append(self.pair.filled(a, b))
        return [ids for ids, _ in rows], [segments for _, segments in rows]

    def encode_with_offsets(
        self, texts: Sequence[str]
    ) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Ids, and for each its `(start, end)` in code points of the text as given."""
        encodings = self._encode(texts, False, fast=False)
        offsets = [e.offsets for e in encodings]
        if self._unmarked is not None:
            words = self._encode(texts, False, fast=False, engine=self._unmarked)
            pairs = zip(encodings, words, strict=True)
            offsets = [
                _word_offsets(e.word_ids, e.offsets, w.offsets) for e, w in pairs
            ]
        return [e.ids for e in encodings], offsets

    @functools.cached_property
    def _unmarked(self):
        """Finds the words of a marked definition: a mark has no place in the text."""
        definition = defs.unmarked(self.definition)
        return definition and self._engine(json.dumps(definition))

    def budget(self, template: "defs.Template", max_length: int | None) -> int | None:
        """How many ids of texts fit beside a template's own tokens."""
        if max_length is None:
            return None
        if max_length < template.added:
            raise UserError(
                f"max_length {max_length} leaves no room for the "
                f"{template.added} tokens that are added to a text"
            )
        return max_length - template.added

    def _encode(self, texts, parse_special: bool, fast: bool, engine=None):
        if isinstance(texts, str | bytes):
            raise TypeError("encode takes a list of texts, not a single one")
        engine = engine or (self._parsing if parse_special else self.fast)
        run = engine.encode_batch_fast if fast else engine.encode_batch
        texts = list(texts)
        try:
            return run(texts, add_special_tokens=False)
        except (TypeError, UnicodeError):  # halves of surrogate pairs, or bytes
            return run([whole_text(t) for t in texts], add_special_tokens=False)

    # -- ids to text ------------------------------------------------------------------

    @functools.cached_property
    def pieces(self) -> "defs.Pieces":
        """What each id becomes in `decode`; the graph uses the same table."""
        return defs.pieces(self.definition, self.kind, self.tokens_raw)

    def decode(
        self,
        rows: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        unknown: Sequence[Sequence[str]] | None = None,
    ) -> list[str]:
        """Turns lists of ids into texts; ids outside the vocabulary are left out.

        Args:
            rows: Lists of ids.
            skip_special_tokens: Whether special tokens are left out.
            unknown: For each id what is written if it is the unknown token's.
        """
        skipped = self.special_ids if skip_special_tokens else frozenset()
        texts, pieces, size = [], self.pieces, len(self.tokens_raw)
        for number, row in enumerate(rows):
            parts, glued = [], True
            for place, token_id in enumerate(map(int, row)):
                copied = unknown is not None and token_id == self.unk_id
                if not 0 <= token_id < size or (token_id in skipped and not copied):
                    continue
                if not (glued or pieces.glue_left[token_id]):
                    parts.append(b" ")
                text = pieces.texts[token_id]
                parts.append(unknown[number][place].encode() if copied else text)
                glued = pieces.glue_right[token_id]
            text = b"".join(parts)
            if pieces.strip_start and text.startswith(b" "):
                text = text[1:]
            texts.append(text.decode("utf-8", errors="replace"))
        return texts

    # -- the engine that is exported --------------------------------------------------

    def graph(self):
        """The in-graph engine, a `tf.Module`; see `graph_tf.GraphTokenizer`."""
        from tfllm.text.graph_tf import GraphTokenizer

        return GraphTokenizer(self)

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocabulary_size={self.vocabulary_size})"


def _word_offsets(word_ids, offsets, words):
    """Offsets, with those of a word where a token is a whole one."""
    counts = Counter(word_ids)
    return [
        words[word] if counts[word] == 1 else offset
        for word, offset in zip(word_ids, offsets, strict=True)
    ]


def check_truncation(name: str) -> None:
    """Raises a `UserError` if there is no such strategy."""
    if name not in TRUNCATIONS:
        raise UserError(
            f"unknown truncation '{name}'",
            fix=f"It is one of {', '.join(TRUNCATIONS)}.",
        )


def pair_lengths(a: int, b: int, budget: int, truncation: str) -> tuple[int, int]:
    """How much of two texts stays within a budget of ids (as `tokenizers` cuts)."""
    if truncation == "only_first":
        return max(0, min(a, budget - b)), min(b, budget)
    if truncation == "only_second":
        return min(a, budget), max(0, min(b, budget - a))
    short = min(a, b, budget // 2)
    long = min(max(a, b), budget - short)
    return (long, short) if a > b else (short, long)


def whole_text(text: str | bytes) -> str:
    """A text without halves of surrogate pairs; bytes are read as UTF-8."""
    if isinstance(text, bytes):
        return text.decode("utf-8", errors="replace")
    return re.sub("[\ud800-\udfff]", "\ufffd", str(text))
