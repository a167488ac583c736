"""Which parts of a text carry the answer: leave each out and ask again.

Works with anything that gives a probability: a run, an export behind a server. The
effect is measured in log-odds, since the probability of a sure answer hardly moves.
Leave-one-out after Li, Monroe, Jurafsky: Understanding Neural Networks through
Representation Erasure (2016), https://arxiv.org/abs/1612.08220.
"""

import dataclasses
import io
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from tfllm.text.scripts import CJK

# A Chinese or Japanese character, a word with its apostrophes, or any other sign.
_UNIT = re.compile(rf"[{CJK}]|[^\W{CJK}]+(?:['’][^\W{CJK}]+)*|[^\w\s]")
_GREEN, _RED = (0, 135, 60), (200, 30, 45)


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What each unit of a text adds to the answer.

    Attributes:
        text: The text.
        spans: (start, end) of every unit, in code points.
        shares: `[len(spans)]`, positive where a unit supports the answer and negative
            where it opposes it; the absolute values sum to 1 (or are all 0).
        probability: Of the answer, for the whole text.
    """

    text: str
    spans: list[tuple[int, int]]
    shares: np.ndarray
    probability: float

    @property
    def units(self) -> list[str]:
        """The units as text."""
        return [self.text[start:end] for start, end in self.spans]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The units with the largest shares, either way."""
        order = np.argsort(-np.abs(self.shares), kind="stable")[:count]
        return [(self.units[i], float(self.shares[i])) for i in order if self.shares[i]]


def split(text: str, max_units: int = 128) -> list[tuple[int, int]]:
    """Spans of characters (Chinese, Japanese), words (else) and other signs.

    A text with more than `max_units` is cut into windows of equally many neighbours.
    """
    spans = [match.span() for match in _UNIT.finditer(text)]
    width = max(1, math.ceil(len(spans) / max_units))
    windows = [spans[i : i + width] for i in range(0, len(spans), width)]
    return [(window[0][0], window[-1][1]) for window in windows]


def explain(
    text: str,
    predict: Callable[[list[str]], Sequence[float]],
    *,
    max_units: int = 128,
    batch_size: int = 64,
) -> Attribution:
    """Shares of a text's units in the answer.

    Args:
        text: The text.
        predict: Texts → probability of the answer's label for each, `[N]`.
        max_units: Longer texts are explained in windows of several units.
        batch_size: Texts given to `predict` at once.

    Example:
        >>> explain("so good", lambda texts: [("good" in t) * 0.5 + 0.4 for t in texts])
    """
    spans = split(text, max_units)
    texts = [text] + [text[:start] + text[end:] for start, end in spans]
    batches = (texts[i : i + batch_size] for i in range(0, len(texts), batch_size))
    answers = np.concatenate([np.asarray(predict(b), np.float64) for b in batches])
    if answers.shape != (len(texts),):
        raise ValueError(f"predict gives [N] values. Received: shape {answers.shape}")
    sure = np.clip(answers, 1e-7, 1 - 1e-7)
    odds = np.log(sure) - np.log1p(-sure)
    effects = odds[0] - odds[1:]
    total = np.abs(effects).sum()
    shares = effects / total if total > 1e-6 else np.zeros_like(effects)
    return Attribution(text, spans, shares, float(answers[0]))


def render(attribution: Attribution):
    """The text for a terminal, a `rich.text.Text`: green supports, red opposes."""
    from rich.text import Text

    painted = Text(attribution.text)
    largest = np.abs(attribution.shares).max(initial=0) or 1.0
    for (start, end), share in zip(attribution.spans, attribution.shares, strict=True):
        strength = abs(share) / largest
        if strength >= 0.05:
            base = _GREEN if share > 0 else _RED
            colour = ",".join(str(round(60 + (c - 60) * strength)) for c in base)
            painted.stylize(f"white on rgb({colour})", start, end)
    return painted


def to_html(attribution: Attribution) -> str:
    """The text as an HTML paragraph, escaped, in the colours of `render`."""
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), soft_wrap=True)
    console.print(render(attribution))
    paragraph = '<p style="white-space:pre-wrap">{code}</p>'
    return console.export_html(inline_styles=True, code_format=paragraph)
