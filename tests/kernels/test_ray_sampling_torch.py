"""Ray sampling as PyTorch expects it: derivatives of the references, torch.library, torch.compile, torch.func."""

from __future__ import annotations

import pytest
import torch

from ponder_kernels import intersect_aabb, merge_edges, resample_edges, stratified_edges
from ponder_kernels.ray_sampling import SPACINGS
from ponder_kernels.ray_sampling import registered as op_module
from ponder_kernels.ray_sampling.reference import (
    intersect_aabb_reference,
    merge_edges_reference,
    stratified_edges_reference,
)
from tests.kernels.citizenship import assert_autocast, assert_compiles, assert_opcheck, assert_transforms, compile_keys
from tests.kernels.harness import assert_launches_are_listed, rand
from tests.kernels.test_ray_sampling_kernels import ray_case, strata_case

BOTH = pytest.mark.parametrize("backend", ["triton", "torch"])


def doubles(inputs):
    return tuple(v.double().requires_grad_() for v in inputs.values())


def rows_case(shape, device, sizes=(4, 3)):
    first, second = (rand(*shape, n, seed=n).sort(-1).values.to(device) for n in sizes)
    return {"first": first, "second": second}


def pdf_case(shape, device, bins=5):
    edges, weights = rand(*shape, bins + 1, seed=1, low=0.0).sort(-1).values, rand(*shape, bins, seed=2, low=0.0)
    return {"edges": edges.to(device), "weights": weights.to(device)}


@pytest.mark.parametrize("near_min", [-3.0, 0.1])
def test_box_derivatives(near_min):
    fn = lambda *x: intersect_aabb_reference(*x, near_min)[:2]  # noqa: E731
    inputs = doubles(ray_case((4,), "cpu"))
    assert intersect_aabb_reference(*inputs, near_min).hit.any()
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_strata_derivatives(spacing, jittered):
    for count in (1, 4):
        inputs, jitter = strata_case((4,), "cpu", count, jittered)
        # Ends on both sides of the place where "piecewise" bends.
        inputs["near"][0] = 0.3
        noise = None if jitter is None else jitter.double()
        fn = lambda near, far, n=noise, c=count: stratified_edges_reference(near, far, n, c, spacing)  # noqa: E731
        assert torch.autograd.gradcheck(fn, doubles(inputs))
        assert torch.autograd.gradgradcheck(fn, doubles(inputs))
        # On a ray of no length every spacing has the first derivatives of "uniform".
        inputs["near"][1] = inputs["far"][1]
        assert torch.autograd.gradcheck(fn, doubles(inputs))


def test_merge_derivatives():
    inputs = doubles(rows_case((2,), "cpu"))
    assert torch.autograd.gradcheck(merge_edges_reference, inputs)
    assert torch.autograd.gradgradcheck(merge_edges_reference, inputs)


def test_square_root_at_the_camera():
    """Its slope to near = 0 is infinite; nothing else of the gradient may be lost to that."""
    for backend in ("triton", "torch"):
        near, far = torch.zeros(2, requires_grad=True), torch.tensor([4.0, 9.0], requires_grad=True)
        stratified_edges(near, far, 2, spacing="sqrt", backend=backend).sum().backward()
        assert near.grad.tolist() == [1.0, 1.0] and far.grad.tolist() == [1.25, 1.25]


def test_float64_takes_the_reference(device):
    rays = {k: v.double() for k, v in ray_case((3,), device).items()}
    assert intersect_aabb(**rays).near.dtype == torch.float64
    edges = stratified_edges(rays["origins"].abs(), rays["origins"].abs() + 1, 4, spacing="log")
    assert edges.dtype == merge_edges(edges, edges).dtype == resample_edges(edges, edges[..., 1:], 3).dtype
    with pytest.raises(ValueError, match="'triton' takes float16, bfloat16 and float32 tensors, got float64"):
        merge_edges(edges, edges, backend="triton")


def test_resampling_has_no_gradient(device):
    for backend in ("triton", "torch"):
        leaves = {k: v.requires_grad_() for k, v in pdf_case((2,), device).items()}
        jitter = rand(2, 3, seed=3, low=0.0).to(device).requires_grad_()
        assert not resample_edges(**leaves, count=3, jitter=jitter, backend=backend).requires_grad
        near = torch.ones(2, device=device)
        noise = rand(2, 4, seed=3, low=0.0).to(device).requires_grad_()
        assert not stratified_edges(near, 2 * near, 3, noise, backend=backend).requires_grad


@pytest.mark.unguarded
def test_registered_intersection(device):
    rays = ray_case((2, 3), device, (2, 1))
    assert_opcheck(op_module._intersect_aabb, *rays.values(), 0.1)
    arguments = (rand(2, 3, seed=9).to(device), None, *rays.values(), 0.1, [True, False, True])
    torch.library.opcheck(op_module._intersect_aabb_backward, arguments)


@pytest.mark.unguarded
def test_registered_strata(device):
    ends, jitter = strata_case((3,), device, 4, True)
    torch.library.opcheck(op_module._stratified_edges, (*ends.values(), None, 4, "log"))
    arguments = (rand(3, 5, seed=9).to(device), *ends.values(), jitter, 4, "log", [True, True, False])
    torch.library.opcheck(op_module._stratified_edges_backward, arguments)
    # The jitter is no leaf: it never has a gradient.
    tracked = (v.clone().requires_grad_() for v in ends.values())
    torch.library.opcheck(op_module._stratified_edges, (*tracked, jitter, 4, "log"))


@pytest.mark.unguarded
def test_registered_resampling_and_merging(device):
    torch.library.opcheck(op_module._resample_edges, (*pdf_case((3,), device).values(), None, 4))
    rows = rows_case((3,), device)
    assert_opcheck(op_module._merge_edges, *rows.values())
    arguments = (rand(3, 7, seed=9).to(device), *rows.values(), [True, False])
    torch.library.opcheck(op_module._merge_edges_backward, arguments)


@pytest.mark.unguarded
@BOTH
def test_compiles(backend, device):
    # Not 2 or 3 at first: to dynamo those would be the same number as the corners and coordinates, and constant.
    shapes = ((5, 4), (4, 7), (8, 2))
    rays = [ray_case(shape, device, (shape[0], 1)) for shape in shapes]
    assert_compiles(lambda **x: intersect_aabb(**x, near_min=0.1, backend=backend), rays)
    rows = [rows_case(shape, device, sizes) for shape, sizes in zip(shapes, ((6, 3), (2, 5), (6, 9)), strict=True)]
    assert_compiles(lambda **x: merge_edges(**x, backend=backend), rows)


@pytest.mark.unguarded
@pytest.mark.parametrize(("spacing", "backend"), [("uniform", "triton"), ("log", "torch"), ("piecewise", "torch")])
def test_strata_compile(spacing, backend, device):
    """The number of edges follows a tensor's shape: another one is not another graph."""
    cases = [
        strata_case(shape, device, count, True)[0] | {"jitter": rand(*shape, count + 1, seed=3, low=0.0).to(device)}
        for shape, count in (((2,), 4), ((3,), 6), ((5,), 3))
    ]

    def place(near, far, jitter):
        count = jitter.shape[-1] - 1
        return stratified_edges(near, far, count, jitter.detach(), spacing=spacing, backend=backend) + 0 * jitter

    assert_compiles(place, cases)


@pytest.mark.unguarded
@BOTH
def test_resampling_compiles(backend, device):
    cases = [pdf_case(shape, device, bins) for shape, bins in (((2,), 5), ((3,), 4), ((4,), 7))]
    # Its result has no gradient; the edges give the loss one.
    assert_compiles(lambda edges, weights: resample_edges(edges, weights, 3, backend=backend) + edges[..., :3], cases)


@pytest.mark.unguarded
def test_transforms_and_autocast(device):
    rays = ray_case((5,), device)
    for name in rays:
        assert_transforms(intersect_aabb, rays, name)
    assert_autocast(lambda **x: intersect_aabb(**x, backend="triton"), rays, {"origins", "directions"})
    ends, jitter = strata_case((3,), device, 4, True)
    for spacing in SPACINGS:
        assert_transforms(lambda s=spacing, **x: stratified_edges(**x, count=4, spacing=s), ends, "near")
    jittered = lambda **x: stratified_edges(**x, count=4, spacing="log", backend="triton")  # noqa: E731
    assert_autocast(jittered, {**ends, "jitter": jitter}, {"near", "jitter"})
    rows = rows_case((3,), device)
    assert_transforms(merge_edges, rows, "second")
    halved = {k: v.bfloat16().float().sort(-1).values for k, v in rows.items()}
    assert_autocast(lambda **x: merge_edges(**x, backend="triton"), halved, {"first"})


@pytest.mark.unguarded
def test_resampling_under_transforms_and_autocast(device):
    inputs = pdf_case((2, 3), device)
    want = resample_edges(**inputs, count=4, backend="torch")
    got = torch.func.vmap(lambda e, w: resample_edges(e, w, 4))(*inputs.values())
    torch.testing.assert_close(got, want)
    assert not torch.func.grad(lambda e: resample_edges(e, inputs["weights"], 4).sum())(inputs["edges"]).any()
    with pytest.raises(RuntimeError, match="backend: 'triton' kernels cannot run"):
        torch.func.vmap(lambda e, w: resample_edges(e, w, 4, backend="triton"))(*inputs.values())
    assert_autocast(lambda **x: resample_edges(**x, count=4, backend="triton"), inputs, {"weights"})


def test_sizes_do_not_recompile(device, monkeypatch):
    def run(rays, bins, count):
        def steps():
            x = ray_case((2, rays), device, (2, 1))
            found = intersect_aabb(**{k: v.requires_grad_() for k, v in x.items()}, backend="triton")
            jitter = rand(2, rays, bins + 1, seed=5, low=0.0).to(device)
            edges = stratified_edges(found.near, found.far, bins, jitter, spacing="piecewise", backend="triton")
            extra = resample_edges(edges, rand(2, rays, bins, seed=6).to(device), count, backend="triton")
            merge_edges(edges, extra.requires_grad_(), backend="triton").sum().backward()

        return steps

    sizes = ((1, 1, 1), (1, 16, 32), (3, 5, 1), (16, 16, 7), (5, 33, 16), (2, 15, 9))
    counts = compile_keys(monkeypatch, op_module, [run(*s) for s in sizes])
    merges = counts.pop("merge_edges_backward_kernel")
    # One form for each side of the merge.
    assert merges == 2 and len(counts) == 6 and set(counts.values()) == {1}, counts


def test_launches_are_listed(monkeypatch, device):
    def run():
        rays = {k: v.requires_grad_() for k, v in ray_case((5,), device).items()}
        intersect_aabb(**rays, backend="triton").near.sum().backward()
        for spacing in SPACINGS:
            for jittered in (False, True):
                ends, jitter = strata_case((3,), device, 4, jittered)
                leaves = {k: v.requires_grad_() for k, v in ends.items()}
                edges = stratified_edges(**leaves, count=4, jitter=jitter, spacing=spacing, backend="triton")
                edges.sum().backward()
        for jitter in (None, rand(3, 1, seed=1, low=0.0).to(device), rand(3, 4, seed=1, low=0.0).to(device)):
            resample_edges(**pdf_case((3,), device), count=4, jitter=jitter, backend="triton")
        rows = {k: v.requires_grad_() for k, v in rows_case((3,), device).items()}
        merge_edges(**rows, backend="triton").sum().backward()

    assert_launches_are_listed(monkeypatch, op_module, run, 7)
