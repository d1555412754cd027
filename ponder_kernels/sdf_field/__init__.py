"""Signed distance and its gradient from a feature volume: sampling, decoder and closed-form gradient in one."""

from ponder_kernels.sdf_field.chain import Layer
from ponder_kernels.sdf_field.op import SdfField, sdf_field

__all__ = ["Layer", "SdfField", "sdf_field"]
