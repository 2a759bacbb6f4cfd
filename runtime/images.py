"""Bytes that somebody sent to checked pixels. The only file that opens pictures; knows no prompt and no tensor.

Four formats and no others; the size is read from the header before anything is decoded; of a moving picture the
first frame counts. Nothing is ever fetched: a picture comes as bytes or as a data URL.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

# By name: Pillow's own registry would import forty more formats in the middle of a request.
from PIL import GifImagePlugin, Image, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.Image import Transpose

from headrace.runtime import image
from headrace.runtime.image_settings import ImageSettings
from headrace.runtime.image_shape import Shape, TooNarrow
from headrace.runtime.refusal import shorten

# Pillow warns of what a file says about itself wrongly; who reads the log is not who sent it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

PIXEL_LIMIT = 16_000_000
SIDE_LIMIT = 8192
BYTES_LIMIT = 32 << 20  # of one file

_DATA_URL = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
_TYPES = frozenset({"image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif"})
_ORIENTATION = 0x0112  # EXIF's number for it
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
assert MpoImagePlugin  # the JPEG reader imports it when a phone's picture has a second one inside


class BadPicture(Exception):
    """This picture is not taken; the text is what follows "the picture" in a sentence for its sender."""


def picture_bytes(source: str | bytes) -> bytes:
    """The file behind a data URL, or the bytes themselves. Raises BadPicture for everything else."""
    if isinstance(source, bytes):
        return source
    match = _DATA_URL.match(source)
    if match is None:
        scheme = source.partition(":")[0] if ":" in source[:32] else ""
        if scheme.lower() in ("http", "https"):
            raise BadPicture("is named by an address, and none is fetched here: send it as a data: URL")
        raise BadPicture("must be a data: URL with base64, like data:image/png;base64,...")
    kind, options = match[1].strip().lower(), match[2].lower().split(";")
    if kind not in _TYPES:
        raise BadPicture(
            f"has the type {shorten(kind, 60)!r}; image/png, image/jpeg, image/webp and image/gif are read"
        )
    if "base64" not in (option.strip() for option in options):
        raise BadPicture("must be a data: URL with base64, like data:image/png;base64,...")
    if (len(source) - match.end()) // 4 * 3 > BYTES_LIMIT:
        raise BadPicture(f"has more than {BYTES_LIMIT >> 20} MiB")
    try:
        return binascii.a2b_base64(source[match.end() :].encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadPicture("is not valid base64") from None


def read_picture(data: bytes, settings: ImageSettings, salt: str, small: bool = False) -> image.Image:
    """Decoded, upright, RGB, at the size that the model wants. small: at most the area of `detail: low`.

    Raises BadPicture. salt: the tenant's; pictures of different salts never have the same key."""
    opened = _open(data)
    try:
        upright = _upright(opened)
        shape = settings.fit(upright.height, upright.width, small)
        plain = _laid(_rgb(upright), shape, Image.Resampling(settings.resample))
    except TooNarrow as error:
        raise BadPicture(str(error)) from None
    except Exception as error:
        # Whatever else a hostile file does to its decoder (a cut stream, a bad table, an absurd frame) is the fault
        # of that file. The decoder's own words may hold addresses, so they stay here.
        raise BadPicture("is damaged or cut off") from error
    pixels = plain.tobytes()
    key = hashlib.sha256()
    for part in (salt, repr(settings), repr(shape)):
        key.update(part.encode("utf-8", "surrogatepass") + b"\0")
    key.update(pixels)
    return image.Image(-1 - int.from_bytes(key.digest()), *shape.grid, shape.size, pixels, shape.tiling)


def _laid(picture: Image.Image, shape: Shape, filter: Image.Resampling) -> Image.Image:
    """As the tower is given it."""
    middle = _middle(picture.resize(shape.resized[::-1], filter), shape.kept)
    if shape.tiling is None:
        return middle
    height, side = shape.size
    column = Image.new("RGB", (side, height))
    column.paste(picture.resize((side, side), filter), (0, 0))
    for number in range(shape.tiling.high * shape.tiling.wide):
        top, left = number // shape.tiling.wide * side, number % shape.tiling.wide * side
        column.paste(middle.crop((left, top, left + side, top + side)), (0, (1 + number) * side))
    return column


def _middle(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The (height, width) pixels in the middle, black where there are none; where they are one off, the upper and
    the left ones."""
    height, width = size
    if (picture.height, picture.width) == size:
        return picture
    left, top = int((picture.width - width) / 2), int((picture.height - height) / 2)  # towards zero
    return picture.crop((left, top, left + width, top + height))


def _open(data: bytes) -> Image.Image:
    """The picture, its header read and its size in bounds; not a pixel is decoded yet."""
    if len(data) > BYTES_LIMIT:
        raise BadPicture(f"has more than {BYTES_LIMIT >> 20} MiB")
    found = next((each for each in _FORMATS if each.begins.match(data)), None)
    if found is None:
        raise BadPicture("is no PNG, JPEG, WebP or GIF")
    try:
        if found.measure is not None:
            _check_size(*found.measure(data))
        opened = found.reader(io.BytesIO(data))
    except BadPicture:
        raise
    except Exception as error:
        raise BadPicture("is damaged or cut off") from error
    _check_size(opened.width, opened.height)
    return opened


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise BadPicture(f"is {width} x {height}: it has no pixels")
    if width > SIDE_LIMIT or height > SIDE_LIMIT:
        raise BadPicture(f"is {width} x {height}; a side has at most {SIDE_LIMIT} pixels")
    if width * height > PIXEL_LIMIT:
        raise BadPicture(f"is {width} x {height}; at most {PIXEL_LIMIT // 1_000_000} million pixels are read")


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise BadPicture("is damaged or cut off")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _gif_size(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _webp_size(data: bytes) -> tuple[int, int]:
    """From the first chunk: its reader would take memory for the whole canvas at once."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise BadPicture("is damaged or cut off")


class _Format(NamedTuple):
    """How a file of it begins; its size before the reader sees it (None: that reader takes no memory for it)."""

    begins: re.Pattern[bytes]
    measure: Callable[[bytes], tuple[int, int]] | None
    reader: Callable[[io.BytesIO], Image.Image]


_FORMATS = (
    _Format(re.compile(rb"\x89PNG\r\n\x1a\n"), _png_size, PngImagePlugin.PngImageFile),
    _Format(re.compile(rb"\xff\xd8\xff"), None, JpegImagePlugin.JpegImageFile),
    _Format(re.compile(rb"RIFF....WEBP", re.DOTALL), _webp_size, WebPImagePlugin.WebPImageFile),
    _Format(re.compile(rb"GIF8[79]a"), _gif_size, GifImagePlugin.GifImageFile),
)


def _upright(opened: Image.Image) -> Image.Image:
    """Decoded, and turned as its camera was held."""
    opened.load()
    try:
        turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken note about the picture does not break the picture
        turn = None
    return opened if turn is None else opened.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    """Three colours of a byte each. What is transparent becomes white, as paper would."""
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        # Sixteen bits of grey: the upper eight of them, where a plain conversion would clip all to white.
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        coloured = picture.convert("RGBA")
        paper = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, coloured).convert("RGB")
    return picture.convert("RGB")
