"""What Optuna's study means here, on quick objectives and in processes that are really killed."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import TrialPruned
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from fashion.errors import Interrupted, UserError
from fashion.search import study
from fashion.search.study import (
    Limits,
    TimeBudgetExceeded,
    distinct,
    open_study,
    origin,
    position,
    run_trials,
)
from fashion.train import CONF

SCRIPTS = CONF.parent / "scripts"
EPOCHS = 8


def opened(path: Path | str, *, seed: int = 0, heartbeat: int = 1, pruned: bool = True) -> Study:
    return open_study(
        f"sqlite:///{path}" if isinstance(path, Path) else path,
        "a",
        seed=seed,
        defaults={"x": 0.5, "kind": "plain"},
        conditional=True,
        halving=(1, 3) if pruned else None,
        heartbeat=heartbeat,
    )


def quick(trial: Trial, number: int) -> float:
    """A conditional space, and a learning curve that rises towards 1 - (x - 0.3)^2."""
    value = 1 - (trial.suggest_float("x", 0, 1) - 0.3) ** 2
    if trial.suggest_categorical("kind", ["plain", "odd"]) == "odd":
        value -= trial.suggest_float("loss", 0.01, 0.1, log=True)
    for epoch in range(1, EPOCHS + 1):
        trial.report(value * epoch / EPOCHS, epoch)
        if trial.should_prune():
            raise TrialPruned
    return value


def run(
    study_: Study,
    total: int,
    objective: Callable[[Trial, int], float] = quick,
    deadline: float | None = None,
    **limits: Any,
) -> list[FrozenTrial]:
    run_trials(study_, objective, Limits(total, **limits), deadline=deadline, first=0, silence=2)
    return distinct(study_.trials)


def outcome(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    return [(trial.state, trial.params, trial.value, trial.intermediate_values) for trial in trials]


def test_the_first_trial_is_the_default_and_pruning_prunes(tmp_path: Path) -> None:
    trials = run(opened(tmp_path / "a.db"), 20)
    assert trials[0].params == {"x": 0.5, "kind": "plain"}
    assert len({trial.params["x"] for trial in trials}) == 20
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert len(pruned) > 5
    assert {trial.last_step for trial in pruned} <= {1, 3}
    assert all(("loss" in trial.params) == (trial.params["kind"] == "odd") for trial in trials)
    unpruned = run(opened(tmp_path / "b.db", pruned=False), 10)
    assert all(trial.state == TrialState.COMPLETE for trial in unpruned)


def stopping(reports: int, ending: BaseException) -> Callable[[Trial, int], float]:
    """`quick`, stopped once after so many reports; what was stopped goes on where it was."""
    left = reports

    def objective(trial: Trial, number: int) -> float:
        known = trial.study.trials[trial.number].intermediate_values
        report = trial.report

        def report_and_stop(value: float, step: int) -> None:
            nonlocal left
            if step not in known:
                report(value, step)
                left -= 1
                if left == 0:
                    raise ending

        trial.report = report_and_stop  # type: ignore[method-assign]
        return quick(trial, number)

    return objective


def test_a_search_that_continues_is_the_search_at_once(tmp_path: Path) -> None:
    """Whether it had ended in between, or was interrupted or timed out within a trial."""
    whole = outcome(run(opened(tmp_path / "a.db"), 13))
    run(opened(tmp_path / "b.db"), 7)
    assert outcome(run(opened(tmp_path / "b.db"), 13)) == whole

    for reports in (3, 8, 1):
        with pytest.raises(Interrupted):
            run(opened(tmp_path / "c.db"), 13, stopping(reports, Interrupted(signal.SIGTERM)))
    for path, ending in (
        (tmp_path / "c.db", TimeBudgetExceeded()),
        (tmp_path / "d.db", TimeBudgetExceeded()),
    ):
        assert outcome(run(opened(path), 13, stopping(5, ending))) == whole
        assert len(opened(path).trials) > 13
    assert outcome(run(opened(tmp_path / "e.db", seed=1), 13)) != whole


def test_numbers_of_attempts() -> None:
    def attempt(before: list[int], **attributes: Any) -> FrozenTrial:
        return create_trial(
            state=TrialState.FAIL,
            user_attrs=attributes,
            system_attrs={"retry_history": before} if before else {},
        )

    trials = [
        *(attempt([]), attempt([]), attempt([0]), attempt([], reason=study.OVERSHOOT)),
        *(attempt([0, 2]), attempt([])),
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    study.quieten()
    assert [origin(trial) for trial in trials] == [0, 1, 0, 3, 0, 5]
    assert [trial.number for trial in distinct(trials)] == [4, 1, 5]
    assert [position(trial, trials) for trial in trials] == [0, 1, 0, 2, 0, 2]
    # Drawn beyond the total, and killed before that was noted: its second attempt says so.
    trials = [attempt([]), attempt([0], reason=study.OVERSHOOT), attempt([])]
    for number, trial in enumerate(trials):
        trial.number = number
    assert position(trials[2], trials) == 0


def test_failures_have_their_reason_and_cost_the_others_nothing(tmp_path: Path) -> None:
    failures = {
        2: MemoryError(),
        3: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes\nmore"),
        4: UserError("conv = [9]: too few pixels"),
        5: ZeroDivisionError("by zero"),
    }

    def failing(trial: Trial, number: int) -> float:
        if number in failures:
            raise failures[number]
        return float("nan") if number == 6 else quick(trial, number)

    trials = run(opened(tmp_path / "a.db"), 12, failing)
    assert len(trials) == 12
    failed = {t.number: study.reason(t) for t in trials if t.state == TrialState.FAIL}
    assert failed == {
        2: "out of memory: MemoryError",
        3: "out of memory: [enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes",
        4: "conv = [9]: too few pixels",
        5: "ZeroDivisionError: by zero",
        6: "ValueError: the trial's value is nan",
    }


def test_when_the_first_ten_fail_for_one_reason_it_stops(tmp_path: Path) -> None:
    def failing(trial: Trial, number: int) -> float:
        raise OSError(f"no space left for {number} bytes")

    trials = run(opened(tmp_path / "a.db"), 50, failing)
    assert len(trials) == 10
    assert study.abort_reason(trials) == "OSError: no space left for 0 bytes"
    # The same command again, when the reason is gone: what failed then is past.
    run_trials(opened(tmp_path / "a.db"), quick, Limits(20), deadline=None, first=10, silence=2)
    assert len(opened(tmp_path / "a.db").trials) == 20

    def differing(trial: Trial, number: int) -> float:
        raise OSError("no space left" if number % 2 else "no file")

    trials = run(opened(tmp_path / "b.db"), 12, differing)
    assert len(trials) == 12
    assert study.abort_reason(trials) is None


def test_the_first_that_still_runs_may_save_the_others() -> None:
    failed = [create_trial(state=TrialState.FAIL, user_attrs={"reason": "x"}) for _ in range(11)]
    for number, trial in enumerate(failed):
        trial.number = number
    assert study.abort_reason(failed) == "x"
    failed[0].state = TrialState.RUNNING
    assert study.abort_reason(failed) is None


def test_a_storage_out_of_reach_for_a_moment(tmp_path: Path) -> None:
    """The trial goes on when it is taken for dead; nothing has failed."""
    storage_error = study.StorageInternalError("An exception is raised during the commit.")
    interrupted = stopping(5, storage_error)
    trials = run(opened(tmp_path / "a.db"), 3, interrupted)
    assert len(trials) == 3
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    assert len(opened(tmp_path / "a.db").trials) == 4


def test_a_heartbeat_that_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised, it would end the thread that beats."""
    beat, missed = study.RDBStorage.record_heartbeat, []

    def record(self: Any, trial_id: int) -> None:
        if not missed:
            missed.append(trial_id)
            raise study.StorageInternalError
        beat(self, trial_id)

    monkeypatch.setattr(study.RDBStorage, "record_heartbeat", record)

    def waiting(trial: Trial, number: int) -> float:
        until(lambda: study.BEGAN in trial.study.trials[trial.number].user_attrs)
        return quick(trial, number)

    (trial,) = run(opened(tmp_path / "a.db"), 1, waiting)
    assert trial.state == TrialState.COMPLETE
    assert missed


def finished(*values: float | None) -> list[FrozenTrial]:
    """Trials with these values; None for one that was pruned."""
    trials = []
    for number, value in enumerate(values):
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        trial = create_trial(state=state, value=0.5 if value is None else value)
        trial.number = number
        trials.append(trial)
    return trials


def test_stop_rules() -> None:
    limits = Limits(6, gain=0.001, after=4)
    rising, flat = finished(0.8, None, 0.81, 0.9), finished(0.8, 0.9, None, 0.9005)
    assert study.ended(rising, limits, None) is None
    assert study.gain_of_second_half(rising) == pytest.approx(0.1)
    why = study.ended(flat, limits, None)
    assert why is not None
    assert "raised the best by 0.05 points, less than 0.1" in why
    assert study.ended(flat, Limits(6), None) is None
    assert study.ended(flat, limits._replace(after=5), None) is None
    assert study.ended(finished(*[0.1 * i for i in range(6)]), limits, None) == (
        "all 6 trials are done"
    )
    assert study.ended([], Limits(6), time.time() - 1) == "its time is up"
    assert study.ended([], Limits(6), time.time() + 9) is None
    # Nothing was trained to its end in the first half: nothing can be said.
    assert study.gain_of_second_half(finished(None, None, 0.9, 0.9)) is None
    assert study.ended(finished(None, None, 0.9, 0.9), limits, None) is None


def test_a_search_ends_by_its_rules(tmp_path: Path) -> None:
    trials = run(opened(tmp_path / "a.db"), 200, gain=0.01, after=10)
    assert 10 <= len(trials) < 200
    began = time.time()

    def slow(trial: Trial, number: int) -> float:
        while time.time() < began + 1:
            time.sleep(0.01)
        raise TimeBudgetExceeded

    trials = run(opened(tmp_path / "b.db"), 200, slow, deadline=began + 1)
    assert [trial.state for trial in trials] == [TrialState.WAITING]


def test_the_time_a_search_has_taken() -> None:
    """Overlapping trials count once, pauses and what was killed not at all."""
    start = datetime(2026, 1, 1)  # noqa: DTZ001 - as Optuna's

    def trial(state: TrialState, begin: int, end: int, **attributes: Any) -> FrozenTrial:
        value = {"value": 0.5} if state == TrialState.COMPLETE else {}
        made = create_trial(state=state, user_attrs=attributes, **value)
        made.datetime_start = start + timedelta(seconds=begin)
        made.datetime_complete = start + timedelta(seconds=end)
        return made

    trials = [
        trial(TrialState.COMPLETE, 0, 10),
        trial(TrialState.PRUNED, 5, 12),
        trial(TrialState.COMPLETE, 6, 7),
        trial(TrialState.FAIL, 100, 101, reason="none"),
        trial(TrialState.FAIL, 110, 112, interrupted=True),
        trial(TrialState.FAIL, 0, 5000),
    ]
    assert study.seconds(trials) == 15
    assert study.seconds([]) == 0


WORKER = """
import os, sys, time
sys.path.insert(0, {tests!r})
import test_study
{first}
def objective(trial, number):
    time.sleep({pause})
    return test_study.quick(trial, number)
test_study.run(test_study.opened({storage}), {total}, objective)
"""


def worker(
    storage: Path | str, total: int, pause: float = 0.0, first: str = ""
) -> subprocess.Popen[bytes]:
    script = WORKER.format(
        tests=str(Path(__file__).parent),
        storage=_literal(storage),
        total=total,
        pause=pause,
        first=first,
    )
    environment = os.environ | {"PYTHONPATH": str(CONF.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", "from pathlib import Path, PosixPath\n" + script], env=environment
    )


def _literal(storage: Path | str) -> str:
    return repr(storage)


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    if request.param == "sqlite":
        yield tmp_path / "a.db"
        return
    spec = importlib.util.spec_from_file_location("postgresql", SCRIPTS / "postgresql.py")
    assert spec
    assert spec.loader
    postgresql = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(postgresql)
    if postgresql.programs() is None:
        pytest.skip("PostgreSQL is not here; on Debian: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="pip install 'fashion[postgresql]'")
    with postgresql.server() as url:
        yield url


# A process keeps its connections until it ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_several_at_once_reach_the_total_together_and_recover_what_was_killed(
    storage: Path | str,
) -> None:
    """Three processes on an empty database: two to their end, and one that is killed."""
    total = 24
    killed = worker(storage, total, pause=60)
    others = []
    try:
        seen = opened(storage)
        until(lambda: any(t.state == TrialState.RUNNING for t in seen.trials))
        others = [worker(storage, total, pause=0.05) for _ in range(2)]
        killed.kill()
        for other in others:
            assert other.wait(300) == 0
    finally:
        for process in (killed, *others):
            process.kill()
            process.wait()
    every = seen.trials
    seen._storage._backend.engine.dispose()  # noqa: SLF001 - or its connections warn when collected
    trials = distinct(every)
    assert len(trials) == total
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    # The first, as the configuration stands, was the one that was killed.
    assert study.reason(every[0]) == study.KILLED
    (again,) = [trial for trial in every if origin(trial) == 0 and trial.number]
    assert again.params == every[0].params == {"x": 0.5, "kind": "plain"} or not every[0].params
    assert sorted(origin(trial) for trial in trials) == sorted(
        {origin(trial) for trial in every if trial.user_attrs.get("reason") != study.OVERSHOOT}
    )


def test_what_is_killed_before_its_first_sign_of_life(tmp_path: Path) -> None:
    """No heartbeat tells that it has died, as none was recorded."""
    newborn = opened(tmp_path / "a.db")
    with pytest.warns(UserWarning, match="Heartbeat"):
        newborn.ask()
    trials = run(opened(tmp_path / "a.db"), 1)  # where it has drawn nothing itself
    assert [origin(trial) for trial in trials] == [0]
    assert all(trial.state.is_finished() for trial in trials)


def test_what_is_killed_early_in_its_second_attempt(tmp_path: Path) -> None:
    """It has inherited that the first attempt had given a sign of life."""
    newborn = opened(tmp_path / "a.db")
    newborn.add_trial(create_trial(state=TrialState.FAIL, user_attrs={study.BEGAN: 0}))
    killed = newborn.trials[0]
    study._after_kill(newborn, killed)  # noqa: SLF001
    with pytest.warns(UserWarning, match="Heartbeat"):
        assert newborn.ask().number == 1
    (trial,) = run(opened(tmp_path / "a.db"), 1)
    assert (origin(trial), trial.state) == (0, TrialState.COMPLETE)
    assert trial.number == 2


@pytest.mark.parametrize(
    ("attempts", "again"),
    [
        ([{}, {}], 1),
        ([{}, {}, {}], 0),  # it is the trial that kills
        ([{study.INTERRUPTED: True}] * 9, 1),
        ([{"epochs": 1}, {"epochs": 2}, {"epochs": 3}, {"epochs": 4}], 1),  # it advances
    ],
)
def test_how_often_a_trial_is_tried_again(attempts: list[dict[str, Any]], again: int) -> None:
    study.quieten()
    study_ = optuna.create_study(direction="maximize")
    for number, attributes in enumerate(
        [*attempts, {"epochs": 5 if "epochs" in attempts[0] else 0}]
    ):
        history = list(range(number))
        epochs = attributes.pop("epochs", 0)
        study_.add_trial(
            create_trial(
                state=TrialState.FAIL,
                user_attrs=attributes,
                system_attrs={"failed_trial": 0, "retry_history": history} if history else {},
                intermediate_values=dict.fromkeys(range(1, epochs + 1), 0.5),
            )
        )
    study._after_kill(study_, study_.trials[-1])  # noqa: SLF001
    waiting = [t for t in study_.trials if t.state == TrialState.WAITING]
    assert len(waiting) == again


def test_a_worker_that_was_taken_for_dead(tmp_path: Path) -> None:
    """Its trial has become another's, and it takes the next."""

    def slept(trial: Trial, number: int) -> float:
        if trial.number == 1:
            study.put_back(trial.study, trial.number)
        return quick(trial, number)

    trials = run(opened(tmp_path / "a.db", pruned=False), 3, slept)
    assert [origin(trial) for trial in trials] == [0, 1, 3]  # 2 is the second attempt of 1
    assert all(trial.state == TrialState.COMPLETE for trial in trials)


def test_what_is_killed_between_its_start_and_its_first_sign_of_life(tmp_path: Path) -> None:
    """The heartbeat has a thread of its own, which may come late."""
    opened(tmp_path / "a.db")
    late = "test_study.study.RDBStorage.record_heartbeat = lambda *_: time.sleep(2) or os._exit(9)"
    assert worker(tmp_path / "a.db", 3, pause=60, first=late).wait(300) == 9
    assert [origin(trial) for trial in run(opened(tmp_path / "a.db"), 3)] == [0, 1, 2]


def test_the_simulated_search_is_of_the_deck_s_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import simulate_search

    simulated, space = simulate_search.opened(f"sqlite:///{tmp_path}/a.db", heartbeat=10)
    objective = simulate_search.objective(space, 0)
    run_trials(simulated, objective, Limits(15), deadline=None, first=0, silence=2)
    assert {t.state for t in simulated.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_storage_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be used") as refusal:
        opened("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(refusal.value)
    with pytest.raises(UserError, match="storage is no URL of a database"):
        opened("nonsense")


def test_optuna_s_own_warnings_stay_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(opened(tmp_path / "a.db"), 15)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
