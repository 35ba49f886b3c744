"""A run's figures for slides: 16:9, PNG and SVG, on a light and on a dark background."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fashion.report import figures, metrics
from fashion.report.evaluation import SPLITS, Evaluation
from fashion.report.metrics import percent, percent_range
from fashion.runs.files import atomic_write, refuse_existing
from fashion.runs.run import Run

SIZE = (20 / 3, 3.75)  # inches; a slide is twice as large, and so is its text: 6 pt become 12 pt
DPI = 288  # 1920 x 1080 pixels
NAMES = ("accuracy", "loss", "confusion_matrix", "classes", "mistakes", "calibration")
THEMES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "light": nullcontext,
    "dark": figures.dark,
}


def write_slides(run: Run, evaluation: Evaluation, folder: Path, *, force: bool) -> None:
    """Write NAME-THEME.png and .svg for each figure into a folder, which is made if need be.

    Raises:
        UserError: a file exists and `force` does not allow to overwrite it.
    """
    paths = [
        folder / f"{name}-{theme}.{kind}"
        for name in NAMES
        for theme in THEMES
        for kind in ("png", "svg")
    ]
    refuse_existing(paths, force=force)
    for theme, colors in THEMES.items():
        with colors(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": theme}):
            for name, figure in _drawn(run, evaluation):
                for kind in ("png", "svg"):
                    with atomic_write(folder / f"{name}-{theme}.{kind}") as file:
                        figure.savefig(file, format=kind, dpi=DPI, facecolor=figures.PAPER)


def _drawn(run: Run, evaluation: Evaluation) -> Iterator[tuple[str, Figure]]:
    history, found = run.history, evaluation.scores
    name = f"{run.config.get('name')}, seed {run.config.seed}"
    result = (
        f"{percent(found['acc'])} of {len(evaluation.labels):,} {SPLITS[evaluation.split]} images "
        f"correct (95 % interval {percent_range((found['acc_low'], found['acc_high']))})"
    )
    if history.get("epoch"):
        best = run.metrics.get("best_epoch")
        yield "accuracy", _slide(figures.learning_curve(history, "acc", best), name, result)
        yield "loss", _slide(figures.learning_curve(history, "loss", best), name, result)
    matrix = figures.confusion_matrix(evaluation.counts, evaluation.classes)
    yield "confusion_matrix", _slide(matrix, f"{name}: confusion matrix", result)
    scores = sorted((s for s in evaluation.class_scores if s.support), key=lambda s: s.f1)
    intervals = figures.class_intervals(scores, evaluation.classes)
    yield "classes", _slide(intervals, f"{name}: classes, with 95 % intervals", result)
    gallery = figures.mistakes(evaluation, 10, 5, wrap=22)
    yield "mistakes", _slide(gallery, f"{name}: the most confident mistakes", result)
    calibration = metrics.reliability(evaluation.labels, evaluation.probabilities)
    error = f"Expected calibration error {percent(found['ece'])}"
    diagram = figures.reliability_diagram(calibration, error)
    yield "calibration", _slide(diagram, f"{name}: calibration", result)


def _slide(figure: Figure, title: str, result: str) -> Figure:
    """Give a figure a slide's size, its title and the result."""
    figure.set_size_inches(SIZE)
    area = (0.03, 0.03, 0.94, 0.78)  # left, bottom, width, height
    if (layout := figure.get_layout_engine()) is not None:
        layout.set(rect=area)  # type: ignore[call-arg]
    else:
        figure.axes[0].set(position=area, aspect="equal")
        for text in figure.axes[0].texts:
            text.set_fontsize(6.3)
    style: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(0.03, 0.965, title, size=14, weight="bold", color=figures.INK, **style)
    figure.text(0.03, 0.875, result, size=8.5, color=figures.MUTED, **style)
    return figure
