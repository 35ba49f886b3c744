"""Values that a person may get wrong, composed as the command line does, before a training."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, composed, tiny_overrides
from torch import nn

from fashion import config as schema
from fashion.config import LONGEST_NAME, build, folder_name, register_resolvers
from fashion.errors import UserError, innermost, message
from fashion.train import check

N = "model.network"
# override -> what the message says: key, value, bound
BAD = {
    "data.folds=1": "data.folds = 1: input should be greater than or equal to 2",
    "+optimizer._args_=[1]": "optimizer._args_: there is no such key",
    f"{N}.dropout=1": f"{N}.dropout = 1: input should be less than 1",
    f"{N}.dropout=-0.1": f"{N}.dropout = -0.1: input should be greater than or equal to 0",
    f"{N}.dropout=nan": f"{N}.dropout = nan: input should be",
    f"{N}.dropout=half": f"{N}.dropout = half: input should be a valid number",
    f"{N}.dropout=null": f"{N}.dropout = null: input should be a valid number",
    f'{N}.dropout="0.5"': f'{N}.dropout = "0.5" (text): input should be a valid number',
    f"{N}.conv=[8,-3]": f"{N}.conv.1 = -3: input should be greater than 0",
    f"{N}.conv=3": f"{N}.conv = 3: input should be a valid list",
    f"{N}.conv=[[]]": f"{N}.conv.0 = []: input should be a valid integer",
    f"{N}.dense=[1.5]": f"{N}.dense.0 = 1.5: input should be a valid integer",
    f"{N}.conv_activation=tanh": f"{N}.conv_activation = tanh: input should be 'relu', 'leaky",
    f"{N}.batch_norm=2": f"{N}.batch_norm = 2: input should be a valid boolean",
    "optimizer.lr=0": "optimizer.lr = 0: input should be greater than 0",
    "optimizer.lr=inf": "optimizer.lr = inf: input should be a finite number",
    "optimizer.schedule=step": "optimizer.schedule = step: input should be 'constant', 'linear' or",
    "optimizer.warmup=1": "optimizer.warmup = 1: input should be less than 1",
    "data.batch_size=true": "data.batch_size = true: input should be a valid integer",
    "data.batch_size=301": "data.batch_size = 301: there are 300 images to train on",
    "data.val_size=400": "data.val_size = 400: there are 400 images in all",
    "data.official=no thanks": "data.official = no thanks: input should be a valid boolean",
    "data.root=7": "data.root = 7: input should be a valid string",
    "data.dataset=CIFAR10": "data.dataset = CIFAR10: input should be 'FashionMNIST', 'MNIST' or",
    "callbacks.early_stopping.patience=0": "callbacks.early_stopping.patience = 0: input should be",
    "callbacks.early_stopping.mode=up": "early_stopping.mode = up: input should be 'max' or 'min'",
    "trainer.max_epochs=0": "trainer.max_epochs = 0: input should be greater than 0",
    'trainer.max_epochs="3"': 'trainer.max_epochs = "3" (text): input should be a valid integer',
    "trainer.limit_train_batches=1.5": "limit_train_batches = 1.5: input should be less than or e",
    "trainer.gradient_clip_val=-1": "gradient_clip_val = -1: input should be greater than or equal",
    "trainer.accelerator=quantum": "trainer.accelerator = quantum: input should be 'auto', 'cpu'",
    "trainer.precision=fp8": "trainer.precision = fp8: input should be 'auto', '32-true', 'bf16-m",
    "trainer.devices=[-1]": "trainer.devices.0 = -1: input should be greater than or equal to 0",
    "augmentation.translate=28": "augmentation.translate = 28: input should be less than 28",
    "loss.label_smoothing=1": "loss.label_smoothing = 1: input should be less than 1",
    "loss.class_weights=equal": "loss.class_weights = equal: input should be 'balanced'",
    "loss.class_weights=[0,1]": "loss.class_weights.0 = 0: input should be greater than 0",
    "checkpoint=first": "checkpoint = first: input should be 'best' or 'last'",
    "seed=4294967296": "seed = 4294967296: input should be less than 4294967296",
    "test=": 'test = "" (text): input should be a valid boolean',
    "name=": 'name = "" (text): it names a folder below logs/',
    "name=a/b": "name = a/b: it names a folder below logs/, and must not contain slashes",
    "sweep=..": 'sweep = ".." (text): it names a folder',
    "data.val_size=0": "data.val_size = 0 leaves no validation set to stop early on",
    "callbacks.early_stopping=7": "callbacks.early_stopping = 7: input should be a valid dict",
    f"{N}=null": f"{N} = null: input should be a valid dictionary",
    "optimizer={_target_:torch.optim.RAdam,lr:0.1,schedule:Cosine}": "schedule = Cosine: input",
    "optimizer={_target_:torch.optim.RAdam,lr:0.1,warmup:2}": "optimizer.warmup = 2: input shoul",
    "scheduler={_target_:torch.optim.lr_scheduler.StepLR,interval:steps}": "interval = steps: inpu",
    "+metrics.f1={_target_:torchmetrics.F1Score}": "metrics.f1: every evaluation computes",
    "callbacks.best._target_=lightning.pytorch.callbacks.ModelCheckpoint": "+callbacks.NAME",
    "~optimizer": "optimizer is missing.",
    "~optimizer.lr": "optimizer.lr is missing.",
    "model=custom": f"{N}._target_: there is no value; set it with KEY=VALUE.",
    "optimizer.lr=${nothing}": "nothing",
    # appended, and so past Hydra
    "+model.network.width=3": f"{N}.width: there is no such key. Known: batch_norm, conv, ",
    "+optimizer.weight_deca=1": "there is no such key. Did you mean weight_decay? Known: lr, sch",
    "+foo=3": "foo: there is no such key. Known: augmentation, callbacks, ",
    "+x={_target_:os.system,command:ls}": "x: there is no such key.",
    # what Hydra itself refuses
    f"{N}.droput=0.5": f"{N}.droput: there is no such key. Did you mean {N}.dropout, ",
    "batch_size=64": "batch_size: there is no such key. Did you mean data.batch_size? python -m",
    "optimizer.momentum=0.9": "optimizer.momentum: there is no such key. python -m fashion.train",
    "metrics={f1:3}": "metrics.f1: there is no such key.",
    "metrics=[]": "Error merging override metrics=[]: Cannot merge DictConfig with ListConfig.",
    "model=resnext": "model=resnext: there is no such option. Did you mean resnet? Options: best, ",
    "model=none": "model=none: there is no such option. Options: best, cnn, ",
    "optimizer=adagrad": "there is no such option. Options: adam, adamw, muon, sgd.",
    "model": "Overrides are KEY=VALUE",
    "name=grün": "Quote it for Hydra and for the shell: 'name=\"grün\"'.",
    "data.root=~/x": "Quote it for Hydra and for the shell: 'data.root=\"~/x\"'.",
    f"{N}.conv=[64,": f"The shell has split it at a space. Quote it: '{N}.conv=[1,2]'.",
    # of this project
    f"{N}._target_=fashion.training.networks.Conv": "there is no such class or function",
    f"{N}._target_=fashion.training.networks.nn.Linear": "of this project, only classes in fash",
    f"{N}._target_=fashion.data.download.main": "of this project, only classes in fashion.data.a",
}


@pytest.mark.parametrize(("override", "expected"), BAD.items(), ids=list(BAD))
def test_a_bad_value_is_refused_by_name(tiny_data: Path, override: str, expected: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        check(composed(*tiny_overrides(tiny_data), override))
    found = message(innermost(caught.value))
    assert found.count(expected) == 1
    assert "Exception" not in found


def test_every_violation_is_named_at_once_and_nothing_is_left(
    tiny_data: Path, tmp_path: Path, command: Command
) -> None:
    wrong = {"seed": -1, "optimizer.lr": 0, f"{N}.pool": 0, "trainer.max_epochs": 0}
    done = command(
        "train",
        *tiny_overrides(tiny_data),
        f"hydra.sweep.dir={tmp_path}",
        f"hydra.run.dir={tmp_path}/run",
        *(f"{key}={value}" for key, value in wrong.items()),
    )
    assert done.status == 1
    named = [line.split(" = ")[0] for line in done.err.removeprefix("error: ").splitlines()]
    assert sorted(named) == sorted(wrong)
    assert not (tmp_path / "run/.hydra").exists()


@pytest.mark.parametrize(
    "override",
    [
        f"{N}.dropout=0",
        f"{N}.conv=[]",
        "optimizer.lr=1",  # an integer is a number
        "trainer.limit_val_batches=null",
        "trainer.limit_train_batches=1.0",
        "trainer.limit_train_batches=300",
        "trainer.max_epochs=-1",
        "trainer.devices=[0]",
        "trainer.gradient_clip_val=1",
        "+trainer.inference_mode=false",
        "seed=4294967295",
        "callbacks.early_stopping=null",
        "loss.class_weights=balanced",
        "loss.class_weights=[1,2.5]",
        "logger=none",
        "logger=csv",
        "name=" + 300 * "x",
        'name="a,b"',
        "augmentation.cutmix=1.0",
    ],
)
def test_values_at_the_bounds_are_allowed(override: str) -> None:
    schema.check_run(composed(override))


def test_checking_imports_nothing_that_a_configuration_names(tmp_path: Path) -> None:
    """Neither a foreign module nor, before it is needed, torch; wherever a target hides."""
    (tmp_path / "foreign.py").write_text("open('owned', 'w')")
    script = (
        "import sys; from fashion import config; from fashion.errors import UserError\n"
        "ours = {'_target_': 'fashion.training.networks.ConvNet', 'dropout': 2}\n"
        "for x in (ours, {'_target_': 'fashion.foreign.f'}, [[{'_target_': 'fashion.'}]]):\n"
        "    try: config.check({'x': x}, {})\n"
        "    except UserError: continue\n"
        "    sys.exit('accepted')\n"
        "config.check({'x': {'_target_': 'foreign.f'}}, {})\n"
        "sys.exit(' '.join({'torch', 'lightning', 'foreign'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() == ""
    assert not (tmp_path / "owned").exists()


# Building


class Picky(nn.Module):
    def __init__(self, width: int, *, num_classes: int = 3, depth: int = 1) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError("depth must be positive\nsecond line")
        self.width, self.num_classes = width, num_classes


PICKY = f"{__name__}.Picky"


def test_a_foreign_class_is_built_and_offered_what_it_takes() -> None:
    made = build(N, {"_target_": PICKY, "width": 4}, offered={"num_classes": 7, "other": 1})
    assert (made.width, made.num_classes) == (4, 7)
    given = {"_target_": PICKY, "width": 4, "num_classes": 5}
    assert build(N, given, offered={"num_classes": 7}).num_classes == 5
    assert build(N, {"_target_": PICKY, "_partial_": True, "width": 4})().width == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"widht": 3, "width": 3}, rf"{N}\.widht: .*Picky has no such parameter. Did you mean wid"),
        ({}, rf"{N}\.width: missing; .*Picky needs it\."),
        ({"width": 3, "depth": 0}, rf"^{N}: .*Picky raised ValueError: depth must be positive$"),
        ({"_target_": "nowhere.Net"}, rf"{N}\._target_ = nowhere\.Net cannot be imported: .*of yo"),
        ({"_target_": 3}, rf"{N}\._target_ = 3 cannot be imported"),
        ({"_target_": "sys.version"}, "is neither a class nor a function"),
    ],
)
def test_a_foreign_class_is_refused_by_its_real_signature(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        build(N, {"_target_": PICKY} | changes)
    assert "\n" not in str(caught.value)


def test_another_class_starts_with_its_own_defaults() -> None:
    """What conf/ passes to the class that stood there goes, unless the command line gives it."""
    config = composed("optimizer._target_=torch.optim.RAdam", "optimizer.weight_decay=0.1")
    assert dict(config.optimizer) == {"_target_": "torch.optim.RAdam", "weight_decay": 0.1}
    config = composed("trainer.max_epochs=3", f"{N}._target_=mine.Net", f"+{N}.blocks=[1,2]")
    assert dict(config.model.network) == {"_target_": "mine.Net", "blocks": [1, 2]}
    assert config.trainer.limit_val_batches is None  # of another section: left as it is


# Folder names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model-best,seed-0", "model-best,seed-0"),
        ("a/b\\c\nd", "a_b_c_d"),
        ("", "run-7"),
        ("..", "run-7"),
        (".", "run-7"),
        (3, "3"),
    ],
)
def test_a_folder_name(text: Any, name: str) -> None:
    assert folder_name(text, 7) == name


@pytest.mark.parametrize(("flags", "one"), [
    ({}, True),
    ({"devices": "1"}, True),
    ({"devices": [3]}, True),
    ({"devices": "4"}, False),
    ({"devices": [0, 1]}, False),
    ({"devices": "auto"}, False),  # as many as there are
    ({"devices": 1, "num_nodes": 2}, False),
])  # fmt: skip
def test_which_flags_train_in_one_process(flags: dict[str, Any], *, one: bool) -> None:
    assert schema.in_one_process(flags) == one


def test_a_home_folder() -> None:
    assert schema.at_home("~/a") == Path.home() / "a"
    with pytest.raises(UserError, match="~nobody_here/a: there is no user of that name"):
        schema.at_home("~nobody_here/a")


def test_long_names_are_shortened_with_a_digest_and_stay_distinct() -> None:
    names = {folder_name("ä" * 300 + end) for end in "abc"}
    assert len(names) == 3
    assert all(len(name.encode()) <= LONGEST_NAME and name.startswith("ää") for name in names)
    assert folder_name("ä" * 300 + "a") in names  # the same again
    assert folder_name("x" * LONGEST_NAME) == "x" * LONGEST_NAME


def test_smoke_runs_have_a_folder_of_their_own() -> None:
    register_resolvers()
    from omegaconf import OmegaConf

    made = OmegaConf.create(
        {"a": "${unless_smoke:smoke,best}", "b": "${unless_smoke:default,best}"}
    )
    assert (made.a, made.b) == ("smoke", "best")
