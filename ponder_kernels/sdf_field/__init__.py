"""Signed distance and its gradient from a feature volume: sampling, decoder and closed-form gradient in one."""

from ponder_kernels.sdf_field.op import SdfField, sdf_field
from ponder_kernels.sdf_field.weights import SdfWeights

__all__ = ["SdfField", "SdfWeights", "sdf_field"]
