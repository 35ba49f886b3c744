"""Resuming a run by its own configuration; few keys may be changed. Imports no torch."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fashion import config as schema
from fashion.config import METADATA_KEYS, walk
from fashion.errors import UserError
from fashion.runs import untrusted
from fashion.runs.run import Run, without_metadata

ABSENT = object()
EPOCHS = "trainer.max_epochs"


def to_resume(config: DictConfig, overrides: Sequence[str]) -> tuple[Run, DictConfig, list[str]]:
    """Return the run that `resume` names, the configuration to continue with, and remarks.

    The configuration is the run's own, with the overrides that are allowed: keys that do not affect
    the result, and more epochs. Top-level keys that are newer than the run take their defaults.

    Args:
        config: as Hydra composed it from the command line.
        overrides: the command line's.

    Raises:
        UserError: there is no such run, an override contradicts its configuration, more epochs
            cannot be added, or it names classes that need `trust=true`.
    """
    run = Run.open(schema.at_home(config.resume), trust=config.trust)
    own: Any = OmegaConf.to_container(run.config)
    if not run.trust:
        untrusted.refuse_foreign(own, f"{run.resume_command}")
    merged, added = _with_defaults(run.config, config)
    try:
        schema.check(OmegaConf.to_container(merged))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{run.folder} cannot be continued: {error}") from error
    differences = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key == "resume":
            continue
        given, kept = (OmegaConf.select(each, key, default=ABSENT) for each in (config, merged))
        longer = key == EPOCHS and isinstance(given, int) and given > (kept or 0)
        if key in METADATA_KEYS or longer:
            OmegaConf.update(merged, key, given, merge=False)
        elif given is ABSENT or given != kept:
            differences.append(f"  {override.input_line}")
    if differences:
        raise UserError(
            f"{run.folder} continues with its own configuration, which does not say\n"
            + "\n".join(differences)
            + f"\nLeave that out, or start another run. Only {EPOCHS} may be larger."
        )
    planned, now = (each.trainer.get("max_epochs") or 0 for each in (run.config, merged))
    if run.finished and now > planned:
        epochs = run.metrics.get("epochs")
        if epochs != planned:
            raise UserError(
                f"{run.folder} is finished: it stopped early, after {epochs} epochs, so that more "
                "of them would not be used."
            )
        # Read it now: starting the run deletes its results.
        untrusted.read_checkpoint(run.last_checkpoint)
    return run, merged, added


def _with_defaults(own: DictConfig, composed: DictConfig) -> tuple[DictConfig, list[str]]:
    """Return a run's configuration with missing top-level keys added, and a remark for each."""
    merged, remarks = own.copy(), []
    for key, value in OmegaConf.to_container(composed, resolve=True).items():  # type: ignore[union-attr]
        if key not in merged and key in schema.SETTINGS:
            OmegaConf.update(merged, str(key), value, force_add=True)
            remarks.append(f"{key}: made before this key was added; its default applies.")
    return merged, remarks


def refuse_another(run: Run, config: DictConfig) -> None:
    """Raise UserError if `run` has another configuration, or cannot be given more epochs."""
    before, now = (OmegaConf.select(each, EPOCHS) for each in (run.config, config))
    same = without_metadata(_with_defaults(run.config, config)[0], EPOCHS) == without_metadata(
        config, EPOCHS
    )
    if not same or (now or 0) < (before or 0):
        raise UserError(
            f"{run.folder} holds a run of another configuration; continue it with\n"
            f"  {run.resume_command}\n"
            "or give this one a folder of its own (sweep=NAME for a grid)."
        )
    if now != before and (planned := _planned(config)):
        raise UserError(
            f"{run.folder} cannot go on to {EPOCHS} = {now}: with {planned}, its "
            f"epochs were planned for {before} in all. Start another run."
        )


def _planned(config: DictConfig) -> str | None:
    """Return the setting by which the first epochs depend on the number of epochs, or None."""
    if (schedule := OmegaConf.select(config, "optimizer.schedule")) not in (None, "constant"):
        return f"optimizer.schedule = {schedule}"
    if warmup := OmegaConf.select(config, "optimizer.warmup"):
        return f"optimizer.warmup = {warmup}"
    plain: Any = OmegaConf.to_container(config)
    augmentation = plain["augmentation"]
    for key, each in [("augmentation", augmentation), *walk(augmentation, "augmentation")]:
        changes = isinstance(each, dict) and (each.get("erase") or each.get("cutmix"))
        if changes and each.get("clean_epochs"):
            return f"{key}.clean_epochs = {each['clean_epochs']}"
    if scheduler := OmegaConf.select(config, "scheduler._target_"):
        return f"scheduler._target_ = {scheduler}"
    return None
