"""A run folder: its files, locking, writing and reading. Imports no torch.

.hydra/              the configuration, as Hydra writes it
checkpoints/         best.ckpt, last.ckpt
history.csv          one row per epoch
metrics.json         one flat object, written when the run has finished
val.npz, test.npz    labels and probabilities of the reported checkpoint
val_hflip.npz, val_shift.npz, ...  the same with test-time augmentation, `evaluate --tta`
report.html, figures/
events.out.tfevents, projector_config.pbtxt, 00000/    TensorBoard
"""

import contextlib
import csv
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float32, Int64
from omegaconf import DictConfig, OmegaConf

from fashion.config import METADATA_KEYS, has_validation
from fashion.errors import UserError
from fashion.runs import untrusted
from fashion.runs.files import SCRATCH, atomic_write

# Test-time augmentations, each with the number of views of an image whose predictions it averages.
VIEWS = {"none": 1, "hflip": 2, "shift": 10}


def _predictions_file(split: str, tta: str) -> str:
    return f"{split}.npz" if tta == "none" else f"{split}_{tta}.npz"


# Results of a finished run, deleted when it is continued.
REPORTED = (
    "metrics.json",
    *(_predictions_file(split, tta) for split in ("val", "test") for tta in VIEWS),
    *("report.html", "report-test.html"),
    *(f"figures/confusion_matrix{end}.png" for end in ("", "-test")),
    *(f"figures/mistakes{end}.png" for end in ("", "-test")),
)
LONGEST_HISTORY = 2**24  # bytes


class BusyError(UserError):
    """Another process writes the run folder."""


class Predictions(NamedTuple):
    """A checkpoint's predictions of one split, in the split's order; rows sum to 1."""

    labels: Int64[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n classes"]


class Run:
    """A run folder; creating the object reads nothing.

    Args:
        folder: the path.
        trust: whether its files may name any class to be built.
    """

    def __init__(self, folder: Path, *, trust: bool = False) -> None:
        self.folder, self.trust = folder, trust

    @classmethod
    def open(cls, folder: Path, *, trust: bool = False) -> "Run":
        """Return a run that exists.

        Raises:
            UserError: there is no run in `folder`, or a file of it is a link to somewhere else.
        """
        run = cls(folder, trust=trust)
        if not run._config_file.is_file():
            hint = ""
            if below := cls.find(folder):
                hint = f" Below it are {len(below)}, such as {below[0].folder}."
            elif not folder.exists():
                hint = " There is no such folder."
            raise UserError(f"{folder} is not a run folder (it has no .hydra/config.yaml).{hint}")
        untrusted.refuse_links(folder)
        return run

    @classmethod
    def find(cls, folder: Path) -> list["Run"]:
        """Return every run in `folder` or below it, sorted by path.

        Raises:
            UserError: a file of one is a link to somewhere else.
        """
        configs = sorted(folder.rglob(".hydra/config.yaml"))
        runs = [cls(path.parent.parent) for path in configs if path.is_file()]
        for run in runs:
            untrusted.refuse_links(run.folder)
        return runs

    @property
    def _config_file(self) -> Path:
        return self.folder / ".hydra" / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def epoch_chosen(self) -> bool:
        """Whether the reported epoch is the best on validation; otherwise it is the last one."""
        return self.validates and self.config.get("checkpoint") != "last"

    @property
    def reported_checkpoint(self) -> Path:
        return self.best_checkpoint if self.epoch_chosen else self.last_checkpoint

    @property
    def validates(self) -> bool:
        """Whether the run has a validation set.

        Raises:
            UserError: its configuration does not say.
        """
        data = self.config.data
        if data.get("folds") is None and not isinstance(data.get("val_size", 1), int):
            raise UserError(f"{self._config_file} has no number under data.val_size.")
        return has_validation(data)

    @cached_property
    def config(self) -> DictConfig:
        """The resolved configuration.

        Raises:
            UserError: it cannot be read, or holds something that is not allowed.
        """
        return untrusted.read_config(self._config_file)

    def section(self, key: str, command: str) -> Any:
        """Return a section of the configuration that may be built, as plain values.

        Args:
            key: dotted, such as "model.network".
            command: to suggest in the message to a user who trusts the run.

        Raises:
            UserError: it is missing, it names a class that is not on the allow-list and the run
                is not trusted, or its values are not valid for its class.
        """
        from fashion.config import check

        content: Any = OmegaConf.select(self.config, key)
        if not isinstance(content, DictConfig) or "_target_" not in content:
            raise UserError(f"{self._config_file} names no class under {key}.")
        content = OmegaConf.to_container(content)
        try:
            if not self.trust:
                untrusted.refuse_foreign({key: content}, command)
            check({key: content}, {}, complete=False)
        except UserError as error:
            raise UserError(f"{self._config_file}: {error}") from error
        return content

    @property
    def finished(self) -> bool:
        """Whether the run has ended and its metrics.json is written."""
        return (self.folder / "metrics.json").is_file()

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json; indexing it with a missing key raises UserError.

        "seconds" is the duration of the training, validation included; "val/acc" and other keys
        with a slash are of one split (docs/evaluation.md).

        Raises:
            UserError: the run is unfinished, or the file is broken.
        """
        return untrusted.read_metrics(self.folder / "metrics.json")

    @property
    def history(self) -> dict[str, list[float]]:
        """Columns of history.csv, one value or NaN per epoch; empty if there is no file.

        "epoch" (from 1), "step", "lr" at the epoch's start, "seconds" of training without
        validation, and "train/loss", "val/acc" and so on, accuracies 0..1.

        Raises:
            UserError: the file is broken.
        """
        path = self.folder / "history.csv"
        try:
            lines = untrusted.read_text(path, LONGEST_HISTORY).splitlines()
            rows = list(csv.DictReader(lines, strict=True))
            if rows and "epoch" not in rows[0]:
                raise ValueError("it has no column epoch")  # noqa: TRY301
            return {
                key: [float(row[key]) if row[key] else math.nan for row in rows]
                for key in (rows[0] if rows else ())
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            raise UserError(f"{path} cannot be read: {untrusted.reason(error)}") from error

    def update_metrics(self, new: dict[str, Any]) -> None:
        """Add to metrics.json, or create it, which makes the run finished."""
        metrics = (self.metrics if self.finished else {}) | new
        self.write_text("metrics.json", json.dumps(metrics, indent=2) + "\n")

    def predictions(self, split: str, tta: str = "none") -> Predictions:
        """Return what `write_predictions` wrote for "val" or "test" and `tta`.

        `tta` is "none", "hflip" or "shift".

        Raises:
            UserError: the file is missing or broken.
        """
        path = self.folder / _predictions_file(split, tta)
        try:
            labels, probabilities = untrusted.read_arrays(path, "labels", "probabilities")
        except FileNotFoundError as error:
            if split == "val" and not self.validates:
                raise UserError(
                    f"{self.folder} has no validation set (data.val_size = 0): --split test reads "
                    "its predictions for the test set."
                ) from error
            option = "" if tta == "none" else f" --tta {tta}"
            raise UserError(
                f"{self.folder} has no predictions for {split}{option}; make them with\n"
                f"  {self.command('evaluate', '--split', split, *option.split())}"
            ) from error
        valid: bool = (
            labels.ndim == 1
            and labels.dtype == np.int64
            and probabilities.dtype == np.float32
            and probabilities.ndim == 2  # noqa: PLR2004
            and len(probabilities) == len(labels) > 0
            and 0 <= labels.min() <= labels.max() < probabilities.shape[1]
            and bool(np.isfinite(probabilities).all())
        )
        if not valid:
            raise UserError(f"{path} does not hold n labels and n x classes probabilities.")
        return Predictions(labels, probabilities)

    def write_predictions(self, split: str, predictions: Predictions, tta: str = "none") -> None:
        self._write(
            _predictions_file(split, tta), lambda file: np.savez(file, **predictions._asdict())
        )

    def write_text(self, name: str, text: str) -> None:
        # A folder's name need not be UTF-8.
        self._write(name, lambda file: file.write(text.encode(errors="backslashreplace")))

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        with atomic_write(self.folder / name) as file:
            write(file)

    @cached_property
    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock", timeout=0, mode=0o666)

    @property
    def is_locked(self) -> bool:
        """Whether a running process holds the folder's lock."""
        if not (self.folder / ".lock").exists():
            return False
        try:
            with self.lock():
                return False
        except BusyError:
            return True

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder, created if missing, so that only this process writes it.

        The system releases the lock when the process ends, however it ends. Locks of one object
        may be nested.

        Raises:
            UserError: it cannot be written.
            BusyError: another process has locked it.
        """
        path = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise UserError(f"{path} is not a plain file; remove it.")
            self._lock.acquire()
        except Timeout as error:
            raise BusyError(
                f"Another process is writing the run {self.folder}. Wait for it; a new run "
                "takes another folder by hydra.run.dir=FOLDER."
            ) from error
        except NotImplementedError as error:
            raise UserError(
                f"The run folder {self.folder} cannot be locked ({error}), so that two processes "
                "might write it at once. Use a file system that supports locks."
            ) from error
        except OSError as error:
            raise UserError(
                f"The run folder {self.folder} cannot be written: {error.strerror}. "
                "A new run takes another one by hydra.run.dir=FOLDER."
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def start(
        self, config: DictConfig, hydra: Any = None, *, extend: bool = False
    ) -> Iterator[None]:
        """Lock the folder and put the configuration into it.

        Args:
            config: the run's; to continue one, its own, in which only the number of epochs may
                be larger and metadata keys may differ.
            hydra: how Hydra's command line made the configuration, if it did.
            extend: whether a finished run may be continued; its results are deleted first.

        Raises:
            UserError: the folder cannot be written, another process has locked it, or it holds
                something else than an unfinished run of this configuration.
        """
        self._refuse_other_files()
        with self.lock():
            if self.finished and not extend:
                raise UserError(f"{self.folder} holds a finished run already.")
            if self._config_file.is_file():
                from fashion.runs.resume import refuse_another

                refuse_another(self, config)
            try:
                self._begin(config, hydra)
                yield
            except Exception:
                # Nothing was trained: without this the folder would look like an unfinished run.
                if {path.name for path in self.folder.iterdir()} <= {".hydra", ".lock"}:
                    self.discard()
                raise

    @contextlib.contextmanager
    def join(self, config: DictConfig) -> Iterator["Run"]:
        """Join a run, without locking it, that another process of the same training starts."""
        self.config = config  # the file may not have been written yet
        yield self

    def _refuse_other_files(self) -> None:
        """Raise UserError if the folder holds files but is no run."""
        if self._config_file.is_file() or not self.folder.is_dir():
            return
        # What a run that was killed while it began has left is no other's.
        begun = {".lock", ".hydra"} if self._has_only_begun() else {".lock"}
        if others := sorted({path.name for path in self.folder.iterdir()} - begun):
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")  # noqa: PLR2004
            raise UserError(
                f"{self.folder} holds files that are not a run's ({shown}). They are left as they "
                "are; choose an empty or a new folder with hydra.run.dir=FOLDER."
            )

    def _has_only_begun(self) -> bool:
        """Whether .hydra/ holds nothing but what `_begin` writes before the configuration."""
        folder = self._config_file.parent
        files = folder.iterdir() if folder.is_dir() else ()
        return all(
            path.name in ("hydra.yaml", "overrides.yaml") or path.suffix == SCRATCH
            for path in files
        )

    def _begin(self, config: DictConfig, hydra: Any) -> None:
        if hydra is not None and not self._config_file.is_file():
            self.write_text(".hydra/hydra.yaml", OmegaConf.to_yaml(hydra))
            self.write_text(".hydra/overrides.yaml", OmegaConf.to_yaml(hydra.overrides.task))
        # Results of an earlier end first: they would be taken for those of more epochs.
        for name in REPORTED:
            (self.folder / name).unlink(missing_ok=True)
        self.write_text(".hydra/config.yaml", OmegaConf.to_yaml(config, resolve=True))
        vars(self).pop("config", None)  # what was read before
        for scratch in self.folder.rglob(f".*{SCRATCH}"):  # of a process that was killed
            scratch.unlink()

    def discard(self) -> None:
        """Remove the configuration, without which the folder is no run."""
        for name in ("config", "hydra", "overrides"):
            self._config_file.with_name(f"{name}.yaml").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._config_file.parent.rmdir()
        (self.folder / ".lock").unlink(missing_ok=True)

    def command(self, name: str, *arguments: str) -> str:
        """Return a command about this run that can be pasted into a shell."""
        return shlex.join(["python", "-m", f"fashion.{name}", str(self.folder), *arguments])

    @property
    def resume_command(self) -> str:
        """The command that continues the run, quoted for Hydra and for the shell."""
        folder = str(self.folder)
        if not re.fullmatch(r"[\w/.-]+", folder):  # a comma alone would make a grid of it
            folder = '"' + folder.replace('"', r"\"") + '"'
        content: Any = OmegaConf.to_container(self.config)
        trust = ["trust=true"] if untrusted.foreign_targets(content) else []
        return shlex.join(["python", "-m", "fashion.train", f"resume={folder}", *trust])

    def same_configuration(self, config: DictConfig) -> bool:
        """Return whether this run has the configuration `config`, except for metadata keys."""
        return bool(without_metadata(self.config) == without_metadata(config))


def without_metadata(config: DictConfig, *besides: str) -> dict[str, Any]:
    """Return a configuration as plain values, with `METADATA_KEYS` and `besides` set to None."""
    config = config.copy()
    OmegaConf.resolve(config)
    for key in (*METADATA_KEYS, *besides):
        OmegaConf.update(config, key, None, force_add=True)
    return OmegaConf.to_container(config)  # type: ignore[return-value]


def listed(runs: Iterable[Run], key: str | None = None) -> str:
    """Return one line per run: its folder and the value of `key` in its configuration."""
    return "\n".join(
        f"  {run.folder}" + (f"  {key}={OmegaConf.select(run.config, key)}" if key else "")
        for run in runs
    )
