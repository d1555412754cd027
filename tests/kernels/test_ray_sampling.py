"""Box intersection, stratified bins and inverse-CDF resampling."""

from __future__ import annotations

import pytest
import torch

from ponder_kernels import intersect_aabb, merge_edges, resample_edges, stratified_edges

BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def rays(*pairs):
    origins = torch.tensor([pair[0] for pair in pairs])
    directions = torch.nn.functional.normalize(torch.tensor([pair[1] for pair in pairs]), dim=-1)
    return origins, directions


def test_box_hits() -> None:
    origins, directions = rays(
        ([-3.0, 0.0, 0.0], [1.0, 0.0, 0.0]),  # through the middle
        ([0.0, 0.0, 0.0], [0.0, 0.0, -1.0]),  # from inside
        ([-3.0, 2.0, 0.0], [1.0, 0.0, 0.0]),  # parallel, outside the slab
        ([3.0, 0.0, 0.0], [1.0, 0.0, 0.0]),  # behind
        ([-3.0, 0.5, 0.5], [-1e-30, 0.0, 1.0]),  # almost parallel, outside
    )
    found = intersect_aabb(origins, directions, BOX, near_min=0.1)
    assert found.hit.tolist() == [True, True, False, False, False]
    torch.testing.assert_close(found.near, torch.tensor([2.0, 0.1, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(found.far, torch.tensor([4.0, 1.0, 0.0, 0.0, 0.0]))


def test_box_points_lie_on_faces() -> None:
    generator = torch.Generator().manual_seed(0)
    origins = torch.randn(500, 3, generator=generator, dtype=torch.float64) * 1.5
    directions = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator, dtype=torch.float64), dim=-1)
    found = intersect_aabb(origins, directions, BOX.double())
    ends = (origins + directions * found.far.unsqueeze(-1))[found.hit]
    assert 50 < int(found.hit.sum()) < 450
    torch.testing.assert_close(ends.abs().amax(-1), torch.ones(len(ends), dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_stratified_edges_stay_sorted_and_inside(count: int) -> None:
    near, far = torch.tensor([0.5, 0.0]), torch.tensor([2.0, 0.0])
    regular = stratified_edges(near, far, count)
    torch.testing.assert_close(regular[0], torch.linspace(0.5, 2.0, count + 1))
    for jitter in (torch.zeros(2, count + 1), torch.rand(2, count + 1), torch.full((2, count + 1), 0.9999)):
        edges = stratified_edges(near, far, count, jitter)
        assert (edges[:, 1:] >= edges[:, :-1]).all()
        assert edges[0].min() >= 0.5 and edges[0].max() <= 2.0
        assert (edges[1] == 0).all()


def test_resampling_follows_the_weights() -> None:
    edges = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    one_hot = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    found = resample_edges(edges, one_hot, 8)
    assert ((found >= 2) & (found <= 3)).all()
    torch.testing.assert_close(found[0], 2 + (torch.arange(8) + 0.5) / 8)
    empty = resample_edges(edges, torch.zeros(1, 4), 4)
    torch.testing.assert_close(empty[0], torch.tensor([0.5, 1.5, 2.5, 3.5]))


def test_resampling_density() -> None:
    weights = torch.tensor([[0.1, 0.6, 0.3]])
    edges = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    jitter = torch.rand(1, 10_000, generator=torch.Generator().manual_seed(0))
    found = resample_edges(edges, weights, 10_000, jitter)
    share = torch.histc(found, 3, 0, 3) / 10_000
    torch.testing.assert_close(share, weights[0], atol=2e-3, rtol=0)
    assert (found[:, 1:] >= found[:, :-1]).all()
    assert not found.requires_grad


def test_merge_is_sorted() -> None:
    merged = merge_edges(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]]))
    assert merged.tolist() == [[0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: intersect_aabb(torch.zeros(4, 2), torch.zeros(4, 3), BOX), "origins: expected shape"),
        (lambda: intersect_aabb(torch.zeros(4, 3).long(), torch.zeros(4, 3), BOX), "origins: expected dtype"),
        (lambda: stratified_edges(torch.zeros(2), torch.ones(2), 0), "count: expected at least 1, got 0"),
        (lambda: stratified_edges(torch.zeros(2), torch.ones(2), 3, torch.zeros(2, 3)), "jitter: expected shape"),
        (lambda: resample_edges(torch.zeros(2, 4), torch.zeros(2, 4), 3), "weights: expected one per bin"),
        (lambda: resample_edges(torch.zeros(2, 4), torch.zeros(2, 3), 0), "count: expected at least 1"),
    ],
    ids=["origins", "dtype", "count", "jitter", "weights", "resample count"],
)
def test_bad_input(function, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        function()
