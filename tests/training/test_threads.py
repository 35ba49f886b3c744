import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, fitted, tiny_overrides
from lightning.pytorch.plugins import Precision

from fashion.data.datamodule import FashionMNIST
from fashion.errors import UserError
from fashion.runs.run import Run
from fashion.training import process, threads
from fashion.training.classifier import Classifier
from fashion.training.networks import ConvNet


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    with threads.threads(2):
        yield


def test_block_sets_threads_and_restores_them() -> None:
    with threads.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("seconds", "delay", "chosen"),
    [((1.0, 0.8), 0, 2), ((1.0, 0.98), 0, 1), ((1, 4), 0, 1), ((0.01, 0.006), 0.1, 1)],
)
def test_faster_number_is_chosen(
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, float],
    delay: float,
    chosen: int,
) -> None:
    """A step takes `seconds` with one thread and with two, of which some are delayed.

    Nothing of the training changes.
    """
    now, calls = 0.0, 0

    def clock() -> float:
        nonlocal now, calls
        calls += 1
        number = torch.get_num_threads()
        now += seconds[number - 1] + (delay if number == 2 and calls % 9 == 0 else 0)
        return now

    monkeypatch.setattr(time, "perf_counter", clock)
    data = FashionMNIST(root=str(tiny_data), val_size=100, official=False)
    data.setup("fit")
    classifier = Classifier(
        ConvNet(conv=[2], dense=[], batch_norm=True, dropout=0.5), steps=(10, 5, 5)
    )
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    state = torch.get_rng_state()
    assert threads.fastest_threads(classifier, data.train_dataloader(), Precision()) == chosen
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in classifier.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.slow
def test_resumed_run_keeps_its_threads(
    tiny_data: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # in which Hydra makes a folder of its own for `resume`
    answers = iter([1])  # whoever measures again gets none
    monkeypatch.setattr(process, "fastest_threads", lambda *_: next(answers))
    small = ["model=linear", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/run"]
    overrides = [*tiny_overrides(tiny_data), *small, "trainer.enable_progress_bar=true"]
    done = command("train", *overrides)
    assert done.status == 0, done.err
    assert "1 thread," in done.out
    assert "Not all 2 threads" in done.out
    assert Run(tmp_path / "run").metrics["threads"] == 1
    done = command("train", f"resume={tmp_path}/run", "trainer.max_epochs=4")
    assert done.status == 0, done.err
    assert "1 thread," in done.out
    assert torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "number"), [("trainer.threads=1", 1), ("trainer.deterministic=true", 2)]
)
def test_where_nothing_is_measured(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    number: int,
) -> None:
    monkeypatch.setattr(process, "fastest_threads", None)
    done: Any = fitted(tmp_path / "run", tiny_data, override, "trainer.max_epochs=1")
    assert done.metrics["threads"] == number
    torch.use_deterministic_algorithms(mode=False)


def test_no_thread_at_all(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.threads = 0"):
        fitted(tmp_path / "run", tiny_data, "trainer.threads=0")


@pytest.mark.parametrize("state", [{}, {"Threads": 3}, {"Threads": {"number": "2"}}])
def test_checkpoint_without_threads(state: dict[str, Any]) -> None:
    assert threads.kept_threads({"callbacks": state}) is None
