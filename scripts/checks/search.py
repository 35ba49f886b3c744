"""Kill a search at random moments, start it again, and check that nothing was lost.

python scripts/checks/search.py [--kills 20] [--trials 40] [--minutes 25]

Two workers train the dense network for three short epochs per trial, on the real data. Three kinds
of kill (-9) take turns: one of the workers, the command itself, and all of them at once; each comes
at a moment drawn from the seconds after at least one worker has begun to train. At the end the
search is left alone to its total. What had finished at a kill must be there at the end, unchanged.

Prints a line per kill and writes results/check_search.json.
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
from pathlib import Path
from typing import Any

import numpy as np
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from fashion.runs.files import atomic_write
from fashion.runs.provenance import provenance
from fashion.search.study import Sampler, open_study, trial_run
from fashion.search.trials import ATTEMPTS, Trials, failure

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
    *("workers=2", "improvement=null", "pruning.min_resource=2", "confirm.seeds=0"),
)
MANY = 10_000  # trials: the last kill too finds something to do
Finished = dict[int, tuple[str, float | None, str]]


def start(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    space = folder.parent / "conf" / "search" / "killed.yaml"
    space.parent.mkdir(parents=True, exist_ok=True)
    space.write_text(SPACE)
    paths = (
        f"hydra.searchpath=[file://{space.parent.parent}]",
        *(f"folder={folder}", f"data.root={ROOT / 'data'}"),
    )
    with folder.with_name("output.log").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "fashion.tune", *TRAINING, *paths, f"trials={trials}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def children(process: subprocess.Popen[bytes]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()]


def trials_of(folder: Path) -> Trials:
    if not (folder / "study.db").exists():
        return Trials([])
    sampler = Sampler(0, {}, group=True)
    storage = f"sqlite:///{folder}/study.db"
    return Trials.of(open_study(storage, "killed", sampler=sampler, pruner=NopPruner()))


def finished(folder: Path) -> Finished:
    """Return each finished trial's state, value, and a digest of its run folder's results."""
    found = {}
    for trial in trials_of(folder).finished:
        digest = hashlib.sha256()
        for name in ("metrics.json", "val.npz", ".hydra/config.yaml", "checkpoints/best.ckpt"):
            path = folder / "trials" / str(trial.number) / name
            if path.exists():
                digest.update(f"{name} {path.stat().st_mtime_ns}".encode() + path.read_bytes())
        found[trial.number] = (trial.state.name, trial.value, digest.hexdigest())
    return found


def begun(folder: Path, since: float) -> bool:
    """Whether a trial is running that a process started `since` has begun or resumed."""
    return any(
        trial.user_attrs.get(ATTEMPTS, [[0, 0.0, None]])[-1][1] > since
        for trial in trials_of(folder).running
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
        time.sleep(0.05)  # without their parent they end


def zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def violations(folder: Path, total: int, seen: Finished) -> list[str]:
    """Return what a search that had not been killed would not show."""
    found = []
    trials, after = trials_of(folder), finished(folder)
    if len(trials) != total or len(after) != total:
        found.append(f"{len(trials)} trials, {len(after)} of them finished, instead of {total}")
    if lost := sorted(number for number in seen if after.get(number) != seen[number]):
        found.append(f"finished before a kill, and changed or missing at the end: {lost}")
    for trial in trials:
        run = trial_run(folder, trial.number)
        if trial.state == TrialState.COMPLETE and (
            run.config.optimizer.lr != trial.params["optimizer.lr"]
            or run.metrics["val/acc"] != trial.value
        ):
            found.append(f"trial {trial.number} is not what its run folder holds")
    return found


def kill_one(
    number: int,
    process: subprocess.Popen[bytes],
    started: float,
    folder: Path,
    choice: np.random.Generator,
) -> tuple[dict[str, Any], Finished]:
    """Wait until it trains, and a random time more; then kill. Return what had finished by then."""
    began = time.time()
    while not begun(folder, started) or len(children(process)) < 2:  # noqa: PLR2004
        time.sleep(0.1)
        if time.time() > began + 120 or process.poll() is not None:
            sys.exit(f"No trial begins; see {folder.with_name('output.log')} and {folder}/workers/")
    time.sleep(choice.uniform(0, 16))
    kind = KINDS[number % len(KINDS)]
    kill(kind, process, choice)
    seconds, done = time.time() - began, finished(folder)
    print(f"{number + 1:>4}  {kind:<12} {seconds:>8.1f} {len(done):>9}", flush=True)
    return {"kind": kind, "seconds": seconds, "finished": len(done)}, done


def check(folder: Path, kills: int, trials: int, end: float) -> tuple[dict[str, Any], list[str]]:
    """Return what happened, and what is wrong with it."""
    choice = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    seen: Finished = {}
    started, process = time.time(), start(folder, MANY)
    try:
        while len(rows) < kills and time.time() < end:
            if process.poll() is not None:
                started, process = time.time(), start(folder, MANY)
            row, done = kill_one(len(rows), process, started, folder, choice)
            rows.append(row)
            seen = done | seen
        process.terminate()
        process.wait()
        total = max(trials, len(trials_of(folder)))
        process = start(folder, total)
        process.wait(max(end - time.time(), 60))
        found = violations(folder, total, seen)
        if process.returncode:
            found.append(f"the last command ended with status {process.returncode}")
        if len(rows) < kills:
            found.append(f"only {len(rows)} kills in the time given")
    finally:
        if process.poll() is None:
            kill("everything", process, choice)
    every = trials_of(folder)
    summary = {
        "kills": rows,
        "trials": len(every),
        "attempts": sum(len(trial.user_attrs.get(ATTEMPTS, ())) for trial in every),
        "finished_before_a_kill": len(seen),
        "failed": [failure(trial) for trial in every.failed],
        "violations": found,
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
    summary |= provenance()  # before a file is begun here
    with atomic_write(Path("results/check_search.json")) as file:
        file.write((json.dumps(summary, indent=2) + "\n").encode())
    print(
        f"{len(summary['kills'])} kills; {summary['trials']} trials in {summary['attempts']} "
        f"attempts; {summary['finished_before_a_kill']} had finished before a kill; "
        f"{len(summary['failed'])} failed."
    )
    if found:
        sys.exit("\n".join(["Violations:", *found, f"The search is in {scratch}"]))
    shutil.rmtree(scratch)
    print("Nothing was lost, doubled or overwritten.")


if __name__ == "__main__":
    main()
