"""Which rows of the launch table are swept, with which candidates, and which of these cannot be used."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from triton.backends.compiler import GPUTarget

from benchmarks.resources import usage_of
from ponder_kernels import _tuning
from ponder_kernels._launch import Specialisation

Row = dict[str, int]


class Sweep(NamedTuple):
    """Candidates for one row of the launch table.

    Attributes:
        kernel, bucket: whose row.
        case: workload that is run.
        package: whose `specialisations()` are compiled; "" where the row changes no compiled form.
        choices: parameter -> values; all combinations are tried.
    """

    kernel: str
    bucket: str
    case: str
    package: str
    choices: Mapping[str, tuple[int, ...]]

    @property
    def row(self) -> str:
        """Name in the table."""
        return f"{self.kernel}/{self.bucket}" if self.bucket else self.kernel

    def candidates(self) -> list[Row]:
        """All combinations."""
        return [dict(zip(self.choices, values, strict=True)) for values in itertools.product(*self.choices.values())]


_FIELD, _RENDER, _SAMPLE = (f"ponder_kernels.{name}.op" for name in ("sdf_field", "render", "volume_sample"))
_TILES = {"BLOCK_M": (16, 32, 64), "num_warps": (4, 8)}
_SCANS = {"BLOCK_R": (4, 8, 16), "BLOCK_S": (32,), "num_warps": (2, 4)}
_SCATTERS = {"BLOCK_M": (16, 32, 64), "BLOCK_C": (32, 64), "num_warps": (4, 8)}
_POINTS = {"TILE": (256, 512, 1024), "num_warps": (2, 4)}
# Those that take most of a step first: time may run out.
SWEEPS = (
    Sweep("sdf_field_forward_kernel", "tf32", "indoor", _FIELD, _TILES),
    Sweep("sdf_field_backward_kernel", "tf32", "indoor", _FIELD, _TILES),
    Sweep("sdf_field_scatter_kernel", "", "indoor", _FIELD, _SCATTERS),
    Sweep("render_rays", "", "indoor", "", {"chunk_bytes": tuple(1 << n for n in range(23, 28))}),
    Sweep("opacity_backward_kernel", "", "indoor", _RENDER, _SCANS),
    Sweep("opacity_forward_kernel", "", "indoor", _RENDER, _SCANS),
    Sweep("sdf_field_forward_kernel", "tf32-deep", "camera", _FIELD, _TILES),
    Sweep("sdf_field_backward_kernel", "tf32-deep", "camera", _FIELD, _TILES),
    Sweep("volume_sample_forward_kernel", "", "sampling", _SAMPLE, _POINTS),
    Sweep("volume_sample_backward_kernel", "", "sampling", _SAMPLE, _POINTS),
    Sweep("volume_sample_double_backward_kernel", "", "sampling", _SAMPLE, _POINTS),
)


@contextmanager
def trying(name: str, row: Row, families: tuple[str, ...]) -> Iterator[None]:
    """The table with another row, within the block."""
    table = _tuning.rows()
    before = {family: dict(table[family]) for family in families}
    for family in families:
        table[family][name] = row
    try:
        yield
    finally:
        for family, own in before.items():
            table[family].clear()
            table[family].update(own)


def forms_with(sweep: Sweep, row: Row, backend: str) -> list[Specialisation]:
    """Compiled forms that a row changes."""
    if not sweep.package:
        return []
    specialisations = importlib.import_module(sweep.package).specialisations

    def forms() -> dict[tuple[str, int], Specialisation]:
        return {(form.label, form.num_warps): form for form in specialisations() if form.backend in (None, backend)}

    known = forms()
    with trying(sweep.row, row, (_tuning.DEFAULT, _tuning.HIP)):
        return [form for key, form in forms().items() if key not in known]


def objection(sweep: Sweep, row: Row, target: GPUTarget, most: int | None = None) -> str:
    """Why a candidate cannot be used on a target, by compiling its forms (the first `most`); "" if it can."""
    for form in forms_with(sweep, row, target.backend)[:most]:
        try:
            spilled = usage_of(form, target)["spill"]
        except Exception as error:  # a candidate that does not compile is one to reject, with the compiler's reason
            return f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        if spilled:
            return f"spills {spilled} bytes"
    return ""
