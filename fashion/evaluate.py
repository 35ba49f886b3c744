"""Evaluate finished runs, each by the checkpoint that it reports.

    python -m fashion.evaluate RUN                   on the validation split
    python -m fashion.evaluate RUN --split test      on the test set
    python -m fashion.evaluate RUN --tta hflip       also averaged over image and horizontal flip
    python -m fashion.evaluate RUN --tta shift       also over both, moved by a pixel: ten views
    python -m fashion.evaluate RUN RUN...            also their mean probabilities: an ensemble

Metrics are added to each run's metrics.json; predictions and the report are written beside it.
"""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fashion.errors import UserError, cli_errors
from fashion.runs.files import atomic_write, refuse_existing
from fashion.runs.run import VIEWS, Run

if TYPE_CHECKING:
    from fashion.report.evaluation import Evaluation


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--tta", choices=VIEWS, default="none", help="test-time augmentation")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the ensemble's metrics, JSON")
    parser.add_argument("--mistakes", type=Path, metavar="FILE.csv", help="misclassified images")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="16:9 figures for slides")
    parser.add_argument("--data", type=Path, metavar="DIR", help="in place of the run's data.root")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--trust", action="store_true", help="build any class that a run names")
    options = parser.parse_args()
    with cli_errors():
        folders = {os.path.realpath(path): path for path in options.runs}.values()
        runs = [Run.open(path, trust=options.trust) for path in folders]
        if options.output and len(runs) == 1:
            parser.error("--output is for the metrics of an ensemble, of several runs")
        if len(runs) > 1 and (options.mistakes or options.figures):
            parser.error("--mistakes and --figures are for one run")
        refuse_existing([options.output, options.mistakes], force=options.force)
        for run in runs:
            run.metrics  # noqa: B018 - an unfinished run is refused before slow imports
            if options.split == "val" and not run.validates:
                raise UserError(f"{run.folder} has no validation split (data.val_size = 0).")

        from fashion.report import slides
        from fashion.report.evaluation import refuse_other_splits
        from fashion.training.process import prepare_process

        # Now rather than after minutes of evaluation.
        drawn = slides.files(options.figures) if options.figures else []
        refuse_existing(drawn, force=options.force)
        if options.split == "val":
            refuse_other_splits(runs, folds=False)
        prepare_process()
        for run in runs:
            evaluation = _evaluate(run, options)
        if options.figures:
            slides.write_run(runs[0], evaluation, options.figures, force=options.force)
        if options.mistakes:
            with atomic_write(options.mistakes) as file:
                file.write(evaluation.mistakes_csv().encode())
        if len(runs) > 1:
            _ensemble(runs, options)


def _evaluate(run: Run, options: argparse.Namespace) -> "Evaluation":
    """Evaluate one run, write the results into its folder and print them."""
    from fashion.report.evaluation import details, evaluate, open_data, summary
    from fashion.report.page import write_report
    from fashion.training.classifier import load_classifier

    data, classifier = open_data(run, options.data), load_classifier(run)
    with run.lock():  # resuming the run meanwhile would remove its metrics
        temperature = run.metrics.get("val/temperature")
        evaluation = evaluate(
            classifier, data, options.split, temperature=temperature, tta=options.tta
        )
        evaluation.write(run)
        run.update_metrics(evaluation.metrics)
        page = write_report(run, evaluation)
    text = f"{summary(run.metrics, options.split)}\n{details(evaluation)}"
    print(f"{run.folder}\n  {text}\n  report {page}")
    return evaluation


def _ensemble(runs: list[Run], options: argparse.Namespace) -> None:
    """Evaluate the mean of the runs' probabilities."""
    from fashion.report.evaluation import ensemble, summary
    from fashion.runs.provenance import provenance

    metrics = ensemble(runs, options.split, options.tta)
    print(f"Ensemble of these {len(runs)}\n  {summary(metrics, options.split)}")
    if options.output:
        with atomic_write(options.output) as file:
            file.write((json.dumps(metrics | provenance(), indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
