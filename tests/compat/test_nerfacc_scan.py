"""nerfacc's scans and pack_info: three forms of one sum or product, zeros included, against loops in float64."""

from __future__ import annotations

import pytest
import torch

from ponder_kernels.compat import _nerfacc_pdf, _nerfacc_scan, nerfacc
from tests.compat import nerfacc_oracle as oracle
from tests.compat.nerfacc_oracle import COUNT_IDS, COUNTS, indices, packed, rand, with_zeros
from tests.tolerance import assert_close_to_reference

SCANS = {
    "inclusive_sum": {"product": False, "exclusive": False},
    "exclusive_sum": {"product": False, "exclusive": True},
    "inclusive_prod": {"product": True, "exclusive": False},
    "exclusive_prod": {"product": True, "exclusive": True},
}
scans = pytest.mark.parametrize("name", SCANS)


def forms(counts, device):
    """Keyword arguments that say the same thing in each of the forms that fit."""
    found = [{"packed_info": packed(counts).to(device)}, {"indices": indices(counts).to(device)}]
    return found + [{}] * (len(set(counts)) == 1)


def check(name, x, chunks, arguments, rows=None, longest=64):
    """Values and gradients of one call against the loops."""

    def call(x):
        x = x if rows is None else x.view(rows, -1)
        return getattr(nerfacc, name)(x, **arguments).reshape(-1)

    out, (grad,) = oracle.gradients(call, x)
    want, (want_grad,) = oracle.gradients(lambda x: oracle.scan(x, chunks, **SCANS[name]), x.double().cpu())
    assert out.dtype == x.dtype
    assert_close_to_reference(out, want, longest, name=f"{name} {list(arguments)}")
    assert_close_to_reference(grad, want_grad, longest, name=f"gradient of {name} {list(arguments)}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("zeros", [False, True], ids=["plain", "zeros"])
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@scans
def test_scan(name, counts, zeros, dtype, device):
    # Factors around 1, so that a product of 64 of them is neither lost nor overflown.
    x = rand(sum(counts), low=0.6, high=1.4)
    x = (with_zeros(x) if zeros else x).to(device, dtype)
    for arguments in forms(counts, device):
        check(name, x, packed(counts), arguments, rows=None if arguments else len(counts))


@pytest.mark.parametrize("name", ["inclusive_prod", "exclusive_prod"])
def test_products_are_not_lost_in_their_checks(name):
    """The products above stay visible beside the tolerance up to the last of 64 factors."""
    out = oracle.scan(rand(64, low=0.6, high=1.4), packed((64,)), **SCANS[name])
    assert out.min() > 1e-3 * out.max()


def test_derivative_at_a_zero_factor(device):
    """The factor 0 takes the gradient of all that follows it; dividing by it, or by a floor under it, loses that."""
    for arguments in ({"packed_info": torch.tensor([[0, 4]])}, {"indices": torch.zeros(4, dtype=torch.int64)}, {}):
        x = torch.tensor([0.5, 0.0, 0.5, 0.25], device=device, requires_grad=True)
        nerfacc.inclusive_prod(x, **{k: v.to(device) for k, v in arguments.items()}).sum().backward()
        assert x.grad.tolist() == [1.0, 0.8125, 0.0, 0.0]
        x.grad = None
        nerfacc.exclusive_prod(x, **{k: v.to(device) for k, v in arguments.items()}).sum().backward()
        assert x.grad.tolist() == [1.0, 0.75, 0.0, 0.0]


@scans
def test_derivatives_to_second_order(name):
    x = with_zeros(rand(9, low=-1.0)).requires_grad_()
    for arguments in forms((2, 0, 6, 1), "cpu"):
        check = (lambda x, arguments=arguments: getattr(nerfacc, name)(x, **arguments), (x,))
        assert torch.autograd.gradcheck(*check)
        assert torch.autograd.gradgradcheck(*check)
    rows = (lambda x: getattr(nerfacc, name)(x), (with_zeros(rand(12, low=-1.0)).view(2, 6).requires_grad_(),))
    assert torch.autograd.gradcheck(*rows)
    assert torch.autograd.gradgradcheck(*rows)


@scans
def test_rows_of_any_shape_and_stride(name, device):
    scan = getattr(nerfacc, name)
    x = rand(2, 3, 7, low=0.6, high=1.4).to(device)
    want = torch.stack([torch.stack([scan(row) for row in plane]) for plane in x])
    torch.testing.assert_close(scan(x), want)
    torch.testing.assert_close(scan(x.mT.contiguous().mT), want)
    torch.testing.assert_close(scan(x[..., ::2]), scan(x[..., ::2].contiguous()))
    strided = torch.stack((x[0, 0], x[0, 1]), dim=-1)[:, 0]
    torch.testing.assert_close(scan(strided, indices=torch.zeros(7, dtype=torch.int64, device=device)), want[0, 0])
    for shape in ((0, 3), (3, 0), (0,), (2, 0, 4)):
        assert scan(torch.zeros(shape, device=device)).shape == shape


@scans
def test_nothing_to_scan(name, device):
    scan, x = getattr(nerfacc, name), torch.zeros(0, device=device, requires_grad=True)
    for rays in (0, 3):
        out = scan(x, packed_info=torch.zeros(rays, 2, dtype=torch.int64, device=device))
        out.sum().backward()
        assert out.shape == x.grad.shape == (0,)
    assert scan(x, indices=torch.zeros(0, dtype=torch.int64, device=device)).shape == (0,)


@scans
def test_chunks_in_any_order_with_samples_of_no_ray(name, device):
    """Gaps, an empty chunk in the middle of another, and rays that lie in the tensor in another order."""
    chunks = torch.tensor([[7, 3], [3, 0], [2, 4], [12, 0]])
    x = with_zeros(rand(12, low=0.6, high=1.4)).float().to(device)
    check(name, x, chunks, {"packed_info": chunks.to(device)})
    check(name, x, chunks, {"packed_info": chunks.int().to(device)})


@scans
def test_rays_do_not_touch(name, device):
    """NaN and infinity stay on their ray, in values and in gradients."""
    x = rand(12, low=0.6, high=1.4).float()
    x[4], x[6] = float("nan"), float("inf")
    ids = torch.tensor([3, 3, 3, 1, 1, 1, 1, 0, 0, 9, 9, 9])
    out, (grad,) = oracle.gradients(lambda x: getattr(nerfacc, name)(x, indices=ids.to(device)), x.to(device))
    other = (ids != 1).to(device)
    clean, (clean_grad,) = oracle.gradients(
        lambda x: getattr(nerfacc, name)(x, indices=ids.to(device)), torch.where(ids == 1, 1.0, x).to(device)
    )
    assert torch.equal(out[other], clean[other]) and torch.equal(grad[other], clean_grad[other])
    assert out[5].isnan()


@scans
def test_other_dtypes(name, device):
    scan, ids = getattr(nerfacc, name), torch.tensor([0, 0, 0, 1, 1], device=device)
    x = torch.tensor([1, 2, 3, 4, 5], device=device)
    want = scan(x.double(), indices=ids)
    whole = scan(x, indices=ids)
    assert whole.dtype == torch.int64 and whole.tolist() == want.tolist()
    for dtype in (torch.float16, torch.bfloat16):
        half = scan(x.to(dtype), indices=ids)
        assert half.dtype == dtype and half.tolist() == want.tolist()
        assert scan(x.to(dtype).view(1, 5)).dtype == dtype


@pytest.mark.parametrize("name", ["inclusive_prod", "inclusive_sum"])
def test_memory_kept_for_the_gradient_is_a_few_numbers_per_sample(name, device):
    """And does not grow with the number of passes."""

    def kept(samples):
        sizes = {}

        def pack(t):
            sizes[t.data_ptr()] = t.numel()
            return t

        x = torch.rand(samples, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            getattr(nerfacc, name)(x, indices=torch.zeros(samples, dtype=torch.int64, device=device))
        return sum(sizes.values())

    assert kept(64) <= 4 * 64 and kept(1024) <= 4 * 1024


@scans
def test_torch_func(name):
    scan, ids = getattr(nerfacc, name), indices((2, 0, 4))
    for arguments, shape in (({}, (2, 6)), ({"indices": ids}, (6,)), ({"packed_info": packed((2, 0, 4))}, (6,))):
        x = with_zeros(rand(12 if shape == (2, 6) else 6, low=0.6, high=1.4)).view(shape)

        def loss(x, arguments=arguments):
            return scan(x, **arguments).square().sum()

        leaf = x.clone().requires_grad_()
        (want,) = torch.autograd.grad(loss(leaf), leaf)
        torch.testing.assert_close(torch.func.grad(loss)(x), want)
        both = torch.func.vmap(torch.func.grad(loss))(torch.stack((x, x)))
        torch.testing.assert_close(both, torch.stack((want, want)))


def test_compiles():
    """All scans of both forms in one graph."""
    ids = indices((2, 0, 3, 5))

    def every(x):
        flat = [getattr(nerfacc, name)(x, indices=ids) for name in SCANS]
        return torch.stack(flat + [getattr(nerfacc, name)(x.view(2, 5)).view(-1) for name in SCANS])

    torch._dynamo.reset()
    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")
    x = with_zeros(rand(10))
    torch.testing.assert_close(oracle.gradients(compiled, x), oracle.gradients(every, x))


@pytest.fixture
def unread(monkeypatch):
    """As on a GPU: no value of a tensor decides what happens."""
    for module in (_nerfacc_scan, _nerfacc_pdf):
        monkeypatch.setattr(module, "values_at_hand", lambda x: False)


@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
def test_without_reading_values(counts, unread, device):
    """The longest ray and the number of runs are unknown; bounds take their place."""
    for name in SCANS:
        x = with_zeros(rand(sum(counts), low=0.6, high=1.4)).to(device)
        for arguments in forms(counts, device)[:2]:
            check(name, x, packed(counts), arguments)
    ids, alphas = indices(counts).to(device), rand(sum(counts)).to(device)
    want = nerfacc.exclusive_prod(1 - alphas, indices=ids)
    for n_rays in (None, len(counts)):
        got = nerfacc.render_transmittance_from_alpha(alphas, ray_indices=ids, n_rays=n_rays)
        torch.testing.assert_close(got, want)


def test_wrong_values_stay_inside_the_tensors(unread, device):
    """Where nothing is checked, bad chunks and ids give numbers without meaning, but no access out of bounds."""
    x = rand(6).to(device)
    for chunks in ([[0, 9]], [[-3, 2], [4, 9]], [[0, 4], [2, 4]]):
        assert nerfacc.inclusive_prod(x, packed_info=torch.tensor(chunks, device=device)).shape == (6,)
        _, trans = nerfacc.render_weight_from_alpha(x, packed_info=torch.tensor(chunks, device=device))
        assert trans.shape == (6,)
        rays = nerfacc.RaySamples(x.sort().values, torch.tensor(chunks, device=device))
        places = nerfacc.searchsorted(rays, rays)
        assert all((p >= 0).all() and (p < 6).all() for p in places)
    mixed = torch.tensor([0, 1, 0, 1, 0, 1], device=device)
    assert nerfacc.render_transmittance_from_alpha(x, ray_indices=mixed, n_rays=2).shape == (6,)


@pytest.mark.gpu
def test_gpu_is_not_waited_for():
    counts, device = (3, 0, 5), "cuda"
    ids, chunks, x = indices(counts).to(device), packed(counts).to(device), rand(8).float().to(device)
    rows, scale = x.view(2, 4).sort().values, torch.ones(8, device=device, requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for arguments in ({"packed_info": chunks}, {"indices": ids}):
            for name in SCANS:
                getattr(nerfacc, name)(x * scale, **arguments).sum().backward()
        for arguments in ({"packed_info": chunks}, {"ray_indices": ids}, {"ray_indices": ids, "n_rays": 3}):
            nerfacc.render_weight_from_density(x, x, x, **arguments)
            weights, _ = nerfacc.render_weight_from_alpha(x, **arguments)
        nerfacc.accumulate_along_rays(weights, None, ids, 3)
        nerfacc.pack_info(ids, 3)
        nerfacc.rendering(x, x, ids, 3, rgb_alpha_fn=lambda s, e, i: (torch.stack((s, s, s), -1), x))
        new, _ = nerfacc.importance_sampling(nerfacc.RayIntervals(rows), rows, 4)
        nerfacc.searchsorted(nerfacc.RayIntervals(rows), new)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pack_info(device):
    ids = torch.tensor([0, 2, 2, 2, 2], device=device)
    want = [[0, 1], [1, 0], [1, 4]]
    assert nerfacc.pack_info(ids, n_rays=3).tolist() == want
    assert nerfacc.pack_info(ids).tolist() == want
    assert nerfacc.pack_info(ids, 5).tolist() == [*want, [5, 0], [5, 0]]
    short = nerfacc.pack_info(ids.int(), 3)
    assert short.dtype == torch.int32 and short.tolist() == want
    assert short.device.type == device


def test_pack_info_of_nothing(device):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert nerfacc.pack_info(none).shape == (0, 2)
    assert nerfacc.pack_info(none, 2).tolist() == [[0, 0], [0, 0]]


X, IDS, CHUNKS = torch.zeros(3), torch.tensor([0, 0, 1]), torch.tensor([[0, 2], [2, 1]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, CHUNKS, IDS), ValueError, "indices: expected at most one of packed_info and indices, got both"),
        (([0.0],), TypeError, "inputs: expected a torch.Tensor, got list"),
        ((torch.tensor(1.0),), ValueError, "inputs: expected at least one dimension"),
        ((torch.zeros(3, 1), CHUNKS), ValueError, r"inputs: expected shape \[N\], got \[3, 1\]"),
        ((X, CHUNKS.float()), TypeError, "packed_info: expected dtype int64"),
        ((X, CHUNKS[0]), ValueError, r"packed_info: expected shape \[R, 2\], got \[2\]"),
        ((X, [[0, 3]]), TypeError, "packed_info: expected a torch.Tensor"),
        ((X, CHUNKS.to("meta")), ValueError, "packed_info: expected device cpu"),
        ((X, torch.tensor([[0, 2], [2, 2]])), ValueError, "packed_info: expected chunks .* inside the 3 samples"),
        ((X, torch.tensor([[-1, 2]])), ValueError, "packed_info: expected chunks .* inside the 3 samples"),
        ((X, torch.tensor([[0, 2], [1, 2]])), ValueError, "packed_info: expected chunks .* that do not overlap"),
        ((X, None, IDS.float()), TypeError, "indices: expected dtype int64"),
        ((X, None, IDS[:2]), ValueError, r"indices: expected shape \[N\] with N=3, got \[2\]"),
        ((X, None, IDS - 1), ValueError, "indices: expected ray ids of at least 0, got -1 to 0"),
        ((X, None, IDS.to("meta")), ValueError, "indices: expected device cpu"),
    ],
)
def test_scan_refuses(arguments, error, message):
    for name in SCANS:
        with pytest.raises(error, match=message):
            getattr(nerfacc, name)(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 1],), TypeError, "ray_indices: expected a torch.Tensor"),
        ((X,), TypeError, "ray_indices: expected dtype int64"),
        ((IDS[None],), ValueError, r"ray_indices: expected shape \[N\], got \[1, 3\]"),
        ((IDS, 1), ValueError, "ray_indices: expected ray ids of at least 0 and below n_rays = 1, got 0 to 1"),
        ((IDS, -1), ValueError, "n_rays: expected at least 0, got -1"),
    ],
)
def test_pack_info_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        nerfacc.pack_info(*arguments)
