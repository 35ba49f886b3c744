"""The search space: which keys of a configuration vary, over which range, on which condition.

A file in conf/search/ maps keys, as on the command line, to ranges:

    optimizer.lr: {float: [1e-4, 1e-2], log: true}            log: uniform over the logarithm
    data.batch_size: {choices: [32, 64, 128]}
    model.network.conv: {length: [1, 3], int: [16, 128]}      a list: its length, and each element
    model.network.negative_slope:
      float: [0.01, 0.3]
      when: {model.network.conv_activation: leaky_relu}       varies only then; one value or a list

A list gives one parameter for its length (KEY.length, which conditions may name too) and one per
element (KEY.0, KEY.1, ...), which is drawn only for lists that are long enough. A parameter whose
condition does not hold keeps the configuration's own value. Imports neither torch nor Optuna.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf

from fashion import config as schema
from fashion.config import METADATA_KEYS, shown, walk
from fashion.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from optuna.trial import Trial

KINDS = ("float", "int", "choices")
LONGEST = 100  # of lists: each element is a parameter
# Keys that may not vary, so that the trials' values can be compared; a section includes its keys.
SHARED = (
    *METADATA_KEYS,
    *("seed", "test", "checkpoint", "init_from", "metrics", "callbacks.best"),
    *("data.val_size", "data.split_seed", "data.official", "data.folds", "data.fold"),
    *("trainer.max_epochs", "trainer.limit_train_batches", "trainer.limit_val_batches"),
    *("trainer.accelerator", "trainer.devices", "trainer.strategy"),
)

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Parameter:
    """One number or choice that a trial draws if its conditions hold."""

    name: str
    kind: Literal["float", "int", "choices"]
    values: tuple[Any, ...]  # low and high, both included; or the choices
    log: bool = False
    # Parameter -> values, one of which it must have. All conditions must hold.
    conditions: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def __contains__(self, value: object) -> bool:
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
    """Parameters, ordered so that each comes after those that its conditions name."""

    parameters: tuple[Parameter, ...]
    lists: tuple[str, ...]  # keys whose value is a list

    @property
    def conditional(self) -> bool:
        return any(parameter.conditions for parameter in self.parameters)

    @classmethod
    def parse(cls, entries: Mapping[Any, Any], config: DictConfig) -> "Space":
        """Return the space over `config` that the content of a file in conf/search/ describes.

        Raises:
            UserError: one line per violation: a key is unknown or must not vary, a range is empty
                or holds what the configuration does not allow, a condition names no value of the
                space, or the configuration's own value lies outside.
        """
        if not entries:
            raise UserError("search: the space is empty; it maps keys to ranges.")
        nodes = dict(walk(_plain(config)))
        lists = tuple(f"{key}." for key, node in nodes.items() if isinstance(node, list))
        keys = [
            key
            for key, node in nodes.items()
            if not isinstance(node, dict) and not key.startswith(lists)
        ]
        violations = []
        parameters: list[Parameter] = []
        for key, entry in entries.items():
            try:
                _check_key(str(key), keys)
                parameters += _parameters(key, entry, OmegaConf.select(config, key))
            except UserError as error:
                violations.append(f"search.{key}: {error}")
        known = {parameter.name: parameter for parameter in parameters}
        if not violations:
            violations = list(_wrong_conditions(known))
        if violations:
            raise UserError("\n".join(violations))
        space = cls(
            tuple(_in_order(list(known.values()))),
            tuple(key for key, entry in entries.items() if "length" in entry),
        )
        space.defaults(config)
        space._check_values(config)
        return space

    def defaults(self, config: DictConfig) -> dict[str, Value]:
        """Return the configuration's own values of the parameters that are active in it.

        Raises:
            UserError: one lies outside the space.
        """
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = self._own(parameter.name, config)
        outside = [
            f"search.{parameter.name}: the configuration's own value, "
            f"{shown(values[parameter.name])} (of the first trial), is outside: {parameter}."
            for parameter in self.parameters
            if parameter.name in values and values[parameter.name] not in parameter
        ]
        if outside:
            raise UserError("\n".join(outside))
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
        """Check that the configuration allows the ends of every range, and every choice."""
        rounds = max(len(parameter.values) for parameter in self.parameters)
        for number in range(rounds + 1):
            # Lists have their shortest length in the last round, the longest in the others.
            values = {
                parameter.name: parameter.values[
                    int(number < rounds)
                    if parameter.name.endswith(".length")
                    else min(number, len(parameter.values) - 1)
                ]
                for parameter in self.parameters
            }
            try:
                schema.check(_plain(self.apply(config, values)), {})
            except UserError as error:
                raise UserError(f"search: a value of the space is not allowed:\n{error}") from error

    def suggest(self, trial: "Trial") -> dict[str, Value]:
        """Return what a trial draws for the parameters that are active in it."""
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def apply(self, config: DictConfig, values: Mapping[str, Value]) -> DictConfig:
        """Return a copy of `config` with these values of parameters in it."""
        config = config.copy()
        for key in self.lists:
            if (length := values.get(f"{key}.length")) is not None:
                elements = [values[f"{key}.{index}"] for index in range(int(length))]
                OmegaConf.update(config, key, elements)
        for name, value in values.items():
            if name.rpartition(".")[0] not in self.lists:
                OmegaConf.update(config, name, value)
        return config


def _check_key(key: str, keys: list[str]) -> None:
    if any(f"{key}.".startswith(f"{shared}.") for shared in SHARED):
        hint = ""
        if key == "trainer.max_epochs":
            hint = " Pruning and early stopping decide how many epochs a trial gets."
        raise UserError(f"all trials of a search share it, so that they can be compared.{hint}")
    if key not in keys:
        raise UserError(f"there is no such key in the configuration.{did_you_mean(key, keys)}")


def _parameters(key: str, entry: object, own: object) -> list[Parameter]:
    """Return the parameters of one entry; the caller adds its key to errors."""
    kinds = [kind for kind in KINDS if isinstance(entry, dict) and kind in entry]
    if not isinstance(entry, dict) or len(kinds) != 1:
        raise UserError("give it one of float: [low, high], int: [low, high], choices: [...].")
    kind: Any = kinds[0]
    if unknown := sorted(map(str, set(entry) - {kind, "log", "length", "when"})):
        raise UserError(f"{', '.join(unknown)}: unknown here. Known: {kind}, log, length, when.")
    if isinstance(own, ListConfig) != ("length" in entry):
        raise UserError(
            f"its value, {own!s}, is a list: give its length with length: [least, most]."
            if isinstance(own, ListConfig)
            else f"its value, {shown(own)}, is no list, so that it has no length."
        )
    log = entry.get("log", False)
    if not isinstance(log, bool) or (log and kind == "choices"):
        raise UserError(f"log: {shown(log)}: it is true or false, for float and int only.")
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
            f"{key}.{index}",
            kind,
            values,
            log,
            conditions | {f"{key}.length": tuple(range(max(least, index + 1), most + 1))},
        )
        for index in range(most)
    ]
    return [Parameter(f"{key}.length", "int", (least, most), conditions=conditions), *elements]


def _choices(given: object) -> tuple[Any, ...]:
    if not isinstance(given, list) or not all(
        value is None or isinstance(value, bool | int | float | str) for value in given
    ):
        raise UserError(f"choices: {given!s}: a list of numbers, texts, true, false or null.")
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
        what = "integers" if kind == "int" else "numbers"
        raise UserError(f"{word}: {given!s}: it takes two {what}, [low, high].")
    low, high = (float(end) for end in given) if kind == "float" else given
    if low >= high:
        raise UserError(f"{word}: {_listed(given)}: the range is empty, low must be below high.")
    return low, high


def _when(given: object) -> dict[str, tuple[Value, ...]]:
    if not isinstance(given, dict):
        raise UserError(f"when: {given!s}: it maps a parameter of this space to its values.")
    return {
        key: tuple(allowed) if isinstance(allowed, list) else (allowed,)
        for key, allowed in given.items()
    }


def _wrong_conditions(parameters: Mapping[str, Parameter]) -> Iterator[str]:
    for parameter in parameters.values():
        for parent, allowed in parameter.conditions.items():
            where = f"search.{parameter.name}: when {parent}: {_listed(allowed)}"
            if parent not in parameters:
                length = f"{parent}.length" in parameters
                hint = f" Its length is {parent}.length." if length else ""
                yield f"{where}: the space has no such parameter.{hint}"
            elif not allowed or not all(value in parameters[parent] for value in allowed):
                yield f"{where}: these are not values of it, which is {parameters[parent]}."


def _in_order(waiting: list[Parameter]) -> Iterator[Parameter]:
    placed = set[str]()
    while waiting:
        ready = [parameter for parameter in waiting if placed >= parameter.conditions.keys()]
        if not ready:
            names = ", ".join(parameter.name for parameter in waiting)
            raise UserError(f"search: the conditions of these depend on each other: {names}.")
        yield ready[0]
        waiting.remove(ready[0])
        placed.add(ready[0].name)


def _same(one: object, other: object) -> bool:
    """Return whether two values are equal; true is not equal to 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _listed(values: Any) -> str:
    return f"[{', '.join(map(shown, values))}]"


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config)  # type: ignore[return-value]
