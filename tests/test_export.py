"""Exported files, used without this project: torch.export's programs and ONNX."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import Command, tiny_overrides
from conftest import refused_in_a_line as refused

from fashion import export
from fashion.data import CLASSES
from fashion.report.evaluation import open_data
from fashion.report.metrics import apply_temperature
from fashion.runs.files import SCRATCH
from fashion.runs.run import Run
from fashion.training.classifier import load_classifier

pytestmark = pytest.mark.slow

TEMPERATURE = 2.5
SUFFIXES = (".pt2", ".onnx")


class Loaded(NamedTuple):
    predict: export.Predict
    classes: list[str]
    temperature: float


def load(path: Path) -> Loaded:
    """Open a file as its user does."""
    if path.suffix == ".pt2":
        about = {"classes.json": "", "temperature.json": ""}
        program = torch.export.load(str(path), extra_files=about).module()
        return Loaded(
            lambda images: np.asarray(program(torch.from_numpy(images)).numpy()),
            *(json.loads(text) for text in about.values()),
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    about = session.get_modelmeta().custom_metadata_map
    return Loaded(
        lambda images: np.asarray(session.run(None, {"images": images})[0]),
        json.loads(about["classes"]),
        json.loads(about["temperature"]),
    )


def needs(suffix: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if suffix == ".onnx" else ():
        pytest.importorskip(package)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    """Return a run to be altered, with a temperature that matters."""
    run = Run(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    run.update_metrics({"val/temperature": TEMPERATURE})
    return run


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_the_run_with_its_preprocessing(
    command: Command, run: Run, tmp_path: Path, suffix: str
) -> None:
    needs(suffix)
    path = tmp_path / f"new/model{suffix}"
    done = command("export", run.folder, path)
    assert (done.status, done.err) == (0, "")
    assert f"{path}, " in done.out
    assert "on 400 images." in done.out  # all there are
    found = load(path)
    assert (tuple(found.classes), found.temperature) == (CLASSES, TEMPERATURE)
    data: Any = open_data(run)
    data.setup("test")
    classifier = load_classifier(run)
    for count in (1, 7, 100):
        images = data.test.images[:count]
        expected = apply_temperature(classifier.predict_proba(images).numpy(), TEMPERATURE)
        np.testing.assert_allclose(found.predict(images.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_the_data_random_images_are_compared(
    command: Command, run: Run, tiny_data: Path, tmp_path: Path, suffix: str
) -> None:
    needs(suffix)
    config = run.folder / ".hydra/config.yaml"
    config.write_text(config.read_text().replace(str(tiny_data), "nowhere"))
    done = command("export", run.folder, tmp_path / f"model{suffix}")
    assert (done.status, done.err) == (0, "")
    assert "on 1,000 random images (the run's data is not here)." in done.out


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_predicts_something_else_is_not_written(
    command: Command, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    needs(suffix)
    model = export._model  # noqa: SLF001
    monkeypatch.setattr(export, "_model", lambda classifier, _: model(classifier, 2.6))
    done = command("export", run.folder, tmp_path / f"model{suffix}")
    refused(done, f"model{suffix} was not written: its probabilities differ from the run's by up")
    assert not [*tmp_path.glob("model*"), *tmp_path.glob(f"*{SCRATCH}")]


def test_what_is_refused(
    command: Command, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt2"
    refused(command("export", run.folder, tmp_path / "model.pth"), "must end with .onnx or .pt2")
    refused(command("export", tmp_path / "none", path), "none is not a run folder")
    path.write_text("somebody's")
    refused(command("export", run.folder, path), "model.pt2 exists; --force overwrites it")
    assert path.read_text() == "somebody's"
    assert command("export", run.folder, path, "--force").status == 0
    assert load(path).temperature == TEMPERATURE
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = command("export", run.folder, tmp_path / "model.onnx")
    refused(done, "needs the package onnx, which is not installed: pip install 'fashion[export]'")
    (run.folder / "metrics.json").unlink()
    refused(command("export", run.folder, path, "--force"), "unfinished")
    assert {each.name for each in tmp_path.iterdir()} == {"run", "model.pt2"}


NETWORK = """
import torch
from torch import nn


class Branching(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, images):
        logits = super().forward(images)
        return logits if logits.sum() > 0 else logits * 2
"""


def test_a_network_that_cannot_be_converted(
    command: Command, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "branching.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("model.network._target_=branching.Branching", "trainer=smoke", "hydra.run.dir=run")
    assert command("train", *tiny_overrides(tiny_data), *own).status == 0
    done = command("export", "run", "model.pt2")
    assert "python -m fashion.export run model.pt2 --trust" in done.err
    done = command("export", "run", "model.pt2", "--trust")
    refused(done, "Branching cannot be converted to .pt2: ")
    assert not Path("model.pt2").exists()
