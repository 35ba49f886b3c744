"""The evaluation of one split: computed once, then written in several formats.

`evaluate` returns it; `Evaluation.write` (run folder), `page.write_report` (HTML) and
`tensorboard.write_evaluation` read it. Importing this module imports no torch.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32, Int, Int64, UInt8
from omegaconf import OmegaConf

from fashion.data import CLASSES
from fashion.errors import UserError
from fashion.report import metrics
from fashion.report.metrics import percent, percent_range
from fashion.report.statistics import Labels, Probabilities
from fashion.runs.run import VIEWS, Predictions, Run, listed

if TYPE_CHECKING:
    from torch import Tensor

    from fashion.data.datamodule import FashionMNIST
    from fashion.training.classifier import Classifier

SPLITS = {"val": "validation", "test": "test"}

# Fashion-MNIST's classes in sentences.
NOUNS = (
    *("a T-shirt", "a pair of trousers", "a pullover", "a dress", "a coat"),
    *("a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot"),
)
TOPS, FOOTWEAR = (0, 2, 4, 6), (5, 7, 9)


@dataclass(frozen=True)
class Evaluation:
    """A classifier's predictions for a split, and everything that is computed from them.

    Attributes:
        split: "val" or "test".
        classes: their names, in order.
        images: light on black, in the split's order.
        indices: the images' positions in the official file, from 0.
        labels: the true classes, 0..C-1.
        probabilities: of each image alone; rows sum to 1.
        tta: the test-time augmentation of `probabilities_tta`, "none" without any.
        probabilities_tta: the mean over the views of each image.
        temperature: fitted on the validation split; None if the run has none.
    """

    split: Literal["val", "test"]
    classes: tuple[str, ...]
    images: UInt8[np.ndarray, "n height width"]
    indices: Int[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n classes"]
    temperature: float | None = None
    tta: str = "none"
    probabilities_tta: Float32[np.ndarray, "n classes"] | None = None

    @property
    def is_fashion(self) -> bool:
        return self.classes == CLASSES

    @cached_property
    def predicted(self) -> Int64[np.ndarray, " n"]:
        predicted: np.ndarray = self.probabilities.argmax(axis=1)
        return predicted

    @cached_property
    def mistakes(self) -> Int[np.ndarray, " mistakes"]:
        """Positions of the misclassified images, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.probabilities[wrong].max(axis=1), kind="stable")]

    @cached_property
    def scores(self) -> dict[str, float]:
        return metrics.scores(self.labels, self.probabilities)

    @cached_property
    def counts(self) -> Int[np.ndarray, "classes classes"]:
        """The confusion matrix: rows are true classes."""
        return metrics.confusion(self.labels, self.probabilities)

    @cached_property
    def class_scores(self) -> list[metrics.ClassScore]:
        return metrics.class_scores(self.labels, self.probabilities)

    @cached_property
    def pairs(self) -> list[metrics.ConfusedPair]:
        return metrics.confused_pairs(self.counts)

    @cached_property
    def calibrated(self) -> Float32[np.ndarray, "n classes"] | None:
        """The probabilities at the fitted temperature; None without one."""
        if self.temperature is None:
            return None
        return metrics.apply_temperature(self.probabilities, self.temperature)

    @cached_property
    def ece_scaled(self) -> float | None:
        """The expected calibration error at the fitted temperature, 0..1; None without one."""
        if self.calibrated is None:
            return None
        return metrics.scores(self.labels, self.calibrated)["ece"]

    @property
    def temperature_helps(self) -> bool:
        """Return whether the temperature reduces the calibration error at the precision shown."""
        before, after = self.scores["ece"], self.ece_scaled
        return after is not None and after < before and percent(after) != percent(before)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The flat keys of metrics.json, "val/acc" and so on.

        All of `metrics.scores`; validation's "temperature"; "ece_scaled" at that temperature;
        "acc_hflip" or "acc_shift" with test-time augmentation; per class "precision/Coat",
        "precision_low/Coat" and so on, where defined; "confused/Shirt as Coat", the number of
        shirts predicted as coats, the pairs most confused in both directions first.
        """
        found: dict[str, Any] = dict(self.scores)
        if self.temperature is not None:
            found["ece_scaled"] = self.ece_scaled
            if self.split == "val":
                found["temperature"] = self.temperature
        if self.probabilities_tta is not None:
            found |= _accuracies(self.labels, self.probabilities_tta, self.tta)
        for score, name in zip(self.class_scores, self.classes, strict=True):
            for key in ("precision", "recall", "f1"):
                value, (low, high) = getattr(score, key), getattr(score, f"{key}_interval")
                if not np.isnan(value):
                    found |= {f"{key}/{name}": value}
                    found |= {f"{key}_low/{name}": low, f"{key}_high/{name}": high}
        both = self.counts + self.counts.T
        # Zeros too: they replace the values of an earlier evaluation in metrics.json.
        for true, other in sorted(
            permutations(range(len(self.classes)), 2),
            key=lambda pair: (-both[pair], sorted(pair)),
        ):
            key = f"confused/{self.classes[true]} as {self.classes[other]}"
            found[key] = int(self.counts[true, other])
        return {f"{self.split}/{key}": value for key, value in found.items()}

    @cached_property
    def pngs(self) -> dict[str, bytes]:
        """Content of PNG files by name, the confusion matrix and the mistakes; drawn once."""
        from fashion.report import figures

        drawn = {
            "confusion_matrix": figures.confusion_matrix(self.counts, self.classes),
            "mistakes": figures.mistakes(self),
        }
        buffers = {name: io.BytesIO() for name in drawn}
        for name, figure in drawn.items():
            figure.savefig(
                buffers[name], format="png", dpi=200 if name == "confusion_matrix" else 150
            )
        return {name: buffer.getvalue() for name, buffer in buffers.items()}

    def sentence(self, true: int, predicted: int) -> str:
        """Describe a mistake in one sentence."""
        if self.is_fashion:
            return f"We thought it was {NOUNS[predicted]} but it was actually {NOUNS[true]}."
        return f"Predicted {self.classes[predicted]}, true class {self.classes[true]}."

    def mistakes_csv(self) -> str:
        """Return the mistakes as CSV: index, true and predicted class, the probabilities."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "true", "predicted", *(f"p({name})" for name in self.classes)])
        for position in self.mistakes:
            names = (self.classes[each[position]] for each in (self.labels, self.predicted))
            probabilities = (f"{value:.6f}" for value in self.probabilities[position])
            writer.writerow([self.indices[position], *names, *probabilities])
        return text.getvalue()

    def write(self, run: Run) -> None:
        """Write the predictions into the run's folder."""
        run.write_predictions(self.split, Predictions(self.labels, self.probabilities))
        if self.probabilities_tta is not None:
            augmented = Predictions(self.labels, self.probabilities_tta)
            run.write_predictions(self.split, augmented, self.tta)


def evaluate(
    classifier: "Classifier",
    data: Any,
    split: Literal["val", "test"],
    *,
    temperature: float | None = None,
    tta: str = "none",
) -> Evaluation:
    """Predict a split.

    Args:
        classifier: in evaluation mode.
        data: with the ImageSets `val` and `test`, as FashionMNIST has.
        split: "val" or "test".
        temperature: fitted on the validation split; ignored for "val", on which it is fitted here.
        tta: "hflip" also averages the predictions of each image and its horizontal flip; "shift"
            those of ten views: both, in place and moved by one pixel up, down, left and right.

    Raises:
        UserError: the data cannot be read, or the predictions are not finite.
    """
    from fashion.training.classifier import predict_probabilities

    data.setup("test" if split == "test" else "validate")
    images = getattr(data, split)
    probabilities = predict_probabilities(classifier, images.images)
    augmented = None
    if tta != "none":
        total = probabilities
        for view in _further_views(images.images, tta):
            total = total + predict_probabilities(classifier, view)
        augmented = (total / VIEWS[tta]).numpy()
    labels = images.labels.numpy()
    if split == "val":
        temperature = metrics.fit_temperature(labels, probabilities.numpy())
    return Evaluation(
        split,
        classifier.classes,
        images.images.numpy(),
        images.indices.numpy(),
        labels,
        probabilities.numpy(),
        temperature,
        tta,
        augmented,
    )


def _further_views(
    images: "UInt8[Tensor, 'n h w']", tta: str
) -> "Iterator[UInt8[Tensor, 'n h w']]":
    """Yield the views of test-time augmentation other than the images themselves."""
    from torch.nn.functional import pad

    flipped = images.flip(2)
    yield flipped
    if tta == "shift":
        height, width = images.shape[1:]
        for view in (images, flipped):
            padded = pad(view, (1, 1, 1, 1))  # black, as the images' border is
            for top, left in ((0, 1), (1, 0), (1, 2), (2, 1)):
                yield padded[:, top : top + height, left : left + width]


def _accuracies(labels: Labels, probabilities: Probabilities, tta: str) -> dict[str, float]:
    """Return metrics.json's accuracy and its interval with test-time augmentation."""
    found = metrics.scores(labels, probabilities)
    return {f"acc_{tta}{end}": found[f"acc{end}"] for end in ("", "_low", "_high")}


def open_data(run: Run, root: Path | None = None) -> "FashionMNIST":
    """Return a run's data, verified; its `setup` is left to the caller.

    It is not downloaded, because an untrusted configuration could name any folder. A relative
    data.root is looked for in the current folder, then in those that contain the run.

    Args:
        run: the run.
        root: a data folder in place of data.root.

    Raises:
        UserError: the configuration names no data, or the files are missing or damaged.
    """
    from fashion.data import download
    from fashion.data.datamodule import from_config

    section = run.section("data", run.command("evaluate", "--trust"))
    if root is not None:
        section["root"] = str(root)
    elif isinstance(section.get("root"), str):
        folders = (Path(), *run.folder.resolve().parents)
        found = (each / section["root"] for each in folders if (each / section["root"]).is_dir())
        section["root"] = str(next(found, section["root"]))
    data = from_config(section, run.config.seed)
    if data.official:
        download.verify(data.root)
    else:
        download.ensure_consistent(data.root, data.dataset)
    return data


def summary(found: Mapping[str, Any], split: str) -> str:
    """Return a line on accuracy, with its interval and epoch; others for each known `--tta`.

    Args:
        found: metrics.json's content.
        split: "val" or "test".
    """

    def accuracy(key: str) -> str:
        value, low, high = (found[f"{split}/{key}{end}"] for end in ("", "_low", "_high"))
        return f"{percent(value, 2)} (95 % interval {percent_range((low, high), 2)})"

    line = f"{SPLITS[split].capitalize()} accuracy {accuracy('acc')}"
    if {"best_epoch", "epochs"} <= set(found):
        line += f", epoch {found['best_epoch']} of {found['epochs']}"
    for tta, count in VIEWS.items():
        if f"{split}/acc_{tta}" in found:
            line += f"\n  mean of {count} views (--tta {tta}) {accuracy(f'acc_{tta}')}"
    return line


def details(evaluation: Evaluation) -> str:
    """Return lines on calibration and the most confused pair, for the terminal."""
    calibration = f"  calibration error {percent(evaluation.scores['ece'])}"
    if evaluation.temperature is not None and evaluation.temperature_helps:
        calibration += (
            f", {percent(evaluation.ece_scaled)} at temperature {evaluation.temperature:.3g}"
        )
    elif evaluation.temperature is not None:
        calibration += f"; temperature {evaluation.temperature:.3g} does not reduce it"
    lines = [calibration]
    for pair in evaluation.pairs[:1]:
        first, second = evaluation.classes[pair.first], evaluation.classes[pair.second]
        lines.append(
            f"  most confused: {pair.first_as_second:,} {first} as {second}, "
            f"{pair.second_as_first:,} {second} as {first}"
        )
    return "\n".join(lines)


# Several runs that predict the same images.


def common_predictions(
    runs: Sequence[Run], split: str, tta: str = "none"
) -> dict[Run, Predictions]:
    """Return the predictions of several runs for the same images.

    Raises:
        UserError: a run has no predictions, or the runs predicted different images.
    """
    if split == "val":
        refuse_other_splits(runs)
    found, errors = {}, []
    for run in runs:
        try:
            found[run] = run.predictions(split, tta)
        except UserError as error:  # report all of them: each needs another command
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(errors))
    references: dict[int | None, tuple[Run, Predictions]] = {}
    for run, given in found.items():
        reference, expected = references.setdefault(
            fold(run) if split == "val" else None, (run, given)
        )
        if not np.array_equal(given.labels, expected.labels):
            raise UserError(
                "The labels of these runs' predictions differ, so that they are of different "
                f"images, or in another order:\n{listed([reference, run])}"
            )
        if given.probabilities.shape != expected.probabilities.shape:
            raise UserError(f"These runs have different classes:\n{listed([reference, run])}")
    return found


def refuse_other_splits(runs: Sequence[Run], *, folds: bool = True) -> None:
    """Raise UserError if runs have different validation images.

    Args:
        runs: the runs.
        folds: whether they may validate on different folds of one split.
    """
    single = "data.val_size" if any(fold(run) is None for run in runs) else "data.fold"
    for key in (
        "data.folds",
        "data.split_seed",
        *([single] * (not folds or single != "data.fold")),
    ):
        if len({OmegaConf.select(run.config, key) for run in runs}) > 1:
            raise UserError(f"These runs have different validation images:\n{listed(runs, key)}")


def fold(run: Run) -> int | None:
    """Return the fold (from 0) that a run validates on; None without cross-validation.

    Raises:
        UserError: its configuration names no number.
    """
    if not OmegaConf.select(run.config, "data.folds"):
        return None
    number = OmegaConf.select(run.config, "data.fold", default=0)
    if type(number) is not int:
        raise UserError(f"{run.folder}: data.fold = {number} is no number of a fold.")
    return number


def ensemble(runs: Sequence[Run], split: str, tta: str = "none") -> dict[str, Any]:
    """Score the mean of several runs' probabilities, under the keys of metrics.json.

    Raises:
        UserError: a run has no predictions, or the runs predicted different images.
    """
    if split == "val":
        refuse_other_splits(runs, folds=False)

    def mean(tta: str) -> tuple[Labels, Probabilities]:
        found = list(common_predictions(runs, split, tta).values())
        return found[0].labels, np.mean([each.probabilities for each in found], axis=0)

    scores = metrics.scores(*mean("none"))
    if tta != "none":
        scores |= _accuracies(*mean(tta), tta)
    return {
        "runs": [str(run.folder) for run in runs],
        **{f"{split}/{key}": value for key, value in scores.items()},
    }
