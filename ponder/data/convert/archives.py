"""Files inside of many zip archives, found by scene without unpacking."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ponder.data.convert.raw_files import why
from ponder.data.convert.sink import BrokenPieceError

# What the zip and zlib modules raise on damaged archives.
ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, NotImplementedError, RuntimeError)


def list_scenes(path: Path, prefix: str, counted: str) -> dict[str, int]:
    """Scenes below a folder of an archive, and how many of their files end in a given way.

    Args:
        path: the archive.
        prefix: the folder, with a slash at its end.
        counted: see above.

    Raises:
        BrokenPieceError: not a readable archive.
    """
    scenes: dict[str, int] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith(prefix):
                    scene = name[len(prefix) :].partition("/")[0]
                    scenes[scene] = scenes.get(scene, 0) + name.endswith(counted)
    except ZIP_DAMAGE as error:
        raise BrokenPieceError("archive cannot be read", f"{path} ({why(error)})") from None
    scenes.pop("", None)
    return scenes


# Their tables take a hundred megabytes each; a scene lies in one of each kind.
@lru_cache(maxsize=2)
def _open(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


class SceneFiles:
    """The files of one scene.

    Args:
        archives: where to look; of files in several the last counts.
        folder: the scene's folder inside of them, with a slash at its end.

    Raises:
        BrokenPieceError: an archive cannot be read.
    """

    def __init__(self, archives: Iterable[Path], folder: str) -> None:
        self._folder = folder
        self._source: dict[str, Path] = {}
        for path in archives:
            try:
                names = _open(path).namelist()
            except ZIP_DAMAGE as error:
                raise BrokenPieceError("archive cannot be read", f"{path} ({why(error)})") from None
            self._source.update((name[len(folder) :], path) for name in names if name.startswith(folder))

    def children(self, folder: str) -> list[str]:
        """Names directly inside a folder ("" or with a slash at its end), sorted."""
        inside = (name[len(folder) :] for name in self._source if name.startswith(folder))
        return sorted({name.partition("/")[0] for name in inside} - {""})

    def read(self, name: str, kind: str) -> bytes:
        """The content of a file.

        Raises:
            BrokenPieceError: missing or damaged; `kind` names it in the reason.
        """
        path = self._source.get(name)
        if path is None:
            raise BrokenPieceError(f"{kind} is missing", name)
        try:
            return _open(path).read(self._folder + name)
        except ZIP_DAMAGE as error:
            raise BrokenPieceError(f"{kind} cannot be read", f"{path} {name} ({why(error)})") from None
