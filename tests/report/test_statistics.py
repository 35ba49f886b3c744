"""Statistics against hand-computed values and scipy, and simulations whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, bootstrap, norm, ttest_1samp, ttest_ind

from fashion.report import statistics

bounded = settings(max_examples=40, derandomize=True)


def predictions(labels: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Probabilities (..., n, 10) of runs that are correct where `correct` (..., n) says so."""
    return np.eye(10, dtype=np.float32)[np.where(correct, labels, (labels + 1) % 10)]


def test_wilson_by_hand() -> None:
    # (p + z^2 / 2n +- z sqrt(p q / n + z^2 / 4n^2)) / (1 + z^2 / n)
    assert statistics.wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert statistics.wilson(0, 10) == pytest.approx((0, 0.277533), abs=1e-6)
    assert statistics.wilson(0, 0) == (0, 1)
    low, high = statistics.wilson(9_000, 10_000)
    assert high - low == pytest.approx(2 * 0.0058797, abs=1e-5)


@bounded
@given(st.integers(1, 100_000), st.floats(0, 1))
def test_wilson_holds_its_own_estimate(total: int, share: float) -> None:
    correct = round(share * total)
    low, high = statistics.wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    assert statistics.wilson(total - correct, total) == pytest.approx((1 - high, 1 - low))


def test_seed_interval() -> None:
    # t with 2 degrees of freedom: 4.302653
    mean, low, high, std = statistics.seed_interval([1.0, 2.0, 3.0])
    assert (mean, std) == (2, 1)
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    values = [0.91, 0.93, 0.92, 0.915]
    expected = ttest_1samp(values, 0).confidence_interval()
    assert statistics.seed_interval(values)[1:3] == pytest.approx((expected.low, expected.high))
    assert statistics.seed_interval([0.9, 0.9]) == (0.9, 0.9, 0.9, 0)
    assert statistics.seed_interval([0.9]) == (0.9, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        statistics.seed_interval([])


def test_welch() -> None:
    first, second = [0.91, 0.93, 0.92], [0.90, 0.905, 0.915, 0.9]
    expected = ttest_ind(first, second, equal_var=False).pvalue
    assert statistics.welch(first, second) == pytest.approx(expected)
    assert statistics.welch([0.9], second) is None
    assert statistics.welch([0.9, 0.9], [0.9, 0.9]) == 1
    assert statistics.welch([0.9, 0.9], [0.8, 0.8]) == 0


def test_equal_runs_do_not_differ() -> None:
    labels = np.arange(50) % 10
    for correct in (np.ones(50, bool), np.zeros(50, bool), np.arange(50) < 20):
        alone = predictions(labels, correct)[None]
        assert statistics.mcnemar(labels, alone[0], alone[0]) == 1
        assert statistics.bootstrap_difference(labels, alone, alone) == (0, 0, 0, 1)
        thrice = np.repeat(alone, 3, axis=0)
        assert statistics.bootstrap_difference(labels, thrice, thrice) == (0, 0, 0, 1)


def test_mcnemar_is_the_exact_one() -> None:
    labels = np.arange(100) % 10
    first, second = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    first[:2] = False  # the second alone is right
    second[2:12] = False  # the first alone is right
    first[50:70] = second[50:70] = False
    p_value = statistics.mcnemar(labels, predictions(labels, first), predictions(labels, second))
    assert p_value == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert p_value == statistics.mcnemar(
        labels, predictions(labels, second), predictions(labels, first)
    )


def test_single_runs_resample_images_as_scipy_does() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 2_000)
    first, second = random.random(2_000) < 0.9, random.random(2_000) < 0.87
    found = statistics.bootstrap_difference(
        labels, predictions(labels, first)[None], predictions(labels, second)[None]
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
    flipped = statistics.bootstrap_difference(
        labels, predictions(labels, second)[None], predictions(labels, first)[None]
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


@pytest.mark.slow
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
            predictions(labels, recipe.right(random, count, ease))
            for recipe, count in zip(recipes, runs, strict=True)
        )
        found = statistics.bootstrap_difference(labels, first, second, draws=1_000)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / repetitions <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("luck", [0.0, 0.1])
def test_interaction_of_groups_covers(luck: float) -> None:
    random = np.random.default_rng(0)
    recipes = [Recipe(level, luck, 0.5) for level in (1.9, 1.6, 1.5, 1.4)]
    weights = (1, -1, -1, 1)
    truth = sum(w * recipe.accuracy for w, recipe in zip(weights, recipes, strict=True))
    labels = np.arange(1_000) % 10
    covered = 0
    for _ in range(300):
        ease = random.normal(size=1_000)
        groups = [predictions(labels, recipe.right(random, 3, ease)) for recipe in recipes]
        found = statistics.bootstrap_contrast(labels, groups, weights, draws=1_000)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 300 <= 0.98


def test_contrast_is_the_weighted_sum_of_accuracies() -> None:
    labels = np.array([0, 1, 1, 0])
    hits = [[[1, 1, 1, 1]], [[1, 1, 0, 1], [1, 0, 0, 1]], [[1, 1, 0, 0]], [[0, 0, 0, 1]]]
    groups = [predictions(labels, np.array(each, bool)) for each in hits]
    found = statistics.bootstrap_contrast(labels, groups, (1, -1, -1, 1))
    assert found.mean == pytest.approx(1 - 0.625 - 0.5 + 0.25)


def test_a_difference_that_is_there_is_found() -> None:
    random = np.random.default_rng(0)
    labels, ease = np.arange(10_000) % 10, random.normal(size=10_000)
    first, second = (
        predictions(labels, Recipe(level, 0.01, 0.5).right(random, 5, ease)) for level in (1.6, 1.5)
    )
    found = statistics.bootstrap_difference(labels, first, second)
    accuracies = [(group.argmax(axis=2) == labels).mean() for group in (first, second)]
    assert found.mean == pytest.approx(accuracies[0] - accuracies[1])
    assert 0 < found.low < found.mean < found.high
    assert found.p_value < 0.001
    assert found == statistics.bootstrap_difference(labels, first, second)  # the same every time


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1, 1]
    assert statistics.holm([]) == []


@bounded
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_adjusts_upwards_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = statistics.holm(p_values)
    for p_value, corrected in zip(p_values, adjusted, strict=True):
        assert p_value <= corrected <= min(1, len(p_values) * p_value)
    assert min(adjusted) == min(1, len(p_values) * min(p_values))
    order = np.argsort(p_values)
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
