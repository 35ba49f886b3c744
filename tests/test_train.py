"""The real command on tiny data: what a run leaves, what it reports, how it ends when it cannot."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import Command, Outcome, make_data, refused, run_command, tiny_overrides
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fashion.config import CONF
from fashion.data import download as idx
from fashion.data.datamodule import FashionMNIST
from fashion.errors import Interrupted, UserError
from fashion.report import page
from fashion.runs.files import SCRATCH
from fashion.runs.provenance import PACKAGES
from fashion.runs.run import Run
from fashion.training.callbacks import EpochSeed
from fashion.training.checkpoints import LastCheckpoint
from fashion.training.classifier import Classifier, load_classifier

pytestmark = pytest.mark.slow

SHORT = ("model=mlp", "model.network.dense=[8]", "trainer.max_epochs=1")


@pytest.fixture
def train(tiny_data: Path, tmp_path: Path, command: Command) -> Command:
    """One run, or with -m a grid, below `tmp_path`."""

    def run(folder: str, *overrides: str) -> Outcome:
        grid = overrides[:1] == ("-m",)
        kind = "sweep" if grid else "run"
        return command(
            "train",
            *overrides[:grid],
            *tiny_overrides(tiny_data),
            *SHORT,
            f"hydra.{kind}.dir={tmp_path / folder}",
            *overrides[grid:],
        )

    return run


def test_a_file_of_config_dir_that_would_not_be_used(tmp_path: Path, train: Command) -> None:
    mine = tmp_path / "mine" / "model"
    mine.mkdir(parents=True)
    shutil.copy(CONF / "model/cnn.yaml", mine)
    assert train("run", "--config-dir", str(mine.parent)).status == 0  # no other than ours
    text = (CONF / "model/mlp.yaml").read_text("utf-8")
    (mine / "mlp.yaml").write_text(text.replace("128", "64"), "utf-8")
    for start in ([], ["-m"]):
        key = "model.network.of_mine=2"  # which the project's file lacks
        done = train("other", *start, "--config-dir", str(mine.parent), "model=mlp", key)
        refused(done, f"{mine / 'mlp.yaml'} would not be used")
        assert not (tmp_path / "other").exists()


def weights(folder: Path, name: str = "best") -> dict[str, torch.Tensor]:
    path = folder / f"checkpoints/{name}.ckpt"
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


def equal(first: Path, second: Path, name: str = "best") -> bool:
    others = weights(second, name)
    return all(torch.equal(weight, others[name]) for name, weight in weights(first).items())


def test_a_run_leaves_its_folder(tiny_run: Path) -> None:
    found = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    assert {name for name in found if "tfevents" not in name} == {
        ".lock",
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/confusion_matrix.png",
        "figures/mistakes.png",
        "00000/penultimate_features/metadata.tsv",
        "00000/penultimate_features/sprite.png",
        "00000/penultimate_features/tensors.tsv",
        "projector_config.pbtxt",
        "history.csv",
        "metrics.json",
        "report.html",
        "val.npz",
    }
    run = Run.open(tiny_run)
    assert run.finished
    assert "trainer.max_epochs=3" in (tiny_run / ".hydra/overrides.yaml").read_text()


def test_what_is_reported(tiny_run: Path) -> None:
    metrics = Run(tiny_run).metrics
    assert {
        *("seed", "best_epoch", "epochs", "parameters", "seconds", "images_per_second"),
        *("versions", "machine", "commit", "clean", "val/acc", "val/acc_low", "val/acc_high"),
        *("val/loss", "val/ece"),
    } <= set(metrics)
    assert not [key for key in metrics if key.startswith("test")]
    assert (metrics["seed"], metrics["epochs"]) == (0, 3)
    assert 1 <= metrics["best_epoch"] <= 3
    assert metrics["parameters"] == 784 * 32 + 32 + 32 * 10 + 10
    assert 0 < 900 / metrics["images_per_second"] < metrics["seconds"]
    assert set(metrics["versions"]) == {"python", *PACKAGES}


def test_the_reported_number_is_the_best_checkpoint_s(tiny_run: Path, tiny_data: Path) -> None:
    run = Run(tiny_run)
    data = FashionMNIST(
        0, root=str(tiny_data), batch_size=32, val_size=100, split_seed=0, official=False
    )
    data.setup("fit")
    with torch.inference_mode():
        logits = load_classifier(run)(data.val.images)
    accuracy = (logits.argmax(1) == data.val.labels).double().mean().item()
    assert run.metrics["val/acc"] == pytest.approx(accuracy)
    loss = torch.nn.functional.cross_entropy(logits, data.val.labels).item()
    assert run.metrics["val/loss"] == pytest.approx(loss, rel=1e-5)
    predictions = run.predictions("val")
    np.testing.assert_array_equal(predictions.labels, data.val.labels)
    np.testing.assert_allclose(predictions.probabilities, logits.softmax(1), atol=1e-6)


def test_the_best_epoch_is_reported_and_not_the_last(train: Command, tmp_path: Path) -> None:
    """At a rate so high that accuracy goes up and down."""
    done = train("a", "optimizer.lr=0.03", "trainer.max_epochs=6", "seed=5")
    assert done.status == 0, done.err
    run = Run(tmp_path / "a")
    accuracies = run.history["val/acc"]
    assert accuracies[-1] < max(accuracies)
    assert run.metrics["val/acc"] == pytest.approx(max(accuracies), abs=1e-6)
    assert run.metrics["best_epoch"] == 1 + accuracies.index(max(accuracies))
    # What a run would continue from is the last epoch, not a copy of the best.
    assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] == 5
    assert not equal(run.folder, run.folder, "last")


def test_of_a_fixed_budget_the_last_epoch_is_reported(train: Command, tmp_path: Path) -> None:
    done = train("a", "optimizer.lr=0.03", "trainer.max_epochs=6", "seed=5", "checkpoint=last")
    assert done.status == 0, done.err
    run = Run(tmp_path / "a")
    accuracies = run.history["val/acc"]
    assert accuracies[-1] < max(accuracies)
    assert run.metrics["val/acc"] == pytest.approx(accuracies[-1], abs=1e-6)
    assert run.metrics["best_epoch"] == run.metrics["epochs"] == 6


def test_tensorboard(train: Command, tmp_path: Path) -> None:
    """Scalars as the loop measured them, and an HPARAMS tab with what is reported."""
    done = train("a", "logger=tensorboard", "data.batch_size=6", "trainer.max_epochs=2")
    assert done.status == 0, done.err
    run = Run(tmp_path / "a")
    events = EventAccumulator(str(run.folder)).Reload()
    for tag in ("train/loss", "train/acc", "val/loss", "val/acc", "lr"):
        assert len(events.Scalars(tag)) == 2, tag
    best = events.Scalars("val/acc")[run.metrics["best_epoch"] - 1]
    assert best.value == pytest.approx(run.metrics["val/acc"])
    (reported,) = events.Scalars("values_reported/val/acc")
    assert reported.value == pytest.approx(run.metrics["val/acc"])
    assert "hp_metric" not in events.Tags()["scalars"]
    summary = events.SummaryMetadata("_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(summary.plugin_data.content)
    given = content.session_start_info.hparams
    assert given["Learning rate"].number_value == 0.001
    assert given["seed"].number_value == 0


def test_the_summary(train: Command, tmp_path: Path) -> None:
    done = train("a", "logger=tensorboard", "trainer.enable_progress_bar=true")
    header, row = done.out.splitlines()[2:4]
    assert header.split()[:4] == ["epoch", "loss", "train", "%"]
    assert row.split()[0] == "1/1"
    assert max(len(header), len(row)) <= 60
    metrics = Run(tmp_path / "a").metrics
    folder = tmp_path / "a"
    low, high = 100 * metrics["val/acc_low"], 100 * metrics["val/acc_high"]
    for part in (
        f"accuracy {100 * metrics['val/acc']:.2f} % (95 % interval {low:.2f} to {high:.2f} %)",
        "epoch 1 of 1",
        "6,370 parameters",
        "images per second",
        f"Run folder {folder}\n",
        f"python -m fashion.evaluate {folder}\n",
        "tensorboard --logdir",
    ):
        assert part in done.out
    assert done.err == ""


def test_same_seed_same_weights(train: Command, tmp_path: Path) -> None:
    torch.manual_seed(5)  # what ran before in this process does not matter
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(folder, f"seed={seed}", "trainer.max_epochs=2").status == 0
        torch.rand(3)
    assert equal(tmp_path / "a", tmp_path / "b")  # seed 0 seeds too
    assert not equal(tmp_path / "a", tmp_path / "c")
    first, second = (Run(tmp_path / name).predictions("val") for name in "ab")
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


def test_an_epoch_s_randomness_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of seed and epoch, whatever was drawn before."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    draws: dict[tuple[int, int], float] = {}
    for seed in (0, 1, 0):
        for epoch in (0, 1):
            monkeypatch.setattr(pl.Trainer, "current_epoch", epoch)
            EpochSeed(seed).on_train_epoch_start(trainer, pl.LightningModule())
            draw = torch.rand(()).item()
            assert draws.setdefault((seed, epoch), draw) == draw
    assert len(set(draws.values())) == 4


def state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_grid(train: Command, tmp_path: Path) -> None:
    """A run in it is the same run alone, bit for bit; again: what is finished stays as it is."""
    grid = tmp_path / "grid"
    arguments = ("-m", "model=linear,mlp", "model.network.dense=[]")
    assert train("grid", *arguments, "seed=0").status == 0
    first = {run.folder: state(run.folder) for run in Run.find(grid)}
    assert len(first) == 2
    assert all("model-" in str(folder) and "seed-0" in str(folder) for folder in first)
    assert not [folder for folder in first if "=" in folder.name or "data.root" in folder.name]

    done = train("grid", *arguments, "seed=0,1")
    assert done.status == 0, done.err
    assert done.out.count("Finished before: ") == 2
    assert len(Run.find(grid)) == 4
    for folder, before in first.items():
        assert state(folder) == before

    (in_grid,) = (
        run.folder
        for run in Run.find(grid)
        if "model-linear" in run.folder.name and run.config.seed == 1
    )
    assert train("alone", "model=linear", "model.network.dense=[]", "seed=1").status == 0
    assert equal(in_grid, tmp_path / "alone")


def test_one_failing_run_does_not_cost_the_others(train: Command, tmp_path: Path) -> None:
    done = train("grid", "-m", "model=cnn", "model.network.kernel_size=40,3", "trainer=smoke")
    refused(done, "1 run(s) of the grid failed:")
    last = done.err.splitlines()[-1]
    assert "model.network.kernel_size-40" in last
    assert "layer 1 gets 28 x 28 pixels, too few" in last
    (finished,) = [run for run in Run.find(tmp_path / "grid") if run.finished]
    assert "kernel_size-3" in finished.folder.name


def test_a_run_of_the_grid_that_crashes(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of the project's own shows its traceback, and costs the others nothing either."""
    load = FashionMNIST.setup

    def crash(data: FashionMNIST, stage: str) -> None:
        if data.seed == 0:
            raise ZeroDivisionError
        load(data, stage)

    monkeypatch.setattr(FashionMNIST, "setup", crash)
    done = train("grid", "-m", "seed=0,1")
    assert done.status == 1
    assert "ZeroDivisionError" in done.err
    assert [run.config.seed for run in Run.find(tmp_path / "grid") if run.finished] == [1]
    with pytest.raises(ZeroDivisionError):
        train("alone", "seed=0")


def test_a_run_of_the_grid_with_bad_values(train: Command, tmp_path: Path) -> None:
    done = train("grid", "-m", "trainer.devices=two,2", "trainer=smoke")
    refused(
        done,
        "trainer.devices = two: input should be",
        "trainer.devices = 2",
        "Lightning would start other processes",
    )


def test_a_folder_of_another_grid(train: Command, tmp_path: Path) -> None:
    arguments = ("-m", "hydra.sweep.subdir=run", "trainer=smoke")
    assert train("grid", *arguments).status == 0
    refused(train("grid", *arguments, "seed=1"), "another configuration", "sweep=NAME")


def test_the_test_set_is_read_when_it_is_asked_for_and_not_before(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    setup = FashionMNIST.setup

    def note(data: FashionMNIST, stage: str) -> None:
        read.append(stage)
        setup(data, stage)

    monkeypatch.setattr(FashionMNIST, "setup", note)
    assert train("a").status == 0
    assert "test" not in read
    assert not (tmp_path / "a/test.npz").exists()
    done = train("b", "test=true", "logger=tensorboard")
    assert read.count("test") == 1
    assert "Test accuracy" in done.out
    run = Run(tmp_path / "b")
    predictions = run.predictions("test")
    accuracy = (predictions.probabilities.argmax(1) == predictions.labels).mean()
    assert run.metrics["test/acc"] == pytest.approx(accuracy)
    assert equal(tmp_path / "a", tmp_path / "b")  # and nothing else changes


def test_no_early_stopping(train: Command, tmp_path: Path) -> None:
    """Where it would stop, as the killed run below does: nothing improves at such a rate."""
    arguments = ("optimizer.lr=1e-30", "trainer.max_epochs=9")
    assert train("a", *arguments, "callbacks.early_stopping=null").status == 0
    assert Run(tmp_path / "a").metrics["epochs"] == 9


def test_smoke_which_leaves_no_thread_behind(train: Command, tmp_path: Path) -> None:
    assert train("a", "trainer=smoke", "logger=tensorboard").status == 0
    run = Run(tmp_path / "a")
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 2
    assert len(run.predictions("val").labels) == 100  # what is reported is of all of them
    threads = threading.active_count()
    assert train("b", "trainer=smoke", "logger=tensorboard").status == 0
    assert threading.active_count() == threads


def test_half_the_bits(train: Command, tmp_path: Path) -> None:
    """In training alone: the weights, and what a run reports, have all of them."""
    for folder, precision in (("a", "32-true"), ("b", "bf16-mixed")):
        done = train(folder, f"trainer.precision={precision}", "trainer.max_epochs=3")
        assert done.status == 0, done.err
    full, half = (Run(tmp_path / folder) for folder in "ab")
    assert not equal(full.folder, half.folder)
    assert {weight.dtype for weight in weights(half.folder).values()} == {torch.float32}
    assert half.metrics["val/acc"] == pytest.approx(full.metrics["val/acc"], abs=0.1)
    assert half.predictions("val").probabilities.dtype == np.float32


def test_training_on_everything(train: Command, tmp_path: Path) -> None:
    refused(train("a", "data.val_size=0"), "data.val_size = 0", "callbacks.early_stopping=null")
    done = train("b", "data.val_size=0", "callbacks.early_stopping=null", "trainer.max_epochs=2")
    assert f"fashion.evaluate {tmp_path}/b --split test\n" in done.out
    assert done.status == 0, done.err
    assert "Validation" not in done.out
    run = Run(tmp_path / "b")
    assert not [key for key in run.metrics if key.startswith("val")]
    assert (run.metrics["best_epoch"], run.metrics["epochs"]) == (2, 2)
    assert load_classifier(run)
    assert not run.best_checkpoint.exists()


TRAINED = ("model", "augmentation", "loss", "optimizer", "trainer", "experiment")
# What the runs of the other options are made with.
DEFAULTS = {"augmentation=default", "loss=cross_entropy", "optimizer=adam", "trainer=default"}
OPTIONS = [
    f"{group.name}={option.stem}"
    for group in sorted(CONF.iterdir())
    if group.is_dir() and group.name in TRAINED
    for option in sorted(group.glob("*.yaml"))
    if option.stem != "custom"  # which names no network
    and f"{group.name}={option.stem}" not in DEFAULTS
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_takes_a_step(
    tiny_data: Path, tmp_path: Path, command: Command, option: str
) -> None:
    network = ("model=resnet",) if option == "optimizer=muon" else SHORT[:2]
    done = command(
        "train",
        *tiny_overrides(tiny_data),
        *(() if option.startswith("trainer") else ("trainer=smoke",)),
        *(() if option.startswith(("model", "experiment")) else network),
        "data.batch_size=32",
        "logger=tensorboard",
        "trainer.max_epochs=1",
        option,
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.status == 0, done.err
    assert Run(tmp_path / "run").finished


BATCH_NORM = ("model.network.dense=[8]", "model.network.batch_norm=true")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=cnn", "optimizer=muon"), "optimizer = muon is for convolutions followed by batch"),
        (("model=mlp", "optimizer=muon", *BATCH_NORM), "optimizer = muon is for convolutions"),
        (("model=mlp", "data.batch_size=1", *BATCH_NORM), "of 300 images the last batch has 1,"),
        (("model=mlp", "data.batch_size=23", *BATCH_NORM), "of 300 images the last batch has 1,"),
    ],
)
def test_what_does_not_suit_the_network(
    train: Command, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    refused(train("a", *overrides), message)
    assert not (tmp_path / "a").exists()


def test_too_little_memory(train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Classifier, "training_step", fill)
    refused(train("a"), "data.batch_size = 32", "too little memory", "CUDA out of memory)")


def test_a_folder_that_cannot_be_written(train: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(train("file/run"), f"{tmp_path}/file/run", "Not a directory")
    refused(train("file/grid", "-m", "seed=0"), f"{tmp_path}/file/grid", "Not a directory")


def test_a_finished_run_is_not_overwritten(train: Command, tmp_path: Path) -> None:
    assert train("a").status == 0
    before = state(tmp_path / "a")
    refused(train("a"), f"{tmp_path}/a holds a finished run already")
    assert {name: before[name] for name in before if ".lock" not in name} == {
        name: time for name, time in state(tmp_path / "a").items() if ".lock" not in name
    }


class Killed(BaseException):
    """Stands for whatever ends a process: nothing that comes after it in the run is done."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch, train: Command, tmp_path: Path) -> Callable[..., Path]:
    """A run that ends in the middle of an epoch, or at a hook's start."""

    def run(*overrides: str, epoch: int = 1, hook: str = "on_train_batch_start") -> Path:
        def kill(_: EpochSeed, trainer: pl.Trainer, *__: object) -> None:
            late = hook != "on_train_batch_start" or trainer.fit_loop.batch_idx == 1
            if trainer.current_epoch == epoch and late:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(EpochSeed, hook, kill)
            with pytest.raises(Killed):
                train("killed", *overrides)
        return tmp_path / "killed"

    return run


@pytest.fixture
def resume(tiny_data: Path, tmp_path: Path, command: Command) -> Command:
    def run(folder: Path, *overrides: str) -> Outcome:
        made = f"hydra.run.dir={tmp_path}/made"
        done = command("train", *tiny_overrides(tiny_data), made, f"resume={folder}", *overrides)
        assert not (tmp_path / "made").exists()
        return done

    return run


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a run's TensorBoard events hold."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if "reported" not in tag
    }


def same_checkpoint(first: Path, second: Path, name: str) -> None:
    """Weights, optimizer, schedule, callbacks and loops, but for the seconds that passed."""
    contents = [
        torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
        for folder in (first, second)
    ]
    for content in contents:
        for key in ("seconds", "training_seconds"):
            del content["callbacks"]["Timing"][key]
        # Lightning sets it when it resumes, also where the loop is not in use.
        del content["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
        assert set(content) >= {"state_dict", "optimizer_states", "lr_schedulers", "loops"}
    assert same(*contents)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


LONG = (
    "trainer.max_epochs=4",
    "callbacks.early_stopping.patience=3",
    "optimizer.schedule=cosine",
    "optimizer.lr=0.01",
    "trainer.limit_train_batches=5",
)


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("logs") / "whole"
    given = [*tiny_overrides(tiny_data), *SHORT, *LONG, "logger=tensorboard"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_command(monkeypatch, "train", *given, f"hydra.run.dir={folder}") == 0
    return folder


@pytest.mark.parametrize(
    ("epoch", "hook"),
    [
        (0, "on_train_batch_start"),  # nothing is saved yet
        (2, "on_train_batch_start"),
        (2, "on_validation_start"),
        (2, "on_train_epoch_end"),
        (4, "on_train_end"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    resume: Command,
    killed: Callable[..., Path],
    whole: Path,
    *,
    epoch: int,
    hook: str,
) -> None:
    folder = killed(*LONG, "logger=tensorboard", epoch=epoch, hook=hook)
    assert not Run(folder).finished
    done = resume(folder, "logger=tensorboard")
    assert done.status == 0, done.err
    for name in ("best", "last"):
        same_checkpoint(folder, whole, name)
    assert curves(folder) == curves(whole)
    assert len(curves(folder)["train/acc"]) == 4
    numbers, others = Run(folder).metrics, Run(whole).metrics
    timed = {"seconds", "images_per_second"}
    assert {key: numbers[key] for key in numbers.keys() - timed} == {
        key: others[key] for key in others.keys() - timed
    }
    assert 0 < 4 * 160 / numbers["images_per_second"] < numbers["seconds"]


def test_a_run_that_had_stopped_early_does_not_go_on(
    resume: Command, killed: Callable[..., Path]
) -> None:
    stops = ("optimizer.lr=1e-30", "trainer.max_epochs=9", "callbacks.early_stopping.patience=2")
    folder = killed(*stops, epoch=3, hook="on_train_end")
    assert resume(folder).status == 0
    assert Run(folder).metrics["epochs"] == 3
    refused(resume(folder, "trainer.max_epochs=12"), "it stopped early, after 3")


def test_what_resume_takes(resume: Command, killed: Callable[..., Path], tmp_path: Path) -> None:
    """More epochs and other places; what the run's own configuration says otherwise is named."""
    folder = killed("trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/killed")
    moved = folder.rename(tmp_path / "moved")
    same = ("data.val_size=100", "trainer.limit_train_batches=null")
    done = resume(moved, "seed=1", "model=cnn", "trainer.max_epochs=1", *same)
    refused(done, "seed=1", "model=cnn", "trainer.max_epochs=1")
    assert "val_size" not in done.err
    assert "limit_train_batches" not in done.err
    assert not Run(moved).finished
    assert resume(moved, "trainer.max_epochs=3").status == 0
    assert Run(moved).metrics["epochs"] == 3
    assert Run(moved).config.trainer.max_epochs == 3

    before = state(moved)
    done = resume(moved, "trainer.max_epochs=3")
    assert (done.status, state(moved)) == (0, before)
    assert f"{moved} is finished." in done.out
    assert resume(moved, "trainer.max_epochs=4").status == 0
    assert Run(moved).metrics["epochs"] == 4


def test_what_cannot_be_resumed(
    train: Command, resume: Command, killed: Callable[..., Path], tmp_path: Path
) -> None:
    refused(resume(tmp_path / "none"), "none is not a run folder", "no such folder")
    folder = killed("trainer.max_epochs=2")
    refused(train("grid", "-m", f"resume={folder}"), "resume continues one run, without -m")
    refused(train("killed", "seed=1"), "another configuration", f"resume={folder}")
    last = Run(folder).last_checkpoint
    last.write_bytes(last.read_bytes()[:-1000])
    refused(resume(folder), str(last), "cannot be read")


def test_a_grid_continues_what_was_interrupted(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second run, whose first epoch is then not trained again."""
    arguments = ("-m", "seed=0,1", "trainer.max_epochs=2")
    start = EpochSeed.on_train_epoch_start
    epochs = []

    def count(seed: EpochSeed, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epochs.append((seed.seed, trainer.current_epoch))
        if len(epochs) == 4:
            raise Interrupted(signal.SIGTERM)
        start(seed, trainer, module)

    monkeypatch.setattr(EpochSeed, "on_train_epoch_start", count)
    done = train("grid", *arguments)
    assert done.status == 143
    assert "1 whole epoch in" in done.err
    assert "The same command again continues the grid." in done.err
    assert train("grid", *arguments).status == 0
    assert epochs == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 1)]
    assert [run.metrics["epochs"] for run in Run.find(tmp_path / "grid")] == [2, 2]


TWO_PROCESSES = ("trainer.devices=2", "trainer.strategy=ddp")


@pytest.mark.parametrize(
    ("signum", "status", "processes"),
    [(signal.SIGINT, 130, ()), (signal.SIGTERM, 143, ()), (signal.SIGTERM, 143, TWO_PROCESSES)],
)
def test_a_signal_ends_a_run_in_order(
    tiny_data: Path,
    tmp_path: Path,
    signum: signal.Signals,
    status: int,
    processes: tuple[str, ...],
) -> None:
    """A real process, told to end after its first epoch, which stands; it ends the other one."""
    arguments = [
        *tiny_overrides(tiny_data),
        *SHORT[:2],
        *processes,
        "trainer.max_epochs=100000",
        "callbacks.early_stopping=null",
        "hydra.run.dir=run",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "fashion.train", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CONF.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        run = Run(tmp_path / "run")
        deadline = time.monotonic() + 60
        while not run.last_checkpoint.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert "Traceback" not in out + err
    assert f"Interrupted by {signum.name}." in err
    assert "python -m fashion.train resume=run" in err
    assert "the best val/acc" in err
    assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] >= 0
    assert not [path for path in run.folder.rglob("*") if path.name.endswith(SCRATCH)]


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (
            ("optimizer=sgd", "optimizer.lr=1e30"),
            "The loss became nan in epoch 1, step 2 of the run, at the",
        ),
        (
            ("optimizer=sgd", "optimizer.lr=1e38", "trainer.limit_train_batches=1"),
            "val/loss became nan in epoch 1",
        ),
        (
            (
                "optimizer=sgd",
                "optimizer.lr=1e300",
                "trainer.limit_train_batches=1",
                "data.val_size=0",
                "callbacks.early_stopping=null",
            ),
            "A weight became infinite or not a number in epoch 1",
        ),
    ],
)
def test_divergence(train: Command, tmp_path: Path, overrides: tuple[str], found: str) -> None:
    done = train("a", *overrides, "optimizer.schedule=constant", "optimizer.warmup=0.0")
    refused(done, found, "learning rate 1e+3", "lower optimizer.lr", "0 whole epochs")
    assert not Run(tmp_path / "a").last_checkpoint.exists()


@pytest.mark.parametrize(
    ("owner", "function", "size", "written"),
    [
        (Run, "start", 100, "run/.hydra/hydra.yaml"),
        (EpochSeed, "on_train_batch_end", 150, "run"),  # the events, which TensorBoard writes
        (LastCheckpoint, "on_train_epoch_end", 20_000, "run/checkpoints/last.ckpt"),
        (Run, "write_predictions", 1_000, "run/val.npz"),
        (Run, "update_metrics", 300, "run/metrics.json"),
        (page, "write_report", 20_000, "run/report.html"),
    ],
)
def test_a_full_disk(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    largest_file: Callable[[int | None], None],
    owner: Any,
    function: str,
    size: int,
    written: str,
) -> None:
    """In the second epoch, or where there are none: what was whole stands, and can be resumed."""
    real = getattr(owner, function)
    arguments = [*tiny_overrides(tiny_data), *SHORT[:2], f"hydra.run.dir={tmp_path}/run"]
    arguments += ["report=true"] if owner is page else []
    arguments += ["logger=tensorboard"] if owner is EpochSeed else []

    def fill(*given: Any, **named: Any) -> Any:
        if not (isinstance(given[1], pl.Trainer) and given[1].current_epoch == 0):
            largest_file(size)
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, fill)
        assert run_command(patch, "train", *arguments, "trainer.max_epochs=3") == 1
    largest_file(None)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert re.match(rf"error: .*{written} cannot be written: File too large\.", err), err
    run = Run(tmp_path / "run")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(SCRATCH)]
    if function == "start":
        assert not run.folder.exists()
        return
    assert f"resume={run.folder}" in err or run.finished
    if isinstance(owner, type) and issubclass(owner, Callback):
        assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] == 0
    again = [f"hydra.run.dir={tmp_path}/made", f"resume={run.folder}"]
    assert run_command(monkeypatch, "train", *again) == 0
    assert run.metrics["epochs"] == 3


def test_two_processes_train_as_one(tiny_data: Path, tmp_path: Path, train: Command) -> None:
    """Real gloo; the last batch leaves one of them without an image."""
    share = ("data.batch_size=37", "data.val_size=103", "model=cnn", "model.network.dropout=0.0")
    share += ("model.network.conv=[4]", "model.network.dense=[8]")  # type: ignore[assignment]
    share += ("optimizer=sgd", "trainer.max_epochs=2")  # type: ignore[assignment]
    assert train("run1", *share).status == 0
    done = python(
        *("-m", "fashion.train"),
        *tiny_overrides(tiny_data),
        *share,
        *TWO_PROCESSES,
        "hydra.run.dir=run2",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    one, two = (Run(tmp_path / f"run{devices}") for devices in (1, 2))
    others = weights(two.folder, "last")
    for name, weight in weights(one.folder, "last").items():
        torch.testing.assert_close(weight, others[name], rtol=1e-3, atol=1e-4)
    for tag in one.history.keys() - {"seconds"}:
        np.testing.assert_allclose(two.history[tag], one.history[tag], atol=1e-4, err_msg=tag)
    assert two.metrics["val/acc"] == pytest.approx(one.metrics["val/acc"])
    assert {path.name for path in tmp_path.iterdir()} - {".hypothesis"} == {"run1", "run2"}


def test_data_that_is_not_there(train: Command, tmp_path: Path) -> None:
    missing = f"{tmp_path}/none/FashionMNIST/raw/train-images-idx3-ubyte is missing"
    refused(train("a", f"data.root={tmp_path}/none"), missing)
    assert not (tmp_path / "a").exists()


def test_data_that_is_wrong(train: Command, tmp_path: Path) -> None:
    root = make_data(tmp_path / "other")
    raw = idx.raw_folder(root)
    refused(train("a", "data.official=true", f"data.root={root}"), "not Fashion-MNIST's official")
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    refused(train("a", f"data.root={root}"), str(images), "It is cut")
    shutil.copy(raw / "t10k-images-idx3-ubyte", images)
    refused(train("a", f"data.root={root}"), str(images), "for 400 labels")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none(train: Command) -> None:
    done = train("a", "trainer.accelerator=cuda")
    refused(done, "trainer.accelerator = cuda", "not available", "'cpu'")


def test_the_whole_error_on_demand(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match=r"optimizer\.lr = 0"):
        train("a", "optimizer.lr=0")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(CONF.parent)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("argument", ["--help", "--cfg", "optimizer.lr=0"])
def test_an_answer_at_once(argument: str, tmp_path: Path) -> None:
    """Help, the configuration and a bad value's refusal wait for no import of torch."""
    arguments = [argument, "job"] if argument == "--cfg" else [argument]
    script = (
        f"import sys; sys.argv = ['train', *{arguments}]\n"
        "from fashion import train\n"
        "slow = {'torch', 'lightning', 'torchvision', 'matplotlib'}\n"
        "try: train.main()\n"
        "finally: print('SLOW', sorted(slow & set(sys.modules)))"
    )
    done = python("-c", script, cwd=tmp_path)
    assert "SLOW []" in done.stdout, done.stderr
    assert done.returncode == (1 if "=" in argument else 0)
    assert ("model" in done.stdout) == ("=" not in argument)


def test_a_bad_override_ends_a_real_process(tmp_path: Path) -> None:
    done = python("-m", "fashion.train", "model.network.dropout=1.5", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: model.network.dropout = 1.5: input should be less than 1.\n"
    assert list(tmp_path.rglob("*.yaml")) == []


def test_a_parallel_grid(
    tiny_data: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs side by side, one core each; a failure is named and costs the others nothing."""
    pytest.importorskip("joblib")
    grid = [
        *("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.max_epochs=1"),
        *("model=mlp", "model.network.dense=[8]", f"data.root={tiny_data}", "data.official=false"),
        *("data.val_size=100", "trainer.accelerator=cpu", "logger=none", "report=false"),
    ]
    first = python("-m", "fashion.train", *grid, "data.batch_size=32,1000", cwd=tmp_path)
    assert first.returncode == 1
    assert re.search(
        r"error: data.batch_size = 1000: .*\nThis was logs/grid/data.batch_size-1000",
        first.stderr,
    )
    assert first.stdout.count("Finished logs/grid/") == 1
    assert "1/1" not in first.stdout  # lines of several runs would mix
    (run,) = Run.find(tmp_path / "logs/grid")
    assert "data.batch_size-32" in run.folder.name
    assert run.metrics["threads"] == 1
    monkeypatch.chdir(tmp_path)
    assert command("train", "-m", *grid[3:], "data.batch_size=50").status == 0
    again = python("-m", "fashion.train", *grid, "data.batch_size=32,50", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("Finished before: logs/grid/") == 2
    assert "| mlp" in again.stdout
    assert "python -m fashion.compare logs/grid shows this again." in again.stdout


def test_a_launcher_that_is_not_installed(command: Command) -> None:
    done = command("train", "-m", "hydra/launcher=ray", "model=linear,mlp")
    assert (done.status, done.err) == (
        1,
        "error: hydra/launcher=ray is not installed: pip install '.[ray]'\n",
    )
