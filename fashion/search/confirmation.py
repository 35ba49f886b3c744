"""Confirmation: re-train the best configurations on fresh seeds, and conclude from that.

The value that a search measured for its best trial is the highest of many noisy ones. So the best
`confirm.top` configurations, and the one that the search began with, are trained again, each on
`confirm.seeds` seeds that the search has not used; the highest mean wins. The conclusion follows
from the study and the run folders alone: search.json, search.html and the winner as an experiment.
"""

import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from fashion.config import CONF, METADATA_KEYS, task_overrides
from fashion.errors import UserError
from fashion.report.metrics import percent
from fashion.report.table import Table, compare, p_value, render_markdown
from fashion.runs.files import atomic_write
from fashion.runs.provenance import provenance
from fashion.runs.run import BusyError, Run, without_metadata
from fashion.search import page
from fashion.search.study import Search, plain, train_run
from fashion.search.trials import Trials, describe, failure, record
from fashion.search.workers import count, duration

FAILED = "failed "  # prefix of a study's attribute: why a confirming run could not be trained
PROVENANCE = ("versions", "machine", "commit", "clean")


class Candidate(NamedTuple):
    """A configuration to confirm."""

    trial: int
    name: str
    config: DictConfig
    found: float | None  # accuracy in the search, 0..1; None if that trial was not completed

    def alike(self, other: "Candidate") -> bool:
        return without_metadata(self.config) == without_metadata(other.config)


class Confirmation(NamedTuple):
    """The candidates of which all seeds were trained."""

    table: Table  # rows best first
    start: Candidate | None  # what the search began with, if it could be trained
    winner: Candidate


def candidates(search: Search) -> list[Candidate]:
    """Return the best configurations, each once, and the one that the search began with."""
    found: list[Candidate] = []
    start = Candidate(0, f"{search.name}-0", search.trial_config(0, {}), None)
    for trial in search.trials().completed:
        config = search.trial_config(trial.number, trial.params)
        one = Candidate(trial.number, config.name, config, trial.value)
        if one.trial == start.trial:
            start = one
        if len(found) < search.config.confirm.top and not any(map(one.alike, found)):
            found.append(one)
    if found and not any(map(start.alike, found)):
        found.append(start)
    return found


def confirming_runs(search: Search, candidate: Candidate) -> dict[int, Run]:
    """Return seed -> run, which need not exist yet; none of the seeds is the search's."""
    first = search.config.seed + 1
    return {
        seed: Run(search.folder / "confirm" / f"{candidate.name},seed-{seed}")
        for seed in range(first, first + search.config.confirm.seeds)
    }


def confirm(search: Search) -> None:
    """Train the confirming runs that are missing; several processes may do so at once."""
    left = {
        run.folder: (run, OmegaConf.merge(candidate.config, {"seed": seed}))
        for candidate in candidates(search)
        for seed, run in confirming_runs(search, candidate).items()
    }
    while left := {key: task for key, task in left.items() if not task[0].finished}:
        busy = 0
        # Started runs come last: one of them may have killed an earlier worker.
        for key, (run, config) in sorted(left.items(), key=lambda item: item[0].exists()):
            try:
                train_run(config, run)  # type: ignore[arg-type]
            except BusyError:
                busy += 1
            except Exception as error:  # noqa: BLE001 - one failing run must not cost the others
                if not run.finished:  # by another worker, just before this one locked the folder
                    search.study.set_user_attr(FAILED + run.folder.name, describe(error))
                    del left[key]
        if busy == len(left):
            time.sleep(0.5)


def confirmation(search: Search, chosen: list[Candidate]) -> Confirmation | None:
    """Compare the candidates of which all seeds are trained; None if there is none."""
    runs = {candidate.name: confirming_runs(search, candidate).values() for candidate in chosen}
    whole = [c for c in chosen if runs[c.name] and all(run.finished for run in runs[c.name])]
    if not whole:
        return None
    original = Candidate(0, "", search.trial_config(0, {}), None)
    start = next(filter(original.alike, whole), None)
    table = compare(
        [run.folder for candidate in whole for run in runs[candidate.name]],
        baseline=start and start.name,
    )
    return Confirmation(table, start, next(c for c in whole if c.name == table.rows[0].name))


def conclude(search: Search) -> None:
    """Write search.json, search.html and the winner's experiment, and print the summary.

    Raises:
        UserError: no trial succeeded, or `save_as` must not be overwritten.
    """
    trials = search.trials()
    chosen = candidates(search)
    found = confirmation(search, chosen)
    ended = list(_end(search, trials))
    winner: list[str] = []
    if found:
        ended += _conclusion(found)
        winner = [f"{key}={value}" for key, value in _values(search, found.winner)]
        winner += ["", _write_experiment(search, found)]
    sentences = [_counted(trials), _best(trials), *ended]
    if trials.best and not found:
        sentences.append("There is no confirmation: nothing was trained on fresh seeds.")
    content = {
        "command": search.command,
        "summary": sentences,
        "seconds": trials.seconds,
        "trials": [record(trial) for trial in trials],
        "confirmation": {
            candidate.name: {
                seed: run.metrics.get("val/acc")
                for seed, run in confirming_runs(search, candidate).items()
                if run.finished
            }
            for candidate in chosen
        },
        "winner": found and found.winner.name,
        "comparisons": found and [each._asdict() for each in found.table.comparisons],
        **(_trained_by(search, found) if found else provenance()),
    }
    with atomic_write(search.folder / "search.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    shown = ended if trials.best else sentences  # its numbers and headline say the others
    path = page.write(search, shown, found and found.table, winner)
    if trials.failed and not trials.completed and not trials.pruned:
        raise UserError(_nothing_succeeded(search, trials))
    if found:
        print(f"\nOn fresh seeds:\n\n{render_markdown(found.table)}")
    print("\n".join([*sentences, *(f"  {line}" for line in winner)]))
    print(f"Page {path.resolve().as_uri()}")


def _nothing_succeeded(search: Search, trials: Trials) -> str:
    reasons = dict.fromkeys(failure(trial) for trial in trials.failed)
    lines = [f"No trial succeeded; {count(len(trials.failed), 'trial')} failed:"]
    lines += [f"  {reason}" for reason in reasons]
    if search.trials(search.first).abort_reason:
        lines.append("All of the first trials failed for one reason, so that the search stopped.")
    lines.append(
        "When that is fixed, the same command goes on with new trials; the failed ones count "
        "toward trials=N."
    )
    return "\n".join(lines)


def _counted(trials: Trials) -> str:
    return (
        f"{count(len(trials.finished), 'trial')} in {duration(trials.seconds)}: "
        f"{len(trials.completed)} trained to the end, {len(trials.pruned)} pruned, "
        f"{len(trials.failed)} failed."
    )


def _best(trials: Trials) -> str:
    if trials.best is None:
        return "No trial was trained to its end, so that there is nothing to choose from."
    return (
        f"Best value of the search: {percent(trials.best.value, 2)}, trial {trials.best.number}; "
        f"as the highest of {len(trials.finished)} it is optimistic."
    )


def _end(search: Search, trials: Trials) -> Iterator[str]:
    """Yield sentences: reason of the end, warnings, expected gain of more trials, failed seeds."""
    done = len(trials.finished)
    stopped = trials.stop_reason(search.limits, search.deadline)
    aborted = search.trials(search.first).abort_reason
    reason = stopped or (aborted and "its first trials all failed for one reason")
    yield f"It ended because {reason}." if reason else "It was interrupted."
    yield from (f"Warning: {warning}" for warning in search.warnings)
    gain = trials.gain_of_second_half
    if gain is None or done < page.LEAST:
        yield "There were too few trials to say what more of them would bring."
    else:
        yield (
            f"The second half of the trials raised the best by {100 * gain:.2f} percentage points; "
            f"{done} more trials can be expected to bring about as much, or less."
        )
    for key, text in search.study.user_attrs.items():
        name = key.removeprefix(FAILED)
        if name != key and not Run(search.folder / "confirm" / name).finished:
            yield f"Not trained: {name}: {text}"


def _conclusion(found: Confirmation) -> Iterator[str]:
    row, *_ = found.table.rows
    interval = "" if row.low is None else f" (95 % over seeds {row.low:.2f} to {row.high:.2f})"
    yield (
        f"Winner: trial {found.winner.trial}, {row.accuracy:.2f} %{interval} on "
        f"{count(row.n, 'fresh seed')}; the search had measured {percent(found.winner.found, 2)}."
    )
    if found.start is None:
        yield "What the search began with could not be trained, and is not compared."
    elif found.start == found.winner:
        yield "That is the configuration the search began with: nothing found did better."
    else:
        gap = next(each for each in found.table.comparisons if each.name == found.winner.name)
        p = p_value(gap.p_holm)
        yield (
            f"Compared with what the search began with (trial 0): {gap.difference:+.2f} percentage "
            f"points (95 % {gap.low:+.2f} to {gap.high:+.2f}, p {p if '<' in p else f'= {p}'}, "
            "Holm)."
        )


def _values(search: Search, winner: Candidate) -> Iterator[tuple[str, str]]:
    """Yield the keys of the space and the winner's values, as the command line takes them."""
    for key in search.config.search:
        yield key, _override(OmegaConf.select(winner.config, key))


def _trained_by(search: Search, found: Confirmation) -> dict[str, Any]:
    """Return the provenance of the winner's runs, which may differ from the current process's."""
    metrics = next(iter(confirming_runs(search, found.winner).values())).metrics
    return {key: metrics.get(key) for key in PROVENANCE}


# The winner as an experiment.


def experiment_file(search: Search) -> Path:
    """Return where the winner's experiment is written: `save_as`, or inside the search's folder.

    Raises:
        UserError: the path is not experiment/NAME.yaml, its file exists and is not this search's,
            the experiment would refer to itself, or conf/ has another of its name.
    """
    path = Path(search.config.save_as or search.folder / "experiment" / f"{search.name}.yaml")
    if path.suffix != ".yaml" or path.parent.name != "experiment":
        raise UserError(f"save_as = {path}: it must be a file experiment/NAME.yaml.")
    if path.exists() and _signature(search) not in path.read_text("utf-8", errors="replace"):
        raise UserError(
            f"{path} exists, and this search has not written it. Choose another file with "
            "save_as=conf/experiment/NAME.yaml."
        )
    if path.stem == HydraConfig.get().runtime.choices.get("experiment"):
        raise UserError(
            f"experiment = {path.stem}: the winner would refer to itself, as it is written to "
            f"{path}. Give the search a name=NAME of its own."
        )
    ours = CONF / "experiment" / path.name
    if ours.exists() and path.resolve() != ours.resolve():  # it would come first
        raise UserError(
            f"{path} would not be used: the project has an experiment of this name, which comes "
            "first. Give the search another name=NAME or save_as=experiment/NAME.yaml."
        )
    return path


def _signature(search: Search) -> str:
    return f"Written by python -m fashion.tune in {search.folder}, trained at commit "


def _write_experiment(search: Search, found: Confirmation) -> str:
    """Write the search's overrides and the winner's values; return the command to train them."""
    path = experiment_file(search)
    config = found.winner.config
    choices = HydraConfig.get().runtime.choices
    groups, keys, beside = {}, [], []
    for override in OverridesParser.create().parse_overrides(task_overrides()):
        key = override.key_or_group
        if override.is_delete():
            beside.append(str(override.input_line))
        elif key in ("search", "experiment", "seed", *METADATA_KEYS):
            continue
        elif key in choices:
            groups[f"override /{key}"] = choices[key]
        elif OmegaConf.select(search.training, key, default=search) is not search:
            keys.append(_above_lists(search.training, key))
            section = key.removesuffix("._target_")
            if section != key:  # a file cannot drop the arguments of the class that it replaces
                arguments = plain(OmegaConf.select(config, section)).items()
                beside += [f"++{section}.{name}={_override(value)}" for name, value in arguments]
    base = [choices["experiment"]] if choices.get("experiment") else []
    defaults = [*base, *({group: choice} for group, choice in groups.items())]
    body = OmegaConf.create({"defaults": defaults, "name": path.stem})
    for key in dict.fromkeys([*keys, *search.config.search]):
        OmegaConf.update(body, key, OmegaConf.select(config, key), force_add=True)
    command = _train_command(path, beside)
    row = found.table.rows[0]
    made = _trained_by(search, found)
    said = [
        command,
        f"{row.parameters:,} parameters, {row.minutes:.1f} minutes on {made['machine']}",
        f"Search: {search.command}",
        *_conclusion(found),
        f"As the highest of {len(found.table.rows)} means it is still slightly optimistic.",
        *(f"Warning: {warning}" for warning in search.warnings),
        f"{_signature(search)}{made['commit']}.",
    ]
    header = "\n".join(["# @package _global_", *(f"# {line}" for line in said)])
    with atomic_write(path) as file:
        file.write(f"{header}\n{OmegaConf.to_yaml(body)}".encode())
    return command


def _above_lists(config: DictConfig, key: str) -> str:
    """Return `key`, or the key of the list if `key` names an element of one."""
    parent = key.rpartition(".")[0]
    return parent if isinstance(OmegaConf.select(config, parent), ListConfig) else key


def _train_command(path: Path, beside: list[str]) -> str:
    """Return the command that trains an experiment, with the options to find its file."""
    hydra = HydraConfig.get()
    words = ["python", "-m", "fashion.train"]
    searched = list(hydra.searchpath)
    searched += [
        f"file://{each.path}"
        for each in hydra.runtime.config_sources
        if each.provider == "command-line"
    ]
    if path.parent.parent.resolve() != CONF.resolve():
        words += ["--config-dir", str(path.parent.parent)]
    words.append(f"experiment={path.stem}")
    if searched:
        words.append(f"hydra.searchpath=[{','.join(searched)}]")
    return shlex.join([*words, *beside])


def _override(value: Any) -> str:
    """Return a value as the command line takes it."""
    value = plain(value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
