"""One HTML page about one run: a single file that asks nothing of any network.

The frame is report.html, its looks report.css and the filter of its gallery report.js, all beside
this module and copied into every page. The sections are made here, in the order of the page.
Whatever came from a file or a command line goes through `html.escape`, and the page's
content-security policy allows this style sheet, this script and pictures within the page alone.
"""

import base64
import hashlib
import html
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float32, Int, Int64, UInt8
from matplotlib.figure import Figure
from PIL import Image

from fashion.data.datamodule import CLASSES
from fashion.report import figures, metrics
from fashion.report.figures import NOUNS, THIN
from fashion.report.metrics import ClassScore, Interval

# What a poor model would make endless is cut off here, and the page says so.
MISTAKES_SHOWN = 1000
SUSPECTS_SHOWN = 48
PAIRS_SHOWN = 10
HEATS = 7  # shades of an error in report.css

PLURALS = (
    "T-shirts",
    "trousers",
    "pullovers",
    "dresses",
    "coats",
    "sandals",
    "shirts",
    "sneakers",
    "bags",
    "ankle boots",
)
# The two groups that are hard to tell apart within themselves.
TOPS, FOOTWEAR = (0, 2, 4, 6), (5, 7, 9)
Split = Literal["validation", "test"]
FILES = {"validation": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


def page(
    *,
    name: str,
    run_metrics: Mapping[str, Any],
    configuration: str,
    history: figures.History,
    split: Split,
    labels: Int64[np.ndarray, " n"],
    probabilities: Float32[np.ndarray, "n 10"],
    images: UInt8[np.ndarray, "n 28 28"],
    indices: Int[np.ndarray, " n"],
    examples: UInt8[np.ndarray, "10 28 28"],
    temperature: float | None,
    epoch_chosen: bool,
) -> str:
    """The report of one run on one split, of at least one picture.

    Args:
        name: of the run; the page's title.
        run_metrics: metrics.json; what is missing there is missing in the page.
        configuration: as YAML.
        history: of the training; empty where nothing was recorded.
        split: "validation" or "test".
        labels: the true classes.
        probabilities: what the run answered.
        images: the pictures, light on black as the dataset has them.
        indices: the pictures' positions in the split's official file, from 0.
        examples: a picture of each class, in order.
        temperature: fitted on the validation split; None where none was.
        epoch_chosen: by accuracy on the validation split; otherwise it is the last.
    """
    answers = Answers(split, labels, probabilities, images, indices)
    calibrated = None
    if temperature is not None:
        scaled = metrics.apply_temperature(probabilities, temperature)
        calibrated = replace(answers, probabilities=scaled)
    drawing = Drawing()
    sections = (
        ("run", "The run", _run(run_metrics, configuration)),
        ("result", "Result", _result(answers, epoch_chosen=epoch_chosen)),
        ("learning", "Learning curves", _learning(history, run_metrics.get("best_epoch"), drawing)),
        ("confusion", "Confusion matrix", _confusion(answers)),
        ("classes", "Classes, hardest first", _classes(answers, drawing)),
        ("pairs", "Most confused pairs", _pairs(answers)),
        ("mistakes", "Mistakes", _mistakes(answers)),
        ("labels", "Suspicious labels", _suspicious(answers)),
        ("calibration", "Calibration", _calibration(answers, calibrated, temperature, drawing)),
        ("conclusions", "Conclusions", _conclusions(answers, calibrated)),
    )
    title = f"{name}: report on Fashion-MNIST"
    return frame(title, _header(name, examples), sections, script=_beside("report.js"))


def frame(
    title: str, header: str, sections: Iterable[tuple[str, str, str]], *, script: str = ""
) -> str:
    """A whole page, which may load nothing and run this script alone.

    Args:
        title: plain text.
        header: HTML.
        sections: of each its id, its title and its body, the last two HTML.
        script: JavaScript.
    """
    style = _beside("report.css")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    sections = list(sections)
    return Template(_beside("report.html")).substitute(
        policy=policy,
        title=html.escape(title),
        style=style,
        header=header,
        contents="\n".join(
            f'<li><a href="#{key}">{key.capitalize()}</a>' for key, _, _ in sections
        ),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-title">\n'
            f'<h2 id="{key}-title">{title}</h2>\n{body}\n</section>'
            for key, title, body in sections
        ),
        script=script,
    )


@dataclass(frozen=True)
class Answers:
    """What a run made of a split, and what follows from that alone."""

    split: Split
    labels: Int64[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n 10"]
    images: UInt8[np.ndarray, "n 28 28"]
    indices: Int[np.ndarray, " n"]

    @cached_property
    def predicted(self) -> Int64[np.ndarray, " n"]:
        predicted: np.ndarray = self.probabilities.argmax(axis=1)
        return predicted

    @cached_property
    def mistakes(self) -> Int[np.ndarray, " mistakes"]:
        """Positions, the most confident first."""
        return figures.mistakes_by_confidence(self.labels, self.probabilities)

    @cached_property
    def scores(self) -> dict[str, float]:
        return metrics.scores(self.labels, self.probabilities)

    @cached_property
    def counts(self) -> Int[np.ndarray, "10 10"]:
        """The confusion matrix: rows are true classes."""
        return metrics.confusion(self.labels, self.probabilities)

    @cached_property
    def pairs(self) -> list[metrics.ConfusedPair]:
        return metrics.confused_pairs(self.labels, self.probabilities)

    @cached_property
    def hardest_first(self) -> list[ClassScore]:
        """By F1, the classes that there are pictures of."""
        scores = metrics.class_scores(self.labels, self.probabilities)
        return sorted((score for score in scores if score.support), key=lambda score: score.f1)

    def picture(self, position: int) -> str:
        alternative = f"{CLASSES[self.labels[position]]}, picture {self.indices[position]}"
        return _picture(self.images[position], alternative)


def suspicious_labels(
    labels: Int64[np.ndarray, " n"], probabilities: Float32[np.ndarray, "n 10"]
) -> Int[np.ndarray, " suspects"]:
    """Positions of confident disagreement, the widest gap to the label's probability first.

    A picture counts if its answer is not its label, and is at least as sure as the model is, on
    average, of that class in the pictures labelled with it: the thresholds of confident learning
    (Northcutt, Jiang & Chuang 2021), which a model that is too sure of itself raises by itself.
    """
    usual = np.array(
        [
            probabilities[labels == label, label].mean() if (labels == label).any() else np.inf
            for label in range(10)
        ]
    )
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    found = np.flatnonzero((predicted != labels) & (confidence >= usual[predicted]))
    gap = confidence[found] - probabilities[found, labels[found]]
    return found[np.argsort(-gap, kind="stable")]


def conclusions(answers: Answers) -> list[str]:
    """What the numbers say in words, and nothing that they do not.

    One class is called harder than another only where their 95{THIN}% intervals of F1 lie apart.
    """
    total, wrong, scores = len(answers.labels), len(answers.mistakes), answers.scores
    interval = _interval(Interval(scores["acc_low"], scores["acc_high"]))
    said = [
        (
            f"{_percent(scores['acc'])} of the {total:,} {answers.split} pictures were answered "
            f"right; the accuracy on pictures like these is {interval} (95{THIN}% interval)."
        )
    ]
    given = np.unique(answers.predicted)
    if len(given) == 1:
        return [
            *said,
            (
                f"Every picture got the same answer, {NOUNS[given[0]]}: these numbers cannot say "
                "which class is hard or easy."
            ),
        ]
    present = {score.label for score in answers.hardest_first}
    if never := sorted(present - set(given.tolist())):
        said.append(f"It never answered {_and(CLASSES[label] for label in never)}.")
    tops, footwear = (
        [score for score in answers.hardest_first if score.label in group]
        for group in (TOPS, FOOTWEAR)
    )
    said += standing(tops, "among the tops", "hardest", "lowest", "below")
    said += standing(footwear, "among the footwear", "hardest", "lowest", "below")
    said += standing(answers.hardest_first[::-1], "of all classes", "easiest", "highest", "above")
    if wrong:
        within = []
        for group, words in ((TOPS, "one top for another"), (FOOTWEAR, "one shoe for another")):
            block = answers.counts[np.ix_(group, group)]
            mixed = int(block.sum() - block.trace())
            within.append(f"{mixed:,} ({_percent(mixed / wrong)}) took {words}")
        said.append(f"Of {_count(wrong, 'mistake')}, {_and(within)}.")
        most, *rest = answers.pairs
        if not rest or sum(most[2:]) > sum(rest[0][2:]):
            first, second = PLURALS[most.first], PLURALS[most.second]
            said.append(
                f"Most often confused were {first} and {second}: {most.first_as_second:,} {first} "
                f"were taken for {second}, {most.second_as_first:,} {second} for {first}."
            )
    return said


def standing(ranked: list[ClassScore], where: str, word: str, degree: str, side: str) -> list[str]:
    """A sentence on the first of some classes, ranked by F1; none where there are no two.

    So `standing(footwear, "among the footwear", "hardest", "lowest", "below")`.
    """
    if len(ranked) < 2:  # noqa: PLR2004
        return []
    first, *others = ranked
    name = PLURALS[first.label]
    name = name[0].upper() + name[1:]
    figure = f"{_percent(first.f1)} ({_interval(first.f1_interval)})"
    close = [
        other
        for other in others
        if other.f1_interval.low <= first.f1_interval.high
        and first.f1_interval.low <= other.f1_interval.high
    ]
    last = others[-1]
    if first.f1 == last.f1:
        return [f"No class is the {word} {where}: F1 is {_percent(first.f1)} for each."]
    if not close:
        return [f"{name} are the {word} {where}: F1 {figure}, {side} every other interval."]
    if len(close) < len(others):
        overlapped = _and(PLURALS[other.label] for other in close)
        said = (
            f"{name} have the {degree} F1 {where}, {figure}, an interval that overlaps "
            f"{'that' if len(close) == 1 else 'those'} of {overlapped}: "
            f"the intervals alone do not tell which class is the {word}."
        )
    else:
        said = (
            f"Which class is the {word} {where} the intervals alone do not tell: F1 goes from "
            f"{_percent(first.f1)} ({PLURALS[first.label]}) to {_percent(last.f1)} "
            f"({PLURALS[last.label]}), and every interval overlaps the first."
        )
    return [said]


# The sections, in the page's order.


def _header(name: str, examples: UInt8[np.ndarray, "10 28 28"]) -> str:
    items = "\n".join(
        f"<li>{_picture(image, '')}{html.escape(label)}"
        for label, image in zip(CLASSES, examples, strict=True)
    )
    return f"""<p class="kicker">Fashion-MNIST report</p>
<h1>{html.escape(name)}</h1>
<p class="lead">Which of ten kinds of product does a picture of 28 &times; 28 grey pixels show?
Fashion-MNIST has 60,000 to learn from and 10,000 to be tested on. One of each class:</p>
<ul class="examples">
{items}
</ul>"""


def _run(run_metrics: Mapping[str, Any], configuration: str) -> str:
    rows = {"Seed": run_metrics.get("seed"), "Epoch": run_metrics.get("best_epoch")}
    if "epochs" in run_metrics:
        rows["Epoch"] = f"{rows['Epoch']} of {run_metrics['epochs']}"
    if isinstance(seconds := run_metrics.get("seconds"), int | float):
        rows["Training"] = f"{seconds / 60:,.1f} minutes"
    for title, key in (("Pictures a second", "images_per_second"), ("Parameters", "parameters")):
        if key in run_metrics:
            rows[title] = _number(run_metrics[key])
    rows["Machine"] = run_metrics.get("machine")
    if commit := run_metrics.get("commit"):
        changed = ", with uncommitted changes" if run_metrics.get("clean") is False else ""
        rows["Commit"] = f"{commit}{changed}"
    if isinstance(versions := run_metrics.get("versions"), Mapping):
        rows["Versions"] = ", ".join(f"{package} {number}" for package, number in versions.items())
    facts = "\n".join(
        f"<dt>{key}<dd>{html.escape(str(row))}" for key, row in rows.items() if row is not None
    )
    everything = html.escape(json.dumps(dict(run_metrics), indent=2, default=str))
    return f"""<div class="run">
<div>
<dl class="facts">
{facts}
</dl>
<details><summary>All of metrics.json</summary>
<pre class="wrap">{everything}</pre>
</details>
</div>
<pre tabindex="0" role="region" aria-label="Configuration">{html.escape(configuration)}</pre>
</div>"""


def _result(answers: Answers, *, epoch_chosen: bool) -> str:
    scores, total = answers.scores, len(answers.labels)
    right = total - len(answers.mistakes)
    interval = _interval(Interval(scores["acc_low"], scores["acc_high"]))
    tiles = "\n".join(
        f"<div><dt>{key}<dd>{value}</div>"
        for key, value in {
            "Among the likeliest two": _percent(scores["top2"]),
            "Macro precision": _percent(scores["precision"]),
            "Macro recall": _percent(scores["recall"]),
            "Macro F1": _percent(scores["f1"]),
            "Loss": f"{scores['loss']:.3f}",
            "Calibration error": _percent(scores["ece"]),
        }.items()
    )
    fairness = "These pictures took no part in the training, nor in the choice of the epoch."
    if epoch_chosen and answers.split == "validation":
        fairness = (
            "The epoch was chosen on these very pictures, so expect slightly less of "
            "pictures that the run has never seen."
        )
    return f"""<p class="headline"><strong>{_percent(scores["acc"])}</strong>
<span>{right:,} of {total:,} {answers.split} pictures answered right.<br>
95{THIN}% interval: {interval} (Wilson).</span></p>
<dl class="tiles">
{tiles}
</dl>
<p class="note">{fairness}</p>"""


def _learning(history: figures.History, best_epoch: object, drawing: "Drawing") -> str:
    if not history.get("epoch"):
        return "<p>No learning curves were recorded.</p>"
    best = best_epoch if isinstance(best_epoch, int) and best_epoch in history["epoch"] else None
    quantities: tuple[Literal["acc", "loss"], ...] = ("acc", "loss")
    charts = "\n".join(
        drawing(
            figures.learning_curve(history, quantity, best),
            f"{title} of training and of validation in {_count(len(history['epoch']), 'epoch')}.",
        )
        for quantity, title in zip(quantities, ("Accuracy", "Loss"), strict=True)
        if any(history.get(f"{split}/{quantity}") for split in ("train", "val"))
    )
    marked = (
        "" if best is None else f"The dotted line marks epoch {best}, which this page is about. "
    )
    return f"""<div class="figures">
{charts}
</div>
<p class="note">{marked}Training's figures are taken while the epoch runs, with dropout and
augmentation where the run uses them; validation's at its end, without.</p>"""


def _confusion(answers: Answers) -> str:
    shares, strength = (
        function(answers.counts).tolist()
        for function in (figures.row_shares, figures.error_strength)
    )
    counts = answers.counts.tolist()
    shown = answers.mistakes[:MISTAKES_SHOWN]
    linked = set(zip(answers.labels[shown], answers.predicted[shown], strict=True))

    def cell(true: int, predicted: int) -> str:
        count = counts[true][predicted]
        if not count:
            return '<td class="none">·'
        text = f"{count:,}<small>{_percent(shares[true][predicted])}</small>"
        if true == predicted:
            return f'<td class="right"><span>{text}</span>'
        heat = math.ceil(strength[true][predicted] * HEATS)
        if (true, predicted) in linked:
            return f'<td class="e{heat}"><a href="#{_address(true, predicted)}">{text}</a>'
        return f'<td class="e{heat}"><span>{text}</span>'

    columns = "".join(f'<th scope="col">{name.replace("/", "/<wbr>")}' for name in CLASSES)
    rows = "\n".join(
        f'<tr><th scope="row">{name}' + "".join(cell(true, predicted) for predicted in range(10))
        for true, name in enumerate(CLASSES)
    )
    return f"""<p>A row holds the pictures of one class, a column those that got one answer. Below
each count stands its share of the row. Only mistakes are coloured; a click on one leads to
its pictures.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">
<table class="matrix">
<thead><tr><td>{columns}</thead>
<tbody>
{rows}
</tbody>
</table>
</div>"""


def _classes(answers: Answers, drawing: "Drawing") -> str:
    def cell(value: float, interval: Interval) -> str:
        return f"<td>{_percent(value)}<small>{_interval(interval)}</small>"

    rows = "\n".join(
        f'<tr><th scope="row">{CLASSES[score.label]}'
        + cell(score.f1, score.f1_interval)
        + cell(score.precision, score.precision_interval)
        + cell(score.recall, score.recall_interval)
        + f'<td class="number">{score.support:,}'
        for score in answers.hardest_first
    )
    present = {score.label for score in answers.hardest_first}
    absent = [name for label, name in enumerate(CLASSES) if label not in present]
    missing = f" There are no pictures of {_and(absent)}." if absent else ""
    chart = drawing(
        figures.class_intervals(answers.hardest_first),
        "F1, precision and recall of each class with their 95{THIN}% intervals, as in the table.",
    )
    return f"""<p>Sorted by F1. Precision is the share of right ones among the pictures that got the
answer, recall among the pictures of the class; each with its 95{THIN}% interval.{missing}</p>
<div class="figures single">
{chart}
</div>
<div class="scroll" tabindex="0" role="region" aria-label="Classes, hardest first">
<table class="listing">
<thead><tr><th scope="col">Class<th scope="col">F1<th scope="col">Precision<th scope="col">Recall
<th scope="col" class="number">Pictures</thead>
<tbody>
{rows}
</tbody>
</table>
</div>"""


def _pairs(answers: Answers) -> str:
    if not answers.pairs:
        return "<p>No two classes were confused.</p>"
    most = max(max(pair.first_as_second, pair.second_as_first) for pair in answers.pairs)

    def way(true: int, predicted: int, count: int) -> str:
        return (
            f"<td>{PLURALS[true]} taken for {PLURALS[predicted]}"
            f'<td class="number">{count:,}<td class="bar">{_bar(count / most)}'
        )

    rows = "\n".join(
        f'<tr><th scope="rowgroup" rowspan="2">{CLASSES[pair.first]} and {CLASSES[pair.second]}'
        f'<td rowspan="2" class="number">{pair.first_as_second + pair.second_as_first:,}'
        f"{way(pair.first, pair.second, pair.first_as_second)}"
        f"<tr>{way(pair.second, pair.first, pair.second_as_first)}"
        for pair in answers.pairs[:PAIRS_SHOWN]
    )
    left = len(answers.pairs) - PAIRS_SHOWN
    rest = f'<p class="note">{left} more pairs were confused less often.</p>' if left > 0 else ""
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Most confused pairs">
<table class="listing pairs">
<thead><tr><th scope="col">Pair<th scope="col" class="number">Both ways<th scope="col">One way
<th scope="col" class="number">Pictures<td></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
{rest}"""


def _mistakes(answers: Answers) -> str:
    total = len(answers.mistakes)
    if not total:
        return f"<p>None: all {len(answers.labels):,} pictures were answered right.</p>"
    shown = answers.mistakes[:MISTAKES_SHOWN].tolist()
    anchors = set()
    cards = []
    for position in shown:
        true, predicted = int(answers.labels[position]), int(answers.predicted[position])
        # The first of its kind is where the matrix's link leads when no script filters.
        anchor = f' id="{_address(true, predicted)}"' if (true, predicted) not in anchors else ""
        anchors.add((true, predicted))
        sentence = figures.mistake_sentence(predicted, true)
        likeliest = _likeliest(answers.probabilities[position].tolist(), true)
        cards.append(
            f'<li{anchor} data-true="{true}" data-predicted="{predicted}">'
            f"<figure>{answers.picture(position)}"
            f"<figcaption>{answers.indices[position]}</figcaption></figure>"
            f"<div><p>{sentence}</p><ol>{likeliest}</ol></div>"
        )
    options = "".join(f'<option value="{label}">{name}' for label, name in enumerate(CLASSES))
    cut = (
        f"The {len(shown):,} most confident of {total:,} mistakes"
        if len(shown) < total
        else f"{'All ' if total > 1 else ''}{_count(total, 'mistake')}"
    )
    return f"""<p>{cut}, the most confident first. Below each sentence stand the three likeliest
classes, and the label's if it is none of them; the number under a picture is its
{_place(answers.split)}.</p>
<form id="filter" hidden>
<label>It was <select name="true"><option value="">anything{options}</select></label>
<label>We thought <select name="predicted"><option value="">anything{options}</select></label>
<button type="reset">All mistakes</button>
<output></output>
</form>
<ol class="gallery" id="gallery">
{chr(10).join(cards)}
</ol>
<button id="more" hidden>Show more</button>"""


def _likeliest(probabilities: list[float], true: int) -> str:
    ranked = sorted(range(10), key=lambda label: -probabilities[label])
    answer = ranked[0]
    listed = ranked[:3] + [true] * (true not in ranked[:3])
    return "".join(
        f"<li{' class=answer' if label == answer else ' class=label' if label == true else ''}>"
        f"{CLASSES[label]}{_bar(probabilities[label])}<span>{_percent(probabilities[label])}</span>"
        for label in listed
    )


def _suspicious(answers: Answers) -> str:
    found = suspicious_labels(answers.labels, answers.probabilities)
    if not len(found):
        return "<p>None: nowhere does the model disagree with a label more surely than usual.</p>"
    cards = "\n".join(
        f"<li>{answers.picture(position)}<b>{answers.indices[position]}</b> "
        f"<small>{_percent(answers.probabilities[position].max().item())}</small><br>"
        f"labelled {CLASSES[answers.labels[position]]}<br>"
        f"answered {CLASSES[answers.predicted[position]]}"
        for position in found[:SUSPECTS_SHOWN].tolist()
    )
    cut = f" Here are the first {SUSPECTS_SHOWN}." if len(found) > SUSPECTS_SHOWN else ""
    numbers = ", ".join(str(index) for index in answers.indices[found])
    mistakes = _count(len(answers.mistakes), "mistake")
    return f"""<p>In {len(found):,} of {mistakes} the model was surer of its answer than it
is, on average, of pictures that bear it as their label. A wrong label is one explanation, a wrong
model the other. The widest gaps between the probabilities of answer and label come first.{cut} Each
number is a picture's {_place(answers.split)}.</p>
<ul class="suspects">
{cards}
</ul>
<details><summary>All {len(found):,} numbers</summary>
<pre class="wrap">{numbers}</pre>
</details>"""


def _calibration(
    answers: Answers, calibrated: Answers | None, temperature: float | None, drawing: "Drawing"
) -> str:
    given = {"As the model answers": answers}
    if calibrated is None:
        after = ". No temperature is fitted: that takes a validation split"
    else:
        given[f"At temperature {temperature:.3g}"] = calibrated
        same = (
            ", these same pictures, which flatters it a little"
            if answers.split == "validation"
            else ""
        )
        after = f""", and
<b>{_percent(calibrated.scores["ece"])}</b> after the logits are divided by a temperature of
{temperature:.3g}. That was fitted on the validation split{same}; it changes no answer, only how
sure the model says it is"""
    charts = "\n".join(
        drawing(
            figures.reliability_diagram(
                metrics.reliability(shown.labels, shown.probabilities), title
            ),
            f"{title}: how often answers of each confidence were right.",
        )
        for title, shown in given.items()
    )
    return f"""<p>Of the answers given with a confidence of 80{THIN}%, 80{THIN}% should be right.
The expected calibration error, the mean distance from that, is
<b>{_percent(answers.scores["ece"])}</b>{after}.</p>
<div class="figures">
{charts}
</div>
<p class="note">Points below the diagonal: surer than right. Lines are 95{THIN}% intervals; the bars
at the foot show how many answers have which confidence.</p>"""


def _conclusions(answers: Answers, calibrated: Answers | None) -> str:
    confidence = float(answers.probabilities.max(axis=1).mean())
    error = _percent(answers.scores["ece"])
    said = [
        *conclusions(answers),
        f"Its mean confidence is {_percent(confidence)}; "
        + (
            f"the expected calibration error is {error}."
            if calibrated is None
            else "temperature scaling takes the expected calibration error "
            f"from {error} to {_percent(calibrated.scores['ece'])}."
        ),
    ]
    return (
        '<ul class="words">\n' + "\n".join(f"<li>{html.escape(line)}" for line in said) + "\n</ul>"
    )


# Pieces of them.


class Drawing:
    """Turns figures into inline SVG that follows the page's colours, fonts and policy."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __call__(self, figure: Figure, alternative: str) -> str:
        buffer = io.StringIO()
        # Text stays text, and the same figure always gives the same characters.
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fashion"}):
            figure.savefig(
                buffer,
                format="svg",
                transparent=True,
                metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
            )
        # What stands before belongs to a file: a prologue, sizes in points, names of dialects.
        viewbox, body = re.split(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', buffer.getvalue())[1:]
        body = re.sub(r"<(style|metadata).*?</\1>", "", body, flags=re.DOTALL)
        body = re.sub(r'<g id="[^"]*"', "<g", body)
        # Of two figures in one page, neither may refer to the other's definitions.
        number = next(self._numbers)
        body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{number}-", body)
        # The policy forbids style attributes; SVG knows each property as an attribute of its own.
        body = re.sub(r'style="([^"]*)"', lambda match: _attributes(match[1]), body)
        for name in ("INK", "MUTED", "FAINT", "ACCENT", "PAPER"):
            body = body.replace(getattr(figures, name), f"var(--{name.lower()})")
        label = html.escape(alternative)
        return f'<figure><svg role="img" aria-label="{label}" {viewbox}>{body}</figure>'


def _attributes(style: str) -> str:
    properties = (item.split(": ", 1) for item in style.split("; "))
    return " ".join(f'{key}="{value}"' for key, value in properties if key != "font-family")


def _picture(image: UInt8[np.ndarray, "28 28"], alternative: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=9)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alternative)}">'


def _bar(share: float) -> str:
    return f'<svg><rect width="{100 * share:.1f}%" height="99"/></svg>'


def _address(true: int, predicted: int) -> str:
    """Of one kind of mistake: the filter's state, and the id of its first picture."""
    return f"true={true}&amp;predicted={predicted}"


def _place(split: Split) -> str:
    return f"position in {FILES[split]}, counted from 0"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}{THIN}%"


def _interval(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}{THIN}%"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _number(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _beside(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A source of a content-security policy: these characters, and no others."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
