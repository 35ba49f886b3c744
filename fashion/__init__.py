"""Train, tune and report image classifiers on Fashion-MNIST; the Python API.

    import fashion

    run = fashion.fit("model=cnn", "trainer.max_epochs=3")
    run.metrics["val/acc"]
    model = fashion.load(run.folder)
    model.predict_proba(images)

Importing this package imports neither torch nor Hydra.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion.errors import UserError

if TYPE_CHECKING:
    from fashion.runs.run import Run
    from fashion.training.classifier import Classifier

__all__ = ["Run", "UserError", "fit", "load"]


def fit(*overrides: str) -> "Run":
    """Train one run, as `python -m fashion.train OVERRIDES` does.

    It works in scripts and notebooks, and inside an application that uses Hydra itself, whose state
    is restored. Each call makes a new run folder below `logs/` in the current folder.

    Args:
        overrides: Hydra's, such as "model=cnn" or "trainer.max_epochs=3"; "resume=RUN" continues
            a run.

    Returns:
        The run: its folder, metrics, history and predictions. Of a dry run
        (`trainer.fast_dev_run`) nothing is kept.

    Raises:
        UserError: an override is wrong, the data cannot be read, or the folder cannot be written.
        DivergenceError: a UserError; the loss or the weights are no longer finite.
        KeyboardInterrupt: a signal ended the training; "resume=RUN" continues it.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import open_dict, read_write
    from omegaconf.errors import OmegaConfBaseException

    from fashion.config import CONF, anchor, at_home, start_afresh
    from fashion.errors import Interrupted, innermost, message, signals_raise
    from fashion.runs.run import Run
    from fashion.train import keep_folders, train_one

    hydra_before, config_before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
            given = ["hydra.mode=RUN", *overrides]
            config = compose("train", given, return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            folder = at_home(config.hydra.run.dir)
            with read_write(config), open_dict(config):
                del config["hydra"]
            start_afresh(config, overrides)
            anchor(config, Path.cwd())
            keep_folders(overrides)
            with signals_raise():
                return train_one(config, Run(folder))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(message(innermost(error))) from error
    except Interrupted as interrupted:
        raise KeyboardInterrupt(message(interrupted)) from None
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra_before, config_before


def load(folder: str | Path, *, trust: bool = False) -> "Classifier":
    """Load the classifier of a run, with the weights that the run reports, in evaluation mode.

    Its `predict_proba` returns the network's softmax as it is: the run's temperature
    (`run.metrics["val/temperature"]`) is not applied, unlike in an exported model.

    Args:
        folder: of the run.
        trust: whether the run may name any class to be built; otherwise only those on an
            allow-list, because building an arbitrary class can run arbitrary code.

    Raises:
        UserError: there is no such run, a file of it is broken, or it needs `trust`.
    """
    from fashion.config import at_home
    from fashion.runs.run import Run
    from fashion.training.classifier import load_classifier

    run = Run.open(at_home(folder), trust=trust)
    return load_classifier(run, f"fashion.load({str(folder)!r}, trust=True)")


def __getattr__(name: str) -> Any:
    if name == "Run":
        from fashion.runs.run import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
