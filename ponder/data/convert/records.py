"""What earlier runs of a conversion did, kept below the output folder as one small file per part of a unit."""

from __future__ import annotations

import glob
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ponder.data.convert.sink import AtomicWriter, PartReport
from ponder.data.convert.units import Part, Unit

FOLDER = ".convert"


@dataclass(frozen=True)
class Record:
    """One part of one unit.

    Attributes:
        done: it was converted to the end; False: it was begun.
        options, inputs, outputs: those of the `Part`.
        report: what came of it; empty if not done.
    """

    done: bool
    options: dict[str, Any]
    inputs: str
    outputs: tuple[str, ...]
    report: PartReport


def _path(out: Path, unit: Unit, part: Part) -> Path:
    return out / FOLDER / f"{unit.name}.{part.name}.json"


def read_record(out: Path, unit: Unit, part: Part) -> Record | None:
    """The record of a part; None if there is none that can be read."""
    try:
        data = json.loads(_path(out, unit, part).read_text(encoding="utf-8"))
        report = PartReport.from_json(data["report"])
        return Record(
            bool(data["done"]), dict(data["options"]), str(data["inputs"]), tuple(map(str, data["outputs"])), report
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_record(out: Path, unit: Unit, part: Part, report: PartReport | None, write: AtomicWriter) -> None:
    """Note that a part was begun (`report` None) or finished."""
    data = {
        "done": report is not None,
        "options": part.options,
        "inputs": part.inputs,
        "outputs": part.outputs,
        "report": (report or PartReport()).to_json(),
    }
    path = _path(out, unit, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1) + "\n"

    def fill(stream: BinaryIO) -> None:
        stream.write(text.encode())

    write(path, fill)


def is_done(record: Record | None, part: Part) -> bool:
    """Whether a part needs nothing more: converted with these options from these files, or from files now gone."""
    if record is None or not record.done:
        return False
    return part.absent or (record.options == part.options and record.inputs == part.inputs)


def remove_leftovers(out: Path, part: Part) -> None:
    """Delete temporary files of a run that was killed while it wrote this part."""
    for pattern in part.outputs:
        place = out / pattern
        for found in [*place.parent.glob(f".{place.name}.*.tmp"), *place.parent.glob(f"{place.name}/**/.*.tmp")]:
            found.unlink(missing_ok=True)


def remove_stale(out: Path, record: Record | None, part: Part) -> None:
    """Delete what a run with other options left, so that the results of two runs never mix."""
    if record is None or record.options == part.options:
        return
    for pattern in record.outputs:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            continue
        for name in glob.glob(pattern, root_dir=out):
            path = out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
