"""Statistics of accuracies: intervals, tests of differences, correction for many comparisons.

`labels` are the true classes (n,), and the rows of `probabilities` (n, C) sum to 1. Intervals are
95 %. docs/statistics.md derives the bootstrap.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from scipy.stats import binomtest, sem, t, ttest_ind_from_stats

Labels = Int64[np.ndarray, " n"]
Probabilities = Float32[np.ndarray, "n classes"]


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


class SeedSummary(NamedTuple):
    """Mean, standard deviation (n - 1) and t-interval; all but the mean are None for one value."""

    mean: float
    low: float | None
    high: float | None
    std: float | None


class Difference(NamedTuple):
    """Difference of two groups' mean accuracies, -1..1, with a two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float


def wilson(correct: int, total: int) -> Interval:
    """Return Wilson's score interval (1927) of a proportion, 0..1; (0, 1) for 0 of 0."""
    if total == 0:
        return Interval(0.0, 1.0)
    low, high = binomtest(correct, total).proportion_ci(method="wilson")
    return Interval(float(low), float(high))


def seed_interval(values: Sequence[float]) -> SeedSummary:
    """Summarize values over seeds (or folds) with Student's t-interval of their mean.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to summarize")
    mean = float(np.mean(values))
    if len(values) == 1:
        return SeedSummary(mean, None, None, None)
    half = float(t.ppf(0.975, len(values) - 1) * sem(values))
    return SeedSummary(mean, mean - half, mean + half, float(np.std(values, ddof=1)))


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Welch's t-test (1947) between two groups' accuracies.

    Each group is a sample of seeds, evaluated on the same images, so that the conclusion is about
    these images. None if a group has one value; if neither group varies, 1 for equal means, else 0.
    """
    if min(len(first), len(second)) < 2:  # noqa: PLR2004 - a variance needs two values
        return None
    if len(set(first)) == len(set(second)) == 1:
        return float(first[0] == second[0])
    # From moments: given the values, SciPy warns where one group does not vary.
    moments = [m for v in (first, second) for m in (np.mean(v), np.std(v, ddof=1), len(v))]
    return float(ttest_ind_from_stats(*moments, equal_var=False).pvalue)


def mcnemar(labels: Labels, first: Probabilities, second: Probabilities) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947) between two single runs.

    It considers the images that exactly one of the runs classifies correctly: if both runs are
    equally accurate, the first is expected to be correct on half of them (binomial test).
    """
    first_hits, second_hits = (run.argmax(axis=1) == labels for run in (first, second))
    first_only = int((first_hits & ~second_hits).sum())
    second_only = int((second_hits & ~first_hits).sum())
    if not first_only + second_only:
        return 1.0
    return float(binomtest(first_only, first_only + second_only).pvalue)


def bootstrap_difference(
    labels: Labels,
    first: Float32[np.ndarray, "first n classes"],
    second: Float32[np.ndarray, "second n classes"],
    *,
    draws: int = 20_000,
) -> Difference:
    """Estimate the first group's mean accuracy minus the second's: see `bootstrap_contrast`."""
    return bootstrap_contrast(labels, [first, second], [1, -1], draws=draws)


def bootstrap_contrast(
    labels: Labels,
    groups: Sequence[Float32[np.ndarray, "_ n classes"]],
    weights: Sequence[int],
    *,
    draws: int = 20_000,
) -> Difference:
    """Estimate a weighted sum of groups' mean accuracies; runs of a group differ in seed.

    The weights sum to 0: (1, -1) is a difference between two groups, and (1, -1, -1, 1) one between
    two differences, which is an interaction.

    Seeds and images are both samples, crossed (every run predicts every image), and the interval
    should hold for new ones of both. Resampling both at once (the pigeonhole bootstrap, Owen 2007)
    does not achieve that: few seeds vary too little (three have ten different resamples), and the
    randomness of which image a seed gets wrong counts up to three times. Its 95 % intervals
    covered the truth in 81 to 99 % of simulations with 3 and 5 seeds. So each draw is the sum of

    - the mean over resampled images, the same images for all runs, with the variance that is due
      to the seeds' randomness removed (variance components; Searle, Casella & McCulloch 1992), and
    - a normal draw with the variance of the seeds' means, which includes that randomness,

    widened by Student's t for variances estimated from few seeds: times sqrt(f / chi-square(f)),
    with the degrees of freedom f of Satterthwaite (1946). These intervals cover the truth in 93 to
    97 % of such simulations (a small version is in the tests), and in 90 to 93 % where one group
    varies six times as much as the other. The interval is the draws' percentiles (Efron &
    Tibshirani 1993), the p-value twice the fraction of draws beyond 0.

    A single run against several is assumed to vary over seeds as those do. Among single runs only
    the images are resampled: the result is about these runs, not about other seeds.
    """
    hits = [labels == group.argmax(axis=2) for group in groups]
    gaps = np.zeros(len(labels))  # per image
    for weight, runs in zip(weights, hits, strict=True):
        gaps += weight * runs.mean(axis=0)
    mean = gaps.mean()
    images = len(labels)

    several = sum(len(runs) > 1 for runs in hits)
    single = sum(w**2 for w, runs in zip(weights, hits, strict=True) if len(runs) == 1)
    seed_parts, seed_freedoms, chance = [], [], 0.0  # variances of the sum
    for weight, runs in zip(weights, hits, strict=True):
        if len(runs) > 1:
            factor = weight**2 / len(runs) + single / several
            between_means = runs.sum(axis=1).var(ddof=1) / images**2
            seed_parts.append(factor * between_means)
            seed_freedoms.append(len(runs) - 1)
            chance += factor * (runs.var(axis=0, ddof=1).mean() - between_means) / images
    resampled = gaps.var() / images
    image_part = max(resampled - chance, 0.0)
    seed_part = sum(seed_parts)

    random = np.random.default_rng(0)
    # Images with the same gap are interchangeable: drawing how many there are of each is enough.
    values, counts = np.unique(gaps, return_counts=True)
    deviations = random.multinomial(images, counts / images, draws) @ values / images - mean
    if resampled:
        deviations *= np.sqrt(image_part / resampled)
    if seed_part:
        deviations += np.sqrt(seed_part) * random.standard_normal(draws)
        parts, freedoms = np.array([*seed_parts, image_part]), np.array([*seed_freedoms, images])
        freedom = parts.sum() ** 2 / (parts**2 / freedoms).sum()
        deviations *= np.sqrt(freedom / random.chisquare(freedom, draws))
    drawn = mean + deviations
    low, high = np.quantile(drawn, [0.025, 0.975])
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(2 * (1 + beyond) / (1 + draws), 1.0)
    return Difference(float(mean), float(low), float(high), float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method (1979); the order is kept.

    If every comparison with an adjusted p-value below 0.05 is called a difference, at most 5 % of
    such tables contain a false one.
    """
    count = len(p_values)
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(count, 0, -1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()
