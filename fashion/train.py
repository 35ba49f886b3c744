"""Train one run, or a grid of them (Hydra).

python -m fashion.train model=best                       one run
python -m fashion.train -m model=linear,cnn seed=0,1,2   a grid; again: what is left of it
python -m fashion.train resume=RUN                       a run that was interrupted, to its end
"""

import contextlib
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fashion import config as schema
from fashion.data import download as idx
from fashion.errors import (
    DivergenceError,
    Interrupted,
    UserError,
    cli_errors,
    deferred_signals,
    innermost,
    message,
)
from fashion.evaluate import SPLITS, evaluate, summary, write_report
from fashion.runs.run import METADATA_KEYS, Run, provenance

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from fashion.data.datamodule import FashionMNIST
    from fashion.training.classifier import Classifier
    from fashion.training.process import EventLogger

ABSENT = object()
CONF = Path(__file__).parent.parent / "conf"
# Types of the top-level keys; what a section with a `_target_` holds, its target's signature says.
SETTINGS = {
    "data": dict,
    "model": dict[str, dict[str, Any]],
    "augmentation": dict,
    "optimizer": dict,
    "trainer": dict,
    "callbacks": dict[str, dict[str, Any] | None],
    "seed": schema.Seed,
    "resume": str | None,
    "label_smoothing": schema.Fraction,
    "checkpoint": Literal["best", "last"],
    "test": bool,
    "report": bool | None,
    "name": str,
    "sweep": str,
}


def check(config: DictConfig, *, bring: bool = True) -> None:
    """Find every mistake that can be found without importing torch.

    Args:
        config: the whole configuration.
        bring: whether data that is missing may be brought to data.root.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    schema.check(OmegaConf.to_container(config, resolve=True), SETTINGS)  # type: ignore[arg-type]
    if not config.data.val_size and config.callbacks.early_stopping:
        raise UserError(
            "data.val_size = 0 leaves nothing to stop early on: "
            "add callbacks.early_stopping=null, or hold pictures out."
        )
    root = Path(config.data.root)
    if config.data.official:
        (idx.ensure if bring else idx.verify)(root)
    else:
        idx.ensure_consistent(root)
    schema.check_sizes(idx.training_pictures(root), config.data.val_size, config.data.batch_size)


def train(
    config: DictConfig, run: Run, *, report: bool, callbacks: Sequence["Callback"] = ()
) -> float | None:
    """Train, write the run folder, and return the reported checkpoint's validation accuracy.

    That is 0..1; None where there is no validation split. A run that has a last checkpoint goes on
    from there, as if it had never been interrupted.

    Args:
        config: the whole configuration.
        run: where everything is written; claimed by the caller.
        report: whether to write report.html.
        callbacks: beside the configuration's.

    Raises:
        UserError: the configuration, the data or the folder does not allow it.
        DivergenceError: the loss or the weights became infinite or not a number.
    """
    import lightning.pytorch as pl
    import torch
    from hydra.utils import instantiate

    from fashion.training.callbacks import Checkpoints, EpochSeed, InterruptBetweenBatches, Timing
    from fashion.training.classifier import Classifier, read_checkpoint
    from fashion.training.process import prepare_process, return_freed_memory

    made = provenance()  # before anyone can change the code that is at work
    prepare_process()
    pl.seed_everything(config.seed, verbose=False)
    augmentation = instantiate(config.augmentation, config.trainer.max_epochs)
    data = instantiate(config.data, config.seed, augmentation)
    data.setup("fit")
    steps = config.trainer.max_epochs * min(
        data.steps, config.trainer.limit_train_batches or data.steps
    )
    classifier = Classifier(
        instantiate(config.model.network, _convert_="all"),
        instantiate(config.optimizer, steps=steps),
        label_smoothing=config.label_smoothing,
    )
    # What does not suit the network is refused before anything is written.
    _refuse_lone_pictures(classifier, data, config.trainer.devices)
    classifier.configure_optimizers()
    before = run.last_checkpoint if run.last_checkpoint.exists() else None
    steps_before = read_checkpoint(before)["global_step"] if before else 0
    stopwatch = Timing()
    validates = bool(config.data.val_size)
    checkpoints = Checkpoints(run, validates=validates)
    configured = [instantiate(callback) for callback in config.callbacks.values() if callback]
    try:
        with deferred_signals() as signals:
            trainer = instantiate(
                config.trainer,
                run,
                [
                    InterruptBetweenBatches(signals.listen, signals.raise_noted),
                    EpochSeed(config.seed),
                    stopwatch,
                    *configured,
                    *callbacks,
                    checkpoints,
                ],
                steps_before,
                validates,
            )
            trainer.fit(classifier, datamodule=data, ckpt_path=before, weights_only=True)
    except OSError as error:
        raise UserError(f"{run.folder} cannot be written: {error.strerror or error}.") from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"data.batch_size = {config.data.batch_size}: there is too little memory for so many "
            f"pictures at once in this network, or for the network ({str(error).split('. ')[0]})."
        ) from error
    except (DivergenceError, Interrupted) as error:
        error.add_note(f"There are {checkpoints}")
        raise
    if not trainer.is_global_zero:
        return None
    metrics = {
        "seed": config.seed,
        "best_epoch": read_checkpoint(run.reported_checkpoint)["epoch"] + 1,
        "epochs": checkpoints.epochs,
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "seconds": stopwatch.seconds,
        "images_per_second": stopwatch.images_per_second,
        "precision": trainer.precision,
        **made,
    }
    if validates:
        metrics |= evaluate(run, "val", data)
    if config.test:
        metrics |= evaluate(run, "test", data, temperature=metrics.get("val/temperature"))
    # After the last checkpoint's step: a run killed here and continued does not log this twice.
    _write_results(run, trainer.logger, trainer.global_step + 1, metrics, data)
    if report and validates:
        write_report(run, "val", data)
    return_freed_memory()
    return metrics.get("val/acc")


def _refuse_lone_pictures(classifier: "Classifier", data: "FashionMNIST", processes: int) -> None:
    """Raises UserError: a dense layer's batch normalisation would see a single picture."""
    from torch import nn

    smallest = len(data.train) % data.batch_size or data.batch_size
    if smallest < 2 * processes and any(
        isinstance(module, nn.BatchNorm1d) for module in classifier.modules()
    ):
        raise UserError(
            f"data.batch_size = {data.batch_size}: of {len(data.train):,} pictures the last batch "
            f"has {smallest}, and batch normalisation needs two at least in each process."
        )


def _write_results(
    run: Run,
    logger: "EventLogger",
    step: int,
    metrics: dict[str, Any],
    data: "FashionMNIST",
) -> None:
    """Finish the run: metrics.json, and what TensorBoard shows beside the curves."""
    from fashion.report import tensorboard as board
    from fashion.training.classifier import load_classifier

    with deferred_signals():
        # HPARAMS: what the run was given beside what it reports, without the single classes.
        # Accuracy comes first, since of many columns TensorBoard shows five.
        logger.log_hyperparams(
            OmegaConf.to_container(run.config),  # type: ignore[arg-type]
            {
                f"reported/{key}": value
                for key, value in sorted(metrics.items(), key=lambda item: "/" not in item[0])
                if isinstance(value, float) and key.count("/") <= 1
            },
            step=step,
        )
        run.update_metrics(metrics)
        writer, network = logger.experiment, load_classifier(run).network
        board.write_graph(writer, network)
        if run.validates:
            board.write_review(writer, step, network, run.predictions("val"), data.val)
        writer.close()  # Lightning has closed the one before, of training; each has a thread


def _summarise(run: Run) -> None:
    metrics = run.metrics
    lines = [summary(metrics, split) for split in SPLITS if f"{split}/acc" in metrics]
    lines += [
        (
            f"{metrics['parameters']:,} parameters, {metrics['seconds']:.0f} s, "
            f"{metrics['images_per_second']:,.0f} images per second"
        ),
        f"Run folder {run.folder}",
        "Next:",
        f"  tensorboard --logdir {run.folder.parent}",
        f"  python -m fashion.evaluate {run.folder}",
    ]
    print("\n".join(lines))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _job(config: DictConfig) -> float | None:
    """One run of a grid, or the only one."""
    run = Run(Path(os.path.relpath(HydraConfig.get().runtime.output_dir)))
    alone = HydraConfig.get().mode == RunMode.RUN
    try:
        return (_run if alone else _run_of_grid)(config, run)
    except Interrupted as interrupted:
        if not alone:
            interrupted.add_note("The same command again continues the grid.")
        raise
    except Exception as error:  # one failing run must not cost the others
        _remove_if_empty(run.folder)
        if not alone and "BasicLauncher" not in HydraConfig.get().launcher._target_:
            raise innermost(error) from error  # a cluster's job: Hydra brings it back to `main`
        # Raised again when Hydra is done, which would print a line of its own before the message.
        FAILURES[None if alone else run.folder] = innermost(error)
        if not alone and not isinstance(innermost(error), UserError):
            traceback.print_exc()
        return None


def _run(config: DictConfig, run: Run) -> float | None:
    resumed = config.resume is not None
    if resumed:
        _remove_if_empty(run.folder)
        schema.check(OmegaConf.to_container(config, resolve=True), SETTINGS)  # type: ignore[arg-type]
        run, config = _to_resume(config, HydraConfig.get().overrides.task)
        if run.finished and config.trainer.max_epochs == run.config.trainer.max_epochs:
            print(f"{run.folder} is finished.")
            _summarise(run)
            return run.metrics.get("val/acc")
    try:
        check(config, bring=not resumed)  # a stranger's run may name any folder
        # Lightning starts helper processes by the same command; the first one writes the folder.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        claim = run.claim(config, HydraConfig.get(), extend=resumed)
        with claim if first else contextlib.nullcontext():
            value = train(config, run, report=_wants_report(config))
    except (UserError, Interrupted) as error:
        _remove_if_empty(run.folder)
        diverged = isinstance(error, DivergenceError)  # as it would again
        if run.last_checkpoint.exists() and not run.finished and not diverged:
            error.add_note(f"Continue with\n  {run.resume_command}")
        raise
    if first:
        _summarise(run)
    return value


def _wants_report(config: DictConfig) -> bool:
    alone = HydraConfig.get().mode == RunMode.RUN
    return bool(alone if config.report is None else config.report)


def _remove_if_empty(folder: Path) -> None:
    """Hydra makes a run's folder before anything can be checked."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _to_resume(config: DictConfig, overrides: Sequence[str]) -> tuple[Run, DictConfig]:
    """The run that `resume` names, and its own configuration with what may be changed in it.

    Raises:
        UserError: there is no such run, or an override says otherwise than its configuration.
    """
    run = Run.open(Path(config.resume))
    own = run.config
    try:
        schema.check(OmegaConf.to_container(own), SETTINGS)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{run.folder} cannot be continued: {error}") from error
    merged = own.copy()
    differences = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key == "resume":
            continue
        given, kept = (OmegaConf.select(each, key, default=ABSENT) for each in (config, own))
        longer = key == "trainer.max_epochs" and given > kept
        if key in METADATA_KEYS or longer:
            OmegaConf.update(merged, key, given)
        elif given is ABSENT or given != kept:
            differences.append(f"  {override.input_line}")
    if differences:
        raise UserError(
            f"{run.folder} goes on with its own configuration, which does not say\n"
            + "\n".join(differences)
            + "\nLeave that out, or start another run. Only trainer.max_epochs may be larger."
        )
    if run.finished and merged.trainer.max_epochs > own.trainer.max_epochs:
        epochs = run.metrics.get("epochs")
        if epochs != own.trainer.max_epochs:
            raise UserError(
                f"{run.folder} is finished: it stopped early, after {epochs} epochs, so that more "
                "of them would not be used."
            )
        from fashion.training.classifier import read_checkpoint

        read_checkpoint(run.last_checkpoint)  # now: once it is claimed, the run is unfinished
    return run, merged


def _run_of_grid(config: DictConfig, run: Run) -> float | None:
    schema.check(OmegaConf.to_container(config, resolve=True), SETTINGS)  # type: ignore[arg-type]
    if config.resume is not None:
        raise UserError(
            "resume continues one run, without -m; a grid is continued by its own command."
        )
    if config.test:
        raise UserError("test = true: a grid is for choosing, which never reads the test set.")
    if config.trainer.devices > 1:
        raise UserError(
            f"trainer.devices = {config.trainer.devices}: Lightning starts the other processes by "
            "the same command line, and each would begin the grid anew. Start such runs one by one."
        )
    if run.finished:
        if not run.same_configuration(config):
            raise UserError(
                f"{run.folder} holds a finished run of another configuration; "
                "give this grid a folder of its own with sweep=NAME."
            )
        print(f"Finished before: {run.folder}")
        return run.metrics.get("val/acc")
    print(f"\nRun {run.folder}")
    return _run(config, run)


FAILURES: dict[Path | None, Exception] = {}  # by run folder; None for a run that is no grid's


def main() -> None:
    FAILURES.clear()
    with cli_errors():
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
