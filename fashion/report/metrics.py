"""Numbers from labels and probabilities; no files.

Throughout, `labels` are the true classes (n,), 0..9, and the rows of `probabilities` (n, 10) sum
to 1. The prediction is the likeliest class, the lower one of equals. Intervals are of 95 %.
torch and torchmetrics take seconds to import, so that happens in the functions that need them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int64
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binned_statistic, binomtest, sem, t

Labels = Int64[np.ndarray, " n"]
Probabilities = Float32[np.ndarray, "n 10"]

BINS = 15  # of confidence, as in Guo et al. (2017)
TEMPERATURES = (0.01, 100.0)  # where the best one is looked for


class Interval(NamedTuple):
    low: float
    high: float


class ClassScore(NamedTuple):
    """One class against the rest, 0..1."""

    label: int
    support: int  # images of the class
    precision: float
    precision_interval: Interval
    recall: float
    recall_interval: Interval
    f1: float
    f1_interval: Interval


class ConfusedPair(NamedTuple):
    """Two classes, first < second, and how many images of each were taken for the other."""

    first: int
    second: int
    first_as_second: int
    second_as_first: int


@dataclass(frozen=True)
class Reliability:
    """What was promised and what was kept, by bins of confidence of equal width over 0..1."""

    confidence: Float[np.ndarray, " bins"]  # mean; NaN where no image falls
    accuracy: Float[np.ndarray, " bins"]  # NaN where no image falls
    count: Int[np.ndarray, " bins"]


class SeedSummary(NamedTuple):
    """A figure over seeds; one seed tells nothing of others, so it has a mean alone."""

    mean: float
    low: float | None
    high: float | None
    std: float | None  # with n - 1


class Difference(NamedTuple):
    """Mean accuracy of one group of runs less that of another, -1..1."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided


def accuracy_interval(correct: int, total: int) -> Interval:
    """Wilson's score interval (1927) of a proportion, 0..1; of 0 out of 0 it is all of that."""
    if total == 0:
        return Interval(0.0, 1.0)
    low, high = binomtest(correct, total).proportion_ci(method="wilson")
    return Interval(float(low), float(high))


def scores(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """The numbers that head a report.

    acc, acc_low, acc_high   accuracy and its Wilson interval, 0..1
    loss                     mean negative log-likelihood in nats; a class given no probability at
                             all counts as float32's smallest normal number, which costs 87.3
    top2                     share of images whose class is among the two likeliest, 0..1
    precision, recall, f1    means over the classes (macro), 0..1; a class neither there nor
                             predicted is left out
    ece                      expected calibration error over 15 bins, 0..1 (Guo et al. 2017)
    """
    import torch
    from torchmetrics.functional.classification import (
        multiclass_calibration_error,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    interval = accuracy_interval(int((ranked[:, 0] == labels).sum()), len(labels))
    # torchmetrics takes numbers beyond 1, which rounding makes, for logits, and gives a confidence
    # of exactly 1 a sixteenth bin.
    below_one = np.minimum(probabilities, np.nextafter(np.float32(1), np.float32(0)))
    truth, predicted = torch.tensor(labels), torch.tensor(ranked[:, 0])
    macro = {
        "precision": multiclass_precision,
        "recall": multiclass_recall,
        "f1": multiclass_f1_score,
    }
    return {
        "acc": float((ranked[:, 0] == labels).mean()),
        "acc_low": interval.low,
        "acc_high": interval.high,
        "loss": _loss(labels, _logarithm(probabilities)),
        "top2": float((ranked[:, :2] == labels[:, None]).any(axis=1).mean()),
        # Summed in float32, ten ones can make more than ten.
        **{
            name: min(measure(predicted, truth, 10, average="macro").item(), 1.0)
            for name, measure in macro.items()
        },
        "ece": multiclass_calibration_error(torch.tensor(below_one), truth, 10, BINS).item(),
    }


def class_scores(labels: Labels, probabilities: Probabilities) -> list[ClassScore]:
    """Precision, recall and F1 of each class in order, with Wilson's intervals.

    F1 is no proportion, but 2 J / (1 + J) of one: of J = TP / (TP + FP + FN), the share of right
    ones among the images that are of the class or were taken for it. So its interval is that of J,
    carried over (the indirect method of Lam, Gopal & Qian, arXiv:2309.14621).
    What is of nothing (the precision of a class never predicted) is 0, with an interval of 0..1.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_stat_scores

    def share(part: int, whole: int) -> tuple[float, Interval]:
        return part / max(whole, 1), accuracy_interval(part, whole)

    def f1(jaccard: float) -> float:
        return 2 * jaccard / (1 + jaccard)

    found = []
    predicted = torch.tensor(probabilities.argmax(axis=1))
    counts = multiclass_stat_scores(predicted, torch.tensor(labels), 10, average="none")
    for label, (hits, false_alarms, _, misses, support) in enumerate(counts.tolist()):
        precision = share(hits, hits + false_alarms)
        recall = share(hits, support)
        jaccard, interval = share(hits, hits + false_alarms + misses)
        f1_interval = Interval(f1(interval.low), f1(interval.high))
        found.append(ClassScore(label, support, *precision, *recall, f1(jaccard), f1_interval))
    return found


def confusion(labels: Labels, probabilities: Probabilities) -> Int[np.ndarray, "10 10"]:
    """Counts of images: rows are true classes, columns predicted ones."""
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    predicted = torch.tensor(probabilities.argmax(axis=1))
    matrix: np.ndarray = multiclass_confusion_matrix(predicted, torch.tensor(labels), 10).numpy()
    return matrix


def confused_pairs(labels: Labels, probabilities: Probabilities) -> list[ConfusedPair]:
    """The pairs of classes that were confused at all, either way, the most confused first."""
    counts = confusion(labels, probabilities).tolist()
    pairs = [
        ConfusedPair(first, second, counts[first][second], counts[second][first])
        for first, second in combinations(range(10), 2)
        if counts[first][second] or counts[second][first]
    ]
    return sorted(pairs, key=lambda pair: -(pair.first_as_second + pair.second_as_first))


def fit_temperature(labels: Labels, probabilities: Probabilities) -> float:
    """The temperature that makes the labels likeliest (Guo et al. 2017), to 5 digits.

    Looked for in 0.01..100, and found near an end where no finite one is best (every image right);
    1 where none is better than leaving the probabilities as they are.
    """
    logarithm = _logarithm(probabilities)

    # The loss is convex in 1 / temperature, so that it has one valley on a logarithmic scale too.
    def loss(log_temperature: float) -> float:
        return _loss(labels, log_softmax(logarithm / np.exp(log_temperature), axis=1))

    fit = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(fit.x)) if fit.fun < loss(0.0) else 1.0


def apply_temperature(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Less sure (temperature > 1) or surer (< 1) probabilities of the same order."""
    scaled: np.ndarray = softmax(_logarithm(probabilities) / temperature, axis=1)
    return scaled.astype(np.float32)


def reliability(labels: Labels, probabilities: Probabilities, bins: int = BINS) -> Reliability:
    """Mean confidence and accuracy by confidence: a reliability diagram's numbers."""
    confidence = np.minimum(probabilities.max(axis=1), 1)  # rounding may exceed 1
    hits = probabilities.argmax(axis=1) == labels
    means, edges, _ = binned_statistic(confidence, [confidence, hits], bins=bins, range=(0, 1))
    return Reliability(means[0], means[1], np.histogram(confidence, edges)[0])


def seed_interval(values: Sequence[float]) -> SeedSummary:
    """Mean over seeds with Student's t interval.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values to summarise")
    mean = float(np.mean(values))
    if len(values) == 1:
        return SeedSummary(mean, None, None, None)
    half = float(t.ppf(0.975, len(values) - 1) * sem(values))
    return SeedSummary(mean, mean - half, mean + half, float(np.std(values, ddof=1)))


def mcnemar(labels: Labels, first: Probabilities, second: Probabilities) -> float:
    """Two-sided p-value of McNemar's test (1947), exact: do two runs err equally often?

    Of the images that one run alone got right, half would be the first's (binomial test).
    """
    first_right, second_right = (run.argmax(axis=1) == labels for run in (first, second))
    first_alone = int((first_right & ~second_right).sum())
    second_alone = int((second_right & ~first_right).sum())
    if not first_alone + second_alone:
        return 1.0
    return float(binomtest(first_alone, first_alone + second_alone).pvalue)


def bootstrap_difference(
    labels: Labels,
    first: Float32[np.ndarray, "first n 10"],
    second: Float32[np.ndarray, "second n 10"],
    *,
    draws: int = 20_000,
) -> Difference:
    """Mean accuracy of `first` less that of `second`: runs of two recipes that differ in seed.

    Seeds and images are both samples, crossed (every run answers every image), and the interval is
    to hold for new ones of both. To resample both at once (the pigeonhole bootstrap, Owen 2007)
    does not give that: few seeds spread too little (three have ten different resamples), and the
    chance in which image a seed gets wrong counts up to three times. Its 95 % intervals held the
    truth in 81 to 99 % of simulations with 3 and 5 seeds. So each draw here is the sum of

    - the mean over resampled images, the same ones for all runs, its spread freed from the chance
      of the seeds at hand (by variance components; Searle, Casella & McCulloch 1992), and
    - a normal draw with the spread that the seeds' means show, that chance included,

    widened as Student's t is for spreads estimated from few seeds: times sqrt(f / chi-square(f)),
    with the degrees of freedom f of Satterthwaite (1946). These intervals held the truth in 93 to
    97 % of such simulations, which tests/test_metrics.py repeats in small; in 90 to 93 % where one
    group varied six times as much as the other. The interval is the draws' percentiles (Efron &
    Tibshirani 1993), the p-value twice the share of draws beyond 0.

    A single run against several is taken to vary over seeds as those do. Of two single runs only
    the images are resampled: the result is about these two, and not about other seeds.
    """
    groups = [labels == group.argmax(axis=2) for group in (first, second)]
    gaps = groups[0].mean(axis=0) - groups[1].mean(axis=0)  # by image
    mean = gaps.mean()
    images = len(labels)

    seed_parts, seed_freedoms, chance = [], [], 0.0  # variances of the difference
    for runs, others in (groups, groups[::-1]):
        if len(runs) > 1:
            share = 1 / len(runs) + (len(others) == 1)
            between_means = runs.sum(axis=1).var(ddof=1) / images**2
            seed_parts.append(share * between_means)
            seed_freedoms.append(len(runs) - 1)
            chance += share * (runs.var(axis=0, ddof=1).mean() - between_means) / images
    resampled = gaps.var() / images
    image_part = max(resampled - chance, 0.0)
    seed_part = sum(seed_parts)

    random = np.random.default_rng(0)
    # Images with the same gap are interchangeable: it is enough to draw how many there are of each.
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
    """Adjusted by Holm's step-down method (1979), in the order given.

    Of the differences with an adjusted p-value below 0.05, even one is false in at most 5 % of
    such tables.
    """
    count = len(p_values)
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(count, 0, -1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def _logarithm(probabilities: Probabilities) -> Float[np.ndarray, "n 10"]:
    """In double precision, and finite: 0 counts as float32's smallest normal number."""
    floor = np.finfo(np.float32).tiny
    logarithm: np.ndarray = np.log(np.maximum(probabilities, floor, dtype=np.float64))
    return logarithm


def _loss(labels: Labels, log_probabilities: Float[np.ndarray, "n 10"]) -> float:
    likelihood = np.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()
    return float(0 - likelihood)  # not -0 where all is right
