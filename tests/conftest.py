"""Shapes are checked while the tests run; data and runs are tiny and made here, offline."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Tests run side by side; several threads each would wait for each other's cores.
os.environ["OMP_NUM_THREADS"] = "1"

install_import_hook("fashion", "beartype.beartype")

# How long an example takes depends on the machine more than on the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs a training, before `-m` selects."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker("slow")
        if "tiny_run" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of bytes as an idx file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def make_data(root: Path, *, train: int = 400, test: int = 100) -> Path:
    """Make a data folder in torchvision's layout: class c is a bright bar at row 2c + 4, in noise.

    The classes take turns: image i is of class i % 10.
    """
    random = np.random.default_rng(0)
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = random.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6, 4:24] = random.integers(150, 250, (2, 20))
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return root


@pytest.fixture(autouse=True)
def _subnormal_numbers() -> Iterator[None]:
    """Undo what a training sets: it flushes subnormal numbers to zero."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture
def largest_file() -> Iterator[Callable[[int | None], None]]:
    """Return a function that bounds the size of this process's files, as a full disk does.

    None ends that.
    """
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(
        resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY if size is None else size, before[1])
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def tiny_overrides(data: Path) -> list[str]:
    """Return the overrides that make any run tiny, and leave out what a person would look at."""
    return [
        f"data.root={data}",
        "data.official=false",
        "data.val_size=100",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "logger=none",
        "report=false",
    ]


def composed(*overrides: str) -> Any:
    """Return the configuration that `python -m fashion.train` composes from these overrides."""
    from hydra import compose, initialize_config_dir

    from fashion import config

    config.register_resolvers()
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        made = compose("train", ["name=test", "sweep=test", *overrides])
    config.start_afresh(made, overrides)
    return made


def section(key: str, *overrides: str) -> dict[str, Any]:
    """Return a section of the composed configuration as plain values, as `build` takes it."""
    from omegaconf import OmegaConf

    made = OmegaConf.select(composed(*overrides), key)
    plain: Any = OmegaConf.to_container(made, resolve=True)
    return plain  # type: ignore[no-any-return]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


def refused(done: Outcome, *parts: str) -> None:
    """Check that a command has ended with one message, which holds these parts."""
    assert done.status == 1, done.out
    assert "Traceback" not in done.out + done.err
    assert done.err.startswith("error: "), done.err
    for part in parts:
        assert part in done.err


def refused_in_a_line(done: Outcome, *parts: str) -> None:
    refused(done, *parts)
    assert len(done.err.splitlines()) == 1, done.err


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that runs `python -m fashion.NAME ARGUMENTS` in this process.

    In another one its imports would cost seconds.
    """

    def run(name: str, *arguments: object) -> Outcome:
        capfd.readouterr()
        status = run_command(monkeypatch, name, *arguments)
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return run


def run_command(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    module = __import__(f"fashion.{name}", fromlist=["main"])
    if "lightning" in sys.modules and not gc.get_freeze_count():
        gc.freeze()  # a run collects garbage, which takes long with all that pytest has imported
    monkeypatch.setattr(sys, "argv", [f"fashion.{name}", *map(str, arguments)])
    try:
        module.main()
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            print(exit_.code, file=sys.stderr)
            return 1
        return int(exit_.code or 0)
    return 0


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, which takes most of an evaluation's time."""
    monkeypatch.setattr("fashion.report.page.write_report", lambda run, _: run.folder)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """Return a finished run of the tiny data, made by the real command."""
    folder = tmp_path_factory.mktemp("logs") / "tiny"
    with pytest.MonkeyPatch.context() as monkeypatch:
        status = run_command(
            monkeypatch,
            "train",
            *tiny_overrides(tiny_data),
            "report=null",
            "logger=tensorboard",
            "model=mlp",
            "model.network.dense=[32]",
            "trainer.max_epochs=3",
            f"hydra.run.dir={folder}",
        )
    assert status == 0
    return folder


def fitted(folder: Path, data: Path, *overrides: str, callbacks: Any = ()) -> Any:
    """Train a small run and return the `Fit`, without the command around it."""
    from fashion.runs.run import Run
    from fashion.train import check
    from fashion.training.process import fit

    small = ["trainer.max_epochs=2"]
    if not any(override.startswith("model=") for override in overrides):
        small += ["model=mlp", "model.network.dense=[8]"]
    config = composed(*tiny_overrides(data), *small, *overrides)
    check(config)
    run = Run(folder)
    with run.start(config, extend=True):
        return fit(config, run, callbacks)
