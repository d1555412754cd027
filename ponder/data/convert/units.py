"""What there is to convert: scenes and rooms, each with the parts wanted of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ponder.data.convert.sink import PartReport, Sink

# The two parts of every unit: point clouds, and posed RGB-D frames.
CLOUD, FRAMES = "clouds", "frames"


@dataclass(frozen=True)
class Part:
    """One part of a unit.

    Attributes:
        name: CLOUD or FRAMES.
        outputs: patterns, relative to the output folder, of all that it writes.
        options: everything chosen by the user that the result depends on.
        inputs: changes when the raw files change.
        absent: the raw files are not there (any more): results of an earlier run are kept.
    """

    name: str
    outputs: tuple[str, ...]
    options: dict[str, Any]
    inputs: str
    absent: bool = False


@dataclass(frozen=True)
class Unit:
    """A scene or room, converted as a whole by one process.

    Attributes:
        name: unique, file-system safe.
        parts: what is wanted of it.
        work: steps that converting all of it takes, for progress.
        source: what the converter needs to find it.
    """

    name: str
    parts: tuple[Part, ...]
    work: int
    source: Any


@dataclass(frozen=True)
class Plan:
    """A data set to convert.

    Attributes:
        dataset: its name.
        unit_name: what its units are called, in the plural.
        units: all of it.
        convert: converts the named parts of a unit; a function of a module, so that other processes find it.
        skipped: what is lost to all units, such as a damaged archive.
    """

    dataset: str
    unit_name: str
    units: Sequence[Unit]
    convert: Callable[[Unit, frozenset[str], Sink], None]
    skipped: PartReport = field(default_factory=PartReport)
