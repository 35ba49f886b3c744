"""Measure training speed as ratios within one run: the deck's model, cnn, and fast's.

Each round times every contestant in turn, so that a machine whose speed drifts slows all alike:

    bare       forward, backward, step on one resident batch: what the hardware allows this network
    ours       fashion.train's own loop with everything on: data, Lightning, metrics, logs, table
    fp32       ours in fp32, where the others train with trainer.precision=auto
    one        ours with one thread
    busy       ours while another program keeps one core busy
    ordinary   ours with Lightning's ordinary loop, where ours takes several batches per call

and, for the deck's model alone,

    plain      bare with torch's defaults: no channels-last, no fused optimizer
    usual      the usual way: torchvision transforms per image, a DataLoader, plain Lightning
    keras      the deck's own tool, with --keras

Each is measured in a process of its own, since bare and ours change settings of theirs, and after
its first images, which wait for one-time imports and set-up. Beside fast's stand the fraction
of the machine's peak that its counted operations reach, the peak being a large product of fp32
matrices, its augmentation's fraction of a step, and how long the evaluation of 10,000 images takes
as a fraction of an epoch of 50,000. Beside the deck's stands the fraction of a step that its memory
traffic would take at the machine's bandwidth, which a large copy measures, if each weight, average
and activation were moved no more often than a step needs it. Then a grid of four runs of cnn
is trained one after the other and side by side (hydra/launcher=joblib), commands in whole. Last,
and once, best, cnn and Keras are trained from a cold start to a validation accuracy of 90 %.

Writes results/benchmark.json. On a GPU (--device cuda) bare, ours, fp32, usual and keras are
measured, and the seconds of whole trainings; writes results/benchmark-cuda.json.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Rich draws its bar only where it takes the output for a terminal, and a person's output is one.
os.environ["TTY_COMPATIBLE"] = "1"

import lightning.pytorch as pl
import torch
import torchvision
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassAccuracy

from fashion.config import CONF, build, register_resolvers
from fashion.runs.provenance import provenance
from fashion.runs.run import Run
from fashion.training import networks
from fashion.training.optimizers import configure
from fashion.training.process import fit, hardware_precision, prepare_process, quieten

BATCH_SIZE = 32  # the deck's
# More than the clock lets pass; in a training of few, augmentation would erase and mix nothing.
EPOCHS = 1000
DEVICE, KERAS = "cpu", ""  # --device, --keras
DECK = {"literal": 1, "pooled": 2}  # side of the pooling window
OVERRIDES = {
    **{variant: [f"model.network.pool={pool}"] for variant, pool in DECK.items()},
    "cnn": ["model=cnn"],
    "record": ["experiment=record"],
    "fast": ["experiment=fast"],
}
WHOLE = {"fast": 10, "record": 128, "literal": 4}  # epochs of trainings that are timed on a GPU
AUTO = "trainer.precision=auto"
GRID = ("model=cnn", "seed=0,1,2,3", "trainer.max_epochs=1", "logger=none", AUTO)
COPIED = 2**28  # bytes, far more than caches hold
# A step reads each parameter forward and backward, writes its gradient, and Adam reads gradient,
# parameter and both averages and writes the last three. It writes each layer's output, reads it
# in the next layer and again backward, and writes and reads its gradient.
MOVED_PER_PARAMETER, MOVED_PER_OUTPUT = 10, 5
BESIDE = ("peak", "augmentation", "evaluation")  # of fast's network: not its training
IMAGES, GPU_IMAGES = 9600, 96_000  # per measurement
WARM_UP = 1000  # images before the clock starts
TARGET = 0.9  # validation accuracy
STOP = {
    "_target_": "lightning.pytorch.callbacks.EarlyStopping",
    "monitor": "val/acc",
    "mode": "max",
    "patience": 10_000,
    "stopping_threshold": TARGET,
}
PEAK_SIZE = 2048  # rows and columns of the matrices


def configuration(variant: str, *overrides: str) -> Any:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "train",
            [
                *OVERRIDES[variant],
                f"trainer.max_epochs={EPOCHS}",
                AUTO,
                f"trainer.accelerator={DEVICE}",
                "name=benchmark",
                "sweep=benchmark",
                *overrides,
            ],
        )


def section(config: Any, key: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)  # type: ignore[return-value]


def network(config: Any) -> nn.Module:
    return build("model.network", section(config, "model.network"))  # type: ignore[no-any-return]


def now() -> float:
    """Return the time once the device has done its work so far."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def loop(
    net: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor, images: int, precision: str
) -> float:
    """Images per second of the shortest training loop there is."""
    labels = torch.arange(len(batch), device=batch.device) % 10
    mixed = precision == "bf16-mixed"
    warm_up, steps = (math.ceil(count / len(batch)) for count in (WARM_UP, images))
    start = 0.0
    for step in range(warm_up + steps):
        if step == warm_up:
            start = now()
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=mixed):
            logits = net(batch)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return steps * len(batch) / (now() - start)


class Clock(Callback):
    """Images per second of a Trainer's loop, which it ends after as many as are asked for."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.seen = self.counted = 0
        self.start = self.rate = 0.0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: tuple[Tensor, Tensor],
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        self.seen += len(batch[1])
        if self.start:
            self.counted += len(batch[1])
            if self.counted >= self.images:
                self.rate = self.counted / (now() - self.start)
                trainer.should_stop = True
        elif self.seen >= WARM_UP:
            self.start = now()


Clock.__module__ = "fashion.benchmark"  # or it would need the ordinary loop, as foreign hooks do


def bare(variant: str, images: int) -> float:
    prepare_process()
    config = configuration(variant)
    net = network(config).to(memory_format=torch.channels_last).to(DEVICE)
    counts = dict.fromkeys(("steps", "steps_per_epoch", "batches_per_epoch"), 1)
    chosen: Any = configure(net, section(config, "optimizer"), None, **counts)
    batch = torch.randn(config.data.batch_size, 1, 28, 28, device=DEVICE)
    precision = config.trainer.precision
    if precision == "auto":
        precision = hardware_precision(DEVICE)
    return loop(net, chosen["optimizer"], batch, images, precision)


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


def plain(variant: str, images: int) -> float:
    net = plain_network(DECK[variant]).to(DEVICE)
    batch = torch.randn(BATCH_SIZE, 1, 28, 28, device=DEVICE)
    return loop(net, torch.optim.Adam(net.parameters()), batch, images, "32-true")


def trained(variant: str, images: int, *overrides: str) -> float:
    """Images per second of a run as `fashion.train` trains it, which the clock ends."""
    clock = Clock(images)
    config = configuration(variant, "trainer.limit_val_batches=1", *overrides)
    with tempfile.TemporaryDirectory() as folder, quiet():
        run = Run(Path(folder) / "run")
        with run.start(config):
            fit(config, run, [clock])
    return clock.rate


def seconds(variant: str, images: int) -> float:  # noqa: ARG001 - all of each epoch
    """Seconds that a whole training takes, its start-up left out; the mean epoch's of `best`."""
    whole = variant in ("fast", "record")
    config = configuration(
        variant,
        f"trainer.max_epochs={WHOLE[variant]}",
        "callbacks.early_stopping=null",
    )
    with tempfile.TemporaryDirectory() as folder, quiet():
        run = Run(Path(folder) / "run")
        with run.start(config):
            done = fit(config, run)
    assert done is not None  # noqa: S101 - no dry run
    later = run.history["seconds"][1:]  # the first epoch prepares kernels
    return float(done.metrics["seconds"]) if whole else statistics.mean(later)


def ours(variant: str, images: int) -> float:
    return trained(variant, images)


def fp32(variant: str, images: int) -> float:
    return trained(variant, images, "trainer.precision=32-true")


def one(variant: str, images: int) -> float:
    return trained(variant, images, "trainer.threads=1")


def busy(variant: str, images: int) -> float:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            return trained(variant, images)
        finally:
            other.kill()


def bandwidth(variant: str, images: int) -> float:  # noqa: ARG001 - as the others
    """Bytes per second, read or written, of a large copy: the best of five."""
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * COPIED / min(seconds)


def traffic_per_image(variant: str) -> float:
    """Return the bytes that a training step must move, per image, in fp32."""
    config = configuration(variant)
    net = network(config)
    numbers = MOVED_PER_PARAMETER * sum(parameter.numel() for parameter in net.parameters())
    for layer in net.modules():
        if not list(layer.children()) and not isinstance(layer, networks._Flatten):  # noqa: SLF001 - a view
            layer.register_forward_hook(lambda _, __, output: outputs.append(output.numel()))
    outputs: list[int] = []
    with torch.no_grad():
        net(torch.randn(config.data.batch_size, 1, 28, 28))
    return 4 * (numbers + MOVED_PER_OUTPUT * sum(outputs)) / float(config.data.batch_size)


def grid(*overrides: str) -> float:
    """Seconds of a command that trains a grid."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fashion.train", "-m", *GRID, *overrides]
        start = time.perf_counter()
        subprocess.run(
            [*command, f"hydra.sweep.dir={folder}"], check=True, stdout=subprocess.DEVNULL
        )
        return time.perf_counter() - start


def ordinary(variant: str, images: int) -> float:
    monitor = "lightning.pytorch.callbacks.LearningRateMonitor"
    return trained(variant, images, f"+callbacks.rate._target_={monitor}")


def evaluation(variant: str, images: int) -> float:  # noqa: ARG001 - all there are
    """Validation images per second, in the loop of a training."""
    seconds: list[float] = []

    class Watch(Callback):
        def on_validation_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_validation_end(self, *_: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

    config = configuration(
        variant,
        *("trainer.limit_train_batches=1", "trainer.max_epochs=2"),
        "trainer.check_val_every_n_epoch=1",
    )
    with tempfile.TemporaryDirectory() as folder, quiet():
        run = Run(Path(folder) / "run")
        with run.start(config):
            fit(config, run, [Watch()])
    return float(config.data.val_size) / seconds[-1]


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


def usual(variant: str, images: int) -> float:
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.2860,), (0.3530,)),
        ]
    )
    dataset = torchvision.datasets.FashionMNIST("data", transform=transform)
    clock = Clock(images)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            accelerator=DEVICE,
            default_root_dir=folder,
            callbacks=[clock],
            enable_checkpointing=False,
        )
        trainer.fit(Usual(DECK[variant]), DataLoader(dataset, BATCH_SIZE, shuffle=True))
    return clock.rate


def keras(variant: str, images: int) -> float:
    return with_keras("rate", DECK[variant], images)


def with_keras(*arguments: object) -> float:
    """Return what scripts/benchmark_keras.py prints last."""
    command = [KERAS, str(Path(__file__).with_name("benchmark_keras.py")), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def to_90(model: str) -> float:
    """Seconds of a command that trains until a validation accuracy of 90 %, all in all."""
    start = time.perf_counter()
    if model == "keras":
        with_keras("until", TARGET)
    else:
        command = [sys.executable, "-m", "fashion.train", f"model={model}", AUTO]
        command += ["trainer.max_epochs=-1", "callbacks.early_stopping=null"]  # as Keras
        command += [f"+callbacks.stop.{key}={value}" for key, value in STOP.items()]
        with tempfile.TemporaryDirectory() as folder:
            command.append(f"hydra.run.dir={folder}/run")
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def peak(variant: str, images: int) -> float:  # noqa: ARG001 - as the others
    """Operations per second of a large product of fp32 matrices: the best of five."""
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2 * PEAK_SIZE**3 / min(seconds)


def augmentation(variant: str, images: int) -> float:
    """Images per second of the augmentation alone."""
    prepare_process()
    config = configuration(variant)
    augment = build("augmentation", section(config, "augmentation"))
    batch = torch.randint(256, (config.data.batch_size, 28, 28), dtype=torch.uint8)
    labels = torch.zeros(len(batch), dtype=torch.int64)
    augment.set_epoch(0, EPOCHS)
    augment(batch, labels)
    start = time.perf_counter()
    steps = math.ceil(images / len(batch))
    for epoch in range(steps):
        augment.set_epoch(epoch, EPOCHS)
        augment(batch, labels)
    return steps * len(batch) / (time.perf_counter() - start)


def operations_per_image(variant: str) -> float:
    """Of convolutions and matrix products, forward and backward, counted by torch."""
    net = network(configuration(variant))
    batch = torch.randn(10, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        functional.cross_entropy(net(batch), torch.arange(len(batch))).backward()
    return float(counter.get_total_flops()) / len(batch)


@contextlib.contextmanager
def quiet() -> Any:
    """The bar draws as for a person, but to nowhere."""
    quieten()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def measured_apart(contestant: str, variant: str, images: int) -> float:
    done = subprocess.run(
        [
            *(sys.executable, __file__, "--device", DEVICE),
            *("--keras", KERAS, "--measure", contestant, variant, "--images", str(images)),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.splitlines()[-1])


Series = dict[str, list[float]]  # by contestant, one number per round


def add_round(measured: dict[str, Series], images: int) -> None:
    """Measure each contestant once."""
    for variant, contestants in measured.items():
        for name, series in contestants.items():
            series.append(measured_apart(name, variant, images))


def measure_gpu(rounds: int, images: int) -> None:
    """Measure on a GPU, and write results/benchmark-cuda.json."""
    deck = [
        "bare",
        "ours",
        "fp32",
        "usual",
        *(["keras"] if KERAS else []),
    ]
    entries = {"literal": deck, "pooled": deck, "cnn": deck[:3], "fast": deck[:2]}
    measured: dict[str, Series] = {
        variant: {name: [] for name in names} for variant, names in entries.items()
    }
    times: Series = {variant: [] for variant in WHOLE}
    for round_ in range(rounds):
        add_round(measured, images)
        for variant, series in times.items():
            series.append(measured_apart("seconds", variant, images))
        print(f"round {round_ + 1} of {rounds}", flush=True)
    results = {
        "unit": "images per second",
        "gpu": torch.cuda.get_device_name(),
        "images": images,
        "images_per_second": measured,
        "ratio_of_ours": _ratios(measured),
        "epochs": WHOLE,
        "seconds": times,
        **provenance(),
    }
    for variant, series in times.items():
        what = "an epoch of it" if variant == "literal" else f"{WHOLE[variant]} epochs"
        print(f"{variant}: {what} in {statistics.median(series):.1f} s")
    write("benchmark-cuda.json", results)


def measure(rounds: int, images: int) -> tuple[dict[str, Series], Series]:
    """Return what was measured of each variant, and the seconds of grids by launcher."""
    ours_ = ["ours", "fp32", "one", "busy"]
    deck = ["bare", *ours_, "ordinary", "plain", "usual", "bandwidth"]
    if KERAS:
        deck.append("keras")
    entries = {
        "literal": deck,
        "pooled": deck,
        "cnn": ["bare", *ours_, "ordinary"],
        "fast": ["bare", *ours_, *BESIDE],
    }
    measured: dict[str, Series] = {
        variant: {name: [] for name in names} for variant, names in entries.items()
    }
    grids: Series = {"serial": [], "joblib": []}
    for round_ in range(rounds):
        add_round(measured, images)
        grids["serial"].append(grid())
        grids["joblib"].append(grid("hydra/launcher=joblib"))
        print(f"round {round_ + 1} of {rounds}", flush=True)
    return measured, grids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="per measurement")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--keras",
        default="",
        metavar="PYTHON",
        help="interpreter that has keras and tensorflow: not this one, which would import them too",
    )
    parser.add_argument("--measure", nargs=2, metavar=("CONTESTANT", "VARIANT"), help="one alone")
    arguments = parser.parse_args()
    global DEVICE, KERAS
    DEVICE, KERAS = arguments.device, arguments.keras
    if arguments.measure:
        contestant, variant = arguments.measure
        print(CONTESTANTS[contestant](variant, arguments.images or IMAGES))
        return
    if DEVICE == "cuda":
        measure_gpu(arguments.rounds, arguments.images or GPU_IMAGES)
        return
    images = arguments.images or IMAGES
    measured, grids = measure(arguments.rounds, images)
    beside = {name: measured["fast"].pop(name) for name in BESIDE}
    bandwidths = {variant: measured[variant].pop("bandwidth") for variant in DECK}
    ratios = _ratios(measured)
    seconds_to_90 = {
        model: to_90(model) for model in ("best", "cnn", *(["keras"] if KERAS else []))
    }
    results = {
        "unit": "images per second",
        "images": images,
        "images_per_second": measured,
        "ratio_of_ours": ratios,
        "grid_seconds": grids,
        "seconds_to_90_percent": seconds_to_90,
        "busy_fraction_of_quiet": _busy(measured),
        "bandwidth_bytes_per_second": bandwidths,
        "traffic_fraction_of_step": _traffic(measured, bandwidths),
        "fast": _fast(measured["fast"], beside),
        **provenance(),
    }
    ratio = _ratio(grids["serial"], grids["joblib"])
    print(f"A grid of four runs of cnn side by side: {ratio:.2f} x as fast as one by one.")
    print(
        "From the command to a validation accuracy of 90 %: "
        + ", ".join(f"{model} {each:.0f} s" for model, each in seconds_to_90.items())
    )
    write("benchmark.json", results)


def write(name: str, results: dict[str, Any]) -> None:
    path = Path("results", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def _ratios(measured: dict[str, Series]) -> dict[str, dict[str, float]]:
    """Return and print how many times as fast as each contestant ours is."""
    ratios = {
        variant: {name: _ratio(values["ours"], series) for name, series in values.items()}
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
    return ratios


def _busy(measured: dict[str, Series]) -> dict[str, float]:
    """Return ours with a busy core as a fraction of the better of one and all threads without."""
    fractions = {
        variant: statistics.median(
            found / max(quiet_)
            for found, *quiet_ in zip(values["busy"], values["ours"], values["one"], strict=True)
        )
        for variant, values in measured.items()
    }
    print(
        "\nWith one core busy, as a fraction of the better of one and all threads without: "
        + ", ".join(f"{variant} {fraction:.2f}" for variant, fraction in fractions.items())
    )
    return fractions


def _traffic(measured: dict[str, Series], bandwidths: Series) -> dict[str, float]:
    """Return the fraction of a step of ours that moving its memory takes at least."""
    fractions = {}
    for variant, series in bandwidths.items():
        needed = traffic_per_image(variant)
        fractions[variant] = _ratio([rate * needed for rate in measured[variant]["ours"]], series)
        print(
            f"{variant}: a step moves at least {needed / 1e6:.1f} MB per image, which at "
            f"{statistics.median(series) / 1e9:.1f} GB per second takes "
            f"{100 * fractions[variant]:.0f} % of it."
        )
    return fractions


def _fast(rates: Series, beside: Series) -> dict[str, Any]:
    operations = operations_per_image("fast")
    of_peak = {name: operations * _ratio(series, beside["peak"]) for name, series in rates.items()}
    augmentation_fraction = _ratio(rates["ours"], beside["augmentation"])
    evaluation_fraction = _ratio(rates["ours"], beside["evaluation"]) / 5
    print(
        f"fast's network: {operations / 1e6:.1f} million operations per image; of a peak "
        f"of {statistics.median(beside['peak']) / 1e9:.0f} billion per second: "
        + ", ".join(f"{name} reaches {fraction:.2f}" for name, fraction in of_peak.items())
        + f". Augmentation takes {100 * augmentation_fraction:.1f} % of a step, the evaluation of "
        f"10,000 images {100 * evaluation_fraction:.1f} % of an epoch of 50,000."
    )
    return {
        "operations_per_image": operations,
        "peak_operations_per_second": beside["peak"],
        "augmentation_images_per_second": beside["augmentation"],
        "evaluation_images_per_second": beside["evaluation"],
        "fraction_of_peak": of_peak,
        "augmentation_fraction_of_step": augmentation_fraction,
        "evaluation_fraction_of_epoch": evaluation_fraction,
    }


def _ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the rounds, within each of which the machine was the same."""
    pairs = zip(numerators, denominators, strict=True)
    return statistics.median(first / second for first, second in pairs)


CONTESTANTS = {
    each.__name__: each
    for each in (
        *(bare, ours, fp32, one, busy, ordinary, plain, usual, keras),
        *(bandwidth, peak, augmentation, evaluation, seconds),
    )
}

if __name__ == "__main__":
    main()
