"""PonderV2's configs, models and checkpoints under its own names.

from ponder.compat.ponderv2 import build_model, load_checkpoint, load_config

config = load_config("configs/scannet/pretrain-ponder-spunet-v1m1-0-base.py", ["batch_size=8"])
model = build_model(config.model)
print(load_checkpoint(model, "model_last.pth"))
output = model(batch)  # "loss" and its terms

The renderer by itself:

from ponder.compat.ponderv2 import RayBundle, build_renderer

renderer = build_renderer(config.model.renderer)
preds = renderer(RayBundle(origins, directions), volume_feature=[volume])
loss = sum(term for name, term in renderer.get_loss(preds, targets).items() if "loss" in name)
"""

from ponder.compat.ponderv2.checkpoint import CheckpointError, LoadReport, load_checkpoint, save_checkpoint
from ponder.compat.ponderv2.config import Config, ConfigDict, load_config
from ponder.compat.ponderv2.config_file import ConfigWarning
from ponder.models.ponderv2.build import build_model
from ponder.render.ponderv2 import Parity, RayBundle, build_renderer
from ponder.train.config import ConfigError
from ponder.train.ponderv2.keys import unknown_keys

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigDict",
    "ConfigError",
    "ConfigWarning",
    "LoadReport",
    "Parity",
    "RayBundle",
    "build_model",
    "build_renderer",
    "load_checkpoint",
    "load_config",
    "save_checkpoint",
    "unknown_keys",
]
