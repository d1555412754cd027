"""What the compiler makes of the kernels of a rendering step: resources and counted instructions. No GPU is needed.

Instructions are counted once each, as they stand in the machine code, padding left out. The loops over voxel corners
and channels are unrolled in most kernels, so that the counts are those of the loops; where a loop is kept, its body
counts once.
"""

from __future__ import annotations

import importlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from benchmarks.resources import CUDA_USAGE, TARGETS, TENSOR_CORES, compile_form, dump
from ponder_kernels._launch import Specialisation

# Volta's successors share one syntax: an address, perhaps a predicate, the instruction.
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9]*)")
# Instructions that move data between registers (or shared memory) and global memory, by what they do.
GLOBAL = {
    "loads": {"LDG", "LDGSTS", "UBLKCP"},
    "stores": {"STG"},
    "atomics": {"RED", "REDG", "ATOM", "ATOMG"},
}
GPUS = ("sm_80", "sm_90")


class Hot(NamedTuple):
    """A form of a kernel that takes most of a step's time, by the constants that single it out."""

    name: str
    package: str
    kernel: str
    constants: Mapping[str, int]


_INDOOR = {"HIDDEN": 128, "PRECISION": 0}
_RAYS = {"GRADIENT": 1, "STORE": 1, "RAYS": 1, "STORE_SLOPE": 1}
_WIDE = {"C": 128, "LAST": 1, "UNIT": 16}
_FIELD, _RENDER, _SAMPLE = (f"ponder_kernels.{name}" for name in ("sdf_field", "render", "volume_sample"))
HOT = (
    Hot("field, distances", _FIELD, "sdf_field_forward_kernel", {**_INDOOR, "GRADIENT": 0}),
    Hot("field, along rays", _FIELD, "sdf_field_forward_kernel", {**_INDOOR, **_RAYS}),
    Hot("field, backward", _FIELD, "sdf_field_backward_kernel", {**_INDOOR, "HAS_STATE_BAR": 1}),
    Hot("field, scatter", _FIELD, "sdf_field_scatter_kernel", {"HIDDEN": 128, "HAS_STATE_BAR": 1}),
    Hot("opacity, forward", _RENDER, "opacity_forward_kernel", {"NEUS": 1}),
    Hot("opacity, backward", _RENDER, "opacity_backward_kernel", {"NEUS": 1}),
    Hot("sampling, forward", _SAMPLE, "volume_sample_forward_kernel", _WIDE),
    Hot("sampling, backward", _SAMPLE, "volume_sample_backward_kernel", {**_WIDE, "TO_VOLUME": 1, "TO_POINTS": 1}),
)


def form_of(hot: Hot) -> Specialisation:
    """The float32 form that NVIDIA's GPUs run.

    Raises:
        LookupError: the library launches no such form, or several.
    """
    forms = importlib.import_module(f"{hot.package}.op").specialisations()
    found = [
        form
        for form in forms
        if form.kernel.__name__ == hot.kernel
        and form.backend in (None, "cuda")
        and {kind for kind in form.signature.values() if kind.startswith("*")} == {"*fp32"}
        and all(int(form.constexprs[name]) == value for name, value in hot.constants.items())
    ]
    if len(found) != 1:
        raise LookupError(f"{hot.name}: expected one form of {hot.kernel}, found {len(found)}")
    return found[0]


def instructions(code: str) -> dict[str, int]:
    """Counts by kind in the machine code of one kernel."""
    found = Counter(INSTRUCTION.findall(code))
    counts = {kind: sum(found[name] for name in names) for kind, names in GLOBAL.items()}
    counts["tensor-core instructions"] = len(TENSOR_CORES.findall(code))
    counts["multiply-adds"] = found["FFMA"] + found["FFMA2"]
    counts["instructions"] = sum(found.values()) - found["NOP"]
    return counts


def measure_one(hot: Hot, gpu: str) -> dict[str, int]:
    """Kind of figure -> value, for one form compiled for one kind of GPU."""
    compiled = compile_form(form_of(hot), TARGETS[gpu])
    usage, code = dump(compiled.asm["cubin"])
    found = CUDA_USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"no resource usage in: {usage!r}")
    registers, stack, local = map(int, found.groups())
    resources = {"registers": registers, "spilled bytes": stack + local, "shared bytes": compiled.metadata.shared}
    return resources | instructions(code)


def measure(match: str = "") -> dict[str, dict[str, float]]:
    """Kind -> subject -> value, of the forms whose subject contains `match`."""
    jobs = {f"{hot.name}, {gpu}": (hot, gpu) for hot in HOT for gpu in GPUS}
    jobs = {subject: job for subject, job in jobs.items() if match in subject}
    figures: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(min(len(jobs), len(os.sched_getaffinity(0))) or 1) as pool:
        for subject, counts in zip(jobs, pool.map(measure_one, *zip(*jobs.values(), strict=True)), strict=True):
            for kind, value in counts.items():
                figures.setdefault(kind, {})[subject] = value
    return figures
