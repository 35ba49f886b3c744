"""Fashion-MNIST as a LightningDataModule: verified, split, batched, augmented and normalized."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torchvision
from filelock import FileLock
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor

from fashion.config import Folds, NonNegativeInt, PositiveInt, Seed, build, check_sizes
from fashion.data import CLASSES, download
from fashion.data.augmentation import Augment, Augmentation, per_image
from fashion.errors import UserError, first_line

# Mean and standard deviation of Fashion-MNIST's training pixels after scaling to 0..1.
MEAN, STD = 0.2860, 0.3530
# Without gradients the overhead per batch dominates: larger batches, of bounded memory.
EVAL_BATCH_SIZE = 250
# Small training batches are indexed, augmented and normalized together, up to so many images: that
# takes hardly longer than one batch alone.
IMAGES_AT_ONCE = 256
# Class names of torchvision's data sets in the same format.
CLASS_NAMES = {
    "FashionMNIST": CLASSES,
    "MNIST": tuple(map(str, range(10))),
    "KMNIST": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}

Batch = tuple[Tensor, Tensor]


def normalize(images: Num[Tensor, "batch 28 28"]) -> Float[Tensor, "batch 1 28 28"]:
    """Standardize pixels 0..255 by `MEAN` and `STD`, which other data sets use too."""
    return images.unsqueeze(1).to(torch.float32, copy=True).sub_(MEAN * 255).div_(STD * 255)


def reduce_resolution(
    images: Num[Tensor, "batch 28 28"], resolution: int
) -> Num[Tensor, "batch 28 28"]:
    """Average pixels 0..255 over square blocks, each of which becomes one large pixel.

    The size stays 28 x 28, so that every network takes the images. Applying it twice is the same as
    applying it once.

    Args:
        images: of any dtype, which is kept.
        resolution: blocks along each side: 28 (images as they are), 14 or 7.
    """
    if resolution == images.shape[1]:
        return images
    side = images.shape[1] // resolution
    blocks = images.unflatten(2, (resolution, side)).unflatten(1, (resolution, side))
    means: Tensor = blocks.float().mean((2, 4)).round().to(images.dtype)
    return means[:, :, None, :, None].expand_as(blocks).reshape(images.shape)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch (from 0), the same in a resumed and an uninterrupted run."""
    return (seed << 24) + epoch


@dataclass(frozen=True)
class ImageSet:
    """A split in memory: images (0..255), labels, and the images' positions in their file."""

    images: UInt8[Tensor, "n 28 28"]
    labels: Int[Tensor, " n"]
    indices: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: Int[Tensor, " m"]) -> "ImageSet":
        return ImageSet(self.images[positions], self.labels[positions], self.indices[positions])


class BatchLoader:
    """Iterate over an ImageSet in batches: normalized float images (batch, 1, 28, 28) and labels.

    Images are indexed, augmented and normalized on `device`, without worker processes: a batch is
    ready sooner than another process could hand it over. Nothing in it waits for a GPU.

    Args:
        data: what to iterate over.
        batch_size: images per batch, over all processes.
        seed: of the shuffling, a function of (seed, epoch); None does not shuffle.
        augmentation: of training images, or None.
        epochs: of the whole training, for the augmentation; -1 if unknown.
        rank: of this process, which takes images rank, rank + world_size, ... of each batch: each
            image is seen once per epoch, and shards differ in size by one image at most.
        world_size: number of processes.
        chunked: yield the batches that were prepared together as one (training/fast_path.py).
        fixed: whether every epoch has the order of the first, as overfit_batches needs.
        device: where to prepare batches; None for the CPU.
        resident: whether all images lie there as well, as bytes; otherwise each batch moves.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        seed: int | None = None,
        augmentation: Augment | None = None,
        epochs: int = -1,
        rank: int = 0,
        world_size: int = 1,
        chunked: bool = False,
        fixed: bool = False,
        device: torch.device | None = None,
        resident: bool = True,
    ) -> None:
        self.device = torch.device("cpu") if device is None else device
        home = self.device if resident else data.images.device
        self.images, self.labels = data.images.to(home), data.labels.to(home)
        self.batch_size, self.seed, self.fixed = batch_size, seed, fixed
        self.augmentation, self.epochs = augmentation, epochs
        self.rank, self.world_size = rank, world_size
        # Shards of several batches could not be told apart once they are joined.
        self.at_once = max(1, IMAGES_AT_ONCE // batch_size) if world_size == 1 else 1
        self.chunked = chunked
        self.epoch = 0

    batch_sampler = None

    @property
    def sampler(self) -> "BatchLoader":
        """Return this loader: Lightning calls `set_epoch` of a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        images = self.batch_size * (self.at_once if self.chunked else 1)
        return math.ceil(len(self.labels) / images)

    def __iter__(self) -> Iterator[Batch]:
        if set_epoch := getattr(self.augmentation, "set_epoch", None):
            set_epoch(self.epoch, self.epochs)
        # Moved once: moving each batch's positions would wait for the device's work so far.
        order = self._order().to(self.images.device)
        for positions in order.split(self.at_once * self.batch_size):
            mine = positions[self.rank :: self.world_size]
            images, labels = (self._moved(each[mine]) for each in (self.images, self.labels))
            if self.augmentation is not None:
                images, labels = _augmented(self.augmentation, images, labels)
            images = normalize(images)
            if self.chunked or self.at_once == 1:
                yield images, labels
            else:
                size = self.batch_size
                yield from zip(images.split(size), labels.split(size), strict=True)

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # or the copy would wait
        return tensor.to(self.device, non_blocking=True)

    def _order(self) -> Int[Tensor, " n"]:
        if self.seed is None:
            return torch.arange(len(self.labels))
        seed = epoch_seed(self.seed, 0 if self.fixed else self.epoch)
        return torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))


def _augmented(augmentation: Augment, images: Tensor, labels: Tensor) -> Batch:
    """Augment a batch.

    Raises:
        UserError: an augmentation that is not ours raised, or changed the images' size.
    """
    try:
        augmented, targets = augmentation(images, labels)
    except Exception as error:
        ours = isinstance(augmentation, Augmentation)
        if ours or isinstance(error, UserError | torch.OutOfMemoryError):
            raise
        reason = first_line(error)
        raise UserError(
            f"augmentation: it raised {type(error).__name__} for uint8 images "
            f"{tuple(images.shape)}: {reason}"
        ) from error
    if augmented.shape != images.shape:
        raise UserError(
            f"augmentation: it returned images of shape {tuple(augmented.shape)} for "
            f"{tuple(images.shape)}."
        )
    return augmented, targets


class FashionMNIST(pl.LightningDataModule):
    """The official 60,000 images split into training and validation, and the test set apart.

    Args:
        seed: of the batches' order.
        augmentation: of training images, as fashion.data.augmentation describes; None for none.
        root: data folder; the files lie in ROOT/FashionMNIST/raw, and are downloaded if missing.
        batch_size: training images per step, shared by all processes.
        val_size: images of the validation set, stratified by class; 0 trains on all.
        split_seed: of the split, so that every run of a comparison shares it.
        official: whether Fashion-MNIST's files must be those of the release of 2017-08-31.
        dataset: torchvision's name of a data set in the same format, and the folder below `root`.
        classes: names of the classes; None for the data set's own.
        train_size: images of a stratified part of the training split, fixed by `split_seed`: a
            smaller part lies within each larger one. None for all.
        resolution: pixels along each side, of all splits; see `reduce_resolution`.
        folds: number of folds of a stratified cross-validation, which replaces `val_size`.
        fold: which of them, from 0, is the validation set.
        on_device: whether all images lie on the device that trains (47 MB on a GPU); otherwise
            each batch moves there.

    Raises:
        UserError: there is no such fold.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet

    def __init__(
        self,
        seed: int = 0,
        augmentation: Any = None,
        *,
        root: str = "data",
        batch_size: PositiveInt = 32,
        val_size: NonNegativeInt = 10_000,
        split_seed: Seed = 0,
        train_size: PositiveInt | None = None,
        resolution: Literal[28, 14, 7] = 28,
        official: bool = True,
        dataset: Literal["FashionMNIST", "MNIST", "KMNIST"] = "FashionMNIST",
        classes: list[str] | None = None,
        folds: Folds | None = None,
        fold: NonNegativeInt = 0,
        on_device: bool = True,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.augmentation = None if augmentation is None else per_image(augmentation)
        self.dataset = dataset
        self.root = download.data_folder(root, dataset)
        self.batch_size = batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.train_size, self.resolution = train_size, resolution
        self.official = official and dataset == "FashionMNIST"
        self.classes = tuple(classes or CLASS_NAMES[dataset])
        self.folds, self.fold = folds, fold
        self.on_device = on_device
        if folds is not None and not fold < folds:
            raise UserError(f"data.fold = {fold}: the folds are 0 to {folds - 1}.")
        self.chunked = False  # see training/fast_path.py

    @property
    def steps(self) -> int:
        """Return the training steps per epoch, once the data is set up."""
        return math.ceil(len(self.train) / self.batch_size)

    def prepare_data(self) -> None:
        """Download and verify the files.

        Raises:
            UserError: a file is missing and cannot be downloaded, is damaged, or is another one.
        """
        folder = download.raw_folder(self.root, self.dataset)
        missing = not all((folder / name).exists() for name in download.PAYLOADS)
        if self.dataset != "FashionMNIST" and missing:
            try:
                self._download(folder)
            except (OSError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"{self.dataset} is not in {folder} and cannot be downloaded ({reason}). "
                    "Put its four idx files there."
                ) from error
        download.prepare(self.root, official=self.official, dataset=self.dataset)

    def _download(self, folder: Path) -> None:
        """Let torchvision download the data; move whole files into place, in one process only."""
        folder.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(folder / ".lock", mode=0o666),
            tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch,
        ):
            missing = [name for name in download.PAYLOADS if not (folder / name).exists()]
            if missing:
                getattr(torchvision.datasets, self.dataset)(scratch, download=True)
            for name in missing:
                (download.raw_folder(Path(scratch), self.dataset) / name).replace(folder / name)

    def setup(self, stage: str) -> None:
        """Load what `stage` needs: "fit" and "validate" never read the test set.

        Raises:
            UserError: a label is not a class, or a size does not fit the number of images.
        """
        if stage in ("test", "predict"):
            if not hasattr(self, "test"):
                self.test = self._read(train=False)
        elif not hasattr(self, "train"):
            everything = self._read(train=True)
            labels, size = everything.labels, self.val_size
            if self.folds is None:
                check_sizes(len(labels), size, self.batch_size, self.train_size)
                train, val = stratified_split(labels, size, self.split_seed)
            else:
                train, val = stratified_fold(labels, self.folds, self.fold, self.split_seed)
                check_sizes(len(labels), len(val), self.batch_size, self.train_size)
            if self.train_size is not None:
                part = _stratified_order(labels[train], self.split_seed)[: self.train_size]
                train = train[part.sort().values]
            self.train, self.val = everything[train], everything[val]

    def _read(self, *, train: bool) -> ImageSet:
        raw = download.raw_folder(self.root, self.dataset)
        old = raw.with_name("processed")
        if old.exists():  # torchvision prefers it to the verified files
            raise UserError(f"{old} is of an old torchvision, and not verified; remove it.")
        data = getattr(torchvision.datasets, self.dataset)(self.root, train=train)
        if data.targets.max() >= len(self.classes):
            raise UserError(
                f"{raw} holds the label {int(data.targets.max())}; labels go from 0 to "
                f"{len(self.classes) - 1}. data.classes=[...] names more classes."
            )
        images = reduce_resolution(data.data, self.resolution)
        return ImageSet(images, data.targets, torch.arange(len(data.targets)))

    def train_dataloader(self) -> BatchLoader:
        trainer: Any = self.trainer
        return self._loader(
            self.train,
            self.batch_size,
            seed=self.seed,
            augmentation=self.augmentation,
            epochs=(trainer and trainer.max_epochs) or -1,
            chunked=self.chunked,
            fixed=bool(trainer and trainer.overfit_batches),
        )

    def val_dataloader(self) -> BatchLoader | list[Any]:
        return self._loader(self.val, EVAL_BATCH_SIZE) if len(self.val) else []

    def test_dataloader(self) -> BatchLoader:
        return self._loader(self.test, EVAL_BATCH_SIZE)

    predict_dataloader = test_dataloader

    def _loader(self, data: ImageSet, batch_size: int, **options: Any) -> BatchLoader:
        if trainer := self.trainer:
            options |= {"rank": trainer.global_rank, "world_size": trainer.world_size}
            options |= {"device": trainer.strategy.root_device, "resident": self.on_device}
        return BatchLoader(data, batch_size, **options)


def class_names(section: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes of a `data` section; Fashion-MNIST's if it has none."""
    dataset = section.get("dataset", "FashionMNIST")
    return tuple(section.get("classes") or CLASS_NAMES.get(dataset, CLASSES))


def from_config(section: dict[str, Any], seed: int = 0, augmentation: Any = None) -> FashionMNIST:
    """Build the LightningDataModule of a `data` section: FashionMNIST, or a subclass of one's own.

    Raises:
        UserError: it cannot be built, or is no FashionMNIST.
    """
    data = build("data", section, offered={"seed": seed, "augmentation": augmentation})
    if not isinstance(data, FashionMNIST):
        raise UserError(
            f"data._target_ = {section['_target_']}: it is no FashionMNIST, whose split and "
            "batches all commands use, nor a subclass of it. Own data: see docs/extending.md."
        )
    return data


def stratified_split(
    labels: Int[Tensor, " n"], val_size: int, seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " val"]]:
    """Return ascending positions for training and validation, with equal class proportions."""
    order = _stratified_order(labels, seed)
    return order[val_size:].sort().values, order[:val_size].sort().values


def stratified_fold(
    labels: Int[Tensor, " n"], folds: int, fold: int, seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " val"]]:
    """Return the positions outside and inside one of `folds` stratified folds, ascending.

    The folds' sizes differ by one image at most, and each image lies in exactly one of them.
    """
    bounds = [round(len(labels) * part / folds) for part in (fold, fold + 1)]
    order = _stratified_order(labels, seed)
    inside = order[bounds[0] : bounds[1]]
    outside = torch.cat([order[: bounds[0]], order[bounds[1] :]])
    return outside.sort().values, inside.sort().values


def _stratified_order(labels: Int[Tensor, " n"], seed: int) -> Int[Tensor, " n"]:
    """Return all positions in an order whose contiguous parts have the class proportions of all.

    Images are ranked at random within their class, and sorted by rank / size of the class.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return rank.argsort(stable=True)
