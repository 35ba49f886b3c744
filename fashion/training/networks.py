"""Networks: normalized images (batch, 1, 28, 28) -> logits (batch, classes). No Lightning."""

import functools
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from fashion.config import Activation, Fraction, PositiveInt
from fashion.errors import UserError

IMAGE_SIZE = 28
MONOTONE = ("relu", "leaky_relu", "elu")


class ConvNet(nn.Sequential):
    """Convolutions, then dense layers, from softmax regression to conf/model/best.yaml.

    Args:
        num_classes: number of logits.
        conv: filters of each convolution (stride 1, no padding); [] for none.
        kernel_size: side of each convolution's kernel.
        pool: side of the max-pooling window after each convolution; 1 for none.
        dense: units of each dense layer; [] for none.
        conv_activation: after each convolution.
        dense_activation: after each dense layer.
        negative_slope: of leaky_relu below zero.
        dropout: fraction of units dropped after each dense layer.
        batch_norm: whether to normalize before each activation.

    Raises:
        UserError: the image is too small for a convolution and its pooling.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        conv: list[PositiveInt],
        kernel_size: PositiveInt = 3,
        pool: PositiveInt = 1,
        dense: list[PositiveInt],
        conv_activation: Activation = "leaky_relu",
        dense_activation: Activation = "relu",
        negative_slope: Fraction = 0.05,
        dropout: Fraction = 0.0,
        batch_norm: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        channels, size = 1, IMAGE_SIZE
        for position, filters in enumerate(conv, 1):
            left = (size - kernel_size + 1) // pool
            if left < 1:
                raise UserError(
                    f"conv = {conv}, kernel_size = {kernel_size}, pool = {pool}: layer {position} "
                    f"gets {size} x {size} pixels, too few for its kernel and pooling."
                )
            layers.append(nn.Conv2d(channels, filters, kernel_size, bias=not batch_norm))
            activated: list[nn.Module] = [nn.BatchNorm2d(filters)] if batch_norm else []
            activated.append(_activation(conv_activation, negative_slope))
            pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
            # A maximum and a monotone activation commute: pooling first leaves the activation, and
            # the normalization (then of the maxima only), 1 / pool^2 of the work.
            first = conv_activation in MONOTONE
            layers += [*pooling, *activated] if first else [*activated, *pooling]
            channels, size = filters, left
        layers.append(_Flatten())
        features = channels * size * size
        for units in dense:
            linear = _LargeLinear if features * units >= _LargeLinear.WEIGHTS else nn.Linear
            layers.append(linear(features, units, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(_activation(dense_activation, negative_slope))
            if dropout:
                layers.append(nn.Dropout(dropout))
            features = units
        layers.append(nn.Linear(features, num_classes))
        super().__init__(*layers)


class _Flatten(nn.Module):
    """Flatten to one row per image, channels last as in Keras: a view of a channels-last batch."""

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch features"]:
        return x.permute(0, 2, 3, 1).flatten(1)


class _LargeLinear(nn.Linear):
    """A dense layer that stays in fp32 on a CPU where moving its weights is most of its work.

    In bf16 they would be moved twice more, since their fp32 originals are converted at each step
    and their gradients back. A step of model=best, whose other layers profit from bf16, takes
    13 ms instead of 16 with two threads, and 25 instead of 30 with one.
    """

    WEIGHTS, BATCH = 2**20, 128  # from so many weights, for less than so many images

    def forward(self, x: Tensor) -> Tensor:  # not Float[…], which torch.compile cannot check here
        mixed = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not mixed or len(x) >= self.BATCH:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def _activation(name: Activation, negative_slope: float) -> nn.Module:
    if name == "leaky_relu":
        return nn.LeakyReLU(negative_slope, inplace=True)
    others: dict[str, type[nn.Module]]
    others = {"relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}
    return others[name]()


class ResNet(nn.Sequential):
    """A small residual network made for 28 x 28, in the manner of KellerJordan/cifar10-airbench.

    A whitening layer, stages that each halve the side, and one linear layer. Gains in the comments
    are percentage points of validation accuracy after 6 epochs, from one run each, so uncertain by
    0.2 (results/exploration/).

    Args:
        num_classes: number of logits.
        widths: channels of each stage; with three of them the sides are 27, 13, 6 and 3 pixels.
        depth: convolutions in each stage's residual branch.

    Raises:
        UserError: there are more stages than the side can be halved.
    """

    def __init__(
        self, num_classes: int = 10, *, widths: list[PositiveInt], depth: PositiveInt = 2
    ) -> None:
        whitening = _Whitening()
        layers: list[nn.Module] = [whitening]
        channels, side = len(whitening.bias), IMAGE_SIZE - 1
        for width in widths:
            layers.append(_Stage(channels, width, depth))
            channels, side = width, side // 2
        if side < 1:
            raise UserError(f"widths = {widths}: an image cannot be halved {len(widths)} times.")
        # All positions, because the products are aligned: 0.26 points more than global max pooling.
        super().__init__(*layers, _Flatten(), nn.Linear(channels * side**2, num_classes))


class Ensemble(nn.Module):
    """Several ResNets in one: each learns from its part of every batch; evaluated together.

    An epoch costs as much as one network's, and each network sees an image once in as many epochs
    as there are networks, on average. In evaluation the logits are the logarithms of the networks'
    mean probabilities (deep ensembles; Lakshminarayanan et al. 2017).

    The loss is the mean over the batch, so that each network's gradient is its own mean gradient
    divided by their number; Muon's and Adam's steps hardly depend on that, SGD's do.

    Args:
        num_classes: number of logits.
        members: number of networks.
        widths: of each network (see ResNet).
        depth: of each network.

    Raises:
        UserError: there are more stages than the side can be halved; in training, a batch has
            fewer images than there are networks.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        members: PositiveInt,
        widths: list[PositiveInt],
        depth: PositiveInt = 2,
    ) -> None:
        super().__init__()
        networks = [ResNet(num_classes, widths=widths, depth=depth) for _ in range(members)]
        self.members = nn.ModuleList(networks)

    def forward(self, images: Float[Tensor, "batch 1 h w"]) -> Float[Tensor, "batch classes"]:
        if self.training:
            if len(images) < len(self.members):
                raise UserError(
                    f"A training batch has {len(images)} image(s), fewer than there are networks "
                    f"(model.network.members = {len(self.members)}): change data.batch_size."
                )
            parts = images.tensor_split(len(self.members))
            pairs = zip(self.members, parts, strict=True)
            return torch.cat([network(part) for network, part in pairs])
        each = [network(images).float().log_softmax(1) for network in self.members]
        return torch.stack(each).logsumexp(0) - math.log(len(each))


class _Whitening(nn.Module):
    """Whitening of 2 x 2 pixels: four uncorrelated numbers of unit variance, in both signs.

    The principal components of the normalized training images' 2 x 2 patches are, to within 0.03
    per weight, the Haar basis: the sum, and the horizontal, vertical and diagonal differences, with
    these variances. The kernels are fixed; only a bias is learned.
    """

    COMPONENTS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))
    VARIANCES = (3.591, 0.3165, 0.2002, 0.0411)

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        unit = torch.tensor(self.COMPONENTS) / 2
        kernel = unit / torch.tensor(self.VARIANCES).sqrt()[:, None]
        self.register_buffer("kernel", torch.cat([kernel, -kernel]).view(-1, 1, 2, 2))
        self.bias = nn.Parameter(torch.zeros(len(self.kernel)))

    def forward(
        self, x: Float[Tensor, "batch 1 h w"]
    ) -> Float[Tensor, "batch components less_h less_w"]:
        return functional.conv2d(x, self.kernel, self.bias).relu_()


class _Stage(nn.Module):
    """Downsampling convolution block followed by a residual branch."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        # Pooling before the convolution would save half of all operations and cost 0.7 points.
        # Normalization and ReLU come after it: a quarter of the pixels.
        self.halve = nn.Sequential(
            _convolution(channels, width),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        branch: list[nn.Module] = []
        for _ in range(depth):
            branch += [
                _convolution(width, width),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        self.branch = nn.Sequential(*branch[:-1])

    def forward(
        self, x: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch width half_h half_w"]:
        x = self.halve(x)
        return functional.relu(x + self.branch(x), inplace=True)


def _convolution(channels: int, filters: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution of its input's size that at first passes each channel through."""
    layer = _Convolution(channels, filters, 3, padding=1, bias=False)  # normalization adds one
    nn.init.dirac_(layer.weight.data[:channels])
    return layer


class _Convolution(nn.Conv2d):
    """A 3 x 3 convolution, padded by 1, whose weights' gradient is fast for small images too.

    In bf16 with AMX and 128 channels of 3 x 3 pixels, PyTorch takes nine times as long for it as
    for the forward pass. Here the images of a batch are laid out as one large image, with zeros
    between them, whose gradient is the same sum and takes a quarter of that time. A training step
    of ResNet becomes 9 % faster, with one thread and with two.
    """

    SIDE = 6  # pixels, at most

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch filters h w"]:
        mixed = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        if (
            x.shape[-1] > self.SIDE
            or torch.bfloat16 not in (mixed, x.dtype)
            or not (torch.is_grad_enabled() and x.device.type == "cpu" and _has_amx())
            or torch.compiler.is_compiling()  # with an unknown batch size
        ):
            return super().forward(x)
        weight = self.weight.to(torch.bfloat16, memory_format=torch.channels_last)
        y: Tensor = _SmallImages.apply(x.to(torch.bfloat16), weight)
        return y


class _SmallImages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_x = conv2d_input(x.shape, weight, gradient, padding=1)
        large, of_large = _side_by_side(x), _side_by_side(gradient)
        return of_x, conv2d_weight(large, weight.shape, of_large, padding=1)


def _side_by_side(images: Tensor) -> Tensor:
    """Return one image that holds all of a batch in rows, with zeros below and beside each."""
    count, channels, height, width = images.shape
    rows = next(each for each in range(int(count**0.5), 0, -1) if count % each == 0)
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 1))
    grid = padded.view(rows, count // rows, height + 1, width + 1, channels).transpose(1, 2)
    joined = grid.reshape(1, rows * (height + 1), count // rows * (width + 1), channels)
    return joined.permute(0, 3, 1, 2)


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
