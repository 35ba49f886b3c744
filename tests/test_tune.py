"""The real command on tiny data: a search to its conclusion, its continuation, its refusals."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Command, Outcome, composed, refused, run_command, tiny_overrides
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import StorageInternalError
from optuna.pruners import NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

import fashion.training.process  # noqa: F401 - before a search's time begins
from fashion import train, tune
from fashion.errors import DivergenceError, Interrupted, UserError
from fashion.runs.run import Run, without_metadata
from fashion.search import workers
from fashion.search.study import Sampler, open_study
from fashion.search.trials import ATTEMPTS, Limits, Trials, failure

pytestmark = pytest.mark.slow

SPACE = """
optimizer.lr: {float: [0.0001, 0.03], log: true}
model.network.dense: {length: [1, 2], int: [4, 16]}
model.network.dropout: {float: [0.0, 0.7], when: {model.network.dense.length: 1}}
"""
SMALL = ("model=mlp", "model.network.dense=[8]", "trainer.max_epochs=4", "trials=5")


def overrides(data: Path, folder: Path, *more: str, space: str = SPACE) -> list[str]:
    """Return the arguments of a search of `space`, which is written beside the folder."""
    conf = folder.parent / "conf"
    (conf / "search").mkdir(parents=True, exist_ok=True)
    (conf / "search/tiny.yaml").write_text(space)
    return [
        *tiny_overrides(data),
        *SMALL,
        f"hydra.searchpath=[file://{conf}]",
        "search=tiny",
        f"folder={folder}",
        "confirm.top=2",
        "confirm.seeds=2",
        *more,
    ]


@pytest.fixture
def search(tiny_data: Path, tmp_path: Path, command: Command) -> Command:
    """Return a function that runs a search below `tmp_path`, its one worker in this process."""

    def run(folder: str, *more: str, space: str = SPACE) -> Outcome:
        path = tmp_path / folder
        return command("tune", *overrides(tiny_data, path, "worker=0", *more, space=space))

    return run


def study_of(folder: Path) -> Study:
    sampler = Sampler(0, {}, group=True)
    return open_study(f"sqlite:///{folder}/study.db", "tiny", sampler=sampler, pruner=NopPruner())


def trials_of(folder: Path) -> list[FrozenTrial]:
    return study_of(folder).trials


def outcomes(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (trial.state, trial.params, trial.value, trial.intermediate_values)
        for trial in trials_of(folder)
    ]


Searched = tuple[Path, str]


@pytest.fixture(scope="module")
def searched(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Return a finished search's folder, and what it printed."""
    base = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as monkeypatch:
        printed: list[str] = []
        monkeypatch.setattr("builtins.print", lambda text, **_: printed.append(text))
        status = run_command(
            monkeypatch, "tune", *overrides(tiny_data, base / "search", "worker=0")
        )
    assert status == 0
    return base / "search", "\n".join(printed)


# A search.


def test_every_trial_is_a_run(searched: Searched) -> None:
    folder, _ = searched
    trials = trials_of(folder)
    assert len(trials) == 5
    assert trials[0].params["optimizer.lr"] == 0.001  # as the configuration stands
    assert trials[0].params["model.network.dense.0"] == 8
    for trial in trials:
        run = Run.open(folder / "trials" / str(trial.number))
        assert run.config.name == f"tiny-{trial.number}"
        assert run.config.optimizer.lr == trial.params["optimizer.lr"]
        assert len(run.config.model.network.dense) == trial.params["model.network.dense.length"]
        assert run.config.trainer.max_epochs == 4  # which the schedule is planned for
        assert not {"search", "trials", "save_as"} & run.config.keys()
        assert run.finished == (trial.state == TrialState.COMPLETE)
        curve = run.history["val/acc"]
        assert curve == pytest.approx(list(trial.intermediate_values.values()), abs=1e-6)
        if run.finished:
            assert trial.value == run.metrics["val/acc"]
            assert not [key for key in run.metrics if key.startswith("test")]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_the_confirmation(searched: Searched) -> None:
    folder, printed = searched
    runs = {run.folder.name: run for run in Run.find(folder / "confirm")}
    completed = Trials(trials_of(folder)).completed
    chosen = {trial.number for trial in completed[:2]} | {0}
    assert set(runs) == {f"tiny-{number},seed-{seed}" for number in chosen for seed in (1, 2)}
    record = json.loads((folder / "search.json").read_text())
    means = {name: sum(seeds.values()) / 2 for name, seeds in record["confirmation"].items()}
    assert means[record["winner"]] == max(means.values())
    for name, run in runs.items():
        title, _, seed = name.partition(",seed-")
        assert run.config.seed == int(seed)
        assert record["confirmation"][title][seed] == run.metrics["val/acc"]
        assert run.config.optimizer == Run(folder / "trials" / title[5:]).config.optimizer
    assert f"{100 * max(means.values()):.2f} %" in printed
    assert "5 trials in" in printed
    assert "It ended because all 5 trials are done." in printed
    assert "it is optimistic" in printed
    assert len(record["trials"]) == 5
    assert [trial["state"] for trial in record["trials"]].count("pruned") >= 1


def test_the_printed_command_trains_the_winner(
    searched: Searched, tiny_data: Path, tmp_path: Path, command: Command
) -> None:
    folder, printed = searched
    (line,) = [line for line in printed.splitlines() if "python -m fashion.train" in line]
    text = (folder / "experiment/tiny.yaml").read_text()
    assert text.startswith(f"# @package _global_\n# {line.strip()}\n")
    assert "# Search: python -m fashion.tune " in text
    words = shlex.split(line)[3:]
    run = tmp_path / "run"
    done = command("train", *words, *tiny_overrides(tiny_data), f"hydra.run.dir={run}")
    assert done.status == 0, done.err
    record = json.loads((folder / "search.json").read_text())
    winner = Run(folder / f"confirm/{record['winner']},seed-1").config
    winner.seed = 0
    assert without_metadata(Run(run).config) == without_metadata(winner)
    assert Run(run).config.name == "tiny"


def test_the_page(searched: Searched) -> None:
    page = (searched[0] / "search.html").read_text()
    for part in ("default-src 'none'", "model.network.dropout", "pruned", "tiny-0", "<svg"):
        assert part in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
    assert page.count("<section") == 7


def test_the_same_command_again_changes_nothing(
    searched: Searched, tiny_data: Path, command: Command
) -> None:
    def state() -> dict[Path, int]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        own = [path for path in files if {"trials", "confirm"} & set(path.parts)]
        return {path: path.stat().st_mtime_ns for path in own}

    folder, _ = searched
    before, trials = state(), outcomes(folder)
    done = command("tune", *overrides(tiny_data, folder, "worker=0"))
    assert done.status == 0, done.err
    assert outcomes(folder) == trials
    assert state() == before


def test_another_search_s_folder(searched: Searched, tiny_data: Path, command: Command) -> None:
    folder, _ = searched
    for other in ("trainer.max_epochs=3", "pruning.reduction_factor=4", "seed=1"):
        done = command("tune", *overrides(tiny_data, folder, "worker=0", other))
        refused(done, f"{folder} holds another search: it differs in")
        assert other.partition("=")[0] in done.err


def test_workers_that_fail_cost_no_conclusion(
    searched: Searched, tiny_data: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Any) -> None:
        raise UserError("A worker failed")

    monkeypatch.setattr(tune, "supervise", failing)
    done = command("tune", *overrides(tiny_data, searched[0]))
    refused(done, "A worker failed")
    assert "Winner: " in done.out


# Interruption and failure.


def test_a_search_that_continues_is_the_search_at_once(
    search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had ended, and was interrupted within a trial, which goes on from its checkpoint."""
    plain = ("confirm.seeds=0", "pruning.min_resource=2")
    assert search("a", *plain).status == 0
    assert search("b", *plain, "trials=1").status == 0
    from fashion.training.callbacks import OptunaPruning

    start = OptunaPruning.on_train_epoch_start
    stops = iter([1, 3, -1])
    stop = next(stops)
    epochs = []

    def interrupted(self: OptunaPruning, trainer: Any, module: Any) -> None:
        nonlocal stop
        epochs.append(trainer.current_epoch)
        if trainer.current_epoch == stop:
            stop = next(stops)
            raise Interrupted(signal.SIGTERM)
        start(self, trainer, module)

    monkeypatch.setattr(OptunaPruning, "on_train_epoch_start", interrupted)
    for _ in range(2):
        done = search("b", *plain)
        assert done.status == 143
        assert "The same command continues." in done.err
    assert search("b", *plain).status == 0
    assert 1 in epochs[epochs.index(1) + 1 :]  # the epoch that it continued with
    assert outcomes(tmp_path / "b") == outcomes(tmp_path / "a")
    assert len(Run.find(tmp_path / "b")) == 5


def test_failing_trials(search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {
        "1": MemoryError("out of memory"),
        "2": DivergenceError("The loss became infinite"),
        "3": ZeroDivisionError(),
    }
    original = train.train

    def failing(config: DictConfig, run: Run, **more: Any) -> float | None:
        if run.folder.name in errors:
            raise errors[run.folder.name]
        return original(config, run, **more)

    monkeypatch.setattr(train, "train", failing)
    done = search("a", "confirm.seeds=0")
    assert done.status == 0, done.err
    failed = {t.number: failure(t) for t in Trials(trials_of(tmp_path / "a")).failed}
    assert failed == {
        1: "out of memory: out of memory",
        2: "The loss became infinite",
        3: "ZeroDivisionError: ZeroDivisionError",
    }
    assert "3 failed" in done.out
    assert not (tmp_path / "a/experiment").exists()


@pytest.mark.parametrize("trials", [3, 50])
def test_if_nothing_succeeds_it_says_why(
    search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: int
) -> None:
    def failing(config: DictConfig, run: Run, **_: Any) -> float | None:
        raise OSError("no space left on device")

    monkeypatch.setattr(train, "train", failing)
    done = search("a", f"trials={trials}")
    assert done.status == 1
    made = min(trials, 10)
    assert f"error: No trial succeeded; {made} trials failed:\n  OSError: no space" in done.err
    assert len(trials_of(tmp_path / "a")) == made
    assert ("the search stopped" in done.err) == (trials > 10)


def test_what_the_confirmation_could_not_train(
    search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun comes last: it may be what kills the worker."""
    order, original = [], train.train
    broken = {"tiny-0,seed-2"}

    def failing(config: DictConfig, run: Run, **more: Any) -> float | None:
        order.append(run.folder.name)
        if run.folder.name in broken:
            raise MemoryError
        return original(config, run, **more)

    monkeypatch.setattr(train, "train", failing)
    assert search("a", "trials=1", "confirm.seeds=0").status == 0
    (tmp_path / "a/confirm/tiny-0,seed-1").mkdir(parents=True)
    done = search("a", "trials=1")
    assert done.status == 0, done.err
    assert order == ["0", "tiny-0,seed-2", "tiny-0,seed-1"]
    assert "Not trained: tiny-0,seed-2: out of memory: MemoryError" in done.out
    assert "nothing was trained on fresh seeds" in done.out
    broken.clear()
    done = search("a", "trials=1")  # the same command again trains what is left
    assert "Not trained" not in done.out
    assert (tmp_path / "a/confirm/tiny-0,seed-2/metrics.json").exists()


def test_time_runs_out_within_a_trial_and_more_of_it_continues(
    search: Command, tmp_path: Path
) -> None:
    plain = ("confirm.seeds=0", "trials=2", "trainer.max_epochs=50000", "pruning=null")
    began = time.time()
    done = search("a", *plain, "hours=0.0006", "callbacks.early_stopping=null")
    assert done.status == 0, done.err
    assert time.time() - began < 60
    assert "its time is up" in done.out
    (trial,) = trials_of(tmp_path / "a")
    assert trial.state == TrialState.RUNNING
    assert "interrupted" in (tmp_path / "a/search.html").read_text()
    epochs = len(trial.intermediate_values)
    search("a", *plain, "hours=0.002", "callbacks.early_stopping=null")
    (trial,) = trials_of(tmp_path / "a")
    assert len(trial.intermediate_values) > epochs
    attempts = trial.user_attrs[ATTEMPTS]
    search("a", *plain, "hours=0.002", "callbacks.early_stopping=null")
    assert trials_of(tmp_path / "a")[0].user_attrs[ATTEMPTS] == attempts


def test_a_file_system_that_does_not_share_locks(
    search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker takes a trial whose folder this one has locked."""
    from fashion.training.callbacks import OptunaPruning

    report = OptunaPruning.on_train_epoch_end

    def taken(self: OptunaPruning, trainer: Any, module: Any) -> None:
        report(self, trainer, module)
        study = study_of(tmp_path / "a")
        trial = study.trials[0]
        attempts = [*trial.user_attrs[ATTEMPTS], [1, 0.0, None]]
        study._storage.set_trial_user_attr(trial._trial_id, ATTEMPTS, attempts)  # noqa: SLF001

    monkeypatch.setattr(OptunaPruning, "on_train_epoch_end", taken)
    refused(search("a"), "does not share locks between machines")
    (trial,) = trials_of(tmp_path / "a")
    assert trial.state == TrialState.RUNNING  # the other one's


def test_a_folder_with_trials_of_another_study(search: Command, tmp_path: Path) -> None:
    assert search("a", "trials=1", "confirm.seeds=0").status == 0
    for name in ("study.db", "study.db-wal", "study.db-shm"):
        (tmp_path / "a" / name).unlink(missing_ok=True)
    refused(search("a", "trials=1"), f"{tmp_path}/a holds trials, and tiny in sqlite:///")


# The winner's experiment.


def test_what_the_search_was_given_is_in_the_winner_s_command(
    search: Command, tmp_path: Path, command: Command
) -> None:
    """A model of one's own, a removed key and a saved file that is not overwritten."""
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text("defaults: [mlp]\n")
    file = tmp_path / "mine/experiment/found.yaml"
    given = (
        *("model=own", "~trainer.log_every_n_steps", f"save_as={file}", "trials=1"),
        *("confirm.seeds=1", "experiment=fast", "optimizer=adam", "data.batch_size=32"),
    )
    done = search("a", *given)
    assert done.status == 0, done.err
    searchpath = f"'hydra.searchpath=[file://{tmp_path}/conf]'"
    assert (
        f"python -m fashion.train --config-dir {tmp_path}/mine experiment=found {searchpath} "
        "'~trainer.log_every_n_steps'"
    ) in done.out
    (line,) = [line for line in done.out.splitlines() if "python -m fashion.train" in line]
    shown = command("train", "--cfg", "job", "--resolve", *shlex.split(line)[3:])
    config: Any = OmegaConf.create(shown.out)
    winner = Run(tmp_path / "a/confirm/tiny-0,seed-1").config
    winner.seed = 0
    assert without_metadata(config) == without_metadata(winner)
    text = file.read_text()
    assert "defaults:\n- fast\n- override /model: own\n- override /optimizer: adam\n" in text
    done = search("a", *given)
    assert done.status == 0, done.err  # this search's own file
    file.write_text(file.read_text().replace(f"in {tmp_path}/a,", f"in {tmp_path}/a2,"))
    refused(search("a", *given), f"{file} exists, and this search has not")  # but one in a2
    file.write_text("# mine\n")
    refused(search("b", f"save_as={file}"), f"{file} exists, and this search has not")
    assert file.read_text() == "# mine\n"
    assert not (tmp_path / "b").exists()


# Refusals.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("test=true", "never reads the test set"),
        ("data.val_size=0", "a search needs a validation set"),
        ("trainer.devices=2", "a trial runs on one"),
        ("trainer.devices=auto", "trainer.devices = auto: a trial runs on one"),
        ("trainer.num_nodes=2", "trainer.num_nodes = 2: a trial runs on one"),
        ("trainer.fast_dev_run=true", "a trial has a result"),
        ("trials=0", "trials = 0: input should be greater than 0"),
        ("hours=-1", "hours = -1"),
        ("workers=two", "workers = two"),
        ("pruning.reduction_factor=1", "pruning.reduction_factor = 1: input should be greater"),
        ("+pruning.foo=4", "pruning.foo: there is no such key"),
        ("+confirm.topp=3", "confirm.topp: there is no such key. Did you mean top?"),
        ("confirm.top=0", "confirm.top = 0"),
        ("improvement.after=100.5", "improvement.after = 100.5: input should be a valid integer"),
        ("optimizer.lr=0.1", "search.optimizer.lr: the configuration's own value, 0.1"),
        ("search=none", "search=none: there is no such option"),
        ("optimizer.rate=1", "optimizer.rate: there is no such key"),
        ("save_as=conf/found.yaml", "it must be a file experiment/NAME.yaml"),
        ("experiment=searched name=searched", "the winner would refer to itself"),
        ("name=fast", "the project has an experiment of this name"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_is_made(
    search: Command, tmp_path: Path, override: str, message: str
) -> None:
    refused(search("a", *override.split()), message)
    assert not (tmp_path / "a").exists()


def test_a_worker_s_command_has_its_number_among_the_overrides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ["search=deck", "experiment=explore", "--config-dir", "mine", "--verbose"]
    monkeypatch.setattr("fashion.search.workers.task_overrides", lambda: given[:2])
    expected = [*given[:2], "worker=3", *given[2:]]
    assert workers._as_worker(given, 3) == expected  # noqa: SLF001
    monkeypatch.setattr("fashion.search.workers.task_overrides", list)
    assert workers._as_worker([], 3) == ["worker=3"]  # noqa: SLF001


def test_a_database_that_goes_away_is_no_traceback(
    search: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: object) -> None:
        raise StorageInternalError("connection refused")

    monkeypatch.setattr("fashion.search.study.Search.run_trials", gone)
    refused(search("a"), "database cannot be reached", "connection refused", "same command")


def test_a_wrong_space_is_refused_before_anything_is_made(search: Command, tmp_path: Path) -> None:
    done = search("a", space="optimizer.rate: {float: [0, 1]}")
    refused(done, "search.optimizer.rate: there is no such key")
    assert not (tmp_path / "a").exists()


def test_hydra_s_run_dir_is_not_a_search_s_folder(search: Command, tmp_path: Path) -> None:
    done = search("a", f"hydra.run.dir={tmp_path}/b")
    refused(done, "a search's folder is set by folder=FOLDER")
    assert not list(tmp_path.glob("[ab]"))


def test_batch_sizes_under_a_limit_of_steps() -> None:
    from fashion.search.space import Space
    from fashion.search.study import Search

    config = OmegaConf.create({"search": {"data.batch_size": {"choices": [32, 64]}}})
    for limit, warned in ((300, True), (0.5, False), (None, False)):
        training = composed()
        training.trainer.limit_train_batches = limit
        search = Search(config, training, Space((), ()), Path("a"))
        assert bool(search.warnings) == warned


@pytest.mark.parametrize("argument", ["--help", "--cfg", "optimizer.lr=5"])
def test_an_answer_at_once(argument: str, tmp_path: Path) -> None:
    """Help, the configuration and a wrong space wait for no import of torch or Optuna."""
    arguments = [argument, "job"] if argument == "--cfg" else [argument]
    script = (
        f"import sys; sys.argv = ['tune', *{arguments}]\n"
        "from fashion import tune\n"
        "slow = {'torch', 'lightning', 'torchvision', 'matplotlib', 'optuna', 'sqlalchemy'}\n"
        "try: tune.main()\n"
        "finally: print('SLOW', sorted(slow & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tune.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "SLOW []" in done.stdout, done.stderr
    assert done.returncode == (1 if "=" in argument else 0)
    assert ("search" in done.stdout) == ("=" not in argument)


# Workers.


def test_what_the_command_shows(tiny_data: Path, tmp_path: Path, command: Command) -> None:
    done = command(
        "tune",
        *overrides(tiny_data, tmp_path / "a", "workers=1", "trials=2", "confirm.seeds=1"),
        "trainer.threads=1",  # so that none measures how many are fast
    )
    assert done.status == 0, done.err
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert re.fullmatch(r"trial    0  \d+\.\d\d % after 4 epochs", lines[0])
    assert lines[1].startswith("trial    1  ")
    assert lines[2] == "The search is over: all 2 trials are done."
    assert re.match(r"Confirming the best: \d runs? on fresh seeds, about \d+ seconds?", lines[3])
    assert re.fullmatch(r"tiny-\d, seed 1: \d+\.\d\d %", lines[4])


def test_what_a_terminal_shows_of_a_running_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its epochs and accuracy, long before it has finished."""
    from optuna import create_study

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    study = create_study(direction="maximize")
    trial = study.ask()
    trial.report(0.8125, 1)
    written: list[Any] = []
    monkeypatch.setattr("fashion.search.page.write", lambda *given: written.append(given))
    monkeypatch.setattr(workers, "PAGE_SECONDS", 0)
    search: Any = SimpleNamespace(
        trials=lambda: Trials.of(study),
        warnings=["steps are counted"],
        folder=tmp_path,
        config=OmegaConf.create({"trials": 7}),
        limits=Limits(7),
        deadline=time.time() + 90,
    )
    display = workers._Display(search)  # noqa: SLF001
    assert display.update() == 0
    run = Run(tmp_path / "run")
    run.write_text("history.csv", "epoch,val/acc\n1,0.5\n2,0.75\n3,\n")  # 3: no validation
    display.confirming = {"winner": run}
    display.update()
    display.close()
    shown = capfd.readouterr().out
    for part in ("Warning: steps", "trial 0", "81.25 % after 1 epoch", "0 of 7 trials", "left"):
        assert part in shown
    assert "75.00 % after 2 epochs" in shown
    assert written  # the page, while the search runs


def test_workers_as_a_launcher_starts_them(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """-m, in the folder that the search's name gives it."""
    monkeypatch.chdir(tmp_path)
    line = [
        word
        for word in overrides(tiny_data, tmp_path / "a", "trials=2", "confirm.seeds=0")
        if not word.startswith("folder=")
    ]
    done = command("tune", "-m", *line, "worker=0,1")
    assert done.status == 0, done.err
    assert len(trials_of(tmp_path / "logs/tiny-search")) == 2
    assert done.out.count("It ended because all 2 trials are done.") == 2
    done = command("tune", "-m", *line)
    assert done.status == 1
    assert "error: -m starts workers of a search" in done.err


@pytest.mark.parametrize("statuses", [(3, 0), (3, 4)])
def test_workers_that_keep_failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, int]
) -> None:
    """One is given up while another works; when none works, the search says why.

    The storage is out of reach at first, which ends nothing.
    """

    class Display:
        unreachable = True

        def __init__(self, search: Any) -> None: ...
        def update(self) -> int:
            if self.unreachable:
                self.unreachable = False
                raise StorageInternalError
            return 0

        def close(self) -> None: ...

    made = iter(statuses)

    def start(self: Any) -> None:
        if not hasattr(self, "status"):
            self.status = next(made)
        pause = 0 if self.status else 3
        script = f"import time; time.sleep({pause}); raise SystemExit({self.status})"
        self.log.write_text("all is wrong\n")
        self.process = subprocess.Popen([sys.executable, "-c", script])

    monkeypatch.setattr(workers, "_Display", Display)
    monkeypatch.setattr(workers, "MOST_EXITS", 2)
    monkeypatch.setattr(workers._Worker, "_start", start)  # noqa: SLF001
    config = OmegaConf.create({"workers": 2})
    some: Any = SimpleNamespace(config=config, folder=tmp_path, deadline=None, first=0)
    if 0 in statuses:
        workers.supervise(some)
        return
    with pytest.raises(UserError, match=r"failed 2 times .* exit status 3\. .*\n  all is wrong"):
        workers.supervise(some)


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.5)  # to read a study costs as much as a step of the search


def test_a_worker_is_killed_and_then_the_command(tiny_data: Path, tmp_path: Path) -> None:
    """Another worker is started; without the command it ends; the same command continues."""
    folder = tmp_path / "a"
    command = [
        *(sys.executable, "-m", "fashion.tune"),
        *overrides(tiny_data, folder, "workers=1", "confirm.seeds=0", "trials=2"),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(tune.__file__).parent.parent)}

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "output.log").open("w") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def finished() -> int:
        return len(Trials(trials_of(folder)).finished)

    def children(process: subprocess.Popen[bytes]) -> list[int]:
        path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return [int(child) for child in path.read_text().split()]

    parent = start()
    try:
        until((folder / "trials/0/.hydra/config.yaml").exists)
        (worker,) = children(parent)
        os.kill(worker, signal.SIGKILL)
        until(lambda: children(parent) not in ([], [worker]))
        until(lambda: finished() >= 1)
        (worker,) = children(parent)
        parent.kill()
        parent.wait()
        until(lambda: not Path(f"/proc/{worker}/cmdline").exists())
        parent = start()
        assert parent.wait(300) == 0, (tmp_path / "output.log").read_text()
    finally:
        parent.kill()
        parent.wait()
    output = (tmp_path / "output.log").read_text()
    assert "2 trials in" in output
    assert "Confirming" not in output
    trials = trials_of(folder)
    assert len(trials) == 2
    assert all(trial.state.is_finished() for trial in trials)
    assert len(trials[0].user_attrs[ATTEMPTS]) >= 2
    assert len(Run.find(folder / "trials")) == 2
