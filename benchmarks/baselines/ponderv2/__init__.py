"""PonderV2's renderer (Zhu et al. 2023), written plainly in eager PyTorch.

The SDF gradient comes from autograd through torch's own trilinear sampler and is differentiated again by the loss,
semantics are decoded at every sample, and the contrastive loss forms all pairs of rays: PonderV2's costs, and its
numbers down to rounding. It is the truth that a leaner renderer is tested against, and what it is timed against.
"""

from benchmarks.baselines.ponderv2 import configs
from benchmarks.baselines.ponderv2.build import build_field, build_renderer
from benchmarks.baselines.ponderv2.field import FieldOutput, SDFField
from benchmarks.baselines.ponderv2.model import NeuSModel, SurfaceModel, VolSDFModel
from benchmarks.baselines.ponderv2.rays import RayBundle, RaySamples
from benchmarks.baselines.ponderv2.trilinear import TrilinearSampler, torch_trilinear

__all__ = [
    "FieldOutput",
    "NeuSModel",
    "RayBundle",
    "RaySamples",
    "SDFField",
    "SurfaceModel",
    "TrilinearSampler",
    "VolSDFModel",
    "build_field",
    "build_renderer",
    "configs",
    "torch_trilinear",
]
