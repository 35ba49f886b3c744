"""The real command on tiny runs: what it writes, what it says, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Outcome, run_command, tiny_overrides
from omegaconf import OmegaConf
from PIL import Image

from fashion.data.datamodule import CLASSES, FashionMNIST
from fashion.evaluate import evaluate
from fashion.report import metrics
from fashion.report.metrics import Interval
from fashion.runs.run import Predictions, Run
from fashion.training.classifier import load_classifier, predict


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    """A copy to be altered."""
    return Run(Path(shutil.copytree(tiny_run, tmp_path / "run")))


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """Another seed's, with too little training to know every picture."""
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


@pytest.fixture
def data(tiny_data: Path) -> FashionMNIST:
    data = FashionMNIST(
        0, root=str(tiny_data), batch_size=32, val_size=100, split_seed=0, official=False
    )
    data.setup("validate")
    data.setup("test")
    return data


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take most of the time."""
    monkeypatch.setattr("fashion.evaluate.write_report", lambda *_: None)


def change(run: Run, **changes: Any) -> None:
    """Of the configuration; None takes a key out."""
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


def refused(done: Outcome, *parts: str) -> None:
    assert done.status == 1, done.out
    assert "Traceback" not in done.out + done.err
    assert done.err.startswith("error: "), done.err
    for part in parts:
        assert part in done.err


def percent(metrics: dict[str, Any], key: str) -> str:
    value, low, high = (100 * metrics[f"{key}{bound}"] for bound in ("", "_low", "_high"))
    return f"{value:.2f} % (95 % interval {low:.2f} to {high:.2f})"


def test_again_gives_what_training_reported(command: Command, run: Run) -> None:
    before = run.metrics
    predictions = run.predictions("val")
    for name in ("val.npz", "report.html", "figures/mistakes.png"):
        (run.folder / name).unlink()
    done = command("evaluate", run.folder)
    assert (done.status, done.err) == (0, "")
    assert run.metrics == before
    np.testing.assert_array_equal(run.predictions("val")[1], predictions.probabilities)
    assert (run.folder / "report.html").stat().st_size > 50_000
    for name in ("mistakes", "confusion_matrix"):
        with Image.open(run.folder / f"figures/{name}.png") as figure:
            assert figure.width > 1000
    lines = done.out.splitlines()
    assert lines[0] == str(run.folder)
    assert lines[1].startswith(f"  Validation accuracy {percent(before, 'val/acc')}, of epoch ")
    assert len(lines) == 5


def test_the_test_split_takes_validation_s_temperature(
    command: Command, other: Run, data: FashionMNIST
) -> None:
    before = other.metrics
    done = command("evaluate", other.folder, "--split", "test")
    assert (done.status, done.err) == (0, "")
    numbers = other.metrics
    assert {key: numbers[key] for key in before} == before
    labels, probabilities = other.predictions("test")
    np.testing.assert_array_equal(labels, data.test.labels)
    assert numbers["test/acc"] == (probabilities.argmax(1) == labels).mean()
    temperature = before["val/temperature"]
    assert abs(temperature - 1) > 0.05
    scaled = metrics.apply_temperature(probabilities, temperature)
    assert numbers["test/ece_scaled"] == metrics.scores(labels, scaled)["ece"]
    assert numbers["test/ece_scaled"] != numbers["test/ece"]
    assert "test/temperature" not in numbers
    assert f"Test accuracy {percent(numbers, 'test/acc')}" in done.out
    assert f"% at temperature {temperature:.3g}" in done.out
    assert "test pictures" in (other.folder / "report.html").read_text(encoding="utf-8")


def test_training_s_own_test_takes_validation_s_temperature(
    command: Command, tiny_data: Path, tmp_path: Path
) -> None:
    done = command(
        *("train", *tiny_overrides(tiny_data), "model=linear", "trainer=smoke", "test=true"),
        *("report=false", f"hydra.run.dir={tmp_path}/run"),
    )
    assert done.status == 0, done.err
    numbers = Run(tmp_path / "run").metrics
    labels, probabilities = Run(tmp_path / "run").predictions("test")
    scaled = metrics.apply_temperature(probabilities, numbers["val/temperature"])
    assert numbers["test/ece_scaled"] == metrics.scores(labels, scaled)["ece"]


def test_no_temperature_is_said(command: Command, run: Run) -> None:
    left = {key: value for key, value in run.metrics.items() if key != "val/temperature"}
    run.write_text("metrics.json", json.dumps(left))
    done = command("evaluate", run.folder, "--split", "test")
    assert done.status == 0, done.err
    assert "no temperature is fitted, which evaluating --split val does" in done.out
    assert "test/ece_scaled" not in run.metrics
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "No temperature is fitted" in page
    assert "after the logits are divided" not in page


def test_numbers_by_class_and_pair(other: Run, data: FashionMNIST) -> None:
    numbers = evaluate(other, "val", data)
    labels, probabilities = other.predictions("val")
    predicted = probabilities.argmax(1)
    for label, name in enumerate(CLASSES):
        hits = int(((predicted == label) & (labels == label)).sum())
        assert numbers[f"val/recall/{name}"] == pytest.approx(hits / 10)
        found = Interval(numbers[f"val/recall_low/{name}"], numbers[f"val/recall_high/{name}"])
        assert found == pytest.approx(metrics.accuracy_interval(hits, 10))
        assert numbers[f"val/f1_low/{name}"] <= numbers[f"val/f1/{name}"]
        assert numbers[f"val/f1/{name}"] <= numbers[f"val/f1_high/{name}"]
        assert f"val/precision/{name}" in numbers
        for answer, other_name in enumerate(CLASSES):
            if answer != label:
                count = ((labels == label) & (predicted == answer)).sum()
                assert numbers[f"val/confused/{name} as {other_name}"] == count
    counts = [value for key, value in numbers.items() if key.startswith("val/confused/")]
    assert sum(counts) == (predicted != labels).sum() > 0
    both_ways = [first + second for first, second in zip(counts[::2], counts[1::2], strict=True)]
    assert both_ways == sorted(both_ways, reverse=True)
    assert all(isinstance(value, float | int) for value in numbers.values())


def test_the_mirrored_view_stands_beside_the_single_one(
    command: Command, other: Run, data: FashionMNIST
) -> None:
    before = other.metrics
    done = command("evaluate", other.folder, "--views", "mirrored")
    assert (done.status, done.err) == (0, "")
    numbers = other.metrics
    assert {key: numbers[key] for key in before} == before
    network = load_classifier(other)
    images = data.val.images
    expected = (predict(network, images) + predict(network, torch.flip(images, [2]))) / 2
    found = other.predictions("val", "mirrored")
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert not np.allclose(found.probabilities, other.predictions("val").probabilities)
    right = (found.probabilities.argmax(1) == found.labels).sum()
    interval = metrics.accuracy_interval(int(right), 100)
    assert numbers["val/acc_mirrored"] == right / 100
    assert (numbers["val/acc_mirrored_low"], numbers["val/acc_mirrored_high"]) == interval
    assert f"with the mirrored view {percent(numbers, 'val/acc_mirrored')}" in done.out
    table = json.loads(command("compare", other.folder, "--views=mirrored", "--format=json").out)
    assert table["views"] == "mirrored"
    assert table["rows"][0]["accuracy"] == pytest.approx(100 * numbers["val/acc_mirrored"])
    assert "val accuracy (mirrored), %" in command("compare", other.folder, "--views=mirrored").out


@pytest.mark.parametrize("views", ["single", "mirrored"])
@pytest.mark.usefixtures("no_report")
def test_an_ensemble_averages_probabilities(
    command: Command, run: Run, other: Run, tmp_path: Path, views: str
) -> None:
    file = tmp_path / "results/ensemble.json"
    command("evaluate", run.folder, "--views", views)
    alone = run.metrics
    runs = (run.folder, other.folder, run.folder)  # one twice, which counts once
    done = command("evaluate", *runs, "--views", views, "--output", file)
    assert (done.status, done.err) == (0, "")
    assert run.metrics == alone
    numbers = json.loads(file.read_text(encoding="utf-8"))
    assert numbers["runs"] == [str(run.folder), str(other.folder)]
    for kind, suffix in {"single": "", views: "" if views == "single" else "_mirrored"}.items():
        first, second = (each.predictions("val", kind) for each in (run, other))
        mean = (first.probabilities + second.probabilities) / 2
        assert numbers[f"val/acc{suffix}"] == (mean.argmax(1) == first.labels).mean()
        ensemble = done.out.split("Ensemble of these 2\n")[1]
        assert percent(numbers, f"val/acc{suffix}") in ensemble
    assert {"val/loss", "val/ece", "commit", "machine"} <= set(numbers)
    assert ("val/acc_mirrored" in numbers) == (views == "mirrored")


@pytest.mark.usefixtures("no_report")
def test_an_ensemble_is_of_one_split(command: Command, run: Run, other: Run) -> None:
    change(other, **{"data.split_seed": 1})
    before = run.metrics
    refused(
        command("evaluate", run.folder, other.folder),
        *("hold out different images", f"{other.folder}  data.split_seed=1"),
    )
    assert run.metrics == before
    done = command("evaluate", run.folder, other.folder, "--split", "test")
    assert done.status == 0, done.err  # the test set is the same
    assert "Ensemble of these 2\n  Test accuracy" in done.out


@pytest.mark.usefixtures("no_report")
def test_an_ensemble_is_of_the_same_pictures(
    command: Command, run: Run, other: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of two data folders."""
    write = Run.write_predictions

    def turn(each: Run, split: str, predictions: Predictions, views: str = "single") -> None:
        if each.folder == other.folder:
            predictions = Predictions(predictions.labels[::-1].copy(), predictions.probabilities)
        write(each, split, predictions, views)

    monkeypatch.setattr(Run, "write_predictions", turn)
    refused(
        command("evaluate", run.folder, other.folder),
        *(f"other images than {run.folder}", f"  {other.folder}"),
    )


def test_one_run_is_no_ensemble(command: Command, run: Run, tmp_path: Path) -> None:
    done = command("evaluate", run.folder, "--output", tmp_path / "file.json")
    assert done.status == 2
    assert "of several runs" in done.err


def test_an_unfinished_run_is_refused_before_the_others_are_evaluated(
    command: Command, run: Run, other: Run
) -> None:
    (other.folder / "metrics.json").unlink()
    before = (run.folder / "val.npz").stat().st_mtime_ns
    refused(command("evaluate", run.folder, other.folder), f"{other.folder} is unfinished")
    assert (run.folder / "val.npz").stat().st_mtime_ns == before


def test_a_run_that_is_being_written_is_left_alone(command: Command, run: Run) -> None:
    before = run.metrics
    with run.held():
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
    refused(command("evaluate", tmp_path / "run"), "it has no validation split")
    done = command("evaluate", tmp_path / "run", "--split", "test")
    assert done.status == 0, done.err
    assert "no temperature is fitted: the run has no validation split" in done.out


def test_a_split_that_lacks_classes(command: Command, tiny_data: Path, tmp_path: Path) -> None:
    done = command(
        *("train", *tiny_overrides(tiny_data), "data.val_size=3", "trainer=smoke"),
        *("report=true", "model=linear", f"hydra.run.dir={tmp_path}/run"),
    )
    assert done.status == 0, done.err
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "There are no pictures of" in page


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data": None}, "data or seed is missing"),
        ({"data": 3}, "data or seed is missing"),
        ({"data.val_size": "many"}, "data.val_size = many"),
        ({"data._target_": None}, "names no data set (data._target_)"),
        ({"data.root": None}, "data.root is missing"),
        (
            {"data": {"val_size": 100, "_target_": "fashion.training.networks.ConvNet"}},
            "data.val_size: there is no such key",
        ),
        ({"model": None}, "names no network"),
        ({"model": 3}, "names no network"),
        ({"model": {"network": {"_target_": "os.mkdir"}}}, "os.mkdir"),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_foreign_folder(
    command: Command, run: Run, changes: dict[str, Any], part: str, verb: str
) -> None:
    change(run, **changes)
    if verb == "evaluate":
        refused(command("evaluate", run.folder), part)
        return
    photo = run.folder / "photo.png"
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(photo)
    done = command("predict", run.folder, photo)
    if part in ("names no data set (data._target_)", "data.root is missing"):
        assert done.status == 0  # it needs none
    else:
        refused(done, part)


def test_metrics_of_somebody_else(command: Command, run: Run) -> None:
    run.write_text("metrics.json", "{}")
    done = command("evaluate", run.folder)
    assert done.status == 0, done.err
    assert "Validation accuracy" in done.out
    assert "epoch" not in done.out
