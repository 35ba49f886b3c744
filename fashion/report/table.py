"""Compare runs: one row per group of runs that differ only in seed or fold, and the differences.

Importing this module imports no torch.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from omegaconf import OmegaConf

from fashion.config import METADATA_KEYS, walk
from fashion.errors import UserError
from fashion.report.evaluation import common_predictions, fold
from fashion.report.metrics import DASH, percent, percent_range, user_metrics
from fashion.report.statistics import (
    bootstrap_difference,
    holm,
    mcnemar,
    seed_interval,
    welch,
    wilson,
)
from fashion.runs.run import Predictions, Run, listed

# Keys in which runs of a group may differ; `data.fold` is added for cross-validation.
NOT_THE_GROUP = (*METADATA_KEYS, "hydra", "seed", "test")

OVER_SEEDS = "bootstrap over seeds and images"
OVER_IMAGES = "McNemar's exact test, bootstrap over images"
SIGNIFICANT = 0.05  # of p-values after Holm's correction


class Group(NamedTuple):
    """Runs that differ in seed or fold alone; the folds of a seed are concatenated."""

    name: str
    runs: list[Run]
    labels: Int64[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "seeds n classes"]
    accuracies: list[float]  # 0..1, per seed, or per fold
    folds: int = 0  # number of folds; 0 without cross-validation
    all_folds: bool = False  # whether every fold of the split has a run


class Row(NamedTuple):
    """A group's result; accuracies in per cent."""

    name: str
    n: int  # seeds, or folds
    accuracy: float  # mean
    low: float | None  # 95 % t-interval; None where n = 1
    high: float | None
    minimum: float
    maximum: float
    parameters: int
    minutes: float  # of the training alone, mean
    out_of_fold: float | None  # accuracy over all images; None unless every fold has a run
    metrics: dict[str, float]  # the user's own (`metrics.NAME`), means

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % t-interval as fractions; None where n = 1."""
        return None if self.low is None or self.high is None else (self.low / 100, self.high / 100)


class Comparison(NamedTuple):
    """A group's mean accuracy minus the baseline's, in percentage points."""

    name: str
    difference: float
    low: float  # 95 %
    high: float
    p_value: float  # two-sided
    p_welch: float | None  # of Welch's t-test over seeds; None where a group has one run
    p_holm: float  # p_value, adjusted for all comparisons of the table
    method: str

    @property
    def significant(self) -> bool:
        return self.p_holm < SIGNIFICANT


class Table(NamedTuple):
    """The result of `compare`."""

    split: str
    tta: str
    images: int
    baseline: str
    rows: list[Row]  # the best first
    comparisons: list[Comparison]  # in the rows' order, without the baseline
    notes: list[str]  # how the numbers were computed


def compare(
    paths: Iterable[Path],
    split: str = "val",
    baseline: str | None = None,
    tta: str = "none",
    *,
    skip_unfinished: bool = False,
) -> Table:
    """Compare the runs at or below `paths` with the group named `baseline`, or with the best.

    Raises:
        UserError: there is no run; a run is unfinished, has no predictions for `split`, repeats
            another one or predicted other images; no group is named `baseline`.
    """
    return tabulate(
        groups(finished_runs(paths, skip_unfinished=skip_unfinished), split, tta),
        split,
        baseline,
        tta,
    )


def tabulate(
    found: list[Group], split: str, baseline: str | None = None, tta: str = "none"
) -> Table:
    """Compare groups with the one named `baseline`, or with the best.

    Raises:
        UserError: no group is named `baseline`.
    """
    base = _baseline(found, baseline)
    comparisons = _comparisons([group for group in found if group is not base], base)
    notes = [
        *_notes_on_rows(found),
        *_notes_on_comparisons(found, base, comparisons, chosen=baseline is None),
    ]
    rows = [_row(group, split) for group in found]
    return Table(split, tta, len(base.labels), base.name, rows, comparisons, notes)


def finished_runs(paths: Iterable[Path], *, skip_unfinished: bool = False) -> list[Run]:
    """Return the finished runs at or below `paths`, each once.

    Raises:
        UserError: there is none at one of the paths, or one is unfinished and not skipped.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        below = Run.find(path)
        if not below:
            reason = "there is no run in it" if path.exists() else "there is no such folder"
            raise UserError(f"{path} cannot be compared: {reason}.")
        found |= {run.folder.resolve(): run for run in below}
    runs = list(found.values())
    finished = [run for run in runs if run.finished]
    unfinished = [run for run in runs if not run.finished]
    if unfinished and not (skip_unfinished and finished):
        raise UserError(
            f"{len(unfinished)} of {len(runs)} runs are unfinished; wait for them, or leave them "
            f"out with --skip-unfinished:\n{listed(unfinished)}"
        )
    return finished


def groups(runs: list[Run], split: str, tta: str = "none") -> list[Group]:
    """Group runs by configuration, the best mean first.

    Raises:
        UserError: a run has no predictions for `split`, repeats another one, or predicted other
            images than the others.
    """
    predictions = common_predictions(runs, split, tta)
    configurations: list[dict[str, str]] = []
    members: list[list[Run]] = []
    for run in runs:
        configuration = _configuration(run)
        if configuration not in configurations:
            configurations.append(configuration)
            members.append([])
        members[configurations.index(configuration)].append(run)
    found = [
        _group(name, each, predictions, split)
        for name, each in zip(_names(configurations, members), members, strict=True)
    ]
    for other in found[1:]:
        if not np.array_equal(found[0].labels, other.labels):
            raise UserError(
                "These groups have different folds, and so different images:\n"
                f"{listed([*found[0].runs, *other.runs], 'data.fold')}"
            )
    return sorted(found, key=lambda group: (-np.mean(group.accuracies), group.name))


def _group(name: str, runs: list[Run], predictions: dict[Run, Predictions], split: str) -> Group:
    by_seed: dict[int, dict[int | None, Run]] = {}
    for run in runs:
        of_seed = by_seed.setdefault(run.config.seed, {})
        if fold(run) in of_seed:
            raise UserError(
                f"Runs of {name} with the same seed are one measurement and would count as "
                f"several; name the runs to compare:\n{listed(runs, 'seed')}"
            )
        of_seed[fold(run)] = run
    folds = sorted({fold(run) for run in runs} - {None})  # type: ignore[type-var]
    if split == "test" or not folds:
        labels = predictions[runs[0]].labels
        probabilities = np.stack([predictions[run].probabilities for run in runs])
        hits = probabilities.argmax(axis=2) == labels
        accuracies = hits.mean(axis=1).tolist()
        if len(folds) < 2:  # noqa: PLR2004
            return Group(name, runs, labels, probabilities, accuracies)
        of_folds = [
            float(
                np.mean([a for a, run in zip(accuracies, runs, strict=True) if fold(run) == each])
            )
            for each in folds
        ]
        return Group(name, runs, labels, probabilities, of_folds, len(folds))
    for of_seed in by_seed.values():
        if sorted(of_seed) != folds:  # type: ignore[type-var]
            raise UserError(
                f"The seeds of {name} have different folds; train the missing ones, or name the "
                f"runs to compare:\n{listed(runs, 'data.fold')}"
            )
    first = next(iter(by_seed.values()))
    labels = np.concatenate([predictions[first[each]].labels for each in folds])
    probabilities = np.stack(
        [
            np.concatenate([predictions[of_seed[each]].probabilities for each in folds])
            for of_seed in by_seed.values()
        ]
    )
    hits = probabilities.argmax(axis=2) == labels
    ends = np.cumsum([len(predictions[first[each]].labels) for each in folds])[:-1]
    accuracies = [float(part.mean()) for part in np.split(hits, ends, axis=1)]
    if len(folds) == 1:
        accuracies = hits.mean(axis=1).tolist()
    complete = len(folds) == OmegaConf.select(runs[0].config, "data.folds")
    return Group(
        *(name, runs, labels, probabilities, accuracies),
        *(len(folds) if len(folds) > 1 else 0, complete),
    )


def _configuration(run: Run) -> dict[str, str]:
    """Return the run's configuration as flat keys and values, without what groups ignore."""
    ignored = (*NOT_THE_GROUP, "data.fold") if fold(run) is not None else NOT_THE_GROUP
    nodes = dict(walk(OmegaConf.to_container(run.config)))
    lists = tuple(f"{key}." for key, node in nodes.items() if isinstance(node, list))
    return {
        # As on the command line: false, null, [32,64].
        key: node if isinstance(node, str) else json.dumps(node, separators=(",", ":"))
        for key, node in nodes.items()
        if not isinstance(node, dict)
        and not key.startswith(lists)
        and not any(f"{key}.".startswith(f"{other}.") for other in ignored)
    }


def _names(configurations: list[dict[str, str]], members: list[list[Run]]) -> list[str]:
    """Return the groups' names: the runs' `name`, and if groups share it, the keys that differ."""
    titles = [
        ", ".join(sorted({str(OmegaConf.select(run.config, "name")) for run in runs}))
        for runs in members
    ]
    names = []
    for title, configuration in zip(titles, configurations, strict=True):
        namesakes = [configurations[i] for i, other in enumerate(titles) if other == title]
        keys = dict.fromkeys(key for each in namesakes for key in each)
        telling = [key for key in keys if len({each.get(key) for each in namesakes}) > 1]
        shown = [f"{key}={configuration[key]}" for key in telling if key in configuration]
        names.append(" ".join([title, *shown]))
    return names


def _baseline(found: list[Group], name: str | None) -> Group:
    if name is None:
        return found[0]
    for group in found:
        if group.name == name:
            return group
    names = "\n".join(f"  {group.name}" for group in found)
    raise UserError(f"No group is named {name}. The groups are:\n{names}")


def _row(group: Group, split: str) -> Row:
    accuracies = [100 * accuracy for accuracy in group.accuracies]
    interval = seed_interval(accuracies)
    own = [user_metrics(run.metrics, split) for run in group.runs]
    return Row(
        group.name,
        len(accuracies),
        interval.mean,
        interval.low,
        interval.high,
        min(accuracies),
        max(accuracies),
        int(_reported(group.runs[0], "parameters")),
        float(np.mean([_reported(run, "seconds") for run in group.runs])) / 60,
        100 * _accuracy(group) if group.folds and group.all_folds else None,
        {
            name: float(np.mean([each[name] for each in own]))
            for name in own[0]
            if all(name in each for each in own)
        },
    )


def _accuracy(group: Group) -> float:
    """Return the mean accuracy over all seeds and images, 0..1."""
    return float((group.probabilities.argmax(axis=2) == group.labels).mean())


def _reported(run: Run, key: str) -> float:
    value = run.metrics.get(key)
    if not isinstance(value, int | float):
        raise UserError(f"{run.folder / 'metrics.json'} has no number under {key!r}.")
    return float(value)


def _comparisons(others: list[Group], base: Group) -> list[Comparison]:
    found = []
    for group in others:
        mean, low, high, p_value = bootstrap_difference(
            base.labels, group.probabilities, base.probabilities
        )
        method = OVER_SEEDS
        if len(group.probabilities) == len(base.probabilities) == 1:
            p_value = mcnemar(base.labels, group.probabilities[0], base.probabilities[0])
            method = OVER_IMAGES
        # Folds are paired and share most of their training images: no sample for a t-test.
        p_welch = None if base.folds else welch(group.accuracies, base.accuracies)
        points = (100 * mean, 100 * low, 100 * high)
        found.append(Comparison(group.name, *points, p_value, p_welch, p_value, method))
    adjusted = holm([comparison.p_value for comparison in found])
    return [
        comparison._replace(p_holm=p_holm)
        for comparison, p_holm in zip(found, adjusted, strict=True)
    ]


def _notes_on_rows(found: list[Group]) -> Iterator[str]:
    best, images = found[0], len(found[0].labels)
    interval = wilson(round(_accuracy(best) * images), images)
    over = "folds" if best.folds else "seeds"
    yield (
        f"Accuracy: mean over n {over} with Student's 95 % t-interval. For comparison, the Wilson "
        f"interval of {best.name} for {images:,} images is {percent_range(interval, 2)}."
    )
    if best.folds:
        yield "Folds share training images, so that an interval over folds is approximate."
    for group in found:
        if group.folds and group.all_folds:
            accuracy = _accuracy(group)
            interval = wilson(round(accuracy * images), images)
            yield (
                f"Out-of-fold accuracy of {group.name} over all {images:,} images: "
                f"{percent(accuracy, 2)} (Wilson {percent_range(interval, 2)})."
            )
    machines = {
        str(run.metrics.get("machine", "an unnamed machine"))
        for group in found
        for run in group.runs
    }
    yield f"Minutes: training alone, on {' / '.join(sorted(machines))}."


def _notes_on_comparisons(
    found: list[Group], base: Group, comparisons: list[Comparison], *, chosen: bool
) -> Iterator[str]:
    methods = [comparison.method for comparison in comparisons]
    if OVER_SEEDS in methods:
        yield (
            "Difference between groups: 95 % interval and p by a bootstrap over seeds and images, "
            "widened by Student's t for few seeds; p (Welch): Welch's t-test over seeds "
            "(docs/statistics.md)."
        )
        if any(len(group.probabilities) == 1 for group in found):
            yield "A single run against several is assumed to vary over seeds as those do."
    if OVER_IMAGES in methods:
        yield (
            "Difference between single runs: 95 % interval by a paired bootstrap over images, p by "
            "McNemar's exact test; both are about these runs, not about other seeds."
        )
    if len(methods) > 1:
        yield f"p (Holm): p, corrected for the {len(methods)} comparisons."
    if methods and chosen:
        yield (
            f"{base.name} is the baseline because it is the best on these images, which favors it; "
            "--baseline NAME chooses one beforehand."
        )


def cells(table: Table) -> list[tuple[list[str], list[list[str]]]]:
    """Return the table and, if there are differences, theirs; each as (header, rows) of text."""
    own = list(dict.fromkeys(name for row in table.rows for name in row.metrics))
    tta = "" if table.tta == "none" else f" ({table.tta})"
    accuracy = f"{table.split} accuracy{tta}, %"
    header = ["run", "n", accuracy, "95 % interval", "range", *own, "parameters", "minutes"]
    rows = [
        [
            row.name,
            str(row.n),
            f"{row.accuracy:.2f}",
            DASH if row.low is None else f"{row.low:.2f} to {row.high:.2f}",
            f"{row.minimum:.2f} to {row.maximum:.2f}",
            *(f"{row.metrics[name]:.4g}" if name in row.metrics else DASH for name in own),
            f"{row.parameters:,}",
            f"{row.minutes:.1f}",
        ]
        for row in table.rows
    ]
    found = [(header, rows)]
    if table.comparisons:
        columns = ["difference, pp", "95 % interval", "p", "p (Welch)", "p (Holm)"]
        found.append(
            (
                [f"minus {table.baseline}", *columns],
                [
                    [
                        each.name,
                        f"{each.difference:+.2f}",
                        f"{each.low:+.2f} to {each.high:+.2f}",
                        *map(p_value, (each.p_value, each.p_welch, each.p_holm)),
                    ]
                    for each in table.comparisons
                ],
            )
        )
    return found


def p_value(value: float | None) -> str:
    """Write a p-value to three digits after the point; a dash for None."""
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"  # noqa: PLR2004 - as far as is shown


def difference_text(found: Comparison) -> str:
    """Return a difference with its interval and its corrected p-value."""
    p = p_value(found.p_holm)
    p = p if p.startswith("<") else f"= {p}"
    return f"{found.difference:+.2f} ({found.low:+.2f} to {found.high:+.2f}), p {p}"


def render_markdown(table: Table) -> str:
    """Return the tables, aligned so that they read well as plain text, and the notes."""
    parts = [_aligned(header, rows) for header, rows in cells(table)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in table.notes)]) + "\n"


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; the first column aligned left, the numbers right."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(2, *map(len, column)) for column in zip(*lines, strict=True)]  # 2: "-:"
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def render_csv(table: Table) -> str:
    """Return one line per group; the columns of differences are empty for the baseline."""
    shared = {key: getattr(table, key) for key in ("split", "tta", "images", "baseline")}
    fields = [f"minus_baseline_{field}" for field in Comparison._fields[1:]]
    against = {each.name: dict(zip(fields, each[1:], strict=True)) for each in table.comparisons}
    own = dict.fromkeys(f"{table.split}/{name}" for row in table.rows for name in row.metrics)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*Row._fields[:-1], *own, *shared, *fields], lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        values: dict[str, Any] = row._asdict()
        metrics = {f"{table.split}/{name}": value for name, value in values.pop("metrics").items()}
        writer.writerow(values | metrics | shared | against.get(row.name, {}))
    return text.getvalue()


def render_json(table: Table) -> str:
    """Return the table's fields, numbers unrounded."""
    whole = table._asdict() | {
        "rows": [row._asdict() for row in table.rows],
        "comparisons": [each._asdict() for each in table.comparisons],
    }
    return json.dumps(whole, indent=2) + "\n"


RENDERERS = {"markdown": render_markdown, "csv": render_csv, "json": render_json}
