"""Several optimizer steps per call: the same weights bit for bit, or not used at all."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import fitted, section
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    StochasticWeightAveraging,
)

from fashion.training.callbacks import StopEarly, Timing
from fashion.training.classifier import Classifier
from fashion.training.fast_path import FLAGS, ChunkedClassifier, why_not


class Foreign(Callback):
    def on_before_optimizer_step(self, *_: Any) -> None: ...


class Harmless(Callback):
    def on_train_epoch_end(self, *_: Any) -> None: ...


DEFAULTS = section("trainer")


def reason(
    batch_size: int = 32,
    *callbacks: Callback,
    optimizer: str = "fashion.training.optimizers.adam",
    scheduler: dict[str, Any] | None = None,
    **flags: Any,
) -> str | None:
    trainer = DEFAULTS | flags
    return why_not(
        batch_size,
        trainer,
        callbacks,
        optimizer={"_target_": optimizer},
        scheduler=scheduler,
    )


CHANGED: dict[str, Any] = {
    "accumulate_grad_batches": 2,
    "devices": 2,
    "detect_anomaly": True,
    "fast_dev_run": True,
    "gradient_clip_val": 1.0,
    "limit_train_batches": 10,
    "max_steps": 100,
    "max_time": "00:01:00:00",
    "overfit_batches": 3,
    "profiler": "simple",
    "val_check_interval": 0.5,
}


def test_the_defaults_allow_it() -> None:
    assert reason() is None
    assert reason(32, Harmless(), Timing(), StopEarly(patience=1)) is None
    assert reason(32, devices=1, limit_train_batches=1.0, max_steps=-1) is None


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_acts_on_single_batches_rules_it_out(flag: str) -> None:
    assert reason(**{flag: CHANGED[flag]}) == f"trainer.{flag}={CHANGED[flag]}"


def test_other_reasons() -> None:
    assert reason(32, Foreign()) == "Foreign.on_before_optimizer_step"
    assert reason(32, LearningRateMonitor()) == "LearningRateMonitor.on_train_batch_start"
    assert reason(32, scheduler={"_target_": "x"}) == "scheduler=x"
    assert reason(32, optimizer="torch.optim.RAdam") is None
    assert reason(32, optimizer="torch.optim.LBFGS") == "optimizer=torch.optim.LBFGS"
    assert reason(32, StochasticWeightAveraging(0.1)) == "StochasticWeightAveraging"
    assert (reason(128), reason(129)) == (None, "")  # no gain: nothing to say


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "more"),
    [
        (7, ()),
        (128, ()),
        (50, ("optimizer=muon", "model.network.batch_norm=true", "trainer.precision=bf16-mixed")),
    ],
)
def test_both_ways_give_the_same_weights_bit_for_bit(
    tmp_path: Path, tiny_data: Path, batch_size: int, more: tuple[str, ...]
) -> None:
    """With dropout, augmentation, a schedule over the steps, and a smaller last batch."""
    overrides = (
        f"data.batch_size={batch_size}",
        "model=cnn",
        "model.network.conv=[4]",
        "model.network.dense=[8]",
        "augmentation.hflip=true",
        "augmentation.translate=2",
        "augmentation.erase=8",
        "optimizer.schedule=cosine",
        "optimizer.warmup=0.2",
        "loss.label_smoothing=0.1",
        *more,
    )
    chunked = fitted(tmp_path / "chunked", tiny_data, *overrides)
    single = fitted(tmp_path / "single", tiny_data, *overrides, callbacks=[Foreign()])
    assert isinstance(chunked.classifier, ChunkedClassifier)
    assert type(single.classifier) is Classifier
    expected: dict[str, torch.Tensor] = single.classifier.state_dict()
    for name, weight in chunked.classifier.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    histories = [made.run.history for made in (chunked, single)]
    for key in ("train/loss", "val/loss", "val/acc", "lr", "step"):
        assert histories[0][key] == histories[1][key], key
    last = [torch.load(made.run.last_checkpoint) for made in (chunked, single)]
    assert last[0]["global_step"] == last[1]["global_step"] == 2 * -(-300 // batch_size)
    for each in last:  # by which Lightning logs what other callbacks log
        loop = each["loops"]["fit_loop"]["epoch_loop.state_dict"]
        assert loop["_batches_that_stepped"] == each["global_step"]


def test_a_chunk_is_split_into_steps() -> None:
    """A checkpoint of either way is loaded by the other: both have the same parameters."""
    section = {"_target_": "fashion.training.networks.ConvNet", "conv": [], "dense": []}
    chunked = ChunkedClassifier(section, batch_size=4)
    assert isinstance(chunked, pl.LightningModule)
    assert not chunked.automatic_optimization
    assert chunked.state_dict().keys() == Classifier(section).state_dict().keys()
