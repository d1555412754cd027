"""Point clouds from files of any common format: `read_cloud`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ponder.data.cloud_files.las import read_las
from ponder.data.cloud_files.pcd import read_pcd
from ponder.data.cloud_files.ply import ply_bytes, read_ply
from ponder.data.cloud_files.raw import RawCloud, make_cloud
from ponder.data.cloud_files.scene_file import read_scene_file
from ponder.data.cloud_files.tables import read_npy, read_npz, read_text
from ponder.data.scene import DataError

_READERS: dict[str, Callable[[Path], RawCloud]] = {
    ".ply": read_ply,
    ".pcd": read_pcd,
    ".las": read_las,
    ".laz": read_las,
    ".npy": read_npy,
    ".npz": read_npz,
    ".pth": read_scene_file,
    ".xyz": read_text,
    ".txt": read_text,
    ".csv": read_text,
}
FORMATS = tuple(_READERS)


def read_cloud(path: Path) -> RawCloud:
    """Read a point cloud; the ending of the name says how.

    | ending | content |
    | --- | --- |
    | .ply | vertices of an ASCII or binary file: x y z; red green blue, 8 or 16 bit or fractions; nx ny nz |
    | .pcd | ASCII or uncompressed binary: x y z; rgb; normal_x normal_y normal_z |
    | .las .laz | positions and colours, by the extra [data] |
    | .npy | one array [N, 3], [N, 6] or [N, 9]: position, colour, normal |
    | .npz | arrays `coord`, `color`, `normal` |
    | .pth | a scene of PonderV2's preprocessing |
    | .xyz .txt .csv | lines of 3, 6 or 9 numbers: position, colour, normal |

    Colour and normal are optional everywhere. Further columns, faces and labels are ignored.

    Raises:
        DataError: the file is missing, of another format, damaged or empty, or holds numbers that are not finite.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: expected a point cloud ending in {', '.join(FORMATS)}, got {path.suffix or 'none'!r}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        return read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{path}: the points that its header promises do not fit into memory") from None


__all__ = ["FORMATS", "RawCloud", "make_cloud", "ply_bytes", "read_cloud"]
