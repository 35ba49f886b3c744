"""Draw results/pictures/.

    python scripts/pictures.py logs/baselines    all, from the runs of `scripts/reproduce baselines`
    python scripts/pictures.py                   epoch-budget.png alone, from results/

baselines.png         validation accuracy of the baselines; steps.json: the differences between them
confusion_matrix.png  of the deck's network (model=best, lowest seed; validation)
mistakes.png          its most confident mistakes
report.png            a screenshot of its report.html, taken with Chromium
epoch-budget.png      test accuracy against minutes, from results/{fast,record,epoch-budget}/
"""

import argparse
import io
import json
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from fashion.errors import UserError, cli_errors
from fashion.report import figures
from fashion.report.evaluation import Evaluation, evaluate, open_data
from fashion.report.page import write_report
from fashion.report.statistics import holm
from fashion.report.table import Comparison, Table, compare, p_value
from fashion.runs.files import atomic_write
from fashion.runs.run import Run
from fashion.training.classifier import load_classifier

RESULTS = Path("results")
PICTURES = RESULTS / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCREENSHOT_SIZE = (1200, 1290)  # pixels
SCREENSHOT_COLORS = 128  # of the palette: keeps the file below 300 kB
# Published test accuracies; results/README.md says how each was measured.
PEERS = {
    "ResNet-20 + random erasing, 300 epochs: 95.55 %": 0.9555,
    "fast.ai, 4.9 M parameters, 20 epochs: 94.3 %": 0.943,
    "two convolutions, augmented (cmasch): 93.4 %": 0.934,
    "the deck: 90 %": 0.90,
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


def screenshot(page: Path) -> Image.Image:
    """Return the top of an HTML page as Chromium shows it.

    Raises:
        UserError: there is no browser.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"No browser is on PATH; install one of {', '.join(BROWSERS)}.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.png")
        command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
        size = "--window-size={},{}".format(*SCREENSHOT_SIZE)
        subprocess.run(
            [*command, size, f"--screenshot={file}", page.resolve().as_uri()],
            check=True,
            capture_output=True,
            timeout=120,
        )
        picture = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
    return picture.quantize(SCREENSHOT_COLORS)


def steps(folder: Path, table: Table) -> list[Comparison]:
    """Compare each row of a table with the row below it; p-values corrected for these."""
    found = []
    for row, below in zip(table.rows, table.rows[1:], strict=False):
        comparisons = compare([folder], baseline=below.name).comparisons
        found += [comparison for comparison in comparisons if comparison.name == row.name]
    corrected = holm([step.p_value for step in found])
    return [step._replace(p_holm=p) for step, p in zip(found, corrected, strict=True)]


def baselines(table: Table, found: list[Comparison]) -> Figure:
    """Draw the rows of a table, and the steps between them."""
    return figures.ladder(
        [row.name for row in table.rows],
        [row.accuracy / 100 for row in table.rows],
        [
            None if row.low is None or row.high is None else (row.low / 100, row.high / 100)
            for row in table.rows
        ],
        [(_text(step), step.significant) for step in found],
    )


def _text(step: Comparison) -> str:
    chance = p_value(step.p_holm)
    chance = chance if chance.startswith("<") else f"= {chance}"
    doubt = "" if step.significant else "\nnot significant"
    return f"{step.difference:+.2f} pp ({step.low:+.2f} to {step.high:+.2f}), p {chance}{doubt}"


def epoch_budget() -> Figure:
    """Draw test accuracy against minutes from the raw values of all epoch budgets."""
    runs = defaultdict(list)
    for pattern in ("fast/seed-*.json", "record/seed-*.json", "epoch-budget/*/seed-*.json"):
        for path in sorted(RESULTS.glob(pattern)):
            metrics = json.loads(path.read_text(encoding="utf-8"))
            runs[metrics["epochs"]].append((metrics["seconds"] / 60, metrics["test/acc"]))
    return figures.budget_curve(runs, PEERS)


def write(name: str, figure: Figure) -> None:
    with atomic_write(PICTURES / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="the baselines' runs"
    )
    folder = parser.parse_args().folder
    with cli_errors():
        write("epoch-budget", epoch_budget())
        if folder is not None:
            run = deck_run(folder)
            table = compare([folder])
            found = steps(folder, table)
            evaluation = evaluate(load_classifier(run), open_data(run), "val")
            drawn = predictions(evaluation) | {"baselines": baselines(table, found)}
            for name, figure in drawn.items():
                write(name, figure)
            picture = screenshot(write_report(run, evaluation))
            with atomic_write(PICTURES / "report.png") as file:
                picture.save(file, format="png", optimize=True)
            raw: list[dict[str, Any]] = [
                {"from": below.name, **step._asdict()}
                for below, step in zip(table.rows[1:], found, strict=True)
            ]
            with atomic_write(PICTURES / "steps.json") as file:
                file.write((json.dumps(raw, indent=2) + "\n").encode())
        print(f"Written to {PICTURES}.")


if __name__ == "__main__":
    main()
