"""Examples: each command of examples/exploration/README.md trains a step on tiny data."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, tiny_overrides
from torch import nn

from fashion.config import CONF
from fashion.runs.run import Run

ROOT = CONF.parent
EXPLORATION = ROOT / "examples/exploration"
TRAIN, TUNE = "python -m fashion.train ", "python -m fashion.tune "
TINY = (
    *("trainer.limit_train_batches=1", "trainer.max_epochs=1", "trainer.precision=32-true"),
    *("data.batch_size=20", "++model.network.widths=[8,8]", "logger=none"),
)
LINES = re.findall(r"^python .*", (EXPLORATION / "README.md").read_text("utf-8"), re.MULTILINE)


@pytest.fixture(autouse=True)
def _clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder that holds the examples, as the clone does, and is empty otherwise."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_readme_has_a_command_for_everything() -> None:
    for group in ("experiment", "search"):
        for option in EXPLORATION.glob(f"{group}/*.yaml"):
            assert any(re.search(rf"{group}=(\w+,)*{option.stem}\b", line) for line in LINES)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(TRAIN)])
def test_an_experiment(command: Command, tiny_data: Path, line: str) -> None:
    words = shlex.split(line.removeprefix(TRAIN).replace("seed=0,1,2", "seed=0"))
    done = command("train", *words, *tiny_overrides(tiny_data), *TINY)
    assert done.status == 0, done.err
    runs = {run.config.name: run for run in Run.find(Path("logs"))}
    (names,) = re.findall(r"experiment=([\w,]+)", line)
    assert sorted(runs) == sorted(names.split(","))
    assert all(run.finished for run in runs.values())
    if names == "cutmix":
        folder = runs["cutmix"].folder
        assert "--trust" in command("evaluate", folder).err
        assert command("evaluate", folder, "--trust").status == 0
    if len(runs) == 1:
        return
    # Each changes what it is about.
    sizes = {name: run.metrics["parameters"] for name, run in runs.items()}
    assert sizes["explore"] == sizes["cutmix"] == sizes["averaged"] < sizes["squeeze"]
    assert sizes["stem"] != sizes["explore"]
    assert any("CutMix" in step["_target_"] for step in runs["cutmix"].config.augmentation.steps)
    content = torch.load(runs["averaged"].last_checkpoint, weights_only=True)
    assert "current_model_state" in content
    table = command("compare", "logs/exploration").out
    assert all(f"| {name} " in table for name in runs)


@pytest.mark.slow
def test_the_search(command: Command, tiny_data: Path) -> None:
    (line,) = (line for line in LINES if line.startswith(TUNE))
    short = ("trials=2", "confirm.seeds=0", "worker=0")
    # The first trial is the configuration as it stands, which the space must hold.
    tiny = [each for each in TINY if "widths" not in each] + ["model.network.widths=[16,16]"]
    words = shlex.split(line.removeprefix(TUNE))
    done = command("tune", *words, *tiny_overrides(tiny_data), *tiny, *short)
    assert done.status == 0, done.err
    assert len([run for run in Run.find(Path("logs/stems-search/trials")) if run.finished]) == 2


def test_every_stem_and_way_to_halve_gives_logits() -> None:
    from examples.exploration import exploration

    images = torch.zeros(2, 1, 28, 28)
    options: list[dict[str, Any]] = [{"stem": stem} for stem in ("white", *exploration.STEMS)]
    options += [{"down": ["poolconv", "stride"]}, {"pool": "max"}, {"pool": "avg"}]
    options += [{"depth": [0, 2], "residual": True}, {"squeeze": True, "dropout": 0.5}]
    options += [{"activation": name} for name in exploration.ACTIVATIONS]
    for each in options:
        network = exploration.StagedNet(10, **{"widths": [8, 8]} | each)
        assert isinstance(network, nn.Module)
        assert network(images).shape == (2, 10), each


def test_cutmix_mixes_labels_by_area() -> None:
    from examples.exploration.exploration import CutMix

    torch.manual_seed(0)
    labels = torch.arange(10)
    images = (10 * labels).to(torch.uint8)[:, None, None].expand(10, 28, 28)
    mix = CutMix(probability=1.0, clean_epochs=1)
    mixed, targets = mix(images, labels)
    area = torch.stack([(mixed == 10 * label).float().mean((1, 2)) for label in labels], dim=1)
    torch.testing.assert_close(targets, area)
    assert (targets.max(1).values < 1).any()
    mix.set_epoch(4, 5)
    mixed, targets = mix(images, labels)
    assert torch.equal(mixed, images)
    assert torch.equal(targets.argmax(1), labels)
