"""Files of tagged words as records: plain text, and the spans in it.

`parse` is for `readers.read`. A record has `text`, as a person would write it; `words`,
where each word of the file stands in it, `(start, end)`; `entities`, the tagged parts
as `evaluation.spans.Span`s of characters; `label`, their types, by which the doctor
counts; and `intent`, where the file gives one to the whole text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from tfllm.core.errors import UserError
from tfllm.data.readers import SURROGATE, RawFile, Records, beside, json_items
from tfllm.evaluation.spans import TAG, Span, are_tags, over, read_tags, scheme_of
from tfllm.text.flags import language_of

_KEYS = {  # of JSON
    "words": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "slots", "labels", "pos_tags"),
    "intent": ("intent", "label"),
}
_LANGUAGE = re.compile(r"[a-z]{2,3}:(?=.)")  # WikiANN's `en:word`


def parse(file: RawFile) -> tuple[list[dict], str]:
    """Rows of `seq.in` with `seq.out` (and `label`) beside it, of JSON, of columns."""
    rows, form = _parallel(file) or _json(file) or _columns(file)
    rows = list(rows)
    scheme, find = _scheme(file, rows)
    form += f" {scheme}"
    gap = _gaps([words for _, words, _, _ in rows])
    found = []
    for line, words, names, intent in rows:
        row = tagged_row(words, find(names), gap) | {"file": str(file.path)}
        row |= {"line": line} | ({} if intent is None else {"intent": intent})
        found.append(row)
    return found, form


def _scheme(file: RawFile, rows: Sequence[tuple]):
    """The name of the tags' form, and what makes spans of a text's tags."""
    tags = [row[2] for row in rows]
    if all(are_tags([*row, "O"]) for row in tags):
        return scheme_of(tags), read_tags
    names = {name for row in tags for name in row}
    spans = sorted(name for name in names if TAG.fullmatch(name) and name[1:])
    if spans and "O" in names:
        for line, _, row, _ in rows:
            for place, name in enumerate(row, 1):
                if not TAG.fullmatch(name):
                    what = f"the tag '{name[:40]}' of word {place} is none of the form "
                    shown = ", ".join(spans[:3])
                    raise file.error(f"{what}{shown}, O that others have", line=line)
    if "O" in names:
        return "IO", lambda row: read_tags([n if n == "O" else f"I-{n}" for n in row])
    return "a tag a word", lambda row: [Span(i, i + 1, n) for i, n in enumerate(row)]


def from_json(row: dict) -> dict:
    """A record as it was before it was written as JSON, which knows no tuples."""
    if "entities" in row:
        row["entities"] = [Span(*span) for span in row["entities"]]
        row["words"] = [tuple(word) for word in row["words"]]
    return row


def tagged_row(words: Sequence[str], spans: Sequence[Span], gap) -> dict:
    """A record from words.

    Args:
        words: The words of a text.
        spans: The tagged ones, as spans of words.
        gap: What stands between two words: a function of both.
    """
    text, places = "", []
    for number, word in enumerate(words):
        text += gap(words[number - 1], word) if number else ""
        places.append((len(text), len(text) + len(word)))
        text += word
    return {
        "text": text,
        "words": places,
        "entities": over(spans, places),
        "label": [span.type for span in spans],
    }


def entity_types(records: Records, split: str = "train") -> list[str]:
    """The types of entities in a split's rows; a `UserError` where there are none."""
    types = sorted({span[2] for row in records.rows for span in row["entities"]})
    if not types:
        what = f"no row of {split} has an entity"
        raise UserError(what, records.where, "Check the tags")
    return types


def chinese_gap(before: str, after: str) -> str:
    """Between words of Chinese: a space where two of Latin letters or digits meet."""
    return " " if (before[-1] + after[:1]).isascii() and after[:1].isalnum() else ""


def _gaps(rows: Sequence[Sequence[str]]):
    sample = [word for words in rows[:2000] for word in words]
    if language_of([" ".join(sample)]) != "zh":
        return lambda before, after: " "
    if sum(len(word) == 1 for word in sample) > 0.98 * len(sample):
        return lambda before, after: ""  # a character a line, of numbers too
    return chinese_gap


# Each form: rows of (line, words, tags, intent) and its name, or None.


def _parallel(file: RawFile):
    if file.path.name not in ("seq.in", "seq.in.gz"):
        return None
    tags, intents = (beside(file, name) for name in ("seq.out", "label"))
    if tags is None:
        raise file.error("there is no file 'seq.out' beside it")

    def rows() -> Iterator:
        for number, line in enumerate(file.text.rstrip("\n").split("\n")):
            words, names = line.split(), tags[number].split()
            if len(words) != len(names):
                what = f"{len(words)} words but {len(names)} tags in seq.out"
                raise file.error(what, line=number + 1)
            intent = intents and intents[number].strip()
            if words and intent == "":
                file.bad.append((number + 1, "an empty line of the file 'label'"))
            elif words:
                yield number + 1, words, names, intent

    found = {"words": file.path.name, "tags": "seq.out"}
    file.found |= found | ({"intent": "label"} if intents else {})
    return rows(), "parallel files,"


def _json(file: RawFile):
    items = json_items(file, _KEYS["words"])
    if items is None:
        return None
    first = items[0][0][1] if items[0] else None
    if not isinstance(first, dict):
        raise file.error("the items are not JSON objects")
    roles = {
        role: next((name for name in names if name in first), None)
        for role, names in _KEYS.items()
    }
    if not (roles["words"] and roles["tags"]):
        missing = "tokens" if roles["tags"] else "tags"
        raise file.error(f"there is no list '{missing}' in the items")
    file.found |= {role: name for role, name in roles.items() if name}

    def rows() -> Iterator:
        for line, item in items[0]:
            if not isinstance(item, dict):
                file.bad.append((line, "no JSON object"))
                continue
            words, tags, intent = (item.get(roles[role]) for role in _KEYS)
            if isinstance(intent, int):
                intent = str(intent)
            if not all(isinstance(part, list) for part in (words, tags)):
                file.bad.append((line, "tokens or tags are no list"))
            elif len(words) != len(tags):
                what = f"{len(words)} tokens but {len(tags)} tags"
                raise file.error(what, line=line)
            elif tags and all(isinstance(tag, int) for tag in tags):
                what = "the tags are numbers"
                raise file.error(what, "Write their names, such as B-PER", line)
            elif not all(isinstance(x, str) and x for x in (*words, *tags)):
                file.bad.append((line, "a token or tag is no text"))
            elif intent is not None and not (isinstance(intent, str) and intent):
                file.bad.append((line, "the intent is no text"))
            elif any(map(SURROGATE.search, (*words, *tags, intent or ""))):
                file.bad.append((line, "not Unicode (half a surrogate pair)"))
            elif words:
                yield line, words, tags, intent

    return rows(), items[1]


def _columns(file: RawFile):
    tab = sum("\t" in line for line in file.lines[:2000]) > len(file.lines[:2000]) / 3
    lines = []
    for number, line in enumerate(file.lines, 1):
        cells = line.rstrip("\r").split("\t") if tab else line.split()
        if not line.strip() or line.startswith("-DOCSTART-"):
            cells = []
        elif not tab and line[0].isspace() and len(cells) < 3:
            cells = [line[0], *cells]  # the word is a space
        lines.append((number, line, cells))
    widths = Counter(len(cells) for _, _, cells in lines if cells)
    width = max(widths, key=widths.get, default=0)
    if width < 2:
        what = "this is not a word and its tag a line"
        raise file.error(what, "Give CoNLL columns, seq.in and seq.out, or JSON lines")
    for number, line, cells in lines:
        if cells and len(cells) != width:
            if line.startswith("# "):  # a comment, as CoNLL-U has them
                cells.clear()
                continue
            what = f"{len(cells)} columns instead of {width}: '{line.strip()[:40]}'"
            raise file.error(what, line=number)
        if cells and not (cells[0] and cells[-1]):
            raise file.error("an empty word or tag", line=number)
    words = [cells[0] for _, _, cells in lines if cells]
    starts = {found[0] if (found := _LANGUAGE.match(word)) else "" for word in words}
    skip = len(starts.pop()) if len(starts) == 1 else 0
    file.found |= {"words": "1", "tags": str(width)}

    def rows() -> Iterator:
        for whole, part in groupby(lines, lambda line: bool(line[2])):
            if whole:
                part = list(part)
                cells = [cells for _, _, cells in part]
                names = [one[-1].strip() for one in cells]
                yield part[0][0], [one[0][skip:] for one in cells], names, None

    return rows(), f"{width} columns,"


def newspaper_names(lines: Sequence[str]) -> Iterator[dict]:
    """Records from lines of `word/tag  word/tag`, as the People's Daily corpus has it.

    Names of persons (surname and given name are two words there), of places and of
    organisations are the entities.
    """
    types = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
    for number, line in enumerate(lines, 1):
        pairs = [word.rpartition("/")[::2] for word in line.split()]
        words, spans = [word for word, _ in pairs], []
        for place, (word, tag) in enumerate(pairs):
            kind, last = types.get(tag), spans[-1] if spans else None
            surname = (
                last and last[1:] == (place, "PER") and len(pairs[place - 1][0]) < 3
            )
            if kind == "PER" and surname and last.start == place - 1:
                spans[-1] = last._replace(end=place + 1)
            elif kind and word:
                spans.append(Span(place, place + 1, kind))
        if all(words) and words:
            row = tagged_row(words, spans, chinese_gap)
            yield row | {"line": number}
