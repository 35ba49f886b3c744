"""A network with many options, and CutMix: a user's own module, outside fashion/."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fashion.training.networks import ResNet

# Kernel, stride, and whether a maximum over 2 x 2 pixels follows.
STEMS = {
    "conv3": (3, 1, False),
    "conv3pool": (3, 1, True),
    "conv5pool": (5, 1, True),
    "conv3s2": (3, 2, False),
    "conv4s2": (4, 2, False),
    "conv6s2": (6, 2, False),
}
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "hardswish": nn.Hardswish}
POOLS = {"max": nn.AdaptiveMaxPool2d(1), "avg": nn.AdaptiveAvgPool2d(1), "flat": nn.Identity()}


class StagedNet(nn.Sequential):
    """A stem, stages that each halve the image, pooling and one linear layer.

    Args:
        num_classes: number of logits.
        stem: a key of STEMS, or "white": the fixed whitening layer of fashion's ResNet.
        stem_width: channels of the stem.
        widths: channels of each stage.
        depths: convolutions of each stage, after the one that halves.
        down: how a stage halves: "convpool", "poolconv" or "stride".
        residual: whether these convolutions are a residual branch.
        squeeze: whether squeeze-excitation follows them (Hu et al. 2018).
        activation: a key of ACTIVATIONS.
        pool: "max" or "avg" over the positions, or "flat": a weight for each of them.
        dropout: fraction of the features dropped before the linear layer.
    """

    def __init__(
        self,
        num_classes: int = 10,
        stem: str = "white",
        stem_width: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (1, 1, 1),
        down: str = "convpool",
        residual: bool = False,
        squeeze: bool = False,
        activation: str = "relu",
        pool: str = "max",
        dropout: float = 0.0,
    ) -> None:
        act = ACTIVATIONS[activation]
        if stem == "white":
            first, channels = ResNet(widths=[1])[0], 8
        else:
            kernel, stride, pooled = STEMS[stem]
            channels = stem_width
            first = nn.Sequential(
                nn.Conv2d(1, channels, kernel, stride, (kernel - 1) // 2, bias=False),
                nn.MaxPool2d(2) if pooled else nn.Identity(),
                nn.BatchNorm2d(channels),
                act(),
            )
        layers: list[nn.Module] = [first]
        for width, depth in zip(widths, depths, strict=True):
            layers.append(Stage(channels, width, depth, down, residual, squeeze, act))
            channels = width
        body = nn.Sequential(*layers, POOLS[pool], nn.Flatten()).eval()
        features = body(torch.zeros(1, 1, 28, 28)).shape[1]
        super().__init__(*body.train(), nn.Dropout(dropout), nn.Linear(features, num_classes))


class Stage(nn.Module):
    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        down: str,
        residual: bool,
        squeeze: bool,
        act: type[nn.Module],
    ) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        halve = {
            "convpool": [convolution(channels, width), pool],
            "poolconv": [pool, convolution(channels, width)],
            "stride": [convolution(channels, width, stride=2)],
        }[down]
        self.first = nn.Sequential(*halve, nn.BatchNorm2d(width), act())
        rest: list[nn.Module] = []
        for _ in range(depth):
            rest += [convolution(width, width), nn.BatchNorm2d(width), act()]
        self.residual = residual and depth > 0
        self.rest = nn.Sequential(*(rest[:-1] if self.residual else rest))
        if squeeze:
            self.rest.append(Squeeze(width))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.act(x + self.rest(x)) if self.residual else self.rest(x)


class Squeeze(nn.Module):
    """Squeeze-excitation: a factor of 0..2 for each channel, from the channels' means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width // 4), nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.outer(self.inner(x.mean((2, 3))).relu()).sigmoid()
        return x * 2 * factor[:, :, None, None]


def convolution(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution that at first passes each channel through."""
    layer = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:channels])
    return layer


class CutMix:
    """CutMix (Yun et al. 2019) of a fraction of the batches: a box of each image from another one.

    Args:
        probability: fraction of the batches that are mixed.
        clean_epochs: epochs at the end without it.
        num_classes: number of classes; targets are probabilities.
    """

    def __init__(
        self, probability: float = 0.5, clean_epochs: int = 0, num_classes: int = 10
    ) -> None:
        self.probability, self.clean_epochs = probability, clean_epochs
        self.num_classes = num_classes
        self.active = True

    def set_epoch(self, epoch: int, epochs: int) -> None:
        self.active = epoch < epochs - self.clean_epochs

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        targets = functional.one_hot(labels, self.num_classes).float()
        if not self.active or torch.rand(()) >= self.probability:
            return images, targets
        size = images.shape[1]
        side = int(size * torch.rand(()).sqrt())
        y, x = (torch.randint(size, (2,)) - side // 2).tolist()
        rows, columns = slice(max(y, 0), y + side), slice(max(x, 0), x + side)
        order = torch.randperm(len(images))
        mixed = images.clone()
        mixed[:, rows, columns] = images[order, rows, columns]
        fraction = images[0, rows, columns].numel() / size**2
        return mixed, (1 - fraction) * targets + fraction * targets[order]
