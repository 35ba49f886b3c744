"""What a space may hold, what a trial draws from it, and how a wrong one is refused by name."""

import math
from typing import Any, cast

import numpy as np
import pytest
import yaml
from conftest import composed
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from fashion import config as schema
from fashion.config import CONF
from fashion.errors import UserError
from fashion.search.space import Space

KEYS = {"optimizer.lr": {"float": [1e-4, 1e-2], "log": True}}


class Draws:
    """In place of Optuna's trial: draws at random, and records what it was asked for."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.asked: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        self.asked[name] = (low, high, log)
        ends = (math.log(low), math.log(high)) if log else (low, high)
        drawn = self.random.uniform(*ends)
        return math.exp(drawn) if log else drawn

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        self.asked[name] = (low, high, log)
        return int(self.random.integers(low, high + 1))

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        self.asked[name] = choices
        return choices[self.random.integers(len(choices))]


def test_the_space_that_the_page_shows() -> None:
    text = (CONF.parent / "docs/search.md").read_text(encoding="utf-8")
    block = text.partition("```yaml\n")[2].partition("```")[0]
    space = Space.parse(yaml.safe_load(block), training("model=best", "model.network.conv=[64]"))
    assert "model.network.negative_slope" in block
    assert space


def training(*overrides: str) -> DictConfig:
    config: DictConfig = composed(*overrides)
    OmegaConf.resolve(config)
    return config


def deck() -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF / "search/deck.yaml")))


@pytest.mark.slow
def test_the_deck_s_space_allows_what_it_draws() -> None:
    config = training()
    space = Space.parse(deck(), config)
    assert space.conditional
    seen = set()
    for seed in range(60):
        trial = cast(Any, Draws(seed))
        values = space.suggest(trial)
        drawn = space.apply(config, values)
        schema.check(cast(dict[str, Any], OmegaConf.to_container(drawn)), {})
        conv, dense = drawn.model.network.conv, drawn.model.network.dense
        pooled = values["model.network.pool"] == 2
        assert ("model.network.conv.length" in values) == pooled
        assert len(conv) == values.get("model.network.conv.length", 1)
        assert all(16 <= filters <= 64 for filters in conv) if pooled else conv == [64]
        # Only with three convolutions does the third have a width, and so with dense layers.
        assert ("model.network.conv.2" in trial.asked) == (len(conv) > 2)
        assert ("model.network.dense.1" in trial.asked) == (len(dense) > 1)
        assert trial.asked["optimizer.lr"] == (1e-4, 1e-2, True)
        seen.add((len(conv), len(dense)))
    assert seen == {(conv, dense) for conv in (1, 2, 3) for dense in (1, 2)}
    assert config == training()  # the configuration itself stays as it is


def test_the_first_trial_is_the_configuration() -> None:
    for overrides in ((), ("model=cnn", "optimizer.lr=0.0005", "data.batch_size=64")):
        config = training(*overrides)
        space = Space.parse(deck(), config)
        values = space.defaults(config)
        assert space.apply(config, values) == config
        assert values["optimizer.lr"] == config.optimizer.lr
        pooled = config.model.network.pool == 2
        assert values.get("model.network.conv.length", 1) == len(config.model.network.conv)
        assert ("model.network.conv.length" in values) == pooled


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"optimizer.rate": {"float": [0, 1]}}, "optimizer.rate: there is no such key"),
        ({"optimizer.lrr": {"float": [0, 1]}}, "Did you mean optimizer.lr"),
        ({"optimizer": {"float": [0, 1]}}, "optimizer: there is no such key"),
        ({"seed": {"int": [0, 9]}}, "seed: all trials of a search share it"),
        ({"logger.tensorboard.x": {"int": [0, 9]}}, "all trials of a search share it"),
        ({"trainer.max_epochs": {"int": [1, 9]}}, "early stopping decide how many epochs"),
        ({"optimizer.lr": 0.1}, "optimizer.lr: give it one of float"),
        ({"optimizer.lr": {"float": [0.1, 1], "choices": [1, 2]}}, "give it one of"),
        ({"optimizer.lr": {"float": [0.1, 1], "step": 1}}, "step: unknown here"),
        ({"optimizer.lr": {"float": [0.01, 0.0001]}}, "[0.01, 0.0001]: the range is empty"),
        ({"optimizer.lr": {"float": [0.01, 0.01]}}, "the range is empty"),
        ({"optimizer.lr": {"float": [0.0, 0.1], "log": True}}, "a lower end above 0"),
        ({"optimizer.lr": {"float": [0.001]}}, "it takes two numbers"),
        ({"optimizer.lr": {"float": ["a", "b"]}}, "it takes two numbers"),
        ({"optimizer.lr": {"float": [0.001, math.inf]}}, "it takes two numbers"),
        ({"data.batch_size": {"int": [16, 64.5]}}, "it takes two integers"),
        ({"data.batch_size": {"choices": [32]}}, "two or more are needed"),
        ({"data.batch_size": {"choices": [32, 32]}}, "no two the same"),
        ({"data.batch_size": {"choices": [[1], [2]]}}, "a list of numbers, texts"),
        ({"data.batch_size": {"choices": [16, 32], "log": True}}, "for float and int only"),
        ({"model.network.conv": {"int": [1, 9]}}, "give its length with length"),
        ({"optimizer.lr": {"float": [0.1, 1], "length": [1, 2]}}, "0.001, is no list"),
        ({"model.network.conv": {"length": [-1, 2], "int": [1, 99]}}, "0 to 100 elements"),
        ({"model.network.conv": {"length": [1, 10**9], "int": [1, 99]}}, "0 to 100 elements"),
        ({"optimizer.lr": {"float": [0.0001, 10**400]}}, "it takes two numbers"),
        ({5: {"int": [1, 2]}}, "5: there is no such key"),
        ({"model.network.dropout": {"float": [0.5, 1.0]}}, "dropout = 1.0: input should be less"),
        ({"model.network.conv_activation": {"choices": ["relu", "leaky_relu", "rlu"]}}, "= rlu"),
        # The configuration's own value outside.
        ({"optimizer.lr": {"float": [0.002, 0.1]}}, "own value, 0.001 (of the first trial)"),
        ({"data.batch_size": {"choices": [64, 128]}}, "own value, 32"),
        ({"model.network.conv": {"length": [2, 3], "int": [1, 99]}}, "conv.length: the config"),
        ({"model.network.conv": {"length": [1, 3], "int": [1, 9]}}, "conv.0: the configuration's"),
        ({"model.network.batch_norm": {"choices": [0, 1]}}, "own value, false"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(entry: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"^search") as refusal:
        Space.parse(entry, training())
    assert message in str(refusal.value)
    assert str(next(iter(entry))) in str(refusal.value)


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"model.network.conv_activation": "leaky"}, "not values of it, which is one of [relu"),
        ({"model.network.conv_activation": ["relu", "leaky"]}, "not values of it"),
        ({"model.network.conv_activation": []}, "not values of it"),
        ({"model.network.conv.length": 4}, "not values of it, which is 1 to 3"),
        ({"model.network.pool": 2}, "the space has no such parameter"),
        ({"model.network.conv": 2}, "Its length is model.network.conv.length"),
        (["a"], "it maps a parameter of this space"),
        ({"model.network.dropout": 0.5}, "depend on each other: model.network.dropout"),
        ({"data.batch_size": 32}, "depend on each other: "),
    ],
)
def test_a_wrong_condition_is_refused_by_name(when: Any, message: str) -> None:
    entries = {
        **KEYS,
        "model.network.conv": {"length": [1, 3], "int": [16, 64]},
        "model.network.conv_activation": {"choices": ["relu", "leaky_relu"]},
        "data.batch_size": {
            "choices": [32, 64],
            "when": {"model.network.batch_norm": True},
        },
        "model.network.batch_norm": {
            "choices": [True, False],
            **({"when": when} if "data.batch_size" in when else {}),
        },
        "model.network.dropout": {"float": [0.1, 0.9], "when": when},
    }
    with pytest.raises(UserError, match=r"^search.*model\.network\.dropout") as refusal:
        Space.parse(entries, training())
    assert message in str(refusal.value)


def test_all_wrong_entries_are_named_at_once() -> None:
    with pytest.raises(UserError) as refusal:
        Space.parse({"a": {"int": [1, 2]}, "optimizer.lr": {"int": [2, 1]}}, training())
    assert len(str(refusal.value).splitlines()) == 2
    with pytest.raises(UserError, match="the space is empty"):
        Space.parse({}, training())


def test_a_condition_on_what_comes_later_in_the_file() -> None:
    """And one on a condition: the chain is drawn from its root."""
    entries = {
        "model.network.dropout": {"float": [0.1, 0.9], "when": {"model.network.pool": 2}},
        "model.network.pool": {"choices": [1, 2], "when": {"model.network.batch_norm": False}},
        "model.network.batch_norm": {"choices": [True, False]},
    }
    config = training("model=cnn")
    space = Space.parse(entries, config)
    for seed in range(20):
        values = space.suggest(cast(Any, Draws(seed)))
        assert ("model.network.pool" in values) == (values["model.network.batch_norm"] is False)
        assert ("model.network.dropout" in values) == (values.get("model.network.pool") == 2)


# Anything that YAML can say, with the words of a space in it more often than not.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, "relu", "leaky_relu", 0.001, 32, 64])
    | st.text(max_size=5)
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "float": st.lists(SCALARS, max_size=3) | SCALARS,
        "int": st.lists(st.integers(-2, 200) | SCALARS, max_size=3),
        "choices": st.lists(SCALARS | st.lists(SCALARS, max_size=1), max_size=3),
        "log": st.booleans() | SCALARS,
        "length": st.lists(st.integers(-1, 4), min_size=2, max_size=2) | SCALARS,
        "when": st.dictionaries(
            st.sampled_from(["data.batch_size", "model.network.conv.length", "model"]) | SCALARS,
            SCALARS | st.lists(SCALARS, max_size=2),
            max_size=2,
        )
        | SCALARS,
        "step": SCALARS,
    },
)
NAMES = st.sampled_from(
    [
        *("optimizer.lr", "data.batch_size", "model.network.conv", "model.network.conv.0"),
        *("model.network.dropout", "model.network.conv_activation", "optimizer", "seed"),
        *("optimizer.lr.x", "a..b", ".", "", "optimizer[lr]", "[", "${seed}", "???", "callbacks"),
    ]
)
CONFIG = training()


@given(st.dictionaries(NAMES | SCALARS, ENTRIES | SCALARS, max_size=3), st.integers(0, 9))
def test_any_space_is_refused_by_name_or_draws_what_is_allowed(
    entries: dict[Any, Any], seed: int
) -> None:
    refusal = None
    try:
        space = Space.parse(entries, CONFIG)
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("search")
        return
    drawn = space.apply(CONFIG, space.suggest(cast(Any, Draws(seed))))
    schema.check(cast(dict[str, Any], OmegaConf.to_container(drawn)), {})


@pytest.mark.slow
@given(
    low=st.floats(1e-6, 1e-3, exclude_max=True),
    high=st.floats(1e-3, 1, exclude_min=True),
    log=st.booleans(),
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=2, unique=True),
)
def test_a_right_space_says_what_the_file_says(
    *, low: float, high: float, log: bool, sizes: list[int]
) -> None:
    choices = [32, *(size for size in sizes if size != 32), 1001]
    entries = {
        "optimizer.lr": {"float": [low, high], "log": log},
        "data.batch_size": {"choices": choices},
    }
    trial = Draws(0)
    space = Space.parse(entries, CONFIG)
    assert space.defaults(CONFIG) == {"optimizer.lr": 0.001, "data.batch_size": 32}
    values = space.suggest(cast(Any, trial))
    assert trial.asked == {"optimizer.lr": (low, high, log), "data.batch_size": tuple(choices)}
    assert space.apply(CONFIG, values).data.batch_size == values["data.batch_size"]
