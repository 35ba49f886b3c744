"""Search a space for the best configuration, and say when to stop (Hydra).

python -m fashion.tune search=deck              a search; the same command again continues it
python -m fashion.tune search=deck workers=2 hours=1 model=cnn trainer.max_epochs=10
python -m fashion.tune -m search=deck storage=postgresql://... worker=range(8) hydra/launcher=...

Design. A trial is an ordinary run, in FOLDER/trials/NUMBER; what may vary in it is a `Space`. The
search is one Optuna study, which hands out trials, prunes them and finds what died (study.py); the
study and the folder are all that there is of a search, so that any number of workers, here or
elsewhere, take part in it by the same command, and leave at any moment.

A worker (worker=N) runs trials until the search is over, then what is left of the verdict: the best
configurations and the one that the search began with, trained anew on fresh seeds in
FOLDER/confirm/. Such a run is taken by claiming its folder, as every run is. The command without
worker= starts `workers` of them as processes of their own, starts those again that die, and shows
how the search goes. Who comes to the end writes the conclusion, which follows from the study and
the runs alone: search.json with every number, search.html, and the winner as a recipe.
"""

import contextlib
import gc
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fashion import config as schema
from fashion.compare import Table, compare, render_markdown
from fashion.errors import Interrupted, UserError, cli_errors, innermost, message
from fashion.runs.files import atomic_write
from fashion.runs.run import METADATA_KEYS, BusyError, Run, provenance
from fashion.search.search import PARENT, Candidate, Search, plain
from fashion.search.space import Space
from fashion.search.workers import count, duration, end_with_parent, percent, supervise
from fashion.train import CONF, SETTINGS, check, train

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

# Types of the keys that are a search's and not a run's.
SEARCH_SETTINGS: dict[str, Any] = {
    "search": dict[str, dict[str, Any]],
    "folder": str,
    "trials": schema.PositiveInt,
    "hours": schema.PositiveFloat | None,
    "improvement": dict[str, schema.NonNegativeFloat] | None,
    "pruning": dict[str, schema.PositiveInt] | None,
    "confirm": dict[str, schema.NonNegativeInt],
    "workers": schema.PositiveInt,
    "worker": schema.NonNegativeInt | None,
    "storage": str | None,
    "heartbeat": schema.PositiveInt,
}
RECIPES = CONF / "experiment"


def checked(config: DictConfig) -> Search:
    """The search that `config` describes, as far as it can be checked without torch and Optuna.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    whole: Any = OmegaConf.to_container(config, resolve=True)
    schema.check(whole, SETTINGS | SEARCH_SETTINGS)
    for key, wrong, why in (
        ("test", config.test, "a search is for choosing, which never reads the test set."),
        ("resume", config.resume is not None, "a search goes on by its own command."),
        ("trainer.devices", config.trainer.devices > 1, "a trial runs on one; see workers."),
        ("data.val_size", not config.data.val_size, "a search needs pictures held out."),
        (
            "pruning.reduction_factor",
            (config.pruning or {}).get("reduction_factor") == 1,
            "it must be 2 or more.",
        ),
        ("confirm.top", not config.confirm.top, "it must be 1 or more."),
    ):
        if wrong:
            raise UserError(f"{key} = {OmegaConf.select(config, key)}: {why}")
    training = OmegaConf.create(
        {key: value for key, value in whole.items() if key not in SEARCH_SETTINGS}
    )
    space = Space.parse(whole["search"], training)
    check(training)
    return Search(config, training, space, Path(config.folder))


# A worker.


def work(search: Search) -> None:
    """Run trials until the search is over, then what is left of the verdict."""
    from fashion.search.study import MISSED_HEARTBEATS, abort_reason, run_trials

    run_trials(
        search.study,
        lambda trial, number: _trial(search, trial, number),
        search.limits(),
        deadline=search.deadline,
        first=search.first,
        silence=MISSED_HEARTBEATS * search.config.heartbeat,
    )
    search.note_time()
    if not abort_reason(search.drawn(search.first)):
        _confirm(search)


def _trial(search: Search, trial: "Trial", number: int) -> float:
    """One trial's value: the reported checkpoint's validation accuracy, 0..1."""
    from optuna import TrialPruned

    from fashion.search.study import TimeBudgetExceeded
    from fashion.training.callbacks import OptunaPruning

    config = search.trial_config(number, search.space.suggest(trial))
    (this,) = (t for t in trial.study.get_trials(deepcopy=False) if t.number == trial.number)
    known = set(this.intermediate_values)

    def report(epoch: int, accuracy: float) -> None:
        if epoch not in known:  # else it was killed between the report and the checkpoint
            trial.report(accuracy, epoch)

    def before_epoch() -> None:
        if trial.should_prune():
            raise TrialPruned

    def before_step() -> None:
        if search.deadline is not None and time.time() >= search.deadline:
            raise TimeBudgetExceeded

    run = search.trial_run(number)
    value = _run(config, run, OptunaPruning(report, before_epoch, before_step))
    for key in ("best_epoch", "epochs", "parameters", "seconds"):
        trial.set_user_attr(key, run.metrics.get(key))
    return value


def _run(config: DictConfig, run: Run, *callbacks: Any, wait: bool = True) -> float:
    """Train `run`, or what is left of it.

    Raises:
        BusyError: another process writes it, and we do not wait.
    """
    _release_memory()
    while not run.finished:
        try:
            with run.claim(config):
                train(config, run, report=False, callbacks=callbacks)
        except BusyError:
            # A worker that was taken for dead, as after a laptop's sleep: it will end.
            if not wait:
                raise
            time.sleep(1)
        except UserError:
            if not run.finished:  # by such a worker, just before we held the folder
                raise
    return float(run.metrics["val/acc"])


def _release_memory() -> None:
    """What the last run held, an exception's frames too, must not be missing to the next."""
    gc.collect()
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_initialized():
        torch.cuda.empty_cache()


def _confirm(search: Search) -> None:
    """Train what the verdict lacks, beside other processes that do the same."""
    from fashion.search.study import describe

    left = {
        run.folder: (run, OmegaConf.merge(candidate.config, {"seed": seed}))
        for candidate in search.candidates()
        for seed, run in search.confirm_runs(candidate).items()
    }
    while left := {key: task for key, task in left.items() if not task[0].finished}:
        busy = 0
        # What was begun comes last: it may be what kills us, and must not cost the others.
        for key, (run, config) in sorted(left.items(), key=lambda item: item[0].exists()):
            try:
                _run(config, run, wait=False)  # type: ignore[arg-type]
            except BusyError:
                busy += 1
            except Exception as error:  # noqa: BLE001 - one failing run must not cost the others
                search.study.set_user_attr(f"failed {run.folder.name}", describe(error))
                del left[key]
        if busy == len(left):
            time.sleep(0.5)


# The conclusion.


class Verdict(NamedTuple):
    """The best configurations on fresh seeds."""

    table: Table  # rows best first
    start: Candidate | None  # what the search began with, if it could be trained
    winner: Candidate


def verdict(search: Search, chosen: list[Candidate]) -> Verdict | None:
    """What the runs of the verdict say of the configurations that all seeds were trained of."""
    runs = {candidate.name: search.confirm_runs(candidate).values() for candidate in chosen}
    whole = [c for c in chosen if runs[c.name] and all(run.finished for run in runs[c.name])]
    if not whole:
        return None
    original = Candidate(0, "", search.trial_config(0, {}), None)
    start = next(filter(original.alike, whole), None)
    table = compare(
        [run.folder for candidate in whole for run in runs[candidate.name]],
        baseline=start and start.name,
    )
    return Verdict(table, start, next(c for c in whole if c.name == table.rows[0].name))


def conclude(search: Search) -> None:
    """Write search.json, search.html and the recipe, and print what there is to say.

    Raises:
        UserError: all trials failed for one reason.
    """
    from fashion.search import page as search_page
    from fashion.search.study import abort_reason

    trials = search.drawn()
    if why := abort_reason(search.drawn(search.first)):
        raise UserError(
            f"The search has stopped: its first trials failed, all for one reason.\n  {why}\n"
            "When that is mended, the same command goes on with new trials; these count as done."
        )
    chosen = search.candidates()
    found = verdict(search, chosen)
    failures = {
        key.removeprefix("failed "): text
        for key, text in search.study.user_attrs.items()
        if key.startswith("failed ")
        and not Run(search.folder / "confirm" / key.removeprefix("failed ")).finished
    }
    summary = _summary(search, trials, found, failures)
    if found:
        summary.append(_write_recipe(search, found))
    record = _record(search, trials, chosen, found, summary)
    _write(search.folder / "search.json", json.dumps(record, indent=2) + "\n")
    _write(
        search.folder / "search.html",
        search_page.page(search.name, trials, summary, found and found.table),
    )
    print("\n".join(["", *summary, f"Page {search.folder / 'search.html'}"]))


def _summary(
    search: Search,
    trials: list["FrozenTrial"],
    found: Verdict | None,
    failures: Mapping[str, str],
) -> list[str]:
    """What the search did, why it ended, what more of it would bring, and what came out."""
    from optuna.trial import TrialState

    from fashion.search.page import LEAST
    from fashion.search.study import (
        completed,
        ended,
        finished,
        gain_of_second_half,
        origin,
        seconds,
    )

    done, best = finished(trials), completed(trials)
    states = [trial.state for trial in done]
    counts = (
        f"{count(len(done), 'trial')} in {duration(seconds(search.study.trials))}: "
        f"{len(best)} trained to the end, {states.count(TrialState.PRUNED)} pruned, "
        f"{states.count(TrialState.FAIL)} failed."
    )
    lines = [counts]
    why = ended(trials, search.limits(), search.deadline)
    lines.append(f"It ended because {why}." if why else "It was interrupted.")
    gain = gain_of_second_half(trials)
    lines.append(
        "Going on: there were too few trials to say what it would bring."
        if gain is None or len(done) < LEAST
        else f"Going on: the second half of the trials raised the best by {100 * gain:.2f} points; "
        f"{len(done)} more can be expected to bring about as much, or less."
    )
    if not best:
        return [*lines, "No trial was trained to its end, so that there is nothing to choose."]
    lines.append(
        f"The search's own best: {percent(best[0].value)}, trial {origin(best[0])}; being the "
        f"highest of {len(done)}, it flatters."
    )
    lines += [f"Not trained: {name}: {text}" for name, text in failures.items()]
    if found is None:
        return [*lines, "There is no verdict: nothing was trained on fresh seeds."]
    table = render_markdown(found.table).rstrip().splitlines()
    lines += ["", "On fresh seeds, which the search has not used:", "", *table, ""]
    lines += _judgement(search, found)
    return lines


def _judgement(search: Search, found: Verdict) -> list[str]:
    row, *_ = found.table.rows
    over = "" if row.low is None else f" (95 % over seeds {row.low:.2f} to {row.high:.2f})"
    seeds = count(row.n, "fresh seed")
    winner = (
        f"Winner: trial {found.winner.trial}, {row.accuracy:.2f} %{over} on {seeds}; the search "
        f"had measured {percent(found.winner.found)}."
    )
    lines = [winner]
    if found.start is None:
        lines.append("What the search began with could not be trained, and is not compared.")
    elif found.start == found.winner:
        lines.append("That is the configuration the search began with: nothing found did better.")
    else:
        gap = next(each for each in found.table.comparisons if each.name == found.winner.name)
        p_value = "p < 0.001" if gap.p_holm < 0.001 else f"p = {gap.p_holm:.3f}"  # noqa: PLR2004
        lines.append(
            f"Against what the search began with (trial 0): {gap.difference:+.2f} points "
            f"(95 % {gap.low:+.2f} to {gap.high:+.2f}, {p_value}, Holm)."
        )
    values = {
        key: plain(OmegaConf.select(found.winner.config, key)) for key in search.config.search
    }
    return [*lines, *(f"  {key}={_override(value)}" for key, value in values.items())]


def _override(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _record(
    search: Search,
    trials: list["FrozenTrial"],
    chosen: list[Candidate],
    found: Verdict | None,
    summary: list[str],
) -> dict[str, Any]:
    """Every number of the search."""
    from fashion.search.study import origin, reason, seconds

    return {
        "command": search.command(),
        "summary": summary,
        "seconds": seconds(search.study.trials),
        "trials": [
            {
                "trial": origin(trial),
                "state": trial.state.name.lower(),
                "value": trial.value,
                "reason": reason(trial) if trial.state.name == "FAIL" else None,
                "accuracy_by_epoch": trial.intermediate_values,
                "parameters": trial.params,
                "attributes": trial.user_attrs,
                "began": trial.datetime_start and trial.datetime_start.isoformat(),
                "ended": trial.datetime_complete and trial.datetime_complete.isoformat(),
            }
            for trial in trials
        ],
        "verdict": {
            candidate.name: {
                seed: run.metrics.get("val/acc")
                for seed, run in search.confirm_runs(candidate).items()
                if run.finished
            }
            for candidate in chosen
        },
        "winner": found and found.winner.name,
        "comparisons": found and [each._asdict() for each in found.table.comparisons],
        **(_trained_by(search, found) if found else provenance()),
    }


def _trained_by(search: Search, found: Verdict) -> dict[str, Any]:
    """Versions, machine and commit that the winner was trained by; this command may be later."""
    metrics = next(iter(search.confirm_runs(found.winner).values())).metrics
    return {key: metrics.get(key) for key in ("versions", "machine", "commit", "clean")}


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def _write_recipe(search: Search, found: Verdict) -> str:
    """Write the winner to conf/experiment/, or beside the search; say where, and how to run it."""
    recipe = f"{search.name}.yaml"
    text = _recipe(search, found)
    wanted = RECIPES / recipe
    try:
        if wanted.exists() and _written(search) not in wanted.read_text(encoding="utf-8"):
            raise UserError(f"{wanted} is there already, and this search has not written it.")  # noqa: TRY301
        _write(wanted, text)
    except UserError as error:
        obstacle = error
    else:
        return f"Train it with: {_training(search)}"
    _write(search.folder / recipe, text)
    return (
        f"{obstacle} So the recipe lies in {search.folder / recipe}; where it stands in "
        "conf/experiment as NAME.yaml, experiment=NAME trains it."
    )


def _written(search: Search) -> str:
    return f"Written by python -m fashion.tune in {search.folder}"


def _searchpath() -> list[str]:
    """Where this search's configuration was looked for beside conf/, as an override."""
    overrides = HydraConfig.get().overrides.hydra
    return [each for each in overrides if each.partition("=")[0] == "hydra.searchpath"]


def _training(search: Search) -> str:
    words = [f"experiment={search.name}", *map(shlex.quote, _searchpath())]
    return " ".join(["python -m fashion.train", *words])


def _recipe(search: Search, found: Verdict) -> str:
    """A file for conf/experiment/: what the winner says otherwise than train.yaml."""
    there = GlobalHydra.instance().is_initialized()  # not where a launcher has started us
    with (
        contextlib.nullcontext() if there else initialize_config_dir(str(CONF), version_base="1.3")
    ):
        usual = compose("train", _searchpath(), return_hydra_config=True).hydra.runtime.choices
        choices = {
            group: choice
            for group, choice in HydraConfig.get().runtime.choices.items()
            if group in usual and "/" not in group and group != "experiment"
            if choice != usual[group]
        }
        chosen = [f"{group}={choice}" for group, choice in choices.items()]
        as_it_is = compose("train", chosen + _searchpath())
    winner = found.winner.config.copy()
    for place in (*METADATA_KEYS, "seed"):
        OmegaConf.update(winner, place, OmegaConf.select(as_it_is, place))
    body: dict[str, Any] = {
        "defaults": [{f"override /{group}": choice} for group, choice in choices.items()],
        "name": search.name,
        **_difference(plain(winner), OmegaConf.to_container(as_it_is, resolve=True)),
    }
    if not choices:
        del body["defaults"]
    row = found.table.rows[0]
    made = _trained_by(search, found)
    said = [
        _training(search),
        f"{row.parameters:,} parameters, {row.minutes:.1f} minutes on {made['machine']}",
        f"Search: {search.command()}",
        *_judgement(search, found)[:2],
        f"Being the highest of {len(found.table.rows)} means, it still flatters a little.",
        f"{_written(search)}, trained at commit {made['commit']}.",
    ]
    header = "\n".join(["# @package _global_", *(f"# {line}" for line in said)])
    return f"{header}\n{OmegaConf.to_yaml(OmegaConf.create(body))}"


def _difference(wanted: Any, given: Any) -> Any:
    """What must be merged into `given` to make it `wanted`."""
    return {
        key: _difference(value, given[key])
        if isinstance(value, dict) and isinstance(given.get(key), dict)
        else value
        for key, value in wanted.items()
        if key not in given or given[key] != value
    }


# The command.


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="tune")
def _job(config: DictConfig) -> None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # perhaps on another machine
        _search(config)
        return
    try:
        _search(config)
    except Exception as error:  # noqa: BLE001 - raised when Hydra is done, which would print too
        FAILURES.append(innermost(error))


def _search(config: DictConfig) -> None:
    try:
        if HydraConfig.get().mode == RunMode.MULTIRUN and config.worker is None:
            raise UserError("-m starts the workers of a search: add worker=range(8), say.")  # noqa: TRY301
        search = checked(config)
        search.begin()
    except UserError:
        with contextlib.suppress(OSError):
            Path(config.folder).rmdir()  # Hydra has made it, unless it was there
        raise
    try:
        if config.worker is None:
            _supervise(search)
        else:
            work(search)
    except Interrupted as interrupted:
        if PARENT not in os.environ:
            interrupted.add_note("\n".join(_so_far(search)))
        raise
    if PARENT not in os.environ:
        conclude(search)


def _supervise(search: Search) -> None:
    from fashion.search.study import completed

    try:
        supervise(search)
    except UserError:  # the workers keep dying: what there is is not lost
        if completed(search.drawn()):
            conclude(search)
        raise


def _so_far(search: Search) -> list[str]:
    from fashion.search.study import completed, finished, origin

    trials = search.drawn()
    best = completed(trials)[:1]
    record = f", the best {percent(best[0].value)} (trial {origin(best[0])})" if best else ""
    return [
        f"So far {count(len(finished(trials)), 'trial')}{record}, in {search.folder}.",
        "The same command continues.",
    ]


FAILURES: list[Exception] = []


def main() -> None:
    FAILURES.clear()
    with cli_errors():
        if PARENT in os.environ:
            end_with_parent()
        try:
            _job()
        except Exception as error:  # the command line's
            raise UserError(message(innermost(error))) from error
        if FAILURES:
            raise FAILURES[0]


if __name__ == "__main__":
    main()
