"""Which frames of a recording are kept out of learning."""

from __future__ import annotations

from ponder.data.scene import DataError

# One view to test with and two to learn from: with fewer there is no parallax to learn a surface from.
MIN_FRAMES = 3


def split_by_order(count: int, holdout_every: int) -> tuple[list[int], list[int]]:
    """Split frames by their order alone, so that the split is the same in every run and on every machine.

    Frame i is held out if ``i % holdout_every == holdout_every // 2``. A recording too short for that rule to
    hold out any frame gives its middle frame, ``count // 2``.

    Args:
        count: number of frames.
        holdout_every: one frame in this many is held out, at least 2.

    Returns:
        (train, heldout): increasing positions, disjoint, together all of 0 .. count - 1; neither is empty.

    Raises:
        DataError: `holdout_every` below 2, or fewer than `MIN_FRAMES` frames.
    """
    if holdout_every < 2:
        raise DataError(f"holdout_every: expected at least 2, got {holdout_every}")
    if count < MIN_FRAMES:
        raise DataError(f"too few frames: expected at least {MIN_FRAMES} to split, got {count}")
    heldout = list(range(holdout_every // 2, count, holdout_every)) or [count // 2]
    kept_out = set(heldout)
    return [i for i in range(count) if i not in kept_out], heldout
