import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from conftest import fitted
from lightning.pytorch.callbacks import Callback

from fashion.errors import Interrupted
from fashion.training.callbacks import EpochTable, History, StopEarly, Timing
from fashion.training.checkpoints import LastCheckpoint

MODULE = Mock(spec=pl.LightningModule)  # of no interest to these callbacks


def epochs_trained(stop: StopEarly, key: str, values: list[float]) -> int:
    """Return after how many epochs with these values of a metric the callback stops."""
    trainer = Mock(
        spec=pl.Trainer,
        fast_dev_run=False,
        sanity_checking=False,
        should_stop=False,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda stop, **_: stop),
    )
    stop._check_on_train_epoch_end = False  # noqa: SLF001 - it validates after each epoch
    for trainer.current_epoch, value in enumerate(values):
        trainer.callback_metrics = {key: torch.tensor(value)}
        stop.on_validation_end(trainer, MODULE)
        if trainer.should_stop:
            return int(trainer.current_epoch) + 1
    return len(values)


def stop_early(**options: Any) -> StopEarly:
    trained: dict[str, Any] = {"patience": 2}
    return StopEarly(**trained | options)


def test_early_stopping_waits_for_an_improvement() -> None:
    assert epochs_trained(stop_early(), "val/acc", [0.5, 0.6, 0.6, 0.5, 0.9]) == 4
    assert epochs_trained(stop_early(), "val/acc", [0.5, 0.4, 0.6, 0.5, 0.7]) == 5


def test_a_change_below_min_delta_is_no_improvement() -> None:
    values = [0.5, 0.505, 0.508, 0.6]
    assert epochs_trained(stop_early(min_delta=0.01), "val/acc", values) == 3
    assert epochs_trained(stop_early(min_delta=0.001), "val/acc", values) == 4


def test_early_stopping_on_the_loss() -> None:
    stop = stop_early(monitor="val/loss", mode="min")
    assert epochs_trained(stop, "val/loss", [2.0, 1.0, 1.1, 1.2, 0.1]) == 4


def test_epochs_of_the_warmup_do_not_count() -> None:
    values = [0.9, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2]
    assert epochs_trained(stop_early(), "val/acc", values) == 3
    # The first three, of which the best would have been unbeatable, are not looked at.
    assert epochs_trained(stop_early(warmup_epochs=3), "val/acc", values) == 7


@pytest.mark.slow
def test_a_run_that_stopped_early_trains_no_extra_epoch_when_resumed(
    tmp_path: Path, tiny_data: Path
) -> None:
    """The accuracy rises, and is to fall."""
    falling = ("callbacks.early_stopping.mode=min", "callbacks.early_stopping.patience=1")
    more = "trainer.max_epochs=9"
    made = fitted(tmp_path, tiny_data, *falling, more)
    epochs = made.metrics["epochs"]
    assert epochs < 9
    assert made.metrics["stopped"].startswith(f"stopped after {epochs} of 9 epochs: val/acc no bet")
    made.run.best_checkpoint.touch()
    again = fitted(tmp_path, tiny_data, *falling, more)
    assert again.metrics["epochs"] == epochs
    assert again.run.history == made.run.history


def test_a_stop_is_kept_where_min_epochs_goes_on() -> None:
    """As in a run that is not interrupted, whatever the metric does after it."""
    stop = stop_early(patience=1)
    assert epochs_trained(stop, "val/acc", [0.5, 0.4]) == 2
    epochs_trained(stop, "val/acc", [0.6])
    again = stop_early(patience=1)
    again.load_state_dict(stop.state_dict())
    trainer = Mock(spec=pl.Trainer, should_stop=False)
    again.on_train_start(trainer, MODULE)
    assert trainer.should_stop


# history.csv


class StopIn(Callback):
    """Interrupts a training within an epoch (from 1), as a signal does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch + 1 == self.epoch and trainer.global_step % 10 == 5:
            raise Interrupted(15)


def without_times(history: dict[str, list[float]]) -> dict[str, list[float]]:
    return {key: values for key, values in history.items() if key != "seconds"}


@pytest.mark.slow
def test_history_and_weights_of_a_resumed_run_are_those_of_one_left_alone(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within an epoch, and killed between its row and its checkpoint.

    And begun in Lightning's ordinary loop, which the callback needs, and continued without it.
    """
    macro = (
        "+metrics.macro_f1={_target_:torchmetrics.classification.MulticlassF1Score,average:macro}"
    )
    overrides = (
        "trainer.max_epochs=4",
        "model.network.dropout=0.5",
        "augmentation.hflip=true",
        macro,
    )
    whole = fitted(tmp_path / "whole", tiny_data, *overrides, callbacks=[StopIn(9)])
    assert whole.run.history["epoch"] == [1, 2, 3, 4]
    assert whole.run.history["step"] == [10, 20, 30, 40]
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "val/macro_f1"} <= set(
        whole.run.history
    )
    assert all(map(math.isfinite, whole.run.history["seconds"]))

    folder = tmp_path / "resumed"
    with pytest.raises(Interrupted) as interrupted:
        fitted(folder, tiny_data, *overrides, callbacks=[StopIn(2)])
    assert "There is 1 whole epoch in" in interrupted.value.__notes__[0]

    save = LastCheckpoint.on_train_epoch_end

    def killed(self: LastCheckpoint, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise Interrupted(15)
        save(self, trainer, module)

    with monkeypatch.context() as patched:
        patched.setattr(LastCheckpoint, "on_train_epoch_end", killed)
        with pytest.raises(Interrupted):
            fitted(folder, tiny_data, *overrides)
    assert whole.run.__class__(folder).history["epoch"] == [1, 2, 3]  # one beyond the checkpoint
    resumed = fitted(folder, tiny_data, *overrides)
    assert without_times(resumed.run.history) == without_times(whole.run.history)
    assert all(map(math.isfinite, resumed.run.history["seconds"]))
    for name, weight in whole.classifier.state_dict().items():
        assert torch.equal(weight, resumed.classifier.state_dict()[name]), name
    left, right = (torch.load(made.run.last_checkpoint) for made in (whole, resumed))
    assert str(left["optimizer_states"]) == str(right["optimizer_states"])


def test_history_writes_a_gap_where_a_metric_is_missing(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv", Timing())
    history.timing.validation_seconds = 1.0
    trainer = Mock(
        spec=pl.Trainer,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}, {"lr": 0.2}])],
        is_global_zero=True,
        fast_dev_run=False,
        global_step=5,
    )
    for trainer.current_epoch, metrics in enumerate(({"val/acc": 0.5}, {"other": 1.0})):
        trainer.callback_metrics = {key: torch.tensor(value) for key, value in metrics.items()}
        history.on_train_epoch_start(trainer, MODULE)
        trainer.optimizers[0].param_groups[0]["lr"] /= (
            2  # the row has the one that was trained with
        )
        history.on_train_epoch_end(trainer, MODULE)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines == ["epoch,step,lr,seconds,val/acc,other", "1,5,0.1,0,0.5,", "2,5,0.05,0,,1"]
    for content in (b"epoch,seconds\n1,7\n2,x\n", b"epoch\n", b"\xff", b"epoch,seconds\n1,7\n"):
        (tmp_path / "history.csv").write_bytes(content)
        resumed = History(tmp_path / "history.csv", Timing())
        resumed.load_state_dict(history.state_dict())
        resumed.on_fit_start(trainer, MODULE)
        assert resumed.rows[0]["val/acc"] == 0.5
    assert resumed.rows[0]["seconds"] == 7
    assert math.isnan(resumed.rows[1]["seconds"])


@pytest.mark.slow
def test_an_epoch_without_a_validation_repeats_no_earlier_one(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("max_epochs=3", "check_val_every_n_epoch=2", "enable_progress_bar=true")
    history = fitted(tmp_path, tiny_data, *(f"trainer.{each}" for each in options)).run.history
    for key, blank in (("train/acc", []), ("val/acc", [1, 3]), ("val/loss", [1, 3])):
        pairs = zip(history["epoch"], history[key], strict=True)
        assert [epoch for epoch, value in pairs if math.isnan(value)] == blank
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if "-" in row] == ["1/3", "3/3"]


# The table on standard output


def table(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, epochs: int = 12) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    timing = Timing()
    timing.epoch_seconds, timing.epoch_images, timing.validation_seconds = 0.01, 50_000, 1.0
    printed = EpochTable(timing)
    trainer = Mock(
        spec=pl.Trainer,
        is_global_zero=True,
        max_epochs=epochs,
        num_training_batches=10,
        current_epoch=0,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_idx=4)),
        callback_metrics={
            "train/loss": torch.tensor(12.34567),
            "train/acc": torch.tensor(0.123456),
            "val/acc": torch.tensor(1.0),
        },
    )
    printed.on_train_start(trainer, MODULE)
    for trainer.current_epoch in (0, epochs - 1):
        printed._drawn = 0.0  # noqa: SLF001 - as if a fifth of a second had passed
        printed.on_train_batch_end(trainer)
        printed.on_train_epoch_end(trainer, MODULE)


@pytest.mark.parametrize("epochs", [12, 9999])
def test_without_a_terminal_each_epoch_is_one_plain_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], epochs: int
) -> None:
    table(monkeypatch, terminal=False, epochs=epochs)
    out = capsys.readouterr().out
    header, first, last = out.splitlines()
    assert header.split() == ["epoch", "loss", "train", "%", "val", "%", "images/s", "left"]
    assert first.split()[:5] == [f"1/{epochs}", "12.3457", "12.35", "100.00", "5,000,000"]
    assert last.split()[0] == f"{epochs}/{epochs}"
    assert last.endswith(" 0:00")
    assert max(map(len, (header, first, last))) <= 60
    assert "\r" not in out
    assert "\x1b" not in out


@pytest.mark.parametrize("columns", [58, 80, 40])
def test_on_a_terminal_the_running_epoch_is_redrawn_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table(monkeypatch, terminal=True)
    lines = capsys.readouterr().out.splitlines()[1:]  # splitlines splits at \r as well
    drawn = [line for line in lines if line]
    assert len(drawn) == 4
    assert max(map(len, drawn)) < columns
    assert drawn[0].split()[:2] == ["1/12", "50"]


def test_an_unknown_number_of_epochs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EpochTable, "on_train_batch_end", lambda *_: None)
    table(monkeypatch, terminal=False, epochs=-1)
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "1/-"


def test_images_of_an_unfinished_epoch_are_not_counted() -> None:
    timing = Timing()
    assert timing.images_per_second is None
    timing.load_state_dict({"seconds": 9.0, "training_seconds": 2.0, "images": 100})
    assert timing.images_per_second == 50
    trainer = Mock(spec=pl.Trainer, world_size=1)
    timing.on_train_epoch_start(trainer, MODULE)
    timing.on_train_batch_end(trainer, MODULE, None, (0, [0] * 7), 0)
    assert timing.images_per_second == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "overrides", "callbacks"),
    [
        (300, ("trainer.gradient_clip_val=0.001",), ()),  # one step, clipped after it is measured
        (32, (), (StopIn(9),)),  # ten steps, in the ordinary loop and without it
    ],
)
def test_gradient_norm(
    batch_size: int,
    overrides: tuple[str, ...],
    callbacks: tuple[Callback, ...],
    tmp_path: Path,
    tiny_data: Path,
) -> None:
    key = "+callbacks.norm._target_=fashion.training.callbacks.GradientNorm"
    common = (key, "trainer.max_epochs=1", f"data.batch_size={batch_size}")
    plain = fitted(tmp_path / "plain", tiny_data, *common)
    other = fitted(tmp_path / "other", tiny_data, *common, *overrides, callbacks=callbacks)
    (norm,) = plain.run.history["train/gradient_norm"]
    assert norm > 0.1
    assert other.run.history["train/gradient_norm"] == [pytest.approx(norm)]
