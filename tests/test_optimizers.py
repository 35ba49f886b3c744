from fractions import Fraction
from math import cos, pi
from pathlib import Path

import pytest
import torch
from conftest import Command, tiny_overrides
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fashion import optimizers
from fashion.optimizers import OptimizerFactory, schedule_factor

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
}
# One weight of 1 whose gradient is 1: Adam's first step is lr, AdamW's decays by lr * 0.5 before,
# Nesterov's is lr * (1 + momentum). The second step's rate is half.
EXPECTED = {
    "adam": [0.9, 0.85],
    "adamw": [0.85, 0.85 * 0.975 - 0.05],
    "sgd": [1 - 0.19, 1 - 0.19 - 0.05 * (1 + 0.9 * 1.9)],
}


@pytest.mark.parametrize("name", RECIPES)
def test_steps_by_hand(name: str) -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
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
    assert rates == pytest.approx({step: 0.001 * (1 - step / 100) for step in (49, 99)})
