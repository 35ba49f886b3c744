"""Kill a small real training at random moments, resume it, and compare it with one left alone.

python scripts/checks/resume.py [--kills 20]

The deck's model trains few steps per epoch, so that a good part of the time goes into writing its
checkpoints of 66 MB. Each trial kills (-9) one run at a moment drawn from the whole time that the
undisturbed run takes, imports and report included, then resumes it with `resume=RUN` to its end.
Prints a line per trial and writes results/resume.json. About half a minute per trial.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion.runs.files import SCRATCH
from fashion.runs.provenance import provenance
from fashion.runs.run import Run

TRAINING = (
    "model=best",
    "trainer.max_epochs=10",
    "trainer.limit_train_batches=30",
    "trainer.limit_val_batches=4",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "trainer.threads=2",  # measured, it might differ between runs
    "optimizer.schedule=cosine",
)
TIMED = ("seconds", "images_per_second")


def start(*overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fashion.train", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"A run that nobody killed ended with status {process.returncode}:\n{errors}")


def content(folder: Path) -> dict[str, Any]:
    """Return all that must be equal: checkpoints, metrics, history and predictions."""
    run = Run(folder)
    found: dict[str, Any] = {
        "metrics": {key: value for key, value in run.metrics.items() if key not in TIMED},
        "probabilities": torch.tensor(run.predictions("val").probabilities),
        "history": {key: values for key, values in run.history.items() if key != "seconds"},
    }
    for path in (run.best_checkpoint, run.last_checkpoint):
        checkpoint = torch.load(path, weights_only=True)
        for key in ("seconds", "training_seconds"):
            del checkpoint["callbacks"]["Timing"][key]
        # Lightning sets it when it resumes, also where the loop is not in use.
        del checkpoint["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
        found[path.name] = checkpoint
    return found


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def differences(folder: Path, whole: Path) -> list[str]:
    """Return in what the resumed run differs from the one that was left alone."""
    found = []
    ours, theirs = content(folder), content(whole)
    for key, value in theirs.items():
        if not same(ours[key], value):
            found.append(f"{key} differs")
    logs = [EventAccumulator(str(path)).Reload() for path in (folder, whole)]
    tags = [set(log.Tags()["scalars"]) for log in logs]
    if tags[0] != tags[1]:
        found.append("other curves")
    for tag in sorted(tags[0] & tags[1]):
        steps = [event.step for event in logs[0].Scalars(tag)]
        if steps != [event.step for event in logs[1].Scalars(tag)]:
            found.append(f"{tag}: a point is missing or doubled")
    if left := [path.name for path in folder.rglob(f"*{SCRATCH}")]:
        found.append(f"left behind: {', '.join(left)}")
    return found


def moment(folder: Path) -> str:
    """Return where in the run the kill hit, by what it left."""
    run = Run(folder)
    if list(run.checkpoints.glob(f".*{SCRATCH}")):
        return "writing a checkpoint"
    if run.finished:
        return "after the metrics were written"
    if not run.last_checkpoint.exists():
        return "before the first checkpoint"
    epochs = torch.load(run.last_checkpoint, weights_only=True)["epoch"] + 1
    return f"after {epochs} whole epochs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)  # noqa: S311 - moments, no secrets
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        begun = time.monotonic()
        finish(start(*TRAINING, f"hydra.run.dir={whole}"))
        duration = time.monotonic() - begun
        while len(trials) < arguments.kills:
            folder = Path(scratch) / f"trial{len(trials)}"
            process = start(*TRAINING, f"hydra.run.dir={folder}")
            after = draw.uniform(0, duration)
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
            if process.returncode != -signal.SIGKILL:
                shutil.rmtree(folder)
                continue  # it was faster than the one left alone, and had ended
            if not (folder / ".hydra" / "config.yaml").exists():
                continue  # still importing: there is no run to resume
            where = moment(folder)
            finish(start(f"resume={folder}"))
            found = differences(folder, whole)
            trials.append({"after_seconds": after, "hit": where, "differences": found})
            print(f"{len(trials):3}  {after:5.1f} s  {where:32} {'; '.join(found) or 'equal'}")
    equal = sum(not trial["differences"] for trial in trials)
    print(f"\n{equal} of {len(trials)} equal to the run left alone ({duration:.1f} s)")
    for where, count in Counter(trial["hit"] for trial in trials).most_common():
        print(f"  {count:3} killed {where}")
    record = {"equal": equal, "trials": trials, "seconds_alone": duration, **provenance()}
    Path("results/resume.json").write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(equal != len(trials))


if __name__ == "__main__":
    main()
