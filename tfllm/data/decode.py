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
# Bytes of all Chinese and Japanese encodings decode as GB18030; only in Chinese text
# are these characters frequent.
_FREQUENT = set(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
    "年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样"
    "理心她本前开但因只从想实日"
)
# Detected to be named, not to be read: a wrong guess among these would go unnoticed.
_OTHERS = ["big5", "shift_jis", "euc_jp", "euc_kr", "cp1251", "koi8_r", "cp1253"]


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
    name = encoding_of(data, path, encoding)
    try:
        errors = "replace" if name == "utf-8" and not encoding else "strict"
        text = data.decode(name, errors)
    except (UnicodeDecodeError, LookupError) as error:
        raise UserError(f"cannot be read as {name} ({error})", path) from None
    return text.replace("\r\n", "\n").replace("\r", "\n"), name, raw


def encoding_of(data: bytes, path: Path, encoding: str | None = None) -> str:
    """The encoding of a file from its first bytes, or the one that the user knows.

    Raises:
        UserError: It is no text, or its encoding cannot be told.
    """
    for magic, kind in _NOT_TEXT.items():
        if data.startswith(magic):
            fix = "Save it as TSV, CSV or JSON lines in UTF-8."
            raise UserError(f"this is {kind}, not text", path, fix)
    name = encoding or guess_encoding(data)
    if name is None:
        fix = "Save it as UTF-8, for example with: iconv -f ENCODING -t UTF-8."
        raise UserError("the encoding cannot be told", path, fix)
    if name in _OTHERS and not encoding:
        fix = f"Convert it: iconv -f {name.upper()} -t UTF-8 {path.name}"
        raise UserError(f"the encoding seems to be {name}, not UTF-8", path, fix)
    return name


def guess_encoding(data: bytes) -> str | None:
    """The name of the encoding as Python knows it, or `None` if it cannot be told.

    UTF-8 is also the answer where a few bytes are wrong in it among many right ones.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return name
    head = data[:200_000]
    if head.count(0) > 0.001 * len(head):
        name = _detect(head, ["utf_16_le", "utf_16_be"])
        return name and name.replace("_", "-")
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text)))
    if not wrong or right > 10 * wrong:
        return "utf-8"
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", data)]
    # Double-byte and Cyrillic letters come in long runs, accents stand alone.
    if sum(runs) < 2 * len(runs):
        return "cp1252" if re.search(rb"[\x80-\x9f]", data) else "latin-1"
    letters = re.findall(r"[^\W\x00-\x7f]", data.decode("gb18030", "ignore"))
    if sum(c in _FREQUENT for c in letters) > 0.1 * len(letters):
        return "gb18030"
    return _detect(head, _OTHERS)


def _detect(data: bytes, candidates: list[str]) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(data, cp_isolation=candidates).best()
    return best.encoding if best else None
