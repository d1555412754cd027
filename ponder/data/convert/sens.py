"""ScanNet's .sens recordings, read one frame at a time.

Layout (little endian), from the dataset's SensReader: uint32 version = 4; uint64 length and characters of the sensor's
name; four 4x4 float32 matrices (intrinsics and extrinsics of colour, then of depth); int32 compression of colour and
of depth; uint32 width and height of colour, then of depth; float32 depth units per metre; uint64 number of frames.
Each frame: 4x4 float32 camera-to-world; uint64 times of colour and depth; uint64 byte counts of colour and depth;
the bytes of both. Inertial measurements behind the frames are not read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.raw_files import why
from ponder.data.convert.sink import BrokenPieceError

VERSION = 4
JPEG, PNG = 2, 1
ZLIB_USHORT, RAW_USHORT = 1, 0
_MATRICES = struct.Struct("<64f")
_FORMAT = struct.Struct("<iiIIIIfQ")
_FRAME = struct.Struct("<16fQQQQ")
# Nothing recorded comes near these; larger numbers are damage.
_MAX_NAME, _MAX_SIDE, _MAX_FRAMES = 1 << 12, 1 << 15, 1 << 24
# Compressed images hardly grow; more than this above the raw size is a damaged byte count.
_SLACK = 1 << 16


class SensHeader(NamedTuple):
    """What a recording says about itself.

    Attributes:
        intrinsic_colour, extrinsic_colour, intrinsic_depth, extrinsic_depth: [4, 4] float32.
        colour_compression, depth_compression: the format's codes.
        colour_size, depth_size: (width, height) pixels.
        depth_shift: depth units per metre.
        frames: number of frames promised.
        start: offset of the first frame.
    """

    intrinsic_colour: NDArray[np.float32]
    extrinsic_colour: NDArray[np.float32]
    intrinsic_depth: NDArray[np.float32]
    extrinsic_depth: NDArray[np.float32]
    colour_compression: int
    depth_compression: int
    colour_size: tuple[int, int]
    depth_size: tuple[int, int]
    depth_shift: float
    frames: int
    start: int


class SensFrame(NamedTuple):
    """One frame as stored.

    Attributes:
        number: position in the recording, from 0.
        camera_to_world: [4, 4] float32; not finite where tracking was lost.
        colour, depth: compressed bytes.
    """

    number: int
    camera_to_world: NDArray[np.float32]
    colour: bytes
    depth: bytes


def read_header(stream: BinaryIO, source: str) -> SensHeader:
    """Read the header at the start of a stream.

    Raises:
        BrokenPieceError: truncated, of another version, or with impossible numbers.
    """

    def take(size: int) -> bytes:
        data = _read(stream, size, source)
        if len(data) < size:
            raise BrokenPieceError("recording is truncated", f"{source} (inside its header)")
        return data

    version, length = struct.unpack("<IQ", take(12))
    if version != VERSION or length > _MAX_NAME:
        raise BrokenPieceError("recording is not a .sens file of version 4", f"{source} (version {version})")
    take(length)
    matrices = np.array(_MATRICES.unpack(take(_MATRICES.size)), dtype=np.float32).reshape(4, 4, 4)
    colour, depth, *sides, shift, frames = _FORMAT.unpack(take(_FORMAT.size))
    if not all(0 < side <= _MAX_SIDE for side in sides) or frames > _MAX_FRAMES:
        raise BrokenPieceError("recording has a damaged header", f"{source} (image sizes {sides}, {frames} frames)")
    sizes = (sides[0], sides[1]), (sides[2], sides[3])
    first, second, third, fourth = matrices
    return SensHeader(first, second, third, fourth, colour, depth, *sizes, shift, frames, stream.tell())


def _read(stream: BinaryIO, size: int, source: str) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        raise BrokenPieceError("recording cannot be read", f"{source} ({why(error)})") from None


def open_recording(path: Path) -> BinaryIO:
    """A recording opened for reading.

    Raises:
        BrokenPieceError: missing or unreadable.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise BrokenPieceError("recording is missing", str(path)) from None
    except OSError as error:
        raise BrokenPieceError("recording cannot be read", f"{path} ({why(error)})") from None


def count_frames(path: Path) -> int:
    """Number of frames that a recording promises, 0 where its header cannot be read."""
    try:
        with open_recording(path) as stream:
            return read_header(stream, str(path)).frames
    except BrokenPieceError:
        return 0


def iterate_frames(stream: BinaryIO, header: SensHeader, source: str, every: int) -> Iterator[SensFrame]:
    """Every `every`-th frame, one in memory at a time.

    Raises:
        BrokenPieceError: the file ends, or a byte count is impossible, before the last promised frame; the frames
            before it have been given by then.
    """
    size = os.fstat(stream.fileno()).st_size
    limits = [4 * width * height + _SLACK for width, height in (header.colour_size, header.depth_size)]
    stream.seek(header.start)
    for number in range(header.frames):
        fixed = _read(stream, _FRAME.size, source)
        place = f"{source} (at frame {number} of {header.frames})"
        lost = len(range(-(-number // every) * every, header.frames, every))
        if len(fixed) < _FRAME.size:
            raise BrokenPieceError("recording is truncated", place, lost)
        *pose, _, _, colour_bytes, depth_bytes = _FRAME.unpack(fixed)
        if colour_bytes > limits[0] or depth_bytes > limits[1]:
            raise BrokenPieceError("recording has a damaged frame and cannot be read beyond it", place, lost)
        if stream.tell() + colour_bytes + depth_bytes > size:
            raise BrokenPieceError("recording is truncated", place, lost)
        if number % every:
            stream.seek(colour_bytes + depth_bytes, os.SEEK_CUR)
            continue
        matrix = np.array(pose, dtype=np.float32).reshape(4, 4)
        colour, depth = (_read(stream, count, source) for count in (colour_bytes, depth_bytes))
        yield SensFrame(number, matrix, colour, depth)


def decompress_depth(frame: SensFrame, header: SensHeader, source: str) -> NDArray[np.uint16]:
    """Stored depth of a frame.

    Returns:
        [H, W] uint16.

    Raises:
        BrokenPieceError: damaged, of an unsupported compression, or of another size than the header says.
    """
    width, height = header.depth_size
    data, expected, whole = frame.depth, 2 * width * height, True
    if header.depth_compression == ZLIB_USHORT:
        try:
            unpacker = zlib.decompressobj()
            # One byte more shows that there is too much, without unpacking all of it.
            data = unpacker.decompress(data, expected + 1)
            whole = unpacker.eof
        except zlib.error as error:
            raise BrokenPieceError("depth image cannot be decoded", f"{source} ({why(error)})") from None
    elif header.depth_compression != RAW_USHORT:
        code = header.depth_compression
        raise BrokenPieceError("depth compression is not supported", f"{source} (code {code}, expected 0 or 1)")
    if len(data) != expected or not whole:
        raise BrokenPieceError("depth image cannot be decoded", f"{source} ({len(data)} of {expected} bytes)")
    return np.frombuffer(data, "<u2").reshape(height, width).astype(np.uint16)
