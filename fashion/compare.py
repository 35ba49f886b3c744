"""Compare finished runs: what each recipe reaches, and which differences are real.

    python -m fashion.compare logs/grid                          every run below a folder
    python -m fashion.compare logs/best logs/cnn --split test    on the test set
    python -m fashion.compare logs/grid --baseline cnn --format csv --output grid.csv

Runs that differ in their seed alone are a group, and a group is a row. All runs must have answered
the same images.
"""

import argparse
import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from omegaconf import OmegaConf

from fashion.errors import UserError, cli_errors
from fashion.runs.files import atomic_write
from fashion.runs.run import METADATA_KEYS, TTA, Predictions, Run, common_predictions, listed

# What two runs of one recipe may differ in. `test` reads the test set when training is over.
NOT_THE_RECIPE = (*METADATA_KEYS, "hydra", "seed", "test")

OVER_SEEDS = "bootstrap over seeds and images"
OVER_IMAGES = "McNemar's exact test, bootstrap over images"


class Group(NamedTuple):
    """Runs of one recipe."""

    name: str
    runs: list[Run]
    probabilities: Float32[np.ndarray, "runs n 10"]
    accuracies: list[float]  # 0..1, one a run


class Row(NamedTuple):
    """What a group reaches; accuracies in per cent."""

    name: str
    n: int  # runs
    accuracy: float  # mean
    low: float | None  # 95 % over seeds; None where n = 1
    high: float | None
    least: float
    most: float
    parameters: int
    minutes: float  # of the fit alone, mean


class Comparison(NamedTuple):
    """A group's mean accuracy less the baseline's, in points of per cent."""

    name: str
    difference: float
    low: float  # 95 %
    high: float
    p_value: float  # two-sided
    p_holm: float  # adjusted for all comparisons of the table
    method: str


class Table(NamedTuple):
    split: str
    views: str
    images: int
    baseline: str
    rows: list[Row]  # best first
    comparisons: list[Comparison]  # in the rows' order, without the baseline
    notes: list[str]  # how the numbers came about


def compare(
    paths: Iterable[Path],
    split: str = "val",
    baseline: str | None = None,
    views: str = "single",
) -> Table:
    """Compare the runs at or below `paths` with the group named `baseline`, or with the best.

    Raises:
        UserError: there is no run; one is unfinished, has no predictions for `split`, repeats
            another or answered other images; no group is named `baseline`.
    """
    runs = _finished_runs(paths)
    answers = common_predictions(runs, split, views)
    labels = answers[runs[0]].labels
    groups = _groups(answers)
    base = _baseline(groups, baseline)

    comparisons = _comparisons(labels, [group for group in groups if group is not base], base)
    notes = [
        *_notes_on_rows(groups, len(labels)),
        *_notes_on_comparisons(groups, base, comparisons, chosen=baseline is None),
    ]
    rows = [_row(group) for group in groups]
    return Table(split, views, len(labels), base.name, rows, comparisons, notes)


def _finished_runs(paths: Iterable[Path]) -> list[Run]:
    found: dict[Path, Run] = {}  # what two paths lead to counts once
    for path in paths:
        below = Run.below(path)
        if not below:
            reason = "there is no run in it" if path.exists() else "there is no such folder"
            raise UserError(f"{path} cannot be compared: {reason}.")
        found |= {run.folder.resolve(): run for run in below}
    runs = list(found.values())
    if unfinished := [run for run in runs if not run.finished]:
        raise UserError(
            f"{len(unfinished)} of {len(runs)} runs are unfinished; "
            f"wait for them, or name the finished ones alone:\n{listed(unfinished)}"
        )
    return runs


def _groups(answers: dict[Run, Predictions]) -> list[Group]:
    """Runs by recipe, the best mean first."""
    recipes: list[dict[str, str]] = []
    members: list[list[Run]] = []
    for run in answers:
        recipe = _recipe(run)
        if recipe not in recipes:
            recipes.append(recipe)
            members.append([])
        members[recipes.index(recipe)].append(run)
    groups = []
    for name, runs in zip(_names(recipes, members), members, strict=True):
        if len({run.config.seed for run in runs}) < len(runs):
            raise UserError(
                f"Runs of {name} with the same seed are one measurement and would count as "
                f"several; name the runs to compare:\n{listed(runs, 'seed')}"
            )
        probabilities = np.stack([answers[run].probabilities for run in runs])
        right = probabilities.argmax(axis=2) == answers[runs[0]].labels
        groups.append(Group(name, runs, probabilities, right.mean(axis=1).tolist()))
    return sorted(groups, key=lambda group: (-np.mean(group.accuracies), group.name))


def _recipe(run: Run) -> dict[str, str]:
    """What the run was told, as flat keys and values, without what is not the recipe."""
    return {
        key: value
        for key, value in _leaves(OmegaConf.to_container(run.config))
        if not any(f"{key}.".startswith(f"{other}.") for other in NOT_THE_RECIPE)
    }


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        # As on the command line: false, null, [32,64].
        yield path, node if isinstance(node, str) else json.dumps(node, separators=(",", ":"))


def _names(recipes: list[dict[str, str]], members: list[list[Run]]) -> list[str]:
    """The runs' `name`; where recipes share one, with the keys that tell them apart."""
    titles = [
        ", ".join(sorted({str(OmegaConf.select(run.config, "name")) for run in runs}))
        for runs in members
    ]
    names = []
    for title, recipe in zip(titles, recipes, strict=True):
        namesakes = [recipes[index] for index, other in enumerate(titles) if other == title]
        telling = [key for key in recipe if len({other.get(key) for other in namesakes}) > 1]
        names.append(" ".join([title, *(f"{key}={recipe[key]}" for key in telling)]))
    return names


def _baseline(groups: list[Group], name: str | None) -> Group:
    if name is None:
        return groups[0]
    for group in groups:
        if group.name == name:
            return group
    names = "\n".join(f"  {group.name}" for group in groups)
    raise UserError(f"No group is named {name}. The groups are:\n{names}")


def _row(group: Group) -> Row:
    from fashion.report.metrics import seed_interval

    accuracies = [100 * accuracy for accuracy in group.accuracies]
    over_seeds = seed_interval(accuracies)
    return Row(
        group.name,
        len(group.runs),
        over_seeds.mean,
        over_seeds.low,
        over_seeds.high,
        min(accuracies),
        max(accuracies),
        int(_reported(group.runs[0], "parameters")),
        float(np.mean([_reported(run, "seconds") for run in group.runs])) / 60,
    )


def _reported(run: Run, key: str) -> float:
    value = run.metrics.get(key)
    if not isinstance(value, int | float):
        raise UserError(f"{run.folder / 'metrics.json'} has no number under {key!r}.")
    return float(value)


def _comparisons(
    labels: Int64[np.ndarray, " n"], others: list[Group], base: Group
) -> list[Comparison]:
    from fashion.report.metrics import bootstrap_difference, holm, mcnemar

    found = []
    for group in others:
        mean, low, high, p_value = bootstrap_difference(
            labels, group.probabilities, base.probabilities
        )
        method = OVER_SEEDS
        if len(group.runs) == len(base.runs) == 1:
            p_value = mcnemar(labels, group.probabilities[0], base.probabilities[0])
            method = OVER_IMAGES
        points = (100 * mean, 100 * low, 100 * high)
        found.append(Comparison(group.name, *points, p_value, p_value, method))
    adjusted = holm([comparison.p_value for comparison in found])
    return [
        comparison._replace(p_holm=p_holm)
        for comparison, p_holm in zip(found, adjusted, strict=True)
    ]


def _notes_on_rows(groups: list[Group], images: int) -> Iterator[str]:
    from fashion.report.metrics import accuracy_interval

    correct = round(float(np.mean(groups[0].accuracies)) * images)
    low, high = (100 * bound for bound in accuracy_interval(correct, images))
    yield (
        "Accuracy: mean over n seeds, with the 95 % interval that the seeds allow (Student's t); "
        f"{images:,} images by themselves would allow {groups[0].name} {low:.2f} to {high:.2f} "
        "(Wilson)."
    )
    machines = {
        str(run.metrics.get("machine", "an unnamed machine"))
        for group in groups
        for run in group.runs
    }
    yield f"Minutes: of the fit alone, on {' / '.join(sorted(machines))}."


def _notes_on_comparisons(
    groups: list[Group], base: Group, comparisons: list[Comparison], *, chosen: bool
) -> Iterator[str]:
    methods = [comparison.method for comparison in comparisons]
    if OVER_SEEDS in methods:
        yield (
            "Difference between groups: 95 % interval and p-value by a bootstrap over seeds and "
            "images together, widened as Student's t is for few seeds "
            "(fashion.report.metrics.bootstrap_difference)."
        )
        if any(len(group.runs) == 1 for group in groups):
            yield "A single run against several is taken to vary over seeds as those do."
    if OVER_IMAGES in methods:
        yield (
            "Difference between single runs: 95 % interval by a paired bootstrap over images, "
            "p-value by McNemar's exact test; both are about these runs, not about other seeds."
        )
    if len(methods) > 1:
        yield f"p (Holm): corrected for the {len(methods)} comparisons."
    if methods and chosen:
        yield (
            f"{base.name} is the baseline because it came out best on these images, "
            "which flatters it; --baseline names one beforehand."
        )


def render_markdown(table: Table) -> str:
    """Two tables, aligned so that they read well as plain text, and the notes."""
    rows = [
        [
            row.name,
            str(row.n),
            f"{row.accuracy:.2f}",
            "n = 1: no seed interval"
            if row.low is None or row.high is None
            else f"{row.low:.2f} to {row.high:.2f}",
            f"{row.least:.2f} to {row.most:.2f}",
            f"{row.parameters:,}",
            f"{row.minutes:.1f}",
        ]
        for row in table.rows
    ]
    mirrored = "" if table.views == "single" else f" ({table.views})"
    accuracy = f"{table.split} accuracy{mirrored}, %"
    header = ["run", "n", accuracy, "95 % over seeds", "range", "parameters", "minutes"]
    parts = [_aligned(header, rows)]
    if table.comparisons:
        rows = [
            [
                found.name,
                f"{found.difference:+.2f}",
                f"{found.low:+.2f} to {found.high:+.2f}",
                _p_value(found.p_value),
                _p_value(found.p_holm),
            ]
            for found in table.comparisons
        ]
        header = [f"against {table.baseline}", "points", "95 % interval", "p", "p (Holm)"]
        parts.append(_aligned(header, rows))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in table.notes)]) + "\n"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"  # noqa: PLR2004 - as far as is shown


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the numbers to the right."""
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
    """One line a group; the baseline's comparison with itself is left empty."""
    shared = {key: getattr(table, key) for key in ("split", "views", "images", "baseline")}
    fields = [f"against_{field}" for field in Comparison._fields[1:]]
    against = {found.name: dict(zip(fields, found[1:], strict=True)) for found in table.comparisons}
    text = io.StringIO()
    writer = csv.DictWriter(text, [*Row._fields, *shared, *fields], lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        writer.writerow(row._asdict() | shared | against.get(row.name, {}))
    return text.getvalue()


def render_json(table: Table) -> str:
    """The table's fields, numbers unrounded."""
    whole = table._asdict() | {
        "rows": [row._asdict() for row in table.rows],
        "comparisons": [found._asdict() for found in table.comparisons],
    }
    return json.dumps(whole, indent=2) + "\n"


RENDERERS = {"markdown": render_markdown, "csv": render_csv, "json": render_json}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN_OR_FOLDER", help="a folder: the runs below it"
    )
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument(
        "--views", choices=TTA, default="single", help="mirrored: as fashion.evaluate made them"
    )
    parser.add_argument("--baseline", metavar="NAME", help="a row's name (default: the best)")
    parser.add_argument("--format", choices=RENDERERS, default="markdown")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of the terminal")
    options = parser.parse_args(arguments)
    with cli_errors():
        table = compare(options.paths, options.split, options.baseline, options.views)
        text = RENDERERS[options.format](table)
        if options.output is None:
            print(text, end="")
            return
        with atomic_write(options.output) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main()
