"""Nothing that a batch may hold makes PonderV2's indoor model stop, or its losses and gradients infinite or NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from ponder.data.threads import one_thread
from ponder.models.ponderv2 import build_model
from ponder.models.ponderv2.indoor import PonderIndoor
from ponder.render.ponderv2 import Parity
from tests.ponder.ponderv2_rooms import Points, indoor_model, room_batch

Batch = dict[str, Any]

SIZES = [(4.0, 3.0, 2.5), (2.2, 2.0, 2.4)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are too small to share."""
    with one_thread():
        yield


def networks(sparse: bool, **settings: Any) -> PonderIndoor:
    """With a small dense network and, if asked for, a sparse one."""
    torch.manual_seed(0)
    widths = {"in_channels": 6, "num_classes": 0, "base_channels": 6, "channels": (6, 8, 8, 10), "layers": (1, 1, 1, 1)}
    dense = {"in_channels": 10, "out_channels": 16, "f_maps": 4, "num_levels": 3}
    backbone = build_model({"type": "SpUNet-v1m1", **widths}) if sparse else Points(10)
    return indoor_model(backbone, build_model({"type": "UNet3D-v1m2", **dense}), **settings)


def check_finite(model: PonderIndoor, out: dict[str, torch.Tensor]) -> None:
    for name, value in out.items():
        # psnr of a perfect image is infinite.
        assert bool(torch.isfinite(value).all()) or name == "psnr", name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_training_stays_finite(half: bool) -> None:
    """With PonderV2's optimiser in the middle of its cycle; its users report NaN within a few batches."""
    model = networks(sparse=False)
    optimiser = torch.optim.SGD(model.parameters(), 0.002, momentum=0.85, nesterov=True, weight_decay=1e-4)
    losses = []
    for number in range(40):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            out = model(room_batch(SIZES, seed=number, points=150))
        out["loss"].backward()
        check_finite(model, out)
        optimiser.step()
        losses.append(float(out["loss"].detach()))
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def looking_away(batch: Batch) -> Batch:
    """All cameras stand far off and look elsewhere: every ray misses the box."""
    batch["extrinsic"][:, :, 0, 3] += 50
    return batch


def no_depth(batch: Batch) -> Batch:
    batch["depth"][:] = 0
    return batch


def one_scene_without_depth(batch: Batch) -> Batch:
    batch["depth"][0] = 0
    return batch


def resized(sizes: list[int]) -> Callable[[Batch], Batch]:
    """Scenes of so many of their points."""

    def prepare(batch: Batch) -> Batch:
        starts = [0, *batch["offset"].tolist()[:-1]]
        chosen = torch.cat([torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])
        taken = {key: batch[key][chosen] for key in ("coord", "grid_coord", "feat", "segment")}
        return batch | taken | {"offset": torch.tensor(sizes).cumsum(0)}

    return prepare


def lost_poses(batch: Batch) -> Batch:
    batch["extrinsic"][:, 0] = -torch.inf
    return batch


def black(batch: Batch) -> Batch:
    """Without a single label too."""
    batch["rgb"][:], batch["semantic"][:], batch["segment"][:] = 0, -1, -1
    return batch


def unknown_labels(batch: Batch) -> Batch:
    batch["semantic"][:], batch["segment"][:] = 255, 255
    return batch


def as_it_is(batch: Batch) -> Batch:
    return batch


HOSTILE: dict[str, tuple[list[tuple[float, float, float]], Callable[[Batch], Batch]]] = {
    "rays that miss": (SIZES, looking_away),
    "no depth": (SIZES, no_depth),
    "a scene without depth": (SIZES, one_scene_without_depth),
    "an empty scene": (SIZES, resized([0, 300])),
    "an empty scene last": (SIZES, resized([300, 0])),
    "nothing but empty scenes": (SIZES, resized([0, 0])),
    "one point": (SIZES, resized([1, 300])),
    "one point and nothing else": (SIZES[:1], resized([1])),
    "below 0.6 m": ([(0.2, 0.15, 0.12), (4.0, 3.0, 2.5)], as_it_is),
    "one voxel at the coarsest": ([(0.03, 0.03, 0.03)], as_it_is),
    "below a voxel": ([(0.01, 0.01, 0.01), (4.0, 3.0, 2.5)], as_it_is),
    "flat": ([(4.0, 3.0, 0.001), (0.001, 3.0, 2.0)], as_it_is),
    "far from the origin": (SIZES, lambda batch: batch | {"coord": batch["coord"] + 1e5}),
    "lost poses": (SIZES, lost_poses),
    "black": (SIZES, black),
    "unknown labels": (SIZES, unknown_labels),
}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches(case: str, half: bool) -> None:
    sizes, prepare = HOSTILE[case]
    batch = prepare(room_batch(sizes))
    for parity in (Parity(),) if half else (Parity(), Parity.corrected()):
        model = networks(sparse=True, parity=parity)
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            out = model(batch)
            model.eval()
            seen = model(batch)
        out["loss"].backward()
        check_finite(model, out)
        assert bool(torch.isfinite(seen["loss"]))
        assert model.proj_net.final_conv.weight.grad is not None


def test_without_a_ray_nothing_is_learnt() -> None:
    """The loss is 0 and so are all gradients, which exist, for the sake of those who add them up between processes."""
    model = networks(sparse=True)
    out = model(no_depth(room_batch(SIZES)))
    out["loss"].backward()
    assert float(out["loss"].detach()) == 0
    used = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(("proj_head", "embedding"))]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in used)
