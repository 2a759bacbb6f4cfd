"""Pictures as untrusted bytes: what is read, at which size, and what is refused before it costs anything."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
from vision_rig import noise, png, saved

from headrace.runtime.image_settings import ImageSettings
from headrace.runtime.images import BadPicture, picture_bytes, read_picture
from headrace.runtime.native_settings import NativeSettings

SETTINGS = NativeSettings(
    token_id=9,
    factor=8,
    min_pixels=256,
    max_pixels=4096,
    row_limit=64,
    scale=1 / 255,
    mean=(0.5, 0.4, 0.45),
    std=(0.25, 0.3, 0.28),
)
# Large enough that nothing is scaled.
PLAIN = NativeSettings(9, 1, 1, 1 << 24, 1 << 24, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def pixels(data: bytes, settings: ImageSettings = PLAIN) -> np.ndarray:
    image = read_picture(data, settings, "")
    return np.frombuffer(image.pixels, np.uint8).reshape(*image.size, 3)


def bomb(width: int, height: int, depth: int = 1) -> bytes:
    """A PNG of zeros: small on the wire, large in memory."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (height * (1 + -(-width * depth // 8))), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "exact"),
    [("PNG", True), ("GIF", False), ("WEBP", False), ("JPEG", False)],
)
def test_the_four_formats(kind: str, exact: bool) -> None:
    smooth = np.tile(np.linspace(0, 255, 24, dtype=np.uint8)[None, :, None], (40, 1, 3))
    found = pixels(saved(smooth, kind)).astype(int)
    assert np.abs(found - smooth).max() <= (0 if exact else 12)


@pytest.mark.parametrize(
    "kind", ["BMP", "TIFF", "PPM", "ICO", "TGA", "SGI", "PCX", "DIB", "JPEG2000", "AVIF"]
)
def test_sec_24_other_formats_are_refused(kind: str) -> None:
    try:
        data = saved(noise(16, 16, 1), kind)
    except (KeyError, OSError):
        data = b"\0" * 64  # this Pillow was built without it
    with pytest.raises(BadPicture, match="is no PNG, JPEG, WebP or GIF"):
        read_picture(data, SETTINGS, "")


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7"])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(BadPicture, match="is no PNG"):
        read_picture(data, SETTINGS, "")


def test_sec_25_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(picture: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", decoded)
    wide, many = bomb(12_000, 12_000), bomb(8000, 8000)
    assert len(wide) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(BadPicture, match="at most 8192 pixels"):
            read_picture(wide, SETTINGS, "")
        with pytest.raises(BadPicture, match="16 million"):
            read_picture(many, SETTINGS, "")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def riff(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    "data",
    [
        riff(b"VP8X", b"\0\0\0\0" + (16_000_000).to_bytes(3, "little") + (99).to_bytes(3, "little")),
        riff(b"VP8L", b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little")),
        riff(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_000, 16_000)),
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0" * 32,
    ],
    ids=["webp-canvas", "webp-lossless", "webp-lossy", "gif-screen"],
)
def test_sec_25_bombs_of_other_formats(data: bytes) -> None:
    with pytest.raises(BadPicture, match="at most 8192 pixels"):
        read_picture(data, SETTINGS, "")


def test_sec_26_every_size_gives_the_tokens_of_the_formula_or_an_answer() -> None:
    taken = 0
    for width in (0, 1, 2, 13, 27, 28, 29, 8191, 8192, 8193, 60000):
        for height in (0, 1, 2, 13, 27, 28, 29, 8191, 8192, 8193, 60000):
            data = bomb(width, height)
            if (
                min(width, height) == 0
                or max(width, height) > 8192
                or max(width, height) > 200 * min(width, height)
            ):
                with pytest.raises(BadPicture):
                    read_picture(data, SETTINGS, "")
            elif width * height <= 16_000_000:
                if max(width, height) > 64 * min(width, height):
                    continue  # long and narrow: the limit of this model's tokens comes first, tried below
                image = read_picture(data, SETTINGS, "")
                assert 1 <= image.rows <= SETTINGS.row_limit
                assert image.rows * 64 == image.size[0] * image.size[1]
                assert (image.height, image.width) == (image.size[0] // 8, image.size[1] // 8)
                taken += 1
    assert taken > 20
    for size in ((8192, 41), (41, 8192)):
        with pytest.raises(BadPicture, match=r"takes \d+ tokens; 64 are allowed"):
            read_picture(bomb(*size), SETTINGS, "")


def turned(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """How a camera that is held so stores what it sees upright."""
    back = {
        1: None,
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }[orientation]
    return image if back is None else image.transpose(back)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sec_27_a_turned_camera(kind: str, orientation: int) -> None:
    corner = np.zeros((32, 48, 3), dtype=np.uint8)
    corner[:16, :16] = (250, 10, 10)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = (
        {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    )
    data = saved(turned(PIL.Image.fromarray(corner), orientation), kind, exif=exif.tobytes(), **options)
    found = pixels(data).astype(int)
    assert found.shape == corner.shape and np.abs(found - corner)[2:-2, 2:-2].mean() < 3


def test_broken_exif_is_no_broken_picture() -> None:
    flat = np.full((16, 24, 3), 128, dtype=np.uint8)
    for exif in (
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0" + b"\xff" * 40,
    ):
        assert pixels(saved(flat, "JPEG", exif=exif)).shape == (16, 24, 3)


def test_what_is_transparent_is_white() -> None:
    clear = np.zeros((16, 16, 4), dtype=np.uint8)
    clear[8:] = (10, 20, 30, 255)
    half = PIL.Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    for kind in ("PNG", "WEBP"):
        found = pixels(
            saved(PIL.Image.fromarray(clear), kind, **({"lossless": True} if kind == "WEBP" else {}))
        )
        assert (found[:8] == 255).all() and (found[8:] == (10, 20, 30)).all()
    assert abs(int(pixels(saved(half, "PNG"))[0, 0, 0]) - 127) <= 1
    palette = PIL.Image.new("P", (16, 16), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert (pixels(saved(palette, "PNG")) == (200, 0, 0)).all()
    assert (pixels(saved(palette, "PNG", transparency=1)) == 255).all()
    assert (pixels(saved(palette, "GIF", transparency=1)) == 255).all()
    assert (pixels(saved(palette, "GIF")) == (200, 0, 0)).all()
    grey = PIL.Image.new("LA", (16, 16), (40, 0))
    assert (pixels(saved(grey, "PNG")) == 255).all()


def test_modes_that_are_not_rgb() -> None:
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    found = pixels(saved(PIL.Image.fromarray(deep), "PNG"))
    assert np.array_equal(found[..., 0], np.arange(256).reshape(16, 16))
    ink = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(saved(ink, "JPEG")).astype(int) - (255, 0, 0)).max() < 12
    bits = PIL.Image.new("1", (16, 16), 1)
    assert (pixels(saved(bits, "PNG")) == 255).all()
    assert (pixels(saved(PIL.Image.new("L", (16, 16), 77), "JPEG")) == 77).all()


def test_of_a_moving_picture_the_first_frame_counts() -> None:
    frames = [PIL.Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:], **options)
        assert (pixels(out.getvalue()) == (200, 0, 0)).all(), kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_cut_and_many_flips_have_an_answer(kind: str) -> None:
    data = saved(noise(20, 20, 5), kind)
    said: list[str] = []
    for length in range(0, len(data), max(1, len(data) // 150)):
        try:
            read_picture(data[:length], SETTINGS, "")
        except BadPicture as bad:
            said.append(str(bad))
    assert len(said) > 100 and not any("0x" in words for words in said)
    generator = np.random.default_rng(3)
    for _ in range(200):
        broken = bytearray(data)
        for place in generator.integers(0, len(data), 4):
            broken[place] = generator.integers(0, 256)
        try:
            read_picture(bytes(broken), SETTINGS, "")
        except BadPicture:
            pass


def test_sec_27_keys_tell_pictures_apart_and_nothing_else() -> None:
    one, other = noise(24, 40, 1), noise(24, 40, 2)
    key = read_picture(png(one), SETTINGS, "").key
    assert key < 0
    assert read_picture(png(one), SETTINGS, "").key == key
    assert read_picture(saved(one, "WEBP", lossless=True), SETTINGS, "").key == key, (
        "the file is not the picture"
    )
    different = [
        read_picture(png(other), SETTINGS, ""),
        read_picture(png(one.reshape(40, 24, 3)), SETTINGS, ""),
        read_picture(png(one), SETTINGS, "another tenant"),
        read_picture(png(one), PLAIN, ""),
    ]
    assert len({key, *(image.key for image in different)}) == 5


def test_low_detail_is_a_small_picture() -> None:
    large = NativeSettings(9, 32, 1024, 1 << 24, 16384, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = png(noise(1024, 1024, 1))
    assert read_picture(data, large, "").rows == 1024
    assert read_picture(data, large, "", small=True).rows == 256


def test_data_urls() -> None:
    data = png(noise(8, 8, 1))
    coded = base64.b64encode(data).decode()
    for front in ("data:image/png;base64,", "DATA:image/PNG;Base64,", "data:image/png;charset=x;base64,"):
        assert picture_bytes(front + coded) == data
    assert picture_bytes(data) is data


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,", "is no PNG"),
        ("data:image/png;base64,AAA", "valid base64"),
        ("data:image/png;base64,????", "valid base64"),
        ("data:image/png;base64,AA\nAA", "valid base64"),
        ("data:image/png;base64,ÄÄÄÄ", "valid base64"),
        ("data:image/png,AAAA", "with base64"),
        ("data:,AAAA", "has the type"),
        ("data:text/html;base64,AAAA", "'text/html'"),
        ("data:image/svg+xml;base64,AAAA", "'image/svg"),
        ("data:data:image/png;base64,AAAA", "has the type"),
        ("data:image/png;base64,ZGF0YTppbWFnZS9wbmc7YmFzZTY0LEFBQUE=", "is no PNG"),
        ("http://127.0.0.1/x.png", "none is fetched here"),
        ("https://example.org/x.png", "none is fetched here"),
        ("file:///etc/passwd", "must be a data: URL"),
        ("", "must be a data: URL"),
    ],
)
def test_sec_30_urls_that_are_no_picture(url: str, words: str) -> None:
    with pytest.raises(BadPicture, match=words):
        read_picture(picture_bytes(url), SETTINGS, "")
