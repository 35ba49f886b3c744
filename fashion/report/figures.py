"""Figures drawn from numbers, for the report, TensorBoard and README; no files.

Each function returns a `matplotlib.figure.Figure` that belongs to nobody else: pyplot, with its
list of open figures and its choice of a backend, has no part in it. A figure holds one chart,
small enough to be read on a telephone; a page sets several side by side.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from fashion.data.datamodule import CLASSES
from fashion.report.metrics import ClassScore, Reliability, accuracy_interval

# The report replaces these five by its own variables, so that a figure follows light and dark.
INK, MUTED, FAINT, ACCENT, PAPER = "#1c1b1a", "#6b6864", "#dcd8d2", "#b0401c", "#ffffff"
# One hue from paper to nearly black: its lightness alone tells more from less, to every eye.
ERRORS = LinearSegmentedColormap.from_list(
    "errors", [PAPER, "#f3c6b0", "#d9774f", ACCENT, "#571a06"]
)

THIN = "\u202f"  # a narrow space at which no line breaks
FEW = 4  # values of a parameter that stand side by side, whatever lies between them

# Of one quantity, an epoch each; None or NaN where an epoch has none.
Series = Sequence[int] | Sequence[float | None]
# "epoch", counted from 1, "train/loss", "train/acc", "val/loss" and "val/acc"; of equal length.
History = Mapping[str, Series]

NOUNS = (
    "a T-shirt",
    "a pair of trousers",
    "a pullover",
    "a dress",
    "a coat",
    "a sandal",
    "a shirt",
    "a sneaker",
    "a bag",
    "an ankle boot",
)


def mistake_sentence(predicted: int, true: int) -> str:
    """What happened, in the deck's words; both are positions in `CLASSES`."""
    return f"We thought it was {NOUNS[predicted]} but it was actually {NOUNS[true]}."


def mistakes_by_confidence(
    labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n 10"]
) -> Int[np.ndarray, " mistakes"]:
    """Positions of the wrongly answered pictures, the most probable wrong answer first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]


def confusion_matrix(counts: Int[np.ndarray, "10 10"]) -> Figure:
    """Pictures of a true class (row) answered as another (column), with each row's per cents.

    Colour belongs to the errors alone, and ends at the largest of them: the diagonal, some ten
    times as large, would leave them all alike.
    """
    strength = error_strength(counts)
    shares = row_shares(counts)
    figure = Figure((7.6, 7.2))
    axes = figure.add_axes((0.115, 0.01, 0.875, 0.89))
    axes.imshow(strength, cmap=ERRORS, vmin=0, vmax=1, aspect="auto")
    for position, count in np.ndenumerate(counts):
        if count:
            right = position[0] == position[1]
            axes.text(
                position[1],
                position[0],
                f"{count:,}\n{100 * shares[position]:.1f}{THIN}%",
                size=8,
                weight="bold" if right else "normal",
                color=PAPER if strength[position] > 0.6 else INK,  # noqa: PLR2004
                ha="center",
                va="center",
            )
    names = [name.replace(" ", "\n").replace("/", "/\n") for name in CLASSES]
    axes.set_xticks(range(10), names, size=8, color=MUTED)
    axes.set_yticks(range(10), CLASSES, size=8, color=MUTED)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Rows: true class. Columns: answer.", loc="left", size=9, color=MUTED, pad=10)
    return figure


def row_shares(counts: Int[np.ndarray, "10 10"]) -> Float[np.ndarray, "10 10"]:
    """Each count as a share, 0..1, of its row; a row without pictures gives zeros."""
    shares: np.ndarray = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares


def error_strength(counts: Int[np.ndarray, "10 10"]) -> Float[np.ndarray, "10 10"]:
    """How strongly to colour each error, 0..1; 0 on the diagonal.

    The root of its share of the row, against the largest: the many small errors get more of the
    scale than the few large ones.
    """
    errors = np.where(np.eye(10, dtype=bool), 0, row_shares(counts))
    strength: np.ndarray = np.sqrt(errors / (errors.max() or 1))
    return strength


def learning_curve(
    history: History,
    quantity: Literal["acc", "loss"],
    best_epoch: int | None,
) -> Figure:
    """Training's and validation's `quantity` by epoch, with the reported epoch marked.

    Args:
        history: what is missing there, None or NaN is left out.
        quantity: "acc", shares that are drawn as per cents, or "loss".
        best_epoch: the one reported, counted from 1; None marks none.
    """
    figure, axes = _chart(4.4, 3.1, "Accuracy" if quantity == "acc" else "Loss (cross-entropy)")
    axes.set_xlabel("epoch")
    epochs = _floats(history["epoch"])
    for split, name, color in (("train", "training", MUTED), ("val", "validation", ACCENT)):
        values = _floats(history.get(f"{split}/{quantity}", [None] * len(epochs)))
        known = np.isfinite(values)
        if not known.any():
            continue
        # A single epoch is a point, which a line would not show.
        marker = "o" if known.sum() == 1 else ""
        axes.plot(epochs[known], values[known], color=color, lw=1.8, marker=marker, label=name)
        if split == "val" and best_epoch is not None and best_epoch in epochs[known]:
            axes.axvline(best_epoch, color=MUTED, lw=0.8, ls=(0, (2, 2)), zorder=0)
            best = values[epochs == best_epoch][0]
            axes.plot(best_epoch, best, "o", color=ACCENT, ms=7, mec=PAPER, mew=1.5)
            axes.set_xlabel(f"epoch (reported: {best_epoch})")
    if axes.get_legend_handles_labels()[1]:
        _legend(axes, columns=2)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if quantity == "acc":
        axes.yaxis.set_major_formatter(_percent)
    return figure


def class_intervals(scores: Sequence[ClassScore]) -> Figure:
    """F1, precision and recall with their 95 % intervals, a row a class, in the order given."""
    figure, axes = _chart(4.4, 0.9 + 0.34 * len(scores), "")
    rows = np.arange(len(scores))
    for name, key, marker, shift, color, width in (
        ("precision", "precision", ">", -0.25, MUTED, 1.0),
        ("F1", "f1", "o", 0.0, ACCENT, 2.2),
        ("recall", "recall", "<", 0.25, MUTED, 1.0),
    ):
        values = _floats([getattr(score, key) for score in scores])
        intervals = [getattr(score, f"{key}_interval") for score in scores]
        axes.hlines(
            rows + shift,
            [interval.low for interval in intervals],
            [interval.high for interval in intervals],
            color=color,
            lw=width,
        )
        axes.plot(
            values, rows + shift, marker, color=color, ms=6, mec=PAPER, mew=0.6, ls="", label=name
        )
    axes.set_yticks(rows, [CLASSES[score.label] for score in scores])
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(_percent)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    axes.spines["bottom"].set_visible(False)
    _legend(axes, columns=3)
    return figure


def ladder(
    names: Sequence[str],
    accuracies: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    steps: Sequence[tuple[str, bool]],
) -> Figure:
    """Recipes by accuracy, a row each from the top down, and what each step between them is worth.

    Args:
        names: of the recipes.
        accuracies: 0..1, the highest first.
        intervals: of the accuracies; None draws a ring, which stands for one run alone.
        steps: from each row to the one above it: what to say of it, and whether it is a real gain.
    """
    figure, axes = _chart(7.6, 0.5 + 0.75 * len(names), "")
    for row, (name, accuracy, interval) in enumerate(
        zip(names, accuracies, intervals, strict=True)
    ):
        if interval is not None:
            axes.hlines(row, *interval, color=ACCENT, lw=2.2)
        axes.plot(accuracy, row, "o", color=ACCENT if interval else PAPER, ms=6, mec=ACCENT)
        axes.text(
            accuracy, row - 0.2, f"{name}  {100 * accuracy:.2f}{THIN}%", color=INK, ha="center"
        )
    for row, (said, real) in enumerate(steps):
        axes.text(
            1.02,
            row + 0.5,
            f"{'▲' if real else '·'} {said}",
            transform=axes.get_yaxis_transform(),
            color=INK if real else MUTED,
            size=9,
            va="center",
        )
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(_percent)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    return figure


def reliability_diagram(reliability: Reliability, title: str) -> Figure:
    """How often answers given with a certain confidence are right, with 95 % intervals.

    On the diagonal a model is as often right as it says; below it, it says too much. The bars at
    the foot show how the answers spread over the confidences, the tallest being the most frequent.
    """
    figure, axes = _chart(4.4, 3.9, title)
    filled = reliability.count > 0
    confidence, accuracy = reliability.confidence[filled], reliability.accuracy[filled]
    count = reliability.count[filled]
    intervals = [
        accuracy_interval(round(float(share * total)), int(total))
        for share, total in zip(accuracy, count, strict=True)
    ]
    edges = np.linspace(0, 1, len(filled) + 1)[:-1][filled]
    axes.bar(edges, 0.16 * count / count.max(), 1 / len(filled), align="edge", color=FAINT, lw=0)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
    axes.vlines(
        confidence,
        [interval.low for interval in intervals],
        [interval.high for interval in intervals],
        color=ACCENT,
        lw=1.2,
    )
    axes.plot(confidence, accuracy, "o", color=ACCENT, ms=5, mec=PAPER, mew=0.6, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_percent)
    return figure


def gallery(
    images: UInt8[np.ndarray, "n 28 28"], captions: Sequence[str], columns: int = 6
) -> Figure:
    """Pictures in rows, dark on light, each over its caption; no pictures give an empty figure.

    All pictures are one image and all captions lie in one pair of axes, since axes of their own
    would take most of a second to draw.
    """
    lines = [textwrap.fill(caption, 28, break_on_hyphens=False) for caption in captions]
    # In pixels of the pictures, of which 20 make an inch.
    width, margin = 36, 4
    height = 28 + margin + 3 * max((line.count("\n") + 1 for line in lines), default=1) + 2
    rows = max(-(-len(images) // columns), 1)
    cells = np.zeros((rows * columns, height, width), np.uint8)
    cells[: len(images), margin : margin + 28, margin : margin + 28] = images
    sheet = cells.reshape(rows, columns, height, width).swapaxes(1, 2)
    figure = Figure((columns * width / 20, rows * height / 20))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(
        sheet.reshape(rows * height, columns * width),
        cmap="gray_r",
        vmin=0,
        vmax=255,
        aspect="auto",
        interpolation="nearest",
    )
    for position, line in enumerate(lines):
        row, column = divmod(position, columns)
        axes.text(
            (column + 0.5) * width,
            row * height + margin + 29,
            line,
            size=7.5,
            color=INK,
            ha="center",
            va="top",
        )
    return figure


def mistakes(
    images: UInt8[np.ndarray, "n 28 28"],
    labels: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n 10"],
    count: int = 18,
    columns: int = 6,
) -> Figure:
    """The `count` most confident mistakes among these pictures, each over its sentence."""
    chosen = mistakes_by_confidence(labels, probabilities)[:count]
    predicted = probabilities.argmax(1)
    return gallery(
        images[chosen],
        [mistake_sentence(int(predicted[i]), int(labels[i])) for i in chosen],
        columns,
    )


def examples(images: UInt8[np.ndarray, "10 28 28"]) -> Figure:
    """One picture of each class, in their order, over its name."""
    return gallery(images, CLASSES, columns=5)


def search_history(
    numbers: Sequence[int], accuracies: Sequence[float], whole: Sequence[bool]
) -> Figure:
    """Each trial's accuracy, 0..1, and the best so far of those trained to their end (`whole`)."""
    figure, axes = _chart(7.2, 3.1, "Accuracy by trial")
    x, y, ended = np.array(numbers), np.array(accuracies, dtype=float), np.array(whole, dtype=bool)
    axes.plot(x[~ended], y[~ended], "o", color=MUTED, mfc="none", ms=4, label="pruned")
    axes.plot(x[ended], y[ended], "o", color=ACCENT, ms=4, label="trained to the end")
    if ended.any():
        best = np.maximum.accumulate(y[ended])
        axes.step(x[ended], best, where="post", color=INK, lw=1, label="best so far")
    _focus(axes, y)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_formatter(_percent)
    _legend(axes, columns=3)
    return figure


def search_curves(curves: Sequence[tuple[Mapping[int, float], bool]]) -> Figure:
    """Validation accuracy by epoch of every trial; those not trained to their end are faint.

    Args:
        curves: of each trial epoch -> accuracy, 0..1, and whether it was trained to its end.
    """
    figure, axes = _chart(7.2, 3.6, "Validation accuracy by epoch")
    for curve, whole in sorted(curves, key=lambda pair: pair[1]):
        axes.plot(
            list(curve),
            list(curve.values()),
            color=ACCENT if whole else MUTED,
            alpha=1 if whole else 0.5,
            lw=1.2 if whole else 0.6,
            marker="o" if len(curve) == 1 else "",
            ms=3,
        )
    _focus(axes, np.array([value for curve, _ in curves for value in curve.values()], dtype=float))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_formatter(_percent)
    return figure


def importances(shares: Mapping[str, float]) -> Figure:
    """How much of what makes trials good each parameter accounts for, 0..1, the largest first."""
    figure, axes = _chart(7.2, 0.9 + 0.3 * len(shares), "")
    rows = np.arange(len(shares))
    axes.barh(rows, list(shares.values()), height=0.6, color=ACCENT)
    axes.set_yticks(rows, list(shares))
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(_percent)
    axes.grid(axis="y", visible=False)
    return figure


def search_slice(
    name: str,
    values: Sequence[object],
    accuracies: Sequence[float],
    whole: Sequence[bool],
    *,
    log: bool,
) -> Figure:
    """Accuracy, 0..1, against one parameter's value, of the trials that had it."""
    figure, axes = _chart(3.4, 2.6, name)
    axes.title.set_fontsize(9)
    y, ended = np.array(accuracies, dtype=float), np.array(whole, dtype=bool)
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    words = [f"{value:g}" if numbers else str(value) for value in values]
    ordered = sorted(zip(values if numbers else words, words, strict=True))
    names = list(dict.fromkeys(word for _, word in ordered))
    if numbers and len(names) > FEW:
        x = np.array(values, dtype=float)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(LogFormatter())
            axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    else:
        x = np.array([names.index(word) for word in words], dtype=float)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    axes.plot(x[~ended], y[~ended], "o", color=MUTED, mfc="none", ms=4)
    axes.plot(x[ended], y[ended], "o", color=ACCENT, ms=4)
    _focus(axes, y)
    axes.yaxis.set_major_formatter(_percent)
    return figure


def _focus(axes: Axes, accuracies: Float[np.ndarray, " n"]) -> None:
    """Show the upper three quarters of the values, which the others would press flat."""
    known = accuracies[np.isfinite(accuracies)]
    if len(known) > 3 and known.max() > (low := np.quantile(known, 0.25)):  # noqa: PLR2004
        margin = 0.1 * (known.max() - low)
        axes.set_ylim(max(low - margin, known.min() - margin), known.max() + margin)


def dial(runs: Mapping[int, Sequence[tuple[float, float]]], peers: Mapping[str, float]) -> Figure:
    """Accuracy against training time, on a scale of its own: each doubling is as wide.

    Args:
        runs: by number of epochs, each run's minutes and accuracy (0..1).
        peers: what others reach (0..1), a line each, its name on it: their minutes are other
            machines'.
    """
    figure, axes = _chart(7.2, 4.4, "Accuracy against minutes of training")
    epochs = sorted(runs)
    # The middle run's minutes: one that the machine paused says nothing of the recipe's speed.
    middle = np.array(
        [
            (np.median([minutes for minutes, _ in points]), np.mean([share for _, share in points]))
            for points in (runs[count] for count in epochs)
        ]
    )
    for minutes, accuracy in (point for count in epochs for point in runs[count]):
        axes.plot(minutes, accuracy, "o", color=ACCENT, ms=4, alpha=0.5, mew=0)
    axes.plot(*middle.T, color=ACCENT, lw=1.8)
    for count, minutes in zip(epochs, middle[:, 0], strict=True):
        axes.annotate(  # on the axis, where no dot is
            f"{count}",
            (minutes, 0),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            size=8,
            color=ACCENT,
            ha="center",
        )
    for name, accuracy in peers.items():
        axes.axhline(accuracy, color=MUTED, lw=0.8, ls=(0, (2, 2)), zorder=0)
        axes.annotate(  # at the left, where the curve lies far below most of them
            name,
            (0, accuracy),
            (4, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            size=8,
            color=MUTED,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda minutes, _: f"{minutes:.3g}")
    axes.set_xlabel("minutes; above the axis the numbers of epochs")
    axes.yaxis.set_major_formatter(_percent)
    axes.margins(y=0.12)
    return figure


def _chart(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure (inches) with one pair of axes and as little around the data as can be."""
    figure = Figure((width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", size=10, weight="bold", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=MUTED)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=MUTED, size=9)
    return figure, axes


def _legend(axes: Axes, columns: int) -> None:
    """On the title's line, where no data can lie under it."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor="linecolor",
        handlelength=1,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def _percent(share: float, _: object) -> str:
    return f"{100 * share:.3g}{THIN}%"


def _floats(values: Series) -> Float[np.ndarray, " n"]:
    return np.array(values, dtype=float)
