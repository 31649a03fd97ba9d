"""Image files to the square RGB pixels that a backbone takes.

The whole picture is squashed to the square, as SigLIP does: a centre crop would hide what lies at the
edges of a wide photograph from the model while the annotator sees it, and padding would spend up to half
of the pixels on nothing. Shapes are distorted alike in all pictures of one aspect ratio, so neighbours stay
neighbours.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

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
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image, limits)
            pixels, orientation = _pixels(image, data, size)
    except BadImage:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on hostile files
        raise _explain(error, data) from None
    # A square is as square when turned: turning 224 px instead of 12 megapixels costs nothing.
    return _upright(_squash(pixels, size), orientation)


def _check_pixels(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels:
        raise BadImage(
            f"The image has {width}×{height} = {width * height / 1e6:.1f} megapixels, "
            f"more than the limit of {limits.pixels / 1e6:g}.",
            "Raise RUSH_MAX_MEGAPIXELS or shrink the image.",
        )


def _pixels(image: Image.Image, data: bytes, size: int) -> tuple[Pixels, int]:
    orientation = int(image.getexif().get(0x0112, 1))
    if image.format in ("JPEG", "MPO"):
        if image.mode in ("RGB", "L"):
            try:
                least = 2 * size  # a JPEG scaled down to less than that loses detail that the filter wants
                return simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least), orientation
            except ValueError:
                pass  # it refuses stray bytes that browsers accept; Pillow decides
        image.draft("RGB", (2 * size, 2 * size))
    return _rgb(image), orientation


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        # As browsers show 16-bit files; Pillow's own conversion clips to white.
        return _grey(np.asarray(image, np.uint16) >> 8)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        low, high = float(values.min()), float(values.max())
        return _grey((values - low) * (255.0 / (high - low) if high > low else 0.0))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _grey(values: npt.NDArray[Any]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _squash(pixels: Pixels, size: int) -> Pixels:
    # Pillow's filter and not cv2's, whose features are 0.9979 like those of the usual PIL pipeline: they
    # must stay comparable with features that others compute. Twice the size first where there is more.
    square = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.array(square)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _explain(error: Exception, data: bytes) -> BadImage:
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
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
