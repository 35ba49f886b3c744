"""How every command ends when something is wrong: one message, a non-zero status, no traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from fashion import UserError


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn a user's mistake into its message on standard error and exit status 1.

    With HYDRA_FULL_ERROR=1, and for a mistake of this project's own, the traceback comes through.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra would print a traceback of its own; like this it hands every exception on to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if full:
            raise
        sys.exit(f"error: {mistake(error)}")
    finally:
        if not full:
            del os.environ["HYDRA_FULL_ERROR"]


def mistake(error: Exception) -> Exception:
    """The user's mistake itself: Hydra wraps what the building of an object raises."""
    wrapped = isinstance(error, InstantiationException) and isinstance(error.__cause__, UserError)
    return error.__cause__ if wrapped else error  # type: ignore[return-value]
