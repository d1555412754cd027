"""`sdf_field`: signed distance and its gradient from feature volumes, as one differentiable operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ponder_kernels import _check
from ponder_kernels._register import keeps_float32
from ponder_kernels._threads import PerThread, even_parts, for_each
from ponder_kernels._workspace import Workspace
from ponder_kernels.sdf_field.chain import (
    Chain,
    ChainBar,
    Layer,
    activate,
    chain_backward,
    check_chain,
    distance,
    flatten,
    input_gradient,
    map_tensors,
    rebuild,
    scaled,
    value_backward,
)
from ponder_kernels.sdf_field.fused import FusedField, FusedGradient, Points, fused_precision, specialisations
from ponder_kernels.sdf_field.gather import PADDINGS, VolumeGeometry, scene_of_rows, volume_rows
from ponder_kernels.sdf_field.packed import batch_points
from ponder_kernels.sdf_field.volumes import Growth, SplitVolume, VolumeGradient, locate, split_volume

# Points evaluated at once: enough that the time of small operations does not show, few enough for caches.
POINTS_AT_ONCE = 8192
# The same for the Triton kernels, whose working buffers have about 700 columns in all.
FUSED_POINTS_AT_ONCE = 1 << 15


class SdfField(NamedTuple):
    """sdf [B, N] and, where asked for, its gradient by the points [B, N, 3]; [N] and [N, 3] for packed ones."""

    sdf: Tensor
    gradient: Tensor | None


def check_volume(volume: Tensor, box: Tensor, align_corners: bool, padding: str) -> VolumeGeometry:
    """Check a volume and its boxes; returns their geometry."""
    _check.floating("volume", volume)
    _check.floating("box", box)
    sizes = _check.shape("volume", volume, "B C D H W")
    _check.shape("box", box, "B 2 3", sizes)
    _check.same_device("volume", volume, box=box)
    _check.choice("padding", padding, PADDINGS)
    shape = (sizes["B"], sizes["D"], sizes["H"], sizes["W"])
    if min(shape[1:]) < 1:
        raise ValueError(f"volume: expected at least one voxel per axis, got shape {list(volume.shape)}")
    return VolumeGeometry(shape, box, align_corners, padding)


class _Plan(NamedTuple):
    """What the Function needs besides tensors; `precision` is that of the Triton kernels, None without them."""

    volumes: list[SplitVolume]
    chain: Chain
    points: bool
    gradient: bool
    per_scene: int
    rows: Tensor | None
    precision: str | None

    def fused(self, chain: Chain) -> FusedField | None:
        """The kernels' view of the field, if they are to be used."""
        if self.precision is None or self.rows is None:
            return None
        return FusedField(self.rows, self.volumes[0].geometry, chain, 0, self.points, self.precision)


class _SdfField(torch.autograd.Function):
    """sdf [M] and gradient [M, 3] (of no rows where it is not wanted); nothing per point is kept for the backward."""

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, points: Tensor, scene: Tensor, n_volumes: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        chain = rebuild(plan.chain, iter(tensors[n_volumes:]))
        ctx.save_for_backward(points, scene, *tensors[n_volumes:])
        ctx.plan, ctx.n_volumes = plan, n_volumes
        sdf = points.new_empty(points.shape[0])
        gradient = points.new_empty(points.shape[0] if plan.gradient else 0, 3)
        if fused := plan.fused(chain):
            fused.forward(Points(points, 0, plan.per_scene), sdf, gradient if plan.gradient else None)
            return sdf, gradient
        workspaces = PerThread(lambda: Workspace(points))

        def run(part: slice) -> None:
            found = _forward(plan, chain, points[part], scene[part], workspaces.value)
            sdf[part] = found[0]
            if found[1] is not None:
                gradient[part] = found[1]

        for_each(run, even_parts(points.shape[0], POINTS_AT_ONCE), points.device)
        return sdf, gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sdf_bar: Tensor, gradient_bar: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        points, scene, *weights = ctx.saved_tensors
        chain = rebuild(plan.chain, iter(weights))
        out = rebuild(plan.chain, iter([torch.zeros_like(w) for w in weights]))
        if not plan.gradient:
            gradient_bar = points.new_zeros(points.shape)
        needs = ctx.needs_input_grad[4:]
        if fused := plan.fused(chain):
            volume_bar = _fused_backward(plan, fused, points, scene, (sdf_bar, gradient_bar), out)
            return None, None, None, None, volume_bar if needs[0] else None, *flatten(out)
        volumes = [VolumeGradient(v) for v in plan.volumes]
        workspaces = PerThread(lambda: Workspace(points))

        def run(part: slice) -> tuple[list[Growth], Chain]:
            bars = sdf_bar[part], gradient_bar[part]
            return _backward(plan, chain, points[part], scene[part], bars, workspaces.value)

        def add(found: tuple[list[Growth], Chain]) -> None:
            for volume, part in zip(volumes, found[0], strict=True):
                volume.add(part)
            torch._foreach_add_(flatten(out), flatten(found[1]))

        for_each(run, even_parts(points.shape[0], POINTS_AT_ONCE), points.device, use=add)
        grads = [g.as_volume() if need else None for g, need in zip(volumes, needs, strict=False)]
        return None, None, None, None, *grads, *flatten(out)


def _forward(plan: _Plan, chain: Chain, points: Tensor, scene: Tensor, work: Workspace) -> tuple[Tensor, Tensor | None]:
    """sdf [M] and, if wanted, its gradient [M, 3]."""
    samples = locate(plan.volumes, points, scene)
    z = samples.features(plan.volumes, points if plan.points else None, second=False)
    hidden = activate(chain, z, work, gates=plan.gradient)
    sdf = distance(chain, z, hidden)
    if not plan.gradient:
        return sdf, None
    by_z = input_gradient(chain, hidden, z.shape[0], work).z
    gradient = samples.slopes(plan.volumes, by_z)
    return sdf, gradient.add_(by_z[:, -3:]) if plan.points else gradient


def _backward(
    plan: _Plan, chain: Chain, points: Tensor, scene: Tensor, bars: tuple[Tensor, Tensor], work: Workspace
) -> tuple[list[Growth], Chain]:
    """Derivatives by the volumes and the decoder, given those by sdf [M] and its gradient [M, 3]."""
    out: Chain = map_tensors(chain, torch.zeros_like)
    samples = locate(plan.volumes, points, scene)
    z = samples.features(plan.volumes, points if plan.points else None, second=False)
    hidden = activate(chain, z, work)
    slopes = input_gradient(chain, hidden, z.shape[0], work)
    along = samples.along(bars[1])
    by_z = samples.directional(plan.volumes, along)
    if plan.points:
        by_z = torch.cat([by_z, bars[1]], 1)
    bar = ChainBar(by_z, *value_backward(chain, z, hidden, bars[0], out))
    z_bar = chain_backward(chain, z, hidden, slopes, bar, out, work)
    return samples.scatter(plan.volumes, z_bar, slopes.z, along), out


def _fused_backward(
    plan: _Plan, fused: FusedField, points: Tensor, scene: Tensor, bars: tuple[Tensor, Tensor], out: Chain
) -> Tensor:
    """The volume's derivative; the decoder's are added to `out`."""
    volume_bar = FusedGradient(plan.volumes[0], fused.rows)
    bars = bars[0].contiguous(), bars[1].contiguous()
    for start in range(0, points.shape[0], FUSED_POINTS_AT_ONCE):
        part = slice(start, start + FUSED_POINTS_AT_ONCE)
        given = Points(points[part], start, plan.per_scene)
        count = given.points.shape[0]
        state = points.new_empty(count, fused.sizes.state_width)
        fused.forward(given, points.new_empty(count), points.new_empty(count, 3), state, backward=True)
        fused.backward(given, scene[part], state, (bars[0][part], bars[1][part]), None, volume_bar, out)
    return volume_bar.as_volume()


@keeps_float32("volume")
def sdf_field(
    volume: Tensor | Sequence[Tensor],
    layers: Sequence[Layer],
    points: Tensor,
    box: Tensor,
    *,
    gradient: bool = True,
    with_points: bool = False,
    align_corners: bool = False,
    padding: str = "border",
    scene_offsets: Tensor | None = None,
    backend: str = "auto",
    precision: str = "tf32",
) -> SdfField:
    """Evaluate the SDF that feature volumes and a decoder define, and its spatial gradient in closed form.

    Differentiable to first order with respect to the volumes and the decoder; because the gradient is computed
    forwards, losses on it (eikonal, normals) need no double backward. Points are constants. The backward pass gathers
    and decodes again, so that nothing but the points is kept.

    Args:
        volume: [B, C, D, H, W] floating, or several (same B and C) whose features are put side by side; converted to
            the dtype of `points`. The SDF reads the first channels of each, as many as the decoder is wide.
        layers: the decoder, with PonderV2's softplus (sharpness 100) between its layers, on [features | points]; the
            first row of the last layer is the SDF.
        points: [B, N, 3], or those of all scenes packed into [N, 3], such as the samples of rays that have different
            numbers of them; float32 or float64, (x, y, z) in the coordinates of `box`.
        box: [B, 2, 3] region that each volume spans; its unit is the unit of the SDF.
        gradient: whether to return the gradient.
        with_points: whether the decoder sees the points, as its last three columns.
        align_corners: voxel centres on the faces of the box (True) or half a voxel inside (False).
        padding: "border" or "zeros", as in torch.nn.functional.grid_sample.
        scene_offsets: None for [B, N, 3]. For [N, 3]: [B + 1] int32 or int64, scene b owns the points
            ``scene_offsets[b] : scene_offsets[b + 1]``. Its values are read, so that a GPU is waited for; scenes are
            evaluated as if each had as many points as the largest.
        backend: "auto", "triton" or "torch". The Triton kernels take float32 points, one volume and decoders of up to
            128 inputs and 128 hidden units in all; "auto" takes them on a GPU where they fit.
        precision: of the kernels' matrix products, whose sums are float32: "tf32", "tf32x3", "bf16" or "ieee".

    Returns:
        SdfField.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    Reference:
        Zhu et al., PonderV2, arXiv 2310.08586, section 3.3 (the field).
    """
    volumes = check_volumes(volume, box, align_corners, padding)
    batch = box.shape[0]
    _check.floating("points", points, (torch.float32, torch.float64))
    _check.same_device("volume", volumes[0][0], points=points)
    at = None
    if points.dim() == 2:
        _check.shape("points", points, "N 3")
        points, at = batch_points(points, scene_offsets, batch)
    elif scene_offsets is not None:
        raise ValueError(f"scene_offsets: expected None, or points of shape [N, 3], got {list(points.shape)}")
    count = _check.shape("points", points, "B N 3", {"B": batch})["N"]
    per_volume = first_channels("layers", layers, [v for v, _ in volumes], with_points)
    chain = scaled(layers)
    last = chain[-1]
    top = Layer(None if last.previous is None else last.previous[:1], last.inputs[:1], last.bias[:1])
    chain = (*chain[:-1], top)
    cast = [v.to(points.dtype) for v, _ in volumes]
    split = [split_volume(v.detach(), per_volume, g) for v, (_, g) in zip(cast, volumes, strict=True)]
    used = fused_precision(backend, precision, chain, cast, points)
    rows = None if used is None else volume_rows(cast[0].detach()).contiguous()
    plan = _Plan(split, chain, with_points, gradient, count, rows, used)
    scene = scene_of_rows(batch, count, points.device)
    sdf, along = _SdfField.apply(plan, points.detach().reshape(-1, 3), scene, len(cast), *cast, *flatten(chain))
    if at is not None:
        return SdfField(sdf[at], along[at] if gradient else None)
    return SdfField(sdf.view(batch, count), along.view(batch, count, 3) if gradient else None)


def check_volumes(
    volume: Tensor | Sequence[Tensor], box: Tensor, align_corners: bool, padding: str
) -> list[tuple[Tensor, VolumeGeometry]]:
    """One or several volumes of one batch size and channel count, with their geometry."""
    volumes = [volume] if isinstance(volume, Tensor) else list(volume)
    if not volumes:
        raise ValueError("volume: expected at least one volume, got none")
    found = [(v, check_volume(v, box, align_corners, padding)) for v in volumes]
    if len({v.shape[:2] for v in volumes}) > 1:
        raise ValueError(f"volume: expected the same B and C in all, got {[list(v.shape) for v in volumes]}")
    return found


def first_channels(name: str, layers: Sequence[Layer], volumes: Sequence[Tensor], with_points: bool) -> int:
    """How many channels of each volume the SDF decoder reads, by the width of its layers.

    Raises:
        TypeError, ValueError: naming the decoder's tensor.
    """
    if not layers:
        raise ValueError(f"{name}: expected at least one layer, got none")
    inputs = _check.floating(f"{name}[0].inputs", layers[0].inputs)
    _check.shape(f"{name}[0].inputs", inputs, "O I")
    points = 3 if with_points else 0
    first = inputs.shape[1] - points
    channels = volumes[0].shape[1]
    if first < 1 or first % len(volumes) or first // len(volumes) > channels:
        raise ValueError(
            f"{name}[0].inputs: expected at most C={channels} columns for each of {len(volumes)} volumes"
            f"{' and 3 for the points' if points else ''}, got {list(inputs.shape)}"
        )
    check_chain(name, layers, first + points)
    return first // len(volumes)


__all__ = ["SdfField", "sdf_field", "specialisations"]
