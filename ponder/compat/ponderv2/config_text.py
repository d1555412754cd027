"""A config as Python text that reads back to the same values."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from typing import Any

from ponder.train.config import ConfigError

WIDTH = 110
INDENT = "    "


def config_text(values: Mapping[str, Any]) -> str:
    """One assignment per key.

    Raises:
        ConfigError: a key that is no Python name, or a value that a config file cannot write.
    """
    lines = []
    for key, value in values.items():
        if not _is_name(key) or key.startswith("__") or key == "_base_":
            raise ConfigError(f"key {key!r} cannot stand in a config file")
        lines.append(f"{key} = {_text(value, '', str(key), len(key) + 3)}\n")
    return "".join(lines)


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)


def _text(value: Any, indent: str, place: str, before: int) -> str:
    """The value as an expression: on one line if it fits behind `before` characters, else one item per line."""
    if isinstance(value, dict | list | tuple | set):
        opening, items, closing = _parts(value, indent + INDENT, place)
        short = opening + ", ".join(items) + ("," if isinstance(value, tuple) and len(items) == 1 else "") + closing
        if not items or (len(short) + len(indent) + before <= WIDTH and "\n" not in short):
            return short
        return opening + "\n" + "".join(f"{indent}{INDENT}{item},\n" for item in items) + indent + closing
    if isinstance(value, str):
        # A literal "{{" could be taken for one of the variables that are filled in before the file is read.
        return repr(value).replace("{{", "{\\x7b")
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float | range):
        return repr(value)
    raise ConfigError(f"{place}: a value of type {type(value).__name__} cannot stand in a config file")


def _parts(value: Any, indent: str, place: str) -> tuple[str, list[str], str]:
    if isinstance(value, dict):
        named = all(_is_name(key) for key in value)
        items = []
        for name, item in value.items():
            key = f"{name}=" if named else f"{_text(name, indent, place, 0)}: "
            items.append(key + _text(item, indent, f"{place}.{name}", len(key)))
        return ("dict(", items, ")") if named else ("{", items, "}")
    items = [_text(item, indent, place, 0) for item in value]
    if isinstance(value, set):
        return ("{", sorted(items), "}") if items else ("set(", [], ")")
    return ("[", items, "]") if isinstance(value, list) else ("(", items, ")")
