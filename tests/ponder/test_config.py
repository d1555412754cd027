"""Configuration: overrides, suggestions, round trips."""

from __future__ import annotations

import json

import pytest

from ponder.recipes import RECIPES, get_recipe
from ponder.train.config import (
    ConfigError,
    TrainConfig,
    all_keys,
    apply_overrides,
    differences,
    from_dict,
    get_value,
    to_dict,
    validate,
)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_survive_json(name: str) -> None:
    config = validate(get_recipe(name))
    assert config.recipe == name
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_overrides_reach_every_level_and_keep_types() -> None:
    texts = ["steps=7", "optim.lr=1e-3", "model.renderer.hidden=12", "model.sparse_layers=[1,2]", "data.path=a=b"]
    config = apply_overrides(TrainConfig(), texts)
    assert (config.steps, config.optim.lr, config.model.renderer.hidden) == (7, 1e-3, 12)
    assert config.model.sparse_layers == (1, 2)
    assert config.data.path == "a=b"
    assert apply_overrides(TrainConfig(), ["optim.lr=1"]).optim.lr == 1.0
    assert sorted(differences(TrainConfig(), config))[0] == "data.path:  -> a=b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz=3", "unknown key 'stepz'; did you mean 'steps'"),
        ("optim.l=3", "did you mean 'optim.lr'"),
        ("lr=3", "did you mean 'optim.lr'"),
        ("qqqqqqqqqq=3", "unknown key 'qqqqqqqqqq'; known: recipe, "),
        ("steps", "expected key=value"),
        ("steps=abc", "steps: expected int, got 'abc'"),
        ("steps=1.5", "steps: expected int, got 1.5"),
        ("steps=true", "steps: expected int, got True"),
        ("model.sparse_layers=3", "model.sparse_layers: expected a list of whole numbers, got 3"),
        ("steps=0", "steps: expected a value above 0, got 0"),
        ("optim.lr=NaN", "optim.lr: expected a value above 0, got nan"),
        ("loss.sdf=-1", "loss.sdf: expected 0 or more, got -1"),
        ("optim.warmup=1", "optim.warmup: expected a fraction"),
        ("data.source=scan", "data.source: expected one of rooms, rgbd, got 'scan'"),
        ("optim.name=adam", "optim.name: expected one of adamw, sgd, got 'adam'"),
    ],
)
def test_bad_overrides(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        apply_overrides(TrainConfig(), [text])


def test_unknown_recipe_suggests_the_near_name() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'dmeo'; did you mean 'demo'"):
        get_recipe("dmeo")


def test_every_key_can_be_read() -> None:
    keys = all_keys(TrainConfig())
    assert len(keys) == len(set(keys)) > 40
    for key in keys:
        get_value(TrainConfig(), key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("steps"), "missing key 'steps'"),
        (lambda d: d["optim"].update(lrr=1), "unknown key 'optim.lrr'"),
        (lambda d: d.update(steps="x"), "steps: expected int, got 'x'"),
    ],
)
def test_from_dict_rejects(change, message: str) -> None:
    data = to_dict(TrainConfig())
    change(data)
    with pytest.raises(ConfigError, match=message):
        from_dict(data)
