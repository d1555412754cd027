"""Pictures of results: ratios, memory against rays, rates against ceilings. Readable on light and on dark pages."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from benchmarks.competitors import COMPETITORS, OURS, TRUTH
from benchmarks.measure import WHOLE
from benchmarks.results_file import CaseResult
from ponder.train.files import write_bytes

# A card of its own, so that the page's colour does not matter.
CARD, INK, FAINT = "#f4f5f7", "#22262e", "#c3c8d1"
# Okabe and Ito's colours, told apart by everybody.
COLOURS = dict(
    zip(COMPETITORS, ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7f7f7f"), strict=True)
)
DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
    "savefig.facecolor": CARD,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
}

Drawing = Callable[[Sequence[CaseResult]], Figure | None]


def write(results: Sequence[CaseResult], folder: Path, stem: str) -> list[Path]:
    """The pictures that these results allow."""
    written = []
    for name, draw in DRAWINGS.items():
        with matplotlib.rc_context(STYLE):
            figure = draw(results)
            if figure is None:
                continue
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
        path = folder / f"{stem}-{name}.png"
        write_bytes(path, content.getvalue())
        written.append(path)
    return written


def speed(results: Sequence[CaseResult]) -> Figure | None:
    """How many times longer than ours everybody takes: bars per case, whiskers to the percentiles."""
    others = [(r, name) for r in results for name in r.seconds if name != OURS]
    bars = [(r, name, ratio) for r, name in others if (ratio := r.ratio(name)) is not None]
    if not bars:
        return None
    figure = Figure(figsize=(8, 1.2 + 0.26 * len(bars) + 0.25 * len(results)), layout="constrained")
    axes = figure.subplots()
    ticks, labels, seen = [], [], set()
    at = 0.0
    for result in results:
        own = [(name, ratio) for r, name, ratio in bars if r is result]
        if not own:
            continue
        ticks.append(at + (len(own) - 1) / 2)
        labels.append(result.name)
        for name, ratio in own:
            whiskers = [[ratio.median - ratio.p20], [ratio.p80 - ratio.median]]
            label = None if name in seen else name
            seen.add(name)
            axes.barh(at, ratio.median, 0.85, xerr=whiskers, color=COLOURS[name], ecolor=INK, capsize=2, label=label)
            axes.annotate(
                f"{ratio.median:.1f}", (ratio.p80, at), (5, 0), textcoords="offset points", va="center",
                bbox={"facecolor": CARD, "edgecolor": "none", "pad": 1},
            )  # fmt: skip
            at += 1
        at += 0.8
    axes.set_yticks(ticks, labels)
    axes.invert_yaxis()
    axes.axvline(1, color=COLOURS[OURS], linewidth=2)
    axes.set_xlim(0, 1.12 * max(ratio.p80 for *_, ratio in bars))
    axes.set_xlabel(f"step time by that of {OURS} (line); median of rounds, whiskers 20th to 80th percentile")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(_title(results), fontsize=10, loc="left")
    return figure


def memory(results: Sequence[CaseResult]) -> Figure | None:
    """Peak memory of one step against its rays, a panel per case."""
    measured = [r for r in results if r.peaks]
    if not measured:
        return None
    columns = min(3, len(measured))
    rows = math.ceil(len(measured) / columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 2.8 * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, result in zip(panels, measured, strict=False):
        for name, peaks in result.peaks.items():
            rays, values = zip(*sorted(peaks.items()), strict=True)
            panel.plot(rays, [v / 1e6 for v in values], "o-", color=COLOURS[name], label=name)
        panel.set_title(result.name, fontsize=10)
        panel.margins(0.08)
        panel.set_ylim(0)
        panel.set_xlim(0)
        panel.grid()
        panel.set_xlabel("rays of one step")
        panel.set_ylabel("peak memory (MB)")
    for panel in panels[len(measured) :]:
        panel.set_visible(False)
    handles: dict[str, Any] = {}
    for panel in panels[: len(measured)]:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, frameon=False, loc="outside lower center", ncols=len(handles))
    figure.suptitle(_title(results), fontsize=10, x=0.01, ha="left")
    return figure


def roofline(results: Sequence[CaseResult]) -> Figure | None:
    """FLOPs per second against FLOPs per byte, both of the same counted work, under the ceilings of the run."""
    timed = [r for r in results if r.work and r.seconds]
    if not timed:
        return None
    ceilings = timed[0].machine["ceilings"]
    copy, product = (ceilings[k] / 1e9 for k in ("copy_bytes_per_second", "matmul_flops_per_second"))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    rates = []
    for number, result in enumerate(timed):
        whole = result.work[WHOLE]
        intensity = whole["flops"] / whole["bytes"]
        for name in (OURS, TRUTH):
            if name in result.seconds:
                rate = whole["flops"] / result.time(name).median / 1e9
                rates.append((intensity, rate))
                axes.plot(
                    intensity, rate, MARKERS[number % len(MARKERS)], color=COLOURS[name], markersize=8, alpha=0.85
                )
    found = sorted({x for x, _ in rates})
    edge = product / copy
    left, right = min(found[0], edge) / 3, max(found[-1], edge) * 3
    axes.plot([left, edge, right], [left * copy, product, product], color=INK, linewidth=2)
    middle = math.sqrt(left * edge)
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "right"}
    axes.annotate(f"copy {copy:.3g} GB/s", (middle, middle * copy), (-8, 6), **above)
    axes.annotate(f"float32 product {product:.4g} GFLOP/s", (right, product), (0, 6), **above)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min(y for _, y in rates) / 2, product * 2)
    axes.set_xlim(left, right)
    axes.set_xlabel("FLOPs per byte of the counted work")
    axes.set_ylabel("GFLOP/s")
    axes.grid(which="major")
    for number, result in enumerate(timed):
        axes.plot([], [], MARKERS[number % len(MARKERS)], color="#7d8590", markersize=8, label=result.name)
    for name in (OURS, TRUTH):
        axes.plot([], [], "s", color=COLOURS[name], markersize=8, label=name)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_title(_title(results), fontsize=10, loc="left")
    return figure


MARKERS = ("o", "^", "v", "D", "P", "X", "<", ">", "*", "h")
DRAWINGS: dict[str, Drawing] = {"speed": speed, "memory": memory, "roofline": roofline}


def _title(results: Sequence[CaseResult]) -> str:
    machine = results[0].machine
    return f"{machine['device']}, torch {machine['torch']}, commit {machine['commit']}, {machine['date']}"
