"""neus_alpha, laplace_density, alpha_from_density: checks, dispatch, launches and autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._backend import choose_backend
from ponder_kernels._launch import Plan, Specialisation, cdiv, launch, specialise
from ponder_kernels._register import gradient_buffers, keeps_float32, link_gradient, register
from ponder_kernels.sdf_density import reference

SAMPLE_DTYPES = (torch.float32, torch.float64)
BLOCK = 1024


@keeps_float32()
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
    these two distances, ``alpha = clip((P - N + eps) / (P + eps), 0, 1)``, eps = NEUS_ALPHA_EPS. Differentiable
    any number of times: the kernels give values and first derivatives, the torch formula higher ones.

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
        RuntimeError: Triton asked for but not installed, or inside a torch.func transform.

    Reference: NeuS, arXiv 2106.10689, eq. 13 (discrete opacity); the slope's annealing is that paper's code.
    """
    _check.floating("sdf", sdf, SAMPLE_DTYPES)
    _like("sdf", sdf, cosine=cosine, delta=delta)
    _scalar_like("sdf", sdf, "inv_s", inv_s)
    if not 0.0 <= cos_anneal_ratio <= 1.0:
        raise ValueError(f"cos_anneal_ratio: expected a number in [0, 1], got {cos_anneal_ratio!r}")
    if choose_backend(backend, sdf, cosine, delta, inv_s) == "torch":
        return reference.neus_alpha_reference(sdf, cosine, delta, inv_s, float(cos_anneal_ratio))
    out: Tensor = _neus_alpha(sdf, cosine, delta, inv_s, float(cos_anneal_ratio))
    return out


@keeps_float32()
def laplace_density(sdf: Tensor, beta: Tensor, *, backend: str = "auto") -> Tensor:
    """Volume density of signed distances, by the VolSDF rule.

    ``density = (0.5 + 0.5 sign(s) expm1(-|s| / beta)) / beta``: 1 / beta deep inside the surface, 1 / (2
    beta) on it, falling to 0 in free space. Differentiable any number of times, as `neus_alpha`.

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
    out: Tensor = _laplace_density(sdf, beta)
    return out


@keeps_float32()
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
    out: Tensor = _alpha_from_density(density, delta)
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


def _like_first(first: Tensor, *_: object) -> Tensor:
    return torch.empty(first.shape, dtype=first.dtype, device=first.device)


def _flat(*tensors: Tensor) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


@register(
    "neus_alpha(Tensor sdf, Tensor cosine, Tensor delta, Tensor inv_s, float cos_anneal_ratio) -> Tensor", _like_first
)
def _neus_alpha(sdf: Tensor, cosine: Tensor, delta: Tensor, inv_s: Tensor, cos_anneal_ratio: float) -> Tensor:
    from ponder_kernels.sdf_density import kernels

    out, n = _like_first(sdf), sdf.numel()
    samples, plan = _flat(sdf, cosine, delta), Plan({"BLOCK": BLOCK})
    launch(kernels.neus_alpha_forward_kernel, (cdiv(n, BLOCK),), plan, *samples, inv_s, out, n, cos_anneal_ratio)
    return out


@register(
    "neus_alpha_backward(Tensor grad_out, Tensor sdf, Tensor cosine, Tensor delta, Tensor inv_s, "
    "float cos_anneal_ratio, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda grad_out, *inputs: gradient_buffers(inputs[:4], inputs[5]),
)
def _neus_alpha_backward(
    grad_out: Tensor,
    sdf: Tensor,
    cosine: Tensor,
    delta: Tensor,
    inv_s: Tensor,
    cos_anneal_ratio: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    from ponder_kernels.sdf_density import kernels

    n = sdf.numel()
    programs = cdiv(n, BLOCK)
    upstream, *samples = _flat(grad_out, sdf, cosine, delta)
    grads = gradient_buffers((sdf, cosine, delta), wanted[:3])
    partial = torch.empty(programs if wanted[3] else 0, dtype=sdf.dtype, device=sdf.device)
    plan = _neus_backward_plan(*wanted)
    arguments = (upstream, *samples, inv_s, *grads, partial)
    launch(kernels.neus_alpha_backward_kernel, (programs,), plan, *arguments, n, cos_anneal_ratio)
    return *grads, _total(partial, inv_s) if wanted[3] else partial


def _total(partial: Tensor, scalar: Tensor) -> Tensor:
    return partial.sum().reshape(scalar.shape)


@register("laplace_density(Tensor sdf, Tensor beta) -> Tensor", _like_first)
def _laplace_density(sdf: Tensor, beta: Tensor) -> Tensor:
    from ponder_kernels.sdf_density import kernels

    out, n = _like_first(sdf), sdf.numel()
    launch(
        kernels.laplace_density_forward_kernel,
        (cdiv(n, BLOCK),),
        Plan({"BLOCK": BLOCK}),
        sdf.contiguous(),
        beta,
        out,
        n,
    )
    return out


@register(
    "laplace_density_backward(Tensor grad_out, Tensor sdf, Tensor beta, bool[] wanted) -> (Tensor, Tensor)",
    lambda grad_out, sdf, beta, wanted: gradient_buffers((sdf, beta), wanted),
)
def _laplace_density_backward(
    grad_out: Tensor, sdf: Tensor, beta: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    from ponder_kernels.sdf_density import kernels

    n = sdf.numel()
    programs = cdiv(n, BLOCK)
    upstream, samples = _flat(grad_out, sdf)
    (grad_sdf,) = gradient_buffers((sdf,), wanted[:1])
    partial = torch.empty(programs if wanted[1] else 0, dtype=sdf.dtype, device=sdf.device)
    plan = _laplace_backward_plan(*wanted)
    arguments = (upstream, samples, beta, grad_sdf, partial)
    launch(kernels.laplace_density_backward_kernel, (programs,), plan, *arguments, n)
    return grad_sdf, _total(partial, beta) if wanted[1] else partial


@register("alpha_from_density(Tensor density, Tensor delta) -> Tensor", _like_first)
def _alpha_from_density(density: Tensor, delta: Tensor) -> Tensor:
    from ponder_kernels.sdf_density import kernels

    out, n = _like_first(density), density.numel()
    kernel, plan = kernels.alpha_from_density_forward_kernel, Plan({"BLOCK": BLOCK})
    launch(kernel, (cdiv(n, BLOCK),), plan, *_flat(density, delta), out, n)
    return out


@register(
    "alpha_from_density_backward(Tensor grad_out, Tensor density, Tensor delta, bool[] wanted) -> (Tensor, Tensor)",
    lambda grad_out, density, delta, wanted: gradient_buffers((density, delta), wanted),
)
def _alpha_from_density_backward(
    grad_out: Tensor, density: Tensor, delta: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    from ponder_kernels.sdf_density import kernels

    n = density.numel()
    grads = gradient_buffers((density, delta), wanted)
    kernel, plan = kernels.alpha_from_density_backward_kernel, _alpha_backward_plan(*wanted)
    launch(kernel, (cdiv(n, BLOCK),), plan, *_flat(grad_out, density, delta), *grads, n)
    return grads


link_gradient(_neus_alpha, _neus_alpha_backward, reference.neus_alpha_reference, tensors=4)
link_gradient(_laplace_density, _laplace_density_backward, reference.laplace_density_reference, tensors=2)
link_gradient(_alpha_from_density, _alpha_from_density_backward, reference.alpha_from_density_reference, tensors=2)


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
