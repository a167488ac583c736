"""What a `tokenizer.json` says: its kind, vocabulary, roles, templates, pieces."""

import dataclasses
import json
import re

from tfllm.core.errors import UserError
from tfllm.text import scripts

# -- the pattern of words -------------------------------------------------------------
# Scripts that put no spaces between words: cut by a dictionary, else by character.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\x{30FC}"
SPACED = rf"[\w&&[^{UNSPACED}]]"
# An apostrophe between two letters becomes a letter itself: "don't" is one word.
APOSTROPHE = rf"(?<={SPACED})['\x{{2019}}](?={SPACED})"
LETTER_APOSTROPHE = "\u02bc"
# With a dictionary the model is `Unigram`, which finds the most probable path. A word
# of a spaced script must not be cut by it, so both its ends are marked: only a whole
# word of the vocabulary has both. Every word gets its marks, so that a mark typed by
# a user, which stands outside of words, is never taken for one.
MARK = "\u2581"
WORD_ENDS = rf"(?<!{SPACED})(?={SPACED})|(?<={SPACED})(?!{SPACED})"
PLAIN_WORDS = rf"{SPACED}+|[{UNSPACED}]|\S"
WHOLE_WORDS = rf"{SPACED}+|[{UNSPACED}]+|\S"
_ENDS = {"Regex": WORD_ENDS}
MARKED_WORDS = rf"{MARK}{SPACED}+{MARK}|[{UNSPACED}]+|\S"

# The patterns by which others cut text before BPE; one group of digits is 3 or 1 long.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPLIT_RULES = {
    _GPT2: "gpt2",
    _LLAMA3: "llama3",
    _LLAMA3.replace("{1,3}", ""): "qwen2",
}
SPLIT_PATTERNS = {rule: pattern for pattern, rule in SPLIT_RULES.items()}

METASPACE_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
ROLE_NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "bos": ("<s>", "[BOS]", "<bos>", "<|begin_of_text|>", "<|im_start|>"),
    "eos": ("</s>", "[EOS]", "<eos>", "<|end_of_text|>", "<|im_end|>"),
    "mask": ("[MASK]", "<mask>"),
}
END_OF_TEXT = "<|endoftext|>"  # GPT-2's one special token begins and ends


def complete(definition: dict) -> dict:
    """A copy with every part of a `tokenizer.json`, as this package wants it.

    Truncation and padding are dropped: they belong to a call, not to a tokenizer.
    """
    definition = json.loads(json.dumps(definition))
    model = definition.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise UserError("this JSON is no tokenizer", fix="Give a tokenizer.json.")
    definition |= {"version": "1.0", "truncation": None, "padding": None}
    definition.setdefault("added_tokens", [])
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        definition.setdefault(part, None)
    model = definition["model"]
    if not model.get("type"):
        model["type"] = "BPE" if "merges" in model else "WordPiece"
    if model["type"] == "Unigram":
        # Rounded so that sums are exact in float64, in whatever order one adds
        # (SentencePiece's own scores are float32 and stay as they are).
        scale = 2.0**32
        model["vocab"] = [[t, round(s * scale) / scale] for t, s in model["vocab"]]
    for part in steps(definition["post_processor"], "processors"):
        part.pop("trim_offsets", None)
        if part["type"] in ("ByteLevel", "RobertaProcessing"):
            part["trim_offsets"] = False  # offsets are those of the whole token
    if model.get("dropout"):
        model["dropout"] = None  # a tokenizer that answers differently each time
    return definition


def steps(part: dict | None, key: str) -> list[dict]:
    """A normalizer or pre-tokenizer as a flat list of steps."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [inner for step in part[key] for inner in steps(step, key)]
    return [part]


def normalizers(definition: dict) -> list[dict]:
    """The steps of the normalizer."""
    return steps(definition["normalizer"], "normalizers")


def pre_tokenizers(definition: dict) -> list[dict]:
    """The steps of the pre-tokenizer."""
    return steps(definition["pre_tokenizer"], "pretokenizers")


def kind_of(definition: dict) -> str:
    """`characters`, `words`, `wordpiece`, `bpe` or `unigram`."""
    model = definition["model"]
    first = pre_tokenizers(definition)[:1]
    pattern = first[0].get("pattern", {}).get("Regex") if first else None
    if model["type"] == "WordPiece":
        return "wordpiece"
    if model["type"] == "Unigram":
        return "words" if pattern == MARKED_WORDS else "unigram"
    if model["type"] == "WordLevel":
        return "words"
    if model["type"] == "BPE":
        plain = not (model["merges"] or pre_tokenizers(definition))
        return "characters" if plain else "bpe"
    raise UserError(f"a tokenizer model of type '{model['type']}' is not known")


def unmarked(definition: dict) -> dict | None:
    """For `MARKED_WORDS` a definition that finds the same words unmarked, else None."""
    if kind_of(definition) != "words" or definition["model"]["type"] != "Unigram":
        return None
    kept = [s for s in normalizers(definition) if s.get("pattern") != _ENDS]
    split = pre_tokenizers(definition)[0] | {"pattern": {"Regex": WHOLE_WORDS}}
    return definition | {
        "normalizer": {"type": "Sequence", "normalizers": kept},
        "pre_tokenizer": split,
        "model": {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""},
        "added_tokens": [],
        "post_processor": None,
    }


def vocabulary(definition: dict) -> dict[str, int]:
    """Token to id, the added tokens included."""
    vocab = definition["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: [token, score] in the order of ids
        ids = {token: token_id for token_id, (token, _) in enumerate(vocab)}
    else:
        ids = dict(vocab)
    return ids | {token["content"]: token["id"] for token in definition["added_tokens"]}


def guess_roles(definition: dict, ids: dict[str, int]) -> dict[str, str | None]:
    """Which tokens have a role, told from the model and from the usual names."""
    roles = {
        role: next((name for name in names if name in ids), None)
        for role, names in ROLE_NAMES.items()
    }
    model = definition["model"]
    if model.get("unk_token"):
        roles["unk"] = model["unk_token"]
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        roles["unk"] = model["vocab"][model["unk_id"]][0]
    for role in ("bos", "eos"):
        if roles[role] is None and END_OF_TEXT in ids:
            roles[role] = END_OF_TEXT
    return roles


def special_token(token: str, token_id: int) -> dict:
    """An entry of `added_tokens` that is only found when asked for."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": token, **flags, "special": True}


# -- what is added to a text ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Template:
    """The order of texts (`"A"`, `"B"`) and added ids, each with its segment id."""

    items: tuple[tuple[int | str, int], ...]

    @property
    def added(self) -> int:
        """How many tokens are added."""
        return sum(isinstance(item, int) for item, _ in self.items)

    def filled(self, *texts: list[int]) -> tuple[list[int], list[int]]:
        """The ids of texts with those added, and the segment id of each."""
        ids, segments = [], []
        for item, segment in self.items:
            part = [item] if isinstance(item, int) else texts["AB".index(item)]
            ids += part
            segments += [segment] * len(part)
        return ids, segments


def templates(definition: dict) -> tuple[Template, Template]:
    """The templates of one text and of a pair, from the post-processor."""
    single, pair = [("A", 0)], [("A", 0), ("B", 1)]
    for step in steps(definition["post_processor"], "processors"):
        if step["type"] == "TemplateProcessing":
            ids = {name: t["ids"] for name, t in step["special_tokens"].items()}
            single = list(_template(step["single"], ids))
            pair = list(_template(step["pair"], ids))
        elif step["type"] in ("BertProcessing", "RobertaProcessing"):
            cls, sep = step["cls"][1], step["sep"][1]
            roberta = step["type"] == "RobertaProcessing"
            second = 0 if roberta else 1  # RoBERTa: no segments, two separators
            single = [(cls, 0), ("A", 0), (sep, 0)]
            pair = [*single, *[(sep, 0)] * roberta, ("B", second), (sep, second)]
        elif step["type"] != "ByteLevel":
            raise UserError(f"post-processor '{step['type']}' is not known")
    return Template(tuple(single)), Template(tuple(pair))


def _template(items: list[dict], ids: dict[str, list[int]]):
    for item in items:
        if "Sequence" in item:
            yield item["Sequence"]["id"], item["Sequence"]["type_id"]
        else:
            special = item["SpecialToken"]
            for token_id in ids[special["id"]]:
                yield token_id, special["type_id"]


def template_processing(opening: list, ending: list) -> dict:
    """The post-processor `opening A ending`, `opening A ending B ending`.

    Args:
        opening, ending: Lists of `(token, id)`.
    """

    def tokens(pairs, type_id):
        return [{"SpecialToken": {"id": t, "type_id": type_id}} for t, _ in pairs]

    def text(name, type_id):
        return [{"Sequence": {"id": name, "type_id": type_id}}]

    single = tokens(opening, 0) + text("A", 0) + tokens(ending, 0)
    special = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in opening + ending}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + text("B", 1) + tokens(ending, 1),
        "special_tokens": special,
    }


# -- ids to text ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What each id becomes: its bytes, and whether no space stands beside it."""

    texts: list[bytes]
    glue_left: list[bool]
    glue_right: list[bool]
    strip_start: bool = False


def plain_word(token: str) -> str:
    """A token of kind `words` as it is written."""
    if len(token) > 2 and token[0] == token[-1] == MARK:
        token = token[1:-1]
    return token.replace(LETTER_APOSTROPHE, "'")


def byte_characters() -> dict[str, int]:
    """GPT-2's printable character of each byte, to the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def pieces(definition: dict, kind: str, tokens: list[str]) -> Pieces:
    """The table that `decode` joins, whatever the kind."""
    added = {token["content"] for token in definition["added_tokens"]}
    model, size = definition["model"], len(tokens)
    everywhere = [True] * size
    if kind == "characters":
        return Pieces([t.encode() for t in tokens], everywhere, everywhere)
    if kind == "bpe" and is_byte_level(definition):
        to_byte = byte_characters()
        texts = [
            t.encode()
            if t in added or not all(char in to_byte for char in t)
            else bytes(map(to_byte.__getitem__, t))
            for t in tokens
        ]
        return Pieces(texts, everywhere, everywhere)
    if kind in ("bpe", "unigram"):  # SentencePiece: spaces are marked, bytes escaped
        byte = re.compile(r"<0x([0-9A-Fa-f]{2})>")
        texts = [
            bytes.fromhex(match[1])
            if (match := byte.fullmatch(t)) and model.get("byte_fallback")
            else t.encode()
            if t in added
            else t.replace(MARK, " ").encode()
            for t in tokens
        ]
        return Pieces(texts, everywhere, everywhere, strip_start=True)
    prefix = model.get("continuing_subword_prefix") or "##"
    texts, left, right = [], [], []
    for token in tokens:
        inner = kind == "wordpiece" and token.startswith(prefix) and token not in added
        text = token[len(prefix) :] if inner else token
        text = plain_word(text) if kind == "words" and token not in added else text
        texts.append(text.encode())
        unspaced = bool(_UNSPACED.match(text)) and token not in added
        left.append(inner or unspaced or text in _CLOSING)
        right.append(unspaced or text in _OPENING)
    return Pieces(texts, left, right)


# Chinese, Japanese and the like, and their punctuation: no spaces around.
_UNSPACED = re.compile(f"[{scripts.UNSPACED}\u2018-\u201d\u2026\uff00-\uffef]")
_CLOSING = {*".,!?;:%)]}'"}
_OPENING = {*"([{'"}


def is_byte_level(definition: dict) -> bool:
    """Whether a BPE works on bytes (GPT-2) and not on characters (SentencePiece)."""
    found = [*pre_tokenizers(definition), *normalizers(definition)]
    return any(step["type"] == "ByteLevel" for step in found)
