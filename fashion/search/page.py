"""One HTML page about one search, in the frame of a run's report."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from fashion.report import figures
from fashion.report.page import Drawing, frame
from fashion.search.study import origin, reason

if TYPE_CHECKING:
    from fashion.compare import Table

LEAST = 20  # trials to tell importances from: of fewer the best tenth is but one
STATES = {
    TrialState.COMPLETE: "trained to the end",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "interrupted",
    TrialState.RUNNING: "running",
}


def page(
    name: str,
    trials: Sequence[FrozenTrial],
    summary: Sequence[str],
    verdict: "Table | None",
) -> str:
    """The report of a search.

    Args:
        name: of the search; the page's title.
        trials: each configuration's last attempt.
        summary: what was said at its end, as plain lines.
        verdict: of the best configurations on fresh seeds.
    """
    drawing = Drawing()
    measured = [trial for trial in trials if trial.value is not None]
    sections = [
        ("summary", "Summary", _summary(summary)),
        ("verdict", "Verdict", _verdict(verdict)),
        ("history", "History", _history(measured, drawing)),
        ("importance", "What matters", _importance(measured, drawing)),
        ("parameters", "Parameters", _slices(measured, drawing)),
        ("curves", "Learning curves", _curves(trials, drawing)),
        ("trials", "Trials, the best first", _trials(trials)),
    ]
    header = (
        f'<p class="kicker">Fashion-MNIST search</p>\n<h1>{html.escape(name)}</h1>\n'
        '<p class="lead">Accuracies are of the validation split; the test set has not been read.'
        "</p>"
    )
    return frame(f"{name}: search on Fashion-MNIST", header, sections)


def _summary(lines: Sequence[str]) -> str:
    text = html.escape("\n".join(lines))
    return f'<pre class="wrap" tabindex="0" role="region" aria-label="Summary">{text}</pre>'


def _verdict(table: "Table | None") -> str:
    if table is None:
        return "<p>Nothing was trained on fresh seeds.</p>"
    against = {found.name: found for found in table.comparisons}
    rows = []
    for row in table.rows:
        over = "" if row.low is None else f"{row.low:.2f} to {row.high:.2f}"
        found = against.get(row.name)
        cells = [
            str(row.n),
            f"{row.accuracy:.2f}",
            over,
            f"{row.parameters:,}",
            f"{row.minutes:.1f}",
            "" if found is None else f"{found.difference:+.2f}",
            "" if found is None else f"{found.low:+.2f} to {found.high:+.2f}",
            "" if found is None else f"{found.p_holm:.3g}",
        ]
        rows.append([row.name, *cells])
    columns = ["Configuration", "Seeds", "Accuracy, %", "95 % over seeds", "Parameters", "Minutes"]
    base = table.baseline
    table_ = _listing("Verdict", [*columns, f"Points against {base}", "95 %", "p (Holm)"], rows)
    return (
        "<p>The search's best configurations and the one that it began with, each trained again on "
        f"seeds that the search had not used.</p>\n{table_}"
    )


def _history(measured: Sequence[FrozenTrial], drawing: Drawing) -> str:
    if not measured:
        return "<p>No trial has been measured.</p>"
    figure = figures.search_history(
        [origin(trial) for trial in measured],
        [float(trial.value or 0) for trial in measured],
        _whole(measured),
    )
    return drawing(figure, f"Accuracy of {len(measured)} trials in their order.")


def _importance(measured: Sequence[FrozenTrial], drawing: Drawing) -> str:
    if len(measured) < LEAST or len({trial.value for trial in measured}) == 1:
        return "<p>Too few trials were measured to tell what matters.</p>"
    # Optuna asks trained trials alone; but that the others were pruned tells most of what matters.
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.create_trial(
            value=trial.value, params=trial.params, distributions=trial.distributions
        )
        for trial in measured
    )
    shares = optuna.importance.get_param_importances(study)
    return (
        "<p>Which parameters set the best tenth of the trials apart (PED-ANOVA, Watanabe et al. "
        "2023), where a pruned one counts with what it had reached; it says nothing of values that "
        "no trial had.</p>\n"
        + drawing(figures.importances(shares), "Importance of each parameter.")
    )


def _slices(measured: Sequence[FrozenTrial], drawing: Drawing) -> str:
    names = list(dict.fromkeys(name for trial in measured for name in trial.params))
    charts = []
    for name in names:
        having = [trial for trial in measured if name in trial.params]
        distribution = having[0].distributions[name]
        log = isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
        figure = figures.search_slice(
            name,
            [trial.params[name] for trial in having],
            [float(trial.value or 0) for trial in having],
            _whole(having),
            log=log,
        )
        charts.append(drawing(figure, f"Accuracy against {name}."))
    if not charts:
        return "<p>No trial has been measured.</p>"
    return f'<div class="figures">\n{"".join(charts)}\n</div>'


def _curves(trials: Sequence[FrozenTrial], drawing: Drawing) -> str:
    curves = [
        (dict(sorted(trial.intermediate_values.items())), trial.state == TrialState.COMPLETE)
        for trial in trials
        if trial.intermediate_values
    ]
    if not curves:
        return "<p>No learning curves were recorded.</p>"
    return drawing(figures.search_curves(curves), f"Learning curves of {len(curves)} trials.")


def _trials(trials: Sequence[FrozenTrial]) -> str:
    ranked = sorted(trials, key=lambda trial: (trial.value is None, -(trial.value or 0)))
    rows = [
        [
            str(origin(trial)),
            "" if trial.value is None else f"{100 * trial.value:.2f}",
            STATES[trial.state],
            str(len(trial.intermediate_values)),
            reason(trial)
            if trial.state == TrialState.FAIL
            else " ".join(f"{key}={_short(value)}" for key, value in trial.params.items()),
        ]
        for trial in ranked
    ]
    return _listing("Trials", ["Trial", "Accuracy, %", "State", "Epochs", "Parameters"], rows)


def _listing(label: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}' for column in columns)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(row[0])}'
        + "".join(f"<td>{html.escape(cell)}" for cell in row[1:])
        for row in rows
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="{label}">
<table class="listing">
<thead><tr>{head}</thead>
<tbody>
{body}
</tbody>
</table>
</div>"""


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _whole(trials: Sequence[FrozenTrial]) -> list[bool]:
    return [trial.state == TrialState.COMPLETE for trial in trials]
