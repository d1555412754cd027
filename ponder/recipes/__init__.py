"""Named experiments: each is a function that returns a configuration."""

from __future__ import annotations

from collections.abc import Callable

from ponder.recipes.demo import demo
from ponder.recipes.rgbd import rgbd
from ponder.registry import suggest
from ponder.train.config import ConfigError, TrainConfig

RECIPES: dict[str, Callable[[], TrainConfig]] = {"demo": demo, "rgbd": rgbd}


def get_recipe(name: str) -> TrainConfig:
    """The configuration of a recipe.

    Raises:
        ConfigError: unknown name; the nearest one is suggested.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}{suggest(name, list(RECIPES))}")
    return RECIPES[name]()


__all__ = ["RECIPES", "demo", "get_recipe", "rgbd"]
