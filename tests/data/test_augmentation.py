from collections import Counter
from typing import Any

import pytest
import torch
from conftest import section
from torch import Tensor
from torchvision.transforms import v2

from fashion.config import build
from fashion.data.augmentation import (
    Augmentation,
    Chain,
    alternating_hflip,
    cutmix,
    per_image,
    random_erasing,
    random_translation,
)
from fashion.data.datamodule import epoch_seed
from fashion.errors import UserError

EVERYTHING: dict[str, Any] = {"translate": 2, "hflip": True, "erase": 8, "clean_epochs": 2}
LABELS = torch.arange(400) % 10


@pytest.fixture
def images() -> Tensor:
    """Return images without a black pixel, so that each of them is seen to move."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (400, 28, 28), dtype=torch.uint8, generator=generator)


def epoch_of(
    images: Tensor, *, seed: int = 0, epoch: int = 0, epochs: int = 8, **options: Any
) -> Tensor:
    """Return a batch as the training loop would get it at an epoch's start."""
    torch.manual_seed(epoch_seed(seed, epoch))
    augmentation = Augmentation(**options)
    augmentation.set_epoch(epoch, epochs)
    changed, labels = augmentation(images, LABELS)
    assert labels is LABELS
    return changed


def test_the_augmentation_of_published_numbers(images: Tensor) -> None:
    """Pixels that the code of version 0.1 gave."""
    augmentation = Augmentation(**EVERYTHING)
    augmentation.set_epoch(1, 8)
    torch.manual_seed(3)
    changed, _ = augmentation(images, LABELS)
    weights = torch.arange(784).view(28, 28)
    assert (changed.long() * weights).sum().item() == 13_672_574_167
    assert (changed == 0).sum().item() == 42_368


def test_a_function_of_seed_and_epoch(images: Tensor) -> None:
    before = images.clone()
    first = epoch_of(images, seed=3, epoch=4, **EVERYTHING)
    assert (first.shape, first.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)  # the data itself stays as it is
    assert torch.equal(epoch_of(images, seed=3, epoch=4, **EVERYTHING), first)
    assert not torch.equal(epoch_of(images, seed=3, epoch=6, **EVERYTHING), first)
    assert not torch.equal(epoch_of(images, seed=5, epoch=4, **EVERYTHING), first)


def test_the_configuration_s_default_changes_nothing_and_each_key_does(images: Tensor) -> None:
    def made(*overrides: str) -> Tensor:
        augmentation = build("augmentation", section("augmentation", *overrides))
        augmentation.set_epoch(0, 8)
        changed: Tensor = augmentation(images, LABELS)[0]
        return changed

    assert torch.equal(made(), images)
    for key in ("hflip=true", "translate=1", "erase=8", "cutmix=0.5"):
        assert not torch.equal(made(f"augmentation.{key}"), images)


def test_flips_alternate(images: Tensor) -> None:
    first, second = alternating_hflip(images, 0), alternating_hflip(images, 1)
    kept = (first == images).all(2).all(1)
    assert torch.equal(first[~kept], images[~kept].flip(2))
    # The next epoch flips the others, the one after it the same again.
    assert torch.equal(second[kept], images[kept].flip(2))
    assert torch.equal(second[~kept], images[~kept])
    assert torch.equal(alternating_hflip(images, 2), first)
    assert 160 < kept.sum() < 240  # half of 400, within four deviations
    # Twice is the identity: an image and its flipped one are flipped in the same epochs.
    assert torch.equal(alternating_hflip(first, 0), images)


def test_a_flip_does_not_depend_on_the_batch(images: Tensor) -> None:
    order = torch.randperm(len(images))
    whole = alternating_hflip(images, 0)
    assert torch.equal(alternating_hflip(images[order][:7], 0), whole[order][:7])


def moved(image: Tensor, y: int, x: int) -> Tensor:
    """Return the image whose pixel (i, j) is (i + y, j + x) of `image`, or black."""
    result = torch.zeros_like(image)
    for i in range(28):
        for j in range(28):
            if 0 <= i + y < 28 and 0 <= j + x < 28:
                result[i, j] = image[i + y, j + x]
    return result


def test_translations_are_whole_uniform_and_independent() -> None:
    torch.manual_seed(0)
    image = torch.randint(1, 256, (28, 28), dtype=torch.uint8)
    expected = {(y, x): moved(image, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    found: Counter[tuple[int, int]] = Counter()
    for result in random_translation(image.expand(900, 28, 28), 1):
        found.update(place for place, other in expected.items() if torch.equal(result, other))
    assert found.total() == 900
    assert set(found) == set(expected)
    assert min(found.values()) > 60  # 100 each, within four deviations


def test_erasing_is_a_black_square(images: Tensor) -> None:
    torch.manual_seed(0)
    sizes: Counter[int] = Counter()
    for image, result in zip(images, random_erasing(images, 8, 1.0), strict=True):
        black = result == 0
        rows, columns = black.any(1), black.any(0)
        assert torch.equal(black, rows[:, None] & columns[None])  # a rectangle
        assert torch.equal(result[~black], image[~black])
        for side in (rows, columns):
            place = side.nonzero().flatten()
            assert len(place) == place[-1] - place[0] + 1  # in one piece
            assert len(place) == 8 or 0 in place or 27 in place  # or over the edge
            sizes[len(place)] += 1
    assert set(sizes) == {4, 5, 6, 7, 8}
    assert sizes[8] > 500  # 21 / 28 of 800 are within


@pytest.mark.parametrize(("epochs", "fraction"), [(1, 0), (2, 0), (4, 0.5), (8, 0.75), (40, 0.95)])
def test_erasing_grows_with_the_number_of_epochs(
    images: Tensor, epochs: int, fraction: float
) -> None:
    """Each image stays clean for two epochs' worth, however many there are."""
    changed = epoch_of(images, epochs=epochs, erase=8, clean_epochs=2)
    found = (changed == 0).flatten(1).any(1).float().mean().item()
    assert found == pytest.approx(fraction, abs=0.1)


def test_clean_epochs_need_a_number_of_epochs(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"augmentation\.clean_epochs = 2: .*trainer\.max_epochs"):
        epoch_of(images, epochs=-1, erase=8, clean_epochs=2)
    assert not torch.equal(epoch_of(images, epochs=-1, erase=8), images)
    with pytest.raises(UserError, match=r"augmentation\.clean_epochs = 3: .*trainer\.max_epochs"):
        epoch_of(images, epochs=-1, cutmix=0.5, clean_epochs=3)


def test_cutmix_gives_each_image_a_partner_and_a_box_of_its_own() -> None:
    torch.manual_seed(0)
    labels = torch.arange(2000) % 10
    images = (1 + labels).to(torch.uint8)[:, None, None].expand(-1, 28, 28)
    mixed, targets = cutmix(images, labels, 0.75, 10)
    assert mixed.dtype == torch.uint8
    # Labels are mixed by area: the fraction of the pixels that are of each class.
    areas = torch.stack([(mixed == 1 + label).float().mean((1, 2)) for label in range(10)], 1)
    torch.testing.assert_close(targets, areas)
    others = areas.scatter(1, labels[:, None], 0.0)
    changed = others.sum(1) > 0
    assert set(others[changed].argmax(1).tolist()) == set(range(10))
    assert 0.63 < changed.float().mean() < 0.72  # nine in ten partners are of another class
    assert 0.2 < others[changed].sum(1).mean() < 0.5  # a half, less what lies over the edges
    assert len(others[changed].sum(1).unique()) > 100
    for image, label in zip(mixed[:100], labels, strict=False):
        box = image != 1 + label
        assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None])  # a rectangle


@pytest.mark.parametrize(
    ("epoch", "epochs", "clean_epochs", "mixes"),
    [(5, 8, 2, True), (6, 8, 2, False), (0, 2, 2, False), (0, 8, 0, True), (9, -1, 0, True)],
)
def test_cutmix_ends_before_the_clean_epochs(
    images: Tensor, epoch: int, epochs: int, clean_epochs: int, *, mixes: bool
) -> None:
    augmentation = Augmentation(cutmix=1.0, clean_epochs=clean_epochs)
    augmentation.set_epoch(epoch, epochs)
    mixed, labels = augmentation(images, LABELS)
    changed = (mixed != images).flatten(1).any(1).float().mean()
    assert (changed > 0.95) if mixes else (changed == 0)
    assert labels.shape == ((400, 10) if mixes else (400,))


# torchvision's transforms.


def test_a_torchvision_transform_draws_anew_for_each_image(images: Tensor) -> None:
    changed, labels = per_image(v2.RandomHorizontalFlip())(images, LABELS)
    kept = (changed == images).all(2).all(1)
    assert 160 < kept.sum() < 240  # half of 400; drawn once per batch it would be none or all
    assert torch.equal(changed[~kept], images[~kept].flip(2))
    assert labels is LABELS


def test_a_composed_torchvision_transform_keeps_shape_and_range(images: Tensor) -> None:
    transform = v2.Compose([v2.RandomRotation(10), v2.RandomCrop(28, padding=2)])
    changed, _ = per_image(transform)(images[:9], LABELS[:9])
    assert (changed.shape, changed.dtype) == ((9, 28, 28), torch.uint8)


@pytest.mark.parametrize("mix", [v2.CutMix, v2.MixUp])
def test_mixing_gives_soft_labels(images: Tensor, mix: Any) -> None:
    mixed, targets = per_image(mix(num_classes=10))(images, LABELS)
    assert (mixed.shape, targets.shape) == ((400, 28, 28), (400, 10))
    torch.testing.assert_close(targets.sum(1), torch.ones(400))
    assert ((targets > 0).sum(1) <= 2).all()
    assert not torch.equal(mixed, images.float())
    assert 0 <= mixed.min() <= mixed.max() <= 255


def test_a_chain_applies_its_steps_in_order_and_passes_the_epoch_on(images: Tensor) -> None:
    mix = v2.MixUp(num_classes=10)
    chain = Chain(steps=[v2.Lambda(lambda image: image // 2), Augmentation(hflip=True), mix])
    chain.set_epoch(1, 8)
    torch.manual_seed(0)
    mixed, targets = chain(images, LABELS)
    torch.manual_seed(0)
    expected = per_image(mix)(alternating_hflip(images // 2, 1), LABELS)
    assert torch.equal(mixed, expected[0])
    assert torch.equal(targets, expected[1])


def test_a_chain_of_the_configuration(images: Tensor) -> None:
    flip = "{_target_:torchvision.transforms.v2.RandomHorizontalFlip,p:1.0}"
    target = "augmentation._target_=fashion.data.augmentation.Chain"
    given = section("augmentation", target, f"+augmentation.steps=[{flip}]")
    chain = build("augmentation", given)
    assert torch.equal(chain(images, LABELS)[0], images.flip(2))
