"""One training process: build what a configuration names, fit it, and return the result."""

import ctypes
import logging
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fashion.config import NonNegativeInt, at_home, build
from fashion.data.datamodule import BatchLoader, FashionMNIST, class_names, from_config
from fashion.errors import (
    DivergenceError,
    Interrupted,
    UserError,
    deferred_signals,
    restore_default_signals,
)
from fashion.runs import untrusted
from fashion.runs.files import atomic_write
from fashion.runs.provenance import machine, provenance
from fashion.runs.run import Run
from fashion.training.callbacks import (
    EpochSeed,
    EpochTable,
    History,
    InterruptBetweenBatches,
    Timing,
)
from fashion.training.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    progress,
)
from fashion.training.classifier import Classifier, load_weights
from fashion.training.fast_path import ChunkedClassifier, why_not
from fashion.training.networks import Ensemble
from fashion.training.threads import Threads, fastest_threads, kept_threads, threads

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


@dataclass
class Fit:
    """A finished training, in memory.

    Attributes:
        run: whose folder holds the checkpoints and the history.
        classifier: with the weights of the reported checkpoint, in evaluation mode, on the CPU.
        data: the run's data.
        trainer: as the fit left it.
        metrics: the training's part of metrics.json: epochs, seconds, parameters, versions, ...
    """

    run: Run
    classifier: Classifier
    data: FashionMNIST
    trainer: pl.Trainer
    metrics: dict[str, Any]

    @property
    def tensorboard(self) -> TensorBoardLogger | None:
        """Return the TensorBoard logger, if there is one."""
        loggers = (each for each in self.trainer.loggers if isinstance(each, TensorBoardLogger))
        return next(loggers, None)


def fit(config: DictConfig, run: Run, callbacks: Sequence[Callback] = ()) -> Fit | None:
    """Train, or continue from the last checkpoint with the same result as without interruption.

    Args:
        config: the whole configuration, checked.
        run: where everything is written; started by the caller.
        callbacks: beside the configuration's.

    Returns:
        The finished training; None in all processes but the first, and for a dry run
        (`trainer.fast_dev_run`), of which nothing is kept.

    Raises:
        UserError: the configuration is wrong, or the data or the folder cannot be used.
        DivergenceError: the loss or the weights became infinite or not a number.
    """
    made = provenance()  # now, because the code in the checkout may change while it runs
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    prepare_process()
    pl.seed_everything(config.seed, verbose=False)
    data = from_config(plain["data"], config.seed, _augmentation(plain))
    data.prepare_data()
    data.setup("fit")
    validates = run.validates
    configured = {
        name: build(f"callbacks.{name}", section, offered={"dirpath": run.checkpoints})
        for name, section in plain["callbacks"].items()
        if section and (validates or not _watches_validation(section))
    }
    reason = why_not(
        data.batch_size,
        plain["trainer"] | {"devices": processes(plain["trainer"])},
        [*configured.values(), *callbacks],
        optimizer=plain["optimizer"],
        scheduler=plain["scheduler"],
    )
    classifier = _classifier(plain, data, chunked=reason is None)
    if config.init_from and not run.last_checkpoint.exists():
        _start_from(classifier, config.init_from, trust=config.trust)
    _refuse_small_batches(classifier, data, plain["trainer"])
    classifier.check_output()
    # Refuse an optimizer that does not suit the network before anything is written.
    optimizer: Any = classifier.configure_optimizers()["optimizer"]
    if config.compile:
        classifier.network.compile()
    before = run.last_checkpoint if run.last_checkpoint.exists() else None
    earlier = untrusted.read_checkpoint(before) if before else {}
    keep_threads = Threads(torch.get_num_threads())
    timing, last = Timing(), LastCheckpoint(run.last_checkpoint)
    best = next((c for c in configured.values() if isinstance(c, BestCheckpoint)), None)
    shown = plain["trainer"].get("enable_progress_bar", True)
    bar = next((c for c in configured.values() if isinstance(c, ProgressBar)), None)
    try:
        with _user_errors(run, config), deferred_signals() as signals, _no_traceback_of_writers():
            trainer = build_trainer(
                plain["trainer"],
                run,
                [
                    InterruptBetweenBatches(signals.listen, signals.raise_noted),
                    EpochSeed(config.seed),
                    keep_threads,
                    timing,
                    *[c for c in configured.values() if c is not best],
                    *callbacks,
                    History(run.folder / "history.csv", timing),
                    *([EpochTable(timing)] if shown and bar is None else []),
                    *([best] if best else []),
                    last,
                ],
                build_loggers(plain["logger"], run, earlier.get("global_step", 0)),
                progress_bar=shown and bar is not None,
            )
            keep_threads.number = _threads(trainer, classifier, data, plain, earlier)
            if trainer.world_size > 1:
                restore_default_signals()  # until training starts, processes wait for each other
            notes = _notes(keep_threads.number, reason)
            root = trainer.strategy.root_device
            with threads(keep_threads.number), _tensor_float_32(root), _logged(trainer, plain):
                if shown and trainer.is_global_zero:
                    print(_heading(classifier, optimizer, data, trainer, notes), flush=True)
                trainer.fit(classifier, datamodule=data, ckpt_path=before, weights_only=True)
    except (DivergenceError, Interrupted) as error:
        error.add_note(progress(last, best))
        raise
    if not trainer.is_global_zero or config.trainer.get("fast_dev_run"):
        return None
    if run.epoch_chosen and (best is None or best.score is None):  # by no validation
        with atomic_write(run.reported_checkpoint) as file:
            file.write(run.last_checkpoint.read_bytes())
    content = untrusted.read_checkpoint(run.reported_checkpoint)
    classifier = classifier.to("cpu", torch.float32)  # also after a training in bf16-true
    load_weights(classifier, content, run.reported_checkpoint)
    metrics = {
        "seed": config.seed,
        "best_epoch": content["epoch"] + 1,
        "epochs": last.epochs,
        **_stopped(configured.values(), plain, last.epochs),
        "parameters": sum(parameter.numel() for parameter in classifier.network.parameters()),
        "seconds": timing.seconds,
        "images_per_second": timing.images_per_second,
        "precision": trainer.precision,
        "threads": keep_threads.number,
        "device": _device(root),
        **made,
        "machine": machine(keep_threads.number),  # `made` counts them before they are chosen
    }
    return Fit(run, classifier.eval(), data, trainer, metrics)


def _threads(
    trainer: pl.Trainer,
    classifier: Classifier,
    data: FashionMNIST,
    plain: Mapping[str, Any],
    earlier: dict[str, Any],
) -> int:
    """Return the number of threads: configured, as before the interruption, or measured."""
    flags = plain["trainer"]
    if number := flags.get("threads") or kept_threads(earlier):
        return int(number)
    loader = data.train_dataloader()
    measurable = isinstance(loader, BatchLoader) and trainer.world_size == 1
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if not (measurable and on_cpu) or flags.get("deterministic") or flags.get("fast_dev_run"):
        return torch.get_num_threads()
    return fastest_threads(classifier, loader, trainer.precision_plugin)


@contextmanager
def _tensor_float_32(device: torch.device) -> Iterator[None]:
    """Multiply fp32 matrices on a GPU in TF32, as PyTorch's convolutions there do by default."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _logged(trainer: pl.Trainer, plain: dict[str, Any]) -> Iterator[None]:
    """Log the configuration; at the end close wandb, which would stay open for the next run."""
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):  # which gets it with the results
            logger.log_hyperparams(plain)
    try:
        yield
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()


@contextmanager
def _user_errors(run: Run, config: DictConfig) -> Iterator[None]:
    """Turn exceptions that the user can fix into UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{run.folder} cannot be written: {error.strerror or error}.") from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"data.batch_size = {config.data.get('batch_size')}: there is too little memory for so "
            f"many images at once in this network, or for the network "
            f"({str(error).split('. ')[0]})."
        ) from error
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"data.batch_size = {config.data.get('batch_size')}: a batch has a single image, and "
            "batch normalization needs two."
        ) from error
    except RuntimeError as error:
        if processes(config.trainer) == 1 or "peer" not in str(error):
            raise
        raise UserError(
            "Another process of this training has ended, and this one cannot go on alone."
        ) from error


def _watches_validation(section: Mapping[str, Any]) -> bool:
    """Return whether a callback of this project monitors a validation metric."""
    ours = str(section["_target_"]).startswith("fashion.")
    return ours and str(section.get("monitor", "val/")).startswith("val/")


def _augmentation(plain: Mapping[str, Any]) -> Any:
    sizes = {"num_classes": len(class_names(plain["data"]))}
    section = plain["augmentation"]
    return section and build("augmentation", section, offered=sizes, inside=sizes)


def _classifier(plain: dict[str, Any], data: FashionMNIST, *, chunked: bool) -> Classifier:
    """Build the classifier; if `chunked`, the one that takes several batches per call."""
    trainer = plain["trainer"]
    epochs = trainer.get("max_epochs") or -1
    limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches")
    batches = data.steps
    if isinstance(limit, float):
        batches = int(batches * limit)
    elif limit is not None:
        batches = min(batches, limit)
    per_epoch = -(-batches // trainer.get("accumulate_grad_batches", 1))
    steps = epochs * per_epoch if epochs > 0 else -1
    if (most := trainer.get("max_steps", -1)) > 0 and (steps < 0 or most < steps):
        steps = most
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    options: dict[str, Any] = {
        "steps": (steps, per_epoch, batches),
        "class_counts": counts.tolist(),
        "classes": data.classes,
        "resolution": data.resolution,
    }
    data.chunked = chunked
    if chunked:
        options["batch_size"] = data.batch_size
    return (ChunkedClassifier if chunked else Classifier)(
        plain["model"]["network"],
        plain["optimizer"],
        scheduler=plain["scheduler"],
        loss=plain["loss"],
        metrics={name: section for name, section in plain["metrics"].items() if section},
        **options,
    )


def _start_from(classifier: Classifier, folder: str, *, trust: bool) -> None:
    """Load another run's reported weights; those of other names or shapes are left out."""
    source = Run.open(at_home(folder), trust=trust)
    given = untrusted.read_checkpoint(source.reported_checkpoint)["state_dict"]
    given = {key: v for key, v in given.items() if key.startswith("network.")}
    own = {key: v for key, v in classifier.state_dict().items() if key.startswith("network.")}
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise UserError(f"init_from = {folder}: none of its weights fits this network.")
    if other := sorted(own.keys() - fitting.keys()):
        print(f"init_from = {folder}: these begin at random: {', '.join(other)}.")
    classifier.load_state_dict(fitting, strict=False)


def _refuse_small_batches(
    classifier: Classifier, data: FashionMNIST, trainer: Mapping[str, Any]
) -> None:
    """Raise UserError if the last batch has too few images.

    A dense layer's batch normalization needs two, and each network of an ensemble one.
    """
    modules = list(classifier.network.modules())
    members = max((len(each.members) for each in modules if isinstance(each, Ensemble)), default=0)
    normalizes = any(isinstance(module, nn.BatchNorm1d) for module in modules)
    smallest = len(data.train) % data.batch_size or data.batch_size
    for least, who in (2 * normalizes, "batch normalization"), (members, "model.network.members"):
        if smallest < least * processes(trainer):
            raise UserError(
                f"data.batch_size = {data.batch_size}: of {len(data.train):,} images the last "
                f"batch has {smallest}, and {who} needs at least {least} in each process."
            )


def _stopped(callbacks: Any, plain: Mapping[str, Any], epochs: int) -> dict[str, str]:
    """Return why a training ended before its last epoch, if it did."""
    planned = plain["trainer"].get("max_epochs") or -1
    if not 0 < epochs < planned:
        return {}
    text = f"stopped after {epochs} of {planned} epochs"
    for stopper in (callback for callback in callbacks if isinstance(callback, EarlyStopping)):
        if stopper.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            text += f": {stopper.monitor} no better for {stopper.wait_count}"
        elif stopper.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC:
            text += f": {stopper.monitor} was not finite"
        elif stopper.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            text += f": {stopper.monitor} reached a threshold"
    if (schedule := plain["optimizer"].get("schedule", "constant")) != "constant":
        text += f"; the {schedule} schedule had not come to its end"
    return {"stopped": text}


def _notes(number: int, reason: str | None) -> list[str]:
    """Return notes on threads that are not used and on the slower loop."""
    notes = []
    if number < (most := torch.get_num_threads()):
        notes.append(f"Not all {most} threads, which are no faster now (trainer.threads={number}).")
    if reason:
        notes.append(f"One batch per step of Lightning's loop, because of {reason}.")
    return notes


def _heading(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    data: FashionMNIST,
    trainer: pl.Trainer,
    notes: Sequence[str],
) -> str:
    """Return a line on network and optimizer, one on data and device, and the notes."""
    parameters = sum(parameter.numel() for parameter in classifier.network.parameters())
    what = [
        f"{type(classifier.network).__name__}, {parameters:,} parameters",
        f"{type(optimizer).__name__} lr={optimizer.param_groups[0]['lr']:g}",
    ]
    device, count = _device(trainer.strategy.root_device), torch.get_num_threads()
    where = [
        f"cpu, {count} thread{'s' * (count != 1)}" if device == "cpu" else device,
        str(trainer.precision),
    ]
    what.append(f"batch {data.batch_size}")
    where.insert(0, f"{len(data.train):,} training, {len(data.val):,} validation images")
    return "\n".join([", ".join(what), ", ".join(where), *notes])


def _device(device: torch.device) -> str:
    """Return the name of the GPU, or the type of another device, such as cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class EventLogger(TensorBoardLogger):
    """TensorBoard's events in the run folder itself, without a second copy of the configuration.

    Beyond Lightning's: a resumed run drops what was logged beyond its checkpoint, and its events
    come last even if the clock was set back, because TensorBoard reads files in their names' order.

    Args:
        save_dir: the run's folder.
        steps: optimizer steps that were done before this training.
    """

    def __init__(self, save_dir: str, *, steps: NonNegativeInt = 0) -> None:
        now, earlier = int(time.time()), sorted(Path(save_dir).glob("events.out.tfevents.*"))
        if earlier and int(earlier[-1].name.split(".")[3]) >= now:
            for position, path in enumerate(earlier):
                second = f"{now - len(earlier) + position:010}"
                path.rename(
                    path.with_name(
                        ".".join([*path.name.split(".")[:3], second, path.name.split(".", 4)[4]])
                    )
                )
        # Values of epochs are logged under the epoch's number, which is below `purge_step` also
        # where the epoch is trained again: what the earlier files keep is not logged twice.
        self._kept: set[tuple[str, int]] = set()
        if earlier:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            found = EventAccumulator(save_dir, size_guidance={"scalars": 0}).Reload()
            self._kept = {
                (tag, event.step)
                for tag in found.Tags()["scalars"]
                for event in found.Scalars(tag)
                if event.step <= steps
            }
        super().__init__(
            save_dir, name="", version="", default_hp_metric=False, purge_step=steps + 1
        )

    def save(self) -> None:
        self.experiment.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log without the epoch's number, which Lightning adds: it would be a chart of its own."""
        new = {
            key: value
            for key, value in metrics.items()
            if key != "epoch" and (key, step) not in self._kept
        }
        super().log_metrics(new, step)


def build_loggers(sections: Mapping[str, Any] | None, run: Run, steps: int) -> list[Logger]:
    """Build the configuration's loggers, which write into the run's folder.

    Args:
        sections: by name.
        run: whose folder it is.
        steps: optimizer steps done before this training. If there are any, CSVLogger gets another
            folder: it deletes an earlier file.

    Raises:
        UserError: one cannot be built, or its package is not installed.
    """
    version = f"from-step-{steps}" if steps else ""
    # Absolute: a logger's service may have been started elsewhere by an earlier run.
    offered = {"save_dir": str(run.folder.absolute()), "steps": steps}
    csv = {"name": "csv", "version": version}
    return [
        build(
            f"logger.{name}",
            section,
            offered=offered | (csv if section["_target_"].endswith("CSVLogger") else {}),
        )
        for name, section in (sections or {}).items()
        if section
    ]


def build_trainer(
    flags: Mapping[str, Any],
    run: Run,
    callbacks: Sequence[Callback],
    loggers: list[Logger],
    *,
    progress_bar: bool = False,
) -> pl.Trainer:
    """Build Lightning's Trainer with its flags and with what a run folder needs.

    Raises:
        UserError: a flag is unknown, or its value is not possible on this machine.
    """
    quieten()
    accelerator = flags.get("accelerator", "auto")
    given = {key: v for key, v in flags.items() if v is not None and key != "threads"}
    if given.get("precision") == "auto":
        given["precision"] = hardware_precision(accelerator)
    given |= {"enable_progress_bar": progress_bar}
    given.setdefault("enable_model_summary", False)
    given.setdefault("num_sanity_val_steps", 0)
    if not run.validates:
        given["limit_val_batches"] = 0
    plugins = [AtomicCheckpointIO(), *_environment(given)]
    offered = {
        "callbacks": list(callbacks),
        "logger": loggers or False,
        "plugins": plugins,
        "default_root_dir": run.folder,
        "use_distributed_sampler": False,  # BatchLoader shares the images out
    }
    try:
        return build("trainer", given, offered=offered)  # type: ignore[no-any-return]
    except UserError as error:
        if error.__cause__ is None:  # a parameter, which the message names
            raise
        shown = {k: flags.get(k) for k in ("accelerator", "devices", "strategy")}
        values = ", ".join(f"{key} = {value}" for key, value in shown.items())
        reason = " ".join(str(error.__cause__).split())
        raise UserError(f"trainer.{values}: {reason}") from error


def _environment(flags: Mapping[str, Any]) -> list[Any]:
    """Return the cluster environment to use in place of the one that Lightning would detect.

    Slurm's variables are set in every job, even if a single process trains: Lightning would then
    save and requeue by itself, and start later runs from a file that another has saved. Here the
    run folder and `resume` take that role.
    """
    tasks = int(os.environ.get("SLURM_NTASKS") or 1) if SLURMEnvironment.detect() else 1
    several = processes(flags) != 1
    if tasks > 1 and several:
        if tasks != processes(flags):
            raise UserError(
                f"trainer.devices = {flags.get('devices', 1)}, trainer.num_nodes = "
                f"{flags.get('num_nodes', 1)}: Slurm has started {tasks} tasks (SLURM_NTASKS). "
                "Ask it for one task per device."
            )
        # Lightning insists on it, and `srun -n` does not set it.
        per_node = tasks // int(flags.get("num_nodes", 1))
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(per_node))
        return [SLURMEnvironment(auto_requeue=False)]
    if several:
        return []
    if rank := int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0):
        raise UserError(
            f"This process has rank {rank} of several (RANK, LOCAL_RANK), and trainer.devices = "
            f"{flags.get('devices', 1)} means one here. Set it to the number of processes."
        )
    alone = LightningEnvironment()
    alone.set_global_rank(0)  # Slurm's variables may have set another rank, which does not log
    return [alone]


def processes(flags: Mapping[str, Any]) -> int:
    """Return how many processes the Trainer's flags ask for on this machine."""
    devices = flags.get("devices", 1)
    if devices in ("auto", -1, "-1"):
        count = torch.cuda.device_count() if flags.get("accelerator", "auto") != "cpu" else 1
    elif isinstance(devices, list):
        count = len(devices)
    else:
        count = int(devices) if str(devices).isdigit() else str(devices).count(",") + 1
    return max(1, count) * int(flags.get("num_nodes") or 1)


def hardware_precision(accelerator: str) -> str:
    """Return "bf16-mixed" if the hardware multiplies bf16, else "32-true"."""
    if accelerator != "cpu" and torch.accelerator.is_available():
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def prepare_process() -> None:
    """Set CPU options whose defaults slow training; call it before torch's first computation.

    Later threads inherit these settings from the thread that starts them.
    """
    # Weights and Adam's averages of dead units decay to denormal numbers, on which a CPU computes
    # many times slower.
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        # By default freed blocks of megabytes go back to the system, and the next step takes them
        # anew, with a page fault per page: a quarter of the time of model=best.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # glibc's maximum


def return_freed_memory() -> None:
    """Return freed memory to the system, which `prepare_process` makes the process keep."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def _no_traceback_of_writers() -> Iterator[None]:
    """Hide tracebacks of TensorBoard's thread; its failed writes are raised by the next event."""
    handle = threading.excepthook

    def pass_over(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            handle(failure)

    threading.excepthook = pass_over
    try:
        yield
    finally:
        threading.excepthook = handle


def quieten() -> None:
    """Drop Lightning's notices that report nothing a user of this project decides or can fix."""
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # asked for
    for text in (
        ".*does not have many workers.*",  # more worker processes would be slower here
        ".*smaller than the logging interval.*",  # metrics are logged at the epoch's end anyway
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's own
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 beside torch 2.14
        ".*Precision .*-mixed is not supported by the model summary.*",  # its weights are fp32
        ".*requested to overfit but enabled .* shuffling.*",  # BatchLoader keeps one order
    ):
        warnings.filterwarnings("ignore", message=text)
