"""Choosing the device of a run."""

from __future__ import annotations

import torch


class DeviceError(ValueError):
    """A device that was asked for and is not there; the message is one sentence."""


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is a device, else the CPU.

    Raises:
        DeviceError: unknown name, or "cuda" without a CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise DeviceError(f"--device: expected auto, cpu or cuda, got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: no CUDA device is available here; use --device cpu or auto")
    return torch.device(name)
