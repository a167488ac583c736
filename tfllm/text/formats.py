"""Reading the tokenizers of others: every file that holds a vocabulary."""

import gzip
import json
import struct
from collections.abc import Iterable
from pathlib import Path

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text.cleaning import replacement
from tfllm.text.probe import mapped
from tfllm.text.tokenizer import Tokenizer
from tfllm.text.training import NEVER, bert_definition, bpe_model, byte_level, nmt_nfkc

NAMES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# SentencePiece's kinds of pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def load(
    path: str | Path, *, pad_token: str | None = None, lowercase: bool | None = None
) -> Tokenizer:
    """Reads a tokenizer of tfllm or of others.

    Args:
        path: A directory that holds one of the following, or the file: a
            `tokenizer.json`; a BERT `vocab.txt` (any `*vocab.txt`); GPT-2's
            `vocab.json` beside its `merges.txt`; a SentencePiece `.model`; llama2.c's
            `tok*.bin`; a `.gguf`. Each may be compressed by gzip.
        pad_token: The token for padding; added at the end if it is a new one.
        lowercase: Whether a BERT vocabulary folds capitals; None reads it from
            `tokenizer_config.json`, else capitals in the vocabulary mean that it
            does not.

    Raises:
        UserError: No tokenizer is there, or the pad token is the end token.
    """
    path = _find(Path(path))
    name, data = path.name.removesuffix(".gz"), _read(path)
    settings = _settings(path.parent)
    roles: dict[str, str | None] = {}
    if data[:4] == b"GGUF":
        definition, roles = _gguf(data)
    elif name.endswith("vocab.txt"):
        if lowercase is None:
            lowercase = settings.get("do_lower_case")
        tokens = data.decode("utf-8").removesuffix("\n").split("\n")
        definition = _bert([t.rstrip("\r") for t in tokens], lowercase, settings)
    elif name.endswith(".bin"):
        definition = _llama2c(data, path)
    elif data[:1] == b"{":
        definition = _json(data, path)
        if not isinstance(definition.get("model"), dict):
            definition = _gpt2(definition, path)
    else:
        definition = sentencepiece(data, path)
    for role in defs.ROLE_NAMES:
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        roles |= {role: token} if token else {}
    if pad_token is not None:
        known = defs.vocabulary(defs.complete(definition))
        if pad_token not in known:
            new = defs.special_token(pad_token, max(known.values()) + 1)
            definition.setdefault("added_tokens", []).append(new)
        roles["pad"] = pad_token
    return Tokenizer(definition, roles)


def _find(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise UserError("there is no such file", path)
        return path
    files = sorted(file for file in path.iterdir() if file.is_file())
    if not files and (path / "tokenizer").is_dir():
        return _find(path / "tokenizer")
    for name in NAMES:
        for file in files:
            if file.name in (name, name + ".gz"):
                return file
    for file in files:
        if file.name.removesuffix(".gz").endswith(("vocab.txt", "vocab.json", ".gguf")):
            return file
    if (path / "tokenizer").is_dir():  # a run, or one of its checkpoints
        return _find(path / "tokenizer")
    raise UserError("no tokenizer in this directory", path, "Look for tokenizer.json.")


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read it: {reason}", path) from None


def _json(data: bytes, path: Path) -> dict:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise UserError(f"not JSON: {error}", path) from None
    if not isinstance(content, dict):
        raise UserError("not a tokenizer", path)
    return content


def _settings(directory: Path) -> dict:
    file = directory / "tokenizer_config.json"
    return _json(_read(file), file) if file.is_file() else {}


# -- BERT and GPT-2 ------------------------------------------------------------------


def _bert(tokens: list[str], lowercase: bool | None, settings: dict) -> dict:
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if lowercase is None:
        special = {token for token in tokens if token.startswith("[")}
        lowercase = all(t == t.lower() for t in tokens if t not in special)
    strip = settings.get("strip_accents")
    definition = bert_definition(vocab, [], lowercase, strip_accents=strip)
    definition["normalizer"]["handle_chinese_chars"] = settings.get(
        "tokenize_chinese_chars", True
    )
    return definition


def _gpt2(vocab: dict, path: Path) -> dict:
    merges = None
    for suffix in ("", ".gz"):
        name = path.name.removesuffix(".gz").replace("vocab.json", "merges.txt")
        file = path.with_name(name + suffix)
        if "vocab.json" in path.name and file.is_file():
            merges = _read(file).decode("utf-8").split("\n")
    if merges is None:
        raise UserError("there is no merges.txt beside it", path)
    pairs = [line.split(" ") for line in merges if line and not line.startswith("#v")]
    definition = byte_level(bpe_model(vocab, pairs), [], "gpt2")
    special = [t for t in vocab if t.startswith("<|") and t.endswith("|>")]
    definition["added_tokens"] = [defs.special_token(t, vocab[t]) for t in special]
    return definition


# -- SentencePiece -------------------------------------------------------------------


def _fields(data: bytes) -> Iterable[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: number and value."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, varint()
        else:
            size = {1: 8, 5: 4}.get(wire) or varint()
            if at + size > len(data):
                raise IndexError("cut off")
            yield tag >> 3, data[at : at + size]
            at += size


def sentencepiece(data: bytes, path: Path | None = None) -> dict:
    """The definition in a SentencePiece model (its protocol buffer)."""
    pieces, trainer, rules = [], {}, {}
    try:
        for number, value in _fields(data):
            if number == 1:
                field = dict(_fields(value))
                score = struct.unpack("<f", field.get(2, bytes(4)))[0]
                pieces.append((field[1].decode("utf-8"), score, field.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                rules = dict(_fields(value))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
        pieces = []
    if not pieces:
        raise UserError("this is no tokenizer that tfllm can read", path)
    steps = charsmap_steps(rules.get(2, b""))
    if rules.get(4, 1):  # remove_extra_whitespaces
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append(replacement(" {2,}", " ", regex=True))
    if rules.get(3, 1):  # add_dummy_prefix
        steps.append({"type": "Prepend", "prepend": defs.MARK})
    steps.append(replacement(" ", defs.MARK))
    return spm_definition(pieces, steps, bpe=trainer.get(3, 1) == 2)


def spm_definition(pieces: list[tuple[str, float, int]], steps, bpe: bool) -> dict:
    """A definition from pieces with their scores and kinds."""
    byte_fallback = any(kind == BYTE for _, _, kind in pieces)
    unk_id = next((i for i, p in enumerate(pieces) if p[2] == UNKNOWN), 0)
    special = [i for i, p in enumerate(pieces) if p[2] in (UNKNOWN, CONTROL)]
    if any(kind == USER_DEFINED for _, _, kind in pieces):
        raise UserError("a SentencePiece model with user-defined pieces is not known")
    if bpe:
        vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
        plain = {p: (s, i) for i, (p, s, kind) in enumerate(pieces) if kind == NORMAL}
        merges = [
            (-score, plain[piece[:at]][1], plain[piece[at:]][1], piece[:at], piece[at:])
            for piece, (score, _) in plain.items()
            for at in range(1, len(piece))
            if piece[:at] in plain and piece[at:] in plain
        ]
        pairs = [[left, right] for *_, left, right in sorted(merges)]
        unk = pieces[unk_id][0]
        model = bpe_model(
            vocab, pairs, unk_token=unk, fuse_unk=True, byte_fallback=byte_fallback
        )
    else:
        vocab = [
            [piece, NEVER if kind in (UNKNOWN, CONTROL, BYTE) else score]
            for piece, score, kind in pieces
        ]
        model = {"type": "Unigram", "unk_id": unk_id, "vocab": vocab}
        model["byte_fallback"] = byte_fallback
    return {
        "version": "1.0",
        "added_tokens": [defs.special_token(pieces[i][0], i) for i in special],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": defs.METASPACE_DECODER,
        "model": model,
    }


def charsmap_steps(charsmap: bytes) -> list[dict]:
    """Normalizer steps that do what SentencePiece's compiled map does.

    The map of `nmt_nfkc` is: some control characters dropped, others a space, NFKC.
    Where it differs on single characters (full-width tilde, newer characters), the
    character is handled before.
    """
    if not charsmap:
        return []
    wanted = {k: v for k, v in _darts(charsmap).items() if len(k) == 1}
    steps = nmt_nfkc()
    if wanted.get("A") == "a":
        steps.append({"type": "Lowercase"})
    found, first = mapped(json.dumps(steps)), []
    for code in sorted(set(found) | {ord(char) for char in wanted}):
        char = chr(code)
        to, now = wanted.get(char, char), "".join(map(chr, found.get(code, (code,))))
        if to == now:
            continue
        if all(ord(c) not in found for c in to):
            first.append(replacement(char, to))
        elif to == char and len(steps) == 3:
            # Out of NFKC's way: U+0001 cannot occur, it was dropped just before.
            steps = [*steps[:-1], replacement(char, "\x01"), steps[-1]]
            steps.append(replacement("\x01", char))
        if len(first) > 64:
            raise UserError("the SentencePiece model has a normalisation of its own")
    return first + steps


def _darts(charsmap: bytes) -> dict[str, str]:
    """The entries of a compiled map: a double array of keys, and their texts."""
    size = struct.unpack_from("<I", charsmap)[0]
    units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
    texts, found, stack = charsmap[4 + size :], {}, [(0, b"")]
    while stack:
        node, key = stack.pop()
        unit = units[node]
        base = node ^ ((unit >> 10) << ((unit & 0x200) >> 6))
        if unit >> 8 & 1:
            value = units[base] & 0x7FFFFFFF
            text = texts[value : texts.index(b"\0", value)]
            found[key.decode()] = text.decode()
        for byte in range(1, 256):
            child = base ^ byte
            if child < len(units) and units[child] & 0x800000FF == byte:
                stack.append((child, key + bytes([byte])))
    return found


# -- llama2.c and GGUF ---------------------------------------------------------------


def _llama2c(data: bytes, path: Path) -> dict:
    """`tok512.bin`: the longest length, then score, length and text of each token."""
    pieces, at = [], 4
    try:
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            text = data[at + 8 : at + 8 + length].decode("utf-8")
            at += 8 + length
            pieces.append((text, score))
    except (struct.error, UnicodeDecodeError):
        raise UserError("this is no llama2.c vocabulary", path) from None
    names = {0: ("<unk>", UNKNOWN), 1: ("<s>", CONTROL), 2: ("</s>", CONTROL)}
    rows = []
    for i, (text, score) in enumerate(pieces):
        if i in names:
            rows.append((names[i][0], score, names[i][1]))
        elif 3 <= i < 259:
            rows.append((f"<0x{i - 3:02X}>", score, BYTE))
        else:
            rows.append((text.replace(" ", defs.MARK), score, NORMAL))
    steps = [{"type": "Prepend", "prepend": defs.MARK}, replacement(" ", defs.MARK)]
    definition = spm_definition(rows, steps, bpe=True)
    template = defs.template_processing([("<s>", 1)], [])
    return definition | {"post_processor": template}


GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
GGUF_NUMBERS |= {10: "Q", 11: "q", 12: "d"}
GGUF_RULES = {"smollm": "digits", "llama-bpe": "llama3", "qwen2": "qwen2"}


def gguf_metadata(data: bytes) -> dict:
    """The key-value part of a GGUF file."""
    at = 8

    def number(form):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize(form)
        return value

    def value(kind):
        nonlocal at
        if kind == 8:
            size = number("Q")
            at += size
            return data[at - size : at].decode("utf-8")
        if kind == 9:
            inner, count = number("I"), number("Q")
            if inner in GGUF_NUMBERS:
                form = f"<{count}{GGUF_NUMBERS[inner]}"
                values = struct.unpack_from(form, data, at)
                at += struct.calcsize(form)
                return list(values)
            return [value(inner) for _ in range(count)]
        return number(GGUF_NUMBERS[kind])

    number("Q")
    return {value(8): value(number("I")) for _ in range(number("Q"))}


def _gguf(data: bytes) -> tuple[dict, dict]:
    """The vocabulary inside a GGUF file, and its roles."""
    try:
        found = gguf_metadata(data)
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"a broken GGUF file: {error}") from None
    get = {k.removeprefix("tokenizer.ggml."): v for k, v in found.items()}.get
    tokens, model = get("tokens"), get("model")
    if tokens is None or model not in ("gpt2", "llama"):
        raise UserError(f"a GGUF file with a vocabulary of type '{model}' is not known")
    kinds = get("token_type") or [NORMAL] * len(tokens)
    if model == "llama":
        scores = get("scores") or [0.0] * len(tokens)
        steps = [replacement(" ", defs.MARK)]
        if get("add_space_prefix", True):
            steps.insert(0, {"type": "Prepend", "prepend": defs.MARK})
        kinds = [CONTROL if kind == USER_DEFINED else kind for kind in kinds]
        rows = list(zip(tokens, scores, kinds, strict=True))
        definition = spm_definition(rows, steps, bpe=True)
    else:
        merges = [merge.split(" ") for merge in get("merges")]
        vocab = {token: i for i, token in enumerate(tokens)}
        rule = GGUF_RULES.get(get("pre"), "gpt2")
        definition = byte_level(bpe_model(vocab, merges), [], rule)
        definition["model"]["ignore_merges"] = rule == "llama3"
        definition["added_tokens"] = [
            defs.special_token(token, i)
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: get(f"{name}_token_id") for role, name in names.items()}
    return definition, {r: tokens[i] for r, i in ids.items() if i is not None}
