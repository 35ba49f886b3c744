"""User errors and signals: commands end with one message, a non-zero status, no traceback."""

import contextlib
import difflib
import errno
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

# errno of a write whose reader has closed: of a pipe, of a terminal, of a pipe on Windows.
READER_GONE = (errno.EPIPE, errno.EIO, errno.EINVAL)
# Ctrl-C; sent by clusters at the time limit; sent before that with `sbatch --signal=USR1`.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
# Packages that provide a Hydra launcher, and the extra that installs each.
EXTRAS = {"joblib": "parallel", "submitit": "slurm", "ray": "ray"}


class UserError(Exception):
    """An error that its user can fix: commands print the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook prints (IPython calls this): the message alone."""
        return [f"error: {message(self)}"]


class DivergenceError(UserError):
    """The loss or the weights of a training are no longer finite."""


class Interrupted(BaseException):
    """Raised on the first signal of `SIGNALS`; `except Exception` does not catch it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"Interrupted by {signal.Signals(signum).name}.")
        self.status = 128 + signum


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Command-line error handling: one message on standard error, exit status 1.

    The first signal becomes `Interrupted` (exit status 128 + its number); a second one ends the
    process at once. When the reader of a pipe closes it, output is dropped and the work goes on.
    With HYDRA_FULL_ERROR=1, and for all other exceptions (bugs), the traceback is printed.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra would print a traceback of its own; this way it raises every exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if sys.stdout is None:  # closed, as by `>&-`
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
        sys.stdout = _Output(stdout)
    try:
        with signals_raise():
            try:
                yield
            except (Exception, Interrupted):
                with contextlib.suppress(OSError):  # which would hide this one
                    sys.stdout.flush()
                raise
            finally:
                sys.stdout.flush()  # now, when an error can still be told
    except Interrupted as interrupted:
        print(f"\n{message(interrupted)}", file=sys.stderr)
        sys.exit(interrupted.status)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if full:
            raise
        sys.exit(f"error: {message(innermost(error))}")
    finally:
        sys.stdout = stdout
        if not full:
            del os.environ["HYDRA_FULL_ERROR"]


class _Output:
    """Standard output that is discarded once its reader has closed (`... | head`, a terminal)."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self._stream.fileno())
        if error.errno not in READER_GONE:
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Raise `Interrupted` on the first signal; restore the handlers at the end of the block."""
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
    """Raise `Interrupted`; from then on a signal ends the process, as by default."""
    restore_default_signals()
    raise Interrupted(signum)


def restore_default_signals() -> None:
    """Restore the default handlers of `SIGNALS`, which end the process."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


class DeferredSignals:
    """Records the first signal; `raise_noted` raises it at a point that the caller chooses."""

    def __init__(self) -> None:
        self.noted: int | None = None

    def listen(self) -> None:
        """Install the handlers, or reinstall them after another library has replaced them."""
        if threading.current_thread() is threading.main_thread() and self.noted is None:
            for signum in SIGNALS:
                signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler
        restore_default_signals()
        self.noted = signum

    def raise_noted(self) -> None:
        if self.noted is not None:
            raise Interrupted(self.noted)


@contextlib.contextmanager
def deferred_signals() -> Iterator[DeferredSignals]:
    """Defer the first signal to a call of `raise_noted`, or to the end of the block.

    Raised between any two instructions, `Interrupted` can leave a queue that another thread reads
    in an inconsistent state; TensorBoard's writer then waits forever.
    """
    deferred = DeferredSignals()
    if threading.current_thread() is not threading.main_thread():
        yield deferred
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    deferred.listen()
    try:
        yield deferred
    except (Exception, SystemExit):
        # Caused by the signal: it has ended another process, which this one communicates with.
        deferred.raise_noted()
        raise
    finally:
        if deferred.noted is not None:
            restore_default_signals()  # Lightning may have put back what it found
        else:
            for signum, handler in before.items():
                signal.signal(signum, handler)
    deferred.raise_noted()


def innermost(error: BaseException) -> BaseException:  # noqa: PLR0911 - a kind each
    """Return the user's error inside what Hydra raised, with advice on how to fix it."""
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )

    asked = r"sweeper/optuna|INTERVAL_SWEEP|\binterval\("
    if isinstance(error, HydraException) and re.search(asked, str(error)):
        return UserError(
            "A search in ranges, as by interval(...) or hydra/sweeper=optuna, is python -m "
            "fashion.tune search=NAME: a range is an entry of conf/search/NAME.yaml, such as "
            "optimizer.lr: {float: [0.001, 0.1], log: true}. See docs/search.md."
        )
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return innermost(error.__cause__)
    if isinstance(error, OverrideParseException):
        return UserError(_unparsable(error.override))
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        extra = next((x for package, x in EXTRAS.items() if name.startswith(package)), None)
        if group == "hydra/launcher" and extra:
            return UserError(f"{group}={name} is not installed: pip install '.[{extra}]'")
        return UserError(
            f"{group}={name}: there is no such option.{did_you_mean(name, error.options)} "
            f"Options: {', '.join(error.options)}."
        )
    if isinstance(error, ConfigCompositionException):
        if isinstance(error.__cause__, OverrideParseException):
            return innermost(error.__cause__)
        return UserError(_uncomposable(error))
    if found := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        key, _, value = found.group(1).partition("=")
        list_, text = shlex.quote(f"{key}=[{value}]"), shlex.quote(f'{key}="{value}"')
        return UserError(
            f"{found.group(1)}: several values make a grid, with -m in front of all overrides. "
            f"A list is {list_}, text {text}."
        )
    key = getattr(error, "full_key", None)
    if key and key not in str(error).partition("\n")[0]:
        return UserError(f"{key}: {str(error).splitlines()[0]}")
    return error


def _uncomposable(error: BaseException) -> str:
    """Return what is wrong with a key or a group, and what to type instead."""
    from fashion.config import CONF

    if str(error).startswith("Could not override"):
        key = re.findall(r"(?:override '|full_key: )([^'\n]*)", f"{error}\n{error.__cause__}")[-1]
        if (Path(CONF) / key).is_dir():
            return (
                f"{key} is a group: {key}=NAME takes conf/{key}/NAME.yaml, and {key}.KEY=VALUE "
                "sets a key in it."
            )
        return (
            f"{key}: there is no such key.{did_you_mean(key, _known_keys())} "
            "python -m fashion.train --cfg job prints all keys; +KEY=VALUE adds one."
        )
    reason = f": {str(error.__cause__).splitlines()[0]}." if "merging" in str(error) else ""
    return str(error).partition("\nConfig search path")[0] + reason


def _unparsable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        hint = "Overrides are KEY=VALUE; a list must not contain spaces, or be quoted as a whole."
    elif value.count("[") != value.count("]"):
        hint = f"The shell has split it at a space. Quote it: {shlex.quote(key + '=[1,2]')}."
    else:
        text = value.strip("\"'").replace('"', r"\"")
        quoted = shlex.quote(f'{key}="{text}"')
        hint = f"Quote it for Hydra and for the shell: {quoted}."
    return f"{override}: this is no KEY=VALUE that Hydra can read. {hint}"


def print_help(text: str) -> None:
    """Print a Hydra command's help and exit, if the command line asks for it.

    Hydra's own help composes the configuration twice and prints all of it.
    """
    if not {"--help", "-h"} & set(sys.argv[1:]):
        return
    from fashion.config import CONF

    print(f"{text}\nGroups, as GROUP=NAME (a folder of conf/ each):")
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        print(
            f"  {folder.name:13} {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}"
        )
    print("\n--cfg job prints all keys with their values; KEY=VALUE changes one; --hydra-help is")
    print("about Hydra's own options.")
    sys.exit(0)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean a, b?", or "" if no known word is similar."""
    near = difflib.get_close_matches(word, sorted({*known} - {word}), 3, cutoff=0.75)
    return f" Did you mean {', '.join(near)}?" if near else ""


def _known_keys() -> Iterator[str]:
    """Yield the keys in conf/: read only once a key was not found."""
    import yaml

    from fashion.config import CONF, walk

    for path in Path(CONF).rglob("*.yaml"):
        group = path.relative_to(CONF).parent.as_posix()
        if group == "search":  # its files hold ranges, not values
            continue
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, _ in walk(content):
            yield key if group in (".", "experiment") else f"{group}.{key}"


def first_line(error: BaseException, empty: str = "no reason given") -> str:
    """Return the first line of an exception's text, or `empty` if it has none."""
    return (str(error).strip().splitlines() or [empty])[0]


def message(error: BaseException) -> str:
    """Return an exception's text, followed by its notes (`add_note`)."""
    text = str(error) or type(error).__name__
    return "\n".join([text, *getattr(error, "__notes__", [])])
