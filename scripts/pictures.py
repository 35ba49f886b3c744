"""README's pictures, from the runs that `scripts/reproduce ladder` made.

    python scripts/pictures.py logs/ladder

All of it is about the validation split. Writes results/pictures/: the confusion matrix and the
most confident mistakes of the deck's best model (its run of the lowest seed), the ladder, and
steps.json, the numbers behind the ladder's steps.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fashion.errors import UserError, cli_errors
from fashion.report import figures, statistics
from fashion.report.evaluation import Evaluation, open_data
from fashion.report.table import Comparison, Table, compare
from fashion.runs.files import atomic_write
from fashion.runs.run import Run

PICTURES = Path("results/pictures")
BEST = "best"  # the deck's
REAL = 0.05  # of p-values, corrected for the number of steps


def deck(folder: Path) -> dict[str, Figure]:
    """The confusion matrix and mistakes of the deck's best model.

    Raises:
        UserError: it has no run there, or one that cannot be read.
    """
    runs = [run for run in Run.find(folder) if run.config.get("name") == BEST]
    if not runs:
        raise UserError(f"{folder} has no run of model={BEST}.")
    run = min(runs, key=lambda run: run.config.seed)
    data: Any = open_data(run)
    data.setup("validate")
    evaluation = Evaluation(
        *("val", data.classes, data.val.images.numpy(), data.val.indices.numpy()),
        *run.predictions("val"),
    )
    return {
        "confusion_matrix": figures.confusion_matrix(evaluation.counts, evaluation.classes),
        "mistakes": figures.mistakes(evaluation, count=8, columns=4),
    }


def steps(folder: Path, table: Table) -> list[Comparison]:
    """Each row of a table less the one below it, the p-values corrected for all of these."""
    found = []
    for row, below in zip(table.rows, table.rows[1:], strict=False):
        against = compare([folder], baseline=below.name).comparisons
        found += [comparison for comparison in against if comparison.name == row.name]
    corrected = statistics.holm([step.p_value for step in found])
    return [step._replace(p_holm=p) for step, p in zip(found, corrected, strict=True)]


def ladder(table: Table, found: list[Comparison]) -> Figure:
    return figures.ladder(
        [row.name for row in table.rows],
        [row.accuracy / 100 for row in table.rows],
        [
            None if row.low is None or row.high is None else (row.low / 100, row.high / 100)
            for row in table.rows
        ],
        [(_said(step), step.p_holm < REAL) for step in found],
    )


def _said(step: Comparison) -> str:
    chance = "< 0.001" if step.p_holm < 0.001 else f"= {step.p_holm:.3f}"  # noqa: PLR2004
    doubt = "" if step.p_holm < REAL else "\nnot a difference that these runs can tell"
    return f"{step.difference:+.2f} points ({step.low:+.2f} to {step.high:+.2f}), p {chance}{doubt}"


def write(name: str, figure: Figure) -> None:
    with atomic_write(PICTURES / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the ladder's runs")
    folder = parser.parse_args().folder
    with cli_errors():
        table = compare([folder])
        found = steps(folder, table)
        for name, figure in (deck(folder) | {"ladder": ladder(table, found)}).items():
            write(name, figure)
        raw: list[dict[str, Any]] = [
            {"from": below.name, **step._asdict()}
            for below, step in zip(table.rows[1:], found, strict=True)
        ]
        with atomic_write(PICTURES / "steps.json") as file:
            file.write((json.dumps(raw, indent=2) + "\n").encode())
        print(f"Written to {PICTURES}.")


if __name__ == "__main__":
    main()
