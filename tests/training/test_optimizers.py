import copy
from fractions import Fraction
from math import cos, pi
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from fashion.config import Schedule
from fashion.errors import UserError
from fashion.training import optimizers
from fashion.training.optimizers import configure, orthogonalize, schedule_factor

QUARTER = (1 + cos(pi / 4)) / 2
THIRD = Fraction(1, 3)


@pytest.mark.parametrize(
    ("schedule", "warmup", "steps", "expected"),
    [
        ("constant", 0.0, 4, [1, 1, 1, 1]),
        ("linear", 0.0, 4, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, 4, [1, QUARTER, 0.5, 1 - QUARTER]),
        ("constant", 0.5, 6, [THIRD, 2 * THIRD, 1, 1, 1, 1]),
        ("linear", 0.5, 8, [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 0.5, 8, [0.25, 0.5, 0.75, 1, 1, QUARTER, 0.5, 1 - QUARTER]),
        ("linear", 0.3, 4, [0.5, 1, 1, 0.5]),  # 1.2 steps of warm-up are two
        ("linear", 0.9, 2, [0.5, 1]),  # warm-up to the end
        ("cosine", 0.0, 1, [1]),
    ],
)
def test_schedule_by_hand(
    schedule: Schedule, warmup: float, steps: int, expected: list[float]
) -> None:
    found = [schedule_factor(schedule, warmup, step, steps) for step in range(steps)]
    assert found == pytest.approx([float(factor) for factor in expected])
    # Lightning asks once more after the last step.
    after = schedule_factor(schedule, warmup, steps, steps)
    assert after == pytest.approx(1 if schedule == "constant" or warmup == 0.9 else 0)


OURS = "fashion.training.optimizers"
SECTIONS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.1},
    "adamw": {"lr": 0.1, "weight_decay": 0.5},
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "muon": {"lr": 0.2, "momentum": 0.6, "other_lr": 0.1, "weight_decay": 0.5},
}
# One weight of 1 whose gradient is 1: Adam's first step is lr, AdamW's decays by lr * 0.5 before,
# Nesterov's is lr * (1 + momentum). In the second step lr is half. Muon leaves it to AdamW.
EXPECTED = {
    "adam": [0.9, 0.85],
    "adamw": [0.85, 0.85 * 0.975 - 0.05],
    "muon": [0.85, 0.85 * 0.975 - 0.05],
    "sgd": [1 - 0.19, 1 - 0.19 - 0.05 * (1 + 0.9 * 1.9)],
}


def configured(
    optimizer: dict[str, Any],
    scheduler: dict[str, Any] | None = None,
    *,
    network: nn.Module | None = None,
    steps: int = 2,
    steps_per_epoch: int = 1,
) -> tuple[torch.optim.Optimizer, LRSchedulerConfigType]:
    made: Any = configure(
        network or nn.Linear(1, 1),
        optimizer,
        scheduler,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        batches_per_epoch=steps_per_epoch,
    )
    return made["optimizer"], made["lr_scheduler"]


@pytest.mark.parametrize("name", SECTIONS)
def test_steps_by_hand(name: str) -> None:
    linear = nn.Linear(1, 1, bias=False)
    nn.init.ones_(linear.weight)
    # Without a batch normalization there is no Muon.
    network = nn.ModuleList([linear, nn.BatchNorm2d(1, affine=False)])
    section = {"_target_": f"{OURS}.{name}", "schedule": "linear"} | SECTIONS[name]
    optimizer, scheduler = configured(section, network=network)
    assert isinstance(scheduler["scheduler"], LambdaLR)
    assert scheduler["interval"] == "step"
    weights = []
    for _ in range(2):
        optimizer.zero_grad()
        linear(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        scheduler["scheduler"].step()
        weights.append(linear.weight.item())
    assert weights == pytest.approx(EXPECTED[name], rel=1e-5)


RADAM = {"_target_": "torch.optim.RAdam", "lr": 0.1}
TORCH = "torch.optim.lr_scheduler"


def test_a_torch_optimizer_gets_the_parameters_and_a_function_the_network() -> None:
    network = nn.Linear(1, 1)
    optimizer, _ = configured(RADAM | {"betas": [0.8, 0.9]}, network=network)
    assert type(optimizer) is torch.optim.RAdam
    assert optimizer.param_groups[0]["params"] == list(network.parameters())
    assert optimizer.defaults["betas"] == [0.8, 0.9]


def learning_rates(scheduler: dict[str, Any], steps: int) -> list[float]:
    """Return the learning rate of each step, as Lightning's loop steps the scheduler."""
    optimizer, made = configured(RADAM, scheduler, steps=steps, steps_per_epoch=3)
    rates = []
    for step in range(1, steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % made["frequency"] == 0:
            made["scheduler"].step()
    return rates


def test_a_scheduler_steps_per_epoch_or_per_step() -> None:
    section = {"_target_": f"{TORCH}.StepLR", "step_size": 1, "gamma": 0.5}
    assert learning_rates(section, 7) == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025])
    per_step = section | {"interval": "step"}
    assert learning_rates(per_step, 4) == pytest.approx([0.1, 0.05, 0.025, 0.0125])


def test_one_cycle_is_offered_the_number_of_steps() -> None:
    section = {"_target_": f"{TORCH}.OneCycleLR", "max_lr": 0.3, "interval": "step"}
    _, made = configured(RADAM, section, steps=12)
    assert isinstance(made["scheduler"], OneCycleLR)
    assert made["scheduler"].total_steps == 12
    assert max(learning_rates(section, 12)) == pytest.approx(0.3, rel=0.1)
    _, made = configured(RADAM, section | {"total_steps": 99}, steps=12)
    assert isinstance(made["scheduler"], OneCycleLR)
    assert made["scheduler"].total_steps == 99


def test_a_plateau_is_of_the_monitored_metric_once_per_epoch() -> None:
    section = {"_target_": f"{TORCH}.ReduceLROnPlateau", "monitor": "val/acc", "mode": "max"}
    _, made = configured(RADAM, section, steps_per_epoch=5)
    assert isinstance(made["scheduler"], ReduceLROnPlateau)
    assert (made["reduce_on_plateau"], made["monitor"], made["frequency"]) == (True, "val/acc", 5)
    _, made = configured(RADAM, {"_target_": f"{TORCH}.StepLR", "step_size": 1})
    assert isinstance(made["scheduler"], StepLR)
    assert not made["reduce_on_plateau"]


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "message"),
    [
        (RADAM | {"lrr": 1}, None, r"optimizer\.lrr: .*RAdam has no such parameter"),
        (RADAM | {"lr": -1}, None, r"optimizer: .*RAdam raised ValueError: Invalid learning rate"),
        ({"_target_": f"{OURS}.adam"}, None, r"optimizer\.lr: missing"),
        ({"_target_": "torch.nn.Identity"}, None, r"it returned Identity, which is no torch\.opt"),
        (RADAM, {"_target_": f"{TORCH}.StepLR"}, r"scheduler\.step_size: missing"),
        (
            RADAM | {"schedule": "cosine"},
            {"_target_": f"{TORCH}.StepLR", "step_size": 1},
            r"optimizer\.schedule = cosine, warmup = 0\.0: a scheduler of your own replaces them",
        ),
    ],
)
def test_sections_that_cannot_be_built(
    optimizer: dict[str, Any], scheduler: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        configured(optimizer, scheduler)


def test_sgd_without_momentum() -> None:
    assert optimizers.sgd(nn.Linear(1, 1), lr=0.1, momentum=0.0).defaults["nesterov"] is False


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.sgd, optimizers.muon])
def test_biases_and_normalization_do_not_decay(make: Any) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    own = {optimizers.sgd: {"momentum": 0.0}, optimizers.muon: {"momentum": 0.6, "other_lr": 0.1}}
    optimizer = make(network, lr=0.1, weight_decay=0.5, **own.get(make, {}))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer.step()
    for old, new in zip(before, network.parameters(), strict=True):
        if new.ndim == 1:
            assert torch.equal(new, old)
        if new.ndim == 2:
            torch.testing.assert_close(new, 0.95 * old)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7)])
def test_orthogonalized_against_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    values = torch.logspace(0, -1.5, u.shape[-1]).expand(3, -1) * torch.tensor([[0.01], [1], [100]])
    found = orthogonalize(u @ values.diag_embed() @ vh)
    new_values = u.mT @ found @ vh.mT  # diagonal, if the singular vectors are the same
    diagonal = new_values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(new_values, diagonal.diag_embed(), atol=1e-4, rtol=0)
    assert 0.65 < diagonal.min() <= diagonal.max() < 1.25
    # So it is the nearest orthogonal matrix, U V^T, to within a third in any direction.
    assert torch.linalg.matrix_norm(found - u @ vh, 2).max() < 0.35


def muon(network: nn.Module) -> Any:
    return optimizers.muon(network, lr=0.2, momentum=0.6, other_lr=0.1, weight_decay=0.5)


def small_network() -> nn.Sequential:
    """Return two kernels that are matrices of one shape, and others, channels last."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 3, 3, bias=False),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, affine=False),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).to(memory_format=torch.channels_last)


def gradients(network: nn.Module, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        made.append(parameter.grad.clone())
    return made


def test_muon_by_hand() -> None:
    """Two steps: each kernel is scaled, then moved by its orthogonalized momentum."""
    network = small_network()
    optimizer = muon(network)
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    velocities = [torch.zeros_like(weight) for weight in weights]
    for seed in range(2):
        for position, gradient in enumerate(gradients(network, seed)):
            weight, velocity = weights[position], velocities[position]
            if weight.ndim == 4:
                velocity.mul_(0.6).add_(gradient)
                u, _, vh = torch.linalg.svd((gradient + 0.6 * velocity).flatten(1), False)  # noqa: FBT003
                unit_rows = weight * len(weight) ** 0.5 / weight.norm()
                weights[position] = unit_rows - 0.2 * (u @ vh).view(weight.shape)
        optimizer.step()
        for found, expected in zip(network.parameters(), weights, strict=True):
            if found.ndim == 4:
                # Newton-Schulz leaves singular values within a third of 1.
                error = (found - expected).flatten(1)
                assert torch.linalg.matrix_norm(error, 2) < 0.35 * 0.2
        weights = [parameter.detach().clone() for parameter in network.parameters()]


def test_muon_is_adamw_for_other_parameters() -> None:
    network, twin = small_network(), small_network()
    optimizer = muon(network)
    weights = [parameter for parameter in twin.parameters() if parameter.ndim == 2]
    biases = [parameter for parameter in twin.parameters() if parameter.ndim == 1]
    reference = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.5}, {"params": biases, "weight_decay": 0.0}], lr=0.1
    )
    for seed in range(3):
        gradients(network, seed)
        gradients(twin, seed)
        optimizer.step()
        reference.step()
    for found, expected in zip(network.parameters(), twin.parameters(), strict=True):
        if found.ndim != 4:
            torch.testing.assert_close(found, expected)


def test_muon_continues_from_what_it_saved() -> None:
    network = small_network()
    optimizer = muon(network)
    gradients(network, 0)
    optimizer.step()
    resumed = small_network()
    resumed.load_state_dict(network.state_dict())
    again = muon(resumed)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        for net, opt in ((network, optimizer), (resumed, again)):
            gradients(net, seed)
            opt.step()
    for found, expected in zip(resumed.parameters(), network.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_muon_leaves_kernels_without_a_gradient_alone() -> None:
    network = small_network()
    optimizer = muon(network)
    gradients(network, 0)
    kernel = next(parameter for parameter in network.parameters() if parameter.ndim == 4)
    before, kernel.grad = kernel.detach().clone(), None
    optimizer.step()
    assert torch.equal(kernel, before)


def test_muon_leaves_frozen_kernels_alone() -> None:
    network = small_network()
    frozen = next(network.parameters()).requires_grad_(False)  # noqa: FBT003
    before = frozen.clone()
    optimizer = muon(network)
    network(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    assert torch.equal(frozen, before)
