"""The real command over run folders that are made here through Run."""

# Types: named tuples with None where a test knows the value.
# mypy: disable-error-code="operator, assignment, attr-defined, arg-type, list-item"
# mypy: disable-error-code="comparison-overlap"

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from omegaconf import OmegaConf
from scipy.stats import binom

from fashion.data import CLASSES
from fashion.errors import UserError
from fashion.report import comparison_page, statistics
from fashion.report.table import (
    OVER_IMAGES,
    OVER_SEEDS,
    compare,
    finished_runs,
    groups,
    render_markdown,
)
from fashion.runs.run import Predictions, Run

LABELS = np.arange(1_000) % 10


def make_run(
    folder: Path,
    *,
    wrong: int | slice = 100,
    seed: int = 0,
    labels: np.ndarray = LABELS,
    split: str = "val",
    finished: bool = True,
    own: dict[str, float] | None = None,
    **settings: Any,
) -> Run:
    """A run that misclassifies the first `wrong` images, or that slice of them."""
    run = Run(folder)
    config = OmegaConf.create(
        {
            "data": {"root": str(folder), "val_size": 1_000, "split_seed": 0},
            "model": {"network": {"conv": [64], "dense": [128]}},
            "optimizer": {"lr": 0.001},
            "seed": seed,
            "test": False,
            "name": "best",
        }
    )
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    run.write_text(".hydra/config.yaml", OmegaConf.to_yaml(config))
    predicted = labels.copy()
    err = slice(wrong) if isinstance(wrong, int) else wrong
    predicted[err] = (labels[err] + 1) % 10
    run.write_predictions(split, Predictions(labels, np.eye(10, dtype=np.float32)[predicted]))
    if finished:
        run.update_metrics(
            {"parameters": 5_539_850, "seconds": 90.0, "machine": "a laptop"} | (own or {})
        )
    return run


@pytest.fixture
def ladder(tmp_path: Path) -> Path:
    """Three recipes: three seeds, three seeds, one run."""
    for seed, wrong in enumerate((80, 84, 85)):
        make_run(tmp_path / f"cnn/{seed}", seed=seed, wrong=wrong, name="cnn")
    for seed, wrong in enumerate((100, 102, 107)):
        make_run(tmp_path / f"mlp/{seed}", seed=seed, wrong=wrong, name="mlp", optimizer__lr=0.01)
    make_run(tmp_path / "linear", wrong=200, name="linear", model__network__conv=[])
    return tmp_path


def test_the_table(ladder: Path, command: Command) -> None:
    done = command("compare", ladder)
    assert (done.status, done.err) == (0, "")
    # cnn: 92, 91.6 and 91.5, so mean 91.7, deviation 0.2646, times t = 4.3027, over sqrt(3).
    assert done.out.startswith("""\
| run    |  n | val accuracy, % |  95 % interval |          range | parameters | minutes |
| ------ | -: | --------------: | -------------: | -------------: | ---------: | ------: |
| cnn    |  3 |           91.70 | 91.04 to 92.36 | 91.50 to 92.00 |  5,539,850 |     1.5 |
| mlp    |  3 |           89.70 | 88.80 to 90.60 | 89.30 to 90.00 |  5,539,850 |     1.5 |
| linear |  1 |           80.00 |              — | 80.00 to 80.00 |  5,539,850 |     1.5 |

| minus cnn | difference, pp |   95 % interval |       p | p (Welch) | p (Holm) |
| --------- | -------------: | --------------: | ------: | --------: | -------: |
| mlp       |          -2.00 | """)
    for note in (
        "Wilson interval of cnn for 1,000 images is 89.83 to 93.25 %",
        "on a laptop.",
        "by a bootstrap over seeds and images",
        "A single run against several",
        "p (Holm): p, corrected for the 2 comparisons.",
        "cnn is the baseline because it is the best",
    ):
        assert note in done.out


def test_the_numbers_are_those_of_statistics(ladder: Path) -> None:
    table = compare([ladder])
    cnn, mlp, linear = table.rows
    assert (cnn.name, cnn.n, cnn.parameters, cnn.minutes) == ("cnn", 3, 5_539_850, 1.5)
    assert (mlp.accuracy, mlp.minimum, mlp.maximum) == pytest.approx((89.7, 89.3, 90.0))
    expected = statistics.seed_interval([90.0, 89.8, 89.3])
    assert (mlp.low, mlp.high) == pytest.approx((expected.low, expected.high))
    assert (linear.low, linear.high) == (None, None)
    runs = {
        name: np.stack([run.predictions("val").probabilities for run in Run.find(ladder / name)])
        for name in ("cnn", "mlp", "linear")
    }
    expected = statistics.bootstrap_difference(LABELS, runs["mlp"], runs["cnn"])
    found = table.comparisons[0]
    assert (found.name, found.method) == ("mlp", OVER_SEEDS)
    assert found[1:5] == (
        100 * expected.mean,
        100 * expected.low,
        100 * expected.high,
        expected.p_value,
    )
    assert found.p_welch == statistics.welch([0.9, 0.898, 0.893], [0.92, 0.916, 0.915])
    assert table.comparisons[1].p_welch is None  # of a single run
    assert found.difference == pytest.approx(-2)
    p_values = [comparison.p_value for comparison in table.comparisons]
    assert [comparison.p_holm for comparison in table.comparisons] == statistics.holm(p_values)


def test_csv_and_json_tell_the_same(ladder: Path, tmp_path: Path, command: Command) -> None:
    table = compare([ladder])
    lines = list(csv.DictReader(io.StringIO(command("compare", ladder, "--format=csv").out)))
    assert [line["name"] for line in lines] == ["cnn", "mlp", "linear"]
    assert [float(line["accuracy"]) for line in lines] == [row.accuracy for row in table.rows]
    assert [line["low"] for line in lines][2] == ""
    assert {line["baseline"] for line in lines} == {"cnn"}
    assert [line["minus_baseline_p_holm"] for line in lines] == [
        "",
        *(str(found.p_holm) for found in table.comparisons),
    ]
    file = tmp_path / "table.json"
    done = command("compare", ladder, "--format=json", "--output", file)
    assert (done.status, done.out) == (0, "")
    whole = json.loads(file.read_text(encoding="utf-8"))
    assert whole["rows"] == [row._asdict() for row in table.rows]
    assert whole["comparisons"] == [found._asdict() for found in table.comparisons]
    assert whole["images"] == 1_000


def test_two_single_runs_are_compared_on_their_images(tmp_path: Path, command: Command) -> None:
    make_run(tmp_path / "a", wrong=slice(20), name="a", optimizer__lr=0.1)
    make_run(tmp_path / "b", wrong=slice(15, 45), name="b")
    (found,) = compare([tmp_path]).comparisons
    assert found.method == OVER_IMAGES
    assert found.difference == pytest.approx(-1)
    assert found.low < -1 < found.high < 0.5
    assert found.p_value == pytest.approx(2 * binom.cdf(15, 40, 0.5))  # 15 and 25 disagree
    assert found.p_holm == found.p_value
    text = command("compare", tmp_path).out
    assert "McNemar's exact test" in text
    assert "over seeds and images" not in text


def test_one_group_is_compared_with_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    table = compare([tmp_path])
    assert table.comparisons == []
    assert "minus" not in render_markdown(table)


def test_groups_of_one_name_are_told_apart(tmp_path: Path, command: Command) -> None:
    make_run(tmp_path / "a", wrong=10)
    make_run(tmp_path / "b", wrong=20, optimizer__lr=0.1)
    make_run(tmp_path / "c", wrong=30, model__network__conv=[32, 64])
    make_run(tmp_path / "d", wrong=40, name="other|one", optimizer__lr=0.2)
    names = [
        "best model.network.conv=[64] optimizer.lr=0.001",
        "best model.network.conv=[64] optimizer.lr=0.1",
        "best model.network.conv=[32,64] optimizer.lr=0.001",
        "other|one",
    ]
    assert [row.name for row in compare([tmp_path]).rows] == names
    table = compare([tmp_path], baseline=names[1])
    assert [round(found.difference) for found in table.comparisons] == [1, -1, -2]
    assert "favors" not in "".join(table.notes)
    assert "| other\\|one " in render_markdown(table)
    done = command("compare", tmp_path, "--baseline", "best")
    assert done.status == 1
    assert all(name in done.err for name in ("No group is named best", *names))


def test_metadata_does_not_make_a_group(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, name="first")
    make_run(tmp_path / "b", seed=1, name="second", test=True)
    (row,) = compare([tmp_path]).rows
    assert (row.name, row.n) == ("first, second", 2)


def test_a_run_named_twice_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert compare([tmp_path, tmp_path / "a", tmp_path / "a/../a"]).rows[0].n == 1


def test_the_test_split_allows_other_validation_splits(tmp_path: Path) -> None:
    make_run(tmp_path / "a", split="test")
    make_run(tmp_path / "b", split="test", data__val_size=5_000)
    table = compare([tmp_path], split="test")
    assert [row.name for row in table.rows] == [
        "best data.val_size=1000",
        "best data.val_size=5000",
    ]
    assert "test accuracy, %" in render_markdown(table)


def test_refuses_unfinished_runs_by_name(tmp_path: Path, command: Command) -> None:
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, finished=False)
    make_run(tmp_path / "c", seed=2, finished=False)
    done = command("compare", tmp_path)
    assert (done.status, done.out) == (1, "")
    assert "2 of 3 runs are unfinished" in done.err
    assert f"  {tmp_path / 'b'}\n  {tmp_path / 'c'}\n" in done.err
    assert f"  {tmp_path / 'a'}\n" not in done.err
    done = command("compare", tmp_path, "--skip-unfinished")
    assert (done.status, done.err) == (0, "")
    assert "| best |  1 |" in done.out
    done = command("compare", tmp_path / "b", "--skip-unfinished")
    assert "1 of 1 runs are unfinished" in done.err


def test_refuses_runs_without_predictions(tmp_path: Path, command: Command) -> None:
    for seed, folder in enumerate(("a", "b")):
        make_run(tmp_path / folder, seed=seed)
    done = command("compare", tmp_path, "--split", "test")
    assert done.status == 1
    for folder in ("a", "b"):
        assert f"python -m fashion.evaluate {tmp_path / folder} --split test" in done.err


@pytest.mark.parametrize(("key", "value"), [("split_seed", 1), ("val_size", 5_000)])
def test_refuses_other_splits(tmp_path: Path, key: str, value: int, command: Command) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **{f"data__{key}": value})
    done = command("compare", tmp_path)
    assert done.status == 1
    assert "different validation images" in done.err
    assert f"{tmp_path / 'b'}  data.{key}={value}" in done.err


@pytest.mark.parametrize("labels", [LABELS[::-1].copy(), LABELS[:500]], ids=["order", "count"])
def test_refuses_other_labels(tmp_path: Path, labels: np.ndarray, command: Command) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", labels=labels, optimizer__lr=0.1)
    done = command("compare", tmp_path)
    assert done.status == 1
    assert (
        f"different images, or in another order:\n  {tmp_path / 'a'}\n  {tmp_path / 'b'}"
        in done.err
    )


def test_refuses_the_same_seed_twice(tmp_path: Path, command: Command) -> None:
    for folder, seed in (("a", 0), ("b", 1), ("c", 1)):
        make_run(tmp_path / folder, seed=seed)
    done = command("compare", tmp_path)
    assert done.status == 1
    assert "count as several" in done.err
    assert f"{tmp_path / 'c'}  seed=1" in done.err


def test_refuses_what_holds_no_run(tmp_path: Path, command: Command) -> None:
    done = command("compare", tmp_path)
    assert (done.status, done.err) == (
        1,
        f"error: {tmp_path} cannot be compared: there is no run in it.\n",
    )
    done = command("compare", tmp_path / "absent")
    assert done.status == 1
    assert "no such folder" in done.err


def test_refuses_metrics_without_numbers(tmp_path: Path) -> None:
    make_run(tmp_path / "a").update_metrics({"seconds": "long"})
    with pytest.raises(UserError, match=r"metrics\.json has no number under 'seconds'"):
        compare([tmp_path])


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path, command: Command) -> None:
    make_run(tmp_path / "a")
    file = tmp_path / "notes.md"
    file.write_text("mine")
    done = command("compare", tmp_path, "--output", file)
    assert (done.status, done.err) == (1, f"error: {file} exists; --force overwrites it.\n")
    assert file.read_text() == "mine"
    assert command("compare", tmp_path, "--output", file, "--force").status == 0
    assert "| best |" in file.read_text()
    done = command("compare", tmp_path, "--output", tmp_path / "a", "--force")
    assert done.status == 1
    assert f"{tmp_path / 'a'} is not a file that can be replaced; name another." in done.err


def test_user_metrics_are_columns(tmp_path: Path, command: Command) -> None:
    for seed, kappa in enumerate((0.8, 0.9)):
        make_run(tmp_path / f"a{seed}", seed=seed, own={"val/kappa": kappa, "val/acc": 0.9})
    make_run(tmp_path / "b", name="bare", wrong=300, optimizer__lr=0.1)
    done = command("compare", tmp_path)
    assert "|          range | kappa | parameters |" in done.out
    assert "| best |  2 |" in done.out
    assert "| 90.00 to 90.00 |  0.85 |" in done.out
    assert "| 70.00 to 70.00 |     — |" in done.out
    (line, _) = csv.DictReader(io.StringIO(command("compare", tmp_path, "--format=csv").out))
    assert float(line["val/kappa"]) == pytest.approx(0.85)


@pytest.mark.slow
def test_report_of_many_runs(
    ladder: Path, tmp_path: Path, tiny_data: Path, command: Command
) -> None:
    file, slides = tmp_path / "compare.html", tmp_path / "slides"
    figures = ("--figures", slides)
    done = command("compare", ladder, "--report", file, *figures, "--format", "json")
    assert done.status == 0, done.err
    kinds = [f"{theme}.{kind}" for theme in ("dark", "light") for kind in ("png", "svg")]
    assert sorted(path.name for path in slides.iterdir()) == [f"comparison-{k}" for k in kinds]
    slide = (slides / "comparison-light.svg").read_text(encoding="utf-8")
    table = json.loads(done.out)
    text = file.read_text(encoding="utf-8").replace("\u202f", " ")
    assert "Comparison of 7 runs" in text
    for each in table["comparisons"]:
        difference = f"{each['name']}: {each['difference']:+.2f}"
        assert f"{difference} ({each['low']:+.2f} to {each['high']:+.2f}), significant." in text
        assert f"▲ {each['difference']:+.2f} ({each['low']:+.2f} to" in slide
    for row in table["rows"]:
        assert f">{row['name']}</text>" in slide
        assert f">{row['accuracy']:.2f} %</text>" in slide
    assert "· baseline" in slide
    assert f"minus {table['baseline']}, pp" in slide
    assert "Comparison of 3 groups" in slide
    # Recall of every class: 8 or 9 of 100 images are wrong in cnn, 20 in linear.
    row = text.partition('scope="row">Coat')[2].partition("<tr>")[0]
    assert re.findall(r"-?[0-9.]+", row.replace("<b>", "")) == ["91.7", "-2.0", "-11.7"]
    assert "80 of 1,000 images are misclassified by every run" in text
    assert "They cannot be shown: " in text  # these runs name no data
    done = command("compare", ladder, "--report", file)
    assert (done.status, done.err) == (1, f"error: {file} exists; --force overwrites it.\n")


@pytest.mark.slow
def test_report_shows_the_images_that_every_run_gets_wrong(
    tiny_run: Path, tmp_path: Path, command: Command
) -> None:
    copy = Run(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    labels, probabilities = copy.predictions("val")
    wrong = probabilities.copy()
    wrong[7] = np.eye(10, dtype=np.float32)[(labels[7] + 1) % 10]
    copy.write_predictions("val", Predictions(labels, wrong))
    file = tmp_path / "compare.html"
    assert command("compare", copy.folder, "--report", file).status == 0
    text = file.read_text(encoding="utf-8")
    predicted = CLASSES[(labels[7] + 1) % 10]
    assert f"labeled {CLASSES[labels[7]]}<br>predicted {predicted}" in text
    assert "There is one group" in text


FOLDS = 5


def make_folds(
    folder: Path, name: str, wrong: list[int], *, seed: int = 0, **settings: Any
) -> None:
    """Of 1,000 images, fold f validates on 200, whose labels differ from fold to fold."""
    for fold, count in enumerate(wrong):
        make_run(
            folder / f"{name}-{seed}-{fold}",
            labels=(np.arange(200) + fold) % 10,
            wrong=count,
            seed=seed,
            name=name,
            **{"data__folds": FOLDS, "data__fold": fold, **settings},
        )


@pytest.mark.slow
def test_folds_are_one_group(tmp_path: Path, command: Command) -> None:
    make_folds(tmp_path, "cnn", [10, 20, 12, 18, 15])
    make_folds(tmp_path, "mlp", [30, 40, 32, 38, 35], optimizer__lr=0.1)
    table = compare([tmp_path])
    cnn, mlp = table.rows
    assert (cnn.n, mlp.n, table.images) == (FOLDS, FOLDS, 1_000)
    accuracies = [95.0, 90.0, 94.0, 91.0, 92.5]
    expected = statistics.seed_interval(accuracies)
    assert (cnn.accuracy, cnn.low, cnn.high) == pytest.approx(expected[:3])
    assert cnn.out_of_fold == pytest.approx(92.5)
    (found,) = table.comparisons
    assert (found.method, found.p_welch) == (OVER_IMAGES, None)  # paired by image, over all folds
    assert found.p_value < 0.001
    low, high = (100 * bound for bound in statistics.wilson(925, 1_000))
    text = render_markdown(table)
    assert "mean over n folds" in text
    assert f"cnn over all 1,000 images: 92.50 % (Wilson {low:.2f} to {high:.2f} %)" in text
    assert command("compare", tmp_path).out == text


def test_folds_that_are_missing(tmp_path: Path, command: Command) -> None:
    make_folds(tmp_path / "part", "cnn", [10, 20, 12])
    (row,) = compare([tmp_path / "part"]).rows
    assert (row.n, row.out_of_fold) == (3, None)
    make_folds(tmp_path / "part", "cnn", [10, 20], seed=1)
    done = command("compare", tmp_path / "part")
    assert "The seeds of cnn have different folds" in done.err
    assert "data.fold=2" in done.err
    make_folds(tmp_path / "two", "cnn", [10, 20, 12])
    make_folds(tmp_path / "two", "mlp", [10, 20], optimizer__lr=0.1)
    done = command("compare", tmp_path / "two")
    assert "different folds, and so different images" in done.err


def test_folds_of_several_seeds(tmp_path: Path) -> None:
    for seed, wrong in enumerate(([10, 20], [12, 26])):
        make_folds(tmp_path, "cnn", wrong, seed=seed, data__folds=2)
    (row,) = compare([tmp_path]).rows
    assert (row.n, row.minimum, row.maximum) == pytest.approx((2, 88.5, 94.5))  # means over seeds
    assert row.out_of_fold == pytest.approx(91.5)


def test_folds_are_seeds_of_the_test_set(tmp_path: Path) -> None:
    for fold in range(3):
        make_run(
            tmp_path / str(fold), split="test", wrong=80 + fold, data__folds=FOLDS, data__fold=fold
        )
        make_run(
            *(tmp_path / f"b{fold}",),
            split="test",
            wrong=90 + fold,
            name="other",
            optimizer__lr=0.1,
            data__folds=FOLDS,
            data__fold=fold,
        )
    table = compare([tmp_path], split="test")
    assert [(row.n, row.out_of_fold) for row in table.rows] == [(3, None)] * 2
    assert table.rows[0].accuracy == pytest.approx(91.9)
    assert "mean over n folds" in table.notes[0]  # which share training images
    assert table.comparisons[0].p_welch is None


def test_a_class_difference_can_be_significant_among_many_groups(tmp_path: Path) -> None:
    for number in range(13):
        make_run(tmp_path / str(number), wrong=0 if number else 500, optimizer__lr=0.1 + number)
    *others, first = groups(finished_runs([tmp_path]), "val")
    rows = comparison_page._class_rows(first, others, tuple("0123456789"))  # noqa: SLF001
    assert "significant=True" in str(rows)


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(ladder: Path) -> None:
    """And it waits for no torch."""
    program = "import runpy, sys; runpy.run_module('fashion.compare', run_name='__main__')"
    for arguments in (
        ["-c", f"{program}; sys.exit('torch' in sys.modules)", ladder],
        ["-m", "fashion.compare", ladder],
    ):
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "| cnn " in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "fashion.compare", ladder / "absent"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
