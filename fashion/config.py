"""What a configuration may hold: the constructors' own signatures, read before torch is imported.

Keyword-only parameters are configuration, positional ones are given at run time. Their annotations
carry the ranges, so that each limit stands once, where the value is used. Importing torch and
lightning takes seconds; a signature can be read from the source without running it, so that a
typing mistake is answered at once.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model

from fashion.errors import UserError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Pixels = Annotated[int, Field(ge=0, lt=28)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Activation = Literal["relu", "leaky_relu", "gelu", "elu", "silu"]
Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["32-true", "bf16-mixed", "auto"]
Strategy = Literal["auto", "ddp"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
# Configuration keys that do not affect the result; ignored when comparing runs.
METADATA_KEYS = (
    *("name", "sweep", "report", "resume", "trust", "logger", "data.root"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler"),
)
# A run's files name what builds it: only these may be named, and nothing else is ever imported.
MODULES = (
    "data.augmentation",
    "data.datamodule",
    "training.callbacks",
    "training.networks",
    "training.optimizers",
    "training.process",
)


def check(config: dict[str, Any], settings: dict[str, Any], *, complete: bool = True) -> None:
    """Check every value of a resolved configuration against the signature of what it configures.

    Args:
        config: the whole configuration as plain values; a `_target_` says what is checked.
        settings: types of the top-level keys, of which there are no others; none: any keys.
        complete: whether each key must be there; a run made by an older version lacks newer ones.

    Raises:
        UserError: one line a fault, with the full key, its value and what is allowed.
    """
    faults = list(_faults("", config, settings, complete=complete)) if settings else []
    for key, section in _sections(config, ""):
        if section.get("_partial_", False) is not (key == "optimizer"):
            faults.append(f"{key}._partial_: true for the optimizer, and for nothing else.")
        faults += _faults(f"{key}.", section, _parameters(key, section), complete=complete)
    if faults:
        raise UserError("\n".join(faults))


def walk(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything below `node`: dicts, lists and leaves."""
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):  # Hydra builds what a list holds, as it does a dict
        items = enumerate(node)
    for name, child in items:
        path = f"{key}.{name}" if key else str(name)
        yield path, child
        yield from walk(child, path)


def check_sizes(pictures: int, val_size: int, batch_size: int) -> None:
    """Check the sizes of `data` against the number of pictures in the training files.

    Raises:
        UserError: there are too few.
    """
    if val_size >= pictures:
        raise UserError(
            f"data.val_size = {val_size}: there are {pictures:,} pictures in all; "
            "some must be left to train on."
        )
    if batch_size > pictures - val_size:
        raise UserError(
            f"data.batch_size = {batch_size}: "
            f"there are {pictures - val_size:,} pictures to train on."
        )


def _sections(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict below `node`, within lists too, that configures an object, with its full key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _sections(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):  # Hydra would build what a list holds, as it does a dict
        for position, child in enumerate(node):
            yield from _sections(child, f"{key}.{position}")


def _parameters(key: str, section: dict[str, Any]) -> dict[str, Any]:
    """Name -> annotated type of the keyword-only parameters of a section's `_target_`."""
    target = section["_target_"]
    module, _, name = str(target).removeprefix("fashion.").rpartition(".")
    if not str(target).startswith("fashion.") or module not in MODULES:
        allowed = ", ".join(f"fashion.{module}" for module in MODULES)
        raise UserError(f"{key}._target_ = {target}: only what stands in {allowed} may be built.")
    spec = importlib.util.find_spec(f"fashion.{module}")
    assert spec is not None and spec.origin is not None  # noqa: S101, PT018 - one of MODULES
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            init = next(
                (f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"),
                None,
            )
        elif isinstance(node, ast.FunctionDef) and node.name == name:
            init = node
        else:
            continue
        if init is None:
            raise UserError(f"{key}._target_ = {target}: it has no __init__ of its own.")
        return {arg.arg: _annotation(arg) for arg in init.args.kwonlyargs}
    raise UserError(f"{key}._target_ = {target}: there is no such class or function.")


def _annotation(arg: ast.arg) -> Any:
    # The text is this package's own source, not the user's.
    return eval(ast.unparse(arg.annotation), globals()) if arg.annotation else Any  # noqa: S307


def _faults(
    prefix: str, values: dict[str, Any], types: dict[str, Any], *, complete: bool
) -> Iterator[str]:
    values = {key: value for key, value in values.items() if key not in ("_target_", "_partial_")}
    default = ... if complete else None
    fields: dict[str, Any] = {key: (annotation, default) for key, annotation in types.items()}
    model = create_model("Section", __config__=ConfigDict(strict=True, extra="forbid"), **fields)
    try:
        model.model_validate(values)
    except ValidationError as error:
        for fault in error.errors():
            key = prefix + ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "missing":
                yield f"{key} is missing."
            elif fault["type"] == "extra_forbidden":
                yield f"{key}: there is no such key. Known: {', '.join(sorted(types))}."
            else:
                yield f"{key} = {fault['input']}: {fault['msg'][0].lower()}{fault['msg'][1:]}."
