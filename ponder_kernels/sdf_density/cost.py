"""Traffic and arithmetic of the SDF-to-density operators as functions of the number of samples.

Transcendental functions count as one FLOP. Totals of per-program partial sums (4 bytes per 1024 samples) are
left out.
"""

from __future__ import annotations

from ponder_kernels._launch import Cost


def neus_alpha_cost(samples: int) -> Cost:
    """Forward: three float32 in, one out."""
    return Cost(bytes_read=12 * samples, bytes_written=4 * samples, flops=56 * samples)


def neus_alpha_backward_cost(samples: int) -> Cost:
    """Backward: the forward's inputs and the upstream gradient in, three gradients out."""
    return Cost(bytes_read=16 * samples, bytes_written=12 * samples, flops=80 * samples)


def laplace_density_cost(samples: int) -> Cost:
    """Forward: the distance in, the density out."""
    return Cost(bytes_read=4 * samples, bytes_written=4 * samples, flops=7 * samples)


def laplace_density_backward_cost(samples: int) -> Cost:
    """Backward: the distance and the upstream gradient in, the distance's gradient out."""
    return Cost(bytes_read=8 * samples, bytes_written=4 * samples, flops=16 * samples)


def alpha_from_density_cost(samples: int) -> Cost:
    """Forward: density and interval in, alpha out."""
    return Cost(bytes_read=8 * samples, bytes_written=4 * samples, flops=20 * samples)


def alpha_from_density_backward_cost(samples: int) -> Cost:
    """Backward: density, interval and the upstream gradient in, two gradients out."""
    return Cost(bytes_read=12 * samples, bytes_written=8 * samples, flops=6 * samples)
