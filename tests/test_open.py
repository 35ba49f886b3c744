"""What a Lightning or Hydra user knows works through the real command: Trainer flags, classes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Outcome, run_command, tiny_overrides
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion.runs.run import Run
from fashion.training.classifier import Classifier

pytestmark = pytest.mark.slow

SMALL = ("model=mlp", "model.network.dense=[8]")

MODULE = """
from collections.abc import Sequence
from enum import Enum

import lightning.pytorch as pl
import torch
from torch import nn


class Kind(Enum):
    SMALL = 1


class Net(nn.Module):
    def __init__(self, width: Sequence[int] = (8,), kind: Kind = Kind.SMALL, slope=0.1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, width[0]), nn.LeakyReLU(slope), nn.Linear(width[0], 10)
        )

    def forward(self, images):
        return self.layers(images)


class Narrow(Net):
    def forward(self, images):
        return super().forward(images)[:, :7]


class Probabilities(Net):
    def forward(self, images):
        return super().forward(images).softmax(1)


class Raising(nn.Module):
    def __init__(self):
        raise ValueError("no good")


def resnet():
    from torchvision.models import resnet18

    network = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 3, 2, 1, bias=False)
    return network


class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr=0.1, notes: Sequence[str] = ()):
        super().__init__(params, lr)


class Batches(pl.Callback):
    seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        Batches.seen.append((trainer.current_epoch, float(batch[0].sum())))


def upside_down():
    return lambda images, labels: (images.flip(1), labels)
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a module of the user's own in the current folder."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("mine")
    del sys.modules["mine"]


@pytest.fixture
def train(tiny_data: Path, command: Command) -> Command:
    def run(folder: str, *overrides: str) -> Outcome:
        network = any(each.startswith("model") for each in overrides)
        small = () if network else SMALL
        grid = overrides[:1] == ("-m",)
        place = f"hydra.{'sweep' if grid else 'run'}.dir={folder}"
        given = [*tiny_overrides(tiny_data), *small, "trainer.max_epochs=2", place]
        return command("train", *overrides[:grid], *given, *overrides[grid:])

    return run


@pytest.fixture(scope="module")
def plain(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run without any flag."""
    folder = tmp_path_factory.mktemp("logs") / "plain"
    given = [*tiny_overrides(tiny_data), *SMALL, f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_command(monkeypatch, "train", *given, "trainer.max_epochs=2") == 0
    return Run(folder)


def finished(done: Outcome, folder: str) -> Run:
    assert done.status == 0, done.err
    return Run.open(Path(folder), trust=True)


def weights(run: Run) -> dict[str, torch.Tensor]:
    content = torch.load(run.last_checkpoint, weights_only=True)
    return {k: v for k, v in content["state_dict"].items() if k.startswith("network.")}


def same(first: Run, second: Run) -> bool:
    ours, theirs = weights(first), weights(second)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# Trainer flags.


def test_gradients_are_clipped(train: Command, plain: Run) -> None:
    for folder, *flags in (
        ("norm", "trainer.gradient_clip_val=0.01"),
        ("value", "trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"),
    ):
        assert not same(plain, finished(train(folder, *flags), folder))
    loose = finished(train("loose", "trainer.gradient_clip_val=1e9"), "loose")
    assert same(plain, loose)  # the ordinary loop gives the weights of the chunked one


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_gradients_are_clipped_in_mixed_precision(train: Command, optimizer: str) -> None:
    options = ("trainer.precision=bf16-mixed", f"optimizer={optimizer}", "trainer.max_epochs=1")
    plain = finished(train("plain", *options), "plain")
    clipped = finished(train("clipped", *options, "trainer.gradient_clip_val=0.01"), "clipped")
    assert not same(plain, clipped)


def test_steps_and_epochs(train: Command) -> None:
    """300 images in batches of 32: ten steps per epoch."""
    for flags, steps, epochs in (
        (("trainer.accumulate_grad_batches=4",), 6, 2),
        (("trainer.limit_train_batches=0.5",), 10, 2),
        (("trainer.max_steps=7",), 7, 1),
        (("trainer.max_epochs=-1", "trainer.max_time=00:00:00:01"), None, None),
        (("trainer.min_epochs=3", "trainer.max_epochs=9", STOP), 30, 3),
    ):
        run = finished(train(f"{steps}{epochs}", *flags), f"{steps}{epochs}")
        if steps is not None:
            content = torch.load(run.last_checkpoint, weights_only=True)
            assert (content["global_step"], run.metrics["epochs"]) == (steps, epochs)


STOP = "callbacks.early_stopping={_target_: fashion.training.callbacks.StopEarly, patience: 1}"


def test_when_validation_runs(train: Command) -> None:
    run = finished(train("second", "trainer.check_val_every_n_epoch=2"), "second")
    first, second = run.history["val/acc"]
    assert first != first  # noqa: PLR0124 - NaN
    assert second == pytest.approx(run.metrics["val/acc"])
    done = train("half", "trainer.val_check_interval=0.5", "logger=tensorboard")
    assert "because of trainer.val_check_interval=0.5" in done.out or done.status == 0
    half = finished(done, "half")
    assert half.metrics["epochs"] == 2
    events = EventAccumulator(str(half.folder)).Reload().Scalars("val/acc")
    assert [event.step for event in events] == [5, 10, 15, 20]  # no epochs: two are of each


def test_a_dry_run_leaves_no_run(train: Command, tmp_path: Path) -> None:
    done = train("dry", "trainer.fast_dev_run=true")
    assert done.status == 0, done.err
    assert "Dry run" in done.out
    assert not (tmp_path / "dry").exists()


def test_overfitting_sees_the_same_batches(train: Command, mine: Any) -> None:
    finished(train("few", "trainer.overfit_batches=2", "+callbacks.x._target_=mine.Batches"), "few")
    first, second = ([s for e, s in mine.Batches.seen if e == epoch] for epoch in (0, 1))
    assert first == second
    assert len(first) == 2


@pytest.mark.parametrize(
    "flag",
    [
        *("trainer.deterministic=true", "trainer.detect_anomaly=true", "trainer.devices=auto"),
        *("trainer.precision=bf16-true", "trainer.log_every_n_steps=1"),
        "+trainer.enable_model_summary=true",
    ],
)
def test_a_flag(train: Command, flag: str) -> None:
    run = finished(train("run", flag), "run")
    assert len(run.history["train/loss"]) == 2
    assert run.metrics["val/acc"] > 0.2


def test_a_profile_is_printed(train: Command) -> None:
    done = train("run", "trainer.profiler=simple")
    assert done.status == 0
    assert "Profiler Report" in done.out


def test_an_unknown_flag(train: Command) -> None:
    done = train("run", "+trainer.max_epoch=3")
    assert done.err.startswith("error: trainer.max_epoch: lightning.pytorch.Trainer has no such")
    assert "Did you mean max_epochs" in done.err


# Callbacks and early stopping.


def test_callbacks(train: Command, tmp_path: Path) -> None:
    lightning = "lightning.pytorch.callbacks"
    every = (f"+callbacks.all._target_={lightning}.ModelCheckpoint", "+callbacks.all.save_top_k=-1")
    rate = (f"+callbacks.lr._target_={lightning}.LearningRateMonitor", "logger=csv")
    finished(train("run", *every, *rate), "run")
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt"}


def test_averaged_weights_are_the_reported_ones(train: Command) -> None:
    average = "+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"
    done = train("run", average, "+callbacks.ema.decay=0.5")
    run = finished(done, "run")
    content = torch.load(run.best_checkpoint, weights_only=True)
    now = content["current_model_state"]
    assert any(not torch.equal(now[name], weight) for name, weight in weights(run).items())
    assert run.history["val/acc"][run.metrics["best_epoch"] - 1] == pytest.approx(
        run.metrics["val/acc"]
    )


def test_a_monitor_that_there_is_not(train: Command) -> None:
    done = train("run", "callbacks.early_stopping.monitor=val/los")
    assert "callbacks.early_stopping.monitor = val/los: there is no such metric" in done.err


def test_early_stopping_says_so(train: Command) -> None:
    stop = "callbacks.early_stopping"
    done = train(
        "run",
        *(f"{stop}.monitor=val/loss", f"{stop}.mode=min", f"{stop}.min_delta=99.0"),
        *(f"{stop}.patience=1", f"{stop}.warmup_epochs=2", "optimizer.schedule=cosine"),
        "trainer.max_epochs=9",
    )
    assert finished(done, "run").metrics["epochs"] == 4  # two of warm-up, a best, one not better
    assert "Stopped after 4 of 9 epochs: val/loss no better for 1" in done.out
    assert "the cosine schedule had not come to its end" in done.out


def test_a_threshold_says_so(train: Command) -> None:
    done = train(
        "run",
        "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
        *("+callbacks.stop.monitor=val/loss", "+callbacks.stop.stopping_threshold=99.0"),
        "trainer.max_epochs=3",
    )
    assert "Stopped after 1 of 3 epochs: val/loss reached a threshold." in done.out


# Classes of one's own.


@pytest.mark.usefixtures("no_report")
def test_a_network_of_ones_own(train: Command, command: Command) -> None:
    done = train("run", "model.network._target_=mine.Net", "+model.network.width=[9]")
    assert "\n  python -m fashion.evaluate run --trust\n" in done.out
    run = finished(done, "run")
    assert run.metrics["parameters"] == 784 * 9 + 9 + 90 + 10
    refused = command("evaluate", "run")
    assert "builds model.network._target_ = mine.Net, which can run any code" in refused.err
    assert "python -m fashion.evaluate run --trust" in refused.err
    assert command("evaluate", "run", "--trust").status == 0
    assert "resume=run trust=true" in Run.open(Path("run")).resume_command


def test_a_network_of_torchvision_s(train: Command) -> None:
    flags = ("trainer.limit_train_batches=1", "trainer.max_epochs=1", "optimizer=sgd")
    done = train("run", "model.network._target_=mine.resnet", *flags)
    assert finished(done, "run").metrics["parameters"] > 11_000_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("Narrow",), "Narrow returned (2, 7) for two images; (2, 10) is needed"),
        (("Probabilities",), "Probabilities returned probabilities; the loss needs logits"),
        (("Raising",), "mine.Raising raised ValueError: no good"),
        (("Nope",), "mine has no Nope"),
        (("Net", "+model.network.widht=3"), "mine.Net has no such parameter. Did you mean width?"),
    ],
)
def test_a_wrong_network(train: Command, overrides: tuple[str, ...], message: str) -> None:
    first, *rest = overrides
    done = train("run", f"model.network._target_=mine.{first}", *rest)
    assert done.err.startswith("error: model.network"), done.err
    assert message in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer._target_=torch.optim.RAdam", "optimizer.lr=0.01"),
        ("optimizer._target_=mine.Optimizer",),
        (
            "+scheduler._target_=torch.optim.lr_scheduler.StepLR",
            "+scheduler.step_size=1",
            "+scheduler.gamma=0.5",
        ),
        (
            "+scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
            "+scheduler.patience=0",
            "+scheduler.threshold=99",
        ),
    ],
)
def test_optimizers_and_schedulers_resume_exactly(
    train: Command, command: Command, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fashion.training.callbacks import EpochSeed

    whole = finished(train("whole", *overrides, "trainer.max_epochs=4"), "whole")
    start = EpochSeed.on_train_epoch_start

    class Killed(BaseException):
        pass

    def kill(self: EpochSeed, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 2:
            raise Killed
        start(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(EpochSeed, "on_train_epoch_start", kill)
        with pytest.raises(Killed):
            train("part", *overrides, "trainer.max_epochs=4")
    done = command("train", "resume=part", "trust=true")
    part = finished(done, "part")
    assert same(whole, part)
    assert part.history["lr"] == whole.history["lr"]


def test_losses(train: Command, plain: Run) -> None:
    for folder, *given in (
        ("weights", "loss.class_weights=[1,2,3,4,5,6,7,8,9,10]"),
        ("smooth", "loss.label_smoothing=0.2"),
        ("margin", "loss._target_=torch.nn.MultiMarginLoss"),
    ):
        assert not same(plain, finished(train(folder, *given), folder))
    balanced = finished(train("balanced", "loss.class_weights=balanced"), "balanced")
    assert balanced.metrics["val/acc"] > 0.2
    done = train("vector", "loss._target_=torch.nn.CrossEntropyLoss", "+loss.reduction=none")
    assert "loss: CrossEntropyLoss returned a tensor of shape (32,)" in done.err
    hard = ("loss._target_=torch.nn.MultiMarginLoss", "augmentation.cutmix=0.5")
    for overrides, message in (
        (hard, "MultiMarginLoss raised RuntimeError for logits (batch, classes) and probabilities"),
        (("loss._target_=torch.nn.BCEWithLogitsLoss",), "BCEWithLogitsLoss raised ValueError"),
    ):
        done = train(f"failing-{len(overrides)}", *overrides)
        assert f"error: loss: {message}" in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "augmentation",
    [
        ("mine.upside_down",),
        ("torchvision.transforms.v2.RandomRotation", "+augmentation.degrees=10"),
        ("torchvision.transforms.v2.CutMix",),  # it is offered the number of classes
        (
            "fashion.data.augmentation.Chain",
            "+augmentation.steps=[{_target_: torchvision.transforms.v2.CutMix}]",
        ),
    ],
)
def test_augmentations(train: Command, plain: Run, augmentation: tuple[str, ...]) -> None:
    target, *rest = augmentation
    run = finished(train("run", f"augmentation._target_={target}", *rest), "run")
    assert not same(run, plain)


def test_folds(train: Command, command: Command) -> None:
    done = train("grid", "-m", "data.folds=3", "data.fold=0,1,2")
    assert done.status == 0, done.err
    runs = Run.find(Path("grid"))
    assert sum(len(run.predictions("val").labels) for run in runs) == 400
    document = json.loads(command("compare", "grid", "--format", "json").out)
    (row,) = document["rows"]
    assert row["n"] == 3


def test_a_compiled_network_s_checkpoint_needs_no_compiler(train: Command) -> None:
    run = finished(train("run", "compile=true", "trainer.limit_train_batches=1"), "run")
    classifier = Classifier.load_from_checkpoint(run.best_checkpoint)
    assert not any("_orig_mod" in name for name in classifier.state_dict())


@pytest.mark.usefixtures("no_report")
def test_a_run_of_an_older_version(train: Command, command: Command) -> None:
    """Made before a key was added: its default applies, and is named."""
    run = finished(train("run"), "run")
    config = run.folder / ".hydra/config.yaml"
    config.write_text(
        "".join(
            line
            for line in config.read_text().splitlines(keepends=True)
            if not line.startswith(("compile:", "init_from:", "  folds:", "  fold:"))
        )
    )
    assert command("evaluate", "run").status == 0
    done = command("train", "resume=run", "trainer.max_epochs=3")
    assert done.status == 0, done.err
    assert "compile: made before this key was added; its default applies" in done.out


def test_resolution_and_train_size(tiny_data: Path, tmp_path: Path, command: Command) -> None:
    """A run on coarse images: its data, raw images, photos and exported file are all as coarse."""
    from PIL import Image

    import fashion
    from fashion.data.datamodule import reduce_resolution
    from fashion.predict import look

    run = tmp_path / "run"
    coarse = ["data.resolution=7", "data.train_size=60", "data.batch_size=20", "model=mlp"]
    done = command("train", *tiny_overrides(tiny_data), *coarse, f"hydra.run.dir={run}")
    assert done.status == 0, done.err
    model = fashion.load(run)
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    expected = model.predict_proba(reduce_resolution(images, 7))
    torch.testing.assert_close(model.predict_proba(images), expected, rtol=0, atol=0)
    photo = Image.new("RGB", (80, 80), "white")
    photo.paste("black", (20, 10, 55, 70))
    photo.save(tmp_path / "photo.png")
    seen = torch.from_numpy(look(tmp_path / "photo.png", resolution=7).prepared.image)[None]
    assert torch.equal(reduce_resolution(seen, 7), seen)
    assert command("predict", run, tmp_path / "photo.png").status == 0
    done = command("export", run, tmp_path / "model.pt2")
    assert done.status == 0, done.err
    exported = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(exported(images), exported(reduce_resolution(images, 7)))


@pytest.mark.parametrize("override", ["data.resolution=8", "data.train_size=0"])
def test_a_wrong_resolution_or_size(command: Command, override: str) -> None:
    done = command("train", override)
    assert done.status == 1
    assert override.replace("=", " = ") in done.err
