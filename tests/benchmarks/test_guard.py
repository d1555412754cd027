"""The regression guard is green as committed, and turns red for each kind of figure when something is made worse."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from benchmarks import guard, guard_code, guard_steps
from ponder.render.ponderv2 import model as drop_in
from ponder_kernels.render import fused
from ponder_kernels.render.ray_opacity import opacity_forward
from ponder_kernels.render.types import RenderedRays

Figures = guard.Figures
ROOT = Path(__file__).parents[2]
HERE = {"torch": "1.0", "triton": "2.0"}


@pytest.mark.parametrize("group", guard.GROUPS)
def test_nothing_grew(group: str, capfd: pytest.CaptureFixture) -> None:
    """What CI guards. If this fails on purpose: python -m benchmarks.guard --update."""
    status = guard.main(["--only", group])
    printed = capfd.readouterr()
    assert status == 0, f"{printed.err}\n{printed.out}"


@pytest.fixture
def verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The guard's sentence on figures, compared with others that it recorded; empty if it is green."""
    monkeypatch.setattr(guard, "RECORD", tmp_path / "guard.json")

    def judge(recorded: Figures, measured: Figures) -> str:
        guard.update(recorded)
        monkeypatch.setattr(guard, "measure", lambda groups, match: measured)
        status = guard.main([])
        said = capsys.readouterr().err
        assert status == bool(said) and said.count("\n") == status
        return said

    return judge


def keeps_more(render: Callable[..., RenderedRays]) -> Callable[..., RenderedRays]:
    """An extra tensor saved for the backward pass."""

    def rendered(*args: Any, **options: Any) -> RenderedRays:
        found = render(*args, **options)
        assert found.samples is not None
        return found._replace(depth=found.depth + 0 * found.samples.weights.exp().sum(-1))

    return rendered


def renders_twice(render: Callable[..., RenderedRays]) -> Callable[..., RenderedRays]:
    """Operations and allocations that nothing needs."""

    def rendered(*args: Any, **options: Any) -> RenderedRays:
        render(*args, **options)
        return render(*args, **options)

    return rendered


def sleeps(render: Callable[..., RenderedRays]) -> Callable[..., RenderedRays]:
    """A step that takes a second longer."""

    def rendered(*args: Any, **options: Any) -> RenderedRays:
        time.sleep(1)
        return render(*args, **options)

    return rendered


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the faults below touch, and no more repeats than needed."""
    monkeypatch.setattr(guard_steps, "STEPS", {"drop-in": guard_steps.drop_in})
    monkeypatch.setattr(guard_steps, "BASELINES", ("eager2",))
    monkeypatch.setattr(guard_steps, "ROUNDS", 1)


@pytest.mark.parametrize(
    ("fault", "measure", "named"),
    [
        (keeps_more, guard_steps.measure_kept, "saved bytes per ray of 'drop-in with all losses'"),
        (renders_twice, guard_steps.measure_operations, "operations of 'drop-in, torch'"),
        (sleeps, guard_steps.measure_time, "time over eager of 'drop-in over eager2'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_worse_operator_is_noticed(
    fault: Any, measure: Any, named: str, quick: None, verdict: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with guard_steps.one_thread():
        clean = measure()
        monkeypatch.setattr(drop_in, "render_rays", fault(drop_in.render_rays))
        found = measure()
    assert verdict(clean, clean) == ""
    for kind in clean:
        only = [{kind: figures[kind]} for figures in (clean, found)]
        said = verdict(*only)
        assert f"{kind} of 'drop-in" in said and "allowed" in said, said
    assert named in verdict(clean, found)


def test_an_extra_launch_is_noticed(quick: None, verdict: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    with guard_steps.one_thread():
        clean = guard_steps.measure_launches()
        monkeypatch.setattr(fused, "opacity_forward", lambda *a: (opacity_forward(*a), opacity_forward(*a))[1])
        found = guard_steps.measure_launches()
    assert verdict(clean, clean) == ""
    launches = [{"launches": figures["launches"]} for figures in (clean, found)]
    assert "launches of 'drop-in, opacity_forward_kernel' went from 2 to 4" in verdict(*launches)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that the guard measures, to be broken."""
    folder = tmp_path / "copy"
    for package in ("ponder", "ponder_kernels", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(guard, "ROOT", folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def replace(path: Path, right: str, wrong: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(right) == 1, f"{right!r} occurs {text.count(right)} times in {path.name}"
    path.write_text(text.replace(right, wrong), encoding="utf-8")


def test_an_extra_load_is_noticed(copy: Path, verdict: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the inner loop of the opacities."""
    measure, subject = guard.measure, "opacity, forward, sm_80"
    monkeypatch.setattr(guard, "ROOT", ROOT)
    clean = measure(["code"], subject)
    monkeypatch.setattr(guard, "ROOT", copy)
    line = "    start = tl.load(place, mask=owned, other=0.0).to(tl.float32)\n"
    more = "    start += 0.0 * tl.load(place + 2, mask=owned, other=0.0)\n"
    replace(copy / "ponder_kernels" / "render" / "kernels.py", line, line + more)
    found = measure(["code"], subject)
    assert all(list(values) == [subject] for values in found.values())
    assert f"loads of '{subject}' went from" in verdict({"loads": clean["loads"]}, {"loads": found["loads"]})
    assert f"of '{subject}'" in verdict(clean, found)


def test_a_tile_that_is_too_large_is_noticed(copy: Path, verdict: Callable[..., str]) -> None:
    """Shared memory, registers and products grow, and registers spill."""
    table = copy / "ponder_kernels" / "launch_table.json"
    row = '"sdf_field_forward_kernel/tf32": {"BLOCK_M": %d, "num_warps": %d}'
    replace(table, row % (32, 8), row % (128, 4))
    subject = "field, distances, sm_80"
    found = guard.measure(["code"], subject)
    recorded = json.loads((ROOT / "benchmarks" / "results" / "guard.json").read_text(encoding="utf-8"))["figures"]
    clean = {kind: {subject: recorded[kind][subject]} for kind in found}
    for kind in ("registers", "shared bytes", "tensor-core instructions", "instructions", "spilled bytes"):
        assert f"{kind} of '{subject}'" in verdict({kind: clean[kind]}, {kind: found[kind]}), kind


@pytest.mark.parametrize("kind", guard.KINDS)
def test_growth_is_judged_by_kind(kind: str) -> None:
    growth, package, reason = guard.KINDS[kind]
    assert reason
    record = {"versions": HERE, "figures": {kind: {"it": 100.0}}}

    def row(value: float | None, present: dict[str, str] = HERE) -> guard.Row:
        figures = {} if value is None else {kind: {"it": value}}
        (found,) = guard.compare(figures, record, present)
        return found

    assert not row(100 * growth).failed and not row(0).failed
    assert row(100 * growth + 1).failed and row(None).failed
    other = row(1e6, HERE | {package: "9.9"})
    if package:
        assert not other.failed and other.verdict == f"skipped: {package} 9.9, recorded with {HERE[package]}"
    else:
        assert other.failed
    (new,) = guard.compare({kind: {"it": 3.0}}, {"versions": HERE, "figures": {}}, HERE)
    assert new.failed


def test_record_is_whole_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(guard, "RECORD", tmp_path / "guard.json")
    for content in (None, "", "[]", '{"figures": {}}'):
        if content is not None:
            guard.RECORD.write_text(content, encoding="utf-8")
        assert guard.main([]) == 2
        assert capsys.readouterr().err == "benchmarks.guard: no figures in guard.json: run " + guard.COMMAND + "\n"
    with pytest.raises(SystemExit):
        guard.main(["--update", "--match", "x"])
    guard.update({"launches": {"it": 1.0}})
    record = guard.read_record()
    assert record["figures"] == {"launches": {"it": 1.0}} and record["command"] == guard.COMMAND
    assert set(record["versions"]) == {"python", "torch", "triton"} and record["date"] and record["machine"]
    assert [path.name for path in tmp_path.iterdir()] == ["guard.json"]


def test_instructions_are_counted_once_each() -> None:
    code = """
        /*0000*/                   LDG.E.128 R4, desc[UR10][R2.64] ;
        /*0010*/              @!P0 STG.E desc[UR4][R2.64], R5 ;
        /*0020*/             @UP1 REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR10][R4.64], R8 ;
        /*0030*/                   HMMA.1688.F32.TF32 R4, R4, R8, R12 ;
        /*0040*/                   FFMA R1, R2, R3, R4 ;
        /*0050*/                   NOP;
    """
    assert guard_code.instructions(code) == {
        "loads": 1, "stores": 1, "atomics": 1, "tensor-core instructions": 1, "multiply-adds": 1, "instructions": 5,
    }  # fmt: skip


def test_step_is_counted_on_one_thread() -> None:
    before = torch.get_num_threads()
    with guard_steps.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
