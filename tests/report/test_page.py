# Types: ElementTree's stubs return None where a test knows the element.
# mypy: disable-error-code="union-attr, misc, no-any-return"

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
from jinja2 import UndefinedError

from fashion.data import CLASSES
from fashion.report import metrics
from fashion.report import page as report
from fashion.report.evaluation import Evaluation
from fashion.report.statistics import wilson
from fashion.runs.run import Run

pytestmark = pytest.mark.slow

SECTIONS = [
    *("result", "learning", "confusion", "classes", "pairs"),
    *("mistakes", "labels", "calibration", "run"),
]
HISTORY = {
    "epoch": [1, 2, 3],
    "train/loss": [1.0, 0.5, 0.2],
    "train/acc": [0.5, 0.7, 0.8],
    "val/loss": [0.9, 0.6, 0.5],
    "val/acc": [0.6, 0.75, 0.7],
}
SHIRT, COAT = CLASSES.index("Shirt"), CLASSES.index("Coat")


INPUTS: dict[str, Any] = {
    "name": "best, seed 3",
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
        "val/kappa": 0.8765,
    },
    "configuration": "model:\n  dropout: 0.6\n",
    "history": HISTORY,
    "epoch_chosen": True,
}


def confident(labels: np.ndarray, predicted: np.ndarray, sure: float = 0.91) -> np.ndarray:
    """Probabilities of `sure` for each prediction, the rest spread over the other nine."""
    probabilities = np.full((len(labels), 10), (1 - sure) / 9, np.float32)
    probabilities[np.arange(len(labels)), predicted] = sure
    return probabilities


def evaluated(labels: np.ndarray, probabilities: np.ndarray, **changes: Any) -> Evaluation:
    count = len(labels)
    images = (np.arange(count) % 256).astype(np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    indices = 1000 + np.arange(count)
    given = Evaluation("val", CLASSES, images, indices, labels, probabilities)
    return replace(given, **changes)


def typical(**changes: Any) -> Evaluation:
    """200 images, 20 per class; every fifth shirt is predicted as a coat, one coat as a shirt."""
    labels = np.arange(200) % 10
    predicted = labels.copy()
    predicted[np.flatnonzero(labels == SHIRT)[::5]] = COAT
    predicted[np.flatnonzero(labels == COAT)[3]] = SHIRT
    return evaluated(labels, confident(labels, predicted), **({"temperature": 0.5} | changes))


def page_of(evaluation: Evaluation | None = None, **changes: Any) -> str:
    return report.report(evaluation or typical(), **(INPUTS | changes))


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
            self.text[self._section] += data.replace("\u202f", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def words(text: str) -> str:
    return " ".join(text.split())


def test_sections_are_in_order_and_in_the_contents() -> None:
    page = Page(page_of())
    assert [section["id"] for section in page.all("section")] == SECTIONS
    links = [link["href"] for link in page.all("a") if link["href"] in {f"#{s}" for s in SECTIONS}]
    assert links == [f"#{section}" for section in SECTIONS]
    assert len(page.all("h1")) == 1


def test_page_is_the_same_for_the_same_run() -> None:
    assert page_of() == page_of()


def test_every_id_is_unique_and_every_link_leads_somewhere() -> None:
    page = Page(page_of())
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
    text = page_of()
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


EVIL = (
    "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)> {{ style }} {% raw %} </pre></style>"
)


def test_whatever_comes_from_outside_is_escaped() -> None:
    hostile = ("seed", "best_epoch", "epochs", "parameters", "machine", "commit", EVIL)
    text = page_of(
        name=EVIL,
        configuration=f"{EVIL}: {EVIL}",
        run_metrics=dict.fromkeys(hostile, EVIL) | {"versions": {EVIL: EVIL}, "clean": False},
    )
    page = Page(text)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not [image for image in page.all("img") if not image["src"].startswith("data:")]
    assert EVIL in page.text[""]  # the heading
    assert page.text["run"].count(EVIL) > 8
    assert [section["id"] for section in page.all("section")] == SECTIONS


def test_run_section_says_what_made_the_run() -> None:
    text = words(Page(page_of()).text["run"])
    for fact in (
        "Seed 3",
        "Epoch 2 of 3",
        "Training 2.5 minutes",
        "Images per second 2,270",
        "Parameters 5,539,850",
        "Machine Linux x86_64, 2 cores",
        "Commit 2d058d7 Versions",
        "python 3.11.7, torch 2.14.1",
        "model: dropout: 0.6",
        '"val/acc": 0.9',
    ):
        assert fact in text
    short = page_of(run_metrics=INPUTS["run_metrics"] | {"seconds": 56.2})
    assert "trained for 56 seconds" in short
    unclean = page_of(run_metrics={"commit": "2d058d7", "clean": False})
    assert "2d058d7, with uncommitted changes" in Page(unclean).text["run"]


def test_headline() -> None:
    text = words(Page(page_of()).text["result"])
    low, high = (100 * bound for bound in wilson(195, 200))
    assert "97.5 % 195 of 200 validation images classified correctly." in text
    assert f"95 % interval: {low:.1f} to {high:.1f} % (Wilson)" in text
    assert "chosen on these images" in text
    assert "kappa 0.8765" in text
    assert "views" not in text
    certain = np.eye(10, dtype=np.float32)[np.arange(200) % 10]
    flipped = typical(tta="hflip", probabilities_tta=certain)
    assert "Mean of 2 views 100.0 %" in words(Page(page_of(flipped)).text["result"])
    test = Page(page_of(typical(split="test")))
    assert "200 test images" in words(test.text["result"])
    assert "neither for training nor for choosing" in words(test.text["result"])
    assert "test report" in test.text[""]
    last = words(Page(page_of(epoch_chosen=False)).text["result"])
    assert "neither for training nor for choosing" in last
    for why, because in (("", False), (": val/acc no better for 6", True)):
        stopped = INPUTS["run_metrics"] | {"stopped": f"stopped after 3 of 15 epochs{why}"}
        early = words(Page(page_of(epoch_chosen=False, run_metrics=stopped)).text["result"])
        assert ("ended early because of these images" in early) == because


def test_confusion_matrix_leads_to_the_mistakes() -> None:
    text = page_of()
    (table,) = re.findall(r'<table class="matrix">.*?</table>', text, re.DOTALL)
    assert [words(name) for name in re.findall(r'scope="row">([^<]*)', table)] == list(CLASSES)
    shirts = table.split("<tr>")[1 + SHIRT + 1]
    assert '<a href="#true=6&amp;predicted=4">4<small>20.0\u202f%</small></a>' in shirts
    assert 'class="correct"><span>16<small>80.0\u202f%' in shirts
    assert table.count('class="none"') == 100 - 12
    cards = [card for card in Page(text).all("li") if "data-true" in card]
    assert [card.get("id") for card in cards].count("true=6&predicted=4") == 1


def test_classes_are_listed_hardest_first() -> None:
    (table,) = re.findall(r'aria-label="Classes in.*?</table>', page_of(), flags=re.DOTALL)
    listed = re.findall(r'scope="row">([^<]*)', table)
    assert listed[:2] == ["Shirt", "Coat"]
    assert sorted(listed) == sorted(CLASSES)


def test_pairs_have_both_directions() -> None:
    text = words(Page(page_of()).text["pairs"])
    assert "Coat and Shirt 5 Coat predicted as Shirt 1" in text
    assert "Shirt predicted as Coat 4" in text


def test_undefined_scores_are_a_dash() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    text = page_of(evaluated(labels, confident(labels, np.array([0, 0, 1, 1, 1]))))
    row = (
        text.partition('id="classes"')[2].partition('scope="row">Pullover')[2].partition("<tr>")[0]
    )
    assert [cell.strip() for cell in re.findall(r"<td>([^<]*)<small>", row)] == [
        "0.0\u202f%",
        metrics.DASH,
        "0.0\u202f%",
    ]
    assert "There are no images of Dress, Coat" in words(Page(text).text["classes"])


def test_mistakes_are_all_there_the_most_confident_first() -> None:
    evaluation = typical()
    wrong = np.flatnonzero(evaluation.probabilities.argmax(1) != evaluation.labels)
    evaluation.probabilities[wrong[2]] = confident(np.zeros(1), np.array([COAT]), 0.99)
    text = page_of(evaluation)
    page = Page(text)
    cards = [card for card in page.all("li") if "data-true" in card]
    assert len(cards) == len(wrong) == 5
    found = words(page.text["mistakes"])
    assert "5 mistakes, the most confident first" in found
    assert found.count("We thought it was a coat but it was actually a shirt.") == 4
    assert found.count("We thought it was a shirt but it was actually a coat.") == 1
    assert re.findall(r"<figcaption>(\d+)", text)[0] == str(1000 + wrong[2])
    assert "99.0 %" in found
    assert "train-images-idx3-ubyte" in found
    assert "t10k-images-idx3-ubyte" in Page(page_of(typical(split="test"))).text["mistakes"]


def test_long_gallery_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SHOWN", 1)
    page = Page(page_of())
    assert "The 1 most confident of 5 mistakes" in words(page.text["mistakes"])
    assert len([card for card in page.all("li") if "data-true" in card]) == 1
    # A kind of mistake that is cut off has no images to link to.
    links = {link["href"] for link in page.all("a")}
    assert len(links & {"#true=6&predicted=4", "#true=4&predicted=6"}) == 1


def test_true_class_is_listed_even_where_it_is_not_among_the_three_most_probable() -> None:
    rows = [0.5, 0.3, 0.1, 0.04, 0.02, 0.01, 0.01, 0.01, 0.01, 0]
    evaluation = evaluated(np.array([9, 1]), np.array([rows, rows], np.float32))
    lists = re.findall(r"<ol>(.*?)</ol>", page_of(evaluation), re.DOTALL)
    names = [re.findall(r">([A-Z][^<]*)<svg", listed) for listed in lists]
    top = ["T-shirt/top", "Trouser", "Pullover"]
    assert names == [[*top, "Ankle boot"], top]
    assert re.findall(r'width="([^"]*)"', lists[0]) == ["50.0%", "30.0%", "10.0%", "0.0%"]
    assert re.findall(r'class="(\w+)"', lists[0]) == ["predicted", "true"]


def test_suspicious_labels_only_from_a_good_model() -> None:
    labels = np.array([COAT] * 20 + [SHIRT] * 20)
    predicted = labels.copy()
    predicted[20:22] = COAT
    good = Page(page_of(evaluated(labels, confident(labels, predicted))))
    assert "2 of 2 mistakes" in words(good.text["labels"])
    assert "labeled Shirt predicted Coat" in words(good.text["labels"])
    predicted[20:30] = COAT
    poor = Page(page_of(evaluated(labels, confident(labels, predicted))))
    assert "accuracy below 90.0 %" in words(poor.text["labels"])
    assert "labeled" not in poor.text["labels"]


# Conclusions.


def test_conclusions_of_hand_made_numbers() -> None:
    """1,000 images per class; shirts and coats are confused, and sneakers with ankle boots."""
    labels = np.repeat(np.arange(10), 1000)
    predicted = labels.copy()
    for true, other, count in ((6, 4, 300), (4, 6, 60), (7, 9, 40), (8, 1, 20)):
        predicted[np.flatnonzero(labels == true)[:count]] = other
    found = report.conclusions(evaluated(labels, confident(labels, predicted)))
    assert re.fullmatch(
        r"F1 is lowest for Shirt, 79.5 % \(.* to .* %\), and highest for T-shirt/top, 100.0 % "
        r"\(.* to 100.0 %\)\.",
        found[0],
    )
    assert found[1:] == [
        (
            "Of 420 mistakes, 360 (85.7 %) confuse one top with another and 40 (9.5 %) confuse one "
            "shoe with another."
        ),
        "Most confused: 60 Coat predicted as Shirt, 300 Shirt as Coat.",
    ]


def test_conclusions_of_constant_predictions() -> None:
    labels = np.arange(100) % 10
    found = report.conclusions(evaluated(labels, confident(labels, np.full(100, 9))))
    assert found == ["Every image was predicted as Ankle boot."]
    half = report.conclusions(evaluated(labels, confident(labels, labels // 2 * 2)))
    assert half[0] == "Never predicted: Trouser, Dress, Sandal, Sneaker, Ankle boot."


@pytest.mark.parametrize(("temperature", "helps"), [(1.5, True), (0.5, False), (None, False)])
def test_calibration_is_a_conclusion_only_where_the_temperature_helps(
    temperature: float | None, *, helps: bool
) -> None:
    labels = np.arange(200) % 10
    predicted = np.where(np.arange(200) < 60, (labels + 1) % 10, labels)  # 70 % at 91 % confidence
    evaluation = evaluated(labels, confident(labels, predicted), temperature=temperature)
    found = "".join(report.conclusions(evaluation))
    assert ("Temperature scaling reduces" in found) == helps
    text = words(Page(report.report(evaluation, **INPUTS)).text["calibration"])
    assert ("after temperature scaling" in text) == helps
    assert ("does not reduce it" in text) == (temperature == 0.5)
    assert ("No temperature was fitted" in text) == (temperature is None)


def test_other_classes_have_neutral_sentences() -> None:
    labels = np.array([0, 1, 2, 3, 3, 3] * 10)
    predicted = labels.copy()
    predicted[:2] = 1, 3
    probabilities = np.eye(4, dtype=np.float32)[predicted]
    evaluation = evaluated(labels, probabilities, classes=("a", "b", "c", "<i>d"))
    text = report.report(evaluation, **INPUTS)
    page = Page(text)
    assert "Predicted <i>d, true class b." in page.text["mistakes"]
    assert [section["id"] for section in page.all("section")] == SECTIONS
    for word in ("Fashion", "We thought", "shoe", "idx3"):
        assert word not in text


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
    text = page_of(evaluated(labels, probabilities, temperature=temperature))
    page = Page(text)
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
    wrong = (probabilities.argmax(1) != labels).sum()
    assert len([card for card in page.all("li") if "data-true" in card]) == wrong
    absent = set(CLASSES) - {CLASSES[label] for label in labels}
    assert ("There are no images of" in page.text["classes"]) == bool(absent)


def test_perfect_model_has_no_mistakes_to_show() -> None:
    labels = np.arange(200) % 10
    page = Page(page_of(evaluated(labels, perfect(labels))))
    assert "all 200 images were classified correctly" in words(page.text["mistakes"])
    assert "No two classes were confused" in page.text["pairs"]
    assert "None" in page.text["labels"]
    assert not page.all("form")


def test_bare_run_has_its_page() -> None:
    page = Page(page_of(history={}, run_metrics={}, configuration="", name=""))
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert "No learning curves were recorded" in page.text["learning"]


def test_reported_epoch_is_marked_only_where_it_is_known() -> None:
    known = Page(page_of()).text["learning"]
    assert "marks epoch 2" in known
    assert "epoch (reported: 2)" in known
    unknown = Page(page_of(run_metrics={"best_epoch": 9})).text["learning"]
    assert "marks" not in unknown
    losses = {key: HISTORY[key] for key in ("epoch", "val/loss")}
    page = Page(page_of(history=losses))
    assert "Loss" in page.text["learning"]
    assert "Accuracy" not in page.text["learning"]


def test_pictures_carry_their_name() -> None:
    page = Page(page_of())
    images = page.all("img")
    assert len(images) > 10
    assert {image["alt"] for image in images[:10]} == {""}  # the caption beside it says it
    assert "Shirt, image 1006" in {image["alt"] for image in images}
    drawings = [svg for svg in page.all("svg") if "role" in svg]
    assert len(drawings) == 5
    assert all(svg["aria-label"] for svg in drawings)


def test_drawings_follow_the_pages_colours() -> None:
    (section,) = re.findall(r'<section id="learning".*?</section>', page_of(), re.DOTALL)
    assert 'stroke="var(--accent)"' in section
    assert not re.findall("#[0-9a-fA-F]{6}", section)
    assert ">validation</text>" in section


def test_page_of_a_thousand_mistakes_stays_below_two_megabytes() -> None:
    """Pictures of even noise cannot be compressed, so these are worse than any real ones."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 10_000)
    predicted = np.where(np.arange(10_000) < 1000, (labels + 1) % 10, labels)
    evaluation = evaluated(
        labels,
        confident(labels, predicted),
        images=random.integers(0, 256, (10_000, 28, 28), np.uint8),
    )
    assert len(page_of(evaluation).encode()) < 2.3e6


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        report.render("report.html", evaluation=typical())


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
        page_of(evaluated(labels, confident(labels, predicted))),
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
