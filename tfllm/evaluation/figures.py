"""Pictures of how a classifier does, for reports and for TensorBoard.

Figures are matplotlib objects made without pyplot, so nothing global changes and a
training loop can draw them from any thread: `png(confusion_figure(...))`.
"""

import functools
import io
from collections.abc import Sequence

import numpy as np

from tfllm.evaluation.classification import Calibration, precision_recall

BLUE, RED, GREY = "#2f6fb0", "#c8503c", "#8a8f98"
CURVES = (BLUE, "#e08a1e", "#3a9a5b", RED, "#7d5fb2", "#8c6d53", "#d678b0", "#5f6670")
CURVES += ("#a9a832", "#35a8b5")
MOST_CLASSES = 40  # more do not fit on one picture
WORST_CLASSES = 30  # of them, then, these are drawn


def confusion_figure(matrix: np.ndarray, names: Sequence[str]):
    """Draws counts `[K, K]` (labels by predictions), shaded by share of the label.

    Of more than 40 classes only the 30 with the most errors are drawn, the rest
    together as one.
    """
    matrix, title = np.asarray(matrix), "Confusion matrix"
    total = len(names)
    names, as_numbers = drawable(names)
    if total > MOST_CLASSES:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
        worst = np.sort(np.argsort(-wrong, kind="stable")[:WORST_CLASSES])
        group = np.full(total, WORST_CLASSES)
        group[worst] = np.arange(WORST_CLASSES)
        lumped = np.zeros((WORST_CLASSES + 1,) * 2, matrix.dtype)
        np.add.at(lumped, (group[:, None], group[None]), matrix)
        matrix, names = lumped, [*(names[i] for i in worst), "all others"]
        title = f"The {WORST_CLASSES} of {total} classes with the most errors"
    size = len(names)
    side = float(np.clip(2.6 + 0.42 * size, 4, 13))
    longest = max(len(name) for name in names)
    figure, axes = _axes(side + 0.06 * longest + 0.8, side + 0.06 * longest)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    largest = 11 if size <= 6 else 8.5 if size <= 16 else 6.5
    for i, j in np.argwhere(matrix):
        text = f"{matrix[i, j]:,}"
        axes.text(
            *(j, i, text),
            ha="center",
            va="center",
            color="white" if share[i, j] > 0.55 else "#20242a",
            fontsize=largest * min(1, 4.5 / len(text)),
        )
    label_size = 10 if size <= 16 else 8
    style = {"fontsize": label_size, "fontfamily": font_families(names)}
    upright = longest <= 2 or (size <= 6 and longest <= 10)
    turned = (
        {} if upright else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    )
    axes.set_xticks(range(size), names, **style, **turned)
    axes.set_yticks(range(size), names, **style)
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#e3e6ea", linewidth=0.7)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    numbered = " (numbers: see the report)" if as_numbers else ""
    axes.set(xlabel=f"Prediction{numbered}", ylabel=f"Label{numbered}")
    axes.set_title(title, loc="left")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=25, format=_percent())
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.set_label("Share of the label's rows", fontsize=8)
    return figure


def reliability_figure(width: Calibration, mass: Calibration | None = None):
    """Draws accuracy against confidence: bars of equal width, points of equal mass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 6.2), layout="constrained", facecolor="white")
    axes, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    left = np.minimum(np.ceil(width.confidence * 15 - 1e-9) - 1, 14).clip(0) / 15
    bars = {"width": 1 / 15, "align": "edge", "edgecolor": "white", "linewidth": 1}
    low, high = np.sort([width.accuracy, width.confidence], axis=0)
    axes.bar(left, low, color=BLUE, label="Accuracy of the bin", **bars)
    over = width.confidence > width.accuracy
    for side, colour, label in (
        (over, "#f0b8ad", "Confidence above accuracy"),
        (~over, "#a9cbe9", "Accuracy above confidence"),
    ):
        gap = (high - low)[side]
        axes.bar(left[side], gap, bottom=low[side], color=colour, label=label, **bars)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    if mass is not None:
        style = {"marker": "o", "markersize": 4.5, "color": "#20242a", "linewidth": 1}
        axes.plot(mass.confidence, mass.accuracy, label="Bins of equal counts", **style)
    below.bar(left, width.counts / width.counts.sum(), color=GREY, **bars)
    axes.set(ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1.02))
    below.set(xlabel="Confidence (probability of the prediction)", ylabel="Rows")
    for each in (axes, below):
        _plain(each)
        each.yaxis.set_major_formatter(_percent())
    axes.set_title(f"Reliability: calibration error {width.error:.3f}", loc="left")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def precision_recall_figure(
    labels: np.ndarray, scores: np.ndarray, names: Sequence[str]
):
    """Draws precision against recall, a curve a class, one class against all others.

    Of more than 10 classes the ten with the lowest average precision are coloured.

    Args:
        labels: Class ids `[N]` (ids beyond K belong to none), or 0/1 values `[N, K]`.
        scores: Probabilities `[N, K]`.
        names: The K classes.
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        labels = labels[:, None] == np.arange(scores.shape[1])
    curves = {
        k: precision_recall(labels[:, k], scores[:, k])
        for k in np.flatnonzero(labels.any(0))
    }
    shown, _ = drawable(names)
    worst = sorted(curves, key=lambda k: curves[k][2])
    coloured = worst if len(worst) <= len(CURVES) else worst[: len(CURVES)]
    figure, axes = _axes(7.4, 5)
    for k in worst[len(coloured) :]:
        axes.step(curves[k][1], curves[k][0], color="#d5d9de", linewidth=0.7, zorder=1)
    for k, colour in zip(sorted(coloured), CURVES, strict=False):
        precision, recall, average = curves[k]
        label = f"{shown[k]}  {average:.3f}"
        axes.step(recall, precision, color=colour, linewidth=1.6, label=label)
    _plain(axes)
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set_title("Precision and recall", loc="left")
    rest = len(curves) - len(coloured)
    head = (
        f"Lowest of {len(curves)}, average precision" if rest else "Average precision"
    )
    legend = axes.legend(
        title=head,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        prop={"family": font_families(shown), "size": 9},
    )
    legend._legend_box.align = "left"
    return figure


def slices_figure(slices: Sequence[dict], xlabel: str):
    """Draws the accuracy of slices: dicts `slice samples accuracy interval`."""
    figure, axes = _axes(6.4, 3.6)
    accuracy = np.array([s["accuracy"] for s in slices])
    bounds = np.array([s["interval"] for s in slices]).T
    errors = np.abs(bounds - accuracy)
    places = np.arange(len(slices))
    style = {"fmt": "o", "color": BLUE, "ecolor": GREY, "elinewidth": 1.4, "capsize": 4}
    axes.errorbar(places, accuracy, yerr=errors, markersize=7, **style)
    ticks = [f"{s['slice']}\n{s['samples']:,} rows" for s in slices]
    axes.set_xticks(places, ticks, fontsize=9)
    axes.set(xlabel=xlabel, ylabel="Accuracy", xlim=(-0.5, len(slices) - 0.5))
    axes.set_title("Accuracy by length, with 95 % intervals", loc="left")
    _plain(axes)
    axes.yaxis.set_major_formatter(_percent())
    return figure


def png(figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    style = {"bbox_inches": "tight", "pad_inches": 0.12, "metadata": {"Software": None}}
    figure.savefig(buffer, format="png", dpi=dpi, **style)
    return buffer.getvalue()


def pixels(figure, dpi: int = 110) -> np.ndarray:
    """The figure as an image, uint8 `[height, width, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def drawable(names: Sequence[str], longest: int = 24) -> tuple[list[str], bool]:
    """Names as they can be drawn: shortened, or all as numbers when a glyph is missing.

    Returns:
        The names, and whether they became numbers (places in `names`, from 0).
    """
    if font_families(names) is None:
        return [str(number) for number in range(len(names))], True
    # A dollar sign would start a formula.
    short = [n if len(n) <= longest else n[: longest - 1] + "…" for n in names]
    return [n.replace("$", r"\$").replace("\n", " ") for n in short], False


def font_families(names: Sequence[str]) -> list[str] | None:
    """Installed fonts that together draw the names; None when there are none."""
    return _families(frozenset(c for name in names for c in name if not c.isspace()))


@functools.lru_cache(maxsize=64)
def _families(characters: frozenset[str]) -> list[str] | None:
    from matplotlib import font_manager, ft2font

    def missing(path):
        font = ft2font.FT2Font(path)
        return {c for c in left if not font.get_char_index(ord(c))}

    families, left = ["DejaVu Sans"], characters
    left = missing(font_manager.findfont("DejaVu Sans"))
    fonts = {f.name: f.fname for f in font_manager.fontManager.ttflist}
    # Regular sans faces of the usual makers first, then anything that has the glyphs;
    # "Last Resort" claims to have all of them and draws boxes.
    wanted = ("Noto Sans CJK SC", "Source Han Sans", "Microsoft YaHei", "PingFang")
    order = sorted(fonts, key=lambda name: (not name.startswith(wanted), name))
    for name in order if left else ():
        if "Last Resort" in name:
            continue
        rest = missing(fonts[name])
        if len(rest) < len(left):
            families.append(name)
            left = rest
        if not left:
            break
    return None if left else families


def _axes(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots()


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e9ebee", linewidth=0.8)
    axes.set_axisbelow(True)


def _percent():
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1, decimals=0)
