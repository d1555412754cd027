"""From configuration dictionaries to objects, by name; what does not fit is answered with what would."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def nearest(name: object, known: Iterable[object]) -> str:
    """ "; did you mean ...?" for the nearest known name, or nothing if none is near."""
    near = _match(str(name), [other for other in known if isinstance(other, str)])
    return f"; did you mean {near!r}?" if near else ""


def suggest(name: object, known: Iterable[str]) -> str:
    """ "; did you mean ...?" for the nearest known name, also when only its last part was given; or the choices."""
    names = list(known)
    tails = {key.rpartition(".")[2]: key for key in names}
    near = _match(str(name), names) or tails.get(_match(str(name).rpartition(".")[2], tails) or "")
    return f"; did you mean {near!r}?" if near else f"; known: {', '.join(names)}"


def _match(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def mapping(cfg: Any, part: str) -> dict[str, Any]:
    """A copy of a dictionary.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f"{part}: expected a dictionary, got {type(cfg).__name__}")
    return dict(cfg)


def choose(cfg: Any, choices: Mapping[str, T], part: str) -> tuple[str, T, dict[str, Any]]:
    """The name in `cfg["type"]`, what it stands for, and the other keys.

    Raises:
        TypeError: `cfg` is no dictionary.
        ValueError: it has no type, or an unknown one.
    """
    rest = mapping(cfg, part)
    if "type" not in rest:
        raise ValueError(f"{part}: lacks a type; known: {', '.join(choices)}")
    name = rest.pop("type")
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{part}: type is {name!r}{suggest(name, choices)}")
    return name, choices[name], rest


def check_keys(arguments: Iterable[str], known: Iterable[str], part: str) -> None:
    """Require that all keys are known.

    Raises:
        ValueError: one is not.
    """
    names = list(known)
    for key in arguments:
        if key not in names:
            raise ValueError(f"{part}: unknown key {key!r}{suggest(key, names)}")


def construct(
    make: Callable[..., T],
    arguments: Mapping[str, Any],
    part: str,
    own: Mapping[str, Any] | None = None,
    hidden: Iterable[str] = (),
) -> T:
    """`make` of configured arguments and of our own, which no configuration names.

    Args:
        make: a class or function.
        arguments: what the configuration says.
        part: which part of the configuration this is, for messages.
        own: arguments that come from elsewhere.
        hidden: further arguments of `make` that no configuration names.

    Raises:
        ValueError: an argument that `make` does not have, one it lacks, or one whose value it refuses.
    """
    own = own or {}
    skipped = {*own, *hidden}
    parameters = {name: p for name, p in inspect.signature(make).parameters.items() if name not in skipped}
    check_keys(arguments, parameters, part)
    missing = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty and name not in arguments]
    if missing:
        raise ValueError(f"{part}: lacks {', '.join(missing)}")
    return make(**arguments, **own)
