"""HTML pages: Jinja2 templates in templates/, rendered to self-contained files.

base.html is the layout of every page, macros.html holds shared pieces, page.css the style. Values
are escaped automatically; the content-security policy allows this style sheet, the page's script
and images within the page alone.
"""

import base64
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from fashion.report import figures, metrics
from fashion.report.evaluation import FOOTWEAR, SPLITS, TOPS, Evaluation
from fashion.report.metrics import percent, percent_range
from fashion.runs.files import atomic_write
from fashion.runs.run import VIEWS, Run

TEMPLATES = Path(__file__).parent / "templates"
GOOD_ENOUGH = 0.9  # least accuracy of a model for which suspicious labels are listed
SHOWN = 1000  # largest number of mistakes on a page
HEATS = 7  # shades of an error in page.css
FILES = {"val": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


def render(template_name: str, **context: Any) -> str:
    """Render a template of templates/; a variable that `context` lacks is an error."""
    return _environment().get_template(template_name).render(context)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["source"] = lambda name: Markup(  # noqa: S704 - our own files
        (TEMPLATES / name).read_text(encoding="utf-8")
    )
    environment.filters |= {
        "thin": _thin,
        "percent": lambda value, digits=1: _thin(percent(value, digits)),
        "percent_range": lambda value, digits=1: _thin(percent_range(value, digits)),
        "png": _png,
        "hash": _hash,
        "breakable": lambda name: Markup("/<wbr>").join(name.split("/")),
    }
    return environment


def svg(figure: Figure, alternative: str) -> Markup:
    """Return a figure as inline SVG with the page's colors and fonts, allowed by its policy.

    Args:
        figure: drawn in the colors of `figures`.
        alternative: a text for screen readers, unique in the page.
    """
    buffer = io.StringIO()
    # Text stays text. The salt makes the ids of definitions unique in the page, and reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": alternative}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    viewbox, body = re.split(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', buffer.getvalue())[1:]
    body = re.sub(r"<(style|metadata).*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    # The policy forbids style attributes; each property is an attribute of SVG as well.
    body = re.sub(r'style="([^"]*)"', lambda match: _attributes(match[1]), body)
    for name in ("INK", "MUTED", "FAINT", "ACCENT", "PAPER"):
        body = body.replace(getattr(figures, name), f"var(--{name.lower()})")
    return Markup(  # noqa: S704 - made by matplotlib
        f'<figure><svg role="img" aria-label="{html.escape(alternative)}" {viewbox}>{body}</figure>'
    )


def _attributes(style: str) -> str:
    properties = (item.split(": ", 1) for item in style.split("; "))
    return " ".join(f'{key}="{value}"' for key, value in properties if key != "font-family")


def _thin(text: str) -> str:
    """Replace the space before a per-cent sign by a narrow no-break space."""
    return text.replace(" %", "\u202f%")


def _png(pixels: UInt8[np.ndarray, "height width"]) -> str:
    """Return an image as a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _hash(text: str) -> str:
    """Return a content-security-policy source that allows this text alone."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def write_report(run: Run, evaluation: Evaluation) -> Path:
    """Write a finished run's page and figures for one split into its folder; return the page.

    They are report.html and figures/NAME.png; their names end with "-test" if a run that has a
    validation split is evaluated on the test set.
    """
    suffix = "-test" if evaluation.split == "test" and run.validates else ""
    text = report(
        evaluation,
        name=f"{OmegaConf.select(run.config, 'name')}, seed {run.config.seed}",
        run_metrics=run.metrics,
        configuration=OmegaConf.to_yaml(run.config),
        history=run.history,
        epoch_chosen=run.epoch_chosen,
    )
    run.write_text(f"report{suffix}.html", text)
    for figure, png in evaluation.pngs.items():
        with atomic_write(run.folder / "figures" / f"{figure}{suffix}.png") as file:
            file.write(png)
    return run.folder / f"report{suffix}.html"


def report(
    evaluation: Evaluation,
    *,
    name: str,
    run_metrics: Mapping[str, Any],
    configuration: str,
    history: figures.History,
    epoch_chosen: bool,
) -> str:
    """Return the HTML page of one run on one split.

    Args:
        evaluation: of at least one image.
        name: of the run; the page's title.
        run_metrics: metrics.json; what is missing there is missing in the page.
        configuration: as YAML.
        history: of the training; may be empty.
        epoch_chosen: whether validation chose the reported epoch; otherwise it is the last.
    """
    labels = evaluation.labels
    best_epoch = run_metrics.get("best_epoch")
    if not isinstance(best_epoch, int) or best_epoch not in history.get("epoch", ()):
        best_epoch = None
    cards, facts = _cards(evaluation), _facts(run_metrics)
    scores = sorted(evaluation.class_scores, key=lambda score: (math.isnan(score.f1), score.f1))
    present, first = np.unique(labels, return_index=True)
    examples = dict(zip(present.tolist(), first.tolist(), strict=True))
    return render(
        "report.html",
        evaluation=evaluation,
        name=name,
        split=SPLITS[evaluation.split],
        file=FILES[evaluation.split],
        scores=evaluation.scores,
        tiles=_tiles(evaluation, run_metrics),
        conclusions=conclusions(evaluation),
        epoch_chosen=epoch_chosen,
        stopped_early=evaluation.split == "val" and ": val/" in run_metrics.get("stopped", ""),
        best_epoch=best_epoch,
        curves=_curves(history, best_epoch),
        counts=evaluation.counts.tolist(),
        fractions=figures.row_fractions(evaluation.counts).tolist(),
        heats=np.ceil(figures.error_strength(evaluation.counts) * HEATS).astype(int).tolist(),
        kinds={(card["true"], card["predicted"]) for card in cards},
        examples=[
            evaluation.images[examples[label]] if label in examples else None
            for label in range(len(evaluation.classes))
        ],
        absent=[each for label, each in enumerate(evaluation.classes) if label not in examples],
        hardest_first=[score for score in scores if score.support],
        class_chart=svg(
            figures.class_intervals([s for s in scores if s.support], evaluation.classes),
            "F1, precision and recall per class with 95 % intervals, as in the table.",
        ),
        cards=cards,
        good_enough=GOOD_ENOUGH,
        suspects=metrics.suspicious_labels(labels, evaluation.probabilities),
        reliability=_reliability(evaluation),
        facts=facts,
        cost=[
            text.format(facts[key])
            for key, text in (("Parameters", "{} parameters"), ("Training", "trained for {}"))
            if key in facts
        ],
        all_metrics=json.dumps(dict(run_metrics), indent=2, default=str),
        configuration=configuration,
    )


def _tiles(evaluation: Evaluation, run_metrics: Mapping[str, Any]) -> dict[str, str]:
    scores = evaluation.scores
    tiles = {
        "Top-2 accuracy": percent(scores["top2"]),
        "Macro precision": percent(scores["precision"]),
        "Macro recall": percent(scores["recall"]),
        "Macro F1": percent(scores["f1"]),
        "Loss": f"{scores['loss']:.3f}",
        "Calibration error": percent(scores["ece"]),
    }
    if evaluation.tta != "none":
        accuracy = evaluation.metrics[f"{evaluation.split}/acc_{evaluation.tta}"]
        tiles[f"Mean of {VIEWS[evaluation.tta]} views"] = percent(accuracy)
    own = metrics.user_metrics(run_metrics, evaluation.split)
    return tiles | {key: f"{value:.4g}" for key, value in own.items()}


def _curves(history: figures.History, best_epoch: int | None) -> list[Markup]:
    quantities: tuple[tuple[Literal["acc", "loss"], str], ...] = (
        ("acc", "Accuracy"),
        ("loss", "Loss"),
    )
    return [
        svg(
            figures.learning_curve(history, quantity, best_epoch),
            f"Training and validation {title.lower()} per epoch, {len(history['epoch'])} epochs.",
        )
        for quantity, title in quantities
        if history.get("epoch")
        and any(history.get(f"{split}/{quantity}") for split in ("train", "val"))
    ]


def _cards(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the mistakes shown; the confusion matrix links to the first of each cell."""
    cards: list[dict[str, Any]] = []
    seen = set()
    for index in evaluation.mistakes[:SHOWN].tolist():
        true, predicted = int(evaluation.labels[index]), int(evaluation.predicted[index])
        row = evaluation.probabilities[index].tolist()
        top = sorted(range(len(row)), key=lambda label: -row[label])[:3]
        top += [true] * (true not in top)
        cards.append(
            {
                "index": index,
                "true": true,
                "predicted": predicted,
                "anchor": (true, predicted) not in seen,
                "top": [(label, row[label]) for label in top],
            }
        )
        seen.add((true, predicted))
    return cards


def _reliability(evaluation: Evaluation) -> list[Markup]:
    drawn = {"As predicted": evaluation.probabilities}
    if evaluation.calibrated is not None:
        drawn[f"At temperature {evaluation.temperature:.3g}"] = evaluation.calibrated
    return [
        svg(
            figures.reliability_diagram(
                metrics.reliability(evaluation.labels, probabilities), title
            ),
            f"{title}: accuracy of the predictions per confidence.",
        )
        for title, probabilities in drawn.items()
    ]


def _facts(run_metrics: Mapping[str, Any]) -> dict[str, str]:
    facts = {"Seed": run_metrics.get("seed"), "Epoch": run_metrics.get("best_epoch")}
    if "epochs" in run_metrics:
        facts["Epoch"] = f"{facts['Epoch']} of {run_metrics['epochs']}"
    if isinstance(seconds := run_metrics.get("seconds"), int | float):
        short = seconds < 120  # noqa: PLR2004
        facts["Training"] = f"{seconds:.0f} seconds" if short else f"{seconds / 60:,.1f} minutes"
    for title, key in (("Images per second", "images_per_second"), ("Parameters", "parameters")):
        value = run_metrics.get(key)
        facts[title] = f"{value:,.0f}" if isinstance(value, int | float) else value
    facts["Machine"] = run_metrics.get("machine")
    if commit := run_metrics.get("commit"):
        changed = ", with uncommitted changes" if run_metrics.get("clean") is False else ""
        facts["Commit"] = f"{commit}{changed}"
    if isinstance(versions := run_metrics.get("versions"), Mapping):
        facts["Versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    return {key: str(value) for key, value in facts.items() if value is not None}


def conclusions(evaluation: Evaluation) -> list[str]:
    """Summarize an evaluation in a few sentences."""
    classes = evaluation.classes
    predicted = np.unique(evaluation.predicted)
    if len(predicted) == 1 < len(np.unique(evaluation.labels)):
        return [f"Every image was predicted as {classes[predicted[0]]}."]
    found = []
    present = [score for score in evaluation.class_scores if score.support]
    if never := [s.label for s in present if s.label not in predicted]:
        found.append(f"Never predicted: {', '.join(classes[label] for label in never)}.")
    if len(present) > 1:
        low, high = (pick(present, key=lambda score: score.f1) for pick in (min, max))
        if low.f1 < high.f1:
            found.append(
                f"F1 is lowest for {classes[low.label]}, {percent(low.f1)} "
                f"({percent_range(low.f1_interval)}), and highest for {classes[high.label]}, "
                f"{percent(high.f1)} ({percent_range(high.f1_interval)})."
            )
    wrong = len(evaluation.mistakes)
    if wrong and evaluation.is_fashion:
        parts = []
        for group, words in ((TOPS, "one top with another"), (FOOTWEAR, "one shoe with another")):
            block = evaluation.counts[np.ix_(group, group)]
            mixed = int(block.sum() - block.trace())
            parts.append(f"{mixed:,} ({percent(mixed / wrong)}) confuse {words}")
        found.append(f"Of {wrong:,} mistake{'' if wrong == 1 else 's'}, {' and '.join(parts)}.")
    if evaluation.pairs:
        pair = evaluation.pairs[0]
        first, second = classes[pair.first], classes[pair.second]
        found.append(
            f"Most confused: {pair.first_as_second:,} {first} predicted as {second}, "
            f"{pair.second_as_first:,} {second} as {first}."
        )
    if evaluation.temperature_helps:
        before, after = percent(evaluation.scores["ece"]), percent(evaluation.ece_scaled)
        found.append(
            f"Temperature scaling reduces the expected calibration error from {before} to {after}."
        )
    return found
