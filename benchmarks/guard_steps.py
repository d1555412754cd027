"""What a training step of PonderV2's indoor renderer does, counted on the CPU: memory kept, launches, operations.

Torch runs on one thread meanwhile: the profiler sees no others, and counts then do not depend on the machine's cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import RENDER_CASES
from benchmarks.competitors import COMPETITORS, OURS
from benchmarks.contenders import Contender, render_contender
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.launches import Launch, launches_through, triton_chosen
from benchmarks.measure import WHOLE, Rounds, ratios, saved_bytes, spread
from ponder.render.ponderv2.field import unit_box
from ponder_kernels import RayTargets, render_rays, stratified_edges

Figures = dict[str, dict[str, float]]
CASE = RENDER_CASES["indoor"]
# Its channels; few voxels, so that rays rather than the volume's gradient take the time.
VOLUME = (128, 8, 16, 16)
RAYS = 64
TRUNCATION = 0.05
ROUNDS = 3
BASELINES = ("eager", "eager2")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_case(rays: int) -> Inputs:
    """Volume, rays and targets of one camera."""
    return make_inputs(CASE, replace(CASE.sizes["tiny"], volume=VOLUME, views=1, rays=rays), "cpu")


def drop_in(inputs: Inputs, name: str = OURS) -> tuple[Contender, list[Tensor]]:
    """The drop-in renderer with all its losses, or a competitor, and the tensors that exist before the step."""
    renderer = COMPETITORS[name].build(CASE)
    return render_contender(renderer, CASE, inputs), [*inputs.own(), *renderer.model.parameters()]


def reduced(inputs: Inputs) -> tuple[Contender, list[Tensor]]:
    """The same field through `render_rays`, with loss terms reduced on the way, as in the project's own recipes."""
    model = COMPETITORS[OURS].build(CASE).model
    depth = inputs.targets["depth"].T.clamp_min(0)
    near = torch.full_like(depth, 0.05)
    made: list[Tensor] = []

    def reset() -> None:
        made.clear()
        for leaf in (*inputs.volumes, *model.parameters()):
            leaf.grad = None

    def forward() -> None:
        edges = stratified_edges(near, near + 1, CASE.samples[1])
        rendered = render_rays(
            model.field.prepare(inputs.volumes, torch.float32), model.field.weights(1), inputs.origins,
            inputs.directions, edges, model.sharpness(), unit_box(near), normalise=model.field.normalisation(),
            targets=RayTargets(depth, torch.ones_like(depth), TRUNCATION),
        )  # fmt: skip
        pixels = (*rendered.heads, rendered.depth, rendered.normal)
        made.append(sum((p.square().mean() for p in pixels), rendered.eikonal + rendered.free_space + rendered.sdf))

    parts = {"forward": forward, "backward": lambda: made[0].backward()}
    return Contender(reset, parts, dict), [*inputs.own(), *model.parameters()]


STEPS: dict[str, Callable[[Inputs], tuple[Contender, list[Tensor]]]] = {"drop-in": drop_in, "render_rays": reduced}


def measure_kept() -> Figures:
    """Bytes kept for each further ray."""
    found = {}
    for name, make in STEPS.items():
        few, many = (saved_bytes(*make(make_case(rays))) for rays in (RAYS, 2 * RAYS))
        found[f"{name} with all losses"] = (many - few) / RAYS
    return {"saved bytes per ray": found}


def profiled(step: Callable[[], None]) -> dict[str, float]:
    """Operations, nested ones included, allocations and allocated bytes of one step, after a first that is not counted.

    A step must run on this thread.
    """
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = found.profiler.kineto_results.events()
    sizes = [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]
    operations = sum(e.name().startswith("aten::") for e in events)
    if not operations or not sizes:
        raise RuntimeError("the profiler recorded no operations or no allocations")
    return {"operations": operations, "allocations": len(sizes), "allocated bytes": sum(sizes)}


def _whole(step: Contender) -> Callable[[], None]:
    """All parts of a step."""

    def run() -> None:
        step.reset()
        for work in step.parts.values():
            work()

    return run


def measure_operations() -> Figures:
    """Of the step with torch operations."""
    figures: Figures = {}
    for name, make in STEPS.items():
        for kind, value in profiled(_whole(make(make_case(RAYS))[0])).items():
            figures.setdefault(kind, {})[f"{name}, torch"] = value
    return figures


def measure_launches() -> Figures:
    """Of the step with Triton kernels: its launches, none of which happens, and the torch operations between them.

    Nothing that is counted depends on what the kernels would have written.
    """
    figures: Figures = {"launches": {}}
    for name, make in STEPS.items():
        names: Counter[str] = Counter()

        def count(launch: Launch, kernel: object, arguments: tuple[object, ...], names: Counter[str] = names) -> None:
            names[kernel.__name__] += 1  # type: ignore[attr-defined]

        with triton_chosen(), launches_through(count):
            found = profiled(_whole(make(make_case(RAYS))[0]))
        # Of two steps, as one is not profiled.
        figures["launches"] |= {f"{name}, {kernel}": number / 2 for kernel, number in names.items()}
        figures["launches"][f"{name}, all kernels"] = sum(names.values()) / 2
        for kind, value in found.items():
            figures.setdefault(kind, {})[f"{name}, triton"] = value
    return figures


def measure_time() -> Figures:
    """Seconds of the drop-in's step by those of eager implementations, in interleaved rounds."""
    inputs = make_case(RAYS)
    rounds = Rounds({name: drop_in(inputs, name)[0] for name in (OURS, *BASELINES)}, torch.device("cpu"))
    for _ in range(ROUNDS + 1):
        rounds()
    seconds = {name: parts[WHOLE] for name, parts in rounds.seconds.items()}
    medians = {name: spread(ratios(seconds[OURS], seconds[name])).median for name in BASELINES}
    return {"time over eager": {f"drop-in over {name}": round(value, 4) for name, value in medians.items()}}


MEASURES = (measure_kept, measure_launches, measure_operations, measure_time)


def measure(match: str = "") -> Figures:
    """All of them, on one thread; `match` only leaves out figures."""
    figures: Figures = {}
    with one_thread():
        for found in (each() for each in MEASURES):
            for kind, values in found.items():
                figures.setdefault(kind, {}).update({s: v for s, v in values.items() if match in s})
    return {kind: values for kind, values in figures.items() if values}
