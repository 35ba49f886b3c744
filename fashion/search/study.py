"""One search as an Optuna study: its storage, sampler and pruner, and how its trials are run.

Any number of processes, on any machines that share the search's folder, run trials of one study.
A trial's number is also its run folder's name, trials/NUMBER. A trial that lost its worker is
resumed, under its number and from its last checkpoint, by the next worker that draws one.

A trial has a worker if its run folder is locked (see `_drawn`): the system releases the lock as
soon as the process ends, however it ends, and other machines see it on NFS, CephFS, GPFS and
Lustre (mounted with `flock`). So no heartbeats and no grace periods are needed, and a retried trial
keeps its number. Two limits: an NFS 4 server keeps the locks of a machine that vanished for its
lease (90 s by default), an NFS 3 server until that machine is back, unless trials/NUMBER/.lock is
deleted. A file system that does not share locks between machines is detected and refused
(`TrialLost`).
"""

import contextlib
import gc
import json
import math
import os
import shlex
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import sqlalchemy
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from fashion.config import task_overrides, walk
from fashion.errors import UserError, first_line
from fashion.runs.run import BusyError, Run, without_metadata
from fashion.search.space import Space, Value
from fashion.search.trials import ATTEMPTS, MOST_KILLS, REASON, Limits, Trials, describe
from fashion.search.workers import GIVEN

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

# Attributes of a study: the settings that it searches with; the `hours` that have been used up.
IDENTITY, SPENT = "search", "hours"
# Names that a new search may find in its folder: another worker's and Hydra's.
OWN = ("trials", "trials.lock", "workers", "multirun.yaml", ".submitit")


class TimeBudgetExceeded(BaseException):
    """Raised in a running trial when the time is up; the trial is resumed if the search is."""


class TrialLost(UserError):  # noqa: N818 - not an error of the trial
    """Raised when another worker has taken this worker's trial while its folder was locked."""


@dataclass
class Search:
    """One search: its configuration and its folder.

    Args:
        config: the whole configuration.
        training: the part of it that is a run's configuration.
        space: over `training`.
        folder: of everything that the search writes.
    """

    config: DictConfig
    training: DictConfig
    space: Space
    folder: Path
    deadline: float | None = None  # in seconds since 1970
    first: int = 0  # number of trials that existed when the command was given

    @property
    def name(self) -> str:
        return str(self.config.name)

    @cached_property
    def study(self) -> Study:
        """Open the study, or create it and store the search's settings in it.

        Raises:
            UserError: it has other settings, the folder is not a search's, or the storage cannot
                be used.
        """
        storage = self.config.storage or f"sqlite:///{(self.folder / 'study.db').resolve()}"
        if self.config.storage is None and not (self.folder / "study.db").exists():
            self._refuse_other_files()
        pruning = self.config.pruning
        study = open_study(
            storage,
            self.name,
            sampler=Sampler(
                self.config.seed,
                self.space.defaults(self.training),
                group=self.space.conditional,
            ),
            pruner=SuccessiveHalvingPruner(pruning.min_resource, pruning.reduction_factor)
            if pruning
            else NopPruner(),
        )
        own = self._identity()
        before = study.user_attrs.get(IDENTITY)
        if before is None:
            self._refuse_other_files()
            if (self.folder / "trials").exists():
                raise UserError(
                    f"{self.folder} holds trials, and {self.name} in {without_password(storage)} "
                    "has none. Give this search a folder=FOLDER of its own."
                )
            study.set_user_attr(IDENTITY, own)
        elif before != own:
            other = sorted(key for key in own | before if own.get(key) != before.get(key))
            raise UserError(
                f"{self.folder} holds another search: it differs in {', '.join(other)}. "
                "Continue that one by its own command, or give this one a name=NAME of its own."
            )
        return study

    def _refuse_other_files(self) -> None:
        """Raise UserError if the folder holds files that no search has written."""
        if not self.folder.is_dir():
            return
        names = sorted(path.name for path in self.folder.iterdir())
        others = [name for name in names if name not in OWN and "study.db" not in name]
        if others and "trials" not in names:  # which `study` refuses
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")  # noqa: PLR2004
            raise UserError(
                f"{self.folder} holds files that are not a search's ({shown}). They are left as "
                "they are; give this search a folder=FOLDER of its own."
            )

    def _identity(self) -> dict[str, str]:
        """Return the settings that the trials' values depend on, as flat keys and JSON values."""
        parts = {key: plain(self.config[key]) for key in ("search", "pruning")}
        return {
            key: json.dumps(node)
            for key, node in walk(parts | without_metadata(self.training))
            if not (isinstance(node, dict | list) and node)
        }

    def begin(self) -> None:
        """Set `first` and `deadline`; a worker gets them from the command that started it."""
        if GIVEN in os.environ:
            given = json.loads(os.environ[GIVEN])
            self.deadline, self.first = given["deadline"], given["first"]
            return
        trials = self.trials()
        self.first = len(trials)
        if (hours := self.config.hours) is not None:
            spent = self.study.user_attrs.get(SPENT, 0) >= hours
            left = 0.0 if spent else 3600 * hours - trials.seconds
            self.deadline = time.time() + left

    def trials(self, first: int = 0) -> Trials:
        return Trials.of(self.study, first)

    @property
    def limits(self) -> Limits:
        improvement = self.config.improvement
        if improvement is None:
            return Limits(self.config.trials)
        return Limits(self.config.trials, improvement.points / 100, improvement.after)

    def trial_config(self, number: int, values: Mapping[str, Value]) -> DictConfig:
        config = self.space.apply(self.training, values)
        config.name = f"{self.name}-{number}"
        return config

    @property
    def command(self) -> str:
        """Return the command that repeats the search, without the storage and local paths."""
        left_out = ("storage", "worker", "save_as", "data.root", "trainer.enable_progress_bar")
        words = [
            override
            for override in task_overrides()
            if override.lstrip("+~").partition("=")[0] not in left_out
        ]
        return shlex.join(["python", "-m", "fashion.tune", *words]).replace("\n", " ")

    @property
    def warnings(self) -> list[str]:
        """Return warnings about the configuration for readers of the search's results."""
        limit = self.training.trainer.get("limit_train_batches")
        if "data.batch_size" in self.config.search and isinstance(limit, int):
            return [
                (
                    f"trainer.limit_train_batches = {limit} counts steps: trials with larger "
                    "batches see more images per epoch, so that the accuracies do not compare "
                    "batch sizes. A fraction, such as 0.1, limits the images instead."
                )
            ]
        return []

    def run_trials(self) -> None:
        """Run trials until the search is over; if its time was up, store that in the study.

        Raises:
            TrialLost: the folder's file system does not share locks between machines.
        """
        run_trials(
            self.study,
            self.folder,
            self._train_trial,
            self.limits,
            deadline=self.deadline,
            first=self.first,
        )
        if self.deadline is not None and time.time() >= self.deadline:
            # `Trials.seconds` excludes time between trials, for which a later command would go on.
            self.study.set_user_attr(SPENT, self.config.hours)

    def _train_trial(self, trial: Trial, run: Run) -> float:
        """Train a trial, or what is left of it, and return its validation accuracy, 0..1."""
        from fashion.training.callbacks import OptunaPruning

        config = self.trial_config(trial.number, self.space.suggest(trial))
        begun = self.trials()[trial.number]

        def report(epoch: int, accuracy: float) -> None:
            # It is there if the trial was killed between the report and the checkpoint.
            if epoch not in begun.intermediate_values:
                trial.report(accuracy, epoch)

        def before_epoch() -> None:
            if trial.should_prune():
                raise optuna.TrialPruned
            if len(_attempts(self.trials()[trial.number])) > len(_attempts(begun)):
                raise TrialLost(
                    f"Another worker has taken trial {trial.number} while this one held the lock "
                    f"of its folder: the file system of {self.folder} does not share locks between "
                    "machines. Mount it so that it does (Lustre: flock), or search on one machine."
                )

        def before_step() -> None:
            if self.deadline is not None and time.time() >= self.deadline:
                raise TimeBudgetExceeded

        value = train_run(config, run, [OptunaPruning(report, before_epoch, before_step)])
        for key in ("best_epoch", "epochs", "parameters", "seconds"):
            trial.set_user_attr(key, run.metrics.get(key))
        return value


def trial_run(folder: Path, number: int) -> Run:
    """Return the run of a trial of the search in `folder`, which need not exist yet."""
    return Run(folder / "trials" / str(number))


def train_run(config: DictConfig, run: Run, callbacks: "Sequence[Callback]" = ()) -> float:
    """Train a run, or what is left of it, and return its validation accuracy, 0..1.

    Raises:
        BusyError: another process has locked it.
        UserError: it cannot be trained.
    """
    from fashion.train import train

    # Free the memory of the last run, which frames of its exception may still hold.
    gc.collect()
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_initialized():
        torch.cuda.empty_cache()
    if not run.finished:
        with run.start(config):
            train(config, run, report=False, callbacks=callbacks)
    return float(run.metrics["val/acc"])


def plain(value: Any) -> Any:
    """Return a value of a configuration as plain Python types."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


# Storage and sampler.


def open_study(storage: str, name: str, *, sampler: BaseSampler, pruner: BasePruner) -> Study:
    """Return the study `name`, created if it does not exist.

    Args:
        storage: URL of the database.
        name: of the study in it.
        sampler: draws the trials' parameters.
        pruner: decides which trials are ended early.

    Raises:
        UserError: the storage cannot be reached, or another version of Optuna has made it.
    """
    quieten()
    # Several processes may find an empty database and create its tables at once: one succeeds.
    for attempts_left in range(5, -1, -1):
        try:
            return optuna.create_study(
                storage=_connect(storage),
                study_name=name,
                direction="maximize",
                sampler=sampler,
                pruner=pruner,
                load_if_exists=True,
            )
        except sqlalchemy.exc.ArgumentError as error:
            raise UserError(f"storage is no URL of a database: {_first_line(error)}") from error
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, StorageInternalError) as error:
            if not attempts_left:
                raise UserError(
                    f"{without_password(storage)} cannot be used: {_first_line(error)}"
                ) from error
            time.sleep(np.random.default_rng().uniform(0.1, 1))
        except ImportError as error:
            raise UserError(
                f"{without_password(storage)} needs a driver: pip install 'fashion[postgresql]'."
            ) from error
        except RuntimeError as error:  # made by another version
            raise UserError(f"{without_password(storage)}: {error}") from error
    raise AssertionError


def quieten() -> None:
    """Drop Optuna's line per trial, and its notice that groups are experimental."""
    import warnings

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _connect(storage: str) -> RDBStorage:
    url = sqlalchemy.make_url(storage)
    if url.get_backend_name() != "sqlite":
        return RDBStorage(storage, {"pool_pre_ping": True})
    with sqlite3.connect(str(url.database), timeout=60) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # a commit waits for the disk once
    connection.close()
    rdb = RDBStorage(storage, {"connect_args": {"timeout": 60, "isolation_level": None}})
    # A transaction that reads before it writes fails if another has written in between.
    sqlalchemy.event.listen(
        rdb.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
    )
    return rdb


def without_password(storage: str) -> str:
    return sqlalchemy.make_url(storage).render_as_string(hide_password=True)


class Sampler(BaseSampler):
    """Optuna's TPE with a seed per trial: f(seed of the search, number of the trial).

    So a search that continues does not repeat what it drew before, workers that start together
    draw different values, and an interrupted search draws what it would have drawn. The first
    trial is the configuration as it stands.

    Args:
        seed: of the search.
        defaults: parameters of the first trial.
        group: whether some parameters exist only where others have certain values.
    """

    def __init__(self, seed: int, defaults: dict[str, Any], *, group: bool) -> None:
        self.seed = seed
        self.defaults = defaults
        self.group = group

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        (seed,) = np.random.SeedSequence([self.seed, trial.number]).generate_state(1).tolist()
        self.tpe = TPESampler(seed=seed, group=self.group)
        self.tpe.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.tpe.infer_relative_search_space(study, trial) if trial.number else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.tpe.sample_relative(study, trial, search_space) if trial.number else {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if not trial.number:
            return self.defaults[param_name]
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


# Running trials.


def run_trials(
    study: Study,
    folder: Path,
    objective: Callable[[Trial, Run], float],
    limits: Limits,
    *,
    deadline: float | None = None,
    first: int = 0,
) -> None:
    """Run trials, one after the other, until the search is over.

    Any number of processes may do so at once; each returns when no trial is running anywhere.

    Args:
        study: whose trials they are.
        folder: of the search; shared by all processes.
        objective: trains a trial, or the rest of it, in its locked run, and returns its value.
        limits: of the search.
        deadline: in seconds since 1970; None for none.
        first: number of trials that existed when the command was given; their failures do not
            count.
    """
    while True:
        if Trials.of(study, first).abort_reason:
            return
        trials = Trials.of(study)
        if trials.stop_reason(limits, deadline) is None:
            with _drawn(study, folder, limits) as drawn:
                if drawn is not None:
                    # Time is up, the storage is unreachable, or another worker has ended the
                    # trial. An unfinished trial is resumed later.
                    with contextlib.suppress(
                        TimeBudgetExceeded, StorageInternalError, UpdateFinishedTrialError
                    ):
                        _run_trial(study, *drawn, objective)
                    continue
        elif not has_workers(folder, trials):
            return
        time.sleep(0.5)


def has_workers(folder: Path, trials: Trials) -> bool:
    """Return whether an unfinished trial has a worker."""
    return any(trial_run(folder, trial.number).is_locked for trial in trials.running)


@contextlib.contextmanager
def _drawn(study: Study, folder: Path, limits: Limits) -> Iterator[tuple[Trial, Run] | None]:
    """Resume a trial that lost its worker, or draw one; its run folder is locked meanwhile.

    From before a trial exists until it has ended, its worker holds trials.lock or the lock of the
    trial's run folder. So, while trials.lock is held here, an unfinished trial whose folder is not
    locked has no worker.
    """
    with contextlib.ExitStack() as stack:
        with FileLock(folder / "trials.lock", mode=0o666):
            drawn = _resumed(study, folder, stack)
            if drawn is None and len(Trials.of(study)) < limits.trials:
                trial = study.ask()
                run = trial_run(folder, trial.number)
                # `has_workers` elsewhere may hold the lock for a moment: resume it next time.
                with contextlib.suppress(BusyError):
                    stack.enter_context(run.lock())
                    drawn = trial, run
            if drawn is not None:
                _note_begin(drawn[0])
        yield drawn


def _resumed(study: Study, folder: Path, stack: contextlib.ExitStack) -> tuple[Trial, Run] | None:
    """Return a trial that has no worker, its folder locked; fail those killed too often."""
    for each in Trials.of(study).running:
        run = trial_run(folder, each.number)
        with contextlib.ExitStack() as lock, contextlib.suppress(BusyError):
            lock.enter_context(run.lock())
            now = Trials.of(study)[each.number]
            if now.state.is_finished():  # meanwhile
                continue
            trial = Trial(study, now._trial_id)  # noqa: SLF001 - no public way to resume one
            epochs = len(now.intermediate_values)
            kills = sum(before == epochs and end is None for before, _, end in _attempts(now))
            if kills < MOST_KILLS:
                stack.push(lock.pop_all())
                return trial, run
            trial.set_user_attr(REASON, f"killed {kills} times in epoch {epochs + 1}")
            study.tell(trial, state=TrialState.FAIL)
    return None


def _attempts(trial: FrozenTrial) -> list[list[Any]]:
    return list(trial.user_attrs.get(ATTEMPTS, ()))


def _note_begin(trial: Trial) -> None:
    now = Trials.of(trial.study)[trial.number]
    attempt = [len(now.intermediate_values), time.time(), None]
    trial.set_user_attr(ATTEMPTS, [*_attempts(now), attempt])


def _note_end(trial: Trial) -> None:
    """Record the end of an attempt, which shows that it was not killed."""
    with contextlib.suppress(StorageInternalError, UpdateFinishedTrialError):
        *others, (epochs, start, _) = _attempts(Trials.of(trial.study)[trial.number])
        trial.set_user_attr(ATTEMPTS, [*others, [epochs, start, time.time()]])


def _run_trial(
    study: Study, trial: Trial, run: Run, objective: Callable[[Trial, Run], float]
) -> None:
    """Run a trial to its end; an exception that ends it is recorded with its reason."""
    value, state = None, TrialState.COMPLETE
    try:
        value = objective(trial, run)
        if not math.isfinite(value):
            raise ValueError(f"the trial's value is {value}")  # noqa: TRY301
    except optuna.TrialPruned:
        value, state = None, TrialState.PRUNED
    except (TrialLost, StorageInternalError, UpdateFinishedTrialError):
        raise
    except Exception as error:  # noqa: BLE001 - one failing trial must not cost the others
        value, state = None, TrialState.FAIL
        trial.set_user_attr(REASON, describe(error))
        if not isinstance(error, UserError):
            traceback.print_exc()
    except BaseException:
        _note_end(trial)
        raise
    _note_end(trial)
    study.tell(trial, value, state, skip_if_finished=True)


def _first_line(error: Exception) -> str:
    return first_line(error, type(error).__name__)[:500]
