"""What a number belongs to: device, versions, commit, date, threads."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "numpy", "pytest-benchmark")


def provenance(device: str) -> dict[str, str | int]:
    """Facts for a report; nothing of them identifies a person or a place."""
    facts: dict[str, str | int] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "kind": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }
    if device == "cuda":
        facts["cuda"] = torch.version.cuda or f"hip {torch.version.hip}"
    return facts | {package: _version(package) for package in PACKAGES}


def _processor() -> str:
    """The CPU's name, without the marks of trade that some carry."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return name.replace("(R)", "").replace("(TM)", "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Short hash, with a plus sign where files differ from it; "unknown" outside of a git checkout."""
    try:
        found, changes = (
            subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
            for arguments in (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + ("+" if changes else "")
