import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric

from fashion.data.datamodule import FashionMNIST, normalize
from fashion.errors import DivergenceError, UserError
from fashion.runs.run import Run
from fashion.training.classifier import (
    Classifier,
    CrossEntropy,
    load_classifier,
    penultimate_features,
    predict_probabilities,
)
from fashion.training.networks import ConvNet
from fashion.training.optimizers import adam

# Of the deck's network, shrunk, on the images of tests/conftest.py: the loss before each of five
# steps of Adam. They change with the initialization, the normalization, a layer or the optimizer;
# whoever means to change one of these writes down the new ones.
GOLDEN_LOSSES = [2.347826, 2.321374, 2.289778, 2.190256, 2.287129]

Batch = tuple[Tensor, Tensor]


def shrunk(*, dropout: float = 0.6) -> ConvNet:
    return ConvNet(conv=[4], dense=[8], dropout=dropout)


def losses(
    classifier: Classifier, batch: Batch, optimizer: torch.optim.Optimizer, steps: int
) -> list[float]:
    """Return the loss before each step on one batch."""
    found = []
    for _ in range(steps):
        loss = classifier.training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.fixture
def batch(tiny_data: Path) -> Batch:
    """Return the first 32 training images, normalized, and their labels."""
    data = FashionMNIST(root=str(tiny_data), val_size=100, official=False)
    data.setup("fit")
    return normalize(data.train.images[:32]), data.train.labels[:32]


def test_golden_step_losses(batch: Batch) -> None:
    torch.manual_seed(0)
    classifier = Classifier(shrunk())
    found = losses(classifier, batch, adam(classifier.network, lr=0.001), 5)
    assert found == pytest.approx(GOLDEN_LOSSES, rel=1e-4), found


def test_32_images_are_learned_by_heart(batch: Batch) -> None:
    torch.manual_seed(0)
    classifier = Classifier(shrunk(dropout=0.0))
    found = losses(classifier, batch, adam(classifier.network, lr=0.001), 150)
    images, labels = batch
    assert torch.equal(classifier.eval()(images).argmax(1), labels)
    assert found[-1] < found[0] / 5


def test_raw_and_normalized_pixels_give_the_same_logits() -> None:
    classifier = Classifier(shrunk()).eval()
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    assert torch.equal(classifier(images), classifier(normalize(images)))
    probabilities = classifier.predict_step((normalize(images), torch.zeros(5)))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))


# The loss


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 2, 0])
LOSSES = -LOGITS.log_softmax(1)[torch.arange(3), LABELS]


def test_cross_entropy_with_labels_and_with_probabilities() -> None:
    assert torch.allclose(CrossEntropy()(LOGITS, LABELS), LOSSES.mean())
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0], [0.2, 0.2, 0.6]])
    expected = -(LOGITS.log_softmax(1) * soft).sum(1).mean()
    assert torch.allclose(CrossEntropy()(LOGITS, soft), expected)


def test_label_smoothing_is_for_training_alone() -> None:
    """Three tenths of each label are spread over the three classes."""
    loss = CrossEntropy(label_smoothing=0.3)
    smooth = functional.one_hot(LABELS, 3) * 0.7 + 0.1
    assert torch.allclose(loss(LOGITS, LABELS), -(LOGITS.log_softmax(1) * smooth).sum(1).mean())
    assert torch.allclose(loss.eval()(LOGITS, LABELS), LOSSES.mean())


def test_class_weights() -> None:
    weighted = CrossEntropy(class_weights=[1.0, 5.0, 2.0])(LOGITS, LABELS)
    assert torch.allclose(weighted, (LOSSES * torch.tensor([1.0, 2.0, 1.0])).sum() / 4)
    # 12 images of 3 classes: each class counts as 4 images, however many it has.
    balanced = CrossEntropy([8, 0, 4], class_weights="balanced")
    assert balanced.weight is not None
    assert balanced.weight.tolist() == [0.5, 4.0, 1.0]
    assert "weight" not in balanced.state_dict()  # it follows from the data
    with pytest.raises(UserError, match=r"loss\.class_weights: 2 numbers for 3 classes"):
        CrossEntropy(class_weights=[1.0, 2.0])(LOGITS, LABELS)


def test_a_loss_of_torch_and_one_that_is_no_scalar(batch: Batch) -> None:
    section = {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1}
    classifier = Classifier(shrunk(dropout=0.0), loss=section)
    expected = functional.cross_entropy(classifier(batch[0]), batch[1], label_smoothing=0.1)
    assert torch.allclose(classifier.training_step(batch), expected)
    classifier = Classifier(shrunk(), loss=section | {"reduction": "none"})
    with pytest.raises(UserError, match=r"CrossEntropyLoss returned a tensor of shape \(32,\)"):
        classifier.training_step(batch)
    with pytest.raises(UserError, match="returned 3; training needs a scalar"):
        Classifier(shrunk(), loss=lambda *_: 3).training_step(batch)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite(batch: Batch) -> None:
    with pytest.raises(DivergenceError, match=r"loss became nan in epoch 1, step 1.*optimizer\.lr"):
        Classifier(shrunk()).training_step((batch[0] * torch.inf, batch[1]))


# The network's output


class Odd(nn.Module):
    def __init__(self, *, what: str = "", num_classes: int = 10) -> None:
        super().__init__()
        self.what, self.linear = what, nn.Linear(784, num_classes)

    def forward(self, images: Tensor) -> Any:
        logits = self.linear(images.flatten(1))
        outputs: dict[str, Callable[[], Any]] = {
            "wide": lambda: torch.cat([logits, logits], 1),
            "flat": lambda: logits[:, 0],
            "tuple": lambda: (logits, 3),
            "probabilities": lambda: logits.softmax(1),
            "shape": lambda: images @ torch.zeros(3, 3),
            "raises": lambda: [0][len(images)],
            "": lambda: logits,
        }
        return outputs[self.what]()


def test_losses_of_another_device_are_checked_together() -> None:
    classifier = Classifier(shrunk())
    found = [(3, 0.2, 1.5), (4, 0.1, math.inf), (5, 0.05, math.nan)]
    classifier._step_losses = [(step, rate, torch.tensor(loss)) for step, rate, loss in found]  # noqa: SLF001
    message = r"The loss became inf in epoch 1, step 5 of the run, at the learning rate 0\.1\."
    with pytest.raises(DivergenceError, match=message):
        classifier.on_validation_epoch_end()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("wide", r"Odd returned \(2, 20\) for two images; \(2, 10\) is needed"),
        ("flat", r"Odd returned \(2,\) for two images"),
        ("tuple", "Odd returned tuple for two images"),
        ("probabilities", "Odd returned probabilities; the loss needs logits"),
        ("shape", r"Odd cannot compute images of shape \(2, 1, 28, 28\): .*shape"),
        ("raises", "Odd cannot compute images of .*: list index out of range"),
    ],
)
def test_a_network_whose_output_does_not_fit(what: str, message: str) -> None:
    classifier = Classifier(Odd(what=what))
    with pytest.raises(UserError, match=message) as caught:
        classifier.check_output()
    assert "\n" not in str(caught.value)
    assert classifier.network.training


def test_a_network_whose_output_fits() -> None:
    Classifier(Odd()).check_output()
    Classifier(ConvNet(conv=[], dense=[8], batch_norm=True)).check_output()
    section = {"_target_": f"{__name__}.Odd"}
    classifier = Classifier(section, classes=["a", "b", "c"])  # the number of classes is offered
    classifier.check_output()
    with pytest.raises(UserError, match=r"model\.network: dict is no torch\.nn\.Module"):
        Classifier({"_target_": "builtins.dict"})


# Metrics


def recorded(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Return what the classifier logs at an epoch's end, filled later, without a Trainer."""
    logged: dict[str, Tensor] = {}
    optimizers = [adam(classifier.network, lr=0.001)]
    trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"), optimizers=optimizers)
    monkeypatch.setattr(Classifier, "trainer", trainer)
    monkeypatch.setattr(Classifier, "loggers", [])
    monkeypatch.setattr(classifier, "log_dict", lambda values, **_: logged.update(values))
    return logged


def test_an_epoch_s_metrics_are_of_all_its_images(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of batches of different sizes, and of one epoch alone."""
    f1 = {"_target_": "torchmetrics.classification.MulticlassF1Score", "average": "macro"}
    classifier = Classifier(shrunk(), metrics={"f1": f1}).eval()
    logged = recorded(classifier, monkeypatch)
    images, labels = batch
    for _ in range(2):
        for part in (slice(25), slice(25, 32)):
            classifier.validation_step((images[part], labels[part]))
        classifier.on_validation_epoch_end()
    logits = classifier(images)
    accuracy = (logits.argmax(1) == labels).float().mean()
    assert torch.allclose(logged["val/loss"], functional.cross_entropy(logits, labels))
    assert torch.allclose(logged["val/acc"], accuracy)
    assert 0 <= logged["val/f1"] <= 1


def test_metrics_that_are_not_finite_are_left_out() -> None:
    """As Cohen's kappa of images of one class, all correct."""

    class Nothing(MeanMetric):
        def update(self, *_: Any) -> None: ...

        def compute(self) -> Tensor:
            return torch.tensor(math.nan)

    classifier = Classifier(ConvNet(conv=[], dense=[]), metrics={"kappa": Nothing()})
    probabilities, labels = torch.full((3, 10), 0.1), torch.zeros(3, dtype=torch.int64)
    assert classifier.extra_metrics("val", probabilities, labels) == {}


def test_metrics_of_soft_labels_take_the_most_probable_class(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier(shrunk(dropout=0.0))
    logged = recorded(classifier, monkeypatch)
    soft = 0.6 * functional.one_hot(batch[1], 10) + 0.04
    classifier.training_step((batch[0], soft))
    classifier.on_train_epoch_end()
    expected = (classifier(batch[0]).argmax(1) == batch[1]).float().mean()
    assert torch.allclose(logged["train/acc"], expected)


def test_an_interrupted_epoch_s_batches_do_not_count(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier(shrunk(dropout=0.0))
    logged = recorded(classifier, monkeypatch)
    images, labels = batch
    classifier.training_step((images[:8], labels[:8]))
    classifier.on_train_epoch_start()
    loss = classifier.training_step((images[8:], labels[8:]))
    classifier.on_train_epoch_end()
    torch.testing.assert_close(logged["train/loss"], loss.detach())


# Predictions


def test_predictions_keep_the_order_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(shrunk())
    images = torch.randint(0, 256, (23, 28, 28), dtype=torch.uint8)
    whole = predict_probabilities(classifier.train(), images)
    assert not classifier.training  # dropout is off
    monkeypatch.setattr("fashion.training.classifier.EVAL_BATCH_SIZE", 5)
    torch.testing.assert_close(predict_probabilities(classifier, images), whole)
    torch.testing.assert_close(whole.sum(1), torch.ones(23))
    with torch.no_grad():
        next(classifier.network.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="predictions are not numbers"):
        predict_probabilities(classifier, images)


def test_predict_proba_takes_bytes_or_floats_of_a_declared_range() -> None:
    classifier = Classifier(shrunk())
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    expected = classifier.predict_proba(images)
    for factor, value_range in ((1, (0, 255)), (1 / 255, (0, 1))):
        found = classifier.predict_proba(images.float() * factor, value_range=value_range)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "value_range", "message"),
    [
        (torch.zeros(2, 28, 27), None, r"shape \(2, 28, 27\); \(n, 28, 28\)"),
        (torch.zeros(28, 28), None, r"shape \(28, 28\)"),
        (torch.zeros(2, 28, 28), None, "torch.float32: give uint8 0..255, or floats and"),
        (torch.zeros(2, 28, 28), (0, 2), "give uint8"),
        (torch.zeros(2, 28, 28, dtype=torch.int64), (0, 255), "torch.int64: give uint8"),
        (torch.full((2, 28, 28), 2.0), (0, 1), r"go from 2 to 2, outside \(0, 1\)"),
    ],
)
def test_predict_proba_refuses_what_it_could_misread(
    images: Tensor, value_range: Any, message: str
) -> None:
    classifier = Classifier(shrunk())
    with pytest.raises(UserError, match=message):
        # Without the shape checks of these tests, as a user calls it.
        Classifier.predict_proba.__wrapped__(classifier, images, value_range=value_range)  # type: ignore[attr-defined]


def test_penultimate_features_are_the_input_of_the_last_linear_layer() -> None:
    network = ConvNet(conv=[3], dense=[20, 8])
    classifier = Classifier(network).eval()
    images = torch.randint(0, 256, (300, 28, 28), dtype=torch.uint8)
    features = penultimate_features(classifier, images)
    assert features is not None
    assert features.shape == (300, 8)
    last: Any = network[-1]
    torch.testing.assert_close(last(features), network(normalize(images)))
    assert not any(module._forward_pre_hooks for module in network.modules())  # noqa: SLF001
    assert penultimate_features(Classifier(nn.Flatten()), images) is None


# Checkpoints of runs that somebody else may have made


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    """Return a copy of a finished run, to be broken."""
    return Run(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.mark.slow
def test_a_run_s_classifier(run: Run) -> None:
    classifier = load_classifier(run)
    assert not classifier.training
    weights = torch.load(run.best_checkpoint, weights_only=True)["state_dict"]
    for name, weight in classifier.state_dict().items():
        assert torch.equal(weight, weights[name])
    again = Classifier.load_from_checkpoint(run.best_checkpoint)
    assert sum(again.hparams["class_counts"]) == 300  # by which "balanced" weights
    assert not again.training
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    assert torch.equal(again(images), classifier(images))


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Hostile(path.with_name("owned"))}))


def hostile_torch(path: Path) -> None:
    torch.save({"state_dict": Hostile(path.with_name("owned"))}, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "read"),
    [
        (hostile_pickle, lambda path: pickle.loads(path.read_bytes())),  # noqa: S301
        (hostile_torch, lambda path: torch.load(path, weights_only=False)),
    ],
    ids=["pickle", "torch"],
)
def test_a_hostile_checkpoint_executes_nothing(run: Run, make: Any, read: Any) -> None:
    make(run.best_checkpoint)
    for load in (lambda: load_classifier(run), lambda: from_file(run.best_checkpoint)):
        with pytest.raises(UserError, match=r"best\.ckpt cannot be read as a checkpoint: "):
            load()
    assert not (run.checkpoints / "owned").exists()
    # The file does what it should not when it is opened carelessly.
    read(run.best_checkpoint)
    assert (run.checkpoints / "owned").exists()


from_file: Any = Classifier.load_from_checkpoint


def compressed(path: Path) -> None:
    """A zip bomb is compressed; no checkpoint is."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def another(path: Path) -> None:
    state = Classifier(shrunk()).state_dict()
    torch.save({"state_dict": state, "epoch": 0, "global_step": 1}, path)


BROKEN: dict[str, Any] = {
    "garbage": lambda path: path.write_bytes(b"PK\3\4" + bytes(100)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5_000]),
    "compressed": compressed,
    "damaged": damaged,
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "no weights": lambda path: torch.save({"epoch": 3}, path),
    "another's": another,
    "none": lambda path: path.unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint(run: Run, how: str) -> None:
    BROKEN[how](run.best_checkpoint)
    message = r"best\.ckpt (cannot be read|does not hold)[^\n]*: .|There is no .*best\.ckpt"
    with pytest.raises(UserError, match=message):
        load_classifier(run)


def test_a_checkpoint_that_names_a_foreign_class(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    classifier = Classifier({"_target_": f"{__name__}.Odd", "what": ""})
    content = {"epoch": 0, "global_step": 1, "state_dict": classifier.state_dict()}
    torch.save(content | {"hyper_parameters": dict(classifier.hparams)}, path)
    with pytest.raises(UserError, match=r"network\._target_ = .*Odd, which can run any code"):
        from_file(path)
    found = from_file(path, trust=True)
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    assert torch.equal(found(images), classifier(images))
    torch.save(content, path)  # of a network that was given as a module
    with pytest.raises(UserError, match=r"names no network: pass network=\.\.\."):
        from_file(path)
    assert torch.equal(from_file(path, network=Odd())(images), classifier(images))
