"""The script for a machine with a GPU: its limits and reports with stand-ins for steps, its commands, and a dry run."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory, on_gpu, ponderv2_step
from benchmarks.conditions import Conditions
from benchmarks.gpu_steps import TESTS, Step, require_pipeline, steps
from ponder.cli import parse
from ponder.recipes import get_recipe
from ponder.train.config import apply_overrides
from ponder_kernels import selftest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"


def step(name: str, code: str, seconds: float = 30.0, **options: Any) -> Step:
    return Step(name, seconds, ("-c", code), **options)


def run(folder: Path, *plan: Step, seconds: float = 60.0) -> list[on_gpu.Outcome]:
    return on_gpu.run(plan, folder, seconds, {"device": "a test"})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "LEAST", 0.5)
    monkeypatch.setattr(on_gpu, "GRACE", 5.0)


def test_each_step_is_reported_as_soon_as_it_ends(tmp_path: Path) -> None:
    """The second step reads what is known of the first."""
    summary = tmp_path / "summary.json"
    look = f"import json; print([s['status'] for s in json.load(open({str(summary)!r}))['steps']])"
    found = run(
        tmp_path, step("first", "print('a result')"), step("second", look), step("third", "raise SystemExit(3)")
    )
    assert [(o.status, o.exit_code) for o in found] == [("ok", 0), ("ok", 0), ("failed", 3)]
    assert found[0].last_lines == ["a result"] and found[1].last_lines == ["['ok']"]
    written = json.loads(summary.read_text(encoding="utf-8"))
    assert written["device"] == "a test" and [s["name"] for s in written["steps"]] == ["first", "second", "third"]
    assert str(tmp_path) not in summary.read_text(encoding="utf-8"), "folders of a machine are left out"
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "==== first: python -c" in log and "a result" in log
    assert "third   failed, exit code 3" in on_gpu.table(found)


def test_a_step_beyond_its_limit_is_interrupted_then_killed(tmp_path: Path) -> None:
    """What it started ends with it; one that listens to Ctrl-C can still write what it has."""
    part, late = tmp_path / "part", tmp_path / "late"
    listens = f"import time\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n open({str(part)!r}, 'w')"
    child = f"import time; time.sleep(9); open({str(late)!r}, 'w')"
    deaf = f"import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n\
subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    on_gpu.GRACE = 3.0
    began = time.monotonic()
    # As in the background of a shell.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found = run(tmp_path, step("listens", listens, 5.0), step("deaf", deaf, 1.0), step("next", "pass"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert [o.status for o in found] == ["out of time", "out of time", "ok"]
    assert found[0].note == "stopped after 5 s" and part.exists()
    time.sleep(max(0.0, began + 18 - time.monotonic()))
    assert not late.exists()


def test_later_steps_are_skipped_when_the_time_is_up(tmp_path: Path) -> None:
    slow = "import time; time.sleep(60)"
    found = run(tmp_path, step("first", slow), step("second", "pass"), step("third", "pass"), seconds=2.0)
    assert [(o.status, o.note) for o in found[1:]] == [("skipped", "no time left")] * 2
    assert found[0].status == "out of time" and found[0].seconds < 8


def test_a_step_that_lacks_something_is_skipped_with_a_reason(tmp_path: Path) -> None:
    needs = ("-c", "import sys; print('looking'); sys.exit('no engine')")
    found = run(tmp_path, step("one", "1/0", needs=needs), step("two", "pass", needs=("-c", "pass")))
    assert [(o.status, o.note) for o in found] == [("skipped", "no engine"), ("ok", "")]


def test_result_of_a_step_is_in_the_summary(tmp_path: Path) -> None:
    result = tmp_path / "metrics.json"
    writes = f"open({str(result)!r}, 'w').write('{{\"psnr\": 20}}')"
    found = run(tmp_path, step("one", writes, result=result), step("two", "pass", result=tmp_path / "missing.json"))
    assert [o.result for o in found] == [{"psnr": 20}, None]


def test_a_step_is_told_how_long_it_has(tmp_path: Path) -> None:
    plan = Step("tune", 60.0, ("-c", "import sys; print(sys.argv[1])", "{left}"))
    assert run(tmp_path, plan, seconds=100.0)[0].last_lines == [f"{60 - on_gpu.RESERVE:.0f}"]
    assert run(tmp_path, plan, seconds=20.0)[0].last_lines == ["1"]


@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("raise SystemExit(1)", 1)])
def test_exit_status_says_whether_a_step_failed(
    code: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(on_gpu, "steps", lambda folder, work, dry: [step("one", "pass"), step("two", code)])
    monkeypatch.setattr(on_gpu, "facts_of", lambda device: {"kind": device})
    assert on_gpu.main([]) == status
    printed = capsys.readouterr().out
    assert f"two  {'failed' if status else 'ok'}, exit code {status}" in printed
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["kind"] == "cuda"


def test_order_and_time_of_the_steps() -> None:
    real, dry = (steps(Path("OUT"), Path("WORK"), dry=mode) for mode in (False, True))
    names = [s.name for s in real]
    assert names == ["selftest", "tests", "step-time", "step-memory", "pipeline", "benchmarks", "report", "tune"]
    assert [s.name for s in dry] == names
    before_tuning = sum(s.seconds for s in real if s.name not in ("benchmarks", "report", "tune"))
    assert before_tuning < on_gpu.SECONDS, "the benchmarks always begin"


@pytest.mark.parametrize("dry", [False, True], ids=["gpu", "dry"])
def test_commands_are_understood(
    dry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Every option by the program that it is for, without its work."""
    plan = {s.name: s.arguments for s in steps(tmp_path, tmp_path, dry)}
    for name, (flag, module, *_) in plan.items():
        assert flag == "-m" and importlib.util.find_spec(module), name
    device = "cpu" if dry else "cuda"
    monkeypatch.setattr(selftest, "cases", lambda: [])
    monkeypatch.setattr(torch, "empty", lambda *a, **k: None)
    monkeypatch.setattr(selftest, "_describe", str)
    assert selftest.main(plan["selftest"][2:]) == 0 and device in capsys.readouterr().out
    asked: list[Any] = []
    facts = dict.fromkeys(("device", "threads", "torch", "commit"), "")
    monkeypatch.setattr(ponderv2_step, "provenance", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    timed = ponderv2_step.Steps({"ponder": [1.0]}, Conditions([0.0], [0.0]))
    monkeypatch.setattr(ponderv2_step, "time_steps", lambda *a: asked.append(a) or timed)
    monkeypatch.setattr(memory, "peaks", lambda *a: asked.append(a) or {1: 1, 2: 2})
    ponderv2_step.main(list(plan["step-time"][2:]))
    ponderv2_step.main(list(plan["step-memory"][2:]))
    assert asked and all(a[-1] == device for a in asked)
    options = parse(plan["pipeline"][2:])
    config = apply_overrides(get_recipe(options.recipe), options.overrides)
    assert options.device == device and config.steps <= 30
    assert all((ROOT / folder).is_dir() for folder in TESTS) and set(TESTS) <= set(plan["tests"])
    assert f"--benchmark-json={tmp_path / 'benchmarks.json'}" in plan["benchmarks"]
    assert plan["report"][2] == str(tmp_path / "benchmarks.json")


def test_benchmarks_are_found() -> None:
    """Those of a GPU, and of a dry run; options of the suite are known to it."""
    pytest.importorskip("pytest_benchmark")
    for dry in (False, True):
        (plan,) = (s.arguments for s in steps(Path("OUT"), Path("WORK"), dry) if s.name == "benchmarks")
        arguments = [a for a in plan if not a.startswith("--benchmark-json")]
        done = subprocess.run([sys.executable, *arguments, "--collect-only"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "bench_time" in done.stdout, done.stdout + done.stderr


def test_all_gpu_tests_are_in_the_folders_that_are_run() -> None:
    marked = {path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text("utf-8")}
    assert marked and all(any(path.is_relative_to(ROOT / folder) for folder in TESTS) for path in marked)


def test_pipeline_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("rich", "PIL") else find(name))
    with pytest.raises(SystemExit, match="cannot import rich, PIL"):
        require_pipeline("cpu")


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([SCRIPT, *arguments], env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_bad_calls_are_refused(tmp_path: Path) -> None:
    done = shell(OUT=str(tmp_path / "out"))
    assert done.returncode == 2
    sentence = "on_gpu: cannot run on cuda: no CUDA device; --dry-run runs every step on the CPU\n"
    assert done.stderr == sentence
    assert shell("--only", "nothing").returncode == 2 and shell("--seconds", "-1").returncode == 2
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    done = shell("--dry-run", OUT=str(blocked))
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_dry_run_of_the_quick_steps(tmp_path: Path) -> None:
    done = shell("--dry-run", "--only", "selftest", "step-time", "pipeline", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    found = {s["name"]: s for s in summary["steps"]}
    assert found["selftest"]["status"] == found["step-time"]["status"] == "ok"
    assert found["selftest"]["last_lines"][-1].endswith("checks agree with float64")
    assert any("x ponder" in line for line in found["step-time"]["last_lines"])
    if importlib.util.find_spec("spconv"):
        assert found["pipeline"]["status"] == "ok"
        assert found["pipeline"]["result"]["steps"] == 2
    else:
        assert found["pipeline"]["note"].startswith("no sparse-convolution library")
    for fact in ("device", "commit", "date", "torch", "triton", "python"):
        assert summary[fact], fact
