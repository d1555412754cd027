"""The eager renderer with torch.compile wherever PyTorch can.

In training PyTorch cannot compile what is differentiated twice: the volume's samples, the SDF decoder and the gradient
of the one by the other stay eager ("torch.compile with aot_autograd does not currently support double backward"). In
evaluation nothing is differentiated twice and these are compiled as well.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.ponderv2 import SurfaceModel, build_renderer
from benchmarks.baselines.ponderv2.density import unisurf_occupancy
from benchmarks.baselines.ponderv2.samplers import FieldQueries


def build_compiled(config: dict[str, Any], training: bool, backend: str = "inductor") -> SurfaceModel:
    """The baseline's renderer, compiled in parts at its first step.

    Args:
        config: PonderV2's `renderer` dictionary.
        training: what it is built for; a compiled evaluation cannot be trained.
        backend: of torch.compile.
    """
    compile_with = functools.partial(torch.compile, backend=backend)
    renderer = build_renderer(config)
    field = renderer.field
    # Buffers that a backward pass may overwrite forbid `create_graph`, with which the field asks for its gradient.
    torch._functorch.config.donated_buffer = False
    compiled_sdf = compile_with(field.get_sdf)

    def queries(volumes: Sequence[Tensor]) -> FieldQueries:
        # The samplers ask without gradients, in training too.
        return FieldQueries(lambda points: compiled_sdf(points, volumes)[0], unisurf_occupancy, field.laplace_density)

    renderer._queries = queries  # type: ignore[method-assign]
    for decoder in (field.rgb_decoder, field.semantic_decoder):
        if decoder is not None:
            decoder.compile(backend=backend)
    renderer.weights = compile_with(renderer.weights)  # type: ignore[method-assign]
    if training:
        renderer.get_loss = compile_with(renderer.get_loss)  # type: ignore[method-assign]
    else:
        field.get_sdf = compiled_sdf  # type: ignore[method-assign]
    return renderer


@functools.cache
def cannot_compile(device: str) -> str | None:
    """Why torch.compile does not work on a device, in one line; None where it does."""
    try:
        torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing, compiler or driver, is reported in the table
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def _probe(x: Tensor) -> Tensor:
    return torch.sin(x) + 1
