"""Name the products in a person's own pictures.

    python -m fashion.predict RUN coat.jpg bag.png          the three likeliest classes of each
    python -m fashion.predict RUN *.jpg --save answers.png  draw them, with what the network sees
    python -m fashion.predict RUN *.jpg --json              for programs

Pictures are PNG, JPEG, WebP or GIF: one product on a plain background.
"""

import argparse
import json
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fashion.errors import UserError, cli_errors
from fashion.runs.files import atomic_write
from fashion.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 3  # classes named for each photo
DRAWN = 100  # photos in one picture: matplotlib's are at most 65,535 pixels high
SURE = 0.5  # of the probability: with less, the likeliest class is more likely wrong than right
UNCALIBRATED = (
    "note: this run held no pictures out to calibrate its probabilities on; "
    "they are the network's own."
)


class View(NamedTuple):
    """A photo, and what a network is shown of it."""

    path: Path
    picture: Image.Image  # RGB
    image: UInt8[np.ndarray, "28 28"]

    @property
    def name(self) -> str:
        """The path, printable even where it is not UTF-8."""
        return os.fsencode(self.path).decode(errors="backslashreplace")


class Answer(NamedTuple):
    """What a run makes of one photo."""

    likeliest: dict[str, float]  # probabilities of `SHOWN` classes, likeliest first
    unsure: bool
    faint: bool

    @property
    def remarks(self) -> list[str]:
        remarks = []
        if self.unsure:
            remarks.append("Unsure: the likeliest class has less than half of the probability.")
        if self.faint:
            remarks.append(
                "It hardly differs from its background, as a white product on white: "
                "the network was never shown the like."
            )
        return remarks


def look(path: Path) -> View:
    """Read one photo.

    Raises:
        UserError: naming the file; see `photo.read` and `photo.prepare`.
    """
    from fashion.data import photo

    picture = photo.read(path)
    try:
        return View(path, picture, photo.prepare(picture))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def predict(run: Run, images: UInt8[np.ndarray, "n 28 28"]) -> list[Answer]:
    """What a finished run makes of pictures in the dataset's format.

    Probabilities are calibrated by the temperature that suits the validation split; a run that
    held nothing out keeps the network's own.

    Raises:
        UserError: the run cannot be rebuilt.
    """
    import torch

    from fashion.data import photo
    from fashion.data.datamodule import CLASSES
    from fashion.report import metrics
    from fashion.training import classifier

    temperature = run.metrics.get("val/temperature")
    if temperature is None:
        temperature = metrics.fit_temperature(*run.predictions("val")) if run.validates else 1.0
    network = classifier.load_classifier(run)
    probabilities = metrics.apply_temperature(
        classifier.predict(network, torch.from_numpy(images)).numpy(), temperature
    )
    return [
        Answer(
            {CLASSES[label]: float(row[label]) for label in np.argsort(-row)[:SHOWN]},
            unsure=bool(row.max() < SURE),
            faint=photo.is_faint(image),
        )
        for image, row in zip(images, probabilities, strict=True)
    ]


def photo_figure(views: Sequence[View], answers: Sequence[Answer]) -> "Figure":
    """One row a photo: the photo, what the network sees of it, the likeliest classes."""
    from matplotlib.figure import Figure

    from fashion.report.figures import ACCENT, FAINT, INK, MUTED, PAPER

    head, row = 0.45, 2.0  # inches
    height = head + row * len(views)
    figure = Figure(figsize=(7.6, height), facecolor=PAPER)
    grid = figure.subplots(len(views), 3, squeeze=False, width_ratios=(1, 1, 1.7))
    figure.subplots_adjust(0.02, 0.5 / height, 0.98, 1 - head / height, wspace=0.1, hspace=0.33)
    for title, axes in zip(("Photo", "What the network sees", "Likeliest"), grid[0], strict=True):
        axes.set_title(title, fontsize=9, color=MUTED, loc="left", pad=8)
    for (left, middle, right), view, answer in zip(grid, views, answers, strict=True):
        left.imshow(view.picture)
        middle.imshow(view.image, cmap="gray", vmin=0, vmax=255)
        for axes in (left, middle):
            axes.set(xticks=[], yticks=[], anchor="W")
            axes.spines[:].set_color(FAINT)
        name = textwrap.shorten(Path(view.name).name, 30)
        left.set_xlabel(name, fontsize=8, color=MUTED, loc="left", parse_math=False)
        colours = [MUTED if answer.unsure else ACCENT, MUTED, MUTED]
        right.barh(range(SHOWN), 1, color=FAINT, height=0.2)
        right.barh(range(SHOWN), answer.likeliest.values(), color=colours, height=0.2)
        for position, (label, probability) in enumerate(answer.likeliest.items()):
            height_of_text = position - 0.22
            right.text(0, height_of_text, label, fontsize=9, color=INK)
            right.text(1, height_of_text, _percent(probability), fontsize=9, color=INK, ha="right")
        right.set(xlim=(0, 1), ylim=(SHOWN - 0.6, -0.6), xticks=[], yticks=[])
        right.spines[:].set_visible(False)
        remarks = "\n".join(textwrap.fill(remark, 60) for remark in answer.remarks)
        right.set_xlabel(remarks, fontsize=7, color=MUTED, loc="left")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--save", type=_png, metavar="FILE.png", help="draw the answers")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    if options.save and len(options.photos) > DRAWN:
        parser.error(f"--save draws {DRAWN} photos at most; there are {len(options.photos)}")
    with cli_errors():
        run = Run.open(options.run)
        views, errors = {}, {}
        for path in options.photos:
            try:
                views[path] = look(path)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                errors[path] = str(error)
        images = np.array([view.image for view in views.values()])
        answers = dict(zip(views, predict(run, images) if views else [], strict=True))
        if answers and not run.validates:
            print(UNCALIBRATED, file=sys.stderr)
        if options.json:
            print(_document(options.photos, answers, errors, calibrated=run.validates))
        else:
            for path, answer in answers.items():
                print(_lines(views[path], answer))
        if options.save and views:
            _save(photo_figure(list(views.values()), list(answers.values())), options.save)
    sys.exit(1 if errors else 0)


def _png(name: str) -> Path:
    if not name.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{name} does not end in .png, the format it is drawn in")
    return Path(name)


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def _lines(view: View, answer: Answer) -> str:
    likeliest = ", ".join(f"{label} {_percent(p)}" for label, p in answer.likeliest.items())
    return "\n  ".join([f"{view.name}: {likeliest}", *answer.remarks])


def _document(
    paths: Sequence[Path],
    answers: dict[Path, Answer],
    errors: dict[Path, str],
    *,
    calibrated: bool,
) -> str:
    """One object a photo, in the order of the command line."""
    objects: list[dict[str, Any]] = []
    for path in paths:
        if path in errors:
            objects.append({"photo": str(path), "error": errors[path]})
            continue
        answer = answers[path]
        objects.append(
            {
                "photo": str(path),
                "likeliest": [
                    {"class": label, "probability": p} for label, p in answer.likeliest.items()
                ],
                "calibrated": calibrated,
                "unsure": answer.unsure,
                "faint": answer.faint,
            }
        )
    return json.dumps(objects, indent=2)


def _save(figure: "Figure", path: Path) -> None:
    with atomic_write(path) as file, warnings.catch_warnings():
        # A file's name may hold letters that matplotlib's font lacks: it draws a box for each.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="png", dpi=150)


if __name__ == "__main__":
    main()
