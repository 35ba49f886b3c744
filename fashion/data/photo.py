"""A person's photo turned into the dataset's format, the way the dataset was made; no torch.

Xiao, Rasul & Vollgraf (2017), "Fashion-MNIST", section 2: edges within 5 % of the background's
colour are trimmed, the longest edge becomes 28, the picture is sharpened by a Gaussian of radius 1,
centred on the background, negated, and made grey. A shop's background is one light colour; a
person's is not, so here it is estimated from what most of the border shows.
"""

import os
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from scipy import ndimage

from fashion.errors import UserError

# No format more: some that Pillow reads start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
EDGE = 448  # pixels, 16 times the dataset's: a larger picture is reduced first
SIDE = 28
CLOSE = 0.05 * 255  # how near the background's colour still is background, as in the paper
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow's mode L
# All 60,000 training pictures have at least 36 % of their border within `CLOSE` of black.
BLACK_BORDER = 1 / 3
# 99 % of the training pictures are brighter on average over what is not background.
FAINT = 51


def read(path: Path) -> Image.Image:
    """A picture file as a person sees it: RGB, upright, the first frame, edges at most `EDGE`.

    Memory is bounded by Pillow's limit on the size that a file declares, 89 million pixels, which
    is checked before anything is decoded; the peak is about 1 GB.

    Raises:
        UserError: it is not a picture in one of `FORMATS`, is damaged, too large or not readable.
    """
    # Not Path's own, which raise where a folder may not be searched. A pipe would keep us waiting.
    if not os.path.isfile(path):  # noqa: PTH113
        raise UserError(f"{path} is {'not a file' if os.path.exists(path) else 'missing'}.")  # noqa: PTH110
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that Pillow can live with
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                picture.verify()  # a PNG's check sums, which decoding it does not compare
            with Image.open(path, formats=FORMATS) as picture:
                picture.draft(None, (EDGE, EDGE))  # a large JPEG is decoded at a smaller scale
                return as_seen(picture)
    except UnidentifiedImageError as error:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty.") from error
        raise UserError(
            f"{path} is not a picture that can be read; save it as one of {', '.join(FORMATS)}."
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} declares more than {Image.MAX_IMAGE_PIXELS:,} pixels; save it smaller."
        ) from error
    except Exception as error:  # Pillow raises nearly anything on a broken file
        reason = getattr(error, "strerror", None) or f"it is cut or damaged ({error})"
        raise UserError(f"{path} cannot be read: {reason}.") from error


def as_seen(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, turned as its EXIF says, its edges at most `EDGE` pixels.

    What is transparent becomes white like a shop's background, or black behind a product that
    would be `FAINT` on white. Modes I and F have no fixed range: their darkest becomes 0, their
    lightest 255.

    Raises:
        UserError: Pillow cannot show the mode.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    try:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except ValueError as error:
        raise UserError(f"Pictures of mode {picture.mode} cannot be read.") from error
    picture.thumbnail((EDGE, EDGE))
    if picture.mode == "RGBA":
        alpha = np.asarray(picture.getchannel("A"), dtype=np.float64)
        darkness = 255 - np.asarray(picture.convert("L"), dtype=np.float64)
        vanishes = (alpha * darkness).sum() < FAINT * alpha.sum()
        backdrop = Image.new("RGBA", picture.size, "black" if vanishes else "white")
        picture = Image.alpha_composite(backdrop, picture).convert("RGB")
    return picture


def prepare(picture: Image.Image) -> UInt8[np.ndarray, "28 28"]:
    """What a network sees of a picture of any mode and size: the product bright on 0.

    A 28 x 28 picture in the dataset's style, with a third of its border black, is passed as it is.
    Any other is trimmed; then what differs most from its background becomes brightest, whether it
    is darker than the background (as in a shop's photos, which the dataset negates) or lighter.

    Raises:
        UserError: nothing stands out from the background.
    """
    picture = as_seen(picture)
    if picture.size == (SIDE, SIDE):
        grey = np.array(picture.convert("L"))
        if grey.any() and (grey[_border(grey.shape)] <= CLOSE).mean() >= BLACK_BORDER:
            return grey
    pixels = np.asarray(picture, dtype=np.float64)
    background, roughness = _background(pixels)
    distance = np.abs(pixels - background).max(axis=2)
    product = _product(distance, max(CLOSE, 4 * roughness))
    ink = _ink(pixels @ LUMA, background @ LUMA, product)
    trimmed = Image.fromarray(ink[ndimage.find_objects(product.astype(np.uint8))[0]])
    width, height = (max(1, round(edge * SIDE / max(trimmed.size))) for edge in trimmed.size)
    small = trimmed.resize((width, height), Image.Resampling.LANCZOS)
    sharp = small.filter(ImageFilter.UnsharpMask(radius=1, percent=50, threshold=0))
    canvas = Image.new("L", (SIDE, SIDE))
    # An odd pixel goes to the left and to the top, as in the dataset.
    canvas.paste(sharp, ((SIDE - width + 1) // 2, (SIDE - height + 1) // 2))
    return np.array(canvas)


def is_faint(image: UInt8[np.ndarray, "28 28"]) -> bool:
    """Whether a prepared picture shows a product that hardly differs from its background.

    The dataset leaves out white products, so that no network trained on it has seen the like.
    """
    product = image > CLOSE
    return bool(image[product].sum() <= FAINT * product.sum())


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16 bits or more, or of floating point numbers, in mode L."""
    deep = picture.convert("F")
    deep.thumbnail((EDGE, EDGE))
    values = np.nan_to_num(np.asarray(deep)).astype(np.float64)
    low, high = (values.min(), values.max()) if picture.mode in ("I", "F") else (0, 65535)
    share = (values - low) / (high - low or 1)
    return Image.fromarray((255 * share).round().astype(np.uint8))


def _border(shape: tuple[int, ...]) -> Bool[np.ndarray, "height width"]:
    """The outermost pixels, a fiftieth of the shorter edge wide."""
    width = max(1, round(min(shape) / 50))
    border = np.ones(shape, dtype=bool)
    border[width:-width, width:-width] = False
    return border


def _background(
    pixels: Float[np.ndarray, "height width 3"],
) -> tuple[Float[np.ndarray, "height width 3"], float]:
    """The background's colour at each pixel, and how far from it the background itself strays.

    The colour is a quadratic surface through what most of the border shows: a wall is rarely lit
    evenly, and lenses darken corners.
    """
    border = _border(pixels.shape[:2])
    grey = pixels @ LUMA
    counts = np.bincount(grey[border].astype(int), minlength=256).astype(float)
    # The commonest level, not the median: a product may touch most of the border.
    level = ndimage.uniform_filter1d(counts, round(2 * CLOSE), mode="constant").argmax()
    plain = border & (np.abs(grey - level) <= 2 * CLOSE)
    row, column = np.indices(border.shape) / max(border.shape)
    terms = [np.ones(border.shape), row, column, row**2, row * column, column**2]
    surface = np.stack(terms, axis=-1)
    factors: Float[np.ndarray, "6 3"] = np.linalg.lstsq(surface[plain], pixels[plain])[0]
    background = (surface @ factors).clip(0, 255)
    return background, float(np.median(np.abs(pixels - background)[plain].max(axis=1)))


def _product(
    distance: Float[np.ndarray, "height width"], tolerance: float
) -> Bool[np.ndarray, "height width"]:
    """Where the picture is further from the background than `tolerance`, without specks of dust.

    Raises:
        UserError: nowhere.
    """
    parts, count = ndimage.label(ndimage.gaussian_filter(distance, sigma=1) > tolerance)
    if not count:
        raise UserError("Nothing stands out from the background.")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # what is not product
    return np.isin(parts, np.flatnonzero(sizes >= sizes.max() / 50))


def _ink(
    grey: Float[np.ndarray, "height width"],
    background: Float[np.ndarray, "height width"],
    product: Bool[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    """How far each pixel is from its background (0) to black (255), or to white if that is nearer.

    The product as a whole decides which. Dividing by the background undoes uneven light.
    """
    if (grey - background)[product].sum() > 0:
        grey, background = 255 - grey, 255 - background
    share = (1 - grey / background.clip(min=1)).clip(0, 1)
    return np.asarray(255 * share).round().astype(np.uint8)
