"""search.html: one page about one search, which is also updated while it runs.

The charts are the report's, not Optuna's: those mix all trials of a study in one color, name every
trial in a legend, and do not follow a page's dark mode. A caption says which trials a chart leaves
out, and how many lie outside its axis.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from markupsafe import Markup
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from fashion.report import figures, table
from fashion.report.metrics import percent
from fashion.report.page import render, svg
from fashion.runs.files import atomic_write
from fashion.search.trials import Trials, failure, validated_epochs
from fashion.search.workers import count, duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fashion.search.study import Search

LEAST = 20  # trials; of fewer, PED-ANOVA (Optuna's default) would compare the best tenth, one trial
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
Chart = tuple[Markup, str]  # SVG and caption


def write(
    search: "Search",
    summary: Sequence[str],
    found: table.Table | None = None,
    winner: Sequence[str] = (),
) -> Path:
    """Write the page into the search's folder; return its path.

    Args:
        search: whose trials are shown.
        summary: sentences.
        found: the confirmation's table; None where there is none yet.
        winner: its values and the command that trains it, as lines.
    """
    from fashion.search.study import trial_run

    trials = search.trials()
    working = {t.number for t in trials.running if trial_run(search.folder, t.number).is_locked}
    text = page(search.name, trials, summary, found, winner=winner, working=working)
    path = search.folder / "search.html"
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def page(
    name: str,
    trials: Trials,
    summary: Sequence[str],
    found: table.Table | None,
    *,
    winner: Sequence[str] = (),
    working: set[int] = frozenset(),  # type: ignore[assignment]
) -> str:
    """Return the page of a search.

    Args:
        name: of the search; the page's title.
        trials: all of them.
        summary: sentences.
        found: the confirmation's table.
        winner: its values and the command that trains it, as lines.
        working: numbers of the unfinished trials that have a worker; the others are interrupted.
    """
    measured = [trial for trial in trials if trial.value is not None]
    running = [trial for trial in trials.running if trial.number in working]
    states = {
        trial.number: "interrupted"
        if trial in trials.running and trial.number not in working
        else STATES[trial.state]
        for trial in trials
    }
    return render(
        "search.html",
        name=name,
        headline=_headline(trials, found),
        tiles=_tiles(trials),
        summary=summary,
        winner="\n".join(winner),
        tables=table.cells(found) if found else [],
        notes=found.notes if found else [],
        running=_curves(running, "running", trials) if running else None,
        history=_history(measured, trials),
        importance=_importance(measured),
        slices=_slices(measured, trials),
        curves=_curves([t for t in trials if t.intermediate_values], "all", trials),
        rows=[_row(trial, states[trial.number]) for trial in _ranked(trials)],
    )


def _headline(trials: Trials, found: table.Table | None) -> tuple[str, str] | None:
    """Return an accuracy and what it is: the confirmed one, else the search's best."""
    if found:
        row = found.rows[0]
        interval = "" if row.low is None else f", 95 % interval {row.low:.2f} to {row.high:.2f}"
        return (
            percent(row.accuracy / 100, 2),
            f"{row.name}: mean over {count(row.n, 'fresh seed')}{interval}.",
        )
    if trials.best is None:
        return None
    return (
        percent(trials.best.value, 2),
        (
            f"Trial {trials.best.number}, the highest of {len(trials.finished)} finished trials, "
            "and so optimistic: it has not been confirmed on fresh seeds."
        ),
    )


def _tiles(trials: Trials) -> dict[str, str]:
    return {
        "Trials": str(len(trials)),
        "Complete": str(len(trials.completed)),
        "Pruned": str(len(trials.pruned)),
        "Failed": str(len(trials.failed)),
        "Unfinished": str(len(trials.running)),
        "Time": duration(trials.seconds),
    }


def _chart(figure: "Figure", alternative: str, said: Sequence[str]) -> Chart:
    return svg(figure, alternative), " ".join(said)


def _below(figure: "Figure", values: Sequence[float]) -> list[str]:
    """Return how many values lie below the figure's axis, as a sentence, if any do."""
    low = figure.axes[0].get_ylim()[0]
    hidden = sum(value < low for value in values)
    if not hidden:
        return []
    return [f"{hidden} of {len(values)} lie below the axis, which begins at {percent(low)}."]


def _left_out(shown: int, trials: Trials, why: str) -> list[str]:
    missing = len(trials) - shown
    return [f"Not shown: {count(missing, 'trial')} {why}."] if missing else []


def _history(measured: Sequence[FrozenTrial], trials: Trials) -> Chart | None:
    if not measured:
        return None
    values = _values(measured)
    figure = figures.search_history(
        [trial.number for trial in measured], values, _completed(measured)
    )
    left_out = _left_out(len(measured), trials, "that failed or are unfinished")
    return _chart(
        figure,
        f"Accuracy of {len(measured)} trials in their order.",
        [*_below(figure, values), *left_out],
    )


def _importance(measured: Sequence[FrozenTrial]) -> Chart | None:
    if len(measured) < LEAST or len({trial.value for trial in measured}) == 1:
        return None
    # Optuna considers completed trials only; pruned ones are passed as completed, because they show
    # most about which values are poor.
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.create_trial(
            value=trial.value, params=trial.params, distributions=trial.distributions
        )
        for trial in measured
    )
    with warnings.catch_warnings(record=True) as caught:  # shown on the page, not in the terminal
        warnings.filterwarnings("always", "Some regimes for parameter", UserWarning)
        importances = optuna.importance.get_param_importances(study)
    said = ["Some parameters have too few trials for an accurate value."] if caught else []
    return _chart(figures.importances(importances), "Importance of each parameter.", said)


def _slices(measured: Sequence[FrozenTrial], trials: Trials) -> list[Chart]:
    names = dict.fromkeys(name for trial in measured for name in trial.params)
    charts = []
    for name in names:
        having = [trial for trial in measured if name in trial.params]
        distribution = having[0].distributions[name]
        log = isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
        values = _values(having)
        figure = figures.search_slice(
            name, [trial.params[name] for trial in having], values, _completed(having), log=log
        )
        left_out = _left_out(len(having), trials, "without this parameter or a value")
        charts.append(
            _chart(figure, f"Accuracy against {name}.", [*_below(figure, values), *left_out])
        )
    return charts


def _curves(shown: Sequence[FrozenTrial], which: str, trials: Trials) -> Chart | None:
    curves = [
        (dict(sorted(trial.intermediate_values.items())), trial.state == TrialState.COMPLETE)
        for trial in shown
        if trial.intermediate_values
    ]
    if which == "running":
        curves = [(curve, True) for curve, _ in curves]
        said = [f"Running: {', '.join(f'trial {trial.number}' for trial in shown)}."]
        if len(curves) < len(shown):
            said.append(f"{len(shown) - len(curves)} of them in the first epoch.")
    else:
        said = _left_out(len(curves), trials, "without a finished epoch")
    if not curves:
        return (Markup(), " ".join(said)) if which == "running" else None
    figure = figures.search_curves(curves)
    if which == "running":
        figure.axes[0].autoscale(axis="y")  # all of them
    low = figure.axes[0].get_ylim()[0]
    if hidden := sum(max(curve.values()) < low for curve, _ in curves):
        said.append(f"{hidden} lie wholly below the axis, which begins at {percent(low)}.")
    return _chart(figure, f"Learning curves of {count(len(curves), f'{which} trial')}.", said)


def _ranked(trials: Trials) -> list[FrozenTrial]:
    return sorted(trials, key=lambda trial: (trial.value is None, -(trial.value or 0)))


def _row(trial: FrozenTrial, state: str) -> dict[str, Any]:
    return {
        "number": trial.number,
        "value": percent(trial.value, 2),
        "state": state,
        "epochs": validated_epochs(trial),
        "text": failure(trial)
        if trial.state == TrialState.FAIL
        else " ".join(f"{key}={_short(value)}" for key, value in trial.params.items()),
    }


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _values(trials: Sequence[FrozenTrial]) -> list[float]:
    return [float(trial.value or 0) for trial in trials]


def _completed(trials: Sequence[FrozenTrial]) -> list[bool]:
    return [trial.state == TrialState.COMPLETE for trial in trials]
