"""Bounds on what a config file may ask for, so that reading one neither hangs nor fills the memory."""

from __future__ import annotations

import ast
import re
from typing import Any

# The largest of PonderV2's own configs holds 1,300 values, 10 levels deep, and takes 11,000 units of work.
MAX_ITEMS = 20_000
MAX_DEPTH = 60
MAX_TEXT = 20_000
MAX_BITS = 4096
MAX_WORK = 200_000
MAX_PADDING = 1000
# Characters of text that weigh as much as one item.
TEXT_PER_ITEM = 16


class Budget:
    """Work that the evaluation of one file may still do.

    The methods raise ValueError, which the evaluator completes with file and line.
    """

    def __init__(self) -> None:
        self.left = MAX_WORK

    def step(self, units: int = 1) -> None:
        """Take units of work."""
        self.left -= units
        if self.left < 0:
            raise ValueError("evaluating the config takes too long")

    def spend(self, *values: Any) -> None:
        """Take the work of visiting everything inside the values, each of which must be of a reasonable size."""
        for value in values:
            self.step(count(value))


def count(value: Any) -> int:
    """Number of items inside a value, at every depth, shared ones counted where they are used.

    Raises:
        ValueError: more than MAX_ITEMS, deeper than MAX_DEPTH, or a text or integer that is too long.
    """
    total, waiting = 0, [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        total += 1
        if isinstance(item, str):
            if len(item) > MAX_TEXT:
                raise ValueError(f"a text of {len(item)} characters is too long, at most {MAX_TEXT} are allowed")
            total += len(item) // TEXT_PER_ITEM
        elif isinstance(item, int) and item.bit_length() > MAX_BITS:
            raise ValueError(f"an integer of {item.bit_length()} bits is too large, at most {MAX_BITS} are allowed")
        elif isinstance(item, dict | list | tuple | set):
            inside = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            waiting += [(part, depth + 1) for part in inside]
        if total + len(waiting) > MAX_ITEMS:
            raise ValueError(f"a value is too large: it holds more than {MAX_ITEMS} items")
        if depth > MAX_DEPTH:
            raise ValueError(f"a value is nested more than {MAX_DEPTH} levels deep")
    return total


def check_operation(op: ast.operator, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large, before it is carried out.

    Raises:
        ValueError: it would be; or it formats text, which has no bound that is easy to tell.
    """
    if isinstance(op, ast.Mod) and isinstance(left, str):
        raise ValueError("formatting text with % is not allowed in a config, use an f-string")
    if isinstance(op, ast.Mult):
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, list | tuple | str) and isinstance(times, int):
                limit = MAX_TEXT if isinstance(sequence, str) else MAX_ITEMS
                if len(sequence) * times > limit:
                    raise ValueError(f"{times} repetitions of {len(sequence)} items are too many")
    if isinstance(left, int) and isinstance(right, int):
        bits = _result_bits(op, left, right)
        if bits > MAX_BITS:
            raise ValueError(f"an integer of about {bits} bits is too large, at most {MAX_BITS} are allowed")


def _result_bits(op: ast.operator, left: int, right: int) -> int:
    if isinstance(op, ast.Pow):
        return abs(left).bit_length() * max(right, 0) if abs(left) > 1 else 0
    if isinstance(op, ast.LShift):
        return left.bit_length() + max(right, 0) if left else 0
    return 0


def check_spec(spec: str) -> None:
    """Refuse a format specification that pads a text to an unreasonable length.

    Raises:
        ValueError: a width or precision above MAX_PADDING.
    """
    if any(len(digits) > 4 or int(digits) > MAX_PADDING for digits in re.findall(r"[0-9]+", spec)):
        raise ValueError(f"format {spec[:40]!r} is too wide, at most {MAX_PADDING} are allowed")


def limited_range(*args: int) -> range:
    """`range`, of a length that a config can use.

    Raises:
        ValueError: it has more than MAX_ITEMS numbers.
    """
    numbers = range(*args)
    try:
        length = len(numbers)
    except OverflowError:
        length = MAX_ITEMS + 1
    if length > MAX_ITEMS:
        raise ValueError(f"{numbers} is too long, at most {MAX_ITEMS} numbers are allowed")
    return numbers
