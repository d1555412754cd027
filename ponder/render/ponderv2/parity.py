"""Switches between what PonderV2's released renderer does and what its paper means."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Parity:
    """Departures of PonderV2's code that change numbers: True reproduces one, False corrects it.

    That SDF gradients are taken with respect to the normalised points, which eikonal loss, normals and opacities then
    use, has no switch: decoders trained with them depend on it.

    Attributes:
        raw_sampler_points: samplers ask for the SDF at points that are not normalised, though the final evaluation
            normalises them (`norm_pts`): they look at other places of the volume. False: both normalise.
        unsigned_direction_offset: the box collider adds 1e-6 to every component of the direction before it divides, so
            that limits are off for negative components and infinite for one of -1e-6. False: exact limits.
        shared_depth_range: expected depths are clipped to the range of the samples of all rays of the call. False: to
            the range of the ray's own samples.
        black_pixels_without_depth: rays without a measured depth, which are those that miss the box, take part in the
            colour loss with the black that stands in for their colour. False: they are left out.
        same_class_negatives: in the semantic loss a ray is pushed away from the other rays of its own class. False: it
            is pushed away from the other classes only.
    """

    raw_sampler_points: bool = True
    unsigned_direction_offset: bool = True
    shared_depth_range: bool = True
    black_pixels_without_depth: bool = True
    same_class_negatives: bool = True

    @classmethod
    def corrected(cls) -> Parity:
        """Every departure corrected."""
        return replace(cls(), **{field.name: False for field in fields(cls)})
