"""The out-of-distribution detector: its false alarms, and what it finds unlike the data."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import section
from torch import nn

from fashion.data.datamodule import ImageSet
from fashion.errors import UserError
from fashion.report.ood import FALSE_ALARMS, FEWEST, ClassDensity, Detector
from fashion.training.classifier import Classifier

pytestmark = pytest.mark.slow  # networks are evaluated


def products(count: int, seed: int) -> ImageSet:
    """Return upright images of ten classes: a bright block at the class's row, a foot below."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = random.integers(0, 30, (count, 28, 28))
    for image, label in zip(images, labels, strict=True):
        width, light = random.integers(8, 16), random.integers(120, 220)
        image[2 + label : 10 + label, 14 - width // 2 : 14 + width // 2] += light
        image[24:27, 4:24] += light
    pixels = torch.from_numpy(images.clip(0, 255).astype(np.uint8))
    return ImageSet(pixels, torch.from_numpy(labels), torch.arange(count))


def classifier(network: nn.Module | None = None) -> Classifier:
    """Return a classifier with random weights, whose features still tell the images apart."""
    torch.manual_seed(0)
    chosen = ("model=mlp", "model.network.dense=[32]")
    made = Classifier(section("model.network", *chosen), section("optimizer"))
    if network is not None:
        made.network = network
    return made.eval()


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(classifier(), products(1000, 0), products(1000, 1))


def flagged(detector: Detector, images: Any) -> dict[str | None, float]:
    found = detector(np.asarray(images))
    return {kind: found.count(kind) / len(found) for kind in set(found)}


def test_false_alarms(detector: Detector) -> None:
    """Exactly as many on the images of the threshold; about as many on others."""
    own = flagged(detector, products(1000, 1).images)
    assert 1 - own[None] == pytest.approx(FALSE_ALARMS, abs=0.002)
    assert 1 - flagged(detector, products(1000, 2).images)[None] < 2.5 * FALSE_ALARMS


def test_faint_images_of_the_data_count_among_the_false_alarms() -> None:
    """Faint photos have a remark of their own; of the others the fewer are alarms."""
    val = products(1000, 1)
    val.images[:10] //= 8
    detector = Detector(classifier(), products(1000, 0), val)
    assert 1 - flagged(detector, val.images[10:])[None] == pytest.approx(0.01, abs=0.004)


def test_foreign_images(detector: Detector) -> None:
    random = np.random.default_rng(3)
    noise = random.integers(0, 256, (100, 28, 28), dtype=np.uint8)
    stripes = np.tile(np.where(np.arange(28) % 4 < 2, 255, 0), (20, 28, 1)).astype(np.uint8)
    negatives = 255 - products(100, 4).images.numpy()
    for images in (noise, stripes, negatives):
        assert None not in flagged(detector, images)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_images(detector: Detector, turns: int) -> None:
    turned = np.rot90(products(200, 5).images.numpy(), turns, (1, 2))
    assert flagged(detector, np.ascontiguousarray(turned)).get(None, 0) < 0.05


def test_a_network_without_a_linear_layer() -> None:
    """It has no features: nothing is unusual by them, and turned images are still found."""
    network = nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten())
    detector = Detector(classifier(network), products(1000, 0), products(1000, 1))
    assert set(flagged(detector, products(300, 2).images)) <= {None, "turned"}
    turned = np.ascontiguousarray(products(200, 5).images.numpy()[:, ::-1])
    assert flagged(detector, turned)["turned"] > 0.9


def test_an_answer_does_not_depend_on_the_images_beside_it(detector: Detector) -> None:
    images = np.concatenate([products(20, 6).images, 255 - products(20, 6).images.numpy()])
    assert detector(images) == [detector(image[None])[0] for image in images]


def test_too_few_validation_images() -> None:
    with pytest.raises(UserError, match=f"99 validation images are too few .at least {FEWEST}"):
        Detector(classifier(), products(300, 0), products(99, 1))
    Detector(classifier(), products(300, 0), products(FEWEST, 1))


def test_density_of_two_known_gaussians() -> None:
    """The logarithms differ as those of the mixture that the vectors were drawn from."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 40_000)
    centers, spreads = np.array([[0.0, 0.0], [6.0, 3.0]]), np.array([1.0, 2.0])
    vectors = centers[labels] + spreads[labels, None] * random.standard_normal((40_000, 2))

    def expected(points: np.ndarray) -> np.ndarray:
        squares = ((points[:, None] - centers) ** 2).sum(axis=2) / spreads**2
        logarithms: np.ndarray = np.log((np.exp(-squares / 2) / spreads**2 / 2).sum(axis=1))
        return logarithms

    points = np.array([[0.0, 0.0], [6.0, 3.0], [3.0, 1.0], [-2.0, 1.0]])
    density = ClassDensity(vectors, labels)(points)
    np.testing.assert_allclose(
        density - density[0], expected(points) - expected(points)[0], atol=0.05
    )


def test_density_of_features_that_do_not_vary() -> None:
    """Dead units, and a class of one image, have no spread of their own."""
    random = np.random.default_rng(0)
    vectors = np.concatenate([random.standard_normal((200, 3)), np.zeros((200, 5))], axis=1)
    labels = np.zeros(200, int)
    labels[0] = 1
    density = ClassDensity(vectors, labels)
    assert np.isfinite(density(vectors)).all()
    assert density(vectors).mean() > density(vectors + 10).mean()
