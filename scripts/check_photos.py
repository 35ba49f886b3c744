"""Does a photo of a product get the answer that the dataset's own picture of it gets?

    python scripts/check_photos.py RUN [--count 1000] [--data data]

Test pictures are disguised as a person's photos, turned back by `fashion.data.photo`, and answered
beside the originals. How photos are turned back was settled on training pictures.

Writes results/photos.json.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from jaxtyping import UInt8
from PIL import Image, __version__

from fashion.data import photo
from fashion.errors import cli_errors
from fashion.report import metrics, statistics
from fashion.runs.run import Run, provenance
from fashion.training.classifier import load_classifier, predict

SEED = 0
RESULTS = Path("results/photos.json")


def disguise(image: UInt8[np.ndarray, "28 28"], random: np.random.Generator) -> Image.Image:
    """A dataset picture as a photo: large, off the centre of a light wall, unevenly lit, a JPEG.

    The product's edge is 300 to 900 pixels, the wall's 1.1 to 1.6 times that. The wall's brightness
    is 200 to 255, its tint up to 4 % a channel; light changes by up to 10 % across and down. The
    sensor's noise has a standard deviation of 2; the JPEG's quality is 30 to 90.
    """
    side = int(random.integers(300, 901))
    width, height = (int(side * random.uniform(1.1, 1.6)) for _ in range(2))
    left, top = (int(random.integers(edge - side + 1)) for edge in (width, height))
    cover = Image.new("L", (width, height))
    large = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    cover.paste(large, (left, top))
    wall = random.uniform(200, 255) * random.uniform(0.96, 1, 3)
    slope = random.uniform(-0.1, 0.1, 2)
    row, column = np.ogrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    light = (1 + slope[0] * row + slope[1] * column) * (1 - np.asarray(cover) / 255)
    pixels = light[..., np.newaxis] * wall + random.normal(0, 2, (height, width, 3))
    file = io.BytesIO()
    shot = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    shot.save(file, "JPEG", quality=int(random.integers(30, 91)))
    return Image.open(file)


def check(run: Run, count: int, data_root: Path) -> dict[str, Any]:
    """Accuracy on plain and on disguised test pictures, 0..1, and the paired difference."""
    data = instantiate(run.config.data, SEED, root=str(data_root))
    data.prepare_data()
    data.setup("test")
    random = np.random.default_rng(SEED)
    chosen = random.permutation(len(data.test))[:count]
    images, labels = data.test.images.numpy()[chosen], data.test.labels.numpy()[chosen]
    seen = np.stack([photo.prepare(disguise(image, random)) for image in images])
    network = load_classifier(run)
    plain, disguised = (
        predict(network, torch.from_numpy(pictures)).numpy() for pictures in (images, seen)
    )
    difference = statistics.bootstrap_difference(labels, disguised[None], plain[None])
    return {
        "run": str(run.folder),
        "count": len(labels),
        "seed": SEED,
        **{
            name: {
                key: value
                for key, value in metrics.scores(labels, probabilities).items()
                if key.startswith("acc")
            }
            for name, probabilities in (("plain", plain), ("disguised", disguised))
        },
        "difference": difference._asdict(),
        "same_answer": float((plain.argmax(1) == disguised.argmax(1)).mean()),
        "mean_absolute_error": float(np.abs(seen.astype(int) - images).mean()),
        "run_commit": run.metrics["commit"],
        "pillow": __version__,
        **provenance(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--count", type=int, default=1000, help="test pictures (default: 1000)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data folder")
    options = parser.parse_args()
    with cli_errors():
        result = check(Run.open(options.run), options.count, options.data)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(
            f"{result['count']:,} test pictures: {100 * result['plain']['acc']:.1f} % plain, "
            f"{100 * result['disguised']['acc']:.1f} % as photos. Written to {RESULTS}."
        )


if __name__ == "__main__":
    main()
