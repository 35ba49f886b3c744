import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image, ImageDraw

from fashion.data import CLASSES
from fashion.predict import SHOWN, SURE
from fashion.runs.files import SCRATCH
from fashion.runs.run import Run
from fashion.training.classifier import load_classifier, predict_probabilities


def picture(bar: int = 100) -> Image.Image:
    """A dark bar on a light wall."""
    image = Image.new("RGB", (300, 200), (235, 235, 230))
    ImageDraw.Draw(image).rectangle((50, bar, 250, bar + 40), (20, 30, 40))
    return image


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "bar.jpg"
    picture().save(path)
    return path


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy to be altered."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def with_temperature(run: Path, temperature: float) -> Path:
    Run.open(run).update_metrics({"val/temperature": temperature})
    return run


def test_prints_the_most_probable_classes(command: Command, tiny_run: Path, photo: Path) -> None:
    status, out, err = command("predict", tiny_run, photo)
    assert (status, err) == (0, "")
    line = out.splitlines()[0]
    assert line.startswith(f"{photo}: ")
    assert line.count(" %") == SHOWN


def test_json_is_one_document_in_the_order_given(
    command: Command, tiny_run: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("hello")
    paths = [tmp_path / "text.png", photo, tmp_path / "nowhere.gif", photo]
    status, out, err = command("predict", tiny_run, *paths, "--json")
    assert status == 1
    bad, good, missing, again = json.loads(out)
    assert set(good) == {"photo", "top", "calibrated", "remarks"}
    assert good == again
    assert [entry["photo"] for entry in (bad, good, missing)] == [str(p) for p in paths[:3]]
    assert set(bad) == set(missing) == {"photo", "error"}
    assert "text.png is not an image" in bad["error"]
    assert "nowhere.gif is missing" in missing["error"]
    assert err.splitlines() == [f"error: {bad['error']}", f"error: {missing['error']}"]
    probabilities = [guess["probability"] for guess in good["top"]]
    assert len(probabilities) == SHOWN
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1 + 1e-6
    assert ("unsure" in good["remarks"]) == (probabilities[0] < SURE)
    assert "faint" not in good["remarks"]
    assert {guess["class"] for guess in good["top"]} <= set(CLASSES)


def test_a_dataset_picture_is_answered_as_the_network_answers_it(
    command: Command, own_run: Path, tmp_path: Path
) -> None:
    image = np.zeros((28, 28), dtype=np.uint8)
    image[10:14, 4:24] = 200
    path = tmp_path / "own.png"
    Image.fromarray(image).save(path)
    with_temperature(own_run, 1.0)
    classifier = load_classifier(Run.open(own_run))
    expected = predict_probabilities(classifier, torch.from_numpy(image[None]))[0]
    _, out, _ = command("predict", own_run, path, "--json")
    for guess in json.loads(out)[0]["top"]:
        probability = expected[CLASSES.index(guess["class"])]
        assert guess["probability"] == pytest.approx(float(probability), abs=1e-5)


def test_probabilities_are_calibrated(command: Command, own_run: Path, photo: Path) -> None:
    sure = command("predict", with_temperature(own_run, 0.05), photo, "--json").out
    unsure = command("predict", with_temperature(own_run, 50.0), photo, "--json").out
    assert "unsure" not in json.loads(sure)[0]["remarks"]
    assert "unsure" in json.loads(unsure)[0]["remarks"]
    assert json.loads(unsure)[0]["top"][0]["probability"] < 0.2
    assert "Unsure: " in command("predict", own_run, photo).out


def test_says_where_nothing_was_held_out_to_calibrate_on(
    command: Command, own_run: Path, photo: Path
) -> None:
    assert json.loads(command("predict", own_run, photo, "--json").out)[0]["calibrated"] is True
    config = own_run / ".hydra" / "config.yaml"
    config.write_text(re.sub("val_size: .*", "val_size: 0", config.read_text()))
    best = own_run / "checkpoints" / "best.ckpt"
    best.replace(best.with_name("last.ckpt"))
    status, out, err = command("predict", own_run, photo, "--json")
    assert (status, json.loads(out)[0]["calibrated"]) == (0, False)
    assert err.startswith("note: this run has no validation set")


def test_without_a_stored_temperature_it_is_fitted_on_the_validation_split(
    command: Command, own_run: Path, photo: Path
) -> None:
    run = Run.open(own_run)
    metrics = {key: value for key, value in run.metrics.items() if key != "val/temperature"}
    run.write_text("metrics.json", json.dumps(metrics))
    assert command("predict", own_run, photo).status == 0
    (own_run / "val.npz").unlink()
    status, _, err = command("predict", own_run, photo)
    assert status == 1
    assert "has no predictions for val" in err


def test_says_what_the_network_was_never_shown(
    command: Command, tiny_run: Path, tmp_path: Path
) -> None:
    white = Image.new("L", (100, 100), 255)
    white.paste(225, (20, 20, 80, 60))
    path = tmp_path / "white.png"
    white.save(path)
    assert "show no such product" in command("predict", tiny_run, path).out
    assert "faint" in json.loads(command("predict", tiny_run, path, "--json").out)[0]["remarks"]


def test_a_picture_that_shows_nothing_is_named(
    command: Command, tiny_run: Path, photo: Path, tmp_path: Path
) -> None:
    Image.new("L", (100, 100), 255).save(tmp_path / "blank.png")
    status, out, err = command("predict", tiny_run, tmp_path / "blank.png", photo)
    assert status == 1
    assert f"error: {tmp_path / 'blank.png'}: Nothing stands out" in err
    assert out.startswith(f"{photo}: ")


def test_a_folder_is_its_photos(
    command: Command, tiny_run: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    saved = tmp_path / "saved.png"
    assert command("predict", tiny_run, photo, "--save", saved).status == 0
    status, out, err = command("predict", tiny_run, tmp_path)
    assert (status, err) == (0, "")
    assert [line.split(": ")[0] for line in out.splitlines() if not line.startswith(" ")] == [
        str(photo)  # neither the text nor what --save has drawn
    ]
    (tmp_path / "empty").mkdir()
    assert "holds no photos" in command("predict", tiny_run, tmp_path / "empty").err
    saved.rename(tmp_path / "empty/saved.png")
    done = command("predict", tiny_run, tmp_path / "empty")
    assert done.status == 1
    assert "holds no photos, only predictions that --save wrote" in done.err


def test_save_replaces_nothing_but_its_own(
    command: Command, tiny_run: Path, photo: Path, tmp_path: Path
) -> None:
    own, foreign = tmp_path / "own.png", tmp_path / "foreign.png"
    picture().save(foreign)
    before = foreign.read_bytes()
    for _ in range(2):
        assert command("predict", tiny_run, photo, "--save", own).status == 0
    assert "--force overwrites it" in command("predict", tiny_run, photo, "--save", foreign).err
    done = command("predict", tiny_run, foreign, "--save", foreign, "--force")
    assert "would replace a photo" in done.err
    assert foreign.read_bytes() == before
    assert command("predict", tiny_run, photo, "--save", foreign, "--force").status == 0
    assert foreign.read_bytes() != before


def test_other_classes_take_28_x_28_images_alone(
    command: Command, own_run: Path, photo: Path, tmp_path: Path
) -> None:
    config = own_run / ".hydra" / "config.yaml"
    names = "\n".join(f"  - c{label}" for label in range(10))
    config.write_text(config.read_text().replace("  classes: null\n", f"  classes:\n{names}\n"))
    assert "only 28 x 28 images" in command("predict", own_run, photo).err
    small = tmp_path / "small.png"
    Image.new("L", (28, 28), 100).save(small)
    done = command("predict", own_run, small)
    assert done.status == 0, done.err
    assert re.search(r": c\d ", done.out)


def test_save_draws_a_row_a_photo(
    command: Command, tiny_run: Path, photo: Path, tmp_path: Path
) -> None:
    other = tmp_path / "$odd$ 外套.png"  # neither mathematics nor in matplotlib's font
    picture(40).save(other)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert command("predict", tiny_run, photo, "--save", one).status == 0
    slides = ("--figures", tmp_path / "slides")
    assert command("predict", tiny_run, photo, other, "--save", two, *slides).status == 0
    assert len(list((tmp_path / "slides").glob("predictions-1-*"))) == 4
    assert "--force overwrites it" in command("predict", tiny_run, photo, *slides).err
    with Image.open(one) as first, Image.open(two) as second:
        assert first.width == second.width
        assert second.height - first.height == pytest.approx(300, abs=1)
    assert not list(tmp_path.glob(f"*{SCRATCH}"))


def test_a_name_that_is_not_utf_8(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    picture().save(path)
    status, out, _ = command("predict", tiny_run, path, "--save", tmp_path / "answers.png")
    assert status == 0
    assert r"caf\xe9.png: " in out
    assert json.loads(command("predict", tiny_run, path, "--json").out)[0]["photo"] == str(path)


def test_save_where_nothing_can_be_written(command: Command, tiny_run: Path, photo: Path) -> None:
    status, out, err = command("predict", tiny_run, photo, "--save", photo / "answers.png")
    assert status == 1
    assert out.startswith(f"{photo}: ")
    assert "cannot be written" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bar.jpg", "--save", "answers.jpg"], "does not end in .png"),
        ([], "PHOTO"),
    ],
)
def test_wrong_usage(command: Command, tiny_run: Path, arguments: list[str], message: str) -> None:
    status, out, err = command("predict", tiny_run, *arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_not_a_run(command: Command, photo: Path, tmp_path: Path) -> None:
    status, out, err = command("predict", tmp_path, photo)
    assert (status, out) == (1, "")
    assert "is not a run folder" in err
