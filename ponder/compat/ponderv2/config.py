"""PonderV2's Python config files, read without running them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ponder.compat.ponderv2.config_file import read_files
from ponder.compat.ponderv2.config_text import config_text
from ponder.compat.ponderv2.options import apply_options
from ponder.train.config import ConfigError
from ponder.train.files import write_text

NOTHING: Mapping[str, Any] = MappingProxyType({})
# Names that PonderV2's Config keeps for itself.
RESERVED = ("filename", "text", "pretty_text")


class ConfigDict(dict[Any, Any]):
    """A dictionary whose keys are attributes too, at every depth; dictionaries put into it are copied.

    >>> config = ConfigDict(model=dict(layers=[dict(width=3)]))
    >>> config.model.layers[0].width
    3

    A key that is also the name of a dict's method ("keys", "items") is reached as `config["keys"]` only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.update(*args, **kwargs)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, _nested(value))

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set the given items, as dict.update."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, set to `default` where it is absent."""
        if key not in self:
            self[key] = default
        return self[key]

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"the config has no {name!r}; it has {', '.join(map(str, self)) or 'nothing'}")
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            raise AttributeError(f"{name!r} is the name of a method or property; set it as config[{name!r}]")
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"the config has no {name!r}")
        del self[name]

    def copy(self) -> ConfigDict:
        """A deep copy of all dictionaries, lists and tuples."""
        return type(self)(self)

    def to_dict(self) -> dict[Any, Any]:
        """The same content in plain dictionaries."""
        return _plain(self)


class Config(ConfigDict):
    """A whole config: a `ConfigDict` that knows its file.

    Attributes:
        filename: the file it was read from, absolute, or None.
        helper_names: names that the file itself reads, such as `num_gpu`, whether or not the trainer reads them.
        pretty_text: the config as Python text, which `load_config` reads back.
    """

    def __init__(
        self, values: Mapping[str, Any] = NOTHING, filename: str | None = None, helpers: Iterable[str] = ()
    ) -> None:
        for key in RESERVED:
            if key in values:
                raise ConfigError(f"{filename or 'config'}: the name {key!r} is reserved")
        super().__init__(values)
        self.__dict__.update(_filename=filename, _helpers=frozenset(helpers))

    @property
    def filename(self) -> str | None:
        """The file it was read from."""
        return self.__dict__.get("_filename")

    @property
    def helper_names(self) -> frozenset[str]:
        """Names that the file itself reads."""
        return self.__dict__.get("_helpers", frozenset())

    @property
    def pretty_text(self) -> str:
        """Python text that `load_config` reads back.

        Raises:
            ConfigError: a value that a config file cannot write.
        """
        return config_text(self)

    def copy(self) -> Config:
        """A deep copy of all dictionaries, lists and tuples."""
        return Config(self, self.filename, self.helper_names)

    def dump(self, path: str | PathLike[str]) -> None:
        """Write `pretty_text` to a file, atomically."""
        write_text(Path(path), self.pretty_text)


def _nested(value: Any) -> Any:
    """A copy with every dictionary a ConfigDict."""
    if isinstance(value, dict):
        return ConfigDict(value)
    if type(value) in (list, tuple):
        return type(value)(_nested(item) for item in value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return value


def load_config(path: str | PathLike[str], options: Sequence[str] = ()) -> Config:
    """Read a PonderV2 config file, its `_base_` files and overrides.

    The file is not run: assignments of values, arithmetic, comprehensions, f-strings and calls of a few functions
    (`dict`, `range`, `len`, ...) are evaluated, all else is refused.

    Args:
        path: a Python file. Its `_base_` (one path or a list, relative to the file) is read first; dictionaries merge
            key by key, `_delete_=True` in one replaces the base's instead.
        options: "key=value" overrides, applied in order. Dotted keys reach into dictionaries and, by number, into
            lists: "data.train.datasets.0.loop=1". Values are numbers, True, False, None, "[a,b]" or "a,b" (lists),
            "(a,b)" (tuples), else text.

    Returns:
        the config. A key that an option adds is reported by a ConfigWarning.

    Raises:
        ConfigError: a file that is missing, wrong, or holds what is not allowed (file and line are named), or an
            option that cannot be applied.
        TypeError: options are one text instead of a list.

    Reference:
        PonderV2, ponder/utils/config.py (after mmcv's Config). Departures: an option's "None" is None, its blanks are
        kept, an item of a list may be a plain value, and `_delete_` never stays in the result.
    """
    if isinstance(options, str):
        raise TypeError(f"options: expected a list of key=value, got the text {options!r}")
    file = Path(path).expanduser().absolute()
    values, helpers = read_files(file)
    apply_options(values, options)
    return Config(values, str(file), helpers)
