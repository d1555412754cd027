"""The list of deliberate faults stays applicable; trying them is a script (``python -m tests.kernels.mutations``)."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.kernels.mutations import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.operator}-{f.kind}".replace(" ", "-"))
def test_fault_applies_to_one_place(fault: Fault) -> None:
    text = (ROOT / fault.path).read_text(encoding="utf-8")
    assert text.count(fault.right) == 1
    assert fault.wrong != fault.right
    assert (ROOT / fault.tests[0].partition("::")[0]).exists()


def test_three_faults_an_operator() -> None:
    assert min(Counter(f.operator for f in FAULTS).values()) >= 3
