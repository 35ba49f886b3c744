from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from fashion.data import CLASSES
from fashion.errors import UserError
from fashion.report import figures
from fashion.report.evaluation import Evaluation
from fashion.report.slides import NAMES, write_slides
from fashion.runs.run import Run

pytestmark = pytest.mark.slow


def test_slides(tmp_path: Path) -> None:
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
    write_slides(run, evaluation, tmp_path / "slides", force=False)
    assert colors == figures.PAPER
    paths = sorted((tmp_path / "slides").iterdir())
    assert len(paths) == len(NAMES) * 2 * 2
    for path in paths:
        if path.suffix == ".svg":
            text = path.read_text(encoding="utf-8")
            assert "best, seed 3" in text
            assert "82.0 % of 100 test images correct (95 % interval 73.3 to 88.3 %)" in text
            continue
        with Image.open(path) as image:
            assert image.size == (1920, 1080)
            corner = image.convert("L").getpixel((2, 1077))
        assert (corner == 255) == ("light" in path.name)
    with pytest.raises(UserError, match=r"accuracy-light\.png exists; --force overwrites it"):
        write_slides(run, evaluation, tmp_path / "slides", force=False)
