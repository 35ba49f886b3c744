"""Export a run's network with its preprocessing, for use without this project.

    python -m fashion.export RUN model.onnx     for ONNX Runtime
    python -m fashion.export RUN model.pt2      for torch.export.load

The model takes images, uint8 (n, 28, 28), 0..255, light on black, and returns probabilities,
float32 (n, classes), calibrated by the run's temperature if it has one. The names of the classes
are in the file, as JSON: in ONNX's metadata_props under "classes", in the .pt2's extra file
"classes.json". The file is written only if its predictions for 1,000 images agree with the run's.
"""

import argparse
import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fashion.errors import UserError, cli_errors, first_line
from fashion.runs.files import atomic_write, refuse_existing
from fashion.runs.run import Run

if TYPE_CHECKING:
    import torch

    from fashion.training.classifier import Classifier

CHECKED = 1000  # images
TOLERANCE = 1e-4  # of a probability; other kernels round differently, by about 1e-6
# Images, uint8 (n, 28, 28) -> probabilities, float32 (n, classes).
Predict = Callable[[np.ndarray], np.ndarray]


def onnx_file(model: "torch.nn.Module", about: dict[str, str]) -> tuple[bytes, Predict]:
    """Convert a model to ONNX.

    Args:
        model: images, uint8 (n, 28, 28) -> probabilities (n, classes).
        about: entries of metadata_props.

    Returns:
        The file's content, and a function that predicts with it in ONNX Runtime.

    Raises:
        UserError: a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"An .onnx file needs the package {package}, which is not installed: "
                "pip install 'fashion[export]'"
            ) from error
    import onnxruntime
    import torch

    program = torch.onnx.export(
        model,
        (torch.zeros(2, 28, 28, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101 - it is, with dynamo
    program.model.metadata_props.update(about)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: np.asarray(session.run(None, {"images": images})[0])


def torch_file(model: "torch.nn.Module", about: dict[str, str]) -> tuple[bytes, Predict]:
    """Convert a model to a torch.export program; arguments and result as in `onnx_file`."""
    import torch

    example = torch.zeros(2, 28, 28, dtype=torch.uint8)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{key}.json": v for key, v in about.items()})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(loaded(torch.from_numpy(images)).numpy())

    return file.getvalue(), predict


WRITERS = {".onnx": onnx_file, ".pt2": torch_file}


def export(run: Run, path: Path) -> tuple[float, int, str]:
    """Write a run's model to `path`, whose suffix names the format.

    Returns:
        The largest difference of a probability from the run's, the number of images on which it
        was measured, and what they are.

    Raises:
        UserError: the run cannot be converted to the format, a probability differs from the run's
            by more than `TOLERANCE`, or the file cannot be written.
    """
    from fashion.report.metrics import apply_temperature
    from fashion.training.classifier import load_classifier, predict_probabilities

    temperature = run.metrics.get("val/temperature", 1.0)
    classifier = load_classifier(run, run.command("export", str(path), "--trust"))
    images, kind = _images(run)
    about = {"classes": json.dumps(classifier.classes), "temperature": json.dumps(temperature)}
    try:
        with _quiet():
            model = _model(classifier, temperature)
            content, predict = WRITERS[path.suffix](model, about)
    except UserError:
        raise
    except Exception as error:  # the exporters raise nearly anything about a foreign network
        reason = first_line(error, type(error).__name__)
        name = type(classifier.network).__name__
        raise UserError(f"{name} cannot be converted to {path.suffix}: {reason}") from error
    expected = apply_temperature(predict_probabilities(classifier, images).numpy(), temperature)
    # One image alone, then the others: the number of images must not be fixed in the file.
    parts = [predict(part.numpy()) for part in (images[:1], images[1:])]
    difference = float(np.abs(np.concatenate(parts) - expected).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path} was not written: its probabilities differ from the run's by up to "
            f"{difference:.2g} on {len(images):,} {kind}; {TOLERANCE:g} is allowed."
        )
    with atomic_write(path) as file:
        file.write(content)
    return difference, len(images), kind


def _model(classifier: "Classifier", temperature: float) -> "torch.nn.Module":
    from torch import Tensor, nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(images)
            return (logits / temperature).softmax(1)

    return Model().eval().requires_grad_(requires_grad=False)


def _images(run: Run) -> tuple["torch.Tensor", str]:
    """Return images to check a file on, random if the run's data is missing, and what they are."""
    import torch

    from fashion.report.evaluation import open_data

    with contextlib.suppress(UserError):
        data = open_data(run)
        data.setup("validate")
        parts = [part.images[:CHECKED] for part in (data.val, data.train)]
        return torch.cat(parts)[:CHECKED], "images"
    generator = torch.Generator().manual_seed(0)
    shape = (CHECKED, 28, 28)
    random = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return random, "random images (the run's data is not here)"


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress the exporters' log messages and warnings."""
    logging.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("file", type=Path, metavar="FILE", help="FILE.onnx or FILE.pt2")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="build the classes that the run names, whatever they do",
    )
    options = parser.parse_args()
    with cli_errors():
        if options.file.suffix not in WRITERS:
            raise UserError(f"{options.file}: the file's name must end with .onnx or .pt2.")
        refuse_existing([options.file], force=options.force)
        run = Run.open(options.run, trust=options.trust)
        run.metrics  # noqa: B018 - an unfinished run is refused before slow imports
        difference, count, kind = export(run, options.file)
    print(
        f"{options.file}, {options.file.stat().st_size / 1e6:.1f} MB: images, uint8 (n, 28, 28) -> "
        f"probabilities.\nLargest difference of a probability from the run's: {difference:.1g}, on "
        f"{count:,} {kind}."
    )


if __name__ == "__main__":
    main()
