"""TensorBoard beside the curves: HPARAMS, graph, images, PR curves, projector.

Written once, from the reported checkpoint, because writing it every epoch takes too long.
"""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fashion.config import OWN_METRICS, walk
from fashion.data.datamodule import MEAN, STD, FashionMNIST
from fashion.report.evaluation import Evaluation
from fashion.report.metrics import user_metrics
from fashion.training.classifier import Classifier, penultimate_features
from fashion.training.process import Fit

PROJECTED = 2000  # images in the projector
AUGMENTED = 64  # training images shown as the network sees them
# TensorBoard sorts hyperparameters by name, capitals first, and opens on the first five.
FIRST = {
    "data.batch_size": "Batch size",
    "trainer.max_epochs": "Epochs",
    "name": "Model",
    "optimizer.lr": "Learning rate",
}
# Other sections and keys that are shown, without the prefixes model.network. and optimizer.
VARIED = (
    *("model.network", "optimizer", "scheduler", "augmentation", "loss"),
    *("trainer.precision", "seed"),
)
# TensorBoard sorts groups of charts by name: single values come after the curves.
REPORTED = "values_reported"


def write_results(fit: Fit, metrics: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> None:
    """Write all of this module's content, if the run has a TensorBoard logger.

    Args:
        fit: the finished training.
        metrics: metrics.json's content.
        evaluations: of its classifier.
    """
    logger = fit.tensorboard
    if logger is None:
        return
    # After the last checkpoint's step: if the run is killed here, EventLogger drops this on resume.
    step = fit.trainer.global_step + 1
    shown = [name for name in OWN_METRICS if not name.endswith(("_low", "_high"))]
    reported = {
        f"{REPORTED}/{each.split}/{name}": metrics[f"{each.split}/{name}"]
        for each in evaluations
        for name in (*shown, *user_metrics(metrics, each.split))
        if f"{each.split}/{name}" in metrics
    }
    reported |= {
        f"{REPORTED}/{key}": float(metrics[key]) for key in ("seconds", "images_per_second")
    }
    logger.log_hyperparams(hyperparameters(fit.run.config), reported, step=step)
    writer: SummaryWriter = logger.experiment
    writer.add_custom_scalars(
        {
            "training and validation": {
                name: ["Multiline", [f"train/{name}$", f"val/{name}$"]] for name in ("acc", "loss")
            }
        }
    )
    if not fit.run.config.get("compile"):  # a compiled network cannot be traced
        write_graph(writer, fit.classifier.network)
    write_training_images(writer, step, fit.data)
    for evaluation in evaluations:
        write_evaluation(writer, step, fit.classifier, evaluation)
    writer.close()  # Lightning has closed the one before, of training; each has a thread


def hyperparameters(config: DictConfig) -> dict[str, Any]:
    """Return the hyperparameters as flat keys, without `_target_` and values that are off."""
    nodes = dict(walk(OmegaConf.to_container(config)))
    found: dict[str, Any] = {name: nodes[key] for key, name in FIRST.items() if key in nodes}
    found["Optimizer"] = str(nodes["optimizer._target_"]).rpartition(".")[2]
    lists = tuple(f"{key}." for key, node in nodes.items() if isinstance(node, list))
    for key, node in nodes.items():
        varied = any(f"{key}.".startswith(f"{section}.") for section in VARIED)
        name = key.rpartition(".")[2]
        off = node is None or node is False or (node == 0 and key != "seed")
        if (
            varied
            and not (off or isinstance(node, dict))
            and not key.startswith(lists)
            and not name.startswith("_")
            and key not in FIRST
        ):
            shown = key.removeprefix("model.network.").removeprefix("optimizer.")
            found[shown] = str(node) if isinstance(node, list) else node
    return found


def write_graph(writer: SummaryWriter, network: nn.Module) -> None:
    """Write the network's graph; if it cannot be traced, torch prints why and there is none."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        # torch's writer traces by deprecated functions, and tracing warns about checks of shapes.
        warnings.simplefilter("ignore")
        writer.add_graph(network, torch.zeros(1, 1, 28, 28))
    writer.flush()


def write_training_images(writer: SummaryWriter, step: int, data: FashionMNIST) -> None:
    """Write a grid of the first epoch's first training images, augmented."""
    from torchvision.utils import make_grid

    with torch.random.fork_rng(devices=[]):
        images = next(iter(data.train_dataloader()))[0][:AUGMENTED].cpu()
    grid = make_grid(1 - (images * STD + MEAN).clamp(0, 1), nrow=8, pad_value=1)
    writer.add_image("train/images", grid, step)


def write_evaluation(
    writer: SummaryWriter, step: int, classifier: Classifier, evaluation: Evaluation
) -> None:
    """Write a split's confusion matrix, mistakes and PR curves; for "val" also the projector.

    Args:
        writer: of the run's folder.
        step: global step under which everything is written.
        classifier: in evaluation mode, on the CPU.
        evaluation: of the classifier.
    """
    split, classes = evaluation.split, evaluation.classes
    for name, png in evaluation.pngs.items():
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.array(image.convert("RGB"))
        writer.add_image(f"{split}/{name}", pixels, step, dataformats="HWC")
    for label, name in enumerate(classes):
        writer.add_pr_curve(
            f"{split}/{name}", evaluation.labels == label, evaluation.probabilities[:, label], step
        )
    shown = torch.from_numpy(evaluation.images[:PROJECTED])
    features = penultimate_features(classifier, shown) if split == "val" else None
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
