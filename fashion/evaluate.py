"""Evaluate finished runs, each by the checkpoint that it reports.

    python -m fashion.evaluate RUN                     on the validation split
    python -m fashion.evaluate RUN --split test        on the test set
    python -m fashion.evaluate RUN --views mirrored    each picture's mirror image too, beside that
    python -m fashion.evaluate RUN RUN...              also their mean probabilities: an ensemble

Numbers go into each run's metrics.json, the predictions and report.html beside it.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion import config as schema
from fashion.data import download as idx
from fashion.errors import UserError, cli_errors
from fashion.runs.files import atomic_write
from fashion.runs.run import (
    TTA,
    Predictions,
    Run,
    common_predictions,
    provenance,
    refuse_other_splits,
)

if TYPE_CHECKING:
    from fashion.data.datamodule import FashionMNIST

SPLITS = {"val": "Validation", "test": "Test"}


def evaluate(
    run: Run,
    split: str,
    data: "FashionMNIST",
    *,
    temperature: float | None = None,
    views: str = "single",
) -> dict[str, Any]:
    """Predict a split once, write the predictions into the run's folder, and score them.

    Args:
        run: a trained one.
        split: "val" or "test".
        data: the run's.
        temperature: what the validation split fitted; that split fits its own.
        views: "mirrored" also averages the answers to each picture and to its mirror image; what
            that gives is kept and reported beside the rest.

    Returns:
        metrics.json's flat keys, "val/acc" and so on: all of `metrics.scores`; the temperature, if
        it is validation's, and "ece_scaled" at that temperature; "acc_mirrored"; each class's
        "precision/Coat", "precision_low/Coat" and so on; "confused/Shirt as Coat", how many shirts
        were answered so, the pairs most confused both ways first.

    Raises:
        UserError: the run cannot be rebuilt, its folder not written, or the data not read.
    """
    from fashion.report import metrics
    from fashion.training.classifier import answer, load_classifier, predict

    data.setup("test" if split == "test" else "validate")
    pictures, classifier = getattr(data, split), load_classifier(run)
    predictions = answer(classifier, pictures)
    run.write_predictions(split, predictions)
    labels, probabilities = predictions
    numbers = metrics.scores(labels, probabilities)
    if split == "val":
        temperature = numbers["temperature"] = metrics.fit_temperature(labels, probabilities)
    if temperature is not None:
        scaled = metrics.apply_temperature(probabilities, temperature)
        numbers["ece_scaled"] = metrics.scores(labels, scaled)["ece"]
    if views == "mirrored":
        reflected = predict(classifier, pictures.images.flip(2)).numpy()
        both = Predictions(labels, (probabilities + reflected) / 2)
        run.write_predictions(split, both, views)
        numbers |= _mirrored(both)
    numbers |= _by_class(predictions)
    return {f"{split}/{key}": value for key, value in numbers.items()}


def _mirrored(predictions: Predictions) -> dict[str, float]:
    from fashion.report import metrics

    scores = metrics.scores(*predictions)
    return {f"acc_mirrored{bound}": scores[f"acc{bound}"] for bound in ("", "_low", "_high")}


def _by_class(predictions: Predictions) -> dict[str, float]:
    from fashion.data.datamodule import CLASSES
    from fashion.report import metrics

    numbers: dict[str, float] = {}
    for score in metrics.class_scores(*predictions):
        name = CLASSES[score.label]
        for key in ("precision", "recall", "f1"):
            interval = getattr(score, f"{key}_interval")
            numbers[f"{key}/{name}"] = getattr(score, key)
            numbers[f"{key}_low/{name}"], numbers[f"{key}_high/{name}"] = interval
    # All pairs, so that nothing is left of an earlier evaluation.
    counts = metrics.confusion(*predictions)
    both_ways = counts + counts.T
    for true, other in sorted(
        permutations(range(10), 2), key=lambda pair: (-both_ways[pair], sorted(pair))
    ):
        numbers[f"confused/{CLASSES[true]} as {CLASSES[other]}"] = int(counts[true, other])
    return numbers


def ensemble(runs: Sequence[Run], split: str, views: str) -> dict[str, Any]:
    """What the mean of the runs' probabilities reaches, under the keys of metrics.json.

    Raises:
        UserError: the runs did not answer the same pictures.
    """
    import numpy as np

    from fashion.report import metrics

    def mean(views: str) -> Predictions:
        answers = list(common_predictions(runs, split, views).values())
        probabilities = np.mean([given.probabilities for given in answers], axis=0)
        return Predictions(answers[0].labels, probabilities)

    numbers = metrics.scores(*mean("single"))
    if views == "mirrored":
        numbers |= _mirrored(mean(views))
    return {
        "runs": [str(run.folder) for run in runs],
        **{f"{split}/{key}": value for key, value in numbers.items()},
        **provenance(),
    }


def write_report(run: Run, split: str, data: "FashionMNIST") -> None:
    """Put a finished run's report.html and figures into its folder, from the predictions there."""
    import numpy as np
    from omegaconf import OmegaConf

    from fashion.report import figures, metrics
    from fashion.report.page import page

    labels, probabilities = run.predictions(split)
    pictures = getattr(data, split)
    images = pictures.images.numpy()
    examples = np.zeros((10, 28, 28), np.uint8)  # a class may be missing in a small split
    present, first = np.unique(labels, return_index=True)
    examples[present] = images[first]
    text = page(
        name=str(run.folder),
        run_metrics=run.metrics,
        configuration=OmegaConf.to_yaml(run.config),
        history=run.history,
        split="validation" if split == "val" else "test",
        labels=labels,
        probabilities=probabilities,
        images=images,
        indices=pictures.indices.numpy(),
        examples=examples,
        temperature=run.metrics.get("val/temperature"),
        epoch_chosen=run.epoch_chosen,
    )
    run.write_text("report.html", text)
    counts = metrics.confusion(labels, probabilities)
    run.write_figure("confusion_matrix", figures.confusion_matrix(counts))
    run.write_figure("mistakes", figures.mistakes(images, labels, probabilities))


def summary(metrics: dict[str, Any], split: str) -> str:
    """A line: accuracy with its interval, and the epoch it is of; another of the mirrored view."""

    def accuracy(key: str) -> str:
        value, low, high = (
            100 * metrics[f"{split}/{key}{bound}"] for bound in ("", "_low", "_high")
        )
        return f"{value:.2f} % (95 % interval {low:.2f} to {high:.2f})"

    line = f"{SPLITS[split]} accuracy {accuracy('acc')}"
    if {"best_epoch", "epochs"} <= set(metrics):
        line += f", of epoch {metrics['best_epoch']} of {metrics['epochs']}"
    if f"{split}/acc_mirrored" in metrics:
        line += f"\n  with the mirrored view {accuracy('acc_mirrored')}"
    return line


def _details(run: Run, split: str) -> str:
    metrics = run.metrics
    scaled = metrics.get(f"{split}/ece_scaled")
    calibration = f"  calibration error {100 * metrics[f'{split}/ece']:.1f} %"
    if scaled is not None:
        calibration += f", {100 * scaled:.1f} % at temperature {metrics['val/temperature']:.3g}"
    elif run.validates:
        calibration += "; no temperature is fitted, which evaluating --split val does"
    else:
        calibration += "; no temperature is fitted: the run has no validation split"
    prefix = f"{split}/confused/"
    one, other = [key for key in metrics if key.startswith(prefix)][:2]
    return (
        f"{calibration}\n  most confused: {metrics[one]} {one.removeprefix(prefix)}, "
        f"{metrics[other]} {other.removeprefix(prefix)}"
    )


def _data(run: Run) -> "FashionMNIST":
    """A run's data. It is not brought: a stranger's run may name any folder to write it to.

    Raises:
        UserError: the configuration names no data, or the files are missing or wrong.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from fashion.data.datamodule import FashionMNIST

    section = run.config.data
    try:
        schema.check({"data": OmegaConf.to_container(section)}, {})
    except UserError as error:
        raise UserError(f"{run.folder}/.hydra/config.yaml: {error}") from error
    data = instantiate(section, run.config.seed)
    if not isinstance(data, FashionMNIST):
        raise UserError(f"{run.folder}/.hydra/config.yaml names no data set (data._target_).")
    if data.official:
        idx.verify(data.root)
    data.prepare_data()
    return data


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--split", choices=SPLITS, default="val")
    parser.add_argument("--views", choices=TTA, default="single")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the ensemble's numbers, as JSON"
    )
    arguments = parser.parse_args()
    split, views = arguments.split, arguments.views
    with cli_errors():
        runs = list({path.resolve(): Run.open(path) for path in arguments.runs}.values())
        if arguments.output and len(runs) == 1:
            parser.error("--output is for the numbers of an ensemble, of several runs")
        for run in runs:
            run.metrics  # noqa: B018 - an unfinished run is refused before anything is imported
            if split == "val" and not run.validates:
                raise UserError(f"{run.folder} held no pictures out: it has no validation split.")
        if split == "val":
            refuse_other_splits(runs)

        from fashion.training.process import prepare_process

        prepare_process()
        for run in runs:
            data = _data(run)
            with run.held():  # a training that goes on would take the numbers away meanwhile
                temperature = run.metrics.get("val/temperature")
                run.update_metrics(evaluate(run, split, data, temperature=temperature, views=views))
                write_report(run, split, data)
            print(
                f"{run.folder}\n  {summary(run.metrics, split)}\n{_details(run, split)}\n"
                f"  report {run.folder / 'report.html'}"
            )
        if len(runs) > 1:
            numbers = ensemble(runs, split, views)
            print(f"Ensemble of these {len(runs)}\n  {summary(numbers, split)}")
            if arguments.output:
                with atomic_write(arguments.output) as file:
                    file.write((json.dumps(numbers, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
