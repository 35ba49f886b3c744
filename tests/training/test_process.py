"""What surrounds the training loop: cluster environments, loggers, the Trainer, other runs."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from conftest import Command, composed, fitted, section, tiny_overrides
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion.errors import UserError
from fashion.runs.run import Run
from fashion.training.callbacks import OptunaPruning
from fashion.training.process import (
    EventLogger,
    _environment,
    build_loggers,
    build_trainer,
    processes,
)

# What Slurm sets in a job of one task.
SLURM = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_JOB_ID": "77",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", *(n for n in os.environ if "SLURM" in n)):
        monkeypatch.delenv(name, raising=False)


# Slurm and ranks


@pytest.mark.parametrize(
    ("variables", "flags", "kind"),
    [
        ({}, {}, LightningEnvironment),
        (SLURM, {}, LightningEnvironment),  # else Lightning would requeue the job by itself
        (SLURM | {"SLURM_NTASKS": "2"}, {}, LightningEnvironment),  # sbatch -n 2, one process
        (SLURM | {"SLURM_NTASKS": "2"}, {"devices": 2}, SLURMEnvironment),
        (SLURM | {"SLURM_NTASKS": "2"}, {"num_nodes": 2}, SLURMEnvironment),
        ({}, {"devices": 2}, None),  # Lightning starts the other process, or torchrun has
        (SLURM, {"devices": 2}, None),
    ],
)
def test_the_cluster_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], flags: dict[str, Any], kind: Any
) -> None:
    monkeypatch.setattr(os, "environ", os.environ | variables)
    found = _environment({"devices": 1, "accelerator": "cpu"} | flags)
    assert [type(each) for each in found] == ([] if kind is None else [kind])
    assert all(not getattr(each, "auto_requeue", False) for each in found)


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        ({}, 1),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": [0, 1]}, 2),
        ({"devices": "0,1,2"}, 3),
        ({"devices": "2"}, 2),
        ({"devices": 2, "num_nodes": 3}, 6),
        ({"devices": 1, "num_nodes": None}, 1),
    ],
)
def test_the_number_of_processes(flags: dict[str, Any], number: int) -> None:
    assert processes(flags) == number


@pytest.mark.slow
def test_a_job_of_slurm_leaves_other_runs_checkpoints_alone(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would begin with hpc_ckpt_1.ckpt of the current folder."""
    monkeypatch.chdir(tmp_path)
    expected = fitted(tmp_path / "a", tiny_data).run.history["train/loss"]
    other = fitted(tmp_path / "b", tiny_data, "seed=5").run
    for folder in (tmp_path, tmp_path / "c"):
        folder.mkdir(exist_ok=True)
    shutil.copy(other.last_checkpoint, "hpc_ckpt_1.ckpt")
    for tasks in ("1", "2"):
        for name, value in (SLURM | {"SLURM_NTASKS": tasks}).items():
            monkeypatch.setenv(name, value)
        made = fitted(tmp_path / f"slurm{tasks}", tiny_data)
        assert made.run.history["train/loss"] == expected
    assert [path.name for path in tmp_path.rglob("hpc_ckpt*")] == ["hpc_ckpt_1.ckpt"]


@pytest.mark.parametrize("name", ["LOCAL_RANK", "RANK"])
def test_a_rank_without_its_peers_is_refused_before_training(
    tiny_data: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv(name, "1")
    done = command("train", *tiny_overrides(tiny_data), f"hydra.run.dir={tmp_path}/run")
    assert done.status == 1
    assert "rank 1 of several" in done.err
    assert "trainer.devices = 1 trains in one process" in done.err
    assert not (tmp_path / "run/checkpoints").exists()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.slow
def test_two_tasks_of_slurm_train_one_run(tmp_path: Path, tiny_data: Path) -> None:
    """As `srun -n 2` starts them."""
    arguments = [
        *tiny_overrides(tiny_data),
        "model=linear",
        "trainer=smoke",
        "trainer.devices=2",
        "trainer.strategy=ddp",
        f"hydra.run.dir={tmp_path}/run",
    ]
    tasks = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "job"}
    tasks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "fashion.train", *arguments],
            env=os.environ | SLURM | tasks | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "Validation accuracy" in outputs[0]
    assert "Validation accuracy" not in outputs[1]
    assert Run.open(tmp_path / "run").metrics["epochs"] == 1


# Loggers


def events(folder: Path, key: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(key)]


def test_later_events_are_read_last_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads files in their names' order, and these begin with a time."""
    clock = iter([2_000_000_000.0, 1_900_000_000.0, 1_800_000_000.0])
    now = time.time()
    for steps in (0, 2, 4):
        now = next(clock)
        monkeypatch.setattr(time, "time", lambda now=now: now)
        logger = EventLogger(str(tmp_path), steps=steps)
        for step in (steps + 1, steps + 2):
            logger.log_metrics({"x": float(step)}, step)
        logger.save()
        logger.experiment.close()
    monkeypatch.undo()
    assert events(tmp_path, "x") == [(step, float(step)) for step in range(1, 7)]
    assert len(list(tmp_path.iterdir())) == 3  # each renamed, none lost
    assert not list(tmp_path.rglob("hparams.yaml"))


def test_a_resumed_run_drops_events_beyond_its_checkpoint(tmp_path: Path) -> None:
    for steps, value in ((0, 1.0), (2, 2.0)):
        logger = EventLogger(str(tmp_path), steps=steps)
        for step in range(steps + 1, 5):
            logger.log_metrics({"x": value, "epoch": 0}, step)  # the epoch is Lightning's
        logger.save()
        logger.experiment.close()
    assert events(tmp_path, "x") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"] == ["x"]


def test_loggers_write_into_the_run_folder(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert build_loggers(None, run, 0) == []
    (logger,) = build_loggers(section("logger", "logger=tensorboard"), run, 0)
    assert isinstance(logger, EventLogger)
    assert Path(logger.log_dir) == tmp_path
    (logger,) = build_loggers(section("logger", "logger=csv"), run, 0)
    assert isinstance(logger, CSVLogger)
    assert Path(logger.log_dir) == tmp_path / "csv"
    (resumed,) = build_loggers(section("logger", "logger=csv"), run, 20)
    assert Path(resumed.log_dir or "") == tmp_path / "csv/from-step-20"  # keeps the earlier rows
    with pytest.raises(UserError, match=r"logger\.x\._target_ = wandbb\.Logger cannot be imported"):
        build_loggers({"x": {"_target_": "wandbb.Logger"}}, run, 0)


# The Trainer


def trainer_flags(*overrides: str) -> dict[str, Any]:
    return section("trainer", "trainer.accelerator=cpu", *overrides)


def test_any_flag_of_the_trainer(tmp_path: Path) -> None:
    with Run(tmp_path).start(composed()):
        flags = trainer_flags(
            "trainer.gradient_clip_val=0.5", "+trainer.reload_dataloaders_every_n_epochs=1"
        )
        trainer = build_trainer(flags, Run(tmp_path), [], [])
        assert trainer.gradient_clip_val == 0.5
        assert Path(trainer.default_root_dir) == tmp_path
        with pytest.raises(
            UserError, match=r"trainer\.profilerr: .*no such parameter.* mean profi"
        ):
            build_trainer(trainer_flags("+trainer.profilerr=simple"), Run(tmp_path), [], [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_accelerator_that_is_not_there(tmp_path: Path) -> None:
    with Run(tmp_path).start(composed()):
        flags = section("trainer", "trainer.accelerator=cuda")
        with pytest.raises(UserError, match=r"trainer\.accelerator = cuda, devices = 1"):
            build_trainer(flags, Run(tmp_path), [], [])


# Whole trainings


@pytest.mark.slow
def test_the_learning_rate_follows_the_real_number_of_steps(
    tmp_path: Path, tiny_data: Path
) -> None:
    """Accumulated gradients, limited batches and max_steps count."""

    def rates(name: str, *overrides: str) -> list[float]:
        linear = ("optimizer.schedule=linear", "data.batch_size=30", "optimizer.lr=1.0")
        made = fitted(tmp_path / name, tiny_data, *linear, *overrides)
        found: list[float] = made.run.history["lr"]
        return found

    assert rates("plain") == [1.0, 0.5]
    assert rates("accumulated", "trainer.accumulate_grad_batches=3") == [1.0, 0.5]
    assert rates("limited", "trainer.limit_train_batches=4", "trainer.max_epochs=4") == [
        *(1.0, 0.75, 0.5, 0.25)
    ]
    assert rates("max_steps", "trainer.max_steps=15") == pytest.approx([1.0, 1 / 3])


@pytest.mark.slow
def test_a_scheduler_steps_once_per_epoch_of_accumulated_gradients(
    tmp_path: Path, tiny_data: Path
) -> None:
    """Ten batches per epoch, four steps."""
    scheduler = "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 1, gamma: 0.5}"
    made = fitted(
        *(tmp_path, tiny_data, f"scheduler={scheduler}", "data.batch_size=30", "optimizer.lr=1.0"),
        *("trainer.accumulate_grad_batches=3", "trainer.max_epochs=3"),
    )
    assert made.run.history["lr"] == [1.0, 0.5, 0.25]


@pytest.mark.slow
def test_the_last_epoch_is_reported_where_none_is_chosen_after_more_epochs_too(
    tmp_path: Path, tiny_data: Path
) -> None:
    for epochs in (1, 2):
        made = fitted(tmp_path, tiny_data, "callbacks.best=null", f"trainer.max_epochs={epochs}")
        assert made.metrics["best_epoch"] == made.metrics["epochs"] == epochs


@pytest.mark.slow
def test_the_machine_s_cores_are_those_used(tmp_path: Path, tiny_data: Path) -> None:
    made = fitted(tmp_path, tiny_data, "trainer.threads=2")  # of torch's one, in tests
    assert f", 2 of {os.cpu_count()} cores" in made.metrics["machine"]


@pytest.mark.slow
def test_schedulers_of_torch_in_a_training(tmp_path: Path, tiny_data: Path) -> None:
    torch_schedulers = "+scheduler._target_=torch.optim.lr_scheduler."
    step = (f"{torch_schedulers}StepLR", "+scheduler.step_size=1", "+scheduler.gamma=0.5")
    made = fitted(tmp_path / "step", tiny_data, *step, "trainer.max_epochs=3")
    assert made.run.history["lr"] == pytest.approx([1e-3, 5e-4, 2.5e-4])
    plateau = (
        f"{torch_schedulers}ReduceLROnPlateau",
        "+scheduler.mode=max",
        "+scheduler.patience=0",
    )
    made = fitted(tmp_path / "plateau", tiny_data, *plateau, "trainer.max_epochs=4")
    assert made.run.history["lr"][-1] < 1e-3  # val/loss falls, and is to rise


@pytest.mark.slow
def test_a_run_may_begin_with_another_s_weights(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = fitted(tmp_path / "a", tiny_data)
    begins = f"init_from={tmp_path}/a"
    still = "optimizer.lr=1e-30"
    made = fitted(tmp_path / "b", tiny_data, begins, still)
    for name, weight in source.classifier.state_dict().items():
        assert torch.equal(weight, made.classifier.state_dict()[name])
    capsys.readouterr()
    fitted(tmp_path / "c", tiny_data, begins, "model.network.dense=[8,8]", "seed=1")
    assert "these begin at random: network.4." in capsys.readouterr().out
    with pytest.raises(UserError, match="none of its weights fits this network"):
        fitted(tmp_path / "d", tiny_data, begins, "model=resnet", "model.network.widths=[4]")


@pytest.mark.slow
def test_the_last_epoch_is_reported_where_it_is_chosen_or_nothing_validates(
    tmp_path: Path, tiny_data: Path
) -> None:
    for name, overrides in {
        "last": ("checkpoint=last", "callbacks.best.mode=min"),
        "all": ("data.val_size=0", "callbacks.early_stopping=null"),
    }.items():
        made = fitted(tmp_path / name, tiny_data, *overrides)
        assert made.metrics["best_epoch"] == made.metrics["epochs"] == 2
        assert len(made.data.train) == (400 if name == "all" else 300)


@pytest.mark.slow
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_data: Path
) -> None:
    for overrides, message in (
        (("model.network.batch_norm=true", "data.batch_size=299"), r"last batch has 1, and batch"),
        (("model=ensemble", "data.batch_size=299"), r"has 1, and model\.network\.members needs"),
        (("optimizer=muon",), r"optimizer = muon is for convolutions"),
        (("model=cnn", "model.network.kernel_size=29"), r"kernel_size = 29.*layer 1"),
        (("optimizer.schedule=linear", "trainer.max_epochs=-1"), r"set trainer\.max_epochs or"),
    ):
        with pytest.raises(UserError, match=message):
            fitted(tmp_path / "run", tiny_data, *overrides)
        assert not (tmp_path / "run/.hydra").exists()


@pytest.mark.slow
def test_a_single_image_is_too_few_for_batch_normalization(tmp_path: Path, tiny_data: Path) -> None:
    four = ("model=resnet", "model.network.widths=[2,2,2,2]")  # which end at 1 x 1
    with pytest.raises(UserError, match=r"data\.batch_size = 1: a batch has a single image"):
        fitted(tmp_path, tiny_data, *four, "data.batch_size=1")


@pytest.mark.slow
def test_a_training_that_diverges_names_the_learning_rate(tmp_path: Path, tiny_data: Path) -> None:
    with pytest.raises(UserError, match=r"became .* in epoch 1.*learning rate [19]") as caught:
        fitted(tmp_path, tiny_data, "optimizer=sgd", "optimizer.lr=1e30", "optimizer.warmup=0.0")
    assert "whole epoch" in caught.value.__notes__[0]


@pytest.mark.slow
def test_a_dry_run_keeps_nothing(tmp_path: Path, tiny_data: Path) -> None:
    assert fitted(tmp_path, tiny_data, "trainer.fast_dev_run=true") is None
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "history.csv").exists()


def test_pruning_reports_each_validated_epoch_from_1() -> None:
    reported: list[tuple[int, float]] = []
    calls: list[str] = []
    pruning = OptunaPruning(
        lambda epoch, accuracy: reported.append((epoch, accuracy)),
        lambda: calls.append("epoch"),
        lambda: calls.append("step"),
    )
    metrics = {"val/acc": torch.tensor(0.5)}
    trainer = Mock(spec=pl.Trainer, current_epoch=0, callback_metrics=metrics)
    module = Mock(spec=pl.LightningModule)
    pruning.on_train_epoch_start(trainer, module)
    pruning.on_train_batch_start(trainer, module, None, 0)
    pruning.on_validation_end(trainer, module)
    pruning.on_train_epoch_end(trainer, module)
    assert (reported, calls) == ([(1, 0.5)], ["epoch", "step"])
    trainer.current_epoch = 1  # with the earlier epoch's accuracy
    pruning.on_train_epoch_start(trainer, module)
    pruning.on_train_epoch_end(trainer, module)
    assert reported == [(1, 0.5)]
