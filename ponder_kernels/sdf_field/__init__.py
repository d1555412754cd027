"""Signed distance and its gradient from a feature volume: sampling, decoder and closed-form gradient in one."""

from ponder_kernels.sdf_field.chain import Layer
from ponder_kernels.sdf_field.op import SdfField, sdf_field
from ponder_kernels.sdf_field.plain import PlainDecoder

__all__ = ["Layer", "PlainDecoder", "SdfField", "sdf_field"]
