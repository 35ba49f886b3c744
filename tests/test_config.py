"""Every value a person may get wrong, through the real command line, before anything is trained."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, tiny_overrides

from fashion import config as schema
from fashion.errors import UserError

N = "model.network"
# override -> what the message says: key, value, bound
BAD = {
    f"{N}.dropout=1.5": f"{N}.dropout = 1.5: input should be less than 1",
    f"{N}.dropout=1": f"{N}.dropout = 1: input should be less than 1",
    f"{N}.dropout=-0.1": f"{N}.dropout = -0.1: input should be greater than or equal to 0",
    f"{N}.dropout=nan": f"{N}.dropout = nan: input should be",
    f"{N}.dropout=half": f"{N}.dropout = half: input should be a valid number",
    f"{N}.dropout=null": f"{N}.dropout = None: input should be a valid number",
    f"{N}.conv=[0]": f"{N}.conv.0 = 0: input should be greater than 0",
    f"{N}.conv=[8,-3]": f"{N}.conv.1 = -3: input should be greater than 0",
    f"{N}.conv=3": f"{N}.conv = 3: input should be a valid list",
    f"{N}.conv=[[]]": f"{N}.conv.0 = []: input should be a valid integer",
    f"{N}.dense=[1.5]": f"{N}.dense.0 = 1.5: input should be a valid integer",
    f"{N}.dense=[null]": f"{N}.dense.0 = None: input should be a valid integer",
    f"{N}.kernel_size=0": f"{N}.kernel_size = 0: input should be greater than 0",
    f"{N}.pool=0": f"{N}.pool = 0: input should be greater than 0",
    f"{N}.conv_activation=tanh": f"{N}.conv_activation = tanh: input should be 'relu', 'leaky",
    f"{N}.dense_activation=1": f"{N}.dense_activation = 1: input should be 'relu', 'leaky_relu',",
    f"{N}.negative_slope=-0.1": f"{N}.negative_slope = -0.1: input should be greater than",
    f"{N}.batch_norm=2": f"{N}.batch_norm = 2: input should be a valid boolean",
    f"{N}.kernel_size=29": "kernel_size = 29, pool = 1: layer 1 gets 28 x 28 pixels",
    "optimizer.lr=0": "optimizer.lr = 0: input should be greater than 0",
    "optimizer.lr=-1": "optimizer.lr = -1: input should be greater than 0",
    "optimizer.lr=nan": "optimizer.lr = nan: input should be",
    "optimizer.lr=inf": "optimizer.lr = inf: input should be a finite number",
    "optimizer.lr=fast": "optimizer.lr = fast: input should be a valid number",
    "optimizer.weight_decay=-1": "optimizer.weight_decay = -1: input should be greater than or",
    "optimizer.schedule=step": "optimizer.schedule = step: input should be 'constant', 'linear' or",
    "optimizer.warmup=1": "optimizer.warmup = 1: input should be less than 1",
    "data.batch_size=0": "data.batch_size = 0: input should be greater than 0",
    "data.batch_size=-1": "data.batch_size = -1: input should be greater than 0",
    "data.batch_size=2.5": "data.batch_size = 2.5: input should be a valid integer",
    "data.batch_size=true": "data.batch_size = True: input should be a valid integer",
    "data.batch_size=301": "data.batch_size = 301: there are 300 pictures to train on",
    "data.val_size=-1": "data.val_size = -1: input should be greater than or equal to 0",
    "data.val_size=400": "data.val_size = 400: there are 400 pictures in all",
    "data.split_seed=x": "data.split_seed = x: input should be a valid integer",
    "data.official=no thanks": "data.official = no thanks: input should be a valid boolean",
    "data.root=7": "data.root = 7: input should be a valid string",
    "callbacks.early_stopping.patience=0": "callbacks.early_stopping.patience = 0: input should be",
    "trainer.max_epochs=0": "trainer.max_epochs = 0: input should be greater than 0",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches = 0: input should be greater",
    "trainer.accelerator=quantum": "trainer.accelerator = quantum: input should be 'auto', 'cpu'",
    "trainer.precision=16": "trainer.precision = 16: input should be '32-true', 'bf16-mixed'",
    "trainer.devices=0": "trainer.devices = 0: input should be greater than 0",
    "trainer.strategy=ddp_spawn": "trainer.strategy = ddp_spawn: input should be 'auto' or 'ddp'",
    "augmentation.translate=28": "augmentation.translate = 28: input should be less than 28",
    "augmentation.hflip=2": "augmentation.hflip = 2: input should be a valid boolean",
    "augmentation.erase=-1": "augmentation.erase = -1: input should be greater than or equal to 0",
    "augmentation.clean_epochs=-1": "augmentation.clean_epochs = -1: input should be greater than or equal to 0",
    "label_smoothing=1": "label_smoothing = 1: input should be less than 1",
    "checkpoint=first": "checkpoint = first: input should be 'best' or 'last'",
    "seed=-1": "seed = -1: input should be greater than or equal to 0",
    "seed=1.0": "seed = 1.0: input should be a valid integer",
    "seed=4294967296": "seed = 4294967296: input should be less than 4294967296",
    "test=maybe": "test = maybe: input should be a valid boolean",
    "data.val_size=0": "data.val_size = 0 leaves nothing to stop early on",
    "callbacks=7": "callbacks = 7: input should be a valid dictionary",
    "callbacks.early_stopping=7": "callbacks.early_stopping = 7: input should be a valid dict",
    "model.network=null": "model.network = None: input should be a valid dictionary",
    "~optimizer": "optimizer is missing.",
    # what Hydra itself refuses
    "model.network.droput=0.5": "model.network.droput: there is no such key",
    "optimizer.momentum=0.9": "optimizer.momentum: there is no such key",
    "batch_size=64": "batch_size: there is no such key",
    "model=resnext": "Could not find 'model/resnext'",
    "optimizer=adagrad": "adam\n\tadamw\n\tmuon\n\tsgd",
    "model": "Error parsing override 'model'",
    # appended, and so past Hydra
    "+model.network.width=3": f"{N}.width: there is no such key. Known: batch_norm, conv, ",
    "+optimizer.betas=[0.9,0.9]": "optimizer.betas: there is no such key. Known: lr, schedule,",
    "+trainer.profiler=simple": "trainer.profiler: there is no such key. Known: ",
    "~optimizer.lr": "optimizer.lr is missing.",
    "++optimizer._args_=[1]": "optimizer._args_: there is no such key",
    # what may be built at all
    "model.network._target_=os.system": f"{N}._target_ = os.system: only what stands in fashion.",
    "model.network._target_=fashion.training.networks.Conv": "there is no such class or function",
    "model.network._target_=fashion.training.networks.nn.Linear": "there is no such class or function",
    "model.network._target_=fashion.data.download.main": "only what stands in fashion.data.augmentation,",
    "model.network._target_=3": f"{N}._target_ = 3: only what stands in",
    "+x={_target_:os.system,command:ls}": "x._target_ = os.system: only what stands in",
    "+callbacks.x=[{_target_:os.system}]": "callbacks.x.0._target_ = os.system: only what",
    "+model.network.conv=[{_target_:os.system}]": "os.system",
    # values that Hydra resolves late
    "optimizer.lr=${nothing}": "nothing",
    "optimizer.lr=???": "optimizer.lr",
}


@pytest.mark.parametrize(("override", "message"), BAD.items(), ids=list(BAD))
def test_a_bad_value_is_refused_by_name(
    tiny_data: Path, tmp_path: Path, command: Command, override: str, message: str
) -> None:
    folder = tmp_path / "run"
    done = command("train", *tiny_overrides(tiny_data), f"hydra.run.dir={folder}", override)
    assert done.status == 1, done.out
    assert done.err.startswith("error: ")
    assert message in done.err
    assert "Traceback" not in done.err + done.out
    assert not (folder / "metrics.json").exists()
    assert not list(folder.rglob("events*"))


def test_every_fault_is_named_at_once(tiny_data: Path, tmp_path: Path, command: Command) -> None:
    wrong = {"seed": -1, "optimizer.lr": 0, f"{N}.pool": 0, "trainer.max_epochs": 0}
    done = command(
        "train",
        *tiny_overrides(tiny_data),
        f"hydra.run.dir={tmp_path}/run",
        *(f"{key}={value}" for key, value in wrong.items()),
    )
    named = [line.split(" = ")[0] for line in done.err.removeprefix("error: ").splitlines()]
    assert sorted(named) == sorted(wrong)
    assert not (tmp_path / "run").exists()  # nothing is left of a run that never began


@pytest.mark.parametrize(
    "override",
    [
        f"{N}.dropout=0",
        f"{N}.negative_slope=0",
        f"{N}.conv=[]",
        "optimizer.lr=1",  # an integer is a number
        "optimizer.weight_decay=0",
        "trainer.limit_val_batches=null",
        "seed=4294967295",
        "seed=0",
        "callbacks.early_stopping=null",
    ],
)
def test_the_bounds_themselves_are_allowed(override: str) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from fashion.train import CONF, SETTINGS

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["name=x", override])
    schema.check(OmegaConf.to_container(config, resolve=True), SETTINGS)


def test_checking_imports_nothing_that_a_configuration_names(tmp_path: Path) -> None:
    """Neither a stranger's module nor, before it is needed, torch."""
    (tmp_path / "stranger.py").write_text("open('owned', 'w')")
    script = (
        "import sys; from fashion import schema, UserError\n"
        "network = {'_target_': 'fashion.training.networks.ConvNet', 'dropout': 2}\n"
        "for config in ({'_target_': 'stranger.f'}, {'_target_': 'fashion.stranger.f'}, network):\n"
        "    try: schema.check({'x': config}, {})\n"
        "    except UserError: continue\n"
        "    sys.exit('accepted')\n"
        "sys.exit(' '.join({'torch', 'lightning', 'stranger'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() == ""
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": {"b": [{"_target_": "os.system"}]}}, r"a\.b\.0\._target_ = os\.system"),
        ({"a": [[{"_target_": "os.system"}]]}, r"a\.0\.0\._target_ = os\.system"),
        ({"_target_": "os.system"}, r"_target_ = os\.system"),
        ({"a": {"_target_": None}}, r"a\._target_ = None"),
        ({"a": {"_target_": ["os.system"]}}, r"a\._target_ = \['os\.system'\]"),
        ({"a": {"_target_": "fashion."}}, r"a\._target_ = fashion\."),
    ],
)
def test_a_target_is_found_wherever_it_hides(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schema.check(config, {})
