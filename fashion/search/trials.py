"""Trials of a search: what their states, values and attributes mean, and when a search stops."""

import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from fashion.errors import UserError, first_line, innermost
from fashion.report.metrics import percent

# Attributes of a trial. ATTEMPTS: one entry per process that has worked on it, [epochs finished
# before, start, end], in seconds since 1970; the end is None while it runs, and if it was killed.
# REASON: why it failed.
ATTEMPTS, REASON = "attempts", "reason"
# A trial fails after so many attempts that were killed in the same epoch.
MOST_KILLS = 4
# A search aborts if the first so many trials fail, all for one reason.
ABORT_AFTER = 10


class Limits(NamedTuple):
    """When a search stops."""

    trials: int  # number of finished ones
    # Least increase of the best accuracy, 0..1, by the second half of the trials; None: any.
    gain: float | None = None
    after: int = 0  # trials from which on `gain` is required


class Trials:
    """One snapshot of a study: its trials in the order in which they were drawn.

    A trial whose worker was killed or interrupted stays in the state RUNNING until another worker
    resumes it; a trial has a worker if its run folder is locked.

    Args:
        trials: all of a study, or those after its first ones, in the order of their numbers.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._trials = trials

    @classmethod
    def of(cls, study: Study, first: int = 0) -> "Trials":
        """Return the trials drawn after the first `first` ones."""
        return cls(study.get_trials(deepcopy=False)[first:])

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[FrozenTrial]:
        return iter(self._trials)

    def __getitem__(self, index: int) -> FrozenTrial:
        return self._trials[index]

    @property
    def running(self) -> list[FrozenTrial]:
        """Return the trials that have begun and not ended: running, interrupted or killed."""
        return [trial for trial in self._trials if not trial.state.is_finished()]

    @cached_property
    def finished(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials if trial.state.is_finished()]

    @cached_property
    def failed(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials if trial.state == TrialState.FAIL]

    @property
    def pruned(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials if trial.state == TrialState.PRUNED]

    @cached_property
    def completed(self) -> list[FrozenTrial]:
        """Return the trials trained to their end, the best first."""
        done = [trial for trial in self._trials if trial.state == TrialState.COMPLETE]
        return sorted(done, key=lambda trial: (-(trial.value or 0), trial.number))

    @property
    def best(self) -> FrozenTrial | None:
        return self.completed[0] if self.completed else None

    @property
    def seconds(self) -> float:
        """Return for how long at least one trial was running; killed attempts do not count."""
        spans = sorted(
            (start, end)
            for trial in self._trials
            for _, start, end in trial.user_attrs.get(ATTEMPTS, ())
            if end is not None
        )
        total, until = 0.0, 0.0
        for start, end in spans:
            total += max(end - max(start, until), 0.0)
            until = max(until, end)
        return total

    @property
    def gain_of_second_half(self) -> float | None:
        """The increase of the best value (0..1) by the second half of the finished trials, or None.

        As many trials again can be expected to increase it by about as much, or less: doubling the
        number of draws raises their maximum by a constant if the tail is exponential (the Gumbel
        case of extreme value theory), and by less each time if the values are bounded.
        """
        before = Trials(self.finished[: len(self.finished) // 2]).best
        if before is None or self.best is None:
            return None
        return float(self.best.value) - float(before.value)  # type: ignore[arg-type]

    def stop_reason(self, limits: Limits, deadline: float | None) -> str | None:
        """Return why the search is over, if it is.

        Args:
            limits: of the search.
            deadline: in seconds since 1970; None for none.
        """
        count = len(self.finished)
        if count >= limits.trials:
            return f"all {limits.trials} trials are done"
        gain = self.gain_of_second_half
        if (
            limits.gain is not None
            and count >= max(limits.after, 2)
            and gain is not None
            and gain < limits.gain
        ):
            return (
                "no improvement is expected: the second half of the trials raised the best by "
                f"{100 * gain:.2f} percentage points, less than {100 * limits.gain:g}"
            )
        # Last: after the search, when the time is always up, the other reasons are still reported.
        if deadline is not None and time.time() >= deadline:
            return "its time is up"
        return None

    @property
    def abort_reason(self) -> str | None:
        """Return the common reason for which the first `ABORT_AFTER` trials failed, or None.

        The first drawn, not the first finished: one of them may still be running and succeed.
        """
        first = self._trials[:ABORT_AFTER]
        if len(first) < ABORT_AFTER or any(trial.state != TrialState.FAIL for trial in first):
            return None
        # Messages of the same failure may differ in numbers, such as sizes.
        kinds = {re.sub(r"\d[\d.,e+-]*", "#", failure(trial)) for trial in first}
        return failure(first[0]) if len(kinds) == 1 else None


def failure(trial: FrozenTrial) -> str:
    """Return why a trial failed."""
    return str(trial.user_attrs.get(REASON, "no reason was recorded"))


def describe(error: BaseException) -> str:
    """Return an exception in one line, the same for all failures of one kind."""
    error = innermost(error)
    text = first_line(error, type(error).__name__)[:500]
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
        return f"out of memory: {text}"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def validated_epochs(trial: FrozenTrial) -> int:
    """Return the last epoch, from 1, whose validation a trial has reported; 0 if there is none."""
    return max(trial.intermediate_values, default=0)


def outcome(trial: FrozenTrial) -> str:
    """Return the result of a finished trial, or the progress of a running one, in a few words."""
    epochs = validated_epochs(trial)
    after = f"{epochs} epoch{'s' * (epochs != 1)}"
    if trial.state == TrialState.FAIL:
        return f"failed: {failure(trial)}"
    if trial.state.is_finished():
        verb = "pruned after" if trial.state == TrialState.PRUNED else "after"
        return f"{percent(trial.value, 2)} {verb} {after}"
    last = trial.intermediate_values[epochs] if epochs else None
    return f"{percent(last, 2)} after {after}" if epochs else "in its first epoch"


def record(trial: FrozenTrial) -> dict[str, Any]:
    """Return all that is known of a trial, for search.json."""
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value,
        "reason": failure(trial) if trial.state == TrialState.FAIL else None,
        "accuracy_by_epoch": trial.intermediate_values,
        "parameters": trial.params,
        "attributes": trial.user_attrs,
        "began": _iso(trial.datetime_start),
        "ended": _iso(trial.datetime_complete),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
