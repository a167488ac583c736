"""Pictures of how a classifier does, for reports and for TensorBoard.

Figures are matplotlib objects made without pyplot, so nothing global changes and a
training loop can draw them from any thread: `png(confusion_figure(...))`.
"""

import functools
import io
from collections.abc import Sequence

import numpy as np

from tfllm.evaluation.classification import BINS, Calibration

MOST_CLASSES = 40  # more do not fit on one picture
WORST_CLASSES = 30  # of them, then, these are drawn
MOST_CURVES = 10


def confusion_figure(matrix: np.ndarray, names: Sequence[str]):
    """Draws counts `[K, K]` (labels by predictions), shaded by share of the label.

    Of more than 40 classes only the 30 with the most errors are drawn, the rest
    together as one.
    """
    matrix, title = np.asarray(matrix), "Confusion matrix"
    shown, font = drawable(names)
    if len(names) > MOST_CLASSES:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
        worst = np.sort(np.argsort(-wrong, kind="stable")[:WORST_CLASSES])
        group = np.full(len(names), WORST_CLASSES)
        group[worst] = np.arange(WORST_CLASSES)
        member = np.eye(WORST_CLASSES + 1, dtype=matrix.dtype)[group]
        matrix = member.T @ matrix @ member
        shown = [*(shown[i] for i in worst), "all others"]
        title = f"The {WORST_CLASSES} of {len(names)} classes with the most errors"
    longest = max(map(len, shown))
    side = 3 + 0.3 * len(shown) + 0.06 * longest
    figure, axes = _axes(side + 1, side)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(matrix):
        colour = "white" if share[i, j] > 0.55 else "black"
        style = {"ha": "center", "va": "center", "color": colour, "fontsize": 7}
        axes.text(j, i, f"{matrix[i, j]:,}", **style)
    style = {"fontsize": 8, "fontfamily": font}
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(shown)), shown, **style, **turned)
    axes.set_yticks(range(len(shown)), shown, **style)
    numbered = "" if font else " (numbers: see the report)"
    axes.set(xlabel=f"Prediction{numbered}", ylabel=f"Label{numbered}")
    axes.set_title(title, loc="left")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, format=_percent())
    bar.set_label("Share of the label's rows")
    return figure


def reliability_figure(found: Calibration):
    """Draws accuracy against confidence, and above each bin its number of rows."""
    figure, axes = _axes(6, 5)
    left = np.clip(np.ceil(found.confidence * BINS) - 1, 0, None) / BINS
    bars = axes.bar(left, found.accuracy, 1 / BINS, align="edge", edgecolor="white")
    axes.bar_label(bars, [f"{n:,}" for n in found.counts], fontsize=7)
    axes.plot([0, 1], [0, 1], "--", color="grey")
    axes.set(xlabel="Confidence (probability of the prediction)", ylabel="Accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1.08))
    axes.yaxis.set_major_formatter(_percent())
    axes.set_title(f"Reliability: calibration error {found.error:.3f}", loc="left")
    return figure


def precision_recall_figure(
    labels: np.ndarray, scores: np.ndarray, names: Sequence[str]
):
    """Draws precision against recall, a curve a class, one class against all others.

    Of more than ten classes the ten with the lowest average precision are drawn.

    Args:
        labels: Class ids `[N]` (ids beyond K belong to none), or 0/1 values `[N, K]`.
        scores: Probabilities `[N, K]`.
        names: The K classes.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    labels = np.asarray(labels)
    if labels.ndim == 1:
        labels = labels[:, None] == np.arange(scores.shape[1])
    average = {
        k: average_precision_score(labels[:, k], scores[:, k])
        for k in np.flatnonzero(labels.any(0))
    }
    drawn = sorted(average, key=average.get)[:MOST_CURVES]
    shown, font = drawable(names)
    figure, axes = _axes(7.4, 5)
    for k in sorted(drawn):
        precision, recall, _ = precision_recall_curve(labels[:, k], scores[:, k])
        axes.step(recall, precision, label=f"{shown[k]}  {average[k]:.3f}")
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set_title("Precision and recall", loc="left")
    lowest = f"Lowest of {len(average)}, average" if len(average) > 10 else "Average"
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    axes.legend(title=f"{lowest} precision", prop={"family": font}, **place)
    return figure


def scatter_figure(labels: Sequence[float], predictions: Sequence[float]):
    """Draws predicted numbers against the true ones, and where both would be equal."""
    figure, axes = _axes(5.6, 5)
    axes.scatter(labels, predictions, s=12, alpha=0.4, edgecolors="none")
    ends = [min(*labels, *predictions), max(*labels, *predictions)]
    axes.plot(ends, ends, "--", color="grey")
    axes.set(xlabel="Label", ylabel="Prediction")
    axes.set_title("Predictions and labels", loc="left")
    return figure


def attention_figure(shares: np.ndarray, sources: Sequence[str], made: Sequence[str]):
    """Draws shares `[T, S]`: at which source token each token that was made looks."""
    figure, axes = _axes(2 + 0.25 * len(sources), 1.5 + 0.25 * len(made))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for axis, tokens, style in (
        (axes.xaxis, sources, {"rotation": 90}),
        (axes.yaxis, made, {}),
    ):
        shown, font = drawable(tokens)
        style = {"fontsize": 7, "fontfamily": font} | style
        axis.set_ticks(range(len(shown)), shown, **style)
    axes.set(xlabel="Source", ylabel="Answer")
    return figure


def png(figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def pixels(figure, dpi: int = 110) -> np.ndarray:
    """The figure as an image, uint8 `[height, width, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def drawable(names: Sequence[str], longest: int = 24) -> tuple[list[str], str | None]:
    """Names as they can be drawn, and an installed font that has their characters.

    Where no font has them all, the names become numbers (places in `names`, from 0)
    and the font is None.
    """
    font = _font_for(frozenset(c for name in names for c in name if not c.isspace()))
    if font is None:
        return [str(number) for number in range(len(names))], None
    # A dollar sign would start a formula.
    short = [n if len(n) <= longest else n[: longest - 1] + "…" for n in names]
    return [n.replace("$", r"\$").replace("\n", " ") for n in short], font


@functools.lru_cache(maxsize=64)
def _font_for(characters: frozenset[str]) -> str | None:
    from matplotlib import font_manager, ft2font

    fonts = {f.name: f.fname for f in font_manager.fontManager.ttflist}
    # The default first, then sans faces of the usual makers, then whatever draws them;
    # "Last Resort" claims to have all characters and draws boxes.
    usual = ("Noto Sans CJK SC", "Source Han Sans", "Microsoft YaHei", "PingFang")
    for name in sorted(
        (name for name in fonts if "Last Resort" not in name),
        key=lambda name: (name != "DejaVu Sans", not name.startswith(usual), name),
    ):
        font = ft2font.FT2Font(fonts[name])
        if all(font.get_char_index(ord(c)) for c in characters):
            return name
    return None


def _axes(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _percent():
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1, decimals=0)
