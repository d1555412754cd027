"""From configuration dicts to objects, with errors that say what was misspelt."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any


def suggestion(name: object, known: Iterable[str]) -> str:
    """' (did you mean ...?)' if a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def lookup(classes: Mapping[str, type], config: Any, where: str) -> type:
    """The class that `config["type"]` names.

    Raises:
        ValueError: no mapping, no type, or an unknown one.
    """
    if not isinstance(config, Mapping) or "type" not in config:
        raise ValueError(f"{where}: expected a dict with 'type', got {config!r}")
    name = config["type"]
    if name not in classes:
        raise ValueError(
            f"{where}.type: expected one of {', '.join(sorted(classes))}, got {name!r}{suggestion(name, classes)}"
        )
    return classes[name]


def construct(cls: type, arguments: Mapping[str, Any], where: str) -> Any:
    """Call the class with these arguments.

    Raises:
        ValueError: an argument that it does not take, a missing one, or one that it refuses.
    """
    known = inspect.signature(cls).parameters
    for key in arguments:
        if key not in known:
            raise ValueError(f"{where}.{key}: expected one of {', '.join(known)}{suggestion(key, known)}")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in arguments]
    if missing:
        raise ValueError(f"{where}: expected a value for {', '.join(missing)}")
    return cls(**arguments)
