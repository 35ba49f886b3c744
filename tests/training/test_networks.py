from typing import Any

import pytest
import torch
import torchvision
from conftest import section
from torch import Tensor, nn
from torch.nn import functional

from fashion.config import CONF
from fashion.config import build as build_section
from fashion.data import download
from fashion.data.datamodule import normalize
from fashion.errors import UserError
from fashion.training import networks
from fashion.training.networks import ConvNet, Ensemble, ResNet

BEST: dict[str, Any] = {
    "conv": [64],
    "kernel_size": 3,
    "pool": 1,
    "dense": [128],
    "conv_activation": "leaky_relu",
    "dense_activation": "relu",
    "negative_slope": 0.05,
    "dropout": 0.6,
    "batch_norm": False,
}
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.05),
    "elu": nn.ELU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
}


def build(**changes: Any) -> ConvNet:
    return ConvNet(**BEST | changes)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("linear", 784 * 10 + 10),
        ("mlp", 784 * 128 + 128 + 128 * 10 + 10),
        # 28 - 2 = 26, halved 13; 13 - 2 = 11, halved 5
        ("cnn", 9 * 32 + 32 + 9 * 32 * 64 + 64 + 5 * 5 * 64 * 128 + 128 + 128 * 10 + 10),
        ("best", 5_539_850),
    ],
)
def test_parameters(model: str, parameters: int) -> None:
    network = build_section("model.network", section("model.network", f"model={model}"))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_best_is_the_deck_s_to_the_letter() -> None:
    layers = list(build_section("model.network", section("model.network", "model=best")))
    names = [type(layer).__name__.strip("_") for layer in layers]
    assert names == ["Conv2d", "LeakyReLU", "Flatten", "LargeLinear", "ReLU", "Dropout", "Linear"]
    convolution, leaky, _, dense, _, dropout, logits = layers
    assert (convolution.kernel_size, convolution.stride, convolution.padding) == (
        (3, 3),
        (1, 1),
        (0, 0),
    )
    assert (leaky.negative_slope, dropout.p) == (0.05, 0.6)
    assert (dense.in_features, dense.out_features, logits.out_features) == (26 * 26 * 64, 128, 10)


def by_the_book(network: ConvNet, activation: str, pool: int) -> nn.Sequential:
    """Return the same layers with the activation before the pooling, as is usual."""
    layers: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, nn.MaxPool2d):
            continue
        if isinstance(layer, type(ACTIVATIONS[activation])):
            layers += [ACTIVATIONS[activation], nn.MaxPool2d(pool)]
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_both_orders_of_pooling_agree(activation: str, batch_norm: bool) -> None:  # noqa: FBT001
    torch.manual_seed(0)
    network = build(
        conv=[4, 5], pool=2, dense=[], conv_activation=activation, batch_norm=batch_norm
    )
    network(torch.randn(16, 1, 28, 28))  # moves what batch_norm keeps off zero and one
    network.eval()
    images = torch.randn(8, 1, 28, 28)
    expected = by_the_book(network, activation, 2)(images)
    torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-6)

    kinds = [type(layer) for layer in network]
    pooled_first = kinds.index(nn.MaxPool2d) < kinds.index(type(ACTIVATIONS[activation]))
    # These two fall before they rise, so a maximum does not commute with them.
    assert pooled_first == (activation not in ("gelu", "silu"))


def test_the_dense_layers() -> None:
    network = build(conv=[], dense=[20, 30], dense_activation="silu", batch_norm=True, dropout=0.0)
    names = [type(layer).__name__.strip("_") for layer in network]
    block = ["Linear", "BatchNorm1d", "SiLU"]
    assert names == ["Flatten", *block, *block, "Linear"]
    assert network[1].bias is None
    assert network[-1].bias is not None


def test_channels_last_changes_nothing() -> None:
    torch.manual_seed(0)
    network = build(conv=[4], dense=[8]).eval()
    images = torch.randn(4, 1, 28, 28)
    expected = network(images)
    found = network.to(memory_format=torch.channels_last)(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "layer"),
    [
        ({"kernel_size": 29}, 1),
        ({"kernel_size": 3, "pool": 27}, 1),
        ({"conv": [4, 4], "kernel_size": 15}, 2),
        ({"conv": [4] * 4, "pool": 2}, 4),  # 28, 13, 5, 1
    ],
)
def test_a_kernel_larger_than_what_is_left(changes: dict[str, Any], layer: int) -> None:
    with pytest.raises(UserError, match=rf"conv = .*kernel_size = .*pool = .*layer {layer} gets"):
        build(**changes)


@pytest.mark.parametrize(
    "changes", [{"kernel_size": 28}, {"pool": 26}, {"conv": [4] * 14, "kernel_size": 2}]
)
def test_the_last_size_that_fits(changes: dict[str, Any]) -> None:
    assert build(**changes).eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def resnet(**changes: Any) -> ResNet:
    options: dict[str, Any] = {"widths": [8, 10], "depth": 2}
    return ResNet(**options | changes)


@pytest.mark.parametrize("model", ["resnet", "ensemble"])
def test_the_record_s_network_is_below_a_million_parameters(model: str) -> None:
    network = build_section("model.network", section("model.network", f"model={model}"))
    assert 100_000 < sum(parameter.numel() for parameter in network.parameters()) < 1_000_000


@pytest.mark.parametrize(("widths", "side"), [([8], 13), ([8, 9], 6), ([8, 9, 8, 5], 1)])
def test_each_stage_halves(widths: list[int], side: int) -> None:
    network = resnet(widths=widths)
    *layers, _, head = network
    features = nn.Sequential(*layers)(torch.randn(2, 1, 28, 28))
    assert features.shape == (2, widths[-1], side, side)
    assert head.in_features == widths[-1] * side**2
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_too_many_stages() -> None:
    with pytest.raises(UserError, match=r"widths = .*: an image cannot be halved 5 times"):
        resnet(widths=[4] * 5)


@pytest.mark.real_data
def test_whitening_whitens() -> None:
    if not (download.raw_folder(CONF.parent / "data") / "train-images-idx3-ubyte").is_file():
        pytest.skip("the real data is not there: scripts/get_data downloads it")
    images: Tensor = torchvision.datasets.FashionMNIST(CONF.parent / "data").data[::20]
    kernel: Any = resnet()[0].kernel
    components = functional.conv2d(normalize(images), kernel)
    covariance = components.transpose(0, 1).flatten(1).cov()
    torch.testing.assert_close(covariance[:4, :4], torch.eye(4), atol=0.15, rtol=0)
    assert torch.equal(components[:, 4:], -components[:, :4])


def test_an_untrained_convolution_passes_its_channels_on() -> None:
    stage: Any = resnet()[1]
    images = torch.randn(2, 8, 27, 27)
    torch.testing.assert_close(stage.halve[0](images)[:, :8], images)


def test_every_weight_of_resnet_learns() -> None:
    torch.manual_seed(0)
    network = resnet()
    network(torch.randn(8, 1, 28, 28)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name  # noqa: PT018


def test_resnet_in_channels_last() -> None:
    torch.manual_seed(0)
    network = resnet().eval()
    images = torch.randn(4, 1, 28, 28)
    expected = network(images)
    found = network.to(memory_format=torch.channels_last)(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_ensemble_shares_batches_out_and_averages_probabilities() -> None:
    ensemble: Any = Ensemble(10, members=3, widths=[8, 10], depth=1)
    images = torch.randn(7, 1, 28, 28)
    assert ensemble(images).shape == (7, 10)
    for position, network in ((0, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2)):  # 3, 2 and 2 images
        ensemble.zero_grad()
        ensemble(images)[position].sum().backward()
        learned = [bool(each[-1].bias.grad.any()) for each in ensemble.members]
        assert learned == [network == each for each in range(3)]
    ensemble.eval()
    expected = torch.stack([network(images).softmax(1) for network in ensemble.members]).mean(0)
    torch.testing.assert_close(ensemble(images).exp(), expected)


def test_an_ensemble_needs_an_image_for_each_network() -> None:
    with pytest.raises(
        UserError, match=r"has 2 image\(s\), .*members = 3\): change data.batch_size"
    ):
        Ensemble(10, members=3, widths=[8], depth=1)(torch.zeros(2, 1, 28, 28))


@pytest.mark.parametrize("count", [12, 7])  # in rows of four; a prime
@pytest.mark.parametrize("side", [3, 6, 7])
def test_gradient_of_small_images(monkeypatch: pytest.MonkeyPatch, count: int, side: int) -> None:
    layer = networks._convolution(8, 16)  # noqa: SLF001
    layer.weight.data.normal_()
    x, gradient = torch.randn(count, 8, side, side), torch.randn(count, 16, side, side)
    found: dict[bool, tuple[Any, ...]] = {}
    for amx in (True, False):
        monkeypatch.setattr(networks, "_has_amx", lambda amx=amx: amx)
        layer.weight.grad, given = None, x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(given)
        assert ("_SmallImages" in type(y.grad_fn).__name__) == (amx and side <= 6)
        y.backward(gradient.to(y.dtype))
        assert y.dtype == torch.bfloat16
        assert layer.weight.grad is not None
        found[amx] = y, given.grad, layer.weight.grad
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(
            one, other, atol=0.02 * float(other.detach().abs().max()), rtol=0
        )
    assert torch.equal(layer(x), functional.conv2d(x, layer.weight, padding=1))  # fp32


@pytest.mark.parametrize(("batch", "pool", "dtype"), [
    (32, 1, torch.float32),  # few images, many weights
    (200, 1, torch.bfloat16),
    (32, 4, torch.bfloat16),
])  # fmt: skip
def test_a_layer_of_many_weights_stays_in_fp32(batch: int, pool: int, dtype: torch.dtype) -> None:
    net = ConvNet(conv=[64], pool=pool, dense=[128])
    dense = next(layer for layer in net if isinstance(layer, nn.Linear))
    seen: list[Tensor] = []
    dense.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    images = torch.randn(batch, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images)
    assert seen[0].dtype == dtype
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), net(images), atol=0.02, rtol=0.05)
