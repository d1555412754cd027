"""Differentiable volume-rendering operators: Triton kernels on a GPU, plain PyTorch everywhere else.

Importing this package is quick; torch is imported with the first operator that is used.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder_kernels.composite import RayWeights, composite, render_weights
    from ponder_kernels.ray_sampling import intersect_aabb, merge_edges, resample_edges, stratified_edges
    from ponder_kernels.render import FieldWeights, HeadWeights, Normalisation, RayTargets, RenderedRays, render_rays
    from ponder_kernels.sdf_density import alpha_from_density, laplace_density, neus_alpha
    from ponder_kernels.sdf_field import Layer, PlainDecoder, SdfField, sdf_field
    from ponder_kernels.volume_sample import volume_sample

__all__ = [
    "FieldWeights",
    "HeadWeights",
    "Layer",
    "Normalisation",
    "PlainDecoder",
    "RayTargets",
    "RayWeights",
    "RenderedRays",
    "SdfField",
    "alpha_from_density",
    "composite",
    "intersect_aabb",
    "laplace_density",
    "merge_edges",
    "neus_alpha",
    "render_rays",
    "render_weights",
    "resample_edges",
    "sdf_field",
    "stratified_edges",
    "volume_sample",
]

_FOLDERS = {
    "composite": ("RayWeights", "composite", "render_weights"),
    "ray_sampling": ("intersect_aabb", "merge_edges", "resample_edges", "stratified_edges"),
    "render": ("FieldWeights", "HeadWeights", "Normalisation", "RayTargets", "RenderedRays", "render_rays"),
    "sdf_density": ("alpha_from_density", "laplace_density", "neus_alpha"),
    "sdf_field": ("Layer", "PlainDecoder", "SdfField", "sdf_field"),
    "volume_sample": ("volume_sample",),
}
_FOLDER_OF = {name: folder for folder, names in _FOLDERS.items() for name in names}


class _Package(types.ModuleType):
    """A package whose operators keep their names where a folder is called the same.

    Importing ``ponder_kernels.volume_sample.op`` would otherwise bind ``ponder_kernels.volume_sample`` to the folder.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _FOLDER_OF and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import an operator when it is first asked for (PEP 562)."""
    if name not in _FOLDER_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_FOLDER_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
