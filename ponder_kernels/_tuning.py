"""Launch parameters of the hot kernels: one small table, a row per kernel and family of GPUs.

`launch_table.json` holds the rows; `python -m benchmarks.tune` measures and writes those of the GPU at hand. Nothing is
tuned at run time. The family "default" has a row for every kernel; another family only has rows that differ.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from ponder_kernels._launch import Plan

DEFAULT = "default"
# AMD's GPUs share one family: 64 lanes to a warp and 512 registers to a lane.
HIP = "gfx942"
FAMILIES = (DEFAULT, HIP, "sm_80", "sm_90")
TABLE = Path(__file__).with_name("launch_table.json")
# The parameter that is not a constant of the kernel.
WARPS = "num_warps"


@functools.cache
def rows() -> dict[str, dict[str, dict[str, int]]]:
    """Family -> "kernel" or "kernel/bucket" -> parameters, as in the file."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {family: table[family]["rows"] for family in FAMILIES}


@functools.cache
def family_of(device: torch.device) -> str:
    """Whose rows hold on a device: those of its exact compute capability if there are any, else the default ones."""
    if device.type != "cuda":
        return DEFAULT
    if torch.version.hip is not None:
        return HIP
    major, minor = torch.cuda.get_device_capability(device)
    name = f"sm_{major}{minor}"
    return name if name in FAMILIES else DEFAULT


def parameters(kernel: str, bucket: str = "", family: str = DEFAULT) -> Mapping[str, int]:
    """The row of a kernel, by its function's name, for a bucket of shapes.

    A family's own row comes before a default one, and that of the bucket before that of the whole kernel.

    Raises:
        KeyError: no such kernel or family.
    """
    table = rows()
    for owner in (table[family], table[DEFAULT]):
        for name in (f"{kernel}/{bucket}", kernel):
            if name in owner:
                return owner[name]
    raise KeyError(f"{TABLE.name}: no row for {kernel!r}")


def tuned_plan(kernel: str, constants: Mapping[str, int | bool], bucket: str = "", family: str = DEFAULT) -> Plan:
    """A launch with the row's constants beside the given ones."""
    row = parameters(kernel, bucket, family)
    return Plan({**constants, **{name: value for name, value in row.items() if name != WARPS}}, row[WARPS])
