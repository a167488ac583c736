"""Running text: documents read lazily, cut into sentences, kept on disk as token ids.

A corpus may be larger than memory: documents are read one after another, encoded in
blocks and appended to arrays on the disk, which later starts only map.
"""

import functools
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfllm.config import flag
from tfllm.core.console import note, table, warn
from tfllm.core.errors import UserError
from tfllm.core.files import sha256
from tfllm.data import samples
from tfllm.data.cache import ArrayWriter, cached_arrays
from tfllm.data.decode import encoding_of
from tfllm.data.readers import expand
from tfllm.text import Tokenizer

BLOCK = 256  # documents encoded at a time
SPLITS = ("train", "validation", "test")
SUFFIXES = (".txt", ".jsonl", ".json")
# Of files that are documents as they stand, code among them.
_TEXT = "txt jsonl json md rst tex html css csv py pyi c h cc cpp hpp java js ts go rs"
WHOLE = tuple(
    f".{kind}" for kind in (_TEXT + " rb php cs kt swift sh sql lua r").split()
)
FEW = 20  # files from which each gives a part to validation and test
PIECE = 50_000  # characters
MOST_BAD = 5  # rows of a file that are no documents, and one in a hundred
MOST_UNKNOWN = 0.02
# Held out for validation, and again for the test, where no file is named: this share of
# the documents, but no more than about so many bytes.
SHARE, MOST_HELD_OUT = 0.05, 4e6

# A sentence ends after these and the quotes and brackets that close behind them. An
# ellipsis may stand inside a sentence; a Latin full stop needs a look at what follows.
_WIDE = r"[。！？]+|[!?]+(?![\"'”’)\]]*\s+[a-zß-ÿ])|…+(?=[”’」』])"
_LATIN = (
    r"(?<=[^\s.])\.+(?=[\"'”’)\]]*\s+[\"'“‘(\[]*"
    r"[A-Z0-9\u00c0-\u00de\u0391-\u042f\u3400-\u9fff])"
)
_END = re.compile(rf"(?:{_WIDE}|{_LATIN})[。！？!?.…]*[\"'”’」』）)\]】》]*")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]|Mrs?|Ms|Dr|Prof|St|Mt|Jr|Sr|"
    r"Gen|Col|Capt|Lt|Sgt|Rev|Hon|Gov|Sen|Rep|Pres|vs|etc|No|Nos|Vol|pp?|Fig|Figs|Eq|"
    r"cf|al|approx|Inc|Ltd|Co|Corp|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)\.$"
)


def sentences(text: str) -> list[str]:
    """Cuts a text into sentences, English, Chinese or both mixed.

    A line's end is a sentence's end too, unless the next line goes on with a small
    letter, as in text that was wrapped.

    Returns:
        Sentences without the white space around them; none is empty.
    """
    found = []
    text = re.sub(r"(?<=[^.!?:\n])[ \t]*\n[ \t]*(?=[a-zß-ÿ])", " ", text)
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            if _ABBREVIATION.search(line[start : match.end()]):
                continue
            found.append(line[start : match.end()].strip())
            start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


@dataclass
class CorpusFlags:
    """Where running text comes from."""

    train_file: list[str] = flag(
        [], "folders, paths or globs of text (an empty line ends a document) or of "
        'JSON lines {"text": …}, .gz as is'
    )  # fmt: skip
    validation_file: list[str] = flag([], "without it some documents are held out")
    test_file: list[str] = flag([], "without it some documents are held out")
    text_column: str = flag("text", "key of the text in JSON lines")
    max_train_samples: int | None = flag(None, "use so many documents", minimum=1)
    max_eval_samples: int | None = flag(
        None, "use so many validation and test documents", minimum=1
    )
    validation_share: float | None = flag(
        None,
        "of the documents held out where there is no file, and again for the test",
        minimum=0.0001,
        maximum=0.4,
    )


def load_documents(
    flags: CorpusFlags, sample: str, whole: bool = False
) -> dict[str, "Documents"]:
    """Finds the text of `train`, `validation` and `test`.

    Args:
        flags: Files and limits.
        sample: Name of the sample that stands in when no file is given.
        whole: A file of plain text is one document, empty lines and all. Of few such
            files the ends are held out, of many some files.

    Raises:
        UserError: There is no such file.
    """
    limits = {"train": flags.max_train_samples}
    limit = {k: limits.get(k, flags.max_eval_samples) for k in SPLITS}
    if not flags.train_file:
        if flags.validation_file or flags.test_file:
            raise UserError("there is no --train_file for these files")
        note(f"No --train_file: the sample data '{sample}' are used.")
        texts = samples.load_documents(sample)
        return {
            k: Documents(texts=texts[k], limit=limit[k], name=f"{sample}/{k}")
            for k in SPLITS
        }
    options = {"column": flags.text_column, "whole": whole}
    suffixes = WHOLE if whole else SUFFIXES
    files = find_files(flags.train_file, suffixes)
    size = sum(file.stat().st_size for file in files)
    share = flags.validation_share or min(SHARE, MOST_HELD_OUT / max(1, size))
    found, low = {}, 0.0
    for name in ("validation", "test"):
        if named := getattr(flags, f"{name}_file"):
            paths = find_files(named, suffixes)
            found[name] = Documents(paths, limit=limit[name], **options)
        else:
            found[name] = Documents(
                files, low=low, high=low + share, limit=limit[name], **options
            )
            low += share
            note(f"{name}: {share:.2%} of the documents are held out")
    found["train"] = Documents(files, low=low, limit=limit["train"], **options)
    return {name: found[name] for name in SPLITS}


@dataclass
class Documents:
    """Texts of one split, read anew each time they are gone through.

    Attributes:
        files: Files of text; or
        texts: the texts themselves.
        low, high: Takes the documents whose hash, from 0 to 1, lies between: the same
            text falls on the same side wherever it stands.
        limit: Takes so many at most.
        name: What the texts are called in reports when there are no files.
        column: Key of the text in JSON lines.
        whole: A file of plain text is one document; where there are few of them,
            `low` and `high` are places in each, counted from its end.
    """

    files: Sequence[Path] = ()
    texts: Sequence[str] = ()
    low: float = 0.0
    high: float = 1.0
    limit: int | None = None
    name: str = ""
    column: str = "text"
    whole: bool = False

    @functools.cached_property
    def hashes(self) -> list[str]:
        """SHA-256 of each file, or of the texts."""
        if self.files:
            return [sha256(path) for path in self.files]
        return [sha256("\0".join(self.texts))]

    def __iter__(self) -> Iterator[str]:
        return islice(self._all(), self.limit)

    def _all(self) -> Iterator[str]:
        every = self.low <= 0.0 and self.high >= 1.0
        options = {"column": self.column, "whole": self.whole}
        files = (read_documents(path, **options) for path in self.files)
        parts = [self.texts, *files]
        for text in (text for part in parts for text in part):
            if isinstance(text, _Whole) and len(self.files) < FEW and not every:
                cuts = (text.line(1 - place) for place in (self.high, self.low))
                if part := text[slice(*cuts)]:
                    yield part
            elif every or self.low <= _place(text) < self.high:
                yield text

    @property
    def key(self) -> list:
        """What the texts depend on, as JSON."""
        parts = [self.hashes, self.low, self.high, self.limit, self.column]
        return [*parts, *["whole"] * self.whole]

    def sources(self) -> list[dict]:
        """`path` and `sha256` of each file, for reports."""
        names = [str(path) for path in self.files] or [self.name]
        return [
            {"path": name, "sha256": digest}
            for name, digest in zip(names, self.hashes, strict=True)
        ]

    def sample(self, characters: int) -> list[str]:
        """Documents of about so many characters, evenly chosen, to learn words from."""
        size = sum(path.stat().st_size for path in self.files) / 2
        share = characters / max(1.0, size)
        if share >= 1 or not self.files:
            return list(self)
        texts = (piece for text in self for piece in pieces(text))
        return [text for text in texts if _place(text, "sample") < share]


class _Whole(str):
    """A file of plain text."""

    def line(self, share: float) -> int:
        """Where the line begins that holds this share of the text."""
        place = round(share * len(self))
        return place if place == len(self) else self.rfind("\n", 0, place) + 1 or place


def pieces(text: str) -> list[str]:
    """A text cut at ends of lines, where there are, into pieces of moderate size."""
    cuts = [0]
    while len(text) - cuts[-1] > PIECE:
        end = cuts[-1] + PIECE
        cuts.append(text.rfind("\n", cuts[-1], end) + 1 or end)
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def find_files(paths: Iterable[str], suffixes: tuple = SUFFIXES) -> list[Path]:
    """The text files that paths, globs and folders name, in order.

    Raises:
        UserError: There is none.
    """
    found = {}
    for path, _ in expand(paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and file.name.removesuffix(".gz").endswith(suffixes)
            )
            if not inside:
                fix = f"It should hold files that end in {', '.join(suffixes)}"
                raise UserError("there is no text in the folder", path, fix)
        found |= dict.fromkeys(inside)
    return list(found)


def read_documents(
    path: Path, column: str = "text", whole: bool = False
) -> Iterator[str]:
    """The documents of a file, one after another.

    Plain text, where an empty line ends a document, or JSON lines `{"text": …}`, a
    document each; compressed with gzip or not; told apart by content.

    Args:
        path: The file.
        column: Key of the text in JSON lines.
        whole: A file of plain text is one document.

    Raises:
        UserError: The file cannot be read, is no text, or has many bad rows.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        opened = gzip.open if packed else open
        with opened(path, "rb") as file:
            head = file.read(1 << 16)
        encoding = encoding_of(head.rpartition(b"\n")[0] or head, path)
        with opened(path, "rt", encoding=encoding, errors="replace") as lines:
            start = head.decode(encoding, "replace")
            json_rows = re.match(r'\s*(\{\s*"|\[\s*\{)', start)
            # A file of settings is a document too.
            named = f'"{column}"' in start.lstrip().partition("\n")[0]
            if json_rows and (named or not whole):
                yield from _json_documents(path, lines, column)
            elif whole:
                yield _Whole(lines.read().removeprefix("\ufeff"))
            else:
                yield from _plain_documents(lines)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read the file ({error})", path) from None


def _plain_documents(lines: Iterable[str]) -> Iterator[str]:
    document = []
    for line in lines:
        if line.strip("\ufeff \t\r\n\u3000"):
            document.append(line)
        elif document:
            yield "".join(document).rstrip()
            document = []
    if document:
        yield "".join(document).rstrip()


def _json_documents(path: Path, lines: Iterable[str], column: str) -> Iterator[str]:
    good, bad = 0, []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[column]
            if not isinstance(text, str):
                raise ValueError(f"'{column}' is no string")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = (
                f"there is no '{column}'" if isinstance(error, KeyError) else str(error)
            )
            bad.append(f"{path}:{number}: {why}")
            if len(bad) > max(MOST_BAD, 0.01 * good):
                what = f"{len(bad)} rows of {number} are no documents"
                raise UserError(
                    f"{what}: {'; '.join(bad[:3])}",
                    fix=f'A row is a JSON object with a "{column}" (--text_column)',
                ) from None
            continue
        good += 1
        if text.strip():
            yield text
    if bad:
        warn(f"{len(bad)} rows were left out: {'; '.join(bad[:3])}")
    if not good:
        raise UserError("there is no document", path)


def _place(text: str, salt: str = "") -> float:
    return int(sha256(f"{salt}\0{''.join(text.split())}")[:12], 16) / 16**12


class Corpus(NamedTuple):
    """Encoded text, memory-mapped.

    Attributes:
        token_ids: uint16 or int32 [tokens], all documents one after another.
        word_starts: bool [tokens], where a segmenter's words begin; `None` without one.
        sentences: int64 [n + 1], where sentences begin, from 0 to the last one's end.
        documents: int64 [m + 1], which sentence each document begins with.
        key: What the arrays depend on, as JSON.
    """

    token_ids: np.ndarray
    word_starts: np.ndarray | None
    sentences: np.ndarray
    documents: np.ndarray
    key: dict

    @property
    def size(self) -> int:
        """Number of documents."""
        return len(self.documents) - 1


def encode_corpus(
    documents: Documents, tokenizer: Tokenizer, segmenter: Tokenizer | None = None
) -> Corpus:
    """Encodes documents, or finds what was encoded before.

    Args:
        documents: Texts.
        tokenizer: Gives the ids.
        segmenter: A tokenizer of words: its words are kept beside the ids, to be masked
            whole.

    Raises:
        UserError: There is no text.
    """
    key = {
        "corpus": documents.key,
        "tokenizer": tokenizer.fingerprint,
        "segmenter": segmenter and segmenter.fingerprint,
        "rule": [_END.pattern, _ABBREVIATION.pattern],
    }
    dtype = np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.int32

    def write(writer: ArrayWriter) -> None:
        tokens = count = 0
        writer.append("sentences", np.zeros(1, np.int64))
        writer.append("documents", np.zeros(1, np.int64))
        stream = iter(documents)
        while texts := list(islice(stream, BLOCK)):
            cut = [sentences(text) for text in texts]
            flat = [sentence for part in cut for sentence in part]
            starts = []
            if segmenter is None:
                rows = tokenizer.encode(flat)
            else:
                rows, starts = _with_word_starts(flat, tokenizer, segmenter)
            # A sentence may be empty once it is cleaned, and so may be a document.
            lengths = np.array([len(row) for row in rows], np.int64)
            owners = np.repeat(np.arange(len(cut)), [len(part) for part in cut])
            sizes = np.bincount(owners[lengths > 0], minlength=len(cut))
            ids = [token for row in rows for token in row]
            writer.append("token_ids", np.array(ids, dtype))
            if segmenter is not None:
                writer.append("word_starts", np.array(starts, bool))
            writer.append("sentences", tokens + np.cumsum(lengths[lengths > 0]))
            writer.append("documents", count + np.cumsum(sizes[sizes > 0]))
            tokens, count = tokens + len(ids), count + int(sizes.sum())
        if not tokens:
            raise no_text(documents)

    found = cached_arrays(key, write)
    return Corpus(found["token_ids"], found.get("word_starts"), found["sentences"],
                  found["documents"], key)  # fmt: skip


def no_text(documents: Documents) -> UserError:
    """What is wrong with documents without a token."""
    what, fix = "there is no text", "Give more documents"
    if documents.low > 0 or documents.high < 1:
        what += " left for each of train, validation and test"
        fix += ", an empty line after each, or a --validation_file and a --test_file"
    return UserError(what, documents.files[0] if documents.files else None, fix)


def _with_word_starts(
    texts: list[str], tokenizer: Tokenizer, segmenter: Tokenizer
) -> tuple[list, list]:
    """Ids of each text, and for all tokens in a row whether a word begins there."""
    rows, offsets = tokenizer.encode_with_offsets(texts)
    _, words = segmenter.encode_with_offsets(texts)
    flags = []
    for spans, found in zip(offsets, words, strict=True):
        inside = {i for start, end in found for i in range(start + 1, end)}
        flags += [start not in inside for start, _ in spans]
    return rows, flags


def describe(corpora: Mapping[str, Corpus], tokenizer: Tokenizer) -> dict:
    """Shows how large the splits are and how well the tokenizer fits them.

    Returns:
        For data_report.json: split → numbers by name.
    """
    report = {}
    for name, corpus in corpora.items():
        tokens, count = len(corpus.token_ids), len(corpus.sentences) - 1
        unknown = np.count_nonzero(corpus.token_ids == tokenizer.unk_id) / tokens
        report[name] = {
            "documents": corpus.size,
            "sentences": count,
            "tokens": tokens,
            "tokens_a_sentence": tokens / count,
            "unknown_share": unknown,
        }
        if unknown > MOST_UNKNOWN:
            warn(f"{name}: the tokenizer does not know {unknown:.1%} of the tokens")
    rows = [[key, *(r[key] for r in report.values())] for key in report["train"]]
    table("Text", ["", *report], rows)
    return report
