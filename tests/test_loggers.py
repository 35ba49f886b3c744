"""Each logger through the real command: what it holds, and the curves of the report beside it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command, Outcome, tiny_overrides
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion.runs.run import Run

pytestmark = pytest.mark.slow

# Of an epoch, in every logger.
METRICS = ("train/loss", "train/acc", "val/loss", "val/acc")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, where nothing of this machine's accounts is read."""
    monkeypatch.chdir(tmp_path)
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def train(tiny_data: Path, command: Command) -> Command:
    def run(*overrides: str) -> Outcome:
        return command(
            *(
                "train",
                *tiny_overrides(tiny_data),
                "data.val_size=20",
                "report=true",
                "hydra.run.dir=logs/run",
            ),
            *("model=mlp", "model.network.dense=[8]", "trainer.max_epochs=2", *overrides),
        )

    return run


def tensorboard(run: Run) -> dict[str, list[float]]:
    events = EventAccumulator(str(run.folder)).Reload()
    return {key: [event.value for event in events.Scalars(key)] for key in METRICS}


def csv_file(run: Run) -> dict[str, list[float]]:
    with (run.folder / "csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows if row[key]] for key in METRICS}


def check_report(run: Run) -> None:
    """The report has the curves of both epochs, whatever the logger."""
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    section = page.partition('<section id="learning"')[2].partition("</section>")[0]
    assert "<svg" in section
    assert len(run.history["val/acc"]) == 2


READERS = {"tensorboard": tensorboard, "csv": csv_file}


@pytest.mark.parametrize("names", [("csv",), ("tensorboard", "csv"), ()], ids=str)
def test_loggers_of_lightning(train: Command, names: tuple[str, ...]) -> None:
    given = {0: "none", 1: "".join(names)}.get(len(names), f"[{','.join(names)}]")
    done = train(f"logger={given}")
    assert (done.status, done.err) == (0, "")
    run = Run(Path("logs/run"))
    for name, read in READERS.items():
        if name in names:
            for key, values in read(run).items():
                assert values == pytest.approx(run.history[key], rel=1e-5)
    assert (run.folder / "csv").exists() == ("csv" in names)
    assert any(run.folder.glob("events.out*")) == ("tensorboard" in names)
    assert ("tensorboard --logdir" in done.out) == ("tensorboard" in names)
    check_report(run)


def test_wandb_offline(train: Command, command: Command) -> None:
    pytest.importorskip("wandb")
    done = train("logger=[wandb,csv]")
    assert done.status == 0, done.err
    run = Run(Path("logs/run"))
    (file,) = run.folder.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert all(key.encode() in content for key in (*METRICS, "optimizer"))
    assert csv_file(run)["val/acc"] == pytest.approx(run.history["val/acc"], rel=1e-5)
    check_report(run)
    assert command("compare", run.folder).status == 0  # wandb leaves links in the folder


@pytest.fixture
def mlflow() -> Iterator[object]:
    found = pytest.importorskip("mlflow")
    yield found
    found.set_tracking_uri(None)


@pytest.mark.filterwarnings("ignore")  # mlflow's own, of SQLAlchemy and Python
def test_mlflow_in_a_local_store(train: Command, mlflow: object) -> None:
    done = train("logger=mlflow")
    assert done.status == 0, done.err
    from mlflow.tracking import MlflowClient

    client = MlflowClient("sqlite:///logs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'fashion'")
    logged, *_ = client.search_runs([experiment.experiment_id])  # the latest first
    run = Run(Path("logs/run"))
    assert (logged.info.run_name, logged.info.status) == ("mlp", "FINISHED")
    assert logged.data.params["optimizer/lr"] == "0.001"
    for key in METRICS:
        values = [each.value for each in client.get_metric_history(logged.info.run_id, key)]
        assert values == pytest.approx(run.history[key], rel=1e-5)
    check_report(run)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_whose_package_is_missing(
    train: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from lightning.pytorch import loggers

    module = getattr(loggers, name)
    for flag in [each for each in vars(module) if each.endswith("_AVAILABLE")]:
        monkeypatch.setattr(module, flag, False)
    done = train(f"logger={name}")
    assert done.status == 1
    assert done.err.startswith(f"error: logger.{name}: ")
    assert len(done.err.splitlines()) == 1, done.err
    assert json.dumps(name)[1:-1] in done.err
    assert not (folder / "logs/run").exists()
