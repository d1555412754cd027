"""`key=value` overrides of a config, with the rules of mmcv's DictAction and Config.merge_from_dict."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ponder.compat.ponderv2.config_file import DELETE, ConfigWarning
from ponder.registry import nearest
from ponder.train.config import ConfigError
from ponder.train.ponderv2.keys import KNOWN_KEYS

BRACKETS = {"(": ")", "[": "]"}


def apply_options(values: dict[str, Any], options: Sequence[str]) -> None:
    """Set each option in nested plain dictionaries and lists, in place; an option that adds a key is reported.

    Raises:
        ConfigError: no "=", an empty key or one that is no name, brackets that do not match, an index outside the list,
            or a key inside something that has none.
    """
    parsed = [_split(text) for text in options]
    # Replacing a dictionary comes before the values that are put into it.
    for key, value in sorted(parsed, key=lambda pair: not pair[0].endswith("." + DELETE)):
        _set(values, key, value)


def _split(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"option {text!r}: expected key=value")
    return key.strip(), parse_value(value)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    container: Any = values
    *parents, last = key.split(".")
    if not key.partition(".")[0].isidentifier():
        raise ConfigError(f"option {key!r}: {key.partition('.')[0]!r} is not the name of a setting")
    new = False
    for depth, part in enumerate(parents):
        place = _place(container, part, key, depth)
        if isinstance(container, dict) and place not in container:
            if not new:
                _report_new(container, part, key, depth)
            new = True
            container[place] = {}
        container = container[place]
    place = _place(container, last, key, len(parents))
    if last == DELETE and isinstance(container, dict):
        if value:
            container.clear()
        return
    if isinstance(container, dict) and place not in container and not new:
        _report_new(container, last, key, len(parents))
    container[place] = value


def _place(container: Any, part: str, key: str, depth: int) -> str | int:
    """The dictionary key or list index that one part of a dotted key means."""
    if isinstance(container, dict):
        return part
    owner = ".".join(key.split(".")[:depth])
    if not isinstance(container, list):
        raise ConfigError(f"option {key!r}: {owner} is {container!r}, which holds no {part!r}; set it as a whole")
    if not part.isdecimal() or int(part) >= len(container):
        raise ConfigError(f"option {key!r}: {owner} is a list of {len(container)}, got index {part!r}")
    return int(part)


def _report_new(container: dict[str, Any], part: str, key: str, depth: int) -> None:
    known = [*container, *(KNOWN_KEYS if depth == 0 else ())]
    if part in known or not container:  # an empty dictionary takes anything
        return
    owner = ".".join(key.split(".")[:depth]) or "the config"
    hint = nearest(part, known)
    warnings.warn(f"option {key!r}: {owner} has no {part!r}, it is added{hint}", ConfigWarning, stacklevel=5)


def parse_value(text: str) -> Any:
    """The value that an option's text stands for.

    Args:
        text: a number, True, False, None, "[a,b]" or "a,b" (list), "(a,b)" (tuple), nested, or any other text.
            Quotes around it are dropped.

    Raises:
        ConfigError: brackets do not match.

    >>> parse_value("[(1, 2.5), None, room]")
    [(1, 2.5), None, 'room']
    """
    text = text.strip().strip("'\"").strip()
    parts = _commas(text)
    if text[:1] in BRACKETS and _closing(text) == len(text) - 1:
        items = [parse_value(part) for part in _commas(text[1:-1])]
        return tuple(items) if text[0] == "(" else items
    if len(parts) > 1 or text.endswith(","):
        return [parse_value(part) for part in parts]
    return _scalar(text)


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), None if text == "None" else text)


def _commas(text: str) -> list[str]:
    """The text split at the commas outside brackets; a comma at the end adds nothing."""
    parts, begin, open_brackets = [], 0, []
    for position, char in enumerate(text):
        if char in BRACKETS:
            open_brackets.append(BRACKETS[char])
        elif char in BRACKETS.values():
            if not open_brackets or open_brackets.pop() != char:
                raise ConfigError(f"option value {text!r}: brackets do not match")
        elif char == "," and not open_brackets:
            parts.append(text[begin:position])
            begin = position + 1
    if open_brackets:
        raise ConfigError(f"option value {text!r}: brackets do not match")
    return [*parts, text[begin:]] if text[begin:].strip() else parts


def _closing(text: str) -> int:
    """Position of the bracket that closes the one at the beginning."""
    depth = 0
    for position, char in enumerate(text):
        depth += (char in BRACKETS) - (char in BRACKETS.values())
        if depth == 0:
            return position
    return -1
