"""Other data of the same form, through the real commands: its folder, and its classes' names."""

import csv
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import Command, tiny_overrides, write_idx
from conftest import refused_in_a_line as refused
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fashion
from fashion.data.datamodule import CLASS_NAMES
from fashion.report import slides
from fashion.runs.run import Run

pytestmark = pytest.mark.slow

SMALL = ("model=mlp", "model.network.dense=[8]", "trainer.max_epochs=1")


class Data(NamedTuple):
    overrides: tuple[str, ...]
    folder: str
    classes: tuple[str, ...]


DATA = {
    "mnist": Data(("data=mnist",), "MNIST", CLASS_NAMES["MNIST"]),
    "kmnist": Data(("data=kmnist",), "KMNIST", CLASS_NAMES["KMNIST"]),
    "own": Data(
        ("data.classes=[ring,square,two words,star]",),
        "FashionMNIST",
        ("ring", "square", "two words", "star"),
    ),
}
# Sentences that are about clothes, and the names of other data's classes and files.
FOREIGN = ("Fashion-MNIST", "We thought", "shoe", "T-shirt", "Ankle boot", "idx3", "actually")


def check_names(classes: tuple[str, ...], text: str) -> None:
    assert [name for name in classes if name not in text] == []
    assert [word for word in FOREIGN if word in text] == []


@pytest.mark.parametrize("name", DATA)
def test_its_classes_are_named_everywhere(
    command: Command, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    overrides, folder, classes = DATA[name]
    shutil.copytree(tiny_data / "FashionMNIST", tmp_path / "data" / folder)
    for part, count in (("train", 400), ("t10k", 100)):
        path = tmp_path / "data" / folder / f"raw/{part}-labels-idx1-ubyte"
        write_idx(path, np.arange(count) % len(classes))
    monkeypatch.chdir(tmp_path)
    tiny = tiny_overrides(Path("data"))
    done = command(
        *("train", *tiny, *SMALL, "report=true", "logger=tensorboard", *overrides),
        "hydra.run.dir=logs/run",
        "trainer.limit_train_batches=1",  # so that there are mistakes
    )
    assert (done.status, done.err) == (0, "")
    run = Run(Path("logs/run"))
    assert {key.removeprefix("val/f1/") for key in run.metrics if "val/f1/" in key} <= {*classes}
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    check_names(classes, report)
    assert f"Predicted {classes[run.predictions('val').probabilities[0].argmax()]}" in report

    events = EventAccumulator(str(run.folder)).Reload()
    curves = {tag for tag in events.Tags()["tensors"] if tag.startswith("val/")}
    assert curves == {f"val/{each}" for each in classes}
    (labels,) = run.folder.glob("00000/*/metadata.tsv")
    assert set(labels.read_text().split("\n")[1].split("\t")) <= {*classes}

    monkeypatch.setattr(slides, "KINDS", ("svg",))
    monkeypatch.setattr(slides, "THEMES", {"light": nullcontext})
    done = command("evaluate", run.folder, "--mistakes", "m.csv", "--figures", "figures")
    assert (done.status, done.err) == (0, "")
    with Path("m.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["index", "true", "predicted", *(f"p({each})" for each in classes)]
    assert rows
    assert {each for row in rows for each in row[1:3]} <= {*classes}
    check_names(classes, Path("figures/confusion_matrix-light.svg").read_text())
    check_names((), Path("figures/mistakes-light.svg").read_text())

    Image.new("L", (28, 28), 9).save("image.png")
    Image.new("L", (280, 280), 9).save("photo.png")
    done = command("predict", run.folder, "image.png", "photo.png", "--json")
    image, photo = json.loads(done.out)
    assert {each["class"] for each in image["top"]} <= {*classes}
    assert "only 28 x 28 images in its data's format can be predicted" in photo["error"]


@pytest.mark.parametrize("network", ["resnet", "ensemble"])
def test_mixed_labels_and_an_odd_last_batch(
    command: Command, tiny_data: Path, tmp_path: Path, network: str
) -> None:
    """CutMix makes probabilities of as many classes as there are; of 300 images, 7 are left."""
    shutil.copytree(tiny_data, tmp_path / "data")
    for part, count in (("train", 400), ("t10k", 100)):
        path = tmp_path / f"data/FashionMNIST/raw/{part}-labels-idx1-ubyte"
        write_idx(path, np.arange(count) % 12)
    run, names = tmp_path / "run", ",".join("abcdefghijkl")
    done = command(
        *("train", *tiny_overrides(tmp_path / "data"), f"model={network}", "trainer.max_epochs=1"),
        *("model.network.widths=[4,4]", "augmentation.cutmix=0.5", "data.batch_size=293"),
        *(f"data.classes=[{names}]", f"hydra.run.dir={run}"),
    )
    assert (done.status, done.err) == (0, "")
    exported = tmp_path / "model.pt2"
    done = command("export", run, exported)
    assert done.status == 0, done.err
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    expected = fashion.load(run).predict_proba(images)
    program = torch.export.load(exported).module()
    assert expected.shape == (3, 12)
    found = program(torch.from_numpy(images))  # calibrated, so that only the order is the same
    assert torch.equal(found.argsort(1), expected.argsort(1))


@pytest.mark.usefixtures("no_report")
def test_a_data_module_of_one_s_own_is_a_subclass(
    command: Command, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("brighter.py").write_text(
        "from fashion.data.datamodule import FashionMNIST\n\n\n"
        "class Brighter(FashionMNIST):\n"
        "    def __init__(self, *, root, official=True, augmentation=None, seed=0):\n"
        "        super().__init__(root=root, official=official, val_size=100, seed=seed)\n"
    )
    given = (*tiny_overrides(tiny_data), *SMALL)
    sizes = ("~data.val_size", "~data.split_seed", "~data.batch_size")
    own = "data._target_=brighter.Brighter"
    done = command("train", *given, *sizes, own, "hydra.run.dir=run")
    assert (done.status, done.err) == (0, "")
    done = command("evaluate", "run", "--trust")
    assert (done.status, done.err) == (0, "")
    done = command("train", *given, "data._target_=lightning.pytorch.LightningDataModule")
    refused(done, "it is no FashionMNIST")


def test_more_labels_than_names(command: Command, tiny_data: Path, tmp_path: Path) -> None:
    given = (*tiny_overrides(tiny_data), *SMALL, f"hydra.run.dir={tmp_path}/run")
    done = command("train", *given, "data.classes=[a,b,c]")
    refused(done, "holds the label 9; labels go from 0 to 2. data.classes=[...] names more classes")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_report")
def test_a_data_folder_one_level_too_deep(
    command: Command, tiny_data: Path, tmp_path: Path
) -> None:
    """It is understood, so that it is not filled with a second copy of the data."""
    before = sorted(tiny_data.rglob("*"))
    tiny = tiny_overrides(tiny_data / "FashionMNIST")
    done = command("train", *tiny, *SMALL, f"hydra.run.dir={tmp_path}/run")
    assert done.status == 0, done.err
    assert Run(tmp_path / "run").config.data.root == str(tiny_data)
    deeper = tiny_data / "FashionMNIST/raw"
    for options in (("--split", "test"), ("--split", "val")):
        done = command("evaluate", tmp_path / "run", "--data", deeper, *options)
        assert done.status == 0, done.err
    assert sorted(tiny_data.rglob("*")) == before
