"""Train one run, or a grid of them (Hydra).

python -m fashion.train model=best                       one run
python -m fashion.train -m model=linear,cnn seed=0,1,2   a grid; again: what is left of it
"""

import contextlib
import os
import traceback
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fashion import UserError, idx, schema
from fashion.command import clear_errors, mistake
from fashion.evaluate import SPLITS, evaluate, summary, write_report
from fashion.run import Run, provenance

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
    "label_smoothing": schema.Share,
    "checkpoint": Literal["best", "last"],
    "test": bool,
    "report": bool | None,
    "name": str,
    "sweep": str,
}


def check(config: DictConfig) -> None:
    """Find every mistake that can be found without importing torch.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    schema.check(OmegaConf.to_container(config, resolve=True), SETTINGS)  # type: ignore[arg-type]
    if not config.data.val_size and config.callbacks.early_stopping:
        raise UserError(
            "data.val_size = 0 leaves nothing to stop early on: "
            "add callbacks.early_stopping=null, or hold pictures out."
        )
    if config.data.official:
        idx.ensure(Path(config.data.root))
    else:
        idx.ensure_consistent(Path(config.data.root))


def train(config: DictConfig, run: Run) -> float | None:
    """Train, write the run folder, and return the reported checkpoint's validation accuracy.

    That is 0..1, of the epoch that validation chose; None where there is no validation split.

    Raises:
        UserError: the configuration, the data or the folder does not allow it.
    """
    import lightning.pytorch as pl
    import torch
    from hydra.utils import instantiate

    from fashion.callbacks import EpochSeed, Stopwatch
    from fashion.classifier import Classifier
    from fashion.trainer import prepare_process

    prepare_process()
    pl.seed_everything(config.seed, verbose=False)
    data = instantiate(config.data, config.seed)
    data.setup("fit")
    classifier = Classifier(
        instantiate(config.model.network, _convert_="all"),
        instantiate(config.optimizer),
        instantiate(config.augmentation),
        label_smoothing=config.label_smoothing,
    )
    stopwatch = Stopwatch()
    callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback]
    trainer = instantiate(
        config.trainer,
        run,
        [EpochSeed(config.seed), stopwatch, *callbacks],
        bool(config.data.val_size),
    )
    trainer.fit(classifier, datamodule=data)
    metrics = {
        "seed": config.seed,
        "best_epoch": torch.load(run.reported_checkpoint, weights_only=True)["epoch"] + 1,
        "epochs": trainer.current_epoch,
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "seconds": stopwatch.seconds,
        "images_per_second": stopwatch.images_per_second,
        **provenance(),
    }
    if config.data.val_size:
        metrics |= evaluate(run, "val", data)
    if config.test:
        metrics |= evaluate(run, "test", data)
    # HPARAMS: what the run was given beside what it reports.
    trainer.logger.log_hyperparams(
        OmegaConf.to_container(config, resolve=True),
        {f"reported/{key}": value for key, value in metrics.items() if isinstance(value, float)},
    )
    run.update_metrics(metrics)
    alone = HydraConfig.get().mode == RunMode.RUN
    if config.data.val_size and (alone if config.report is None else config.report):
        write_report(run, "val", data)
    return metrics.get("val/acc")


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
        return _run(config, run) if alone else _run_of_grid(config, run)
    except Exception as error:  # noqa: BLE001 - one failing run must not cost the others
        # Raised again when Hydra is done, which would print a line of its own before the message.
        FAILURES[None if alone else run.folder] = mistake(error)
        if not alone and not isinstance(mistake(error), UserError):
            traceback.print_exc()
        return None


def _run(config: DictConfig, run: Run) -> float | None:
    try:
        check(config)
        with run.claim(config, HydraConfig.get()):
            value = train(config, run)
    except UserError:
        # Hydra made the folder before anything could be checked.
        with contextlib.suppress(OSError):
            run.folder.rmdir()
        raise
    _summarise(run)
    return value


def _run_of_grid(config: DictConfig, run: Run) -> float | None:
    schema.check(OmegaConf.to_container(config, resolve=True), SETTINGS)  # type: ignore[arg-type]
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
    with clear_errors():
        try:
            _job()
        except Exception as error:  # a run's own is in FAILURES: this one is the command line's
            raise UserError(str(error)) from error
        if None in FAILURES:
            raise FAILURES[None]
        if FAILURES:
            lines = [f"  {folder}: {error}" for folder, error in FAILURES.items()]
            raise UserError("\n".join([f"{len(FAILURES)} run(s) of the grid failed:", *lines]))


if __name__ == "__main__":
    main()
