"""The documentation: tables equal the raw values, links exist, commands compose, recipes run."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, tiny_overrides
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy.stats import t, ttest_ind

from fashion import config

ROOT = config.CONF.parent
RESULTS = ROOT / "results"
README, LAB = ROOT / "README.md", RESULTS / "README.md"
EXTENDING = ROOT / "docs" / "extending.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [
    *(README, LAB, RESULTS / "LOG.md", ROOT / "CONTRIBUTING.md", CHANGELOG),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted(RESULTS.glob("*/README.md")),
]
HYDRA = ("train", "tune")
DASH = "\N{EN DASH}"  # no interval or p-value
BY_NUMBER = ("resolution", "train-size")  # studies made by scripts/resolution.py
PLACEHOLDERS = {"RUN": "logs/run", "DIR": "data", "RUN_OR_FOLDER": "logs"}

# Tables against raw values.


def raw(folder: str) -> list[dict[str, Any]]:
    paths = sorted((RESULTS / folder).glob("seed-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def table(text: str, marker: str) -> list[list[str]]:
    """Return the cells of the table below `<!-- marker -->`, without the line of dashes."""
    lines = text.partition(f"<!-- {marker} -->\n")[2].partition("\n\n")[0].splitlines()
    assert lines, marker
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


def tables(path: Path) -> list[list[list[str]]]:
    found = re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [[line.strip("|\n").split("|") for line in each.splitlines()] for each in found]
    return [[[cell.strip() for cell in row] for row in [each[0], *each[2:]]] for each in cells]


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return mean and t-interval in per cent, written out here once more."""
    percents = 100 * np.array(values)
    half = t.ppf(0.975, len(values) - 1) * percents.std(ddof=1) / len(values) ** 0.5
    return float(percents.mean()), float(percents.mean() - half), float(percents.mean() + half)


def with_interval(values: list[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*interval(values))


def chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def group(study: str, name: str) -> list[dict[str, Any]]:
    """Return the raw values of a row of results/STUDY.md."""
    study = re.sub("-(test|hflip|shift|cnn|best)$", "", study)
    folders = (study if name == study else f"{study}/{name}", f"ablation/{name}")
    return next(found for found in map(raw, folders) if found)


@pytest.mark.parametrize(
    "path",
    sorted(
        {*RESULTS.glob("*.md")}
        - {LAB, *(RESULTS / f"{name}.md" for name in ("LOG", "classes", "photos", *BY_NUMBER))}
    ),
)
def test_a_study_s_tables_are_those_of_its_runs(path: Path) -> None:
    first, *second = tables(path)
    header, *rows = first
    key = {
        "val accuracy, %": "val/acc",
        "test accuracy, %": "test/acc",
        "test accuracy (hflip), %": "test/acc_hflip",
        "test accuracy (shift), %": "test/acc_shift",
    }[header[2]]
    means = {}
    accuracies = {}
    for name, n, mean, low_high, lowest_highest, parameters, minutes in rows:
        runs = group(path.stem, name)
        values = [run[key] for run in runs]
        accuracies[name], means[name] = values, 100 * statistics.mean(values)
        assert n == str(len(runs))
        assert mean == f"{means[name]:.2f}"
        expected = DASH if len(runs) == 1 else "{1:.2f} to {2:.2f}".format(*interval(values))
        assert low_high == expected
        assert lowest_highest == f"{100 * min(values):.2f} to {100 * max(values):.2f}"
        assert parameters == f"{runs[0]['parameters']:,}"
        assert minutes == f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f}"
    for header, *rows in second:
        base = header[0].removeprefix("minus ")
        for name, difference, low_high, _, welch, _ in rows:
            assert difference == f"{means[name] - means[base]:+.2f}"
            low, _, high = low_high.partition(" to ")
            assert float(low) <= means[name] - means[base] <= float(high)
            if min(len(accuracies[name]), len(accuracies[base])) == 1:
                assert welch == DASH
            else:
                test = ttest_ind(accuracies[name], accuracies[base], equal_var=False)
                assert welch == chance(test.pvalue)


@pytest.mark.parametrize("study", BY_NUMBER)
def test_a_study_of_one_number_has_its_runs_accuracies(study: str) -> None:
    header, *rows = tables(RESULTS / f"{study}.md")[0]
    for name, *values in rows:
        cells = dict(zip(header[1:], values, strict=True))
        n = cells.pop("n", "3")
        for number, cell in cells.items():
            value = number.partition(" x ")[0].replace(",", "")
            whole = study == "train-size" and value == "50000"
            runs = raw(f"resolution/{name}-28")[:3] if whole else raw(f"{study}/{name}-{value}")
            assert cell == with_interval([run["val/acc"] for run in runs])
            assert n == str(len(runs))


def test_the_lab_report_has_the_studies_tables() -> None:
    text = LAB.read_text(encoding="utf-8")
    found = re.findall(r"^<!-- (results/\S+) -->\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(found) == text.count("<!-- results/") >= 12
    for path, rows in found:
        assert rows in (ROOT / path).read_text(encoding="utf-8")


def test_readme_s_results_are_those_of_the_runs() -> None:
    text = README.read_text(encoding="utf-8").partition("## Results")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(model|experiment)=(\w+)`[^|]*\|(.*)\|$", text, re.MULTILINE)
    assert len(found) == 6
    for kind, name, cells in found:
        runs = raw(f"baselines/{name}" if kind == "model" else name)
        expected = [
            str(len(runs)),
            with_interval([run["test/acc"] for run in runs]),
            with_interval([run["test/acc_shift"] for run in runs]) if kind != "model" else "",
            f"{runs[0]['parameters']:,}",
            f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f}",
        ]
        assert [cell.strip() for cell in cells.split("|")] == expected, name
    ensemble = json.loads((RESULTS / "record" / "ensemble.json").read_text(encoding="utf-8"))
    runs = raw("record")
    row = next(line for line in text.splitlines() if "probabilities averaged" in line)
    for value in (
        f"{100 * ensemble['test/acc']:.2f}",
        f"{100 * ensemble['test/acc_shift']:.2f}",
        f"{sum(run['parameters'] for run in runs):,}",
    ):
        assert f" {value} |" in row


def test_epoch_budgets() -> None:
    _, *rows = table(LAB.read_text(encoding="utf-8"), "table: epoch budget")
    assert len(rows) == 6
    for epochs, n, single, flipped, minutes in rows:
        runs = raw(f"epoch-budget-erasing/{epochs}-epochs")
        assert {run["epochs"] for run in runs} == {int(epochs)}
        assert n == str(len(runs))
        assert single == with_interval([run["test/acc"] for run in runs])
        assert flipped == with_interval([run["test/acc_hflip"] for run in runs])
        assert minutes == f"{statistics.median(run['seconds'] for run in runs) / 60:.1f}"


def test_longer_trainings() -> None:
    _, *rows = table(LAB.read_text(encoding="utf-8"), "table: longer")
    assert {row[0] for row in rows} == {path.name for path in (RESULTS / "longer").iterdir()}
    for name, _, n, *accuracies in rows:
        runs = raw(f"longer/{name}")
        assert n == str(len(runs))
        means = [statistics.mean(run[key] for run in runs) for key in ("val/acc", "val/acc_shift")]
        assert accuracies == [f"{100 * mean:.2f}" for mean in means]
        assert {run["epochs"] for run in runs} == {int(name.rpartition("-")[2])}


def test_steps_between_the_baselines() -> None:
    steps = json.loads((RESULTS / "images" / "steps.json").read_text(encoding="utf-8"))
    assert table(LAB.read_text(encoding="utf-8"), "table: steps")[1:] == [
        [
            step["from"],
            step["name"],
            f"{step['difference']:+.2f}",
            f"{step['low']:+.2f} to {step['high']:+.2f}",
            chance(step["p_holm"]),
        ]
        for step in reversed(steps)
    ]


def test_classes() -> None:
    classes = json.loads((RESULTS / "classes.json").read_text(encoding="utf-8"))
    assert tables(RESULTS / "classes.md")[0][1:] == [
        [
            each["name"],
            f"{each['before']:.1f}",
            f"{each['after']:.1f}",
            f"{each['points']:+.1f}",
            f"{each['low']:+.1f} to {each['high']:+.1f}",
            chance(each["p_holm"]),
        ]
        for each in classes
    ]


def test_searches() -> None:
    expected = []
    for name, file in (
        ("first hour", "search/search"),
        ("second hour", "search-again/search"),
        ("without pruning", "search/full-length"),
        ("label smoothing as a choice", "search/with-label-smoothing"),
    ):
        search = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
        states = [trial["state"] for trial in search["trials"]]
        best = max(each["value"] for each in search["trials"] if each["state"] == "complete")
        epochs = sum(len(each["accuracy_by_epoch"]) for each in search["trials"])
        pruned = states.count("pruned")
        trials = pruned + states.count("complete")
        expected.append(
            [
                name,
                f"{search['seconds'] / 60:.0f}",
                *map(str, (trials, pruned, epochs)),
                f"{100 * best:.2f}",
            ]
        )
    assert table(LAB.read_text(encoding="utf-8"), "table: searches")[1:] == expected


def test_benchmark_and_overhead() -> None:
    text = LAB.read_text(encoding="utf-8")
    speeds = json.loads((RESULTS / "benchmark.json").read_text(encoding="utf-8"))[
        "images_per_second"
    ]
    rows = table(text, "table: benchmark")[1:]
    kinds = ("bare", "fp32", "one", "ordinary", "plain", "usual", "keras")
    for kind, (_, *cells) in zip(kinds, rows, strict=True):
        for network, cell in zip(speeds, cells, strict=True):
            ratios = sorted(
                ours / other
                for ours, other in zip(
                    speeds[network]["ours"], speeds[network].get(kind, []), strict=False
                )
            )
            assert cell == (
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                if ratios
                else ""
            )
    cost = json.loads((RESULTS / "simulate_search" / "cost.json").read_text(encoding="utf-8"))
    seconds = next(value for key, value in cost.items() if key.startswith("seconds"))
    assert table(text, "table: cost")[1:] == [
        [name, *(f"{seconds[name.lower()][trials]:.2f}" for trials in ("10", "100", "1000"))]
        for name in ("SQLite", "PostgreSQL")
    ]


def test_checks() -> None:
    text = LAB.read_text(encoding="utf-8")
    resume, search, growth, photos = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("resume", "check_search", "growth", "photos")
    )
    runs = len(growth["footprints"])
    fifth, last = (growth["footprints"][number]["bytes"] for number in (4, -1))
    plain = photos["kinds"]["undisguised"]
    others = [kind for name, kind in photos["kinds"].items() if name != "undisguised"]
    seen = sum(kind["correct or remarked"] for kind in others) / sum(k["n"] for k in others)
    for sentence in (
        f"{resume['equal']} of {len(resume['trials'])} equal",
        f"killed (-9) {len(search['kills'])} times",
        f"all {search['trials']} trials ended",
        f"{runs} runs in one process | {(last - fifth) / (runs - 5) / 1e6:.0f} MB per run",
        f"{plain['n']:,} validation images as synthetic photos",
        f"{100 * plain['correct'] / plain['n']:.1f} % correct",
        f"{100 * photos['dataset images, correct'] / plain['n']:.1f} % as they are",
        f"{100 * plain['remarked, unsure apart'] / plain['n']:.1f} % remarked on as unusual",
        f"{100 * seen:.1f} % correct or remarked on",
    ):
        assert sentence in text


# Pages.


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(page)):
        address, _, anchor = "".join(link).partition("#")
        if re.match(r"https?:|mailto:", address):
            continue
        target = page.parent / address if address else page
        assert target.exists(), f"{page}: {address}"
        if anchor:
            titles = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{page}: #{anchor}"


# Commands.


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and content of each fenced block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    """Yield every command line of the pages, from shell blocks and within sentences."""
    start = r"(?:scripts/|python scripts/|python -m fashion\.)"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, code in blocks(text):
            if language == "sh":
                yield from (line for line in code.splitlines() if re.match(start, line))
        yield from (
            " ".join(code.split()) for code in re.findall(rf"`({start}[^`]+)`", prose(page))
        )


def overrides() -> Iterator[tuple[str, str]]:
    """Yield (configuration, `key=value ...`) from code within the pages' sentences and tables."""
    for page in PAGES:
        # Quote another project and names of the past; or options that --config-dir adds.
        if page in (EXTENDING, CHANGELOG) or page.is_relative_to(ROOT / "examples"):
            continue
        for code in re.findall(r"`([^`]+)`", prose(page)):
            words = shlex.split(code) if code.count("'") % 2 == 0 else []
            typed = all(re.fullmatch(r"[a-z_./]+=[^\s.]\S*", word) for word in words)
            if words and typed and "NAME" not in code:
                yield "tune" if page.name == "search.md" else "train", " ".join(words)


def composed(verb: str, words: list[str]) -> None:
    """Compose a configuration, and check what can be checked without torch."""
    config.register_resolvers()
    own = {word.lstrip("+~").partition("=")[0] for word in words}
    missing = [f"{key}=x" for key in ("name", "sweep") if key not in own]
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        found = compose(verb, [*missing, *words])
    if verb == "train":
        config.start_afresh(found, words)
        config.check(OmegaConf.to_container(found, resolve=True))  # type: ignore[arg-type]


def choices(override: str) -> list[str]:
    """Return the overrides of a grid's `key=a,b`; a list or dict in brackets is one value."""
    key, _, value = override.partition("=")
    if re.search(r"[\[{]", value):
        return [override]
    return [f"{key}={part}" for part in re.sub(r"range\(\d+\)", "0", value).split(",")]


COMMANDS = sorted(set(commands()))


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 60
    assert len(set(overrides())) > 20


def test_commands_can_be_pasted() -> None:
    """No character that zsh (where # is a word, too) or bash would expand, outside quotes."""
    special = r"[][{}()*?~!#$&;<>]"
    assert [line for line in COMMANDS if re.search(special, re.sub(r"'[^']*'", "", line))] == []


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command(line: str, command: Command) -> None:
    if "..." in line or "NAME" in line or "STUDY" in line or "--config-dir" in line:
        pytest.skip("a person fills it in")
    program, *arguments = shlex.split(line)
    if program == "python" and arguments[0].startswith("scripts/"):
        assert (ROOT / arguments[0]).is_file()
        return
    if program.endswith("/"):
        assert (ROOT / program).is_dir()
        return
    if program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK)
        if program == "scripts/reproduce" and arguments:
            script = (ROOT / program).read_text(encoding="utf-8")
            assert re.search(rf"^[a-z |-]*\b{arguments[0]}\b.*\)", script, re.MULTILINE)
        if program != "scripts/train":
            return
        verb = "train"
    else:
        verb, *arguments = arguments[1:]
        verb = verb.removeprefix("fashion.")
    if verb not in HYDRA:
        if importlib.util.find_spec(f"fashion.{verb}") and "download" not in verb:
            done = command(verb, "--help")
            assert done.status == 0
            options = [word for word in arguments if word.startswith("--")]
            assert [option for option in options if option not in done.out] == []
        else:
            assert importlib.util.find_spec(f"fashion.{verb}"), verb
        return
    words = [
        re.sub(r"=(\w+)$", lambda found: "=" + PLACEHOLDERS.get(found[1], found[1]), word)
        for word in arguments
        if "=" in word and not word.startswith(("-", "hydra/"))
    ]
    values = [choices(word) for word in words]
    for position in range(max(map(len, values), default=1)):
        composed(verb, [value[min(position, len(value) - 1)] for value in values])


@pytest.mark.parametrize(("verb", "code"), sorted(set(overrides())))
def test_overrides(verb: str, code: str) -> None:
    words = code.split()
    grid = [choices(word) for word in words]
    for position in range(max(map(len, grid))):
        composed(verb, [value[min(position, len(value) - 1)] for value in grid])


# Recipes.


def recipes() -> dict[str, list[tuple[str, str]]]:
    """Return the blocks of each section of docs/extending.md, and of README's Python section."""
    text = EXTENDING.read_text(encoding="utf-8")
    sections = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)[1:]
    found = dict(zip(sections[::2], map(list, map(blocks, sections[1::2])), strict=True))
    python = [each for each in blocks(README.read_text(encoding="utf-8")) if each[0] == "python"]
    return {"README": python} | {title: code for title, code in found.items() if code}


RECIPES = recipes()


def test_recipes_are_short() -> None:
    codes = [code for title in RECIPES for _, code in RECIPES[title]]
    assert len(codes) > 30
    assert [code for code in codes if len(list(filter(None, code.splitlines()))) > 10] == []


@pytest.fixture(scope="module")
def all_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with the tiny data under the names of three data sets."""
    root = tmp_path_factory.mktemp("all")
    for name in ("FashionMNIST", "MNIST", "KMNIST"):
        shutil.copytree(tiny_data / "FashionMNIST", root / name)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe(
    title: str,
    all_data: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    tiny = [*tiny_overrides(all_data), "model=mlp", "trainer.max_epochs=1"]
    tiny += ["logger=csv"] if title == "Callback" else []  # LearningRateMonitor needs one
    run = tmp_path / "logs" / "run"
    if any("RUN" in code for _, code in RECIPES[title]):
        done = command("train", *tiny, "model=cnn", f"hydra.run.dir={run}")
        assert done.status == 0, done.err
    for language, code in RECIPES[title]:
        file = re.match(r"# (\S+\.(?:py|yaml))\n", code)
        if file:
            path = tmp_path / file[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
        elif language == "python":
            data = f"FashionMNIST(root={str(all_data)!r}, official=False, val_size=100)"
            program = code.replace("FashionMNIST()", data)
            program = program.replace("fashion.fit(", f"fashion.fit(*{tiny!r}, ")
            exec(compile(program, title, "exec"), {"__name__": "recipe"})  # noqa: S102
        else:
            for line in code.splitlines():
                run_line(line, command, tiny, {"RUN": run, "DIR": all_data})


def run_line(line: str, command: Command, tiny: list[str], places: dict[str, Path]) -> None:
    """Run a command of a recipe; what needs a package that is not here is passed over."""
    for package, word in {"wandb": "wandb", "mlflow": "mlflow", "onnx": ".onnx"}.items():
        if word in line and importlib.util.find_spec(package) is None:
            return
    if "compile=true" in line and shutil.which("g++") is None:
        return
    for word, place in places.items():
        line = re.sub(rf"\b{word}\b", str(place), line)
    _, _, module, *arguments = shlex.split(line)
    verb = module.removeprefix("fashion.")
    if verb in HYDRA:  # flags first, then what makes it tiny, which the line may override
        flags = [index for index, word in enumerate(arguments) if word == "--config-dir"]
        first = 2 if flags else int(bool(arguments) and arguments[0] == "-m")
        arguments = [*arguments[:first], *tiny, *arguments[first:]]
    with warnings.catch_warnings():
        # torch.compile traces the shape checks, and warns; so does what mlflow brings.
        if "compile=true" in line or "mlflow" in line:
            warnings.simplefilter("ignore")
        done = command(verb, *arguments)
    assert done.status == 0, f"{line}\n{done.err}"


def test_pictures_are_small() -> None:
    pictures = sorted((RESULTS / "images").glob("*.png"))
    assert len(pictures) > 5
    assert [path.name for path in pictures if path.stat().st_size > 300_000] == []
