"""PonderV2's renderer on the lean kernels: its configurations, parameters, samples, outputs and losses."""

from ponder.render.ponderv2.build import build_renderer
from ponder.render.ponderv2.model import NeuSModel, SurfaceModel, VolSDFModel
from ponder.render.ponderv2.parity import Parity
from ponder.render.ponderv2.rays import RayBundle

__all__ = ["NeuSModel", "Parity", "RayBundle", "SurfaceModel", "VolSDFModel", "build_renderer"]
