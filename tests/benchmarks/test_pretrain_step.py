"""The measured pre-training step runs in parts, and renderers that disagree are not timed."""

from __future__ import annotations

import pytest
import torch

from benchmarks import pretrain_step
from benchmarks.pretrain_case import Setting, build, make_batch
from benchmarks.pretrain_step import Step, check_agreement, parse, time_steps

TINY = Setting(
    backbone="SpUNet-v1m1", points=300, views=2, rays=8, width=40, height=30, grid=(16, 16, 16), channels=(8,) * 8
)


def test_stages_are_timed() -> None:
    seconds = time_steps(["ponder", "eager"], TINY, repeats=1)
    assert list(seconds) == ["ponder", "eager"]
    for parts in seconds.values():
        assert list(parts)[:6] == ["backbone", "cube and rays", "scatter", "dense net", "render", "losses"]
        assert all(len(taken) == 1 and taken[0] > 0 for taken in parts.values())
        stages = sum(taken[0] for name, taken in parts.items() if name != "step")
        assert parts["step"][0] == pytest.approx(stages)


def test_stages_give_the_gradients_of_the_whole() -> None:
    batch, model = make_batch(TINY), build("ponder", TINY)
    contender = Step(model, batch, TINY).contender()
    contender.reset()
    for work in contender.parts.values():
        work()
    by_stage = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    losses = contender.results()
    contender.reset()
    out = model(batch)
    out["loss"].backward()
    for name, value in losses.items():
        torch.testing.assert_close(value, out[name].detach(), rtol=1e-4, atol=1e-6)
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(whole) == list(by_stage)
    for name, grad in whole.items():
        torch.testing.assert_close(by_stage[name], grad, rtol=1e-2, atol=1e-3 * float(grad.abs().max()) + 1e-6)


def test_renderers_that_disagree() -> None:
    with pytest.raises(RuntimeError, match="depth_loss: a has 1, b has 2"):
        check_agreement({"a": {"depth_loss": 1.0}, "b": {"depth_loss": 2.0}})


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options, setting = parse(["time", "--rays", "7", "--grid", "8", "9", "10"])
    assert (options.what, setting.rays, setting.grid, setting.backbone) == ("time", 7, (8, 9, 10), "SpUNet-v1m3")
    for wrong, message in ((["--rays", "0"], "at least 1"), (["--amp"], "only with --device cuda")):
        with pytest.raises(SystemExit):
            pretrain_step.main(wrong)
        assert message in capsys.readouterr().err
