"""Examples: each command of their READMEs trains a step on tiny data."""

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


RECORD = ROOT / "examples/record"
IDEAS = sorted(path.stem for path in RECORD.glob("experiment/*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("idea", IDEAS)
def test_an_idea(command: Command, tiny_data: Path, idea: str) -> None:
    options = ["--config-dir", "examples/record", f"experiment={idea}", *tiny_overrides(tiny_data)]
    tiny = [each for each in TINY if idea != "batch250" or "batch_size" not in each]
    done = command("train", *options, *tiny, "data.batch_size=20")
    assert done.status == 0, done.err
    (run,) = Run.find(Path("logs"))
    assert run.config.name == idea


def ideas() -> Any:
    from examples.record import ideas

    return ideas


def test_rectangles() -> None:
    images, labels = torch.full((400, 28, 28), 9, dtype=torch.uint8), torch.arange(400) % 10
    erased, same = ideas().Rectangles(probability=0.5, largest=0.25)(images, labels)
    assert torch.equal(same, labels)
    black = (erased == 0).float().mean((1, 2))
    assert 0.4 < (black > 0).float().mean() < 0.6
    assert 0.01 < black[black > 0].min() < black.max() < 0.3  # sides are whole pixels
    box = erased[black.argmax()] == 0
    assert box.sum() == box.any(0).sum() * box.any(1).sum()
    off = ideas().Rectangles(clean_epochs=1)
    off.set_epoch(3, 4)
    assert torch.equal(off(images, labels)[0], images)


def test_mixup() -> None:
    labels = torch.arange(400) % 10
    images = (25 * labels).to(torch.uint8)[:, None, None].expand(-1, 28, 28)
    mixing = ideas().Mixup(probability=0.5, alpha=1.0, clean_epochs=1)
    mixed, targets = mixing(images, labels)
    # A pixel is that of the classes in proportion.
    expected = (targets @ (25.0 * torch.arange(10)))[:, None, None].expand(-1, 28, 28)
    torch.testing.assert_close(mixed, expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(400))
    assert 0.3 < (targets.max(1).values < 1).float().mean() < 0.6
    mixing.set_epoch(3, 4)
    assert torch.equal(mixing(images, labels)[0], images)


def test_affine() -> None:
    images = torch.randint(256, (8, 28, 28), dtype=torch.uint8)
    labels = torch.zeros(8, dtype=torch.int64)
    same, _ = ideas().Affine(degrees=0, scale=0)(images, labels)
    torch.testing.assert_close(same, images.float(), atol=1e-2, rtol=0)
    moved, _ = ideas().Affine(degrees=10, scale=0.1)(images, labels)
    assert 0 <= moved.min() < moved.max() <= 255
    assert (moved - images).abs().mean() > 1


def test_dropped_branches() -> None:
    network = ideas().DropPathNet(drop_path=0.5, widths=[8], depth=1)
    (branch,) = (layer for layer in network if type(layer).__name__ == "_DropPath")
    for layer in branch.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    x = torch.rand(4000, 8, 3, 3)
    whole = branch.eval()(x)
    branch.training = True
    dropped = branch(x)
    kept = (dropped != x).flatten(1).any(1)
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept] - x[kept], 2 * (whole - x)[kept])


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
