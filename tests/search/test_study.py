"""The study on quick objectives: drawn, pruned, resumed, and run by processes that are killed."""

# Types: Optuna's private storage.
# mypy: disable-error-code="attr-defined"

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import TrialPruned
from optuna.exceptions import StorageInternalError
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.study import Study
from optuna.trial import Trial, TrialState

from fashion.config import CONF
from fashion.errors import Interrupted, UserError
from fashion.runs.run import Run
from fashion.search.study import Sampler, TimeBudgetExceeded, open_study, run_trials, trial_run
from fashion.search.trials import ATTEMPTS, MOST_KILLS, Limits, Trials, failure

pytestmark = pytest.mark.slow

SCRIPTS = CONF.parent / "scripts" / "checks"
EPOCHS = 8
Objective = Callable[[Trial, Run], float]


def opened(
    folder: Path, storage: str | None = None, *, seed: int = 0, pruned: bool = True
) -> Study:
    folder.mkdir(exist_ok=True)
    return open_study(
        storage or f"sqlite:///{folder}/study.db",
        "a",
        sampler=Sampler(seed, {"x": 0.5, "kind": "plain"}, group=True),
        pruner=SuccessiveHalvingPruner(1, 3) if pruned else NopPruner(),
    )


def quick(trial: Trial, run: Run) -> float:
    """A conditional space, and a learning curve that rises towards 1 - (x - 0.3)^2."""
    value = 1 - (trial.suggest_float("x", 0, 1) - 0.3) ** 2
    if trial.suggest_categorical("kind", ["plain", "odd"]) == "odd":
        value -= trial.suggest_float("loss", 0.01, 0.1, log=True)
    known = trial.study.trials[trial.number].intermediate_values
    for epoch in range(1, EPOCHS + 1):
        if epoch not in known:
            trial.report(value * epoch / EPOCHS, epoch)
        if trial.should_prune():
            raise TrialPruned
    return value


def run(
    folder: Path,
    total: int,
    objective: Objective = quick,
    *,
    deadline: float | None = None,
    first: int = 0,
    pruned: bool = True,
    seed: int = 0,
    **limits: Any,
) -> Trials:
    study_ = opened(folder, pruned=pruned, seed=seed)
    run_trials(study_, folder, objective, Limits(total, **limits), deadline=deadline, first=first)
    return Trials.of(study_)


def outcomes(trials: Trials) -> list[tuple[Any, ...]]:
    return [(trial.state, trial.params, trial.value, trial.intermediate_values) for trial in trials]


def test_the_first_trial_is_the_default_and_pruning_prunes(tmp_path: Path) -> None:
    trials = run(tmp_path / "a", 20)
    assert trials[0].params == {"x": 0.5, "kind": "plain"}
    assert len({trial.params["x"] for trial in trials}) == 20
    assert len(trials.pruned) > 5
    assert {trial.last_step for trial in trials.pruned} <= {1, 3}
    assert all(("loss" in trial.params) == (trial.params["kind"] == "odd") for trial in trials)
    assert len(run(tmp_path / "b", 10, pruned=False).completed) == 10


def stopping(reports: int, ending: BaseException) -> Objective:
    """`quick`, stopped once after so many reports."""
    left = reports

    def objective(trial: Trial, run: Run) -> float:
        report = trial.report

        def report_and_stop(value: float, step: int) -> None:
            nonlocal left
            report(value, step)
            left -= 1
            if left == 0:
                raise ending

        trial.report = report_and_stop  # type: ignore[method-assign]
        return quick(trial, run)

    return objective


def test_a_search_that_continues_is_the_search_at_once(tmp_path: Path) -> None:
    """Whether it had ended in between, or was interrupted, timed out or cut off in a trial."""
    whole = outcomes(run(tmp_path / "a", 13))
    run(tmp_path / "b", 7)
    assert outcomes(run(tmp_path / "b", 13)) == whole
    for reports in (3, 8, 1):
        with pytest.raises(Interrupted):
            run(tmp_path / "c", 13, stopping(reports, Interrupted(signal.SIGTERM)))
    for folder, ending in (
        ("c", TimeBudgetExceeded()),
        ("d", StorageInternalError("out of reach for a moment")),
    ):
        assert outcomes(run(tmp_path / folder, 13, stopping(5, ending))) == whole
    assert outcomes(run(tmp_path / "e", 13, seed=1)) != whole


def test_failures_have_their_reason_and_cost_the_others_nothing(tmp_path: Path) -> None:
    errors = {2: MemoryError(), 3: UserError("too few pixels"), 4: ZeroDivisionError("by zero")}

    def failing(trial: Trial, run: Run) -> float:
        if trial.number in errors:
            raise errors[trial.number]
        return float("nan") if trial.number == 5 else quick(trial, run)

    trials = run(tmp_path / "a", 9, failing)
    assert len(trials) == len(trials.finished) == 9
    assert {t.number: failure(t) for t in trials.failed} == {
        2: "out of memory: MemoryError",
        3: "too few pixels",
        4: "ZeroDivisionError: by zero",
        5: "ValueError: the trial's value is nan",
    }


def test_if_the_first_ten_fail_for_one_reason_it_stops(tmp_path: Path) -> None:
    def failing(trial: Trial, run: Run) -> float:
        raise OSError(f"no space left for {trial.number} bytes")

    assert len(run(tmp_path / "a", 50, failing)) == 10
    # The same command again, when the reason is gone: those failures are past.
    assert len(run(tmp_path / "a", 20, first=10)) == 20


def test_a_search_ends_by_its_rules(tmp_path: Path) -> None:
    assert 10 <= len(run(tmp_path / "a", 200, gain=0.01, after=10)) < 200
    end = time.time() + 1

    def slow(trial: Trial, run: Run) -> float:
        while time.time() < end:
            time.sleep(0.01)
        raise TimeBudgetExceeded

    trials = run(tmp_path / "b", 200, slow, deadline=end)
    assert [trial.state for trial in trials] == [TrialState.RUNNING]
    assert 0 < trials.seconds < 1.5  # opening the study takes a part of it


def test_what_was_killed_just_after_it_was_drawn(tmp_path: Path) -> None:
    """It has no parameter, no folder and no attempt."""
    opened(tmp_path / "a").ask()
    trials = run(tmp_path / "a", 2)
    assert [trial.number for trial in trials.finished] == [0, 1]
    assert trials[0].params == {"x": 0.5, "kind": "plain"}


def test_a_locked_trial_has_a_worker(tmp_path: Path) -> None:
    """Others wait for it at the end, and resume it at once when the lock is released."""
    folder = tmp_path / "a"
    opened(folder).ask()
    with trial_run(folder, 0).lock():
        other = threading.Thread(target=run, args=(folder, 3))
        other.start()
        until(lambda: len(Trials.of(opened(folder)).finished) == 2)
        time.sleep(1)
        assert other.is_alive()
        assert [trial.number for trial in Trials.of(opened(folder)).running] == [0]
    other.join(20)
    assert not other.is_alive()
    assert len(Trials.of(opened(folder)).finished) == 3


@pytest.mark.parametrize(
    ("attempts", "given_up"),
    [
        ([[2, 0.0, None]] * (MOST_KILLS - 1), False),
        ([[2, 0.0, None]] * MOST_KILLS, True),  # it is the trial that kills
        ([[2, 0.0, 1.0]] * 9, False),  # interrupted in order
        ([[0, 0.0, None], [0, 0.0, None], [1, 0.0, None], [1, 0.0, None]], False),  # it advances
    ],
)
def test_how_often_a_killed_trial_is_resumed(
    tmp_path: Path, attempts: list[list[Any]], *, given_up: bool
) -> None:
    trial = opened(tmp_path / "a").ask()
    trial.report(0.5, 1)
    trial.report(0.6, 2)
    trial.set_user_attr(ATTEMPTS, attempts)
    trials = run(tmp_path / "a", 2)
    assert len(trials.finished) == 2
    assert bool(trials.failed) == given_up
    if given_up:
        assert failure(trials[0]) == f"killed {MOST_KILLS} times in epoch 3"


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_study
def objective(trial, run):
    time.sleep({pause})
    return test_study.quick(trial, run)
study = test_study.opened(Path({folder!r}), {storage!r})
test_study.run_trials(study, Path({folder!r}), objective, test_study.Limits({total}))
"""


def worker(folder: Path, storage: str | None, total: int, pause: float) -> subprocess.Popen[bytes]:
    script = WORKER.format(
        tests=str(Path(__file__).parent),
        folder=str(folder),
        storage=storage,
        total=total,
        pause=pause,
    )
    environment = os.environ | {"PYTHONPATH": str(CONF.parent)}
    return subprocess.Popen([sys.executable, "-c", script], env=environment)


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.1)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    spec = importlib.util.spec_from_file_location("postgresql", SCRIPTS / "postgresql.py")
    assert spec
    assert spec.loader
    postgresql = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(postgresql)
    if postgresql.programs() is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="pip install 'fashion[postgresql]'")
    with postgresql.server() as url:
        yield url


# A process keeps its connections until it ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_several_processes_reach_the_total_together_and_resume_what_was_killed(
    tmp_path: Path, storage: str | None
) -> None:
    """Three on an empty database: two to their end, and one that is killed in its trial."""
    folder, total = tmp_path / "a", 24
    killed = worker(folder, storage, total, pause=600)
    others = []
    try:
        seen = opened(folder, storage)
        until(lambda: any(ATTEMPTS in trial.user_attrs for trial in seen.trials))
        others = [worker(folder, storage, total, pause=0.05) for _ in range(2)]
        until(lambda: len(seen.trials) > 6)
        killed.kill()
        for other in others:
            assert other.wait(300) == 0
    finally:
        for process in (killed, *others):
            process.kill()
            process.wait()
    trials = Trials.of(seen)
    backend: Any = seen._storage  # noqa: SLF001
    backend._backend.engine.dispose()  # noqa: SLF001 - or its connections warn when collected
    assert len(trials) == total
    assert len(trials.completed) + len(trials.pruned) == total
    # The first, as the configuration stands, was the one that was killed.
    (first, *_), again = trials[0].user_attrs[ATTEMPTS][0], trials[0].user_attrs[ATTEMPTS][1:]
    assert first == 0
    assert trials[0].user_attrs[ATTEMPTS][0][2] is None
    assert len(again) == 1
    assert trials[0].params == {"x": 0.5, "kind": "plain"}
    assert all(len(trial.user_attrs[ATTEMPTS]) == 1 for trial in list(trials)[1:])


def test_a_simulated_search_of_the_deck_s_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import simulate_search

    simulated, space = simulate_search.opened(f"sqlite:///{tmp_path}/a.db")
    run_trials(simulated, tmp_path, simulate_search.objective(space, 0), Limits(15))
    trials = Trials.of(simulated)
    assert len(trials.completed) + len(trials.pruned) == 15
    assert trials.pruned


def test_a_storage_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be used") as refusal:
        opened(tmp_path, "postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(refusal.value)
    with pytest.raises(UserError, match="storage is no URL of a database"):
        opened(tmp_path, "nonsense")


def test_optuna_s_own_messages_are_dropped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "a", 15)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
