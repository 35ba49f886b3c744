"""scripts/resolution.py: from predictions to tables and figures."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fashion.config import CONF
from fashion.errors import UserError
from fashion.runs.run import Run

pytestmark = pytest.mark.slow
RIGHT = {"linear": 0.7, "mlp": 0.75, "best": 0.8, "cnn": 0.85, "fast": 0.9}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    path = CONF.parent / "scripts/resolution.py"
    spec = importlib.util.spec_from_file_location("resolution_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_collects_what_runs_predict(script: Any, tmp_path: Path, tiny_run: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/resolution").symlink_to(tiny_run.parent)
    script.collect("resolution")
    script.collect("resolution")  # what is known stays
    run = Run(tiny_run)
    found = script.cell("resolution", run.config.name)
    labels, probabilities = run.predictions("val")
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.predicted, [probabilities.argmax(1)])
    assert found.accuracies == [pytest.approx(run.metrics["val/acc"])]
    with pytest.raises(UserError, match="no run of other: scripts/reproduce resolution makes it"):
        script.cell("resolution", "other")


def test_tables_and_figures(script: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = (np.arange(2000) % 10).astype(np.uint8)

    def predicted(fraction: float) -> np.ndarray:
        right = random.random(len(labels)) < fraction
        return np.where(right, labels, (labels + 1) % 10).astype(np.uint8)

    lost = {28: 0.0, 14: 0.02, 7: 0.1}
    runs: dict[str, dict[str, Any]] = {
        "resolution": {
            f"{name}-{pixels}/{seed}": predicted(fraction - lost[pixels] * (name == "fast"))
            for name, fraction in RIGHT.items()
            for pixels in (7, 14, 28)
            for seed in range(3)
        },
        "train-size": {
            f"{name}-{size}/{seed}": predicted(RIGHT[name] - 100 / size)
            for name in ("linear", "cnn", "fast")
            for size in (500, 2_000, 10_000)
            for seed in range(3)
        },
    }
    for study, each in runs.items():
        (tmp_path / "results" / study).mkdir(parents=True)
        np.savez(tmp_path / "results" / study / "predictions.npz", labels=labels, **each)
    (tmp_path / "results/images").mkdir()
    script.main()
    found = json.loads(Path("results/resolution.json").read_text("utf-8"))
    grown = {
        each["network"]: each
        for each in found["interactions"]
        if (each["from"], each["to"]) == (7, 28)
    }
    # Only what fast gains depends on the resolution, by ten points.
    assert grown["fast"]["low"] < 10 < grown["fast"]["high"]
    assert grown["fast"]["p_holm"] < 0.01 < min(grown[name]["p_holm"] for name in ("mlp", "cnn"))
    assert len(found["classes"]["best"]) == 10
    text = Path("results/resolution.md").read_text("utf-8")
    assert "| fast minus cnn | " in text
    sizes = json.loads(Path("results/train-size.json").read_text("utf-8"))
    small = next(e for e in sizes["accuracy"] if (e["network"], e["images"]) == ("cnn", 500))
    assert small["mean"] == pytest.approx(0.65, abs=0.03)
    for name in ("resolution", "train-size"):
        assert Path(f"results/images/{name}.png").stat().st_size > 10_000
