"""Predict the classes of photos.

    python -m fashion.predict RUN coat.jpg bag.png          the three most probable classes of each
    python -m fashion.predict RUN photos/                   of each photo in a folder
    python -m fashion.predict RUN *.jpg --save table.png   draw them, with what the network sees
    python -m fashion.predict RUN *.jpg --figures slides/   the same, 16:9
    python -m fashion.predict RUN *.jpg --json              for programs

Photos are PNG, JPEG, WebP, GIF, AVIF or (with pillow-heif installed) HEIC: one product, upright, on
a plain background. A remark is printed for a photo that is not, or that is unlike the run's
validation images.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from fashion.data import CLASSES, photo
from fashion.errors import UserError, cli_errors
from fashion.runs.files import atomic_write
from fashion.runs.run import Run

if TYPE_CHECKING:
    from fashion.report.figures import PredictedPhoto
    from fashion.report.ood import Detector
    from fashion.training.classifier import Classifier

SHOWN = 3  # classes named for each photo
DRAWN = 100  # photos per figure: matplotlib's are at most 65,535 pixels high
SURE = 0.5  # a less probable prediction is more likely wrong than correct
SOFTWARE = "python -m fashion.predict"  # in PNG files of --save, which it may overwrite
REMARKS = {
    "unsure": "Unsure: the most probable class has less than half of the probability.",
    "several": "More than one product? This is about the largest.",
    "shadow": "A strong shadow? It may be taken for a part of the product.",
    "faint": "It hardly differs from its background, as a white product on white: "
    "the training images show no such product.",
    "turned": "Upside down or on its side? It would look more like the training images if turned.",
    "unusual": "Unlike the training images: the prediction may be wrong, however probable.",
}


class View(NamedTuple):
    """A photo, and the image made from it that is the network's input."""

    path: Path
    photo: Image.Image  # RGB
    prepared: photo.Prepared

    @property
    def name(self) -> str:
        """The path, printable even where it is not UTF-8."""
        return os.fsencode(self.path).decode(errors="backslashreplace")


class Prediction(NamedTuple):
    """A run's prediction for one photo."""

    top: dict[str, float]  # class -> probability, the `SHOWN` most probable first
    remarks: list[str]  # keys of `REMARKS`


def look(path: Path, *, fashion: bool = True, resolution: int = photo.SIDE) -> View:
    """Read one photo and prepare it; for other data than Fashion-MNIST it must be 28 x 28.

    Args:
        path: the photo.
        fashion: whether the run's data is Fashion-MNIST.
        resolution: of the run's data; see `reduce_resolution`.

    Raises:
        UserError: naming the file; see `photo.read` and `photo.prepare`.
    """
    pixels = photo.read(path)
    if not fashion:
        if pixels.size != (photo.SIDE, photo.SIDE):
            raise UserError(
                f"{path} is {pixels.width} x {pixels.height} pixels. This run's classes are not "
                "Fashion-MNIST's: only 28 x 28 images in its data's format can be predicted."
            )
        prepared = photo.Prepared(np.array(pixels.convert("L")))
    else:
        try:
            prepared = photo.prepare(pixels)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if resolution != photo.SIDE:
        import torch

        from fashion.data.datamodule import reduce_resolution

        image = reduce_resolution(torch.from_numpy(prepared.image)[None], resolution)
        prepared = prepared._replace(image=image[0].numpy())
    return View(path, pixels, prepared)


def predict(
    run: Run, classifier: "Classifier", detector: "Detector | None", views: Sequence[View]
) -> list[Prediction]:
    """Predict prepared photos.

    Probabilities are calibrated by the temperature fitted on the validation split; without such a
    split they are not calibrated.

    Raises:
        UserError: the run holds no predictions for its validation split, or its weights are broken.
    """
    import torch

    from fashion.report.metrics import apply_temperature, fit_temperature
    from fashion.training.classifier import predict_probabilities

    temperature = run.metrics.get("val/temperature")
    if temperature is None:
        temperature = fit_temperature(*run.predictions("val")) if run.validates else 1.0
    images = np.stack([view.prepared.image for view in views])
    probabilities = apply_temperature(
        predict_probabilities(classifier, torch.from_numpy(images)).numpy(), temperature
    )
    unlike = detector(images) if detector else [None] * len(views)
    return [
        Prediction(
            {classifier.classes[label]: float(row[label]) for label in np.argsort(-row)[:SHOWN]},
            [
                *(["unsure"] if row.max() < SURE else []),
                *(key for key in ("several", "shadow", "faint") if getattr(view.prepared, key)),
                *([kind] if kind else []),
            ],
        )
        for view, row, kind in zip(views, probabilities, unlike, strict=True)
    ]


def make_detector(run: Run, classifier: "Classifier", root: Path | None) -> "Detector | None":
    """Return a detector fitted on the run's data; if that fails, print why and return None."""
    from fashion.report.evaluation import open_data
    from fashion.report.ood import Detector

    if not run.validates:
        print(
            "note: this run has no validation set: its probabilities are not calibrated, and "
            "photos unlike its data are not recognized.",
            file=sys.stderr,
        )
        return None
    try:
        data = open_data(run, root)
        data.setup("validate")
        with np.errstate(all="ignore"):
            return Detector(classifier, data.train, data.val)
    except ValueError:  # weights that are not finite: `predict` raises an error
        return None
    except UserError as error:
        print(
            f"note: photos unlike the run's data are not recognized, for want of its validation "
            f"images (--data DIR): {error}",
            file=sys.stderr,
        )
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="a file or a folder")
    parser.add_argument("--save", type=_png, metavar="FILE.png", help="draw the predictions")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="16:9 figures for slides")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--data", type=Path, metavar="DIR", help="in place of the run's data.root")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--trust", action="store_true", help="build the classes that the run names")
    options = parser.parse_args(arguments)
    with cli_errors():
        run = Run.open(options.run, trust=options.trust)
        run.metrics  # noqa: B018 - an unfinished run is refused before slow imports
        paths, errors = _photos(options.photos)
        if options.save and len(paths) > DRAWN:
            raise UserError(f"--save draws {DRAWN} photos at most; there are {len(paths)}.")
        if options.save:
            _refuse_to_overwrite(options.save, paths, force=options.force)

        from fashion.training.classifier import load_classifier

        classifier = load_classifier(run)
        views = {}
        for path in [path for path in paths if path not in errors]:
            try:
                fashion = classifier.classes == CLASSES
                views[path] = look(path, fashion=fashion, resolution=classifier.resolution)
            except UserError as error:
                errors[path] = str(error)
        for message in errors.values():
            print(f"error: {message}", file=sys.stderr)
        predictions = {}
        if views:
            detector = make_detector(run, classifier, options.data)
            given = predict(run, classifier, detector, list(views.values()))
            predictions = dict(zip(views, given, strict=True))
        if options.json:
            print(_document(paths, predictions, errors, run))
        else:
            for path, prediction in predictions.items():
                print(_lines(views[path], prediction))
        if views:
            _draw(run, views, predictions, options)
    sys.exit(1 if errors else 0)


def _png(name: str) -> Path:
    if not name.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{name} does not end in .png, the format it is drawn in")
    return Path(name)


def _photos(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return the named photos and those in named folders, and the errors by folder."""
    found: list[Path] = []
    errors: dict[Path, str] = {}
    for path in paths:
        try:
            is_folder = path.is_dir()
        except PermissionError:  # of a folder above it; told when the photo is read
            is_folder = False
        if not is_folder:
            found.append(path)
            continue
        try:
            inside = [each for each in photo.files_in(path) if not _is_own(each)]
        except UserError as error:
            inside, errors[path] = [path], str(error)
        if not inside:
            inside = [path]
            errors[path] = f"{path} holds no photos, only predictions that --save wrote."
        found += inside
    return found, errors


def _is_own(path: Path) -> bool:
    """Return whether a file was written by --save."""
    try:
        with Image.open(path, formats=["PNG"]) as pixels:
            return pixels.info.get("Software") == SOFTWARE
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything on a broken file
        return False


def _refuse_to_overwrite(path: Path, photos: Sequence[Path], *, force: bool) -> None:
    """Raise UserError: --save would replace a photo, or a file that is not its own earlier one."""
    if not path.exists():
        return
    if any(each.exists() and each.samefile(path) for each in photos):
        raise UserError(f"--save {path} would replace a photo that is to be predicted.")
    if not force and not _is_own(path):
        raise UserError(f"{path} exists, and is not by --save; --force overwrites it.")


def _lines(view: View, prediction: Prediction) -> str:
    from fashion.report.metrics import percent

    top = ", ".join(f"{label} {percent(p)}" for label, p in prediction.top.items())
    return "\n  ".join([f"{view.name}: {top}", *(REMARKS[key] for key in prediction.remarks)])


def _document(
    paths: Sequence[Path], predictions: dict[Path, Prediction], errors: dict[Path, str], run: Run
) -> str:
    """Return a JSON array of one object per photo, in the order of the command line."""
    objects: list[dict[str, object]] = []
    for path in paths:
        if path in errors:
            objects.append({"photo": str(path), "error": errors[path]})
            continue
        top = predictions[path].top.items()
        objects.append(
            {
                "photo": str(path),
                "top": [{"class": label, "probability": p} for label, p in top],
                "calibrated": run.validates,
                "remarks": predictions[path].remarks,
            }
        )
    return json.dumps(objects, indent=2)


def _draw(
    run: Run,
    views: dict[Path, View],
    predictions: dict[Path, Prediction],
    options: argparse.Namespace,
) -> None:
    """Write the figures that the command line asks for."""
    if not (options.save or options.figures):
        return
    from fashion.report.figures import PredictedPhoto

    photos = [
        PredictedPhoto(
            Path(view.name).name,
            view.photo,
            view.prepared.image,
            predictions[path].top,
            [REMARKS[key] for key in predictions[path].remarks],
        )
        for path, view in views.items()
    ]
    if options.save:
        _save(photos, options.save)
    if options.figures:
        from fashion.report.slides import write_predictions

        write_predictions(run, photos, options.figures, force=options.force)


def _save(photos: "list[PredictedPhoto]", path: Path) -> None:
    from fashion.report.figures import predicted_photos

    figure = predicted_photos(photos)
    with atomic_write(path) as file, warnings.catch_warnings():
        # A file's name may hold letters that matplotlib's font lacks: it draws a box for each.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="png", dpi=150, metadata={"Software": SOFTWARE})


if __name__ == "__main__":
    main()
