"""Frames of a ScanNet recording: colour, depth, pose and 2D labels as separate files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.archives import ZIP_DAMAGE
from ponder.data.convert.images import decode_colour, decode_ids, encode_jpeg, encode_png
from ponder.data.convert.raw_files import read_bytes, why
from ponder.data.convert.sens import (
    JPEG,
    PNG,
    SensFrame,
    SensHeader,
    decompress_depth,
    iterate_frames,
    open_recording,
    read_header,
)
from ponder.data.convert.sink import BrokenPieceError, Content, Sink
from ponder.data.convert.units import FRAMES

_DEPTH_UNITS_PER_METRE = 1000.0


def convert_frames(
    folder: Path, nyu40: NDArray[np.uint8], every: int, keep_jpeg: bool, labelled: bool, sink: Sink
) -> None:
    """Write rgbd/<scene>/ from the recording of one scene.

    Written are intrinsic/, <scene>.txt, and of every `every`-th frame depth/, pose/, label/ and colour/; of damaged
    frames nothing. Frames without a finite pose or a readable label are written where possible, since PonderV2's
    dataset takes frame numbers as positions in the folder, and reported as unusable.

    Args:
        folder: scans/<scene>.
        nyu40: [65536] label id -> NYU40 id.
        every: spacing of the frames; they keep their numbers.
        keep_jpeg: copy the recorded colour images; False: decode and encode them again, as PonderV2's script does.
        labelled: 2D labels are to be expected; the release has none for its test scenes.
        sink: takes the files.
    """
    scene = folder.name
    path = folder / f"{scene}.sens"
    with sink.attempt(FRAMES), open_recording(path) as stream:
        header = read_header(stream, str(path))
        _check(header, path)
        sink.save([(f"rgbd/{scene}/intrinsic/{name}.txt", matrix_text(m)) for name, m in _calibration(header)])
        with sink.attempt(FRAMES):
            text = read_bytes(folder / f"{scene}.txt", "scene description (axis alignment)")
            sink.save([(f"rgbd/{scene}/{scene}.txt", text)])
        with _open_labels(folder / f"{scene}_2d-label-filt.zip", labelled, sink) as labels:
            for frame in iterate_frames(stream, header, str(path), every):
                with sink.attempt(FRAMES):
                    _convert_frame(scene, frame, header, labels, nyu40, keep_jpeg, sink)
                sink.tick(1)


def _check(header: SensHeader, path: Path) -> None:
    if header.colour_compression not in (JPEG, PNG):
        detail = f"{path} (code {header.colour_compression}, expected {PNG} or {JPEG})"
        raise BrokenPieceError("colour compression is not supported", detail)
    if header.depth_shift != _DEPTH_UNITS_PER_METRE:
        raise BrokenPieceError("depth is not in millimetres", f"{path} ({header.depth_shift:g} units per metre)")


def _calibration(header: SensHeader) -> list[tuple[str, NDArray[np.float32]]]:
    return [
        ("intrinsic_color", header.intrinsic_colour),
        ("extrinsic_color", header.extrinsic_colour),
        ("intrinsic_depth", header.intrinsic_depth),
        ("extrinsic_depth", header.extrinsic_depth),
    ]


def matrix_text(matrix: NDArray[np.float32]) -> bytes:
    """A matrix as text, six decimals, one row per line."""
    return "".join(" ".join(f"{value:f}" for value in row) + "\n" for row in matrix).encode()


@contextmanager
def _open_labels(path: Path, expected: bool, sink: Sink) -> Iterator[zipfile.ZipFile | None]:
    """The archive of 2D labels; None, and counted, if it is missing or damaged as a whole."""
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        if expected:
            sink.report(FRAMES).skip("2D labels of a scene are missing", str(path))
        yield None
    except ZIP_DAMAGE as error:
        sink.report(FRAMES).skip("2D labels of a scene cannot be read", f"{path} ({why(error)})")
        yield None
    else:
        with archive:
            yield archive


def _convert_frame(
    scene: str,
    frame: SensFrame,
    header: SensHeader,
    labels: zipfile.ZipFile | None,
    nyu40: NDArray[np.uint8],
    keep_jpeg: bool,
    sink: Sink,
) -> None:
    number, source = frame.number, f"{scene} frame {frame.number}"
    depth = decompress_depth(frame, header, source)
    colour = decode_colour(frame.colour, source)
    copied = keep_jpeg and header.colour_compression == JPEG
    files: list[tuple[str, Content]] = [
        (f"rgbd/{scene}/depth/{number}.png", encode_png(depth)),
        (f"rgbd/{scene}/pose/{number}.txt", matrix_text(frame.camera_to_world)),
    ]
    report, usable = sink.report(FRAMES), True
    if not np.isfinite(frame.camera_to_world).all():
        report.skip("pose is not finite", source)
        usable = False
    if labels is not None:
        try:
            label = nyu40[decode_ids(_read_label(labels, number, source), source)]
            files.append((f"rgbd/{scene}/label/{number}.png", encode_png(label)))
        except BrokenPieceError as error:
            report.skip(error.reason, error.detail)
            usable = False
    # Datasets list the colour images: a frame whose colour image is there is there as a whole.
    files.append((f"rgbd/{scene}/color/{number}.jpg", frame.colour if copied else encode_jpeg(colour)))
    if usable:
        sink.put(FRAMES, files)
    else:
        sink.save(files)
        report.unusable.append(f"{scene} {number}")


def _read_label(labels: zipfile.ZipFile, number: int, source: str) -> bytes:
    try:
        return labels.read(f"label-filt/{number}.png")
    except ZIP_DAMAGE as error:
        raise BrokenPieceError("2D label of a frame cannot be read", f"{source} ({why(error)})") from None
