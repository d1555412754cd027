"""Distillation of a 2D teacher: the lookup of its maps, the loss, and a head that is applied once per ray."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import ponderv2 as baseline
from ponder.models.ponderv2.distillation import Distillation, cosine_loss, sample_maps
from ponder.models.ponderv2.pixel_rays import Drawn, draw_pixels
from ponder.render.ponderv2 import RayBundle, build_renderer
from tests.ponder.ponderv2_rooms import indoor_model, renderer_config, room_batch

SIZES = [(4.0, 3.0, 2.5), (2.2, 2.0, 2.4)]
TEACHER = 5


def everywhere(scenes: int, views: int, height: int, width: int) -> Drawn:
    return draw_pixels(torch.ones(scenes, views, height, width, dtype=torch.bool), height * width)


def between(values: Tensor, place: float) -> Tensor:
    """Linear interpolation in a list [K, ...] whose entries stand at 0, 1, ..., constant beyond its ends."""
    place = min(max(place, 0.0), len(values) - 1.0)
    first = min(math.floor(place), max(len(values) - 2, 0))
    second = min(first + 1, len(values) - 1)
    return values[first] * (1 - (place - first)) + values[second] * (place - first)


@pytest.mark.parametrize("cells", [(6, 8), (3, 4), (12, 5), (1, 1)], ids=str)
def test_lookup(cells: tuple[int, int]) -> None:
    """Pixel centres of a 6 x 8 image among the centres of the cells of a map over the same area."""
    maps = torch.randn(4, *cells, 3)
    drawn = everywhere(2, 2, 6, 8)
    found = sample_maps(maps, drawn, (6, 8))
    for row, view, x, y in zip(found, drawn.view.tolist(), drawn.x.tolist(), drawn.y.tolist(), strict=True):
        u, v = (x + 0.5) * cells[1] / 8 - 0.5, (y + 0.5) * cells[0] / 6 - 0.5
        torch.testing.assert_close(row, between(between(maps[view], v), u), rtol=1e-5, atol=1e-6)
    if cells == (6, 8):
        assert torch.equal(found, maps[drawn.view, drawn.y, drawn.x])


def test_lookup_of_half_precision() -> None:
    maps = torch.randn(1, 3, 4, 2).half()
    drawn = everywhere(1, 1, 6, 8)
    assert torch.equal(sample_maps(maps, drawn, (6, 8)), sample_maps(maps.float(), drawn, (6, 8)))


def test_loss() -> None:
    rendered = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [5.0, 5.0], [1.0, 2.0]], requires_grad=True)
    wanted = torch.tensor([[1.0, 0.0], [0.0, -9.0], [1.0, 0.0], [0.0, 0.0], [torch.nan, 1.0]])
    measured = torch.tensor([True, True, False, True, True])
    loss = cosine_loss(rendered, wanted, measured)
    # Alike, opposite, not measured, without a teacher, without a number.
    torch.testing.assert_close(loss, torch.tensor((0.0 + 2.0) / 2))
    loss.backward()
    assert rendered.grad is not None and bool(torch.isfinite(rendered.grad).all()) and not rendered.grad[2:].any()
    assert float(cosine_loss(rendered, wanted, measured & False).detach()) == 0


def test_step_with_a_teacher() -> None:
    batch = room_batch(SIZES)
    batch["teacher"] = torch.randn(2, 2, 5, 7, TEACHER)
    model = indoor_model(feature=TEACHER, distillation=Distillation(weight=0.5))
    torch.manual_seed(2)
    out = model(batch)
    out["loss"].backward()
    torch.manual_seed(2)
    features = model.extract_features(batch)
    cube, rays = model.prepare_rays(batch)
    preds = model.render(model.make_volume(features, cube), rays)
    assert preds["feature"].shape == (len(rays.depth), TEACHER)
    wanted = sample_maps(batch["teacher"].flatten(0, 1), rays.drawn, (12, 16))
    apart = 1 - F.cosine_similarity(preds["feature"], wanted, dim=1)
    torch.testing.assert_close(out["distillation_loss"], 0.5 * apart.mean(), rtol=1e-5, atol=1e-6)
    terms = [value for name, value in out.items() if name.endswith("_loss") and name != "ppt_loss"]
    torch.testing.assert_close(out["loss"], torch.stack(terms).sum())
    head = model.renderer.field.feature_decoder
    assert head is not None and head.lin0.weight.grad is not None and head.lin0.weight.grad.any()


def test_following_the_teacher() -> None:
    """Features that say which wall a pixel shows are learnt."""
    batch = room_batch(SIZES[:1], missing=0.0)
    batch["teacher"] = F.one_hot(batch["semantic"], 6).float()
    model = indoor_model(feature=6, distillation=Distillation(), ray_nsample=24)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(24):
        optimiser.zero_grad()
        out = model(batch)
        out["loss"].backward()
        optimiser.step()
        losses.append(float(out["distillation_loss"].detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("blocks", [0, 1], ids=["per ray", "per sample"])
def test_head_equals_one_applied_to_every_sample(blocks: int) -> None:
    """Values and gradients, in float64, against the plain renderer that decodes all samples and composites them."""
    config = renderer_config()
    decoder = {"in_dim": 19, "out_dim": TEACHER, "hidden_size": 16, "n_blocks": blocks, "points_factor": 0.0}
    del config["loss"]["weights"]["semantic_loss"], config["field"]["semantic_decoder"]
    ours = build_renderer(config | {"field": config["field"] | {"feature_decoder": decoder}}).double()
    theirs = baseline.build_renderer(config | {"field": config["field"] | {"semantic_decoder": decoder}}).double()
    renamed = {name.replace("feature_decoder", "semantic_decoder"): v for name, v in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    g = torch.Generator().manual_seed(0)
    volume = torch.randn(16, 4, 5, 6, generator=g, dtype=torch.float64)
    origins = torch.rand(9, 3, generator=g, dtype=torch.float64) - 0.5
    directions = F.normalize(torch.randn(9, 3, generator=g, dtype=torch.float64), dim=1)
    wanted = torch.randn(9, TEACHER, generator=g, dtype=torch.float64)
    results = []
    for model, bundle, name in ((ours, RayBundle, "feature"), (theirs, baseline.RayBundle, "semantic")):
        leaf = volume.clone().requires_grad_()
        torch.manual_seed(1)
        found: Any = model(bundle(origins, directions), [leaf])[name]
        (1 - F.cosine_similarity(found, wanted, dim=1)).mean().backward()
        grads = {k.replace("feature", "semantic"): p.grad for k, p in model.named_parameters() if p.grad is not None}
        results.append((found.detach(), leaf.grad, grads))
    (value, by_volume, by_weights), (value2, by_volume2, by_weights2) = results
    torch.testing.assert_close(value, value2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(by_volume, by_volume2, rtol=1e-8, atol=1e-13)
    for name, grad in by_weights2.items():
        torch.testing.assert_close(by_weights[name], grad, rtol=1e-8, atol=1e-13)
    assert by_weights["field.semantic_decoder.lin0.weight"].any() and by_volume.any()


def test_what_does_not_fit() -> None:
    batch = room_batch(SIZES)
    model = indoor_model(feature=TEACHER, distillation=Distillation())
    with pytest.raises(ValueError, match="batch: lacks teacher"):
        model(batch)
    for shape in ([2, 2, 5, 7, 4], [2, 3, 5, 7, 5], [2, 5, 7, 5]):
        with pytest.raises(ValueError, match=r"teacher: expected shape \[B=2, V=2, H', W', C=5\]") as error:
            model(batch | {"teacher": torch.zeros(shape)})
        assert str(error.value).endswith(f"got {shape}")
    with pytest.raises(ValueError, match="distillation: the renderer's field has no feature_decoder"):
        indoor_model(distillation=Distillation())
    with pytest.raises(ValueError, match=r"distillation.weight: expected a number of at least 0, got -1"):
        Distillation(weight=-1)
