"""The launch table, how kernels read it, and the sweep that writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from benchmarks import tune
from benchmarks.resources import TARGETS
from benchmarks.tune_machines import Machine, gpu_milliseconds
from benchmarks.tune_sweeps import SWEEPS, Row, Sweep, forms_with, objection, trying
from ponder_kernels import _tuning, volume_sample
from ponder_kernels.render.op import specialisations

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads(_tuning.TABLE.read_text(encoding="utf-8"))
OPACITY = next(sweep for sweep in SWEEPS if sweep.row == "opacity_forward_kernel")


@pytest.fixture(autouse=True)
def _table_restored() -> Iterator[None]:
    yield
    _tuning.rows.cache_clear()


def test_table_is_in_the_form_that_is_written() -> None:
    assert tuple(COMMITTED) == _tuning.FAMILIES
    assert tune.render_table(COMMITTED) == _tuning.TABLE.read_text(encoding="utf-8")
    for family, own in COMMITTED.items():
        assert own["source"]
        for name, row in own["rows"].items():
            default = _tuning.parameters(*name.split("/"))
            assert (set(row) == set(default) and row != default) or family == _tuning.DEFAULT, name
            assert all(value > 0 and value & (value - 1) == 0 for value in row.values()), name


def test_every_sweep_has_a_default_row() -> None:
    for sweep in SWEEPS:
        assert set(sweep.choices) == set(COMMITTED["default"]["rows"][sweep.row]), sweep.row
        assert COMMITTED["default"]["rows"][sweep.row] in sweep.candidates(), sweep.row


def test_committed_rows_of_a_gpu_do_not_spill() -> None:
    """Default ones are compiled for all GPUs by tests/kernels/test_compile.py."""
    sweeps = {sweep.row: sweep for sweep in SWEEPS}
    for family in ("sm_80", "sm_90"):
        for name, row in COMMITTED[family]["rows"].items():
            assert objection(sweeps[name], row, TARGETS[family]) == "", (family, name)


def test_nearest_row_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: {"BLOCK": number} for number, name in enumerate(("kernel", "kernel/wide", "other"))}
    table = {"default": own, "sm_90": {"kernel": {"BLOCK": 10}}, "sm_80": {"kernel/wide": {"BLOCK": 11}}}
    monkeypatch.setattr(_tuning, "rows", lambda: table)
    for arguments, expected in (
        (("kernel",), 0), (("kernel", "wide"), 1), (("kernel", "unknown"), 0), (("other", "wide"), 2),
        (("kernel", "wide", "sm_90"), 10), (("other", "", "sm_90"), 2),
        (("kernel", "wide", "sm_80"), 11), (("kernel", "", "sm_80"), 0),
    ):  # fmt: skip
        assert _tuning.parameters(*arguments)["BLOCK"] == expected, arguments
    with pytest.raises(KeyError, match="no row for 'missing'"):
        _tuning.parameters("missing")


def test_family_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = _tuning.family_of.__wrapped__
    assert ask(torch.device("cpu")) == "default"
    device = torch.device("cuda", 0)
    for capability, expected in (((8, 0), "sm_80"), ((9, 0), "sm_90"), ((8, 9), "default"), ((12, 0), "default")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert ask(device) == expected
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert ask(device) == "gfx942"


def test_row_reaches_the_kernels() -> None:
    before = [form.label for form in specialisations()]
    row = {"BLOCK_R": 16, "BLOCK_S": 64, "num_warps": 2}
    with trying("opacity_forward_kernel", row, ("default",)):
        changed = [form for form in specialisations() if form.label not in before]
        assert [form.kernel.__name__ for form in changed] == ["opacity_forward_kernel"] * 2
        assert all(form.constexprs["BLOCK_S"] == 64 and form.num_warps == 2 for form in changed)
    assert [form.label for form in specialisations()] == before
    for sweep in SWEEPS:
        present = COMMITTED["default"]["rows"][sweep.row]
        assert not forms_with(sweep, present, "cuda"), "an unchanged row changes nothing"
        other = next(row for row in sweep.candidates() if row != present)
        names = {form.kernel.__name__ for form in forms_with(sweep, other, "cuda")}
        assert names == ({sweep.kernel} if sweep.package else set())


class Race:
    """A machine whose costs are given by the number of rays in a tile."""

    def __init__(self, costs: dict[int, float]) -> None:
        self.costs, self.ran = costs, 0

    def block(self) -> int:
        return int(_tuning.parameters(OPACITY.kernel, "", "sm_90")["BLOCK_R"])

    def run(self) -> list[torch.Tensor]:
        self.ran += 1
        if self.block() == 4:
            raise RuntimeError("out of resource\nmore")
        return [torch.full((3,), 1.1 if self.block() == 32 else 1.0)]

    def clock(self, run: object, kernel: str) -> float:
        assert kernel == OPACITY.kernel
        return self.costs[self.block()]

    def winner(self) -> Row | None:
        machine = Machine("sm_90", TARGETS["sm_90"], "a test", "cpu", self.clock, False)
        choices = {"BLOCK_R": tuple(self.costs), "BLOCK_S": (32,), "num_warps": (4,)}
        return tune.sweep_one(OPACITY._replace(package="", choices=choices), self.run, machine, _Inline())


class _Inline:
    """A pool that does it at once."""

    def submit(self, function: object, sweep: Sweep, row: Row, target: object) -> _Inline:
        return self

    def result(self) -> str:
        return ""


@pytest.mark.parametrize(("cost", "wins"), [(0.9, True), (0.98, False), (1.5, False)])
def test_a_row_must_be_clearly_faster(cost: float, wins: bool) -> None:
    found = Race({8: 1.0, 16: cost}).winner()
    assert found == ({"BLOCK_R": 16, "BLOCK_S": 32, "num_warps": 4} if wins else None)


def test_rows_that_fail_or_change_the_result_are_rejected(capsys: pytest.CaptureFixture) -> None:
    assert Race({8: 1.0, 4: 0.1, 32: 0.1}).winner() is None
    printed = capsys.readouterr().out
    assert "'BLOCK_R': 4, 'BLOCK_S': 32, 'num_warps': 4}  rejected: does not run: out of resource\n" in printed
    assert "'BLOCK_R': 32, 'BLOCK_S': 32, 'num_warps': 4}  rejected: changes the result\n" in printed


def test_no_sweep_begins_after_the_deadline(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    machine = Machine("sm_90", TARGETS["sm_90"], "a test", "cpu", lambda run, kernel: 1.0, True)
    out = tmp_path / "table.json"
    assert tune.tune(machine, [OPACITY], out, time.monotonic() - 1, None) == 0
    assert not out.exists() and "no time left for opacity_forward_kernel" in capsys.readouterr().out


def dry_run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.tune", "--dry-run", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_dry_run_sweeps_compiles_and_writes(tmp_path: Path) -> None:
    """Larger tiles need fewer programs, which a dry run takes for faster; one of these two spills."""
    out = tmp_path / "table.json"
    before = _tuning.TABLE.read_bytes()
    done = dry_run("--only", "sdf_field_scatter_kernel", "opacity_backward_kernel", "--out", str(out))
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["sm_90"]["rows"]["sdf_field_scatter_kernel"]["BLOCK_M"] == 64
    assert "dry run" in written["sm_90"]["source"]
    assert "opacity_backward_kernel" not in written["sm_90"]["rows"]
    assert "rejected: spills" in done.stdout and "2 of 2 rows swept" in done.stdout
    assert {k: v for k, v in written.items() if k != "sm_90"} == {k: v for k, v in COMMITTED.items() if k != "sm_90"}
    assert _tuning.TABLE.read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_bad_calls_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert tune.main([]) == 2
    assert capsys.readouterr().err == "benchmarks.tune: no CUDA device; --dry-run goes through the sweep without one\n"
    for arguments in (["--seconds", "0"], ["--only", "nothing"], ["--out", "no/such/folder/table.json"]):
        with pytest.raises(SystemExit) as stop:
            tune.main(arguments)
        assert stop.value.code == 2
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        tune.main(["--dry-run"])


class _Event:
    """A moment of a fake GPU, on which every launch takes 2 ms."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return 2.0


def test_only_the_kernel_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launches happen, interpreted where there is no GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    volume, points = torch.rand(1, 4, 3, 3, 3, device=device), torch.rand(1, 5, 3, device=device).requires_grad_()
    results = []

    def run() -> list[torch.Tensor]:
        values = [volume_sample(volume, points, backend="triton") for _ in range(2)]
        results.append(torch.autograd.grad(values[0].sum(), points)[0])
        return results

    assert gpu_milliseconds(run, "volume_sample_forward_kernel") == 4.0
    assert gpu_milliseconds(run, "volume_sample_backward_kernel") == 2.0
    assert gpu_milliseconds(run, "render_rays") == 2.0
    expected = torch.autograd.grad(volume_sample(volume, points, backend="torch").sum(), points)[0]
    assert all(torch.allclose(found, expected, atol=1e-5) for found in results) and len(results) == 3
