"""Check that fifty runs in one process, with their reports, leave nothing behind in it.

python scripts/checks/growth.py [--runs 50]

Reads this process's memory, open files and threads after each run. Fails where, since the fifth,
memory grew by more than 1.5 MB per run (torch keeps most of 1 MB of each network that it traces
for TensorBoard's graph), or any file or thread remained. Writes results/growth.json. A few
seconds per run.
"""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fashion import train
from fashion.runs.provenance import provenance

SETTLED = 5  # runs, after which everything is loaded
MOST = {"bytes": 1_500_000, "open_files": 0, "threads": 0}  # more, per run
FOOTPRINTS: list[dict[str, int]] = []


class Footprint(Callback):
    """Hydra calls it after each run of the grid."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:  # noqa: ARG002
        gc.collect()
        process = psutil.Process()
        footprint = {
            "bytes": process.memory_info().rss,
            "open_files": process.num_fds(),
            "threads": process.num_threads(),
        }
        FOOTPRINTS.append(footprint)
        print(f"run {len(FOOTPRINTS)}: {footprint}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=50)
    runs = parser.parse_args().runs
    if runs <= SETTLED:
        parser.error(f"--runs must be more than the {SETTLED} after which everything is loaded")
    # Hydra finds the class by its module's name, and must not find a second list of footprints.
    sys.modules["growth"] = sys.modules["__main__"]
    with tempfile.TemporaryDirectory() as scratch:
        sys.argv[1:] = [
            "--multirun",
            "trainer=smoke",
            "trainer.enable_progress_bar=false",
            "report=true",
            f"seed=range({runs})",
            f"hydra.sweep.dir={scratch}",
            "+hydra.callbacks.footprint._target_=growth.Footprint",
        ]
        train.main()
    settled, last = FOOTPRINTS[SETTLED - 1], FOOTPRINTS[-1]
    growth = {key: (last[key] - settled[key]) / (runs - SETTLED) for key in settled}
    result = {**provenance(), "footprints": FOOTPRINTS}
    Path("results/growth.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"From run {SETTLED} to run {runs}, per run: {growth}")
    if any(growth[key] > MOST[key] for key in MOST):
        sys.exit(f"error: more than {MOST}")


if __name__ == "__main__":
    main()
