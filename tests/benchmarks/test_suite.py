"""The suite's parts: workloads, their tensors, rounds, agreement, counted work and memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import agreement, ceilings, measure, memory
from benchmarks.agreement import relative_error
from benchmarks.cases import COMPOSITE, RENDER_CASES, SAMPLE, SIZES
from benchmarks.contenders import Contender
from benchmarks.inputs import make_inputs
from benchmarks.measure import WHOLE, Rounds, ratios, saved_bytes, spread
from benchmarks.operators import OPERATORS, refuses
from benchmarks.provenance import provenance
from benchmarks.work import composite_work, render_work, sample_work

CPU = torch.device("cpu")


def test_full_sizes_are_the_published_ones() -> None:
    full = {name: case.sizes["full"] for name, case in RENDER_CASES.items()}
    assert all(set(case.sizes) == set(SIZES) for case in RENDER_CASES.values())
    assert full["indoor"].volume == (128, 32, 128, 128) and full["indoor"].all_rays == 256 * 5
    assert full["indoor-batch8"].all_rays == 10_240
    assert full["outdoor"].volume == full["camera"].volume == (32, 5, 180, 180)
    assert full["image"].all_rays == 640 * 480
    assert RENDER_CASES["indoor"].samples == (96, 132) and RENDER_CASES["camera"].samples == (72, 96)
    assert [name for name, case in RENDER_CASES.items() if not case.training] == ["image", "image-semantics"]


@pytest.mark.parametrize("name", RENDER_CASES)
def test_inputs_follow_the_seed_and_hit_the_scene(name: str) -> None:
    case = RENDER_CASES[name]
    sizes = case.sizes["tiny"]
    inputs, again, other = (make_inputs(case, sizes, "cpu", seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(inputs.own(), again.own(), strict=True))
    assert not torch.equal(inputs.volumes[0], other.volumes[0])
    assert [tuple(v.shape) for v in inputs.volumes] == [sizes.volume] * sizes.scenes
    # Channels last, and a leaf in training.
    assert all(v.stride(0) == 1 and v.requires_grad == case.training for v in inputs.volumes)
    assert inputs.directions.shape == (sizes.scenes, sizes.scene_rays, 3)
    assert torch.allclose(inputs.directions.norm(dim=-1), torch.ones(()))
    low, length = case.cube
    middle = torch.full((3,), low + length / 2)
    along = ((middle - inputs.origins) * inputs.directions).sum(-1, keepdim=True).clamp_min(0.05)
    nearest = inputs.origins + along * inputs.directions
    assert ((nearest - low) / length).gt(0).all() and ((nearest - low) / length).lt(1).all()
    if case.training:
        assert inputs.targets["depth"].shape == (sizes.all_rays, 1)
        norms = inputs.targets["semantic"].norm(dim=-1)
        assert torch.allclose(norms[norms > 0], torch.ones(()))


def _contender(log: list[str], name: str, factor: float = 2.0) -> Contender:
    """Doubles a row of numbers, or does so wrongly."""
    x = torch.linspace(1, 2, 10).requires_grad_()
    made: dict[str, Tensor] = {}

    def forward() -> None:
        log.append(name)
        made["y"] = x * factor

    def backward() -> None:
        (made["gradient"],) = torch.autograd.grad(made["y"].sum(), x)

    def results() -> dict[str, Tensor]:
        return {"output y": made["y"].detach(), "gradient x": made["gradient"]}

    return Contender(made.clear, {"forward": forward, "backward": backward}, results)


def test_rounds_rotate_and_leave_warm_ups_out() -> None:
    log: list[str] = []
    rounds = Rounds({name: _contender(log, name) for name in "abc"}, CPU)
    for _ in range(2):
        rounds.sit_down()
        for _ in range(4):
            rounds()
    runs = ["".join(log[k : k + 3]) for k in range(0, 24, 3)]
    kept = runs[1:4] + runs[5:]
    assert len(set(kept)) == 6 and {run[0] for run in kept} == set("abc")
    assert {part: len(values) for part, values in rounds.seconds["a"].items()} == {
        "forward": 6, "backward": 6, WHOLE: 6,
    }  # fmt: skip
    for parts in rounds.seconds.values():
        for forward, backward, whole in zip(*(parts[p] for p in ("forward", "backward", WHOLE)), strict=True):
            assert whole == pytest.approx(forward + backward) and forward > 0


def test_the_fast_have_several_turns_and_count_with_their_median(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    # Seconds of "slow", "half" and "fast": a warm-up, a round with a disturbed turn of "fast", one more.
    taken = {"slow": iter([9.0, 8.0, 8.0]), "half": iter([4.0] * 5), "fast": iter([1.0, 1.0, 7.0, 2.0, 1.0, 1.0, 1.0])}

    def time_parts(contender: Contender, device: torch.device) -> dict[str, float]:
        contender.parts["forward"]()
        return {WHOLE: next(taken[log[-1]])}

    monkeypatch.setattr(measure, "time_parts", time_parts)
    rounds = Rounds({name: _contender(log, name) for name in taken}, CPU, most_turns=3)
    for _ in range(3):
        rounds()
    assert log[:3] == ["slow", "half", "fast"]
    assert log[3:9] == ["fast", "half", "slow", "fast", "half", "fast"]
    assert log[9:] == ["fast", "half", "fast", "slow", "half", "fast"]
    assert {name: parts[WHOLE] for name, parts in rounds.seconds.items()} == {
        "slow": [8.0, 8.0], "half": [4.0, 4.0], "fast": [2.0, 1.0],
    }  # fmt: skip
    rounds.sit_down()
    assert rounds.turns == {"slow": 1, "half": 1, "fast": 1}


def test_spread_and_ratios() -> None:
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == (3.0, 1.8, 4.2)
    assert ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize("factor", [2.001, float("nan")])
def test_nobody_with_other_numbers_is_timed(factor: float) -> None:
    both = {"right": _contender([], "right"), "wrong": _contender([], "wrong", factor)}
    with pytest.raises(AssertionError, match=r"wrong differs from right: output y: .*, gradient x: "):
        agreement.check(both, "right", 1e-4)
    # Unless it is known to compute something else.
    assert agreement.check(both, "right", 1e-4, frozenset({"wrong"})) == {}
    if factor == factor:
        assert agreement.check(both, "right", 1e-3)["wrong"] == pytest.approx(5e-4, rel=1e-3)


def test_missing_results_do_not_agree() -> None:
    right = _contender([], "right")
    silent = dataclasses.replace(right, results=lambda: {})
    with pytest.raises(AssertionError, match="silent differs from right: output y: inf, gradient x: inf"):
        agreement.check({"right": right, "silent": silent}, "right", 1.0)
    with pytest.raises(AssertionError, match="gave nothing"):
        agreement.check({"right": silent}, "right", 1.0)


def test_relative_error_by_hand() -> None:
    three, zeros = torch.tensor([3.0, 4.0, 0.0, 1.0]), torch.zeros(4)
    assert relative_error(three, torch.tensor([3.0, 4.0, 0.0, 0.0])) == pytest.approx(0.2)
    assert relative_error(three, zeros) == pytest.approx(26**0.5)


def test_saved_bytes_are_distinct_storages() -> None:
    x = torch.randn(100, requires_grad=True)
    made: list[Tensor] = []

    def forward() -> None:
        wide = torch.exp(x)  # keeps its output
        # Keeps the same storage twice, and x, which is left out.
        made.append(wide * wide.view(10, 10).reshape(-1) * x)

    contender = Contender(made.clear, {"forward": forward}, dict)
    # exp's output, and the product that x is multiplied with.
    assert saved_bytes(contender, [x]) == 2 * 400
    assert saved_bytes(contender, []) == 3 * 400


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_agree(name: str) -> None:
    operator = OPERATORS[name]
    present = [c for c in operator.competitors if refuses(c, "cpu") is None]
    contenders = {c: operator.contender(c, operator.sizes["tiny"], "cpu") for c in present}
    assert {"ponder", "eager"} <= set(contenders)
    assert agreement.check(contenders, "eager", 1e-5)


@pytest.mark.parametrize("name", RENDER_CASES)
def test_work_grows_with_the_rays(name: str) -> None:
    case = RENDER_CASES[name]
    sizes = case.sizes["full"]
    one, two = (render_work(case, dataclasses.replace(sizes, rays=n * sizes.rays)) for n in (1, 2))
    assert set(one) == ({"forward", "backward", WHOLE} if case.training else {"forward", WHOLE})
    assert one[WHOLE].flops == sum(cost.flops for part, cost in one.items() if part != WHOLE)
    assert two["forward"].flops == pytest.approx(2 * one["forward"].flops)
    assert two["forward"].bytes_read == pytest.approx(2 * one["forward"].bytes_read, rel=0.01)


def test_work_of_the_indoor_step_is_that_of_the_counted_floor() -> None:
    """kernels: 51 kFLOP a sample forwards and 127 backwards with everything collapsed, 96 of 132 for the sampler."""
    case = RENDER_CASES["indoor"]
    work = render_work(case, case.sizes["full"])
    samples = case.sizes["full"].all_rays * case.samples[1]
    assert work["forward"].flops / samples == pytest.approx(51e3, rel=0.25)
    assert work[WHOLE].flops / samples == pytest.approx(179e3, rel=0.25)


def test_work_of_operators() -> None:
    sizes = SAMPLE["tiny"]
    work = sample_work(sizes)
    assert work["values"].bytes_written == sizes.points * sizes.volume[0] * 4
    assert work["second"].flops > work["values"].flops
    composite = composite_work(COMPOSITE["tiny"])
    assert composite["forward"].bytes_read >= 16 * 8 * 3 * 4


def test_peak_memory_of_children() -> None:
    """Each is a process of its own; what a ray adds is a slope."""
    assert memory.slope({100: 5e6, 200: 6e6, 400: 8e6}) == pytest.approx(1e4)
    sizes = dataclasses.replace(RENDER_CASES["indoor"].sizes["tiny"], memory_rays=(16, 64))
    found = memory.peaks("indoor", "eager", sizes, "cpu")
    assert list(found) == [32, 128]
    # Autograd alone keeps 1.2 MB a ray.
    assert 1.2e6 < memory.slope(found) < 4e6


def test_peak_memory_at_many_rays_where_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a ray of a lean renderer adds then stands out, and one that keeps everything does not fill the machine."""
    per_ray = {"ponder": 10_000, "eager": 2_000_000}
    monkeypatch.setattr(memory, "_in_child", lambda _, name, sizes: 300_000_000 + per_ray[name] * sizes.all_rays)
    sizes = dataclasses.replace(RENDER_CASES["indoor"].sizes["small"], memory_rays=(64, 160), more_memory_rays=(960,))
    lean = memory.peaks("indoor", "ponder", sizes, "cpu")
    assert list(lean) == [320, 800, 4800] and memory.slope(lean) == pytest.approx(10_000)
    assert memory.expected({320: lean[320], 800: lean[800]}, 4800) == pytest.approx(lean[4800])
    assert list(memory.peaks("indoor", "eager", sizes, "cpu")) == [320, 800]


def test_a_child_that_fails_is_no_number() -> None:
    sizes = RENDER_CASES["indoor"].sizes["tiny"]
    with pytest.raises(RuntimeError, match="memory of nobody in indoor: the process ended with 1"):
        memory.peaks("indoor", "nobody", sizes, "cpu")


def test_ceilings_and_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 64})
    rates = ceilings.measure(CPU)
    assert all(1e6 < rate < 1e14 for rate in rates.values())
    facts = provenance("cpu")
    assert facts["torch"] == torch.__version__ and facts["threads"] == torch.get_num_threads()
    assert not any("not installed" in str(facts[name]) for name in ("torch", "numpy"))


ROOT = Path(__file__).parents[2]
FAULTS = """
import resource, sys, torch
from benchmarks.keep_memory import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(40 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(10):
    faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_stays() -> None:
    """A large tensor costs no page faults once one like it has been freed; by default each does."""

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)

    assert faults("keep") < 100 < 10_000 < faults("default")
