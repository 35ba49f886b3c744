"""Optimizers, learning-rate schedules and schedulers, ours and any of torch's."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from fashion.config import (
    OPTIMIZER,
    SCHEDULER,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    Schedule,
    build,
    locate,
)
from fashion.errors import UserError

KERNEL_DIMENSIONS = 4  # out, in, height, width


def configure(
    network: nn.Module,
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None,
    *,
    steps: int,
    steps_per_epoch: int,
    batches_per_epoch: int,
) -> OptimizerLRSchedulerConfig:
    """Build the optimizer and its scheduler from their sections of the configuration.

    A subclass of torch.optim.Optimizer is given the network's parameters; a function is given the
    network, so that it can form parameter groups.

    Args:
        network: what is trained.
        optimizer: `_target_`, its arguments, and `schedule` and `warmup` (see `schedule_factor`).
        scheduler: `_target_` and arguments of a torch scheduler, `interval` ("step" or "epoch", the
            default) and the `monitor` of ReduceLROnPlateau; None for the optimizer's `schedule`.
        steps: optimizer steps of the whole training; -1 where it is not known.
        steps_per_epoch: optimizer steps per epoch.
        batches_per_epoch: more than steps where the gradients of several batches are accumulated.

    Raises:
        UserError: one of them cannot be built.
    """
    target = locate("optimizer", optimizer)
    is_class = isinstance(target, type) and issubclass(target, torch.optim.Optimizer)
    trained: Any = list(network.parameters()) if is_class else network
    section = {key: value for key, value in optimizer.items() if key not in OPTIMIZER}
    made = build("optimizer", section, trained)
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(
            f"optimizer._target_ = {optimizer['_target_']}: it returned {type(made).__name__}, "
            "which is no torch.optim.Optimizer."
        )
    # By this flag a fused optimizer says that its step undoes fp16's loss scale. Gradients must be
    # clipped before, so that Lightning refuses to clip them, in bf16 too, which has no such scale.
    # Without it the scaler undoes the scale, then they are clipped.
    vars(made)["_step_supports_amp_scaling"] = False
    schedule, warmup = optimizer.get("schedule", "constant"), optimizer.get("warmup", 0.0)
    if steps < 1 and (schedule, warmup) != ("constant", 0.0):
        raise UserError(
            f"optimizer.schedule = {schedule}, warmup = {warmup}: they are planned for a number of "
            "steps; set trainer.max_epochs or trainer.max_steps."
        )
    if scheduler is None:
        rate: Any = LambdaLR(made, lambda step: schedule_factor(schedule, warmup, step, steps))
        return {"optimizer": made, "lr_scheduler": {"scheduler": rate, "interval": "step"}}
    if (schedule, warmup) != ("constant", 0.0):
        raise UserError(
            f"optimizer.schedule = {schedule}, warmup = {warmup}: a scheduler of your own replaces "
            "them; set optimizer.schedule=constant optimizer.warmup=0.0."
        )
    values = {key: value for key, value in scheduler.items() if key not in SCHEDULER}
    offered = {"total_steps": steps, "steps_per_epoch": steps_per_epoch}
    rate = build("scheduler", values, made, offered=offered)
    # Lightning steps an epoch's scheduler after the epoch's checkpoint has been saved, so that a
    # resumed run would miss the step; "every batches_per_epoch batches" is the same, before it.
    per_step = scheduler.get("interval", "epoch") == "step"
    configuration: Any = {
        "scheduler": rate,
        "interval": "step",
        "frequency": 1 if per_step else batches_per_epoch,
        "reduce_on_plateau": isinstance(rate, ReduceLROnPlateau),
        "monitor": scheduler.get("monitor", "val/loss"),
    }
    return {"optimizer": made, "lr_scheduler": configuration}


def adam(
    network: nn.Module, *, lr: PositiveFloat, weight_decay: NonNegativeFloat = 0.0
) -> torch.optim.Optimizer:
    """Return Adam (Kingma and Ba 2015); weight decay is the L2 penalty."""
    return torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def adamw(
    network: nn.Module, *, lr: PositiveFloat, weight_decay: NonNegativeFloat = 0.01
) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov and Hutter 2019), not of biases."""
    groups = _groups(network.parameters(), weight_decay)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def sgd(
    network: nn.Module,
    *,
    lr: PositiveFloat,
    momentum: Fraction = 0.9,
    weight_decay: NonNegativeFloat = 0.0,
) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, if any; biases and normalization do not decay."""
    groups = _groups(network.parameters(), weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)


def muon(
    network: nn.Module,
    *,
    lr: PositiveFloat,
    momentum: Fraction = 0.6,
    other_lr: PositiveFloat = 0.01,
    weight_decay: NonNegativeFloat = 0.01,
) -> torch.optim.Optimizer:
    """Return Muon: orthogonalized momentum for the convolutions, AdamW for all else.

    Args:
        network: whose convolutions are each followed by batch normalization (see `Muon`).
        lr: of the convolutions: the relative update size of a kernel per step.
        momentum: of the convolutions.
        other_lr: AdamW's, for all other parameters.
        weight_decay: AdamW's; none on biases and the parameters of batch normalization.

    Raises:
        UserError: the network has no batch normalization of convolutions.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise UserError(
            "optimizer = muon is for convolutions followed by batch normalization, of which this "
            "network has none: take model=resnet, model.network.batch_norm=true with "
            "convolutions, or another optimizer."
        )
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    kernels = [parameter for parameter in parameters if parameter.ndim == KERNEL_DIMENSIONS]
    others = [parameter for parameter in parameters if parameter.ndim != KERNEL_DIMENSIONS]
    orthogonal = {"name": "kernels", "params": kernels, "lr": lr, "momentum": momentum}
    return Muon([orthogonal, *_groups(others, weight_decay)], lr=other_lr, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW whose parameter groups with a "momentum" take orthogonalized steps instead.

    A kernel (out, in, h, w) is a matrix with one row per filter. Its Nesterov momentum is replaced
    by the nearest orthogonal matrix, so that all directions are learned equally fast (Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon), and the kernel is first scaled to the norm of
    a matrix of unit rows: batch normalization undoes a kernel's norm, and with it fixed the
    learning rate alone sets the relative update size, as in KellerJordan/cifar10-airbench.

    torch.optim.Muon takes 2-D parameters alone, one matrix at a time, and always computes in
    bfloat16; here the precision is that of the parameters.

    Args: those of torch.optim.AdamW. A group with "momentum" (0 to 1) holds kernels of four
    dimensions alone.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                self._orthogonal_step(group)
        super().step()
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        same_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for kernel in group["params"]:
            if kernel.grad is None:  # frozen, or not used
                continue
            same_shape.setdefault(kernel.flatten(1).shape, []).append(kernel)
        for kernels in same_shape.values():
            steps = [self._momentum(kernel, group["momentum"]).flatten(1) for kernel in kernels]
            for kernel, step in zip(kernels, orthogonalize(torch.stack(steps)), strict=True):
                kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
                kernel.sub_(step.view(kernel.shape), alpha=group["lr"])
                kernel.grad = None  # so that AdamW skips it

    def _momentum(self, kernel: nn.Parameter, momentum: float) -> Tensor:
        assert kernel.grad is not None  # noqa: S101
        state = self.state[kernel]
        if not state:
            state["step"] = torch.zeros(())  # AdamW needs it when a state is loaded
            state["momentum"] = torch.zeros_like(kernel)
        velocity: Tensor = state["momentum"].mul_(momentum).add_(kernel.grad)
        return kernel.grad.add(velocity, alpha=momentum)


def orthogonalize(
    matrices: Float[Tensor, "n rows columns"],
) -> Float[Tensor, "n rows columns"]:
    """Return each matrix U S V^T with its singular values S moved near 1, to about 0.7..1.2.

    Five Newton-Schulz iterations, which need matrix products only, with the coefficients of Jordan
    et al. (2024): they raise small values fastest, and do not converge to exactly 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices  # the smaller of the two products
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def schedule_factor(schedule: Schedule, warmup: float, step: int, steps: int) -> float:
    """Return the learning rate's factor, 0..1, at `step` of `steps` (from 0).

    It rises linearly over the first `warmup` fraction of the steps, then stays, or falls linearly
    or along half a cosine, to reach 0 one step after the last.
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


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into weights, which decay, and biases and normalization, which do not."""
    parameters = list(parameters)
    return [
        {"name": name, "params": group, "weight_decay": decay}
        for name, group, decay in (
            ("weights", [part for part in parameters if part.ndim > 1], weight_decay),
            ("biases", [part for part in parameters if part.ndim <= 1], 0.0),
        )
        if group
    ]
