"""Switches between what PonderV2's released code does and what its paper means."""

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
        point_loss_unused: the loss of the points' own classes is reported but not part of what is optimised, and its
            weight only says whether it is computed. False: it is added with its weight.
        scrambled_templates: a class's text embedding averages over prompts of other classes. False: over the templates
            of its own.
        class_rows_in_global_order: rows of a dataset's text table stand in the order of the class list of all
            datasets, which is not that of S3DIS's labels. False: in the order of the labels.
        no_target_for_class_zero: pixels of class 0 have no semantic target. False: they have one.
        mismatched_grids: points are scattered into cells other than those that the renderer reads there. False: those
            whose centres, as the renderer places them, are nearest.
        cycled_momentum: the one-cycle schedule also moves the momentum, whatever the optimiser was given. False: the
            momentum is the optimiser's.
        plain_rounding: the operations and roundings of PonderV2's code, so that its float32 numbers come out, not only
            its formulas: samples are drawn in the precision of the rays, opacities are differences of nearly equal
            numbers and, on a CPU, the SDF's values are evaluated layer by layer. False: samples are drawn in float64
            and opacities keep their digits, which is nearer to what the formulas say (opacities on the Triton backend
            always do) and takes less time.
        reinterpreted_kernels: kernels of 1x1x1 sparse convolutions, stored [out, in], are read as if they were [in,
            out]. Released weights rely on it. False: they are transposed.
    """

    raw_sampler_points: bool = True
    unsigned_direction_offset: bool = True
    shared_depth_range: bool = True
    black_pixels_without_depth: bool = True
    same_class_negatives: bool = True
    point_loss_unused: bool = True
    scrambled_templates: bool = True
    class_rows_in_global_order: bool = True
    no_target_for_class_zero: bool = True
    mismatched_grids: bool = True
    cycled_momentum: bool = True
    plain_rounding: bool = True
    reinterpreted_kernels: bool = True

    @classmethod
    def corrected(cls) -> Parity:
        """Every departure corrected."""
        return replace(cls(), **{field.name: False for field in fields(cls)})
