"""Number of CPU threads of a training: measured when it starts, and kept in its checkpoints.

The threads of an operation wait for the slowest of them. Where another program keeps a core busy,
all threads are therefore several times slower than one; on an idle machine they are up to twice as
fast, or no faster if the network is small.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import Precision

from fashion.data.datamodule import BatchLoader, normalize
from fashion.training.classifier import Classifier

SECONDS = 1.0  # of measuring, after the first steps
BLOCKS, BLOCK_SECONDS = 3, 0.05  # at least, of steps with one number of threads
GAIN = 1.05  # least speedup to use all threads: with one thread the other cores stay free


class Threads(Callback):
    """Stores the number of threads in the checkpoints, so that a resumed run uses the same.

    With another number of threads, sums are rounded differently.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}


def kept_threads(checkpoint: dict[str, Any]) -> int | None:
    """Return the number of threads in a checkpoint's content, or None if there is none."""
    state = checkpoint.get("callbacks", {}).get("Threads", {})
    number = state.get("number") if isinstance(state, dict) else None
    return number if isinstance(number, int) and number > 0 else None


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set torch's number of threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest_threads(classifier: Classifier, loader: BatchLoader, precision: Precision) -> int:
    """Return 1 or all threads, whichever trains a copy of the network faster at this moment.

    Neither the network nor the state of the random generators changes.

    Args:
        classifier: on the CPU.
        loader: of training batches.
        precision: the Trainer's.
    """
    most = torch.get_num_threads()
    if most == 1:
        return 1
    images, labels = loader.images[: loader.batch_size], loader.labels[: loader.batch_size]
    batch = normalize(images)
    trained = copy.deepcopy(classifier)
    optimizer: Any = trained.configure_optimizers()["optimizer"]

    def step() -> float:
        start = time.perf_counter()
        with precision.forward_context():
            loss = trained.criterion(trained(batch), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    # Means, because a thread that another program interrupts now and then delays few steps by much.
    seconds, steps = {1: 0.0, most: 0.0}, {1: 0, most: 0}
    blocks = 0
    with torch.random.fork_rng(devices=[]):
        for number in seconds:  # the first step prepares kernels and starts threads
            with threads(number):
                step()
        start = time.perf_counter()
        while blocks < BLOCKS or time.perf_counter() - start < SECONDS:
            for number in seconds:
                with threads(number):
                    step()  # the first one after a change wakes threads
                    block = 0.0
                    while block < BLOCK_SECONDS:
                        block += step()
                        steps[number] += 1
                    seconds[number] += block
            blocks += 1
    one, all_ = (seconds[number] / steps[number] for number in seconds)
    return most if one > GAIN * all_ else 1
