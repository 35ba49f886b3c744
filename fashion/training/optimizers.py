"""Optimizers and their schedules: a network and its number of steps in, Lightning's dict out."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fashion.config import Fraction, NonNegativeFloat, PositiveFloat, Schedule
from fashion.errors import UserError

OptimizerFactory = Callable[[nn.Module], OptimizerLRSchedulerConfig]
KERNEL_DIMENSIONS = 4  # out, in, height, width


def adam(
    network: nn.Module,
    steps: int,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    schedule: Schedule,
    warmup: Fraction,
) -> OptimizerLRSchedulerConfig:
    """Adam (Kingma and Ba 2015); weight decay is the L2 penalty."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    return _scheduled(optimizer, steps, schedule, warmup)


def adamw(
    network: nn.Module,
    steps: int,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    schedule: Schedule,
    warmup: Fraction,
) -> OptimizerLRSchedulerConfig:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    groups = _groups(network.parameters(), weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    return _scheduled(optimizer, steps, schedule, warmup)


def sgd(
    network: nn.Module,
    steps: int,
    *,
    lr: PositiveFloat,
    momentum: Fraction,
    weight_decay: NonNegativeFloat,
    schedule: Schedule,
    warmup: Fraction,
) -> OptimizerLRSchedulerConfig:
    """Stochastic gradient descent with Nesterov's momentum."""
    optimizer = torch.optim.SGD(
        _groups(network.parameters(), weight_decay),
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        fused=True,
    )
    return _scheduled(optimizer, steps, schedule, warmup)


def muon(
    network: nn.Module,
    steps: int,
    *,
    lr: PositiveFloat,
    momentum: Fraction,
    other_lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    schedule: Schedule,
    warmup: Fraction,
) -> OptimizerLRSchedulerConfig:
    """Orthogonalised momentum for the convolutions, AdamW for all else.

    Args:
        network: whose convolutions are each followed by batch normalisation (see `Muon`).
        steps: of the whole training.
        lr: of the convolutions: by what share of its length a kernel changes in a step.
        momentum: of the convolutions.
        other_lr: AdamW's, for all other parameters.
        weight_decay: AdamW's; none on biases and on what batch normalisation learns.
        schedule: of both rates.
        warmup: share of the steps over which they rise.

    Raises:
        UserError: the network has no convolution, or no batch normalisation after it.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise UserError(
            "optimizer = muon is for convolutions followed by batch normalisation, of which this "
            "network has none: take model=resnet, model.network.batch_norm=true with "
            "convolutions, or another optimizer."
        )
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    kernels = [parameter for parameter in parameters if parameter.ndim == KERNEL_DIMENSIONS]
    others = [parameter for parameter in parameters if parameter.ndim != KERNEL_DIMENSIONS]
    orthogonal = {"name": "kernels", "params": kernels, "lr": lr, "momentum": momentum}
    optimizer = Muon([orthogonal, *_groups(others, weight_decay)], lr=other_lr, fused=True)
    return _scheduled(optimizer, steps, schedule, warmup)


class Muon(torch.optim.AdamW):
    """AdamW; parameter groups with a "momentum" take orthogonalize steps instead.

    A kernel (out, in, h, w) is a matrix of one row a filter. Its Nesterov momentum is replaced by
    the nearest orthogonal matrix, so that all directions are learned at one pace (Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon), and the kernel is first brought to the length
    that a matrix of unit rows has: batch normalisation undoes a kernel's length, and with it fixed
    the rate alone says how far a step turns it, as in KellerJordan/cifar10-airbench.

    torch.optim.Muon takes 2-D parameters alone, one matrix at a time, and computes in bfloat16
    always; here that is so in a training of that precision.
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
            same_shape.setdefault(kernel.flatten(1).shape, []).append(kernel)
        for kernels in same_shape.values():
            steps = [self._momentum(kernel, group["momentum"]).flatten(1) for kernel in kernels]
            for kernel, step in zip(kernels, orthogonalize(torch.stack(steps)), strict=True):
                kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
                kernel.sub_(step.view(kernel.shape), alpha=group["lr"])
                kernel.grad = None  # AdamW passes over it

    def _momentum(self, kernel: nn.Parameter, momentum: float) -> Tensor:
        assert kernel.grad is not None  # noqa: S101 - every kernel takes part in every step
        state = self.state[kernel]
        if not state:
            state["step"] = torch.zeros(())  # which AdamW expects of a state that it loads
            state["momentum"] = torch.zeros_like(kernel)
        velocity: Tensor = state["momentum"].mul_(momentum).add_(kernel.grad)
        return kernel.grad.add(velocity, alpha=momentum)


def orthogonalize(
    matrices: Float[Tensor, "n rows columns"],
) -> Float[Tensor, "n rows columns"]:
    """Each matrix U S V^T with its singular values S brought near 1: 0.7 to 1.2.

    By five Newton-Schulz iterations, products of matrices alone, with the coefficients of Jordan et
    al. (2024), which lift small values soonest and need not converge.
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


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Weights, which decay, and biases and what normalisation learns, which do not."""
    parameters = list(parameters)
    return [
        {"name": name, "params": group, "weight_decay": decay}
        for name, group, decay in (
            ("weights", [part for part in parameters if part.ndim > 1], weight_decay),
            ("biases", [part for part in parameters if part.ndim <= 1], 0.0),
        )
        if group
    ]


def _scheduled(
    optimizer: torch.optim.Optimizer, steps: int, schedule: Schedule, warmup: float
) -> OptimizerLRSchedulerConfig:
    scheduler = LambdaLR(optimizer, lambda step: schedule_factor(schedule, warmup, step, steps))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
    }
