"""A config file with its bases: text to a plain dictionary."""

from __future__ import annotations

import ast
import copy
import os
import re
import warnings
from pathlib import Path
from typing import Any

from ponder.compat.ponderv2.evaluator import Evaluator
from ponder.train.config import ConfigError

BASE = "_base_"
DELETE = "_delete_"
DEPRECATION = "_deprecation_"
MAX_BYTES = 1_000_000
MAX_CHAIN = 30

Values = dict[str, Any]


class ConfigWarning(UserWarning):
    """Something in a config that is allowed but likely a mistake."""


def read_files(path: Path, chain: tuple[Path, ...] = ()) -> tuple[Values, frozenset[str]]:
    """Read a file and, first, those it builds on.

    Args:
        path: absolute path of a Python config file.
        chain: the files that led here, outermost first.

    Returns:
        the merged values, and the names that the files themselves read.

    Raises:
        ConfigError: see `ponder.compat.ponderv2.config.load_config`.
    """
    _check_place(path, chain)
    bases = _Bases(path, chain)
    tree = _parse(path)
    evaluator = Evaluator(path, lambda dotted: bases.value(dotted, tree, evaluator))
    try:
        evaluator.run(tree)
    except RecursionError:
        raise ConfigError(f"{path}: the config is nested too deeply") from None
    values = {name: value for name, value in evaluator.names.items() if not name.startswith("__")}
    if values.get("custom_imports"):
        raise ConfigError(f"{path}: custom_imports is not supported, since a config runs no code")
    _warn_deprecated(path, values.pop(DEPRECATION, None))
    if BASE in values:
        base = bases.load(values.pop(BASE))
        values = merge(values, base, str(path))
    return _without_markers(values), frozenset(evaluator.read) | bases.helpers


class _Bases:
    """The merged bases of one file, read when first needed."""

    def __init__(self, path: Path, chain: tuple[Path, ...]) -> None:
        self.path, self.chain = path, (*chain, path)
        self.helpers: frozenset[str] = frozenset()
        self._values: Values | None = None

    def load(self, names: Any) -> Values:
        """The bases' values; `names` is what `_base_` holds."""
        if self._values is None:
            self._values = {}
            for name in names if isinstance(names, list | tuple) else [names]:
                if not isinstance(name, str):
                    raise ConfigError(f"{self.path}: {BASE} expects paths, got {name!r}")
                place = Path(os.path.normpath(self.path.parent / Path(name).expanduser()))
                values, helpers = read_files(place, self.chain)
                twice = sorted(values.keys() & self._values.keys())
                if twice:
                    raise ConfigError(f"{self.path}: {', '.join(twice)} stands in more than one of the {BASE} files")
                self._values |= values
                self.helpers |= helpers
        return self._values

    def value(self, dotted: str, tree: ast.Module, evaluator: Evaluator) -> Any:
        """What `{{ _base_.a.b }}` stands for, also above the line that names the bases."""
        value: Any = self.load(self._named(tree, evaluator))
        self.helpers |= {dotted.split(".")[0]}
        for part in dotted.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ValueError(f"the bases have no {dotted!r}")
            value = value[part]
        return copy.deepcopy(value)

    def _named(self, tree: ast.Module, evaluator: Evaluator) -> Any:
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == BASE:
                return evaluator.evaluate(statement.value)
        raise ValueError(f"the file has no {BASE}")


def _check_place(path: Path, chain: tuple[Path, ...]) -> None:
    origin = f", a base of {chain[-1]}" if chain else ""
    if path in chain or len(chain) > MAX_CHAIN:
        raise ConfigError(f"the config builds on itself: {' -> '.join(map(str, (*chain, path)))}")
    if path.suffix != ".py":
        raise ConfigError(f"config {path}{origin}: expected a .py file")
    if not path.is_file():
        raise ConfigError(f"config {path}{origin} does not exist")


def _parse(path: Path) -> ast.Module:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"config {path} is too large, at most {MAX_BYTES} bytes are allowed")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(_with_predefined(text, path))
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"config {path} cannot be read as Python: {error or 'it is nested too deeply'}") from None


def _with_predefined(text: str, path: Path) -> str:
    """The text with `{{ fileDirname }}` and the other variables of the file's own name filled in."""
    known = {
        "fileDirname": str(path.parent),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }
    for name, value in known.items():
        shown = value.replace("\\", "/")
        text = re.sub(r"\{\{\s*" + name + r"\s*\}\}", lambda _, shown=shown: shown, text)  # type: ignore[misc]
    return text


def _warn_deprecated(path: Path, note: Any) -> None:
    if not note:
        return
    fields = note if isinstance(note, dict) else {}
    parts = [f"config {path} is deprecated"]
    parts += [f"use {fields['expected']}"] if "expected" in fields else []
    parts += [f"see {fields['reference']}"] if "reference" in fields else []
    warnings.warn("; ".join(parts), ConfigWarning, stacklevel=2)


def merge(child: Values, base: Values, source: str, prefix: str = "") -> Values:
    """A base's values with a child's on top, dictionaries key by key.

    Args:
        child: wins; a dictionary in it with `_delete_=True` replaces the base's as a whole.
        base: left as it is.
        source: named in messages.
        prefix: dotted key of the two, for messages.

    Raises:
        ConfigError: the child has a dictionary where the base has something else, without `_delete_=True`.
    """
    result = dict(base)
    for key, value in child.items():
        if not isinstance(value, dict) or key not in base or value.get(DELETE, False):
            result[key] = value
        elif isinstance(base[key], dict):
            result[key] = merge(value, base[key], source, f"{prefix}{key}.")
        else:
            kind = type(base[key]).__name__
            raise ConfigError(
                f"{source}: {prefix}{key} is a dict but a {kind} in the base; add {DELETE}=True to it to replace that"
            )
    return result


def _without_markers(value: Any) -> Any:
    """A copy without `_delete_`, which has done its work."""
    if isinstance(value, dict):
        return {key: _without_markers(item) for key, item in value.items() if key != DELETE}
    if isinstance(value, list | tuple):
        return type(value)(_without_markers(item) for item in value)
    return value
