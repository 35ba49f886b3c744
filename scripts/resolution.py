"""Analyze the studies of resolution and of the number of training images, on validation.

    python scripts/resolution.py

Reads the runs of `scripts/reproduce resolution` and `train-size` where they are, and those of
earlier calls from results/. Writes

results/STUDY/predictions.npz      each run's predicted classes, as NAME/SEED, and the labels

results/resolution.json, .md       accuracy per network and resolution; what each step of complexity
                                   gains at each resolution; whether the gain grows with resolution
                                   (the interaction, fashion.report.statistics.bootstrap_contrast;
                                   p-values corrected for the steps by Holm); recall per class
results/train-size.json, .md       accuracy per network and number of training images
results/images/resolution.png, train-size.png
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fashion.data import CLASSES
from fashion.errors import UserError, cli_errors
from fashion.report.figures import accuracy_lines
from fashion.report.statistics import (
    Difference,
    bootstrap_contrast,
    bootstrap_difference,
    holm,
    seed_interval,
)
from fashion.report.table import p_value
from fashion.runs.files import atomic_write
from fashion.runs.run import Run

RESULTS = Path("results")
NETWORKS = ("linear", "mlp", "best", "cnn", "fast")  # each more complex than the one before
RESOLUTIONS = (7, 14, 28)
SIZES = (500, 2_000, 10_000, 50_000)
SIZED = ("linear", "cnn", "fast")  # the networks of the study of sizes


class Cell(NamedTuple):
    """The runs of one network on one kind of data."""

    labels: np.ndarray
    predicted: np.ndarray  # classes (runs, n)

    @property
    def accuracies(self) -> list[float]:
        return [float((run == self.labels).mean()) for run in self.predicted]

    @property
    def probabilities(self) -> np.ndarray:
        """Return (runs, n, classes): all of it on the predicted class."""
        certain: np.ndarray = np.eye(len(CLASSES), dtype=np.float32)[self.predicted]
        return certain


def collect(study: str) -> None:
    """Add what the study's finished runs predict to its file in results/."""
    path = RESULTS / study / "predictions.npz"
    known: dict[str, Any] = dict(np.load(path)) if path.exists() else {}
    for run in Run.find(Path("logs", study)) if Path("logs", study).exists() else ():
        if run.finished:
            labels, probabilities = run.predictions("val")
            known[f"{run.config.name}/{run.config.seed}"] = probabilities.argmax(1).astype(np.uint8)
            known["labels"] = labels.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez_compressed(file, **dict(sorted(known.items())))


def cell(study: str, name: str, *, seeds: int | None = None) -> Cell:
    """Return the validation predictions of a study's runs of that name, by seed.

    Raises:
        UserError: there is no run of that name.
    """
    known = np.load(RESULTS / study / "predictions.npz")
    found = sorted(int(key.rpartition("/")[2]) for key in known if key.startswith(f"{name}/"))
    if not found:
        raise UserError(f"There is no run of {name}: scripts/reproduce {study} makes it.")
    predicted = np.stack([known[f"{name}/{seed}"] for seed in found[:seeds]])
    return Cell(known["labels"].astype(np.int64), predicted)


def contrast(cells: Sequence[Cell], weights: Sequence[int]) -> Difference:
    return bootstrap_contrast(cells[0].labels, [each.probabilities for each in cells], weights)


def as_points(difference: Difference) -> dict[str, float]:
    """Return percentage points."""
    mean, low, high = (100 * each for each in difference[:3])
    return {"points": mean, "low": low, "high": high, "p_value": difference.p_value}


def corrected(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    p_values = holm([each["p_value"] for each in found])
    return [each | {"p_holm": p} for each, p in zip(found, p_values, strict=True)]


def accuracy(found: Cell) -> dict[str, Any]:
    return {"n": len(found.accuracies), **seed_interval(found.accuracies)._asdict()}


def resolution() -> dict[str, Any]:
    cells = {
        (name, pixels): cell("resolution", f"{name}-{pixels}")
        for name in NETWORKS
        for pixels in RESOLUTIONS
    }
    steps = list(zip(NETWORKS[1:], NETWORKS, strict=False))
    gains = [
        {"network": more, "than": less, "resolution": pixels}
        | as_points(contrast([cells[more, pixels], cells[less, pixels]], [1, -1]))
        for more, less in steps
        for pixels in RESOLUTIONS
    ]
    interactions: list[dict[str, Any]] = []
    for low, high in ((7, 14), (14, 28), (7, 28)):
        interactions += corrected(
            [
                {"network": more, "than": less, "from": low, "to": high}
                | as_points(
                    contrast(
                        [cells[more, high], cells[less, high], cells[more, low], cells[less, low]],
                        [1, -1, -1, 1],
                    )
                )
                for more, less in steps
            ]
        )
    return {
        "accuracy": [
            {"network": name, "resolution": pixels, **accuracy(found)}
            for (name, pixels), found in cells.items()
        ],
        "gains": gains,
        "interactions": interactions,
        "classes": {name: classes(cells[name, 28], cells[name, 7]) for name in ("best", "fast")},
    }


def classes(full: Cell, low: Cell) -> list[dict[str, Any]]:
    """Return each class's recall at 28 and at 7 pixels, and the loss; the greatest loss first."""
    found = []
    for label, name in enumerate(CLASSES):
        members = full.labels == label
        first, second = (each.probabilities[:, members] for each in (full, low))
        loss = as_points(bootstrap_difference(full.labels[members], second, first))
        recalls = [float((each.argmax(axis=2) == label).mean()) for each in (first, second)]
        found.append({"class": name, "recall_28": recalls[0], "recall_7": recalls[1]} | loss)
    return sorted(corrected(found), key=lambda each: each["points"])


def train_size() -> dict[str, Any]:
    cells = {
        (name, size): cell("resolution", f"{name}-28", seeds=3)
        if size == SIZES[-1]
        else cell("train-size", f"{name}-{size}")
        for name in SIZED
        for size in SIZES
    }
    pairs = [
        *((("cnn", 50_000), ("cnn", 10_000)), (("cnn", 50_000), ("cnn", 2_000))),
        *((("fast", 10_000), ("cnn", 10_000)), (("fast", 50_000), ("cnn", 50_000))),
        (("fast", 10_000), ("cnn", 50_000)),
    ]
    return {
        "accuracy": [
            {"network": name, "images": size, **accuracy(found)}
            for (name, size), found in cells.items()
        ],
        "differences": [
            {"of": list(first), "than": list(second)}
            | as_points(contrast([cells[first], cells[second]], [1, -1]))
            for first, second in pairs
        ],
    }


def table(header: str, rows: Sequence[str]) -> str:
    columns = header.count("|") - 2
    return "\n".join([header, "|---|" + "--:|" * columns, *rows]) + "\n"


def percent(each: dict[str, Any]) -> str:
    mean = f"{100 * each['mean']:.2f}"
    low, high = each["low"], each["high"]
    return mean if low is None else f"{mean} ({100 * low:.2f} to {100 * high:.2f})"


def points(each: dict[str, Any]) -> str:
    return f"{each['points']:+.2f} ({each['low']:+.2f} to {each['high']:+.2f})"


def resolution_tables(found: dict[str, Any]) -> str:
    by_network = {
        name: [each for each in found["accuracy"] if each["network"] == name] for name in NETWORKS
    }
    rows = [
        f"| {name} | {cells[-1]['n']} | {' | '.join(map(percent, cells))} |"
        for name, cells in by_network.items()
    ]
    text = table("| validation accuracy, % | n | 7 x 7 | 14 x 14 | 28 x 28 |", rows)
    rows = []
    for more, less in zip(NETWORKS[1:], NETWORKS, strict=False):
        cells = [points(each) for each in found["gains"] if each["network"] == more]
        grown = next(
            each
            for each in found["interactions"]
            if (each["network"], each["from"], each["to"]) == (more, 7, 28)
        )
        rows.append(
            f"| {more} minus {less} | {' | '.join(cells)} | {points(grown)} "
            f"| {p_value(grown['p_holm'])} |"
        )
    text += "\n" + table("| gain, pp | 7 x 7 | 14 x 14 | 28 x 28 | 28 minus 7 | p (Holm) |", rows)
    for name, each_class in found["classes"].items():
        rows = [
            f"| {each['class']} | {100 * each['recall_28']:.1f} | {100 * each['recall_7']:.1f} "
            f"| {points(each)} |"
            for each in each_class
        ]
        text += "\n" + table(f"| recall of {name}, % | 28 x 28 | 7 x 7 | change, pp |", rows)
    return text


def train_size_table(found: dict[str, Any]) -> str:
    rows = [
        f"| {name} | "
        + " | ".join(percent(each) for each in found["accuracy"] if each["network"] == name)
        + " |"
        for name in SIZED
    ]
    sizes = " | ".join(f"{size:,}" for size in SIZES)
    text = table(f"| validation accuracy, %, by training images | {sizes} |", rows)
    rows = [
        f"| {each['of'][0]}, {each['of'][1]:,}, minus {each['than'][0]}, {each['than'][1]:,} "
        f"| {points(each)} |"
        for each in found["differences"]
    ]
    return text + "\n" + table("| difference | pp |", rows)


def write(name: str, found: dict[str, Any], text: str, x: str, label: str) -> None:
    lines: dict[str, dict[int, tuple[float, float | None, float | None]]] = {}
    for each in found["accuracy"]:
        lines.setdefault(each["network"], {})[each[x]] = (each["mean"], each["low"], each["high"])
    figure = accuracy_lines(lines, label)
    for path, content in (
        (RESULTS / f"{name}.json", (json.dumps(found, indent=2) + "\n").encode()),
        (RESULTS / f"{name}.md", text.encode()),
    ):
        with atomic_write(path) as file:
            file.write(content)
    with atomic_write(RESULTS / "images" / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=120)
    print(text)


def main() -> None:
    with cli_errors():
        for study in ("resolution", "train-size"):
            collect(study)
        found = resolution()
        write("resolution", found, resolution_tables(found), "resolution", "pixels along each side")
        found = train_size()
        write("train-size", found, train_size_table(found), "images", "training images")


if __name__ == "__main__":
    main()
