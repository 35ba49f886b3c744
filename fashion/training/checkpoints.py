"""Checkpoints: atomic writing; the best and the last of a run."""

import io
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from fashion.runs.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are written atomically.

    Lightning's own writes to the system's folder for temporary files and copies from there.
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


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that saves best.ckpt, the checkpoint with the best monitored metric.

    Unlike Lightning's, its state holds no paths, so that a run's folder may be moved.

    Args:
        dirpath: the run's folder of checkpoints.
        monitor: the metric.
        mode: whether the best is the highest or the lowest.
    """

    def __init__(
        self,
        dirpath: Path | None = None,
        *,
        monitor: str = "val/acc",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(
            dirpath,
            "best",
            monitor=monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.best_epoch = 0  # from 1; 0: none yet

    @property
    def score(self) -> float | None:
        """The best value so far; None if there is none."""
        return None if self.best_model_score is None else float(self.best_model_score)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Where trainer.max_steps ends the first epoch, no validation has run.
        if {str(self.monitor), "val/loss"} & set(trainer.callback_metrics):
            before = self.score
            super().on_train_epoch_end(trainer, pl_module)
            self._note_epoch(before, trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = self.score
        super().on_validation_end(trainer, pl_module)
        self._note_epoch(before, trainer)

    def _note_epoch(self, before: float | None, trainer: pl.Trainer) -> None:
        if self.score != before:
            self.best_epoch = trainer.current_epoch + 1

    def state_dict(self) -> dict[str, Any]:
        return {"best_epoch": self.best_epoch, "score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_epoch = state_dict["best_epoch"]
        if (score := state_dict["score"]) is not None and self.dirpath:
            path = str(Path(self.dirpath) / "best.ckpt")
            self.best_model_path = self.kth_best_model_path = path
            self.best_model_score = self.kth_value = torch.tensor(score)
            self.best_k_models = {path: self.best_model_score}


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt at the end of each epoch, after everything that the epoch logs.

    `save_last` of ModelCheckpoint may save before other callbacks have finished the epoch. This
    callback runs last, so a run that resumes from its file misses and repeats nothing.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epochs = 0  # completed

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        for logger in trainer.loggers:
            logger.save()
        self.epochs = trainer.current_epoch + 1
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)


def progress(last: LastCheckpoint, best: BestCheckpoint | None) -> str:
    """Return the progress of an interrupted training, as a sentence."""
    count = f"{last.epochs} whole epoch{'s' * (last.epochs != 1)}"
    verb = "is" if last.epochs == 1 else "are"
    text = f"There {verb} {count} in {last.path.parent.parent}"
    if best is None or best.score is None:
        return f"{text}."
    percent = str(best.monitor).endswith("/acc")
    shown = f"{100 * best.score:.2f} %" if percent else f"{best.score:.4g}"
    return f"{text}; the best {best.monitor}, {shown}, is of epoch {best.best_epoch}."
