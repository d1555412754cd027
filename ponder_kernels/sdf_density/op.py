"""neus_alpha, laplace_density, alpha_from_density: checks, dispatch, launches and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._backend import choose_backend
from ponder_kernels._launch import Plan, Specialisation, cdiv, first_order_only, launch, specialise
from ponder_kernels.sdf_density import reference

SAMPLE_DTYPES = (torch.float32, torch.float64)
BLOCK = 1024


def neus_alpha(
    sdf: Tensor,
    cosine: Tensor,
    delta: Tensor,
    inv_s: Tensor,
    *,
    cos_anneal_ratio: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Opacity of each sample's interval from signed distances, by the NeuS rule.

    The SDF is extrapolated from the sample half an interval back and half an interval ahead with the slope
    ``m = -((1 - r) relu(0.5 - 0.5 cosine) + r relu(-cosine))``; with P and N the sigmoids of inv_s times
    these two distances, ``alpha = clip((P - N + eps) / (P + eps), 0, 1)``, eps = NEUS_ALPHA_EPS. First
    derivatives everywhere; higher ones on the torch backend.

    Args:
        sdf: [..., S] signed distance, positive in free space, float32 (float64: torch backend only).
        cosine: same shape, direction . gradient of the SDF (negative where the ray enters).
        delta: same shape, interval lengths.
        inv_s: a tensor of one element, positive: inverse width of the surface.
        cos_anneal_ratio: r in [0, 1]; 1 uses the true slope, 0 the softened one of early training.
        backend: "auto", "triton" or "torch".

    Returns:
        alpha, shape and dtype of `sdf`, in [0, 1].

    Raises:
        TypeError: not a tensor, or a dtype that is not allowed or not that of `sdf`.
        ValueError: shapes or devices that differ, inv_s of more than one element, a ratio outside [0, 1], an
            unknown backend.
        RuntimeError: Triton asked for but not installed; a second derivative through the Triton kernels.

    Reference: NeuS, arXiv 2106.10689, eq. 13 (discrete opacity); the slope's annealing is that paper's code.
    """
    _check.floating("sdf", sdf, SAMPLE_DTYPES)
    _like("sdf", sdf, cosine=cosine, delta=delta)
    _scalar_like("sdf", sdf, "inv_s", inv_s)
    if not 0.0 <= cos_anneal_ratio <= 1.0:
        raise ValueError(f"cos_anneal_ratio: expected a number in [0, 1], got {cos_anneal_ratio!r}")
    if choose_backend(backend, sdf, cosine, delta, inv_s) == "torch":
        return reference.neus_alpha_reference(sdf, cosine, delta, inv_s, float(cos_anneal_ratio))
    out: Tensor = _NeusAlpha.apply(sdf, cosine, delta, inv_s, float(cos_anneal_ratio))
    return out


def laplace_density(sdf: Tensor, beta: Tensor, *, backend: str = "auto") -> Tensor:
    """Volume density of signed distances, by the VolSDF rule.

    ``density = (0.5 + 0.5 sign(s) expm1(-|s| / beta)) / beta``: 1 / beta deep inside the surface, 1 / (2
    beta) on it, falling to 0 in free space. First derivatives everywhere; higher ones on the torch backend.

    Args:
        sdf: [..., S] signed distance, positive in free space, float32 (float64: torch backend only).
        beta: a tensor of one element, positive; the caller adds BETA_MIN.
        backend: "auto", "triton" or "torch".

    Returns:
        density, shape and dtype of `sdf`, in [0, 1 / beta].

    Raises:
        TypeError, ValueError, RuntimeError: as `neus_alpha`.

    Reference: VolSDF, arXiv 2106.12052, eq. 2-3 with alpha = 1 / beta (its distance has the opposite sign).
    """
    _check.floating("sdf", sdf, SAMPLE_DTYPES)
    _scalar_like("sdf", sdf, "beta", beta)
    if choose_backend(backend, sdf, beta) == "torch":
        return reference.laplace_density_reference(sdf, beta)
    out: Tensor = _LaplaceDensity.apply(sdf, beta)
    return out


def alpha_from_density(density: Tensor, delta: Tensor, *, backend: str = "auto") -> Tensor:
    """Opacity of intervals of constant density, ``alpha = 1 - exp(-delta density)``, by expm1.

    Args:
        density: [..., S], not negative, float32 (float64: torch backend only).
        delta: same shape, interval lengths, not negative.
        backend: "auto", "triton" or "torch".

    Returns:
        alpha, shape and dtype of `density`, in [0, 1].

    Raises:
        TypeError, ValueError, RuntimeError: as `neus_alpha`.

    Reference: NeRF, arXiv 2003.08934, eq. 3 (after Max 1995).
    """
    _check.floating("density", density, SAMPLE_DTYPES)
    _like("density", density, delta=delta)
    if choose_backend(backend, density, delta) == "torch":
        return reference.alpha_from_density_reference(density, delta)
    out: Tensor = _AlphaFromDensity.apply(density, delta)
    return out


def _like(first_name: str, first: Tensor, **others: Tensor) -> None:
    """Require the shape, dtype and device of the first tensor."""
    for name, other in others.items():
        _check.floating(name, other, (first.dtype,))
        if other.shape != first.shape:
            raise ValueError(f"{name}: expected shape {list(first.shape)} as {first_name}, got {list(other.shape)}")
    _check.same_device(first_name, first, **others)


def _scalar_like(first_name: str, first: Tensor, name: str, value: Tensor) -> None:
    """Require a tensor of one element with the dtype and device of the first tensor."""
    _check.floating(name, value, (first.dtype,))
    if value.numel() != 1:
        raise ValueError(f"{name}: expected a tensor of one element, got shape {list(value.shape)}")
    _check.same_device(first_name, first, **{name: value})


def _gradients_like(inputs: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """An empty contiguous tensor per input whose gradient is wanted."""
    return [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else None
        for x, need in zip(inputs, needs, strict=True)
    ]


def _or(stand_in: Tensor, values: Sequence[Tensor | None]) -> list[Tensor]:
    """Replace None by a tensor: a kernel argument that its flags leave unused still needs one."""
    return [stand_in if v is None else v for v in values]


class _NeusAlpha(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sdf: Tensor, cosine: Tensor, delta: Tensor, inv_s: Tensor, cos_anneal_ratio: float) -> Tensor:
        from ponder_kernels.sdf_density import kernels

        samples = [t.contiguous() for t in (sdf, cosine, delta)]
        ctx.save_for_backward(*samples, inv_s)
        ctx.cos_anneal_ratio = cos_anneal_ratio
        out = torch.empty(sdf.shape, dtype=sdf.dtype, device=sdf.device)
        n = sdf.numel()
        grid = (cdiv(n, BLOCK),)
        kernel = kernels.neus_alpha_forward_kernel
        launch(kernel, grid, Plan({"BLOCK": BLOCK}), *samples, inv_s, out, n, cos_anneal_ratio)
        return out

    @staticmethod
    @first_order_only("neus_alpha")
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        from ponder_kernels.sdf_density import kernels

        sdf, cosine, delta, inv_s = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        n = sdf.numel()
        programs = cdiv(n, BLOCK)
        grads = _gradients_like((sdf, cosine, delta), needs[:3])
        partial = torch.empty(programs, dtype=sdf.dtype, device=sdf.device) if needs[3] else None
        upstream = grad_out.contiguous()
        targets = _or(upstream, (*grads, partial))
        plan = _neus_backward_plan(*needs)
        inputs = (upstream, sdf, cosine, delta, inv_s)
        launch(kernels.neus_alpha_backward_kernel, (programs,), plan, *inputs, *targets, n, ctx.cos_anneal_ratio)
        return (
            *grads,
            None if partial is None else partial.sum().reshape(inv_s.shape),
            None,  # cos_anneal_ratio
        )


class _LaplaceDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sdf: Tensor, beta: Tensor) -> Tensor:
        from ponder_kernels.sdf_density import kernels

        sdf = sdf.contiguous()
        ctx.save_for_backward(sdf, beta)
        out = torch.empty(sdf.shape, dtype=sdf.dtype, device=sdf.device)
        n = sdf.numel()
        grid = (cdiv(n, BLOCK),)
        launch(kernels.laplace_density_forward_kernel, grid, Plan({"BLOCK": BLOCK}), sdf, beta, out, n)
        return out

    @staticmethod
    @first_order_only("laplace_density")
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        from ponder_kernels.sdf_density import kernels

        sdf, beta = ctx.saved_tensors
        needs = ctx.needs_input_grad
        n = sdf.numel()
        programs = cdiv(n, BLOCK)
        (grad_sdf,) = _gradients_like((sdf,), needs[:1])
        partial = torch.empty(programs, dtype=sdf.dtype, device=sdf.device) if needs[1] else None
        upstream = grad_out.contiguous()
        targets = _or(upstream, (grad_sdf, partial))
        plan = _laplace_backward_plan(*needs)
        launch(kernels.laplace_density_backward_kernel, (programs,), plan, upstream, sdf, beta, *targets, n)
        return grad_sdf, None if partial is None else partial.sum().reshape(beta.shape)


class _AlphaFromDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, delta: Tensor) -> Tensor:
        from ponder_kernels.sdf_density import kernels

        density, delta = density.contiguous(), delta.contiguous()
        ctx.save_for_backward(density, delta)
        out = torch.empty(density.shape, dtype=density.dtype, device=density.device)
        n = density.numel()
        grid = (cdiv(n, BLOCK),)
        launch(kernels.alpha_from_density_forward_kernel, grid, Plan({"BLOCK": BLOCK}), density, delta, out, n)
        return out

    @staticmethod
    @first_order_only("alpha_from_density")
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        from ponder_kernels.sdf_density import kernels

        density, delta = ctx.saved_tensors
        needs = ctx.needs_input_grad
        n = density.numel()
        grads = _gradients_like((density, delta), needs)
        upstream = grad_out.contiguous()
        targets = _or(upstream, grads)
        plan = _alpha_backward_plan(*needs)
        kernel = kernels.alpha_from_density_backward_kernel
        launch(kernel, (cdiv(n, BLOCK),), plan, upstream, density, delta, *targets, n)
        return tuple(grads)


def _neus_backward_plan(sdf: bool, cosine: bool, delta: bool, inv_s: bool) -> Plan:
    return Plan({"TO_SDF": sdf, "TO_COSINE": cosine, "TO_DELTA": delta, "TO_INV_S": inv_s, "BLOCK": BLOCK})


def _laplace_backward_plan(sdf: bool, beta: bool) -> Plan:
    return Plan({"TO_SDF": sdf, "TO_BETA": beta, "BLOCK": BLOCK})


def _alpha_backward_plan(density: bool, delta: bool) -> Plan:
    return Plan({"TO_DENSITY": density, "TO_DELTA": delta, "BLOCK": BLOCK})


def specialisations() -> list[Specialisation]:
    """Compiled forms of this operator's kernels: every kernel with all gradients, and the usual subsets."""
    from ponder_kernels.sdf_density import kernels

    plain = Plan({"BLOCK": BLOCK})
    ratio = ("cos_anneal_ratio",)
    neus_flags = ((True, True, True, True), (True, True, False, True), (True, False, False, False))
    return [
        specialise(kernels.neus_alpha_forward_kernel, plain, floats=ratio),
        *(
            specialise(kernels.neus_alpha_backward_kernel, _neus_backward_plan(*flags), floats=ratio)
            for flags in neus_flags
        ),
        specialise(kernels.laplace_density_forward_kernel, plain),
        specialise(kernels.laplace_density_backward_kernel, _laplace_backward_plan(True, True)),
        specialise(kernels.laplace_density_backward_kernel, _laplace_backward_plan(True, False)),
        specialise(kernels.alpha_from_density_forward_kernel, plain),
        specialise(kernels.alpha_from_density_backward_kernel, _alpha_backward_plan(True, True)),
        specialise(kernels.alpha_from_density_backward_kernel, _alpha_backward_plan(True, False)),
    ]
