"""The experiments: one epoch budget, and what must not change unnoticed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, tiny_overrides
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fashion.config import CONF, build
from fashion.data.datamodule import FashionMNIST, epoch_seed, from_config, normalize
from fashion.runs.run import Run
from fashion.training.classifier import Classifier

pytestmark = pytest.mark.slow

# With a smaller network on the images of tests/conftest.py: the loss before each of five steps.
# Whoever means to change an experiment writes down the new ones.
GOLDEN_LOSSES = {
    ("experiment=fast", "augmentation=erasing", "trainer.max_epochs=32"): [
        *(2.898443, 1.411023, 1.178512, 1.170726, 1.078496)
    ],
    ("experiment=fast",): [3.004052, 1.747247, 1.407999, 1.308105, 1.627596],
    ("experiment=record",): [2.719775, 2.202060, 1.328468, 1.373328, 1.538002],
}
SHRUNK = ("model.network.widths=[8,8]", "data.batch_size=32")


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["sweep=test", *overrides])


def plain(*overrides: str) -> Any:
    return OmegaConf.to_container(composed(*overrides), resolve=True)


def test_record_is_fast_twice_and_longer() -> None:
    fast, record = (plain(f"experiment={name}") for name in ("fast", "record"))
    changed = [key for key in record if record[key] != fast[key]]
    assert sorted(changed) == ["augmentation", "data", "model", "name", "trainer"]
    members = record["model"]["network"].pop("members")
    assert record["data"]["batch_size"] == members * fast["data"]["batch_size"]
    assert record["augmentation"]["clean_epochs"] == members * fast["augmentation"]["clean_epochs"]
    assert record["trainer"]["max_epochs"] > members * fast["trainer"]["max_epochs"]
    for network in (fast, record):
        del network["model"]["network"]["_target_"]
    assert fast["model"] == record["model"]


def test_the_epoch_budget_decides_the_rest(
    tiny_data: Path, tmp_path: Path, command: Command
) -> None:
    """The number of epochs alone stretches the schedule and lets CutMix begin."""
    for epochs in (1, 4):
        done = command(
            "train",
            *tiny_overrides(tiny_data),
            "experiment=fast",
            *SHRUNK,
            f"trainer.max_epochs={epochs}",
            f"hydra.run.dir={tmp_path}/{epochs}",
        )
        assert done.status == 0, done.err
        run = Run(tmp_path / str(epochs))
        assert run.reported_checkpoint == run.last_checkpoint
        assert run.metrics["epochs"] == run.metrics["best_epoch"] == epochs
        peak = run.config.optimizer.lr
        rates = [peak * (1 - epoch / epochs) for epoch in range(epochs)]
        assert run.history["lr"] == pytest.approx(rates)
    mixed = {}
    for epochs in (8, 10, 32):
        config = plain("experiment=fast", f"trainer.max_epochs={epochs}")
        augmentation = build("augmentation", config["augmentation"])
        mixed[epochs] = 0
        for epoch in range(epochs):
            augmentation.set_epoch(epoch, epochs)
            mixed[epochs] += augmentation.mixes
    assert mixed == {8: 0, 10: 2, 32: 24}


@pytest.mark.parametrize("overrides", GOLDEN_LOSSES)
def test_golden_losses(tiny_data: Path, overrides: tuple[str, ...]) -> None:
    config = composed(*overrides, *SHRUNK, *tiny_overrides(tiny_data))
    torch.manual_seed(epoch_seed(0, 0))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    data: FashionMNIST = from_config(plain["data"])
    data.setup("fit")
    classifier = Classifier(
        plain["model"]["network"], plain["optimizer"], loss=plain["loss"], steps=(10, 10, 10)
    )
    classifier.double()  # in single precision the fifth loss differs by 3 % between processors
    optimizer: Any = classifier.configure_optimizers()["optimizer"]
    augmentation = build("augmentation", plain["augmentation"])
    augmentation.set_epoch(0, config.trainer.max_epochs)
    losses = []
    for _ in range(5):
        images, labels = augmentation(data.train.images[:32], data.train.labels[:32])
        loss = classifier.training_step((normalize(images).double(), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN_LOSSES[overrides], rel=1e-5), losses


@pytest.mark.usefixtures("no_report")
def test_an_experiment_s_run_is_rebuilt_from_its_folder(
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
