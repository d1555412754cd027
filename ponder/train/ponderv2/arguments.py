"""Checked reading of one section of a config, such as `optimizer` or `scheduler`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ponder.registry import suggest
from ponder.train.config import ConfigError


class Arguments:
    """The arguments of the thing that a section's `type` names."""

    def __init__(self, section: Any, where: str, types: Mapping[str, Sequence[str]]) -> None:
        """Check the names.

        Args:
            section: a dictionary with `type`.
            where: its key, for messages.
            types: the argument names of each type that there is.

        Raises:
            ConfigError: not a dictionary, or an unknown type or argument.
        """
        if not isinstance(section, Mapping):
            raise ConfigError(f"{where}: expected a dict with a type, got {section!r}")
        kind = section.get("type")
        if not isinstance(kind, str) or kind not in types:
            raise ConfigError(f"{where}.type: expected one of {', '.join(types)}, got {kind!r}")
        self.type, self.where = kind, where
        self._values = {name: value for name, value in section.items() if name != "type"}
        for name in self._values:
            if name not in types[kind]:
                raise ConfigError(f"{where}: {kind} has no argument {name!r}{suggest(str(name), types[kind])}")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def given(self, name: str) -> Any:
        """The value as it stands in the config.

        Raises:
            ConfigError: it is not there.
        """
        if name not in self._values:
            raise ConfigError(f"{self.where}: {self.type} needs {name}")
        return self._values[name]

    def number(
        self, name: str, default: float | None = None, least: float = -math.inf, most: float = math.inf
    ) -> float:
        """A finite number within bounds, as it stands in the config.

        Raises:
            ConfigError: absent without a default, or something else.
        """
        value = self._values.get(name, default) if default is not None else self.given(name)
        return check_number(value, f"{self.where}.{name}", least, most)

    def numbers(self, name: str, default: Sequence[float] | None, least: float, most: float) -> list[float]:
        """A list of such numbers."""
        value = self._values.get(name, default) if default is not None else self.given(name)
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{self.where}.{name}: expected a list of numbers, got {value!r}")
        return [check_number(item, f"{self.where}.{name}", least, most) for item in value]

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}.{name}: expected True or False, got {value!r}")
        return value

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """One of some words."""
        value = self._values.get(name, default)
        if value not in choices:
            raise ConfigError(f"{self.where}.{name}: expected one of {', '.join(choices)}, got {value!r}")
        return str(value)


def check_number(value: Any, key: str, least: float = -math.inf, most: float = math.inf) -> float:
    """Return a finite number from `least` to `most`.

    Raises:
        ConfigError: it is something else; the key is named.
    """
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or not least <= value <= most:
        bounds = f" from {least:g} to {most:g}" if math.isfinite(most) else f" of at least {least:g}"
        raise ConfigError(f"{key}: expected a number{bounds if math.isfinite(least) else ''}, got {value!r}")
    return value
