"""Fashion-MNIST as a LightningDataModule: verified, split, batched, augmented and normalised."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fashion import config as schema
from fashion.config import NonNegativeInt, PositiveInt, Seed
from fashion.data import download as idx
from fashion.errors import UserError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Mean and standard deviation of the training pictures' pixels after scaling to 0..1.
MEAN, STD = 0.2860, 0.3530
# Without gradients a step is cheap, so its overhead shows: larger batches, of bounded memory.
EVAL_BATCH_SIZE = 250
# Small training batches come several at once: to fetch, augment and normalize them, and to call
# Lightning's training loop, costs nearly as much for one as for all.
PICTURES_AT_ONCE = 256

Batch = tuple[Tensor, Tensor]


def normalize(images: UInt8[Tensor, "batch 28 28"]) -> Float[Tensor, "batch 1 28 28"]:
    """Raw pixels scaled to 0..1, then to the training pictures' zero mean and unit deviation."""
    return images.unsqueeze(1).float().sub_(MEAN * 255).div_(STD * 255)


def epoch_seed(seed: int, epoch: int) -> int:
    """What one epoch's randomness starts from: a function of both, not of what ran before."""
    return (seed << 24) + epoch


class ImageSet(Dataset[Batch]):
    """A split in memory: pictures as bytes, labels, and their positions in the official file."""

    def __init__(
        self,
        images: UInt8[Tensor, "n 28 28"],
        labels: Int[Tensor, " n"],
        indices: Int[Tensor, " n"],
    ) -> None:
        self.images, self.labels, self.indices = images, labels, indices

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Batch:
        return self.images[position], self.labels[position]

    def __getitems__(self, positions: Int[Tensor, " batch"]) -> Batch:
        """A whole batch by one indexing operation; DataLoader asks for this one if it is there."""
        return self.images[positions], self.labels[positions]


class Batches(Sampler[Tensor]):
    """Positions of the pictures of each batch, of which this process gets its share.

    With a seed the order is a new one each epoch, a function of (seed, epoch) alone. Each of
    `processes` takes every so-manyth picture of a batch: each picture is seen once an epoch, the
    processes take equally many steps, and their shares differ by one picture at most.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int | None, rank: int, processes: int
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.processes = rank, processes
        self.epoch = 0

    @property
    def sampler(self) -> "Batches":
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[Int[Tensor, " share"]]:
        if self.seed is None:
            order = torch.arange(self.size)
        else:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator)
        for batch in order.split(self.batch_size):
            yield batch[self.rank :: self.processes]


class FashionMNIST(pl.LightningDataModule):
    """The official 60,000 split into training and validation, and the official test set apart.

    Args:
        seed: of the batches' order.
        augmentation: of raw training pictures (batch, 28, 28) in an epoch, from 0; None for none.
        root: data folder; the four files lie in ROOT/FashionMNIST/raw, and are brought if missing.
        batch_size: training pictures a step, shared by all processes.
        val_size: pictures held out for validation, stratified by class; 0 trains on all.
        split_seed: of the split, so that every run of a comparison shares it.
        official: whether the files must be those of the release of 2017-08-31.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet

    def __init__(
        self,
        seed: int,
        augmentation: Callable[[Tensor, int], Tensor] | None = None,
        *,
        root: str,
        batch_size: PositiveInt,
        val_size: NonNegativeInt,
        split_seed: Seed,
        official: bool,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.augmentation = augmentation
        self.root = Path(root)
        self.batch_size = batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.official = official

    @property
    def steps(self) -> int:
        """Training steps an epoch, once the data is set up."""
        return math.ceil(len(self.train) / self.batch_size)

    def prepare_data(self) -> None:
        """Bring and verify the files.

        Raises:
            UserError: they are not there and cannot be brought, or are not what they should be.
        """
        if self.official:
            idx.ensure(self.root)
        else:
            idx.ensure_consistent(self.root)

    def setup(self, stage: str) -> None:
        """Load what `stage` needs: "fit" and "validate" never read the test set.

        Raises:
            UserError: a label is not a class, or a size does not fit the number of pictures.
        """
        if stage == "test":
            self.test = self._read(train=False)
        elif not hasattr(self, "train"):
            everything = self._read(train=True)
            schema.check_sizes(len(everything), self.val_size, self.batch_size)
            train, val = stratified_split(everything.labels, self.val_size, self.split_seed)
            self.train, self.val = (
                ImageSet(everything.images[part], everything.labels[part], part)
                for part in (train, val)
            )

    def _read(self, *, train: bool) -> ImageSet:
        raw = idx.raw_folder(self.root)
        old = raw.with_name("processed")
        if old.exists():  # torchvision prefers it to the verified files
            raise UserError(f"{old} is of an old torchvision, and verified by nobody; remove it.")
        dataset = torchvision.datasets.FashionMNIST(self.root, train=train)
        if dataset.targets.max() >= len(CLASSES):
            raise UserError(
                f"{raw} holds the label {int(dataset.targets.max())}; "
                f"labels go from 0 to {len(CLASSES) - 1}."
            )
        return ImageSet(dataset.data, dataset.targets, torch.arange(len(dataset.targets)))

    def train_dataloader(self) -> DataLoader[Batch]:
        # One at a time where processes must keep in step, or where Lightning counts them.
        one = self.trainer and (
            self.trainer.world_size > 1 or isinstance(self.trainer.limit_train_batches, int)
        )
        together = 1 if one else max(1, PICTURES_AT_ONCE // self.batch_size)
        return self._loader(self.train, together * self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        return self._loader(self.val, EVAL_BATCH_SIZE) if self.val_size else []

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.test, EVAL_BATCH_SIZE)

    def _loader(
        self, pictures: ImageSet, batch_size: int, seed: int | None = None
    ) -> DataLoader[Batch]:
        rank, processes = 0, 1
        if self.trainer:
            rank, processes = self.trainer.global_rank, self.trainer.world_size
        batches = Batches(len(pictures), batch_size, seed, rank, processes)
        # No workers: a batch is ready sooner than another process could hand it over. A generator
        # of its own, since a new iterator draws a number, now before EpochSeed and now after it.
        return DataLoader(
            pictures,
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            generator=torch.Generator(),
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Augment and normalize on the device: a quarter of the bytes travels."""
        images, labels = batch
        if self.augmentation is not None and self.trainer and self.trainer.training:
            images = self.augmentation(images, self.trainer.current_epoch)
        return normalize(images), labels


def _as_it_is(batch: Batch) -> Batch:
    return batch


def stratified_split(
    labels: Int[Tensor, " n"], val_size: int, seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " val"]]:
    """Positions for training and for validation, ascending; each class keeps its share.

    Within a class pictures are ranked at random; those with the lowest rank, relative to the size
    of their class, are held out.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    order = rank.argsort(stable=True)
    return order[val_size:].sort().values, order[:val_size].sort().values
