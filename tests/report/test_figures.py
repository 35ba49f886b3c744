# Types: matplotlib's stubs return unions where a test knows the type.
# mypy: disable-error-code="union-attr, arg-type, attr-defined, operator, index"

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from fashion.data import CLASSES
from fashion.report import figures, metrics
from fashion.report.evaluation import Evaluation
from fashion.report.metrics import ClassScore
from fashion.report.statistics import Interval, wilson


def draw(figure: Figure) -> np.ndarray:
    """Pixels; a warning on the way, such as of a missing glyph, is an error."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return np.asarray(Image.open(buffer).convert("RGB"))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def probabilities_of(*rows: dict[int, float]) -> np.ndarray:
    """A row each: some classes' probabilities, the others sharing the rest."""
    table = np.zeros((len(rows), 10), np.float32)
    for line, row in zip(table, rows, strict=True):
        line[:] = (1 - sum(row.values())) / (10 - len(row))
        line[list(row)] = list(row.values())
    return table


def test_row_fractions_of_a_class_without_images() -> None:
    counts = np.zeros((10, 10), int)
    counts[2, 2:4] = 3, 1
    shares = figures.row_fractions(counts)
    assert shares[2, 2:4].tolist() == [0.75, 0.25]
    assert shares.sum() == 1


def test_error_strength_is_of_errors_alone_and_ends_at_the_largest() -> None:
    counts = np.diag(np.full(10, 96))
    counts[0, 1], counts[4, 6] = 4, 1
    strength = figures.error_strength(counts)
    assert strength[0, 1] == 1
    assert strength[4, 6] == pytest.approx(np.sqrt((1 / 97) / (4 / 100)))
    assert not np.diag(strength).any()
    assert not figures.error_strength(np.diag(np.full(10, 9))).any()


def test_confusion_matrix() -> None:
    counts = np.diag(np.full(10, 96))
    counts[0, 1] = 1104
    figure = figures.confusion_matrix(counts, CLASSES)
    axes = figure.axes[0]
    for labels in (axes.get_yticklabels(), axes.get_xticklabels()):
        assert [label.get_text() for label in labels] == list(CLASSES)
    assert texts(figure)[:3] == ["96", "1,104", "96"]
    assert len(texts(figure)) == 11  # a zero stays blank
    assert [axes.texts[1].get_position(), axes.texts[1].get_color()] == [(1, 0), figures.PAPER]
    assert draw(figure).shape == (450, 480, 3)
    # TensorBoard's thumbnails are some 330 pixels wide: there the text is to be 7 pixels high.
    labels = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    height = min(text.get_fontsize() for text in labels) / 72 * 330 / figure.get_figwidth()
    assert height > 7


def test_confusion_matrix_of_many_classes_has_smaller_text() -> None:
    sizes = []
    for count in (10, 40):
        figure = figures.confusion_matrix(np.eye(count, dtype=int), [str(i) for i in range(count)])
        sizes.append(figure.axes[0].texts[0].get_fontsize())
        draw(figure)
    assert sizes[1] < sizes[0] / 2


def test_the_errors_colours_darken_all_the_way() -> None:
    red, green, blue, _ = figures.ERRORS(np.linspace(0, 1, 50)).T
    lightness = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    assert (np.diff(lightness) < 0).all()
    assert lightness[0] > 0.99
    assert lightness[-1] < 0.03


HISTORY = {
    "epoch": [1, 2, 3],
    "train/acc": [0.5, 0.7, 0.8],
    "val/acc": [0.6, None, 0.65],
    "train/loss": [1.0, 0.5, 0.2],
}


def test_learning_curve_marks_the_reported_epoch() -> None:
    figure = figures.learning_curve(HISTORY, "acc", 3)
    axes = figure.axes[0]
    training, validation, line, point = axes.lines
    assert training.get_xydata().tolist() == [[1, 0.5], [2, 0.7], [3, 0.8]]
    assert validation.get_xydata().tolist() == [[1, 0.6], [3, 0.65]]  # the gap is left out
    assert set(line.get_xdata()) == {3}
    assert point.get_xydata().tolist() == [[3, 0.65]]
    assert axes.get_xlabel() == "epoch (reported: 3)"
    assert axes.get_title("left") == "Accuracy"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "training",
        "validation",
    ]
    draw(figure)


@pytest.mark.parametrize("best_epoch", [None, 2, 9])
def test_learning_curve_marks_no_epoch_that_it_does_not_know(best_epoch: int | None) -> None:
    figure = figures.learning_curve(HISTORY, "acc", best_epoch)
    assert len(figure.axes[0].lines) == 2
    assert figure.axes[0].get_xlabel() == "epoch"


def test_learning_curve_of_what_there_is() -> None:
    figure = figures.learning_curve(HISTORY, "loss", 3)
    assert len(figure.axes[0].lines) == 1
    nothing = {"epoch": [1, 2], "val/loss": [float("nan")] * 2}
    assert draw(figures.learning_curve(nothing, "loss", 1)).std() != 0
    single = figures.learning_curve({"epoch": [1], "val/acc": [0.5]}, "acc", None)
    assert single.axes[0].lines[0].get_marker() == "o"
    assert single.axes[0].get_xticks().tolist() == [1]


def score(label: int, value: float) -> ClassScore:
    interval = Interval(value - 0.1, value + 0.05)
    return ClassScore(label, 100, value, interval, value, interval, value, interval)


def test_class_intervals_keep_the_order_from_above() -> None:
    figure = figures.class_intervals([score(6, 0.5), score(1, 0.9)], CLASSES)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Shirt", "Trouser"]
    assert axes.yaxis_inverted()
    _, f1, _ = axes.collections
    assert np.allclose([line[:, 0] for line in f1.get_segments()], [[0.4, 0.55], [0.8, 0.95]])
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "precision",
        "F1",
        "recall",
    }
    draw(figure)


def test_reliability_diagram_leaves_empty_bins_out() -> None:
    labels = np.array([0] * 10)
    rows = [{0: 0.95}] * 4 + [{1: 0.95}] + [{1: 0.5}] * 5
    figure = figures.reliability_diagram(
        metrics.reliability(labels, probabilities_of(*rows), 10), "Before"
    )
    axes = figure.axes[0]
    diagonal, points = axes.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert np.allclose(points.get_xydata(), [[0.5, 0], [0.95, 0.8]])
    assert [bar.get_x() for bar in axes.patches] == pytest.approx([0.5, 0.9])
    low, high = wilson(4, 5)
    assert np.allclose(axes.collections[0].get_segments()[1][:, 1], [low, high])
    assert axes.get_title("left") == "Before"
    draw(figure)


def test_baselines_mark_significant_differences() -> None:
    figure = figures.baselines(
        ["cnn", "best", "mlp"],
        [0.916, 0.9, 0.872],
        [(0.914, 0.918), None, (0.868, 0.876)],
        [("+1.60", True), ("+2.80", False)],
        "minus the row below",
    )
    assert texts(figure) == [
        *("91.60 %", "90.00 %", "87.20 %"),
        *("▲ +1.60", "· +2.80", "minus the row below"),
    ]
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cnn", "best", "mlp"]
    colours = [to_rgba(line.get_markerfacecolor()) for line in axes.lines]
    assert [colour == to_rgba(figures.ACCENT) for colour in colours] == [True, False, True]
    assert [[x for x, _ in part.get_segments()[0]] for part in axes.collections] == [
        [0.914, 0.918],
        [0.868, 0.876],
    ]
    draw(figure)
    above = [axes.transData.transform(line.get_xydata())[0, 1] for line in axes.lines]
    assert above == sorted(above, reverse=True)


def test_gallery_shows_each_picture_over_its_caption() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None] * 100 * np.ones((28, 28), np.uint8)
    figure = figures.gallery(images, ["one", "two", "three"], columns=2)
    assert texts(figure) == ["one", "two", "three"]
    sheet = figure.axes[0].images[0].get_array()
    assert [(sheet == value).sum() for value in (100, 200)] == [28 * 28] * 2
    below = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    ys, xs = np.nonzero(sheet == 200)
    x, y = below["three"]
    assert xs.min() < x < xs.max()
    assert 0 < y - ys.max() <= 4
    # A picture's pixel becomes 5 x 5 equal ones: crisp.
    light = (draw(figure) == 255 - 200).all(axis=2).sum()
    assert light == pytest.approx(28 * 28 * 25, rel=0.02)


def test_gallery_of_nothing_is_blank() -> None:
    assert (draw(figures.gallery(np.zeros((0, 28, 28), np.uint8), [])) == 255).all()


def test_mistakes_are_the_most_confident_with_their_sentences() -> None:
    labels = np.array([6, 1, 4])
    probabilities = probabilities_of({4: 0.9}, {1: 0.9}, {3: 0.99})
    images = np.zeros((3, 28, 28), np.uint8)
    evaluation = Evaluation("val", CLASSES, images, np.arange(3), labels, probabilities)
    figure = figures.mistakes(evaluation, count=2)
    assert [caption.replace("\n", " ") for caption in texts(figure)] == [
        "We thought it was a dress but it was actually a coat.",
        "We thought it was a coat but it was actually a shirt.",
    ]
    assert len(texts(figures.mistakes(evaluation, count=1))) == 1


def test_class_names_are_no_formulas() -> None:
    classes = (r"$\notamacro$", "$5")
    labels = np.array([0, 1])
    probabilities = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    images = np.zeros((2, 28, 28), np.uint8)
    evaluation = Evaluation("val", classes, images, np.arange(2), labels, probabilities)
    scores = [score for score in evaluation.class_scores if score.support]
    for figure in (
        figures.confusion_matrix(np.ones((2, 2), int), classes),
        figures.mistakes(evaluation),
        figures.class_intervals(scores, classes),
    ):
        draw(figure)


def test_a_long_file_name_is_cut_not_lost() -> None:
    name = "PXL_20231203_154812345.PORTRAIT.jpg"
    square = np.zeros((28, 28), np.uint8)
    photo = figures.PredictedPhoto(name, Image.fromarray(square), square, {"Coat": 0.9}, [])
    figure = figures.predicted_photos([photo])
    assert figure.axes[0].get_xlabel() == "PXL_20231203_154812345.PORT..."


def test_longest_caption_stays_in_its_column() -> None:
    sentence = "We thought it was a pair of trousers but it was actually an ankle boot."
    figure = figures.gallery(np.zeros((6, 28, 28), np.uint8), [sentence] * 6)
    draw(figure)
    widths = [text.get_window_extent().width for text in figure.axes[0].texts]
    assert max(widths) < figure.bbox.width / 6


def test_budget_curve() -> None:
    runs = {4: [(2.0, 0.93), (3.0, 0.94), (10.0, 0.935)], 1: [(0.5, 0.90), (0.7, 0.91)]}
    figure = figures.budget_curve(runs, {"record": (50.0, 0.95)}, {"the deck": 0.9})
    axes = figure.axes[0]
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_lw() == 1.8]
    np.testing.assert_allclose(line.get_xydata(), [(0.6, 0.905), (3, 0.935)])
    points = {tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {(50.0, 0.95), *(point for several in runs.values() for point in several)}
    assert texts(figure) == ["1", "4", "record", "the deck"]
    draw(figure)


def test_a_search_s_history_shows_the_best_of_what_was_trained_to_the_end() -> None:
    accuracies = [0.8, 0.95, 0.85, 0.7, 0.9]
    whole = [True, False, True, True, True]
    figure = figures.search_history(range(5), accuracies, whole)
    pruned, ended, best = figure.axes[0].lines
    assert list(pruned.get_ydata()) == [0.95]
    assert list(ended.get_ydata()) == [0.8, 0.85, 0.7, 0.9]
    assert list(best.get_ydata()) == [0.8, 0.85, 0.85, 0.9]
    draw(figure)
    draw(figures.search_history([0], [0.5], [False]))


def test_a_search_s_curves_are_faint_where_they_were_pruned() -> None:
    figure = figures.search_curves([({1: 0.5, 2: 0.6}, True), ({1: 0.4}, False)])
    first = figures.search_curves([({1: 0.5}, True)])
    assert first.axes[0].get_xticks().tolist() == [1]
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert colors == [figures.MUTED, figures.ACCENT]  # the others are drawn over them
    draw(figure)


def test_importances_and_slices() -> None:
    figure = figures.importances({"optimizer.lr": 0.75, "data.batch_size": 0.25})
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.75, 0.25]
    draw(figure)
    accuracies, whole = [0.1, 0.7, 0.8, 0.9, 0.85], [True, False, True, True, True]
    rates = figures.search_slice(
        "optimizer.lr", [0.1, 0.01, 0.02, 0.5, 1.0], accuracies, whole, log=True
    )
    assert rates.axes[0].get_xscale() == "log"
    minor = rates.axes[0].xaxis.get_tick_params(which="minor")
    assert minor["labelcolor"] == figures.MUTED
    assert rates.axes[0].get_ylim()[0] > 0.5  # what went astray does not press the others flat
    draw(rates)
    words = figures.search_slice("a", ["b", True, None, "b", "b"], accuracies, whole, log=False)
    assert [text.get_text() for text in words.axes[0].get_xticklabels()] == ["None", "True", "b"]
    draw(words)
    few = figures.search_slice("a", [64, 128, 32, 64, 32], accuracies, whole, log=True)
    assert few.axes[0].get_xscale() == "linear"
    assert [text.get_text() for text in few.axes[0].get_xticklabels()] == ["32", "64", "128"]
    draw(few)


def test_accuracy_lines() -> None:
    lines = {
        "linear": {7: (0.7, 0.69, 0.71), 28: (0.8, None, None)},
        "cnn": {7: (0.75, 0.74, 0.76), 28: (0.9, 0.88, 0.92)},
    }
    figure = figures.accuracy_lines(lines, "pixels")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["linear", "cnn"]
    assert [line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2][-1] == [
        0.75,
        0.9,
    ]
    intervals = [line for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[-1]]
    assert len(intervals) == 3
    assert axes.get_xticks().tolist() == [7, 28]
