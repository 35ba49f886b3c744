"""A search: its configuration, where it lies, and the configurations that its verdict is about."""

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fashion.errors import UserError
from fashion.runs.run import METADATA_KEYS, Run
from fashion.search.space import Space, Value

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from fashion.search.study import Limits

# A worker that a command has started finds here what it must know beside its configuration.
PARENT = "FASHION_SEARCH"
SPENT = "hours"  # attribute of the study: for so long it was searched


class SetHydraConfig(Callback):
    """Hydra's sweeper resolves hydra.sweep.dir, but Hydra 1.3 has not told itself of it by then."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        HydraConfig.instance().set_config(config.copy())


class Candidate(NamedTuple):
    """A configuration that the verdict is about."""

    trial: int
    name: str
    config: DictConfig
    found: float | None  # what the search measured, 0..1; None if that trial was not completed

    def alike(self, other: "Candidate") -> bool:
        return _without_places(self.config) == _without_places(other.config)


@dataclass
class Search:
    """One search: its configuration, and where it lies."""

    config: DictConfig
    training: DictConfig  # a run's part of it
    space: Space
    folder: Path
    deadline: float | None = None  # as time.time counts
    first: int = 0  # trials that were there when the command was given

    @property
    def name(self) -> str:
        return str(self.config.name)

    @property
    def storage(self) -> str:
        return self.config.storage or f"sqlite:///{(self.folder / 'study.db').resolve()}"

    @cached_property
    def study(self) -> "Study":
        """Opened, or begun; it remembers what it is a search of.

        Raises:
            UserError: it is a search of something else, or the storage cannot be used.
        """
        from fashion.search.study import open_study, shown

        pruning = self.config.pruning
        study = open_study(
            self.storage,
            self.name,
            seed=self.config.seed,
            defaults=self.space.defaults(self.training),
            conditional=self.space.conditional,
            halving=pruning and (pruning.min_resource, pruning.reduction_factor),
            heartbeat=self.config.heartbeat,
        )
        own = dict(_flat(self._identity()))
        if (before := study.user_attrs.get("search")) is None:
            if (self.folder / "trials").exists():
                raise UserError(
                    f"{self.folder} holds trials that {self.name} in {shown(self.storage)} knows "
                    "nothing of. Give this search a folder=FOLDER of its own."
                )
            study.set_user_attr("search", own)
        elif before != own:
            other = sorted(key for key in own | before if own.get(key) != before.get(key))
            raise UserError(
                f"{self.folder} holds another search: it differs in {', '.join(other)}. "
                "Continue that one by its own command, or give this one a name=NAME of its own."
            )
        return study

    def _identity(self) -> dict[str, Any]:
        """What its trials' values depend on."""
        parts = {key: plain(self.config[key]) for key in ("search", "pruning")}
        return parts | _without_places(self.training)

    def begin(self) -> None:
        """Settle what this command begins with, and when its time is up."""
        from fashion.search.study import seconds

        if PARENT in os.environ:
            told = json.loads(os.environ[PARENT])
            self.deadline, self.first = told["deadline"], told["first"]
            return
        trials = self.study.get_trials(deepcopy=False)
        self.first = len(trials)
        if (hours := self.config.hours) is not None:
            spent = self.study.user_attrs.get(SPENT, 0) >= hours
            left = 0.0 if spent else 3600 * hours - seconds(trials)
            self.deadline = time.time() + left

    def note_time(self) -> None:
        """Remember that the time was up: what passed between trials is not to be searched again."""
        if self.deadline is not None and time.time() >= self.deadline:
            self.study.set_user_attr(SPENT, self.config.hours)

    def trial_run(self, number: int) -> Run:
        return Run(self.folder / "trials" / str(number))

    def trial_config(self, number: int, values: Mapping[str, Value]) -> DictConfig:
        config = self.space.apply(self.training, values)
        config.name = f"{self.name}-{number}"
        return config

    def command(self) -> str:
        """What a person types to do it again, without what says where."""
        left_out = ("storage", "worker", "data.root", "trainer.progress_bar")
        words = [
            shlex.quote(override)
            for override in HydraConfig.get().overrides.task
            if override.lstrip("+~").partition("=")[0] not in left_out
        ]
        return " ".join(["python -m fashion.tune", *words]).replace("\n", " ")

    def limits(self) -> "Limits":
        from fashion.search.study import Limits

        improvement = self.config.improvement
        if improvement is None:
            return Limits(self.config.trials)
        return Limits(self.config.trials, improvement.points / 100, int(improvement.after))

    def drawn(self, first: int = 0) -> list["FrozenTrial"]:
        """The last attempt of each configuration, of those drawn after the first so many."""
        from fashion.search.study import distinct

        return distinct(self.study.get_trials(deepcopy=False)[first:])

    def candidates(self) -> list[Candidate]:
        """The best configurations, each once, and the one that the search began with."""
        from fashion.search.study import completed, origin

        found: list[Candidate] = []
        start = Candidate(0, f"{self.name}-0", self.trial_config(0, {}), None)
        for trial in completed(self.drawn()):
            number = origin(trial)
            config = self.trial_config(number, trial.params)
            one = Candidate(number, config.name, config, trial.value)
            if number == start.trial:
                start = one
            if len(found) < self.config.confirm.top and not any(map(one.alike, found)):
                found.append(one)
        if found and not any(map(start.alike, found)):
            found.append(start)
        return found

    def confirm_runs(self, candidate: Candidate) -> dict[int, Run]:
        """Seed -> run, which may not be there yet; none of the seeds is the search's."""
        first = self.config.seed + 1
        return {
            seed: Run(self.folder / "confirm" / f"{candidate.name},seed-{seed}")
            for seed in range(first, first + self.config.confirm.seeds)
        }


def plain(value: Any) -> Any:
    """Without OmegaConf."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _without_places(config: DictConfig) -> dict[str, Any]:
    config = config.copy()
    for place in METADATA_KEYS:
        OmegaConf.update(config, place, None, force_add=True)
    return plain(config)  # type: ignore[no-any-return]


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, json.dumps(node)
