import io
import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
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
from fashion.runs.files import atomic_write
from fashion.runs.run import PACKAGES, Predictions, Run, provenance

HYDRA: Any = OmegaConf.create({"overrides": {"task": ["seed=0"]}})


def config(**changes: Any) -> DictConfig:
    values = {
        "data": {"root": "data", "val_size": 100},
        "trainer": {"progress_bar": True, "max_epochs": 3},
        "optimizer": {"schedule": "constant", "warmup": 0.0},
        "augmentation": {"erase": 0, "whole": 0},
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
    run = Run(tmp_path / "run")
    with run.claim(config(), HYDRA):
        pass
    return run


def leftovers(folder: Path) -> list[Path]:
    return [*folder.rglob("*.tmp"), *folder.rglob(".fetch-*")]


def test_a_run_is_opened_or_refused(run: Run, tmp_path: Path) -> None:
    assert Run.open(run.folder).config.trainer.max_epochs == 3
    assert [found.folder for found in Run.below(tmp_path)] == [run.folder]
    with pytest.raises(
        UserError, match=f"not a run folder .* Below it are 1, such as {run.folder}"
    ):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        Run.open(tmp_path / "none")


def test_the_configuration_is_written_resolved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.claim(
        OmegaConf.create({"a": 1, "b": "${a}", "seed": 0, "data": {"val_size": 0}}), HYDRA
    ):
        assert "b: 1" in (tmp_path / ".hydra/config.yaml").read_text()
        assert "seed=0" in (tmp_path / ".hydra/overrides.yaml").read_text()
    assert run.reported_checkpoint == run.last_checkpoint


CLAIM = """
import sys
import zipfile
from pathlib import Path
from omegaconf import OmegaConf
from fashion.runs.run import Run
with Run(Path(sys.argv[1])).claim(OmegaConf.create(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path), OmegaConf.to_yaml(config())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"Another process is writing the run {tmp_path}"),
            Run(tmp_path).claim(config(), HYDRA),
        ):
            pass
        other.kill()  # however it ends
    with Run(tmp_path).claim(config(), HYDRA):
        pass


def test_a_finished_run_is_not_begun_again(run: Run) -> None:
    run.update_metrics({"val/acc": 0.5})
    with pytest.raises(UserError, match="holds a finished run already"), run.claim(config(), HYDRA):
        pass
    assert run.metrics == {"val/acc": 0.5}


def test_an_unfinished_run_is_continued_by_its_own_configuration(run: Run) -> None:
    with run.claim(config(trainer__max_epochs=5, data__root="elsewhere")):
        pass
    assert "max_epochs: 5" in (run.folder / ".hydra/config.yaml").read_text()
    assert "seed=0" in (run.folder / ".hydra/overrides.yaml").read_text()
    for other in (config(seed=1), config(trainer__max_epochs=4)):
        with (
            pytest.raises(UserError, match=rf"another configuration.*\n.* resume={run.folder}"),
            run.claim(other),
        ):
            pass
    assert "max_epochs: 5" in (run.folder / ".hydra/config.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "planned"),
    [
        ({"optimizer__schedule": "cosine"}, "optimizer.schedule = cosine"),
        ({"optimizer__warmup": 0.1}, "optimizer.warmup = 0.1"),
        ({"augmentation": {"erase": 8, "whole": 8}}, "augmentation.clean_epochs = 8"),
    ],
)
def test_a_run_whose_epochs_were_planned_gets_no_more(
    tmp_path: Path, change: dict[str, Any], planned: str
) -> None:
    run = Run(tmp_path)
    with run.claim(config(**change), HYDRA):
        run.update_metrics({"val/acc": 0.5})
    with (
        pytest.raises(UserError, match=f"max_epochs = 4: with {planned}, .* for 3 in all"),
        run.claim(config(**change, trainer__max_epochs=4), extend=True),
    ):
        pass
    assert run.finished


@pytest.mark.parametrize("name", ["run", "model-best,seed-0", "conv-[64,64]", "it's", 'a "b" c'])
def test_the_command_that_continues_a_run_can_be_typed(name: str) -> None:
    folder = Path("logs") / name
    *_, override = shlex.split(Run(folder).resume_command)
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert not parsed.is_sweep_override()
    assert parsed.value() == str(folder)


def test_a_finished_run_that_is_to_go_on_is_unfinished(run: Run) -> None:
    run.update_metrics({"val/acc": 0.5})
    with run.claim(config(trainer__max_epochs=9), extend=True):
        assert not run.finished


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = Run(tmp_path / "file/run")
    with (
        pytest.raises(UserError, match=r"file/run cannot be written: .* hydra\.run\.dir=FOLDER"),
        run.claim(config(), HYDRA),
    ):
        pass
    with pytest.raises(UserError, match=r"metrics\.json cannot be written"):
        run.update_metrics({})


def test_metrics_are_merged(run: Run) -> None:
    assert not run.finished
    with pytest.raises(UserError, match=f"{run.folder} is unfinished"):
        _ = run.metrics
    run.update_metrics({"a": 1, "b": None})
    run.update_metrics({"a": 2, "c": "x"})
    assert run.finished
    assert run.metrics == {"a": 2, "b": None, "c": "x"}


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
    assert leftovers(run.folder) == []


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
    assert leftovers(tmp_path) == []
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_predictions_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], seed: int
) -> None:
    run = Run(tmp_path_factory.getbasetemp() / "predictions")
    probabilities = np.random.default_rng(seed).random((len(labels), 10), dtype=np.float32)
    run.write_predictions("val", Predictions(np.array(labels), probabilities))
    found = run.predictions("val")
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.probabilities, probabilities)


def savez(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def lie(whole: Path, path: Path) -> None:
    """Declare 10^15 labels where there are five."""
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(
                name, content.replace(b"(5,), }" + b" " * 15, b"(1" + b"0" * 15 + b",), }")
            )


LABELS = np.arange(5)
ROWS = np.full((5, 10), 0.1, dtype=np.float32)
BROKEN: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"PK\3\4garbage"),
    "cut": lambda path: (
        savez(path, labels=LABELS, probabilities=ROWS),
        path.write_bytes(path.read_bytes()[:300]),
    ),
    "folder": lambda path: path.mkdir(),
    "no probabilities": lambda path: savez(path, labels=LABELS),
    "too few rows": lambda path: savez(path, labels=LABELS, probabilities=ROWS[:4]),
    "nine classes": lambda path: savez(path, labels=LABELS, probabilities=ROWS[:, :9]),
    "flat": lambda path: savez(path, labels=LABELS, probabilities=ROWS.ravel()),
    "doubles": lambda path: savez(path, labels=LABELS, probabilities=ROWS.astype(float)),
    "nan": lambda path: savez(path, labels=LABELS, probabilities=ROWS * np.float32("nan")),
    "label 10": lambda path: savez(path, labels=LABELS + 6, probabilities=ROWS),
    "label -1": lambda path: savez(path, labels=LABELS - 1, probabilities=ROWS),
    "no answers": lambda path: savez(path, labels=LABELS[:0], probabilities=ROWS[:0]),
    "one array": lambda path: path.write_bytes(npy(ROWS)),
    "lying header": lambda path: (
        savez(path.with_name("whole.npz"), labels=LABELS, probabilities=ROWS),
        lie(path.with_name("whole.npz"), path),
    ),
    "pickled array": lambda path: savez(
        path, labels=np.array([Hostile(path.with_name("owned"))]), probabilities=ROWS
    ),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Hostile(path.with_name("owned")))),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_predictions(run: Run, how: str) -> None:
    path = run.folder / "val.npz"
    BROKEN[how](path)
    with pytest.raises(UserError, match=f"{path} (cannot be read: .|does not hold n labels)"):
        run.predictions("val")
    assert not path.with_name("owned").exists()


def test_missing_predictions_say_how_to_make_them(run: Run) -> None:
    with pytest.raises(UserError, match=rf"fashion\.evaluate {run.folder} --split test"):
        run.predictions("test")


@pytest.mark.parametrize("content", ["", "{", "[]", "\ud800".encode("utf-8", "surrogatepass")])
def test_broken_metrics(run: Run, content: str | bytes) -> None:
    path = run.folder / "metrics.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"metrics\.json (cannot be read|holds no JSON object)"):
        _ = run.metrics


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- 1",
        b"a: [",
        b"a: ${b}",
        b"\xff\xfe\xff",
        b"!!python/object/apply:os.mkdir [owned]",
        b"a: !!python/object/apply:os.mkdir [owned]",
        b"data: {_target_: os.mkdir, path: owned}",
    ],
)
def test_a_broken_or_hostile_configuration(
    run: Run, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.folder)
    (run.folder / ".hydra/config.yaml").write_bytes(content)
    with pytest.raises(
        UserError, match=r"config\.yaml (cannot be read|holds no|is no run)|os\.mkdir"
    ):
        _ = Run(run.folder).config
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"name": "other", "sweep": "other"}, True),
        ({"data__root": "elsewhere", "trainer__progress_bar": False}, True),
        ({"seed": 1}, False),
        ({"trainer__max_epochs": 4}, False),
        ({"data__val_size": 0}, False),
    ],
)
def test_what_makes_two_runs_the_same(run: Run, changes: dict[str, Any], *, same: bool) -> None:
    assert run.same_configuration(config(**changes)) == same


def test_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance()
    assert set(found["versions"]) == {"python", *PACKAGES}
    assert re.search(r", 1 of [0-9]+ cores$", found["machine"])  # conftest: a thread each

    def absent(*_: object, **__: object) -> SimpleNamespace:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    found = provenance()  # a copy without git
    assert (found["commit"], found["clean"]) == (None, False)
