"""Metrics against hand-computed values, and simulations whose truth is known."""

# Types: NumPy's and hypothesis's functions without types.
# mypy: disable-error-code="no-any-return, no-untyped-call"

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fashion.config import OWN_METRICS
from fashion.report import metrics
from fashion.report.statistics import wilson


def one_hot(predicted: np.ndarray) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[predicted]


def answers(labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Probabilities (..., n, 10) of runs that are right where `right` (..., n) says so."""
    return one_hot(np.where(right, labels, (labels + 1) % 10))


def noisy(seed: int, images: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, images)
    logits = random.normal(size=(images, 10)) + 1.5 * one_hot(labels)
    powers = np.exp(sharpness * logits)
    return labels, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


predictions = st.builds(
    noisy,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 60),
    sharpness=st.sampled_from([0.0, 0.3, 1.0, 5.0, 50.0]),
)
bounded = settings(max_examples=40, derandomize=True)

EXTREMES = {
    "perfect": one_hot,
    "all wrong": lambda labels: one_hot((labels + 1) % 10),
    "constant": lambda labels: np.full((len(labels), 10), 0.1, dtype=np.float32),
    "one class": lambda labels: one_hot(np.full_like(labels, 3)),
    "rounded beyond 1": lambda labels: one_hot(labels) * np.float32(1.000001),
}


@pytest.mark.parametrize("labels", [np.arange(50) % 10, np.full(50, 3)], ids=["all", "class 3"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_predictions_break_nothing(name: str, labels: np.ndarray) -> None:
    probabilities = EXTREMES[name](labels)
    found = metrics.scores(labels, probabilities)
    assert all(np.isfinite(value) for value in found.values())
    assert all(0 <= value <= 1 for key, value in found.items() if key != "loss")
    for score in metrics.class_scores(labels, probabilities):
        for key in ("precision", "recall", "f1"):
            value, (low, high) = getattr(score, key), getattr(score, f"{key}_interval")
            assert np.isnan([low, value, high]).all() or 0 <= low <= value <= high <= 1
    assert metrics.reliability(labels, probabilities).count.sum() == 50
    temperature = metrics.fit_temperature(labels, probabilities)
    assert 0.01 <= temperature <= 100
    assert np.isfinite(metrics.apply_temperature(probabilities, temperature)).all()


def test_perfect_and_all_wrong_scores() -> None:
    labels = np.arange(50) % 10
    perfect = metrics.scores(labels, one_hot(labels))
    assert perfect["acc"] == perfect["acc_high"] == perfect["f1"] == perfect["top2"] == 1
    assert str(perfect["loss"]) == "0.0"
    assert perfect["ece"] < 1e-6
    assert metrics.confused_pairs(metrics.confusion(labels, one_hot(labels))) == []
    wrong = metrics.scores(labels, one_hot((labels + 1) % 10))
    assert wrong["acc"] == wrong["acc_low"] == wrong["precision"] == wrong["recall"] == 0
    assert wrong["loss"] == pytest.approx(87.3365)
    assert wrong["ece"] == pytest.approx(1)


def test_scores_by_hand() -> None:
    probabilities = np.zeros((4, 10), dtype=np.float32)
    probabilities[0, [0, 1]] = 0.9, 0.1
    probabilities[1, [0, 1]] = 0.6, 0.4
    probabilities[2, [1, 2]] = 0.7, 0.3
    probabilities[3, [2, 1, 5]] = 0.5, 0.3, 0.2
    found = metrics.scores(np.array([0, 1, 1, 5]), probabilities)
    assert found["acc"] == 0.5
    assert (found["acc_low"], found["acc_high"]) == wilson(2, 4)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.2]).mean())
    assert found["top2"] == 0.75
    # Classes 0, 1, 2 are predicted, with precision 1/2, 1, 0; there are images of 0, 1, 5, with
    # recall 1, 1/2, 0; F1 is defined for all four.
    assert found["precision"] == pytest.approx(1.5 / 3)
    assert found["recall"] == pytest.approx(1.5 / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3) / 4)
    # Each image in a bin of its own.
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.3 + 0.5) / 4)


@pytest.mark.slow
@bounded
@given(predictions)
def test_numbers_agree_with_each_other(answered: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = answered
    found = metrics.scores(labels, probabilities)
    assert found["acc_low"] <= found["acc"] <= found["acc_high"]
    assert found["acc"] <= found["top2"] <= 1

    counts = metrics.confusion(labels, probabilities)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(labels, minlength=10))
    assert np.trace(counts) == round(found["acc"] * len(labels))

    by_class = metrics.class_scores(labels, probabilities)
    assert [score.label for score in by_class] == list(range(10))
    for score in by_class:
        hits, row, column = (
            counts[score.label, score.label],
            counts[score.label].sum(),
            counts[:, score.label].sum(),
        )
        assert score.support == row
        for value, interval, part, whole in (
            (score.recall, score.recall_interval, hits, row),
            (score.precision, score.precision_interval, hits, column),
            (score.f1, score.f1_interval, 2 * hits, row + column),
        ):
            if whole:
                assert value == pytest.approx(part / whole)
                assert 0 <= interval.low <= value <= interval.high <= 1
            else:
                assert np.isnan([value, *interval]).all()
    for key in ("precision", "recall", "f1"):
        defined = [getattr(score, key) for score in by_class if getattr(score, key) >= 0]
        assert found[key] == pytest.approx(sum(defined) / len(defined))

    pairs = metrics.confused_pairs(counts)
    both_ways = [pair.total for pair in pairs]
    assert both_ways == sorted(both_ways, reverse=True)
    assert sum(both_ways) == len(labels) - np.trace(counts)
    for first, second, first_as_second, second_as_first in pairs:
        assert first < second
        assert first_as_second == counts[first, second]
        assert second_as_first == counts[second, first]

    bins = metrics.reliability(labels, probabilities)
    assert bins.count.sum() == len(labels)
    np.testing.assert_array_equal(np.isnan(bins.accuracy), bins.count == 0)
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence))
    assert found["ece"] == pytest.approx((gaps * bins.count).sum() / len(labels), abs=1e-5)


@pytest.mark.slow
def test_f1_interval_covers() -> None:
    """Class c is right with 0.5 + 0.05 c, else taken for the next: ten known F1 at once."""
    random = np.random.default_rng(0)
    recall = 0.5 + 0.05 * np.arange(10)
    truth = 2 * recall / (1 + recall + (1 - np.roll(recall, 1)))
    covered = 0
    for _ in range(100):
        labels = random.integers(0, 10, 400)
        probabilities = answers(labels, random.random(400) < recall[labels])
        for score in metrics.class_scores(labels, probabilities):
            covered += score.f1_interval.low <= truth[score.label] <= score.f1_interval.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_temperature_is_found() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 10)) * 2
    calibrated = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (random.random((20_000, 1)) > calibrated.cumsum(axis=1)).sum(axis=1).clip(0, 9)
    sure = np.exp(2.5 * logits)
    sure = (sure / sure.sum(axis=1, keepdims=True)).astype(np.float32)
    temperature = metrics.fit_temperature(labels, sure)
    assert temperature == pytest.approx(2.5, rel=0.03)
    mended = metrics.apply_temperature(sure, temperature)
    before, after = metrics.scores(labels, sure), metrics.scores(labels, mended)
    assert after["ece"] < 0.02 < before["ece"]
    assert after["loss"] < before["loss"]
    assert after["acc"] == before["acc"]
    assert metrics.fit_temperature(labels, mended) == pytest.approx(1, abs=1e-3)


def test_temperature_where_there_is_no_best() -> None:
    labels = np.arange(50) % 10
    assert metrics.fit_temperature(labels, np.full((50, 10), 0.1, dtype=np.float32)) == 1
    unsure = np.full((50, 10), 0.05, dtype=np.float32) + 0.5 * one_hot(labels)
    assert metrics.fit_temperature(labels, unsure) < 0.1
    assert metrics.fit_temperature((labels + 1) % 10, unsure) == pytest.approx(100, rel=1e-3)


@bounded
@given(predictions, st.floats(0.01, 100))
def test_temperature_keeps_the_order(
    pair: tuple[np.ndarray, np.ndarray], temperature: float
) -> None:
    _, probabilities = pair
    scaled = metrics.apply_temperature(probabilities, temperature)
    np.testing.assert_allclose(scaled.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        np.take_along_axis(scaled, probabilities.argmax(axis=1)[:, None], 1)[:, 0],
        scaled.max(axis=1),
    )
    np.testing.assert_allclose(
        metrics.apply_temperature(probabilities, 1.0), probabilities, atol=1e-6
    )


def test_reliability_by_hand() -> None:
    probabilities = np.zeros((3, 10), dtype=np.float32)
    probabilities[:, :2] = [[0.55, 0.45], [0.95, 0.05], [1.0, 0.0]]
    found = metrics.reliability(np.array([0, 1, 0]), probabilities, bins=10)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert found.confidence[[5, 9]] == pytest.approx([0.55, 0.975])
    assert found.accuracy[[5, 9]].tolist() == [1, 0.5]
    assert np.isnan(found.accuracy[0])


def test_calibration_of_certainty() -> None:
    """A confidence of 1, and of a little more by rounding, belongs to the last of the 15 bins."""
    probabilities = np.zeros((2, 10), dtype=np.float32)
    probabilities[:, :2] = [[0.95, 0.05], [1.0, 0.0]]
    labels = np.array([0, 1])
    assert metrics.scores(labels, probabilities)["ece"] == pytest.approx(0.975 - 0.5)
    probabilities[1, 0] = 1.000001
    assert metrics.scores(labels, probabilities)["ece"] == pytest.approx(0.975 - 0.5)


def test_other_numbers_of_classes() -> None:
    labels = np.array([0, 1, 2, 2])
    probabilities = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    assert metrics.confusion(labels, probabilities).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert metrics.scores(labels, probabilities)["acc"] == 0.75
    assert len(metrics.class_scores(labels, probabilities)) == 3


def test_suspicious_labels_are_predicted_with_more_than_the_usual_confidence() -> None:
    """By hand: the mean confidence in class 0 over the images labeled 0 is 0.7."""
    labels = np.array([0, 0, 1, 1, 1, 1])
    sure = np.array([0.9, 0.5, 0.71, 0.69, 0.95, 0.99], np.float32)
    zeros = np.array([0, 0, 0, 0, 0, 1])
    probabilities = np.zeros((6, 3), np.float32)
    probabilities[np.arange(6), zeros] = sure
    probabilities[:, 2] = 1 - sure
    assert metrics.suspicious_labels(labels, probabilities).tolist() == [4, 2]
    # A class without images has no usual confidence.
    assert metrics.suspicious_labels(labels[2:], probabilities[2:]).tolist() == []


def test_text_of_numbers() -> None:
    assert metrics.percent(0.9434) == "94.3 %"
    assert metrics.percent(0.9434, 2) == "94.34 %"
    assert metrics.percent(None) == metrics.percent(float("nan")) == metrics.DASH
    assert metrics.percent_range((0.5, 0.625)) == "50.0 to 62.5 %"
    assert metrics.percent_range((float("nan"), 1.0)) == ""


def test_user_metrics_of_an_epoch() -> None:
    history = {
        "epoch": [1.0, 2.0],
        "val/acc": [0.5, 0.6],
        "val/kappa": [0.2, 0.3],
        "train/kappa": [0.4, 0.5],
        "val/late": [0.1, float("nan")],
    }
    assert metrics.epoch_metrics(history, 2) == {"val/kappa": 0.3}
    assert metrics.epoch_metrics(history, 3) == metrics.epoch_metrics({}, 1) == {}


def test_user_metrics_are_those_that_no_evaluation_writes() -> None:
    found = dict.fromkeys((f"val/{name}" for name in OWN_METRICS), 0.5)
    found |= {"val/f1/Coat": 0.5, "val/confused/a as b": 3, "test/kappa": 0.5, "seconds": 1.0}
    assert metrics.user_metrics(found | {"val/kappa": 0.75}, "val") == {"kappa": 0.75}
