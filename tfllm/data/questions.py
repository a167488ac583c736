"""Questions whose answers are parts of a context: SQuAD 1.1 and 2.0, CMRC 2018.

`parse` is for `readers.read`. A record has `text`, the question; `context`, as it came;
`answers`, `(start, text)` of each accepted one, none where the context does not answer
(SQuAD 2.0); and `id`. `line` is the number of the question in its file. An answer that
does not stand where the file says (CMRC's are off by one or two) is looked for nearby,
as the official scripts never look at the place. One in other words than the context's
(CMRC has some) has the start -1: it counts in scores, and nothing is learned from it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from tfllm.data.readers import SURROGATE, RawFile, json_items

BROKEN = "is not Unicode (half a surrogate pair)"
_INSIDE = ("data", "paragraphs", "qas")  # what holds the questions
_NAMES = {  # the latter ones are those of CMRC's own form
    "text": ("question", "query_text"),
    "context": ("context", "context_text"),
    "id": ("id", "query_id"),
}
ASKED = ("What does {} do?", "What is {} for?", "What happens when {} is called?")


def parse(file: RawFile) -> tuple[list[dict], str]:
    """Rows of SQuAD's and CMRC's JSON, nested or with a question an item."""
    items = json_items(file, _INSIDE)
    if items is None:
        fix = "Give SQuAD's or CMRC's JSON, or JSON lines with question and context"
        raise file.error("this is not JSON", fix)
    rows = []
    asked = [(line, one) for line, item in items[0] for one in _questions(item, {})]
    lines = items[1] == "JSON lines" and len(items[0]) > 1
    for number, (line, one) in enumerate(asked, 1):
        row, reason = _row(one, file.labels)
        place = line if lines else number
        if reason:
            name = f"question '{row['id']}': " if row["id"] else ""
            file.bad.append((place, name + reason))
        else:
            rows.append(row | {"file": str(file.path), "line": place})
    if not asked:
        raise file.error("there are no questions in it", "SQuAD has data, paragraphs")
    without = sum(not row["answers"] for row in rows)
    return rows, "questions" + f" ({without:,} without an answer)" * bool(without)


def _questions(item: Any, above: dict) -> Iterator[dict]:
    """Goes down to the questions; what stands above one (its context) is its own."""
    if isinstance(item, list):
        for one in item:
            yield from _questions(one, above)
    elif isinstance(item, dict):
        inside = next((name for name in _INSIDE if name in item), None)
        whole = above | {k: v for k, v in item.items() if k != inside}
        if inside is None:
            yield whole
        else:
            yield from _questions(item[inside], whole)
    else:
        yield above | {"question": item}


def _row(item: dict, labels: bool) -> tuple[dict, str | None]:
    """A record, or what is wrong with it."""
    row = {
        role: next((item[name] for name in names if name in item), None)
        for role, names in _NAMES.items()
    }
    for role in ("text", "context"):
        name = "question" if role == "text" else role
        if not isinstance(row[role], str) or not row[role].strip():
            return row, f"there is no {name}"
        if SURROGATE.search(row[role]):
            return row, f"the {name} {BROKEN}"
    if SURROGATE.search(str(row["id"])):
        return row | {"id": None}, f"the id {BROKEN}"
    row["text"], row["answers"] = row["text"].strip(), []
    told, impossible = item.get("answers"), item.get("is_impossible")
    if impossible not in (None, False, True):
        return row, "is_impossible is neither true nor false"
    if impossible or (told is None and not labels):
        return row, None
    if isinstance(told, dict) and {"text", "answer_start"} <= told.keys():
        columns = [told["text"], told["answer_start"]]  # as Hugging Face has them
        columns = [one if isinstance(one, list) else [one] for one in columns]
        if len(columns[0]) != len(columns[1]):
            return row, "as many answers as places are wanted"
        pairs = zip(*columns, strict=True)
        told = [{"text": text, "answer_start": start} for text, start in pairs]
    if not isinstance(told, list):
        return row, "there are no answers"
    for one in told:
        one = {"text": one} if isinstance(one, str) else one
        text = one.get("text") if isinstance(one, dict) else None
        if not isinstance(text, str) or not text.strip():
            return row, "an answer without text"
        if SURROGATE.search(text):
            return row, f"an answer {BROKEN}"
        start = one.get("answer_start", -1)
        if type(start) is not int or start < -1:
            return row, f"an answer begins at {start!r}: no number of a character"
        if start == -1:  # CMRC's own form never tells
            start = row["context"].find(text)
        elif not row["context"].startswith(text, start):
            before = row["context"].rfind(text, 0, start + len(text))
            places = before, row["context"].find(text, start)
            places = [place for place in places if place >= 0]
            if not places:
                return row, f"'{text[:40]}' does not stand in the context"
            start = min(places, key=lambda place: abs(place - start))
        row["answers"].append((start, text))
    return row, None


def documentation(
    modules: Iterable[Iterable[tuple[str, str]]], most: int, longest: int
) -> Iterator[dict]:
    """Questions on documented names: what is one for?

    A context is the beginning of a few docstrings of a module, each under its name; the
    answer is the first sentence of one of them.

    Args:
        modules: Names and docstrings of each.
        most: Questions at most.
        longest: Characters of a context, about.
    """
    number = 0
    for module in modules:
        context, found = "", []
        named = ((name, doc) for name, doc in module if name[:1] not in ("", "_"))
        for name, doc in [*named, ("", "")]:
            doc = "\n\n".join(doc.split("\n\n")[:2])[:300]
            if found and (not name or len(context) + len(doc) > longest):
                for asked, start, answer in found:
                    if number == most:
                        return
                    question = ASKED[number % len(ASKED)].format(asked)
                    row = {"text": question, "answers": [(start, answer)]}
                    number += 1
                    yield row | {"context": context, "line": number}
                context, found = "", []
            sentence = doc.split("\n\n")[0].split(". ")[0]
            context += f"{name}\n"
            names = [one[0] for one in found]
            plain = sentence[:1].isupper() and "(" not in sentence.split(" ")[0]
            if plain and 15 <= len(sentence) <= 120 and name not in names:
                found.append((name, len(context), sentence))
            context += f"{doc}\n\n"
