"""Compositing at exact zeros and ones, rays that end early, and identities that hold whatever the numbers."""

import pytest
import torch

from ponder_kernels._constants import TRANSMITTANCE_EPS
from ponder_kernels.composite import composite, render_weights
from ponder_kernels.composite.reference import render_weights_reference
from tests.kernels.composite_cases import alphas, offsets_of, packed_alphas
from tests.kernels.harness import rand
from tests.tolerance import SAFETY, assert_close_to_reference, bound

# Smaller numbers have fewer digits in float32: five opaque samples with eps leave 1e-35.
TINY = torch.finfo(torch.float32).tiny
BACKENDS = pytest.mark.parametrize("backend", ["triton", "torch"])


def gradient_by_product_rule(alpha, upstream_weights, upstream_transmittance, eps):
    """d(sum gw_j w_j + gT_j T_j)/d alpha_i of one ray in float64, every product written out: O(S^3), no division."""
    factors = 1.0 - alpha + eps
    out = torch.zeros_like(alpha)
    for i in range(len(alpha)):
        out[i] = upstream_weights[i] * factors[:i].prod()
        for j in range(i + 1, len(alpha)):
            others = torch.cat((factors[:i], factors[i + 1 : j])).prod()
            out[i] -= (upstream_weights[j] * alpha[j] + upstream_transmittance[j]) * others
    return out


def opaque_rays():
    """[7, 8]: one, two and only opaque samples, at the front, in the middle and at the end; only transparent ones."""
    alpha = torch.full((7, 8), 0.5)
    alpha[0, 0] = 1.0
    alpha[1, 3] = 1.0
    alpha[2, 3:5] = 1.0
    alpha[3, :] = 1.0
    alpha[4, :] = 0.0
    alpha[5, 7] = 1.0
    alpha[6, 2], alpha[6, 5] = 1.0, 0.0
    return alpha


@pytest.mark.parametrize("packed", [False, True], ids=["batched", "packed"])
@pytest.mark.parametrize("eps", [0.0, TRANSMITTANCE_EPS])
@BACKENDS
def test_gradient_is_the_product_rule_at_zeros_and_ones(backend, eps, packed, device):
    alpha = opaque_rays()
    to_weights, to_transmittance = rand(7, 8, seed=4), rand(7, 8, seed=5)
    leaf = (alpha.flatten() if packed else alpha).clone().to(device).requires_grad_()
    offsets = offsets_of([8] * 7, device) if packed else None
    out = render_weights(leaf, ray_offsets=offsets, eps=eps, backend=backend)
    grads = [g.reshape(leaf.shape).to(device) for g in (to_weights, to_transmittance)]
    torch.autograd.backward(out, grads)
    got = leaf.grad.cpu().view(7, 8)
    for ray in range(7):
        rows = (x[ray].double() for x in (alpha, to_weights, to_transmittance))
        want = gradient_by_product_rule(*rows, eps)
        for sample in range(8):
            if abs(want[sample]) < TINY:
                assert abs(got[ray, sample]) < TINY
                continue
            # One element at a time, so that a small gradient is not hidden behind a large one.
            assert_close_to_reference(got[ray, sample], want[sample], 8, name=f"ray {ray} sample {sample}")


@pytest.mark.parametrize("packed", [False, True], ids=["batched", "packed"])
@BACKENDS
def test_weights_and_what_is_left_sum_to_one(backend, packed, device):
    lengths = (40, 1, 7, 33, 129)
    rays = [packed_alphas(n, device) for n in lengths] if packed else list(alphas(9, 40, device))
    alpha = torch.cat(rays) if packed else torch.stack(rays)
    offsets = offsets_of(lengths, device) if packed else None
    weights, transmittance = render_weights(alpha, ray_offsets=offsets, eps=0.0, backend=backend)
    sizes = [len(ray) for ray in rays]
    triples = (x.flatten().split(sizes) for x in (weights, transmittance, alpha))
    for w, t, a in zip(*triples, strict=True):
        total = w.sum() + t[-1] * (1.0 - a[-1])
        assert_close_to_reference(total, torch.ones((), dtype=torch.float64), len(a))


@BACKENDS
def test_opaque_first_sample_hides_the_rest(backend, device):
    alpha = torch.full((3, 70), 0.5, device=device)
    alpha[:, 0] = 1.0
    for options in ({}, {"ray_offsets": offsets_of([70] * 3, device)}):
        samples = alpha.flatten() if options else alpha
        weights, transmittance = (x.view(3, 70) for x in render_weights(samples, eps=0.0, backend=backend, **options))
        assert (weights[:, 0] == 1).all() and (weights[:, 1:] == 0).all() and (transmittance[:, 1:] == 0).all()
        weights, transmittance = (x.view(3, 70) for x in render_weights(samples, backend=backend, **options))
        assert (weights[:, 1:] <= TRANSMITTANCE_EPS).all() and (transmittance[:, 1:] < 2 * TRANSMITTANCE_EPS).all()


def test_transparent_ray_lets_everything_through(device):
    for eps in (0.0, TRANSMITTANCE_EPS):
        weights, transmittance = render_weights(torch.zeros(2, 40, device=device), eps=eps, backend="triton")
        want = (1.0 + eps) ** torch.arange(40, dtype=torch.float64).expand(2, 40)
        # 1 + 1e-7 is a whole float32 step off, once per sample.
        assert_close_to_reference(transmittance, want, 40 * 40)
        assert (weights == 0).all()


def test_long_ray_underflows_quietly(device):
    alpha = torch.ones(2, 100, device=device, requires_grad=True)
    out = render_weights(alpha, backend="triton")
    out.weights.sum().backward()
    assert out.transmittance[:, -1].eq(0).all() and alpha.grad.isfinite().all()


def test_rays_do_not_mix(device):
    alpha = alphas(19, 40, device)
    permuted = torch.randperm(19, generator=torch.Generator().manual_seed(0)).to(device)
    every = render_weights(alpha, backend="triton")
    shuffled = render_weights(alpha[permuted], backend="triton")
    assert all(torch.equal(a[permuted], b) for a, b in zip(every, shuffled, strict=True))


def test_constant_values_over_the_same_background(device):
    weights = render_weights(alphas(5, 40, device), backend="triton").weights
    colour = torch.tensor([0.2, 0.5, 0.9], device=device)
    out = composite(weights, colour.expand(5, 40, 3), colour, backend="triton")
    assert_close_to_reference(out, colour.double().cpu().expand(5, 3), 40)


def test_composite_is_linear_in_the_values(device):
    weights, values = rand(3, 20, seed=1).to(device), rand(3, 20, 4, seed=2).to(device)
    twice = composite(weights, torch.cat((values, 2 * values), dim=2), backend="triton")
    assert torch.equal(2 * twice[:, :4], twice[:, 4:])


def test_no_samples_show_the_background(device):
    empty = torch.zeros(4, 0, device=device)
    background = rand(4, 3, seed=1).to(device)
    assert torch.equal(composite(empty, torch.zeros(4, 0, 3, device=device), background, backend="triton"), background)


@BACKENDS
def test_early_stop_cuts_a_ray_and_nothing_else(backend, device):
    """Before the end as without early_stop; from the first T below it on, zeros."""
    alpha = alphas(6, 70, device, high=0.1)
    plain = render_weights(alpha, backend=backend)
    cut = render_weights(alpha, early_stop=0.2, backend=backend)
    below = plain.transmittance < 0.2
    # The rays end in different blocks of samples, one of them not at all.
    assert len(set(below.sum(1).tolist())) > 3
    for got, want in zip(cut, plain, strict=True):
        assert (got[below] == 0).all()
        assert_close_to_reference(got[~below], want[~below].double().cpu(), 1)


@BACKENDS
def test_no_gradient_flows_behind_an_early_end(backend, device):
    """A ray that ends gets the gradient it would get if nothing came behind its end."""
    alpha = torch.full((2, 70), 0.05, device=device)
    alpha[0, 9] = alpha[1, 40] = 0.99
    leaf = alpha.clone().requires_grad_()
    upstream = [rand(2, 70, seed=k).to(device) for k in (1, 2)]
    torch.autograd.backward(render_weights(leaf, early_stop=0.1, backend=backend), upstream)
    for ray, end in ((0, 10), (1, 41)):
        double = alpha[ray : ray + 1, :end].cpu().double().requires_grad_()
        kept = [g[ray : ray + 1, :end].cpu().double() for g in upstream]
        torch.autograd.backward(render_weights_reference(double), kept)
        assert_close_to_reference(leaf.grad[ray : ray + 1, :end], double.grad, 70)
        assert (leaf.grad[ray, end:] == 0).all()


@pytest.mark.parametrize("packed", [False, True], ids=["batched", "packed"])
@BACKENDS
def test_what_lies_behind_an_early_end_is_not_looked_at(backend, packed, device):
    """NaN behind the end of a ray, in its block of samples and in later ones, in alpha and upstream, shows nowhere."""
    alpha = torch.full((4, 300), 0.01, device=device)
    alpha[:3, 1] = 0.95
    alpha[0, 3] = alpha[1, 50] = alpha[2, 200] = float("nan")
    # A ray that goes on keeps the others' program walking.
    alpha[3] = 0.0
    seen = torch.arange(300, device=device) < 2
    seen = torch.stack((seen, seen, seen, ~seen | seen))
    leaf = (alpha.flatten() if packed else alpha).requires_grad_()
    offsets = offsets_of([300] * 4, device) if packed else None
    out = render_weights(leaf, ray_offsets=offsets, early_stop=0.1, backend=backend)
    upstream = torch.where(seen, 1.0, float("nan")).reshape(leaf.shape)
    torch.autograd.backward(out, [upstream, upstream])
    assert all(x.isfinite().all() for x in (*out, leaf.grad))
    assert torch.equal(out.transmittance.view(4, 300) > 0, seen)
    assert (leaf.grad.view(4, 300)[~seen] == 0).all()


@BACKENDS
def test_an_ended_ray_stays_ended(backend, device):
    """With a large eps the product rises again behind an opaque sample; the ray has ended all the same."""
    alpha = torch.full((2, 100), 0.5, device=device)
    alpha[0, 0], alpha[0, 60] = 0.95, 0.0
    plain = render_weights(alpha, eps=0.5, backend=backend).transmittance
    # In the blocks of samples after its end too.
    assert plain[0, 0] == 1.0 and plain[0, 70] > 0.56 > plain[0, 1]
    cut = render_weights(alpha, eps=0.5, early_stop=0.56, backend=backend).transmittance
    assert torch.equal(cut[1], plain[1]) and cut[0, 0] == 1.0 and (cut[0, 1:] == 0).all()


def test_early_stop_loses_less_light_than_asked(device):
    """The weights that early_stop drops are worth less than early_stop."""
    alpha = alphas(9, 60, device, high=0.2)
    lost = render_weights(alpha, eps=0.0).weights.sum(1) - render_weights(alpha, eps=0.0, early_stop=0.05).weights.sum(
        1
    )
    slack = bound(torch.ones((), dtype=torch.float64), 60, torch.float32) / SAFETY
    assert (lost < 0.05 + slack).all() and (lost > -slack).all()
