"""Bytes of a file to text: gzip by its magic bytes, the encoding told from content."""

import codecs
import gzip
import re
import zlib
from pathlib import Path

from tfllm.core.errors import UserError

_NOT_TEXT = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word document",
    b"%PDF": "a PDF document",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite database",
}
_BOMS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
# Frequent characters of running text, by which double-byte encodings are told apart.
_FREQUENT = {
    "gb18030": "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能"
    "而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没"
    "动面起看定天分还进好小部其些主样理心她本前开但因只从想实日",
    "big5": "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能"
    "而子那得於著下自之年過發後作里用道行所然家種事成方多經麼去法學如都同現當沒"
    "動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日",
    "shift_jis": "".join(map(chr, range(0x3041, 0x30FF))),
    "euc_kr": "이다는의에을가고를은한도하지로서사기자나정아스인리그어시해들만대으게라일"
    "있수면부전보것안주제없",
}


def decode(path: Path, encoding: str | None = None) -> tuple[str, str, bytes]:
    """Reads a text file.

    Args:
        path: The file, compressed with gzip or not.
        encoding: Its encoding, where the user knows it.

    Returns:
        The text (line ends are `\\n`; bytes that are wrong in UTF-8 are U+FFFD), the
        encoding, and the file's own bytes.

    Raises:
        UserError: The file is missing, is not text, or its encoding cannot be told.
    """
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        fix = f"Name the files in it, for example '{path}/*.tsv'."
        raise UserError("this is a folder", path, fix) from None
    except OSError as error:
        raise UserError(f"cannot read the file ({error.strerror})", path) from None
    data = raw
    if raw[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            fix = "Fetch or compress the file again."
            raise UserError(f"damaged gzip file ({error})", path, fix) from None
    for magic, kind in _NOT_TEXT.items():
        if data.startswith(magic):
            fix = "Save it as TSV, CSV or JSON lines in UTF-8."
            raise UserError(f"this is {kind}, not text", path, fix)
    name = encoding or guess_encoding(data)
    if name is None:
        fix = "Save it as UTF-8, for example with: iconv -f ENCODING -t UTF-8."
        raise UserError("the encoding cannot be told", path, fix)
    if name in ("big5", "shift_jis", "euc_kr") and not encoding:
        fix = f"Convert it: iconv -f {name.upper()} -t UTF-8 {path.name}"
        raise UserError(f"the encoding is {name}, not UTF-8", path, fix)
    try:
        errors = "replace" if name == "utf-8" and not encoding else "strict"
        text = data.decode(name, errors)
    except (UnicodeDecodeError, LookupError) as error:
        raise UserError(f"cannot be read as {name} ({error})", path) from None
    return text.replace("\r\n", "\n").replace("\r", "\n"), name, raw


def guess_encoding(data: bytes) -> str | None:
    """The name of the encoding as Python knows it, or `None` if it cannot be told.

    UTF-8 is also the answer where a few bytes are wrong in it among many right ones.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return name
    head = data[:200_000]
    if head.count(0) > 0.001 * len(head):
        scores = {name: _plain_share(head, name) for name in ("utf-16-le", "utf-16-be")}
        best = max(scores, key=scores.get)
        return best if scores[best] > 0.3 else None
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text)))
    if right > 10 * wrong:
        return "utf-8"
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", data)]
    # Chinese in a double-byte encoding comes in long runs; accents stand alone.
    if sum(runs) / len(runs) >= 2:
        scores = {name: _frequent_share(data, name) for name in _FREQUENT}
        best = max(scores, key=scores.get)
        return best if scores[best] > 0.1 else None
    if sum(runs) > 0.35 * len(data):
        return None
    return "cp1252" if re.search(rb"[\x80-\x9f]", data) else "latin-1"


def _plain_share(data: bytes, encoding: str) -> float:
    """The share of ASCII text and frequent Chinese characters; 0 if there is a NUL."""
    text = data[: len(data) // 2 * 2].decode(encoding, "replace")
    plain = {*map(chr, range(32, 127)), *"\t\r\n", *_FREQUENT["gb18030"]}
    return 0.0 if "\0" in text else sum(c in plain for c in text) / len(text)


def _frequent_share(data: bytes, encoding: str) -> float:
    """The share of frequent characters among letters outside ASCII; 0 if it fails."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(data) - 4:
            return 0.0
        text = data[: error.start].decode(encoding)
    letters = [c for c in text if c.isalpha() and not c.isascii()]
    frequent = set(_FREQUENT[encoding])
    return sum(c in frequent for c in letters) / max(len(letters), 1)
