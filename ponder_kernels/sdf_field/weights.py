"""PonderV2's SDF activation, as torch computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels._constants import SOFTPLUS_BETA, SOFTPLUS_THRESHOLD


def softplus(x: Tensor) -> Tensor:
    """torch's Softplus(beta=100, threshold=20)."""
    return torch.nn.functional.softplus(x, beta=SOFTPLUS_BETA, threshold=SOFTPLUS_THRESHOLD)
