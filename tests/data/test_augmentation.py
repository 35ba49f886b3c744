from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, tiny_overrides
from torch import Tensor

from fashion.data.augmentation import Augmentation, alternating_hflip, random_translation
from fashion.data.datamodule import epoch_seed

EVERYTHING: dict[str, Any] = {"translate": 2, "hflip": True, "erase": 8, "clean_epochs": 2, "epochs": 8}
OFF: dict[str, Any] = {"translate": 0, "hflip": False, "erase": 0, "clean_epochs": 0, "epochs": 8}


@pytest.fixture
def images() -> Tensor:
    """Without a black pixel: each is seen to move."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (400, 28, 28), dtype=torch.uint8, generator=generator)


def epoch_of(images: Tensor, *, seed: int = 0, epoch: int = 0, **options: Any) -> Tensor:
    """A batch as the training loop would get it at an epoch's start."""
    torch.manual_seed(epoch_seed(seed, epoch))
    return Augmentation(**EVERYTHING | options)(images, epoch)


def test_identity_in_evaluation_and_when_all_is_off(images: Tensor) -> None:
    assert torch.equal(Augmentation(**EVERYTHING).eval()(images, 1), images)
    assert torch.equal(Augmentation(**OFF)(images, 1), images)
    assert not torch.equal(Augmentation(**EVERYTHING)(images, 1), images)


def test_a_function_of_seed_and_epoch(images: Tensor) -> None:
    before = images.clone()
    first = epoch_of(images, seed=3, epoch=4)
    assert (first.shape, first.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)  # the data itself stays as it is
    assert torch.equal(epoch_of(images, seed=3, epoch=4), first)
    assert not torch.equal(epoch_of(images, seed=3, epoch=6), first)
    assert not torch.equal(epoch_of(images, seed=5, epoch=4), first)


@pytest.mark.parametrize("option", ["translate", "hflip", "erase"])
def test_each_alone(images: Tensor, option: str) -> None:
    changed = epoch_of(images, **OFF | {option: EVERYTHING[option]})
    assert not torch.equal(changed, images)


def test_mirroring_alternates(images: Tensor) -> None:
    first, second = alternating_hflip(images, 0), alternating_hflip(images, 1)
    kept = (first == images).all(2).all(1)
    assert torch.equal(first[~kept], images[~kept].flip(2))
    # The next epoch turns the others, the one after it the same again.
    assert torch.equal(second[kept], images[kept].flip(2))
    assert torch.equal(second[~kept], images[~kept])
    assert torch.equal(alternating_hflip(images, 2), first)
    assert 160 < kept.sum() < 240  # half of 400, within four deviations
    # Twice is the identity: a picture and its mirror image are turned in the same epochs.
    assert torch.equal(alternating_hflip(first, 0), images)


def test_a_picture_mirrors_whatever_else_is_in_its_batch(images: Tensor) -> None:
    order = torch.randperm(len(images))
    whole = alternating_hflip(images, 0)
    assert torch.equal(alternating_hflip(images[order][:7], 0), whole[order][:7])


def moved(image: Tensor, y: int, x: int) -> Tensor:
    """Pixel (i, j) of the result is (i + y, j + x) of the picture, or black."""
    result = torch.zeros_like(image)
    for i in range(28):
        for j in range(28):
            if 0 <= i + y < 28 and 0 <= j + x < 28:
                result[i, j] = image[i + y, j + x]
    return result


def test_pixels_move_by_whole_distances() -> None:
    torch.manual_seed(0)
    image = torch.randint(1, 256, (28, 28), dtype=torch.uint8)
    expected = {(y, x): moved(image, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    found: Counter[tuple[int, int]] = Counter()
    for result in random_translation(image.expand(900, 28, 28), 1):
        found.update(place for place, other in expected.items() if torch.equal(result, other))
    assert found.total() == 900
    assert set(found) == set(expected)
    assert min(found.values()) > 60  # 100 each, within four deviations


def test_a_shift_is_a_picture_s_own(images: Tensor) -> None:
    torch.manual_seed(0)
    for image, result in zip(images[:20], random_translation(images[:20], 2), strict=True):
        places = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
        assert sum(torch.equal(result, moved(image, *place)) for place in places) == 1


def test_erasing_is_a_black_square(images: Tensor) -> None:
    torch.manual_seed(0)
    sizes = Counter()
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


@pytest.mark.parametrize(("epochs", "share"), [(1, 0), (2, 0), (4, 0.5), (8, 0.75), (40, 0.95)])
def test_erasing_grows_with_the_number_of_epochs(images: Tensor, epochs: int, share: float) -> None:
    """Each picture stays whole for two epochs' worth, however many there are."""
    options = OFF | {"erase": 8, "clean_epochs": 2, "epochs": epochs}
    assert Augmentation(**options).erased_fraction == pytest.approx(share)
    found = (epoch_of(images, **options) == 0).flatten(1).any(1).float().mean().item()
    assert found == pytest.approx(share, abs=0.1)


def test_the_ladder_is_trained_on_the_pictures_themselves(
    tiny_data: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one key turns each part on."""
    seen: list[bool] = []
    forward = Augmentation.forward

    def watched(augmentation: Augmentation, images: Tensor, epoch: int) -> Tensor:
        result = forward(augmentation, images, epoch)
        seen.append(torch.equal(result, images))
        return result

    monkeypatch.setattr(Augmentation, "forward", watched)
    for model in ("linear", "cnn"):
        folder = f"hydra.run.dir={tmp_path}/{model}"
        arguments = (*tiny_overrides(tiny_data), f"model={model}", "trainer=smoke")
        assert command("train", *arguments, folder).status == 0
    assert seen == [True] * 4
    seen.clear()
    done = command(
        "train", *arguments, "augmentation.translate=1", f"hydra.run.dir={tmp_path}/shift"
    )
    assert done.status == 0, done.err
    assert seen == [False] * 2
