"""Lightning callbacks: seeding, timing, history, interruption, progress, gradients, pruning."""

import contextlib
import csv
import io
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor, nn

from fashion.config import NonNegativeFloat, NonNegativeInt, PositiveInt
from fashion.data.datamodule import epoch_seed
from fashion.errors import UserError
from fashion.runs.files import atomic_write


class StopEarly(EarlyStopping):
    """EarlyStopping that trains no extra epoch when an already stopped run is resumed.

    Args:
        monitor: the metric that must improve.
        mode: whether higher or lower is better.
        patience: stop after so many validations without improvement.
        min_delta: a smaller change, in the metric's own unit, is no improvement: 0.001 of val/acc
            is 0.1 percentage points.
        warmup_epochs: epochs at the start that are ignored, as during a learning-rate warmup.

    Raises:
        UserError: during the fit, if there is no such metric.
    """

    def __init__(
        self,
        *,
        monitor: str = "val/acc",
        mode: Literal["max", "min"] = "max",
        patience: PositiveInt,
        min_delta: NonNegativeFloat = 0.0,
        warmup_epochs: NonNegativeInt = 0,
    ) -> None:
        super().__init__(monitor, min_delta, patience, mode=mode)
        self.warmup_epochs = warmup_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        # Also where trainer.min_epochs goes on, and the metric has improved since.
        trainer.should_stop |= self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED

    def _should_skip_check(self, trainer: pl.Trainer) -> bool:
        if trainer.current_epoch < self.warmup_epochs or super()._should_skip_check(trainer):
            return True
        known = trainer.callback_metrics
        if self.monitor not in known and "val/loss" in known:
            raise UserError(
                f"callbacks.early_stopping.monitor = {self.monitor}: there is no such metric. "
                f"Known: {', '.join(sorted(known))}."
            )
        # Before the first validation, as where trainer.max_steps ends an epoch, there is nothing to
        # check.
        return self.monitor not in known


class EpochSeed(Callback):
    """Makes an epoch's randomness, dropout's too, a function of (seed, epoch) alone.

    So a resumed run has the random numbers of an uninterrupted one. Of several processes, each has
    its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        # Seeds of 32 bits and epochs of 24 leave the highest byte to the rank.
        rank = trainer.global_rank << 56
        torch.manual_seed(rank + epoch_seed(self.seed, trainer.current_epoch))


class Timing(Callback):
    """Measures the seconds of the fit and, separately, of training epochs without validation."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the fit
        self.training_seconds = 0.0
        self.images = 0  # seen in whole training epochs
        self.epoch_seconds = 0.0  # of the last epoch, without validation
        self.epoch_images = 0
        # Of the running epoch: 0 without a validation. A sanity check comes before the first epoch.
        self.validation_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - self._fit_start,
            "training_seconds": self.training_seconds,
            "images": self.images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add to the times of the earlier epochs; an unfinished epoch does not count."""
        self.seconds = state_dict["seconds"]
        self.training_seconds = state_dict["training_seconds"]
        self.images = state_dict["images"]

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.training_seconds if self.images else None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._fit_start = time.perf_counter() - self.seconds

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._epoch_start = time.perf_counter()
        self.validation_seconds, self.epoch_images = 0.0, 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        self.epoch_images += len(batch[1]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.validation_seconds += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.epoch_seconds = time.perf_counter() - self._epoch_start - self.validation_seconds
        self.training_seconds += self.epoch_seconds
        self.images += self.epoch_images

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.seconds = time.perf_counter() - self._fit_start

    def epoch_metrics(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Return the metrics of the epoch that ends, without an earlier epoch's validation."""
        return {
            key: value
            for key, value in trainer.callback_metrics.items()
            if self.validation_seconds or not key.startswith("val/")
        }


class History(Checkpoint):
    """Writes history.csv with any logger: per epoch (from 1) step, lr, seconds and all metrics.

    It is a Checkpoint so that Lightning calls it after the module has logged the epoch. It comes
    before the callbacks that save checkpoints, so a checkpoint's rows are in the file; a resumed
    run drops the rows beyond its checkpoint.

    Args:
        path: of the file.
        timing: the fit's.
    """

    def __init__(self, path: Path, timing: Timing) -> None:
        self.path, self.timing = path, timing
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        # Without the times, in which alone an interrupted run differs from an uninterrupted one.
        return {"rows": [{**row, "seconds": 0.0} for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        seconds: dict[str, float] = {}
        # If the file was changed, the times of the earlier epochs are missing.
        with (
            contextlib.suppress(OSError, KeyError, ValueError, csv.Error),
            self.path.open(newline="") as file,
        ):
            seconds = {row["epoch"]: float(row["seconds"]) for row in csv.DictReader(file)}
        for row in self.rows:
            row["seconds"] = seconds.get(f"{row['epoch']:g}", math.nan)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "lr": self._rate,  # at the epoch's start
                "seconds": round(self.timing.epoch_seconds, 3),
                **{k: float(v) for k, v in self.timing.epoch_metrics(trainer).items()},
            }
        )
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.write()

    def write(self) -> None:
        columns = dict.fromkeys(key for row in self.rows for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({k: "" if math.isnan(v) else f"{v:.9g}" for k, v in row.items()})
        with atomic_write(self.path) as file:
            file.write(text.getvalue().encode())


class InterruptBetweenBatches(Callback):
    """Ends the fit on a signal, between two batches, in all processes.

    Args:
        listen: records signals from its call on.
        raise_noted: raises an exception that ends the fit, if a signal has been recorded.
    """

    def __init__(self, listen: Callable[[], None], raise_noted: Callable[[], None]) -> None:
        self.listen, self.raise_noted = listen, raise_noted

    def on_train_start(self, *_: Any) -> None:
        # Lightning has now installed its handler of SIGTERM, which would wait at once for the other
        # processes, which may be waiting for this one.
        self.listen()

    def on_train_batch_start(self, *_: Any) -> None:
        self.raise_noted()

    def on_validation_batch_start(self, *_: Any) -> None:
        self.raise_noted()

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        if launcher := trainer.strategy.launcher:
            launcher.kill(signal.SIGTERM)


class EpochTable(Checkpoint):
    """Prints a table with one row per epoch.

    On a terminal the running epoch's row is redrawn in place; elsewhere each finished epoch prints
    one plain line. Rows fit 60 columns. It is a Checkpoint for the reason that `History` is.

    Args:
        timing: the fit's.
    """

    HEADER = f"{'epoch':>9} {'loss':>8} {'train %':>8} {'val %':>8} {'images/s':>9} {'left':>9}"

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self._drawn = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._first, self._start = trainer.current_epoch, time.perf_counter()
        if trainer.is_global_zero:
            print(self.HEADER, flush=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        now = time.perf_counter()
        if now - self._drawn > 0.2 and sys.stdout.isatty() and trainer.is_global_zero:  # noqa: PLR2004
            self._drawn = now
            done = trainer.fit_loop.epoch_loop.batch_idx + 1
            fraction = min(1.0, done / max(1.0, float(trainer.num_training_batches)))
            self._redraw(
                f"{self._epoch(trainer)} {f'{100 * fraction:.0f} % done':>36} "
                f"{self._left(trainer, fraction):>9}"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if not trainer.is_global_zero:
            return
        metrics = self.timing.epoch_metrics(trainer)
        loss, train, val = (metrics.get(key) for key in ("train/loss", "train/acc", "val/acc"))
        rate = self.timing.epoch_images / (self.timing.epoch_seconds or math.nan)
        row = (
            f"{self._epoch(trainer)} {_cell(loss, 1, 4):>8} {_cell(train, 100, 2):>8} "
            f"{_cell(val, 100, 2):>8} {rate:>9,.0f} {self._left(trainer, 1.0):>9}"
        )
        if sys.stdout.isatty():
            self._redraw(row)
            print()
        else:
            print(row, flush=True)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        if sys.stdout.isatty() and trainer.is_global_zero:
            print()  # the message begins on a line of its own

    def _epoch(self, trainer: pl.Trainer) -> str:
        epochs = trainer.max_epochs or -1
        return f"{trainer.current_epoch + 1}/{epochs if epochs > 0 else '-'}".rjust(9)

    def _left(self, trainer: pl.Trainer, fraction: float) -> str:
        done = trainer.current_epoch - self._first + fraction
        left = (trainer.max_epochs or -1) - trainer.current_epoch - fraction
        if done <= 0 or left < 0:
            return ""
        seconds = round((time.perf_counter() - self._start) / done * left)
        hours, minutes = divmod(seconds // 60, 60)
        return (
            f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
        )

    def _redraw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print("\r" + line[:width].ljust(min(width, len(self.HEADER))), end="", flush=True)


def _cell(value: Tensor | None, factor: int, digits: int) -> str:
    return "-" if value is None else f"{factor * float(value):.{digits}f}"


class GradientNorm(Callback):
    """Logs train/gradient_norm: the L2 norm of the gradients before clipping, mean of an epoch."""

    def on_train_epoch_start(self, *_: Any) -> None:
        self._norms: list[Tensor] = []

    def on_before_optimizer_step(self, _: pl.Trainer, module: pl.LightningModule, *__: Any) -> None:
        gradients = [each.grad for each in module.parameters() if each.grad is not None]
        self._norms.append(nn.utils.get_total_norm(gradients))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._norms:
            mean = torch.stack(self._norms).mean()
            pl_module.log("train/gradient_norm", mean, logger=False)  # for history.csv
            pl_module.log_epoch({"train/gradient_norm": mean.item()}, trainer.global_step)  # type: ignore[operator]


class OptunaPruning(Callback):
    """Reports a trial's validation accuracy to a search, which may end the trial.

    Args:
        report: called after each validated epoch with its number, from 1, and its validation
            accuracy, 0..1.
        before_epoch: called before each epoch; raises an exception to end the fit.
        before_step: likewise before each batch.
    """

    def __init__(
        self,
        report: Callable[[int, float], None],
        before_epoch: Callable[[], None],
        before_step: Callable[[], None],
    ) -> None:
        self.report, self.before_epoch, self.before_step = report, before_epoch, before_step
        self._validated = False  # in the running epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.before_epoch()
        self._validated = False

    def on_train_batch_start(self, *_: Any) -> None:
        self.before_step()

    def on_validation_end(self, *_: Any) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        accuracy = trainer.callback_metrics.get("val/acc")
        if self._validated and accuracy is not None:  # or it would be an earlier epoch's
            self.report(trainer.current_epoch + 1, float(accuracy))
