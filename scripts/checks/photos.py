"""Measure `fashion.predict` on synthetic photos: undisguised ones, and kinds unlike the dataset.

    python scripts/checks/photos.py RUN [--count 200] [--plain 1000] [--data DIR]

Validation images become photos, `fashion.data.photo` converts them back, and RUN predicts them.
An undisguised one is a photo as it should be: one product, upright, on a light wall. Every other
kind breaks one of these conditions; there, a prediction should be correct or carry a remark.
The threshold of detection is fitted on validation images that are not drawn here; its constants
were settled on training images (`--split train`).

Writes results/photos.json and results/photos.md.
"""

import argparse
import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, __version__
from scipy import ndimage

from fashion.data import photo
from fashion.data.datamodule import ImageSet
from fashion.errors import UserError, cli_errors
from fashion.predict import Prediction, View, predict
from fashion.report.evaluation import open_data
from fashion.report.metrics import percent, percent_range
from fashion.report.ood import Detector
from fashion.report.statistics import Labels, wilson
from fashion.runs.provenance import provenance
from fashion.runs.run import Run
from fashion.training.classifier import Classifier, load_classifier, predict_probabilities

SEED = 0
RESULTS = Path("results")
HALF = 0.5
PLAIN, TWO = "undisguised", "two different products"
GREY = Float[np.ndarray, "height width"]
Raw = UInt8[np.ndarray, "28 28"]


def placed(products: list[Raw], random: np.random.Generator) -> GREY:
    """Products side by side on an empty canvas: 0 is background, 1 what the dataset has as white.

    A product's edge is 300 to 900 pixels (their common width, if there are several), the canvas's
    1.1 to 1.6 times that; two products are 3 to 20 % of their edge apart.
    """
    side = int(random.integers(300, 901)) // len(products)
    gap = int(side * random.uniform(0.03, 0.2))
    block = Image.new("L", (side * len(products) + gap * (len(products) - 1), side))
    for position, product in enumerate(products):
        large = Image.fromarray(product).resize((side, side), Image.Resampling.BICUBIC)
        block.paste(large, (position * (side + gap), 0))
    width, height = (int(edge * random.uniform(1.1, 1.6)) for edge in block.size)
    canvas = Image.new("L", (width, height))
    left, top = (
        int(random.integers(edge - used + 1))
        for edge, used in zip((width, height), block.size, strict=True)
    )
    canvas.paste(block, (left, top))
    return np.asarray(canvas) / 255


def wall(random: np.random.Generator) -> Float[np.ndarray, "3"]:
    """A light wall's colour: brightness 200 to 255, tint up to 4 % per channel."""
    colour: np.ndarray = random.uniform(200, 255) * random.uniform(0.96, 1, 3)
    return colour


def photographed(
    colours: Float[np.ndarray, "height width 3"], random: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Colours under uneven light (up to 10 % across and down), with noise of deviation 2."""
    height, width, _ = colours.shape
    slope = random.uniform(-0.1, 0.1, 2)
    row, column = np.ogrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    light = (1 + slope[0] * row + slope[1] * column)[..., np.newaxis]
    pixels = light * colours + random.normal(0, 2, colours.shape)
    shot: np.ndarray = pixels.clip(0, 255).astype(np.uint8)
    return shot


def jpeg(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """The image after JPEG compression with a quality of 30 to 90."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(random.integers(30, 91)))
    return Image.open(file)


def shot(products: list[Raw], random: np.random.Generator) -> Image.Image:
    """Products before a light wall, without compression."""
    cover = placed(products, random)[..., np.newaxis]
    return Image.fromarray(photographed(wall(random) * (1 - cover), random))


def plain(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:  # noqa: ARG001
    return jpeg(shot([image], random), random)


def frame(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:  # noqa: ARG001
    """Within a dark frame, 8 to 60 pixels wide."""
    level = int(random.integers(0, 91))
    colour = tuple(int(level * tint) for tint in random.uniform(0.8, 1, 3))
    framed = ImageOps.expand(shot([image], random), int(random.integers(8, 61)), colour)
    return jpeg(framed, random)


def bars(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:  # noqa: ARG001
    """Between black bars above and below, or left and right, each 5 to 30 % of that edge."""
    inner = shot([image], random)
    part = random.uniform(0.05, 0.3)
    border = (
        (0, int(part * inner.height)) if random.random() < HALF else (int(part * inner.width), 0)
    )
    return jpeg(ImageOps.expand(inner, border, "black"), random)


def pair(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:  # noqa: ARG001
    """The product twice, side by side; in half of the photos the second is flipped."""
    second = image[:, ::-1] if random.random() < HALF else image
    return jpeg(shot([image, np.ascontiguousarray(second)], random), random)


def two(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:
    """Two products of different classes."""
    return jpeg(shot([image, other], random), random)


def upside_down(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:
    return plain(np.ascontiguousarray(np.rot90(image, 2)), other, random)


def on_its_side(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:
    turns = int(random.choice([1, 3]))
    return plain(np.ascontiguousarray(np.rot90(image, turns)), other, random)


def shadow(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:  # noqa: ARG001
    """With a cast shadow: the silhouette moved by 6 to 20 % of the edge, 40 to 70 % darker."""
    cover = placed([image], random)
    side = min(cover.shape) / 1.3
    angle, length = random.uniform(0, 2 * np.pi), side * random.uniform(0.06, 0.2)
    silhouette = ndimage.binary_fill_holes(cover > 0.1)  # noqa: PLR2004
    blurred = ndimage.gaussian_filter(silhouette.astype(float), side * random.uniform(0, 0.03))
    moved = ndimage.shift(blurred, (length * np.sin(angle), length * np.cos(angle)), order=1)
    # A product hides its shadow where it is opaque, which it is within its soft edge.
    opaque = ndimage.binary_erosion(silhouette, iterations=round(side / 40))
    light = 1 - random.uniform(0.4, 0.7) * moved * ~opaque
    colours = wall(random) * ((1 - cover) * light)[..., np.newaxis]
    return jpeg(Image.fromarray(photographed(colours, random)), random)


def red_on_green(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:  # noqa: ARG001
    """A red product on a green wall of the same brightness."""
    cover = placed([image], random)[..., np.newaxis]
    luma = np.array([0.299, 0.587, 0.114])
    green, red = np.array([40.0, 120, 60]), np.array([200.0, 30, 30])
    green *= random.uniform(0.8, 1.4)
    red *= (luma @ green) / (luma @ red)
    return jpeg(Image.fromarray(photographed(green * (1 - cover) + red * cover, random)), random)


def twelve_bits(image: Raw, other: Raw, random: np.random.Generator) -> Image.Image:  # noqa: ARG001
    """Values of 0 to 4,095 in a 16-bit grey PNG."""
    grey = np.asarray(shot([image], random).convert("L")).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey * 16 + random.integers(0, 16, grey.shape, np.uint16)).save(
        file, "PNG", compress_level=1
    )
    return Image.open(file)


class Model(NamedTuple):
    """What predicts and remarks."""

    run: Run
    classifier: Classifier
    detector: Detector


Kind = Callable[[Raw, Raw, np.random.Generator], Image.Image]
KINDS: dict[str, Kind] = {
    PLAIN: plain,
    "dark frame": frame,
    "bars": bars,
    "pair of the same product": pair,
    TWO: two,
    "upside down": upside_down,
    "on its side": on_its_side,
    "cast shadow": shadow,
    "red on green of equal brightness": red_on_green,
    "12-bit values in a 16-bit PNG": twelve_bits,
}


def prepared(kind: str, drawn: tuple[int, Raw, Raw]) -> photo.Prepared | None:
    """Make one photo and prepare it; None if nothing stands out in it."""
    seed, image, other = drawn
    try:
        return photo.prepare(KINDS[kind](image, other, np.random.default_rng([SEED, seed])))
    except UserError:
        return None


def measure(
    kind: str, labels: Labels, shown: list[photo.Prepared | None], model: Model
) -> dict[str, int]:
    """Count what is said of photos of one kind, `shown`, made from these images."""
    views = [View(Path(), Image.new("RGB", (1, 1)), each) for each in shown if each is not None]
    predictions = iter(predict(model.run, model.classifier, model.detector, views))
    counts = Counter(n=len(labels))
    for label, each in zip(labels, shown, strict=True):
        prediction = (
            Prediction({"nothing": 1.0}, ["refused"]) if each is None else next(predictions)
        )
        remarks = set(prediction.remarks)
        # The class of a photo of two different products cannot be predicted correctly.
        correct = kind != TWO and next(iter(prediction.top)) == model.classifier.classes[label]
        counts.update(f"remark: {remark}" for remark in remarks)
        counts["correct"] += correct
        counts["remarked"] += bool(remarks)
        counts["correct or remarked"] += correct or bool(remarks)
        counts["correct but remarked"] += correct and bool(remarks)
        counts["remarked, unsure apart"] += bool(remarks - {"unsure"})
    return dict(counts)


def check(
    run: Run,
    data_root: Path | None = None,
    *,
    split: str = "val",
    count: int = 200,
    plain_count: int = 1000,
    apply: Callable[..., Iterable[photo.Prepared | None]] = map,
) -> dict[str, Any]:
    """Measure every kind; the detector is fitted on images that are not drawn.

    Args:
        run: a finished run.
        data_root: in place of its data.root.
        split: "val" or "train", which images are drawn from.
        count: photos of each kind.
        plain_count: undisguised photos.
        apply: `map`, or that of a pool of processes.
    """
    data: Any = open_data(run, data_root)
    data.setup("validate")
    source: ImageSet = getattr(data, split)
    most = max(count, plain_count)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(SEED))
    rest = source[order[most:]]
    train, val = (data.train, rest) if split == "val" else (rest, data.val)
    drawn = source[order[:most]]
    images, labels = drawn.images.numpy(), drawn.labels.numpy()
    classifier = load_classifier(run)
    model = Model(run, classifier, Detector(classifier, train, val))
    random = np.random.default_rng(SEED)
    others = [int(random.choice(np.flatnonzero(labels != label))) for label in labels]
    draws = [(n, images[n], images[other]) for n, other in enumerate(others)]
    kinds = {}
    for kind in KINDS:
        n = plain_count if kind == PLAIN else count
        shown = list(apply(partial(prepared, kind), draws[:n]))
        kinds[kind] = measure(kind, labels[:n], shown, model)
        print(f"{kind}: {kinds[kind]}", flush=True)
    original = predict_probabilities(classifier, drawn.images[:plain_count]).numpy().argmax(axis=1)
    return {
        "run": str(run.folder),
        "split": split,
        "seed": SEED,
        "threshold_images": len(val),
        "dataset images, correct": int((original == labels[:plain_count]).sum()),
        "kinds": kinds,
        "run_commit": run.metrics["commit"],
        "pillow": __version__,
        **provenance(),
    }


def table(result: dict[str, Any]) -> str:
    """Write the results as a Markdown table."""
    kinds = result["kinds"]
    rows = [
        "| photos | n | correct | remarked | correct or remarked (95 % interval) |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind, found in kinds.items():
        n, either = found["n"], found["correct or remarked"]
        rows.append(
            f"| {kind} | {n} | {percent(found['correct'] / n)} | {percent(found['remarked'] / n)} "
            f"| {percent(either / n)} ({percent_range(wilson(either, n))}) |"
        )
    plain, source = kinds[PLAIN], {"val": "validation", "train": "training"}[result["split"]]
    false, other, original = (
        percent(value / plain["n"])
        for value in (
            plain["correct but remarked"],
            plain["remarked, unsure apart"],
            result["dataset images, correct"],
        )
    )
    return f"""# Photos unlike the dataset

`python scripts/checks/photos.py {result["run"]}`: {source} images as synthetic photos (seed
{result["seed"]}). The threshold of detection is fitted on {result["threshold_images"]:,} validation
images that are not among them.

{chr(10).join(rows)}

Of the {plain["n"]:,} undisguised photos, {false} are remarked although the prediction is correct
(false remarks); {other} carry a remark other than "unsure". Of the dataset's own images of the same
products, {original} are predicted correctly.

Made at commit {result["commit"]} ({result["machine"]}). Raw values: photos.json.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--count", type=int, default=200, help="photos per kind (default: 200)")
    parser.add_argument("--plain", type=int, default=1000, help="undisguised (default: 1000)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="in place of the run's data.root")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="drawn from")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    with cli_errors():
        run = Run.open(options.run)
        # Not forked: torch's threads would not be in the copy.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            result = check(
                run,
                options.data,
                split=options.split,
                count=options.count,
                plain_count=options.plain,
                apply=partial(pool.map, chunksize=10),
            )
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "photos.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        (options.output / "photos.md").write_text(table(result), "utf-8")
        print(table(result))


if __name__ == "__main__":
    main()
