"""What a snapshot of a study says: when a search stops, and why its trials failed."""

import time
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from fashion.errors import UserError
from fashion.search.trials import ABORT_AFTER, ATTEMPTS, Limits, Trials, describe, outcome


def trials(*values: float | None) -> Trials:
    """Trials with these values; None for one that was pruned."""
    made = []
    for number, value in enumerate(values):
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        made.append(create_trial(state=state, value=0.5 if value is None else value))
        made[-1].number = number
    return Trials(made)


def test_stop_rules() -> None:
    limits = Limits(6, gain=0.001, after=4)
    rising, flat = trials(0.8, None, 0.81, 0.9), trials(0.8, 0.9, None, 0.9005)
    assert rising.stop_reason(limits, None) is None
    assert rising.gain_of_second_half == pytest.approx(0.1)
    why = flat.stop_reason(limits, None)
    assert why is not None
    assert "raised the best by 0.05 percentage points, less than 0.1" in why
    assert flat.stop_reason(Limits(6), None) is None
    assert flat.stop_reason(limits._replace(after=5), None) is None
    every = trials(*[0.1 * i for i in range(6)])
    assert every.stop_reason(limits, None) == "all 6 trials are done"
    assert trials().stop_reason(Limits(6), time.time() - 1) == "its time is up"
    assert trials().stop_reason(Limits(6), time.time() + 9) is None
    # Nothing was trained to its end in the first half: nothing can be said.
    unknown = trials(None, None, 0.9, 0.9)
    assert unknown.gain_of_second_half is None
    assert unknown.stop_reason(limits, None) is None


def test_the_best_comes_first_and_the_earlier_of_equals() -> None:
    found = trials(0.8, 0.9, None, 0.9)
    assert [trial.number for trial in found.completed] == [1, 3, 0]
    assert found.best is not None
    assert found.best.number == 1
    assert trials(None).best is None


def test_the_time_a_search_has_taken() -> None:
    """Overlapping attempts count once, pauses and killed attempts not at all."""
    attempts: list[list[Any]] = [
        [[0, 0.0, 10.0]],
        [[0, 5.0, 12.0], [2, 100.0, 101.0]],
        [[0, 6.0, 7.0]],
        [[0, 0.0, None]],
    ]
    made = [create_trial(value=0.5, user_attrs={ATTEMPTS: each}) for each in attempts]
    assert Trials(made).seconds == 13
    assert Trials([]).seconds == 0


def test_abort_reason() -> None:
    """The first drawn decide: one that is running may save the others."""
    failed = [
        create_trial(state=TrialState.FAIL, user_attrs={"reason": f"no space for {n} bytes"})
        for n in range(ABORT_AFTER + 1)
    ]
    assert Trials(failed).abort_reason == "no space for 0 bytes"
    assert Trials(failed[2:]).abort_reason is None  # too few
    failed[0].state = TrialState.RUNNING
    assert Trials(failed).abort_reason is None
    failed[0] = create_trial(state=TrialState.FAIL, user_attrs={"reason": "no file"})
    assert Trials(failed).abort_reason is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "out of memory: MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes\nmore"),
            "out of memory: DefaultCPUAllocator: can't allocate memory: 8 bytes",
        ),
        (UserError("conv = [9]: too few pixels"), "conv = [9]: too few pixels"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_a_failure_in_one_line(error: Exception, text: str) -> None:
    assert describe(error) == text


def test_the_innermost_reason_counts() -> None:
    from hydra.utils import instantiate

    with pytest.raises(Exception, match="Error in call to target") as wrapped:
        instantiate({"_target_": "math.sqrt", "_args_": [-1]})
    assert describe(wrapped.value) == "ValueError: math domain error"


def test_outcomes() -> None:
    def trial(state: TrialState, epochs: int, **more: Any) -> FrozenTrial:
        steps = {step: step / 10 for step in range(1, epochs + 1)}
        return create_trial(state=state, intermediate_values=steps, **more)

    assert outcome(trial(TrialState.COMPLETE, 2, value=0.2)) == "20.00 % after 2 epochs"
    assert outcome(trial(TrialState.PRUNED, 1, value=0.1)) == "10.00 % pruned after 1 epoch"
    failed = trial(TrialState.FAIL, 1, user_attrs={"reason": "out of memory: x"})
    assert outcome(failed) == "failed: out of memory: x"
    assert outcome(trial(TrialState.RUNNING, 3)) == "30.00 % after 3 epochs"
    assert outcome(trial(TrialState.RUNNING, 0)) == "in its first epoch"
    every_fifth = create_trial(state=TrialState.RUNNING, intermediate_values={5: 0.2, 10: 0.3})
    assert outcome(every_fifth) == "30.00 % after 10 epochs"
