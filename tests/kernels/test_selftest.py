"""The self-test covers every operator, notices a wrong one, and says why it cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ponder_kernels
from ponder_kernels import _selftest_cases, selftest
from ponder_kernels._selftest_cases import Case

pytestmark = pytest.mark.unguarded


def test_every_operator_is_checked() -> None:
    functions = {n for n in ponder_kernels.__all__ if n.islower()}
    assert {case.operator for case in _selftest_cases.cases()} == functions


def test_table_and_exit_code() -> None:
    command = [sys.executable, "-m", "ponder_kernels.selftest", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks agree with float64" in done.stdout and "WRONG" not in done.stdout


@pytest.mark.parametrize("fault", ["value", "gradient", "second", "nan"])
def test_a_wrong_operator_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * 1.01

    def cube(x, backend):
        wrong = x.dtype == torch.float32
        if wrong and fault == "nan":
            return x**3 + float("nan")
        if wrong and fault == "gradient":
            return Wrong.apply(x) ** 3
        if wrong and fault == "second":
            return x**3 + 1e-3 * (x - x.detach()) ** 2
        return x**3 * (1.001 if wrong and fault == "value" else 1)

    case = Case("cube", "", cube, {"x": torch.linspace(1, 2, 7)}, ("x",))
    monkeypatch.setattr(selftest, "cases", lambda: [case])
    assert selftest.main(["--device", "cpu"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_missing_device_is_one_sentence(capsys) -> None:
    assert selftest.main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("selftest: cannot run on cuda")


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(SystemExit):
        selftest.main(["--backend", "jax"])
