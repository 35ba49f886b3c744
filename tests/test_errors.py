"""How every command ends: by an error, by a signal, by a reader that has gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from omegaconf.errors import ConfigKeyError

from fashion.errors import (
    SIGNALS,
    Interrupted,
    UserError,
    cli_errors,
    deferred_signals,
    did_you_mean,
    interrupt,
    message,
)


def interrupted(signum: signal.Signals) -> None:
    with cli_errors():
        assert signal.getsignal(signum) is interrupt
        try:
            signal.raise_signal(signum)
        finally:
            assert all(signal.getsignal(each) == signal.SIG_DFL for each in SIGNALS)


@pytest.mark.parametrize("signum", SIGNALS, ids=[signum.name for signum in SIGNALS])
def test_a_signal(signum: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """A first one ends the command in order, a second one at once; then all is as it was."""
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as ended:
        interrupted(signum)
    assert ended.value.code == 128 + signum
    assert capsys.readouterr().err == f"\nInterrupted by {signum.name}.\n"
    assert signal.getsignal(signum) == before


def between_batches(reached: list[str]) -> None:
    with deferred_signals() as signals:
        signals.raise_noted()
        signal.raise_signal(signal.SIGTERM)
        reached.append("after the signal")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one does not wait
        signals.raise_noted()
        reached.append("not reached")


def at_the_end(reached: list[str]) -> None:
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        reached.append("after the signal")


def with_lightning(reached: list[str]) -> None:
    """Lightning raises a SystemExit of status 0."""
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        reached.append("after the signal")
        sys.exit()


@pytest.mark.parametrize("block", [between_batches, at_the_end, with_lightning])
def test_a_deferred_signal(block: Callable[[list[str]], None]) -> None:
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


def failing(error: Exception) -> None:
    error.add_note("What to do.")
    with cli_errors():
        raise error


@pytest.mark.parametrize("kind", [UserError, ConfigKeyError, OSError])
def test_an_error_is_one_message_with_its_notes(kind: type[Exception]) -> None:
    with pytest.raises(SystemExit) as ended:
        failing(kind("What happened."))
    assert ended.value.code == "error: What happened.\nWhat to do."


def test_a_traceback_is_for_errors_of_this_project_and_for_who_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())
    assert "HYDRA_FULL_ERROR" not in os.environ
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError):
        failing(UserError())
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_an_error_without_text_has_its_name() -> None:
    assert message(ZeroDivisionError()) == "ZeroDivisionError"


def test_a_notebook_shows_the_message_alone() -> None:
    error = UserError("What happened.")
    error.add_note("What to do.")
    assert error._render_traceback_() == ["error: What happened.\nWhat to do."]


def test_did_you_mean() -> None:
    assert did_you_mean("patiense", ["patience", "patience", "mode"]) == " Did you mean patience?"
    assert did_you_mean("patience", ["patience"]) == did_you_mean("x", ["mode"]) == ""


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_work() -> None:
    """As in `python -m fashion.train | head -1`."""
    script = (
        "import sys\n"
        "from fashion.errors import cli_errors\n"
        "with cli_errors():\n"
        "    for line in range(100_000): print(line, flush=True)\n"
        "    print('done', file=sys.stderr)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stderr  # noqa: PT018
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == "done\n"
        assert process.wait() == 0
