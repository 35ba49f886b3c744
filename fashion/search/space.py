"""A search space: which keys of a configuration vary, within what, and on which condition.

A file in conf/search/ maps keys, as the command line has them, to what each may be:

    optimizer.lr: {float: [1e-4, 1e-2], log: true}            log: spread evenly over its logarithm
    data.batch_size: {choices: [32, 64, 128]}
    model.network.conv: {length: [1, 3], int: [16, 128]}      a list: its length, and each element
    model.network.negative_slope:
      float: [0.01, 0.3]
      when: {model.network.conv_activation: leaky_relu}       varied only then; one value or several

A list gives a parameter for its length (KEY.length, which conditions may name too) and one for each
element (KEY.0, KEY.1, ...), which is there only in lists that are long enough. What a condition
leaves out keeps the configuration's own value. Imports neither torch nor Optuna.
"""

import difflib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf

from fashion import config as schema
from fashion.errors import UserError

if TYPE_CHECKING:
    from optuna.trial import Trial

KINDS = ("float", "int", "choices")
LONGEST = 100  # of lists: each element is a parameter
# What every trial must share, or their values could not be compared.
SHARED = (
    *("seed", "test", "report", "resume", "name", "sweep", "checkpoint"),
    *("data.root", "data.val_size", "data.split_seed", "data.official"),
    *("trainer.max_epochs", "trainer.limit_train_batches", "trainer.limit_val_batches"),
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.progress_bar"),
)

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Parameter:
    """One number or choice that a trial draws, where its conditions hold."""

    name: str
    kind: Literal["float", "int", "choices"]
    values: tuple[Any, ...]  # low and high, both included; or the choices
    log: bool = False
    # Parameter -> values of it, one of which it must have; all of them.
    conditions: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def holds(self, value: object) -> bool:
        """Whether `value` lies within."""
        if self.kind == "choices":
            return any(_same(value, choice) for choice in self.values)
        number = int if self.kind == "int" else (int, float)
        low, high = self.values
        return isinstance(value, number) and not isinstance(value, bool) and low <= value <= high

    def active(self, values: Mapping[str, Value]) -> bool:
        return all(
            parent in values and any(_same(values[parent], value) for value in allowed)
            for parent, allowed in self.conditions.items()
        )

    def suggest(self, trial: "Trial") -> Value:
        if self.kind == "choices":
            chosen: Value = trial.suggest_categorical(self.name, self.values)
            return chosen
        if self.kind == "int":
            return trial.suggest_int(self.name, *self.values, log=self.log)
        return trial.suggest_float(self.name, *self.values, log=self.log)

    def __str__(self) -> str:
        if self.kind == "choices":
            return f"one of {_listed(self.values)}"
        return f"{self.values[0]} to {self.values[1]}"


@dataclass(frozen=True)
class Space:
    """Parameters in an order in which each comes after those that its conditions name."""

    parameters: tuple[Parameter, ...]
    lists: tuple[str, ...]  # keys whose value is a list

    @property
    def conditional(self) -> bool:
        return any(parameter.conditions for parameter in self.parameters)

    @classmethod
    def parse(cls, entries: Mapping[Any, Any], config: DictConfig) -> "Space":
        """The space over `config` that a file in conf/search/ describes, as plain values.

        Raises:
            UserError: one line a fault, by its key: it is unknown or not to be varied, its range is
                empty or holds what the configuration does not allow, its condition can never hold,
                or the configuration's own value lies outside.
        """
        if not entries:
            raise UserError("search: the space is empty; it maps keys to what each may be.")
        faults = []
        parameters: list[Parameter] = []
        for key, entry in entries.items():
            try:
                _check_key(key, config)
                parameters += _parameters(key, entry, OmegaConf.select(config, key))
            except UserError as error:
                faults.append(f"search.{key}: {error}")
        if faults:
            raise UserError("\n".join(faults))
        _check_conditions({parameter.name: parameter for parameter in parameters})
        lists = tuple(key for key, entry in entries.items() if "length" in entry)
        space = cls(tuple(_in_order(parameters)), lists)
        space.defaults(config)
        space._check_values(config)
        return space

    def defaults(self, config: DictConfig) -> dict[str, Value]:
        """The configuration's own values of the parameters whose conditions hold in it.

        Raises:
            UserError: one lies outside the space.
        """
        values: dict[str, Value] = {}
        faults = []
        for parameter in self.parameters:
            if parameter.active(values):
                value = self._own(parameter.name, config)
                values[parameter.name] = value
                if not parameter.holds(value):
                    faults.append(
                        f"search.{parameter.name}: the configuration's own value, "
                        f"{_word(value)}, which the first trial takes, is outside: {parameter}."
                    )
        if faults:
            raise UserError("\n".join(faults))
        return values

    def _own(self, name: str, config: DictConfig) -> Value:
        key, _, part = name.rpartition(".")
        if key in self.lists:
            elements = OmegaConf.select(config, key)
            value: Value = len(elements) if part == "length" else elements[int(part)]
        else:
            value = OmegaConf.select(config, name)
        return value

    def _check_values(self, config: DictConfig) -> None:
        """Whether the configuration allows the ends of every range, and every choice."""
        rounds = max(len(parameter.values) for parameter in self.parameters)
        for number in range(rounds + 1):
            values = {}
            for parameter in self.parameters:
                # A list of the least length in the last round, of the greatest in the others.
                lengths = parameter.name.rpartition(".")[2] == "length"
                choice = min(number, len(parameter.values) - 1)
                if lengths:
                    choice = 0 if number == rounds else 1
                values[parameter.name] = parameter.values[choice]
            try:
                schema.check(OmegaConf.to_container(self.apply(config, values)), {})  # type: ignore[arg-type]
            except UserError as error:
                raise UserError(f"search: a value of the space is not allowed:\n{error}") from error

    def suggest(self, trial: "Trial") -> dict[str, Value]:
        """What a trial draws, of the parameters whose conditions hold."""
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def apply(self, config: DictConfig, values: Mapping[str, Value]) -> DictConfig:
        """A copy of `config` with these values in it."""
        config = config.copy()
        for key in self.lists:
            if (length := values.get(f"{key}.length")) is not None:
                elements = [values[f"{key}.{position}"] for position in range(int(length))]
                OmegaConf.update(config, key, elements)
        for name, value in values.items():
            if name.rpartition(".")[0] not in self.lists:
                OmegaConf.update(config, name, value)
        return config


def _check_key(key: object, config: DictConfig) -> None:
    if key in SHARED:
        hint = ""
        if key == "trainer.max_epochs":
            hint = " Pruning and early stopping decide how many epochs a trial gets."
        raise UserError(f"all trials of a search share it, so that they compare.{hint}")
    keys = list(_keys(config))
    if key not in keys:
        near = difflib.get_close_matches(str(key), keys, 3)
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise UserError(f"there is no such key in the configuration.{hint}")


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, node):
        child = OmegaConf.select(node, name)
        if isinstance(child, DictConfig):
            yield from _keys(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _parameters(key: str, entry: object, own: object) -> list[Parameter]:
    """The parameters of one entry; its faults are raised without its key."""
    kinds = [kind for kind in KINDS if isinstance(entry, dict) and kind in entry]
    if not isinstance(entry, dict) or len(kinds) != 1:
        raise UserError("give it one of float: [low, high], int: [low, high], choices: [...].")
    kind: Any = kinds[0]
    if unknown := sorted(set(entry) - {kind, "log", "length", "when"}):
        raise UserError(f"{', '.join(unknown)} means nothing here; log, length and when do.")
    if isinstance(own, ListConfig) != ("length" in entry):
        raise UserError(
            f"its value, {own!s}, is a list: say how long with length: [least, most]."
            if isinstance(own, ListConfig)
            else f"its value, {_word(own)}, is no list, so that it has no length."
        )
    log = entry.get("log", False)
    if not isinstance(log, bool) or (log and kind == "choices"):
        raise UserError(f"log: {_word(log)}: it is true or false, of float and int alone.")
    values = _choices(entry[kind]) if kind == "choices" else _range(kind, entry[kind])
    if log and values[0] <= 0:
        raise UserError(f"{kind}: {_listed(values)}: a logarithm needs a lower end above 0.")
    conditions = _when(entry.get("when", {}))
    if "length" not in entry:
        return [Parameter(key, kind, values, log, conditions)]
    least, most = _range("int", entry["length"], "length")
    if least < 0 or most > LONGEST:
        raise UserError(f"length: {_listed((least, most))}: a list has 0 to {LONGEST} elements.")
    elements = [
        Parameter(
            f"{key}.{position}",
            kind,
            values,
            log,
            conditions | {f"{key}.length": tuple(range(max(least, position + 1), most + 1))},
        )
        for position in range(most)
    ]
    return [Parameter(f"{key}.length", "int", (least, most), conditions=conditions), *elements]


def _choices(given: object) -> tuple[Any, ...]:
    if not isinstance(given, list) or not all(
        value is None or isinstance(value, bool | int | float | str) for value in given
    ):
        raise UserError(f"choices: {given!s}: a list of numbers, words, true, false or null.")
    distinct: list[Value] = []
    for value in given:
        if not any(_same(value, other) for other in distinct):
            distinct.append(value)
    if len(distinct) < 2 or len(distinct) < len(given):  # noqa: PLR2004
        raise UserError(f"choices: {_listed(given)}: two or more are needed, no two the same.")
    return tuple(given)


def _range(kind: str, given: object, word: str | None = None) -> tuple[Any, Any]:
    word = word or kind
    number = int if kind == "int" else int | float
    if (
        not isinstance(given, list)
        or len(given) != 2  # noqa: PLR2004
        or not all(isinstance(end, number) and not isinstance(end, bool) for end in given)
        or not all(abs(end) <= sys.float_info.max for end in given)  # nan neither
    ):
        what = "whole numbers" if kind == "int" else "numbers"
        raise UserError(f"{word}: {given!s}: it takes two {what}, [low, high].")
    low, high = (float(end) for end in given) if kind == "float" else given
    if low >= high:
        raise UserError(f"{word}: {_listed(given)}: the range is empty, low must be below high.")
    return low, high


def _when(given: object) -> dict[str, tuple[Value, ...]]:
    if not isinstance(given, dict):
        raise UserError(f"when: {given!s}: it maps a key of this space to one value or a list.")
    return {
        key: tuple(allowed) if isinstance(allowed, list) else (allowed,)
        for key, allowed in given.items()
    }


def _check_conditions(parameters: Mapping[str, Parameter]) -> None:
    faults = []
    for parameter in parameters.values():
        for parent, allowed in parameter.conditions.items():
            where = f"search.{parameter.name}: when {parent}: {_listed(allowed)}"
            if parent not in parameters:
                known = f"{parent}.length" in parameters
                hint = f" Its length is {parent}.length." if known else ""
                faults.append(f"{where}: the space has no such parameter.{hint}")
            elif parameters[parent].kind == "float":
                faults.append(f"{where}: a condition is on a choice or a whole number.")
            elif not all(parameters[parent].holds(value) for value in allowed) or not allowed:
                faults.append(f"{where}: that can never hold, it is {parameters[parent]}.")
    if faults:
        raise UserError("\n".join(faults))
    for parameter in parameters.values():
        needed: dict[str, tuple[Value, ...]] = {}
        for parent, allowed in _all_conditions(parameter, parameters, (parameter.name,)):
            both = [
                value
                for value in needed.get(parent, allowed)
                if any(_same(value, other) for other in allowed)
            ]
            if not both:
                raise UserError(
                    f"search.{parameter.name}: when: that can never hold, {parent} would have to "
                    f"be {_listed(needed[parent])} and {_listed(allowed)} at once."
                )
            needed[parent] = tuple(both)


def _all_conditions(
    parameter: Parameter, parameters: Mapping[str, Parameter], path: tuple[str, ...]
) -> Iterator[tuple[str, tuple[Value, ...]]]:
    """A parameter's conditions, and those of the parameters that they name."""
    for parent, allowed in parameter.conditions.items():
        if parent in path:
            raise UserError(
                f"search.{path[0]}: when: that can never hold, it depends on itself "
                f"({' -> '.join((*path, parent))})."
            )
        yield parent, allowed
        yield from _all_conditions(parameters[parent], parameters, (*path, parent))


def _in_order(parameters: list[Parameter]) -> Iterator[Parameter]:
    waiting, placed = list(parameters), set[str]()
    while waiting:
        parameter = next(each for each in waiting if placed >= each.conditions.keys())
        waiting.remove(parameter)
        placed.add(parameter.name)
        yield parameter


def _same(one: object, other: object) -> bool:
    """Equal, and of one type: true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _word(value: object) -> str:
    """As YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _listed(values: Any) -> str:
    return f"[{', '.join(map(_word, values))}]"
