"""Evaluations made of a stand-in classifier and hand-made predictions."""

import csv
import io
from typing import Any

import numpy as np
import pytest
import torch

from fashion.data import CLASSES
from fashion.report import evaluation as report
from fashion.report import metrics
from fashion.report.evaluation import Evaluation
from fashion.report.statistics import Interval, wilson

SHIRT, COAT = CLASSES.index("Shirt"), CLASSES.index("Coat")


def made(labels: list[int], predicted: list[int], **changes: Any) -> Evaluation:
    """Each prediction with probability 0.9, the earlier the more confident."""
    classes = changes.pop("classes", CLASSES)
    n = len(labels)
    probabilities = np.full((n, len(classes)), 0.1 / (len(classes) - 1), np.float32)
    probabilities[np.arange(n), predicted] = 0.9 - 0.001 * np.arange(n)
    given = {
        "split": "val",
        "classes": classes,
        "images": np.zeros((n, 28, 28), np.uint8),
        "indices": 1000 + np.arange(n),
        "labels": np.array(labels),
        "probabilities": probabilities,
    }
    return Evaluation(**(given | changes))


def test_metrics_per_class_and_pair() -> None:
    labels = [SHIRT] * 4 + [COAT] * 3 + [0]
    found = made(labels, [SHIRT, COAT, COAT, SHIRT, SHIRT, COAT, COAT, 1]).metrics
    assert found["val/acc"] == 0.5
    assert found["val/recall/Shirt"] == 0.5
    interval = Interval(found["val/recall_low/Shirt"], found["val/recall_high/Shirt"])
    assert interval == wilson(2, 4)
    assert found["val/precision/Coat"] == 0.5
    confused = [key for key in found if key.startswith("val/confused/")]
    assert confused[:2] == ["val/confused/Coat as Shirt", "val/confused/Shirt as Coat"]
    assert [found[key] for key in confused[:2]] == [1, 2]
    assert len(confused) == 90  # all, so that nothing is left of an earlier evaluation
    # Undefined: T-shirts were never predicted, there are no trousers.
    assert "val/precision/T-shirt/top" not in found
    assert found["val/recall/T-shirt/top"] == 0
    assert "val/recall/Trouser" not in found
    assert not [key for key in found if "Bag" in key and "confused" not in key]
    assert found["val/recall"] == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    assert all(isinstance(value, float | int) for value in found.values())
    assert not [value for value in found.values() if np.isnan(value)]


def test_temperature_belongs_to_validation() -> None:
    val = made([0, 1, 2], [0, 1, 3], temperature=2.0)
    assert val.metrics["val/temperature"] == 2
    scaled = metrics.apply_temperature(val.probabilities, 2.0)
    assert val.metrics["val/ece_scaled"] == metrics.scores(val.labels, scaled)["ece"]
    test = made([0, 1, 2], [0, 1, 3], split="test", temperature=2.0)
    assert "test/temperature" not in test.metrics
    assert test.metrics["test/ece_scaled"] == val.metrics["val/ece_scaled"]
    bare = made([0, 1, 2], [0, 1, 3]).metrics
    assert not {"val/temperature", "val/ece_scaled"} & set(bare)


def test_mistakes_the_most_confident_first() -> None:
    evaluation = made([0, 1, 2, 3], [5, 1, 5, 5])
    evaluation.probabilities[3, 5] = 0.95
    assert evaluation.mistakes.tolist() == [3, 0, 2]
    rows = list(csv.DictReader(io.StringIO(evaluation.mistakes_csv())))
    assert [row["index"] for row in rows] == ["1003", "1000", "1002"]
    assert (rows[1]["true"], rows[1]["predicted"]) == ("T-shirt/top", "Sandal")
    assert float(rows[1]["p(Sandal)"]) == pytest.approx(0.9)
    assert len(rows[0]) == 3 + len(CLASSES)


def test_sentences_are_about_fashion_only_where_the_classes_are() -> None:
    sentence = made([0], [0]).sentence(SHIRT, COAT)
    assert sentence == "We thought it was a coat but it was actually a shirt."
    digits = made([0], [0], classes=tuple("0123456789"))
    assert digits.sentence(8, 3) == "Predicted 3, true class 8."


class Data:
    """A LightningDataModule's part that `evaluate` uses."""

    def __init__(self) -> None:
        from fashion.data.datamodule import ImageSet

        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8, generator=random)
        self.val = self.test = ImageSet(images, torch.arange(20) % 10, torch.arange(20) + 40)
        self.stages: list[str] = []

    def setup(self, stage: str) -> None:
        self.stages.append(stage)


def untrained() -> Any:
    from fashion.training.classifier import Classifier

    torch.manual_seed(0)
    network = {"_target_": "fashion.training.networks.ConvNet", "conv": [], "dense": [8]}
    return Classifier(network).eval()


def test_evaluate_reads_the_split_alone() -> None:
    classifier, data = untrained(), Data()
    val = report.evaluate(classifier, data, "val")
    assert data.stages == ["validate"]
    assert val.temperature == metrics.fit_temperature(val.labels, val.probabilities)
    assert val.indices.tolist() == list(range(40, 60))
    test = report.evaluate(classifier, data, "test", temperature=0.5)
    assert (data.stages, test.temperature) == (["validate", "test"], 0.5)
    assert test.probabilities_tta is None


def test_test_time_augmentation_averages_views() -> None:
    classifier, data = untrained(), Data()
    images = data.val.images
    flipped = images.flip(2)
    moved = []
    for image in (images, flipped):
        for rows, columns in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            view = torch.zeros_like(image)  # black where nothing moved to
            for row in range(28):
                for column in range(28):
                    if 0 <= row + rows < 28 and 0 <= column + columns < 28:
                        view[:, row + rows, column + columns] = image[:, row, column]
            moved.append(view)
    for tta, views in (("hflip", [images, flipped]), ("shift", [images, flipped, *moved])):
        single = []
        for view in views:
            each = Data()
            each.val = type(data.val)(view, data.val.labels, data.val.indices)
            single.append(report.evaluate(classifier, each, "val").probabilities)
        val = report.evaluate(classifier, data, "val", tta=tta)
        assert val.probabilities_tta is not None
        np.testing.assert_array_equal(val.probabilities, single[0])
        assert not any(np.allclose(each, single[0]) for each in single[1:])
        np.testing.assert_allclose(val.probabilities_tta, np.mean(single, axis=0), atol=1e-6)
        hits = int((val.probabilities_tta.argmax(1) == val.labels).sum())
        bounds = [val.metrics[f"val/acc_{tta}{end}"] for end in ("", "_low", "_high")]
        assert bounds == [hits / 20, *wilson(hits, 20)]


def test_summary() -> None:
    found = made([0, 1, 2, 3], [0, 1, 2, 4], temperature=1.5)
    metrics_ = found.metrics | {"best_epoch": 2, "epochs": 3}
    low, high = wilson(3, 4)
    assert report.summary(metrics_, "val") == (
        f"Validation accuracy 75.00 % (95 % interval {100 * low:.2f} to {100 * high:.2f} %), "
        "epoch 2 of 3"
    )
    lines = report.details(found).splitlines()
    assert "% at temperature 1.5" in lines[0]
    sharper = made([0, 1, 2, 3], [0, 1, 2, 4], temperature=0.5)  # it was too sure before
    assert "; temperature 0.5 does not reduce it" in report.details(sharper)
    assert lines[1] == "  most confused: 1 Dress as Coat, 0 Coat as Dress"
