"""TensorBoard beside the curves: graph, confusion matrix, mistakes, PR curves, projector.

Written once, from the reported checkpoint: per epoch it would cost more than it shows.
"""

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fashion.config import walk
from fashion.data.datamodule import MEAN, STD, FashionMNIST
from fashion.report import figures
from fashion.report.evaluation import Evaluation
from fashion.training.classifier import penultimate_features
from fashion.training.process import Fit

PROJECTED = 2000  # images in the projector
AUGMENTED = 64  # training images shown as the network sees them
# What HPARAMS lists of a configuration: what people vary.
VARIED = (
    *("name", "seed", "data.batch_size", "loss.label_smoothing", "trainer.precision"),
    *("optimizer.lr", "optimizer.weight_decay", "optimizer.schedule", "optimizer.warmup"),
)


def write_results(
    fitted: Fit, metrics: Mapping[str, Any], evaluations: Sequence[Evaluation]
) -> None:
    """Write what TensorBoard shows beside the curves; nothing without its logger.

    Args:
        fitted: the finished training.
        metrics: what metrics.json will hold.
        evaluations: of the reported checkpoint.
    """
    logger = fitted.tensorboard
    if logger is None:
        return
    # One step later than the last checkpoint: a run killed here and resumed drops it.
    step = fitted.trainer.global_step + 1
    logger.log_hyperparams(_varied(fitted.run.config), _reported(metrics), step=step)
    writer, network = logger.experiment, fitted.classifier.network
    if not fitted.run.config.compile:  # which cannot be traced
        write_graph(writer, network)
    write_augmented(writer, step, fitted.data)
    for evaluation in evaluations:
        if evaluation.split == "val":
            write_evaluation(writer, step, network, evaluation)
    writer.close()  # Lightning has closed the one before, of training; each has a thread


def _varied(config: DictConfig) -> dict[str, Any]:
    """Return the hyperparameters that people vary: those above, the network's, augmentation on."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    leaves = {key: value for key, value in walk(plain) if not isinstance(value, dict)}
    found = {key: leaves[key] for key in VARIED if key in leaves}
    found["optimizer"] = str(plain["optimizer"]["_target_"]).rpartition(".")[2]
    for key, value in leaves.items():
        group, _, name = key.rpartition(".")
        if name == "_target_" or value in (None, False, 0):
            continue
        if group in ("model.network", "augmentation"):
            found[name if group == "model.network" else key] = value
    return {key: str(value) if isinstance(value, list) else value for key, value in found.items()}


def _reported(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics without those of single classes, accuracy first: HPARAMS shows five."""
    return {
        key: value
        for key, value in sorted(metrics.items(), key=lambda item: "/" not in item[0])
        if isinstance(value, float) and key.count("/") <= 1
    }


def write_augmented(writer: SummaryWriter, step: int, data: Any) -> None:
    """Write a grid of training images as the network sees them, augmented as in the first epoch."""
    if getattr(data, "augmentation", None) is None or not isinstance(data, FashionMNIST):
        return
    with torch.random.fork_rng(devices=[]):
        images, _ = next(iter(data.train_dataloader()))
    shown = (images[:AUGMENTED] * STD + MEAN).clamp(0, 1)
    writer.add_images("train/augmented", shown, step)


def write_graph(writer: SummaryWriter, network: nn.Module) -> None:
    """Write the network's graph; if it cannot be traced, torch prints why and there is none."""
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
        # torch's writer traces by deprecated functions, and tracing warns of looks at a shape.
        warnings.simplefilter("ignore")
        writer.add_graph(network, torch.zeros(1, 1, 28, 28))
    writer.flush()


def write_evaluation(
    writer: SummaryWriter, step: int, network: nn.Module, evaluation: Evaluation
) -> None:
    """Write a split's confusion matrix, mistakes, PR curves and penultimate features.

    Args:
        writer: into the run's folder.
        step: of the training, under which TensorBoard shows all of it.
        network: in evaluation mode, on the CPU.
        evaluation: of the network.
    """
    split, classes = evaluation.split, evaluation.classes
    matrix = figures.confusion_matrix(evaluation.counts, classes)
    writer.add_figure(f"{split}/confusion_matrix", matrix, step)
    writer.add_figure(f"{split}/mistakes", figures.mistakes(evaluation), step)
    for label, name in enumerate(classes):
        writer.add_pr_curve(
            f"{split}/{name}", evaluation.labels == label, evaluation.probabilities[:, label], step
        )
    shown = torch.from_numpy(evaluation.images[:PROJECTED])
    features = penultimate_features(network, shown)
    if features is not None:
        # torch prints a warning if the folder exists, as it does when a killed run is resumed.
        with contextlib.redirect_stdout(None):
            writer.add_embedding(
                features.double().numpy().round(3),  # each digit costs a quarter of a megabyte
                [
                    [classes[label], classes[predicted]]
                    for label, predicted in zip(
                        evaluation.labels[:PROJECTED],
                        evaluation.predicted[:PROJECTED],
                        strict=True,
                    )
                ],
                1 - shown.unsqueeze(1).float() / 255,  # dark on light, as the page is
                tag="penultimate_features",
                metadata_header=["true", "predicted"],
            )
    writer.flush()
