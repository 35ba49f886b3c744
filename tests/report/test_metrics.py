"""Against hand-computed values, scipy and torchmetrics, and simulations whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, bootstrap, norm, ttest_1samp

from fashion.report import metrics


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
        for value, (low, high) in (
            (score.precision, score.precision_interval),
            (score.recall, score.recall_interval),
            (score.f1, score.f1_interval),
        ):
            assert 0 <= low <= value <= high <= 1
    assert metrics.reliability(labels, probabilities).count.sum() == 50
    temperature = metrics.fit_temperature(labels, probabilities)
    assert 0.01 <= temperature <= 100
    assert np.isfinite(metrics.apply_temperature(probabilities, temperature)).all()
    assert metrics.mcnemar(labels, probabilities, probabilities) == 1
    alone = probabilities[None]
    assert metrics.bootstrap_difference(labels, alone, alone) == (0, 0, 0, 1)
    thrice = np.repeat(alone, 3, axis=0)
    assert metrics.bootstrap_difference(labels, thrice, thrice) == (0, 0, 0, 1)


def test_perfect_and_all_wrong_scores() -> None:
    labels = np.arange(50) % 10
    perfect = metrics.scores(labels, one_hot(labels))
    assert perfect["acc"] == perfect["acc_high"] == perfect["f1"] == perfect["top2"] == 1
    assert str(perfect["loss"]) == "0.0"
    assert perfect["ece"] < 1e-6
    assert metrics.confused_pairs(labels, one_hot(labels)) == []
    wrong = metrics.scores(labels, one_hot((labels + 1) % 10))
    assert wrong["acc"] == wrong["acc_low"] == wrong["precision"] == wrong["recall"] == 0
    assert wrong["loss"] == pytest.approx(87.3365)
    assert wrong["ece"] == pytest.approx(1)


def test_wilson_by_hand() -> None:
    # (p + z^2 / 2n +- z sqrt(p q / n + z^2 / 4n^2)) / (1 + z^2 / n)
    assert metrics.accuracy_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert metrics.accuracy_interval(0, 10) == pytest.approx((0, 0.277533), abs=1e-6)
    assert metrics.accuracy_interval(0, 0) == (0, 1)
    low, high = metrics.accuracy_interval(9_000, 10_000)
    assert high - low == pytest.approx(2 * 0.0058797, abs=1e-5)


@bounded
@given(st.integers(1, 100_000), st.floats(0, 1))
def test_wilson_holds_its_own_estimate(total: int, share: float) -> None:
    correct = round(share * total)
    low, high = metrics.accuracy_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    assert metrics.accuracy_interval(total - correct, total) == pytest.approx((1 - high, 1 - low))


def test_scores_by_hand() -> None:
    probabilities = np.zeros((4, 10), dtype=np.float32)
    probabilities[0, [0, 1]] = 0.9, 0.1
    probabilities[1, [0, 1]] = 0.6, 0.4
    probabilities[2, [1, 2]] = 0.7, 0.3
    probabilities[3, [2, 1, 5]] = 0.5, 0.3, 0.2
    found = metrics.scores(np.array([0, 1, 1, 5]), probabilities)
    assert found["acc"] == 0.5
    assert (found["acc_low"], found["acc_high"]) == metrics.accuracy_interval(2, 4)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.2]).mean())
    assert found["top2"] == 0.75
    # Classes 0, 1, 2, 5 are there or predicted: precision 1/2, 1, 0, 0; recall 1, 1/2, 0, 0.
    assert found["precision"] == pytest.approx(1.5 / 4)
    assert found["recall"] == pytest.approx(1.5 / 4)
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3) / 4)
    # Each image in a bin of its own.
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.3 + 0.5) / 4)


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
        assert score.recall == pytest.approx(hits / max(row, 1))
        assert score.precision == pytest.approx(hits / max(column, 1))
        assert score.f1 == pytest.approx(2 * hits / max(row + column, 1))
        assert 0 <= score.f1_interval.low <= score.f1 <= score.f1_interval.high <= 1
    there = [score.f1 for score in by_class if counts[score.label].any() or score.precision]
    predicted = set(probabilities.argmax(axis=1)) | set(labels)
    assert found["f1"] == pytest.approx(sum(there) / len(predicted), abs=1e-6)

    pairs = metrics.confused_pairs(labels, probabilities)
    both_ways = [pair.first_as_second + pair.second_as_first for pair in pairs]
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


def test_seed_interval() -> None:
    # t with 2 degrees of freedom: 4.302653
    mean, low, high, std = metrics.seed_interval([1.0, 2.0, 3.0])
    assert (mean, std) == (2, 1)
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    values = [0.91, 0.93, 0.92, 0.915]
    expected = ttest_1samp(values, 0).confidence_interval()
    assert metrics.seed_interval(values)[1:3] == pytest.approx((expected.low, expected.high))
    assert metrics.seed_interval([0.9, 0.9]) == (0.9, 0.9, 0.9, 0)
    assert metrics.seed_interval([0.9]) == (0.9, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        metrics.seed_interval([])


def test_mcnemar_is_the_exact_one() -> None:
    labels = np.arange(100) % 10
    first, second = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    first[:2] = False  # the second alone is right
    second[2:12] = False  # the first alone is right
    first[50:70] = second[50:70] = False
    p_value = metrics.mcnemar(labels, answers(labels, first), answers(labels, second))
    assert p_value == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert p_value == metrics.mcnemar(labels, answers(labels, second), answers(labels, first))


def test_single_runs_resample_images_as_scipy_does() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 2_000)
    first, second = random.random(2_000) < 0.9, random.random(2_000) < 0.87
    found = metrics.bootstrap_difference(
        labels, answers(labels, first)[None], answers(labels, second)[None]
    )
    expected = bootstrap(
        (first.astype(float), second.astype(float)),
        lambda one, other, axis: one.mean(axis) - other.mean(axis),
        paired=True,
        n_resamples=4_000,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1.6e-3)
    score = (first.mean() - second.mean()) / np.std(first.astype(int) - second) * 2_000**0.5
    assert found.p_value == pytest.approx(2 * norm.sf(score), rel=0.2)
    flipped = metrics.bootstrap_difference(
        labels, answers(labels, second)[None], answers(labels, first)[None]
    )
    assert flipped == pytest.approx((-found.mean, -found.high, -found.low, found.p_value), abs=1e-3)


class Recipe:
    """Runs that are right on an image when its ease, their seed's luck and chance add up to > 0."""

    def __init__(self, level: float, luck: float, chance: float) -> None:
        self.level, self.luck, self.chance = level, luck, chance
        self.accuracy = norm.cdf(level / np.sqrt(1 + luck**2 + chance**2))  # of new ones

    def right(self, random: np.random.Generator, runs: int, ease: np.ndarray) -> np.ndarray:
        luck = self.luck * random.normal(size=(runs, 1))
        return self.level + ease + luck + self.chance * random.normal(size=(runs, len(ease))) > 0


@pytest.mark.parametrize(
    ("runs", "luck"),
    [((3, 3), 0.0), ((3, 3), 0.1), ((5, 5), 0.0), ((5, 5), 0.1), ((3, 5), 0.03), ((1, 5), 0.1)],
)
def test_the_difference_of_groups_covers(runs: tuple[int, int], luck: float) -> None:
    """New seeds and new images every time: from all spread being the images' to most the seeds'."""
    random = np.random.default_rng(0)
    recipes = Recipe(1.6, luck, 0.5), Recipe(1.5, luck, 0.5)
    truth = recipes[0].accuracy - recipes[1].accuracy
    labels = np.arange(1_000) % 10
    repetitions = 400
    covered = 0
    for _ in range(repetitions):
        ease = random.normal(size=1_000)
        first, second = (
            answers(labels, recipe.right(random, count, ease))
            for recipe, count in zip(recipes, runs, strict=True)
        )
        found = metrics.bootstrap_difference(labels, first, second, draws=1_000)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / repetitions <= 0.975


def test_a_difference_that_is_there_is_found() -> None:
    random = np.random.default_rng(0)
    labels, ease = np.arange(10_000) % 10, random.normal(size=10_000)
    first, second = (
        answers(labels, Recipe(level, 0.01, 0.5).right(random, 5, ease)) for level in (1.6, 1.5)
    )
    found = metrics.bootstrap_difference(labels, first, second)
    accuracies = [(group.argmax(axis=2) == labels).mean() for group in (first, second)]
    assert found.mean == pytest.approx(accuracies[0] - accuracies[1])
    assert 0 < found.low < found.mean < found.high
    assert found.p_value < 0.001
    assert found == metrics.bootstrap_difference(labels, first, second)  # the same every time


def test_holm_by_hand() -> None:
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.5, 0.9]) == [1, 1]
    assert metrics.holm([]) == []


@bounded
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_adjusts_upwards_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = metrics.holm(p_values)
    for p_value, corrected in zip(p_values, adjusted, strict=True):
        assert p_value <= corrected <= min(1, len(p_values) * p_value)
    assert min(adjusted) == min(1, len(p_values) * min(p_values))
    order = np.argsort(p_values)
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
