"""What the machine was like in every round, and the rounds that count."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.stolen import QUIET

# Rounds in which threads took longer to hand work over than in nearly the fastest one, by this factor, do not count...
NEAR = 1.25
FASTEST = 0.1
# ...as long as a quarter of all is left. Of fewer rounds than these the fast ones cannot be told from lucky ones.
LEAST = 1 / 4
FEW = 10


@dataclass
class Conditions:
    """Of rounds, in their order. They say nothing of what was timed.

    Attributes:
        stolen: largest share of the processors that the host took away from a competitor, 0 to 1.
        handover: longest seconds of an operation that two threads share, measured before every turn; 0 on a GPU.
    """

    stolen: list[float] = field(default_factory=list)
    handover: list[float] = field(default_factory=list)

    def counted(self) -> list[int]:
        """Numbers of the rounds that count: the quiet ones, of many those with fast handovers, at least a quarter."""
        if not self.stolen:
            return []
        fast = NEAR * float(np.quantile(self.handover, FASTEST)) if len(self.handover) >= FEW else 0.0
        disturbed = [max(s / QUIET, h / fast if fast else 0.0) for s, h in zip(self.stolen, self.handover, strict=True)]
        best_first = sorted(range(len(disturbed)), key=lambda number: disturbed[number])
        count = max(sum(value <= 1 for value in disturbed), math.ceil(len(disturbed) * LEAST))
        return sorted(best_first[:count])

    def words(self) -> str:
        """How many rounds there were and how many count."""
        total, count = len(self.stolen), len(self.counted())
        if count == total:
            return f"{total} rounds"
        return f"{total} rounds, of which the {count} count in which the machine was disturbed least"

    def facts(self) -> dict[str, Any]:
        """As JSON has them."""
        return {"stolen": self.stolen, "handover": self.handover}
