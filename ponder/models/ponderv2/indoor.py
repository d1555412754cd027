"""PonderV2's indoor pre-training model: a point cloud is encoded, and images of its scene are rendered from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ponder.models.ponderv2.dense_volume import points_to_volume
from ponder.models.ponderv2.distillation import Distillation
from ponder.models.ponderv2.masking import MaskConfig, kept_voxels, mask_token, masked_features
from ponder.models.ponderv2.networks import Batch, dataset_of
from ponder.models.ponderv2.pixel_rays import NO_LABEL, PixelRays, Views, draw_rays
from ponder.models.ponderv2.point_losses import class_logits
from ponder.models.ponderv2.segmentor import Criterion
from ponder.models.ponderv2.text import TextTable
from ponder.models.ponderv2.unit_cube import HALF, UnitCube, to_unit_cube
from ponder.render.ponderv2 import Parity, RayBundle, SurfaceModel

NEEDED = ("coord", "grid_coord", "feat", "offset", "rgb", "depth", "depth_scale", "intrinsic", "extrinsic")


class PonderIndoor(nn.Module):
    """Point cloud -> sparse network -> dense volume -> dense network -> rendered views -> losses.

    Names and order of the parameters are PonderV2's, those of its registry entry `PonderIndoor-v2`. Where its code
    departs from what it means, `parity` says which of the two happens.

    Args:
        backbone: called with the batch, to which `context` [1, context_channels] is added where it names a
            `condition`; returns features [N, backbone_out_channels].
        projection: volume [B, backbone_out_channels, D, H, W] to [B, C, D, H, W] with the channels the renderer reads.
        renderer: from `build_renderer`.
        text: embeddings of all classes; needed to render semantics.
        parity: which departures of PonderV2's code to keep; None: all.
        mask: hides blocks of voxels from the backbone.
        grid_shape: cells of the dense volume along (x, y, z), or along each of them.
        grid_size: edge of a voxel, metres.
        val_ray_split: rays of one scene that are rendered at once in evaluation.
        ray_nsample: pixels drawn from each view.
        padding: rays have to hit the cube widened by half of this on each side.
        backbone_out_channels, context_channels: widths of the backbone's features and of its context.
        pool_type: how features in a cell are combined; only "mean".
        render_semantic: whether images have class labels to learn from.
        conditions: names of the datasets, in the order of the rows of the table of contexts.
        valid_index: by condition, the rows of `text` that its labels mean, in the order of the labels.
        ppt_loss_weight: above 0 the points' own classes are compared with theirs; see `Parity.point_loss_unused`.
        point_loss: maps logits [N, K] and labels [N] to a loss; needed with that weight.
        distillation: follows the maps of `teacher` [B, V, H', W', C] in the batch.

    Raises:
        ValueError: settings that do not fit each other.

    Reference:
        Zhu et al., PonderV2, arXiv 2310.08586, section 3.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projection: nn.Module,
        renderer: SurfaceModel,
        *,
        text: TextTable | None = None,
        parity: Parity | None = None,
        mask: MaskConfig | None = None,
        grid_shape: int | Sequence[int] = 64,
        grid_size: float = 0.02,
        val_ray_split: int = 10240,
        ray_nsample: int = 128,
        padding: float = 0.1,
        backbone_out_channels: int = 96,
        context_channels: int = 256,
        pool_type: str = "mean",
        render_semantic: bool = False,
        conditions: Sequence[str] | None = None,
        valid_index: Sequence[Sequence[int]] | None = None,
        ppt_loss_weight: float = 1.0,
        point_loss: Criterion | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        shape = (grid_shape,) * 3 if isinstance(grid_shape, int) else tuple(grid_shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"grid_shape: expected a positive number, or three (x, y, z), got {grid_shape!r}")
        if pool_type != "mean":
            raise ValueError(f"pool_type: only 'mean' is supported, got {pool_type!r}")
        if min(ray_nsample, val_ray_split) < 1:
            raise ValueError(f"ray_nsample, val_ray_split: expected at least 1, got {ray_nsample}, {val_ray_split}")
        self.grid_shape, self.grid_size = (shape[0], shape[1], shape[2]), grid_size
        self.val_ray_split, self.ray_nsample, self.bound = val_ray_split, ray_nsample, HALF + padding / 2
        self.parity, self.conditions = parity or Parity(), tuple(conditions or ())
        self.mask, self.distillation = mask, distillation
        self.backbone_out_channels = backbone_out_channels
        self.render_semantic = render_semantic
        self.ppt_loss_weight = float(ppt_loss_weight) if render_semantic else 0.0
        if mask is not None:
            self.mtoken = mask_token(mask.channel)
        if render_semantic:
            self._add_text(text, valid_index)
        self.backbone, self.proj_net, self.renderer = backbone, projection, renderer
        if not self.conditions:
            raise ValueError("conditions: expected the name of at least one dataset, got none")
        self.embedding_table = nn.Embedding(len(self.conditions), context_channels)
        if self.ppt_loss_weight > 0:
            if point_loss is None:
                raise ValueError("ppt_criteria: ppt_loss_weight is above 0, but no loss of the points was given")
            self.proj_head = nn.Linear(backbone_out_channels, self.class_embedding.shape[1])
        self.ppt_criteria = point_loss
        if distillation is not None and renderer.field.feature_decoder is None:
            raise ValueError("distillation: the renderer's field has no feature_decoder")

    def _add_text(self, text: TextTable | None, valid_index: Sequence[Sequence[int]] | None) -> None:
        """Register the class embeddings, and the rows of each condition."""
        if text is None:
            raise ValueError("render_semantic is on, which needs the embeddings of the classes, but no text was given")
        count = len(text.embedding)
        if valid_index is not None and len(valid_index) != len(self.conditions):
            raise ValueError(
                f"valid_index: expected one entry for each of {len(self.conditions)} conditions, got {len(valid_index)}"
            )
        for rows in valid_index or ():
            if not rows or min(rows) < 0 or max(rows) >= count:
                raise ValueError(f"valid_index: expected rows of {count} classes, got {tuple(rows)}")
        self.logit_scale = nn.Parameter(torch.tensor(float(text.logit_scale)), requires_grad=False)
        self.class_embedding: Tensor
        self.register_buffer("class_embedding", text.embedding.float())
        for number, rows in enumerate(valid_index or ()):
            self.register_buffer(f"rows{number}", torch.tensor(list(rows)), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch; in evaluation rendering keeps no gradients.

        Args:
            batch: B scenes with V views each, N points in all. coord [N, 3] metres; grid_coord [N, 3] voxels; feat
                [N, F]; offset [B] cumulative numbers of points; rgb [B, V, H, W, 3] in 0 to 1; depth [B, V, H, W] raw,
                0 where missing; depth_scale [B] metres per raw unit; intrinsic [B, V, 4, 4] or [B, V, 3, 3] (or
                without V), pixels; extrinsic [B, V, 4, 4] world to camera. Where there are labels: semantic
                [B, V, H, W] and segment [N], -1 for none. condition: the scenes' dataset, a name or one per scene.
                teacher [B, V, H', W', C] if there is a distillation. Nothing of it is changed.

        Returns:
            loss [], what is optimised; the losses it sums and psnr; ppt_loss of the points, whether or not `loss`
            has it; ignored_labels, how many labels were no class.

        Raises:
            ValueError: naming an entry that is missing or does not fit.
        """
        missing = [key for key in NEEDED if key not in batch]
        if missing:
            raise ValueError(f"batch: lacks {', '.join(missing)}")
        features = self.extract_features(batch)
        cube, rays = self.prepare_rays(batch)
        volume = self.make_volume(features, cube)
        terms = self.render_losses(volume, rays, batch)
        loss = torch.stack([term.sum() for name, term in terms.items() if "loss" in name]).sum()
        out = {"loss": loss, **terms}
        if self.render_semantic:
            out["ignored_labels"] = rays.ignored
        if self.ppt_loss_weight > 0 and "segment" in batch:
            self._add_point_loss(out, features, batch)
        return out

    def class_table(self, batch: Batch) -> Tensor | None:
        """[K, E] embeddings of the labels of a batch; None if no semantics are rendered."""
        if not self.render_semantic:
            return None
        number = self.condition_number(batch)
        rows = None if number is None else getattr(self, f"rows{number}", None)
        return self.class_embedding if rows is None else self.class_embedding[rows]

    def condition_number(self, batch: Batch) -> int | None:
        """Position of the batch's condition among the model's; None without one. ValueError if it is unknown."""
        name = dataset_of(batch)
        if name is None:
            return None
        if name not in self.conditions:
            raise ValueError(f"condition: expected one of {', '.join(self.conditions)}, got {name!r}")
        return self.conditions.index(name)

    def extract_features(self, batch: Batch) -> Tensor:
        """[N, backbone_out_channels] features of the points, some of which the mask hides."""
        given = dict(batch)
        if self.mask is not None:
            kept = kept_voxels(batch["grid_coord"], batch["offset"], self.mask.size, self.mask.ratio)
            given["feat"] = masked_features(batch["feat"], kept, self.mtoken)
        number = self.condition_number(batch)
        if number is not None:
            given["context"] = self.embedding_table.weight[number : number + 1]
        if not len(batch["coord"]):
            return batch["feat"].new_zeros(0, self.backbone_out_channels)
        features: Tensor = self.backbone(given)
        return features

    def prepare_rays(self, batch: Batch) -> tuple[UnitCube, PixelRays]:
        """The scenes in the unit cube and R rays drawn in their views; see `draw_rays`."""
        cube = to_unit_cube(batch["coord"], batch["offset"], batch["extrinsic"], batch["depth_scale"], self.grid_size)
        table = self.class_table(batch)
        semantic = None if table is None else batch.get("semantic")
        views = Views(batch["rgb"], batch["depth"], batch["intrinsic"], semantic)
        classes, class_zero = 0 if table is None else len(table), not self.parity.no_target_for_class_zero
        return cube, draw_rays(views, cube, self.ray_nsample, self.bound, classes, class_zero)

    def make_volume(self, features: Tensor, cube: UnitCube) -> Tensor:
        """[B, C, D, H, W] volume for the renderer, from features [N, backbone_out_channels] of the points."""
        read_at = None if self.parity.mismatched_grids else self.renderer.field.normalisation().__call__
        volume: Tensor = self.proj_net(points_to_volume(features, cube, self.grid_shape, self.grid_size, read_at))
        return volume

    def render(self, volume: Tensor, rays: PixelRays) -> dict[str, Tensor]:
        """What the renderer gives for rays, scene by scene; at least one ray.

        In float32 also under autocast: half precision loses the surface. In evaluation in parts of `val_ray_split`
        rays and without gradients.
        """
        counts = rays.drawn.counts
        scenes = zip(volume, rays.origins.split(counts), rays.directions.split(counts), strict=True)
        parts = []
        with _full_precision(volume), torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            for own, origins, directions in scenes:
                size = max(1, len(origins) if self.training else self.val_ray_split)
                bundles = map(RayBundle, origins.split(size), directions.split(size))
                parts += [self.renderer(bundle, [own]) for bundle in bundles if len(bundle.origins)]
        if len(parts) == 1:
            return dict(parts[0])
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def render_losses(self, volume: Tensor, rays: PixelRays, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses of the rendered rays and psnr; zeros, connected to the volume, of a batch without rays."""
        if len(rays.origins):
            return self.losses(self.render(volume, rays), rays, batch)
        inputs = (volume, *self.renderer.parameters())
        nothing = torch.stack([value[:0].sum().float() for value in inputs]).sum()
        names = [name for name, weight in self.renderer.loss.weights.items() if weight > 0]
        if self.distillation is not None:
            names.append("distillation_loss")
        return {name: nothing.clone() for name in names}

    def losses(self, preds: Mapping[str, Tensor], rays: PixelRays, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses and psnr, from what `render` gives for rays of a batch."""
        with _full_precision(rays.origins):
            targets = {"depth": rays.depth, "rgb": rays.rgb}
            if "semantic" in preds:
                table = self.class_table(batch)
                targets["semantic_class"] = rays.labels
                # Without classes nothing has a label.
                targets["semantic_table"] = preds["semantic"].new_zeros(1, preds["semantic"].shape[1])
                if table is not None:
                    targets["semantic_table"] = table
            terms: dict[str, Tensor] = self.renderer.get_loss(preds, targets)
            if self.distillation is not None:
                terms["distillation_loss"] = self._distillation_loss(self.distillation, preds, rays, batch)
        return terms

    def _distillation_loss(
        self, distillation: Distillation, preds: Mapping[str, Tensor], rays: PixelRays, batch: Batch
    ) -> Tensor:
        if "teacher" not in batch:
            raise ValueError("batch: lacks teacher, whose maps the distillation follows")
        measured, images = rays.depth[:, 0] > 0, batch["depth"].shape
        return distillation.loss(preds["feature"], batch["teacher"], rays.drawn, measured, images)

    def point_loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """[] loss of the points' own classes, and how many labels were no class."""
        table, labels = self.class_table(batch), batch["segment"]
        assert table is not None and self.ppt_criteria is not None
        unknown = labels >= len(table)
        logits = class_logits(features, self.proj_head, table, self.logit_scale)
        return self.ppt_criteria(logits, torch.where(unknown, NO_LABEL, labels)), unknown.sum()

    def _add_point_loss(self, out: dict[str, Tensor], features: Tensor, batch: Batch) -> None:
        """Add ppt_loss to the output and, unless PonderV2's way is kept, to the loss."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.parity.point_loss_unused):
            loss, ignored = self.point_loss(features, batch)
        out["ppt_loss"] = loss
        out["ignored_labels"] = out["ignored_labels"] + ignored
        if not self.parity.point_loss_unused:
            out["loss"] = out["loss"] + self.ppt_loss_weight * loss


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)
