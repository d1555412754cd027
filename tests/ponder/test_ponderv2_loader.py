"""Batches, their order over ranks, epochs and loader processes, and several datasets in turn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ponder.data.ponderv2 import ConcatDataset, Loader, MultiDatasetLoader, build_dataset, collate
from ponder.data.ponderv2.skips import DROPPED, LITTLE_MASK, Skips
from ponder.data.scene import DataError
from ponder.data.synthetic.ponderv2_layouts import write_s3dis

# Draws that show in every sample.
SHIFTED = [dict(type="RandomShift"), dict(type="RandomDropout", dropout_application_ratio=1.0)]


def write_rooms(folder: Path, rooms: int, points: int = 4) -> None:
    """A plain dataset; every point of room r is at (r, 0, 0)."""
    (folder / "train").mkdir(parents=True)
    for room in range(rooms):
        coord = np.zeros((points + room % 3, 3), dtype=np.float32)
        coord[:, 0] = room
        data = dict(coord=coord, color=coord, normal=coord, semantic_gt=np.full(len(coord), room))
        torch.save(data, folder / "train" / f"room_{room:03d}.pth")


def config(name: str, loop: int = 1, transforms: Any = ()) -> dict[str, Any]:
    steps = [
        *transforms,
        dict(type="Copy", keys_dict={"segment": "scene"}),
        dict(type="Add", keys_dict={"condition": name}),
    ]
    collected = dict(type="Collect", keys=("coord", "scene", "condition"), feat_keys=("coord",))
    return dict(
        type="DefaultDataset", data_root=f"data/{name}", loop=loop,
        transform=[*steps, dict(type="ToTensor"), collected],
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets a, b, c of 13, 5 and 2 rooms."""
    folder = tmp_path_factory.mktemp("rooms")
    for name, rooms in (("a", 13), ("b", 5), ("c", 2)):
        write_rooms(folder / name, rooms)
    return folder


def scenes(batch: dict[str, Any]) -> list[int]:
    """The rooms of a batch."""
    return batch["scene"][batch["offset"] - 1].tolist()


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first
    )


def all_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------------ one batch


def sample(points: int, **more: Any) -> dict[str, Any]:
    return {"coord": torch.full((points, 3), float(points)), "offset": torch.tensor([points]), "name": "x"} | more


def test_collate_joins_and_sums_offsets() -> None:
    rgb = torch.zeros(1, 2, 4, 5, 3)
    batch = collate([sample(n, rgb=rgb, origin_offset=torch.tensor([2]), n=1.5, some=[n]) for n in (3, 4, 5)])
    assert batch["coord"].shape == (12, 3) and batch["offset"].tolist() == [3, 7, 12]
    assert batch["origin_offset"].tolist() == [2, 4, 6] and batch["rgb"].shape == (3, 2, 4, 5, 3)
    assert batch["name"] == ["x", "x", "x"] and batch["n"].tolist() == [1.5] * 3 and batch["some"] == [[3], [4], [5]]


@pytest.mark.parametrize(("count", "offsets"), [(1, [3]), (2, [7]), (3, [7, 12]), (4, [7, 18]), (5, [7, 18, 25])])
def test_mix3d_merges_neighbours(count: int, offsets: list[int]) -> None:
    samples = [sample(n) for n in range(3, 3 + count)]
    mixed = collate(samples, mix_prob=1.0, rng=np.random.default_rng(0))
    assert mixed["offset"].tolist() == offsets and mixed["coord"].shape == (sum(range(3, 3 + count)), 3)
    assert len(mixed["name"]) == count


def test_mix3d_probability() -> None:
    mixed = [len(collate([sample(1)] * 4, 0.3, rng=np.random.default_rng(s))["offset"]) == 2 for s in range(300)]
    assert np.mean(mixed) == pytest.approx(0.3, abs=0.08)
    with pytest.raises(ValueError, match="rng: expected a generator"):
        collate([sample(1)], mix_prob=0.5)
    with pytest.raises(ValueError, match=r"mix_prob: expected 0 to 1, got 1\.5"):
        collate([sample(1)], mix_prob=1.5)


def test_too_many_points() -> None:
    skips = Skips()
    samples = [sample(n) for n in (5, 6, 4, 1)]
    assert collate(samples, max_point=10, skips=skips)["offset"].tolist() == [5, 9, 10]
    assert skips.counter() == {DROPPED: 1}
    assert collate(samples[:2], max_point=3, skips=skips)["offset"].tolist() == [5], "never all"
    assert skips.counter() == {DROPPED: 2}
    for limit in (None, -1, 16):
        assert len(collate(samples, max_point=limit)["offset"]) == 4


def test_samples_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match="expected the same entries in all, got other in some only"):
        collate([sample(1), sample(1, other=1)])
    images = [sample(1, rgb=torch.zeros(1, 2, size, 5, 3)) for size in (4, 6)]
    with pytest.raises(ValueError, match=r"rgb: expected the same shape .*\[1, 2, 4, 5, 3\], \[1, 2, 6, 5, 3\]"):
        collate(images)
    with pytest.raises(TypeError, match="array: expected tensors, numbers, strings or lists, got ndarray"):
        collate([sample(1, array=np.zeros(3))])
    with pytest.raises(ValueError, match="samples: expected at least one"):
        collate([])


# ------------------------------------------------------------------------------------------------ one dataset


def test_an_epoch_is_a_permutation(root: Path) -> None:
    loader = Loader(build_dataset(config("a"), root), 4)
    first, again = list(loader), list(loader)
    seen = [scene for batch in first for scene in scenes(batch)]
    assert len(loader) == len(first) == 3 and len(set(seen)) == 12 and seen != sorted(seen)
    assert all_same(first, again)
    loader.set_epoch(1)
    other = [scene for batch in loader for scene in scenes(batch)]
    assert len(set(other)) == 12 and other != seen
    assert scenes(next(iter(Loader(build_dataset(config("a"), root), 4, seed=1)))) != scenes(first[0])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_one_permutation(root: Path, world: int) -> None:
    dataset = build_dataset(config("a"), root)
    loaders = [Loader(dataset, 2, rank=rank, world=world) for rank in range(world)]
    batches = [[scenes(batch) for batch in loader] for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(b) for b in batches} == {13 // (2 * world)}
    seen = [scene for of_rank in batches for batch in of_rank for scene in batch]
    assert len(set(seen)) == len(seen)
    # What all ranks see in a step does not depend on how many they are.
    alone = [scenes(batch) for batch in Loader(dataset, 2 * world)]
    together = [list(chain.from_iterable(step)) for step in zip(*batches, strict=True)]
    assert alone == together


@pytest.mark.parametrize("world", [1, 2, 4])
def test_without_shuffling_every_scene_comes_once(root: Path, world: int) -> None:
    dataset = build_dataset(config("a"), root)
    loaders = [Loader(dataset, 3, rank=rank, world=world, shuffle=False) for rank in range(world)]
    seen = [[scene for batch in loader for scene in scenes(batch)] for loader in loaders]
    assert sorted(chain.from_iterable(seen)) == list(range(13)) and all(list(s) == sorted(s) for s in seen)
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]


def test_processes_change_nothing(root: Path) -> None:
    """Nor does it matter that they outlive an epoch, or that an epoch was left before its end."""
    dataset = build_dataset(config("a", loop=2, transforms=SHIFTED), root)
    alone = Loader(dataset, 3, 0, mix_prob=0.5)
    helped = Loader(dataset, 3, 2, mix_prob=0.5)
    expected = []
    for epoch in range(3):
        alone.set_epoch(epoch)
        expected.append(list(alone))
    for epoch in (1, 0, 2):
        helped.set_epoch(epoch)
        if epoch == 0:
            unfinished = iter(helped)
            assert same(next(unfinished), expected[0][0])
        assert all_same(list(helped), expected[epoch])
    for batches in expected:
        assert {len(batch["offset"]) for batch in batches} == {2, 3}, "some batches of an epoch are mixed, some not"


def test_an_epoch_goes_on_anywhere(root: Path) -> None:
    dataset = build_dataset(config("a", loop=2, transforms=SHIFTED), root)
    whole = list(Loader(dataset, 3, mix_prob=0.5).batches(2))
    loader = Loader(dataset, 3, mix_prob=0.5)
    loader.set_epoch(2, start=5)
    assert all_same(list(loader), whole[5:]) and all_same(list(loader), whole), "the next time from the beginning"
    assert list(loader.batches(2, 8)) == [] and len(whole) == 8


def test_loops_and_epochs_draw_anew(root: Path) -> None:
    dataset = build_dataset(config("c", loop=3, transforms=SHIFTED), root)
    points = [batch["coord"][0].tolist() for epoch in range(2) for batch in Loader(dataset, 1).batches(epoch)]
    assert len(points) == 12 == len({tuple(point) for point in points})


def test_the_callers_random_numbers_are_left_alone(root: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    list(Loader(build_dataset(config("a", transforms=SHIFTED), root), 3, mix_prob=0.5))
    assert (torch.rand(1).item(), np.random.rand()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size_per_rank=0), "batch_size_per_rank: expected at least 1, got 0"),
        (dict(batch_size_per_rank=2, workers=-1), "workers: expected at least 0, got -1"),
        (dict(batch_size_per_rank=2, rank=2, world=2), "rank: expected 0 to 1, got 2"),
        (dict(batch_size_per_rank=7, world=2), "batch_size_per_rank: expected at most 6 for 13 samples and 2 ranks"),
    ],
)
def test_wrong_settings(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(build_dataset(config("a"), root), **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_one_sentence(tmp_path: Path, workers: int) -> None:
    write_rooms(tmp_path / "a", 4)
    loader = Loader(build_dataset(config("a"), tmp_path), 2, workers)
    torch.save({"coord": np.zeros((2, 3))}, tmp_path / "a/train/room_001.pth")
    with pytest.raises(DataError, match=r"^\S+room_001\.pth: expected 'color' of shape \[N, 3\] .* got nothing$"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_processes_skip_is_counted(tmp_path: Path, workers: int) -> None:
    write_s3dis(tmp_path, scenes=1, points=3000)
    (broken, *_) = sorted((tmp_path / "s3dis/Area_1/office_1_rgbd").glob("*.pth"))
    data = torch.load(broken, weights_only=False)
    torch.save(data | {"depth_mask": np.zeros((48, 64), dtype=bool)}, broken)
    steps = [dict(type="ToTensor"), dict(type="Collect", keys=("coord",), stack_keys=("rgb",))]
    section = dict(type="S3DISRGBDDataset", split="Area_1", num_cameras=4, loop=8, transform=steps)
    loader = Loader(build_dataset(section, tmp_path), 2, workers, max_point=5000)
    batches = list(loader)
    assert [batch["rgb"].shape for batch in batches] == [(1, 4, 48, 64, 3)] * 4
    assert loader.skipped == {LITTLE_MASK: 8, DROPPED: 4} and loader.dataset.skipped == {LITTLE_MASK: 8}


# ------------------------------------------------------------------------------------------------ several datasets


def several(root: Path, loop: int = 1) -> ConcatDataset:
    parts = [config(name, ratio, SHIFTED) for name, ratio in (("a", 4), ("b", 2), ("c", 1))]
    dataset = build_dataset(dict(type="ConcatDataset", datasets=parts, loop=loop), root)
    assert isinstance(dataset, ConcatDataset)
    return dataset


def names(batches: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> str:
    found = []
    for batch in batches:
        assert len(set(batch["condition"])) == 1, "a batch never mixes datasets"
        found.append(batch["condition"][0])
    return "".join(found)


@pytest.mark.parametrize(
    ("loop", "size", "order"),
    [(1, 1, "aaaabbc" * 3 + "a"), (2, 2, "aaaabbc" * 3 + "a"), (1, 2, "aaaabbcaa"), (3, 2, "aaaabbc" * 4 + "aaa")],
)
def test_datasets_take_turns(root: Path, loop: int, size: int, order: str) -> None:
    """4 : 2 : 1 batches until the first dataset is used up; PonderV2's length is M // r0 * sum(r) + M % r0."""
    loader = MultiDatasetLoader(several(root, loop), size)
    batches = list(loader)
    main = 13 * loop // size
    assert names(batches) == order and len(loader) == len(batches) == main // 4 * 7 + main % 4


def test_others_start_anew(root: Path) -> None:
    """With another order and other draws; an exhausted first dataset ends the epoch."""
    batches = list(MultiDatasetLoader(several(root, loop=2), 1))
    of_b = [batch for batch in batches if batch["condition"] == ["b"]]
    passes = [[scenes(batch)[0] for batch in of_b[start : start + 5]] for start in (0, 5)]
    assert len(of_b) == 12 and sorted(passes[0]) == sorted(passes[1]) == list(range(5)) and passes[0] != passes[1]
    assert len({tuple(batch["coord"][0].tolist()) for batch in of_b}) == 12
    of_a = [scenes(batch)[0] for batch in batches if batch["condition"] == ["a"]]
    assert sorted(of_a) == sorted([*range(13)] * 2)


def test_datasets_draw_independently(root: Path) -> None:
    """Rooms of the same number in two datasets are not moved alike."""
    first = {}
    for batch in MultiDatasetLoader(several(root), 1):
        key = batch["condition"][0], scenes(batch)[0]
        first.setdefault(key, batch["coord"][0])
    assert all(not torch.equal(first["b", room], first["c", room]) for room in (0, 1))


@pytest.mark.parametrize("workers", [0, 3])
def test_several_datasets_go_on_anywhere(root: Path, workers: int) -> None:
    whole = list(MultiDatasetLoader(several(root, loop=2), 1).batches(1))
    assert len(whole) == 44
    loader = MultiDatasetLoader(several(root, loop=2), 1, workers)
    for start in (0, 5, 6, 7, 33, 43, 44):
        loader.set_epoch(1, start)
        assert all_same(list(loader), whole[start:]), start


def test_ranks_of_several_datasets(root: Path) -> None:
    batches = [list(MultiDatasetLoader(several(root), 1, rank=rank, world=2)) for rank in range(2)]
    assert names(batches[0]) == names(batches[1]) == "aaaabbcaa"
    for name in "abc":
        seen = [[scenes(b)[0] for b in of_rank if b["condition"] == [name]] for of_rank in batches]
        if name == "a":
            assert len(set(seen[0] + seen[1])) == 12
        assert not set(seen[0]) & set(seen[1])


def test_processes_are_divided(root: Path) -> None:
    def processes(workers: int) -> list[int]:
        loader = MultiDatasetLoader(several(root), 1, workers)
        return [part._loader.num_workers for part in loader.loaders]

    assert processes(0) == [0, 0, 0] and processes(2) == [1, 1, 1] and processes(7) == [2, 2, 2]


def test_ratios_stay_with_the_datasets(root: Path) -> None:
    dataset = several(root)
    assert len(MultiDatasetLoader(dataset, 1)) == len(MultiDatasetLoader(dataset, 1)) == 22
    assert [part.loop for part in dataset.datasets] == [4, 2, 1]
    with pytest.raises(ValueError, match="batch_size_per_rank: expected at most 2 for 2 samples"):
        MultiDatasetLoader(dataset, 3)
