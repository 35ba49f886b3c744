import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_data, write_idx
from torch import Tensor

from fashion.data import CLASSES, download
from fashion.data.augmentation import Augmentation
from fashion.data.datamodule import (
    MEAN,
    STD,
    BatchLoader,
    FashionMNIST,
    ImageSet,
    from_config,
    normalize,
    reduce_resolution,
    stratified_fold,
    stratified_split,
)
from fashion.errors import UserError

REAL = Path(__file__).parents[2] / "data"


def tiny(root: Path, **changes: Any) -> FashionMNIST:
    options: dict[str, Any] = {"root": str(root), "val_size": 100, "official": False}
    return FashionMNIST(**options | changes)


def trainer_of_nine_epochs() -> Any:
    device = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        max_epochs=9, overfit_batches=0.0, global_rank=0, world_size=1, strategy=device
    )


def ready(root: Path, **changes: Any) -> FashionMNIST:
    data = tiny(root, **changes)
    data.setup("fit")
    return data


def uneven_labels(counts: list[int]) -> Tensor:
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def test_reduced_images_are_block_means() -> None:
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 0, 0], image[0, 1, 1], image[0, 26, 27] = 100, 201, 4
    half = reduce_resolution(image, 14)
    assert half[0, :2, :2].tolist() == [[75, 75], [75, 75]]  # 75.25
    assert half[0, 26:, 26:].tolist() == [[1, 1], [1, 1]]
    assert half.sum() == 4 * 75 + 4
    quarter = reduce_resolution(image, 7)
    assert quarter[0, :4, :4].unique().tolist() == [19]  # 301 / 16 = 18.8
    assert quarter.sum() == 16 * 19


@pytest.mark.parametrize("resolution", [28, 14, 7])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_reduced_twice_is_reduced_once(resolution: int, dtype: torch.dtype) -> None:
    images = torch.randint(256, (20, 28, 28), generator=torch.Generator().manual_seed(0)).to(dtype)
    once = reduce_resolution(images, resolution)
    assert once.dtype == dtype
    assert torch.equal(reduce_resolution(once, resolution), once)
    assert torch.equal(once, images) == (resolution == 28)
    assert len(once[0].unique(dim=0)) <= resolution


def test_resolution_is_that_of_every_split(tiny_data: Path) -> None:
    full, low = ready(tiny_data), ready(tiny_data, resolution=7)
    for data in (full, low):
        data.setup("test")
    for split in ("train", "val", "test"):
        expected = reduce_resolution(getattr(full, split).images, 7)
        assert torch.equal(getattr(low, split).images, expected)


def test_smaller_training_sets_lie_within_larger_ones(tiny_data: Path) -> None:
    sizes = (20, 50, 130, 300, None)
    parts = [ready(tiny_data, train_size=size, batch_size=10, seed=size or 7) for size in sizes]
    for size, small, large in zip(sizes, parts, parts[1:], strict=False):
        assert len(small.train) == size
        assert set(small.train.indices.tolist()) <= set(large.train.indices.tolist())
        assert torch.equal(small.val.indices, large.val.indices)
        counts = small.train.labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 1  # as in the tiny data
    again = ready(tiny_data, train_size=50, batch_size=10, seed=8)
    assert torch.equal(again.train.indices, parts[1].train.indices)
    other = ready(tiny_data, train_size=50, batch_size=10, split_seed=1)
    assert not torch.equal(other.train.indices, parts[1].train.indices)


def test_training_sets_of_folds_can_be_smaller(tiny_data: Path) -> None:
    data = ready(tiny_data, folds=4, fold=1, train_size=40)
    assert (len(data.train), len(data.val)) == (40, 100)


@pytest.mark.parametrize("changes", [{"train_size": 301}, {"train_size": 31, "folds": 10}])
def test_a_training_set_that_is_too_large(tiny_data: Path, changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"there are 300 to train|_size = 32: there are 31"):
        ready(tiny_data, **changes)


COUNTS = [[100] * 10, [997, 3, 10, 501, 1, 64, 0, 128, 0, 32]]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("fraction", [0, 0.1, 1 / 6, 0.5, 0.999])
def test_a_split_is_disjoint_complete_and_stratified(counts: list[int], fraction: float) -> None:
    labels = uneven_labels(counts)
    size = int(fraction * len(labels))
    train, val = stratified_split(labels, size, 0)
    assert len(val) == size
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert abs(int((labels[val] == label).sum()) - count * size / len(labels)) <= 1


def test_the_split_of_published_numbers() -> None:
    """Positions that the code of version 0.1 gave."""
    train, val = stratified_split(torch.arange(400) % 10, 100, 0)
    assert val[:8].tolist() == [0, 1, 12, 24, 26, 30, 34, 43]
    assert (train.sum().item(), val.sum().item()) == (59_470, 20_330)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("folds", [1, 3, 5, 7])
def test_folds_partition_the_images_and_are_stratified(counts: list[int], folds: int) -> None:
    labels = uneven_labels(counts)
    splits = [stratified_fold(labels, folds, fold, 0) for fold in range(folds)]
    inside = [val for _, val in splits]
    assert torch.cat(inside).sort().values.tolist() == list(range(len(labels)))
    assert max(map(len, inside)) - min(map(len, inside)) <= 1
    for train, val in splits:
        assert torch.cat([train, val]).sort().values.tolist() == list(range(len(labels)))
        assert val.tolist() == sorted(val.tolist())
        for label, count in enumerate(counts):
            assert abs(int((labels[val] == label).sum()) - count / folds) <= 2
    # The first of six folds of the dataset is the usual validation set.
    assert torch.equal(inside[0], stratified_split(labels, len(inside[0]), 0)[1])


def test_a_fold_replaces_val_size(tiny_data: Path) -> None:
    data = ready(tiny_data, folds=4, fold=3, val_size=7)
    assert (len(data.train), len(data.val)) == (300, 100)
    with pytest.raises(UserError, match=r"data\.fold = 4: the folds are 0 to 3"):
        tiny(tiny_data, folds=4, fold=4)


def test_one_split_for_every_run_seed(tiny_data: Path) -> None:
    first, second = ready(tiny_data, seed=0), ready(tiny_data, seed=1)
    assert torch.equal(first.val.indices, second.val.indices)
    other = ready(tiny_data, split_seed=1)
    assert not torch.equal(first.val.indices, other.val.indices)
    assert torch.bincount(first.val.labels).tolist() == [10] * 10


def test_an_image_set_holds_the_positions_in_the_file(tiny_data: Path) -> None:
    data = ready(tiny_data)
    raw = np.fromfile(download.raw_folder(tiny_data) / "train-images-idx3-ubyte", np.uint8)[16:]
    images = torch.from_numpy(raw).reshape(-1, 28, 28)
    for part in (data.train, data.val):
        assert torch.equal(part.images, images[part.indices])
        assert torch.equal(part.labels, part.indices % 10)


def test_val_size_0_trains_on_everything(tiny_data: Path) -> None:
    data = ready(tiny_data, val_size=0)
    assert torch.equal(data.train.indices, torch.arange(400))
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_size": 400}, r"data\.val_size = 400: there are 400 images"),
        ({"batch_size": 301}, r"data\.batch_size = 301: there are 300 images to train on"),
        ({"batch_size": 401, "val_size": 0}, r"data\.batch_size = 401"),
    ],
)
def test_sizes_beyond_the_data(tiny_data: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ready(tiny_data, **changes)


@pytest.mark.parametrize("changes", [{"val_size": 399, "batch_size": 1}, {"batch_size": 300}])
def test_the_last_sizes_that_fit(tiny_data: Path, changes: dict[str, int]) -> None:
    ready(tiny_data, **changes)


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_a_label_that_is_no_class(tmp_path: Path, part: str) -> None:
    root = make_data(tmp_path)
    count = 400 if part == "train" else 100
    write_idx(download.raw_folder(root) / f"{part}-labels-idx1-ubyte", np.arange(count) % 11)
    stage = "fit" if part == "train" else "test"
    with pytest.raises(UserError, match="label 10; labels go from 0 to 9"):
        tiny(root).setup(stage)
    tiny(root, classes=[*CLASSES, "Hat"]).setup(stage)


def test_other_data_is_refused_unless_allowed(tiny_data: Path) -> None:
    tiny(tiny_data).prepare_data()
    with pytest.raises(UserError, match=r"not Fashion-MNIST's official file: .*official=false"):
        tiny(tiny_data, official=True).prepare_data()


@pytest.mark.parametrize("kept", [0, 3])
def test_other_data_is_downloaded_whole_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    whole = download.raw_folder(make_data(tmp_path / "there"))
    folder = download.raw_folder(tmp_path / "here", "KMNIST")
    folder.mkdir(parents=True)
    for name in list(download.PAYLOADS)[:kept]:
        (folder / name).write_bytes((whole / name).read_bytes())
        (folder / name).chmod(0o400)

    class Fake:
        def __init__(self, root: str, *, download: bool) -> None:
            assert download
            shutil.copytree(whole, Path(root) / "KMNIST/raw")

    monkeypatch.setattr("torchvision.datasets.KMNIST", Fake)
    tiny(tmp_path / "here", dataset="KMNIST").prepare_data()
    assert {path.name for path in folder.iterdir()} == {*download.PAYLOADS, ".lock"}
    modes = [(folder / name).stat().st_mode & 0o777 for name in download.PAYLOADS]
    assert modes.count(0o400) == kept  # left as they were


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (lambda images, labels: (images[:, 2:, 2:], labels), r"returned images of shape \(200, 26"),
        (lambda images, labels: (images / None, labels), r"raised TypeError for uint8 images"),
    ],
)
def test_an_augmentation_that_fails(tiny_data: Path, augmentation: Any, message: str) -> None:
    data = ready(tiny_data, augmentation=augmentation, batch_size=100)
    data.trainer = trainer_of_nine_epochs()
    with pytest.raises(UserError, match=f"augmentation: it {message}"):
        next(iter(data.train_dataloader()))


def test_fitting_and_validating_never_read_the_test_set(tmp_path: Path) -> None:
    root = make_data(tmp_path)
    for path in download.raw_folder(root).glob("t10k-*"):
        path.write_bytes(b"")
    data = ready(root)
    data.setup("validate")
    assert not hasattr(data, "test")


def test_files_of_an_old_torchvision_are_refused(tmp_path: Path) -> None:
    root = make_data(tmp_path)
    (root / "FashionMNIST/processed").mkdir()
    with pytest.raises(UserError, match="processed is of an old torchvision"):
        ready(root)


def test_another_data_set_in_the_same_format(tmp_path: Path) -> None:
    (make_data(tmp_path) / "FashionMNIST").rename(tmp_path / "KMNIST")
    data = ready(tmp_path, dataset="KMNIST", official=True)  # there is no official release of it
    data.prepare_data()
    assert (len(data.train), data.classes[0]) == (300, "o")


def test_a_data_section_that_is_no_datamodule() -> None:
    with pytest.raises(UserError, match=r"data\._target_ = builtins\.dict: it is no FashionMNIST"):
        from_config({"_target_": "builtins.dict"})


# Batches. Each image is marked by its position in its first two pixels.


def marked(count: int) -> ImageSet:
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(count) % 256
    images[:, 0, 1] = torch.arange(count) // 256
    return ImageSet(images, torch.arange(count) % 10, torch.arange(count))


def positions(images: Tensor) -> list[int]:
    first, second = ((images[:, 0, 0, i] * STD * 255 + MEAN * 255).round().int() for i in (0, 1))
    found: list[int] = (first + 256 * second).tolist()
    return found


def order(seed: int, epoch: int, **options: Any) -> list[list[int]]:
    loader = BatchLoader(marked(101), 10, seed=seed, **options)
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(loader) == len(batches)
    for images, labels in batches:
        assert labels.tolist() == [position % 10 for position in positions(images)]
    return [positions(images) for images, _ in batches]


def test_images_lie_on_the_device_or_move_in_batches() -> None:
    meta = torch.device("meta")  # stands for a GPU
    for resident in (True, False):
        loader = BatchLoader(marked(20), 10, device=meta, resident=resident)
        assert loader.images.device.type == ("meta" if resident else "cpu")
        for images, labels in loader:
            assert images.device == labels.device == meta
            assert images.shape == (10, 1, 28, 28)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert sorted(itertools.chain(*order(0, 0))) == list(range(101))
    assert [len(batch) for batch in order(0, 0)] == [10] * 10 + [1]
    expected = order(0, 3)
    torch.manual_seed(99)  # what ran before does not matter
    assert order(0, 3) == expected
    assert len({str(order(seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25


def test_overfit_batches_keep_the_order_of_the_first_epoch() -> None:
    assert order(3, 7, fixed=True) == order(3, 0) != order(3, 7)


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_partition_each_batch(world_size: int) -> None:
    """Each image once, as many steps for all ranks, though the last batch has a single image."""
    shards = [order(0, 1, rank=rank, world_size=world_size) for rank in range(world_size)]
    for batch, *parts in zip(order(0, 1), *shards, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("batch_size", [7, 32, 128, 129, 300])
def test_chunks_hold_the_same_images_bit_for_bit(batch_size: int) -> None:
    augmentation = Augmentation(hflip=True, translate=2, erase=8)

    def epoch(*, chunked: bool) -> list[tuple[Tensor, Tensor]]:
        torch.manual_seed(5)
        images = torch.randint(256, (300, 28, 28), dtype=torch.uint8)
        data = ImageSet(images, torch.arange(300) % 10, torch.arange(300))
        loader = BatchLoader(
            data, batch_size, seed=1, augmentation=augmentation, epochs=2, chunked=chunked
        )
        return list(loader)

    single = epoch(chunked=False)
    assert [len(labels) for _, labels in single[:-1]] == [batch_size] * (len(single) - 1)
    parts = [
        part
        for images, labels in epoch(chunked=True)
        for part in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]
    for (images, labels), (others, same) in zip(single, parts, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, same)


def test_validation_and_test_are_whole_and_in_order(tiny_data: Path) -> None:
    data = ready(tiny_data, augmentation=Augmentation(translate=3))
    data.setup("test")
    loaders: list[tuple[Any, ImageSet]]
    loaders = [(data.val_dataloader(), data.val), (data.test_dataloader(), data.test)]
    for loader, part in loaders:
        images, labels = map(torch.cat, zip(*loader, strict=True))
        assert torch.equal(images, normalize(part.images))  # not augmented
        assert torch.equal(labels, part.labels)
    assert len(data.test) == 100


def test_training_batches_are_augmented_by_the_epoch_and_then_normalized(tiny_data: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Black:
        def set_epoch(self, epoch: int, epochs: int) -> None:
            seen.append((epoch, epochs))

        def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            assert images.dtype == torch.uint8
            return torch.zeros_like(images), labels

    data = ready(tiny_data, augmentation=Black())
    data.trainer = trainer_of_nine_epochs()
    loader = data.train_dataloader()
    loader.set_epoch(7)
    images, _ = next(iter(loader))
    assert torch.equal(images, normalize(torch.zeros(32, 28, 28, dtype=torch.uint8)))
    assert seen == [(7, 9)]


def test_normalize_by_hand() -> None:
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    images[1] = 255
    found = normalize(images)
    assert found.shape == (2, 1, 28, 28)
    assert found[0, 0, 5, 5].item() == pytest.approx(-0.2860 / 0.3530)
    assert found[1, 0, 5, 5].item() == pytest.approx((1 - 0.2860) / 0.3530)
    floats = images.float()
    assert torch.equal(normalize(floats), found)
    assert floats[1, 5, 5] == 255  # the images themselves stay as they are


@pytest.fixture(scope="module")
def real() -> FashionMNIST:
    if not all((download.raw_folder(REAL) / name).is_file() for name in download.PAYLOADS):
        pytest.skip(f"the real data is not in {REAL}: scripts/get_data downloads it")
    data = tiny(REAL, val_size=10_000, official=True)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.real_data
def test_the_real_split(real: FashionMNIST) -> None:
    assert torch.bincount(real.train.labels).tolist() == [5_000] * 10
    assert torch.bincount(real.val.labels).tolist() == [1_000] * 10
    assert not set(real.train.indices.tolist()) & set(real.val.indices.tolist())
    # The one that every number under results/ was measured on.
    assert real.val.indices[:5].tolist() == [1, 3, 32, 34, 47]
    assert real.val.indices.sum().item() == 300_698_755


@pytest.mark.real_data
def test_the_constants_are_the_real_ones(real: FashionMNIST) -> None:
    everything = torch.cat([real.train.images, real.val.images]).double() / 255
    assert everything.mean().item() == pytest.approx(MEAN, abs=1e-4)
    assert everything.std().item() == pytest.approx(STD, abs=1e-4)


@pytest.mark.real_data
def test_the_real_test_set(real: FashionMNIST) -> None:
    real.setup("test")
    assert torch.bincount(real.test.labels).tolist() == [1_000] * len(CLASSES)
