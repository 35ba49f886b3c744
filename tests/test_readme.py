"""What README tells a person to type can be typed."""

import json
import os
import re
import shlex
from collections.abc import Iterator

import pytest
from conftest import Command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fashion import config as schema
from fashion.train import CONF, SETTINGS

ROOT = CONF.parent
README = ROOT / "README.md"
HYDRA_VERBS = ("train", "tune")
OWN = "model=mine"  # the network that a reader adds
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b|<")


def commands() -> Iterator[str]:
    """Lines of code, fenced or indented, and code within a sentence."""
    text = README.read_text(encoding="utf-8")
    for line in re.findall(
        r"^(?: {4}|\$ )?((?:scripts/|python -m fashion\.).*)", text, re.MULTILINE
    ):
        yield line.partition(" #")[0].strip()
    for code in re.findall(r"`((?:scripts/|python -m fashion\.)[^`]+)`", text):
        yield " ".join(code.split())


def overrides_of_tables() -> Iterator[str]:
    """`key=value ...` in the tables' cells."""
    text = README.read_text(encoding="utf-8")
    for row in re.findall(r"^\|.*", text, re.MULTILINE):
        for code in re.findall(r"`([^`]+)`", row):
            if all(re.fullmatch(r"[a-z_.]+=\S+", word) for word in code.split()):
                yield code


COMMANDS = sorted(set(commands()))


def test_there_are_commands() -> None:
    assert any(line.startswith("python -m fashion.train") for line in COMMANDS)
    assert list(overrides_of_tables())


def test_tables_are_those_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    tables = re.findall(r"^<!-- (results/\S+) -->\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(tables) == text.count("<!-- results/")
    for path, table in tables:
        assert table in (ROOT / path).read_text(encoding="utf-8")


def test_the_headline_is_that_of_the_results() -> None:
    table = README.read_text(encoding="utf-8").partition("## Results")[2].partition("\n\n`")[0]
    lines = [
        line
        for name in ("ladder-test", "fast", "fast-mirrored", "record", "record-mirrored")
        for line in (ROOT / "results" / f"{name}.md").read_text(encoding="utf-8").splitlines()
    ]
    found = 0
    for name, row in re.findall(r"^\| `(?:model|experiment)=(\w+)`(.*)", table, re.MULTILINE):
        for mean, low, high in re.findall(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", row):
            figure = rf"\| {name} .* {mean} \| +{low} to {high} \|"
            assert any(re.match(figure, line) for line in lines), figure
            found += 1
    assert found == 8
    ensemble = json.loads((ROOT / "results/record/ensemble.json").read_text(encoding="utf-8"))
    for key in ("test/acc", "test/acc_mirrored"):
        assert f" {100 * ensemble[key]:.2f} |" in table


def choices(override: str) -> list[str]:
    """Of a grid's `key=a,b`; a list in brackets is one value."""
    key, _, value = override.partition("=")
    return [f"{key}={part}" for part in re.split(r",(?![^\[(]*[\])])", value)]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command(line: str, command: Command) -> None:
    program, *arguments = shlex.split(line)
    if program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK)
        if program != "scripts/train":
            return
        verb = "train"
    else:
        verb, *arguments = arguments[1:]
        verb = verb.removeprefix("fashion.")
    if verb not in HYDRA_VERBS:
        done = command(verb, "--help")
        assert done.status == 0
        options = [argument for argument in arguments if argument.startswith("--")]
        assert [option for option in options if option.partition("=")[0] not in done.out] == []
    elif PLACEHOLDER.search(line) or OWN in line:
        pytest.skip("a person fills it in")
    else:
        values = [choices(argument) for argument in arguments if "=" in argument]
        for position in range(max(map(len, values), default=1)):
            one_run = [value[min(position, len(value) - 1)] for value in values]
            done = command(verb, "--cfg", "job", *one_run)
            assert done.status == 0, done.err


@pytest.mark.parametrize("code", sorted(set(overrides_of_tables())))
def test_an_override(code: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["name=x", *code.split()])
    schema.check(OmegaConf.to_container(config, resolve=True), SETTINGS)  # type: ignore[arg-type]
