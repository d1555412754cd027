"""Tables, plots and the comparison of two runs, from results made up here and from a real tiny run."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from benchmarks import report, tables
from benchmarks.cases import RENDER_CASES
from benchmarks.measure import spread
from benchmarks.results_file import ResultError, load
from benchmarks.suite import MORE_SITTINGS, OPERATOR_SITTINGS, SITTINGS

ROOT = Path(__file__).parents[2]
MACHINE = {
    "device": "Some CPU @ 1 GHz", "kind": "cpu", "threads": 2, "python": "3.11", "commit": "abcdef",
    "date": "2026-01-02", "torch": "2.13.0", "triton": "3.9.0", "numpy": "2.4", "pytest-benchmark": "5",
    "ceilings": {"copy_bytes_per_second": 1e10, "matmul_flops_per_second": 1e11},
}  # fmt: skip
SECONDS = {
    "ponder": {"forward": [1.0, 1.0, 2.0], "backward": [1.0, 1.0, 2.0], "step": [2.0, 2.0, 4.0]},
    "eager": {"forward": [2.0, 3.0, 4.0], "backward": [8.0, 7.0, 18.0], "step": [10.0, 10.0, 22.0]},
}
ABSENT = {"nerfacc": "not installed", "compiled": "torch.compile fails: no compiler"}


def entry(kind: str, case: str, **facts: Any) -> dict[str, Any]:
    about = {"schema": 3, "kind": kind, "case": case, "title": f"the {case}", "size": "10 rays", "machine": MACHINE}
    return {"name": f"bench[{case}]", "extra_info": about | facts}


def timed(
    case: str = "indoor", seconds: dict[str, Any] = SECONDS, stolen: Sequence[float] | None = None
) -> dict[str, Any]:
    work = {"step": {"bytes": int(1e10), "flops": int(4e10)}}
    stolen = [0.0] * len(seconds["ponder"]["step"]) if stolen is None else list(stolen)
    conditions = {"stolen": stolen, "handover": [4e-6] * len(stolen)}
    errors = {"ponder": 2e-4}
    return entry("time", case, seconds=seconds, conditions=conditions, absent=ABSENT, errors=errors, work=work)


def write(path: Path, *entries: dict[str, Any]) -> Path:
    # Some other plugin's benchmark is no concern of ours.
    path.write_text(json.dumps({"benchmarks": [*entries, {"name": "other", "extra_info": {}}]}))
    return path


@pytest.fixture
def result(tmp_path: Path) -> Path:
    saved = entry("saved", "indoor", bytes_per_ray={"ponder": 9e3, "eager": 1.22e6}, absent={})
    peaks = {"ponder": {"10": 5_000_000, "20": 6_000_000}, "eager": {"10": 8_000_000, "20": 28_000_000}}
    memory = entry(
        "memory", "indoor", bytes_per_ray={"ponder": 1e5, "eager": 2e6}, peak_bytes=peaks, absent={"compiled": "no"}
    )
    return write(tmp_path / "a.json", saved, timed("volume-sample"), timed(), memory)


def test_ratios_are_taken_round_by_round(result: Path) -> None:
    found = load([result])
    assert list(found) == [("cpu", "indoor"), ("cpu", "volume-sample")]
    indoor = found["cpu", "indoor"]
    ratio = indoor.ratio("eager")
    assert ratio is not None and ratio.median == 5.0 and ratio.p80 == pytest.approx(5.3)
    assert indoor.ratio("eager", "forward") == (2.0, 2.0, pytest.approx(2.6))
    # 1e10 bytes in 2 s against 1e10 a second; 4e10 FLOPs in 2 s against 1e11.
    assert indoor.share_of_ceiling("ponder", "bytes") == 0.5 and indoor.share_of_ceiling("ponder", "flops") == 0.2
    assert indoor.absent == ABSENT


def test_tables_show_every_case_and_competitor(result: Path) -> None:
    text = tables.full(list(load([result]).values()), ["x-speed.png"])
    for line in (
        "| indoor | 2 (2 to 3.2) | 5 (5 to 5.3) x | torch.compile fails: no compiler | not installed |",
        "| `eager` | 3,000 (2,400 to 3,600) | 8,000 (7,400 to 14,000) | 10,000 (10,000 to 17,200) |",
        "| `ponder` | 9 | 100 | 5 | 6 |",
        "| `eager` | 1,220 | 2,000 | 8 | 28 |",
        "![speed](x-speed.png)",
        "Some CPU @ 1 GHz, 2 threads; Python 3.11, torch 2.13.0, Triton 3.9.0, numpy 2.4; commit abcdef, 2026-01-02.",
        "copy 10 GB/s, float32 matrix product 100 GFLOP/s.",
    ):
        assert line in text, line
    assert text.count("| `nerfacc` | not installed |") == text.count("| `compiled` | torch.compile fails") == 2
    assert "50% | 20% | 2e-04 |" in text
    # Every row of a table is as long as its head.
    rows = [line for line in text.splitlines() if line.startswith("|")]
    heads = [k for k, line in enumerate(rows) if set(line) <= set("| -")]
    for start, end in zip(heads, [*(k - 1 for k in heads[1:]), len(rows)], strict=True):
        assert {row.count("|") for row in rows[start - 1 : end]} == {rows[start].count("|")}


def test_short_table(result: Path) -> None:
    line = "| the indoor: 10 rays | 2 (2 to 3.2) s | 5 (5 to 5.3) x | – | 9, eager 1,220 | 100, eager 2,000 |"
    assert line in tables.short(list(load([result]).values()))


def test_report_and_plots_are_written_whole(result: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    report.main([str(result), "--out", str(out), "--commit", "012345"])
    stem = "some-cpu-1-ghz-2026-01-02"
    names = {path.name for path in out.iterdir()}
    assert names == {f"{stem}.md", f"{stem}-speed.png", f"{stem}-memory.png", f"{stem}-roofline.png"}
    text = (out / f"{stem}.md").read_text()
    assert all(f"({name})" in text for name in names if name.endswith("png")) and "commit 012345" in text
    for path in out.glob("*.png"):
        pixels = image.imread(path)
        # A solid light card with dark ink, whatever the page's colour.
        assert pixels.shape[0] > 200 and pixels.shape[1] > 500
        assert pixels[0, 0, :3].min() > 0.9 and pixels[..., :3].min() < 0.3
        assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1.0


def test_rounds_that_the_host_disturbed_do_not_count(tmp_path: Path) -> None:
    found = load([write(tmp_path / "a.json", timed(stolen=[0.3, 0.0, 0.02]))])["cpu", "indoor"]
    assert found.rounds("eager") == [10.0, 22.0] and found.rounds("ponder") == [2.0, 4.0]
    assert found.ratio("eager") == spread([5.0, 5.5]) and found.time("eager").median == 16.0
    assert "3 rounds, of which the 2 count in which the machine was disturbed least." in tables.full([found], [])


def test_a_later_file_replaces_what_it_measures_again(result: Path, tmp_path: Path) -> None:
    faster = {"ponder": {"step": [1.0]}, "eager": {"step": [7.0]}}
    found = load([result, write(tmp_path / "b.json", timed(seconds=faster))])["cpu", "indoor"]
    assert found.ratio("eager") == (7.0, 7.0, 7.0) and found.saved["ponder"] == 9e3


def test_figures_of_another_commit_say_so(result: Path, tmp_path: Path) -> None:
    later = entry("memory", "indoor", bytes_per_ray={"ponder": 2e5}, peak_bytes={}, absent={})
    later["extra_info"]["machine"] = MACHINE | {"commit": "fedcba"}
    found = load([result, write(tmp_path / "b.json", later)])
    text = tables.full(list(found.values()), [])
    assert "commit abcdef," in text and "Peak memory: commit fedcba." in text and "Saved bytes: commit" not in text
    (table, *_) = report.write(found, tmp_path / "out", commit="123456")
    assert "commit 123456," in table.read_text() and "commit fedcba" not in table.read_text()


@pytest.mark.parametrize(("factor", "fits"), [(1.14, True), (0.88, True), (1.16, False), (0.86, False)])
def test_two_runs_are_compared(
    factor: float, fits: bool, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = {name: {p: list(v) for p, v in parts.items()} for name, parts in SECONDS.items()}
    slower["eager"]["forward"] = [v * factor for v in slower["eager"]["forward"]]
    other = write(tmp_path / "b.json", timed("volume-sample"), timed(seconds=slower))
    apart = f"{max(factor, 1 / factor) - 1:.1%} (indoor on cpu, eager, forward)"
    if fits:
        report.main([str(result), str(other), "--check"])
        assert apart in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit) as stopped:
            report.main([str(result), str(other), "--check"])
        assert apart in str(stopped.value) and "1 beyond 15%" in str(stopped.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "expected a file of --benchmark-json"),
        ('{"benchmarks": []}', "no results of the suite"),
        (json.dumps({"benchmarks": [{"extra_info": {"schema": 0}}]}), "expected schema 3, got 0"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SystemExit, match=message) as stopped:
        report.main([str(tmp_path / "x.json"), "--out", str(tmp_path)])
    assert "\n" not in str(stopped.value)


def test_runs_of_different_cases_are_not_compared(result: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.json", timed("outdoor"))
    with pytest.raises(ResultError, match="ponder was not timed in both runs"):
        report.differences(load([result]), load([other]))
    with pytest.raises(SystemExit):
        report.main([str(result), "--check"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Under xdist, which these options may ask for, pytest-benchmark measures nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_sittings_are_spread_over_the_run() -> None:
    """Turn by turn one of every renderer case, those of an operator evenly in between; what ran alone comes once."""
    done = run("pytest", "benchmarks", "--collect-only", "-q", "-m", "not gpu")
    order = re.findall(r"::bench_(time|operator|saved|memory)\[(.*)-cpu-?(\d*)\]", done.stdout)
    count = SITTINGS["cpu"] + MORE_SITTINGS["cpu"]
    turns = [[name for kind, name, turn in order if (kind, turn) == ("time", str(k))] for k in range(count)]
    assert all(turn == list(RENDER_CASES) for turn in turns)
    assert [int(turn) for kind, _, turn in order if kind == "time"] == sorted([*range(count)] * len(turns[0]))
    at = [number for number, (_, name, _) in enumerate(order) if name == "volume-sample"]
    between = [sum(kind == "time" for kind, *_ in order[a:b]) for a, b in itertools.pairwise(at)]
    assert len(at) == OPERATOR_SITTINGS * count
    assert set(between) <= {len(turns[0]) // OPERATOR_SITTINGS, len(turns[0]) // OPERATOR_SITTINGS + 1}
    kinds = [kind for kind, *_ in order]
    assert kinds.index("time") < kinds.index("saved") < kinds.index("memory") < 0.6 * len(kinds)


def test_a_tiny_run_from_pytest_to_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    done = run(
        "pytest", "benchmarks", "-q", "-m", "not gpu", "-k", "composite or (outdoor-cpu and not memory)",
        "--bench-size", "tiny", "--bench-rounds", "2", "--bench-patience", "0", "--bench-seconds", "0",
        "--bench-competitors", "ponder,eager",
        f"--benchmark-json={path}", f"--bench-lines={tmp_path / 'tiny.jsonl'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = load([path])
    assert load([tmp_path / "tiny.jsonl"]) == found
    assert list(found) == [("cpu", "outdoor"), ("cpu", "composite")]
    outdoor = found["cpu", "outdoor"]
    rounds = 2 * SITTINGS["cpu"]
    assert {n: len(p["step"]) for n, p in outdoor.seconds.items()} == {"ponder": rounds, "eager": rounds}
    assert outdoor.saved["eager"] > outdoor.saved["ponder"] > 0
    assert outdoor.absent["eager2"] == "not asked for" and outdoor.absent["nerfacc"] == "not asked for"
    assert len(report.write(found, tmp_path)) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--bench-competitors", "ponder,somebody"), "unknown somebody; known: ponder"),
        (("--bench-rounds", "0"), "at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(option: tuple[str, str], message: str) -> None:
    done = run("pytest", "benchmarks", *option)
    assert done.returncode == 4 and message in done.stderr


def test_plain_pytest_leaves_the_benchmarks_alone(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
    assert "bench_*.py" in pytestconfig.getini("python_files")
