"""Ideas for long trainings of `experiment=fast`: augmentations and a network.

Augmentations take and return a batch: uint8 images (batch, 28, 28) and labels (batch,).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.exploration.exploration import Residual, StagedNet


class Ending:
    """What is left out in the last `clean_epochs` epochs."""

    def __init__(self, clean_epochs: int) -> None:
        self.clean_epochs = clean_epochs
        self.active = True

    def set_epoch(self, epoch: int, epochs: int) -> None:
        self.active = epochs < 1 or epoch < epochs - self.clean_epochs


class Rectangles(Ending):
    """Random erasing (Zhong et al. 2020): rectangles of random size, shape and place, in black.

    Args:
        probability: with which an image gets each of them.
        count: rectangles.
        largest: greatest fraction of the image's area; the smallest is 0.02.
        ratio: greatest ratio of the sides.
        clean_epochs: epochs at the end without them.
    """

    def __init__(
        self,
        *,
        probability: float = 0.5,
        count: int = 1,
        largest: float = 0.4,
        ratio: float = 3.0,
        clean_epochs: int = 0,
    ) -> None:
        super().__init__(clean_epochs)
        self.probability, self.count = probability, count
        self.largest, self.ratio = largest, ratio

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.count if self.active else 0):
            (count, size), device = images.shape[:2], images.device
            area = size**2 * torch.empty(count, device=device).uniform_(0.02, self.largest)
            bound = math.log(self.ratio)
            stretch = torch.empty(count, device=device).uniform_(-bound, bound).exp().sqrt()
            height, width = area.sqrt() * stretch, area.sqrt() / stretch
            erased = boxes(size, height, width)
            chosen = torch.rand(count, device=device) < self.probability
            images = images.masked_fill(erased & chosen[:, None, None], 0)
        return images, labels


class Mixup(Ending):
    """Mixup (Zhang et al. 2018), each image with its own partner and fraction.

    Args:
        probability: fraction of the images that are mixed.
        alpha: of the Beta distribution of the partner's fraction; 1 is uniform.
        clean_epochs: epochs at the end without it.
        num_classes: number of classes; targets are probabilities.
    """

    def __init__(
        self,
        *,
        probability: float = 0.5,
        alpha: float = 0.4,
        clean_epochs: int = 0,
        num_classes: int = 10,
    ) -> None:
        super().__init__(clean_epochs)
        self.probability, self.alpha = probability, alpha
        self.num_classes = num_classes

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        targets = functional.one_hot(labels, self.num_classes).float()
        if not self.active:
            return images, targets
        count, device = len(images), images.device
        order = torch.randperm(count, device=device)
        concentrations = torch.full((count, 2), self.alpha, device=device)
        fraction = torch._sample_dirichlet(concentrations)[:, :1]  # noqa: SLF001
        fraction *= torch.rand(count, 1, device=device) < self.probability
        mixed = torch.lerp(images.float(), images[order].float(), fraction[..., None])
        return mixed, torch.lerp(targets, targets[order], fraction)


def boxes(size: int, height: Tensor, width: Tensor) -> Tensor:
    """Return masks (n, size, size) of boxes at random places within the image."""

    def line(length: Tensor) -> Tensor:
        length = length.round().clamp(max=size)
        first = (torch.rand(len(length), device=length.device) * (size - length + 1)).floor()
        pixels = torch.arange(size, device=length.device)
        return (pixels >= first[:, None]) & (pixels < (first + length)[:, None])

    return line(height)[:, :, None] & line(width)[:, None, :]


class Affine:
    """Rotates and stretches each image by a little, with linear interpolation.

    Args:
        degrees: greatest rotation.
        scale: greatest relative change of each side.
    """

    def __init__(self, *, degrees: float = 5.0, scale: float = 0.1) -> None:
        self.degrees, self.scale = degrees, scale

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        count, device = len(images), images.device
        angle = torch.empty(count, device=device).uniform_(-self.degrees, self.degrees).deg2rad()
        sides = 1 + torch.empty(2, count, device=device).uniform_(-self.scale, self.scale)
        zero = torch.zeros(count, device=device)
        rows = [
            torch.stack([angle.cos() * sides[0], -angle.sin() * sides[0], zero], 1),
            torch.stack([angle.sin() * sides[1], angle.cos() * sides[1], zero], 1),
        ]
        grid = functional.affine_grid(
            torch.stack(rows, 1), [count, 1, *images.shape[1:]], align_corners=False
        )
        moved = functional.grid_sample(images[:, None].float(), grid, align_corners=False)
        return moved[:, 0], labels


class DropPathNet(StagedNet):
    """StagedNet whose residual branches are left out at random (Huang et al. 2016).

    Args:
        drop_path: fraction of the images for which a branch is left out in training.
        options: of StagedNet.
    """

    def __init__(self, num_classes: int = 10, *, drop_path: float = 0.1, **options: Any) -> None:
        super().__init__(num_classes, residual=True, **options)
        for name, layer in self.named_children():
            if isinstance(layer, Residual):
                setattr(self, name, _DropPath(layer, drop_path))


class _DropPath(nn.Module):
    def __init__(self, branch: Residual, fraction: float) -> None:
        super().__init__()
        self.branch, self.fraction = branch, fraction

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        if not self.training or not self.fraction:
            return y
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.fraction
        return x + (y - x) * kept / (1 - self.fraction)
