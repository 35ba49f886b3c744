"""What hangs on the training loop and is not learning."""

import math
import signal
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping

from fashion.config import PositiveInt
from fashion.data.datamodule import epoch_seed
from fashion.runs.run import Run


def early_stopping(*, patience: PositiveInt) -> EarlyStopping:
    """Stop once validation accuracy has not improved for `patience` epochs."""
    return _EarlyStopping("val/acc", mode="max", patience=patience)


class _EarlyStopping(EarlyStopping):
    """One that a run continued after it had stopped does not train another epoch for."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        trainer.should_stop |= self.wait_count >= self.patience


class Checkpoints(Checkpoint):
    """Saves last.ckpt at each epoch's end, and best.ckpt where validation accuracy is a new best.

    Unlike ModelCheckpoint it keeps no paths, so that a run's folder may move, and saves when all
    that the epoch logs has been written, so that a run continues with nothing missing or doubled.
    """

    def __init__(self, run: Run, *, validates: bool) -> None:
        self.run = run
        self.validates = validates
        self.epochs = 0  # whole ones
        self.best_epoch = 0  # from 1
        self.best_accuracy = -math.inf

    def __str__(self) -> str:
        text = f"{self.epochs} whole epoch{'s' * (self.epochs != 1)} in {self.run.folder}"
        if not self.best_epoch:
            return f"{text}."
        accuracy = f"{100 * self.best_accuracy:.2f} %"
        return f"{text}; the best validation accuracy, {accuracy}, is of epoch {self.best_epoch}."

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("epochs", "best_epoch", "best_accuracy")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        for logger in trainer.loggers:
            logger.save()
        self.epochs = trainer.current_epoch + 1
        if self.validates:
            accuracy = trainer.callback_metrics["val/acc"].item()
            if accuracy > self.best_accuracy:
                self.best_accuracy, self.best_epoch = accuracy, self.epochs
                trainer.save_checkpoint(self.run.best_checkpoint)
        trainer.save_checkpoint(self.run.last_checkpoint)


class EpochSeed(Callback):
    """Makes an epoch's randomness, dropout's too, a function of (seed, epoch) alone.

    So a run that continues draws what it would have drawn without the interruption. Each of
    several processes draws its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        # Seeds of 32 bits and epochs of 24 leave the highest byte.
        rank = trainer.global_rank << 56
        torch.manual_seed(rank + epoch_seed(self.seed, trainer.current_epoch))


class Timing(Callback):
    """Times the fit, and apart from it the training epochs without their validation."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the fit
        self.training_seconds = 0.0
        self.images = 0  # seen in training, whole epochs

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - self._fit_start,
            "training_seconds": self.training_seconds,
            "images": self.images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from what the epochs before took; an epoch that was given up is not counted."""
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
        self._validation = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._validation += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.training_seconds += time.perf_counter() - self._epoch_start - self._validation
        loader: Any = trainer.train_dataloader
        shown = int(trainer.num_training_batches) * loader.batch_sampler.batch_size
        self.images += min(shown, len(loader.dataset))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.seconds = time.perf_counter() - self._fit_start


class InterruptBetweenBatches(Callback):
    """Lets a signal end the fit before a batch, where nothing is half done, in all processes.

    Args:
        listen: notes signals from now on.
        raise_noted: raises what ends the fit, if a signal has been noted.
    """

    def __init__(self, listen: Callable[[], None], raise_noted: Callable[[], None]) -> None:
        self.listen, self.raise_noted = listen, raise_noted

    def on_train_start(self, *_: Any) -> None:
        # Lightning now listens to SIGTERM itself: it would wait there and then for the other
        # processes, which may be waiting for this one.
        self.listen()

    def on_train_batch_start(self, *_: Any) -> None:
        self.raise_noted()

    def on_validation_batch_start(self, *_: Any) -> None:
        self.raise_noted()

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        if launcher := trainer.strategy.launcher:
            launcher.kill(signal.SIGTERM)


class OptunaPruning(Callback):
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
