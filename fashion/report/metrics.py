"""Metrics of one set of predictions, and their formatting. No files, no torch.

`labels` are the true classes (n,), and the rows of `probabilities` (n, C) sum to 1. The predicted
class is that of the highest probability, the first one among equals. Intervals are 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binned_statistic

from fashion.config import OWN_METRICS
from fashion.report.statistics import Interval, Labels, Probabilities, wilson

DASH = "—"  # for what is undefined
BINS = 15  # of confidence, as in Guo et al. (2017)
TEMPERATURES = (0.01, 100.0)  # the range searched


class ClassScore(NamedTuple):
    """Scores of one class against the rest, 0..1; NaN where undefined."""

    label: int
    support: int  # images of the class
    precision: float
    precision_interval: Interval
    recall: float
    recall_interval: Interval
    f1: float
    f1_interval: Interval


class ConfusedPair(NamedTuple):
    """Two classes, first < second, and how many images of each were predicted as the other."""

    first: int
    second: int
    first_as_second: int
    second_as_first: int

    @property
    def total(self) -> int:
        return self.first_as_second + self.second_as_first

    @property
    def largest(self) -> int:
        return max(self.first_as_second, self.second_as_first)


@dataclass(frozen=True)
class Reliability:
    """Mean confidence and accuracy per bin of confidence, of equal width over 0..1."""

    confidence: Float[np.ndarray, " bins"]  # NaN in an empty bin
    accuracy: Float[np.ndarray, " bins"]  # NaN in an empty bin
    count: Int[np.ndarray, " bins"]


def percent(fraction: float | None, digits: int = 1) -> str:
    """Write a fraction as per cent; a dash if it is None or NaN."""
    if fraction is None or math.isnan(fraction):
        return DASH
    return f"{100 * fraction:.{digits}f} %"


def percent_range(interval: Interval | tuple[float, float], digits: int = 1) -> str:
    """Write an interval of fractions, such as "93.8 to 94.7 %"; empty if it is NaN."""
    low, high = interval
    return "" if math.isnan(low) else f"{100 * low:.{digits}f} to {percent(high, digits)}"


def user_metrics(metrics: Mapping[str, Any], split: str) -> dict[str, float]:
    """Return the metrics of a split that the user has configured (`metrics.NAME`), by name."""
    names = {key.removeprefix(f"{split}/"): key for key in metrics if key.startswith(f"{split}/")}
    return {
        name: metrics[key]
        for name, key in names.items()
        if "/" not in name and name not in OWN_METRICS and isinstance(metrics[key], float)
    }


def epoch_metrics(history: Mapping[str, Sequence[float]], epoch: int) -> dict[str, float]:
    """Return the user's validation metrics of an epoch (from 1), with metrics.json's keys."""
    if epoch not in history.get("epoch", ()):
        return {}
    position = list(history["epoch"]).index(epoch)
    row = {key: float(values[position]) for key, values in history.items()}
    own = {f"val/{name}": value for name, value in user_metrics(row, "val").items()}
    return {key: value for key, value in own.items() if math.isfinite(value)}


def scores(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """Compute the metrics that summarize an evaluation.

    acc, acc_low, acc_high   accuracy and its Wilson interval, 0..1
    loss                     mean negative log-likelihood in nats; a probability of 0 counts as
                             float32's smallest normal number, whose loss is 87.3
    top2                     fraction of images whose class is among the two most probable, 0..1
    precision, recall, f1    means over the classes for which they are defined (macro), 0..1
    ece                      expected calibration error over 15 bins, 0..1 (Guo et al. 2017)
    """
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    interval = wilson(int((ranked[:, 0] == labels).sum()), len(labels))
    counts = confusion(labels, probabilities)
    bins = reliability(labels, probabilities)
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence))
    return {
        "acc": float((ranked[:, 0] == labels).mean()),
        "acc_low": interval.low,
        "acc_high": interval.high,
        "loss": _loss(labels, _logarithm(probabilities)),
        "top2": float((ranked[:, :2] == labels[:, None]).any(axis=1).mean()),
        **{name: float(np.nanmean(values)) for name, values in _by_class(counts).items()},
        "ece": float((gaps * bins.count).sum() / len(labels)),
    }


def _by_class(counts: Int[np.ndarray, "classes classes"]) -> dict[str, np.ndarray]:
    hits, predicted, support = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0: undefined
        return {
            "precision": hits / predicted,
            "recall": hits / support,
            "f1": 2 * hits / (predicted + support),
        }


def class_scores(labels: Labels, probabilities: Probabilities) -> list[ClassScore]:
    """Return precision, recall and F1 of each class, in order, with intervals.

    Precision is undefined for a class that was never predicted, recall for one without images,
    F1 for one with neither; those are NaN. Precision and recall are proportions, with Wilson's
    interval. F1 is 2 J / (1 + J) of the proportion J = TP / (TP + FP + FN), the Jaccard index, so
    its interval is that of J, transformed (the indirect method of Lam, Gopal & Qian,
    arXiv:2309.14621).
    """

    def interval(part: int, whole: int) -> Interval:
        return wilson(part, whole) if whole else Interval(math.nan, math.nan)

    counts = confusion(labels, probabilities)
    values = _by_class(counts)
    found = []
    for label, hits in enumerate(counts.diagonal().tolist()):
        predicted, support = int(counts[:, label].sum()), int(counts[label].sum())
        low, high = interval(hits, predicted + support - hits)
        precision, recall, f1 = (float(values[key][label]) for key in values)
        found.append(
            ClassScore(
                *(label, support),
                *(precision, interval(hits, predicted)),
                *(recall, interval(hits, support)),
                *(f1, Interval(2 * low / (1 + low), 2 * high / (1 + high))),
            )
        )
    return found


def confusion(labels: Labels, probabilities: Probabilities) -> Int[np.ndarray, "classes classes"]:
    """Count images per true class (row) and predicted class (column)."""
    classes = probabilities.shape[1]
    cells = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def confused_pairs(counts: Int[np.ndarray, "classes classes"]) -> list[ConfusedPair]:
    """Return the pairs of classes that were confused, the most confused first.

    Args:
        counts: the confusion matrix.
    """
    table = counts.tolist()
    pairs = [
        ConfusedPair(first, second, table[first][second], table[second][first])
        for first, second in combinations(range(len(table)), 2)
    ]
    return sorted((pair for pair in pairs if pair.total), key=lambda pair: -pair.total)


def fit_temperature(labels: Labels, probabilities: Probabilities) -> float:
    """Return the temperature that maximizes the labels' likelihood (Guo et al. 2017), to 5 digits.

    It is searched in 0.01..100; where no finite one is best (every prediction correct), it is near
    an end of that range. 1 if no temperature is better than the unchanged probabilities.
    """
    logarithm = _logarithm(probabilities)

    # The loss is convex in 1 / temperature, so it has one minimum on a logarithmic scale too.
    def loss(log_temperature: float) -> float:
        return _loss(labels, log_softmax(logarithm / np.exp(log_temperature), axis=1))

    fit = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(fit.x)) if fit.fun < loss(0.0) else 1.0


def apply_temperature(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Divide the logits by a temperature: > 1 lowers confidences; no prediction changes."""
    scaled: np.ndarray = softmax(_logarithm(probabilities) / temperature, axis=1)
    return scaled.astype(np.float32)


def reliability(labels: Labels, probabilities: Probabilities, bins: int = BINS) -> Reliability:
    """Bin predictions by confidence: the data of a reliability diagram."""
    confidence = np.minimum(probabilities.max(axis=1), 1)  # rounding may exceed 1
    hits = probabilities.argmax(axis=1) == labels
    means, edges, _ = binned_statistic(confidence, [confidence, hits], bins=bins, range=(0, 1))
    return Reliability(means[0], means[1], np.histogram(confidence, edges)[0])


def suspicious_labels(labels: Labels, probabilities: Probabilities) -> Int[np.ndarray, " suspects"]:
    """Return positions of images whose label may be wrong, the widest probability gap first.

    An image counts if it is predicted as another class with at least the mean probability of that
    class over the images with its label: the thresholds of confident learning (Northcutt, Jiang &
    Chuang 2021), which adapt to an overconfident model.
    """
    usual = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels):
        usual[label] = probabilities[labels == label, label].mean()
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    found = np.flatnonzero((predicted != labels) & (confidence >= usual[predicted]))
    gap = confidence[found] - probabilities[found, labels[found]]
    return found[np.argsort(-gap, kind="stable")]


def _logarithm(probabilities: Probabilities) -> Float[np.ndarray, "n classes"]:
    """Return logarithms in float64; 0 counts as float32's smallest normal number."""
    floor = np.finfo(np.float32).tiny
    logarithm: np.ndarray = np.log(np.maximum(probabilities, floor, dtype=np.float64))
    return logarithm


def _loss(labels: Labels, log_probabilities: Float[np.ndarray, "n classes"]) -> float:
    likelihood = np.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()
    return float(0 - likelihood)  # not -0 where everything is correct
