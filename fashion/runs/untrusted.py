"""Reading untrusted run folders: nothing in them runs code.

A run folder names the classes that build it. Only those of an allow-list are built, unless the
user gives `--trust` (for a resumed training: `trust=true`). Files are read as data: bounded in
size, without links out of the folder, without references to the environment, without pickles.
"""

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion.config import is_ours, sections, signature
from fashion.errors import UserError

LARGEST_TEXT = 2**17  # bytes; a run's files have a few thousand
LARGEST_METRICS = 2**22  # metrics.json has an entry per pair of classes
LARGEST_NUMBER = 1e18
MISSING = (None, "images_per_second")  # null is allowed: no epoch was completed
DEEPEST = 50  # levels; a run's configuration has five
# A fixed module and one capitalized name, so that no attribute of a class can be named. None of
# these classes writes or loads a file.
ALLOWED = re.compile(
    r"lightning\.pytorch\.Trainer"
    r"|lightning\.pytorch\.callbacks\.(EarlyStopping|LearningRateMonitor|RichProgressBar"
    r"|TQDMProgressBar|EMAWeightAveraging|StochasticWeightAveraging|GradientAccumulationScheduler)"
    r"|torch\.optim\.(lr_scheduler\.)?[A-Z]\w+"
    r"|torch\.nn\.[A-Z]\w*Loss"
    r"|torchmetrics\.classification\.[A-Z]\w+"
    r"|torchvision\.transforms\.v2\.[A-Z]\w+"
)


def refuse_foreign(config: dict[str, Any], command: str) -> None:
    """Refuse sections whose `_target_` is not on the allow-list; nothing is imported.

    Args:
        config: the sections that are about to be built.
        command: to suggest in the message to a user who trusts them.

    Raises:
        UserError: naming the class and the command.
    """
    if foreign := foreign_targets(config):
        raise UserError(
            f"This run builds {', '.join(foreign)}, which can run any code. "
            f"If you trust where it comes from:\n  {command}"
        )


def foreign_targets(config: dict[str, Any]) -> list[str]:
    """Return the `_target_`s that are not on the allow-list, each with its key."""
    found = []
    for key, section in sections(config):
        target = str(section["_target_"])
        if is_ours(target):
            signature(key, target)  # refuses what is not one of our configurable classes
        elif not ALLOWED.fullmatch(target):
            found.append(f"{key}._target_ = {target}")
    return found


def refuse_links(folder: Path) -> None:
    """Refuse links out of the folder: any file could be read into a report, or overwritten.

    A link that wandb makes to its own log is allowed; nothing here opens it.

    Raises:
        UserError: a file in `folder` is a link to somewhere else.
    """
    inside = Path(os.path.realpath(folder))  # Path.resolve raises where links form a loop
    for path in folder.rglob("*"):
        ours = not path.relative_to(folder).match("wandb/*/logs/debug-core.log")
        if not (ours and path.is_symlink()):
            continue
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(inside):
            raise UserError(f"{path} leads out of the run's folder, to {target}.")


def open_file(path: Path) -> IO[bytes]:
    """Open a file of a run for reading.

    Raises:
        OSError: it is missing, or no plain file: a pipe would block its reader.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is not a file")
    return path.open("rb")


def read_text(path: Path, limit: int = LARGEST_TEXT) -> str:
    """Read a run's text file of at most `limit` bytes.

    Raises:
        OSError, ValueError: it cannot be read, is too large, or is not UTF-8.
    """
    with open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit:,} bytes")
    return content.decode()


def read_config(path: Path) -> DictConfig:
    """Read a run's configuration: plain values, without references to anything.

    Raises:
        UserError: it cannot be read, or holds something that is not allowed.
    """
    try:
        text = read_text(path)
        _refuse_references(text)
        config = OmegaConf.load(io.StringIO(text))
        _refuse_non_text(OmegaConf.to_container(config))
    except (
        *(OSError, ValueError, TypeError, RecursionError),
        *(yaml.YAMLError, OmegaConfBaseException),
    ) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} holds no configuration.")
    if not isinstance(config.get("data"), DictConfig) or type(config.get("seed")) is not int:
        raise UserError(f"{path} is no run's configuration: data or seed is missing.")
    return config


def read_metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json; indexing the result with a missing key raises UserError.

    Raises:
        UserError: the run is unfinished, or the file is broken.
    """
    try:
        metrics = json.loads(read_text(path, LARGEST_METRICS))
        _refuse_non_text(metrics)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is unfinished: it has no metrics.json.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path} holds no JSON object.")
    found = _Metrics(path, metrics)
    for key, value in metrics.items():
        counted = key in ("best_epoch", "epochs", "parameters", "seconds", "images_per_second")
        if counted and not (_is_number(value) and value >= 0) and (value, key) != MISSING:
            raise found.error(key)
        if "/" in key and not _is_number(value):
            raise found.error(key)
    if metrics.get("val/temperature", 1) <= 0:
        raise found.error("val/temperature")
    return found


class _Metrics(dict[str, Any]):
    """The content of metrics.json; indexing it with a missing key raises UserError."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.path = path

    def error(self, key: str) -> UserError:
        return UserError(f"{self.path} has no number under {key!r}.")

    def __missing__(self, key: str) -> Any:
        raise self.error(key)


def _is_number(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < LARGEST_NUMBER  # type: ignore[arg-type]


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Read arrays of an .npz, which take no more memory than the file has bytes.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is broken, compressed, or its header does not fit its content.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return [_array(archive, name) for name in names]
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and numpy raise nearly anything on a broken file
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, and could expand without end")
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of another format than numpy.savez writes")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        content = np.frombuffer(file.read(), dtype)
    return content.reshape(shape, order="F" if fortran else "C").copy()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values; reading it executes nothing.

    Raises:
        UserError: it is missing, broken or no checkpoint.
    """
    import pickle

    import torch

    try:
        with open_file(path) as file:
            _refuse_damage(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
        parts = [content[key] for key in ("state_dict", "epoch", "global_step")]
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}.") from error
    except Exception as error:  # torch.load raises nearly anything on a broken or hostile file
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run what is in it
            why = "it is damaged, or holds more than numbers, which could run code"
        raise UserError(f"{path} cannot be read as a checkpoint: {why}.") from error
    if [type(part) for part in parts[1:]] != [int, int]:
        raise UserError(f"{path} is no checkpoint of a run.")
    return content  # type: ignore[no-any-return]


def _refuse_damage(file: IO[bytes]) -> None:
    """Verify the CRC-32 checksums, which torch does not, and refuse compressed content.

    Raises:
        ValueError, zipfile.BadZipFile: it is damaged or compressed.
    """
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed, which no checkpoint is")
        if damaged := archive.testzip():
            raise ValueError(f"it is damaged ({damaged})")
    file.seek(0)


def _refuse_references(text: str) -> None:
    """Refuse YAML that refers to anything: a run writes its configuration resolved.

    An interpolation could read environment variables into a report; nested interpolations or
    aliases could also expand exponentially until the memory is full.

    Raises:
        ValueError: it holds an interpolation or an alias.
        RecursionError: it is nested deeper than `DEEPEST`.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:  # yaml's parser takes quadratic time in the depth
            raise RecursionError
        if isinstance(event, yaml.AliasEvent) or "${" in getattr(event, "value", ""):
            line = event.start_mark.line + 1
            raise ValueError(f"line {line} refers to another value; a run's holds plain ones")


def _refuse_non_text(content: Any) -> None:
    """Refuse what cannot be written into a report or onto a terminal.

    Raises:
        TypeError: it holds something other than text, numbers, lists and dicts.
        ValueError: text has a lone surrogate.
    """
    json.dumps(content, ensure_ascii=False).encode()


def reason(error: Exception) -> str:
    """Return an exception's text for a message, or its type's name if it has none."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__
