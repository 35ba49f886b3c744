"""The real command on tiny runs: what it writes, prints and refuses."""

# Types: OmegaConf's stubs return lists where a test knows the mapping.
# mypy: disable-error-code="index, arg-type"

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, refused, run_command, tiny_overrides
from omegaconf import OmegaConf
from PIL import Image

from fashion.data import CLASSES
from fashion.report import metrics
from fashion.runs.run import Predictions, Run

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    """A copy to be altered."""
    return Run(Path(shutil.copytree(tiny_run, tmp_path / "run")))


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run of another seed, trained too little to classify every image correctly."""
    folder = tmp_path_factory.mktemp("logs") / "other"
    with pytest.MonkeyPatch.context() as monkeypatch:
        status = run_command(
            monkeypatch,
            *("train", *tiny_overrides(tiny_data), "model=mlp", "model.network.dense=[8]"),
            *("trainer.max_epochs=1", "seed=1", "report=false", f"hydra.run.dir={folder}"),
        )
    assert status == 0
    return folder


@pytest.fixture
def other(other_run: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(other_run, tmp_path / "other")))


def change(run: Run, **changes: Any) -> None:
    """Change the configuration; None removes a key."""
    path = run.folder / ".hydra/config.yaml"
    config = OmegaConf.load(path)
    for key, value in changes.items():
        parent, _, name = key.rpartition(".")
        node = config[parent] if parent else config
        if value is None:
            del node[name]
        else:
            node[name] = value
    path.write_text(OmegaConf.to_yaml(config))


def percent(found: dict[str, Any], key: str) -> str:
    value, low, high = (100 * found[f"{key}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.2f} % (95 % interval {low:.2f} to {high:.2f} %)"


def test_again_gives_what_training_reported(command: Command, run: Run) -> None:
    before, predictions = run.metrics, run.predictions("val")
    for name in ("val.npz", "report.html", "figures/mistakes.png"):
        (run.folder / name).unlink()
    done = command("evaluate", run.folder)
    assert (done.status, done.err) == (0, "")
    assert run.metrics == before
    np.testing.assert_array_equal(run.predictions("val")[1], predictions.probabilities)
    assert (run.folder / "report.html").stat().st_size > 50_000
    for name in ("mistakes", "confusion_matrix"):
        with Image.open(run.folder / f"figures/{name}.png") as figure:
            assert figure.width > 900
    lines = done.out.splitlines()
    assert lines[0] == str(run.folder)
    assert lines[1].startswith(f"  Validation accuracy {percent(before, 'val/acc')}, epoch ")
    assert lines[-1] == f"  report {run.folder / 'report.html'}"


def test_user_metrics_of_the_reported_epoch(
    command: Command, tiny_data: Path, tmp_path: Path
) -> None:
    done = command(
        *("train", *tiny_overrides(tiny_data), "model=linear", "trainer.max_epochs=2"),
        *("+metrics.kappa._target_=torchmetrics.classification.MulticlassCohenKappa",),
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.status == 0, done.err
    run = Run(tmp_path / "run")
    position = int(run.metrics["best_epoch"]) - 1
    assert run.metrics["val/kappa"] == pytest.approx(run.history["val/kappa"][position])
    assert f" {run.metrics['val/kappa']:.4g} |" in command("compare", run.folder).out


def test_the_test_split_beside_validation(
    command: Command, other: Run, tiny_data: Path, tmp_path: Path
) -> None:
    before = other.metrics
    file = tmp_path / "mistakes.csv"
    done = command("evaluate", other.folder, "--split", "test", "--mistakes", file)
    assert (done.status, done.err) == (0, "")
    found = other.metrics
    assert {key: found[key] for key in before} == before
    labels, probabilities = other.predictions("test")
    assert labels.tolist() == [i % 10 for i in range(100)]
    assert found["test/acc"] == (probabilities.argmax(1) == labels).mean()
    # The temperature is validation's.
    temperature = before["val/temperature"]
    scaled = metrics.apply_temperature(probabilities, temperature)
    assert found["test/ece_scaled"] == metrics.scores(labels, scaled)["ece"]
    assert "test/temperature" not in found
    assert f"Test accuracy {percent(found, 'test/acc')}" in done.out
    # Validation's page, evaluated afterwards, does not replace the test set's.
    page = (other.folder / "report-test.html").read_text(encoding="utf-8")
    assert "test images" in page
    assert command("evaluate", other.folder).status == 0
    assert "validation images" in (other.folder / "report.html").read_text(encoding="utf-8")
    assert (other.folder / "report-test.html").read_text(encoding="utf-8") == page
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == (probabilities.argmax(1) != labels).sum() > 0
    for row in rows:
        index = int(row["index"])
        assert row["true"] == CLASSES[labels[index]] != row["predicted"]
        best = CLASSES[probabilities[index].argmax()]
        assert row["predicted"] == best
        assert float(row[f"p({best})"]) == pytest.approx(probabilities[index].max(), abs=1e-6)
    refused(command("evaluate", other.folder, "--mistakes", file), f"{file} exists; --force")


@pytest.mark.usefixtures("no_report")
def test_flip_augmentation_beside_the_single_view(command: Command, other: Run) -> None:
    before = other.metrics
    done = command("evaluate", other.folder, "--tta", "hflip")
    assert (done.status, done.err) == (0, "")
    found = other.metrics
    assert {key: found[key] for key in before} == before
    flipped = other.predictions("val", "hflip")
    assert found["val/acc_hflip"] == (flipped.probabilities.argmax(1) == flipped.labels).mean()
    expected = percent(found, "val/acc_hflip")
    assert f"mean of 2 views (--tta hflip) {expected}" in done.out
    table = json.loads(command("compare", other.folder, "--tta=hflip", "--format=json").out)
    assert table["tta"] == "hflip"
    assert table["rows"][0]["accuracy"] == pytest.approx(100 * found["val/acc_hflip"])
    assert "val accuracy (hflip), %" in command("compare", other.folder, "--tta=hflip").out


@pytest.mark.usefixtures("no_report")
def test_an_ensemble_averages_probabilities(
    command: Command, run: Run, other: Run, tmp_path: Path
) -> None:
    file = tmp_path / "results/ensemble.json"
    runs = (run.folder, other.folder, run.folder)  # one twice, which counts once
    done = command("evaluate", *runs, "--tta", "hflip", "--output", file)
    assert (done.status, done.err) == (0, "")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["runs"] == [str(run.folder), str(other.folder)]
    for tta, suffix in (("none", ""), ("hflip", "_hflip")):
        first, second = (each.predictions("val", tta) for each in (run, other))
        mean = (first.probabilities + second.probabilities) / 2
        assert found[f"val/acc{suffix}"] == (mean.argmax(1) == first.labels).mean()
        ensemble = done.out.split("Ensemble of these 2\n")[1]
        assert percent(found, f"val/acc{suffix}") in ensemble
    assert {"val/loss", "val/ece", "commit", "machine"} <= set(found)
    refused(command("evaluate", *runs, "--output", file), f"{file} exists; --force")


@pytest.mark.usefixtures("no_report")
def test_an_ensemble_is_of_the_same_images(
    command: Command, run: Run, other: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run.metrics
    change(other, **{"data.split_seed": 1})
    refused(
        command("evaluate", run.folder, other.folder),
        *("different validation images", f"{other.folder}  data.split_seed=1"),
    )
    assert run.metrics == before
    done = command("evaluate", run.folder, other.folder, "--split", "test")
    assert done.status == 0, done.err  # the test set is the same
    assert "Ensemble of these 2\n  Test accuracy" in done.out
    # Such as of two data folders.
    write = Run.write_predictions

    def reverse(each: Run, split: str, given: Predictions, tta: str = "none") -> None:
        if each.folder == other.folder:
            given = Predictions(given.labels[::-1].copy(), given.probabilities)
        write(each, split, given, tta)

    monkeypatch.setattr(Run, "write_predictions", reverse)
    done = command("evaluate", run.folder, other.folder, "--split", "test")
    refused(done, "different images", f"  {other.folder}")


def test_options_of_one_run_or_of_several(command: Command, run: Run, other: Run) -> None:
    done = command("evaluate", run.folder, "--output", run.folder / "file.json")
    assert done.status == 2
    assert "of several runs" in done.err
    done = command("evaluate", run.folder, other.folder, "--mistakes", run.folder / "file.csv")
    assert done.status == 2
    assert "for one run" in done.err


def test_an_unfinished_run_is_refused_before_the_others_are_evaluated(
    command: Command, run: Run, other: Run
) -> None:
    (other.folder / "metrics.json").unlink()
    before = (run.folder / "val.npz").stat().st_mtime_ns
    refused(command("evaluate", run.folder, other.folder), f"{other.folder} is unfinished")
    assert (run.folder / "val.npz").stat().st_mtime_ns == before


def test_a_run_that_is_being_written_is_left_alone(command: Command, run: Run) -> None:
    before = run.metrics
    with run.lock():
        refused(command("evaluate", run.folder), f"Another process is writing the run {run.folder}")
    assert run.metrics == before


def test_a_run_without_a_validation_split(
    command: Command, tiny_data: Path, tmp_path: Path
) -> None:
    done = command(
        *("train", *tiny_overrides(tiny_data), "data.val_size=0", "trainer=smoke"),
        *("callbacks.early_stopping=null", "model=linear", f"hydra.run.dir={tmp_path}/run"),
    )
    assert done.status == 0, done.err
    refused(command("evaluate", tmp_path / "run"), "has no validation split")
    done = command("evaluate", tmp_path / "run", "--split", "test")
    assert done.status == 0, done.err
    assert "temperature" not in done.out
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "No temperature was fitted" in page


@pytest.mark.usefixtures("no_report")
def test_data_is_found_where_the_run_was_made_or_where_it_is_told(
    command: Command, run: Run, tiny_data: Path, tmp_path: Path
) -> None:
    change(run, **{"data.root": "mydata"})
    refused(command("evaluate", run.folder), "mydata")
    shutil.copytree(tiny_data, tmp_path / "mydata")  # the run lies in tmp_path too
    before = run.metrics
    assert command("evaluate", run.folder).status == 0
    change(run, **{"data.root": "elsewhere"})
    assert command("evaluate", run.folder, "--data", tiny_data).status == 0
    assert run.metrics == before


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data": None}, ["data or seed is missing"]),
        ({"data.val_size": "many"}, ["data.val_size"]),
        ({"data._target_": None}, ["names no class under data"]),
        ({"data._target_": "os.mkdir"}, ["os.mkdir", "--trust"]),
        ({"model": None}, ["names no class under model.network"]),
        ({"model": {"network": {"_target_": "os.mkdir"}}}, ["os.mkdir", "--trust"]),
    ],
    ids=str,
)
def test_a_foreign_folder(
    command: Command, run: Run, changes: dict[str, Any], parts: list[str]
) -> None:
    change(run, **changes)
    refused(command("evaluate", run.folder), *parts)


@pytest.mark.usefixtures("no_report")
def test_metrics_of_another_program(command: Command, run: Run) -> None:
    run.write_text("metrics.json", "{}")
    done = command("evaluate", run.folder)
    assert done.status == 0, done.err
    assert "Validation accuracy" in done.out
    assert "epoch" not in done.out
