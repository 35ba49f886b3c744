"""The configuration's schema: keys, types and ranges, checked before torch is imported.

The schema of our own classes is their constructors' signature, read from the source without
running it, because importing torch and lightning takes seconds: keyword-only parameters are
configuration, positional ones are passed at run time; annotations carry the ranges. Classes from
elsewhere are checked against their real signature once they are imported (`build`).
"""

import argparse
import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from fashion.errors import UserError, did_you_mean, first_line

_BESIDE = Path(__file__).parent
CONF = next(
    (path for path in (_BESIDE / "conf", _BESIDE.parent / "conf") if path.is_dir()), _BESIDE
)

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
Folds = Annotated[int, Ge(2)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]
Pixels = Annotated[int, Ge(0), Lt(28)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Activation = Literal["relu", "leaky_relu", "gelu", "elu", "silu"]
Schedule = Literal["constant", "linear", "cosine"]
Limit = PositiveInt | Annotated[float, Gt(0), Le(1)] | None

# Configuration keys that do not affect the result; ignored when comparing runs.
METADATA_KEYS = (
    *("name", "sweep", "report", "resume", "trust", "logger", "data.root"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler"),
    "trainer.threads",  # it affects rounding only
)
# Modules of this project whose classes and functions a configuration may name; no trust needed.
MODULES = tuple(
    f"fashion.{module}"
    for module in (
        *("data.augmentation", "data.datamodule", "training.callbacks", "training.checkpoints"),
        *("training.classifier", "training.networks", "training.optimizers", "training.process"),
    )
)
SECTION = dict[str, Any]
# Types of the top-level keys; the signature of a section's `_target_` types what it holds.
SETTINGS: dict[str, Any] = {
    "data": SECTION,
    "model": dict[str, SECTION],
    "augmentation": SECTION | None,
    "loss": SECTION,
    "optimizer": SECTION,
    "scheduler": SECTION | None,
    "metrics": dict[str, SECTION | None],
    "trainer": SECTION,
    "logger": dict[str, Any] | None,
    "callbacks": dict[str, SECTION | None],
    "seed": Seed,
    "resume": str | None,
    "init_from": str | None,
    "compile": bool,
    "checkpoint": Literal["best", "last"],
    "test": bool,
    "report": bool | None,
    "trust": bool,
    "name": str,
    "sweep": str,
}
BEST = "fashion.training.checkpoints.BestCheckpoint"
# The metrics of a split that every evaluation writes, beside those per class.
OWN_METRICS = (
    *(f"acc{tta}{end}" for tta in ("", "_hflip", "_shift") for end in ("", "_low", "_high")),
    *("loss", "top2", "precision", "recall", "f1", "ece", "ece_scaled", "temperature"),
)
# Keys of any optimizer: the learning rate's schedule over the steps of the training.
OPTIMIZER = {"schedule": Schedule, "warmup": Fraction}
# Keys of any learning-rate scheduler: when it steps, and the metric that ReduceLROnPlateau watches.
SCHEDULER = {"interval": Literal["step", "epoch"], "monitor": str}
# The Trainer's flags with a range; Lightning checks the others.
TRAINER = {
    "max_epochs": PositiveInt | Literal[-1] | None,
    "min_epochs": PositiveInt | None,
    "max_steps": PositiveInt | Literal[-1],
    "limit_train_batches": Limit,
    "limit_val_batches": Limit,
    "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    "devices": PositiveInt | Literal[-1, "auto"] | list[NonNegativeInt],
    "threads": PositiveInt | None,
    "precision": Literal[
        *("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true")
    ]
    | int,
    "check_val_every_n_epoch": PositiveInt | None,
    "accumulate_grad_batches": PositiveInt,
    "gradient_clip_val": NonNegativeFloat | None,
    "log_every_n_steps": PositiveInt | None,
    "fast_dev_run": bool | NonNegativeInt,
    "overfit_batches": NonNegativeInt | Annotated[float, Ge(0), Le(1)],
    "enable_progress_bar": bool | None,
}
# Keys of Hydra's instantiate that are followed, and are not arguments of the target.
LOADER = ("_target_", "_partial_")


def walk(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything below `node`: dicts, lists and leaves."""
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):  # Hydra builds what a list holds, as it does a dict
        items = enumerate(node)
    for name, child in items:
        path = f"{key}.{name}" if key else str(name)
        yield path, child
        yield from walk(child, path)


def has_validation(data: Mapping[str, Any]) -> bool:
    """Return whether a `data` section leaves images for validation; by default it does."""
    return data.get("folds") is not None or bool(data.get("val_size", 1))


def in_one_process(trainer: Mapping[str, Any]) -> bool:
    """Return whether the Trainer's flags surely train in a single process."""
    devices = trainer.get("devices", 1)
    one = len(devices) == 1 if isinstance(devices, list) else devices in (1, "1")
    return one and trainer.get("num_nodes", 1) in (1, None)


def sections(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every section that configures an object, with its full key."""
    for key, node in walk(config):
        if isinstance(node, dict) and "_target_" in node:
            yield key, node


def check(
    config: dict[str, Any], settings: Mapping[str, Any] = SETTINGS, *, complete: bool = True
) -> None:
    """Check a resolved configuration, as plain values, as far as possible without torch.

    Args:
        config: the whole configuration.
        settings: types of the top-level keys, others are refused; if empty, they are not checked.
        complete: whether no key may be missing; runs of older versions lack newer keys.

    Raises:
        UserError: one line per violation, with the full key, its value and what is allowed.
    """
    found = list(_violations("", config, settings, complete=complete)) if settings else []
    for key, section in sections(config):
        if key == "trainer" and not is_ours(section["_target_"]):
            found += _violations("trainer.", section, TRAINER, complete=False, closed=False)
        for name, types in ("optimizer", OPTIMIZER), ("scheduler", SCHEDULER):
            if key == name and not is_ours(section["_target_"]):
                found += _violations(f"{key}.", section, types, complete=False, closed=False)
        if not is_ours(section["_target_"]):
            continue
        types, defaults = signature(key, str(section["_target_"]))
        if key == "optimizer":
            types = types | OPTIMIZER
            defaults = defaults | {"schedule", "warmup"}
        optional = defaults if complete else set(types)
        found += _violations(f"{key}.", section, types, optional=optional)
    if found:
        raise UserError("\n".join(found))


def is_ours(target: Any) -> bool:
    return str(target).startswith("fashion.")


def check_sizes(images: int, val_size: int, batch_size: int, train_size: int | None) -> None:
    """Check the sizes of `data` against the number of images in the training files.

    Raises:
        UserError: there are too few images.
    """
    if val_size >= images:
        raise UserError(
            f"data.val_size = {val_size}: there are {images:,} images in all; "
            "some must be left to train on."
        )
    left = images - val_size
    if train_size is not None:
        if train_size > left:
            raise UserError(f"data.train_size = {train_size}: there are {left:,} to train on.")
        left = train_size
    if batch_size > left:
        raise UserError(f"data.batch_size = {batch_size}: there are {left:,} images to train on.")


@functools.cache
def signature(key: str, target: str) -> tuple[dict[str, Any], set[str]]:
    """Return types of the keyword-only parameters of one of our classes, and which have defaults.

    Raises:
        UserError: `target` is not a class or function of one of `MODULES`.
    """
    module, _, name = target.rpartition(".")
    if module not in MODULES:
        raise UserError(
            f"{key}._target_ = {target}: of this project, only classes in "
            f"{', '.join(MODULES)} can be configured."
        )
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None  # noqa: S101, PT018 - one of MODULES
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    defined = {
        node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    node = defined.get(name)
    if isinstance(node, ast.ClassDef):
        node = next(
            (f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None
        )
        if node is None:
            return {}, set()  # without a constructor of its own
    if node is None:
        raise UserError(
            f"{key}._target_ = {target}: there is no such class or function."
            f"{did_you_mean(name, list(defined))}"
        )
    arguments = node.args
    types = {arg.arg: _annotation(arg) for arg in arguments.kwonlyargs}
    optional = {
        arg.arg
        for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is not None
    }
    return types, optional


def _annotation(arg: ast.arg) -> Any:
    # The text is this package's own source, not the user's.
    return eval(ast.unparse(arg.annotation), globals()) if arg.annotation else Any  # noqa: S307


def _violations(
    prefix: str,
    values: dict[str, Any],
    types: Mapping[str, Any],
    *,
    complete: bool = True,
    optional: set[str] = frozenset(),  # type: ignore[assignment]
    closed: bool = True,
) -> Iterator[str]:
    from pydantic import ConfigDict, ValidationError, create_model

    values = {key: value for key, value in values.items() if key not in LOADER}
    fields: dict[str, Any] = {
        key: (annotation, ... if complete and key not in optional else None)
        for key, annotation in types.items()
    }
    extra: Literal["forbid", "ignore"] = "forbid" if closed else "ignore"
    model = create_model(
        "Section", __config__=ConfigDict(strict=True, extra=extra, allow_inf_nan=False), **fields
    )
    try:
        model.model_validate(values)
    except ValidationError as error:
        by_key: dict[Any, list[Any]] = {}
        for each in error.errors():
            by_key.setdefault(each["loc"][0], []).append(each)
        for name, members in by_key.items():
            violation = max(members, key=_nearness)  # a union reports one for each member
            location = [part for part in violation["loc"] if not _names_a_type(part)]
            key = prefix + ".".join(map(str, location))
            if violation["type"] == "missing":
                yield f"{key} is missing."
            elif violation["type"] == "extra_forbidden":
                hint = did_you_mean(str(name), list(types))
                yield f"{key}: there is no such key.{hint} Known: {', '.join(sorted(types))}."
            else:
                text = violation["msg"][0].lower() + violation["msg"][1:]
                yield f"{key} = {shown(violation['input'])}: {text}."


def _nearness(violation: Mapping[str, Any]) -> tuple[int, bool]:
    """Rank a union's members by how nearly the value fits: elements first, then ranges."""
    return len(violation["loc"]), violation["type"].startswith(("greater", "less"))


def _names_a_type(part: Any) -> bool:
    """Whether pydantic names a member of a union here, rather than a key or a position."""
    return isinstance(part, str) and bool(re.search(r"[\[\(-]|^(int|float|str|bool|list)$", part))


def shown(value: Any) -> str:
    """Return a value as YAML shows it, text in quotes where it could be taken for a number."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and re.fullmatch(r"[-+.\d].*|true|false|null|", value):
        return f'"{value}" (text)'
    return str(value)


# Building the objects that a configuration names; this imports their modules, such as torch.


def build(
    key: str,
    section: Mapping[str, Any],
    *arguments: Any,
    offered: Mapping[str, Any] | None = None,
    inside: Mapping[str, Any] | None = None,
) -> Any:
    """Build the object that a section describes; return a functools.partial if it has `_partial_`.

    Args:
        key: dotted key of the section, for messages.
        section: `_target_` and its arguments.
        arguments: positional ones, passed first.
        offered: keyword arguments that are passed if the target has parameters of these names
            and the section does not set them (sizes that follow from the data).
        inside: as `offered`, for the targets of sections that the section holds.

    Raises:
        UserError: the target cannot be imported, does not have these parameters, or raises.
    """
    values = {k: v for k, v in section.items() if k not in LOADER}
    target = locate(key, section)
    extra = _check_call(
        key, str(section["_target_"]), target, arguments, values=values, offered=offered or {}
    )
    try:
        values = {name: _nested(f"{key}.{name}", value, inside) for name, value in values.items()}
        if section.get("_partial_"):
            return functools.partial(target, *arguments, **values, **extra)
        return target(*arguments, **values, **extra)
    except UserError as error:
        raise error if key in str(error) else UserError(f"{key}: {error}") from error
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"{key}: {section['_target_']} raised {type(error).__name__}: {reason}"
        ) from error


def _nested(key: str, value: Any, offered: Mapping[str, Any] | None) -> Any:
    """Build the sections that an argument holds."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(key, value, offered=offered, inside=offered)
        return {name: _nested(f"{key}.{name}", child, offered) for name, child in value.items()}
    if isinstance(value, list):
        return [_nested(f"{key}.{number}", child, offered) for number, child in enumerate(value)]
    return value


def locate(key: str, section: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the class or function that a section names.

    Raises:
        UserError: it cannot be imported.
    """
    name = str(section.get("_target_"))
    parts = name.split(".")
    found, reason = None, "it is no dotted path MODULE.CLASS"
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise UserError(f"{key}._target_ = {name}: {module} needs {error.name}.") from error
            reason = (
                f"there is no module {error.name}. A module of your own must lie in the current "
                "folder or be installed"
            )
            continue
        except Exception as error:
            kind = type(error).__name__
            raise UserError(
                f"{key}._target_ = {name}: importing {module} raised {kind}: {error}"
            ) from error
        for part in parts[length:]:
            if not hasattr(found, part):
                hint = did_you_mean(part, dir(found))
                raise UserError(f"{key}._target_ = {name}: {module} has no {part}.{hint}")
            found = getattr(found, part)
        break
    if found is None:
        raise UserError(f"{key}._target_ = {name} cannot be imported: {reason}.")
    if not callable(found):
        raise UserError(f"{key}._target_ = {name} is neither a class nor a function.")
    return found


def _check_call(
    key: str,
    name: str,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    values: Mapping[str, Any],
    offered: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what of `offered` to pass.

    Raises:
        UserError: a parameter is unknown or missing.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # a class written in C: it checks by itself
        return {}
    open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    extra = {k: v for k, v in offered.items() if k in parameters and k not in values}
    known = [
        p.name
        for p in list(parameters.values())[len(arguments) :]
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    for parameter in values:
        if parameter not in known and not open_ended:
            # The Trainer's 40 names would hide the one that is meant.
            hint = did_you_mean(parameter, known) or f" Known: {', '.join(sorted(known))}."
            raise UserError(
                f"{key}.{parameter}: {name} has no such parameter.{hint} "
                f"~{key}.{parameter} removes the key."
            )
    missing = [
        f"{key}.{p}"
        for p in known
        if parameters[p].default is parameters[p].empty and p not in values and p not in extra
    ]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing; {name} needs it.")
    return extra


# What the command line decides.

LONGEST_NAME = 160  # bytes; file systems allow 255


def folder_name(text: Any, number: Any = 0) -> str:
    """Return a valid folder name of at most `LONGEST_NAME` bytes made of any text.

    Args:
        text: a run's name, or the overrides that distinguish the runs of a grid.
        number: the folder is named run-NUMBER if `text` is empty.
    """
    name = re.sub(r"[/\\\0-\x1f]", "_", str(text)).strip()
    if name in ("", ".", ".."):
        return f"run-{number}"
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore") + "-" + digest
    return name


def register_resolvers() -> None:
    """Register the OmegaConf resolvers that conf/ uses."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver(
        "unless_smoke", lambda trainer, name: "smoke" if trainer == "smoke" else name, replace=True
    )


def task_overrides() -> list[str]:
    """Return the command line's overrides, unresolved: an interpolation may name a missing key."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    task = HydraConfig.get().overrides.task
    return OmegaConf.to_container(task, resolve=False)  # type: ignore[return-value]


def start_afresh(config: Any, overrides: Iterable[str]) -> None:
    """Drop the arguments of a class that the command line has replaced, in place.

    After `model.network._target_=mine.Net`, arguments that conf/ sets for the previous class are
    removed, so that the defaults of the new class apply; the command line's arguments stay.
    """
    from omegaconf import OmegaConf, open_dict

    given = [override.lstrip("+~").partition("=")[0] for override in overrides]
    for key in given:
        section, _, last = key.rpartition(".")
        node = OmegaConf.select(config, section) if last == "_target_" else None
        if node is None:
            continue
        with open_dict(node):
            for name in [n for n in node if n != "_target_"]:
                if not any(f"{each}.".startswith(f"{section}.{name}.") for each in given):
                    del node[name]


def anchor(config: Any, base: Path) -> None:
    """Make `init_from` absolute, in place: a run may be resumed from another folder."""
    if isinstance(config.init_from, str):
        config.init_from = str(base / at_home(config.init_from))


def at_home(path: str | Path) -> Path:
    """Expand `~`.

    Raises:
        UserError: it names a user that does not exist, as does "~logs" for "~/logs".
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no user of that name; your own folder is ~/.") from error


FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "folder")  # keys of folders that Hydra creates


def expand_home(arguments: Iterable[str]) -> list[str]:
    """Return a command line with `~` expanded in the values of `FOLDERS`; Hydra does not do it."""

    def expanded(argument: str) -> str:
        key, folder = _folder(argument)
        if not key or not str(folder).startswith("~"):
            return argument
        text = str(at_home(folder)).replace('"', r"\"")
        return f'{key}="{text}"'

    return [expanded(argument) for argument in arguments]


def existing_folders(arguments: Iterable[str]) -> set[Path]:
    """Return the folders that exist of those a command line names, above them and in them."""
    # Runs are in logs/ where nothing else is named.
    named = [folder.resolve() for key, folder in map(_folder, ["folder=logs", *arguments]) if key]
    around = [each for folder in named for each in (folder, *folder.parents)]
    found = [*around, *(below for folder in named if folder.is_dir() for below in folder.iterdir())]
    return {folder for folder in found if folder.is_dir()}


def _folder(argument: str) -> tuple[str, Path]:
    key, _, value = argument.partition("=")
    return key if key.lstrip("+") in FOLDERS else "", Path(value.strip("\"'"))


def refuse_hidden_files(arguments: Sequence[str]) -> None:
    """Refuse a --config-dir with a file that is not used, as conf/ has another of its name.

    Raises:
        UserError: naming the file. Hydra would take the other one without a word, and refuse the
            keys that only this one has.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c")  # or it would be taken for an abbreviation
    folder = parser.parse_known_args(arguments)[0].config_dir
    for ours in sorted(CONF.rglob("*.yaml")) if folder else []:
        file = Path(folder, ours.relative_to(CONF))
        if file.is_file() and file.read_bytes() != ours.read_bytes():
            raise UserError(
                f"{file} would not be used: the project has another file of this name, which "
                "comes first. Rename yours, and name it so on the command line."
            )


def check_run(config: Any) -> None:
    """Check a run's whole configuration.

    Raises:
        UserError: as `check`; a value is missing; or two values contradict each other.
    """
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    if missing := [key for key, value in walk(plain) if value == "???"]:
        raise UserError(f"{', '.join(missing)}: there is no value; set it with KEY=VALUE.")
    check(plain)
    for key in ("name", "sweep"):
        short = len(plain[key].encode()) <= LONGEST_NAME  # others are shortened
        if short and plain[key] != folder_name(plain[key]):
            raise UserError(
                f"{key} = {shown(plain[key])}: it names a folder below logs/, and must not contain "
                "slashes or be empty."
            )
    best = plain["callbacks"].get("best")
    if best and best.get("_target_") != BEST:
        raise UserError(
            f"callbacks.best._target_ = {best.get('_target_')}: the run reports the checkpoint of "
            f"{BEST}; another callback is added as +callbacks.NAME."
        )
    if taken := sorted({*plain["metrics"]} & {*OWN_METRICS}):
        raise UserError(
            f"metrics.{taken[0]}: every evaluation computes a metric of this name; choose another."
        )
    data = plain["data"]
    if not has_validation(data) and plain["callbacks"].get("early_stopping"):
        raise UserError(
            "data.val_size = 0 leaves no validation set to stop early on: add "
            "callbacks.early_stopping=null, or hold images out."
        )
