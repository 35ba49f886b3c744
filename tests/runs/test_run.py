import io
import json
import math
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from fashion.errors import UserError
from fashion.report.evaluation import common_predictions
from fashion.runs.files import SCRATCH, atomic_write
from fashion.runs.provenance import PACKAGES, provenance
from fashion.runs.run import BusyError, Predictions, Run

HYDRA: Any = OmegaConf.create({"overrides": {"task": ["seed=0"]}})


def config(**changes: Any) -> DictConfig:
    values = {
        "data": {"root": "data", "val_size": 100},
        "trainer": {"enable_progress_bar": True, "max_epochs": 3},
        "optimizer": {"schedule": "constant", "warmup": 0.0},
        "scheduler": None,
        "augmentation": {"erase": 0, "clean_epochs": 0},
        "seed": 0,
        "name": "best",
        "sweep": "grid",
    }
    made = OmegaConf.create(values)
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return an unfinished run with a checkpoint (of no content)."""
    run = Run(tmp_path / "run")
    with run.start(config(), HYDRA):
        run.write_text("checkpoints/last.ckpt", "")
    return run


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_run_is_opened_or_refused(run: Run, tmp_path: Path) -> None:
    assert Run.open(run.folder).config.trainer.max_epochs == 3
    assert [found.folder for found in Run.find(tmp_path)] == [run.folder]
    with pytest.raises(
        UserError, match=f"not a run folder .* Below it are 1, such as {run.folder}"
    ):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        Run.open(tmp_path / "none")


# Starting: a folder is locked, and nothing in it that is not a run's is touched.

OTHERS = {
    "embeddings.npz": b"mine",
    "figures/plot.png": b"mine",
    "sub/.draft.tmp": b"mine",
    "report.html": b"mine",
}


@pytest.mark.parametrize("names", [*([name] for name in OTHERS), list(OTHERS)])
def test_a_folder_of_other_files_is_refused_and_left_as_it_is(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(OTHERS[name])
    with (
        pytest.raises(UserError, match=rf"{tmp_path} holds files that are not a run's") as caught,
        Run(tmp_path).start(config(), HYDRA),
    ):
        pass
    assert contents(tmp_path) == {name: OTHERS[name] for name in names}
    for name in sorted(names)[:3]:
        assert name.split("/")[0] in str(caught.value)
    assert "hydra.run.dir=FOLDER" in str(caught.value)


def test_an_empty_folder_survives_a_run_that_ends_before_it_began(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refused"), Run(tmp_path).start(config(), HYDRA):
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []
    with Run(tmp_path).start(config(), HYDRA):  # and may be used
        pass


def test_an_interrupted_run_keeps_what_it_has(run: Run) -> None:
    with pytest.raises(UserError), run.start(config()):
        raise UserError("stopped")
    assert run.last_checkpoint.exists()
    assert Run.open(run.folder).config.seed == 0


def test_files_that_were_being_written_are_removed_and_no_others(run: Run) -> None:
    killed = run.folder / "checkpoints" / f".last.ckpt.x{SCRATCH}"
    notes = run.folder / ".notes.tmp"
    for path in (killed, notes):
        path.touch()
    with run.start(config()):
        assert not killed.exists()
        assert notes.exists()


def test_the_configuration_is_written_resolved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    values = {"a": 1, "b": "${a}", "seed": 0, "data": {"val_size": 0}}
    with run.start(OmegaConf.create(values), HYDRA):
        assert "b: 1" in (tmp_path / ".hydra/config.yaml").read_text()
        assert "seed=0" in (tmp_path / ".hydra/overrides.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "checkpoint"),
    [
        ({}, "best.ckpt"),
        ({"checkpoint": "last"}, "last.ckpt"),
        ({"data__val_size": 0}, "last.ckpt"),
        ({"data__val_size": 0, "data__folds": 5}, "best.ckpt"),
    ],
)
def test_the_reported_checkpoint(tmp_path: Path, changes: dict[str, Any], checkpoint: str) -> None:
    with Run(tmp_path).start(config(**changes)):
        assert Run(tmp_path).reported_checkpoint == tmp_path / "checkpoints" / checkpoint


START = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from fashion.runs.run import Run
with Run(Path(sys.argv[1])).start(OmegaConf.create(sys.argv[2])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.is_locked
    with subprocess.Popen(
        [sys.executable, "-c", START, str(tmp_path), OmegaConf.to_yaml(config())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        assert run.is_locked
        message = f"Another process is writing the run {tmp_path}"
        with pytest.raises(BusyError, match=message), run.start(config(), HYDRA):
            pass
        other.kill()  # however it ends
    assert not run.is_locked
    with run.start(config(), HYDRA):
        assert Run(tmp_path).is_locked  # by this process
    assert not run.is_locked


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(UserError, match=r"\.lock is not a plain file"),
        Run(tmp_path / "run").lock(),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_finished_run_is_not_started_again(run: Run) -> None:
    run.update_metrics({"val/acc": 0.5})
    with pytest.raises(UserError, match="holds a finished run already"), run.start(config(), HYDRA):
        pass
    assert run.metrics == {"val/acc": 0.5}


def test_an_unfinished_run_is_continued_by_its_own_configuration(run: Run) -> None:
    with run.start(config(trainer__max_epochs=5, data__root="elsewhere")):
        pass
    assert "max_epochs: 5" in (run.folder / ".hydra/config.yaml").read_text()
    assert "seed=0" in (run.folder / ".hydra/overrides.yaml").read_text()
    message = rf"another configuration.*\n.* resume={run.folder}"
    for other in (config(seed=1), config(trainer__max_epochs=4)):
        with pytest.raises(UserError, match=message), run.start(other):
            pass
    assert "max_epochs: 5" in (run.folder / ".hydra/config.yaml").read_text()


def test_metrics_of_many_classes_are_read(run: Run) -> None:
    pairs = {f"val/confused/class {i} as class {j}": 0 for i in range(62) for j in range(62)}
    run.update_metrics(pairs)
    assert Run(run.folder).metrics == pairs


def test_a_run_that_was_killed_while_it_began_can_begin_again(run: Run, tmp_path: Path) -> None:
    begun = Run(tmp_path / "begun")
    begun.write_text(".hydra/hydra.yaml", "")
    begun.write_text(".hydra/.config.yaml.x.fashion-tmp", "")
    with begun.start(config(), HYDRA):
        pass
    begun.write_text("other/.hydra/notes.txt", "")
    with (
        pytest.raises(UserError, match=r"not a run's \(\.hydra\)"),
        Run(begun.folder / "other").start(config()),
    ):
        pass


def test_results_go_before_the_configuration_that_they_are_not_of(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between leaves an unfinished run, not one of more epochs than it has."""
    run.update_metrics({"val/acc": 0.5})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "write_text", killed)
    with pytest.raises(KeyboardInterrupt), run.start(config(trainer__max_epochs=9), extend=True):
        pass
    assert not run.finished


def test_predictions_of_a_run_without_a_validation_set(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.start(config(data__val_size=0)):
        pass
    with pytest.raises(UserError, match=r"no validation set .*: --split test"):
        run.predictions("val")


def test_a_finished_run_with_more_epochs_is_unfinished_until_it_has_them(run: Run) -> None:
    run.update_metrics({"val/acc": 0.5})
    run.write_text("report.html", "of three epochs")
    with run.start(config(trainer__max_epochs=9), extend=True):
        assert not run.finished
        assert not (run.folder / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "planned"),
    [
        ({"optimizer__schedule": "cosine"}, "optimizer.schedule = cosine"),
        ({"optimizer__warmup": 0.1}, "optimizer.warmup = 0.1"),
        ({"augmentation": {"erase": 8, "clean_epochs": 8}}, "augmentation.clean_epochs = 8"),
        ({"augmentation": {"cutmix": 0.5, "clean_epochs": 4}}, "augmentation.clean_epochs = 4"),
        (
            {"augmentation": {"steps": [{"cutmix": 1.0, "clean_epochs": 2}]}},
            "augmentation.steps.0.clean_epochs = 2",
        ),
        ({"scheduler": {"_target_": "torch.optim.lr_scheduler.X"}}, "scheduler._target_ = torch"),
    ],
)
def test_a_run_whose_epochs_were_planned_gets_no_more(
    tmp_path: Path, change: dict[str, Any], planned: str
) -> None:
    run = Run(tmp_path)
    with run.start(config(**change), HYDRA):
        run.update_metrics({"val/acc": 0.5})
    with (
        pytest.raises(UserError, match=rf"max_epochs = 4: with {planned}.* for 3 in all"),
        run.start(config(**change, trainer__max_epochs=4), extend=True),
    ):
        pass
    assert run.finished


@pytest.mark.parametrize("name", ["run", "model-best,seed-0", "conv-[64,64]", "it's", 'a "b" c'])
def test_the_command_that_continues_a_run_can_be_pasted(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path / name)
    with run.start(config()):
        pass
    *_, override = shlex.split(run.resume_command)
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert not parsed.is_sweep_override()
    assert parsed.value() == str(run.folder)


def test_the_command_that_continues_a_run_of_foreign_classes_trusts_it(tmp_path: Path) -> None:
    with Run(tmp_path).start(config(model={"network": {"_target_": "mine.Net"}})):
        assert Run(tmp_path).resume_command.endswith(" trust=true")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = Run(tmp_path / "file/run")
    message = r"file/run cannot be written: .* hydra\.run\.dir=FOLDER"
    with pytest.raises(UserError, match=message), run.start(config(), HYDRA):
        pass
    with pytest.raises(UserError, match=r"metrics\.json cannot be written"):
        run.update_metrics({})


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"name": "other", "sweep": "other"}, True),
        ({"data__root": "elsewhere", "trainer__enable_progress_bar": False}, True),
        ({"seed": 1}, False),
        ({"trainer__max_epochs": 4}, False),
        ({"data__val_size": 0}, False),
    ],
)
def test_what_makes_two_runs_the_same(run: Run, changes: dict[str, Any], *, same: bool) -> None:
    assert run.same_configuration(config(**changes)) == same


# Files


def test_metrics_are_merged(run: Run) -> None:
    with pytest.raises(UserError, match=f"{run.folder} is unfinished"):
        _ = run.metrics
    run.update_metrics({"a": 1, "b": None})
    run.update_metrics({"a": 2, "c": "x"})
    assert run.finished
    assert run.metrics == {"a": 2, "b": None, "c": "x"}
    with pytest.raises(UserError, match=r"metrics\.json has no number under 'd'"):
        _ = run.metrics["d"]


def test_history(run: Run) -> None:
    assert run.history == {}
    run.write_text("history.csv", "epoch,val/acc,mine\n1,0.5,\n2,,3\n")
    assert run.history["epoch"] == [1, 2]
    assert math.isnan(run.history["val/acc"][1])
    assert math.isnan(run.history["mine"][0])
    for broken in ("epoch,x\n1,one\n", "x\n1\n", 'epoch\n"1', "x" * 2**25):
        run.write_text("history.csv", broken)
        with pytest.raises(UserError, match=r"history\.csv cannot be read: ."):
            _ = run.history


def test_a_write_that_fails_leaves_the_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.update_metrics({"a": 1})
    with pytest.raises(TypeError):
        run.update_metrics({"a": object()})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"metrics\.json cannot be written: No space left"):
        run.update_metrics({"a": 2})
    assert run.metrics == {"a": 1}
    assert not list(run.folder.rglob(f"*{SCRATCH}"))


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "folder/file"
    for content in (b"old", b"new"):
        before = path.read_bytes() if path.exists() else None
        with atomic_write(path) as file:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == content
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_bytes() == b"new"
    assert not list(tmp_path.rglob(f"*{SCRATCH}"))
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_predictions_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], seed: int
) -> None:
    run = Run(tmp_path_factory.getbasetemp() / "predictions")
    probabilities = np.random.default_rng(seed).random((len(labels), 10), dtype=np.float32)
    for tta in ("none", "hflip"):
        run.write_predictions("val", Predictions(np.array(labels), probabilities), tta)
        found = run.predictions("val", tta)
        np.testing.assert_array_equal(found.labels, labels)
        np.testing.assert_array_equal(found.probabilities, probabilities)
    assert {"val.npz", "val_hflip.npz"} <= {path.name for path in run.folder.iterdir()}


def test_missing_predictions_name_the_command_that_makes_them(run: Run) -> None:
    with pytest.raises(UserError, match=rf"fashion\.evaluate {run.folder} --split test$"):
        run.predictions("test")
    with pytest.raises(UserError, match=rf"{run.folder} --split val --tta hflip$"):
        run.predictions("val", "hflip")


def test_predictions_of_different_images_are_not_compared(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name) for name in "ab"]
    for run, labels in zip(runs, (LABELS, LABELS[::-1]), strict=True):
        with run.start(config()):
            run.write_predictions("val", Predictions(labels.copy(), ROWS))
    assert list(common_predictions(runs[:1], "val")) == runs[:1]
    with pytest.raises(UserError, match=r"labels of these runs' predictions differ"):
        common_predictions(runs, "val")
    with Run(tmp_path / "c").start(config(data__split_seed=1)):
        pass
    with pytest.raises(
        UserError, match=r"different validation images:\n.*\n.*c  data.split_seed=1"
    ):
        common_predictions([runs[0], Run(tmp_path / "c")], "val")


# Files that somebody else may have made


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def lying_header() -> bytes:
    """Declare 10^15 labels where there are five."""
    file = io.BytesIO()
    whole = zipfile.ZipFile(io.BytesIO(npz(labels=LABELS, probabilities=ROWS)))
    with zipfile.ZipFile(file, "w") as target:
        for name in whole.namelist():
            declared = b"(1" + b"0" * 15 + b",), }"
            target.writestr(name, whole.read(name).replace(b"(5,), }" + b" " * 15, declared))
    return file.getvalue()


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("labels.npy", npy(np.zeros(10**6, np.int64)))
        target.writestr("probabilities.npy", npy(np.zeros((10**6, 2), np.float32)))
    return file.getvalue()


LABELS = np.arange(5)
ROWS = np.full((5, 10), 0.1, dtype=np.float32)
BROKEN: dict[str, Callable[[], bytes]] = {
    "garbage": lambda: b"PK\3\4garbage",
    "cut": lambda: npz(labels=LABELS, probabilities=ROWS)[:300],
    "no probabilities": lambda: npz(labels=LABELS),
    "too few rows": lambda: npz(labels=LABELS, probabilities=ROWS[:4]),
    "flat": lambda: npz(labels=LABELS, probabilities=ROWS.ravel()),
    "doubles": lambda: npz(labels=LABELS, probabilities=ROWS.astype(float)),
    "nan": lambda: npz(labels=LABELS, probabilities=ROWS * np.float32("nan")),
    "label 10": lambda: npz(labels=LABELS + 6, probabilities=ROWS),
    "label -1": lambda: npz(labels=LABELS - 1, probabilities=ROWS),
    "no images": lambda: npz(labels=LABELS[:0], probabilities=ROWS[:0]),
    "one array": lambda: npy(ROWS),
    "lying header": lying_header,
    "zip bomb": zip_bomb,
    "pickled array": lambda: npz(labels=np.array([Hostile(Path("owned"))]), probabilities=ROWS),
    "pickle": lambda: pickle.dumps(Hostile(Path("owned"))),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_predictions(run: Run, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder)
    path = run.folder / "val.npz"
    path.write_bytes(BROKEN[how]())
    with pytest.raises(UserError, match=f"{path} (cannot be read: .|does not hold n labels)"):
        run.predictions("val")
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"val/acc": "high"}',
        b'{"val/acc": NaN}',
        b'{"epochs": 1e30}',
        b'{"val/temperature": 0}',
        b"[" * 10_000,
        b'{"a": "' + b"x" * 2**22 + b'"}',
        "\ud800".encode("utf-8", "surrogatepass"),
        rb'{"a": "\ud800"}',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_broken_metrics(run: Run, content: bytes) -> None:
    (run.folder / "metrics.json").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.json (cannot be read|holds no JSON|has no num)"):
        _ = run.metrics


VALID = b"seed: 0\ndata: {val_size: 100}\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- 1",
        b"a: [",
        b"\xff\xfe\xff",
        b"seed: 0",
        b"data: {}",
        b"seed: true\ndata: {}",
        VALID + b"a: ${oc.env:HOME}",
        VALID + b"a: &a [1]\nb: *a",
        VALID + b"a: " + b"[" * 60 + b"]" * 60,
        VALID + b"a: " + b"x" * 2**17,
        VALID + b"a: !!python/object/apply:os.mkdir [owned]",
        b"!!python/object/apply:os.mkdir [owned]",
    ],
    ids=lambda content: repr(content.removeprefix(VALID)[:30]),
)
def test_a_broken_or_hostile_configuration(
    run: Run, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.folder)
    (run.folder / ".hydra/config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml (cannot be read|holds no|is no run)"):
        _ = Run(run.folder).config
    assert not Path("owned").exists()


@pytest.mark.parametrize("name", ["val.npz", "checkpoints/best.ckpt", ".hydra/overrides.yaml"])
def test_links_out_of_the_folder_are_refused(run: Run, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    (run.folder / name).unlink(missing_ok=True)
    (run.folder / name).symlink_to(secret)
    message = rf"{name} leads out of the run's folder, to {secret}"
    with pytest.raises(UserError, match=message):
        Run.open(run.folder)
    with pytest.raises(UserError, match=message):
        Run.find(tmp_path)
    (run.folder / name).unlink()
    (run.folder / name).symlink_to(run.folder / ".hydra/config.yaml")  # within it
    Run.open(run.folder)
    loop = run.folder / "loop"
    loop.symlink_to(loop)  # leads nowhere
    Run.open(run.folder)


def test_of_wandb_s_files_one_may_be_a_link_out_of_the_folder(run: Run, tmp_path: Path) -> None:
    logs = run.folder / "wandb/offline-run-1/logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "cache.log")
    Run.open(run.folder)
    (logs / "debug.log").symlink_to(tmp_path / "cache.log")
    with pytest.raises(UserError, match=r"debug\.log leads out of the run's folder"):
        Run.open(run.folder)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"_target_": "os.system"}, r"builds model\.network\._target_ = os\.system, .*\n  THE COM"),
        ({"_target_": "torch.nn.modules.os.system"}, "which can run any code"),
        ({"_target_": "torch.optim.lr_scheduler.types.FunctionType"}, "which can run any code"),
        (
            {"_target_": "fashion.training.networks.ConvNet", "conv": [{"_target_": "os.mkdir"}]},
            r"model\.network\.conv\.0\._target_ = os\.mkdir",
        ),
        ({"_target_": "fashion.data.download.main"}, "only classes in fashion"),
        ({"_target_": "fashion.training.networks.ConvNet", "conv": [0]}, r"conv\.0 = 0"),
        ({"_target_": ["os.system"]}, "which can run any code"),
        ({"conv": []}, r"names no class under model\.network"),
    ],
)
def test_a_section_that_must_not_be_built(
    tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    with Run(tmp_path).start(config(model={"network": section})):
        pass
    with pytest.raises(UserError, match=message):
        Run.open(tmp_path).section("model.network", "THE COMMAND")
    if section.get("_target_") == "os.system":
        assert Run.open(tmp_path, trust=True).section("model.network", "") == section


# Provenance


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_results_do_not_make_a_checkout_unclean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        command = [shutil.which("git"), "-C", tmp_path, *arguments]
        subprocess.run(command, check=True, capture_output=True)  # type: ignore[arg-type]

    for folder in ("fashion", "results"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").touch()
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--message", "a")
    monkeypatch.setattr("fashion.runs.provenance.__file__", str(tmp_path / "fashion/file"))
    (tmp_path / "results/file").write_text("new")
    (tmp_path / "results/other").touch()
    assert provenance()["clean"] is True
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/new.yaml").touch()
    assert provenance()["clean"] is False


def test_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance()
    assert set(found["versions"]) == {"python", *PACKAGES}
    assert re.search(r", 1 of [0-9]+ cores$", found["machine"])  # conftest: one thread each
    json.dumps(found)

    def absent(*_: object, **__: object) -> SimpleNamespace:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    found = provenance()  # a copy without git: it is unknown whether it is clean
    assert (found["commit"], found["clean"]) == (None, None)
