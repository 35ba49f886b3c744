"""Which module may import which, and that no command waits for torch before it has to."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fashion

PACKAGE = Path(fashion.__file__).parent
ROOMS = ("data", "runs", "training", "report", "search")
BASE = ("config", "errors")
COMMANDS = ("train", "evaluate", "compare", "predict", "tune", "export")
# Of fashion.train: what one run does, which the search and the Python API do as well.
SHARED = {"train", "train_one", "keep_folders", "check"}
SLOW = ("torch", "lightning", "torchvision", "torchmetrics", "optuna", "matplotlib", "tensorboard")
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the room of a module, or the module's name on top of the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (room or top module, name) of all imports from this package, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fashion":
            assert node.level == 0
            parts = str(node.module).split(".")
            for alias in node.names:
                yield (parts[1] if len(parts) > 1 else alias.name), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("fashion."):
                    yield alias.name.split(".")[1], alias.name


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(PACKAGE)) for p in MODULES])
def test_a_module_imports_only_what_stands_before_it(path: Path) -> None:
    here = room(path)
    for there, name in imports(path):
        if there in COMMANDS:
            shared = there == "train" and name in SHARED
            assert here in ("tune", "search", "__init__") if shared else False, (
                f"{path} imports {there}.{name}"
            )
        elif here in ROOMS and there in ROOMS:
            before = ROOMS[: ROOMS.index(here) + 1]
            assert there in before, f"{path} is of {here} and imports {there}.{name}"
        elif here in BASE:
            assert there in BASE, f"{path} imports {there}.{name}"


def test_no_module_is_named_utils() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "util", "helpers", "common")]
    tops = {room(path) for path in MODULES} - {"__init__"}
    assert tops <= {*ROOMS, *BASE, *COMMANDS}


@pytest.mark.slow
@pytest.mark.parametrize("module", [*(f"fashion.{name}" for name in COMMANDS), "fashion.config"])
def test_importing_a_command_imports_no_slow_library(module: str) -> None:
    if not (PACKAGE / f"{module.partition('.')[2]}.py").exists():
        pytest.skip(f"there is no {module}")
    script = (
        f"import sys, fashion, {module}\n"
        f"print(*sorted(set({SLOW}) & {{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == ""
