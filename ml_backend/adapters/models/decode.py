"""Image files to the square RGB pixels that a backbone takes.

The whole picture is squashed to the square, as SigLIP does: a centre crop would hide what lies at the
edges of a wide photograph from the model while the annotator sees it, and padding would spend up to half
of the pixels on nothing. Shapes are distorted alike in all pictures of one aspect ratio, so neighbours stay
neighbours.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ml_backend.domain.errors import BadImage

Pixels = npt.NDArray[np.uint8]

# Formats that need no outside program and no network: Pillow's EPS, for one, runs Ghostscript.
_WANTED = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)

# Pillow's own limit warns or raises at a fixed size; ours is set by the user and checked before decoding.
Image.MAX_IMAGE_PIXELS = None


GAP = 2.0
"""How many times the size is left to the last, fine step of scaling."""
STRIP = 1_000_000
"""Pixels that are converted at once."""

_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_STARTS: dict[str, tuple[bytes, ...]] = {
    "PNG": (_PNG,),
    "JPEG": (_JPEG + b"\xff",),
    "GIF": (b"GIF8",),
    "WEBP": (b"RIFF",),
    "TIFF": (b"II*\0", b"MM\0*"),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused before a single pixel is decoded."""

    bytes: int = 50_000_000
    pixels: int = 100_000_000


DEFAULT_LIMITS = Limits()


def decode(data: bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Return the picture as it is shown upright, squashed to (size, size, 3) uint8 RGB.

    First frame of an animation, transparency on white, 16 bits scaled to 8, EXIF orientation applied.
    Raises BadImage: empty, over a limit, truncated, corrupt or not an image.
    """
    if not data:
        raise BadImage("The image file is empty.", "Check that its upload or download was complete.")
    if len(data) > limits.bytes:
        raise BadImage(
            f"The image file has {len(data) / 1e6:.1f} MB, more than the limit of {limits.bytes / 1e6:g} MB.",
            "Raise RUSH_MAX_IMAGE_MB or shrink the image.",
        )
    try:
        return _decode(data, size, limits)
    except BadImage:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on hostile files
        problem = _explain(error, data)
    mended = _mended(data, size)
    if mended is None:
        raise problem
    try:
        return _decode(mended, size, limits)
    except BadImage:
        raise
    except Exception:  # noqa: BLE001
        raise problem from None


def _decode(data: bytes, size: int, limits: Limits) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_pixels(image, limits)
        orientation = int(image.getexif().get(0x0112, 1))
        pixels = _squash(image, data, size)
    # A square is as square when turned: turning 224 px instead of 12 megapixels costs nothing.
    return _upright(pixels, orientation)


def longer_side(data: bytes) -> int | None:
    """The longer side of the picture in pixels, from its header alone; None where that can't be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return max(image.size)
    except Exception:  # noqa: BLE001 - Pillow's readers raise anything on hostile files
        return None


def _check_pixels(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels:
        raise BadImage(
            f"The image has {width}×{height} = {width * height / 1e6:.1f} megapixels, "
            f"more than the limit of {limits.pixels / 1e6:g}.",
            "Raise RUSH_MAX_MEGAPIXELS or shrink the image.",
        )


def _squash(image: Image.Image, data: bytes, size: int) -> Pixels:
    """The picture in (size, size, 3).

    Pillow's filter and not cv2's, whose features are 0.9979 like those of the usual PIL pipeline: they must
    stay comparable with features that others compute. Twice the size first where there is more: strip by
    strip, since whole copies of a large picture in other modes take several times its own memory.
    """
    if image.format in ("JPEG", "MPO"):
        least = 2 * size  # a JPEG scaled down to less than that loses detail that the filter wants
        if image.mode in ("RGB", "L"):
            try:
                pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least)
                image = Image.fromarray(pixels)
            except ValueError:
                pass  # it refuses stray bytes that browsers accept; Pillow decides
        if image.format is not None:
            image.draft("RGB", (least, least))
    image.load()
    width, height = image.size
    by = max(1, int(width / size / GAP)), max(1, int(height / size / GAP))  # as in Pillow's own reducing_gap
    scale = _brightness(image)
    parts = [(top, _reduced(_rgb(strip, scale), by)) for top, strip in _strips(image, by[1])]
    small = parts[0][1]
    if len(parts) > 1:
        small = Image.new("RGB", (-(-width // by[0]), -(-height // by[1])))
        for top, part in parts:
            small.paste(part, (0, top // by[1]))
    whole = (0.0, 0.0, width / by[0], height / by[1])
    return np.array(small.resize((size, size), Image.Resampling.BILINEAR, box=whole))


def _reduced(image: Image.Image, by: tuple[int, int]) -> Image.Image:
    return image if by == (1, 1) else image.reduce(by)


def _strips(image: Image.Image, rows: int) -> Iterator[tuple[int, Image.Image]]:
    """(first row, the part from there on) of about STRIP pixels, each a multiple of ``rows`` high."""
    width, height = image.size
    step = max(1, STRIP // (width * rows)) * rows
    for top in range(0, height, step):
        yield top, image if step >= height else image.crop((0, top, width, min(top + step, height)))


def _brightness(image: Image.Image) -> tuple[float, float]:
    """The darkest and the brightest value of a picture whose range isn't known by its mode."""
    if image.mode not in ("I", "F"):
        return 0.0, 0.0
    ranges = [(float(v.min()), float(v.max())) for _, strip in _strips(image, 1) for v in [_numbers(strip)]]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _numbers(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, np.float64))


def _rgb(image: Image.Image, scale: tuple[float, float]) -> Image.Image:
    if image.mode.startswith("I;16"):
        # As browsers show 16-bit files; Pillow's own conversion clips to white.
        return Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        low, high = scale
        values = (_numbers(image) - low) * (255.0 / (high - low) if high > low else 0.0)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _mended(data: bytes, size: int) -> bytes | None:
    """The file as browsers take it although something is wrong with it; None where nothing helps.

    A JPEG that has every pixel but no end, a PNG in which only by-work is damaged.
    """
    if data.startswith(_JPEG):
        whole = data + _JPEG_END
        try:
            colours = simplejpeg.decode_jpeg_header(whole)[2]
            wanted = "CMYK" if colours in ("CMYK", "YCCK") else "RGB"
            simplejpeg.decode_jpeg(
                whole, wanted, min_height=size, min_width=size
            )  # it refuses missing pixels
        except ValueError:
            return None
        return whole
    return _sound_chunks(data) if data.startswith(_PNG) else None


def _sound_chunks(data: bytes) -> bytes | None:
    """A PNG without the ancillary chunks that fail their checksum, and with an end."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        ancillary = bool(name[:1].islower())
        sound = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if not (sound or ancillary):
            return None
        if sound and name != b"IEND":
            kept.append(chunk)
        at += 12 + length
    mended = b"".join([*kept, _PNG_END])
    return mended if mended != data else None


def _explain(error: Exception, data: bytes) -> BadImage:
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        kind = next((kind for kind, start in _STARTS.items() if data.startswith(start)), "")
        if kind == "WEBP" and data[8:12] != b"WEBP":
            kind = ""
        if kind:
            return BadImage(
                f"The image file is damaged: it starts like a {kind} file, but its header is corrupt.",
                "Open it in a viewer, or export it again.",
            )
        start = data[:8].hex(" ")
        return BadImage(
            f"The file is not an image that can be read (it starts with bytes {start}).",
            f"Use one of {', '.join(FORMATS)}.",
        )
    if "truncated" in reason.lower() or isinstance(error, EOFError):
        return BadImage(
            f"The image file is truncated: {reason}.", "Check that its upload or download was complete."
        )
    return BadImage(f"The image file is corrupt: {reason}.", "Open it in a viewer, or export it again.")
