"""How every command ends: by an error, by a signal."""

import signal
import sys
from collections.abc import Callable

import pytest

from fashion.errors import (
    SIGNALS,
    Interrupted,
    UserError,
    cli_errors,
    deferred_signals,
    interrupt,
    message,
)


def interrupted(signum: signal.Signals) -> None:
    with cli_errors():
        assert signal.getsignal(signum) is interrupt
        try:
            signal.raise_signal(signum)
        finally:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal(signum: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A first one ends the command in order, a second one at once; then all is as it was."""
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as ended:
        interrupted(signum)
    assert ended.value.code == status
    assert capsys.readouterr().err == f"\nInterrupted by {signum.name}.\n"
    assert signal.getsignal(signum) == before


def at_a_safe_point(reached: list[str]) -> None:
    with deferred_signals() as signals:
        signals.raise_noted()
        signal.raise_signal(signal.SIGTERM)
        reached.append("after the signal")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one does not wait
        signals.raise_noted()
        reached.append("after the safe point")


def at_the_end(reached: list[str]) -> None:
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        reached.append("after the signal")


def with_lightning(reached: list[str]) -> None:
    """Which raises a SystemExit of status 0."""
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        reached.append("after the signal")
        sys.exit()


@pytest.mark.parametrize("block", [at_a_safe_point, at_the_end, with_lightning])
def test_a_postponed_signal(block: Callable[[list[str]], None]) -> None:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    reached: list[str] = []
    try:
        with pytest.raises(Interrupted, match="SIGTERM"):
            block(reached)
        assert reached == ["after the signal"]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    with deferred_signals():
        pass
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before


def failing(error: UserError) -> None:
    with cli_errors():
        raise error


def test_notes_follow_the_message() -> None:
    error = UserError("What happened.")
    error.add_note("What to do.")
    assert message(error) == "What happened.\nWhat to do."
    with pytest.raises(SystemExit) as ended:
        failing(error)
    assert ended.value.code == "error: What happened.\nWhat to do."
