"""What Optuna and the storage cost a search, without any training.

python scripts/simulate_search.py cost        seconds a trial at 10, 100 and 1,000 trials
python scripts/simulate_search.py workers     64 workers whose trials sleep; a third is killed

A trial draws from conf/search/deck.yaml, reports 15 epochs that may be pruned, and takes no time
(cost) or sleeps eight seconds an epoch (workers), as if it trained elsewhere. All workers sample on
this machine's cores, where each of a cluster's would have its own. SQLite lies on the disk here;
PostgreSQL is a server on loopback that the script starts (Debian: apt-get install postgresql) with
its usual settings. Writes results/simulate_search/NAME.json.
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
from optuna.study import Study
from optuna.trial import Trial, TrialState

from fashion.runs.run import provenance
from fashion.search.space import Space
from fashion.search.study import (
    REASON,
    Limits,
    distinct,
    open_study,
    origin,
    run_trials,
)
from fashion.train import CONF

EPOCHS = 15
TRIAL_SECONDS = 60  # of the trial that costs are a share of
COUNTS = (10, 100, 1000)
SLEPT = "slept"


def space() -> tuple[Space, dict[str, Any]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["name=simulated"])
    entries: Any = OmegaConf.to_container(OmegaConf.load(CONF / "search/deck.yaml"))
    found = Space.parse(entries, config)
    return found, found.defaults(config)


def opened(url: str, heartbeat: int) -> tuple[Study, Space]:
    found, defaults = space()
    study = open_study(
        url,
        "simulated",
        seed=0,
        defaults=defaults,
        conditional=found.conditional,
        halving=(1, 3),
        heartbeat=heartbeat,
    )
    return study, found


def objective(found: Space, pause: float) -> Callable[[Trial, int], float]:
    """Accuracies that depend on the learning rate and the depth, and rise with the epochs."""

    def run(trial: Trial, _: int) -> float:
        values = found.suggest(trial)
        layers = values.get("model.network.conv.length", 1)
        rate = values["optimizer.lr"]
        assert isinstance(layers, int) and isinstance(rate, float)  # noqa: S101, PT018
        best = 0.9 + 0.01 * layers - 3 * abs(rate - 0.002)
        slept = 0.0
        (this,) = (t for t in trial.study.get_trials(deepcopy=False) if t.number == trial.number)
        known = set(this.intermediate_values)  # by an attempt that was killed
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


def cost(url: str) -> dict[str, float]:
    """Seconds a trial, the mean of the last tenth before each count, by one worker."""
    study, found = opened(url, heartbeat=10)
    result = {}
    for count in COUNTS:
        early = count - max(count // 10, 5)
        run_trials(study, objective(found, 0), Limits(early), deadline=None, first=0, silence=60)
        began = time.perf_counter()
        run_trials(study, objective(found, 0), Limits(count), deadline=None, first=0, silence=60)
        result[str(count)] = (time.perf_counter() - began) / (count - early)
    return result


def costs() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["sqlite"] = cost(f"sqlite:///{folder}/study.db")
    with postgresql.server() as url:
        found["postgresql"] = cost(url)
    print("seconds a trial" + "".join(f"{count:>9,} trials" for count in COUNTS))
    for name, by_count in found.items():
        print(f"{name:<15}" + "".join(f"{by_count[str(count)]:>16.3f}" for count in COUNTS))
    worst = max(max(by_count.values()) for by_count in found.values())
    print(f"At worst {100 * worst / TRIAL_SECONDS:.2f} % of a trial of {TRIAL_SECONDS} seconds.")
    return {"seconds_a_trial": found, "worst_share_of_a_minute": worst / TRIAL_SECONDS}


def workers(count: int, trials: int, pause: float) -> dict[str, Any]:
    with postgresql.server(connections=4 * count) as url:
        study, _ = opened(url, heartbeat=5)
        command = [sys.executable, __file__, "worker", url, str(trials), str(pause)]
        began = time.time()
        processes = [subprocess.Popen(command) for _ in range(count)]

        def until_trials(least: int) -> None:
            while sum(t.state.is_finished() for t in study.get_trials(deepcopy=False)) < least:
                time.sleep(0.2)

        until_trials(count)  # everyone is at work
        working = time.time()
        until_trials(trials // 2)
        half = time.time()
        for process in processes[: count // 3]:
            process.kill()
        for process in processes:
            process.wait()
        end = time.time()
        every = study.trials
    last = distinct(every)
    finished = [t for t in last if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    # Between the moment when all are at work and the kills: later a third is missing.
    spans = [
        (t.datetime_complete.timestamp() - t.datetime_start.timestamp(), t.user_attrs[SLEPT])
        for t in finished
        if t.datetime_start
        and t.datetime_complete
        and t.datetime_start.timestamp() > working
        and t.datetime_complete.timestamp() < half
    ]
    slept = sum(
        max(
            min(t.datetime_complete.timestamp(), half) - max(t.datetime_start.timestamp(), working),
            0.0,
        )
        * t.user_attrs[SLEPT]
        / max(t.datetime_complete.timestamp() - t.datetime_start.timestamp(), 1e-9)
        for t in finished
        if t.datetime_start and t.datetime_complete
    )
    killed = [t for t in every if t.state == TrialState.FAIL and REASON not in t.user_attrs]
    again = {origin(t) for t in killed}
    result = {
        "workers": count,
        "killed_workers": count // 3,
        "seconds_an_epoch": pause,
        "trials": len(last),
        "finished": len(finished),
        "killed_trials": len(killed),
        "of_them_finished_later": sum(origin(t) in again for t in finished),
        "seconds": end - began,
        "storage_seconds_a_trial": statistics.mean(span - sleep for span, sleep in spans),
        "storage_seconds_a_trial_median": statistics.median(span - sleep for span, sleep in spans),
        "sleep_seconds_a_trial": statistics.mean(sleep for _, sleep in spans),
        "worker_cpu_seconds_a_trial": sum(
            resource.getrusage(resource.RUSAGE_CHILDREN)[:2]  # user, system; imports too
        )
        / len(last),
        "idle_share": 1 - slept / (count * (half - working)),
        "trials_timed": len(spans),
    }
    for key, value in result.items():
        print(f"{key:<32} {value:.4g}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("cost")
    many = kinds.add_parser("workers")
    many.add_argument("--count", type=int, default=64)
    many.add_argument("--trials", type=int, default=400)
    many.add_argument("--pause", type=float, default=8.0, help="seconds an epoch")
    one = kinds.add_parser("worker", help="used by workers")
    for name, kind in (("url", str), ("trials", int), ("pause", float)):
        one.add_argument(name, type=kind)
    arguments = parser.parse_args()
    if arguments.kind == "worker":
        study, found = opened(arguments.url, heartbeat=5)
        run_trials(
            study,
            objective(found, arguments.pause),
            Limits(arguments.trials),
            deadline=None,
            first=0,
            silence=30,
        )
        return
    found_ = (
        costs()
        if arguments.kind == "cost"
        else workers(arguments.count, arguments.trials, arguments.pause)
    )
    path = Path("results/simulate_search") / f"{arguments.kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found_ | provenance(), indent=2) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
