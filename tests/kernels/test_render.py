"""`render_rays` against its doubly differentiated reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ponder_kernels import render_rays
from ponder_kernels.render import op as op_module
from ponder_kernels.render import registered
from ponder_kernels.render.chunk import Renderer
from ponder_kernels.render.opacity import MODELS
from ponder_kernels.render.reference import render_rays_reference
from ponder_kernels.render.registered import chunk_rays
from tests.kernels.render_cases import UNIT_CUBE, Case, Shape, gradients, make_case, values_of, with_leaves
from tests.tolerance import assert_close_to_reference

# Behind a nearly opaque sample the gradient of the transmittance product divides by a factor close to 0, in the
# reference (torch's cumprod) as in the operator: the sums are that much worse conditioned than their values.
CONDITION = 256

SHAPES = {
    "split": Shape(),
    "halves": Shape(channels=8),
    "no-second": Shape(channels=4),
    "shared": Shape(shared=True),
    "points": Shape(points=True),
    "affine-sdf": Shape(sdf_hidden=()),
    "two-hidden": Shape(sdf_hidden=(6, 5)),
    "outdoor-like": Shape(sdf_hidden=(6, 5, 4), points=True, shared=True, colour_hidden=(5, 4), semantic_hidden=None),
    "hidden-heads": Shape(colour_hidden=(5,), semantic_hidden=(6, 4)),
    "deep-heads": Shape(colour_hidden=(5, 4), semantic_hidden=(4, 6, 3), sdf_hidden=(6, 5)),
    "deep-shared-head": Shape(
        semantic_hidden=(4, 3), shared=True, volumes=2, sharpness=0.2, options={"opacity": "volsdf"}
    ),
    "two-volumes": Shape(volumes=2),
    "two-shared-volumes": Shape(volumes=2, points=True, shared=True, sdf_hidden=(5, 5)),
    "no-geometry": Shape(geometry=0),
    "colour-only": Shape(semantic_hidden=None),
    "plain": Shape(options={"opacity": "neus-plain"}),
    "volsdf-plain": Shape(sharpness=0.2, options={"opacity": "volsdf-plain"}),
    "volsdf": Shape(sharpness=0.2, options={"opacity": "volsdf"}),
    "normalised": Shape(points=True, options={"normalise": UNIT_CUBE}),
    "annealed": Shape(options={"cos_anneal_ratio": 0.3}),
    "every-ray": Shape(hit=False),
    "every-ray-volsdf": Shape(hit=False, sharpness=0.2, options={"opacity": "volsdf", "sample_at": "start"}),
    "per-sample": Shape(options={"per_sample": True}),
    "starts": Shape(options={"per_sample": True, "sample_at": "start", "padding": "zeros", "align_corners": True}),
    "one-sample": Shape(samples=1, batch=1, volume=(1, 2, 3)),
    "two-samples": Shape(samples=2, options={"padding": "zeros"}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    truth_case, case = make_case(shape), make_case(shape, dtype)
    truth, rendered = truth_case.call(render_rays_reference), case.call(render_rays)
    expected = values_of(truth)
    for name, got in values_of(rendered).items():
        assert_close_to_reference(got, expected[name].detach(), 50, scale=16, name=name)
    pairs = zip(gradients(rendered, case), gradients(truth, truth_case), strict=True)
    for number, (got, want) in enumerate(pairs):
        assert_close_to_reference(got, want, 500, scale=CONDITION, name=f"gradient of leaf {number}")
    assert sum(bool(g.any()) for g in gradients(case.call(render_rays), case)) >= len(case.leaves) - 1


@pytest.mark.parametrize("name", ["split", "volsdf", "hidden-heads"])
def test_derivatives_against_finite_differences(name: str) -> None:
    case = make_case(SHAPES[name], rays=3, samples=3, batch=1, volume=(2, 3, 2), hit=False)

    def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(values_of(with_leaves(case, list(leaves)).call(render_rays)).values())

    assert torch.autograd.gradcheck(outputs, tuple(case.leaves), nondet_tol=1e-12, fast_mode=True)


def test_result_does_not_depend_on_the_chunks() -> None:
    whole, parts = make_case(), make_case()
    first, second = whole.call(render_rays), parts.call(render_rays, chunk_bytes=1)
    wanted = [*values_of(first).values(), *gradients(first, whole)]
    for got, want in zip([*values_of(second).values(), *gradients(second, parts)], wanted, strict=True):
        assert_close_to_reference(got, want.detach(), 100, scale=16)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 3, 1), (3, 2), (2,), (0,), ()], ids=str)
def test_heads_in_any_order(order: tuple[int, ...]) -> None:
    """With and without sigmoid and hidden layers: some are composited per sample, some partly, some not at all."""
    shape = Shape(points=True)
    kinds = [
        make_case(shape, colour_hidden=hidden, seed=number).field.heads[0]._replace(sigmoid=sigmoid)
        for number, (hidden, sigmoid) in enumerate([((), True), ((), False), ((4, 3), False), ((6,), True)])
    ]
    kinds.append(make_case(shape, semantic_hidden=(7,), seed=9).field.heads[1])

    def with_heads(case: Case) -> Case:
        return case._replace(field=case.field._replace(heads=tuple(kinds[k] for k in order)))

    case = with_heads(make_case(shape))
    truth, rendered = case.call(render_rays_reference), case.call(render_rays)
    for name, got in values_of(rendered).items():
        assert_close_to_reference(got, values_of(truth)[name].detach(), 50, scale=16, name=name)
    pairs = zip(gradients(rendered, case), gradients(truth, case), strict=True)
    for number, (got, want) in enumerate(pairs):
        assert_close_to_reference(got, want, 500, scale=CONDITION, name=f"gradient of leaf {number}")


def test_no_rays() -> None:
    case = make_case(rays=0)
    rendered = case.call(render_rays)
    assert rendered.rgb.shape == (2, 0, 3)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(rendered, case))


def test_channels_last_transposed_and_half_volumes() -> None:
    truth_case = make_case(channels=8)
    truth = gradients(truth_case.call(render_rays), truth_case)
    for layout in (
        lambda v: v.contiguous(memory_format=torch.channels_last_3d),
        lambda v: v.transpose(2, 4).contiguous().transpose(2, 4),
    ):
        case = make_case(channels=8)
        case = case._replace(volumes=[layout(case.volumes[0].detach()).requires_grad_()])
        for got, want in zip(gradients(case.call(render_rays), case), truth, strict=True):
            assert_close_to_reference(got, want, 100)
    half = make_case(dtype=torch.float32)
    half = half._replace(volumes=[half.volumes[0].detach().half().requires_grad_()])
    full = half._replace(volumes=[half.volumes[0].detach().float().requires_grad_()])
    assert torch.equal(half.call(render_rays).rgb, full.call(render_rays).rgb)
    assert gradients(half.call(render_rays), half)[0].dtype == torch.float16


def test_missed_rays_are_black_and_without_gradient() -> None:
    case = make_case()
    rendered = case.call(render_rays)
    assert case.hit is not None and not bool(case.hit[0, 2])
    assert rendered.opacity[0, 2] == 0 and rendered.depth[0, 2] == 0
    missed = rendered.rgb[0, 2].sum() + rendered.heads[1][0, 2].sum() + rendered.normal[0, 2].sum()
    found = torch.autograd.grad(missed, case.leaves, allow_unused=True)
    assert all(g is None or not g.any() for g in found)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sharpness", [1e-4, 1e6])
@pytest.mark.parametrize("scale", [0.0, 1e4], ids=["flat", "steep"])
def test_hostile_fields_stay_finite(sharpness: float, scale: float, model: str) -> None:
    case = make_case(dtype=torch.float32, sharpness=sharpness, options={"opacity": model, "per_sample": True})
    case = case._replace(volumes=[(case.volumes[0].detach() * scale).requires_grad_()])
    rendered = case.call(render_rays)
    for value in (*values_of(rendered).values(), *gradients(rendered, case)):
        assert torch.isfinite(value).all()


def test_rays_that_graze_or_miss_the_box_stay_finite() -> None:
    case = make_case(dtype=torch.float32, hit=False, options={"padding": "zeros"})
    origins, directions, edges = case.rays
    edges = edges.clone()
    edges[0, 3] = 1e6 * torch.arange(edges.shape[-1])
    origins = origins.clone()
    origins[0, 4, 0] = case.box[0, 1, 0]
    directions = directions.clone()
    directions[0, 4] = torch.tensor([0.0, 1.0, 0.0])
    case = case._replace(rays=(origins, directions, edges))
    rendered = case.call(render_rays)
    for value in (*values_of(rendered).values(), *gradients(rendered, case)):
        assert torch.isfinite(value).all()


def test_half_precision_volume_at_the_end_of_its_range() -> None:
    case = make_case(dtype=torch.float32)
    case = case._replace(volumes=[torch.full_like(case.volumes[0], 6e4).half().requires_grad_()])
    rendered = case.call(render_rays)
    assert all(torch.isfinite(v).all() for v in values_of(rendered).values())
    assert all(torch.isfinite(g).all() for g in gradients(rendered, case)[1:])


def test_opaque_first_sample_hides_the_rest() -> None:
    case = make_case(samples=2, hit=False)
    leaves = [torch.zeros_like(leaf) for leaf in case.leaves]
    inside = with_leaves(case, leaves)
    inside.field.sdf[-1].bias[0] = -5.0
    rendered = inside._replace(sharpness=torch.tensor(50.0, dtype=torch.float64)).call(render_rays)
    middle = (case.rays[2][..., 0] + case.rays[2][..., 1]) / 2
    assert_close_to_reference(rendered.depth, middle, 1, scale=1e9)
    assert_close_to_reference(rendered.opacity, torch.ones_like(middle), 1, scale=1e9)


def test_saved_memory_does_not_depend_on_the_channels() -> None:
    def saved_per_sample(channels: int) -> float:
        case = make_case(dtype=torch.float32, channels=channels, sdf_channels=channels // 2, rays=64, samples=16)
        inputs = {leaf.data_ptr() for leaf in case.leaves}
        small = max(w.numel() for w in weights)
        sizes: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            # The volume and the decoders, collapsed or not, are not counted.
            if value.data_ptr() not in inputs and value.numel() > small:
                sizes[value.untyped_storage().data_ptr()] = value.numel() * value.element_size()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            case.call(render_rays)
        return sum(sizes.values()) / (2 * 64 * 16)

    weights = make_case(channels=8, sdf_channels=4).leaves[1:]
    narrow, wide = saved_per_sample(8), saved_per_sample(64)
    assert 16 < narrow < 28
    weights = make_case(channels=64, sdf_channels=32).leaves[1:]
    assert wide <= narrow * 1.3


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


def _largest_tensor(case: Case, monkeypatch: pytest.MonkeyPatch) -> int:
    """Elements of the largest tensor that rendering, or its backward pass, makes."""
    seen = _Largest()

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            with seen:
                return function(*args)

        return wrapper

    # A mode does not look inside a registered operator.
    monkeypatch.setattr(Renderer, "forward", watched(Renderer.forward))
    monkeypatch.setattr(registered, "render_backward", watched(registered.render_backward))
    with seen:
        gradients(case.call(render_rays, chunk_bytes=1 << 40), case)
    monkeypatch.undo()
    return seen.numel


@pytest.mark.unguarded
@pytest.mark.parametrize("hidden", [(), (16,), (16, 16, 16)], ids=str)
def test_wide_heads_are_never_as_wide_per_sample(hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A semantic head of 512 outputs, in a single chunk; with a sigmoid it has to be that wide."""
    width, rays, samples = 512, 8, 16
    case = make_case(rays=rays, samples=samples, batch=1, semantic_hidden=hidden, semantic_outputs=width)
    assert _largest_tensor(case, monkeypatch) < rays * samples * width // 4
    colour, semantic = case.field.heads
    bent = case._replace(field=case.field._replace(heads=(colour, semantic._replace(sigmoid=True))))
    assert _largest_tensor(bent, monkeypatch) >= rays * samples * width


def test_second_order_is_refused() -> None:
    case = make_case()
    with pytest.raises(RuntimeError, match="render_rays: second derivatives are not available"):
        torch.autograd.grad(case.call(render_rays).rgb.square().sum(), case.volumes, create_graph=True)


def _fresh(argument: object, differentiable: bool) -> object:
    """A copy of an argument without history; tensors that had one are leaves where `differentiable`."""
    if isinstance(argument, list):
        return [_fresh(a, differentiable) for a in argument]
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().clone().requires_grad_(argument.requires_grad and differentiable)


@pytest.mark.unguarded
def test_registered_operators() -> None:
    case = make_case(rays=3, samples=2, options={"per_sample": True})
    recorded: list[tuple] = []
    for name in ("render_sums", "render_gradients"):
        operator = getattr(registered, name)
        with pytest.MonkeyPatch.context() as patch:
            for module in (registered, op_module):
                if hasattr(module, name):
                    patch.setattr(module, name, lambda *a, f=operator: (recorded.append((f, a)), f(*a))[1])
            gradients(case.call(render_rays), case)
    assert len(recorded) == 2
    for operator, arguments in recorded:
        torch.library.opcheck(operator, tuple(_fresh(a, operator is registered.render_sums) for a in arguments))


@pytest.mark.unguarded
def test_compiles() -> None:
    """A whole loss, the collapse of the decoders included, is one graph."""
    torch._dynamo.reset()

    def loss(case: Case) -> Tensor:
        return sum(v.square().sum() for v in values_of(case.call(render_rays)).values())

    case = make_case(SHAPES["per-sample"], rays=4)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(case), case.leaves)
    for g, w in zip(got, torch.autograd.grad(loss(case), case.leaves), strict=True):
        assert_close_to_reference(g, w, 500, scale=CONDITION)
    torch._dynamo.reset()


@pytest.mark.unguarded
def test_autocast_leaves_the_result_alone() -> None:
    """What autocast left in half precision, the decoders included, is widened; sums along rays are float32."""
    case = make_case(dtype=torch.float32)
    low = with_leaves(case, [case.volumes[0], *(leaf.detach().bfloat16() for leaf in case.leaves[1:])])
    high = with_leaves(case, [case.volumes[0], *(leaf.float() for leaf in low.leaves[1:])])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = values_of(low.call(render_rays))
    want = values_of(high.call(render_rays))
    assert all(v.dtype == torch.float32 and torch.equal(v, want[name]) for name, v in got.items())


def test_chunk_rays() -> None:
    assert chunk_rays(samples=64, width=32, element_bytes=4, chunk_bytes=1 << 20) == 128
    assert chunk_rays(samples=64, width=32, element_bytes=4, chunk_bytes=1) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origins": torch.zeros(2, 9, 2)}, r"origins: expected shape \[B, R, 3\]"),
        ({"directions": torch.zeros(2, 8, 3)}, r"directions: expected shape \[B, R, 3\] with B=2, R=9"),
        ({"edges": torch.zeros(2, 9, 1)}, "edges: expected at least 2 edges"),
        ({"volume": []}, "volume: expected at least one volume"),
        ({"volume": torch.zeros(2, 7, 4, 6, 5, dtype=torch.int32)}, "volume: expected dtype"),
        ({"volume": torch.zeros(2, 7, 0, 6, 5)}, "volume: expected at least one voxel"),
        ({"volume": torch.zeros(2, 3, 4, 6, 5)}, r"field.sdf\[0\].inputs: expected at most C=3 columns"),
        ({"volume": torch.zeros(2, 5, 4, 6, 5)}, r"field.heads\[0\].layers\[0\].inputs: expected shape \[O, I\]"),
        ({"volume": [torch.zeros(2, 7, 4, 6, 5), torch.zeros(2, 6, 4, 6, 5)]}, "volume: expected the same B and C"),
        ({"box": torch.zeros(3, 2, 3)}, r"box: expected shape \[B, 2, 3\] with B=2"),
        ({"sharpness": torch.ones(1)}, r"sharpness: expected shape \[\]"),
        ({"hit": torch.ones(2, 3, dtype=torch.bool)}, "hit: expected shape"),
        ({"padding": "wrap"}, "padding: expected one of zeros, border, got 'wrap'"),
        ({"opacity": "nerf"}, "opacity: expected one of neus, neus-plain, volsdf, volsdf-plain, got 'nerf'"),
        ({"sample_at": "end"}, "sample_at: expected one of middle, start, got 'end'"),
        ({"chunk_bytes": 0}, "chunk_bytes: expected a positive number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input(change: dict, message: str) -> None:
    case = make_case(dtype=torch.float32)
    with pytest.raises((ValueError, TypeError), match=message):
        render_rays(**(case.arguments() | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sdf": ()}, "field.sdf: expected at least one layer"),
        ({"shared": True}, "field.shared: expected the SDF to read all C=7 channels, got 4"),
    ],
)
def test_bad_fields(change: dict, message: str) -> None:
    case = make_case(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        case._replace(field=case.field._replace(**change)).call(render_rays)


def test_bad_layers_are_named() -> None:
    case = make_case(dtype=torch.float32)
    first, last = case.field.sdf
    for layer, message in (
        (last._replace(previous=None), r"field.sdf\[1\].previous: expected a tensor"),
        (last._replace(previous=torch.zeros(4, 5)), r"field.sdf\[1\].previous: expected shape \[O, K\]"),
        (last._replace(bias=torch.zeros(3)), r"field.sdf\[1\].bias: expected shape \[O\]"),
    ):
        with pytest.raises(ValueError, match=message):
            case._replace(field=case.field._replace(sdf=(first, layer))).call(render_rays)
