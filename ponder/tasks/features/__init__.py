"""Point features of users' own clouds with a checkpoint's frozen backbone."""

from ponder.tasks.features.blocks import BlockError
from ponder.tasks.features.extract import FeatureOptions, Prepared, extract_features, prepare_cloud, voxel_features
from ponder.tasks.features.model import FeatureModel, open_feature_model, ponderv2_model
from ponder.tasks.features.settings import Ponderv2Settings, settings_from_config
from ponder.tasks.features.voxels import find_voxels, network_inputs

__all__ = [
    "BlockError",
    "FeatureModel",
    "FeatureOptions",
    "Ponderv2Settings",
    "Prepared",
    "extract_features",
    "find_voxels",
    "network_inputs",
    "open_feature_model",
    "ponderv2_model",
    "prepare_cloud",
    "settings_from_config",
    "voxel_features",
]
