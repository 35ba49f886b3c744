"""Draw results/images/, from the raw values in results/ and from runs made here.

    python scripts/images.py                              baselines.png, epoch-budget.png
    python scripts/images.py --baselines logs/baselines   also the first three below
    python scripts/images.py --run RUN                    report.png, prediction.png
    python scripts/images.py --search FOLDER              search.png

steps.json            the differences between the baselines, each compared with the next simpler one
confusion_matrix.png  of the deck's network (model=best, lowest seed; validation)
mistakes.png          its most confident mistakes
baselines.png         validation accuracy of the baselines, with the differences in steps.json
epoch-budget.png      test accuracy against core-minutes, from results/{record,epoch-budget-*}/
report.png            a screenshot of the run's report.html, taken with Chromium
prediction.png        the run's predictions for validation images that were made into photos
search.png            a screenshot of the search's page

`scripts/reproduce images` makes the runs and all of these.
"""

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

from fashion.data import CLASSES
from fashion.errors import UserError, cli_errors
from fashion.report import figures
from fashion.report.evaluation import Evaluation, evaluate, open_data
from fashion.report.page import write_report
from fashion.report.statistics import holm, seed_interval
from fashion.report.table import Comparison, Table, compare, difference_text
from fashion.runs.files import atomic_write
from fashion.runs.run import Run
from fashion.training.classifier import load_classifier

RESULTS = Path("results")
IMAGES = RESULTS / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--blink-settings=preferredColorScheme=1"),
)
REPORT_SIZE, SEARCH_SIZE = (1200, 1290), (1200, 1480)  # pixels
SCREENSHOT_COLORS = 128  # of the palette: keeps the file below 300 kB
PHOTOGRAPHED = ("Coat", "Sneaker", "Bag")
# Published accuracies; results/README.md says how each was measured. The deck's is of validation.
PEERS = {
    "ResNet-20, 300 epochs, epoch chosen on the test set: 95.55 %": 0.9555,
    "fast.ai, chosen on the test set: 94.3 %": 0.943,
    "two convolutions (cmasch): 93.4 %": 0.934,
    "the deck (validation): 90 %": 0.90,
}


def deck_run(folder: Path) -> Run:
    """Return the run of the deck's network with the lowest seed.

    Raises:
        UserError: there is none.
    """
    runs = [run for run in Run.find(folder) if run.config.get("name") == "best"]
    if not runs:
        raise UserError(f"{folder} has no run of model=best: scripts/reproduce baselines makes it.")
    return min(runs, key=lambda run: run.config.seed)


def predictions(evaluation: Evaluation) -> dict[str, Figure]:
    """Draw the confusion matrix and the mistakes."""
    return {
        "confusion_matrix": figures.confusion_matrix(evaluation.counts, evaluation.classes),
        "mistakes": figures.mistakes(evaluation, count=8, columns=4),
    }


def screenshot(page: Path, size: tuple[int, int]) -> Image.Image:
    """Return the top of an HTML page as Chromium shows it.

    Raises:
        UserError: there is no browser.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"No browser is on PATH; install one of {', '.join(BROWSERS)}.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.png")
        own = [f"--user-data-dir={folder}/profile", "--window-size={},{}".format(*size)]
        subprocess.run(
            [browser, *FLAGS, *own, f"--screenshot={file}", page.resolve().as_uri()],
            check=True,
            capture_output=True,
            timeout=120,
        )
        picture = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
    return picture.quantize(SCREENSHOT_COLORS)


def photo(image: UInt8[np.ndarray, "28 28"]) -> Image.Image:
    """Return an image of the dataset as a photo: dark, enlarged, before a beige wall."""
    product = Image.fromarray(image).resize((560, 560), Image.Resampling.BICUBIC)
    cover = np.pad(np.asarray(product), 80)[..., np.newaxis] / 255
    pixels = (1 - cover) * np.array([232, 226, 216]) + cover * 20
    return Image.fromarray(pixels.astype(np.uint8))


def write_prediction(run: Run) -> None:
    """Draw the run's predictions for the second validation image of three classes."""
    data: Any = open_data(run)
    data.setup("validate")
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for name in PHOTOGRAPHED:
            position = np.flatnonzero(data.val.labels.numpy() == CLASSES.index(name))[1]
            names.append(str(Path(folder, f"{name.lower()}.png")))
            photo(data.val.images[position].numpy()).save(names[-1])
        save = ["--save", str(IMAGES / "prediction.png"), "--force"]
        command = [sys.executable, "-m", "fashion.predict", str(run.folder), *names, *save]
        subprocess.run(command, check=True)


def steps(folder: Path, table: Table) -> list[Comparison]:
    """Compare each row of a table with the row below it; p-values corrected for these."""
    found = []
    for row, below in zip(table.rows, table.rows[1:], strict=False):
        comparisons = compare([folder], baseline=below.name).comparisons
        found += [comparison for comparison in comparisons if comparison.name == row.name]
    corrected = holm([step.p_value for step in found])
    return [step._replace(p_holm=p) for step, p in zip(found, corrected, strict=True)]


def write_steps(folder: Path) -> None:
    table = compare([folder])
    raw: list[dict[str, Any]] = [
        {"from": below.name, **step._asdict()}
        for below, step in zip(table.rows[1:], steps(folder, table), strict=True)
    ]
    with atomic_write(IMAGES / "steps.json") as file:
        file.write((json.dumps(raw, indent=2) + "\n").encode())


def baselines() -> Figure:
    """Draw the baselines from the raw values, and the steps between them from steps.json."""
    raw = json.loads((IMAGES / "steps.json").read_text(encoding="utf-8"))
    names = [raw[0]["name"], *(step.pop("from") for step in raw)]
    found = [Comparison(**({"p_welch": None} | step)) for step in raw]
    intervals = [
        seed_interval(
            [
                json.loads(path.read_text(encoding="utf-8"))["val/acc"]
                for path in (RESULTS / "baselines" / name).glob("seed-*.json")
            ]
        )
        for name in names
    ]
    return figures.baselines(
        names,
        [each.mean for each in intervals],
        [None if e.low is None or e.high is None else (e.low, e.high) for e in intervals],
        [(difference_text(step), step.significant) for step in found],
        "minus the row below, pp (95 % interval)",
    )


def core_minutes(metrics: dict[str, Any]) -> float:
    threads = metrics.get("threads", 1)  # the oldest runs, of one thread, do not name it
    return float(metrics["seconds"] * threads / 60)


def epoch_budget() -> Figure:
    """Draw test accuracy against core-minutes: the epoch budgets with erasing, and `record`."""

    def raw(pattern: str) -> list[dict[str, Any]]:
        paths = sorted(RESULTS.glob(pattern))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    runs = defaultdict(list)
    for metrics in raw("epoch-budget-erasing/*/seed-*.json"):
        runs[metrics["epochs"]].append((core_minutes(metrics), metrics["test/acc"]))
    record = raw("record/seed-*.json")
    alone = min(map(core_minutes, record))  # the other runs shared the machine
    others = {
        text: (alone, statistics.mean(metrics[key] for metrics in record))
        for text, key in (("record", "test/acc"), ("record, ten views", "test/acc_shift"))
    }
    return figures.budget_curve(runs, others, PEERS)


def write(name: str, drawn: Figure | Image.Image) -> None:
    with atomic_write(IMAGES / f"{name}.png") as file:
        if isinstance(drawn, Figure):
            drawn.savefig(file, format="png", dpi=120)
        else:
            drawn.save(file, format="png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baselines", type=Path, metavar="FOLDER", help="the baselines' runs")
    parser.add_argument("--run", type=Path, help="a run folder")
    parser.add_argument("--search", type=Path, metavar="FOLDER", help="a search's folder")
    options = parser.parse_args()
    with cli_errors():
        if options.baselines:
            run = deck_run(options.baselines)
            evaluation = evaluate(load_classifier(run), open_data(run), "val")
            for name, figure in predictions(evaluation).items():
                write(name, figure)
            write_steps(options.baselines)
        if options.run:
            run = Run.open(options.run)
            page = write_report(run, evaluate(load_classifier(run), open_data(run), "val"))
            write("report", screenshot(page, REPORT_SIZE))
            write_prediction(run)
        if options.search:
            write("search", screenshot(options.search / "search.html", SEARCH_SIZE))
        write("baselines", baselines())
        write("epoch-budget", epoch_budget())
        print(f"Written to {IMAGES}.")


if __name__ == "__main__":
    main()
