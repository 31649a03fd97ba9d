import contextlib
import io
import struct
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from ml_backend.adapters.models.decode import Limits, decode
from ml_backend.domain.errors import BadImage

SIZE = 32
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(width: int = 96, height: int = 64) -> Image.Image:
    """Red, green / blue, white: every turn and mirror of it looks different."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    a, b = SIZE // 8, SIZE - SIZE // 8
    return [tuple(int(v) for v in pixels[y, x]) for y, x in ((a, a), (a, b), (b, a), (b, b))]


def assert_corners(data: bytes, *expected: tuple[int, int, int], within: int = 6) -> None:
    pixels = decode(data, SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.abs(np.array(corners(pixels)) - np.array(expected)).max() <= within, corners(pixels)


@pytest.mark.parametrize("size", [(96, 64), (8, 8), (1, 200), (2000, 16), (640, 480)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
    ],
)
def test_the_whole_picture_fills_the_square(
    kind: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    image = quadrants(*size)
    if min(size) < 2:
        image = Image.new("RGB", size, GREEN)
        assert_corners(encode(image, kind, **options), GREEN, GREEN, GREEN, GREEN)
    else:
        assert_corners(encode(image, kind, **options), RED, GREEN, BLUE, WHITE, within=12)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0}
    data = encode(quadrants(), kind, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").resize((SIZE, SIZE))
    assert_corners(data, *corners(np.asarray(upright)), within=10)
    difference = np.subtract(corners(np.asarray(upright)), [RED, GREEN, BLUE, WHITE])
    assert (np.abs(difference).max() < 10) == (orientation == 1)


def test_modes_become_rgb() -> None:
    image = quadrants()
    assert_corners(encode(image.convert("CMYK"), "JPEG", quality=95), RED, GREEN, BLUE, WHITE, within=12)
    assert_corners(encode(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), RED, GREEN, BLUE, WHITE)
    assert_corners(encode(image.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"), RED, GREEN, BLUE, WHITE)
    grey = [(v, v, v) for v in (76, 150, 29, 255)]
    assert_corners(encode(image.convert("L"), "PNG"), *grey)
    assert_corners(encode(image.convert("L"), "JPEG", quality=95), *grey)
    assert_corners(
        encode(image.convert("1", dither=Image.Dither.NONE), "PNG"), (0,) * 3, WHITE, (0,) * 3, WHITE
    )


def test_sixteen_bits_keep_their_shades() -> None:
    values = np.zeros((40, 40), np.uint16)
    values[:20, 20:], values[20:, :20], values[20:, 20:] = 0x4000, 0x8000, 0xFFFF
    expected = [(v, v, v) for v in (0, 64, 128, 255)]
    for kind in ("PNG", "TIFF"):
        assert_corners(encode(Image.fromarray(values), kind), *expected)
    assert_corners(encode(Image.fromarray(values.astype(np.float32)), "TIFF"), *expected)
    assert_corners(encode(Image.fromarray(values.astype(np.int32)), "TIFF"), *expected)


def test_a_float_image_without_contrast_or_with_nan_is_readable() -> None:
    decode(encode(Image.fromarray(np.full((4, 4), 3.0, np.float32)), "TIFF"), SIZE)
    decode(encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), SIZE)


def test_transparency_is_shown_on_white() -> None:
    image = quadrants().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert_corners(encode(image, "PNG"), WHITE, WHITE, WHITE, WHITE)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0])
    assert_corners(encode(palette, "GIF", transparency=0), WHITE, WHITE, WHITE, WHITE)
    half = Image.new("LA", (16, 16), (0, 128))
    assert_corners(encode(half, "PNG"), *[(127,) * 3] * 4)


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "PNG", "WEBP"):
        assert_corners(encode(frames[0], kind, save_all=True, append_images=frames[1:]), *[RED] * 4)


def huge_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_limits_are_checked_before_decoding() -> None:
    with pytest.raises(BadImage, match=r"60000×60000 = 3600\.0 megapixels, more than the limit of 100"):
        decode(huge_png(60_000, 60_000), SIZE)
    data = encode(quadrants(), "JPEG")
    with pytest.raises(BadImage, match=r"more than the limit of 0\.0001 MB"):
        decode(data, SIZE, Limits(bytes=100))
    with pytest.raises(BadImage, match="RUSH_MAX_MEGAPIXELS"):
        decode(data, SIZE, Limits(pixels=96 * 64 - 1))
    decode(data, SIZE, Limits(bytes=len(data), pixels=96 * 64))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encode(noise, kind)
    with pytest.raises(BadImage) as caught:
        decode(data[: int(len(data) * part)], SIZE)
    assert caught.value.status == 422
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image.*3c 68 74 6d 6c"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\xff\xd8\xff\xe0", "not an image|truncated|corrupt"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        decode(data, SIZE)


def test_stray_bytes_that_browsers_accept_are_accepted() -> None:
    data = encode(quadrants(), "JPEG", quality=95, subsampling=0)
    assert_corners(data + b"stray bytes behind the end", RED, GREEN, BLUE, WHITE, within=10)
    start = data.index(b"\xff\xda")
    assert_corners(data[:start] + b"\x00\x01" + data[start:], RED, GREEN, BLUE, WHITE, within=10)


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize(
    ("mode", "options"), [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})]
)
def test_a_jpeg_that_lacks_only_its_end_is_decoded(mode: str, options: dict[str, object], lost: int) -> None:
    data = encode(quadrants().convert(mode), "JPEG", quality=95, **options)
    assert data.endswith(b"\xff\xd9")
    assert np.array_equal(decode(data[:-lost], SIZE), decode(data, SIZE))


def chunks(data: bytes) -> list[bytes]:
    """A PNG's chunks, each with its length and checksum."""
    found, at = [], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        found.append(data[at:end])
        at = end
    return found


def test_a_png_whose_header_fails_its_checksum_is_called_damaged() -> None:
    data = bytearray(encode(quadrants(), "PNG"))
    data[29] ^= 0xFF
    with pytest.raises(BadImage, match="damaged: it starts like a PNG") as caught:
        decode(bytes(data), SIZE)
    assert "Use one of" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 ", b"II*\0" + b"\0" * 20, b"\xff\xd8\xff\xe0"]
)
def test_a_file_with_the_start_of_an_image_is_never_told_to_become_one(data: bytes) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data, SIZE)
    assert "Use one of" not in str(caught.value)


def test_damage_beside_the_pixels_of_a_png_costs_nothing() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "hello")
    whole = encode(quadrants(), "PNG", pnginfo=info)
    parts = chunks(whole)
    spoilt = [part[:-1] + bytes([part[-1] ^ 1]) if part[4:8] == b"tEXt" else part for part in parts]
    assert spoilt != parts
    for data in (whole[:8] + b"".join(spoilt), whole[:-12], whole[:-5]):
        assert np.array_equal(decode(data, SIZE), decode(whole, SIZE))


LARGE = {
    "rgba.png": 'rgb.putalpha(grey); rgb.save(out, "PNG", compress_level=1)',
    "la.png": 'Image.merge("LA", [grey, grey]).save(out, "PNG", compress_level=1)',
    "transparent colour.png": 'rgb.save(out, "PNG", transparency=(1, 2, 3), compress_level=1)',
    "palette.png": 'rgb.quantize(16).save(out, "PNG", transparency=3, compress_level=1)',
    "palette.gif": 'rgb.quantize(16).save(out, "GIF", transparency=3)',
    "16 bits.png": 'Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(out, "PNG")',
    "turned.png": 'exif = Image.Exif(); exif[0x0112] = 6; rgb.save(out, "PNG", exif=exif, compress_level=1)',
    "cmyk.jpg": 'rgb.convert("CMYK").save(out, "JPEG")',
    "progressive.jpg": 'rgb.save(out, "JPEG", progressive=True)',
}
MAKE = """
import io, sys
import numpy as np
from PIL import Image
ramp = np.linspace(0, 255, 4000).astype(np.uint8)
grey = Image.fromarray(np.ascontiguousarray(np.broadcast_to(ramp, (3000, 4000))))
rgb, out = Image.merge("RGB", [grey, grey, grey]), io.BytesIO()
{save}
sys.stdout.buffer.write(out.getvalue())
"""
MEASURE = """
import sys
from ml_backend.adapters.models.decode import decode
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
data, before = sys.stdin.buffer.read(), peak()
decode(data, 224)
print((peak() - before) / 12e6)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures as Linux does")
@pytest.mark.parametrize("kind", LARGE)
def test_a_large_picture_takes_no_more_than_8_bytes_per_pixel(kind: str) -> None:
    save = LARGE[kind]
    run = partial(subprocess.run, capture_output=True, check=True)
    data = run([sys.executable, "-c", MAKE.format(save=save)]).stdout
    assert float(run([sys.executable, "-c", MEASURE], input=data).stdout) <= 8


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what is odd in the metadata of broken files
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damage_gives_pixels_or_bad_image_never_anything_else(kind: str, data: st.DataObject) -> None:
    raw = bytearray(encode(quadrants(24, 16), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadImage):
        assert decode(bytes(raw), SIZE, Limits(pixels=1_000_000)).shape == (SIZE, SIZE, 3)
