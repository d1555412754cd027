"""Compiles Triton kernels for GPUs that need not be present, and reports what each one uses as JSON lines.

Run without TRITON_INTERPRET: ``python compile_probe.py 80,90 ponder_kernels.composite ...``; each package
named has an ``op.specialisations()`` and a ``kernels`` module. The first line lists the entry kernels.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def entry_kernels(package: str) -> dict[str, list[str]]:
    """Kernels that are launched (no leading underscore), each with the arguments it is not specialised on."""
    module = importlib.import_module(f"{package}.kernels")
    functions = {n: v for n, v in vars(module).items() if isinstance(v, triton.JITFunction)}
    own = sorted(n for n, v in functions.items() if v.fn.__module__ == module.__name__)
    entries = [n for n in own if not n.startswith("_")]
    return {n: [p.name for p in functions[n].params if p.do_not_specialize] for n in entries}


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes of the one kernel in a cubin, by the cuobjdump that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True).stdout
    found = USAGE.search(text)
    if found is None:
        raise RuntimeError(f"no resource usage in: {text!r}")
    registers, stack, shared, local = map(int, found.groups())
    return {"registers": registers, "stack": stack, "shared": shared, "local": local}


def compile_one(form: Any, architecture: int) -> dict[str, int]:
    """Compile one specialisation, telling the compiler which arguments are multiples of 16."""
    names = form.kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in form.aligned}
    source = ASTSource(form.kernel, dict(form.signature), constexprs=dict(form.constexprs), attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": form.num_warps})
    return resource_usage(compiled.asm["cubin"])


def main(architectures: list[int], packages: list[str]) -> None:
    """Print the entry kernels, then one line per specialisation and architecture."""
    print(json.dumps({"kernels": {p: entry_kernels(p) for p in packages}}))
    for package in packages:
        for form in importlib.import_module(f"{package}.op").specialisations():
            for architecture in architectures:
                name, arguments = form.kernel.__name__, form.kernel.arg_names
                line = {"kernel": name, "arguments": arguments, "label": form.label}
                try:
                    line |= compile_one(form, architecture)
                except Exception as error:  # reported per kernel: one failure must not hide the others
                    line["error"] = f"{type(error).__name__}: {error}"
                print(json.dumps(line | {"architecture": architecture}), flush=True)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("compile_probe: unset TRITON_INTERPRET, interpreted kernels cannot be compiled")
    main([int(a) for a in sys.argv[1].split(",")], sys.argv[2:])
