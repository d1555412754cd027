"""PonderV2's renderer under its own names.

from ponder.compat.ponderv2 import RayBundle, build_renderer

renderer = build_renderer(cfg.model.renderer)
preds = renderer(RayBundle(origins, directions), volume_feature=[volume])
loss = sum(term for name, term in renderer.get_loss(preds, targets).items() if "loss" in name)
"""

from ponder.render.ponderv2 import Parity, RayBundle, build_renderer

__all__ = ["Parity", "RayBundle", "build_renderer"]
