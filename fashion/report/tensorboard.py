"""TensorBoard beside the curves: graph, confusion matrix, mistakes, PR curves, projector.

Written once, from the reported checkpoint: per epoch it would cost more than it shows.
"""

import contextlib
import warnings

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fashion.report import figures
from fashion.report.evaluation import Evaluation
from fashion.training.classifier import penultimate_features

PROJECTED = 2000  # images in the projector


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
