"""A person's photo turned into the dataset's format, the way the dataset was made; no torch.

Xiao, Rasul & Vollgraf (2017), "Fashion-MNIST", section 2: edges within 5 % of the background's
colour are trimmed, the longest edge becomes 28, the picture is sharpened by a Gaussian of radius 1,
centred on the background, negated, and made grey. A shop's background is one light colour; a
person's is not, so here it is estimated from what most of the border shows.
"""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

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
DARK = 64  # an image without a lighter pixel is stretched
FRAMES = 3  # at most, one within the other
STRAIGHT = 0.9  # of a frame's side
SOFT = 3  # pixels between a frame and what it holds, after blurring
PLAIN_BORDER = 0.75  # of what a frame holds


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


class Prepared(NamedTuple):
    """A photo in the dataset's format, and what in it is unlike the dataset."""

    image: UInt8[np.ndarray, "28 28"]
    several: bool  # other products were in the photo; the largest is shown
    faint: bool  # the product hardly differs from its background, as a white one on white


def prepare(picture: Image.Image) -> Prepared:
    """Convert an image of any mode and size to the dataset's format: the product bright on 0.

    A 28 x 28 image in the dataset's style, with a third of its border black, is returned as it is.
    Any other loses plain bars and frames, then all that is far from its largest product; then what
    differs most from the background becomes brightest, whether it is darker than the background
    (as in a shop's photos, which the dataset negates), lighter, or of another colour.

    Raises:
        UserError: nothing stands out from the background.
    """
    picture = as_seen(picture)
    if picture.size == (SIDE, SIDE):
        grey = np.array(picture.convert("L"))
        if grey.any() and (grey[_border(grey.shape)] <= CLOSE).mean() >= BLACK_BORDER:
            return Prepared(grey, several=False, faint=_is_faint(grey))
    pixels = _without_frame(_stretched(np.asarray(picture, dtype=np.float64)))
    background, roughness = _background(pixels)
    distance = np.abs(pixels - background).max(axis=2)
    product, several = _product(distance, max(CLOSE, 4 * roughness))
    ink = _ink(pixels, background, product)
    trimmed = Image.fromarray(ink[ndimage.find_objects(product.astype(np.uint8))[0]])
    width, height = (max(1, round(edge * SIDE / max(trimmed.size))) for edge in trimmed.size)
    small = trimmed.resize((width, height), Image.Resampling.LANCZOS)
    sharp = small.filter(ImageFilter.UnsharpMask(radius=1, percent=50, threshold=0))
    canvas = Image.new("L", (SIDE, SIDE))
    # An odd pixel goes to the left and to the top, as in the dataset.
    canvas.paste(sharp, ((SIDE - width + 1) // 2, (SIDE - height + 1) // 2))
    image = np.array(canvas)
    return Prepared(image, several, faint=_is_faint(image))


def _is_faint(image: UInt8[np.ndarray, "28 28"]) -> bool:
    """Return whether the product hardly differs from its background.

    The dataset leaves out white products, so that no network trained on it has seen one.
    """
    product = image > CLOSE
    return bool(image[product].sum() <= FAINT * product.sum())


def _stretched(pixels: Float[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    """A nearly black image over the full range: 12-bit colours in a 16-bit file are read as this."""
    lightest = pixels.max()
    return pixels * (255 / lightest) if 0 < lightest < DARK else pixels


def _without_frame(
    pixels: Float[np.ndarray, "height width 3"],
) -> Float[np.ndarray, "height width 3"]:
    """The image without the plain bars along its edges and the plain frames around it."""
    for _ in range(FRAMES):
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        inner = next((box for edge in edges if (box := _inside(pixels, edge)) is not None), None)
        if inner is None:
            break
        pixels = pixels[inner]
    return pixels


def _inside(
    pixels: Float[np.ndarray, "height width 3"], edge: Float[np.ndarray, "length 3"]
) -> tuple[slice, slice] | None:
    """What a bar or frame of an outermost line's colour leaves; None if that line is in none.

    What is left by a frame is a rectangle: each of its four sides is straight, and not of the
    frame's colour nearly all along. A product's sides hardly ever are, and what is between them
    does not look like a product before a background of its own.
    """
    colour = np.median(edge, axis=0)
    if (np.abs(edge - colour).max(axis=1) <= CLOSE).mean() < STRAIGHT:
        return None
    other = ndimage.gaussian_filter(np.abs(pixels - colour).max(axis=2), sigma=1) > CLOSE
    parts, count = ndimage.label(other)
    if not count:
        return None
    largest = 1 + int(np.bincount(parts.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    # Without the soft transition between the two.
    box = tuple(
        slice(
            part.start + SOFT * (part.start > 0), part.stop - SOFT * (part.stop < length)
        )
        for part, length in zip((rows, columns), other.shape, strict=True)
    )
    inner = other[box]
    if inner.shape == other.shape or min(inner.shape) < SIDE:
        return None
    straight = min(side.mean() for side in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))
    return (box[0], box[1]) if straight >= STRAIGHT and _has_background(pixels[box]) else None


def _has_background(pixels: Float[np.ndarray, "height width 3"]) -> bool:
    """Return whether most of the border shows one smooth surface."""
    background, _ = _background(pixels)
    border = _border(pixels.shape[:2])
    near = np.abs(pixels - background).max(axis=2)[border] <= CLOSE
    return bool(near.mean() >= PLAIN_BORDER)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16 bits or more, or of floating point numbers, in mode L.

    A 16-bit file holds 12-bit values as often as not. Its range ends at the power of two above
    its lightest value, so that the ratio of two brightnesses is kept; where the values fill less
    than an eighth of that range, at its darkest and lightest value, as in the modes I and F.
    """
    deep = picture.convert("F")
    deep.thumbnail((EDGE, EDGE))
    values = np.nan_to_num(np.asarray(deep)).astype(np.float64)
    low, high = values.min(), values.max()
    full = 2 ** int(high).bit_length() - 1 if picture.mode.startswith("I;16") else 0
    if high - low >= full / 8 > 0:
        low, high = 0, full
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
    common = border & (np.abs(grey - level) <= 2 * CLOSE)
    # Of these, what has their colour: a product may be as bright as its background.
    colour = np.median(pixels[common], axis=0)
    near = common & (np.abs(pixels - colour).max(axis=2) <= 2 * CLOSE)
    plain = near if near.any() else common
    row, column = np.indices(border.shape) / max(border.shape)
    terms = [np.ones(border.shape), row, column, row**2, row * column, column**2]
    surface = np.stack(terms, axis=-1)
    factors: Float[np.ndarray, "6 3"] = np.linalg.lstsq(surface[plain], pixels[plain])[0]
    background = (surface @ factors).clip(0, 255)
    return background, float(np.median(np.abs(pixels - background)[plain].max(axis=1)))


def _product(
    distance: Float[np.ndarray, "height width"], tolerance: float
) -> tuple[Bool[np.ndarray, "height width"], bool]:
    """Where the largest product is, without specks of dust, and whether there are others.

    What is further from the background than `tolerance` may fall apart, as a sandal's straps do:
    of 600 training images made into photos, none into two parts beside or above each other of
    which the smaller had a tenth of the larger's area. Those are two products.

    Raises:
        UserError: nothing is further from the background.
    """
    parts, count = ndimage.label(ndimage.gaussian_filter(distance, sigma=1) > tolerance)
    if not count:
        raise UserError("Nothing stands out from the background.")
    sizes = np.bincount(parts.ravel())[1:]
    boxes = ndimage.find_objects(parts)
    largest = boxes[int(sizes.argmax())]
    apart = np.array(
        [
            any(a.stop <= b.start or b.stop <= a.start for a, b in zip(box, largest, strict=True))
            for box in boxes
        ]
    )
    several = bool((apart & (sizes >= sizes.max() / 10)).any())
    kept = sizes >= sizes.max() / 50
    if several:
        kept &= ~apart
    return np.isin(parts, 1 + np.flatnonzero(kept)), several


def _ink(
    pixels: Float[np.ndarray, "height width 3"],
    background: Float[np.ndarray, "height width 3"],
    product: Bool[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    """How far each pixel is from its background (0) to black (255), or to white if that is nearer.

    The product as a whole decides which. Dividing by the background undoes uneven light. Where
    that is faint, and the colour is not, it is how far the colour is from the background's,
    against the furthest there is.
    """
    grey, light = pixels @ LUMA, background @ LUMA
    if (grey - light)[product].sum() > 0:
        grey, light = 255 - grey, 255 - light
    ink = 255 * (1 - grey / light.clip(min=1)).clip(0, 1)
    colour = np.abs(pixels - background).max(axis=2)
    if ink[product].mean() <= FAINT < colour[product].mean():
        ink = (255 * colour / np.quantile(colour[product], 0.99)).clip(0, 255)
    return np.asarray(ink).round().astype(np.uint8)
