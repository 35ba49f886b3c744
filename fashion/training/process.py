"""Lightning's Trainer as every run here uses it: one run folder, checkpoints, TensorBoard."""

import ctypes
import io
import logging
import platform
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO

from fashion.config import Accelerator, PositiveInt, Precision, Strategy
from fashion.errors import UserError
from fashion.runs.files import atomic_write
from fashion.runs.run import Run

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


class EventLogger(TensorBoardLogger):
    """TensorBoard's events in the run folder itself, and no second copy of the configuration."""

    def __init__(self, run: Run, steps: int) -> None:
        # A run that continues after `steps` steps: TensorBoard drops what was logged beyond them.
        super().__init__(
            run.folder, name="", version="", default_hp_metric=False, purge_step=steps + 1
        )

    def save(self) -> None:
        self.experiment.flush()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that take their file's place in one step, whole or not at all.

    Lightning's own writes to the system's folder for temporary files first, and copies from there.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,  # noqa: ARG002 - the base class's
    ) -> None:
        # In memory first: on a full disk torch's own writer reports an internal error instead.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_write(Path(path)) as file:
            file.write(content.getbuffer())


def build_trainer(
    run: Run,
    callbacks: Sequence[Callback],
    steps: int,
    validates: bool,  # noqa: FBT001 - Hydra passes it by position
    *,
    max_epochs: PositiveInt,
    limit_train_batches: PositiveInt | None,
    limit_val_batches: PositiveInt | None,
    accelerator: Accelerator,
    devices: PositiveInt,
    strategy: Strategy,
    precision: Precision,
    progress_bar: bool,
) -> pl.Trainer:
    """A Trainer that writes into `run`.

    Args:
        run: whose folder takes the checkpoints and events.
        callbacks: beside the progress bar.
        steps: how many the run has done before, if it continues.
        validates: whether there is a validation split.
        max_epochs: bound on the passes over the training pictures.
        limit_train_batches: bound on the steps of an epoch; None for none.
        limit_val_batches: bound on validation's batches; None for none.
        accelerator: Lightning's name of the hardware.
        devices: how many of them.
        strategy: ddp, or auto: that where there are several. Lightning's others give no run whole.
        precision: Lightning's name of the numbers that convolutions and products compute with in
            training; weights, and what a run reports, are of 32 bits. auto: bf16-mixed where the
            hardware multiplies such numbers, which is about 1.6 times as fast on a CPU.
        progress_bar: whether to draw one.

    Raises:
        UserError: the accelerator or strategy is not to be had on this machine.
    """
    quieten()
    # A redraw costs as much as a small network's step.
    bar = [RichProgressBar(refresh_rate=20, leave=True)] if progress_bar else []
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            precision=hardware_precision(accelerator) if precision == "auto" else precision,
            max_epochs=max_epochs,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches if validates else 0,
            callbacks=[*callbacks, *bar],
            plugins=[AtomicCheckpointIO()],
            logger=EventLogger(run, steps),
            use_distributed_sampler=False,  # data.Batches shares the pictures out
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(
            f"trainer.accelerator = {accelerator}, devices = {devices}, strategy = {strategy}: "
            f"{error}"
        ) from error


def hardware_precision(accelerator: Accelerator) -> Literal["32-true", "bf16-mixed"]:
    """bf16-mixed where the accelerator multiplies bf16 itself; elsewhere it would be slower."""
    if accelerator != "cpu" and torch.accelerator.is_available():
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def prepare_process() -> None:
    """Set what PyTorch leaves at defaults that slow training on a CPU; before its first work.

    Threads take these settings over from the one that starts them.
    """
    # Weights and Adam's averages of units that died decay to denormal numbers, on which a CPU
    # computes many times slower.
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        # By default freed blocks of megabytes go back to the system, and the next step takes them
        # anew, a page fault a page: a quarter of the time of the deck's model.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # glibc's greatest


def return_freed_memory() -> None:
    """Give the system what a run has left free, which after `prepare_process` stays otherwise."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _pass_over_failed_writes(
    failure: threading.ExceptHookArgs, handle: Any = threading.excepthook
) -> None:
    """TensorBoard's thread prints the traceback of what it then raises where an event is added."""
    if not isinstance(failure.exc_value, OSError):
        handle(failure)


threading.excepthook = _pass_over_failed_writes


def quieten() -> None:
    """Drop Lightning's notices that report nothing a user of this project decides or can mend."""
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    # More worker processes would make loading slower here, not faster (see data.py).
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # An epoch of fewer steps than the logging interval: its metrics are logged at its end anyway.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # Lightning 2.6 beside torch 2.14: theirs to mend.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
