"""The names that other projects may rely on."""

from __future__ import annotations

import inspect

import ponder_kernels

FIRST_SET = (
    "volume_sample",
    "neus_alpha",
    "laplace_density",
    "alpha_from_density",
    "render_weights",
    "composite",
    "intersect_aabb",
    "stratified_edges",
    "resample_edges",
    "sdf_field",
    "render_rays",
)


def test_operators_are_exported_and_documented() -> None:
    for name in FIRST_SET:
        operator = getattr(ponder_kernels, name)
        assert inspect.isfunction(operator), name
        text = inspect.getdoc(operator) or ""
        assert "Args:" in text and "Returns:" in text, name
    assert sorted(ponder_kernels.__all__) == list(ponder_kernels.__all__)
    assert all(hasattr(ponder_kernels, name) for name in ponder_kernels.__all__)
