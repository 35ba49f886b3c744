"""Measure what Optuna, the storage and the locks cost a search, without any training.

python scripts/checks/simulate_search.py cost        seconds per trial at 10, 100 and 1,000 trials
python scripts/checks/simulate_search.py workers     64 sleeping workers; a third is killed

A trial draws from conf/search/deck.yaml, reports 15 epochs after which it may be pruned, and takes
no time (cost) or sleeps eight seconds per epoch (workers), as if it trained elsewhere. All workers
sample on this machine's cores, where each of a cluster's would have its own. SQLite and the run
folders are on the disk here; PostgreSQL is a server on loopback that the script starts (Debian:
apt-get install postgresql) with its usual settings. Writes results/simulate_search/NAME.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import postgresql
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna import TrialPruned
from optuna.pruners import SuccessiveHalvingPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from fashion.config import CONF, register_resolvers
from fashion.runs.files import atomic_write
from fashion.runs.provenance import provenance
from fashion.runs.run import Run
from fashion.search.space import Space
from fashion.search.study import Sampler, open_study, run_trials
from fashion.search.trials import ATTEMPTS, Limits, Trials

EPOCHS = 15
TRIAL_SECONDS = 60  # length of the trial that costs are given as a fraction of
COUNTS = (10, 100, 1000)
SLEPT = "slept"


def opened(url: str) -> tuple[Study, Space]:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["name=simulated", "sweep=simulated"])
    entries: Any = OmegaConf.to_container(OmegaConf.load(CONF / "search/deck.yaml"))
    space = Space.parse(entries, config)
    sampler = Sampler(0, space.defaults(config), group=space.conditional)
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return open_study(url, "simulated", sampler=sampler, pruner=pruner), space


def objective(space: Space, pause: float) -> Callable[[Trial, Run], float]:
    """Accuracies that depend on the learning rate and the depth, and rise with the epochs."""

    def run(trial: Trial, _: Run) -> float:
        values = space.suggest(trial)
        layers = values.get("model.network.conv.length", 1)
        rate = values["optimizer.lr"]
        assert isinstance(layers, int) and isinstance(rate, float)  # noqa: S101, PT018
        best = 0.9 + 0.01 * layers - 3 * abs(rate - 0.002)
        slept = 0.0
        known = Trials.of(trial.study)[trial.number].intermediate_values  # of a killed attempt
        for epoch in range(1, EPOCHS + 1):
            time.sleep(pause)
            slept += pause
            if epoch not in known:
                trial.report(best - 0.1 / epoch, epoch)
            if trial.should_prune():
                trial.set_user_attr(SLEPT, slept)
                raise TrialPruned
        trial.set_user_attr(SLEPT, slept)
        return best

    return run


def cost(folder: Path, url: str) -> dict[str, float]:
    """Return seconds per trial, the mean of the last tenth before each count, of one worker."""
    study, space = opened(url)
    result = {}
    for count in COUNTS:
        early = count - max(count // 10, 5)
        run_trials(study, folder, objective(space, 0), Limits(early))
        began = time.perf_counter()
        run_trials(study, folder, objective(space, 0), Limits(count))
        result[str(count)] = (time.perf_counter() - began) / (count - early)
    return result


def costs() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["sqlite"] = cost(Path(folder), f"sqlite:///{folder}/study.db")
    with postgresql.server() as url, tempfile.TemporaryDirectory() as folder:
        found["postgresql"] = cost(Path(folder), url)
    print("seconds per trial" + "".join(f"{count:>9,} trials" for count in COUNTS))
    for name, by_count in found.items():
        print(f"{name:<17}" + "".join(f"{by_count[str(count)]:>16.3f}" for count in COUNTS))
    worst = max(max(by_count.values()) for by_count in found.values())
    print(f"At worst {100 * worst / TRIAL_SECONDS:.2f} % of a trial of {TRIAL_SECONDS} seconds.")
    return {"seconds_per_trial": found, "worst_fraction_of_a_minute": worst / TRIAL_SECONDS}


def workers(count: int, trials: int, pause: float) -> dict[str, Any]:
    with (
        postgresql.server(connections=4 * count) as url,
        tempfile.TemporaryDirectory() as folder,
    ):
        study, _ = opened(url)
        command = [sys.executable, __file__, "worker", url, folder, str(trials), str(pause)]
        began = time.time()
        processes = [subprocess.Popen(command) for _ in range(count)]

        def until_trials(least: int) -> None:
            while len(Trials.of(study).finished) < least:
                time.sleep(0.2)

        until_trials(count)  # all are at work
        working = time.time()
        until_trials(trials // 2)
        half = time.time()
        for process in processes[: count // 3]:
            process.kill()
        for process in processes:
            process.wait()
        seconds = time.time() - began
        every = Trials.of(study)
    # One attempt only, between the moment when all are at work and the kills.
    timed = [(*span(t), t.user_attrs[SLEPT]) for t in every if len(t.user_attrs[ATTEMPTS]) == 1]
    inside = [each for each in timed if each[0] > working and each[1] < half]
    slept = sum(
        max(min(end, half) - max(start, working), 0.0) * sleep / max(end - start, 1e-9)
        for start, end, sleep in timed
    )
    overheads = [end - start - sleep for start, end, sleep in inside]
    resumed = [trial for trial in every if len(trial.user_attrs[ATTEMPTS]) > 1]
    result = {
        "workers": count,
        "killed_workers": count // 3,
        "seconds_per_epoch": pause,
        "trials": len(every),
        "finished": len(every.completed) + len(every.pruned),
        "killed_trials": len(resumed),
        "of_them_finished_later": sum(trial.value is not None for trial in resumed),
        "seconds_until_resumed": statistics.mean(
            trial.user_attrs[ATTEMPTS][1][1] - half for trial in resumed
        ),
        "seconds": seconds,
        "storage_seconds_per_trial": statistics.mean(overheads),
        "storage_seconds_per_trial_median": statistics.median(overheads),
        "sleep_seconds_per_trial": statistics.mean(sleep for _, _, sleep in inside),
        "worker_cpu_seconds_per_trial": sum(
            resource.getrusage(resource.RUSAGE_CHILDREN)[:2]  # user, system; imports too
        )
        / len(every),
        "idle_fraction": 1 - slept / (count * (half - working)),
        "trials_timed": len(inside),
    }
    for key, value in result.items():
        print(f"{key:<34} {value:.4g}")
    return result


def span(trial: FrozenTrial) -> tuple[float, float]:
    """Return start and end of a trial's last attempt, in seconds since 1970."""
    _, start, end = trial.user_attrs[ATTEMPTS][-1]
    return start, end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("cost")
    many = kinds.add_parser("workers")
    many.add_argument("--count", type=int, default=64)
    many.add_argument("--trials", type=int, default=400)
    many.add_argument("--pause", type=float, default=8.0, help="seconds per epoch")
    one = kinds.add_parser("worker", help="used by workers")
    for name, kind in (("url", str), ("folder", Path), ("trials", int), ("pause", float)):
        one.add_argument(name, type=kind)
    arguments = parser.parse_args()
    if arguments.kind == "worker":
        study, space = opened(arguments.url)
        run_trials(
            study, arguments.folder, objective(space, arguments.pause), Limits(arguments.trials)
        )
        return
    found = (
        costs()
        if arguments.kind == "cost"
        else workers(arguments.count, arguments.trials, arguments.pause)
    )
    with atomic_write(Path("results/simulate_search") / f"{arguments.kind}.json") as file:
        file.write((json.dumps(found | provenance(), indent=2) + "\n").encode())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
