"""Evaluate finished runs, each by the checkpoint that validation chose.

python -m fashion.evaluate RUN                  on the validation split
python -m fashion.evaluate RUN --split test     on the test set
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion import UserError
from fashion.command import clear_errors
from fashion.run import Run

if TYPE_CHECKING:
    from fashion.data import FashionMNIST

SPLITS = {"val": "Validation", "test": "Test"}


def evaluate(run: Run, split: str, data: "FashionMNIST") -> dict[str, Any]:
    """Predict a split once, write the predictions into the run's folder, and score them.

    Raises:
        UserError: the run cannot be rebuilt, its folder not written, or the data not read.
    """
    from fashion import metrics
    from fashion.classifier import answer, load_classifier

    data.setup("test" if split == "test" else "validate")
    predictions = answer(load_classifier(run), getattr(data, split))
    run.write_predictions(split, predictions)
    numbers = {f"{split}/{key}": value for key, value in metrics.scores(*predictions).items()}
    if split == "val":
        numbers["val/temperature"] = metrics.fit_temperature(*predictions)
    return numbers


def write_report(run: Run, split: str, data: "FashionMNIST") -> None:
    """Put a finished run's report.html into its folder, from the predictions that lie there."""
    import numpy as np
    from omegaconf import OmegaConf

    from fashion.report import page

    predictions = run.predictions(split)
    pictures, labels = getattr(data, split), predictions.labels
    examples = [int(np.flatnonzero(labels == label)[0]) for label in range(10)]
    text = page(
        name=str(run.folder),
        run_metrics=run.metrics,
        configuration=OmegaConf.to_yaml(run.config),
        history=run.history,
        split="validation" if split == "val" else "test",
        labels=labels,
        probabilities=predictions.probabilities,
        images=pictures.images.numpy(),
        indices=pictures.indices.numpy(),
        examples=pictures.images[examples].numpy(),
        temperature=run.metrics.get("val/temperature", 1.0),
    )
    run.write_text("report.html", text)


def summary(metrics: dict[str, Any], split: str) -> str:
    """One line: accuracy with its interval, and the epoch it is of."""
    accuracy, low, high = (
        100 * metrics[f"{split}/{key}"] for key in ("acc", "acc_low", "acc_high")
    )
    return (
        f"{SPLITS[split]} accuracy {accuracy:.2f} % (95 % interval {low:.2f} to {high:.2f}), "
        f"of epoch {metrics['best_epoch']} of {metrics['epochs']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.evaluate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--split", choices=SPLITS, default="val")
    arguments = parser.parse_args()
    with clear_errors():
        runs = [Run.open(folder) for folder in arguments.runs]
        for run in runs:
            run.metrics  # noqa: B018 - an unfinished run is refused before anything is imported
        from hydra.utils import instantiate

        from fashion.trainer import prepare_process

        prepare_process()
        for run in runs:
            if arguments.split == "val" and not run.config.data.val_size:
                raise UserError(f"{run.folder} held no pictures out: it has no validation split.")
            data = instantiate(run.config.data, run.config.seed)
            data.prepare_data()
            run.update_metrics(evaluate(run, arguments.split, data))
            write_report(run, arguments.split, data)
            print(
                f"{run.folder}\n  {summary(run.metrics, arguments.split)}\n"
                f"  Report {run.folder / 'report.html'}"
            )


if __name__ == "__main__":
    main()
