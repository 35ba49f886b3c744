"""One run folder: written and read here and nowhere else. Imports no torch.

.hydra/              the configuration, as Hydra writes it
checkpoints/         best.ckpt, last.ckpt
events.out.tfevents  TensorBoard
metrics.json         one flat object, written when the run has finished
val.npz, test.npz    labels and probabilities of the checkpoint reported
val_mirrored.npz, test_mirrored.npz    the same, averaged over each picture and its mirror image
report.html, figures/
projector_config.pbtxt, 00000/    TensorBoard's projector
"""

import contextlib
import fcntl
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float32, Int64
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion import config as schema
from fashion.errors import UserError
from fashion.runs import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
# Where a run's files lie and how it shows itself: two runs that differ in these alone are the same.
METADATA_KEYS = ("name", "sweep", "report", "resume", "data.root", "trainer.progress_bar")
# What a run predicts from: each picture, or the mean over it and its mirror image.
TTA = ("single", "mirrored")
# What a finished run holds of the checkpoint that it reports.
REPORTED = ("metrics.json", "*.npz", "report.html", "figures/*.png")
# Of metrics.json, beside those with a split before their name.
NUMBERS = ("best_epoch", "epochs", "parameters", "seconds", "images_per_second")
LARGEST_NUMBER = 1e18


class BusyError(UserError):
    """Another process writes the run folder."""


class Predictions(NamedTuple):
    """What a checkpoint answered to one split, in the split's order; rows sum to 1."""

    labels: Int64[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n 10"]


class Run:
    """A run folder, by its path; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """A run that exists.

        Raises:
            UserError: there is no run in `folder`, or a file of it is a link to somewhere else.
        """
        run = cls(folder)
        if not run._config_file.is_file():
            hint = ""
            if below := cls.below(folder):
                hint = f" Below it are {len(below)}, such as {below[0].folder}."
            elif not folder.exists():
                hint = " There is no such folder."
            raise UserError(f"{folder} is not a run folder (it has no .hydra/config.yaml).{hint}")
        files.refuse_links(folder)
        return run

    @classmethod
    def below(cls, folder: Path) -> list["Run"]:
        """Every run in `folder` or below it, sorted by path.

        Raises:
            UserError: a file of one is a link to somewhere else.
        """
        configs = sorted(folder.rglob(".hydra/config.yaml"))
        runs = [cls(path.parent.parent) for path in configs if path.is_file()]
        for run in runs:
            files.refuse_links(run.folder)
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
        """Whether validation chose the epoch reported.

        It did not with a fixed budget, or with nothing held out: then it is the last.
        """
        return self.validates and self.config.get("checkpoint") != "last"

    @property
    def reported_checkpoint(self) -> Path:
        return self.best_checkpoint if self.epoch_chosen else self.last_checkpoint

    @property
    def validates(self) -> bool:
        """Whether the run held pictures out to validate on.

        Raises:
            UserError: its configuration does not say.
        """
        data = self.config.get("data")
        size = data.get("val_size") if isinstance(data, DictConfig) else None
        if not isinstance(size, int):
            raise UserError(f"{self._config_file} has no number under data.val_size.")
        return size > 0

    @cached_property
    def config(self) -> DictConfig:
        """The resolved configuration, which names nothing outside this package to be built.

        It is data: whatever refers to the environment, to files or to other keys is refused.

        Raises:
            UserError: it cannot be read, or holds something that is not allowed.
        """
        try:
            text = files.read_text(self._config_file)
            files.refuse_references(text)
            config = OmegaConf.load(io.StringIO(text))
            content: Any = OmegaConf.to_container(config)
            files.refuse_non_text(content)
        except (
            OSError,
            ValueError,
            TypeError,
            RecursionError,
            yaml.YAMLError,
            OmegaConfBaseException,
        ) as error:
            raise UserError(f"{self._config_file} cannot be read: {files.reason(error)}") from error
        if not isinstance(config, DictConfig):
            raise UserError(f"{self._config_file} holds no configuration.")
        try:
            schema.check(content, {}, complete=False)
        except UserError as error:
            raise UserError(f"{self._config_file}: {error}") from error
        if not isinstance(content.get("data"), dict) or type(content.get("seed")) is not int:
            raise UserError(
                f"{self._config_file} is no run's configuration: data or seed is missing."
            )
        return config

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").is_file()

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json. What it lacks raises UserError where it is asked for, `get` apart.

        Raises:
            UserError: the run is unfinished, or the file is broken.
        """
        path = self.folder / "metrics.json"
        try:
            metrics = json.loads(files.read_text(path))
            files.refuse_non_text(metrics)
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} is unfinished: it has no metrics.json.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read: {files.reason(error)}") from error
        if not isinstance(metrics, dict):
            raise UserError(f"{path} holds no JSON object.")
        found = _Metrics(path, metrics)
        for key, value in metrics.items():
            if (key in NUMBERS or "/" in key) and not _is_number(value):
                raise found.fault(key)
        if metrics.get("val/temperature") == 0:
            raise found.fault("val/temperature")
        return found

    @property
    def history(self) -> dict[str, list[float]]:
        """Learning curves by epoch, counted from 1, from TensorBoard's events; empty without.

        Raises:
            UserError: the events cannot be read.
        """
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        # It reports each file, and that what a resumed run made anew is dropped.
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        try:
            for path in self.folder.glob("*tfevents*"):
                files.open_file(path).close()
            events = EventAccumulator(str(self.folder), size_guidance={"scalars": 0}).Reload()
            curves = {
                tag: [event.value for event in events.Scalars(tag)]
                for tag in ("train/loss", "train/acc", "val/loss", "val/acc")
                if tag in events.Tags()["scalars"]
            }
        except (
            Exception
        ) as error:  # TensorBoard and protobuf raise nearly anything on a broken file
            raise UserError(
                f"The events in {self.folder} cannot be read: {files.reason(error)}"
            ) from error
        epochs = max(map(len, curves.values()), default=0)
        for curve in curves.values():  # one may end early in a file that was cut
            curve.extend([math.nan] * (epochs - len(curve)))
        return {"epoch": [float(epoch + 1) for epoch in range(epochs)], **curves}

    def update_metrics(self, new: dict[str, Any]) -> None:
        """Add to metrics.json, or begin it: from then on the run counts as finished."""
        metrics = (self.metrics if self.finished else {}) | new
        self.write_text("metrics.json", json.dumps(metrics, indent=2) + "\n")

    def predictions(self, split: str, views: str = "single") -> Predictions:
        """What `write_predictions` wrote for "val" or "test".

        Raises:
            UserError: the file is missing or broken.
        """
        path = self.folder / _predictions_file(split, views)
        try:
            with files.open_file(path) as file, zipfile.ZipFile(file) as archive:
                labels, probabilities = (
                    files.array(archive, "labels"),
                    files.array(archive, "probabilities"),
                )
        except FileNotFoundError as error:
            views_given = "" if views == "single" else f" --views {views}"
            raise UserError(
                f"{self.folder} has no predictions for {split}{views_given}; make them with\n"
                f"  python -m fashion.evaluate {self.folder} --split {split}{views_given}"
            ) from error
        except Exception as error:  # zipfile and numpy raise nearly anything on a broken file
            raise UserError(f"{path} cannot be read: {files.reason(error)}") from error
        right: bool = (
            labels.ndim == 1
            and labels.dtype == np.int64
            and probabilities.dtype == np.float32
            and probabilities.shape == (len(labels), 10)
            and len(labels) > 0
            and 0 <= labels.min() <= labels.max() <= 9  # noqa: PLR2004
            and bool(np.isfinite(probabilities).all())
        )
        if not right:
            raise UserError(f"{path} does not hold n labels, 0..9, and n x 10 probabilities.")
        return Predictions(labels, probabilities)

    def write_predictions(
        self, split: str, predictions: Predictions, views: str = "single"
    ) -> None:
        self._write(
            _predictions_file(split, views), lambda file: np.savez(file, **predictions._asdict())
        )

    def write_figure(self, name: str, figure: "Figure") -> None:
        self._write(f"figures/{name}.png", lambda file: figure.savefig(file, format="png", dpi=150))

    def write_text(self, name: str, text: str) -> None:
        # A folder's name need not be UTF-8.
        self._write(name, lambda file: file.write(text.encode(errors="backslashreplace")))

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        with files.atomic_write(self.folder / name) as file:
            write(file)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder, which is made if need be, for this process's writing alone.

        Raises:
            UserError: it cannot be written, or another process holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Neither a link, which would be written through, nor a pipe keeps us.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            lock = os.fdopen(os.open(self.folder / ".lock", flags, 0o666), "rb", buffering=0)
        except OSError as error:
            raise UserError(
                f"The run folder {self.folder} cannot be written: {error.strerror}. "
                "A new run takes another one by hydra.run.dir=FOLDER."
            ) from error
        with lock:
            try:
                # The system lets go of it when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(
                    f"Another process is writing the run {self.folder}. Wait for it; a new run "
                    "takes another folder by hydra.run.dir=FOLDER."
                ) from error
            except OSError as error:
                raise UserError(
                    f"The run folder {self.folder} cannot be locked ({error.strerror}), so that "
                    "two processes might write it at once. Use a file system that knows locks."
                ) from error
            yield

    @contextlib.contextmanager
    def claim(
        self, config: DictConfig, hydra: Any = None, *, extend: bool = False
    ) -> Iterator[None]:
        """Hold the folder for one process's writing, and put the configuration into it.

        Args:
            config: the run's; of an unfinished run, its own but for more epochs.
            hydra: how the configuration came about, if by Hydra's command line.
            extend: whether a finished run may go on, and is unfinished until it has.

        Raises:
            UserError: it cannot be written, another process holds it, or it holds a run that is
                finished or of another configuration.
        """
        with self.held():
            if self.finished and not extend:
                raise UserError(f"{self.folder} holds a finished run already.")
            if self._config_file.is_file():
                self._refuse_another(config)
            try:
                self._begin(config, hydra)
                yield
            except Exception:
                # Refused before it began: a folder left behind would pass for an unfinished run.
                if {path.name for path in self.folder.iterdir()} == {".hydra", ".lock"}:
                    shutil.rmtree(self.folder)
                raise

    def _begin(self, config: DictConfig, hydra: Any) -> None:
        if hydra is not None and not self._config_file.is_file():
            self.write_text(".hydra/hydra.yaml", OmegaConf.to_yaml(hydra))
            self.write_text(".hydra/overrides.yaml", OmegaConf.to_yaml(hydra.overrides.task))
        self.write_text(".hydra/config.yaml", OmegaConf.to_yaml(config, resolve=True))
        vars(self).pop("config", None)  # what was read before
        for pattern in REPORTED:  # by an end that is none now
            for path in self.folder.glob(pattern):
                path.unlink()
        for scratch in self.folder.rglob(".*.tmp"):  # of a process that was killed in writing
            scratch.unlink()

    def _refuse_another(self, config: DictConfig) -> None:
        epochs = "trainer.max_epochs"
        before, now = (OmegaConf.select(each, epochs) for each in (self.config, config))
        if _identity(self.config, epochs) != _identity(config, epochs) or now < before:
            raise UserError(
                f"{self.folder} holds a run of another configuration; continue it with\n"
                f"  {self.resume_command}\n"
                "or give this one a folder of its own (sweep=NAME for a grid)."
            )
        if now > before and (planned := _planned(config)):
            raise UserError(
                f"{self.folder} cannot go on to trainer.max_epochs = {now}: with {planned}, its "
                f"epochs were planned for {before} in all. Start another run."
            )

    @property
    def resume_command(self) -> str:
        """What a person types to continue it, whatever the folder is called."""
        folder = str(self.folder)
        if not re.fullmatch(r"[\w/.-]+", folder):  # a comma alone would make a grid of it
            folder = '"' + folder.replace('"', r"\"") + '"'
        return shlex.join(["python", "-m", "fashion.train", f"resume={folder}"])

    def same_configuration(self, config: DictConfig) -> bool:
        """Whether this run was made with `config`, apart from where things lie."""
        return bool(_identity(self.config) == _identity(config))


def _predictions_file(split: str, views: str) -> str:
    return f"{split}.npz" if views == "single" else f"{split}_{views}.npz"


def refuse_other_splits(runs: Sequence[Run]) -> None:
    """Raises UserError: the runs held different pictures out for validation."""
    for key in ("data.split_seed", "data.val_size"):
        if len({OmegaConf.select(run.config, key) for run in runs}) > 1:
            raise UserError(
                f"These runs hold out different images for validation:\n{listed(runs, key)}"
            )


def common_predictions(
    runs: Sequence[Run], split: str, views: str = "single"
) -> dict[Run, Predictions]:
    """What several runs answered to the same pictures.

    Raises:
        UserError: one has no predictions, or they answered different pictures.
    """
    if split == "val":
        refuse_other_splits(runs)
    answers, errors = {}, []
    for run in runs:
        try:
            answers[run] = run.predictions(split, views)
        except UserError as error:  # all at once: they are mended one by one
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(errors))
    (first, expected), *others = answers.items()
    if other := [run for run, given in others if not np.array_equal(given.labels, expected.labels)]:
        raise UserError(
            f"These runs answered other images than {first.folder}, or in another order: "
            f"their labels are not the same.\n{listed(other)}"
        )
    return answers


def listed(runs: Iterable[Run], key: str | None = None) -> str:
    """A line a run, with what its configuration says under `key`."""
    return "\n".join(
        f"  {run.folder}" + (f"  {key}={OmegaConf.select(run.config, key)}" if key else "")
        for run in runs
    )


class _Metrics(dict[str, Any]):
    """What metrics.json holds; a key that it lacks is its writer's mistake and not ours."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.path = path

    def fault(self, key: str) -> UserError:
        return UserError(f"{self.path} has no number under {key!r}.")

    def __missing__(self, key: str) -> Any:
        raise self.fault(key)


def _is_number(value: object) -> bool:
    """Whether it can be computed with: nothing that a run reports is negative or endless."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and 0 <= value < LARGEST_NUMBER  # type: ignore[operator]


def _planned(config: DictConfig) -> str | None:
    """What makes a training's first epochs depend on how many there are in all; None: nothing."""
    if (schedule := OmegaConf.select(config, "optimizer.schedule")) != "constant":
        return f"optimizer.schedule = {schedule}"
    if warmup := OmegaConf.select(config, "optimizer.warmup"):
        return f"optimizer.warmup = {warmup}"
    if OmegaConf.select(config, "augmentation.erase") and config.augmentation.clean_epochs:
        return f"augmentation.clean_epochs = {config.augmentation.clean_epochs}"
    return None


def _identity(config: DictConfig, *besides: str) -> Any:
    config = config.copy()
    OmegaConf.resolve(config)
    for place in (*METADATA_KEYS, *besides):
        OmegaConf.update(config, place, None, force_add=True)
    return OmegaConf.to_container(config)


def provenance() -> dict[str, Any]:
    """What a number needs to be made again: versions, machine, and the commit it was made at.

    The machine's cores are those torch may use here, of those there are.
    """
    import torch

    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "machine": f"{platform.system()} {platform.machine()}, {cores}",
        "commit": _git("rev-parse", "HEAD"),
        "clean": _git("status", "--porcelain") == "",
    }


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(  # noqa: S603
            ["git", "-C", Path(__file__).parent, *arguments],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout, or no git
