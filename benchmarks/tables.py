"""Markdown of results."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.competitors import COMPETITORS, OURS, TRUTH
from benchmarks.measure import WHOLE, Spread
from benchmarks.results_file import CaseResult

NONE = "–"
# Renderers are timed in these parts; other cases are single operators.
RENDER_PARTS = ("forward", "backward")


def full(results: Sequence[CaseResult], pictures: Sequence[str]) -> str:
    """A whole report: provenance, overview, plots, one table a case."""
    machine = results[0].machine
    rates = machine["ceilings"]
    lines = [
        f"# Benchmarks on {machine['device']}",
        "",
        f"{machine_line(results[0])}. `pytest benchmarks`, `python -m benchmarks.report`;"
        " [method and limits](../README.md).",
        "",
        f"Ceilings measured in the same run: copy {rates['copy_bytes_per_second'] / 1e9:.3g} GB/s,"
        f" float32 matrix product {rates['matmul_flops_per_second'] / 1e9:.4g} GFLOP/s.",
        *other_commits(results),
        "",
        "## Step time by that of `ponder`",
        "",
        "Median (20th to 80th percentile) of the ratios of single rounds, in which all ran on the same inputs.",
        "",
        *overview(results),
    ]
    for picture in pictures:
        words = picture.removesuffix(".png").rpartition("-")[2]
        lines += ["", f"![{words}]({picture})"]
    for result in results:
        lines += ["", *_case(result)]
    lines += ["", "## Who is who", ""]
    lines += [f"- `{name}`: {competitor.about}." for name, competitor in COMPETITORS.items()]
    return "\n".join(lines) + "\n"


def other_commits(results: Sequence[CaseResult]) -> list[str]:
    """A sentence for each kind of figures that belongs to another commit than the report's."""
    found = sorted({(kind, commit) for result in results for kind, commit in result.commits.items()})
    words = {"time": "Some seconds", "saved": "Saved bytes", "memory": "Peak memory"}
    own = results[0].machine["commit"]
    return [f"{words[kind]}: commit {commit}." for kind, commit in found if commit != own]


def machine_line(result: CaseResult) -> str:
    """Device, versions, commit and date in words."""
    m = result.machine
    cuda = f", CUDA {m['cuda']}" if "cuda" in m else f", {m['threads']} threads"
    versions = f"Python {m['python']}, torch {m['torch']}, Triton {m['triton']}, numpy {m['numpy']}"
    return f"{m['device']}{cuda}; {versions}; commit {m['commit']}, {m['date']}"


def overview(results: Sequence[CaseResult]) -> list[str]:
    """Cases by competitors."""
    names = [name for name in COMPETITORS if any(name in r.competitors for r in results)]
    lines = _head(["case", f"`{OURS}`, seconds", *(f"`{name}`" for name in names if name != OURS)])
    for result in results:
        cells = [_ratio(result, name) for name in names if name != OURS]
        lines.append(_row([f"{result.name}", _seconds(result, OURS), *cells]))
    return lines


def short(results: Sequence[CaseResult]) -> str:
    """The README's table."""
    lines = [f"{machine_line(results[0])}.", ""]
    lines += _head(["case", f"`{OURS}`", f"`{TRUTH}`", "`eager2`", "saved per ray (KB)", "peak memory per ray (KB)"])
    for result in results:
        ratios = [_ratio(result, name) for name in (TRUTH, "eager2")]
        bytes_of = [_pair(found) for found in (result.saved, result.memory)]
        lines.append(_row([f"{result.title}: {result.size}", f"{_seconds(result, OURS)} s", *ratios, *bytes_of]))
    return "\n".join(lines)


def _case(result: CaseResult) -> list[str]:
    size = f"{result.size[0].upper()}{result.size[1:]}."
    lines = [f"## {result.name}: {result.title}", "", f"{size} {result.conditions.words()}."]
    parts = [part for part in next(iter(result.seconds.values()), {}) if part != WHOLE]
    lines += ["", *_times(result, parts)]
    if result.saved or result.memory:
        lines += ["", *_memory(result)]
    return lines


def _times(result: CaseResult, parts: Sequence[str]) -> list[str]:
    """Seconds and rates; a row for everybody, those who were not timed with the reason."""
    by = f"by `{OURS}`"
    # An image has one part, which is the whole.
    shown = parts if len(parts) > 1 else []
    heads = [*(f"{part} (ms)" for part in shown), f"{WHOLE} (ms)", *(f"{part} {by}" for part in shown), f"{WHOLE} {by}"]
    lines = _head(["", *heads, "% of copy", "% of product", f"off `{TRUTH}`"])
    for name in result.competitors:
        if name not in result.seconds:
            lines.append(_row([f"`{name}`", result.absent[name], *[""] * (len(heads) + 2)]))
            continue
        times = [_number(result.time(name, part), 1e3) for part in (*shown, WHOLE)]
        ratios = [_ratio(result, name, part) for part in (*shown, WHOLE)]
        shares = [f"{result.share_of_ceiling(name, what):.0%}" for what in ("bytes", "flops")]
        error = f"{result.errors[name]:.0e}" if name in result.errors else NONE
        lines.append(_row([f"`{name}`", *times, *ratios, *shares, error]))
    return lines


def _memory(result: CaseResult) -> list[str]:
    counts = sorted({rays for peaks in result.peaks.values() for rays in peaks})
    heads = ["", "saved for backward (KB a ray)", "peak memory (KB a ray)", *(f"peak at {n} rays (MB)" for n in counts)]
    lines = _head(heads)
    for name in [n for n in COMPETITORS if n in result.saved or n in result.memory]:
        peaks = [result.peaks.get(name, {}).get(n) for n in counts]
        cells = [_kilo(result.saved.get(name)), _kilo(result.memory.get(name))]
        lines.append(_row([f"`{name}`", *cells, *(NONE if p is None else f"{p / 1e6:.0f}" for p in peaks)]))
    return lines


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(result: CaseResult, name: str, part: str = WHOLE) -> str:
    if name not in result.seconds:
        return result.absent.get(name, NONE)
    found = result.ratio(name, part)
    if found is None:
        return NONE
    return f"{found.median:.3g} x" if name == OURS else f"{_number(found)} x"


def _seconds(result: CaseResult, name: str) -> str:
    return _number(result.time(name)) if name in result.seconds else NONE


def _number(value: Spread, scale: float = 1.0) -> str:
    median, low, high = (_digits(v * scale) for v in value)
    return f"{median} ({low} to {high})"


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:,.0f}" if value >= 1e3 else f"{value:.3g}"


def _kilo(value: float | None) -> str:
    return NONE if value is None else _digits(value / 1e3)


def _pair(found: dict[str, float]) -> str:
    """Ours and the eager baseline's."""
    if OURS not in found or TRUTH not in found:
        return NONE
    return f"{_kilo(found[OURS])}, eager {_kilo(found[TRUTH])}"
