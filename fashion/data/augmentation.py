"""Augmentation: raw pictures in, as many changed ones out; a whole batch at once, on its device."""

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn import functional

from fashion.config import NonNegativeInt, Pixels


class Augmentation(nn.Module):
    """Mirrors, shifts and erases; the identity in evaluation.

    It works on bytes, before normalisation makes four of each: three passes over a few hundred
    kilobytes a batch. What is drawn comes from torch's global generator, so that it is a function
    of (seed, epoch) as long as that is seeded at each epoch's start.

    Args:
        epochs: how many there are in all: what exceeds `whole` is erased, so that a short training
            learns from whole pictures and a long one does not learn them by heart.
        shift: greatest distance, in pixels, by which a picture is moved along each axis; every
            whole distance is as likely. Black comes in at the edges.
        mirror: whether to mirror left and right, one half of the pictures in even epochs and the
            other in odd ones: two epochs see every picture both ways, where fresh draws would show
            half of them the same way twice (KellerJordan/cifar10-airbench).
        erase: side, in pixels, of the black square laid over a picture, its centre anywhere in it
            (Zhong et al. 2020, DeVries and Taylor 2017); 0 for none.
        whole: for how many epochs' worth each picture stays without the square, on average.
    """

    def __init__(
        self,
        epochs: int,
        *,
        translate: Pixels,
        hflip: bool,
        erase: Pixels,
        clean_epochs: NonNegativeInt,
    ) -> None:
        super().__init__()
        self.translate, self.hflip, self.erase = translate, hflip, erase
        self.erased_fraction = max(0.0, 1 - clean_epochs / epochs)

    def forward(
        self, images: UInt8[Tensor, "batch 28 28"], epoch: int
    ) -> UInt8[Tensor, "batch 28 28"]:
        """The pictures as this epoch, counted from 0, shows them."""
        if self.training:
            if self.hflip:
                images = alternating_hflip(images, epoch)
            if self.translate:
                images = random_translation(images, self.translate)
            if self.erase and self.erased_fraction:
                images = random_erasing(images, self.erase, self.erased_fraction)
        return images


def alternating_hflip(images: UInt8[Tensor, "batch h w"], epoch: int) -> UInt8[Tensor, "batch h w"]:
    """Every other epoch each picture mirrored; which epochs, the parity of its pixels' sum says.

    That is as good as a coin thrown once for each picture, and asks for no record of the throws;
    and mirroring does not change it.
    """
    turned = (images.sum((1, 2)) + epoch) % 2 == 1
    return torch.where(turned[:, None, None], images.flip(2), images)


def random_translation(images: UInt8[Tensor, "batch h w"], most: int) -> UInt8[Tensor, "batch h w"]:
    """Each picture moved by -most..most whole pixels along both axes."""
    count, height, width = images.shape
    # Every place that a picture can be cut out at, as a view: nothing is copied but what is chosen.
    windows = functional.pad(images, (most,) * 4).unfold(1, height, 1).unfold(2, width, 1)
    y, x = torch.randint(2 * most + 1, (2, count), device=images.device)
    return windows[torch.arange(count, device=images.device), y, x]


def random_erasing(
    images: UInt8[Tensor, "batch h w"], side: int, share: float
) -> UInt8[Tensor, "batch h w"]:
    """A black square on a `share` of the pictures; it may hang over the edge."""
    count, device = len(images), images.device

    def within(size: int) -> Tensor:
        first = torch.randint(size, (count, 1), device=device) - side // 2
        places = torch.arange(size, device=device)
        return (places >= first) & (places < first + side)

    rows, columns = within(images.shape[1]), within(images.shape[2])
    chosen = torch.rand(count, 1, device=device) < share
    return images.masked_fill((rows & chosen)[:, :, None] & columns[:, None, :], 0)
