"""What TensorBoard shows of a run beside its curves: pictures, PR curves, graph, projector.

Written once, from the checkpoint that is reported: each epoch it would cost more than it tells.
"""

import contextlib
import warnings

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from fashion.data.datamodule import CLASSES, EVAL_BATCH_SIZE, ImageSet, normalize
from fashion.report import figures, metrics
from fashion.runs.run import Predictions

PROJECTED = 2000  # pictures in the projector


def write_graph(writer: SummaryWriter, network: nn.Module) -> None:
    """The network's graph; of one that cannot be traced there is none, and torch prints why."""
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
        # torch's writer traces by what torch has deprecated, and a trace warns of looks at a shape.
        warnings.simplefilter("ignore")
        writer.add_graph(network, torch.zeros(1, 1, 28, 28))
    writer.flush()


def write_review(
    writer: SummaryWriter,
    step: int,
    network: nn.Module,
    predictions: Predictions,
    pictures: ImageSet,
) -> None:
    """The validation split's confusion matrix, mistakes, PR curves, and last layer but one.

    Args:
        writer: into the run's folder.
        step: of the training, under which TensorBoard shows all of it.
        network: in evaluation mode, on the CPU.
        predictions: what it answered to `pictures`.
        pictures: the validation split.
    """
    labels, probabilities = predictions
    counts = metrics.confusion(labels, probabilities)
    writer.add_figure("val/confusion_matrix", figures.confusion_matrix(counts), step)
    gallery = figures.mistakes(pictures.images.numpy(), labels, probabilities)
    writer.add_figure("val/mistakes", gallery, step)
    for label, name in enumerate(CLASSES):
        writer.add_pr_curve(f"val/{name}", labels == label, probabilities[:, label], step)
    shown = pictures.images[:PROJECTED]
    features = last_features(network, shown)
    if features is not None:
        answers = probabilities.argmax(axis=1)
        # Where a run was killed in here and continues, it would warn of the folder.
        with contextlib.redirect_stdout(None):
            writer.add_embedding(
                features.double().numpy().round(3),  # each digit costs a quarter of a megabyte
                [
                    [CLASSES[label], CLASSES[answer]]
                    for label, answer in zip(labels[:PROJECTED], answers, strict=False)
                ],
                1 - shown.unsqueeze(1).float() / 255,  # dark on light, as the page is
                tag="last_layer_but_one",
                metadata_header=["class", "answer"],
            )
    writer.flush()


@torch.inference_mode()
def last_features(
    network: nn.Module, images: UInt8[Tensor, "n 28 28"]
) -> Float[Tensor, "n features"] | None:
    """What the last linear layer to work is given; None where the network has none."""
    given: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    features = []
    for part in images.split(EVAL_BATCH_SIZE):
        given.clear()
        network(normalize(part))
        features += [layer.flatten(1) for layer in given[-1:]]
    for hook in hooks:
        hook.remove()
    return torch.cat(features) if features else None
