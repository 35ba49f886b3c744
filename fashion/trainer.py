"""Lightning's Trainer as every run here uses it: one run folder, checkpoints, TensorBoard."""

import logging
import warnings
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from fashion import UserError
from fashion.run import Run
from fashion.schema import Accelerator, PositiveInt


class EventLogger(TensorBoardLogger):
    """TensorBoard's events in the run folder itself, and no second copy of the configuration."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.folder, name="", version="", default_hp_metric=False)

    def save(self) -> None:
        self.experiment.flush()


def build_trainer(
    run: Run,
    callbacks: Sequence[Callback],
    validates: bool,  # noqa: FBT001 - Hydra passes it by name
    *,
    max_epochs: PositiveInt,
    limit_train_batches: PositiveInt | None,
    limit_val_batches: PositiveInt | None,
    accelerator: Accelerator,
    devices: PositiveInt,
    strategy: str,
    progress_bar: bool,
) -> pl.Trainer:
    """A Trainer that writes into `run`.

    Args:
        run: whose folder takes the checkpoints and events.
        callbacks: beside the checkpoints, the learning rate's log and the progress bar.
        validates: whether there is a validation split to choose the best checkpoint on.
        max_epochs: bound on the passes over the training pictures.
        limit_train_batches: bound on the steps of an epoch; None for none.
        limit_val_batches: bound on validation's batches; None for none.
        accelerator: Lightning's name of the hardware.
        devices: how many of them.
        strategy: Lightning's name of the way to share the work among them.
        progress_bar: whether to draw one.

    Raises:
        UserError: the accelerator or strategy is not to be had on this machine.
    """
    _quieten()
    checkpoint = (
        ModelCheckpoint(
            run.checkpoints, "best", monitor="val/acc", mode="max", save_last=True,
            enable_version_counter=False,
        )
        if validates
        else ModelCheckpoint(run.checkpoints, "last", enable_version_counter=False)
    )
    # Ten draws a second would slow a step of a few milliseconds; twice an epoch's hundredth is ample.
    bar = [RichProgressBar(refresh_rate=20, leave=True)] if progress_bar else []
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            max_epochs=max_epochs,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            callbacks=[*callbacks, checkpoint, LearningRateMonitor("step"), *bar],
            logger=EventLogger(run),
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # An epoch of two steps (trainer=smoke) is logged as well.
            log_every_n_steps=min(50, limit_train_batches or 50),
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(
            f"trainer.accelerator = {accelerator}, devices = {devices}, strategy = {strategy}: {error}"
        ) from error


def _quieten() -> None:
    """Drop Lightning's notices that report nothing a user of this project decides or can mend."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # More worker processes would make loading slower here, not faster (see data.py).
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Lightning 2.6 beside torch 2.14: theirs to mend.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
