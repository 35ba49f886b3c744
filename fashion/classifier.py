"""The LightningModule: one network, cross-entropy, accuracy, an optimizer and its schedule."""

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int, UInt8
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from fashion import UserError
from fashion.augmentation import Augmentation
from fashion.data import CLASSES, EVAL_BATCH_SIZE, Batch, Pictures, normalise
from fashion.optimizers import OptimizerFactory
from fashion.run import Predictions, Run
from fashion.schema import Share


class Classifier(pl.LightningModule):
    """Trains and evaluates a network that gives one logit a class.

    Args:
        network: normalised pictures (batch, 1, 28, 28) -> logits (batch, 10).
        optimizer: from the network and the number of steps; None where nothing is trained.
        augmentation: of the training pictures; None for none.
        label_smoothing: share of each training label that is spread evenly over the classes.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory | None = None,
        augmentation: Augmentation | None = None,
        *,
        label_smoothing: Share = 0.0,
    ) -> None:
        super().__init__()
        # Convolutions and pooling run up to twice as fast on the CPU with the channels innermost.
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer_factory = optimizer
        self.augmentation = augmentation
        self.label_smoothing = label_smoothing
        self.train_accuracy = MulticlassAccuracy(len(CLASSES), average="micro", validate_args=False)
        self.val_accuracy = MulticlassAccuracy(len(CLASSES), average="micro", validate_args=False)
        self._answers: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "val": []}

    def forward(self, images: UInt8[Tensor, "batch 28 28"]) -> Float[Tensor, "batch 10"]:
        """Logits of raw pixels, 0..255, normalised here: a quarter of the bytes travels."""
        logits: Tensor = self.network(normalise(images))
        return logits.float()  # whatever precision training computes in

    def _answer(self, split: str, batch: Batch) -> Float[Tensor, "batch 10"]:
        images, labels = batch
        logits: Tensor = self(images)
        # Metrics wait for the epoch's end: an update or a `self.log` a step costs more than
        # a small network's forward pass.
        self._answers[split].append((logits.detach(), labels))
        return logits

    def training_step(self, batch: Batch) -> Float[Tensor, ""]:
        images, labels = batch
        if self.augmentation is not None:
            images = self.augmentation(images, self.current_epoch)
        logits = self._answer("train", (images, labels))
        return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Batch) -> None:
        self._answer("val", batch)

    def _log_epoch(self, split: str, accuracy: MulticlassAccuracy) -> None:
        logits, labels = map(torch.cat, zip(*self._answers[split], strict=True))
        self._answers[split].clear()
        accuracy.update(logits, labels)
        loss = functional.cross_entropy(logits, labels)
        self.log(f"{split}/loss", loss, sync_dist=True)
        self.log(f"{split}/acc", accuracy, prog_bar=True)

    def on_train_epoch_start(self) -> None:
        self._answers["train"].clear()  # of an epoch that was interrupted

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train", self.train_accuracy)

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val", self.val_accuracy)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        assert self.optimizer_factory is not None  # noqa: S101 - only a fit asks
        return self.optimizer_factory(self.network, int(self.trainer.estimated_stepping_batches))


def build_classifier(run: Run) -> Classifier:
    """An untrained classifier from a run's configuration.

    Raises:
        UserError: the configuration names or holds something that is not allowed.
    """
    if not OmegaConf.select(run.config, "model.network._target_"):
        raise UserError(f"{run.folder}/.hydra/config.yaml names no network (model.network).")
    return Classifier(instantiate(run.config.model.network, _convert_="all"))


def load_classifier(run: Run) -> Classifier:
    """A run's classifier with the weights of its reported checkpoint, ready to predict.

    Only tensors and plain values are read: opening somebody's run executes none of their code.

    Raises:
        UserError: the run cannot be rebuilt, or its checkpoint is missing, broken or another's.
    """
    classifier = build_classifier(run)
    path = run.reported_checkpoint
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        classifier.load_state_dict(weights)
    except FileNotFoundError as error:
        raise UserError(f"{run.folder} has no {path.relative_to(run.folder)}.") from error
    except Exception as error:  # torch.load raises nearly anything on a broken or hostile file
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as this run's weights: {reason}") from error
    return classifier.eval()


@torch.inference_mode()
def predict(classifier: Classifier, images: Tensor) -> Float[Tensor, "n 10"]:
    """Probabilities of raw pictures (n, 28, 28), in their order."""
    classifier.eval()
    return torch.cat(
        [
            classifier(part.to(classifier.device)).softmax(1).cpu()
            for part in images.split(EVAL_BATCH_SIZE)
        ]
    )


def answer(classifier: Classifier, pictures: Pictures) -> Predictions:
    """What a classifier makes of a split."""
    labels: Int[Tensor, " n"] = pictures.labels
    return Predictions(labels.numpy(), predict(classifier, pictures.images).numpy())
