"""Optimizers and their schedules: a network and its number of steps in, Lightning's dict out."""

import math
from collections.abc import Callable

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fashion.schema import NonNegative, Rate, Schedule, Share

OptimizerFactory = Callable[[nn.Module, int], OptimizerLRSchedulerConfig]


def adam(
    network: nn.Module,
    steps: int,
    *,
    lr: Rate,
    weight_decay: NonNegative,
    schedule: Schedule,
    warmup: Share,
) -> OptimizerLRSchedulerConfig:
    """Adam (Kingma and Ba 2015); weight decay is the L2 penalty."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    return _scheduled(optimizer, steps, schedule, warmup)


def adamw(
    network: nn.Module,
    steps: int,
    *,
    lr: Rate,
    weight_decay: NonNegative,
    schedule: Schedule,
    warmup: Share,
) -> OptimizerLRSchedulerConfig:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=lr, weight_decay=weight_decay, fused=True
    )
    return _scheduled(optimizer, steps, schedule, warmup)


def sgd(
    network: nn.Module,
    steps: int,
    *,
    lr: Rate,
    momentum: Share,
    weight_decay: NonNegative,
    schedule: Schedule,
    warmup: Share,
) -> OptimizerLRSchedulerConfig:
    """Stochastic gradient descent with Nesterov's momentum."""
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
        fused=True,
    )
    return _scheduled(optimizer, steps, schedule, warmup)


def schedule_factor(schedule: Schedule, warmup: float, step: int, steps: int) -> float:
    """The learning rate's factor, 0..1, at `step` of `steps` (0-based).

    It rises linearly over the first `warmup` share of the steps, then stays, or falls to zero
    linearly or along half a cosine; zero is what the step after the last would have.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    progress = min((step - rising) / max(steps - rising, 1), 1.0)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def _scheduled(
    optimizer: torch.optim.Optimizer, steps: int, schedule: Schedule, warmup: float
) -> OptimizerLRSchedulerConfig:
    scheduler = LambdaLR(optimizer, lambda step: schedule_factor(schedule, warmup, step, steps))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
    }
