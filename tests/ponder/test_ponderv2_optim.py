"""Optimisers and schedules of PonderV2's configs against torch's own schedulers, step for step."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from ponder.render.ponderv2 import Parity
from ponder.train.checkpoint import CheckpointError
from ponder.train.config import ConfigError
from ponder.train.ponderv2.optim import build_optimizer
from ponder.train.ponderv2.schedule import Schedule, build_schedule, updates_done

SGD = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
ADAMW = dict(type="AdamW", lr=0.1, weight_decay=0.01)
GROUPS = [dict(keyword="block", lr_scale=0.1), dict(keyword="head", lr=0.3)]


class Network(nn.Module):
    """Parameters in an order that groups change, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)
        self.block = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
        self.stem = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.zeros(()), requires_grad=False)


def momentum_of(group: dict[str, Any]) -> float:
    return group["betas"][0] if "betas" in group else group["momentum"]


def torchs(kind: str, optimizer: Any, total: int, args: dict[str, Any]) -> Any:
    """The scheduler that PonderV2 makes of a config: torch's class or a function for its LambdaLR."""
    if kind == "OneCycleLR":
        return lr_scheduler.OneCycleLR(optimizer, total_steps=total, **args)
    if kind == "CosineAnnealingLR":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total, **args)
    if kind == "MultiStepLR":
        milestones: Any = [rate * total for rate in args["milestones"]]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=args.get("gamma", 0.1))
    gamma = args.get("gamma", 0.9 if kind == "ExpLR" else 0.1)
    factors: dict[str, Callable[[int], float]] = {
        "PolyLR": lambda s: (1 - s / (total + 1)) ** args.get("power", 0.9),
        "ExpLR": lambda s: gamma ** (s / total),
        "MultiStepWithWarmupLR": lambda s: warmed(s, total, args, gamma),
    }
    return lr_scheduler.LambdaLR(optimizer, factors[kind])


def warmed(step: int, total: int, args: dict[str, Any], gamma: float) -> float:
    """Decays reached so far, times a line from the warm-up's scale to 1."""
    length = args.get("warmup_rate", 0.05) * total
    decay = gamma ** len([rate for rate in args["milestones"] if step >= rate * total])
    start = args.get("warmup_scale", 1e-6)
    return decay * (start + (1 - start) * step / length if step <= length else 1.0)


CASES = [
    ("OneCycleLR", dict(max_lr=0.1, pct_start=0.05, anneal_strategy="cos", div_factor=10.0, final_div_factor=1e4), 100),
    ("OneCycleLR", dict(max_lr=0.1, pct_start=0.4, div_factor=10.0, final_div_factor=100), 24),
    ("OneCycleLR", dict(max_lr=[0.1, 0.01, 0.3]), 37),
    ("OneCycleLR", dict(max_lr=0.2, anneal_strategy="linear", base_momentum=0.5, max_momentum=0.8), 20),
    ("OneCycleLR", dict(max_lr=0.2, three_phase=True, pct_start=0.35), 41),
    ("OneCycleLR", dict(max_lr=0.2, cycle_momentum=False), 10),
    ("OneCycleLR", dict(max_lr=0.2, pct_start=0.0), 7),
    ("OneCycleLR", dict(max_lr=0.2), 1),
    ("PolyLR", dict(), 50),
    ("PolyLR", dict(power=2), 7),
    ("MultiStepLR", dict(milestones=[0.25, 0.5, 0.5], gamma=0.3), 40),
    ("MultiStepLR", dict(milestones=[0.0, 0.75]), 8),
    ("MultiStepWithWarmupLR", dict(milestones=[0.6, 0.8]), 40),
    ("MultiStepWithWarmupLR", dict(milestones=[0.33, 0.9], gamma=0.5, warmup_rate=0.3, warmup_scale=0.1), 23),
    ("ExpLR", dict(gamma=0.01), 30),
    ("ExpLR", dict(), 5),
    ("CosineAnnealingLR", dict(eta_min=0.001), 30),
    ("CosineAnnealingLR", dict(), 12),
]  # fmt: skip
IDS = [f"{kind}-{total}-{number}" for number, (kind, _, total) in enumerate(CASES)]


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize(("kind", "args", "total"), CASES, ids=IDS)
def test_rates_are_torchs(kind: str, args: dict[str, Any], total: int, optimizer: dict[str, Any]) -> None:
    theirs = build_optimizer(Network(), optimizer, GROUPS)
    ours = build_optimizer(Network(), optimizer, GROUPS)
    schedule = build_schedule(dict(type=kind, **args), ours, total)
    scheduler = torchs(kind, theirs, total, args)
    for step in range(total + 1):
        schedule.apply(ours, step)
        for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12, abs=1e-16), step
            assert momentum_of(mine) == pytest.approx(momentum_of(other), rel=1e-12), step
            assert {key: value for key, value in mine.items() if key not in ("params", "lr", "betas", "momentum")} == (
                {key: value for key, value in other.items() if key not in ("params", "lr", "betas", "momentum")}
            )
        theirs.step()
        scheduler.step() if step < total else None


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["SGD", "AdamW"])
def test_momentum_cycles_as_in_ponderv2_or_stays(optimizer: dict[str, Any]) -> None:
    """On: .95 -> .85 -> .95 whatever the optimiser was given; off: the optimiser's own."""
    config = dict(type="OneCycleLR", max_lr=0.1, pct_start=0.05)

    def trace(parity: Parity | None, **more: Any) -> list[float]:
        built = build_optimizer(Network(), optimizer)
        schedule = build_schedule(config | more, built, 100, parity)
        built.param_groups[0]["momentum" if "momentum" in optimizer else "betas"] = None  # as if loaded from elsewhere
        if "betas" in built.param_groups[0]:
            built.param_groups[0]["betas"] = (0.5, 0.999)
        found = []
        for step in range(101):
            schedule.apply(built, step)
            found.append(momentum_of(built.param_groups[0]))
        return found

    cycled = trace(None)
    assert cycled[0] == 0.95 and cycled[4] == pytest.approx(0.85) and cycled[99] == pytest.approx(0.95)
    assert min(cycled) == cycled[4] and cycled == trace(Parity()) == trace(Parity.corrected(), cycle_momentum=True)
    assert trace(Parity.corrected()) == [0.9] * 101 == trace(None, cycle_momentum=False)


@pytest.mark.parametrize(("kind", "args", "total"), CASES, ids=IDS)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_states_go_to_torchs_schedulers_and_back(kind: str, args: dict[str, Any], total: int) -> None:
    """A run of ours goes on with PonderV2's scheduler, and the other way round."""
    done = total // 2
    ours = build_optimizer(Network(), SGD, GROUPS)
    schedule = build_schedule(dict(type=kind, **args), ours, total)
    schedule.apply(ours, done)
    theirs = build_optimizer(Network(), SGD, GROUPS)
    scheduler = torchs(kind, theirs, total, args)
    theirs.load_state_dict(ours.state_dict())
    scheduler.load_state_dict(schedule.state_dict(done))
    assert scheduler.get_last_lr() == [group["lr"] for group in ours.param_groups]
    for step in range(done, total):
        schedule.apply(ours, step)
        for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12, abs=1e-16), step
            assert momentum_of(mine) == pytest.approx(momentum_of(other), rel=1e-12), step
        scheduler.step()
    assert updates_done(scheduler.state_dict()) == total and updates_done(schedule.state_dict(done)) == done


def test_a_rise_of_one_step_starts_at_the_peak() -> None:
    """Where torch divides by zero: a twentieth of twenty steps."""
    optimizer = build_optimizer(Network(), SGD)
    schedule = build_schedule(dict(type="OneCycleLR", max_lr=0.1, pct_start=0.05), optimizer, 20)
    rates = [schedule.rates(step) for step in range(21)]
    assert rates[0] == ((0.1,), 0.85)
    assert rates[19].lrs[0] == pytest.approx(0.1 / 25 / 1e4) and rates[19].momentum == pytest.approx(0.95)
    assert all(later.lrs < earlier.lrs for earlier, later in itertools.pairwise(rates[:20]))


def test_milestones_between_updates_are_never_reached() -> None:
    """As in torch, which asks whether step and milestone are equal; but said."""
    optimizer = build_optimizer(Network(), SGD)
    with pytest.warns(UserWarning, match="4.2 is no whole number of updates"):
        schedule = build_schedule(dict(type="MultiStepLR", milestones=[0.6]), optimizer, 7)
    assert [schedule.rates(step).lrs[0] for step in range(8)] == [0.1] * 8
    theirs = torchs("MultiStepLR", optimizer, 7, dict(milestones=[0.6]))
    for _ in range(7):
        optimizer.step()
        theirs.step()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_warm_up_may_be_absent() -> None:
    optimizer = build_optimizer(Network(), SGD)
    config = dict(type="MultiStepWithWarmupLR", milestones=[0.5], warmup_rate=0)
    schedule = build_schedule(config, optimizer, 4)
    assert [schedule.rates(step).lrs[0] for step in range(4)] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_groups_keep_order_and_their_own_settings() -> None:
    model = Network()
    single = build_optimizer(model, SGD)
    assert single.param_groups[0]["params"] == list(model.parameters())  # the frozen one too
    entries = [dict(keyword="block.1", weight_decay=0.0, momentum=0.5), dict(keyword="block"), dict(keyword="st", lr=2)]
    grouped = build_optimizer(model, SGD, entries)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [[named[id(parameter)] for parameter in group["params"]] for group in grouped.param_groups]
    assert names == [
        ["scale", "head.weight", "head.bias"],
        ["block.1.weight"],
        ["block.0.weight"],
        ["stem.weight", "stem.bias"],
    ]
    settings = [(group["lr"], group["momentum"], group["weight_decay"]) for group in grouped.param_groups]
    assert settings == [(0.1, 0.9, 1e-4), (0.1, 0.5, 0.0), (0.1, 0.9, 1e-4), (2, 0.9, 1e-4)]
    scaled = build_optimizer(model, ADAMW, GROUPS)
    assert [group["lr"] for group in scaled.param_groups] == pytest.approx([0.1, 0.01, 0.3])
    with pytest.warns(UserWarning, match="no parameter is left for the keyword 'blokc'"):
        assert len(build_optimizer(model, SGD, [dict(keyword="blokc")]).param_groups) == 2


def test_arguments_reach_torchs_optimisers() -> None:
    model = Network()
    adam = dict(type="Adam", lr=1, betas=[0.8, 0.9], eps=1e-4, weight_decay=0.5, amsgrad=True)
    group = build_optimizer(model, adam).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"], group["amsgrad"]) == ((0.8, 0.9), 1e-4, 0.5, True)
    assert type(build_optimizer(model, adam)) is torch.optim.Adam
    sgd = build_optimizer(model, dict(type="SGD", lr=0.5, dampening=0.25, momentum=0.75))
    assert (sgd.defaults["dampening"], sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.25, 0.75, False)
    for kind, expected in (("AdamW", 0.01), ("Adam", 0), ("SGD", 0)):
        assert build_optimizer(model, dict(type=kind, lr=1)).defaults["weight_decay"] == expected


WRONG_OPTIMISERS: list[tuple[Any, Any, str]] = [
    (dict(lr=1), None, "optimizer.type: expected one of SGD, Adam, AdamW, got None"),
    (dict(type="Adan", lr=1), None, "got 'Adan'"),
    ("SGD", None, "optimizer: expected a dict with a type, got 'SGD'"),
    (dict(type="SGD"), None, "optimizer: SGD needs lr"),
    (dict(type="SGD", lr="0.1"), None, "optimizer.lr: expected a number of at least 0, got '0.1'"),
    (dict(type="SGD", lr=-1), None, "optimizer.lr"),
    (dict(type="SGD", lr=float("nan")), None, "optimizer.lr"),
    (dict(type="SGD", lr=1, momentun=1), None, "SGD has no argument 'momentun'; did you mean 'momentum'"),
    (dict(type="SGD", lr=1, momentum=2), None, "optimizer.momentum: expected a number from 0 to 1, got 2"),
    (dict(type="SGD", lr=1, nesterov=1), None, "optimizer.nesterov: expected True or False, got 1"),
    (dict(type="SGD", lr=1, nesterov=True), None, "optimizer: Nesterov"),
    (dict(type="Adam", lr=1, betas=(0.9,)), None, "optimizer.betas: expected two numbers"),
    (dict(type="Adam", lr=1, betas=0.9), None, "optimizer.betas: expected a list of numbers, got 0.9"),
    (SGD, [dict(lr=1)], r"param_dicts\[0\]: expected a dict with a keyword"),
    (SGD, [dict(keyword="a", lr=1, lr_scale=2)], "expected lr or lr_scale, got both"),
    (SGD, [dict(keyword="a", lrscale=2)], "unknown key 'lrscale'; did you mean 'lr_scale'"),
    (SGD, [dict(keyword="a", lr_scale=-2)], r"param_dicts\[0\].lr_scale: expected"),
    (ADAMW, [dict(keyword="a", momentum=0.1)], "AdamW has no momentum"),
]


@pytest.mark.parametrize(("config", "groups", "message"), WRONG_OPTIMISERS)
def test_impossible_optimisers_are_refused(config: Any, groups: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(Network(), config, groups)


WRONG_SCHEDULES: list[tuple[Any, str]] = [
    (dict(type="StepLR"), "scheduler.type: expected one of OneCycleLR, PolyLR"),
    (dict(type="OneCycleLR"), "scheduler: OneCycleLR needs max_lr"),
    (dict(type="OneCycleLR", max_lr=[1, 2]), "scheduler.max_lr: expected a number for each of the 1 groups, got 2"),
    (dict(type="OneCycleLR", max_lr=1, pct_start=5), "scheduler.pct_start: expected a number from 0 to 1, got 5"),
    (dict(type="OneCycleLR", max_lr=1, div_factor=0), "scheduler.div_factor"),
    (
        dict(type="OneCycleLR", max_lr=1, anneal_strategy="cosine"),
        "scheduler.anneal_strategy: expected one of cos, linear",
    ),
    (dict(type="OneCycleLR", max_lr=1, total_steps=5), "OneCycleLR has no argument 'total_steps'"),
    (dict(type="MultiStepLR"), "MultiStepLR needs milestones"),
    (dict(type="MultiStepLR", milestones=0.5), "scheduler.milestones: expected a list of numbers, got 0.5"),
    (dict(type="MultiStepLR", milestones=[100]), "scheduler.milestones: expected a number from 0 to 1, got 100"),
    (dict(type="PolyLR", power="a"), "scheduler.power: expected a number of at least 0, got 'a'"),
]


@pytest.mark.parametrize(("config", "message"), WRONG_SCHEDULES)
def test_impossible_schedules_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_schedule(config, build_optimizer(Network(), SGD), 10)


def test_steps_outside_the_run_are_refused() -> None:
    optimizer = build_optimizer(Network(), SGD)
    with pytest.raises(ValueError, match="total_steps: expected at least 1, got 0"):
        build_schedule(dict(type="PolyLR"), optimizer, 0)
    schedule: Schedule = build_schedule(dict(type="PolyLR"), optimizer, 10)
    for step in (-1, 11):
        with pytest.raises(ValueError, match=rf"step: expected 0 .. 10, got {step}"):
            schedule.rates(step)
    for state in ({}, {"last_epoch": -1}, {"last_epoch": "3"}, None):
        with pytest.raises(CheckpointError, match="expected a count of updates as last_epoch"):
            updates_done(state)  # type: ignore[arg-type]


def test_configs_are_left_as_they_are() -> None:
    optimizer_config, schedule_config, groups = dict(SGD), dict(type="PolyLR"), [dict(entry) for entry in GROUPS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_schedule(schedule_config, build_optimizer(Network(), optimizer_config, groups), 10)
    assert optimizer_config == SGD and schedule_config == dict(type="PolyLR") and groups == GROUPS
