"""The real command on tiny data: a search to its verdict, its continuation, and how it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Outcome, tiny_overrides
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from test_train import python, state

from fashion import tune
from fashion.errors import DivergenceError, Interrupted, UserError
from fashion.runs.run import Run
from fashion.search import workers
from fashion.search.search import Search
from fashion.search.space import Space
from fashion.search.study import distinct, open_study, origin, reason
from fashion.train import CONF, train

SPACE = """
optimizer.lr: {float: [0.0001, 0.03], log: true}
model.network.dense: {length: [1, 2], int: [4, 16]}
model.network.dropout: {float: [0.0, 0.7], when: {model.network.dense.length: 1}}
"""
SMALL = ("model=mlp", "model.network.dense=[8]", "trainer.max_epochs=4", "trials=5")


def overrides(data: Path, folder: Path, *more: str, space: str = SPACE) -> list[str]:
    """A search of `space`, which is written beside the folder."""
    conf = folder.parent / "conf"
    (conf / "search").mkdir(parents=True, exist_ok=True)
    (conf / "search/tiny.yaml").write_text(space)
    return [
        *tiny_overrides(data),
        *SMALL,
        f"hydra.searchpath=[file://{conf}]",
        "search=tiny",
        f"folder={folder}",
        "heartbeat=1",
        "confirm.top=2",
        "confirm.seeds=2",
        *more,
    ]


@pytest.fixture(autouse=True)
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where recipes go, instead of conf/experiment."""
    folder = tmp_path / "recipes"
    monkeypatch.setattr(tune, "RECIPES", folder)
    return folder


@pytest.fixture
def search(tiny_data: Path, tmp_path: Path, command: Command) -> Command:
    """A search below `tmp_path`, its one worker in this process."""

    def run(folder: str, *more: str, space: str = SPACE) -> Outcome:
        place = tmp_path / folder
        return command("tune", *overrides(tiny_data, place, "worker=0", *more, space=space))

    return run


def trials_of(folder: Path) -> list[FrozenTrial]:
    study = open_study(
        f"sqlite:///{folder}/study.db",
        "tiny",
        seed=0,
        defaults={},
        conditional=True,
        halving=None,
        heartbeat=1,
    )
    return study.trials


def outcome(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (trial.state, trial.params, trial.value, trial.intermediate_values)
        for trial in distinct(trials_of(folder))
    ]


def refused(done: Outcome, *parts: str) -> None:
    assert done.status == 1, done.out
    assert "Traceback" not in done.out + done.err
    assert done.err.startswith("error: "), done.err
    for part in parts:
        assert part in done.err


@pytest.fixture(scope="module")
def searched(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A finished search: its folder, its recipe, what it printed."""
    from conftest import run_command

    base = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tune, "RECIPES", base / "recipes")
        printed: list[str] = []
        monkeypatch.setattr("builtins.print", lambda text, **_: printed.append(text))
        status = run_command(
            monkeypatch, "tune", *overrides(tiny_data, base / "search", "worker=0")
        )
    assert status == 0
    return base / "search", base / "recipes/tiny.yaml", "\n".join(printed)


def test_every_trial_is_a_run(searched: tuple[Path, Path, str]) -> None:
    folder, _, _ = searched
    trials = trials_of(folder)
    assert len(trials) == 5
    assert trials[0].params["optimizer.lr"] == 0.001  # as the configuration stands
    assert trials[0].params["model.network.dense.0"] == 8
    for trial in trials:
        run = Run.open(folder / "trials" / str(trial.number))
        assert run.config.name == f"tiny-{trial.number}"
        assert run.config.optimizer.lr == trial.params["optimizer.lr"]
        assert len(run.config.model.network.dense) == trial.params["model.network.dense.length"]
        assert run.config.trainer.max_epochs == 4  # and so the rate's schedule
        assert "search" not in run.config
        assert run.finished == (trial.state == TrialState.COMPLETE)
        curve = run.history["val/acc"]
        assert curve == pytest.approx(list(trial.intermediate_values.values()), abs=1e-6)
        if run.finished:
            assert trial.value == run.metrics["val/acc"]
            assert not [key for key in run.metrics if key.startswith("test")]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_the_verdict(searched: tuple[Path, Path, str]) -> None:
    folder, _, printed = searched
    runs = {run.folder.name: run for run in Run.below(folder / "confirm")}
    trials = sorted(
        (t for t in trials_of(folder) if t.state == TrialState.COMPLETE), key=lambda t: -t.value
    )
    chosen = {t.number for t in trials[:2]} | {0}
    assert set(runs) == {f"tiny-{number},seed-{seed}" for number in chosen for seed in (1, 2)}
    record = json.loads((folder / "search.json").read_text())
    means = {name: sum(seeds.values()) / 2 for name, seeds in record["verdict"].items()}
    assert means[record["winner"]] == max(means.values())
    for name, run in runs.items():
        title, _, seed = name.partition(",seed-")
        assert run.config.seed == int(seed)
        assert record["verdict"][title][seed] == run.metrics["val/acc"]
        assert run.config.optimizer == Run(folder / "trials" / title[5:]).config.optimizer
    assert f"{100 * max(means.values()):.2f} %" in printed
    assert "5 trials in" in printed
    assert "It ended because all 5 trials are done." in printed
    assert "Going on: " in printed
    assert "it flatters" in printed
    assert len(record["trials"]) == 5
    assert [trial["state"] for trial in record["trials"]].count("pruned") >= 1


def test_the_recipe_is_the_winner(searched: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder, recipe, printed = searched
    assert "python -m fashion.train experiment=tiny" in printed
    text = recipe.read_text()
    path = f"'hydra.searchpath=[file://{folder.parent}/conf]'"
    first = f"# python -m fashion.train experiment=tiny {path}\n"
    assert text.startswith(f"# @package _global_\n{first}")
    assert "# Search: python -m fashion.tune " in text
    assert "fresh seeds" in text
    record = json.loads((folder / "search.json").read_text())
    # As train.yaml composes it.
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/tiny.yaml").write_text(text)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["experiment=tiny", f"hydra.searchpath=[file://{tmp_path}]"])
    winner = Run(folder / f"confirm/{record['winner']},seed-1").config
    for key in ("data", "model", "optimizer", "callbacks"):
        same = OmegaConf.to_container(config[key])
        wanted = OmegaConf.to_container(winner[key])
        if key == "data":
            same["root"] = wanted["root"]  # type: ignore[index, call-overload]
        assert same == wanted
    assert config.trainer.max_epochs == 4
    assert config.name == "tiny"
    assert config.seed == 0


def test_the_page(searched: tuple[Path, Path, str]) -> None:
    folder, _, _ = searched
    page = (folder / "search.html").read_text()
    for part in ("default-src 'none'", "model.network.dropout", "pruned", "tiny-0", "<svg"):
        assert part in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
    assert page.count("<section") == 7


def test_the_same_command_again_changes_nothing(
    searched: tuple[Path, Path, str], tiny_data: Path, command: Command
) -> None:
    folder, _, _ = searched
    before = {
        name: time_
        for name, time_ in state(folder).items()
        if "/trials/" in name or "/confirm/" in name
    }
    trials = outcome(folder)
    done = command("tune", *overrides(tiny_data, folder, "worker=0"))
    assert done.status == 0, done.err
    assert outcome(folder) == trials
    after = state(folder)
    assert {name: after[name] for name in before} == before


def test_another_search_s_folder(
    searched: tuple[Path, Path, str], tiny_data: Path, command: Command
) -> None:
    folder, _, _ = searched
    for other in ("trainer.max_epochs=3", "pruning.reduction_factor=4", "seed=1"):
        done = command("tune", *overrides(tiny_data, folder, "worker=0", other))
        refused(done, f"{folder} holds another search: it differs in")
        assert other.partition("=")[0] in done.err


def test_a_search_that_continues_is_the_search_at_once(
    search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had ended, and was interrupted within a trial, which goes on from its checkpoint."""
    plain = ("confirm.seeds=0", "pruning.min_resource=2")
    assert search("a", *plain).status == 0
    assert search("b", *plain, "trials=1").status == 0
    from fashion.training.callbacks import OptunaPruning

    start = OptunaPruning.on_train_epoch_start
    stops = iter([(0, 1), (0, 3)])
    stop = next(stops)
    epochs = []

    def interrupted(self: OptunaPruning, trainer: Any, module: Any) -> None:
        nonlocal stop
        epochs.append(trainer.current_epoch)
        if trainer.current_epoch == stop[1]:
            stop = next(stops, (0, -1))
            raise Interrupted(signal.SIGTERM)
        start(self, trainer, module)

    monkeypatch.setattr(OptunaPruning, "on_train_epoch_start", interrupted)
    for _ in range(2):
        done = search("b", *plain)
        assert done.status == 143
        assert "The same command continues." in done.err
    assert search("b", *plain).status == 0
    assert 1 in epochs[epochs.index(1) + 1 :]  # the epoch that it went on with
    assert outcome(tmp_path / "b") == outcome(tmp_path / "a")
    assert len(Run.below(tmp_path / "b")) == 5


def test_failing_trials(search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: DictConfig, run: Run, **more: Any) -> float | None:
        number = run.folder.name
        if number == "1":
            raise MemoryError("out of memory")
        if number == "2":
            raise DivergenceError("The loss became infinite")
        if number == "3":
            raise ZeroDivisionError
        return train(config, run, **more)

    monkeypatch.setattr(tune, "train", failing)
    done = search("a", "confirm.seeds=0")
    assert done.status == 0, done.err
    trials = trials_of(tmp_path / "a")
    failed = [(t.number, reason(t)) for t in trials if t.state == TrialState.FAIL]
    assert failed == [
        (1, "out of memory: out of memory"),
        (2, "The loss became infinite"),
        (3, "ZeroDivisionError: ZeroDivisionError"),
    ]
    assert "3 failed" in done.out
    assert not (tmp_path / "recipes").exists()


def test_when_all_fail_it_says_so(
    search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(config: DictConfig, run: Run, **_: Any) -> float | None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tune, "train", failing)
    done = search("a", "trials=50")
    assert done.status == 1
    assert "error: The search has stopped" in done.err
    assert "all for one reason.\n  OSError: no space left on device\n" in done.err
    assert len(trials_of(tmp_path / "a")) == 10


def test_what_the_verdict_could_not_train(
    search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(config: DictConfig, run: Run, **more: Any) -> float | None:
        if run.folder.name == "tiny-0,seed-2":
            raise MemoryError
        return train(config, run, **more)

    monkeypatch.setattr(tune, "train", failing)
    done = search("a", "trials=3")
    assert done.status == 0, done.err
    assert "Not trained: tiny-0,seed-2: out of memory: MemoryError" in done.out
    assert "could not be trained, and is not compared" in done.out
    monkeypatch.setattr(tune, "train", train)
    done = search("a", "trials=3")  # the same command again trains what is left
    assert "Not trained" not in done.out
    assert (tmp_path / "a/confirm/tiny-0,seed-2/metrics.json").exists()


def test_time_runs_out_within_a_trial_and_more_of_it_continues(
    search: Command, tmp_path: Path
) -> None:
    plain = ("confirm.seeds=0", "trials=2", "trainer.max_epochs=500", "pruning=null")
    began = time.time()
    done = search("a", *plain, "hours=0.0008", "callbacks.early_stopping=null")
    assert done.status == 0, done.err
    assert time.time() - began < 30
    assert "its time is up" in done.out
    (trial,) = distinct(trials_of(tmp_path / "a"))
    assert trial.state == TrialState.WAITING
    epochs = len(trial.intermediate_values)
    search("a", *plain, "hours=0.0016", "callbacks.early_stopping=null")
    (trial,) = distinct(trials_of(tmp_path / "a"))
    assert len(trial.intermediate_values) > epochs
    assert [run.folder.name for run in Run.below(tmp_path / "a")] == ["0"]
    attempts = len(trials_of(tmp_path / "a"))
    search("a", *plain, "hours=0.0016", "callbacks.early_stopping=null")
    assert len(trials_of(tmp_path / "a")) == attempts


def test_a_folder_with_trials_of_another_study(search: Command, tmp_path: Path) -> None:
    assert search("a", "trials=1", "confirm.seeds=0").status == 0
    for name in ("study.db", "study.db-wal", "study.db-shm"):
        (tmp_path / "a" / name).unlink(missing_ok=True)
    refused(search("a", "trials=1"), f"{tmp_path}/a holds trials that tiny in sqlite:///")
    refused(search("a", "trials=1", "name=b"), "holds trials that b in")


def test_the_verdict_trains_what_was_begun_last(
    search: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be what kills us."""
    order = []

    def noted(config: DictConfig, run: Run, **more: Any) -> float | None:
        order.append(run.folder.name)
        return train(config, run, **more)

    monkeypatch.setattr(tune, "train", noted)
    (tmp_path / "a/confirm/tiny-0,seed-1").mkdir(parents=True)
    assert search("a", "trials=1").status == 0
    assert order == ["0", "tiny-0,seed-2", "tiny-0,seed-1"]


def test_workers_that_died_cost_no_conclusion(
    searched: tuple[Path, Path, str],
    tiny_data: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _, _ = searched

    def dying(_: Search) -> None:
        raise UserError("A worker died")

    monkeypatch.setattr(tune, "supervise", dying)
    done = command("tune", *overrides(tiny_data, folder))
    refused(done, "A worker died")
    assert "Winner: " in done.out


def test_a_network_of_one_s_own(search: Command, tmp_path: Path, recipes: Path) -> None:
    """Found by hydra.searchpath, as the space is; training the winner takes it too."""
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text("defaults: [mlp]\n")
    done = search("a", "model=own", "trials=1", "confirm.seeds=1")
    assert done.status == 0, done.err
    command = f"python -m fashion.train experiment=tiny 'hydra.searchpath=[file://{tmp_path}/conf]'"
    assert command in done.out
    text = (recipes / "tiny.yaml").read_text()
    assert f"# {command}\n" in text
    assert "- override /model: own\n" in text


def test_a_recipe_of_another_search_stays(search: Command, tmp_path: Path, recipes: Path) -> None:
    one = ("trials=1", "confirm.seeds=1")
    assert search("a", *one).status == 0
    text = (recipes / "tiny.yaml").read_text()
    done = search("b", *one, "optimizer.lr=0.002")
    assert f"the recipe lies in {tmp_path}/b/tiny.yaml" in done.out
    assert (recipes / "tiny.yaml").read_text() == text
    done = search("a", "trials=2", "confirm.seeds=1")  # the same search, continued
    assert "the recipe lies in" not in done.out


def test_a_recipe_that_is_somebody_s_own_stays(
    search: Command, tmp_path: Path, recipes: Path
) -> None:
    recipes.mkdir()
    (recipes / "tiny.yaml").write_text("# mine\n")
    done = search("a", "trials=2")
    assert f"the recipe lies in {tmp_path}/a/tiny.yaml" in done.out
    assert (recipes / "tiny.yaml").read_text() == "# mine\n"
    assert "@package _global_" in (tmp_path / "a/tiny.yaml").read_text()
    (recipes / "tiny.yaml").unlink()
    recipes.rmdir()
    recipes.touch()  # nothing can be written below it
    done = search("a", "trials=2")
    assert done.status == 0, done.err
    assert "cannot be written" in done.out
    assert f"the recipe lies in {tmp_path}/a/tiny.yaml" in done.out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("test=true", "never reads the test set"),
        ("data.val_size=0", "a search needs pictures held out"),
        ("trainer.devices=2", "a trial runs on one"),
        ("trials=0", "trials = 0: input should be greater than 0"),
        ("hours=-1", "hours = -1"),
        ("workers=two", "workers = two"),
        ("pruning.reduction_factor=1", "pruning.reduction_factor = 1"),
        ("optimizer.lr=0.1", "search.optimizer.lr: the configuration's own value, 0.1"),
        ("search=none", "search/none"),
        ("optimizer.rate=1", "optimizer.rate: there is no such key"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_is_made(
    search: Command, tmp_path: Path, override: str, message: str
) -> None:
    refused(search("a", override), message)
    assert not (tmp_path / "a").exists()


def test_a_wrong_space_is_refused_before_anything_is_made(search: Command, tmp_path: Path) -> None:
    done = search("a", space="optimizer.rate: {float: [0, 1]}")
    refused(done, "search.optimizer.rate: there is no such key")
    assert not (tmp_path / "a").exists()


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
    done = python("-c", script, cwd=tmp_path)
    assert "SLOW []" in done.stdout, done.stderr
    assert done.returncode == (1 if "=" in argument else 0)
    assert ("dropout" in done.stdout) == ("=" not in argument)


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.5)  # to ask a study costs as much as a step of the search


def test_what_the_command_shows(tiny_data: Path, tmp_path: Path, command: Command) -> None:
    done = command(
        "tune",
        *overrides(tiny_data, tmp_path / "a", "workers=1", "trials=2", "confirm.seeds=1"),
    )
    assert done.status == 0, done.err
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert re.match(r"trial    0  \d+\.\d\d % after 4 epochs +best", lines[0])
    assert lines[1].startswith("trial    1  ")
    assert lines[2] == "The search is over: all 2 trials are done."
    assert re.match(r"Its verdict trains \d runs?, about \d+ seconds?;", lines[3])
    assert re.match(r"tiny-\d with seed 1: \d+\.\d\d %", lines[4])
    assert "Verdict" in done.out
    assert "left" not in done.out


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
    assert len(distinct(trials_of(tmp_path / "logs/tiny-search"))) == 2
    assert done.out.count("It ended because all 2 trials are done.") == 2
    done = command("tune", "-m", *line)
    assert done.status == 1
    assert "error: -m starts the workers of a search" in done.err


@pytest.mark.parametrize("statuses", [(3, 0), (3, 4)])
def test_workers_that_keep_dying(
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
    monkeypatch.setattr(workers, "DEATHS", 2)
    monkeypatch.setattr(workers._Worker, "_start", start)  # noqa: SLF001
    config = OmegaConf.create({"workers": 2})
    some = Search(config, config, Space((), ()), tmp_path)
    if 0 in statuses:
        workers.supervise(some)
        return
    with pytest.raises(UserError, match=r"died 2 times .* status 3\. .*\n  all is wrong"):
        workers.supervise(some)


def test_a_worker_of_its_own_is_killed_and_then_the_command(
    tiny_data: Path, tmp_path: Path
) -> None:
    """Another worker is started; without the command it ends; the same command continues."""
    folder = tmp_path / "a"
    command = [
        *(sys.executable, "-m", "fashion.tune"),
        *overrides(tiny_data, folder, "workers=1", "confirm.seeds=0", "trials=3"),
    ]
    environment = os.environ | {"PYTHONPATH": str(CONF.parent)}

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "output.log").open("w") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def ended(trials: int) -> bool:
        done = [trial for trial in trials_of(folder) if trial.state.is_finished()]
        return len(done) >= trials

    def children(process: subprocess.Popen[bytes]) -> list[int]:
        path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return [int(child) for child in path.read_text().split()]

    parent = start()
    try:
        until((folder / "trials/0/.hydra/config.yaml").exists)
        (worker,) = children(parent)
        os.kill(worker, signal.SIGKILL)
        until(lambda: children(parent) not in ([], [worker]))
        until(lambda: ended(1))
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
    assert "3 trials in" in output
    assert "Verdict" not in output
    every = trials_of(folder)
    trials = distinct(every)
    assert len(trials) == 3
    assert len(every) > 3
    assert all(trial.state.is_finished() for trial in trials)
    assert sorted({origin(trial) for trial in trials}) == sorted(
        int(run.folder.name) for run in Run.below(folder / "trials")
    )
