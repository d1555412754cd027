"""Who takes part: their numbers, and what is said of those who are missing."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import agreement
from benchmarks.baselines import adapters
from benchmarks.baselines.compiled import build_compiled, cannot_compile
from benchmarks.baselines.ponderv2 import RayBundle
from benchmarks.cases import RENDER_CASES, TRAINING_CASES
from benchmarks.competitors import COMPETITORS, TRUTH
from benchmarks.contenders import MODEL_SEED, Contender, Renderer, render_contender
from benchmarks.inputs import make_inputs
from benchmarks.operators import OPERATORS
from ponder_kernels.compat import nerfacc, smooth_sampler

# Of float32 against float32.
NEAR = 5e-3


def contender(case: str, name: str, dtype: torch.dtype = torch.float32) -> Contender:
    workload = RENDER_CASES[case]
    inputs = make_inputs(workload, workload.sizes["tiny"], "cpu").to(dtype)
    return render_contender(COMPETITORS[name].build(workload), workload, inputs)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-3)], ids=["f64", "f32"])
@pytest.mark.parametrize("case", RENDER_CASES)
def test_everybody_at_hand_gives_the_eager_numbers(case: str, dtype: torch.dtype, limit: float) -> None:
    found = agreement.check(
        {name: contender(case, name, dtype) for name in ("eager", "ponder", "eager2")}, TRUTH, limit
    )
    assert set(found) == {"ponder", "eager2"}


def test_a_step_compares_outputs_losses_and_gradients() -> None:
    step = contender("indoor", "ponder")
    for work in step.parts.values():
        work()
    found = step.results()
    wanted = {"output rgb", "output semantic", "output sdf", "loss eikonal_loss", "gradient volume 0"}
    assert wanted < set(found) and "gradient field.sdf_decoder.lin0.weight" in found
    step.reset()
    assert step.results() == {}


def test_scenes_of_a_batch_share_their_losses() -> None:
    case = RENDER_CASES["indoor-batch8"]
    step = contender("indoor-batch8", "eager")
    step.parts["forward"]()
    sizes = case.sizes["tiny"]
    assert sizes.scenes > 1
    found = step.results()
    assert found["output depth"].shape == (sizes.all_rays, 1) and found["loss depth_loss"].shape == ()


def test_an_image_is_rendered_in_chunks() -> None:
    case = dataclasses.replace(RENDER_CASES["image-semantics"], chunk=5)
    inputs = make_inputs(case, case.sizes["tiny"], "cpu")
    whole, parts = (
        render_contender(COMPETITORS["ponder"].build(c), c, inputs) for c in (RENDER_CASES[case.name], case)
    )
    for rendering in (whole, parts):
        rendering.reset()
        rendering.parts["forward"]()
    for key, value in whole.results().items():
        if key != "output depth":  # clipped to the samples of its chunk
            torch.testing.assert_close(parts.results()[key], value)
    assert not any(value.requires_grad for value in whole.results().values())


@pytest.mark.parametrize("name", ["smooth-sampler", "nerfacc", "lightplane"])
def test_missing_libraries_are_said_to_be_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = name.replace("-", "_")
    refuses, case = COMPETITORS[name].refuses, RENDER_CASES["camera"]
    for device in ("cpu", "cuda"):
        assert refuses(case, device) == "not installed"
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    assert refuses(case, "cpu") == "runs on CUDA only"
    assert refuses(case, "cuda") is None


def test_a_broken_library_says_what_is_wrong(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_library.py").write_text("raise OSError('libcudart.so: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = adapters.cannot_import("half_a_library")
    assert reason == "cannot be imported: OSError: libcudart.so: cannot open shared object file"


def test_lightplane_needs_colours() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lightplane", types.ModuleType("lightplane"))
        refused = {n: COMPETITORS["lightplane"].refuses(case, "cuda") for n, case in TRAINING_CASES.items()}
    assert {n for n, reason in refused.items() if reason} == {"outdoor", "outdoor-semantics"}


def test_adapters_of_other_libraries_give_the_eager_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With modules that answer to the libraries' names; the libraries themselves need a GPU."""
    monkeypatch.setitem(sys.modules, "nerfacc", nerfacc)
    monkeypatch.setitem(sys.modules, "smooth_sampler", smooth_sampler)
    for case in ("indoor", "image-semantics"):
        names = (TRUTH, "nerfacc", "smooth-sampler")
        assert len(agreement.check({name: contender(case, name) for name in names}, TRUTH, NEAR)) == 2
    for operator, name in ((OPERATORS["volume-sample"], "smooth-sampler"), (OPERATORS["composite"], "nerfacc")):
        both = {n: operator.contender(n, operator.sizes["tiny"], "cpu") for n in (TRUTH, name)}
        assert name in agreement.check(both, TRUTH, 1e-5)


class _Rays(types.SimpleNamespace):
    directions: Tensor
    origins: Tensor
    grid_idx: Tensor
    near: Tensor
    far: Tensor


class _LightplaneRenderer(nn.Module):
    """Answers the calls; the colour is the mean feature where a ray starts, so that gradients flow."""

    def __init__(self, num_samples: int, color_chn: int, grid_chn: int, mlp_hidden_chn: int, **layers: int) -> None:
        super().__init__()
        assert num_samples == 96 and grid_chn == 32 and set(layers) == {
            "mlp_n_layers_trunk", "mlp_n_layers_opacity", "mlp_n_layers_color",
        }  # fmt: skip
        self.scale = nn.Parameter(torch.ones(color_chn))

    def forward(self, rays: _Rays, grid: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        assert grid[0].dim() == 5 and grid[0].shape[-1] == 32 and rays.grid_idx.dtype == torch.long
        # The box is [-1, 1] there, and rays end in it.
        end = rays.origins + rays.far[:, None] * rays.directions
        assert rays.near.lt(rays.far).all() and end.abs().max() < 1.001
        colour = grid[0].mean() * self.scale.expand(len(rays.origins), -1)
        return rays.far, torch.ones_like(rays.far), colour


def test_lightplane_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lightplane")
    module.Rays, module.LightplaneRenderer = _Rays, _LightplaneRenderer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightplane", module)
    step = contender("camera", "lightplane")
    for work in step.parts.values():
        work()
    found = step.results()
    assert {"output rgb", "output depth", "loss rgb_loss", "loss depth_loss"} < set(found)
    assert found["gradient volume 0"].any() and not COMPETITORS["lightplane"].exact


def test_torch_compile_refuses_double_backward() -> None:
    """Why the compiled baseline leaves the SDF's gradient eager; the day this fails, it need not any more."""

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(torch.tanh(x @ weight).sum(), x, create_graph=True)
        return gradient.square().sum()

    compiled = torch.compile(loss, backend="aot_eager")
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        compiled(torch.randn(2, 3, requires_grad=True), torch.randn(3, 4, requires_grad=True)).backward()


@pytest.mark.parametrize("name", ["indoor", "image"])
def test_compiled_parts_give_the_eager_numbers(name: str) -> None:
    """Traced and split as for timing, but run by PyTorch: no compiler is needed."""
    case = RENDER_CASES[name]
    inputs = make_inputs(case, case.sizes["tiny"], "cpu")
    torch.manual_seed(MODEL_SEED)
    renderer = Renderer(build_compiled(case.config(), case.training, backend="aot_eager"), RayBundle)
    compiled = render_contender(renderer, case, inputs)
    assert "compiled" in agreement.check({TRUTH: contender(name, TRUTH), "compiled": compiled}, TRUTH, NEAR)


def test_compiling_every_case_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = COMPETITORS["compiled"].refuses
    assert "only timed in `indoor` and `image`" in str(refuses(RENDER_CASES["outdoor"], "cpu"))
    monkeypatch.setattr(torch, "compile", lambda f: (_ for _ in ()).throw(RuntimeError("no C++ compiler\nmore")))
    cannot_compile.cache_clear()
    try:
        assert refuses(RENDER_CASES["indoor"], "cpu") == "torch.compile fails: RuntimeError: no C++ compiler"
    finally:
        cannot_compile.cache_clear()
