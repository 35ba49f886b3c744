"""Draw results/pictures/dial.png from results/fast/, record/ and dial/ (scripts/reproduce dial)."""

import json
from collections import defaultdict
from pathlib import Path

from fashion.report import figures

RESULTS = Path("results")
FOLDERS = ("fast", "record", "dial")
# On the test set, as published; how honest each is, README says.
PEERS = {
    "ResNet-20 + random erasing, 300 epochs: 95.55 %": 0.9555,
    "fast.ai, 4.9 M parameters, 20 epochs: 94.3 %": 0.943,
    "two convolutions, augmented (cmasch): 93.4 %": 0.934,
    "the deck: 90 %": 0.90,
}


def main() -> None:
    runs = defaultdict(list)
    for path in RESULTS.glob("*/*experiment-*.json"):
        if path.parent.name in FOLDERS:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            point = metrics["seconds"] / 60, metrics["test/acc"]
            runs[metrics["epochs"]].append(point)
    figures.budget_curve(runs, PEERS).savefig(RESULTS / "pictures" / "dial.png", dpi=120)


if __name__ == "__main__":
    main()
