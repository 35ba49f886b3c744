"""What a real TensorBoard serves over HTTP about runs that the real command made."""

import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, run_command, tiny_overrides
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fashion.data import CLASSES
from fashion.data.datamodule import normalize
from fashion.report import tensorboard
from fashion.report.evaluation import evaluate, open_data
from fashion.runs.run import Run
from fashion.training.classifier import load_classifier

pytestmark = pytest.mark.slow

PROJECTED = 64
PATIENCE = 60  # seconds
TENSOR = "penultimate_features:00000"
# This machine's own: no proxy may be asked.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Ask = Callable[..., bytes]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> list[Run]:
    """Two runs that differ in what they were given, and in what they reach."""
    folder = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tensorboard, "PROJECTED", PROJECTED)
        status = run_command(
            monkeypatch,
            *("train", "-m", *tiny_overrides(tiny_data), "logger=tensorboard"),
            *("model=mlp", "model.network.dense=[8]", "trainer.max_epochs=2"),
            *("optimizer.lr=0.001,0.01", f"hydra.sweep.dir={folder}/grid"),
            "+callbacks.norm._target_=fashion.training.callbacks.GradientNorm",
        )
    assert status == 0
    return Run.find(folder)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what} took more than {PATIENCE} s")


@pytest.fixture(scope="module")
def ask(grid: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """GET or, with a document, POST below a running TensorBoard's /data."""
    logs, log = grid[0].folder.parent.parent, tmp_path_factory.mktemp("tensorboard") / "log"
    arguments = [*("--logdir", str(logs)), *("--host", "127.0.0.1"), *("--port", "0")]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *arguments], stdout=output, stderr=output
        ) as server,
    ):
        try:
            pattern = r"TensorBoard .* at (http://127\.0\.0\.1:\d+)"
            (address,) = wait_for(lambda: re.findall(pattern, log.read_text()), "TensorBoard")

            def ask(path: str, document: object = None, **query: object) -> bytes:
                url = f"{address}/data/{path}?{urllib.parse.urlencode(query)}"
                data = None if document is None else json.dumps(document).encode()
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(url, data, headers)  # noqa: S310 - its own
                with OPENER.open(request, timeout=PATIENCE) as response:
                    return bytes(response.read())

            def loaded() -> bool:
                tags = json.loads(ask("plugin/pr_curves/tags"))
                return [len(found) for found in tags.values()] == [len(CLASSES)] * len(grid)

            wait_for(loaded, "Reading the runs")
            yield ask
        finally:
            server.kill()


def name(run: Run) -> str:
    return f"grid/{run.folder.name}"


def answer(ask: Ask, *arguments: Any, **query: object) -> Any:
    return json.loads(ask(*arguments, **query))


def test_every_run_has_its_scalars(ask: Ask, grid: list[Run]) -> None:
    assert set(answer(ask, "runs")) == {name(run) for run in grid}
    tags = answer(ask, "plugin/scalars/tags")
    for run in grid:
        curves = {"train/acc", "train/loss", "val/acc", "val/loss"}
        assert curves <= set(tags[name(run)])
        for tag in (*curves, "lr", "train/gradient_norm"):
            points = answer(ask, "plugin/scalars/scalars", run=name(run), tag=tag)
            assert [step for _, step, _ in points] == [1, 2]  # epochs, whatever the batch size
        assert "epoch" not in tags[name(run)]
        # Charts of a single value come after the curves.
        single = [tag for tag in tags[name(run)] if tag.startswith(tensorboard.REPORTED)]
        assert single
        assert min(single) > max(curves)


def test_training_and_validation_share_a_chart(ask: Ask, grid: list[Run]) -> None:
    layout = answer(ask, "plugin/custom_scalars/layout")
    (category,) = layout["category"]
    tags = [chart["multiline"]["tag"] for chart in category["chart"]]
    assert tags == [["train/acc$", "val/acc$"], ["train/loss$", "val/loss$"]]


@pytest.mark.parametrize(
    ("tag", "width"), [("val/confusion_matrix", 960), ("val/mistakes", 1620), ("train/images", 242)]
)
def test_every_run_has_its_images(ask: Ask, grid: list[Run], tag: str, width: int) -> None:
    for run in grid:
        (sample,) = answer(ask, "plugin/images/images", run=name(run), tag=tag, sample=0)
        query = dict(urllib.parse.parse_qsl(sample["query"]))
        picture = Image.open(io.BytesIO(ask("plugin/images/individualImage", **query)))
        assert picture.width == width
        assert len(picture.getcolors(2**24) or []) > 50


def test_every_class_has_its_curve(ask: Ask, grid: list[Run]) -> None:
    tags = answer(ask, "plugin/pr_curves/tags")
    for run in grid:
        assert set(tags[name(run)]) == {f"val/{label}" for label in CLASSES}
        labels, probabilities = run.predictions("val")
        for label, class_name in enumerate(CLASSES):
            (curve,) = answer(
                ask, "plugin/pr_curves/pr_curves", run=name(run), tag=f"val/{class_name}"
            )[name(run)]
            assert len(curve["thresholds"]) > 2
            for threshold, recall, precision in zip(
                curve["thresholds"], curve["recall"], curve["precision"], strict=True
            ):
                taken = probabilities[:, label] >= threshold
                hits = (taken & (labels == label)).sum()
                assert recall == pytest.approx(hits / 10)
                assert precision == pytest.approx(hits / taken.sum())


def test_every_run_has_its_graph(ask: Ask, grid: list[Run]) -> None:
    for run in grid:
        graph = ask("plugin/graphs/graph", run=name(run), conceptual="false").decode()
        for layer in ("ConvNet/Linear[1]", "ConvNet/ReLU[2]", "ConvNet/Linear[4]"):
            assert f'name: "{layer}' in graph


def test_hparams_show_what_is_reported(ask: Ask, grid: list[Run]) -> None:
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    request = {"experimentName": "", "allowedStatuses": statuses, "colParams": [], "sliceSize": 9}
    found = answer(ask, "plugin/hparams/session_groups", {**request, "startIndex": 0})
    groups = {group["name"]: group for group in found["sessionGroups"]}
    assert set(groups) == {name(run) for run in grid}
    assert len({group["hparams"]["Learning rate"] for group in groups.values()}) == 2
    for run in grid:
        group = groups[name(run)]
        assert group["hparams"]["Learning rate"] == run.config.optimizer.lr
        assert group["hparams"]["dense"] == "[8]"
        assert group["hparams"]["Model"] == "mlp"
        assert sorted(group["hparams"])[:2] == ["Batch size", "Epochs"]  # shown first
        for key in group["hparams"]:  # nothing that is off, and no bookkeeping
            assert not re.search(r"_target_|root|official|logger|callbacks|augmentation", key), key
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        for key in ("val/acc", "val/f1", "val/loss", "seconds"):
            reported = values[f"{tensorboard.REPORTED}/{key}"]
            assert reported == pytest.approx(run.metrics[key], rel=1e-6)
        assert not [key for key in values if key.endswith("_low") or "Coat" in key]
    experiment = answer(ask, "plugin/hparams/experiment", {"experimentName": ""})
    tag = f"{tensorboard.REPORTED}/val/acc"  # the first column
    assert experiment["metricInfos"][0]["name"]["tag"] == tag


def test_projector_shows_penultimate_features(ask: Ask, grid: list[Run]) -> None:
    assert set(answer(ask, "plugin/projector/runs")) == {name(run) for run in grid}
    data: Any = open_data(grid[0])
    data.setup("validate")
    for run in grid:
        of = {"run": name(run), "name": TENSOR}
        (embedding,) = answer(ask, "plugin/projector/info", run=name(run))["embeddings"]
        assert (embedding["tensorName"], embedding["tensorShape"]) == (TENSOR, [PROJECTED, 8])

        network = load_classifier(run).network
        with torch.inference_mode():
            pictures = normalize(data.val.images[:PROJECTED])
            expected = nn.Sequential(*list(network.children())[:-1])(pictures)
        found = np.frombuffer(ask("plugin/projector/tensor", **of), np.float32)
        np.testing.assert_allclose(found.reshape(PROJECTED, 8), expected, atol=6e-4)
        assert found.any()

        labels, probabilities = run.predictions("val")
        names = [
            f"{CLASSES[label]}\t{CLASSES[guess]}"
            for label, guess in zip(labels, probabilities.argmax(1), strict=True)
        ]
        lines = ask("plugin/projector/metadata", **of).decode().splitlines()
        assert lines == ["true\tpredicted", *names[:PROJECTED]]

        sprite = Image.open(io.BytesIO(ask("plugin/projector/sprite_image", **of)))
        assert sprite.size == (8 * 28, 8 * 28)
        tiles = np.asarray(sprite.convert("L"))
        np.testing.assert_allclose(tiles[28:56, :28], 255 - data.val.images[8].numpy(), atol=1)


def test_without_a_validation_split_there_are_graph_and_training_images(
    command: Command, tiny_data: Path, tmp_path: Path
) -> None:
    done = command(
        *("train", *tiny_overrides(tiny_data), "data.val_size=0", "trainer=smoke", "model=linear"),
        *("callbacks.early_stopping=null", "logger=tensorboard", f"hydra.run.dir={tmp_path}/run"),
    )
    assert done.status == 0, done.err
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()
    assert tags["graph"] is True
    assert tags["images"] == ["train/images"]
    assert [tag for tag in tags["tensors"] if tag.startswith("val")] == []
    assert not list(tmp_path.rglob("projector_config.pbtxt"))


def test_network_without_a_graph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Untraceable(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x}

    class Unsteady(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if torch.rand(()) < torch.rand(()) else x * 2

    torch.manual_seed(3)
    with SummaryWriter(tmp_path) as writer:
        tensorboard.write_graph(writer, Untraceable())
        assert "No graph saved" in capfd.readouterr().out
        for _ in range(8):  # two traces differ with a probability of a half
            tensorboard.write_graph(writer, Unsteady())


def test_writing_it_again_prints_nothing(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(tiny_run)
    classifier = load_classifier(run)
    evaluation = evaluate(classifier, open_data(run), "val")
    for _ in range(2):
        with SummaryWriter(tmp_path) as writer:
            tensorboard.write_evaluation(writer, 1, classifier, evaluation)
    assert capfd.readouterr().out == ""
    assert len(list(tmp_path.rglob("tensors.tsv"))) == 1
