"""PonderV2's indoor model on generated rooms: what it gives, what it optimises, and both sides of its switches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.models.ponderv2.indoor import PonderIndoor
from ponder.models.ponderv2.masking import MaskConfig
from ponder.models.ponderv2.pixel_rays import PixelRays
from ponder.models.ponderv2.point_losses import build_criteria
from ponder.render.ponderv2 import Parity, build_renderer
from tests.ponder.ponderv2_rooms import (
    CLASSES,
    WIDTH,
    Points,
    indoor_model,
    renderer_config,
    room_batch,
    text_table,
)

SIZES = [(4.0, 3.0, 2.5), (2.2, 2.0, 2.4)]
TERMS = ("depth_loss", "rgb_loss", "semantic_loss", "free_space_loss", "sdf_loss", "eikonal_loss")


def step(model: PonderIndoor, batch: Mapping[str, Any], seed: int = 2) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    out = model(batch)
    if out["loss"].requires_grad:
        out["loss"].backward()
    return out


def rendered(model: PonderIndoor, batch: Mapping[str, Any], seed: int = 2) -> tuple[PixelRays, dict[str, Tensor]]:
    """The rays that `step` draws with a seed, and what the renderer gives for them."""
    torch.manual_seed(seed)
    features = model.extract_features(batch)
    cube, rays = model.prepare_rays(batch)
    return rays, model.render(model.make_volume(features, cube), rays)


def direct_contrast(pred: Tensor, target: Tensor, measured: Tensor) -> Tensor:
    """Cross entropy of every ray's own target among the targets of all rays, over rays that have one."""
    valid = target.any(1) & measured
    logits = F.normalize(pred, dim=1) @ target.T / 0.01
    return F.cross_entropy(logits, torch.where(valid, torch.arange(len(pred)), -100)) if valid.any() else pred.sum() * 0


def test_parameters_stand_in_ponderv2s_order() -> None:
    model = indoor_model(mask=MaskConfig(0.5, 8, 6))
    heads = [name.partition(".")[0] for name in model.state_dict()]
    assert list(dict.fromkeys(heads)) == [
        "mtoken", "logit_scale", "class_embedding", "backbone", "proj_net", "renderer", "embedding_table", "proj_head",
    ]  # fmt: skip
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes["mtoken"] == [1, 6] and shapes["logit_scale"] == [] and shapes["class_embedding"] == [CLASSES, WIDTH]
    assert shapes["embedding_table.weight"] == [2, 5] and shapes["proj_head.weight"] == [WIDTH, 10]
    assert not model.logit_scale.requires_grad
    plain = indoor_model(render_semantic=False)
    names = {name.partition(".")[0] for name in plain.state_dict()}
    assert names == {"backbone", "proj_net", "renderer", "embedding_table"}
    assert "proj_head.weight" not in indoor_model(ppt_loss_weight=0.0).state_dict()


def test_output_of_a_training_step() -> None:
    batch, model = room_batch(SIZES), indoor_model()
    before = copy.deepcopy(batch)
    out = step(model, batch)
    assert set(out) == {"loss", *TERMS, "psnr", "ppt_loss", "ignored_labels"}
    assert torch.allclose(out["loss"], torch.stack([out[name] for name in TERMS]).sum())
    assert all(value.shape == () and bool(torch.isfinite(value)) for value in out.values())
    assert int(out["ignored_labels"]) == 0
    assert list(batch) == list(before)
    same = (torch.equal(batch[k], v) if isinstance(v, Tensor) else batch[k] == v for k, v in before.items())
    assert all(same)
    without = {name for name, value in model.named_parameters() if value.grad is None}
    kept_out = ("proj_head.", "logit_scale", "renderer.field.laplace_density.")
    assert all(name.startswith(kept_out) for name in without)
    assert torch.equal(out["loss"], step(model, batch)["loss"]) and not torch.equal(
        out["loss"], step(model, batch, 9)["loss"]
    )


def test_losses_by_their_formulas() -> None:
    """From the rays and what the renderer gives, with all targets expanded and all pairs of rays."""
    batch, model = room_batch(SIZES), indoor_model()
    batch["extrinsic"][0, 0, :3, 3] += 20
    out = step(model, batch)
    rays, preds = rendered(model, batch)
    measured = rays.depth > 0
    assert 0 < int(measured.sum()) < len(measured)
    z, sdf, t = preds["z_vals"][..., 0], preds["sdf"][..., 0], 0.05
    front, back = measured & (z < rays.depth - t), measured & (z > rays.depth + t)
    near = measured & ~front & ~back
    table = model.class_table(batch)
    assert table is not None
    target = torch.stack([table[k] if k > 0 else torch.zeros(WIDTH) for k in rays.labels.tolist()])
    wanted = {
        "depth_loss": ((rays.depth - preds["depth"]).abs() * measured).sum() / measured.sum(),
        "rgb_loss": 10 * (rays.rgb - preds["rgb"]).abs().mean(),
        "free_space_loss": (torch.relu(t - sdf) * front).sum() / front.sum().clamp_min(1),
        "sdf_loss": 10 * ((z + sdf - rays.depth).abs() * near).sum() / near.sum().clamp_min(1),
        "eikonal_loss": 0.01 * (preds["gradients"].norm(dim=-1) - 1).square().mean(),
        "semantic_loss": 0.1 * direct_contrast(preds["semantic"], target, measured[:, 0]),
        "psnr": -10 * torch.log10((rays.rgb - preds["rgb"]).square().mean()),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(out[name], value, rtol=2e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


def test_evaluation_in_parts() -> None:
    """Rays of a scene in parts of val_ray_split, and the semantic contrast within chunks of the renderer's."""
    batch = room_batch(SIZES)
    model = indoor_model(val_ray_split=5, ppt_loss_weight=0.0).eval()
    sizes = []
    model.renderer.register_forward_hook(lambda _, given, __: sizes.append(len(given[0].origins)))
    out = step(model, batch)
    assert sizes == [5, 5, 5, 1] * 2
    assert not out["loss"].requires_grad and set(out) == {"loss", *TERMS, "psnr", "ignored_labels"}
    rays, preds = rendered(model, batch)
    assert preds["rgb"].min() >= 0 and len(preds["rgb"]) == 32 and not preds["rgb"].requires_grad
    table = model.class_table(batch)
    assert table is not None
    target = torch.where((rays.labels > 0)[:, None], table[rays.labels.clamp_min(0)], 0.0)
    chunks = zip(preds["semantic"].split(8), target.split(8), (rays.depth[:, 0] > 0).split(8), strict=True)
    contrast = torch.stack([direct_contrast(*chunk) for chunk in chunks]).mean()
    torch.testing.assert_close(out["semantic_loss"], 0.1 * contrast, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("unused", [True, False], ids=["PonderV2", "corrected"])
def test_loss_of_the_points(unused: bool) -> None:
    batch = room_batch(SIZES, condition="B")
    batch["segment"][:50] = -1
    model = indoor_model(parity=Parity(point_loss_unused=unused), ppt_loss_weight=0.25)
    out = step(model, batch)
    features = model.extract_features(batch)
    embedding = model.proj_head(features)
    unit = embedding / embedding.norm(dim=1, keepdim=True)
    logits = model.logit_scale.exp() * unit @ text_table().embedding[[1, 3, 2, 6]].T
    point_loss = F.cross_entropy(logits, batch["segment"], ignore_index=-1)
    torch.testing.assert_close(out["ppt_loss"], point_loss, rtol=1e-5, atol=1e-6)
    rendering = torch.stack([out[name] for name in TERMS]).sum()
    total = rendering if unused else rendering + 0.25 * point_loss
    torch.testing.assert_close(out["loss"], total, rtol=1e-5, atol=1e-6)
    assert (model.proj_head.weight.grad is None) == unused


def test_labels_are_not_needed() -> None:
    """Neither by a model that has learnt nothing of classes, nor by one that has."""
    batch = room_batch(SIZES)
    unlabelled = {key: value for key, value in batch.items() if key not in ("semantic", "segment")}
    for model in (indoor_model(), indoor_model(render_semantic=False)):
        out = step(model, unlabelled)
        assert float(out["semantic_loss"].detach()) == 0 and out["loss"] > 0 and "ppt_loss" not in out
    plain = step(indoor_model(render_semantic=False), batch)
    assert torch.equal(plain["loss"], out["loss"]) and "ppt_loss" not in plain


def test_labels_that_are_no_class_are_counted() -> None:
    batch = room_batch(SIZES)
    batch["segment"][:7] = 6
    batch["semantic"][:] = 99
    out = step(indoor_model(), batch)
    assert int(out["ignored_labels"]) == 7 + 32
    assert bool(torch.isfinite(out["loss"]))


def test_class_zero_has_a_target_once_corrected() -> None:
    batch = room_batch(SIZES)
    batch["semantic"][:] = 0
    assert float(step(indoor_model(), batch)["semantic_loss"]) == 0
    corrected = indoor_model(parity=Parity(no_target_for_class_zero=False))
    assert step(corrected, batch)["semantic_loss"] > 0


def test_grids_match_once_corrected() -> None:
    """A feature is then read where its point is: points stand at the nearest voxel."""
    batch, stay = room_batch(SIZES), nn.Identity()
    theirs, ours = (indoor_model(projection=stay, parity=Parity(mismatched_grids=value)) for value in (True, False))
    cube, _ = theirs.prepare_rays(batch)
    features = torch.ones(len(cube.coord), 10)
    places = (cube.unit / 1.101 + 0.5) * torch.tensor([11, 11, 7])
    x, y, z = places.round().long().T
    wanted = torch.zeros(2, 8, 12, 12)
    wanted[cube.batch, z, y, x] = 1
    assert torch.equal(ours.make_volume(features, cube)[:, 0], wanted)
    assert not torch.equal(theirs.make_volume(features, cube)[:, 0], wanted)


def test_every_departure_corrected() -> None:
    model = indoor_model(parity=Parity.corrected())
    out = step(model, room_batch(SIZES))
    assert bool(torch.isfinite(out["loss"]))
    assert all(not getattr(model.renderer.parity, field.name) for field in fields(Parity))


def test_datasets_have_their_own_context_and_classes() -> None:
    model = indoor_model()
    first, second = room_batch(SIZES, condition="A"), room_batch(SIZES, condition="B")
    assert [model.condition_number(batch) for batch in (first, second, {})] == [0, 1, None]
    table = text_table().embedding
    assert torch.equal(model.class_table(second), table[[1, 3, 2, 6]]) and torch.equal(model.class_table({}), table)
    step(model, second)
    grad = model.embedding_table.weight.grad
    assert grad is not None and not grad[0].any() and grad[1].any()
    alone = model.extract_features({**first, "condition": "A"})
    assert torch.equal(alone, model.extract_features(first))
    with pytest.raises(ValueError, match="condition: expected one of A, B, got 'C'"):
        step(model, {**first, "condition": ["C", "C"]})


def test_masked_voxels_show_the_token() -> None:
    batch, seen = room_batch(SIZES), {}

    class Spy(Points):
        def forward(self, batch: Mapping[str, Any]) -> Tensor:
            seen["feat"] = batch["feat"]
            return super().forward(batch)

    model = indoor_model(backbone=Spy(10), mask=MaskConfig(0.75, 40, 6))
    before = batch["feat"].clone()
    step(model, batch)
    hidden = (seen["feat"] == model.mtoken).all(1)
    assert 0.5 < float(hidden.float().mean()) < 0.95
    assert torch.equal(seen["feat"][~hidden], before[~hidden]) and torch.equal(batch["feat"], before)
    assert model.mtoken.grad is not None and model.mtoken.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rendering_stays_in_float32_under_autocast(dtype: torch.dtype) -> None:
    """And so do the scenes in the cube and their rays; only the networks run in half precision."""
    batch, model = room_batch(SIZES), indoor_model()
    exact = step(model, batch)
    torch.manual_seed(2)
    cube, rays = model.prepare_rays(batch)
    with torch.autocast("cpu", dtype):
        torch.manual_seed(2)
        for found, wanted in zip(model.prepare_rays(batch), (cube, rays), strict=True):
            for name in ("coord", "extrinsic", "origins", "directions", "depth"):
                if hasattr(wanted, name):
                    assert torch.equal(getattr(found, name), getattr(wanted, name)), name
        volume = model.make_volume(model.extract_features(batch), cube)
        preds = model.render(volume, rays)
        torch.manual_seed(2)
        out = model(batch)
    assert volume.dtype == dtype
    assert all(value.dtype == torch.float32 for value in preds.values())
    assert all(value.dtype in (torch.float32, torch.int64) for value in out.values())
    torch.testing.assert_close(out["loss"], exact["loss"], rtol=0.03, atol=0)


def test_entries_that_are_missing() -> None:
    batch = room_batch(SIZES)
    del batch["depth_scale"], batch["rgb"]
    with pytest.raises(ValueError, match="batch: lacks rgb, depth_scale"):
        indoor_model()(batch)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"grid_shape": (4, 4)}, "grid_shape: expected a positive number, or three"),
        ({"grid_shape": 0}, "grid_shape: expected a positive number"),
        ({"pool_type": "max"}, "pool_type: only 'mean' is supported, got 'max'"),
        ({"ray_nsample": 0}, "ray_nsample, val_ray_split: expected at least 1"),
        ({"text": None}, "render_semantic is on, which needs the embeddings"),
        ({"conditions": None}, "valid_index: expected one entry for each of 0 conditions"),
        ({"conditions": None, "render_semantic": False}, "conditions: expected the name of at least one dataset"),
        ({"valid_index": ((0, 1), (0, 99))}, r"valid_index: expected rows of 7 classes, got \(0, 99\)"),
        ({"valid_index": ((0, 1),)}, "valid_index: expected one entry for each of 2 conditions, got 1"),
        ({"point_loss": None}, "ppt_criteria: ppt_loss_weight is above 0"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        indoor_model(**settings)


def test_defaults_are_ponderv2s() -> None:
    model = PonderIndoor(
        Points(96),
        nn.Identity(),
        build_renderer(renderer_config()),
        conditions=["A"],
        text=text_table(),
        point_loss=build_criteria([{"type": "CrossEntropyLoss"}]),
    )
    assert model.grid_shape == (64, 64, 64) and model.grid_size == 0.02 and model.bound == 0.55
    assert (model.val_ray_split, model.ray_nsample) == (10240, 128)
    assert not model.render_semantic and model.ppt_loss_weight == 0 and model.parity == Parity()
    assert replace(model.parity) == Parity()
    assert list(model.embedding_table.weight.shape) == [1, 256]
