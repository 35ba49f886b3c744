"""How every command ends: by an error, by a signal."""

import signal

import pytest

from fashion import UserError
from fashion.command import clear_errors, interrupt, message


def interrupted(signum: signal.Signals) -> None:
    with clear_errors():
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


def failing(error: UserError) -> None:
    with clear_errors():
        raise error


def test_notes_follow_the_message() -> None:
    error = UserError("What happened.")
    error.add_note("What to do.")
    assert message(error) == "What happened.\nWhat to do."
    with pytest.raises(SystemExit) as ended:
        failing(error)
    assert ended.value.code == "error: What happened.\nWhat to do."
