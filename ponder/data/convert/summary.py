"""What a conversion came to: convert.json, and ScanNet's list of frames never to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ponder.data.convert.runner import Outcome
from ponder.data.convert.units import CLOUD, FRAMES
from ponder.data.scene import DataError

SKIP_LIST = "skip.lst"


def summary_data(dataset: str, outcome: Outcome) -> dict[str, Any]:
    """Plain data of convert.json: per part what was converted by this run, before it, and left out by reason."""
    parts = {}
    for part in (CLOUD, FRAMES):
        if part in outcome.now or part in outcome.before:
            total = outcome.total(part)
            before = outcome.before[part].converted if part in outcome.before else 0
            skipped = sorted(total.skipped.items(), key=lambda item: -item[1].count)
            parts[part] = {
                "converted": total.converted - before,
                "converted_before": before,
                "skipped": [{"reason": reason, **vars(skips)} for reason, skips in skipped],
            }
    return {"dataset": dataset, "parts": parts}


def check_not_empty(outcome: Outcome) -> None:
    """Refuse an outcome without a single converted piece.

    Raises:
        DataError: names the most frequent reason.
    """
    totals = [outcome.total(part) for part in (CLOUD, FRAMES)]
    if any(total.converted for total in totals):
        return
    found = [(skips.count, reason, skips.examples[0]) for total in totals for reason, skips in total.skipped.items()]
    if not found:
        raise DataError("nothing could be converted: there was nothing to do")
    count, reason, example = max(found)
    raise DataError(f"nothing could be converted; the most frequent reason ({count} times): {reason}, {example}")


def merged_skip_list(folder: Path, outcome: Outcome) -> str | None:
    """The lines of skip.lst with the unusable frames added; None if there are none to add.

    Lines of others, such as those of PonderV2's own list, stay.
    """
    unusable = outcome.total(FRAMES).unusable
    if not unusable:
        return None
    try:
        old = (folder / SKIP_LIST).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        old = []
    lines = dict.fromkeys([line for line in old if line.strip()] + unusable)
    return "".join(f"{line}\n" for line in lines)
