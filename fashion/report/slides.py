"""Figures for slides: 16:9, PNG and SVG, on a light and on a dark background.

Of a run, of a comparison of runs, and of predictions for photos. Every figure has a title and the
result that it belongs to. No file is overwritten without `force`.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fashion.report import figures, metrics
from fashion.report.evaluation import SPLITS, Evaluation
from fashion.report.metrics import percent, percent_range
from fashion.report.table import Table, difference_text
from fashion.runs.files import atomic_write, refuse_existing
from fashion.runs.run import Run

SIZE = (20 / 3, 3.75)  # inches, half of a slide's: text of 6 pt has 12 pt on the slide
DPI = 288  # 1920 x 1080 pixels
NAMES = ("accuracy", "loss", "confusion_matrix", "classes", "mistakes", "calibration")
KINDS = ("png", "svg")
GROUPS = 8  # rows of a comparison that a slide shows
PHOTOS = 2  # per slide
THEMES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "light": nullcontext,
    "dark": figures.dark,
}
Slides = Iterable[tuple[str, Figure]]  # by the files' name


def write_run(run: Run, evaluation: Evaluation, folder: Path, *, force: bool) -> None:
    """Write a run's curves, confusion matrix, classes, mistakes and calibration.

    Args:
        run: finished.
        evaluation: of its reported checkpoint.
        folder: created if missing; NAME-THEME.png and .svg are written for each figure.
        force: whether to overwrite files.

    Raises:
        UserError: a file exists and `force` is false.
    """
    _write(folder, NAMES, lambda: _of_run(run, evaluation), force=force)


def write_comparison(table: Table, folder: Path, *, force: bool) -> None:
    """Write a comparison's accuracies, intervals and differences: see `write_run`."""
    _write(folder, ["comparison"], lambda: [("comparison", _of_table(table))], force=force)


def write_predictions(
    run: Run, photos: Sequence[figures.PredictedPhoto], folder: Path, *, force: bool
) -> None:
    """Write the predictions for photos, `PHOTOS` per slide: see `write_run`."""
    pages = [photos[start : start + PHOTOS] for start in range(0, len(photos), PHOTOS)]
    names = [f"predictions-{number}" for number in range(1, len(pages) + 1)]
    found = run.metrics
    result = ""
    if "val/acc_low" in found:
        interval = percent_range((found["val/acc_low"], found["val/acc_high"]))
        result = f"Validation accuracy {percent(found['val/acc'])} (95 % interval {interval})"
    _write(
        folder,
        names,
        lambda: (
            (name, _slide(figures.predicted_photos(page), f"{_title(run)}: predictions", result))
            for name, page in zip(names, pages, strict=True)
        ),
        force=force,
    )


def files(folder: Path, names: Sequence[str] = NAMES) -> list[Path]:
    """Return the files of figures, by default a run's."""
    return [
        folder / f"{name}-{theme}.{kind}" for name in names for theme in THEMES for kind in KINDS
    ]


def _write(folder: Path, names: Sequence[str], draw: Callable[[], Slides], *, force: bool) -> None:
    refuse_existing(files(folder, names), force=force)
    for theme, colors in THEMES.items():
        style = mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": theme})
        with colors(), style, warnings.catch_warnings():
            # A photo's name may hold letters that matplotlib's font lacks: it draws boxes.
            warnings.filterwarnings("ignore", "Glyph")
            for name, figure in draw():
                for kind in KINDS:
                    with atomic_write(folder / f"{name}-{theme}.{kind}") as file:
                        figure.savefig(file, format=kind, dpi=DPI, facecolor=figures.PAPER)


def _title(run: Run) -> str:
    return f"{run.config.get('name')}, seed {run.config.seed}"


def _of_run(run: Run, evaluation: Evaluation) -> Slides:
    history, found = run.history, evaluation.scores
    name = _title(run)
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


def _of_table(table: Table) -> Figure:
    rows = table.rows[:GROUPS]
    texts = {each.name: (difference_text(each), each.significant) for each in table.comparisons}
    figure = figures.baselines(
        [row.name for row in rows],
        [row.accuracy / 100 for row in rows],
        [row.interval for row in rows],
        [texts.get(row.name, ("baseline", False)) for row in rows] if texts else [],
        f"minus {table.baseline}, pp (95 % interval)",
    )
    said = f"{SPLITS[table.split].capitalize()} accuracy, mean with 95 % interval"
    if any(row.interval is None for row in rows):
        said += "; rings are single runs"
    if texts:
        said += "; ▲ significant"
    if len(rows) < len(table.rows):
        said += f"; the best {len(rows)} of {len(table.rows)}"
    return _slide(figure, f"Comparison of {len(table.rows)} groups", said)


def _slide(figure: Figure, title: str, result: str) -> Figure:
    """Give a figure a slide's size, its title and the result."""
    figure.set_size_inches(SIZE)
    area = (0.03, 0.03, 0.94, 0.78)  # left, bottom, width, height
    if (layout := figure.get_layout_engine()) is not None:
        layout.set(rect=area)  # type: ignore[call-arg]
    elif len(figure.axes) > 1:
        figure.subplots_adjust(0.03, 0.1, 0.97, 0.72)
    else:
        figure.axes[0].set(position=area, aspect="equal")
        for text in figure.axes[0].texts:
            text.set_fontsize(6.3)
    style: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(0.03, 0.965, title, size=14, weight="bold", color=figures.INK, **style)
    figure.text(0.03, 0.875, result, size=8.5, color=figures.MUTED, **style)
    return figure
