"""Fifty runs in one process, a grid of smoke runs with their reports: does anything pile up?

python scripts/check_growth.py [--runs 50]

Reads this process's memory, open files and threads after each run, and fails where those after the
last exceed those after the fifth by more than 5 %. Writes results/growth.json. A few seconds a run.
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
from fashion.run import provenance

SETTLED = 5  # runs, after which everything is loaded
MOST = 1.05
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
    # Hydra finds the class by its module's name, and must not find a second list of footprints.
    sys.modules["check_growth"] = sys.modules["__main__"]
    with tempfile.TemporaryDirectory() as scratch:
        sys.argv[1:] = [
            "--multirun",
            "trainer=smoke",
            "report=true",
            f"seed=range({runs})",
            f"hydra.sweep.dir={scratch}",
            "+hydra.callbacks.footprint._target_=check_growth.Footprint",
        ]
        train.main()
    settled, last = FOOTPRINTS[SETTLED - 1], FOOTPRINTS[-1]
    growth = {key: last[key] / settled[key] for key in settled}
    result = {**provenance(), "growth": growth, "footprints": FOOTPRINTS}
    Path("results/growth.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"After {runs} runs as a share of those after {SETTLED}: {growth}")
    if max(growth.values()) > MOST:
        sys.exit(f"error: more than {MOST}")


if __name__ == "__main__":
    main()
