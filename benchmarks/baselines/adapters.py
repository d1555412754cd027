"""Other people's libraries in the eager renderer, where they are installed.

Nothing is imported before it is asked for. A library that is missing, or cannot run on a device, gives a sentence.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.ponderv2 import NeuSModel, SurfaceModel, build_renderer
from benchmarks.baselines.ponderv2.compositing import DEPTH_EPS
from benchmarks.baselines.ponderv2.field import FieldOutput
from benchmarks.baselines.ponderv2.rays import RaySamples

NOT_INSTALLED = "not installed"


def cannot_import(name: str) -> str | None:
    """Why a library cannot be used; None if it can. A broken installation says what is wrong with it."""
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return NOT_INSTALLED
    try:
        importlib.import_module(name)
    except Exception as error:  # an extension that does not load may raise anything
        return f"cannot be imported: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def needs_cuda(name: str, device: str) -> str | None:
    """`cannot_import`, for a library that only has CUDA code."""
    missing = cannot_import(name)
    if missing is None and device != "cuda":
        return "runs on CUDA only"
    return missing


def smooth_sampler_trilinear(volume: Tensor, points: Tensor) -> Tensor:
    """The sampler that PonderV2 uses, for the eager renderer; see `ponderv2.trilinear.TrilinearSampler`.

    Its second derivatives are CUDA kernels.
    """
    sampler: Any = importlib.import_module("smooth_sampler").SmoothSampler
    # input, grid, padding_mode, align_corners, apply_smoothstep
    values = sampler.apply(volume, points[:, None, None], "zeros", True, False)
    return values.flatten(2).transpose(1, 2)


class NerfaccModel(NeuSModel):
    """The eager renderer whose compositing is nerfacc's, on packed samples; the field, its gradient and samples stay.

    Factors of nerfacc's transmittance lack PonderV2's 1e-7.
    """

    def weights(self, samples: RaySamples, out: FieldOutput) -> Tensor:
        alpha = self.field.alpha(samples, out)
        rays, count, _ = alpha.shape
        found, _ = _nerfacc().render_weight_from_alpha(
            alpha.reshape(-1), ray_indices=ray_indices(rays, count, alpha.device), n_rays=rays
        )
        return found.view_as(alpha)

    def _images(self, samples: RaySamples, out: FieldOutput, weights: Tensor) -> dict[str, Tensor]:
        rays, count, _ = weights.shape
        where = ray_indices(rays, count, weights.device)

        def along(values: Tensor | None) -> Tensor:
            flat = None if values is None else values.reshape(rays * count, -1)
            return _nerfacc().accumulate_along_rays(weights.reshape(-1), flat, where, rays)

        depth = along(samples.starts) / (along(None) + DEPTH_EPS)
        images = {"depth": depth.clip(samples.starts.min(), samples.starts.max()), "normal": along(out.normals)}
        if out.rgb is not None:
            rgb = along(out.rgb)
            images["rgb"] = rgb if self.training else rgb.clamp(0.0, 1.0)
        if out.semantic is not None:
            images["semantic"] = along(out.semantic)
        return images


def build_nerfacc(config: dict[str, Any]) -> SurfaceModel:
    """The eager renderer with nerfacc's compositing."""
    plain = build_renderer(config)
    return NerfaccModel(plain.field, plain.collider, plain.sampler, plain.loss)


def ray_indices(rays: int, samples: int, device: torch.device) -> Tensor:
    """[R S] which ray each packed sample belongs to."""
    return torch.arange(rays, device=device).repeat_interleave(samples)


def _nerfacc() -> ModuleType:
    return importlib.import_module("nerfacc")
