"""Compare the recall of each class between the deck's network and `record`, on the test set.

    python scripts/class_changes.py

Reads the runs of `scripts/reproduce baselines` and `record`. Writes results/classes.json and, as a
table, results/classes.md: both recalls, the difference with its bootstrap interval
(`fashion.report.statistics.bootstrap_difference`), and its p-value corrected for ten classes.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fashion.data import CLASSES
from fashion.errors import UserError, cli_errors
from fashion.report.statistics import bootstrap_difference, holm
from fashion.report.table import p_value
from fashion.runs.files import atomic_write
from fashion.runs.run import Run

RESULTS = Path("results")
BEFORE = (Path("logs/baselines"), "best")
AFTER = (Path("logs/record"), "record")


def predictions(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the test labels, (n,), and each run's probabilities, (runs, n, 10).

    Raises:
        UserError: there is no run of that name.
    """
    runs = [run for run in Run.find(folder) if f"name-{name}," in run.folder.name]
    if not runs:
        raise UserError(f"{folder} has no run of {name}: scripts/reproduce {folder.name} makes it.")
    found = [run.predictions("test") for run in runs]
    return found[0].labels, np.stack([each.probabilities for each in found])


class Change(NamedTuple):
    """One class: recalls in per cent, their difference in percentage points with its interval."""

    name: str
    before: float
    after: float
    points: float
    low: float
    high: float
    p_holm: float  # corrected for all classes

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.before:.1f} | {self.after:.1f} | {self.points:+.1f} "
            f"| {self.low:+.1f} to {self.high:+.1f} | {p_value(self.p_holm)} |"
        )


def changes() -> list[Change]:
    """Return one change per class, the largest gain first."""
    (labels, before), (_, after) = predictions(*BEFORE), predictions(*AFTER)
    found = []
    for label, name in enumerate(CLASSES):
        members = labels == label
        difference = bootstrap_difference(labels[members], after[:, members], before[:, members])
        found.append(
            Change(
                name,
                100 * float((before[:, members].argmax(axis=2) == label).mean()),
                100 * float((after[:, members].argmax(axis=2) == label).mean()),
                100 * difference.mean,
                100 * difference.low,
                100 * difference.high,
                difference.p_value,
            )
        )
    corrected = holm([change.p_holm for change in found])
    rows = [change._replace(p_holm=p) for change, p in zip(found, corrected, strict=True)]
    return sorted(rows, key=lambda row: row.points, reverse=True)


def main() -> None:
    with cli_errors():
        rows = changes()
        header = f"| class | {BEFORE[1]}: recall, % | {AFTER[1]}: recall, % | difference, pp |"
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
