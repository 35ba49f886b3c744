"""Several optimizer steps per call of Lightning's training loop, for small batches.

Lightning's own work around each call of `training_step` takes longer than a small network's step.
Here one call takes all the batches that the loader prepared together. The weights are the same bit
for bit, and `scripts/benchmark` measures the time saved. Settings that act on single batches
(gradient clipping, a callback with a hook per batch, several processes, ...) need the ordinary
loop.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim.lr_scheduler import LRScheduler

from fashion.config import locate
from fashion.data.datamodule import IMAGES_AT_ONCE, Batch
from fashion.training.classifier import Classifier

# The Trainer's flags that act on single batches, and the values with which they do nothing.
FLAGS: dict[str, tuple[Any, ...]] = {
    "accumulate_grad_batches": (1,),
    "devices": (1,),
    "detect_anomaly": (False, None),
    "fast_dev_run": (False, 0),
    "gradient_clip_val": (None, 0, 0.0),
    "limit_train_batches": (None, 1.0),
    "max_steps": (-1, None),
    "max_time": (None,),
    "overfit_batches": (0, 0.0, None),
    "profiler": (None,),
    "val_check_interval": (None, 1.0),
}
BATCH_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_before_zero_grad"),
)

# Callbacks that change the ordinary loop, or the scheduler that it steps.
OF_THE_LOOP = (GradientAccumulationScheduler, StochasticWeightAveraging)


class ChunkedClassifier(Classifier):
    """A Classifier whose `training_step` takes several batches, one optimizer step for each."""

    def __init__(self, *arguments: Any, batch_size: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False
        self.batch_size = batch_size

    def training_step(self, batch: Batch) -> None:  # type: ignore[override]
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)  # noqa: S101 - there is one of each
        assert isinstance(scheduler, LRScheduler)  # noqa: S101
        parts = list(zip(*(tensor.split(self.batch_size) for tensor in batch), strict=True))
        # Lightning logs under this number, and counts a call as one step.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped += len(parts) - 1  # noqa: SLF001
        for part in parts:
            loss = super().training_step(part)
            # As in Lightning's own loop, which leaves mixed precision after the forward pass.
            with torch.autocast(self.device.type, enabled=False):
                self.manual_backward(loss)
                optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


def why_not(
    batch_size: int,
    trainer: Mapping[str, Any],
    callbacks: Iterable[Callback],
    *,
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None,
) -> str | None:
    """Return why the ordinary loop is used; "" if batches are too large to gain; None if it is not.

    Args:
        batch_size: of training.
        trainer: the Trainer's flags.
        callbacks: the configuration's.
        optimizer: its section.
        scheduler: section of a torch scheduler, or None.
    """
    if 2 * batch_size > IMAGES_AT_ONCE:
        return ""
    if scheduler is not None:
        return f"scheduler={scheduler['_target_']}"
    return _of_flags(trainer) or _of_optimizer(optimizer) or _of_callbacks(callbacks)


def _of_flags(trainer: Mapping[str, Any]) -> str | None:
    for flag, idle in FLAGS.items():
        value = trainer.get(flag, idle[0])
        # The type matters: 1 is one batch, 1.0 is all of them.
        if not any(value == each and type(value) is type(each) for each in idle):
            return f"trainer.{flag}={value}"
    return None


def _of_optimizer(optimizer: Mapping[str, Any]) -> str | None:
    step = getattr(locate("optimizer", optimizer), "step", None)
    closure = step and inspect.signature(step).parameters.get("closure")
    if closure and closure.default is closure.empty:  # torch.optim.LBFGS
        return f"optimizer={optimizer['_target_']}"
    return None


def _of_callbacks(callbacks: Iterable[Callback]) -> str | None:
    for callback in callbacks:
        if type(callback).__module__.startswith("fashion."):
            continue
        if isinstance(callback, OF_THE_LOOP):
            return type(callback).__name__
        for hook in BATCH_HOOKS:
            if getattr(type(callback), hook) is not getattr(Callback, hook):
                return f"{type(callback).__name__}.{hook}"
    return None
