"""Atomic writing of files, and protection of existing ones."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from fashion.errors import UserError

SCRATCH = ".fashion-tmp"  # suffix of a file that is being written


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` at the end of the block, unless the block raises.

    Raises:
        UserError: `path` cannot be written.
    """
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:100]}.", suffix=SCRATCH
        )
        with open(handle, "wb") as file:  # noqa: PTH123 - mkstemp's handle
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp's files are private
        os.replace(scratch, path)  # noqa: PTH105
    except BaseException as error:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)  # a signal may come after it was renamed
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_existing(paths: Iterable[Path | None], *, force: bool) -> None:
    """Raise UserError if an output file of a command exists and `force` is false.

    A path that is no plain file, such as /dev/null, or that is named twice is always refused.
    """
    named = set()
    for path in filter(None, paths):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file that can be replaced; name another.")
        if path.exists() and not force:
            raise UserError(f"{path} exists; --force overwrites it.")
        if (place := os.path.realpath(path)) in named:
            raise UserError(f"{path} is named twice, for different content.")
        named.add(place)
