"""Images in memory: decoded with checks, and encoded."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ponder.data.convert.sink import BrokenPieceError

# What the image library raises on bytes that are not, or not wholly, an image.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_ID_MODES = ("L", "P", "I;16", "I;16B", "I")
_DEPTH_MODES = ("I;16", "I;16B", "I")
# The default of the libraries that PonderV2's script writes with.
JPEG_QUALITY = 75


def _decode(data: bytes, source: str, reason: str) -> Image.Image:
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            return image
    except _DAMAGE as error:
        raise BrokenPieceError(reason, f"{source} ({error or type(error).__name__})") from None


def decode_colour(data: bytes, source: str) -> NDArray[np.uint8]:
    """[H, W, 3] RGB; transparency is dropped.

    Raises:
        BrokenPieceError: not an image.
    """
    return np.array(_decode(data, source, "colour image cannot be decoded").convert("RGB"), dtype=np.uint8)


def decode_depth(data: bytes, source: str) -> NDArray[np.uint16]:
    """[H, W] stored 16-bit values.

    Raises:
        BrokenPieceError: not an image, or not a 16-bit grey one.
    """
    return _grey(data, source, "depth image", _DEPTH_MODES)


def decode_ids(data: bytes, source: str) -> NDArray[np.uint16]:
    """[H, W] class ids of an 8- or 16-bit grey image, or the indices of a palette image.

    Raises:
        BrokenPieceError: not an image, or a coloured one.
    """
    return _grey(data, source, "label image", _ID_MODES)


def _grey(data: bytes, source: str, kind: str, modes: tuple[str, ...]) -> NDArray[np.uint16]:
    image = _decode(data, source, f"{kind} cannot be decoded")
    if image.mode not in modes:
        raise BrokenPieceError(f"{kind} has another pixel format", f"{source} (mode {image.mode}, expected {modes})")
    return np.array(image).astype(np.uint16)


def encode_png(pixels: NDArray) -> bytes:
    """A PNG of [H, W] uint8 or uint16 values."""
    stream = BytesIO()
    # Depth is nearly noise to the compressor: level 6 takes three times as long as level 3 for 3 % less.
    Image.fromarray(pixels).save(stream, "PNG", compress_level=6 if pixels.dtype == np.uint8 else 3)
    return stream.getvalue()


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG of [H, W, 3] RGB."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
