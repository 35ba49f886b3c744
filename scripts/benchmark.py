"""Training speed of the deck's model at batch size 32, as ratios within one run.

Each round times every contestant in turn, so that a machine whose speed drifts slows all alike:

    bare       forward, backward, step on one resident batch: what the hardware allows this network
    plain      the same with torch's defaults: no channels-last, no fused optimizer
    ours       fashion.train's own loop with everything on: data, Lightning, metrics, logs, bar
    usual      the usual way: torchvision transforms an image, a DataLoader, plain Lightning
    keras      the deck's own tool, if it is installed

Writes results/benchmark.json.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Rich draws its bar only where it takes the output for a terminal, and a person's output is one.
os.environ["TTY_COMPATIBLE"] = "1"

import lightning.pytorch as pl
import torch
import torchvision
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassAccuracy

from fashion.callbacks import Checkpoints, EpochSeed, Stopwatch
from fashion.classifier import Classifier
from fashion.run import Run, provenance
from fashion.train import CONF
from fashion.trainer import prepare_process, quieten

BATCH_SIZE = 32
VARIANTS = {"literal": 1, "pooled": 2}  # side of the pooling window


def configuration(pool: int, steps: int) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "train",
            [
                f"model.network.pool={pool}",
                f"trainer.limit_train_batches={steps}",
                "trainer.max_epochs=1",
                "trainer.limit_val_batches=1",
                "trainer.accelerator=cpu",
                "name=benchmark",
            ],
        )


def network(pool: int) -> nn.Module:
    return instantiate(configuration(pool, 1).model.network, _convert_="all")  # type: ignore[no-any-return]


def loop(net: nn.Module, images: Tensor, steps: int, *, fused: bool) -> float:
    """Images a second of the shortest training loop there is."""
    labels = torch.arange(BATCH_SIZE) % 10
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    start = time.perf_counter()
    for _ in range(steps):
        functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return steps * BATCH_SIZE / (time.perf_counter() - start)


def bare(pool: int, steps: int) -> float:
    net = network(pool).to(memory_format=torch.channels_last)
    return loop(net, torch.randn(BATCH_SIZE, 1, 28, 28), steps, fused=True)


def plain_network(pool: int) -> nn.Sequential:
    """The network as one would write it: activation, then pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 3),
        nn.LeakyReLU(0.05),
        *([nn.MaxPool2d(pool)] if pool > 1 else []),
        nn.Flatten(),
        nn.Linear(64 * (26 // pool) ** 2, 128),
        nn.ReLU(),
        nn.Dropout(0.6),
        nn.Linear(128, 10),
    )


def plain(pool: int, steps: int) -> float:
    return loop(plain_network(pool), torch.randn(BATCH_SIZE, 1, 28, 28), steps, fused=False)


def ours(pool: int, steps: int) -> float:
    """What `fashion.train` wires, timed by its own stopwatch over one shortened epoch."""
    config = configuration(pool, steps)
    data = instantiate(config.data, config.seed)
    data.prepare_data()
    data.setup("fit")
    classifier = Classifier(network(pool), instantiate(config.optimizer))
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, quiet():
        callbacks = [
            EpochSeed(config.seed),
            stopwatch,
            instantiate(config.callbacks.early_stopping),
            Checkpoints(run := Run(Path(folder)), validates=True),
        ]
        trainer = instantiate(config.trainer, run, callbacks, 0, True)  # noqa: FBT003
        trainer.fit(classifier, datamodule=data)
    assert stopwatch.images_per_second is not None  # noqa: S101
    return stopwatch.images_per_second


class Usual(pl.LightningModule):
    """A LightningModule as tutorials write it."""

    def __init__(self, pool: int) -> None:
        super().__init__()
        self.network = plain_network(pool)
        self.accuracy = MulticlassAccuracy(10)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = functional.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.accuracy, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.001)


def usual(pool: int, steps: int) -> float:
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.2860,), (0.3530,)),
        ]
    )
    dataset = torchvision.datasets.FashionMNIST("data", transform=transform)
    subset = Subset(dataset, range(steps * BATCH_SIZE))
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            default_root_dir=folder,
            callbacks=[stopwatch],
            enable_checkpointing=False,
        )
        trainer.fit(Usual(pool), DataLoader(subset, BATCH_SIZE, shuffle=True))
    assert stopwatch.images_per_second is not None  # noqa: S101
    return stopwatch.images_per_second


def keras(pool: int, steps: int) -> float:
    import keras as k  # type: ignore[import-not-found]
    import numpy as np

    pooling = [k.layers.MaxPool2D(pool)] if pool > 1 else []
    model = k.Sequential(
        [
            k.layers.Input((28, 28, 1)),
            k.layers.Conv2D(64, 3),
            k.layers.LeakyReLU(negative_slope=0.05),
            *pooling,
            k.layers.Flatten(),
            k.layers.Dense(128, activation="relu"),
            k.layers.Dropout(0.6),
            k.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    dataset = torchvision.datasets.FashionMNIST("data")
    count = steps * BATCH_SIZE
    images = (dataset.data[:count].numpy() / 255).astype(np.float32)[..., None]
    labels = dataset.targets[:count].numpy()
    model.fit(images[:320], labels[:320], batch_size=BATCH_SIZE, verbose=0)  # compiles
    start = time.perf_counter()
    model.fit(images, labels, batch_size=BATCH_SIZE, verbose=0)
    return count / (time.perf_counter() - start)


@contextlib.contextmanager
def quiet() -> Any:
    """The bar draws as for a person, but to nowhere."""
    quieten()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="training steps a measurement")
    arguments = parser.parse_args()
    prepare_process()
    contestants: dict[str, Callable[[int, int], float]] = {
        "bare": bare,
        "plain": plain,
        "ours": ours,
        "usual": usual,
    }
    if importlib.util.find_spec("keras"):
        contestants["keras"] = keras
    measured: dict[str, dict[str, list[float]]] = {
        variant: {name: [] for name in contestants} for variant in VARIANTS
    }
    for round_ in range(arguments.rounds):
        for variant, pool in VARIANTS.items():
            for name, contestant in contestants.items():
                measured[variant][name].append(contestant(pool, arguments.steps))
        print(f"round {round_ + 1} of {arguments.rounds}")
    ratios = {
        variant: {
            name: statistics.median(
                o / v for o, v in zip(values["ours"], values[name], strict=True)
            )
            for name in contestants
        }
        for variant, values in measured.items()
    }
    for variant, values in measured.items():
        print(f"\n{variant:10} {'images/s':>10} {'min':>8} {'max':>8}   ours is")
        for name, series in values.items():
            middle = statistics.median(series)
            print(
                f"  {name:8} {middle:10,.0f} {min(series):8,.0f} {max(series):8,.0f}"
                f"   {ratios[variant][name]:.2f} x"
            )
    path = Path("results/benchmark.json")
    path.parent.mkdir(exist_ok=True)
    record = {
        "unit": "images per second",
        "steps": arguments.steps,
        "batch_size": BATCH_SIZE,
        "images_per_second": measured,
        "ratio_of_ours": ratios,
        **provenance(),
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
