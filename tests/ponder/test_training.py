"""The step, its guard, the schedule and the records."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from ponder.data.rays import sample_rays
from ponder.data.scene import Frames
from ponder.data.synthetic import RoomConfig, room_scene
from ponder.models.pretrainer import PonderModel, voxelise
from ponder.recipes import demo
from ponder.render.losses import LossConfig, PixelTargets, loss_terms, ray_targets, total_loss
from ponder.train import step as step_module
from ponder.train.config import OptimConfig, TrainConfig, apply_overrides
from ponder.train.records import drop_after
from ponder.train.schedule import one_cycle, scenes_of_step, step_generator
from ponder.train.step import PreparedScene, compute_loss, make_optimizer, train_step
from ponder_kernels import RenderedRays
from tests.ponder.tiny import tiny


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return apply_overrides(demo(), tiny("steps=10"))


@pytest.fixture(scope="module")
def scenes(config: TrainConfig) -> list[PreparedScene]:
    scene = room_scene(0, RoomConfig(train_views=3, heldout_views=1, width=32, height=24))
    return [PreparedScene(scene, voxelise(scene.cloud, config.model))]


def fresh(config: TrainConfig) -> tuple[PonderModel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = PonderModel(config.model)
    return model, make_optimizer(model, config.optim)


def test_loss_falls_and_every_parameter_learns(config: TrainConfig, scenes: list[PreparedScene]) -> None:
    model, optimizer = fresh(config)
    first = train_step(model, optimizer, scenes, config, 0).values["loss"]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    last = [train_step(model, optimizer, scenes, config, index).values["loss"] for index in range(1, 10)][-1]
    assert last < 0.8 * first


def test_a_step_is_a_function_of_seed_and_step(config: TrainConfig, scenes: list[PreparedScene]) -> None:
    model, _ = fresh(config)
    torch.manual_seed(1)
    first, _ = compute_loss(model, scenes, config, 3)
    torch.manual_seed(2)
    torch.rand(10)
    second, _ = compute_loss(model, scenes, config, 3)
    other, _ = compute_loss(model, scenes, config, 4)
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing(
    poison: str, config: TrainConfig, scenes: list[PreparedScene], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = fresh(config)
    train_step(model, optimizer, scenes, config, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    real = step_module.compute_loss

    def poisoned(*arguments):
        loss, terms = real(*arguments)
        if poison == "loss":
            return loss * float("nan"), terms
        parameter = next(model.parameters())
        # Finite value, infinite derivative.
        return loss + torch.sqrt((parameter.flatten()[0] - parameter.flatten()[0].detach()).abs()), terms

    monkeypatch.setattr(step_module, "compute_loss", poisoned)
    result = train_step(model, optimizer, scenes, config, 1)
    assert not result.applied
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))
    monkeypatch.undo()
    assert train_step(model, optimizer, scenes, config, 2).applied


def test_gradients_are_clipped(config: TrainConfig, scenes: list[PreparedScene]) -> None:
    tight = apply_overrides(config, ["optim.clip=1e-3"])
    model, optimizer = fresh(tight)
    result = train_step(model, optimizer, scenes, tight, 0)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert result.values["grad_norm"] > 1e-2
    torch.testing.assert_close(float(norm), 1e-3, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_matrices_are_decayed(name: str, config: TrainConfig) -> None:
    model, _ = fresh(config)
    optimizer = make_optimizer(model, OptimConfig(name=name, weight_decay=0.3))
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_several_scenes_per_step(config: TrainConfig, scenes: list[PreparedScene]) -> None:
    other = room_scene(1, RoomConfig(train_views=3, heldout_views=1, width=32, height=24))
    both = [*scenes, PreparedScene(other, voxelise(other.cloud, config.model))]
    model, optimizer = fresh(config)
    assert train_step(model, optimizer, both, apply_overrides(config, ["scenes=2"]), 0).applied


def test_one_cycle() -> None:
    config = OptimConfig(lr=1.0, warmup=0.25, initial_div=10, final_div=100)
    rates = [one_cycle(step, 101, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[25] == pytest.approx(1.0) and rates[100] == pytest.approx(0.01)
    assert all(a < b for a, b in itertools.pairwise(rates[:26]))
    assert all(a > b for a, b in itertools.pairwise(rates[25:]))
    assert one_cycle(0, 1, config) == pytest.approx(0.1)


def test_every_scene_once_per_epoch() -> None:
    order = [scene for step in range(12) for scene in scenes_of_step(3, step, 2, 4)]
    for epoch in range(6):
        assert sorted(order[4 * epoch : 4 * epoch + 4]) == [0, 1, 2, 3]
    assert order[:4] != order[4:8] or order[4:8] != order[8:12]
    assert not torch.equal(torch.rand(3, generator=step_generator(0, 1)), torch.rand(3, generator=step_generator(1, 0)))


def make_frames() -> Frames:
    height, width = 5, 7
    rgb = torch.arange(2 * height * width * 3).reshape(2, height, width, 3).to(torch.uint8)
    depth = torch.rand(2, height, width) + 1
    intrinsics = torch.tensor([[6.0, 0.0, 3.5], [0.0, 6.0, 2.5], [0.0, 0.0, 1.0]]).expand(2, 3, 3)
    normal = torch.zeros(2, height, width, 3)
    return Frames(("a", "b"), rgb, depth, normal, intrinsics, torch.eye(4).expand(2, 4, 4))


def test_sampled_rays_agree_with_their_pixels() -> None:
    frames = make_frames()
    rays = sample_rays(frames, 2, 50, torch.Generator().manual_seed(0))
    points = rays.origins + rays.directions * rays.ray_depth.unsqueeze(-1)
    column = (points[:, 0] / points[:, 2] * 6 + 3.5 - 0.5).round().long()
    row = (points[:, 1] / points[:, 2] * 6 + 2.5 - 0.5).round().long()
    view = torch.arange(2).repeat_interleave(25)
    chosen = [frames.z_depth[v, row, column] for v in (view, 1 - view)]
    matches = [torch.allclose(points[:, 2], depth, atol=1e-4) for depth in chosen]
    assert any(matches)
    view = view if matches[0] else 1 - view
    torch.testing.assert_close(rays.rgb, frames.rgb[view, row, column].float() / 255)
    assert sample_rays(frames, 5, 11, torch.Generator().manual_seed(0)).origins.shape == (11, 3)


@pytest.mark.parametrize("count", [4, 0])
def test_losses_are_finite_without_any_target(count: int) -> None:
    shapes = (1, count, 3), (1, count), (1, count), (1, count, 3)
    values = [torch.rand(shape, requires_grad=True) for shape in shapes]
    rendered = RenderedRays((values[0],), *values[1:], *(torch.tensor(0.1, requires_grad=True) for _ in range(3)))
    pixels = PixelTargets(torch.rand(1, count, 3), torch.zeros(1, count), torch.zeros(1, count, 3))
    terms = loss_terms(rendered, pixels)
    assert terms["depth"] == 0 and terms["normal"] == 0 and bool(terms["colour"].isfinite())
    total_loss(terms, LossConfig()).backward()
    assert torch.isfinite(values[0].grad).all()
    slopes = ray_targets(pixels, torch.rand(1, count, 3), 0.1).slope
    assert torch.equal(slopes, torch.ones(1, count))
    with pytest.raises(ValueError, match="expected at least one weight above 0"):
        total_loss(terms, LossConfig(0, 0, 0, 0, 0, 0))


def test_loss_terms_by_hand() -> None:
    rendered = RenderedRays(
        heads=(torch.full((1, 2, 3), 0.5),),
        depth=torch.tensor([[2.0, 9.0]]),
        opacity=torch.ones(1, 2),
        normal=torch.tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]),
        eikonal=torch.tensor(0.0),
        free_space=torch.tensor(0.0),
        sdf=torch.tensor(0.0),
    )
    normal = torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]])
    terms = loss_terms(rendered, PixelTargets(torch.ones(1, 2, 3), torch.tensor([[1.5, 0.0]]), normal))
    assert terms["colour"] == 0.5 and terms["depth"] == 0.5 and terms["normal"] == 4.0


def test_records_after_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo', encoding="utf-8")
    drop_after(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == [1, 2]
    drop_after(tmp_path / "absent.jsonl", 2)
