"""Train one run, or a grid of them (Hydra).

python -m fashion.train model=best                       one run
python -m fashion.train -m model=linear,cnn seed=0,1,2   a grid; again: the runs that are left
python -m fashion.train resume=RUN                       continue an interrupted run
"""

import contextlib
import itertools
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fashion import config as schema
from fashion.config import CONF
from fashion.errors import (
    DivergenceError,
    Interrupted,
    UserError,
    cli_errors,
    deferred_signals,
    innermost,
    message,
    print_help,
)
from fashion.search.workers import SetHydraConfig

if TYPE_CHECKING:
    from fashion.runs.run import Run

schema.register_resolvers()


def train(
    config: DictConfig, run: "Run", *, report: bool, callbacks: Sequence[Any] = ()
) -> float | None:
    """Train a run to its end, evaluate its reported checkpoint, and write the results.

    Args:
        config: the whole configuration, checked.
        run: where everything is written; started by the caller.
        report: whether to write report.html.
        callbacks: Lightning's, beside the configuration's.

    Returns:
        The validation accuracy of the reported checkpoint, 0..1; None without a validation set,
        for a dry run (`trainer.fast_dev_run`), and in all processes but the first.

    Raises:
        UserError: the configuration is wrong, or the data or the folder cannot be used.
        DivergenceError: the loss or the weights became infinite or not a number.
    """
    import torch

    from fashion.report import tensorboard
    from fashion.report.evaluation import evaluate
    from fashion.report.metrics import epoch_metrics
    from fashion.report.page import write_report
    from fashion.training.process import fit, return_freed_memory

    fitted = fit(config, run, callbacks)
    if fitted is None:
        return None
    evaluations, temperature = [], None
    splits: list[Literal["val", "test"]] = ["val"] if run.validates else []
    if config.test:
        splits.append("test")
    for split in splits:
        evaluation = evaluate(fitted.classifier, fitted.data, split, temperature=temperature)
        temperature = evaluation.temperature
        evaluations.append(evaluation)
    with deferred_signals():
        metrics = fitted.metrics | epoch_metrics(run.history, fitted.metrics["best_epoch"])
        for evaluation in evaluations:
            predictions = map(torch.from_numpy, (evaluation.probabilities, evaluation.labels))
            metrics |= fitted.classifier.extra_metrics(evaluation.split, *predictions)
            metrics |= evaluation.metrics
            evaluation.write(run)
        tensorboard.write_results(fitted, metrics, evaluations)
        run.update_metrics(metrics)  # from now on the run is finished
        if report:
            for evaluation in evaluations:
                write_report(run, evaluation)
    return_freed_memory()
    return metrics.get("val/acc")


def check(config: DictConfig, *, download_data: bool = True) -> None:
    """Find every error that can be found without importing torch, and prepare the data.

    Args:
        config: the whole configuration.
        download_data: whether missing data may be downloaded to data.root.

    Raises:
        UserError: naming the key, the value and what is allowed; or the data cannot be used.
    """
    from fashion.data import download

    schema.check_run(config)
    data = config.data
    if not schema.is_ours(data._target_) or data.get("dataset", "FashionMNIST") != "FashionMNIST":
        return
    # Absolute, so that it is found from any other folder; Hydra may have changed the current one.
    base = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else None
    data.root = str(download.data_folder(data.root, base=base))
    root = Path(data.root)
    if not download_data and data.official:
        download.verify(root)
    images = download.prepare(root, official=data.official)
    if data.get("folds") is None:
        schema.check_sizes(images, data.val_size, data.batch_size, data.get("train_size"))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _job(config: DictConfig) -> float | None:
    """Train one run of a grid, or the only one."""
    from fashion.runs.run import Run

    output = Path(HydraConfig.get().runtime.output_dir)
    here = Path.cwd()
    inside = output != here and output.is_relative_to(here)
    run = Run(output.relative_to(here) if inside else output)
    base = Path(HydraConfig.get().runtime.cwd)
    schema.anchor(config, base)
    if config.resume is not None:
        os.chdir(base)  # hydra.job.chdir has entered the folder of a new run, which is not used
    alone = HydraConfig.get().mode == RunMode.RUN
    launcher = HydraConfig.get().launcher._target_
    elsewhere = not alone and "BasicLauncher" not in launcher
    if elsewhere and "joblib" in launcher:  # the lines of several runs would mix
        config.trainer.enable_progress_bar = False
    try:
        schema.start_afresh(config, schema.task_overrides())
        done = (train_one if alone else _run_of_grid)(config, run)
        return done.metrics.get("val/acc") if done.finished else None
    except Interrupted as interrupted:
        if not alone:
            interrupted.add_note("The same command again continues the grid.")
        raise
    except Exception as error:  # one failing run must not cost the others
        _remove_if_empty(run.folder)
        cause = innermost(error)
        if elsewhere:  # in another process: Hydra raises the first one in `main`
            cause.add_note(f"This was {run.folder}; other runs of the grid have gone on.")
            raise cause from error
        # Raised again when Hydra is done, which would print a line of its own before the message.
        FAILURES[None if alone else run.folder] = cause
        if not alone and not isinstance(cause, UserError):
            traceback.print_exc()
        return None


def train_one(config: DictConfig, run: "Run") -> "Run":
    """Train one run as the command does, or continue the one that `resume` names.

    Hydra's configuration must be set (`HydraConfig`). Prints what the command prints.

    Args:
        config: the whole configuration.
        run: where everything is written. If another run of the same second has that folder, a new
            folder beside it is used.

    Returns:
        The run that was trained: finished, but for `trainer.fast_dev_run`.

    Raises:
        UserError, Interrupted: with a note on how to continue the run, if it can be continued.
    """
    from fashion.runs.resume import to_resume

    resumed = config.resume is not None
    if resumed:
        schema.check(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
        _remove_if_empty(run.folder)
        run, config, remarks = to_resume(config, schema.task_overrides())
        for remark in remarks:
            print(f"note: {run.folder}: {remark}")
        if run.finished and config.trainer.max_epochs == run.config.trainer.max_epochs:
            print(f"{run.folder} is finished.")
            _summarize(run)
            return run
    try:
        check(config, download_data=not resumed)  # a received run could name any folder
        # Of several processes of one training, the first one writes the folder.
        first = _rank(config.trainer) == 0
        start = _started(config, run, resumed=resumed) if first else run.join(config)
        with start as run:
            train(config, run, report=_wants_report(config))
    except (UserError, Interrupted) as error:
        _remove_if_empty(run.folder)
        diverged = isinstance(error, DivergenceError)  # as it would again
        if run.last_checkpoint.exists() and not run.finished and not diverged:
            error.add_note(f"Continue with\n  {run.resume_command}")
        raise
    if config.trainer.get("fast_dev_run"):
        if first:
            run.discard()
            _remove_if_empty(run.folder)
            print("Dry run (trainer.fast_dev_run): everything runs; no run was kept.")
    elif first:
        _summarize(run)
    return run


@contextlib.contextmanager
def _started(config: DictConfig, run: "Run", *, resumed: bool) -> Iterator["Run"]:
    """Start a run; if another run of the same second has its folder, use one beside it."""
    from fashion.runs.run import BusyError, Run

    hydra_config = HydraConfig.get()
    fixed = resumed or hydra_config.mode != RunMode.RUN or _named(hydra_config)
    folder = run.folder
    with contextlib.ExitStack() as stack:
        for number in itertools.count(2):
            try:
                stack.enter_context(run.start(config, hydra_config, extend=resumed))
                break
            except UserError as error:
                taken = isinstance(error, BusyError) or (run.folder / ".hydra").exists()
                if fixed or not taken:
                    raise
                run = Run(folder.with_name(f"{folder.name}-{number}"))
        yield run


def _run_of_grid(config: DictConfig, run: "Run") -> "Run":
    schema.check_run(config)
    if config.resume is not None:
        raise UserError(
            "resume continues one run, without -m; a grid is continued by its own command."
        )
    if config.test:
        raise UserError("test = true: a grid is for choosing, which never reads the test set.")
    trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
    if not schema.in_one_process(trainer):
        raise UserError(
            f"trainer.devices = {trainer.get('devices', 1)}, trainer.num_nodes = "
            f"{trainer.get('num_nodes', 1)}: Lightning would start other processes by the same "
            "command line, and each would begin the grid anew. Start such runs one by one."
        )
    if run.finished:
        if not run.same_configuration(config):
            raise UserError(
                f"{run.folder} holds a finished run of another configuration; "
                "give this grid a folder of its own with sweep=NAME."
            )
        print(f"Finished before: {run.folder}")
    else:
        print(f"\nRun {run.folder}")
        run = train_one(config, run)
    return run


def _rank(trainer: DictConfig) -> int:
    """Return this process's rank among those of its training.

    Raises:
        UserError: it is one of several processes, and the training is to run in one.
    """
    flags: Any = OmegaConf.to_container(trainer, resolve=True)
    several = not schema.in_one_process(flags)
    if several and int(os.environ.get("SLURM_NTASKS") or 1) > 1:
        return int(os.environ.get("SLURM_PROCID") or 0)
    rank = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)
    if rank and several and "MASTER_PORT" not in os.environ:
        raise UserError(
            f"This process has rank {rank} of several (RANK, LOCAL_RANK), and MASTER_PORT does not "
            "say where the others are. Unset RANK and LOCAL_RANK, or start all by torchrun."
        )
    if rank and not several:
        raise UserError(
            f"This process has rank {rank} of several (RANK, LOCAL_RANK), and trainer.devices = "
            f"{trainer.get('devices', 1)} trains in one process. Set trainer.devices to the number "
            "of processes, or unset RANK and LOCAL_RANK."
        )
    return rank


def _wants_report(config: DictConfig) -> bool:
    alone = HydraConfig.get().mode == RunMode.RUN
    return bool(alone if config.report is None else config.report)


def keep_folders(arguments: Sequence[str]) -> None:
    """Record the existing folders that a command line names: a refused run must not remove them."""
    EXISTED.clear()
    EXISTED.update(schema.existing_folders(arguments))


def _remove_if_empty(folder: Path) -> None:
    """Remove the folders that Hydra makes before anything can be checked, but none of `EXISTED`."""
    folder = folder.resolve()
    with contextlib.suppress(OSError):
        for made in (folder, *folder.parents):
            if made in EXISTED:
                break
            made.rmdir()


def _named(hydra_config: Any) -> bool:
    """Return whether the user has named the run's folder."""
    return any("run.dir=" in each for each in hydra_config.overrides.hydra)


def _summarize(run: "Run") -> None:
    from fashion.report.evaluation import summary
    from fashion.runs.untrusted import foreign_targets

    metrics = run.metrics
    report = run.folder / "report.html"
    lines = [summary(metrics, split) for split in ("val", "test") if f"{split}/acc" in metrics]
    if "stopped" in metrics:
        lines.append(f"{metrics['stopped'][0].upper()}{metrics['stopped'][1:]}.")
    if report.exists():
        lines.insert(0, f"Report {report.resolve().as_uri()}")
    lines.append(
        f"{metrics['parameters']:,} parameters, {metrics['seconds']:.0f} s, "
        f"{metrics['images_per_second']:,.0f} images per second"
    )
    if HydraConfig.get().mode == RunMode.RUN:
        built: Any = {key: OmegaConf.to_container(run.config[key]) for key in ("data", "model")}
        options = [] if run.validates else ["--split", "test"]
        options += ["--trust"] if foreign_targets(built) else []
        lines += [f"Run folder {run.folder}", "Next:", f"  {run.command('evaluate', *options)}"]
        if any(run.folder.glob("events.out.tfevents.*")):
            lines.append(f"  {shlex.join(['tensorboard', '--logdir', str(run.folder.parent)])}")
    else:
        lines.insert(0, f"Finished {run.folder}")
    print("\n".join(lines))


class ShowGrid(SetHydraConfig):
    """Hydra's callback that prints the table of a grid, whichever processes have trained it."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from fashion.report import table
        from fashion.runs.run import Run

        folder = Path(config.hydra.sweep.dir)
        finished = [run.folder for run in Run.find(folder) if run.finished]
        if len(finished) < 2:  # noqa: PLR2004 - a table needs two rows
            return
        try:
            text = table.render_markdown(table.compare(finished))
        except UserError as error:  # such as runs without a validation set
            text = f"{error}\n"
        command = shlex.join(["python", "-m", "fashion.compare", str(folder)])
        print(f"\n{text}\n{command} shows this again.")


EXISTED: set[Path] = set()  # folders that the command line names, before Hydra makes them
FAILURES: dict[Path | None, BaseException] = {}  # by run folder; None for a run outside grids


def main() -> None:
    FAILURES.clear()
    with cli_errors():
        print_help(__doc__ or "")
        sys.argv[1:] = schema.expand_home(sys.argv[1:])
        schema.refuse_hidden_files(sys.argv[1:])
        keep_folders(sys.argv[1:])
        try:
            _job()
        except Exception as error:  # a run's own is in FAILURES: this one is the command line's
            raise UserError(message(innermost(error))) from error
        if None in FAILURES:
            raise FAILURES[None]
        if FAILURES:
            lines = [f"  {folder}: {message(error)}" for folder, error in FAILURES.items()]
            raise UserError("\n".join([f"{len(FAILURES)} run(s) of the grid failed:", *lines]))


if __name__ == "__main__":
    main()
