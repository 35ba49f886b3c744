"""Kills a search at random moments, starts it again, and looks whether anything was lost.

python scripts/check_search.py [--kills 20] [--trials 40] [--minutes 25]

Two workers train the dense network for three short epochs a trial, on the real data. Three kinds of
kill (-9) take turns: one of the workers, the command itself, and all of them at once; each comes at
a moment drawn from the seconds after at least one worker has begun to train. At the end the search
is left alone to its total. Whatever had finished at a kill must be there at the end, unchanged.

Prints a line a kill and writes results/check_search.json.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from fashion.runs.run import Run, provenance
from fashion.search.study import KILLED, OVERSHOOT, REASON, distinct, open_study, origin

ROOT = Path(__file__).parent.parent
KINDS = ("worker", "command", "everything")
SPACE = """
optimizer.lr: {float: [0.0001, 0.03], log: true}
model.network.dense: {length: [1, 2], int: [16, 128], log: true}
model.network.dropout: {float: [0.0, 0.7], when: {model.network.dense.length: 1}}
"""
TRAINING = (
    *("model=mlp", "data.batch_size=64", "trainer.max_epochs=3", "trainer.accelerator=cpu"),
    *("trainer.limit_train_batches=300", "trainer.limit_val_batches=8", "search=killed"),
    *("workers=2", "heartbeat=1", "improvement=null", "pruning.min_resource=2", "confirm.seeds=0"),
)
MANY = 10_000  # trials: the last kill too finds something to do
Finished = dict[int, tuple[str, float | None, str]]


def start(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    space = folder.parent / "conf" / "search" / "killed.yaml"
    space.parent.mkdir(parents=True, exist_ok=True)
    space.write_text(SPACE)
    folder.mkdir(exist_ok=True)
    places = (
        f"hydra.searchpath=[file://{space.parent.parent}]",
        *(f"folder={folder}", f"data.root={ROOT / 'data'}"),
    )
    with (folder / "output.log").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "fashion.tune", *TRAINING, *places, f"trials={trials}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def children(process: subprocess.Popen[bytes]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()]


def attempts(folder: Path) -> list[FrozenTrial]:
    if not (folder / "study.db").exists():
        return []
    study = open_study(
        f"sqlite:///{folder}/study.db",
        "killed",
        seed=0,
        defaults={},
        conditional=True,
        halving=None,
        heartbeat=1,
    )
    return study.trials


def finished(folder: Path) -> Finished:
    """Of each finished trial its state and value, and a fingerprint of its run folder's results."""
    found = {}
    for trial in distinct(attempts(folder)):
        if trial.state.is_finished():
            digest = hashlib.sha256()
            for name in ("metrics.json", "val.npz", ".hydra/config.yaml", "checkpoints/best.ckpt"):
                path = folder / "trials" / str(origin(trial)) / name
                if path.exists():
                    digest.update(f"{name} {path.stat().st_mtime_ns}".encode() + path.read_bytes())
            found[origin(trial)] = (trial.state.name, trial.value, digest.hexdigest())
    return found


def begun(folder: Path, since: datetime) -> bool:
    """Whether a trial runs that a process started `since` has begun: others may be dead."""
    return any(
        trial.state == TrialState.RUNNING and (trial.datetime_start or since) > since
        for trial in attempts(folder)
    )


def kill(kind: str, process: subprocess.Popen[bytes], choice: np.random.Generator) -> None:
    workers = children(process)
    if kind == "worker":
        os.kill(int(choice.choice(workers)), signal.SIGKILL)
        return
    process.kill()
    if kind == "everything":
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{worker}").exists() and not zombie(worker) for worker in workers):
        time.sleep(0.05)  # without their parent they put their trials back and end


def zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def faults(folder: Path, total: int, seen: Finished) -> list[str]:
    """What a search that nobody had killed would not show."""
    found = []
    trials, after = distinct(attempts(folder)), finished(folder)
    if len(trials) != total or len(after) != total:
        found.append(f"{len(trials)} trials, {len(after)} of them finished, instead of {total}")
    if lost := sorted(number for number in seen if after.get(number) != seen[number]):
        found.append(f"finished before a kill, and changed or missing at the end: {lost}")
    numbers = [origin(trial) for trial in trials]
    if len(set(numbers)) < len(numbers):
        found.append("a trial was finished twice")
    for trial in trials:
        run = Run(folder / "trials" / str(origin(trial)))
        if trial.state == TrialState.COMPLETE and (
            run.config.optimizer.lr != trial.params["optimizer.lr"]
            or run.metrics["val/acc"] != trial.value
        ):
            found.append(f"trial {origin(trial)} is not what lies in its folder")
    return found


def kill_one(
    number: int,
    process: subprocess.Popen[bytes],
    started: datetime,
    folder: Path,
    choice: np.random.Generator,
) -> tuple[dict[str, Any], Finished]:
    """Wait until it trains, and a random time more; then kill. What had finished by then."""
    began = time.time()
    while not begun(folder, started) or len(children(process)) < 2:  # noqa: PLR2004
        time.sleep(0.1)
        if time.time() > began + 120 or process.poll() is not None:
            sys.exit(f"No trial begins; see {folder}/output.log and {folder}/workers/")
    time.sleep(choice.uniform(0, 16))
    kind = KINDS[number % len(KINDS)]
    kill(kind, process, choice)
    seconds, done = time.time() - began, finished(folder)
    print(f"{number + 1:>4}  {kind:<12} {seconds:>8.1f} {len(done):>9}", flush=True)
    return {"kind": kind, "seconds": seconds, "finished": len(done)}, done


def check(folder: Path, kills: int, trials: int, end: float) -> tuple[dict[str, Any], list[str]]:
    """What happened, and what is wrong with it."""
    choice = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    seen: Finished = {}
    started, process = datetime.now(), start(folder, MANY)  # noqa: DTZ005 - as Optuna has it
    try:
        while len(rows) < kills and time.time() < end:
            if process.poll() is not None:
                started, process = datetime.now(), start(folder, MANY)  # noqa: DTZ005
            row, done = kill_one(len(rows), process, started, folder, choice)
            rows.append(row)
            seen = done | seen
        process.terminate()
        process.wait()
        total = max(trials, len(distinct(attempts(folder))))
        process = start(folder, total)
        process.wait(max(end - time.time(), 60))
        found = faults(folder, total, seen)
        if process.returncode:
            found.append(f"the last command ended with status {process.returncode}")
        if len(rows) < kills:
            found.append(f"only {len(rows)} kills in the time given")
    finally:
        if process.poll() is None:
            kill("everything", process, choice)
    every = attempts(folder)
    last = distinct(every)
    summary = {
        "kills": rows,
        "trials": len(last),
        "attempts": sum(trial.user_attrs.get(REASON) != OVERSHOOT for trial in every),
        "finished_before_a_kill": len(seen),
        "failed": [t.user_attrs.get(REASON, KILLED) for t in last if t.state == TrialState.FAIL],
        "faults": found,
    }
    return summary, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=25, help="after which it gives up")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="search-"))
    print("kill  kind          after s  finished")
    end = time.time() + 60 * arguments.minutes
    summary, found = check(scratch / "search", arguments.kills, arguments.trials, end)
    Path("results").mkdir(exist_ok=True)
    path = Path("results/check_search.json")
    path.write_text(json.dumps(summary | provenance(), indent=2) + "\n")
    print(
        f"{len(summary['kills'])} kills; {summary['trials']} trials in {summary['attempts']} "
        f"attempts; {summary['finished_before_a_kill']} had finished before a kill; "
        f"{len(summary['failed'])} failed."
    )
    if found:
        sys.exit("\n".join(["Faults:", *found, f"The search lies in {scratch}"]))
    shutil.rmtree(scratch)
    print("Nothing was lost, doubled or overwritten.")


if __name__ == "__main__":
    main()
