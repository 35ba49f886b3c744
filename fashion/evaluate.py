"""Evaluate finished runs.

python -m fashion.evaluate RUN                  on the validation split
python -m fashion.evaluate RUN --split test     on the test set
"""

from typing import TYPE_CHECKING, Any

from fashion.run import Run

if TYPE_CHECKING:
    from fashion.data import FashionMNIST


def evaluate(run: Run, split: str, data: "FashionMNIST") -> dict[str, Any]:
    """Predict a split once with the reported checkpoint; write its predictions; score them."""
    from fashion import metrics
    from fashion.classifier import answer, load_classifier

    data.setup("test" if split == "test" else "validate")
    predictions = answer(load_classifier(run), getattr(data, split))
    run.write_predictions(split, predictions)
    return {f"{split}/{key}": value for key, value in metrics.scores(*predictions).items()}
