"""What a rendering step must move and compute on a GPU, launch by launch, and the time below which it cannot fall.

``python -m benchmarks.render_floor`` writes benchmarks/results/render_floor.md. Everything is counted, nothing is
measured: it says where the time can go, and what a measured time is to be compared with.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import NamedTuple

from ponder_kernels._launch import Cost
from ponder_kernels.render.cost import CLEAR, backward_costs, forward_costs, sampler_costs, total
from ponder_kernels.sdf_field.cost import CORNERS
from ponder_kernels.sdf_field.fused import INDOOR
from ponder_kernels.sdf_field.packing import FieldSizes

TABLE = Path(__file__).parent / "results" / "render_floor.md"


class Gpu(NamedTuple):
    """Rates in units per second: memory and second-level cache bytes, FLOPs on ordinary and tensor cores."""

    memory: float
    cache: float
    fp32: float
    tf32: float


# NVIDIA H100 SXM: memory and arithmetic sustained rates; that of the cache is an assumption.
H100 = Gpu(memory=3.0e12, cache=5.5e12, fp32=67e12, tf32=400e12)

RAYS, SAMPLES, SAMPLER_SAMPLES = 10_240, 132, 96
SCENES, VOXELS = 8, 32 * 128 * 128
# Per-sample outputs of the colour head; semantics are applied per ray.
HEADS = (3,)
# Of the volume's rows, in rooms seen by five cameras, 10 to 21 % are touched.
TOUCHED = 0.16


def bound_ms(name: str, cost: Cost, gpu: Gpu) -> float:
    """Milliseconds of a launch whose traffic comes from the second-level cache, but for what is far larger than it."""
    rate = gpu.memory if name.endswith(CLEAR) else gpu.cache
    return 1e3 * max((cost.bytes_read + cost.bytes_written) / rate, cost.flops / gpu.tf32)


def floor_cost(sizes: FieldSizes, voxels: int) -> Cost:
    """Compulsory traffic of a step with everything fused: touched rows once each way, rays and pixels, arithmetic.

    The gradient of the volume is cleared and its touched rows are read and written; arithmetic is that of one forward
    pass and of its recomputation and derivatives, without padding.
    """
    touched = int(TOUCHED * voxels) * sizes.channels * 4
    n = RAYS * SAMPLES
    mlp = 2 * sizes.layers * sizes.hidden * sizes.first
    gather = 2 * CORNERS * (2 * sizes.first + sizes.second)
    # Forward: decoder and its gradient; backward: both again, two products for each, gathers and scatters.
    flops = n * (2 * mlp + gather) + n * (2 * mlp + 4 * mlp + 3 * gather) + RAYS * SAMPLER_SAMPLES * (mlp + gather // 3)
    return Cost(touched + touched + n * 40, voxels * sizes.channels * 4 + touched + n * 40, flops)


def rows() -> list[tuple[str, Cost]]:
    """Launches of the whole step, in order."""
    voxels = SCENES * VOXELS
    launches = sampler_costs(RAYS, SAMPLER_SAMPLES, INDOOR)
    launches |= {f"forward: {k}": v for k, v in forward_costs(RAYS, SAMPLES, INDOOR, HEADS).items()}
    launches |= {f"backward: {k}": v for k, v in backward_costs(RAYS, SAMPLES, INDOOR, HEADS, voxels).items()}
    return list(launches.items())


def _line(name: str, cost: Cost, milliseconds: float) -> str:
    moved = (cost.bytes_read + cost.bytes_written) / 1e9
    return f"| {name} | {moved:.2f} | {cost.flops / 1e9:.0f} | {milliseconds:.2f} |"


def markdown() -> str:
    """The table with its head."""
    found = rows()
    summed, floor = total(dict(found)), floor_cost(INDOOR, SCENES * VOXELS)
    least = 1e3 * max((floor.bytes_read + floor.bytes_written) / H100.memory, floor.flops / H100.tf32)
    time = sum(bound_ms(name, cost, H100) for name, cost in found)
    bytes_ratio = (summed.bytes_read + summed.bytes_written) / (floor.bytes_read + floor.bytes_written)
    lines = [
        "# Floor of a rendering step on an H100",
        "",
        f"PonderV2's indoor renderer with all losses: {RAYS} rays x {SAMPLES} samples ({SAMPLER_SAMPLES} sampler",
        f"evaluations), {SCENES} scenes of 32 x 128 x 128 voxels x 128 channels, float32 with tf32 products.",
        f"`python -m benchmarks.render_floor`, {datetime.date.today()}. Counted from shapes; nothing was run on a GPU.",
        "",
        f"Rates: memory {H100.memory / 1e12} TB/s, second-level cache {H100.cache / 1e12} TB/s (assumed), tf32",
        f"{H100.tf32 / 1e12:.0f} TFLOP/s. The milliseconds of a launch are the larger of its traffic at the cache's",
        "rate (chunks are sized to stay there, corner rows are shared along rays) and its arithmetic; launches do not",
        "overlap. The volume's gradient is cleared at the memory's rate.",
        "",
        "| launch | GB issued | GFLOP issued | at least (ms) |",
        "| --- | --- | --- | --- |",
        *(_line(name, cost, bound_ms(name, cost, H100)) for name, cost in found),
        _line("sum", summed, time),
        _line("floor: everything fused, each touched row moved once", floor, least),
        "",
        f"Issued / floor: {bytes_ratio:.1f} x the bytes, {summed.flops / floor.flops:.2f} x the FLOPs, "
        f"{time / least:.1f} x the time.",
        "",
        "The largest parts are corner reads that repeat along a ray and the atomics; both are served by caches, whose",
        "hit rate only a measurement can tell.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table."""
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(markdown(), encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
