"""Files: read as a stranger may have made them, written whole or not at all."""

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from fashion.errors import UserError

LARGEST_TEXT = 2**17  # bytes; what a run writes has a few thousand
DEEPEST = 50  # levels; what a run writes has five


def refuse_links(folder: Path) -> None:
    """A stranger's run could have us read any file, and put it into a report, or write it.

    Raises:
        UserError: a file in `folder` is a link to somewhere else.
    """
    inside = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise UserError(f"{path} leads out of the run's folder, to {path.resolve()}.")


def open_file(path: Path) -> IO[bytes]:
    """A file of a run, opened to be read.

    Raises:
        OSError: it is missing, or no plain file: a pipe would keep its reader waiting.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is not a file")
    return path.open("rb")


def read_text(path: Path) -> str:
    """A run's text file, of bounded size.

    Raises:
        OSError, ValueError: it cannot be read, is too large, or is not UTF-8.
    """
    with open_file(path) as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"it is larger than {LARGEST_TEXT:,} bytes")
    return content.decode()


def refuse_references(text: str) -> None:
    """YAML that refers to anything is not what `claim` writes, which has all of it resolved.

    An interpolation could read the environment into a report; that, and an alias, could also name
    twice what names twice something else, and so on until the memory is full.

    Raises:
        ValueError: it holds one.
        RecursionError: it is nested deeper than `DEEPEST`.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:  # which takes yaml's parser time squared
            raise RecursionError
        if isinstance(event, yaml.AliasEvent) or "${" in getattr(event, "value", ""):
            line = event.start_mark.line + 1
            raise ValueError(f"line {line} refers to another value; a run's holds plain ones")


def refuse_non_text(content: Any) -> None:
    """What could be read and yet not be written into a report or onto a terminal.

    Raises:
        TypeError: something else than text, numbers, lists and dicts.
        ValueError: half a character.
    """
    json.dumps(content, ensure_ascii=False).encode()


def array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an .npz, which takes no more memory than the file has bytes.

    Raises:
        Exception: nearly any, where it is broken or its header does not say what it holds.
    """
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, and could expand without end")
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of another format than numpy.savez writes")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        content = np.frombuffer(file.read(), dtype)
    return content.reshape(shape, order="F" if fortran else "C").copy()


def reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes `path`'s place once it is whole, or leaves nothing behind.

    Raises:
        UserError: it cannot be written.
    """
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with open(handle, "wb") as file:  # noqa: PTH123 - mkstemp's handle
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp's files are private
        os.replace(scratch, path)  # noqa: PTH105
    except BaseException as error:
        if scratch is not None:
            os.unlink(scratch)  # noqa: PTH108
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_existing(paths: Iterable[Path | None], *, force: bool) -> None:
    """Raise UserError if an output file of a command exists and `force` does not allow that."""
    for path in paths:
        if path is not None and path.exists() and not force:
            raise UserError(f"{path} exists; --force overwrites it.")
