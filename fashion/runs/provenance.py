"""Provenance of results: package versions, machine and commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")


def provenance() -> dict[str, Any]:
    """Return versions, machine, commit and whether the checkout was clean.

    What lies under `results/` does not matter: no run reads it, and `scripts/reproduce` writes
    there between two studies. The last two are None outside a git checkout.
    """
    import torch

    status = _git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "machine": machine(torch.get_num_threads()),
        "commit": _git("rev-parse", "HEAD"),
        "clean": None if status is None else status == "",
    }


def machine(threads: int) -> str:
    """Describe this machine, and how many of its cores are used."""
    return f"{platform.system()} {platform.machine()}, {threads} of {os.cpu_count()} cores"


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(  # noqa: S603
            ["git", "-C", Path(__file__).parent, *arguments],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout, or no git
