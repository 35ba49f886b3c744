# Types: NumPy's functions without types.
# mypy: disable-error-code="no-any-return"

import io
import os
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageChops, ImageDraw, ImageOps

from fashion.data import photo
from fashion.data.photo import EDGE, is_faint, read
from fashion.errors import UserError

MODES = (
    *("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA"),
    *("RGBX", "RGBa", "La", "I;16", "I;16L", "I;16B"),
)


def prepare(picture: Image.Image) -> np.ndarray:
    return photo.prepare(picture).image


def shirt(
    size: tuple[int, int] = (300, 400),
    *,
    colour: tuple[int, int, int] = (30, 40, 60),
    wall: tuple[int, int, int] = (240, 240, 240),
) -> Image.Image:
    """A T-shirt, 5 wide and 6 high, off the centre."""
    picture = Image.new("RGB", size, wall)
    outline = [(0, 0), (5, 0), (5, 2), (4, 2), (4, 6), (1, 6), (1, 2), (0, 2)]
    unit = min(size) / 8
    ImageDraw.Draw(picture).polygon(
        [((x + 2.5) * unit, (y + 1) * unit) for x, y in outline], colour
    )
    return picture


@cache
def prepared_shirt() -> np.ndarray:
    """Return the prepared image of a T-shirt, which many are compared with; nothing changes it."""
    return prepare(shirt())


def dataset_style() -> Image.Image:
    image = np.zeros((28, 28), dtype=np.uint8)
    image[:, 4:24] = np.arange(20, dtype=np.uint8) * 12 + 3
    return Image.fromarray(image)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference, in levels."""
    return float(np.abs(first.astype(int) - second).mean())


def same_shape(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two products cover the same pixels, but for some at their edges, however bright."""
    covered = [image > np.median(image[image > 0]) / 2 for image in (first, second)]
    return bool((covered[0] != covered[1]).mean() < 0.04)


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def write(folder: Path, content: bytes, name: str = "photo") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and ends there."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    length, checksum = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(chunk))
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + length + chunk + checksum + data


# What is made of a picture


def test_the_product_fills_the_height_bright_on_black_and_centred() -> None:
    image = prepared_shirt()
    assert image.shape == (28, 28)
    assert image.dtype == np.uint8
    product = image > 100
    assert product.any(axis=1).all()
    # 28 / 6 * 5 = 23 columns: the odd pixel of margin is on the left.
    assert np.flatnonzero(product.any(axis=0)).tolist() == list(range(3, 26))
    assert image[14:, [*range(6), *range(23, 28)]].max() < 5  # below the sleeves
    # Ink is the share of the wall's brightness that is gone.
    assert image[14, 14] == pytest.approx(255 * (1 - 39.3 / 240), abs=3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_a_picture_in_the_dataset_s_style_is_passed_byte_for_byte(mode: Any) -> None:
    picture = dataset_style()
    assert np.array_equal(prepare(picture.convert(mode)), np.asarray(picture))


def test_a_deep_picture_in_the_dataset_s_style_is_passed_byte_for_byte() -> None:
    image = np.asarray(dataset_style())
    assert np.array_equal(prepare(Image.fromarray(image.astype(np.uint16) * 257)), image)
    assert np.array_equal(prepare(Image.fromarray(image.astype(np.int32))), _stretched(image))
    assert np.array_equal(prepare(Image.fromarray(image.astype(np.float32))), _stretched(image))


def _stretched(image: np.ndarray) -> np.ndarray:
    return (image * (255 / image.max())).round().astype(np.uint8)


def test_a_negated_28_x_28_picture_is_not_passed_as_it_is() -> None:
    picture = dataset_style()
    assert difference(prepare(ImageOps.invert(picture)), np.asarray(picture)) < 40
    assert prepare(ImageOps.invert(picture))[:, :4].max() == 0


def test_light_on_dark_is_the_same_as_dark_on_light() -> None:
    picture = shirt()
    negative = prepare(ImageOps.invert(picture))
    assert np.abs(negative.astype(int) - prepare(picture)).max() <= 1


@pytest.mark.parametrize(
    ("colour", "wall"),
    [
        ((20, 30, 40), (170, 200, 250)),  # light blue
        ((20, 30, 40), (160, 120, 80)),  # wood
        ((250, 250, 245), (120, 130, 110)),  # a white product on a grey wall
        ((200, 30, 40), (230, 235, 225)),
    ],
)
def test_coloured_walls(colour: Any, wall: Any) -> None:
    assert same_shape(prepare(shirt(colour=colour, wall=wall)), prepared_shirt())


@pytest.mark.parametrize("light", ["slope", "vignette", "grain"])
def test_uneven_light(light: Any) -> None:
    rows, columns = np.mgrid[-1:1:400j, -1:1:300j]
    factor = {
        "slope": 0.9 + 0.1 * columns,
        "vignette": 1 - 0.12 * (rows**2 + columns**2),
        "grain": 1 + np.random.default_rng(0).normal(0, 0.05, rows.shape),
    }[light]
    lit = (np.asarray(shirt()) * factor[..., np.newaxis]).clip(0, 255).astype(np.uint8)
    assert difference(prepare(Image.fromarray(lit)), prepared_shirt()) < 6


def test_dust_is_not_the_product() -> None:
    picture = shirt()
    ImageDraw.Draw(picture).rectangle((8, 380, 11, 383), "black")
    assert np.array_equal(prepare(picture), prepare(shirt()))


def test_a_product_that_touches_three_sides() -> None:
    tight = shirt().crop((95, 20, 281, 262))
    assert same_shape(prepare(tight), prepared_shirt())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation(tmp_path: Any, orientation: Any, form: Any) -> None:
    turned = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],  # undone by a turn clockwise
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = shirt()
    for step in turned:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    path = write(tmp_path, encode(stored, form, exif=exif, **lossless))
    assert difference(prepare(read(path)), prepared_shirt()) < (6 if form == "JPEG" else 0.1)


def test_what_is_transparent_is_wall() -> None:
    alpha = ImageChops.invert(shirt().convert("L")).point(lambda level: 255 * (level > 100))
    dark = Image.new("RGB", alpha.size, (30, 40, 60))
    dark.putalpha(alpha)
    assert difference(prepare(dark), prepare(shirt(wall=(255, 255, 255)))) < 1
    white = Image.new("RGB", alpha.size, (250, 250, 250))  # would vanish on white
    white.putalpha(alpha)
    assert same_shape(prepare(white), prepare(dark))
    with pytest.raises(UserError, match="Nothing stands out"):
        prepare(Image.new("RGBA", (50, 50)))


@pytest.mark.parametrize("colour", [0, 128, 255])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (300, 200)])
def test_one_colour_shows_nothing(size: Any, colour: Any) -> None:
    with pytest.raises(UserError, match="Nothing stands out"):
        prepare(Image.new("L", size, colour))


def test_a_white_product_on_white_is_faint() -> None:
    assert is_faint(prepare(shirt(colour=(215, 215, 215), wall=(250, 250, 250))))
    assert not is_faint(prepare(shirt(colour=(150, 150, 150), wall=(250, 250, 250))))
    assert not is_faint(prepare(shirt(colour=(250, 250, 250), wall=(90, 90, 90))))


@pytest.mark.slow
@given(st.sampled_from(MODES), st.integers(1, 70), st.integers(1, 70), st.data())
@settings(max_examples=150)
def test_any_picture_gives_28_x_28_or_the_documented_error(
    mode: Any, width: Any, height: Any, data: Any
) -> None:
    picture = Image.new(mode, (width, height))
    count = len(picture.tobytes())
    content = data.draw(st.binary(min_size=min(count, 64), max_size=64))
    picture.frombytes((content * (count // max(len(content), 1) + 1))[:count])
    try:
        image = prepare(picture)
    except UserError as error:
        assert "Nothing stands out" in str(error) or mode == "La"  # noqa: PT017
    else:
        assert image.shape == (28, 28)
        assert image.dtype == np.uint8
        assert image.any()


@given(arrays.arrays(np.uint8, (28, 28)))
@settings(max_examples=50)
def test_any_picture_with_a_black_frame_is_passed(image: Any) -> None:
    image[[0, -1]] = image[:, [0, -1]] = 0
    image[14, 14] = 200
    assert np.array_equal(prepare(Image.fromarray(image)), image)


def test_a_product_as_dark_as_its_wall_is_found_by_its_color() -> None:
    """Red on green of equal brightness: not faint, because its color differs."""
    prepared = photo.prepare(shirt(colour=(200, 30, 30), wall=(40, 120, 60)))
    assert same_shape(prepared.image, prepared_shirt())
    assert not prepared.faint


@pytest.mark.parametrize("border", [(8, 8, 8, 8), (0, 60, 0, 60), (60, 0, 60, 0)])
def test_plain_frames_and_bars_are_cut_off(border: tuple[int, int, int, int]) -> None:
    framed = ImageOps.expand(shirt(), border, (10, 10, 12))
    assert same_shape(prepare(framed), prepared_shirt())


def test_several_products_are_noticed_and_the_largest_is_shown() -> None:
    large, small = shirt((300, 400)), shirt((200, 400))
    both = Image.new("RGB", (500, 400), (240, 240, 240))
    both.paste(large, (0, 0))
    both.paste(small, (300, 0))
    prepared = photo.prepare(both)
    assert prepared.several
    assert same_shape(prepared.image, prepared_shirt())
    assert not photo.prepare(shirt()).several


def test_12_bits_in_a_16_bit_file() -> None:
    grey = np.asarray(shirt().convert("L")).astype(np.uint16)
    prepared = [prepare(Image.fromarray(grey * scale)) for scale in (257, 16)]
    assert difference(*prepared) < 3


# Files


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (300, 400), "red")]}),
    ],
)
def test_every_format_shows_the_same(tmp_path: Any, form: Any, options: Any) -> None:
    path = write(tmp_path, encode(shirt(), form, **options))
    assert difference(prepare(read(path)), prepared_shirt()) < 6


def test_cmyk_jpeg(tmp_path: Any) -> None:
    path = write(tmp_path, encode(shirt().convert("CMYK"), "JPEG", quality=95))
    assert difference(prepare(read(path)), prepared_shirt()) < 6


def test_a_large_picture_is_read_small(tmp_path: Any) -> None:
    for form in ("PNG", "JPEG"):
        picture = read(write(tmp_path, encode(shirt((3000, 2000)), form)))
        assert picture.mode == "RGB"
        assert picture.size == (EDGE, round(EDGE * 2 / 3))


BAD_FILES = {
    "empty": (b"", "is empty"),
    "text": (b"hello\n", "is not an image"),
    "not UTF-8": (b"\xff\xfe\x00\xff" * 9, "is not an image"),
    "another format": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
    "TIFF": (encode(shirt(), "TIFF"), "is not an image"),
    "bomb": (png_header(50_000, 50_000), "more than 89,478,485 pixels"),
    "small bomb": (png_header(10_000, 10_000), "more than 89,478,485 pixels"),
    "largest size": (png_header(2**31 - 1, 2**31 - 1), "more than 89,478,485 pixels"),
    "no size": (png_header(0, 0), "is not an image|cannot be read"),
    "no pixels": (png_header(100, 100), "cut or damaged"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named(tmp_path: Any, kind: Any) -> None:
    content, message = BAD_FILES[kind]
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(error.value).startswith(f"{path} ")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_cut_file_is_named(tmp_path: Any, form: Any, share: Any) -> None:
    grain = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    content = encode(Image.fromarray(grain), form)
    path = write(tmp_path, content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"cut or damaged|not an image") as error:
        read(path)
    assert str(path) in str(error.value)


def test_what_is_no_file_is_named(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"nowhere\.png is missing"):
        read(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="is not a file"):
        read(tmp_path)
    mkfifo: Any = getattr(os, "mkfifo", Path.mkdir)  # Windows has no pipes with names
    mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a file"):
        read(tmp_path / "pipe")
    with pytest.raises(UserError, match="is missing"):
        read(tmp_path / ("long" * 100))


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Any) -> None:
    path = write(tmp_path, encode(shirt(), "PNG"))
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read(path)


SMALL = [encode(shirt((30, 40)), form) for form in ("PNG", "JPEG", "WEBP", "GIF")]


@pytest.mark.slow
@given(
    st.sampled_from(SMALL),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=150)
def test_a_damaged_file_is_an_image_or_the_documented_error(
    tmp_path_factory: Any, content: Any, damage: Any
) -> None:
    damaged = bytearray(content)
    for position, value in damage:
        damaged[position % len(damaged)] = value
    path = write(tmp_path_factory.getbasetemp(), bytes(damaged), "damaged")
    try:
        image = prepare(read(path))
    except UserError:
        return
    assert image.shape == (28, 28)
