"""Which configuration a run continues with, and what may be changed in it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from omegaconf import DictConfig, OmegaConf, open_dict

from fashion.errors import UserError
from fashion.runs.resume import to_resume
from fashion.runs.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return an unfinished run of three epochs."""
    run = Run(tmp_path / "run")
    with run.start(composed("seed=7", "trainer.max_epochs=3", "model=cnn")):
        run.write_text("checkpoints/last.ckpt", "")
    return run


def rewritten(run: Run, change: Any) -> None:
    """Change the run's configuration as another version, or another person, may have made it."""
    config = OmegaConf.load(run.folder / ".hydra/config.yaml")
    with open_dict(config):
        change(config)
    run.write_text(".hydra/config.yaml", OmegaConf.to_yaml(config))


def resumed(run: Run, *overrides: str) -> tuple[Run, DictConfig, list[str]]:
    overrides = (f'resume="{run.folder}"', *overrides)
    return to_resume(composed(*overrides), overrides)


def test_a_run_continues_with_its_own_configuration(run: Run) -> None:
    found, config, remarks = resumed(run)
    assert (found.folder, remarks) == (run.folder, [])
    assert config == run.config
    assert (config.seed, config.model.network.pool) == (7, 2)


def test_metadata_and_more_epochs_may_be_given(run: Run) -> None:
    overrides = ("trainer.max_epochs=5", "data.root=elsewhere", "trainer.enable_progress_bar=false")
    _, config, _ = resumed(run, *overrides, "seed=7")  # which it says already
    assert (config.trainer.max_epochs, config.data.root) == (5, "elsewhere")
    assert not config.trainer.enable_progress_bar


def test_a_logger_replaces_the_run_s_own(run: Run) -> None:
    assert set(run.config.logger) == {"tensorboard"}
    assert resumed(run, "logger=none")[1].logger == {}
    assert set(resumed(run, "logger=csv")[1].logger) == {"csv"}


def test_a_finished_run_without_a_number_of_epochs(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with run.start(composed("trainer.max_epochs=null", "trainer.max_steps=20")):
        run.write_text("checkpoints/last.ckpt", "")
    run.update_metrics({"epochs": 2})
    assert resumed(run)[1].trainer.max_epochs is None
    with pytest.raises(UserError, match="it stopped early, after 2 epochs"):
        resumed(run, "trainer.max_epochs=20")


def test_anything_else_is_refused_at_once(run: Run) -> None:
    with pytest.raises(UserError) as caught:
        resumed(run, "seed=8", "trainer.max_epochs=2", "+model.network.width=3")
    for line in ("  seed=8\n", "  trainer.max_epochs=2\n", "  +model.network.width=3\n"):
        assert line in str(caught.value)
    assert "Only trainer.max_epochs may be larger" in str(caught.value)


def test_keys_that_an_older_version_lacks_take_their_defaults_and_are_named(run: Run) -> None:
    rewritten(run, lambda config: [config.pop(key) for key in ("compile", "metrics")])
    _, config, remarks = resumed(run)
    assert (config.compile, config.metrics) == (False, {})
    assert [remark.partition(":")[0] for remark in remarks] == ["metrics", "compile"]
    assert all("default applies" in remark for remark in remarks)


def test_a_run_without_a_configuration_of_ours_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a run folder"):
        resumed(Run(tmp_path / "nowhere"))
    rewritten(run, lambda config: config.optimizer.update({"lr": -1}))
    with pytest.raises(UserError, match=r"cannot be continued: optimizer\.lr = -1"):
        resumed(run)


def test_foreign_classes_need_trust_and_are_not_imported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign.py").write_text("open('owned', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(run, lambda config: config.model.update({"network": {"_target_": "foreign.Net"}}))
    message = (
        r"model\.network\._target_ = foreign\.Net, which can run any code\.[^\n]*\n.* trust=true$"
    )
    with pytest.raises(UserError, match=message):
        resumed(run)
    assert not (tmp_path / "owned").exists()
    found, config, _ = resumed(run, "trust=true")
    assert found.trust
    assert config.model.network._target_ == "foreign.Net"


def test_a_run_that_stopped_early_gets_no_more_epochs(run: Run) -> None:
    run.update_metrics({"epochs": 2})
    with pytest.raises(UserError, match="finished: it stopped early, after 2 epochs"):
        resumed(run, "trainer.max_epochs=9")
    run.update_metrics({"epochs": 3})
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read as a checkpoint"):
        resumed(run, "trainer.max_epochs=9")  # before anything of the finished run is removed
    assert run.finished
