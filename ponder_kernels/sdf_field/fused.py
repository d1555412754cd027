"""Launches of the SDF field's Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._backend import choose_backend
from ponder_kernels._launch import Plan, Specialisation, cdiv, launch, next_power_of_two, specialise
from ponder_kernels._tuning import DEFAULT, HIP, family_of, tuned_plan
from ponder_kernels.sdf_field.chain import Chain
from ponder_kernels.sdf_field.gather import VolumeGeometry
from ponder_kernels.sdf_field.packing import (
    FieldSizes,
    add_chain_gradient,
    chain_factors,
    field_sizes,
    pack_chain,
    unsupported,
)
from ponder_kernels.sdf_field.volumes import SplitVolume, VolumeGradient, locate

PRECISIONS = ("tf32", "tf32x3", "bf16", "ieee")
# Channels of the second half that a program handles at once.
BLOCK_C = 64


def bucket(sizes: FieldSizes, precision: str) -> str:
    """Whose row in the launch table a field takes, in kernels with matrix products.

    The default rows are the largest tiles that need no spills (see benchmarks/results/resources.md). In the scatter,
    which has one row for all, more channels at once spill where atomics are scalar (sm_80).
    """
    return f"{precision}-deep" if sizes.layers > 1 else precision


class Points(NamedTuple):
    """Points [N, 3] in box coordinates, of which the first is number `start` of all scenes' points.

    Slices of a tensor as points keep the compiled form where they start on 16 bytes: at multiples of 4 points.
    """

    points: Tensor
    start: int
    per_scene: int


class RayState(NamedTuple):
    """What the geometry columns of the state are made of: directions [N / S, 3], distances along the ray [N]."""

    directions: Tensor
    position: Tensor
    samples: int
    normal_floor: float


def _constants(sizes: FieldSizes, align_corners: bool, padding: str) -> dict[str, int | bool]:
    return {
        "CHANNELS": sizes.channels,
        "FIRST": sizes.first,
        "SECOND": sizes.second,
        "POINTS": sizes.points,
        "INPUTS": sizes.inputs,
        "HIDDEN": sizes.hidden,
        "LAYERS": sizes.layers,
        "SECOND_WIDTH": sizes.second_width,
        "STATE_WIDTH": sizes.state_width,
        "ALIGN": align_corners,
        "BORDER": padding == "border",
        "BLOCK_C": min(BLOCK_C, max(16, next_power_of_two(sizes.second_width))),
    }


class Plans(NamedTuple):
    """Launches of one field: its constants, the bucket of its rows in the launch table, and the family of GPUs."""

    constants: dict[str, int | bool]
    bucket: str
    precision: str
    family: str

    def forward(self, gradient: bool, store: bool, rays: bool, slope: bool) -> Plan:
        """Plan of the forward kernel."""
        flags = {"GRADIENT": gradient, "STORE": store, "RAYS": rays, "STORE_SLOPE": slope}
        return self._plan("sdf_field_forward_kernel", {**self.constants, **flags})

    def backward(self, state_bar: bool) -> Plan:
        """Plan of the backward kernel."""
        kept = {k: v for k, v in self.constants.items() if k not in ("SECOND", "BLOCK_C")}
        return self._plan("sdf_field_backward_kernel", {**kept, "HAS_STATE_BAR": state_bar})

    def scatter(self, state_bar: bool) -> Plan:
        """Plan of the scatter kernel."""
        left_out = ("POINTS", "LAYERS", "SECOND_WIDTH")
        kept = {k: v for k, v in self.constants.items() if k not in left_out}
        plan = tuned_plan("sdf_field_scatter_kernel", {**kept, "HAS_STATE_BAR": state_bar}, family=self.family)
        block = min(plan.constexprs["BLOCK_C"], max(16, next_power_of_two(int(kept["FIRST"]))))
        return Plan({**plan.constexprs, "BLOCK_C": block}, plan.num_warps)

    def _plan(self, kernel: str, constants: dict[str, int | bool]) -> Plan:
        precise = {**constants, "PRECISION": PRECISIONS.index(self.precision)}
        return tuned_plan(kernel, precise, self.bucket, self.family)


def plans(sizes: FieldSizes, align_corners: bool, padding: str, precision: str, family: str) -> Plans:
    """Plans of a field for a family of GPUs."""
    return Plans(_constants(sizes, align_corners, padding), bucket(sizes, precision), precision, family)


class FusedField:
    """One volume and one decoder, ready for the kernels.

    Args:
        rows: [B D H W, C] float32, contiguous.
        geometry: the volume's geometry.
        chain: scaled decoder that ends in one row.
        second: channels behind the decoder's that the state keeps.
        points: whether the decoder sees the points.
        precision: of the matrix products, one of PRECISIONS.
    """

    def __init__(
        self, rows: Tensor, geometry: VolumeGeometry, chain: Chain, second: int, points: bool, precision: str
    ) -> None:
        self.sizes = field_sizes(chain, rows.shape[1], second, points)
        self.rows, self.box = rows, geometry.box.to(rows.dtype).contiguous()
        self.extent = geometry.shape[1:]
        self.packed = pack_chain(chain, self.sizes)
        family = family_of(rows.device)
        self._plans = plans(self.sizes, geometry.align_corners, geometry.padding, precision, family)

    def forward(
        self,
        given: Points,
        sdf: Tensor,
        gradient: Tensor | None,
        state: Tensor | None = None,
        rays: RayState | None = None,
        backward: bool = False,
    ) -> None:
        """Fill sdf [N], and where they are given gradient [N, 3] and state [N, state_width].

        Only with `backward`, which takes a gradient, has the state what the backward pass needs besides.
        """
        from ponder_kernels.sdf_field import kernels

        plan = self._plans.forward(gradient is not None, state is not None, rays is not None, backward)
        unused = self.packed
        directions, position, samples, floor = (unused, unused, 1, 0.0) if rays is None else rays
        count = given.points.shape[0]
        launch(
            kernels.sdf_field_forward_kernel, (cdiv(count, int(plan.constexprs["BLOCK_M"])),), plan,
            self.rows, given.points, self.box, self.packed, directions, position, sdf,
            unused if gradient is None else gradient, unused if state is None else state,
            given.start, count, given.per_scene, samples, *self.extent, floor,
        )  # fmt: skip

    def backward(
        self,
        given: Points,
        scene: Tensor,
        state: Tensor,
        bars: tuple[Tensor, Tensor],
        state_bar: Tensor | None,
        volume_bar: FusedGradient,
        out: Chain,
    ) -> None:
        """Add the derivatives of the points to those of the volume and the decoder.

        Args:
            given, state: as in the forward pass.
            scene: [N] int64 scene of every point.
            bars: derivatives by sdf [N] and gradient [N, 3], contiguous.
            state_bar: [N, state_width] by the state, or None.
            volume_bar, out: the sums.
        """
        from ponder_kernels.sdf_field import kernels

        count = given.points.shape[0]
        factors = chain_factors(self.sizes, count, state)
        input_bar = state.new_empty(count, self.sizes.inputs)
        plan = self._plans.backward(state_bar is not None)
        bar = self.packed if state_bar is None else state_bar
        sizes = (given.start, count, given.per_scene, *self.extent)
        launch(
            kernels.sdf_field_backward_kernel, (cdiv(count, int(plan.constexprs["BLOCK_M"])),), plan,
            self.rows, given.points, self.box, self.packed, state, *bars, bar, *factors, input_bar, *sizes,
        )  # fmt: skip
        add_chain_gradient(out, factors, state, self.sizes)
        if volume_bar.sums is None:
            at, slope_at = self.sizes.inputs + self.sizes.hidden, self.sizes.state_width - self.sizes.inputs
            second = None if state_bar is None else state_bar[:, at : at + self.sizes.second]
            slope = state[:, slope_at : slope_at + self.sizes.first]
            features = input_bar[:, : self.sizes.first].contiguous(), slope.contiguous()
            volume_bar.scatter(given.points, scene, features, bars[1], second)
            return
        plan = self._plans.scatter(state_bar is not None)
        launch(
            kernels.sdf_field_scatter_kernel, (cdiv(count, int(plan.constexprs["BLOCK_M"])),), plan,
            given.points, self.box, state, bars[1], input_bar, bar, volume_bar.sums, *sizes,
        )  # fmt: skip


class FusedGradient:
    """Derivatives by a volume: sums by atomics in `sums` [B D H W, C], or in one fixed order.

    The order is fixed (and `sums` None) under torch.use_deterministic_algorithms.
    """

    def __init__(self, volume: SplitVolume, rows: Tensor) -> None:
        deterministic = torch.are_deterministic_algorithms_enabled()
        self.sums = None if deterministic else torch.zeros_like(rows)
        self._volume, self._sorted = volume, VolumeGradient(volume) if deterministic else None

    def scatter(
        self, points: Tensor, scene: Tensor, features: tuple[Tensor, Tensor], along: Tensor, second: Tensor | None
    ) -> None:
        """Add in a fixed order: `features` are [M, Cs] by the features, and what `along` [M, 3] multiplies."""
        assert self._sorted is not None
        samples = locate([self._volume], points, scene)
        first, slope = features
        both = first if self._volume.second is None or second is None else torch.cat([first, second], 1)
        for part in samples.scatter([self._volume], both, slope, samples.along(along)):
            self._sorted.add(part)

    def as_volume(self) -> Tensor:
        """[B, C, D, H, W], channels last."""
        if self._sorted is not None:
            return self._sorted.as_volume()
        assert self.sums is not None
        batch, *extent = self._volume.geometry.shape
        return self.sums.view(batch, *extent, -1).permute(0, 4, 1, 2, 3)


def fused_precision(
    backend: str, precision: str, chain: Chain, volumes: Sequence[Tensor], points: Tensor
) -> str | None:
    """The precision to run the kernels in; None where torch operations are to be used.

    Raises:
        ValueError: unknown backend or precision, or "triton" with a field that its kernels cannot take.
        RuntimeError: "triton" where it is not installed.
    """
    _check.choice("precision", precision, PRECISIONS)
    chosen = choose_backend(backend, *volumes, points)
    if chosen == "torch":
        return None
    reason = unsupported(chain, len(volumes))
    if reason is None:
        return precision
    if backend == "triton":
        raise ValueError(f"backend: 'triton' takes {reason}")
    return None


# Decoders of PonderV2's indoor and outdoor configurations: channels, first, second, points, inputs, hidden, layers.
INDOOR = FieldSizes(128, 64, 64, False, 64, 128, 1)
OUTDOOR = FieldSizes(32, 32, 0, True, 64, 16, 5)


def specialisations() -> list[Specialisation]:
    """Compiled forms for PonderV2's configurations and for decoders without and with two hidden layers."""
    affine, two = FieldSizes(24, 20, 4, False, 32, 16, 0), FieldSizes(64, 64, 0, False, 64, 64, 2)
    forms = []
    for family in (DEFAULT, HIP):
        for sizes, padding, precisions in (
            (INDOOR, "zeros", ("tf32", "ieee" if family == HIP else "tf32x3", "bf16")),
            (OUTDOOR, "border", ("tf32",)),
            (affine, "border", ("tf32",)),
            (two, "zeros", ("tf32",)),
        ):
            for precision in precisions:
                made = plans(sizes, sizes is OUTDOOR, padding, precision, family)
                every = sizes in (INDOOR, OUTDOOR) and precision == "tf32"
                forms += _forms(made, every, "hip" if family == HIP else "cuda")
    return forms


def _forms(made: Plans, every: bool, backend: str) -> list[Specialisation]:
    """Forms of one field: all that are launched, or only the largest of each kernel with matrix products."""
    from ponder_kernels.sdf_field import kernels

    # Value; value and gradient; backward of both; rays forwards and backwards.
    kinds = ("", "g", "gsb", "gsr", "gsrb") if every else ("gsrb",)
    flags = [("g" in kind, "s" in kind, "r" in kind, "b" in kind) for kind in kinds]
    bars = (False, True) if every else (True,)
    launches: list[tuple[Any, Plan, tuple[str, ...]]]
    launches = [(kernels.sdf_field_forward_kernel, made.forward(*flag), ("normal_floor",)) for flag in flags]
    launches += [(kernels.sdf_field_backward_kernel, made.backward(bar), ()) for bar in bars]
    if every:
        launches += [(kernels.sdf_field_scatter_kernel, made.scatter(bar), ()) for bar in bars]
    return [specialise(kernel, plan, floats=floats, backend=backend) for kernel, plan, floats in launches]
