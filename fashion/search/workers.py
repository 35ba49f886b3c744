"""The worker processes of a search, and the display of its progress."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fashion.config import task_overrides
from fashion.errors import UserError

if TYPE_CHECKING:
    from fashion.runs.run import Run
    from fashion.search.study import Search

# Environment variable by which a command passes `deadline` and `first` to its workers, as JSON.
GIVEN = "FASHION_SEARCH"
MOST_EXITS = 10  # failures without a trial finished in between, after which a worker is given up
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PAGE_SECONDS = 60  # between two versions of search.html; more where one takes long to draw


class SetHydraConfig(Callback):
    """Sets HydraConfig before a sweep, to resolve `hydra.sweep.dir`; Hydra 1.3 does so later."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        HydraConfig.instance().set_config(config.copy())


def supervise(search: "Search") -> None:
    """Start the workers, restart those that fail, and show the search's progress.

    Raises:
        UserError: all workers keep failing, and no trial is finished.
    """
    from optuna.exceptions import StorageInternalError

    workers = [_Worker(search, number) for number in range(search.config.workers)]
    display = _Display(search)
    done = 0
    try:
        while running := [each for each in workers if not (each.finished or each.given_up)]:
            with contextlib.suppress(StorageInternalError):  # unreachable, perhaps for a moment
                done = display.update()
            for worker in running:
                worker.restart_if_failed(done)
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


def _as_worker(arguments: list[str], number: int) -> list[str]:
    """Add `worker=number` beside the overrides of a command line: Hydra wants them in one piece."""
    last = (task_overrides() or [""])[-1]
    place = arguments.index(last) + 1 if last in arguments else len(arguments)
    return [*arguments[:place], f"worker={number}", *arguments[place:]]


class _Worker:
    """A process that runs trials, with an equal part of the cores; its output goes to a file."""

    def __init__(self, search: "Search", number: int) -> None:
        self.log = search.folder / "workers" / f"{number}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.command = [sys.executable, "-m", "fashion.tune", *_as_worker(sys.argv[1:], number)]
        given = json.dumps({"deadline": search.deadline, "first": search.first})
        threads = str(max(_cores() // search.config.workers, 1))
        self.environment = os.environ | {GIVEN: given} | dict.fromkeys(THREADS, threads)
        self.exits = 0  # failures since the last finished trial
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
                start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
            )

    @property
    def finished(self) -> bool:
        return self.process.poll() == 0

    @property
    def given_up(self) -> bool:
        return self.exits == MOST_EXITS

    def restart_if_failed(self, done: int) -> None:
        """Start the process again if it has failed; `done` counts what all workers finished."""
        if self.process.poll() in (None, 0):
            return
        self.exits = self.exits + 1 if done == self.done else 1
        self.done = done
        if not self.given_up:
            self.process.communicate()  # closes the pipe to it
            self._start()

    def complaint(self) -> str:
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return (
            f"A worker failed {MOST_EXITS} times and no trial was finished in between, the last "
            f"time with {_ending(self.process.returncode)}. {self.log} ends with:\n"
            f"  {''.join(last)}"
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
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"signal {name}{', perhaps for lack of memory' if name == 'SIGKILL' else ''}"


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """Exit when the parent does: it holds the other end of this process's stdin pipe."""

    def watch() -> None:
        os.read(0, 1)  # not through sys.stdin, whose lock would block the interpreter's exit
        os.kill(os.getpid(), signal.SIGTERM)
        # Python drops an exception that a signal raises in a destructor; the second one ends it.
        time.sleep(60)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class _Display:
    """One line per finished trial; on a terminal, below them, the trials that are running."""

    def __init__(self, search: "Search") -> None:
        from rich.console import Console
        from rich.live import Live

        self.search = search
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        self.live = Live(console=self.console, transient=True, auto_refresh=False)
        trials = search.trials()
        self.seen: set[int | str] = {trial.number for trial in trials.finished}
        self.began, self.before = time.time(), len(trials.finished)
        self.confirming: dict[str, Run] | None = None  # by candidate and seed
        self.next_page = time.monotonic() + PAGE_SECONDS
        for warning in search.warnings:
            self.console.print(f"Warning: {warning}")
        if self.before:
            self.console.print(f"{count(self.before, 'trial')} finished before.")
        if self.console.is_terminal:
            self.live.start()

    def close(self) -> None:
        self.live.stop()

    def update(self) -> int:
        """Show what is new; return how many trials and confirming runs are finished."""
        from fashion.report.metrics import percent
        from fashion.search.study import has_workers
        from fashion.search.trials import outcome

        search, trials = self.search, self.search.trials()
        for trial in trials.finished:
            self._print_once(trial.number, f"trial {trial.number:>4}  {outcome(trial)}")
        done = len(trials.finished)
        reason = trials.stop_reason(search.limits, search.deadline)
        if self.confirming is None and reason and not has_workers(search.folder, trials):
            self.console.print(f"The search is over: {reason}.")
            self.confirming = self._begin_confirmation()
        if self.confirming is None:
            best = trials.best
            status = f"{done} of {search.config.trials} trials"
            status += f", best {percent(best.value, 2)} (trial {best.number})" if best else ""
            status += "" if reason else self._left(done)
            rows = [(f"trial {each.number}", outcome(each)) for each in trials.running]
        else:
            finished = {name: run for name, run in self.confirming.items() if run.finished}
            for name, run in finished.items():
                self._print_once(name, f"{name}: {percent(run.metrics['val/acc'], 2)}")
            status = f"{len(finished)} of {count(len(self.confirming), 'confirming run')}"
            done += len(finished)
            rows = [
                (name, f"{percent(last[1], 2)} after {count(int(last[0]), 'epoch')}")
                for name, run in self.confirming.items()
                if name not in finished and (last := _last_validation(run))
            ]
        self._show(rows, status)
        return done

    def _print_once(self, key: int | str, line: str) -> None:
        if key not in self.seen:
            self.seen.add(key)
            self.console.print(line)

    def _show(self, rows: list[tuple[str, str]], status: str) -> None:
        """Redraw the lower part of the terminal, and from time to time the page."""
        from rich.console import Group
        from rich.table import Table

        if self.console.is_terminal:
            table = Table.grid(padding=(0, 2))
            for row in rows:
                table.add_row(*row)
            self.live.update(Group(table, status), refresh=True)
        if time.monotonic() >= self.next_page:
            from fashion.search.page import write

            began = time.monotonic()
            lines = [f"Warning: {warning}" for warning in self.search.warnings]
            write(self.search, [f"The search is running: {status}.", *lines])
            took = time.monotonic() - began
            self.next_page = time.monotonic() + max(PAGE_SECONDS, 20 * took)

    def _begin_confirmation(self) -> "dict[str, Run]":
        """Return the confirming runs; print how many are left, and their expected duration."""
        from fashion.search.confirmation import candidates, confirming_runs

        runs, left = {}, []
        took = {t.number: t.user_attrs.get("seconds") for t in self.search.trials().completed}
        for candidate in candidates(self.search):
            for seed, run in confirming_runs(self.search, candidate).items():
                runs[f"{candidate.name}, seed {seed}"] = run
                if not run.finished:
                    left.append(took.get(candidate.trial))
        if known := [seconds for seconds in left if seconds is not None]:
            whole = sum(known) / len(known) * len(left) / self.search.config.workers
            self.console.print(
                f"Confirming the best: {count(len(left), 'run')} on fresh seeds, about "
                f"{duration(whole)} (confirm.top, confirm.seeds)."
            )
        return runs

    def _left(self, done: int) -> str:
        """Return the time left, from the mean time per trial and the deadline."""
        now = time.time()
        bounds = [] if self.search.deadline is None else [self.search.deadline - now]
        if done > self.before:
            pace = (now - self.began) / (done - self.before)
            bounds.append(pace * (self.search.config.trials - done))
        return f", at most {duration(max(min(bounds), 0))} left" if bounds else ""


def _last_validation(run: "Run") -> tuple[float, float] | None:
    """Return the last epoch after which a run was validated, and the accuracy; None before it."""
    history = run.history
    pairs = zip(history.get("epoch", ()), history.get("val/acc", ()), strict=False)
    return max((pair for pair in pairs if not math.isnan(pair[1])), default=None)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004
        return count(round(seconds), "second")
    minutes = round(seconds / 60)
    return count(minutes, "minute") if minutes < 120 else f"{minutes / 60:.1f} hours"  # noqa: PLR2004
