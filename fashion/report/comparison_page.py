"""The HTML page over many runs: table, differences, classes, images that every run gets wrong."""

from typing import Any, NamedTuple

import numpy as np

from fashion.data import CLASSES
from fashion.errors import UserError
from fashion.report import figures
from fashion.report.evaluation import SPLITS, fold, open_data
from fashion.report.metrics import DASH
from fashion.report.page import render, svg
from fashion.report.statistics import bootstrap_difference, holm
from fashion.report.table import SIGNIFICANT, Group, Table, cells

SHOWN = 48  # images


class ClassDifference(NamedTuple):
    """A group's recall of a class minus the baseline's, in percentage points."""

    difference: float
    significant: bool  # after Holm's correction for all classes and groups


def comparison_page(table: Table, groups: list[Group]) -> str:
    """Return the comparison as an HTML page.

    Args:
        table: of these groups.
        groups: at least one.
    """
    base = next(group for group in groups if group.name == table.baseline)
    others = [group for group in groups if group is not base]
    classes = _classes(base)
    wrong = np.all([(g.probabilities.argmax(2) != g.labels).all(axis=0) for g in groups], axis=0)
    images, missing = None, ""
    try:
        images = _images(groups, np.flatnonzero(wrong), table.split, classes)
    except UserError as error:
        missing = str(error)
    rows = table.rows
    return render(
        "compare.html",
        table=table,
        tables=cells(table),
        runs=sum(len(group.runs) for group in groups),
        dataset="Fashion-MNIST " if classes == CLASSES else "",
        split=SPLITS[table.split],
        significant=SIGNIFICANT,
        chart=svg(
            figures.baselines(
                [row.name for row in rows],
                [row.accuracy / 100 for row in rows],
                [row.interval for row in rows],
            ),
            "Accuracy of each group with its 95 % interval, as in the table.",
        ),
        class_groups=[base.name, *(group.name for group in others)],
        class_rows=_class_rows(base, others, classes),
        dash=DASH,
        hard=int(wrong.sum()),
        images=images,
        missing=missing,
    )


def _classes(group: Group) -> tuple[str, ...]:
    """Return the class names in the runs' configuration; Fashion-MNIST's, or numbers, otherwise."""
    from fashion.data.datamodule import class_names

    names = class_names(group.runs[0].config.data)
    count = group.probabilities.shape[2]
    return names if len(names) == count else tuple(map(str, range(count)))


def _class_rows(base: Group, others: list[Group], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    found = {}
    labels = np.unique(base.labels).tolist()
    # So many that p, which is at least 2 / (1 + draws), can be small after Holm's correction.
    draws = max(4_000, 100 * len(labels) * len(others))
    for label in labels:
        of_class = base.labels == label
        for group in others:
            found[label, group.name] = bootstrap_difference(
                base.labels[of_class],
                group.probabilities[:, of_class],
                base.probabilities[:, of_class],
                draws=draws,
            )
    adjusted = holm([each.p_value for each in found.values()])
    differences = {
        key: ClassDifference(100 * each.mean, p < SIGNIFICANT)
        for (key, each), p in zip(found.items(), adjusted, strict=True)
    }
    hits = base.probabilities.argmax(axis=2) == base.labels
    return [
        {
            "name": name,
            "recall": float(hits[:, base.labels == label].mean())
            if (base.labels == label).any()
            else None,
            "cells": [differences.get((label, group.name)) for group in others],
        }
        for label, name in enumerate(classes)
    ]


def _images(
    groups: list[Group], positions: np.ndarray, split: str, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the images at `positions`, the most confidently misclassified first.

    Raises:
        UserError: the data cannot be read, or the runs validate on several folds.
    """
    run = groups[0].runs[0]
    if split == "val" and fold(run) is not None:
        raise UserError("The runs validate on several folds.")
    data = open_data(run)
    data.setup("test" if split == "test" else "validate")
    images = getattr(data, split)
    mean = np.concatenate([group.probabilities for group in groups]).mean(axis=0)[positions]
    return [
        {
            "pixels": images.images[position].numpy(),
            "index": int(images.indices[position]),
            "true": classes[groups[0].labels[position]],
            "predicted": classes[row.argmax()],
            "confidence": float(row.max()),
        }
        for position, row in sorted(
            zip(positions.tolist(), mean, strict=True), key=lambda pair: -pair[1].max()
        )[:SHOWN]
    ]
