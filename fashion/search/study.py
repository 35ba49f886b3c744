"""One search as Optuna sees it: stored, sampled, pruned, kept alive, and ended.

A trial that was killed is failed by Optuna (its heartbeat stops) and tried again under a new
number. Here the two count once: a trial's `origin` is the number of its first attempt, which names
its run folder, and its `position` is its place among the configurations that were drawn.
"""

import contextlib
import math
import re
import sqlite3
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from fashion.errors import UserError

REASON, INTERRUPTED, BEGAN = "reason", "interrupted", "began"  # attributes of a trial
OVERSHOOT = "beyond the total"  # drawn at the moment when another worker drew the last
KILLED = "killed"  # what failed and says no reason
MISSED_HEARTBEATS = 6  # heartbeats that are missing when a trial counts as killed
RETRIES = 3  # of a trial that is killed in the same epoch each time; what advances goes on
ABORT_AFTER = (
    10  # failures, from the first on and for one reason, after which none is tried any more
)


class Limits(NamedTuple):
    """When a search ends."""

    trials: int
    gain: float | None = None  # of accuracy, 0..1, that half the trials must bring
    after: int = 0  # trials, before that is asked


class TimeBudgetExceeded(BaseException):
    """The time is up: a trial that is running stops, and goes on if the search does."""


class TrialLost(BaseException):
    """The trial is not ours any more, and will go on, here or elsewhere, if it can.

    We were silent for too long, as when a laptop sleeps, or the storage is out of reach.
    """


# Storage, sampler, pruner.


def open_study(
    storage: str,
    name: str,
    *,
    seed: int,
    defaults: dict[str, Any],
    conditional: bool,
    halving: tuple[int, int] | None,
    heartbeat: int,
) -> Study:
    """The study `name`, made if it is not there.

    Args:
        storage: URL of the database.
        name: of the study in it.
        seed: of the search.
        defaults: parameters of the first trial.
        conditional: whether some parameters are there only where others have certain values.
        halving: the first epoch after which trials are pruned, and of how many one goes on; None
            prunes nothing.
        heartbeat: seconds between two signs of life; after six without one a trial counts as dead.

    Raises:
        UserError: the storage cannot be reached, or another version of Optuna has made it.
    """
    quieten()
    pruner = NopPruner() if halving is None else Halving(*halving)
    # Several processes may find an empty database and make its tables at once: one succeeds.
    for attempt in range(5, -1, -1):
        try:
            return optuna.create_study(
                storage=_connect(storage, heartbeat),
                study_name=name,
                direction="maximize",
                sampler=Sampler(seed, defaults, group=conditional),
                pruner=pruner,
                load_if_exists=True,
            )
        except sqlalchemy.exc.ArgumentError as error:
            raise UserError(f"storage is no URL of a database: {_first_line(error)}") from error
        except (
            sqlalchemy.exc.SQLAlchemyError,
            sqlite3.Error,
            StorageInternalError,
        ) as error:
            if not attempt:
                raise UserError(f"{shown(storage)} cannot be used: {_first_line(error)}") from error
            time.sleep(np.random.default_rng().uniform(0.1, 1))
        except ImportError as error:
            raise UserError(
                f"{shown(storage)} needs a driver: pip install 'fashion[postgresql]'."
            ) from error
        except RuntimeError as error:  # made by another version
            raise UserError(f"{shown(storage)}: {error}") from error
    raise AssertionError


def quieten() -> None:
    """Drop Optuna's line a trial, and its notices that heartbeats and groups may yet change."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _connect(storage: str, heartbeat: int) -> RDBStorage:
    url = sqlalchemy.make_url(storage)
    file = url.get_backend_name() == "sqlite"
    if file:
        with sqlite3.connect(str(url.database), timeout=60) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # a commit waits for the disk once
        connection.close()
    rdb = _Storage(
        storage,
        {"connect_args": {"timeout": 60, "isolation_level": None}}
        if file
        else {"pool_pre_ping": True},
        heartbeat_interval=heartbeat,
        grace_period=MISSED_HEARTBEATS * heartbeat,
        heartbeat_stale_trial_callback=_after_kill,
    )
    if file:
        # SQLite knows no SELECT FOR UPDATE: without this two workers may take the same trial.
        sqlalchemy.event.listen(
            rdb.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
        )
    return rdb


class _Storage(RDBStorage):
    """Tells of each attempt whether a first heartbeat was recorded: only then can it be missed."""

    def record_heartbeat(self, trial_id: int) -> None:
        # A database that is out of reach for a moment misses a beat; raised, it would end them all.
        with contextlib.suppress(UpdateFinishedTrialError, StorageInternalError):
            super().record_heartbeat(trial_id)
            number = self.get_trial_number_from_id(trial_id)  # the next attempt inherits this one's
            self.set_trial_user_attr(trial_id, BEGAN, number)


def shown(storage: str) -> str:
    """A storage's URL without its password."""
    return sqlalchemy.make_url(storage).render_as_string(hide_password=True)


class Sampler(BaseSampler):
    """Optuna's TPE with a seed for each trial: f(seed of the search, position of the trial).

    So a search that continues does not repeat what it drew before, workers that start together draw
    different things, and an interrupted search draws what it would have drawn. The first trial is
    the configuration as it stands.
    """

    def __init__(self, seed: int, defaults: dict[str, Any], *, group: bool) -> None:
        self.seed = seed
        self.defaults = defaults
        self.group = group

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.position = position(trial, study.get_trials(deepcopy=False))
        (seed,) = np.random.SeedSequence([self.seed, self.position]).generate_state(1).tolist()
        self.tpe = TPESampler(seed=seed, group=self.group)
        self.tpe.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.tpe.infer_relative_search_space(study, trial) if self.position else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.tpe.sample_relative(study, trial, search_space) if self.position else {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if not self.position:
            return self.defaults[param_name]
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


class Halving(SuccessiveHalvingPruner):
    """Optuna's successive halving, in which an attempt that was killed does not compete."""

    def __init__(self, min_resource: int, factor: int) -> None:
        super().__init__(min_resource=min_resource, reduction_factor=factor)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return super().prune(_Distinct(study), trial)  # type: ignore[arg-type]


class _Distinct:
    """A study that shows each configuration's last attempt alone."""

    def __init__(self, study: Study) -> None:
        self._of = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def get_trials(self, *arguments: Any, **named: Any) -> list[FrozenTrial]:
        return distinct(self._of.get_trials(*arguments, **named))


# What trials mean.


def origin(trial: FrozenTrial) -> int:
    """The number of a trial's first attempt."""
    return (*_attempts(trial), trial.number)[0]


def _attempts(trial: FrozenTrial) -> list[int]:
    """Numbers of the attempts before this one."""
    return RetryHeartbeatStaleTrialCallback.retry_history(trial)


def distinct(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The last attempt of each configuration that was drawn, in the order of their origins."""
    trials = list(trials)
    replaced = {number for trial in trials for number in _attempts(trial)}
    last = [
        trial
        for trial in trials
        if trial.number not in replaced and trial.user_attrs.get(REASON) != OVERSHOOT
    ]
    return sorted(last, key=origin)


def position(trial: FrozenTrial, trials: Iterable[FrozenTrial]) -> int:
    """How many configurations were drawn before this trial's."""
    trials = list(trials)
    surplus = {origin(other) for other in trials if other.user_attrs.get(REASON) == OVERSHOOT}
    return sum(
        not _attempts(other) and other.number not in surplus
        for other in trials
        if other.number < origin(trial)
    )


def reason(trial: FrozenTrial) -> str:
    """Why a trial failed."""
    return str(trial.user_attrs.get(REASON, KILLED))


def finished(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state.is_finished()]


def completed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those trained to their end, the best first."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(done, key=lambda trial: (-(trial.value or 0), trial.number))


def seconds(trials: Iterable[FrozenTrial]) -> float:
    """For how long at least one trial was running; of what was killed nobody knows."""
    spans = sorted(
        (trial.datetime_start, trial.datetime_complete)
        for trial in trials
        if trial.datetime_start
        and trial.datetime_complete
        and (
            trial.state != TrialState.FAIL
            or REASON in trial.user_attrs
            or INTERRUPTED in trial.user_attrs
        )
    )
    total, until = 0.0, datetime.min  # noqa: DTZ901 - Optuna's have no zone either
    for start, end in spans:
        if end > until:
            total += (end - max(start, until)).total_seconds()
            until = end
    return total


def gain_of_second_half(trials: Sequence[FrozenTrial]) -> float | None:
    """By how much the later half of the finished trials raised the best value; None: unknown.

    That is about what as many trials again can be expected to bring, or less: the highest of twice
    as many draws lies above the highest of half by a constant where the tail is exponential (the
    Gumbel case of extreme value theory), and by less and less where the values are bounded.
    """
    done = finished(trials)
    before, after = completed(done[: len(done) // 2]), completed(done)
    if not before:
        return None
    return float(after[0].value - before[0].value)  # type: ignore[operator]


def ended(trials: Sequence[FrozenTrial], limits: Limits, deadline: float | None) -> str | None:
    """Why the search of these (distinct) trials is over, if it is."""
    count = len(finished(trials))
    if count >= limits.trials:
        return f"all {limits.trials} trials are done"
    if limits.gain is not None and count >= max(limits.after, 2):
        gain = gain_of_second_half(trials)
        if gain is not None and gain < limits.gain:
            return (
                "no improvement is expected: the second half of the trials raised the best by "
                f"{100 * gain:.2f} points, less than {100 * limits.gain:g}"
            )
    # Last: the conclusion, which may be drawn long after the search, asks again.
    if deadline is not None and time.time() >= deadline:
        return "its time is up"
    return None


def abort_reason(trials: Sequence[FrozenTrial]) -> str | None:
    """The one reason for which the first `ABORT_AFTER` of these (distinct) trials failed.

    The first drawn, not the first finished: that one of them is still running may save the others.
    """
    first = trials[:ABORT_AFTER]
    if len(first) < ABORT_AFTER or any(trial.state != TrialState.FAIL for trial in first):
        return None
    # The same failure may tell other sizes each time.
    kinds = {re.sub(r"\d[\d.,e+-]*", "#", reason(trial)) for trial in first}
    return reason(first[0]) if len(kinds) == 1 else None


# Running them.


def run_trials(
    study: Study,
    objective: Callable[[Trial, int], float],
    limits: Limits,
    *,
    deadline: float | None,
    first: int,
    silence: int,
) -> None:
    """Run trials, one after the other, until the search is over.

    Any number of processes may do so at once; each returns when no trial is running anywhere.

    Args:
        study: whose trials they are.
        objective: trains one, of which it is told the `origin` too.
        limits: of the search.
        deadline: as `time.time` counts.
        first: how many trials were there when the command was given: earlier failures are past.
        silence: seconds after which a trial that gives no sign of life counts as killed.
    """
    guarded = _guarded(study, objective, limits)
    newborn: dict[int, float] = {}
    while True:
        trials = study.get_trials(deepcopy=False)
        if abort_reason(distinct(trials[first:])):
            return
        drawn = distinct(trials)
        waiting, running = (
            any(trial.state == state for trial in trials)
            for state in (TrialState.WAITING, TrialState.RUNNING)
        )
        over = ended(drawn, limits, deadline)
        if over is None and (waiting or len(drawn) < limits.trials):
            try:
                study.optimize(guarded, n_trials=1, catch=Exception)
            except (TimeBudgetExceeded, TrialLost):
                continue
        elif running:
            # The last ones may have been killed, and then be tried again.
            optuna.storages.fail_stale_trials(study)
            for trial in trials:
                began = trial.user_attrs.get(BEGAN) == trial.number
                if trial.state == TrialState.RUNNING and not began:
                    since = newborn.setdefault(trial.number, time.monotonic())
                    if time.monotonic() - since > silence:
                        # Killed before its first heartbeat, which Optuna would wait for forever.
                        with contextlib.suppress(ValueError, UpdateFinishedTrialError):
                            put_back(study, trial.number)
            time.sleep(0.5)
        else:
            return


def _guarded(
    study: Study, objective: Callable[[Trial, int], float], limits: Limits
) -> Callable[[Trial], float]:
    """`objective` as Optuna calls it: what goes wrong is marked with its reason."""

    def guarded(trial: Trial) -> float:
        try:
            return attempted(trial)
        except (UpdateFinishedTrialError, StorageInternalError) as error:
            raise TrialLost from error

    def attempted(trial: Trial) -> float:
        trials = study.get_trials(deepcopy=False)
        (this,) = (other for other in trials if other.number == trial.number)
        if position(this, trials) >= limits.trials:
            trial.set_user_attr(REASON, OVERSHOOT)
            raise RuntimeError(OVERSHOOT)
        try:
            value = objective(trial, origin(this))
            if not math.isfinite(value):
                raise ValueError(f"the trial's value is {value}")  # noqa: TRY301
        except (optuna.TrialPruned, UpdateFinishedTrialError, StorageInternalError):
            raise
        except Exception as error:
            trial.set_user_attr(REASON, describe(error))
            if not isinstance(error, UserError):
                traceback.print_exc()
            raise
        except BaseException:
            with contextlib.suppress(UpdateFinishedTrialError):
                trial.set_user_attr(INTERRUPTED, True)  # noqa: FBT003
                put_back(study, trial.number)
            raise
        return value

    return guarded


def _after_kill(study: Study, killed: FrozenTrial) -> None:
    """Leave a trial whose heartbeat has stopped waiting for another attempt, or give it up."""
    fruitless = sum(
        INTERRUPTED not in attempt.user_attrs
        and len(attempt.intermediate_values) == len(killed.intermediate_values)
        for attempt in study.get_trials(deepcopy=False)
        if attempt.number in _attempts(killed)
    )
    if fruitless < RETRIES:
        _queue_again(study, killed)


def put_back(study: Study, number: int) -> None:
    """End an attempt that will not go on, and leave the trial waiting for the next."""
    attempt = study.tell(number, state=TrialState.FAIL)
    attempt.user_attrs = {}
    _queue_again(study, attempt)


def _queue_again(study: Study, attempt: FrozenTrial) -> None:
    RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, attempt)


def describe(error: Exception) -> str:
    """A failure in one line, the same for all failures of one kind."""
    text = _first_line(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
        return f"out of memory: {text}"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
