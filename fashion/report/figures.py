"""Figures for the report, TensorBoard, slides and README. Reads and writes no files.

Each function returns a `matplotlib.figure.Figure` of its own; pyplot, with its global list of
figures and its choice of a backend, is not used. A figure holds one chart, small enough to be read
on a phone; a page sets several side by side.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from PIL.Image import Image

from fashion.report.evaluation import Evaluation
from fashion.report.metrics import ClassScore, Reliability, percent
from fashion.report.statistics import wilson

# The pages replace these five by CSS variables, so that a figure follows light and dark.
INK, MUTED, FAINT, ACCENT, PAPER = "#1c1b1a", "#6b6864", "#dcd8d2", "#b0401c", "#ffffff"
DARK = {
    "INK": "#ece9e4",
    "MUTED": "#a29d96",
    "FAINT": "#3b3835",
    "ACCENT": "#f0895c",
    "PAPER": "#161514",
    "GRAY": LinearSegmentedColormap.from_list("dark images", ["#161514", "#ffffff"]),
    "ERRORS": LinearSegmentedColormap.from_list(
        "dark errors", ["#161514", "#5a3020", "#a85c3b", "#f0895c", "#ffd9c6"]
    ),
}
# One hue from paper to nearly black: lightness orders the values, also for color-blind readers.
ERRORS = LinearSegmentedColormap.from_list(
    "errors", [PAPER, "#f3c6b0", "#d9774f", ACCENT, "#571a06"]
)
GRAY = "gray_r"  # Matplotlib's color map of images: dark on light

LONGEST = 30  # characters of a file name that fit below a photo
FEW = 4  # up to so many distinct values are drawn as evenly spaced categories

# One value per epoch; None or NaN where an epoch has none.
Series = Sequence[int] | Sequence[float | None]
# "epoch" (from 1), "train/loss", "train/acc", "val/loss", "val/acc"; of equal length.
History = Mapping[str, Series]


@contextmanager
def dark() -> Iterator[None]:
    """Draw figures in the colors of a dark page within the block."""
    light = {name: globals()[name] for name in DARK}
    globals().update(DARK)
    try:
        yield
    finally:
        globals().update(light)


def confusion_matrix(counts: Int[np.ndarray, "classes classes"], classes: Sequence[str]) -> Figure:
    """Draw the number of images per true class (row) and predicted class (column).

    Only errors are colored, on a scale that ends at the largest of them: the diagonal, some ten
    times as large, would leave no contrast among them.
    """
    strength = error_strength(counts)
    # Small in relation to its text, so that it can be read as a thumbnail in TensorBoard.
    size = (11 if counts.max() < 1000 else 9) * min(1.0, 10 / len(classes)) ** 0.8  # noqa: PLR2004
    figure = Figure((4.8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(strength, cmap=ERRORS, vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(
                column,
                row,
                f"{count:,}",
                size=size,
                weight="bold" if row == column else "normal",
                color=PAPER if strength[row, column] > 0.6 else INK,  # noqa: PLR2004
                ha="center",
                va="center",
            )
    ticks, label_size = range(len(classes)), min(10.0, size)
    style = {"size": label_size, "color": INK, "parse_math": False}
    axes.set_xticks(ticks, classes, rotation=45, ha="left", **style)
    axes.set_yticks(ticks, classes, **style)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("true class", size=label_size, color=MUTED)
    axes.set_xlabel("predicted class", size=label_size, color=MUTED)
    axes.xaxis.set_label_position("top")
    return figure


def row_fractions(
    counts: Int[np.ndarray, "classes classes"],
) -> Float[np.ndarray, "classes classes"]:
    """Return each count as a fraction of its row, 0..1; a row without images gives zeros."""
    fractions: np.ndarray = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return fractions


def error_strength(
    counts: Int[np.ndarray, "classes classes"],
) -> Float[np.ndarray, "classes classes"]:
    """Return how strongly to color each error, 0..1; 0 on the diagonal.

    The root of the fraction of its row, relative to the largest: the many small errors get more of
    the scale than the few large ones.
    """
    errors = np.where(np.eye(len(counts), dtype=bool), 0, row_fractions(counts))
    strength: np.ndarray = np.sqrt(errors / (errors.max() or 1))
    return strength


def learning_curve(
    history: History,
    quantity: Literal["acc", "loss"],
    best_epoch: int | None,
) -> Figure:
    """Draw the training and validation `quantity` per epoch, and mark the reported epoch.

    Args:
        history: values that are missing, None or NaN are left out.
        quantity: "acc", fractions drawn as per cent, or "loss".
        best_epoch: the reported one, from 1; None marks none.
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
    _whole_numbers(axes, epochs)
    if quantity == "acc":
        axes.yaxis.set_major_formatter(_percent)
    return figure


def class_intervals(scores: Sequence[ClassScore], classes: Sequence[str]) -> Figure:
    """Draw F1, precision and recall with their 95 % intervals, one row per class, as ordered."""
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
    axes.set_yticks(rows, [classes[score.label] for score in scores], parse_math=False)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(_percent)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    axes.spines["bottom"].set_visible(False)
    _legend(axes, columns=3)
    return figure


def baselines(
    names: Sequence[str],
    accuracies: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    differences: Sequence[tuple[str, bool]] = (),
    title: str = "",
) -> Figure:
    """Draw configurations by accuracy, one row each, and at the right their differences.

    Args:
        names: of the configurations.
        accuracies: 0..1, the highest first.
        intervals: of the accuracies, 0..1; None, of a single run, is drawn as a ring.
        differences: of the rows, from the first: a text, and whether the difference is significant.
        title: of the differences' column.
    """
    figure, axes = _chart(7.6 if differences else 4.4, 0.7 + 0.5 * len(names), "")
    for row, (accuracy, interval) in enumerate(zip(accuracies, intervals, strict=True)):
        if interval is not None:
            axes.hlines(row, *interval, color=ACCENT, lw=2.2)
        axes.plot(accuracy, row, "o", color=ACCENT if interval else PAPER, ms=6, mec=ACCENT)
        text = percent(accuracy, 2)
        axes.text(accuracy, row - 0.17, text, color=INK, size=9, ha="center")
    labels = [textwrap.fill(name, 26, break_on_hyphens=False) for name in names]
    axes.set_yticks(range(len(names)), labels, color=INK, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(_percent)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    beside: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "size": 9,
        "parse_math": False,
    }
    for row, (text, significant) in enumerate(differences):
        color, mark = (INK, "▲") if significant else (MUTED, "·")
        axes.text(1.04, row, f"{mark} {text}", color=color, va="center", **beside)
    if differences:
        axes.text(1.04, -0.68, title, color=MUTED, va="bottom", **beside)
    return figure


def reliability_diagram(reliability: Reliability, title: str) -> Figure:
    """Draw accuracy against confidence, with 95 % Wilson intervals.

    On the diagonal a model is calibrated, below it overconfident. The bars at the foot show how
    many predictions have which confidence, relative to the most frequent one.
    """
    figure, axes = _chart(4.4, 3.9, title)
    filled = reliability.count > 0
    confidence, accuracy = reliability.confidence[filled], reliability.accuracy[filled]
    count = reliability.count[filled]
    intervals = [
        wilson(round(float(fraction * total)), int(total))
        for fraction, total in zip(accuracy, count, strict=True)
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
    images: UInt8[np.ndarray, "n 28 28"],
    captions: Sequence[str],
    columns: int = 6,
    *,
    wrap: int = 28,
) -> Figure:
    """Draw images in rows, dark on light, each above its caption; of no images an empty figure.

    The images are joined into one and share a pair of axes with all captions: a pair of axes per
    image would take most of a second to draw.
    """
    lines = [textwrap.fill(caption, wrap, break_on_hyphens=False) for caption in captions]
    # In pixels of the images, 20 per inch at 28 x 28.
    side = 28  # Fashion-MNIST's, and that of other data of its form
    width, margin = 36, 4
    height = side + margin + 3 * max((line.count("\n") + 1 for line in lines), default=1) + 2
    rows = max(-(-len(images) // columns), 1)
    cells = np.zeros((rows * columns, height, width), np.uint8)
    cells[: len(images), margin : margin + side, margin : margin + side] = images
    sheet = cells.reshape(rows, columns, height, width).swapaxes(1, 2)
    figure = Figure((columns * width / 20, rows * height / 20))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(
        sheet.reshape(rows * height, columns * width),
        cmap=GRAY,
        vmin=0,
        vmax=255,
        aspect="auto",
        interpolation="nearest",
    )
    for position, line in enumerate(lines):
        row, column = divmod(position, columns)
        axes.text(
            (column + 0.5) * width,
            row * height + margin + side + 1,
            line,
            size=7.5,
            color=INK,
            ha="center",
            va="top",
            parse_math=False,
        )
    return figure


def mistakes(
    evaluation: Evaluation, count: int = 18, columns: int = 6, *, wrap: int = 28
) -> Figure:
    """Draw the `count` most confident mistakes, each above its sentence."""
    chosen = evaluation.mistakes[:count]
    labels, predicted = evaluation.labels[chosen], evaluation.predicted[chosen]
    captions = [
        evaluation.sentence(int(true), int(other))
        for true, other in zip(labels, predicted, strict=True)
    ]
    return gallery(evaluation.images[chosen], captions, columns, wrap=wrap)


def search_history(
    numbers: Sequence[int], accuracies: Sequence[float], whole: Sequence[bool]
) -> Figure:
    """Draw each trial's accuracy, 0..1, and the best so far of the completed ones (`whole`)."""
    figure, axes = _chart(4.8, 3.1, "Accuracy by trial")
    x, y, ended = np.array(numbers), np.array(accuracies, dtype=float), np.array(whole, dtype=bool)
    axes.plot(x[~ended], y[~ended], "o", color=MUTED, mfc="none", ms=4, label="pruned")
    axes.plot(x[ended], y[ended], "o", color=ACCENT, ms=4, label="complete")
    if ended.any():
        best = np.maximum.accumulate(y[ended])
        axes.step(x[ended], best, where="post", color=INK, lw=1, label="best so far")
    _focus(axes, y)
    axes.set_xlabel("trial")
    _whole_numbers(axes, numbers)
    axes.yaxis.set_major_formatter(_percent)
    _legend(axes, columns=3)
    return figure


def search_curves(curves: Sequence[tuple[Mapping[int, float], bool]]) -> Figure:
    """Draw validation accuracy per epoch of every trial; incomplete trials are faint.

    Args:
        curves: per trial a mapping from epoch to accuracy, 0..1, and whether it is complete.
    """
    figure, axes = _chart(4.8, 3.4, "Validation accuracy by epoch")
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
    _whole_numbers(axes, [epoch for curve, _ in curves for epoch in curve])
    axes.yaxis.set_major_formatter(_percent)
    return figure


def importances(shares: Mapping[str, float]) -> Figure:
    """Draw the importance of each parameter, 0..1, in the order given."""
    figure, axes = _chart(4.8, 0.9 + 0.3 * len(shares), "")
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
    """Draw accuracy, 0..1, against one parameter's value, over the trials that have it."""
    figure, axes = _chart(4.4, 3.0, name)
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


def _whole_numbers(axes: Axes, numbers: Iterable[int] | Iterable[float]) -> None:
    """Label an axis of epochs or trials with whole numbers alone, also where there is only one."""
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if len(only := set(numbers)) == 1:
        (number,) = only
        axes.set_xticks([number])


def _focus(axes: Axes, accuracies: Float[np.ndarray, " n"]) -> None:
    """Limit the axis to the upper three quarters of the values, which outliers would flatten."""
    known = accuracies[np.isfinite(accuracies)]
    if len(known) > 3 and known.max() > (low := np.quantile(known, 0.25)):  # noqa: PLR2004
        margin = 0.1 * (known.max() - low)
        axes.set_ylim(max(low - margin, known.min() - margin), known.max() + margin)


def budget_curve(
    runs: Mapping[int, Sequence[tuple[float, float]]],
    others: Mapping[str, tuple[float, float]],
    peers: Mapping[str, float],
) -> Figure:
    """Draw accuracy against training time, on a logarithmic scale.

    Args:
        runs: per number of epochs, each run's core-minutes and accuracy (0..1).
        others: core-minutes and accuracy (0..1) of other configurations, drawn as named points.
        peers: published accuracies (0..1), drawn as lines; their training times are not comparable.
    """
    figure, axes = _chart(7.2, 4.4, "Accuracy against time of training")
    epochs = sorted(runs)
    # The median of the minutes: one run on a machine that was suspended does not change it.
    middle = np.array(
        [
            (
                np.median([minutes for minutes, _ in points]),
                np.mean([accuracy for _, accuracy in points]),
            )
            for points in (runs[count] for count in epochs)
        ]
    )
    for minutes, accuracy in (point for count in epochs for point in runs[count]):
        axes.plot(minutes, accuracy, "o", color=ACCENT, ms=4, alpha=0.5, mew=0)
    axes.plot(*middle.T, color=ACCENT, lw=1.8)
    for count, minutes in zip(epochs, middle[:, 0], strict=True):
        axes.annotate(  # on the axis, where no point is
            f"{count}",
            (minutes, 0),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            size=8,
            color=ACCENT,
            ha="center",
        )
    for name, point in others.items():
        axes.plot(*point, "D", color=INK, ms=5, mew=0)
        axes.annotate(
            name,
            point,
            (-6, 0),
            textcoords="offset points",
            size=8,
            color=INK,
            ha="right",
            va="center",
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
    axes.set_xlabel("minutes of one core; numbers of epochs above the axis")
    axes.yaxis.set_major_formatter(_percent)
    axes.margins(y=0.12)
    return figure


def accuracy_lines(
    lines: Mapping[str, Mapping[int, tuple[float, float | None, float | None]]], label: str
) -> Figure:
    """Draw a line per network: mean accuracy (0..1) with its interval, if it has one.

    Args:
        lines: per network, in the order of accuracy, a mapping from a number, such as that of
            training images, to (mean, low, high); low and high are None for a single run.
        label: of the axis of the numbers, which is logarithmic.
    """
    figure, axes = _chart(7.2, 4.4, "Validation accuracy")
    shades = np.linspace(0.35, 1, len(lines))
    for (name, points), shade in zip(lines.items(), shades, strict=True):
        numbers = sorted(points)
        means = [points[number][0] for number in numbers]
        for number in numbers:
            _, low, high = points[number]
            if low is not None and high is not None:
                axes.plot([number, number], [low, high], color=ACCENT, alpha=shade, lw=1)
        axes.plot(numbers, means, "o-", color=ACCENT, alpha=shade, lw=1.6, ms=4, mew=0)
        axes.annotate(
            name,
            (numbers[-1], means[-1]),
            (6, 0),
            textcoords="offset points",
            size=9,
            va="center",
            color=INK,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({number for points in lines.values() for number in points}))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    axes.set_xlabel(label)
    axes.yaxis.set_major_formatter(_percent)
    axes.margins(x=0.1, y=0.08)
    return figure


def _chart(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return a figure (inches) with one pair of axes, and little around the data."""
    figure = Figure((width, height), layout="constrained")
    axes = figure.add_subplot(facecolor="none")
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
    """Put the legend on the title's line, where it hides no data."""
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


def _percent(fraction: float, _: object) -> str:
    """Format an axis' tick, with as few digits as it needs."""
    return f"{100 * fraction:.3g} %"


def _floats(values: Series) -> Float[np.ndarray, " n"]:
    return np.array(values, dtype=float)


class PredictedPhoto(NamedTuple):
    """A photo and a network's prediction for it."""

    name: str
    photo: Image  # RGB
    image: UInt8[np.ndarray, "28 28"]  # the photo in the dataset's format
    top: Mapping[str, float]  # class -> probability, the most probable first
    remarks: Sequence[str]  # sentences


def predicted_photos(photos: Sequence[PredictedPhoto]) -> Figure:
    """Draw a row per photo: the photo, the network's input, the most probable classes.

    All photos must have the same number of classes.
    """
    head, row = 0.45, 2.0  # inches
    height = head + row * len(photos)
    figure = Figure(figsize=(7.6, height), facecolor=PAPER)
    grid = figure.subplots(len(photos), 3, squeeze=False, width_ratios=(1, 1, 1.7))
    figure.subplots_adjust(0.02, 0.5 / height, 0.98, 1 - head / height, wspace=0.1, hspace=0.33)
    for title, axes in zip(("Photo", "What the network sees", "Likeliest"), grid[0], strict=True):
        axes.set_title(title, fontsize=9, color=MUTED, loc="left", pad=8)
    for (left, middle, right), each in zip(grid, photos, strict=True):
        name, photo, image, classes, sentences = each
        left.imshow(photo)
        middle.imshow(image, cmap="gray", vmin=0, vmax=255)
        for axes in (left, middle):
            axes.set(xticks=[], yticks=[], anchor="NW")
            axes.spines[:].set_color(FAINT)
        shown = name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
        left.set_xlabel(shown, fontsize=8, color=MUTED, loc="left", parse_math=False)
        positions, values = range(len(classes)), list(classes.values())
        colors = [MUTED if sentences else ACCENT, *[MUTED] * (len(classes) - 1)]
        right.barh(positions, 1, color=FAINT, height=0.2)
        right.barh(positions, values, color=colors, height=0.2)
        for position, (label, probability) in enumerate(classes.items()):
            style = {"fontsize": 9, "color": INK}
            right.text(0, position - 0.22, label, parse_math=False, **style)
            right.text(1, position - 0.22, percent(probability), ha="right", **style)
        right.set(xlim=(0, 1), ylim=(len(classes) - 0.4, -0.6), xticks=[], yticks=[])
        right.set_facecolor("none")
        right.spines[:].set_visible(False)
        text = "\n".join(textwrap.fill(sentence, 60) for sentence in sentences)
        right.set_xlabel(text, fontsize=7, color=MUTED, loc="left")
    return figure
