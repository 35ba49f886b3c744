"""How each class gained from the deck's best model to the record, on the test set.

    python scripts/class_changes.py

Reads the runs of `scripts/reproduce ladder` and `record`; writes results/classes.json, and
results/classes.md, the same as a table: each class's recall before and after, the difference with
the interval of `fashion.report.statistics.bootstrap_difference`, and its p-value corrected for ten classes.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fashion.data import CLASSES
from fashion.errors import UserError, cli_errors
from fashion.report import statistics
from fashion.runs.files import atomic_write
from fashion.runs.run import Run

RESULTS = Path("results")
BEFORE = (Path("logs/ladder"), "best")
AFTER = (Path("logs/record"), "record")


def answers(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels, (n,), and the probabilities of each of a recipe's runs, (runs, n, 10)."""
    runs = [run for run in Run.find(folder) if run.config.get("name") == name]
    if not runs:
        raise UserError(f"{folder} has no run of {name}: scripts/reproduce {folder.name} makes it.")
    predictions = [run.predictions("test") for run in runs]
    return predictions[0].labels, np.stack([found.probabilities for found in predictions])


class Change(NamedTuple):
    """Of one class: recalls in per cent, their difference in points with its 95 % interval."""

    name: str
    before: float
    after: float
    points: float
    low: float
    high: float
    p_holm: float  # corrected for all classes

    def __str__(self) -> str:
        chance = "< 0.001" if self.p_holm < 0.001 else f"{self.p_holm:.3f}"  # noqa: PLR2004
        return (
            f"| {self.name} | {self.before:.1f} | {self.after:.1f} | {self.points:+.1f} "
            f"| {self.low:+.1f} to {self.high:+.1f} | {chance} |"
        )


def changes() -> list[Change]:
    """One a class, the greatest gain first."""
    (labels, before), (_, after) = answers(*BEFORE), answers(*AFTER)
    found = []
    for label, name in enumerate(CLASSES):
        of_class = labels == label
        difference = statistics.bootstrap_difference(
            labels[of_class], after[:, of_class], before[:, of_class]
        )
        found.append(
            Change(
                name,
                100 * float((before[:, of_class].argmax(axis=2) == label).mean()),
                100 * float((after[:, of_class].argmax(axis=2) == label).mean()),
                100 * difference.mean,
                100 * difference.low,
                100 * difference.high,
                difference.p_value,
            )
        )
    corrected = statistics.holm([change.p_holm for change in found])
    rows = [change._replace(p_holm=p) for change, p in zip(found, corrected, strict=True)]
    return sorted(rows, key=lambda row: row.points, reverse=True)


def main() -> None:
    with cli_errors():
        rows = changes()
        header = f"| class | {BEFORE[1]}: recall, % | {AFTER[1]}: recall, % | points |"
        lines = [
            f"{header} 95 % interval | p (Holm) |",
            "| --- | --: | --: | --: | --: | --: |",
            *map(str, rows),
        ]
        with atomic_write(RESULTS / "classes.json") as file:
            file.write((json.dumps([row._asdict() for row in rows], indent=2) + "\n").encode())
        with atomic_write(RESULTS / "classes.md") as file:
            file.write(("\n".join(lines) + "\n").encode())
        print("\n".join(lines))


if __name__ == "__main__":
    main()
