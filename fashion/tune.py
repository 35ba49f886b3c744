"""Search a space for the best configuration, and say when to stop (Hydra).

python -m fashion.tune search=deck              a search; the same command again continues it
python -m fashion.tune search=deck workers=2 hours=1 model=cnn trainer.max_epochs=10
python -m fashion.tune -m search=deck storage=postgresql://... worker=range(8) hydra/launcher=...

A trial is an ordinary run in FOLDER/trials/NUMBER. The search is one Optuna study, which hands out
trials and prunes them. All of its state is in the study and the folder, so any number of workers,
here or on other machines, can join it by the same command and leave at any time. Without worker=N,
the command starts `workers` processes and shows their progress. A worker runs trials until the
search is over, then runs of the confirmation, which re-trains the best configurations on fresh
seeds in FOLDER/confirm/. At the end the conclusion is written: search.json, search.html and the
winner as an experiment.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import hydra
from annotated_types import Ge
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fashion import config as schema
from fashion.config import CONF
from fashion.errors import (
    Interrupted,
    UserError,
    cli_errors,
    innermost,
    message,
    print_help,
)
from fashion.search.space import Space
from fashion.search.workers import GIVEN, count, end_with_parent, supervise
from fashion.train import check

if TYPE_CHECKING:
    from fashion.search.study import Search

schema.register_resolvers()

# Types of the keys that a search has and a run has not.
SETTINGS: dict[str, Any] = {
    "search": dict[str, dict[str, Any]],
    "folder": str,
    "save_as": str | None,
    "trials": schema.PositiveInt,
    "hours": schema.PositiveFloat | None,
    "improvement": schema.SECTION | None,
    "pruning": schema.SECTION | None,
    "confirm": schema.SECTION,
    "workers": schema.PositiveInt,
    "worker": schema.NonNegativeInt | None,
    "storage": str | None,
}
SECTIONS: dict[str, dict[str, Any]] = {
    "improvement": {"points": schema.NonNegativeFloat, "after": schema.NonNegativeInt},
    "pruning": {
        "min_resource": schema.PositiveInt,
        "reduction_factor": Annotated[int, Ge(2)],
    },
    "confirm": {"top": schema.PositiveInt, "seeds": schema.NonNegativeInt},
}


def checked(config: DictConfig) -> tuple[DictConfig, Space]:
    """Check a search without torch and Optuna; return the runs' configuration and the space.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    whole: Any = OmegaConf.to_container(config, resolve=True)
    schema.check({key: whole[key] for key in SETTINGS if key in whole}, SETTINGS)
    for section, types in SECTIONS.items():
        if whole[section] is not None:
            try:
                schema.check(whole[section], types)
            except UserError as error:
                lines = [f"{section}.{line}" for line in str(error).splitlines()]
                raise UserError("\n".join(lines)) from error
    several = not schema.in_one_process(whole["trainer"])
    nodes = whole["trainer"].get("num_nodes") or 1
    for key, wrong, why in (
        ("test", config.test, "a search is for choosing, which never reads the test set."),
        ("resume", config.resume is not None, "a search continues by its own command."),
        ("trainer.devices", several and nodes == 1, "a trial runs on one."),
        ("trainer.num_nodes", nodes != 1, "a trial runs on one."),
        ("trainer.fast_dev_run", whole["trainer"].get("fast_dev_run"), "a trial has a result."),
        (
            "data.val_size",
            not schema.has_validation(config.data),
            "a search needs a validation set.",
        ),
    ):
        if wrong:
            raise UserError(f"{key} = {OmegaConf.select(config, key)}: {why}")
    for override in HydraConfig.get().overrides.hydra:
        if override.startswith(("hydra.run.dir=", "hydra.sweep.dir=")):
            raise UserError(f"{override}: a search's folder is set by folder=FOLDER.")
    training = OmegaConf.create({key: v for key, v in whole.items() if key not in SETTINGS})
    schema.start_afresh(training, schema.task_overrides())
    schema.anchor(training, Path(HydraConfig.get().runtime.cwd))
    schema.check_run(training)
    space = Space.parse(whole["search"], training)
    check(training)
    return training, space


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="tune")
def _job(config: DictConfig) -> None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # perhaps in another process, which must fail
        _search(config)
        return
    try:
        _search(config)
    except Exception as error:  # noqa: BLE001 - raised when Hydra is done, which would print too
        FAILURES.append(innermost(error))


def _search(config: DictConfig) -> None:
    try:
        if HydraConfig.get().mode == RunMode.MULTIRUN and config.worker is None:
            raise UserError("-m starts workers of a search: add, for example, 'worker=range(8)'.")  # noqa: TRY301
        training, space = checked(config)
        from fashion.search import confirmation
        from fashion.search.study import Search

        search = Search(config, training, space, Path(config.folder))
        confirmation.experiment_file(search)  # refused now rather than at the end
        search.begin()
    except UserError:
        made = Path(HydraConfig.get().runtime.output_dir)  # by Hydra; kept if it holds files
        if made.resolve() not in EXISTED:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise
    from optuna.exceptions import StorageInternalError

    from fashion.search.trials import describe

    try:
        if config.worker is None:
            _supervise(search)
        else:
            search.run_trials()
            if not search.trials(search.first).abort_reason:
                confirmation.confirm(search)
        if GIVEN not in os.environ:
            confirmation.conclude(search)
    except Interrupted as interrupted:
        if GIVEN not in os.environ:
            with contextlib.suppress(StorageInternalError):
                interrupted.add_note(_so_far(search))
        raise
    except StorageInternalError as error:
        raise UserError(
            f"The search's database cannot be reached ({describe(error)}). The same command "
            "continues once it can."
        ) from error


def _supervise(search: "Search") -> None:
    from fashion.search.confirmation import conclude

    try:
        supervise(search)
    except UserError:  # the workers keep failing: what there is is not lost
        if search.trials().completed:
            conclude(search)
        raise


def _so_far(search: "Search") -> str:
    from fashion.report.metrics import percent

    trials = search.trials()
    best = trials.best
    record = f", the best {percent(best.value, 2)} (trial {best.number})" if best else ""
    return (
        f"So far {count(len(trials.finished), 'trial')}{record}, in {search.folder}.\n"
        "The same command continues."
    )


FAILURES: list[BaseException] = []
EXISTED: set[Path] = set()  # folders that the command line names, before Hydra makes them


def main() -> None:
    FAILURES.clear()
    EXISTED.clear()
    with cli_errors():
        print_help(__doc__ or "")
        sys.argv[1:] = schema.expand_home(sys.argv[1:])
        schema.refuse_hidden_files(sys.argv[1:])
        EXISTED.update(schema.existing_folders(sys.argv[1:]))
        if GIVEN in os.environ:
            end_with_parent()
        try:
            _job()
        except Exception as error:  # the command line's
            raise UserError(message(innermost(error))) from error
        if FAILURES:
            raise FAILURES[0]


if __name__ == "__main__":
    main()
