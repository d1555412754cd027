"""What each compiled kernel needs on each kind of GPU: registers, spills, shared memory. No GPU is needed.

``python -m benchmarks.resources`` compiles every specialisation that the library launches for every target and writes
benchmarks/results/resources.md; ``--json`` prints one line per compiled form instead. Run without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ponder_kernels._launch import Specialisation

PACKAGES = (
    "ponder_kernels.volume_sample",
    "ponder_kernels.volume_sample.scatter",
    "ponder_kernels.sdf_density",
    "ponder_kernels.composite",
    "ponder_kernels.ray_sampling",
    "ponder_kernels.sdf_field",
    "ponder_kernels.render",
)
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TABLE = Path(__file__).parent / "results" / "resources.md"
CUDA_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
# Matrix instructions in machine code: warp-level (HMMA), warpgroup-level (HGMMA), fifth generation (UTC*MMA).
TENSOR_CORES = re.compile(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b")
HIP_USAGE = re.compile(r"^\s*\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", re.MULTILINE)


def entry_kernels(package: str) -> dict[str, list[str]]:
    """Kernels that are launched (no leading underscore), each with the arguments it is not specialised on."""
    module = importlib.import_module(f"{package}.kernels")
    functions = {n: v for n, v in vars(module).items() if isinstance(v, triton.JITFunction)}
    own = sorted(n for n, v in functions.items() if v.fn.__module__ == module.__name__)
    entries = [n for n in own if not n.startswith("_")]
    return {n: [p.name for p in functions[n].params if p.do_not_specialize] for n in entries}


def dump(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code of a cubin, as the tools that come with Triton print them."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run([*command, path], check=True, capture_output=True, text=True).stdout
            for command in ((tools / "cuobjdump", "--dump-resource-usage"), (tools / "nvdisasm", "-c"))
        )
    return usage, code


def cuda_usage(cubin: bytes, shared: int) -> dict[str, int]:
    """Registers, spilled bytes and matrix instructions of the kernel in a cubin."""
    usage, code = dump(cubin)
    found = CUDA_USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"no resource usage in: {usage!r}")
    registers, stack, local = map(int, found.groups())
    matrix = len(TENSOR_CORES.findall(code))
    return {"registers": registers, "spill": stack + local, "shared": shared, "matrix": matrix}


def hip_usage(assembly: str, shared: int) -> dict[str, int]:
    """Vector registers and spilled bytes from the metadata of an AMD kernel's assembly."""
    found = {name: int(value) for name, value in HIP_USAGE.findall(assembly)}
    spill = found["private_segment_fixed_size"] + 4 * found["vgpr_spill_count"]
    return {"registers": found["vgpr_count"], "spill": spill, "shared": shared}


def compile_form(form: Specialisation, target: GPUTarget) -> Any:
    """What Triton makes of a form, told which arguments are multiples of 16."""
    names = form.kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in form.aligned}
    source = ASTSource(form.kernel, dict(form.signature), constexprs=dict(form.constexprs), attrs=aligned)
    return triton.compile(source, target=target, options={"num_warps": form.num_warps})


def usage_of(form: Specialisation, target: GPUTarget) -> dict[str, int]:
    """Compile a form; its registers, spilled bytes and shared memory."""
    compiled = compile_form(form, target)
    shared = compiled.metadata.shared
    if "cubin" in compiled.asm:
        return cuda_usage(compiled.asm["cubin"], shared)
    return hip_usage(compiled.asm["amdgcn"], shared)


def compile_one(package: str, index: int, target: str) -> dict[str, Any]:
    """Usage of one specialisation on one target."""
    form = importlib.import_module(f"{package}.op").specialisations()[index]
    line = {"package": package, "kernel": form.kernel.__name__, "arguments": form.kernel.arg_names}
    line |= {"label": form.label, "target": target}
    try:
        return line | usage_of(form, TARGETS[target])
    except Exception as error:  # reported per kernel: one failure must not hide the others
        return line | {"error": f"{type(error).__name__}: {error}"}


def compile_all(packages: list[str], targets: list[str]) -> list[dict[str, Any]]:
    """One result per package, specialisation and target, in that order, over all cores."""
    jobs = [
        (package, index, target)
        for package in packages
        for index, form in enumerate(importlib.import_module(f"{package}.op").specialisations())
        for target in targets
        if form.backend in (None, TARGETS[target].backend)
    ]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(compile_one, *zip(*jobs, strict=True), chunksize=4))


def markdown(results: list[dict[str, Any]]) -> str:
    """A table per package: one row per compiled form, registers / spilled bytes / shared bytes per target."""
    targets = list(dict.fromkeys(r["target"] for r in results))
    forms: dict[tuple[str, str], dict[str, str]] = {}
    for r in results:
        usage = "error" if "error" in r else f"{r['registers']} / {r['spill']} / {r['shared']}"
        forms.setdefault((r["package"], r["label"]), {})[r["target"]] = usage
    lines = [
        "# Resources of every compiled kernel",
        "",
        "Registers per thread / spilled bytes per thread / shared memory bytes per program (LDS on gfx942), from",
        f"`python -m benchmarks.resources` with Triton {triton.__version__}, {datetime.date.today()}.",
        "Compiled on a machine without a GPU; nothing was run.",
        "`gfx942` registers are 64-lane vector registers, of which a lane has up to 512.",
    ]
    for package in dict.fromkeys(p for p, _ in forms):
        lines += ["", f"## {package}", "", f"| kernel [pointers] [constants] | {' | '.join(targets)} |"]
        lines.append("| --- |" + " --- |" * len(targets))
        for (owner, label), usage in forms.items():
            if owner == package:
                lines.append(f"| `{label}` | {' | '.join(usage.get(t, '') for t in targets)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Compile, then write the table or print JSON lines (the first line lists the entry kernels)."""
    parser = argparse.ArgumentParser(prog="benchmarks.resources", description=__doc__)
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--json", action="store_true", help="print results instead of writing the table")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("benchmarks.resources: unset TRITON_INTERPRET, interpreted kernels cannot be compiled")
    results = compile_all(options.packages, options.targets)
    if options.json:
        print(json.dumps({"kernels": {p: entry_kernels(p) for p in options.packages}}))
        print("\n".join(map(json.dumps, results)))
    else:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(markdown(results), encoding="utf-8")
        print(f"{len(results)} compiled forms, table in {TABLE}")


if __name__ == "__main__":
    main(sys.argv[1:])
