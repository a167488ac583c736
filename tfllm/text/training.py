"""Learning a vocabulary from text."""

import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from tfllm.core.console import progress as progress_bar
from tfllm.core.errors import UserError, did_you_mean
from tfllm.text import definition as defs
from tfllm.text.cleaning import Cleaning, normalizer_from_json, replacement
from tfllm.text.probe import in_class
from tfllm.text.tokenizer import KINDS, Tokenizer, whole_text

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
NEVER = -10_000.0  # the score of a special token: no path goes through it


def train(
    texts: Iterable[str | Path] | Path,
    kind: str,
    vocabulary_size: int,
    *,
    min_frequency: int = 1,
    cleaning: Cleaning | None = None,
    lowercase: bool | None = None,
    special_tokens: Iterable[str] | None = None,
    dictionary: str | Path | Mapping[str, float] | None = None,
    pattern: str = "digits",
    progress: bool = False,
) -> Tokenizer:
    """Learns a tokenizer; the same texts give the same one.

    Args:
        texts: Strings; a `Path` among them (or alone) is a file with a text a line,
            gzip or not.
        kind: `characters`, `words`, `wordpiece`, `bpe` (on bytes) or `unigram`.
        vocabulary_size: The largest number of tokens, special ones included.
        min_frequency: How often a token must occur.
        cleaning: Done to every text before; None for what the kind is used to
            (wordpiece: BERT's; unigram: NFKC; the others: nothing).
        lowercase: Folds capitals; overrides `cleaning`.
        special_tokens: All of them, by id; pad first, unk second.
        dictionary: For `words`: a file in jieba's format or `{word: frequency}`, by
            which Chinese is cut; learned from the texts when None.
        pattern: For `bpe`, how text is cut before: see `byte_level`.
        progress: Whether to show how far it is.

    Raises:
        UserError: Unknown kind, no text, or a size that cannot be reached.
    """
    if kind not in KINDS:
        raise UserError(
            f"unknown kind of tokenizer '{kind}'",
            fix=did_you_mean(kind, KINDS) or f"It is one of {', '.join(KINDS)}.",
        )
    special = BERT_SPECIAL if kind == "wordpiece" else SPECIAL
    special = list(special if special_tokens is None else special_tokens)
    if len(set(special)) < len(special) or vocabulary_size <= len(special):
        raise UserError(
            f"{len(special)} special tokens do not fit a vocabulary of "
            f"{vocabulary_size}, or one is named twice"
        )
    steps = cleaning.steps() if cleaning else []
    lower = lowercase if lowercase is not None else kind == "wordpiece" and not cleaning
    if lower and {"type": "Lowercase"} not in steps and kind != "wordpiece":
        steps.append({"type": "Lowercase"})
    stream = Stream(texts, progress)
    options = {"min_frequency": max(1, min_frequency)}
    if kind == "characters":
        definition = _characters(stream, vocabulary_size, special, steps, **options)
    elif kind == "words":
        options["dictionary"] = dictionary
        definition = _words(stream, vocabulary_size, special, steps, **options)
    elif kind == "wordpiece":
        options["lower"] = lower
        definition = _wordpiece(stream, vocabulary_size, special, steps, **options)
    elif kind == "bpe":
        definition = byte_level(bpe_model({}, []), steps, pattern)
        texts = stream.read(LIMITS["bpe"])
        model = _merges(definition, texts, vocabulary_size, special, **options)
        definition["model"] = model
    else:
        options["cleaning"] = cleaning
        definition = _unigram(stream, vocabulary_size, special, steps, **options)
    vocab = definition["model"]["vocab"]
    if len(vocab) <= len(special):
        raise UserError("no token was learned", fix="Give texts that are not empty.")
    definition["added_tokens"] = [
        defs.special_token(t, i) for i, t in enumerate(special)
    ]
    names = BERT_SPECIAL[2:4] if kind == "wordpiece" else SPECIAL[2:4]
    if set(names) <= set(special):
        opening, ending = ((name, special.index(name)) for name in names)
        template = defs.template_processing([opening], [ending])
        definition["post_processor"] = template
    return Tokenizer(definition)


class Stream:
    """Texts one after another, from memory or from files; can be read twice.

    Args:
        texts: Strings and paths.
        progress: Whether to show how far it is.
    """

    def __init__(self, texts: Iterable[str | Path] | Path, progress: bool = False):
        if isinstance(texts, str):
            raise TypeError("texts are a list of strings or paths, not one string")
        texts = [texts] if isinstance(texts, Path) else texts
        # A generator can be read once only, and we may have to read twice.
        self.texts = texts if isinstance(texts, list | tuple) else list(texts)
        self.progress = progress

    def __iter__(self) -> Iterator[str]:
        return self.read()

    def read(self, limit: int | None = None) -> Iterator[str]:
        """The texts; about `limit` characters of them, evenly chosen, if given."""
        share = 1.0 if limit is None else limit / max(1, self.size())
        silent = nullcontext(lambda: None)
        bar = progress_bar("reading", len(self.texts)) if self.progress else silent
        with bar as advance:
            for text in self.texts:
                rows = _lines(text) if isinstance(text, Path) else (whole_text(text),)
                for row in rows:
                    # By content, so that the choice does not hang on the order.
                    if share >= 1 or zlib.crc32(row.encode()) < share * 2**32:
                        yield row
                advance()

    def size(self) -> int:
        """Bytes of all texts, nearly (a compressed file counts three times)."""
        total = 0
        for text in self.texts:
            if isinstance(text, Path):
                packed = text.suffix == ".gz"
                total += text.stat().st_size * (3 if packed else 1)
            else:
                total += len(text.encode("utf-8", "replace"))
        return total


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        opened = gzip.open if packed else open
        with opened(
            path, "rt", encoding="utf-8", errors="replace", newline="\n"
        ) as file:
            for line in file:
                yield line.removesuffix("\n")
    except OSError as error:
        raise UserError(f"cannot read it: {error.strerror or error}", path) from None


def _definition(model: dict, steps: list[dict], pre_tokenizers: list[dict]) -> dict:
    def sequence(parts, key):
        return {"type": "Sequence", key: parts} if parts else None

    return {
        "version": "1.0",
        "normalizer": sequence(steps, "normalizers"),
        "pre_tokenizer": sequence(pre_tokenizers, "pretokenizers"),
        "model": model,
    }


def cleaner(steps: list[dict]):
    """A function from text to text that carries out normalizer steps."""
    if not steps:
        return lambda text: text
    sequence = {"type": "Sequence", "normalizers": steps}
    return normalizer_from_json(sequence).normalize_str


def nmt_nfkc() -> list[dict]:
    """SentencePiece's rule of that name: NFKC, and what it does to some others."""
    dropped = r"[\x{1}-\x{8}\x{B}\x{E}-\x{1F}\x{7F}\x{8F}\x{9F}]"
    spaces = r"[\x{9}\x{A}\x{C}\x{D}\x{1680}\x{200B}\x{200C}\x{200E}\x{200F}"
    spaces += r"\x{2028}\x{2029}\x{2581}\x{FEFF}\x{FFFD}]"
    steps = [replacement(dropped, "", regex=True)]
    return [*steps, replacement(spaces, " ", regex=True), {"type": "NFKC"}]


def _most_frequent(counts: Counter, min_frequency: int, size: int) -> list[str]:
    kept = [(-n, token) for token, n in counts.items() if n >= min_frequency]
    return [token for _, token in sorted(kept)[: max(0, size)]]


# -- characters ----------------------------------------------------------------------


def _characters(stream, size, special, steps, min_frequency):
    clean, counts = cleaner(steps), Counter()
    for text in stream:
        counts.update(clean(text))
    tokens = _most_frequent(counts, min_frequency, size - len(special))
    vocab = {token: i for i, token in enumerate(special + tokens)}
    return _definition(bpe_model(vocab, [], unk_token=special[1]), steps, [])


def bert_definition(vocab, steps, lowercase: bool, strip_accents=None) -> dict:
    """BERT's normalisation, pre-tokenisation and WordPiece, with a vocabulary."""
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    bert |= {"strip_accents": strip_accents, "lowercase": lowercase}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    definition = _definition(model, [*steps, bert], [{"type": "BertPreTokenizer"}])
    if not steps:
        definition["normalizer"] = bert
    definition["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    special = [(t, vocab[t]) for t in BERT_SPECIAL if t in vocab]
    definition["added_tokens"] = [defs.special_token(*pair) for pair in special]
    if {"[CLS]", "[SEP]"} <= set(vocab):
        opening, ending = ([(t, vocab[t])] for t in ("[CLS]", "[SEP]"))
        definition["post_processor"] = defs.template_processing(opening, ending)
    return definition


def byte_level(model: dict, steps: list[dict], rule: str) -> dict:
    """Byte-level BPE with a rule of pre-tokenisation.

    Args:
        model: From `bpe_model`.
        steps: The normalizer.
        rule: `gpt2`, `digits` (the same after cutting off each digit: SmolLM2),
            `llama3` or `qwen2`.
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    level["use_regex"] = rule in ("gpt2", "digits")
    parts = [level]
    if rule == "digits":
        parts.insert(0, {"type": "Digits", "individual_digits": True})
    elif rule != "gpt2":
        split = {"type": "Split", "pattern": {"Regex": defs.SPLIT_PATTERNS[rule]}}
        parts.insert(0, split | {"behavior": "Isolated", "invert": False})
    return _definition(model, steps, parts) | {"decoder": level}


def bpe_model(vocab: dict, merges: list, **changes) -> dict:
    """The `model` part for BPE; without merges it is one token a character."""
    model = {"type": "BPE", "dropout": None, "unk_token": None}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return model | changes | {"vocab": vocab, "merges": merges}


# -- byte-pair encoding and WordPiece ------------------------------------------------

# More text than this changes a vocabulary little, and what is counted is in memory: of
# more, an even share is read.
LIMITS = {"wordpiece": 400_000_000, "bpe": 200_000_000, "unigram": 50_000_000}


def _merges(definition, texts, size, special, min_frequency, alphabet=None):
    """The `model` with merges learned by the `tokenizers` library."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import pre_tokenizers, trainers

    if alphabet is None:  # every byte, so that every text can be encoded
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, min_frequency=min_frequency,
        initial_alphabet=sorted(alphabet), show_progress=False,
    )  # fmt: skip
    engine = Engine.from_str(json.dumps(definition | {"added_tokens": []}))
    texts = iter(texts)
    batches = iter(lambda: list(islice(texts, 256)), [])
    engine.train_from_iterator(batches, trainer)
    return json.loads(engine.to_str())["model"]


def _wordpiece(stream, size, special, steps, min_frequency, lower):
    """BERT's WordPiece, from the merges that BPE learns.

    The library's own trainer gives another vocabulary every time. So each character
    that goes on a word is written as a private one here, BPE is learned, and the
    private ones become `##` again.
    """
    import regex

    definition = bert_definition({}, steps, lower)
    clean = cleaner(defs.normalizers(definition))
    signs = r"\p{P}$+<=>^`|~"
    find = regex.compile(rf"[{signs}]|[^\s{signs}]+").findall
    inner: dict[str, str] = {}

    def written(word):
        for char in word[1:]:
            if char not in inner:
                inner[char] = chr(0xF0000 + len(inner))
        return word[0] + "".join(map(inner.__getitem__, word[1:]))

    def texts():
        for text in stream.read(LIMITS["wordpiece"]):
            yield " ".join(map(written, find(clean(text))))

    parts = _definition(bpe_model({}, []), [], [{"type": "WhitespaceSplit"}])
    model = _merges(parts, texts(), size, special, min_frequency, alphabet=[])
    plain, vocab = {private: char for char, private in inner.items()}, {}
    for token, token_id in sorted(model["vocab"].items(), key=lambda item: item[1]):
        text = "".join(plain.get(char, char) for char in token)
        vocab["##" + text if token[0] in plain else text] = token_id
    return bert_definition(vocab, steps, lower)


# -- unigram -------------------------------------------------------------------------


def _unigram(stream, size, special, steps, min_frequency, cleaning):
    import regex

    if cleaning is None:
        steps = [*steps, *nmt_nfkc()]
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append(replacement(" {2,}", " ", regex=True))
    steps.append({"type": "Prepend", "prepend": defs.MARK})
    steps.append(replacement(" ", defs.MARK))
    clean, counts = cleaner(steps), Counter()
    # Pieces do not go over spaces, nor over a change of script or kind.
    parts = (
        rf"{defs.MARK}?(?:\p{{Han}}+|[\p{{L}}\p{{M}}]+|\p{{N}}+|"
        rf"[^\p{{L}}\p{{M}}\p{{N}}{defs.MARK}]+)|{defs.MARK}"
    )
    find = regex.compile(parts).findall
    for text in stream.read(LIMITS["unigram"]):
        counts.update(find(clean(text)))
    # What special tokens are written with must have pieces of its own: then no text
    # is ever taken for one, see NEVER.
    needed = {char for token in special for char in token} | {defs.MARK}
    learned = learn_pieces(counts, size - len(special), 16, min_frequency, needed)
    total = sum(learned.values())
    vocab = [[token, NEVER] for token in special]
    for piece, count in sorted(learned.items(), key=lambda item: (-item[1], item[0])):
        vocab.append([piece, exact(math.log(count / total))])
    return _definition(_unigram_model(vocab), steps, []) | {
        "decoder": defs.METASPACE_DECODER
    }


def _unigram_model(vocab: list) -> dict:
    return {"type": "Unigram", "unk_id": 1, "vocab": vocab, "byte_fallback": False}


def exact(score: float) -> float:
    """A score whose sums have no rounding, so that any order of adding is equal.

    So few binary places that it has 15 decimal digits at most: a reader of JSON that
    is not careful with more (that of `tokenizers`) reads it right, too.
    """
    return round(score * 2**13) / 2**13


def learn_pieces(
    words: Counter, size: int, longest: int, min_frequency=1, needed=(), cohesive=False
) -> dict[str, float]:
    """Pieces of a unigram model (Kudo 2018, arXiv:1804.10959) with their counts.

    Begins with the substrings that cover most text, then cuts all words by the most
    probable path, counts, and drops what covers least, until few enough are left
    (expectation maximisation with best paths). Counts are whole numbers, so that the
    outcome does not hang on an order of adding.

    Args:
        words: Words with their counts.
        size: How many pieces, single characters included.
        longest: The longest piece, in characters.
        min_frequency: How often a character or piece must occur.
        needed: Characters that must be among them.
        cohesive: Whether to begin only with what looks like a word: its parts occur
            together more often than by chance, and it has different neighbours.
    """
    chars = _characters_of(words)
    singles = {c: n for c, n in chars.items() if n >= min_frequency or c in needed}
    singles |= {char: max(1, chars[char]) for char in needed}
    most = sorted(singles, key=lambda c: (c not in needed, -singles[c], c))[:size]
    singles = {char: singles[char] for char in most}
    pieces = dict(_substrings(words, longest, max(2, min_frequency), cohesive))
    room = size - len(singles)
    target = int(8 * room)
    while True:
        by_cover = sorted(pieces, key=lambda p: (-pieces[p] * (len(p) - 1), p))
        pieces = {piece: pieces[piece] for piece in by_cover[: max(target, room)]}
        last = target <= room
        cut = count_pieces(words, pieces | singles)
        pieces = {piece: cut[piece] for piece in pieces if cut[piece] >= min_frequency}
        if last:
            break
        target = max(room, int(target * 0.6))
    return {char: max(1, cut[char]) for char in singles} | pieces


def _characters_of(words: Counter) -> Counter:
    counts = Counter()
    for word, count in words.items():
        for char in word:
            counts[char] += count
    return counts


def _substrings(words: Counter, longest: int, min_frequency: int, cohesive: bool):
    """Substrings of two characters or more, with counts."""
    import numpy as np

    order = sorted(words)
    text = "\0".join(["", *order, ""])
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64) + 1
    sizes = np.array([len(word) + 1 for word in order])
    # Between words, 0; the words themselves may hold \0, which is 1 here.
    codes[np.concatenate([[0], np.cumsum(sizes)])] = 0
    weights = np.zeros(len(codes), np.int64)
    weights[1:] = np.repeat([words[word] for word in order], sizes)
    _, ids = np.unique(codes, return_inverse=True)
    single = np.bincount(ids, weights)[ids]
    total = max(1.0, weights[codes != 0].sum())
    at, before, first_ids = np.flatnonzero(codes != 0), single, ids
    for length in range(2, longest + 1):
        ends = at + length - 1
        at = at[ends < len(codes)]
        at = at[(codes[at + length - 1] != 0) & (before[at] >= min_frequency)]
        if not len(at):
            return
        keys = ids[at] * (first_ids.max() + 1) + first_ids[at + length - 1]
        _, place, inverse = np.unique(keys, return_index=True, return_inverse=True)
        counts = np.bincount(inverse, weights[at])
        now = np.zeros(len(codes))
        now[at] = counts[inverse]
        good = counts >= min_frequency
        start = at[place]
        if cohesive:
            chance = np.maximum(
                before[start] * single[start + length - 1],
                single[start] * before[start + 1],
            )
            # In little text nothing can be much more often than by chance.
            good &= counts * total > np.clip(total / 100, 2, 20) * chance
            for side in (at - 1, at + length):  # how many different neighbours
                near = np.unique(inverse * (first_ids.max() + 1) + first_ids[side])
                variety = np.bincount(near // (first_ids.max() + 1))
                good &= variety >= 3
        for begin, count in zip(start[good], counts[good], strict=True):
            yield text[begin : begin + length], int(count)
        ids = ids.copy()
        ids[at] = inverse
        before = now


def count_pieces(words: Counter, counts: Mapping[str, float]) -> Counter:
    """How often each piece is used when all words are cut by the best path."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models

    total = sum(counts.values())
    scores = [(p, exact(math.log(max(n, 0.5) / total))) for p, n in counts.items()]
    engine = Engine(models.Unigram([("", 0.0), *sorted(scores)], 0))
    cut, items = Counter(), sorted(words.items())
    for at in range(0, len(items), 10_000):
        part = items[at : at + 10_000]
        encodings = engine.encode_batch([word for word, _ in part])
        for (_, n), encoding in zip(part, encodings, strict=True):
            for token in encoding.tokens:
                cut[token] += n
    return cut


# -- words ---------------------------------------------------------------------------


def _words(stream, size, special, steps, min_frequency, dictionary):
    import regex

    clean = cleaner([*steps, apostrophe_step()])
    # `regex` says set difference with two hyphens, Oniguruma with `&&[^...]`.
    unspaced = defs.UNSPACED.replace(r"\x{30FC}", "\u30fc")
    pattern = rf"(?V1)[\w--[{unspaced}]]+|[{unspaced}]+|\S"
    find = regex.compile(pattern).findall
    first_unspaced = regex.compile(rf"[{unspaced}]").match
    counts = Counter()
    for text in stream:
        counts.update(find(clean(text)))
        if len(counts) > 4_000_000:  # what was seen once so far will hardly matter
            counts = Counter({word: n for word, n in counts.items() if n > 1})
    runs = Counter({w: n for w, n in counts.items() if first_unspaced(w)})
    counts = Counter({w: n for w, n in counts.items() if w not in runs})
    counts.pop(defs.MARK, None)
    # The two libraries differ on a few characters: what the tokenizer will not find as
    # a word is none.
    spaced = in_class(defs.SPACED)
    inner = {word: all(spaced[ord(char)] for char in word) for word in counts}
    counts = Counter({w: n for w, n in counts.items() if inner[w] or len(w) == 1})
    steps = [*steps, apostrophe_step()]
    room = size - len(special)
    if not runs and dictionary is None:
        tokens = _most_frequent(counts, min_frequency, room)
        vocab = {token: i for i, token in enumerate(special + tokens)}
        model = {"type": "WordLevel", "vocab": vocab, "unk_token": special[1]}
        return _definition(model, steps, [_found(defs.PLAIN_WORDS)])
    spaced = {
        defs.MARK + word + defs.MARK if inner[word] else word: count
        for word, count in counts.items()
    }
    words = (
        read_dictionary(dictionary)
        if dictionary is not None
        else learn_pieces(runs, size, 6, cohesive=True)
    )
    cut = count_pieces(runs, dict.fromkeys(_characters_of(runs), 1) | words)
    tokens = _most_frequent(Counter(spaced) + cut, min_frequency, room)
    total = sum(words.values()) + sum(runs.values())
    vocab = [[token, -40.0] for token in special]
    for token in tokens:
        frequency = max(1.0, words.get(token, 0.0) or spaced.get(token, 0))
        vocab.append([token, exact(math.log(frequency / total))])
    model = _unigram_model(vocab)
    steps = [*steps, replacement(defs.WORD_ENDS, defs.MARK, regex=True)]
    return _definition(model, steps, [_found(defs.MARKED_WORDS)])


def apostrophe_step() -> dict:
    """The normalizer that makes an apostrophe inside a word a letter."""
    return replacement(defs.APOSTROPHE, defs.LETTER_APOSTROPHE, regex=True)


def _found(pattern: str) -> dict:
    split = {"type": "Split", "pattern": {"Regex": pattern}}
    return split | {"behavior": "Removed", "invert": True}


def read_dictionary(source: str | Path | Mapping[str, float]) -> dict[str, float]:
    """Words with frequencies: a mapping, or a file of lines `word frequency tag`."""
    if isinstance(source, Mapping):
        return {word: float(n) for word, n in source.items() if word}
    words = {}
    for number, line in enumerate(_lines(Path(source)), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            words[fields[0]] = float(fields[1]) if len(fields) > 1 else 1.0
        except ValueError:
            raise UserError(
                f"'{fields[1]}' is no frequency",
                f"{source}:{number}",
                "A line is: word frequency tag.",
            ) from None
    return words
