import copy
from fractions import Fraction
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, tiny_overrides
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fashion.training import optimizers
from fashion.training.optimizers import OptimizerFactory, orthogonalize, schedule_factor

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
    schedule: optimizers.Schedule, warmup: float, steps: int, expected: list[float]
) -> None:
    found = [schedule_factor(schedule, warmup, step, steps) for step in range(steps)]
    assert found == pytest.approx([float(factor) for factor in expected])
    # Lightning asks once more after the last step.
    after = schedule_factor(schedule, warmup, steps, steps)
    assert after == pytest.approx(1 if schedule == "constant" or warmup == 0.9 else 0)


RECIPES: dict[str, OptimizerFactory] = {
    "adam": lambda network, steps: optimizers.adam(
        network, steps, lr=0.1, weight_decay=0.0, schedule="linear", warmup=0.0
    ),
    "adamw": lambda network, steps: optimizers.adamw(
        network, steps, lr=0.1, weight_decay=0.5, schedule="linear", warmup=0.0
    ),
    "sgd": lambda network, steps: optimizers.sgd(
        network, steps, lr=0.1, momentum=0.9, weight_decay=0.0, schedule="linear", warmup=0.0
    ),
    "muon": lambda network, steps: optimizers.muon(
        network,
        steps,
        lr=0.2,
        momentum=0.6,
        other_lr=0.1,
        weight_decay=0.5,
        schedule="linear",
        warmup=0.0,
    ),
}
# One weight of 1 whose gradient is 1: Adam's first step is lr, AdamW's decays by lr * 0.5 before,
# Nesterov's is lr * (1 + momentum). The second step's rate is half. Muon leaves it to AdamW.
EXPECTED = {
    "adam": [0.9, 0.85],
    "adamw": [0.85, 0.85 * 0.975 - 0.05],
    "muon": [0.85, 0.85 * 0.975 - 0.05],
    "sgd": [1 - 0.19, 1 - 0.19 - 0.05 * (1 + 0.9 * 1.9)],
}


@pytest.mark.parametrize("name", RECIPES)
def test_steps_by_hand(name: str) -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    network.norm = nn.BatchNorm2d(1, affine=False)  # without which there is no Muon
    made = RECIPES[name](network, 2)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]  # type: ignore[index]
    assert made["lr_scheduler"]["interval"] == "step"  # type: ignore[index]
    weights = []
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        scheduler.step()
        weights.append(network.weight.item())
    assert weights == pytest.approx(EXPECTED[name], rel=1e-5)


def test_sgd_without_momentum() -> None:
    network = nn.Linear(1, 1)
    made = optimizers.sgd(
        network, 1, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0
    )
    assert made["optimizer"].defaults["nesterov"] is False


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.sgd, optimizers.muon])
def test_biases_and_normalisation_do_not_decay(make: Any) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    own = {optimizers.sgd: {"momentum": 0.0}, optimizers.muon: {"momentum": 0.6, "other_lr": 0.1}}
    rest = {"lr": 0.1, "weight_decay": 0.5, "schedule": "constant", "warmup": 0.0}
    optimizer = make(network, 1, **rest, **own.get(make, {}))["optimizer"]
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
def test_orthogonalised_against_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
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
    return optimizers.muon(
        network,
        10,
        lr=0.2,
        momentum=0.6,
        other_lr=0.1,
        weight_decay=0.5,
        schedule="constant",
        warmup=0.0,
    )["optimizer"]


def small_network() -> nn.Sequential:
    """Two kernels that are matrices of one shape, and one of another, channels last."""
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
    """Two steps: each kernel brought to length, then turned by the orthogonalize momentum."""
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


def test_muon_is_adamw_to_the_others() -> None:
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


def test_muon_leaves_frozen_kernels_alone() -> None:
    network = small_network()
    network[0].weight.requires_grad_(False)  # noqa: FBT003
    before = network[0].weight.clone()
    optimizer = muon(network)
    network(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    assert torch.equal(network[0].weight, before)


def test_the_rate_follows_the_real_number_of_steps(
    tiny_data: Path, tmp_path: Path, command: Command
) -> None:
    done = command(
        "train",
        *tiny_overrides(tiny_data),
        "model=linear",
        "optimizer.schedule=linear",
        "trainer.max_epochs=2",
        "data.batch_size=6",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.status == 0, done.err
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    # 300 pictures in batches of 6: 50 steps an epoch, 100 in all; each 50th is logged.
    rates = {event.step: event.value for event in events.Scalars("lr")}
    assert rates == pytest.approx({step: 0.001 * (1 - (step - 1) / 100) for step in (1, 51)})
