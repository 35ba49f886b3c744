"""How every command ends when it is not well: one message, a non-zero status, no traceback."""

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException


class UserError(Exception):
    """An error its user can fix: every command prints the message alone, without a traceback."""


class DivergenceError(UserError):
    """The loss or the weights of a training are no longer finite."""


SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; how clusters announce the end


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM came. No Exception: what handles failures must let it pass."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"Interrupted by {signal.Signals(signum).name}.")
        self.status = 128 + signum


@contextmanager
def cli_errors() -> Iterator[None]:
    """Turn a user's mistake into its message on standard error and exit status 1.

    A first SIGINT or SIGTERM becomes `Interrupted`, whose exit status is 130 or 143; a second one
    ends the process at once. With HYDRA_FULL_ERROR=1, and for a mistake of this project's own, the
    traceback comes through.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra would print a traceback of its own; like this it hands every exception on to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a file need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _signals_raise():
            yield
    except Interrupted as interrupted:
        print(f"\n{message(interrupted)}", file=sys.stderr)
        sys.exit(interrupted.status)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if full:
            raise
        sys.exit(f"error: {message(innermost(error))}")
    finally:
        if not full:
            del os.environ["HYDRA_FULL_ERROR"]


@contextmanager
def _signals_raise() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, interrupt) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler
    """Raise `Interrupted`, and leave the next signal its default: to end the process."""
    _leave_to_system()
    raise Interrupted(signum)


def _leave_to_system() -> None:
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


class DeferredSignals:
    """A first signal, noted where it comes and raised where it does no harm."""

    def __init__(self) -> None:
        self.noted: int | None = None

    def listen(self) -> None:
        """Note the first signal, also where somebody else has meanwhile asked for it."""
        if threading.current_thread() is threading.main_thread() and self.noted is None:
            for signum in SIGNALS:
                signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler
        _leave_to_system()
        self.noted = signum

    def raise_noted(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.noted is not None:
            raise Interrupted(self.noted)


@contextmanager
def deferred_signals() -> Iterator[DeferredSignals]:
    """Let a first signal wait for a call of `raise_noted`, or for the block's end.

    Raised between any two instructions, `Interrupted` may leave a queue that another thread reads
    in the middle of something, and TensorBoard's writer then waits for ever.
    """
    deferred = DeferredSignals()
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    deferred.listen()
    try:
        yield deferred
    except (Exception, SystemExit):
        # What fails then is the signal's doing: another process has ended, and talks no more.
        deferred.raise_noted()
        raise
    finally:
        if deferred.noted is not None:
            _leave_to_system()  # again: Lightning may have put back what it found
        elif threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)
    deferred.raise_noted()


def innermost(error: Exception) -> Exception:
    """The user's mistake itself, of what Hydra made of it."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, UserError):
        return error.__cause__
    if isinstance(error, ConfigCompositionException):
        if unknown := re.match(r"Could not override '([^']*)'", str(error)):
            return UserError(
                f"{unknown[1]}: there is no such key. "
                "python -m fashion.train --cfg job prints all there are."
            )
        return UserError(str(error).partition("\nConfig search path")[0])
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: this is no KEY=VALUE: {str(error).splitlines()[0]}.")
    return error


def message(error: BaseException) -> str:
    """What an exception says, and below it what was noted on its way."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])
