"""Situations that people and machines bring about: foreign files, clusters, odd paths, terminals.

A section per kind of situation; what an own module's tests drive already is not repeated here.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Outcome, make_data, refused, tiny_overrides
from lightning_utilities.core.rank_zero import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fashion
from fashion.config import CONF
from fashion.errors import UserError
from fashion.runs.run import Run
from fashion.training.process import _user_errors

pytestmark = pytest.mark.slow
pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")

SMOKE = ("trainer=smoke", "model=linear")
# What Slurm sets in a job; the second of its tasks.
SLURM = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "77"}
SLURM |= {"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
SLURM |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SECOND_TASK = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
TWO_DEVICES = ("trainer.devices=2", "trainer.strategy=ddp")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, on no cluster."""
    monkeypatch.chdir(tmp_path)
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    for name in (*ranks, *(name for name in os.environ if "SLURM" in name)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def train(tiny_data: Path, command: Command) -> Command:
    """Return a function that trains two steps; with -m first, a grid."""

    def run(*overrides: str) -> Outcome:
        grid = overrides[:1] == ("-m",)
        given = [*tiny_overrides(tiny_data), *SMOKE, *overrides[grid:]]
        return command("train", *overrides[:grid], *given)

    return run


@pytest.fixture
def tune(tiny_data: Path, command: Command) -> Command:
    """Return a function that begins a search of one trial."""
    Path("conf/search").mkdir(parents=True)
    Path("conf/search/tiny.yaml").write_text("optimizer.lr: {float: [0.0001, 0.03], log: true}\n")
    conf = f"hydra.searchpath=[file://{Path('conf').resolve()}]"
    search = (conf, "search=tiny", "worker=0", "trials=1", "confirm.seeds=0")
    given = [*tiny_overrides(tiny_data), *SMOKE, *search]

    def run(*overrides: str) -> Outcome:
        return command("tune", *given, *overrides)

    return run


def start(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    """Start a process of its own whose Python finds this package, and modules in this folder."""
    path = os.pathsep.join([str(CONF.parent), "."])
    environment = os.environ | {"PYTHONPATH": path} | more.pop("variables", {})
    environment.pop("PYTHONUNBUFFERED", None)  # output that is never flushed is lost at the end
    given = [sys.executable, *map(str, arguments)]
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(given, env=environment, text=True, **more)


def content(folder: Path | str) -> dict[str, bytes]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in paths}


# A. A destination is not taken for one's own without proof.


FOREIGN = ("embeddings.npz", "figures/plot.png", "sub/.draft.tmp", "report.html")


def foreign_files(folder: str, *names: str) -> dict[str, bytes]:
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"my {name}")
    return content(folder)


def test_a_run_leaves_a_folder_with_files_alone(train: Command) -> None:
    before = foreign_files("mine", *FOREIGN)
    refused(train("hydra.run.dir=mine"), "mine holds files that are not a run's")
    refused(train("-m", "seed=0,1", "hydra.sweep.dir=.", "hydra.sweep.subdir=mine"), "mine holds")
    # What another program of Hydra's has written is no run either.
    Path("mine/.hydra").mkdir()
    Path("mine/.hydra/config.yaml").write_text("db: mysql\n")
    refused(train("hydra.run.dir=mine"), "mine/.hydra/config.yaml is no run's configuration")
    assert content("mine").items() >= before.items()


def test_a_search_leaves_a_folder_with_files_alone(tune: Command) -> None:
    before = foreign_files("mine", "search.html", "search.json", "notes.txt")
    refused(tune("folder=mine"), "mine holds files that are not a search's (notes.txt, search.html")
    assert content("mine") == before


@pytest.mark.parametrize("override", ["hydra.run.dir=mine", "++hydra.run.dir=./mine/"])
def test_a_refused_run_leaves_one_s_own_empty_folder(train: Command, override: str) -> None:
    Path("mine").mkdir()
    refused(train(override, "optimizer.lr=-1"), "optimizer.lr = -1")
    assert Path("mine").is_dir()
    refused(train("hydra.run.dir=made", "optimizer.lr=-1"), "optimizer.lr = -1")
    assert not Path("made").exists()


def test_others_that_are_refused_leave_one_s_own_empty_folder(
    train: Command, tune: Command
) -> None:
    for name in ("api", "grid/seed-0", "search"):
        Path(name).mkdir(parents=True)
    with pytest.raises(UserError, match="lr = -1"):
        fashion.fit("hydra.run.dir=api", "optimizer.lr=-1")
    subdir = "hydra.sweep.subdir=seed-${seed}"
    refused(train("-m", "seed=0,1", "hydra.sweep.dir=grid", subdir, "optimizer.lr=-1"), "2 run(s)")
    refused(tune("folder=search", "optimizer.lr=5"), "optimizer.lr")
    assert {path.name for path in Path().rglob("*") if path.is_dir()} >= {"api", "search", "seed-0"}
    assert not Path("grid/seed-1").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate RUN --mistakes FILE",
        "evaluate RUN RUN2 --output FILE",
        "compare RUN --report FILE",
        "compare RUN --output FILE --format csv",
        "export RUN FILE",
    ],
)
def test_an_output_file_replaces_none(command: Command, tiny_run: Path, arguments: str) -> None:
    file = Path("mine.pt2")
    file.write_text("mine")
    words = arguments.replace("RUN2", str(shutil.copytree(tiny_run, "copy"))).split()
    words = [{"RUN": str(tiny_run), "FILE": str(file)}.get(word, word) for word in words]
    refused(command(*words), "mine.pt2 exists; --force overwrites it")
    assert file.read_text() == "mine"


def test_figures_replace_none(command: Command, tiny_run: Path) -> None:
    run = Path(shutil.copytree(tiny_run, "run"))
    before = foreign_files("slides", "loss-dark.svg")
    (run / "val.npz").unlink()
    refused(command("evaluate", run, "--figures", "slides"), "slides/loss-dark.svg exists")
    assert content("slides") == before
    assert not (run / "val.npz").exists()  # refused before the evaluation


def test_what_is_no_file_is_not_replaced_and_no_output_by_another(
    command: Command, tiny_run: Path
) -> None:
    os.mkfifo("pipe.html")  # as /dev/null is none
    done = command("compare", tiny_run, "--report", "pipe.html", "--force")
    refused(done, "pipe.html is not a file that can be replaced")
    done = command("compare", tiny_run, "--report", "a.html", "--output", "./a.html")
    refused(done, "a.html is named twice")
    assert not Path("a.html").exists()


# B. Under Slurm no run reads another's checkpoint, and Lightning requeues nothing.


SIGNAL = """
import os, signal
from pathlib import Path
import lightning.pytorch as pl

class Signal(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch == 1 and not Path("sent").exists():
            Path("sent").touch()
            os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_job_that_slurm_ends_goes_on_when_it_is_requeued(
    tiny_data: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("usr1.py").write_text(SIGNAL)
    Path("hpc_ckpt_1.ckpt").write_text("another run's")
    job = [*tiny_overrides(tiny_data), "model=linear", "trainer.max_epochs=2", "hydra.run.dir=job"]
    job.append("+callbacks.signal._target_=usr1.Signal")
    process = start("-m", "fashion.train", *job, variables=SLURM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, err
    assert "Interrupted by SIGUSR1." in err
    assert "python -m fashion.train resume=job" in err
    assert "Traceback" not in out + err
    assert Run(Path("job")).history["epoch"] == [1]
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(".")
    done = command("train", *job)
    assert done.status == 0, done.err
    assert Run(Path("job")).history["epoch"] == [1, 2]
    assert content(".")["hpc_ckpt_1.ckpt"] == b"another run's"
    assert len(list(Path().rglob("hpc_ckpt*"))) == 1


# C. Slurm's tasks, each of which trains a run of its own.


def test_the_second_task_s_run_of_one_process_has_all_its_files(
    train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SLURM | SECOND_TASK | {"SLURM_JOB_NAME": "myjob"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning reads it when it is imported
    done = train("hydra.run.dir=run", "logger=tensorboard")
    assert done.status == 0, done.err
    assert list(Path("run").glob("events.out.tfevents.*"))


# D. Ranks.


def test_a_rank_without_a_way_to_its_peers(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    refused(train(*TWO_DEVICES, "hydra.run.dir=run"), "rank 1 of several", "MASTER_PORT")
    assert not Path("run").exists()


def test_another_number_of_tasks_than_of_devices(
    train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SLURM | {"SLURM_NTASKS": "4"}).items():
        monkeypatch.setenv(name, value)
    done = train(*TWO_DEVICES, "hydra.run.dir=run")
    refused(done, "trainer.devices = 2", "Slurm has started 4 tasks")
    assert not Path("run").exists()


def test_a_process_that_another_one_leaves_alone_says_so(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.create({"trainer": {"devices": 2}})
    closed = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:17282.")
    with (
        pytest.raises(UserError, match="Another process of this training has ended"),
        _user_errors(Run(tmp_path), config),
    ):
        raise closed
    config.trainer.devices = 1
    with pytest.raises(RuntimeError), _user_errors(Run(tmp_path), config):
        raise closed


def test_sigterm_ends_a_process_that_waits_for_the_others(tiny_data: Path) -> None:
    """The second of two tasks, which connects to the first one and gets no answer."""
    arguments = [*tiny_overrides(tiny_data), *SMOKE, *TWO_DEVICES, "hydra.run.dir=run"]
    with socket.create_server(("127.0.0.1", 0)) as first:
        first.settimeout(60)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(first.getsockname()[1])}
        tasks = SLURM | SECOND_TASK | {"SLURM_STEP_NUM_TASKS": "2"} | address
        process = start("-m", "fashion.train", *arguments, variables=tasks)
        try:
            connection, _ = first.accept()
            with connection:
                time.sleep(0.5)
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert "Traceback" not in out + err


# P. The clock is set back before a run goes on.


def test_later_epochs_are_shown_last_whatever_the_clock_says(
    train: Command, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: real() + 1e7)
        assert train("hydra.run.dir=run", "logger=tensorboard").status == 0
    done = command("train", "trainer.max_epochs=3", "resume=run", "hydra.run.dir=other")
    assert done.status == 0, done.err
    run = Run(Path("run"))
    events = EventAccumulator("run").Reload()
    assert run.history["step"] == [2, 4, 6]
    assert [event.step for event in events.Scalars("val/acc")] == run.history["epoch"] == [1, 2, 3]
    *_, shown = events.Scalars("values_reported/val/acc")
    assert shown.value == pytest.approx(run.metrics["val/acc"])
    assert run.metrics["epochs"] == 3


# G. Names made of input.


def test_a_grid_of_long_names(train: Command) -> None:
    """With as many overrides as people give; a name that cannot be used costs no other run."""
    many = [f"trainer.{key}" for key in ("log_every_n_steps=7", "detect_anomaly=false")]
    many += [f"callbacks.early_stopping.{key}" for key in ("patience=4", "min_delta=0.01")]
    many += ["optimizer.lr=0.0012345", "optimizer.schedule=constant", "loss.label_smoothing=0.125"]
    many += ["augmentation.hflip=true", "augmentation.translate=2", "data.batch_size=50"]
    done = train("-m", "hydra.sweep.dir=grid", *many, f"name=aa,..,{'x' * 250},bb")
    refused(done, "1 run(s) of the grid failed", 'name = ".." (text)')
    runs = [run for run in Run.find(Path("grid")) if run.finished]
    assert {run.config.name for run in runs} == {"aa", "x" * 250, "bb"}
    assert all(run.folder.parent == Path("grid") for run in runs)


def test_a_grid_of_one_run_has_a_folder_in_the_grid_s(train: Command) -> None:
    assert train("-m", "hydra.sweep.dir=grid").status == 0
    (run,) = Run.find(Path("grid"))
    assert run.folder.parent == Path("grid")


@pytest.mark.parametrize(("given", "name"), [((), "smoke"), (("sweep=abc",), "abc")])
def test_a_grid_s_folder_has_the_name_that_is_given(
    train: Command, given: tuple[str, ...], name: str
) -> None:
    done = train("-m", *given)
    assert (done.status, done.err) == (0, "")
    (run,) = Run.find(Path("logs"))
    assert run.folder.parent == Path("logs", name)
    assert run.config.sweep == name


def test_a_refused_name_leaves_no_folder(train: Command) -> None:
    refused(train("name=.."), 'name = ".." (text)')
    assert not Path("logs").exists()
    Path("logs/run-0").mkdir(parents=True)
    Path("mine").mkdir()
    refused(train("name=.."), 'name = ".." (text)')
    refused(train("name=..", "hydra.run.dir=mine/a/b"), 'name = ".." (text)')
    assert {str(path) for path in Path().rglob("*")} == {"logs", "logs/run-0", "mine"}


# O. The reader goes away.


def test_training_goes_on_when_its_reader_has_gone(tiny_data: Path) -> None:
    """As in `train ... | head -1`."""
    overrides = [*tiny_overrides(tiny_data), *SMOKE, "trainer.enable_progress_bar=true"]
    with start("-m", "fashion.train", *overrides, "hydra.run.dir=run") as process:
        assert process.stdout and process.stderr  # noqa: PT018
        assert "parameters" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0
    assert Run(Path("run")).finished


@pytest.mark.parametrize("reader", ["terminal", "none", "help"])
def test_other_readers(reader: str) -> None:
    """A terminal that is closed; standard output that is closed; help that nobody reads."""
    script = (
        "import sys\n"
        "from fashion.errors import cli_errors\n"
        "with cli_errors():\n"
        "    sys.stdin.read()\n"
        "    print('lost', flush=True)\n"
        "    print(sys.stdout.isatty(), file=sys.stderr)\n"
    )
    arguments = ["-m", "fashion.train", "--help"] if reader == "help" else ["-c", script]
    if reader == "terminal":
        master, out = pty.openpty()
    else:
        master, out = os.pipe()
    with start(*arguments, stdout=out, stdin=subprocess.PIPE, **CLOSED.get(reader, {})) as process:
        os.close(master)
        os.close(out)
        _, err = process.communicate("", timeout=60)
    assert process.returncode == 0, err
    assert err == ("" if reader == "help" else "False\n")


def test_a_full_device() -> None:
    with Path("/dev/full").open("w") as out, start("-m", "fashion.train", "-h", stdout=out) as run:
        _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (1, "error: [Errno 28] No space left on device\n")


CLOSED: dict[str, Any] = {"none": {"preexec_fn": lambda: os.close(1)}}


# K, L, Q. Paths.


def test_paths_hold_in_a_changed_folder(
    train: Command, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, another run and a run to resume are found, and no second copy is made."""
    make_data(Path("data"), train=200)
    before = content("data")
    chdir = ("hydra.job.chdir=true", "data.root=data/FashionMNIST")
    assert train(*chdir, "hydra.run.dir=a").status == 0
    done = train(*chdir, "init_from=a", "hydra.run.dir=b")
    assert done.status == 0, done.err
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert command("evaluate", "../a").status == 0
    Path("../b/metrics.json").unlink()
    done = command("train", "resume=../b", "hydra.job.chdir=true")
    assert done.status == 0, done.err
    assert Run(tmp_path / "b").config.init_from == str(tmp_path / "a")
    assert content(tmp_path / "data").keys() == {str(tmp_path / name) for name in before}
    assert {path.parent.parent.parent.name for path in tmp_path.rglob("*ubyte")} == {"data"}


def test_home(
    train: Command, tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make_data(tmp_path / "home/my data")
    assert train('hydra.run.dir="~/a run"', 'data.root="~/my data"').status == 0
    assert tune('folder="~/search"').status == 0
    assert Run(tmp_path / "home/a run").finished
    assert (tmp_path / "home/search/search.json").exists()
    assert not list(tmp_path.rglob("~"))


# N, F. Messages, and commands that can be pasted.


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=grün", "grün"),
        ("name=it's", "it's"),
        ("name=(x)", "(x)"),
        ("name=a,b", "a,b"),
        ('name=a"b', 'a"b'),
    ],
)
def test_a_message_quotes_what_can_be_pasted(command: Command, override: str, value: str) -> None:
    done = command("train", override)
    refused(done, override)
    pasted = shlex.split(done.err[done.err.rindex("name=", 0, -3) - 1 :].rstrip(".\n"))[-1]
    shown = command("train", "--cfg", "job", pasted)
    assert f"name: {value}\n" in shown.out.replace("'it''s'", "it's").replace("''", "'")


def test_printed_commands_can_be_pasted(train: Command, command: Command) -> None:
    """What is not a plain word is quoted: in zsh, brackets are patterns."""
    name = "it's [64,64] a~b"
    done = train(f'hydra.run.dir="runs/{name}"', "trainer.max_epochs=1", "logger=tensorboard")
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("  ")]
    assert len(lines) == 2
    Path(f"runs/{name}/val.npz").unlink()
    hint = command("compare", f"runs/{name}").err.splitlines()[-1]
    for line in (*lines, hint):
        assert line.strip() == shlex.join(shlex.split(line))
    assert command(*shlex.split(hint)[2:][0].split(".")[1:], *shlex.split(hint)[3:]).status == 0


# M. The table of epochs, on a terminal.


def test_an_epoch_is_one_line_at_60_columns(tiny_data: Path) -> None:
    overrides = [*tiny_overrides(tiny_data), "model=linear", "trainer.max_epochs=2"]
    overrides += ["trainer.enable_progress_bar=true", "hydra.run.dir=run"]
    terminal, out = pty.openpty()
    termios.tcsetwinsize(out, (24, 60))
    process = start("-m", "fashion.train", *overrides, stdout=out, variables={"TERM": "dumb"})
    os.close(out)
    shown = b""
    with process, contextlib.suppress(OSError):  # the terminal's end
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert process.returncode == 0, shown
    rows = [line for line in shown.decode().split("\r\n") if "/2 " in line]
    assert [row.split()[0] for row in rows] == ["1/2", "2/2"]
    drawn = [each for row in rows for each in row.split("\r") if each]
    assert max(map(len, drawn)) < 60
    assert "\x1b" not in shown.decode()


# I. Windows, which lacks some modules and signals.


WINDOWS = """
import os, runpy, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"):
    sys.modules[name] = None
from lightning.pytorch.trainer.connectors import signal_connector
signal_connector._IS_WINDOWS = True
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGQUIT", "SIGKILL", "SIGSTOP"):
    delattr(signal, name)
signal.valid_signals = lambda: {signal.SIGINT, signal.SIGTERM, signal.SIGABRT}
for name in ("fork", "sched_getaffinity", "getuid", "setsid", "killpg"):
    delattr(os, name)
sys.argv[0] = sys.argv.pop(1)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_system_without_posix(tiny_data: Path, command: Command) -> None:
    overrides = [*tiny_overrides(tiny_data), *SMOKE, "hydra.run.dir=run"]
    # filelock warns where it has not the locks of POSIX and not those of Windows.
    arguments = ("-W", "ignore:only soft file lock", "-c", WINDOWS, "fashion.train", *overrides)
    out, err = start(*arguments).communicate(timeout=60)
    assert err == ""
    assert "Validation accuracy" in out
    assert command("evaluate", "run").status == 0
