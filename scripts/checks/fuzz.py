"""Fuzz the readers of received files, guided by coverage; anything but a UserError is a finding.

python scripts/checks/fuzz.py idx -max_total_time=300    the reader of the dataset's files
python scripts/checks/fuzz.py photo -max_total_time=300  a person's photos
python scripts/checks/fuzz.py run -max_total_time=300    a run's files

What follows the first word is libFuzzer's. A finding is written into the working directory, and
becomes a test. atheris is no dependency of this project: uv pip install atheris
"""

import gzip
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("error: atheris is missing; uv pip install atheris")

with atheris.instrument_imports():
    import numpy as np
    from PIL import Image, ImageDraw

    from fashion.data import download as idx
    from fashion.data import photo
    from fashion.errors import UserError
    from fashion.runs.run import Run

SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-"))


def read_idx(content: bytes) -> None:
    path = SCRATCH / "idx"
    path.write_bytes(content)
    for dimensions in (1, 3):
        try:
            shape = idx.read_header(path, dimensions)
        except UserError:
            continue
        if len(content) != 4 + 4 * dimensions + int(np.prod(shape, dtype=object)):
            raise AssertionError(shape)


def read_photo(content: bytes) -> None:
    path = SCRATCH / "photo"
    path.write_bytes(content)
    try:
        image = photo.prepare(photo.read(path)).image
    except UserError:
        return
    if image.shape != (photo.SIDE, photo.SIDE) or image.dtype != np.uint8:
        raise AssertionError(image)


def read_run(content: bytes) -> None:
    """Read one of a run's files; the first byte says which one the rest is."""
    name = (".hydra/config.yaml", "metrics.json", "val.npz")[content[0] % 3 if content else 0]
    path = SCRATCH / "run" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content[1:])
    run = Run(SCRATCH / "run")
    try:
        _ = (
            run.predictions("val")
            if name == "val.npz"
            else (run.metrics if name == "metrics.json" else run.config)
        )
    except UserError:
        return


def photos() -> list[bytes]:
    picture = Image.new("RGB", (24, 32), (235, 235, 230))
    ImageDraw.Draw(picture).rectangle((6, 8, 18, 24), (20, 30, 40))
    files = []
    for mode, form in (
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("RGB", "JPEG"),
        ("RGBA", "WEBP"),
        ("P", "GIF"),
    ):
        file = io.BytesIO()
        picture.convert(mode).save(file, form)
        files.append(file.getvalue())
    return files


def files_of_a_run() -> list[bytes]:
    answers = io.BytesIO()
    np.savez(answers, labels=np.arange(3), probabilities=np.full((3, 10), 0.1, np.float32))
    data = "_target_: fashion.data.datamodule.FashionMNIST, root: data, batch_size: 32, val_size: 3"
    config = f"seed: 0\ndata: {{{data}, split_seed: 0, official: true}}\n"
    metrics = json.dumps({"val/acc": 0.9, "seconds": 3.5, "versions": {"numpy": "2"}})
    return [b"\0" + config.encode(), b"\1" + metrics.encode(), b"\2" + answers.getvalue()]


def idx_files() -> list[bytes]:
    images = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(784)
    return [images, bytes([0, 0, 8, 1, 0, 0, 0, 3]) + bytes(3), gzip.compress(images)]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "idx": (read_idx, idx_files),
    "photo": (read_photo, photos),
    "run": (read_run, files_of_a_run),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:  # noqa: PLR2004
        sys.exit(__doc__)
    target, seeds = TARGETS[sys.argv.pop(1)]
    corpus = SCRATCH / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds()):
        (corpus / f"seed{number}").write_bytes(content)
    atheris.Setup([*sys.argv, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
