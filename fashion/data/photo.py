"""Conversion of users' photos to the dataset's format. Imports no torch.

Xiao, Rasul & Vollgraf (2017), "Fashion-MNIST", section 2: edges within 5 % of the background's
color are trimmed, the longest edge becomes 28, the image is sharpened by a Gaussian of radius 1,
centered on a canvas, negated, and converted to gray. A shop's background is one light color; that
of a user's photo is not, so it is estimated here from what most of the border shows.
"""

import importlib
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError, features
from scipy import ndimage

from fashion.errors import UserError

# No others: for some formats, such as EPS, Pillow starts another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # and AVIF and HEIC, see _formats
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".heic", ".heif")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
EDGE = 448  # pixels, 16 times the dataset's: a larger image is reduced first
SIDE = 28
CLOSE = 0.05 * 255  # largest distance from the background's color, as in the paper
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow's mode L
# All 60,000 training images have at least 36 % of their border within `CLOSE` of black.
BLACK_BORDER = 1 / 3
# Mean brightness of a product, over the pixels that are not background. 99 % of the training images
# exceed FAINT, below which the conversion uses color or a black backdrop; 99.7 % exceed PALE, below
# which an image is reported as faint.
FAINT = 51
PALE = 40
DARK = 64  # an image without a brighter pixel is rescaled to the full range
# The constants below were chosen on training images made into photos (scripts/checks/photos.py).
FRAMES = 3  # largest number of nested frames that are removed
STRAIGHT = 0.9  # least fraction of an outer edge with the frame's color, of an inner one without
SOFT = 3  # width in pixels of the blurred transition inside a frame
PLAIN_BORDER = 0.75  # fraction of the framed photo's border that must be background
SMALLEST = 0.01  # smallest area of a product, as a fraction of the framed photo
ANOTHER = 0.1  # smallest area of a second product, as a fraction of the largest product
# Shadow detection (`_has_shadow`): longest edge at which it is done, in pixels; levels of darkness
# that are tried, and their tolerance, 0..1; least and greatest distance of the shadow, in pixels;
# smallest areas of the shadow and of the rest, as fractions of both; smallest intersection over
# union.
SHADOW_SIDE, SHADOW_LEVELS, SHADOW_TOLERANCE = 48, np.arange(0.3, 0.76, 0.04), 0.04
SHADOW_DISTANCES, SHADOW_AREA, CASTING_AREA, SHADOW_OVERLAP = (2, 12), 0.05, 0.2, 0.55


class Prepared(NamedTuple):
    """A photo in the dataset's format, and in which ways it is unlike the dataset."""

    image: UInt8[np.ndarray, "28 28"]
    several: bool = False  # there are other products: this is the largest
    shadow: bool = False  # part of the product looks like a shadow that the rest casts
    faint: bool = False  # it hardly differs from its background, as a white product on white


def files_in(folder: Path) -> list[Path]:
    """Return the photos directly in a folder, recognized by their suffix, sorted.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    found = [
        path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        raise UserError(f"{folder} holds no photos ({', '.join(SUFFIXES)}).")
    return found


def read(path: Path) -> Image.Image:
    """Read an image file: RGB, upright by its EXIF, first frame, edges at most `EDGE` pixels.

    Memory is bounded by Pillow's limit on the size that a file declares, 89 million pixels, which
    is checked before anything is decoded; the peak is about 1 GB.

    Raises:
        UserError: it is in another format, or is damaged, too large or not readable.
    """
    # Not Path's own, which raise where a folder may not be searched. A pipe would block.
    if not os.path.isfile(path):  # noqa: PTH113
        raise UserError(f"{path} is {'not a file' if os.path.exists(path) else 'missing'}.")  # noqa: PTH110
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # irregularities that Pillow tolerates
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            formats = _formats(path)
            with Image.open(path, formats=formats) as photo:
                photo.verify()  # a PNG's check sums, which decoding it does not compare
            with Image.open(path, formats=formats) as photo:
                photo.draft(None, (EDGE, EDGE))  # a large JPEG is decoded at a smaller scale
                return as_seen(photo)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty.") from error
        raise UserError(
            f"{path} is not an image that can be read; save it as one of {', '.join(FORMATS)}."
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} declares more than {Image.MAX_IMAGE_PIXELS:,} pixels; save it smaller."
        ) from error
    except Exception as error:  # Pillow raises nearly anything on a broken file
        reason = getattr(error, "strerror", None) or f"it is cut or damaged ({error})"
        raise UserError(f"{path} cannot be read: {reason}.") from error


def _formats(path: Path) -> tuple[str, ...]:
    """Return the formats that Pillow may try for a file.

    Raises:
        UserError: it is HEIC or AVIF, and no package that reads it is installed.
    """
    with path.open("rb") as file:
        box, brand = file.read(8)[4:], file.read(4)
    if box != b"ftyp":
        return FORMATS
    if brand in HEIF_BRANDS:
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError as error:
            raise UserError(
                f"{path} is a HEIC photo. Install the package that reads it (pip install "
                "pillow-heif), or save the photo as JPEG."
            ) from error
        return ("HEIF",)
    if brand.startswith(b"avi"):
        if not features.check("avif"):
            raise UserError(
                f"{path} is an AVIF photo, which this Pillow does not read. Install one that does "
                "(pip install 'pillow>=11.3'), or save the photo as JPEG."
            )
        return ("AVIF",)
    return FORMATS


def as_seen(photo: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, rotated by its EXIF, edges at most `EDGE` pixels.

    Transparency becomes white like a shop's background, or black behind a product that would be
    `FAINT` on white. Modes I and F have no fixed range: their darkest value becomes 0, their
    lightest 255.

    Raises:
        UserError: Pillow cannot convert the mode.
    """
    photo = ImageOps.exif_transpose(photo)
    if photo.mode in ("I", "F") or photo.mode.startswith("I;16"):
        photo = _eight_bits(photo)
    try:
        photo = photo.convert("RGBA" if photo.has_transparency_data else "RGB")
    except ValueError as error:
        raise UserError(f"Images of mode {photo.mode} cannot be read.") from error
    photo.thumbnail((EDGE, EDGE))
    if photo.mode == "RGBA":
        alpha = np.asarray(photo.getchannel("A"), dtype=np.float64)
        darkness = 255 - np.asarray(photo.convert("L"), dtype=np.float64)
        vanishes = (alpha * darkness).sum() < FAINT * alpha.sum()
        backdrop = Image.new("RGBA", photo.size, "black" if vanishes else "white")
        photo = Image.alpha_composite(backdrop, photo).convert("RGB")
    return photo


def prepare(photo: Image.Image) -> Prepared:
    """Convert an image of any mode and size to the dataset's format: the product bright on 0.

    A 28 x 28 image in the dataset's style, with a third of its border black, is returned as it is.
    Any other is cropped: plain bars and frames first, then all outside its largest product. The
    more a pixel differs from the background, the brighter it becomes, whether it is darker (as in
    a shop's photos, which the dataset negates), lighter, or of another color.

    Raises:
        UserError: nothing stands out from the background, or Pillow cannot convert the mode.
    """
    photo = as_seen(photo)
    if photo.size == (SIDE, SIDE):
        grey = np.array(photo.convert("L"))
        if grey.any() and (grey[_border(grey.shape)] <= CLOSE).mean() >= BLACK_BORDER:
            return Prepared(grey, faint=is_faint(grey))
    pixels = _without_frame(_stretched(np.asarray(photo, dtype=np.float64)))
    background, roughness = _background(pixels)
    distance = _distance(pixels, background)
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
    return Prepared(image, several, _has_shadow(ink, product), is_faint(image))


def is_faint(image: UInt8[np.ndarray, "28 28"]) -> bool:
    """Return whether the product hardly differs from its background.

    The dataset leaves out white products, so no network trained on it has seen one.
    """
    product = image > CLOSE
    return bool(image[product].sum() <= PALE * product.sum())


def _stretched(pixels: Float[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    """Rescale a nearly black image (12-bit colors in a 16-bit PNG) to the range 0..255."""
    lightest = pixels.max()
    return pixels * (255 / lightest) if 0 < lightest < DARK else pixels


def _distance(
    pixels: Float[np.ndarray, "height width 3"], color: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "height width"]:
    """Return each pixel's largest difference from a color over the channels, 0..255."""
    red, green, blue = np.moveaxis(np.abs(pixels - color), 2, 0)
    # Several times as fast as max(axis=2).
    furthest: np.ndarray = np.maximum(np.maximum(red, green), blue)
    return furthest


def _without_frame(
    pixels: Float[np.ndarray, "height width 3"],
) -> Float[np.ndarray, "less_height less_width 3"]:
    """Cut off the plain bars along an image's edges and the plain frames around it."""
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
    """Return the box inside a bar or frame that has the color of `edge`; None if there is none.

    `edge` is an outermost row or column. A frame encloses a rectangle, nearly no pixel of whose
    four sides has the frame's color. The sides of a product hardly ever do so, and a product does
    not look like another product in front of a background.
    """
    color = np.median(edge, axis=0)
    if (np.abs(edge - color).max(axis=1) <= CLOSE).mean() < STRAIGHT:
        return None
    other = ndimage.gaussian_filter(_distance(pixels, color), sigma=1) > CLOSE
    parts, count = ndimage.label(other)
    if not count:
        return None
    largest = 1 + int(np.bincount(parts.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    # Without the blurred transition between the two.
    box = tuple(
        slice(part.start + SOFT * (part.start > 0), part.stop - SOFT * (part.stop < length))
        for part, length in zip((rows, columns), other.shape, strict=True)
    )
    inner = other[box]
    if inner.shape == other.shape or min(inner.shape) < SIDE:
        return None
    straight = min(side.mean() for side in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))
    return (box[0], box[1]) if straight >= STRAIGHT and _is_photo(pixels[box]) else None


def _is_photo(pixels: Float[np.ndarray, "height width 3"]) -> bool:
    """Return whether most of the border shows one smooth surface, and something stands out.

    So a rectangular product of one color is not mistaken for a photo in a frame.
    """
    background, roughness = _background(pixels)
    distance = _distance(pixels, background)
    near = distance[_border(pixels.shape[:2])] <= CLOSE
    product = ndimage.gaussian_filter(distance, sigma=1) > max(CLOSE, 4 * roughness)
    return bool(near.mean() >= PLAIN_BORDER and product.mean() >= SMALLEST)


def _eight_bits(photo: Image.Image) -> Image.Image:
    """Convert an image of 16 bits or more, or of floating point numbers, to mode L.

    16-bit files often hold 12-bit values. So their range is 0 to the power of two above the
    lightest value, which keeps the ratio of two brightnesses; if the values span less than an
    eighth of that, and in the modes I and F, it is the darkest to the lightest value.
    """
    deep = photo.convert("F")
    deep.thumbnail((EDGE, EDGE))
    values = np.nan_to_num(np.asarray(deep)).astype(np.float64)
    low, high = values.min(), values.max()
    full = 2 ** int(high).bit_length() - 1 if photo.mode.startswith("I;16") else 0
    if high - low >= full / 8 > 0:
        low, high = 0, full
    share = (values - low) / (high - low or 1)
    return Image.fromarray((255 * share).round().astype(np.uint8))


def _border(shape: tuple[int, ...]) -> Bool[np.ndarray, "height width"]:
    """Return a mask of the outermost pixels, 1/50 of the shorter edge wide."""
    width = max(1, round(min(shape) / 50))
    border = np.ones(shape, dtype=bool)
    border[width:-width, width:-width] = False
    return border


def _background(
    pixels: Float[np.ndarray, "height width 3"],
) -> tuple[Float[np.ndarray, "height width 3"], float]:
    """Return the background's color at each pixel, and its median absolute deviation from it.

    The color is a quadratic surface through what most of the border shows: a wall is rarely lit
    evenly, and lenses darken corners.
    """
    border = _border(pixels.shape[:2])
    grey = pixels @ LUMA
    counts = np.bincount(grey[border].astype(int), minlength=256).astype(float)
    # The most frequent level, not the median: a product may touch most of the border.
    level = ndimage.uniform_filter1d(counts, round(2 * CLOSE), mode="constant").argmax()
    common = border & (np.abs(grey - level) <= 2 * CLOSE)
    # Of these, the pixels near their median color: a product may be as bright as the background.
    color = np.median(pixels[common], axis=0)
    near = common & (_distance(pixels, color) <= 2 * CLOSE)
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
    """Return the mask of the largest product, without specks, and whether there are others.

    The pixels further than `tolerance` from the background may form several parts, as a sandal's
    straps do. Two parts are two products if they lie beside or above each other and the smaller
    has at least `ANOTHER` of the larger's area: none of 600 training images made into photos did.

    Raises:
        UserError: no pixel is further from the background.
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
    several = bool((apart & (sizes >= ANOTHER * sizes.max())).any())
    kept = sizes >= sizes.max() / 50
    if several:
        kept &= ~apart
    return np.isin(parts, 1 + np.flatnonzero(kept)), several


def _ink(
    pixels: Float[np.ndarray, "height width 3"],
    background: Float[np.ndarray, "height width 3"],
    product: Bool[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    """Return each pixel's darkness relative to its background: 0 like it, 255 black.

    If the product as a whole is lighter than the background, white replaces black. Dividing by the
    background corrects uneven light. A product that is `FAINT` by that, but not by its color, gets
    the distance of its color from the background's, relative to the largest (99 % quantile).
    """
    grey, light = pixels @ LUMA, background @ LUMA
    if (grey - light)[product].sum() > 0:
        grey, light = 255 - grey, 255 - light
    ink = 255 * (1 - grey / light.clip(min=1)).clip(0, 1)
    color = _distance(pixels, background)
    if ink[product].mean() <= FAINT < color[product].mean():
        ink = (255 * color / np.quantile(color[product], 0.99)).clip(0, 255)
    return np.asarray(ink).round().astype(np.uint8)


def _has_shadow(
    ink: UInt8[np.ndarray, "height width"], product: Bool[np.ndarray, "height width"]
) -> bool:
    """Return whether a part of the product looks like a shadow that the rest of it casts.

    A cast shadow is evenly dark and has the outline of what casts it. So for each level of
    darkness: does the rest, moved in some direction, cover just the part that has this level?
    """
    nearest, furthest = SHADOW_DISTANCES
    box = ndimage.find_objects(product.astype(np.uint8))[0]
    scale = SHADOW_SIDE / max(ink[box].shape)
    size = tuple(max(1, round(scale * length)) for length in ink[box].shape[::-1])

    def reduced(values: UInt8[np.ndarray, "height width"]) -> Float[np.ndarray, "less_h less_w"]:
        small = Image.fromarray(values[box]).resize(size, Image.Resampling.BOX)
        return np.pad(np.asarray(small) / 255, furthest)

    darkness, both = reduced(ink * product), reduced(255 * product.astype(np.uint8)) > 0.5  # noqa: PLR2004
    steps = range(-furthest, furthest + 1)
    moves = [
        (down, right)
        for down in steps
        for right in steps
        if nearest <= np.hypot(down, right) <= furthest
    ]
    for level in SHADOW_LEVELS:
        even = ndimage.binary_opening(both & (np.abs(darkness - level) < SHADOW_TOLERANCE))
        rest = ndimage.binary_fill_holes(ndimage.binary_opening(both & ~even))
        even &= ~rest
        if even.sum() < SHADOW_AREA * both.sum() or rest.sum() < CASTING_AREA * both.sum():
            continue
        for move in moves:
            cast = np.roll(rest, move, (0, 1)) & ~rest
            if (cast & even).sum() > SHADOW_OVERLAP * (cast | even).sum():
                return True
    return False
