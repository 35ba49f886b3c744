"""Augmentation of training images: batches of uint8 images, on their device.

An augmentation is any callable (images, labels) -> (images, labels):

    images   uint8 (batch, 28, 28), 0..255; returned as uint8 or as floats of that range
    labels   int64 (batch,); returned as such or as probabilities (batch, classes), as by CutMix

Randomness comes from torch's global generator, which is seeded at the start of each epoch, so that
an epoch's augmentation is a function of (seed, epoch). If an augmentation has a method
`set_epoch(epoch, epochs)`, it is called before each epoch. torchvision's v2 transforms can be used
directly (`per_image`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from fashion.config import NonNegativeInt, Pixels, PositiveInt, Share
from fashion.errors import UserError

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Augmentation:
    """Horizontal flips, translations, random erasing and CutMix, in this order.

    Args:
        hflip: whether to flip left and right, one half of the images in even epochs and the other
            in odd ones (alternating flip; Jordan 2024, KellerJordan/cifar10-airbench).
        translate: greatest distance in pixels by which an image is moved along each axis; all
            whole distances are equally likely. Black comes in at the edges.
        erase: side in pixels of the black square laid over an image, its center anywhere in it
            (cutout; DeVries and Taylor 2017, Zhong et al. 2020); 0 for none.
        cutmix: fraction of the images, 0 to 1, over which a box of another one is laid, their
            labels being mixed by area (CutMix; Yun et al. 2019).
        clean_epochs: number of epochs without erasing and CutMix, so that only a long training,
            which would memorize the images, changes many of them. Of E epochs, the last
            `clean_epochs` are without CutMix; erasing is spread instead: throughout, each image
            is erased with probability max(0, 1 - clean_epochs / E).
        num_classes: number of classes; with CutMix, labels become probabilities of them. It
            follows from the data unless it is given.
    """

    def __init__(
        self,
        *,
        hflip: bool = False,
        translate: Pixels = 0,
        erase: Pixels = 0,
        cutmix: Share = 0.0,
        clean_epochs: NonNegativeInt = 0,
        num_classes: PositiveInt = 10,
    ) -> None:
        self.hflip, self.translate, self.erase = hflip, translate, erase
        self.cutmix, self.num_classes = cutmix, num_classes
        self.clean_epochs = clean_epochs
        self.epoch = 0
        self.erased_fraction = 0.0
        self.mixes = False

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Prepare for `epoch` (from 0) of `epochs`; -1 if their number is not known.

        Raises:
            UserError: the number of epochs is needed and not known.
        """
        if epochs < 1 and self.clean_epochs and (self.erase or self.cutmix):
            raise UserError(
                f"augmentation.clean_epochs = {self.clean_epochs}: which images are erased or "
                "mixed follows from trainer.max_epochs, which must be set."
            )
        self.epoch = epoch
        self.erased_fraction = max(0.0, 1 - self.clean_epochs / epochs) if epochs > 0 else 1.0
        self.mixes = epochs < 1 or epoch < epochs - self.clean_epochs

    def __call__(
        self, images: UInt8[Tensor, "batch 28 28"], labels: Int64[Tensor, " batch"]
    ) -> tuple[UInt8[Tensor, "batch 28 28"], Tensor]:
        if self.hflip:
            images = alternating_hflip(images, self.epoch)
        if self.translate:
            images = random_translation(images, self.translate)
        if self.erase and self.erased_fraction:
            images = random_erasing(images, self.erase, self.erased_fraction)
        if self.cutmix and self.mixes:
            return cutmix(images, labels, self.cutmix, self.num_classes)
        return images, labels


class Chain:
    """Augmentations one after the other.

    Args:
        steps: augmentations (see this module's docstring) or torchvision v2 transforms.
    """

    def __init__(self, *, steps: list[Any]) -> None:
        self.steps = [per_image(step) for step in steps]

    def set_epoch(self, epoch: int, epochs: int) -> None:
        for step in self.steps:
            if hasattr(step, "set_epoch"):
                step.set_epoch(epoch, epochs)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for step in self.steps:
            images, labels = step(images, labels)
        return images, labels


def per_image(augmentation: Any) -> Augment:
    """Adapt a torchvision transform; other augmentations are returned as they are.

    A torchvision transform draws its parameters once per call, so it is applied to each image
    separately; CutMix and MixUp, which mix the images of a batch, are applied to the batch.
    """
    from torchvision.transforms import v2

    if isinstance(augmentation, v2.CutMix | v2.MixUp):

        def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            mixture, targets = augmentation(images.unsqueeze(1).float(), labels)
            return mixture.squeeze(1), targets

        return mixed
    if isinstance(augmentation, v2.Transform):

        def each(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            changed: Sequence[Tensor] = [augmentation(image) for image in images.unsqueeze(1)]
            return torch.stack(list(changed)).squeeze(1), labels

        return each
    return augmentation  # type: ignore[no-any-return]


def alternating_hflip(images: UInt8[Tensor, "batch h w"], epoch: int) -> UInt8[Tensor, "batch h w"]:
    """Flip each image every other epoch; the parity of the pixel sum decides which.

    So no state per image is needed, and two epochs show every image both ways, where independent
    draws would show half of them the same way twice (Jordan 2024).
    """
    flipped = (images.sum((1, 2)) + epoch) % 2 == 1
    return torch.where(flipped[:, None, None], images.flip(2), images)


def random_translation(images: UInt8[Tensor, "batch h w"], most: int) -> UInt8[Tensor, "batch h w"]:
    """Translate each image by -most..most whole pixels along each axis; black enters."""
    count, height, width = images.shape
    # A view of the crops at all offsets: only the chosen crops are copied.
    windows = functional.pad(images, (most,) * 4).unfold(1, height, 1).unfold(2, width, 1)
    y, x = torch.randint(2 * most + 1, (2, count), device=images.device)
    return windows[torch.arange(count, device=images.device), y, x]


def random_erasing(
    images: UInt8[Tensor, "batch h w"], side: int, fraction: float
) -> UInt8[Tensor, "batch h w"]:
    """Set a random square to black, in each image with probability `fraction`.

    The square is `side` pixels wide; its center is uniform over the image, so an edge may cut it.
    """
    count, device = len(images), images.device

    def within(size: int) -> Tensor:
        first = torch.randint(size, (count, 1), device=device) - side // 2
        positions = torch.arange(size, device=device)
        return (positions >= first) & (positions < first + side)

    rows, columns = within(images.shape[1]), within(images.shape[2])
    chosen = torch.rand(count, 1, device=device) < fraction
    return images.masked_fill((rows & chosen)[:, :, None] & columns[:, None, :], 0)


def cutmix(
    images: UInt8[Tensor, "batch h w"],
    labels: Int64[Tensor, " batch"],
    fraction: float,
    num_classes: int,
) -> tuple[UInt8[Tensor, "batch h w"], Float[Tensor, "batch num_classes"]]:
    """Lay a box of another image over a `fraction` of the images; mix their labels by area.

    Each image has a partner and a box of its own, where torchvision's CutMix draws one box for a
    whole batch. The area of the box is uniform, its sides have the image's proportions, and its
    center is uniform over the image, so an edge may cut it. `fraction` is 0 to 1, labels are 0 to
    num_classes - 1.
    """
    (count, height, width), device = images.shape, images.device
    scale = torch.rand(count, 1, device=device).sqrt()
    scale *= torch.rand(count, 1, device=device) < fraction

    def within(size: int) -> Tensor:
        side = (size * scale).round()
        first = (size * torch.rand(count, 1, device=device) - side / 2).round()
        positions = torch.arange(size, device=device)
        return (positions >= first) & (positions < first + side)

    box = within(height)[:, :, None] & within(width)[:, None, :]
    partner = torch.randperm(count, device=device)
    area = box.float().mean((1, 2))[:, None]
    targets = functional.one_hot(labels, num_classes).float()
    return torch.where(box, images[partner], images), targets.lerp(targets[partner], area)
