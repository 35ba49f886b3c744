import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import Command, tiny_overrides

from fashion.data.datamodule import CLASSES
from fashion.report import figures, metrics
from fashion.report import page as report
from fashion.report.metrics import ClassScore, Interval
from fashion.runs.run import Run

SECTIONS = [
    "run",
    "result",
    "learning",
    "confusion",
    "classes",
    "pairs",
    "mistakes",
    "labels",
    "calibration",
    "conclusions",
]
HISTORY = {
    "epoch": [1, 2, 3],
    "train/loss": [1.0, 0.5, 0.2],
    "train/acc": [0.5, 0.7, 0.8],
    "val/loss": [0.9, 0.6, 0.5],
    "val/acc": [0.6, 0.75, 0.7],
}
SHIRT, COAT = CLASSES.index("Shirt"), CLASSES.index("Coat")


def answers_like(labels: np.ndarray, predicted: np.ndarray, sure: float = 0.91) -> np.ndarray:
    """Probabilities that give each answer `sure` and share the rest among the other nine."""
    probabilities = np.full((len(labels), 10), (1 - sure) / 9, np.float32)
    probabilities[np.arange(len(labels)), predicted] = sure
    return probabilities


def inputs(**changes: Any) -> dict[str, Any]:
    """200 pictures, 20 a class; every fifth shirt is taken for a coat, one coat for a shirt."""
    labels = np.arange(200) % 10
    predicted = labels.copy()
    predicted[np.flatnonzero(labels == SHIRT)[::5]] = COAT
    predicted[np.flatnonzero(labels == COAT)[3]] = SHIRT
    given = {
        "name": "best/2026-01-01",
        "run_metrics": {
            "seed": 3,
            "best_epoch": 2,
            "epochs": 3,
            "parameters": 5539850,
            "seconds": 150.0,
            "images_per_second": 2270.4,
            "machine": "Linux x86_64, 2 cores",
            "commit": "2d058d7",
            "clean": True,
            "versions": {"python": "3.11.7", "torch": "2.14.1"},
            "val/acc": 0.9,
        },
        "configuration": "model:\n  dropout: 0.6\n",
        "history": HISTORY,
        "split": "validation",
        "labels": labels,
        "probabilities": answers_like(labels, predicted),
        "images": np.arange(200, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8),
        "indices": 1000 + np.arange(200),
        "examples": np.full((10, 28, 28), 200, np.uint8),
        "temperature": 0.5,
        "epoch_chosen": True,
    } | changes
    count = len(given["labels"])
    return given | {key: given[key][:count] for key in ("probabilities", "images", "indices")}


def answers(labels: np.ndarray, predicted: np.ndarray, **changes: Any) -> report.Answers:
    split = report.Answers(
        "validation",
        labels,
        answers_like(labels, predicted),
        np.zeros((len(labels), 28, 28), np.uint8),
        np.arange(len(labels)),
    )
    return replace(split, **changes)


class Page(HTMLParser):
    """What the tests ask of a page: its elements with their attributes, and text by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = {"": ""}
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._section = ""
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.text[self._section] = ""
        self.text[self._section] += " "
        if tag in self.raw:
            self._open = tag
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.raw[self._open][-1] += data
        else:
            self.text[self._section] += data.replace(figures.THIN, " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def words(text: str) -> str:
    return " ".join(text.split())


def test_sections_are_in_order_and_in_the_contents() -> None:
    page = Page(report.page(**inputs()))
    assert [section["id"] for section in page.all("section")] == SECTIONS
    links = [link["href"] for link in page.all("a") if link["href"] in {f"#{s}" for s in SECTIONS}]
    assert links == [f"#{section}" for section in SECTIONS]
    assert len(page.all("h1")) == 1


def test_page_is_the_same_for_the_same_run() -> None:
    assert report.page(**inputs()) == report.page(**inputs())


def test_every_id_is_unique_and_every_link_leads_somewhere() -> None:
    page = Page(report.page(**inputs()))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("href", "xlink:href") and value != "data:,"
    }
    assert targets
    assert targets <= {f"#{name}" for name in ids}
    labelled = {attributes.get("aria-labelledby") for _, attributes in page.elements}
    assert labelled - {None} <= set(ids)


def test_policy_allows_this_style_this_script_and_nothing_from_outside() -> None:
    text = report.page(**inputs())
    page = Page(text)
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert len(page.raw["script"]) == len(page.raw["style"]) == 1
    assert directives == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": "data:",
        "style-src": f"'{sha256(page.raw['style'][0])}'",
        "script-src": f"'{sha256(page.raw['script'][0])}'",
    }
    for _, attributes in page.elements:
        assert not {key for key in attributes if key == "style" or key.startswith("on")}
        assert (attributes.get("src") or "data:").startswith("data:image/png;base64,") or (
            "src" not in attributes
        )
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}


EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)> $style ${policy} </pre></style>"


def test_whatever_comes_from_outside_is_escaped() -> None:
    hostile = ("seed", "best_epoch", "epochs", "parameters", "machine", "commit", EVIL)
    text = report.page(
        **inputs(
            name=EVIL,
            configuration=f"{EVIL}: {EVIL}",
            run_metrics=dict.fromkeys(hostile, EVIL) | {"versions": {EVIL: EVIL}, "clean": False},
        )
    )
    page = Page(text)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not [image for image in page.all("img") if not image["src"].startswith("data:")]
    assert EVIL in page.text[""]  # the heading
    assert page.text["run"].count(EVIL) > 8
    assert [section["id"] for section in page.all("section")] == SECTIONS


def test_run_section_says_what_made_the_run() -> None:
    text = words(Page(report.page(**inputs())).text["run"])
    for fact in (
        "Seed 3",
        "Epoch 2 of 3",
        "Training 2.5 minutes",
        "Pictures a second 2,270",
        "Parameters 5,539,850",
        "Machine Linux x86_64, 2 cores",
        "Commit 2d058d7 Versions",
        "python 3.11.7, torch 2.14.1",
        "model: dropout: 0.6",
        '"val/acc": 0.9',
    ):
        assert fact in text
    unclean = inputs(run_metrics={"commit": "2d058d7", "clean": False})
    assert "2d058d7, with uncommitted changes" in Page(report.page(**unclean)).text["run"]


def test_headline() -> None:
    text = words(Page(report.page(**inputs())).text["result"])
    low, high = (100 * bound for bound in metrics.accuracy_interval(195, 200))
    assert "97.5 % 195 of 200 validation pictures answered right." in text
    assert f"95 % interval: {low:.1f} to {high:.1f} % (Wilson)" in text
    assert "chosen on these very pictures" in text
    test = words(Page(report.page(**inputs(split="test"))).text["result"])
    assert "200 test pictures" in test
    assert "took no part" in test
    last = words(Page(report.page(**inputs(epoch_chosen=False))).text["result"])
    assert "took no part" in last


def test_confusion_matrix_leads_to_the_mistakes() -> None:
    text = report.page(**inputs())
    (table,) = re.findall(r'<table class="matrix">.*?</table>', text, re.DOTALL)
    assert [words(name) for name in re.findall(r'scope="row">([^<]*)', table)] == list(CLASSES)
    shirts = table.split("<tr>")[1 + SHIRT + 1]
    assert f'<a href="#true=6&amp;predicted=4">4<small>20.0{figures.THIN}%</small></a>' in shirts
    assert f'class="right"><span>16<small>80.0{figures.THIN}%' in shirts
    assert table.count('class="none"') == 100 - 12
    cards = [card for card in Page(text).all("li") if "data-true" in card]
    assert [card.get("id") for card in cards].count("true=6&predicted=4") == 1


def test_classes_are_listed_hardest_first() -> None:
    (table,) = re.findall(
        r'aria-label="Classes.*?</table>', report.page(**inputs()), flags=re.DOTALL
    )
    listed = re.findall(r'scope="row">([^<]*)', table)
    assert listed[:2] == ["Shirt", "Coat"]
    assert sorted(listed) == sorted(CLASSES)


def test_pairs_have_both_ways() -> None:
    text = words(Page(report.page(**inputs())).text["pairs"])
    assert "Coat and Shirt 5 coats taken for shirts 1" in text
    assert "shirts taken for coats 4" in text


def test_mistakes_are_all_there_the_surest_first() -> None:
    given = inputs()
    wrong = np.flatnonzero(given["probabilities"].argmax(1) != given["labels"])
    given["probabilities"][wrong[2]] = answers_like(np.zeros(1), np.array([COAT]), 0.99)
    page = Page(report.page(**given))
    cards = [card for card in page.all("li") if "data-true" in card]
    assert len(cards) == len(wrong) == 5
    text = words(page.text["mistakes"])
    assert "All 5 mistakes" in text
    assert text.count("We thought it was a coat but it was actually a shirt.") == 4
    assert text.count("We thought it was a shirt but it was actually a coat.") == 1
    numbers = re.findall(r"<figcaption>(\d+)", report.page(**given))
    assert numbers[0] == str(1000 + wrong[2])
    assert "99.0 %" in text
    assert "train-images-idx3-ubyte" in text
    assert "t10k-images-idx3-ubyte" in Page(report.page(**inputs(split="test"))).text["mistakes"]


def test_long_gallery_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MISTAKES_SHOWN", 1)
    given = inputs()
    page = Page(report.page(**given))
    assert "The 1 most confident of 5 mistakes" in words(page.text["mistakes"])
    assert len([card for card in page.all("li") if "data-true" in card]) == 1
    # A kind of mistake that fell to the cut has no pictures to lead to.
    links = {link["href"] for link in page.all("a")}
    assert len(links & {"#true=6&predicted=4", "#true=4&predicted=6"}) == 1


def test_label_is_listed_even_where_it_is_not_among_the_likeliest_three() -> None:
    rows = [0.5, 0.3, 0.1, 0.04, 0.02, 0.01, 0.01, 0.01, 0.01, 0]
    given = inputs(labels=np.array([9, 1]), probabilities=np.array([rows, rows], np.float32))
    lists = re.findall(r"<ol>(.*?)</ol>", report.page(**given))
    names = [re.findall(r">([A-Z][^<]*)<svg", listed) for listed in lists]
    likeliest = ["T-shirt/top", "Trouser", "Pullover"]
    assert names == [[*likeliest, "Ankle boot"], likeliest]
    assert re.findall(r'width="([^"]*)"', lists[0]) == ["50.0%", "30.0%", "10.0%", "0.0%"]
    assert re.findall(r"class=(\w+)", lists[0]) == ["answer", "label"]


def test_suspicious_labels_are_surer_than_usual() -> None:
    """By hand: the mean confidence in coats that are labelled coat is 0.7."""
    labels = np.array([COAT, COAT, SHIRT, SHIRT, SHIRT, SHIRT])
    sure = [0.9, 0.5, 0.71, 0.69, 0.95, 0.99]
    predicted = [COAT, COAT, COAT, COAT, COAT, SHIRT]
    probabilities = np.concatenate(
        [
            answers_like(np.zeros(1), np.array([answer]), confidence)
            for answer, confidence in zip(predicted, sure, strict=True)
        ]
    )
    assert report.suspicious_labels(labels, probabilities).tolist() == [4, 2]


def test_an_answer_that_no_label_bears_is_not_suspicious() -> None:
    labels = np.full(3, SHIRT)
    probabilities = answers_like(labels, np.array([SHIRT, SHIRT, COAT]))
    assert report.suspicious_labels(labels, probabilities).tolist() == []


def test_calibration_before_and_after() -> None:
    given = inputs()
    text = words(Page(report.page(**given)).text["calibration"])
    calibrated = metrics.apply_temperature(given["probabilities"], given["temperature"])
    errors = [
        100 * metrics.scores(given["labels"], table)["ece"]
        for table in (given["probabilities"], calibrated)
    ]
    assert f"is {errors[0]:.1f} %, and {errors[1]:.1f} % after" in text
    assert errors[0] != pytest.approx(errors[1], abs=0.1)
    assert "temperature of 0.5" in text
    assert "these same pictures" in text
    test = Page(report.page(**inputs(split="test"))).text["calibration"]
    assert "these same pictures" not in test


def test_calibration_without_a_temperature() -> None:
    page = Page(report.page(**inputs(temperature=None)))
    text = words(page.text["calibration"])
    assert "No temperature is fitted" in text
    assert "divided" not in text
    assert "temperature" not in page.text["conclusions"]
    assert "the expected calibration error is" in words(page.text["conclusions"])
    drawings = [svg for svg in page.all("svg") if "role" in svg]
    assert len(drawings) == 4


# Conclusions.


def class_score(label: int, f1: float, half: float) -> ClassScore:
    whole = Interval(0, 1)
    interval = Interval(f1 - half, f1 + half)
    return ClassScore(label, 100, 0.5, whole, 0.5, whole, f1, interval)


@pytest.mark.parametrize(
    ("f1", "expected"),
    [
        (
            {6: (0.70, 0.02), 0: (0.80, 0.02), 4: (0.85, 0.02)},
            "Shirts are the hardest here: F1 70.0 % (68.0 to 72.0 %), below every other interval.",
        ),
        (
            {6: (0.78, 0.02), 0: (0.80, 0.02), 4: (0.85, 0.02)},
            (
                "Shirts have the lowest F1 here, 78.0 % (76.0 to 80.0 %), an interval that "
                "overlaps that of T-shirts: the intervals alone do not tell which class is the "
                "hardest."
            ),
        ),
        (
            {6: (0.78, 0.02), 0: (0.80, 0.02), 2: (0.81, 0.02), 4: (0.85, 0.02)},
            (
                "Shirts have the lowest F1 here, 78.0 % (76.0 to 80.0 %), an interval that "
                "overlaps those of T-shirts and pullovers: the intervals alone do not tell which "
                "class is the hardest."
            ),
        ),
        (
            {6: (0.78, 0.05), 0: (0.80, 0.05), 4: (0.85, 0.05)},
            (
                "Which class is the hardest here the intervals alone do not tell: F1 goes from "
                "78.0 % (shirts) to 85.0 % (coats), and every interval overlaps the first."
            ),
        ),
        (
            {6: (1.0, 0.05), 0: (1.0, 0.05)},
            "No class is the hardest here: F1 is 100.0 % for each.",
        ),
        ({6: (0.7, 0.02)}, ""),
        ({}, ""),
    ],
)
def test_hardest_is_said_only_where_intervals_lie_apart(
    f1: dict[int, tuple[float, float]], expected: str
) -> None:
    ranked = [class_score(label, *values) for label, values in f1.items()]
    said = report.standing(ranked, "here", "hardest", "lowest", "below")
    assert " ".join(said).replace(figures.THIN, " ") == expected


def test_conclusions_of_hand_made_numbers() -> None:
    """1,000 pictures a class; shirts and coats are confused, and sneakers with ankle boots."""
    labels = np.repeat(np.arange(10), 1000)
    predicted = labels.copy()
    for true, answer, count in ((6, 4, 300), (4, 6, 60), (7, 9, 40), (8, 1, 20)):
        predicted[np.flatnonzero(labels == true)[:count]] = answer
    said = [
        line.replace(figures.THIN, " ") for line in report.conclusions(answers(labels, predicted))
    ]
    assert said[0] == (
        "95.8 % of the 10,000 validation pictures were answered right; the accuracy on pictures "
        "like these is 95.4 to 96.2 % (95 % interval)."
    )
    assert said[1].startswith("Shirts are the hardest among the tops: F1 79.5 %")
    assert said[2].startswith("Sneakers have the lowest F1 among the footwear, 98.0 %")
    assert "that of ankle boots" in said[2]
    # Four classes without a mistake share the highest F1: none is the easiest.
    assert said[3].startswith("Sandals have the highest F1 of all classes, 100.0 %")
    assert "dresses, pullovers and T-shirts" in said[3]
    assert said[4] == (
        "Of 420 mistakes, 360 (85.7 %) took one top for another and 40 (9.5 %) took one shoe for "
        "another."
    )
    assert said[5] == (
        "Most often confused were coats and shirts: 60 coats were taken for shirts, 300 shirts for "
        "coats."
    )
    assert len(said) == 6


def test_conclusions_call_no_pair_the_most_confused_where_two_are() -> None:
    labels = np.array([0, 1, 2, 3])
    said = report.conclusions(answers(labels, np.array([1, 1, 3, 3])))
    assert not [line for line in said if line.startswith("Most often")]
    assert [line for line in said if line == "It never answered T-shirt/top and Pullover."]


def test_conclusions_of_one_answer_to_everything() -> None:
    labels = np.arange(100) % 10
    said = report.conclusions(answers(labels, np.full(100, 9)))
    assert len(said) == 2
    assert said[1] == (
        "Every picture got the same answer, an ankle boot: these numbers cannot say which class "
        "is hard or easy."
    )


def perfect(labels: np.ndarray) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[labels]


def constant(labels: np.ndarray) -> np.ndarray:
    return perfect(np.full_like(labels, COAT))


def uniform(labels: np.ndarray) -> np.ndarray:
    return np.full((len(labels), 10), 0.1, np.float32)


def always_wrong(labels: np.ndarray) -> np.ndarray:
    return perfect((labels + 1) % 10)


@pytest.mark.parametrize("answer", [perfect, constant, uniform, always_wrong])
@pytest.mark.parametrize(
    "labels",
    [np.arange(40) % 10, np.full(7, SHIRT), np.array([COAT]), np.array([COAT, SHIRT] * 3)],
    ids=["all classes", "one class", "one picture", "two classes"],
)
def test_degenerate_models_and_splits_have_their_page(
    answer: Callable[[np.ndarray], np.ndarray], labels: np.ndarray
) -> None:
    probabilities = answer(labels)
    temperature = metrics.fit_temperature(labels, probabilities)
    given = inputs(labels=labels, probabilities=probabilities, temperature=temperature)
    text = report.page(**given)
    page = Page(text)
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
    wrong = (probabilities.argmax(1) != labels).sum()
    assert len([card for card in page.all("li") if "data-true" in card]) == wrong
    absent = set(CLASSES) - {CLASSES[label] for label in labels}
    assert ("There are no pictures of" in page.text["classes"]) == bool(absent)


def test_perfect_model_has_no_mistakes_to_show() -> None:
    labels = np.arange(200) % 10
    page = Page(report.page(**inputs(probabilities=perfect(labels))))
    assert "all 200 pictures were answered right" in page.text["mistakes"]
    assert "No two classes were confused" in page.text["pairs"]
    assert "None" in page.text["labels"]
    assert not page.all("form")


def test_bare_run_has_its_page() -> None:
    page = Page(report.page(**inputs(history={}, run_metrics={}, configuration="", name="")))
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert "No learning curves were recorded" in page.text["learning"]


def test_reported_epoch_is_marked_only_where_it_is_known() -> None:
    known = Page(report.page(**inputs())).text["learning"]
    assert "marks epoch 2" in known
    assert "epoch (reported: 2)" in known
    unknown = Page(report.page(**inputs(run_metrics={"best_epoch": 9}))).text["learning"]
    assert "marks" not in unknown
    losses = {key: HISTORY[key] for key in ("epoch", "val/loss")}
    page = Page(report.page(**inputs(history=losses)))
    assert "Loss" in page.text["learning"]
    assert "Accuracy" not in page.text["learning"]


def test_pictures_carry_their_name() -> None:
    page = Page(report.page(**inputs()))
    images = page.all("img")
    assert len(images) > 10
    assert {image["alt"] for image in images[:10]} == {""}  # the caption beside it says it
    assert "Shirt, picture 1006" in {image["alt"] for image in images}
    drawings = [svg for svg in page.all("svg") if "role" in svg]
    assert len(drawings) == 5
    assert all(svg["aria-label"] for svg in drawings)


def test_drawings_follow_the_pages_colours() -> None:
    (section,) = re.findall(
        r'<section id="learning".*?</section>', report.page(**inputs()), re.DOTALL
    )
    assert 'stroke="var(--accent)"' in section
    assert not re.findall("#[0-9a-fA-F]{6}", section)
    assert ">validation</text>" in section


def test_page_of_a_thousand_mistakes_stays_below_two_megabytes() -> None:
    """Pictures of even noise cannot be compressed, so these are worse than any real ones."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 10_000)
    predicted = np.where(np.arange(10_000) < 1000, (labels + 1) % 10, labels)
    given = inputs(
        labels=labels,
        probabilities=answers_like(labels, predicted),
        images=random.integers(0, 256, (10_000, 28, 28), np.uint8),
        indices=np.arange(10_000),
    )
    assert len(report.page(**given).encode()) < 2.2e6


# In a real browser.

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBE = """<!doctype html><iframe width="390" height="4000" src="report.html"></iframe><p></p>
<script>
addEventListener("load", async () => {
  const frame = document.querySelector("iframe").contentWindow;
  const page = frame.document;
  const pause = () => new Promise((resolve) => setTimeout(resolve, 50));
  const shown = () => [...page.querySelectorAll("[data-true]")].filter((card) => !card.hidden);
  const kinds = () => [...new Set(shown().map((c) => c.dataset.true + c.dataset.predicted))];
  const found = {};
  found.width = page.documentElement.scrollWidth;
  found.background = frame.getComputedStyle(page.body).backgroundColor;
  found.sizes = [...new Set([...page.images].map((image) => image.naturalWidth))];
  found.first = shown().length;
  page.querySelector("#more").click();
  found.more = shown().length;
  const links = [...page.querySelectorAll(".matrix a")];
  const { true: truth } = page.querySelector("#filter").elements;
  truth.value = new URLSearchParams(links[0].hash.slice(1)).get("true");
  truth.dispatchEvent(new Event("change", { bubbles: true }));
  found.chosen = kinds();
  found.address = frame.location.hash;
  page.querySelector("button[type=reset]").click();
  await pause();
  found.reset = shown().length;
  links.at(-1).click();
  await pause();
  found.link = links.at(-1).hash;
  found.linked = kinds();
  found.output = page.querySelector("output").textContent;
  page.querySelector('a[href="#result"]').click();
  await pause();
  found.afterwards = kinds();
  document.querySelector("p").textContent = JSON.stringify(found);
});
</script>"""


class Visit(NamedTuple):
    dom: str
    console: list[str]
    requests: set[str]


@pytest.fixture
def visit(tmp_path: Path) -> Callable[..., Visit]:
    """Opens a file of `tmp_path` in Chromium, which reaches no network."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")

    def visit(name: str, *flags: str) -> Visit:
        log = tmp_path / "net.json"
        done = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",  # a container's root cannot have one
                "--disable-gpu",
                "--hide-scrollbars",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=5000",
                "--enable-logging=stderr",
                f"--log-net-log={log}",
                *flags,
                "--dump-dom",
                f"{tmp_path.as_uri()}/{name}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        events = json.loads(log.read_text())["events"]
        urls = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
        return Visit(
            done.stdout,
            [line for line in done.stderr.splitlines() if "CONSOLE" in line],
            # The browser's own maker is asked for updates even so.
            {url for url in urls if not re.search(r"\.google(apis)?\.com$", urlsplit(url).netloc)},
        )

    return visit


@pytest.fixture
def long_report(tmp_path: Path) -> Path:
    """Of 200 pictures 110 are mistakes: shirts for coats, coats for shirts, all bags for shirts."""
    labels = np.repeat([SHIRT, COAT, 8, 1], 50)
    predicted = labels.copy()
    predicted[:30], predicted[50:80], predicted[100:150] = COAT, SHIRT, SHIRT
    path = tmp_path / "report.html"
    path.write_text(
        report.page(**inputs(labels=labels, probabilities=answers_like(labels, predicted))),
        encoding="utf-8",
    )
    return path


@pytest.mark.browser
@pytest.mark.usefixtures("long_report")
def test_browser_has_nothing_to_complain_of_and_asks_for_nothing(
    visit: Callable[..., Visit],
) -> None:
    seen = visit("report.html")
    assert seen.console == []
    assert seen.requests == set()
    assert "48 of 110 shown" in seen.dom


@pytest.mark.browser
def test_policy_stops_what_would_slip_in(visit: Callable[..., Visit], long_report: Path) -> None:
    """And the test above would see it."""
    slip = '<img src="http://127.0.0.1:9/x.png"><b style="color: red">x</b></header>'
    text = long_report.read_text(encoding="utf-8").replace("</header>", slip)
    long_report.write_text(text, encoding="utf-8")
    stopped = visit("report.html")
    assert len(stopped.console) == 2
    assert stopped.requests == set()
    text = re.sub("<meta http-equiv[^>]*>", "", text)
    long_report.write_text(text, encoding="utf-8")
    assert visit("report.html").requests == {"http://127.0.0.1:9/x.png"}


@pytest.mark.browser
@pytest.mark.usefixtures("long_report")
def test_address_chooses_the_mistakes(visit: Callable[..., Visit]) -> None:
    seen = visit("report.html#true=6&predicted=4")
    assert "30 of 30 shown" in seen.dom
    cards = [card for card in Page(seen.dom).all("li") if "data-true" in card]
    shown = {(c["data-true"], c["data-predicted"]) for c in cards if "hidden" not in c}
    assert shown == {("6", "4")}
    assert len(cards) == 110


@pytest.mark.browser
@pytest.mark.parametrize(
    ("scheme", "background"), [(1, "rgb(255, 255, 255)"), (0, "rgb(22, 21, 20)")]
)
@pytest.mark.usefixtures("long_report")
def test_page_on_a_telephone(
    visit: Callable[..., Visit], tmp_path: Path, scheme: int, background: str
) -> None:
    """In a frame 390 pixels wide, in light and in dark; every control is tried."""
    (tmp_path / "probe.html").write_text(PROBE)
    assert probed(visit, f"--blink-settings=preferredColorScheme={scheme}") == {
        "width": 390,
        "background": background,
        "sizes": [28],
        "first": 48,
        "more": 110,
        "chosen": ["46"],
        "address": "#true=4",
        "reset": 48,
        "link": "#true=8&predicted=6",
        "linked": ["86"],
        "output": "48 of 50 shown",
        "afterwards": ["86"],
    }


def probed(visit: Callable[..., Visit], *flags: str) -> dict[str, Any]:
    """What probe.html finds out about the report."""
    seen = visit("probe.html", "--allow-file-access-from-files", *flags)
    assert seen.console == []
    assert seen.requests == set()
    (found,) = re.findall("<p>({.*})</p>", seen.dom)
    result: dict[str, Any] = json.loads(found.replace("&amp;", "&"))
    return result


@pytest.mark.browser
def test_report_of_the_real_command(
    visit: Callable[..., Visit], command: Command, tiny_data: Path, tmp_path: Path
) -> None:
    """Of two steps' training, so that it has many mistakes."""
    done = command(
        *("train", *tiny_overrides(tiny_data), "model=linear", "trainer=smoke"),
        *("report=true", f"hydra.run.dir={tmp_path}/run"),
    )
    assert done.status == 0, done.err
    shutil.copy(tmp_path / "run/report.html", tmp_path)
    seen = visit("report.html")
    assert (seen.console, seen.requests) == ([], set())
    labels, probabilities = Run(tmp_path / "run").predictions("val")
    wrong = int((labels != probabilities.argmax(1)).sum())
    assert wrong > 48
    (tmp_path / "probe.html").write_text(PROBE)
    found = probed(visit)
    assert (found["width"], found["sizes"]) == (390, [28])
    assert (found["first"], found["more"], found["reset"]) == (48, wrong, 48)
    true, predicted = re.findall(r"\d", found["link"])
    assert {kind[0] for kind in found["chosen"]} == {found["address"][-1]}
    assert found["linked"] == [true + predicted]
    count = ((labels == int(true)) & (probabilities.argmax(1) == int(predicted))).sum()
    assert found["output"] == f"{count} of {count} shown"
