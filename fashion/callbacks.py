"""What hangs on the training loop and is not learning."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch.utils.data import DataLoader

from fashion.data import epoch_seed
from fashion.schema import PositiveInt


def early_stopping(*, patience: PositiveInt) -> EarlyStopping:
    """Stop once validation accuracy has not improved for `patience` epochs."""
    return EarlyStopping("val/acc", mode="max", patience=patience)


class EpochSeed(Callback):
    """Makes an epoch's randomness, dropout's too, a function of (seed, epoch) alone.

    So a run that continues draws what it would have drawn without the interruption.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        torch.manual_seed(epoch_seed(self.seed, trainer.current_epoch))


class Stopwatch(Callback):
    """Times the fit, and apart from it the training epochs without their validation."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the fit
        self.training_seconds = 0.0
        self.images = 0  # seen in training, whole epochs
        self._start = 0.0

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.training_seconds if self.images else None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._fit_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._epoch_start = time.perf_counter()
        self._validation = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._validation += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.training_seconds += time.perf_counter() - self._epoch_start - self._validation
        loader = trainer.train_dataloader
        assert isinstance(loader, DataLoader) and loader.batch_size  # noqa: S101, PT018
        whole = len(loader.dataset)  # type: ignore[arg-type]
        self.images += min(int(trainer.num_training_batches) * loader.batch_size, whole)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.seconds = time.perf_counter() - self._fit_start


class EpochReport(Callback):
    """Tells a search how a run goes, and asks whether it shall go on.

    Args:
        report: is told each epoch, counted from 1, and its validation accuracy, 0..1.
        before_epoch: is asked before each epoch, and raises what ends the fit.
        before_step: likewise before each step.
    """

    def __init__(
        self,
        report: Callable[[int, float], None],
        before_epoch: Callable[[], None],
        before_step: Callable[[], None],
    ) -> None:
        self.report, self.before_epoch, self.before_step = report, before_epoch, before_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.before_epoch()

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        self.before_step()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.report(trainer.current_epoch + 1, trainer.callback_metrics["val/acc"].item())
