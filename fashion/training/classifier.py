"""The LightningModule: one network, a loss, metrics, an optimizer and its schedule."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from fashion.config import Fraction, PositiveFloat, PositiveInt, build
from fashion.data import CLASSES
from fashion.data.datamodule import (
    EVAL_BATCH_SIZE,
    Batch,
    class_names,
    normalize,
    reduce_resolution,
)
from fashion.errors import DivergenceError, UserError, first_line
from fashion.runs import untrusted
from fashion.training.optimizers import configure

if TYPE_CHECKING:
    from fashion.runs.run import Run

Section = Mapping[str, Any]
OPTIMIZER = {"_target_": "fashion.training.optimizers.adam", "lr": 0.001}


class CrossEntropy(nn.Module):
    """Mean cross-entropy of logits (batch, classes) and targets.

    Targets are labels (batch,) or probabilities (batch, classes).

    Args:
        class_counts: training images of each class; without them "balanced" means no weights.
        label_smoothing: fraction of each label that is spread evenly over the classes, in training.
        class_weights: "balanced" (inversely proportional to the class's number of images), one
            number per class, or None.

    Raises:
        UserError: in a call, if the number of weights is not that of classes.
    """

    weight: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int] = (),
        *,
        label_smoothing: Fraction = 0.0,
        class_weights: Literal["balanced"] | list[PositiveFloat | PositiveInt] | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        weight = None
        if class_weights == "balanced" and class_counts:
            counts = torch.tensor(class_counts, dtype=torch.float32)
            weight = counts.sum() / (len(counts) * counts.clamp(min=1))
        elif class_weights not in (None, "balanced"):
            weight = torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Float[Tensor, "batch classes"], targets: Tensor) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        if self.weight is not None and len(self.weight) != logits.shape[1]:
            raise UserError(
                f"loss.class_weights: {len(self.weight)} numbers for {logits.shape[1]} classes."
            )
        return functional.cross_entropy(logits, targets, self.weight, label_smoothing=smoothing)


class Classifier(pl.LightningModule):
    """Trains and evaluates a network that gives one logit per class.

    Arguments may be sections of the configuration (`_target_` and its arguments): they are built
    here and saved in checkpoints, so that `load_from_checkpoint` needs nothing else.

    Args:
        network: a section or a module: normalized images (batch, 1, 28, 28) -> logits.
        optimizer: section of the optimizer (see fashion.training.optimizers.configure).
        scheduler: section of a torch scheduler, or None.
        loss: a section or callable: (logits, targets) -> scalar; None for cross-entropy.
        metrics: metrics beside accuracy, by name: sections or torchmetrics objects.
        classes: names of the classes.
        resolution: of the data; raw images are reduced to it (`reduce_resolution`).
        class_counts: training images of each class, for losses that weight them.
        steps: (optimizer steps of the training, steps per epoch, batches per epoch); None: from
            the Trainer.

    Raises:
        UserError: a section cannot be built, or `network` is no module.
    """

    def __init__(
        self,
        network: nn.Module | Section,
        optimizer: Section = OPTIMIZER,
        *,
        scheduler: Section | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | Section | None = None,
        metrics: Mapping[str, Metric | Section] | None = None,
        classes: Sequence[str] = CLASSES,
        resolution: int = 28,
        class_counts: Sequence[int] = (),
        steps: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        given = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "loss": loss}
        plain = {key: dict(value) for key, value in given.items() if isinstance(value, Mapping)}
        self.save_hyperparameters(
            plain
            | {"classes": list(classes), "resolution": resolution}
            | {"class_counts": list(class_counts)}
            | {"metrics": _plain_metrics(metrics or {})},
            logger=False,
        )
        self.classes, self.resolution = tuple(classes), resolution
        built = _built("model.network", network, {"num_classes": len(classes)})
        if not isinstance(built, nn.Module):
            raise UserError(f"model.network: {type(built).__name__} is no torch.nn.Module.")
        # Convolutions and pooling run up to twice as fast on the CPU with the channels innermost.
        self.network = built.to(memory_format=torch.channels_last)
        self.criterion = _built("loss", loss or CrossEntropy(), {"class_counts": class_counts})
        self.optimizer_section, self.scheduler_section = optimizer, scheduler
        self.steps = steps
        collection = MetricCollection(
            {
                "acc": MulticlassAccuracy(len(classes), average="micro", validate_args=False),
                **{
                    name: _built(f"metrics.{name}", metric, {"num_classes": len(classes)})
                    for name, metric in (metrics or {}).items()
                },
            },
            compute_groups=False,
        )
        splits = ("train", "val", "test")
        self.metrics = nn.ModuleDict(
            {f"{split}_metrics": collection.clone(prefix=f"{split}/") for split in splits}
        )
        # Not "disable", with which torchmetrics 1.9 ignores the weights.
        self.losses = nn.ModuleDict({f"{split}_loss": MeanMetric("ignore") for split in splits})
        self._outputs: dict[str, list[Batch]] = {split: [] for split in splits}
        self._step_losses: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss

    def forward(self, images: Num[Tensor, "batch *image"]) -> Float[Tensor, "batch classes"]:
        """Return logits.

        Args:
            images: uint8 (batch, 28, 28), 0..255, normalized here; or float (batch, 1, 28, 28),
                normalized already, as the LightningDataModule's batches are.
        """
        raw = images.dtype == torch.uint8
        logits: Tensor = self.network(self.normalize(images) if raw else images)
        return logits.float()  # whatever precision training computes in

    def normalize(self, images: Num[Tensor, "batch 28 28"]) -> Float[Tensor, "batch 1 28 28"]:
        """Return raw images, 0..255, at the data's resolution and standardized."""
        return normalize(reduce_resolution(images, self.resolution))

    def shared_step(self, batch: Sequence[Tensor], split: str) -> Float[Tensor, "batch classes"]:
        """Return the logits of a batch, and keep them for the metrics at the epoch's end."""
        images, targets = batch
        logits: Tensor = self(images)
        # An update of each metric and a `self.log` per step cost more than a small network's
        # forward pass.
        self._outputs[split].append((logits.detach(), targets))
        return logits

    def training_step(self, batch: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Return the loss of a batch, or of this process's shard of it.

        Raises:
            DivergenceError: it is infinite or not a number.
            UserError: the loss function is not ours, and raised or did not return a scalar.
        """
        logits = self.shared_step(batch, "train")
        # One of several processes may have no image of the last batch; the mean would be NaN.
        loss: Tensor = self._loss(logits, batch[1]) if len(logits) else logits.sum()
        if not isinstance(loss, Tensor) or loss.ndim:
            shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
            raise UserError(
                f"loss: {type(self.criterion).__name__} returned {shape}; training needs a scalar "
                "tensor, such as the mean over the batch."
            )
        if self._trainer is not None and self.trainer.world_size > 1:
            # The processes' gradients are averaged as if their shards were equally large.
            mean = self.trainer.strategy.reduce(logits.new_tensor(len(logits)), reduce_op="mean")
            loss = loss * len(logits) / mean
        self._step_losses.append((self.global_step, self._rate, loss.detach()))
        if loss.device.type == "cpu":
            self._check_step_losses()  # on another device it would wait for all work so far
        return loss

    def _loss(self, logits: Tensor, targets: Tensor) -> Any:
        try:
            return self.criterion(logits, targets)
        except Exception as error:
            ours = isinstance(self.criterion, CrossEntropy)
            if ours or isinstance(error, UserError | torch.OutOfMemoryError):
                raise
            reason = first_line(error)
            given = "labels (batch,)"
            if targets.ndim > 1:  # CutMix
                given = "probabilities (batch, classes), which the augmentation makes of labels"
            raise UserError(
                f"loss: {type(self.criterion).__name__} raised {type(error).__name__} for logits "
                f"(batch, classes) and {given}: {reason}"
            ) from error

    def validation_step(self, batch: Sequence[Tensor]) -> None:
        self.shared_step(batch, "val")

    def test_step(self, batch: Sequence[Tensor]) -> None:
        self.shared_step(batch, "test")

    def predict_step(self, batch: Sequence[Tensor] | Tensor) -> Float[Tensor, "batch classes"]:
        """Return probabilities of a batch, with or without labels."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        probabilities: Tensor = self(images).softmax(1)
        return probabilities

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set both loops' step counters: a run may be resumed with or without fast_path.py."""
        if loop := checkpoint.get("loops", {}).get("fit_loop"):
            automatic = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
            manual = loop["epoch_loop.manual_optimization.optim_step_progress"]
            for counter in (automatic["step"], manual):
                counter["total"] = dict.fromkeys(("ready", "completed"), checkpoint["global_step"])

    def on_train_epoch_start(self) -> None:
        self._outputs["train"].clear()  # of an epoch that was interrupted
        self._step_losses.clear()
        self.log_epoch({"lr": self._rate}, self.global_step + 1)

    def on_train_epoch_end(self) -> None:
        if not all(weight.isfinite().all() for weight in self.parameters()):
            self._abort("A weight became infinite or not a number")
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    @property
    def _rate(self) -> float:
        optimizers = self.trainer.optimizers if self._trainer is not None else []
        return float(optimizers[0].param_groups[0]["lr"]) if optimizers else math.nan

    def _check_step_losses(self) -> None:
        """Raise DivergenceError for the first loss since the last check that is not finite."""
        if not self._step_losses:
            return
        steps, rates, losses = zip(*self._step_losses, strict=True)
        self._step_losses.clear()
        values = torch.stack(losses).tolist()
        for step, rate, value in zip(steps, rates, values, strict=True):
            if not math.isfinite(value):
                self._abort(f"The loss became {value}", step, rate)

    def _log_epoch(self, split: str) -> None:
        self._check_step_losses()
        logits, targets = map(torch.cat, zip(*self._outputs[split], strict=True))
        self._outputs[split].clear()
        metrics: Any = self.metrics[f"{split}_metrics"]
        mean: Any = self.losses[f"{split}_loss"]
        if len(targets):
            labels = targets.argmax(1) if targets.ndim > 1 else targets
            metrics.update(logits, labels)
            mean.update(self._evaluation_loss(logits, targets), len(targets))
        values: dict[str, Tensor] = {f"{split}/loss": mean.compute(), **metrics.compute()}
        metrics.reset()
        mean.reset()
        if not values[f"{split}/loss"].isfinite():
            self._abort(f"{split}/loss became {values[f'{split}/loss'].item()}")
        fitting = self.trainer.state.fn == "fit"
        # While fitting, loggers get them here: Lightning hands them on after the epoch's checkpoint
        # has been saved, and a run killed in between would miss them when it is resumed.
        # Not True, with which Lightning warns where there is no logger.
        self.log_dict(values, logger=False if fitting else None, sync_dist=True)
        if fitting and not self.trainer.sanity_checking:
            numbers = {key: value.item() for key, value in values.items()}
            self.log_epoch(numbers, self.global_step)

    def log_epoch(self, values: dict[str, float], step: int) -> None:
        """Log an epoch's values.

        TensorBoard gets the epoch as `step`, to compare batch sizes, unless an epoch has several
        validations. Other loggers get the epoch as one of the values.
        """
        epoch = self.current_epoch + 1
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                interval = self.trainer.val_check_batch  # None: a time
                once = interval is not None and interval >= self.trainer.num_training_batches
                logger.log_metrics(values, epoch if once else step)
            else:
                logger.log_metrics(values | {"epoch": epoch}, step)

    def extra_metrics(
        self, split: str, probabilities: Float[Tensor, "n classes"], labels: Tensor
    ) -> dict[str, float]:
        """Compute the configured metrics beside accuracy on given predictions, as SPLIT/NAME.

        Without those that are not finite, as a quotient of zeros.
        """
        trained: Any = self.metrics[f"{split}_metrics"]
        metrics = trained.clone().cpu()
        metrics.reset()
        for metric in metrics.values():
            metric.distributed_available_fn = _alone  # the training's other processes have ended
        metrics.update(probabilities.clamp(min=1e-30).log(), labels)  # logits, as in training
        values = {key: float(value) for key, value in metrics.compute().items()}
        return {
            key: value
            for key, value in values.items()
            if key != f"{split}/acc" and math.isfinite(value)
        }

    def _evaluation_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss in evaluation mode: without label smoothing, for example."""
        module = self.criterion if isinstance(self.criterion, nn.Module) else None
        training = module is not None and module.training
        if module is not None:
            module.eval()
        loss: Tensor = self.criterion(logits, targets)
        if module is not None:
            module.train(training)
        return loss

    def _abort(self, what: str, step: int | None = None, rate: float | None = None) -> None:
        step = self.global_step if step is None else step
        rate = self._rate if rate is None else rate
        at = "" if math.isnan(rate) else f" at the learning rate {rate:g}"
        raise DivergenceError(
            f"{what} in epoch {self.current_epoch + 1}, step {step + 1} of the run,"
            f"{at}. Try a lower optimizer.lr, or raise it slowly with optimizer.warmup=0.1."
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        if self.steps is None:
            total = int(self.trainer.estimated_stepping_batches)
            epochs = self.trainer.max_epochs or 1
            per_epoch = max(1, total // max(1, epochs))
            batches = self.trainer.num_training_batches  # infinite where it is not known yet
            self.steps = total, per_epoch, int(batches) if math.isfinite(batches) else per_epoch
        steps, steps_per_epoch, batches_per_epoch = self.steps
        return configure(
            self.network,
            self.optimizer_section,
            self.scheduler_section,
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            batches_per_epoch=batches_per_epoch,
        )

    def predict_proba(
        self, images: Tensor | np.ndarray, *, value_range: tuple[int, int] | None = None
    ) -> Float[Tensor, "n classes"]:
        """Return class probabilities of raw images, in their order: the softmax of the logits.

        They are on the CPU, and without the temperature that fashion.predict and exported files
        apply. The classifier is set to evaluation mode.

        Args:
            images: (n, 28, 28), uint8, 0..255; or floats whose `value_range` is declared.
            value_range: (0, 1) or (0, 255), for floats: their values do not tell which, and the
                wrong one gives wrong predictions without an error.

        Raises:
            UserError: the shape or the dtype is another one, `value_range` is not declared, a
                value lies outside it, or the predictions are not finite.
        """
        if not isinstance(images, Tensor):
            images = torch.from_numpy(np.array(images))  # a copy: the array may be read-only
        if images.ndim != 3 or images.shape[1:] != (28, 28):  # noqa: PLR2004
            raise UserError(f"images have the shape {tuple(images.shape)}; (n, 28, 28) is needed.")
        if images.dtype != torch.uint8:
            if (
                value_range is None
                or value_range not in ((0, 1), (0, 255))
                or not images.is_floating_point()
            ):
                raise UserError(
                    f"images are {images.dtype}: give uint8 0..255, or floats and their range, "
                    "value_range=(0, 1) or (0, 255)."
                )
            low, high = map(float, images.aminmax()) if len(images) else (0.0, 0.0)
            if not 0 <= low <= high <= value_range[1]:
                raise UserError(f"images go from {low:g} to {high:g}, outside {value_range}.")
            images = images * (255 / value_range[1])
        return predict_probabilities(self, images)

    def check_output(self) -> None:
        """Try the network on two blank images.

        Raises:
            UserError: it raises, or does not return one logit per class.
        """
        name, training = type(self.network).__name__, self.network.training
        blank = normalize(torch.zeros(2, 28, 28, dtype=torch.uint8, device=self.device))
        self.network.eval()
        try:
            with torch.no_grad():
                logits = self.network(blank)
        except Exception as error:
            reason = first_line(error, type(error).__name__)
            raise UserError(
                f"model.network: {name} cannot compute images of shape (2, 1, 28, 28): {reason}"
            ) from error
        finally:
            self.network.train(training)
        expected = (2, len(self.classes))
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"model.network: {name} returned {shape} for two images; {expected} is needed, one "
                "logit per class."
            )
        if (logits >= 0).all() and torch.allclose(logits.sum(1), logits.new_ones(2), atol=1e-3):
            raise UserError(
                f"model.network: {name} returned probabilities; the loss needs logits. Leave the "
                "final softmax out."
            )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        trust: bool = False,
        **arguments: Any,
    ) -> "Classifier":
        """Return the classifier of a checkpoint, in evaluation mode.

        Args:
            checkpoint_path: the file.
            map_location: the device to move it to.
            trust: whether the checkpoint may name any class to be built.
            arguments: the constructor's, in place of the checkpoint's; a network that was given as
                a module is not in the checkpoint.

        Raises:
            UserError: the file is broken, or names classes that are not on the allow-list.
        """
        content = untrusted.read_checkpoint(Path(checkpoint_path))
        sections = dict(content.get("hyper_parameters", {})) | arguments
        if not trust:
            named = {k: v for k, v in sections.items() if isinstance(v, dict)}
            untrusted.refuse_foreign(named, "Classifier.load_from_checkpoint(..., trust=True)")
        if "network" not in sections:
            raise UserError(f"{checkpoint_path} names no network: pass network=... as well.")
        classifier = cls(**sections)
        load_weights(classifier, content, Path(checkpoint_path))
        return classifier.to(map_location).eval() if map_location else classifier.eval()


def _alone() -> bool:
    return False


def _plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(each) for name, each in metrics.items() if isinstance(each, Mapping)}


def _built(key: str, given: Any, offered: dict[str, Any]) -> Any:
    return build(key, given, offered=offered) if isinstance(given, Mapping) else given


def load_classifier(run: "Run", command: str | None = None) -> Classifier:
    """Return a run's classifier with the weights of its reported checkpoint, ready to predict.

    Only tensors and plain values are read: loading an untrusted run executes none of its code.

    Args:
        run: the run.
        command: to suggest in the message to a user who trusts the run; None: fashion.evaluate's.

    Raises:
        UserError: the network cannot be built, the checkpoint is missing, broken or of another
            network, or the run names classes that are not on the allow-list and is not trusted.
    """
    path = run.reported_checkpoint
    content = untrusted.read_checkpoint(path)
    section = run.section("model.network", command or run.command("evaluate", "--trust"))
    data = run.config.data
    options: dict[str, Any] = {
        "classes": list(class_names(data)),
        "resolution": data.get("resolution", 28),
    }
    with torch.device("meta"):  # which takes no memory, however large the network
        probe = Classifier(section, **options)
        load_weights(probe, content, path, assign=True)
    classifier = Classifier(section, **options)
    load_weights(classifier, content, path)
    return classifier.eval()


def load_weights(
    classifier: Classifier, content: dict[str, Any], path: Path, *, assign: bool = False
) -> None:
    """Load a checkpoint's network weights into a classifier.

    Args:
        classifier: whose weights are replaced.
        content: of the checkpoint.
        path: of the checkpoint, for messages.
        assign: as of `nn.Module.load_state_dict`.

    Raises:
        UserError: they are of another network.
    """
    own = {key for key in classifier.state_dict() if key.startswith("network.")}
    try:
        given = content["state_dict"].items()
        weights = {key: value for key, value in given if key.startswith("network.")}
        if own != set(weights):
            other = sorted(own ^ set(weights))
            raise RuntimeError(f"another network's: {', '.join(other[:3])}")  # noqa: TRY301
        classifier.load_state_dict(weights, strict=False, assign=assign)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold this run's weights: {error}") from error


@torch.inference_mode()
def predict_probabilities(
    classifier: Classifier, images: Num[Tensor, "n 28 28"]
) -> Float[Tensor, "n classes"]:
    """Return probabilities of raw images, 0..255, in their order, on the CPU.

    Sets the classifier to evaluation mode.

    Raises:
        UserError: they are not finite, because weights are not finite or too large.
    """
    classifier.eval()
    probabilities = torch.cat(
        [
            classifier(classifier.normalize(part.to(classifier.device))).softmax(1).cpu()
            for part in images.split(EVAL_BATCH_SIZE)
        ]
    )
    if not probabilities.isfinite().all():
        raise UserError("The network's predictions are not numbers: its weights are too large.")
    return probabilities


def penultimate_features(
    classifier: Classifier, images: UInt8[Tensor, "n 28 28"]
) -> Float[Tensor, "n features"] | None:
    """Return the input of the last `nn.Linear` that is called, or None if there is none."""
    given: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        for layer in classifier.network.modules()
        if isinstance(layer, nn.Linear)
    ]
    features = []
    with torch.inference_mode():
        for part in images.split(EVAL_BATCH_SIZE):
            given.clear()
            classifier(part)
            features += [layer.flatten(1) for layer in given[-1:]]
    for hook in hooks:
        hook.remove()
    return torch.cat(features) if features else None
