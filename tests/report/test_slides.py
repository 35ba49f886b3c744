from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from fashion.data import CLASSES
from fashion.errors import UserError
from fashion.report import figures
from fashion.report.evaluation import Evaluation
from fashion.report.figures import PredictedPhoto
from fashion.report.slides import NAMES, write_predictions, write_run
from fashion.runs.run import Run

pytestmark = pytest.mark.slow


def check(paths: list[Path], *said: str) -> None:
    """Check size, background and text of slides."""
    for path in paths:
        if path.suffix == ".svg":
            assert [each for each in said if each not in path.read_text(encoding="utf-8")] == []
            continue
        with Image.open(path) as image:
            assert image.size == (1920, 1080)
            pixels = np.asarray(image.convert("L"))
        paper = 255 if "light" in path.name else 21
        assert pixels[-3, 2] == paper, path
        # Nothing but paper behind the text: a white area in a dark slide would be most of this.
        assert (pixels[300:, 1100:] == paper).mean() > 0.5 or "photo" not in said, path


def test_slides_of_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    config = OmegaConf.create({"name": "best", "seed": 3, "data": {}})
    run.write_text(".hydra/config.yaml", OmegaConf.to_yaml(config))
    run.write_text("history.csv", "epoch,train/acc,val/acc,val/loss\n1,0.5,0.6,1\n2,0.6,0.7,0.9\n")
    run.update_metrics({"best_epoch": 2})
    labels = np.arange(100) % 10
    probabilities = np.eye(10, dtype=np.float32)[np.where(np.arange(100) < 20, 3, labels)]
    images = np.zeros((100, 28, 28), np.uint8)
    evaluation = Evaluation("test", CLASSES, images, np.arange(100), labels, probabilities)
    colors = figures.PAPER
    write_run(run, evaluation, tmp_path / "slides", force=False)
    assert colors == figures.PAPER
    paths = sorted((tmp_path / "slides").iterdir())
    assert len(paths) == len(NAMES) * 2 * 2
    check(paths, "best, seed 3", "82.0 % of 100 test images correct (95 % interval 73.3 to 88.3 %)")
    with pytest.raises(UserError, match=r"accuracy-light\.png exists; --force overwrites it"):
        write_run(run, evaluation, tmp_path / "slides", force=False)


def test_slides_of_predictions(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.write_text(".hydra/config.yaml", OmegaConf.to_yaml({"name": "best", "seed": 3, "data": {}}))
    run.update_metrics({"val/acc": 0.9, "val/acc_low": 0.894, "val/acc_high": 0.906})
    photo = Image.new("RGB", (60, 40), "gray")
    shown = [
        PredictedPhoto(name, photo, np.zeros((28, 28), np.uint8), {"Coat": 0.7, "Bag": 0.2}, [])
        for name in ("coat.jpg", "$_名.jpg", "photo")
    ]
    write_predictions(run, shown, tmp_path / "slides", force=False)
    paths = sorted((tmp_path / "slides").iterdir())
    assert [path.name for path in paths if path.suffix == ".svg"] == [
        f"predictions-{page}-{theme}.svg" for page in (1, 2) for theme in ("dark", "light")
    ]
    result = "Validation accuracy 90.0 % (95 % interval 89.4 to 90.6 %)"
    check(paths[:4], "best, seed 3: predictions", result, "coat.jpg", "70.0 %")
    check(paths[4:], "best, seed 3: predictions", result, "photo", "70.0 %")
