"""The LightningModule: one network, cross-entropy, accuracy, an optimizer and its schedule."""

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int, Num
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from fashion.config import Fraction
from fashion.data.datamodule import CLASSES, EVAL_BATCH_SIZE, Batch, ImageSet, normalize
from fashion.errors import DivergenceError, UserError
from fashion.runs.files import open_file
from fashion.runs.run import Predictions, Run
from fashion.training.optimizers import OptimizerFactory

LOG_RATE_EVERY = 10  # training_steps


class Classifier(pl.LightningModule):
    """Trains and evaluates a network that gives one logit a class.

    Args:
        network: normalised pictures (batch, 1, 28, 28) -> logits (batch, 10).
        optimizer: makes one, and its schedule, for the network; None where nothing is trained.
        label_smoothing: share of each training label that is spread evenly over the classes.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory | None = None,
        *,
        label_smoothing: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # see training_step
        # Convolutions and pooling run up to twice as fast on the CPU with the channels innermost.
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer_factory = optimizer
        self.label_smoothing = label_smoothing
        self.train_accuracy = MulticlassAccuracy(len(CLASSES), average="micro", validate_args=False)
        self.val_accuracy = MulticlassAccuracy(len(CLASSES), average="micro", validate_args=False)
        # Not "disable", with which torchmetrics 1.9 ignores the weights.
        self.train_loss, self.val_loss = MeanMetric("ignore"), MeanMetric("ignore")
        self._answers: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "val": []}

    def forward(self, images: Num[Tensor, "batch *image"]) -> Float[Tensor, "batch 10"]:
        """Logits of raw pixels or of normalised ones; the type tells which.

        Args:
            images: uint8 (batch, 28, 28), 0..255, normalised here; or float (batch, 1, 28, 28),
                normalised already, as the DataModule's batches are.
        """
        logits: Tensor = self.network(normalize(images) if images.dtype == torch.uint8 else images)
        return logits.float()  # whatever precision training computes in

    def _answer(self, split: str, batch: Batch) -> Float[Tensor, "batch 10"]:
        images, labels = batch
        logits: Tensor = self(images)
        # Metrics wait for the epoch's end: an update or a `self.log` a step costs more than
        # a small network's forward pass.
        self._answers[split].append((logits.detach(), labels))
        return logits

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy of a batch, or this process's part of it.

        Raises:
            DivergenceError: it is infinite or not a number.
        """
        _, labels = batch
        logits = self._answer("train", batch)
        smoothing = self.label_smoothing
        if self._trainer is not None and self.trainer.world_size > 1:
            # The processes' gradients are averaged as if their shares of the batch were equal.
            share = self.trainer.strategy.reduce(logits.new_tensor(len(labels)), reduce_op="mean")
            total = functional.cross_entropy(
                logits, labels, reduction="sum", label_smoothing=smoothing
            )
            loss = total / share
        else:
            loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if not loss.isfinite():
            self._refuse_to_go_on(f"The loss became {loss.item()}")
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """An optimizer step for each of the batches that came together.

        Lightning's own work around each call takes longer than a small network's step, so that one
        call takes several (data.PICTURES_AT_ONCE).
        """
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)  # noqa: S101 - there is one of each
        assert isinstance(scheduler, LRScheduler)  # noqa: S101
        if batch_idx % LOG_RATE_EVERY == 0:
            self._log({"lr": scheduler.get_last_lr()[0]}, self.global_step + 1)
        size = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        for part in zip(*(tensor.split(size) for tensor in batch), strict=True):
            self.manual_backward(self.loss(part))
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()

    def validation_step(self, batch: Batch) -> None:
        self._answer("val", batch)

    def _log_epoch(self, split: str, accuracy: MulticlassAccuracy, loss: MeanMetric) -> None:
        logits, labels = map(torch.cat, zip(*self._answers[split], strict=True))
        self._answers[split].clear()
        if len(labels):
            accuracy.update(logits, labels)
            loss.update(functional.cross_entropy(logits, labels), len(labels))
        values = {f"{split}/loss": loss.compute(), f"{split}/acc": accuracy.compute()}
        if not (mean := values[f"{split}/loss"]).isfinite():
            self._refuse_to_go_on(f"{split}/loss became {mean.item()}")
        accuracy.reset()
        loss.reset()
        self.log(
            f"{split}/acc", values[f"{split}/acc"], prog_bar=True, logger=False, sync_dist=True
        )
        self._log(values, self.global_step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        # Not by `self.log`, which hands it on after the epoch's checkpoint has been saved.
        for logger in self.loggers:
            logger.log_metrics(values, step)

    def on_train_epoch_start(self) -> None:
        self._answers["train"].clear()  # of an epoch that was interrupted

    def on_train_epoch_end(self) -> None:
        if not all(weight.isfinite().all() for weight in self.parameters()):
            self._refuse_to_go_on("A weight became infinite or not a number")
        self._log_epoch("train", self.train_accuracy, self.train_loss)

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val", self.val_accuracy, self.val_loss)

    def _refuse_to_go_on(self, what: str) -> None:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        raise DivergenceError(
            f"{what} in epoch {self.current_epoch + 1}, step {self.global_step + 1} of the run, at "
            f"the learning rate {rate:g}. Try a lower optimizer.lr, or let it rise slowly with "
            "optimizer.warmup=0.1."
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        assert self.optimizer_factory is not None  # noqa: S101 - only a fit asks
        return self.optimizer_factory(self.network)


def build_classifier(run: Run) -> Classifier:
    """An untrained classifier from a run's configuration.

    Raises:
        UserError: the configuration names or holds something that is not allowed.
    """
    if not OmegaConf.select(run.config, "model.network._target_"):
        raise UserError(f"{run.folder}/.hydra/config.yaml names no network (model.network).")
    network = instantiate(run.config.model.network, _convert_="all")
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{run.folder}/.hydra/config.yaml: model.network._target_ = "
            f"{run.config.model.network._target_} makes no network."
        )
    return Classifier(network)


def load_classifier(run: Run) -> Classifier:
    """A run's classifier with the weights of its reported checkpoint, ready to predict.

    Only tensors and plain values are read: opening somebody's run executes none of their code.

    Raises:
        UserError: the run cannot be rebuilt, or its checkpoint is missing, broken or another's.
    """
    path = run.reported_checkpoint
    weights = read_checkpoint(path)["state_dict"]
    try:
        with torch.device("meta"):  # which takes no memory, however large the network
            build_classifier(run).load_state_dict(weights, assign=True)
        classifier = build_classifier(run)
        classifier.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold this run's weights: {error}") from error
    return classifier.eval()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content: tensors and plain values, so that reading it executes nothing.

    Raises:
        UserError: it is missing, broken or no checkpoint.
    """
    try:
        with open_file(path) as file:
            _refuse_damage(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
        parts = [content[key] for key in ("state_dict", "epoch", "global_step")]
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}.") from error
    except Exception as error:  # torch.load raises nearly anything on a broken or hostile file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(
            error, pickle.UnpicklingError
        ):  # torch's advice would be to run what is in it
            reason = "it is damaged, or holds more than numbers, which could run code"
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}.") from error
    if [type(part) for part in parts[1:]] != [int, int]:
        raise UserError(f"{path} is no checkpoint of a run.")
    return content  # type: ignore[no-any-return]


def _refuse_damage(file: IO[bytes]) -> None:
    """Torch compares no check sums, and would decompress what expands without end.

    Raises:
        ValueError, zipfile.BadZipFile: it is not what torch has written.
    """
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed, which no checkpoint is")
        if damaged := archive.testzip():
            raise ValueError(f"it is damaged ({damaged})")
    file.seek(0)


@torch.inference_mode()
def predict(classifier: Classifier, images: Tensor) -> Float[Tensor, "n 10"]:
    """Probabilities of raw pictures (n, 28, 28), in their order.

    Raises:
        UserError: its weights are infinite or no numbers, or so large that its answers are.
    """
    classifier.eval()
    probabilities = torch.cat(
        [
            classifier(part.to(classifier.device)).softmax(1).cpu()
            for part in images.split(EVAL_BATCH_SIZE)
        ]
    )
    if not probabilities.isfinite().all():
        raise UserError("The network's answers are not numbers, since its weights are too large.")
    return probabilities


def answer(classifier: Classifier, pictures: ImageSet) -> Predictions:
    """What a classifier makes of a split."""
    labels: Int[Tensor, " n"] = pictures.labels
    return Predictions(labels.numpy(), predict(classifier, pictures.images).numpy())
