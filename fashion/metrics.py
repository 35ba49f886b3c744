"""Numbers from labels and probabilities; no files."""

import numpy as np
from jaxtyping import Float32, Int64
from scipy.stats import binomtest


def scores(
    labels: Int64[np.ndarray, " n"], probabilities: Float32[np.ndarray, "n 10"]
) -> dict[str, float]:
    """Accuracy with its 95 % interval (Wilson 1927), and the mean negative log-likelihood."""
    correct = int((probabilities.argmax(1) == labels).sum())
    low, high = binomtest(correct, len(labels)).proportion_ci(method="wilson")
    likelihood = np.take_along_axis(probabilities, labels[:, None], 1)
    return {
        "acc": correct / len(labels),
        "acc_low": float(low),
        "acc_high": float(high),
        "loss": float(-np.log(np.maximum(likelihood, np.finfo(np.float32).tiny)).mean()),
    }
