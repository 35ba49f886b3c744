"""The Python API: scripts, notebooks, applications that use Hydra, ordinary Lightning code."""

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import Command, section, tiny_overrides
from hydra import compose, initialize_config_dir
from matplotlib import pyplot as plt
from torch.utils.data import DataLoader, TensorDataset

import fashion
from fashion.config import CONF
from fashion.data.datamodule import FashionMNIST
from fashion.errors import UserError
from fashion.runs.run import Run
from fashion.training.classifier import Classifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),  # Lightning 2.6
]

ROOT = CONF.parent
SMALL = ("model=mlp", "model.network.dense=[8]", "trainer.max_epochs=1", "logger=none")


@pytest.fixture
def tiny(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what makes a run in the current folder, which is empty, tiny."""
    monkeypatch.chdir(tmp_path)
    return tiny_overrides(tiny_data)


# Ordinary Lightning code.


def trainer(**options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def test_a_checkpoint_in_an_ordinary_trainer(tiny_run: Path, tiny_data: Path) -> None:
    run = Run(tiny_run)
    classifier = Classifier.load_from_checkpoint(run.best_checkpoint)
    data = FashionMNIST(root=str(tiny_data), official=False, val_size=100)
    (validated,) = trainer().validate(classifier, data, verbose=False)
    assert validated["val/acc"] == pytest.approx(run.metrics["val/acc"])
    (tested,) = trainer().test(classifier, data, verbose=False)
    batches: Any = trainer().predict(classifier, data)
    probabilities = torch.cat(batches)
    torch.testing.assert_close(probabilities, classifier.predict_proba(data.test.images))
    correct = probabilities.argmax(1) == data.test.labels
    assert tested["test/acc"] == pytest.approx(correct.float().mean().item())


def test_training_on_a_dataloader_of_ones_own(tiny_data: Path) -> None:
    data = FashionMNIST(root=str(tiny_data), official=False, val_size=100)
    data.setup("fit")
    classifier = Classifier(section("model.network", "model=cnn"))
    torch.manual_seed(0)
    fitting = trainer(max_epochs=3)
    train, val = (TensorDataset(each.images, each.labels) for each in (data.train, data.val))
    fitting.fit(classifier, DataLoader(train, 20, shuffle=True), DataLoader(val, 50))
    assert fitting.global_step == 3 * 15
    assert fitting.callback_metrics["val/acc"] > 0.8
    limited = trainer(max_steps=4)  # the number of batches is not known when it begins
    limited.fit(
        Classifier(section("model.network", "model=cnn")),
        DataLoader(train, 20),
        DataLoader(val, 50),
    )
    assert limited.global_step == 4


# fit and load.

SCRIPT = """
import json
import sys

import fashion

assert not {"torch", "hydra"} & set(sys.modules), "importing fashion is slow"
import numpy as np

run = fashion.fit("model=cnn", "trainer.max_epochs=3", *sys.argv[1:])
model = fashion.load(run.folder)
probabilities = model.predict_proba(np.zeros((2, 28, 28), np.uint8))
print(json.dumps([str(run.folder), run.metrics["val/acc"], probabilities.tolist()]))
"""


def test_a_script_in_another_folder(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py", *tiny],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    folder, accuracy, probabilities = json.loads(done.stdout.splitlines()[-1])
    assert Path(folder).parent == Path("logs/cnn")
    assert accuracy == Run.open(Path(folder)).metrics["val/acc"] > 0.5
    np.testing.assert_allclose(np.sum(probabilities, axis=1), [1, 1], rtol=1e-5)


def test_the_notebook(tiny: list[str], tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells)
    short = [*tiny, "trainer.limit_train_batches=1"]  # so that there are mistakes
    code = code.replace("fashion.fit(", f"fashion.fit(*{short!r}, ")
    data = f"FashionMNIST(root={str(tiny_data)!r}, official=False, val_size=100)"
    monkeypatch.setattr(mpl, "rcParams", mpl.rcParams | {"backend": "agg"})
    notebook: dict[str, Any] = {}
    exec(compile(code.replace("FashionMNIST()", data), "quickstart", "exec"), notebook)  # noqa: S102
    assert notebook["accuracy"] == pytest.approx(notebook["run"].metrics["val/acc"])
    assert [len(line.get_xdata()) for line in notebook["figure"].axes[0].lines] == [3, 3]
    wrong = round((1 - notebook["accuracy"]) * 100)
    assert sum(bool(axes.get_title()) for axes in notebook["gallery"].axes) == min(10, wrong) > 0
    plt.close("all")


def test_within_an_application_that_uses_hydra(tiny: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = fashion.fit(*SMALL, *tiny)
        assert run.finished
        assert compose("train", ["model=linear", "name=x", "sweep=y"]).name == "x"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=0", r"^optimizer\.lr = 0: input should be greater than 0\.$"),
        ("optimiser.lr=1", r"optimiser: there is no such key\. Did you mean optimizer"),
        ("model=none", "model=none: there is no such option."),
        ("resume=nowhere", "nowhere is not a run folder"),
    ],
)
def test_a_wrong_call_raises_and_leaves_nothing(
    tiny: list[str], tmp_path: Path, override: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        fashion.fit(*SMALL, *tiny, override)
    assert not list(tmp_path.rglob("*.yaml"))


NETWORK = """
from torch import nn


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


def test_loading_refuses_what_it_would_have_to_trust(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trusted.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = fashion.fit("model.network._target_=trusted.network", *SMALL[2:], *tiny)
    with pytest.raises(UserError, match=r"fashion\.load\('logs/.*', trust=True\)"):
        fashion.load(str(run.folder))
    assert fashion.load(run.folder, trust=True).predict_proba(torch.zeros(1, 28, 28).byte()).sum()
    with pytest.raises(UserError, match="nowhere is not a run folder"):
        fashion.load("nowhere")


def test_runs_of_the_same_second(
    tiny: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one that is being written, and beside those that have finished: each has a folder."""

    class Stopped(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Stopped":  # noqa: ARG003
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("hydra.core.utils.datetime", Stopped)
    first = Run(Path("logs/mlp/2026-01-02_03-04-05"))
    with first.lock():
        assert command("train", *SMALL, *tiny).status == 0
    assert not first.finished
    assert fashion.fit(*SMALL, *tiny).folder == first.folder
    assert fashion.fit(*SMALL, *tiny).folder.name == f"{first.folder.name}-3"
    assert [run.finished for run in Run.find(Path("logs"))] == [True] * 3
