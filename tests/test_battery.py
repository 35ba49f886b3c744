"""Bad command lines, configurations and files: one message each, and nothing is changed by them.

A row is what a person types, or what is wrong with a file and what is typed then, beside what the
message must say. Values of single keys of the configuration are in tests/test_config.py.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import shlex
import shutil
import signal
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Outcome, tiny_overrides, write_idx
from PIL import Image, ImageDraw

import fashion.training.process  # noqa: F401 - what the commands import takes memory that is not a row's
from fashion import evaluate, predict, train  # noqa: F401
from fashion.data import download as idx
from fashion.runs.run import LONGEST_HISTORY, Run
from fashion.runs.untrusted import LARGEST_METRICS, LARGEST_TEXT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes"),
]
SECONDS = 20  # that a row may take, on a slow machine; most take milliseconds
MEGABYTES = 200  # that a row may take beyond what the process has already


# What the rows are about.


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, tiny_data: Path) -> Path:
    """A finished run, one that is not, data, a photo, and what is none of them."""
    place = tmp_path_factory.mktemp("battery")
    shutil.copytree(tiny_run, place / "run")
    shutil.copytree(tiny_data, place / "data")
    config = place / "run/.hydra/config.yaml"
    config.write_text(config.read_text().replace(str(tiny_data), str(place / "data")))
    shutil.copytree(place / "run", place / "unfinished")
    (place / "unfinished/metrics.json").unlink()
    (place / "empty").mkdir()
    (place / "file").write_text("hello\n")
    picture = Image.new("RGB", (120, 90), (235, 235, 230))
    ImageDraw.Draw(picture).rectangle((20, 30, 100, 60), (20, 30, 40))
    picture.save(place / "photo.png")
    return place


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the commands are given, and no way to bring data."""
    place = tmp_path / "place"
    shutil.copytree(original, place)
    os.mkfifo(place / "pipe")
    config = place / "run/.hydra/config.yaml"
    config.write_text(config.read_text().replace(str(original), str(place)))
    shutil.copy(config, place / "unfinished/.hydra/config.yaml")
    monkeypatch.chdir(place)
    monkeypatch.setattr(idx, "MIRRORS", ())
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    return place


class Hang(BaseException):
    """No Exception: nothing handles it."""


def state(folder: Path) -> dict[str, Any]:
    """Of every file that a command could write: its content; of every folder: that it is there."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else path.is_dir()
        for path in folder.rglob("*")
        if path.name not in (".lock", "multirun.yaml")  # the latter is Hydra's, of any grid
        and not path.is_symlink()
    }


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes long, and finds what takes much memory, where Linux tells."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise Hang

    def resident(key: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) // 1024
        return 0

    told = Path("/proc/self/clear_refs").exists()
    if told:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
    handler = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    if told:
        assert resident("VmHWM") - before < MEGABYTES


def assert_refused(done: Outcome, *says: str) -> None:
    assert done.status != 0, done.out
    assert "Traceback" not in done.out + done.err
    # argparse, ours and Hydra's, says first how it is used.
    lines = done.err.split("error: ")
    assert lines[0] == "" or (lines[0].startswith("usage: ") and done.status == 2), done.err
    assert lines[1].strip(), done.err
    for part in says:
        assert part in done.err


def run_row(command: Command, place: Path, line: str, *says: str) -> None:
    """`line`, in which {place} is where everything is, must fail with a message and no trace."""
    name, *arguments = shlex.split(line.format(place=place))
    if name in ("train", "tune"):
        grid = arguments[:1] == ["-m"]
        made = f"hydra.{'sweep' if grid else 'run'}.dir={place}/made"
        if name == "tune":
            made = f"folder={place}/made"
        rest = arguments[grid:]
        arguments = [*arguments[:grid], *tiny_overrides(place / "data"), made, *rest]
    before = state(place)
    with bounded():
        done = command(name, *arguments)
    assert_refused(done, *says)
    left = state(place)
    if "-m" in arguments:  # the folder of its runs, without any
        left.pop("made", None)
    assert left == before


# Bad command lines.

RESUME = "train resume={place}"
COMMAND_LINES = {
    # nothing to work on
    "evaluate": "the following arguments are required: RUN",
    "compare": "the following arguments are required: RUN_OR_FOLDER",
    "predict": "the following arguments are required: RUN, PHOTO",
    "predict run": "the following arguments are required: PHOTO",
    # options that there are not
    "evaluate run --spilt test": "unrecognized arguments: --spilt",
    "evaluate run --split train": "--split: invalid choice: 'train'",
    "evaluate run --split": "--split: expected one argument",
    "compare run --split both": "--split: invalid choice: 'both'",
    "compare run --format html": "--format: invalid choice: 'html'",
    "compare run --baseline": "--baseline: expected one argument",
    "predict run photo.png --top 5": "unrecognized arguments: --top 5",
    "predict run photo.png --json=yes": "--json: ignored explicit argument 'yes'",
    "predict run photo.png --save answers.jpg": "answers.jpg does not end in .png",
    "predict run photo.png --save": "--save: expected one argument",
    "train --model best": "unrecognized arguments: --model best",
    "train --config-name none": "none",
    # no run
    "evaluate none": "none is not a run folder (it has no .hydra/config.yaml). There is no such",
    "evaluate empty": "empty is not a run folder",
    "evaluate file": "file is not a run folder",
    "evaluate pipe": "pipe is not a run folder",
    "evaluate run/checkpoints": "run/checkpoints is not a run folder",
    "evaluate run/checkpoints/best.ckpt": "best.ckpt is not a run folder",
    "evaluate .": "Below it are 2, such as run.",
    "evaluate ''": "Below it are 2",
    "evaluate run none": "none is not a run folder",
    "evaluate unfinished": "unfinished is unfinished: it has no metrics.json",
    f"evaluate {'long' * 100}": "File name too long",
    "compare none": "none cannot be compared: there is no such folder",
    "compare empty": "empty cannot be compared: there is no run in it",
    "compare file": "file cannot be compared: there is no run in it",
    "compare pipe": "pipe cannot be compared: there is no run in it",
    "compare run none": "none cannot be compared",
    "compare run unfinished": "1 of 2 runs are unfinished",
    "compare .": "1 of 2 runs are unfinished",
    "compare run --split test": "python -m fashion.evaluate run --split test",
    "compare run --baseline best": "No group is named best. The groups are:\n  mlp",
    "compare run --output file/table.md": "file/table.md cannot be written: ",
    "compare run --output empty": "empty is not a file that can be replaced",
    "predict none photo.png": "none is not a run folder",
    "predict file photo.png": "file is not a run folder",
    "predict photo.png run": "photo.png is not a run folder",
    "predict unfinished photo.png": "unfinished is unfinished",
    # no photo
    "predict run none.png": "none.png is missing",
    "predict run empty": "empty holds no photos",
    "predict run file": "file is not an image that can be read",
    "predict run pipe": "pipe is not a file",
    "predict run /dev/zero": "/dev/zero is not a file",
    "predict run photo.png/photo.png": "photo.png/photo.png is missing",
    "predict run photo.png none.png": "none.png is missing",
    "predict run 'ph*.png'": "ph*.png is missing",
    f"predict run {'long' * 100}.png": "File name too long",
    "predict run photo.png --save file/answers.png": "file/answers.png cannot be written: File",
    # what resume= may be
    f"{RESUME}/none": "none is not a run folder",
    f"{RESUME}/file": "file is not a run folder",
    f"{RESUME}/empty": "empty is not a run folder",
    "train resume=": ". is not a run folder",
    "train resume=7": "resume = 7: input should be a valid string",
    "train resume=true": "resume = true: input should be a valid string",
    "train resume=[run]": "resume = ['run']: input should be a valid string",
    f"{RESUME}/run optimizer.lr=0": "optimizer.lr = 0: input should be greater than 0",
    f"{RESUME}/run trainer.max_epochs=null": "trainer.max_epochs=null",
    f"{RESUME}/run seed=5": "its own configuration, which does not say\n  seed=5",
    f"{RESUME}/run model=cnn": "model=cnn",
    f"{RESUME}/run ~callbacks.early_stopping": "~callbacks.early_stopping",
    f"{RESUME}/run trainer.max_epochs=1": "Only trainer.max_epochs may be larger",
    "train -m resume=run": "resume continues one run, without -m",
    # overrides that are none, and keys that there are not
    "train model": "model: this is no KEY=VALUE",
    "train =3": "Config group override must be a string or a list",
    "train model=[1,2": "model=[1,2: this is no KEY=VALUE",
    "train model=best,cnn": "model",
    "train lr=0.1": "lr: there is no such key",
    "train +lr=0.1": "lr: there is no such key",
    "train ++lr=0.1": "lr: there is no such key",
    "train ~nothing": "nothing",
    "train +model=cnn": "model",
    "train model=../../etc/passwd": "model/../../etc=passwd: there is no such option.",
    "train experiment=slow": "experiment=slow: there is no such option. Options: fast",
    "train name=null": "name = null: input should be a valid string",
    "train model=null": "Config group override must be a string or a list",
    "train trainer=3": "Config group override must be a string or a list",
    "train ~model": "model is missing.",
    "train name='${{oc.env:NOT_SET_ANYWHERE}}'": "NOT_SET_ANYWHERE",
    "train name='${{none:1}}'": "Unsupported interpolation type none",
    "train name='${{name}}'": "Recursive interpolation",
    "train 'name=${{'": "name=${",
    f"train model.network.conv={'[' * 2000}{']' * 2000}": "recursion",
    "train model.network.conv=[1000000000000]": "model.network",
    "train model.network.dense=[9223372036854775808]": "model.network",
    # folders
    "train hydra.run.dir={place}/file": "File exists",
    "train hydra.run.dir={place}/file/run": "Not a directory",
    "train hydra.run.dir={place}/run": "run holds a finished run already",
    "train hydra.run.dir={place}/unfinished seed=1": "unfinished holds a run of another",
    "train data.root={place}/none": "none/FashionMNIST/raw/train-images-idx3-ubyte is missing",
    "train data.root={place}/file": "file/FashionMNIST/raw/train-images-idx3-ubyte is missing",
    "train data.root=": "FashionMNIST/raw/train-images-idx3-ubyte is missing",
    "train data.official=true": "is not Fashion-MNIST's official file",
    # grids
    "train -m seed=range(3": "seed=range(3: this is no KEY=VALUE",
    "train -m seed=-1,x": "seed = x: input should be a valid integer",
    "train -m test=true,true": "never reads the test set",
    "train -m trainer.devices=2": "Start such runs one by one",
    "train -m hydra/launcher=none": "hydra/launcher=none: there is no such option.",
    "train -m hydra.sweep.dir={place}/file seed=0,1": "file",
    # a search, as another sweeper has it
    "train -m optimizer.lr=interval(0.001,0.1)": "is python -m fashion.tune search=NAME: a range",
    "train optimizer.lr=interval(0.001,0.1)": "is python -m fashion.tune search=NAME: a range",
    "train -m hydra/sweeper=optuna": "is python -m fashion.tune search=NAME: a range is an entry",
    "train -m 'optimizer.lr=tag(log,interval(0.1,1))'": "is python -m fashion.tune search=NAME:",
    # a search
    "tune --trials 9": "unrecognized arguments: --trials 9",
    "tune search=none": "search=none: there is no such option. Options: deck",
    "tune search=deck optimizer.lr=0.1": "search.optimizer.lr: the configuration's own value, 0.1",
    "tune storage=nonsense": "storage is no URL of a database",
    "tune hours=0": "hours = 0",
    "tune workers=0": "workers = 0",
    "tune worker=-1": "worker = -1",
    "tune pruning.reduction_factor=1": "pruning.reduction_factor = 1",
    "tune test=true": "never reads the test set",
    "tune folder={place}/file": "file",
    "tune -m worker=range(2": "worker=range(2: this is no KEY=VALUE",
}


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_bad_command_line(place: Path, command: Command, line: str) -> None:
    run_row(command, place, line, COMMAND_LINES[line])


# Bad files: the file, in the folder of all, and how it is made bad.

Break = Callable[[Path], object]


def holds(content: bytes | str) -> Break:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def cut(share: float) -> Break:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flipped(share: float) -> Break:
    """One bit, so far into the file."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 0x80
        path.write_bytes(content)

    return flip


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def edited(old: str, new: str) -> Break:
    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def begun(text: str) -> Break:
    """With `text` before all else."""
    return lambda path: path.write_text(text + path.read_text())


def ended(text: str) -> Break:
    return lambda path: path.write_text(path.read_text() + text)


def link(target: str) -> Break:
    def make(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return make


EVERYWHERE: dict[str, Break] = {
    "empty": holds(b""),
    "zeros": holds(bytes(1000)),
    "text": holds("hello"),
    "not UTF-8": holds(b"\xff\xfe\x00\xff"),
    "cut early": cut(0.05),
    "cut in the middle": cut(0.5),
    "a bit flipped": flipped(0.5),
    "a folder": folder,
    "a pipe": pipe,
    "missing": Path.unlink,
    "a link to the outside": link("/etc/passwd"),
    "a link to a device": link("/dev/zero"),
}
CONFIG, METRICS, NPZ = "run/.hydra/config.yaml", "run/metrics.json", "run/val.npz"
BEST, LAST = "run/checkpoints/best.ckpt", "run/checkpoints/last.ckpt"
RAW = "data/FashionMNIST/raw"
IMAGES, LABELS = f"{RAW}/train-images-idx3-ubyte", f"{RAW}/train-labels-idx1-ubyte"
TEST_IMAGES = f"{RAW}/t10k-images-idx3-ubyte"
PREDICT = "predict run photo.png"
LONGER = f"{RESUME}/run trainer.max_epochs=9"
# What is typed, by the file that it needs, and that its message must name.
NEEDED = {
    CONFIG: ("evaluate run", "compare run", PREDICT, LONGER),
    METRICS: ("evaluate run", "compare run", PREDICT),
    NPZ: ("compare run",),
    BEST: (PREDICT, "evaluate run"),
    LAST: (LONGER,),
    IMAGES: ("evaluate run", "train", "evaluate run --split test"),
    LABELS: ("evaluate run", "train"),
    "photo.png": (PREDICT,),
}
EVERY_FILE = [
    (path, how, lines[number % len(lines)])
    for path, lines in NEEDED.items()
    for number, how in enumerate(EVERYWHERE)
    # Pixels and labels of other data than the official have no check sum.
    if how != "a bit flipped" or path not in (IMAGES, LABELS)
]


@pytest.mark.parametrize(("path", "how", "line"), EVERY_FILE)
def test_a_bad_file(place: Path, command: Command, path: str, how: str, line: str) -> None:
    EVERYWHERE[how](place / path)
    # What is not there is said of the run.
    known = "run" if path in (CONFIG, METRICS, NPZ) else Path(path).name
    run_row(command, place, line, known)


def scalars(depth: int, value: str = "x") -> str:
    """Each names twice what comes next: 2^depth values."""
    return "".join(f"a{n}: {value.format(n + 1)}\n" for n in range(depth)) + f"a{depth}: x\n"


NETWORK = "model:\n  network:\n    _target_: fashion.training.networks.ConvNet\n"
OTHER_NETWORK = "model:\n  network:\n    _target_: "
BAD_CONFIGS: dict[str, tuple[Break, str, str]] = {
    # what is no plain data
    "an environment variable": (begun("a: ${oc.env:HOME}\n"), "compare run", "line 1 refers"),
    "one in a list": (begun("a: [1, '${oc.env:HOME}']\n"), "evaluate run", "line 1 refers"),
    "one in a text": (begun("a: x${oc.env:HOME,none}\n"), PREDICT, "line 1 refers"),
    "one in a key": (begun("'${oc.env:HOME}': 1\n"), LONGER, "line 1 refers"),
    "another resolver": (begun("a: ${hydra:runtime.cwd}\n"), "evaluate run", "line 1 refers"),
    "decoded text": (begun("a: '${oc.decode:\"[1]\"}'\n"), "evaluate run", "line 1 refers"),
    "another key": (edited("seed: 0", "seed: ${data.val_size}"), "compare run", "refers"),
    "an interpolation of itself": (begun("a: ${a}\n"), "compare run", "line 1 refers"),
    "interpolations without end": (
        begun(scalars(40, "${{a{0}}}${{a{0}}}")),
        "evaluate run",
        "line 1 refers",
    ),
    "aliases without end": (
        begun("".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9 * (n > 0)}]\n" for n in range(30))),
        "evaluate run",
        "line 2 refers",
    ),
    "a merged key": (begun("a: &a {b: 1}\nc: {<<: *a}\n"), "compare run", "line 2 refers"),
    "a Python object": (begun("a: !!python/object/apply:os.mkdir [owned]\n"), PREDICT, "os.mkdir"),
    "a Python path": (
        begun("a: !!python/object/apply:pathlib.PosixPath [x]\n"),
        "compare run",
        "not JSON serializable",
    ),
    "bytes": (begun("a: !!binary aGVsbG8=\n"), "compare run", "not JSON serializable"),
    "half a character": (begun('a: "\\ud800"\n'), "compare run", "surrogates not allowed"),
    "a key twice": (begun("a: 1\na: 2\n"), "compare run", "duplicate key a"),
    "two documents": (begun("a: 1\n---\n"), "compare run", "expected a single document"),
    "a list": (holds("- 1\n"), "compare run", "holds no configuration"),
    "a number": (holds("3\n"), "compare run", "cannot be read"),
    "deep": (begun(f"a: {'[' * 5000}{']' * 5000}\n"), "compare run", "nested too deeply"),
    "large": (begun("#" * LARGEST_TEXT), "compare run", "larger than 131,072 bytes"),
    # what may be built
    "a foreign network": (
        edited(NETWORK, f"{OTHER_NETWORK}os.system\n"),
        PREDICT,
        "builds model.network._target_ = os.system, which can run any code",
    ),
    "a foreign data": (
        edited("fashion.data.datamodule.FashionMNIST", "subprocess.run"),
        "evaluate run",
        "builds data._target_ = subprocess.run, which can",
    ),
    "a foreign class below hydra": (
        begun("hydra:\n  launcher: {_target_: os.system, command: ls}\n"),
        LONGER,
        "hydra.launcher._target_ = os.system",
    ),
    "a foreign class in lists": (
        begun("a: [[1, {b: [{_target_: os.system}]}]]\n"),
        LONGER,
        "a.0.1.b.0._target_ = os.system",
    ),
    "half a foreign class": (
        begun("a: {_target_: os.system, _partial_: true}\n"),
        LONGER,
        "a._target_ = os.system",
    ),
    "a foreign arguments": (
        edited(NETWORK, NETWORK + "    _args_: [{_target_: os.system}]\n"),
        PREDICT,
        "os.system",
    ),
    "Hydra's own helper": (
        begun("a: {_target_: hydra.utils.get_method, path: os.system}\n"),
        LONGER,
        "a._target_ = hydra.utils.get_method",
    ),
    "our own command": (
        begun("a: {_target_: fashion.train.main}\n"),
        LONGER,
        "a._target_ = fashion.train.main: of this project, only",
    ),
    "what our module imports": (
        edited("fashion.training.networks.ConvNet", "fashion.training.networks.nn.Module"),
        PREDICT,
        "of this project, only classes in",
    ),
    "no network": (
        edited(
            "model:\n",
            f"{OTHER_NETWORK}fashion.training.callbacks.StopEarly\n    patience: 3\nold:\n",
        ),
        PREDICT,
        "model.network: StopEarly is no torch.nn.Module",
    ),
    "half a network": (
        edited(NETWORK, NETWORK + "    _partial_: true\n"),
        PREDICT,
        "model.network: partial is no torch.nn.Module",
    ),
    "a network of petabytes": (
        edited("- 32\n", "- 100000000\n    - 100000000\n"),
        PREDICT,
        "best.ckpt does not hold this run's weights",
    ),
    "another network": (edited("- 32\n", "- 33\n"), "evaluate run", "size mismatch"),
    "a value beyond its bound": (
        edited("dropout: 0.6", "dropout: 1.6"),
        PREDICT,
        "config.yaml: model.network.dropout = 1.6",
    ),
    # what is missing
    "no data": (edited("data:\n", "date:\n"), "compare run", "data or seed is missing"),
    "no seed": (edited("\nseed: 0\n", "\n"), "compare run", "data or seed is missing"),
    "a seed that is none": (edited("\nseed: 0\n", "\nseed: x\n"), "compare run", "data or seed"),
    "no model": (edited("model:\n", "modal:\n"), PREDICT, "names no class under model.network"),
    "no trainer": (edited("trainer:\n", "trains:\n"), LONGER, "run cannot be continued: train"),
    "no validation set": (
        edited("val_size: 100", "val_size: 0"),
        "evaluate run",
        "has no validation split",
    ),
    # where its pictures are
    "data that is not there": (
        edited("/data\n", "/none\n"),
        "evaluate run",
        "none/FashionMNIST/raw/train-images-idx3-ubyte is missing",
    ),
    "data that could be brought": (
        lambda path: (
            edited("/data\n", "/none\n")(path),
            edited("official: false", "official: true")(path),
        ),
        "evaluate run",
        "/none downloads it",
    ),
    "data that resuming could bring": (
        lambda path: (
            edited("/data\n", "/none\n")(path),
            edited("official: false", "official: true")(path),
            Path.rename(path.parents[1] / "metrics.json", path.parents[1] / "old.json"),
        ),
        "train resume=run data.official=true data.root={place}/none",
        "/none downloads it",
    ),
    "data that is not official": (
        edited("official: false", "official: true"),
        "evaluate run",
        "is not Fashion-MNIST's official file",
    ),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_a_bad_configuration(
    place: Path, command: Command, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "a secret")
    make_bad, line, says = BAD_CONFIGS[what]
    make_bad(place / CONFIG)
    run_row(command, place, line, says)


def metrics_with(**values: Any) -> Break:
    """Its numbers by their names, of which "val/acc" is written val__acc."""

    def change(path: Path) -> None:
        new = {key.replace("__", "/"): value for key, value in values.items()}
        path.write_text(json.dumps(json.loads(path.read_text()) | new))

    return change


NOTHING_LEFT = "has no number under"
BAD_METRICS: dict[str, tuple[Break, str, str]] = {
    "a list": (holds("[]"), "compare run", "holds no JSON object"),
    "null": (holds("null"), "compare run", "holds no JSON object"),
    "deep": (holds("[" * 100_000), "compare run", "nested too deeply"),
    "large": (holds(" " * LARGEST_METRICS + "{}"), PREDICT, "larger than 4,194,304 bytes"),
    "with a mark": (holds(b"\xef\xbb\xbf{}"), "evaluate run", "BOM"),
    "half a character": (holds('{"machine": "\\ud800"}'), "compare run", "surrogates"),
    "half a key": (holds('{"\\ud800": 1}'), "evaluate run", "surrogates"),
    "nothing": (holds("{}"), "compare run", f"{NOTHING_LEFT} 'parameters'"),
    "nothing to sum up": (holds("{}"), f"{RESUME}/run", NOTHING_LEFT),
    "a long number": (holds('{"parameters": ' + "9" * 5000 + "}"), "compare run", "digits"),
    "a large number": (metrics_with(parameters=10**400), "compare run", "'parameters'"),
    "infinity": (metrics_with(seconds=float("inf")), "compare run", "'seconds'"),
    "no number": (metrics_with(parameters=float("nan")), "compare run", "'parameters'"),
    "truth": (metrics_with(parameters=True), "compare run", "'parameters'"),
    "null for a number": (metrics_with(epochs=None), f"{RESUME}/run", "'epochs'"),
    "a negative number": (metrics_with(seconds=-1), "compare run", "'seconds'"),
    "a text for an accuracy": (metrics_with(val__acc="high"), "evaluate run", "'val/acc'"),
    "a list for an accuracy": (metrics_with(val__acc=[1]), f"{RESUME}/run", "'val/acc'"),
    "no temperature": (metrics_with(val__temperature="hot"), PREDICT, "'val/temperature'"),
    "temperature 0": (metrics_with(val__temperature=0.0), PREDICT, "'val/temperature'"),
    "temperature -1": (metrics_with(val__temperature=-1), PREDICT, "'val/temperature'"),
}


@pytest.mark.parametrize("what", BAD_METRICS)
def test_bad_metrics(place: Path, command: Command, what: str) -> None:
    make_bad, line, says = BAD_METRICS[what]
    make_bad(place / METRICS)
    run_row(command, place, line, METRICS, says)


def rezipped(method: int, change: Callable[[str, bytes], bytes] | None = None) -> Break:
    """The same .zip with its members compressed so, and changed."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(name, change(name, content) if change else content)

    return make


def declares(shape: str) -> Callable[[str, bytes], bytes]:
    """An .npy header that says so of its array, whatever follows."""

    def change(name: str, content: bytes) -> bytes:
        kind = "<i8" if "labels" in name else "<f4"
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        return content[:10] + text.ljust(117).encode() + b"\n" + content[128:]

    return change


class Hostile:
    """Whoever unpickles it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def arrays(**given: Any) -> Break:
    """An .npz of the run's arrays, but for these; None leaves one out."""

    def make(path: Path) -> None:
        labels, probabilities = Run(path.parent).predictions("val")
        whole = {"labels": labels, "probabilities": probabilities} | {
            name: value(labels, probabilities) for name, value in given.items() if value
        }
        np.savez(path, **{name: whole[name] for name in whole if given.get(name, 1)})

    return make


BAD_ARRAYS: dict[str, tuple[Break, str]] = {
    "compressed": (rezipped(zipfile.ZIP_DEFLATED), "is compressed"),
    "2^40 labels": (rezipped(zipfile.ZIP_STORED, declares("(1099511627776,)")), "cannot be read"),
    "-1 labels": (rezipped(zipfile.ZIP_STORED, declares("(-1,)")), "does not hold n labels"),
    "a shape that is none": (rezipped(zipfile.ZIP_STORED, declares("'x'")), "cannot be read"),
    "no header": (rezipped(zipfile.ZIP_STORED, lambda *_: b"hello"), "cannot be read"),
    "an open header": (
        rezipped(zipfile.ZIP_STORED, lambda _, content: content[:10] + b"(" * 118),
        "cannot be read",
    ),
    "no labels": (arrays(labels=None), "cannot be read"),
    "pickled labels": (arrays(labels=lambda *_: np.array([Hostile()])), "cannot be read"),
    "text": (arrays(labels=lambda *_: np.array(["a"])), "does not hold n labels"),
    "label 10": (arrays(labels=lambda labels, _: labels + 1), "does not hold n labels"),
    "nine classes": (arrays(probabilities=lambda _, p: p[:, :9]), "does not hold n labels"),
    "no numbers": (arrays(probabilities=lambda _, p: p * np.nan), "does not hold n labels"),
    "complex": (arrays(probabilities=lambda _, p: p + 0j), "does not hold n labels"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_bad_predictions(place: Path, command: Command, what: str) -> None:
    make_bad, says = BAD_ARRAYS[what]
    make_bad(place / NPZ)
    run_row(command, place, "compare run", f"{NPZ} ", says)


def holds_weights(change: Callable[[dict[str, Any]], Any]) -> Break:
    """A checkpoint as torch writes it, of what `change` makes of the run's."""
    return lambda path: torch.save(change(torch.load(path, weights_only=True)), path)


def scaled(factor: float) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> Any:
        weights = content["state_dict"]
        return content | {"state_dict": {name: factor * weights[name] for name in weights}}

    return change


def tar(path: Path) -> None:
    """The format of torch's before 2018."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = 100
            archive.addfile(info, io.BytesIO(bytes(100)))


BAD_CHECKPOINTS: dict[str, tuple[Break, str]] = {
    "compressed": (rezipped(zipfile.ZIP_DEFLATED), "is compressed"),
    "a weight's bit": (flipped(0.5), "is damaged"),
    "the end": (flipped(0.999), "cannot be read"),
    "cut by a byte": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
    "code in a pickle": (lambda path: path.write_bytes(pickle.dumps(Hostile())), "cannot be read"),
    "code in a checkpoint": (
        holds_weights(lambda content: content | {"x": Hostile()}),
        "could run code",
    ),
    "torch's old format": (
        lambda path: torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False),
        "cannot be read",
    ),
    "torch's oldest format": (tar, "cannot be read"),
    "another .zip": (lambda path: shutil.copy(path.parents[1] / "val.npz", path), "cannot be read"),
    "a storage of petabytes": (
        rezipped(
            zipfile.ZIP_STORED,
            lambda name, content: (
                content.replace(b"K\x20", b"\x8a\x07" + b"\xff" * 6 + b"\x7f")
                if name.endswith("data.pkl")
                else content
            ),
        ),
        "cannot be read",
    ),
    "a list": (holds_weights(lambda content: [content]), "cannot be read"),
    "no epoch": (holds_weights(lambda c: {"state_dict": c["state_dict"]}), "cannot be read"),
    "a text for an epoch": (holds_weights(lambda c: c | {"epoch": "3"}), "is no checkpoint of"),
    "no weights": (holds_weights(lambda c: c | {"state_dict": {}}), "does not hold this run's"),
    "weights that are none": (
        holds_weights(lambda c: c | {"state_dict": dict.fromkeys(c["state_dict"], 1)}),
        "does not hold this run's",
    ),
    "a list of weights": (holds_weights(lambda c: c | {"state_dict": [1]}), "does not hold"),
    "names that are none": (holds_weights(lambda c: c | {"state_dict": {1: 2}}), "does not hold"),
    "weights that are no numbers": (holds_weights(scaled(float("nan"))), "are not numbers"),
    "weights without end": (holds_weights(scaled(1e38)), "are not numbers"),
}


@pytest.mark.parametrize("what", BAD_CHECKPOINTS)
def test_a_bad_checkpoint(place: Path, command: Command, what: str) -> None:
    make_bad, says = BAD_CHECKPOINTS[what]
    make_bad(place / BEST)
    for line in (PREDICT, "evaluate run"):
        run_row(command, place, line, says)


def header(*sizes: int, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + b"".join(struct.pack(">I", size) for size in sizes)


def no_images(path: Path) -> None:
    for name, shape in (("images-idx3", (0, 28, 28)), ("labels-idx1", (0,))):
        write_idx(path.with_name(f"t10k-{name}-ubyte"), np.zeros(shape))


BAD_DATA: dict[str, tuple[str, Break, str, str]] = {
    "a bit flipped": (IMAGES, flipped(0.0), "evaluate run", "it begins 80 00 08 03"),
    "2^31 images": (IMAGES, holds(header(2**31, 28, 28)), "train", "2147483648 x 28 x 28"),
    "2^96 images": (
        TEST_IMAGES,
        holds(header(2**32 - 1, 2**32 - 1, 2**32 - 1)),
        "evaluate run",
        "It is cut, or not",
    ),
    "two dimensions": (IMAGES, holds(header(400, 784) + bytes(784 * 400)), "train", "3 dimension"),
    "floats": (IMAGES, holds(header(1, 28, 28, kind=13)), "train", "unsigned bytes"),
    "a label too many": (LABELS, holds(header(401) + bytes(401)), "train", "for 401 labels"),
    "label 10": (
        LABELS,
        holds(header(400) + bytes([10]) * 400),
        "evaluate run",
        "holds the label 10; labels go from 0 to 9",
    ),
    "no images": (TEST_IMAGES, no_images, "evaluate run --split test", "holds no images"),
    "compressed": (IMAGES, holds(gzip.compress(bytes(100))), "train", "begins 1f 8b"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_data(place: Path, command: Command, what: str) -> None:
    path, make_bad, line, says = BAD_DATA[what]
    make_bad(place / path)
    run_row(command, place, line, says, RAW)


BAD_GZ: dict[str, tuple[Break, str]] = {
    "empty": (holds(b""), "0 bytes instead of 47,040,016"),
    "text": (holds("hello"), "Not a gzipped file"),
    "cut": (holds(gzip.compress(np.random.default_rng(0).bytes(9000))[:5000]), "ended before"),
    "flipped": (
        holds(gzip.compress(bytes(90_000))[:60] + b"\xff" * 30),
        "raw: ",
    ),
    "another's": (holds(gzip.compress(b"hello")), "5 bytes instead of 47,040,016"),
    "without end": (holds(gzip.compress(bytes(300_000_000), 1)), "bytes instead of 47,040,016"),
    "a folder": (lambda path: path.mkdir(), "is not a file"),
    "a pipe": (lambda path: os.mkfifo(path), "is not a file"),  # noqa: PLW0108 - not on Windows
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
}


@pytest.mark.parametrize("what", BAD_GZ)
def test_a_bad_gz(place: Path, command: Command, what: str) -> None:
    make_bad, says = BAD_GZ[what]
    raw = idx.raw_folder(place / "other")
    raw.mkdir(parents=True)
    make_bad(raw / "train-images-idx3-ubyte.gz")
    run_row(command, place, "data.download {place}/other", "no source had it whole", says)


BAD_HISTORIES: dict[str, Break] = {
    "a pipe": pipe,
    "a folder": folder,
    "text": holds("epoch\nx\n"),
    "large": holds("epoch\n" + "1\n" * LONGEST_HISTORY),
}


@pytest.mark.parametrize("what", BAD_HISTORIES)
def test_a_bad_history(place: Path, command: Command, what: str) -> None:
    BAD_HISTORIES[what](place / "run/history.csv")
    run_row(command, place, "evaluate run", "history.csv cannot be read")


def test_a_link_for_a_folder_is_not_written_through(place: Path, command: Command) -> None:
    """Nor one for the lock."""
    shutil.rmtree(place / "run/checkpoints")
    (place / "run/checkpoints").symlink_to(place / "unfinished/checkpoints")
    says = "run/checkpoints leads out of the run's folder"
    for line in (LONGER, "compare run", "evaluate run", PREDICT):
        run_row(command, place, line, says)
    (place / "run/checkpoints").unlink()
    (place / "made").mkdir()
    (place / "made/.lock").symlink_to(place / "file")
    run_row(command, place, "train", "made/.lock is not a plain file")


def test_images_that_nobody_verified_are_refused(place: Path, command: Command) -> None:
    """Torchvision's reader prefers these to the files of today."""
    processed = place / "data/FashionMNIST/processed"
    processed.mkdir()
    run_row(command, place, "evaluate run", "FashionMNIST/processed is of an old torchvision")
