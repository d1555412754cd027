"""`metrics.jsonl` and TensorBoard: one record per logged step, consistent after a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ponder.train.files import write_text


def finite(value: float) -> float | None:
    """JSON has no NaN: a number that is not finite becomes null."""
    return value if math.isfinite(value) else None


def drop_after(path: Path, step: int) -> None:
    """Keep only the records up to `step`: later ones, and a line cut short by a kill, belong to work that is redone."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


class Recorder:
    """Appends records to metrics.jsonl and to TensorBoard's event files.

    Args:
        folder: the run's folder.
        step: records after this step are dropped first.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        drop_after(self._path, step)
        self._stream = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Add one record, e.g. group "train" or "heldout"."""
        record: dict[str, Any] = {"step": step, "group": group}
        record |= {name: finite(value) for name, value in values.items()}
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both files."""
        self._stream.close()
        self._board.close()
