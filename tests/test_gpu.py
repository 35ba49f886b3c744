"""On a CUDA GPU; skipped, with the reason, where there is none."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fitted
from lightning.pytorch.callbacks import Callback

from fashion.errors import DivergenceError, UserError
from fashion.runs.run import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]
RESNET = ("model=resnet", "model.network.widths=[8,16]", "optimizer=muon")
GPU = ("trainer.accelerator=cuda", "data.batch_size=30")


def trained(folder: Path, data: Path, *overrides: str, callbacks: Any = ()) -> Any:
    return fitted(folder, data, *GPU, *overrides, callbacks=callbacks)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(Run(folder).last_checkpoint, weights_only=True, map_location="cpu")
    return content["state_dict"]  # type: ignore[no-any-return]


class KilledAfterAnEpoch(Callback):
    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch:
            raise MemoryError


class NoSynchronization(Callback):
    """Makes whatever waits for the GPU an error, from the second step of an epoch to its last."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_validation_start(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_train_epoch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


NoSynchronization.__module__ = "fashion.test"  # or it would need the ordinary loop


@pytest.mark.parametrize("precision", ["auto", "32-true", "16-mixed", "bf16-true"])
def test_trains_and_predicts_on_the_cpu_as_on_the_gpu(
    tiny_data: Path, tmp_path: Path, precision: str
) -> None:
    done = trained(
        tmp_path / "run", tiny_data, *RESNET, f"trainer.precision={precision}",
        "trainer.max_epochs=4",
    )  # fmt: skip
    assert done.metrics["device"] == torch.cuda.get_device_name()
    expected = "bf16-mixed" if precision == "auto" else precision
    assert done.metrics["precision"] == expected
    images = done.data.val.images
    on_cpu = done.classifier.predict_proba(images)
    on_gpu = done.classifier.to("cuda").predict_proba(images)
    torch.testing.assert_close(on_cpu, on_gpu, atol=2e-3, rtol=0)
    assert (on_cpu.argmax(1) == done.data.val.labels).float().mean() > 0.9


@pytest.mark.parametrize(
    "overrides", [(), RESNET, ("model=cnn", "data.batch_size=16")], ids=["mlp", "resnet", "chunks"]
)
def test_no_step_waits_for_the_gpu(
    tiny_data: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    augmented = ["augmentation.hflip=true", "augmentation.translate=1", "augmentation.erase=8"]
    trained(tmp_path / "run", tiny_data, *overrides, *augmented, callbacks=[NoSynchronization()])


@pytest.mark.parametrize("deterministic", [True, False])
def test_resumed_training_is_one_left_alone(
    tiny_data: Path, tmp_path: Path, *, deterministic: bool
) -> None:
    options = [*RESNET, "augmentation.hflip=true", f"trainer.deterministic={deterministic}".lower()]
    trained(tmp_path / "whole", tiny_data, *options)
    with pytest.raises(MemoryError):
        trained(tmp_path / "cut", tiny_data, *options, callbacks=[KilledAfterAnEpoch()])
    trained(tmp_path / "cut", tiny_data, *options)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for key, value in whole.items():
        tolerance = 0.0 if deterministic else 1e-2
        torch.testing.assert_close(cut[key], value, atol=tolerance, rtol=tolerance, msg=key)


def test_images_off_the_device_give_the_same(tiny_data: Path, tmp_path: Path) -> None:
    for name in ("true", "false"):
        options = [
            f"data.on_device={name}",
            "augmentation.translate=1",
            "trainer.deterministic=true",
        ]
        done = trained(tmp_path / name, tiny_data, *options)
        expected = "cuda" if name == "true" else "cpu"
        assert done.trainer.train_dataloader.images.device.type == expected
    one, other = weights(tmp_path / "true"), weights(tmp_path / "false")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_loss_that_is_not_finite_names_its_step(tiny_data: Path, tmp_path: Path) -> None:
    # 300 training images are ten steps: the third of the second epoch is the thirteenth.
    class Spoil(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, _: Any, index: int) -> None:
            if trainer.current_epoch == 1 and index == 2:
                next(module.network.parameters()).data.fill_(torch.inf)

    with pytest.raises(DivergenceError, match=r"became nan in epoch 2, step 13 .* rate 0\.001"):
        trained(tmp_path / "run", tiny_data, callbacks=[Spoil()])


def test_memory_is_returned(tiny_data: Path, tmp_path: Path) -> None:
    from fashion.training.process import return_freed_memory

    used = []
    for number in range(3):
        trained(tmp_path / str(number), tiny_data, *RESNET)
        gc.collect()
        return_freed_memory()
        used.append(torch.cuda.memory_reserved())
    assert used[2] <= used[0] < 2**26


def test_too_little_memory_is_one_line(tiny_data: Path, tmp_path: Path) -> None:
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        with pytest.raises(UserError, match=r"data\.batch_size = 30: there is too little memory"):
            trained(tmp_path / "run", tiny_data, "model.network.dense=[40000]")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_two_runs_on_one_gpu(tiny_data: Path, tmp_path: Path) -> None:
    options = ["data.official=false", "data.val_size=100", *GPU, "model=mlp", "report=false"]
    command = [sys.executable, "-m", "fashion.train", f"data.root={tiny_data}", *options]
    runs = [
        subprocess.Popen(
            [*command, "trainer.max_epochs=3", f"seed={seed}", f"hydra.run.dir={tmp_path / seed}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    for run in runs:
        _, error = run.communicate(timeout=300)
        assert run.returncode == 0, error
    assert all(Run(tmp_path / seed).metrics["device"] != "cpu" for seed in ("1", "2"))
