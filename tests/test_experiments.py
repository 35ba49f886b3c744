"""The recipes: one dial, and what must not change unnoticed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, tiny_overrides
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion.data.datamodule import FashionMNIST, epoch_seed, normalize
from fashion.runs.run import Run
from fashion.train import CONF
from fashion.training.classifier import Classifier

# Of the record's recipe, its network shrunk, on the pictures of tests/conftest.py: the loss before
# each of five steps. Whoever means to change the recipe writes down the new ones.
GOLDEN_LOSSES = [2.898445, 1.410530, 1.175256, 1.201429, 1.019049]
SHRUNK = ("model.network.widths=[8,8]", "data.batch_size=32")


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def test_fast_is_the_record_at_the_small_end() -> None:
    fast = composed("experiment=fast")
    record = composed("experiment=record", f"trainer.max_epochs={fast.trainer.max_epochs}")
    assert fast.name == "fast"
    fast.name = record.name
    assert OmegaConf.to_container(fast, resolve=True) == OmegaConf.to_container(
        record, resolve=True
    )
    assert composed("experiment=record").trainer.max_epochs > fast.trainer.max_epochs


def test_one_dial(tiny_data: Path, tmp_path: Path, command: Command) -> None:
    """The number of epochs alone stretches the schedule and strengthens the erasing."""
    for epochs in (1, 4):
        done = command(
            "train",
            *tiny_overrides(tiny_data),
            "experiment=record",
            *SHRUNK,
            "data.batch_size=6",  # 50 steps an epoch
            f"trainer.max_epochs={epochs}",
            f"hydra.run.dir={tmp_path}/{epochs}",
        )
        assert done.status == 0, done.err
        run = Run(tmp_path / str(epochs))
        assert run.reported_checkpoint == run.last_checkpoint
        assert run.metrics["epochs"] == run.metrics["best_epoch"] == epochs
        events = EventAccumulator(str(run.folder)).Reload()
        peak = run.config.optimizer.lr
        rates = {event.step: event.value for event in events.Scalars("lr")}
        steps = 50 * epochs
        assert rates == pytest.approx(
            {step + 1: peak * (1 - step / steps) for step in range(0, steps, 50)}
        )
    shares = [
        instantiate(
            composed("experiment=record", f"trainer.max_epochs={epochs}").augmentation, epochs
        ).erased_fraction
        for epochs in (8, 16, 32, 50)
    ]
    assert shares[0] == 0
    assert shares == sorted(set(shares))


def test_golden_losses(tiny_data: Path) -> None:
    config = composed("experiment=record", *SHRUNK, *tiny_overrides(tiny_data))
    torch.manual_seed(epoch_seed(0, 0))
    data: FashionMNIST = instantiate(config.data, 0)
    data.setup("fit")
    classifier = Classifier(
        instantiate(config.model.network, _convert_="all"),
        label_smoothing=config.label_smoothing,
    )
    optimizer = instantiate(config.optimizer)(classifier.network, 10)["optimizer"]
    augmentation = instantiate(config.augmentation, config.trainer.max_epochs)
    losses = []
    for _ in range(5):
        images = normalize(augmentation(data.train.images[:32], 0))
        loss = classifier.loss((images, data.train.labels[:32]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-3), losses


def test_a_recipe_s_run_is_rebuilt_from_its_folder(
    tiny_data: Path, tmp_path: Path, command: Command
) -> None:
    done = command(
        "train",
        *tiny_overrides(tiny_data),
        "experiment=fast",
        *SHRUNK,
        "trainer=smoke",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.status == 0, done.err
    assert "accuracy" in command("evaluate", tmp_path / "run").out
