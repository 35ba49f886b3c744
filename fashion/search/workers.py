"""The workers of a search as processes of their own, and what is shown while they work."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from fashion.errors import UserError
from fashion.runs.run import Run
from fashion.search.search import PARENT, Search

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

DEATHS = 10  # of a worker, after which it is given up: nothing was done in between by any
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def supervise(search: Search) -> None:
    """Start the workers, start those again that die, and show how the search goes.

    Raises:
        UserError: all of them keep dying, and nothing is done.
    """
    from optuna.exceptions import StorageInternalError

    workers = [_Worker(search, number) for number in range(search.config.workers)]
    display = _Display(search)
    done = 0
    try:
        while running := [each for each in workers if not (each.finished or each.given_up)]:
            with contextlib.suppress(StorageInternalError):  # out of reach; perhaps for a moment
                done = display.update()
            for worker in running:
                worker.revive(done)
            time.sleep(0.5)
        display.update()
        if not any(worker.finished for worker in workers):
            raise UserError(workers[0].complaint())
    finally:
        display.close()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


class _Worker:
    """A process that runs trials with its share of the cores; its output goes to a file."""

    def __init__(self, search: Search, number: int) -> None:
        self.log = search.folder / "workers" / f"{number}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = (sys.executable, "-m", "fashion.tune")
        self.command = [*command, *sys.argv[1:], f"worker={number}"]
        told = json.dumps({"deadline": search.deadline, "first": search.first})
        threads = str(max(_cores() // search.config.workers, 1))
        self.environment = os.environ | {PARENT: told} | dict.fromkeys(THREADS, threads)
        self.deaths = 0  # since anything was last done
        self.done = -1
        self._start()

    def _start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to the parent alone, which passes it on
            )

    @property
    def finished(self) -> bool:
        return self.process.poll() == 0

    @property
    def given_up(self) -> bool:
        return self.deaths == DEATHS

    def revive(self, done: int) -> None:
        """Start it again if it has died; `done` counts what all of them have done."""
        if self.process.poll() in (None, 0):
            return
        self.deaths = self.deaths + 1 if done == self.done else 1
        self.done = done
        if not self.given_up:
            self.process.communicate()  # closes the pipe to it
            self._start()

    def complaint(self) -> str:
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return (
            f"A worker died {DEATHS} times and nothing was done in between, the last time with "
            f"{_ending(self.process.returncode)}. {self.log} ends with:\n  {''.join(last)}"
        )

    def terminate(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self) -> None:
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def _ending(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    hint = ", perhaps by the system for want of memory" if -status == signal.SIGKILL else ""
    return f"signal {signal.Signals(-status).name}{hint}"


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """Take the end of our standard input, which the parent holds, for SIGTERM."""

    def watch() -> None:
        os.read(0, 1)  # not by sys.stdin, whose lock would be missing at the interpreter's end
        os.kill(os.getpid(), signal.SIGTERM)
        # Python drops what a signal raises within a destructor; the second one is the system's.
        time.sleep(60)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class _Display:
    """One line a trial, and a bar."""

    def __init__(self, search: Search) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.search = search
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        trials = search.study.get_trials(deepcopy=False)
        self.seen = {trial.number for trial in trials if trial.state.is_finished()}
        self.began, self.before = time.time(), len(self._finished())
        self.bar = self.bars.add_task(
            "Trials", total=search.config.trials, completed=self.before, note=""
        )
        self.verdict: dict[str, Run] | None = None  # runs by what they are called

        if self.before:
            self._print(f"{self.before} trials were done before.")
        self.bars.start()

    def close(self) -> None:
        self.bars.stop()

    def _finished(self) -> list["FrozenTrial"]:
        from fashion.search.study import finished

        return finished(self.search.drawn())

    def _print(self, line: str) -> None:
        self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self) -> int:
        """Show what is new, and return how much is done: trials and runs of the verdict."""
        from optuna.trial import TrialState

        from fashion.search.study import OVERSHOOT, REASON, completed, ended

        trials = self.search.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.seen:
                self.seen.add(trial.number)
                if trial.user_attrs.get(REASON) != OVERSHOOT:
                    self._print(_line(trial, trials))
        done = self._finished()
        best = completed(done)[:1]
        note = f"best {percent(best[0].value)}" if best else ""
        over = ended(self.search.drawn(), self.search.limits(), self.search.deadline)
        left = "" if over else self._left(len(done))
        self.bars.update(self.bar, completed=len(done), note=f"{note}{left}")
        busy = any(trial.state == TrialState.RUNNING for trial in trials)
        if self.verdict is None and over and not busy:
            self._print(f"The search is over: {over}.")
            self.verdict = self._begin_verdict()
            self.verdict_bar = self.bars.add_task(
                "Verdict", total=len(self.verdict), visible=bool(self.verdict), note=""
            )
            self.trained: set[str] = set()
        if self.verdict is None:
            return len(done)
        for name, run in self.verdict.items():
            if name not in self.trained and run.finished:
                self.trained.add(name)
                self._print(f"{name}: {percent(run.metrics['val/acc'])}")
        self.bars.update(self.verdict_bar, completed=len(self.trained))
        return len(done) + len(self.trained)

    def _begin_verdict(self) -> dict[str, Run]:
        """Its runs; say how many are left, and how long they take at the pace of the trials."""
        from fashion.search.study import completed, origin

        runs, left = {}, []
        took = {origin(t): t.user_attrs.get("seconds") for t in completed(self.search.drawn())}
        for candidate in self.search.candidates():
            for seed, run in self.search.confirm_runs(candidate).items():
                runs[f"{candidate.name} with seed {seed}"] = run
                if not run.finished:
                    left.append(took.get(candidate.trial))
        if known := [seconds for seconds in left if seconds is not None]:
            whole = sum(known) / len(known) * len(left) / self.search.config.workers
            self._print(
                f"Its verdict trains {count(len(left), 'run')}, about {duration(whole)}; "
                "confirm.top and confirm.seeds say how many."
            )
        return runs

    def _left(self, done: int) -> str:
        """Of the time, at the pace of this command, and within what it was given."""
        now = time.time()
        bounds = [] if self.search.deadline is None else [self.search.deadline - now]
        if done > self.before:
            pace = (now - self.began) / (done - self.before)
            bounds.append(pace * (self.search.config.trials - done))
        return f", at most {duration(max(min(bounds), 0))} left" if bounds else ""


def _line(trial: "FrozenTrial", trials: list["FrozenTrial"]) -> str:
    """What became of a trial, and the best until then."""
    from optuna.trial import TrialState

    from fashion.search.study import INTERRUPTED, completed, distinct, origin, reason

    steps = sorted(trial.intermediate_values)
    if trial.state == TrialState.COMPLETE:
        said = f"{percent(trial.value)} after {count(len(steps), 'epoch')}"
    elif trial.state == TrialState.PRUNED:
        said = f"{percent(trial.value)}, pruned after epoch {steps[-1]}"
    elif INTERRUPTED in trial.user_attrs:
        said = f"interrupted after {count(len(steps), 'epoch')}"
    else:
        again = trial.number not in {other.number for other in distinct(trials)}
        said = "killed; it will go on" if again else f"failed: {reason(trial)}"
    best = completed(trials)[:1]
    record = f"   best {percent(best[0].value)}, trial {origin(best[0])}" if best else ""
    return f"trial {origin(trial):>4}  {said:<36}{record}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004
        return count(round(seconds), "second")
    minutes = round(seconds / 60)
    return count(minutes, "minute") if minutes < 120 else f"{minutes / 60:.1f} hours"  # noqa: PLR2004
