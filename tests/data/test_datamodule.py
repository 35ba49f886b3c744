import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_data, write_idx
from torch import Tensor

from fashion.data import download as idx
from fashion.data.datamodule import (
    CLASSES,
    MEAN,
    STD,
    Batches,
    FashionMNIST,
    ImageSet,
    normalize,
    stratified_split,
)
from fashion.errors import UserError

REAL = Path(__file__).parent.parent / "data"


def tiny(root: Path, **changes: Any) -> FashionMNIST:
    settings = {
        "root": str(root),
        "batch_size": 32,
        "val_size": 100,
        "split_seed": 0,
        "official": False,
    }
    return FashionMNIST(**{"seed": 0} | settings | changes)


def ready(root: Path, **changes: Any) -> FashionMNIST:
    data = tiny(root, **changes)
    data.setup("fit")
    return data


@pytest.mark.parametrize("counts", [[100] * 10, [997, 3, 10, 501, 1, 64, 0, 128, 0, 32]])
@pytest.mark.parametrize("share", [0, 0.1, 1 / 6, 0.5, 0.999])
def test_the_split_is_disjoint_complete_and_stratified(counts: list[int], share: float) -> None:
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    size = int(share * len(labels))
    train, val = stratified_split(labels, size, 0)
    assert len(val) == size
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held_out = int((labels[val] == label).sum())
        assert abs(held_out - count * size / len(labels)) <= 1


def test_one_split_for_every_run_seed(tiny_data: Path) -> None:
    first, second = ready(tiny_data, seed=0), ready(tiny_data, seed=1)
    assert torch.equal(first.val.indices, second.val.indices)
    other = ready(tiny_data, split_seed=1)
    assert not torch.equal(first.val.indices, other.val.indices)
    assert (len(first.train), len(first.val)) == (300, 100)
    assert torch.bincount(first.val.labels).tolist() == [10] * 10


def test_pictures_know_where_they_stand_in_the_file(tiny_data: Path) -> None:
    data = ready(tiny_data)
    raw = np.fromfile(idx.raw_folder(tiny_data) / "train-images-idx3-ubyte", np.uint8)[16:]
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
        ({"val_size": 400}, r"data\.val_size = 400: there are 400 pictures"),
        ({"val_size": 60_001}, r"data\.val_size = 60001"),
        ({"batch_size": 301}, r"data\.batch_size = 301: there are 300 pictures to train on"),
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
    labels = np.arange(count) % 11
    write_idx(idx.raw_folder(root) / f"{part}-labels-idx1-ubyte", labels)
    with pytest.raises(UserError, match="label 10; labels go from 0 to 9"):
        tiny(root).setup("fit" if part == "train" else "test")


def test_other_data_is_refused_unless_asked_for(tiny_data: Path) -> None:
    tiny(tiny_data).prepare_data()
    with pytest.raises(UserError, match=r"not Fashion-MNIST's official file: .*official=false"):
        tiny(tiny_data, official=True).prepare_data()


def test_the_test_set_is_read_only_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    root = make_data(tmp_path)
    for path in idx.raw_folder(root).glob("t10k-*"):
        path.write_bytes(b"")
    data = ready(root)
    data.setup("validate")
    assert not hasattr(data, "test")


def order(seed: int, epoch: int, rank: int = 0, processes: int = 1) -> list[list[int]]:
    batches = Batches(101, 10, seed, rank, processes)
    batches.set_epoch(epoch)
    return [batch.tolist() for batch in batches]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert sorted(itertools.chain(*order(0, 0))) == list(range(101))
    torch.manual_seed(99)  # what ran before does not matter
    again = Batches(101, 10, 0, 0, 1)
    list(again)
    again.set_epoch(3)
    assert [batch.tolist() for batch in again] == order(0, 3)
    different = {str(order(seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(different) == 25
    assert len(again) == len(order(0, 0)) == 11


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_batch(processes: int) -> None:
    """Each picture once, as many steps for all, though the last batch has a single picture."""
    shares = [order(0, 1, rank, processes) for rank in range(processes)]
    for batch, *parts in zip(order(0, 1), *shares, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_is_one_index_operation(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    fetch = Pictures.__getitems__

    def one_at_a_time(*_: object) -> None:
        raise AssertionError

    def counted(pictures: ImageSet, positions: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(positions)
        return fetch(pictures, positions)

    monkeypatch.setattr(ImageSet, "__getitems__", counted)
    monkeypatch.setattr(ImageSet, "__getitem__", one_at_a_time)
    data = ready(tiny_data)
    batches = list(data.train_dataloader())
    assert [len(positions) for positions in asked] == [256, 44]  # eight batches at a time
    assert torch.equal(torch.cat(asked), torch.cat(list(Batches(300, 32, 0, 0, 1))))
    images, labels = batches[0]
    assert (images.dtype, images.shape) == (torch.uint8, (256, 28, 28))
    assert torch.equal(images, data.train.images[asked[0]])
    assert torch.equal(labels, data.train.labels[asked[0]])


def test_validation_and_test_come_whole_and_in_order(tiny_data: Path) -> None:
    data = ready(tiny_data)
    data.setup("test")
    for loader, pictures in (
        (data.val_dataloader(), data.val),
        (data.test_dataloader(), data.test),
    ):
        assert torch.equal(torch.cat([labels for _, labels in loader]), pictures.labels)
    assert len(data.test) == 100


def test_normalise_by_hand() -> None:
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    images[1] = 255
    found = normalize(images)
    assert found.shape == (2, 1, 28, 28)
    assert found[0, 0, 5, 5].item() == pytest.approx(-0.2860 / 0.3530)
    assert found[1, 0, 5, 5].item() == pytest.approx((1 - 0.2860) / 0.3530)
    assert images[1, 5, 5] == 255  # the picture itself stays as it is


def test_a_batch_is_normalised_after_it_has_moved(tiny_data: Path) -> None:
    """And augmented before that in training alone, by the epoch."""
    asked = []

    def black(images: Tensor, epoch: int) -> Tensor:
        asked.append(epoch)
        return torch.zeros_like(images)

    data = ready(tiny_data)
    images, labels = next(iter(data.train_dataloader()))
    normal, same = data.on_after_batch_transfer((images, labels), 0)
    assert torch.equal(normal, normalize(images))
    assert torch.equal(same, labels)
    data.augmentation = black
    for training in (False, True):
        data.trainer = SimpleNamespace(training=training, current_epoch=7)  # type: ignore[assignment]
        found, _ = data.on_after_batch_transfer((images, labels), 0)
        assert torch.equal(found, normalize(torch.zeros_like(images) if training else images))
    assert asked == [7]


@pytest.fixture(scope="module")
def real() -> FashionMNIST:
    if not all((idx.raw_folder(REAL) / name).is_file() for name in idx.PAYLOADS):
        pytest.skip(f"the real data is not in {REAL}: scripts/get_data brings it")
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
    batches = [
        real.on_after_batch_transfer(batch, 0)[0]
        for _, batch in zip(range(20), real.train_dataloader(), strict=False)
    ]
    normal = torch.cat(batches)
    assert normal.mean().item() == pytest.approx(0, abs=0.02)
    assert normal.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.real_data
def test_the_real_test_set(real: FashionMNIST) -> None:
    real.setup("test")
    assert torch.bincount(real.test.labels).tolist() == [1_000] * len(CLASSES)
