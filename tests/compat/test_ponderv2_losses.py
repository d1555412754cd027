"""The losses of the drop-in: the class form of the semantic contrast, and what autograd keeps for them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.ponderv2 import losses as baseline_losses
from ponder.compat.ponderv2 import RayBundle, build_renderer
from ponder.render.ponderv2 import semantic
from ponder.render.ponderv2.sample_losses import eikonal_loss, surface_losses
from ponder.render.ponderv2.semantic import classes_of_labels, classes_of_rows, contrast, semantic_loss
from tests.compat.ponderv2_cases import INDOOR, Config, Scenario, rays_of, relative, targets_of

RAYS, WIDTH = 40, 16


def embeddings(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (one of them zeros), labels with -1 for none, table; not all classes occur."""
    g = torch.Generator().manual_seed(0)
    pred = torch.randn(RAYS, WIDTH, generator=g, dtype=torch.float64)
    pred[3] = 0.0
    labels = torch.randint(-1, 5, (RAYS,), generator=g)
    table = torch.randn(7, WIDTH, generator=g, dtype=torch.float64)
    return pred.to(dtype).requires_grad_(), labels, table.to(dtype)


def rows_of(labels: Tensor, table: Tensor) -> Tensor:
    return torch.where(labels[:, None] >= 0, table[labels.clamp_min(0)], 0.0)


def value_and_gradient(loss: Tensor, pred: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    # A prediction of zeros has a gradient of 1e12, which would hide the others.
    return loss.detach(), torch.cat([gradient[:3], gradient[4:]])


@pytest.mark.parametrize("chunk", [None, 16], ids=["training", "evaluation"])
@pytest.mark.parametrize("given", ["rows", "labels"])
@pytest.mark.parametrize("entries", [1 << 20, 20], ids=["one-chunk", "chunks"])
def test_classes_equal_all_pairs(chunk: int | None, given: str, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "CHUNK_ENTRIES", entries)
    pred, labels, table = embeddings()
    rows = rows_of(labels, table)
    measured = torch.rand(RAYS, generator=torch.Generator().manual_seed(1)) > 0.3
    measured[16:32] = False  # no row counts in the second chunk
    arguments = (pred, rows, measured, 0.1, chunk or RAYS, chunk is None)
    want = value_and_gradient(baseline_losses.semantic_loss(*arguments), pred)
    classes = classes_of_rows(rows) if given == "rows" else classes_of_labels(labels, table)
    got = value_and_gradient(semantic_loss(pred, classes, measured, 0.1, chunk, True), pred)
    assert got[0].shape == want[0].shape
    assert relative(got[0], want[0]) < 1e-13 and relative(got[1], want[1]) < 1e-12


def test_every_row_its_own_class() -> None:
    pred, _, _ = embeddings()
    rows = torch.randn(RAYS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    every = torch.ones(RAYS, dtype=torch.bool)
    want = value_and_gradient(baseline_losses.semantic_loss(pred, rows, every, 0.1, RAYS, True), pred)
    got = value_and_gradient(semantic_loss(pred, classes_of_rows(rows), every, 0.1, None, True), pred)
    assert relative(got[0], want[0]) < 1e-13 and relative(got[1], want[1]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_classes_are_recovered(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    _, labels, table = embeddings(dtype)
    rows = rows_of(labels, table)
    near = rows.clone()
    near[0, 0] += torch.finfo(dtype).eps * near[0, 0]  # the last bit counts
    for expanded, expected in ((rows, len(labels.unique())), (near, len(labels.unique()) + 1)):
        classes = classes_of_rows(expanded)
        assert torch.equal(classes.table[classes.ids], expanded) and len(classes.table) == expected
        assert torch.equal(classes.has_target(), labels >= 0)
    assert classes_of_rows(rows[:0]).ids.shape == (0,)
    # Keys of zeros give every row the same hash.
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.full((WIDTH,), -0.5))
    classes = classes_of_rows(rows)
    assert torch.equal(classes.table[classes.ids], rows) and len(classes.table) == len(labels.unique())


def test_no_valid_row_gives_zeros_of_shape_1() -> None:
    pred, labels, table = embeddings()
    loss = contrast(pred, classes_of_labels(labels, table), torch.zeros(RAYS, dtype=torch.bool), 0.1)
    assert loss.tolist() == [0.0] and not loss.requires_grad


def test_derivatives_against_finite_differences() -> None:
    pred, labels, table = embeddings()
    pred = (pred.detach() + 0.1).requires_grad_()
    classes, valid = classes_of_labels(labels, table), labels > 0
    for same in (True, False):
        assert torch.autograd.gradcheck(
            lambda p, same=same: contrast(p, classes, valid, 0.5, same), pred, fast_mode=True
        )
    g = torch.Generator().manual_seed(0)
    sdf = torch.randn(6, 5, generator=g, dtype=torch.float64).mul(0.2).requires_grad_()
    starts, depth = torch.rand(6, 5, generator=g, dtype=torch.float64), torch.full((6, 1), 0.5, dtype=torch.float64)
    depth[2] = -1.0
    assert torch.autograd.gradcheck(lambda f: surface_losses(f, starts, depth, 0.2), sdf)
    gradients = torch.randn(6, 5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(eikonal_loss, gradients)


def test_flat_sdf_has_no_eikonal_gradient() -> None:
    flat = torch.zeros(2, 3, 3, requires_grad=True)
    loss = eikonal_loss(flat)
    loss.backward()
    assert loss == 1 and torch.equal(flat.grad, torch.zeros_like(flat))


def test_labels_replace_expanded_targets() -> None:
    renderer = build_renderer(INDOOR)
    scenario = Scenario(INDOOR)
    preds = renderer(RayBundle(*rays_of(scenario, torch.float32)), [torch.randn(128, 4, 5, 6)])
    goal = targets_of(scenario, torch.float32)
    classes = classes_of_rows(goal["semantic"])
    expanded = renderer.get_loss(preds, goal)["semantic_loss"]
    ids = torch.where(classes.has_target(), classes.ids, -1)
    short = {k: v for k, v in goal.items() if k != "semantic"}
    short |= {"semantic_class": ids, "semantic_table": classes.table}
    assert relative(renderer.get_loss(preds, short)["semantic_loss"], expanded) < 1e-6
    for change, message in (
        ({"semantic_class": ids[:2]}, r"semantic_class: expected integers \[R=5\]"),
        ({"semantic_class": ids + 9}, "semantic_class: expected labels below K="),
        ({"semantic_table": classes.table[:, :5]}, r"semantic_table: expected shape \[K, 512\]"),
    ):
        with pytest.raises(ValueError, match=message):
            renderer.get_loss(preds, short | change)


def saved_bytes(rays: int, config: Config) -> int:
    """Bytes that autograd keeps for forward and losses, besides volume and parameters; unique storages."""
    renderer, volume = build_renderer(config), torch.randn(128, 4, 5, 6, requires_grad=True)
    scenario = Scenario(config, rays=rays)
    bundle, goal = RayBundle(*rays_of(scenario, torch.float32)), targets_of(scenario, torch.float32)
    left_out = {leaf.untyped_storage().data_ptr() for leaf in (volume, *renderer.parameters())}
    found: dict[int, int] = {}
    alive = []  # a freed storage's address would be used again

    def pack(value: Tensor) -> Tensor:
        alive.append(value)
        storage = value.untyped_storage()
        if storage.data_ptr() not in left_out:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        losses = renderer.get_loss(renderer(bundle, [volume]), goal)
    assert len(losses) == 7
    return sum(found.values())


def test_at_most_ten_kilobytes_are_kept_per_ray() -> None:
    """The ScanNet configuration with all losses; the decoders multiplied out, kept once per step, are counted too."""
    few, many = saved_bytes(256, INDOOR), saved_bytes(512, INDOOR)
    assert few <= 256 * 10e3
    per_ray = (many - few) / 256
    assert per_ray <= 6.5e3
    assert many <= 512 * 10e3


def test_normalised_prediction_is_the_one_compared() -> None:
    pred, labels, table = embeddings()
    classes, every = classes_of_labels(labels, table), labels >= 0
    one = contrast(pred[4:], classes._replace(ids=classes.ids[4:]), every[4:], 0.1)
    other = contrast(3 * F.normalize(pred[4:], dim=-1), classes._replace(ids=classes.ids[4:]), every[4:], 0.1)
    assert relative(one, other) < 1e-13
