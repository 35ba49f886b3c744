import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fashion.data.datamodule import FashionMNIST, ImageSet, normalize
from fashion.errors import UserError
from fashion.runs.run import Run
from fashion.training.classifier import Classifier, answer, load_classifier, predict
from fashion.training.networks import ConvNet
from fashion.training.optimizers import adam

# Of the deck's network, shrunk, on the pictures of tests/conftest.py: the loss before each of five
# steps of Adam. They change with the initialisation, the normalisation, a layer or the optimizer;
# whoever means to change one of these writes down the new ones.
GOLDEN_LOSSES = [2.347826, 2.321374, 2.289778, 2.190256, 2.287129]


def shrunk(*, dropout: float = 0.6) -> ConvNet:
    return ConvNet(
        conv=[4],
        kernel_size=3,
        pool=1,
        dense=[8],
        conv_activation="leaky_relu",
        dense_activation="relu",
        negative_slope=0.05,
        dropout=dropout,
        batch_norm=False,
    )


def train(classifier: Classifier, batch: tuple[Tensor, Tensor], steps: int) -> list[float]:
    """The loss before each step on one batch."""
    made: Any = adam(
        classifier.network, steps, lr=0.001, weight_decay=0.0, schedule="constant", warmup=0.0
    )
    losses = []
    for _ in range(steps):
        loss = classifier.loss(batch)
        made["optimizer"].zero_grad()
        loss.backward()
        made["optimizer"].step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def batch(tiny_data: Path) -> tuple[Tensor, Tensor]:
    """The first 32 training pictures, normalised."""
    data = FashionMNIST(
        0, root=str(tiny_data), batch_size=32, val_size=100, split_seed=0, official=False
    )
    data.setup("fit")
    return normalize(data.train.images[:32]), data.train.labels[:32]


def test_raw_and_normalised_pixels_give_the_same_logits() -> None:
    classifier = Classifier(shrunk()).eval()
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    assert torch.equal(classifier(images), classifier(normalize(images)))
    assert classifier(images).shape == (5, 10)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_other_numbers_are_not_taken_for_pixels(dtype: torch.dtype) -> None:
    with pytest.raises(Exception, match=r"dtype|type"):
        Classifier(shrunk()).eval()(torch.zeros(5, 1, 28, 28, dtype=dtype))


def test_it_can_learn_32_images_by_heart(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    classifier = Classifier(shrunk(dropout=0.0))
    losses = train(classifier, batch, 150)
    images, labels = batch
    assert torch.equal(classifier.eval()(images).argmax(1), labels)
    assert losses[-1] < losses[0] / 5


def test_golden_losses(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    losses = train(Classifier(shrunk()), batch, 5)
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-4), losses


def test_the_loss_is_cross_entropy_on_logits(batch: tuple[Tensor, Tensor]) -> None:
    classifier = Classifier(shrunk(dropout=0.0))
    logits = classifier(batch[0])
    expected = -logits.log_softmax(1)[torch.arange(32), batch[1]].mean()
    torch.testing.assert_close(classifier.loss(batch), expected)


def recorded(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What the classifier logs at an epoch's end, without a Trainer."""

    class Logger:
        def log_metrics(self, metrics: dict[str, Tensor], step: int) -> None:  # noqa: ARG002
            logged.update(metrics)

    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(classifier, "log", lambda *_, **__: None)
    monkeypatch.setattr(Classifier, "loggers", [Logger()])
    monkeypatch.setattr(Classifier, "global_step", 0)
    return logged


def test_label_smoothing_by_hand(batch: tuple[Tensor, Tensor]) -> None:
    """A tenth of each label on all ten classes, in training; what is logged is without it."""
    classifier = Classifier(shrunk(dropout=0.0), label_smoothing=0.1)
    targets = functional.one_hot(batch[1], 10) * 0.9 + 0.01
    expected = -(classifier(batch[0]).log_softmax(1) * targets).sum(1).mean()
    torch.testing.assert_close(classifier.loss(batch), expected)


def test_an_epoch_s_metrics_are_of_all_its_pictures(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of batches of different sizes, and of one epoch alone."""
    classifier = Classifier(shrunk()).eval()
    logged = recorded(classifier, monkeypatch)
    images, labels = batch
    for _ in range(2):
        for part in (slice(25), slice(25, 32)):
            classifier.validation_step((images[part], labels[part]))
        classifier.on_validation_epoch_end()
    logits = classifier(images)
    accuracy = (logits.argmax(1) == labels).float().mean()
    torch.testing.assert_close(logged["val/loss"], functional.cross_entropy(logits, labels))
    torch.testing.assert_close(logged["val/acc"], accuracy)


def test_what_an_interrupted_epoch_left_is_forgotten(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier(shrunk(dropout=0.0))
    logged = recorded(classifier, monkeypatch)
    images, labels = batch
    classifier.loss((images[:8], labels[:8]))
    classifier.on_train_epoch_start()
    loss = classifier.loss((images[8:], labels[8:]))
    classifier.on_train_epoch_end()
    torch.testing.assert_close(logged["train/loss"], loss.detach())


def test_predict_keeps_the_order_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(shrunk())
    images = torch.randint(0, 256, (23, 28, 28), dtype=torch.uint8)
    whole = predict(classifier.train(), images)
    assert not classifier.training  # dropout is off
    monkeypatch.setattr("fashion.training.classifier.EVAL_BATCH_SIZE", 5)
    torch.testing.assert_close(predict(classifier, images), whole)
    torch.testing.assert_close(whole.sum(1), torch.ones(23))
    labels = torch.arange(23) % 10
    answered = answer(classifier, ImageSet(images, labels, torch.arange(23)))
    assert answered.labels.tolist() == labels.tolist()
    torch.testing.assert_close(torch.from_numpy(answered.probabilities), whole)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    """A copy, to be broken."""
    return Run(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_run_s_classifier(run: Run) -> None:
    classifier = load_classifier(run)
    assert not classifier.training
    weights = torch.load(run.best_checkpoint, weights_only=True)["state_dict"]
    assert weights.keys() == classifier.state_dict().keys()
    for name, weight in classifier.state_dict().items():
        assert torch.equal(weight, weights[name])


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Hostile(path.with_name("owned"))}))


def hostile_torch(path: Path) -> None:
    torch.save({"state_dict": Hostile(path.with_name("owned"))}, path)


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (hostile_pickle, lambda path: pickle.loads(path.read_bytes())),  # noqa: S301
        (hostile_torch, lambda path: torch.load(path, weights_only=False)),
    ],
    ids=["pickle", "torch"],
)
def test_a_hostile_checkpoint_runs_nothing(run: Run, make: Any, read: Any) -> None:
    make(run.best_checkpoint)
    with pytest.raises(UserError, match=r"best\.ckpt cannot be read as a checkpoint: "):
        load_classifier(run)
    assert not (run.checkpoints / "owned").exists()
    # The file does what it should not when it is opened the careless way.
    read(run.best_checkpoint)
    assert (run.checkpoints / "owned").exists()


BROKEN: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"PK\3\4" + bytes(100)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5_000]),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "no weights": lambda path: torch.save({"epoch": 3}, path),
    "another's": lambda path: torch.save(
        {"state_dict": Classifier(shrunk()).state_dict(), "epoch": 0, "global_step": 1}, path
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint(run: Run, how: str) -> None:
    BROKEN[how](run.best_checkpoint)
    with pytest.raises(UserError, match=r"best\.ckpt (cannot be read|does not hold)[^\n]*: ."):
        load_classifier(run)


def test_a_missing_checkpoint(run: Run) -> None:
    run.best_checkpoint.unlink()
    with pytest.raises(UserError, match=r"There is no .*run/checkpoints/best\.ckpt"):
        load_classifier(run)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "fashion.training.networks.ConvNet",
            "os.system",
            "_target_ = os.system: only what stands in",
        ),
        (
            "fashion.training.networks.ConvNet",
            "fashion.training.networks.None",
            "there is no such class",
        ),
        ("dropout: 0.6", "dropout: 1.6", r"model\.network\.dropout = 1\.6"),
        ("model:", "modal:", r"config\.yaml names no network"),
        ("  network:", "  net:", r"config\.yaml names no network"),
        ("model:", "model: {network: [{_target_: os.mkdir, _args_: [owned]}]}\nno:", "os.mkdir"),
    ],
)
def test_a_configuration_that_cannot_be_built(run: Run, old: str, new: str, message: str) -> None:
    path = run.folder / ".hydra/config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        load_classifier(run)
