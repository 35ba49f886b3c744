import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fitted

from fashion.errors import UserError
from fashion.training.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    progress,
)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, largest_file: Callable[[int], None]
) -> None:
    path = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    largest_file(1000)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written: File too large"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(10_000)}, path)
    assert torch.load(path) == {"epoch": 1}
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_the_state_of_best_holds_no_path(tmp_path: Path) -> None:
    """So a run may be moved, and its checkpoint continues in the new folder."""
    before = BestCheckpoint(tmp_path / "old", monitor="val/acc")
    before.best_model_score, before.best_epoch = torch.tensor(0.75), 3
    state = before.state_dict()
    assert state == {"best_epoch": 3, "score": 0.75}
    after = BestCheckpoint(tmp_path / "new", monitor="val/acc")
    after.load_state_dict(state)
    assert (after.best_epoch, after.score) == (3, 0.75)
    assert after.best_model_path == str(tmp_path / "new/best.ckpt")
    fresh = BestCheckpoint(tmp_path / "new")
    fresh.load_state_dict(BestCheckpoint(tmp_path / "old").state_dict())  # nothing was saved yet
    assert fresh.score is None


@pytest.mark.parametrize(
    ("epochs", "monitor", "score", "text"),
    [
        (0, "val/acc", None, "There are 0 whole epochs in RUN."),
        (1, "val/acc", 0.9123, "There is 1 whole epoch in RUN; the best val/acc, 91.23 %, is of"),
        (5, "val/loss", 0.12345, "There are 5 whole epochs in RUN; the best val/loss, 0.1235, is"),
    ],
)
def test_progress(epochs: int, monitor: str, score: float | None, text: str) -> None:
    last, best = LastCheckpoint(Path("RUN/checkpoints/last.ckpt")), BestCheckpoint(monitor=monitor)
    last.load_state_dict({"epochs": epochs})
    best.load_state_dict({"best_epoch": 2, "score": None})
    best.best_model_score = None if score is None else torch.tensor(score)
    assert progress(last, best).startswith(text)


def weights(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return found


@pytest.mark.slow
def test_the_best_epoch_is_kept_and_a_moved_run_goes_on(tmp_path: Path, tiny_data: Path) -> None:
    """The learning rate is so high that the first epoch stays the best."""
    overrides = ("optimizer=sgd", "optimizer.schedule=constant", "optimizer.warmup=0.0")
    worse = "callbacks.best.mode=min"  # the lowest accuracy: the first epoch's
    made = fitted(tmp_path / "a", tiny_data, *overrides, worse)
    assert made.metrics["best_epoch"] == 1
    assert torch.load(made.run.best_checkpoint)["epoch"] == 0
    best = weights(made.run.best_checkpoint)
    for name, weight in made.classifier.state_dict().items():
        assert torch.equal(weight, best[name])  # what is evaluated is the reported checkpoint
    assert str(tmp_path) not in str(torch.load(made.run.last_checkpoint)["callbacks"])
    shutil.move(tmp_path / "a", tmp_path / "b")
    again = fitted(tmp_path / "b", tiny_data, *overrides, worse, "trainer.max_epochs=4")
    assert (again.metrics["epochs"], again.metrics["best_epoch"]) == (4, 1)
    assert not (tmp_path / "a").exists()
    assert sorted(path.name for path in again.run.checkpoints.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert torch.load(again.run.last_checkpoint)["epoch"] == 3
