"""Reading users' point clouds: every format there and back, and one sentence for every kind of damage."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import laspy
import numpy as np
import pytest
import torch

from ponder.data.cloud_files import FORMATS, RawCloud, ply_bytes, read_cloud
from ponder.data.scene import DataError

COUNT = 7
# A position on a map in UTM: float32 would round it to half a metre.
FAR = np.array([465_123.25, 5_423_456.5, 312.125])


def points(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in multiples of 1 mm, 8-bit colours and unit normals."""
    random = np.random.default_rng(seed)
    coord = np.round(random.uniform(-5, 5, (COUNT, 3)), 3) + FAR
    colour = random.integers(0, 256, (COUNT, 3)).astype(np.uint8)
    colour[0] = (255, 0, 3)
    normal = random.normal(size=(COUNT, 3))
    return coord, colour, normal / np.linalg.norm(normal, axis=1, keepdims=True)


def ply(order: str = "<", colour_type: str = "uchar", colour_scale: float = 1, before: str = "") -> bytes:
    """A PLY as other programs write it: properties in mixed order, further ones, and faces behind."""
    coord, colour, normal = points()
    encoding = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    names = ["nx", "ny", "nz", "x", "y", "z", "red", "green", "blue", "quality"]
    kinds = ["float"] * 3 + ["double"] * 3 + [colour_type] * 3 + ["float"]
    properties = "".join(f"property {k} {n}\n" for n, k in zip(names, kinds, strict=True))
    head = (
        f"ply\r\nformat {encoding} 1.0\ncomment made by a test\n{before}element vertex {COUNT}\n{properties}"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()
    rows = np.concatenate([normal, coord, colour * float(colour_scale), np.ones((COUNT, 1))], 1)
    if order == "":
        lead = "9 9\n" if before else ""
        lines = "\n".join(" ".join(repr(float(v)).removesuffix(".0") for v in row) for row in rows)
        return head + (lead + lines + "\n3 0 1 2\n").encode()
    types = {"float": "f4", "double": "f8", "uchar": "u1", "ushort": "u2"}
    table = np.empty(COUNT, [(n, order + types[k]) for n, k in zip(names, kinds, strict=True)])
    for name, column in zip(names, rows.T, strict=True):
        table[name] = column
    lead = np.array([9, 9], order + "i2").tobytes() if before else b""
    return head + lead + table.tobytes() + b"\x03" + np.arange(3, dtype=order + "i4").tobytes()


def pcd(encoding: str) -> bytes:
    coord, colour, normal = points()
    packed = (colour[:, 0].astype(np.uint32) << 16) | (colour[:, 1].astype(np.uint32) << 8) | colour[:, 2]
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb normal_x normal_y normal_z extra\nSIZE 8 8 8 4 4 4 4 1\n"
        f"TYPE F F F {'U' if encoding == 'ascii' else 'F'} F F F U\nCOUNT 1 1 1 1 1 1 1 2\nWIDTH {COUNT}\nHEIGHT 1\n"
        f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {COUNT}\nDATA {encoding}\n"
    ).encode()
    if encoding == "ascii":
        rows = [[*c, int(p), *n, 0, 0] for c, p, n in zip(coord.tolist(), packed, normal.tolist(), strict=True)]
        return head + "\n".join(" ".join(map(str, row)) for row in rows).encode()
    table = np.zeros(COUNT, [("c", "<f8", 3), ("rgb", "<f4"), ("n", "<f4", 3), ("extra", "u1", 2)])
    table["c"], table["rgb"], table["n"] = coord, packed.view(np.float32), normal
    return head + table.tobytes()


def las(point_format: int = 3, version: str = "1.2", scale: int = 257, compress: bool = False) -> bytes:
    coord, colour, _ = points()
    header = laspy.LasHeader(point_format=point_format, version=version)
    header.offsets, header.scales = FAR, np.array([0.001] * 3)
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = coord.T
    if "red" in set(cloud.point_format.dimension_names):
        cloud.red, cloud.green, cloud.blue = colour.T.astype(np.uint16) * scale
    stream = io.BytesIO()
    cloud.write(stream, do_compress=compress)
    return stream.getvalue()


def chunks(number: bytes) -> bytes:
    """A LAZ file with another number of chunks in their table."""
    data = las(compress=True)
    start = int.from_bytes(data[96:100], "little")
    table = int.from_bytes(data[start : start + 8], "little") + 4
    return data[:table] + number + data[table + 4 :]


def text(separator: str, head: str = "") -> bytes:
    rows = np.concatenate(points(), 1).tolist()
    return (head + "\n".join(separator.join(map(repr, row)) for row in rows) + "\n").encode()


def array(save: Callable, *values: np.ndarray, **named: np.ndarray) -> bytes:
    stream = io.BytesIO()
    save(stream, *values, **named)
    return stream.getvalue()


def scene(**changes: object) -> bytes:
    coord, colour, normal = points()
    content = {"coord": coord, "color": colour.astype(np.float32), "normal": normal, "scene_id": "scene0000_00"}
    stream = io.BytesIO()
    torch.save(content | {"semantic_gt20": np.zeros(COUNT, np.int16), "number": np.float64(1)} | changes, stream)
    return stream.getvalue()


def npz(**changes: np.ndarray) -> bytes:
    coord, colour, normal = points()
    return array(np.savez, **({"coord": coord, "color": colour, "normal": normal, "labels": np.zeros(3)} | changes))


COMPLETE = {
    "binary.ply": lambda: ply("<"),
    "big-endian.ply": lambda: ply(">"),
    "ascii.ply": lambda: ply(""),
    "float-colours.ply": lambda: ply("<", "float", 1 / 255),
    "byte-floats.ply": lambda: ply("<", "float"),
    "16-bit-colours.ply": lambda: ply("<", "ushort", 257),
    "cameras-first.ply": lambda: ply("<", before="element camera 1\nproperty short a\nproperty short b\n"),
    "cameras-first-ascii.ply": lambda: ply("", before="element camera 1\nproperty list uchar short a\n"),
    "ascii.pcd": lambda: pcd("ascii"),
    "binary.pcd": lambda: pcd("binary"),
    "spaces.xyz": lambda: text(" "),
    "names.txt": lambda: text("\t", "x y z r g b nx ny nz\n"),
    "commas.csv": lambda: text(",", "x,y,z,r,g,b,nx,ny,nz\n"),
    "comments.txt": lambda: text("; ", "// by hand\n# twice\n\n"),
    "table.npy": lambda: array(np.save, np.concatenate(points(), 1)),
    "arrays.npz": npz,
    "scene.pth": scene,
}  # fmt: skip


def read(tmp_path: Path, name: str, data: bytes) -> RawCloud:
    path = tmp_path / name
    path.write_bytes(data)
    return read_cloud(path)


@pytest.mark.parametrize("name", COMPLETE)
def test_every_format_gives_the_points_back(name: str, tmp_path: Path) -> None:
    coord, colour, normal = points()
    cloud = read(tmp_path, name, COMPLETE[name]())
    assert len(cloud) == COUNT and cloud.coord.dtype == torch.float64
    np.testing.assert_allclose(cloud.coord.numpy(), coord, rtol=0, atol=1e-6)
    np.testing.assert_allclose(cloud.colour.numpy(), colour / 255, rtol=0, atol=1e-6)
    np.testing.assert_allclose(cloud.normal.numpy(), normal, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("point_format", "version", "compress"),
    [(2, "1.2", False), (3, "1.2", False), (7, "1.4", False), (8, "1.4", False), (3, "1.2", True), (7, "1.4", True)],
)
@pytest.mark.parametrize("scale", [1, 257], ids=["8 bit", "16 bit"])
def test_las(point_format: int, version: str, compress: bool, scale: int, tmp_path: Path) -> None:
    coord, colour, _ = points()
    name = "cloud.laz" if compress else "cloud.las"
    cloud = read(tmp_path, name, las(point_format, version, scale, compress))
    np.testing.assert_allclose(cloud.coord.numpy(), coord, rtol=0, atol=1e-6)
    np.testing.assert_allclose(cloud.colour.numpy(), colour / 255, rtol=0, atol=1e-6)
    assert cloud.normal is None


def test_las_without_colour(tmp_path: Path) -> None:
    assert read(tmp_path, "plain.las", las(point_format=1)).colour is None
    assert read(tmp_path, "unset.las", las(scale=0)).colour is None


def test_positions_alone(tmp_path: Path) -> None:
    coord, colour, _ = points()
    for name, data in {
        "a.npy": array(np.save, coord),
        "b.npz": array(np.savez, coord=coord),
        "c.xyz": "\n".join(" ".join(map(repr, row)) for row in coord.tolist()).encode(),
        "d.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 7\nproperty double x\nproperty double y\n"
        b"property double z\nend_header\n" + coord.tobytes(),
    }.items():
        cloud = read(tmp_path, name, data)
        assert cloud.colour is None and cloud.normal is None and np.array_equal(cloud.coord.numpy(), coord)
    cloud = read(tmp_path, "e.npy", array(np.save, np.concatenate([coord, colour], 1)))
    assert cloud.normal is None and cloud.colour.max() == 1


def test_own_ply_gives_the_points_back(tmp_path: Path) -> None:
    coord, colour, _ = points()
    cloud = read(tmp_path, "own.ply", ply_bytes(coord, colour))
    assert np.array_equal(cloud.coord.numpy(), coord) and cloud.normal is None
    assert np.array_equal((cloud.colour.numpy() * 255).round(), colour)


def test_scale_of_colours_is_told_where_it_is_guessed(tmp_path: Path) -> None:
    colour = points()[1]
    assert not read(tmp_path, "a.npz", npz()).notes
    for values, scale in ((colour / 255, "0..1"), (colour.astype(float), "0..255"), (colour * np.int64(257), "65535")):
        cloud = read(tmp_path, "b.npz", npz(color=values))
        assert scale in cloud.notes[0]
        np.testing.assert_allclose(cloud.colour.numpy(), colour / 255, atol=1e-6)
    dark = read(tmp_path, "c.npz", npz(color=np.ones((COUNT, 3), np.uint8)))
    assert dark.colour.max() == pytest.approx(1 / 255)


def test_normals_become_unit_length(tmp_path: Path) -> None:
    _, _, normal = points()
    normal[1] = 0
    for factor in (3.0, 1e-200, 1e200):
        cloud = read(tmp_path, "a.npz", npz(normal=normal * factor))
        np.testing.assert_allclose(cloud.normal.numpy(), normal, atol=1e-6)


NAN_COORD = points()[0] + np.where(np.arange(COUNT) == 2, np.nan, 0)[:, None]
DAMAGED = {
    "wrong ending": ("a.obj", lambda: b"", r"expected a point cloud ending in \.ply, .* got '\.obj'"),
    "no ply": ("a.ply", lambda: b"solid cube", "expected a PLY header"),
    "no end of the ply header": ("a.ply", lambda: ply()[:60], "expected a PLY header"),
    "ply without format": ("a.ply", lambda: b"ply\nelement vertex 1\nend_header\n", "expected a line 'format'"),
    "ply header line": ("a.ply", lambda: ply().replace(b"property double x", b"property hex x"), "'property hex x'"),
    "ply without points": ("a.ply", lambda: ply().replace(b"vertex ", b"corner "), "expected an element 'vertex'"),
    "ply without z": ("a.ply", lambda: ply().replace(b"double z", b"double w"), "the distinct properties x, y and z"),
    "ply with x twice": ("a.ply", lambda: ply().replace(b"double y", b"double x"), "the distinct properties"),
    "ply with lists first": (
        "a.ply", lambda: ply(before="element camera 1\nproperty list uchar short a\n"), "has lists of varying length",
    ),
    "truncated ply": ("a.ply", lambda: ply()[:-60], r"truncated: 7 points need \d+ bytes, the file has"),
    "truncated ascii ply": ("a.ply", lambda: ply("")[:-200], "(truncated|cannot be read)"),
    "ascii ply without rows": ("a.ply", lambda: ply("").partition(b"end_header\n")[0] + b"end_header\n", "truncated"),
    "words in an ascii ply": ("a.ply", lambda: ply("").replace(b" 255 0 3 ", b" red 0 3 "), "cannot be read"),
    "empty ply": ("a.ply", lambda: ply().replace(b"vertex 7", b"vertex 0"), "expected at least one point, got none"),
    "empty ascii ply": ("a.ply", lambda: ply("").replace(b"vertex 7", b"vertex 0"), "expected at least one point"),
    "huge ply": ("a.ply", lambda: ply().replace(b"vertex 7", b"vertex 99999999999999"), "truncated"),
    "no pcd": ("a.pcd", lambda: b"hello", "expected a PCD header"),
    "pcd type": ("a.pcd", lambda: pcd("binary").replace(b"SIZE 8", b"SIZE 7"), "expected a PCD header"),
    "pcd counts": ("a.pcd", lambda: pcd("binary").replace(b"COUNT 1 1", b"COUNT 1"), "one positive COUNT"),
    "pcd without z": ("a.pcd", lambda: pcd("ascii").replace(b"y z", b"y w"), "expected distinct fields with x, y"),
    "compressed pcd": ("a.pcd", lambda: pcd("binary_compressed"), "expected DATA ascii or binary, got binary_comp"),
    "truncated pcd": ("a.pcd", lambda: pcd("binary")[:-9], "truncated: 7 points need"),
    "truncated ascii pcd": ("a.pcd", lambda: pcd("ascii")[:-220], "(truncated|cannot be read)"),
    "short ascii pcd": ("a.pcd", lambda: pcd("ascii").replace(b"S 7", b"S 8"), "promises 8 points of 9 numbers"),
    "empty pcd": ("a.pcd", lambda: pcd("ascii").replace(b"S 7", b"S 0"), "expected at least one point, got none"),
    "no las": ("a.las", lambda: b"hello", r"is truncated or not a \.las file"),
    "empty las file": ("a.las", lambda: b"", r"is truncated or not a \.las file"),
    "truncated las": ("a.las", lambda: las()[:-10], "truncated"),
    "las records that cannot be": (
        "a.las", lambda: las()[:100] + b"\xff" * 4 + las()[104:], r"points begin at byte 227 behind 4294967295 records",
    ),
    "late las records that cannot be": (
        "a.las", lambda: las(7, "1.4")[:243] + b"\xff" * 4 + las(7, "1.4")[247:], "4294967295 records begin at byte",
    ),
    "laz chunks that cannot be": ("a.laz", lambda: chunks(b"\xff" * 4), "its table lists 4294967295 chunks"),
    "cut in a las header": ("a.las", lambda: las()[:200], "expected a header that begins with 'LASF'"),
    "truncated laz": ("a.laz", lambda: las(compress=True)[:-40], "truncated"),
    "words": ("a.txt", lambda: b"some words\nand more words\n", "expected lines of numbers"),
    "uneven lines": ("a.txt", lambda: b"1 2 3\n1 2\n", "expected lines of numbers"),
    "binary text": ("a.xyz", lambda: bytes(range(128, 256)), "expected a text file of numbers"),
    "empty text": ("a.xyz", lambda: b"# nothing\n", "expected at least one point, got none"),
    "four columns": ("a.xyz", lambda: b"1 2 3 4\n", r"got shape \[1, 4\]"),
    "no npy": ("a.npy", lambda: b"hello", "is truncated or not a NumPy file"),
    "truncated npy": ("a.npy", lambda: array(np.save, points()[0])[:-5], "is truncated or not a NumPy file"),
    "npy header": ("a.npy", lambda: array(np.save, points()[0]).replace(b"{'descr", b"{{'desc"), "not a NumPy file"),
    "objects": ("a.npy", lambda: array(np.save, np.array([{}, 1])), "not a NumPy file of plain numbers"),
    "five columns": ("a.npy", lambda: array(np.save, np.zeros((4, 5))), r"got shape \[4, 5\]"),
    "npz as npy": ("a.npy", npz, "name it .npz"),
    "npy as npz": ("a.npz", lambda: array(np.save, points()[0]), "name it .npy"),
    "npz without coord": ("a.npz", lambda: array(np.savez, xyz=points()[0]), r"'coord', got \['xyz'\]"),
    "truncated npz": ("a.npz", lambda: npz()[:-90], "truncated"),
    "letters": ("a.npz", lambda: npz(coord=np.full((3, 3), "a")), "expected numbers for position, got <U1"),
    "too few colours": ("a.npz", lambda: npz(color=np.zeros((3, 3))), r"colour array of shape \[7, 3\], got \[3, 3\]"),
    "flat normals": ("a.npz", lambda: npz(normal=np.zeros((7, 2))), r"normal array of shape \[7, 3\], got \[7, 2\]"),
    "empty npz": ("a.npz", lambda: array(np.savez, coord=np.zeros((0, 3))), "expected at least one point, got none"),
    "nan position": ("a.npz", lambda: npz(coord=NAN_COORD), "1 of 7 points have a position that is not a finite"),
    "infinite colour": ("a.npz", lambda: npz(color=np.full((7, 3), np.inf)), "7 of 7 points have a colour"),
    "nan normal": ("a.npz", lambda: npz(normal=NAN_COORD), "1 of 7 points have a normal"),
    "negative colour": ("a.npz", lambda: npz(color=-np.ones((7, 3))), "expected colours of 0..1, 0..255 or 0..65535"),
    "no scene": ("a.pth", lambda: b"hello", "truncated or not a file of plain arrays"),
    "truncated scene": ("a.pth", lambda: scene()[:-300], "truncated or not a file of plain arrays"),
    "scene without coord": ("a.pth", lambda: scene().replace(b"coord", b"coorb"), "expected a dictionary with 'coord'"),
    "nan scene": ("a.pth", lambda: scene(coord=NAN_COORD), "1 of 7 points have a position"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_one_sentence(damage: str, tmp_path: Path) -> None:
    name, make, message = DAMAGED[damage]
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, name, make())
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_missing_files(tmp_path: Path) -> None:
    for ending in FORMATS:
        with pytest.raises(DataError, match="there is no such file"):
            read_cloud(tmp_path / f"absent{ending}")
    with pytest.raises(DataError, match="expected a point cloud ending in"):
        read_cloud(tmp_path)


def test_las_without_laspy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "laspy", None)
    with pytest.raises(DataError, match=r'needs laspy: pip install "ponder\[data\]"'):
        read(tmp_path, "a.las", las())


def test_laz_without_lazrs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = las(compress=True)
    monkeypatch.setattr(laspy.LazBackend, "is_available", lambda backend: False)
    with pytest.raises(DataError, match=r'needs lazrs: pip install "ponder\[data\]"'):
        read(tmp_path, "a.laz", compressed)
    assert len(read(tmp_path, "a.las", las())) == COUNT


def test_a_scene_never_runs_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with pytest.raises(DataError, match="truncated or not a file of plain arrays"):
        read(tmp_path, "a.pth", scene(trap=Trap()))
    assert not (tmp_path / "ran").exists()
