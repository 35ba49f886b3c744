"""Out-of-distribution detection: which images are unlike a run's validation images, and how.

Two scores, from mixtures of one Gaussian per class that are fitted on training images:

unusual   minus the log density of the penultimate features, as the Mahalanobis distance of Lee et
          al. (2018), "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
          Adversarial Attacks", but with a covariance per class
turned    log density of the pixels of the image upside down or on its side, whichever is higher,
          minus that of the image as it is

A score becomes a tail: the fraction of the validation images with at least that score. An image is
unlike them if the lower of its two tails is below a threshold, which is such that `FALSE_ALARMS` of
the validation images are, counting all faint ones (`is_faint`). Nothing is stored: a fit takes a
few seconds.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.linalg import eigh, solve_triangular
from scipy.special import logsumexp
from torch import Tensor

from fashion.data.datamodule import ImageSet
from fashion.data.photo import is_faint
from fashion.errors import UserError
from fashion.training.classifier import Classifier, penultimate_features

FALSE_ALARMS = 0.02  # fraction of validation images
FEWEST = 100  # validation images, for a threshold
MOST = 20_000  # training images, for the densities
COMPONENTS = 120  # principal components

Kind = Literal["unusual", "turned"]
KINDS: tuple[Kind, ...] = ("unusual", "turned")


class Detector:
    """Detects images that are unlike the validation images.

    Args:
        classifier: in evaluation mode.
        train: training images, on which densities are fitted.
        val: validation images, on which the threshold is fitted.

    Raises:
        UserError: there are too few validation images.
    """

    def __init__(self, classifier: Classifier, train: ImageSet, val: ImageSet) -> None:
        if len(val) < FEWEST:
            raise UserError(f"{len(val)} validation images are too few (at least {FEWEST}).")
        self._classifier = classifier
        images, labels = train.images[:MOST], train.labels[:MOST].numpy()
        features = self._features(images)
        self._features_density = None if features is None else ClassDensity(features, labels)
        self._pixels_density = ClassDensity(_pixels(images.numpy()), labels)
        known = val.images.numpy()
        scores = self._scores(known)
        self._reference = np.sort(scores, axis=1)
        tails = self._tails(scores).min(axis=0)
        tails[[is_faint(image) for image in known]] = 0
        self._threshold = np.quantile(tails, FALSE_ALARMS)

    def __call__(self, images: UInt8[np.ndarray, "n 28 28"]) -> list[Kind | None]:
        """Return how each image is unlike the validation images, or None if it is like them."""
        tails = self._tails(self._scores(images))
        return [
            KINDS[int(tail.argmin())] if tail.min() < self._threshold else None for tail in tails.T
        ]

    def _features(self, images: UInt8[Tensor, "n 28 28"]) -> Float[np.ndarray, "n features"] | None:
        features = penultimate_features(self._classifier, images)
        return None if features is None else features.double().numpy()

    def _scores(self, images: UInt8[np.ndarray, "n 28 28"]) -> Float[np.ndarray, "kinds n"]:
        upright, *turned = (
            self._pixels_density(_pixels(np.rot90(images, turns, (1, 2)))) for turns in range(4)
        )
        features = self._features(torch.from_numpy(images))
        # Without a linear layer there are no features, and nothing is unusual by them.
        unusual = np.zeros(len(images))
        if features is not None and self._features_density is not None:
            unusual -= self._features_density(features)
        return np.stack([unusual, np.max(turned, axis=0) - upright])

    def _tails(self, scores: Float[np.ndarray, "kinds n"]) -> Float[np.ndarray, "kinds n"]:
        lower = [
            np.searchsorted(reference, score) / len(reference)
            for reference, score in zip(self._reference, scores, strict=True)
        ]
        return 1 - np.stack(lower)


class ClassDensity:
    """A Gaussian for each class, over the principal components of all vectors.

    A class's covariance is shrunk toward the pooled covariance of all classes, which has the weight
    of as many images as there are components.

    Args:
        vectors: to fit on.
        labels: their classes.
    """

    def __init__(
        self, vectors: Float[np.ndarray, "n features"], labels: Int[np.ndarray, " n"]
    ) -> None:
        count, width = vectors.shape
        components = max(1, min(COMPONENTS, width, count // 10))
        self._mean = vectors.mean(axis=0)
        centered = vectors - self._mean
        _, self._axes = eigh(centered.T @ centered, subset_by_index=[width - components, width - 1])
        groups = [centered[labels == label] @ self._axes for label in np.unique(labels)]
        centers = [group.mean(axis=0) for group in groups]
        scatters = [
            (group - center).T @ (group - center)
            for group, center in zip(groups, centers, strict=True)
        ]
        pooled = sum(scatters) / count
        pooled += 1e-3 * max(np.trace(pooled) / components, 1e-9) * np.eye(components)
        self._classes = [
            (
                center,
                np.linalg.cholesky((scatter + components * pooled) / (len(group) + components)),
                np.log(len(group) / count),
            )
            for group, center, scatter in zip(groups, centers, scatters, strict=True)
        ]

    def __call__(self, vectors: Float[np.ndarray, "m features"]) -> Float[np.ndarray, " m"]:
        """Return the log density of vectors, up to an additive constant."""
        projected = (vectors - self._mean) @ self._axes
        terms = [
            share
            - np.log(np.diag(root)).sum()
            - (solve_triangular(root, (projected - center).T, lower=True) ** 2).sum(axis=0) / 2
            for center, root, share in self._classes
        ]
        density: np.ndarray = logsumexp(terms, axis=0)
        return density


def _pixels(images: UInt8[np.ndarray, "n 28 28"]) -> Float[np.ndarray, "n 196"]:
    """Return the pixels of images at half their resolution, one row per image."""
    halved: np.ndarray = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    return halved.reshape(len(images), -1)
